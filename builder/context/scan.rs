//! A directory of the caller as an index of entries, like that of a layer: what COPY reads and what keys are made of.
//!
//! Only wanted paths are walked, ignored ones are left out, and files are read only where the stat cache does not know
//! them. Nothing is copied.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use frontend::dockerignore::DirState;
use graph::ContentDigest;
use rayon::prelude::*;
use rustix::fs::{AtFlags, FileType, Stat};
use rustix::io::Errno;
use snapshotter::layer::{Entry, EntryKind, LayerIndex, Tree, ancestors, join, keeps_xattr, split};
use snapshotter::{StatCache, StatFacts, StatKey};

use super::wanted::{Reach, Wanted};
use super::{ContextError, Ignore};

/// A scanned directory.
#[derive(Clone)]
pub(super) struct Scan {
    /// What was found.
    pub(super) tree: Arc<Tree>,
    /// Where it lies.
    directory: Arc<OwnedFd>,
}

impl Scan {
    /// Walks `root`.
    ///
    /// # Errors
    /// A directory or file that cannot be read.
    pub(super) fn new(root: &Path, wanted: &Wanted, ignore: &Ignore, cache: &StatCache) -> Result<Self, ContextError> {
        let mut walk = Walk::new(root, wanted.clone(), ignore, cache)?;
        // A wanted path may lead through a link: what it points to is wanted as well.
        loop {
            walk.run()?;
            if !walk.follow_links() {
                break;
            }
        }
        let Walk { mut entries, files, directory, .. } = walk;
        let digests = digests(&directory, root, &entries, &files, cache)?;
        for (file, digest) in files.iter().zip(digests) {
            if let EntryKind::File { digest: slot, .. } = &mut entries[file.entry].kind {
                *slot = digest;
            }
        }
        let tree = Tree::new(vec![Arc::new(LayerIndex::new(entries))]);
        Ok(Self { tree: Arc::new(tree), directory: Arc::new(directory) })
    }

    /// Opens a file that the scan found.
    ///
    /// # Errors
    /// Those of open(2); a link put in its place meanwhile is refused.
    pub(super) fn open(&self, path: &[u8]) -> io::Result<File> {
        open_beneath(&self.directory, path)
    }
}

/// Opens a file below the root without following a link in the last place.
fn open_beneath(root: &OwnedFd, path: &[u8]) -> io::Result<File> {
    use rustix::fs::{Mode, OFlags};
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    Ok(File::from(rustix::fs::openat(root, path, flags, Mode::empty())?))
}

/// A directory still to be read.
struct Pending {
    path: Vec<u8>,
    /// What the rules know of it.
    state: DirState,
    /// All that is in it is wanted.
    all: bool,
}

/// Something that a directory has and the context may have.
struct Seen {
    path: Vec<u8>,
    stat: Stat,
    /// Of a regular file that was seen in this state before.
    known: Option<StatFacts>,
    /// Of a symbolic link.
    target: Vec<u8>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// A directory that is there only if something in it is: it is ignored, or only what is in it is wanted.
    passed: bool,
    /// Of a directory that is to be read.
    below: Option<Pending>,
}

/// A regular file that must be read.
struct Found {
    /// Its place among the entries.
    entry: usize,
    /// What stat said.
    key: StatKey,
}

/// So many names of a directory are worth another thread.
const CHUNK: usize = 64;
/// So many directories are looked into at the same time, at most.
const BATCH: usize = 32;
/// Fewer are not worth other threads.
const FEW: usize = 8;

struct Walk<'a> {
    root: &'a Path,
    directory: OwnedFd,
    wanted: Wanted,
    ignore: &'a Ignore,
    cache: &'a StatCache,
    entries: Vec<Entry>,
    files: Vec<Found>,
    /// First path of files with several names.
    links: HashMap<(u64, u64), Vec<u8>>,
    /// Directories that are part of the context if they hold something that is. Those that hold nothing that a pattern names
    /// are not there for BuildKit either, so that a pattern which leads nowhere is an error.
    passed: HashMap<Vec<u8>, Entry>,
}

impl<'a> Walk<'a> {
    fn new(root: &'a Path, wanted: Wanted, ignore: &'a Ignore, cache: &'a StatCache) -> Result<Self, ContextError> {
        let (entries, files) = (Vec::new(), Vec::new());
        let opened = sys::file::open_root(root);
        let directory = opened.map_err(|source| ContextError::Read { path: root.to_owned(), source })?;
        let (links, passed) = (HashMap::new(), HashMap::new());
        Ok(Self { root, directory, wanted, ignore, cache, entries, files, links, passed })
    }

