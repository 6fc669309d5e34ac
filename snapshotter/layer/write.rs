//! The one place where the bytes of a layer are made.

use std::fs::File;
use std::io::{self, Cursor, Read, Write};
use std::os::unix::fs::FileExt;

use graph::{ContentDigest, Digest};
use sha2::Digest as _;

use super::entry::{Entry, EntryKind, clean, cmp_paths, show, split};
use super::error::LayerError;
use super::header::{ALIGNMENT, BLOCK, END, LARGE, WHITEOUT, padding, push_header};
use super::index::LayerIndex;
use super::native::Bytes;

/// Recorded beside a diff id whose bytes are made again from a directory: raised when the same entries would give other
/// bytes. The bytes of version 1, in which data are not aligned, are made again as well.
pub const WRITER_VERSION: u32 = 2;

/// Whether the bytes that a version wrote can be made again.
#[must_use]
pub fn can_write(version: u32) -> bool {
    (1..=WRITER_VERSION).contains(&version)
}

/// Bytes are hashed and passed on in pieces of this size.
const PIECE: usize = 512 * 1024;

/// What is known about the data of a file before they are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// Nothing: the digest is computed.
    Nothing,
    /// The entry's digest was computed when the step was keyed: other data are [`LayerError::Changed`].
    Digest,
    /// The entry's digest was computed from these very bytes: only the length is checked.
    Trusted,
}

/// What a layer is written to, which may be a file that can have blocks in common with others.
pub trait Shares: Write {
    /// Makes the next `length` bytes those of `file` from `offset` on by sharing blocks; offset and length are multiples of
    /// 4096, and so is the number of bytes written before. The bytes are then written like all others, and read, for
    /// that, from what is returned. `None`: blocks cannot be shared.
    ///
    /// # Errors
    /// Of the file that is written to.
    fn share(&mut self, file: &File, offset: u64, length: u64) -> io::Result<Option<Bytes>>;
}

/// A finished layer.
#[derive(Clone, Debug)]
pub struct Written {
    /// sha256 of the tar.
    pub diff_id: Digest,
    /// Digest of everything but times.
    pub content: ContentDigest,
    /// Length of the tar.
    pub size: u64,
    /// What is in it.
    pub index: LayerIndex,
}

/// Writes a deterministic tar to `out`, which may be [`std::io::sink`] when only the digests are wanted.
///
/// Entries come in the order of [`super::cmp_paths`]. What BuildKit would write is written: PAX records only where a plain
/// header cannot say it, whole seconds, no names of users. One thing is added: in front of the data of files of 1 MiB and more
/// a comment may stand that makes them begin at a multiple of 4096 bytes.
pub struct LayerWriter<W> {
    out: W,
    sha: sha2::Sha256,
    /// Bytes that are neither hashed nor written yet, at most [`PIECE`] and a header.
    stage: Vec<u8>,
    /// The other buffer of a large file, kept for the next.
    spare: Vec<u8>,
    /// Length of all that left the stage.
    flushed: u64,
    entries: Vec<Entry>,
    /// Names with a meaning in layers are ordinary ones.
    plain: bool,
    /// The data of large files begin where blocks do.
    aligned: bool,
}

impl<W: Write> LayerWriter<W> {
    /// Starts an empty layer.
    pub fn new(out: W) -> Self {
        Self {
            out,
            sha: sha2::Sha256::new(),
            stage: Vec::with_capacity(PIECE + 8 * BLOCK),
            spare: Vec::new(),
            flushed: 0,
            entries: Vec::new(),
            plain: false,
            aligned: true,
        }
    }

    /// Starts a layer as an earlier version wrote it.
    pub(crate) fn of_version(version: u32, out: W) -> Self {
        Self { aligned: version > 1, ..Self::new(out) }
    }

    /// Starts an ordinary archive, in which a name that begins with `.wh.` is just a name.
    pub(crate) fn plain(out: W) -> Self {
        Self { plain: true, aligned: false, ..Self::new(out) }
    }

