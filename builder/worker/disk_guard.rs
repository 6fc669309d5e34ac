//! What is unpacked stops before the disk is full.

use std::io::{self, Read};
use std::path::PathBuf;

use snapshotter::Room;

/// Passes on what it reads while there is room for it at a directory.
pub(crate) struct DiskGuard<R> {
    from: R,
    room: Room,
}

impl<R: Read> DiskGuard<R> {
    pub(crate) fn new(from: R, directory: PathBuf) -> Self {
        Self { from, room: Room::at(directory) }
    }

    /// The same where little may come, for which there may be room on a small disk.
    pub(crate) fn later(from: R, directory: PathBuf) -> Self {
        Self { from, room: Room::later(directory) }
    }
}

impl<R: Read> Read for DiskGuard<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.from.read(buffer)?;
        self.room.take(length as u64)?;
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_pass_where_there_is_room() {
        let mut all = Vec::new();
        DiskGuard::new(&b"bytes"[..], "/".into()).read_to_end(&mut all).unwrap();
        assert_eq!(all, b"bytes");
        assert!(DiskGuard::new(&b"bytes"[..], "/nonexistent".into()).read_to_end(&mut all).is_err());
    }
}
