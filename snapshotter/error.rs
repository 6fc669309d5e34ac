//! What can go wrong with a store.

use std::io;
use std::path::PathBuf;

use graph::Digest;

/// A store that cannot be opened, read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// A file or directory of the store.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another user's.
    #[error("the store {} belongs to uid {owner}, not to you (uid {own}): choose another with --root", path.display())]
    Owner {
        /// The root.
        path: PathBuf,
        /// Its owner.
        owner: u32,
        /// This process's user.
        own: u32,
    },
    /// Others could put anything into it.
    #[error("the store {} can be written by others (mode {mode:o}): chmod go-w it, or choose another with --root", path.display())]
    Writable {
        /// The root.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Locks and databases do not work there.
    #[error("the store {} is on a network file system ({kind}): put it on a local disk with --root", path.display())]
    Network {
        /// The root.
        path: PathBuf,
        /// Name of the file system.
        kind: String,
    },
    /// Made by another version.
    #[error("the store {} has format {found}, this rbuild knows {known}: use a newer rbuild, or another --root", path.display())]
    Version {
        /// The root.
        path: PathBuf,
        /// What its version file says.
        found: String,
        /// Ours.
        known: u32,
    },
    /// Made by an earlier version that still uses it.
    #[error(
        "the store {} is in use by an earlier rbuild: when that has ended, it is brought to the format of this one",
        path.display()
    )]
    OlderInUse {
        /// The root.
        path: PathBuf,
    },
    /// Not empty, and not ours.
    #[error("{} is no rbuild store, but holds {found:?}: choose an empty directory with --root", path.display())]
    NotAStore {
        /// The root.
        path: PathBuf,
        /// One of the things it holds.
        found: String,
    },
    /// SQLite cannot read its file.
    #[error(
        "the store's database {} is damaged: run the command again, which sets it aside and keeps what can be relied on",
        path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
    },
    /// Another process repaired the database while this one used it.
    #[error("the store's database {} was damaged and has been replaced: run the command again", path.display())]
    Replaced {
        /// The file.
        path: PathBuf,
    },
    /// SQLite.
    #[error("the store's database {} failed", path.display())]
    Database {
        /// The file.
        path: PathBuf,
        /// Why.
        source: rusqlite::Error,
    },
    /// A blob is not what it should be.
    #[error("expected {expected}, but the bytes have digest {found}")]
    WrongDigest {
        /// What was announced.
        expected: Digest,
        /// What came.
        found: Digest,
    },
    /// A record leads to nothing.
    #[error("the store has no layer {0}")]
    NoLayer(Digest),
    /// Waiting for a lock was given up.
    #[error("cancelled while waiting for another rbuild")]
    Cancelled,
}

impl StoreError {
    /// Whether the database has no space left.
    #[must_use]
    pub fn is_full(&self) -> bool {
        matches!(self, Self::Database { source, .. }
            if source.sqlite_error_code() == Some(rusqlite::ErrorCode::DiskFull))
    }

    pub(crate) fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { action, path, source }
    }
}
