//! Images that come in by file: archives and layouts ([`load`]), root file systems ([`root_file_system`]).
//!
//! Nothing that an archive says of itself is believed: bytes are stored under the digest they have, and a layer counts only
//! when its uncompressed bytes have the diff id that the config names.

mod changes;
mod layer;
mod load;
mod members;
#[cfg(test)]
mod tests;

use std::io::{self, Read, Write as _};
use std::path::Path;

use graph::image::History;
use graph::{Digest, ImageConfig, Platform};
use registry::Reference;
use snapshotter::layer::LayerError;
use snapshotter::{ImageKind, ImageRecord, ManifestRef, Store, StoreError};

use crate::images::ImageError;
use crate::worker::DiskGuard;

pub use changes::{ChangeError, Changes};
pub use load::{Input, Loaded, Wanted, load, take, take_parts, take_stored};

/// Something that cannot be taken in.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The input cannot be read or decompressed.
    #[error("cannot read {what}")]
    Read {
        /// What.
        what: String,
        /// Why.
        source: io::Error,
    },
    /// It holds no image.
    #[error("this is neither an OCI layout nor a docker archive: it has neither index.json nor manifest.json")]
    NoImage,
    /// It names what it does not have.
    #[error("the archive has no {0}")]
    Missing(String),
    /// It makes no sense.
    #[error("{what}: {why}")]
    Malformed {
        /// Which part.
        what: String,
        /// What is wrong.
        why: String,
    },
    /// A layer is not what its image says.
    #[error("a layer has diff id {found}, not {expected} as its image says")]
    WrongLayer {
        /// By the config.
        expected: Digest,
        /// By its bytes.
        found: Digest,
    },
    /// A layer is no tar, or a hostile one.
    #[error("layer {blob}")]
    Layer {
        /// Of its bytes.
        blob: Digest,
        /// Why.
        source: LayerError,
    },
    /// A name or config.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The choice of a platform.
    #[error("cannot choose an image")]
    Platform(#[source] Box<registry::Error>),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What an imported root file system becomes.
#[derive(Debug)]
pub struct RootFileSystem {
    /// Settings of the image.
    pub changes: Changes,
    /// For whom its programs are.
    pub platform: Platform,
    /// The line of its history.
    pub message: String,
    /// What it is called.
    pub name: Option<Reference>,
}

/// Makes an image of one layer from a tar, compressed or not; its id.
///
/// # Errors
/// It is no tar, or the store.
pub fn root_file_system(
    store: &Store,
    input: Box<dyn Read + Send>,
    image: &RootFileSystem,
    now: jiff::Timestamp,
) -> Result<Digest, ImportError> {
    let read = |source| ImportError::Read { what: "the root file system".into(), source };
    let mut blob = store.blob_writer()?;
    let plain = DiskGuard::later(crate::worker::decompressed(input).map_err(read)?, store.root().to_owned());
    let size = copy(plain, &mut blob).map_err(read)?;
    if size == 0 {
        return Err(ImportError::Malformed {
            what: "the root file system".into(),
            why: "there is nothing in it".into(),
        });
    }
    let (digest, _) = blob.commit(None)?;
    let layer = layer::add(store, None, layer::Blob { digest, size, media_type: None }, None)?;
    let created = now.to_string();
    let mut config = ImageConfig { config: image.changes.settings(), ..ImageConfig::scratch(&image.platform) };
    config.rootfs.diff_ids = vec![layer.diff_id];
    config.created = Some(created.clone());
    config.history = vec![History { created: Some(created), comment: image.message.clone(), ..History::default() }];
    let bytes = serde_json::to_vec(&config)
        .map_err(|error| ImportError::Malformed { what: "the config".into(), why: error.to_string() })?;
    let id = store.put_blob(&bytes)?;
    name_image(store, id, image.name.iter(), None)?;
    Ok(id)
}

fn name_image<'a>(
    store: &Store,
    id: Digest,
    names: impl IntoIterator<Item = &'a Reference>,
    manifest: Option<&ManifestRef>,
) -> Result<(), StoreError> {
    let mut names = names.into_iter().peekable();
    if names.peek().is_none() {
        store.put_image(&ImageRecord::unnamed(id, manifest.cloned()))?;
    }
    for name in names {
        let record =
            ImageRecord { name: name.to_string(), config: id, manifest: manifest.cloned(), kind: ImageKind::Tagged };
        store.put_image(&record)?;
    }
    Ok(())
}

/// Copies in pieces that are worth a system call; how much there was.
fn copy(mut from: impl Read, to: &mut impl io::Write) -> io::Result<u64> {
    let mut to = io::BufWriter::with_capacity(1 << 18, to);
    let copied = io::copy(&mut from, &mut to)?;
    to.flush()?;
    Ok(copied)
}

/// A path for people.
fn shown(path: &Path) -> String {
    path.display().to_string()
}
