//! One process in namespaces.
//!
//! rbuild forks a **launcher** before it has threads and before it reads a credential: [`Launcher::start`], the first call of
//! `main`. The launcher executes rbuild's own program again from a read-only view (so that nothing of rbuild's memory comes
//! along, and no step can ever reach the program for writing), is the first process of its own pid namespace and lives in a
//! private mount namespace. Whatever happens to rbuild, no step and no mount outlives it.
//!
//! A [`Process`] is data. The launcher copies itself into new namespaces; the copy makes the step's world in the order that
//! `init` states, and executes the program, which thereby is process 1 of its pid namespace. Nothing of ours remains inside.
//!
//! ```text
//!   rbuild ── requests ──▶ launcher ── clone3 ──▶ step (pid 1)
//!     ▲  ▲                    │ pidfd                │
//!     │  └─── how it ended ───┘                      │
//!     └────────── what was made, or what failed ─────┘
//! ```
//!
//! What must hold: no descriptor but 0, 1 and 2 reaches a step; every path inside a root is resolved by handle beneath it; every
//! mount is attached by descriptor; a limit that was asked for holds or is an error.

mod capabilities;
mod cgroup;
mod confined;
pub mod emulation;
mod error;
mod fence;
mod fuse;
mod init;
mod launcher;
mod machine;
mod network;
mod processes;
pub mod rootless;
mod running;
mod seccomp;
pub mod spec;
pub mod stubs;
mod user;

pub use confined::{NoNodes, nodes_in};
pub use emulation::{Emulation, Foreign};
pub use error::{Error, SystemError, UserError};
pub use fence::{LandlockLevel, landlock};
pub use launcher::Launcher;
pub use machine::{Fallbacks, OverlayCalls};
pub use network::Subnet;
pub use network::names::resolv_conf;
pub use processes::StepProcess;
pub use running::{ExitStatus, Running, Stdio, Terminal, Usage};
pub use spec::{Forward, Gateway, Mount, Network, Overlay, Process, Root, Source, WindowSize};
pub use stubs::Stub;
