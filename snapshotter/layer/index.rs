//! What a layer contains, without its bytes: small enough to keep for every layer, enough to answer what COPY, overlay
//! mending and cache keys ask.

use graph::{ContentDigest, KeyHasher};
use serde::{Deserialize, Serialize};

use super::entry::{Entry, EntryKind, ancestors, clean, cmp_paths, common, split};
use super::error::LayerError;

/// First byte of the encoded form.
const VERSION: u8 = 2;
/// Bytes of the blake3 of the rest, which follow the version: a flipped bit must not give a file another digest.
const SEAL: usize = 16;

/// The entries of one layer in the order of [`cmp_paths`], each path once. Directories that the tar does not mention are
/// there too, marked implicit, so that every entry's parent is an entry; the root is one, unless nothing is.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct LayerIndex {
    entries: Vec<Entry>,
    /// Paths of other entries' parents that were taken for directories or for missing while the layer was unpacked
    /// apart, beyond those that are implicit directories now. A symlink below at one of them changes where entries go.
    assumed: Vec<Vec<u8>>,
    /// Targets of hard links that were not in this layer when the link was made.
    targets: Vec<Vec<u8>>,
}

impl LayerIndex {
    /// Sorts `entries`; of entries with the same path the last counts. Missing parents are added.
    #[must_use]
    pub fn new(entries: Vec<Entry>) -> Self {
        Self::unmended(entries, Vec::new(), Vec::new())
    }

    /// The index of a layer that was unpacked apart.
    pub(crate) fn unmended(mut entries: Vec<Entry>, mut assumed: Vec<Vec<u8>>, targets: Vec<Vec<u8>>) -> Self {
        if !entries.windows(2).all(|pair| cmp_paths(&pair[0].path, &pair[1].path).is_lt()) {
            entries.reverse();
            entries.sort_by(|a, b| cmp_paths(&a.path, &b.path));
            entries.dedup_by(|a, b| a.path == b.path);
        }
        let entries = with_parents(entries);
        assumed.sort();
        assumed.dedup();
        let index = Self { entries, assumed: Vec::new(), targets };
        let assumed = assumed.into_iter().filter(|path| !index.get(path).is_some_and(Entry::is_implicit)).collect();
        Self { assumed, ..index }
    }

    /// All entries, sorted.
    #[must_use]
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    pub(crate) fn entries_mut(&mut self) -> std::slice::IterMut<'_, Entry> {
        self.entries.iter_mut()
    }

    /// What the layer says about `path`.
    #[must_use]
    pub fn get(&self, path: &[u8]) -> Option<&Entry> {
        self.position(path).map(|at| &self.entries[at])
    }

    pub(crate) fn position(&self, path: &[u8]) -> Option<usize> {
        self.entries.binary_search_by(|entry| cmp_paths(&entry.path, path)).ok()
    }

    /// Paths beside the implicit directories whose being a symlink below would change the layer.
    #[must_use]
    pub fn assumed(&self) -> &[Vec<u8>] {
        &self.assumed
    }

    /// Targets of hard links that only the layers below can have.
    #[must_use]
    pub fn targets(&self) -> &[Vec<u8>] {
        &self.targets
    }

    /// The regular file that a hard link in this layer names. A file names itself.
    #[must_use]
    pub fn file_of<'a>(&'a self, entry: &'a Entry) -> Option<&'a Entry> {
        match &entry.kind {
            EntryKind::File { .. } => Some(entry),
            EntryKind::Hardlink { target } => {
                self.get(target).filter(|entry| matches!(entry.kind, EntryKind::File { .. }))
            }
            _ => None,
        }
    }

    /// A digest of everything but times: equal for layers that do the same to whatever is below. Of implicit directories
    /// only their being there counts, so mending does not change it.
    #[must_use]
    pub fn content_digest(&self) -> ContentDigest {
        let mut hasher = KeyHasher::new("layer/1");
        for entry in &self.entries {
            hasher.field(&entry.path);
            if let EntryKind::Dir { opaque, implicit: true } = entry.kind {
                hasher.number(if opaque { 11 } else { 10 });
                continue;
            }
            hash_entry(&mut hasher, entry);
        }
        hasher.finish()
    }

    /// The compact form that is kept on disk: a version byte, a seal, then postcard; paths share their beginnings with the
    /// path before.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut before: &[u8] = &[];
        let entries = self
            .entries
            .iter()
            .map(|entry| {
                let shared = common(before, &entry.path);
                before = &entry.path;
                let rest = Entry { path: entry.path[shared..].to_vec(), ..entry.clone() };
                Packed { shared: u32::try_from(shared).unwrap_or(u32::MAX), rest }
            })
            .collect();
        let packed = PackedIndex { entries, assumed: self.assumed.clone(), targets: self.targets.clone() };
        let start = [&[VERSION][..], &[0; SEAL]].concat();
        let mut bytes = postcard::to_extend(&packed, start).expect("plain data of known length always serialises");
        let seal = blake3::hash(&bytes[1 + SEAL..]);
        bytes[1..=SEAL].copy_from_slice(&seal.as_bytes()[..SEAL]);
        bytes
    }

    /// Reads [`LayerIndex::encode`]'s form. Damaged input is an error, never a panic or an index that breaks its promises.
    pub fn decode(bytes: &[u8]) -> Result<Self, LayerError> {
        let bad = |reason: &str| LayerError::Index(reason.to_owned());
        let (&version, body) = bytes.split_first().ok_or_else(|| bad("it is empty"))?;
        if version != VERSION {
            return Err(LayerError::Index(format!("it has version {version}, this rbuild knows {VERSION}")));
        }
        let (seal, body) = body.split_first_chunk::<SEAL>().ok_or_else(|| bad("it is cut off"))?;
        if blake3::hash(body).as_bytes()[..SEAL] != *seal {
            return Err(bad("its bytes are not those that were written"));
        }
        let packed: PackedIndex = postcard::from_bytes(body).map_err(|error| LayerError::Index(error.to_string()))?;
        let mut entries: Vec<Entry> = Vec::with_capacity(packed.entries.len());
        for Packed { shared, mut rest } in packed.entries {
            let before = entries.last().map_or(&[][..], |entry| &entry.path);
            let shared = before.get(..shared as usize).ok_or_else(|| bad("a path has no beginning"))?;
            rest.path.splice(..0, shared.iter().copied());
            if clean(&rest.path) != rest.path || rest.path.contains(&0) {
                return Err(bad("a path is not clean"));
            }
            if entries.last().is_some_and(|last| cmp_paths(&last.path, &rest.path).is_ge()) {
                return Err(bad("its paths are not sorted"));
            }
            entries.push(rest);
        }
        let count = entries.len();
        let entries = with_parents(entries);
        if entries.len() != count {
            return Err(bad("a parent directory is missing"));
        }
        Ok(Self { entries, assumed: packed.assumed, targets: packed.targets })
    }
}

