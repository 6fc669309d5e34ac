//! From an overlay's upper directory to a tar stream.

use std::io::Write;
use std::path::Path;

use graph::{ContentDigest, Digest};

use super::{LayerError, LayerIndex, Tree};

/// How an upper directory is read.
#[derive(Clone, Copy, Debug, Default)]
pub struct CommitOptions<'a> {
    /// The layers that were below, to drop whiteouts and opaque marks that hide nothing (overlay marks every new
    /// directory). Without it they are all kept.
    pub below: Option<&'a Tree>,
}

/// A layer that an upper directory stands for.
#[derive(Clone, Debug)]
pub struct Committed {
    /// sha256 of the tar that [`write_upper`] makes.
    pub diff_id: Digest,
    /// Digest of everything but times.
    pub content: ContentDigest,
    /// Length of that tar.
    pub size: u64,
    /// What is in it.
    pub index: LayerIndex,
}

/// Hashes the layer that the upper directory `upper` stands for, without writing it anywhere.
pub fn commit_upper(upper: &Path, options: &CommitOptions<'_>) -> Result<Committed, LayerError> {
    let _ = (upper, options);
    todo!()
}

/// Makes the bytes of a layer again from its directory. Whoever stores or sends them verifies the diff id.
pub fn write_upper(dir: &Path, index: &LayerIndex, out: impl Write) -> Result<(), LayerError> {
    let _ = (dir, index, out);
    todo!()
}
