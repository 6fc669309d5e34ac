//! The merged view of a stack of layers, computed from their indexes alone: no disk, no mount.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use graph::{ContentDigest, KeyHasher};

use super::entry::{Entry, EntryKind, cmp_paths, common, is_within, join, show, split};
use super::error::LayerError;
use super::index::{LayerIndex, hash_entry};

/// As Linux: so many symbolic links may be followed in one look-up.
const MAX_LINKS: u32 = 40;

/// Layers, the lowest first, seen as one file system.
#[derive(Clone, Default, Debug)]
pub struct Tree {
    layers: Vec<Arc<LayerIndex>>,
}

/// Something visible in a [`Tree`].
#[derive(Clone, Copy, Debug)]
pub struct Found<'a> {
    /// The layer that it shows from, 0 is the lowest.
    pub layer: usize,
    /// What that layer says. A directory's children may show from other layers too.
    pub entry: &'a Entry,
}

/// Where a path leads once all symbolic links on the way are followed inside the root.
#[derive(Clone, Debug)]
pub struct Resolved<'a> {
    /// No part of it but possibly the last is a symlink.
    pub path: Vec<u8>,
    /// `None` if nothing is there.
    pub found: Option<Found<'a>>,
}

/// The parts of some layers that make up one directory: the topmost layer first.
#[derive(Clone, Debug)]
struct Merged {
    parts: Vec<(usize, Range<usize>)>,
}

impl Tree {
    /// Stacks `layers`, the lowest first.
    #[must_use]
    pub fn new(layers: Vec<Arc<LayerIndex>>) -> Self {
        Self { layers }
    }

    /// The layers, the lowest first.
    #[must_use]
    pub fn layers(&self) -> &[Arc<LayerIndex>] {
        &self.layers
    }

    /// Puts a layer on top.
    pub fn push(&mut self, layer: Arc<LayerIndex>) {
        self.layers.push(layer);
    }

