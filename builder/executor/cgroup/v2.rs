//! The second version of control groups: one hierarchy, controllers handed down level by level.

use std::fs;
use std::path::Path;
use std::time::Duration;

use super::v1::Kind;
use super::{Counted, keyed, number, write};
use crate::error::Error;
use crate::spec::Limits;

/// Hands controllers down from the top of a hierarchy to the children of a group.
pub(super) fn delegate(top: &Path, group: &Path, controllers: &[&str]) -> sys::Result<()> {
    let below = group.strip_prefix(top).unwrap_or(Path::new(""));
    let mut path = top.to_owned();
    let mut result = Ok(());
    for part in std::iter::once(None).chain(below.components().map(Some)) {
        if let Some(part) = part {
            path.push(part);
        }
        // One by one: a controller that does not exist would take the others with it.
        for controller in controllers {
            if let Err(error) = write(&path.join("cgroup.subtree_control"), &format!("+{controller}")) {
                result = Err(error);
            }
        }
    }
    result
}

/// Whether a step's group has a controller, after it was asked for once more.
pub(super) fn has_controller(top: &Path, home: &Path, step: &Path, kind: Kind) -> bool {
    let listed = || {
        let text = fs::read_to_string(step.join("cgroup.controllers")).unwrap_or_default();
        text.split_whitespace().any(|name| name == kind.name())
    };
    listed() || (delegate(top, home, &[kind.name()]).is_ok() && listed())
}

/// Sets the limits that belong to one controller.
pub(super) fn limit(step: &Path, kind: Kind, limits: &Limits) -> Result<(), Error> {
    let set = |file: &str, text: String| {
        write(&step.join(file), &text)
            .map_err(|error| Error::Limit { what: kind.what().to_owned(), why: error.to_string() })
    };
    match kind {
        Kind::Memory => {
            let Some(memory) = limits.memory else { return Ok(()) };
            set("memory.max", memory.to_string())?;
            match limits.memory_swap {
                Some(swap) if swap < 0 => set("memory.swap.max", "max".to_owned()),
                Some(swap) => set("memory.swap.max", swap.unsigned_abs().saturating_sub(memory).to_string()),
                // As Docker: as much swap again as memory. A kernel that does not count swap has nothing to limit.
                None => {
                    set("memory.swap.max", memory.to_string()).ok();
                    Ok(())
                }
            }
        }
        Kind::Cpu => {
            if let Some(shares) = limits.cpu_shares {
                set("cpu.weight", weight(shares).to_string())?;
            }
            if limits.cpu_quota.is_some() || limits.cpu_period.is_some() {
                let period = limits.cpu_period.unwrap_or(100_000);
                let quota =
                    limits.cpu_quota.filter(|quota| *quota > 0).map_or("max".to_owned(), |quota| quota.to_string());
                set("cpu.max", format!("{quota} {period}"))?;
            }
            Ok(())
        }
        Kind::Cpuset => {
            if let Some(cpus) = &limits.cpuset_cpus {
                set("cpuset.cpus", cpus.clone())?;
            }
            if let Some(mems) = &limits.cpuset_mems {
                set("cpuset.mems", mems.clone())?;
            }
            Ok(())
        }
        Kind::Pids => limits.pids.map_or(Ok(()), |pids| set("pids.max", pids.to_string())),
    }
}

/// Shares of v1 (2 to 262144) as the weight of v2 (1 to 10000), as container runtimes convert them.
fn weight(shares: u64) -> u64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142
}

/// What the group counted, as far as it has the controllers.
pub(super) fn usage(step: &Path) -> Counted {
    let time = |key| keyed(&step.join("cpu.stat"), key).map(Duration::from_micros);
    Counted {
        user: time("user_usec"),
        system: time("system_usec"),
        peak_memory: number(&step.join("memory.peak")),
        oom_killed: keyed(&step.join("memory.events"), "oom_kill").is_some_and(|count| count > 0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // No machine with these controllers in v2 is at hand: the files are checked in a directory that mimics a group.
    #[test]
    fn limits_are_written_in_the_terms_of_v2() {
        let step = tempfile::tempdir().expect("temporary directory");
        let limits = Limits {
            memory: Some(1 << 20),
            memory_swap: Some(3 << 20),
            cpu_shares: Some(1024),
            cpu_quota: Some(50_000),
            cpu_period: None,
            cpuset_cpus: Some("0-1".to_owned()),
            cpuset_mems: Some("0".to_owned()),
            pids: Some(64),
            parent: None,
        };
        for kind in Kind::needed(&limits) {
            limit(step.path(), kind, &limits).expect("limit");
        }
        let read = |file: &str| fs::read_to_string(step.path().join(file)).expect(file);
        assert_eq!(read("memory.max"), "1048576");
        assert_eq!(read("memory.swap.max"), "2097152");
        assert_eq!(read("cpu.weight"), "39");
        assert_eq!(read("cpu.max"), "50000 100000");
        assert_eq!(read("cpuset.cpus"), "0-1");
        assert_eq!(read("cpuset.mems"), "0");
        assert_eq!(read("pids.max"), "64");
    }

    #[test]
    fn controllers_are_handed_down_every_level() {
        let top = tempfile::tempdir().expect("temporary directory");
        let home = top.path().join("rbuild/launcher");
        fs::create_dir_all(home.join("step")).expect("mkdir");
        fs::write(home.join("step/cgroup.controllers"), "cpu pids\n").expect("write");
        assert!(has_controller(top.path(), &home, &home.join("step"), Kind::Pids));
        assert!(!has_controller(top.path(), &home, &home.join("step"), Kind::Memory));
        for level in [top.path(), &top.path().join("rbuild"), &home] {
            assert_eq!(fs::read_to_string(level.join("cgroup.subtree_control")).expect("read"), "+memory");
        }
    }

    #[test]
    fn what_is_counted_is_read() {
        let step = tempfile::tempdir().expect("temporary directory");
        fs::write(step.path().join("cpu.stat"), "usage_usec 7\nuser_usec 5\nsystem_usec 2\n").expect("write");
        fs::write(step.path().join("memory.peak"), "4096\n").expect("write");
        fs::write(step.path().join("memory.events"), "low 0\noom_kill 1\n").expect("write");
        let counted = Counted {
            user: Some(Duration::from_micros(5)),
            system: Some(Duration::from_micros(2)),
            peak_memory: Some(4096),
            oom_killed: true,
        };
        assert_eq!(usage(step.path()), counted);
    }
}
