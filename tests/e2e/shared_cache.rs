//! Caches that machines share. Two stores stand for two machines, with Debian's docker-registry between them. A step that ran
//! leaves a random number in the image; the same number again means that it was not run again.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::support::{Context, Layout, Outcome, Registry, TestEnv, busybox_base, require};

const NEEDED: &[&str] = &["docker-registry", "skopeo", "setpriv"];
const RANDOM: &str = "cat /proc/sys/kernel/random/uuid";

fn put_base(registry: &Registry) -> String {
    let dir = tempfile::tempdir().expect("a temporary directory");
    registry.put("team/base:1", &Layout::write(&dir.path().join("base"), &[&busybox_base().tar], &json!({})));
    registry.name("team/base:1")
}

/// Two stages, of which the last takes something from the first.
fn context(env: &TestEnv, place: &str, base: &str) -> Context {
    let text = format!(
        "FROM {base} AS made\nWORKDIR /src\nCOPY dep .\nRUN {RANDOM} > /made; cat dep >> /made\n\
         FROM {base}\nRUN {RANDOM} > /first\nCOPY --from=made /made /from/made\nCOPY app /app\nRUN {RANDOM} > /last\n"
    );
    env.dockerfile(place, &text).file("dep", "dep\n").file("app", "app")
}

const STEPS: usize = 7;

fn numbers(env: &TestEnv, image: &str) -> String {
    env.run(image, &["cat", "/from/made", "/first", "/last"]).ok().stdout
}

#[track_caller]
fn build(env: &TestEnv, context: &Context, args: &[&str]) -> (Outcome, String) {
    let iid = env.path("iid");
    let name: &[&str] = if args.contains(&"-t") { &[] } else { &["-t", "it"] };
    let out = env.build(context, args).args(name).arg("--iidfile").arg(&iid).ok();
    (out, fs::read_to_string(iid).expect("written"))
}

/// Digests of blobs that were downloaded since the first `before` requests.
fn downloads(registry: &Registry, before: usize) -> BTreeSet<String> {
    let log = registry.requests().split_off(before);
    let blobs = log.iter().filter(|line| line.starts_with("GET ") && line.contains("/blobs/sha256:"));
    blobs.filter_map(|line| Some(line.split("/blobs/").nth(1)?.split(' ').next()?.to_owned())).collect()
}

/// A document that a registry has, as another tool sees it.
fn raw(registry: &Registry, kind: &str, name: &str) -> Value {
    let run =
        registry.skopeo("inspect").args(["--tls-verify=false", kind]).arg(format!("docker://{}", registry.name(name)));
    serde_json::from_str(&run.ok().stdout).expect("JSON")
}

fn layers(manifest: &Value) -> BTreeSet<String> {
    let layers = manifest["layers"].as_array().expect("layers");
    layers.iter().map(|layer| layer["digest"].as_str().expect("a digest").to_owned()).collect()
}

fn registry_data(registry: &Registry, digest: &str) -> std::path::PathBuf {
    let hex = digest.strip_prefix("sha256:").expect("sha256");
    registry.data().join("docker/registry/v2/blobs/sha256").join(&hex[..2]).join(hex).join("data")
}

