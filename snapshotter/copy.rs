//! Where overlays cannot be mounted, or not of so many layers: their merged tree as one plain directory.
//!
//! The layers are immutable and their names come from their own directories, so paths may be joined here: a parent is only
//! entered after it was seen to be a directory in that very layer, and nobody swaps it afterwards.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::{self, File, FileType, Metadata, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt, lchown, symlink};
use std::path::{Path, PathBuf};

use graph::Digest;
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, XattrFlags, ioctl_ficlone, mknodat, utimensat};
use rustix::io::Errno;
use sys::mount::{Attributes, FileSystem};

use crate::db::{FileKind, add_file, forget_file, has_file};
use crate::reaper::remove_tree;
use crate::{Active, Snapshot, Store, StoreError};

/// Whether the copy may share its files with the layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CopyMode {
    /// To be written: files are cloned, or copied where the file system cannot clone.
    Private,
    /// Only to be read: files are linked where they cannot be cloned.
    ReadOnly,
}

/// What a copy came to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Copied {
    /// Paths below the target.
    pub entries: u64,
    /// Paths that lack their owner or an extended attribute, or that were not made at all (devices), because this user or
    /// this file system cannot.
    pub not_held: Vec<PathBuf>,
}

impl Store {
    /// The merged tree of an unpacked stack, as the directory of a new active snapshot. For steps where no overlay can be
    /// mounted.
    ///
    /// # Errors
    /// A layer that is not unpacked, or the disk.
    pub fn materialise(&self, chain: &Digest) -> Result<(Active, Copied), StoreError> {
        let active = self.prepare()?;
        let copied = merge_directories(&self.unpacked(chain)?, active.fs(), CopyMode::Private)?;
        Ok((active, copied))
    }

    /// The merged tree of an unpacked stack, made once and kept as long as its topmost layer. One lower directory in place
    /// of many: an overlay takes 500 at most.
    ///
    /// # Errors
    /// A layer that is not unpacked, the disk, or that `cancelled` said so while another process made it.
    pub fn flattened(&self, chain: &Digest, cancelled: &dyn Fn() -> bool) -> Result<Snapshot, StoreError> {
        let target = self.layout.merged(chain);
        let lowers = self.unpacked(chain)?;
        let _making = self.lock(&format!("flattened {chain}"), cancelled)?;
        let is_there = self.db.read(|db| has_file(db, FileKind::Merged, chain, &target))?;
        if !is_there {
            self.reaper.discard(&target).map_err(StoreError::io("remove", &target))?;
            let active = self.prepare()?;
            merge_directories(&lowers, active.fs(), CopyMode::ReadOnly)?;
            remove_tree(active.work()).map_err(StoreError::io("remove", active.work()))?;
            self.db.write_files(|db| {
                fs::rename(active.directory(), &target).map_err(StoreError::io("write", &target))?;
                forget_file(db, FileKind::Merged, chain)?;
                Ok(add_file(db, FileKind::Merged, chain, 0)?)
            })?;
        }
        Ok(Snapshot::at(target.join("fs")))
    }

    /// The directories of a stack, the topmost first.
    fn unpacked(&self, chain: &Digest) -> Result<Vec<PathBuf>, StoreError> {
        let layers = self.chain_layers(chain)?;
        let directory = |chain: &Digest| {
            let snapshot = self.snapshot(chain)?.ok_or(StoreError::NoLayer(*chain))?;
            Ok(snapshot.fs().to_owned())
        };
        layers.iter().rev().map(|layer| directory(&layer.chain)).collect()
    }

