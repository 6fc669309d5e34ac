//! Namespaces: what a new process gets of its own, and joining one that exists.

use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use rustix::thread::{LinkNameSpaceType, UnshareFlags};

use crate::error::{Named, Result, check};

/// A set of namespaces, as in clone(2) and unshare(2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Namespaces(u64);

impl Namespaces {
    /// No namespace at all.
    pub const NONE: Self = Self(0);
    /// Mounts.
    pub const MOUNT: Self = Self(libc::CLONE_NEWNS as u64);
    /// Process ids.
    pub const PID: Self = Self(libc::CLONE_NEWPID as u64);
    /// System V IPC and POSIX message queues.
    pub const IPC: Self = Self(libc::CLONE_NEWIPC as u64);
    /// Host and domain name.
    pub const UTS: Self = Self(libc::CLONE_NEWUTS as u64);
    /// The view of the cgroup tree.
    pub const CGROUP: Self = Self(libc::CLONE_NEWCGROUP as u64);
    /// Network devices, addresses, routes, firewall rules.
    pub const NETWORK: Self = Self(libc::CLONE_NEWNET as u64);
    /// User and group ids, and the capabilities over all the others.
    pub const USER: Self = Self(libc::CLONE_NEWUSER as u64);

    /// Both sets together.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// The flags of clone(2).
    pub const fn bits(self) -> u64 {
        self.0
    }
}

/// The inode of the user namespace that the machine began with (`PROC_USER_INIT_INO` in the kernel's proc_ns.h).
const FIRST_USER_NAMESPACE: u64 = 0xEFFF_FFFD;

/// Whether this process is in another user namespace than the machine's own: ids and capabilities then mean less than they say.
pub fn in_user_namespace() -> bool {
    rustix::fs::stat(c"/proc/self/ns/user").is_ok_and(|stat| stat.st_ino != FIRST_USER_NAMESPACE)
}

/// Gives this thread namespaces of its own.
///
/// Descriptors stay shared with other threads, so what makes `unshare` unsafe in general cannot happen.
pub fn unshare(namespaces: Namespaces) -> Result<()> {
    let flags = UnshareFlags::from_bits_truncate(namespaces.bits() as u32);
    // SAFETY: the set never holds CLONE_FILES, which is what could make another thread's descriptors wrong.
    unsafe { rustix::thread::unshare_unsafe(flags) }.call(|| format!("unshare({flags:?})"))
}

/// Joins the user namespace of the descriptor, which gives this process all capabilities there and none elsewhere.
pub fn join_user(namespace: impl AsFd) -> Result<()> {
    let fd = namespace.as_fd();
    rustix::thread::move_into_link_name_space(fd, Some(LinkNameSpaceType::User))
        .call(|| format!("setns({}, CLONE_NEWUSER)", fd.as_raw_fd()))
}

/// Joins the network namespace of the descriptor.
pub fn join_network(namespace: impl AsFd) -> Result<()> {
    let fd = namespace.as_fd();
    rustix::thread::move_into_link_name_space(fd, Some(LinkNameSpaceType::Network))
        .call(|| format!("setns({}, CLONE_NEWNET)", fd.as_raw_fd()))
}

/// The mount namespace of the process of a pidfd (`PIDFD_GET_MNT_NAMESPACE`, Linux 6.11; `ENOTTY` before). While the descriptor
/// is open its mounts stay, even when the process has ended.
pub fn mounts_of(pidfd: impl AsFd) -> Result<OwnedFd> {
    /// `_IO(0xFF, 3)` of linux/pidfd.h.
    const PIDFD_GET_MNT_NAMESPACE: libc::c_ulong = 0xFF03;
    let pidfd = pidfd.as_fd().as_raw_fd();
    // SAFETY: the call reads no memory of ours; what is not a pidfd answers an error.
    let fd = check(i64::from(unsafe { libc::ioctl(pidfd, PIDFD_GET_MNT_NAMESPACE as _, 0) }) as _)
        .call(|| format!("ioctl({pidfd}, PIDFD_GET_MNT_NAMESPACE)"))?;
    // SAFETY: the kernel has just opened it for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as _) })
}
