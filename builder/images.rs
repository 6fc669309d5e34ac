//! From names of images to configs and layers: local tags first, then registries. No layer is fetched here.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use frontend::{ImageRequest, ResolvedImage};
use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use graph::{Digest, ImageConfig, Platform};
use registry::{Client, Manifest, Reference, Repository, Resolved, Verifier, Want};
use snapshotter::{ForeignLayer, ImageKind, ImageRecord, LayerBlobRecord, LayerRecord, Store, StoreError};
use tokio::sync::mpsc;

use crate::export::Descriptor;
use crate::provenance::Material;

/// An image that cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The name.
    #[error("invalid image name {name:?}: {why}")]
    Name {
        /// As written.
        name: String,
        /// What is wrong.
        why: String,
    },
    /// The registry.
    #[error("cannot get {name}")]
    Registry {
        /// As written.
        name: String,
        /// Why.
        source: Box<registry::Error>,
    },
    /// What the registry or the store had makes no sense.
    #[error("{name} is not a usable image: {why}")]
    Malformed {
        /// As written.
        name: String,
        /// What is wrong.
        why: String,
    },
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The registry of images that came with `--build-context`: no host can have this name (RFC 2606).
pub(crate) const CONTEXT_REGISTRY: &str = "context.invalid";

/// Manifests and indexes that are fetched to find one image.
const MANIFESTS_MAX: usize = 16;

/// URLs of one layer that are tried.
pub(crate) const URLS_MAX: usize = 8;

/// What configs of images are called; old ones may have other types, configs of other things always have.
const IMAGE_CONFIGS: [&str; 2] =
    ["application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"];

/// Largest config that is read.
const MAX_CONFIG: u64 = 16 << 20;

/// Access to registries on behalf of a store.
#[derive(Clone)]
pub struct Remote {
    /// The client.
    pub client: Client,
    store: Arc<Store>,
}

/// An image found, with what a manifest said of it.
#[derive(Debug, Clone)]
pub struct Found {
    /// For the frontend.
    pub resolved: ResolvedImage,
    /// The config's bytes are in the store under this digest.
    pub config: Digest,
    /// The stack of its layers; `None`: it has none.
    pub chain: Option<Digest>,
    /// It was there without asking a registry.
    pub local: bool,
}

impl Found {
    /// What it is, for those who want to know what a build was built from.
    pub(crate) fn material(&self, request: &ImageRequest) -> Material {
        let digest = self.resolved.manifest_digest.unwrap_or(self.config);
        Material::image(&request.reference, &request.platform, &digest)
    }
}

impl Remote {
    /// Registries through `client`, for `store`.
    #[must_use]
    pub fn new(client: Client, store: Arc<Store>) -> Self {
        Self { client, store }
    }

    /// Finds what the frontend asks for.
    ///
    /// # Errors
    /// No such image, or none for the platform.
    pub async fn find(&self, request: &ImageRequest, pull: bool) -> Result<Found, ImageError> {
        let reference = parse_name(&request.reference)?;
        if (!pull || reference.registry() == CONTEXT_REGISTRY)
            && let Some(found) = self.find_local(&reference, &request.platform)?
        {
            return Ok(found);
        }
        self.pull_config(&reference, &request.platform, ImageKind::Base).await
    }

    /// Why a name of the store leads to no image: its config is damaged or gone.
    pub(crate) fn damage(&self, name: &str) -> Option<String> {
        let reference = parse_name(name).ok()?;
        let record = self.store.image(&reference.to_string()).ok()??;
        let is_lost = self.store.read_blob(&record.config).is_ok_and(|bytes| bytes.is_none());
        is_lost.then(|| {
            let (name, config) = (reference.familiar(), record.config);
            format!("{name} is in the store, but its config {config} is damaged or gone: import, load or pull it again")
        })
    }

