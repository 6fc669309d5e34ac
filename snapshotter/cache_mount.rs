//! Directories of `RUN --mount=type=cache`.

use std::fs::{self, DirBuilder};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use crate::blob::hashed_name;
use crate::reaper::remove_tree;
use crate::{KeyLock, Store, StoreError};

/// How concurrent steps share a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CacheMountSharing {
    /// At the same time.
    Shared,
    /// Each its own.
    Private,
    /// One after the other.
    Locked,
}

/// A directory that a step may use until this is dropped.
#[derive(Debug)]
pub struct CacheMountDir {
    path: PathBuf,
    _lock: Option<KeyLock>,
}

impl CacheMountDir {
    /// The directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// What a directory made anew looks like.
#[derive(Debug, Clone, Copy)]
pub struct NewDirectory {
    /// Permission bits.
    pub mode: u32,
    /// User and group.
    pub owner: (u32, u32),
}

impl Store {
    /// The directory of `id`, which may be any text: it is hashed (CVE-2024-9675). If it is not there yet, `fill` puts the
    /// first content in, and nobody sees it before.
    ///
    /// # Errors
    /// The disk, that `cancelled` said so while waiting, or what `fill` says.
    pub fn cache_mount<E: From<StoreError>>(
        &self,
        id: &str,
        sharing: CacheMountSharing,
        new: NewDirectory,
        cancelled: &dyn Fn() -> bool,
        fill: impl FnOnce(&Path) -> Result<(), E>,
    ) -> Result<CacheMountDir, E> {
        let name = hashed_name("cache-mount/1", id.as_bytes());
        let (name, lock) = match sharing {
            CacheMountSharing::Shared => (name, None),
            CacheMountSharing::Locked => {
                let lock = self.lock(&format!("cache-mount {name}"), cancelled)?;
                (name, Some(lock))
            }
            CacheMountSharing::Private => self.private(&name)?,
        };
        let path = self.layout.join("cache-mounts").join(&name);
        if !path.exists() {
            let _making = self.lock(&format!("making cache-mount {name}"), cancelled)?;
            if !path.exists() {
                self.make(&path, new, fill)?;
            }
        }
        Ok(CacheMountDir { path, _lock: lock })
    }

    fn make<E: From<StoreError>>(
        &self,
        path: &Path,
        new: NewDirectory,
        fill: impl FnOnce(&Path) -> Result<(), E>,
    ) -> Result<(), E> {
        let making = self.layout.join("active").join(self.unique_name());
        let made = DirBuilder::new().mode(new.mode).create(&making);
        let made = made.and_then(|()| fs::set_permissions(&making, fs::Permissions::from_mode(new.mode)));
        let made = made.and_then(|()| match new.owner {
            (0, 0) => Ok(()),
            (user, group) => chown(&making, Some(user), Some(group)),
        });
        made.map_err(StoreError::io("create", &making))?;
        if let Err(error) = fill(&making) {
            let _ = remove_tree(&making);
            return Err(error);
        }
        Ok(fs::rename(&making, path).map_err(StoreError::io("create", path))?)
    }

    /// The first directory that nobody uses at the moment.
    fn private(&self, name: &str) -> Result<(String, Option<KeyLock>), StoreError> {
        let mut number = 0;
        loop {
            let own = if number == 0 { name.to_owned() } else { format!("{name}.{number}") };
            if let Some(lock) = self.try_lock(&format!("cache-mount {own}"))? {
                return Ok((own, Some(lock)));
            }
            number += 1;
        }
    }
}
