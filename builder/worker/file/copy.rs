//! COPY and ADD of files: what goes where, decided on trees alone.
//!
//! The rules are those of BuildKit's copier (`cp -a` with Docker's treatment of destinations).

use std::collections::HashMap;

use frontend::dockerignore::Patterns;
use graph::{ChmodSpec, CopyAction};
use snapshotter::layer::{Entry, EntryKind, Tree};

use super::staging::{Content, Planned, Staging, base_name, components, join, lossy, parent};
use super::{FileError, chmod, wildcard};

/// What is read: a tree and its number among the sources of the op.
#[derive(Clone, Copy)]
pub(crate) struct Source<'a> {
    pub(crate) tree: &'a Tree,
    pub(crate) number: usize,
}

/// One COPY of one source pattern, names already looked up.
pub(crate) struct Copy<'a> {
    pub(crate) source: Source<'a>,
    pub(crate) action: &'a CopyAction,
    pub(crate) owner: Option<(u32, u32)>,
    exclude: Option<Patterns>,
    /// Files already copied, for hard links among them: place in the source -> number in the layer.
    copied: HashMap<(usize, Vec<u8>), u64>,
}

impl<'a> Copy<'a> {
    pub(crate) fn new(
        source: Source<'a>,
        action: &'a CopyAction,
        owner: Option<(u32, u32)>,
    ) -> Result<Self, FileError> {
        let exclude = (!action.exclude.is_empty())
            .then(|| Patterns::from_list(action.exclude.iter().map(String::as_str)))
            .transpose()
            .map_err(|error| FileError::Pattern { why: error.to_string() })?;
        Ok(Self { source, action, owner, exclude, copied: HashMap::new() })
    }

    /// The paths that the source names, links in them followed as far as the action says.
    pub(crate) fn matches(&self) -> Result<Vec<Vec<u8>>, FileError> {
        let found = matching(self.source.tree, self.action)?;
        if found.is_empty() && !(self.action.allow_empty_wildcard && wildcard::is_pattern(&self.action.src)) {
            return Err(FileError::NotFound { path: self.action.src.clone() });
        }
        Ok(found)
    }

    /// Copies all that the source names.
    pub(crate) fn run(&mut self, staging: &mut Staging<'_>) -> Result<(), FileError> {
        if let Some(parents) = &self.action.parents {
            return self.run_parents(staging, parents.base.as_bytes());
        }
        for path in self.matches()? {
            self.copy_match(staging, &path)?;
        }
        Ok(())
    }

    /// One matched path to the destination.
    pub(crate) fn copy_match(&mut self, staging: &mut Staging<'_>, path: &[u8]) -> Result<(), FileError> {
        let real = source_path(self.source.tree, path, self.action.follow_symlink)?;
        let entry = entry_at(self.source.tree, &real)?;
        let is_dir = matches!(entry.kind, EntryKind::Dir { .. });
        let dest = self.action.dest.as_bytes();
        let dir_mode = self.created_mode();
        if dest.ends_with(b"/") {
            let directory = staging.resolve(dest)?;
            staging.make_dirs(&directory, dir_mode, self.owner)?;
        }
        let mut target = staging.resolve(dest)?;
        let exists_dir = staging.is_dir(&target);
        if (is_dir && !self.action.dir_contents_only && staging.get(&target).is_some()) || (!is_dir && exists_dir) {
            target = join(&target, base_name(path));
        }
        if !self.action.create_dest_path && !staging.is_dir(parent(&target)) {
            return Err(FileError::NotFound { path: lossy(parent(&target)) });
        }
        staging.make_dirs(parent(&target), dir_mode, self.owner)?;
        if is_dir && self.action.dir_contents_only && staging.get(&target).is_none() {
            staging.make_dirs(&target, dir_mode, self.owner)?;
        }
        self.copy(staging, &real, b"", &target, false)
    }