    /// An image of the store, if it has this platform.
    ///
    /// # Errors
    /// The store.
    pub fn find_local(&self, reference: &Reference, platform: &Platform) -> Result<Option<Found>, ImageError> {
        let Some(record) = self.store.image(&reference.to_string())? else { return Ok(None) };
        let name = reference.to_string();
        let Some((config_digest, config)) = self.config_for(&name, &record, platform)? else { return Ok(None) };
        let chain = chain_of(&config.rootfs.diff_ids);
        if let Some(chain) = &chain
            && self.store.layer(chain)?.is_none()
        {
            return Ok(None);
        }
        let manifest_digest = record.manifest.as_ref().map(|manifest| manifest.digest);
        let resolved = ResolvedImage { config, config_digest, manifest_digest };
        Ok(Some(Found { resolved, config: config_digest, chain, local: true }))
    }

    /// The config that a name of the store has for a platform: its own, or one that its index leads to.
    fn config_for(
        &self,
        name: &str,
        record: &ImageRecord,
        platform: &Platform,
    ) -> Result<Option<(Digest, ImageConfig)>, ImageError> {
        if let Some(bytes) = self.store.read_blob(&record.config)? {
            let config = parse_config(name, &bytes)?;
            if runs_on(&config.platform(), platform) {
                return Ok(Some((record.config, config)));
            }
        }
        let Some(manifest) = &record.manifest else { return Ok(None) };
        let Some(bytes) = self.store.read_blob(&manifest.digest)? else { return Ok(None) };
        let Ok(Manifest::Index(index)) = Manifest::parse(&manifest.media_type, &bytes) else { return Ok(None) };
        let want = Want { os: &platform.os, architecture: &platform.architecture, variant: &platform.variant };
        let Ok(chosen) = registry::choose_platform(&index, &want) else { return Ok(None) };
        let malformed = |why: String| ImageError::Malformed { name: name.to_owned(), why };
        let child = digest(chosen.digest()).map_err(malformed)?;
        let Some(bytes) = self.store.read_blob(&child)? else { return Ok(None) };
        let Ok(Manifest::Image(image)) = Manifest::parse(chosen.media_type().as_ref(), &bytes) else { return Ok(None) };
        let config_digest = digest(image.config().digest()).map_err(malformed)?;
        let Some(bytes) = self.store.read_blob(&config_digest)? else { return Ok(None) };
        Ok(Some((config_digest, parse_config(name, &bytes)?)))
    }

    /// Asks the registry; manifest and config come into the store, layers stay there.
    ///
    /// # Errors
    /// No such image, or none for the platform.
    pub async fn pull_config(
        &self,
        reference: &Reference,
        platform: &Platform,
        kind: ImageKind,
    ) -> Result<Found, ImageError> {
        let name = reference.to_string();
        let failed = |source| ImageError::Registry { name: name.clone(), source: Box::new(source) };
        let malformed = |why: String| ImageError::Malformed { name: name.clone(), why };
        let mut resolved = self.client.resolve(reference).await.map_err(failed)?;
        let index_digest = digest(resolved.digest()).map_err(malformed)?;
        let mut budget = MANIFESTS_MAX;
        resolved = self.image_for(reference.repository(), resolved, platform, &mut budget).await.map_err(failed)?;
        let Manifest::Image(manifest) = resolved.parse().map_err(failed)? else {
            return Err(malformed("its indexes lead to too many further ones".into()));
        };
        let bytes =
            self.client.small_blob(reference.repository(), manifest.config(), MAX_CONFIG).await.map_err(failed)?;
        let config = parse_config(&name, &bytes)?;
        let diff_ids = &config.rootfs.diff_ids;
        if diff_ids.len() != manifest.layers().len() {
            let (layers, ids, kind) = (manifest.layers().len(), diff_ids.len(), manifest.config().media_type());
            // Helm charts, signatures and the like.
            return Err(malformed(match IMAGE_CONFIGS.contains(&kind.to_string().as_str()) {
                true => format!("its manifest has {layers} layers, its config {ids} diff ids"),
                false => format!("it is no image, its config being of type {kind}"),
            }));
        }
        let config_digest = self.store.put_blob(&bytes)?;
        let manifest_digest = self.store.put_blob(&resolved.bytes)?;
        let mut chain = None;
        let mut layers = Vec::with_capacity(diff_ids.len());
        for (diff_id, blob) in diff_ids.iter().zip(manifest.layers()) {
            let layer = LayerRecord::foreign(chain, *diff_id);
            chain = Some(layer.chain);
            let media_type = blob.media_type().to_string();
            let digest = digest(blob.digest()).map_err(malformed)?;
            let blob = LayerBlobRecord::from_elsewhere(digest, media_type, blob.size());
            layers.push(ForeignLayer { layer, blob: Some(blob) });
        }
        self.store.put_foreign(&layers, &reference.repository().to_string(), false)?;
        self.note_urls(manifest.layers())?;
        let record = ImageRecord {
            name: name.clone(),
            config: config_digest,
            manifest: Some(snapshotter::ManifestRef {
                digest: manifest_digest,
                media_type: resolved.descriptor.media_type().to_string(),
                size: resolved.bytes.len() as u64,
            }),
            kind,
        };
        self.store.put_image(&record)?;
        let resolved = ResolvedImage { config, config_digest, manifest_digest: Some(index_digest) };
        Ok(Found { resolved, config: config_digest, chain, local: false })
    }

