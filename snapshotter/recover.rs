//! What is done at open about crashes: of the machine, and of the database.

use std::collections::HashSet;
use std::fs;
use std::path::Path;

use graph::{Digest, ImageConfig};
use rusqlite::{Connection, OptionalExtension};

use crate::db::{self, Db, FileKind, Gate, Inside, SCHEMA_VERSION};
use crate::form::trees;
use crate::layout::Layout;
use crate::reaper::Reaper;
use crate::{StoreError, lease, lock, migrate};

/// Sets a damaged database aside and puts the backup, or an empty one, in its place. What neither names is then removed by
/// [`after_crash`]. Alone by the gate; a process that still has the old one open finds that out when it writes.
pub(crate) fn replace_database(layout: &Layout) -> Result<Db, StoreError> {
    {
        let gate = Gate::open(&layout.join("gate"))?;
        let _alone = gate.exclusive()?;
        // Somebody else may have done it while we waited.
        if layout.damage_marker().exists() || !is_sound(&layout.database(), SCHEMA_VERSION) {
            set_aside(layout)?;
            restore(layout)?;
            remove(&layout.damage_marker())?;
        }
    }
    Db::open(layout)
}

/// Opens, is of this schema or one between `oldest` and it, and SQLite finds no fault with any page.
fn is_sound(path: &Path, oldest: i64) -> bool {
    let check = || -> rusqlite::Result<bool> {
        let connection = db::connect(path)?;
        Ok(db::has_no_fault(&connection)? && (oldest..=SCHEMA_VERSION).contains(&db::user_version(&connection)?))
    };
    path.exists() && check().unwrap_or(false)
}

fn set_aside(layout: &Layout) -> Result<(), StoreError> {
    let database = layout.database();
    let directory = layout.join(&format!("damaged-{}", jiff::Timestamp::now().as_millisecond()));
    fs::create_dir(&directory).map_err(StoreError::io("create", &directory))?;
    for suffix in ["", "-wal", "-shm"] {
        let name = lock::with_suffix(Path::new("db.sqlite"), suffix);
        match fs::rename(lock::with_suffix(&database, suffix), directory.join(name)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(StoreError::io("set aside", database)(error));
            }
            _ => {}
        }
    }
    // Nothing was there to look into.
    let _ = fs::remove_dir(&directory);
    Ok(())
}

fn restore(layout: &Layout) -> Result<(), StoreError> {
    let (database, fresh) = (layout.database(), layout.join("db.fresh"));
    for suffix in ["", "-wal", "-shm"] {
        remove(&lock::with_suffix(&fresh, suffix))?;
    }
    if is_sound(&layout.backup(), 1) {
        fs::copy(layout.backup(), &fresh).map_err(StoreError::io("restore", &database))?;
    } else {
        remove(&layout.backup())?;
    }
    let make = || -> rusqlite::Result<()> {
        let connection = db::connect(&fresh)?;
        match db::user_version(&connection)? {
            1..SCHEMA_VERSION => migrate::take_over(&connection, layout)?,
            _ => db::create(&connection)?,
        }
        connection.execute("DELETE FROM meta WHERE key IN ('boot', 'rebuilt')", [])?;
        // Says that the files must be compared with the rows, and that the machine need not have crashed for it.
        connection.execute("INSERT INTO meta VALUES ('rebuilt', ?1)", [boot_id()])?;
        connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
    };
    make().map_err(|source| StoreError::Database { path: fresh.clone(), source })?;
    fs::rename(&fresh, &database).map_err(StoreError::io("write", &database))?;
    for suffix in ["-wal", "-shm"] {
        remove(&lock::with_suffix(&fresh, suffix))?;
    }
    Ok(())
}

fn remove(path: &Path) -> Result<(), StoreError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(StoreError::io("remove", path)(error)),
        _ => Ok(()),
    }
}

