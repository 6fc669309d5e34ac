//! Every byte on disk: blobs, layers, snapshots, and the records that say what they are.
//!
//! ```text
//! ROOT/
//!   version                     the format of this directory
//!   db.sqlite                   records (SQLite, WAL): several processes share it
//!   blobs/sha256/HEX            content-addressed, as in an OCI layout; immutable
//!   snapshots/CHAIN/{fs/,index} one unpacked layer and its index; immutable, appears by rename
//!   indexes/CHAIN               index of a layer that is there as a tar only
//!   active/ID/{fs/,work/}       a step in progress
//!   ingest/                     files that are being written
//!   locks/                      one file per name; a lock is an flock on it
//!   cache-mounts/HASH/          directories of RUN --mount=type=cache
//!   leases/ID                   flocked by a living process, which protects what it uses
//! ```
//!
//! Invariants:
//! - a file appears under its final name only when it is complete; the record that names it is written after the rename;
//! - nothing in the store refers to the build context;
//! - a layer is known by its **chain id**, because an unpacked directory depends on what lies below; its bytes by the **diff
//!   id** (uncompressed) and by blob digests (compressed), which are different types of fact in different tables;
//! - two kinds of crash: when a process dies, nothing is lost, since renames and SQLite's log are in the kernel's hands. When
//!   the machine dies, what was not synced may be torn: records carry the boot id until [`Store::make_durable`], and those
//!   of another boot are dropped at open, with their files.

mod blob;
mod cache_mount;
mod db;
mod durable;
mod error;
mod gc;
mod image;
pub mod layer;
mod layout;
mod lease;
mod lock;
mod partial;
mod reaper;
mod record;
mod recover;
mod snapshot;
mod stat_cache;
mod store;

pub use blob::BlobWriter;
pub use cache_mount::{CacheMountDir, CacheMountSharing, NewDirectory};
pub use error::StoreError;
pub use gc::{CollectPolicy, Reclaimed};
pub use image::{ImageKind, ImageRecord, ManifestRef};
pub use layout::default_root;
pub use lock::KeyLock;
pub use partial::PartialBlob;
pub use record::{CacheRecord, LayerBlobRecord, LayerRecord};
pub use snapshot::{Active, Snapshot};
pub use stat_cache::{StatCache, StatKey};
pub use store::Store;
