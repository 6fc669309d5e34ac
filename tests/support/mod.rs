//! What the end-to-end tests stand on: the real binary in a clean environment, base images that the project makes itself
//! from Debian packages, a real registry on loopback, and a look at what a build left behind.
//!
//! Every test runs in a process of its own under nextest, so what several need is made once under a file lock (`base`).

// Each test binary uses its part of this.
#![allow(dead_code, unused_imports, unreachable_pub)]

mod base;
mod env;
mod files;
mod layout;
mod leftovers;
mod peers;
mod pty;
mod registry;
mod run;
mod tier;

pub use base::{Base, busybox_base, debian_base, foreign_base};
pub use env::{Context, TestEnv};
pub use files::{FileServer, GitServer, Served};
pub use layout::{Entry, Image, Layout, entries};
pub use leftovers::{assert_nothing_left_behind, leftovers};
pub use peers::{can, find, require, require_root};
pub use pty::Pty;
pub use registry::{Login, Registry};
pub use run::{Outcome, Run, Running};
pub use tier::{Tier, USER};
