//! Ctrl-C and kill -9 at any moment: nothing is left behind, nothing that was reported done is lost.

use std::fs;
use std::net::TcpListener;
use std::time::Duration;

use registry::OCI_MANIFEST;
use registry::fake::{Fake, Fault};
use rustix::process::{Pid, Signal, kill_process};

use crate::support::{Context, Registry, Run, Running, TestEnv, require};

const NEEDED: &[&str] = &["docker-registry", "skopeo", "setpriv"];

fn slow(env: &TestEnv) -> Context {
    // With processes that have left their parent, their session and their terminal, and do not listen.
    let text = "FROM busybox\nRUN mktemp -u > /id\n\
                RUN (setsid sh -c 'trap \"\" HUP TERM INT; (setsid sleep 300 &) ; sleep 300' &) ; echo under way; sleep 300\n";
    env.dockerfile("c", text)
}

#[test]
pub(crate) fn ctrl_c_ends_the_build_and_its_steps() {
    let env = TestEnv::busybox();
    let context = slow(&env);
    let mut build = env.build(&context, &["-t", "it"]).timeout(30).spawn();
    build.wait_for("under way");
    build.signal_group(Signal::INT);
    let out = build.finish();
    assert_eq!(out.code, Some(130), "{}", out.text());
    env.assert_clean();
    env.rbuild(["images", "-a"]).ok().lacks("it ");
}

/// A build that was given up once, whose step listens to no signal, and which takes its time to end once it is killed: a process that was brought into
/// it is not collected by its own parent, which is stopped, and until then the kernel does not end the step's first process.
fn reluctant(env: &TestEnv) -> (Running, Running) {
    for attempt in 0..5 {
        let (mut build, visitor) = visited(env, attempt);
        build.signal_group(Signal::INT);
        if build.prints("another Ctrl-C ends it at once") {
            return (build, visitor);
        }
    }
    panic!("no build took its time to end, or none said so");
}

fn visited(env: &TestEnv, attempt: u32) -> (Running, Running) {
    let mark = format!("sleep\0{}\0", 1_000_000 * (attempt + 1) + std::process::id());
    let step = mark.trim_end_matches('\0').replace('\0', " ");
    let text = format!("FROM busybox\nRUN trap '' INT TERM HUP QUIT; echo under way; {step}; {step}\n");
    let context = env.dockerfile("c", &text);
    let mut build = env.build(&context, &["-t", "it"]).timeout(60).spawn();
    build.wait_for("under way");
    let pid = wait_for(|| {
        let all = fs::read_dir("/proc").expect("it is mounted").flatten().map(|entry| entry.path());
        let found = { all }.find(|path| fs::read(path.join("cmdline")).is_ok_and(|line| line == mark.as_bytes()));
        Some(found?.file_name()?.to_string_lossy().into_owned())
    });
    let visitor = env.program("nsenter").args(["-p", "-t", &pid, "sleep", "1000"]).spawn();
    let children = format!("/proc/{0}/task/{0}/children", visitor.pid());
    wait_for(|| fs::read_to_string(&children).ok().filter(|pids| !pids.trim().is_empty()));
    visitor.signal(Signal::STOP);
    (build, visitor)
}

fn wait_for<T>(look: impl Fn() -> Option<T>) -> T {
    for _ in 0..6000 {
        match look() {
            Some(found) => return found,
            None => std::thread::sleep(Duration::from_millis(5)),
        }
    }
    panic!("what the test waits for does not come");
}

#[test]
pub(crate) fn one_ctrl_c_waits_until_the_step_has_ended() {
    if !require(&["nsenter"]) {
        return;
    }
    let env = TestEnv::busybox();
    let (build, visitor) = reluctant(&env);
    visitor.signal(Signal::CONT);
    let out = build.finish().exits(130).contains("CANCELED").contains("the build was cancelled");
    assert!(!out.text().contains("DONE 1"), "{}", out.text());
    drop(visitor);
    env.assert_clean();
    env.rbuild(["builds"]).ok().contains("cancelled");
}

#[test]
pub(crate) fn a_second_ctrl_c_ends_rbuild_at_once_and_all_its_steps() {
    if !require(&["nsenter"]) {
        return;
    }
    let env = TestEnv::busybox();
    let (build, visitor) = reluctant(&env);
    build.signal_group(Signal::INT);
    // The step cannot end yet, and rbuild has.
    build.finish().exits(130).lacks("CANCELED");
    visitor.signal(Signal::CONT);
    drop(visitor);
    env.assert_clean();
    env.build(&env.dockerfile("d", "FROM busybox\nRUN echo later\n"), &["-t", "it"]).ok();
}

