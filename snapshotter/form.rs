//! Whose the files of unpacked layers are, on the disk.
//!
//! The same layer lies differently for root, for a user with subordinate ids and for one with a single id: a file of user 33
//! belongs to 33, to 500032 or to the user, and what the overlays of one can read those of another cannot. One store may meet
//! several of these: subordinate ids are granted, or other ones, or a container has fewer rights than the last. So a layer's
//! directory holds one tree for each **form**, side by side: `fs` in the form that the store met first, `fs-HASH` in others.
//! A process mounts only its own; bytes it may also read from others, as far as it can.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::PoisonError;

use graph::Digest;
use rusqlite::OptionalExtension;

use crate::blob::hashed_name;
use crate::db::FileKind;
use crate::layer::{ApplyOptions, Ownership};
use crate::snapshot::Snapshot;
use crate::{Store, StoreError};

/// The name of trees in the form that the store met first.
const FIRST: &str = "fs";

/// What makes the trees of one process unlike those of another.
fn describe(options: ApplyOptions) -> String {
    let ids = match options.ownership {
        Ownership::Skip => "one id".to_owned(),
        Ownership::Keep => ["uid_map", "gid_map"].map(|map| ranges(Path::new("/proc/self").join(map))).join("; "),
    };
    format!("{:?} {ids}", options.marks)
}

/// An id map as seen from within (user_namespaces(7)), its white space aside. Where there is no /proc nobody maps ids.
fn ranges(map: PathBuf) -> String {
    let text = fs::read_to_string(map).unwrap_or_else(|_| "0 0 4294967295".to_owned());
    text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect::<Vec<_>>().join(", ")
}

impl Store {
    /// Says how this process unpacks layers, which is also how it can use unpacked ones. Without that it is as
    /// [`ApplyOptions::default`] has it. The first word counts.
    pub fn unpack_as(&self, options: ApplyOptions) {
        // A second word would be of the same process, which does not change its ids.
        let _ = self.unpacking.set(options);
    }

    /// The name of trees that this process can use.
    pub(crate) fn tree_name(&self) -> Result<&str, StoreError> {
        if let Some(name) = self.tree_name.get() {
            return Ok(name);
        }
        let own = describe(self.unpacking.get().copied().unwrap_or_default());
        let noted = "SELECT value FROM notes WHERE kind = 'form' AND key = 'fs'";
        let first: Option<String> = self.db.read(|db| db.query_row(noted, [], |row| row.get(0)).optional())?;
        let first = match first {
            Some(first) => first,
            None => self.db.write(|db| {
                db.execute("INSERT OR IGNORE INTO notes VALUES ('form', 'fs', ?1)", [&own])?;
                db.query_row(noted, [], |row| row.get(0))
            })?,
        };
        let name = if first == own {
            FIRST.to_owned()
        } else {
            format!("{FIRST}-{}", &hashed_name("form/1", own.as_bytes())[..12])
        };
        Ok(self.tree_name.get_or_init(|| name))
    }

    /// A name for what only processes of this form can share.
    pub(crate) fn in_own_form(&self, name: String) -> Result<String, StoreError> {
        Ok(match self.tree_name()? {
            FIRST => name,
            form => format!("{name} {form}"),
        })
    }

    /// Trees of a layer that were unpacked for processes with other ids: their files may belong to anybody and be closed to this
    /// process, but whatever can be read is the layer's. They stay while this store is open.
    ///
    /// # Errors
    /// The database.
    pub fn foreign_snapshots(&self, chain: &Digest) -> Result<Vec<Snapshot>, StoreError> {
        let own = self.tree_name()?;
        let places = [(FileKind::Snapshot, self.layout.snapshot(chain)), (FileKind::Plain, self.layout.plain(chain))];
        let mut found = Vec::new();
        for (kind, directory) in places {
            let others: Vec<PathBuf> = self.usable_trees(&directory).filter(|tree| !tree.ends_with(own)).collect();
            if !others.is_empty() && self.find_unpacked(chain, kind, &directory)? {
                found.extend(others.into_iter().map(Snapshot::at));
            }
        }
        Ok(found)
    }

