//! Making and describing files by the handle of their directory and one name, so that no path is ever walked twice and
//! no symbolic link followed. Names must not contain slashes; the callers split paths.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::fs::{self, AtFlags, CWD, FileType, Gid, Mode, OFlags, Timespec, Timestamps, UTIME_OMIT, Uid};

/// Seconds and nanoseconds since 1970.
pub type Time = (i64, u32);

/// What [`mknod`] makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Node {
    /// A character device.
    Char {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A block device.
    Block {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A named pipe.
    Fifo,
}

impl Node {
    /// The device that overlayfs takes for "removed".
    pub const WHITEOUT: Self = Self::Char { major: 0, minor: 0 };
}

/// Makes a regular file that did not exist, open for writing. `mode` is subject to the umask.
pub fn create(dir: impl AsFd, name: &[u8], mode: u32) -> io::Result<File> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(File::from(fs::openat(dir, name, flags, Mode::from_raw_mode(mode))?))
}

/// Opens a regular file for reading. Fails for symlinks, and does not wait for the writer of a pipe.
pub fn open(dir: impl AsFd, name: &[u8]) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    Ok(File::from(fs::openat(dir, name, flags, Mode::empty())?))
}

/// Opens a directory that can be read. The name `.` opens `dir` anew.
pub fn open_dir(dir: impl AsFd, name: &[u8]) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(fs::openat(dir, name, flags, Mode::empty())?)
}

