//! The step's /dev: the few nodes that every program may use, and its own terminals, shared memory and message queues.
//!
//! A step has the right to make nodes, as everywhere, but not to open them: all of its mounts refuse devices, and the few that
//! it may use lie in a file system that it cannot reach, each shown in /dev by a mount of its own.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use sys::mount::{Attributes, FileSystem};
use sys::{Named, mount as calls};

use super::place::Places;
use super::scratch::Scratch;
use super::system::{RESTRICTED, host_device};
use super::terminal::Terminal;
use crate::error::{Doing, Error};
use crate::machine::Machine;
use crate::spec::{Devices, Process};

/// Name, major and minor number of the nodes that every step has.
pub(crate) const NODES: &[(&str, u32, u32)] =
    &[("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];

/// Nodes for privileged steps, as far as the host has them.
const PRIVILEGED: &[&str] = &["kmsg", "cuse", "fuse", "kvm", "net/tun", "loop-control"];

const LINKS: &[(&str, &str)] = &[
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("core", "/proc/kcore"),
    ("ptmx", "pts/ptmx"),
];

/// Mounts /dev with all that is in it, and answers the root of its terminals.
pub(super) fn mount(
    places: &mut Places<'_>,
    process: &Process,
    machine: &Machine,
    scratch: &mut Scratch,
) -> Result<OwnedFd, Error> {
    let tmpfs = FileSystem::open("tmpfs").doing("make a /dev")?;
    let place = places.standard_directory("dev").doing("mount /dev")?;
    mount_in(tmpfs, &place, process, machine, scratch).doing("make a /dev")
}

/// What a mount of a step has to refuse: nodes that the step or its image brought along would be the host's devices. A
/// privileged step has them on purpose.
pub(super) fn refused(process: &Process) -> Attributes {
    match process.devices {
        Devices::Standard => Attributes::MOUNT_ATTR_NODEV,
        Devices::Privileged => Attributes::empty(),
    }
}

fn mount_in(
    tmpfs: FileSystem,
    place: &OwnedFd,
    process: &Process,
    machine: &Machine,
    scratch: &mut Scratch,
) -> sys::Result<OwnedFd> {
    tmpfs.string("mode", "0755")?;
    tmpfs.string("size", "65536k")?;
    let dev = tmpfs.mount(Attributes::MOUNT_ATTR_NOSUID | Attributes::MOUNT_ATTR_STRICTATIME | refused(process))?;
    calls::attach(&dev, place)?;
    for &(name, major, minor) in NODES {
        let device = rustix::fs::makedev(major, minor);
        match process.devices {
            Devices::Standard => {
                super::write_file(&dev, name, b"", 0o666)?;
                let shown = match scratch.node(FileType::CharacterDevice, 0o666, device) {
                    Err(error) if error.errno() == Errno::PERM => calls::copy_tree(&host_device(name)?, c"", false)?,
                    other => other?,
                };
                calls::attach(&shown, open(&dev, name)?)?;
            }
            Devices::Privileged => node(&dev, name, FileType::CharacterDevice, 0o666, device)?,
        }
        check(open(&dev, name)?.as_fd(), name, major, minor)?;
    }
    for (name, target) in LINKS {
        rustix::fs::symlinkat(*target, &dev, *name).call(|| format!("symlinkat({target:?}, /dev, {name:?})"))?;
    }
    if process.devices == Devices::Privileged {
        privileged(&dev)?;
    }

    let terminals = FileSystem::open("devpts")?;
    terminals.flag("newinstance")?;
    terminals.string("ptmxmode", "0666")?;
    terminals.string("mode", "0620")?;
    // The group of terminals, unless this user namespace has but a single group.
    if !machine.groups_denied {
        terminals.string("gid", "5")?;
    }
    let terminals = terminals.mount(Attributes::MOUNT_ATTR_NOSUID | Attributes::MOUNT_ATTR_NOEXEC)?;
    attach(&dev, "pts", &terminals)?;

    let shm = FileSystem::open_named("tmpfs", "shm")?;
    shm.string("mode", "1777")?;
    shm.string("size", &process.shm_size.to_string())?;
    attach(&dev, "shm", &shm.mount(RESTRICTED)?)?;

    match FileSystem::open("mqueue").and_then(|queues| queues.mount(RESTRICTED)) {
        Ok(queues) => attach(&dev, "mqueue", &queues)?,
        // Kernels can be built without message queues.
        Err(error) if error.errno() == Errno::NODEV => {}
        Err(error) => return Err(error),
    }
    Ok(terminals)
}

/// Makes /dev/console the step's terminal.
pub(super) fn console(places: &Places<'_>, terminal: Option<&Terminal>) -> Result<(), Error> {
    let Some(terminal) = terminal else { return Ok(()) };
    let make = || {
        let dev = places.open_plain("dev")?;
        super::write_file(&dev, "console", b"", 0o620)?;
        calls::attach(calls::copy_tree(&terminal.slave, c"", false)?, open(&dev, "console")?)
    };
    make().doing("make /dev/console")
}

/// Makes a node, or shows the host's where making one is not permitted.
fn node(dev: &OwnedFd, name: &str, kind: FileType, mode: u32, device: u64) -> sys::Result<()> {
    match rustix::fs::mknodat(dev, name, kind, Mode::from_raw_mode(mode), device) {
        Err(Errno::PERM) => {
            super::write_file(dev, name, b"", mode)?;
            calls::attach(calls::copy_tree(&host_device(name)?, c"", false)?, open(dev, name)?)
        }
        other => other.call(|| format!("mknodat(/dev, {name:?}, {mode:#o}, {device:#x})")),
    }
}

/// Copies the host's nodes for privileged programs, with their modes.
fn privileged(dev: &OwnedFd) -> sys::Result<()> {
    rustix::fs::mkdirat(dev, c"net", Mode::from_raw_mode(0o755)).call(|| "mkdirat(/dev, \"net\", 0755)".to_owned())?;
    let loops = (0..16).map(|number| format!("loop{number}"));
    for name in PRIVILEGED.iter().map(|&name| name.to_owned()).chain(loops) {
        let Ok(host) = host_device(&name) else { continue };
        let stat = rustix::fs::fstat(&host).call(|| format!("fstat(\"/dev/{name}\")"))?;
        node(dev, &name, FileType::from_raw_mode(stat.st_mode), stat.st_mode & 0o777, stat.st_rdev)?;
    }
    Ok(())
}

/// Makes sure that something is the character device it should be: what is mounted over secrets must be the real thing.
pub(super) fn check(fd: BorrowedFd<'_>, name: &str, major: u32, minor: u32) -> sys::Result<()> {
    let stat = rustix::fs::fstat(fd).call(|| format!("fstat({name:?})"))?;
    let is_device = FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice;
    if is_device && stat.st_rdev == rustix::fs::makedev(major, minor) {
        return Ok(());
    }
    Err(sys::Error::new(format!("{name:?} is not the character device {major}:{minor}"), Errno::NODEV))
}

fn attach(dev: &OwnedFd, name: &str, tree: &OwnedFd) -> sys::Result<()> {
    rustix::fs::mkdirat(dev, name, Mode::from_raw_mode(0o755)).call(|| format!("mkdirat(/dev, {name:?}, 0755)"))?;
    calls::attach(tree, open(dev, name)?)
}

fn open(dev: &OwnedFd, name: &str) -> sys::Result<OwnedFd> {
    rustix::fs::openat(dev, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
        .call(|| format!("openat(/dev, {name:?}, O_PATH | O_NOFOLLOW)"))
}
