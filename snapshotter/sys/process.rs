//! Starting, executing and awaiting processes without a C library's help in between.

use std::convert::Infallible;
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;
use std::time::Duration;

use rustix::io::Errno;

use crate::error::{Error, Named, Result, check};
use crate::namespace::Namespaces;

/// Which side of a clone one is on.
#[derive(Debug)]
pub enum Cloned {
    /// In the new process.
    Child,
    /// In the old one.
    Parent {
        /// The new process, as a number in the caller's pid namespace.
        pid: i32,
        /// The new process, as a descriptor that becomes readable when it has ended.
        pidfd: OwnedFd,
    },
}

/// Copies this process into new namespaces and, where given, into a cgroup of the v2 hierarchy.
///
/// The child starts at the same point with a copy of everything; it must end in an exec or in [`exit`].
///
/// Refused (`EBUSY`) when the process has several threads: a lock that another of them held (the allocator's, for one) would
/// be held for ever in the child.
pub fn clone(namespaces: Namespaces, cgroup: Option<BorrowedFd<'_>>) -> Result<Cloned> {
    /// The kernel's `struct clone_args`, second version.
    #[repr(C)]
    #[derive(Default)]
    struct CloneArgs {
        flags: u64,
        pidfd: u64,
        child_tid: u64,
        parent_tid: u64,
        exit_signal: u64,
        stack: u64,
        stack_size: u64,
        tls: u64,
        set_tid: u64,
        set_tid_size: u64,
        cgroup: u64,
    }
    const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

    if !is_single_threaded() {
        return Err(Error::new("clone3() in a process with several threads", Errno::BUSY));
    }
    let mut pidfd: RawFd = -1;
    let flags = namespaces.bits() | libc::CLONE_PIDFD as u64;
    let mut arguments = CloneArgs {
        flags,
        pidfd: ptr::from_mut(&mut pidfd).addr() as u64,
        exit_signal: libc::SIGCHLD as u64,
        ..CloneArgs::default()
    };
    if let Some(cgroup) = cgroup {
        arguments.flags |= CLONE_INTO_CGROUP;
        arguments.cgroup = cgroup.as_raw_fd() as u64;
    }
    // SAFETY: without CLONE_VM the child has its own copy of the memory and returns here on its own copy of this stack; there is
    // one thread only. `arguments` and `pidfd` outlive the call.
    let returned = check(unsafe { libc::syscall(libc::SYS_clone3, &raw mut arguments, size_of::<CloneArgs>()) });
    let pid = match returned {
        // Older kernels, and the seccomp filters of containers we may run in, answer like this. Joining the cgroup is the
        // child's task then, so a caller that asked for it has to be told.
        Err(Errno::NOSYS) if cgroup.is_none() => return clone_classic(namespaces),
        other => other.call(|| {
            format!("clone3({{flags: {:#x}, exit_signal: SIGCHLD, cgroup: {}}})", arguments.flags, arguments.cgroup)
        })?,
    };
    // SAFETY: in the parent the kernel has just opened it for us.
    Ok(unsafe { cloned(pid, pidfd) })
}

/// The same by the older call, which knows no cgroups. [`clone`] takes it by itself where it must.
pub fn clone_classic(namespaces: Namespaces) -> Result<Cloned> {
    if !is_single_threaded() {
        return Err(Error::new("clone() in a process with several threads", Errno::BUSY));
    }
    let mut pidfd: RawFd = -1;
    let flags = namespaces.bits() | libc::CLONE_PIDFD as u64 | libc::SIGCHLD as u64;
    // SAFETY: as for clone3. The arguments stand in this order on x86_64, aarch64 and riscv64; the fourth is unused without
    // CLONE_CHILD_SETTID and the like.
    let returned = unsafe { libc::syscall(libc::SYS_clone, flags, 0_usize, &raw mut pidfd, 0_usize, 0_usize) };
    let pid = check(returned).call(|| format!("clone({flags:#x}, NULL, &pidfd)"))?;
    // SAFETY: in the parent the kernel has just opened it for us.
    Ok(unsafe { cloned(pid, pidfd) })
}

/// What a clone returned.
///
/// # Safety
/// Unless `pid` is 0, nobody else may own the descriptor.
unsafe fn cloned(pid: libc::c_long, pidfd: RawFd) -> Cloned {
    if pid == 0 {
        return Cloned::Child;
    }
    // SAFETY: the caller's promise.
    Cloned::Parent { pid: pid as i32, pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) } }
}

/// Ends the process at once: no destructors, no exit handlers.
pub fn exit(code: i32) -> ! {
    // SAFETY: _exit does not return and runs nothing of ours.
    unsafe { libc::_exit(code) }
}

/// How a process ended and what it used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ended {
    /// Its exit code, if it exited by itself.
    pub code: Option<i32>,
    /// The signal that ended it otherwise.
    pub signal: Option<i32>,
    /// Processor time in user mode, its awaited children's included.
    pub user: Duration,
    /// Processor time in the kernel, its awaited children's included.
    pub system: Duration,
    /// Largest resident size of any of them, in bytes.
    pub max_rss: u64,
    /// Bytes read from disks, its awaited children's included.
    pub read: u64,
    /// Bytes written to files on disks, its awaited children's included.
    pub written: u64,
}

