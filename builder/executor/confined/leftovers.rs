//! Processes that outlive a step: without a pid namespace nobody else ends them.

use std::fs;
use std::time::Duration;

use rustix::process::{Pid, Signal};
use sys::{Named, process};

/// Makes this process the parent of what its descendants leave behind.
pub(crate) fn adopt_orphans() -> sys::Result<()> {
    rustix::process::set_child_subreaper(rustix::process::getpid().into())
        .call(|| "prctl(PR_SET_CHILD_SUBREAPER, 1)".to_owned())
}

/// Kills and collects all children of this process but those named, and what they leave, until there are none.
pub(crate) fn end_all(but: &[i32]) {
    loop {
        let children: Vec<i32> = children().into_iter().filter(|pid| !but.contains(pid)).collect();
        if children.is_empty() {
            return;
        }
        for pid in &children {
            if let Some(pid) = Pid::from_raw(*pid) {
                rustix::process::kill_process(pid, Signal::KILL).ok();
            }
        }
        for pid in children {
            // A process that was killed ends soon; one that the kernel holds on to is waited for all the same, since it
            // could still write.
            while matches!(process::reap(pid), Ok(None)) {
                std::thread::sleep(Duration::from_micros(200));
            }
        }
    }
}

fn children() -> Vec<i32> {
    let own = rustix::process::getpid().as_raw_nonzero().get();
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| parent(*pid) == Some(own)).collect()
}

/// The fourth field of /proc/PID/stat (proc_pid_stat(5)); the second may hold anything, but ends with the last parenthesis.
fn parent(pid: i32) -> Option<i32> {
    let text = fs::read(format!("/proc/{pid}/stat")).ok()?;
    let end = text.iter().rposition(|byte| *byte == b')')?;
    std::str::from_utf8(&text[end + 1..]).ok()?.split_whitespace().nth(1)?.parse().ok()
}
