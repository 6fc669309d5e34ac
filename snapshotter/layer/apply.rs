//! From a tar stream to a directory.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;

use graph::{ContentDigest, Digest};

use super::disk::Disk;
use super::entry::{EntryKind, clean, is_within, join, keeps_xattr, show, split};
use super::error::LayerError;
use super::header::{ALIGNMENT, LARGE, OPAQUE, WHITEOUT};
use super::index::LayerIndex;
use super::read::{Member, MemberKind, Piece, TarReader};
use super::state::{Inode, InodeId, Meta, NodeId, NodeKind, ROOT, State};
use super::tree::Tree;

/// The holes of all sparse files of a layer together. They cost an attacker nothing, and us the time to hash them.
const MAX_HOLES: u64 = 256 << 30;

/// How a layer is put on disk.
#[derive(Clone, Copy, Debug, Default)]
pub struct ApplyOptions {
    /// How the disk says what a layer removes.
    pub marks: Marks,
    /// What becomes of owners.
    pub ownership: Ownership,
}

/// What stands on the disk for removals: files that exist no more, and directories that hide what is below.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Marks {
    /// Overlayfs's own: devices 0:0 and `trusted.overlay.opaque`.
    #[default]
    Trusted,
    /// The same with `user.overlay.opaque`, for overlays mounted with `userxattr`.
    User,
    /// Nothing: the index alone tells. Where there are no overlays, and where these marks could not be made.
    None,
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
///
/// Every entry that the tar has is made as the tar has it; what only the layers below can tell is noted in the index for
/// [`super::mend`], which every layer needs, the lowest too. Nothing is synced. After an error the directory is to be removed.
///
/// `cancelled` is asked for every member; once it says yes, that is the end.
pub fn apply(
    tar: impl Read,
    dest: &Path,
    options: &ApplyOptions,
    cancelled: &dyn Fn() -> bool,
) -> Result<Applied, LayerError> {
    apply_sharing(tar, None, dest, options, cancelled)
}

/// As [`apply`], of an archive that is all there is in the file `archive`: where the file system can, what is unpacked
/// of large files shares its blocks.
pub fn apply_sharing(
    tar: impl Read,
    archive: Option<&File>,
    dest: &Path,
    options: &ApplyOptions,
    cancelled: &dyn Fn() -> bool,
) -> Result<Applied, LayerError> {
    let none = |_: usize, _: &[u8]| Err(io::ErrorKind::NotFound.into());
    Applier {
        state: State::new(None),
        disk: Some(Disk::new(dest, *options)?),
        archive,
        below: None,
        open_below: &none,
        cancelled,
        holes: 0,
    }
    .run(tar)
}

/// As [`apply`], on top of layers that are known: the result is what sequential application would change. `open_below`
/// gives the data of a file below, for hard links to it.
pub fn apply_upon(
    tar: impl Read,
    dest: &Path,
    options: &ApplyOptions,
    below: &Tree,
    open_below: impl Fn(usize, &[u8]) -> io::Result<File>,
    cancelled: &dyn Fn() -> bool,
) -> Result<Applied, LayerError> {
    let disk = Some(Disk::new(dest, *options)?);
    let (state, open_below) = (State::new(Some(below)), &open_below);
    Applier { state, disk, archive: None, below: Some(below), open_below, cancelled, holes: 0 }.run(tar)
}

/// Reads an uncompressed layer without unpacking it.
pub fn index_tar(tar: impl Read, cancelled: &dyn Fn() -> bool) -> Result<Applied, LayerError> {
    let none = |_: usize, _: &[u8]| Err(io::ErrorKind::NotFound.into());
    Applier { state: State::new(None), disk: None, archive: None, below: None, open_below: &none, cancelled, holes: 0 }
        .run(tar)
}

/// What a hard link is made to.
enum Source {
    File(NodeId, InodeId),
    Other(EntryKind, Meta),
}

struct Applier<'a> {
    state: State<'a>,
    /// `None`: only the index is wanted.
    disk: Option<Disk>,
    /// The archive, as long as blocks may be shared with it.
    archive: Option<&'a File>,
    below: Option<&'a Tree>,
    open_below: &'a dyn Fn(usize, &[u8]) -> io::Result<File>,
    cancelled: &'a dyn Fn() -> bool,
    holes: u64,
}

