//! Images of the store as people name them, and as they leave it again: with the very manifest they came with, where that is
//! known.

use std::collections::BTreeMap;

use futures_util::future::try_join_all;
use graph::{Digest, ImageConfig, Platform};
use registry::{Manifest, Reference};
use snapshotter::{ImageKind, ImageRecord, ManifestRef, Store, StoreError};
use solver::RunContext;

use crate::export::{Artifact, DOCKER, Descriptor, LayerBlob, OCI, OutputSpec, Package};
use crate::images::{ImageError, chain_of, digest, parse_config, parse_name};
use crate::outputs::{self, OutputError};
use crate::session::Session;
use crate::worker::WorkError;

/// Fewer hex digits are taken for a name only.
const SHORTEST_ID: usize = 4;

/// An image that is not there, or not to be told from others.
#[derive(Debug, thiserror::Error)]
pub enum StoredError {
    /// Neither name nor id.
    #[error("there is no image {0:?} in the store")]
    Missing(String),
    /// An id too short.
    #[error("{0:?} is the beginning of several image ids")]
    Ambiguous(String),
    /// The config.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// An image of the store.
#[derive(Debug, Clone)]
pub struct Stored {
    /// Digest of the config.
    pub id: Digest,
    /// The config as it is stored.
    pub bytes: Vec<u8>,
    /// The config, read.
    pub config: ImageConfig,
    /// The name by which it was asked for; `None`: by its id.
    pub name: Option<Reference>,
    /// The manifest it came with or left with.
    pub manifest: Option<ManifestRef>,
}

impl Stored {
    /// Finds an image by its name, its id or the beginning of its id.
    ///
    /// # Errors
    /// There is none, or more than one.
    pub fn find(store: &Store, text: &str) -> Result<Self, StoredError> {
        let missing = || StoredError::Missing(text.to_owned());
        // What only an id can be is no valid name, and what is no valid name may still be an id.
        let name = if text.starts_with("sha256:") { None } else { parse_name(text).ok() };
        if let Some(name) = name
            && let Some(record) = store.image(&name.to_string())?
        {
            return Self::open(store, record.config, Some(name), record.manifest)?.ok_or_else(missing);
        }
        let id = Self::find_id(store, text)?.ok_or_else(missing)?;
        let named = store.images()?.into_iter().filter(|record| record.config == id);
        let manifest = named.filter_map(|record| record.manifest).next();
        Self::open(store, id, None, manifest)?.ok_or_else(missing)
    }

    fn open(
        store: &Store,
        id: Digest,
        name: Option<Reference>,
        manifest: Option<ManifestRef>,
    ) -> Result<Option<Self>, StoredError> {
        let Some(bytes) = store.read_blob(&id)? else { return Ok(None) };
        let text = name.as_ref().map_or_else(|| id.short(), Reference::familiar);
        let config = parse_config(&text, &bytes)?;
        Ok(Some(Self { id, bytes, config, name, manifest }))
    }

    /// The id that begins like this: of a named image, else of an image that was built or loaded without a name.
    fn find_id(store: &Store, text: &str) -> Result<Option<Digest>, StoredError> {
        let digits = text.strip_prefix("sha256:").unwrap_or(text);
        let hex = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        if !(SHORTEST_ID..=64).contains(&digits.len()) || !digits.bytes().all(hex) {
            return Ok(None);
        }
        if let Ok(whole) = format!("sha256:{digits}").parse::<Digest>() {
            return Ok(store.blob_path(&whole).is_some().then_some(whole));
        }
        let mut found: Vec<Digest> = store.images()?.iter().map(|record| record.config).collect();
        found.retain(|id| id.hex().starts_with(digits));
        if found.is_empty() {
            found = unnamed(store, digits);
        }
        found.sort_unstable();
        found.dedup();
        match found.as_slice() {
            [] => Ok(None),
            [id] => Ok(Some(*id)),
            _ => Err(StoredError::Ambiguous(text.to_owned())),
        }
    }

    /// Its name if it has one, else its id, for people.
    #[must_use]
    pub fn label(&self) -> String {
        self.name.as_ref().map_or_else(|| self.id.short(), Reference::familiar)
    }

    /// The stack of its layers.
    #[must_use]
    pub fn chain(&self) -> Option<Digest> {
        chain_of(&self.config.rootfs.diff_ids)
    }

    /// Whether all its layers are on this machine, in whatever form.
    #[must_use]
    pub fn is_here(&self, session: &Session) -> bool {
        let Some(chain) = self.chain() else { return true };
        let store = &session.store;
        let is_here = |layer: &snapshotter::LayerRecord| -> Result<bool, StoreError> {
            let blobs = store.layer_blobs(&layer.diff_id)?;
            Ok(store.is_unpacked(&layer.chain)?
                || store.blob_path(&layer.diff_id).is_some()
                || blobs.iter().any(|blob| store.blob_path(&blob.digest).is_some()))
        };
        let layers = store.chain_layers(&chain);
        layers.is_ok_and(|layers| layers.iter().all(|layer| is_here(layer).unwrap_or(false)))
    }

