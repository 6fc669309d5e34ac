//! The few messages of rtnetlink(7) that give a network namespace its interface.

use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

use crate::error::{Error, Named, Result};

/// A connection to the routing tables of the network namespace in which it was opened.
#[derive(Debug)]
pub struct Routing {
    socket: OwnedFd,
    sequence: u32,
}

/// One side of a pair of connected interfaces.
#[derive(Debug, Clone, Copy)]
pub struct Side<'name> {
    /// Its name.
    pub name: &'name str,
    /// Its hardware address.
    pub address: [u8; 6],
}

impl Routing {
    /// Opens one for the current namespace.
    pub fn open() -> Result<Self> {
        // No protocol is number 0, which is NETLINK_ROUTE.
        let socket = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)
            .call(|| "socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE)".to_owned())?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Makes two connected interfaces, the far one in another namespace.
    pub fn add_pair(&mut self, near: Side<'_>, far: Side<'_>, mtu: u32, namespace: impl AsFd) -> Result<()> {
        let namespace = namespace.as_fd().as_raw_fd();
        let mut message = Message::new(libc::RTM_NEWLINK, libc::NLM_F_CREATE | libc::NLM_F_EXCL);
        message.interface(0, 0, 0);
        message.side(near, mtu);
        message.nested(libc::IFLA_LINKINFO, |message| {
            message.attribute(libc::IFLA_INFO_KIND, b"veth");
            message.nested(libc::IFLA_INFO_DATA, |message| {
                message.nested(VETH_INFO_PEER, |message| {
                    message.interface(0, 0, 0);
                    message.side(far, mtu);
                    message.attribute(libc::IFLA_NET_NS_FD, &namespace.to_ne_bytes());
                });
            });
        });
        self.ask(message, || format!("RTM_NEWLINK(veth {near:?}, peer {far:?}, mtu {mtu}, netns {namespace})"))
    }

    /// Switches an interface on, without a protocol to find hardware addresses by.
    pub fn set_up(&mut self, index: u32) -> Result<()> {
        let mut message = Message::new(libc::RTM_NEWLINK, 0);
        let flags = (libc::IFF_UP | libc::IFF_NOARP) as u32;
        message.interface(index, flags, flags);
        self.ask(message, || format!("RTM_NEWLINK({index}, IFF_UP | IFF_NOARP)"))
    }

    /// Has the kernel cut what is larger than one packet before it reaches the interface.
    pub fn forbid_segmentation_offload(&mut self, index: u32) -> Result<()> {
        let mut message = Message::new(libc::RTM_NEWLINK, 0);
        message.interface(index, 0, 0);
        message.attribute(libc::IFLA_GSO_MAX_SEGS, &1_u32.to_ne_bytes());
        self.ask(message, || format!("RTM_NEWLINK({index}, gso_max_segs 1)"))
    }

    /// Gives an interface an address, usable at once.
    pub fn add_address(&mut self, index: u32, address: IpAddr, prefix: u8) -> Result<()> {
        let mut message = Message::new(libc::RTM_NEWADDR, libc::NLM_F_CREATE | libc::NLM_F_EXCL);
        // struct ifaddrmsg: family, prefix length, flags, scope, index.
        message.bytes(&[family(address), prefix, libc::IFA_F_NODAD as u8, libc::RT_SCOPE_UNIVERSE]);
        message.bytes(&index.to_ne_bytes());
        let octets = octets(address);
        message.attribute(libc::IFA_LOCAL, &octets);
        message.attribute(libc::IFA_ADDRESS, &octets);
        self.ask(message, || format!("RTM_NEWADDR({index}, {address}/{prefix})"))
    }

    /// Sends everything that has no other way through a gateway.
    pub fn add_default_route(&mut self, index: u32, gateway: IpAddr) -> Result<()> {
        let mut message = Message::new(libc::RTM_NEWROUTE, libc::NLM_F_CREATE | libc::NLM_F_EXCL);
        // struct rtmsg: family, destination and source length, tos, table, protocol, scope, type, flags.
        message.bytes(&[
            family(gateway),
            0,
            0,
            0,
            libc::RT_TABLE_MAIN,
            libc::RTPROT_STATIC,
            libc::RT_SCOPE_UNIVERSE,
            libc::RTN_UNICAST,
        ]);
        message.bytes(&0_u32.to_ne_bytes());
        message.attribute(libc::RTA_GATEWAY, &octets(gateway));
        message.attribute(libc::RTA_OIF, &index.to_ne_bytes());
        self.ask(message, || format!("RTM_NEWROUTE(default via {gateway} dev {index})"))
    }

