//! A directory of the caller as an index of entries, like that of a layer: what COPY reads and what keys are made of.
//!
//! Only wanted paths are walked, ignored ones are left out, and files are read only where the stat cache does not know
//! them. Nothing is copied.

use std::collections::HashMap;
use std::fs::{File, Metadata};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use graph::ContentDigest;
use rayon::prelude::*;
use frontend::dockerignore::DirState;
use snapshotter::layer::{Entry, EntryKind, LayerIndex, Tree, ancestors, keeps_xattr};
use snapshotter::{StatCache, StatKey};

use super::wanted::{Reach, Wanted};
use super::{ContextError, Ignore};

/// A scanned directory.
#[derive(Clone)]
pub(super) struct Scan {
    /// What was found.
    pub(super) tree: Arc<Tree>,
    /// Where it lies.
    pub(super) root: Arc<PathBuf>,
}

impl Scan {
    /// Walks `root`.
    ///
    /// # Errors
    /// A directory or file that cannot be read.
    pub(super) fn new(root: &Path, wanted: &Wanted, ignore: &Ignore, cache: &StatCache) -> Result<Self, ContextError> {
        let mut walk = Walk::new(root, wanted.clone(), ignore)?;
        // A wanted path may lead through a link: what it points to is wanted as well.
        loop {
            walk.run()?;
            if !walk.follow_links() {
                break;
            }
        }
        let Walk { mut entries, files, .. } = walk;
        for ((index, _), digest) in files.iter().zip(digests(root, &entries, &files, cache)?) {
            if let EntryKind::File { digest: slot, .. } = &mut entries[*index].kind {
                *slot = digest;
            }
        }
        let tree = Tree::new(vec![Arc::new(LayerIndex::new(entries))]);
        Ok(Self { tree: Arc::new(tree), root: Arc::new(root.to_owned()) })
    }

    /// Opens a file that the scan found.
    ///
    /// # Errors
    /// Those of open(2); a link put in its place meanwhile is refused.
    pub(super) fn open(&self, path: &[u8]) -> io::Result<File> {
        open_beneath(&self.root, path)
    }
}

/// Opens `root/path` without following a link in the last place.
fn open_beneath(root: &Path, path: &[u8]) -> io::Result<File> {
    let path = root.join(std::ffi::OsStr::from_bytes(path));
    let flags = (rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK).bits();
    File::options().read(true).custom_flags(flags as i32).open(path)
}

struct Walk<'a> {
    root: &'a Path,
    directory: OwnedFd,
    wanted: Wanted,
    ignore: &'a Ignore,
    entries: Vec<Entry>,
    /// Regular files: their place in `entries` and what stat said.
    files: Vec<(usize, StatKey)>,
    /// First path of files with several names.
    links: HashMap<(u64, u64), Vec<u8>>,
    /// Ignored directories that are read for an exception's sake: part of the context if they hold something that is.
    passed: HashMap<Vec<u8>, Entry>,
}

impl<'a> Walk<'a> {
    fn new(root: &'a Path, wanted: Wanted, ignore: &'a Ignore) -> Result<Self, ContextError> {
        let (entries, files) = (Vec::new(), Vec::new());
        let opened = sys::file::open_root(root);
        let directory = opened.map_err(|source| ContextError::Read { path: root.to_owned(), source })?;
        Ok(Self { root, directory, wanted, ignore, entries, files, links: HashMap::new(), passed: HashMap::new() })
    }

    fn run(&mut self) -> Result<(), ContextError> {
        self.entries.clear();
        self.files.clear();
        self.links.clear();
        self.passed.clear();
        if self.wanted.is_empty() {
            return Ok(());
        }
        let mut pending = vec![(Vec::new(), self.ignore.root())];
        while let Some((directory, state)) = pending.pop() {
            let mut names = self.names(&directory)?;
            names.sort_unstable();
            for name in names {
                let path = if directory.is_empty() { name } else { [directory.as_slice(), &name].join(&b'/') };
                pending.extend(self.visit(path, &state)?);
            }
        }
        Ok(())
    }

    fn names(&self, directory: &[u8]) -> Result<Vec<Vec<u8>>, ContextError> {
        let path = self.full(directory);
        let read = || std::fs::read_dir(&path)?.map(|entry| Ok(entry?.file_name().into_vec())).collect::<io::Result<_>>();
        read().map_err(|source| ContextError::Read { path: path.clone(), source })
    }

