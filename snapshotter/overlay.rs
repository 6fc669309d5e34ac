//! Whether overlays can be used with this store, and stacks of too many layers for one.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::Ordering;

use graph::Digest;
use rustix::io::Errno;
use sys::file::{self, Node};
use sys::mount::{Attributes, FileSystem};

use crate::db::{FileKind, add_file, forget_file, has_file};
use crate::layer::Marks;
use crate::recover::boot_id;
use crate::{Snapshot, Store, StoreError};

/// statfs(2)
const OVERLAYFS_SUPER_MAGIC: u64 = 0x794c_7630;

impl Store {
    /// Why overlays cannot be used with this store, if they cannot. Tried once per boot, for it costs a mount. From then on
    /// layers are unpacked as this machine can use them.
    ///
    /// # Errors
    /// The store, not the trial.
    pub fn without_overlays(&self, marks: Marks) -> Result<Option<String>, StoreError> {
        let root = self.root();
        let device = fs::metadata(root).map_err(StoreError::io("examine", root))?.dev();
        let magic = magic(root)?;
        let key = format!("{device:x}:{magic:x}:{marks:?}");
        let boot = boot_id();
        let noted = self.note("overlay", &key)?;
        let why = match noted.as_deref().and_then(|text| text.strip_prefix(&boot)?.strip_prefix(' ')) {
            Some("works") => None,
            Some(why) => Some(why.to_owned()),
            None => {
                let why = match self.try_overlay(marks) {
                    Ok(()) => None,
                    Err(OverlayUnusable::Store(error)) => return Err(error),
                    // Too old a kernel to try without mounting: all but one of its file systems will do.
                    Err(OverlayUnusable::Refused(error)) if error.errno() == Errno::NOSYS => {
                        (magic == OVERLAYFS_SUPER_MAGIC).then(|| "the store is on an overlay itself".to_owned())
                    }
                    Err(error) => Some(describe(&error, magic)),
                };
                self.put_note("overlay", &key, &format!("{boot} {}", why.as_deref().unwrap_or("works")))?;
                why
            }
        };
        self.native.store(why.is_some(), Ordering::Relaxed);
        Ok(why)
    }

    /// Tries whether an overlay with its upper directory in the store works in this process's namespaces: it does not where
    /// the store itself lies on an overlay, and a file system may lack what removals need. Mounts nothing anywhere.
    ///
    /// # Errors
    /// What failed, and why.
    pub fn try_overlay(&self, marks: Marks) -> Result<(), OverlayUnusable> {
        let active = self.prepare()?;
        let lower = active.directory().join("lower");
        let make = || -> io::Result<()> {
            fs::create_dir_all(lower.join("directory/inner"))?;
            fs::write(lower.join("file"), "lower")?;
            fs::write(lower.join("changed"), "lower")
        };
        make().map_err(StoreError::io("write", &lower))?;
        // What unpacking a layer makes.
        let unpacked = file::open_root(active.fs()).map_err(StoreError::io("open", active.fs()))?;
        let key = crate::layer::opaque_key(marks);
        let marked = file::mknod(&unpacked, b"whiteout", Node::WHITEOUT, 0o600)
            .and_then(|()| file::mkdir(&unpacked, b"opaque", 0o755))
            .and_then(|()| key.map_or(Ok(()), |key| sys::xattr::set_at(&unpacked, b"opaque", key, b"y")))
            .and_then(|()| file::unlink(&unpacked, b"whiteout"))
            .and_then(|()| file::rmdir(&unpacked, b"opaque"));
        marked.map_err(OverlayUnusable::Marks)?;

        let open = |path: &Path| File::open(path).map_err(StoreError::io("open", path));
        let directories =
            [("lowerdir", open(&lower)?), ("upperdir", open(active.fs())?), ("workdir", open(active.work())?)];
        let overlay = FileSystem::open("overlay")?;
        for (key, directory) in &directories {
            // A string is limited to 255 bytes, which no descriptor's name reaches.
            overlay.string(key, &format!("/proc/self/fd/{}", directory.as_raw_fd()))?;
        }
        overlay.flag("volatile")?;
        if marks == Marks::User {
            overlay.flag("userxattr")?;
        }
        let mounted = overlay.mount(Attributes::empty())?;
        use_it(&mounted).map_err(OverlayUnusable::Marks)?;
        // And the kernel must have said it in the way that we read.
        let holds = |name: &[u8]| rustix::fs::statat(&unpacked, name, rustix::fs::AtFlags::SYMLINK_NOFOLLOW).is_ok();
        if holds(b"file") && holds(b"directory") && holds(b"changed") {
            return Ok(());
        }
        Err(OverlayUnusable::Marks(io::Error::other("changes do not show in the upper directory")))
    }

