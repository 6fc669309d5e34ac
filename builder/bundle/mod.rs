//! Images between places, byte for byte: manifests, indexes and the blobs that they name, wherever these are, without a
//! build and without unpacking.

mod archive;
mod beside;
mod elsewhere;
mod layout;
mod place;
mod registry;
mod validate;

use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use ::registry::{Manifest, Want};
use futures_util::future::BoxFuture;
use graph::{Digest, Platform};
use solver::RunContext;
use tokio::io::{AsyncRead, AsyncReadExt as _};

use crate::export::Descriptor;
use crate::images::ImageError;
use crate::outputs::OutputError;
use crate::session::Session;

pub use place::{Place, PlaceError};
pub use validate::validate;

/// Indexes that lead to indexes.
const DEEPEST: usize = 4;
/// Largest config that is read.
const CONFIG_MAX: u64 = 16 << 20;

/// Something that cannot be copied, joined or read.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// What a person wrote.
    #[error(transparent)]
    Place(#[from] PlaceError),
    /// A file or directory.
    #[error("cannot {action} {}", path.display())]
    File {
        /// `read` or `write`.
        action: &'static str,
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Bytes on their way.
    #[error("cannot read {what}")]
    Read {
        /// What.
        what: String,
        /// Why.
        source: io::Error,
    },
    /// It makes no sense.
    #[error("{what}: {why}")]
    Malformed {
        /// Which part.
        what: String,
        /// What is wrong.
        why: String,
    },
    /// There is no such image.
    #[error("there is no image {name:?} in {place}; it has {}", if available.is_empty() { "none with a name".to_owned() } else { available.join(", ") })]
    Missing {
        /// As asked for.
        name: String,
        /// Where.
        place: String,
        /// Names that there are.
        available: Vec<String>,
    },
    /// A registry.
    #[error("{name}")]
    Registry {
        /// The image.
        name: String,
        /// Why.
        source: Box<::registry::Error>,
    },
    /// An image of the store.
    #[error(transparent)]
    Stored(#[from] crate::stored::StoredError),
    /// Layers of the store.
    #[error(transparent)]
    Output(#[from] OutputError),
    /// A docker archive.
    #[error(transparent)]
    Import(#[from] crate::import::ImportError),
    /// The store.
    #[error(transparent)]
    Store(#[from] snapshotter::StoreError),
    /// A name.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// Two images for one platform.
    #[error("two of the images are for {0}")]
    SamePlatform(Platform),
    /// An engine that has the image, or should have.
    #[error(transparent)]
    Engine(#[from] crate::engines::EngineError),
    /// An engine as the place to write to.
    #[error("what an engine has is only read; rbuild build --load and docker load, podman load hand images over")]
    ReadOnly,
    /// Ctrl-C.
    #[error("cancelled")]
    Cancelled,
}

/// Where blobs come from.
pub trait Blobs: Send + Sync {
    /// Opens a blob for reading from `offset` on.
    fn open(&self, blob: Descriptor, offset: u64) -> BoxFuture<'_, io::Result<Box<dyn AsyncRead + Send + Unpin>>>;

    /// The repository they lie in, for registries that can take them over from there.
    fn repository(&self) -> Option<&::registry::Repository> {
        None
    }
}

/// A manifest or index, byte for byte.
#[derive(Debug, Clone)]
pub struct Document {
    /// What names it.
    pub descriptor: Descriptor,
    /// Its JSON.
    pub bytes: Vec<u8>,
}

impl Document {
    pub(super) fn parse(&self) -> Result<Manifest, BundleError> {
        Manifest::parse(&self.descriptor.media_type, &self.bytes)
            .map_err(|why| BundleError::Malformed { what: format!("manifest {}", self.descriptor.digest), why })
    }
}

/// An image or several, with all that is needed to put them elsewhere.
#[derive(Clone)]
pub struct Bundle {
    /// What its name leads to.
    pub top: Document,
    /// The manifests and indexes below, each after what it names.
    pub below: Vec<Document>,
    /// Configs and layers, and who has them.
    pub blobs: Vec<(Descriptor, Arc<dyn Blobs>)>,
    /// Manifests that refer to one of these, each with what it refers to; none unless they are asked for.
    pub beside: Vec<(Digest, Document)>,
}

impl std::fmt::Debug for Bundle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bundle").field("top", &self.top.descriptor).field("blobs", &self.blobs.len()).finish()
    }
}

/// Fetches a manifest that another one names.
pub(crate) trait Documents: Send + Sync {
    /// By its descriptor.
    fn document(&self, descriptor: Descriptor) -> BoxFuture<'_, Result<Document, BundleError>>;
}

impl Bundle {
    /// Reads what `place` has: of several images all, or that for `platform`.
    ///
    /// # Errors
    /// There is none, or it makes no sense.
    pub async fn read(
        session: &Session,
        place: &Place,
        platform: Option<&Platform>,
        context: &RunContext,
    ) -> Result<Self, BundleError> {
        match place {
            Place::Registry(name) => registry::read(session, name, platform).await,
            Place::Layout { path, select } => {
                let layout = layout::Layout::Directory { root: path.clone(), _temporary: None };
                layout::read(session, layout, select, platform).await
            }
            Place::OciArchive { path, select } => {
                layout::read(session, archive::layout_in(session, path).await?, select, platform).await
            }
            Place::DockerArchive { path, select } => archive::docker(session, path, select, platform, context).await,
            Place::Store(name) => archive::stored(session, name, platform, context).await,
            Place::Engine { store, name, written } => {
                let host = Platform::host();
                let wanted = platform.unwrap_or(&host);
                let kept = crate::engines::take(session, *store, name, written, wanted).await?;
                archive::stored(session, &kept.to_string(), platform, context).await
            }
        }
    }

    /// Adds what is said of the images beside them, as far as `place`, from where they are, knows of it.
    ///
    /// # Errors
    /// It cannot be listed or read.
    pub async fn with_referrers(mut self, session: &Session, place: &Place) -> Result<Self, BundleError> {
        let (from, blobs): (Arc<dyn beside::Referrers>, Arc<dyn Blobs>) = match place {
            Place::Registry(name) => {
                let remote = registry::remote(session, name);
                (remote.clone(), remote)
            }
            Place::Layout { path, .. } => {
                let layout = Arc::new(layout::Layout::Directory { root: path.clone(), _temporary: None });
                (layout.clone(), layout)
            }
            Place::OciArchive { path, .. } => {
                let layout = Arc::new(archive::layout_in(session, path).await?);
                (layout.clone(), layout)
            }
            Place::DockerArchive { .. } | Place::Store(_) | Place::Engine { .. } => {
                let stock = archive::stock(session);
                (stock.clone(), stock)
            }
        };
        beside::add(&mut self, &from, &blobs).await?;
        Ok(self)
    }

    /// Puts what refers to an image to where the image is.
    ///
    /// # Errors
    /// As for [`Self::write`]; into an archive nothing can be put.
    pub async fn attach(&self, session: &Session, place: &Place, context: &RunContext) -> Result<(), BundleError> {
        let work = async {
            match place {
                Place::Registry(name) => registry::write_beside(session, self, name, context).await,
                Place::Layout { path, .. } => layout::write_beside(self, path, context).await,
                Place::Store(_) => archive::keep_beside(session, self, context).await,
                Place::OciArchive { .. } | Place::DockerArchive { .. } => Err(BundleError::Malformed {
                    what: "an archive".into(),
                    why: "nothing can be attached to what is in it; copy it to a layout first".into(),
                }),
                Place::Engine { .. } => Err(BundleError::ReadOnly),
            }
        };
        tokio::select! {
            () = context.cancelled.cancelled() => Err(BundleError::Cancelled),
            written = work => written,
        }
    }

    /// Takes the image for `platform` into the store as a base; the name by which a build finds it.
    ///
    /// # Errors
    /// There is none, or it is not what it says.
    pub async fn as_base(
        session: &Session,
        place: &Place,
        platform: &Platform,
        context: &RunContext,
    ) -> Result<String, BundleError> {
        let bundle = Self::read(session, place, Some(platform), context).await?;
        let digest = bundle.top.descriptor.digest;
        let name = format!("{}/context@{digest}", crate::images::CONTEXT_REGISTRY);
        let reference = crate::images::parse_name(&name)?;
        // What is there need not be read again.
        if session.remote.find_local(&reference, platform)?.is_none() {
            archive::into_store(session, &bundle, &reference, snapshotter::ImageKind::Base, context).await?;
        }
        Ok(name)
    }

    /// Puts it into `place`.
    ///
    /// # Errors
    /// The place, or bytes that cannot be had or are not what they should be.
    pub async fn write(&self, session: &Session, place: &Place, context: &RunContext) -> Result<(), BundleError> {
        let work = async {
            match place {
                Place::Registry(name) => registry::write(session, self, name, context).await,
                Place::Layout { path, select } => layout::write(self, path, select, false, context).await,
                Place::OciArchive { path, select } => archive::write(session, self, path, select, false, context).await,
                Place::DockerArchive { path, select } => {
                    archive::write(session, self, path, select, true, context).await
                }
                Place::Store(name) => {
                    let name = crate::images::parse_name(name)?;
                    archive::into_store(session, self, &name, snapshotter::ImageKind::Tagged, context).await
                }
                Place::Engine { .. } => Err(BundleError::ReadOnly),
            }
        };
        tokio::select! {
            () = context.cancelled.cancelled() => Err(BundleError::Cancelled),
            written = work => written,
        }
    }

    /// Follows `top` to all that it names, or to the image for `platform` only.
    async fn follow(
        documents: &impl Documents,
        blobs: Arc<dyn Blobs>,
        client: &::registry::Client,
        top: Document,
        platform: Option<&Platform>,
    ) -> Result<Self, BundleError> {
        let top = match platform {
            None => top,
            Some(platform) => chosen(documents, top, platform).await?,
        };
        let mut bundle = Self { top: top.clone(), below: Vec::new(), blobs: Vec::new(), beside: Vec::new() };
        let mut seen = BTreeSet::from([top.descriptor.digest]);
        let mut pending = vec![(top, 0)];
        while let Some((document, depth)) = pending.pop() {
            match document.parse()? {
                Manifest::Index(_) if depth == DEEPEST => {
                    let what = format!("index {}", document.descriptor.digest);
                    return Err(BundleError::Malformed { what, why: "indexes lead to indexes too often".into() });
                }
                Manifest::Index(index) => {
                    for child in index.manifests() {
                        let child = descriptor(child)?;
                        if seen.insert(child.digest) {
                            let child = documents.document(child).await?;
                            bundle.below.push(child.clone());
                            pending.push((child, depth + 1));
                        }
                    }
                }
                Manifest::Image(image) => {
                    for blob in std::iter::once(image.config()).chain(image.layers()) {
                        let blob = descriptor(blob)?;
                        if seen.insert(blob.digest) {
                            let from = elsewhere::also(&blobs, &blob, client);
                            bundle.blobs.push((blob, from));
                        }
                    }
                }
            }
        }
        // What names another one comes after it.
        bundle.below.reverse();
        Ok(bundle)
    }

    /// The image manifests, attestations left out.
    pub(crate) fn images(&self) -> Result<Vec<(&Document, Box<::registry::ImageManifest>)>, BundleError> {
        let mut images = Vec::new();
        for document in self.below.iter().chain([&self.top]) {
            if let Manifest::Image(image) = document.parse()? {
                images.push((document, image));
            }
        }
        Ok(images)
    }

    /// The config, where this is one image.
    #[must_use]
    pub fn config_descriptor(&self) -> Option<Descriptor> {
        match self.top.parse() {
            Ok(Manifest::Image(image)) => descriptor(image.config()).ok(),
            _ => None,
        }
    }

    /// A small blob, verified.
    ///
    /// # Errors
    /// It cannot be had, or is too large or wrong.
    pub async fn small(&self, wanted: &Descriptor) -> Result<Vec<u8>, BundleError> {
        let what = || format!("blob {}", wanted.digest);
        let malformed = |why: &str| BundleError::Malformed { what: what(), why: why.to_owned() };
        if wanted.size > CONFIG_MAX {
            return Err(malformed("it is too large"));
        }
        let blobs = self.blobs.iter().find(|(blob, _)| blob.digest == wanted.digest);
        let (_, blobs) = blobs.ok_or_else(|| malformed("nothing here has it"))?;
        let read = |source| BundleError::Read { what: what(), source };
        let mut bytes = Vec::new();
        let reader = blobs.open(wanted.clone(), 0).await.map_err(read)?;
        reader.take(wanted.size + 1).read_to_end(&mut bytes).await.map_err(read)?;
        if bytes.len() as u64 != wanted.size || Digest::of(&bytes) != wanted.digest {
            return Err(malformed("its bytes are not those of its digest and size"));
        }
        Ok(bytes)
    }

    /// One index over the images of several bundles.
    ///
    /// # Errors
    /// Two images for one platform, or a config that cannot be read.
    pub async fn merge(bundles: Vec<Self>) -> Result<Self, BundleError> {
        let mut merged: Vec<(Platform, Descriptor)> = Vec::new();
        let mut others = Vec::new();
        let (mut below, mut blobs) = (Vec::new(), Vec::new());
        for bundle in &bundles {
            for (document, image) in bundle.images()? {
                let descriptor = Descriptor { annotations: Default::default(), ..document.descriptor.clone() };
                if is_attestation(&document.descriptor) {
                    others.push(document.descriptor.clone());
                    below.push(document.clone());
                    continue;
                }
                let config = bundle.small(&self::descriptor(image.config())?).await?;
                let config = crate::images::parse_config(&document.descriptor.digest.to_string(), &config)?;
                let platform = config.platform();
                let known = merged.iter().find(|(known, _)| *known == platform);
                match known {
                    Some((_, same)) if same.digest == descriptor.digest => continue,
                    Some(_) => return Err(BundleError::SamePlatform(platform)),
                    None => merged.push((platform.clone(), Descriptor { platform: Some(platform), ..descriptor })),
                }
                below.push(document.clone());
            }
            blobs.extend(bundle.blobs.iter().cloned());
        }
        let manifests: Vec<Descriptor> = merged.into_iter().map(|(_, descriptor)| descriptor).chain(others).collect();
        let index = serde_json::json!({
            "schemaVersion": 2, "mediaType": ::registry::OCI_INDEX, "manifests": manifests,
        });
        let bytes = serde_json::to_vec_pretty(&index)
            .map_err(|error| BundleError::Malformed { what: "the index".into(), why: error.to_string() })?;
        let descriptor = Descriptor::new(::registry::OCI_INDEX, Digest::of(&bytes), bytes.len() as u64);
        let mut seen = BTreeSet::new();
        blobs.retain(|(blob, _): &(Descriptor, Arc<dyn Blobs>)| seen.insert(blob.digest));
        Ok(Self { top: Document { descriptor, bytes }, below, blobs, beside: Vec::new() })
    }
}

/// The image for a platform.
async fn chosen(documents: &impl Documents, mut top: Document, platform: &Platform) -> Result<Document, BundleError> {
    for _ in 0..=DEEPEST {
        let Manifest::Index(index) = top.parse()? else { return Ok(top) };
        let want = Want { os: &platform.os, architecture: &platform.architecture, variant: &platform.variant };
        let what = format!("index {}", top.descriptor.digest);
        let child = ::registry::choose_platform(&index, &want)
            .map_err(|error| BundleError::Malformed { what, why: error.to_string() })?;
        top = documents.document(descriptor(child)?).await?;
    }
    let what = format!("index {}", top.descriptor.digest);
    Err(BundleError::Malformed { what, why: "indexes lead to indexes too often".into() })
}

/// Provenance and the like, which an index names beside the images.
fn is_attestation(descriptor: &Descriptor) -> bool {
    descriptor.annotations.get("vnd.docker.reference.type").is_some_and(|kind| kind == "attestation-manifest")
}

/// A descriptor in our terms.
pub(crate) fn descriptor(descriptor: &::registry::Descriptor) -> Result<Descriptor, BundleError> {
    let digest = crate::images::digest(descriptor.digest())
        .map_err(|why| BundleError::Malformed { what: "a descriptor".into(), why })?;
    let mut own = Descriptor::new(descriptor.media_type().to_string(), digest, descriptor.size());
    own.annotations = descriptor.annotations().iter().flatten().map(|(k, v)| (k.clone(), v.clone())).collect();
    own.urls = descriptor.urls().clone().unwrap_or_default();
    own.artifact_type = descriptor.artifact_type().as_ref().map(ToString::to_string);
    own.platform = descriptor.platform().as_ref().map(|platform| Platform {
        os: platform.os().to_string(),
        architecture: platform.architecture().to_string(),
        variant: platform.variant().clone().unwrap_or_default(),
    });
    Ok(own)
}
