use std::fs;
use std::io::Write;

use super::*;
use crate::{CollectPolicy, ImageKind, ImageRecord, Reclaimed};

struct Lab {
    _directory: tempfile::TempDir,
    root: PathBuf,
}

impl Lab {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("store");
        Self { _directory: directory, root }
    }

    fn open(&self) -> Store {
        Store::open(&self.root).unwrap()
    }

    /// The machine goes down: files written since the last sync are torn, what was renamed stays renamed.
    fn crash(&self) {
        let db = Connection::open(self.root.join("db.sqlite")).unwrap();
        db.execute("UPDATE meta SET value = 'an earlier boot' WHERE key = 'boot'", []).unwrap();
        let torn: Vec<(i64, [u8; 32])> = db
            .prepare("SELECT kind, digest FROM files WHERE durable = 0")
            .unwrap()
            .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))
            .unwrap()
            .collect::<rusqlite::Result<_>>()
            .unwrap();
        for (kind, digest) in torn {
            let hex = Digest::from_bytes(digest).hex();
            let file = match kind {
                1 => self.root.join("blobs/sha256").join(hex),
                2 => self.root.join("snapshots").join(hex).join("fs/file"),
                _ => self.root.join("indexes").join(hex),
            };
            fs::write(file, "").unwrap();
        }
    }
}

fn own(parent: Option<Digest>, text: &str) -> LayerRecord {
    LayerRecord::own(parent, Digest::of(text.as_bytes()), ContentDigest::of(text.as_bytes()), 1, jiff::Timestamp::now())
}

fn add(store: &Store, parent: Option<Digest>, text: &str) -> Digest {
    let layer = own(parent, text);
    let active = store.prepare().unwrap();
    fs::write(active.fs().join("file"), text).unwrap();
    store.commit(active, &layer, text.as_bytes()).unwrap();
    layer.chain
}

fn record(store: &Store, chain: Digest) -> ContentDigest {
    let key = ContentDigest::of(chain.as_bytes());
    store.save(&[key], &CacheRecord { chain: Some(chain), content: key, definition: key }).unwrap();
    key
}

/// Names an image of one layer for each text.
fn name(store: &Store, name: &str, texts: &[&str]) -> ImageRecord {
    let diff_ids: Vec<_> = texts.iter().map(|text| Digest::of(text.as_bytes())).collect();
    let config = serde_json::json!({
        "architecture": "amd64", "os": "linux", "rootfs": { "type": "layers", "diff_ids": diff_ids }
    });
    let config = store.put_blob(config.to_string().as_bytes()).unwrap();
    let image = ImageRecord { name: name.into(), config, manifest: None, kind: ImageKind::Tagged };
    store.put_image(&image).unwrap();
    image
}

fn file(store: &Store, chain: &Digest) -> Option<String> {
    Some(fs::read_to_string(store.snapshot(chain).unwrap()?.fs().join("file")).unwrap())
}

fn entries(store: &Store, directory: &str) -> usize {
    fs::read_dir(store.root().join(directory)).unwrap().count()
}

#[test]
fn a_committed_layer_is_there_and_the_first_one_stays() {
    let lab = Lab::new();
    let store = lab.open();
    let below = add(&store, None, "below");
    let above = add(&store, Some(below), "above");
    let chains: Vec<_> = store.chain_layers(&above).unwrap().into_iter().map(|layer| layer.chain).collect();
    assert_eq!(chains, [below, above]);
    assert_eq!(store.index(&above).unwrap().unwrap(), b"above");

    let second = store.prepare().unwrap();
    fs::write(second.fs().join("file"), "late").unwrap();
    store.commit(second, &own(Some(below), "above"), b"above").unwrap();
    assert_eq!(file(&store, &above).unwrap(), "above");
    assert_eq!(entries(&store, "active"), 0);
    assert!(matches!(store.chain_layers(&Digest::of(b"none")), Err(StoreError::NoLayer(_))));
}

#[test]
fn an_active_snapshot_has_its_modes_whatever_the_umask_and_goes_when_dropped() {
    use std::os::unix::fs::PermissionsExt;
    let lab = Lab::new();
    let store = lab.open();
    let active = store.prepare().unwrap();
    assert_eq!(fs::metadata(active.fs()).unwrap().permissions().mode() & 0o7777, 0o755);
    fs::create_dir(active.work().join("work")).unwrap();
    fs::set_permissions(active.work().join("work"), fs::Permissions::from_mode(0o000)).unwrap();
    drop(active);
    store.settle();
    assert_eq!((entries(&store, "active"), entries(&store, "trash")), (0, 0));
}

