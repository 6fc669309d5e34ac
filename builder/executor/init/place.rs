//! Places in the root: found by handle beneath it, made where they are missing, and noted down when they were made only to be
//! mounted on.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, StatxFlags};
use rustix::io::Errno;
use sys::Named;
use sys::path::Links;

use super::system::PROC_SUPER_MAGIC;
use crate::error::{Doing, Error};
use crate::stubs::{Purpose, Stub, times_of};

/// As the kernel: so many symbolic links are followed for one path.
const MAX_LINKS: u32 = 40;

/// The root with a record of what was made in it.
pub(crate) struct Places<'root> {
    root: BorrowedFd<'root>,
    root_mount: u64,
    stubs: Vec<Stub>,
}

/// What to make where there is nothing.
#[derive(Clone, Copy)]
pub(crate) enum Missing {
    /// Stubs on the way, and a directory at the end.
    StubDirectory(Purpose),
    /// Stubs on the way, and an empty file at the end.
    StubFile(Purpose),
    /// Directories of this owner, which stay.
    Directory { uid: u32, gid: u32 },
}

impl<'root> Places<'root> {
    pub(crate) fn new(root: BorrowedFd<'root>) -> Result<Self, Error> {
        let root_mount = mount_id(root).doing("look at the root")?;
        Ok(Self { root, root_mount, stubs: Vec::new() })
    }

    /// What was made to be mounted on, in the order it was made.
    pub(crate) fn into_stubs(self) -> Vec<Stub> {
        self.stubs
    }

    /// What is at a path, symbolic links being followed inside the root.
    pub(crate) fn open(&self, path: &str) -> sys::Result<OwnedFd> {
        sys::path::open(self.root, path.as_bytes(), Links::InRoot, OFlags::PATH, 0)
            .call(|| format!("openat2(root, {path:?}, O_PATH, RESOLVE_IN_ROOT)"))
    }

    /// What is at a path without any symbolic link in it.
    pub(crate) fn open_plain(&self, path: &str) -> sys::Result<OwnedFd> {
        let relative = path.trim_start_matches('/');
        sys::path::open(self.root, relative.as_bytes(), Links::Refuse, OFlags::PATH, 0)
            .call(|| format!("openat2(root, {relative:?}, O_PATH, RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS)"))
    }

    /// What is at a path, made if it is missing.
    pub(crate) fn open_or_make(&mut self, path: &str, missing: Missing) -> sys::Result<OwnedFd> {
        match self.open(path) {
            Err(error) if error.errno() == Errno::NOENT => self.walk(path, missing),
            other => other,
        }
    }

    /// A directory of the root itself that has to be an ordinary one: a symbolic link there would lead a mount astray.
    pub(crate) fn standard_directory(&mut self, name: &str) -> sys::Result<OwnedFd> {
        if self.open_plain(name).is_err_and(|error| error.errno() == Errno::NOENT) {
            self.make(self.root, name, &format!("/{name}"), true, Missing::StubDirectory(Purpose::Standard))?;
        }
        let place = self.open_plain(name)?;
        if !super::is_directory(&place)? {
            return Err(sys::Error::new(format!("/{name} in the image"), Errno::NOTDIR));
        }
        Ok(place)
    }

