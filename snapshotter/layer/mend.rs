//! Making a layer that was unpacked apart fit the layers below it.
//!
//! Unpacked apart, a layer is right but for what only the layers below can tell. Whiteouts that hide nothing go.
//! Directories that it had to invent should look as they do below: they are described anew, in place. A directory of its
//! names may be a symbolic link below, and a hard link's target may lie below: then names lead elsewhere or data are missing,
//! and the layer is unpacked once more with the layers below in sight, which is sequential application itself. So that
//! this is never missed, the index notes every path that was taken for granted ([`LayerIndex::assumed`],
//! [`LayerIndex::targets`]).

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use graph::Digest;
use rustix::fs::OFlags;
use sys::file::Node;
use sys::path::{Links, open};

use super::apply::{ApplyOptions, Marks, apply_upon};
use super::disk::{Disk, opaque_key};
use super::entry::{Entry, EntryKind, split};
use super::error::LayerError;
use super::index::LayerIndex;
use super::state::Meta;
use super::tree::Tree;

/// What mending took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mended {
    /// Nothing, or metadata of invented directories.
    InPlace,
    /// Paths led elsewhere or link targets lay below: the layer was unpacked again.
    Reapplied {
        /// sha256 of the stream that was unpacked, to be compared with what it should have been.
        diff_id: Digest,
    },
}

/// Makes a layer unpacked apart into `dir` equal to one applied on top of `below`. `open_below` gives a file of a layer
/// below, `open_tar` the layer's uncompressed stream, needed only where paths lead elsewhere. Mending again does nothing.
///
/// After an error the directory is to be removed.
pub fn mend<R: Read>(
    dir: &Path,
    index: &mut LayerIndex,
    below: &Tree,
    options: &ApplyOptions,
    open_below: impl Fn(usize, &[u8]) -> io::Result<File>,
    open_tar: impl FnOnce() -> io::Result<R>,
    cancelled: &dyn Fn() -> bool,
) -> Result<Mended, LayerError> {
    if index.leaning(below).is_some() {
        empty(dir)?;
        let applied = apply_upon(open_tar().map_err(LayerError::Read)?, dir, options, below, open_below, cancelled)?;
        *index = applied.index;
        hide_below_root(dir, index, below, options)?;
        return Ok(Mended::Reapplied { diff_id: applied.diff_id });
    }
    if options.marks != Marks::None {
        drop_idle_whiteouts(dir, index, below)?;
    }
    let mut disk = None;
    let mut finger = below.finger();
    // The deepest first: the mode that a parent gets may keep us out of it.
    for entry in index.entries_mut().rev().filter(|entry| entry.is_implicit()) {
        if cancelled() {
            return Err(LayerError::Cancelled);
        }
        let Some(found) = finger.lookup(&entry.path).filter(|found| found.entry.is_dir()) else { continue };
        let meta = Meta::of(found.entry);
        if meta == Meta::of(entry) {
            continue;
        }
        let disk = match &mut disk {
            Some(disk) => disk,
            None => disk.insert(Disk::reopen(dir, *options)?),
        };
        let fd = open(disk.root(), &entry.path, Links::Refuse, OFlags::RDONLY | OFlags::DIRECTORY, 0)
            .map_err(LayerError::io("open", &entry.path))?;
        disk.describe_dir(&fd, &meta, || entry.path.clone())?;
        entry.copy_metadata(found.entry);
    }
    hide_below_root(dir, index, below, options)?;
    Ok(Mended::InPlace)
}

impl LayerIndex {
    /// A path of this layer, unpacked apart, that means something else upon `below`; [`mend`] will need the tar.
    pub(crate) fn leaning(&self, below: &Tree) -> Option<&[u8]> {
        let mut finger = below.finger();
        let mut is_link = |path: &[u8]| {
            finger.lookup(path).is_some_and(|found| matches!(found.entry.kind, EntryKind::Symlink { .. }))
        };
        let dirs = self.entries().iter().filter(|entry| entry.is_implicit()).map(|entry| &*entry.path);
        let assumed = self.assumed().iter().map(|path| &**path);
        self.targets().first().map(|path| &**path).or_else(|| dirs.chain(assumed).find(|path| is_link(path)))
    }
}

/// Removes the whiteouts that hide nothing. In a directory that no other layer has, overlayfs would list them as names
/// without files. The index keeps them, as the tar has them.
fn drop_idle_whiteouts(dir: &Path, index: &LayerIndex, below: &Tree) -> Result<(), LayerError> {
    let mut finger = below.finger();
    let mut idle = index
        .entries()
        .iter()
        .filter(|entry| entry.kind == EntryKind::Whiteout && finger.lookup(&entry.path).is_none())
        .peekable();
    if idle.peek().is_none() {
        return Ok(());
    }
    let root = sys::file::open_root(dir).map_err(LayerError::io("open", b""))?;
    for Entry { path, .. } in idle {
        let (dir, name) = split(path);
        let parent = open(&root, dir, Links::Refuse, OFlags::RDONLY | OFlags::DIRECTORY, 0)
            .map_err(LayerError::io("open", path))?;
        match sys::file::unlink(&parent, name) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            done => done.map_err(LayerError::io("unlink", path))?,
        }
        if let Some(dir) = index.get(dir) {
            sys::file::set_mtime(&parent, dir.mtime).map_err(LayerError::io("utimens", &dir.path))?;
        }
    }
    Ok(())
}

/// Overlayfs merges the roots of its layers whatever marks they have. Where the root is opaque, all that shows in it from
/// below is hidden name by name.
fn hide_below_root(dir: &Path, index: &LayerIndex, below: &Tree, options: &ApplyOptions) -> Result<(), LayerError> {
    let Some(opaque) = opaque_key(options.marks) else { return Ok(()) };
    let Some(top) = index.get(b"").filter(|top| matches!(top.kind, EntryKind::Dir { opaque: true, .. })) else {
        return Ok(());
    };
    let root = sys::file::open_root(dir).map_err(LayerError::io("open", b""))?;
    for Entry { path, .. } in below.children(b"").iter().map(|found| found.entry) {
        match index.get(path).map(|entry| &entry.kind) {
            Some(EntryKind::Dir { .. }) => {
                sys::xattr::set_at(&root, path, opaque, b"y").map_err(LayerError::held("setxattr", path))?;
            }
            None | Some(EntryKind::Whiteout) => match sys::file::mknod(&root, path, Node::WHITEOUT, 0o600) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                made => made.map_err(LayerError::held("mknod", path))?,
            },
            Some(_) => {}
        }
    }
    sys::file::set_mtime(&root, top.mtime).map_err(LayerError::io("utimens", b""))
}

/// Removes everything in a directory.
fn empty(dir: &Path) -> Result<(), LayerError> {
    let io = |op| {
        let path = dir.display().to_string();
        move |source: io::Error| LayerError::Io { op, path, source }
    };
    let root = sys::file::open_root(dir).map_err(io("open"))?;
    let names = rustix::fs::Dir::read_from(&root)
        .and_then(|items| items.map(|item| item.map(|item| item.file_name().to_owned())).collect::<Result<Vec<_>, _>>())
        .map_err(|error| io("read directory")(error.into()))?;
    for name in names {
        if !matches!(name.to_bytes(), b"." | b"..") {
            sys::file::remove_all(&root, name.to_bytes()).map_err(io("empty"))?;
        }
    }
    Ok(())
}