    /// A tree of others turned out to be closed to this process: for it, it is not there.
    pub fn disregard(&self, fs: &Path) {
        self.disregarded.lock().unwrap_or_else(PoisonError::into_inner).insert(fs.to_owned());
        self.doubt();
    }

    /// Whether a layer's directory holds anything of use.
    pub(crate) fn has_tree(&self, directory: &Path) -> bool {
        // Most often it is this process's own, for which nothing has to be listed. The database may be
        // held, so it is not asked.
        let own = directory.join(self.tree_name.get().map_or(FIRST, String::as_str));
        let is_of_use = !self.disregarded.lock().unwrap_or_else(PoisonError::into_inner).contains(&own);
        (is_of_use && own.exists()) || self.usable_trees(directory).next().is_some()
    }

    fn usable_trees(&self, directory: &Path) -> impl Iterator<Item = PathBuf> {
        let disregarded = self.disregarded.lock().unwrap_or_else(PoisonError::into_inner).clone();
        trees(directory).filter(move |tree| !disregarded.contains(tree))
    }

    /// Whether a layer was unpacked, for whomever.
    ///
    /// # Errors
    /// The database.
    pub fn is_unpacked(&self, chain: &Digest) -> Result<bool, StoreError> {
        Ok(self.snapshot(chain)?.is_some() || !self.foreign_snapshots(chain)?.is_empty())
    }
}

/// The trees in a layer's directory.
pub(crate) fn trees(directory: &Path) -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_name().as_encoded_bytes().starts_with(FIRST.as_bytes())).map(|entry| entry.path())
}

#[cfg(test)]
mod tests {
    use graph::ContentDigest;

    use super::*;
    use crate::LayerRecord;
    use crate::layer::Marks;

    const ONE_ID: ApplyOptions = ApplyOptions { marks: Marks::User, ownership: Ownership::Skip };

    fn put(store: &Store, layer: &LayerRecord, text: &str) -> PathBuf {
        let active = store.prepare().unwrap();
        fs::write(active.fs().join("file"), text).unwrap();
        store.commit(active, layer, b"index").unwrap().fs().to_owned()
    }

    #[test]
    fn who_has_other_ids_gets_a_tree_of_his_own() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("store");
        let layer =
            LayerRecord::own(None, Digest::of(b"layer"), ContentDigest::of(b"layer"), 1, jiff::Timestamp::now());
        let first = Store::open(&root).unwrap();
        let theirs = put(&first, &layer, "first");
        assert!(theirs.ends_with("fs"));

        let other = Store::open(&root).unwrap();
        other.unpack_as(ONE_ID);
        assert_eq!(other.snapshot(&layer.chain).unwrap(), None);
        assert!(other.is_unpacked(&layer.chain).unwrap());
        assert_eq!(other.foreign_snapshots(&layer.chain).unwrap(), [Snapshot::at(theirs.clone())]);
        let own = put(&other, &layer, "other");
        assert_ne!(own, theirs);
        assert_eq!(other.snapshot(&layer.chain).unwrap(), Some(Snapshot::at(own.clone())));
        assert_eq!(first.snapshot(&layer.chain).unwrap(), Some(Snapshot::at(theirs.clone())));

        // One's damage is not the other's, and the layer is there as long as one tree is.
        first.remove_snapshot(&layer.chain, &theirs).unwrap();
        assert_eq!(first.snapshot(&layer.chain).unwrap(), None);
        assert!(first.is_unpacked(&layer.chain).unwrap());
        other.remove_snapshot(&layer.chain, &own).unwrap();
        assert!(!first.is_unpacked(&layer.chain).unwrap() && !other.is_unpacked(&layer.chain).unwrap());
        assert!(!root.join("snapshots").join(layer.chain.hex()).exists());
    }

    #[test]
    fn the_form_that_came_first_keeps_its_name() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("store");
        let open = |options| {
            let store = Store::open(&root).unwrap();
            store.unpack_as(options);
            store.tree_name().unwrap().to_owned()
        };
        assert_eq!(open(ONE_ID), "fs");
        assert!(open(ApplyOptions::default()).starts_with("fs-"));
        assert_eq!(open(ONE_ID), "fs");
        let user = ApplyOptions { marks: Marks::User, ..ApplyOptions::default() };
        assert_ne!(open(user), open(ApplyOptions::default()));
    }
}
