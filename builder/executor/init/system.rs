//! /proc, /sys, /dev and what belongs to them.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::io::Errno;
use sys::mount::{Attributes, FileSystem};
use sys::{Named, mount as calls};

use super::place::Places;
use super::scratch::Scratch;
use super::{devices, is_directory, open_host};
use crate::cgroup::Group;
use crate::error::{Doing, Error};
use crate::machine::Machine;
use crate::spec::Process;

/// Attributes of file systems without programs or devices.
pub(super) const RESTRICTED: Attributes =
    Attributes::MOUNT_ATTR_NOSUID.union(Attributes::MOUNT_ATTR_NODEV).union(Attributes::MOUNT_ATTR_NOEXEC);

/// What later steps need of these file systems.
pub(super) struct System {
    /// The root of the step's own pseudo-terminals.
    pub(super) terminals: OwnedFd,
    /// Whether /proc is the one that rbuild itself sees, where parts may be covered already.
    outer_proc: bool,
}

/// Mounts them all.
pub(super) fn mount(
    places: &mut Places<'_>,
    process: &Process,
    machine: &Machine,
    scratch: &mut Scratch,
    group: &Group,
) -> Result<System, Error> {
    let (proc, outer_proc) = proc().doing("make a /proc")?;
    let place = places.standard_directory("proc").doing("mount /proc")?;
    calls::attach(&proc, &place).doing("mount /proc")?;

    let terminals = devices::mount(places, process, machine, scratch)?;

    let writable = if process.writable_sysfs { Attributes::empty() } else { Attributes::MOUNT_ATTR_RDONLY };
    let place = places.standard_directory("sys").doing("mount /sys")?;
    let sysfs = sysfs(RESTRICTED | writable).doing("make a /sys")?;
    calls::attach(&sysfs, &place).doing("mount /sys")?;
    cgroup(places, group, RESTRICTED | writable, scratch).doing("mount /sys/fs/cgroup")?;
    Ok(System { terminals, outer_proc })
}

/// Who sees only a part of /proc, as most containers do, is given no whole one by the kernel ("mount too revealing"). The one
/// that rbuild sees is shown then, with what covers parts of it: a step has a process id there too, and finds itself.
fn proc() -> sys::Result<(OwnedFd, bool)> {
    match FileSystem::open("proc").and_then(|proc| proc.mount(RESTRICTED)) {
        Err(error) if error.errno() == Errno::PERM => {
            let tree = calls::copy_tree_at(Path::new("/proc"), true)?;
            calls::set_attributes(&tree, RESTRICTED, Attributes::empty(), true)?;
            Ok((tree, true))
        }
        other => other.map(|tree| (tree, false)),
    }
}

/// An own sysfs needs rights over the network namespace, which root of a user namespace does not have over the host's: there
/// the host's is shown, as a whole with what is mounted in it.
fn sysfs(attributes: Attributes) -> sys::Result<OwnedFd> {
    match FileSystem::open("sysfs").and_then(|sysfs| sysfs.mount(attributes)) {
        Err(error) if error.errno() == Errno::PERM => {
            let tree = calls::copy_tree_at(Path::new("/sys"), true)?;
            calls::set_attributes(&tree, attributes, Attributes::empty(), true)?;
            Ok(tree)
        }
        other => other,
    }
}

/// Shows the step its own group: whole in v2, and of v1 the controllers that limit it.
fn cgroup(places: &Places<'_>, group: &Group, attributes: Attributes, scratch: &mut Scratch) -> sys::Result<()> {
    let place = match places.open_plain("sys/fs/cgroup") {
        Err(error) if error.errno() == Errno::NOENT => return Ok(()),
        other => other?,
    };
    let mount_v2 = || FileSystem::open("cgroup2").and_then(|cgroup| cgroup.mount(attributes));
    let v1: Vec<&str> = group.v1_controllers().collect();
    if v1.is_empty() && group.v2_is_whole() {
        return match mount_v2() {
            Ok(tree) => calls::attach(&tree, &place),
            // Without rights over the cgroup namespace there is nothing to show.
            Err(error) if matches!(error.errno(), Errno::PERM | Errno::BUSY | Errno::NODEV) => Ok(()),
            Err(error) => Err(error),
        };
    }
    if v1.is_empty() {
        return Ok(());
    }
    let directory = scratch.empty_directory()?;
    calls::attach(&directory, &place)?;
    for controller in v1 {
        let tree = FileSystem::open("cgroup").and_then(|cgroup| {
            cgroup.flag(controller)?;
            cgroup.mount(attributes)
        })?;
        rustix::fs::mkdirat(&directory, controller, rustix::fs::Mode::from_raw_mode(0o555))
            .call(|| format!("mkdirat(/sys/fs/cgroup, {controller:?}, 0555)"))?;
        calls::attach(&tree, &places.open_plain(&format!("sys/fs/cgroup/{controller}"))?)?;
    }
    calls::set_attributes(&directory, attributes, Attributes::empty(), false)
}

