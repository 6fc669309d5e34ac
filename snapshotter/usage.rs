//! What takes the store's space, and what keeps it there.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use graph::Digest;
use rusqlite::Connection;
use serde::{Deserialize, Serialize};

use crate::gc::{Layers, Marked, reached_from};
use crate::image::UNNAMED;
use crate::recover::chains_of;
use crate::store::put_note;
use crate::{Store, StoreError, lease};

/// What an item is, by BuildKit's names where it has one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub enum UsageKind {
    /// A layer, in all the forms that are here.
    #[serde(rename = "regular")]
    Layer,
    /// Config and manifests of an image.
    #[serde(rename = "image")]
    Image,
    /// A directory of `RUN --mount=type=cache`.
    #[serde(rename = "exec.cachemount")]
    CacheMount,
    /// A download that was broken off and can be gone on with.
    #[serde(rename = "download")]
    Download,
    /// The database, notes, locks, and what is being made or removed.
    #[serde(rename = "internal")]
    Internal,
}

impl UsageKind {
    /// As filters and lists have it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Layer => "regular",
            Self::Image => "image",
            Self::CacheMount => "exec.cachemount",
            Self::Download => "download",
            Self::Internal => "internal",
        }
    }
}

/// Something that takes space.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct UsageItem {
    /// Chain id of a layer, config digest of an image, name of a directory or file.
    pub id: String,
    /// What it is.
    #[serde(rename = "type")]
    pub kind: UsageKind,
    /// Bytes on the disk.
    pub size: u64,
    /// Pruning may take it.
    pub reclaimable: bool,
    /// A running process relies on it.
    pub in_use: bool,
    /// More than one thing keeps it.
    pub shared: bool,
    /// The layer below.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parent: Option<String>,
    /// When it was made, where that is known.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "as_text")]
    pub created_at: Option<jiff::Timestamp>,
    /// When a build last found it.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "as_text")]
    pub last_used_at: Option<jiff::Timestamp>,
    /// What it comes from.
    pub description: String,
    /// What keeps it, in words: images, processes, the build cache.
    pub kept_by: Vec<String>,
}

fn as_text<S: serde::Serializer>(time: &Option<jiff::Timestamp>, serializer: S) -> Result<S::Ok, S::Error> {
    time.map(|time| time.to_string()).serialize(serializer)
}

/// All that takes space.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Usage {
    /// The items; their sizes add up to the total.
    pub items: Vec<UsageItem>,
    /// Bytes of the store on the disk.
    pub total: u64,
}

impl Usage {
    /// Bytes that pruning everything would free.
    #[must_use]
    pub fn reclaimable(&self) -> u64 {
        self.items.iter().filter(|item| item.reclaimable).map(|item| item.size).sum()
    }
}

/// What is known of a cache mount besides its files.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct CacheMountNote {
    pub(crate) id: String,
    pub(crate) created: i64,
    pub(crate) used: i64,
    pub(crate) size: u64,
}

/// The kind of notes on cache mounts, by the directory's name.
pub(crate) const CACHE_MOUNT: &str = "cache-mount";
/// The kind of notes on what made a layer, by chain id.
const MADE_BY: &str = "made-by";

/// A cache mount in use, as leases have it.
pub(crate) fn cache_mount_digest(name: &str) -> Digest {
    Digest::of(format!("cache-mount {name}").as_bytes())
}

/// Bytes on the disk of a file or tree. A file with several names counts once in all calls with the same `seen`.
pub(crate) fn measure(path: &Path, seen: &mut HashSet<(u64, u64)>) -> u64 {
    let mut total = 0;
    let mut pending = vec![path.to_owned()];
    while let Some(path) = pending.pop() {
        // What goes away meanwhile takes no space.
        let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
        if !metadata.is_dir() && metadata.nlink() > 1 && !seen.insert((metadata.dev(), metadata.ino())) {
            continue;
        }
        total += metadata.blocks() * 512;
        if metadata.is_dir() {
            pending.extend(fs::read_dir(&path).into_iter().flatten().flatten().map(|entry| entry.path()));
        }
    }
    total
}

impl Store {
    /// Notes what made a layer, for people.
    ///
    /// # Errors
    /// The database.
    pub fn describe_layer(&self, chain: &Digest, made_by: &str) -> Result<(), StoreError> {
        self.db.write(|db| note_made_by(db, chain, made_by))
    }

