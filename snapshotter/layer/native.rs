//! Steps without overlays: a merged tree as a directory that a step may change, and what it changed as a layer.
//!
//! The copy is made from the layers' indexes, so that nothing on the disk has to say what a layer removes. What a step left
//! alone is told by inode and time of change, which no program can set; what it did touch is compared with the index. A
//! directory that was only passed through, a file that was written as it was before: neither is a change.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::Arc;

use graph::ContentDigest;
use rustix::fs::{self, AtFlags, FileType, Stat};
use rustix::io::Errno;
use sys::file::{self, Node as Device};

use super::apply::{ApplyOptions, Ownership};
use super::commit::{CommitOptions, Committed, attributes, describe, names, write_entries};
use super::disk::Disk;
use super::entry::{Entry, EntryKind, MAX_PATHS, join, show, split};
use super::error::LayerError;
use super::export::{Descent, Visible, walk};
use super::index::implicit_dir;
use super::state::Meta;
use super::tree::{Finger, Tree};
use super::write::{Expect, LayerWriter};

/// Names in a directory.
type Names = Vec<Vec<u8>>;

/// Where the bytes of a layer's file are.
#[derive(Debug)]
pub enum Bytes {
    /// They are a file of their own, which can be cloned.
    Whole(File),
    /// They are part of a tar.
    Part {
        /// The tar.
        file: Arc<File>,
        /// Where they begin.
        offset: u64,
        /// How many there are.
        size: u64,
    },
}

impl Bytes {
    /// The file in which they are, and where they begin.
    pub(crate) fn place(&self) -> (&File, u64) {
        match self {
            Self::Whole(file) => (file, 0),
            Self::Part { file, offset, .. } => (file, *offset),
        }
    }

    /// To be read from the beginning.
    #[must_use]
    pub fn reader(self) -> Box<dyn Read + Send> {
        match self {
            Self::Whole(file) => Box::new(file),
            Self::Part { file, offset, size } => Box::new(PartReader { file, offset }.take(size)),
        }
    }
}

/// Reads from an offset that is its own.
struct PartReader {
    file: Arc<File>,
    offset: u64,
}

impl Read for PartReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read_at(buffer, self.offset)?;
        self.offset += read as u64;
        Ok(read)
    }
}

/// Whether a copy may share its files with the layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sharing {
    /// To be written: files are cloned, or copied where the file system cannot clone.
    Private,
    /// Only to be read: files are linked where they cannot be cloned.
    ReadOnly,
}

/// A tree as a directory, and what is needed to tell later what was changed in it.
#[derive(Debug, Default)]
pub struct Populated {
    /// By path.
    stamps: HashMap<Vec<u8>, Stamp>,
    /// Paths whose extended attributes the disk could not hold.
    not_held: HashSet<Vec<u8>>,
    /// Paths that could not be made: devices in a user namespace.
    absent: HashSet<Vec<u8>>,
    ownership: Ownership,
}

/// As long as neither changes, nothing else of a file has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    changed: (i64, i64),
}

impl Stamp {
    fn of(stat: &Stat) -> Self {
        Self { inode: stat.st_ino, changed: (stat.st_ctime, stat.st_ctime_nsec as i64) }
    }
}

/// Makes everything that `tree` shows in the empty directory `dest`. `open` gives the bytes of a layer's file.
///
/// After an error the directory is to be removed.
///
/// # Errors
/// The disk, or that `cancelled` said so.
pub fn populate(
    tree: &Tree,
    open: impl Fn(usize, &[u8]) -> io::Result<Bytes>,
    dest: &Path,
    options: &ApplyOptions,
    sharing: Sharing,
    cancelled: &dyn Fn() -> bool,
) -> Result<Populated, LayerError> {
    let disk = Disk::new(dest, *options)?;
    let descent = Descent::new(disk.root().try_clone().map_err(LayerError::io("open", b""))?);
    let mut populate = Populate { disk, descent, dirs: Vec::new(), absent: HashSet::new(), sharing };
    walk(tree, |entry, visible| {
        if cancelled() {
            return Err(LayerError::Cancelled);
        }
        match visible {
            Visible::File(from) => {
                let bytes = open(from.layer, &from.entry.path).map_err(LayerError::io("open", &from.entry.path))?;
                populate.file(&entry.path, from.entry, bytes)
            }
            Visible::Link(target) => populate.link(&entry.path, &target),
            Visible::Other if entry.is_dir() => populate.directory(entry),
            Visible::Other => populate.other(entry),
        }
    })?;
    populate.finish(dest, options.ownership, cancelled)
}