    /// The image for a platform that a manifest leads to: by what an index says of it, or, where it says nothing, by what the image
    /// says itself. An index comes back where there are too many.
    fn image_for<'a>(
        &'a self,
        repository: &'a Repository,
        resolved: Resolved,
        platform: &'a Platform,
        budget: &'a mut usize,
    ) -> BoxFuture<'a, Result<Resolved, registry::Error>> {
        Box::pin(async move {
            let Manifest::Index(index) = resolved.parse()? else { return Ok(resolved) };
            let want = Want { os: &platform.os, architecture: &platform.architecture, variant: &platform.variant };
            let nothing = match registry::choose_platform(&index, &want) {
                Ok(_) if *budget == 0 => return Ok(resolved),
                Ok(chosen) => {
                    *budget -= 1;
                    let chosen = self.client.manifest(repository, chosen).await?;
                    return self.image_for(repository, chosen, platform, budget).await;
                }
                Err(error) => error,
            };
            for child in registry::without_platform(&index) {
                if *budget == 0 {
                    return Ok(resolved);
                }
                *budget -= 1;
                let child = self.client.manifest(repository, child).await?;
                if let Manifest::Image(manifest) = child.parse()? {
                    let config = self.client.small_blob(repository, manifest.config(), MAX_CONFIG).await?;
                    if parse_config("", &config).is_ok_and(|config| runs_on(&config.platform(), platform)) {
                        return Ok(child);
                    }
                    continue;
                }
                match self.image_for(repository, child, platform, budget).await {
                    Err(registry::Error::NoPlatform { .. }) => {}
                    found => return found,
                }
            }
            Err(nothing)
        })
    }

    /// Remembers where foreign layers are to be had that their registry may not have.
    fn note_urls(&self, layers: &[registry::Descriptor]) -> Result<(), ImageError> {
        for layer in layers {
            for url in layer.urls().iter().flatten().take(URLS_MAX).filter(|url| is_url(url)) {
                let digest = digest(layer.digest());
                let digest = digest.map_err(|why| ImageError::Malformed { name: url.clone(), why })?;
                self.store.add_location(&digest, url)?;
            }
        }
        Ok(())
    }

    /// Remembers that a repository has a blob.
    ///
    /// # Errors
    /// The store.
    pub fn remember(&self, blob: &Digest, repository: &Repository) -> Result<(), StoreError> {
        self.store.add_location(blob, &repository.to_string())
    }

    /// Whether a registry is known to have a blob.
    pub(crate) fn has(&self, store: &Store, blob: &Digest) -> Result<bool, StoreError> {
        Ok(!store.locations(blob)?.is_empty())
    }

    /// Repositories that are known to have a blob.
    ///
    /// # Errors
    /// The store.
    pub fn locations(&self, blob: &Digest) -> Result<Vec<Repository>, StoreError> {
        let names = self.store.locations(blob)?;
        let repository = |name: String| name.parse::<Reference>().ok().map(|reference| reference.repository().clone());
        Ok(names.into_iter().filter_map(repository).collect())
    }

    /// Who is known to have a blob: repositories, then URLs that images named.
    fn sources(&self, blob: &Digest) -> Result<Vec<Origin>, StoreError> {
        let repositories = self.locations(blob)?.into_iter().map(Origin::Repository);
        let urls = self.store.locations(blob)?.into_iter().filter(|location| is_url(location)).map(Origin::Url);
        Ok(repositories.chain(urls).collect())
    }

    /// Streams a blob out of a directory that is known to have it. False when there is none.
    async fn read_layouts(&self, blob: &Digest, to: &mpsc::Sender<io::Result<Bytes>>) -> Result<bool, StoreError> {
        let layouts = self.store.locations(blob)?.into_iter().filter_map(|location| crate::cache::layout_of(&location));
        for layout in layouts {
            let Ok(file) = crate::cache::open_in_layout(&layout, blob) else { continue };
            let mut stream = tokio_util::io::ReaderStream::with_capacity(file, 1 << 18);
            while let Some(chunk) = stream.next().await {
                if to.send(chunk).await.is_err() {
                    // The reader gave up and knows why.
                    break;
                }
            }
            return Ok(true);
        }
        Ok(false)
    }

    /// Streams a blob into `to`, from whichever repository gives it. `report` is told of bytes done, bytes there are, and the
    /// end.
    pub(crate) async fn fetch(
        &self,
        blob: &Descriptor,
        to: mpsc::Sender<io::Result<Bytes>>,
        report: impl Fn(u64, u64, bool),
    ) -> Result<(), ImageError> {
        self.fetch_from(blob, 0, std::path::Path::new(""), to, report).await
    }

    /// Whether a download can be gone on with: a registry can begin in the middle.
    pub(crate) fn can_resume(&self, blob: &Digest) -> Result<bool, StoreError> {
        let mut locations = self.store.locations(blob)?.into_iter();
        Ok(locations.all(|location| crate::cache::layout_of(&location).is_none()))
    }

    /// As [`Self::fetch`], without the first `here` bytes, which `path` has.
    pub(crate) async fn fetch_from(
        &self,
        blob: &Descriptor,
        here: u64,
        path: &std::path::Path,
        to: mpsc::Sender<io::Result<Bytes>>,
        report: impl Fn(u64, u64, bool),
    ) -> Result<(), ImageError> {
        let name = blob.digest.to_string();
        let malformed = |why| ImageError::Malformed { name: name.clone(), why };
        let descriptor = registry_descriptor(blob).map_err(malformed)?;
        if self.read_layouts(&blob.digest, &to).await? {
            report(blob.size, blob.size, true);
            return Ok(());
        }
        let failed = |source| ImageError::Registry { name: name.clone(), source: Box::new(source) };
        let mut verifier = Verifier::new(&descriptor).map_err(failed)?;
        if here > 0 {
            let path = path.to_owned();
            let hashed =
                tokio::task::spawn_blocking(move || hash_beginning(&path, here, &mut verifier).map(|()| verifier));
            let unread = |error: io::Error| malformed(format!("what was downloaded of it cannot be read: {error}"));
            verifier = match hashed.await {
                Ok(hashed) => hashed.map_err(unread)?,
                Err(_) => return Err(malformed("a thread panicked".into())),
            };
        }
        let mut last = None;
        for origin in self.sources(&blob.digest)? {
            let mut done = here;
            let result = async {
                let verifier = verifier.clone();
                let mut stream = match &origin {
                    Origin::Repository(repository) => {
                        self.client.resume_blob(repository, &descriptor, verifier).await?
                    }
                    Origin::Url(url) => self.client.foreign_blob(url, &descriptor, verifier).await?,
                };
                while let Some(chunk) = stream.chunk().await? {
                    done += chunk.len() as u64;
                    report(done, blob.size, false);
                    if to.send(Ok(chunk)).await.is_err() {
                        // The reader gave up and knows why.
                        break;
                    }
                }
                Ok(())
            }
            .await;
            match result {
                Ok(()) => {
                    report(done, blob.size, true);
                    return Ok(());
                }
                // What was passed on cannot be taken back: only a source that gave nothing can be replaced by the next.
                Err(error) => {
                    last = Some(error);
                    if done > here {
                        break;
                    }
                }
            }
        }
        let _ = to.send(Err(io::Error::other("the download failed"))).await;
        Err(match last {
            Some(source) => ImageError::Registry { name, source: Box::new(source) },
            None => ImageError::Malformed { name, why: "no registry is known that has this layer".into() },
        })
    }
}