    /// `--parents`: matched paths keep their place below the pivot.
    fn run_parents(&mut self, staging: &mut Staging<'_>, base: &[u8]) -> Result<(), FileError> {
        let base = source_path(self.source.tree, base, true)?;
        let dest = staging.resolve(self.action.dest.as_bytes())?;
        staging.make_dirs(&dest, self.created_mode(), self.owner)?;
        for path in self.matches()? {
            let relative = path.strip_prefix(base.as_slice()).unwrap_or(&path);
            let names: Vec<Vec<u8>> = components(relative).collect();
            let (mut from, mut to) = (base.clone(), dest.clone());
            for (depth, name) in names.iter().enumerate() {
                from = join(&from, name);
                to = join(&to, name);
                let last = depth + 1 == names.len();
                if last {
                    let relative = names.join(&b'/');
                    self.copy(staging, &from, &relative, &to, true)?;
                } else if !staging.is_dir(&to) {
                    let entry = entry_at(self.source.tree, &from)?;
                    self.put_entry(staging, &entry, &to, Content::None, None)?;
                }
            }
        }
        Ok(())
    }

    /// Copies what is at `from`. `relative` is its path below what was named (for `--exclude`), empty for that itself.
    /// Directories below the named one overwrite the metadata of existing ones.
    fn copy(
        &mut self,
        staging: &mut Staging<'_>,
        from: &[u8],
        relative: &[u8],
        to: &[u8],
        overwrite: bool,
    ) -> Result<(), FileError> {
        // Directories still to be visited; a source can be nested deeper than a stack allows.
        let mut pending = vec![(from.to_vec(), relative.to_vec(), to.to_vec(), overwrite)];
        while let Some((from, relative, to, overwrite)) = pending.pop() {
            let entry = entry_at(self.source.tree, &from)?;
            let excluded = !relative.is_empty() && self.is_excluded(&relative);
            if !matches!(entry.kind, EntryKind::Dir { .. }) {
                if !excluded {
                    self.copy_file(staging, &from, &entry, &to)?;
                }
                continue;
            }
            if excluded && !self.exclude.as_ref().is_some_and(has_exceptions) {
                continue;
            }
            if !excluded {
                self.copy_dir(staging, &entry, &to, overwrite)?;
            }
            let children = self.source.tree.children(&from);
            for child in children.into_iter().rev() {
                let name = base_name(&child.entry.path).to_vec();
                pending.push((join(&from, &name), join(&relative, &name), join(&to, &name), true));
            }
        }
        Ok(())
    }

    fn is_excluded(&self, relative: &[u8]) -> bool {
        self.exclude.as_ref().is_some_and(|patterns| patterns.test(&String::from_utf8_lossy(relative)).ignored)
    }

    fn copy_dir(&self, staging: &mut Staging<'_>, entry: &Entry, to: &[u8], overwrite: bool) -> Result<(), FileError> {
        if to.is_empty() {
            return Ok(());
        }
        let before = staging.get(to).map(|entry| matches!(entry.kind, EntryKind::Dir { .. }));
        match before {
            Some(false) if self.action.always_replace_existing => staging.remove(to),
            Some(false) => return Err(FileError::NotADirectory { path: lossy(to) }),
            Some(true) if !overwrite => {
                staging.touch_dir(to, entry.mtime);
                return Ok(());
            }
            Some(true) | None => {}
        }
        // An excluded parent whose child is not excluded is made on the way.
        staging.make_dirs(parent(to), 0o755, self.owner)?;
        self.put_entry(staging, entry, to, Content::None, None)
    }

    fn copy_file(&mut self, staging: &mut Staging<'_>, from: &[u8], entry: &Entry, to: &[u8]) -> Result<(), FileError> {
        if to.is_empty() {
            return Err(FileError::IsADirectory { path: "/".into() });
        }
        match staging.get(to).map(|entry| matches!(entry.kind, EntryKind::Dir { .. })) {
            Some(true) if !self.action.always_replace_existing => return Err(FileError::IsADirectory { path: lossy(to) }),
            Some(_) => staging.remove(to),
            None => {}
        }
        staging.make_dirs(parent(to), 0o755, self.owner)?;
        let file = self.source.tree.lookup(from).and_then(|found| self.source.tree.file_of(found));
        let Some(file) = file else {
            return self.put_entry(staging, entry, to, Content::None, None);
        };
        // Names of one file in the source are names of one file in the layer.
        let place = (file.layer, file.entry.path.clone());
        let inode = *self.copied.entry(place.clone()).or_insert_with(|| staging.new_inode());
        let content = Content::Source { source: self.source.number, layer: place.0, path: place.1 };
        let entry = Entry { kind: file.entry.kind.clone(), ..entry.clone() };
        self.put_entry(staging, &entry, to, content, Some(inode))
    }

