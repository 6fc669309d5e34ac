//! Which inputs of a step count, and for what.

use std::collections::BTreeSet;
use std::fs;

use crate::support::{Outcome, Run, TestEnv, can};

/// Two stages beside each other, and one that takes something from either.
const STAGES: &str = "FROM busybox AS left
COPY tree /tree
RUN echo left1 && cat /tree/file
RUN --mount=type=bind,source=mounted,target=/m echo left2 && cat /m/file
FROM busybox AS right
ARG WHO=me
ENV MODE=quick
RUN echo right1 && echo $WHO $MODE > /who
FROM busybox
COPY --from=left /tree/file /from/left
COPY --from=right /who /from/right
RUN echo last
";

/// The steps that ran, by the words that each echoes or its first ones.
fn ran(outcome: &Outcome) -> BTreeSet<String> {
    let lines = || outcome.stderr.lines();
    let cached: Vec<&str> = lines().filter_map(|line| line.strip_suffix(" CACHED")).collect();
    let steps = lines().filter_map(|line| {
        let (number, rest) = line.split_once(" [")?;
        let (_, step) = rest.split_once("] ")?;
        let is_step = ["RUN ", "COPY ", "WORKDIR "].iter().any(|begin| step.starts_with(begin));
        (number.starts_with('#') && is_step && !cached.contains(&number)).then(|| step.to_owned())
    });
    let known = ["left1", "left2", "right1", "last", "tree /tree", "/from/left", "/from/right"];
    let named = steps.map(|step| match known.iter().find(|name| step.contains(**name)) {
        Some(name) => (*name).to_owned(),
        None => step,
    });
    named.collect()
}

/// Whatever a step's result depends on is a miss for it and what follows from it, and for nothing else.
#[test]
fn each_input_of_a_step_counts_for_it_and_what_follows_and_for_nothing_else() {
    let env = TestEnv::busybox();
    let context =
        env.dockerfile("c", STAGES).file("tree/file", "one").file("tree/other", "two").file("mounted/file", "m");
    let context = context.mode("tree/program", 0o755, "#!/bin/sh\n").link("tree/link", "file");
    let build = |args: &[&str]| env.build(&context, args).ok();
    let all = ["left1", "left2", "right1", "last", "tree /tree", "/from/left", "/from/right"];
    assert_eq!(ran(&build(&[])), all.map(str::to_owned).into());
    let same = |what: &str| assert_eq!(ran(&build(&[])), BTreeSet::new(), "after {what}");
    same("nothing");
    let copied = ["tree /tree", "left1", "left2"];
    // Of the file that leaves the stage its content counts; of the others that they were there.
    let everything_left: &[&str] = &["tree /tree", "left1", "left2", "/from/left", "/from/right", "last"];
    let dockerfile = |from: &str, to: &str| context.write("Dockerfile", STAGES.replace(from, to));
    let check = |what: &str, args: &[&str], expected: &[&str]| {
        let out = build(args);
        assert_eq!(ran(&out), expected.iter().map(|name| (*name).to_owned()).collect(), "{what}: {}", out.stderr);
    };
    let path = |name: &str| context.path(name);
    let set_mode = |name: &str, mode: u32| {
        fs::set_permissions(path(name), std::os::unix::fs::PermissionsExt::from_mode(mode)).expect("ours");
    };
    let attribute = |value: Option<&str>| {
        let run = match value {
            Some(value) => Run::new("setfattr").args(["-n", "user.kept", "-v", value]),
            None => Run::new("setfattr").args(["-x", "user.kept"]),
        };
        run.arg(path("tree/other")).ok();
    };

    context.write("tree/file", "ONE");
    check("content", &[], everything_left);
    context.write("tree/file", "one");
    same("the content of before");
    context.touch("tree/file", 1_000_000_000);
    same("a time");
    set_mode("tree/other", 0o600);
    check("a mode", &[], &copied);
    set_mode("tree/other", 0o644);
    same("the mode of before");
    if can("setfattr") {
        attribute(Some("1"));
        check("an attribute", &[], &copied);
        attribute(Some("2"));
        check("its value", &[], &copied);
        attribute(None);
        same("no attribute");
    }
    fs::remove_file(path("tree/link")).expect("ours");
    std::os::unix::fs::symlink("other", path("tree/link")).expect("ours");
    check("a link's target", &[], &copied);
    fs::remove_file(path("tree/link")).expect("ours");
    std::os::unix::fs::symlink("file", path("tree/link")).expect("ours");
    context.write("tree/new", "");
    check("a new file", &[], &copied);
    fs::rename(path("tree/new"), path("tree/newer")).expect("ours");
    check("a name", &[], &copied);
    fs::remove_file(path("tree/newer")).expect("ours");
    fs::create_dir(path("tree/empty")).expect("ours");
    check("an empty directory", &[], &copied);
    fs::remove_dir(path("tree/empty")).expect("ours");
    same("all as before");

    context.write("mounted/file", "M");
    check("what is mounted", &[], &["left2"]);
    context.write("mounted/file", "m");
    check("an argument", &["--build-arg", "WHO=you"], &["right1", "/from/right", "last"]);
    check("an argument that nothing declares", &["--build-arg", "NOBODY=you"], &[]);
    dockerfile("MODE=quick", "MODE=slow");
    check("the environment", &[], &["right1", "/from/right", "last"]);
    dockerfile("RUN echo right1", "RUN --network=none echo right1");
    check("the network", &[], &["right1"]);
    dockerfile("RUN echo left1", "USER 1\nRUN echo left1");
    check("the user", &[], &["left1", "left2"]);
    dockerfile("RUN echo left1", "SHELL [\"/bin/busybox\", \"sh\", \"-c\"]\nRUN echo left1");
    check("the shell", &[], &["left1", "left2"]);
    dockerfile("RUN --mount=type=bind", "RUN --mount=type=tmpfs,target=/t --mount=type=bind");
    check("a mount more", &[], &["left2"]);
    dockerfile("target=/m", "target=/m,rw");
    check("how it is mounted", &[], &["left2"]);
    dockerfile("RUN echo right1", "RUN --security=insecure echo right1");
    check("what it may do", &["--allow", "security.insecure"], &["right1"]);
    dockerfile("COPY tree", "COPY --chown=5 tree");
    check("an owner", &[], everything_left);
    dockerfile("COPY tree", "COPY --chmod=700 tree");
    check("a mode for all", &[], everything_left);
    check("a host", &["--add-host", "there:10.1.2.3"], &["left1", "left2", "right1", "last"]);
    // What says nothing of the result does not count.
    dockerfile("FROM busybox AS right", "# A remark.\nFROM  busybox  AS right");
    same("a remark");
    context.write("Dockerfile", STAGES.replace("AS left", "AS port").replace("from=left", "from=port"));
    same("the name of a stage");
    context.write("Dockerfile", STAGES);
    for args in [&["--memory", "1g"][..], &["--label", "a=b"], &["--build-arg", "HTTP_PROXY=http://there:1"]] {
        check(&args.join(" "), args, &[]);
    }
}
