//! `rbuild shell`: steps of builds that are over, opened once more.

use crate::support::{Run, TestEnv, require};

/// Runs `command` in a step by `rbuild shell ARGS -- sh -c command`.
fn inside(env: &TestEnv, args: &[&str], command: &str) -> Run {
    env.rbuild(["shell"]).args(args).args(["--", "sh", "-c", command])
}

const WORLD: &str = "FROM busybox AS other\nRUN mkdir /o && echo other > /o/f\n\
    FROM busybox\nRUN mkdir /w && chown web /w\nENV COLOUR=blue\nUSER web\nWORKDIR /w\n\
    RUN --mount=type=bind,source=conf,target=/mnt/conf --mount=type=bind,from=other,source=/o,target=/mnt/other \\\n\
        --mount=type=cache,id=c,target=/cache,uid=1000 --mount=type=tmpfs,target=/scratch \\\n\
        --mount=type=secret,id=s,env=S --mount=type=secret,id=s,target=/run/s,mode=0444,required=true \\\n\
        echo half > /w/done; echo 1 >> /cache/count; cat /mnt/conf; exit 9\n";

#[test]
pub(crate) fn the_step_that_failed_is_opened_as_it_was() {
    let env = TestEnv::busybox();
    let context = env.dockerfile("c", WORLD).file("conf", "first\n");
    env.path("secret");
    std::fs::write(env.path("secret"), "s3cr3t-value").expect("ours");
    let secret = format!("id=s,src={}", env.path("secret").display());
    let args =
        ["--secret", &secret, "--memory", "64m", "--ulimit", "nofile=77", "--network", "none", "--shm-size", "1m"];
    let out =
        env.build(&context, &args).run().exits(1).contains("exit code: 9").contains("rbuild shell opens the step");
    assert!(!out.text().contains("s3cr3t"), "{}", out.text());
    // What the mount showed is kept, whatever becomes of the context.
    context.write("conf", "changed\n");
    let look = "cat /w/done /mnt/conf /mnt/other/f /cache/count /run/s; echo; echo $S $COLOUR $(id -un) $(pwd) $(ulimit -n); \
                ls /sys/class/net; df -k /dev/shm | tail -n1 | awk '{print $2}'; ls -d /scratch";
    let out = inside(&env, &["--secret", &secret], look).ok();
    let want = "half\nfirst\nother\n1\ns3cr3t-value\ns3cr3t-value blue web /w 77\nlo\n1024\n/scratch\n";
    assert_eq!(out.stdout, want, "{}", out.stderr);
    // The limit holds, and is reported as in a build.
    let out = inside(&env, &["--secret", &secret], "exec tail /dev/zero").run();
    assert!(
        out.code == Some(137) && out.stderr.contains("out of memory, peak 64MiB of 64MiB"),
        "{:?} {}",
        out.code,
        out.text()
    );
    // Secrets are asked for again, since nothing keeps them.
    let out = inside(&env, &[], "true").run().exits(125);
    assert!(out.stderr.contains("no secret \"s\"") && out.stderr.contains("--secret"), "{}", out.stderr);
    let out = env.rbuild(["builds", "inspect", "--format", "json"]).ok();
    assert!(!out.stdout.contains("s3cr3t"), "a secret is in the record");
}

#[test]
fn what_is_changed_in_a_shell_is_gone_and_its_status_is_passed_on() {
    let env = TestEnv::busybox();
    let text =
        "FROM busybox\nRUN echo one > /a\nRUN --mount=type=cache,target=/c [ -e /never ] || { echo b > /b; exit 3; }\n";
    let context = env.dockerfile("c", text);
    env.build(&context, &[]).run().exits(1);
    inside(&env, &[], "echo more >> /a; rm /b; touch /never; echo kept > /c/kept; exit 41").run().exits(41);
    assert_eq!(inside(&env, &[], "cat /a /b /c/kept; [ ! -e /never ]").ok().stdout, "one\nb\nkept\n");
    env.rbuild(["shell", "--", "/no/such"]).run().exits(127);
    inside(&env, &[], "sh -c 'kill -TERM $$'; exit $?").run().exits(143);
    assert_eq!(inside(&env, &[], "cat; echo err >&2").stdin("typed").ok().stdout, "typed");
    // The cached step is as it was, and so is the next failure.
    let out = env.build(&context, &[]).run().exits(1);
    assert_eq!(out.cached(), 1, "{}", out.stderr);
    assert_eq!(inside(&env, &["2/3"], "cat /a; ls /b 2>&1").run().stdout.lines().next(), Some("one"));
}

