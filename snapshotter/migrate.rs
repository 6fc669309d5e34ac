//! Stores that an earlier rbuild made.
//!
//! The database is brought up in one transaction: its tables are set aside under other names, those of today made, and all
//! rows taken over that today's tables have a place for. What an earlier version did not know gets what stands for
//! "unknown"; what is lost thereby is built again. A store of a later version is refused, since that one may rely on what this
//! one would not keep.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use graph::Digest;
use rusqlite::{Connection, ErrorCode, params};

use crate::db::{FileKind, SCHEMA, SCHEMA_VERSION, user_version};
use crate::layout::Layout;
use crate::usage::measure;
use crate::{StoreError, lease};

/// Columns that cannot be empty and that earlier versions had not: where their value comes from.
const SUBSTITUTES: [(&str, &str, &str); 1] = [("records", "used", "created")];

/// Brings a database to the tables of today. To be called alone behind the gate.
///
/// # Errors
/// An earlier rbuild has the store open, or the disk. A database that cannot be taken over is [`StoreError::Damaged`].
pub(crate) fn bring_up(connection: &Connection, layout: &Layout) -> Result<(), StoreError> {
    let path = layout.database();
    let failed = |source: rusqlite::Error| match source.sqlite_error_code() {
        Some(ErrorCode::DiskFull | ErrorCode::DatabaseBusy | ErrorCode::SystemIoFailure | ErrorCode::ReadOnly) => {
            StoreError::Database { path: path.clone(), source }
        }
        _ => StoreError::Damaged { path: path.clone() },
    };
    // Somebody else may have done it while we waited.
    if user_version(connection).map_err(failed)? == SCHEMA_VERSION {
        return Ok(());
    }
    // It would not understand the tables of today.
    if lease::living(layout, false)?.is_any() {
        return Err(StoreError::OlderInUse { path: layout.root.clone() });
    }
    take_over(connection, layout).map_err(failed)
}

/// As [`bring_up`], of a database that nobody else knows of.
pub(crate) fn take_over(connection: &Connection, layout: &Layout) -> rusqlite::Result<()> {
    connection.execute_batch("BEGIN IMMEDIATE")?;
    let done = convert(connection, layout).and_then(|()| connection.execute_batch("COMMIT"));
    if done.is_err() {
        // It has ended by itself where this fails.
        let _ = connection.execute_batch("ROLLBACK");
    }
    done
}

fn convert(db: &Connection, layout: &Layout) -> rusqlite::Result<()> {
    for index in names(db, "index")? {
        db.execute_batch(&format!("DROP INDEX {}", quoted(&index)))?;
    }
    let old = names(db, "table")?;
    for table in &old {
        db.execute_batch(&format!("ALTER TABLE {} RENAME TO {}", quoted(table), quoted(&aside(table))))?;
    }
    db.execute_batch(SCHEMA)?;
    let set_aside: BTreeSet<String> = old.iter().map(|table| aside(table)).collect();
    for table in names(db, "table")?.difference(&set_aside) {
        if old.contains(table) {
            take_over_rows(db, table)?;
        }
    }
    if old.contains("blobs") {
        files_of_the_first_version(db, layout)?;
    }
    for table in set_aside {
        db.execute_batch(&format!("DROP TABLE {}", quoted(&table)))?;
    }
    db.execute_batch(&format!("PRAGMA user_version = {SCHEMA_VERSION}"))
}

fn take_over_rows(db: &Connection, table: &str) -> rusqlite::Result<()> {
    let had = columns(db, &aside(table))?;
    let mut taken: BTreeMap<String, String> = BTreeMap::new();
    for column in columns(db, table)? {
        if had.contains(&column) {
            taken.insert(quoted(&column), quoted(&column));
        } else if let Some((_, _, from)) = SUBSTITUTES.iter().find(|(of, name, _)| (*of, *name) == (table, &*column)) {
            taken.insert(quoted(&column), quoted(from));
        }
    }
    let list = |names: Vec<&String>| names.into_iter().cloned().collect::<Vec<_>>().join(", ");
    let (to, from) = (list(taken.keys().collect()), list(taken.values().collect()));
    // A row that today's tables do not allow is one that is not known.
    db.execute_batch(&format!(
        "INSERT OR IGNORE INTO {} ({to}) SELECT {from} FROM {}",
        quoted(table),
        quoted(&aside(table))
    ))
}

