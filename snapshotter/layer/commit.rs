//! From an overlay's upper directory to a tar stream, and from an unpacked layer to its bytes.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::path::Path;

use graph::{ContentDigest, Digest};
use rayon::prelude::*;
use rustix::fs::{self, AtFlags, FileType, OFlags};
use sys::file;
use sys::path::{Links, open};
use sys::xattr;

use super::apply::Ownership;
use super::entry::{Entry, EntryKind, MAX_PATHS, join, keeps_xattr, show};
use super::error::LayerError;
use super::index::{LayerIndex, implicit_dir};
use super::tree::{Finger, Tree};
use super::write::{Expect, LayerWriter, WRITER_VERSION};

/// Files up to this size are read by several threads at once, larger ones as they are hashed.
const SMALL: u64 = 256 * 1024;
/// So many bytes of small files are held at a time, twice.
const BATCH: u64 = 4 * 1024 * 1024;

/// How an upper directory is read.
#[derive(Clone, Copy, Default)]
pub struct CommitOptions<'a> {
    /// The layers that were below, to drop whiteouts and opaque marks that hide nothing (overlay marks every new
    /// directory). Without it they are all kept.
    pub below: Option<&'a Tree>,
    /// Whose files are: where all belong to one id on the disk, what was there before still belongs to whom it did.
    pub ownership: Ownership,
    /// The version of the writer, where a layer is made again; otherwise the newest.
    pub version: Option<u32>,
    /// Asked for every entry; once it says yes, that is the end.
    pub cancelled: Option<&'a (dyn Fn() -> bool + Sync)>,
}

impl CommitOptions<'_> {
    /// A step cannot give files away where there is one id. What it changed, the disk says, belongs to that id, whoever it
    /// belonged to before; the layers below know better.
    pub(super) fn keep_owners(&self, entries: &mut [Entry]) {
        let (Ownership::Skip, Some(below)) = (self.ownership, self.below) else { return };
        let mut finger = below.finger();
        for entry in entries.iter_mut().filter(|entry| !matches!(entry.kind, EntryKind::Whiteout)) {
            let Some(found) = finger.lookup(&entry.path) else { continue };
            let was = below.file_of(found).map_or(found.entry, |file| file.entry);
            (entry.uid, entry.gid) = (was.uid, was.gid);
        }
    }

    pub(super) fn check(&self) -> Result<(), LayerError> {
        if self.cancelled.is_some_and(|cancelled| cancelled()) { Err(LayerError::Cancelled) } else { Ok(()) }
    }
}

/// A layer that an upper directory stands for.
#[derive(Clone, Debug)]
pub struct Committed {
    /// sha256 of the tar that [`write_upper`] makes.
    pub diff_id: Digest,
    /// Digest of everything but times.
    pub content: ContentDigest,
    /// Length of that tar.
    pub size: u64,
    /// What is in it.
    pub index: LayerIndex,
}

/// Hashes the layer that the upper directory `upper` stands for, without writing it anywhere. Nothing may change in it
/// meanwhile.
///
/// As BuildKit's overlay differ, it has every directory on the way to a change, but not the root. Sockets are left out.
pub fn commit_upper(upper: &Path, options: &CommitOptions<'_>) -> Result<Committed, LayerError> {
    let root = open_dir(upper)?;
    let below = options.below.map(Tree::finger);
    let walk = Walk { options, below, served: false, names: HashMap::new(), entries: Vec::new(), path_bytes: 0 };
    let mut entries = walk.run(&root)?;
    options.keep_owners(&mut entries);
    let mut writer = LayerWriter::of_version(options.version.unwrap_or(WRITER_VERSION), io::sink());
    write_entries(&mut writer, &root, &entries, Expect::Nothing, options)?;
    let (written, _) = writer.finish()?;
    Ok(Committed { diff_id: written.diff_id, content: written.content, size: written.size, index: written.index })
}

/// The layer that an upper directory of fuse-overlayfs stands for, written to `out`. That program has several ways to say what was
/// removed: overlayfs's, and files with names of their own where the disk cannot hold those.
///
/// # Errors
/// As [`commit_upper`].
pub fn commit_served<W: Write>(
    upper: &Path,
    options: &CommitOptions<'_>,
    out: W,
) -> Result<(Committed, W), LayerError> {
    let root = open_dir(upper)?;
    let below = options.below.map(Tree::finger);
    let walk = Walk { options, below, served: true, names: HashMap::new(), entries: Vec::new(), path_bytes: 0 };
    let mut entries = walk.run(&root)?;
    options.keep_owners(&mut entries);
    let mut writer = LayerWriter::new(out);
    write_entries(&mut writer, &root, &entries, Expect::Nothing, options)?;
    let (written, out) = writer.finish()?;
    let committed =
        Committed { diff_id: written.diff_id, content: written.content, size: written.size, index: written.index };
    Ok((committed, out))
}

