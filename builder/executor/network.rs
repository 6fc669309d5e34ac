//! Network namespaces with nothing but loopback, made ahead of need: making one costs as much as the rest of a step's start.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use sys::namespace::Namespaces;
use sys::process::Cloned;
use sys::{Named, network, process, socket};

/// How many are kept ready: steps that start together are rarely more.
const READY: usize = 2;

/// Namespaces that no step has used yet. A used one is never given away again.
#[derive(Debug, Default)]
pub(crate) struct Pool {
    ready: Vec<OwnedFd>,
    making: Option<Maker>,
}

/// A process that makes one namespace, hands it over and ends.
#[derive(Debug)]
struct Maker {
    pid: i32,
    socket: OwnedFd,
}

impl Pool {
    /// A namespace that is ready, if there is one.
    pub(crate) fn take(&mut self) -> Option<OwnedFd> {
        self.ready.pop()
    }

    /// Has the next one made, beside the launcher's own work. Without success steps make their own.
    pub(crate) fn refill(&mut self) {
        if self.making.is_some() || self.ready.len() >= READY {
            return;
        }
        let Ok((ours, theirs)) = socket::pair() else { return };
        match process::clone(Namespaces::NETWORK, None) {
            Ok(Cloned::Child) => {
                let handed = make().and_then(|namespace| socket::send(&theirs, b"made", &[namespace.as_fd()], true));
                process::exit(i32::from(handed.is_err()))
            }
            Ok(Cloned::Parent { pid, .. }) => self.making = Some(Maker { pid, socket: ours }),
            Err(_) => {}
        }
    }

    /// What becomes readable when one was made.
    pub(crate) fn socket(&self) -> Option<BorrowedFd<'_>> {
        self.making.as_ref().map(|maker| maker.socket.as_fd())
    }

    /// Takes in what was made, and has another one made while there are too few.
    pub(crate) fn collect(&mut self) {
        let Some(maker) = &self.making else { return };
        let mut buffer = [0; 16];
        match socket::receive(&maker.socket, &mut buffer, false) {
            Err(error) if error.errno() == rustix::io::Errno::AGAIN => {}
            Ok(message) if message.length > 0 => {
                let made = !message.descriptors.is_empty();
                self.ready.extend(message.descriptors);
                self.end_maker();
                if made {
                    self.refill();
                }
            }
            Ok(_) | Err(_) => self.end_maker(),
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

fn make() -> sys::Result<OwnedFd> {
    network::interface_up("lo")?;
    File::open("/proc/self/ns/net").map(OwnedFd::from).call(|| "open(\"/proc/self/ns/net\")".to_owned())
}
