//! `--cache-from`: read when the store misses something for the first time, and never a reason to fail.

use std::collections::HashMap;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use graph::{ContentDigest, Digest};
use registry::{Client, Manifest, Reference};
use serde_json::Value;
use snapshotter::{CacheRecord, ForeignLayer, LayerBlobRecord, LayerRecord, Store, StoreError};
use solver::RunContext;
use tokio::sync::OnceCell;

use super::spec::{CacheFrom, Place};
use super::table::{Stack, Table};
use super::{format, layout_location};
use crate::export::Descriptor;
use crate::images::{self, ImageError, Remote};
use crate::worker::Rootfs;

/// Largest config of a cache that is read. BuildKit's limit is 1 MiB.
pub(super) const MAX_CONFIG: u64 = 16 << 20;
/// Images of one index whose inline caches are read.
const MOST_IMAGES: usize = 32;

/// A cache that cannot be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReadError {
    #[error(transparent)]
    Registry(#[from] registry::Error),
    #[error("cannot read {}", path.display())]
    File { path: PathBuf, source: std::io::Error },
    #[error("{0}")]
    Malformed(String),
}

impl From<ImageError> for ReadError {
    fn from(error: ImageError) -> Self {
        Self::Malformed(error.to_string())
    }
}

/// The caches that a build may read.
pub(crate) struct Imports {
    pub(super) sources: Vec<Source>,
    pub(super) remote: Remote,
    store: Arc<Store>,
}

pub(super) struct Source {
    pub(super) from: CacheFrom,
    /// `None`: it could not be read, which was said.
    pub(super) table: OnceCell<Option<Loaded>>,
}

pub(super) struct Loaded {
    pub(super) table: Table,
    keys: HashMap<(Stack, ContentDigest, ContentDigest), Vec<ContentDigest>>,
}

/// What was found in a cache.
pub(crate) struct Imported {
    /// All keys that lead to it.
    pub(crate) keys: Vec<ContentDigest>,
    /// Key of the operation alone.
    pub(crate) op: ContentDigest,
    /// What it is, without times.
    pub(crate) content: ContentDigest,
    /// A stack that the store now knows, its layers to be fetched when they are needed; `None` where there is no more than
    /// what it is.
    pub(crate) rootfs: Option<Rootfs>,
}

impl Imports {
    pub(crate) fn new(from: Vec<CacheFrom>, remote: Remote, store: Arc<Store>) -> Self {
        let sources = from.into_iter().map(|from| Source { from, table: OnceCell::new() }).collect();
        Self { sources, remote, store }
    }

    /// The first result whose layers can be had, else what it is. `is_lost` knows blobs that turned out to be gone.
    pub(crate) async fn lookup(
        &self,
        context: &RunContext,
        key: &ContentDigest,
        is_lost: impl Fn(&Digest) -> bool,
    ) -> Option<Imported> {
        let mut hollow = None;
        for source in &self.sources {
            let loaded = source.table.get_or_init(|| self.read(context, &source.from.place)).await;
            let Some(Loaded { table, keys }) = loaded else { continue };
            let Some(entry) = table.entries.get(key) else { continue };
            let keys = keys.get(&(entry.stack, entry.content, entry.op)).cloned().unwrap_or_default();
            let found = |rootfs| Imported { keys: keys.clone(), op: entry.op, content: entry.content, rootfs };
            let record = |chain| CacheRecord { chain, content: entry.content, definition: entry.op };
            let adopted = match entry.stack {
                // What its layers hold is compared when they are unpacked.
                stack if !table.agrees(stack, entry.content) => {
                    let place = &source.from.place;
                    context.progress.warn(format!("the cache at {place} contradicts itself: a result is not used"));
                    continue;
                }
                Stack::Empty => self.save(key, &keys, &record(None)).map(|()| true),
                Stack::Layers(chain) => self
                    .adopt(table, &chain, &source.from.place, &is_lost)
                    .and_then(|known| if known { self.save(key, &keys, &record(Some(chain))) } else { Ok(()) })
                    // Layers that the cache names without having them must be here already.
                    .and_then(|()| Ok(self.store.lookup(key)?.is_some())),
                Stack::Elsewhere => Ok(false),
            };
            match adopted {
                Ok(true) => {
                    let chain = if let Stack::Layers(chain) = entry.stack { Some(chain) } else { None };
                    return Some(found(Some(Rootfs { chain, content: entry.content })));
                }
                Ok(false) => hollow = hollow.or(Some(found(None))),
                Err(error) => context.progress.warn(format!("cannot take over from the cache: {error}")),
            }
        }
        hollow
    }