    /// Measures the store. Takes a look at every file.
    ///
    /// # Errors
    /// The database or the disk.
    pub fn usage(&self) -> Result<Usage, StoreError> {
        self.note_use()?;
        let leases = lease::living_by_process(&self.layout)?;
        // What this command looks at is no use of it.
        let facts = self.db.read(|db| Facts::read(self, db, &leases, Some(std::process::id())))?;
        Ok(Survey { store: self, facts, seen: HashSet::new(), items: BTreeMap::new() }.run())
    }
}

/// Keeps what made a layer, or its beginning.
pub(crate) fn note_made_by(db: &Connection, chain: &Digest, made_by: &str) -> rusqlite::Result<()> {
    let short: String = made_by.chars().take(200).collect();
    put_note(db, MADE_BY, &chain.hex(), &short)
}

/// What the database and the leases say.
pub(crate) struct Facts {
    pub(crate) layers: Layers,
    /// Layers and blobs, each with what keeps it.
    kept: HashMap<[u8; 32], Vec<String>>,
    /// Kept by more than the build cache.
    pinned: HashSet<[u8; 32]>,
    pub(crate) in_use: HashSet<[u8; 32]>,
    pub(crate) last_used: HashMap<[u8; 32], i64>,
    created: HashMap<[u8; 32], i64>,
    made_by: HashMap<String, String>,
    cache_mounts: HashMap<String, CacheMountNote>,
    /// Layers of a blob, and the image of a config or manifest.
    blobs: HashMap<[u8; 32], [u8; 32]>,
    configs: HashMap<[u8; 32], [u8; 32]>,
    names: HashMap<[u8; 32], Vec<String>>,
}

impl Facts {
    /// The lease of `except` does not count.
    pub(crate) fn read(
        store: &Store,
        db: &Connection,
        leases: &[(u32, HashSet<[u8; 32]>)],
        except: Option<u32>,
    ) -> rusqlite::Result<Self> {
        let mut facts = Self {
            layers: Layers::read(db)?,
            kept: HashMap::new(),
            pinned: HashSet::new(),
            in_use: HashSet::new(),
            last_used: HashMap::new(),
            created: HashMap::new(),
            made_by: notes(db, MADE_BY)?,
            cache_mounts: HashMap::new(),
            blobs: HashMap::new(),
            configs: HashMap::new(),
            names: HashMap::new(),
        };
        for (name, text) in notes(db, CACHE_MOUNT)? {
            facts.cache_mounts.insert(name, serde_json::from_str(&text).unwrap_or_default());
        }
        let mut statement = db.prepare("SELECT chain, created FROM layers WHERE created IS NOT NULL")?;
        facts.created =
            statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect::<rusqlite::Result<_>>()?;
        for (chain, diff_id) in facts.layers.diff_ids() {
            facts.blobs.entry(diff_id).or_insert(chain);
        }
        let mut statement = db.prepare("SELECT digest, diff_id FROM layer_blobs")?;
        let pairs: Vec<([u8; 32], [u8; 32])> =
            statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect::<rusqlite::Result<_>>()?;
        for (blob, diff_id) in pairs {
            if let Some(chain) = facts.blobs.get(&diff_id).copied() {
                facts.blobs.entry(blob).or_insert(chain);
            }
        }
        facts.images(store, db)?;
        facts.processes(store, leases, except);
        facts.records(db)?;
        Ok(facts)
    }

    pub(crate) fn is_pinned(&self, digest: &[u8; 32]) -> bool {
        self.pinned.contains(digest)
    }

    pub(crate) fn cache_mount(&self, name: &str) -> Option<&CacheMountNote> {
        self.cache_mounts.get(name)
    }

    fn keep(&mut self, digest: [u8; 32], by: &str, pins: bool) {
        let kept = self.kept.entry(digest).or_default();
        if kept.last().is_none_or(|last| last != by) {
            kept.push(by.to_owned());
        }
        if pins {
            self.pinned.insert(digest);
        }
    }

    /// A layer and all below it.
    fn keep_stack(&mut self, chain: [u8; 32], by: &str, pins: bool) -> Vec<[u8; 32]> {
        let mut marked = Marked::default();
        self.layers.mark(chain, &mut marked);
        let layers: Vec<[u8; 32]> = marked.layers.into_iter().collect();
        layers.iter().for_each(|layer| self.keep(*layer, by, pins));
        layers
    }