#[test]
fn a_record_without_its_layers_is_a_miss() {
    let lab = Lab::new();
    let (below, above, key, remote);
    {
        let store = lab.open();
        below = add(&store, None, "below");
        above = add(&store, Some(below), "above");
        key = record(&store, above);
        let empty = CacheRecord { chain: None, content: key, definition: key };
        let other = ContentDigest::of(b"empty");
        store.save(&[other], &empty).unwrap();
        assert_eq!(store.lookup(&other).unwrap(), Some(empty));
        assert_eq!(store.lookup(&key).unwrap().unwrap().chain, Some(above));
        let nowhere = CacheRecord { chain: Some(Digest::of(b"none")), content: key, definition: key };
        assert!(matches!(store.save(&[other], &nowhere), Err(StoreError::NoLayer(_))));
        // A layer that only a registry has counts as there.
        remote = LayerRecord::foreign(None, Digest::of(b"remote"));
        store.put_layer(&remote).unwrap();
        let blob = LayerBlobRecord::from_elsewhere(Digest::of(b"blob"), "gzip".into(), 4);
        store.add_layer_blob(&remote.diff_id, &blob).unwrap();
        store.add_location(&Digest::of(b"blob"), "docker.io/library/x").unwrap();
        let remote_key = record(&store, remote.chain);
        assert!(store.lookup(&remote_key).unwrap().is_some());
    }
    let store = lab.open();
    fs::remove_dir_all(lab.root.join("snapshots").join(below.hex())).unwrap();
    assert_eq!(store.lookup(&key).unwrap(), None);
    add(&store, None, "below");
    assert!(store.lookup(&key).unwrap().is_some());
    store.remove_snapshot(&below, &lab.root.join("snapshots").join(below.hex()).join("fs")).unwrap();
    assert_eq!(store.lookup(&key).unwrap(), None);
}

#[test]
fn what_was_not_synced_is_dropped_after_a_crash_of_the_machine() {
    let lab = Lab::new();
    let (safe, torn, torn_blob);
    {
        let store = lab.open();
        safe = add(&store, None, "safe");
        record(&store, safe);
        name(&store, "app", &["safe"]);
        name(&store, "other", &["safe"]);
        store.put_index(&Digest::of(b"tar"), b"index").unwrap();
        store.make_durable().unwrap();

        torn = add(&store, Some(safe), "torn");
        record(&store, torn);
        torn_blob = store.put_blob(b"torn blob").unwrap();
        name(&store, "app", &["safe", "torn"]);
        name(&store, "new", &["safe", "torn"]);
        // Stored again, a durable file is not touched.
        add(&store, None, "safe");
    }
    lab.crash();
    let store = lab.open();
    assert_eq!(file(&store, &safe).as_deref(), Some("safe"));
    assert!(store.lookup(&ContentDigest::of(safe.as_bytes())).unwrap().is_some());
    assert_eq!(store.lookup(&ContentDigest::of(torn.as_bytes())).unwrap(), None);
    assert_eq!((store.snapshot(&torn).unwrap(), store.layer(&torn).unwrap()), (None, None));
    assert_eq!(store.blob_path(&torn_blob), None);
    let names: Vec<_> = store.images().unwrap().into_iter().map(|image| (image.name, image.config)).collect();
    let before = store.image("other").unwrap().unwrap().config;
    assert_eq!(names, [("app".into(), before), ("other".into(), before)], "app falls back to what it was");
    drop(store);
    // In the same boot nothing is dropped, synced or not.
    {
        let store = lab.open();
        add(&store, Some(safe), "torn");
    }
    assert_eq!(file(&lab.open(), &torn).as_deref(), Some("torn"));
}

#[test]
fn a_directory_added_to_a_durable_layer_is_not_durable() {
    let lab = Lab::new();
    let layer = own(None, "tar and directory");
    {
        let store = lab.open();
        store.put_blob(b"tar and directory").unwrap();
        store.put_index(&layer.chain, b"index").unwrap();
        store.put_layer(&layer).unwrap();
        store.make_durable().unwrap();
        add(&store, None, "tar and directory");
    }
    lab.crash();
    let store = lab.open();
    assert_eq!(store.snapshot(&layer.chain).unwrap(), None);
    assert!(store.blob_path(&layer.diff_id).is_some());
    assert_eq!(store.layer(&layer.chain).unwrap().map(|layer| layer.diff_id), Some(layer.diff_id));
}

