//! What a layer has written so far, in memory: names are resolved here and not on the disk, so the disk cannot lead
//! them astray, and nothing need be asked of it.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use graph::ContentDigest;

use super::entry::{Entry, EntryKind, MAX_PATH, MAX_PATHS, show};
use super::error::LayerError;
use super::index::LayerIndex;
use super::tree::{Finger, Found, Tree};

/// As Linux: so many symbolic links may be followed in one look-up.
const MAX_LINKS: u32 = 40;

/// A node of [`State`].
pub(crate) type NodeId = usize;
/// A file of [`State`], which several nodes may be.
pub(crate) type InodeId = usize;

/// The root's node.
pub(crate) const ROOT: NodeId = 0;

/// Owner, mode, time and attributes.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Meta {
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: (i64, u32),
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Meta {
    pub(crate) fn of(entry: &Entry) -> Self {
        Self { mode: entry.mode, uid: entry.uid, gid: entry.gid, mtime: entry.mtime, xattrs: entry.xattrs.clone() }
    }

    /// Of a directory that nobody described.
    pub(crate) fn invented() -> Self {
        Self { mode: 0o755, ..Self::default() }
    }

    pub(crate) fn entry(&self, path: &[u8], kind: EntryKind) -> Entry {
        Entry { xattrs: self.xattrs.clone(), ..self.entry_without_xattrs(path, kind) }
    }

    fn entry_without_xattrs(&self, path: &[u8], kind: EntryKind) -> Entry {
        let Self { mode, uid, gid, mtime, .. } = *self;
        Entry { path: path.to_vec(), kind, mode, uid, gid, mtime, xattrs: Vec::new() }
    }

    /// Whether all but the attributes is the same.
    pub(crate) fn is_like(&self, other: &Self) -> bool {
        (self.mode, self.uid, self.gid, self.mtime) == (other.mode, other.uid, other.gid, other.mtime)
    }
}

#[derive(Clone, Debug)]
pub(crate) enum NodeKind {
    Dir {
        children: BTreeMap<Vec<u8>, NodeId>,
        opaque: bool,
        implicit: bool,
        /// Nothing of the layers below shows in it: it or a directory above is opaque.
        hidden: bool,
    },
    File(InodeId),
    /// A symlink, device, pipe or whiteout; a hard link to what only the layers below can tell.
    Other(EntryKind),
}

#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) parent: NodeId,
    pub(crate) name: Vec<u8>,
    /// Length of its path.
    length: usize,
    pub(crate) kind: NodeKind,
    /// Of files it is the inode's that counts.
    pub(crate) meta: Meta,
    /// A member of this layer put it there or something in it. What is only here since a link needed a file of the layers below
    /// is as theirs: a removal takes it away.
    pub(crate) own: bool,
}

#[derive(Clone, Debug)]
pub(crate) struct Inode {
    pub(crate) size: u64,
    pub(crate) digest: ContentDigest,
    pub(crate) offset: Option<u64>,
    pub(crate) meta: Meta,
}

/// What a path leads to, for resolving.
#[derive(Clone, Copy)]
enum Place {
    /// Something of this layer.
    Node(NodeId),
    /// Nothing of this layer; the layers below may show.
    Below,
    /// Nothing at all.
    Nowhere,
}

/// One name further.
enum Step {
    Symlink(Vec<u8>),
    To(Place),
}

/// The layer so far, upon the layers below if they are known.
pub(crate) struct State<'a> {
    below: Option<&'a Tree>,
    /// Looks into `below`.
    finger: Option<Finger<'a>>,
    nodes: Vec<Node>,
    /// Bytes of all paths that the index will have, and the longest.
    path_bytes: u64,
    longest: usize,
    inodes: Vec<Inode>,
    assumed: BTreeSet<Vec<u8>>,
    targets: BTreeSet<Vec<u8>>,
    /// The last parent that was resolved, as written and as it is. Adding names cannot change it, only replacing can.
    last_parent: Option<(Vec<u8>, NodeId)>,
}

impl<'a> State<'a> {
    pub(crate) fn new(below: Option<&'a Tree>) -> Self {
        let found = below.and_then(|tree| tree.lookup(b""));
        let root = Node {
            parent: ROOT,
            name: Vec::new(),
            length: 0,
            kind: NodeKind::Dir { children: BTreeMap::new(), opaque: false, implicit: true, hidden: false },
            meta: found.map_or_else(Meta::invented, |found| Meta::of(found.entry)),
            own: true,
        };
        Self {
            below,
            finger: below.map(Tree::finger),
            nodes: vec![root],
            path_bytes: 0,
            longest: 0,
            inodes: Vec::new(),
            assumed: BTreeSet::new(),
            targets: BTreeSet::new(),
            last_parent: None,
        }
    }

