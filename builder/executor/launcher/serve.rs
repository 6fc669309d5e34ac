//! The launcher's own process: one thread, one loop over rbuild's socket and, for each step, a socket and a process descriptor.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use rustix::thread::CapabilitySet;
use sys::namespace::{self, Namespaces};
use sys::process::{Cloned, Ended};
use sys::{Named, fd, process, socket};

use super::networks::{Connection, Networks};
use super::wire::{self, Emulated, MAX_MESSAGE, Order, Outcome, PrivateNetwork, Request};
use crate::cgroup::{Cgroups, Group};
use crate::confined::{self, Fixture};
use crate::emulation::{Emulators, Foreign};
use crate::error::{Doing, Error};
use crate::fuse::{self, Server as FuseServer};
use crate::init;
use crate::machine::{Fallbacks, Machine};
use crate::running::{ExitStatus, Usage};
use crate::seccomp;
use crate::spec::{self, Network};

/// Does the launcher's work until rbuild lets go of its socket. The result is the process's exit code.
pub(super) fn main(fallbacks: Fallbacks) -> i32 {
    match Server::open(fallbacks) {
        Ok(server) => server.serve(),
        Err(error) => {
            let text = format!("{}\0{}", error.errno().raw_os_error(), error.call());
            socket::send(std::io::stdin(), text.as_bytes(), &[], true).ok();
            1
        }
    }
}

struct Server {
    socket: OwnedFd,
    machine: Machine,
    cgroups: Cgroups,
    filters: seccomp::Cache,
    networks: Networks,
    emulators: Emulators,
    steps: Vec<Step>,
    /// Groups of ended steps that the kernel did not let go of yet.
    leaving: Vec<Group>,
}

struct Step {
    control: OwnedFd,
    pid: i32,
    pidfd: OwnedFd,
    /// Its mounts, held so that its end need not wait until the kernel has taken them down.
    mounts: Option<OwnedFd>,
    started: Instant,
    group: Group,
    /// What has to be taken out of its root.
    fixture: Option<Fixture>,
    /// Its network, unless it is the machine's or one that ends with the step.
    connection: Option<Connection>,
    /// Whether it had the rights to change its network.
    rules_network: bool,
    servers: Vec<FuseServer>,
}

