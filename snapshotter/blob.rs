//! Blobs: immutable files named by the sha256 of their bytes.

use std::fs::File;
use std::io::{self, Seek as _, SeekFrom, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use graph::{Digest, KeyHasher};
use sha2::Digest as _;
use tempfile::NamedTempFile;

use crate::db::{FileKind, add_file, forget_file, has_file};
use crate::layer::{Bytes, Shares};
use crate::{Room, Store, StoreError};

/// A file whose bytes are on their way to the disk while more come: who waits for the sync at the end finds most of it done.
pub(crate) struct Counted<F> {
    file: F,
    size: u64,
    /// How much the kernel was told to write.
    leaving: u64,
    /// So many of the bytes that come next are in the file already.
    shared: usize,
}

/// Bytes that are worth a system call.
const PIECE: u64 = 8 << 20;

impl<F: Write + AsFd> Write for Counted<F> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        if self.shared > 0 {
            let there = data.len().min(self.shared);
            self.shared -= there;
            self.size += there as u64;
            self.leaving = self.size;
            return Ok(there);
        }
        let written = self.file.write(data)?;
        self.size += written as u64;
        if self.size - self.leaving >= PIECE {
            sys::file::start_writeback(&self.file, self.leaving, self.size - self.leaving);
            self.leaving = self.size;
        }
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Counted<NamedTempFile> {
    fn share(&mut self, from: &File, offset: u64, length: u64) -> io::Result<Option<Bytes>> {
        let Ok(shared) = usize::try_from(length) else { return Ok(None) };
        // After an error a part may be there, and what is written next goes over it.
        if sys::file::clone_range(from, offset, length, self.file.as_file(), self.size).is_err() {
            return Ok(None);
        }
        let there = Arc::new(self.file.as_file().try_clone()?);
        self.file.seek(SeekFrom::Start(self.size + length))?;
        self.shared = shared;
        Ok(Some(Bytes::Part { file: there, offset: self.size, size: length }))
    }
}

/// The same, with the digest of what was written.
pub(crate) struct Hashed<F> {
    counted: Counted<F>,
    hasher: sha2::Sha256,
}

impl<F: Write + AsFd> Hashed<F> {
    /// Nothing is written yet.
    pub(crate) fn new(file: F) -> Self {
        Self::resumed(file, sha2::Sha256::new(), 0)
    }

    /// `hasher` knows the `size` bytes that are in the file already.
    pub(crate) fn resumed(file: F, hasher: sha2::Sha256, size: u64) -> Self {
        Self { counted: Counted { file, size, leaving: size, shared: 0 }, hasher }
    }

    pub(crate) fn size(&self) -> u64 {
        self.counted.size
    }

    pub(crate) fn file(&self) -> &F {
        &self.counted.file
    }

    /// The file, with digest and size of what is in it.
    pub(crate) fn finish(self) -> (F, Digest, u64) {
        (self.counted.file, Digest::from_bytes(self.hasher.finalize().into()), self.counted.size)
    }
}

impl<F: Write + AsFd> Write for Hashed<F> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let written = self.counted.write(data)?;
        self.hasher.update(&data[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.counted.flush()
    }
}

/// A blob that is being written. Dropped without [`BlobWriter::commit`], it is gone.
pub struct BlobWriter<'s> {
    store: &'s Store,
    bytes: Hashed<NamedTempFile>,
    room: Room,
}

impl Write for BlobWriter<'_> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.room.take(data.len() as u64)?;
        self.bytes.write(data)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.bytes.flush()
    }
}