#[test]
fn an_empty_store_reuses_every_step_and_moves_no_layer() {
    if !require(NEEDED) {
        return;
    }
    let registry = Registry::plain();
    let base = put_base(&registry);
    let (one, two) = (TestEnv::new(), TestEnv::new());
    let (cache, app) = (registry.name("team/cache:main"), registry.name("team/app:1"));
    let to = format!("type=registry,ref={cache},mode=max");
    let (out, id) = build(&one, &context(&one, "here", &base), &["-t", &app, "--push", "--cache-to", &to]);
    assert_eq!(out.cached(), 0, "{}", out.stderr);

    let manifest = raw(&registry, "--raw", "team/cache:main");
    assert_eq!(manifest["config"]["mediaType"], "application/vnd.buildkit.cacheconfig.v0");
    let all: BTreeSet<String> =
        layers(&manifest).union(&layers(&raw(&registry, "--raw", "team/app:1"))).cloned().collect();

    // Another machine: another path, other times, another store.
    let there = context(&two, "elsewhere/deep", &base);
    there.touch("dep", 1_000_000_000);
    there.touch("app", 1_500_000_000);
    let before = registry.requests().len();
    let second = registry.name("team/app:2");
    let (out, same) =
        build(&two, &there, &["-t", &second, "--push", "--cache-from", &format!("type=registry,ref={cache}")]);
    assert_eq!((out.cached(), &same), (STEPS, &id), "{}", out.stderr);
    let fetched = downloads(&registry, before);
    assert!(fetched.is_disjoint(&all), "no layer moves: {fetched:?}");
    // What both images hold is the same, and comes when it is asked for.
    assert_eq!(numbers(&one, &app), numbers(&two, &second));
    assert_eq!(layers(&raw(&registry, "--raw", "team/app:2")), layers(&raw(&registry, "--raw", "team/app:1")));

    // Now it is this store's own.
    let before = registry.requests().len();
    let (out, _) = build(&two, &there, &[]);
    assert_eq!(out.cached(), STEPS);
    assert!(registry.requests().split_off(before).is_empty());
    // With everything here, the shared cache is not even asked.
    let (out, _) = build(&two, &there, &["--cache-from", &cache]);
    assert_eq!(out.cached(), STEPS);
    assert!(registry.requests().split_off(before).is_empty());
}

#[test]
fn a_change_on_the_second_machine_runs_only_what_follows_it() {
    if !require(NEEDED) {
        return;
    }
    let registry = Registry::plain();
    let base = put_base(&registry);
    let (one, two) = (TestEnv::new(), TestEnv::new());
    let cache = registry.name("cache");
    let to = format!("type=registry,ref={cache},mode=max");
    build(&one, &context(&one, "c", &base), &["--cache-to", &to]);
    let there = context(&two, "d", &base);
    there.write("app", "APP");
    let (out, _) = build(&two, &there, &["--cache-from", &cache, "--cache-to", &to]);
    assert_eq!(out.cached(), STEPS - 2, "{}", out.stderr);
    let (ours, theirs) = (numbers(&one, "it"), numbers(&two, "it"));
    assert_eq!(ours.lines().take(3).collect::<Vec<_>>(), theirs.lines().take(3).collect::<Vec<_>>());
    assert_ne!(ours, theirs);
    assert_eq!(two.run("it", &["cat", "/app"]).ok().line(), "APP");

    // A third machine has both builds.
    for (app, expected) in [("app", &ours), ("APP", &theirs)] {
        let three = TestEnv::new();
        let context = context(&three, "e", &base);
        context.write("app", app);
        let (out, _) = build(&three, &context, &["--cache-from", &cache]);
        assert_eq!(out.cached(), STEPS, "{app}: {}", out.stderr);
        assert_eq!(&numbers(&three, "it"), expected);
    }
}

#[test]
fn mode_min_has_no_layers_of_other_stages_and_still_finds_what_follows_them() {
    if !require(NEEDED) {
        return;
    }
    let registry = Registry::plain();
    let base = put_base(&registry);
    let (one, two) = (TestEnv::new(), TestEnv::new());
    let cache = registry.name("cache");
    let (_, id) = build(&one, &context(&one, "c", &base), &["--cache-to", &format!("type=registry,ref={cache}")]);
    let there = context(&two, "c", &base);
    let (out, same) = build(&two, &there, &["--cache-from", &cache]);
    assert_eq!((out.cached(), &same), (STEPS, &id), "{}", out.stderr);
    assert_eq!(numbers(&one, "it"), numbers(&two, "it"));
    // Of the image's layers, not those of the other stage.
    assert_eq!(layers(&raw(&registry, "--raw", "cache")).len(), 5);

    // What asks for the files of the other stage has it run.
    let three = TestEnv::new();
    let text = fs::read_to_string(there.path("Dockerfile")).expect("ours");
    let there = context(&three, "c", &base);
    there.write("Dockerfile", text.replace("/from/made\n", "/from/made\nCOPY --from=made /src/dep /dep\n"));
    let (out, _) = build(&three, &there, &["--cache-from", &cache]);
    assert!(out.stderr.contains("RUN"), "{}", out.stderr);
    assert_eq!(three.run("it", &["cat", "/dep"]).ok().line(), "dep");
    let (ours, theirs) = (numbers(&one, "it"), numbers(&three, "it"));
    // The copy of what the stage made before was found, the rest follows another step.
    assert_eq!(ours.lines().take(3).collect::<Vec<_>>(), theirs.lines().take(3).collect::<Vec<_>>());
    assert_ne!(ours, theirs);
}

