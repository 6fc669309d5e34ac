//! Collection of what nothing names any more, while others build.
//!
//! Roots are images, recorded results and the leases of living processes. The rows go first, in one transaction alone
//! behind the gate; then the log is synced, so that no crash brings back a row whose file is gone; then the files are
//! renamed into the trash, still alone, so that nobody can have put a file of the same name there.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::os::unix::fs::MetadataExt;

use graph::Digest;
use rusqlite::{Connection, params};
use rustix::fs::{FlockOperation, flock};

use crate::db::{FileKind, Inside};
use crate::layout::Layout;
use crate::lease;
use crate::recover::{chains_of, sweep};
use crate::{Store, StoreError};

/// What a collection may forget.
#[derive(Debug, Clone, Copy, Default)]
pub struct CollectPolicy {
    /// Results that were not used since are forgotten; with `None` all are kept.
    pub unused_since: Option<jiff::Timestamp>,
    /// Bases that were pulled for builds and have no name given by a person are forgotten.
    pub bases: bool,
}

/// What a collection removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Reclaimed {
    /// Recorded results.
    pub records: u64,
    /// Layers.
    pub layers: u64,
    /// Blobs.
    pub blobs: u64,
}

impl Store {
    /// Forgets what the policy says, and removes layers, blobs and unfinished files that nothing needs any more. Safe while
    /// other processes use the store. Returns when the space is free.
    ///
    /// # Errors
    /// The database or the disk.
    pub fn collect(&self, policy: &CollectPolicy) -> Result<Reclaimed, StoreError> {
        self.note_use()?;
        let mark_and_forget = |db: &Connection| -> Result<(Reclaimed, HashSet<[u8; 32]>), Inside> {
            let held = lease::living(&self.layout, true)?.held;
            let reclaimed = self.forget(db, policy, &held)?;
            Ok((reclaimed, held))
        };
        let mut swept = Ok(());
        let (reclaimed, _) = self.db.write_alone(mark_and_forget, |db, (_, held)| {
            swept =
                self.db.sync_log().map_err(Inside::Store).and_then(|()| sweep(db, &self.layout, &self.reaper, held));
        })?;
        swept.map_err(|error| match error {
            Inside::Store(error) => error,
            Inside::Sql(source) => StoreError::Database { path: self.layout.database(), source },
        })?;
        self.doubt();
        self.remove_stale_partials();
        self.remove_free_locks();
        self.reaper.resume();
        self.settle();
        Ok(reclaimed)
    }

    /// Deletes rows; the files follow.
    fn forget(&self, db: &Connection, policy: &CollectPolicy, held: &HashSet<[u8; 32]>) -> Result<Reclaimed, Inside> {
        let mut reclaimed = Reclaimed::default();
        if let Some(since) = policy.unused_since {
            let sql = "DELETE FROM records WHERE used < ?1";
            reclaimed.records = db.execute(sql, [since.as_millisecond()])? as u64;
        }
        if policy.bases {
            db.execute("DELETE FROM images WHERE tagged = 0", [])?;
        }
        let graph = Layers::read(db)?;
        let mut marked = Marked { layers: HashSet::new(), blobs: held.clone() };
        self.mark_images(db, &graph, &mut marked)?;
        for chain in digests(db, "SELECT DISTINCT chain FROM records WHERE chain IS NOT NULL")? {
            graph.mark(chain, &mut marked);
        }
        for digest in held {
            graph.mark(*digest, &mut marked);
            // Somebody has found an image by its config, and will ask for its layers next.
            for chain in chains_of(&self.layout, &Digest::from_bytes(*digest)).unwrap_or_default() {
                graph.mark(*chain.as_bytes(), &mut marked);
            }
        }
        for blob in rows(db, "SELECT diff_id, digest FROM layer_blobs")? {
            if marked.blobs.contains(&blob.0) {
                marked.blobs.insert(blob.1);
            }
        }
        for chain in graph.layers.keys().filter(|chain| !marked.layers.contains(*chain)) {
            db.prepare_cached("DELETE FROM layers WHERE chain = ?1")?.execute([chain])?;
            for kind in [FileKind::Snapshot, FileKind::Plain, FileKind::Index, FileKind::Merged] {
                db.prepare_cached("DELETE FROM files WHERE kind = ?1 AND digest = ?2")?
                    .execute(params![kind as i64, chain])?;
            }
            reclaimed.layers += 1;
        }
        for blob in digests(db, &format!("SELECT digest FROM files WHERE kind = {}", FileKind::Blob as i64))? {
            if !marked.blobs.contains(&blob) {
                db.prepare_cached("DELETE FROM files WHERE kind = 1 AND digest = ?1")?.execute([blob])?;
                reclaimed.blobs += 1;
            }
        }
        db.execute("DELETE FROM layer_blobs WHERE diff_id NOT IN (SELECT diff_id FROM layers)", [])?;
        db.execute("DELETE FROM locations WHERE digest NOT IN (SELECT digest FROM layer_blobs)", [])?;
        Ok(reclaimed)
    }