struct Populate<'a> {
    disk: Disk,
    descent: Descent,
    /// Described at the end, when nothing changes in them any more.
    dirs: Vec<&'a Entry>,
    absent: HashSet<Vec<u8>>,
    sharing: Sharing,
}

impl<'a> Populate<'a> {
    fn directory(&mut self, entry: &'a Entry) -> Result<(), LayerError> {
        self.dirs.push(entry);
        if entry.path.is_empty() {
            return Ok(());
        }
        let dir = self.descent.parent(&entry.path)?;
        file::mkdir(dir, split(&entry.path).1, 0o700).map_err(LayerError::io("mkdir", &entry.path))
    }

    fn file(&mut self, path: &[u8], entry: &Entry, bytes: Bytes) -> Result<(), LayerError> {
        let EntryKind::File { size, .. } = entry.kind else { return Ok(()) };
        let (dir, name) = (self.descent.parent(path)?, split(path).1);
        if let (Sharing::ReadOnly, Bytes::Whole(from)) = (self.sharing, &bytes) {
            // A link keeps all that the file has. Where there are too many already, it is copied.
            let from = format!("/proc/self/fd/{}", from.as_raw_fd());
            if fs::linkat(fs::CWD, from, dir, name, AtFlags::SYMLINK_FOLLOW).is_ok() {
                return Ok(());
            }
        }
        let made = file::create(dir, name, entry.mode & 0o777).map_err(LayerError::io("create", path))?;
        copy(bytes, &made, size).map_err(LayerError::io("copy", path))?;
        if made.metadata().map_err(LayerError::io("stat", path))?.len() != size {
            return Err(LayerError::Changed { path: show(path) });
        }
        self.disk.describe_file(&made, &Meta::of(entry), || path.to_vec())
    }

    fn link(&mut self, path: &[u8], target: &[u8]) -> Result<(), LayerError> {
        let from = self.descent.open_dir(split(target).0)?;
        let dir = self.descent.parent(path)?;
        file::link(from, split(target).1, dir, split(path).1).map_err(LayerError::io("link", path))
    }

    fn other(&mut self, entry: &Entry) -> Result<(), LayerError> {
        let (path, name) = (&entry.path, split(&entry.path).1);
        let dir = self.descent.parent(path)?;
        let device = match &entry.kind {
            EntryKind::Symlink { target } => {
                file::symlink(target, dir, name).map_err(LayerError::io("symlink", path))?;
                None
            }
            EntryKind::CharDev { major, minor } => Some(Device::Char { major: *major, minor: *minor }),
            EntryKind::BlockDev { major, minor } => Some(Device::Block { major: *major, minor: *minor }),
            EntryKind::Fifo => Some(Device::Fifo),
            EntryKind::File { .. } | EntryKind::Dir { .. } | EntryKind::Hardlink { .. } | EntryKind::Whiteout => {
                return Ok(());
            }
        };
        if let Some(device) = device {
            match file::mknod(dir, name, device, 0o600) {
                Err(error) if error.raw_os_error() == Some(Errno::PERM.raw_os_error()) => {
                    self.absent.insert(path.clone());
                    return Ok(());
                }
                made => made.map_err(LayerError::held("mknod", path))?,
            }
        }
        self.disk.describe_at(dir, name, &Meta::of(entry), device.is_some(), || path.clone())
    }