#[test]
fn a_directory_and_an_image_are_caches_too() {
    if !require(NEEDED) {
        return;
    }
    let registry = Registry::plain();
    let base = put_base(&registry);
    let one = TestEnv::new();
    let (dir, app) = (one.path("cache"), registry.name("app"));
    let to = format!("type=local,dest={},mode=max,compression=zstd", dir.display());
    let here = context(&one, "c", &base);
    let (_, id) = build(&one, &here, &["-t", &app, "--push", "--cache-to", &to, "--cache-to", "type=inline"]);
    let (_, again) = build(&one, &here, &["-t", &app, "--push", "--cache-to", &to, "--cache-to", "type=inline"]);
    assert_eq!(id, again, "an inline cache does not change when nothing did");
    let index: Value = serde_json::from_slice(&fs::read(dir.join("index.json")).expect("a layout")).expect("JSON");
    assert_eq!(index["manifests"].as_array().map(Vec::len), Some(1));

    let two = TestEnv::new();
    let from = format!("type=local,src={}", dir.display());
    let (out, _) = build(&two, &context(&two, "c", &base), &["--cache-from", &from]);
    assert_eq!(out.cached(), STEPS, "{}", out.stderr);
    assert_eq!(numbers(&one, &app), numbers(&two, "it"));

    let three = TestEnv::new();
    let before = registry.requests().len();
    let (out, same) =
        build(&three, &context(&three, "c", &base), &["--cache-from", &app, "--build-arg", "BUILDKIT_INLINE_CACHE=1"]);
    assert_eq!(out.cached(), STEPS, "{}", out.stderr);
    assert_eq!(id, same);
    assert!(downloads(&registry, before).is_disjoint(&layers(&raw(&registry, "--raw", "app"))));
    assert_eq!(numbers(&one, &app), numbers(&three, "it"));
    // Who builds upon that image does not inherit its cache.
    let upon = one.dockerfile("upon", &format!("FROM {app}\n"));
    one.build(&upon, &["-t", "upon"]).ok();
    one.rbuild(["inspect", "upon"]).ok().lacks("buildkit.cache");
}

#[test]
fn a_cache_that_lost_its_layers_is_a_miss() {
    if !require(NEEDED) {
        return;
    }
    let registry = Registry::plain();
    let base = put_base(&registry);
    let (one, two) = (TestEnv::new(), TestEnv::new());
    let cache = registry.name("cache");
    let own = layers(&raw(&registry, "--raw", "team/base:1"));
    build(&one, &context(&one, "c", &base), &["--cache-to", &format!("type=registry,ref={cache},mode=max")]);
    for layer in layers(&raw(&registry, "--raw", "cache")).difference(&own) {
        fs::remove_file(registry_data(&registry, layer)).expect("it is there");
    }
    // A step follows that nobody has, so that the layers are needed.
    let text = fs::read_to_string(one.path("c/Dockerfile")).expect("ours") + "RUN cat /first /from/made /last > /all\n";
    let there = context(&two, "c", &base).file("Dockerfile", text);
    let (out, _) = build(&two, &there, &["--cache-from", &cache]);
    assert!(out.stderr.contains("cannot be had"), "{}", out.stderr);
    assert_eq!(two.run("it", &["cat", "/all"]).ok().stdout.lines().count(), 4);
    // And the result is whole.
    let archive = two.path("out.tar");
    two.build(&there, &["-o", &format!("type=oci,dest={}", archive.display())]).ok();
    Layout::from_archive(&archive).image();
}

