//! What a step's own network namespace needs beside its interface (`netlink`).

use std::os::fd::{AsRawFd, OwnedFd};

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

/// A socket for frames of the current namespace, which sees none until it is bound to an interface ([`bind_frames`]). It keeps
/// working from whatever namespace it is used in.
pub fn frames() -> Result<OwnedFd> {
    let socket = rustix::net::socket_with(AddressFamily::PACKET, SocketType::RAW, SocketFlags::CLOEXEC, None)
        .call(|| "socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0)".to_owned())?;
    // Frames that we send ourselves would come back. Older kernels (before 4.20) lack this; the reader looks at the sender too.
    set_option(&socket, libc::SOL_PACKET, PACKET_IGNORE_OUTGOING, 1).ok();
    // There is nothing to be queued for, and the queue may not be there yet.
    set_option(&socket, libc::SOL_PACKET, libc::PACKET_QDISC_BYPASS, 1).ok();
    // Beyond the administrator's limit for root of the machine, up to it for others.
    if set_option(&socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, RECEIVE_BUFFER).is_err() {
        set_option(&socket, libc::SOL_SOCKET, libc::SO_RCVBUF, RECEIVE_BUFFER).ok();
    }
    Ok(socket)
}

/// Lets a socket made by [`frames`] see everything on an interface.
pub fn bind_frames(socket: &OwnedFd, interface: u32) -> Result<()> {
    // SAFETY: a sockaddr_ll of zeroes is a valid value of a plain C struct.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
    address.sll_ifindex = interface as i32;
    let length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: the kernel reads `length` bytes, which is the size of the struct. Needed because rustix has no such address.
    check(i64::from(unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) }) as _)
        .map(drop)
        .call(|| format!("bind(AF_PACKET, ETH_P_ALL, interface {interface})"))
}

/// A socket for echo requests (ping), which needs no privilege where the administrator permits it to groups.
pub fn echo_socket(v6: bool) -> Result<OwnedFd> {
    let (family, protocol) = match v6 {
        false => (AddressFamily::INET, rustix::net::ipproto::ICMP),
        true => (AddressFamily::INET6, rustix::net::ipproto::ICMPV6),
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    rustix::net::socket_with(family, SocketType::DGRAM, flags, Some(protocol))
        .call(|| format!("socket({family:?}, SOCK_DGRAM, {protocol:?})"))
}

/// Not among the constants of libc.
const PACKET_IGNORE_OUTGOING: i32 = 23;
/// Room for many frames of 64 KiB that wait to be read.
const RECEIVE_BUFFER: i32 = 4 << 20;

fn set_option(socket: &OwnedFd, level: i32, name: i32, value: i32) -> Result<()> {
    let length = size_of::<i32>() as libc::socklen_t;
    // SAFETY: the kernel reads `length` bytes, which is the size of the value.
    let set = unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const value).cast(), length) };
    check(i64::from(set) as _).map(drop).call(|| format!("setsockopt({level}, {name}, {value})"))
}
