//! What is remembered of builds: why steps ran, what they printed, how long they took.

use crate::support::{Context, TestEnv};

fn context(env: &TestEnv) -> Context {
    let text = "FROM busybox AS one\nARG LEVEL=1\nCOPY src /src\nRUN echo level $LEVEL > /level\n\
                FROM busybox\nCOPY --from=one /level /\nRUN echo canary-line; cat /level\n";
    let context = env.dockerfile("c", text).file("src/a", "a").file("src/b", "b").file("src/c", "c");
    context.mode("src/run", 0o755, "x")
}

/// The lines of the explanation about the step whose name has `step` in it.
fn reasons(text: &str, step: &str) -> Vec<String> {
    let mut lines =
        text.lines().skip_while(|line| !((line.starts_with("HIT") || line.starts_with("MISS")) && line.contains(step)));
    let head = lines.next().unwrap_or_else(|| panic!("{step:?} is not explained in\n{text}")).to_owned();
    let rest = lines.take_while(|line| line.starts_with("     ")).map(|line| line.trim().to_owned());
    std::iter::once(head).chain(rest).collect()
}

#[test]
fn a_miss_names_what_changed() {
    let env = TestEnv::busybox();
    let context = context(&env);
    let explain = |args: &[&str]| env.build(&context, args).args(["-t", "it", "--explain"]).ok().stderr;
    let first = explain(&[]);
    assert!(reasons(&first, "COPY src")[1].contains("no earlier run"), "{first}");
    let second = explain(&[]);
    assert!(second.lines().filter(|line| line.starts_with("HIT")).count() == 4, "{second}");
    assert!(!second.lines().any(|line| line.starts_with("MISS")), "{second}");

    context.write("src/b", "changed");
    let copy = reasons(&explain(&[]), "COPY src");
    assert!(
        copy[0].starts_with("MISS") && copy[1].starts_with("/src/b changed: ") && copy[1].contains("(7 bytes) now"),
        "{copy:?}"
    );
    context.remove("src/c");
    context.write("src/d", "d");
    let copy = reasons(&explain(&[]), "COPY src");
    assert_eq!(copy[1..3], ["/src/c was removed", "/src/d was added"]);
    let context = context.mode("src/run", 0o700, "x");
    let text = env.build(&context, &["-t", "it", "--explain"]).ok().stderr;
    assert_eq!(reasons(&text, "COPY src")[1], "/src/run changed its mode: 0755 then, 0700 now");
    let run = reasons(&text, "RUN echo level");
    assert!(run[1].starts_with("the result of [one 2/3] COPY src /src changed"), "{run:?}");

    let text = env.build(&context, &["-t", "it", "--explain", "--build-arg", "LEVEL=2"]).ok().stderr;
    assert!(reasons(&text, "RUN echo level")[1].contains("variable LEVEL changed: 1 then, 2 now"), "{text}");
    assert!(reasons(&text, "COPY --from=one")[1].starts_with("/level changed"), "{text}");
    context.write(
        "Dockerfile",
        std::fs::read_to_string(context.path("Dockerfile")).expect("ours").replace("cat /level", "cat /level /src"),
    );
    env.build(&context, &["-t", "it"]).run().exits(1);
    let later = env.rbuild(["explain", "canary-line"]).ok().stdout;
    assert!(reasons(&later, "canary-line")[1].starts_with("its command changed"), "{later}");
    env.rbuild(["explain", "no such step"]).run().exits(1).contains("no such step");
    let json = env.rbuild(["explain", "--format", "json", "one"]).ok().stdout;
    assert!(
        json.lines()
            .all(|line| serde_json::from_str::<serde_json::Value>(line).is_ok_and(|step| step["hit"].is_boolean())),
        "{json}"
    );
    let told = env.build(&context, &["--no-cache", "--explain", "--target", "one"]).ok().stderr;
    assert!(reasons(&told, "COPY src")[1].contains("--no-cache"), "{told}");
}

#[test]
fn another_base_is_named() {
    let env = TestEnv::busybox();
    let context = env.dockerfile("c", "FROM base\nRUN cat /id\n");
    let base = env.dockerfile("base", "FROM busybox\nRUN mktemp -u > /id\n");
    env.build(&base, &["-t", "base"]).ok();
    env.build(&context, &["-t", "it"]).ok();
    env.build(&base, &["-t", "base", "--no-cache"]).ok();
    let text = env.build(&context, &["-t", "it", "--explain"]).ok().stderr;
    assert!(
        reasons(&text, "RUN cat /id")[1].starts_with("its base base is another image: sha256:")
            || reasons(&text, "RUN cat /id")[1].contains("is another image: sha256:"),
        "{text}"
    );
}

#[test]
fn a_miss_can_be_forbidden() {
    let env = TestEnv::busybox();
    let context = context(&env);
    env.build(&context, &["-t", "it", "--fail-on-miss"]).run().exits(3).contains("no earlier run");
    env.build(&context, &["-t", "it"]).ok();
    env.build(&context, &["-t", "it", "--fail-on-miss"]).ok();
    context.write("src/a", "other");
    let out = env.build(&context, &["-t", "it", "--fail-on-miss"]).run().exits(3).contains("/src/a changed");
    assert!(out.stderr.contains("Dockerfile:3"), "{}", out.stderr);
    // The result of the last stage depends on what the first made, which is the same.
    env.build(&context, &["-t", "it", "--fail-on-miss=1"]).ok();
    context.write("src/a", "another");
    env.build(&context, &["-t", "it", "--fail-on-miss=one"]).run().exits(3);
}

#[test]
fn builds_are_remembered_with_their_logs() {
    let env = TestEnv::busybox();
    let context = context(&env);
    env.rbuild(["builds"]).ok().contains("BUILD");
    env.rbuild(["builds", "logs"]).run().exits(1).contains("there is no build");
    let lots = "RUN i=0; while [ $i -lt 30000 ]; do echo line number $i of a long log; i=$((i + 1)); done\n";
    context.write("Dockerfile", std::fs::read_to_string(context.path("Dockerfile")).expect("ours") + lots);
    env.build(&context, &["-t", "it:7"]).ok();
    env.build(&context, &["-t", "it:7"]).ok();
    env.build(&env.dockerfile("bad", "FROM busybox\nRUN echo before the end; exit 5\n"), &[]).run().exits(1);
    let list = env.rbuild(["builds"]).ok().stdout;
    let rows: Vec<&str> = list.lines().skip(1).collect();
    assert_eq!(rows.len(), 3, "{list}");
    assert!(rows[0].contains("failed") && rows[1].contains("5/5") && rows[2].contains("0/5"), "{list}");
    assert!(rows[2].contains("it:7"), "{list}");
    let ids: Vec<String> = env.rbuild(["builds", "-q"]).ok().stdout.lines().map(str::to_owned).collect();
    let log = env.rbuild(["builds", "logs", &ids[2], "line number"]).ok().stdout;
    assert_eq!(log.lines().count(), 30_000);
    assert_eq!(log.lines().last(), Some("line number 29999 of a long log"));
    env.rbuild(["builds", "logs", &ids[2]]).ok().contains("canary-line");
    env.rbuild(["builds", "logs", "latest"]).ok().contains("before the end");
    env.rbuild(["builds", "inspect", &ids[1]]).ok().contains("hit").lacks("miss");
    env.rbuild(["builds", "inspect", &ids[2], "--format", "json"]).ok().contains("\"printed\"");
    let json = env.rbuild(["builds", "--format", "json"]).ok().stdout;
    assert!(json.lines().all(|line| serde_json::from_str::<serde_json::Value>(line).is_ok()), "{json}");
}
