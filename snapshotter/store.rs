//! The store: opening it, and the records of layers and results.

use std::collections::HashSet;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use graph::{ContentDigest, Digest};
use rusqlite::{Connection, OptionalExtension, Row, params};

use crate::StoreError;
use crate::db::{Db, FileKind, column_content, column_digest, column_optional_digest, has_file};
use crate::durable::Flusher;
use crate::layer::ApplyOptions;
use crate::layout::Layout;
use crate::lease::{self, Lease};
use crate::reaper::Reaper;
use crate::record::{CacheRecord, ForeignLayer, LayerBlobRecord, LayerRecord, RecordedKey};
use crate::recover;
use crate::usage::note_made_by;

/// An open store. Shared by threads; several processes may have it open.
///
/// What a process finds in or puts into its open store stays there until it drops the store or dies, whatever others
/// collect meanwhile.
pub struct Store {
    pub(crate) layout: Layout,
    pub(crate) db: Db,
    pub(crate) lease: Lease,
    pub(crate) reaper: Arc<Reaper>,
    pub(crate) flusher: Flusher,
    /// The root, opened before anything is written: what fails to reach the disk is told to whoever had it open.
    pub(crate) disk: File,
    /// Whether a name was given that is not synced.
    pub(crate) named: AtomicBool,
    unique: AtomicU64,
    /// There are no overlays here.
    pub(crate) native: AtomicBool,
    /// How this process unpacks layers, if it said so.
    pub(crate) unpacking: OnceLock<ApplyOptions>,
    /// The name of trees that it can use, once it was asked.
    pub(crate) tree_name: OnceLock<String>,
    /// Trees of others that turned out to be closed to it.
    pub(crate) disregarded: Mutex<HashSet<PathBuf>>,
    /// Cache mounts that this process has used.
    pub(crate) used_mounts: Mutex<HashSet<String>>,
    /// Keys of records that were found, whose time of use is written in one go.
    pub(crate) found: Mutex<HashSet<ContentDigest>>,
    /// Names of images that were asked for, likewise.
    pub(crate) found_images: Mutex<HashSet<String>>,
    /// Layers that were seen to be there in some form, with all below them.
    whole: Mutex<HashSet<Digest>>,
}

impl Drop for Store {
    fn drop(&mut self) {
        let _ = self.note_use();
        // Nearly always nothing is in it any more. Otherwise, and after a kill, the next process empties it.
        let _ = std::fs::remove_dir(self.scratch_path());
        // What takes longer is left to the next process.
        self.reaper.settle(Duration::from_millis(100));
    }
}

impl Store {
    /// Opens the store at `root`, making it if it is not there, and cleans up after processes and machines that died.
    ///
    /// # Errors
    /// The directory may not be a store ([`StoreError::Owner`] and others), or the disk.
    pub fn open(root: &Path) -> Result<Self, StoreError> {
        let layout = Layout::open(root)?;
        match Db::open(&layout).and_then(|db| Self::upon(layout.clone(), db)) {
            Err(StoreError::Damaged { .. }) => {
                let db = recover::replace_database(&layout)?;
                Self::upon(layout, db)
            }
            other => other,
        }
    }

    fn upon(layout: Layout, db: Db) -> Result<Self, StoreError> {
        layout.is_up_to_date()?;
        let lease = Lease::create(&layout)?;
        let disk = File::open(&layout.root).map_err(StoreError::io("open", &layout.root))?;
        let reaper = Arc::new(Reaper::new(layout.join("trash"), lease.id().to_owned()));
        recover::after_crash(&layout, &db, &reaper)?;
        discard_unfinished(&layout, &reaper)?;
        reaper.resume();
        Ok(Self {
            layout,
            db,
            lease,
            reaper,
            flusher: Flusher::default(),
            disk,
            named: AtomicBool::new(false),
            unique: AtomicU64::new(0),
            native: AtomicBool::new(false),
            unpacking: OnceLock::new(),
            tree_name: OnceLock::new(),
            disregarded: Mutex::default(),
            used_mounts: Mutex::default(),
            found: Mutex::default(),
            found_images: Mutex::default(),
            whole: Mutex::default(),
        })
    }

