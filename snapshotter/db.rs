//! The database: SQLite in WAL mode, because several processes share it.
//!
//! `synchronous=NORMAL` does not sync per transaction: a process that dies loses nothing, since what it wrote is in the
//! kernel; a machine that dies loses the latest transactions but never consistency (`OFF` would lose that too, because a
//! checkpoint could then overtake the log). What the lost tail would have said of files is dealt with by `files.durable`.
//!
//! The **gate** is a file beside the database. Whoever relies on something being in the store and notes that in its lease
//! holds the gate shared meanwhile; a collection holds it exclusively. So a collection sees every lease complete, and
//! nobody finds what is about to go.

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use graph::{ContentDigest, Digest};
use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, Row, TransactionBehavior};
use rustix::fs::{FlockOperation, flock};

use crate::layout::Layout;
use crate::{StoreError, lock, migrate};

/// Of the tables below; see `migrate.rs` for those of earlier ones.
pub(crate) const SCHEMA_VERSION: i64 = 5;

/// What a row of `files` stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FileKind {
    Blob = 1,
    Snapshot = 2,
    Index = 3,
    Merged = 4,
    Plain = 5,
}

// `files.seq` only grows, so that a sync can say which rows it covers: those up to the number it began with.
pub(crate) const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS files (
        seq INTEGER PRIMARY KEY AUTOINCREMENT, kind INTEGER NOT NULL, digest BLOB NOT NULL,
        size INTEGER NOT NULL DEFAULT 0, durable INTEGER NOT NULL DEFAULT 0, UNIQUE (kind, digest));
    CREATE INDEX IF NOT EXISTS files_not_durable ON files (seq) WHERE durable = 0;
    CREATE TABLE IF NOT EXISTS layers (
        chain BLOB PRIMARY KEY, parent BLOB, diff_id BLOB NOT NULL, content BLOB NOT NULL, size INTEGER NOT NULL,
        writer INTEGER, created INTEGER) WITHOUT ROWID;
    CREATE INDEX IF NOT EXISTS layers_by_diff_id ON layers (diff_id);
    CREATE TABLE IF NOT EXISTS layer_blobs (
        diff_id BLOB NOT NULL, digest BLOB NOT NULL, media_type TEXT NOT NULL, size INTEGER NOT NULL,
        came INTEGER NOT NULL DEFAULT 1, level INTEGER, PRIMARY KEY (diff_id, digest)) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS locations (
        digest BLOB NOT NULL, repository TEXT NOT NULL, PRIMARY KEY (digest, repository)) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS records (
        key BLOB PRIMARY KEY, chain BLOB, content BLOB NOT NULL, definition BLOB NOT NULL, created INTEGER NOT NULL,
        used INTEGER NOT NULL) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS images (
        name TEXT PRIMARY KEY, config BLOB NOT NULL, manifest BLOB, manifest_type TEXT, manifest_size INTEGER,
        tagged INTEGER NOT NULL, previous TEXT, used INTEGER NOT NULL DEFAULT 0) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS notes (
        kind TEXT NOT NULL, key TEXT NOT NULL, value TEXT NOT NULL, PRIMARY KEY (kind, key)) WITHOUT ROWID;
";

/// The database as this process has it open: one connection to read, one to write, so that a look-up never waits behind a
/// transaction.
pub(crate) struct Db {
    path: PathBuf,
    marker: PathBuf,
    gate: PathBuf,
    /// Of the database file; another one under its name means that it was replaced.
    inode: u64,
    reader: Mutex<Side>,
    writer: Mutex<Option<Side>>,
}

struct Side {
    connection: Connection,
    gate: Gate,
}

/// The error inside a transaction that also touches files.
pub(crate) enum Inside {
    Sql(rusqlite::Error),
    Store(StoreError),
}

impl From<rusqlite::Error> for Inside {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sql(error)
    }
}

