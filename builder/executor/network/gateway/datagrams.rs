//! What has no connections: UDP, and echo requests. Each pair of ends has a socket of the machine for as long as it is used.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

use super::device::Device;
use super::packet::{self, ICMP, ICMPV6, Packet, UDP, Unreachable};
use super::policy::Policy;
use super::watch;

/// How long a pair of ends may be silent before it is forgotten.
const SILENCE: Duration = Duration::from_secs(120);
/// So many pairs a step can use at once; the one silent longest makes way.
const MAX_FLOWS: usize = 1024;

/// A pair of ends: ports of UDP, or the identifier of echo requests in place of the step's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Ends {
    from: SocketAddr,
    to: SocketAddr,
    echo: bool,
}

struct Flow {
    ends: Ends,
    socket: OwnedFd,
    used: Instant,
}

/// All pairs that are in use.
#[derive(Default)]
pub(super) struct Flows {
    by_ends: HashMap<Ends, u64>,
    by_key: HashMap<u64, Flow>,
}

impl Flows {
    /// Passes a packet of the step on; the answer says what the step is to be told instead.
    pub(super) fn arrived(
        &mut self,
        packet: &Packet<'_>,
        key: u64,
        policy: &Policy,
        epoll: &OwnedFd,
    ) -> Result<(), Unreachable> {
        let Some((ends, data)) = ends_and_data(packet) else { return Ok(()) };
        let key = match self.by_ends.get(&ends) {
            Some(known) => *known,
            None => {
                let target = policy.target(ends.to).ok_or(Unreachable::Prohibited)?;
                let Some(socket) = open(target, ends.echo)? else { return Ok(()) };
                if self.by_key.len() >= MAX_FLOWS
                    && let Some(oldest) = self.by_key.iter().min_by_key(|(_, flow)| flow.used).map(|(key, _)| *key)
                {
                    self.forget(oldest);
                }
                if watch(epoll, socket.as_fd(), key).is_err() {
                    return Ok(());
                }
                self.by_ends.insert(ends, key);
                self.by_key.insert(key, Flow { ends, socket, used: Instant::now() });
                key
            }
        };
        let Some(flow) = self.by_key.get_mut(&key) else { return Ok(()) };
        flow.used = Instant::now();
        match rustix::net::send(&flow.socket, data, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
            Err(Errno::CONNREFUSED) => Err(Unreachable::Port),
            Err(Errno::HOSTUNREACH | Errno::NETUNREACH | Errno::ACCESS | Errno::PERM) => Err(Unreachable::Host),
            // Lost, as in any network.
            _ => Ok(()),
        }
    }

    /// Passes on what has come for the step; false when the key is not one of ours.
    pub(super) fn ready(&mut self, key: u64, device: &mut Device, buffer: &mut [u8]) -> bool {
        let Some(flow) = self.by_key.get_mut(&key) else { return false };
        let Ends { from, to, echo } = flow.ends;
        loop {
            match rustix::net::recv(&flow.socket, &mut *buffer, RecvFlags::DONTWAIT) {
                Ok((_, length)) => {
                    flow.used = Instant::now();
                    let answer = match echo {
                        false => packet::datagram(to, from, &buffer[..length]),
                        true => packet::echo_reply(to.ip(), from.ip(), from.port(), &buffer[..length]),
                    };
                    if let Some(answer) = answer {
                        device.send(&answer);
                    }
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return true,
                Err(error) => {
                    let why = if error == Errno::CONNREFUSED { Unreachable::Port } else { Unreachable::Host };
                    let sent = packet::datagram(from, to, &[]).filter(|_| !echo);
                    if let Some(answer) = sent.and_then(|sent| packet::unreachable(&sent, why)) {
                        device.send(&answer);
                    }
                    return true;
                }
            }
        }
    }

    /// Forgets what has been silent for long. Says when to ask again.
    pub(super) fn expire(&mut self) -> Option<Duration> {
        let now = Instant::now();
        let silent = |(key, flow): (&u64, &Flow)| (now.duration_since(flow.used) >= SILENCE).then_some(*key);
        for key in self.by_key.iter().filter_map(silent).collect::<Vec<_>>() {
            self.forget(key);
        }
        (!self.by_key.is_empty()).then_some(SILENCE / 4)
    }

    fn forget(&mut self, key: u64) {
        if let Some(flow) = self.by_key.remove(&key) {
            self.by_ends.remove(&flow.ends);
        }
    }
}

fn ends_and_data<'bytes>(packet: &Packet<'bytes>) -> Option<(Ends, &'bytes [u8])> {
    match packet.protocol {
        UDP => {
            let (from, to) = packet.ends()?;
            Some((Ends { from, to, echo: false }, packet.data()?))
        }
        ICMP | ICMPV6 => {
            let identifier = packet.echo_request()?;
            // A port is not needed, and must not be one that means something to the policy.
            let to = SocketAddr::new(packet.destination, ECHO_PORT);
            Some((Ends { from: SocketAddr::new(packet.source, identifier), to, echo: true }, packet.payload))
        }
        _ => None,
    }
}

/// Stands for no port where one is asked for: 0 would be refused, and 7 is that of the echo protocol.
const ECHO_PORT: u16 = 7;

/// A socket for one pair of ends, connected, so that nobody else can answer. None where the machine permits no such socket.
fn open(target: SocketAddr, echo: bool) -> Result<Option<OwnedFd>, Unreachable> {
    let socket = if echo {
        sys::network::echo_socket(target.is_ipv6()).map_err(|_| ())
    } else {
        let family = if target.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        rustix::net::socket_with(family, SocketType::DGRAM, flags, None).map_err(|_| ())
    };
    let Ok(socket) = socket else { return Ok(None) };
    let target = if echo { SocketAddr::new(target.ip(), 0) } else { target };
    rustix::net::connect(&socket, &target).map_err(|_| Unreachable::Host)?;
    Ok(Some(socket))
}
