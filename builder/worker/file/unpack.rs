//! ADD of local archives: what an archive holds becomes part of the layer, by Docker's rules.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;

use graph::ContentDigest;
use snapshotter::layer::{
    Entry, EntryKind, LayerError, LayerIndex, Member, MemberKind, Piece, TarReader, Tree, hash_zeros, join, keeps_xattr,
};

use super::super::decompressed;
use super::select::Root;
use super::staging::{Content, Planned, Staging, components, lossy};
use super::{BASE, FileError, ReadableTree, copy, select};

/// The holes of sparse files that one archive may have: a layer stores them as zeros.
const MAX_HOLES: u64 = 64 << 30;

/// Where the data of unpacked files wait until the layer is written in its order.
pub(super) struct Spool<'a> {
    scratch: &'a Path,
    file: Option<File>,
    length: u64,
    holes: u64,
}

impl<'a> Spool<'a> {
    /// Uses a temporary file in `scratch`, if any.
    pub(super) fn new(scratch: &'a Path) -> Self {
        Self { scratch, file: None, length: 0, holes: 0 }
    }

    /// Takes the data of the current member; says where they are, and what.
    fn store<R: Read>(
        &mut self,
        reader: &mut TarReader<R>,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<(u64, ContentDigest), LayerError> {
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(tempfile::tempfile_in(self.scratch).map_err(LayerError::Write)?),
        };
        let offset = self.length;
        let mut hasher = blake3::Hasher::new();
        while let Some(piece) = reader.piece()? {
            if cancelled() {
                return Err(LayerError::Cancelled);
            }
            match piece {
                Piece::Data(data) => {
                    file.write_all(data).map_err(LayerError::Write)?;
                    hasher.update(data);
                    self.length += data.len() as u64;
                }
                Piece::Hole(length) => {
                    self.holes = self.holes.saturating_add(length);
                    if self.holes > MAX_HOLES {
                        let reason = "the holes of the archive's sparse files are too large";
                        return Err(LayerError::Unrepresentable { path: "/".into(), reason });
                    }
                    hash_zeros(&mut hasher, length, cancelled)?;
                    self.length += length;
                    file.set_len(self.length).and_then(|()| file.seek(SeekFrom::End(0))).map_err(LayerError::Write)?;
                }
            }
        }
        Ok((offset, ContentDigest::from_bytes(*hasher.finalize().as_bytes())))
    }

    pub(super) fn into_file(self) -> Option<File> {
        self.file
    }
}

/// Unpacks what a source names into the action's destination; `false`: it is no archive.
#[expect(clippy::too_many_arguments, reason = "what an ADD works on and where it goes, from its only caller")]
pub(super) fn unpack(
    input: &ReadableTree,
    root: &Root,
    staging: &mut Staging<'_>,
    spool: &mut Spool<'_>,
    base: &ReadableTree,
    dest: &str,
    owner: Option<(u32, u32)>,
    cancelled: &dyn Fn() -> bool,
) -> Result<bool, FileError> {
    let real = select::resolve(&input.tree, &root.path, true)?;
    let Some(file) = input.tree.lookup(&real).and_then(|found| input.tree.file_of(found)) else { return Ok(false) };
    let path = lossy(&root.name);
    let open = || {
        let data = input.open(file.layer, &file.entry.path);
        data.map_err(|source| FileError::Read { path: path.clone(), source })
    };
    let failed = |error: LayerError| FileError::Archive { path: path.clone(), why: error.to_string() };
    if !is_archive(open()?) {
        return Ok(false);
    }
    let dest = staging.resolve(dest.as_bytes())?;
    staging.make_dirs(&dest, 0o755, owner)?;
    let plain = decompressed(open()?).map_err(|error| failed(LayerError::Read(error)))?;
    let mut merge = Merge { staging, spool, base, owner, dest, cancelled, last: None };
    merge.all(plain).map_err(|error| match error {
        FileError::Layer(LayerError::Cancelled) => error,
        FileError::Layer(error) => failed(error),
        FileError::Archive { path: member, why } => {
            FileError::Archive { path: path.clone(), why: format!("{member}: {why}") }
        }
        other => other,
    })?;
    Ok(true)
}

/// The tree that an archive holds, and a file with all its data: a build context that came as a tar.
pub(crate) fn archive_tree(archive: impl Read + Send + 'static) -> Result<(LayerIndex, Option<File>), FileError> {
    let (empty, nothing) = (Tree::default(), ReadableTree::empty());
    let scratch = std::env::temp_dir();
    let mut spool = Spool::new(&scratch);
    let mut staging = Staging::new(&empty, (0, 0));
    let plain = decompressed(archive).map_err(LayerError::Read)?;
    let (staging_in, spool_in, cancelled) = (&mut staging, &mut spool, &|| false);
    let (base, owner, dest) = (&nothing, None, Vec::new());
    Merge { staging: staging_in, spool: spool_in, base, owner, dest, cancelled, last: None }.all(plain)?;
    let entries = staging.finish().into_iter().map(|planned| {
        let mut entry = planned.entry;
        if let (EntryKind::File { offset, .. }, Content::Spooled { offset: at }) = (&mut entry.kind, planned.content) {
            *offset = Some(at);
        }
        entry
    });
    Ok((LayerIndex::new(entries.collect()), spool.into_file()))
}

