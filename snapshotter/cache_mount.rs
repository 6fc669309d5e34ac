//! Directories of `RUN --mount=type=cache`.

use std::fs::{self, DirBuilder};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::PoisonError;

use crate::blob::hashed_name;
use crate::reaper::remove_tree;
use crate::usage::{CACHE_MOUNT, CacheMountNote, cache_mount_digest};
use crate::{KeyLock, Store, StoreError};

/// What names of directories are hashed with.
const NAME: &str = "cache-mount/1";

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
        let name = self.cache_mount_name(id)?;
        let (name, lock) = match sharing {
            CacheMountSharing::Shared => (name, None),
            CacheMountSharing::Locked => {
                let lock = self.lock(&format!("cache-mount {name}"), cancelled)?;
                (name, Some(lock))
            }
            CacheMountSharing::Private => self.private(&name)?,
        };
        let path = self.layout.join("cache-mounts").join(&name);
        self.use_mount(&name, id)?;
        if !path.exists() {
            let _making = self.lock(&format!("making cache-mount {name}"), cancelled)?;
            if !path.exists() {
                self.make(&path, new, fill)?;
            }
        }
        Ok(CacheMountDir { path, _lock: lock })
    }

    /// Whether the directory of `id` is there.
    #[must_use]
    pub fn has_cache_mount(&self, id: &str) -> bool {
        self.cache_mount_name(id).is_ok_and(|name| self.layout.join("cache-mounts").join(name).exists())
    }

    /// The directory of `id` for reading. `None`: it is not there, or others have it for themselves at the moment.
    ///
    /// # Errors
    /// The disk.
    pub fn existing_cache_mount(
        &self,
        id: &str,
        sharing: CacheMountSharing,
    ) -> Result<Option<CacheMountDir>, StoreError> {
        let name = self.cache_mount_name(id)?;
        let path = self.layout.join("cache-mounts").join(&name);
        if !path.exists() {
            return Ok(None);
        }
        let lock = match sharing {
            CacheMountSharing::Shared => None,
            CacheMountSharing::Locked | CacheMountSharing::Private => {
                let Some(lock) = self.try_lock(&format!("cache-mount {name}"))? else { return Ok(None) };
                Some(lock)
            }
        };
        self.use_mount(&name, id)?;
        // It may have been removed until then.
        Ok(path.exists().then_some(CacheMountDir { path, _lock: lock }))
    }

    /// What steps of one form put there those of another can neither read nor remove.
    fn cache_mount_name(&self, id: &str) -> Result<String, StoreError> {
        Ok(hashed_name(NAME, self.in_own_form(id.to_owned())?.as_bytes()))
    }

    /// Notes that a directory is in use, so that nobody removes it, and when.
    fn use_mount(&self, name: &str, id: &str) -> Result<(), StoreError> {
        self.db.read_guarded(|_| {
            self.lease.hold(&cache_mount_digest(name));
            Ok(())
        })?;
        let now = jiff::Timestamp::now().as_millisecond();
        let note = self.note(CACHE_MOUNT, name)?.and_then(|text| serde_json::from_str(&text).ok());
        let before = note.unwrap_or(CacheMountNote { created: now, ..CacheMountNote::default() });
        let id = id.chars().take(200).collect();
        let note = CacheMountNote { id, used: now, ..before };
        self.put_note(CACHE_MOUNT, name, &serde_json::to_string(&note).unwrap_or_default())?;
        self.used_mounts.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned());
        Ok(())
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

/// Removes all that is in a directory, whatever it is.
///
/// # Errors
/// The disk. What can be removed is.
pub fn empty_directory(directory: &Path) -> std::io::Result<()> {
    let children: Vec<PathBuf> =
        fs::read_dir(directory)?.map(|entry| Ok(entry?.path())).collect::<std::io::Result<_>>()?;
    // All are tried before the first error is told.
    let removed: Vec<_> = children.iter().map(|child| remove_tree(child)).collect();
    removed.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    const NEW: NewDirectory = NewDirectory { mode: 0o1750, owner: (0, 0) };

    fn get(store: &Store, id: &str, sharing: CacheMountSharing) -> CacheMountDir {
        store.cache_mount(id, sharing, NEW, &|| false, |_| Ok::<_, StoreError>(())).unwrap()
    }

    #[test]
    fn sharing() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(&directory.path().join("store")).unwrap();
        let first = get(&store, "id", CacheMountSharing::Shared);
        assert_eq!(get(&store, "id", CacheMountSharing::Shared).path(), first.path());
        assert_ne!(get(&store, "other", CacheMountSharing::Shared).path(), first.path());

        let own = get(&store, "id", CacheMountSharing::Private);
        let second = get(&store, "id", CacheMountSharing::Private);
        assert_ne!(own.path(), second.path());
        let path = own.path().to_owned();
        drop(own);
        assert_eq!(get(&store, "id", CacheMountSharing::Private).path(), path);
        assert!(store.has_cache_mount("id") && !store.has_cache_mount("nothing"));
        assert!(store.existing_cache_mount("nothing", CacheMountSharing::Shared).unwrap().is_none());
        assert_eq!(store.existing_cache_mount("id", CacheMountSharing::Private).unwrap().unwrap().path(), path);

        let _held = get(&store, "locked", CacheMountSharing::Locked);
        let gives_up =
            store.cache_mount("locked", CacheMountSharing::Locked, NEW, &|| true, |_| Ok::<_, StoreError>(()));
        assert!(matches!(gives_up, Err(StoreError::Cancelled)));
        assert!(store.existing_cache_mount("locked", CacheMountSharing::Locked).unwrap().is_none());
    }

    #[test]
    fn a_directory_is_made_and_filled_once_and_has_its_mode() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(&directory.path().join("store")).unwrap();
        let fill = |path: &Path| fs::write(path.join("file"), "x").map_err(StoreError::io("fill", path));
        let made = store.cache_mount("id", CacheMountSharing::Shared, NEW, &|| false, fill).unwrap();
        assert_eq!(fs::metadata(made.path()).unwrap().mode() & 0o7777, 0o1750);
        assert!(made.path().join("file").exists());
        fs::remove_file(made.path().join("file")).unwrap();
        let again = store.cache_mount("id", CacheMountSharing::Shared, NEW, &|| false, fill).unwrap();
        assert!(!again.path().join("file").exists());

        let fails = |path: &Path| Err(StoreError::io("fill", path)(std::io::ErrorKind::StorageFull.into()));
        assert!(store.cache_mount("broken", CacheMountSharing::Shared, NEW, &|| false, fails).is_err());
        let whole = store.cache_mount("broken", CacheMountSharing::Shared, NEW, &|| false, fill).unwrap();
        assert!(whole.path().join("file").exists());
    }

    #[test]
    fn an_id_is_no_path() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(&directory.path().join("store")).unwrap();
        for id in ["../../../etc", "/etc", "", ".", "a/b", "\0", &"x".repeat(10_000)] {
            let made = get(&store, id, CacheMountSharing::Shared);
            assert_eq!(made.path().parent().unwrap(), store.root().join("cache-mounts"), "{id:?}");
        }
    }
}