/// After the machine went down: drops what was not yet durable, with its files, and all that rests on it.
///
/// The files go before the transaction ends: dying in between, the next process finds the boot unchanged and does it again.
pub(crate) fn after_crash(layout: &Layout, db: &Db, reaper: &Reaper) -> Result<(), StoreError> {
    let boot = boot_id();
    if db.read(noted_boot)?.as_deref() == Some(boot.as_str()) {
        return Ok(());
    }
    let repair = |db: &Connection| -> Result<(), Inside> {
        let noted = noted_boot(db)?;
        if noted.as_deref() == Some(boot.as_str()) {
            return Ok(());
        }
        let rebuilt: Option<String> =
            db.query_row("SELECT value FROM meta WHERE key = 'rebuilt'", [], |row| row.get(0)).optional()?;
        if rebuilt.as_deref() != Some(boot.as_str()) {
            db.execute("DELETE FROM files WHERE durable = 0", [])?;
        }
        drop_rows_without_files(db, layout)?;
        // Only after a repair can there be processes that hold anything: they began with the database that is set aside.
        sweep(db, layout, reaper, &lease::living(layout, true)?.held)?;
        drop_dangling(db, layout)?;
        db.execute("DELETE FROM meta WHERE key = 'rebuilt'", [])?;
        db.execute("INSERT OR REPLACE INTO meta VALUES ('boot', ?1)", [&boot])?;
        Ok(())
    };
    db.write_alone(repair, |_, ()| {})
}

fn noted_boot(db: &Connection) -> rusqlite::Result<Option<String>> {
    db.query_row("SELECT value FROM meta WHERE key = 'boot'", [], |row| row.get(0)).optional()
}

fn drop_rows_without_files(db: &Connection, layout: &Layout) -> rusqlite::Result<()> {
    let rows: Vec<(i64, i64, [u8; 32])> = db
        .prepare("SELECT seq, kind, digest FROM files")?
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?
        .collect::<rusqlite::Result<_>>()?;
    for (seq, kind, digest) in rows {
        let digest = Digest::from_bytes(digest);
        let path = match kind {
            kind if kind == FileKind::Blob as i64 => layout.blob(&digest),
            kind if kind == FileKind::Snapshot as i64 => layout.snapshot(&digest),
            kind if kind == FileKind::Merged as i64 => layout.merged(&digest),
            kind if kind == FileKind::Plain as i64 => layout.plain(&digest),
            _ => layout.index(&digest),
        };
        let is_there = match kind {
            kind if kind == FileKind::Snapshot as i64 || kind == FileKind::Plain as i64 => {
                trees(&path).next().is_some()
            }
            _ => path.exists(),
        };
        if !is_there {
            db.execute("DELETE FROM files WHERE seq = ?1", [seq])?;
        }
    }
    Ok(())
}

/// Takes away all files that no row names, save what is held. Alone by the gate, so that none is about to be named.
pub(crate) fn sweep(db: &Connection, layout: &Layout, reaper: &Reaper, held: &HashSet<[u8; 32]>) -> Result<(), Inside> {
    let kinds = [
        (FileKind::Blob, "blobs/sha256"),
        (FileKind::Snapshot, "snapshots"),
        (FileKind::Plain, "plain"),
        (FileKind::Index, "indexes"),
        (FileKind::Merged, "merged"),
    ];
    for (kind, directory) in kinds {
        let rows: Vec<[u8; 32]> = db
            .prepare("SELECT digest FROM files WHERE kind = ?1")?
            .query_map([kind as i64], |row| row.get(0))?
            .collect::<rusqlite::Result<_>>()?;
        let named: HashSet<String> = rows.iter().chain(held).map(|digest| Digest::from_bytes(*digest).hex()).collect();
        let path = layout.join(directory);
        for entry in fs::read_dir(&path).map_err(StoreError::io("read", &path))?.flatten() {
            if !entry.file_name().to_str().is_some_and(|name| named.contains(name)) {
                let path = entry.path();
                reaper.discard(&path).map_err(StoreError::io("remove", &path))?;
            }
        }
    }
    Ok(())
}

