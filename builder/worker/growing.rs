//! A blob that is read while it is still being written: the file is the buffer, so nothing is held in memory, and whoever has
//! to begin again can.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use registry::GrowingSource;
use snapshotter::BlobWriter;
use tokio::io::AsyncRead;
use tokio::sync::watch;

/// Read at once.
const PIECE: u64 = 256 << 10;

/// Told of a blob that begins to be made.
pub(crate) type Begins = Arc<dyn Fn(Growing) + Send + Sync>;

#[derive(Debug, Clone, Copy, Default)]
struct Growth {
    length: u64,
    ended: bool,
}

/// The writer's end. Dropped without [`Telling::end`], the blob came to nothing.
pub(super) struct Telling<W> {
    to: W,
    told: watch::Sender<Growth>,
}

/// The reader's end.
#[derive(Clone)]
pub(crate) struct Growing {
    file: Arc<File>,
    told: watch::Receiver<Growth>,
}

/// Both ends of a blob of which nothing is written yet.
pub(super) fn growing(blob: BlobWriter<'_>) -> io::Result<(Telling<BlobWriter<'_>>, Growing)> {
    let file = Arc::new(File::open(blob.path())?);
    let (told, receiver) = watch::channel(Growth::default());
    Ok((Telling { to: blob, told }, Growing { file, told: receiver }))
}

impl<W> Telling<W> {
    /// All is written.
    pub(super) fn end(self) -> W {
        self.told.send_modify(|growth| growth.ended = true);
        self.to
    }
}

impl<W: Write> Write for Telling<W> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let written = self.to.write(data)?;
        self.told.send_modify(|growth| growth.length += written as u64);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

impl Growing {
    /// The bytes from `at` on, as soon as there are any; `None` at the end.
    async fn piece(&mut self, at: u64) -> io::Result<Option<Bytes>> {
        loop {
            let Growth { length, ended } = *self.told.borrow_and_update();
            if at < length {
                let (file, wanted) = (Arc::clone(&self.file), PIECE.min(length - at));
                let read = tokio::task::spawn_blocking(move || {
                    let mut piece = vec![0; usize::try_from(wanted).unwrap_or_default()];
                    file.read_exact_at(&mut piece, at).map(|()| Bytes::from(piece))
                });
                return read.await.map_err(io::Error::other)?.map(Some);
            }
            if ended {
                return Ok(None);
            }
            if self.told.changed().await.is_err() && !self.told.borrow().ended {
                return Err(io::Error::other("the layer came to nothing"));
            }
        }
    }
}

impl GrowingSource for Growing {
    fn open(&self) -> BoxFuture<'_, io::Result<Box<dyn AsyncRead + Send + Unpin>>> {
        let start = (self.clone(), 0);
        let pieces = futures_util::stream::try_unfold(start, |(mut growing, at)| async move {
            let piece = growing.piece(at).await?;
            Ok::<_, io::Error>(piece.map(|piece| {
                let after = at + piece.len() as u64;
                (piece, (growing, after))
            }))
        });
        Box::pin(async move { Ok(Box::new(tokio_util::io::StreamReader::new(Box::pin(pieces))) as _) })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use snapshotter::Store;
    use tokio::io::AsyncReadExt as _;

    use super::*;

    fn store(directory: &tempfile::TempDir) -> Arc<Store> {
        Arc::new(Store::open(&directory.path().join("store")).unwrap())
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_reader_gets_what_is_written_after_it_began() {
        let directory = tempfile::tempdir().unwrap();
        let store = store(&directory);
        let bytes: Vec<u8> = (0..3_000_000_u32).map(|n| (n % 251) as u8).collect();
        let (sender, receiver) = tokio::sync::oneshot::channel();
        let (own, data) = (Arc::clone(&store), bytes.clone());
        let writing = tokio::task::spawn_blocking(move || {
            let (mut writer, reader) = growing(own.blob_writer().unwrap()).unwrap();
            assert!(sender.send(reader).is_ok());
            for piece in data.chunks(400_000) {
                std::thread::sleep(Duration::from_millis(1));
                writer.write_all(piece).unwrap();
            }
            writer.end().commit(None).unwrap()
        });
        let growing = receiver.await.unwrap();
        let (mut first, mut again) = (Vec::new(), Vec::new());
        growing.open().await.unwrap().read_to_end(&mut first).await.unwrap();
        // The file has another name by now.
        let (digest, _) = writing.await.unwrap();
        growing.open().await.unwrap().read_to_end(&mut again).await.unwrap();
        assert!(first == bytes && again == bytes);
        assert_eq!(digest, graph::Digest::of(&bytes));
    }

    #[tokio::test]
    async fn a_blob_that_comes_to_nothing_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let store = store(&directory);
        let (mut writer, growing) = growing(store.blob_writer().unwrap()).unwrap();
        writer.write_all(b"beginning").unwrap();
        drop(writer);
        let mut read = Vec::new();
        assert!(growing.open().await.unwrap().read_to_end(&mut read).await.is_err());
        assert_eq!(read, b"beginning");
    }
}
