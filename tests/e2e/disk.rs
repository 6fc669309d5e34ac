//! What takes space, taking it back, a limit that is kept, a disk that is full.

use std::fs;
use std::io::Write as _;
use std::path::Path;

use serde_json::Value;

use crate::support::{Context, Outcome, Run, TestEnv, require, require_root};

fn context(env: &TestEnv, name: &str, text: &str) -> Context {
    env.dockerfile(name, &format!("FROM busybox\n{text}"))
}

/// Bytes of a directory as du(1) has them.
fn on_disk(directory: &Path) -> u64 {
    let out = Run::new("du").args(["-s", "-B1"]).arg(directory).ok();
    out.stdout.split_whitespace().next().and_then(|number| number.parse().ok()).expect("du prints a number")
}

fn usage(env: &TestEnv, args: &[&str]) -> Value {
    let out = env.rbuild(["du", "--format", "json"]).args(args).ok();
    serde_json::from_str(&out.stdout).expect("one object")
}

fn items<'a>(usage: &'a Value, kind: &str) -> Vec<&'a Value> {
    usage["items"].as_array().expect("items").iter().filter(|item| item["type"] == kind).collect()
}

fn reclaimed(out: &Outcome) -> &str {
    out.stdout.lines().find_map(|line| line.strip_prefix("Total reclaimed space: ")).expect("the last line says it")
}

const STEPS: &str = "RUN head -c 3000000 /dev/urandom > /first
COPY f /f
RUN --mount=type=cache,target=/c,id=apt head -c 2000000 /dev/urandom > /c/kept && ln /f /g
";

#[test]
fn the_sums_are_what_the_disk_says_and_each_item_says_what_keeps_it() {
    let env = TestEnv::busybox();
    let context = context(&env, "c", STEPS).file("f", "x".repeat(100_000));
    env.build(&context, &["-t", "app"]).ok();
    env.build(&context, &["-o", "type=oci,dest=/dev/null"]).ok();
    let usage = usage(&env, &[]);
    let sum: u64 =
        usage["items"].as_array().expect("items").iter().map(|item| item["size"].as_u64().expect("bytes")).sum();
    assert_eq!(usage["total"], sum);
    // The lease of the command itself is gone afterwards.
    let (said, is) = (sum, on_disk(&env.store()));
    assert!(said.abs_diff(is) <= 16 << 10, "{said} and {is}");

    let layers = items(&usage, "regular");
    let first = layers.iter().find(|layer| layer["description"].as_str().is_some_and(|text| text.contains("/first")));
    let first = first.unwrap_or_else(|| panic!("{usage:#}"));
    assert!(first["size"].as_u64() >= Some(3_000_000), "{first}");
    assert_eq!((&first["reclaimable"], &first["inUse"]), (&Value::Bool(false), &Value::Bool(false)), "{first}");
    let kept_by = first["keptBy"].to_string();
    assert!(kept_by.contains("image docker.io/library/app:latest") && kept_by.contains("build cache"), "{kept_by}");
    let mounts = items(&usage, "exec.cachemount");
    assert_eq!(mounts.len(), 1);
    assert!(mounts[0]["size"].as_u64() >= Some(2_000_000), "{}", mounts[0]);
    assert!(
        mounts[0]["description"].as_str().is_some_and(|text| text.starts_with("cache mount ") && text.ends_with("apt")),
        "{}",
        mounts[0]
    );

    let verbose = env.rbuild(["du", "--verbose"]).ok();
    for line in ["Kept by:     image docker.io/library/app:latest", "Type:        exec.cachemount", "Total:       "] {
        assert!(verbose.stdout.contains(line), "{line:?}: {}", verbose.stdout);
    }
    let table = env.rbuild(["builder", "du"]).ok();
    assert!(table.stdout.starts_with("ID ") && table.stdout.contains("Reclaimable: "), "{}", table.stdout);
    assert_eq!(env.rbuild(["du", "--filter", "colour=red"]).run().code, Some(2));
    let only = self::usage(&env, &["--filter", "type=exec.cachemount"]);
    assert_eq!(only["items"].as_array().map(Vec::len), Some(1));
}

