//! What becomes of a result: the store's images, archives, directories, registries, engines.

mod annotations;
mod archive;
mod artifact;
mod attestation;
mod early;
mod engine;
mod files;
mod push;
mod spec;

pub use annotations::{AnnotationPlace, Annotations};
pub(crate) use archive::tar_header;
pub use archive::{Archive, ArchiveError};
pub use artifact::{Artifact, DOCKER, Descriptor, LayerBlob, MediaTypes, OCI, Package};
pub use attestation::Attestation;
pub(crate) use early::{Early, Predecessor};
pub use engine::{EngineError, find_engine};
pub(crate) use engine::{engine_has, load_into, name_in};
pub(crate) use files::{CombineError, Part, combined, provenance_of_files, write_local, write_tar};
pub(crate) use push::Upstream;
pub use push::{PushError, Pushed, push};
pub use spec::{Destination, GZIP, Keeping, LayerCompression, OutputError, OutputKind, OutputSpec};
pub(crate) use spec::{Fields, csv};