    /// Goes part by part, making what is missing. Every directory on the way stays open, so that `..` leads back.
    fn walk(&mut self, path: &str, missing: Missing) -> sys::Result<OwnedFd> {
        let own = |fd: BorrowedFd<'_>| fd.try_clone_to_owned().call(|| "fcntl(F_DUPFD_CLOEXEC)".to_owned());
        let mut todo: Vec<String> = parts(path).rev().map(str::to_owned).collect();
        let mut way: Vec<(String, OwnedFd)> = vec![(String::new(), own(self.root)?)];
        let mut followed = 0;
        while let Some(part) = todo.pop() {
            let (place, current) = way
                .last()
                .map(|(place, fd)| (place.clone(), fd.as_fd()))
                .ok_or_else(|| sys::Error::new(format!("walk {path:?}"), Errno::NOENT))?;
            if part == ".." {
                if way.len() > 1 {
                    way.pop();
                }
                continue;
            }
            let here = format!("{place}/{part}");
            let look = |current: BorrowedFd<'_>| {
                rustix::fs::openat(current, &*part, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
            };
            let found = match look(current) {
                Err(Errno::NOENT) => {
                    self.make(current, &part, &here, !todo.is_empty(), missing)?;
                    look(current)
                }
                other => other,
            };
            let found = found.call(|| format!("openat({place:?}, {part:?}, O_PATH | O_NOFOLLOW)"))?;
            let stat = rustix::fs::fstat(&found).call(|| format!("fstat({here:?})"))?;
            match FileType::from_raw_mode(stat.st_mode) {
                FileType::Symlink => {
                    // Nothing can be made in /proc, and the text of its magic links says where they lead outside.
                    let kind = rustix::fs::fstatfs(&found).call(|| format!("fstatfs({here:?})"))?.f_type as u64;
                    if kind == PROC_SUPER_MAGIC {
                        return Err(sys::Error::new(format!("readlink({here:?})"), Errno::LOOP));
                    }
                    followed += 1;
                    if followed > MAX_LINKS {
                        return Err(sys::Error::new(format!("readlink({here:?})"), Errno::LOOP));
                    }
                    let target =
                        rustix::fs::readlinkat(&found, c"", Vec::new()).call(|| format!("readlink({here:?})"))?;
                    let target = target
                        .into_string()
                        .map_err(|_| sys::Error::new(format!("readlink({here:?})"), Errno::ILSEQ))?;
                    if target.starts_with('/') {
                        way.truncate(1);
                    }
                    todo.extend(parts(&target).rev().map(str::to_owned));
                }
                FileType::Directory => way.push((here, found)),
                _ if todo.is_empty() => return Ok(found),
                _ => return Err(sys::Error::new(format!("openat({here:?}, O_DIRECTORY)"), Errno::NOTDIR)),
            }
        }
        way.pop().map(|(_, fd)| fd).ok_or_else(|| sys::Error::new(format!("walk {path:?}"), Errno::NOENT))
    }

    /// Makes one entry of an open directory.
    fn make(
        &mut self,
        parent: BorrowedFd<'_>,
        name: &str,
        path: &str,
        on_the_way: bool,
        missing: Missing,
    ) -> sys::Result<()> {
        let times = times_of(reopen(parent)?).call(|| format!("fstat(parent of {path:?})"))?;
        let is_file = matches!(missing, Missing::StubFile(_)) && !on_the_way;
        if is_file {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            rustix::fs::openat(parent, name, flags, Mode::from_raw_mode(0o644))
                .map(drop)
                .call(|| format!("openat({path:?}, O_CREAT | O_EXCL, 0644)"))?;
        } else {
            rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o755))
                .call(|| format!("mkdirat({path:?}, 0755)"))?;
        }
        let purpose = match missing {
            Missing::StubDirectory(purpose) | Missing::StubFile(purpose) => purpose,
            Missing::Directory { uid, gid } => {
                let (uid, gid) = (rustix::fs::Uid::from_raw(uid), rustix::fs::Gid::from_raw(gid));
                return rustix::fs::chownat(parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
                    .call(|| format!("fchownat({path:?}, {}, {})", uid.as_raw(), gid.as_raw()));
            }
        };
        // What is made inside another mount goes with that mount, or is its owner's.
        if mount_id(parent)? == self.root_mount {
            rustix::fs::futimens(reopen(parent)?, &times).call(|| format!("futimens(parent of {path:?})"))?;
            self.stubs.push(Stub { path: path.to_owned(), directory: !is_file, purpose });
        }
        Ok(())
    }
}

/// A directory that was opened by path only, for reading.
fn reopen(directory: BorrowedFd<'_>) -> sys::Result<OwnedFd> {
    rustix::fs::openat(directory, c".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .call(|| "openat(\".\", O_RDONLY | O_DIRECTORY)".to_owned())
}

fn parts(path: &str) -> impl DoubleEndedIterator<Item = &str> {
    path.split('/').filter(|part| !part.is_empty() && *part != ".")
}

/// The mount a descriptor is in; where the kernel does not tell (before 5.8), its device.
fn mount_id(fd: BorrowedFd<'_>) -> sys::Result<u64> {
    let stat = rustix::fs::statx(fd, c"", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID | StatxFlags::TYPE)
        .call(|| "statx(\"\", AT_EMPTY_PATH, STATX_MNT_ID)".to_owned())?;
    if stat.stx_mask & StatxFlags::MNT_ID.bits() != 0 {
        return Ok(stat.stx_mnt_id);
    }
    Ok(u64::from(stat.stx_dev_major) << 32 | u64::from(stat.stx_dev_minor))
}
