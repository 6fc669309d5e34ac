//! Caches that machines share: `--cache-to` and `--cache-from`.
//!
//! A shared cache is a table from our keys to stacks of layers, kept in BuildKit's form at a registry, in a directory or in
//! an image. Nothing in it is trusted to be well-formed; that a key leads to its result is trusted, as with the image that
//! the same people would have pushed. It is asked by key only, never by an image's history (CVE-2024-24557).
//!
//! - Reading is lazy: a cache is read when the store misses for the first time, and a hit tells the store where layers are
//!   without fetching any.
//! - Reading cannot fail a build: a cache that cannot be read is a warning and a miss. A layer that turns out to be gone
//!   when a step needs it makes the step that made it run again.
//! - Contents of cache mounts go along where `mounts=` asks for it (`mounts.rs`); a store that has none of that id begins
//!   with them (`restore.rs`).
//! - Writing merges with what is there, so that jobs which write one name keep each other's results (`push.rs`).

mod export;
mod format;
mod import;
mod mounts;
mod push;
mod restore;
mod spec;
mod table;

use std::io;
use std::path::{Path, PathBuf};

use graph::{ContentDigest, Digest};

pub(crate) use export::inline_into;
pub use export::{ExportError, Leaves, export};
pub(crate) use format::strip_inline;
pub(crate) use import::Imports;
pub use mounts::UsedMounts;
pub(crate) use mounts::name_of;
pub(crate) use restore::Restored;
pub use spec::{CacheFrom, CacheTo, Mode, Place, SpecError};

/// A result that a build made or found.
#[derive(Debug, Clone)]
pub struct Recorded {
    /// Under which it is found.
    pub keys: Vec<ContentDigest>,
    /// Key of the operation alone.
    pub op: ContentDigest,
    /// Its layers; `None` is the empty tree.
    pub chain: Option<Digest>,
    /// What it is, without times.
    pub content: ContentDigest,
    /// Its layers are neither here nor at a place that is known.
    pub hollow: bool,
}

const LAYOUT: &str = "oci-layout:";

/// An OCI layout as a place where blobs are.
fn layout_location(path: &Path) -> String {
    let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    format!("{LAYOUT}{}", path.display())
}

/// The layout that a location names.
pub(crate) fn layout_of(location: &str) -> Option<PathBuf> {
    location.strip_prefix(LAYOUT).map(PathBuf::from)
}

/// Bytes of a blob in a layout. Whoever reads them verifies their digest.
pub(crate) fn open_in_layout(layout: &Path, digest: &Digest) -> io::Result<tokio::fs::File> {
    import::open_regular(&layout.join("blobs/sha256").join(digest.hex())).map(tokio::fs::File::from_std)
}