/// Opens a directory by path, from which everything else goes by handle.
pub fn open_root(path: &std::path::Path) -> io::Result<OwnedFd> {
    Ok(fs::openat(CWD, path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
}

/// Makes a directory. `mode` is subject to the umask.
pub fn mkdir(dir: impl AsFd, name: &[u8], mode: u32) -> io::Result<()> {
    Ok(fs::mkdirat(dir, name, Mode::from_raw_mode(mode))?)
}

/// Makes a symbolic link.
pub fn symlink(target: &[u8], dir: impl AsFd, name: &[u8]) -> io::Result<()> {
    Ok(fs::symlinkat(target, dir, name)?)
}

/// The target of a symbolic link.
pub fn readlink(dir: impl AsFd, name: &[u8]) -> io::Result<Vec<u8>> {
    Ok(fs::readlinkat(dir, name, Vec::new())?.into_bytes())
}

/// Gives a file a second name. A symlink is linked itself.
pub fn link(dir: impl AsFd, name: &[u8], new_dir: impl AsFd, new_name: &[u8]) -> io::Result<()> {
    Ok(fs::linkat(dir, name, new_dir, new_name, AtFlags::empty())?)
}

/// Removes a name that is not a directory.
pub fn unlink(dir: impl AsFd, name: &[u8]) -> io::Result<()> {
    Ok(fs::unlinkat(dir, name, AtFlags::empty())?)
}

/// Removes an empty directory.
pub fn rmdir(dir: impl AsFd, name: &[u8]) -> io::Result<()> {
    Ok(fs::unlinkat(dir, name, AtFlags::REMOVEDIR)?)
}

/// Removes `name` and all below it; nothing there is no error. Symbolic links are removed, not followed. Depth costs
/// neither stack nor descriptors.
pub fn remove_all(dir: impl AsFd, name: &[u8]) -> io::Result<()> {
    use rustix::io::Errno;
    let dir = dir.as_fd();
    match fs::unlinkat(dir, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        // POSIX says PERM for directories, Linux says ISDIR.
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(error) => return Err(error.into()),
    }
    let top = open_dir(dir, name)?;
    let mut path: Vec<Vec<u8>> = Vec::new();
    let mut current = top.try_clone()?;
    loop {
        let mut below = None;
        for item in fs::Dir::read_from(&current)? {
            let item = item?;
            let child = item.file_name().to_bytes();
            if child == b"." || child == b".." {
                continue;
            }
            match fs::unlinkat(&current, child, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(Errno::ISDIR | Errno::PERM) => match fs::unlinkat(&current, child, AtFlags::REMOVEDIR) {
                    Ok(()) => {}
                    Err(Errno::NOTEMPTY) => {
                        below = Some(child.to_vec());
                        break;
                    }
                    Err(error) => return Err(error.into()),
                },
                Err(error) => return Err(error.into()),
            }
        }
        match below {
            Some(child) => {
                current = open_dir(&current, &child)?;
                path.push(child);
            }
            None => {
                // Empty now. Walk down to its parent again: `..` could lead elsewhere if somebody moved it.
                let Some(last) = path.pop() else { break };
                current = top.try_clone()?;
                for part in &path {
                    current = open_dir(&current, part)?;
                }
                rmdir(&current, &last)?;
            }
        }
    }
    rmdir(dir, name)
}

/// Makes a device or pipe. `mode` is subject to the umask.
pub fn mknod(dir: impl AsFd, name: &[u8], node: Node, mode: u32) -> io::Result<()> {
    let (kind, device) = match node {
        Node::Char { major, minor } => (FileType::CharacterDevice, fs::makedev(major, minor)),
        Node::Block { major, minor } => (FileType::BlockDevice, fs::makedev(major, minor)),
        Node::Fifo => (FileType::Fifo, 0),
    };
    Ok(fs::mknodat(dir, name, kind, Mode::from_raw_mode(mode), device)?)
}

/// Changes the owner of an open file.
pub fn chown(file: impl AsFd, uid: u32, gid: u32) -> io::Result<()> {
    Ok(fs::fchown(file, Some(owner(uid)?), Some(group(gid)?))?)
}

/// Changes the owner of a name, a symlink itself.
pub fn chown_at(dir: impl AsFd, name: &[u8], uid: u32, gid: u32) -> io::Result<()> {
    Ok(fs::chownat(dir, name, Some(owner(uid)?), Some(group(gid)?), AtFlags::SYMLINK_NOFOLLOW)?)
}

/// Changes the permission bits of an open file.
pub fn chmod(file: impl AsFd, mode: u32) -> io::Result<()> {
    Ok(fs::fchmod(file, Mode::from_raw_mode(mode))?)
}

/// Changes the permission bits of a name that is no symlink. A symlink is refused, not followed.
pub fn chmod_at(dir: impl AsFd, name: &[u8], mode: u32) -> io::Result<()> {
    use std::os::fd::AsRawFd;
    // fchmodat has no AT_SYMLINK_NOFOLLOW before Linux 6.6: open the thing itself without opening its contents, and
    // change what the handle leads to.
    let handle = fs::openat(dir, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    if FileType::from_raw_mode(fs::fstat(&handle)?.st_mode) == FileType::Symlink {
        return Err(rustix::io::Errno::LOOP.into());
    }
    let path = format!("/proc/self/fd/{}", handle.as_raw_fd());
    Ok(fs::chmodat(CWD, path.as_str(), Mode::from_raw_mode(mode), AtFlags::empty())?)
}

/// Sets the modification time of an open file; the access time stays.
pub fn set_mtime(file: impl AsFd, mtime: Time) -> io::Result<()> {
    Ok(fs::futimens(file, &times(mtime))?)
}

/// Sets the modification time of a name, of a symlink itself.
pub fn set_mtime_at(dir: impl AsFd, name: &[u8], mtime: Time) -> io::Result<()> {
    Ok(fs::utimensat(dir, name, &times(mtime), AtFlags::SYMLINK_NOFOLLOW)?)
}

/// The umask of this process, read without changing it, which would be seen by all threads.
pub fn umask() -> io::Result<u32> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    status
        .lines()
        .find_map(|line| u32::from_str_radix(line.strip_prefix("Umask:")?.trim(), 8).ok())
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "/proc/self/status names no umask"))
}

/// The all-ones id means "leave it" to the kernel, so nothing can belong to it.
fn owner(uid: u32) -> io::Result<Uid> {
    if uid == u32::MAX { Err(rustix::io::Errno::INVAL.into()) } else { Ok(Uid::from_raw(uid)) }
}

fn group(gid: u32) -> io::Result<Gid> {
    if gid == u32::MAX { Err(rustix::io::Errno::INVAL.into()) } else { Ok(Gid::from_raw(gid)) }
}

