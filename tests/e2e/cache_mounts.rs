//! Contents of cache mounts that go from machine to machine.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::support::{Context, Layout, Outcome, Registry, TestEnv, busybox_base, require};

const NEEDED: &[&str] = &["docker-registry", "skopeo", "setpriv"];

/// A step that says what it finds in its cache and adds to it. What is not random there compresses to nothing.
const STEP: &str = "cd /cache; echo found: $(ls | sort); echo mode: $(stat -c %a:%u:%g . ); \
    [ -e big ] || head -c 12000000 /dev/urandom > big; echo $N > file$N; chmod 640 file$N; \
    mkdir -p deep/er; chown 7:8 deep; ln -sfn ../../out deep/link; ln -f file$N deep/same; sha256sum big";

fn context(env: &TestEnv, options: &str) -> Context {
    let text = format!("FROM busybox\nARG N\nRUN --mount=type=cache,target=/cache{options} {STEP}\n");
    env.dockerfile("c", &text)
}

#[track_caller]
fn build(env: &TestEnv, context: &Context, n: &str, args: &[&str]) -> Outcome {
    env.build(context, &["--build-arg", &format!("N={n}")]).args(args).ok()
}

/// A line that the step printed.
#[track_caller]
fn said(out: &Outcome, word: &str) -> String {
    let line = out.stderr.lines().rev().find_map(|line| line.split_once(&format!(" {word}")));
    line.unwrap_or_else(|| panic!("no {word}: {}", out.stderr)).1.trim().to_owned()
}

fn sum(out: &Outcome) -> String {
    let line = out.stderr.lines().find(|line| line.ends_with("  big"));
    line.unwrap_or_else(|| panic!("no sum: {}", out.stderr)).split(' ').nth(2).expect("a sum").to_owned()
}

#[test]
fn a_machine_without_one_begins_with_what_another_left() {
    if !require(NEEDED) {
        return;
    }
    let registry = Registry::plain();
    let (one, two, three) = (TestEnv::busybox(), TestEnv::busybox(), TestEnv::busybox());
    let cache = registry.name("cache");
    let to = format!("type=registry,ref={cache},mode=max,mounts=50MB");
    let options = ",id=things,mode=0750,uid=3,gid=4";
    let first = build(&one, &context(&one, options), "1", &["--cache-to", &to]);
    assert_eq!((said(&first, "found:").as_str(), said(&first, "mode:").as_str()), ("", "750:3:4"));

    let before = registry.requests().len();
    let second = build(&two, &context(&two, options), "2", &["--cache-from", &cache, "--cache-to", &to]);
    assert_eq!(said(&second, "found:"), "big deep file1");
    assert_eq!(said(&second, "mode:"), "750:3:4", "the step says what the directory is like");
    assert_eq!(sum(&second), sum(&first));
    second.contains("restoring cache mount things");
    // Little was added, so that little is sent.
    let log = registry.requests().split_off(before);
    let sent = log.iter().filter(|line| line.starts_with("PUT ") && line.contains("/blobs/uploads/")).count();
    assert!(sent <= 5, "{log:#?}");

    let third = build(&three, &context(&three, options), "3", &["--cache-from", &cache]);
    assert_eq!((said(&third, "found:"), sum(&third)), ("big deep file1 file2".into(), sum(&first)));
    let look = three.dockerfile(
        "look",
        "FROM busybox\nRUN --mount=type=cache,target=/x,id=things,mode=0750,uid=3,gid=4 stat -c '%n %a %u:%g %h' /x/file2 /x/deep && readlink /x/deep/link\n",
    );
    three.build(&look, &[]).ok().contains("/x/file2 640 0:0").contains("/x/deep 755 7:8").contains("../../out");

    // What a machine has it keeps; who does not want any begins with nothing, and other ids have nothing to do with it.
    let again = build(&one, &context(&one, options), "4", &["--cache-from", &cache]);
    assert_eq!(said(&again, "found:"), "big deep file1");
    let four = TestEnv::busybox();
    let without = format!("type=registry,ref={cache},mounts=false");
    assert_eq!(said(&build(&four, &context(&four, options), "5", &["--cache-from", &without]), "found:"), "");
    let other = context(&four, ",id=other,sharing=private");
    assert_eq!(said(&build(&four, &other, "6", &["--cache-from", &cache]), "found:"), "");
    // It is no part of any key: all that is in the cache is found.
    let five = TestEnv::busybox();
    assert_eq!(build(&five, &context(&five, options), "1", &["--cache-from", &cache]).cached(), 1);
    assert!(
        fs::read_dir(five.store().join("cache-mounts")).expect("ours").next().is_none(),
        "nothing is fetched for a hit"
    );
}

