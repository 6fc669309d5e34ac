//! The solver: walks a build graph, finds recorded results by content-addressed keys and has the rest run.
//!
//! It is generic over [`Worker`] and never sees a file system, a container or a registry.
//!
//! Invariants:
//! - one loop ([`solve`]) owns the state of a build; tasks only report to it;
//! - a vertex is looked at when all its inputs are solved, so a key is made of what the inputs *are*, never of how they
//!   came about; a hit stands for the recorded output as a whole, and nothing recorded is put on another parent;
//! - reading the cache cannot fail a build: what cannot be read is a miss (the worker's [`Worker::lookup`] has no error);
//! - when [`solve`] returns, successfully or not, no task of it is left running.

mod event;
mod key;
mod scheduler;
mod worker;

pub use event::{Event, Events, Found, LogStream, Progress, Status, Usage, VertexId, VertexProgress, channel};
pub use key::{CacheKeys, InputKey, VertexKeys};
pub use scheduler::{MustHit, Options, SolveError, Solved, solve};
pub use worker::{RunContext, Worker};
