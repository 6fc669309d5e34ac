//! Layers: tar streams to directories and back, and what can be known about them without either.
//!
//! A layer exists in three forms. As a *tar stream* it has a diff id, the sha256 of its bytes. As a *directory* it is one
//! lower (or was the upper) directory of an overlay mount, with whiteouts as character devices 0:0. As a [`LayerIndex`] it
//! lists every path with all that a tar header says and the blake3 of every file. The index is made in the same pass that
//! reads or writes the tar, and a [`Tree`] of indexes answers what a stack of layers looks like without touching a disk.
//!
//! - [`apply`] unpacks a tar into a directory of its own, whatever is below; [`mend`] makes it fit once that is known.
//! - [`commit_upper`] hashes the tar that an overlay's upper directory stands for; [`write_upper`] makes its bytes again.
//! - [`LayerWriter`] is the one place where tar bytes are made: the same entries give the same bytes.
//! - [`TarReader`] reads any archive, member by member.
//! - [`populate`] makes a directory of a stack where there are no overlays, [`commit_native`] the layer of its changes.
//! - [`write_tree`] and [`extract_tree`] flatten a stack for `type=tar` and `type=local`.

mod apply;
mod commit;
pub mod compress;
mod disk;
mod entry;
mod error;
mod export;
mod header;
mod index;
mod mend;
mod native;
mod read;
mod sparse;
mod squash;
mod state;
mod tree;
mod write;

pub use apply::{Applied, ApplyOptions, Marks, Ownership, apply, apply_sharing, apply_upon, hash_zeros, index_tar};
pub use commit::{CommitOptions, Committed, commit_served, commit_upper, remove_marks, write_upper};
pub(crate) use disk::opaque_key;
pub use entry::{
    Entry, EntryKind, MAX_NAME, MAX_PATH, MAX_PATHS, ancestors, clean, cmp_paths, is_within, join, keeps_xattr, split,
    too_long,
};
pub use error::LayerError;
pub use export::{Extracted, FoundAt, extract_tree, flattened, open_in, write_tree};
pub use index::{LayerIndex, hash_entry};
pub use mend::{Mended, mend};
pub use native::{Bytes, Populated, Sharing, commit_native, populate};
pub use read::{Member, MemberKind, Piece, TarReader};
pub use squash::squash;
pub use tree::{Finger, Found, Resolved, Tree};
pub use write::{Expect, LayerWriter, Shares, WRITER_VERSION, Written, can_write};

#[cfg(test)]
mod tests;
