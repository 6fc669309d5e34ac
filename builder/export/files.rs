//! The root file system as one tar, or as files of the caller's.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{self, Read as _, Write};
use std::path::Path;
use std::sync::Arc;

use serde_json::json;
use sha2::Digest as _;
use snapshotter::layer::{EntryKind, LayerError, LayerIndex, Tree, extract_tree, flattened, join, write_tree};

use super::Destination;
use crate::worker::ReadableTree;

/// The root file system of one platform, as part of what is written.
pub(crate) struct Part {
    pub(crate) tree: ReadableTree,
    /// The directory that it goes to; empty: the top.
    pub(crate) prefix: String,
}

/// Parts that do not go together.
pub(crate) enum CombineError {
    /// The path of a file that two parts have.
    Same(String),
    /// A part that cannot be read.
    Layer(LayerError),
}

/// Parts as one tree. With `mtime` all files have that time.
pub(crate) fn combined(parts: Vec<Part>, mtime: Option<i64>) -> Result<ReadableTree, CombineError> {
    if let [Part { tree, prefix }] = parts.as_slice()
        && prefix.is_empty()
        && mtime.is_none()
    {
        return Ok(tree.clone());
    }
    let mut seen = HashSet::new();
    let mut layers = Vec::new();
    let mut places = Vec::new();
    for part in parts {
        let placed = |path: &[u8]| match part.prefix.as_bytes() {
            [] => path.to_vec(),
            prefix if path.is_empty() => prefix.to_vec(),
            prefix => join(prefix, path),
        };
        // As it shows: what its layers remove, or make opaque, is nothing to the other parts.
        let flat = flattened(&part.tree.tree).map_err(CombineError::Layer)?;
        let mut entries = Vec::with_capacity(flat.len());
        let mut found = HashMap::new();
        for (mut entry, at) in flat {
            let path = placed(&entry.path);
            if !entry.is_dir() && !seen.insert(path.clone()) {
                return Err(CombineError::Same(String::from_utf8_lossy(&entry.path).into_owned()));
            }
            found.extend(at.map(|at| (path.clone(), at)));
            entry.path = path;
            if let EntryKind::Hardlink { target } = &mut entry.kind {
                *target = placed(target);
            }
            entry.mtime = mtime.map_or(entry.mtime, |mtime| (mtime, 0));
            entries.push(entry);
        }
        layers.push(Arc::new(LayerIndex::new(entries)));
        places.push((part.tree.bytes, found));
    }
    let bytes = move |layer: usize, path: &[u8]| {
        let (bytes, found) = places.get(layer).ok_or(io::ErrorKind::NotFound)?;
        let (number, path) = found.get(path).ok_or(io::ErrorKind::NotFound)?;
        bytes(*number, path)
    };
    Ok(ReadableTree { tree: Arc::new(Tree::new(layers)), bytes: Arc::new(bytes) })
}

/// How the files of `tree` came about, as a statement about each of them.
///
/// # Errors
/// A file cannot be read.
pub(crate) fn provenance_of_files(tree: &ReadableTree, predicate: &serde_json::Value) -> io::Result<Vec<u8>> {
    let mut subjects = Vec::new();
    tree.tree.walk(b"", |found| {
        if matches!(found.entry.kind, EntryKind::File { .. }) {
            let mut hasher = sha2::Sha256::new();
            let mut reader = tree.open(found.layer, &found.entry.path)?;
            let mut buffer = vec![0; 1 << 16];
            loop {
                match reader.read(&mut buffer)? {
                    0 => break,
                    length => hasher.update(&buffer[..length]),
                }
            }
            let name = String::from_utf8_lossy(&found.entry.path).into_owned();
            subjects.push(json!({ "name": name, "digest": { "sha256": hex::encode(hasher.finalize()) } }));
        }
        Ok::<_, io::Error>(())
    })?;
    Ok(super::attestation::statement(subjects, predicate))
}

/// Writes all that `tree` shows as a tar, owners kept.
///
/// # Errors
/// A layer that cannot be read, or the destination.
pub(crate) fn write_tar(tree: &ReadableTree, destination: &Destination) -> Result<(), LayerError> {
    let open = |layer: usize, path: &[u8]| tree.open(layer, path);
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
    let extracted = extract_tree(&tree.tree, |layer, path| tree.open(layer, path), directory)?;
    Ok(extracted.skipped)
}
