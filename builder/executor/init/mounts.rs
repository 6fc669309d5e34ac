//! What a step was given to see besides its root.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::mount::MountFlags;
use sys::mount::{Attributes, FileSystem};
use sys::path::Links;
use sys::{Named, mount as calls};

use super::place::{Missing, Places};
use super::scratch::Scratch;
use super::system::PROC_SUPER_MAGIC;
use super::{is_directory, open_host, overlay};
use crate::error::Error;
use crate::machine::Machine;
use crate::spec::{EtcFiles, Mount, Source};
use crate::stubs::Purpose;

/// Attributes of files that only describe something.
const PLAIN_FILE: Attributes = Attributes::MOUNT_ATTR_RDONLY
    .union(Attributes::MOUNT_ATTR_NOSUID)
    .union(Attributes::MOUNT_ATTR_NODEV)
    .union(Attributes::MOUNT_ATTR_NOEXEC);

/// Mounts the files of /etc that describe the network.
pub(super) fn etc_files(places: &mut Places<'_>, files: &EtcFiles, scratch: &mut Scratch) -> Result<(), Error> {
    let all =
        [("/etc/resolv.conf", &files.resolv_conf), ("/etc/hosts", &files.hosts), ("/etc/hostname", &files.hostname)];
    for (path, content) in all {
        let Some(content) = content else { continue };
        let mut mount_file = || {
            let tree = scratch.file(content, 0o644, (0, 0))?;
            let place = places.open_or_make(path, Missing::StubFile(Purpose::Mount))?;
            attach(&tree, &place, PLAIN_FILE, false)
        };
        mount_file().map_err(|cause| Error::Mount { destination: path.to_owned(), cause: cause.into() })?;
    }
    Ok(())
}

/// Mounts one thing. What files of others come with it have to refuse is said by the caller.
pub(super) fn mount(
    places: &mut Places<'_>,
    mount: &Mount,
    refused: Attributes,
    machine: &Machine,
    scratch: &mut Scratch,
) -> sys::Result<()> {
    let (tree, mut attributes, recursive) = match &mount.source {
        Source::Bind { path, selector, recursive } => {
            let source = select(open_host(path)?, selector)?;
            (calls::copy_tree(&source, c"", *recursive)?, refused, *recursive)
        }
        Source::Overlay { overlay, selector } => {
            let whole = overlay::join(overlay, machine, scratch)?;
            let source = select(whole, selector)?;
            (calls::copy_tree(&source, c"", false)?, refused, false)
        }
        Source::Served { selector, .. } => {
            let source = select(overlay::served(scratch)?, selector)?;
            (calls::copy_tree(&source, c"", false)?, refused, false)
        }
        Source::Tmpfs { size, mode } => {
            let tmpfs = FileSystem::open("tmpfs")?;
            tmpfs.string("mode", &format!("{mode:o}"))?;
            if let Some(size) = size {
                tmpfs.string("size", &size.to_string())?;
            }
            let attributes = Attributes::MOUNT_ATTR_NOSUID | Attributes::MOUNT_ATTR_NODEV;
            (tmpfs.mount(attributes)?, attributes, false)
        }
        Source::File { content, mode, uid, gid } => (scratch.file(content, *mode, (*uid, *gid))?, PLAIN_FILE, false),
    };
    attributes.set(Attributes::MOUNT_ATTR_RDONLY, mount.readonly);
    let missing = if is_directory(&tree)? { Missing::StubDirectory } else { Missing::StubFile };
    let place = places.open_or_make(&mount.destination, missing(Purpose::Mount))?;
    // What is mounted in /proc could pass for the kernel's own word.
    let kind = rustix::fs::fstatfs(&place).call(|| format!("fstatfs({:?})", mount.destination))?.f_type as u64;
    if kind == PROC_SUPER_MAGIC {
        return Err(sys::Error::new("mount inside /proc", Errno::PERM));
    }
    attach(&tree, &place, attributes, recursive)
}

/// What a selector means beneath a source: resolved with the source as root, by handle, so that nobody who changes links
/// meanwhile can lead it out.
fn select(source: OwnedFd, selector: &str) -> sys::Result<OwnedFd> {
    if selector.trim_matches('/').is_empty() {
        return Ok(source);
    }
    sys::path::open(source.as_fd(), selector.as_bytes(), Links::InRoot, OFlags::PATH, 0)
        .call(|| format!("openat2(source, {selector:?}, O_PATH, RESOLVE_IN_ROOT)"))
}

/// Attaches a tree that has its attributes before anybody can see it.
fn attach(tree: &OwnedFd, place: &OwnedFd, attributes: Attributes, recursive: bool) -> sys::Result<()> {
    // The kernel's own answer is "invalid argument", which helps nobody.
    if is_directory(tree)? != is_directory(place)? {
        let errno = if is_directory(place)? { Errno::ISDIR } else { Errno::NOTDIR };
        return Err(sys::Error::new("mount a file on a directory, or a directory on a file", errno));
    }
    let late = match set_attributes(tree, attributes, recursive) {
        Err(error) if error.errno() == Errno::NOSYS => true,
        other => {
            other?;
            false
        }
    };
    calls::attach(tree, place)?;
    if late { calls::remount_bind(tree, flags(attributes)) } else { Ok(()) }
}

fn set_attributes(tree: &impl AsFd, attributes: Attributes, recursive: bool) -> sys::Result<()> {
    if attributes.is_empty() {
        return Ok(());
    }
    calls::set_attributes(tree, attributes, Attributes::empty(), recursive)
}

/// Makes an attached mount read-only, but not what is mounted below it.
pub(super) fn make_readonly(tree: BorrowedFd<'_>) -> sys::Result<()> {
    restrict(tree, Attributes::MOUNT_ATTR_RDONLY)
}

/// Gives more attributes to an attached mount, but not to what is mounted below it.
pub(super) fn restrict(tree: BorrowedFd<'_>, attributes: Attributes) -> sys::Result<()> {
    match set_attributes(&tree, attributes, false) {
        Err(error) if error.errno() == Errno::NOSYS => calls::remount_bind(tree, flags(attributes)),
        other => other,
    }
}

/// The same attributes in the terms of mount(2).
fn flags(attributes: Attributes) -> MountFlags {
    let pairs = [
        (Attributes::MOUNT_ATTR_RDONLY, MountFlags::RDONLY),
        (Attributes::MOUNT_ATTR_NOSUID, MountFlags::NOSUID),
        (Attributes::MOUNT_ATTR_NODEV, MountFlags::NODEV),
        (Attributes::MOUNT_ATTR_NOEXEC, MountFlags::NOEXEC),
    ];
    pairs.into_iter().filter(|(attribute, _)| attributes.contains(*attribute)).map(|(_, flag)| flag).collect()
}
