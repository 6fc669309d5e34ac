//! The checks of a Dockerfile, its views, and contexts by name.

use crate::support::TestEnv;

const FILE: &str = "\
# VERSION is what is built
ARG VERSION=1
FROM busybox as Base
ENV a b
RUN --mount=type=secret,id=key true
# app runs
FROM scratch AS app
COPY --from=base /bin/busybox /
CMD run
";

#[test]
fn a_build_tells_what_checks_found_and_goes_on() {
    let env = TestEnv::busybox();
    let context = env.dockerfile("c", FILE);
    // The stages that are not built are not checked: FROM app needs base, so here all are.
    env.rbuild(["build", "--progress", "plain"])
        .arg(context.dir())
        .run()
        .success()
        .contains("4 warnings found (rbuild build --check shows more):")
        .contains(" - JSONArgsRecommended: JSON arguments recommended for CMD")
        .contains("OS signals (line 9)");
}

#[test]
fn checks_can_fail_a_build() {
    let env = TestEnv::busybox();
    let context = env.dockerfile("c", "# check=error=true\nFROM busybox\nCMD run\n");
    let violation = "lint violation found for rules: JSONArgsRecommended";
    env.rbuild(["build"]).arg(context.dir()).run().exits(1).contains(violation);
    env.rbuild(["build", "--build-arg", "BUILDKIT_DOCKERFILE_CHECK=skip=all"]).arg(context.dir()).run().success();
}

#[test]
fn check_prints_findings_and_says_so_by_its_status() {
    let env = TestEnv::busybox();
    let context = env.dockerfile("c", FILE);
    for args in [vec!["build", "--check"], vec!["build", "--call=check"], vec!["lint"]] {
        let out = env.rbuild(&args).arg(context.dir()).run().exits(1);
        for text in [
            "WARNING: StageNameCasing - https://docs.docker.com/go/dockerfile/rule/stage-name-casing/",
            "   3 | >>> FROM busybox as Base",
            "WARNING: LegacyKeyValueFormat",
            "Check complete, 4 warnings have been found!",
        ] {
            assert!(out.text().contains(text), "{args:?}: {}", out.text());
        }
    }
    let clean = env.dockerfile("d", "FROM busybox\nCMD [\"run\"]\n");
    let none = "Check complete, no warnings found.";
    env.rbuild(["build", "--check"]).arg(clean.dir()).run().success().contains(none);
}

#[test]
fn findings_for_programs() {
    let env = TestEnv::busybox();
    let context = env.dockerfile("c", FILE);
    let json = |args: &[&str]| -> serde_json::Value {
        let out = env.rbuild(args).arg(context.dir()).run();
        serde_json::from_str(&out.stdout).unwrap_or_else(|error| panic!("{error}: {}", out.text()))
    };
    let lint = json(&["build", "--call=check,format=json"]);
    assert_eq!(lint["warnings"][0]["ruleName"], "StageNameCasing");
    assert_eq!(lint["warnings"][0]["location"]["ranges"][0]["start"]["line"], 3);
    let sarif = json(&["lint", "--format", "sarif"]);
    assert_eq!(sarif["version"], "2.1.0");
    assert_eq!(sarif["runs"][0]["results"][0]["ruleId"], "StageNameCasing");
    let targets = json(&["build", "--call=targets,format=json"]);
    assert_eq!(targets["targets"][1]["name"], "app");
    assert_eq!(targets["targets"][1]["default"], true);
    assert_eq!(targets["targets"][1]["description"], "runs");
    let outline = json(&["build", "--call=outline,format=json"]);
    assert_eq!(outline["secrets"][0]["name"], "key");
}

#[test]
fn fix_mends_the_file_and_nothing_else() {
    let env = TestEnv::busybox();
    let context = env.dockerfile("c", FILE);
    env.rbuild(["lint", "--fix"]).arg(context.dir()).run().success().contains("4 findings mended");
    let mended = std::fs::read_to_string(context.dir().join("Dockerfile")).unwrap();
    assert_eq!(
        mended,
        FILE.replace("as Base", "AS base").replace("ENV a b", "ENV a=b").replace("CMD run", "CMD [\"run\"]")
    );
}

/// What cannot be had is not guessed at: no variable of an unknown base is called undefined.
#[test]
fn an_unknown_base_is_no_reason_not_to_check() {
    let env = TestEnv::new();
    let context = env.dockerfile("c", "FROM localhost:1/nothing\nENV A=$FROM_BASE\nCMD run\n");
    env.rbuild(["lint"])
        .arg(context.dir())
        .run()
        .exits(1)
        .contains("what depends on it was not checked")
        .contains("JSONArgsRecommended")
        .lacks("UndefinedVar");
}

#[test]
fn a_foreign_frontend_is_refused_by_name_and_line() {
    let env = TestEnv::new();
    for text in ["docker/dockerfile:1.9-labs", "docker.io/docker/dockerfile", "mirror.example/docker/dockerfile:1"] {
        let context = env.dockerfile("own", &format!("# syntax={text}\nFROM scratch\n"));
        env.rbuild(["build"]).arg(context.dir()).run().success();
    }
    let context = env.dockerfile("c", "# syntax=example/frontend:1\nFROM scratch\n");
    let refused = "Dockerfile:1:1: the frontend example/frontend:1 (# syntax=) is not available";
    env.rbuild(["build"]).arg(context.dir()).run().exits(1).contains(refused);
}

#[test]
fn a_context_can_be_a_target_of_the_same_file() {
    let env = TestEnv::busybox();
    let text = "FROM busybox AS one\nRUN echo one > /f\nFROM busybox AS two\nRUN echo two > /f\n\
                FROM busybox\nCOPY --from=one /f /f\nRUN test \"$(cat /f)\" = two\n";
    let context = env.dockerfile("c", text);
    env.rbuild(["build", "--build-context", "one=target:two"]).arg(context.dir()).run().success();
    let slip = env.rbuild(["build", "--build-context", "one=target:tow"]).arg(context.dir()).run();
    slip.exits(1).contains("did you mean two?");
}

#[test]
fn a_context_can_take_the_place_of_the_target() {
    let env = TestEnv::new();
    let context = env.dockerfile("c", "FROM scratch AS lib\nCOPY no /\n");
    let other = env.dockerfile("other", "").file("sub/x", "x").file("skip.log", "").file(".dockerignore", "*.log\n");
    let (given, out) = (format!("lib={}", other.dir().display()), env.path("out"));
    let output = format!("type=local,dest={}", out.display());
    env.rbuild(["build", "--build-context", &given, "-o", &output]).arg(context.dir()).ok();
    assert_eq!(std::fs::read(out.join("sub/x")).expect("the context's file"), b"x");
    assert!(!out.join("skip.log").exists());
    let main = given.replace("lib=", "context=");
    let refused = env.rbuild(["build", "--build-context", &main]).arg(context.dir()).run();
    refused.contains("context is the name of the main context");
}
