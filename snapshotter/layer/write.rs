//! The one place where the bytes of a layer are made.

use std::io::{Read, Write};

use graph::{ContentDigest, Digest};

use super::{Entry, LayerError, LayerIndex};

/// Recorded beside a diff id whose bytes are made again from a directory: raised when the same entries would give other
/// bytes.
pub const WRITER_VERSION: u32 = 1;

/// What is known about the data of a file before they are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// Nothing: the digest is computed.
    Nothing,
    /// The entry's digest was computed when the step was keyed: other data are [`LayerError::Changed`].
    Digest,
    /// The entry's digest was computed from these very bytes: only the length is checked.
    Trusted,
}

/// A finished layer.
#[derive(Clone, Debug)]
pub struct Written {
    /// sha256 of the tar.
    pub diff_id: Digest,
    /// Digest of everything but times.
    pub content: ContentDigest,
    /// Length of the tar.
    pub size: u64,
    /// What is in it.
    pub index: LayerIndex,
}

/// Writes a deterministic tar to `out`, which may be [`std::io::sink`] when only the digests are wanted.
///
/// Entries come in the order of [`super::cmp_paths`]. What BuildKit would write is written: PAX records only where a plain
/// header cannot say it, whole seconds, no names of users.
pub struct LayerWriter<W> {
    out: W,
}

impl<W: Write> LayerWriter<W> {
    /// Starts an empty layer.
    pub fn new(out: W) -> Self {
        Self { out }
    }

    /// Adds anything but a file with data. An implicit directory is only noted in the index.
    pub fn append(&mut self, entry: Entry) -> Result<(), LayerError> {
        let _ = (&self.out, entry);
        todo!()
    }

    /// Adds a regular file ([`super::EntryKind::File`]), whose source must give exactly as many bytes as the entry says. Returns
    /// the digest of the data.
    pub fn append_file(&mut self, entry: Entry, data: impl Read, expect: Expect) -> Result<ContentDigest, LayerError> {
        let _ = (&self.out, entry, data, expect);
        todo!()
    }

    /// Ends the archive.
    pub fn finish(self) -> Result<(Written, W), LayerError> {
        todo!()
    }
}