    fn put_entry(&self, staging: &mut Staging<'_>, entry: &Entry, to: &[u8], content: Content, inode: Option<u64>) -> Result<(), FileError> {
        let is_dir = matches!(entry.kind, EntryKind::Dir { .. });
        let mut entry = entry.clone();
        entry.path = to.to_vec();
        if is_dir {
            entry.kind = EntryKind::Dir { opaque: false, implicit: false };
        }
        if let EntryKind::File { offset, .. } = &mut entry.kind {
            *offset = None;
        }
        if let Some((uid, gid)) = self.owner {
            (entry.uid, entry.gid) = (uid, gid);
        }
        if !matches!(entry.kind, EntryKind::Symlink { .. }) {
            entry.mode = changed_mode(self.action.chmod.as_ref(), entry.mode, is_dir)?;
        }
        staging.put(Planned { entry, content, inode });
        Ok(())
    }

    /// The mode of parents made for the destination.
    fn created_mode(&self) -> u32 {
        match &self.action.chmod {
            Some(ChmodSpec::Octal(mode)) => *mode,
            Some(ChmodSpec::Symbolic(_)) | None => 0o755,
        }
    }
}

/// The mode that `--chmod` makes of `mode`.
pub(crate) fn changed_mode(spec: Option<&ChmodSpec>, mode: u32, directory: bool) -> Result<u32, FileError> {
    match spec {
        None => Ok(mode),
        Some(ChmodSpec::Octal(mode)) => Ok(*mode),
        Some(ChmodSpec::Symbolic(clauses)) => {
            chmod::apply(clauses, mode, directory).map_err(|why| FileError::Mode { why })
        }
    }
}

/// The paths of `tree` that an action's source names, in order.
pub(crate) fn matching(tree: &Tree, action: &CopyAction) -> Result<Vec<Vec<u8>>, FileError> {
    if let Some(parents) = &action.parents {
        return matching_parents(tree, &action.src, parents.base.as_bytes());
    }
    let src = action.src.trim_matches('/');
    if !action.allow_wildcard || !wildcard::is_pattern(src) {
        let path = unescaped(src, action.allow_wildcard);
        let real = source_path(tree, &path, action.follow_symlink)?;
        return Ok(if real.is_empty() || tree.lookup(&real).is_some() { vec![path] } else { Vec::new() });
    }
    let (fixed, pattern) = split_pattern(src);
    let fixed_path = source_path(tree, &unescaped(fixed, true), true)?;
    let depth = pattern.split('/').count();
    let mut found = Vec::new();
    let mut level = vec![(fixed_path, Vec::new())];
    for step in 1..=depth {
        let part = pattern.split('/').take(step).collect::<Vec<_>>().join("/");
        let mut next = Vec::new();
        for (path, relative) in level {
            for child in tree.children(&path) {
                let name = base_name(&child.entry.path);
                let relative = join(&relative, name);
                let matched = wildcard::matches(&part, &relative)
                    .ok_or_else(|| FileError::Pattern { why: format!("{src:?} is not a valid pattern") })?;
                if matched && step == depth {
                    found.push(join(&path, name));
                } else if matched && matches!(child.entry.kind, EntryKind::Dir { .. }) {
                    next.push((join(&path, name), relative));
                }
            }
        }
        level = next;
    }
    Ok(found)
}

/// With `--parents` the pattern may contain `**`, and a matched directory stands for all in it.
fn matching_parents(tree: &Tree, src: &str, base: &[u8]) -> Result<Vec<Vec<u8>>, FileError> {
    let base_text = String::from_utf8_lossy(base);
    let pattern = src.strip_prefix(base_text.as_ref()).unwrap_or(src).trim_matches('/');
    let base = source_path(tree, base, true)?;
    if !wildcard::is_pattern(pattern) {
        let path = join(&base, &unescaped(pattern, true));
        return Ok(if tree.lookup(&path).is_some() { vec![path] } else { Vec::new() });
    }
    let patterns = Patterns::from_list([pattern])
        .map_err(|error| FileError::Pattern { why: error.to_string() })?;
    let mut found = Vec::new();
    let mut pending = vec![(base, Vec::new())];
    while let Some((path, relative)) = pending.pop() {
        for child in tree.children(&path) {
            let name = base_name(&child.entry.path).to_vec();
            let (path, relative) = (join(&path, &name), join(&relative, &name));
            if patterns.test(&String::from_utf8_lossy(&relative)).ignored {
                found.push(path);
            } else if matches!(child.entry.kind, EntryKind::Dir { .. }) {
                pending.push((path, relative));
            }
        }
    }
    found.sort();
    Ok(found)
}

