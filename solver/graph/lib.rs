//! The build graph: a DAG of content-addressed operations, as plain data.
//!
//! This is the vocabulary that the frontend writes and the solver reads. It is deliberately the one of BuildKit's LLB
//! (source, exec, file, merge, diff; `solver/pb/ops.proto`): no operation may be added that LLB cannot express.
//!
//! Invariants:
//! - nothing here does I/O, and nothing here knows how an operation is carried out;
//! - [`Meta`] (names, spans, `--no-cache`) is outside every digest; everything in an [`Op`] is inside, save what is
//!   marked as outside;
//! - a graph can only be built in topological order, so it has no cycles.

mod digest;
mod graph;
pub mod image;
mod op;
mod platform;

pub use digest::{ContentDigest, Digest, DigestError, KeyHasher};
pub use graph::{Graph, Meta, Node, NodeId, Operation, Span};
pub use image::ImageConfig;
pub use op::{
    BindSource, CacheMount, CacheSharing, ChmodSpec, ChownSpec, CopyAction, DeviceRequest, DiffOp, ExecOp, FileAction,
    FileOp, GitSource, HttpSource, ImageSource, InputIndex, LocalSource, MergeOp, MkdirAction, MkfileAction, Mount,
    MountKind, NetworkMode, Op, ParentsSpec, ProxyEnv, SecretEnv, SecretMount, SecurityMode, SourceOp, SshMount,
    UserSpec,
};
pub use platform::{Platform, PlatformError};
