//! Compression of layers: the same bytes whatever the number of cores.
//!
//! The stream is cut into blocks of a fixed size, which are compressed on all cores and joined in order. A gzip block begins
//! with the 32 KiB before it as dictionary and ends on a byte boundary, so that the blocks make up one ordinary deflate
//! stream in one gzip member. zstd's own multi-threading has the same property.

use std::io::{self, BufRead, Read, Write};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use flate2::{Compress, Crc, FlushCompress, Status};

/// Length of a gzip block. Raising it changes the bytes.
const BLOCK: usize = 256 * 1024;
/// As far back as deflate can refer.
const WINDOW: usize = 32 * 1024;
/// gzip header: deflate, no name, no time, written on Unix... as Go writes it: unknown system.
const GZIP_HEADER: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff];

/// How a layer is compressed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Compression {
    /// Not at all.
    None,
    /// gzip, level 0 to 9.
    Gzip {
        /// 6 is what others use.
        level: u32,
    },
    /// zstd, level 1 to 19.
    Zstd {
        /// 3 is zstd's own default.
        level: i32,
    },
}

impl Compression {
    /// How hard it tries.
    #[must_use]
    pub fn level(self) -> u32 {
        match self {
            Self::None => 0,
            Self::Gzip { level } => level,
            Self::Zstd { level } => u32::try_from(level).unwrap_or(0),
        }
    }
}

/// Compresses what is written to it, on all cores of rayon's current pool. Must be [finished](Encoder::finish).
pub struct Encoder<W: Write>(Inner<W>);

enum Inner<W: Write> {
    None(W),
    Gzip(Gzip<W>),
    Zstd(zstd::Encoder<'static, W>),
}

impl<W: Write> Encoder<W> {
    /// Starts a stream.
    pub fn new(out: W, compression: Compression) -> io::Result<Self> {
        Ok(Self(match compression {
            Compression::None => Inner::None(out),
            Compression::Gzip { level } => Inner::Gzip(Gzip::new(out, level.min(9))?),
            Compression::Zstd { level } => {
                let mut encoder = zstd::Encoder::new(out, level.clamp(1, 19))?;
                // With one worker or many the result is the same, with none it is another.
                let workers = rayon::current_num_threads().clamp(1, 16);
                encoder.multithread(u32::try_from(workers).unwrap_or(1))?;
                encoder.include_checksum(true)?;
                Inner::Zstd(encoder)
            }
        }))
    }

    /// Ends the stream.
    pub fn finish(self) -> io::Result<W> {
        match self.0 {
            Inner::None(mut out) => {
                out.flush()?;
                Ok(out)
            }
            Inner::Gzip(gzip) => gzip.finish(),
            Inner::Zstd(encoder) => encoder.finish(),
        }
    }
}

impl<W: Write> Write for Encoder<W> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        match &mut self.0 {
            Inner::None(out) => out.write(data),
            Inner::Gzip(gzip) => gzip.write(data),
            Inner::Zstd(encoder) => encoder.write(data),
        }
    }

    /// Passes on what is compressed. It does not end a block, which would make the bytes depend on the writer's habits.
    fn flush(&mut self) -> io::Result<()> {
        match &mut self.0 {
            Inner::None(out) => out.flush(),
            Inner::Gzip(gzip) => gzip.out.flush(),
            Inner::Zstd(_) => Ok(()),
        }
    }
}

/// A block on its way: compressed and summed up by some thread, collected in order.
type Pending = Receiver<io::Result<(Vec<u8>, Crc)>>;

struct Gzip<W> {
    out: W,
    level: u32,
    crc: Crc,
    /// The last [`WINDOW`] bytes before the block, then the block.
    data: Vec<u8>,
    dictionary: usize,
    pending: std::collections::VecDeque<Pending>,
    most_pending: usize,
}

