//! The layer that a FileOp is about to make: changes upon a base, before anything is written.
//!
//! All look-ups go through the index of the base and the changes so far; neither a mount nor an unpacked base is needed.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap, hash_map};
use std::sync::Arc;

use snapshotter::layer::{
    Entry, EntryKind, Finger, LayerError, MAX_PATH, MAX_PATHS, Tree, ancestors, cmp_paths, is_within, split,
};

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
    changes: BTreeMap<Vec<u8>, Planned>,
    /// Given to what has no time of its own.
    now: (i64, u32),
    inodes: u64,
    /// Attributes of files with several names. One name carries them in the end; each having them all would cost memory as
    /// no archive costs its maker.
    shared: HashMap<u64, Xattrs>,
    /// Looks into the base.
    finger: RefCell<Finger<'a>>,
    /// The directory asked about last.
    shown: RefCell<Shown>,
    /// Bytes of all paths of the layer.
    path_bytes: u64,
}

type Xattrs = Vec<(Vec<u8>, Vec<u8>)>;

/// Whether what the base has in a directory shows, for one directory and all above it: most questions are about neighbours.
#[derive(Default)]
struct Shown {
    directory: Vec<u8>,
    /// By the length of the path, the root's first.
    steps: Vec<(usize, bool)>,
}

const SETGID: u32 = 0o2000;

/// As many links as BuildKit follows.
const MAX_LINKS: usize = 255;

impl<'a> Staging<'a> {
    pub(crate) fn new(base: &'a Tree, now: (i64, u32)) -> Self {
        Self {
            changes: BTreeMap::new(),
            now,
            inodes: 0,
            shared: HashMap::new(),
            finger: RefCell::new(base.finger()),
            shown: RefCell::default(),
            path_bytes: 0,
        }
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
        self.in_base(path)
    }

    fn in_base(&self, path: &[u8]) -> Option<&'a Entry> {
        self.finger.borrow_mut().lookup(path).map(|found| found.entry)
    }

    /// Whether what the base has in a directory can be seen.
    fn shows(&self, directory: &[u8]) -> bool {
        let mut shown = self.shown.borrow_mut();
        shown.keep(|known| is_within(directory, known));
        if shown.steps.is_empty() {
            let hides = self.changes.get(&b""[..]).is_some_and(|planned| hides_below(&planned.entry.kind));
            shown.steps.push((0, !hides));
        }
        while let Some(&(length, shows)) = shown.steps.last()
            && length < directory.len()
        {
            let start = if length == 0 { 0 } else { length + 1 };
            let end = directory[start..].iter().position(|&b| b == b'/').map_or(directory.len(), |at| start + at);
            let part = &directory[..end];
            let hides = |planned: &Planned| hides_below(&planned.entry.kind);
            let shows =
                shows && !self.changes.get(part).is_some_and(hides) && self.in_base(part).is_some_and(Entry::is_dir);
            shown.steps.push((end, shows));
        }
        shown.directory.clear();
        shown.directory.extend_from_slice(directory);
        shown.steps.last().is_some_and(|(_, shows)| *shows)
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
            let before = done.len();
            if name == b".." {
                done.truncate(split(&done).0.len().max(root.len()));
                continue;
            }
            if before > 0 {
                done.push(b'/');
            }
            done.extend_from_slice(&name);
            if done.len() > MAX_PATH {
                LayerError::check_length(&done)?;
            }
            if let Some(Entry { kind: EntryKind::Symlink { target }, .. }) = self.get(&done) {
                links += 1;
                if links > MAX_LINKS {
                    return Err(FileError::TooManyLinks { path: lossy(path) });
                }
                rest.extend(components(target).rev());
                done.truncate(if target.first() == Some(&b'/') { root.len() } else { before });
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
        self.shown.borrow_mut().keep(|known| !is_within(known, path));
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
        if let Some(inode) = planned.inode {
            let xattrs = std::mem::take(&mut planned.entry.xattrs);
            self.shared.entry(inode).or_insert(xattrs);
        }
        self.forget(&path);
        self.path_bytes += path.len() as u64;
        self.changes.insert(path, planned);
    }

    /// Whether the layer has grown beyond what any real one is.
    pub(crate) fn check_size(&self) -> Result<(), FileError> {
        if self.path_bytes > MAX_PATHS { Err(LayerError::TooManyPaths.into()) } else { Ok(()) }
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
            // As the kernel has it: in a directory with setgid what is made belongs to its group, and has setgid as well.
            if let Some(parent) = self.get(split(part).0).filter(|parent| parent.mode & SETGID != 0) {
                (entry.gid, entry.mode) = (parent.gid, entry.mode | SETGID);
            }
            if let Some(owner) = owner {
                (entry.uid, entry.gid) = owner;
            }
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
        if planned.inode.is_none() {
            planned.inode = Some(inode);
            self.shared.insert(inode, std::mem::take(&mut planned.entry.xattrs));
        }
        Some(planned.clone())
    }

    /// The layer, in the order of a tar. Parents that the base has come with it, as the base has them.
    pub(crate) fn finish(self) -> Vec<Planned> {
        let mut parents: BTreeSet<&[u8]> = BTreeSet::new();
        let mut last: &[u8] = b"";
        for path in self.changes.keys() {
            let directory = split(path).0;
            if directory != last {
                last = directory;
                let mut ancestor = directory;
                while !ancestor.is_empty() && !self.changes.contains_key(ancestor) && parents.insert(ancestor) {
                    ancestor = split(ancestor).0;
                }
            }
        }
        let parent = |path: &[u8]| match self.in_base(path) {
            Some(found) => Entry { path: path.to_vec(), ..carried(found.clone()) },
            None => self.directory(path, 0o755),
        };
        let parents: Vec<Entry> = parents.into_iter().map(parent).collect();
        let mut planned: Vec<Planned> = self.changes.into_values().collect();
        planned.extend(parents.into_iter().map(|entry| Planned::new(entry, Content::None)));
        planned.sort_by(|a, b| cmp_paths(&a.entry.path, &b.entry.path));
        link_later_names(&mut planned, self.shared);
        planned
    }
}

impl Shown {
    /// Forgets the directories that do not fit, which lie below those that do.
    fn keep(&mut self, fits: impl Fn(&[u8]) -> bool) {
        while self.steps.last().is_some_and(|(length, _)| !fits(&self.directory[..*length])) {
            self.steps.pop();
        }
        let length = self.steps.last().map_or(0, |(length, _)| *length);
        self.directory.truncate(length);
    }
}

/// Of several names of one file the first carries the data and the attributes, the others are links to it.
fn link_later_names(planned: &mut [Planned], mut shared: HashMap<u64, Xattrs>) {
    let mut first: HashMap<u64, Vec<u8>> = HashMap::new();
    for planned in planned {
        let Some(inode) = planned.inode else { continue };
        match first.entry(inode) {
            hash_map::Entry::Vacant(vacant) => {
                vacant.insert(planned.entry.path.clone());
                if let Some(xattrs) = shared.remove(&inode) {
                    planned.entry.xattrs = xattrs;
                }
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
