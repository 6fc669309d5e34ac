//! A step's own network namespace: with nothing but loopback, or with an interface behind which a [`gateway`] stands. Making one
//! costs more than the rest of a step's start. So those that will be needed are made ahead, and one in which a step left nothing
//! is given to the next.

pub(crate) mod gateway;
mod make;
pub(crate) mod names;
mod sockets;
mod subnet;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use sys::namespace::Namespaces;
use sys::process::Cloned;
use sys::{process, socket};

pub(crate) use sockets::Sockets;
pub use subnet::Subnet;

/// Hardware address of a step's interface.
const NEAR_ADDRESS: [u8; 6] = [0x02, 0x72, 0x62, 0, 0, 2];
/// Hardware address of the gateway's side.
const FAR_ADDRESS: [u8; 6] = [0x02, 0x72, 0x62, 0, 0, 1];
/// Largest packet of a step. What goes out is cut for the machine's network by the machine's kernel.
const MTU: u32 = 65_520;
/// How long the first namespace may take before there is no private network here.
const PATIENCE: Timespec = Timespec { tv_sec: 10, tv_nsec: 0 };

/// What a namespace has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Loopback only.
    Loopback,
    /// Also an interface.
    Private(Subnet),
}

/// A namespace that no step has used yet.
#[derive(Debug)]
pub(crate) struct Made {
    pub(crate) namespace: OwnedFd,
    /// Tells what a step left in it.
    pub(crate) sockets: Sockets,
    /// The far side of its interface.
    pub(crate) frames: Option<OwnedFd>,
}

/// Namespaces that no step has used yet.
#[derive(Debug)]
pub(crate) struct Pool {
    kind: Kind,
    ready: Vec<Made>,
    making: Option<Maker>,
}

/// A process that makes one namespace, hands it over and ends.
#[derive(Debug)]
struct Maker {
    pid: i32,
    socket: OwnedFd,
}

impl Pool {
    pub(crate) fn new(kind: Kind) -> Self {
        Self { kind, ready: Vec::new(), making: None }
    }

    pub(crate) fn kind(&self) -> Kind {
        self.kind
    }

    /// A namespace that is ready, if there is one.
    pub(crate) fn take(&mut self) -> Option<Made> {
        self.ready.pop()
    }

    /// A namespace, waited for if none is ready.
    pub(crate) fn take_or_make(&mut self) -> sys::Result<Made> {
        self.make_ready()?;
        self.take().ok_or_else(|| sys::Error::new("make a network namespace", Errno::IO))
    }

    /// Waits until one is ready.
    pub(crate) fn make_ready(&mut self) -> sys::Result<()> {
        if !self.ready.is_empty() {
            return Ok(());
        }
        if self.making.is_none() {
            self.making = Some(self.begin()?);
        }
        let Some(maker) = &self.making else { return Ok(()) };
        let waited = rustix::event::poll(&mut [PollFd::new(&maker.socket, PollFlags::IN)], Some(&PATIENCE));
        if !matches!(waited, Ok(1..)) {
            return Err(sys::Error::new("poll(a new network namespace)", Errno::TIMEDOUT));
        }
        self.collect_one()
    }

    /// Has the next one made, beside the launcher's own work.
    pub(crate) fn refill(&mut self) {
        if self.making.is_none() && self.ready.is_empty() {
            self.making = self.begin().ok();
        }
    }

    fn begin(&self) -> sys::Result<Maker> {
        let (ours, theirs) = socket::pair()?;
        match process::clone(Namespaces::NETWORK, None)? {
            Cloned::Child => {
                let sent = match make::make(self.kind) {
                    Ok(made) => {
                        let frames = made.frames.iter().map(AsFd::as_fd);
                        let descriptors: Vec<BorrowedFd<'_>> =
                            [made.namespace.as_fd(), made.sockets.as_fd()].into_iter().chain(frames).collect();
                        socket::send(&theirs, b"made", &descriptors, true)
                    }
                    Err(error) => socket::send(&theirs, &failure(&error), &[], true),
                };
                process::exit(i32::from(sent.is_err()))
            }
            Cloned::Parent { pid, .. } => Ok(Maker { pid, socket: ours }),
        }
    }

    /// What becomes readable when one was made.
    pub(crate) fn socket(&self) -> Option<BorrowedFd<'_>> {
        self.making.as_ref().map(|maker| maker.socket.as_fd())
    }

    /// Takes in what was made. Where it could not be made, whoever wants one tries again.
    pub(crate) fn collect(&mut self) {
        self.collect_one().ok();
    }

    fn collect_one(&mut self) -> sys::Result<()> {
        let Some(maker) = &self.making else { return Ok(()) };
        let mut buffer = [0; 1024];
        match socket::receive(&maker.socket, &mut buffer, false) {
            Err(error) if error.errno() == Errno::AGAIN => Ok(()),
            Ok(message) if !message.descriptors.is_empty() => {
                let mut descriptors = message.descriptors.into_iter();
                if let (Some(namespace), Some(sockets)) = (descriptors.next(), descriptors.next()) {
                    let sockets = Sockets::from(sockets);
                    self.ready.push(Made { namespace, sockets, frames: descriptors.next() });
                }
                self.end_maker();
                Ok(())
            }
            Ok(message) => {
                let error = failed(&buffer[..message.length]);
                self.end_maker();
                Err(error)
            }
            Err(error) => {
                self.end_maker();
                Err(error)
            }
        }
    }

    fn end_maker(&mut self) {
        if let Some(maker) = self.making.take() {
            // It has nothing left to do but to end.
            while matches!(process::reap(maker.pid), Ok(None)) {
                std::thread::yield_now();
            }
        }
    }
}

fn failure(error: &sys::Error) -> Vec<u8> {
    let text = format!("{}\0{}", error.errno().raw_os_error(), error.call());
    text.into_bytes().into_iter().take(1000).collect()
}

fn failed(message: &[u8]) -> sys::Error {
    let text = String::from_utf8_lossy(message);
    let (errno, call) = text.split_once('\0').unwrap_or(("", "make a network namespace"));
    sys::Error::new(call, errno.parse().map_or(Errno::IO, Errno::from_raw_os_error))
}
