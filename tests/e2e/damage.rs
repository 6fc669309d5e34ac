//! A byte that changes by itself, in each kind of file that the store has: it is noticed, named, and made good by building.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use crate::support::{Context, Layout, Registry, TestEnv, require};

const DOCKERFILE: &str = "FROM busybox AS made
RUN mkdir /d && head -c 200000 /dev/zero | tr '\\0' r > /d/ran && echo more > /d/more
COPY f /d/f
FROM busybox
COPY f /f
RUN cat /f > /copied
COPY --from=made /d /d
";

fn files(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut pending = vec![directory.to_owned()];
    while let Some(directory) = pending.pop() {
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            let kind = entry.file_type().expect("ours");
            if kind.is_dir() {
                pending.push(entry.path());
            } else if kind.is_file() && entry.metadata().is_ok_and(|metadata| metadata.len() > 0) {
                found.push(entry.path());
            }
        }
    }
    found
}

/// Changes one bit in the middle, and no time.
fn flip(file: &Path) {
    let modified = fs::metadata(file).and_then(|metadata| metadata.modified()).expect("ours");
    let mut bytes = fs::read(file).expect("ours");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(file, bytes).expect("ours");
    fs::File::options().write(true).open(file).and_then(|file| file.set_modified(modified)).expect("ours");
}

fn to(env: &TestEnv, name: &str) -> String {
    format!("type=oci,dest={}", env.path(format!("{name}.tar")).display())
}

fn prepared() -> (TestEnv, Context, BTreeSet<PathBuf>) {
    let env = TestEnv::busybox();
    let before: BTreeSet<PathBuf> = files(&env.store()).into_iter().collect();
    let context = env.dockerfile("c", DOCKERFILE).file("f", "f".repeat(100_000));
    env.build(&context, &["-t", "app", "-o", &to(&env, "first")]).ok();
    (env, context, before)
}

/// Builds, which must work; all that was said, and the image is right.
#[track_caller]
fn repaired(env: &TestEnv, context: &Context, name: &str) -> String {
    let out = env.path(format!("{name}.tar"));
    let said = env.build(context, &["-t", "app", "-o", &to(env, name)]).ok().stderr;
    let image = Layout::from_archive(&out).image();
    for (path, size) in [("f", 100_000), ("copied", 100_000), ("d/ran", 200_000), ("d/f", 100_000)] {
        let found = image.find(path).unwrap_or_else(|| panic!("{path}: {said}"));
        let byte = found.body[0];
        assert!(found.body.len() == size && found.body.iter().all(|b| *b == byte), "{path} is damaged: {said}");
    }
    said
}

fn of_kind(env: &TestEnv, directory: &str, before: &BTreeSet<PathBuf>) -> Vec<PathBuf> {
    let found: Vec<PathBuf> =
        files(&env.store().join(directory)).into_iter().filter(|file| !before.contains(file)).collect();
    assert!(!found.is_empty(), "nothing in {directory}");
    found
}

#[test]
fn blobs() {
    let (env, context, before) = prepared();
    of_kind(&env, "blobs", &before).iter().for_each(|file| flip(file));
    let said = repaired(&env, &context, "blobs");
    assert!(said.contains("is damaged") && said.contains("blobs/sha256/"), "{said}");
    assert!(!repaired(&env, &context, "after").contains("is damaged"));
}

