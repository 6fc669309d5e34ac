//! `--cache-to`: after the image is out, what the build made and found goes to where other machines find it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use futures_util::future::try_join_all;
use graph::{Digest, ImageConfig};
use rustix::fs::{FlockOperation, flock};
use serde_json::{Value, json};
use snapshotter::{LayerRecord, Store, StoreError};
use solver::{Progress, RunContext, VertexProgress};
use tokio_util::sync::CancellationToken;

use super::import::{MAX_CONFIG, read_layout, read_registry};
use super::mounts::{CachedMount, MountExport, Part, UsedMounts};
use super::push::push;
use super::spec::{CacheTo, Mode, Place};
use super::table::{CachedLayer, Entry, Stack, Table};
use super::{Recorded, format};
use crate::export::{Descriptor, LayerBlob};
use crate::progress::bytes;
use crate::session::Session;
use crate::worker::{BlobForm, BlobTypes, WorkError, blocking};

/// A cache that could not be written.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The registry.
    #[error("cannot export the cache to {name}")]
    Registry {
        /// The name.
        name: String,
        /// Why.
        source: Box<registry::Error>,
    },
    /// The directory.
    #[error("cannot write the cache {}", path.display())]
    Write {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Nobody would read it; what is there stays.
    #[error("cannot export the cache: its {what} would have {}, and no more than {} are read", bytes(*size), bytes(*most))]
    TooLarge {
        /// Which document.
        what: &'static str,
        /// Its length.
        size: u64,
        /// The most that it may have.
        most: u64,
    },
    /// Layers.
    #[error("cannot export the cache")]
    Work(#[from] WorkError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What a build leaves for others.
pub struct Leaves<'a> {
    /// What it made and found.
    pub results: &'a [Recorded],
    /// The layers of its images.
    pub stacks: &'a [Digest],
    /// Cache mounts of the steps that ran.
    pub mounts: &'a UsedMounts,
}

/// Writes one cache.
///
/// # Errors
/// The registry refused, the disk, or a layer that cannot be had.
pub async fn export(
    session: &Session,
    leaves: &Leaves<'_>,
    to: &CacheTo,
    progress: &Progress,
    cancelled: &CancellationToken,
) -> Result<(), ExportError> {
    let name = match &to.place {
        Place::Registry(_) => format!("exporting cache to registry {}", to.place),
        Place::Local { .. } => format!("exporting cache to {}", to.place),
        // It left with the image.
        Place::Inline => return Ok(()),
    };
    let vertex = progress.vertex(&name);
    let context = RunContext { progress: vertex.clone(), cancelled: cancelled.clone() };
    vertex
        .during(async {
            let mut table = table(&session.store, leaves.results, leaves.stacks, to.mode, jiff::Timestamp::now())?;
            let mut files = add_blobs(session, &mut table, to, &context).await?;
            // Files of parts of mounts are for this cache alone, and gone when it is written.
            let mut _parts = None;
            if let Some(most) = to.mounts.filter(|_| !leaves.mounts.is_empty()) {
                let scratch = tempfile::tempdir_in(session.store.scratch_directory()).map_err(WorkError::Io)?;
                let (mounts, parts) = mounts(session, leaves.mounts, most, &to.place, scratch.path(), &context).await?;
                table.mounts = mounts;
                // A layer of the same bytes is no less a layer.
                for (digest, part) in parts {
                    files.entry(digest).or_insert(part);
                }
                _parts = Some(scratch);
            }
            match &to.place {
                Place::Registry(reference) => tokio::select! {
                    () = cancelled.cancelled() => Err(WorkError::Cancelled.into()),
                    pushed = push(session, &table, &files, reference, to, &context) => pushed,
                },
                Place::Local { path, tag, .. } => {
                    let (path, tag, to) = (path.clone(), tag.clone(), to.clone());
                    // What turned out to be damaged there is written anew.
                    let is_lost = |blob: &&LayerBlob| session.layers.is_lost(&blob.descriptor.digest);
                    let lost = files.values().filter(is_lost).map(|blob| blob.descriptor.digest).collect();
                    let vertex = vertex.clone();
                    let write = move || write(&table, &files, &lost, (&path, &tag), &to, &vertex);
                    let written = tokio::task::spawn_blocking(write);
                    written.await.map_err(|_| WorkError::Internal("writing the cache panicked"))?
                }
                Place::Inline => Ok(()),
            }
        })
        .await
}

/// Puts the records of a build into the config of its image. The layers of the result are the image's.
///
/// # Errors
/// The database.
pub(crate) fn inline_into(
    config: &mut ImageConfig,
    store: &Store,
    results: &[Recorded],
    result: Option<Digest>,
) -> Result<(), StoreError> {
    let table = table(store, results, result.as_slice(), Mode::Min, jiff::Timestamp::UNIX_EPOCH)?;
    let chains: Vec<Digest> = match result {
        Some(chain) => store.chain_layers(&chain)?.into_iter().map(|layer| layer.chain).collect(),
        None => Vec::new(),
    };
    format::inline(config, &table, &chains);
    Ok(())
}

/// What is known of a build's results, without blobs.
fn table(
    store: &Store,
    results: &[Recorded],
    stacks: &[Digest],
    mode: Mode,
    used: jiff::Timestamp,
) -> Result<Table, StoreError> {
    let mut known: HashMap<Digest, LayerRecord> = HashMap::new();
    let mut image: BTreeSet<Digest> = BTreeSet::new();
    for chain in stacks {
        for layer in store.chain_layers(chain)? {
            image.insert(layer.chain);
            known.insert(layer.chain, layer);
        }
    }
    // A hit by one key says nothing of the others that lead there.
    let mut other_keys: HashMap<_, Vec<_>> = HashMap::new();
    for recorded in store.recorded_keys()? {
        other_keys.entry((recorded.chain, recorded.definition)).or_default().push(recorded.key);
    }
    let mut table = Table::default();
    for recorded in results {
        let stack = match recorded.chain {
            _ if recorded.hollow => Stack::Elsewhere,
            None => Stack::Empty,
            Some(chain) if mode == Mode::Max || image.contains(&chain) => Stack::Layers(chain),
            Some(_) => Stack::Elsewhere,
        };
        if let Stack::Layers(chain) = stack {
            if !known.contains_key(&chain) {
                known.extend(store.chain_layers(&chain)?.into_iter().map(|layer| (layer.chain, layer)));
            }
            add_layers(&mut table, &known, chain);
        }
        let entry = Entry { stack, content: recorded.content, op: recorded.op, used };
        let others = recorded.chain.and_then(|chain| other_keys.get(&(chain, recorded.op)));
        for key in recorded.keys.iter().chain(others.into_iter().flatten()) {
            table.entries.insert(*key, entry);
        }
    }
    Ok(table)
}

/// Contents of the mounts that the build used, cut into parts, of which those are compressed that the cache has not.
async fn mounts(
    session: &Session,
    used: &UsedMounts,
    most: u64,
    place: &Place,
    scratch: &Path,
    context: &RunContext,
) -> Result<(BTreeMap<String, CachedMount>, Files), ExportError> {
    let there = match place {
        Place::Registry(reference) => {
            read_registry(&session.remote.client.directly(), reference).await.map(|(table, _)| table)
        }
        Place::Local { path, tag, .. } => read_layout(path, tag, None).map(|(table, _)| table),
        Place::Inline => Ok(Table::default()),
    };
    // What cannot be read has no part that could be taken over, nor has what has lost it.
    let mut there = there.unwrap_or_default();
    there.mounts.retain(|_, mount| {
        mount.parts.iter().all(|Part { blob, .. }| match place {
            Place::Local { path, .. } => is_in_layout(path, blob) && !session.layers.is_lost(&blob.digest),
            Place::Registry(_) | Place::Inline => !session.layers.is_lost(&blob.digest),
        })
    });
    let (store, used, scratch, context) = (session.store.clone(), used.clone(), scratch.to_owned(), context.clone());
    blocking(move || {
        let export = MountExport { store: &store, used: &used, most, there: &there, scratch: &scratch };
        Ok(export.pack(&context))
    })
    .await?
}

fn add_layers(table: &mut Table, known: &HashMap<Digest, LayerRecord>, chain: Digest) {
    let mut next = Some(chain);
    while let Some(layer) = next.and_then(|chain| known.get(&chain)) {
        next = layer.parent;
        let cached = CachedLayer {
            parent: layer.parent,
            diff_id: layer.diff_id,
            content: layer.content,
            size: layer.size,
            created: layer.created,
            blob: None,
        };
        if table.layers.insert(layer.chain, cached).is_some() {
            return;
        }
    }
}

/// What a cache's blobs are sent from, by their digests.
pub(super) type Files = BTreeMap<Digest, LayerBlob>;

/// Compresses what has no blob yet. A layer of somebody else's image that is not here stays where it is: who uses the cache
/// has that image too.
async fn add_blobs(
    session: &Session,
    table: &mut Table,
    to: &CacheTo,
    context: &RunContext,
) -> Result<Files, ExportError> {
    let types = if to.oci { BlobTypes::Oci } else { BlobTypes::Docker };
    let mut wanted: BTreeMap<Digest, LayerRecord> = BTreeMap::new();
    for (chain, layer) in &table.layers {
        if let Some(record) = session.store.layer(chain)? {
            // A layer that lies on several stacks is one blob; the one of ours can be made again.
            let known = wanted.entry(layer.diff_id).or_insert_with(|| record.clone());
            if known.writer.is_none() {
                *known = record;
            }
        }
    }
    let registry = match &to.place {
        Place::Registry(reference) => Some(reference.registry()),
        Place::Local { .. } | Place::Inline => None,
    };
    let blobs = wanted.values().enumerate().map(|(number, layer)| async move {
        let is_foreign = layer.content == layer.diff_id.into();
        if is_foreign && !is_near(session, layer, registry)? {
            return Ok(None);
        }
        let bytes = registry.is_none();
        let form = BlobForm { number, compression: to.compression, types, bytes, begins: None };
        match session.layers.blob(context, layer, &form).await {
            Ok(blob) => Ok::<_, ExportError>(Some(blob)),
            // The image is out. What made the layer is done again by the next build, which misses it.
            Err(error @ WorkError::LayerGone { .. }) => {
                context.progress.warn(format!("{error}: it is left out"));
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    });
    let blobs = tokio::select! {
        () = context.cancelled.cancelled() => return Err(WorkError::Cancelled.into()),
        blobs = try_join_all(blobs) => blobs?,
    };
    let blobs: Vec<LayerBlob> = blobs.into_iter().flatten().collect();
    let by_diff_id: HashMap<Digest, &LayerBlob> = blobs.iter().map(|blob| (blob.diff_id, blob)).collect();
    for layer in table.layers.values_mut() {
        layer.blob = by_diff_id.get(&layer.diff_id).map(|blob| blob.descriptor.clone());
    }
    Ok(blobs.into_iter().map(|blob| (blob.descriptor.digest, blob)).collect())
}

/// Whether a layer's bytes are on this machine, or at the registry that the cache goes to.
fn is_near(session: &Session, layer: &LayerRecord, registry: Option<&str>) -> Result<bool, ExportError> {
    let store = &session.store;
    if store.blob_path(&layer.diff_id).is_some() || store.is_unpacked(&layer.chain)? {
        return Ok(true);
    }
    for blob in store.layer_blobs(&layer.diff_id)? {
        let places = session.remote.locations(&blob.digest)?;
        if store.blob_path(&blob.digest).is_some() || places.iter().any(|place| Some(place.registry()) == registry) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// A table as it is written.
pub(super) struct Documents {
    pub(super) config: Vec<u8>,
    /// Of the config.
    pub(super) descriptor: Descriptor,
    pub(super) manifest: Vec<u8>,
    pub(super) media_type: &'static str,
}

impl Documents {
    /// # Errors
    /// Its readers would find it too large.
    pub(super) fn of(table: &Table, to: &CacheTo) -> Result<Self, ExportError> {
        let (config, blobs) = format::encode(table);
        let descriptor = Descriptor::new(format::CONFIG, Digest::of(&config), config.len() as u64);
        let (manifest, media_type) = manifest(&descriptor, &blobs, to);
        let limits = [("config", config.len(), MAX_CONFIG), ("manifest", manifest.len(), registry::MANIFEST_MAX)];
        for (what, size, most) in limits {
            let size = size as u64;
            if size > most {
                return Err(ExportError::TooLarge { what, size, most });
            }
        }
        Ok(Self { config, descriptor, manifest, media_type })
    }
}

/// The manifest around a config and blobs, and its media type.
fn manifest(config: &Descriptor, blobs: &[Descriptor], to: &CacheTo) -> (Vec<u8>, &'static str) {
    let (media_type, document) = if to.image_manifest {
        let media_type = registry::OCI_MANIFEST;
        (media_type, json!({ "schemaVersion": 2, "mediaType": media_type, "config": config, "layers": blobs }))
    } else {
        let media_type = if to.oci { registry::OCI_INDEX } else { registry::DOCKER_LIST };
        let manifests: Vec<&Descriptor> = blobs.iter().chain([config]).collect();
        (media_type, json!({ "schemaVersion": 2, "mediaType": media_type, "manifests": manifests }))
    };
    (document.to_string().into_bytes(), media_type)
}

/// Keys of two makers cannot be told from each other by either of them: who writes last has the name.
pub(super) fn warn_of_others(name: &str, vertex: &VertexProgress) {
    vertex.warn(format!("the cache {name} was BuildKit's and is replaced: give each its own name"));
}

/// Into an OCI layout, whose other names stay.
fn write(
    table: &Table,
    files: &Files,
    lost: &BTreeSet<Digest>,
    (layout, tag): (&Path, &str),
    to: &CacheTo,
    vertex: &VertexProgress,
) -> Result<(), ExportError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| ExportError::Write { path, source }
    };
    let blobs_path = layout.join("blobs/sha256");
    fs::create_dir_all(&blobs_path).map_err(failed(&blobs_path))?;
    // Held until the end: one job after the other.
    let lock = File::open(layout).map_err(failed(layout))?;
    flock(&lock, FlockOperation::LockExclusive).map_err(|error| failed(layout)(error.into()))?;
    let (there, before) = match read_layout(layout, tag, None) {
        Ok((table, digest)) => (table, Some(digest)),
        Err(_) => (Table::default(), None),
    };
    if there.is_of_others() {
        warn_of_others(&layout.display().to_string(), vertex);
    }
    let mut table = table.clone();
    table.join(&there, jiff::Timestamp::now());
    for blob in files.values().filter(|blob| blob.path.is_none() && lost.contains(&blob.descriptor.digest)) {
        // It cannot be written anew; what follows finds that it is not there.
        let _ = fs::remove_file(blobs_path.join(blob.descriptor.digest.hex()));
    }
    for blob in files.values() {
        let digest = blob.descriptor.digest;
        let path = blobs_path.join(digest.hex());
        let is_there = is_in_layout(layout, &blob.descriptor) && !lost.contains(&digest);
        if let Some(from) = blob.path.as_ref().filter(|_| !is_there) {
            let mut from = File::open(from).map_err(failed(from))?;
            put(&path, |to| io::copy(&mut from, to).map(drop)).map_err(failed(&path))?;
        }
    }
    // What was cleared away by hand is not promised.
    for layer in table.layers.values_mut() {
        layer.blob = layer.blob.take().filter(|blob| is_in_layout(layout, blob));
    }
    table.mounts.retain(|_, mount| mount.parts.iter().all(|part| is_in_layout(layout, &part.blob)));
    let Documents { config, descriptor, manifest, media_type } = Documents::of(&table, to)?;
    let digest = Digest::of(&manifest);
    for (digest, bytes) in [(descriptor.digest, &config), (digest, &manifest)] {
        let path = blobs_path.join(digest.hex());
        put(&path, |file| file.write_all(bytes)).map_err(failed(&path))?;
    }
    let marker = layout.join("oci-layout");
    put(&marker, |file| file.write_all(br#"{"imageLayoutVersion":"1.0.0"}"#)).map_err(failed(&marker))?;
    let index_path = layout.join("index.json");
    let index = with_manifest(fs::read(&index_path).ok().as_deref(), tag, &digest, manifest.len(), media_type);
    put(&index_path, |file| file.write_all(index.to_string().as_bytes())).map_err(failed(&index_path))?;
    if let Some(before) = before.filter(|before| *before != digest) {
        forget(&blobs_path, &there, &before, &index, &table);
    }
    Ok(())
}

/// Whether a layout has a blob, by its length.
fn is_in_layout(layout: &Path, blob: &Descriptor) -> bool {
    let file = fs::metadata(layout.join("blobs/sha256").join(blob.digest.hex()));
    file.is_ok_and(|file| file.is_file() && file.len() == blob.size)
}

/// Complete or not at all.
fn put(path: &Path, fill: impl FnOnce(&mut File) -> io::Result<()>) -> io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("."));
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    let mut file = tempfile::Builder::new().prefix(".rbuild-").permissions(mode).tempfile_in(directory)?;
    fill(file.as_file_mut())?;
    file.persist(path).map_err(|error| error.error)?;
    Ok(())
}

/// The layout's index in which the name leads to the manifest.
fn with_manifest(index: Option<&[u8]>, tag: &str, digest: &Digest, size: usize, media_type: &str) -> Value {
    let old = index.and_then(|bytes| serde_json::from_slice::<Value>(bytes).ok()).unwrap_or_default();
    let mut manifests = old.get("manifests").and_then(Value::as_array).cloned().unwrap_or_default();
    let name = "org.opencontainers.image.ref.name";
    manifests.retain(|manifest| manifest["annotations"][name] != tag);
    let annotations = json!({ name: tag });
    manifests.push(json!({ "mediaType": media_type, "digest": digest, "size": size, "annotations": annotations }));
    json!({ "schemaVersion": 2, "mediaType": registry::OCI_INDEX, "manifests": manifests })
}

/// Removes what only the replaced manifest named: its config, itself, and layers, unless the layout has other names, whose
/// blobs are not ours to judge.
fn forget(blobs: &Path, old: &Table, manifest: &Digest, index: &Value, now: &Table) {
    if index.get("manifests").and_then(Value::as_array).is_none_or(|manifests| manifests.len() != 1) {
        return;
    }
    let kept = now.blobs();
    let config = fs::read(blobs.join(manifest.hex())).ok().and_then(|bytes| {
        let manifest: Value = serde_json::from_slice(&bytes).ok()?;
        manifest.get("config")?.get("digest")?.as_str()?.parse::<Digest>().ok()
    });
    for digest in old.blobs().into_iter().chain(config).chain([*manifest]).filter(|digest| !kept.contains(digest)) {
        // What stays costs space, no more.
        let _ = fs::remove_file(blobs.join(digest.hex()));
    }
}

#[cfg(test)]
mod tests {
    use super::super::mounts::{MOST_PARTS, PART};
    use super::*;

    /// A cache with one mount of so many parts, each another blob.
    fn table(parts: usize) -> Table {
        let part = |n: usize| {
            let digest = Digest::of(&n.to_le_bytes());
            Part { raw: digest, size: 16 << 20, blob: Descriptor::new(PART, digest, 16 << 20) }
        };
        let (tar, used) = (Digest::of(b"tar"), jiff::Timestamp::UNIX_EPOCH);
        let mount = CachedMount { tar, used, parts: (0..parts).map(part).collect() };
        Table { mounts: [("id".to_owned(), mount)].into(), ..Table::default() }
    }

    #[test]
    fn what_nobody_would_read_is_not_written() {
        let dir = tempfile::tempdir().unwrap();
        let (layout, to) = (dir.path(), CacheTo::parse("type=local,dest=c").unwrap());
        let (progress, _events) = solver::channel();
        let vertex = progress.vertex("the cache");
        let write = |table: &Table| write(table, &Files::new(), &BTreeSet::new(), (layout, "latest"), &to, &vertex);
        write(&table(0)).unwrap();
        let before = fs::read(layout.join("index.json")).unwrap();
        // As many parts as there may be leave the manifest room for layers.
        let documents = Documents::of(&table(MOST_PARTS), &to).unwrap();
        assert!(documents.manifest.len() < 2 << 20 && documents.config.len() < 2 << 20);
        let error = Documents::of(&table(60_000), &to).map(|_| ()).unwrap_err();
        assert!(matches!(error, ExportError::TooLarge { .. }), "{error}");
        // An id of any length, with no part that the layout would have to have.
        let (mut large, id) = (table(0), "x".repeat(17 << 20));
        large.mounts = large.mounts.into_values().map(|mount| (id.clone(), mount)).collect();
        let error = write(&large).unwrap_err();
        assert!(error.to_string().contains("no more than"), "{error}");
        assert_eq!(fs::read(layout.join("index.json")).unwrap(), before);
    }
}
