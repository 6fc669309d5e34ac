//! The root file system as one tar, or as files of the caller's.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use snapshotter::layer::{LayerError, extract_tree, write_tree};

use super::Destination;
use crate::worker::ReadableTree;

/// Writes all that `tree` shows as a tar, owners kept.
///
/// # Errors
/// A layer that cannot be read, or the destination.
pub(crate) fn write_tar(tree: &ReadableTree, destination: &Destination) -> Result<(), LayerError> {
    let open = |layer: usize, path: &[u8]| (tree.open)(layer, path);
    match destination {
        Destination::Stdout => write_tree(&tree.tree, open, io::BufWriter::with_capacity(1 << 18, io::stdout().lock())),
        Destination::File(path) | Destination::Directory(path) => {
            let failed = |source| LayerError::Io { op: "write", path: path.display().to_string(), source };
            let mut out = io::BufWriter::with_capacity(1 << 18, File::create(path).map_err(failed)?);
            write_tree(&tree.tree, open, &mut out)?;
            out.flush().map_err(failed)
        }
    }
}

/// Writes all that `tree` shows into a directory; files belong to the caller. Links in the directory are not followed.
///
/// # Errors
/// A layer that cannot be read, or the destination.
pub(crate) fn write_local(tree: &ReadableTree, directory: &Path) -> Result<Vec<Vec<u8>>, LayerError> {
    std::fs::create_dir_all(directory).map_err(|source| LayerError::Io {
        op: "create",
        path: directory.display().to_string(),
        source,
    })?;
    let extracted = extract_tree(&tree.tree, |layer, path| (tree.open)(layer, path), directory)?;
    Ok(extracted.skipped)
}
