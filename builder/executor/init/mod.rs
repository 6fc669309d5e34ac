//! What a step's process does between clone and exec: a straight list, in an order that matters.
//!
//! All of it happens in the copy of the launcher that becomes the step. Until the pivot, paths of the host are visible, so
//! whatever comes from there is opened before; nothing of the step's own runs before the last line.

mod devices;
mod exec;
mod identity;
mod mounts;
mod overlay;
mod place;
mod scratch;
mod system;
mod terminal;
mod working_directory;

use std::collections::VecDeque;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::Mode;
use rustix::process::{Resource, Rlimit, Signal};
use sys::fd::Standard;
use sys::mount::Attributes;
use sys::namespace::Namespaces;
use sys::{Named, fd, mount, process, socket};

use crate::cgroup::Group;
use crate::error::{Doing, Error};
use crate::fence::Fence;
use crate::launcher::wire::{self, MAX_MESSAGE, Report, Request};
use crate::machine::Machine;
use crate::seccomp::Filter;
use crate::spec::{self, Process};
use crate::user::{self, Identity};
use scratch::Scratch;

pub(crate) use devices::NODES;
pub(crate) use exec::Program;
pub(crate) use identity::{assume as assume_identity, drop_setup_capabilities};
pub(crate) use place::{Missing, Places};
pub(crate) use working_directory::{enter as enter_working_directory, open as open_working_directory};

/// What the step's process is given.
pub(crate) struct Setup<'launcher> {
    pub(crate) request: Request,
    /// Standard input, output and error; none when the step gets a terminal.
    pub(crate) io: Vec<OwnedFd>,
    /// Where to report to.
    pub(crate) report: OwnedFd,
    pub(crate) network: NetworkSetup,
    /// Where an interpreter of foreign programs is registered.
    pub(crate) user_namespace: Option<OwnedFd>,
    /// Layers that a program joins, mounted; in the order of the request.
    pub(crate) served: VecDeque<OwnedFd>,
    pub(crate) filter: Option<Filter>,
    pub(crate) machine: &'launcher Machine,
    pub(crate) group: Group,
    /// Whether the process was cloned into its v2 group.
    pub(crate) joined: bool,
}

/// How the step comes to its network.
pub(crate) enum NetworkSetup {
    /// It stays in the launcher's.
    Keep,
    /// It was cloned into a new one, where nothing is switched on yet.
    Fresh,
    /// It joins one that was made ready.
    Join(OwnedFd),
}

/// Becomes the step, or reports why not and ends.
pub(crate) fn run(setup: Setup<'_>) -> ! {
    match become_step(&setup) {
        Ok(()) => process::exit(125),
        Err(error) => report_failure(setup.report.as_fd(), error),
    }
}

/// Ends the process that did not become the step.
pub(crate) fn report_failure(report: BorrowedFd<'_>, error: Error) -> ! {
    let message = wire::encode(&Report::Failed(error)).ok().filter(|message| message.len() <= MAX_MESSAGE);
    let message = message.or_else(|| {
        let short = Error::Protocol("the reason of a failure is too long to be told".to_owned());
        wire::encode(&Report::Failed(short)).ok()
    });
    socket::send(report, &message.unwrap_or_default(), &[], true).ok();
    process::exit(125)
}

