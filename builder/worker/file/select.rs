//! What a COPY takes out of its source: the paths that it names and, below them, what `--exclude` and `--parents` leave.
//!
//! Copying and keying both go through here, so that a step's key covers exactly what the step would copy.

use std::collections::HashMap;

use frontend::dockerignore::{DirState, Patterns};
use graph::CopyAction;
use snapshotter::layer::{Entry, EntryKind, Found, Tree, hash_entry, is_within, join, split};

use super::wildcard::{self, Pattern};
use super::{FileError, staging};

/// One path that a source pattern names.
pub(super) struct Root {
    /// As found by its name: the last part is the copy's name where the destination is a directory.
    pub(super) name: Vec<u8>,
    /// The same with links followed as far as the action says.
    pub(super) path: Vec<u8>,
}

/// What one COPY takes.
pub(super) struct Selection<'a> {
    tree: &'a Tree,
    roots: Vec<Root>,
    include: Option<Patterns>,
    exclude: Option<Patterns>,
}

/// Why something is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// It is what the action names.
    Root,
    /// It is below that.
    Chosen,
    /// A directory that is only needed for what is in it.
    Parent,
}

/// Something that is taken.
pub(super) struct Item<'a, 'b> {
    pub(super) entry: &'b Entry,
    /// Its path below the root.
    pub(super) relative: &'b [u8],
    pub(super) role: Role,
    /// The regular file that it is, in its layer.
    pub(super) file: Option<Found<'a>>,
}

impl<'a> Selection<'a> {
    pub(super) fn new(tree: &'a Tree, action: &CopyAction) -> Result<Self, FileError> {
        let exclude = patterns(&action.exclude)?;
        let (roots, include) = match &action.parents {
            None => (named(tree, action)?, None),
            Some(parents) => with_parents(tree, action, &parents.base)?,
        };
        Ok(Self { tree, roots, include, exclude })
    }

    /// The paths that the source names, in order.
    pub(super) fn roots(&self) -> &[Root] {
        &self.roots
    }

    /// What is at a root itself. A root of the tree that nobody described is a plain directory.
    pub(super) fn entry(&self, root: &Root) -> Result<Entry, FileError> {
        match self.tree.lookup(&root.path) {
            Some(found) => Ok(found.entry.clone()),
            None if root.path.is_empty() => Ok(Entry::dir(Vec::new(), 0o755)),
            None => Err(FileError::NotFound { path: staging::lossy(&root.name) }),
        }
    }

    /// The regular file that a root is.
    pub(super) fn file(&self, root: &Root) -> Option<Found<'a>> {
        self.tree.lookup(&root.path).and_then(|found| self.tree.file_of(found))
    }

    /// Visits what is taken at and below a root, directories before what is in them.
    pub(super) fn walk(
        &self,
        root: &Root,
        mut visit: impl FnMut(Item<'a, '_>) -> Result<(), FileError>,
    ) -> Result<(), FileError> {
        let entry = self.entry(root)?;
        visit(Item { entry: &entry, relative: b"", role: Role::Root, file: self.file(root) })?;
        let mut levels: Vec<Level<'a>> = Vec::new();
        self.tree.walk(&root.path, |found| {
            let relative = found.entry.path.get(root.path.len()..).unwrap_or_default();
            let relative = relative.strip_prefix(b"/").unwrap_or(relative);
            if relative.is_empty() {
                return Ok(());
            }
            if self.include.is_some() || self.exclude.is_some() {
                while levels.last().is_some_and(|level| !is_within(&found.entry.path, &level.entry.path)) {
                    levels.pop();
                }
                if !self.choose(&mut levels, found.entry, relative) {
                    return Ok(());
                }
                // What was passed on the way is made now.
                let depth = levels.len() - usize::from(found.entry.is_dir());
                for level in levels[..depth].iter_mut().filter(|level| !level.taken) {
                    level.taken = true;
                    let below = &level.entry.path[found.entry.path.len() - relative.len()..];
                    visit(Item { entry: level.entry, relative: below, role: Role::Parent, file: None })?;
                }
            }
            let file = self.tree.file_of(found);
            visit(Item { entry: found.entry, relative, role: Role::Chosen, file })
        })
    }

    /// Whether the patterns choose `entry`; a directory is noted for what is in it.
    fn choose(&self, levels: &mut Vec<Level<'a>>, entry: &'a Entry, relative: &[u8]) -> bool {
        let text = String::from_utf8_lossy(relative);
        let root = (DirState::default(), DirState::default());
        let (included, excluded) = levels.last().map_or((&root.0, &root.1), |level| (&level.included, &level.excluded));
        let decide = |patterns: &Option<Patterns>, parent: &DirState| match patterns {
            None => (None, DirState::default()),
            Some(patterns) if entry.is_dir() => {
                let decided = patterns.directory(parent, &text);
                (Some(decided.verdict.ignored), decided.state)
            }
            Some(patterns) => (Some(patterns.file(parent, &text).ignored), DirState::default()),
        };
        let (is_included, included) = decide(&self.include, included);
        let (is_excluded, excluded) = decide(&self.exclude, excluded);
        let taken = is_included.unwrap_or(true) && !is_excluded.unwrap_or(false);
        if entry.is_dir() {
            levels.push(Level { entry, included, excluded, taken });
        }
        taken
    }
}

