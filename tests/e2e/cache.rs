//! What is done again and what is not. A step that ran leaves a random number in the image; the same number again means
//! that no container was started.

use crate::support::{Context, Outcome, TestEnv};

const RANDOM: &str = "mktemp -u";

fn context(env: &TestEnv) -> Context {
    env.dockerfile(
        "c",
        &format!("FROM busybox\nRUN {RANDOM} > /first\nCOPY a b /in/\nRUN {RANDOM} > /second\nENV X=1\n"),
    )
    .file("a", "a")
    .file("b", "b")
    .file("not-copied", "1")
}

struct Built {
    id: String,
    first: String,
    second: String,
    out: Outcome,
}

#[track_caller]
fn build(env: &TestEnv, context: &Context, args: &[&str]) -> Built {
    let iid = env.path("iid");
    let out = env.build(context, args).args(["-t", "it", "--iidfile"]).arg(&iid).ok();
    let cat = |file: &str| env.run("it", &["cat", file]).ok().stdout;
    Built { id: std::fs::read_to_string(iid).expect("written"), first: cat("/first"), second: cat("/second"), out }
}

#[test]
pub(crate) fn a_second_build_runs_nothing() {
    let env = TestEnv::busybox();
    let context = context(&env);
    let one = build(&env, &context, &[]);
    assert_eq!(one.out.cached(), 0, "{}", one.out.stderr);
    let two = build(&env, &context, &[]);
    assert_eq!(two.out.cached(), 3, "RUN, COPY, RUN: {}", two.out.stderr);
    assert_eq!((one.id, one.first, one.second), (two.id, two.first, two.second));
}

#[test]
pub(crate) fn a_changed_file_is_done_again_from_its_copy_on() {
    let env = TestEnv::busybox();
    let context = context(&env);
    let one = build(&env, &context, &[]);
    context.write("b", "B");
    let two = build(&env, &context, &[]);
    assert_eq!(two.out.cached(), 1, "{}", two.out.stderr);
    assert_eq!(one.first, two.first);
    assert_ne!(one.second, two.second);
    assert_eq!(env.run("it", &["cat", "/in/a", "/in/b"]).ok().line(), "aB");
    // And back: both results are still known.
    context.write("b", "b");
    let three = build(&env, &context, &[]);
    assert_eq!((one.id, one.second), (three.id, three.second));
}

#[test]
fn a_change_of_the_same_size_within_a_second_is_seen() {
    let env = TestEnv::busybox();
    let context = env.dockerfile("c", "FROM busybox\nCOPY f /f\n");
    for n in 0..8 {
        context.write("f", n.to_string());
        env.build(&context, &["-q", "-t", "it"]).ok();
        assert_eq!(env.run("it", &["cat", "/f"]).ok().line(), n.to_string());
    }
}

#[test]
fn times_do_not_matter_and_modes_do() {
    let env = TestEnv::busybox();
    let context = context(&env);
    let one = build(&env, &context, &[]);
    context.touch("a", 1_000_000_000);
    context.touch("Dockerfile", 1_000_000_000);
    context.write("b", "b");
    let two = build(&env, &context, &[]);
    assert_eq!((one.id, one.second, two.out.cached()), (two.id, two.second.clone(), 3));
    let context = context.mode("a", 0o600, "a");
    let three = build(&env, &context, &[]);
    assert_ne!(two.second, three.second, "a mode is content");
}

#[test]
fn what_is_not_copied_does_not_matter() {
    let env = TestEnv::busybox();
    let context = context(&env);
    let one = build(&env, &context, &[]);
    context.write("not-copied", "2");
    context.write("new", "2");
    context.write(
        "Dockerfile",
        format!("# a comment\nFROM busybox\n\nRUN {RANDOM} > /first\nCOPY a b /in/\nRUN {RANDOM} > /second\nENV X=1\n"),
    );
    let two = build(&env, &context, &[]);
    assert_eq!((one.id, two.out.cached()), (two.id, 3), "{}", two.out.stderr);
}

#[test]
fn another_place_or_name_of_the_context_does_not_matter() {
    let env = TestEnv::busybox();
    let one = build(&env, &context(&env), &[]);
    std::fs::rename(env.path("c"), env.path("moved")).expect("ours");
    let two = build(&env, &env.context("moved"), &[]);
    assert_eq!((one.id, two.out.cached()), (two.id, 3));
}

