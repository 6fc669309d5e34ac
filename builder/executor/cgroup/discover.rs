//! Where the hierarchies are mounted and which group of each we are in.

use std::path::{Path, PathBuf};

use super::v1::Kind;
use sys::namespace::in_user_namespace;

/// One hierarchy as far as it is visible.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Hierarchy {
    /// Where it is mounted.
    pub(crate) top: PathBuf,
    /// The directory of the group that this process is in.
    pub(crate) own: PathBuf,
    /// The only place that will do, when somebody asked for it.
    pub(crate) parent: Option<PathBuf>,
}

impl Hierarchy {
    /// Where our groups could be, best first.
    pub(crate) fn bases(&self) -> Vec<PathBuf> {
        if let Some(parent) = &self.parent {
            return vec![self.top.join(parent)];
        }
        let mut bases = Vec::new();
        // Beside everybody else, as engines do: in our own group processes live, and v2 gives controllers only to groups whose
        // parent has none. An ordinary user has nothing but what was delegated to him.
        if rustix::process::geteuid().is_root() && !in_user_namespace() {
            bases.push(self.top.join("rbuild"));
        }
        if self.own != self.top {
            bases.push(self.own.join("rbuild"));
        }
        bases
    }
}

/// The hierarchies found.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Mounts {
    pub(crate) v2: Option<Hierarchy>,
    pub(crate) v1: Vec<(Kind, Hierarchy)>,
}

impl Mounts {
    /// The same, where only the group at this path beneath each top will do.
    pub(crate) fn beneath(mut self, parent: &Path) -> Self {
        for hierarchy in self.v2.iter_mut().chain(self.v1.iter_mut().map(|(_, hierarchy)| hierarchy)) {
            hierarchy.parent = Some(parent.to_owned());
        }
        self
    }
}

/// Those of this process.
pub(crate) fn mounts() -> Mounts {
    let mountinfo = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let own = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    parse(&mountinfo, &own)
}

fn parse(mountinfo: &str, own: &str) -> Mounts {
    let mut mounts = Mounts::default();
    for line in mountinfo.lines() {
        // id parent device root mountpoint options [tags] - type source super-options
        let Some((left, right)) = line.split_once(" - ") else { continue };
        let left: Vec<&str> = left.split(' ').collect();
        let right: Vec<&str> = right.split(' ').collect();
        let (Some(root), Some(top), Some(&kind), Some(&options)) =
            (left.get(3), left.get(4), right.first(), right.get(2))
        else {
            continue;
        };
        let top = PathBuf::from(unescape(top));
        let hierarchy = |controller: &str| {
            let path = own_group(own, controller)?;
            // The mount may show a part of the hierarchy only, and we may be elsewhere.
            let inside = Path::new(path).strip_prefix(unescape(root)).ok()?;
            Some(Hierarchy {
                own: if inside == Path::new("") { top.clone() } else { top.join(inside) },
                top: top.clone(),
                parent: None,
            })
        };
        match kind {
            "cgroup2" if mounts.v2.is_none() => mounts.v2 = hierarchy(""),
            "cgroup" => {
                for kind in Kind::ALL {
                    if options.split(',').any(|option| option == kind.name())
                        && mounts.v1.iter().all(|(known, _)| *known != kind)
                        && let Some(hierarchy) = hierarchy(kind.name())
                    {
                        mounts.v1.push((kind, hierarchy));
                    }
                }
            }
            _ => {}
        }
    }
    mounts
}

/// Our group's path in the hierarchy of a v1 controller, or of v2 for the empty name.
fn own_group<'text>(own: &'text str, controller: &str) -> Option<&'text str> {
    own.lines().find_map(|line| {
        let (_, rest) = line.split_once(':')?;
        let (controllers, path) = rest.split_once(':')?;
        controllers.split(',').any(|name| name == controller).then_some(path)
    })
}

/// The kernel writes blanks and the like in octal.
fn unescape(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut plain = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        match bytes.get(at..at + 4) {
            Some([b'\\', octal @ ..]) if octal.iter().all(|digit| (b'0'..b'8').contains(digit)) => {
                plain.push(octal.iter().fold(0_u8, |value, digit| value.wrapping_mul(8).wrapping_add(digit - b'0')));
                at += 4;
            }
            _ => {
                plain.push(bytes[at]);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&plain).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PURE: (&str, &str) = (
        "26 24 0:23 / /sys rw,nosuid shared:7 - sysfs sysfs rw\n\
         30 26 0:26 / /sys/fs/cgroup rw,nosuid,nodev shared:4 - cgroup2 cgroup2 rw,nsdelegate\n",
        "0::/user.slice/user-1000.slice/session-2.scope\n",
    );
    const HYBRID: (&str, &str) = (
        "30 26 0:26 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n\
         31 26 0:27 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
         32 26 0:28 /docker/ab /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n\
         33 26 0:29 / /sys/fs/cgroup/my\\040pids rw - cgroup cgroup rw,pids\n",
        "3:pids:/\n2:memory:/docker/ab/inner\n1:cpu,cpuacct:/x\n0::/\n",
    );

    #[test]
    fn a_pure_second_version_is_found() {
        let mounts = parse(PURE.0, PURE.1);
        let top = PathBuf::from("/sys/fs/cgroup");
        let own = top.join("user.slice/user-1000.slice/session-2.scope");
        assert_eq!(mounts, Mounts { v2: Some(Hierarchy { top, own, parent: None }), v1: Vec::new() });
    }

    #[test]
    fn a_hybrid_is_found_with_its_parts() {
        let mounts = parse(HYBRID.0, HYBRID.1);
        let hierarchy = |top: &str, own: &str| Hierarchy { top: top.into(), own: own.into(), parent: None };
        let unified = "/sys/fs/cgroup/unified";
        assert_eq!(mounts.v2, Some(hierarchy(unified, unified)));
        assert_eq!(
            mounts.v1,
            [
                (Kind::Cpu, hierarchy("/sys/fs/cgroup/cpu,cpuacct", "/sys/fs/cgroup/cpu,cpuacct/x")),
                (Kind::Memory, hierarchy("/sys/fs/cgroup/memory", "/sys/fs/cgroup/memory/inner")),
                (Kind::Pids, hierarchy("/sys/fs/cgroup/my pids", "/sys/fs/cgroup/my pids")),
            ]
        );
    }

    #[test]
    fn nothing_is_found_in_nothing() {
        assert_eq!(parse("", ""), Mounts::default());
        assert_eq!(parse("garbage - cgroup2\n1 2 3 - x y z\n", "::\nx"), Mounts::default());
    }
}