    /// The image as it leaves: with its own manifest where its blobs can be had, otherwise with one made as `output` says.
    /// With `bytes` all layers are brought here; those that have to be compressed are sent `early` to where all of it will go.
    ///
    /// # Errors
    /// A layer that cannot be had or compressed.
    pub async fn package(
        &self,
        session: &Session,
        output: &OutputSpec,
        context: &RunContext,
        bytes: bool,
        early: Option<&Reference>,
    ) -> Result<Package, OutputError> {
        if let Some(package) = self.recorded(session)? {
            if !bytes {
                return Ok(package);
            }
            fetch(session, package.layers().map(|layer| &layer.descriptor), context).await?;
            // Fetched now, unless a blob went away meanwhile; then the layers are packed anew.
            if let Some(package) = self.recorded(session)?
                && package.layers().all(|layer| layer.path.is_some())
            {
                return Ok(package);
            }
        }
        if let Some(manifest) = self.manifest.as_ref().filter(|manifest| is_index(&manifest.media_type)) {
            let platform = self.config.platform();
            let lost = format!("the index {} is no longer whole here", manifest.digest.short());
            context.progress.warn(format!("{lost}: of {} only the image for {platform} is taken", self.label()));
        }
        let (chain, annotations) = (self.chain(), BTreeMap::new());
        let only = outputs::artifact(session, chain.as_ref(), &self.bytes, output, &annotations, context, bytes, early);
        Ok(Package::single(only.await?))
    }

    /// The image with the manifest or index that is recorded of it, if every blob is here or at a registry that is known.
    fn recorded(&self, session: &Session) -> Result<Option<Package>, OutputError> {
        let Some(mut package) = self.recorded_alone(session)? else { return Ok(None) };
        let subjects = package.images.iter().map(|image| image.manifest_descriptor.digest);
        for subject in subjects.chain(package.index.as_ref().map(|(_, index)| index.digest)) {
            package.attestations.extend(crate::referrers::of(&session.store, &subject)?);
        }
        // Those that the index names are among its images.
        let named: Vec<Digest> = package.images.iter().map(|image| image.manifest_descriptor.digest).collect();
        package.attestations.retain(|attestation| !named.contains(&attestation.descriptor.digest));
        Ok(Some(package))
    }

