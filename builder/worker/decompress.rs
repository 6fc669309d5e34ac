//! Files that people compress: archives that are loaded and imported. (Layers know fewer ways.)

use std::io::{self, BufReader, Read};

use lzma_rust2::XzReader;
use snapshotter::layer::compress::{self, Detected};

/// KiB that one archive may make us hold: `xz -9` takes 64 MiB, and a header can ask for 4 GiB.
const XZ_MEMORY: u32 = 160 << 10;

/// The bytes of a file that may be compressed, told by how it begins.
pub(crate) fn decompressed(data: impl Read + Send + 'static) -> io::Result<Box<dyn Read>> {
    let mut start = Vec::with_capacity(6);
    let mut data = data;
    data.by_ref().take(6).read_to_end(&mut start)?;
    let detected = compress::detect(&start);
    let data = BufReader::with_capacity(1 << 16, io::Cursor::new(start).chain(data));
    Ok(match detected {
        Detected::Bzip2 => Box::new(bzip2::bufread::MultiBzDecoder::new(data)),
        Detected::Xz => Box::new(XzReader::new_mem_limit(data, true, XZ_MEMORY)),
        Detected::None | Detected::Gzip | Detected::Zstd => compress::decoder(data)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A stream whose only block has a dictionary of nearly 4 GiB, as its header says.
    const GREEDY: &[u8] = &[
        0xfd, b'7', b'z', b'X', b'Z', 0, 0, 0, 0xff, 0x12, 0xd9, 0x41, // stream header, no check
        0x02, 0x00, 0x21, 0x01, 0x27, 0x00, 0x00, 0x00, // block header: LZMA2, dictionary 39
    ];

    #[test]
    fn an_archive_cannot_ask_for_gigabytes() {
        let crc = crc32(&GREEDY[12..]);
        let bytes = [GREEDY, &crc.to_le_bytes(), &[0; 64]].concat();
        let error = decompressed(io::Cursor::new(bytes)).and_then(|mut plain| plain.read(&mut [0; 16])).unwrap_err();
        assert!(error.to_string().contains("memory"), "{error}");
    }

    fn crc32(bytes: &[u8]) -> u32 {
        let mut crc = flate2::Crc::new();
        crc.update(bytes);
        crc.sum()
    }
}