    /// Adds anything but a file with data. An implicit directory is only noted in the index.
    pub fn append(&mut self, entry: Entry) -> Result<(), LayerError> {
        if matches!(entry.kind, EntryKind::File { .. }) {
            return self.append_file(entry, io::empty(), Expect::Nothing).map(|_| ());
        }
        if let EntryKind::Hardlink { target } = &entry.kind
            && !self
                .entries
                .binary_search_by(|other| cmp_paths(&other.path, target))
                .is_ok_and(|at| matches!(self.entries[at].kind, EntryKind::File { .. }))
        {
            return Err(LayerError::LinkTarget { path: show(&entry.path), target: show(target) });
        }
        self.header(&entry)?;
        self.note(entry)
    }

    /// Adds a regular file ([`EntryKind::File`]), whose source must give exactly as many bytes as the entry says. Returns
    /// the digest of the data.
    pub fn append_file(&mut self, entry: Entry, data: impl Read, expect: Expect) -> Result<ContentDigest, LayerError> {
        self.header(&entry)?;
        self.data(entry, data, expect)
    }

    /// As [`Self::append_file`], for bytes that lie on a disk. Those of a large file are not copied where the layer can share
    /// their blocks; then they are read from the layer itself, so that what is digested is what is stored. All are read
    /// through `reader`.
    pub fn append_bytes<R: Read>(
        &mut self,
        entry: Entry,
        bytes: Bytes,
        expect: Expect,
        reader: impl FnOnce(Box<dyn Read + Send>) -> R,
    ) -> Result<ContentDigest, LayerError>
    where
        W: Shares,
    {
        self.header(&entry)?;
        let data = match entry.kind {
            EntryKind::File { size, .. } if size >= LARGE => self.share(&bytes, size, &entry.path)?,
            _ => None,
        };
        let data = data.unwrap_or_else(|| bytes.reader());
        self.data(entry, reader(data), expect)
    }