/// The leading part without wildcards, and the rest.
pub(crate) fn split_pattern(src: &str) -> (&str, &str) {
    let mut position = 0;
    for part in src.split('/') {
        if wildcard::is_pattern(part) {
            break;
        }
        position += part.len() + 1;
    }
    let position = position.min(src.len());
    (src[..position].trim_end_matches('/'), &src[position..])
}

/// A path without wildcards may still escape characters.
fn unescaped(path: &str, pattern: bool) -> Vec<u8> {
    if !pattern || !path.contains('\\') {
        return path.as_bytes().to_vec();
    }
    let mut bytes = Vec::with_capacity(path.len());
    let mut rest = path.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(if byte == b'\\' { rest.next().unwrap_or(byte) } else { byte });
    }
    bytes
}

/// Follows links in a source path, inside its root.
pub(crate) fn source_path(tree: &Tree, path: &[u8], follow_last: bool) -> Result<Vec<u8>, FileError> {
    let resolved = tree.resolve(path, follow_last);
    resolved.map(|resolved| resolved.path).map_err(|error| FileError::Source { path: lossy(path), why: error.to_string() })
}

/// What is at a path whose links were followed. Roots that nobody described are plain directories.
fn entry_at(tree: &Tree, path: &[u8]) -> Result<Entry, FileError> {
    match tree.lookup(path) {
        Some(found) => Ok(found.entry.clone()),
        None if path.is_empty() => Ok(Entry {
            path: Vec::new(),
            kind: EntryKind::Dir { opaque: false, implicit: true },
            mode: 0o755,
            uid: 0,
            gid: 0,
            mtime: (0, 0),
            xattrs: Vec::new(),
        }),
        None => Err(FileError::NotFound { path: lossy(path) }),
    }
}

fn has_exceptions(patterns: &Patterns) -> bool {
    patterns.rules().iter().any(frontend::dockerignore::Rule::is_exception)
}

/// What a copy depends on in its source: the names it matches and all that is there, without what is excluded.
pub(crate) fn copied_digest(tree: &Tree, action: &CopyAction) -> Result<graph::ContentDigest, FileError> {
    let source = Source { tree, number: 0 };
    let copy = Copy::new(source, action, None)?;
    let mut hasher = graph::KeyHasher::new("copy-source/1");
    for path in copy.matches()? {
        let real = source_path(tree, &path, action.follow_symlink)?;
        hasher.field(&path);
        match copy.exclude {
            None => {
                let digest = tree.digest_exact(&real);
                hasher.field(digest.map_err(|_| FileError::NotFound { path: lossy(&path) })?.as_bytes());
            }
            Some(_) => copy.hash_kept(&real, &mut hasher)?,
        }
    }
    Ok(hasher.finish())
}

impl Copy<'_> {
    /// As a tree's digest, leaving out what is excluded.
    fn hash_kept(&self, root: &[u8], hasher: &mut graph::KeyHasher) -> Result<(), FileError> {
        let mut pending = vec![(root.to_vec(), Vec::new())];
        while let Some((path, relative)) = pending.pop() {
            let entry = entry_at(self.source.tree, &path)?;
            let excluded = !relative.is_empty() && self.is_excluded(&relative);
            if entry.is_dir() {
                for child in self.source.tree.children(&path) {
                    let name = base_name(&child.entry.path);
                    pending.push((join(&path, name), join(&relative, name)));
                }
            }
            if excluded {
                continue;
            }
            hasher.field(&relative);
            let file = self.source.tree.lookup(&path).and_then(|found| self.source.tree.file_of(found));
            match file {
                Some(file) => snapshotter::layer::hash_entry(hasher, file.entry),
                None if entry.is_dir() => snapshotter::layer::hash_entry(hasher, &plain_dir(&entry)),
                None => snapshotter::layer::hash_entry(hasher, &entry),
            }
        }
        Ok(())
    }
}

/// A directory without what only concerns layers.
fn plain_dir(entry: &Entry) -> Entry {
    Entry { kind: EntryKind::Dir { opaque: false, implicit: false }, path: Vec::new(), ..entry.clone() }
}
