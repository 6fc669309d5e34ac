//! The store: opening it, and the records of layers and results.

use std::fs::File;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use graph::{ContentDigest, Digest};
use rusqlite::{Connection, OptionalExtension, Row, params};
use rustix::fs::{FlockOperation, flock};

use crate::db::{Db, TABLES, column_content, column_digest, column_optional_digest};
use crate::layout::Layout;
use crate::record::{CacheRecord, LayerBlobRecord, LayerRecord};
use crate::snapshot::remove_tree;
use crate::{StoreError, lock};

/// An open store. Shared by threads; several processes may have it open.
pub struct Store {
    pub(crate) layout: Layout,
    pub(crate) db: Db,
    /// Flocked shared by every process that has the store open; whoever gets it exclusively is alone.
    pub(crate) presence: File,
    unique: AtomicU64,
}

impl Store {
    /// Opens the store at `root`, making it if it is not there, and cleans up after processes that died.
    ///
    /// # Errors
    /// The directory may not be a store ([`StoreError::Owner`] and others), or the disk.
    pub fn open(root: &Path) -> Result<Self, StoreError> {
        let layout = Layout::open(root)?;
        let path = layout.join("leases/presence");
        let presence = lock::open(&path).map_err(StoreError::io("open", &path))?;
        let flocked =
            |operation| flock(&presence, operation).map_err(|error| StoreError::io("lock", &path)(error.into()));
        let alone = flock(&presence, FlockOperation::NonBlockingLockExclusive).is_ok();
        let db = Db::open(&layout.join("db.sqlite"))?;
        let store = Self {
            layout,
            db,
            presence: presence.try_clone().map_err(StoreError::io("open", &path))?,
            unique: AtomicU64::new(0),
        };
        if alone {
            store.clean_up()?;
        }
        flocked(FlockOperation::LockShared)?;
        Ok(store)
    }