    /// Describes the directories, the deepest first, since a mode may keep us out; then notes what everything looks like.
    fn finish(
        mut self,
        dest: &Path,
        ownership: Ownership,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<Populated, LayerError> {
        let mut stamps = HashMap::new();
        if self.sharing == Sharing::Private {
            // Before modes can forbid to list.
            stamp(self.disk.root(), &mut stamps, cancelled)?;
        }
        if self.dirs.is_empty() {
            // An empty tree says nothing of its root.
            file::chmod(self.disk.root(), 0o755).map_err(LayerError::io("chmod", b""))?;
        }
        let mut latest = stamps.values().map(|stamp: &Stamp| stamp.changed).max().unwrap_or((i64::MIN, 0));
        for entry in std::mem::take(&mut self.dirs).into_iter().rev() {
            let fd = self.descent.open_dir(&entry.path)?;
            self.disk.describe_dir(&fd, &Meta::of(entry), || entry.path.clone())?;
            if self.sharing == Sharing::Private {
                let stat = fs::fstat(&fd).map_err(|error| LayerError::io("stat", &entry.path)(error.into()))?;
                let stamp = Stamp::of(&stat);
                latest = latest.max(stamp.changed);
                stamps.insert(entry.path.clone(), stamp);
            }
        }
        if self.sharing == Sharing::Private && !clock_passes(dest, latest) {
            // What is written from now on could have the same time as what was written before: all will be compared.
            stamps.clear();
        }
        let not_held = self.disk.not_held.into_iter().collect();
        Ok(Populated { stamps, not_held, absent: self.absent, ownership })
    }
}

/// Notes the stamp of everything below an open directory.
fn stamp(root: &OwnedFd, stamps: &mut HashMap<Vec<u8>, Stamp>, cancelled: &dyn Fn() -> bool) -> Result<(), LayerError> {
    let open = |fd: &OwnedFd, name: &[u8], path: &[u8]| file::open_dir(fd, name).map_err(LayerError::io("open", path));
    let mut stack: Vec<(Vec<u8>, Names, OwnedFd)> = vec![(Vec::new(), names(root, b"")?, open(root, b".", b"")?)];
    while let Some((dir, todo, fd)) = stack.last_mut() {
        if cancelled() {
            return Err(LayerError::Cancelled);
        }
        let Some(name) = todo.pop() else {
            stack.pop();
            continue;
        };
        let path = join(dir, &name);
        let stat = fs::statat(&*fd, &*name, AtFlags::SYMLINK_NOFOLLOW);
        let stat = stat.map_err(|error| LayerError::io("stat", &path)(error.into()))?;
        stamps.insert(path.clone(), Stamp::of(&stat));
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            let below = open(fd, &name, &path)?;
            stack.push((path.clone(), names(&below, &path)?, below));
        }
    }
    Ok(())
}

/// Waits until the file system's clock has passed `latest`: a change within the same tick could not be told from none.
/// The clock is asked by making files beside `dest`, since it need not be this machine's.
fn clock_passes(dest: &Path, latest: (i64, i64)) -> bool {
    let Some(parent) = dest.parent() else { return false };
    for _ in 0..100 {
        let probe = tempfile::tempfile_in(parent).and_then(|mut file| {
            file.write_all(b"t")?;
            Ok(fs::fstat(&file)?)
        });
        match probe {
            Ok(stat) if Stamp::of(&stat).changed > latest => return true,
            Ok(_) => std::thread::sleep(std::time::Duration::from_millis(1)),
            Err(_) => return false,
        }
    }
    false
}

/// The cheapest copy that the file systems can make.
fn copy(bytes: Bytes, to: &File, size: u64) -> io::Result<()> {
    match bytes {
        Bytes::Whole(mut from) => clone_or_copy(&mut from, to, size),
        Bytes::Part { file, mut offset, .. } => {
            let mut done = 0;
            while done < size {
                let want = usize::try_from(size - done).unwrap_or(usize::MAX).min(1 << 30);
                match fs::copy_file_range(&file, Some(&mut offset), to, None, want) {
                    Ok(0) => return Ok(()),
                    Ok(copied) => done += copied as u64,
                    Err(Errno::INTR) => {}
                    Err(Errno::XDEV | Errno::NOSYS | Errno::INVAL | Errno::OPNOTSUPP) if done == 0 => {
                        let mut to = to;
                        return io::copy(&mut PartReader { file, offset }.take(size), &mut to).map(|_| ());
                    }
                    Err(error) => return Err(error.into()),
                }
            }
            Ok(())
        }
    }
}

