//! Running as an ordinary user: rbuild becomes root of a user namespace of its own, and everything else works as for root.
//!
//! With subordinate ids (/etc/subuid, /etc/subgid, and the programs newuidmap and newgidmap) an image's users all exist.
//! Without them there is one id: everything belongs to root, and changing an owner fails.
//!
//! Root of a container often has no more rights than that. It takes the same way, with the ids of the container; where a filter
//! forbids even that, what is left is [`Tier::Confined`].

use std::fs;
use std::path::Path;
use std::process::Command;

use rustix::io::Errno;
use rustix::thread::CapabilitySet;
use sys::namespace::Namespaces;
use sys::process::Cloned;
use sys::{Named, process, socket};

use crate::error::SystemError;

/// What ids a build can use, best first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tier {
    /// rbuild is root already, of the machine or of a namespace that somebody else made.
    Root,
    /// Root of an own user namespace with so many further ids.
    SubordinateIds {
        /// How many besides root.
        count: u64,
    },
    /// Root of an own user namespace with no other id.
    SingleId {
        /// Why there are no more.
        reason: String,
    },
    /// Root of a container that permits neither namespaces nor mounts: steps get another root directory and no more.
    Confined {
        /// What was refused.
        reason: String,
    },
}

/// Why rbuild cannot become root of a user namespace.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RootlessError {
    /// The kernel, or whoever configured it, does not permit user namespaces.
    #[error("user namespaces are not permitted here: {cause}")]
    Forbidden {
        /// What the kernel answered.
        cause: SystemError,
        /// What has to be changed, where that is known.
        hint: Option<&'static str>,
    },
    /// Something on the way failed.
    #[error("cannot enter a user namespace: {0}")]
    Failed(SystemError),
}

impl RootlessError {
    /// What the reader can do about it, where that is known.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Forbidden { hint, .. } => *hint,
            Self::Failed(_) => None,
        }
    }
}

/// Makes this process root of a new user and mount namespace unless it is root already.
///
/// To be called in `main` before [`crate::Launcher::start`]: the process must have one thread. It stays the same process.
pub fn enter() -> Result<Tier, RootlessError> {
    let is_root = rustix::process::geteuid().is_root();
    let rights = rustix::thread::capabilities(None).map_or(CapabilitySet::empty(), |sets| sets.effective);
    if is_root && rights.contains(CapabilitySet::SYS_ADMIN) {
        return Ok(Tier::Root);
    }
    match enter_namespace() {
        Err(RootlessError::Forbidden { cause, .. }) if is_root && rights.contains(CapabilitySet::SYS_CHROOT) => {
            Ok(Tier::Confined { reason: cause.to_string() })
        }
        other => other,
    }
}

fn enter_namespace() -> Result<Tier, RootlessError> {
    let ids = Ids { uid: rustix::process::geteuid().as_raw(), gid: rustix::process::getegid().as_raw() };
    let failed = |cause: sys::Error| RootlessError::Failed(cause.into());
    // Once in a namespace without ids there is no way back.
    let own_map = fs::File::options().write(true).open("/proc/self/uid_map");
    if let Err(cause) = own_map.call(|| "open(\"/proc/self/uid_map\", O_WRONLY)".to_owned()) {
        let hint = Some("/proc is read-only or missing here, and ids are mapped by writing there");
        return Err(RootlessError::Forbidden { cause: cause.into(), hint });
    }
    // Maps of more than the own id are written by programs with the right to, from outside of the namespace.
    let (ours, theirs) = socket::pair().map_err(failed)?;
    let target = std::process::id();
    let helper = match process::clone(Namespaces::NONE, None).map_err(failed)? {
        Cloned::Child => {
            drop(ours);
            help(&theirs, target, &ids);
            process::exit(0)
        }
        Cloned::Parent { pid, .. } => pid,
    };
    drop(theirs);
    let entered = sys::namespace::unshare(Namespaces::USER);
    let tier = match entered {
        Ok(()) => map(&ours, &ids),
        Err(error) => Err(forbidden(&error)),
    };
    drop(ours);
    while matches!(process::reap(helper), Ok(None)) {
        std::thread::sleep(std::time::Duration::from_micros(200));
    }
    let tier = tier?;
    sys::namespace::unshare(Namespaces::MOUNT).map_err(failed)?;
    Ok(tier)
}

