//! Taking space back: what is asked for, or the least recently used until a limit is kept.
//!
//! What pruning takes are recorded results, bases that nobody named, cache mounts and broken-off downloads; layers go when
//! nothing needs them any more. Images that have a name, and what running processes rely on, are never taken.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::sync::PoisonError;

use graph::Digest;
use rustix::fs::{FlockOperation, flock};

use crate::db::FileKind;
use crate::gc::{CollectPolicy, Forget, Marked};
use crate::usage::{CACHE_MOUNT, CacheMountNote, Facts, UsageItem, UsageKind, cache_mount_digest, measure};
use crate::{Store, StoreError, lease};

/// What may be taken.
#[derive(Debug, Clone, Default)]
pub struct PrunePolicy {
    /// Only what was not used since.
    pub unused_since: Option<jiff::Timestamp>,
    /// Only these, by the ids that [`Store::usage`] gives them; `None`: all.
    pub items: Option<HashSet<String>>,
    /// What rests on them as well: as long as it is there, they stay.
    pub and_above: bool,
    /// Bases that builds pulled, too.
    pub bases: bool,
    /// Only as much as brings the store down to so many bytes, the least recently used first.
    pub keep: Option<u64>,
    /// Only as much as leaves so many bytes of the disk free, likewise.
    pub free: Option<u64>,
    /// So many bytes stay, whatever [`Self::keep`] and [`Self::free`] say.
    pub reserved: Option<u64>,
}

impl PrunePolicy {
    /// To how many bytes the store is to come down; `None`: whatever fits goes. As BuildKit reckons it.
    fn goal(&self, total: u64, disk_free: u64) -> Option<u64> {
        let Self { keep, free, reserved, .. } = self;
        if keep.is_none() && free.is_none() && reserved.is_none() {
            return None;
        }
        let for_disk = free.map(|free| total.saturating_sub(free.saturating_sub(disk_free)));
        let goal = match (*keep, for_disk) {
            (Some(keep), Some(for_disk)) => keep.min(for_disk),
            (None, Some(goal)) | (Some(goal), None) => goal,
            (None, None) => 0,
        };
        Some(goal.max(reserved.unwrap_or(0)))
    }
}

/// What was taken.
#[derive(Debug, Clone, Default)]
pub struct Pruned {
    /// What is there no more, with the sizes that it had.
    pub items: Vec<UsageItem>,
    /// Bytes on the disk.
    pub freed: u64,
    /// Bytes that the store has now.
    pub left: u64,
}

/// Something that can be taken by itself.
#[derive(Debug, Clone)]
enum Unit {
    /// The recorded results with this stack.
    Results([u8; 32]),
    Base(String),
    CacheMount(String),
    Download(String),
}

struct Candidate {
    unit: Unit,
    used: i64,
    /// Layers that it keeps.
    layers: Vec<[u8; 32]>,
    /// What goes with it for certain.
    size: u64,
    id: String,
}

/// Sizes by what has them, as far as they are known.
#[derive(Default)]
struct Sizes {
    layers: HashMap<[u8; 32], u64>,
    mounts: HashMap<String, u64>,
    downloads: HashMap<String, u64>,
    total: u64,
}

impl Store {
    /// Takes what the policy says and nothing needs.
    ///
    /// # Errors
    /// The database or the disk.
    pub fn prune(&self, policy: &PrunePolicy) -> Result<Pruned, StoreError> {
        // The database's log takes room too, now and when all is taken; what is reported as freed is without it.
        self.db.empty_log();
        let before = self.usage()?;
        let disk = rustix::fs::statvfs(self.root());
        let disk = disk.map_err(|error| StoreError::io("examine", self.root())(error.into()))?;
        let policy = &PrunePolicy { keep: policy.goal(before.total, disk.f_bavail * disk.f_frsize), ..policy.clone() };
        let mut sizes = Sizes { total: before.total, ..Sizes::default() };
        for item in &before.items {
            match item.kind {
                UsageKind::Layer => {
                    if let Ok(chain) = item.id.parse::<Digest>() {
                        sizes.layers.insert(*chain.as_bytes(), item.size);
                    }
                }
                UsageKind::CacheMount => drop(sizes.mounts.insert(item.id.clone(), item.size)),
                UsageKind::Download => drop(sizes.downloads.insert(item.id.clone(), item.size)),
                UsageKind::Image | UsageKind::Internal => {}
            }
        }
        self.take(policy, &sizes, true)?;
        self.db.empty_log();
        let after = self.usage()?;
        let stay: HashSet<(UsageKind, &str)> = after.items.iter().map(|item| (item.kind, &*item.id)).collect();
        let gone = |item: &&UsageItem| !stay.contains(&(item.kind, &*item.id));
        Ok(Pruned {
            items: before.items.iter().filter(gone).cloned().collect(),
            freed: before.total.saturating_sub(after.total),
            left: after.total,
        })
    }

