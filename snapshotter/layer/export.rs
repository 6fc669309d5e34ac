//! A stack of layers as one tar or one plain directory.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::path::Path;

use graph::ContentDigest;
use rustix::fs::{self, AtFlags, FileType};
use rustix::io::Errno;
use sys::file::{self, Node as Device};
use sys::xattr;

use super::entry::{Entry, EntryKind, show, split};
use super::error::LayerError;
use super::tree::{Found, Tree};
use super::write::{Expect, LayerWriter};

/// What [`extract_tree`] could not do for this user on this file system.
#[derive(Clone, Debug, Default)]
pub struct Extracted {
    /// Device nodes that were not made.
    pub skipped: Vec<Vec<u8>>,
    /// Paths that lack an extended attribute.
    pub not_held: Vec<Vec<u8>>,
}

/// What a merged tree has at a path, with the names of one file brought together.
pub(super) enum Visible<'a> {
    /// A file under the first of its names, to be read from where it was found.
    File(Found<'a>),
    /// A further name of the file that came as the given path.
    Link(Vec<u8>),
    Other,
}

/// Goes through a merged tree. Which name of a file comes first may differ from what its layer thought, since the layers
/// above may hide some of them.
pub(super) fn walk<'a>(
    tree: &'a Tree,
    mut visit: impl FnMut(&'a Entry, Visible<'a>) -> Result<(), LayerError>,
) -> Result<(), LayerError> {
    let mut first: HashMap<(usize, &[u8]), &[u8]> = HashMap::new();
    tree.walk(b"", |found| {
        let entry = found.entry;
        let visible = match (&entry.kind, tree.file_of(found)) {
            (_, Some(file)) => match first.entry((file.layer, &file.entry.path)) {
                std::collections::hash_map::Entry::Vacant(vacant) => {
                    vacant.insert(&entry.path);
                    Visible::File(file)
                }
                std::collections::hash_map::Entry::Occupied(first) => Visible::Link(first.get().to_vec()),
            },
            (EntryKind::Hardlink { .. }, None) => return Err(LayerError::Unmended { path: show(&entry.path) }),
            _ => Visible::Other,
        };
        visit(entry, visible)
    })
}

/// A visible file's place: the number of its layer and its path there.
pub type FoundAt = (usize, Vec<u8>);

/// All that `tree` shows, as entries of one layer, and where the data of each file is.
///
/// # Errors
/// The tree contradicts itself.
pub fn flattened(tree: &Tree) -> Result<Vec<(Entry, Option<FoundAt>)>, LayerError> {
    let mut flat = Vec::new();
    walk(tree, |entry, visible| {
        flat.push(match visible {
            Visible::File(file) => {
                let at = (file.layer, file.entry.path.clone());
                (Entry { path: entry.path.clone(), ..file.entry.clone() }, Some(at))
            }
            Visible::Link(target) => (Entry { kind: EntryKind::Hardlink { target }, ..entry.clone() }, None),
            Visible::Other if entry.is_dir() => {
                let implicit = entry.path.is_empty();
                (Entry { kind: EntryKind::Dir { opaque: false, implicit }, ..entry.clone() }, None)
            }
            Visible::Other => (entry.clone(), None),
        });
        Ok(())
    })?;
    Ok(flat)
}

/// Writes all that `tree` shows as one tar. `open` gives the data of a file of a layer; other data than the tree knows of
/// are [`LayerError::Changed`].
pub fn write_tree<R: Read>(
    tree: &Tree,
    open: impl Fn(usize, &[u8]) -> io::Result<R>,
    out: impl Write,
) -> Result<(), LayerError> {
    let mut writer = LayerWriter::plain(out);
    walk(tree, |entry, visible| match visible {
        Visible::File(file) => {
            let data = open(file.layer, &file.entry.path).map_err(LayerError::io("open", &file.entry.path))?;
            let entry = Entry { path: entry.path.clone(), ..file.entry.clone() };
            writer.append_file(entry, data, Expect::Digest).map(|_| ())
        }
        Visible::Link(target) => writer.append(Entry { kind: EntryKind::Hardlink { target }, ..entry.clone() }),
        Visible::Other if entry.is_dir() => {
            // In one archive every directory is mentioned and none is opaque; the root is not, as in BuildKit's.
            let implicit = entry.path.is_empty();
            writer.append(Entry { kind: EntryKind::Dir { opaque: false, implicit }, ..entry.clone() })
        }
        Visible::Other => writer.append(entry.clone()),
    })?;
    writer.finish()?;
    Ok(())
}

