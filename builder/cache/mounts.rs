//! Contents of cache mounts in a shared cache.
//!
//! A mount is one tar, as a layer is, cut where its bytes say so: files that are added move no other cut, so that most parts
//! are those of the time before, which are neither compressed nor sent again. Machines that live for one build get what their
//! predecessors downloaded; it is a cache all the same, and what cannot be read is a miss.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use graph::Digest;
use sha2::{Digest as _, Sha256};
use snapshotter::layer::{CommitOptions, EntryKind, LayerError, LayerIndex, WRITER_VERSION, commit_upper, write_upper};
use snapshotter::{CacheMountSharing, Store};
use solver::RunContext;

use super::export::{ExportError, Files};
use super::table::Table;
use crate::export::{Descriptor, LayerBlob};
use crate::progress::bytes;
use crate::worker::WorkError;

/// Cache mounts that steps of a build had, by id.
pub type UsedMounts = BTreeMap<String, CacheMountSharing>;

/// Media type of a part.
pub(super) const PART: &str = "application/vnd.rbuild.cache-mount.part.v1+zstd";

/// Parts of all mounts of one cache. Config and manifest take some 170 bytes for each, and many registries take no manifest of
/// more than 4 MiB.
pub(super) const MOST_PARTS: usize = 10_000;

/// No part is longer.
pub(super) const LONGEST: usize = 16 << 20;
/// None but the last is shorter.
const SHORTEST: usize = 1 << 20;
/// Beyond that, one position in so many ends a part.
const USUAL_BITS: u32 = 22;

/// What a cache mount held.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CachedMount {
    /// Of the whole tar.
    pub(crate) tar: Digest,
    /// When a build last used it.
    pub(crate) used: jiff::Timestamp,
    /// The tar's pieces in their order.
    pub(crate) parts: Vec<Part>,
}

/// A piece of a mount's tar.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Part {
    /// Of the piece itself.
    pub(crate) raw: Digest,
    /// Its length.
    pub(crate) size: u64,
    /// The same, compressed.
    pub(crate) blob: Descriptor,
}

impl CachedMount {
    pub(crate) fn blobs(&self) -> impl Iterator<Item = Digest> {
        self.parts.iter().map(|part| part.blob.digest)
    }
}

/// An id as the Dockerfile has it, without the name space that it lies in.
pub(crate) fn name_of(id: &str) -> &str {
    id.strip_prefix('/').unwrap_or(id)
}

/// How the mounts that a build used come into a cache.
pub(super) struct MountExport<'a> {
    pub(super) store: &'a Store,
    pub(super) used: &'a UsedMounts,
    /// So many bytes one may hold.
    pub(super) most: u64,
    /// What the cache has already.
    pub(super) there: &'a Table,
    /// For the files of parts.
    pub(super) scratch: &'a Path,
}

impl MountExport<'_> {
    /// The mounts, and files of the parts that are new. One that cannot be read is left out, and said.
    pub(super) fn pack(&self, context: &RunContext) -> Result<(BTreeMap<String, CachedMount>, Files), ExportError> {
        let parts = self.there.mounts.values().flat_map(|mount| &mount.parts);
        let known: HashMap<Digest, &Part> = parts.map(|part| (part.raw, part)).collect();
        let (mut mounts, mut files) = (BTreeMap::new(), Files::new());
        let mut room = MOST_PARTS;
        for (id, sharing) in self.used {
            let Some(directory) = self.store.existing_cache_mount(id, *sharing)? else { continue };
            let (known, scratch) = (&known, self.scratch);
            let packer = Packer { known, scratch, room, context, files: Files::new(), parts: Vec::new() };
            match packer.pack(directory.path(), self.most) {
                // There is nothing to begin with.
                Ok(None) => {}
                Ok(Some((mount, new))) => {
                    room -= mount.parts.len();
                    mounts.insert(id.clone(), mount);
                    files.extend(new);
                }
                Err(_) if context.cancelled.is_cancelled() => return Err(WorkError::Cancelled.into()),
                // Other builds may be changing it; the next will bring it.
                Err(error) => {
                    context.progress.warn(format!("the cache mount {} is not exported: {error}", name_of(id)));
                }
            }
        }
        Ok((mounts, files))
    }
}

