//! Downloads that can be gone on with: a file per digest, which outlives the process that began it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::PathBuf;

use graph::Digest;
use rustix::fs::{FlockOperation, flock};
use sha2::Digest as _;

use crate::blob::Hashed;
use crate::{Room, Store, StoreError};

/// Ends the name of a partial download.
pub(crate) const SUFFIX: &str = ".partial";

/// A blob that is being downloaded. Dropped without [`PartialBlob::commit`], what has come so far stays for the next one.
pub struct PartialBlob<'s> {
    store: &'s Store,
    expected: Digest,
    path: PathBuf,
    bytes: Hashed<File>,
    room: Room,
}

impl Store {
    /// Where the beginning of a blob is kept.
    #[must_use]
    pub fn partial_path(&self, digest: &Digest) -> PathBuf {
        self.layout.join("ingest").join(digest.hex() + SUFFIX)
    }

    /// Throws the beginning of a blob away, unless somebody is at it.
    ///
    /// # Errors
    /// The disk.
    pub fn forget_partial(&self, digest: &Digest) -> Result<(), StoreError> {
        let path = self.partial_path(digest);
        let is_free = |file: &File| flock(file, FlockOperation::NonBlockingLockExclusive).is_ok();
        if !File::open(&path).is_ok_and(|file| is_free(&file)) {
            return Ok(());
        }
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(StoreError::io("remove", path)(error)),
            _ => Ok(()),
        }
    }

    /// Begins the download of a blob, or goes on with one that was broken off; `None`: another one is at it.
    ///
    /// # Errors
    /// The disk.
    pub fn partial_blob(&self, digest: &Digest) -> Result<Option<PartialBlob<'_>>, StoreError> {
        let path = self.partial_path(digest);
        loop {
            let opened = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
            let file = opened.map_err(StoreError::io("open", &path))?;
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => return Err(StoreError::io("lock", path)(error.into())),
            }
            if file.metadata().map_err(StoreError::io("examine", &path))?.nlink() == 0 {
                // The one before us has just finished.
                continue;
            }
            let bytes = taken_up(file).map_err(StoreError::io("read", &path))?;
            let room = Room::later(self.layout.join("ingest"));
            return Ok(Some(PartialBlob { store: self, expected: *digest, path, bytes, room }));
        }
    }
}

/// The file with what is in it already; the next write goes to its end.
fn taken_up(mut file: File) -> io::Result<Hashed<File>> {
    let (mut hasher, mut size) = (sha2::Sha256::new(), 0);
    let mut buffer = vec![0; 1 << 18];
    file.seek(SeekFrom::Start(0))?;
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(Hashed::resumed(file, hasher, size)),
            Ok(length) => {
                hasher.update(&buffer[..length]);
                size += length as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

impl PartialBlob<'_> {
    /// Where they are.
    #[must_use]
    pub fn path(&self) -> &std::path::Path {
        &self.path
    }

    /// Bytes that are here: where to go on.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.bytes.size()
    }

    /// Forgets what came so far, for a server that sends from the beginning only.
    ///
    /// # Errors
    /// The disk.
    pub fn restart(&mut self) -> Result<(), StoreError> {
        let file = self.bytes.file();
        let cut = file.set_len(0).and_then(|()| file.try_clone()).and_then(taken_up);
        self.bytes = cut.map_err(StoreError::io("truncate", &self.path))?;
        Ok(())
    }

    /// Makes it a blob; its size.
    ///
    /// # Errors
    /// The bytes are not those of the digest; then they are thrown away. Or the disk.
    pub fn commit(self) -> Result<u64, StoreError> {
        // The file holds the lock until the blob has its name.
        let (_file, found, size) = self.bytes.finish();
        if found != self.expected {
            let _ = fs::remove_file(&self.path);
            return Err(StoreError::WrongDigest { expected: self.expected, found });
        }
        self.store.name_blob(&self.path, &found, size)?;
        Ok(size)
    }
}

impl Write for PartialBlob<'_> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.room.take(data.len() as u64)?;
        self.bytes.write(data)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.bytes.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_download_goes_on_where_it_was_broken_off() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("store");
        let digest = Digest::of(b"hello world");
        {
            let store = Store::open(&root).unwrap();
            let mut partial = store.partial_blob(&digest).unwrap().unwrap();
            assert!(store.partial_blob(&digest).unwrap().is_none(), "two at one download");
            partial.write_all(b"hello ").unwrap();
        }
        let store = Store::open(&root).unwrap();
        let mut partial = store.partial_blob(&digest).unwrap().unwrap();
        assert_eq!(partial.size(), 6);
        partial.write_all(b"world").unwrap();
        assert_eq!(partial.commit().unwrap(), 11);
        assert_eq!(store.read_blob(&digest).unwrap().unwrap(), b"hello world");
        assert_eq!(fs::read_dir(root.join("ingest")).unwrap().count(), 0);
    }

    #[test]
    fn wrong_bytes_are_thrown_away() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(&directory.path().join("store")).unwrap();
        let digest = Digest::of(b"right");
        let mut partial = store.partial_blob(&digest).unwrap().unwrap();
        partial.write_all(b"wrong").unwrap();
        assert!(matches!(partial.commit(), Err(StoreError::WrongDigest { .. })));
        let mut partial = store.partial_blob(&digest).unwrap().unwrap();
        assert_eq!(partial.size(), 0);
        partial.write_all(b"wro").unwrap();
        partial.restart().unwrap();
        partial.write_all(b"right").unwrap();
        partial.commit().unwrap();
    }
}
