//! Compressed streams are the same on any machine and readable by others.

use std::io::{self, Read, Write};
use std::process::{Command, Stdio};

use crate::layer::compress::*;

/// Text-like data with some noise, longer than a few blocks.
fn sample() -> Vec<u8> {
    let mut state = 1_u64;
    let mut out = Vec::new();
    let words = ["layer ", "snapshot ", "the ", "of ", "overlay", "\n", "mount(2) ", "0x", "/usr/lib/", "digest: "];
    while out.len() < 1_500_000 {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let pick = usize::try_from(state >> 33).expect("31 bits");
        out.extend_from_slice(words[pick % words.len()].as_bytes());
        if pick % 7 == 0 {
            out.extend_from_slice(format!("{state:x}").as_bytes());
        }
        if pick % 4000 == 0 {
            for _ in 0..40_000 {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                out.push((state >> 56) as u8);
            }
        }
    }
    out
}

fn compress(data: &[u8], compression: Compression, threads: usize, piece: usize) -> Vec<u8> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("pool");
    pool.install(|| {
        let mut encoder = Encoder::new(Vec::new(), compression).expect("start");
        for piece in data.chunks(piece) {
            encoder.write_all(piece).expect("write");
            encoder.flush().expect("flush");
        }
        encoder.finish().expect("finish")
    })
}

fn decompress(data: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    decoder(io::BufReader::with_capacity(3, data)).expect("start").read_to_end(&mut out).expect("decompress");
    out
}

const ALL: [Compression; 5] = [
    Compression::None,
    Compression::Gzip { level: 1 },
    Compression::Gzip { level: 6 },
    Compression::Zstd { level: 1 },
    Compression::Zstd { level: 3 },
];

#[test]
fn round_trip_and_the_same_bytes_on_any_number_of_threads() {
    let data = sample();
    for compression in ALL {
        let one = compress(&data, compression, 1, 1 << 20);
        assert!(decompress(&one) == data, "{compression:?}");
        for (threads, piece) in [(2, 1000), (5, 77_777)] {
            assert!(compress(&data, compression, threads, piece) == one, "{compression:?} on {threads} threads");
        }
        for length in [0, 1, 256 * 1024, 256 * 1024 + 1] {
            assert!(decompress(&compress(&data[..length], compression, 2, 5000)) == data[..length], "{compression:?}");
        }
    }
}

#[test]
fn gzip_reads_our_gzip_and_makes_it_no_smaller() {
    let data = sample();
    let pipe = |arguments: &[&str], input: &[u8]| {
        let mut gzip =
            Command::new("gzip").args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("gzip");
        let mut stdin = gzip.stdin.take().expect("piped");
        let input = input.to_vec();
        let feeder = std::thread::spawn(move || stdin.write_all(&input));
        let output = gzip.wait_with_output().expect("gzip");
        feeder.join().expect("feeder").expect("write");
        assert!(output.status.success());
        output.stdout
    };
    let ours = compress(&data, Compression::Gzip { level: 6 }, 2, 1 << 20);
    assert!(pipe(&["-dc"], &ours) == data);
    let theirs = pipe(&["-6c"], &data);
    assert!(ours.len() * 100 <= theirs.len() * 102, "{} bytes against {}", ours.len(), theirs.len());
    // One member: a reader that stops after the first sees all.
    let mut single = Vec::new();
    flate2::read::GzDecoder::new(&*ours).read_to_end(&mut single).expect("decompress");
    assert!(single == data);
}

#[test]
fn what_cannot_get_smaller_hardly_gets_larger() {
    let mut state = 1_u64;
    let random: Vec<u8> = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    })
    .take(200_000)
    .flatten()
    .collect();
    let digits: Vec<u8> = random.iter().flat_map(|byte| format!("{byte:02x}").into_bytes()).collect();
    for level in [1, 6, 9] {
        let gzip = compress(&random, Compression::Gzip { level }, 2, 1 << 20);
        assert!(gzip.len() < random.len() + random.len() / 500, "level {level}: {} of {}", gzip.len(), random.len());
        assert!(decompress(&gzip) == random);
        let gzip = compress(&digits, Compression::Gzip { level }, 2, 1 << 20);
        // The first level has fixed codes only.
        assert!(level == 1 || gzip.len() < digits.len() * 7 / 10, "noise in few letters does get smaller");
    }
}

#[test]
fn compressions_are_told_apart() {
    assert_eq!(detect(&[0x1f, 0x8b, 8, 0]), Detected::Gzip);
    assert_eq!(detect(&[0x28, 0xb5, 0x2f, 0xfd]), Detected::Zstd);
    assert_eq!(detect(b"BZh9"), Detected::Bzip2);
    assert_eq!(detect(&[0xfd, b'7', b'z', b'X', b'Z', 0]), Detected::Xz);
    assert_eq!(detect(b"usr/"), Detected::None);
    assert!(decoder(&b"BZh91AY"[..]).is_err());
}

#[test]
fn a_damaged_stream_is_an_error() {
    let data = sample();
    for compression in &ALL[1..] {
        let good = compress(&data, *compression, 2, 1 << 20);
        let mut cut = Vec::new();
        assert!(decoder(&good[..good.len() - 20]).expect("start").read_to_end(&mut cut).is_err(), "{compression:?}");
    }
}

#[test]
fn reading_ahead_gives_the_same() {
    let data = sample();
    let mut out = Vec::new();
    read_ahead(io::Cursor::new(data.clone())).expect("start").read_to_end(&mut out).expect("read");
    assert!(out == data);
    struct Broken;
    impl Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::Error::other("broken"))
        }
    }
    let mut ahead = read_ahead(io::Cursor::new(data).chain(Broken)).expect("start");
    assert_eq!(ahead.read_to_end(&mut Vec::new()).expect_err("broken").to_string(), "broken");
    // Dropping it early ends the thread, which would otherwise read for ever.
    let mut endless = read_ahead(io::repeat(1)).expect("start");
    endless.read_exact(&mut [0; 1000]).expect("read");
}