/// Who gives the bytes of a blob.
enum Origin {
    Repository(Repository),
    Url(String),
}

fn is_url(location: &str) -> bool {
    location.starts_with("https://") || location.starts_with("http://")
}

/// Feeds the first bytes of a file to the verifier.
fn hash_beginning(path: &std::path::Path, length: u64, verifier: &mut Verifier) -> io::Result<()> {
    use io::Read;
    let mut file = std::fs::File::open(path)?.take(length);
    let mut buffer = vec![0; 1 << 18];
    loop {
        match file.read(&mut buffer)? {
            0 if verifier.seen() == length => return Ok(()),
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            read => verifier.update(&buffer[..read]),
        }
    }
}

/// The descriptor in the registry client's terms.
pub(crate) fn registry_descriptor(blob: &Descriptor) -> Result<registry::Descriptor, String> {
    let digest: registry::Digest = blob.digest.to_string().parse().map_err(|error| format!("{error}"))?;
    Ok(registry::Descriptor::new(registry::MediaType::from(blob.media_type.as_str()), blob.size, digest))
}

/// A digest in our terms: sha256 only.
pub(crate) fn digest(digest: &registry::Digest) -> Result<Digest, String> {
    digest.to_string().parse().map_err(|_| format!("digest {digest} is not sha256"))
}

