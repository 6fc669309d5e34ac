//! What a shared cache holds: results by key, and the layers they are made of.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use graph::{ContentDigest, Digest};

use super::mounts::{CachedMount, MOST_PARTS};
use crate::export::Descriptor;
use crate::worker::{Rootfs, stacked};

/// Results of other builds stay in a cache that is written anew for this long after their last use.
const KEPT: Duration = Duration::from_secs(14 * 24 * 60 * 60);

/// Results that are kept beside those of the build that writes. The record of one takes some 300 bytes, and BuildKit reads
/// configs of up to 1 MiB.
const MOST_KEPT: usize = 2500;

/// Cache mounts stay longer: while their steps are found, nobody notes that they are used.
const MOUNTS_KEPT: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// Cache mounts in one cache.
const MOST_MOUNTS: usize = 64;

/// Stacks of more layers cannot be mounted by anybody.
const MOST_LAYERS: usize = 1000;

/// A layer at its place in a stack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CachedLayer {
    pub(crate) parent: Option<Digest>,
    pub(crate) diff_id: Digest,
    /// What it holds, without times.
    pub(crate) content: ContentDigest,
    /// Bytes of the uncompressed tar, 0 while unknown.
    pub(crate) size: u64,
    pub(crate) created: Option<jiff::Timestamp>,
    /// `None`: it is wherever the image it comes from is.
    pub(crate) blob: Option<Descriptor>,
}

/// What is known of a result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Stack {
    /// The empty tree.
    Empty,
    /// Layers of the table.
    Layers(Digest),
    /// Only what it is.
    Elsewhere,
}

/// A result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) stack: Stack,
    /// What the stack holds, without times.
    pub(crate) content: ContentDigest,
    /// Key of the operation alone.
    pub(crate) op: ContentDigest,
    /// When a build last made or found it.
    pub(crate) used: jiff::Timestamp,
}

/// A cache.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Table {
    /// By chain id, which says what lies below; so no forger can put a layer elsewhere.
    pub(crate) layers: BTreeMap<Digest, CachedLayer>,
    /// By key.
    pub(crate) entries: BTreeMap<ContentDigest, Entry>,
    /// By id.
    pub(crate) mounts: BTreeMap<String, CachedMount>,
    /// Results under somebody else's keys, which lead nowhere here.
    pub(crate) others: usize,
}

impl Table {
    /// Whether all that it has is BuildKit's own.
    pub(crate) fn is_of_others(&self) -> bool {
        self.others > 0 && self.entries.is_empty() && self.mounts.is_empty()
    }

    /// The layers of a stack, the lowest first; `None` when one is missing.
    pub(crate) fn stack(&self, chain: &Digest) -> Option<Vec<(Digest, &CachedLayer)>> {
        let mut layers = Vec::new();
        let mut next = Some(*chain);
        while let Some(chain) = next {
            // A chain id is a hash over its parent's: there are no cycles.
            let layer = self.layers.get(&chain)?;
            layers.push((chain, layer));
            next = layer.parent;
        }
        layers.reverse();
        Some(layers)
    }

    /// Whether a stack can hold `content`, by what is said of its layers. The lowest ones may be known by their bytes alone,
    /// as those of an image are to whoever builds upon it.
    pub(crate) fn agrees(&self, stack: Stack, content: ContentDigest) -> bool {
        let layers = match stack {
            Stack::Elsewhere => return true,
            Stack::Empty => Vec::new(),
            Stack::Layers(chain) => match self.stack(&chain) {
                Some(layers) if layers.len() <= MOST_LAYERS => layers,
                _ => return false,
            },
        };
        let mut below = Rootfs::empty().content;
        for (number, (_, lowest)) in layers.iter().enumerate() {
            if layers[number..].iter().fold(below, |below, (_, layer)| stacked(below, layer.content)) == content {
                return true;
            }
            below = stacked(below, lowest.diff_id.into());
        }
        below == content
    }

    /// The keys of each result. One operation may have several that lead to the same.
    pub(crate) fn keys_by_result(&self) -> HashMap<(Stack, ContentDigest, ContentDigest), Vec<ContentDigest>> {
        let mut keys: HashMap<_, Vec<_>> = HashMap::new();
        for (key, entry) in &self.entries {
            keys.entry((entry.stack, entry.content, entry.op)).or_default().push(*key);
        }
        keys
    }