/// Collects a child that has ended; `None` while it still runs.
pub fn reap(pid: i32) -> Result<Option<Ended>> {
    let mut status = 0;
    // SAFETY: an all-zero rusage is a valid value of a plain C struct.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: both out-pointers are valid for the call.
    let returned = check(i64::from(unsafe { libc::wait4(pid, &raw mut status, libc::WNOHANG, &raw mut usage) }) as _)
        .call(|| format!("wait4({pid}, WNOHANG)"))?;
    if returned == 0 {
        return Ok(None);
    }
    let time = |time: libc::timeval| Duration::new(time.tv_sec.max(0) as u64, (time.tv_usec.max(0) as u32) * 1000);
    Ok(Some(Ended {
        code: libc::WIFEXITED(status).then(|| libc::WEXITSTATUS(status)),
        signal: libc::WIFSIGNALED(status).then(|| libc::WTERMSIG(status)),
        user: time(usage.ru_utime),
        system: time(usage.ru_stime),
        max_rss: (usage.ru_maxrss.max(0) as u64) * 1024,
        // In sectors, whatever the disk's are.
        read: (usage.ru_inblock.max(0) as u64) * 512,
        written: (usage.ru_oublock.max(0) as u64) * 512,
    }))
}

/// Sends a signal by number; a process that is gone already is no error.
pub fn signal(pidfd: impl AsFd, signal: i32) -> Result<()> {
    let fd = pidfd.as_fd().as_raw_fd();
    // SAFETY: no pointer but a null one, which stands for the default information.
    let sent =
        check(unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd, signal, ptr::null::<libc::siginfo_t>(), 0) });
    match sent {
        Ok(_) | Err(Errno::SRCH) => Ok(()),
        Err(errno) => Err(Error::new(format!("pidfd_send_signal({fd}, {signal}, NULL, 0)"), errno)),
    }
}

/// Ignores a signal, or gives it back its default.
pub fn ignore_signal(signal: i32, ignored: bool) -> Result<()> {
    let action = if ignored { libc::SIG_IGN } else { libc::SIG_DFL };
    // SAFETY: neither disposition runs code of ours.
    if unsafe { libc::signal(signal, action) } == libc::SIG_ERR {
        return Err(std::io::Error::last_os_error()).call(|| format!("signal({signal}, {action})"));
    }
    Ok(())
}

/// Gives every signal its default disposition and unblocks all, as a fresh program expects.
///
/// Rust's runtime ignores SIGPIPE, which an exec would otherwise pass on.
pub fn reset_signals() -> Result<()> {
    for number in 1..=64 {
        // The C library keeps two or three numbers for itself, and two cannot be changed: those answer EINVAL. The plain
        // system call is not used because its structure differs between architectures.
        // SAFETY: the default disposition runs no code of ours.
        unsafe { libc::signal(number, libc::SIG_DFL) };
    }
    // SAFETY: an all-zero set is the empty set on Linux, and sigemptyset makes sure of it.
    let mut none: libc::sigset_t = unsafe { std::mem::zeroed() };
    // SAFETY: `none` is valid for both calls, which only write and read it.
    let failed = unsafe {
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, ptr::null_mut())
    };
    check(i64::from(failed) as _).map(drop).call(|| "sigprocmask(SIG_SETMASK, {})".to_owned())
}

/// Joins a new, anonymous session keyring, so that keys of the caller are out of reach.
pub fn new_session_keyring() -> Result<()> {
    // SAFETY: the name is null, which asks for an anonymous keyring.
    check(unsafe { libc::syscall(libc::SYS_keyctl, libc::KEYCTL_JOIN_SESSION_KEYRING, ptr::null::<libc::c_char>()) })
        .map(drop)
        .call(|| "keyctl(KEYCTL_JOIN_SESSION_KEYRING, NULL)".to_owned())
}

/// Executes the program at a path.
pub fn execute(path: &CStr, arguments: &[CString], environment: &[CString]) -> Result<Infallible> {
    let (argv, envp) = (pointers(arguments), pointers(environment));
    // SAFETY: both arrays end in a null pointer and point to C strings that live until the call returns, if it does.
    unsafe { libc::execve(path.as_ptr(), argv.as_ptr(), envp.as_ptr()) };
    Err(std::io::Error::last_os_error()).call(|| format!("execve({path:?}, {arguments:?})"))
}

/// Executes the program that a descriptor refers to.
pub fn execute_descriptor(file: impl AsFd, arguments: &[CString], environment: &[CString]) -> Result<Infallible> {
    let (argv, envp) = (pointers(arguments), pointers(environment));
    let fd = file.as_fd().as_raw_fd();
    // SAFETY: as in `execute`; the path is empty and valid.
    unsafe {
        libc::syscall(libc::SYS_execveat, fd, c"".as_ptr(), argv.as_ptr(), envp.as_ptr(), libc::AT_EMPTY_PATH);
    }
    Err(std::io::Error::last_os_error()).call(|| format!("execveat({fd}, \"\", {arguments:?}, AT_EMPTY_PATH)"))
}

fn pointers(strings: &[CString]) -> Vec<*const libc::c_char> {
    strings.iter().map(|string| string.as_ptr()).chain([ptr::null()]).collect()
}

/// True when the process has exactly one thread, which forking needs.
pub fn is_single_threaded() -> bool {
    // The directory of threads has a link for each, besides its own two.
    rustix::fs::stat(c"/proc/self/task").is_ok_and(|task| task.st_nlink == 3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_with_threads_is_not_cloned() {
        // The test runner's own thread waits meanwhile.
        let error = clone(Namespaces::NONE, None).map(drop).expect_err("two threads");
        assert_eq!(error.errno(), Errno::BUSY);
    }
}