struct Ids {
    uid: u32,
    gid: u32,
}

/// In the new namespace: has the maps written.
fn map(helper: impl std::os::fd::AsFd, ids: &Ids) -> Result<Tier, RootlessError> {
    let failed = |cause: sys::Error| RootlessError::Failed(cause.into());
    socket::send(&helper, b"map", &[], true).map_err(failed)?;
    let mut buffer = [0; 4096];
    let length = socket::receive(&helper, &mut buffer, true).map_err(failed)?.length;
    let answer = String::from_utf8_lossy(&buffer[..length]).into_owned();
    if let Some(count) = answer.strip_prefix("mapped ").and_then(|count| count.parse().ok()) {
        return Ok(Tier::SubordinateIds { count });
    }
    let write = |path: &str, text: String| fs::write(path, &text).call(|| format!("write({path:?}, {text:?})"));
    // A half of the maps may have been written, which cannot be taken back.
    write("/proc/self/setgroups", "deny".to_owned())
        .and_then(|()| write("/proc/self/gid_map", format!("0 {} 1", ids.gid)))
        .and_then(|()| write("/proc/self/uid_map", format!("0 {} 1", ids.uid)))
        .map_err(failed)?;
    Ok(Tier::SingleId { reason: answer })
}

/// Outside of the new namespace: writes its maps by means of newuidmap and newgidmap, or says why not.
fn help(rbuild: impl std::os::fd::AsFd, target: u32, ids: &Ids) {
    let mut buffer = [0; 16];
    if !socket::receive(&rbuild, &mut buffer, true).is_ok_and(|message| message.length > 0) {
        return;
    }
    let answer = match write_maps(target, ids) {
        Ok(count) => format!("mapped {count}"),
        Err(reason) => reason,
    };
    let answer = &answer.as_bytes()[..answer.len().min(4000)];
    socket::send(&rbuild, answer, &[], true).ok();
}

fn write_maps(target: u32, ids: &Ids) -> Result<u64, String> {
    if ids.uid == 0 {
        return keep_ids(target);
    }
    let name = user_name(&fs::read_to_string("/etc/passwd").unwrap_or_default(), ids.uid);
    let ranges = |file: &str| {
        let text = fs::read_to_string(file).map_err(|error| format!("{file} cannot be read: {error}"))?;
        let ranges = subordinate_ranges(&text, name.as_deref(), ids.uid);
        if ranges.is_empty() { Err(format!("{file} grants this user no subordinate ids")) } else { Ok(ranges) }
    };
    let (uids, gids) = (ranges("/etc/subuid")?, ranges("/etc/subgid")?);
    // The group map first: if that fails nothing has been written yet, and one id is still to be had.
    for (program, own, ranges) in [("newgidmap", ids.gid, &gids), ("newuidmap", ids.uid, &uids)] {
        let output = Command::new(program).arg(target.to_string()).args(map_arguments(own, ranges)).output();
        let output = output.map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => format!("{program} is not installed (Debian: uidmap)"),
            _ => format!("{program} cannot be executed: {error}"),
        })?;
        if !output.status.success() {
            return Err(format!("{program} failed: {}", String::from_utf8_lossy(&output.stderr).trim()));
        }
    }
    Ok(uids.iter().map(|(_, count)| count).sum())
}

/// Root of a container keeps all ids that the container has.
fn keep_ids(target: u32) -> Result<u64, String> {
    let mut count = 0;
    for (own, map) in [("/proc/self/gid_map", "gid_map"), ("/proc/self/uid_map", "uid_map")] {
        let path = format!("/proc/{target}/{map}");
        let text = fs::read_to_string(own).map_err(|error| format!("{own} cannot be read: {error}"))?;
        fs::write(&path, same_ids(&text)).map_err(|error| format!("{path} cannot be written: {error}"))?;
        count = own_ranges(&text).iter().map(|(_, length)| length).sum::<u64>().saturating_sub(1);
    }
    Ok(count)
}

