//! Downloads that go on where an earlier one was broken off, by this process or another.

use std::fs::File;
use std::io::{self, Read, Write};
use std::sync::Arc;

use bytes::Bytes;
use graph::Digest;
use snapshotter::{BlobWriter, PartialBlob, Store};
use solver::{RunContext, Status};
use tokio::sync::{mpsc, oneshot};

use super::layers::{ChunkReader, pipe, unless_cancelled};
use super::{WorkError, blocking};
use crate::export::Descriptor;
use crate::images::{ImageError, Remote};

/// A blob on its way into the store.
pub(super) struct Incoming<'s> {
    keep: Keep<'s>,
    /// The bytes that were here before.
    before: io::Take<Box<dyn Read + Send>>,
    rest: ChunkReader,
}

enum Keep<'s> {
    Partial(PartialBlob<'s>),
    /// Another process is at the same download.
    Fresh(BlobWriter<'s>),
}

impl<'s> Incoming<'s> {
    fn begin(store: &'s Store, blob: &Descriptor, resume: bool, rest: ChunkReader) -> Result<Self, WorkError> {
        let none = || (Box::new(io::empty()) as Box<dyn Read + Send>).take(0);
        let Some(mut partial) = store.partial_blob(&blob.digest)? else {
            return Ok(Self { keep: Keep::Fresh(store.blob_writer()?), before: none(), rest });
        };
        // What is longer than the blob is not the beginning of it.
        if !resume || partial.size() > blob.size {
            partial.restart()?;
        }
        let size = partial.size();
        let before = match size {
            0 => none(),
            _ => (Box::new(File::open(partial.path())?) as Box<dyn Read + Send>).take(size),
        };
        Ok(Self { keep: Keep::Partial(partial), before, rest })
    }

    /// Makes it a blob.
    pub(super) fn commit(self, digest: &Digest) -> Result<(), WorkError> {
        match self.keep {
            Keep::Partial(partial) => partial.commit().map(drop)?,
            Keep::Fresh(writer) => writer.commit(Some(digest)).map(drop)?,
        }
        Ok(())
    }
}

/// All bytes from the first; the new ones are kept as they pass.
impl Read for Incoming<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.before.read(buffer)?;
        if read > 0 || buffer.is_empty() {
            return Ok(read);
        }
        let read = self.rest.read(buffer)?;
        match &mut self.keep {
            Keep::Partial(partial) => partial.write_all(&buffer[..read])?,
            Keep::Fresh(writer) => writer.write_all(&buffer[..read])?,
        }
        Ok(read)
    }
}

/// Fetches a blob and hands it to `take`, on a thread, while it arrives. What has come stays for the next one if the
/// transfer breaks or is given up.
pub(super) async fn incoming<T: Send + 'static>(
    store: &Arc<Store>,
    remote: &Remote,
    context: &RunContext,
    blob: &Descriptor,
    number: usize,
    take: impl FnOnce(Incoming<'_>) -> Result<T, WorkError> + Send + 'static,
) -> Result<T, WorkError> {
    let (reader, writer) = pipe();
    let progress = context.progress.clone();
    let id = format!("layer {} {}", number + 1, blob.digest.short());
    let report = move |current: u64, total: u64, done: bool| {
        progress.status(Status { id: id.clone(), current, total, done });
    };
    let resume = remote.can_resume(&blob.digest)?;
    let (started, start) = oneshot::channel();
    let (own, wanted) = (Arc::clone(store), blob.clone());
    let taken = blocking(move || {
        let incoming = Incoming::begin(&own, &wanted, resume, reader)?;
        let here = incoming.before.limit();
        // Who fetches has given up already where nobody listens.
        let _ = started.send((here, own.partial_path(&wanted.digest)));
        take(incoming)
    });
    let fetch = unless_cancelled(context, fetch(remote, blob, start, writer, report));
    let (fetched, taken) = tokio::join!(fetch, taken);
    match fetched {
        Ok(()) => {
            // All that was sent is here: whatever is wrong, it will not be better for going on with it.
            if taken.is_err() {
                store.forget_partial(&blob.digest)?;
            }
            taken
        }
        // A broken transfer shows at both ends; the fetching end knows why.
        Err(error) => {
            if is_wrong(&error) {
                store.forget_partial(&blob.digest)?;
            }
            Err(error)
        }
    }
}

async fn fetch(
    remote: &Remote,
    blob: &Descriptor,
    start: oneshot::Receiver<(u64, std::path::PathBuf)>,
    to: mpsc::Sender<io::Result<Bytes>>,
    report: impl Fn(u64, u64, bool),
) -> Result<(), ImageError> {
    // Without a start the other end failed, and says so.
    let Ok((here, path)) = start.await else { return Ok(()) };
    remote.fetch_from(blob, here, &path, to, report).await
}

/// Whether the bytes were not those of the blob.
fn is_wrong(error: &WorkError) -> bool {
    match error {
        WorkError::Image(ImageError::Registry { source, .. }) => {
            matches!(**source, registry::Error::DigestMismatch { .. } | registry::Error::SizeMismatch { .. })
        }
        _ => false,
    }
}
