//! The layer that a FileOp is about to make: changes upon a base, before anything is written.
//!
//! All look-ups go through the index of the base and the changes so far; neither a mount nor an unpacked base is needed.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap, hash_map};
use std::sync::Arc;

use snapshotter::layer::{Entry, EntryKind, Tree, ancestors, cmp_paths, is_within, join, split};

use super::FileError;

/// Where the bytes of a planned file come from.
#[derive(Clone, Debug)]
pub(crate) enum Content {
    /// Not a regular file.
    None,
    /// Here.
    Bytes(Arc<[u8]>),
    /// A file of source number `source`, in its layer `layer` under `path`.
    Source { source: usize, layer: usize, path: Vec<u8> },
    /// Part of the spool file, where unpacked archives wait.
    Spooled { offset: u64 },
}

/// One planned entry.
#[derive(Clone, Debug)]
pub(crate) struct Planned {
    pub(crate) entry: Entry,
    pub(crate) content: Content,
    /// Regular files with the same number are one file under several names.
    pub(crate) inode: Option<u64>,
}

impl Planned {
    pub(crate) fn new(entry: Entry, content: Content) -> Self {
        Self { entry, content, inode: None }
    }
}

/// Changes upon a base tree. Paths are relative to the root, without a leading slash; the root is empty.
pub(crate) struct Staging<'a> {
    base: &'a Tree,
    changes: BTreeMap<Vec<u8>, Planned>,
    /// Given to what has no time of its own.
    now: (i64, u32),
    inodes: u64,
    /// The directory asked about last, and whether what the base has in it shows: most questions are about siblings.
    shown: RefCell<Option<(Vec<u8>, bool)>>,
}

/// As many links as BuildKit follows.
const MAX_LINKS: usize = 255;

impl<'a> Staging<'a> {
    pub(crate) fn new(base: &'a Tree, now: (i64, u32)) -> Self {
        Self { base, changes: BTreeMap::new(), now, inodes: 0, shown: RefCell::default() }
    }

    /// What is at this very path, links not followed. The root is always a directory.
    pub(crate) fn get(&self, path: &[u8]) -> Option<&Entry> {
        match self.changes.get(path) {
            Some(planned) => (!matches!(planned.entry.kind, EntryKind::Whiteout)).then_some(&planned.entry),
            None => self.below_changes(path),
        }
    }

