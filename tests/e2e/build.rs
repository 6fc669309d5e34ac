//! The ways to ask for a build, and the instructions, each on a real image.

use serde_json::json;

use crate::support::{Layout, TestEnv, find};

/// Builds `dockerfile` on busybox and returns what `command` prints in the image.
#[track_caller]
fn built_and_run(dockerfile: &str, command: &[&str]) -> String {
    let env = TestEnv::busybox();
    env.build(&env.dockerfile("c", dockerfile), &["-t", "it"]).ok();
    env.run("it", command).ok().stdout
}

#[test]
pub(crate) fn from_scratch_with_one_static_program() {
    let env = TestEnv::new();
    let busybox = std::fs::read(find("busybox").expect("busybox-static")).expect("readable");
    let context = env
        .dockerfile(
            "c",
            "FROM scratch\nCOPY busybox /bin/busybox\nENTRYPOINT [\"/bin/busybox\", \"echo\"]\nCMD [\"world\"]\n",
        )
        .mode("busybox", 0o755, busybox);
    env.build(&context, &["-t", "hello:1"]).ok();
    assert_eq!(env.rbuild(["run", "hello:1"]).ok().line(), "world");
    assert_eq!(env.run("hello:1", &["you"]).ok().line(), "you");
}

#[test]
pub(crate) fn build_is_the_default_command() {
    let env = TestEnv::busybox();
    let context =
        env.dockerfile("c", "FROM busybox\nRUN echo hi > /hi\n").file("Other", "FROM busybox\nRUN echo other > /hi\n");
    let plain = env.rbuild(["-q", "-t", "app:1", "-f", "Dockerfile", "."]).cwd(context.dir()).ok();
    let named = env.rbuild(["build", "-q", "-t", "app:2", "."]).cwd(context.dir()).ok();
    assert_eq!(plain.stdout, named.stdout, "the same image");
    assert!(plain.line().starts_with("sha256:"), "-q prints the id: {:?}", plain.stdout);
    assert_eq!(plain.stdout.lines().count(), 1);
    // -f is resolved as docker does it: against the working directory.
    env.rbuild(["-q", "-t", "other", "-f"]).arg(context.path("Other")).arg(context.dir()).ok();
    assert_eq!(env.run("other", &["cat", "/hi"]).ok().line(), "other");
}

#[test]
pub(crate) fn the_dockerfile_comes_from_standard_input() {
    let env = TestEnv::busybox();
    env.rbuild(["-t", "stdin", "-"]).stdin("FROM busybox\nRUN echo from stdin > /said\n").ok();
    assert_eq!(env.run("stdin", &["cat", "/said"]).ok().line(), "from stdin");

    let context = env.context("c").file("data", "from the context");
    env.rbuild(["-t", "both", "-f", "-"]).arg(context.dir()).stdin("FROM busybox\nCOPY data /said\n").ok();
    assert_eq!(env.run("both", &["cat", "/said"]).ok().line(), "from the context");
}

#[test]
pub(crate) fn the_context_comes_as_a_tar_on_standard_input() {
    let env = TestEnv::busybox();
    let context = env.dockerfile("c", "FROM busybox\nCOPY dir/data /said\n").file("dir/data", "from a tar");
    let tar = env.program("tar").args(["-C"]).arg(context.dir()).args(["-cz", "."]).ok().stdout_bytes;
    env.rbuild(["-t", "tarred", "-"]).stdin(tar).ok();
    assert_eq!(env.run("tarred", &["cat", "/said"]).ok().line(), "from a tar");
}

#[test]
fn several_tags_name_one_image() {
    let env = TestEnv::busybox();
    let id = env
        .build(
            &env.dockerfile("c", "FROM busybox\nENV A=1\n"),
            &["-q", "-t", "one", "-t", "two:2", "-t", "host.test/three"],
        )
        .ok();
    let images = env.rbuild(["images"]).ok().stdout;
    let short = &id.line()["sha256:".len()..][..12];
    let rows: Vec<_> = images.lines().filter(|row| row.contains(short)).collect();
    assert_eq!(rows.len(), 3, "{images}");
}

#[test]
fn the_last_line_says_where_the_image_is_and_how_to_run_it() {
    let env = TestEnv::busybox();
    let out = env.build(&env.dockerfile("c", "FROM busybox\nRUN true\n"), &["-t", "app:1"]).ok();
    let last = out.stderr.lines().last().unwrap_or_default();
    assert!(last.contains("app:1") && last.contains("rbuild run app:1"), "{last:?}");
    // The command is the exact one.
    env.rbuild(["run", "app:1", "true"]).ok();
}

