//! The system calls rbuild needs beyond the standard library, as safe functions.
//!
//! This is the only crate with `unsafe`. Everything here does one thing, is thin over the kernel, and knows nothing of
//! images, layers or builds. A call that fails returns an [`Error`] that prints the call with all its arguments, so that a
//! user's report can be read without a tracer.

pub mod error;
pub mod fd;
pub mod mount;
pub mod namespace;
pub mod netlink;
pub mod network;
pub mod process;
pub mod seccomp;
pub mod socket;

pub use error::{Error, Named, Result};
pub mod file;
pub mod path;
pub mod xattr;
