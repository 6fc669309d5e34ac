//! What can go wrong with a layer.

use std::io;

use super::entry::{MAX_PATHS, show, too_long};

/// A layer could not be read, written, unpacked or merged.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LayerError {
    /// A system call on a file of the layer failed.
    #[error("{op} {path}: {source}")]
    Io {
        /// What was tried.
        op: &'static str,
        /// On what.
        path: String,
        /// Why it failed.
        source: io::Error,
    },
    /// This machine, or this user on it, cannot hold what the layer has: devices and owners need privileges.
    #[error("{op} {path}: not possible for this user on this machine: {source}")]
    Unheld {
        /// What was tried.
        op: &'static str,
        /// On what.
        path: String,
        /// Why it failed.
        source: io::Error,
    },
    /// The stream that the layer comes from broke.
    #[error("reading the layer: {0}")]
    Read(#[source] io::Error),
    /// The stream that the layer goes to broke.
    #[error("writing the layer: {0}")]
    Write(#[source] io::Error),
    /// The bytes are not a tar archive that can be trusted.
    #[error("invalid tar archive at byte {offset}: {reason}")]
    Format {
        /// Where in the uncompressed stream.
        offset: u64,
        /// What is wrong.
        reason: String,
    },
    /// A source gave more or fewer bytes, or other ones, than when it was looked at.
    #[error("{path} changed during the build")]
    Changed {
        /// The path in the layer.
        path: String,
    },
    /// Entries must come in the order of [`super::cmp_paths`], each path once.
    #[error("{path} is out of order in the layer")]
    OutOfOrder {
        /// The path in the layer.
        path: String,
    },
    /// A tar archive has no way to say this.
    #[error("{path} cannot be stored in a layer: {reason}")]
    Unrepresentable {
        /// The path in the layer.
        path: String,
        /// What stands in the way.
        reason: &'static str,
    },
    /// A hard link to nothing.
    #[error("{path} is a hard link to {target}, which is not a file in this image")]
    LinkTarget {
        /// The link.
        path: String,
        /// Where it should lead.
        target: String,
    },
    /// Symbolic links in a circle, or more than 40 on the way.
    #[error("{path}: too many levels of symbolic links")]
    Loop {
        /// What was to be resolved.
        path: String,
    },
    /// The path does not exist in the merged layers.
    #[error("{path}: no such file or directory")]
    Missing {
        /// What was looked for.
        path: String,
    },
    /// A part of the path that should be a directory is something else.
    #[error("{path}: not a directory")]
    NotADirectory {
        /// What was looked for.
        path: String,
    },
    /// Longer than this machine, or any other that runs Linux, could open.
    #[error("{path} is too long: {limit}")]
    TooLong {
        /// The path in the layer, shortened.
        path: String,
        /// What would fit.
        limit: &'static str,
    },
    /// Nested deeper, or more of it, than any real layer: it would fill the memory.
    #[error("the layer's paths are more than {} MiB together", MAX_PATHS >> 20)]
    TooManyPaths,
    /// Given up on request.
    #[error("cancelled")]
    Cancelled,
    /// The encoded index is damaged or of another version.
    #[error("the layer's index cannot be read: {0}")]
    Index(String),
    /// The layer leans on layers below and was not mended.
    #[error("{path} depends on the layers below: the layer must be mended first")]
    Unmended {
        /// A path that does.
        path: String,
    },
}

impl LayerError {
    /// An error for a path that is too long.
    pub fn check_length(path: &[u8]) -> Result<(), Self> {
        const SHOWN: usize = 60;
        match too_long(path) {
            None => Ok(()),
            Some(limit) if path.len() > SHOWN => Err(Self::TooLong { path: show(&path[..SHOWN]) + "…", limit }),
            Some(limit) => Err(Self::TooLong { path: show(path), limit }),
        }
    }

    /// For `map_err`: a failed call on a path of the layer. Lack of privilege is told apart.
    pub(crate) fn io(op: &'static str, path: &[u8]) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { op, path: show(path), source }
    }

    /// As [`LayerError::io`], for calls that fail where privileges or features are missing.
    pub(crate) fn held(op: &'static str, path: &[u8]) -> impl FnOnce(io::Error) -> Self {
        move |source| match source.raw_os_error().map(rustix::io::Errno::from_raw_os_error) {
            Some(rustix::io::Errno::PERM | rustix::io::Errno::INVAL | rustix::io::Errno::OPNOTSUPP) => {
                Self::Unheld { op, path: show(path), source }
            }
            _ => Self::Io { op, path: show(path), source },
        }
    }
}