#[test]
fn what_is_no_cache_is_a_warning() {
    if !require(NEEDED) {
        return;
    }
    let registry = Registry::plain();
    let base = put_base(&registry);
    let env = TestEnv::new();
    let here = context(&env, "c", &base);
    let nothing = registry.name("no/such:cache");
    let (out, _) = build(
        &env,
        &here,
        &["--cache-from", &nothing, "--cache-from", &base, "--cache-from", "type=local,src=/nowhere"],
    );
    assert_eq!((out.cached(), out.stderr.matches("is not used").count()), (0, 3), "{}", out.stderr);
    // Neither does a directory of traps.
    let trap = env.path("trap");
    fs::create_dir_all(trap.join("blobs/sha256")).expect("ours");
    for index in [
        "{".to_owned(),
        "[]".to_owned(),
        json!({ "manifests": [{ "digest": "sha256:../../../etc/passwd", "annotations": { "org.opencontainers.image.ref.name": "latest" } }] }).to_string(),
        json!({ "manifests": [{ "digest": format!("sha256:{}", "0".repeat(64)), "annotations": { "org.opencontainers.image.ref.name": "latest" } }] }).to_string(),
    ] {
        fs::write(trap.join("index.json"), index).expect("ours");
        let from = format!("type=local,src={}", trap.display());
        let (out, _) = build(&env, &here, &["--no-cache-filter", "made", "--cache-from", &from]);
        assert!(out.code == Some(0), "{}", out.stderr);
        here.write("app", out.stderr);
    }

    env.build(&here, &["--cache-to", "type=registry,ref=127.0.0.1:1/x"])
        .timeout(60)
        .run()
        .exits(4)
        .contains("127.0.0.1:1/x");
    let ignored = env.build(&here, &["--cache-to", "type=registry,ref=127.0.0.1:1/x,ignore-error=true"]).timeout(60);
    ignored.ok().contains("was not exported");
    env.build(&here, &["--cache-to", "type=gha"]).run().exits(2).contains("type=gha is not supported");
}

/// Rewrites a cache of ours as BuildKit would have written it: the same blobs and digests, and records that hang on each other,
/// without what only we write.
fn as_buildkit_writes_it(layout: &Path) {
    let blobs = layout.join("blobs/sha256");
    let read = |path: &Path| serde_json::from_slice::<Value>(&fs::read(path).expect("it is there")).expect("JSON");
    let blob = |descriptor: &Value| {
        let digest = descriptor["digest"].as_str().expect("a digest");
        blobs.join(digest.strip_prefix("sha256:").expect("sha256"))
    };
    let put = |document: &Value, descriptor: &mut Value| {
        let text = document.to_string();
        let digest = hex::encode(Sha256::digest(&text));
        fs::write(blobs.join(&digest), &text).expect("ours");
        descriptor["digest"] = format!("sha256:{digest}").into();
        descriptor["size"] = text.len().into();
    };
    let mut index = read(&layout.join("index.json"));
    let mut manifest = read(&blob(&index["manifests"][0]));
    let mut config = read(&blob(&manifest["config"]));
    for layer in config["layers"].as_array_mut().expect("layers") {
        layer.as_object_mut().expect("a layer").retain(|member, _| ["blob", "parent"].contains(&member.as_str()));
    }
    for (number, record) in config["records"].as_array_mut().expect("records").iter_mut().enumerate() {
        record.as_object_mut().expect("a record").retain(|member, _| ["digest", "layers"].contains(&member.as_str()));
        if number > 0 {
            record["inputs"] = json!([[{ "selector": record["digest"], "link": number - 1 }], [{ "link": 0 }]]);
        }
    }
    put(&config, &mut manifest["config"]);
    put(&manifest, &mut index["manifests"][0]);
    fs::write(layout.join("index.json"), index.to_string()).expect("ours");
}