#[test]
fn one_ctrl_c_is_enough_for_what_never_comes() {
    let env = TestEnv::busybox();
    let fifo = env.path("fifo");
    env.program("mkfifo").arg(&fifo).ok();
    // Open, so that whoever reads waits.
    let _writer = fs::File::options().read(true).write(true).open(&fifo).expect("our pipe");
    let silent = TcpListener::bind("127.0.0.1:0").expect("loopback");
    let cache = format!("type=registry,ref={}/cache", silent.local_addr().expect("bound"));
    let context = env.dockerfile("c", "FROM busybox\n");
    let stdin = format!("exec \"$@\" < '{}'", fifo.display());
    let from_stdin = |args: &[&str]| {
        let run = env.program("sh").args(["-c", &stdin, "sh", env!("CARGO_BIN_EXE_rbuild"), "build"]);
        run.args(["--progress", "plain"]).args(args)
    };
    let dir = context.dir().to_string_lossy().into_owned();
    for (name, run, shown) in [
        ("a Dockerfile", env.build(&context, &["-f", &fifo.to_string_lossy()]), "load build definition"),
        ("a Dockerfile on standard input", from_stdin(&["-f", "-", &dir]), "load build definition"),
        ("a context on standard input", from_stdin(&["-"]), "load build definition"),
        ("the registry of a cache", env.build(&context, &["--cache-to", &cache]), "exporting cache"),
    ] {
        let mut build = run.timeout(30).spawn();
        build.wait_for(shown);
        std::thread::sleep(Duration::from_millis(50));
        build.signal_group(Signal::INT);
        let out = build.finish();
        assert_eq!(out.code, Some(130), "{name}: {}", out.text());
        assert!(out.text().contains("cancelled"), "{name}: {}", out.text());
    }
}

#[test]
fn the_end_of_a_terminal_is_nothing_to_a_build_with_nohup() {
    let env = TestEnv::busybox();
    let context = env.dockerfile("c", "FROM busybox\nRUN echo under way; sleep 1; echo done\n");
    let run = env.program("nohup").args([env!("CARGO_BIN_EXE_rbuild"), "--progress", "plain"]).arg(context.dir());
    let mut build = run.spawn();
    build.wait_for("under way");
    build.signal_group(Signal::HUP);
    build.finish().success().contains("done");
    // Without, it ends the build.
    let mut build = env.build(&slow(&env), &[]).timeout(30).spawn();
    build.wait_for("under way");
    build.signal_group(Signal::HUP);
    build.finish().exits(130);
}

#[test]
fn sigterm_ends_the_build_and_its_steps() {
    let env = TestEnv::busybox();
    let mut build = env.build(&slow(&env), &["-t", "it"]).timeout(30).spawn();
    build.wait_for("under way");
    build.signal(Signal::TERM);
    assert_ne!(build.finish().code, Some(0));
    env.assert_clean();
}

#[test]
pub(crate) fn kill_9_leaves_nothing_and_loses_nothing() {
    let env = TestEnv::busybox();
    let context = slow(&env);
    let mut build = env.build(&context, &["-t", "it"]).timeout(30).spawn();
    build.wait_for("under way");
    build.signal(Signal::KILL);
    assert_eq!(build.finish().signal, Some(9));
    // Without another start of rbuild: the launcher's end takes all with it.
    env.assert_clean();
    // What was done is known to the next build.
    context.write("Dockerfile", "FROM busybox\nRUN mktemp -u > /id\nRUN echo quick\n");
    let out = env.build(&context, &["-t", "it"]).ok();
    assert_eq!(out.cached(), 1, "{}", out.stderr);
}

#[test]
fn kill_9_at_any_moment_harms_no_later_build() {
    let env = TestEnv::busybox();
    let context = env.dockerfile(
        "c",
        "FROM busybox\nCOPY data /data\nRUN cp -r /data /copy\nRUN rm -r /data && echo x > /new\nCOPY data /again\nRUN ls /again | wc -l > /count\n",
    );
    for n in 0..200 {
        context.write(&format!("data/{n}"), format!("{n}").repeat(100));
    }
    for step in 0..24 {
        // A change each time, so that there is always something to do.
        context.write("data/0", format!("{step}"));
        let build = env.build(&context, &["-t", "it"]).timeout(60).spawn();
        std::thread::sleep(Duration::from_millis(step * 6));
        // It may have ended by itself.
        let _ = kill_process(Pid::from_raw(i32::try_from(build.pid()).expect("a pid")).expect("not 0"), Signal::KILL);
        build.finish();
    }
    env.assert_clean();
    env.build(&context, &["-t", "it"]).ok();
    let sh = "cat /count; ls /copy | wc -l; cat /again/0; cat /new; test ! -e /data && echo gone; for n in 1 7 199; do cat /copy/$n | head -c 3; done";
    assert_eq!(env.run("it", &["sh", "-c", sh]).ok().stdout, "200\n200\n23x\ngone\n111777199");
    // And the store agrees with itself: the image can be written out, digests and all.
    let out = env.path("out.tar");
    env.build(&context, &["-o", &format!("type=oci,dest={}", out.display())]).ok();
    crate::support::Layout::from_archive(&out).image();
}