    /// Tries whether an overlay with its upper directory in the store works in this process's namespaces: it does not where
    /// the store itself lies on an overlay, and a file system may lack what whiteouts need. Mounts nothing anywhere.
    ///
    /// # Errors
    /// The call that failed, and why.
    pub fn try_overlay(&self, in_user_namespace: bool) -> Result<(), OverlayUnusable> {
        let active = self.prepare()?;
        let lower = active.directory().join("lower");
        let made = fs::create_dir(&lower).and_then(|()| fs::write(lower.join("file"), ""));
        made.map_err(StoreError::io("write", &lower))?;
        let open = |path: &Path| File::open(path).map_err(StoreError::io("open", path));
        let directories =
            [("lowerdir", open(&lower)?), ("upperdir", open(active.fs())?), ("workdir", open(active.work())?)];
        let overlay = FileSystem::open("overlay")?;
        for (key, directory) in &directories {
            use std::os::fd::AsRawFd;
            // A string is limited to 255 bytes, which no descriptor's name reaches.
            overlay.string(key, &format!("/proc/self/fd/{}", directory.as_raw_fd()))?;
        }
        overlay.flag("volatile")?;
        if in_user_namespace {
            overlay.flag("userxattr")?;
        }
        let mounted = overlay.mount(Attributes::empty())?;
        sys::file::unlink(mounted.as_fd(), b"file").map_err(OverlayUnusable::Whiteout)?;
        Ok(())
    }
}