    /// Tells the store of the layers of a stack and where they are. False when one is known to be gone.
    fn adopt(
        &self,
        table: &Table,
        chain: &Digest,
        place: &Place,
        is_lost: &impl Fn(&Digest) -> bool,
    ) -> Result<bool, StoreError> {
        let Some(stack) = table.stack(chain) else { return Ok(false) };
        let gone = |blob: &Option<Descriptor>| blob.as_ref().is_some_and(|blob| is_lost(&blob.digest));
        if stack.iter().any(|(_, layer)| gone(&layer.blob)) {
            return Ok(false);
        }
        let location = match place {
            Place::Registry(reference) => reference.repository().to_string(),
            Place::Local { path, .. } => layout_location(path),
            Place::Inline => return Ok(false),
        };
        let layers: Vec<ForeignLayer> = stack
            .into_iter()
            .map(|(chain, layer)| ForeignLayer {
                layer: LayerRecord {
                    chain,
                    parent: layer.parent,
                    diff_id: layer.diff_id,
                    content: layer.content,
                    size: layer.size,
                    writer: None,
                    created: layer.created,
                },
                blob: layer
                    .blob
                    .as_ref()
                    .map(|blob| LayerBlobRecord::from_elsewhere(blob.digest, blob.media_type.clone(), blob.size)),
            })
            .collect();
        self.store.put_foreign(&layers, &location, true)?;
        Ok(true)
    }

    /// Takes over what a cache knows of a result: under the key that was not found here, and under others that are not taken.
    fn save(&self, key: &ContentDigest, keys: &[ContentDigest], record: &CacheRecord) -> Result<(), StoreError> {
        self.store.save(&[*key], record)?;
        let others: Vec<ContentDigest> = keys.iter().filter(|other| *other != key).copied().collect();
        self.store.save_foreign(&others, record)
    }

    pub(super) async fn read(&self, context: &RunContext, place: &Place) -> Option<Loaded> {
        let vertex = context.progress.progress().vertex(&format!("importing cache manifest from {place}"));
        let read = async {
            match place {
                Place::Registry(reference) => {
                    read_registry(&self.remote.client, reference).await.map(|(table, _)| table)
                }
                Place::Local { path, tag, digest } => read_layout(path, tag, digest.as_ref()).map(|(table, _)| table),
                Place::Inline => Ok(Table::default()),
            }
        };
        vertex.started();
        let read = tokio::select! {
            () = context.cancelled.cancelled() => None,
            read = read => Some(read),
        };
        match read {
            Some(Ok(table)) => {
                if table.is_of_others() {
                    vertex.warn(format!(
                        "the cache at {place} is BuildKit's: it finds its {} results by keys of its own, none of which \
                         is rbuild's",
                        table.others
                    ));
                }
                vertex.completed();
                let keys = table.keys_by_result();
                Some(Loaded { table, keys })
            }
            Some(Err(error)) => {
                vertex.warn(format!("the cache at {place} is not used: {}", causes(&error)));
                vertex.completed();
                None
            }
            None => {
                vertex.failed("cancelled".into());
                None
            }
        }
    }
}

pub(super) fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text
}

/// The cache under a name, and the blobs that its manifest says are there.
pub(super) async fn read_registry(
    client: &Client,
    reference: &Reference,
) -> Result<(Table, registry::Digest), ReadError> {
    let repository = reference.repository();
    let resolved = client.resolve(reference).await?;
    let digest = resolved.digest().clone();
    let table = match resolved.parse()? {
        Manifest::Image(manifest) => {
            let config = client.small_blob(repository, manifest.config(), MAX_CONFIG).await?;
            let is_cache = manifest.config().media_type().to_string() == format::CONFIG;
            of_manifest(is_cache, &config, manifest.layers())?
        }
        Manifest::Index(index) => {
            let is_config = |descriptor: &&registry::Descriptor| descriptor.media_type().to_string() == format::CONFIG;
            if let Some(config) = index.manifests().iter().find(is_config) {
                let config = client.small_blob(repository, config, MAX_CONFIG).await?;
                return Ok((of_manifest(true, &config, index.manifests())?, digest));
            }
            let mut all = Table::default();
            for image in index.manifests().iter().take(MOST_IMAGES) {
                let Manifest::Image(manifest) = client.manifest(repository, image).await?.parse()? else { continue };
                let config = client.small_blob(repository, manifest.config(), MAX_CONFIG).await?;
                // An attestation's config is none.
                if let Ok(table) = of_manifest(false, &config, manifest.layers()) {
                    all.layers.extend(table.layers);
                    all.entries.extend(table.entries);
                }
            }
            all
        }
    };
    Ok((table, digest))
}

