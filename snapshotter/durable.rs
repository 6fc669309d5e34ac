//! What outlives a crash of the machine.
//!
//! Nothing is waited for while a build runs: what a dying process wrote is in the kernel's hands. One sync at the end covers
//! all files that are recorded by then; their rows are marked, and the mark itself is synced. Until that, a crash of the
//! machine costs the files and what rests on them (see `recover.rs`), never more.
//!
//! A few files are synced one by one. For directories of unpacked layers it is one syncfs, which waits for all that anybody has
//! written to that file system; so that not everything is left for it, the kernel is sent to write before (`Flusher`, and
//! `Hashed` for blobs).

use std::collections::{BTreeSet, HashSet};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, SyncSender};
use std::sync::{OnceLock, PoisonError};
use std::time::{Duration, SystemTime};

use graph::Digest;

use rusqlite::{Connection, OptionalExtension, params};

use crate::db::FileKind;
use crate::usage::measure;
use crate::{Store, StoreError, lock};

/// So many files are rather synced one by one than with the whole file system.
const FEW: u32 = 64;

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
        // In this order: what is named is there by then.
        let images = self.db.read(replaced_images)?;
        let last = self.db.read(last_not_durable)?;
        if last.is_none() && images.is_empty() {
            self.db.shorten_log();
            // Another process may have marked the files of a name that was given here.
            return if self.named.swap(false, Ordering::Relaxed) { self.db.sync_log() } else { Ok(()) };
        }
        // Rows that are added from here on are not covered: they have higher numbers.
        match self.few_files()? {
            Some(files) => sync_each(&files)?,
            None => sync_all(&self.disk, self.root())?,
        }
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

    /// What is not durable, with the directories that name it, if that is a few plain files.
    fn few_files(&self) -> Result<Option<Vec<PathBuf>>, StoreError> {
        let rows: Vec<(i64, [u8; 32])> = self.db.read(|db| {
            db.prepare_cached("SELECT kind, digest FROM files WHERE durable = 0 LIMIT ?1")?
                .query_map([FEW + 1], |row| Ok((row.get(0)?, row.get(1)?)))?
                .collect()
        })?;
        if rows.len() > FEW as usize {
            return Ok(None);
        }
        let path = |(kind, digest): (i64, [u8; 32])| match kind {
            kind if kind == FileKind::Blob as i64 => Some(self.layout.blob(&Digest::from_bytes(digest))),
            kind if kind == FileKind::Index as i64 => Some(self.layout.index(&Digest::from_bytes(digest))),
            _ => None,
        };
        let Some(mut files) = rows.into_iter().map(path).collect::<Option<Vec<PathBuf>>>() else { return Ok(None) };
        let above = |file: &PathBuf| -> Vec<PathBuf> {
            let all = file.ancestors().skip(1).take_while(|directory| directory.starts_with(self.root()));
            all.map(Path::to_owned).collect()
        };
        let directories: BTreeSet<PathBuf> = files.iter().flat_map(above).collect();
        files.extend(directories);
        Ok(Some(files))
    }

    /// Waits until what was discarded is off the disk.
    pub fn settle(&self) {
        self.reaper.settle(Duration::MAX / 4);
    }

    /// Where what could not be removed lies, and its size as far as it can be seen; `None` where all could.
    #[must_use]
    pub fn stuck(&self) -> Option<(PathBuf, u64)> {
        self.settle();
        let stuck = self.reaper.stuck();
        let mut seen = HashSet::new();
        let size = stuck.iter().map(|path| measure(path, &mut seen)).sum();
        (!stuck.is_empty()).then(|| (self.layout.join("trash"), size))
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

fn sync_each(paths: &[PathBuf]) -> Result<(), StoreError> {
    for path in paths {
        match File::open(path).and_then(|file| file.sync_all()) {
            // Collected meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            other => other.map_err(StoreError::io("sync", path))?,
        }
    }
    Ok(())
}

/// Writes all of a file system. What went wrong since `disk` was opened is told, also what another sync was told before (errors
/// are counted by descriptor, syncfs(2)).
pub(crate) fn sync_all(disk: &File, root: &Path) -> Result<(), StoreError> {
    rustix::fs::syncfs(disk).map_err(|error| StoreError::io("sync", root)(error.into()))
}

/// Has the kernel write what was unpacked while a build goes on.
#[derive(Debug, Default)]
pub(crate) struct Flusher {
    /// Bytes since it was last told.
    waiting: AtomicU64,
    thread: OnceLock<Option<SyncSender<()>>>,
}

/// Bytes that are worth a sync of their own.
const MUCH: u64 = 32 << 20;

impl Flusher {
    /// Notes that so much was written in `root`.
    pub(crate) fn wrote(&self, root: &Path, bytes: u64) {
        if self.waiting.fetch_add(bytes, Ordering::Relaxed) + bytes < MUCH {
            return;
        }
        self.waiting.store(0, Ordering::Relaxed);
        let start = || {
            let (sender, receiver) = mpsc::sync_channel::<()>(1);
            let root = root.to_owned();
            let work = move || {
                let Ok(disk) = File::open(&root) else { return };
                // What fails here is told at the end, to the descriptor that the store has.
                receiver.into_iter().for_each(|()| drop(sync_all(&disk, &root)));
            };
            std::thread::Builder::new().name("flusher".into()).spawn(work).ok().map(|_| sender)
        };
        if let Some(thread) = self.thread.get_or_init(start) {
            // One that has been told already takes this along.
            let _ = thread.try_send(());
        }
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
