//! ADD of local archives: what an archive holds becomes part of the layer, by Docker's rules.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, Write};

use graph::CopyAction;
use snapshotter::layer::{Entry, EntryKind, keeps_xattr};

use super::staging::{Content, Planned, Staging, components, join, lossy, parent};
use super::{BASE, FileError, ReadableTree, copy};

/// Where the data of unpacked files wait until the layer is written in its order.
#[derive(Default)]
pub(super) struct Spool {
    file: Option<File>,
    length: u64,
}

impl Spool {
    fn store(&mut self, mut data: impl Read) -> io::Result<(u64, u64)> {
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(tempfile::tempfile()?),
        };
        let offset = self.length;
        let size = io::copy(&mut data, file)?;
        self.length += size;
        Ok((offset, size))
    }

    pub(super) fn into_file(self) -> Option<File> {
        self.file
    }
}

/// Unpacks the source file at `path` into the action's destination; `false`: it is no archive.
pub(super) fn unpack(
    input: &ReadableTree,
    path: &[u8],
    staging: &mut Staging<'_>,
    spool: &mut Spool,
    base: &ReadableTree,
    action: &CopyAction,
    owner: Option<(u32, u32)>,
) -> Result<bool, FileError> {
    let real = copy::source_path(&input.tree, path, true)?;
    let Some(file) = input.tree.lookup(&real).and_then(|found| input.tree.file_of(found)) else { return Ok(false) };
    let open = || {
        let data = (input.open)(file.layer, &file.entry.path);
        data.map_err(|source| FileError::Read { path: lossy(path), source })
    };
    if !is_archive(open()?) {
        return Ok(false);
    }
    let dest = staging.resolve(action.dest.as_bytes())?;
    staging.make_dirs(&dest, 0o755, owner)?;
    let failed = |why: io::Error| FileError::Archive { path: lossy(path), why: why.to_string() };
    let mut archive = tar::Archive::new(decompressed(open()?).map_err(failed)?);
    let mut merge = Merge { staging, spool, base, owner, dest };
    for entry in archive.entries().map_err(failed)? {
        merge.entry(entry.map_err(failed)?).map_err(|error| match error {
            FileError::Read { source, .. } => failed(source),
            other => other,
        })?;
    }
    Ok(true)
}

/// Whether a tar header comes out, decompressed or not.
fn is_archive(data: Box<dyn Read + Send>) -> bool {
    let Ok(plain) = decompressed(data) else { return false };
    let mut archive = tar::Archive::new(plain);
    let Ok(mut entries) = archive.entries() else { return false };
    matches!(entries.next(), Some(Ok(_)))
}

fn decompressed(data: Box<dyn Read + Send>) -> io::Result<Box<dyn Read>> {
    let mut data = BufReader::with_capacity(1 << 16, data);
    let start = data.fill_buf()?;
    Ok(match start {
        [0x1f, 0x8b, 0x08, ..] => Box::new(flate2::bufread::MultiGzDecoder::new(data)),
        [b'B', b'Z', b'h', ..] => Box::new(bzip2::bufread::MultiBzDecoder::new(data)),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Box::new(zstd::stream::read::Decoder::with_buffer(data)?),
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Box::new(unxz(data)?),
        _ => Box::new(data),
    })
}

/// xz comes out by way of a file: the decoder pushes.
fn unxz(mut data: impl BufRead) -> io::Result<impl Read> {
    let mut plain = io::BufWriter::new(tempfile::tempfile()?);
    lzma_rs::xz_decompress(&mut data, &mut plain).map_err(|error| io::Error::other(format!("{error:?}")))?;
    plain.flush()?;
    let mut file = plain.into_inner().map_err(io::IntoInnerError::into_error)?;
    file.rewind()?;
    Ok(BufReader::with_capacity(1 << 16, file))
}

struct Merge<'a, 'b> {
    staging: &'a mut Staging<'b>,
    spool: &'a mut Spool,
    base: &'a ReadableTree,
    owner: Option<(u32, u32)>,
    dest: Vec<u8>,
}

