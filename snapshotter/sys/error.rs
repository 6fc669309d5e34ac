//! The error of a failed system call: the call as it was made, and what the kernel answered.

use std::fmt;
use std::io;

use rustix::io::Errno;

/// What the functions of this crate return.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A system call that failed, printed with all its arguments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    call: String,
    errno: Errno,
}

impl Error {
    /// The failure of `call`, which is the call as one would write it in C.
    pub fn new(call: impl Into<String>, errno: Errno) -> Self {
        Self { call: call.into(), errno }
    }

    /// The call that failed, with its arguments.
    pub fn call(&self) -> &str {
        &self.call
    }

    /// What the kernel answered.
    pub fn errno(&self) -> Errno {
        self.errno
    }

    /// The kind of failure in the standard library's terms.
    pub fn kind(&self) -> io::ErrorKind {
        io::Error::from(self.errno).kind()
    }

    /// True when the kernel does not know the call or a flag of it, or a filter above us pretends so. Callers then take their
    /// fallback.
    pub fn is_unsupported(&self) -> bool {
        matches!(self.errno, Errno::NOSYS | Errno::INVAL | Errno::OPNOTSUPP)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.call, describe(self.errno))
    }
}

impl std::error::Error for Error {}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        io::Error::new(error.kind(), error)
    }
}

/// What an error number means, in the C library's words without Rust's "(os error N)".
pub fn describe(errno: Errno) -> String {
    let text = io::Error::from(errno).to_string();
    match text.find(" (os error") {
        Some(end) => text[..end].to_owned(),
        None => text,
    }
}

/// Gives a plain error number the name of its call.
pub trait Named<T> {
    /// Names the call; the closure runs only on failure.
    fn call(self, call: impl FnOnce() -> String) -> Result<T>;
}

impl<T> Named<T> for std::result::Result<T, Errno> {
    fn call(self, call: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|errno| Error::new(call(), errno))
    }
}

impl<T> Named<T> for io::Result<T> {
    fn call(self, call: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|error| Error::new(call(), Errno::from_io_error(&error).unwrap_or(Errno::IO)))
    }
}

/// The result of a raw system call that answers -1 and sets `errno`.
pub(crate) fn check(returned: libc::c_long) -> std::result::Result<libc::c_long, Errno> {
    if returned == -1 {
        Err(Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO))
    } else {
        Ok(returned)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_call_prints_itself() {
        let error = Err::<(), _>(Errno::NOENT).call(|| format!("open({:?})", "/x")).expect_err("it failed");
        assert_eq!(error.to_string(), "open(\"/x\"): No such file or directory");
        assert_eq!(error.errno(), Errno::NOENT);
        assert_eq!(io::Error::from(error).kind(), io::ErrorKind::NotFound);
    }
}
