//! Reading a tar stream that somebody else made: ustar, PAX, GNU and old headers, sparse files, with bounds on all that
//! is held in memory, and the sha256 of every byte.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::ops::Range;

use graph::Digest;
use sha2::Digest as _;
use tar::Header;

use super::entry::{MAX_PATH, clean};
use super::error::LayerError;
use super::header::{BLOCK, XATTR, padding};
use super::sparse::{self, Hole, Holes};

/// Bytes are read, hashed and handed on in pieces of this size.
const PIECE: usize = 256 * 1024;
/// The most that a PAX header, a GNU long name or a sparse map may take: Go's reader has the same bound.
const MAX_SPECIAL: u64 = 1 << 20;

/// PAX records of one member.
pub(crate) type Records = BTreeMap<Vec<u8>, Vec<u8>>;

/// One member of an archive, as its headers describe it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Where its first header block is.
    pub at: u64,
    /// As written; not cleaned.
    pub name: Vec<u8>,
    /// What it is.
    pub kind: MemberKind,
    /// Permission bits with setuid, setgid and sticky.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Seconds and nanoseconds since 1970.
    pub mtime: (i64, u32),
    /// All of them, by name.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// The kinds of members.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MemberKind {
    /// A regular file; its data come with [`TarReader::piece`].
    File {
        /// Length, holes included.
        size: u64,
        /// Where the data begin, if they are in one piece.
        offset: Option<u64>,
    },
    /// A directory.
    Dir,
    /// A symbolic link and its target.
    Symlink(Vec<u8>),
    /// Another name of the member so called.
    Hardlink(Vec<u8>),
    /// A character device: major and minor number.
    Char(u32, u32),
    /// A block device: major and minor number.
    Block(u32, u32),
    /// A named pipe.
    Fifo,
}

/// What comes next of a file.
pub enum Piece<'a> {
    /// Stored bytes.
    Data(&'a [u8]),
    /// So many zero bytes that are not stored.
    Hole(u64),
}

/// An archive being read.
pub struct TarReader<R> {
    input: R,
    sha: sha2::Sha256,
    buffer: Vec<u8>,
    /// The part of the buffer that was read and not yet consumed.
    ready: Range<usize>,
    /// Offset of the stream at the start of `ready`.
    position: u64,
    ended: bool,
    /// What went wrong behind the bytes that are ready.
    failed: Option<io::Error>,
    /// Stored bytes of the current member that were not consumed.
    stored: u64,
    padding: usize,
    holes: Holes,
}

impl<R: Read> TarReader<R> {
    /// Reads `input`, which is not compressed.
    pub fn new(input: R) -> Self {
        Self {
            input,
            sha: sha2::Sha256::new(),
            buffer: vec![0; PIECE],
            ready: 0..0,
            position: 0,
            ended: false,
            failed: None,
            stored: 0,
            padding: 0,
            holes: Holes::default(),
        }
    }

    /// The next member, once the data of the last one are consumed or skipped.
    pub fn next_member(&mut self) -> Result<Option<Member>, LayerError> {
        self.skip_data()?;
        let at = self.position;
        let mut records = Records::new();
        let (mut long_name, mut long_link) = (None, None);
        loop {
            let start = self.position;
            let Some(block) = self.header()? else {
                return Ok(None);
            };
            let format = |reason: String| LayerError::Format { offset: start, reason };
            let size = u64::try_from(number(&block.as_old().size).map_err(format)?)
                .map_err(|_| format("negative size".to_owned()))?;
            match block.as_old().linkflag[0] {
                // A size in a PAX record is the next member's; these headers have their own.
                b'x' => {
                    let data = self.special(start, size)?;
                    records = parse_records(&data).map_err(format)?;
                }
                b'g' => drop(self.special(start, size)?),
                b'L' => long_name = Some(until_nul(&self.special(start, size)?).to_vec()),
                b'K' => long_link = Some(until_nul(&self.special(start, size)?).to_vec()),
                _ => return self.member(at, start, &block, size, records, long_name, long_link).map(Some),
            }
        }
    }