/// Why overlays cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OverlayUnusable {
    /// The kernel refuses one.
    #[error(transparent)]
    Refused(#[from] sys::Error),
    /// Nothing can be deleted in it.
    #[error("the file system of the store cannot hold whiteouts")]
    Whiteout(#[source] io::Error),
    /// It could not be tried.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Copies what an overlay of `lowers`, the topmost first, would show into `target`, an empty directory.
///
/// # Errors
/// The disk. What this user may not give its copies is reported in the answer.
pub fn merge_directories(lowers: &[PathBuf], target: &Path, mode: CopyMode) -> Result<Copied, StoreError> {
    let mut merge = Merge { lowers, target, mode, links: HashMap::new(), copied: Copied::default() };
    let mut pending = vec![(PathBuf::new(), (0..lowers.len()).collect::<Vec<_>>())];
    let mut directories = Vec::new();
    while let Some((path, layers)) = pending.pop() {
        for (name, layers) in merge.directory(&path, &layers)? {
            pending.push((path.join(name), layers));
        }
        if let Some(topmost) = layers.first() {
            directories.push((path, *topmost));
        }
    }
    // Children before parents, since making them changed the parents' times, and modes may forbid to.
    for (path, layer) in directories.into_iter().rev() {
        merge.finish_directory(&path, layer)?;
    }
    Ok(merge.copied)
}

struct Merge<'a> {
    lowers: &'a [PathBuf],
    target: &'a Path,
    mode: CopyMode,
    /// First name of each file with several, by layer and inode.
    links: HashMap<(usize, u64, u64), PathBuf>,
    copied: Copied,
}

/// What is known of a name while the layers below are still to come.
struct Seen {
    /// Directories of this name that show through, the topmost first.
    layers: Vec<usize>,
    /// Nothing of lower layers shows.
    closed: bool,
}

impl Merge<'_> {
    /// Copies the files of one directory; answers its subdirectories, already made, with the layers that they are made of.
    fn directory(&mut self, path: &Path, layers: &[usize]) -> Result<Vec<(OsString, Vec<usize>)>, StoreError> {
        let mut seen: HashMap<OsString, Seen> = HashMap::new();
        let mut order = Vec::new();
        for &layer in layers {
            let directory = self.lowers[layer].join(path);
            for entry in fs::read_dir(&directory).map_err(StoreError::io("read", &directory))? {
                let entry = entry.map_err(StoreError::io("read", &directory))?;
                let (name, source) = (entry.file_name(), entry.path());
                if seen.get(&name).is_some_and(|seen| seen.closed) {
                    continue;
                }
                let metadata = entry.metadata().map_err(StoreError::io("examine", &source))?;
                if metadata.is_dir() {
                    let seen = seen.entry(name.clone()).or_insert_with(|| {
                        order.push(name);
                        Seen { layers: Vec::new(), closed: false }
                    });
                    seen.layers.push(layer);
                    seen.closed = is_opaque(&source).map_err(StoreError::io("examine", &source))?;
                } else if let Some(above) = seen.get_mut(&name) {
                    // It lies below a directory, which stays.
                    above.closed = true;
                } else {
                    seen.insert(name.clone(), Seen { layers: Vec::new(), closed: true });
                    if !is_whiteout(&metadata) {
                        self.leaf(layer, &path.join(name), &source, &metadata)?;
                    }
                }
            }
        }
        let mut directories = Vec::with_capacity(order.len());
        for name in order {
            let Some(layers) = seen.remove(&name).map(|seen| seen.layers) else { continue };
            let target = self.target.join(path).join(&name);
            fs::create_dir(&target).map_err(StoreError::io("create", &target))?;
            self.copied.entries += 1;
            directories.push((name, layers));
        }
        Ok(directories)
    }

    /// Copies what is no directory.
    fn leaf(&mut self, layer: usize, path: &Path, source: &Path, metadata: &Metadata) -> Result<(), StoreError> {
        let target = self.target.join(path);
        self.copied.entries += 1;
        if metadata.nlink() > 1 && self.mode == CopyMode::Private {
            match self.links.entry((layer, metadata.dev(), metadata.ino())) {
                std::collections::hash_map::Entry::Occupied(first) => {
                    return fs::hard_link(first.get(), &target).map_err(StoreError::io("link", target));
                }
                std::collections::hash_map::Entry::Vacant(vacant) => {
                    vacant.insert(target.clone());
                }
            }
        }
        // A link keeps all that the file has, and links among the layer's own files.
        if self.mode == CopyMode::ReadOnly && fs::hard_link(source, &target).is_ok() {
            return Ok(());
        }
        let kind = metadata.file_type();
        let made = if kind.is_file() {
            copy_file(source, &target, metadata)
        } else if kind.is_symlink() {
            fs::read_link(source).and_then(|link| symlink(link, &target))
        } else {
            match make_node(&target, kind, metadata) {
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                    self.copied.not_held.push(path.to_owned());
                    return Ok(());
                }
                other => other,
            }
        };
        made.map_err(StoreError::io("copy", source))?;
        self.attributes(path, source, &target, metadata)
    }

    fn finish_directory(&mut self, path: &Path, layer: usize) -> Result<(), StoreError> {
        let (source, target) = (self.lowers[layer].join(path), self.target.join(path));
        let metadata = fs::symlink_metadata(&source).map_err(StoreError::io("examine", &source))?;
        self.attributes(path, &source, &target, &metadata)
    }

    /// Owner, mode, extended attributes and times, in the order in which none undoes another.
    fn attributes(&mut self, path: &Path, source: &Path, target: &Path, from: &Metadata) -> Result<(), StoreError> {
        let failed = || StoreError::io("copy the attributes of", source);
        let there = fs::symlink_metadata(target).map_err(failed())?;
        let mut is_whole = true;
        if (there.uid(), there.gid()) != (from.uid(), from.gid()) {
            is_whole &= unless_refused(lchown(target, Some(from.uid()), Some(from.gid()))).map_err(failed())?;
        }
        if !from.file_type().is_symlink() {
            fs::set_permissions(target, fs::Permissions::from_mode(from.mode() & 0o7777)).map_err(failed())?;
        }
        is_whole &= copy_xattrs(source, target).map_err(failed())?;
        let time = Timespec { tv_sec: from.mtime(), tv_nsec: from.mtime_nsec() };
        let times = Timestamps { last_access: time, last_modification: time };
        utimensat(CWD, target, &times, AtFlags::SYMLINK_NOFOLLOW).map_err(|error| failed()(error.into()))?;
        if !is_whole {
            self.copied.not_held.push(path.to_owned());
        }
        Ok(())
    }
}

/// overlayfs.rst, "whiteouts and opaque directories": a character device 0:0.
fn is_whiteout(metadata: &Metadata) -> bool {
    metadata.file_type().is_char_device() && metadata.rdev() == 0
}

