//! Blobs: immutable files named by the sha256 of their bytes.

use std::fs::File;
use std::io::{self, Write};
use std::path::PathBuf;

use graph::{Digest, KeyHasher};
use rusqlite::params;
use sha2::Digest as _;
use tempfile::NamedTempFile;

use crate::{Store, StoreError};

/// A blob that is being written. Dropped without [`BlobWriter::commit`], it is gone.
pub struct BlobWriter<'s> {
    store: &'s Store,
    file: NamedTempFile,
    hasher: sha2::Sha256,
    size: u64,
}

impl Write for BlobWriter<'_> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let written = self.file.write(data)?;
        self.hasher.update(&data[..written]);
        self.size += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl BlobWriter<'_> {
    /// Gives the blob its name; digest and size of what was written.
    ///
    /// # Errors
    /// The digest is not `expected`, or the disk.
    pub fn commit(self, expected: Option<&Digest>) -> Result<(Digest, u64), StoreError> {
        let Self { store, file, hasher, size } = self;
        let digest = Digest::from_bytes(hasher.finalize().into());
        if let Some(expected) = expected
            && *expected != digest
        {
            return Err(StoreError::WrongDigest { expected: *expected, found: digest });
        }
        let path = store.layout.blob(&digest);
        file.persist(&path).map_err(|error| StoreError::io("write", &path)(error.error))?;
        store.db.write(|db| {
            db.prepare_cached("INSERT OR IGNORE INTO blobs (digest, size) VALUES (?1, ?2)")?
                .execute(params![digest.as_bytes(), size as i64])
        })?;
        Ok((digest, size))
    }
}

impl Store {
    /// Starts a blob.
    ///
    /// # Errors
    /// The disk.
    pub fn blob_writer(&self) -> Result<BlobWriter<'_>, StoreError> {
        let directory = self.layout.join("ingest");
        let file = tempfile::Builder::new()
            .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o600))
            .tempfile_in(&directory);
        let file = file.map_err(StoreError::io("write in", directory))?;
        Ok(BlobWriter { store: self, file, hasher: sha2::Sha256::new(), size: 0 })
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

    /// Where a blob is, if it is here.
    #[must_use]
    pub fn blob_path(&self, digest: &Digest) -> Option<PathBuf> {
        let path = self.layout.blob(digest);
        path.exists().then_some(path)
    }

    /// The bytes of a small blob, verified. A damaged one is removed and counts as missing.
    ///
    /// # Errors
    /// The disk.
    pub fn read_blob(&self, digest: &Digest) -> Result<Option<Vec<u8>>, StoreError> {
        let path = self.layout.blob(digest);
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
        self.db.write(|db| {
            db.execute("DELETE FROM blobs WHERE digest = ?1", [digest.as_bytes()])?;
            db.execute(
                "DELETE FROM layer_blobs WHERE digest = ?1 AND digest NOT IN (SELECT digest FROM locations)",
                [digest.as_bytes()],
            )
        })?;
        match std::fs::remove_file(self.layout.blob(digest)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(StoreError::io("remove", self.layout.blob(digest))(error))
            }
            _ => Ok(()),
        }
    }
}

/// Names of files made from arbitrary text.
pub(crate) fn hashed_name(kind: &str, text: &[u8]) -> String {
    KeyHasher::new(kind).field(text).finish().hex()
}

pub(crate) fn write_file(store: &Store, path: &std::path::Path, bytes: &[u8]) -> Result<(), StoreError> {
    let write = || -> io::Result<()> {
        let mut file = NamedTempFile::new_in(store.layout.join("ingest"))?;
        file.write_all(bytes)?;
        let _: File = file.persist(path).map_err(|error| error.error)?;
        Ok(())
    };
    write().map_err(StoreError::io("write", path))
}
