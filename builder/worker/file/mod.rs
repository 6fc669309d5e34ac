//! FileOp: COPY, ADD, WORKDIR. Decided on the indexes of trees, then written straight from the sources into the layer.

mod chmod;
mod copy;
mod owner;
mod staging;
mod unpack;
pub(crate) mod wildcard;

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use graph::{CopyAction, FileAction, FileOp};
use snapshotter::layer::{Entry, EntryKind, Expect, LayerError, LayerWriter, Tree, Written};

pub(crate) use copy::copied_digest;
use copy::{Copy, Source};
use staging::{Content, Planned, Staging};

/// A tree that can be read: what is in it, and its bytes.
#[derive(Clone)]
pub(crate) struct ReadableTree {
    pub(crate) tree: Arc<Tree>,
    pub(crate) open: Arc<OpenFile>,
}

/// Opens the file at a path of layer number so-and-so.
pub(crate) type OpenFile = dyn Fn(usize, &[u8]) -> io::Result<Box<dyn Read + Send>> + Send + Sync;

impl ReadableTree {
    /// Nothing at all.
    pub(crate) fn empty() -> Self {
        let open = |_: usize, _: &[u8]| Err(io::ErrorKind::NotFound.into());
        Self { tree: Arc::default(), open: Arc::new(open) }
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
    #[error("cannot copy a directory to {path}: what is there is no directory")]
    NotADirectory {
        /// In the image.
        path: String,
    },
    /// The destination of a file is a directory.
    #[error("cannot replace the directory {path} with a file")]
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
    /// A source path that leads nowhere.
    #[error("cannot follow {path}: {why}")]
    Source {
        /// In the source.
        path: String,
        /// The reason.
        why: String,
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
        let mut spool = unpack::Spool::default();
        for action in &self.op.actions {
            match action {
                FileAction::Copy(action) => self.copy(&mut staging, &mut spool, action)?,
                FileAction::Mkdir(action) => {
                    let owner = owner::resolve(self.base, action.chown.as_ref())?;
                    let path = staging.resolve(action.path.as_bytes())?;
                    let missing_parent = !action.make_parents && !staging.is_dir(staging::parent(&path));
                    if missing_parent {
                        return Err(FileError::NotFound { path: staging::lossy(staging::parent(&path)) });
                    }
                    staging.make_dirs(&path, action.mode, owner)?;
                }
                FileAction::Mkfile(action) => {
                    let owner = owner::resolve(self.base, action.chown.as_ref())?;
                    let path = staging.resolve(action.path.as_bytes())?;
                    if staging.is_dir(&path) {
                        return Err(FileError::IsADirectory { path: staging::lossy(&path) });
                    }
                    staging.make_dirs(staging::parent(&path), 0o755, owner)?;
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

    fn copy(&self, staging: &mut Staging<'_>, spool: &mut unpack::Spool, action: &CopyAction) -> Result<(), FileError> {
        let number = action.from as usize;
        let input = self.inputs.get(number).ok_or_else(|| FileError::NotFound { path: action.src.clone() })?;
        let owner = owner::resolve(self.base, action.chown.as_ref())?;
        let source = Source { tree: &input.tree, number };
        let mut copy = Copy::new(source, action, owner)?;
        if !action.attempt_unpack {
            return copy.run(staging);
        }
        for path in copy.matches()? {
            if !unpack::unpack(input, &path, staging, spool, self.base, action, owner)? {
                copy.copy_match(staging, &path)?;
            }
        }
        Ok(())
    }
}

/// Number of the base among the sources.
pub(crate) const BASE: usize = usize::MAX;

impl Plan {
    /// Writes the layer to `out`, reading every source once. A file that is no longer what it was when the step was keyed
    /// is an error.
    pub(crate) fn write<W: Write>(self, work: &Work<'_>, out: W) -> Result<(Written, W), FileError> {
        let mut writer = LayerWriter::new(out);
        for planned in self.planned {
            let Planned { entry, content, .. } = planned;
            match content {
                Content::None => writer.append(entry)?,
                Content::Bytes(bytes) => {
                    writer.append_file(entry, &*bytes, Expect::Nothing)?;
                }
                Content::Source { source, layer, path } => {
                    let tree = if source == BASE { Some(work.base) } else { work.inputs.get(source) };
                    let open = tree.map_or_else(|| Err(io::ErrorKind::NotFound.into()), |tree| (tree.open)(layer, &path));
                    let data = open.map_err(|source| FileError::Read { path: staging::lossy(&path), source })?;
                    writer.append_file(entry, data, Expect::Digest)?;
                }
                Content::Spooled { offset } => {
                    let EntryKind::File { size, .. } = entry.kind else { continue };
                    let Some(file) = &self.spool else { continue };
                    writer.append_file(entry, (At { file, offset }).take(size), Expect::Nothing)?;
                }
            }
        }
        Ok(writer.finish()?)
    }
}

/// Reads a file from an offset.
struct At<'a> {
    file: &'a File,
    offset: u64,
}

impl Read for At<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read_at(buffer, self.offset)?;
        self.offset += read as u64;
        Ok(read)
    }
}