/// Adds what makes every entry's parent an entry, in one pass. A non-directory with entries below it becomes their implicit
/// directory.
fn with_parents(entries: Vec<Entry>) -> Vec<Entry> {
    let complete = entries.first().is_none_or(|first| first.path.is_empty() && first.is_dir()) && {
        // In this order the parent, if it is there, is on the chain of directories that the entry before ends.
        let mut chain: Vec<&[u8]> = Vec::new();
        entries.iter().all(|entry| {
            let parent = split(&entry.path).0;
            while chain.last().is_some_and(|dir| *dir != parent) {
                chain.pop();
            }
            let found = entry.path.is_empty() || !chain.is_empty();
            if entry.is_dir() {
                chain.push(&entry.path);
            }
            found
        })
    };
    if complete {
        return entries;
    }
    let mut all: Vec<Entry> = Vec::with_capacity(entries.len() + 1);
    // Lengths of the paths of those directories, all in `all`, that the last entry lies in, and of itself if it is one.
    let mut open: Vec<usize> = Vec::new();
    for entry in entries {
        let last = all.last().map_or(&[][..], |entry| &entry.path);
        let shared = common(last, &entry.path);
        let leads_here = |end: usize| end == 0 || (end <= shared && entry.path.get(end) == Some(&b'/'));
        while open.last().is_some_and(|&end| !leads_here(end)) {
            open.pop();
        }
        let innermost = open.last().copied();
        for dir in ancestors(&entry.path).filter(|dir| innermost.is_none_or(|end| dir.len() > end)) {
            match all.last_mut().filter(|last| last.path == dir) {
                // In this order it stands directly before what is below it.
                Some(last) => *last = implicit_dir(dir),
                None => all.push(implicit_dir(dir)),
            }
            open.push(dir.len());
        }
        if entry.is_dir() {
            open.push(entry.path.len());
        }
        all.push(entry);
    }
    all
}

/// A directory with the metadata it has when nothing is below.
pub(crate) fn implicit_dir(path: &[u8]) -> Entry {
    Entry::new(path, EntryKind::Dir { opaque: false, implicit: true }, 0o755)
}

/// Kind, owner, mode, content and attributes; neither path nor times.
pub fn hash_entry(hasher: &mut KeyHasher, entry: &Entry) {
    match &entry.kind {
        EntryKind::File { size, digest, .. } => hasher.number(1).number(*size).field(digest.as_bytes()),
        EntryKind::Dir { opaque, .. } => hasher.number(if *opaque { 3 } else { 2 }),
        EntryKind::Symlink { target } => hasher.number(4).field(target),
        EntryKind::Hardlink { target } => hasher.number(5).field(target),
        EntryKind::CharDev { major, minor } => hasher.number(6).number((*major).into()).number((*minor).into()),
        EntryKind::BlockDev { major, minor } => hasher.number(7).number((*major).into()).number((*minor).into()),
        EntryKind::Fifo => hasher.number(8),
        EntryKind::Whiteout => {
            hasher.number(9);
            return;
        }
    };
    hasher.number(entry.mode.into()).number(entry.uid.into()).number(entry.gid.into());
    hasher.number(entry.xattrs.len() as u64);
    for (name, value) in &entry.xattrs {
        hasher.field(name).field(value);
    }
}

#[derive(Serialize, Deserialize)]
struct PackedIndex {
    entries: Vec<Packed>,
    assumed: Vec<Vec<u8>>,
    targets: Vec<Vec<u8>>,
}

/// An entry whose path lacks the first `shared` bytes of the path before.
#[derive(Serialize, Deserialize)]
struct Packed {
    shared: u32,
    rest: Entry,
}