    /// Adds what another table has beyond this one, where it was used lately.
    pub(crate) fn join(&mut self, other: &Self, now: jiff::Timestamp) {
        let is_since = |used: jiff::Timestamp, kept| now.duration_since(used).unsigned_abs() <= kept;
        let mut mounts: Vec<_> = other.mounts.iter().filter(|(_, mount)| is_since(mount.used, MOUNTS_KEPT)).collect();
        mounts.sort_by_key(|(_, mount)| std::cmp::Reverse(mount.used));
        for (id, mount) in mounts {
            let parts: usize = self.mounts.values().map(|own| own.parts.len()).sum();
            let has_room = self.mounts.len() < MOST_MOUNTS && parts + mount.parts.len() <= MOST_PARTS;
            if has_room && !self.mounts.contains_key(id) {
                self.mounts.insert(id.clone(), mount.clone());
            }
        }
        let mut more: Vec<_> = other
            .entries
            .iter()
            .filter(|(key, entry)| {
                let known = self.entries.get(key).map(|entry| entry.stack);
                // What it is beats nothing, its layers beat what it is.
                let is_better = match known {
                    None => true,
                    Some(Stack::Elsewhere) => entry.stack != Stack::Elsewhere,
                    Some(_) => false,
                };
                is_better && is_since(entry.used, KEPT)
            })
            .collect();
        more.sort_by_key(|(key, entry)| (std::cmp::Reverse(entry.used), **key));
        for (key, entry) in more.into_iter().take(MOST_KEPT) {
            if let Stack::Layers(chain) = entry.stack {
                let Some(stack) = other.stack(&chain) else { continue };
                for (chain, layer) in stack {
                    self.layers.entry(chain).or_insert_with(|| layer.clone());
                }
            }
            self.entries.insert(*key, *entry);
        }
        // Where only the other knows a layer's blob, it is not lost for that.
        for (chain, layer) in self.layers.iter_mut().filter(|(_, layer)| layer.blob.is_none()) {
            layer.blob = other.layers.get(chain).and_then(|layer| layer.blob.clone());
        }
    }
}

impl Table {
    /// Promises no blob any more that is gone, nor mounts that need one.
    pub(crate) fn forget_blobs(&mut self, is_gone: impl Fn(&Digest) -> bool) {
        for layer in self.layers.values_mut() {
            layer.blob = layer.blob.take().filter(|blob| !is_gone(&blob.digest));
        }
        self.mounts.retain(|_, mount| !mount.blobs().any(|blob| is_gone(&blob)));
    }

    /// Blobs of its layers, where it has them, and of its mounts.
    pub(crate) fn blobs(&self) -> BTreeSet<Digest> {
        let layers = self.layers.values().filter_map(|layer| Some(layer.blob.as_ref()?.digest));
        layers.chain(self.mounts.values().flat_map(CachedMount::blobs)).collect()
    }

    /// Whether this table has what `own` says, noted since `since`: nothing would be gained by writing `own` once more.
    pub(crate) fn says(&self, own: &Self, since: jiff::Timestamp) -> bool {
        let has_blob = |(chain, layer): (&Digest, &CachedLayer)| {
            let blob = layer.blob.as_ref().map(|blob| blob.digest);
            let there = self.layers.get(chain).and_then(|there| there.blob.as_ref());
            blob.is_none_or(|blob| there.is_some_and(|there| there.digest == blob))
        };
        let has_entry = |(key, entry): (&ContentDigest, &Entry)| {
            let Some(there) = self.entries.get(key).filter(|there| there.used >= since) else { return false };
            let has_stack = there.stack == entry.stack || entry.stack == Stack::Elsewhere;
            has_stack && (there.content, there.op) == (entry.content, entry.op)
        };
        let has_mount = |(id, mount): (&String, &CachedMount)| {
            self.mounts.get(id).is_some_and(|there| there.used >= since && there.tar == mount.tar)
        };
        own.layers.iter().all(has_blob) && own.entries.iter().all(has_entry) && own.mounts.iter().all(has_mount)
    }

    /// Whether each key of `own` leads to a result here, too, be it somebody else's: two that were made at the same time are as
    /// good as each other, and their makers need not take turns in replacing them.
    pub(crate) fn answers(&self, own: &Self) -> bool {
        let is_useful = |stack: &Stack| match stack {
            Stack::Layers(chain) => self.stack(chain).is_some(),
            Stack::Empty => true,
            Stack::Elsewhere => false,
        };
        let has_mounts = own.mounts.keys().all(|id| self.mounts.contains_key(id));
        has_mounts
            && own.entries.iter().all(|(key, entry)| {
                let there = self.entries.get(key);
                there.is_some_and(|there| entry.stack == Stack::Elsewhere || is_useful(&there.stack))
            })
    }
}

#[cfg(test)]
mod tests {
    use super::super::mounts::Part;
    use super::*;

    fn at(second: i64) -> jiff::Timestamp {
        jiff::Timestamp::from_second(second).unwrap()
    }

    fn key(n: u8) -> ContentDigest {
        ContentDigest::of(&[n])
    }

    fn entry(stack: Stack, second: i64) -> Entry {
        Entry { stack, content: key(100), op: key(101), used: at(second) }
    }

    fn layer(table: &mut Table, parent: Option<Digest>, n: u8) -> Digest {
        let diff_id = Digest::of(&[n]);
        let chain = diff_id.chain_upon(parent.as_ref());
        let layer = CachedLayer { parent, diff_id, content: key(n), size: 1, created: None, blob: None };
        table.layers.insert(chain, layer);
        chain
    }