    fn run(&mut self) -> Result<(), ContextError> {
        self.entries.clear();
        self.files.clear();
        self.links.clear();
        self.passed.clear();
        if self.wanted.is_empty() {
            return Ok(());
        }
        // Most of what was there is still there. Room that is not used costs nothing.
        self.entries.reserve(self.cache.len());
        // Every index has it; where it comes first, the others need not move.
        self.entries.push(Entry::new(*b"", EntryKind::Dir { opaque: false, implicit: true }, 0o755));
        let all = self.wanted.reach(b"") == Reach::All;
        let mut pending = vec![Pending { path: Vec::new(), state: self.ignore.root(), all }];
        while !pending.is_empty() {
            let batch = pending.split_off(pending.len().saturating_sub(BATCH));
            let seen: Vec<Vec<Seen>> = if batch.len() < FEW {
                batch.iter().map(|directory| self.contents(directory)).collect::<Result<_, _>>()?
            } else {
                batch.par_iter().map(|directory| self.contents(directory)).collect::<Result<_, _>>()?
            };
            for seen in seen.into_iter().flatten() {
                pending.extend(self.keep(seen));
            }
        }
        if self.entries.len() == 1 {
            self.entries.clear();
        }
        Ok(())
    }

    /// What there is in a directory, by name.
    fn contents(&self, directory: &Pending) -> Result<Vec<Seen>, ContextError> {
        let name: &[u8] = if directory.path.is_empty() { b"." } else { &directory.path };
        let read = || -> io::Result<_> {
            let opened = sys::file::open_dir(&self.directory, name)?;
            let mut names = names(&opened)?;
            names.sort_unstable();
            Ok((opened, names))
        };
        let read = read().map_err(|source| ContextError::Read { path: self.full(&directory.path), source });
        let (opened, names) = read?;
        let look = |name: Vec<u8>| self.look(directory, &opened, &name).transpose();
        if names.len() < 2 * CHUNK {
            return names.into_iter().filter_map(look).collect();
        }
        names.into_par_iter().with_min_len(CHUNK).filter_map(look).collect()
    }

    /// Looks at what is there, unless nobody wants it.
    fn look(&self, directory: &Pending, opened: &OwnedFd, name: &[u8]) -> Result<Option<Seen>, ContextError> {
        let path = join(&directory.path, name);
        let reach = if directory.all { Reach::All } else { self.wanted.reach(&path) };
        if reach == Reach::None {
            return Ok(None);
        }
        let read = |source| ContextError::Read { path: self.full(&path), source };
        let stat = match rustix::fs::statat(opened, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            // Gone since the directory was read.
            Err(Errno::NOENT) => return Ok(None),
            Err(error) => return Err(read(error.into())),
        };
        let kind = FileType::from_raw_mode(stat.st_mode);
        let patterns = self.ignore.patterns();
        let text = String::from_utf8_lossy(&path);
        let (mut ignored, mut below) = (false, None);
        // What has nothing in it does not lead to what is wanted.
        if reach == Reach::Below && !kind.is_dir() && !kind.is_symlink() {
            return Ok(None);
        }
        if kind.is_dir() {
            let decided = patterns.directory(&directory.state, &text);
            ignored = decided.verdict.ignored;
            let state = decided.state;
            below = decided.descend.then(|| Pending { path: path.clone(), state, all: reach == Reach::All });
        } else if !patterns.is_empty() {
            ignored = patterns.file(&directory.state, &text).ignored;
        }
        // Sockets mean nothing to anybody else.
        if (ignored && below.is_none()) || kind.is_socket() {
            return Ok(None);
        }
        let (mut target, mut xattrs) = (Vec::new(), Vec::new());
        let known = if kind.is_file() { self.cache.get(&StatKey::of(&stat)) } else { None };
        if kind.is_symlink() {
            target = sys::file::readlink(opened, name).map_err(read)?;
        } else if !known.is_some_and(|known| known.is_plain) {
            xattrs = self.xattrs(&path).map_err(read)?;
        }
        let passed = ignored || (reach == Reach::Below && kind.is_dir());
        Ok(Some(Seen { path, stat, known, target, xattrs, passed, below }))
    }