    /// The index of an interface.
    pub fn index(&self, name: &str) -> Result<u32> {
        rustix::net::netdevice::name_to_index(&self.socket, name).call(|| format!("ioctl(SIOCGIFINDEX, {name:?})"))
    }

    /// Sends a request and waits for the kernel's answer, which comes at once.
    fn ask(&mut self, message: Message, call: impl Fn() -> String) -> Result<()> {
        self.sequence += 1;
        let message = message.finish(self.sequence);
        let kernel = SocketAddrNetlink::new(0, 0);
        rustix::net::sendto(&self.socket, &message, SendFlags::empty(), &kernel).call(&call)?;
        let mut answer = [0; 4096];
        let (_, length) = rustix::net::recv(&self.socket, &mut answer[..], RecvFlags::TRUNC).call(&call)?;
        match answered(&answer[..length.min(answer.len())]) {
            Some(0) => Ok(()),
            Some(errno) => Err(Error::new(call(), Errno::from_raw_os_error(-errno))),
            None => Err(Error::new(call(), Errno::PROTO)),
        }
    }
}

/// Of an answer (struct nlmsghdr, then struct nlmsgerr) the error number.
fn answered(answer: &[u8]) -> Option<i32> {
    let kind = u16::from_ne_bytes(answer.get(4..6)?.try_into().ok()?);
    let error = i32::from_ne_bytes(answer.get(16..20)?.try_into().ok()?);
    (i32::from(kind) == libc::NLMSG_ERROR).then_some(error)
}

/// Not among the constants of libc.
const VETH_INFO_PEER: u16 = 1;

/// A request being written.
struct Message(Vec<u8>);

impl Message {
    fn new(kind: u16, flags: i32) -> Self {
        let flags = (libc::NLM_F_REQUEST | libc::NLM_F_ACK | flags) as u16;
        // struct nlmsghdr: length, type, flags, sequence, port. Length and sequence are filled in at the end.
        let mut message = Self(vec![0; 4]);
        message.bytes(&kind.to_ne_bytes());
        message.bytes(&flags.to_ne_bytes());
        message.bytes(&[0; 8]);
        message
    }

    /// struct ifinfomsg: family, padding, type, index, flags, which of them to change.
    fn interface(&mut self, index: u32, flags: u32, change: u32) {
        self.bytes(&[0; 4]);
        for number in [index, flags, change] {
            self.bytes(&number.to_ne_bytes());
        }
    }

    fn side(&mut self, side: Side<'_>, mtu: u32) {
        self.attribute(libc::IFLA_IFNAME, &[side.name.as_bytes(), b"\0"].concat());
        self.attribute(libc::IFLA_ADDRESS, &side.address);
        self.attribute(libc::IFLA_MTU, &mtu.to_ne_bytes());
    }

    fn attribute(&mut self, kind: u16, value: &[u8]) {
        self.nested(kind, |message| message.bytes(value));
    }

    /// An attribute of attributes, or of anything else that is written by the closure.
    fn nested(&mut self, kind: u16, content: impl FnOnce(&mut Self)) {
        let start = self.0.len();
        self.bytes(&[0; 2]);
        self.bytes(&kind.to_ne_bytes());
        content(self);
        let length = (self.0.len() - start) as u16;
        self.0[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    fn finish(mut self, sequence: u32) -> Vec<u8> {
        let length = self.0.len() as u32;
        self.0[0..4].copy_from_slice(&length.to_ne_bytes());
        self.0[8..12].copy_from_slice(&sequence.to_ne_bytes());
        self.0
    }
}

fn family(address: IpAddr) -> u8 {
    (if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 }) as u8
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_nest_and_are_aligned() {
        let mut message = Message(Vec::new());
        message.nested(1, |message| message.attribute(2, b"abc"));
        assert_eq!(message.0, [&[12_u8, 0, 1, 0, 7, 0, 2, 0][..], b"abc\0"].concat());
    }

    #[test]
    fn the_kernel_is_asked_and_answers() {
        let mut routing = Routing::open().expect("anybody may ask");
        assert_eq!(routing.index("lo").expect("loopback"), 1);
        let error = routing.set_up(0x7fff_0000).expect_err("there is no such interface");
        assert!(matches!(error.errno(), Errno::NODEV | Errno::PERM), "{error}");
        assert_eq!(answered(b"short"), None);
    }
}