/// Writes all that `tree` shows into the directory `dest`, which may have content: what is in the way is replaced, symbolic
/// links in it are never followed, everything belongs to the caller. Other data than the tree knows of are
/// [`LayerError::Changed`].
pub fn extract_tree<R: Read>(
    tree: &Tree,
    open: impl Fn(usize, &[u8]) -> io::Result<R>,
    dest: &Path,
) -> Result<Extracted, LayerError> {
    let root = file::open_root(dest).map_err(|source| LayerError::Io {
        op: "open",
        path: dest.display().to_string(),
        source,
    })?;
    let mut extract = Extract { descent: Descent::new(root), dirs: Vec::new(), done: Extracted::default() };
    walk(tree, |entry, visible| match visible {
        _ if entry.path.is_empty() => Ok(()),
        Visible::File(from) => {
            let data = open(from.layer, &from.entry.path).map_err(LayerError::io("open", &from.entry.path))?;
            extract.file(&entry.path, from.entry, data)
        }
        Visible::Link(target) => extract.link(&entry.path, &target),
        Visible::Other if entry.is_dir() => extract.directory(entry),
        Visible::Other => extract.other(entry),
    })?;
    extract.finish()
}

/// Directories below a root, opened part by part so that none can have become a link.
pub(super) struct Descent {
    root: OwnedFd,
    /// The directory that we are in and those above it.
    open: Vec<(Vec<u8>, OwnedFd)>,
}

impl Descent {
    pub(super) fn new(root: OwnedFd) -> Self {
        Self { root, open: Vec::new() }
    }

    /// The directory of `path`, which was made before.
    pub(super) fn parent(&mut self, path: &[u8]) -> Result<&OwnedFd, LayerError> {
        self.enter(split(path).0)
    }

    /// The directory `dir` once more.
    pub(super) fn open_dir(&mut self, dir: &[u8]) -> Result<OwnedFd, LayerError> {
        file::open_dir(self.enter(dir)?, b".").map_err(LayerError::io("open", dir))
    }

    fn enter(&mut self, dir: &[u8]) -> Result<&OwnedFd, LayerError> {
        while self.open.last().is_some_and(|(open, _)| !super::is_within(dir, open)) {
            self.open.pop();
        }
        let mut length = self.open.last().map_or(0, |(open, _)| open.len());
        while length < dir.len() {
            let start = if length == 0 { 0 } else { length + 1 };
            let end = dir[start..].iter().position(|&b| b == b'/').map_or(dir.len(), |at| start + at);
            let from = self.open.last().map_or(&self.root, |(_, fd)| fd);
            let fd = file::open_dir(from, &dir[start..end]).map_err(LayerError::io("open", &dir[..end]))?;
            self.open.push((dir[..end].to_vec(), fd));
            length = end;
        }
        Ok(self.open.last().map_or(&self.root, |(_, fd)| fd))
    }
}

/// Replacing what was in the way made sure that no part of a path is a link.
struct Extract<'a> {
    descent: Descent,
    /// Described at the end, when nothing changes in them any more.
    dirs: Vec<&'a Entry>,
    done: Extracted,
}

impl<'a> Extract<'a> {
    /// Removes what is in the way of something that is no directory.
    fn clear(&mut self, path: &[u8]) -> Result<(), LayerError> {
        let dir = self.descent.parent(path)?;
        file::remove_all(dir, split(path).1).map_err(LayerError::io("replace", path))
    }

