//! A few bytes from others can stand for as many as one likes: whoever writes them to the disk stops before it is full.

use std::io;
use std::path::PathBuf;

/// Between two looks at the disk so much may come.
const STRIDE: u64 = 16 << 20;
/// What must stay free, as part of the disk and at most in bytes.
const RESERVE_PART: u64 = 100;
const RESERVE_MOST: u64 = 512 << 20;

/// The room that there is on the disk of a directory, looked at now and then while bytes come.
#[derive(Debug)]
pub struct Room {
    directory: PathBuf,
    since: u64,
}

impl Room {
    /// On the disk of `directory`.
    #[must_use]
    pub fn at(directory: impl Into<PathBuf>) -> Self {
        // The first bytes are as good a moment as any.
        Self { directory: directory.into(), since: STRIDE }
    }

    /// The same for a file that may well be small, and then is none that fills a disk.
    #[must_use]
    pub fn later(directory: impl Into<PathBuf>) -> Self {
        Self { since: 0, ..Self::at(directory) }
    }

    /// To be asked before `bytes` are written.
    ///
    /// # Errors
    /// `StorageFull` when the disk is nearly full, or it cannot be looked at.
    pub fn take(&mut self, bytes: u64) -> io::Result<()> {
        self.since = self.since.saturating_add(bytes);
        if self.since < STRIDE {
            return Ok(());
        }
        self.since = 0;
        let disk = rustix::fs::statvfs(&self.directory)?;
        suffices(disk.f_bavail.saturating_mul(disk.f_frsize), disk.f_blocks.saturating_mul(disk.f_frsize))
    }
}

fn suffices(free: u64, whole: u64) -> io::Result<()> {
    let reserve = (whole / RESERVE_PART).min(RESERVE_MOST);
    if free > reserve + STRIDE {
        return Ok(());
    }
    let left = format!("the disk of the store has only {} MiB left", free >> 20);
    Err(io::Error::new(io::ErrorKind::StorageFull, left))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_never_filled() {
        const GIB: u64 = 1 << 30;
        assert!(suffices(20 * GIB, 100 * GIB).is_ok());
        assert!(suffices(256 << 20, 10 * GIB).is_ok());
        assert!(suffices(64 << 20, 10 * GIB).is_err(), "a hundredth stays free");
        assert!(suffices(GIB / 2, 10_000 * GIB).is_err());
        assert!(suffices(GIB, 10_000 * GIB).is_ok(), "of a large disk not more than is needed");
        let error = suffices(0, GIB).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    }

    #[test]
    fn a_disk_is_looked_at_first_and_now_and_then() {
        let mut room = Room::at("/");
        room.take(1).unwrap();
        room.directory = "/nonexistent".into();
        room.take(STRIDE - 1).unwrap();
        assert!(room.take(1).is_err());
    }
}