    /// The merged tree of an unpacked stack as one plain directory, made by `fill` once and kept as long as its topmost
    /// layer. One lower directory in place of many: an overlay takes 500 at most.
    ///
    /// # Errors
    /// The disk, what `fill` says, or that `cancelled` said so while another process made it.
    pub fn flattened<E: From<StoreError>>(
        &self,
        chain: &Digest,
        cancelled: &dyn Fn() -> bool,
        fill: impl FnOnce(&Path) -> Result<(), E>,
    ) -> Result<Snapshot, E> {
        let target = self.layout.merged(chain);
        let _making = self.lock(&format!("flattened {chain}"), cancelled)?;
        // A stack that is held is not collected, and with it stays this.
        self.layer(chain)?.ok_or(StoreError::NoLayer(*chain))?;
        let tree = self.tree_name()?;
        let place = target.join(tree);
        let is_there = self.db.read(|db| has_file(db, FileKind::Merged, chain, &place))?;
        if !is_there {
            self.reaper.discard(&place).map_err(StoreError::io("remove", &place))?;
            let active = self.prepare()?;
            fill(active.fs())?;
            self.reaper.discard(active.work()).map_err(StoreError::io("remove", active.work()))?;
            // Files that it shares with layers count there.
            let size = own_size(active.directory());
            self.db.write_files(|db| {
                self.appear(&active, &target, tree)?;
                forget_file(db, FileKind::Merged, chain)?;
                Ok(add_file(db, FileKind::Merged, chain, size)?)
            })?;
        }
        Ok(Snapshot::at(place))
    }
}

fn own_size(directory: &Path) -> u64 {
    let mut total = 0;
    let mut pending = vec![directory.to_owned()];
    while let Some(directory) = pending.pop() {
        for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
            let Ok(metadata) = entry.metadata() else { continue };
            if metadata.is_dir() {
                pending.push(entry.path());
            }
            if metadata.is_dir() || metadata.nlink() == 1 {
                total += metadata.blocks() * 512;
            }
        }
    }
    total
}

/// Does what steps do: removes, replaces, changes.
fn use_it(mounted: &OwnedFd) -> io::Result<()> {
    file::unlink(mounted.as_fd(), b"file")?;
    file::remove_all(mounted.as_fd(), b"directory")?;
    // A directory in place of one that was removed needs a mark.
    file::mkdir(mounted.as_fd(), b"directory", 0o755)?;
    let inner = file::open_dir(mounted.as_fd(), b"directory")?;
    if rustix::fs::Dir::read_from(&inner)?.flatten().any(|entry| entry.file_name() == c"inner") {
        return Err(io::Error::other("a removed directory shows again"));
    }
    let flags = rustix::fs::OFlags::WRONLY | rustix::fs::OFlags::CLOEXEC;
    let changed = rustix::fs::openat(mounted, c"changed", flags, rustix::fs::Mode::empty())?;
    io::Write::write_all(&mut File::from(changed), b"upper")
}

fn magic(root: &Path) -> Result<u64, StoreError> {
    let statfs = rustix::fs::statfs(root).map_err(|error| StoreError::io("examine", root)(error.into()))?;
    Ok(statfs.f_type as u64 & 0xffff_ffff)
}

fn describe(error: &OverlayUnusable, magic: u64) -> String {
    match error {
        _ if magic == OVERLAYFS_SUPER_MAGIC => "the store is on an overlay itself".to_owned(),
        OverlayUnusable::Marks(source) => format!("{error}: {source}"),
        other => other.to_string(),
    }
}

/// Why overlays cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OverlayUnusable {
    /// The kernel refuses one.
    #[error(transparent)]
    Refused(#[from] sys::Error),
    /// Nothing can be removed in it.
    #[error("the file system of the store cannot hold an overlay's marks")]
    Marks(#[source] io::Error),
    /// It could not be tried.
    #[error(transparent)]
    Store(#[from] StoreError),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whether_overlays_work_is_tried_once() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(&directory.path().join("store")).unwrap();
        let tried = store.try_overlay(Marks::Trusted);
        let noted = store.without_overlays(Marks::Trusted).unwrap();
        assert_eq!(noted.is_some(), tried.is_err(), "{noted:?} {tried:?}");
        assert_eq!(fs::read_dir(store.root().join("active")).unwrap().count(), 0);
        // Another boot's word counts for nothing, this one's is taken.
        let boot = boot_id();
        let device = fs::metadata(store.root()).unwrap().dev();
        let key = format!("{device:x}:{:x}:Trusted", magic(store.root()).unwrap());
        store.put_note("overlay", &key, "another-boot broken").unwrap();
        assert_eq!(store.without_overlays(Marks::Trusted).unwrap(), noted);
        store.put_note("overlay", &key, &format!("{boot} it is Sunday")).unwrap();
        assert_eq!(store.without_overlays(Marks::Trusted).unwrap().as_deref(), Some("it is Sunday"));
    }
}