impl<W: Write> Gzip<W> {
    fn new(mut out: W, level: u32) -> io::Result<Self> {
        out.write_all(&GZIP_HEADER)?;
        Ok(Self {
            out,
            level,
            crc: Crc::new(),
            data: Vec::with_capacity(WINDOW + BLOCK),
            dictionary: 0,
            pending: std::collections::VecDeque::new(),
            most_pending: 2 * rayon::current_num_threads(),
        })
    }

    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        if self.data.len() == self.dictionary + BLOCK {
            self.dispatch(false)?;
        }
        let length = data.len().min(self.dictionary + BLOCK - self.data.len());
        self.data.extend_from_slice(&data[..length]);
        Ok(length)
    }

    /// Sends the block to be compressed and keeps its end for the next.
    fn dispatch(&mut self, last: bool) -> io::Result<()> {
        let mut next = Vec::with_capacity(WINDOW + BLOCK);
        next.extend_from_slice(&self.data[self.data.len().saturating_sub(WINDOW)..]);
        let (data, dictionary) = (std::mem::replace(&mut self.data, next), self.dictionary);
        self.dictionary = self.data.len();
        let (sender, receiver): (SyncSender<_>, Pending) = sync_channel(1);
        let level = self.level;
        rayon::spawn(move || {
            let block = &data[dictionary..];
            let mut crc = Crc::new();
            crc.update(block);
            // The receiver is gone if writing failed; then nobody wants the block.
            let _ = sender.send(deflate(block, &data[..dictionary], level, last).map(|deflated| (deflated, crc)));
        });
        self.pending.push_back(receiver);
        while self.pending.len() > self.most_pending {
            self.collect()?;
        }
        Ok(())
    }

    fn collect(&mut self) -> io::Result<()> {
        let Some(receiver) = self.pending.pop_front() else { return Ok(()) };
        let (block, crc) = Self::wait_for(&receiver)??;
        self.crc.combine(&crc);
        self.out.write_all(&block)
    }

    fn wait_for<T>(receiver: &Receiver<T>) -> io::Result<T> {
        let died = || io::Error::other("a compressing thread died");
        loop {
            match receiver.try_recv() {
                Ok(block) => return Ok(block),
                Err(std::sync::mpsc::TryRecvError::Disconnected) => return Err(died()),
                // On a thread of the pool itself, waiting could keep the block from ever being compressed.
                Err(std::sync::mpsc::TryRecvError::Empty) => match rayon::yield_now() {
                    Some(rayon::Yield::Executed) => {}
                    Some(rayon::Yield::Idle) => std::thread::yield_now(),
                    None => return receiver.recv().map_err(|_| died()),
                },
            }
        }
    }

    fn finish(mut self) -> io::Result<W> {
        self.dispatch(true)?;
        while !self.pending.is_empty() {
            self.collect()?;
        }
        self.out.write_all(&self.crc.sum().to_le_bytes())?;
        self.out.write_all(&self.crc.amount().to_le_bytes())?;
        self.out.flush()?;
        Ok(self.out)
    }
}

/// Compresses one block. All but the last end with an empty stored block, which leaves them on a byte boundary.
fn deflate(block: &[u8], dictionary: &[u8], level: u32, last: bool) -> io::Result<Vec<u8>> {
    let level = if incompressible(block) { 0 } else { level };
    let mut compress = Compress::new(flate2::Compression::new(level), false);
    if !dictionary.is_empty() {
        compress.set_dictionary(dictionary).map_err(io::Error::other)?;
    }
    let mut out = Vec::with_capacity(block.len() / 2 + 4096);
    let flush = if last { FlushCompress::Finish } else { FlushCompress::Sync };
    loop {
        let consumed = usize::try_from(compress.total_in()).unwrap_or(usize::MAX);
        let status = compress.compress_vec(&block[consumed..], &mut out, flush).map_err(io::Error::other)?;
        let all_in = compress.total_in() == block.len() as u64;
        match status {
            Status::StreamEnd => return Ok(out),
            // Room left over means that the flush is complete.
            _ if !last && all_in && out.len() < out.capacity() => return Ok(out),
            Status::BufError if out.len() < out.capacity() => {
                return Err(io::Error::other("deflate makes no progress"));
            }
            _ => out.reserve(out.capacity().max(4096)),
        }
    }
}

/// Whether samples of a block do not get smaller, as media and archives: the effort would be wasted on it, and a level
/// without dynamic codes would even make it larger.
fn incompressible(block: &[u8]) -> bool {
    const SAMPLE: usize = 8192;
    if block.len() < 16 * SAMPLE {
        return false;
    }
    let mut scratch = Vec::with_capacity(2 * SAMPLE);
    // Its tables are larger than a block.
    let mut compress = Compress::new(flate2::Compression::new(6), false);
    block.chunks_exact(block.len() / 4).all(|part| {
        scratch.clear();
        compress.reset();
        let done = compress.compress_vec(&part[..SAMPLE], &mut scratch, FlushCompress::Finish);
        done.is_ok() && scratch.len() * 100 >= SAMPLE * 99
    })
}

/// What a stream is compressed with, told by its first bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Detected {
    /// Nothing that we know.
    None,
    /// gzip.
    Gzip,
    /// zstd.
    Zstd,
    /// bzip2.
    Bzip2,
    /// xz.
    Xz,
}

