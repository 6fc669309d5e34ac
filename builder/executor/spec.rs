//! What a step is: plain data, sent to the launcher and carried out by the step's own process before it executes.

use std::net::IpAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use crate::seccomp::SeccompProfile;

/// One process and the world it sees.
///
/// [`Process::new`] gives what a `RUN` gets by default; the fields are then changed at will.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Process {
    /// The root file system.
    pub root: Root,
    /// Whether the root file system itself (not what is mounted into it) is read-only.
    pub readonly_root: bool,
    /// The program, looked up in the environment's PATH when it has no slash, and its arguments.
    pub args: Vec<String>,
    /// `NAME=value`; of equal names the last counts. HOME is added from the root's /etc/passwd when missing.
    pub env: Vec<String>,
    /// Working directory inside the root; created, owned by the user, when missing.
    pub cwd: String,
    /// As USER has it: `name`, `uid`, `name:group`, `uid:gid`; empty is root. Names are looked up inside the root.
    pub user: String,
    /// Groups beside those of the user.
    pub additional_gids: Vec<u32>,
    /// The host name inside.
    pub hostname: String,
    /// Domain lookup and host name files, mounted over those of the root.
    pub files: EtcFiles,
    /// Further mounts, made in this order: an outer one has to come before what is mounted inside it.
    pub mounts: Vec<Mount>,
    /// Size of /dev/shm in bytes.
    pub shm_size: u64,
    /// What network there is.
    pub network: Network,
    /// What root may do inside.
    pub capabilities: Capabilities,
    /// Which system calls exist.
    pub seccomp: Seccomp,
    /// Whether setuid programs and file capabilities have no effect. Docker's builds leave them their effect.
    pub no_new_privileges: bool,
    /// Which device nodes /dev has.
    pub devices: Devices,
    /// Paths that read as empty.
    pub masked_paths: Vec<String>,
    /// Paths that cannot be written.
    pub readonly_paths: Vec<String>,
    /// Whether /sys and the cgroup files may be written.
    pub writable_sysfs: bool,
    /// The architecture whose programs are run by an interpreter of rbuild's: where [`crate::Launcher::emulation`] said so.
    pub emulated: Option<String>,
    /// Resource limits of the kind set by ulimit, clamped to what this machine permits.
    pub rlimits: Vec<Rlimit>,
    /// Resource limits for the step as a whole. One that was asked for and cannot be had is an error.
    pub limits: Limits,
}

impl Process {
    /// A process as `RUN` starts it: root, no network, Docker's default capabilities and filter.
    pub fn new(root: Root, args: impl IntoIterator<Item = impl Into<String>>) -> Self {
        let strings = |list: &[&str]| list.iter().map(|&text| text.to_owned()).collect();
        Self {
            root,
            readonly_root: false,
            args: args.into_iter().map(Into::into).collect(),
            env: vec![DEFAULT_PATH.to_owned()],
            cwd: "/".to_owned(),
            user: String::new(),
            additional_gids: Vec::new(),
            hostname: "buildkitsandbox".to_owned(),
            files: EtcFiles::default(),
            mounts: Vec::new(),
            shm_size: DEFAULT_SHM_SIZE,
            network: Network::None,
            capabilities: Capabilities::Default,
            seccomp: Seccomp::Default,
            no_new_privileges: false,
            devices: Devices::Standard,
            masked_paths: strings(MASKED_PATHS),
            readonly_paths: strings(READONLY_PATHS),
            writable_sysfs: false,
            emulated: None,
            rlimits: Vec::new(),
            limits: Limits::default(),
        }
    }

    /// Lifts what separates root inside from root outside, as `RUN --security=insecure` asks for: all capabilities that rbuild
    /// has, no system call filter, no masked paths, the host's device nodes.
    #[must_use]
    pub fn insecure(mut self) -> Self {
        self.capabilities = Capabilities::All;
        self.seccomp = Seccomp::Unconfined;
        self.devices = Devices::Privileged;
        self.masked_paths.clear();
        self.readonly_paths.clear();
        self.writable_sysfs = true;
        self
    }
}