impl Server {
    fn open(fallbacks: Fallbacks) -> sys::Result<Self> {
        // rbuild put its socket where a program's standard input is, because that place needs no agreement.
        let socket =
            rustix::io::fcntl_dupfd_cloexec(std::io::stdin(), 3).call(|| "fcntl(0, F_DUPFD_CLOEXEC, 3)".to_owned())?;
        let null = File::open("/dev/null").call(|| "open(\"/dev/null\")".to_owned())?;
        fd::set_standard(null.as_fd(), fd::Standard::Input)?;
        // Nobody may look into this process, nor into what it becomes, except those who may anyway.
        set_dumpable_behavior(DumpableBehavior::NotDumpable).call(|| "prctl(PR_SET_DUMPABLE, 0)".to_owned())?;
        for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT, libc::SIGPIPE] {
            process::ignore_signal(signal, true)?;
        }
        let machine = Machine::look(fallbacks);
        if machine.confined {
            confined::adopt_orphans()?;
        }
        socket::send(&socket, b"ready", &[], true)?;
        Ok(Self {
            socket,
            cgroups: Cgroups::discover(),
            machine,
            filters: seccomp::Cache::default(),
            networks: Networks::new(),
            emulators: Emulators::default(),
            steps: Vec::new(),
            leaving: Vec::new(),
        })
    }

    fn serve(mut self) -> i32 {
        loop {
            let ready = match self.poll() {
                Ok(ready) => ready,
                Err(_) => return 1,
            };
            self.networks.attend();
            for gateway in self.steps.iter_mut().filter_map(|step| step.connection.as_mut()?.gateway.as_mut()) {
                gateway.attend();
            }
            for pid in ready.ended {
                self.finish(pid);
            }
            for pid in ready.ordered {
                self.obey(pid);
            }
            if ready.asked && !self.accept() {
                // As the first process of a pid namespace, our end is that of all steps. Their groups would stay: wait for them.
                for step in &self.steps {
                    process::signal(&step.pidfd, libc::SIGKILL).ok();
                }
                while let Some(pid) = self.steps.first().map(|step| step.pid) {
                    let step = &self.steps[0];
                    rustix::event::poll(&mut [PollFd::new(&step.pidfd, PollFlags::IN)], None).ok();
                    self.finish(pid);
                }
                self.cgroups.close(std::mem::take(&mut self.leaving));
                // The kernel takes its time to end networks; rbuild, which sees the end of the socket, need not wait for that.
                return 0;
            }
            self.leaving.retain_mut(|group| !group.remove());
        }
    }

    /// Waits until something happened. Steps are named by pid, because positions change while they are dealt with.
    fn poll(&self) -> Result<Ready, Errno> {
        let mut polled = vec![PollFd::new(&self.socket, PollFlags::IN)];
        for step in &self.steps {
            polled.push(PollFd::new(&step.pidfd, PollFlags::IN));
            polled.push(PollFd::new(&step.control, PollFlags::IN));
        }
        let gateways = self.steps.iter().filter_map(|step| step.connection.as_ref()?.gateway.as_ref()?.watched());
        polled.extend(self.networks.watched().chain(gateways).map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
        let again = Timespec { tv_sec: 0, tv_nsec: 2_000_000 };
        let asks_again = !self.leaving.is_empty() || self.networks.is_closing();
        match rustix::event::poll(&mut polled, asks_again.then_some(&again)) {
            Err(Errno::INTR) | Ok(0) => return Ok(Ready::default()),
            other => other?,
        };
        let happened: Vec<bool> = polled.iter().map(|fd| !fd.revents().is_empty()).collect();
        let pids = |offset: usize| {
            let steps = self.steps.iter().enumerate();
            steps.filter(|(index, _)| happened[1 + 2 * index + offset]).map(|(_, step)| step.pid).collect()
        };
        Ok(Ready { asked: happened[0], ended: pids(0), ordered: pids(1) })
    }

    /// Takes the next request; false when rbuild is gone.
    fn accept(&mut self) -> bool {
        let mut buffer = [0; 16];
        let mut message = match socket::receive(&self.socket, &mut buffer, false) {
            Ok(message) if message.length == 0 => return false,
            Ok(message) => message,
            Err(error) => return error.errno() == Errno::AGAIN,
        };
        let mut descriptors = message.descriptors.drain(..);
        if &buffer[..message.length] == wire::NETWORK {
            if let Some(asker) = descriptors.next() {
                let answer: PrivateNetwork = self.networks.private().map_err(Into::into);
                socket::send(&asker, &wire::encode(&answer).unwrap_or_default(), &[], true).ok();
            }
            return true;
        }
        if &buffer[..message.length] == wire::SERVE {
            if let (Some(asker), Some(question)) = (descriptors.next(), descriptors.next()) {
                let answer: wire::Served = read_request::<wire::TryServed>(question)
                    .and_then(|trial| fuse::try_out(&trial.overlay, &trial.program).doing("try fuse-overlayfs"));
                socket::send(&asker, &wire::encode(&answer).unwrap_or_default(), &[], true).ok();
            }
            return true;
        }
        if &buffer[..message.length] == wire::EMULATE {
            if let (Some(asker), Some(question)) = (descriptors.next(), descriptors.next()) {
                let answer: Emulated =
                    read_request::<Foreign>(question).and_then(|foreign| self.emulators.find(&self.machine, &foreign));
                socket::send(&asker, &wire::encode(&answer).unwrap_or_default(), &[], true).ok();
            }
            return true;
        }
        let (Some(request), Some(control), Some(report)) = (descriptors.next(), descriptors.next(), descriptors.next())
        else {
            return true;
        };
        let io = descriptors.collect();
        if let Err(error) = self.start(request, &control, report, io) {
            tell(&control, &Outcome::Failed(error));
        }
        true
    }

    fn start(&mut self, request: OwnedFd, control: &OwnedFd, report: OwnedFd, io: Vec<OwnedFd>) -> Result<(), Error> {
        let control = control.try_clone().call(|| "dup()".to_owned()).doing("start a step")?;
        let request: Request = read_request(request)?;
        let process = &request.process;
        let filter = match &process.seccomp {
            spec::Seccomp::Default => Some(self.filters.default_profile(self.machine.step_capabilities(process))),
            spec::Seccomp::Profile(file) => Some(self.filters.of_file(file, self.machine.step_capabilities(process))?),
            spec::Seccomp::Unconfined => None,
        };
        let user_namespace =
            match &process.emulated {
                None => None,
                Some(architecture) => Some(self.emulators.namespace(architecture).ok_or_else(|| {
                    Error::Protocol(format!("it was not asked how programs for {architecture} are run"))
                })?),
            };
        let user_namespace = user_namespace.map(|namespace| namespace.try_clone().call(|| "dup()".to_owned()));
        let user_namespace = user_namespace.transpose().doing("start a step")?;
        let group = self.cgroups.create(&process.limits)?;
        let (served, servers) = fuse::serve(process)?;
        if self.machine.confined {
            return self.start_confined(request, control, report, io, filter, group);
        }
        let mut namespaces = Namespaces::MOUNT.with(Namespaces::PID).with(Namespaces::IPC).with(Namespaces::UTS);
        let connection = match &process.network {
            Network::Host => None,
            Network::Private(wanted) => {
                let taken = self.networks.take_private(wanted).map_err(|error| Error::Network(error.into()))?;
                Some(taken)
            }
            Network::None => self.networks.take_loopback(),
        };
        let network = match (&connection, &process.network) {
            (Some(connection), _) => {
                init::NetworkSetup::Join(connection.namespace().call(|| "dup()".to_owned()).doing("start a step")?)
            }
            (None, Network::Host) => init::NetworkSetup::Keep,
            (None, _) => {
                namespaces = namespaces.with(Namespaces::NETWORK);
                init::NetworkSetup::Fresh
            }
        };
        let rules_network = self.machine.step_capabilities(process).contains(CapabilitySet::NET_ADMIN);
        let started = Instant::now();
        // Where clone3 is not to be had, the child joins the group by itself.
        let into = group.descriptor().filter(|_| !self.machine.classic_clone);
        let cloned = match into {
            Some(group) => process::clone(namespaces, Some(group)).map(|cloned| (cloned, true)),
            None => Err(sys::Error::new("clone3()", Errno::NOSYS)),
        };
        let cloned = match cloned {
            Err(error) if matches!(error.errno(), Errno::NOSYS | Errno::INVAL | Errno::BADF | Errno::OPNOTSUPP) => {
                let clone =
                    if self.machine.classic_clone { process::clone_classic } else { |set| process::clone(set, None) };
                clone(namespaces).map(|cloned| (cloned, false))
            }
            other => other,
        };
        match cloned.doing("start a step's process")? {
            (Cloned::Child, joined) => {
                let machine = &self.machine;
                let setup = init::Setup {
                    request,
                    io,
                    report,
                    network,
                    user_namespace,
                    served,
                    filter,
                    machine,
                    group,
                    joined,
                };
                init::run(setup)
            }
            (Cloned::Parent { pid, pidfd }, _) => {
                if let Some(connection) = connection.as_ref().filter(|_| !self.steps.is_empty()) {
                    self.networks.refill(connection);
                }
                let fixture = None;
                // What a program serves, or a step has mounted itself, has to be written back before anybody looks at it, and
                // that is at its unmounting.
                let may_mount = self.machine.step_capabilities(&request.process).contains(CapabilitySet::SYS_ADMIN);
                let is_plain = servers.is_empty() && !may_mount;
                let mounts = if is_plain { namespace::mounts_of(&pidfd).ok() } else { None };
                self.steps.push(Step {
                    control,
                    pid,
                    pidfd,
                    mounts,
                    started,
                    group,
                    fixture,
                    connection,
                    rules_network,
                    servers,
                });
                Ok(())
            }
        }
    }

    /// The same without namespaces and mounts.
    fn start_confined(
        &mut self,
        request: Request,
        control: OwnedFd,
        report: OwnedFd,
        io: Vec<OwnedFd>,
        filter: Option<seccomp::Filter>,
        group: Group,
    ) -> Result<(), Error> {
        if !self.steps.is_empty() {
            return Err(confined::impossible("a second step at the same time"));
        }
        let prepared = confined::prepare(&request.process)?;
        let started = Instant::now();
        match process::clone(Namespaces::NONE, None).doing("start a step's process")? {
            Cloned::Child => {
                let network = init::NetworkSetup::Keep;
                let machine = &self.machine;
                let setup = init::Setup {
                    request,
                    io,
                    report,
                    network,
                    user_namespace: None,
                    served: Default::default(),
                    filter,
                    machine,
                    group,
                    joined: false,
                };
                confined::run(setup, prepared)
            }
            Cloned::Parent { pid, pidfd } => {
                let fixture = Some(prepared.fixture);
                let connection = None;
                self.steps.push(Step {
                    control,
                    pid,
                    pidfd,
                    mounts: None,
                    started,
                    group,
                    fixture,
                    connection,
                    rules_network: false,
                    servers: Vec::new(),
                });
                Ok(())
            }
        }
    }

    /// Does what rbuild wants of a step, or kills it when rbuild let go of it.
    fn obey(&mut self, pid: i32) {
        let Some(step) = self.steps.iter().find(|step| step.pid == pid) else { return };
        let mut buffer = [0; 64];
        let signal = match socket::receive(&step.control, &mut buffer, false) {
            Err(error) if error.errno() == Errno::AGAIN => return,
            Ok(message) if message.length > 0 => match wire::decode(&buffer[..message.length]) {
                Ok(Order::Signal(signal)) => signal,
                Err(_) => return,
            },
            Ok(_) | Err(_) => libc::SIGKILL,
        };
        if signal == libc::SIGKILL {
            step.group.kill();
        }
        process::signal(&step.pidfd, signal).ok();
    }

    /// Reports a step's end and forgets it.
    fn finish(&mut self, pid: i32) {
        let Some(index) = self.steps.iter().position(|step| step.pid == pid) else { return };
        let ended = match process::reap(pid) {
            Ok(None) => return,
            Ok(Some(ended)) => ended,
            // Nobody else can have taken it; say something true all the same.
            Err(_) => Ended::default(),
        };
        let step = self.steps.swap_remove(index);
        let wall = step.started.elapsed();
        if let Some(fixture) = step.fixture {
            confined::end_leftovers(&[]);
            drop(fixture);
        }
        // Its mounts are gone, and what they have to write is written before anybody looks at it.
        for server in step.servers {
            server.finish();
        }
        tell(&step.control, &Outcome::Ended(status(&ended, wall, &step.group)));
        // What follows is off rbuild's path, which goes on with what the step has changed: nobody is left to change it again.
        // This launcher's next step starts when the mounts are gone.
        drop(step.mounts);
        self.leaving.push(step.group);
        if let Some(connection) = step.connection {
            self.networks.give_back(connection, step.rules_network);
        }
    }
}