    fn images(&mut self, store: &Store, db: &Connection) -> rusqlite::Result<()> {
        let mut statement = db.prepare("SELECT name, config, manifest, tagged FROM images ORDER BY name")?;
        type Row = (String, [u8; 32], Option<[u8; 32]>, bool);
        let rows: Vec<Row> = statement
            .query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)))?
            .collect::<rusqlite::Result<_>>()?;
        for (name, config, manifest, tagged) in rows {
            let unnamed = name.starts_with(UNNAMED);
            let by = match (tagged, unnamed) {
                (_, true) => "an image without a name".to_owned(),
                (true, false) => format!("image {name}"),
                (false, false) => format!("base {name}"),
            };
            let tagged = tagged && !unnamed;
            self.names.entry(config).or_default().push(name);
            let mut blobs: HashSet<[u8; 32]> = [Some(config), manifest].into_iter().flatten().collect();
            let mut configs = vec![Digest::from_bytes(config)];
            if let Some(manifest) = manifest {
                configs.extend(reached_from(&store.layout, manifest, &mut blobs));
            }
            blobs.extend(configs.iter().map(|config| *config.as_bytes()));
            for blob in blobs {
                self.configs.entry(blob).or_insert(config);
                self.keep(blob, &by, tagged);
            }
            for chain in configs.iter().flat_map(|config| chains_of(&store.layout, config).unwrap_or_default()) {
                self.keep_stack(*chain.as_bytes(), &by, tagged);
            }
        }
        Ok(())
    }

    fn processes(&mut self, store: &Store, leases: &[(u32, HashSet<[u8; 32]>)], except: Option<u32>) {
        for (process, held) in leases.iter().filter(|(process, _)| Some(*process) != except) {
            let by = format!("process {process}");
            for digest in held {
                self.in_use.insert(*digest);
                self.keep(*digest, &by, true);
                let layers = self.keep_stack(*digest, &by, true);
                self.in_use.extend(layers);
                for chain in chains_of(&store.layout, &Digest::from_bytes(*digest)).unwrap_or_default() {
                    let layers = self.keep_stack(*chain.as_bytes(), &by, true);
                    self.in_use.extend(layers);
                }
            }
        }
    }

    fn records(&mut self, db: &Connection) -> rusqlite::Result<()> {
        let mut statement =
            db.prepare("SELECT chain, max(used) FROM records WHERE chain IS NOT NULL GROUP BY chain")?;
        let rows: Vec<([u8; 32], i64)> =
            statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect::<rusqlite::Result<_>>()?;
        for (chain, used) in rows {
            for layer in self.keep_stack(chain, "build cache", false) {
                let latest = self.last_used.entry(layer).or_insert(used);
                *latest = (*latest).max(used);
            }
        }
        Ok(())
    }
}

fn notes(db: &Connection, kind: &str) -> rusqlite::Result<HashMap<String, String>> {
    let mut statement = db.prepare("SELECT key, value FROM notes WHERE kind = ?1")?;
    statement.query_map([kind], |row| Ok((row.get(0)?, row.get(1)?)))?.collect()
}

fn time(milliseconds: i64) -> Option<jiff::Timestamp> {
    jiff::Timestamp::from_millisecond(milliseconds).ok().filter(|_| milliseconds > 0)
}

/// Goes through the directories.
struct Survey<'s> {
    store: &'s Store,
    facts: Facts,
    seen: HashSet<(u64, u64)>,
    items: BTreeMap<(UsageKind, String), UsageItem>,
}