fn become_step(setup: &Setup<'_>) -> Result<(), Error> {
    let Setup { request, machine, .. } = setup;
    let process = &request.process;
    if process.args.is_empty() {
        return Err(Error::NoCommand);
    }

    // 1. Where we are counted, what we see of it, and what we are connected to.
    setup.group.join(setup.joined).doing("join the step's control group")?;
    sys::namespace::unshare(Namespaces::CGROUP).doing("make a cgroup namespace")?;
    match &setup.network {
        NetworkSetup::Keep => {}
        NetworkSetup::Fresh => sys::network::interface_up("lo").doing("switch the loopback interface on")?,
        NetworkSetup::Join(namespace) => sys::namespace::join_network(namespace).doing("join a network namespace")?,
    }
    process::reset_signals().doing("reset signals")?;
    rustix::process::setsid().call(|| "setsid()".to_owned()).doing("start a session")?;
    rustix::process::umask(Mode::empty());

    let pid_namespace = rustix::fs::stat(c"/proc/self/ns/pid").map_or(0, |namespace| namespace.st_ino);

    // 2. The root, still beneath the host's.
    let mut scratch = Scratch::new(&setup.served)?;
    let root = overlay::root(&process.root, machine, &mut scratch)?;
    mounts::restrict(root.as_fd(), devices::refused(process)).doing("refuse devices in the root file system")?;
    let mut places = Places::new(root.as_fd())?;

    // 3. Who we are is read before anything can be mounted over the image's files.
    let identity = user::resolve(root.as_fd(), &process.user, &process.additional_gids)?;

    // 4. What every Linux program expects.
    let system = system::mount(&mut places, process, machine, &mut scratch, &setup.group)?;
    let terminal = match request.terminal {
        Some(size) => Some(terminal::open(system.terminals.as_fd(), size, &identity)?),
        None => None,
    };
    devices::console(&places, terminal.as_ref())?;
    system::protect(&places, process, &system, &mut scratch)?;

    // 5. What the step was given.
    mounts::etc_files(&mut places, &process.files, &mut scratch)?;
    for mount in &process.mounts {
        mounts::mount(&mut places, mount, devices::refused(process), machine, &mut scratch)
            .map_err(|cause| Error::Mount { destination: mount.destination.clone(), cause: cause.into() })?;
    }
    let directory = working_directory::open(&mut places, &process.cwd, &identity)?;
    if process.readonly_root {
        let attributes = Attributes::MOUNT_ATTR_RDONLY | devices::refused(process);
        mounts::restrict(root.as_fd(), attributes).doing("make the root read-only")?;
    }

    // 6. Goodbye to the host.
    rustix::system::sethostname(process.hostname.as_bytes())
        .call(|| format!("sethostname({:?})", process.hostname))
        .doing("set the host name")?;
    leave_keyring()?;
    mount::pivot_root(root.as_fd()).doing("change the root")?;
    working_directory::enter(directory.as_fd(), &process.cwd)?;
    if let Some(fence) = Fence::beside_mounts(process).filter(|_| setup.io.iter().all(is_no_file)) {
        fence.build().doing("fence the step in")?;
    }

    // 7. What the program starts with. From here on nothing is opened any more.
    standard_descriptors(setup, terminal.as_ref(), &identity)?;
    limit_resources(process)?;
    let program = exec::Program::new(process, &identity)?;
    let prepared = wire::encode(&Report::Prepared { stubs: places.into_stubs(), pid_namespace })?;
    if let Some(namespace) = &setup.user_namespace {
        // Late, because what was made so far is not this namespace's.
        sys::namespace::join_user(namespace).doing("join the user namespace of an interpreter")?;
    }
    identity::assume(&identity, machine, machine.step_capabilities(process), process)?;
    // Set late because a change of identity takes it away.
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .call(|| "prctl(PR_SET_PDEATHSIG, SIGKILL)".to_owned())
        .doing("tie the step to the launcher")?;
    if let Some(filter) = &setup.filter {
        sys::seccomp::install(filter).doing("install the system call filter")?;
    }
    identity::drop_setup_capabilities(machine.step_capabilities(process), process)?;
    rustix::process::umask(Mode::from_raw_mode(0o022));

    // 8. The program.
    let master: Vec<BorrowedFd<'_>> = terminal.iter().map(|terminal| terminal.master.as_fd()).collect();
    socket::send(&setup.report, &prepared, &master, true).doing("report")?;
    fd::close_on_exec_from(3).doing("close all descriptors")?;
    Err(program.execute())
}

/// The launcher's keys are out of reach for the step. Where keyrings do not exist, or the user's quota of keys is used up for
/// the moment, the filter's ban on the calls has to do.
pub(crate) fn leave_keyring() -> Result<(), Error> {
    use rustix::io::Errno;
    match process::new_session_keyring() {
        Err(error) if !matches!(error.errno(), Errno::NOSYS | Errno::PERM | Errno::ACCESS | Errno::DQUOT) => {
            Err(error).doing("make a session keyring")
        }
        _ => Ok(()),
    }
}

pub(crate) fn standard_descriptors(
    setup: &Setup<'_>,
    terminal: Option<&terminal::Terminal>,
    identity: &Identity,
) -> Result<(), Error> {
    let all = [Standard::Input, Standard::Output, Standard::Error];
    match terminal {
        Some(terminal) => {
            for standard in all {
                fd::set_standard(terminal.slave.as_fd(), standard).doing("set up the terminal")?;
            }
            rustix::process::ioctl_tiocsctty(&terminal.slave)
                .call(|| "ioctl(TIOCSCTTY)".to_owned())
                .doing("set up the terminal")
        }
        None => {
            for (io, standard) in setup.io.iter().zip(all) {
                fd::set_standard(io.as_fd(), standard).doing("set up input and output")?;
                give_pipe(io.as_fd(), identity);
            }
            Ok(())
        }
    }
}

