//! Digests of the caller's files by what stat says of them, so that unchanged files are not read again.
//!
//! One file per context directory: loading is one read. The racy case is guarded as in Git: a file that changed so shortly
//! before it was read that a later change could leave the same times is not remembered.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use graph::ContentDigest;
use rustix::fs::Stat;

use crate::blob::{hashed_name, write_file};
use crate::{Store, StoreError};

/// What identifies a state of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StatKey {
    device: u64,
    inode: u64,
    size: u64,
    /// Nanoseconds since 1970.
    mtime: i64,
    ctime: i64,
}

impl StatKey {
    /// From stat(2).
    #[must_use]
    pub fn of(stat: &Stat) -> Self {
        let nanos = |seconds: i64, nanos: u64| seconds.wrapping_mul(1_000_000_000).wrapping_add(nanos as i64);
        Self {
            device: stat.st_dev,
            inode: stat.st_ino,
            size: u64::try_from(stat.st_size).unwrap_or(0),
            mtime: nanos(stat.st_mtime, stat.st_mtime_nsec),
            ctime: nanos(stat.st_ctime, stat.st_ctime_nsec),
        }
    }

    /// A made-up state of a file.
    #[cfg(test)]
    pub(crate) fn of_numbers(inode: u64) -> Self {
        Self { device: 1, inode, size: 5, mtime: 6, ctime: 7 }
    }

    /// Whether a change after `read` (nanoseconds since 1970) could leave these times as they are. The kernel stamps files
    /// with the time of its last tick, some file systems with whole seconds.
    fn is_racy(&self, read: i64) -> bool {
        let newest = self.mtime.max(self.ctime);
        let whole_seconds = self.mtime % 1_000_000_000 == 0 && self.ctime % 1_000_000_000 == 0;
        let granularity = if whole_seconds { 2_000_000_000 } else { 20_000_000 };
        newest >= read - granularity
    }
}

/// What is known of a file in one state. A change of either would change the file's ctime.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StatFacts {
    /// Of its data.
    pub digest: ContentDigest,
    /// It has no extended attributes that layers keep.
    pub is_plain: bool,
}

/// Bytes of one remembered file.
const RECORD: usize = 5 * 8 + 32 + 1;
const MAGIC: &[u8; 8] = b"rbstat3\n";
/// Bytes of the blake3 of all records at the end: a file torn by a crash of the machine could otherwise give a file the
/// digest of nothing.
const SEAL: usize = 32;

/// Most files that are remembered of one directory.
const MOST: usize = 2_000_000;

/// A hash for pairs of numbers that nobody chooses to our harm; the standard one takes most of the time of a load.
#[derive(Debug, Default)]
struct Mix(u64);

impl Hasher for Mix {
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u64(u64::from(*byte)));
    }

    fn write_u64(&mut self, number: u64) {
        let product = u128::from(self.0 ^ number ^ 0x9e37_79b9_7f4a_7c15) * 0xf39c_c060_5ced_c835;
        self.0 = (product >> 64) as u64 ^ product as u64;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// The remembered digests of one directory.
#[derive(Debug)]
pub struct StatCache {
    path: Option<PathBuf>,
    began: i64,
    /// The file, and where in it the record of a device and inode begins: a load decodes nothing.
    bytes: Vec<u8>,
    known: HashMap<(u64, u64), u32, BuildHasherDefault<Mix>>,
    new: Mutex<Vec<(StatKey, StatFacts)>>,
}

impl StatCache {
    /// Knows nothing and remembers nothing.
    #[must_use]
    pub fn empty() -> Self {
        Self { path: None, began: now(), bytes: Vec::new(), known: HashMap::default(), new: Mutex::default() }
    }

    /// How many files it knows.
    #[must_use]
    pub fn len(&self) -> usize {
        self.known.len()
    }

    /// Whether it knows none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.known.is_empty()
    }

    /// What is known of a file in this state.
    #[must_use]
    pub fn get(&self, key: &StatKey) -> Option<StatFacts> {
        let at = *self.known.get(&(key.device, key.inode))? as usize;
        let (known, facts) = decode(self.bytes.get(at..at + RECORD)?);
        (known == *key).then_some(facts)
    }

    /// Remembers a file whose state was taken before its bytes and attributes were read.
    pub fn put(&self, key: &StatKey, facts: StatFacts) {
        if self.path.is_some() && !key.is_racy(self.began) {
            self.new.lock().unwrap_or_else(PoisonError::into_inner).push((*key, facts));
        }
    }
}

impl Store {
    /// What is remembered of the files below `root`. A damaged file is as good as none.
    ///
    /// # Errors
    /// None today.
    pub fn stat_cache(&self, root: &Path) -> Result<StatCache, StoreError> {
        let root = root.canonicalize().unwrap_or_else(|_| root.to_owned());
        let path = self.layout.join("stat").join(hashed_name("stat/1", root.as_os_str().as_bytes()));
        let bytes = std::fs::read(&path).unwrap_or_default();
        let place = |(number, record): (usize, &[u8])| {
            let (key, _) = decode(record);
            let at = u32::try_from(MAGIC.len() + number * RECORD).ok()?;
            Some(((key.device, key.inode), at))
        };
        let known = unsealed(&bytes).chunks_exact(RECORD).enumerate().map_while(place).collect();
        Ok(StatCache { path: Some(path), began: now(), bytes, known, new: Mutex::default() })
    }