impl Survey<'_> {
    fn run(mut self) -> Usage {
        let join = |name: &str| self.store.layout.join(name);
        let of_layers = ["snapshots", "plain", "indexes", "merged"].map(join);
        let (blobs, mounts, ingest) = (join("blobs/sha256"), join("cache-mounts"), join("ingest"));
        for directory in of_layers {
            for path in children(&directory) {
                let chain = digest(&path).filter(|chain| self.facts.layers.contains(chain));
                match chain {
                    Some(chain) => self.layer(chain, &path),
                    None => self.internal(&path),
                }
            }
        }
        for path in children(&blobs) {
            let digest = digest(&path);
            let layer = digest.and_then(|digest| self.facts.blobs.get(&digest).copied());
            let image = digest.and_then(|digest| self.facts.configs.get(&digest).copied());
            match (image, layer) {
                (Some(config), _) => self.image(config, &path),
                (None, Some(chain)) => self.layer(chain, &path),
                (None, None) => self.internal(&path),
            }
        }
        children(&mounts).iter().for_each(|path| self.cache_mount(path));
        for path in children(&ingest) {
            match path.to_string_lossy().ends_with(crate::partial::SUFFIX) {
                true => self.download(&path),
                false => self.internal(&path),
            }
        }
        self.rest();
        let items: Vec<UsageItem> = self.items.into_values().collect();
        Usage { total: items.iter().map(|item| item.size).sum(), items }
    }

    fn add(&mut self, kind: UsageKind, id: String, path: &Path, make: impl FnOnce(&Facts, UsageItem) -> UsageItem) {
        let size = measure(path, &mut self.seen);
        let item = self.items.entry((kind, id)).or_insert_with_key(|(kind, id)| {
            let item = UsageItem {
                id: id.clone(),
                kind: *kind,
                size: 0,
                reclaimable: false,
                in_use: false,
                shared: false,
                parent: None,
                created_at: None,
                last_used_at: None,
                description: String::new(),
                kept_by: Vec::new(),
            };
            make(&self.facts, item)
        });
        item.size += size;
    }

    fn layer(&mut self, chain: [u8; 32], path: &Path) {
        let id = Digest::from_bytes(chain);
        self.add(UsageKind::Layer, id.to_string(), path, |facts, item| {
            let kept_by = facts.kept.get(&chain).cloned().unwrap_or_default();
            UsageItem {
                reclaimable: !facts.pinned.contains(&chain),
                in_use: facts.in_use.contains(&chain),
                shared: kept_by.len() > 1,
                parent: facts.layers.parent(&chain).map(|parent| Digest::from_bytes(parent).to_string()),
                created_at: facts.created.get(&chain).and_then(|created| time(*created)),
                last_used_at: facts.last_used.get(&chain).and_then(|used| time(*used)),
                description: facts.made_by.get(&id.hex()).cloned().unwrap_or_else(|| "layer of a base".to_owned()),
                kept_by,
                ..item
            }
        });
    }

    fn image(&mut self, config: [u8; 32], path: &Path) {
        let id = Digest::from_bytes(config).to_string();
        self.add(UsageKind::Image, id, path, |facts, item| UsageItem {
            reclaimable: !facts.pinned.contains(&config),
            in_use: facts.in_use.contains(&config),
            description: facts.names.get(&config).map(|names| names.join(", ")).unwrap_or_default(),
            kept_by: facts.kept.get(&config).cloned().unwrap_or_default(),
            ..item
        });
    }

    fn cache_mount(&mut self, path: &Path) {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let key = *cache_mount_digest(&name).as_bytes();
        self.add(UsageKind::CacheMount, name.clone(), path, |facts, item| {
            let note = facts.cache_mounts.get(&name).cloned().unwrap_or_default();
            let in_use = facts.in_use.contains(&key);
            UsageItem {
                reclaimable: !in_use,
                in_use,
                created_at: time(note.created),
                last_used_at: time(note.used),
                description: format!("cache mount {}", note.id),
                kept_by: facts.kept.get(&key).cloned().unwrap_or_default(),
                ..item
            }
        });
    }

    fn download(&mut self, path: &Path) {
        let id = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let modified = fs::metadata(path).and_then(|metadata| metadata.modified()).ok();
        let modified = modified.and_then(|time| jiff::Timestamp::try_from(time).ok());
        let description = "download that was broken off".to_owned();
        self.add(UsageKind::Download, id, path, |_, item| UsageItem {
            reclaimable: true,
            last_used_at: modified,
            description,
            ..item
        });
    }

    fn internal(&mut self, path: &Path) {
        let description = "database, notes, and what is being made or removed".to_owned();
        self.add(UsageKind::Internal, "store".to_owned(), path, |_, item| UsageItem { description, ..item });
    }

    /// What was not looked at one by one, and the directories themselves.
    fn rest(&mut self) {
        const LOOKED_AT: [&str; 7] = ["snapshots", "plain", "indexes", "merged", "blobs", "cache-mounts", "ingest"];
        let root = self.store.layout.root.clone();
        let mut directories = vec![root.clone(), root.join("blobs/sha256")];
        for path in children(&root) {
            if LOOKED_AT.iter().any(|name| path.ends_with(name)) {
                directories.push(path);
            } else {
                self.internal(&path);
            }
        }
        let own: u64 =
            directories.iter().filter_map(|path| fs::metadata(path).ok()).map(|metadata| metadata.blocks() * 512).sum();
        self.internal(&root.join("no such file"));
        if let Some(item) = self.items.get_mut(&(UsageKind::Internal, "store".to_owned())) {
            item.size += own;
        }
    }
}

fn children(directory: &Path) -> Vec<PathBuf> {
    fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

fn digest(path: &Path) -> Option<[u8; 32]> {
    let digest: Digest = format!("sha256:{}", path.file_name()?.to_str()?).parse().ok()?;
    Some(*digest.as_bytes())
}