/// Clones, or copies the parts that are no holes.
fn clone_or_copy(from: &mut File, mut to: &File, size: u64) -> io::Result<()> {
    if fs::ioctl_ficlone(to, &*from).is_ok() {
        return Ok(());
    }
    if from.metadata()?.blocks().saturating_mul(512) < size {
        return copy_sparse(from, to, size);
    }
    // Uses copy_file_range where it works.
    io::copy(from, &mut to).map(|_| ())
}

/// Copies the data between the holes.
fn copy_sparse(from: &mut File, mut to: &File, size: u64) -> io::Result<()> {
    to.set_len(size)?;
    let mut at = 0;
    while at < size {
        let begin = match fs::seek(&*from, fs::SeekFrom::Data(at)) {
            Ok(begin) => begin,
            // Only a hole is left.
            Err(Errno::NXIO) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let end = fs::seek(&*from, fs::SeekFrom::Hole(begin))?;
        from.seek(SeekFrom::Start(begin))?;
        to.seek(SeekFrom::Start(begin))?;
        io::copy(&mut from.take(end - begin), &mut to)?;
        at = end;
    }
    Ok(())
}

/// The layer that the changes in `root` make, written to `out`: `root` was populated with `below`, and a step has changed
/// it since. Nothing may change in it meanwhile.
///
/// As a layer made of an overlay's upper directory, it has every directory on the way to a change, but not the root.
/// Sockets are left out.
///
/// # Errors
/// The disk, what a layer cannot hold, or that the options say to stop.
pub fn commit_native<W: Write>(
    root: &Path,
    below: &Tree,
    populated: &Populated,
    options: &CommitOptions<'_>,
    out: W,
) -> Result<(Committed, W), LayerError> {
    let root = super::commit::open_dir(root)?;
    let diff = Diff {
        below,
        finger: below.finger(),
        populated,
        options,
        own: (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw()),
        files: HashMap::new(),
        entries: Vec::new(),
        path_bytes: 0,
    };
    let mut entries = diff.run(&root)?;
    options.keep_owners(&mut entries);
    let mut writer = LayerWriter::new(out);
    write_entries(&mut writer, &root, &entries, Expect::Nothing, options)?;
    let (written, out) = writer.finish()?;
    let committed =
        Committed { diff_id: written.diff_id, content: written.content, size: written.size, index: written.index };
    Ok((committed, out))
}

/// Compares a directory with the tree that it was.
struct Diff<'a> {
    below: &'a Tree,
    finger: Finger<'a>,
    populated: &'a Populated,
    options: &'a CommitOptions<'a>,
    own: (u32, u32),
    /// Names of files that have several, by device and inode, and whether any of them is in the layer.
    files: HashMap<(u64, u64), (Vec<usize>, bool)>,
    entries: Vec<Item>,
    path_bytes: u64,
}

/// Something that may be in the layer.
struct Item {
    entry: Entry,
    changed: bool,
    inode: Option<(u64, u64)>,
}

/// A directory that is being compared.
struct Level {
    path: Vec<u8>,
    /// Names on the disk and below, the last first.
    todo: Names,
    fd: OwnedFd,
    /// What is below has a directory here as well.
    is_below: bool,
}

