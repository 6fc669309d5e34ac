//! Mounts by descriptor: a mount is made or copied detached, given its attributes, and only then attached to a place that is
//! itself a descriptor. No name is looked up twice, so nothing can be swapped in between.
//!
//! Needs Linux 5.2 (open_tree, fsopen, move_mount); `mount_setattr` (5.12) has its fallback here.

use std::ffi::{CStr, CString};
use std::fmt::Debug;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, StatxFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags,
};
use rustix::path::Arg;

pub use rustix::mount::MountAttrFlags as Attributes;

use crate::error::{Error, Named, Result, check};

/// A file system being configured, before it is a mount.
#[derive(Debug)]
pub struct FileSystem {
    fd: OwnedFd,
    kind: String,
}

impl FileSystem {
    /// Begins a file system of the kind (`overlay`, `tmpfs`, `proc`, ...).
    pub fn open(kind: &str) -> Result<Self> {
        Self::open_named(kind, kind)
    }

    /// The same with a name of its own, which is what lists of mounts show as its source.
    pub fn open_named(kind: &str, name: &str) -> Result<Self> {
        let fd = rustix::mount::fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)
            .call(|| format!("fsopen({kind:?}, FSOPEN_CLOEXEC)"))?;
        let file_system = Self { fd, kind: kind.to_owned() };
        file_system.string("source", name)?;
        Ok(file_system)
    }

    /// Sets an option without a value.
    pub fn flag(&self, key: &str) -> Result<()> {
        rustix::mount::fsconfig_set_flag(&self.fd, key)
            .map_err(|errno| self.failed(format!("fsconfig({}, FSCONFIG_SET_FLAG, {key:?})", self.kind), errno))
    }

    /// Sets an option to a string; the kernel takes 255 bytes at most.
    pub fn string(&self, key: &str, value: &str) -> Result<()> {
        rustix::mount::fsconfig_set_string(&self.fd, key, value).map_err(|errno| {
            self.failed(format!("fsconfig({}, FSCONFIG_SET_STRING, {key:?}, {value:?})", self.kind), errno)
        })
    }

    /// Sets an option to an open descriptor.
    pub fn descriptor(&self, key: &str, value: BorrowedFd<'_>) -> Result<()> {
        rustix::mount::fsconfig_set_fd(&self.fd, key, value).map_err(|errno| {
            let call = format!("fsconfig({}, FSCONFIG_SET_FD, {key:?}, {})", self.kind, value.as_raw_fd());
            self.failed(call, errno)
        })
    }

    /// Makes the file system and a detached mount of it.
    pub fn mount(self, attributes: Attributes) -> Result<OwnedFd> {
        rustix::mount::fsconfig_create(&self.fd)
            .map_err(|errno| self.failed(format!("fsconfig({}, FSCONFIG_CMD_CREATE)", self.kind), errno))?;
        rustix::mount::fsmount(&self.fd, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
            .map_err(|errno| self.failed(format!("fsmount({}, FSMOUNT_CLOEXEC, {attributes:?})", self.kind), errno))
    }

    /// The call's error with what the file system itself had to say, which the kernel keeps in the descriptor.
    fn failed(&self, call: String, errno: Errno) -> Error {
        let mut said = String::new();
        let mut line = [0_u8; 1024];
        while let Ok(length) = rustix::io::read(&self.fd, &mut line[..]) {
            if length == 0 {
                break;
            }
            let text = String::from_utf8_lossy(&line[..length]);
            said.push_str(if said.is_empty() { " [" } else { "; " });
            said.push_str(text.trim_start_matches(['e', 'w', 'i']).trim());
        }
        if !said.is_empty() {
            said.push(']');
        }
        Error::new(call + &said, errno)
    }
}

/// A detached copy of the mount at a path, of that mount alone or with all mounts below it.
pub fn copy_tree(dir: impl AsFd, path: impl Arg + Debug + Copy, recursive: bool) -> Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    let dir = dir.as_fd();
    rustix::mount::open_tree(dir, path, flags).call(|| format!("open_tree({}, {path:?}, {flags:?})", dir.as_raw_fd()))
}

/// A detached copy of the mount that holds an absolute path.
pub fn copy_tree_at(path: impl Arg + Debug + Copy, recursive: bool) -> Result<OwnedFd> {
    copy_tree(CWD, path, recursive)
}

/// Attaches a detached mount on top of what a descriptor refers to.
pub fn attach(mount: impl AsFd, place: impl AsFd) -> Result<()> {
    let (mount, place) = (mount.as_fd(), place.as_fd());
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    rustix::mount::move_mount(mount, c"", place, c"", flags)
        .call(|| format!("move_mount({}, \"\", {}, \"\", {flags:?})", mount.as_raw_fd(), place.as_raw_fd()))
}

/// Sets and clears attributes of a mount, with all mounts below it where `recursive`.
///
/// Kernels before 5.12 lack `mount_setattr`. There the caller gets an error for which [`Error::is_unsupported`] is true, and
/// takes [`remount_bind`] once the mount is attached.
pub fn set_attributes(mount: impl AsFd, set: Attributes, clear: Attributes, recursive: bool) -> Result<()> {
    change_attributes(mount.as_fd(), set, clear, 0, recursive)
}

