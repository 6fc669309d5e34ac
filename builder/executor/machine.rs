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

/// Old ways of doing things, taken even where the kernel has better ones. For tests of those ways.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Fallbacks {
    /// How overlays are configured; none takes the best that works.
    pub overlay: Option<OverlayCalls>,
    /// Processes are made by clone, not clone3.
    pub classic_clone: bool,
    /// The launcher runs from a copy of the program in memory, not from a read-only view of it.
    pub copied_program: bool,
    /// Steps get neither namespaces nor mounts, but another root directory.
    pub confined: bool,
}

impl Fallbacks {
    /// As arguments for the launcher's program.
    pub(crate) fn arguments(self) -> Vec<&'static str> {
        let overlay = match self.overlay {
            None => None,
            Some(OverlayCalls::Descriptors) => Some("overlay=descriptors"),
            Some(OverlayCalls::Strings) => Some("overlay=strings"),
            Some(OverlayCalls::Classic) => Some("overlay=classic"),
        };
        let classic = self.classic_clone.then_some("clone=classic");
        overlay.into_iter().chain(classic).chain(self.confined.then_some("confined")).collect()
    }

    /// From the arguments of the launcher's program.
    pub(crate) fn parse(arguments: impl Iterator<Item = String>) -> Self {
        let mut fallbacks = Self::default();
        for argument in arguments {
            match argument.as_str() {
                "overlay=descriptors" => fallbacks.overlay = Some(OverlayCalls::Descriptors),
                "overlay=strings" => fallbacks.overlay = Some(OverlayCalls::Strings),
                "overlay=classic" => fallbacks.overlay = Some(OverlayCalls::Classic),
                "clone=classic" => fallbacks.classic_clone = true,
                "confined" => fallbacks.confined = true,
                _ => {}
            }
        }
        fallbacks
    }
}

/// The facts that steps are made by.
#[derive(Debug)]
pub(crate) struct Machine {
    pub(crate) overlay: OverlayCalls,
    pub(crate) classic_clone: bool,
    /// Whether steps get neither namespaces nor mounts.
    pub(crate) confined: bool,
    /// Whether our root is root in a user namespace only.
    pub(crate) in_user_namespace: bool,
    /// Whether supplementary groups cannot be set: in a user namespace of a single id.
    pub(crate) groups_denied: bool,
    /// What this process may do, and hence the most that a step may.
    pub(crate) permitted: CapabilitySet,
}

impl Machine {
    pub(crate) fn look(fallbacks: Fallbacks) -> Self {
        Self {
            overlay: fallbacks.overlay.unwrap_or_else(OverlayCalls::probe),
            classic_clone: fallbacks.classic_clone,
            confined: fallbacks.confined,
            in_user_namespace: sys::namespace::in_user_namespace(),
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
