//! What stands between a step's private network and the machine's: a process that takes the packets of the step's interface and
//! carries on each conversation by an ordinary socket of the machine.
//!
//! So the machine's forwarding, firewall and interfaces stay as they are, whoever runs rbuild, and nothing is left behind however
//! it ends. To everybody outside, a step is a program of the user who builds.
//!
//! ```text
//!   step ── eth0 ═══ far side ── frames ──▶ this process ── sockets ──▶ network of the machine
//!   (own network namespace)  (another one)     (the machine's namespace)
//! ```

mod datagrams;
mod device;
mod packet;
mod policy;
mod tcp;

use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::io::Errno;
use smoltcp::iface::{Config, Interface, Route};
use smoltcp::time::Instant;
use smoltcp::wire::{HardwareAddress, IpCidr};

use super::Subnet;
use crate::spec::Gateway;
use datagrams::Flows;
use device::Device;
use packet::{ICMP, ICMPV6, Packet, TCP, UDP, Unreachable};
use policy::Policy;
use tcp::{Connections, Verdict};

/// The key of the interface among those of sockets.
const FRAMES: u64 = 0;
/// So many packets of the step are dealt with before others have their turn.
const BURST: usize = 64;

/// Serves a step's interface until the interface is gone.
pub(crate) fn serve(frames: OwnedFd, gateway: Gateway, subnet: Subnet) -> Result<(), Errno> {
    Server::new(frames, gateway, subnet)?.serve()
}

struct Server {
    epoll: OwnedFd,
    device: Device,
    interface: Interface,
    policy: Policy,
    connections: Connections,
    flows: Flows,
    next_key: u64,
    /// From which the stack counts its time.
    began: std::time::Instant,
    /// For datagrams that come in.
    buffer: Vec<u8>,
}

impl Server {
    fn new(frames: OwnedFd, gateway: Gateway, subnet: Subnet) -> Result<Self, Errno> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        let mut device = Device::new(frames);
        epoll::add(&epoll, device.as_fd(), EventData::new_u64(FRAMES), EventFlags::IN)?;
        let mut config = Config::new(HardwareAddress::Ip);
        let mut seed = [0; 8];
        rustix::rand::getrandom(&mut seed, rustix::rand::GetRandomFlags::empty())?;
        config.random_seed = u64::from_ne_bytes(seed);
        let mut interface = Interface::new(config, &mut device, Instant::ZERO);
        // Every address but the step's own is ours to answer for.
        interface.set_any_ip(true);
        interface.update_ip_addrs(|addresses| {
            // There is room for two.
            addresses.push(IpCidr::new(subnet.gateway().into(), subnet.prefix())).ok();
            if let Some(v6) = subnet.v6() {
                addresses.push(IpCidr::new(v6.gateway.into(), v6.prefix)).ok();
            }
        });
        interface.routes_mut().update(|routes| {
            routes.push(Route::new_ipv4_gateway(subnet.gateway())).ok();
            if let Some(v6) = subnet.v6() {
                routes.push(Route::new_ipv6_gateway(v6.gateway)).ok();
            }
        });
        Ok(Self {
            epoll,
            device,
            interface,
            policy: Policy::new(gateway, subnet),
            connections: Connections::new(),
            flows: Flows::default(),
            next_key: FRAMES + 1,
            began: std::time::Instant::now(),
            buffer: vec![0; usize::from(u16::MAX)],
        })
    }

    fn serve(mut self) -> Result<(), Errno> {
        let mut events = Vec::with_capacity(256);
        loop {
            self.wait(&mut events)?;
            for event in &events {
                let (key, flags) = (event.data.u64(), event.flags);
                if key == FRAMES {
                    self.receive()?;
                } else if !self.connections.ready(key, flags) {
                    self.flows.ready(key, &mut self.device, &mut self.buffer);
                }
            }
            // What the stack sends may make room for more.
            loop {
                let now = self.now();
                let moved = self.connections.pump(&mut self.interface, &mut self.device, now);
                self.connections.flush(&mut self.interface, &mut self.device, now);
                if !moved {
                    break;
                }
            }
        }
    }

    fn now(&self) -> Instant {
        Instant::from_micros(i64::try_from(self.began.elapsed().as_micros()).unwrap_or(i64::MAX))
    }

    fn wait(&mut self, events: &mut Vec<Event>) -> Result<(), Errno> {
        events.clear();
        let now = self.now();
        let stack = self.connections.delay(&mut self.interface, now);
        let patience = [stack, self.flows.expire()].into_iter().flatten().min();
        let timeout = patience.map(|patience| {
            let patience = patience.min(Duration::from_secs(60));
            // Rounded up: to wake too early would be to wake again and again.
            Timespec { tv_sec: patience.as_secs() as i64, tv_nsec: i64::from(patience.subsec_nanos()) }
        });
        match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(events), timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Deals with packets of the step.
    fn receive(&mut self) -> Result<(), Errno> {
        let now = self.now();
        for _ in 0..BURST {
            let key = self.next_key;
            let Some(bytes) = self.device.read()? else { return Ok(()) };
            let Some(packet) = Packet::parse(bytes) else {
                self.device.discard();
                continue;
            };
            let verdict = match packet.protocol {
                TCP => self.connections.arrived(bytes, &packet, key, &self.policy, &self.epoll),
                UDP | ICMP | ICMPV6 => match self.flows.arrived(&packet, key, &self.policy, &self.epoll) {
                    Ok(()) => Verdict::Drop,
                    Err(why) => Verdict::Refuse(why),
                },
                _ => Verdict::Refuse(Unreachable::Prohibited),
            };
            let answer = match verdict {
                Verdict::Refuse(why) => packet::unreachable(bytes, why),
                Verdict::Stack | Verdict::Drop => None,
            };
            self.next_key += 1;
            if verdict == Verdict::Stack {
                self.connections.take_in(&mut self.interface, &mut self.device, now);
            } else {
                self.device.discard();
            }
            if let Some(answer) = answer {
                self.device.send(&answer);
            }
        }
        Ok(())
    }
}

/// Has epoll tell each change of a socket once.
fn watch(epoll: &OwnedFd, socket: BorrowedFd<'_>, key: u64) -> Result<(), Errno> {
    let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
    epoll::add(epoll, socket, EventData::new_u64(key), flags)
}
