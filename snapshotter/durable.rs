//! What outlives a crash of the machine.
//!
//! Nothing is synced while a build runs: what a dying process wrote is in the kernel's hands. One syncfs at the end covers
//! all files that are recorded by then; their rows are marked, and the mark itself is synced. Until that, a crash of the
//! machine costs the files and what rests on them (see `recover.rs`), never more.

use std::fs::{self, File};
use std::path::Path;
use std::sync::PoisonError;
use std::time::{Duration, SystemTime};

use rusqlite::{Connection, OptionalExtension, params};

use crate::{Store, StoreError, lock};

/// Age at which the copy of the database is renewed.
const BACKUP_AGE: Duration = Duration::from_secs(60);

impl Store {
    /// Makes all that is recorded so far outlive a crash of the machine. Takes as long as the disk does; without anything
    /// new it costs one look-up.
    ///
    /// # Errors
    /// The disk: then nothing is marked.
    pub fn make_durable(&self) -> Result<(), StoreError> {
        self.note_use()?;
        let (last, images) = self.db.read(|db| Ok((last_not_durable(db)?, replaced_images(db)?)))?;
        if last.is_none() && images.is_empty() {
            self.db.shorten_log();
            return Ok(());
        }
        // Rows that are added from here on are not covered: they have higher numbers.
        let root = File::open(self.root()).map_err(StoreError::io("open", self.root()))?;
        rustix::fs::syncfs(&root).map_err(|error| StoreError::io("sync", self.root())(error.into()))?;
        self.db.write(|db| {
            db.execute("UPDATE files SET durable = 1 WHERE durable = 0 AND seq <= ?1", [last])?;
            for (name, config, manifest) in &images {
                db.execute(
                    "UPDATE images SET previous = NULL WHERE name = ?1 AND config = ?2 AND manifest IS ?3",
                    params![name, config, manifest],
                )?;
            }
            Ok(())
        })?;
        self.db.shorten_log();
        self.db.sync_log()?;
        self.back_up()
    }

    /// Waits until what was discarded is off the disk.
    pub fn settle(&self) {
        self.reaper.settle(Duration::MAX / 4);
    }

    /// Writes when the records and images found by this process were used.
    pub(crate) fn note_use(&self) -> Result<(), StoreError> {
        let found = std::mem::take(&mut *self.found.lock().unwrap_or_else(PoisonError::into_inner));
        let images = std::mem::take(&mut *self.found_images.lock().unwrap_or_else(PoisonError::into_inner));
        if found.is_empty() && images.is_empty() {
            return Ok(());
        }
        let now = jiff::Timestamp::now().as_millisecond();
        self.db.write(|db| {
            let mut update = db.prepare_cached("UPDATE records SET used = ?2 WHERE key = ?1 AND used < ?2")?;
            for key in &found {
                update.execute(params![key.as_bytes(), now])?;
            }
            let mut update = db.prepare_cached("UPDATE images SET used = ?2 WHERE name = ?1 AND used < ?2")?;
            for name in &images {
                update.execute(params![name, now])?;
            }
            Ok(())
        })
    }

    /// Renews the copy of the database, from which a damaged one is restored.
    fn back_up(&self) -> Result<(), StoreError> {
        let target = self.layout.backup();
        if is_young(&target) {
            return Ok(());
        }
        let fresh = self.layout.join("ingest").join(self.unique_name());
        let name = fresh.to_string_lossy();
        self.db.read(|db| db.execute("VACUUM INTO ?1", [&*name]))?;
        let finish = || {
            File::open(&fresh)?.sync_data()?;
            fs::rename(&fresh, &target)
        };
        finish().map_err(StoreError::io("write", lock::with_suffix(&target, "")))
    }
}

fn last_not_durable(db: &Connection) -> rusqlite::Result<Option<i64>> {
    db.query_row("SELECT max(seq) FROM files WHERE durable = 0", [], |row| row.get(0)).optional().map(Option::flatten)
}

type ReplacedImage = (String, [u8; 32], Option<[u8; 32]>);

fn replaced_images(db: &Connection) -> rusqlite::Result<Vec<ReplacedImage>> {
    db.prepare_cached("SELECT name, config, manifest FROM images WHERE previous IS NOT NULL")?
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?
        .collect()
}

fn is_young(path: &Path) -> bool {
    let modified = fs::metadata(path).and_then(|metadata| metadata.modified());
    modified.is_ok_and(|time| SystemTime::now().duration_since(time).is_ok_and(|age| age < BACKUP_AGE))
}
