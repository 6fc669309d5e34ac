//! What the binary prints, as inline snapshots: `cargo insta review` shows what a change makes of them.

mod support;

use insta::assert_snapshot;
use support::{Outcome, TestEnv};

/// The output with what differs from run to run replaced: times, ids, the test's directory.
fn steady(env: &TestEnv, out: &Outcome) -> String {
    let text = out.text().replace(&env.dir().display().to_string(), "DIR");
    text.lines().map(steady_line).collect::<Vec<_>>().join("\n")
}

fn steady_line(line: &str) -> String {
    // The network of steps depends on the machine, the engine at hand too.
    let line = line.split("; hand it to ").next().unwrap_or_default();
    let words: Vec<String> = line.split(' ').map(steady_word).collect();
    words.join(" ")
}

fn steady_word(word: &str) -> String {
    let bare = word.trim_matches(|c: char| "();:,".contains(c));
    let seconds = bare.strip_suffix('s').unwrap_or(bare);
    let is_time = seconds.starts_with(|c: char| c.is_ascii_digit())
        && seconds.contains('.')
        && seconds.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    let hex = bare.strip_prefix("sha256:").unwrap_or(bare);
    let is_id = [12, 64].contains(&hex.len()) && hex.bytes().all(|b| b.is_ascii_hexdigit());
    match (is_time, is_id) {
        (true, _) => word.replace(bare, "T"),
        (_, true) => word.replace(hex, "ID"),
        _ => word.to_owned(),
    }
}

#[track_caller]
fn build(env: &TestEnv, dockerfile: &str, args: &[&str]) -> String {
    let context = env.dockerfile("c", dockerfile);
    let out = env.rbuild(["build"]).args(args).arg(context.dir()).run();
    let text = steady(env, &out);
    text.lines().filter(|line| !line.contains("WARN: RUN steps use")).collect::<Vec<_>>().join("\n")
}

#[test]
fn a_build_in_plain_progress_and_again_from_the_cache() {
    let env = TestEnv::busybox();
    let text = "FROM busybox AS base\nRUN echo hi\nFROM base\nWORKDIR /w\n";
    assert_snapshot!(build(&env, text, &["--progress", "plain", "-t", "app:1"]), @r"
    #1 [internal] load build definition
    #1 DONE T

    #2 [internal] load metadata for docker.io/library/busybox:latest
    #2 DONE T

    #3 [base 1/2] FROM docker.io/library/busybox:latest
    #3 DONE T

    #4 [base 2/2] RUN echo hi
    #4 T hi
    #4 DONE T

    #5 [stage-1 1/1] WORKDIR /w
    #5 DONE T

    #6 exporting to image
    #6 DONE T
    app:1 is in rbuild's store (ID); run it with: rbuild run app:1
    ");
    assert_snapshot!(build(&env, text, &["--progress", "plain", "-t", "app:1"]), @r"
    #1 [internal] load build definition
    #1 DONE T

    #2 [internal] load metadata for docker.io/library/busybox:latest
    #2 DONE T

    #3 [base 1/2] FROM docker.io/library/busybox:latest
    #3 DONE T

    #4 [base 2/2] RUN echo hi
    #4 CACHED

    #5 [stage-1 1/1] WORKDIR /w
    #5 CACHED

    #6 exporting to image
    #6 DONE T
    app:1 is in rbuild's store (ID); run it with: rbuild run app:1
    ");
}

#[test]
fn a_failing_step() {
    let env = TestEnv::busybox();
    let text = "FROM busybox\nRUN echo fine\nRUN echo last words && \\\n    exit 37\n";
    assert_snapshot!(build(&env, text, &["--progress", "quiet"]), @r#"
    ------
     > [3/3] RUN echo last words &&     exit 37:
    T last words
    ------
    Dockerfile:3
    --------------------
       2 |     RUN echo fine
       3 | >>> RUN echo last words && \
       4 | >>>     exit 37
    --------------------
    ERROR: failed to solve: process "/bin/sh -c echo last words &&     exit 37" did not complete successfully: exit code: 37
    hint: rbuild shell opens the step as it was when it failed
    "#);
}

#[test]
fn mistakes_and_what_to_do_about_them() {
    let env = TestEnv::busybox();
    assert_snapshot!(build(&env, "FROM busybox\nRUM x\n", &["--progress", "quiet"]), @r"
    Dockerfile:2:1
    --------------------
       1 |     FROM busybox
       2 | >>> RUM x
         |     ^^^
    --------------------
    ERROR: failed to solve: Dockerfile:2:1: unknown instruction RUM
    hint: did you mean RUN?
    ");
    env.context("c").write("present.txt", "");
    assert_snapshot!(build(&env, "FROM busybox\nCOPY presnt.txt /\n", &["--progress", "quiet"]), @r"
    Dockerfile:2
    --------------------
       1 |     FROM busybox
       2 | >>> COPY presnt.txt /
    --------------------
    ERROR: failed to solve: /presnt.txt: not found in the build context DIR/c
    hint: did you mean present.txt?
    ");
}

#[test]
fn wrong_usage() {
    let env = TestEnv::new();
    assert_snapshot!(steady(&env, &env.rbuild(["build"]).run().exits(2)), @r"
    error: the following required arguments were not provided:
      <PATH>

    Usage: rbuild build --root <DIR> --config <FILE> <PATH>

    For more information, try '--help'.
    ");
    assert_snapshot!(steady(&env, &env.rbuild(["build", "."]).cwd(env.context("empty").dir()).run().exits(1)), @r"
    #1 [internal] load build definition
    #1 ERROR: there is no Dockerfile in .
    ERROR: there is no Dockerfile in .
    hint: name the Dockerfile with -f
    ");
}

#[test]
fn the_version() {
    let env = TestEnv::new();
    assert_eq!(env.rbuild(["--version"]).ok().line(), format!("rbuild {}", env!("CARGO_PKG_VERSION")));
}

#[test]
fn every_command_explains_itself() {
    let env = TestEnv::new();
    let help = env.rbuild(["--help"]).ok().stdout;
    let commands = [
        "build", "history", "images", "import", "inspect", "load", "login", "logout", "pull", "push", "rmi", "run",
        "save", "tag",
    ];
    for command in commands {
        assert!(help.lines().any(|line| line.trim_start().starts_with(command)), "{command} is not in\n{help}");
        let own = env.rbuild([command, "--help"]).ok().stdout;
        assert!(own.contains("Usage: rbuild ") && own.contains(command), "{own}");
    }
}