/// Takes the marks of removals out of an upper directory, whose index tells them.
///
/// # Errors
/// The disk.
pub fn remove_marks(upper: &Path) -> Result<(), LayerError> {
    let root = open_dir(upper)?;
    let mut pending = vec![(Vec::new(), root)];
    while let Some((path, dir)) = pending.pop() {
        for name in names(&dir, &path)? {
            let at = join(&path, &name);
            let io = |op| LayerError::io(op, &at);
            let stat = fs::statat(&dir, &*name, AtFlags::SYMLINK_NOFOLLOW).map_err(|e| io("stat")(e.into()))?;
            match FileType::from_raw_mode(stat.st_mode) {
                FileType::Directory => {
                    let below = file::open_dir(&dir, &name).map_err(io("open"))?;
                    pending.push((at, below));
                }
                kind if name.starts_with(MARK) || (kind == FileType::CharacterDevice && stat.st_rdev == 0) => {
                    file::unlink(&dir, &name).map_err(io("unlink"))?;
                }
                _ => {}
            }
        }
    }
    Ok(())
}

/// What names of files begin with that say that something is removed, as in the tar of a layer.
const MARK: &[u8] = b".wh.";
/// Those that hide all that is below the directory that they are in.
const OPAQUE: &[&[u8]] = &[b".wh..wh..opq", b".wh..opq"];

/// Makes the bytes of a layer again from its directory, as that version of the writer made them ([`super::can_write`]).
/// Whoever stores or sends them verifies the diff id.
pub fn write_upper(dir: &Path, index: &LayerIndex, version: u32, out: impl Write) -> Result<(), LayerError> {
    let root = open_dir(dir)?;
    let mut writer = LayerWriter::of_version(version, out);
    write_entries(&mut writer, &root, index.entries(), Expect::Trusted, &CommitOptions::default())?;
    writer.finish()?;
    Ok(())
}

pub(super) fn open_dir(path: &Path) -> Result<OwnedFd, LayerError> {
    file::open_root(path).map_err(|source| LayerError::Io { op: "open", path: path.display().to_string(), source })
}

/// Feeds the writer. While it hashes one batch of files, the next is read and, if asked for, digested.
pub(super) fn write_entries<W: Write>(
    writer: &mut LayerWriter<W>,
    root: &OwnedFd,
    entries: &[Entry],
    expect: Expect,
    options: &CommitOptions<'_>,
) -> Result<(), LayerError> {
    let batches = batches(entries);
    let mut batches = batches.into_iter();
    let mut ready = batches.next().map(|batch| (batch, load(root, batch, expect)));
    while let Some((batch, loaded)) = ready {
        options.check()?;
        let write = || {
            let mut entries = batch.iter().zip(loaded);
            entries.try_for_each(|(entry, loaded)| write_entry(writer, root, entry, loaded, expect))
        };
        let Some(next) = batches.next() else { return write() };
        let mut coming = None;
        rayon::in_place_scope(|scope| {
            let coming = &mut coming;
            scope.spawn(move |_| *coming = Some(load(root, next, expect)));
            write()
        })?;
        ready = Some(next).zip(coming);
    }
    Ok(())
}

/// Cuts `entries` so that each part has about [`BATCH`] bytes of small files.
fn batches(entries: &[Entry]) -> Vec<&[Entry]> {
    let mut batches = Vec::new();
    let (mut start, mut bytes) = (0, 0);
    for (at, entry) in entries.iter().enumerate() {
        // An entry costs something however small it is.
        bytes += 512 + small(entry).unwrap_or(0);
        if bytes >= BATCH {
            batches.push(&entries[start..=at]);
            (start, bytes) = (at + 1, 0);
        }
    }
    if start < entries.len() {
        batches.push(&entries[start..]);
    }
    batches
}

/// The size of a file that is read ahead.
fn small(entry: &Entry) -> Option<u64> {
    match entry.kind {
        EntryKind::File { size, .. } if size <= SMALL => Some(size),
        _ => None,
    }
}

/// The data of a small file, and their digest where it was asked for.
type Loaded = Option<Result<(Vec<u8>, ContentDigest), LayerError>>;

/// So many entries are worth a thread of their own.
const SHARE: usize = 32;

fn load(root: &OwnedFd, batch: &[Entry], expect: Expect) -> Vec<Loaded> {
    let load = |entry: &Entry| {
        let size = small(entry)?;
        let EntryKind::File { digest, .. } = entry.kind else { return None };
        let read = || -> io::Result<Vec<u8>> {
            let mut data = Vec::with_capacity(usize::try_from(size).unwrap_or(0) + 1);
            // A byte more than expected tells that the file grew.
            open_file(root, &entry.path)?.take(size + 1).read_to_end(&mut data)?;
            Ok(data)
        };
        Some(read().map_err(LayerError::io("read", &entry.path)).map(|data| {
            let digest = if expect == Expect::Trusted { digest } else { ContentDigest::of(&data) };
            (data, digest)
        }))
    };
    // Waking other threads takes longer than what most steps change.
    if batch.len() <= SHARE {
        batch.iter().map(load).collect()
    } else {
        batch.par_iter().with_min_len(SHARE).map(load).collect()
    }
}

