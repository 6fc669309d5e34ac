//! What RUN steps may use, and how long they may take.

use crate::support::{TestEnv, require_root};

#[test]
fn a_step_that_wants_more_memory_than_it_has_is_said_to() {
    if !require_root() {
        return;
    }
    let env = TestEnv::busybox();
    // What has no line ends is kept in memory as a whole.
    let context = env.dockerfile("c", "FROM busybox\nRUN echo before; tail /dev/zero; echo after\n");
    let exec = env.dockerfile("d", "FROM busybox\nRUN [\"tail\", \"/dev/zero\"]\n");
    let out = env.build(&exec, &["-m", "32m", "--memory-swap", "32m"]).run().exits(1);
    assert!(out.stderr.contains("out of memory, peak 32MiB of 32MiB"), "{}", out.stderr);
    // A step that goes on without the process that was killed has succeeded.
    env.build(&context, &["--memory=32m", "--memory-swap=32m"]).ok().contains(" after\n");
    let run = env.rbuild(["run", "-m", "32m", "--memory-swap", "32m", "busybox", "tail", "/dev/zero"]).run().exits(137);
    assert!(run.stderr.contains("out of memory, peak 32MiB of 32MiB"), "{}", run.stderr);
}

#[test]
fn limits_are_those_that_were_asked_for() {
    if !require_root() {
        return;
    }
    let env = TestEnv::busybox();
    let script = "grep Cpus_allowed_list /proc/self/status; ulimit -n; ulimit -Hn; df -k /dev/shm | tail -1 | tr -s ' ' | cut -d' ' -f2; \
                  grep -E 'NoNewPrivs|Seccomp:' /proc/self/status";
    let context = env.dockerfile("c", &format!("FROM busybox\nRUN {script}\n"));
    let args = [
        "--cpuset-cpus=1",
        "--resource=cpuset-cpus=0",
        "--ulimit=nofile=123:456",
        "--shm-size=5m",
        "--security-opt=no-new-privileges",
        "--security-opt=seccomp=unconfined",
    ];
    let out = env.build(&context, &args).ok();
    let lines: Vec<String> =
        out.stderr.lines().map(|line| line.split_whitespace().skip(2).collect::<Vec<_>>().join(" ")).collect();
    for wanted in ["Cpus_allowed_list: 0", "123", "456", "5120", "NoNewPrivs: 1", "Seccomp: 0"] {
        assert!(lines.iter().any(|line| line == wanted), "{wanted} is missing in\n{}", out.stderr);
    }
}

#[test]
fn a_limit_that_cannot_be_had_is_an_error() {
    let env = TestEnv::busybox();
    let context = env.dockerfile("c", "FROM busybox\nRUN echo started\n");
    env.build(&context, &["--cpuset-cpus=4000"]).run().exits(1).contains("cannot limit");
    env.build(&context, &["--memory=1m"]).run().exits(2).contains("6m");
    env.build(&context, &["--ulimit=nonsense=1"]).run().exits(2).contains("nonsense");
    env.build(&context, &["--security-opt=seccomp=/x.json"]).run().exits(2).contains("/x.json");
    env.build(&context, &["--resource=cpuset-cpus=4000"]).run().exits(1).contains("cannot limit");
    env.build(&context, &["--resource=pids=3"]).run().exits(2).contains("pids");
}

