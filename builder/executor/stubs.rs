//! Mount points that had to be made in a root, and their removal after the step.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Timestamps};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use sys::Named;
use sys::path::Links;

/// A file or directory that was made in the root only to mount on it, empty as it was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stub {
    /// Absolute path inside the root, free of symbolic links when it was made.
    pub path: String,
    /// Whether it is a directory.
    pub directory: bool,
    /// What it was made for.
    pub purpose: Purpose,
}

/// What a stub was made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Purpose {
    /// /proc, /sys or /dev, which other builders leave in the layer.
    Standard,
    /// A mount of the step, one of the files of /etc, or a directory on the way to one.
    Mount,
}

/// Removes stubs from the directory that holds the step's changes (or, of a directory root, from it), where they are still
/// empty and still where they were made.
///
/// The step may have left anything there: nothing is followed that could lead elsewhere, and what cannot be removed safely
/// stays. The times of directories that lose an entry stay as the step left them.
pub fn remove(changes: &Path, stubs: &[Stub]) -> Result<(), crate::Error> {
    remove_all(changes, stubs).map_err(|cause| crate::Error::Sandbox {
        action: "remove mount points from the step's changes".to_owned(),
        cause: cause.into(),
    })
}

fn remove_all(changes: &Path, stubs: &[Stub]) -> sys::Result<()> {
    let root = rustix::fs::open(changes, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .call(|| format!("open({changes:?}, O_PATH | O_DIRECTORY)"))?;
    // The last made lie innermost.
    for stub in stubs.iter().rev() {
        remove_one(&root, stub)?;
    }
    Ok(())
}

fn remove_one(root: &OwnedFd, stub: &Stub) -> sys::Result<()> {
    let path = stub.path.trim_matches('/');
    let (parent, name) = path.rsplit_once('/').unwrap_or((".", path));
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    let Ok(parent) = sys::path::open(root.as_fd(), parent.as_bytes(), Links::Refuse, flags, 0) else {
        // It was moved, removed, or replaced by a link.
        return Ok(());
    };
    let before = match rustix::fs::statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => return Ok(()),
        other => other.call(|| format!("fstatat({name:?}, AT_SYMLINK_NOFOLLOW)"))?,
    };
    let kind = FileType::from_raw_mode(before.st_mode);
    let removed = match (stub.directory, kind) {
        (true, FileType::Directory) => times_of(&parent).and_then(|times| {
            remove_empty(&parent, name)?;
            Ok(times)
        }),
        (false, FileType::RegularFile) if before.st_size == 0 => times_of(&parent).and_then(|times| {
            rustix::fs::unlinkat(&parent, name, AtFlags::empty())?;
            Ok(times)
        }),
        _ => return Ok(()),
    };
    match removed {
        Ok(times) => rustix::fs::futimens(&parent, &times).call(|| format!("futimens(parent of {path:?})")),
        // The step filled it: then it is the step's.
        Err(Errno::NOTEMPTY | Errno::EXIST) => Ok(()),
        Err(errno) => Err(errno).call(|| format!("unlinkat({path:?})")),
    }
}

/// Removes a directory in which there is nothing, or nothing but fuse-overlayfs's marks of a new directory.
fn remove_empty(parent: &OwnedFd, name: &str) -> Result<(), Errno> {
    const MARKS: [&std::ffi::CStr; 2] = [c".wh..wh..opq", c".wh..opq"];
    match rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR) {
        Err(error @ (Errno::NOTEMPTY | Errno::EXIST)) => {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let directory = rustix::fs::openat(parent, name, flags, Mode::empty())?;
            let mut entries = Vec::new();
            for entry in rustix::fs::Dir::read_from(&directory)? {
                entries.push(entry?);
            }
            let is_known = |name: &std::ffi::CStr| name == c"." || name == c".." || MARKS.contains(&name);
            if !entries.iter().all(|entry| is_known(entry.file_name())) {
                return Err(error);
            }
            for mark in MARKS {
                match rustix::fs::unlinkat(&directory, mark, AtFlags::empty()) {
                    Ok(()) | Err(Errno::NOENT) => {}
                    Err(error) => return Err(error),
                }
            }
            rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR)
        }
        other => other,
    }
}

/// The times of an open directory, to be given back to it.
pub(crate) fn times_of(directory: impl AsFd) -> Result<Timestamps, Errno> {
    let stat = rustix::fs::fstat(directory)?;
    Ok(Timestamps {
        last_access: rustix::fs::Timespec { tv_sec: stat.st_atime as _, tv_nsec: stat.st_atime_nsec as _ },
        last_modification: rustix::fs::Timespec { tv_sec: stat.st_mtime as _, tv_nsec: stat.st_mtime_nsec as _ },
    })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    fn stub(path: &str, directory: bool) -> Stub {
        Stub { path: path.to_owned(), directory, purpose: Purpose::Mount }
    }

    #[test]
    fn what_is_still_empty_goes_and_what_was_filled_or_moved_stays() {
        let outer = tempfile::tempdir().expect("temporary directory");
        let root = outer.path().join("root");
        fs::create_dir_all(root.join("made/inner")).expect("mkdir");
        fs::create_dir_all(root.join("filled")).expect("mkdir");
        fs::create_dir_all(root.join("etc")).expect("mkdir");
        fs::create_dir_all(root.join("marked")).expect("mkdir");
        fs::write(root.join("marked/.wh..wh..opq"), "").expect("write");
        fs::write(root.join("filled/file"), "mine").expect("write");
        fs::write(root.join("etc/hosts"), "").expect("write");
        fs::write(root.join("etc/resolv.conf"), "mine").expect("write");
        // The step replaced a parent by a link to a directory of the host with an empty file in it.
        fs::write(outer.path().join("canary"), "").expect("write");
        symlink("..", root.join("moved")).expect("symlink");
        let before = fs::metadata(root.join("etc")).expect("stat").modified().expect("time");
        let stubs = [
            stub("/made", true),
            stub("/made/inner", true),
            stub("/filled", true),
            stub("/marked", true),
            stub("/etc/hosts", false),
            stub("/etc/resolv.conf", false),
            stub("/moved/canary", false),
            stub("/never/there", false),
        ];
        remove(&root, &stubs).expect("remove");
        assert!(!root.join("marked").exists());
        assert!(!root.join("made").exists() && !root.join("etc/hosts").exists());
        assert!(root.join("filled/file").exists() && root.join("etc/resolv.conf").exists());
        assert!(outer.path().join("canary").exists());
        assert_eq!(fs::metadata(root.join("etc")).expect("stat").modified().expect("time"), before);
    }
}