fn open_file(root: &OwnedFd, path: &[u8]) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    Ok(File::from(open(root, path, Links::Refuse, flags, 0)?))
}

fn write_entry<W: Write>(
    writer: &mut LayerWriter<W>,
    root: &OwnedFd,
    entry: &Entry,
    loaded: Loaded,
    expect: Expect,
) -> Result<(), LayerError> {
    let mut entry = entry.clone();
    match loaded {
        Some(loaded) => {
            let (data, computed) = loaded?;
            if let EntryKind::File { digest, .. } = &mut entry.kind {
                *digest = computed;
            }
            writer.append_file(entry, &*data, Expect::Trusted).map(|_| ())
        }
        None if matches!(entry.kind, EntryKind::File { .. }) => {
            let data = open_file(root, &entry.path).map_err(LayerError::io("open", &entry.path))?;
            writer.append_file(entry, data, expect).map(|_| ())
        }
        None => writer.append(entry),
    }
}

/// Lists an upper directory in the order of a layer.
struct Walk<'a> {
    options: &'a CommitOptions<'a>,
    below: Option<Finger<'a>>,
    /// Whether fuse-overlayfs wrote it.
    served: bool,
    /// Files with several names, by device and inode: the first name found.
    names: HashMap<(u64, u64), Vec<u8>>,
    entries: Vec<Entry>,
    path_bytes: u64,
}

impl Walk<'_> {
    fn run(mut self, root: &OwnedFd) -> Result<Vec<Entry>, LayerError> {
        let stat = fs::fstat(root).map_err(|e| LayerError::io("stat", b"")(e.into()))?;
        let (xattrs, _) = attributes(xattr::list(root), b"", |key| xattr::get(root, key))?;
        let mut top = describe(Vec::new(), &stat, implicit_dir(b"").kind, xattrs);
        top.mtime.1 = 0;
        self.entries.push(top);
        let mut stack = vec![(
            Vec::new(),
            self.names(root, b"")?,
            file::open_dir(root, b".").map_err(LayerError::io("open", b""))?,
        )];
        while let Some((dir, todo, fd)) = stack.last_mut() {
            let Some(name) = todo.pop() else {
                stack.pop();
                continue;
            };
            let path = join(dir, &name);
            if let Some(below) = self.entry(fd, &name, &path)? {
                stack.push((path.clone(), self.names(&below, &path)?, below));
            }
        }
        Ok(self.entries)
    }

    /// The names in a directory that a layer has: a mark stands where what it removes would stand.
    fn names(&self, dir: &OwnedFd, path: &[u8]) -> Result<Vec<Vec<u8>>, LayerError> {
        let mut names = names(dir, path)?;
        if self.served {
            names.retain(|name| !OPAQUE.contains(&&**name));
            for name in &mut names {
                if let Some(removed) = name.strip_prefix(MARK) {
                    *name = removed.to_vec();
                }
            }
            names.sort_unstable_by(|a, b| b.cmp(a));
            names.dedup();
        }
        Ok(names)
    }

    /// Notes one name; returns the directory if it is one.
    fn entry(&mut self, dir: &OwnedFd, name: &[u8], path: &[u8]) -> Result<Option<OwnedFd>, LayerError> {
        let io = |op| LayerError::io(op, path);
        let stat = match fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
            // There is only the mark of it.
            Err(rustix::io::Errno::NOENT) if self.served => None,
            other => Some(other.map_err(|e| io("stat")(e.into()))?),
        };
        self.options.check()?;
        LayerError::check_length(path)?;
        self.path_bytes += path.len() as u64;
        if self.path_bytes > MAX_PATHS {
            return Err(LayerError::TooManyPaths);
        }
        let removed =
            |stat: &fs::Stat| FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0;
        let Some(stat) = stat.filter(|stat| !removed(stat)) else {
            if self.below.as_mut().is_none_or(|below| below.lookup(path).is_some()) {
                self.entries.push(Entry::new(path, EntryKind::Whiteout, 0));
            }
            return Ok(None);
        };
        let kind = FileType::from_raw_mode(stat.st_mode);
        let (major, minor) = (fs::major(stat.st_rdev), fs::minor(stat.st_rdev));
        if kind == FileType::Socket {
            return Ok(None);
        }
        let mut fd = None;
        let (xattrs, opaque) = match kind {
            FileType::Symlink => (Vec::new(), false),
            FileType::Directory => {
                let opened = file::open_dir(dir, name).map_err(io("open"))?;
                let (kept, mut opaque) = attributes(xattr::list(&opened), path, |key| xattr::get(&opened, key))?;
                opaque |= self.served
                    && OPAQUE.iter().any(|mark| fs::statat(&opened, *mark, AtFlags::SYMLINK_NOFOLLOW).is_ok());
                fd = Some(opened);
                (kept, opaque)
            }
            _ => attributes(xattr::list_at(dir, name), path, |key| xattr::get_at(dir, name, key))?,
        };
        // A directory is only hidden by one of its own name.
        let is_dir_below = |below: &mut Finger<'_>| below.lookup(path).is_some_and(|found| found.entry.is_dir());
        let opaque = opaque && self.below.as_mut().is_none_or(is_dir_below);
        let kind = match kind {
            FileType::Directory => EntryKind::Dir { opaque, implicit: false },
            FileType::Symlink => EntryKind::Symlink { target: file::readlink(dir, name).map_err(io("readlink"))? },
            FileType::CharacterDevice => EntryKind::CharDev { major, minor },
            FileType::BlockDevice => EntryKind::BlockDev { major, minor },
            FileType::Fifo => EntryKind::Fifo,
            FileType::RegularFile => {
                let first = (stat.st_nlink > 1).then(|| self.names.entry((stat.st_dev, stat.st_ino)));
                match first {
                    Some(std::collections::hash_map::Entry::Occupied(first)) => {
                        EntryKind::Hardlink { target: first.get().clone() }
                    }
                    other => {
                        if let Some(std::collections::hash_map::Entry::Vacant(vacant)) = other {
                            vacant.insert(path.to_vec());
                        }
                        Entry::file(path, u64::try_from(stat.st_size).unwrap_or(0), 0).kind
                    }
                }
            }
            _ => {
                let reason = "it is neither file, directory, link, device nor pipe";
                return Err(LayerError::Unrepresentable { path: show(path), reason });
            }
        };
        let xattrs = if matches!(kind, EntryKind::Hardlink { .. }) { Vec::new() } else { xattrs };
        self.entries.push(describe(path.to_vec(), &stat, kind, xattrs));
        Ok(fd)
    }
}