    /// Keeps what was learnt. Of two processes the later one wins; that costs a read, no more.
    ///
    /// # Errors
    /// The disk.
    pub fn save_stat_cache(&self, cache: &StatCache) -> Result<(), StoreError> {
        let new = cache.new.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(path) = &cache.path else { return Ok(()) };
        if new.is_empty() {
            return Ok(());
        }
        let new: HashMap<(u64, u64), &(StatKey, StatFacts)> =
            new.iter().map(|state| ((state.0.device, state.0.inode), state)).collect();
        // A directory whose files come and go would make it grow for ever; what is dropped costs one read each.
        let kept = if cache.known.len() > MOST { &[] } else { unsealed(&cache.bytes) };
        let mut bytes = Vec::with_capacity(MAGIC.len() + kept.len() + new.len() * RECORD + SEAL);
        bytes.extend_from_slice(MAGIC);
        for record in kept.chunks_exact(RECORD) {
            let (key, _) = decode(record);
            if !new.contains_key(&(key.device, key.inode)) {
                bytes.extend_from_slice(record);
            }
        }
        for (key, facts) in new.values() {
            for number in [key.device, key.inode, key.size, key.mtime as u64, key.ctime as u64] {
                bytes.extend_from_slice(&number.to_le_bytes());
            }
            bytes.extend_from_slice(facts.digest.as_bytes());
            bytes.push(facts.is_plain.into());
        }
        let seal = blake3::hash(&bytes[MAGIC.len()..]);
        bytes.extend_from_slice(seal.as_bytes());
        write_file(self, path, &bytes)
    }
}

/// The records of a file that is as it was written.
fn unsealed(bytes: &[u8]) -> &[u8] {
    let Some((records, seal)) = bytes.strip_prefix(MAGIC.as_slice()).and_then(|rest| rest.split_last_chunk::<SEAL>())
    else {
        return &[];
    };
    if blake3::hash(records).as_bytes() == seal { records } else { &[] }
}

fn decode(record: &[u8]) -> (StatKey, StatFacts) {
    let number = |at: usize| u64::from_le_bytes(record[at * 8..at * 8 + 8].try_into().unwrap_or_default());
    let key = StatKey {
        device: number(0),
        inode: number(1),
        size: number(2),
        mtime: number(3) as i64,
        ctime: number(4) as i64,
    };
    let digest = ContentDigest::from_bytes(record[40..72].try_into().unwrap_or_default());
    (key, StatFacts { digest, is_plain: record[72] == 1 })
}

fn now() -> i64 {
    i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_torn_file_is_as_good_as_none() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(&directory.path().join("store")).unwrap();
        let known = StatKey::of_numbers;
        let cache = store.stat_cache(directory.path()).unwrap();
        for number in 0..100_u64 {
            let digest = ContentDigest::of(&number.to_le_bytes());
            cache.put(&known(number), StatFacts { digest, is_plain: number % 2 == 0 });
        }
        store.save_stat_cache(&cache).unwrap();
        let again = store.stat_cache(directory.path()).unwrap();
        assert!((0..100).all(|number| again.get(&known(number)).is_some_and(|it| it.is_plain == (number % 2 == 0))));
        let path = cache.path.unwrap();
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[4096..].fill(0);
        std::fs::write(&path, bytes).unwrap();
        assert!((0..100).all(|number| store.stat_cache(directory.path()).unwrap().get(&known(number)).is_none()));
    }

    #[test]
    fn a_file_changed_just_now_is_not_remembered() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(&directory.path().join("store")).unwrap();
        let file = directory.path().join("file");
        std::fs::write(&file, "x").unwrap();
        let key = StatKey::of(&rustix::fs::stat(&file).unwrap());
        let facts = StatFacts { digest: ContentDigest::of(b"x"), is_plain: true };
        let cache = store.stat_cache(directory.path()).unwrap();
        cache.put(&key, facts);
        store.save_stat_cache(&cache).unwrap();
        assert_eq!(store.stat_cache(directory.path()).unwrap().get(&key), None);

        std::thread::sleep(std::time::Duration::from_millis(60));
        let cache = store.stat_cache(directory.path()).unwrap();
        cache.put(&key, facts);
        store.save_stat_cache(&cache).unwrap();
        let cache = store.stat_cache(directory.path()).unwrap();
        assert_eq!(cache.get(&key), Some(facts));
        std::fs::write(&file, "y").unwrap();
        assert_eq!(cache.get(&StatKey::of(&rustix::fs::stat(&file).unwrap())), None);
    }
}