impl From<StoreError> for Inside {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl Db {
    /// Opens the database, making it in a new store. One that cannot be used is [`StoreError::Damaged`].
    pub(crate) fn open(layout: &Layout) -> Result<Self, StoreError> {
        let (path, marker, gate) = (layout.database(), layout.damage_marker(), layout.join("gate"));
        let side = |connection| Ok::<_, StoreError>(Side { connection, gate: Gate::open(&gate)? });
        let fail = |source| database_error(&path, &marker, source);
        let guard = Gate::open(&gate)?;
        let shared = guard.shared()?;
        if marker.exists() {
            return Err(StoreError::Damaged { path });
        }
        // A backup without a database: somebody lost the latter.
        if !path.exists() && layout.backup().exists() {
            return Err(StoreError::Damaged { path });
        }
        let connection = connect(&path).map_err(fail)?;
        if is_short(&path) && !has_no_fault(&connection).map_err(fail)? {
            return Err(StoreError::Damaged { path });
        }
        match user_version(&connection).map_err(fail)? {
            SCHEMA_VERSION => {}
            0 => {
                drop(shared);
                let _alone = guard.exclusive()?;
                create(&connection).map_err(fail)?;
            }
            newer if newer > SCHEMA_VERSION => {
                let (found, known) = (format!("{newer} of its database"), SCHEMA_VERSION as u32);
                return Err(StoreError::Version { path: layout.root.clone(), found, known });
            }
            _ => {
                drop(shared);
                let _alone = guard.exclusive()?;
                migrate::bring_up(&connection, layout)?;
            }
        }
        let inode = std::fs::metadata(&path).map_err(StoreError::io("examine", &path))?.ino();
        let reader = Mutex::new(side(connection)?);
        Ok(Self { path, marker, gate, inode, reader, writer: Mutex::new(None) })
    }

    /// Looks at every page. A fault is marked, so that the next start repairs it.
    pub(crate) fn examine(&self) -> Result<(), StoreError> {
        if self.read(has_no_fault)? {
            return Ok(());
        }
        let _ = File::create(&self.marker);
        Err(StoreError::Damaged { path: self.path.clone() })
    }

    /// Whether it was found damaged, or has been replaced because of that.
    pub(crate) fn is_given_up(&self) -> bool {
        self.marker.exists() || !self.is_in_place()
    }

    fn is_in_place(&self) -> bool {
        std::fs::metadata(&self.path).is_ok_and(|metadata| metadata.ino() == self.inode)
    }