#[test]
fn pruning_takes_the_cache_and_leaves_the_images() {
    let env = TestEnv::busybox();
    let app = context(&env, "c", STEPS).file("f", "x");
    env.build(&app, &["-t", "app"]).ok();
    let other = context(&env, "d", "RUN head -c 5000000 /dev/urandom > /other\n");
    env.build(&other, &["-o", "type=cacheonly"]).ok();

    // Nothing is old, and nobody said yes.
    assert_eq!(reclaimed(&env.rbuild(["prune", "-f", "--filter", "until=24h"]).ok()), "0B");
    env.rbuild(["prune"]).run().exits(1).contains("nobody answered");
    env.rbuild(["prune"]).stdin("n\n").run().exits(1).contains("Are you sure");
    assert_eq!(env.build(&other, &["-o", "type=cacheonly"]).ok().cached(), 1);

    // One kind, one item.
    let out = env.rbuild(["prune", "-f", "--filter", "type=exec.cachemount"]).ok();
    assert!(reclaimed(&out).ends_with("MB"), "{}", out.stdout);
    assert_eq!(env.build(&app, &["-t", "app"]).ok().cached(), 3);
    assert!(items(&usage(&env, &[]), "exec.cachemount").is_empty());
    let id = items(&usage(&env, &[]), "regular")
        .iter()
        .find(|item| item["description"].as_str().is_some_and(|text| text.contains("/other")))
        .and_then(|item| item["id"].as_str().map(str::to_owned))
        .expect("it is listed");
    let before = on_disk(&env.store());
    env.rbuild(["prune", "-f", "--filter"]).arg(format!("id={}", &id[7..19])).ok().contains(&id[7..19]);
    assert!(before.saturating_sub(on_disk(&env.store())) >= 4_800_000);
    assert_eq!(env.build(&app, &["-t", "app"]).ok().cached(), 3, "the others stay");

    // Everything: the image stays, its steps are forgotten.
    let before = on_disk(&env.store());
    let out = env.rbuild(["builder", "prune"]).stdin("y\n").run().exits(0);
    assert!(out.stdout.contains("Total reclaimed space: "), "{}", out.stdout);
    assert!(on_disk(&env.store()) <= before);
    env.run("app", &["test", "-s", "/first"]).ok();
    assert_eq!(env.build(&app, &["-t", "app"]).ok().cached(), 0);
}

#[test]
fn filters_mean_what_they_mean_to_buildx() {
    let env = TestEnv::busybox();
    let app = context(&env, "c", "RUN --mount=type=cache,target=/c echo 1 | tee /c/x > /one\nRUN echo two > /two\n");
    env.build(&app, &["-o", "type=cacheonly"]).ok();
    let other = context(&env, "d", "RUN echo other > /other\n");
    env.build(&other, &["-o", "type=cacheonly"]).ok();
    let described = |filters: &[&str]| -> Vec<String> {
        let args: Vec<&str> = filters.iter().flat_map(|filter| ["--filter", *filter]).collect();
        let usage = usage(&env, &args);
        let items = usage["items"].as_array().expect("items").iter();
        let mut all: Vec<String> = items
            .map(|item| {
                let text = item["description"].as_str().unwrap_or_default();
                let known = ["/one", "/two", "/other", "cache mount"].into_iter().find(|known| text.contains(known));
                known.unwrap_or(item["type"].as_str().expect("a type")).to_owned()
            })
            .collect();
        all.sort();
        all.dedup();
        all
    };
    let all = ["/one", "/other", "/two", "cache mount", "image", "internal", "regular"];
    assert_eq!(described(&[]), all);
    assert_eq!(described(&["type!=regular"]), ["cache mount", "image", "internal"]);
    assert_eq!(described(&["type~=^exec", "mutable"]), ["cache mount"]);
    assert_eq!(described(&["type=regular", "description~=> /(one|two)"]), ["/one", "/two"]);
    assert_eq!(
        described(&["immutable", "description!=x", "type!=image", "description~=echo"]),
        ["/one", "/other", "/two"]
    );
    assert_eq!(described(&["mutable=false"]), described(&["immutable"]));
    assert_eq!(described(&["shared"]), described(&["private=false"]));
    assert!(described(&["shared"]).contains(&"regular".to_owned()), "the base, upon which two results stand");
    assert_eq!(described(&["inuse"]), described(&["inuse!=false"]));
    let id = usage(&env, &["--filter", "description~=/one"])["items"][0]["id"].as_str().expect("one").to_owned();
    assert_eq!(described(&[&format!("parents={id}")]), ["/two"]);
    assert_eq!(described(&[&format!("id=={id}")]), ["/one"]);
    assert!(!described(&[&format!("id!={}", &id[7..19])]).contains(&"/one".to_owned()));

    for (wrong, why) in [
        ("description~=(", "is no regular expression"),
        ("until!=1h", "is not supported"),
        ("shared~=x", "is not supported"),
        ("type!=nothing", "there is type=regular"),
        ("type", "is not supported"),
        ("colour=red", "there is until=AGE"),
    ] {
        for command in ["du", "prune"] {
            let force: &[&str] = if command == "prune" { &["-f"] } else { &[] };
            env.rbuild([command]).args(force).args(["--filter", wrong]).run().exits(2).contains(why);
        }
    }

    // What goes is what is listed, and what stands on it; what an exception names stays with all that lies below it.
    let prune = |filter: &str| env.rbuild(["prune", "-f", "--filter", filter]).ok();
    prune("description~=nothing of that kind");
    assert_eq!(described(&[]), all);
    prune(&format!("id!={id}"));
    assert_eq!(described(&["type=regular", "description~=echo"]), ["/one"]);
    prune("mutable");
    assert!(!described(&[]).contains(&"cache mount".to_owned()));
    env.build(&app, &["-o", "type=cacheonly"]).ok();
    assert_eq!(described(&["description~=echo"]), ["/one", "/two"]);
    prune("description~=/one");
    assert_eq!(described(&["description~=echo"]), Vec::<String>::new());
}

