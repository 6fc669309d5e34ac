//! What is done with every byte and every file: `cargo bench -p rbuild-snapshotter --bench layers`.

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use graph::{ContentDigest, Digest};
use snapshotter::layer::compress::{Compression, Encoder};
use snapshotter::layer::{
    ApplyOptions, CommitOptions, LayerIndex, Marks, Ownership, WRITER_VERSION, apply, commit_upper, write_upper,
};
use snapshotter::{CacheRecord, Store};

const FILES: usize = 2_000;
const SIZE: usize = 4 << 10;

/// Text of words that come again, with numbers in between: some of it compresses.
fn text(length: usize) -> Vec<u8> {
    let mut text = Vec::with_capacity(length + 64);
    let mut number = 1_u64;
    while text.len() < length {
        number = number.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        text.extend_from_slice(format!("the layer's entry {number:016x} is written\n").as_bytes());
    }
    text.truncate(length);
    text
}

fn files(directory: &Path) -> u64 {
    let content = text(SIZE);
    for number in 0..FILES {
        let path = directory.join(format!("{}/{number}", number / 100));
        fs::create_dir_all(path.parent().expect("it has one")).expect("make a directory");
        let mut content = content.clone();
        content[..8].copy_from_slice(&number.to_le_bytes());
        fs::write(path, content).expect("write a file");
    }
    (FILES * SIZE) as u64
}

fn layers(criterion: &mut Criterion) {
    let directory = tempfile::tempdir().expect("a directory");
    let upper = directory.path().join("upper");
    let bytes = files(&upper);
    let committed = commit_upper(&upper, &CommitOptions::default()).expect("commit");
    let mut tar = Vec::new();
    write_upper(&upper, &committed.index, WRITER_VERSION, &mut tar).expect("write");

    let mut group = criterion.benchmark_group("layer of 2,000 files");
    group.sample_size(20).throughput(Throughput::Bytes(bytes));
    group.bench_function("walk and hash", |bencher| {
        bencher.iter(|| commit_upper(&upper, &CommitOptions::default()).expect("commit"));
    });
    group.bench_function("write the tar", |bencher| {
        bencher.iter(|| write_upper(&upper, &committed.index, WRITER_VERSION, io::sink()).expect("write"));
    });
    group.bench_function("apply the tar", |bencher| {
        // Whoever runs this need not be root.
        let options = ApplyOptions { marks: Marks::None, ownership: Ownership::Skip };
        bencher.iter_batched(
            || tempfile::tempdir_in(directory.path()).expect("a directory"),
            |place| {
                apply(tar.as_slice(), place.path(), &options, &|| false).expect("apply");
                place
            },
            BatchSize::PerIteration,
        );
    });
    let encoded = committed.index.encode();
    group.bench_function("read the index", |bencher| {
        bencher.iter(|| LayerIndex::decode(&encoded).expect("decode"));
    });
    group.finish();
}

fn compression(criterion: &mut Criterion) {
    let content = text(32 << 20);
    let mut group = criterion.benchmark_group("compress 32 MiB");
    group.sample_size(10).throughput(Throughput::Bytes(content.len() as u64));
    for (name, compression) in [("gzip 6", Compression::Gzip { level: 6 }), ("zstd 3", Compression::Zstd { level: 3 })]
    {
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                let mut encoder = Encoder::new(io::sink(), compression).expect("start");
                encoder.write_all(&content).expect("write");
                encoder.finish().expect("finish")
            });
        });
    }
    group.finish();
}

fn look_up(criterion: &mut Criterion) {
    let directory = tempfile::tempdir().expect("a directory");
    let store = Store::open(&directory.path().join("store")).expect("open");
    let key = |n: u32| ContentDigest::of(&n.to_le_bytes());
    let record = CacheRecord { chain: None, content: key(0), definition: key(0) };
    for n in 0..10_000 {
        store.save(&[key(n)], &record).expect("save");
    }
    let mut group = criterion.benchmark_group("look up among 10,000 records");
    let mut next = 0_u32;
    group.bench_function("found", |bencher| {
        bencher.iter(|| {
            next = (next + 7919) % 10_000;
            store.lookup(&key(next)).expect("look").expect("it is there")
        });
    });
    group.bench_function("not found", |bencher| {
        bencher.iter(|| {
            next = next.wrapping_add(1);
            store.lookup(&key(next.max(10_000))).expect("look")
        });
    });
    group.finish();
    let blob = text(32 << 20);
    let mut group = criterion.benchmark_group("digests of 32 MiB");
    group.sample_size(20).throughput(Throughput::Bytes(blob.len() as u64));
    group.bench_function("sha256", |bencher| bencher.iter(|| Digest::of(&blob)));
    group.bench_function("blake3", |bencher| bencher.iter(|| ContentDigest::of(&blob)));
    group.finish();
}

criterion_group!(benches, layers, compression, look_up);
criterion_main!(benches);