    /// Asks without relying on the answer for longer than this call.
    pub(crate) fn read<T>(&self, query: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T, StoreError> {
        query(&unpoisoned(&self.reader).connection).map_err(|source| self.failed(source))
    }

    /// Asks while no collection runs: what is put into the lease by `query` stays.
    pub(crate) fn read_guarded<T>(
        &self,
        query: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T, StoreError> {
        let side = unpoisoned(&self.reader);
        let _gate = side.gate.shared()?;
        query(&side.connection).map_err(|source| self.failed(source))
    }

    /// One transaction, which takes the write lock at its start: no deadlock between readers that turn writers.
    pub(crate) fn write<T>(&self, change: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T, StoreError> {
        self.write_files(|db| Ok(change(db)?))
    }

    /// One transaction in which files are renamed too.
    pub(crate) fn write_files<T>(
        &self,
        change: impl FnOnce(&Connection) -> Result<T, Inside>,
    ) -> Result<T, StoreError> {
        self.transaction(Gate::shared, change, |_, _| {})
    }

    /// One transaction while no other process relies on anything that its lease does not name. `then` runs after the
    /// commit, still alone. Neither may ask through `self`: a thread that waits for the gate has the reader.
    pub(crate) fn write_alone<T>(
        &self,
        change: impl FnOnce(&Connection) -> Result<T, Inside>,
        then: impl FnOnce(&Connection, &T),
    ) -> Result<T, StoreError> {
        self.transaction(Gate::exclusive, change, then)
    }

    fn transaction<T>(
        &self,
        enter: impl FnOnce(&Gate) -> Result<GateGuard<'_>, StoreError>,
        change: impl FnOnce(&Connection) -> Result<T, Inside>,
        then: impl FnOnce(&Connection, &T),
    ) -> Result<T, StoreError> {
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let side = match &mut *writer {
            Some(side) => side,
            empty => {
                let connection = connect(&self.path).map_err(|source| self.failed(source))?;
                empty.insert(Side { connection, gate: Gate::open(&self.gate)? })
            }
        };
        let _gate = enter(&side.gate)?;
        // Another process may have found it damaged and put another in its place. What we wrote would be lost.
        if !self.is_in_place() {
            return Err(StoreError::Replaced { path: self.path.clone() });
        }
        let connection = &mut side.connection;
        let run = || {
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let value = change(&transaction)?;
            transaction.commit()?;
            Ok(value)
        };
        let value = run().map_err(|error| match error {
            Inside::Sql(source) => self.failed(source),
            Inside::Store(error) => error,
        })?;
        then(connection, &value);
        Ok(value)
    }

    /// Brings the log into the database file if it is long: who opens the database reads all of it.
    pub(crate) fn shorten_log(&self) {
        const LONG: u64 = 256 << 10;
        let log = lock::with_suffix(&self.path, "-wal");
        let length = std::fs::metadata(&log).map_or(0, |metadata| metadata.len());
        if length > LONG {
            self.empty_log();
        }
    }

    /// Brings the log into the database file and gives its room back. A reader elsewhere may hinder it; then the log stays
    /// for now.
    pub(crate) fn empty_log(&self) {
        let _ = self.read(|db| db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get::<_, i64>(0)));
    }

    /// Brings what was committed to the disk.
    pub(crate) fn sync_log(&self) -> Result<(), StoreError> {
        let log = lock::with_suffix(&self.path, "-wal");
        match File::open(&log) {
            Ok(file) => file.sync_data().map_err(StoreError::io("sync", &log)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(StoreError::io("open", log)(error)),
        }
    }

    fn failed(&self, source: rusqlite::Error) -> StoreError {
        database_error(&self.path, &self.marker, source)
    }
}

fn unpoisoned<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic elsewhere leaves no transaction open: they roll back when dropped.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) fn connect(path: &Path) -> rusqlite::Result<Connection> {
    let mut connection = Connection::open(path)?;
    connection.busy_handler(Some(wait_for_others))?;
    // A checkpoint syncs, which must not happen while somebody waits for this process to end.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    connection.pragma_update(None, "synchronous", "NORMAL")?;
    connection.set_prepared_statement_cache_capacity(64);
    Ok(connection)
}

/// Called when another process writes. Transactions take well under a millisecond, so that short and even pauses are
/// fairer than SQLite's growing ones; after a minute something is stuck.
fn wait_for_others(times: i32) -> bool {
    std::thread::sleep(Duration::from_micros(if times < 20 { 500 } else { 3000 }));
    times < 20_000
}

pub(crate) fn user_version(connection: &Connection) -> rusqlite::Result<i64> {
    connection.pragma_query_value(None, "user_version", |row| row.get(0))
}

pub(crate) fn create(connection: &Connection) -> rusqlite::Result<()> {
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.execute_batch(&format!("BEGIN IMMEDIATE; {SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;"))
}

/// Damage is marked on disk, so that the next start repairs it: a process in the middle of its work cannot.
pub(crate) fn database_error(path: &Path, marker: &Path, source: rusqlite::Error) -> StoreError {
    if is_damage(&source) {
        let _ = File::create(marker);
        return StoreError::Damaged { path: path.to_owned() };
    }
    StoreError::Database { path: path.to_owned(), source }
}

/// SQLite notices some damage itself; of other pages it makes rows that nobody can have written.
fn is_damage(error: &rusqlite::Error) -> bool {
    use rusqlite::Error;
    let is_noticed = matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase));
    let is_nonsense = matches!(
        error,
        Error::InvalidColumnType(..) | Error::FromSqlConversionFailure(..) | Error::IntegralValueOutOfRange(..)
    );
    is_noticed || is_nonsense
}

/// Whether SQLite finds nothing wrong with any page.
pub(crate) fn has_no_fault(connection: &Connection) -> rusqlite::Result<bool> {
    let verdict = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get::<_, String>(0));
    match verdict {
        Ok(verdict) => Ok(verdict == "ok"),
        Err(error) if is_damage(&error) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Whether the file has fewer pages than it says. They may still be in the log; or something has cut it.
fn is_short(path: &Path) -> bool {
    let mut header = [0; 32];
    let read = |file: File| {
        file.read_exact_at(&mut header, 0)?;
        file.metadata()
    };
    let Ok(file) = File::open(path).and_then(read) else { return false };
    let page_size = match u16::from_be_bytes([header[16], header[17]]) {
        1 => 65_536,
        size => u64::from(size),
    };
    let pages = u32::from_be_bytes([header[28], header[29], header[30], header[31]]);
    file.len() < u64::from(pages) * page_size
}

/// See the module's text.
pub(crate) struct Gate {
    file: File,
    path: PathBuf,
}

/// Holds the gate.
pub(crate) struct GateGuard<'g>(&'g Gate);

impl Drop for GateGuard<'_> {
    fn drop(&mut self) {
        let _ = flock(&self.0.file, FlockOperation::Unlock);
    }
}

