//! What a build must not leave on the machine: processes, mounts (in whichever namespace), and the namespaces they keep.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

/// Panics when, after a grace (the kernel tears namespaces down asynchronously), some process was started for the test
/// that owns `dir`, stands in it, or holds a mount that refers to it.
#[track_caller]
pub fn assert_nothing_left_behind(dir: &Path) {
    let started = Instant::now();
    loop {
        let left = leftovers(dir);
        if left.is_empty() {
            return;
        }
        assert!(
            started.elapsed() < Duration::from_secs(5),
            "left behind by the test in {}:\n{}",
            dir.display(),
            left.join("\n")
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// What refers to `dir` right now, one line each.
pub fn leftovers(dir: &Path) -> Vec<String> {
    let needle = dir.to_string_lossy().into_owned();
    let me = std::process::id().to_string();
    let mut left = Vec::new();
    for entry in fs::read_dir("/proc").expect("/proc is mounted").flatten() {
        let pid = entry.file_name().to_string_lossy().into_owned();
        if !pid.bytes().all(|b| b.is_ascii_digit()) {
            continue;
        }
        let proc = entry.path();
        let read = |name: &str| {
            fs::read(proc.join(name)).map(|b| String::from_utf8_lossy(&b).into_owned()).unwrap_or_default()
        };
        let command = read("cmdline").replace('\0', " ");
        // A zombie is a process that somebody else has yet to collect.
        if read("stat").rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with(['Z', 'X'])) {
            continue;
        }
        if let Some(mount) = read("mountinfo").lines().find(|line| line.contains(&needle)) {
            left.push(format!("mount seen by {pid} ({command}): {mount}"));
        }
        if pid == me {
            continue;
        }
        if command.contains(&needle) || read("environ").contains(&needle) {
            left.push(format!("process {pid}: {command}"));
        }
        let stands_in = |name: &str| fs::read_link(proc.join(name)).is_ok_and(|target| target.starts_with(dir));
        if stands_in("cwd") || stands_in("root") || stands_in("exe") {
            left.push(format!("process {pid} in the test's directory: {command}"));
        }
    }
    left
}