/// Size of /dev/shm unless somebody asks for another.
pub const DEFAULT_SHM_SIZE: u64 = 64 << 20;

/// The environment a step has when the image sets no PATH.
pub const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What of /proc and /sys tells about the machine rather than the container, as Docker hides it.
pub const MASKED_PATHS: &[&str] = &[
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];

/// What of /proc changes the machine when written, as Docker protects it.
pub const READONLY_PATHS: &[&str] = &["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Where the root file system comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Root {
    /// Layers under a writable one.
    Overlay(Overlay),
    /// The same, joined by a program as fuse-overlayfs does it, where the kernel does not.
    Served {
        /// The layers.
        overlay: Overlay,
        /// The host's path of the program; see [`crate::Launcher::try_served`].
        #[serde(with = "host_path")]
        program: PathBuf,
    },
    /// A directory as it is.
    Bind(#[serde(with = "host_path")] PathBuf),
}

/// Layers joined by overlayfs. All paths are the host's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Overlay {
    /// The layers below, topmost first; at least one.
    #[serde(with = "host_paths")]
    pub lowers: Vec<PathBuf>,
    /// Where changes go; none makes the whole read-only.
    pub changes: Option<Changes>,
}

/// The two directories that an overlay writes to, on one file system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changes {
    /// Receives new and changed files, and the marks of removed ones.
    #[serde(with = "host_path")]
    pub upper: PathBuf,
    /// The kernel's own working space, empty.
    #[serde(with = "host_path")]
    pub work: PathBuf,
}

/// Something mounted into the root.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// Where, inside the root; relative to `/`. Symbolic links are followed inside the root; missing parts are created.
    pub destination: String,
    /// What.
    pub source: Source,
    /// Whether it cannot be written.
    pub readonly: bool,
}

/// What is mounted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Source {
    /// A directory or file of the host.
    Bind {
        /// The host's path.
        #[serde(with = "host_path")]
        path: PathBuf,
        /// A path beneath it, resolved there with no way out; empty is itself.
        selector: String,
        /// Whether mounts below it come along.
        recursive: bool,
    },
    /// Layers, of which a part may be selected; changes go where the overlay says and the caller throws them away.
    Overlay {
        /// The layers.
        overlay: Overlay,
        /// A path beneath the layers' root, resolved there with no way out; empty is itself.
        selector: String,
    },
    /// The same, joined by a program.
    Served {
        /// The layers.
        overlay: Overlay,
        /// The host's path of the program.
        #[serde(with = "host_path")]
        program: PathBuf,
        /// A path beneath the layers' root, resolved there with no way out; empty is itself.
        selector: String,
    },
    /// An empty file system in memory.
    Tmpfs {
        /// Its size in bytes; none leaves the kernel's default.
        size: Option<u64>,
        /// Mode of its root directory.
        mode: u32,
    },
    /// One file in memory that is on no disk: a secret, for one.
    File {
        /// What it holds.
        content: Vec<u8>,
        /// Its mode.
        mode: u32,
        /// Its owner.
        uid: u32,
        /// Its group.
        gid: u32,
    },
}

/// Files of /etc that describe the network, read-only for the step and never part of a layer. None leaves the image's.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EtcFiles {
    /// /etc/resolv.conf
    pub resolv_conf: Option<Vec<u8>>,
    /// /etc/hosts
    pub hosts: Option<Vec<u8>>,
    /// /etc/hostname
    pub hostname: Option<Vec<u8>>,
}

/// What network a step has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Network {
    /// Its own, with nothing but the loopback interface.
    None,
    /// Its own, from which it reaches out through a process of rbuild's; see [`crate::Launcher::private_network`].
    Private(Gateway),
    /// The one rbuild itself has.
    Host,
}

/// What addresses of a private network stand for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gateway {
    /// The first that fits counts. Other addresses of the private network lead nowhere; those outside are themselves.
    pub forwards: Vec<Forward>,
}

/// One address of a private network that stands for one outside, which may be on the machine's own loopback.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forward {
    /// As the step has it.
    pub inside: IpAddr,
    /// The only port; none is all of them.
    pub port: Option<u16>,
    /// As the machine has it.
    pub outside: IpAddr,
}