/// Looks at the first bytes of a stream; six tell all.
#[must_use]
pub fn detect(start: &[u8]) -> Detected {
    match start {
        [0x1f, 0x8b, 8, ..] => Detected::Gzip,
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Detected::Zstd,
        // A skippable frame, with which seekable zstd files may begin.
        [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Detected::Zstd,
        [b'B', b'Z', b'h', b'1'..=b'9', ..] => Detected::Bzip2,
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Detected::Xz,
        _ => Detected::None,
    }
}

/// Decompresses gzip and zstd, found by the first bytes of `input`, as it is read; nothing is held but a window. What is
/// not compressed comes as it is; bzip2 and xz, which no layer is compressed with, are errors.
pub fn decoder<'a>(mut input: impl BufRead + Send + 'a) -> io::Result<Box<dyn Read + Send + 'a>> {
    // A reader may give less than six bytes at first.
    let mut start = Vec::new();
    while start.len() < 6 {
        let ready = input.fill_buf()?;
        if ready.is_empty() {
            break;
        }
        let length = ready.len().min(6 - start.len());
        start.extend_from_slice(&ready[..length]);
        input.consume(length);
    }
    let detected = detect(&start);
    let input = io::Cursor::new(start).chain(input);
    match detected {
        Detected::None => Ok(Box::new(input)),
        Detected::Gzip => Ok(Box::new(flate2::bufread::MultiGzDecoder::new(input))),
        Detected::Zstd => {
            let mut decoder = zstd::Decoder::with_buffer(input)?;
            decoder.window_log_max(WINDOW_LOG_MAX)?;
            Ok(Box::new(Zstd(decoder)))
        }
        Detected::Bzip2 => Err(io::Error::new(io::ErrorKind::Unsupported, "layers are not compressed with bzip2")),
        Detected::Xz => Err(io::Error::new(io::ErrorKind::Unsupported, "layers are not compressed with xz")),
    }
}

/// What containerd and docker accept, and `zstd --long=29` makes. A stream says itself how much of it is to be held; that much is
/// held of what it really unfolds to, of as many layers as are unpacked at the same time.
const WINDOW_LOG_MAX: u32 = 29;

/// Says in words what cannot be held.
struct Zstd<R>(R);

impl<R: Read> Read for Zstd<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer).map_err(|error| match error.to_string().contains("requires too much memory") {
            true => io::Error::new(
                io::ErrorKind::InvalidData,
                format!(
                    "its zstd stream has a window of more than {} MiB; compress it without --long",
                    1_u32 << (WINDOW_LOG_MAX - 20)
                ),
            ),
            false => error,
        })
    }
}

/// Length of what [`read_ahead`] reads at a time.
const PIECE: usize = 256 * 1024;

/// Reads `input` on a thread of its own, some pieces ahead, so that decompressing and unpacking overlap. The thread ends
/// with the reader.
pub fn read_ahead(mut input: impl Read + Send + 'static) -> io::Result<ReadAhead> {
    let (sender, receiver) = sync_channel(8);
    std::thread::Builder::new().name("read-ahead".to_owned()).spawn(move || {
        loop {
            let mut piece = vec![0; PIECE];
            let mut filled = 0;
            let result = loop {
                match input.read(&mut piece[filled..]) {
                    Ok(0) => break Ok(()),
                    Ok(got) => filled += got,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => break Err(error),
                }
            };
            let ended = filled < piece.len();
            piece.truncate(filled);
            let sent = match result {
                Ok(()) => sender.send(Ok(piece)),
                Err(error) => sender.send(Err(error)),
            };
            // A short piece, be it an empty one, tells that it was the last.
            if ended || sent.is_err() {
                return;
            }
        }
    })?;
    Ok(ReadAhead { receiver, piece: Vec::new(), at: 0, ended: false })
}

/// See [`read_ahead`].
pub struct ReadAhead {
    receiver: Receiver<io::Result<Vec<u8>>>,
    piece: Vec<u8>,
    at: usize,
    ended: bool,
}

impl Read for ReadAhead {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.at == self.piece.len() && !self.ended {
            let died = |_| io::Error::other("the thread that reads ahead died");
            (self.piece, self.at) = (self.receiver.recv().map_err(died)??, 0);
            self.ended = self.piece.len() < PIECE;
        }
        let length = out.len().min(self.piece.len() - self.at);
        out[..length].copy_from_slice(&self.piece[self.at..self.at + length]);
        self.at += length;
        Ok(length)
    }
}
