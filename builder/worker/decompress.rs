//! Files that people compress: archives that are loaded and imported. (Layers know fewer ways.)

use std::io::{self, BufRead, BufReader, Read, Seek, Write};

use snapshotter::layer::compress::{self, Detected};

/// The bytes of a file that may be compressed, told by how it begins.
pub(crate) fn decompressed(data: impl Read + Send + 'static) -> io::Result<Box<dyn Read>> {
    let mut start = Vec::with_capacity(6);
    let mut data = data;
    data.by_ref().take(6).read_to_end(&mut start)?;
    let detected = compress::detect(&start);
    let data = BufReader::with_capacity(1 << 16, io::Cursor::new(start).chain(data));
    Ok(match detected {
        Detected::Bzip2 => Box::new(bzip2::bufread::MultiBzDecoder::new(data)),
        Detected::Xz => Box::new(unxz(data)?),
        Detected::None | Detected::Gzip | Detected::Zstd => compress::decoder(data)?,
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
