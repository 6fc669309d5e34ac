//! The database: SQLite in WAL mode, because several processes share it.
//!
//! `synchronous=NORMAL` does not sync per transaction: a process that dies loses nothing, since what it wrote is in the
//! kernel; a machine that dies loses the latest transactions but never consistency. What the lost tail would have said of
//! files is dealt with by the `durable` columns.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use graph::{ContentDigest, Digest};
use rusqlite::{Connection, Row, TransactionBehavior};

use crate::StoreError;

/// How long a transaction waits for those of other processes.
const BUSY: Duration = Duration::from_secs(60);

const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS blobs (
        digest BLOB PRIMARY KEY, size INTEGER NOT NULL, durable INTEGER NOT NULL DEFAULT 0) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS layers (
        chain BLOB PRIMARY KEY, parent BLOB, diff_id BLOB NOT NULL, content BLOB NOT NULL, size INTEGER NOT NULL,
        writer INTEGER, created INTEGER, durable INTEGER NOT NULL DEFAULT 0) WITHOUT ROWID;
    CREATE INDEX IF NOT EXISTS layers_by_diff_id ON layers (diff_id);
    CREATE TABLE IF NOT EXISTS layer_blobs (
        diff_id BLOB NOT NULL, digest BLOB NOT NULL, media_type TEXT NOT NULL, size INTEGER NOT NULL,
        durable INTEGER NOT NULL DEFAULT 0, PRIMARY KEY (diff_id, digest)) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS locations (
        digest BLOB NOT NULL, repository TEXT NOT NULL, PRIMARY KEY (digest, repository)) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS records (
        key BLOB PRIMARY KEY, chain BLOB, content BLOB NOT NULL, definition BLOB NOT NULL, created INTEGER NOT NULL,
        durable INTEGER NOT NULL DEFAULT 0) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS images (
        name TEXT PRIMARY KEY, config BLOB NOT NULL, manifest BLOB, manifest_type TEXT, manifest_size INTEGER,
        tagged INTEGER NOT NULL, durable INTEGER NOT NULL DEFAULT 0) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS notes (
        kind TEXT NOT NULL, key TEXT NOT NULL, value TEXT NOT NULL, PRIMARY KEY (kind, key)) WITHOUT ROWID;
";

/// The tables whose rows stand for files.
pub(crate) const TABLES: [&str; 5] = ["blobs", "layers", "layer_blobs", "records", "images"];

pub(crate) struct Db {
    connection: Mutex<Connection>,
    path: PathBuf,
}

impl Db {
    pub(crate) fn open(path: &Path) -> Result<Self, StoreError> {
        let connect = || -> rusqlite::Result<Connection> {
            let connection = Connection::open(path)?;
            connection.busy_timeout(BUSY)?;
            connection.pragma_update(None, "journal_mode", "WAL")?;
            connection.pragma_update(None, "synchronous", "NORMAL")?;
            connection.set_prepared_statement_cache_capacity(64);
            let made: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
            if made == 0 {
                connection.execute_batch(&format!("BEGIN IMMEDIATE; {SCHEMA} PRAGMA user_version = 1; COMMIT;"))?;
            }
            Ok(connection)
        };
        let connection = connect().map_err(|source| StoreError::Database { path: path.to_owned(), source })?;
        Ok(Self { connection: Mutex::new(connection), path: path.to_owned() })
    }

    fn lock(&self) -> MutexGuard<'_, Connection> {
        // A panic elsewhere leaves no transaction open: they roll back when dropped.
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn read<T>(&self, query: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T, StoreError> {
        query(&self.lock()).map_err(|source| StoreError::Database { path: self.path.clone(), source })
    }

    /// One transaction, which takes the write lock at its start: no deadlock between readers that turn writers.
    pub(crate) fn write<T>(&self, change: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T, StoreError> {
        let mut connection = self.lock();
        let run = || {
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let value = change(&transaction)?;
            transaction.commit()?;
            Ok(value)
        };
        run().map_err(|source| StoreError::Database { path: self.path.clone(), source })
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
