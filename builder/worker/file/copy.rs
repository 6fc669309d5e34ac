//! COPY and ADD of files: what goes where, decided on trees alone.
//!
//! The rules are those of BuildKit's copier (`cp -a` with Docker's treatment of destinations).

use std::collections::HashMap;

use graph::{ChmodSpec, CopyAction};
use snapshotter::layer::{Entry, EntryKind, LayerError, Tree, join, split};

use super::select::{Item, Role, Root, Selection};
use super::staging::{Content, Planned, Staging, lossy};
use super::{FileError, chmod};

/// What is read: a tree and its number among the sources of the op.
#[derive(Clone, Copy)]
pub(crate) struct Source<'a> {
    pub(crate) tree: &'a Tree,
    pub(crate) number: usize,
}

/// One COPY of one source pattern, names already looked up.
pub(crate) struct Copy<'a> {
    pub(super) selection: Selection<'a>,
    source: Source<'a>,
    action: &'a CopyAction,
    owner: Option<(u32, u32)>,
}

impl<'a> Copy<'a> {
    pub(crate) fn new(
        source: Source<'a>,
        action: &'a CopyAction,
        owner: Option<(u32, u32)>,
    ) -> Result<Self, FileError> {
        Ok(Self { selection: Selection::new(source.tree, action)?, source, action, owner })
    }

    /// Copies all that the source names.
    pub(crate) fn run(&self, staging: &mut Staging<'_>, cancelled: &dyn Fn() -> bool) -> Result<(), FileError> {
        self.selection.roots().iter().try_for_each(|root| self.copy(staging, root, cancelled))
    }

    /// One named path to the destination.
    pub(super) fn copy(
        &self,
        staging: &mut Staging<'_>,
        root: &Root,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<(), FileError> {
        let is_dir = self.selection.entry(root)?.is_dir();
        let target = self.target(staging, root, is_dir)?;
        // A context's own directory has no time that anybody set.
        let time = root.path.is_empty().then_some(staging.now());
        let mut files = HashMap::new();
        self.selection.walk(root, |item| {
            if cancelled() {
                return Err(LayerError::Cancelled.into());
            }
            staging.check_size()?;
            let to = if item.relative.is_empty() { target.clone() } else { join(&target, item.relative) };
            if item.entry.is_dir() {
                return self.directory(staging, &item, to, time);
            }
            self.file(staging, &mut files, &item, to)
        })
    }

    /// Where a root goes. What leads there is made.
    fn target(&self, staging: &mut Staging<'_>, root: &Root, is_dir: bool) -> Result<Vec<u8>, FileError> {
        let dest = self.action.dest.as_bytes();
        let mode = self.created_mode();
        let mut target = staging.resolve(dest)?;
        if !self.action.create_dest_path && !staging.is_dir(split(&target).0) {
            return Err(FileError::NotFound { path: lossy(split(&target).0) });
        }
        if dest.ends_with(b"/") {
            staging.make_dirs(&target, mode, self.owner)?;
        }
        let contents = is_dir && self.action.dir_contents_only;
        // The root is there even where nothing is in it yet.
        let exists = target.is_empty() || staging.get(&target).is_some();
        let into = if is_dir { !contents && exists } else { staging.is_dir(&target) };
        if into {
            target = join(&target, split(&root.name).1);
        }
        let missing = contents && !target.is_empty() && staging.get(&target).is_none();
        let made = if missing { &target } else { split(&target).0 };
        staging.make_dirs(made, mode, self.owner)?;
        Ok(target)
    }

    fn directory(
        &self,
        staging: &mut Staging<'_>,
        item: &Item<'_, '_>,
        to: Vec<u8>,
        root_time: Option<(i64, u32)>,
    ) -> Result<(), FileError> {
        if to.is_empty() {
            return Ok(());
        }
        let before = staging.get(&to);
        let entry = match before {
            Some(before) if !before.is_dir() => {
                if !self.action.always_replace_existing {
                    return Err(FileError::NotADirectory { path: lossy(&to) });
                }
                staging.remove(&to);
                self.described(item.entry, to)?
            }
            None => self.described(item.entry, to)?,
            Some(before) => match item.role {
                // The destination itself keeps what it is.
                Role::Root => Entry { mtime: root_time.unwrap_or(item.entry.mtime), path: to, ..before.clone() },
                Role::Parent => Entry { mode: item.entry.mode, path: to, ..before.clone() },
                Role::Chosen => {
                    let mut entry = self.described(item.entry, to)?;
                    merge_xattrs(&mut entry.xattrs, &before.xattrs);
                    entry
                }
            },
        };
        let kind = EntryKind::Dir { opaque: false, implicit: false };
        staging.put(Planned::new(Entry { kind, ..entry }, Content::None));
        Ok(())
    }

    fn file(
        &self,
        staging: &mut Staging<'_>,
        files: &mut HashMap<(usize, Vec<u8>), u64>,
        item: &Item<'_, '_>,
        to: Vec<u8>,
    ) -> Result<(), FileError> {
        if to.is_empty() {
            return Err(FileError::IsADirectory { path: "/".into() });
        }
        if staging.is_dir(&to) {
            if !self.action.always_replace_existing {
                return Err(FileError::IsADirectory { path: lossy(&to) });
            }
            staging.remove(&to);
        }
        let Some(file) = item.file else {
            if let EntryKind::Hardlink { target } = &item.entry.kind {
                return Err(FileError::NotFound { path: lossy(target) });
            }
            staging.put(Planned::new(self.described(item.entry, to)?, Content::None));
            return Ok(());
        };
        // Names of one file in the source are names of one file in the layer.
        let path = file.entry.path.clone();
        let inode = *files.entry((file.layer, path.clone())).or_insert_with(|| staging.new_inode());
        let content = Content::Source { source: self.source.number, layer: file.layer, path };
        staging.put(Planned { entry: self.described(file.entry, to)?, content, inode: Some(inode) });
        Ok(())
    }

    /// `entry` as it will be at `to`.
    fn described(&self, entry: &Entry, to: Vec<u8>) -> Result<Entry, FileError> {
        let mut new = Entry { path: to, ..entry.clone() };
        if let EntryKind::File { offset, .. } = &mut new.kind {
            *offset = None;
        }
        if let Some(owner) = self.owner {
            (new.uid, new.gid) = owner;
        }
        if !matches!(new.kind, EntryKind::Symlink { .. }) {
            new.mode = changed_mode(self.action.chmod.as_ref(), new.mode, entry.is_dir())?;
        }
        Ok(new)
    }

    /// The mode of parents made for the destination.
    fn created_mode(&self) -> u32 {
        match &self.action.chmod {
            Some(ChmodSpec::Octal(mode)) => *mode & 0o777,
            Some(ChmodSpec::Symbolic(_)) | None => 0o755,
        }
    }
}

/// Adds what `before` has and `xattrs` does not.
pub(super) fn merge_xattrs(xattrs: &mut Vec<(Vec<u8>, Vec<u8>)>, before: &[(Vec<u8>, Vec<u8>)]) {
    for old in before {
        if let Err(place) = xattrs.binary_search_by(|(name, _)| name.cmp(&old.0)) {
            xattrs.insert(place, old.clone());
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