/// Hides and protects what the step must not see or write.
pub(super) fn protect(
    places: &Places<'_>,
    process: &Process,
    system: &System,
    scratch: &mut Scratch,
) -> Result<(), Error> {
    let existing = |path: &str| existing(places, path, system.outer_proc);
    if !process.masked_paths.is_empty() {
        let null = null_device(places).doing("find the null device")?;
        // No mount of its own: one that is never attached is waited for when it is let go.
        let (_, nothing) = scratch.mount_point().doing("make an empty directory")?;
        for path in &process.masked_paths {
            let Some(place) = existing(path)? else { continue };
            // The null device has to stay a device, so that what is hidden reads as empty.
            let (cover, attributes) = match is_directory(&place).doing("mask a path")? {
                true => (&nothing, RESTRICTED_READONLY),
                false => (&null, RESTRICTED_READONLY.difference(Attributes::MOUNT_ATTR_NODEV)),
            };
            let tree = calls::copy_tree(cover, c"", false).doing("mask a path")?;
            calls::set_attributes(&tree, attributes, Attributes::empty(), false)
                .or_else(ignore_missing_call)
                .doing("mask a path")?;
            calls::attach(&tree, &place).doing(&format!("mask {path}"))?;
        }
    }
    for path in &process.readonly_paths {
        let Some(place) = existing(path)? else { continue };
        let tree = calls::copy_tree(&place, c"", true).doing(&format!("protect {path}"))?;
        calls::attach(&tree, &place).doing(&format!("protect {path}"))?;
        super::mounts::make_readonly(tree.as_fd()).doing(&format!("protect {path}"))?;
    }
    Ok(())
}

const RESTRICTED_READONLY: Attributes = RESTRICTED.union(Attributes::MOUNT_ATTR_RDONLY);

/// A cover that could be written in an old kernel is still a cover: what it hides is hidden, and it is empty.
fn ignore_missing_call(error: sys::Error) -> sys::Result<()> {
    if error.errno() == Errno::NOSYS { Ok(()) } else { Err(error) }
}

/// A path to be protected, if there is such a thing, and if what lies under /proc really is the kernel's.
fn existing(places: &Places<'_>, path: &str, may_be_covered: bool) -> Result<Option<OwnedFd>, Error> {
    let place = match places.open_plain(path) {
        // What is a link in the kernel's own file systems leads to something with a path of its own.
        Err(error) if matches!(error.errno(), Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(None),
        other => other.doing(&format!("protect {path}"))?,
    };
    for (prefix, magic) in [("/proc/", PROC_SUPER_MAGIC), ("/sys/", SYSFS_MAGIC)] {
        if path.starts_with(prefix) {
            match check_kind(place.as_fd(), magic, path) {
                Err(error) if may_be_covered && error.errno() == Errno::XDEV => return Ok(None),
                other => other.doing(&format!("protect {path}"))?,
            }
        }
    }
    Ok(Some(place))
}

/// What fstatfs says of /proc.
pub(super) const PROC_SUPER_MAGIC: u64 = 0x9fa0;
const SYSFS_MAGIC: u64 = 0x6265_6572;

fn check_kind(place: BorrowedFd<'_>, magic: u64, path: &str) -> sys::Result<()> {
    let found = rustix::fs::fstatfs(place).call(|| format!("fstatfs({path:?})"))?.f_type as u64;
    if found == magic {
        return Ok(());
    }
    Err(sys::Error::new(format!("fstatfs({path:?}) = {found:#x}, not {magic:#x}"), Errno::XDEV))
}

/// The step's /dev/null, of which we make sure that it is the null device.
fn null_device(places: &Places<'_>) -> sys::Result<OwnedFd> {
    let null = places.open_plain("dev/null")?;
    devices::check(null.as_fd(), "/dev/null", 1, 3)?;
    Ok(null)
}

/// The host's /dev entry of a name.
pub(super) fn host_device(name: &str) -> sys::Result<OwnedFd> {
    open_host(&Path::new("/dev").join(name))
}