    /// What the base shows at this very path, as far as changes above it let it.
    fn below_changes(&self, path: &[u8]) -> Option<&'a Entry> {
        if !self.shows(split(path).0) {
            return None;
        }
        self.base.lookup(path).map(|found| found.entry)
    }

    /// Whether what the base has in a directory can be seen.
    fn shows(&self, directory: &[u8]) -> bool {
        if directory.is_empty() {
            return true;
        }
        if let Some((known, shows)) = &*self.shown.borrow()
            && known == directory
        {
            return *shows;
        }
        let hides = |path: &[u8]| self.changes.get(path).is_some_and(|planned| hides_below(&planned.entry.kind));
        let hidden = ancestors(directory).chain([directory]).any(hides);
        let shows = !hidden && self.base.lookup(directory).is_some_and(|found| found.entry.is_dir());
        self.shown.replace(Some((directory.to_vec(), shows)));
        shows
    }

    pub(crate) fn is_dir(&self, path: &[u8]) -> bool {
        path.is_empty() || self.get(path).is_some_and(Entry::is_dir)
    }

    /// Follows all links in `path`, inside the root. What does not exist is taken as it is written.
    pub(crate) fn resolve(&self, path: &[u8]) -> Result<Vec<u8>, FileError> {
        self.resolve_below(b"", path)
    }

    /// As [`Self::resolve`], with the directory `root` as root.
    pub(crate) fn resolve_below(&self, root: &[u8], path: &[u8]) -> Result<Vec<u8>, FileError> {
        let mut rest: Vec<Vec<u8>> = components(path).rev().collect();
        let mut done: Vec<u8> = root.to_vec();
        let mut links = 0;
        while let Some(name) = rest.pop() {
            if name == b".." {
                done.truncate(split(&done).0.len().max(root.len()));
                continue;
            }
            let next = join(&done, &name);
            if let Some(Entry { kind: EntryKind::Symlink { target }, .. }) = self.get(&next) {
                links += 1;
                if links > MAX_LINKS {
                    return Err(FileError::TooManyLinks { path: lossy(path) });
                }
                if target.first() == Some(&b'/') {
                    done.truncate(root.len());
                }
                rest.extend(components(target).rev());
            } else {
                done = next;
            }
        }
        Ok(done)
    }

    /// Takes away what is at `path` and below.
    pub(crate) fn remove(&mut self, path: &[u8]) {
        for key in self.below(path) {
            self.changes.remove(&key);
        }
        self.changes.remove(path);
        if self.below_changes(path).is_some() {
            let entry = Entry::new(path, EntryKind::Whiteout, 0);
            self.changes.insert(path.to_vec(), Planned::new(entry, Content::None));
        }
        self.forget(path);
    }

    /// Something changed at `path`.
    fn forget(&self, path: &[u8]) {
        let mut shown = self.shown.borrow_mut();
        if shown.as_ref().is_some_and(|(known, _)| is_within(known, path)) {
            *shown = None;
        }
    }

    fn below(&self, path: &[u8]) -> Vec<Vec<u8>> {
        let prefix = [path, b"/"].concat();
        let range = self.changes.range(prefix.clone()..);
        range.map(|(key, _)| key.clone()).take_while(|key| key.starts_with(&prefix)).collect()
    }

    /// Puts an entry at its path; its parent must exist. A directory over a removed directory does not show what was in
    /// it.
    pub(crate) fn put(&mut self, mut planned: Planned) {
        let path = planned.entry.path.clone();
        if let EntryKind::Dir { opaque, .. } = &mut planned.entry.kind {
            *opaque |= match self.changes.get(&path).map(|before| &before.entry.kind) {
                Some(EntryKind::Dir { opaque, .. }) => *opaque,
                Some(_) => self.below_changes(&path).is_some_and(Entry::is_dir),
                None => false,
            };
        }
        self.forget(&path);
        self.changes.insert(path, planned);
    }

    /// Makes `path`, whose links are already followed, a directory, and all its parents.
    pub(crate) fn make_dirs(&mut self, path: &[u8], mode: u32, owner: Option<(u32, u32)>) -> Result<(), FileError> {
        if self.is_dir(path) {
            return Ok(());
        }
        for part in ancestors(path).chain([path]) {
            if self.is_dir(part) {
                continue;
            }
            if self.get(part).is_some() {
                return Err(FileError::NotADirectory { path: lossy(part) });
            }
            let mut entry = self.directory(part, mode);
            (entry.uid, entry.gid) = owner.unwrap_or((0, 0));
            self.put(Planned::new(entry, Content::None));
        }
        Ok(())
    }

    /// A root-owned directory made now.
    pub(crate) fn directory(&self, path: &[u8], mode: u32) -> Entry {
        Entry { mtime: self.now, ..Entry::dir(path, mode) }
    }

    pub(crate) fn now(&self) -> (i64, u32) {
        self.now
    }

    /// A number for a file that may get several names.
    pub(crate) fn new_inode(&mut self) -> u64 {
        self.inodes += 1;
        self.inodes
    }

    /// The planned change at this very path.
    pub(crate) fn planned(&self, path: &[u8]) -> Option<&Planned> {
        self.changes.get(path)
    }

    /// Gives the planned file at `path` a number, so that another name can share it.
    pub(crate) fn share(&mut self, path: &[u8]) -> Option<Planned> {
        let inode = self.new_inode();
        let planned = self.changes.get_mut(path)?;
        planned.inode.get_or_insert(inode);
        Some(planned.clone())
    }

    /// The layer, in the order of a tar. Parents that the base has come with it, as the base has them.
    pub(crate) fn finish(mut self) -> Vec<Planned> {
        let mut parents: Vec<Vec<u8>> = Vec::new();
        let mut last: &[u8] = b"";
        for path in self.changes.keys() {
            let directory = split(path).0;
            if directory != last {
                last = directory;
                let mut ancestor = directory;
                while !ancestor.is_empty() && !self.changes.contains_key(ancestor) {
                    parents.push(ancestor.to_vec());
                    ancestor = split(ancestor).0;
                }
            }
        }
        for path in parents {
            let entry = match self.base.lookup(&path) {
                Some(found) => Entry { path: path.clone(), ..carried(found.entry.clone()) },
                None => self.directory(&path, 0o755),
            };
            self.changes.entry(path).or_insert(Planned::new(entry, Content::None));
        }
        let mut planned: Vec<Planned> = self.changes.into_values().collect();
        planned.sort_by(|a, b| cmp_paths(&a.entry.path, &b.entry.path));
        link_later_names(&mut planned);
        planned
    }
}

/// Of several names of one file the first carries the data, the others are links to it.
fn link_later_names(planned: &mut [Planned]) {
    let mut first: HashMap<u64, Vec<u8>> = HashMap::new();
    for planned in planned {
        let Some(inode) = planned.inode else { continue };
        match first.entry(inode) {
            hash_map::Entry::Vacant(vacant) => {
                vacant.insert(planned.entry.path.clone());
            }
            hash_map::Entry::Occupied(first) => {
                planned.entry.kind = EntryKind::Hardlink { target: first.get().clone() };
                planned.content = Content::None;
            }
        }
    }
}

/// A directory of a lower layer, as an entry of this one.
fn carried(entry: Entry) -> Entry {
    let kind = match entry.kind {
        EntryKind::Dir { .. } => EntryKind::Dir { opaque: false, implicit: false },
        other => other,
    };
    Entry { kind, ..entry }
}

fn hides_below(kind: &EntryKind) -> bool {
    !matches!(kind, EntryKind::Dir { opaque: false, .. })
}

/// The names of a path; empty ones and `.` are dropped.
pub(crate) fn components(path: &[u8]) -> impl DoubleEndedIterator<Item = Vec<u8>> + '_ {
    path.split(|byte| *byte == b'/').filter(|name| !name.is_empty() && *name != b".").map(<[u8]>::to_vec)
}

/// For messages.
pub(crate) fn lossy(path: &[u8]) -> String {
    format!("/{}", String::from_utf8_lossy(path.strip_prefix(b"/").unwrap_or(path)))
}