    fn directory(&mut self, entry: &'a Entry) -> Result<(), LayerError> {
        let (path, name) = (&entry.path, split(&entry.path).1);
        let io = |op| LayerError::io(op, path);
        let dir = self.descent.parent(path)?;
        match fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => {
                // We may have to write in a directory that an earlier extraction closed.
                if stat.st_mode & 0o700 != 0o700 {
                    file::chmod_at(dir, name, stat.st_mode & 0o7777 | 0o700).map_err(io("chmod"))?;
                }
            }
            Ok(_) => {
                file::unlink(dir, name).map_err(io("replace"))?;
                file::mkdir(dir, name, 0o700).map_err(io("mkdir"))?;
            }
            Err(Errno::NOENT) => file::mkdir(dir, name, 0o700).map_err(io("mkdir"))?,
            Err(error) => return Err(io("stat")(error.into())),
        }
        self.dirs.push(entry);
        Ok(())
    }

    fn file(&mut self, path: &[u8], entry: &Entry, data: impl Read) -> Result<(), LayerError> {
        let EntryKind::File { size, digest, .. } = entry.kind else { return Ok(()) };
        self.clear(path)?;
        let mut made: File =
            file::create(self.descent.parent(path)?, split(path).1, 0o600).map_err(LayerError::io("create", path))?;
        if copy_hashed(data, &mut made).map_err(LayerError::io("write", path))? != (size, digest) {
            return Err(LayerError::Changed { path: show(path) });
        }
        file::chmod(&made, entry.mode).map_err(LayerError::io("chmod", path))?;
        for (name, value) in &entry.xattrs {
            if xattr::set(&made, name, value).is_err() {
                self.not_held(path);
            }
        }
        file::set_mtime(&made, entry.mtime).map_err(LayerError::io("utimens", path))
    }

    fn link(&mut self, path: &[u8], target: &[u8]) -> Result<(), LayerError> {
        self.clear(path)?;
        let target_dir = self.descent.open_dir(split(target).0)?;
        let dir = self.descent.parent(path)?;
        file::link(target_dir, split(target).1, dir, split(path).1).map_err(LayerError::io("link", path))
    }

    fn other(&mut self, entry: &Entry) -> Result<(), LayerError> {
        let (path, name) = (&entry.path, split(&entry.path).1);
        self.clear(path)?;
        let dir = self.descent.parent(path)?;
        let device = match entry.kind {
            EntryKind::CharDev { major, minor } => Device::Char { major, minor },
            EntryKind::BlockDev { major, minor } => Device::Block { major, minor },
            EntryKind::Fifo => Device::Fifo,
            EntryKind::Symlink { ref target } => {
                file::symlink(target, dir, name).map_err(LayerError::io("symlink", path))?;
                return file::set_mtime_at(dir, name, entry.mtime).map_err(LayerError::io("utimens", path));
            }
            _ => return Ok(()),
        };
        match file::mknod(dir, name, device, 0o600) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                self.done.skipped.push(path.clone());
                return Ok(());
            }
            made => made.map_err(LayerError::io("mknod", path))?,
        }
        file::chmod_at(dir, name, entry.mode).map_err(LayerError::io("chmod", path))?;
        file::set_mtime_at(dir, name, entry.mtime).map_err(LayerError::io("utimens", path))
    }

    fn not_held(&mut self, path: &[u8]) {
        if self.done.not_held.last().is_none_or(|last| last != path) {
            self.done.not_held.push(path.to_vec());
        }
    }

    /// Modes and times of directories, the deepest first: a mode may keep us out.
    fn finish(mut self) -> Result<Extracted, LayerError> {
        for entry in std::mem::take(&mut self.dirs).into_iter().rev() {
            let path = &entry.path;
            let name = split(path).1;
            let dir = self.descent.parent(path)?;
            let fd = file::open_dir(dir, name).map_err(LayerError::io("open", path))?;
            file::chmod(&fd, entry.mode).map_err(LayerError::io("chmod", path))?;
            let mut failed = false;
            for (name, value) in &entry.xattrs {
                failed |= xattr::set(&fd, name, value).is_err();
            }
            file::set_mtime(&fd, entry.mtime).map_err(LayerError::io("utimens", path))?;
            if failed {
                self.not_held(path);
            }
        }
        Ok(self.done)
    }
}

/// Copies all of `data`; how much that was, and its digest.
fn copy_hashed(mut data: impl Read, to: &mut File) -> io::Result<(u64, ContentDigest)> {
    let mut hasher = blake3::Hasher::new();
    let mut buffer = [0; 1 << 16];
    loop {
        match data.read(&mut buffer) {
            Ok(0) => return Ok((hasher.count(), ContentDigest::from_bytes(*hasher.finalize().as_bytes()))),
            Ok(read) => {
                hasher.update(&buffer[..read]);
                to.write_all(&buffer[..read])?;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Opens files of layers that lie unpacked in `dirs`, the lowest first: what [`write_tree`] and [`extract_tree`] want.
pub fn open_in(dirs: &[std::path::PathBuf]) -> impl Fn(usize, &[u8]) -> io::Result<File> {
    move |layer, path| {
        let dir = dirs.get(layer).ok_or(io::ErrorKind::NotFound)?;
        let flags = fs::OFlags::RDONLY | fs::OFlags::NOFOLLOW | fs::OFlags::NONBLOCK;
        let root = file::open_root(dir)?;
        Ok(File::from(sys::path::open(&root, path, sys::path::Links::Refuse, flags, 0)?))
    }
}