    /// Keeps the store below `limit` bytes, by what the database knows of sizes: cheap while there is room. With `at_end`
    /// this process no longer relies on anything. Answers how large the store is.
    ///
    /// # Errors
    /// The database or the disk.
    pub fn keep_below(&self, limit: u64, at_end: bool) -> Result<u64, StoreError> {
        if at_end {
            self.measure_cache_mounts()?;
        }
        let sizes = self.known_sizes()?;
        if sizes.total <= limit {
            return Ok(sizes.total);
        }
        // A little more than needed, or every further step would have to do it again.
        let policy = PrunePolicy { bases: true, keep: Some(limit - limit / 20), ..PrunePolicy::default() };
        self.take(&policy, &sizes, at_end)?;
        if at_end {
            // The limit is the disk's, not the database's.
            self.settle();
        }
        Ok(self.known_sizes()?.total)
    }

    /// Notes the sizes of the cache mounts that this process has used.
    fn measure_cache_mounts(&self) -> Result<(), StoreError> {
        let used = std::mem::take(&mut *self.used_mounts.lock().unwrap_or_else(PoisonError::into_inner));
        for name in used {
            let size = measure(&self.layout.join("cache-mounts").join(&name), &mut HashSet::new());
            let note = self.note(CACHE_MOUNT, &name)?.and_then(|text| serde_json::from_str(&text).ok());
            let note = CacheMountNote { size, ..note.unwrap_or_default() };
            self.put_note(CACHE_MOUNT, &name, &serde_json::to_string(&note).unwrap_or_default())?;
        }
        Ok(())
    }