    /// Where it is.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.layout.root
    }

    /// Nobody else is here: whatever is unfinished will never be finished.
    fn clean_up(&self) -> Result<(), StoreError> {
        for name in ["active", "ingest", "locks"] {
            let directory = self.layout.join(name);
            let entries = std::fs::read_dir(&directory).map_err(StoreError::io("read", &directory))?;
            for entry in entries.flatten() {
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    remove_tree(&entry.path());
                } else {
                    let _ = std::fs::remove_file(entry.path());
                }
            }
        }
        self.recover_from_crash()
    }

    /// After the machine went down: rows that were not yet durable are dropped, and files that no row names.
    fn recover_from_crash(&self) -> Result<(), StoreError> {
        let boot = boot_id();
        let before: Option<String> = self
            .db
            .read(|db| db.query_row("SELECT value FROM meta WHERE key = 'boot'", [], |row| row.get(0)).optional())?;
        if before.as_deref() == Some(boot.as_str()) {
            return Ok(());
        }
        if before.is_some() {
            self.db.write(|db| {
                for table in TABLES {
                    db.execute(&format!("DELETE FROM {table} WHERE durable = 0"), [])?;
                }
                Ok(())
            })?;
            self.sweep()?;
        }
        self.db.write(|db| db.execute("INSERT OR REPLACE INTO meta VALUES ('boot', ?1)", [&boot]))?;
        Ok(())
    }

    /// Makes all that is recorded so far outlive a crash of the machine. Takes as long as the disk does.
    ///
    /// # Errors
    /// The disk.
    pub fn make_durable(&self) -> Result<(), StoreError> {
        let pending: bool = self.db.read(|db| {
            let any = TABLES.map(|table| format!("EXISTS (SELECT 1 FROM {table} WHERE durable = 0)")).join(" OR ");
            db.query_row(&format!("SELECT {any}"), [], |row| row.get(0))
        })?;
        if !pending {
            return Ok(());
        }
        // Rows added from here on are not covered by the sync, and stay as they are.
        let marks = TABLES.map(|table| format!("UPDATE {table} SET durable = 2 WHERE durable = 0;")).concat();
        self.db.write(|db| db.execute_batch(&marks))?;
        rustix::fs::syncfs(&self.presence).map_err(|error| StoreError::io("sync", self.root())(error.into()))?;
        let done = TABLES.map(|table| format!("UPDATE {table} SET durable = 1 WHERE durable = 2;")).concat();
        self.db.write(|db| db.execute_batch(&done))
    }

    /// A name that no other thread or process uses.
    pub(crate) fn unique_name(&self) -> String {
        let number = self.unique.fetch_add(1, Ordering::Relaxed);
        let time = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_nanos();
        format!("{}-{time:x}-{number}", std::process::id())
    }

    /// A layer by its chain id.
    ///
    /// # Errors
    /// The database.
    pub fn layer(&self, chain: &Digest) -> Result<Option<LayerRecord>, StoreError> {
        self.db.read(|db| find_layer(db, chain))
    }

    /// A stack, the lowest layer first.
    ///
    /// # Errors
    /// The database, or a layer that is not recorded.
    pub fn chain_layers(&self, chain: &Digest) -> Result<Vec<LayerRecord>, StoreError> {
        let mut layers = Vec::new();
        let mut next = Some(*chain);
        while let Some(chain) = next {
            let layer = self.layer(&chain)?.ok_or(StoreError::NoLayer(chain))?;
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
        self.db.read(|db| {
            let mut statement = db.prepare_cached("SELECT chain FROM layers WHERE diff_id = ?1")?;
            statement.query_map([diff_id.as_bytes()], |row| column_digest(row, 0))?.collect()
        })
    }

    /// Records a layer. What is known of a layer of our own is never replaced by less.
    ///
    /// # Errors
    /// The database.
    pub fn put_layer(&self, layer: &LayerRecord) -> Result<(), StoreError> {
        self.db.write(|db| {
            db.prepare_cached(
                "INSERT INTO layers (chain, parent, diff_id, content, size, writer, created)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)
                 ON CONFLICT (chain) DO UPDATE SET size = max(size, ?5), writer = coalesce(writer, ?6),
                     created = coalesce(created, ?7)",
            )?
            .execute(params![
                layer.chain.as_bytes(),
                layer.parent.as_ref().map(Digest::as_bytes),
                layer.diff_id.as_bytes(),
                layer.content.as_bytes(),
                layer.size as i64,
                layer.writer,
                layer.created.map(jiff::Timestamp::as_millisecond),
            ])
        })?;
        Ok(())
    }

    /// Blobs that hold a layer, here or at a registry.
    ///
    /// # Errors
    /// The database.
    pub fn layer_blobs(&self, diff_id: &Digest) -> Result<Vec<LayerBlobRecord>, StoreError> {
        self.db.read(|db| {
            let mut statement =
                db.prepare_cached("SELECT digest, media_type, size FROM layer_blobs WHERE diff_id = ?1")?;
            let blob = |row: &Row<'_>| {
                Ok(LayerBlobRecord {
                    digest: column_digest(row, 0)?,
                    media_type: row.get(1)?,
                    size: row.get::<_, i64>(2)? as u64,
                })
            };
            statement.query_map([diff_id.as_bytes()], blob)?.collect()
        })
    }

    /// Records a blob that holds a layer.
    ///
    /// # Errors
    /// The database.
    pub fn add_layer_blob(
        &self,
        diff_id: &Digest,
        digest: &Digest,
        media_type: &str,
        size: u64,
    ) -> Result<(), StoreError> {
        self.db.write(|db| {
            db.prepare_cached(
                "INSERT OR IGNORE INTO layer_blobs (diff_id, digest, media_type, size) VALUES (?1, ?2, ?3, ?4)",
            )?
            .execute(params![diff_id.as_bytes(), digest.as_bytes(), media_type, size as i64])
        })?;
        Ok(())
    }

    /// Repositories that have a blob.
    ///
    /// # Errors
    /// The database.
    pub fn locations(&self, digest: &Digest) -> Result<Vec<String>, StoreError> {
        self.db.read(|db| {
            let mut statement = db.prepare_cached("SELECT repository FROM locations WHERE digest = ?1")?;
            statement.query_map([digest.as_bytes()], |row| row.get(0))?.collect()
        })
    }

    /// Records that a repository has a blob.
    ///
    /// # Errors
    /// The database.
    pub fn add_location(&self, digest: &Digest, repository: &str) -> Result<(), StoreError> {
        self.db.write(|db| {
            db.prepare_cached("INSERT OR IGNORE INTO locations VALUES (?1, ?2)")?
                .execute(params![digest.as_bytes(), repository])
        })?;
        Ok(())
    }

    /// A recorded result whose layers are known. The database answers in microseconds; a build asks once per vertex.
    ///
    /// # Errors
    /// The database.
    pub fn lookup(&self, key: &ContentDigest) -> Result<Option<CacheRecord>, StoreError> {
        self.db.read(|db| {
            let record = |row: &Row<'_>| {
                Ok(CacheRecord {
                    chain: column_optional_digest(row, 0)?,
                    content: column_content(row, 1)?,
                    definition: column_content(row, 2)?,
                })
            };
            db.prepare_cached(
                "SELECT chain, content, definition FROM records WHERE key = ?1
                 AND (chain IS NULL OR EXISTS (SELECT 1 FROM layers WHERE layers.chain = records.chain))",
            )?
            .query_row([key.as_bytes()], record)
            .optional()
        })
    }

    /// Records a result under all its keys, replacing earlier ones.
    ///
    /// # Errors
    /// The database.
    pub fn save(&self, keys: &[ContentDigest], record: &CacheRecord) -> Result<(), StoreError> {
        let now = jiff::Timestamp::now().as_millisecond();
        self.db.write(|db| {
            let mut statement = db.prepare_cached(
                "INSERT OR REPLACE INTO records (key, chain, content, definition, created) VALUES (?1, ?2, ?3, ?4, ?5)",
            )?;
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
        self.db.write(|db| db.execute("INSERT OR REPLACE INTO notes VALUES (?1, ?2, ?3)", [kind, key, value]))?;
        Ok(())
    }
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

/// Names this boot of the machine (proc(5), `/proc/sys/kernel/random/boot_id`).
fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map_or_else(|_| "unknown".into(), |id| id.trim().to_owned())
}
