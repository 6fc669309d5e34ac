//! Snapshots: layers as directories, each usable as one lower directory of an overlay.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use graph::Digest;

use crate::blob::write_file;
use crate::{LayerRecord, Store, StoreError};

/// An unpacked layer. Immutable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    fs: PathBuf,
}

impl Snapshot {
    /// The directory that holds the layer's files.
    #[must_use]
    pub fn fs(&self) -> &Path {
        &self.fs
    }
}

/// A directory for a layer in the making, and overlay's work directory beside it. Dropped, it is removed.
#[derive(Debug)]
pub struct Active {
    directory: PathBuf,
    fs: PathBuf,
    work: PathBuf,
    trash: PathBuf,
}

impl Active {
    /// Where the layer's files go: an overlay's upper directory, or where a tar is unpacked.
    #[must_use]
    pub fn fs(&self) -> &Path {
        &self.fs
    }

    /// For overlay's own use.
    #[must_use]
    pub fn work(&self) -> &Path {
        &self.work
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        // Moved first, so that whoever finds it later knows that it is nobody's.
        if fs::rename(&self.directory, &self.trash).is_ok() {
            remove_tree(&self.trash);
        }
    }
}

impl Store {
    /// Makes an empty active snapshot.
    ///
    /// # Errors
    /// The disk.
    pub fn prepare(&self) -> Result<Active, StoreError> {
        let name = self.unique_name();
        let directory = self.layout.join("active").join(&name);
        let make = |path: &Path, mode: u32| {
            let made = DirBuilder::new().mode(mode).create(path);
            // The mode must hold whatever the umask.
            made.and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(mode)))
        };
        let (fs, work) = (directory.join("fs"), directory.join("work"));
        let made = make(&directory, 0o711).and_then(|()| make(&fs, 0o755)).and_then(|()| make(&work, 0o711));
        made.map_err(StoreError::io("create", &directory))?;
        Ok(Active { directory, fs, work, trash: self.layout.join("active").join(format!("{name}.trash")) })
    }

    /// Makes the active snapshot the unpacked form of `layer`, records the layer and its index. If another process was
    /// first, theirs stays.
    ///
    /// # Errors
    /// The disk or the database.
    pub fn commit(&self, active: Active, layer: &LayerRecord, index: &[u8]) -> Result<Snapshot, StoreError> {
        let target = self.layout.snapshot(&layer.chain);
        write_file(self, &active.directory.join("index"), index)?;
        remove_tree(&active.work);
        match fs::rename(&active.directory, &target) {
            Ok(()) => {}
            Err(error) if matches!(error.kind(), io::ErrorKind::AlreadyExists | io::ErrorKind::DirectoryNotEmpty) => {}
            Err(error) => return Err(StoreError::io("write", target)(error)),
        }
        self.put_layer(layer)?;
        Ok(Snapshot { fs: target.join("fs") })
    }

    /// The unpacked layer, if it is unpacked.
    ///
    /// # Errors
    /// None today.
    pub fn snapshot(&self, chain: &Digest) -> Result<Option<Snapshot>, StoreError> {
        let fs = self.layout.snapshot(chain).join("fs");
        Ok(fs.exists().then_some(Snapshot { fs }))
    }

    /// The encoded index of a layer, unpacked or not.
    ///
    /// # Errors
    /// The disk.
    pub fn index(&self, chain: &Digest) -> Result<Option<Vec<u8>>, StoreError> {
        for path in [self.layout.snapshot(chain).join("index"), self.layout.index(chain)] {
            match fs::read(&path) {
                Ok(bytes) => return Ok(Some(bytes)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(StoreError::io("read", path)(error)),
            }
        }
        Ok(None)
    }

    /// Keeps the index of a layer that is there as a tar.
    ///
    /// # Errors
    /// The disk.
    pub fn put_index(&self, chain: &Digest, index: &[u8]) -> Result<(), StoreError> {
        write_file(self, &self.layout.index(chain), index)
    }

    /// An empty directory, the lowest layer of what has none.
    ///
    /// # Errors
    /// None today.
    pub fn empty_directory(&self) -> Result<PathBuf, StoreError> {
        Ok(self.layout.join("empty"))
    }
}

/// Removes a tree whatever modes its directories have. What cannot be removed now is found again at the next start.
pub(crate) fn remove_tree(path: &Path) {
    if fs::remove_dir_all(path).is_ok() {
        return;
    }
    open_up(path);
    let _ = fs::remove_dir_all(path);
}

fn open_up(path: &Path) {
    let mut pending = vec![path.to_owned()];
    while let Some(directory) = pending.pop() {
        let _ = fs::set_permissions(&directory, fs::Permissions::from_mode(0o700));
        let Ok(entries) = fs::read_dir(&directory) else { continue };
        pending.extend(
            entries
                .flatten()
                .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
                .map(|entry| entry.path()),
        );
    }
}