/// Several steps of several builds of one store.
#[test]
fn steps_that_begin_with_the_same_mount_fetch_it_once() {
    if !require(NEEDED) {
        return;
    }
    let registry = Registry::plain();
    let (one, two) = (TestEnv::busybox(), TestEnv::busybox());
    let cache = registry.name("cache");
    let first =
        build(&one, &context(&one, ",id=x"), "1", &["--cache-to", &format!("type=registry,ref={cache},mounts=true")]);
    let step = |n: u32| {
        format!("FROM busybox AS s{n}\nRUN --mount=type=cache,target=/x,id=x echo {n}; sha256sum /x/big | tee /out\n")
    };
    let copies: String = (0..4).map(|n| format!("COPY --from=s{n} /out /out{n}\n")).collect();
    let text = format!("{}FROM scratch\n{copies}", (0..4).map(step).collect::<String>());
    let contexts = [two.dockerfile("c", &text), two.dockerfile("d", &text.replace("echo", "echo again"))];
    let before = registry.requests().len();
    let builds = contexts.each_ref().map(|context| two.build(context, &["--cache-from", &cache]).spawn());
    let sum = sum(&first);
    for build in builds {
        let out = build.finish().success();
        assert_eq!(out.stderr.matches(&*sum).count(), 4, "{}", out.stderr);
    }
    let log = registry.requests().split_off(before);
    let manifest =
        registry.skopeo("inspect").args(["--tls-verify=false", "--raw"]).arg(format!("docker://{cache}")).ok();
    let manifest: Value = serde_json::from_str(&manifest.stdout).expect("JSON");
    let parts = manifest["layers"].as_array().expect("layers").iter();
    let parts: Vec<&str> = parts.filter_map(|part| part["digest"].as_str()).collect();
    let fetched = |digest: &str| log.iter().filter(|line| line.starts_with("GET ") && line.contains(digest)).count();
    let counts: Vec<usize> = parts.iter().map(|digest| fetched(digest)).filter(|count| *count > 0).collect();
    assert!(!counts.is_empty() && counts.iter().all(|count| *count == 1), "{counts:?}: {log:#?}");
}

fn blobs(layout: &Path) -> Vec<std::path::PathBuf> {
    fs::read_dir(layout.join("blobs/sha256")).expect("a layout").flatten().map(|entry| entry.path()).collect()
}

/// The files of what the manifest of a cache names, layers and parts.
fn named(layout: &Path) -> (Vec<std::path::PathBuf>, Vec<std::path::PathBuf>) {
    let index: Value = serde_json::from_slice(&fs::read(layout.join("index.json")).expect("a layout")).expect("JSON");
    let blob = |digest: &Value| layout.join("blobs/sha256").join(&digest.as_str().expect("a digest")[7..]);
    let manifest = fs::read(blob(&index["manifests"][0]["digest"])).expect("a manifest");
    let manifest: Value = serde_json::from_slice(&manifest).expect("JSON");
    let is_part = |blob: &&Value| blob["mediaType"].as_str().is_some_and(|kind| kind.contains("cache-mount"));
    let (parts, layers): (Vec<_>, Vec<_>) = manifest["layers"].as_array().expect("layers").iter().partition(is_part);
    let files = |blobs: Vec<&Value>| blobs.into_iter().map(|of| blob(&of["digest"])).collect();
    (files(layers), files(parts))
}

fn parts(layout: &Path) -> Vec<std::path::PathBuf> {
    named(layout).1
}