    fn known_sizes(&self) -> Result<Sizes, StoreError> {
        const BLOCK: u64 = 4096;
        let mut sizes = Sizes::default();
        self.db.read(|db| {
            let mut blobs: HashMap<[u8; 32], [u8; 32]> = HashMap::new();
            let mut statement = db.prepare(
                "SELECT diff_id, diff_id, chain FROM layers UNION ALL
                 SELECT layer_blobs.digest, layers.diff_id, chain FROM layer_blobs JOIN layers USING (diff_id)",
            )?;
            let mut rows = statement.query([])?;
            while let Some(row) = rows.next()? {
                blobs.entry(row.get(0)?).or_insert(row.get(2)?);
            }
            let mut statement = db.prepare("SELECT kind, digest, size FROM files")?;
            let mut rows = statement.query([])?;
            while let Some(row) = rows.next()? {
                let (kind, digest, size): (i64, [u8; 32], i64) = (row.get(0)?, row.get(1)?, row.get(2)?);
                let size = (size as u64).next_multiple_of(BLOCK);
                sizes.total += size;
                let chain = if kind == FileKind::Blob as i64 { blobs.get(&digest).copied() } else { Some(digest) };
                if let Some(chain) = chain {
                    *sizes.layers.entry(chain).or_default() += size;
                }
            }
            let mut statement = db.prepare("SELECT key, value FROM notes WHERE kind = ?1")?;
            let mut rows = statement.query([CACHE_MOUNT])?;
            while let Some(row) = rows.next()? {
                let note: CacheMountNote = serde_json::from_str(&row.get::<_, String>(1)?).unwrap_or_default();
                sizes.total += note.size;
                sizes.mounts.insert(row.get(0)?, note.size);
            }
            Ok(())
        })?;
        for entry in fs::read_dir(self.layout.join("ingest")).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.ends_with(crate::partial::SUFFIX) {
                let size = measure(&entry.path(), &mut HashSet::new());
                sizes.total += size;
                sizes.downloads.insert(name, size);
            }
        }
        // The database and its log, what is remembered of builds and files, what is being made or removed: few files.
        const KNOWN: [&str; 7] = ["snapshots", "plain", "merged", "indexes", "blobs", "cache-mounts", "ingest"];
        for entry in fs::read_dir(&self.layout.root).into_iter().flatten().flatten() {
            if !KNOWN.iter().any(|name| entry.file_name() == *name) {
                sizes.total += measure(&entry.path(), &mut HashSet::new());
            }
        }
        Ok(sizes)
    }

    fn take(&self, policy: &PrunePolicy, sizes: &Sizes, ignore_own: bool) -> Result<(), StoreError> {
        self.note_use()?;
        let own = ignore_own.then(std::process::id);
        let mut leases = lease::living_by_process(&self.layout)?;
        leases.retain(|(process, _)| own != Some(*process));
        let (facts, mut candidates, bases) = self.db.read(|db| {
            let facts = Facts::read(self, db, &leases, None)?;
            let mut candidates: Vec<Candidate> = Vec::new();
            let mut statement =
                db.prepare("SELECT chain, max(used) FROM records WHERE chain IS NOT NULL GROUP BY chain")?;
            let rows: Vec<([u8; 32], i64)> =
                statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect::<rusqlite::Result<_>>()?;
            for (chain, used) in rows {
                candidates.push(Candidate {
                    unit: Unit::Results(chain),
                    used,
                    layers: facts.stack(chain),
                    size: 0,
                    id: Digest::from_bytes(chain).to_string(),
                });
            }
            // What nobody named goes before the limit is broken.
            let unnamed = if policy.keep.is_some() { "OR name LIKE '<none>@%'" } else { "" };
            let sql = format!("SELECT name, config, used FROM images WHERE tagged = 0 {unnamed}");
            let mut statement = db.prepare(&sql)?;
            let bases: Vec<(String, [u8; 32], i64)> = statement
                .query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?
                .collect::<rusqlite::Result<_>>()?;
            Ok((facts, candidates, bases))
        })?;
        if policy.bases {
            for (name, config, used) in bases {
                let chains = crate::recover::chains_of(&self.layout, &Digest::from_bytes(config)).unwrap_or_default();
                let layers: Vec<[u8; 32]> = chains.iter().map(|chain| *chain.as_bytes()).collect();
                let used = layers.iter().filter_map(|layer| facts.last_used.get(layer)).copied().fold(used, i64::max);
                let id = Digest::from_bytes(config).to_string();
                candidates.push(Candidate { unit: Unit::Base(name), used, layers, size: 0, id });
            }
        }
        for (name, size) in &sizes.mounts {
            let used = facts.cache_mount(name).map_or(0, |note| note.used);
            let unit = Unit::CacheMount(name.clone());
            candidates.push(Candidate { unit, used, layers: Vec::new(), size: *size, id: name.clone() });
        }
        for (name, size) in &sizes.downloads {
            let unit = Unit::Download(name.clone());
            let modified = fs::metadata(self.layout.join("ingest").join(name)).and_then(|file| file.modified());
            let modified = modified.ok().and_then(|time| jiff::Timestamp::try_from(time).ok());
            let used = modified.map_or(0, jiff::Timestamp::as_millisecond);
            candidates.push(Candidate { unit, used, layers: Vec::new(), size: *size, id: name.clone() });
        }
        let chosen = choose(policy, &facts, candidates, sizes);
        self.carry_out(chosen, policy, ignore_own)
    }

    fn carry_out(&self, chosen: Vec<Unit>, policy: &PrunePolicy, ignore_own: bool) -> Result<(), StoreError> {
        let mut forget = Forget { ignore_own, ..Forget::default() };
        for unit in chosen {
            match unit {
                Unit::Results(chain) => forget.results.push(chain),
                Unit::Base(name) => forget.bases.push(name),
                Unit::CacheMount(name) => forget.mounts.push(name),
                Unit::Download(name) => {
                    let path = self.layout.join("ingest").join(name);
                    let free = |file: &fs::File| flock(file, FlockOperation::NonBlockingLockExclusive).is_ok();
                    if fs::File::open(&path).is_ok_and(|file| free(&file)) {
                        let _ = fs::remove_file(&path);
                    }
                }
            }
        }
        // Results without a file system.
        forget.empty_results = policy.keep.is_none() && policy.items.is_none();
        forget.policy = CollectPolicy::default();
        forget.empty_before = policy.unused_since;
        self.collect_with(&forget)?;
        Ok(())
    }
}