#[test]
fn what_a_running_build_uses_is_not_taken() {
    let env = TestEnv::busybox();
    let text = "RUN --mount=type=cache,target=/c echo 1 > /c/x && echo one > /one\nRUN --mount=type=cache,target=/c echo waiting && while ! test -e /c/go; do sleep 0.05; done; cat /c/x /one\n";
    let app = context(&env, "c", text);
    let mut build = env.build(&app, &["-o", "type=cacheonly"]).spawn();
    build.wait_for("waiting");
    let used = usage(&env, &["--filter", "inuse=true"]);
    assert!(items(&used, "regular").iter().any(|item| item["keptBy"].to_string().contains("process ")), "{used:#}");
    assert_eq!(items(&used, "exec.cachemount").len(), 1, "{used:#}");
    env.rbuild(["prune", "-a", "-f"]).ok();
    env.rbuild(["system", "prune", "-f"]).ok();
    let mount =
        fs::read_dir(env.store().join("cache-mounts")).expect("ours").flatten().next().expect("it is still there");
    fs::write(mount.path().join("go"), "").expect("ours");
    build.finish().success().contains("one");
}

#[test]
fn a_limit_is_kept_and_the_least_recently_used_goes_first() {
    let env = TestEnv::busybox();
    const LIMIT: u64 = 40_000_000;
    env.configure("[gc]\nmax-used-space = \"40MB\"\n");
    let build = |number: u32| {
        let text =
            format!("RUN head -c 9000000 /dev/urandom > /{number}\nRUN head -c 3000000 /dev/urandom > /more{number}\n");
        let context = context(&env, &format!("c{number}"), &text);
        env.build(&context, &["-o", "type=cacheonly"]).ok().cached()
    };
    for number in 0..5 {
        assert_eq!(build(number), 0);
        let size = on_disk(&env.store());
        assert!(size <= LIMIT, "{size} after build {number}");
    }
    assert_eq!(build(4), 2, "the latest is still there");
    assert_eq!(build(0), 0, "the first went");
    // By a flag, with images that cannot go.
    let kept = context(&env, "kept", "RUN head -c 9000000 /dev/urandom > /kept\n");
    let out = env.build(&kept, &["-t", "kept", "--max-used-space", "5MB"]).ok();
    assert!(out.stderr.contains("more than max-used-space"), "{}", out.stderr);
    env.run("kept", &["test", "-s", "/kept"]).ok();
    assert!(on_disk(&env.store()) < 25_000_000, "all but what the images keep is gone");
    env.rbuild(["prune", "-f", "--keep-storage", "1GB"]).ok().contains("reclaimed space: 0B");
    env.build(&kept, &["--max-used-space", "lots"]).run().exits(2);
}

#[test]
fn images_without_a_name_are_listed_and_pruned() {
    let env = TestEnv::busybox();
    let one = context(&env, "one", "RUN echo 1 > /x\n");
    let two = context(&env, "two", "RUN echo 2 > /x\n");
    env.build(&one, &["-t", "app", "-t", "also"]).ok();
    env.build(&two, &["-t", "app"]).ok();
    let none = || env.rbuild(["images", "--filter", "dangling=true", "-q"]).ok().stdout.lines().count();
    assert_eq!(none(), 0, "the other name still holds it");
    env.build(&two, &["-t", "also"]).ok();
    assert_eq!(none(), 1, "its names went to another");
    env.rbuild(["images"]).ok().contains("<none>");
    // A build without a name is not lost.
    let three = context(&env, "three", "RUN echo 3 > /x\n");
    let id = env.build(&three, &["-q"]).ok().line().to_owned();
    assert_eq!(none(), 2);
    assert_eq!(env.run(&id[7..19], &["cat", "/x"]).ok().line(), "3");
    env.rbuild(["tag", &id[7..19], "named"]).ok();
    assert_eq!(none(), 1, "it has a name now");
    let unnamed = env.rbuild(["images", "--filter", "dangling=true", "-q"]).ok().line().to_owned();
    env.rbuild(["rmi", &unnamed]).ok().contains("Deleted: ").lacks("Untagged");
    assert_eq!(none(), 0);

    env.build(&three, &["-t", "named", "--label", "a=b"]).ok();
    assert_eq!(none(), 1);
    env.rbuild(["image", "prune"]).stdin("n\n").run().exits(1);
    let out = env.rbuild(["image", "prune", "-f"]).ok();
    assert!(
        out.stdout.contains("deleted: sha256:") && out.stdout.contains("Total reclaimed space: "),
        "{}",
        out.stdout
    );
    assert_eq!(none(), 0);
    env.run("named", &["cat", "/x"]).ok();
    env.rbuild(["image", "prune", "-a", "-f", "--filter", "until=24h"]).ok();
    env.run("named", &["cat", "/x"]).ok();
    env.rbuild(["image", "prune", "-a", "-f"]).ok().contains("untagged: named:latest");
    assert_eq!(env.rbuild(["images", "-q"]).ok().stdout, "");
    env.rbuild(["system", "prune", "-a", "-f"]).ok();
    assert!(on_disk(&env.store()) < 1_000_000, "an empty store");
}

