//! Layers as containers/storage keeps them: files in a directory, and apart from them every other byte of the tar that they
//! came in (github.com/vbatts/tar-split: one JSON object a line, compressed). Together they are that tar again.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufRead, Read};
use std::os::fd::OwnedFd;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustix::fs::OFlags;
use serde::Deserialize;
use sys::path::{Links, open};

/// A file's content, to be read from the directory.
const FILE: u8 = 1;
/// Bytes of the tar: headers and padding.
const SEGMENT: u8 = 2;

/// The longest line that is read: headers and padding are no larger, however odd the tar.
const LINE_MAX: u64 = 16 << 20;

/// One line.
#[derive(Deserialize)]
struct Part {
    #[serde(rename = "type")]
    kind: u8,
    #[serde(default)]
    name: Option<String>,
    /// The name in base64, where it is no UTF-8.
    #[serde(default)]
    name_raw: Option<String>,
    #[serde(default)]
    size: u64,
    #[serde(default)]
    payload: Option<String>,
}

/// The tar of a layer, put together while it is read. What comes out has to be compared with a digest: the files may be others.
pub(super) struct TarSplit<R> {
    lines: R,
    root: OwnedFd,
    segment: VecDeque<u8>,
    file: Option<io::Take<File>>,
}

impl<R: BufRead> TarSplit<R> {
    /// From the lines and the directory with the files.
    pub(super) fn new(lines: R, root: OwnedFd) -> Self {
        Self { lines, root, segment: VecDeque::new(), file: None }
    }

    /// The next line; `None`: that was all.
    fn part(&mut self) -> io::Result<Option<Part>> {
        let mut line = Vec::new();
        self.lines.by_ref().take(LINE_MAX).read_until(b'\n', &mut line)?;
        if line.len() as u64 == LINE_MAX {
            return Err(io::Error::other("a line is too long"));
        }
        if line.is_empty() { Ok(None) } else { Ok(Some(serde_json::from_slice(&line)?)) }
    }

    fn begin(&mut self, part: Part) -> io::Result<()> {
        let decoded = |text: &str| STANDARD.decode(text).map_err(io::Error::other);
        match part.kind {
            SEGMENT => self.segment = decoded(&part.payload.unwrap_or_default())?.into(),
            FILE if part.size > 0 => {
                let name = match (part.name_raw, part.name) {
                    (Some(raw), _) if !raw.is_empty() => decoded(&raw)?,
                    (_, name) => name.unwrap_or_default().into_bytes(),
                };
                let relative: Vec<&[u8]> =
                    name.split(|&b| b == b'/').filter(|part| !part.is_empty() && *part != b".").collect();
                let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK;
                let file = File::from(open(&self.root, &relative.join(&b'/'), Links::Refuse, flags, 0)?);
                if !file.metadata()?.is_file() {
                    return Err(io::Error::other("something else is in a file's place"));
                }
                self.file = Some(file.take(part.size));
            }
            // What has no content is all in its header.
            _ => {}
        }
        Ok(())
    }
}

impl<R: BufRead> Read for TarSplit<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            if !self.segment.is_empty() {
                return self.segment.read(buffer);
            }
            if let Some(file) = &mut self.file {
                match file.read(buffer)? {
                    0 if file.limit() > 0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                    0 => self.file = None,
                    read => return Ok(read),
                }
                continue;
            }
            match self.part()? {
                Some(part) => self.begin(part)?,
                None => return Ok(0),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assembled(lines: &str) -> io::Result<String> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("d")).unwrap();
        std::fs::write(dir.path().join("d/f"), "content").unwrap();
        std::os::unix::fs::symlink("/etc/passwd", dir.path().join("link")).unwrap();
        std::os::unix::fs::symlink("/etc", dir.path().join("etc")).unwrap();
        let mut text = String::new();
        let root = sys::file::open_root(dir.path()).unwrap();
        TarSplit::new(lines.as_bytes(), root).read_to_string(&mut text).map(|_| text)
    }

    #[test]
    fn parts_make_a_whole() {
        let lines = "{\"type\":2,\"payload\":\"WzFd\",\"position\":0}\n\
                     {\"type\":1,\"name\":\"./d/\",\"payload\":null,\"position\":1}\n\
                     {\"type\":1,\"name\":\"./d/f\",\"size\":7,\"payload\":\"AAAAAAAAAAA=\",\"position\":2}\n\
                     {\"type\":2,\"payload\":\"WzJd\",\"position\":3}\n\
                     {\"type\":1,\"name_raw\":\"L2QvZg==\",\"size\":7,\"position\":4}\n";
        assert_eq!(assembled(lines).unwrap(), "[1]content[2]content");
    }

    #[test]
    fn nothing_is_read_from_elsewhere() {
        for name in ["link", "etc/passwd", "../../../../etc/passwd", "/etc/passwd", "d", "missing", ""] {
            let line = format!("{{\"type\":1,\"name\":{name:?},\"size\":3}}");
            assert!(assembled(&line).is_err(), "{name}");
        }
        let short = "{\"type\":1,\"name\":\"d/f\",\"size\":8}";
        assert_eq!(assembled(short).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert!(assembled("nonsense").is_err());
        let endless = format!("{{\"type\":2,\"payload\":\"{}\"}}", "A".repeat(LINE_MAX as usize));
        assert!(assembled(&endless).unwrap_err().to_string().contains("too long"));
    }
}