#[test]
fn a_cache_of_buildkits_is_named_as_such_and_never_a_hit() {
    if !require(NEEDED) {
        return;
    }
    let registry = Registry::plain();
    let base = put_base(&registry);
    let one = TestEnv::new();
    let dir = one.path("cache");
    let here = context(&one, "c", &base);
    let to = format!("type=local,dest={},mode=max", dir.display());
    build(&one, &here, &["--cache-to", &to]);
    // Even where its digests are our keys.
    as_buildkit_writes_it(&dir);
    let two = TestEnv::new();
    let from = format!("type=local,src={}", dir.display());
    let (out, _) = build(&two, &context(&two, "c", &base), &["--cache-from", &from]);
    assert_eq!(out.cached(), 0, "{}", out.stderr);
    let said = out.stderr.lines().filter(|line| line.contains("is BuildKit's: it finds its")).count();
    assert_eq!(said, 1, "{}", out.stderr);
    assert_ne!(numbers(&one, "it"), numbers(&two, "it"));

    // Who writes that name is told what becomes of it, and the next has a cache of ours there.
    let (out, _) = build(&two, &here, &["--cache-to", &to]);
    assert!(out.stderr.contains("was BuildKit's and is replaced"), "{}", out.stderr);
    let three = TestEnv::new();
    let (out, _) = build(&three, &here, &["--cache-from", &from]);
    assert_eq!(out.cached(), STEPS, "{}", out.stderr);
    assert!(!out.stderr.contains("BuildKit"), "{}", out.stderr);
    assert_eq!(numbers(&two, "it"), numbers(&three, "it"));
}

#[test]
fn jobs_that_write_one_name_keep_each_others_results() {
    if !require(NEEDED) {
        return;
    }
    let registry = Registry::plain();
    let base = put_base(&registry);
    let (cache, dir) = (registry.name("cache"), tempfile::tempdir().expect("a temporary directory"));
    let local = dir.path().join("cache");
    let envs: Vec<TestEnv> = (0..4).map(|_| TestEnv::new()).collect();
    let place = |env: &TestEnv, n: usize| env.dockerfile("c", &format!("FROM {base}\nRUN echo {n}; {RANDOM} > /id\n"));
    let run = |env: &TestEnv, n: usize| {
        env.build(&place(env, n), &["-t", "it"])
            .args(["--cache-to", &format!("type=registry,ref={cache},mode=max")])
            .args(["--cache-to", &format!("type=local,dest={},mode=max", local.display())])
            .spawn()
    };
    let running: Vec<_> = envs.iter().enumerate().map(|(n, env)| run(env, n)).collect();
    for running in running {
        running.finish().success();
    }
    for (n, env) in envs.iter().enumerate() {
        let expected = env.run("it", &["cat", "/id"]).ok().stdout;
        for from in [cache.clone(), format!("type=local,src={}", local.display())] {
            let other = TestEnv::new();
            let (out, _) = build(&other, &place(&other, n), &["--cache-from", &from]);
            assert_eq!(out.cached(), 1, "{}", out.stderr);
            assert_eq!(other.run("it", &["cat", "/id"]).ok().stdout, expected);
        }
    }
}

/// Bytes of the manifest that a name leads to.
fn manifest_file(registry: &Registry, name: &str) -> String {
    registry
        .skopeo("inspect")
        .args(["--tls-verify=false", "--raw"])
        .arg(format!("docker://{}", registry.name(name)))
        .ok()
        .stdout
}

/// A mirror may show what was there before: what is written is merged with what the registry itself has.
#[test]
fn what_a_mirror_shows_is_not_written_back() {
    if !require(NEEDED) {
        return;
    }
    let (registry, mirror) = (Registry::plain(), Registry::plain());
    let base = put_base(&registry);
    let to = |registry: &Registry| format!("type=registry,ref={},mode=max", registry.name("cache"));
    let steps = |env: &TestEnv, n: u32| env.dockerfile("c", &format!("FROM {base}\nRUN echo {n}; {RANDOM} > /id\n"));
    let (old, one, two) = (TestEnv::new(), TestEnv::new(), TestEnv::new());
    build(&old, &steps(&old, 0), &["--cache-to", &to(&mirror)]);
    build(&one, &steps(&one, 1), &["--cache-to", &to(&registry)]);
    two.configure(&format!("[registry.\"{}\"]\nmirrors = [\"{}\"]\n", registry.host(), mirror.host()));
    let before = manifest_file(&mirror, "cache");
    let (out, _) = build(&two, &steps(&two, 2), &["--cache-to", &to(&registry)]);
    out.lacks("others write");
    assert_eq!(manifest_file(&mirror, "cache"), before);
    for n in [1, 2] {
        let three = TestEnv::new();
        let (out, _) = build(&three, &steps(&three, n), &["--cache-from", &registry.name("cache")]);
        assert_eq!(out.cached(), 1, "{}", out.stderr);
    }
}