/// A directory that a walk is in.
struct Level<'a> {
    entry: &'a Entry,
    included: DirState,
    excluded: DirState,
    taken: bool,
}

fn patterns(list: &[String]) -> Result<Option<Patterns>, FileError> {
    if list.is_empty() {
        return Ok(None);
    }
    let patterns = Patterns::from_list(list.iter().map(String::as_str));
    patterns.map(Some).map_err(|error| FileError::Pattern { why: error.to_string() })
}

/// The paths that the source of a plain COPY names.
fn named(tree: &Tree, action: &CopyAction) -> Result<Vec<Root>, FileError> {
    let missing = || FileError::NotFound { path: action.src.clone() };
    if !action.allow_wildcard || !wildcard::is_pattern(&action.src) {
        let root = literal(tree, &action.src, action)?;
        return root.map(|root| vec![root]).ok_or_else(missing);
    }
    let mut roots = Vec::new();
    for name in expand(tree, &action.src)? {
        let path = follow(tree, &name, action.follow_symlink)?
            .ok_or_else(|| FileError::NotFound { path: staging::lossy(&name) })?;
        roots.push(Root { name, path });
    }
    if roots.is_empty() && !action.allow_empty_wildcard { Err(missing()) } else { Ok(roots) }
}

/// With `--parents` the roots are what the path before the pivot names; the rest is a pattern below them.
fn with_parents(tree: &Tree, action: &CopyAction, base: &str) -> Result<(Vec<Root>, Option<Patterns>), FileError> {
    let missing = || FileError::NotFound { path: action.src.clone() };
    let below = action.src.strip_prefix(base).unwrap_or(&action.src).trim_matches('/');
    let exact = !wildcard::is_pattern(base) && !wildcard::is_pattern(below);
    let mut roots = Vec::new();
    if wildcard::is_pattern(base) {
        for name in expand(tree, base)? {
            if let Some(path) = follow(tree, &name, true)?
                && tree.lookup(&path).is_some_and(|found| found.entry.is_dir())
            {
                roots.push(Root { name, path });
            }
        }
    } else {
        roots.push(literal(tree, base, action)?.ok_or_else(missing)?);
    }
    if below.is_empty() {
        return Ok((roots, None));
    }
    // A path that is spelled out must be there.
    if exact && let Some(root) = roots.first() {
        let path = join(&root.path, &unescaped(below));
        if tree.lookup(&path).is_none() && tree.lookup(&join(&root.path, below.as_bytes())).is_none() {
            return Err(missing());
        }
    }
    Ok((roots, patterns(&[below.to_owned()])?))
}

/// A path without wildcards.
fn literal(tree: &Tree, src: &str, action: &CopyAction) -> Result<Option<Root>, FileError> {
    let name = snapshotter::layer::clean(src.as_bytes());
    if let Some(path) = follow(tree, &name, action.follow_symlink)? {
        return Ok(Some(Root { name, path }));
    }
    if !action.allow_wildcard || !src.contains('\\') {
        return Ok(None);
    }
    let name = snapshotter::layer::clean(&unescaped(src));
    let path = follow(tree, &name, action.follow_symlink)?;
    Ok(path.map(|path| Root { name, path }))
}

/// Where a path leads, if something is there. The root is always there.
fn follow(tree: &Tree, path: &[u8], last: bool) -> Result<Option<Vec<u8>>, FileError> {
    let resolved = resolve(tree, path, last)?;
    Ok((resolved.is_empty() || tree.lookup(&resolved).is_some()).then_some(resolved))
}

/// Follows links in a source path, inside its root.
pub(super) fn resolve(tree: &Tree, path: &[u8], follow_last: bool) -> Result<Vec<u8>, FileError> {
    let resolved = tree.resolve(path, follow_last);
    resolved.map(|resolved| resolved.path).map_err(|_| FileError::TooManyLinks { path: staging::lossy(path) })
}