#[test]
fn kill_9_of_a_run_leaves_nothing() {
    let env = TestEnv::busybox();
    let mut run = env.run("busybox", &["sh", "-c", "echo under way; sleep 300 & sleep 300"]).timeout(30).spawn();
    run.wait_for("under way");
    run.signal(Signal::KILL);
    run.finish();
    env.assert_clean();
}

/// Ends a transfer once the registry has answered `answers` requests, in whichever way. False: it had ended by itself.
fn broken_off(run: Run, registry: &Registry, answers: usize) -> bool {
    let before = registry.requests().len();
    let signal = [Signal::KILL, Signal::INT, Signal::TERM][answers % 3];
    let transfer = run.timeout(60).spawn();
    let pid = Pid::from_raw(i32::try_from(transfer.pid()).expect("a pid")).expect("not 0");
    let started = std::time::Instant::now();
    while registry.requests().len() < before + answers && started.elapsed() < Duration::from_secs(2) {
        std::thread::sleep(Duration::from_micros(500));
    }
    let _ = kill_process(pid, signal);
    let out = transfer.finish();
    let ended = if signal == Signal::KILL { out.signal == Some(9) } else { out.code == Some(130) };
    assert!(
        ended || out.code == Some(0),
        "{signal:?} after {answers}: {:?} {:?}\n{}",
        out.code,
        out.signal,
        out.text()
    );
    ended
}

/// Nothing under way is left in a store, and what `du` counts is what there is.
fn assert_tidy(env: &TestEnv) {
    for place in ["ingest", "active", "trash"] {
        wait_for(|| {
            // No process waits for long until what it threw away is off the disk; the next one goes on.
            env.rbuild(["du"]).ok();
            std::fs::read_dir(env.store().join(place)).expect("a store").next().is_none().then_some(())
        });
    }
}

/// An image of several layers that do not become small.
fn noisy(env: &TestEnv, name: &str) -> Context {
    let mut context = env.context("noisy");
    let mut text = String::from("FROM busybox\n");
    for layer in 1..=5_u32 {
        let mut noise = vec![0_u8; if layer == 1 { 6 << 20 } else { 1 << 20 }];
        noise
            .iter_mut()
            .zip(1_u32..)
            .for_each(|(byte, n)| *byte = ((n + layer).wrapping_mul(2_654_435_761) >> 24) as u8);
        context = context.file(&format!("noise{layer}"), noise);
        text += &format!("COPY noise{layer} /\n");
    }
    let context = context.file("Dockerfile", text);
    env.build(&context, &["-t", name]).ok();
    context
}

#[test]
fn a_push_that_is_broken_off_is_made_good_by_the_next() {
    if !require(NEEDED) {
        return;
    }
    let first = TestEnv::busybox();
    noisy(&first, "it:1");
    let (mut want, mut ended) = (None, 0);
    for answers in 0..20 {
        let registry = Registry::plain();
        let name = registry.name("team/app:1");
        // Some find the layers compressed already, some do not.
        let fresh = TestEnv::busybox();
        let env = if answers % 4 == 0 { &fresh } else { &first };
        let push = match answers % 4 {
            // With uploads that begin before it is known what they will be.
            0 => env.build(&noisy(env, "it:1"), &["-t", &name, "--push"]),
            _ => env.rbuild(["push", &name]),
        };
        env.rbuild(["tag", "it:1", &name]).ok();
        ended += usize::from(broken_off(push, &registry, answers));
        env.rbuild(["push", &name]).ok();
        let got = registry.get("team/app:1", &env.path(format!("got-{answers}"))).image();
        assert_eq!(got.layers.len(), 6);
        // Config and layers are the same wherever the first attempt ended.
        if env.dir() == first.dir() {
            let layers = got.layer_digests();
            assert_eq!(want.get_or_insert_with(|| layers.clone()), &layers);
        }
        env.rbuild(["inspect", "--validate", &name]).ok();
        assert_tidy(env);
        env.assert_clean();
    }
    assert!(ended > 10, "{ended} were in the middle");
}

