//! Facts about the machine that explain what does not work.

use std::fs;
use std::path::{Path, PathBuf};

/// What AppArmor has to be told where it restricts user namespaces; packages install it as it is.
const PROFILE: &str = include_str!("../../docs/apparmor/rbuild");
/// Where that expects the program.
const INSTALLED: &str = "/usr/bin/rbuild";

/// What can be read without trying anything.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Machine {
    /// Version of the kernel.
    pub kernel: String,
    /// Its architecture.
    pub architecture: String,
    /// What we are inside of, if it shows.
    pub container: Option<&'static str>,
    /// Whether ids are those of a user namespace that somebody else made.
    pub in_user_namespace: bool,
    /// How many ids are mapped.
    pub ids: u64,
    /// `kernel.apparmor_restrict_unprivileged_userns`
    pub apparmor_restricts: bool,
    /// `kernel.unprivileged_userns_clone` is 0.
    pub clone_forbidden: bool,
    /// `user.max_user_namespaces`
    pub max_user_namespaces: Option<u64>,
    /// Whether a system call filter is above us already.
    pub filtered: bool,
    /// The caller's name or number.
    pub user: String,
    /// This program.
    pub program: PathBuf,
    /// Whether newuidmap is installed.
    pub has_newuidmap: bool,
}

impl Machine {
    /// Reads it all.
    #[must_use]
    pub fn look() -> Self {
        let setting = |name: &str| fs::read_to_string(Path::new("/proc/sys").join(name)).ok();
        let number = |name: &str| setting(name).and_then(|text| text.trim().parse::<u64>().ok());
        let uname = rustix::system::uname();
        let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let own_map = outer_uid(&map);
        Self {
            kernel: uname.release().to_string_lossy().into_owned(),
            architecture: uname.machine().to_string_lossy().into_owned(),
            container: container(|path| Path::new(path).exists(), |name| std::env::var(name).ok()),
            in_user_namespace: !map.split_whitespace().eq(["0", "0", "4294967295"]),
            ids: mapped_ids(&map),
            apparmor_restricts: number("kernel/apparmor_restrict_unprivileged_userns") == Some(1),
            clone_forbidden: number("kernel/unprivileged_userns_clone") == Some(0),
            max_user_namespaces: number("user/max_user_namespaces"),
            filtered: status.lines().any(|line| line.strip_prefix("Seccomp:").is_some_and(|mode| mode.trim() != "0")),
            user: user_name(&fs::read_to_string("/etc/passwd").unwrap_or_default(), own_map),
            program: std::env::current_exe().unwrap_or_else(|_| "/usr/bin/rbuild".into()),
            has_newuidmap: ["/usr/bin", "/usr/local/bin", "/bin"]
                .iter()
                .any(|dir| Path::new(dir).join("newuidmap").exists()),
        }
    }

    pub(super) fn describe(&self) -> String {
        let inside = match self.container {
            Some(kind) if self.filtered => format!(", inside {kind} with a system call filter"),
            Some(kind) => format!(", inside {kind}"),
            None if self.filtered => ", under a system call filter".to_owned(),
            None => String::new(),
        };
        format!("Linux {} on {}{inside}", self.kernel, self.architecture)
    }

    /// How user namespaces can be had.
    pub(super) fn fix_for_user_namespaces(&self) -> Option<String> {
        if self.apparmor_restricts {
            let program = self.program.display();
            return Some(format!(
                "as root, write /etc/apparmor.d/rbuild:\n{}and load it: apparmor_parser -r /etc/apparmor.d/rbuild",
                PROFILE.replace(INSTALLED, &program.to_string())
            ));
        }
        if self.clone_forbidden {
            return Some("sysctl -w kernel.unprivileged_userns_clone=1".to_owned());
        }
        if self.max_user_namespaces == Some(0) {
            return Some("sysctl -w user.max_user_namespaces=15000".to_owned());
        }
        self.fix_for_launcher()
    }

    /// How the namespaces of steps can be had, where we are told no.
    pub(super) fn fix_for_launcher(&self) -> Option<String> {
        self.container.map(|kind| {
            format!(
                "{kind} forbids it: permit clone, unshare, mount and pivot_root in its system call filter (docker run \
                 --security-opt seccomp=unconfined --security-opt apparmor=unconfined; in Kubernetes \
                 securityContext.seccompProfile.type=Unconfined)"
            )
        })
    }

    /// How subordinate ids can be had.
    pub(super) fn fix_for_ids(&self) -> String {
        let user = &self.user;
        let add = format!("usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {user}");
        if self.has_newuidmap { format!("as root: {add}") } else { format!("as root: apt-get install uidmap && {add}") }
    }
}

/// The id outside that is 0 inside.
fn outer_uid(map: &str) -> u32 {
    let mut numbers = map.split_whitespace();
    match (numbers.next(), numbers.next()) {
        (Some("0"), Some(outer)) => outer.parse().unwrap_or(0),
        _ => rustix::process::getuid().as_raw(),
    }
}

fn mapped_ids(map: &str) -> u64 {
    map.lines().filter_map(|line| line.split_whitespace().nth(2)?.parse::<u64>().ok()).sum()
}

fn user_name(passwd: &str, uid: u32) -> String {
    let named = passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then(|| name.to_owned())
    });
    named.unwrap_or_else(|| uid.to_string())
}

/// What gives itself away.
fn container(exists: impl Fn(&str) -> bool, variable: impl Fn(&str) -> Option<String>) -> Option<&'static str> {
    if variable("KUBERNETES_SERVICE_HOST").is_some() {
        return Some("a Kubernetes pod");
    }
    if exists("/.dockerenv") {
        return Some("a docker container");
    }
    if exists("/run/.containerenv") {
        return Some("a podman container");
    }
    variable("container").filter(|kind| !kind.is_empty()).map(|_| "a container")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_are_counted() {
        assert_eq!(mapped_ids("         0       1000          1\n         1     100000      65536\n"), 65537);
        assert_eq!(outer_uid("         0       1000          1\n"), 1000);
        assert_eq!(user_name("root:x:0:0::/:\nann:x:1000:1000::/:\n", 1000), "ann");
        assert_eq!(user_name("", 7), "7");
    }

    #[test]
    fn containers_are_known_by_what_they_leave() {
        let none = |_: &str| None;
        assert_eq!(container(|_| false, none), None);
        assert_eq!(container(|path| path == "/.dockerenv", none), Some("a docker container"));
        let pod = |name: &str| (name == "KUBERNETES_SERVICE_HOST").then(|| "10.0.0.1".to_owned());
        assert_eq!(container(|_| true, pod), Some("a Kubernetes pod"));
    }
}