    fn recorded_alone(&self, session: &Session) -> Result<Option<Package>, OutputError> {
        let store = &session.store;
        let Some(reference) = &self.manifest else { return Ok(None) };
        let Some(bytes) = store.read_blob(&reference.digest)? else { return Ok(None) };
        let own = Descriptor::new(reference.media_type.clone(), reference.digest, bytes.len() as u64);
        match Manifest::parse(&reference.media_type, &bytes) {
            Ok(Manifest::Image(_)) => {
                let image = recorded_image(session, &own, &bytes)?;
                Ok(image.filter(|image| image.config_descriptor.digest == self.id).map(Package::single))
            }
            Ok(Manifest::Index(index)) => {
                let mut images = Vec::with_capacity(index.manifests().len());
                for child in index.manifests() {
                    let Some(child) = descriptor(child) else { return Ok(None) };
                    let Some(bytes) = store.read_blob(&child.digest)? else { return Ok(None) };
                    let Some(image) = recorded_image(session, &child, &bytes)? else { return Ok(None) };
                    images.push(image);
                }
                let index = Some((bytes, own));
                Ok(Some(Package { images, index, annotations: BTreeMap::new(), attestations: Vec::new() }))
            }
            Err(_) => Ok(None),
        }
    }
}

fn is_index(media_type: &str) -> bool {
    media_type == OCI.index || media_type == DOCKER.index
}

/// One image with a manifest that is recorded.
fn recorded_image(session: &Session, own: &Descriptor, bytes: &[u8]) -> Result<Option<Artifact>, OutputError> {
    let store = &session.store;
    let Ok(Manifest::Image(manifest)) = Manifest::parse(&own.media_type, bytes) else { return Ok(None) };
    let Some(config_descriptor) = descriptor(manifest.config()) else { return Ok(None) };
    let Some(config_bytes) = store.read_blob(&config_descriptor.digest)? else { return Ok(None) };
    let blobs: Option<Vec<Descriptor>> = manifest.layers().iter().map(descriptor).collect();
    let Some(blobs) = blobs else { return Ok(None) };
    let is_image = config_descriptor.media_type == OCI.config || config_descriptor.media_type == DOCKER.config;
    let diff_ids = match parse_config("", &config_bytes) {
        Ok(config) if is_image => config.rootfs.diff_ids,
        // Of what is no image the blobs are what they are.
        _ => blobs.iter().map(|blob| blob.digest).collect(),
    };
    if blobs.len() != diff_ids.len() {
        return Ok(None);
    }
    let mut layers = Vec::with_capacity(diff_ids.len());
    for (descriptor, diff_id) in blobs.into_iter().zip(&diff_ids) {
        let path = store.blob_path(&descriptor.digest);
        if path.is_none() && store.locations(&descriptor.digest)?.is_empty() {
            return Ok(None);
        }
        layers.push(LayerBlob { diff_id: *diff_id, descriptor, path });
    }
    Ok(Some(Artifact {
        config: config_bytes,
        config_descriptor,
        layers,
        manifest: bytes.to_vec(),
        manifest_descriptor: own.clone(),
    }))
}

/// Images without a name are known only by their configs among the blobs.
fn unnamed(store: &Store, digits: &str) -> Vec<Digest> {
    let blobs = std::fs::read_dir(store.root().join("blobs/sha256"));
    let digest = |name: String| name.starts_with(digits).then(|| format!("sha256:{name}").parse::<Digest>().ok())?;
    let names = blobs.into_iter().flatten().flatten().filter_map(|entry| entry.file_name().into_string().ok());
    names.filter_map(digest).filter(|blob| is_config(store, blob)).collect()
}

fn is_config(store: &Store, blob: &Digest) -> bool {
    /// Configs are small; a layer is not read only to find that it is none.
    const LARGEST: u64 = 16 << 20;
    let small = store.blob_path(blob).and_then(|path| path.metadata().ok()).is_some_and(|file| file.len() <= LARGEST);
    if !small {
        return false;
    }
    let Ok(Some(bytes)) = store.read_blob(blob) else { return false };
    serde_json::from_slice::<ImageConfig>(&bytes).is_ok_and(|config| config.rootfs.kind == "layers")
}

fn descriptor(descriptor: &registry::Descriptor) -> Option<Descriptor> {
    let digest = digest(descriptor.digest()).ok()?;
    let urls = descriptor.urls().clone().unwrap_or_default();
    Some(Descriptor { urls, ..Descriptor::new(descriptor.media_type().to_string(), digest, descriptor.size()) })
}

/// Brings blobs of layers here, those that are missing, at the same time.
async fn fetch(
    session: &Session,
    blobs: impl Iterator<Item = &Descriptor>,
    context: &RunContext,
) -> Result<usize, WorkError> {
    let mut seen = std::collections::BTreeSet::new();
    let missing: Vec<(usize, &Descriptor)> = blobs
        .enumerate()
        .filter(|(_, blob)| seen.insert(blob.digest) && session.store.blob_path(&blob.digest).is_none())
        .collect();
    let fetched = missing.iter().map(|(number, blob)| session.layers.fetch_blob(context, blob, *number));
    tokio::select! {
        () = context.cancelled.cancelled() => return Err(WorkError::Cancelled),
        fetched = try_join_all(fetched) => fetched?,
    };
    Ok(missing.len())
}

/// What pulling found.
#[derive(Debug, Clone)]
pub struct Pulled {
    /// The image.
    pub image: Stored,
    /// Digest of what the name leads to at the registry: an index, or the image's manifest.
    pub digest: Option<Digest>,
    /// Everything was here already.
    pub up_to_date: bool,
}

/// Brings an image here with all its layers, and names it.
///
/// # Errors
/// There is none for the platform, or the registry, or the disk.
pub async fn pull(
    session: &Session,
    name: &Reference,
    platform: &Platform,
    context: &RunContext,
) -> Result<Pulled, OutputError> {
    let before = session.store.image(&name.to_string())?;
    // Until its layers are here nobody has pulled it.
    let found = tokio::select! {
        () = context.cancelled.cancelled() => return Err(WorkError::Cancelled.into()),
        found = session.remote.pull_config(name, platform, ImageKind::Base) => found.map_err(WorkError::from)?,
    };
    let record = session.store.image(&name.to_string())?.ok_or(WorkError::Internal("a pulled image has no name"))?;
    let image = Stored::open(&session.store, found.config, Some(name.clone()), record.manifest.clone());
    let image = match image {
        Ok(Some(image)) => image,
        Ok(None) => return Err(WorkError::Internal("a pulled config is not in the store").into()),
        Err(StoredError::Store(error)) => return Err(error.into()),
        Err(StoredError::Image(error)) => return Err(WorkError::from(error).into()),
        Err(StoredError::Missing(_) | StoredError::Ambiguous(_)) => {
            return Err(WorkError::Internal("a pulled image cannot be found").into());
        }
    };
    let fetched = match image.recorded(session)? {
        Some(package) => fetch(session, package.layers().map(|layer| &layer.descriptor), context).await?,
        None => return Err(WorkError::Internal("a pulled manifest is not in the store").into()),
    };
    session.store.put_image(&ImageRecord { kind: ImageKind::Tagged, ..record.clone() })?;
    make_durable(session).await?;
    let same = before.is_some_and(|before| before.config == record.config && before.kind == ImageKind::Tagged);
    Ok(Pulled { image, digest: found.resolved.manifest_digest, up_to_date: same && fetched == 0 })
}

/// Waits until what the store has outlives a crash of the machine.
///
/// # Errors
/// The disk.
pub(crate) async fn make_durable(session: &Session) -> Result<(), WorkError> {
    let store = std::sync::Arc::clone(&session.store);
    crate::worker::blocking(move || Ok(store.make_durable()?)).await
}