/// Makes a mount, and those below it, propagate nothing in either direction.
pub fn make_private(mount: impl AsFd) -> Result<()> {
    change_attributes(mount.as_fd(), Attributes::empty(), Attributes::empty(), u64::from(libc::MS_PRIVATE as u32), true)
}

fn change_attributes(
    mount: BorrowedFd<'_>,
    set: Attributes,
    clear: Attributes,
    propagation: u64,
    recursive: bool,
) -> Result<()> {
    /// The kernel's `struct mount_attr`, first version.
    #[repr(C)]
    struct MountAttr {
        set: u64,
        clear: u64,
        propagation: u64,
        user_namespace: u64,
    }
    let attr = MountAttr { set: u64::from(set.bits()), clear: u64::from(clear.bits()), propagation, user_namespace: 0 };
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is a valid C string, `attr` outlives the call and its size is passed along.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            std::ptr::from_ref(&attr),
            size_of::<MountAttr>(),
        )
    })
    .map(drop)
    .call(|| {
        format!(
            "mount_setattr({}, \"\", {flags:#x}, {{set: {set:?}, clear: {clear:?}, propagation: {propagation:#x}}})",
            mount.as_raw_fd()
        )
    })
}

/// Changes the flags of an attached mount the old way, by the path of its descriptor.
pub fn remount_bind(mount: impl AsFd, flags: MountFlags) -> Result<()> {
    let path = descriptor_path(mount.as_fd());
    rustix::mount::mount_remount(&*path, flags | MountFlags::BIND, c"")
        .call(|| format!("mount(NULL, {path:?}, NULL, MS_REMOUNT | {flags:?})"))
}

/// Mounts the old way, for kernels whose file system does not understand the new one.
pub fn mount_at(kind: &str, place: impl AsFd, flags: MountFlags, options: &str) -> Result<()> {
    let path = descriptor_path(place.as_fd());
    let text = CString::new(options).map_err(|_| Error::new(format!("mount options {options:?}"), Errno::INVAL))?;
    // The kernel cuts a longer string without a word, and a cut upperdir means a read-only mount.
    if options.len() >= 4095 {
        return Err(Error::new(
            format!("mount({kind:?}, {path:?}, {} bytes of options)", options.len()),
            Errno::TOOBIG,
        ));
    }
    rustix::mount::mount(kind, &*path, kind, flags, &*text)
        .call(|| format!("mount({kind:?}, {path:?}, {kind:?}, {flags:?}, {options:?})"))
}

/// Makes all mounts of this mount namespace private.
pub fn make_all_private() -> Result<()> {
    rustix::mount::mount_change(c"/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .call(|| "mount(NULL, \"/\", NULL, MS_PRIVATE | MS_REC)".to_owned())
}

/// Makes the directory of the descriptor the root of this mount namespace and lets go of the old root.
///
/// The directory must be the root of a mount that is attached.
pub fn pivot_root(root: impl AsFd) -> Result<()> {
    let root = root.as_fd();
    // Not what lies on top of it, which a path would lead to.
    let old = rustix::fs::open(c"/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .call(|| "open(\"/\", O_PATH | O_DIRECTORY)".to_owned())?;
    rustix::process::fchdir(root).call(|| format!("fchdir({})", root.as_raw_fd()))?;
    rustix::process::pivot_root(c".", c".").call(|| "pivot_root(\".\", \".\")".to_owned())?;
    // The old root now lies on top of the new one. It goes with all that is mounted in it: each call waits for the kernel.
    rustix::process::fchdir(&old).call(|| "fchdir(the old root)".to_owned())?;
    rustix::mount::unmount(c".", UnmountFlags::DETACH).call(|| "umount2(\".\", MNT_DETACH)".to_owned())?;
    rustix::process::chdir(c"/").call(|| "chdir(\"/\")".to_owned())?;
    // Roots may have lain on roots: `..` leads to the topmost. The root's parent must be the root itself.
    let own = mount_identity(c"/")?;
    while mount_identity(c"/..")? != own {
        rustix::mount::unmount(c"/..", UnmountFlags::DETACH).call(|| "umount2(\"/..\", MNT_DETACH)".to_owned())?;
    }
    Ok(())
}

/// What tells one mount's root from another's: the mount's id (statx(2), Linux 5.8; 0 before), device and inode.
fn mount_identity(path: &CStr) -> Result<(u64, u32, u32, u64)> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    let found = rustix::fs::statx(CWD, path, flags, StatxFlags::MNT_ID | StatxFlags::INO);
    let found = found.call(|| format!("statx({path:?}, {flags:?}, STATX_MNT_ID | STATX_INO)"))?;
    Ok((found.stx_mnt_id, found.stx_dev_major, found.stx_dev_minor, found.stx_ino))
}

/// Detaches the mount whose root the descriptor refers to.
pub fn detach(mount: impl AsFd) -> Result<()> {
    let path = descriptor_path(mount.as_fd());
    rustix::mount::unmount(&*path, UnmountFlags::DETACH).call(|| format!("umount2({path:?}, MNT_DETACH)"))
}

/// The name under which /proc offers a descriptor of this process.
pub fn descriptor_path(fd: BorrowedFd<'_>) -> CString {
    CString::new(format!("/proc/self/fd/{}", fd.as_raw_fd())).unwrap_or_else(|_| CStr::to_owned(c"/proc/self/fd"))
}
