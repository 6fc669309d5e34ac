//! Writing round the page cache.
//!
//! What is written once and read much later, if ever, takes memory from what is needed now when the page cache holds it, and every
//! page of it has to be found, cleared and copied to. `O_DIRECT` (open(2)) hands the bytes to the disk as they are. Where a file
//! system does not have that, or the disk is too slow to be waited for, the page cache is used as ever.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};

/// Blocks of disks are not larger, and pages neither: offsets, lengths and addresses in memory are multiples of it.
const ALIGNMENT: usize = 4096;
/// Written at once.
const PIECE: usize = 1 << 20;
/// So many pieces are written or wait for it.
const AT_ONCE: usize = 2;
/// A file that remains smaller has its place in the page cache.
const LARGE: u64 = 4 << 20;
/// So much is written before it is looked at how long that took ...
const STRIDE: u64 = 8 << 20;
/// ... and if it took longer, the disk has to be written to in the background.
const PATIENCE: Duration = Duration::from_millis(80);

/// A file that is written from beginning to end, on a thread of its own once it is large. What is buffered comes into it with
/// [`Write::flush`] at the latest, after which it is an ordinary file again.
pub(crate) struct Direct<F> {
    pub(crate) file: F,
    /// Bytes in the file and in buffers.
    length: u64,
    way: Way,
}

enum Way {
    Cached,
    /// Cached up to the given length, then round the cache.
    Later(u64),
    Direct(Stream),
    /// Something of the file is missing.
    Failed,
}

/// Pieces on their way to the disk.
struct Stream {
    current: Piece,
    full: SyncSender<Piece>,
    empty: Receiver<Piece>,
    /// The disk is to be written to in the background, by way of the page cache.
    give_up: Arc<AtomicBool>,
    thread: JoinHandle<io::Result<()>>,
}

struct Piece {
    memory: Vec<u8>,
    /// Where in `memory` a page begins.
    begin: usize,
    filled: usize,
}

impl<F: Write + AsFd> Direct<F> {
    /// A file that is written through the page cache.
    pub(crate) fn cached(file: F) -> Self {
        Self { file, length: 0, way: Way::Cached }
    }

    /// A file that is written round the page cache if it becomes large. `length` bytes are in it; the next goes behind them.
    pub(crate) fn new(file: F, length: u64) -> Self {
        let way = Way::Later(length.max(LARGE).next_multiple_of(ALIGNMENT as u64));
        Self { file, length, way }
    }

    /// Whether the page cache has what was written last.
    pub(crate) fn is_cached(&self) -> bool {
        !matches!(self.way, Way::Direct(_))
    }

    /// Writes what is buffered; the rest goes through the page cache.
    fn end(&mut self) -> io::Result<()> {
        match std::mem::replace(&mut self.way, Way::Failed) {
            Way::Failed => return Err(io::Error::other("an earlier part of the file could not be written")),
            Way::Cached | Way::Later(_) => {}
            Way::Direct(stream) => {
                let rest = stream.finish()?;
                set_direct(&self.file, false)?;
                self.file.write_all(rest.bytes())?;
            }
        }
        self.way = Way::Cached;
        Ok(())
    }
}

impl<F: Write + AsFd> Write for Direct<F> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        if let Way::Later(from) = self.way
            && self.length == from
        {
            // Where it cannot be had, the page cache is as good.
            self.way = Stream::start(&self.file).map_or(Way::Cached, Way::Direct);
        }
        let mut ends = false;
        let written = match &mut self.way {
            Way::Cached => self.file.write(data)?,
            Way::Later(from) => {
                let room = usize::try_from(*from - self.length).unwrap_or(usize::MAX);
                self.file.write(&data[..data.len().min(room)])?
            }
            Way::Direct(stream) => {
                let taken = stream.current.take(data);
                ends = stream.current.filled == PIECE && !stream.put();
                taken
            }
            Way::Failed => 0,
        };
        if ends {
            self.end()?;
        }
        self.length += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.end()?;
        self.file.flush()
    }
}

