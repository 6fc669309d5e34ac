//! From a tar stream to a directory.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use graph::{ContentDigest, Digest};

use super::{LayerError, LayerIndex, Tree};

/// How a layer is put on disk.
#[derive(Clone, Copy, Debug, Default)]
pub struct ApplyOptions {
    /// Mark opaque directories with `user.overlay.opaque`, for overlays mounted with `userxattr`, not `trusted.…`.
    pub userxattr: bool,
    /// What becomes of owners.
    pub ownership: Ownership,
}

/// Whether files get the owners that the layer names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ownership {
    /// They do; a user who may not give files away gets [`LayerError::Unheld`].
    #[default]
    Keep,
    /// All belong to whoever unpacks; the index still has the owners.
    Skip,
}

/// A layer that was read to its end.
#[derive(Clone, Debug)]
pub struct Applied {
    /// sha256 of the uncompressed stream.
    pub diff_id: Digest,
    /// Digest of everything but times ([`LayerIndex::content_digest`]).
    pub content: ContentDigest,
    /// Length of the uncompressed stream.
    pub size: u64,
    /// What is in it.
    pub index: LayerIndex,
    /// Paths whose extended attributes the disk could not hold; the index has them.
    pub not_held: Vec<Vec<u8>>,
}

/// Unpacks an uncompressed layer into the empty directory `dest`, apart from whatever will be below.
pub fn apply(tar: impl Read, dest: &Path, options: &ApplyOptions) -> Result<Applied, LayerError> {
    let _ = (tar, dest, options);
    todo!()
}

/// As [`apply`], on top of layers that are known: the result is what sequential application would change. `open_below`
/// gives the data of a file below, for hard links to it.
pub fn apply_upon(
    tar: impl Read,
    dest: &Path,
    options: &ApplyOptions,
    below: &Tree,
    open_below: impl Fn(usize, &[u8]) -> io::Result<File>,
) -> Result<Applied, LayerError> {
    let _ = (tar, dest, options, below, open_below(0, b""));
    todo!()
}

/// Reads an uncompressed layer without unpacking it.
pub fn index_tar(tar: impl Read) -> Result<Applied, LayerError> {
    let _ = tar;
    todo!()
}
