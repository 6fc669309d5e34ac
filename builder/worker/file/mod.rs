//! FileOp: COPY, ADD, WORKDIR. Decided on the indexes of trees, then written straight from the sources into the layer.

mod chmod;
mod copy;
mod owner;
mod select;
mod staging;
#[cfg(test)]
mod tests;
mod unpack;
pub(crate) mod wildcard;
mod write;

use std::fs::File;
use std::io::{self, Read, Write as _};
use std::path::Path;
use std::sync::Arc;

use graph::{ContentDigest, CopyAction, FileAction, FileOp};
use snapshotter::layer::{
    ApplyOptions, Bytes, Entry, EntryKind, LayerError, LayerIndex, Populated, Sharing, Tree, populate, split,
};

use copy::{Copy, Source};
pub(crate) use select::{copied_digest, copied_entries};
use staging::{Content, Planned, Staging, lossy};
pub(crate) use unpack::archive_tree;

/// A tree that can be read: what is in it, and its bytes.
#[derive(Clone)]
pub(crate) struct ReadableTree {
    pub(crate) tree: Arc<Tree>,
    pub(crate) bytes: Arc<FindBytes>,
}

/// Where the bytes of the file at a path of layer number so-and-so are.
pub(crate) type FindBytes = dyn Fn(usize, &[u8]) -> io::Result<Bytes> + Send + Sync;

impl ReadableTree {
    /// Nothing at all.
    pub(crate) fn empty() -> Self {
        let bytes = |_: usize, _: &[u8]| Err(io::ErrorKind::NotFound.into());
        Self { tree: Arc::default(), bytes: Arc::new(bytes) }
    }

    /// One file at the top, of these bytes.
    pub(crate) fn file(name: &str, bytes: &[u8]) -> io::Result<Self> {
        let mut entry = Entry::file(name.as_bytes().to_vec(), bytes.len() as u64, 0o644);
        if let EntryKind::File { digest, .. } = &mut entry.kind {
            *digest = ContentDigest::from_bytes(*blake3::hash(bytes).as_bytes());
        }
        let mut file = tempfile::tempfile()?;
        file.write_all(bytes)?;
        let (file, size) = (Arc::new(file), bytes.len() as u64);
        let tree = Arc::new(Tree::new(vec![Arc::new(LayerIndex::new(vec![entry]))]));
        let open = move |_: usize, _: &[u8]| Ok(Bytes::Part { file: Arc::clone(&file), offset: 0, size });
        Ok(Self { tree, bytes: Arc::new(open) })
    }

    /// Opens a file of a layer.
    pub(crate) fn open(&self, layer: usize, path: &[u8]) -> io::Result<Box<dyn Read + Send>> {
        Ok((self.bytes)(layer, path)?.reader())
    }

