//! The working directory: found inside the root by handle, made when missing, and checked once more from inside.

use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::io::Errno;
use sys::Named;

use super::is_directory;
use super::place::{Missing, Places};
use crate::error::Error;
use crate::user::Identity;

/// Opens it while the root is not ours yet. A path through /proc/self/fd leads nowhere: the look-up follows no magic links.
pub(crate) fn open(places: &mut Places<'_>, path: &str, identity: &Identity) -> Result<OwnedFd, Error> {
    let missing = Missing::Directory { uid: identity.uid, gid: identity.gid };
    let mut find = || {
        if path.contains('\0') {
            return Err(sys::Error::new(format!("working directory {path:?}"), Errno::INVAL));
        }
        let directory = places.open_or_make(path, missing)?;
        if !is_directory(&directory)? {
            return Err(sys::Error::new(format!("openat2(root, {path:?}, O_DIRECTORY)"), Errno::NOTDIR));
        }
        Ok(directory)
    };
    find().map_err(|cause| failed(path, cause))
}

/// Enters it after the root has changed, as root, because a user need not be allowed to search the way to it.
pub(crate) fn enter(directory: BorrowedFd<'_>, path: &str) -> Result<(), Error> {
    let enter = || {
        rustix::process::fchdir(directory).call(|| format!("fchdir({path:?})"))?;
        // The kernel answers a path that does not begin with a slash when the directory is not beneath the root.
        let seen = rustix::process::getcwd(Vec::new()).call(|| "getcwd()".to_owned())?;
        if !seen.as_bytes().starts_with(b"/") {
            return Err(sys::Error::new(format!("getcwd() = {seen:?}, outside of the root"), Errno::XDEV));
        }
        Ok(())
    };
    enter().map_err(|cause| failed(path, cause))
}

fn failed(path: &str, cause: sys::Error) -> Error {
    Error::WorkingDirectory { path: path.to_owned(), cause: cause.into() }
}