#[test]
pub(crate) fn build_args_target_and_labels() {
    let env = TestEnv::busybox();
    let context = env.dockerfile(
        "c",
        "ARG BASE=none\nFROM ${BASE} AS first\nARG WHO=nobody\nARG UNSET\nRUN echo \"$WHO${UNSET:-!}\" > /who\nFROM first AS second\nRUN echo second > /who\n",
    );
    let args = [
        "--build-arg",
        "BASE=busybox",
        "--build-arg",
        "WHO=ann",
        "--target",
        "first",
        "--label",
        "a.b=c d",
        "-t",
        "it",
    ];
    env.build(&context, &args).ok().lacks("second");
    assert_eq!(env.run("it", &["cat", "/who"]).ok().line(), "ann!");
    env.rbuild(["inspect", "it"]).ok().contains("\"a.b\": \"c d\"");
    // The caller's own variable, when only a name is given.
    let run =
        env.build(&context, &["--build-arg", "BASE=busybox", "--build-arg", "WHO", "--target", "first", "-t", "it"]);
    run.env("WHO", "bob").ok();
    assert_eq!(env.run("it", &["cat", "/who"]).ok().line(), "bob!");
}

#[test]
fn the_image_id_is_written_to_a_file() {
    let env = TestEnv::busybox();
    let context = env.dockerfile("c", "FROM busybox\nENV A=1\n");
    let file = env.path("iid");
    let quiet = env.build(&context, &["-q", "-t", "it", "--iidfile", file.to_str().expect("UTF-8")]).ok();
    assert_eq!(std::fs::read_to_string(&file).expect("written").trim(), quiet.line());
    env.run(quiet.line(), &["true"]).ok();
}

#[test]
pub(crate) fn stages_are_joined_by_copy_from() {
    let text = "FROM busybox AS one\nRUN mkdir /out && echo one > /out/a\nFROM busybox AS two\nRUN echo two > /b\n\
                FROM busybox\nCOPY --from=one /out/ /got/\nCOPY --from=1 /b /got/\nCOPY --from=busybox /etc/group /got/\n";
    assert_eq!(
        built_and_run(text, &["sh", "-c", "cat /got/a /got/b; head -n 1 /got/group; ls /got | wc -l"]),
        "one\ntwo\nroot:x:0:\n3\n"
    );
}

#[test]
fn a_stage_that_nobody_needs_is_not_built() {
    let env = TestEnv::busybox();
    let context = env.dockerfile("c", "FROM busybox AS broken\nRUN exit 9\nFROM busybox\nRUN true\n");
    env.build(&context, &["-t", "it"]).ok();
}

#[test]
pub(crate) fn independent_stages_run_at_the_same_time() {
    let stage = |name: &str| {
        format!(
            "FROM busybox AS {name}\nRUN read a _ < /proc/uptime; sleep 1; read b _ < /proc/uptime; echo $a $b > /{name}\n"
        )
    };
    let names = ["n", "e", "s", "w"];
    let stages: String = names.iter().map(|n| stage(n)).collect();
    let copies: String = names.iter().map(|n| format!("COPY --from={n} /{n} /t/\n")).collect();
    let times = built_and_run(&format!("{stages}FROM busybox\n{copies}"), &["sh", "-c", "cat /t/*"]);
    let times: Vec<Vec<f64>> =
        times.lines().map(|l| l.split(' ').map(|n| n.parse().expect("seconds")).collect()).collect();
    assert_eq!(times.len(), 4);
    let last_start = times.iter().map(|t| t[0]).fold(0.0, f64::max);
    let first_end = times.iter().map(|t| t[1]).fold(f64::MAX, f64::min);
    assert!(last_start < first_end, "all four were under way at one moment: {times:?}");
}

#[test]
pub(crate) fn env_workdir_user_and_shell_reach_the_step_and_the_image() {
    let text = "FROM busybox\nENV A=1 B=\"two words\"\nENV C=$A-${B}\nWORKDIR /w\nWORKDIR x/y\nRUN pwd > where && echo \"$C\" > c\n\
                RUN chown 1000:1001 /w/x/y\nUSER web\nRUN id -un > who\nSHELL [\"/bin/sh\", \"-xc\"]\nRUN echo traced\nCMD cat where c who; pwd; echo \"$C\"\n";
    let env = TestEnv::busybox();
    env.build(&env.dockerfile("c", text), &["-t", "it"]).ok().contains("+ echo traced");
    assert_eq!(env.rbuild(["run", "it"]).ok().stdout, "/w/x/y\n1-two words\nweb\n/w/x/y\n1-two words\n");
    assert_eq!(env.run("it", &["id", "-u"]).ok().line(), "1000");
}