#[test]
fn steps_that_did_not_fail_are_opened_too() {
    let env = TestEnv::busybox();
    let text = "FROM busybox AS one\nENV A=b\nWORKDIR /w\nCOPY f /copied\nRUN --mount=type=bind,source=f,target=/m cp /m /ran\n\
                FROM one AS two\nRUN echo two > /two\nFROM scratch\nCOPY --from=two /two /\n";
    let context = env.dockerfile("c", text).file("f", "content\n");
    env.build(&context, &[]).ok();
    let out = env.rbuild(["shell", "--", "true"]).run().exits(125);
    assert!(out.stderr.contains("no step") && out.stderr.contains("rbuild shell STEP"), "{}", out.stderr);
    let cached = env.build(&context, &[]).ok();
    assert_eq!(cached.cached(), 5, "{}", cached.stderr);
    assert_eq!(
        inside(&env, &["cp /m"], "pwd; cat /copied /ran /m; echo $A").ok().stdout,
        "/w\ncontent\ncontent\ncontent\nb\n"
    );
    assert_eq!(inside(&env, &["cp /m", "--before"], "ls /ran 2>/dev/null; cat /m").ok().stdout, "content\n");
    assert_eq!(inside(&env, &["COPY f"], "cat /copied; pwd").ok().stdout, "content\n/w\n");
    assert_eq!(inside(&env, &["two"], "cat /two").ok().stdout, "two\n");
    assert_eq!(
        inside(&env, &["two", "-u", "123:45", "-w", "/tmp", "-e", "X=y"], "id -u; id -g; pwd; echo $X").ok().stdout,
        "123\n45\n/tmp\ny\n"
    );
    inside(&env, &["nothing like it"], "true").run().exits(125).contains("no step");
    assert_eq!(inside(&env, &["FROM"], "ls /ran /bin/sh 2>/dev/null").run().stdout, "/bin/sh\n");
    // The context is shown as it is now, and left out where it is gone.
    std::fs::remove_dir_all(context.dir()).expect("ours");
    let out = inside(&env, &["cp /m"], "ls /m 2>&1; cat /ran").run();
    assert!(out.stderr.contains("/m is not kept") && out.stdout.ends_with("content\n"), "{}", out.text());
}

#[test]
pub(crate) fn an_image_without_a_shell_gets_one() {
    if !require(&["busybox"]) {
        return;
    }
    let env = TestEnv::new();
    let context = env
        .dockerfile("c", "FROM scratch\nCOPY f /data/f\nWORKDIR /data\nRUN [\"/no/such/program\"]\n")
        .file("f", "x\n");
    env.build(&context, &[]).run().exits(1).contains("/no/such/program").contains("rbuild shell");
    let out = env.rbuild(["shell"]).stdin("ls / | tr '\\n' ' '; cat f; pwd; exit 6\n").run().exits(6);
    assert!(out.stdout.contains("data") && out.stdout.ends_with("x\n/data\n"), "{}", out.text());
    let out = env.rbuild(["shell", "--shell-binary", "/bin/sh"]).run().exits(125);
    assert!(out.stderr.contains("not linked statically") && out.stderr.contains("busybox-static"), "{}", out.stderr);
    // A person without rights in the image has one as well.
    env.rbuild(["shell", "-u", "1000"]).stdin("id -u; exit\n").ok().contains("1000");
}