#[test]
fn a_collection_keeps_what_is_named_recorded_or_in_use() {
    let lab = Lab::new();
    let store = lab.open();
    let named = add(&store, None, "named");
    let image = name(&store, "app", &["named"]);
    let recorded = add(&store, Some(named), "recorded");
    record(&store, recorded);
    let loose = add(&store, None, "loose");
    let blob = store.put_blob(b"loose blob").unwrap();
    let used = add(&store, Some(loose), "used");

    let other = lab.open();
    assert!(other.snapshot(&used).unwrap().is_some());
    let everything = CollectPolicy { bases: true, ..CollectPolicy::default() };
    assert_eq!(other.collect(&everything).unwrap().layers, 0, "the first store is still open");
    drop(store);
    assert_eq!(other.collect(&everything).unwrap(), Reclaimed { records: 0, layers: 0, blobs: 1 });
    assert_eq!(other.blob_path(&blob), None);
    drop(other);

    let store = lab.open();
    assert_eq!(store.collect(&everything).unwrap(), Reclaimed { records: 0, layers: 2, blobs: 0 });
    assert_eq!((file(&store, &loose), file(&store, &used)), (None, None));
    assert_eq!(file(&store, &recorded).as_deref(), Some("recorded"));
    assert!(store.blob_path(&image.config).is_some());
    drop(store);

    let store = lab.open();
    let all = CollectPolicy { unused_since: Some(jiff::Timestamp::MAX), bases: true };
    assert_eq!(store.collect(&all).unwrap(), Reclaimed { records: 1, layers: 1, blobs: 0 });
    assert_eq!(file(&store, &named).as_deref(), Some("named"));
    assert!(store.remove_image("app").unwrap());
    drop(store);
    let store = lab.open();
    assert_eq!(store.collect(&all).unwrap(), Reclaimed { records: 0, layers: 1, blobs: 1 });
    for directory in ["blobs/sha256", "snapshots", "indexes", "active", "ingest", "trash"] {
        assert_eq!(entries(&store, directory), 0, "{directory}");
    }
}

#[test]
fn threads_of_one_process_may_look_and_collect_at_once() {
    let lab = Lab::new();
    let store = lab.open();
    let keys: Vec<_> = (0..20).map(|number| record(&store, add(&store, None, &number.to_string()))).collect();
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    for key in &keys {
                        assert!(store.lookup(key).unwrap().is_some());
                    }
                    store.put_blob(b"blob").unwrap();
                }
            });
        }
        for _ in 0..10 {
            store.collect(&CollectPolicy::default()).unwrap();
            store.make_durable().unwrap();
        }
        done.store(true, Ordering::Relaxed);
    });
}

#[test]
fn a_collection_keeps_the_only_bytes_of_a_layer_that_stands_on_another_stack() {
    let lab = Lab::new();
    let (original, restacked);
    {
        let store = lab.open();
        let base = add(&store, None, "base");
        original = add(&store, Some(base), "moved");
        let layer = own(Some(base), "moved").upon(None);
        store.put_layer(&layer).unwrap();
        restacked = layer.chain;
        record(&store, restacked);
    }
    let store = lab.open();
    assert_eq!(store.collect(&CollectPolicy::default()).unwrap().layers, 0);
    assert_eq!(store.chains_with(&Digest::of(b"moved")).unwrap().len(), 2);
    assert!(file(&store, &original).is_some());
    assert!(store.lookup(&ContentDigest::of(restacked.as_bytes())).unwrap().is_some());
}

#[test]
fn the_use_of_a_record_keeps_it() {
    let lab = Lab::new();
    let (old, used);
    {
        let store = lab.open();
        old = record(&store, add(&store, None, "old"));
        used = record(&store, add(&store, None, "used"));
        store.db.write(|db| db.execute("UPDATE records SET used = 0", [])).unwrap();
        store.lookup(&used).unwrap();
    }
    let store = lab.open();
    let yesterday = jiff::Timestamp::now() - jiff::SignedDuration::from_hours(24);
    let policy = CollectPolicy { unused_since: Some(yesterday), bases: false };
    assert_eq!(store.collect(&policy).unwrap().records, 1);
    assert!(store.lookup(&old).unwrap().is_none());
    assert!(store.lookup(&used).unwrap().is_some());
}