    #[test]
    fn joining_keeps_what_both_have_and_forgets_what_is_old() {
        const DAY: i64 = 24 * 60 * 60;
        let mut theirs = Table::default();
        let base = layer(&mut theirs, None, 1);
        let top = layer(&mut theirs, Some(base), 2);
        theirs.entries.insert(key(1), entry(Stack::Layers(top), 99 * DAY));
        theirs.entries.insert(key(2), entry(Stack::Layers(base), 100 * DAY));
        theirs.entries.insert(key(3), entry(Stack::Empty, 3 * DAY));
        theirs.entries.insert(key(4), entry(Stack::Layers(Digest::of(b"nowhere")), 100 * DAY));
        let mut ours = Table::default();
        ours.entries.insert(key(1), entry(Stack::Elsewhere, 100 * DAY));
        ours.entries.insert(key(2), entry(Stack::Empty, 100 * DAY));
        ours.join(&theirs, at(100 * DAY));
        assert_eq!(ours.entries[&key(1)].stack, Stack::Layers(top));
        assert_eq!(ours.entries[&key(2)].stack, Stack::Empty, "what this build made stands");
        assert_eq!(ours.entries.len(), 2, "neither the old one nor the one without layers");
        assert_eq!(ours.stack(&top).unwrap().iter().map(|(chain, _)| *chain).collect::<Vec<_>>(), [base, top]);
    }

    #[test]
    fn others_mounts_are_taken_over_as_far_as_there_is_room() {
        let blob = Descriptor::new("part", Digest::of(b"part"), 1);
        let mount = |parts, second| CachedMount {
            tar: Digest::of(b"tar"),
            used: at(second),
            parts: vec![Part { raw: Digest::of(b"raw"), size: 1, blob: blob.clone() }; parts],
        };
        let table = |mounts: &[(&str, usize, i64)]| Table {
            mounts: mounts.iter().map(|(id, parts, second)| ((*id).to_owned(), mount(*parts, *second))).collect(),
            ..Table::default()
        };
        let mut ours = table(&[("ours", 100, 50), ("both", 100, 50)]);
        let theirs = [("both", 9000, 60), ("old", MOST_PARTS / 2, 10), ("new", MOST_PARTS / 2, 40), ("small", 10, 20)];
        ours.join(&table(&theirs), at(100));
        assert_eq!(ours.mounts.keys().collect::<Vec<_>>(), ["both", "new", "ours", "small"]);
        assert_eq!(ours.mounts["both"].parts.len(), 100, "what this build left stands");
        // Those that both have need no room.
        let names: Vec<String> = (0..MOST_MOUNTS).map(|n| n.to_string()).collect();
        let all: Vec<(&str, usize, i64)> = names.iter().map(|name| (name.as_str(), 1, 90)).collect();
        let mut ours = table(&all[1..]);
        ours.join(&table(&all), at(100));
        assert_eq!(ours.mounts.len(), MOST_MOUNTS);
    }

    #[test]
    fn a_blob_that_only_the_other_knows_is_known_to_both() {
        let (mut ours, mut theirs) = (Table::default(), Table::default());
        let top = layer(&mut ours, None, 1);
        layer(&mut theirs, None, 1);
        let blob = Descriptor::new("tar", Digest::of(b"1"), 1);
        theirs.layers.get_mut(&top).unwrap().blob = Some(blob.clone());
        for table in [&mut ours, &mut theirs] {
            table.entries.insert(key(1), entry(Stack::Layers(top), 50));
        }
        ours.join(&theirs, at(60));
        assert_eq!(ours.layers[&top].blob.as_ref(), Some(&blob));
        ours.forget_blobs(|digest| *digest == blob.digest);
        assert_eq!(ours.layers[&top].blob, None);
    }

    #[test]
    fn what_is_there_need_not_be_written_again() {
        let mut ours = Table::default();
        let top = layer(&mut ours, None, 1);
        ours.layers.get_mut(&top).unwrap().blob = Some(Descriptor::new("tar", Digest::of(b"1"), 1));
        ours.entries.insert(key(1), entry(Stack::Layers(top), 50));
        ours.entries.insert(key(2), entry(Stack::Elsewhere, 50));
        let mut there = ours.clone();
        assert!(there.says(&ours, at(40)) && there.answers(&ours));
        assert!(!there.says(&ours, at(60)), "it is to be noted that it was used again");
        // Somebody else's results.
        let other = layer(&mut there, None, 2);
        there.entries.insert(key(1), entry(Stack::Layers(other), 50));
        assert!(!there.says(&ours, at(40)) && there.answers(&ours));
        there.entries.insert(key(1), entry(Stack::Elsewhere, 50));
        assert!(!there.answers(&ours), "its layers were more");
        there.entries.insert(key(1), entry(Stack::Layers(Digest::of(b"nowhere")), 50));
        assert!(!there.answers(&ours));
        there.entries.remove(&key(1));
        assert!(!there.says(&ours, at(40)) && !there.answers(&ours));
        // A blob that was lost.
        let mut there = ours.clone();
        there.layers.get_mut(&top).unwrap().blob = None;
        assert!(!there.says(&ours, at(40)));
    }
}
