//! The store among processes: many at once, and killed at any instant. The processes are this very program, started again.

#![allow(clippy::unwrap_used, reason = "a failure anywhere fails the test")]

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use graph::{ContentDigest, Digest};
use snapshotter::{CacheRecord, CollectPolicy, ImageKind, ImageRecord, LayerRecord, Store, StoreError};

const ROLE: &str = "RBUILD_STORE_TEST_ROLE";
const ROOT: &str = "RBUILD_STORE_TEST_ROOT";

/// Layers that the processes make, each upon the one before.
const LAYERS: u64 = 12;

fn start(role: &str, root: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--nocapture", "--ignored"])
        .env(ROLE, role)
        .env(ROOT, root)
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

/// What the started processes run.
#[test]
#[ignore = "is started by the other tests"]
fn child() {
    let Ok(role) = std::env::var(ROLE) else { return };
    let root = std::env::var_os(ROOT).unwrap();
    let store = Store::open(Path::new(&root)).unwrap();
    match role.as_str() {
        "build for ever" => loop {
            work(&store, std::process::id().into());
        },
        "run steps once" => run_steps(&store),
        "hold a lock" => {
            let _lock = store.lock("held", &|| false).unwrap();
            fs::write(store.scratch_directory().join("locked"), "").unwrap();
            std::thread::sleep(Duration::from_secs(60));
        }
        role => panic!("{role}"),
    }
}

fn text(number: u64) -> String {
    format!("layer {number}")
}

fn layer(number: u64) -> LayerRecord {
    let parent = number.checked_sub(1).map(|below| layer(below).chain);
    let text = text(number);
    LayerRecord::own(
        parent,
        Digest::of(text.as_bytes()),
        ContentDigest::of(text.as_bytes()),
        1,
        jiff::Timestamp::UNIX_EPOCH,
    )
}

fn key(number: u64) -> ContentDigest {
    ContentDigest::of(format!("key {number}").as_bytes())
}

/// A small build: finds or makes each layer, names an image, and now and then forgets and collects.
fn work(store: &Store, seed: u64) {
    let mut random = Random(seed ^ std::time::UNIX_EPOCH.elapsed().unwrap().subsec_nanos() as u64);
    let last = random.below(LAYERS);
    for number in 0..=last {
        if let Some(record) = store.lookup(&key(number)).unwrap() {
            assert_found(store, &record, number);
        } else {
            make(store, number);
        }
    }
    let blob = store.put_blob(format!("blob {}", random.below(50)).as_bytes()).unwrap();
    assert!(store.blob_path(&blob).is_some());
    store.put_image(&image(store, last)).unwrap();
    if random.below(4) == 0 {
        store.make_durable().unwrap();
    }
    if random.below(4) == 0 {
        store.remove_image(&format!("image-{}", random.below(LAYERS))).unwrap();
        let forget = CollectPolicy { unused_since: Some(jiff::Timestamp::MAX), bases: false };
        store.collect(&forget).unwrap();
        // Collected or not: what this process has found is still there.
        for number in 0..=last {
            assert!(store.snapshot(&layer(number).chain).unwrap().is_some());
        }
    }
}

fn make(store: &Store, number: u64) {
    let active = store.prepare().unwrap();
    for part in 0..5 {
        fs::write(active.fs().join(format!("{part}")), text(number)).unwrap();
    }
    let layer = layer(number);
    store.commit(active, &layer, text(number).as_bytes()).unwrap();
    let record = CacheRecord { chain: Some(layer.chain), content: layer.content, definition: key(number) };
    store.save(&[key(number)], &record).unwrap();
}

fn image(store: &Store, last: u64) -> ImageRecord {
    let diff_ids: Vec<_> = (0..=last).map(|number| layer(number).diff_id).collect();
    let config = serde_json::json!({
        "architecture": "amd64", "os": "linux", "rootfs": { "type": "layers", "diff_ids": diff_ids }
    });
    let config = store.put_blob(config.to_string().as_bytes()).unwrap();
    ImageRecord { name: format!("image-{last}"), config, manifest: None, kind: ImageKind::Tagged }
}

#[track_caller]
fn assert_found(store: &Store, record: &CacheRecord, number: u64) {
    let chain = record.chain.unwrap();
    assert_eq!(chain, layer(number).chain);
    let layers = store.chain_layers(&chain).unwrap();
    assert_eq!(layers.len() as u64, number + 1);
    for (number, layer) in layers.iter().enumerate() {
        let text = text(number as u64);
        let snapshot = store.snapshot(&layer.chain).unwrap().expect("a found record has its layers");
        for part in 0..5 {
            assert_eq!(fs::read_to_string(snapshot.fs().join(part.to_string())).unwrap(), text);
        }
        assert_eq!(store.index(&layer.chain).unwrap().unwrap(), text.as_bytes());
    }
}

#[test]
fn killed_at_any_instant_nothing_is_half_done() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("store");
    let mut random = Random(7);
    let mut records = 0;
    for round in 0..25 {
        let mut children: Vec<_> = (0..2).map(|_| start("build for ever", &root)).collect();
        std::thread::sleep(Duration::from_micros(5000 + random.below(60_000)));
        for child in &mut children {
            assert!(child.try_wait().unwrap().is_none(), "round {round}: a process failed by itself");
            child.kill().unwrap();
        }
        for mut child in children {
            child.wait().unwrap();
        }
        let store = Store::open(&root).unwrap();
        for number in 0..LAYERS {
            if let Some(record) = store.lookup(&key(number)).unwrap() {
                assert_found(&store, &record, number);
                records += 1;
            }
        }
        for image in store.images().unwrap() {
            let number: u64 = image.name.strip_prefix("image-").unwrap().parse().unwrap();
            assert!(store.read_blob(&image.config).unwrap().is_some(), "round {round}: {}", image.name);
            assert_eq!(store.chain_layers(&layer(number).chain).unwrap().len() as u64, number + 1, "round {round}");
        }
        store.settle();
        for (name, most) in [("active", 0), ("ingest", 0), ("trash", 0), ("leases", 1)] {
            assert_eq!(fs::read_dir(root.join(name)).unwrap().count(), most, "round {round}: {name}");
        }
    }
    assert!(records > 0, "the processes were killed before they did anything");
}