#[derive(Debug, thiserror::Error)]
enum PackError {
    #[error("it holds {}, more than mounts={}", bytes(*size), bytes(*most))]
    TooLarge { size: u64, most: u64 },
    #[error("it changed while it was read")]
    Changed,
    #[error(transparent)]
    Layer(LayerError),
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl From<LayerError> for PackError {
    fn from(error: LayerError) -> Self {
        match error {
            // What the tar goes to is the packer, whose words are enough.
            LayerError::Write(source) => Self::Io(source),
            other => Self::Layer(other),
        }
    }
}

struct Packer<'a> {
    /// Parts that the cache has, by what they hold.
    known: &'a HashMap<Digest, &'a Part>,
    scratch: &'a Path,
    /// So many parts it may have.
    room: usize,
    context: &'a RunContext,
    files: Files,
    parts: Vec<Part>,
}

impl Packer<'_> {
    /// The mount, and files of its new parts; `None` for one that is empty.
    fn pack(mut self, directory: &Path, most: u64) -> Result<Option<(CachedMount, Files)>, PackError> {
        let cancelled = || self.context.cancelled.is_cancelled();
        // What is too large is not read to find that out.
        let size = size_of_files(directory, &cancelled);
        if size > most {
            return Err(PackError::TooLarge { size, most });
        }
        let options = CommitOptions { cancelled: Some(&cancelled), ..CommitOptions::default() };
        let held = commit_upper(directory, &options)?;
        if held.size > most {
            return Err(PackError::TooLarge { size: held.size, most });
        }
        if held.index.entries().iter().all(|entry| entry.path.is_empty()) {
            return Ok(None);
        }
        if !is_portable(&held.index) {
            return Err(PackError::Io(io::Error::other("it holds device nodes")));
        }
        let mut splitter = Splitter::new(|part| self.add(part));
        write_upper(directory, &held.index, WRITER_VERSION, &mut splitter)?;
        let tar = splitter.finish()?;
        if tar != held.diff_id {
            return Err(PackError::Changed);
        }
        let mount = CachedMount { tar, used: jiff::Timestamp::now(), parts: self.parts };
        Ok(Some((mount, self.files)))
    }

    fn add(&mut self, piece: &[u8]) -> io::Result<()> {
        if self.context.cancelled.is_cancelled() {
            return Err(io::Error::other("cancelled"));
        }
        if self.parts.len() == self.room {
            return Err(io::Error::other("a cache cannot hold that much"));
        }
        let raw = Digest::of(piece);
        if let Some(part) = self.known.get(&raw) {
            self.parts.push((*part).clone());
            return Ok(());
        }
        let compressed = zstd::bulk::compress(piece, zstd::DEFAULT_COMPRESSION_LEVEL)?;
        let descriptor = Descriptor::new(PART, Digest::of(&compressed), compressed.len() as u64);
        let path = self.scratch.join(descriptor.digest.hex());
        fs::write(&path, &compressed)?;
        self.parts.push(Part { raw, size: piece.len() as u64, blob: descriptor.clone() });
        self.files.insert(descriptor.digest, LayerBlob { diff_id: raw, descriptor, path: Some(path) });
        Ok(())
    }
}

/// The bytes of all files below a directory, of which those with several names count once. Others may be changing it.
fn size_of_files(directory: &Path, cancelled: &dyn Fn() -> bool) -> u64 {
    let (mut total, mut seen, mut pending) = (0_u64, HashSet::new(), vec![directory.to_owned()]);
    while let Some(directory) = pending.pop().filter(|_| !cancelled()) {
        for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
            let Ok(metadata) = entry.metadata() else { continue };
            if metadata.is_dir() {
                pending.push(entry.path());
            } else if metadata.is_file() && (metadata.nlink() == 1 || seen.insert((metadata.dev(), metadata.ino()))) {
                total = total.saturating_add(metadata.len());
            }
        }
    }
    total
}

/// Files, directories and links are what caches are made of. Who wrote a shared cache is not to bring device nodes.
pub(super) fn is_portable(index: &LayerIndex) -> bool {
    index.entries().iter().all(|entry| {
        matches!(
            entry.kind,
            EntryKind::File { .. }
                | EntryKind::Dir { .. }
                | EntryKind::Symlink { .. }
                | EntryKind::Hardlink { .. }
                | EntryKind::Fifo
        )
    })
}