/// What root may do inside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Capabilities {
    /// Docker's fourteen.
    Default,
    /// All that rbuild itself has.
    All,
}

/// Which system calls exist.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Seccomp {
    /// Docker's default profile.
    Default,
    /// That of a file.
    Profile(Box<SeccompProfile>),
    /// All.
    Unconfined,
}

/// Which device nodes /dev has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Devices {
    /// null, zero, full, random, urandom, tty, and the terminals.
    Standard,
    /// Also those that privileged programs look for: fuse, kvm, loop devices and the like, as far as the host has them.
    Privileged,
}

/// One limit of setrlimit(2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rlimit {
    /// Of what.
    pub resource: Resource,
    /// What holds; none is unlimited.
    pub soft: Option<u64>,
    /// Up to which the process may raise it itself; none is unlimited.
    pub hard: Option<u64>,
}

/// The resources of setrlimit(2), by the names of Docker's `--ulimit`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "the names are those of setrlimit(2)")]
pub enum Resource {
    Core,
    Cpu,
    Data,
    Fsize,
    Locks,
    Memlock,
    Msgqueue,
    Nice,
    Nofile,
    Nproc,
    Rss,
    Rtprio,
    Rttime,
    Sigpending,
    Stack,
}

/// Limits for the step as a whole, by cgroup. The defaults are no limits.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Memory in bytes.
    pub memory: Option<u64>,
    /// Memory and swap together, in bytes; -1 is unlimited swap.
    pub memory_swap: Option<i64>,
    /// Relative weight of processor time, 1024 being the usual one.
    pub cpu_shares: Option<u64>,
    /// Microseconds of processor time in each period; negative is unlimited.
    pub cpu_quota: Option<i64>,
    /// Length of a period in microseconds.
    pub cpu_period: Option<u64>,
    /// Processors that may be used, as `0-2,4`.
    pub cpuset_cpus: Option<String>,
    /// Memory nodes that may be used, as `0-1`.
    pub cpuset_mems: Option<String>,
    /// How many processes there may be.
    pub pids: Option<u64>,
    /// The group, as a path beneath the top of each hierarchy, beneath which the step's is made.
    pub parent: Option<PathBuf>,
}

impl Limits {
    /// True when nothing is limited.
    pub fn is_unlimited(&self) -> bool {
        *self == Self::default()
    }
}

/// The size of a terminal in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct WindowSize {
    /// Lines.
    pub rows: u16,
    /// Characters in a line.
    pub columns: u16,
}

/// Host paths are bytes; serde would refuse those that are not UTF-8.
mod host_path {
    use std::ffi::OsString;
    use std::os::unix::ffi::{OsStrExt, OsStringExt};
    use std::path::{Path, PathBuf};

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
        path.as_os_str().as_bytes().serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PathBuf, D::Error> {
        Vec::<u8>::deserialize(deserializer).map(|bytes| OsString::from_vec(bytes).into())
    }
}

/// The same for lists.
pub(crate) mod host_paths {
    use std::ffi::OsString;
    use std::os::unix::ffi::{OsStrExt, OsStringExt};
    use std::path::PathBuf;

    use serde::{Deserialize, Deserializer, Serializer};

    pub(crate) fn serialize<S: Serializer>(paths: &[PathBuf], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(paths.iter().map(|path| path.as_os_str().as_bytes()))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<PathBuf>, D::Error> {
        let list = Vec::<Vec<u8>>::deserialize(deserializer)?;
        Ok(list.into_iter().map(|bytes| OsString::from_vec(bytes).into()).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::ffi::OsStringExt;

    #[test]
    fn host_paths_need_not_be_text() {
        let odd = PathBuf::from(std::ffi::OsString::from_vec(vec![b'/', 0xff, b'x']));
        let root = Root::Overlay(Overlay {
            lowers: vec![odd.clone(), "/b".into()],
            changes: Some(Changes { upper: odd, work: "/w".into() }),
        });
        let process = Process::new(root, ["true"]).insecure();
        let bytes = postcard::to_allocvec(&process).expect("encode");
        assert_eq!(postcard::from_bytes::<Process>(&bytes).expect("decode"), process);
    }
}