impl Applier<'_> {
    fn run(mut self, tar: impl Read) -> Result<Applied, LayerError> {
        let mut reader = TarReader::new(tar);
        while let Some(member) = reader.next_member()? {
            if (self.cancelled)() {
                return Err(LayerError::Cancelled);
            }
            self.member(&mut reader, member)?;
            self.state.check_size()?;
        }
        let (diff_id, size) = reader.finish()?;
        let mut not_held = Vec::new();
        if let Some(mut disk) = self.disk {
            disk.finish(&self.state, self.cancelled)?;
            not_held = disk.not_held;
        }
        let index = self.state.index();
        Ok(Applied { diff_id, content: index.content_digest(), size, index, not_held })
    }

    fn member<R: Read>(&mut self, reader: &mut TarReader<R>, member: Member) -> Result<(), LayerError> {
        let path = clean(&member.name);
        let (dir, name) = split(&path);
        let format = |reason: &str| {
            Err(LayerError::Format { offset: member.at, reason: format!("{}: {reason}", show(&member.name)) })
        };
        if name == OPAQUE {
            let dir = self.parent(dir, true)?;
            return self.hide(dir);
        }
        // What aufs kept for itself stands in old images.
        if path.split(|&b| b == b'/').any(|part| part.starts_with(b".wh..wh.")) {
            return Ok(());
        }
        if let Some(removed) = name.strip_prefix(WHITEOUT) {
            if matches!(removed, b"" | b"." | b"..") {
                return format("a whiteout of nothing");
            }
            return self.whiteout(dir, removed);
        }
        let meta = Meta {
            mode: member.mode,
            uid: member.uid,
            gid: member.gid,
            mtime: member.mtime,
            xattrs: member.xattrs.into_iter().filter(|(name, _)| keeps_xattr(name)).collect(),
        };
        if path.is_empty() {
            if member.kind != MemberKind::Dir {
                return format("the root must be a directory");
            }
            self.explicit(ROOT, meta);
            return Ok(());
        }
        let dir = self.parent(dir, true)?;
        match member.kind {
            MemberKind::Dir => self.directory(dir, name, meta),
            MemberKind::File { size, offset } => {
                self.clear(dir, name)?;
                self.file(reader, dir, name, size, offset, meta)
            }
            MemberKind::Hardlink(target) => self.hardlink(dir, name, &target, meta),
            MemberKind::Symlink(target) if target.is_empty() => format("a symbolic link to nothing"),
            MemberKind::Symlink(target) => self.other(dir, name, EntryKind::Symlink { target }, meta),
            MemberKind::Char(major, minor) => self.other(dir, name, EntryKind::CharDev { major, minor }, meta),
            MemberKind::Block(major, minor) => self.other(dir, name, EntryKind::BlockDev { major, minor }, meta),
            MemberKind::Fifo => self.other(dir, name, EntryKind::Fifo, meta),
        }
    }

    /// The directory that names in `dir` go to: members of this layer, unless they are not its `own`.
    fn parent(&mut self, dir: &[u8], own: bool) -> Result<NodeId, LayerError> {
        let disk = std::cell::RefCell::new(self.disk.as_mut());
        let made =
            &mut |state: &State<'_>, id| disk.borrow_mut().as_mut().map_or(Ok(()), |disk| disk.make_dir(state, id));
        let removed =
            &mut |state: &State<'_>, id| disk.borrow_mut().as_mut().map_or(Ok(()), |disk| disk.remove(state, id));
        self.state.parent(dir, own, made, removed)
    }

    /// Nothing of the layers below shows in a directory from now on.
    fn hide(&mut self, dir: NodeId) -> Result<(), LayerError> {
        let disk = &mut self.disk;
        self.state.hide(dir, &mut |state, id| disk.as_mut().map_or(Ok(()), |disk| disk.remove(state, id)))
    }

    /// Makes room for something that is no directory. Tells whether this layer had put anything there.
    fn clear(&mut self, dir: NodeId, name: &[u8]) -> Result<bool, LayerError> {
        let Some(old) = self.state.child(dir, name) else { return Ok(false) };
        if let Some(disk) = &mut self.disk {
            disk.remove(&self.state, old)?;
        }
        self.state.detach(old);
        Ok(true)
    }

    /// A removal concerns the layers below only: what this layer itself has there stays, in whatever order they come.
    fn whiteout(&mut self, dir: &[u8], name: &[u8]) -> Result<(), LayerError> {
        let dir = self.parent(dir, true)?;
        match self.state.child(dir, name) {
            Some(child) if !self.state.node(child).own => drop(self.clear(dir, name)?),
            Some(child) if self.state.is_dir(child) => return self.hide(child),
            Some(_) => return Ok(()),
            None => {}
        }
        if !self.state.is_hidden(dir) {
            self.state.attach(dir, name, NodeKind::Other(EntryKind::Whiteout), Meta::default());
        }
        Ok(())
    }

    fn explicit(&mut self, id: NodeId, meta: Meta) {
        let node = self.state.node_mut(id);
        (node.meta, node.own) = (meta, true);
        if let NodeKind::Dir { implicit, .. } = &mut node.kind {
            *implicit = false;
        }
    }

    fn directory(&mut self, dir: NodeId, name: &[u8], meta: Meta) -> Result<(), LayerError> {
        if let Some(old) = self.state.child(dir, name)
            && self.state.is_dir(old)
        {
            self.explicit(old, meta);
            return Ok(());
        }
        // Whatever this layer put there, or removed, took what is below away.
        let replaced = self.clear(dir, name)?;
        let hidden = replaced || self.state.is_hidden(dir);
        let kind = NodeKind::Dir { children: Default::default(), opaque: replaced, implicit: false, hidden };
        let id = self.state.attach(dir, name, kind, meta);
        if let Some(disk) = &mut self.disk {
            disk.make_dir(&self.state, id)?;
        }
        Ok(())
    }

    fn other(&mut self, dir: NodeId, name: &[u8], kind: EntryKind, meta: Meta) -> Result<(), LayerError> {
        self.clear(dir, name)?;
        let id = self.state.attach(dir, name, NodeKind::Other(kind), meta);
        if let Some(disk) = &mut self.disk {
            disk.make_other(&self.state, id)?;
        }
        Ok(())
    }

    fn file<R: Read>(
        &mut self,
        reader: &mut TarReader<R>,
        dir: NodeId,
        name: &[u8],
        size: u64,
        offset: Option<u64>,
        meta: Meta,
    ) -> Result<(), LayerError> {
        let path = || join(&self.state.path(dir), name);
        let mut file = match &mut self.disk {
            Some(disk) => Some(disk.create(&self.state, dir, name, &meta)?),
            None => None,
        };
        // What was shared is read all the same: it has to be what was promised.
        let mut shared = match &mut file {
            Some(file) => share(&mut self.archive, file, offset, size).map_err(LayerError::io("seek", &path()))?,
            None => 0,
        };
        let mut hasher = blake3::Hasher::new();
        let mut ends_in_hole = false;
        while let Some(piece) = reader.piece()? {
            if (self.cancelled)() {
                return Err(LayerError::Cancelled);
            }
            match piece {
                Piece::Data(data) => {
                    hasher.update(data);
                    if let Some(file) = &mut file {
                        let (there, fresh) = data.split_at(data.len().min(shared));
                        shared -= there.len();
                        file.write_all(fresh).map_err(|e| LayerError::io("write", &path())(e))?;
                    }
                    ends_in_hole = false;
                }
                Piece::Hole(length) => {
                    self.holes = self.holes.saturating_add(length);
                    if self.holes > MAX_HOLES {
                        let reason = "the holes of its sparse files are too large";
                        return Err(LayerError::Unrepresentable { path: show(&path()), reason });
                    }
                    hash_zeros(&mut hasher, length, self.cancelled)?;
                    if let Some(file) = &mut file {
                        let length = i64::try_from(length).unwrap_or(i64::MAX);
                        file.seek(SeekFrom::Current(length)).map_err(|e| LayerError::io("seek", &path())(e))?;
                    }
                    ends_in_hole = true;
                }
            }
        }
        if let (Some(file), Some(disk)) = (&mut file, &mut self.disk) {
            if ends_in_hole {
                file.set_len(size).map_err(|e| LayerError::io("truncate", &path())(e))?;
            }
            disk.describe_file(file, &meta, path)?;
        }
        let digest = ContentDigest::from_bytes(*hasher.finalize().as_bytes());
        let inode = self.state.add_inode(Inode { size, digest, offset, meta });
        self.state.attach(dir, name, NodeKind::File(inode), Meta::default());
        Ok(())
    }

    fn hardlink(&mut self, dir: NodeId, name: &[u8], target: &[u8], meta: Meta) -> Result<(), LayerError> {
        let target = clean(target);
        let (target_dir, target_name) = split(&target);
        let resolved = join(&self.state.resolve(target_dir)?, target_name);
        let path = join(&self.state.path(dir), name);
        self.clear(dir, name)?;
        let source = if is_within(&resolved, &path) { None } else { self.source(&resolved)? };
        match (source, self.below) {
            (Some(Source::File(old, inode)), _) => {
                if let Some(disk) = &mut self.disk {
                    disk.link(&self.state, old, dir, name)?;
                }
                let new = self.state.attach(dir, name, NodeKind::File(inode), Meta::default());
                self.describe_link(new, inode, meta)
            }
            (Some(Source::Other(kind, meta)), _) => self.other(dir, name, kind, meta),
            // Only the layers below can tell, be it that this is an error: noted for mending.
            (None, None) => {
                self.state.await_target(&resolved);
                self.state.attach(dir, name, NodeKind::Other(EntryKind::Hardlink { target: resolved }), meta);
                Ok(())
            }
            (None, Some(_)) => Err(LayerError::LinkTarget { path: show(&path), target: show(&target) }),
        }
    }

    /// What a hard link can be made to at a path. A file of the layers below is copied up.
    fn source(&mut self, path: &[u8]) -> Result<Option<Source>, LayerError> {
        let Some(id) = self.state.find(path) else {
            let Some((below, found)) = self.below.zip(self.state.below(path)) else { return Ok(None) };
            return Ok(match &found.entry.kind {
                EntryKind::Dir { .. } | EntryKind::Whiteout => None,
                EntryKind::File { .. } | EntryKind::Hardlink { .. } => match below.file_of(found) {
                    Some(file) => Some(self.copy_up(path, file.layer, file.entry)?),
                    None => None,
                },
                kind => Some(Source::Other(kind.clone(), Meta::of(found.entry))),
            });
        };
        let node = self.state.node(id);
        Ok(match &node.kind {
            NodeKind::File(inode) => Some(Source::File(id, *inode)),
            NodeKind::Dir { .. } | NodeKind::Other(EntryKind::Whiteout | EntryKind::Hardlink { .. }) => None,
            // Two names of one symlink or device are as good as two of them.
            NodeKind::Other(kind) => Some(Source::Other(kind.clone(), node.meta.clone())),
        })
    }

    /// The header of a link describes the file that it names, as in every engine. It nearly always says the same.
    fn describe_link(&mut self, id: NodeId, inode: usize, mut meta: Meta) -> Result<(), LayerError> {
        let before = &self.state.inode(inode).meta;
        if meta.is_like(before) && (meta.xattrs.is_empty() || meta.xattrs == before.xattrs) {
            return Ok(());
        }
        if meta.xattrs.is_empty() {
            meta.xattrs.clone_from(&before.xattrs);
        }
        if let Some(disk) = &mut self.disk {
            disk.describe_again(&self.state, id, &meta)?;
        }
        self.state.inode_mut(inode).meta = meta;
        Ok(())
    }

    /// Brings a file of a layer below into this one.
    fn copy_up(&mut self, path: &[u8], layer: usize, file: &super::Entry) -> Result<Source, LayerError> {
        let EntryKind::File { size, digest, .. } = file.kind else {
            return Err(LayerError::Missing { path: show(path) });
        };
        let (dir, name) = split(path);
        let dir = self.parent(dir, false)?;
        let meta = Meta::of(file);
        if let Some(disk) = &mut self.disk {
            let mut from = (self.open_below)(layer, &file.path).map_err(LayerError::io("open", &file.path))?;
            let mut to = disk.create(&self.state, dir, name, &meta)?;
            let copied = io::copy(&mut from, &mut to).map_err(LayerError::io("copy", path))?;
            if copied != size {
                return Err(LayerError::Changed { path: show(&file.path) });
            }
            disk.describe_file(&to, &meta, || path.to_vec())?;
        }
        let inode = self.state.add_inode(Inode { size, digest, offset: None, meta });
        let id = self.state.attach(dir, name, NodeKind::File(inode), Meta::default());
        self.state.node_mut(id).own = false;
        Ok(Source::File(id, inode))
    }
}