#[test]
pub(crate) fn heredocs() {
    let text = "FROM busybox\nRUN <<EOF\nset -e\necho one > /a\necho two >> /a\nEOF\nCOPY <<one <<\"two\" /dir/\nuser $HOME\none\nliteral $HOME\ntwo\n\
                RUN <<EOF cat > /b\nfrom stdin\nEOF\n";
    assert_eq!(
        built_and_run(text, &["cat", "/a", "/b", "/dir/one", "/dir/two"]),
        "one\ntwo\nfrom stdin\nuser \nliteral $HOME\n"
    );
}

#[test]
pub(crate) fn copy_follows_the_rules_of_paths_owners_and_modes() {
    let env = TestEnv::busybox();
    let context = env
        .dockerfile(
            "c",
            "FROM busybox\nCOPY a.txt b.txt /flat/\nCOPY tree /tree\nCOPY tree/ /merged/deep/\nCOPY *.txt /glob/\nCOPY a.txt /renamed\n\
             COPY --chown=web:staff --chmod=640 a.txt /owned\nCOPY --chown=7:8 tree /owned-tree\n",
        )
        .file("a.txt", "a")
        .file("b.txt", "b")
        .file("tree/x/y", "y")
        .mode("tree/run.sh", 0o755, "#!/bin/sh\n")
        .link("tree/link", "x/y");
    env.build(&context, &["-t", "it"]).ok();
    let sh = |line: &str| env.run("it", &["sh", "-c", line]).ok().stdout;
    assert_eq!(sh("cat /flat/a.txt /flat/b.txt /tree/x/y /merged/deep/x/y /renamed; ls /glob"), "abyyaa.txt\nb.txt\n");
    assert_eq!(
        sh("stat -c '%a %u %g' /owned /owned-tree /owned-tree/x/y /tree/run.sh"),
        "640 1000 50\n755 7 8\n644 7 8\n755 0 0\n"
    );
    assert_eq!(sh("readlink /tree/link"), "x/y\n");
}

#[test]
pub(crate) fn files_of_the_context_belong_to_root() {
    let env = TestEnv::busybox();
    let context = env.dockerfile("c", "FROM busybox\nCOPY f /f\n").file("f", "x");
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::chown(context.path("f"), Some(4321), Some(4321)).expect("root may");
    }
    env.build(&context, &["-t", "it"]).ok();
    assert_eq!(env.run("it", &["stat", "-c", "%u:%g", "/f"]).ok().line(), "0:0");
}

#[test]
pub(crate) fn copy_goes_through_a_symlinked_directory_of_the_base() {
    let env = TestEnv::busybox();
    let context = env
        .dockerfile("c", "FROM busybox\nRUN ln -s usr/sbin /tools && ln -s /bin /abs\nCOPY f /tools/f\nCOPY f /abs/\n")
        .file("f", "through");
    env.build(&context, &["-t", "it"]).ok();
    assert_eq!(
        env.run("it", &["sh", "-c", "cat /usr/sbin/f /bin/f; readlink /tools; readlink /abs"]).ok().stdout,
        "throughthroughusr/sbin\n/bin\n"
    );
}

#[test]
pub(crate) fn dockerignore_keeps_files_out() {
    let env = TestEnv::busybox();
    let context = env
        .dockerfile("c", "FROM busybox\nCOPY . /all/\n")
        .file(".dockerignore", "# comment\n*.log\nsecret/\n!keep.log\n**/deep.tmp\nDockerfile\n.dockerignore\n")
        .file("a", "")
        .file("x.log", "")
        .file("keep.log", "")
        .file("secret/key", "")
        .file("d/e/deep.tmp", "")
        .file("d/e/kept", "");
    env.build(&context, &["-t", "it"]).ok();
    let list = env.run("it", &["sh", "-c", "cd /all && find . -type f | sort"]).ok().stdout;
    assert_eq!(list, "./a\n./d/e/kept\n./keep.log\n");
}