/// Each of many steps is run by one process; the others wait for it and find its result.
fn run_steps(store: &Store) {
    for number in 0..LAYERS {
        let result = match store.lookup(&key(number)).unwrap() {
            Some(record) => record,
            None => {
                let _lock = store.lock(&format!("step {number}"), &|| false).unwrap();
                if store.lookup(&key(number)).unwrap().is_none() {
                    let mut runs =
                        OpenOptions::new().append(true).create(true).open(store.root().join("../runs")).unwrap();
                    runs.write_all(b".").unwrap();
                    make(store, number);
                }
                store.lookup(&key(number)).unwrap().unwrap()
            }
        };
        assert_found(store, &result, number);
        store.put_image(&image(store, number)).unwrap();
    }
    store.make_durable().unwrap();
}

#[test]
fn fifty_processes_neither_fail_nor_repeat_work() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("store");
    let children: Vec<_> = (0..50).map(|_| start("run steps once", &root)).collect();
    for mut child in children {
        assert!(child.wait().unwrap().success());
    }
    assert_eq!(fs::read(directory.path().join("runs")).unwrap().len() as u64, LAYERS);
    let store = Store::open(&root).unwrap();
    assert_eq!(store.images().unwrap().len() as u64, LAYERS);
    assert_eq!(fs::read_dir(root.join("locks")).unwrap().count(), 0, "locks are removed");
}

#[test]
fn a_lock_dies_with_its_owner() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("store");
    let store = Store::open(&root).unwrap();
    let mut child = start("hold a lock", &root);
    let deadline = Instant::now() + Duration::from_secs(20);
    while store.try_lock("held").unwrap().is_some() {
        assert!(Instant::now() < deadline, "the other process never took the lock");
        std::thread::sleep(Duration::from_millis(2));
    }
    let begin = Instant::now();
    let cancelled = || begin.elapsed() > Duration::from_millis(20);
    assert!(matches!(store.lock("held", &cancelled), Err(StoreError::Cancelled)));
    child.kill().unwrap();
    child.wait().unwrap();
    store.lock("held", &|| false).unwrap();
}

/// Numbers without a pattern (xorshift).
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.max(1);
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}
