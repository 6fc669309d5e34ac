//! The networks of steps: what is ready, what is in use, and what a step left as it found it and the next may have.

use std::os::fd::{BorrowedFd, OwnedFd};

use super::gateway::Gateway;
use crate::network::{Kind, Made, Pool, Sockets, Subnet};
use crate::spec;

/// Of those that are free, or will be, so many are kept.
const MOST_FREE: usize = 16;

/// A step's network namespace, and what stands behind its interface if it has one.
#[derive(Debug)]
pub(super) struct Connection {
    namespace: OwnedFd,
    sockets: Sockets,
    pub(super) gateway: Option<Gateway>,
}

impl Connection {
    /// For the step's process to join.
    pub(super) fn namespace(&self) -> std::io::Result<OwnedFd> {
        self.namespace.try_clone()
    }

    fn is_like(&self, wanted: Option<&spec::Gateway>) -> bool {
        self.gateway.as_ref().map(Gateway::settings) == wanted
    }
}

/// All of them but those in use, which the steps hold.
pub(super) struct Networks {
    loopback: Pool,
    /// Since somebody asked for them, if they can be had.
    private: Option<Pool>,
    /// Of ended steps.
    free: Vec<Connection>,
    /// Gateways that were told to end and have not yet.
    closing: Vec<Gateway>,
}

impl Networks {
    pub(super) fn new() -> Self {
        Self { loopback: Pool::new(Kind::Loopback), private: None, free: Vec::new(), closing: Vec::new() }
    }

    /// Makes sure that there are private networks: one is made, and has shown that packets pass.
    pub(super) fn private(&mut self) -> sys::Result<Subnet> {
        if let Some(Kind::Private(subnet)) = self.private.as_ref().map(Pool::kind) {
            return Ok(subnet);
        }
        let routes = std::fs::read_to_string("/proc/net/route").unwrap_or_default();
        let subnet = Subnet::choose(&routes, reaches_v6());
        let mut pool = Pool::new(Kind::Private(subnet));
        pool.make_ready()?;
        self.private = Some(pool);
        Ok(subnet)
    }

    /// A network with such a gateway, waited for if none is ready.
    pub(super) fn take_private(&mut self, wanted: &spec::Gateway) -> sys::Result<Connection> {
        if let Some(free) = self.take_free(Some(wanted)) {
            return Ok(free);
        }
        let subnet = self.private()?;
        // It was made just now, if not before.
        let pool = self.private.get_or_insert_with(|| Pool::new(Kind::Private(subnet)));
        let Made { namespace, sockets, frames } = pool.take_or_make()?;
        let gateway = frames.map(|frames| Gateway::new(frames, wanted.clone(), subnet));
        Ok(Connection { namespace, sockets, gateway })
    }

    /// A network with nothing but loopback, if one is ready. Otherwise the next step will find one.
    pub(super) fn take_loopback(&mut self) -> Option<Connection> {
        if let Some(free) = self.take_free(None) {
            return Some(free);
        }
        let made = self.loopback.take();
        if made.is_none() {
            self.loopback.refill();
        }
        made.map(|Made { namespace, sockets, .. }| Connection { namespace, sockets, gateway: None })
    }

    fn take_free(&mut self, wanted: Option<&spec::Gateway>) -> Option<Connection> {
        // The kernel forgets a socket some milliseconds after it was closed, so it is asked as late as can be.
        let fits = |connection: &Connection| connection.is_like(wanted) && connection.sockets.are_none();
        let position = self.free.iter().position(fits)?;
        Some(self.free.swap_remove(position))
    }

    /// Has one more made like that which a step has just taken: where steps run at the same time, the next one will want it.
    pub(super) fn refill(&mut self, taken: &Connection) {
        let is_like = |free: &Connection| free.gateway.is_some() == taken.gateway.is_some();
        if self.free.iter().any(is_like) {
            return;
        }
        match (&taken.gateway, &mut self.private) {
            (None, _) => self.loopback.refill(),
            (Some(_), Some(private)) => private.refill(),
            (Some(_), None) => {}
        }
    }

    /// Takes back what a step had. If the step could not change it another one may have it, once nothing is left in it.
    pub(super) fn give_back(&mut self, connection: Connection, could_change_it: bool) {
        let unfit = if could_change_it {
            Some(connection)
        } else {
            self.free.push(connection);
            (self.free.len() > MOST_FREE).then(|| self.free.remove(0))
        };
        self.closing.extend(unfit.and_then(|connection| connection.gateway).and_then(Gateway::close));
    }

    /// What becomes readable when there is something to do.
    pub(super) fn watched(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let makers = [Some(&self.loopback), self.private.as_ref()].into_iter().flatten().filter_map(Pool::socket);
        makers.chain(self.free.iter().filter_map(|connection| connection.gateway.as_ref()?.watched()))
    }

    /// Does it.
    pub(super) fn attend(&mut self) {
        for pool in [Some(&mut self.loopback), self.private.as_mut()].into_iter().flatten() {
            pool.collect();
        }
        for gateway in self.free.iter_mut().filter_map(|connection| connection.gateway.as_mut()) {
            gateway.attend();
        }
        self.closing.retain_mut(|gateway| !gateway.is_gone());
    }

    /// Whether there is something whose end has to be asked for.
    pub(super) fn is_closing(&self) -> bool {
        !self.closing.is_empty()
    }
}

/// Whether the machine has a way to addresses of IPv6, for which the kernel is asked; nothing is sent.
fn reaches_v6() -> bool {
    const SOMEBODY: (std::net::Ipv6Addr, u16) =
        (std::net::Ipv6Addr::new(0x2001, 0x4860, 0x4860, 0, 0, 0, 0, 0x8888), 53);
    std::net::UdpSocket::bind((std::net::Ipv6Addr::UNSPECIFIED, 0)).is_ok_and(|socket| socket.connect(SOMEBODY).is_ok())
}
