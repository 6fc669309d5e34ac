//! Connections: the step's end is played by a TCP stack of our own, the other is an ordinary socket of the machine, and bytes are
//! passed between them.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};

use rustix::event::epoll;
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, Shutdown, SocketFlags, SocketType, sockopt};
use smoltcp::iface::{Interface, SocketHandle, SocketSet};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::time::Instant;

use super::device::Device;
use super::packet::{self, Packet, Unreachable};
use super::policy::Policy;
use super::watch;

/// What may be under way in one direction of a connection. Memory is taken as it is used.
const BUFFER: usize = 256 << 10;
/// So many connections a step can have at once; more are refused.
const MAX_CONNECTIONS: usize = 4096;

/// All connections of a step.
pub(super) struct Connections {
    by_ends: HashMap<(SocketAddr, SocketAddr), u64>,
    by_key: HashMap<u64, Connection>,
    sockets: SocketSet<'static>,
}

struct Connection {
    ends: (SocketAddr, SocketAddr),
    socket: OwnedFd,
    state: Stage,
    /// What the machine's socket was last known to be ready for.
    readable: bool,
    writable: bool,
}

enum Stage {
    /// The machine's end is not connected yet; what the step sent to open the connection waits.
    Opening(Vec<u8>),
    /// Both ends are connected.
    Open {
        handle: SocketHandle,
        /// The other side will send no more, and the step was told.
        heard_end: bool,
        /// The step will send no more, and the other side was told.
        told_end: bool,
    },
    /// To be forgotten once the stack has said so to the step.
    Broken(SocketHandle),
}

impl Connections {
    pub(super) fn new() -> Self {
        Self { by_ends: HashMap::new(), by_key: HashMap::new(), sockets: SocketSet::new(Vec::new()) }
    }

    /// Takes the packet that the device read last.
    pub(super) fn arrived(
        &mut self,
        bytes: &[u8],
        packet: &Packet<'_>,
        key: u64,
        policy: &Policy,
        epoll: &OwnedFd,
    ) -> Verdict {
        let Some(ends) = packet.ends() else { return Verdict::Drop };
        if let Some(known) = self.by_ends.get(&ends) {
            // Before the machine's end is connected, the step can but repeat itself.
            let opening = matches!(self.by_key.get(known), Some(Connection { state: Stage::Opening(_), .. }));
            return if opening { Verdict::Drop } else { Verdict::Stack };
        }
        // What belongs to no connection is answered by the stack, which resets it.
        if !packet.opens_connection() || self.by_key.len() >= MAX_CONNECTIONS {
            return Verdict::Stack;
        }
        let Some(target) = policy.target(ends.1) else { return Verdict::Refuse(Unreachable::Prohibited) };
        let socket = match connect(target) {
            Ok(socket) => socket,
            Err(Errno::CONNREFUSED) => return Verdict::Stack,
            // There may be some again when the step tries once more.
            Err(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM) => return Verdict::Drop,
            Err(_) => return Verdict::Refuse(Unreachable::Host),
        };
        if watch(epoll, socket.as_fd(), key).is_err() {
            return Verdict::Drop;
        }
        let state = Stage::Opening(bytes.to_vec());
        self.by_ends.insert(ends, key);
        self.by_key.insert(key, Connection { ends, socket, state, readable: false, writable: false });
        Verdict::Drop
    }

    /// Notes what epoll says of a connection's socket; false when the key is not one of ours.
    pub(super) fn ready(&mut self, key: u64, flags: epoll::EventFlags) -> bool {
        let Some(connection) = self.by_key.get_mut(&key) else { return false };
        let failed = flags.intersects(epoll::EventFlags::ERR | epoll::EventFlags::HUP);
        connection.readable |= failed || flags.intersects(epoll::EventFlags::IN | epoll::EventFlags::RDHUP);
        connection.writable |= failed || flags.contains(epoll::EventFlags::OUT);
        true
    }

    /// Moves what can be moved. True when the stack may have something to send.
    pub(super) fn pump(&mut self, interface: &mut Interface, device: &mut Device, now: Instant) -> bool {
        let mut moved = false;
        let mut gone = Vec::new();
        for (key, connection) in &mut self.by_key {
            if let Stage::Opening(first) = &mut connection.state {
                if !connection.writable {
                    continue;
                }
                let first = std::mem::take(first);
                moved = true;
                match sockopt::socket_error(&connection.socket).and_then(|result| result) {
                    Ok(()) => match accept(&mut self.sockets, connection.ends.1) {
                        Some(handle) => {
                            connection.state = Stage::Open { handle, heard_end: false, told_end: false };
                        }
                        None => gone.push(*key),
                    },
                    // Without anybody who listens the stack answers as the other side did.
                    Err(Errno::CONNREFUSED | Errno::CONNRESET) => gone.push(*key),
                    Err(_) => {
                        gone.push(*key);
                        if let Some(answer) = packet::unreachable(&first, Unreachable::Host) {
                            device.send(&answer);
                        }
                        continue;
                    }
                }
                device.replay(&first);
                interface.poll_ingress_single(now, device, &mut self.sockets);
            }
            let Stage::Open { handle, heard_end, told_end } = &mut connection.state else { continue };
            let stack = self.sockets.get_mut::<Socket<'_>>(*handle);
            let passed = pass(
                stack,
                &connection.socket,
                &mut connection.readable,
                &mut connection.writable,
                heard_end,
                told_end,
            );
            moved |= passed.is_ok_and(|moved| moved);
            let ended = *heard_end && *told_end && stack.send_queue() == 0;
            if passed.is_err() {
                stack.abort();
                connection.state = Stage::Broken(*handle);
                moved = true;
            } else if stack.state() == State::Closed || (ended && stack.state() == State::TimeWait) {
                if !ended {
                    // The step broke it off, and so do we.
                    sockopt::set_socket_linger(&connection.socket, Some(std::time::Duration::ZERO)).ok();
                }
                gone.push(*key);
            }
        }
        for key in gone {
            self.forget(key);
        }
        moved
    }