#[test]
pub(crate) fn a_profile_of_system_calls_from_a_file_is_the_steps_filter() {
    let env = TestEnv::busybox();
    let profile = |rules: &str| {
        let json = format!(
            r#"{{"defaultAction":"SCMP_ACT_ALLOW","archMap":[{{"architecture":"SCMP_ARCH_X86_64","subArchitectures":["SCMP_ARCH_X86"]}},
                 {{"architecture":"SCMP_ARCH_AARCH64","subArchitectures":["SCMP_ARCH_ARM"]}}],"syscalls":[{rules}]}}"#
        );
        std::fs::write(env.path("profile.json"), json).expect("ours");
        format!("--security-opt=seccomp={}", env.path("profile.json").display())
    };
    let context = env.dockerfile(
        "c",
        "FROM busybox\nRUN mkdir /a 2>&1; echo mkdir $?; grep -E 'Seccomp:' /proc/self/status; \\\n\
         chmod 700 /tmp 2>&1; echo chmod $?; chmod 777 /tmp; echo other $?; hostname x 2>&1; echo hostname $?; true\n",
    );
    let rules = r#"{"names":["mkdir","mkdirat","a_call_of_tomorrow"],"action":"SCMP_ACT_ERRNO","errnoRet":18},
        {"names":["chmod"],"action":"SCMP_ACT_ERRNO","errnoRet":17,"args":[{"index":1,"value":448,"op":"SCMP_CMP_EQ"}]},
        {"names":["fchmodat","fchmodat2"],"action":"SCMP_ACT_ERRNO","errnoRet":17,"args":[{"index":2,"value":511,"valueTwo":448,"op":"SCMP_CMP_MASKED_EQ"}]},
        {"names":["sethostname"],"action":"SCMP_ACT_ERRNO","errnoRet":5,"excludes":{"caps":["CAP_SYS_ADMIN"]}}"#;
    let out = env.build(&context, &[&profile(rules)]).ok();
    for wanted in [
        "Invalid cross-device link",
        "mkdir 1",
        "Seccomp:        2",
        "File exists",
        "chmod 1",
        "other 0",
        "Input/output error",
        "hostname 1",
    ] {
        assert!(out.stderr.contains(wanted), "{wanted:?} is not in\n{}", out.stderr);
    }
    // One that kills says by which signal, and the same filter is there in a shell.
    let killer = profile(r#"{"names":["mkdir","mkdirat"],"action":"SCMP_ACT_KILL_PROCESS"}"#);
    let context = env.dockerfile("k", "FROM busybox\nRUN mkdir /a; echo status $?; false\n");
    env.build(&context, &[&killer]).run().exits(1).contains("status 159");
    env.rbuild(["shell", "--", "sh", "-c", "mkdir /a; echo status $?"]).ok().contains("status 159");
    env.build(&context, &[&profile(r#"{"names":["mkdir"],"action":"SCMP_ACT_HOPE"}"#)])
        .run()
        .exits(2)
        .contains("SCMP_ACT_HOPE");
}

#[test]
fn what_a_step_used_is_told_everywhere() {
    let env = TestEnv::busybox();
    let script = "head -c 40m /dev/zero > /f; sync; head -c 30m /dev/urandom | sha256sum; sleep 1";
    let context = env.dockerfile("c", &format!("FROM busybox\nRUN {script}\n"));
    let file = env.path("metadata.json").display().to_string();
    let out = env.build(&context, &["--metadata-file", &file]).ok();
    assert!(out.stderr.contains("s (cpu ") && out.stderr.contains(", memory "), "{}", out.stderr);
    let json = |text: &str| -> serde_json::Value { serde_json::from_str(text).expect("JSON") };
    let metadata = json(&std::fs::read_to_string(&file).expect("written"));
    let record = json(&env.rbuild(["builds", "inspect", "--format", "json"]).ok().stdout);
    let raw = env.rbuild(["build", "--no-cache", "--progress", "rawjson"]).arg(context.dir()).ok().stderr;
    let raw: Vec<serde_json::Value> = raw.lines().filter(|line| line.starts_with('{')).map(json).collect();
    let used = |steps: &serde_json::Value| -> serde_json::Value {
        let mut used = steps.as_array().into_iter().flatten().map(|step| step["used"].clone());
        used.find(|used| !used.is_null()).unwrap_or_default()
    };
    let mut vertices = raw.iter().flat_map(|line| line["vertexes"].as_array().cloned().unwrap_or_default());
    let vertex = vertices.rfind(|vertex| !vertex["usage"].is_null()).expect("a step that used something");
    for used in [used(&metadata["rbuild.steps"]), used(&record["steps"]), vertex["usage"].clone()] {
        let number = |name: &str| used[name].as_f64().unwrap_or(-1.0);
        assert!(number("cpuSeconds") > 0.01 && number("wallSeconds") >= 1.0, "{used}");
        assert!(number("peakMemoryBytes") > 300_000.0 && number("writtenBytes") >= 40_000_000.0, "{used}");
    }
    env.rbuild(["builds", "inspect"]).ok().contains("MEMORY");
}

#[test]
fn a_parent_group_holds_the_step_while_it_runs() {
    if !require_root() {
        return;
    }
    let env = TestEnv::busybox();
    let parent = format!("rbuild-test-{}/inner", std::process::id());
    let context = env.dockerfile("c", "FROM busybox\nRUN echo under way; sleep 300\n");
    let mut build = env.build(&context, &["--cgroup-parent", &parent]).spawn();
    build.wait_for(" under way\n");
    let places = || -> Vec<std::path::PathBuf> {
        let tops = std::fs::read_dir("/sys/fs/cgroup").expect("control groups").flatten().map(|entry| entry.path());
        tops.chain(["/sys/fs/cgroup".into()]).map(|top| top.join(&parent)).filter(|path| path.exists()).collect()
    };
    let held = places();
    let is_populated = |group: &std::path::PathBuf| {
        let steps = std::fs::read_dir(group).expect("a group").flatten().flat_map(|launcher| {
            std::fs::read_dir(launcher.path()).into_iter().flatten().flatten().map(|step| step.path())
        });
        steps
            .into_iter()
            .any(|step| std::fs::read_to_string(step.join("cgroup.procs")).is_ok_and(|text| !text.is_empty()))
    };
    assert!(!held.is_empty() && held.iter().all(is_populated), "{held:?}");
    build.signal_group(rustix::process::Signal::INT);
    assert_eq!(build.finish().code, Some(130));
    assert_eq!(places(), Vec::<std::path::PathBuf>::new(), "groups that were made for the build are gone");
    env.build(&context, &["--cgroup-parent", "../x"]).run().exits(2);
}

#[test]
pub(crate) fn a_step_that_takes_too_long_shows_its_processes_and_is_killed() {
    let env = TestEnv::busybox();
    let context = env.dockerfile("c", "FROM busybox\nRUN echo begun; sleep 321 & sleep 322\n");
    let out = env.build(&context, &["--step-timeout=1s"]).timeout(30).run().exits(1);
    for wanted in ["--step-timeout", "within 1s", "the step's processes", " sleep 321\n", " sleep 322\n"] {
        assert!(out.stderr.contains(wanted), "{wanted:?} is not in\n{}", out.stderr);
    }
    env.assert_clean();
    // Whoever prints is not idle.
    let lively = "FROM busybox\nRUN for n in 1 2 3 4 5 6; do echo $n; sleep 0.5; done; sleep 323\n";
    let out = env.build(&env.dockerfile("d", lively), &["--idle-timeout=2s"]).timeout(30).run().exits(1);
    assert!(out.stderr.contains(" 6\n") && out.stderr.contains("printed nothing for 2s"), "{}", out.stderr);
    env.build(&context, &["--idle-timeout=never"]).run().exits(2);
}