    /// Shares the whole blocks of a file whose header was just written, and reads the rest.
    fn share(&mut self, bytes: &Bytes, size: u64, path: &[u8]) -> Result<Option<Box<dyn Read + Send>>, LayerError>
    where
        W: Shares,
    {
        let (file, offset) = bytes.place();
        let (length, rest) = (size - size % ALIGNMENT, size % ALIGNMENT);
        if offset % ALIGNMENT != 0 {
            return Ok(None);
        }
        self.flush_stage().map_err(LayerError::Write)?;
        let Some(shared) = self.out.share(file, offset, length).map_err(LayerError::Write)? else { return Ok(None) };
        let mut end = vec![0; rest as usize];
        match file.read_exact_at(&mut end, offset + length) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(LayerError::Changed { path: show(path) });
            }
            read => read.map_err(LayerError::io("read", path))?,
        }
        Ok(Some(Box::new(shared.reader().chain(Cursor::new(end)))))
    }

    /// Adds the data of a file whose header was just written.
    fn data(&mut self, mut entry: Entry, mut data: impl Read, expect: Expect) -> Result<ContentDigest, LayerError> {
        let path = show(&entry.path);
        let EntryKind::File { size, digest: known, .. } = entry.kind else {
            return Err(LayerError::Unrepresentable { path, reason: "only a regular file has data" });
        };
        let start = self.flushed + self.stage.len() as u64;

        let mut hasher = (expect != Expect::Trusted).then(blake3::Hasher::new);
        let mut remaining = size;
        // From where on the stage is yet to be digested.
        let mut fresh = self.stage.len();
        while remaining > 0 {
            let path = &entry.path;
            let got = if remaining > 2 * PIECE as u64 && self.stage.len() > PIECE / 2 {
                let got = self.overlap(&mut data, path, hasher.as_mut(), fresh)?;
                fresh = 0;
                got
            } else {
                if let Some(hasher) = &mut hasher {
                    hasher.update(&self.stage[fresh..]);
                }
                self.room()?;
                fresh = self.stage.len();
                let want = usize::try_from(remaining).unwrap_or(usize::MAX).min(PIECE - fresh);
                fill(&mut self.stage, &mut data, want).map_err(LayerError::io("read", path))?
            };
            if got == 0 {
                return Err(LayerError::Changed { path: show(path) });
            }
            remaining -= got as u64;
        }
        if let Some(hasher) = &mut hasher {
            hasher.update(&self.stage[fresh..]);
        }
        let mut probe = [0];
        if at_least_one(&mut data, &mut probe).map_err(LayerError::io("read", &entry.path))? {
            return Err(LayerError::Changed { path });
        }
        self.stage.extend_from_slice(&[0; BLOCK][..padding(size)]);

        let digest = hasher.map_or(known, |hasher| ContentDigest::from_bytes(*hasher.finalize().as_bytes()));
        if expect == Expect::Digest && digest != known {
            return Err(LayerError::Changed { path });
        }
        entry.kind = EntryKind::File { size, digest, offset: Some(start) };
        self.note(entry)?;
        Ok(digest)
    }

    /// Ends the archive.
    pub fn finish(mut self) -> Result<(Written, W), LayerError> {
        self.stage.extend_from_slice(&END);
        self.flush_stage().map_err(LayerError::Write)?;
        self.out.flush().map_err(LayerError::Write)?;
        let index = LayerIndex::new(self.entries);
        let diff_id = Digest::from_bytes(self.sha.finalize().into());
        Ok((Written { diff_id, content: index.content_digest(), size: self.flushed, index }, self.out))
    }

    fn header(&mut self, entry: &Entry) -> Result<(), LayerError> {
        if self.entries.last().is_some_and(|last| cmp_paths(&last.path, &entry.path).is_ge()) {
            return Err(LayerError::OutOfOrder { path: show(&entry.path) });
        }
        let unrepresentable = |reason| Err(LayerError::Unrepresentable { path: show(&entry.path), reason });
        if clean(&entry.path) != entry.path || entry.path.contains(&0) {
            return unrepresentable("it is not a plain relative path");
        }
        LayerError::check_length(&entry.path)?;
        if entry.path.is_empty() && !entry.is_dir() {
            return unrepresentable("the root must be a directory");
        }
        if !self.plain && split(&entry.path).1.starts_with(WHITEOUT) {
            return unrepresentable("names that begin with \".wh.\" stand for removed files there");
        }
        self.room()?;
        let at = self.flushed + self.stage.len() as u64;
        push_header(&mut self.stage, entry, self.aligned.then_some(at))
    }

    fn note(&mut self, mut entry: Entry) -> Result<(), LayerError> {
        if !entry.is_implicit() {
            entry.mtime.1 = 0;
        }
        self.entries.push(entry);
        self.room()
    }

    /// Makes room in the stage.
    fn room(&mut self) -> Result<(), LayerError> {
        if self.stage.len() >= PIECE { self.flush_stage().map_err(LayerError::Write) } else { Ok(()) }
    }

    fn flush_stage(&mut self) -> io::Result<()> {
        self.sha.update(&self.stage);
        self.out.write_all(&self.stage)?;
        self.flushed += self.stage.len() as u64;
        self.stage.clear();
        Ok(())
    }

    /// Hashes the stage on other cores, and digests it from `fresh` on, while it is written and the next piece is read.
    fn overlap(
        &mut self,
        data: &mut impl Read,
        path: &[u8],
        hasher: Option<&mut blake3::Hasher>,
        fresh: usize,
    ) -> Result<usize, LayerError> {
        let (sha, out, stage, spare) = (&mut self.sha, &mut self.out, &self.stage, &mut self.spare);
        spare.clear();
        let got = rayon::in_place_scope(|scope| {
            scope.spawn(|_| sha.update(stage));
            if let Some(hasher) = hasher {
                scope.spawn(move |_| {
                    hasher.update(&stage[fresh..]);
                });
            }
            out.write_all(stage).map_err(LayerError::Write)?;
            fill(spare, data, PIECE).map_err(LayerError::io("read", path))
        })?;
        self.flushed += self.stage.len() as u64;
        std::mem::swap(&mut self.stage, &mut self.spare);
        Ok(got)
    }
}

/// Appends at most `want` bytes to `stage`; fewer only at the end of `data`.
fn fill(stage: &mut Vec<u8>, data: &mut impl Read, want: usize) -> io::Result<usize> {
    let start = stage.len();
    stage.resize(start + want, 0);
    let mut end = start;
    let result = loop {
        if end == start + want {
            break Ok(());
        }
        match data.read(&mut stage[end..]) {
            Ok(0) => break Ok(()),
            Ok(got) => end += got,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => break Err(error),
        }
    };
    stage.truncate(end);
    result.map(|()| end - start)
}

/// Whether there is another byte.
fn at_least_one(data: &mut impl Read, probe: &mut [u8; 1]) -> io::Result<bool> {
    loop {
        match data.read(probe) {
            Ok(got) => return Ok(got > 0),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