    /// Makes all of it in an empty directory.
    pub(crate) fn populate(
        &self,
        directory: &Path,
        options: &ApplyOptions,
        sharing: Sharing,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<Populated, LayerError> {
        let open = |layer: usize, path: &[u8]| (self.bytes)(layer, path);
        populate(&self.tree, open, directory, options, sharing, cancelled)
    }
}

/// A FileOp that cannot be carried out.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// A source or parent is not there.
    #[error("{path}: not found")]
    NotFound {
        /// In the source.
        path: String,
    },
    /// A parent of the destination, or the destination of a directory, is something else.
    #[error("cannot copy to non-directory: {path}")]
    NotADirectory {
        /// In the image.
        path: String,
    },
    /// The destination of a file is a directory.
    #[error("cannot replace directory {path} with file")]
    IsADirectory {
        /// In the image.
        path: String,
    },
    /// Links in a circle.
    #[error("{path}: too many levels of symbolic links")]
    TooManyLinks {
        /// In the image.
        path: String,
    },
    /// A malformed pattern.
    #[error("invalid pattern: {why}")]
    Pattern {
        /// The reason.
        why: String,
    },
    /// A malformed mode.
    #[error("invalid --chmod: {why}")]
    Mode {
        /// The reason.
        why: String,
    },
    /// A file of users or groups that is not one.
    #[error("cannot look up {name:?} in {file}: {why}")]
    Owner {
        /// Of the user or group.
        name: String,
        /// The file.
        file: &'static str,
        /// The reason.
        why: String,
    },
    /// An archive that cannot be unpacked.
    #[error("cannot unpack {path}: {why}")]
    Archive {
        /// In the source.
        path: String,
        /// The reason.
        why: String,
    },
    /// Bytes could not be read.
    #[error("cannot read {path}")]
    Read {
        /// In the source.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// The layer could not be written.
    #[error(transparent)]
    Layer(#[from] LayerError),
}

/// What a FileOp works on.
pub(crate) struct Work<'a> {
    pub(crate) op: &'a FileOp,
    /// What is changed.
    pub(crate) base: &'a ReadableTree,
    /// The op's inputs by position; those that it does not read may be empty.
    pub(crate) inputs: &'a [ReadableTree],
    /// For what has no time of its own.
    pub(crate) now: (i64, u32),
    /// For temporary files.
    pub(crate) scratch: &'a Path,
    /// Asked for every entry; once it says yes, that is the end.
    pub(crate) cancelled: &'a (dyn Fn() -> bool + Sync),
}

/// The layer, decided but not written.
pub(crate) struct Plan {
    planned: Vec<Planned>,
    spool: Option<File>,
}

impl Work<'_> {
    /// Decides what the layer will hold.
    pub(crate) fn plan(&self) -> Result<Plan, FileError> {
        let mut staging = Staging::new(&self.base.tree, self.now);
        let mut spool = unpack::Spool::new(self.scratch);
        for action in &self.op.actions {
            match action {
                FileAction::Copy(action) => self.copy(&mut staging, &mut spool, action)?,
                FileAction::Mkdir(action) => {
                    let owner = owner::resolve(self.base, action.chown.as_ref())?;
                    let path = staging.resolve(action.path.as_bytes())?;
                    let above = split(&path).0;
                    if !action.make_parents && !staging.is_dir(above) {
                        return Err(FileError::NotFound { path: lossy(above) });
                    }
                    staging.make_dirs(&path, action.mode & 0o777, owner)?;
                }
                FileAction::Mkfile(action) => {
                    let owner = owner::resolve(self.base, action.chown.as_ref())?;
                    let path = staging.resolve(action.path.as_bytes())?;
                    if staging.is_dir(&path) {
                        return Err(FileError::IsADirectory { path: lossy(&path) });
                    }
                    staging.make_dirs(split(&path).0, 0o755, owner)?;
                    let mode = copy::changed_mode(action.chmod.as_ref(), action.mode, false)?;
                    let (uid, gid) = owner.unwrap_or((0, 0));
                    let size = action.data.len() as u64;
                    let entry = Entry { uid, gid, mtime: staging.now(), ..Entry::file(path, size, mode) };
                    staging.put(Planned::new(entry, Content::Bytes(action.data.as_slice().into())));
                }
            }
        }
        Ok(Plan { planned: staging.finish(), spool: spool.into_file() })
    }

    fn copy(
        &self,
        staging: &mut Staging<'_>,
        spool: &mut unpack::Spool<'_>,
        action: &CopyAction,
    ) -> Result<(), FileError> {
        let number = action.from as usize;
        let input = self.inputs.get(number).ok_or_else(|| FileError::NotFound { path: action.src.clone() })?;
        let owner = owner::resolve(self.base, action.chown.as_ref())?;
        let copy = Copy::new(Source { tree: &input.tree, number }, action, owner)?;
        if !action.attempt_unpack {
            return copy.run(staging, self.cancelled);
        }
        for root in copy.selection.roots() {
            if !unpack::unpack(input, root, staging, spool, self.base, &action.dest, owner, self.cancelled)? {
                copy.copy(staging, root, self.cancelled)?;
            }
        }
        Ok(())
    }
}

/// Number of the base among the sources.
const BASE: usize = usize::MAX;