#[test]
fn a_damaged_database_is_set_aside_and_restored() {
    let lab = Lab::new();
    let (safe, key);
    {
        let store = lab.open();
        safe = add(&store, None, "safe");
        key = record(&store, safe);
        name(&store, "app", &["safe"]);
        store.make_durable().unwrap();
    }
    let damage = || {
        let mut file = fs::OpenOptions::new().write(true).open(lab.root.join("db.sqlite")).unwrap();
        file.write_all(&[0xee; 8192]).unwrap();
        let _ = fs::remove_file(lab.root.join("db.sqlite-wal"));
    };
    damage();
    let store = lab.open();
    assert_eq!(store.lookup(&key).unwrap().unwrap().chain, Some(safe));
    assert_eq!(store.images().unwrap().len(), 1);
    assert_eq!(file(&store, &safe).as_deref(), Some("safe"));
    let aside = fs::read_dir(&lab.root)
        .unwrap()
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("damaged-"));
    assert_eq!(aside.count(), 1);
    drop(store);

    // Without a backup nothing is known of the files, so they go; the store works.
    fs::remove_file(lab.root.join("db.backup")).unwrap();
    damage();
    let store = lab.open();
    assert!(store.lookup(&key).unwrap().is_none());
    assert_eq!(entries(&store, "snapshots"), 0);
    add(&store, None, "again");
}

#[test]
fn a_process_notices_that_the_database_was_replaced() {
    let lab = Lab::new();
    let first = lab.open();
    let held = add(&first, None, "held");
    first.make_durable().unwrap();
    fs::write(lab.root.join("db.damaged"), "").unwrap();
    let second = lab.open();
    assert_eq!(file(&second, &held).as_deref(), Some("held"));
    let active = first.prepare().unwrap();
    assert!(matches!(first.commit(active, &own(None, "lost"), b""), Err(StoreError::Replaced { .. })));
    drop(first);
    add(&second, None, "kept");
}

#[test]
fn the_database_can_be_lost() {
    let lab = Lab::new();
    {
        let store = lab.open();
        let chain = add(&store, None, "safe");
        record(&store, chain);
        store.make_durable().unwrap();
    }
    for suffix in ["", "-wal", "-shm"] {
        let _ = fs::remove_file(lab.root.join(format!("db.sqlite{suffix}")));
    }
    let store = lab.open();
    assert!(store.lookup(&ContentDigest::of(own(None, "safe").chain.as_bytes())).unwrap().is_some());
}

#[test]
fn notes_are_kept() {
    let lab = Lab::new();
    let store = lab.open();
    assert_eq!(store.note("etag", "https://example.com").unwrap(), None);
    store.put_note("etag", "https://example.com", "\"1\"").unwrap();
    store.put_note("etag", "https://example.com", "\"2\"").unwrap();
    assert_eq!(store.note("etag", "https://example.com").unwrap().as_deref(), Some("\"2\""));
}

#[test]
fn what_the_index_behind_an_image_names_stays() {
    let lab = Lab::new();
    let store = lab.open();
    let put = |text: &str| {
        let config = store.put_blob(format!("{{\"of\": \"{text}\"}}").as_bytes()).unwrap();
        let manifest = store.put_blob(format!("{{\"config\": {{\"digest\": \"{config}\"}}}}").as_bytes()).unwrap();
        let index = format!("{{\"manifests\": [{{\"digest\": \"{manifest}\"}}], \"of\": \"{text}\"}}");
        let digest = store.put_blob(index.as_bytes()).unwrap();
        let name = "docker.io/library/app:latest".to_owned();
        let size = index.len() as u64;
        let manifest_ref = crate::ManifestRef { digest, media_type: "an index".into(), size };
        let kind = ImageKind::Tagged;
        store.put_image(&ImageRecord { name, config, manifest: Some(manifest_ref), kind }).unwrap();
        (config, manifest)
    };
    let (old_config, old_manifest) = put("old");
    store.make_durable().unwrap();
    let (config, manifest) = put("new");
    drop(store);
    // The name falls back to what it was before, should the machine die now: that is kept too.
    let store = lab.open();
    store.collect(&CollectPolicy::default()).unwrap();
    for digest in [old_config, old_manifest, config, manifest] {
        assert!(store.blob_path(&digest).is_some(), "{digest}");
    }
    // And what somebody has found, though another takes it away.
    let (one, other) = (lab.open(), lab.open());
    assert!(one.image("docker.io/library/app:latest").unwrap().is_some());
    drop(store);
    let names: Vec<String> = other.images().unwrap().into_iter().map(|image| image.name).collect();
    names.iter().for_each(|name| assert!(other.remove_image(name).unwrap()));
    other.collect(&CollectPolicy::default()).unwrap();
    assert!(one.blob_path(&manifest).is_some() && one.blob_path(&config).is_some());
    drop(one);
    other.collect(&CollectPolicy::default()).unwrap();
    assert!(other.blob_path(&manifest).is_none());
}
