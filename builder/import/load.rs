//! OCI layouts and docker archives: each image is verified whole before the first of them gets its name.

use std::collections::HashMap;
use std::io::{self, Read};
use std::path::PathBuf;

use graph::{Digest, ImageConfig, Platform};
use registry::{ImageIndex, Manifest, Reference, Want};
use serde::Deserialize;
use snapshotter::{ManifestRef, Store};

use super::layer::{self, Blob};
use super::members::{Member, Members};
use super::{ImportError, name_image};
use crate::images::{digest, parse_config, parse_name};

/// Indexes that lead to indexes.
const DEEPEST: usize = 4;

/// Where images come from.
pub enum Input {
    /// A docker archive or the tar of an OCI layout, compressed or not.
    Archive(Box<dyn Read + Send>),
    /// An OCI layout.
    Directory(PathBuf),
}

/// Which of the images that an index leads to.
#[derive(Debug, Clone, Copy)]
pub enum Wanted<'a> {
    /// All, as one: its name stands for that of this machine where there is one. If some are not there, that alone.
    All,
    /// That for a platform.
    Only(&'a Platform),
}

/// An image that was taken in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loaded {
    /// Digest of its config.
    pub id: Digest,
    /// Its names.
    pub names: Vec<Reference>,
    /// The manifest or index it came with.
    pub manifest: Option<ManifestRef>,
}

/// Takes all images in; of one for several platforms, what is `wanted`.
///
/// # Errors
/// The first image that is not what it says; then none of them is named.
pub fn load(store: &Store, input: Input, wanted: Wanted<'_>) -> Result<Vec<Loaded>, ImportError> {
    let loaded = take(store, input, wanted)?;
    for image in &loaded {
        name_image(store, image.id, &image.names, image.manifest.as_ref())?;
    }
    Ok(loaded)
}

/// As [`load`], without naming them in the store.
///
/// # Errors
/// As above.
pub fn take(store: &Store, input: Input, wanted: Wanted<'_>) -> Result<Vec<Loaded>, ImportError> {
    let members = match input {
        Input::Archive(archive) => Members::read(store, archive)?,
        Input::Directory(directory) => Members::Directory(directory),
    };
    let mut loading = Loading { store, members, wanted, loaded: Vec::new(), by_id: HashMap::new() };
    let index = loading.members.document("index.json")?;
    let manifest = loading.members.document("manifest.json")?;
    if index.is_none() && manifest.is_none() {
        return Err(ImportError::NoImage);
    }
    if let Some(index) = index {
        loading.layout(&index)?;
    }
    // What both describe has one id, and so is one image, with the manifest of the layout.
    if let Some(manifest) = manifest {
        loading.docker(&manifest)?;
    }
    Ok(loading.loaded)
}

/// Takes an image in whose manifests, configs and layers are all among the blobs of the store.
///
/// # Errors
/// It is not what it says, or a part is missing.
pub fn take_stored(
    store: &Store,
    descriptor: &registry::Descriptor,
    wanted: Wanted<'_>,
) -> Result<Loaded, ImportError> {
    let loading = Loading { store, members: Members::Store, wanted, loaded: Vec::new(), by_id: HashMap::new() };
    loading.manifest(descriptor, 0)
}

/// Takes an image in of which somebody else has `config` and, by number, the tars of the layers. A layer that the store has is not
/// read again.
///
/// # Errors
/// It is not what it says, or cannot be read.
pub fn take_parts(
    store: &Store,
    config: &[u8],
    layers: usize,
    open: impl Fn(usize) -> io::Result<Box<dyn Read + Send>>,
) -> Result<Loaded, ImportError> {
    let what = format!("config {}", Digest::of(config));
    let parsed = parse_config(&what, config)?;
    let diff_ids = &parsed.rootfs.diff_ids;
    if diff_ids.len() != layers {
        let why = format!("it has {} diff ids, but there are {layers} layers", diff_ids.len());
        return Err(ImportError::Malformed { what, why });
    }
    let mut parent = None;
    for (number, diff_id) in diff_ids.iter().enumerate() {
        parent = Some(layer::add_from(store, parent, diff_id, || open(number))?.chain);
    }
    Ok(Loaded { id: store.put_blob(config)?, names: Vec::new(), manifest: None })
}

struct Loading<'a> {
    store: &'a Store,
    members: Members,
    wanted: Wanted<'a>,
    loaded: Vec<Loaded>,
    by_id: HashMap<Digest, usize>,
}

