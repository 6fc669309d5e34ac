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
use crate::usage::{CACHE_MOUNT, cache_mount_digest};
use crate::{Store, StoreError};

/// Notes of which manifests, among the blobs, refer to another one: by its digest their descriptors, as a JSON list.
pub const REFERRERS: &str = "referrers";

/// What a collection may forget.
#[derive(Debug, Clone, Copy, Default)]
pub struct CollectPolicy {
    /// Results that were not used since are forgotten; with `None` all are kept.
    pub unused_since: Option<jiff::Timestamp>,
    /// Bases that were pulled for builds and have no name given by a person are forgotten.
    pub bases: bool,
}

/// What else a collection forgets.
#[derive(Debug, Default)]
pub(crate) struct Forget {
    pub(crate) policy: CollectPolicy,
    /// Results by their stack.
    pub(crate) results: Vec<Bytes>,
    /// Results that are the empty tree, unless they were used after the time given.
    pub(crate) empty_results: bool,
    pub(crate) empty_before: Option<jiff::Timestamp>,
    /// Bases, and images without a name, by the name of their row.
    pub(crate) bases: Vec<String>,
    /// Cache mounts by the name of their directory, unless somebody has come to use them.
    pub(crate) mounts: Vec<String>,
    /// This process relies on nothing any more.
    pub(crate) ignore_own: bool,
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
        self.collect_with(&Forget { policy: *policy, ..Forget::default() })
    }

    pub(crate) fn collect_with(&self, what: &Forget) -> Result<Reclaimed, StoreError> {
        self.note_use()?;
        if what.ignore_own {
            self.lease.forget();
            self.doubt();
        }
        let mark_and_forget = |db: &Connection| -> Result<(Reclaimed, HashSet<[u8; 32]>), Inside> {
            let held = lease::living(&self.layout, true)?.held;
            let reclaimed = self.forget(db, what, &held)?;
            Ok((reclaimed, held))
        };
        let mut swept = Ok(());
        let (reclaimed, _) = self.db.write_alone(mark_and_forget, |db, (_, held)| {
            swept =
                self.db.sync_log().map_err(Inside::Store).and_then(|()| sweep(db, &self.layout, &self.reaper, held));
            self.discard_mounts(db, &what.mounts, held);
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
    fn forget(&self, db: &Connection, what: &Forget, held: &HashSet<[u8; 32]>) -> Result<Reclaimed, Inside> {
        let (mut reclaimed, policy) = (Reclaimed::default(), &what.policy);
        for chain in &what.results {
            reclaimed.records += db.prepare_cached("DELETE FROM records WHERE chain = ?1")?.execute([chain])? as u64;
        }
        if what.empty_results {
            let before = what.empty_before.map_or(i64::MAX, jiff::Timestamp::as_millisecond);
            reclaimed.records += db.execute("DELETE FROM records WHERE chain IS NULL AND used < ?1", [before])? as u64;
        }
        for name in &what.bases {
            db.prepare_cached("DELETE FROM images WHERE (tagged = 0 OR name LIKE '<none>@%') AND name = ?1")?
                .execute([name])?;
        }
        if let Some(since) = policy.unused_since {
            let sql = "DELETE FROM records WHERE used < ?1";
            reclaimed.records += db.execute(sql, [since.as_millisecond()])? as u64;
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
            // Somebody has found an image, and will ask next for what its manifest or config names.
            let mut configs = reached_from(&self.layout, *digest, &mut marked.blobs);
            marked.blobs.extend(configs.iter().map(|config| *config.as_bytes()));
            configs.push(Digest::from_bytes(*digest));
            for chain in configs.iter().flat_map(|config| chains_of(&self.layout, config).unwrap_or_default()) {
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
        let (mut configs, mut manifests) = (Vec::new(), Vec::new());
        let mut statement = db.prepare("SELECT config, manifest, previous FROM images")?;
        let mut images = statement.query([])?;
        while let Some(row) = images.next()? {
            configs.push(Digest::from_bytes(row.get(0)?));
            manifests.extend(row.get::<_, Option<Bytes>>(1)?);
            let previous = row.get::<_, Option<String>>(2)?;
            if let Some(previous) = previous.and_then(|text| crate::image::Previous::decode(&text)) {
                configs.push(previous.config);
                manifests.extend(previous.manifest.map(|(digest, _, _)| *digest.as_bytes()));
            }
        }
        for manifest in manifests {
            marked.blobs.insert(manifest);
            configs.extend(reached_from(&self.layout, manifest, &mut marked.blobs));
        }
        for config in configs {
            marked.blobs.insert(*config.as_bytes());
            for chain in chains_of(&self.layout, &config).unwrap_or_default() {
                graph.mark(*chain.as_bytes(), marked);
            }
        }
        self.mark_referrers(db, marked)
    }

    /// What is said of manifests that stay; of others it is forgotten. Something may be said of that in turn.
    fn mark_referrers(&self, db: &Connection, marked: &mut Marked) -> rusqlite::Result<()> {
        let mut left: Vec<(String, String)> = db
            .prepare("SELECT key, value FROM notes WHERE kind = ?1")?
            .query_map([REFERRERS], |row| Ok((row.get(0)?, row.get(1)?)))?
            .collect::<rusqlite::Result<_>>()?;
        loop {
            let stays = |subject: &String| {
                subject.parse::<Digest>().is_ok_and(|subject| marked.blobs.contains(subject.as_bytes()))
            };
            let (found, others): (Vec<_>, Vec<_>) = left.into_iter().partition(|(subject, _)| stays(subject));
            left = others;
            if found.is_empty() {
                break;
            }
            for referrer in
                found.iter().flat_map(|(_, list)| serde_json::from_str::<Vec<Name>>(list).unwrap_or_default())
            {
                let referrer = *referrer.digest.as_bytes();
                marked.blobs.insert(referrer);
                let configs = reached_from(&self.layout, referrer, &mut marked.blobs);
                marked.blobs.extend(configs.iter().map(|config| *config.as_bytes()));
            }
        }
        for (subject, _) in left {
            db.execute("DELETE FROM notes WHERE kind = ?1 AND key = ?2", [REFERRERS, &*subject])?;
        }
        Ok(())
    }

    /// Behind the gate nobody begins to use one.
    fn discard_mounts(&self, db: &Connection, names: &[String], held: &HashSet<[u8; 32]>) {
        for name in names.iter().filter(|name| !held.contains(cache_mount_digest(name).as_bytes())) {
            // What cannot be moved stays for the next time.
            if self.reaper.discard(&self.layout.join("cache-mounts").join(name)).is_ok() {
                let _ = db.execute("DELETE FROM notes WHERE kind = ?1 AND key = ?2", [CACHE_MOUNT, name]);
            }
        }
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

/// What a manifest or index names.
#[derive(Default, serde::Deserialize)]
struct Named {
    #[serde(default)]
    manifests: Vec<Name>,
    config: Option<Name>,
    #[serde(default)]
    layers: Vec<Name>,
}

#[derive(serde::Deserialize)]
struct Name {
    digest: Digest,
}

/// A manifest may be an index, which leads to further manifests and to configs. The manifests are noted, and the blobs that
/// they call layers, which need not be any; the configs are answered.
pub(crate) fn reached_from(layout: &Layout, manifest: Bytes, noted: &mut HashSet<Bytes>) -> Vec<Digest> {
    let (mut manifests, mut configs) = (vec![manifest], Vec::new());
    while let Some(manifest) = manifests.pop() {
        let named = named_in(layout, &Digest::from_bytes(manifest)).unwrap_or_default();
        for child in named.manifests.iter().map(|child| *child.digest.as_bytes()) {
            if noted.insert(child) {
                manifests.push(child);
            }
        }
        noted.extend(named.layers.iter().map(|layer| *layer.digest.as_bytes()));
        configs.extend(named.config.map(|config| config.digest));
    }
    configs
}

fn named_in(layout: &Layout, manifest: &Digest) -> Option<Named> {
    /// More than any manifest has.
    const LIMIT: u64 = 4 << 20;
    let path = layout.blob(manifest);
    if fs::metadata(&path).ok()?.len() > LIMIT {
        return None;
    }
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

type Bytes = [u8; 32];

/// What stays.
#[derive(Default)]
pub(crate) struct Marked {
    pub(crate) layers: HashSet<Bytes>,
    /// Blobs, and the diff ids of layers.
    pub(crate) blobs: HashSet<Bytes>,
}

/// All layers that are recorded.
pub(crate) struct Layers {
    /// Parent and diff id by chain id.
    layers: HashMap<Bytes, (Option<Bytes>, Bytes)>,
    by_diff_id: HashMap<Bytes, Vec<Bytes>>,
    unpacked: HashSet<Bytes>,
    /// Diff ids of layers that are there as a blob, or at a registry.
    with_blob: HashSet<Bytes>,
}

impl Layers {
    pub(crate) fn read(db: &Connection) -> rusqlite::Result<Self> {
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

    pub(crate) fn contains(&self, chain: &Bytes) -> bool {
        self.layers.contains_key(chain)
    }

    pub(crate) fn parent(&self, chain: &Bytes) -> Option<Bytes> {
        self.layers.get(chain).and_then(|(parent, _)| *parent)
    }

    /// Chain and diff ids, in an order that does not change.
    pub(crate) fn diff_ids(&self) -> Vec<(Bytes, Bytes)> {
        let mut all: Vec<(Bytes, Bytes)> = self.layers.iter().map(|(chain, (_, diff_id))| (*chain, *diff_id)).collect();
        all.sort_unstable();
        all
    }

    /// Keeps a layer and all below it.
    pub(crate) fn mark(&self, chain: Bytes, marked: &mut Marked) {
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