fn is_opaque(directory: &Path) -> io::Result<bool> {
    for name in ["trusted.overlay.opaque", "user.overlay.opaque"] {
        let mut value = [0; 4];
        match rustix::fs::lgetxattr(directory, name, &mut value[..]) {
            Ok(1) if value[0] == b'y' => return Ok(true),
            Ok(_) | Err(Errno::NODATA | Errno::RANGE | Errno::OPNOTSUPP | Errno::PERM) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(false)
}

fn make_node(target: &Path, kind: FileType, metadata: &Metadata) -> io::Result<()> {
    let kind = rustix::fs::FileType::from_raw_mode(if kind.is_socket() {
        return Err(io::ErrorKind::PermissionDenied.into());
    } else {
        metadata.mode()
    });
    Ok(mknodat(CWD, target, kind, 0o600.into(), metadata.rdev())?)
}

fn copy_file(source: &Path, target: &Path, metadata: &Metadata) -> io::Result<()> {
    let mut from =
        OpenOptions::new().read(true).custom_flags(rustix::fs::OFlags::NOFOLLOW.bits() as i32).open(source)?;
    let mut to = OpenOptions::new().write(true).create_new(true).mode(0o600).open(target)?;
    if ioctl_ficlone(&to, &from).is_ok() {
        return Ok(());
    }
    if metadata.blocks().saturating_mul(512) < metadata.size() {
        return copy_sparse(&mut from, &mut to, metadata.size());
    }
    // Uses copy_file_range where it works.
    io::copy(&mut from, &mut to).map(|_| ())
}

/// Copies the data between the holes.
fn copy_sparse(from: &mut File, to: &mut File, size: u64) -> io::Result<()> {
    to.set_len(size)?;
    let mut at = 0;
    while at < size {
        let begin = match rustix::fs::seek(&*from, rustix::fs::SeekFrom::Data(at)) {
            Ok(begin) => begin,
            // Only a hole is left.
            Err(Errno::NXIO) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let end = rustix::fs::seek(&*from, rustix::fs::SeekFrom::Hole(begin))?;
        from.seek(SeekFrom::Start(begin))?;
        to.seek(SeekFrom::Start(begin))?;
        io::copy(&mut io::Read::take(&mut *from, end - begin), to)?;
        at = end;
    }
    Ok(())
}

/// All but overlay's own and those that the host's security modules manage; whether all could be set.
fn copy_xattrs(source: &Path, target: &Path) -> io::Result<bool> {
    let mut names = vec![0; 4096];
    let length = loop {
        match rustix::fs::llistxattr(source, &mut names[..]) {
            Ok(length) => break length,
            Err(Errno::RANGE) => {
                names.resize(rustix::fs::llistxattr(source, &mut [0_u8; 0][..])?.max(names.len() * 2), 0);
            }
            Err(Errno::OPNOTSUPP) => return Ok(true),
            Err(error) => return Err(error.into()),
        }
    };
    let mut is_whole = true;
    for name in names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let is_ours = [&b"trusted."[..], b"user.overlay.", b"security.selinux", b"security.ima", b"security.evm"]
            .iter()
            .all(|prefix| !name.starts_with(prefix));
        if is_ours {
            // The largest that Linux knows.
            let mut value = vec![0; 1 << 16];
            let length = rustix::fs::lgetxattr(source, name, &mut value[..])?;
            let set = rustix::fs::lsetxattr(target, name, &value[..length], XattrFlags::empty());
            is_whole &= unless_refused(set.map_err(io::Error::from))?;
        }
    }
    Ok(is_whole)
}

/// Whether it was done; an error only if the reason is not that this user or file system cannot.
fn unless_refused(result: io::Result<()>) -> io::Result<bool> {
    match result {
        Ok(()) => Ok(true),
        Err(error) => match Errno::from_io_error(&error) {
            Some(Errno::PERM | Errno::OPNOTSUPP | Errno::INVAL) => Ok(false),
            _ => Err(error),
        },
    }
}

#[cfg(test)]
mod tests;
