//! A few bytes from a registry can stand for as many as one likes: before a disk is full, whoever unpacks them stops.

use std::io::{self, Read};
use std::path::PathBuf;

/// Between two looks at the disk so much may come.
const STRIDE: u64 = 16 << 20;
/// What must stay free, as part of the disk and at most in bytes.
const RESERVE_PART: u64 = 100;
const RESERVE_MOST: u64 = 512 << 20;

/// Passes on what it reads while there is room for it at `directory`.
pub(crate) struct DiskGuard<R> {
    from: R,
    directory: PathBuf,
    since: u64,
}

impl<R: Read> DiskGuard<R> {
    pub(crate) fn new(from: R, directory: PathBuf) -> Self {
        // The first bytes are as good a moment as any.
        Self { from, directory, since: STRIDE }
    }
}

impl<R: Read> Read for DiskGuard<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.since >= STRIDE {
            self.since = 0;
            let disk = rustix::fs::statvfs(&self.directory)?;
            let (free, whole) = (disk.f_bavail * disk.f_frsize, disk.f_blocks * disk.f_frsize);
            room(free, whole)?;
        }
        let length = self.from.read(buffer)?;
        self.since += length as u64;
        Ok(length)
    }
}

fn room(free: u64, whole: u64) -> io::Result<()> {
    let reserve = (whole / RESERVE_PART).min(RESERVE_MOST);
    if free > reserve + STRIDE {
        return Ok(());
    }
    let left = crate::progress::bytes(free);
    Err(io::Error::new(io::ErrorKind::StorageFull, format!("the disk of the store has only {left} left")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_never_filled() {
        const GIB: u64 = 1 << 30;
        assert!(room(20 * GIB, 100 * GIB).is_ok());
        assert!(room(256 << 20, 10 * GIB).is_ok());
        assert!(room(64 << 20, 10 * GIB).is_err(), "a hundredth stays free");
        assert!(room(GIB / 2, 10_000 * GIB).is_err());
        assert!(room(GIB, 10_000 * GIB).is_ok(), "of a large disk not more than is needed");
        let error = room(0, GIB).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    }

    #[test]
    fn bytes_pass_where_there_is_room() {
        let mut all = Vec::new();
        DiskGuard::new(&b"bytes"[..], "/".into()).read_to_end(&mut all).unwrap();
        assert_eq!(all, b"bytes");
        assert!(DiskGuard::new(&b"bytes"[..], "/nonexistent".into()).read_to_end(&mut all).is_err());
    }
}