    /// What is at `path`, taken literally: a symlink in the middle of it leads nowhere.
    #[must_use]
    pub fn lookup(&self, path: &[u8]) -> Option<Found<'_>> {
        self.finger().lookup(path)
    }

    /// For many look-ups of neighbours.
    #[must_use]
    pub fn finger(&self) -> Finger<'_> {
        Finger { tree: self, path: Vec::new(), steps: Vec::new() }
    }

    /// Follows symbolic links as a process with this root would: absolute targets start at the root, `..` never leaves
    /// it. The last part is followed only if asked. A part that does not exist is no error: the rest of the path is then
    /// taken literally, which is what somebody who creates the path needs.
    pub fn resolve(&self, path: &[u8], follow_last: bool) -> Result<Resolved<'_>, LayerError> {
        let mut todo: Vec<Vec<u8>> = Vec::new();
        push_parts(&mut todo, path);
        let mut done: Vec<u8> = Vec::new();
        let mut links = 0;
        let mut finger = self.finger();
        while let Some(part) = todo.pop() {
            if part == b".." {
                done.truncate(split(&done).0.len());
                continue;
            }
            let next = join(&done, &part);
            match finger.lookup(&next).map(|found| &found.entry.kind) {
                Some(EntryKind::Symlink { target }) if follow_last || !todo.is_empty() => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(LayerError::Loop { path: show(path) });
                    }
                    if target.first() == Some(&b'/') {
                        done.clear();
                    }
                    push_parts(&mut todo, target);
                }
                _ => done = next,
            }
        }
        let found = finger.lookup(&done);
        Ok(Resolved { path: done, found })
    }

    /// The entries directly in the directory `path` (taken literally), sorted by name. Nothing for what is no directory.
    #[must_use]
    pub fn children(&self, path: &[u8]) -> Vec<Found<'_>> {
        let Some((_, dir)) = self.finger().find(path).cloned() else { return Vec::new() };
        let mut found = Vec::new();
        let mut cursor = Cursor::new(self, path.len(), dir);
        while let Some((child, _)) = cursor.next() {
            found.push(child);
        }
        found
    }

    /// Calls `visit` with everything visible at `path` (taken literally) and below, in the order of
    /// [`super::cmp_paths`]. Each entry comes as its layer has it; see [`Tree::file_of`] for hard links.
    pub fn walk<'a, E>(&'a self, path: &[u8], mut visit: impl FnMut(Found<'a>) -> Result<(), E>) -> Result<(), E> {
        let Some((found, dir)) = self.finger().find(path).cloned() else { return Ok(()) };
        visit(found)?;
        let mut stack = vec![Cursor::new(self, path.len(), dir)];
        while let Some(cursor) = stack.last_mut() {
            match cursor.next() {
                None => {
                    stack.pop();
                }
                Some((child, dir)) => {
                    visit(child)?;
                    if !dir.parts.is_empty() {
                        stack.push(Cursor::new(self, child.entry.path.len(), dir));
                    }
                }
            }
        }
        Ok(())
    }

    /// The regular file behind a file or hard link, in the same layer.
    #[must_use]
    pub fn file_of<'a>(&'a self, found: Found<'a>) -> Option<Found<'a>> {
        let entry = self.layers.get(found.layer)?.file_of(found.entry)?;
        Some(Found { layer: found.layer, entry })
    }

    /// Content, owner, mode, link targets and attributes of `path` (symbolic links followed) and all below, by names
    /// relative to it and without times: what a step that reads `path` depends on. `path`'s own name is not in it. Hard
    /// links count as the files they are, with the fact that they are linked.
    pub fn digest(&self, path: &[u8]) -> Result<ContentDigest, LayerError> {
        let resolved = self.resolve(path, true)?;
        if resolved.found.is_none() {
            return Err(LayerError::Missing { path: show(path) });
        }
        self.digest_exact(&resolved.path)
    }

    /// As [`Tree::digest`], with `path` taken literally: a symlink counts as the link it is.
    pub fn digest_exact(&self, path: &[u8]) -> Result<ContentDigest, LayerError> {
        let mut hasher = KeyHasher::new("tree/1");
        let mut seen = false;
        let mut inodes: HashMap<(usize, &[u8]), u64> = HashMap::new();
        self.walk(path, |found| {
            seen = true;
            let entry = found.entry;
            let name = entry.path.get(path.len()..).unwrap_or_default();
            hasher.field(name.strip_prefix(b"/").unwrap_or(name));
            match (&entry.kind, self.file_of(found)) {
                (EntryKind::Dir { .. }, _) => {
                    // Opaqueness is between layers; a merged tree has none.
                    let plain = Entry {
                        kind: EntryKind::Dir { opaque: false, implicit: false },
                        path: Vec::new(),
                        ..entry.clone()
                    };
                    hash_entry(&mut hasher, &plain);
                }
                (EntryKind::Hardlink { target }, None) => {
                    return Err(LayerError::LinkTarget { path: show(&entry.path), target: show(target) });
                }
                (EntryKind::File { .. } | EntryKind::Hardlink { .. }, Some(file)) => {
                    hash_entry(&mut hasher, file.entry);
                    let next = inodes.len() as u64;
                    hasher.number(*inodes.entry((file.layer, &file.entry.path)).or_insert(next));
                }
                _ => hash_entry(&mut hasher, entry),
            }
            Ok(())
        })?;
        if seen { Ok(hasher.finish()) } else { Err(LayerError::Missing { path: show(path) }) }
    }

    /// The root and its parts. A layer without any entry has no root of its own.
    fn root(&self) -> Option<Step<'_>> {
        let all = (0..self.layers.len()).rev().map(|layer| (layer, 0..self.layers[layer].entries().len()));
        self.merge(all.filter(|(_, range)| !range.is_empty()))
    }

    /// One step down into `path`, a child of the directory that `dir` is.
    fn step(&self, dir: &Merged, path: &[u8]) -> Option<Step<'_>> {
        // All that lies in a directory has its path, which need not be looked at again.
        let prefix = path.len() - split(path).1.len();
        self.merge(dir.parts.iter().filter_map(|(layer, range)| {
            let entries = &self.layers[*layer].entries()[range.clone()];
            let at = entries.binary_search_by(|entry| cmp_paths(&entry.path[prefix..], &path[prefix..])).ok()?;
            let at = range.start + at;
            Some((*layer, at..self.subtree_end(*layer, at, range.end)))
        }))
    }

    /// What shows at a path, given what each layer has there, topmost first: each range is an entry and its subtree.
    fn merge(&self, at: impl Iterator<Item = (usize, Range<usize>)>) -> Option<(Found<'_>, Merged)> {
        let mut top: Option<Found<'_>> = None;
        let mut parts = Vec::new();
        for (layer, range) in at {
            let entry = &self.layers[layer].entries()[range.start];
            let EntryKind::Dir { opaque, .. } = entry.kind else {
                if top.is_none() && entry.kind != EntryKind::Whiteout {
                    top = Some(Found { layer, entry });
                }
                break;
            };
            top.get_or_insert(Found { layer, entry });
            if range.len() > 1 {
                parts.push((layer, range.start + 1..range.end));
            }
            if opaque {
                break;
            }
        }
        top.map(|top| (top, Merged { parts }))
    }

    /// Where the subtree of entry `at` ends, which is before `limit`: found by doubling steps, since most are short.
    fn subtree_end(&self, layer: usize, at: usize, limit: usize) -> usize {
        let entries = self.layers[layer].entries();
        let path = &entries[at].path;
        if !entries[at].is_dir() || path.is_empty() {
            return if path.is_empty() { limit } else { at + 1 };
        }
        let (mut low, mut width) = (at, 1);
        while low + width < limit && is_within(&entries[low + width].path, path) {
            low += width;
            width *= 2;
        }
        let high = limit.min(low + width);
        low + entries[low..high].partition_point(|entry| is_within(&entry.path, path))
    }
}