/// The first version had a table of blobs, and took layers for unpacked whose directories were there.
fn files_of_the_first_version(db: &Connection, layout: &Layout) -> rusqlite::Result<()> {
    let add = "INSERT OR IGNORE INTO files (kind, digest, size, durable) VALUES (?1, ?2, ?3, ?4)";
    db.execute(
        &format!(
            "INSERT OR IGNORE INTO files (kind, digest, size, durable)
             SELECT {}, digest, size, durable FROM {}",
            FileKind::Blob as i64,
            quoted(&aside("blobs"))
        ),
        [],
    )?;
    let layers: Vec<([u8; 32], bool)> = db
        .prepare(&format!("SELECT chain, durable FROM {}", quoted(&aside("layers"))))?
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?
        .collect::<rusqlite::Result<_>>()?;
    for (chain, durable) in layers {
        let digest = Digest::from_bytes(chain);
        let snapshot = layout.snapshot(&digest);
        for (kind, path, shows) in [
            (FileKind::Snapshot, snapshot.clone(), snapshot.join("fs")),
            (FileKind::Index, layout.index(&digest), layout.index(&digest)),
        ] {
            if shows.exists() {
                let size = measure(&path, &mut HashSet::new());
                db.prepare_cached(add)?.execute(params![kind as i64, chain, size as i64, durable])?;
            }
        }
    }
    Ok(())
}