    pub(crate) fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id]
    }

    pub(crate) fn node_mut(&mut self, id: NodeId) -> &mut Node {
        &mut self.nodes[id]
    }

    pub(crate) fn inode(&self, id: InodeId) -> &Inode {
        &self.inodes[id]
    }

    pub(crate) fn inode_mut(&mut self, id: InodeId) -> &mut Inode {
        &mut self.inodes[id]
    }

    pub(crate) fn add_inode(&mut self, inode: Inode) -> InodeId {
        self.inodes.push(inode);
        self.inodes.len() - 1
    }

    pub(crate) fn child(&self, dir: NodeId, name: &[u8]) -> Option<NodeId> {
        match &self.nodes[dir].kind {
            NodeKind::Dir { children, .. } => children.get(name).copied(),
            _ => None,
        }
    }

    pub(crate) fn is_dir(&self, id: NodeId) -> bool {
        matches!(self.nodes[id].kind, NodeKind::Dir { .. })
    }

    pub(crate) fn is_hidden(&self, id: NodeId) -> bool {
        is_hidden(&self.nodes[id])
    }

    pub(crate) fn path(&self, mut id: NodeId) -> Vec<u8> {
        let mut names = Vec::new();
        while id != ROOT {
            names.push(id);
            id = self.nodes[id].parent;
        }
        let mut path = Vec::new();
        for id in names.into_iter().rev() {
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(&self.nodes[id].name);
        }
        path
    }

    /// The node at a path taken literally.
    pub(crate) fn find(&self, path: &[u8]) -> Option<NodeId> {
        let mut node = ROOT;
        for part in path.split(|&b| b == b'/').filter(|part| !part.is_empty()) {
            node = self.child(node, part)?;
        }
        Some(node)
    }

    /// What the layers below show at a path taken literally, unless this layer hides it.
    pub(crate) fn below(&self, path: &[u8]) -> Option<Found<'a>> {
        if self.shows_below(path) { self.below?.lookup(path) } else { None }
    }

    /// Whether the layers below could show something at a path taken literally.
    pub(crate) fn shows_below(&self, path: &[u8]) -> bool {
        let mut node = ROOT;
        for part in path.split(|&b| b == b'/').filter(|part| !part.is_empty()) {
            match &self.nodes[node].kind {
                NodeKind::Dir { children, hidden, .. } => match children.get(part) {
                    Some(&child) => node = child,
                    None => return !hidden,
                },
                _ => return false,
            }
        }
        false
    }

    /// The directory that the clean name `dir` leads to, symbolic links followed, made where it does not exist. `made` is
    /// called for each directory that is new to this layer, `removed` for what had to give way. `own` says whether it is a member
    /// of this layer that goes there.
    pub(crate) fn parent(
        &mut self,
        dir: &[u8],
        own: bool,
        made: &mut impl FnMut(&Self, NodeId) -> Result<(), LayerError>,
        removed: &mut impl FnMut(&Self, NodeId) -> Result<(), LayerError>,
    ) -> Result<NodeId, LayerError> {
        if let Some((last, node)) = &self.last_parent
            && last == dir
        {
            return Ok(*node);
        }
        let path = self.resolve(dir)?;
        let (mut node, mut length) = (ROOT, 0);
        for part in path.split(|&b| b == b'/').filter(|part| !part.is_empty()) {
            length += part.len() + usize::from(length > 0);
            let existing = self.child(node, part);
            node = match existing {
                Some(child) if self.is_dir(child) => child,
                _ => {
                    let below = match &mut self.finger {
                        Some(finger) if existing.is_none() && !is_hidden(&self.nodes[node]) => {
                            finger.lookup(&path[..length]).filter(|found| found.entry.is_dir())
                        }
                        _ => None,
                    };
                    // What this layer put there, or removed, is gone from below as well.
                    let replaced = existing.is_some();
                    if let Some(old) = existing {
                        removed(self, old)?;
                        self.detach(old);
                    }
                    let hidden = replaced || self.is_hidden(node);
                    let kind = NodeKind::Dir { children: BTreeMap::new(), opaque: replaced, implicit: !hidden, hidden };
                    let meta = below.map_or_else(Meta::invented, |found| Meta::of(found.entry));
                    let child = self.attach(node, part, kind, meta);
                    self.nodes[child].own = false;
                    made(self, child)?;
                    child
                }
            };
            self.nodes[node].own |= own;
        }
        self.last_parent = Some((dir.to_vec(), node));
        Ok(node)
    }

    /// Follows the symbolic links of a clean path, of this layer and of those below. All parts count, so this is for
    /// directories that names are in.
    pub(crate) fn resolve(&mut self, path: &[u8]) -> Result<Vec<u8>, LayerError> {
        let mut todo: Vec<Vec<u8>> = Vec::new();
        let push = |todo: &mut Vec<Vec<u8>>, path: &[u8]| {
            let parts = path.split(|&b| b == b'/').rev().filter(|part| !part.is_empty() && *part != b".");
            todo.extend(parts.map(<[u8]>::to_vec));
        };
        push(&mut todo, path);
        let mut done: Vec<u8> = Vec::new();
        // Where each part of `done` leads, by its length.
        let mut places = vec![(0, Place::Node(ROOT))];
        let mut links = 0;
        while let Some(part) = todo.pop() {
            if part == b".." {
                if places.len() > 1 {
                    places.pop();
                }
                done.truncate(places.last().map_or(0, |(length, _)| *length));
                continue;
            }
            let (before, here) = places.last().copied().unwrap_or((0, Place::Node(ROOT)));
            if before > 0 {
                done.push(b'/');
            }
            done.extend_from_slice(&part);
            if done.len() > MAX_PATH {
                LayerError::check_length(&done)?;
            }
            match self.step(here, &part, &done) {
                Step::Symlink(target) => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(LayerError::Loop { path: show(path) });
                    }
                    if target.first() == Some(&b'/') {
                        places.truncate(1);
                    }
                    done.truncate(places.last().map_or(0, |(length, _)| *length));
                    push(&mut todo, &target);
                }
                Step::To(place) => places.push((done.len(), place)),
            }
        }
        self.check_size()?;
        Ok(done)
    }

    /// Looks at `name` in `here`, which is `path`. Where this layer has nothing and those below are not known, it notes that
    /// it took for granted that there is no symlink.
    fn step(&mut self, here: Place, name: &[u8], path: &[u8]) -> Step {
        if let Place::Node(node) = here {
            match &self.nodes[node].kind {
                NodeKind::Dir { children, hidden, .. } => match children.get(name) {
                    Some(&child) => {
                        return match &self.nodes[child].kind {
                            NodeKind::Other(EntryKind::Symlink { target }) => Step::Symlink(target.clone()),
                            _ => Step::To(Place::Node(child)),
                        };
                    }
                    None if *hidden => return Step::To(Place::Nowhere),
                    None => {}
                },
                _ => return Step::To(Place::Nowhere),
            }
        }
        if matches!(here, Place::Nowhere) {
            return Step::To(Place::Nowhere);
        }
        match &mut self.finger {
            Some(finger) => match finger.lookup(path).map(|found| &found.entry.kind) {
                Some(EntryKind::Symlink { target }) => Step::Symlink(target.clone()),
                _ => Step::To(Place::Below),
            },
            None => {
                if self.assumed.insert(path.to_vec()) {
                    self.path_bytes += path.len() as u64;
                }
                Step::To(Place::Below)
            }
        }
    }

    /// Whether the layer has grown beyond what any real one is.
    pub(crate) fn check_size(&self) -> Result<(), LayerError> {
        if self.path_bytes > MAX_PATHS {
            return Err(LayerError::TooManyPaths);
        }
        if self.longest > MAX_PATH {
            let limit = "a path may have 4095 bytes, with its symbolic links followed";
            return Err(LayerError::TooLong { path: "a member of the archive".to_owned(), limit });
        }
        Ok(())
    }

    /// Notes that a hard link's target must be in the layers below.
    pub(crate) fn await_target(&mut self, target: &[u8]) {
        self.targets.insert(target.to_vec());
    }

    /// Puts a new node into a directory, where no such name may be.
    pub(crate) fn attach(&mut self, dir: NodeId, name: &[u8], kind: NodeKind, meta: Meta) -> NodeId {
        if self.below.is_some() {
            // A name of its own in place of a symlink below leads elsewhere from now on.
            self.last_parent = None;
        }
        let id = self.nodes.len();
        let above = self.nodes[dir].length;
        let length = above + usize::from(above > 0) + name.len();
        self.path_bytes += length as u64;
        self.longest = self.longest.max(length);
        self.nodes.push(Node { parent: dir, name: name.to_vec(), length, kind, meta, own: true });
        if let NodeKind::Dir { children, .. } = &mut self.nodes[dir].kind {
            children.insert(name.to_vec(), id);
        }
        id
    }

    /// Takes a node and all below it out.
    pub(crate) fn detach(&mut self, id: NodeId) {
        self.last_parent = None;
        let (parent, name) = (self.nodes[id].parent, std::mem::take(&mut self.nodes[id].name));
        if let NodeKind::Dir { children, .. } = &mut self.nodes[parent].kind {
            children.remove(&name);
        }
        self.nodes[id].name = name;
    }

    /// Makes a directory hide what is below, and all directories in it. Removals in it have nothing to remove any more, and
    /// `removed` is called for what was only brought here from below.
    pub(crate) fn hide(
        &mut self,
        id: NodeId,
        removed: &mut impl FnMut(&Self, NodeId) -> Result<(), LayerError>,
    ) -> Result<(), LayerError> {
        if let NodeKind::Dir { opaque, .. } = &mut self.nodes[id].kind {
            *opaque = true;
        }
        let mut todo = vec![id];
        while let Some(id) = todo.pop() {
            let NodeKind::Dir { children, hidden, .. } = &mut self.nodes[id].kind else { continue };
            if std::mem::replace(hidden, true) {
                continue;
            }
            let children: Vec<NodeId> = children.values().copied().collect();
            for child in children {
                if matches!(self.nodes[child].kind, NodeKind::Other(EntryKind::Whiteout)) {
                    self.detach(child);
                } else if self.nodes[child].own {
                    todo.push(child);
                } else {
                    removed(self, child)?;
                    self.detach(child);
                }
            }
        }
        Ok(())
    }

    /// The layers below, if they are known.
    pub(crate) fn tree(&self) -> Option<&'a Tree> {
        self.below
    }

    /// Calls `visit` with every node but the root, parents first, in sorted order.
    pub(crate) fn walk<E>(&self, mut visit: impl FnMut(NodeId, &[u8]) -> Result<(), E>) -> Result<(), E> {
        let children = |id: NodeId| match &self.nodes[id].kind {
            NodeKind::Dir { children, .. } => Some(children.iter()),
            _ => None,
        };
        let mut path: Vec<u8> = Vec::new();
        let mut stack: Vec<_> = children(ROOT).map(|children| (0, children)).into_iter().collect();
        while let Some((length, iter)) = stack.last_mut() {
            path.truncate(*length);
            let Some((name, &id)) = iter.next() else {
                stack.pop();
                continue;
            };
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(name);
            visit(id, &path)?;
            if let Some(children) = children(id) {
                stack.push((path.len(), children));
            }
        }
        Ok(())
    }

    /// The layer as an index. Of several names of a file the first in order is the file, the others are links to it.
    pub(crate) fn index(&self) -> LayerIndex {
        let dir = |node: &Node, path: &[u8]| match node.kind {
            NodeKind::Dir { opaque, implicit, .. } => Some(node.meta.entry(path, EntryKind::Dir { opaque, implicit })),
            _ => None,
        };
        let mut entries = Vec::with_capacity(self.nodes.len());
        entries.extend(dir(&self.nodes[ROOT], b""));
        let mut first: HashMap<InodeId, usize> = HashMap::new();
        let done: Result<(), std::convert::Infallible> = self.walk(|id, path| {
            let node = &self.nodes[id];
            let entry = match &node.kind {
                NodeKind::Dir { .. } => dir(node, path),
                NodeKind::Other(kind) => Some(node.meta.entry(path, kind.clone())),
                NodeKind::File(inode_id) => {
                    let inode = &self.inodes[*inode_id];
                    Some(match first.get(inode_id) {
                        None => {
                            first.insert(*inode_id, entries.len());
                            let Inode { size, digest, offset, .. } = *inode;
                            inode.meta.entry(path, EntryKind::File { size, digest, offset })
                        }
                        Some(&at) => {
                            let first: &Entry = &entries[at];
                            let kind = EntryKind::Hardlink { target: first.path.clone() };
                            inode.meta.entry_without_xattrs(path, kind)
                        }
                    })
                }
            };
            entries.extend(entry);
            Ok(())
        });
        match done {
            Ok(()) => {
                let list = |paths: &BTreeSet<Vec<u8>>| paths.iter().cloned().collect();
                LayerIndex::unmended(entries, list(&self.assumed), list(&self.targets))
            }
            Err(never) => match never {},
        }
    }
}

/// Whether nothing of the layers below shows in a directory.
fn is_hidden(node: &Node) -> bool {
    matches!(node.kind, NodeKind::Dir { hidden: true, .. })
}