#[test]
fn what_cannot_be_used_is_a_new_directory() {
    let (one, dir) = (TestEnv::busybox(), tempfile::tempdir().expect("a temporary directory"));
    let layout = dir.path().join("cache");
    let to = |more: &str| format!("type=local,dest={},mode=max{more}", layout.display());
    let from = format!("type=local,src={}", layout.display());
    for sharing in ["shared", "locked", "private"] {
        let options = format!(",id={sharing},sharing={sharing}");
        build(&one, &context(&one, &options), "1", &["--cache-to", &to(",mounts=true")]);
        let two = TestEnv::busybox();
        let out = build(&two, &context(&two, &options), "2", &["--cache-from", &from]);
        assert_eq!(said(&out, "found:"), "big deep file1", "{sharing}");
    }
    // A build that does not ask for it leaves those that are there.
    let all = parts(&layout).len();
    build(&one, &context(&one, ",id=more"), "1", &["--cache-to", &to("")]);
    assert_eq!(parts(&layout).len(), all);
    // One that holds more than it may is said to.
    let out = build(&one, &context(&one, ",id=more"), "2", &["--cache-to", &to(",mounts=1MB")]);
    out.contains("the cache mount more is not exported: it holds 12.").contains("more than mounts=1");
    // The same content again is not written again.
    let before = blobs(&layout).len();
    build(&one, &context(&one, ",id=shared"), "1", &["--no-cache", "--cache-to", &to(",mounts=true")]);
    assert!(blobs(&layout).len() <= before);

    // Damaged, cut or gone: the step runs, with nothing.
    type Damage = fn(&Path);
    let damages: [Damage; 3] = [
        |file| {
            let mut bytes = fs::read(file).expect("ours");
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            fs::write(file, bytes).expect("ours");
        },
        |file| fs::write(file, b"").expect("ours"),
        |file| fs::remove_file(file).expect("ours"),
    ];
    for damage in damages {
        parts(&layout).iter().filter(|file| file.exists()).for_each(|file| damage(file));
        let two = TestEnv::busybox();
        let out = build(&two, &context(&two, ",id=shared"), "3", &["--cache-from", &from]);
        assert_eq!(said(&out, "found:"), "");
        out.contains("the cache mount shared in").contains("is not used");
    }
    // And the next that writes there makes it whole.
    build(&one, &context(&one, ",id=shared"), "4", &["--cache-to", &to(",mounts=true")]);
    let two = TestEnv::busybox();
    let out = build(&two, &context(&two, ",id=shared"), "5", &["--cache-from", &from]);
    assert_eq!(said(&out, "found:"), "big deep file1 file4");
    // One that has found out that they are damaged writes them again.
    parts(&layout).iter().for_each(|file| damages[0](file));
    one.rbuild(["prune", "-f", "--filter", "type=exec.cachemount"]).ok();
    let damaged =
        build(&one, &context(&one, ",id=shared"), "6", &["--cache-from", &from, "--cache-to", &to(",mounts=true")]);
    assert_eq!(said(&damaged, "found:"), "");
    let two = TestEnv::busybox();
    let out = build(&two, &context(&two, ",id=shared"), "5", &["--cache-from", &from]);
    assert_eq!((said(&out, "found:"), sum(&out)), ("big deep file6".into(), sum(&damaged)));
}

/// The tar of an empty mount is that of an empty layer, which has to come along all the same.
#[test]
fn an_empty_mount_is_left_out_and_takes_no_layers_place() {
    if !require(NEEDED) {
        return;
    }
    let (registry, dir) = (Registry::plain(), tempfile::tempdir().expect("a temporary directory"));
    let empty = dir.path().join("empty.tar");
    fs::write(&empty, [0; 1024]).expect("ours");
    registry.put("base", &Layout::write(&dir.path().join("base"), &[&busybox_base().tar, &empty], &json!({})));
    let text = format!("FROM {}\nRUN --mount=type=cache,target=/cache echo made > /made\n", registry.name("base"));
    let (layout, cache) = (dir.path().join("cache"), registry.name("cache"));
    let one = TestEnv::new();
    one.build(&one.dockerfile("c", &text), &["--cache-to", &format!("type=registry,ref={cache},mode=max,mounts=true")])
        .args(["--cache-to", &format!("type=local,dest={},mode=max,mounts=true", layout.display())])
        .ok();
    let (layers, parts) = named(&layout);
    assert!(parts.is_empty());
    assert!(layers.len() == 3 && layers.iter().all(|layer| layer.exists()), "{layers:?}");
    let more = format!("{text}RUN cat /made > /copy\n");
    for from in [cache, format!("type=local,src={}", layout.display())] {
        let two = TestEnv::new();
        let out = two.build(&two.dockerfile("c", &more), &["--cache-from", &from, "-t", "it"]).ok();
        assert_eq!(out.cached(), 1, "{}", out.stderr);
        assert_eq!(two.run("it", &["cat", "/copy"]).ok().line(), "made");
    }
}
