//! From a plan to a layer. The tar is one stream, hashed on one core; what other cores there are read and check the small
//! files that come next.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::sync::mpsc::sync_channel;

use graph::ContentDigest;
use rayon::prelude::*;
use snapshotter::layer::{Bytes, Entry, EntryKind, Expect, LayerError, LayerWriter, Shares, Written};

use super::staging::{Content, Planned, lossy};
use super::{BASE, FileError, Plan, Work};

/// Files up to this size are read ahead.
const SMALL: u64 = 256 << 10;
/// Entries that are read ahead together, and the bytes of their files.
const BATCH: usize = 128;
const BATCH_BYTES: u64 = 4 << 20;

/// An entry and its bytes, as far as they are there already.
struct Ready<'a> {
    entry: Entry,
    data: Data<'a>,
}

enum Data<'a> {
    None,
    /// Checked.
    Read(Vec<u8>),
    Shared(std::sync::Arc<[u8]>),
    Stored(Bytes),
    Spooled(At<'a>),
}

impl Plan {
    /// Writes the layer to `out`, reading every source once. A file that is no longer what it was when the step was keyed
    /// is an error.
    pub(crate) fn write<W: Shares>(self, work: &Work<'_>, out: W) -> Result<(Written, W), FileError> {
        let Self { planned, spool } = self;
        let spool = spool.as_ref();
        let mut writer = LayerWriter::new(out);
        let mut batches = Batches { planned: planned.into_iter().peekable() };
        let first = batches.next().unwrap_or_default();
        if batches.planned.peek().is_none() {
            for planned in first {
                append(&mut writer, prepare(work, spool, planned)?, work)?;
            }
            return Ok(writer.finish()?);
        }
        std::thread::scope(|scope| {
            let (sender, receiver) = sync_channel(2);
            scope.spawn(move || {
                for batch in std::iter::once(first).chain(batches) {
                    let ready: Vec<_> = batch.into_par_iter().map(|planned| prepare(work, spool, planned)).collect();
                    // The other end goes away when writing fails.
                    if sender.send(ready).is_err() {
                        return;
                    }
                }
            });
            for batch in receiver {
                for ready in batch {
                    if (work.cancelled)() {
                        return Err(LayerError::Cancelled.into());
                    }
                    append(&mut writer, ready?, work)?;
                }
            }
            Ok::<_, FileError>(())
        })?;
        Ok(writer.finish()?)
    }
}

struct Batches {
    planned: std::iter::Peekable<std::vec::IntoIter<Planned>>,
}

impl Iterator for Batches {
    type Item = Vec<Planned>;

    fn next(&mut self) -> Option<Vec<Planned>> {
        let mut batch = Vec::new();
        let mut bytes = 0;
        while batch.len() < BATCH && bytes < BATCH_BYTES {
            let Some(planned) = self.planned.next() else { break };
            bytes += small(&planned.entry).map_or(0, |(size, _)| size);
            batch.push(planned);
        }
        (!batch.is_empty()).then_some(batch)
    }
}

/// Size and digest of a file that is worth reading ahead.
fn small(entry: &Entry) -> Option<(u64, ContentDigest)> {
    match entry.kind {
        EntryKind::File { size, digest, .. } if size <= SMALL => Some((size, digest)),
        _ => None,
    }
}

fn prepare<'a>(work: &Work<'_>, spool: Option<&'a File>, planned: Planned) -> Result<Ready<'a>, FileError> {
    let Planned { entry, content, .. } = planned;
    let data = match content {
        Content::None => Data::None,
        Content::Bytes(bytes) => Data::Shared(bytes),
        Content::Spooled { offset } => match spool {
            Some(file) => Data::Spooled(At { file, offset }),
            None => Data::None,
        },
        Content::Source { source, layer, path } => {
            let tree = if source == BASE { Some(work.base) } else { work.inputs.get(source) };
            let read = |source| FileError::Read { path: lossy(&path), source };
            let find = tree.map_or_else(|| Err(io::ErrorKind::NotFound.into()), |tree| (tree.bytes)(layer, &path));
            let found = find.map_err(read)?;
            match small(&entry) {
                None => Data::Stored(found),
                Some((size, digest)) => {
                    let bytes = read_all(found.reader(), size).map_err(read)?;
                    if ContentDigest::of(&bytes) != digest {
                        return Err(LayerError::Changed { path: lossy(&entry.path) }.into());
                    }
                    Data::Read(bytes)
                }
            }
        }
    };
    Ok(Ready { entry, data })
}

/// Reads a file that should have `size` bytes, and one byte more if it has. A short read is the end of a file, so that one
/// call is enough.
fn read_all(mut data: impl Read, size: u64) -> io::Result<Vec<u8>> {
    let size = usize::try_from(size).unwrap_or(usize::MAX);
    let mut bytes = vec![0; size.saturating_add(1)];
    let mut filled = 0;
    while filled < size.max(1) {
        match data.read(&mut bytes[filled..]) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    bytes.truncate(filled);
    Ok(bytes)
}

fn append<W: Shares>(writer: &mut LayerWriter<W>, ready: Ready<'_>, work: &Work<'_>) -> Result<(), FileError> {
    let Ready { entry, data } = ready;
    match data {
        Data::None => writer.append(entry)?,
        Data::Shared(bytes) => {
            writer.append_file(entry, &*bytes, Expect::Nothing)?;
        }
        Data::Read(bytes) => {
            writer.append_file(entry, &*bytes, Expect::Trusted)?;
        }
        Data::Stored(bytes) => {
            writer.append_bytes(entry, bytes, Expect::Digest, |data| Until { data, cancelled: work.cancelled })?;
        }
        Data::Spooled(at) => {
            let EntryKind::File { size, .. } = entry.kind else { return Ok(()) };
            let data = Until { data: Box::new(at.take(size)), cancelled: work.cancelled };
            writer.append_file(entry, data, Expect::Trusted)?;
        }
    }
    Ok(())
}

/// Large files are given up in the middle.
struct Until<'a> {
    data: Box<dyn Read + Send + 'a>,
    cancelled: &'a (dyn Fn() -> bool + Sync),
}

impl Read for Until<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if (self.cancelled)() {
            return Err(io::Error::other("cancelled"));
        }
        self.data.read(buffer)
    }
}

/// Reads a file from an offset.
struct At<'a> {
    file: &'a File,
    offset: u64,
}

impl Read for At<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read_at(buffer, self.offset)?;
        self.offset += read as u64;
        Ok(read)
    }
}