impl Gate {
    pub(crate) fn open(path: &Path) -> Result<Self, StoreError> {
        let file = lock::open(path).map_err(StoreError::io("open", path))?;
        Ok(Self { file, path: path.to_owned() })
    }

    pub(crate) fn shared(&self) -> Result<GateGuard<'_>, StoreError> {
        self.enter(FlockOperation::LockShared)
    }

    pub(crate) fn exclusive(&self) -> Result<GateGuard<'_>, StoreError> {
        self.enter(FlockOperation::LockExclusive)
    }

    fn enter(&self, operation: FlockOperation) -> Result<GateGuard<'_>, StoreError> {
        rustix::io::retry_on_intr(|| flock(&self.file, operation))
            .map_err(|error| StoreError::io("lock", &self.path)(error.into()))?;
        Ok(GateGuard(self))
    }
}

pub(crate) fn column_digest(row: &Row<'_>, column: usize) -> rusqlite::Result<Digest> {
    row.get(column).map(Digest::from_bytes)
}

pub(crate) fn column_optional_digest(row: &Row<'_>, column: usize) -> rusqlite::Result<Option<Digest>> {
    Ok(row.get::<_, Option<[u8; 32]>>(column)?.map(Digest::from_bytes))
}

pub(crate) fn column_content(row: &Row<'_>, column: usize) -> rusqlite::Result<ContentDigest> {
    row.get(column).map(ContentDigest::from_bytes)
}

/// Notes that a file is there. One that was there before keeps its row, and with it whether it is durable.
pub(crate) fn add_file(db: &Connection, kind: FileKind, digest: &Digest, size: u64) -> rusqlite::Result<()> {
    db.prepare_cached("INSERT OR IGNORE INTO files (kind, digest, size) VALUES (?1, ?2, ?3)")?
        .execute(rusqlite::params![kind as i64, digest.as_bytes(), size as i64])?;
    Ok(())
}

/// Whether a file is there and has its row. One without a row is what a killed process left, and may go at any time.
pub(crate) fn has_file(db: &Connection, kind: FileKind, digest: &Digest, path: &Path) -> rusqlite::Result<bool> {
    let mut row = db.prepare_cached("SELECT 1 FROM files WHERE kind = ?1 AND digest = ?2")?;
    Ok(row.exists(rusqlite::params![kind as i64, digest.as_bytes()])? && path.exists())
}

/// Forgets a file, so that its successor counts as new.
pub(crate) fn forget_file(db: &Connection, kind: FileKind, digest: &Digest) -> rusqlite::Result<()> {
    db.prepare_cached("DELETE FROM files WHERE kind = ?1 AND digest = ?2")?
        .execute(rusqlite::params![kind as i64, digest.as_bytes()])?;
    Ok(())
}