/// Whether a tar header comes out, decompressed or not.
fn is_archive(data: impl Read + Send + 'static) -> bool {
    decompressed(data).is_ok_and(|plain| matches!(TarReader::new(plain).next_member(), Ok(Some(_))))
}

struct Merge<'a, 'b, 'c> {
    staging: &'a mut Staging<'b>,
    spool: &'a mut Spool<'c>,
    base: &'a ReadableTree,
    owner: Option<(u32, u32)>,
    dest: Vec<u8>,
    cancelled: &'a dyn Fn() -> bool,
    /// The last directory that a name was in, as written and as it is.
    last: Option<(Vec<u8>, Vec<u8>)>,
}

impl Merge<'_, '_, '_> {
    fn all(&mut self, plain: impl Read) -> Result<(), FileError> {
        let mut reader = TarReader::new(plain);
        while let Some(member) = reader.next_member()? {
            if (self.cancelled)() {
                return Err(LayerError::Cancelled.into());
            }
            self.member(&mut reader, member)?;
            self.staging.check_size()?;
        }
        Ok(())
    }

    fn member<R: Read>(&mut self, reader: &mut TarReader<R>, member: Member) -> Result<(), FileError> {
        let path = self.place(&member.name)?;
        if path == self.dest {
            // The archive's own root says nothing about the destination.
            return Ok(());
        }
        let (uid, gid) = self.owner.unwrap_or((member.uid, member.gid));
        let mut entry = Entry { uid, gid, mtime: member.mtime, ..Entry::dir(path, member.mode) };
        entry.xattrs = member.xattrs.into_iter().filter(|(name, _)| keeps_xattr(name)).collect();
        let (mut content, mut inode) = (Content::None, None);
        match member.kind {
            MemberKind::File { size, .. } => {
                let (offset, digest) = self.spool.store(reader, self.cancelled)?;
                entry.kind = EntryKind::File { size, digest, offset: None };
                content = Content::Spooled { offset };
            }
            MemberKind::Dir => {
                if let Some(before) = self.staging.get(&entry.path).filter(|before| before.is_dir()) {
                    copy::merge_xattrs(&mut entry.xattrs, &before.xattrs);
                    self.staging.put(Planned::new(entry, Content::None));
                    return Ok(());
                }
            }
            MemberKind::Symlink(target) => {
                (entry.kind, entry.mode) = (EntryKind::Symlink { target }, 0o777);
            }
            MemberKind::Hardlink(target) => {
                let target = self.place(&target)?;
                let planned = self.linked(&target)?;
                if target == entry.path {
                    return Ok(());
                }
                entry = Entry { path: entry.path, ..planned.entry };
                (content, inode) = (planned.content, planned.inode);
            }
            MemberKind::Char(major, minor) => entry.kind = EntryKind::CharDev { major, minor },
            MemberKind::Block(major, minor) => entry.kind = EntryKind::BlockDev { major, minor },
            MemberKind::Fifo => entry.kind = EntryKind::Fifo,
        }
        if self.staging.get(&entry.path).is_some() {
            self.last = None;
            self.staging.remove(&entry.path);
        }
        if matches!(entry.kind, EntryKind::Symlink { .. }) {
            self.last = None;
        }
        // Directories that the archive does not name are root's, whatever the group of those around them.
        self.staging.make_dirs(snapshotter::layer::split(&entry.path).0, 0o755, Some((0, 0)))?;
        self.staging.put(Planned { entry, content, inode });
        Ok(())
    }

    /// Where a member goes: below the destination, which is the root for links on the way.
    fn place(&mut self, name: &[u8]) -> Result<Vec<u8>, FileError> {
        let mut parts: Vec<Vec<u8>> = Vec::new();
        for part in components(name) {
            if part != b".." {
                parts.push(part);
            } else if parts.pop().is_none() {
                return Err(FileError::Archive { path: lossy(name), why: "it leads out of the archive".into() });
            }
        }
        let Some(name) = parts.pop() else { return Ok(self.dest.clone()) };
        let written = parts.join(&b'/');
        let path = match &self.last {
            Some((last, directory)) if *last == written => join(directory, &name),
            _ => {
                let directory = self.staging.resolve_below(&self.dest, &written)?;
                let path = join(&directory, &name);
                self.last = Some((written, directory));
                path
            }
        };
        LayerError::check_length(&path)?;
        Ok(path)
    }

    /// What a hard link in the archive names: something of this layer, or of the base, which is then copied.
    fn linked(&mut self, target: &[u8]) -> Result<Planned, FileError> {
        let missing = || FileError::Archive {
            path: lossy(target),
            why: "a hard link names it, but it is no file that is there".into(),
        };
        let found = self.staging.get(target).filter(|found| !found.is_dir()).ok_or_else(missing)?;
        if !matches!(found.kind, EntryKind::File { .. } | EntryKind::Hardlink { .. }) {
            return Ok(Planned::new(found.clone(), Content::None));
        }
        if self.staging.planned(target).is_none() {
            let found = self.base.tree.lookup(target).ok_or_else(missing)?;
            let file = self.base.tree.file_of(found).ok_or_else(missing)?;
            let entry = Entry { path: target.to_vec(), ..file.entry.clone() };
            let content = Content::Source { source: BASE, layer: file.layer, path: file.entry.path.clone() };
            self.staging.put(Planned::new(entry, content));
        }
        self.staging.share(target).ok_or_else(missing)
    }
}
