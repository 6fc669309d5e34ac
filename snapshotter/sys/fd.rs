//! Descriptors: closing all but a few, moving one to a number, memory files.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};

use rustix::fs::{MemfdFlags, SealFlags};
use rustix::io::Errno;

use crate::error::{Error, Named, Result, check};

/// One of the three descriptors that every program starts with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standard {
    /// Number 0.
    Input = 0,
    /// Number 1.
    Output = 1,
    /// Number 2.
    Error = 2,
}

/// Makes `fd` also this process's standard input, output or error, open across exec.
pub fn set_standard(fd: BorrowedFd<'_>, standard: Standard) -> Result<()> {
    let target = standard as RawFd;
    if fd.as_raw_fd() == target {
        // dup2 would leave the close-on-exec flag as it is.
        return rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::empty())
            .call(|| format!("fcntl({target}, F_SETFD, 0)"));
    }
    // SAFETY: dup2 touches descriptors only. The standard ones are owned by nobody, so nobody loses what is his.
    check(i64::from(unsafe { libc::dup2(fd.as_raw_fd(), target) }) as libc::c_long)
        .map(drop)
        .call(|| format!("dup2({}, {target})", fd.as_raw_fd()))
}

/// Marks every descriptor from `first` on close-on-exec, so that none reaches the program that is executed next.
pub fn close_on_exec_from(first: RawFd) -> Result<()> {
    // SAFETY: with CLOSE_RANGE_CLOEXEC nothing is closed now; the flag of each descriptor is set.
    let result =
        check(unsafe { libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) });
    match result {
        Ok(_) => Ok(()),
        // Linux before 5.9 lacks the call, before 5.11 the flag.
        Err(Errno::NOSYS | Errno::INVAL) => close_on_exec_listed(first),
        Err(errno) => Err(Error::new(format!("close_range({first}, ~0, CLOSE_RANGE_CLOEXEC)"), errno)),
    }
}

/// The same for kernels without the call: every number below the limit is tried.
///
/// The numbers are not read from /proc because the caller's /proc may be somebody else's.
fn close_on_exec_listed(first: RawFd) -> Result<()> {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(1 << 20);
    let limit = RawFd::try_from(limit.min(1 << 20)).unwrap_or(RawFd::MAX);
    for number in first..limit {
        // SAFETY: F_SETFD on a number changes a flag or answers EBADF.
        if unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) } == -1
            && std::io::Error::last_os_error().raw_os_error() != Some(libc::EBADF)
        {
            return Err(std::io::Error::last_os_error()).call(|| format!("fcntl({number}, F_SETFD, FD_CLOEXEC)"));
        }
    }
    Ok(())
}

/// A file in memory that holds `content` and can never be changed again.
pub fn sealed_memory_file(name: &str, content: &[u8]) -> Result<OwnedFd> {
    let fd = rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)
        .call(|| format!("memfd_create({name:?}, MFD_CLOEXEC | MFD_ALLOW_SEALING)"))?;
    let mut file = File::from(fd);
    file.write_all(content).call(|| format!("write({name:?}, {} bytes)", content.len()))?;
    let fd = OwnedFd::from(file);
    rustix::fs::fcntl_add_seals(&fd, SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE)
        .call(|| format!("fcntl({name:?}, F_ADD_SEALS, SEAL | SHRINK | GROW | WRITE)"))?;
    Ok(fd)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::unix::fs::FileExt;

    #[test]
    fn a_sealed_file_cannot_be_written() {
        let file = File::from(sealed_memory_file("test", b"hello").expect("memfd"));
        assert!(file.write_at(b"x", 0).is_err());
        let mut text = String::new();
        let mut reader = &file;
        std::io::Seek::rewind(&mut reader).expect("rewind");
        reader.read_to_string(&mut text).expect("read");
        assert_eq!(text, "hello");
    }

    #[test]
    fn both_ways_of_closing_mark_descriptors() {
        let file = File::open("/dev/null").expect("open");
        rustix::io::fcntl_setfd(&file, rustix::io::FdFlags::empty()).expect("clear");
        close_on_exec_listed(file.as_raw_fd()).expect("listed");
        assert!(rustix::io::fcntl_getfd(&file).expect("get").contains(rustix::io::FdFlags::CLOEXEC));
        rustix::io::fcntl_setfd(&file, rustix::io::FdFlags::empty()).expect("clear");
        close_on_exec_from(file.as_raw_fd()).expect("close_range");
        assert!(rustix::io::fcntl_getfd(&file).expect("get").contains(rustix::io::FdFlags::CLOEXEC));
    }
}