impl BlobWriter<'_> {
    /// Where its bytes are until it has its name.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.bytes.file().path()
    }

    /// Gives the blob its name; digest and size of what was written.
    ///
    /// # Errors
    /// The digest is not `expected`, or the disk.
    pub fn commit(self, expected: Option<&Digest>) -> Result<(Digest, u64), StoreError> {
        self.named(expected).map(|(digest, size, _)| (digest, size))
    }

    /// As [`Self::commit`], and whether the blob is what was written here. If somebody was first, it is theirs, and what has
    /// become of it is not known.
    ///
    /// # Errors
    /// As there.
    pub fn named(self, expected: Option<&Digest>) -> Result<(Digest, u64, bool), StoreError> {
        let Self { store, bytes, room: _ } = self;
        let (file, digest, size) = bytes.finish();
        if let Some(expected) = expected
            && *expected != digest
        {
            return Err(StoreError::WrongDigest { expected: *expected, found: digest });
        }
        let file = file.into_temp_path();
        let is_ours = store.name_blob(&file, &digest, size)?;
        // Its name is the blob's now, or it is not needed.
        drop(file);
        Ok((digest, size, is_ours))
    }
}

/// A blob that is being written by somebody who hashes it anyway. Dropped without [`KnownBlobWriter::commit`], it is gone.
pub struct KnownBlobWriter<'s> {
    store: &'s Store,
    bytes: Counted<NamedTempFile>,
    room: Room,
}

impl Write for KnownBlobWriter<'_> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.room.take(data.len() as u64)?;
        self.bytes.write(data)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.bytes.flush()
    }
}

impl Shares for KnownBlobWriter<'_> {
    fn share(&mut self, file: &File, offset: u64, length: u64) -> io::Result<Option<Bytes>> {
        self.bytes.share(file, offset, length)
    }
}

impl KnownBlobWriter<'_> {
    /// Gives the blob its name: the digest of all that was written.
    ///
    /// # Errors
    /// The disk.
    pub fn commit(self, digest: &Digest) -> Result<(), StoreError> {
        let file = self.bytes.file.into_temp_path();
        self.store.name_blob(&file, digest, self.bytes.size).map(drop)
    }
}

impl Store {
    fn new_blob(&self) -> Result<(NamedTempFile, Room), StoreError> {
        let directory = self.layout.join("ingest");
        let file = tempfile::Builder::new()
            .prefix(&format!("{}.", self.lease.id()))
            .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o600))
            .tempfile_in(&directory);
        Ok((file.map_err(StoreError::io("write in", &directory))?, Room::later(directory)))
    }

    /// Starts a blob that is hashed by whoever writes it.
    ///
    /// # Errors
    /// The disk.
    pub fn known_blob_writer(&self) -> Result<KnownBlobWriter<'_>, StoreError> {
        let (file, room) = self.new_blob()?;
        Ok(KnownBlobWriter { store: self, bytes: Counted { file, size: 0, leaving: 0, shared: 0 }, room })
    }

    /// Starts a blob.
    ///
    /// # Errors
    /// The disk.
    pub fn blob_writer(&self) -> Result<BlobWriter<'_>, StoreError> {
        let (file, room) = self.new_blob()?;
        Ok(BlobWriter { store: self, bytes: Hashed::new(file), room })
    }

    /// Stores a small blob.
    ///
    /// # Errors
    /// The disk.
    pub fn put_blob(&self, bytes: &[u8]) -> Result<Digest, StoreError> {
        let digest = Digest::of(bytes);
        if self.blob_path(&digest).is_some() {
            return Ok(digest);
        }
        let mut writer = self.blob_writer()?;
        writer.write_all(bytes).map_err(StoreError::io("write", self.layout.blob(&digest)))?;
        Ok(writer.commit(Some(&digest))?.0)
    }

    /// Gives verified bytes their name. If somebody was first, theirs stay, and the answer is no.
    pub(crate) fn name_blob(&self, file: &Path, digest: &Digest, size: u64) -> Result<bool, StoreError> {
        let path = self.layout.blob(digest);
        // Renamed inside the transaction, of which there is one at a time: nobody comes between the look and the rename.
        self.db.write_files(|db| {
            self.lease.hold(digest);
            if std::fs::metadata(&path).is_ok_and(|there| there.len() == size) {
                add_file(db, FileKind::Blob, digest, size)?;
                return Ok(false);
            }
            std::fs::rename(file, &path).map_err(StoreError::io("write", &path))?;
            // Another file than the one that was synced.
            forget_file(db, FileKind::Blob, digest)?;
            add_file(db, FileKind::Blob, digest, size)?;
            Ok(true)
        })
    }

    /// Where a blob is, if it is here. It stays there while this store is open.
    #[must_use]
    pub fn blob_path(&self, digest: &Digest) -> Option<PathBuf> {
        let path = self.layout.blob(digest);
        if self.lease.holds(digest) {
            return path.exists().then_some(path);
        }
        let look = |db: &rusqlite::Connection| {
            let is_there = has_file(db, FileKind::Blob, digest, &path)?;
            if is_there {
                self.lease.hold(digest);
            }
            Ok(is_there)
        };
        // A store that cannot be read now is as good as one without the blob.
        self.db.read_guarded(look).unwrap_or(false).then_some(path)
    }

    /// The bytes of a small blob, verified. A damaged one is removed and counts as missing.
    ///
    /// # Errors
    /// The disk.
    pub fn read_blob(&self, digest: &Digest) -> Result<Option<Vec<u8>>, StoreError> {
        let Some(path) = self.blob_path(digest) else { return Ok(None) };
        match std::fs::read(&path) {
            Ok(bytes) if Digest::of(&bytes) == *digest => Ok(Some(bytes)),
            Ok(_) => {
                self.remove_blob(digest)?;
                Ok(None)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(StoreError::io("read", path)(error)),
        }
    }

    /// Removes a blob and what is recorded of it.
    ///
    /// # Errors
    /// The disk.
    pub fn remove_blob(&self, digest: &Digest) -> Result<(), StoreError> {
        let path = self.layout.blob(digest);
        self.doubt();
        self.db.write_files(|db| {
            forget_file(db, FileKind::Blob, digest)?;
            db.execute(
                "DELETE FROM layer_blobs WHERE digest = ?1 AND digest NOT IN (SELECT digest FROM locations)",
                [digest.as_bytes()],
            )?;
            Ok(self.reaper.discard(&path).map_err(StoreError::io("remove", &path))?)
        })
    }
}