#[test]
fn no_cache_does_everything_again() {
    let env = TestEnv::busybox();
    let context = context(&env);
    let one = build(&env, &context, &[]);
    let two = build(&env, &context, &["--no-cache"]);
    assert_eq!(two.out.cached(), 0, "{}", two.out.stderr);
    assert_ne!(one.first, two.first);
    assert_ne!(one.second, two.second);
    // What was made instead is what later builds find.
    let three = build(&env, &context, &[]);
    assert_eq!((two.id, two.second), (three.id, three.second));
}

#[test]
fn a_build_arg_matters_where_it_is_declared() {
    let env = TestEnv::busybox();
    let context = env
        .dockerfile("c", &format!("FROM busybox\nRUN {RANDOM} > /first\nARG V=1\nRUN echo $V && {RANDOM} > /second\n"));
    let one = build(&env, &context, &[]);
    let two = build(&env, &context, &["--build-arg", "V=2"]);
    assert_eq!(one.first, two.first);
    assert_ne!(one.second, two.second);
    let three = build(&env, &context, &["--build-arg", "V=1"]);
    assert_eq!(one.second, three.second);
}

#[test]
fn a_step_whose_inputs_have_the_same_content_is_not_run_again() {
    let env = TestEnv::busybox();
    let text = |comment: &str| {
        format!(
            "FROM busybox AS made\nRUN echo {comment} > /dev/null; echo stable > /out\nFROM busybox\nCOPY --from=made /out /first\nRUN {RANDOM} > /second\n"
        )
    };
    let one = build(&env, &env.dockerfile("c", &text("one")), &[]);
    let two = build(&env, &env.dockerfile("c", &text("two")), &[]);
    assert_eq!(one.second, two.second, "the first stage ran again and made the same: {}", two.out.stderr);
}

#[test]
pub(crate) fn a_step_that_failed_is_run_again() {
    let env = TestEnv::busybox();
    let context =
        env.dockerfile("c", "FROM busybox\nRUN --mount=type=cache,target=/c test -e /c/x || { touch /c/x; exit 3; }\n");
    env.build(&context, &["-t", "it"]).run().exits(1);
    env.build(&context, &["-t", "it"]).ok();
}

#[test]
fn a_base_under_another_name_is_the_same_base() {
    let env = TestEnv::busybox();
    let one = build(&env, &context(&env), &[]);
    env.rbuild(["tag", "busybox", "renamed:9"]).ok();
    let text = std::fs::read_to_string(env.path("c/Dockerfile")).expect("ours");
    let context = context(&env).file("Dockerfile", text.replace("FROM busybox", "FROM renamed:9"));
    let two = build(&env, &context, &[]);
    assert_eq!((one.second, two.out.cached()), (two.second, 3), "{}", two.out.stderr);
}

#[test]
fn a_secret_counts_only_where_it_is_told_to() {
    let env = TestEnv::busybox();
    let context =
        env.dockerfile("c", "FROM busybox\nRUN --mount=type=secret,id=token cat /run/secrets/token | md5sum > /sum\n");
    let run = |value: &str, more: &str| {
        std::fs::write(env.path("token"), value).expect("ours");
        let spec = format!("id=token,src={}{more}", env.path("token").display());
        let out = env.build(&context, &["-t", "it", "--explain", "--secret", &spec]).ok();
        (out.cached(), out.stderr)
    };
    assert_eq!(run("canary-one", "").0, 0);
    assert_eq!(run("canary-two", "").0, 1, "a secret is not in the key");
    assert_eq!(run("canary-one", ",cache-key=true").0, 0);
    assert_eq!(run("canary-one", ",cache-key=true").0, 1);
    let (cached, text) = run("canary-two", ",cache-key=true");
    assert_eq!(cached, 0);
    assert!(text.contains("the value of a secret changed"), "{text}");
    assert_eq!(run("canary-one", ",cache-key=true").0, 1, "and back");
    env.build(&context, &["--secret", "id=token,cache-key=maybe"]).run().exits(2).contains("cache-key");
    // Neither value nor its plain hash is anywhere in the store.
    let plain = env.program("sh").args(["-c", "printf %s canary-two | sha256sum | cut -d' ' -f1"]).ok().stdout;
    for needle in ["canary-two", plain.trim()] {
        assert_eq!(env.program("grep").args(["-rlaF", needle]).arg(env.store()).run().stdout, "", "{needle}");
    }
}

