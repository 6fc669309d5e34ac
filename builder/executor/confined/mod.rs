//! Steps where neither namespaces nor mounts are to be had, as in a container with Docker's default filter and no privilege.
//!
//! What is left is chroot: the root file system is a directory (a copy, made for the step), and what other steps have mounted
//! is put into it for the time of the step ([`fixture`]): files of /etc, device nodes, caches, empty directories. There is no
//! /proc, the network is the container's, and mounts that should be read-only can be written (what is written is dropped).
//! Landlock, where the kernel has it, keeps a step that breaks out of its chroot in there; the container around rbuild is the
//! outer wall. Steps run one at a time, since that is how the launcher can tell whose the processes are that a step leaves.

mod fixture;
mod leftovers;

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::process::Signal;
use rustix::thread::CapabilitySet;
use sys::{Named, fd, process, socket};

pub(crate) use fixture::Fixture;
pub use fixture::{NoNodes, nodes_in};
pub(crate) use leftovers::{adopt_orphans, end_all as end_leftovers};

use crate::error::{Doing, Error};
use crate::fence::Fence;
use crate::init::{self, Setup};
use crate::launcher::wire::{self, Report};
use crate::spec::{self, Process, Root, Source};
use crate::user::{self, Identity};

/// What breaks a chroot, or makes what could.
const DANGEROUS: CapabilitySet = CapabilitySet::SYS_CHROOT.union(CapabilitySet::MKNOD);

/// A step that only has to be started. What was put into its root goes when it is dropped.
pub(crate) struct Prepared {
    root: OwnedFd,
    directory: OwnedFd,
    identity: Identity,
    stubs: Vec<crate::Stub>,
    pub(crate) fixture: Fixture,
}

/// Puts into the root what the step is to find there.
pub(crate) fn prepare(process: &Process) -> Result<Prepared, Error> {
    check(process)?;
    let Root::Bind(path) = &process.root else {
        return Err(impossible("a root file system of several layers"));
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let action = "open the root file system";
    let root = rustix::fs::open(path, flags, Mode::empty()).call(|| format!("open({path:?})")).doing(action)?;
    let mut places = init::Places::new(root.as_fd())?;
    let identity = user::resolve(root.as_fd(), &process.user, &process.additional_gids)?;
    let aside = path.with_file_name("aside");
    let mut fixture = Fixture::new(aside);
    fixture.devices(&mut places).doing("make /dev")?;
    for name in ["proc", "sys"] {
        places.standard_directory(name).doing("make a directory that every image has")?;
    }
    fixture.etc_files(&mut places, &process.files).doing("write the files of /etc")?;
    for mount in &process.mounts {
        put(&mut fixture, &mut places, mount)?;
    }
    let directory = init::open_working_directory(&mut places, &process.cwd, &identity)?;
    let stubs = places.into_stubs();
    Ok(Prepared { root, directory, identity, stubs, fixture })
}

fn put(fixture: &mut Fixture, places: &mut init::Places<'_>, mount: &spec::Mount) -> Result<(), Error> {
    let failed = |cause: sys::Error| Error::Mount { destination: mount.destination.clone(), cause: cause.into() };
    match &mount.source {
        Source::Tmpfs { mode, .. } => fixture.directory(places, &mount.destination, *mode).map_err(failed),
        Source::Bind { path, selector, recursive: false } => {
            fixture.lend(places, &mount.destination, path, selector).map_err(failed)
        }
        Source::Bind { .. } => Err(impossible("a directory of the host")),
        Source::Overlay { .. } | Source::Served { .. } => Err(impossible("a mount of several layers")),
        Source::File { .. } => {
            Err(impossible("a file that is on no disk, as secrets are (a secret can be given as a variable: env=NAME)"))
        }
    }
}

fn check(process: &Process) -> Result<(), Error> {
    if process.args.is_empty() {
        return Err(Error::NoCommand);
    }
    if !matches!(process.network, spec::Network::Host) {
        return Err(impossible("a network of its own"));
    }
    if process.shm_size != spec::DEFAULT_SHM_SIZE {
        return Err(impossible("a size for /dev/shm"));
    }
    if process.readonly_root {
        return Err(impossible("a read-only root file system"));
    }
    Ok(())
}

/// Where nothing can be mounted, and no namespace made.
pub(crate) fn impossible(what: &str) -> Error {
    Error::Confined { what: what.to_owned() }
}

/// Becomes the step, or reports why not and ends.
pub(crate) fn run(setup: Setup<'_>, prepared: Prepared) -> ! {
    // What was put into the root stays there until the launcher, not this copy of it, takes it out.
    let Prepared { root, directory, identity, stubs, fixture } = prepared;
    std::mem::forget(fixture);
    let error = match become_step(&setup, &root, &directory, &identity, stubs) {
        Ok(()) => process::exit(125),
        Err(error) => error,
    };
    init::report_failure(setup.report.as_fd(), error)
}

fn become_step(
    setup: &Setup<'_>,
    root: &OwnedFd,
    directory: &OwnedFd,
    identity: &Identity,
    stubs: Vec<crate::Stub>,
) -> Result<(), Error> {
    let process = &setup.request.process;
    if setup.request.terminal.is_some() {
        return Err(impossible("a terminal of its own"));
    }
    setup.group.join(setup.joined).doing("join the step's control group")?;
    process::reset_signals().doing("reset signals")?;
    rustix::process::setsid().call(|| "setsid()".to_owned()).doing("start a session")?;
    init::leave_keyring()?;

    let change = || {
        rustix::process::fchdir(root).call(|| "fchdir(root)".to_owned())?;
        rustix::process::chroot(c".").call(|| "chroot(\".\")".to_owned())
    };
    change().doing("change the root")?;
    init::enter_working_directory(directory.as_fd(), &process.cwd)?;
    let privileged = matches!(process.capabilities, spec::Capabilities::All);
    if !privileged {
        Fence::Whole.build().doing("fence the step in")?;
    }

    init::standard_descriptors(setup, None, identity)?;
    init::limit_resources(process)?;
    let program = init::Program::new(process, identity)?;
    let prepared = wire::encode(&Report::Prepared { stubs, pid_namespace: 0 })?;
    let all = setup.machine.step_capabilities(process);
    let capabilities = if privileged { all } else { all.difference(DANGEROUS) };
    init::assume_identity(identity, setup.machine, capabilities, process)?;
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .call(|| "prctl(PR_SET_PDEATHSIG, SIGKILL)".to_owned())
        .doing("tie the step to the launcher")?;
    if let Some(filter) = &setup.filter {
        // Without CAP_SYS_ADMIN the kernel takes no filter, and Landlock no rules, from who may still gain privileges.
        rustix::thread::set_no_new_privs(true)
            .call(|| "prctl(PR_SET_NO_NEW_PRIVS, 1)".to_owned())
            .doing("forbid new privileges")?;
        sys::seccomp::install(filter).doing("install the system call filter")?;
    }
    init::drop_setup_capabilities(capabilities, process)?;
    rustix::process::umask(Mode::from_raw_mode(0o022));
    socket::send(&setup.report, &prepared, &[], true).doing("report")?;
    fd::close_on_exec_from(3).doing("close all descriptors")?;
    Err(program.execute())
}