/// What one step of a path led to.
type Step<'a> = (Found<'a>, Merged);

/// Looks paths up one after the other, and walks only where one differs from the one before: linear in the length of the
/// path, however deep it is.
#[derive(Clone)]
pub struct Finger<'a> {
    tree: &'a Tree,
    /// What was looked up last, as far as something is there.
    path: Vec<u8>,
    /// By the length of the path up to there; the root's is 0.
    steps: Vec<(usize, Step<'a>)>,
}

impl<'a> Finger<'a> {
    /// What is at `path`, taken literally.
    pub fn lookup(&mut self, path: &[u8]) -> Option<Found<'a>> {
        self.find(path).map(|(found, _)| *found)
    }

    fn find(&mut self, path: &[u8]) -> Option<&Step<'a>> {
        if self.steps.is_empty() {
            self.steps.push((0, self.tree.root()?));
        }
        let shared = common(&self.path, path);
        let stays = |end: usize| end == 0 || (end <= shared && matches!(path.get(end), None | Some(b'/')));
        while self.steps.last().is_some_and(|(end, _)| !stays(*end)) {
            self.steps.pop();
        }
        let mut end = self.steps.last().map_or(0, |(end, _)| *end);
        self.path.clear();
        self.path.extend_from_slice(&path[..end]);
        while end < path.len() {
            let start = if end == 0 { 0 } else { end + 1 };
            end = path[start..].iter().position(|&b| b == b'/').map_or(path.len(), |at| start + at);
            let (_, (_, dir)) = self.steps.last()?;
            let step = self.tree.step(dir, &path[..end])?;
            self.steps.push((end, step));
            self.path.extend_from_slice(&path[self.path.len()..end]);
        }
        self.steps.last().map(|(_, step)| step)
    }
}

/// Steps through the children of one merged directory.
struct Cursor<'a> {
    tree: &'a Tree,
    /// Length of the children's paths up to their names.
    prefix: usize,
    dir: Merged,
}

impl<'a> Cursor<'a> {
    fn new(tree: &'a Tree, dir: usize, parts: Merged) -> Self {
        Self { tree, prefix: if dir == 0 { 0 } else { dir + 1 }, dir: parts }
    }

    fn next(&mut self) -> Option<(Found<'a>, Merged)> {
        let tree = self.tree;
        let prefix = self.prefix;
        let head = |(layer, range): &(usize, Range<usize>)| {
            (!range.is_empty()).then(|| &tree.layers[*layer].entries()[range.start].path[prefix..])
        };
        loop {
            let name = self.dir.parts.iter().filter_map(head).min()?;
            let mut at = Vec::new();
            for part in &mut self.dir.parts {
                if head(part) == Some(name) {
                    let end = tree.subtree_end(part.0, part.1.start, part.1.end);
                    at.push((part.0, part.1.start..end));
                    part.1.start = end;
                }
            }
            if let Some(found) = tree.merge(at.into_iter()) {
                return Some(found);
            }
        }
    }
}

/// Puts the parts of `path` on a stack, the first on top.
fn push_parts(todo: &mut Vec<Vec<u8>>, path: &[u8]) {
    todo.extend(path.split(|&b| b == b'/').rev().filter(|part| !part.is_empty() && *part != b".").map(<[u8]>::to_vec));
}