impl Stream {
    fn start(file: impl AsFd) -> io::Result<Self> {
        set_direct(&file, true)?;
        // The same open file: its position and its flags are shared.
        let own = File::from(file.as_fd().try_clone_to_owned()?);
        let (full, to_write) = sync_channel(AT_ONCE);
        let (written, empty) = sync_channel(AT_ONCE);
        for _ in 0..AT_ONCE {
            // There is room for all of them.
            let _ = written.try_send(Piece::new());
        }
        let give_up = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&give_up);
        let work = move || write_pieces(own, &to_write, &written, &told);
        let thread = std::thread::Builder::new().name("direct".into()).spawn(work);
        match thread {
            Ok(thread) => Ok(Self { current: Piece::new(), full, empty, give_up, thread }),
            Err(error) => {
                set_direct(&file, false)?;
                Err(error)
            }
        }
    }

    /// Hands the full piece on; not, if that is to end.
    fn put(&mut self) -> bool {
        if self.give_up.load(Ordering::Relaxed) {
            return false;
        }
        // Without an empty one the thread has failed.
        let Ok(empty) = self.empty.recv() else { return false };
        let full = std::mem::replace(&mut self.current, empty);
        match self.full.send(full) {
            Ok(()) => true,
            Err(back) => {
                self.current = back.0;
                false
            }
        }
    }

    /// Waits until all is written but what is returned.
    fn finish(self) -> io::Result<Piece> {
        drop(self.full);
        self.thread.join().map_err(|_| io::Error::other("a writing thread died"))??;
        Ok(self.current)
    }
}

fn write_pieces(
    mut file: File,
    full: &Receiver<Piece>,
    empty: &SyncSender<Piece>,
    give_up: &AtomicBool,
) -> io::Result<()> {
    let (mut written, mut spent) = (0, Duration::ZERO);
    for mut piece in full {
        let start = Instant::now();
        if !write_aligned(&mut file, piece.bytes())? {
            give_up.store(true, Ordering::Relaxed);
        }
        spent += start.elapsed();
        written += PIECE as u64;
        if written >= STRIDE {
            if std::mem::take(&mut spent) > PATIENCE {
                give_up.store(true, Ordering::Relaxed);
            }
            written = 0;
        }
        piece.filled = 0;
        // Nobody waits for it at the end.
        let _ = empty.try_send(piece);
    }
    Ok(())
}

/// Writes all of it; not round the page cache if that cannot be.
fn write_aligned(file: &mut File, mut bytes: &[u8]) -> io::Result<bool> {
    while !bytes.is_empty() {
        match file.write(bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => bytes = &bytes[written..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            // The file system would have larger blocks, or does not do it here after all.
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::INVAL.raw_os_error()) => {
                set_direct(&*file, false)?;
                file.write_all(bytes)?;
                return Ok(false);
            }
            Err(error) => return Err(error),
        }
        if !bytes.len().is_multiple_of(ALIGNMENT) {
            // Cut short, as by a full disk: the rest tells.
            set_direct(&*file, false)?;
            file.write_all(bytes)?;
            return Ok(false);
        }
    }
    Ok(true)
}

impl Piece {
    fn new() -> Self {
        let memory = vec![0; PIECE + ALIGNMENT];
        // That it cannot be told is allowed; then writing fails, and the page cache is used.
        let begin = memory.as_ptr().align_offset(ALIGNMENT).min(ALIGNMENT);
        Self { memory, begin, filled: 0 }
    }

    fn take(&mut self, data: &[u8]) -> usize {
        let taken = data.len().min(PIECE - self.filled);
        let at = self.begin + self.filled;
        self.memory[at..at + taken].copy_from_slice(&data[..taken]);
        self.filled += taken;
        taken
    }

    fn bytes(&self) -> &[u8] {
        &self.memory[self.begin..self.begin + self.filled]
    }
}

fn set_direct(file: impl AsFd, on: bool) -> io::Result<()> {
    let flags = fcntl_getfl(&file)?;
    Ok(fcntl_setfl(&file, if on { flags | OFlags::DIRECT } else { flags - OFlags::DIRECT })?)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek, SeekFrom};

    use super::*;

    #[test]
    fn whatever_is_written_in_whatever_pieces_is_in_the_file() {
        let bytes: Vec<u8> = (0..(11 << 20) + 77u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        for (before, step) in [(0, 512 << 10), (0, 333_333), (5 << 20, 1 << 20), (5_000_001, 4097), (100, 9 << 20)] {
            let mut file = tempfile::tempfile_in(".").unwrap();
            file.write_all(&bytes[..before]).unwrap();
            let mut direct = Direct::new(file, before as u64);
            let mut was_direct = false;
            for piece in bytes[before..].chunks(step) {
                direct.write_all(piece).unwrap();
                was_direct |= !direct.is_cached();
            }
            direct.flush().unwrap();
            assert!(direct.is_cached());
            direct.write_all(b"more").unwrap();
            let mut file: File = direct.file;
            let mut found = Vec::new();
            file.seek(SeekFrom::Start(0)).unwrap();
            file.read_to_end(&mut found).unwrap();
            assert_eq!(found.len(), bytes.len() + 4);
            assert!(found.starts_with(&bytes) && found.ends_with(b"more"), "{before} {step}");
            // Where the file system refuses, nothing of all this was tried.
            assert!(was_direct || set_direct(&file, true).is_err());
        }
    }
}
