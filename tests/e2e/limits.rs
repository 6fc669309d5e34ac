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
        "--cpuset-cpus=0",
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
    env.build(&context, &["--security-opt=seccomp=/x.json"]).run().exits(2).contains("not supported");
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
fn a_step_that_takes_too_long_shows_its_processes_and_is_killed() {
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