    fn mark_images(&self, db: &Connection, graph: &Layers, marked: &mut Marked) -> rusqlite::Result<()> {
        let mut configs = Vec::new();
        let mut statement = db.prepare("SELECT config, manifest, previous FROM images")?;
        let mut images = statement.query([])?;
        while let Some(row) = images.next()? {
            configs.push(Digest::from_bytes(row.get(0)?));
            marked.blobs.extend(row.get::<_, Option<[u8; 32]>>(1)?);
            let previous = row.get::<_, Option<String>>(2)?;
            if let Some(previous) = previous.and_then(|text| crate::image::Previous::decode(&text)) {
                configs.push(previous.config);
                marked.blobs.extend(previous.manifest.map(|(digest, _, _)| *digest.as_bytes()));
            }
        }
        // A manifest may be an index, which leads to further manifests and configs.
        let mut manifests: Vec<Bytes> = db
            .prepare("SELECT manifest FROM images WHERE manifest_type LIKE '%index%' OR manifest_type LIKE '%list%'")?
            .query_map([], |row| row.get(0))?
            .collect::<rusqlite::Result<_>>()?;
        while let Some(manifest) = manifests.pop() {
            let named = named_in(&self.layout, &Digest::from_bytes(manifest)).unwrap_or_default();
            for child in named.manifests.iter().map(|child| *child.digest.as_bytes()) {
                if marked.blobs.insert(child) {
                    manifests.push(child);
                }
            }
            configs.extend(named.config.map(|config| config.digest));
        }
        for config in configs {
            marked.blobs.insert(*config.as_bytes());
            for chain in chains_of(&self.layout, &config).unwrap_or_default() {
                graph.mark(*chain.as_bytes(), marked);
            }
        }
        Ok(())
    }

    /// Lock files that a killed process left. Removed while held, as whoever lets go of a lock does.
    fn remove_free_locks(&self) {
        for entry in fs::read_dir(self.layout.join("locks")).into_iter().flatten().flatten() {
            let path = entry.path();
            let Ok(file) = fs::File::open(&path) else { continue };
            if flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok()
                && file.metadata().is_ok_and(|metadata| metadata.nlink() > 0)
            {
                let _ = fs::remove_file(&path);
            }
        }
    }

    /// Partial downloads that nobody has gone on with for a week.
    fn remove_stale_partials(&self) {
        const WEEK: std::time::Duration = std::time::Duration::from_secs(7 * 24 * 60 * 60);
        for entry in fs::read_dir(self.layout.join("ingest")).into_iter().flatten().flatten() {
            let is_partial = entry.file_name().to_string_lossy().ends_with(crate::partial::SUFFIX);
            let age = entry.metadata().and_then(|metadata| metadata.modified()).map(|time| time.elapsed());
            if is_partial && matches!(age, Ok(Ok(age)) if age > WEEK) {
                let _ = fs::remove_file(entry.path());
            }
        }
    }
}

/// What a manifest or index names, beside layers.
#[derive(Default, serde::Deserialize)]
struct Named {
    #[serde(default)]
    manifests: Vec<Name>,
    config: Option<Name>,
}

#[derive(serde::Deserialize)]
struct Name {
    digest: Digest,
}

fn named_in(layout: &Layout, manifest: &Digest) -> Option<Named> {
    serde_json::from_slice(&fs::read(layout.blob(manifest)).ok()?).ok()
}

type Bytes = [u8; 32];

/// What stays.
struct Marked {
    layers: HashSet<Bytes>,
    /// Blobs, and the diff ids of layers.
    blobs: HashSet<Bytes>,
}

/// All layers that are recorded.
struct Layers {
    /// Parent and diff id by chain id.
    layers: HashMap<Bytes, (Option<Bytes>, Bytes)>,
    by_diff_id: HashMap<Bytes, Vec<Bytes>>,
    unpacked: HashSet<Bytes>,
    /// Diff ids of layers that are there as a blob, or at a registry.
    with_blob: HashSet<Bytes>,
}

impl Layers {
    fn read(db: &Connection) -> rusqlite::Result<Self> {
        let mut layers = HashMap::new();
        let mut by_diff_id: HashMap<Bytes, Vec<Bytes>> = HashMap::new();
        let mut statement = db.prepare("SELECT chain, parent, diff_id FROM layers")?;
        let mut all = statement.query([])?;
        while let Some(row) = all.next()? {
            let (chain, diff_id) = (row.get(0)?, row.get(2)?);
            layers.insert(chain, (row.get(1)?, diff_id));
            by_diff_id.entry(diff_id).or_default().push(chain);
        }
        let unpacked = digests(db, "SELECT digest FROM files WHERE kind = 2")?.into_iter().collect();
        let with_blob = digests(
            db,
            "SELECT digest FROM files WHERE kind = 1 UNION
             SELECT diff_id FROM layer_blobs WHERE digest IN (SELECT digest FROM files WHERE kind = 1)
                 OR digest IN (SELECT digest FROM locations)",
        )?;
        Ok(Self { layers, by_diff_id, unpacked, with_blob: with_blob.into_iter().collect() })
    }

    /// Keeps a layer and all below it.
    fn mark(&self, chain: Bytes, marked: &mut Marked) {
        let mut pending = vec![chain];
        while let Some(chain) = pending.pop() {
            let Some((parent, diff_id)) = self.layers.get(&chain) else { continue };
            if !marked.layers.insert(chain) {
                continue;
            }
            marked.blobs.insert(*diff_id);
            pending.extend(parent);
            // Its bytes may be in a directory upon another parent only.
            if !self.unpacked.contains(&chain) && !self.with_blob.contains(diff_id) {
                pending.extend(self.by_diff_id.get(diff_id).into_iter().flatten());
            }
        }
    }
}

fn digests(db: &Connection, sql: &str) -> rusqlite::Result<Vec<Bytes>> {
    db.prepare(sql)?.query_map([], |row| row.get(0))?.collect()
}

fn rows(db: &Connection, sql: &str) -> rusqlite::Result<Vec<(Bytes, Bytes)>> {
    db.prepare(sql)?.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect()
}