/// Which go, in the end: those that fit, as long as the limit asks for it, the least recently used first.
fn choose(policy: &PrunePolicy, facts: &Facts, candidates: Vec<Candidate>, sizes: &Sizes) -> Vec<Unit> {
    let mut keepers: HashMap<[u8; 32], usize> = HashMap::new();
    for layer in candidates.iter().flat_map(|candidate| &candidate.layers) {
        *keepers.entry(*layer).or_default() += 1;
    }
    let is_meant = |candidate: &Candidate| {
        let Some(items) = &policy.items else { return true };
        let layer = |layer: &[u8; 32]| items.contains(&Digest::from_bytes(*layer).to_string());
        items.contains(&candidate.id)
            || (policy.and_above && candidate.layers.iter().any(layer))
            // Of a base the layers are what takes space.
            || (matches!(candidate.unit, Unit::Base(_))
                && !candidate.layers.is_empty()
                && candidate.layers.iter().all(layer))
    };
    let since = policy.unused_since.map(jiff::Timestamp::as_millisecond);
    let mut fitting: Vec<Candidate> = candidates
        .into_iter()
        .filter(|candidate| since.is_none_or(|since| candidate.used < since))
        .filter(is_meant)
        .filter(|candidate| match &candidate.unit {
            Unit::Results(chain) => !facts.in_use.contains(chain),
            Unit::Base(_) => !candidate.layers.iter().any(|layer| facts.in_use.contains(layer)),
            Unit::CacheMount(name) => !facts.in_use.contains(cache_mount_digest(name).as_bytes()),
            Unit::Download(_) => true,
        })
        .collect();
    // Of results used at the same time those go first upon which nothing rests.
    fitting.sort_by_key(|candidate| (candidate.used, std::cmp::Reverse(candidate.layers.len())));
    let mut left = sizes.total;
    let mut chosen = Vec::new();
    for candidate in fitting {
        if policy.keep.is_some_and(|keep| left <= keep) {
            break;
        }
        left = left.saturating_sub(candidate.size);
        for layer in &candidate.layers {
            let count = keepers.entry(*layer).or_default();
            *count = count.saturating_sub(1);
            if *count == 0 && !facts.is_pinned(layer) {
                left = left.saturating_sub(sizes.layers.get(layer).copied().unwrap_or(0));
            }
        }
        chosen.push(candidate.unit);
    }
    chosen
}

impl Facts {
    /// A layer and all that it needs.
    fn stack(&self, chain: [u8; 32]) -> Vec<[u8; 32]> {
        let mut marked = Marked::default();
        self.layers.mark(chain, &mut marked);
        marked.layers.into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn goals_are_reckoned_as_in_buildkit() {
        // Of a store of 100 bytes on a disk with 50 free ones: kept, to be free, reserved, and what is left of it.
        for (keep, free, reserved, goal) in [
            (None, None, None, None),
            (Some(60), None, None, Some(60)),
            (Some(200), None, None, Some(200)),
            (None, None, Some(60), Some(60)),
            (Some(60), None, Some(80), Some(80)),
            (None, Some(40), None, Some(100)),
            (None, Some(70), None, Some(80)),
            (Some(60), Some(70), None, Some(60)),
            (Some(90), Some(70), None, Some(80)),
            (None, Some(1000), Some(30), Some(30)),
        ] {
            let policy = PrunePolicy { keep, free, reserved, ..PrunePolicy::default() };
            assert_eq!(policy.goal(100, 50), goal, "{policy:?}");
        }
    }
}