fn of_manifest(is_cache: bool, config: &[u8], blobs: &[registry::Descriptor]) -> Result<Table, ReadError> {
    let blobs: Vec<Descriptor> = blobs.iter().filter_map(own_descriptor).collect();
    if is_cache {
        return format::decode(config, &blobs).map_err(ReadError::Malformed);
    }
    let image = images::parse_config("the image", config)?;
    format::decode_inline(&image, &blobs).ok_or_else(|| {
        ReadError::Malformed(match format::has_inline_of_others(&image) {
            true => "the inline cache of this image is BuildKit's, which finds its results by keys of its own".into(),
            false => "it is an image without an inline cache of rbuild's".into(),
        })
    })
}

fn own_descriptor(descriptor: &registry::Descriptor) -> Option<Descriptor> {
    let digest = images::digest(descriptor.digest()).ok()?;
    Some(Descriptor::new(descriptor.media_type().to_string(), digest, descriptor.size()))
}

/// The cache in an OCI layout, and the digest of its manifest.
pub(super) fn read_layout(path: &Path, tag: &str, digest: Option<&Digest>) -> Result<(Table, Digest), ReadError> {
    let index = read_file(&path.join("index.json"), registry::MANIFEST_MAX)?;
    let index: Value = serde_json::from_slice(&index).map_err(|error| malformed(path, &error.to_string()))?;
    let manifest = match digest {
        Some(digest) => *digest,
        None => named(&index, tag).ok_or_else(|| malformed(path, &format!("there is no {tag:?} in its index")))?,
    };
    let bytes = read_blob(path, &manifest, registry::MANIFEST_MAX)?;
    let table = match Manifest::parse("", &bytes).map_err(|why| malformed(path, &why))? {
        Manifest::Image(image) => {
            let config = images::digest(image.config().digest()).map_err(|why| malformed(path, &why))?;
            let is_cache = image.config().media_type().to_string() == format::CONFIG;
            of_manifest(is_cache, &read_blob(path, &config, MAX_CONFIG)?, image.layers())?
        }
        Manifest::Index(blobs) => {
            let config = blobs.manifests().iter().find(|blob| blob.media_type().to_string() == format::CONFIG);
            let config = config.ok_or_else(|| malformed(path, "its index has no cache config"))?;
            let config = images::digest(config.digest()).map_err(|why| malformed(path, &why))?;
            of_manifest(true, &read_blob(path, &config, MAX_CONFIG)?, blobs.manifests())?
        }
    };
    Ok((table, manifest))
}

/// The manifest of this name in the index of a layout.
fn named(index: &Value, tag: &str) -> Option<Digest> {
    let is_named = |manifest: &&Value| manifest["annotations"]["org.opencontainers.image.ref.name"] == tag;
    let manifest = index.get("manifests")?.as_array()?.iter().find(is_named)?;
    manifest.get("digest")?.as_str()?.parse().ok()
}

fn malformed(path: &Path, why: &str) -> ReadError {
    ReadError::Malformed(format!("{} is not a cache: {why}", path.display()))
}

pub(super) fn read_blob(layout: &Path, digest: &Digest, limit: u64) -> Result<Vec<u8>, ReadError> {
    let path = layout.join("blobs/sha256").join(digest.hex());
    let bytes = read_file(&path, limit)?;
    if Digest::of(&bytes) == *digest {
        Ok(bytes)
    } else {
        Err(ReadError::Malformed(format!("{} is damaged", path.display())))
    }
}

fn read_file(path: &Path, limit: u64) -> Result<Vec<u8>, ReadError> {
    let failed = |source| ReadError::File { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    open_regular(path).and_then(|file| file.take(limit + 1).read_to_end(&mut bytes)).map_err(failed)?;
    if bytes.len() as u64 > limit {
        return Err(ReadError::Malformed(format!("{} is larger than {limit} bytes", path.display())));
    }
    Ok(bytes)
}

/// Neither waits for a pipe's writer nor follows a link out of the layout.
pub(super) fn open_regular(path: &Path) -> std::io::Result<std::fs::File> {
    let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
    let file = std::fs::OpenOptions::new().read(true).custom_flags(flags.bits() as i32).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(std::io::Error::other("it is not a regular file"));
    }
    Ok(file)
}