/// A registry that has lost a blob refuses what names it. That is no reason to lose the rest.
#[test]
fn a_lost_blob_of_others_costs_no_other_result() {
    if !require(NEEDED) {
        return;
    }
    let registry = Registry::plain();
    let base = put_base(&registry);
    let cache = registry.name("cache");
    let to = format!("type=registry,ref={cache},mode=max");
    let steps = |env: &TestEnv, n: u32| env.dockerfile("c", &format!("FROM {base}\nRUN echo {n}; {RANDOM} > /id\n"));
    let write = |n: u32| {
        let env = TestEnv::new();
        build(&env, &steps(&env, n), &["--cache-to", &to]);
        layers(&raw(&registry, "--raw", "cache"))
    };
    let first = write(1);
    let own = layers(&raw(&registry, "--raw", "team/base:1"));
    let [lost] = &first.difference(&own).collect::<Vec<_>>()[..] else { panic!("{first:?}") };
    assert_eq!(write(2).len(), 3);
    fs::remove_file(registry_data(&registry, lost)).expect("it is there");
    let last = write(3);
    assert!(last.len() == 3 && !last.contains(*lost), "{last:?} without {lost}");
    for n in [2, 3] {
        let env = TestEnv::new();
        let (out, _) = build(&env, &steps(&env, n), &["--cache-from", &cache]);
        assert_eq!(out.cached(), 1, "{}", out.stderr);
        env.run("it", &["cat", "/id"]).ok();
    }
    let env = TestEnv::new();
    build(&env, &steps(&env, 1), &["--cache-from", &cache]);
    env.run("it", &["cat", "/id"]).ok();
}

/// A cache that says it all is read and not written.
#[test]
fn a_cache_to_which_nothing_is_added_stays() {
    if !require(NEEDED) {
        return;
    }
    let registry = Registry::plain();
    let base = put_base(&registry);
    let (one, two) = (TestEnv::new(), TestEnv::new());
    let to = format!("type=registry,ref={},mode=max", registry.name("cache"));
    build(&one, &context(&one, "c", &base), &["--cache-to", &to]);
    let (manifest, before) = (manifest_file(&registry, "cache"), registry.requests().len());
    build(&one, &context(&one, "c", &base), &["--cache-to", &to]);
    let (out, _) =
        build(&two, &context(&two, "c", &base), &["--cache-from", &registry.name("cache"), "--cache-to", &to]);
    assert_eq!(out.cached(), STEPS, "{}", out.stderr);
    assert_eq!(manifest_file(&registry, "cache"), manifest);
    let writes = |line: &&String| ["PUT ", "POST ", "PATCH "].iter().any(|verb| line.starts_with(verb));
    let written: Vec<String> = registry.requests().split_off(before).iter().filter(writes).cloned().collect();
    assert!(written.is_empty(), "{written:?}");
    // A step that is done again replaces what was there.
    build(&one, &context(&one, "c", &base), &["--no-cache", "--cache-to", &to]);
    assert_ne!(manifest_file(&registry, "cache"), manifest);
    let three = TestEnv::new();
    build(&three, &context(&three, "c", &base), &["--cache-from", &registry.name("cache")]);
    assert_eq!(numbers(&one, "it"), numbers(&three, "it"));
}