#[test]
pub(crate) fn add_unpacks_a_local_archive_and_copy_does_not() {
    let env = TestEnv::busybox();
    let context =
        env.dockerfile("c", "FROM busybox\nADD in.tar.gz /added/\nCOPY in.tar.gz /copied/\n").file("in/file", "packed");
    env.program("tar").args(["-czf", "in.tar.gz", "-C", "in", "file"]).cwd(context.dir()).ok();
    env.build(&context, &["-t", "it"]).ok();
    assert_eq!(env.run("it", &["sh", "-c", "cat /added/file; ls /copied"]).ok().stdout, "packedin.tar.gz\n");
}

#[test]
pub(crate) fn onbuild_runs_in_the_build_upon_it() {
    let env = TestEnv::busybox();
    env.build(&env.dockerfile("p", "FROM busybox\nONBUILD COPY f /f\nONBUILD RUN cp /f /g\n"), &["-t", "parent"]).ok();
    env.run("parent", &["test", "!", "-e", "/f"]).ok();
    env.build(&env.dockerfile("c", "FROM parent\n").file("f", "triggered"), &["-t", "child"]).ok();
    assert_eq!(env.run("child", &["cat", "/g"]).ok().line(), "triggered");
}

#[test]
pub(crate) fn metadata_instructions_end_in_the_config() {
    let env = TestEnv::busybox();
    let text = "FROM busybox\nLABEL a=1 b=\"two words\"\nEXPOSE 80 53/udp\nVOLUME /data\nSTOPSIGNAL SIGUSR1\nUSER 1000:50\nWORKDIR /w\n\
                HEALTHCHECK --interval=5s --retries=2 CMD true\nENTRYPOINT [\"/bin/echo\"]\nCMD [\"x\"]\nMAINTAINER someone\n";
    let out = env.path("out.tar");
    env.build(&env.dockerfile("c", text), &["-o", &format!("type=oci,dest={}", out.display())]).ok();
    let image = Layout::from_archive(&out).image();
    let is = |field: &str, json: &str| assert_eq!(image.setting(field).to_string(), json, "{field}");
    is("Labels", r#"{"a":"1","b":"two words"}"#);
    is("ExposedPorts", r#"{"53/udp":{},"80/tcp":{}}"#);
    is("Volumes", r#"{"/data":{}}"#);
    is("StopSignal", r#""SIGUSR1""#);
    is("User", r#""1000:50""#);
    is("WorkingDir", r#""/w""#);
    is("Entrypoint", r#"["/bin/echo"]"#);
    is("Cmd", r#"["x"]"#);
    assert_eq!(image.setting("Healthcheck")["Interval"], 5_000_000_000_u64);
    assert_eq!(image.config["author"], "someone");
    assert_eq!(image.config["os"], "linux");
}

#[test]
pub(crate) fn mounts_of_run() {
    let env = TestEnv::busybox();
    let context = env
        .dockerfile(
            "c",
            "FROM busybox AS other\nRUN echo other > /o && mkdir /d && cp /o /d\nFROM busybox\n\
             RUN --mount=type=bind,target=/src cat /src/f > /bind && (! touch /src/new)\n\
             RUN --mount=type=bind,from=other,source=/o,target=/o cat /o >> /bind\n\
             RUN --mount=source=dir,target=/whole ls -A /whole >> /bind\n\
             RUN --mount=type=bind,source=dir/sub,target=/s --mount=type=bind,source=link/file,target=/l \
             ls -A /s > /part && cat /l >> /part && [ \"$(stat -c %a /s)\" = 750 ]\n\
             RUN --mount=type=tmpfs,target=/scratch echo x > /scratch/x\n\
             RUN --mount=type=cache,target=/cache echo 1 >> /cache/count && wc -l < /cache/count > /count\n\
             RUN --mount=type=cache,target=/cache,from=other,source=/d cat /cache/o >> /bind\n\
             RUN --mount=type=cache,target=/cache,mode=0700 ls -A /cache >> /bind; stat -c %a /cache >> /bind\n\
             RUN --mount=type=secret,id=key cat /run/secrets/key | wc -c > /secret\n",
        )
        .file("f", "bound\n")
        .file("dir/sub/file", "linked\n")
        .file("dir/other", "");
    std::os::unix::fs::symlink("dir/sub", context.dir().join("link")).expect("ours");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o750);
    std::fs::set_permissions(context.dir().join("dir/sub"), mode).expect("ours");
    std::fs::write(env.path("key"), "hunter2").expect("ours");
    let secret = format!("id=key,src={}", env.path("key").display());
    env.build(&context, &["-t", "it", "--secret", &secret]).ok().lacks("hunter2");
    let sh = |line: &str| env.run("it", &["sh", "-c", line]).ok().stdout;
    assert_eq!(sh("cat /bind /part /count /secret"), "bound\nother\nother\nsub\nother\n700\nfile\nlinked\n1\n7\n");
    assert_eq!(sh("ls -A /scratch /src /cache /run/secrets 2>/dev/null | grep -v : | wc -w"), "0\n");
    // The cache mount outlives the build.
    env.build(&context, &["-t", "again", "--no-cache", "--secret", &secret]).ok();
    assert_eq!(env.run("again", &["cat", "/count"]).ok().line(), "2");
}

#[test]
fn a_config_file_and_a_root_can_be_named() {
    let env = TestEnv::busybox();
    let context = env.dockerfile("c", "FROM scratch\nCOPY Dockerfile /d\n");
    let other = env.path("other-store");
    env.build(&context, &["--root", other.to_str().expect("UTF-8"), "-t", "there"]).ok();
    assert!(other.is_dir());
    env.rbuild(["images"]).ok().lacks("there");
    env.rbuild(["images", "--root"]).arg(&other).ok().contains("there");
    env.configure("[registry.\"docker.io\"]\nmirrors = 7\n");
    env.build(&context, &[]).run().exits(1).contains("rbuild.toml");
}

#[test]
fn cache_mounts_of_another_owner_are_others() {
    let env = TestEnv::busybox();
    let text = "FROM busybox\nRUN --mount=type=cache,target=/cache touch /cache/roots\n\
                RUN --mount=type=cache,target=/cache,uid=7,gid=8 ls -A /cache > /seen; stat -c %u:%g /cache >> /seen\n";
    env.build(&env.dockerfile("c", text), &["-t", "it"]).ok();
    assert_eq!(env.run("it", &["cat", "/seen"]).ok().stdout, "7:8\n");
}

/// One directory that is mounted twice is locked once; and steps that lock the same two do so in one order.
#[test]
fn locked_cache_mounts_never_wait_for_each_other() {
    let env = TestEnv::busybox();
    let mount = |id: &str, target: &str| format!("--mount=type=cache,sharing=locked,id={id},target={target}");
    let step = |one: &str, two: &str, run: &str| format!("RUN {} {} {run}\n", mount(one, "/x"), mount(two, "/y"));
    let text = format!(
        "FROM busybox AS base\n{}FROM base AS left\n{}FROM base AS right\n{}FROM base\n\
         COPY --from=left /l /\nCOPY --from=right /r /\n",
        step("same", "same", "touch /x/file && ls /y > /seen"),
        step("a", "b", "sleep 0.3; touch /l"),
        step("b", "a", "sleep 0.3; touch /r"),
    );
    env.build(&env.dockerfile("c", &text), &["-t", "it"]).timeout(60).ok();
    assert_eq!(env.run("it", &["cat", "/seen"]).ok().stdout, "file\n");
}

/// As the Docker client does it; they are no part of the cache key, nor of the image.
#[test]
fn proxies_of_the_docker_clients_configuration_reach_steps() {
    let env = TestEnv::busybox();
    let configure = |http: &str| {
        let text = json!({ "proxies": { "default": { "httpProxy": http, "noProxy": "localhost" } } }).to_string();
        std::fs::create_dir_all(env.path("home/.docker")).expect("ours");
        std::fs::write(env.path("home/.docker/config.json"), text).expect("ours");
    };
    let context = env.dockerfile("c", "FROM busybox\nRUN env | grep -i proxy | sort > /proxies\n");
    configure("http://one.test:1");
    env.build(&context, &["-t", "it", "--build-arg", "no_proxy=mine"]).ok();
    let seen = env.run("it", &["cat", "/proxies"]).ok().stdout;
    assert_eq!(seen, "HTTP_PROXY=http://one.test:1\nNO_PROXY=mine\nhttp_proxy=http://one.test:1\nno_proxy=mine\n");
    assert_eq!(env.run("it", &["env"]).ok().stdout.to_lowercase().matches("proxy").count(), 0);
    configure("http://two.test:2");
    assert_eq!(env.build(&context, &["-t", "it"]).ok().cached(), 1);
}