    /// The next piece of the current member's data, `None` at its end.
    pub fn piece(&mut self) -> Result<Option<Piece<'_>>, LayerError> {
        match self.holes.next() {
            Hole::Zeros(length) => Ok(Some(Piece::Hole(length))),
            Hole::Data(most) => {
                let most = most.min(self.stored);
                if most == 0 {
                    return Ok(None);
                }
                if self.ready.is_empty() && self.refill()? == 0 {
                    return Err(self.truncated());
                }
                let length = usize::try_from(most).unwrap_or(usize::MAX).min(self.ready.len());
                let range = self.consume(length);
                self.stored -= length as u64;
                self.holes.consumed(length as u64);
                Ok(Some(Piece::Data(&self.buffer[range])))
            }
        }
    }

    /// Reads what follows the archive's end, which belongs to the layer, and returns the digest and length of the stream.
    pub(crate) fn finish(mut self) -> Result<(Digest, u64), LayerError> {
        loop {
            let length = self.ready.len();
            self.consume(length);
            if self.refill()? == 0 {
                return Ok((Digest::from_bytes(self.sha.finalize().into()), self.position));
            }
        }
    }

    fn truncated(&self) -> LayerError {
        LayerError::Format { offset: self.position, reason: "the archive ends in the middle of a member".to_owned() }
    }

    /// Reads and hashes more, for an empty `ready`. 0 at the end.
    fn refill(&mut self) -> Result<usize, LayerError> {
        if let Some(error) = self.failed.take() {
            return Err(LayerError::Read(error));
        }
        if self.ended {
            return Ok(0);
        }
        let mut filled = 0;
        // Filling the buffer makes hashing cheaper, as decompressors give small pieces. Those that came before an error are
        // still good: they tell a damaged archive from a file that is none.
        while filled < self.buffer.len() {
            match self.input.read(&mut self.buffer[filled..]) {
                Ok(0) => {
                    self.ended = true;
                    break;
                }
                Ok(got) => filled += got,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if filled > 0 => {
                    self.failed = Some(error);
                    break;
                }
                Err(error) => return Err(LayerError::Read(error)),
            }
        }
        self.sha.update(&self.buffer[..filled]);
        self.ready = 0..filled;
        Ok(filled)
    }

    fn consume(&mut self, length: usize) -> Range<usize> {
        let start = self.ready.start;
        self.ready.start += length;
        self.position += length as u64;
        start..start + length
    }

    /// Fills `out`; `false` if the stream was at its end already.
    fn exact(&mut self, out: &mut [u8]) -> Result<bool, LayerError> {
        let mut filled = 0;
        while filled < out.len() {
            if self.ready.is_empty() && self.refill()? == 0 {
                return if filled == 0 { Ok(false) } else { Err(self.truncated()) };
            }
            let length = self.ready.len().min(out.len() - filled);
            let range = self.consume(length);
            out[filled..filled + length].copy_from_slice(&self.buffer[range]);
            filled += length;
        }
        Ok(true)
    }

    fn skip_data(&mut self) -> Result<(), LayerError> {
        let mut remaining = self.stored + self.padding as u64;
        while remaining > 0 {
            if self.ready.is_empty() && self.refill()? == 0 {
                return Err(self.truncated());
            }
            let length = usize::try_from(remaining).unwrap_or(usize::MAX).min(self.ready.len());
            self.consume(length);
            remaining -= length as u64;
        }
        (self.stored, self.padding, self.holes) = (0, 0, Holes::default());
        Ok(())
    }

    /// A header block whose checksum is right; `None` at the archive's end.
    fn header(&mut self) -> Result<Option<Header>, LayerError> {
        let start = self.position;
        let mut block = Header::new_old();
        if !self.exact(block.as_mut_bytes())? {
            return Ok(None);
        }
        if block.as_bytes().iter().all(|&b| b == 0) {
            let mut second = [0; BLOCK];
            if self.exact(&mut second)? && second.iter().any(|&b| b != 0) {
                let reason = "a single zero block in the middle".to_owned();
                return Err(LayerError::Format { offset: start, reason });
            }
            return Ok(None);
        }
        let sum = |byte: &dyn Fn(u8) -> i64| -> i64 {
            let bytes = block.as_bytes().iter().enumerate();
            bytes.map(|(at, &b)| if (148..156).contains(&at) { byte(b' ') } else { byte(b) }).sum()
        };
        // Some old programs summed signed bytes.
        let want = number(&block.as_old().cksum).ok();
        if want != Some(sum(&|b| b.into())) && want != Some(sum(&|b| b.cast_signed().into())) {
            return Err(LayerError::Format { offset: start, reason: "wrong header checksum".to_owned() });
        }
        Ok(Some(block))
    }

    /// The data of a header that describes the next one.
    fn special(&mut self, start: u64, size: u64) -> Result<Vec<u8>, LayerError> {
        if size > MAX_SPECIAL {
            return Err(LayerError::Format { offset: start, reason: format!("a header of {size} bytes") });
        }
        let size_in_memory = usize::try_from(size).unwrap_or(usize::MAX);
        let mut data = vec![0; size_in_memory + padding(size)];
        if !data.is_empty() && !self.exact(&mut data)? {
            return Err(self.truncated());
        }
        data.truncate(size_in_memory);
        Ok(data)
    }

    /// Puts together what the headers say.
    #[expect(clippy::too_many_arguments, reason = "the parts of one header, gathered by the only caller")]
    fn member(
        &mut self,
        at: u64,
        start: u64,
        block: &Header,
        mut size: u64,
        mut records: Records,
        long_name: Option<Vec<u8>>,
        long_link: Option<Vec<u8>>,
    ) -> Result<Member, LayerError> {
        let format = |reason: String| LayerError::Format { offset: start, reason };
        let old = block.as_old();
        let mut take = |key: &str| records.remove(key.as_bytes()).filter(|value| !value.is_empty());
        let pax_name = take("path");
        let pax_link = take("linkpath");
        if let Some(value) = take("size") {
            size = decimal(&value).map_err(format)?;
        }
        let mut id = |key: &str, field: &[u8]| -> Result<u32, LayerError> {
            let value = match take(key) {
                Some(value) => decimal(&value).map_err(format)?.into(),
                None => i128::from(number(field).map_err(format)?),
            };
            u32::try_from(value).ok().filter(|&id| id != u32::MAX).ok_or_else(|| format(format!("{key} {value}")))
        };
        let (uid, gid) = (id("uid", &old.uid)?, id("gid", &old.gid)?);
        let mtime = match take("mtime") {
            Some(value) => time(&value).ok_or_else(|| format("invalid mtime".to_owned()))?,
            None => (number(&old.mtime).map_err(format)?, 0),
        };
        let mode = u32::try_from(number(&old.mode).map_err(format)? & 0o7777).expect("12 bits fit");
        let pax_sparse = sparse::Pax::take(&mut records).map_err(format)?;
        let xattrs = records
            .into_iter()
            .filter_map(|(key, value)| Some((key.strip_prefix(XATTR)?.to_vec(), value)))
            .filter(|(name, _)| !name.is_empty() && !name.contains(&0))
            .collect();

        let name =
            long_name.or_else(|| pax_sparse.as_ref()?.name.clone()).or(pax_name).unwrap_or_else(|| plain_name(block));
        let link = long_link.or(pax_link).unwrap_or_else(|| until_nul(&old.linkname).to_vec());
        // Slashes and dots may make it longer than it is.
        if name.len() > 2 * MAX_PATH || link.len() > MAX_PATH {
            return Err(format("a name of more than 4095 bytes".to_owned()));
        }
        LayerError::check_length(&clean(&name))?;
        if name.contains(&0) || link.contains(&0) {
            return Err(format("a name with a zero byte".to_owned()));
        }
        let device = || -> Result<(u32, u32), LayerError> {
            let Some(ustar) = block
                .as_ustar()
                .map(|h| (&h.dev_major, &h.dev_minor))
                .or_else(|| block.as_gnu().map(|h| (&h.dev_major, &h.dev_minor)))
            else {
                return Ok((0, 0));
            };
            let part = |field: &[u8]| {
                u32::try_from(number(field).map_err(format)?).map_err(|_| format("invalid device number".to_owned()))
            };
            Ok((part(ustar.0)?, part(ustar.1)?))
        };
        let kind = match old.linkflag[0] {
            0 if name.ends_with(b"/") => MemberKind::Dir,
            0 | b'0' | b'7' | b'S' => {
                let gnu_sparse = old.linkflag[0] == b'S';
                self.file(start, block, size, gnu_sparse, pax_sparse)?
            }
            b'1' => MemberKind::Hardlink(link),
            b'2' => MemberKind::Symlink(link),
            b'3' => device().map(|(major, minor)| MemberKind::Char(major, minor))?,
            b'4' => device().map(|(major, minor)| MemberKind::Block(major, minor))?,
            b'5' => MemberKind::Dir,
            b'6' => MemberKind::Fifo,
            other => return Err(format(format!("unknown member type {:?}", char::from(other)))),
        };
        Ok(Member { at, name, kind, mode, uid, gid, mtime, xattrs })
    }

    /// Prepares for the data of a file. Only files have any: a size in other headers means nothing.
    fn file(
        &mut self,
        start: u64,
        block: &Header,
        size: u64,
        gnu_sparse: bool,
        pax_sparse: Option<sparse::Pax>,
    ) -> Result<MemberKind, LayerError> {
        let format = |reason: String| LayerError::Format { offset: start, reason };
        self.stored = size;
        let map = if gnu_sparse {
            let gnu = block.as_gnu().ok_or_else(|| format("a sparse file without a GNU header".to_owned()))?;
            let mut extensions = Vec::new();
            let mut more = gnu.is_extended();
            while more {
                let mut extension = [0; BLOCK];
                if extensions.len() as u64 > MAX_SPECIAL || !self.exact(&mut extension)? {
                    return Err(format("the map of a sparse file does not end".to_owned()));
                }
                more = extension[504] != 0;
                extensions.extend_from_slice(&extension[..504]);
            }
            Some(sparse::gnu_map(block.as_bytes(), &extensions).map_err(format)?)
        } else if let Some(pax) = pax_sparse {
            Some(match pax.map {
                Some(map) => (pax.size, map),
                None => (pax.size, self.map_in_data(start)?),
            })
        } else {
            None
        };
        self.padding = padding(size);
        let Some((real_size, map)) = map else {
            self.holes = Holes::none(size);
            return Ok(MemberKind::File { size, offset: Some(self.position) });
        };
        self.holes = Holes::new(real_size, map, self.stored).map_err(format)?;
        Ok(MemberKind::File { size: real_size, offset: None })
    }

    /// The map of PAX sparse format 1.0: decimal lines at the start of the data, padded to a whole block.
    fn map_in_data(&mut self, start: u64) -> Result<Vec<(u64, u64)>, LayerError> {
        let bad = || LayerError::Format { offset: start, reason: "invalid map of a sparse file".to_owned() };
        let mut numbers: Vec<u64> = Vec::new();
        let mut line = Vec::new();
        let mut want = 1;
        while numbers.len() < want {
            let mut block = [0; BLOCK];
            if self.stored < BLOCK as u64 || numbers.len() as u64 * 2 > MAX_SPECIAL || !self.exact(&mut block)? {
                return Err(bad());
            }
            self.stored -= BLOCK as u64;
            for &byte in &block {
                if numbers.len() == want {
                    break;
                }
                if byte != b'\n' {
                    line.push(byte);
                    if line.len() > 20 {
                        return Err(bad());
                    }
                    continue;
                }
                numbers.push(decimal(&line).map_err(|_| bad())?);
                line.clear();
                if numbers.len() == 1 {
                    want = usize::try_from(numbers[0])
                        .ok()
                        .and_then(|n| n.checked_mul(2)?.checked_add(1))
                        .ok_or_else(bad)?;
                }
            }
        }
        Ok(numbers[1..].chunks_exact(2).map(|pair| (pair[0], pair[1])).collect())
    }
}