#[test]
fn an_index_of_blobs_is_a_cache_too() {
    if !require(NEEDED) {
        return;
    }
    let registry = Registry::plain();
    let base = put_base(&registry);
    let (one, two) = (TestEnv::new(), TestEnv::new());
    let dir = one.path("cache");
    let to = format!("type=local,dest={},mode=max,image-manifest=false,oci-mediatypes=false", dir.display());
    build(&one, &context(&one, "c", &base), &["--cache-to", &to]);
    let from = format!("type=local,src={}", dir.display());
    let (out, _) = build(&two, &context(&two, "c", &base), &["--cache-from", &from]);
    assert_eq!(out.cached(), STEPS, "{}", out.stderr);
    assert_eq!(numbers(&one, "it"), numbers(&two, "it"));
}

/// Changes the config of a cache in a directory, and makes all digests right again.
fn forge(dir: &std::path::Path, change: impl FnOnce(&mut Value)) {
    let blob = |digest: &str| dir.join("blobs/sha256").join(digest.strip_prefix("sha256:").expect("sha256"));
    let read =
        |digest: &str| -> Value { serde_json::from_slice(&fs::read(blob(digest)).expect("a blob")).expect("JSON") };
    let write = |value: &Value| -> (String, usize) {
        let bytes = value.to_string().into_bytes();
        let digest = graph::Digest::of(&bytes).to_string();
        fs::write(blob(&digest), &bytes).expect("ours");
        (digest, bytes.len())
    };
    let mut index: Value = serde_json::from_slice(&fs::read(dir.join("index.json")).expect("ours")).expect("JSON");
    let mut manifest = read(index["manifests"][0]["digest"].as_str().expect("a digest"));
    let mut config = read(manifest["config"]["digest"].as_str().expect("a digest"));
    change(&mut config);
    let (digest, size) = write(&config);
    (manifest["config"]["digest"], manifest["config"]["size"]) = (digest.into(), size.into());
    let (digest, size) = write(&manifest);
    (index["manifests"][0]["digest"], index["manifests"][0]["size"]) = (digest.into(), size.into());
    fs::write(dir.join("index.json"), index.to_string()).expect("ours");
}

/// What a cache says of contents decides what follows from them: it is compared when a layer is unpacked.
#[test]
fn a_cache_that_lies_about_contents_is_a_miss() {
    let (one, dir) = (TestEnv::busybox(), tempfile::tempdir().expect("a temporary directory"));
    let text = "FROM busybox\nRUN echo evil > /file\nRUN cp /file /copy\n";
    let to = |name: &str| format!("type=local,dest={},mode=max", dir.path().join(name).display());
    let from = |name: &str| format!("type=local,src={}", dir.path().join(name).display());
    let good = text.replace("evil", "good");
    build(&one, &one.dockerfile("good", &good), &["--cache-to", &to("good")]);
    build(&one, &one.dockerfile("evil", text), &["--cache-to", &to("evil")]);
    let config = |name: &str| -> Value {
        let dir = dir.path().join(name);
        let index: Value = serde_json::from_slice(&fs::read(dir.join("index.json")).expect("ours")).expect("JSON");
        let blob = |digest: &Value| {
            let path = dir.join("blobs/sha256").join(&digest.as_str().expect("a digest")[7..]);
            serde_json::from_slice::<Value>(&fs::read(path).expect("a blob")).expect("JSON")
        };
        blob(&blob(&index["manifests"][0]["digest"])["config"]["digest"])
    };
    // Layers and records of /file, in either.
    let layer_of = |config: &Value| -> usize {
        let layers = config["layers"].as_array().expect("layers");
        layers.iter().position(|layer| layer["parent"] == json!(base_of(config))).expect("it is there")
    };
    let (ours, theirs) = (config("good"), config("evil"));
    let truth = ours["layers"][layer_of(&ours)]["rbuild"]["content"].clone();
    let lie = theirs["layers"][layer_of(&theirs)]["rbuild"]["content"].clone();
    assert_ne!(truth, lie);
    let stack = |config: &Value| -> Value {
        let layer = layer_of(config);
        let records = config["records"].as_array().expect("records");
        let record = records.iter().find(|record| record["layers"][0]["layer"] == json!(layer)).expect("a record");
        record["rbuild"]["content"].clone()
    };
    let (true_stack, lying_stack) = (stack(&ours), stack(&theirs));
    let replaced = |config: &mut Value, from: &Value, to: &Value| {
        let text = config.to_string().replace(from.as_str().expect("text"), to.as_str().expect("text"));
        *config = serde_json::from_str(&text).expect("JSON");
    };
    // The result is said to be what the good one is, its layer is not: that does not fit.
    forge(&dir.path().join("evil"), |config| replaced(config, &lying_stack, &true_stack));
    let two = TestEnv::busybox();
    let (out, _) = build(&two, &two.dockerfile("c", text), &["--cache-from", &from("evil")]);
    assert!(out.stderr.contains("contradicts itself"), "{}", out.stderr);
    assert_eq!(two.run("it", &["cat", "/copy"]).ok().line(), "evil");
    // Now the layer is too. That is found out as soon as a step needs it, and nothing is kept of it.
    forge(&dir.path().join("evil"), |config| replaced(config, &lie, &truth));
    let three = TestEnv::busybox();
    let text = text.replace("cp /file", "cat /file && cp /file");
    let (out, _) = build(&three, &three.dockerfile("c", &text), &["--cache-from", &from("evil")]);
    assert!(out.stderr.contains("is not what the cache says"), "{}", out.stderr);
    assert_eq!(three.run("it", &["cat", "/copy"]).ok().line(), "evil");
    let (out, _) = build(&three, &three.dockerfile("good", &good.replace("cp /file", "cat /file && cp /file")), &[]);
    assert_eq!(three.run("it", &["cat", "/copy"]).ok().line(), "good", "{}", out.stderr);
    assert_eq!(out.cached(), 0);
}

