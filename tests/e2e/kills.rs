//! Ctrl-C and kill -9 at any moment: nothing is left behind, nothing that was reported done is lost.

use std::time::Duration;

use rustix::process::Signal;

use crate::support::{Context, TestEnv};

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
        let _ = rustix::process::kill_process(
            rustix::process::Pid::from_raw(i32::try_from(build.pid()).expect("a pid")).expect("not 0"),
            Signal::KILL,
        );
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
