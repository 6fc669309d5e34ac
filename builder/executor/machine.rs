//! What this machine and this process can do, found out once by the launcher.

use std::os::fd::AsFd;

use rustix::fs::{Mode, OFlags};
use rustix::thread::CapabilitySet;
use sys::mount::FileSystem;

use crate::capabilities;
use crate::spec::{Capabilities, Process};

/// How overlays can be configured here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OverlayCalls {
    /// Layers one by one as descriptors (Linux 6.13).
    Descriptors,
    /// Layers one by one as strings (Linux 6.7).
    Strings,
    /// All in one string of mount(2).
    Classic,
}

impl OverlayCalls {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Descriptors => "overlay=descriptors",
            Self::Strings => "overlay=strings",
            Self::Classic => "overlay=classic",
        }
    }

    pub(crate) fn from_name(name: &str) -> Option<Self> {
        [Self::Descriptors, Self::Strings, Self::Classic].into_iter().find(|calls| calls.name() == name)
    }

    /// Tries on a file system that is never made.
    fn probe() -> Self {
        let Ok(overlay) = FileSystem::open("overlay") else { return Self::Classic };
        let Ok(root) = rustix::fs::open(c"/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty()) else {
            return Self::Classic;
        };
        if overlay.descriptor("lowerdir+", root.as_fd()).is_ok() {
            Self::Descriptors
        } else if overlay.string("lowerdir+", "/").is_ok() {
            Self::Strings
        } else {
            Self::Classic
        }
    }
}

/// The facts that steps are made by.
#[derive(Debug)]
pub(crate) struct Machine {
    pub(crate) overlay: OverlayCalls,
    /// Whether our root is root in a user namespace only.
    pub(crate) in_user_namespace: bool,
    /// Whether supplementary groups cannot be set: in a user namespace of a single id.
    pub(crate) groups_denied: bool,
    /// What this process may do, and hence the most that a step may.
    pub(crate) permitted: CapabilitySet,
}

impl Machine {
    pub(crate) fn look(overlay: Option<OverlayCalls>) -> Self {
        Self {
            overlay: overlay.unwrap_or_else(OverlayCalls::probe),
            in_user_namespace: in_user_namespace(),
            groups_denied: std::fs::read("/proc/self/setgroups").is_ok_and(|text| text.starts_with(b"deny")),
            permitted: rustix::thread::capabilities(None)
                .map_or(CapabilitySet::empty(), |capabilities| capabilities.permitted),
        }
    }

    /// The capabilities a step can have here.
    pub(crate) fn step_capabilities(&self, process: &Process) -> CapabilitySet {
        match process.capabilities {
            Capabilities::Default => capabilities::DEFAULT & self.permitted,
            Capabilities::All => self.permitted,
        }
    }
}

/// True unless ids are those of the machine itself.
pub(crate) fn in_user_namespace() -> bool {
    let Ok(map) = std::fs::read_to_string("/proc/self/uid_map") else { return false };
    let mut numbers = map.split_whitespace();
    (numbers.next(), numbers.next(), numbers.next()) != (Some("0"), Some("0"), Some("4294967295"))
}
