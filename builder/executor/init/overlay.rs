//! Root file systems: layers joined by overlayfs, or a directory as it is.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use rustix::io::Errno;
use rustix::mount::MountFlags;
use sys::mount::{Attributes, FileSystem};
use sys::{Named, mount};

use super::open_host;
use super::scratch::Scratch;
use crate::error::{Doing, Error};
use crate::machine::{Machine, OverlayCalls};
use crate::spec::{Overlay, Root};

/// Mounts the root file system and answers its root directory.
pub(super) fn root(root: &Root, machine: &Machine, scratch: &mut Scratch) -> Result<OwnedFd, Error> {
    let action = "mount the root file system";
    match root {
        Root::Overlay(overlay) => join(overlay, machine, scratch).doing(action),
        Root::Served { .. } => served(scratch).doing(action),
        Root::Bind(path) => bind(path, scratch).doing(action),
    }
}

fn bind(path: &Path, scratch: &mut Scratch) -> sys::Result<OwnedFd> {
    let tree = copy_alone(&open_host(path)?)?;
    scratch.attach(&tree)?;
    Ok(tree)
}

/// The next of the file systems that the launcher has had mounted for this step.
pub(super) fn served(scratch: &mut Scratch) -> sys::Result<OwnedFd> {
    let tree = scratch.next_served()?;
    scratch.attach(&tree)?;
    Ok(tree)
}

/// A copy of a mount without those below it. In a user namespace the kernel refuses to uncover what is below.
fn copy_alone(directory: &OwnedFd) -> sys::Result<OwnedFd> {
    match mount::copy_tree(directory, c"", false) {
        Err(error) if error.errno() == Errno::INVAL => mount::copy_tree(directory, c"", true),
        other => other,
    }
}

/// Joins layers and attaches the result to the scratch file system. What it answers is the mount's root.
pub(super) fn join(overlay: &Overlay, machine: &Machine, scratch: &mut Scratch) -> sys::Result<OwnedFd> {
    let lowers = overlay.lowers.iter().map(|path| open_host(path)).collect::<sys::Result<Vec<_>>>()?;
    let changes = match &overlay.changes {
        Some(changes) => Some((open_host(&changes.upper)?, open_host(&changes.work)?)),
        None => None,
    };
    // One layer that is not written needs no joining, and the kernel refuses to.
    if let (None, [only]) = (&changes, lowers.as_slice()) {
        let tree = copy_alone(only)?;
        scratch.attach(&tree)?;
        mount::set_attributes(&tree, Attributes::MOUNT_ATTR_RDONLY, Attributes::empty(), false)?;
        return Ok(tree);
    }
    let (name, place) = scratch.mount_point()?;
    let layers = Layers { lowers, changes };
    if machine.overlay == OverlayCalls::Classic {
        classic(&layers, machine, &place)?;
        return scratch.reopen(&name);
    }
    let tree = modern(&layers, machine)?;
    mount::attach(&tree, &place)?;
    Ok(tree)
}

/// Layers as open directories.
struct Layers {
    lowers: Vec<OwnedFd>,
    changes: Option<(OwnedFd, OwnedFd)>,
}

/// Options that do not depend on the layers. A step's changes are read from the upper directory itself, which these keep
/// complete and plain. (Nothing is synced, by "volatile": the whole is synced once when the build is done, or thrown away.)
fn options(machine: &Machine) -> impl Iterator<Item = (&'static str, &'static str)> {
    let always = [("metacopy", "off"), ("index", "off"), ("xino", "off")];
    // With the attributes of a user namespace redirects are off, and saying so is an error.
    always.into_iter().chain((!machine.in_user_namespace).then_some(("redirect_dir", "off")))
}

fn modern(layers: &Layers, machine: &Machine) -> sys::Result<OwnedFd> {
    let overlay = FileSystem::open("overlay")?;
    let set = |key: &str, directory: &OwnedFd| match machine.overlay {
        OverlayCalls::Descriptors => overlay.descriptor(key, directory.as_fd()),
        // A string is limited to 255 bytes, which no descriptor's name reaches.
        _ => overlay.string(key, &format!("/proc/self/fd/{}", directory.as_raw_fd())),
    };
    for lower in &layers.lowers {
        set("lowerdir+", lower)?;
    }
    if let Some((upper, work)) = &layers.changes {
        set("upperdir", upper)?;
        set("workdir", work)?;
        overlay.flag("volatile")?;
    }
    for (key, value) in options(machine) {
        overlay.string(key, value)?;
    }
    if machine.in_user_namespace {
        overlay.flag("userxattr")?;
    }
    overlay.mount(Attributes::empty())
}

/// All options in one string, in which directories are named by descriptor, relative to the list of descriptors: even 500
/// layers stay within the kernel's limit of one page.
fn classic(layers: &Layers, machine: &Machine, place: &OwnedFd) -> sys::Result<()> {
    let names: Vec<String> = layers.lowers.iter().map(|lower| lower.as_raw_fd().to_string()).collect();
    let mut text = format!("lowerdir={}", names.join(":"));
    if let Some((upper, work)) = &layers.changes {
        text += &format!(",upperdir={},workdir={},volatile", upper.as_raw_fd(), work.as_raw_fd());
    }
    for (key, value) in options(machine) {
        text += &format!(",{key}={value}");
    }
    if machine.in_user_namespace {
        text += ",userxattr";
    }
    rustix::process::chdir(c"/proc/self/fd").call(|| "chdir(\"/proc/self/fd\")".to_owned())?;
    mount::mount_at("overlay", place, MountFlags::empty(), &text)?;
    rustix::process::chdir(c"/").call(|| "chdir(\"/\")".to_owned())
}
