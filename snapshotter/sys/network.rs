//! The little that a step's own network namespace needs.

use std::os::fd::AsRawFd;

use rustix::net::{AddressFamily, SocketFlags, SocketType};

use crate::error::{Error, Named, Result, check};
use rustix::io::Errno;

/// Switches a network interface of the current namespace on.
pub fn interface_up(name: &str) -> Result<()> {
    let socket = rustix::net::socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)
        .call(|| "socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0)".to_owned())?;
    // SAFETY: an ifreq of zeroes is a valid value of a plain C struct.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The last byte stays zero.
    if name.len() >= request.ifr_name.len() {
        return Err(Error::new(format!("ioctl(SIOCGIFFLAGS, {name:?})"), Errno::INVAL));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    // SAFETY: the kernel reads the name and writes the flags within the struct.
    check(i64::from(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS as _, &raw mut request) }) as _)
        .call(|| format!("ioctl(SIOCGIFFLAGS, {name:?})"))?;
    // SAFETY: SIOCGIFFLAGS has just filled this member of the union.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    request.ifr_ifru.ifru_flags = flags | libc::IFF_UP as libc::c_short;
    // SAFETY: the kernel reads the name and the flags of the struct.
    check(i64::from(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &raw mut request) }) as _)
        .map(drop)
        .call(|| format!("ioctl(SIOCSIFFLAGS, {name:?}, {flags:#x} | IFF_UP)"))
}