fn base_of(config: &Value) -> usize {
    config["layers"].as_array().expect("layers").iter().position(|layer| layer["parent"] == json!(-1)).expect("a base")
}

/// A name for another layer's bytes is found out, whoever gave it; and what this store knows is not changed by others.
#[test]
fn a_cache_that_gives_other_bytes_for_a_layer_is_a_miss() {
    let (one, dir) = (TestEnv::busybox(), tempfile::tempdir().expect("a temporary directory"));
    let text = "FROM busybox\nRUN echo one > /one\nRUN echo two > /two\n";
    let place = dir.path().join("cache");
    build(&one, &one.dockerfile("c", text), &["--cache-to", &format!("type=local,dest={},mode=max", place.display())]);
    forge(&place, |config| {
        let layers = config["layers"].as_array_mut().expect("layers");
        let own: Vec<usize> = (0..layers.len()).filter(|n| layers[*n]["parent"] != json!(-1)).collect();
        let [a, b] = own[..] else { panic!("two layers: {layers:?}") };
        let (first, second) = (layers[a]["blob"].clone(), layers[b]["blob"].clone());
        (layers[a]["blob"], layers[b]["blob"]) = (second, first);
    });
    let two = TestEnv::busybox();
    let from = format!("type=local,src={}", place.display());
    let (out, _) =
        build(&two, &two.dockerfile("c", &format!("{text}RUN cat /one /two > /all\n")), &["--cache-from", &from]);
    assert!(out.stderr.contains("is not the layer"), "{}", out.stderr);
    assert_eq!(two.run("it", &["cat", "/all"]).ok().stdout, "one\ntwo\n");
    two.rbuild(["inspect", "--validate", "it"]).ok();
}

/// What needs to know nothing of its base does not have it fetched.
#[test]
fn a_linked_copy_upon_a_base_moves_no_layer_of_it() {
    if !require(NEEDED) {
        return;
    }
    let registry = Registry::plain();
    let base = put_base(&registry);
    let env = TestEnv::new();
    let context = env.dockerfile("c", &format!("FROM {base}\nCOPY --link app /app\nENV A=b\n")).file("app", "app");
    let before = registry.requests().len();
    let app = registry.name("team/app:1");
    build(&env, &context, &["-t", &app, "--push"]);
    let own = layers(&raw(&registry, "--raw", "team/base:1"));
    assert!(downloads(&registry, before).is_disjoint(&own));
    assert_eq!(env.run(&app, &["cat", "/app"]).ok().stdout, "app");
}