/// Makes the data that begin at `offset` of the archive those of an empty file, as far as blocks can be shared, and goes to
/// their end. Returns how many bytes that are.
fn share(archive: &mut Option<&File>, file: &mut File, offset: Option<u64>, size: u64) -> io::Result<usize> {
    let (Some(from), Some(offset)) = (*archive, offset) else { return Ok(0) };
    let Ok(length) = usize::try_from(size - size % ALIGNMENT) else { return Ok(0) };
    if size < LARGE || offset % ALIGNMENT != 0 {
        return Ok(0);
    }
    if sys::file::clone_range(from, offset, length as u64, &*file, 0).is_err() {
        // It will not be otherwise for the next file. What was shared all the same is written over.
        *archive = None;
        return Ok(0);
    }
    file.seek(SeekFrom::Start(length as u64))?;
    Ok(length)
}

/// Holes cost nothing to store and much to hash.
pub fn hash_zeros(
    hasher: &mut blake3::Hasher,
    mut length: u64,
    cancelled: &dyn Fn() -> bool,
) -> Result<(), LayerError> {
    static ZEROS: [u8; 128 * 1024] = [0; 128 * 1024];
    while length > 0 {
        if cancelled() {
            return Err(LayerError::Cancelled);
        }
        let part = usize::try_from(length).unwrap_or(usize::MAX).min(ZEROS.len());
        hasher.update(&ZEROS[..part]);
        length -= part as u64;
    }
    Ok(())
}