#[test]
fn the_same_inputs_at_another_place_time_and_umask_give_the_same_image() {
    let (one, two) = (TestEnv::busybox(), TestEnv::busybox());
    let text = "FROM busybox AS a\nWORKDIR /w\nCOPY --chmod=755 d d\nRUN cp d/x y && ln d/x z && mkdir q\n\
                FROM busybox\nCOPY --from=a /w /w\nADD d/x /added\nRUN touch /t\n";
    let build = |env: &TestEnv, place: &str, seconds: u64| {
        let context = env.dockerfile(place, text).file("d/x", "x").file("d/y/z", "z").link("d/l", "x");
        for file in ["d/x", "d/y/z", "d/l", "d/y", "d", "Dockerfile"] {
            context.touch(file, seconds);
        }
        let run = env.build(&context, &["-t", "it"]).env("SOURCE_DATE_EPOCH", "1700000000").env("TZ", "Asia/Kathmandu");
        run.env("LANG", "tr_TR.UTF-8").ok();
        let keys = env.rbuild(["builds", "inspect", "--format", "json"]).ok().stdout;
        let record: serde_json::Value = serde_json::from_str(&keys).expect("JSON");
        let keys: Vec<_> = record["steps"].as_array().expect("steps").iter().map(|step| step["keys"].clone()).collect();
        let out = env.path("out.tar");
        let run = env.build(&context, &["-o", &format!("type=oci,dest={}", out.display())]);
        run.env("SOURCE_DATE_EPOCH", "1700000000").ok();
        // The config tells when the base was imported, which is another time for each store.
        let layers = crate::support::Layout::from_archive(&out).image().manifest["layers"].clone();
        (layers, keys)
    };
    let (first, keys) = build(&one, "c", 1_750_000_000);
    let (second, other_keys) = build(&two, "some/where/else", 1_760_000_000);
    assert!(keys.iter().filter(|keys| !keys.is_null()).count() >= 6);
    assert_eq!(keys, other_keys);
    assert_eq!(first, second, "with SOURCE_DATE_EPOCH the layers are the same, bit for bit");
}

#[test]
fn a_build_in_which_nothing_changed_reads_no_file_and_mounts_nothing() {
    if !crate::support::require(&["strace"]) {
        return;
    }
    let env = TestEnv::busybox();
    let context = env.dockerfile("c", "FROM busybox\nCOPY src /src\nRUN ls /src\nCOPY --from=busybox /bin/sh /sh\n");
    for n in 0..500 {
        context.write(&format!("src/{}/file{n}", n % 20), format!("{n}"));
        context.write(&format!("ignored/{}/file{n}", n % 20), format!("{n}"));
    }
    context.write(".dockerignore", "ignored\n");
    env.build(&context, &["-t", "it"]).ok();
    // Files changed within the clock's tick are looked at once more.
    std::thread::sleep(std::time::Duration::from_millis(100));
    env.build(&context, &["-t", "it"]).ok();
    let log = env.path("strace");
    let traced = env
        .program("strace")
        .args(["-f", "-e", "trace=openat,open,mount,fsopen,fsmount,connect,pivot_root,execve", "-o"])
        .arg(&log)
        .arg(env!("CARGO_BIN_EXE_rbuild"))
        .args(["build", "--progress", "plain", "-t", "it"])
        .arg(context.dir())
        .ok();
    assert_eq!(traced.cached(), 3, "{}", traced.stderr);
    let calls = std::fs::read_to_string(&log).expect("strace wrote it");
    let of = |what: &str| calls.lines().filter(|line| line.contains(what)).collect::<Vec<_>>();
    assert!(of("/file").is_empty() && of("\"file").is_empty(), "{:?} {:?}", of("/file"), of("\"file"));
    assert!(of("ignored/").is_empty(), "{:?}", of("ignored/"));
    // Whether there are overlays may be asked; none is mounted.
    for call in ["AF_INET", "fsmount(", "pivot_root("] {
        assert!(of(call).is_empty(), "{call}: {:?}", of(call));
    }
    // Neither layers nor their indexes: of blobs only configs and manifests, which are small.
    assert!(of("/snapshots/").is_empty() && of("/indexes/").is_empty(), "{calls}");
}