/// Makes the user the owner of a pipe, so that he can open it once more as /dev/stdout. Only of pipes: what else rbuild was given,
/// such as its own terminal, is not ours to give away. Where it fails the pipe can be used all the same.
fn give_pipe(fd: BorrowedFd<'_>, identity: &Identity) {
    let is_pipe = rustix::fs::fstat(fd)
        .is_ok_and(|stat| rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::Fifo);
    if is_pipe && identity.uid != 0 {
        let (uid, gid) = (rustix::fs::Uid::from_raw(identity.uid), rustix::fs::Gid::from_raw(identity.gid));
        rustix::fs::fchown(fd, Some(uid), Some(gid)).ok();
    }
}

/// Whether a standard descriptor is neither a file nor a terminal of somebody's, which the program may open once more as
/// /dev/stdout.
fn is_no_file(fd: &OwnedFd) -> bool {
    use rustix::fs::FileType;
    rustix::fs::fstat(fd).is_ok_and(|stat| match FileType::from_raw_mode(stat.st_mode) {
        FileType::Fifo | FileType::Socket => true,
        FileType::CharacterDevice => stat.st_rdev == rustix::fs::makedev(1, 3),
        _ => false,
    })
}

/// Sets the limits, as far as this process may: a hard limit that it cannot reach is taken as the highest that it can.
pub(crate) fn limit_resources(process: &Process) -> Result<(), Error> {
    for limit in &process.rlimits {
        let resource = resource(limit.resource);
        let most = rustix::process::getrlimit(resource).maximum;
        let mut wanted = Rlimit { current: limit.soft, maximum: limit.hard };
        if rustix::process::setrlimit(resource, wanted).is_err() {
            let clamp = |value: Option<u64>| match (value, most) {
                (Some(value), Some(most)) => Some(value.min(most)),
                (None, most) => most,
                (value, None) => value,
            };
            wanted = Rlimit { current: clamp(limit.soft), maximum: clamp(limit.hard) };
            rustix::process::setrlimit(resource, wanted)
                .call(|| format!("setrlimit({resource:?}, {wanted:?})"))
                .doing("set a resource limit")?;
        }
    }
    Ok(())
}

fn resource(resource: spec::Resource) -> Resource {
    match resource {
        spec::Resource::Core => Resource::Core,
        spec::Resource::Cpu => Resource::Cpu,
        spec::Resource::Data => Resource::Data,
        spec::Resource::Fsize => Resource::Fsize,
        spec::Resource::Locks => Resource::Locks,
        spec::Resource::Memlock => Resource::Memlock,
        spec::Resource::Msgqueue => Resource::Msgqueue,
        spec::Resource::Nice => Resource::Nice,
        spec::Resource::Nofile => Resource::Nofile,
        spec::Resource::Nproc => Resource::Nproc,
        spec::Resource::Rss => Resource::Rss,
        spec::Resource::Rtprio => Resource::Rtprio,
        spec::Resource::Rttime => Resource::Rttime,
        spec::Resource::Sigpending => Resource::Sigpending,
        spec::Resource::Stack => Resource::Stack,
    }
}

/// Opens a path of the host without reading or entering it.
fn open_host(path: &std::path::Path) -> sys::Result<OwnedFd> {
    let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).call(|| format!("open({path:?}, O_PATH | O_CLOEXEC)"))
}

/// Whether a descriptor is a directory.
fn is_directory(fd: impl AsFd) -> sys::Result<bool> {
    let stat = rustix::fs::fstat(fd).call(|| "fstat()".to_owned())?;
    Ok(rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::Directory)
}

/// Writes a whole new file in an open directory.
pub(crate) fn write_file(directory: impl AsFd, name: &str, content: &[u8], mode: u32) -> sys::Result<OwnedFd> {
    use rustix::fs::OFlags;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(directory, name, flags, Mode::from_raw_mode(mode))
        .call(|| format!("openat({name:?}, O_WRONLY | O_CREAT | O_EXCL, {mode:#o})"))?;
    let mut file = File::from(fd);
    std::io::Write::write_all(&mut file, content).call(|| format!("write({name:?}, {} bytes)", content.len()))?;
    Ok(file.into())
}
