//! The root file system as one tar, or as files of the caller's.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Read as _, Write};
use std::path::Path;
use std::sync::Arc;

use serde_json::json;
use sha2::Digest as _;
use snapshotter::layer::{Entry, EntryKind, LayerError, LayerIndex, Tree, extract_tree, join, write_tree};

use super::Destination;
use crate::worker::ReadableTree;

/// The root file system of one platform, as part of what is written.
pub(crate) struct Part {
    pub(crate) tree: ReadableTree,
    /// The directory that it goes to; empty: the top.
    pub(crate) prefix: String,
}

/// Parts as one tree. With `mtime` all files have that time. The path of a file that two parts have is the error.
pub(crate) fn combined(parts: Vec<Part>, mtime: Option<i64>) -> Result<ReadableTree, String> {
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
        let twice =
            part.tree.tree.walk(b"", |found| match found.entry.is_dir() || seen.insert(placed(&found.entry.path)) {
                true => Ok(()),
                false => Err(String::from_utf8_lossy(&found.entry.path).into_owned()),
            });
        twice?;
        for (number, layer) in part.tree.tree.layers().iter().enumerate() {
            let entries = layer.entries().iter().map(|entry| {
                let mut entry = Entry { path: placed(&entry.path), ..entry.clone() };
                if let EntryKind::Hardlink { target } = &mut entry.kind {
                    *target = placed(target);
                }
                entry.mtime = mtime.map_or(entry.mtime, |mtime| (mtime, 0));
                entry
            });
            layers.push(Arc::new(LayerIndex::new(entries.collect())));
            places.push((Arc::clone(&part.tree.bytes), number, part.prefix.clone()));
        }
    }
    let bytes = move |layer: usize, path: &[u8]| {
        let (bytes, number, prefix) = places.get(layer).ok_or(io::ErrorKind::NotFound)?;
        let path = path.strip_prefix(prefix.as_bytes()).unwrap_or(path);
        bytes(*number, path.strip_prefix(b"/").unwrap_or(path))
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