/// A map for a namespace within, in which every id is itself.
pub(crate) fn same_ids(map: &str) -> String {
    own_ranges(map).iter().map(|(first, length)| format!("{first} {first} {length}\n")).collect()
}

/// First id and number of ids of every range of an id map (user_namespaces(7)), as seen from inside.
fn own_ranges(map: &str) -> Vec<(u64, u64)> {
    let range = |line: &str| {
        let mut fields = line.split_whitespace().map(str::parse);
        match (fields.next(), fields.next(), fields.next()) {
            (Some(Ok(first)), Some(Ok(_)), Some(Ok(length))) => Some((first, length)),
            _ => None::<(u64, u64)>,
        }
    };
    map.lines().filter_map(range).collect()
}

/// Root is oneself; the rest follows without gaps.
fn map_arguments(own: u32, ranges: &[(u64, u64)]) -> Vec<String> {
    let mut arguments = vec!["0".to_owned(), own.to_string(), "1".to_owned()];
    let mut inside = 1;
    for (start, count) in ranges {
        arguments.extend([inside.to_string(), start.to_string(), count.to_string()]);
        inside += count;
    }
    arguments
}

fn user_name(passwd: &str, uid: u32) -> Option<String> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then(|| name.to_owned())
    })
}

/// First id and number of ids of every range that is a user's.
fn subordinate_ranges(text: &str, name: Option<&str>, uid: u32) -> Vec<(u64, u64)> {
    let line = |line: &str| {
        let mut fields = line.trim().split(':');
        let owner = fields.next()?;
        let range = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        (Some(owner) == name || owner.parse() == Ok(uid)).then_some(range)
    };
    text.lines().filter_map(line).filter(|(_, count)| *count > 0).collect()
}

/// Says what is in the way, as far as it can be seen.
fn forbidden(error: &sys::Error) -> RootlessError {
    let is = |path: &str, value: &str| fs::read_to_string(Path::new(path)).is_ok_and(|text| text.trim() == value);
    let hint = if is("/proc/sys/kernel/unprivileged_userns_clone", "0") {
        Some("an administrator can permit them: sysctl kernel.unprivileged_userns_clone=1")
    } else if is("/proc/sys/user/max_user_namespaces", "0") {
        Some("an administrator can permit them: sysctl user.max_user_namespaces=15000")
    } else if is("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1") {
        Some("AppArmor permits them only to programs with a profile that says so")
    } else if matches!(error.errno(), Errno::PERM | Errno::NOSYS) {
        Some("inside a container, its system call filter may be what forbids them")
    } else if error.errno() == Errno::NOSPC {
        Some("the limit of nested or of all user namespaces is reached")
    } else {
        None
    };
    RootlessError::Forbidden { cause: error.clone().into(), hint }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_found_by_name_and_by_number() {
        let text = "anna:100000:65536\nberta:165536:65536\n1000:300000:10\nbroken\nanna:x:1\nanna:400000:0\n";
        assert_eq!(subordinate_ranges(text, Some("anna"), 1000), [(100_000, 65536), (300_000, 10)]);
        assert_eq!(subordinate_ranges(text, None, 1), []);
        assert_eq!(
            own_ranges("         0     100000      65536\n     65536          5          1\n"),
            [(0, 65536), (65536, 1)]
        );
        assert_eq!(user_name("root:x:0:0::/:\nanna:x:1000:1000::/:\n", 1000).as_deref(), Some("anna"));
        assert_eq!(
            map_arguments(1000, &[(100_000, 65536), (300_000, 10)]),
            ["0", "1000", "1", "1", "100000", "65536", "65537", "300000", "10"]
        );
    }
}