#[test]
fn a_pull_that_is_broken_off_is_made_good_by_the_next() {
    if !require(NEEDED) {
        return;
    }
    let (made, registry) = (TestEnv::busybox(), Registry::plain());
    let name = registry.name("team/app:1");
    noisy(&made, &name);
    made.rbuild(["push", &name]).ok();
    let mut ended = 0;
    for answers in 0..12 {
        let env = TestEnv::new();
        ended += usize::from(broken_off(env.rbuild(["pull", &name]), &registry, answers));
        env.rbuild(["du"]).ok();
        env.rbuild(["pull", &name]).ok();
        env.rbuild(["inspect", "--validate", &name]).ok();
        assert_tidy(&env);
        assert_eq!(env.run(&name, &["sh", "-c", "cat /noise* | wc -c"]).ok().line(), format!("{}", 10 << 20));
        env.assert_clean();
    }
    assert!(ended > 5, "{ended} were in the middle");
    // What nobody asks for again goes when the store is tidied.
    let env = TestEnv::new();
    let fake = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("threads");
    let registry = fake.block_on(Fake::start()).expect("a port");
    let layer = vec![7_u8; 4 << 20];
    let digest = registry.add_blob("a/b", layer.clone()).digest().to_string();
    let config = format!(
        "{{\"architecture\":\"amd64\",\"os\":\"linux\",\"rootfs\":{{\"type\":\"layers\",\"diff_ids\":[\"{digest}\"]}}}}"
    );
    let config = registry.add_blob("a/b", config);
    let manifest = serde_json::json!({
        "schemaVersion": 2, "mediaType": OCI_MANIFEST,
        "config": { "mediaType": "application/vnd.oci.image.config.v1+json", "digest": config.digest(), "size": config.size() },
        "layers": [{ "mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": digest, "size": layer.len() }],
    });
    registry.add_manifest("a/b", "1", OCI_MANIFEST, manifest.to_string());
    registry.inject(&format!("GET /v2/a/b/blobs/{digest}"), 1, Fault::StallBody(3 << 20));
    let name = format!("{}/a/b:1", registry.host());
    let pull = env.rbuild(["pull", "--platform", "linux/amd64", &name]).timeout(60).spawn();
    // Small blobs come and go there.
    let begun = || {
        let mut files = std::fs::read_dir(env.store().join("ingest")).into_iter().flatten().flatten();
        files.any(|file| file.path().extension().is_some_and(|extension| extension == "partial"))
    };
    while !begun() {
        std::thread::sleep(Duration::from_millis(1));
    }
    pull.signal(Signal::KILL);
    pull.finish();
    assert!(begun());
    env.rbuild(["du"]).ok();
    env.rbuild(["prune", "-f", "-a"]).ok();
    assert_tidy(&env);
    assert_eq!(std::fs::read_dir(env.store().join("blobs/sha256")).expect("a store").count(), 0, "all of it is gone");
}

/// Builds that are killed at random instants, then the question whether any later build is given what belongs to another:
/// each content has its own result, which the image must show.
fn killed_builds_leave_no_wrong_hit(kills: u64, seed: u64) {
    let env = TestEnv::busybox();
    let context = env.dockerfile(
        "c",
        "FROM busybox AS made\nCOPY in /in\nRUN sh -c 'cat /in; echo built' > /out\nFROM busybox\nCOPY --from=made /out /out\nRUN cp /out /last\nCOPY in /in\n",
    );
    let mut random = seed;
    let mut next = |most: u64| {
        // xorshift: any numbers will do, and a failure can be repeated.
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random % most
    };
    for _ in 0..kills {
        context.write("in", format!("{}", next(5)));
        let build = env.build(&context, &["-t", "it"]).timeout(60).spawn();
        std::thread::sleep(Duration::from_micros(next(120_000)));
        // It may have ended by itself.
        build.signal(Signal::KILL);
        build.finish();
        if next(4) == 0 {
            let content = format!("{}", next(5));
            context.write("in", &content);
            env.build(&context, &["-t", "it"]).timeout(60).ok();
            let shown = env.run("it", &["cat", "/last", "/in"]).ok().stdout;
            assert_eq!(shown, format!("{content}built\n{content}"), "seed {seed}");
        }
    }
    env.assert_clean();
    for content in 0..5 {
        context.write("in", content.to_string());
        env.build(&context, &["-t", "it"]).timeout(60).ok();
        let shown = env.run("it", &["cat", "/last", "/in"]).ok().stdout;
        assert_eq!(shown, format!("{content}built\n{content}"), "seed {seed}");
    }
    let out = env.path("out.tar");
    env.build(&context, &["-o", &format!("type=oci,dest={}", out.display())]).ok();
    crate::support::Layout::from_archive(&out).image();
}

#[test]
fn sixty_killed_builds_leave_no_wrong_hit() {
    killed_builds_leave_no_wrong_hit(60, 0x9e37_79b9_7f4a_7c15);
}

#[test]
#[ignore = "takes minutes; continuous integration runs it"]
fn hundreds_of_killed_builds_leave_no_wrong_hit_slow() {
    for seed in 1..=6 {
        killed_builds_leave_no_wrong_hit(60, seed * 0x2545_f491_4f6c_dd1d);
    }
}