/// One image of docker's `manifest.json` (docker image spec v1.2).
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Option<Vec<String>>,
}

impl Loading<'_> {
    fn layout(&mut self, bytes: &[u8]) -> Result<(), ImportError> {
        let Manifest::Index(index) = parse(registry::OCI_INDEX, "index.json", bytes)? else {
            return Err(ImportError::Malformed { what: "index.json".into(), why: "it is no index".into() });
        };
        let is_image =
            |descriptor: &&registry::Descriptor| !is_attestation(descriptor) && descriptor.artifact_type().is_none();
        for descriptor in index.manifests().iter().filter(is_image) {
            let names = names_of(descriptor)?;
            let image = self.manifest(descriptor, 0)?;
            self.add(image, names);
        }
        Ok(())
    }

    /// The image that a descriptor leads to.
    fn manifest(&self, descriptor: &registry::Descriptor, depth: usize) -> Result<Loaded, ImportError> {
        let (member, media_type) = (self.described(descriptor)?, descriptor.media_type().to_string());
        let what = format!("manifest {}", member.digest);
        let bytes = self.small(&member, &what)?;
        match parse(&media_type, &what, &bytes)? {
            Manifest::Index(_) if depth == DEEPEST => {
                Err(ImportError::Malformed { what, why: "indexes lead to indexes too often".into() })
            }
            Manifest::Index(index) => {
                let whole = match self.wanted {
                    Wanted::All => self.every(&index, depth)?,
                    Wanted::Only(_) => None,
                };
                match whole {
                    Some(image) => {
                        let media_type =
                            if media_type.is_empty() { registry::OCI_INDEX.to_owned() } else { media_type };
                        let manifest = ManifestRef { digest: member.digest, media_type, size: member.size };
                        Ok(Loaded { manifest: Some(manifest), ..image })
                    }
                    None => self.manifest(self.choose(&index)?, depth + 1),
                }
            }
            Manifest::Image(image) => {
                let config = self.described(image.config())?;
                let mut layers = Vec::with_capacity(image.layers().len());
                for layer in image.layers() {
                    layers.push((self.described(layer)?, Some(layer.media_type().to_string())));
                }
                let id = self.image(&config, &layers)?;
                let media_type = if media_type.is_empty() { registry::OCI_MANIFEST.to_owned() } else { media_type };
                let manifest = ManifestRef { digest: member.digest, media_type, size: member.size };
                Ok(Loaded { id, names: Vec::new(), manifest: Some(manifest) })
            }
        }
    }

    /// All that an index names. The image that stands for them; `None`: some of it is not there, or nothing is an image.
    fn every(&self, index: &ImageIndex, depth: usize) -> Result<Option<Loaded>, ImportError> {
        let mut images = Vec::new();
        for child in index.manifests() {
            let taken = match is_attestation(child) || child.artifact_type().is_some() {
                true => self.other(child),
                false => self.manifest(child, depth + 1).map(|image| images.push((child.digest().clone(), image))),
            };
            match taken {
                Ok(()) => {}
                Err(ImportError::Missing(_)) => return Ok(None),
                Err(error) => return Err(error),
            }
        }
        let ours = self.choose(index).ok().map(|chosen| chosen.digest().clone());
        let position = images.iter().position(|(digest, _)| Some(digest) == ours.as_ref()).unwrap_or(0);
        Ok((!images.is_empty()).then(|| images.swap_remove(position).1))
    }

    /// What lies beside the images, such as provenance: kept as it is.
    fn other(&self, descriptor: &registry::Descriptor) -> Result<(), ImportError> {
        let member = self.described(descriptor)?;
        let what = format!("manifest {}", member.digest);
        if let Manifest::Image(image) = parse(descriptor.media_type().as_ref(), &what, &self.small(&member, &what)?)? {
            for blob in std::iter::once(image.config()).chain(image.layers()) {
                self.described(blob)?;
            }
        }
        Ok(())
    }

    fn choose<'i>(&self, index: &'i ImageIndex) -> Result<&'i registry::Descriptor, ImportError> {
        // One that names no platform is meant for all, where it is alone.
        if let [only] = index.manifests().as_slice() {
            return Ok(only);
        }
        let host = Platform::host();
        let Platform { os, architecture, variant } = match self.wanted {
            Wanted::All => &host,
            Wanted::Only(platform) => platform,
        };
        let want = Want { os, architecture, variant };
        registry::choose_platform(index, &want).map_err(|error| ImportError::Platform(Box::new(error)))
    }

    fn docker(&mut self, bytes: &[u8]) -> Result<(), ImportError> {
        let malformed = |why: String| ImportError::Malformed { what: "manifest.json".into(), why };
        let images: Vec<DockerImage> = serde_json::from_slice(bytes).map_err(|error| malformed(error.to_string()))?;
        for image in images {
            let names = image.repo_tags.unwrap_or_default();
            let names = names.iter().map(|name| parse_name(name)).collect::<Result<Vec<_>, _>>()?;
            let config = self.members.file(self.store, &image.config)?;
            let id = if self.by_id.contains_key(&config.digest) {
                config.digest
            } else {
                let layers = image.layers.unwrap_or_default();
                let layers = layers.iter().map(|name| self.members.file(self.store, name).map(|layer| (layer, None)));
                let layers = layers.collect::<Result<Vec<_>, _>>()?;
                self.image(&config, &layers)?
            };
            self.add(Loaded { id, names: Vec::new(), manifest: None }, names);
        }
        Ok(())
    }

    /// Verifies an image and records its layers.
    fn image(&self, config: &Member, layers: &[(Member, Option<String>)]) -> Result<Digest, ImportError> {
        let what = format!("config {}", config.digest);
        let bytes = self.small(config, &what)?;
        let parsed: ImageConfig = parse_config(&what, &bytes)?;
        let diff_ids = &parsed.rootfs.diff_ids;
        if diff_ids.len() != layers.len() {
            let why = format!("it has {} diff ids, but there are {} layers", diff_ids.len(), layers.len());
            return Err(ImportError::Malformed { what, why });
        }
        let mut parent = None;
        for (diff_id, (layer, media_type)) in diff_ids.iter().zip(layers) {
            let blob = Blob { digest: layer.digest, size: layer.size, media_type: media_type.clone() };
            parent = Some(layer::add(self.store, parent, blob, Some(diff_id))?.chain);
        }
        Ok(config.digest)
    }

    fn described(&self, descriptor: &registry::Descriptor) -> Result<Member, ImportError> {
        let malformed = |why| ImportError::Malformed { what: format!("blob {}", descriptor.digest()), why };
        let digest = digest(descriptor.digest()).map_err(malformed)?;
        let member = self.members.blob(self.store, &digest)?;
        if member.size != descriptor.size() {
            return Err(malformed(format!("it has {} bytes, not {}", member.size, descriptor.size())));
        }
        Ok(member)
    }

    /// A document among the blobs.
    fn small(&self, member: &Member, what: &str) -> Result<Vec<u8>, ImportError> {
        if member.size > registry::MANIFEST_MAX {
            return Err(ImportError::Malformed { what: what.to_owned(), why: "it is too large".into() });
        }
        self.store.read_blob(&member.digest)?.ok_or_else(|| ImportError::Missing(what.to_owned()))
    }

    fn add(&mut self, image: Loaded, names: Vec<Reference>) {
        let Loaded { id, .. } = image;
        let at = *self.by_id.entry(id).or_insert_with(|| {
            self.loaded.push(image);
            self.loaded.len() - 1
        });
        let known = &mut self.loaded[at].names;
        for name in names {
            if !known.contains(&name) {
                known.push(name);
            }
        }
    }
}

fn parse(media_type: &str, what: &str, bytes: &[u8]) -> Result<Manifest, ImportError> {
    Manifest::parse(media_type, bytes).map_err(|why| ImportError::Malformed { what: what.to_owned(), why })
}

/// BuildKit's provenance and SBOMs lie beside the images.
fn is_attestation(descriptor: &registry::Descriptor) -> bool {
    let kind = |annotations: &HashMap<String, String>| annotations.get("vnd.docker.reference.type").cloned();
    descriptor.annotations().as_ref().and_then(kind).is_some_and(|kind| kind == "attestation-manifest")
}

/// The name that an archive gives an image: containerd's and docker's annotation holds it in full; OCI's may be a name or only
/// a tag, which names nothing.
fn names_of(descriptor: &registry::Descriptor) -> Result<Vec<Reference>, ImportError> {
    let Some(annotations) = descriptor.annotations() else { return Ok(Vec::new()) };
    let full = annotations.get("io.containerd.image.name");
    let short = annotations.get("org.opencontainers.image.ref.name").filter(|name| name.contains([':', '/']));
    match full.or(short) {
        Some(name) => Ok(vec![parse_name(name)?]),
        None => Ok(Vec::new()),
    }
}