/// What happened since the last look.
#[derive(Default)]
struct Ready {
    asked: bool,
    ended: Vec<i32>,
    ordered: Vec<i32>,
}

fn status(ended: &Ended, wall: std::time::Duration, group: &Group) -> ExitStatus {
    let counted = group.usage();
    ExitStatus {
        code: ended.code,
        signal: ended.signal,
        oom_killed: counted.oom_killed,
        usage: Usage {
            user: counted.user.unwrap_or(ended.user).max(ended.user),
            system: counted.system.unwrap_or(ended.system).max(ended.system),
            peak_memory: counted.peak_memory.unwrap_or(ended.max_rss),
            read: ended.read,
            written: ended.written,
            wall,
        },
    }
}

fn tell(control: &OwnedFd, outcome: &Outcome) {
    let mut bytes = wire::encode(outcome).unwrap_or_default();
    if bytes.is_empty() || bytes.len() > MAX_MESSAGE {
        let failed = Outcome::Failed(Error::Protocol("the outcome of a step is too long to be told".to_owned()));
        bytes = wire::encode(&failed).unwrap_or_default();
    }
    // When rbuild is gone there is nobody to tell.
    socket::send(control, &bytes, &[], true).ok();
}

fn read_request<T: serde::de::DeserializeOwned>(request: OwnedFd) -> Result<T, Error> {
    let mut file = File::from(request);
    let mut bytes = Vec::new();
    std::io::Seek::rewind(&mut file)
        .and_then(|()| file.read_to_end(&mut bytes))
        .call(|| "read(request)".to_owned())
        .doing("read the request for a step")?;
    wire::decode(&bytes)
}