/// The name in the header itself.
fn plain_name(block: &Header) -> Vec<u8> {
    let name = until_nul(&block.as_old().name);
    let Some(ustar) = block.as_ustar() else { return name.to_vec() };
    // Schily's star ends the block with its own magic and has times where ustar has the end of the prefix.
    let field = if block.as_bytes().ends_with(b"tar\0") { &ustar.prefix[..131] } else { &ustar.prefix[..] };
    match until_nul(field) {
        b"" => name.to_vec(),
        prefix => [prefix, b"/", name].concat(),
    }
}

fn until_nul(field: &[u8]) -> &[u8] {
    &field[..field.iter().position(|&b| b == 0).unwrap_or(field.len())]
}

/// A number in a header: octal digits, or binary with the highest bit set. Empty is zero.
pub(crate) fn number(field: &[u8]) -> Result<i64, String> {
    let bad = || format!("invalid number \"{}\"", field.escape_ascii());
    let (Some(&first), true) = (field.first(), field.len() <= 12) else { return Err(bad()) };
    if first & 0x80 != 0 {
        // Two's complement over the whole field but its first bit.
        let negative = first & 0x40 != 0;
        let start: i128 = if negative { -1 } else { 0 };
        let value = field.iter().enumerate().fold(start, |value, (at, &b)| {
            let b = match (at, negative) {
                (0, true) => b,
                (0, false) => b & 0x7f,
                _ => b,
            };
            (value << 8) | i128::from(b)
        });
        return i64::try_from(value).map_err(|_| bad());
    }
    let text: Vec<u8> = until_nul(field).iter().copied().filter(|&b| b != b' ').collect();
    text.iter().try_fold(0_i64, |value, &b| match b {
        b'0'..=b'7' => value.checked_mul(8).map(|value| value + i64::from(b - b'0')).ok_or_else(bad),
        _ => Err(bad()),
    })
}

