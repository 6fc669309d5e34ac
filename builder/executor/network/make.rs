//! Making one namespace, in a process of its own that is in a new one already.

use std::fs::{self, File};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use sys::namespace::{self, Namespaces};
use sys::netlink::{Routing, Side};
use sys::{Named, network};

use super::{FAR_ADDRESS, Kind, MTU, Made, NEAR_ADDRESS, Sockets, Subnet};

/// What programs expect of a network interface's name.
const NEAR: &str = "eth0";
const FAR: &str = "gateway0";

pub(super) fn make(kind: Kind) -> sys::Result<Made> {
    match kind {
        Kind::Loopback => {
            network::interface_up("lo")?;
            Ok(Made { namespace: current()?, sockets: Sockets::of_this_namespace()?, frames: None })
        }
        Kind::Private(subnet) => private(subnet),
    }
}

/// The namespace that we are in takes the far side, where no step can see it; another one is the step's.
fn private(subnet: Subnet) -> sys::Result<Made> {
    let far = current()?;
    // The far side has no addresses, and shall not talk by itself.
    setting("net/ipv6/conf/default/disable_ipv6", "1");
    let mut far_routing = Routing::open()?;
    let frames = network::frames()?;

    namespace::unshare(Namespaces::NETWORK)?;
    let namespace = current()?;
    network::interface_up("lo")?;
    match subnet.v6() {
        None => setting("net/ipv6/conf/default/disable_ipv6", "1"),
        Some(_) => {
            // No address that is not given, and no question whether somebody has it already.
            for (name, value) in
                [("addr_gen_mode", "1"), ("accept_ra", "0"), ("dad_transmits", "0"), ("router_solicitations", "0")]
            {
                setting(&format!("net/ipv6/conf/default/{name}"), value);
            }
        }
    }
    // As docker does: in here nobody but the step is hurt by either.
    setting("net/ipv4/ip_unprivileged_port_start", "0");
    setting("net/ipv4/ping_group_range", "0 2147483647");

    let mut routing = Routing::open()?;
    let (near, other) = (Side { name: NEAR, address: NEAR_ADDRESS }, Side { name: FAR, address: FAR_ADDRESS });
    routing.add_pair(near, other, MTU, &far)?;
    // The far side first: an interface that finds its other side on works from the first packet.
    let index = far_routing.index(FAR)?;
    network::bind_frames(&frames, index)?;
    far_routing.set_up(index)?;
    let index = routing.index(NEAR)?;
    // Where it cannot be forbidden, datagrams that programs leave to be cut by the network card go out uncut: very few do.
    routing.forbid_segmentation_offload(index).ok();
    routing.set_up(index)?;
    let gateway = IpAddr::from(subnet.gateway());
    routing.add_address(index, subnet.own().into(), subnet.prefix())?;
    routing.add_default_route(index, gateway)?;
    if let Some(v6) = subnet.v6() {
        routing.add_address(index, v6.own.into(), v6.prefix)?;
        routing.add_default_route(index, v6.gateway.into())?;
    }
    try_out(&frames, gateway)?;
    Ok(Made { namespace, sockets: Sockets::of_this_namespace()?, frames: Some(frames) })
}

fn current() -> sys::Result<OwnedFd> {
    File::open("/proc/self/ns/net").map(OwnedFd::from).call(|| "open(\"/proc/self/ns/net\")".to_owned())
}

/// Writes one of the namespace's settings. Where they cannot be written the default has to do.
fn setting(name: &str, value: &str) {
    fs::write(format!("/proc/sys/{name}"), value).ok();
}

/// Makes sure that packets pass.
fn try_out(frames: &OwnedFd, gateway: IpAddr) -> sys::Result<()> {
    const DISCARD: u16 = 9;
    let call = || format!("sendto({gateway}:{DISCARD}) in a private network");
    let socket =
        rustix::net::socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None).call(call)?;
    rustix::net::sendto(&socket, b"?", SendFlags::empty(), &SocketAddr::new(gateway, DISCARD)).call(call)?;
    let patience = Timespec { tv_sec: 2, tv_nsec: 0 };
    let arrived = rustix::event::poll(&mut [PollFd::from_borrowed_fd(frames.as_fd(), PollFlags::IN)], Some(&patience));
    if !matches!(arrived, Ok(1..)) {
        return Err(sys::Error::new(call(), Errno::TIMEDOUT));
    }
    let mut frame = [0; 128];
    while rustix::net::recv(frames, &mut frame[..], RecvFlags::DONTWAIT).is_ok() {}
    Ok(())
}
