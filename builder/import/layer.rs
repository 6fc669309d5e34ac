//! A layer whose tar lies among the blobs becomes one of the store's layers.

use std::fs::File;
use std::io::{self, BufReader, Read};

use graph::Digest;
use snapshotter::layer::compress::{self, Detected};
use snapshotter::layer::index_tar;
use snapshotter::{LayerBlobRecord, LayerRecord, Store};

use super::{ImportError, copy};
use crate::worker::DiskGuard;

/// The stored bytes of a layer.
#[derive(Debug, Clone)]
pub(super) struct Blob {
    pub(super) digest: Digest,
    pub(super) size: u64,
    /// As a manifest calls it; otherwise it is told by its bytes.
    pub(super) media_type: Option<String>,
}

/// Reads the whole layer, so that a wrong or hostile one is refused now and not by whoever needs it, and records it.
pub(super) fn add(
    store: &Store,
    parent: Option<Digest>,
    blob: Blob,
    expected: Option<&Digest>,
) -> Result<LayerRecord, ImportError> {
    if let Some(expected) = expected
        && let Some(known) = known(store, parent, expected)?
    {
        return Ok(known);
    }
    let read = |source| ImportError::Read { what: format!("layer {}", blob.digest), source };
    let path = store.blob_path(&blob.digest).ok_or_else(|| ImportError::Missing(format!("layer {}", blob.digest)))?;
    let compression = detect(&path).map_err(read)?;
    let file = BufReader::with_capacity(1 << 18, File::open(&path).map_err(read)?);
    let tar = compress::decoder(file).and_then(compressed_ahead(compression)).map_err(read)?;
    let applied = index_tar(tar, &|| false).map_err(|source| ImportError::Layer { blob: blob.digest, source })?;
    if let Some(expected) = expected
        && applied.diff_id != *expected
    {
        return Err(ImportError::WrongLayer { expected: *expected, found: applied.diff_id });
    }
    let record = LayerRecord { size: applied.size, ..LayerRecord::foreign(parent, applied.diff_id) };
    if blob.digest == applied.diff_id {
        // The lowest layer is as it will be unpacked, unless it links to what it does not have: COPY can read it in place.
        if parent.is_none() && applied.index.targets().is_empty() {
            store.put_index(&record.chain, &applied.index.encode())?;
        }
    } else {
        let media_type = blob.media_type.unwrap_or_else(|| media_type(compression).to_owned());
        let blob = LayerBlobRecord::from_elsewhere(blob.digest, media_type, blob.size);
        store.add_layer_blob(&applied.diff_id, &blob)?;
    }
    store.put_layer(&record)?;
    Ok(record)
}

/// As [`add`], with the tar from elsewhere, if it is needed.
pub(super) fn add_from(
    store: &Store,
    parent: Option<Digest>,
    diff_id: &Digest,
    open: impl FnOnce() -> io::Result<Box<dyn Read + Send>>,
) -> Result<LayerRecord, ImportError> {
    if let Some(known) = known(store, parent, diff_id)? {
        return Ok(known);
    }
    let read = |source| ImportError::Read { what: format!("layer {diff_id}"), source };
    let tar = DiskGuard::new(open().map_err(read)?, store.root().to_owned());
    let mut blob = store.blob_writer()?;
    let size = copy(tar, &mut blob).map_err(read)?;
    blob.commit(Some(diff_id))?;
    add(store, parent, Blob { digest: *diff_id, size, media_type: None }, Some(diff_id))
}

/// The layer, if the store has it with its bytes and so need not look at these.
fn known(store: &Store, parent: Option<Digest>, diff_id: &Digest) -> Result<Option<LayerRecord>, ImportError> {
    let Some(record) = store.layer(&diff_id.chain_upon(parent.as_ref()))? else { return Ok(None) };
    let is_here = store.is_unpacked(&record.chain)? || store.blob_path(diff_id).is_some();
    Ok(is_here.then_some(record))
}

fn detect(path: &std::path::Path) -> io::Result<Detected> {
    let mut start = Vec::with_capacity(6);
    File::open(path)?.take(6).read_to_end(&mut start)?;
    Ok(compress::detect(&start))
}

/// Decompressing is worth a thread.
fn compressed_ahead(compression: Detected) -> impl FnOnce(Box<dyn Read + Send>) -> io::Result<Box<dyn Read + Send>> {
    move |tar| match compression {
        Detected::None => Ok(tar),
        _ => Ok(Box::new(compress::read_ahead(tar)?)),
    }
}

fn media_type(compression: Detected) -> &'static str {
    match compression {
        Detected::Gzip => "application/vnd.oci.image.layer.v1.tar+gzip",
        Detected::Zstd => "application/vnd.oci.image.layer.v1.tar+zstd",
        Detected::None | Detected::Bzip2 | Detected::Xz => "application/vnd.oci.image.layer.v1.tar",
    }
}