/// Cuts a stream where a hash over the last bytes has a certain form, so that equal stretches are cut alike wherever they lie.
struct Splitter<F> {
    part: Vec<u8>,
    rolling: u64,
    whole: Sha256,
    emit: F,
}

impl<F: FnMut(&[u8]) -> io::Result<()>> Splitter<F> {
    fn new(emit: F) -> Self {
        Self { part: Vec::new(), rolling: 0, whole: Sha256::new(), emit }
    }

    fn end_part(&mut self) -> io::Result<()> {
        (self.emit)(&self.part)?;
        self.whole.update(&self.part);
        self.part.clear();
        self.rolling = 0;
        Ok(())
    }

    /// The digest of all.
    fn finish(mut self) -> io::Result<Digest> {
        if !self.part.is_empty() {
            self.end_part()?;
        }
        Ok(Digest::from_bytes(self.whole.finalize().into()))
    }
}

impl<F: FnMut(&[u8]) -> io::Result<()>> Write for Splitter<F> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for (n, byte) in bytes.iter().enumerate() {
            self.rolling = (self.rolling << 1).wrapping_add(GEAR[usize::from(*byte)]);
            let length = self.part.len() + n + 1;
            let is_cut = length >= SHORTEST && self.rolling >> (64 - USUAL_BITS) == 0;
            if is_cut || length >= LONGEST {
                self.part.extend_from_slice(&bytes[..=n]);
                self.end_part()?;
                return Ok(n + 1);
            }
        }
        self.part.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A number for each byte, by splitmix64. Other numbers would cut elsewhere, and nothing of before would be found.
const GEAR: [u64; 256] = {
    let mut table = [0; 256];
    let mut state: u64 = 0;
    let mut n = 0;
    while n < table.len() {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        table[n] = mixed ^ (mixed >> 31);
        n += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use super::*;

    fn split(bytes: &[u8]) -> Vec<Vec<u8>> {
        let mut parts = Vec::new();
        let mut splitter = Splitter::new(|part: &[u8]| {
            parts.push(part.to_vec());
            Ok(())
        });
        splitter.write_all(bytes).unwrap();
        assert_eq!(splitter.finish().unwrap(), Digest::of(bytes));
        parts
    }

    fn noise(length: usize) -> Vec<u8> {
        let mut state = 1_u64;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 56) as u8
        };
        (0..length).map(|_| next()).collect()
    }

    #[test]
    fn what_is_added_moves_no_other_cut() {
        let before = noise(16 << 20);
        let parts = split(&before);
        assert_eq!(parts.concat(), before);
        assert!(parts.len() > 2 && parts.iter().all(|part| part.len() <= LONGEST), "{}", parts.len());
        let mut after = before.clone();
        after.splice((5 << 20)..(5 << 20), noise(100_000));
        let again = split(&after);
        let new = again.iter().filter(|part| !parts.contains(part)).count();
        assert!(new <= 2, "{new} of {}", again.len());
    }

    #[test]
    fn files_count_once_and_links_lead_nowhere() {
        let outer = tempfile::tempdir().unwrap();
        let directory = outer.path().join("mount");
        fs::create_dir_all(directory.join("deep/er")).unwrap();
        fs::write(outer.path().join("outside"), vec![0; 5000]).unwrap();
        assert_eq!(size_of_files(&directory, &|| false), 0);
        fs::write(directory.join("deep/er/file"), vec![0; 300]).unwrap();
        fs::hard_link(directory.join("deep/er/file"), directory.join("same")).unwrap();
        std::os::unix::fs::symlink("../outside", directory.join("link")).unwrap();
        std::os::unix::fs::symlink("..", directory.join("up")).unwrap();
        assert_eq!(size_of_files(&directory, &|| false), 300);
    }

    #[test]
    fn what_has_no_cut_ends_all_the_same() {
        let parts = split(&vec![0; LONGEST + 5]);
        assert_eq!(parts.iter().map(Vec::len).collect::<Vec<_>>(), [LONGEST, 5]);
        assert!(split(b"").is_empty());
    }
}