#[test]
fn a_shell_on_a_terminal_has_job_control_signals_and_the_windows_size() {
    if !require(&["setsid"]) {
        return;
    }
    let env = TestEnv::busybox();
    let context = env.dockerfile("c", "FROM busybox\nRUN echo left > /left; false\n");
    env.build(&context, &[]).run().exits(1);
    let mut terminal = env.rbuild(["shell"]).env("TERM", "vt100").on_terminal();
    terminal.sees("as it failed: /bin/sh");
    terminal.sees("# ");
    terminal.types("cat /left; echo $TERM\r");
    terminal.sees("left\r\n");
    terminal.sees("vt100");
    terminal.sees("# ");
    terminal.types("exit 23\r");
    assert_eq!(terminal.ends(), Some(23));
    // Ctrl-C ends the program in the foreground and not the shell, Ctrl-Z stops it.
    let jobs = "set -m; stty size; read go; until [ \"$(stty size)\" != '24 80' ]; do sleep 0.05; done; stty size; sh -c 'trap \"exit 5\" INT; echo one; sleep 1000 & wait'; echo ended $?; \
                sh -c 'echo two; exec sleep 2000'; echo stopped $?; jobs; kill -9 %1; exit 24";
    let mut terminal = inside(&env, &[], jobs).on_terminal();
    terminal.sees("24 80");
    terminal.resize(30, 100);
    terminal.types("go\r");
    terminal.sees("30 100");
    terminal.sees("one");
    terminal.types("\x03");
    terminal.sees("ended 5");
    terminal.sees("two");
    terminal.types("\x1a");
    terminal.sees("stopped 148");
    terminal.sees("Stopped");
    assert_eq!(terminal.ends(), Some(24));
    env.assert_clean();
}

#[test]
fn on_error_a_shell_is_opened_at_once() {
    if !require(&["setsid"]) {
        return;
    }
    let env = TestEnv::busybox();
    let context = env.dockerfile("c", "FROM busybox\nRUN --mount=type=secret,id=s,target=/s cp /s /copied; false\n");
    let out = env.build(&context, &["--on-error=shell"]).run().exits(2);
    assert!(out.stderr.contains("needs a terminal"), "{}", out.stderr);
    std::fs::write(env.path("secret"), "value").expect("ours");
    let secret = format!("id=s,src={}", env.path("secret").display());
    let mut terminal = env.build(&context, &["--on-error=shell", "--secret", &secret]).on_terminal();
    terminal.sees("exit code: 1");
    terminal.sees("as it failed");
    terminal.sees("# ");
    terminal.types("cat /s /copied; echo; exit 0\r");
    terminal.sees("valuevalue");
    assert_eq!(terminal.ends(), Some(1), "the build has failed");
    // A build that does not fail opens nothing.
    let fine = env.dockerfile("d", "FROM busybox\nRUN true\n");
    assert_eq!(env.build(&fine, &["--on-error=shell"]).on_terminal().ends(), Some(0));
}

#[test]
fn what_is_kept_is_counted_bounded_and_taken_back() {
    let env = TestEnv::busybox();
    env.configure("[gc]\nfailed-steps = 2\n");
    let size = |env: &TestEnv| {
        let out = env.rbuild(["du", "--verbose"]).ok();
        out.stdout.matches("failed: RUN").count()
    };
    for number in 0..4 {
        let text = format!("FROM busybox\nRUN head -c 300000 /dev/urandom > /f{number}; exit {}\n", number + 1);
        env.build(&env.dockerfile("c", &text), &[]).run().exits(1);
    }
    assert_eq!(size(&env), 2);
    inside(&env, &[], "ls /f3").ok();
    let builds = env.rbuild(["builds", "-q"]).ok();
    let oldest = builds.stdout.lines().last().expect("a build");
    inside(&env, &["--build", oldest], "true").run().exits(125).contains("not kept any more");
    env.rbuild(["prune", "-a", "-f"]).ok();
    assert_eq!(size(&env), 0);
    inside(&env, &[], "true").run().exits(125).contains("not kept any more");
    env.configure("[gc]\nfailed-steps = 0\n");
    env.build(&env.dockerfile("c", "FROM busybox\nRUN false\n"), &[]).run().exits(1).lacks("rbuild shell");
}
