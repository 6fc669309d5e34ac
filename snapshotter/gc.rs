//! Collection of what nothing names any more.

use std::collections::HashSet;
use std::fs;

use graph::{Digest, ImageConfig};
use rustix::fs::{FlockOperation, flock};

use crate::snapshot::remove_tree;
use crate::{Store, StoreError};

/// What a collection removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Reclaimed {
    /// Layers.
    pub layers: u64,
    /// Blobs.
    pub blobs: u64,
}

impl Store {
    /// Removes layers and blobs that no image and no recorded result needs. While another process uses the store nothing is
    /// removed, and the answer is `None`.
    ///
    /// # Errors
    /// The database.
    pub fn collect(&self) -> Result<Option<Reclaimed>, StoreError> {
        // The lock is converted without ever being free for a third; failing leaves it as it was, or lost to nobody.
        if flock(&self.presence, FlockOperation::NonBlockingLockExclusive).is_err() {
            self.share()?;
            return Ok(None);
        }
        let collected = self.collect_alone();
        self.share()?;
        collected.map(Some)
    }

    fn share(&self) -> Result<(), StoreError> {
        flock(&self.presence, FlockOperation::LockShared)
            .map_err(|error| StoreError::io("lock", self.root())(error.into()))
    }

    fn collect_alone(&self) -> Result<Reclaimed, StoreError> {
        let mut chains: HashSet<Digest> = HashSet::new();
        let mut blobs: HashSet<Digest> = HashSet::new();
        for image in self.images()? {
            blobs.insert(image.config);
            blobs.extend(image.manifest.map(|manifest| manifest.digest));
            let config =
                self.read_blob(&image.config)?.and_then(|bytes| serde_json::from_slice::<ImageConfig>(&bytes).ok());
            let diff_ids = config.map(|config| config.rootfs.diff_ids).unwrap_or_default();
            let mut chain = None;
            for diff_id in &diff_ids {
                let next = diff_id.chain_upon(chain.as_ref());
                chains.insert(next);
                chain = Some(next);
            }
        }
        let recorded: Vec<[u8; 32]> = self.db.read(|db| {
            let mut statement = db.prepare("SELECT DISTINCT chain FROM records WHERE chain IS NOT NULL")?;
            statement.query_map([], |row| row.get(0))?.collect()
        })?;
        for chain in recorded {
            let mut next = Some(Digest::from_bytes(chain));
            while let Some(chain) = next {
                next = if chains.insert(chain) { self.layer(&chain)?.and_then(|layer| layer.parent) } else { None };
            }
        }
        let layers: Vec<([u8; 32], [u8; 32])> = self.db.read(|db| {
            let mut statement = db.prepare("SELECT chain, diff_id FROM layers")?;
            statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect()
        })?;
        let mut dead = Vec::new();
        for (chain, diff_id) in layers {
            if chains.contains(&Digest::from_bytes(chain)) {
                let diff_id = Digest::from_bytes(diff_id);
                blobs.insert(diff_id);
                blobs.extend(self.layer_blobs(&diff_id)?.into_iter().map(|blob| blob.digest));
            } else {
                dead.push(chain);
            }
        }
        let known: Vec<[u8; 32]> = self.db.read(|db| {
            let mut statement = db.prepare("SELECT digest FROM blobs")?;
            statement.query_map([], |row| row.get(0))?.collect()
        })?;
        let unused: Vec<[u8; 32]> =
            known.into_iter().filter(|digest| !blobs.contains(&Digest::from_bytes(*digest))).collect();
        // Rows first: a file without a row is litter, a row without its file would be a lie.
        self.db.write(|db| {
            for chain in &dead {
                db.execute("DELETE FROM layers WHERE chain = ?1", [chain])?;
            }
            for digest in &unused {
                db.execute("DELETE FROM blobs WHERE digest = ?1", [digest])?;
            }
            db.execute("DELETE FROM layer_blobs WHERE diff_id NOT IN (SELECT diff_id FROM layers)", [])?;
            db.execute("DELETE FROM locations WHERE digest NOT IN (SELECT digest FROM layer_blobs)", [])
        })?;
        self.sweep()?;
        Ok(Reclaimed { layers: dead.len() as u64, blobs: unused.len() as u64 })
    }

    /// Removes files that no row names. Only while alone.
    pub(crate) fn sweep(&self) -> Result<(), StoreError> {
        let named = |sql: &str| -> Result<HashSet<String>, StoreError> {
            let rows: Vec<[u8; 32]> = self.db.read(|db| db.prepare(sql)?.query_map([], |row| row.get(0))?.collect())?;
            Ok(rows.into_iter().map(|digest| Digest::from_bytes(digest).hex()).collect())
        };
        let blobs = named("SELECT digest FROM blobs")?;
        let layers = named("SELECT chain FROM layers")?;
        for (directory, kept) in [("blobs/sha256", &blobs), ("snapshots", &layers), ("indexes", &layers)] {
            let path = self.layout.join(directory);
            for entry in fs::read_dir(&path).map_err(StoreError::io("read", &path))?.flatten() {
                if entry.file_name().to_str().is_some_and(|name| kept.contains(name)) {
                    continue;
                }
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    remove_tree(&entry.path());
                } else {
                    let _ = fs::remove_file(entry.path());
                }
            }
        }
        Ok(())
    }
}