    /// Where it is.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.layout.root
    }

    /// Looks at every page of the database, for whoever did not find in it what should be there.
    ///
    /// # Errors
    /// [`StoreError::Damaged`]: the next start repairs it.
    pub fn examine_database(&self) -> Result<(), StoreError> {
        self.db.examine()
    }

    /// Whether the database was found damaged since the store was opened, by whoever: what failed for it succeeds once the
    /// store has been opened anew.
    #[must_use]
    pub fn is_given_up(&self) -> bool {
        self.db.is_given_up()
    }

    /// A random key that this store has had since it was first asked for one. It leaves the store in no way.
    ///
    /// # Errors
    /// The database, or the kernel has no random numbers.
    pub fn secret_key(&self) -> Result<[u8; 32], StoreError> {
        let mut fresh = [0; 32];
        rustix::rand::getrandom(&mut fresh, rustix::rand::GetRandomFlags::empty())
            .map_err(|error| StoreError::io("get random numbers for", self.root())(error.into()))?;
        self.db.write(|db| {
            // Whoever was first has made the one that counts.
            db.execute(
                "INSERT OR IGNORE INTO notes VALUES ('secret-key', '', ?1)",
                [ContentDigest::from_bytes(fresh).hex()],
            )?;
            let text: String =
                db.query_row("SELECT value FROM notes WHERE kind = 'secret-key'", [], |row| row.get(0))?;
            // What was damaged is as good as another key: everything keyed by it misses once.
            let digest: Option<Digest> = format!("sha256:{text}").parse().ok();
            Ok(digest.map_or_else(|| *ContentDigest::of(text.as_bytes()).as_bytes(), |digest| *digest.as_bytes()))
        })
    }

    /// Where records of builds are kept, which is the builder's business. It need not be there.
    #[must_use]
    pub fn builds_directory(&self) -> PathBuf {
        self.layout.join("builds")
    }

    /// A directory for this process's temporary files. What is left there at the end, the next process removes.
    #[must_use]
    pub fn scratch_directory(&self) -> PathBuf {
        let path = self.scratch_path();
        // Whoever writes there is told if this fails.
        let _ = std::fs::create_dir(&path);
        path
    }

    fn scratch_path(&self) -> PathBuf {
        self.layout.join("ingest").join(format!("{}.scratch", self.lease.id()))
    }

    /// A name that no other thread or process uses, and that says whose it is.
    pub(crate) fn unique_name(&self) -> String {
        format!("{}.{}", self.lease.id(), self.unique.fetch_add(1, Ordering::Relaxed))
    }

    /// A layer by its chain id.
    ///
    /// # Errors
    /// The database.
    pub fn layer(&self, chain: &Digest) -> Result<Option<LayerRecord>, StoreError> {
        self.db.read_guarded(|db| {
            let layer = find_layer(db, chain)?;
            if layer.is_some() {
                self.lease.hold(chain);
            }
            Ok(layer)
        })
    }

    /// A stack, the lowest layer first.
    ///
    /// # Errors
    /// The database, or a layer that is not recorded.
    pub fn chain_layers(&self, chain: &Digest) -> Result<Vec<LayerRecord>, StoreError> {
        // Holding the topmost holds them all.
        let top = self.layer(chain)?.ok_or(StoreError::NoLayer(*chain))?;
        let mut next = top.parent;
        let mut layers = vec![top];
        while let Some(chain) = next {
            let layer = self.db.read(|db| find_layer(db, &chain))?.ok_or(StoreError::NoLayer(chain))?;
            next = layer.parent;
            layers.push(layer);
        }
        layers.reverse();
        Ok(layers)
    }

    /// Chain ids under which a layer is known.
    ///
    /// # Errors
    /// The database.
    pub fn chains_with(&self, diff_id: &Digest) -> Result<Vec<Digest>, StoreError> {
        self.db.read(|db| find_chains(db, diff_id))
    }

    /// Records a layer. What is known of a layer of our own is never replaced by less.
    ///
    /// # Errors
    /// The database.
    pub fn put_layer(&self, layer: &LayerRecord) -> Result<(), StoreError> {
        self.db.write(|db| {
            self.lease.hold(&layer.chain);
            insert_layer(db, layer)
        })
    }

    /// Blobs that hold a layer, here or at a registry.
    ///
    /// # Errors
    /// The database.
    pub fn layer_blobs(&self, diff_id: &Digest) -> Result<Vec<LayerBlobRecord>, StoreError> {
        self.db.read(|db| find_layer_blobs(db, diff_id))
    }

    /// Records a blob that holds a layer.
    ///
    /// # Errors
    /// The database.
    pub fn add_layer_blob(&self, diff_id: &Digest, blob: &LayerBlobRecord) -> Result<(), StoreError> {
        self.db.write(|db| insert_layer_blob(db, diff_id, blob))
    }

    /// Forgets that a blob holds a layer: it holds something else.
    ///
    /// # Errors
    /// The database.
    pub fn forget_layer_blob(&self, diff_id: &Digest, digest: &Digest) -> Result<(), StoreError> {
        self.doubt();
        self.db.write(|db| {
            let sql = "DELETE FROM layer_blobs WHERE diff_id = ?1 AND digest = ?2";
            db.execute(sql, params![diff_id.as_bytes(), digest.as_bytes()])
        })?;
        Ok(())
    }

    /// Records layers of which somebody else tells, all or none: what they are, and where each can be had. `hearsay` is not
    /// believed to know of another blob for a layer that can be had already.
    ///
    /// # Errors
    /// The database.
    pub fn put_foreign(&self, layers: &[ForeignLayer], location: &str, hearsay: bool) -> Result<(), StoreError> {
        self.db.write(|db| {
            for ForeignLayer { layer, blob } in layers {
                self.lease.hold(&layer.chain);
                insert_layer(db, layer)?;
                let Some(blob) = blob else { continue };
                let is_known = || -> rusqlite::Result<bool> {
                    Ok(find_layer_blobs(db, &layer.diff_id)?.iter().any(|known| known.digest == blob.digest))
                };
                if hearsay && !is_known()? && self.has_bytes(db, layer)? {
                    continue;
                }
                insert_layer_blob(db, &layer.diff_id, blob)?;
                insert_location(db, &blob.digest, location)?;
            }
            Ok(())
        })
    }

    /// Records what a layer really holds, which is not what was said of it, and forgets the results that rest on it.
    ///
    /// # Errors
    /// The database.
    pub fn correct_content(&self, diff_id: &Digest, content: &ContentDigest) -> Result<(), StoreError> {
        self.doubt();
        self.db.write(|db| {
            db.execute(
                "WITH RECURSIVE resting (chain) AS (
                     SELECT chain FROM layers WHERE diff_id = ?1
                     UNION SELECT layers.chain FROM layers JOIN resting ON layers.parent = resting.chain)
                 DELETE FROM records WHERE chain IN (SELECT chain FROM resting)",
                [diff_id.as_bytes()],
            )?;
            let sql = "UPDATE layers SET content = ?2 WHERE diff_id = ?1 AND content <> diff_id";
            db.execute(sql, params![diff_id.as_bytes(), content.as_bytes()])
        })?;
        Ok(())
    }

    /// Repositories that have a blob.
    ///
    /// # Errors
    /// The database.
    pub fn locations(&self, digest: &Digest) -> Result<Vec<String>, StoreError> {
        self.db.read(|db| find_locations(db, digest))
    }

    /// Records that a repository has a blob.
    ///
    /// # Errors
    /// The database.
    pub fn add_location(&self, digest: &Digest, repository: &str) -> Result<(), StoreError> {
        self.db.write(|db| insert_location(db, digest, repository))
    }

    /// Forgets where a blob can be had: nobody had it.
    ///
    /// # Errors
    /// The database.
    pub fn forget_locations(&self, digest: &Digest) -> Result<(), StoreError> {
        self.doubt();
        self.db.write(|db| db.execute("DELETE FROM locations WHERE digest = ?1", [digest.as_bytes()]))?;
        Ok(())
    }

    /// The keys of all recorded results that have layers.
    ///
    /// # Errors
    /// The database.
    pub fn recorded_keys(&self) -> Result<Vec<RecordedKey>, StoreError> {
        self.db.read(|db| {
            db.prepare_cached("SELECT key, chain, definition FROM records WHERE chain IS NOT NULL")?
                .query_map([], |row| {
                    Ok(RecordedKey {
                        key: column_content(row, 0)?,
                        chain: column_digest(row, 1)?,
                        definition: column_content(row, 2)?,
                    })
                })?
                .collect()
        })
    }

    /// A recorded result whose layers are there, here or at a registry. The database answers in microseconds; a build asks
    /// once per vertex.
    ///
    /// # Errors
    /// The database.
    pub fn lookup(&self, key: &ContentDigest) -> Result<Option<CacheRecord>, StoreError> {
        // For `has_tree`.
        self.tree_name()?;
        let record = self.db.read_guarded(|db| {
            let read = |row: &Row<'_>| {
                Ok(CacheRecord {
                    chain: column_optional_digest(row, 0)?,
                    content: column_content(row, 1)?,
                    definition: column_content(row, 2)?,
                })
            };
            let record = db
                .prepare_cached("SELECT chain, content, definition FROM records WHERE key = ?1")?
                .query_row([key.as_bytes()], read)
                .optional()?;
            let Some(record) = record else { return Ok(None) };
            if let Some(chain) = &record.chain {
                if !self.is_whole(db, chain)? {
                    return Ok(None);
                }
                self.lease.hold(chain);
            }
            Ok(Some(record))
        })?;
        if record.is_some() {
            self.found.lock().unwrap_or_else(PoisonError::into_inner).insert(*key);
        }
        Ok(record)
    }

    /// Whether all layers of a stack are there in some form. Looked up once per layer and process.
    fn is_whole(&self, db: &Connection, chain: &Digest) -> rusqlite::Result<bool> {
        let mut whole = self.whole.lock().unwrap_or_else(PoisonError::into_inner);
        let mut seen = Vec::new();
        let mut next = Some(*chain);
        while let Some(chain) = next.filter(|chain| !whole.contains(chain)) {
            let Some(layer) = find_layer(db, &chain)? else { return Ok(false) };
            if !self.has_bytes(db, &layer)? {
                return Ok(false);
            }
            next = layer.parent;
            seen.push(chain);
        }
        whole.extend(seen);
        Ok(true)
    }

    fn has_bytes(&self, db: &Connection, layer: &LayerRecord) -> rusqlite::Result<bool> {
        let is_unpacked = |chain: &Digest| {
            let directory = self.layout.snapshot(chain);
            Ok::<_, rusqlite::Error>(has_file(db, FileKind::Snapshot, chain, &directory)? && self.has_tree(&directory))
        };
        let is_blob = |digest: &Digest| has_file(db, FileKind::Blob, digest, &self.layout.blob(digest));
        if is_unpacked(&layer.chain)? || is_blob(&layer.diff_id)? {
            return Ok(true);
        }
        for blob in find_layer_blobs(db, &layer.diff_id)? {
            if is_blob(&blob.digest)? || !find_locations(db, &blob.digest)?.is_empty() {
                return Ok(true);
            }
        }
        // A directory upon another parent holds the bytes too.
        for chain in find_chains(db, &layer.diff_id)? {
            if is_unpacked(&chain)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Something turned out to be missing or damaged: look again.
    pub(crate) fn doubt(&self) {
        self.whole.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Records a result under all its keys, replacing earlier ones.
    ///
    /// # Errors
    /// The database, or [`StoreError::NoLayer`] for a result whose layers are not recorded.
    pub fn save(&self, keys: &[ContentDigest], record: &CacheRecord) -> Result<(), StoreError> {
        self.save_as(keys, record, "REPLACE", None)
    }

    /// As [`Store::save`], and what made the layer on top, for the list of what takes space.
    ///
    /// # Errors
    /// As [`Store::save`].
    pub fn save_made_by(
        &self,
        keys: &[ContentDigest],
        record: &CacheRecord,
        made_by: Option<&str>,
    ) -> Result<(), StoreError> {
        self.save_as(keys, record, "REPLACE", made_by)
    }

    /// Records a result that somebody else tells of. What is recorded under one of the keys stays.
    ///
    /// # Errors
    /// As [`Store::save`].
    pub fn save_foreign(&self, keys: &[ContentDigest], record: &CacheRecord) -> Result<(), StoreError> {
        self.save_as(keys, record, "IGNORE", None)
    }

    fn save_as(
        &self,
        keys: &[ContentDigest],
        record: &CacheRecord,
        conflict: &str,
        made_by: Option<&str>,
    ) -> Result<(), StoreError> {
        let now = jiff::Timestamp::now().as_millisecond();
        self.db.write_files(|db| {
            if let Some(chain) = &record.chain {
                if find_layer(db, chain)?.is_none() {
                    return Err(StoreError::NoLayer(*chain).into());
                }
                self.lease.hold(chain);
                if let Some(made_by) = made_by {
                    note_made_by(db, chain, made_by)?;
                }
            }
            let mut statement = db.prepare_cached(&format!(
                "INSERT OR {conflict} INTO records (key, chain, content, definition, created, used)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?5)",
            ))?;
            for key in keys {
                statement.execute(params![
                    key.as_bytes(),
                    record.chain.as_ref().map(Digest::as_bytes),
                    record.content.as_bytes(),
                    record.definition.as_bytes(),
                    now
                ])?;
            }
            Ok(())
        })
    }

    /// A small text kept under a name, e.g. the ETag of a URL.
    ///
    /// # Errors
    /// The database.
    pub fn note(&self, kind: &str, key: &str) -> Result<Option<String>, StoreError> {
        self.db.read(|db| {
            db.prepare_cached("SELECT value FROM notes WHERE kind = ?1 AND key = ?2")?
                .query_row([kind, key], |row| row.get(0))
                .optional()
        })
    }

    /// Keeps a small text.
    ///
    /// # Errors
    /// The database.
    pub fn put_note(&self, kind: &str, key: &str, value: &str) -> Result<(), StoreError> {
        self.db.write(|db| put_note(db, kind, key, value))
    }
}

/// Takes what is being made out of the way if its maker is dead.
fn discard_unfinished(layout: &Layout, reaper: &Reaper) -> Result<(), StoreError> {
    let mut unfinished = Vec::new();
    for name in ["active", "ingest"] {
        let directory = layout.join(name);
        for entry in std::fs::read_dir(&directory).map_err(StoreError::io("read", &directory))?.flatten() {
            unfinished.push(entry.path());
        }
    }
    // Listed after what they own: whoever came in between owns none of it.
    let living = lease::living(layout, false)?;
    for path in unfinished {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        // Partial downloads are nobody's; the next one goes on with them.
        if !living.owns(&name) && !name.ends_with(crate::partial::SUFFIX) {
            reaper.discard(&path).map_err(StoreError::io("remove", &path))?;
        }
    }
    Ok(())
}

pub(crate) fn insert_layer(db: &Connection, layer: &LayerRecord) -> rusqlite::Result<()> {
    db.prepare_cached(
        "INSERT INTO layers (chain, parent, diff_id, content, size, writer, created)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)
         ON CONFLICT (chain) DO UPDATE SET size = max(size, ?5), writer = coalesce(writer, ?6),
             created = coalesce(created, ?7), content = CASE WHEN content = diff_id THEN ?4 ELSE content END",
    )?
    .execute(params![
        layer.chain.as_bytes(),
        layer.parent.as_ref().map(Digest::as_bytes),
        layer.diff_id.as_bytes(),
        layer.content.as_bytes(),
        layer.size as i64,
        layer.writer,
        layer.created.map(jiff::Timestamp::as_millisecond),
    ])?;
    Ok(())
}

fn insert_layer_blob(db: &Connection, diff_id: &Digest, blob: &LayerBlobRecord) -> rusqlite::Result<()> {
    let sql = "INSERT INTO layer_blobs (diff_id, digest, media_type, size, came, level) VALUES (?1, ?2, ?3, ?4, ?5, ?6)
               ON CONFLICT DO UPDATE SET came = max(came, excluded.came), level = coalesce(excluded.level, level)";
    let LayerBlobRecord { digest, media_type, size, came, level } = blob;
    let values = params![diff_id.as_bytes(), digest.as_bytes(), media_type, *size as i64, came, level];
    db.prepare_cached(sql)?.execute(values)?;
    Ok(())
}

fn insert_location(db: &Connection, digest: &Digest, repository: &str) -> rusqlite::Result<()> {
    db.prepare_cached("INSERT OR IGNORE INTO locations VALUES (?1, ?2)")?
        .execute(params![digest.as_bytes(), repository])?;
    Ok(())
}

fn find_layer(db: &Connection, chain: &Digest) -> rusqlite::Result<Option<LayerRecord>> {
    let layer = |row: &Row<'_>| {
        Ok(LayerRecord {
            chain: *chain,
            parent: column_optional_digest(row, 0)?,
            diff_id: column_digest(row, 1)?,
            content: column_content(row, 2)?,
            size: row.get::<_, i64>(3)? as u64,
            writer: row.get(4)?,
            created: row.get::<_, Option<i64>>(5)?.and_then(|time| jiff::Timestamp::from_millisecond(time).ok()),
        })
    };
    db.prepare_cached("SELECT parent, diff_id, content, size, writer, created FROM layers WHERE chain = ?1")?
        .query_row([chain.as_bytes()], layer)
        .optional()
}

pub(crate) fn find_chains(db: &Connection, diff_id: &Digest) -> rusqlite::Result<Vec<Digest>> {
    let mut statement = db.prepare_cached("SELECT chain FROM layers WHERE diff_id = ?1")?;
    statement.query_map([diff_id.as_bytes()], |row| column_digest(row, 0))?.collect()
}

fn find_layer_blobs(db: &Connection, diff_id: &Digest) -> rusqlite::Result<Vec<LayerBlobRecord>> {
    let mut statement =
        db.prepare_cached("SELECT digest, media_type, size, came, level FROM layer_blobs WHERE diff_id = ?1")?;
    let blob = |row: &Row<'_>| {
        Ok(LayerBlobRecord {
            digest: column_digest(row, 0)?,
            media_type: row.get(1)?,
            size: row.get::<_, i64>(2)? as u64,
            came: row.get(3)?,
            level: row.get(4)?,
        })
    };
    statement.query_map([diff_id.as_bytes()], blob)?.collect()
}

fn find_locations(db: &Connection, digest: &Digest) -> rusqlite::Result<Vec<String>> {
    let mut statement = db.prepare_cached("SELECT repository FROM locations WHERE digest = ?1")?;
    statement.query_map([digest.as_bytes()], |row| row.get(0))?.collect()
}

pub(crate) fn put_note(db: &Connection, kind: &str, key: &str, value: &str) -> rusqlite::Result<()> {
    db.prepare_cached("INSERT OR REPLACE INTO notes VALUES (?1, ?2, ?3)")?.execute([kind, key, value]).map(drop)
}

#[cfg(test)]
mod tests;