/// A number in a PAX record.
pub(crate) fn decimal(text: &[u8]) -> Result<u64, String> {
    let bad = || format!("invalid number \"{}\"", text.escape_ascii());
    if text.is_empty() {
        return Err(bad());
    }
    text.iter().try_fold(0_u64, |value, &b| match b {
        b'0'..=b'9' => value.checked_mul(10).and_then(|value| value.checked_add(u64::from(b - b'0'))).ok_or_else(bad),
        _ => Err(bad()),
    })
}

/// Seconds with an optional fraction, possibly negative.
fn time(text: &[u8]) -> Option<(i64, u32)> {
    let text = std::str::from_utf8(text).ok()?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let negative = whole.starts_with('-');
    let seconds: i64 = whole.parse().ok()?;
    if !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let nanos = fraction.bytes().chain(std::iter::repeat(b'0')).take(9).fold(0, |n, b| n * 10 + u32::from(b - b'0'));
    match (negative, nanos) {
        (true, 1..) => Some((seconds.checked_sub(1)?, 1_000_000_000 - nanos)),
        _ => Some((seconds, nanos)),
    }
}

/// The records of a PAX header. GNU's first sparse format repeats two keys, whose values are gathered in order.
fn parse_records(mut data: &[u8]) -> Result<Records, String> {
    let bad = || "invalid PAX header".to_owned();
    let mut records = Records::new();
    while !data.is_empty() {
        let blank = data.iter().take(21).position(|&b| b == b' ').ok_or_else(bad)?;
        let length = usize::try_from(decimal(&data[..blank])?).map_err(|_| bad())?;
        if length > data.len() || length < blank + 4 || data[length - 1] != b'\n' {
            return Err(bad());
        }
        let body = &data[blank + 1..length - 1];
        let equals = body.iter().position(|&b| b == b'=').filter(|&at| at > 0).ok_or_else(bad)?;
        let (key, value) = (&body[..equals], &body[equals + 1..]);
        if !key.starts_with(XATTR) && value.contains(&0) {
            return Err(bad());
        }
        if key == b"GNU.sparse.offset" || key == b"GNU.sparse.numbytes" {
            let list = records.entry(b"GNU.sparse.map".to_vec()).or_default();
            if !list.is_empty() {
                list.push(b',');
            }
            list.extend_from_slice(value);
        } else {
            records.insert(key.to_vec(), value.to_vec());
        }
        data = &data[length..];
    }
    Ok(records)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_in_headers() {
        for (field, want) in [
            (&b"0000755\0"[..], Some(0o755)),
            (b"   755 \0", Some(0o755)),
            (b"\0\0\0\0", Some(0)),
            (b"75a", None),
            (b"00000008", None),
            (&[0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0], Some(256)),
            (&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xfe], Some(-2)),
            (&[0x80, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff], None),
        ] {
            assert_eq!(number(field).ok(), want, "{}", field.escape_ascii());
        }
    }

    #[test]
    fn times_in_records() {
        for (text, want) in [
            ("0", Some((0, 0))),
            ("1.5", Some((1, 500_000_000))),
            ("-1.25", Some((-2, 750_000_000))),
            ("-0.5", Some((-1, 500_000_000))),
            ("-3", Some((-3, 0))),
            ("1.0000000019", Some((1, 1))),
            ("1.x", None),
            ("", None),
        ] {
            assert_eq!(time(text.as_bytes()), want, "{text}");
        }
    }

    #[test]
    fn records_with_newlines_and_damage() {
        let mut data = Vec::new();
        super::super::header::push_record(&mut data, b"SCHILY.xattr.user.x", b"a\nb\0=c");
        super::super::header::push_record(&mut data, b"path", b"x");
        let records = parse_records(&data).expect("valid");
        assert_eq!(records[&b"SCHILY.xattr.user.x"[..]], b"a\nb\0=c");
        for bad in ["5 a=1\n", "999 a=b\n", "6 =12\n", "x a=b\n", "99999999999999999999 a=b\n", "8 pa=\0x\n", "4 a\n"] {
            assert!(parse_records(bad.as_bytes()).is_err(), "{bad:?}");
        }
    }
}