fn aside(table: &str) -> String {
    format!("before_{table}")
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// What there is of a kind, save what SQLite makes itself.
fn names(db: &Connection, kind: &str) -> rusqlite::Result<BTreeSet<String>> {
    db.prepare(
        "SELECT name FROM sqlite_master WHERE type = ?1 AND sql IS NOT NULL AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\'",
    )?
    .query_map([kind], |row| row.get(0))?
    .collect()
}

fn columns(db: &Connection, table: &str) -> rusqlite::Result<BTreeSet<String>> {
    db.prepare("SELECT name FROM pragma_table_info(?1)")?.query_map([table], |row| row.get(0))?.collect()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use graph::ContentDigest;

    use super::*;
    use crate::{CacheRecord, ImageKind, ImageRecord, LayerRecord, Store};

    /// The tables of version 1, as they were.
    const FIRST: &str = "
        CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
        CREATE TABLE blobs (
            digest BLOB PRIMARY KEY, size INTEGER NOT NULL, durable INTEGER NOT NULL DEFAULT 0) WITHOUT ROWID;
        CREATE TABLE layers (
            chain BLOB PRIMARY KEY, parent BLOB, diff_id BLOB NOT NULL, content BLOB NOT NULL, size INTEGER NOT NULL,
            writer INTEGER, created INTEGER, durable INTEGER NOT NULL DEFAULT 0) WITHOUT ROWID;
        CREATE INDEX layers_by_diff_id ON layers (diff_id);
        CREATE TABLE layer_blobs (
            diff_id BLOB NOT NULL, digest BLOB NOT NULL, media_type TEXT NOT NULL, size INTEGER NOT NULL,
            durable INTEGER NOT NULL DEFAULT 0, PRIMARY KEY (diff_id, digest)) WITHOUT ROWID;
        CREATE TABLE locations (
            digest BLOB NOT NULL, repository TEXT NOT NULL, PRIMARY KEY (digest, repository)) WITHOUT ROWID;
        CREATE TABLE records (
            key BLOB PRIMARY KEY, chain BLOB, content BLOB NOT NULL, definition BLOB NOT NULL, created INTEGER NOT NULL,
            durable INTEGER NOT NULL DEFAULT 0) WITHOUT ROWID;
        CREATE TABLE images (
            name TEXT PRIMARY KEY, config BLOB NOT NULL, manifest BLOB, manifest_type TEXT, manifest_size INTEGER,
            tagged INTEGER NOT NULL, durable INTEGER NOT NULL DEFAULT 0) WITHOUT ROWID;
        CREATE TABLE notes (
            kind TEXT NOT NULL, key TEXT NOT NULL, value TEXT NOT NULL, PRIMARY KEY (kind, key)) WITHOUT ROWID;
        PRAGMA user_version = 1;";

    struct Made {
        directory: tempfile::TempDir,
        chain: Digest,
        key: ContentDigest,
        config: Digest,
    }

    impl Made {
        fn root(&self) -> std::path::PathBuf {
            self.directory.path().join("store")
        }

        fn database(&self) -> Connection {
            Connection::open(self.root().join("db.sqlite")).unwrap()
        }

        #[track_caller]
        fn holds_everything(&self) {
            let store = Store::open(&self.root()).unwrap();
            assert_eq!(store.lookup(&self.key).unwrap().unwrap().chain, Some(self.chain));
            let snapshot = store.snapshot(&self.chain).unwrap().unwrap();
            assert_eq!(fs::read(snapshot.fs().join("file")).unwrap(), b"text");
            let image = store.image("docker.io/library/app:latest").unwrap().unwrap();
            assert_eq!(store.read_blob(&image.config).unwrap().unwrap(), b"{}");
            assert_eq!(store.note("http", "url").unwrap().as_deref(), Some("etag"));
            // Nothing is taken away as if nobody knew it, and it is known by its age.
            store.collect(&crate::CollectPolicy::default()).unwrap();
            assert!(store.snapshot(&self.chain).unwrap().is_some());
            assert_eq!(fs::read_to_string(self.root().join("version")).unwrap().trim(), "2");
        }
    }

    fn made() -> Made {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(&directory.path().join("store")).unwrap();
        let key = ContentDigest::of(b"key");
        let layer = LayerRecord::own(None, Digest::of(b"layer"), key, 1, jiff::Timestamp::now());
        let active = store.prepare().unwrap();
        fs::write(active.fs().join("file"), "text").unwrap();
        store.commit(active, &layer, b"index").unwrap();
        store.save(&[key], &CacheRecord { chain: Some(layer.chain), content: key, definition: key }).unwrap();
        let config = store.put_blob(b"{}").unwrap();
        let name = "docker.io/library/app:latest".into();
        store.put_image(&ImageRecord { name, config, manifest: None, kind: ImageKind::Tagged }).unwrap();
        store.put_note("http", "url", "etag").unwrap();
        Made { directory, chain: layer.chain, key, config }
    }

    #[test]
    fn the_version_before_is_brought_up() {
        let made = made();
        let db = made.database();
        db.execute_batch("ALTER TABLE images DROP COLUMN used; PRAGMA user_version = 2").unwrap();
        drop(db);
        fs::write(made.root().join("version"), "1\n").unwrap();
        made.holds_everything();
        // And only once.
        made.holds_everything();
    }

    #[test]
    fn the_first_version_is_brought_up() {
        let made = made();
        for suffix in ["", "-wal", "-shm"] {
            let _ = fs::remove_file(made.root().join(format!("db.sqlite{suffix}")));
        }
        let db = made.database();
        db.execute_batch(FIRST).unwrap();
        let (chain, key, config) = (made.chain.as_bytes(), made.key.as_bytes(), made.config.as_bytes());
        let boot = crate::recover::boot_id();
        db.execute("INSERT INTO meta VALUES ('boot', ?1)", [boot]).unwrap();
        db.execute("INSERT INTO blobs VALUES (?1, 2, 1)", [config]).unwrap();
        db.execute(
            "INSERT INTO layers VALUES (?1, NULL, ?2, ?3, 1, 1, 7, 1)",
            params![chain, Digest::of(b"layer").as_bytes(), key],
        )
        .unwrap();
        db.execute("INSERT INTO records VALUES (?1, ?2, ?1, ?1, 7, 1)", params![key, chain]).unwrap();
        let name = "docker.io/library/app:latest";
        db.execute("INSERT INTO images VALUES (?1, ?2, NULL, NULL, NULL, 1, 1)", params![name, config]).unwrap();
        db.execute("INSERT INTO notes VALUES ('http', 'url', 'etag')", []).unwrap();
        drop(db);
        fs::write(made.root().join("version"), "1\n").unwrap();
        made.holds_everything();
        let used: i64 = made.database().query_row("SELECT used FROM records", [], |row| row.get(0)).unwrap();
        assert!(used > 7, "it was found just now");
    }

    #[test]
    fn a_store_that_an_earlier_version_uses_is_left_alone() {
        let made = made();
        let store = Store::open(&made.root()).unwrap();
        made.database().execute_batch("ALTER TABLE images DROP COLUMN used; PRAGMA user_version = 2").unwrap();
        let refused = Store::open(&made.root()).err().unwrap();
        assert!(matches!(refused, StoreError::OlderInUse { .. }), "{refused}");
        assert_eq!(user_version(&made.database()).unwrap(), 2);
        drop(store);
        made.holds_everything();
    }

    #[test]
    fn an_earlier_version_that_makes_no_sense_is_set_aside() {
        let made = made();
        made.database()
            .execute_batch("DROP TABLE layers; CREATE VIEW layers AS SELECT * FROM nowhere; PRAGMA user_version = 2")
            .unwrap();
        let store = Store::open(&made.root()).unwrap();
        assert_eq!(store.lookup(&made.key).unwrap(), None);
        store.put_blob(b"{}").unwrap();
    }

    #[test]
    fn a_backup_of_an_earlier_version_is_of_use() {
        let made = made();
        drop(Store::open(&made.root()).unwrap().make_durable());
        let backup = Connection::open(made.root().join("db.backup")).unwrap();
        backup.execute_batch("ALTER TABLE images DROP COLUMN used; PRAGMA user_version = 2").unwrap();
        drop(backup);
        fs::write(made.root().join("db.sqlite"), "nothing that SQLite knows").unwrap();
        made.holds_everything();
    }
}