/// Parses and normalises a name; without a tag or digest it means `latest`.
///
/// # Errors
/// What is wrong with it.
pub fn parse_name(name: &str) -> Result<Reference, ImageError> {
    let parsed: Result<Reference, _> = name.parse();
    let reference = parsed.map_err(|error| ImageError::Name { name: name.to_owned(), why: format!("{error}") })?;
    Ok(reference.or_latest())
}

/// Reads a config blob.
///
/// # Errors
/// It is none.
pub fn parse_config(name: &str, bytes: &[u8]) -> Result<ImageConfig, ImageError> {
    serde_json::from_slice(bytes)
        .map_err(|error| ImageError::Malformed { name: name.to_owned(), why: format!("its config: {error}") })
}

/// The chain id of a stack.
#[must_use]
pub fn chain_of(diff_ids: &[Digest]) -> Option<Digest> {
    diff_ids.iter().fold(None, |chain, diff_id| Some(diff_id.chain_upon(chain.as_ref())))
}

/// Whether an image of platform `has` can stand for `wanted`. An image that names no platform can.
pub(crate) fn runs_on(has: &Platform, wanted: &Platform) -> bool {
    (has.os.is_empty() || has.os == wanted.os)
        && (has.architecture.is_empty() || has.architecture == wanted.architecture)
        && (has.variant.is_empty() || wanted.variant.is_empty() || has.variant == wanted.variant)
}
