//! Extended attributes of names in an open directory, symbolic links never followed.
//!
//! Linux has no `*at` calls for attributes before 6.13, so the directory is named through `/proc/self/fd`, whose last step
//! leads to the open directory itself and not to a path.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use rustix::fs::{self, XattrFlags};
use rustix::io::Errno;

/// Names of the attributes of `name` in `dir`; of `dir` itself for the empty name. Empty on file systems without attributes.
pub fn list_at(dir: impl AsFd, name: &[u8]) -> io::Result<Vec<Vec<u8>>> {
    let path = path_of(dir.as_fd(), name)?;
    let list = if name.is_empty() {
        grow(|buffer| fs::listxattr(&*path, buffer))
    } else {
        grow(|buffer| fs::llistxattr(&*path, buffer))
    };
    names(list)
}

/// Names of the attributes of an open file or directory.
pub fn list(file: impl AsFd) -> io::Result<Vec<Vec<u8>>> {
    let file = file.as_fd();
    names(grow(|buffer| fs::flistxattr(file, buffer)))
}

/// Value of the attribute `key` of `name` in `dir` (of `dir` itself for the empty name), `None` if it has none.
pub fn get_at(dir: impl AsFd, name: &[u8], key: &[u8]) -> io::Result<Option<Vec<u8>>> {
    let path = path_of(dir.as_fd(), name)?;
    value(if name.is_empty() {
        grow(|buffer| fs::getxattr(&*path, key, buffer))
    } else {
        grow(|buffer| fs::lgetxattr(&*path, key, buffer))
    })
}

/// Value of the attribute `key` of an open file or directory, `None` if it has none.
pub fn get(file: impl AsFd, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
    let file = file.as_fd();
    value(grow(|buffer| fs::fgetxattr(file, key, buffer)))
}

/// Sets the attribute `key` of `name` in `dir`, of `dir` itself for the empty name.
pub fn set_at(dir: impl AsFd, name: &[u8], key: &[u8], value: &[u8]) -> io::Result<()> {
    let path = path_of(dir.as_fd(), name)?;
    if name.is_empty() {
        Ok(fs::setxattr(&*path, key, value, XattrFlags::empty())?)
    } else {
        Ok(fs::lsetxattr(&*path, key, value, XattrFlags::empty())?)
    }
}

/// Sets the attribute `key` of an open file.
pub fn set(file: impl AsFd, key: &[u8], value: &[u8]) -> io::Result<()> {
    Ok(fs::fsetxattr(file, key, value, XattrFlags::empty())?)
}

fn path_of(dir: BorrowedFd<'_>, name: &[u8]) -> io::Result<CString> {
    let mut path = format!("/proc/self/fd/{}", dir.as_raw_fd()).into_bytes();
    if !name.is_empty() {
        path.push(b'/');
        path.extend_from_slice(name);
    }
    CString::new(path).map_err(|_| io::Error::from(Errno::INVAL))
}

/// Calls with larger and larger buffers until the answer fits: it may grow between two calls.
fn grow(call: impl Fn(&mut [u8]) -> Result<usize, Errno>) -> Result<Vec<u8>, Errno> {
    let mut buffer = vec![0; 256];
    loop {
        match call(&mut buffer) {
            Ok(length) => {
                buffer.truncate(length);
                return Ok(buffer);
            }
            // 64 KiB is the kernel's own limit.
            Err(Errno::RANGE) if buffer.len() <= 64 * 1024 => buffer.resize(buffer.len() * 4, 0),
            Err(error) => return Err(error),
        }
    }
}

fn names(list: Result<Vec<u8>, Errno>) -> io::Result<Vec<Vec<u8>>> {
    match list {
        Ok(list) => Ok(list.split(|&b| b == 0).filter(|name| !name.is_empty()).map(<[u8]>::to_vec).collect()),
        Err(Errno::OPNOTSUPP) => Ok(Vec::new()),
        Err(error) => Err(error.into()),
    }
}

fn value(value: Result<Vec<u8>, Errno>) -> io::Result<Option<Vec<u8>>> {
    match value {
        Ok(value) => Ok(Some(value)),
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_round_trip_by_handle() {
        let dir = tempfile::tempdir().expect("temporary directory");
        std::fs::write(dir.path().join("f"), "x").expect("file");
        std::os::unix::fs::symlink("f", dir.path().join("l")).expect("symlink");
        let handle = std::fs::File::open(dir.path()).expect("directory");
        let large = vec![7; 1000];
        set_at(&handle, b"f", b"user.a", &large).expect("TMPDIR on a file system with user.* attributes");
        assert_eq!(list_at(&handle, b"f").expect("list"), [b"user.a".to_vec()]);
        assert_eq!(get_at(&handle, b"f", b"user.a").expect("get"), Some(large));
        assert_eq!(get_at(&handle, b"f", b"user.b").expect("get"), None);
        let file = std::fs::File::open(dir.path().join("f")).expect("file");
        assert_eq!(list(&file).expect("list").len(), 1);
        assert!(set_at(&handle, b"l", b"user.a", b"1").is_err(), "a symlink must not be followed");
        set_at(&handle, b"", b"user.d", b"1").expect("set on the directory itself");
        assert_eq!(get(&handle, b"user.d").expect("get"), Some(b"1".to_vec()));
    }
}