    /// Lets the stack send what it has, and forgets connections that it has thereby told to be broken.
    pub(super) fn flush(&mut self, interface: &mut Interface, device: &mut Device, now: Instant) {
        interface.poll(now, device, &mut self.sockets);
        let broken =
            |(key, connection): (&u64, &Connection)| matches!(connection.state, Stage::Broken(_)).then_some(*key);
        for key in self.by_key.iter().filter_map(broken).collect::<Vec<_>>() {
            self.forget(key);
        }
    }

    /// Hands the packet that the device read last to the stack.
    pub(super) fn take_in(&mut self, interface: &mut Interface, device: &mut Device, now: Instant) {
        interface.poll_ingress_single(now, device, &mut self.sockets);
    }

    /// When the stack wants to be asked again.
    pub(super) fn delay(&self, interface: &mut Interface, now: Instant) -> Option<std::time::Duration> {
        interface.poll_delay(now, &self.sockets).map(Into::into)
    }

    fn forget(&mut self, key: u64) {
        let Some(connection) = self.by_key.remove(&key) else { return };
        self.by_ends.remove(&connection.ends);
        if let Stage::Open { handle, .. } | Stage::Broken(handle) = connection.state {
            self.sockets.remove(handle);
        }
    }
}

/// What becomes of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The stack gets it.
    Stack,
    /// Nobody does.
    Drop,
    /// Its sender is told that it cannot be delivered.
    Refuse(Unreachable),
}

/// Begins to connect.
fn connect(target: SocketAddr) -> Result<OwnedFd, Errno> {
    let family = if target.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
    // What is small is passed on at once: whoever sends it has decided that it is to go.
    sockopt::set_tcp_nodelay(&socket, true).ok();
    match rustix::net::connect(&socket, &target) {
        Ok(()) | Err(Errno::INPROGRESS) => Ok(socket),
        Err(error) => Err(error),
    }
}

/// A socket of the stack that accepts the connection whose first packet comes next.
fn accept(sockets: &mut SocketSet<'_>, destination: SocketAddr) -> Option<SocketHandle> {
    let buffer = || SocketBuffer::new(vec![0; BUFFER]);
    let mut socket = Socket::new(buffer(), buffer());
    socket.set_nagle_enabled(false);
    socket.set_ack_delay(None);
    socket.listen(destination).ok()?;
    Some(sockets.add(socket))
}

/// Passes bytes, and then ends, in both directions as far as they go; an error when the machine's end is broken.
fn pass(
    stack: &mut Socket<'_>,
    socket: &OwnedFd,
    readable: &mut bool,
    writable: &mut bool,
    heard_end: &mut bool,
    told_end: &mut bool,
) -> Result<bool, Errno> {
    let mut moved = false;
    while *writable && stack.can_recv() {
        let sent =
            stack.recv(|bytes| match rustix::net::send(socket, bytes, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
                Ok(length) => (length, Ok(())),
                Err(error) => (0, Err(error)),
            });
        match sent {
            Ok(Ok(())) => moved = true,
            Ok(Err(Errno::AGAIN)) => *writable = false,
            Ok(Err(Errno::INTR)) => {}
            Ok(Err(error)) => return Err(error),
            Err(_) => break,
        }
    }
    let said_end = matches!(stack.state(), State::CloseWait | State::LastAck | State::Closing | State::TimeWait);
    if said_end && !*told_end && !stack.can_recv() {
        rustix::net::shutdown(socket, Shutdown::Write).ok();
        *told_end = true;
    }
    while *readable && !*heard_end && stack.can_send() {
        let received = stack.send(|room| match rustix::net::recv(socket, room, RecvFlags::DONTWAIT) {
            Ok((_, length)) => (length, Ok(length)),
            Err(error) => (0, Err(error)),
        });
        match received {
            Ok(Ok(0)) => {
                *heard_end = true;
                stack.close();
                moved = true;
            }
            Ok(Ok(_)) => moved = true,
            Ok(Err(Errno::AGAIN)) => *readable = false,
            Ok(Err(Errno::INTR)) => {}
            Ok(Err(error)) => return Err(error),
            Err(_) => break,
        }
    }
    Ok(moved)
}