#[test]
fn a_full_disk_ends_a_build_and_not_the_store() {
    if !require(&["unshare", "mount"]) || !require_root() {
        return;
    }
    let env = TestEnv::new();
    let bin = env!("CARGO_BIN_EXE_rbuild");
    let base = crate::support::busybox_base().tar.display().to_string();
    let d = env.dir().display();
    env.dockerfile("big", "FROM busybox\nCOPY large /large\n").file("large", vec![7; 30_000_000]);
    env.dockerfile("step", "FROM busybox\nRUN head -c 30000000 /dev/urandom > /large\n");
    env.dockerfile("small", "FROM busybox\nRUN echo fits > /x\nRUN cat /x\n");
    let script = format!(
        "mount -t tmpfs -o size=24m tmpfs {store}; chmod 0700 {store}; {bin} import {base} busybox >&2
         for c in big step; do if {bin} build --progress plain -t $c {d}/$c >&2; then exit 3; fi; echo \"$c failed\" >&2; done
         {bin} build --progress plain -t small {d}/small >&2
         {bin} run small cat /x
         {bin} du >&2
         {bin} images",
        store = env.store().display()
    );
    let out = env.program("unshare").args(["-m", "sh", "-ec", &script]).ok();
    assert!(out.stderr.contains("the disk of the store has only"), "{}", out.stderr);
    assert!(out.stderr.contains("rbuild prune"), "what to do is said: {}", out.stderr);
    assert!(out.stdout.starts_with("fits\n") && !out.stdout.contains("big"), "{}", out.stdout);
}

/// A megabyte that stands for a thousand, wherever an archive is taken in.
#[test]
fn archives_that_unfold_stop_before_the_disk_is_full() {
    if !require(&["unshare", "mount"]) || !require_root() {
        return;
    }
    let env = TestEnv::new();
    let bin = env!("CARGO_BIN_EXE_rbuild");
    let gzip = |bytes: &[u8]| {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(bytes).expect("memory takes it");
        gzip.finish().expect("memory takes it")
    };
    let zeros = gzip(&vec![0; 1 << 20]);
    // 300 MiB in all; one gzip stream after the other is one stream.
    let bomb = |name: &str, members: &[String]| {
        let megabytes = 300 / members.len();
        let mut bytes = Vec::new();
        for member in members {
            let mut header = tar::Header::new_gnu();
            header.set_path(member).expect("a short name");
            header.set_size((megabytes as u64) << 20);
            header.set_mode(0o644);
            header.set_cksum();
            bytes.extend(gzip(header.as_bytes()));
            bytes.extend(zeros.repeat(megabytes));
        }
        bytes.extend(gzip(&[0; 1024]));
        std::fs::write(env.path(name), bytes).expect("ours");
        env.path(name).display().to_string()
    };
    let one = bomb("one.tar.gz", &["layer.tar".to_owned()]);
    let many = bomb("many.tar.gz", &(0..100).map(|number| format!("blobs/sha256/{number:064}")).collect::<Vec<_>>());
    let script = format!(
        "mount -t tmpfs -o size=64m tmpfs {store}; chmod 0700 {store}
         try() {{ if \"$@\" >&2; then exit 3; fi; }}
         try {bin} load -i {one}; try {bin} import {one}
         try {bin} copy oci-archive:{many} store:x; try {bin} copy docker-archive:{one} store:x
         {bin} prune -f >&2; du -sm {store}",
        store = env.store().display()
    );
    let out = env.program("unshare").args(["-m", "sh", "-ec", &script]).ok();
    assert_eq!(out.stderr.matches("the disk of the store has only").count(), 4, "{}", out.stderr);
    let left = out.stdout.split_whitespace().next().and_then(|text| text.parse::<u64>().ok());
    assert!(left < Some(8), "{}", out.stdout);
}