    /// Records what is at `path`; gives it back, with what the rules know of it, if its content is to be walked.
    fn visit(&mut self, path: Vec<u8>, parent: &DirState) -> Result<Option<(Vec<u8>, DirState)>, ContextError> {
        if self.wanted.reach(&path) == Reach::None {
            return Ok(None);
        }
        let full = self.full(&path);
        let metadata = match std::fs::symlink_metadata(&full) {
            Ok(metadata) => metadata,
            // Gone since the directory was read.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(ContextError::Read { path: full, source }),
        };
        let patterns = self.ignore.patterns();
        let text = String::from_utf8_lossy(&path);
        let (ignored, below) = if metadata.is_dir() {
            let verdict = patterns.directory(parent, &text);
            (verdict.verdict.ignored, verdict.descend.then_some(verdict.state))
        } else {
            (patterns.file(parent, &text).ignored, None)
        };
        if ignored && below.is_none() {
            return Ok(None);
        }
        let Some(kind) = self.kind(&path, &full, &metadata)? else { return Ok(None) };
        let entry = Entry {
            mtime: (metadata.mtime(), metadata.mtime_nsec() as u32),
            xattrs: self.xattrs(&path, &full, &metadata)?,
            ..Entry::new(path.clone(), kind, metadata.mode() & 0o7777)
        };
        if ignored {
            self.passed.insert(path.clone(), entry);
        } else {
            self.keep(entry, &metadata);
        }
        Ok(below.map(|state| (path, state)))
    }

    fn keep(&mut self, entry: Entry, metadata: &Metadata) {
        if !self.passed.is_empty() {
            for ancestor in ancestors(&entry.path) {
                self.entries.extend(self.passed.remove(ancestor));
            }
        }
        if let EntryKind::File { .. } = entry.kind {
            self.files.push((self.entries.len(), StatKey::of(metadata)));
        }
        self.entries.push(entry);
    }

    fn kind(&mut self, path: &[u8], full: &Path, metadata: &Metadata) -> Result<Option<EntryKind>, ContextError> {
        let read = |source| ContextError::Read { path: full.to_owned(), source };
        let kind = metadata.file_type();
        Ok(Some(if kind.is_file() {
            if metadata.nlink() > 1 {
                let first = self.links.entry((metadata.dev(), metadata.ino())).or_insert_with(|| path.to_vec());
                if first != path {
                    return Ok(Some(EntryKind::Hardlink { target: first.clone() }));
                }
            }
            EntryKind::File { size: metadata.len(), digest: ContentDigest::from_bytes([0; 32]), offset: None }
        } else if kind.is_dir() {
            EntryKind::Dir { opaque: false, implicit: false }
        } else if kind.is_symlink() {
            EntryKind::Symlink { target: std::fs::read_link(full).map_err(read)?.into_os_string().into_vec() }
        } else if kind.is_fifo() {
            EntryKind::Fifo
        } else if kind.is_char_device() || kind.is_block_device() {
            let (major, minor) = (rustix::fs::major(metadata.rdev()), rustix::fs::minor(metadata.rdev()));
            match kind.is_char_device() {
                true => EntryKind::CharDev { major, minor },
                false => EntryKind::BlockDev { major, minor },
            }
        } else {
            // Sockets mean nothing to anybody else.
            return Ok(None);
        }))
    }

    fn xattrs(&self, path: &[u8], full: &Path, metadata: &Metadata) -> Result<Vec<(Vec<u8>, Vec<u8>)>, ContextError> {
        if metadata.file_type().is_symlink() {
            return Ok(Vec::new());
        }
        let read = || -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
            let mut kept = Vec::new();
            for key in sys::xattr::list_at(&self.directory, path)?.into_iter().filter(|key| keeps_xattr(key)) {
                if let Some(value) = sys::xattr::get_at(&self.directory, path, &key)? {
                    kept.push((key, value));
                }
            }
            kept.sort();
            Ok(kept)
        };
        read().map_err(|source| ContextError::Read { path: full.to_owned(), source })
    }

    fn full(&self, path: &[u8]) -> PathBuf {
        self.root.join(std::ffi::OsStr::from_bytes(path))
    }

    /// Adds what wanted paths come to through the links that stand in them; whether that is something new to walk.
    fn follow_links(&mut self) -> bool {
        let mut new = false;
        for entry in &self.entries {
            if let EntryKind::Symlink { target } = &entry.kind {
                let directory = entry.path.iter().rposition(|byte| *byte == b'/').map_or(&b""[..], |end| &entry.path[..end]);
                new |= self.wanted.follow(&entry.path, &lexical(directory, target));
            }
        }
        new
    }
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

/// The digests of all files, in order: known ones from the cache, the others read on all cores.
fn digests(
    root: &Path,
    entries: &[Entry],
    files: &[(usize, StatKey)],
    cache: &StatCache,
) -> Result<Vec<ContentDigest>, ContextError> {
    files
        .par_iter()
        .with_min_len(64)
        .map(|(index, key)| {
            if let Some(digest) = cache.get(key) {
                return Ok(digest);
            }
            let path = &entries[*index].path;
            let digest = hash(root, path).map_err(|source| ContextError::Read {
                path: root.join(std::ffi::OsStr::from_bytes(path)),
                source,
            })?;
            cache.put(key, digest);
            Ok(digest)
        })
        .collect()
}

fn hash(root: &Path, path: &[u8]) -> io::Result<ContentDigest> {
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(open_beneath(root, path)?)?;
    Ok(ContentDigest::from_bytes(*hasher.finalize().as_bytes()))
}