fn times(mtime: Time) -> Timestamps {
    Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        last_modification: Timespec { tv_sec: mtime.0, tv_nsec: mtime.1.into() },
    }
}

/// Has the kernel begin to write a part of a file to the disk, and does not wait for it (`SYNC_FILE_RANGE_WRITE`,
/// sync_file_range(2)). A hint: nothing is durable for it, and where the call does not exist nothing is lost.
pub fn start_writeback(file: impl AsFd, offset: u64, length: u64) {
    let (Ok(offset), Ok(length)) = (i64::try_from(offset), i64::try_from(length)) else { return };
    // SAFETY: takes numbers only, and the descriptor is open.
    unsafe { libc::sync_file_range(file.as_fd().as_raw_fd(), offset, length, libc::SYNC_FILE_RANGE_WRITE) };
}

/// Has both files share the blocks of a range (`FICLONERANGE`, ioctl_ficlonerange(2)): offsets and length are multiples of
/// the file system's block. Nothing is read or written, and a change of one file is none of the other.
///
/// # Errors
/// `EOPNOTSUPP`, `EXDEV`, `EINVAL`: it cannot be done there. A part may have been.
pub fn clone_range(from: impl AsFd, offset: u64, length: u64, to: impl AsFd, to_offset: u64) -> io::Result<()> {
    let range = libc::file_clone_range {
        src_fd: from.as_fd().as_raw_fd().into(),
        src_offset: offset,
        src_length: length,
        dest_offset: to_offset,
    };
    // SAFETY: the kernel reads the structure, which lives until the call returns, and both descriptors are open.
    let answer = unsafe { libc::ioctl(to.as_fd().as_raw_fd(), libc::FICLONERANGE as _, &raw const range) };
    if answer == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    use super::*;

    #[test]
    fn a_tree_is_removed_without_following_links() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let canary = dir.path().join("canary");
        std::fs::create_dir(&canary).expect("canary");
        std::fs::write(canary.join("f"), "x").expect("file");
        std::fs::create_dir_all(dir.path().join("t/a/b/c")).expect("tree");
        std::fs::write(dir.path().join("t/a/b/f"), "x").expect("file");
        std::os::unix::fs::symlink(&canary, dir.path().join("t/a/link")).expect("symlink");
        let handle = open_root(dir.path()).expect("root");
        remove_all(&handle, b"t").expect("remove");
        remove_all(&handle, b"t").expect("removing nothing");
        assert!(!dir.path().join("t").exists());
        assert!(canary.join("f").exists());
    }

    #[test]
    fn chmod_refuses_a_symlink() {
        let dir = tempfile::tempdir().expect("temporary directory");
        std::fs::write(dir.path().join("f"), "x").expect("file");
        std::os::unix::fs::symlink("f", dir.path().join("l")).expect("symlink");
        let handle = open_root(dir.path()).expect("root");
        let before = std::fs::metadata(dir.path().join("f")).expect("stat").permissions().mode();
        assert!(chmod_at(&handle, b"l", 0o777).is_err());
        assert_eq!(std::fs::metadata(dir.path().join("f")).expect("stat").permissions().mode(), before);
        chmod_at(&handle, b"f", 0o4711).expect("chmod");
        assert_eq!(std::fs::metadata(dir.path().join("f")).expect("stat").permissions().mode() & 0o7777, 0o4711);
    }

    #[test]
    fn times_before_1970_and_with_nanoseconds() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let handle = open_root(dir.path()).expect("root");
        let file = create(&handle, b"f", 0o600).expect("create");
        for (sec, nsec) in [(-2, 500_000_000), (1_700_000_000, 1)] {
            set_mtime(&file, (sec, nsec)).expect("set time");
            let stat = file.metadata().expect("stat");
            assert_eq!((stat.mtime(), stat.mtime_nsec()), (sec, nsec.into()));
        }
    }

    #[test]
    fn nothing_belongs_to_the_id_that_means_unchanged() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let handle = open_root(dir.path()).expect("root");
        let file = create(&handle, b"f", 0o600).expect("create");
        assert!(chown(&file, u32::MAX, 0).is_err());
    }
}