impl Merge<'_, '_> {
    fn entry<R: Read>(&mut self, mut member: tar::Entry<'_, R>) -> Result<(), FileError> {
        let read = |source| FileError::Read { path: String::new(), source };
        let name = member.path_bytes().into_owned();
        let path = self.place(&name)?;
        let header = member.header().clone();
        let is_dir = header.entry_type().is_dir();
        if path == self.dest {
            // The archive's own root says nothing about the destination.
            return Ok(());
        }
        let mut entry = self.metadata(&header, path.clone())?;
        self.extensions(&mut member, &mut entry)?;
        let (content, inode) = match header.entry_type() {
            kind if kind.is_file() || kind.is_gnu_sparse() || kind.is_contiguous() => {
                let (offset, size) = self.spool.store(&mut member).map_err(read)?;
                entry.kind = Entry::file(Vec::new(), size, 0).kind;
                (Content::Spooled { offset }, None)
            }
            tar::EntryType::Directory => (Content::None, None),
            tar::EntryType::Symlink => {
                let target = member.link_name_bytes().map(std::borrow::Cow::into_owned).unwrap_or_default();
                entry.kind = EntryKind::Symlink { target };
                (Content::None, None)
            }
            tar::EntryType::Link => {
                let target = member.link_name_bytes().map(std::borrow::Cow::into_owned).unwrap_or_default();
                let target = self.place(&target)?;
                let planned = self.linked(&target)?;
                entry = Entry { path: path.clone(), ..planned.entry };
                (planned.content, planned.inode)
            }
            tar::EntryType::Char | tar::EntryType::Block => {
                let number = |number: io::Result<Option<u32>>| number.map(Option::unwrap_or_default).map_err(read);
                let (major, minor) = (number(header.device_major())?, number(header.device_minor())?);
                entry.kind = match header.entry_type() {
                    tar::EntryType::Char => EntryKind::CharDev { major, minor },
                    _ => EntryKind::BlockDev { major, minor },
                };
                (Content::None, None)
            }
            tar::EntryType::Fifo => {
                entry.kind = EntryKind::Fifo;
                (Content::None, None)
            }
            // Comments, labels and what nobody knows.
            _ => return Ok(()),
        };
        let both_dirs = is_dir && self.staging.get(&path).is_some_and(Entry::is_dir);
        if !both_dirs && self.staging.get(&path).is_some() {
            self.staging.remove(&path);
        }
        self.staging.make_dirs(parent(&path), 0o755, None)?;
        self.staging.put(Planned { entry, content, inode });
        Ok(())
    }

    /// Where a member goes: below the destination, links of the image on the way followed.
    fn place(&self, name: &[u8]) -> Result<Vec<u8>, FileError> {
        let mut parts: Vec<Vec<u8>> = Vec::new();
        for part in components(name) {
            if part == b".." {
                if parts.pop().is_none() {
                    return Err(FileError::Archive { path: lossy(name), why: "it leads out of the archive".into() });
                }
            } else {
                parts.push(part);
            }
        }
        let Some(last) = parts.pop() else { return Ok(self.dest.clone()) };
        let directory = self.staging.resolve(&join(&self.dest, &parts.join(&b'/')))?;
        Ok(join(&directory, &last))
    }

    /// The file that a hard link in the archive names: one of this layer, or one of the base, which is then copied.
    fn linked(&mut self, target: &[u8]) -> Result<Planned, FileError> {
        let missing = || FileError::Archive { path: lossy(target), why: "a hard link names it, but it is not there".into() };
        if self.staging.planned(target).is_some() {
            let planned = self.staging.share(target).filter(|planned| matches!(planned.entry.kind, EntryKind::File { .. }));
            return planned.ok_or_else(missing);
        }
        if self.staging.get(target).is_none() {
            return Err(missing());
        }
        let found = self.base.tree.lookup(target).ok_or_else(missing)?;
        let file = self.base.tree.file_of(found).ok_or_else(missing)?;
        let entry = Entry { path: target.to_vec(), kind: file.entry.kind.clone(), ..found.entry.clone() };
        let content = Content::Source { source: BASE, layer: file.layer, path: file.entry.path.clone() };
        self.staging.put(Planned::new(entry, content));
        self.staging.share(target).ok_or_else(missing)
    }

    fn metadata(&self, header: &tar::Header, path: Vec<u8>) -> Result<Entry, FileError> {
        let read = |source| FileError::Read { path: String::new(), source };
        let id = |id: io::Result<u64>| id.map_err(read).map(|id| u32::try_from(id).unwrap_or(0));
        let (uid, gid) = match self.owner {
            Some(owner) => owner,
            None => (id(header.uid())?, id(header.gid())?),
        };
        let mtime = i64::try_from(header.mtime().map_err(read)?).unwrap_or(0);
        let mode = header.mode().map_err(read)? & 0o7777;
        Ok(Entry { uid, gid, mtime: (mtime, 0), ..Entry::dir(path, mode) })
    }

    /// What PAX records say beyond the header.
    fn extensions<R: Read>(&self, member: &mut tar::Entry<'_, R>, entry: &mut Entry) -> Result<(), FileError> {
        let read = |source| FileError::Read { path: String::new(), source };
        let Some(extensions) = member.pax_extensions().map_err(read)? else { return Ok(()) };
        for extension in extensions {
            let extension = extension.map_err(read)?;
            let value = extension.value_bytes();
            let number = || std::str::from_utf8(value).ok().and_then(|text| text.split('.').next()?.parse::<i64>().ok());
            match extension.key_bytes() {
                b"uid" if self.owner.is_none() => entry.uid = number().and_then(|id| id.try_into().ok()).unwrap_or(entry.uid),
                b"gid" if self.owner.is_none() => entry.gid = number().and_then(|id| id.try_into().ok()).unwrap_or(entry.gid),
                b"mtime" => entry.mtime.0 = number().unwrap_or(entry.mtime.0),
                key => {
                    if let Some(name) = key.strip_prefix(b"SCHILY.xattr.")
                        && keeps_xattr(name)
                    {
                        entry.xattrs.push((name.to_vec(), value.to_vec()));
                    }
                }
            }
        }
        entry.xattrs.sort();
        Ok(())
    }
}