/// A step that runs again finds the damaged file under the name of what it makes, which then is not what it wrote.
#[test]
fn compressed_blobs_that_a_step_makes_again() {
    let env = TestEnv::new();
    let noise: Vec<u8> = (0..50_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let context = env.dockerfile("c", "FROM scratch\nCOPY f /f\n").file("f", &noise);
    for (turn, name) in ["first", "again"].into_iter().enumerate() {
        let said = env.build(&context, &["--no-cache", "-o", &to(&env, name)]).ok().stderr;
        assert_eq!(said.contains("is damaged"), turn > 0, "{said}");
        let image = Layout::from_archive(&env.path(format!("{name}.tar"))).image();
        assert!(image.find("f").is_some_and(|file| file.body == noise), "{name}");
        let blobs = files(&env.store().join("blobs"));
        let packed = blobs.iter().filter(|blob| fs::read(blob).is_ok_and(|bytes| bytes.starts_with(&[0x1f, 0x8b])));
        packed.for_each(|blob| flip(blob));
    }
}

#[test]
fn files_of_unpacked_layers() {
    let (env, context, _) = prepared();
    // What packed the layers is gone, so that the directories are all there is.
    for file in files(&env.store().join("snapshots")).iter().filter(|file| file.ends_with("d/ran")) {
        flip(file);
    }
    let blobs: Vec<PathBuf> = files(&env.store().join("blobs"));
    for blob in blobs.iter().filter(|blob| fs::read(blob).is_ok_and(|bytes| bytes.starts_with(&[0x1f, 0x8b]))) {
        fs::remove_file(blob).expect("ours");
    }
    let archive = env.path("made.tar");
    let said = env.build(&context, &["--target", "made", "-o", &to(&env, "made")]).ok().stderr;
    assert!(said.contains("is damaged") && said.contains("snapshots/"), "{said}");
    let image = Layout::from_archive(&archive).image();
    assert!(image.find("d/ran").is_some_and(|file| file.body.iter().all(|byte| *byte == b'r')));
}

#[test]
fn indexes() {
    for directory in ["indexes", "snapshots"] {
        let (env, context, before) = prepared();
        let mut found = of_kind(&env, directory, &before);
        found.retain(|file| directory == "indexes" || file.ends_with("index"));
        found.iter().for_each(|file| flip(file));
        env.dockerfile("c", &DOCKERFILE.replace("/copied", "/copied && true"));
        repaired(&env, &context, directory);
    }
}

/// The directory of a step's layer tells what is in it: nothing has to be built again.
#[test]
fn an_index_that_cannot_be_read_is_made_again() {
    let env = TestEnv::busybox();
    let text = "FROM busybox\nRUN mkdir /d && echo gone > /d/gone && echo gone > /copied\n\
                RUN rm -r /d && mkdir /d && echo kept > /d/kept && ln /d/kept /d/linked && rm /copied\n";
    env.build(&env.dockerfile("own", text), &["-t", "own"]).ok();
    for index in files(&env.store().join("snapshots")).iter().filter(|file| file.ends_with("index")) {
        // The version of another rbuild.
        let mut bytes = fs::read(index).expect("ours");
        bytes[0] = 1;
        fs::write(index, bytes).expect("ours");
    }
    let out = env.run("own", &["sh", "-c", "cat /d/linked; ls /d; [ ! -e /copied ]"]).ok();
    assert_eq!(out.stdout, "kept\nkept\nlinked\n");
    let saved = env.path("own.tar");
    env.rbuild(["save", "own", "-o"]).arg(&saved).ok();
    env.rbuild(["inspect", "--validate", "own"]).ok();
}

#[test]
fn the_database_and_what_is_remembered_of_files() {
    let (env, context, _) = prepared();
    // In the header: nothing of it can be read any more.
    let database = env.store().join("db.sqlite");
    let mut bytes = fs::read(&database).expect("ours");
    bytes[..64].fill(0x55);
    fs::write(&database, bytes).expect("ours");
    // What the log has of it would hide that.
    let _ = fs::remove_file(env.store().join("db.sqlite-wal"));
    let said = repaired(&env, &context, "database");
    assert!(said.is_empty() || !said.contains("panicked"), "{said}");
    assert!(
        fs::read_dir(env.store())
            .expect("ours")
            .flatten()
            .any(|entry| { entry.file_name().to_string_lossy().starts_with("damaged-") })
    );
    of_kind(&env, "stat", &BTreeSet::new()).iter().for_each(|file| flip(file));
    repaired(&env, &context, "stat");
}

/// Whichever part of the database is gone, the build succeeds, be it after a second start.
#[test]
fn any_page_of_the_database() {
    const PAGE: usize = 4096;
    let (env, context, _) = prepared();
    let database = env.store().join("db.sqlite");
    let log = env.store().join("db.sqlite-wal");
    let pages = fs::metadata(&database).expect("ours").len() as usize / PAGE;
    let whole = fs::read(&database).expect("ours");
    let damage = |what: &str, bytes: &[u8]| {
        // What the log has of it would hide that.
        let _ = fs::remove_file(&log);
        let _ = fs::remove_file(env.store().join("db.sqlite-shm"));
        fs::write(&database, bytes).expect("ours");
        repaired(&env, &context, what);
    };
    for page in 1..pages {
        let mut bytes = fs::read(&database).expect("ours");
        let end = bytes.len().min((page + 1) * PAGE);
        bytes[(page * PAGE).min(end)..end].fill(0);
        damage(&format!("page {page}"), &bytes);
    }
    damage("half", &whole[..whole.len() / 2]);
    fs::write(env.store().join("version"), "\0\0").expect("ours");
    repaired(&env, &context, "version");
}

#[test]
fn a_base_that_no_registry_has_is_named_and_imported_again() {
    let env = TestEnv::busybox();
    let context = env.dockerfile("c", DOCKERFILE).file("f", "f".repeat(100_000));
    let base = files(&env.store().join("blobs"));
    let base = base.iter().max_by_key(|file| fs::metadata(file).map_or(0, |metadata| metadata.len())).expect("a layer");
    flip(base);
    let name = base.file_name().expect("a name").to_string_lossy().into_owned();
    let failed = env.build(&context, &["-t", "app"]).run();
    assert_ne!(failed.code, Some(0));
    assert!(failed.stderr.contains(&name), "the file is named: {}", failed.stderr);
    env.rbuild(["import"]).arg(&crate::support::busybox_base().tar).arg("busybox:latest").ok();
    repaired(&env, &context, "imported");
    // Its config is a small one.
    let config = env.rbuild(["inspect", "busybox", "--format", "{{.Id}}"]).ok().line().to_owned();
    flip(&env.store().join("blobs").join(config.replace(':', "/")));
    let failed = env.build(&context, &["--no-cache"]).run();
    assert_ne!(failed.code, Some(0));
    failed.contains(&config).contains("is damaged or gone");
}

#[test]
fn a_store_of_a_later_version_is_refused() {
    let env = TestEnv::busybox();
    fs::write(env.store().join("version"), "7\n").expect("ours");
    env.rbuild(["images"]).run().exits(1).contains("format 7").contains("newer rbuild");
}

/// The directories of layers that a file of this name is in.
fn directories_with(env: &TestEnv, name: &str) -> Vec<PathBuf> {
    let of = files(&env.store().join("snapshots")).into_iter().filter(|file| file.ends_with(name));
    of.filter_map(|file| file.ancestors().find(|above| above.ends_with("fs")).map(Path::to_owned)).collect()
}

const LAYERS: &str = "FROM busybox
RUN mkdir -p /deep/er && echo first > /deep/er/first && cat /proc/sys/kernel/random/uuid > /id
RUN echo second > /second
";

#[test]
fn a_directory_that_was_emptied_is_filled_again_before_a_step_sees_it() {
    let env = TestEnv::busybox();
    env.build(&env.dockerfile("c", LAYERS), &["-t", "app"]).ok();
    // Of a step, whose layer is nowhere else, and of the base, which can be unpacked again.
    for name in ["er/first", "bin/busybox"] {
        for directory in directories_with(&env, name) {
            fs::remove_dir_all(&directory).expect("ours");
            fs::create_dir(directory).expect("ours");
        }
        let context = env.dockerfile("c", &format!("{LAYERS}RUN cat /deep/er/first /second && true {name}\n"));
        let out = env.build(&context, &["-t", "app"]).ok();
        assert_eq!(out.stderr.matches("is damaged").count(), 1, "{}", out.stderr);
    }
}

#[test]
fn a_step_that_misses_a_file_of_a_damaged_layer_gets_it_and_tries_again() {
    let env = TestEnv::busybox();
    env.build(&env.dockerfile("c", LAYERS), &["-t", "app"]).ok();
    let context = env.dockerfile("c", &format!("{LAYERS}RUN cat /deep/er/first\n"));
    for directory in directories_with(&env, "er/first") {
        fs::remove_file(directory.join("deep/er/first")).expect("ours");
    }
    let out = env.build(&context, &["-t", "app"]).ok();
    assert!(out.stderr.contains("is damaged"), "{}", out.stderr);
    // A step that fails by itself fails once.
    let context = env.dockerfile("c", &format!("{LAYERS}RUN echo tried; false\n"));
    let failed = env.build(&context, &["--progress=plain"]).run();
    assert_ne!(failed.code, Some(0));
    let tried = failed.stderr.lines().filter(|line| line.starts_with('#') && line.ends_with(" tried"));
    assert_eq!(tried.count(), 1, "{}", failed.stderr);
}

#[test]
fn files_that_go_out_are_those_that_the_step_made() {
    let env = TestEnv::busybox();
    let context = env.dockerfile("c", LAYERS);
    let (tar, directory) = (env.path("out.tar"), env.path("out"));
    env.build(&context, &["-t", "app"]).ok();
    for output in [format!("type=tar,dest={}", tar.display()), format!("type=local,dest={}", directory.display())] {
        let damaged = directories_with(&env, "er/first").remove(0).join("deep/er/first");
        flip(&damaged);
        let out = env.build(&context, &["-o", &output]).ok();
        assert!(out.stderr.contains("is damaged"), "{}", out.stderr);
    }
    assert_eq!(fs::read(directory.join("deep/er/first")).expect("written"), b"first\n");
    let entries = crate::support::entries(&fs::read(&tar).expect("written"));
    let found = entries.iter().find(|entry| entry.path == "deep/er/first").expect("it is there");
    assert_eq!(found.body, b"first\n");
}

#[test]
fn a_damaged_blob_that_a_registry_refuses_is_made_again() {
    if !crate::support::require(&["docker-registry", "setpriv"]) {
        return;
    }
    let (env, context, before) = prepared();
    of_kind(&env, "blobs", &before).iter().for_each(|file| flip(file));
    let registry = crate::support::Registry::plain();
    let out = env.build(&context, &["-t", &registry.name("app:1"), "--push"]).ok();
    assert!(out.stderr.contains("is damaged"), "{}", out.stderr);
    let other = TestEnv::new();
    assert_eq!(other.run(&registry.name("app:1"), &["head", "-c", "3", "/copied"]).ok().stdout, "fff");
}

/// A layer of a step's of which there is a directory here, damaged, and a blob at a registry: the blob is fetched, and packed as it
/// is asked for. The step is not carried out again.
#[test]
fn a_damaged_directory_is_made_good_from_a_registry() {
    if !require(&["docker-registry", "setpriv"]) {
        return;
    }
    let registry = Registry::plain();
    for (number, pulled) in [false, true].into_iter().enumerate() {
        let env = TestEnv::busybox();
        let before = files(&env.store().join("blobs"));
        let context = env.dockerfile("c", &format!("FROM busybox\nRUN mktemp -u > /id && echo {number}\n"));
        let name = registry.name(&format!("app:{number}"));
        env.build(&context, &["-t", &name, "--push"]).ok();
        if pulled {
            // Then it counts as theirs, too.
            env.rbuild(["pull", &name]).ok();
        }
        let id = env.run(&name, &["cat", "/id"]).ok().stdout;
        let layers = |keys: &str, damaged: bool| {
            let made = files(&env.store().join("snapshots")).into_iter().filter(|file| file.ends_with("fs/id"));
            for file in made.filter(|_| damaged) {
                flip(&file);
            }
            // Neither the blob that was pushed nor what was made for an earlier output.
            let blobs = files(&env.store().join("blobs"));
            let is_layer = |file: &&PathBuf| !fs::read(file).expect("ours").starts_with(b"{");
            let new = blobs.iter().filter(|file| !before.contains(file)).filter(is_layer);
            new.for_each(|file| fs::remove_file(file).expect("ours"));
            let dest = env.path("out.tar");
            let said = env.build(&context, &["-o", &format!("type=oci,dest={}{keys}", dest.display())]).ok().stderr;
            assert_eq!(said.contains("is damaged"), damaged, "{said}");
            let image = Layout::from_archive(&dest).image();
            assert_eq!(String::from_utf8_lossy(&image.find("id").expect("there").body), id, "{keys}: {said}");
            let _ = fs::remove_dir_all(env.path("out.unpacked"));
            image.manifest["layers"].as_array().expect("layers").clone()
        };
        for keys in [",compression=zstd", ",compression=gzip,compression-level=9", ",compression=uncompressed"] {
            env.run(&name, &["true"]).ok();
            assert_eq!(layers(keys, true).last(), layers(keys, false).last(), "packed as ever");
        }
        // Without a build that could make it: the index is lost, too, and what it would be made of is damaged.
        env.run(&name, &["true"]).ok();
        let id_file = files(&env.store().join("snapshots")).into_iter().find(|file| file.ends_with("fs/id"));
        let id_file = id_file.expect("it is unpacked");
        flip(&id_file);
        let index = id_file.ancestors().nth(2).expect("its snapshot").join("index");
        fs::write(&index, "nonsense").expect("ours");
        let blobs = files(&env.store().join("blobs"));
        let is_layer = |file: &&PathBuf| !fs::read(file).expect("ours").starts_with(b"{");
        let new = blobs.iter().filter(|file| !before.contains(file)).filter(is_layer);
        new.for_each(|file| fs::remove_file(file).expect("ours"));
        assert_eq!(env.run(&name, &["cat", "/id"]).ok().stdout, id, "fetched");
    }
}
