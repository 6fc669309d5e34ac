//! Locks by name between processes, and threads of one: flock on a file that no child inherits. A lock dies with its
//! owner.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};

use crate::{Store, StoreError};

/// A held lock; dropped, it lets the next one in.
#[derive(Debug)]
pub struct KeyLock {
    _file: File,
    path: PathBuf,
}

impl Drop for KeyLock {
    fn drop(&mut self) {
        // Removed while held: whoever waits on the removed file sees that it has no name any more, and starts over. A file
        // that cannot be removed is only litter.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Longest pause between two attempts.
const PAUSE: Duration = Duration::from_millis(40);

impl Store {
    /// The lock if it is free now.
    ///
    /// # Errors
    /// The lock file.
    pub fn try_lock(&self, name: &str) -> Result<Option<KeyLock>, StoreError> {
        let path = self.layout.join("locks").join(graph::ContentDigest::of(name.as_bytes()).hex());
        loop {
            let file = open(&path).map_err(StoreError::io("open the lock", &path))?;
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => return Err(StoreError::io("lock", &path)(error.into())),
            }
            let metadata = file.metadata().map_err(StoreError::io("examine", &path))?;
            if metadata.nlink() > 0 {
                return Ok(Some(KeyLock { _file: file, path }));
            }
        }
    }

    /// Waits for the lock on this thread.
    ///
    /// # Errors
    /// The lock file, or that `cancelled` said so.
    pub fn lock(&self, name: &str, cancelled: &dyn Fn() -> bool) -> Result<KeyLock, StoreError> {
        let mut pause = Duration::from_millis(1);
        loop {
            if let Some(lock) = self.try_lock(name)? {
                return Ok(lock);
            }
            if cancelled() {
                return Err(StoreError::Cancelled);
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(PAUSE);
        }
    }
}

/// The path with something appended to its last part.
pub(crate) fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

pub(crate) fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
}