    fn xattrs(&self, path: &[u8]) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
        // Most files have none that matters: one call, nothing allocated.
        let mut buffer = [0; 512];
        let none = match rustix::fs::llistxattr(self.full(path), &mut buffer[..]) {
            Ok(length) => !buffer[..length].split(|byte| *byte == 0).any(keeps_xattr),
            Err(error) => error == rustix::io::Errno::OPNOTSUPP,
        };
        if none {
            return Ok(Vec::new());
        }
        let mut kept = Vec::new();
        for key in sys::xattr::list_at(&self.directory, path)?.into_iter().filter(|key| keeps_xattr(key)) {
            if let Some(value) = sys::xattr::get_at(&self.directory, path, &key)? {
                kept.push((key, value));
            }
        }
        kept.sort();
        Ok(kept)
    }

    /// Makes it part of the context; gives back the directory that is to be read.
    fn keep(&mut self, seen: Seen) -> Option<Pending> {
        let Seen { path, stat, known, target, xattrs, passed, below } = seen;
        let kind = self.kind(&path, &stat, target);
        let mtime = (stat.st_mtime, u32::try_from(stat.st_mtime_nsec).unwrap_or(0));
        let mut entry = Entry { mtime, xattrs, ..Entry::new(path, kind, stat.st_mode & 0o7777) };
        if passed {
            self.passed.insert(entry.path.clone(), entry);
            return below;
        }
        if !self.passed.is_empty() {
            for ancestor in ancestors(&entry.path) {
                self.entries.extend(self.passed.remove(ancestor));
            }
        }
        if let EntryKind::File { digest, .. } = &mut entry.kind {
            match known {
                Some(known) => *digest = known.digest,
                None => self.files.push(Found { entry: self.entries.len(), key: StatKey::of(&stat) }),
            }
        }
        self.entries.push(entry);
        below
    }

    fn kind(&mut self, path: &[u8], stat: &Stat, target: Vec<u8>) -> EntryKind {
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind.is_dir() {
            EntryKind::Dir { opaque: false, implicit: false }
        } else if kind.is_symlink() {
            EntryKind::Symlink { target }
        } else if kind.is_fifo() {
            EntryKind::Fifo
        } else if kind.is_char_device() || kind.is_block_device() {
            let (major, minor) = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
            match kind.is_char_device() {
                true => EntryKind::CharDev { major, minor },
                false => EntryKind::BlockDev { major, minor },
            }
        } else {
            if stat.st_nlink > 1 {
                let first = self.links.entry((stat.st_dev, stat.st_ino)).or_insert_with(|| path.to_vec());
                if first != path {
                    return EntryKind::Hardlink { target: first.clone() };
                }
            }
            EntryKind::File {
                size: u64::try_from(stat.st_size).unwrap_or(0),
                digest: ContentDigest::from_bytes([0; 32]),
                offset: None,
            }
        }
    }

    fn full(&self, path: &[u8]) -> PathBuf {
        self.root.join(std::ffi::OsStr::from_bytes(path))
    }

    /// Adds what wanted paths come to through the links that stand in them; whether that is something new to walk.
    fn follow_links(&mut self) -> bool {
        let mut new = false;
        for entry in &self.entries {
            if let EntryKind::Symlink { target } = &entry.kind {
                new |= self.wanted.follow(&entry.path, &lexical(split(&entry.path).0, target));
            }
        }
        new
    }
}

/// What an open directory has, in no order.
fn names(directory: &OwnedFd) -> io::Result<Vec<Vec<u8>>> {
    let mut names = Vec::new();
    for entry in rustix::fs::Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if !matches!(name, b"." | b"..") {
            names.push(name.to_vec());
        }
    }
    Ok(names)
}

/// `target` seen from `directory`, inside the root, without asking what is a link.
fn lexical(directory: &[u8], target: &[u8]) -> Vec<u8> {
    let start: &[u8] = if target.first() == Some(&b'/') { b"" } else { directory };
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in start.split(|byte| *byte == b'/').chain(target.split(|byte| *byte == b'/')) {
        match part {
            b"" | b"." => {}
            b".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    parts.join(&b'/')
}

/// The digests of files, in order, read on all cores where there are some.
fn digests(
    directory: &OwnedFd,
    root: &Path,
    entries: &[Entry],
    files: &[Found],
    cache: &StatCache,
) -> Result<Vec<ContentDigest>, ContextError> {
    let digest = |file: &Found| {
        let Entry { path, xattrs, .. } = &entries[file.entry];
        let failed = |source| ContextError::Read { path: root.join(std::ffi::OsStr::from_bytes(path)), source };
        let digest = open_beneath(directory, path).and_then(hash).map_err(failed)?;
        cache.put(&file.key, StatFacts { digest, is_plain: xattrs.is_empty() });
        Ok(digest)
    };
    if files.len() < FEW {
        return files.iter().map(digest).collect();
    }
    files.par_iter().map(digest).collect()
}

fn hash(mut file: File) -> io::Result<ContentDigest> {
    let mut hasher = blake3::Hasher::new();
    let mut buffer = [0; 1 << 16];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(ContentDigest::from_bytes(*hasher.finalize().as_bytes())),
            Ok(read) => hasher.update(&buffer[..read]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => &mut hasher,
            Err(error) => return Err(error),
        };
    }
}
