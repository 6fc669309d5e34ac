//! What a person is told when a build fails, and that nothing of it stays.

use crate::support::TestEnv;

#[test]
pub(crate) fn a_failing_step_is_shown_with_its_line_its_status_and_its_last_words() {
    let env = TestEnv::busybox();
    let text = "FROM busybox\n\nRUN echo fine\nRUN for i in 1 2 3; do echo said $i; done; \\\n    echo last words >&2; \\\n    exit 37\nRUN echo never\n";
    let context = env.dockerfile("c", text);
    for mode in ["plain", "quiet", "auto"] {
        let out = env.rbuild(["build", "-t", "broken:1", "--progress", mode]).arg(context.dir()).run().exits(1);
        for part in ["37", "last words", "said 3", "Dockerfile:4", "exit 37"] {
            assert!(out.stderr.contains(part), "--progress={mode}: {part:?} is not in\n{}", out.stderr);
        }
        assert!(!out.text().contains("[4/4]"), "{}", out.text());
        assert_eq!(out.stdout, "");
    }
    env.rbuild(["images", "-a"]).ok().lacks("broken");
    env.assert_clean();
}

#[test]
pub(crate) fn a_step_killed_by_a_signal_says_so() {
    let env = TestEnv::busybox();
    let context = env.dockerfile("c", "FROM busybox\nRUN sh -c 'kill -9 $$'; exit $?\n");
    let out = env.build(&context, &[]).run().exits(1);
    assert!(out.stderr.contains("137"), "{}", out.stderr);
}

#[test]
pub(crate) fn a_command_that_does_not_exist() {
    let env = TestEnv::busybox();
    let context = env.dockerfile("c", "FROM busybox\nRUN [\"/no/such/thing\"]\n");
    env.build(&context, &[]).run().exits(1).contains("/no/such/thing").contains("Dockerfile:2");
    let context = env.dockerfile("d", "FROM busybox\nRUN nosuchcommand --x\n");
    env.build(&context, &[]).run().exits(1).contains("127").contains("nosuchcommand");
}

#[test]
fn a_missing_file_names_itself_and_its_line() {
    let env = TestEnv::busybox();
    let context = env.dockerfile("c", "FROM busybox\nCOPY reqirements.txt /r\n").file("requirements.txt", "");
    let out = env.build(&context, &[]).run().exits(1);
    for part in ["reqirements.txt", "Dockerfile:2", "requirements.txt"] {
        assert!(out.stderr.contains(part), "{part:?} is not in\n{}", out.stderr);
    }
    let context =
        env.dockerfile("i", "FROM busybox\nCOPY a.log /r\n").file("a.log", "").file(".dockerignore", "x\n*.log\n");
    env.build(&context, &[]).run().exits(1).contains("a.log").contains(".dockerignore");
    let text = "FROM busybox\nRUN --mount=type=bind,source=conf.yaml,target=/c cat /c\n";
    let context = env.dockerfile("m", text).file("conf.yml", "");
    let out = env.build(&context, &[]).run().exits(1).contains("/conf.yaml: not found in the build context");
    out.contains("Dockerfile:2").contains("did you mean conf.yml");
    // A pattern in a directory that has nothing for it, as before `mvn package`, and one whose directory is left out.
    let context = env.dockerfile("w", "FROM busybox\nCOPY target/*.jar /app.jar\n").file("target/classes/x", "");
    env.build(&context, &[]).run().exits(1).contains("/target/*.jar: not found in the build context");
    let context = context.file("target/a.jar", "").file(".dockerignore", "target\n");
    env.build(&context, &[]).run().exits(1).contains("excluded by .dockerignore line 1: target");
    env.build(&context.file(".dockerignore", ""), &[]).run().exits(0);
    // Also in another stage, and where the slip is in a directory's name.
    let text = "FROM busybox AS build\nRUN mkdir -p /app/bin && touch /app/bin/tool\nFROM busybox\nCOPY --from=build /ap/bin/tool /\n";
    let out = env.build(&env.dockerfile("s", text), &[]).run().exits(1);
    out.contains("/ap/bin/tool: not found in the source image or stage").contains("did you mean app/bin/tool?");
}

#[test]
fn mistakes_in_the_dockerfile_are_pointed_at() {
    let env = TestEnv::busybox();
    let cases = [
        ("FROM busybox\nRUM echo\n", "RUM"),
        ("FROM busybox\nCOPY onlyone\n", "COPY"),
        ("RUN echo\n", "FROM"),
        ("FROM busybox\nCOPY --from=nosuchstage /a /b\n", "nosuchstage"),
        ("FROM busybox\nENV\n", "ENV"),
        ("FROM busybox\nRUN --mount=type=nonsense true\n", "nonsense"),
        ("FROM busybox\nRUN <<EOF\necho\n", "EOF"),
    ];
    for (text, part) in cases {
        let out = env.build(&env.dockerfile("c", text), &["--network", "none"]).timeout(60).run();
        assert!(matches!(out.code, Some(1 | 4)), "{text:?} gave {:?}\n{}", out.code, out.stderr);
        assert!(out.stderr.contains(part), "{text:?}: {part:?} is not in\n{}", out.stderr);
        assert!(!out.stderr.contains("panicked"), "{}", out.stderr);
    }
}

#[test]
fn wrong_usage_exits_with_2_and_a_missing_context_with_1() {
    let env = TestEnv::new();
    env.rbuild(["build"]).run().exits(2);
    env.rbuild(["build", "--nonsense", "."]).run().exits(2);
    env.rbuild(["build", "-t", "UPPER CASE", "."]).run().exits(2);
    env.rbuild(["build", "/no/such/context"]).run().exits(1).contains("/no/such/context");
    env.rbuild(["build", "."]).cwd(env.context("empty").dir()).run().exits(1).contains("Dockerfile");
}

#[test]
fn a_base_that_nobody_has() {
    let env = TestEnv::new();
    // A port on which nothing listens.
    let context = env.dockerfile("c", "FROM 127.0.0.1:9/nothing:here\nRUN true\n");
    let out = env.build(&context, &[]).timeout(60).run();
    assert_eq!(out.code, Some(4), "{}", out.stderr);
    assert!(out.stderr.contains("127.0.0.1:9/nothing:here") && out.stderr.contains("Dockerfile:1"), "{}", out.stderr);
}

#[test]
fn a_store_that_others_can_write_is_refused() {
    let env = TestEnv::busybox();
    std::fs::set_permissions(env.store(), std::os::unix::fs::PermissionsExt::from_mode(0o777)).expect("ours");
    let out = env.rbuild(["images"]).run();
    assert_ne!(out.code, Some(0), "{}", out.text());
    assert!(out.stderr.contains("store"), "{}", out.stderr);
}
