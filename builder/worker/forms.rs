//! The forms in which a layer's bytes lie in the store.

use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use graph::Digest;
use rayon::prelude::*;
use rustix::fs::OFlags;
use sha2::Digest as _;
use snapshotter::LayerRecord;
use snapshotter::layer::{Entry, EntryKind, LayerError, LayerIndex, WRITER_VERSION, compress, write_upper};

use super::WorkError;

/// Opens a regular file of a snapshot; nothing in its path is followed.
pub(super) fn open_in(directory: Option<&PathBuf>, path: &[u8]) -> io::Result<File> {
    let directory = directory.ok_or(io::ErrorKind::NotFound)?;
    let root = sys::file::open_root(directory)?;
    Ok(sys::path::open(root, path, sys::path::Links::Refuse, OFlags::RDONLY, 0)?.into())
}

/// Where the bytes of a layer's tar are.
pub(super) enum TarAt {
    Plain(PathBuf),
    Compressed(Digest, PathBuf),
    Snapshot(Digest, Unpacked),
    /// A directory made for a process with other ids, of which it is not certain that all can be read.
    Foreign(Unpacked),
}

/// A layer's directory.
#[derive(Clone)]
pub(super) struct Unpacked {
    pub(super) directory: PathBuf,
    pub(super) index: Arc<LayerIndex>,
    /// The version of the writer that made the layer's tar.
    pub(super) writer: u32,
}

impl Unpacked {
    pub(super) fn new(directory: &Path, index: Arc<LayerIndex>, layer: &LayerRecord) -> Self {
        Self { directory: directory.to_owned(), index, writer: layer.writer.unwrap_or(WRITER_VERSION) }
    }

    /// Makes the tar again.
    fn write(&self, out: impl Write) -> Result<(), LayerError> {
        write_upper(&self.directory, &self.index, self.writer, out)
    }
}

impl TarAt {
    /// Whether all bytes are what they should be. What cannot be read is not.
    pub(super) fn is_sound(&self, diff_id: &Digest) -> bool {
        let hashed = |path: &PathBuf| {
            let mut hasher = sha2::Sha256::new();
            let read = File::open(path).and_then(|mut file| io::copy(&mut file, &mut DigestWriter(&mut hasher)));
            read.ok().map(|_| Digest::from_bytes(hasher.finalize().into()))
        };
        match self {
            Self::Plain(path) => hashed(path) == Some(*diff_id),
            Self::Compressed(digest, path) => hashed(path) == Some(*digest),
            Self::Snapshot(_, Unpacked { directory, index, .. }) | Self::Foreign(Unpacked { directory, index, .. }) => {
                index.entries().iter().all(|entry| match entry.kind {
                    EntryKind::File { size, digest, .. } => {
                        let mut hasher = blake3::Hasher::new();
                        let read = open_in(Some(directory), &entry.path).and_then(|file| {
                            hasher.update_reader(file.take(size + 1))?;
                            Ok(hasher.count() == size && hasher.finalize().as_bytes() == digest.as_bytes())
                        });
                        read.unwrap_or(false)
                    }
                    _ => true,
                })
            }
        }
    }

    /// Whether what a directory should have at its top is there: one that was emptied, or never filled, is not taken for a
    /// layer that holds nothing.
    pub(super) fn has_its_top(&self) -> bool {
        self.agrees(|entry| !entry.path.is_empty() && !entry.path.contains(&b'/'))
    }

    /// Whether all that a directory should have is there, by kind and size.
    pub(super) fn has_its_files(&self) -> bool {
        self.agrees(|_| true)
    }

    fn agrees(&self, wanted: impl Fn(&Entry) -> bool + Sync) -> bool {
        let Self::Snapshot(_, Unpacked { directory, index, .. }) = self else { return true };
        let Ok(root) = sys::file::open_root(directory) else { return false };
        index.entries().par_iter().with_min_len(256).filter(|entry| wanted(entry)).all(|entry| {
            let stat = || -> io::Result<std::fs::Metadata> {
                let flags = OFlags::PATH | OFlags::NOFOLLOW;
                File::from(sys::path::open(&root, &entry.path, sys::path::Links::Refuse, flags, 0)?).metadata()
            };
            match (&entry.kind, stat()) {
                // What hides nothing is not there, nor is what this user or file system cannot have.
                (EntryKind::Whiteout | EntryKind::CharDev { .. } | EntryKind::BlockDev { .. }, _) => true,
                (_, Err(_)) => false,
                (EntryKind::Dir { .. }, Ok(found)) => found.is_dir(),
                (EntryKind::File { size, .. }, Ok(found)) => found.is_file() && found.len() == *size,
                (EntryKind::Hardlink { .. }, Ok(found)) => found.is_file(),
                (EntryKind::Symlink { .. }, Ok(found)) => found.is_symlink(),
                (EntryKind::Fifo, Ok(_)) => true,
            }
        })
    }

    /// The file that is the archive, if it lies uncompressed on this disk.
    pub(super) fn archive(&self) -> Option<File> {
        match self {
            Self::Plain(path) => File::open(path).ok(),
            _ => None,
        }
    }

    pub(super) fn open(&self) -> io::Result<Box<dyn Read + Send>> {
        match self {
            Self::Plain(path) => Ok(Box::new(BufReader::with_capacity(1 << 18, File::open(path)?))),
            Self::Compressed(_, path) => compress::decoder(BufReader::with_capacity(1 << 18, File::open(path)?)),
            Self::Snapshot(_, unpacked) | Self::Foreign(unpacked) => {
                // Made anew on the way, by a thread of its own.
                let (reader, mut writer) = io::pipe()?;
                let unpacked = unpacked.clone();
                std::thread::spawn(move || unpacked.write(&mut writer));
                Ok(Box::new(BufReader::with_capacity(1 << 18, reader)))
            }
        }
    }

    pub(super) fn write_to(&self, out: &mut impl Write) -> Result<(), WorkError> {
        match self {
            Self::Snapshot(_, unpacked) | Self::Foreign(unpacked) => unpacked.write(out)?,
            _ => {
                // Large pieces, which can be hashed and compressed at the same time.
                io::copy(&mut io::BufReader::with_capacity(512 << 10, self.open()?), out)?;
            }
        }
        Ok(())
    }
}

struct DigestWriter<'a>(&'a mut sha2::Sha256);

impl Write for DigestWriter<'_> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.0.update(data);
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