impl Diff<'_> {
    fn run(mut self, root: &OwnedFd) -> Result<Vec<Entry>, LayerError> {
        let stat = fs::fstat(root).map_err(|error| LayerError::io("stat", b"")(error.into()))?;
        let (xattrs, _) = attributes(sys::xattr::list(root), b"", |key| sys::xattr::get(root, key))?;
        let mut top = describe(Vec::new(), &stat, implicit_dir(b"").kind, xattrs);
        top.mtime.1 = 0;
        self.entries.push(Item { entry: top, changed: true, inode: None });
        let fd = file::open_dir(root, b".").map_err(LayerError::io("open", b""))?;
        let is_below = self.finger.lookup(b"").is_some();
        let mut stack = vec![self.level(Vec::new(), fd, is_below)?];
        while let Some(level) = stack.last_mut() {
            self.options.check()?;
            let Some(name) = level.todo.pop() else {
                stack.pop();
                continue;
            };
            let (path, is_below) = (join(&level.path, &name), level.is_below);
            if let Some((fd, is_below)) = self.entry(&level.fd, &name, &path, is_below)? {
                stack.push(self.level(path, fd, is_below)?);
            }
        }
        Ok(self.chosen())
    }

    fn level(&self, path: Vec<u8>, fd: OwnedFd, is_below: bool) -> Result<Level, LayerError> {
        let mut todo = names(&fd, &path)?;
        if is_below {
            todo.extend(self.below.children(&path).iter().map(|found| split(&found.entry.path).1.to_vec()));
            todo.sort_unstable_by(|a, b| b.cmp(a));
            todo.dedup();
        }
        Ok(Level { path, todo, fd, is_below })
    }

    /// Compares one name; answers the directory if it is one, and whether there is one below.
    fn entry(
        &mut self,
        dir: &OwnedFd,
        name: &[u8],
        path: &[u8],
        parent_is_below: bool,
    ) -> Result<Option<(OwnedFd, bool)>, LayerError> {
        let io = |op| LayerError::io(op, path);
        let before = if parent_is_below { self.finger.lookup(path) } else { None };
        let stat = match fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Some(stat).filter(|stat| FileType::from_raw_mode(stat.st_mode) != FileType::Socket),
            Err(Errno::NOENT) => None,
            Err(error) => return Err(io("stat")(error.into())),
        };
        let Some(stat) = stat else {
            if before.is_some() && !self.populated.absent.contains(path) {
                self.push(Entry::new(path, EntryKind::Whiteout, 0), true, None)?;
            }
            return Ok(None);
        };
        let kind = FileType::from_raw_mode(stat.st_mode);
        let untouched = before.is_some() && self.populated.stamps.get(path) == Some(&Stamp::of(&stat));
        if kind == FileType::Directory {
            let fd = file::open_dir(dir, name).map_err(io("open"))?;
            let (xattrs, _) = attributes(sys::xattr::list(&fd), path, |key| sys::xattr::get(&fd, key))?;
            let entry = describe(path.to_vec(), &stat, Entry::dir(path, 0).kind, xattrs);
            let was = before.filter(|found| found.entry.is_dir());
            let same = untouched || was.is_some_and(|found| self.is_like(&entry, found.entry));
            self.push(entry, !same, None)?;
            return Ok(Some((fd, was.is_some())));
        }
        let several = kind == FileType::RegularFile && stat.st_nlink > 1;
        if untouched && !several {
            return Ok(None);
        }
        let entry = self.read(dir, name, path, &stat)?;
        let same = untouched
            || match before {
                None => false,
                Some(found) => {
                    let was = self.below.file_of(found).map_or(found.entry, |file| file.entry);
                    self.is_like(&entry, was) && self.holds_the_same(dir, name, &entry, was)?
                }
            };
        self.push(entry, !same, several.then_some((stat.st_dev, stat.st_ino)))?;
        Ok(None)
    }

    /// What stands on the disk, as an entry.
    fn read(&self, dir: &OwnedFd, name: &[u8], path: &[u8], stat: &Stat) -> Result<Entry, LayerError> {
        let (major, minor) = (fs::major(stat.st_rdev), fs::minor(stat.st_rdev));
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => Entry::file(path, u64::try_from(stat.st_size).unwrap_or(0), 0).kind,
            FileType::Symlink => {
                let target = file::readlink(dir, name).map_err(LayerError::io("readlink", path))?;
                return Ok(describe(path.to_vec(), stat, EntryKind::Symlink { target }, Vec::new()));
            }
            FileType::CharacterDevice if (major, minor) == (0, 0) => {
                let reason = "the device 0:0 stands for removed files";
                return Err(LayerError::Unrepresentable { path: show(path), reason });
            }
            FileType::CharacterDevice => EntryKind::CharDev { major, minor },
            FileType::BlockDevice => EntryKind::BlockDev { major, minor },
            FileType::Fifo => EntryKind::Fifo,
            _ => {
                let reason = "it is neither file, directory, link, device nor pipe";
                return Err(LayerError::Unrepresentable { path: show(path), reason });
            }
        };
        let (xattrs, _) = attributes(sys::xattr::list_at(dir, name), path, |key| sys::xattr::get_at(dir, name, key))?;
        Ok(describe(path.to_vec(), stat, kind, xattrs))
    }

    /// Whether all but the data is as it was put there.
    fn is_like(&self, now: &Entry, before: &Entry) -> bool {
        let kind = match (&now.kind, &before.kind) {
            (EntryKind::File { size: now, .. }, EntryKind::File { size: before, .. }) => now == before,
            (EntryKind::Dir { .. }, EntryKind::Dir { .. }) => true,
            (now, before) => now == before,
        };
        let owner = match self.populated.ownership {
            Ownership::Keep => (before.uid, before.gid),
            Ownership::Skip => self.own,
        };
        let mode = matches!(now.kind, EntryKind::Symlink { .. }) || now.mode == before.mode;
        let xattrs = now.xattrs == before.xattrs || self.populated.not_held.contains(&now.path);
        // Layers have whole seconds.
        kind && mode && xattrs && (now.uid, now.gid) == owner && now.mtime.0 == before.mtime.0
    }

    fn holds_the_same(&self, dir: &OwnedFd, name: &[u8], now: &Entry, before: &Entry) -> Result<bool, LayerError> {
        let EntryKind::File { digest, .. } = before.kind else { return Ok(true) };
        let mut data = file::open(dir, name).map_err(LayerError::io("open", &now.path))?;
        let mut hasher = blake3::Hasher::new();
        let mut buffer = vec![0; 1 << 18];
        loop {
            self.options.check()?;
            match data.read(&mut buffer).map_err(LayerError::io("read", &now.path))? {
                0 => return Ok(ContentDigest::from_bytes(*hasher.finalize().as_bytes()) == digest),
                length => {
                    hasher.update(&buffer[..length]);
                }
            }
        }
    }

    fn push(&mut self, entry: Entry, changed: bool, inode: Option<(u64, u64)>) -> Result<(), LayerError> {
        LayerError::check_length(&entry.path)?;
        self.path_bytes += entry.path.len() as u64;
        if self.path_bytes > MAX_PATHS {
            return Err(LayerError::TooManyPaths);
        }
        if let Some(inode) = inode {
            let (names, in_layer) = self.files.entry(inode).or_default();
            names.push(self.entries.len());
            *in_layer |= changed;
        }
        self.entries.push(Item { entry, changed, inode });
        Ok(())
    }

    /// What changed, all names of files of which one changed, and the directories on the way.
    fn chosen(mut self) -> Vec<Entry> {
        for (names, _) in self.files.values().filter(|(_, in_layer)| *in_layer) {
            names.iter().for_each(|&at| self.entries[at].changed = true);
        }
        let mut first: HashMap<(u64, u64), Vec<u8>> = HashMap::new();
        let mut chosen: Vec<Entry> = Vec::new();
        // Directories that were met and are not taken yet.
        let mut open: Vec<Entry> = Vec::new();
        for Item { mut entry, changed, inode } in self.entries {
            let above = split(&entry.path).0;
            while open.last().is_some_and(|dir| !super::is_within(above, &dir.path)) {
                open.pop();
            }
            if !changed {
                if entry.is_dir() {
                    open.push(entry);
                }
                continue;
            }
            chosen.append(&mut open);
            if let Some(inode) = inode {
                match first.entry(inode) {
                    std::collections::hash_map::Entry::Vacant(vacant) => {
                        vacant.insert(entry.path.clone());
                    }
                    std::collections::hash_map::Entry::Occupied(first) => {
                        entry.kind = EntryKind::Hardlink { target: first.get().clone() };
                        entry.xattrs.clear();
                    }
                }
            }
            chosen.push(entry);
        }
        chosen
    }
}
