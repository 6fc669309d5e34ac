//! What becomes of a result: the store's images, archives, directories, registries, engines.

mod archive;
mod artifact;
mod files;
mod push;
mod spec;

pub use archive::{Archive, ArchiveError};
pub use artifact::{Artifact, DOCKER, Descriptor, LayerBlob, MediaTypes, OCI};
pub(crate) use files::{write_local, write_tar};
pub use push::{PushError, Pushed, push};
pub(crate) use spec::csv;
pub use spec::{Destination, GZIP, LayerCompression, OutputError, OutputKind, OutputSpec};
