//! Every byte on disk: blobs, layers, snapshots, and the records that say what they are.
//!
//! ```text
//! ROOT/
//!   version                     the format of this directory
//!   db.sqlite                   records (SQLite, WAL): several processes share it
//!   db.backup                   a copy of it, made after a sync; what a damaged one is restored from
//!   gate                        flocked shared by who notes what it uses, exclusively by who collects
//!   blobs/sha256/HEX            content-addressed, as in an OCI layout; immutable
//!   snapshots/CHAIN/{fs/,index} one unpacked layer and its index; immutable, appears by rename; fs-HASH/ beside fs/ for who
//!                               has other ids (`form.rs`)
//!   plain/CHAIN/{fs/,index}     the same without marks for overlays, where there are none
//!   indexes/CHAIN               index of a layer that is there as a tar only
//!   merged/CHAIN/fs/            a whole stack as one directory: too many layers for an overlay, or no overlays
//!   active/LEASE.N/{fs/,work/}  a step in progress
//!   ingest/LEASE.*              files that are being written; HEX.partial: downloads that can be gone on with
//!   locks/                      one file per name; a lock is an flock on it
//!   cache-mounts/HASH/          directories of RUN --mount=type=cache
//!   leases/LEASE                flocked by a living process; the digests that it relies on
//!   stat/HASH                   digests of a context's files by their stat data
//!   builds/                     records and logs of builds that are over; see the builder
//!   trash/                      what is being removed
//! ```
//!
//! Invariants:
//! - a file appears under its final name only when it is complete; the record that names it is written after the rename;
//! - nothing in the store refers to the build context;
//! - a layer is known by its **chain id**, because an unpacked directory depends on what lies below; its bytes by the **diff
//!   id** (uncompressed) and by blob digests (compressed), which are different types of fact in different tables;
//! - what a process has found in its open store stays there until it closes it, whatever others collect;
//! - two kinds of crash: when a process dies, nothing is lost, since renames and SQLite's log are in the kernel's hands. When
//!   the machine dies, what was not synced may be torn: files count as durable only from [`Store::make_durable`] on, and
//!   the first to open the store in another boot drops the others, with all that rests on them;
//! - locks are always taken in this order: locks by name, the gate, the database. Under the gate nobody waits for a name.

mod blob;
mod cache_mount;
mod db;
mod durable;
mod error;
mod form;
mod gc;
mod image;
mod kept;
pub mod layer;
mod layout;
mod lease;
mod lock;
mod migrate;
mod overlay;
mod partial;
mod prune;
mod reaper;
mod record;
mod recover;
mod room;
mod snapshot;
mod stat_cache;
mod store;
mod usage;

pub use blob::{BlobWriter, KnownBlobWriter};
pub use cache_mount::{CacheMountDir, CacheMountSharing, NewDirectory, empty_directory};
pub use error::StoreError;
pub use gc::{CollectPolicy, REFERRERS, Reclaimed};
pub use image::{ImageKind, ImageRecord, ManifestRef};
pub use kept::KeepBounds;
pub use layout::default_root;
pub use lock::KeyLock;
pub use overlay::OverlayUnusable;
pub use partial::PartialBlob;
pub use prune::{PrunePolicy, Pruned};
pub use record::{CacheRecord, ForeignLayer, LayerBlobRecord, LayerRecord, RecordedKey};
pub use room::Room;
pub use snapshot::{Active, Snapshot};
pub use stat_cache::{StatCache, StatFacts, StatKey};
pub use store::Store;
pub use usage::{Usage, UsageItem, UsageKind};