/// Names of files made from arbitrary text.
pub(crate) fn hashed_name(kind: &str, text: &[u8]) -> String {
    KeyHasher::new(kind).field(text).finish().hex()
}

/// Writes a small file completely or not at all.
pub(crate) fn write_file(store: &Store, path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
    let write = || -> io::Result<()> {
        let prefix = format!("{}.", store.lease.id());
        let mut file = tempfile::Builder::new().prefix(&prefix).tempfile_in(store.layout.join("ingest"))?;
        file.write_all(bytes)?;
        file.persist(path).map_err(|error| error.error)?;
        Ok(())
    };
    write().map_err(StoreError::io("write", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_verified_and_named_once() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(&directory.path().join("store")).unwrap();
        let digest = Digest::of(b"bytes");
        let mut writer = store.blob_writer().unwrap();
        writer.write_all(b"bites").unwrap();
        assert!(matches!(writer.commit(Some(&digest)), Err(StoreError::WrongDigest { .. })));
        assert_eq!(store.blob_path(&digest), None);

        let mut writer = store.blob_writer().unwrap();
        writer.write_all(b"bytes").unwrap();
        assert_eq!(writer.commit(None).unwrap(), (digest, 5));
        let inode = |path: &Path| std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(path).unwrap());
        let path = store.blob_path(&digest).unwrap();
        let first = inode(&path);
        let mut writer = store.blob_writer().unwrap();
        writer.write_all(b"bytes").unwrap();
        writer.commit(None).unwrap();
        assert_eq!(inode(&path), first, "a durable file must not be replaced by one that is not");
        assert_eq!(std::fs::read_dir(store.layout.join("ingest")).unwrap().count(), 0);
    }

    #[test]
    fn a_damaged_blob_counts_as_missing_and_can_be_stored_again() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(&directory.path().join("store")).unwrap();
        let digest = store.put_blob(b"bytes").unwrap();
        std::fs::write(store.blob_path(&digest).unwrap(), "bytez").unwrap();
        assert_eq!(store.read_blob(&digest).unwrap(), None);
        store.put_blob(b"bytes").unwrap();
        assert_eq!(store.read_blob(&digest).unwrap().unwrap(), b"bytes");
    }
}