/// Layers none of whose forms is left, and which a registry does not have either. The bytes of a layer may also be in a
/// directory that was unpacked upon another parent.
const WITHOUT_DATA: &str = "
    NOT EXISTS (SELECT 1 FROM files WHERE kind = 1 AND digest = layers.diff_id)
    AND NOT EXISTS (SELECT 1 FROM layers AS other JOIN files ON files.kind = 2 AND files.digest = other.chain
                    WHERE other.diff_id = layers.diff_id)
    AND NOT EXISTS (SELECT 1 FROM layer_blobs AS blob WHERE blob.diff_id = layers.diff_id
                    AND (EXISTS (SELECT 1 FROM files WHERE kind = 1 AND digest = blob.digest)
                         OR EXISTS (SELECT 1 FROM locations WHERE locations.digest = blob.digest)))";

/// Drops records that rest on what is gone, until none does.
fn drop_dangling(db: &Connection, layout: &Layout) -> rusqlite::Result<()> {
    db.execute(&format!("DELETE FROM layers WHERE {WITHOUT_DATA}"), [])?;
    let orphans = "DELETE FROM layers WHERE parent IS NOT NULL AND parent NOT IN (SELECT chain FROM layers)";
    while db.execute(orphans, [])? > 0 {}
    db.execute("DELETE FROM records WHERE chain IS NOT NULL AND chain NOT IN (SELECT chain FROM layers)", [])?;
    let images: Vec<(String, [u8; 32], Option<[u8; 32]>, Option<String>)> = db
        .prepare("SELECT name, config, manifest, previous FROM images")?
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)))?
        .collect::<rusqlite::Result<_>>()?;
    for (name, config, manifest, previous) in images {
        let is_there = |manifest: Option<[u8; 32]>| match manifest {
            Some(manifest) => db
                .prepare_cached("SELECT 1 FROM files WHERE kind = ?1 AND digest = ?2")?
                .exists(rusqlite::params![FileKind::Blob as i64, manifest]),
            None => Ok(true),
        };
        let whole = is_whole(db, layout, &Digest::from_bytes(config))?;
        if whole && is_there(manifest)? {
            continue;
        }
        let previous = previous.and_then(|text| crate::image::Previous::decode(&text));
        match previous {
            Some(previous)
                if is_whole(db, layout, &previous.config)?
                    && is_there(previous.manifest.as_ref().map(|(manifest, _, _)| *manifest.as_bytes()))? =>
            {
                previous.restore(db, &name)?;
            }
            // A manifest can be made again.
            _ if whole => {
                let sql =
                    "UPDATE images SET manifest = NULL, manifest_type = NULL, manifest_size = NULL WHERE name = ?1";
                db.execute(sql, [&name])?;
            }
            _ => {
                db.execute("DELETE FROM images WHERE name = ?1", [&name])?;
            }
        }
    }
    Ok(())
}

fn is_whole(db: &Connection, layout: &Layout, config: &Digest) -> rusqlite::Result<bool> {
    let Some(chains) = chains_of(layout, config) else { return Ok(false) };
    let mut known = db.prepare_cached("SELECT 1 FROM layers WHERE chain = ?1")?;
    for chain in chains {
        if !known.exists([chain.as_bytes()])? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// The stacks of an image, the lowest first; `None`: its config is not there, or is none.
pub(crate) fn chains_of(layout: &Layout, config: &Digest) -> Option<Vec<Digest>> {
    /// More than any config has.
    const LIMIT: u64 = 16 << 20;
    let path = layout.blob(config);
    if fs::metadata(&path).ok()?.len() > LIMIT {
        return None;
    }
    let bytes = fs::read(path).ok()?;
    let config: ImageConfig = serde_json::from_slice(&bytes).ok()?;
    let mut chains: Vec<Digest> = Vec::with_capacity(config.rootfs.diff_ids.len());
    for diff_id in &config.rootfs.diff_ids {
        chains.push(diff_id.chain_upon(chains.last()));
    }
    Some(chains)
}

/// Names this boot of the machine (proc(5), `/proc/sys/kernel/random/boot_id`).
pub(crate) fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").map_or_else(|_| "unknown".into(), |id| id.trim().to_owned())
}
