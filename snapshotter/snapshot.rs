//! Snapshots: layers as directories, each usable as one lower directory of an overlay.

use std::collections::HashSet;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use graph::Digest;

use crate::blob::write_file;
use crate::db::{FileKind, add_file, forget_file, has_file};
use crate::durable::sync_all;
use crate::form::trees;
use crate::reaper::Reaper;
use crate::store::insert_layer;
use crate::usage::measure;
use crate::{LayerRecord, Store, StoreError};

/// An unpacked layer. Immutable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    fs: PathBuf,
}

impl Snapshot {
    pub(crate) fn at(fs: PathBuf) -> Self {
        Self { fs }
    }

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
    reaper: Arc<Reaper>,
}

impl Active {
    /// What becomes the snapshot's directory.
    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

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
        // What cannot be moved is found by the next start, since its name says whose it was.
        let _ = self.reaper.discard(&self.directory);
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
        Ok(Active { directory, fs, work, reaper: Arc::clone(&self.reaper) })
    }

    /// Makes the active snapshot the unpacked form of `layer`, records the layer and its index. If another process was
    /// first, theirs stays.
    ///
    /// # Errors
    /// The disk or the database.
    pub fn commit(&self, active: Active, layer: &LayerRecord, index: &[u8]) -> Result<Snapshot, StoreError> {
        let (kind, target) = self.unpacked_as(&layer.chain);
        let tree = self.tree_name()?;
        let encoded = active.directory.join("index");
        fs::write(&encoded, index).map_err(StoreError::io("write", &encoded))?;
        // Its removal would be waited for here: where the file system discards freed blocks at once, each directory costs.
        self.reaper.discard(&active.work).map_err(StoreError::io("remove", &active.work))?;
        // As the disk has it: overlays and sparse files make it another number than the tar's.
        let size = measure(&active.directory, &mut HashSet::new());
        let was_there = target.exists();
        if was_there {
            // What is there may be durable, and stays so: a row is for all trees of a layer.
            sync_all(&self.disk, self.root())?;
        }
        self.db.write_files(|db| {
            self.lease.hold(&layer.chain);
            let is_beside = target.exists();
            let is_new = self.appear(&active, &target, tree)?;
            let is_other = is_beside && fs::read(target.join("index")).ok().as_deref() != Some(index);
            if is_other {
                // Of another version of ours, which is why the layer was unpacked again.
                fs::rename(&encoded, target.join("index")).map_err(StoreError::io("write", &target))?;
            }
            if (is_new && !(is_beside && was_there)) || is_other {
                // Another directory than the one that was synced.
                forget_file(db, kind, &layer.chain)?;
            }
            insert_layer(db, layer)?;
            Ok(add_file(db, kind, &layer.chain, size)?)
        })?;
        self.flusher.wrote(self.root(), size);
        Ok(Snapshot { fs: target.join(tree) })
    }

    /// Gives what was made its final place, beside trees for others; false if there is one already. Alone by the database.
    pub(crate) fn appear(&self, active: &Active, target: &Path, tree: &str) -> Result<bool, StoreError> {
        let (place, own) = (target.join(tree), active.directory.join(tree));
        let rename = |from: &Path, to: &Path| fs::rename(from, to).map_err(StoreError::io("write", to));
        if place.exists() {
            return Ok(false);
        }
        if target.exists() {
            rename(&active.fs, &place)?;
            return Ok(true);
        }
        if own != active.fs {
            rename(&active.fs, &own)?;
        }
        rename(&active.directory, target)?;
        Ok(true)
    }

    /// What layers are unpacked as on this machine.
    fn unpacked_as(&self, chain: &Digest) -> (FileKind, PathBuf) {
        if self.native.load(Ordering::Relaxed) {
            (FileKind::Plain, self.layout.plain(chain))
        } else {
            (FileKind::Snapshot, self.layout.snapshot(chain))
        }
    }

    /// The unpacked layer, if it is unpacked as this machine can use it. It stays so while this store is open.
    ///
    /// # Errors
    /// The database.
    pub fn snapshot(&self, chain: &Digest) -> Result<Option<Snapshot>, StoreError> {
        let (kind, path) = self.unpacked_as(chain);
        let fs = path.join(self.tree_name()?);
        if self.find_unpacked(chain, kind, &fs)? {
            return Ok(Some(Snapshot { fs }));
        }
        if kind == FileKind::Plain {
            // Marks for overlays do not disturb those who go by the index.
            let fs = self.layout.snapshot(chain).join(self.tree_name()?);
            return Ok(self.find_unpacked(chain, FileKind::Snapshot, &fs)?.then_some(Snapshot { fs }));
        }
        Ok(None)
    }

    /// Whether something of a layer is there. It stays so while this store is open.
    pub(crate) fn find_unpacked(&self, chain: &Digest, kind: FileKind, path: &Path) -> Result<bool, StoreError> {
        if self.lease.holds(chain) {
            return Ok(path.exists());
        }
        self.db.read_guarded(|db| {
            let is_there = has_file(db, kind, chain, path)?;
            if is_there {
                self.lease.hold(chain);
            }
            Ok(is_there)
        })
    }

    /// Takes away a tree of a layer that was found damaged; it is unpacked again when it is needed.
    ///
    /// # Errors
    /// The disk or the database.
    pub fn remove_snapshot(&self, chain: &Digest, fs: &Path) -> Result<(), StoreError> {
        let snapshot = (FileKind::Snapshot, self.layout.snapshot(chain));
        let plain = (FileKind::Plain, self.layout.plain(chain));
        let (kind, directory) = if fs.starts_with(&plain.1) { plain } else { snapshot };
        self.doubt();
        self.db.write_files(|db| {
            let is_last = trees(&directory).all(|tree| tree == fs);
            if is_last {
                forget_file(db, kind, chain)?;
            }
            let path = if is_last { directory.as_path() } else { fs };
            Ok(self.reaper.discard(path).map_err(StoreError::io("remove", path))?)
        })
    }

    /// The encoded index of a layer, unpacked or not.
    ///
    /// # Errors
    /// The disk.
    pub fn index(&self, chain: &Digest) -> Result<Option<Vec<u8>>, StoreError> {
        let unpacked = [self.layout.snapshot(chain), self.layout.plain(chain)].map(|path| path.join("index"));
        for path in unpacked.into_iter().chain([self.layout.index(chain)]) {
            match fs::read(&path) {
                Ok(bytes) => return Ok(Some(bytes)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(StoreError::io("read", path)(error)),
            }
        }
        Ok(None)
    }

    /// Gives an unpacked layer another index than the one that it has.
    ///
    /// # Errors
    /// The disk or the database.
    pub fn replace_index(&self, chain: &Digest, index: &[u8]) -> Result<(), StoreError> {
        let (kind, directory) = self.unpacked_as(chain);
        write_file(self, &directory.join("index"), index)?;
        let size = measure(&directory, &mut HashSet::new());
        self.db.write(|db| {
            self.lease.hold(chain);
            forget_file(db, kind, chain)?;
            add_file(db, kind, chain, size)
        })
    }

    /// Keeps the index of a layer that is there as a tar.
    ///
    /// # Errors
    /// The disk.
    pub fn put_index(&self, chain: &Digest, index: &[u8]) -> Result<(), StoreError> {
        let path = self.layout.index(chain);
        write_file(self, &path, index)?;
        self.db.write(|db| {
            self.lease.hold(chain);
            forget_file(db, FileKind::Index, chain)?;
            add_file(db, FileKind::Index, chain, index.len() as u64)
        })
    }

    /// An empty directory, the lowest layer of what has none.
    ///
    /// # Errors
    /// None today.
    pub fn empty_directory(&self) -> Result<PathBuf, StoreError> {
        Ok(self.layout.join("empty"))
    }
}
