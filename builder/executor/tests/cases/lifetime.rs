//! Nothing outlives rbuild, however it ends; limits hold.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use executor::Error;
use executor::spec::Limits;

use crate::lab::{Lab, host_process};

/// Asked for by its first argument, this program starts a step, says so, and waits to be killed.
pub(crate) const VICTIM: &str = "--start-a-step-and-wait";

pub(crate) fn be_the_victim(launcher: &executor::Launcher, root: &str, marker: &str) {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("runtime");
    runtime.block_on(async {
        let process = executor::Process::new(executor::Root::Bind(root.into()), ["/bin/sleep", marker]);
        let running = launcher.run(process, executor::Stdio::null().expect("null")).await.expect("start");
        eprintln!("launcher {}", launcher.pid().expect("there is one"));
        std::future::pending::<()>().await;
        drop(running);
    });
}

fn wait_until(what: &str, done: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !done() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

pub(crate) fn killing_rbuild_or_its_launcher_leaves_nothing(lab: &Lab) {
    let root = lab.path("victim");
    assert!(Command::new("cp").arg("-a").arg(lab.base()).arg(&root).status().expect("cp").success());
    for (number, kill_launcher) in [(1, false), (2, true)] {
        let marker = format!("8639{number}");
        let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mounts");
        let mut victim = Command::new(std::env::current_exe().expect("own path"))
            .arg(VICTIM)
            .arg(&root)
            .arg(&marker)
            .stderr(Stdio::piped())
            .spawn()
            .expect("start");
        let mut line = String::new();
        BufReader::new(victim.stderr.take().expect("stderr")).read_line(&mut line).expect("read");
        let launcher: i32 = line.trim().strip_prefix("launcher ").and_then(|pid| pid.parse().ok()).expect("a launcher");
        assert!(host_process(&marker));
        assert_eq!(fs::read_to_string("/proc/self/mountinfo").expect("mounts"), mounts, "no mount is visible outside");
        let target = if kill_launcher { launcher } else { victim.id() as i32 };
        rustix::process::kill_process(
            rustix::process::Pid::from_raw(target).expect("pid"),
            rustix::process::Signal::KILL,
        )
        .expect("kill");
        wait_until("the step dies", || !host_process(&marker));
        victim.kill().ok();
        victim.wait().expect("wait");
        wait_until("the launcher dies", || {
            // As a zombie it waits for whoever inherits it.
            fs::read_to_string(format!("/proc/{launcher}/stat")).map_or(true, |stat| stat.contains(") Z "))
        });
    }
    // The groups of the dead go with the next launcher: of this machine's live ones, all belong to the living.
    let fresh = Command::new(std::env::current_exe().expect("own path"))
        .arg(VICTIM)
        .arg(&root)
        .arg("86393")
        .stderr(Stdio::piped())
        .spawn();
    let mut fresh = fresh.expect("start");
    let mut line = String::new();
    BufReader::new(fresh.stderr.take().expect("stderr")).read_line(&mut line).expect("read");
    let groups = crate::lab::groups();
    for group in &groups {
        let lock = fs::File::open(group).expect("open");
        assert!(
            rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockShared).is_err(),
            "{group:?} belongs to a dead launcher"
        );
    }
    if groups.is_empty() {
        eprintln!("SKIPPED in part: no control groups can be made here");
    }
    fresh.kill().expect("kill");
    fresh.wait().expect("wait");
    wait_until("the step dies", || !host_process("86393"));
}

pub(crate) fn memory_is_limited_and_its_want_is_told(lab: &Lab) {
    let mut process = lab.script("yes | head -c 200000000 | sort >/dev/null");
    process.limits = Limits { memory: Some(32 << 20), memory_swap: Some(32 << 20), ..Limits::default() };
    let done = match lab.run(process) {
        Err(Error::Limit { what, why }) => {
            eprintln!("SKIPPED: {what} cannot be limited here: {why}");
            return;
        }
        other => other.expect("start"),
    };
    assert!(done.status.oom_killed && !done.status.success(), "{done:?}");
    assert!(done.status.usage.peak_memory <= 32 << 20, "{done:?}");
}

pub(crate) fn processes_and_processors_are_limited(lab: &Lab) {
    let mut process =
        lab.script("nproc; for i in 1 2 3 4 5 6 7 8; do sleep 1 & done 2>&1 | grep -c fork; ls /sys/fs/cgroup");
    process.limits = Limits {
        pids: Some(5),
        cpuset_cpus: Some("0".to_owned()),
        cpu_shares: Some(512),
        cpu_quota: Some(50_000),
        ..Limits::default()
    };
    let done = match lab.run(process) {
        Err(Error::Limit { what, why }) => {
            eprintln!("SKIPPED: {what} cannot be limited here: {why}");
            return;
        }
        other => other.expect("start"),
    };
    assert!(done.stdout.starts_with("1\n"), "{done:?}");
    let refused = done.stdout.lines().nth(1).is_some_and(|count| count != "0") || done.stderr.contains("fork");
    assert!(refused, "{done:?}");
}

pub(crate) fn limits_that_make_no_sense_are_errors(lab: &Lab) {
    for limits in [
        Limits { memory_swap: Some(1 << 30), ..Limits::default() },
        Limits { cpuset_cpus: Some("4000".to_owned()), ..Limits::default() },
    ] {
        let mut process = lab.script("true");
        process.limits = limits;
        assert!(matches!(lab.run(process), Err(Error::Limit { .. })));
    }
}
