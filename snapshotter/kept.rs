//! Steps that failed: what they left is kept for a while, so that a person can look at it.
//!
//! They are recorded as results are, under keys that nobody else can come to, and so are counted, used least recently and
//! taken back like these. Beside that there are bounds of their own, since nobody asked for them to be kept.

use std::time::Duration;

use graph::ContentDigest;
use rusqlite::Connection;
use serde::{Deserialize, Serialize};

use crate::gc::CollectPolicy;
use crate::record::CacheRecord;
use crate::{Store, StoreError};

/// Of the notes that say what is kept.
const KEPT: &str = "failed-step";

/// How much is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeepBounds {
    /// Steps.
    pub steps: usize,
    /// For how long.
    pub age: Duration,
    /// Bytes in all; the latest may have as many by itself.
    pub bytes: u64,
}

impl Default for KeepBounds {
    fn default() -> Self {
        Self { steps: 8, age: Duration::from_secs(7 * 24 * 60 * 60), bytes: 8 << 30 }
    }
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Note {
    /// Milliseconds.
    at: i64,
    bytes: u64,
    /// In hexadecimal.
    keys: Vec<String>,
}

impl Store {
    /// Keeps stacks for a person to look at, of which the first is known by the first key, and lets go of what is beyond the
    /// bounds, earlier steps first.
    ///
    /// # Errors
    /// The database or the disk.
    pub fn keep_failed(
        &self,
        stacks: &[(ContentDigest, CacheRecord)],
        bytes: u64,
        bounds: KeepBounds,
    ) -> Result<(), StoreError> {
        let Some((name, _)) = stacks.first() else { return Ok(()) };
        for (key, record) in stacks {
            self.save(&[*key], record)?;
        }
        let now = jiff::Timestamp::now().as_millisecond();
        let note = Note { at: now, bytes, keys: stacks.iter().map(|(key, _)| key.hex()).collect() };
        self.put_note(KEPT, &name.hex(), &serde_json::to_string(&note).unwrap_or_default())?;
        if self.db.write(|db| let_go(db, bounds, now))? > 0 {
            self.collect(&CollectPolicy::default())?;
        }
        Ok(())
    }
}

/// Forgets what is too much; how many.
fn let_go(db: &Connection, bounds: KeepBounds, now: i64) -> rusqlite::Result<usize> {
    let mut statement = db.prepare("SELECT key, value FROM notes WHERE kind = ?1")?;
    let notes = statement.query_map([KEPT], |row| Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?)))?;
    // What cannot be read is the oldest there is.
    let mut notes: Vec<(String, Note)> = notes
        .map(|note| note.map(|(key, text)| (key, serde_json::from_str(&text).unwrap_or_default())))
        .collect::<rusqlite::Result<_>>()?;
    notes.sort_by_key(|(_, note)| std::cmp::Reverse(note.at));
    let oldest = now.saturating_sub(i64::try_from(bounds.age.as_millis()).unwrap_or(i64::MAX));
    let (mut bytes, mut gone) = (0_u64, 0);
    for (position, (key, note)) in notes.iter().enumerate() {
        bytes = bytes.saturating_add(note.bytes);
        if position < bounds.steps && note.at >= oldest && bytes <= bounds.bytes {
            continue;
        }
        for key in note.keys.iter().filter_map(|key| hex(key)) {
            db.prepare_cached("DELETE FROM records WHERE key = ?1")?.execute([key])?;
        }
        gone += db.prepare_cached("DELETE FROM notes WHERE kind = ?1 AND key = ?2")?.execute([KEPT, key])?;
    }
    Ok(gone)
}

fn hex(text: &str) -> Option<[u8; 32]> {
    let digest: graph::Digest = format!("sha256:{text}").parse().ok()?;
    Some(*digest.as_bytes())
}

#[cfg(test)]
mod tests {
    use graph::Digest;

    use super::*;
    use crate::LayerRecord;

    fn layer(store: &Store, name: &str) -> (ContentDigest, CacheRecord) {
        let diff_id = Digest::of(name.as_bytes());
        let mut blob = store.blob_writer().expect("a blob");
        std::io::Write::write_all(&mut blob, name.as_bytes()).expect("write");
        blob.commit(Some(&diff_id)).expect("commit");
        let record = LayerRecord::foreign(None, diff_id);
        store.put_layer(&record).expect("put");
        let content = ContentDigest::of(name.as_bytes());
        (content, CacheRecord { chain: Some(record.chain), content, definition: content })
    }

    #[test]
    fn what_is_too_much_goes_and_the_latest_stays() {
        let directory = tempfile::tempdir().expect("a directory");
        let root = directory.path().join("store");
        let bounds = KeepBounds { steps: 2, age: Duration::from_secs(3600), bytes: 100 };
        let mut all = Vec::new();
        for (name, bytes) in [("one", 10), ("two", 10), ("three", 10), ("four", 95)] {
            // Each build is a process of its own, which relies on nothing any more when the next one comes.
            let store = Store::open(&root).expect("a store");
            let stacks = [layer(&store, name), layer(&store, &format!("{name}'s mount"))];
            store.keep_failed(&stacks, bytes, bounds).expect("kept");
            all.push(stacks);
        }
        let store = Store::open(&root).expect("a store");
        let here = |number: usize| {
            let stacks: &[(ContentDigest, CacheRecord); 2] = &all[number];
            stacks.each_ref().map(|(key, _)| store.lookup(key).expect("the database").is_some())
        };
        // The fourth is too large for the third to stay.
        assert_eq!([here(0), here(1), here(2), here(3)], [[false; 2], [false; 2], [false; 2], [true; 2]]);
        let blobs = std::fs::read_dir(root.join("blobs/sha256")).expect("a directory").count();
        assert_eq!(blobs, 2, "what nothing needs any more is gone");
        let old = store.db.write(|db| let_go(db, bounds, i64::MAX)).expect("the database");
        assert_eq!(old, 1, "after an hour");
    }
}