pub(super) fn describe(path: Vec<u8>, stat: &fs::Stat, kind: EntryKind, xattrs: Vec<(Vec<u8>, Vec<u8>)>) -> Entry {
    Entry {
        path,
        kind,
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        mtime: (stat.st_mtime, 0),
        xattrs,
    }
}

/// The names in a directory, the last first, as a stack gives them back sorted.
pub(super) fn names(dir: &OwnedFd, path: &[u8]) -> Result<Vec<Vec<u8>>, LayerError> {
    let io = |error: rustix::io::Errno| LayerError::io("read directory", path)(error.into());
    let mut names = Vec::new();
    for item in fs::Dir::read_from(dir).map_err(io)? {
        let item = item.map_err(io)?;
        let name = item.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(name.to_vec());
        }
    }
    names.sort_unstable_by(|a, b| b.cmp(a));
    Ok(names)
}

/// Attributes by name.
pub(super) type Xattrs = Vec<(Vec<u8>, Vec<u8>)>;

/// What of the attributes belongs to the layer, and whether overlay marked the directory as opaque. Marks of overlay
/// features that we never switch on mean that the data are not all here.
pub(super) fn attributes(
    names: io::Result<Vec<Vec<u8>>>,
    path: &[u8],
    get: impl Fn(&[u8]) -> io::Result<Option<Vec<u8>>>,
) -> Result<(Xattrs, bool), LayerError> {
    let names = names.map_err(LayerError::io("listxattr", path))?;
    let mut kept = Vec::new();
    let mut opaque = false;
    for name in names {
        let prefixes = [&b"trusted.overlay."[..], b"user.overlay.", b"user.fuseoverlayfs."];
        let own = prefixes.iter().find_map(|prefix| name.strip_prefix(*prefix));
        match own {
            Some(b"redirect" | b"metacopy") => {
                let reason = "overlayfs keeps a part of it elsewhere (redirect_dir or metacopy)";
                return Err(LayerError::Unrepresentable { path: show(path), reason });
            }
            Some(b"opaque") => {
                let value = get(&name).map_err(LayerError::io("getxattr", path))?;
                opaque |= value.is_some_and(|value| value == b"y");
            }
            _ if name.starts_with(b"user.fuseoverlayfs.") => {}
            _ if keeps_xattr(&name) => {
                if let Some(value) = get(&name).map_err(LayerError::io("getxattr", path))? {
                    kept.push((name, value));
                }
            }
            _ => {}
        }
    }
    kept.sort();
    Ok((kept, opaque))
}