/// The paths that match a pattern, sorted. Links are followed in the part before the first wildcard only, which must be there:
/// of `target/*.jar` nothing may match, but a missing `target` is a mistake.
fn expand(tree: &Tree, src: &str) -> Result<Vec<Vec<u8>>, FileError> {
    let parts: Vec<&str> = src.split('/').filter(|part| !part.is_empty()).collect();
    let fixed = parts.iter().take_while(|part| !wildcard::is_pattern(part)).count();
    let compiled: Option<Vec<Pattern>> = parts[fixed..].iter().map(|part| Pattern::parse(part)).collect();
    let compiled = compiled.ok_or_else(|| FileError::Pattern { why: format!("{src:?} is malformed") })?;
    let start = resolve(tree, &unescaped(&parts[..fixed].join("/")), true)?;
    if !start.is_empty() && tree.lookup(&start).is_none() {
        return Err(FileError::NotFound { path: src.to_owned() });
    }
    let mut found = vec![start];
    for (depth, pattern) in compiled.iter().enumerate() {
        let last = depth + 1 == compiled.len();
        let mut next = Vec::new();
        for directory in &found {
            for child in tree.children(directory) {
                let name = split(&child.entry.path).1;
                if (last || child.entry.is_dir()) && pattern.matches(name) {
                    next.push(join(directory, name));
                }
            }
        }
        found = next;
    }
    Ok(found)
}

/// A path without wildcards may still escape characters.
fn unescaped(path: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(path.len());
    let mut rest = path.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(if byte == b'\\' { rest.next().unwrap_or(byte) } else { byte });
    }
    bytes
}

/// The files that a copy takes, by their paths in the source, without times.
pub(crate) fn copied_entries(tree: &Tree, action: &CopyAction) -> Result<Vec<Entry>, FileError> {
    let selection = Selection::new(tree, action)?;
    let mut entries = Vec::new();
    for root in selection.roots() {
        selection.walk(root, |item| {
            let mut entry = item.file.map_or(item.entry, |file| file.entry).clone();
            entry.path = join(&root.path, item.relative);
            entry.mtime = (0, 0);
            entries.push(entry);
            Ok(())
        })?;
    }
    Ok(entries)
}

/// What a copy depends on in its source: names, contents, modes, owners, attributes and which names are one file, of all
/// that it takes and of nothing else; no times.
pub(crate) fn copied_digest(tree: &Tree, action: &CopyAction) -> Result<graph::ContentDigest, FileError> {
    let selection = Selection::new(tree, action)?;
    let mut hasher = graph::KeyHasher::new("copy-source/2");
    for root in selection.roots() {
        hasher.field(&root.name);
        let mut files = Numbers::default();
        selection.walk(root, |item| {
            hasher.field(item.relative).number(item.role as u64);
            match (&item.entry.kind, item.file) {
                // The destination is a directory of its own; what the source's looks like does not matter.
                (EntryKind::Dir { .. }, _) if item.role == Role::Root && action.dir_contents_only => {}
                (EntryKind::Dir { .. }, _) => {
                    // Opaqueness is between layers.
                    let mut plain = Entry::dir(Vec::new(), 0);
                    plain.copy_metadata(item.entry);
                    hash_entry(&mut hasher, &plain);
                }
                (_, Some(file)) => {
                    hash_entry(&mut hasher, file.entry);
                    hasher.number(files.of(tree, file));
                }
                _ => hash_entry(&mut hasher, item.entry),
            }
            Ok(())
        })?;
    }
    Ok(hasher.finish())
}

/// Files by number, in the order in which they are met; what is met again has the number it had.
#[derive(Default)]
struct Numbers<'a> {
    next: u64,
    /// Which layers have files of several names. In the others nothing is met again.
    linked: HashMap<usize, bool>,
    known: HashMap<(usize, &'a [u8]), u64>,
}

impl<'a> Numbers<'a> {
    fn of(&mut self, tree: &Tree, file: Found<'a>) -> u64 {
        let is_link = |entry: &Entry| matches!(entry.kind, EntryKind::Hardlink { .. });
        let may_be_met_again =
            *self.linked.entry(file.layer).or_insert_with(|| tree.layers()[file.layer].entries().iter().any(is_link));
        let number = match may_be_met_again {
            true => *self.known.entry((file.layer, &file.entry.path)).or_insert(self.next),
            false => self.next,
        };
        self.next += u64::from(number == self.next);
        number
    }
}
