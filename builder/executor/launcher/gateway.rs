//! The gateway of a step's private network: a process that is started when the step first uses its network.

use std::ffi::CString;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::process::{DumpableBehavior, Resource, Rlimit, Signal, set_dumpable_behavior};
use rustix::thread::{CapabilitySet, CapabilitySets};
use sys::fd::Standard;
use sys::namespace::Namespaces;
use sys::process::Cloned;
use sys::{Named, fd, process, socket};

use super::wire::{self, MAX_MESSAGE, Serve};
use crate::network::{Subnet, gateway};
use crate::seccomp;
use crate::spec;

/// The name that the gateway's program is executed under.
pub(super) const NAME: &str = "rbuild-gateway";

/// Should a gateway end although its step goes on, there is a next one, but not for ever.
const ATTEMPTS: u32 = 3;

/// A step's gateway as the launcher sees it.
#[derive(Debug)]
pub(super) struct Gateway {
    /// The far side of the interface, until it is to end.
    frames: Option<OwnedFd>,
    settings: spec::Gateway,
    subnet: Subnet,
    running: Option<(i32, OwnedFd)>,
    attempts: u32,
}

impl Gateway {
    /// One that is not needed yet.
    pub(super) fn new(frames: OwnedFd, settings: spec::Gateway, subnet: Subnet) -> Self {
        Self { frames: Some(frames), settings, subnet, running: None, attempts: 0 }
    }

    /// What it was made for.
    pub(super) fn settings(&self) -> &spec::Gateway {
        &self.settings
    }

    /// What becomes readable when there is something to do.
    pub(super) fn watched(&self) -> Option<BorrowedFd<'_>> {
        match &self.running {
            Some((_, pidfd)) => Some(pidfd.as_fd()),
            None if self.attempts < ATTEMPTS => self.frames.as_ref().map(AsFd::as_fd),
            None => None,
        }
    }

    /// Starts it when the step has sent something, and notices its end.
    pub(super) fn attend(&mut self) {
        if self.running.is_some() {
            self.is_gone();
        } else if self.attempts < ATTEMPTS && self.is_wanted() {
            self.attempts += 1;
            self.running = self.start().ok();
        }
    }

    fn is_wanted(&self) -> bool {
        use rustix::event::{PollFd, PollFlags, Timespec};
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        self.frames.as_ref().is_some_and(|frames| {
            matches!(rustix::event::poll(&mut [PollFd::new(frames, PollFlags::IN)], Some(&now)), Ok(1..))
        })
    }

    fn start(&self) -> sys::Result<(i32, OwnedFd)> {
        let (ours, theirs) = socket::pair()?;
        match process::clone(Namespaces::NONE, None)? {
            Cloned::Parent { pid, pidfd } => {
                let serve = Serve { gateway: self.settings.clone(), subnet: self.subnet };
                // It is read when the program is up; should that fail, its end is noticed.
                let message = wire::encode(&serve).unwrap_or_default();
                let frames: Vec<_> = self.frames.iter().map(AsFd::as_fd).collect();
                socket::send(&ours, &message, &frames, true)?;
                Ok((pid, pidfd))
            }
            Cloned::Child => {
                let Err(_) = execute(&theirs);
                process::exit(1)
            }
        }
    }

    /// Ends it. What is returned has to be asked whether it is gone.
    ///
    /// Whoever lets go of the interface's far side last waits some milliseconds for the kernel: that shall be its process.
    pub(super) fn close(mut self) -> Option<Self> {
        self.frames = None;
        let (_, pidfd) = self.running.as_ref()?;
        process::signal(pidfd, libc::SIGKILL).ok();
        Some(self)
    }

    /// Whether its process has ended and was collected.
    pub(super) fn is_gone(&mut self) -> bool {
        if let Some((pid, _)) = &self.running
            && !matches!(process::reap(*pid), Ok(None))
        {
            self.running = None;
        }
        self.running.is_none()
    }
}

/// Executes this program again, so that nothing of the launcher comes along.
fn execute(socket: &OwnedFd) -> sys::Result<std::convert::Infallible> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .call(|| "prctl(PR_SET_PDEATHSIG, SIGKILL)".to_owned())?;
    fd::set_standard(socket.as_fd(), Standard::Input)?;
    fd::close_on_exec_from(3)?;
    let name = CString::new(NAME).map_err(|_| sys::Error::new("execve(NAME)", Errno::INVAL))?;
    process::execute(c"/proc/self/exe", &[name], &[])
}

/// Does a gateway's work until its step is gone. The result is the process's exit code.
pub(super) fn main() -> i32 {
    i32::from(serve().is_err())
}

fn serve() -> Result<(), Errno> {
    let errno = |error: sys::Error| error.errno();
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    let socket = rustix::io::fcntl_dupfd_cloexec(std::io::stdin(), 3)?;
    fd::set_standard(File::open("/dev/null").map_err(|_| Errno::NOENT)?.as_fd(), Standard::Input).map_err(errno)?;
    process::ignore_signal(libc::SIGPIPE, true).map_err(errno)?;
    let mut buffer = vec![0; MAX_MESSAGE];
    let message = socket::receive(&socket, &mut buffer, true).map_err(errno)?;
    let Serve { gateway, subnet } = wire::decode(&buffer[..message.length]).map_err(|_| Errno::PROTO)?;
    let frames = message.descriptors.into_iter().next().ok_or(Errno::PROTO)?;
    drop((socket, buffer));
    renounce()?;
    gateway::serve(frames, gateway, subnet)
}

/// What a step sends is dealt with by a process that can do nothing but talk to the network: a mistake in it gains nobody much.
fn renounce() -> Result<(), Errno> {
    // Each conversation needs a descriptor.
    let most = rustix::process::getrlimit(Resource::Nofile).maximum;
    rustix::process::setrlimit(Resource::Nofile, Rlimit { current: most, maximum: most }).ok();
    rustix::thread::set_no_new_privs(true)?;
    let none = CapabilitySet::empty();
    rustix::thread::set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none })?;
    let filter = seccomp::Cache::default().default_profile(none);
    sys::seccomp::install(&filter).map_err(|error| error.errno())
}
