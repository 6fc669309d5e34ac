//! What runs in a step right now, for people who wonder why it does not end.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// One process of a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StepProcess {
    /// Its number inside the step.
    pub pid: u32,
    /// Its parent's number inside the step; 0 for the first process.
    pub parent: u32,
    /// A letter, as ps(1) prints it: R runs, S sleeps, D waits for a disk, Z has ended.
    pub state: char,
    /// Resident memory in bytes.
    pub memory: u64,
    /// Where in the kernel it waits, if the kernel tells.
    pub waits_in: Option<String>,
    /// Its command line.
    pub command: String,
}

/// All processes of the pid namespace with this number, as far as /proc shows them, first process first.
pub(crate) fn of_namespace(namespace: u64) -> Vec<StepProcess> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let inside = entries
        .filter(|entry| fs::metadata(entry.path().join("ns/pid")).is_ok_and(|metadata| metadata.ino() == namespace));
    let mut found: Vec<(u32, u32, StepProcess)> = inside.filter_map(|entry| read(&entry.path())).collect();
    let numbers: Vec<(u32, u32)> = found.iter().map(|(outer, _, process)| (*outer, process.pid)).collect();
    for (_, outer_parent, process) in &mut found {
        process.parent = numbers.iter().find(|(outer, _)| outer == outer_parent).map_or(0, |(_, inner)| *inner);
    }
    found.sort_by_key(|(_, _, process)| process.pid);
    found.into_iter().map(|(_, _, process)| process).collect()
}

/// A process with its own and its parent's number outside.
fn read(directory: &Path) -> Option<(u32, u32, StepProcess)> {
    let status = fs::read_to_string(directory.join("status")).ok()?;
    let command = fs::read(directory.join("cmdline")).unwrap_or_default();
    let command = String::from_utf8_lossy(&command).replace('\0', " ").trim().to_owned();
    let waits_in = fs::read_to_string(directory.join("wchan")).ok().filter(|text| !text.is_empty() && text != "0");
    parse(&status, command, waits_in)
}

fn parse(status: &str, command: String, waits_in: Option<String>) -> Option<(u32, u32, StepProcess)> {
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim);
    let numbers: Vec<u32> = field("NSpid")?.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    let memory = field("VmRSS").and_then(|text| text.split(' ').next()?.parse::<u64>().ok()).unwrap_or(0) * 1024;
    // What has ended, and threads of the kernel, have no command line.
    let command = if command.is_empty() { format!("[{}]", field("Name")?) } else { command };
    let process = StepProcess {
        pid: *numbers.last()?,
        parent: 0,
        state: field("State")?.chars().next()?,
        memory,
        waits_in,
        command,
    };
    Some((*numbers.first()?, field("PPid")?.parse().ok()?, process))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_read_from_what_the_kernel_says() {
        let status = "Name:\tsleep\nState:\tS (sleeping)\nPPid:\t4711\nVmRSS:\t     900 kB\nNSpid:\t4712\t9\t2\n";
        let (outer, parent, process) = parse(status, String::new(), None).expect("a process");
        assert_eq!((outer, parent), (4712, 4711));
        let want =
            StepProcess { pid: 2, parent: 0, state: 'S', memory: 900 << 10, waits_in: None, command: "[sleep]".into() };
        assert_eq!(process, want);
        assert_eq!(parse("State:\tR\n", String::new(), None), None);
    }

    #[test]
    fn one_finds_oneself() {
        let own = fs::metadata("/proc/self/ns/pid").expect("/proc").ino();
        let me = std::process::id();
        assert!(of_namespace(own).iter().any(|process| process.pid == me && !process.command.is_empty()));
    }
}
