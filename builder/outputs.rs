//! After the build: the result goes where the person wants it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use graph::{Digest, Platform};
use registry::Reference;
use snapshotter::layer::LayerError;
use snapshotter::layer::compress::Compression;
use snapshotter::{ImageKind, ImageRecord, ManifestRef};
use solver::{Progress, RunContext};
use tokio_util::sync::CancellationToken;

use crate::build::Built;
use crate::config::Engine;
use crate::export::{
    self, AnnotationPlace, Archive, ArchiveError, Artifact, Attestation, CombineError, DOCKER, Destination,
    EngineError, Keeping, LayerCompression, OCI, OutputKind, OutputSpec, Package, Part, PushError,
};
use crate::session::Session;
use crate::variant::{Variant, variants};
use crate::worker::{BlobForm, BlobTypes, ReadableTree, WorkError, blocking};

/// Layers that are compressed at the same time: each also reads and hashes, which one core does alone.
const LAYERS_AT_ONCE: usize = 4;

/// A result that could not be handed over.
#[derive(Debug, thiserror::Error)]
pub enum OutputError {
    /// Layers.
    #[error(transparent)]
    Work(#[from] WorkError),
    /// The store.
    #[error(transparent)]
    Store(#[from] snapshotter::StoreError),
    /// An archive.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// A registry.
    #[error(transparent)]
    Push(#[from] PushError),
    /// Times to be cut off, and nothing to cut them at.
    #[error("rewrite-timestamp=true needs a time: set SOURCE_DATE_EPOCH")]
    NoEpoch,
    /// Annotations of an index that is not there.
    #[error("annotations of an index need several platforms: an image for one has no index")]
    NoIndex,
    /// A docker archive or engine.
    #[error("a docker archive holds an image for one platform: use type=oci or type=registry for several")]
    OnePlatform,
    /// Two platforms, one directory.
    #[error("{path} is in the results of two platforms; leave out platform-split=false")]
    SameFile {
        /// In the image.
        path: String,
    },
    /// Nothing to push under.
    #[error("pushing needs a name: use -t, or name= in --output")]
    NoName,
    /// No engine to load into.
    #[error("there is neither docker nor podman nor containerd (ctr) to load the image into")]
    NoEngine,
    /// The engine refused.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// A file.
    #[error("cannot write {}", path.display())]
    Write {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl OutputError {
    /// Whether a step's layer is lost, and nothing has left that could not be replaced: with the step carried out again it
    /// would succeed.
    #[must_use]
    pub fn lacks_data(&self) -> bool {
        matches!(self, Self::Work(WorkError::LayerGone { .. }))
    }
}

/// What became of a result.
#[derive(Debug, Default, Clone)]
pub struct Delivered {
    /// The image ids, by platform, as the first output has them.
    pub ids: Vec<Digest>,
    /// The manifest or index, if one was made.
    pub manifest: Option<crate::export::Descriptor>,
    /// Whether that is an index.
    pub is_index: bool,
    /// Names in the store.
    pub names: Vec<Reference>,
    /// Names that were pushed or given.
    pub all_names: Vec<Reference>,
    /// The engine that has it now.
    pub loaded: Option<Engine>,
}

impl Delivered {
    /// What names the result: the config of an image, the index of several.
    #[must_use]
    pub fn id(&self) -> Option<Digest> {
        match (self.ids.as_slice(), &self.manifest) {
            ([id], _) => Some(*id),
            (_, Some(manifest)) => Some(manifest.digest),
            (ids, None) => ids.first().copied(),
        }
    }
}

/// Hands the result to every output.
///
/// # Errors
/// The first output that fails.
pub async fn deliver(
    session: &Session,
    built: &Built,
    outputs: &[OutputSpec],
    tags: &[Reference],
    progress: &Progress,
    cancelled: &CancellationToken,
) -> Result<Delivered, OutputError> {
    let mut delivered = Delivered::default();
    for output in outputs {
        let names = names_of(output, tags)?;
        output.notes.iter().for_each(|note| progress.warn(note.clone()));
        let vertex = progress.vertex(&describe(&output.kind));
        let context = RunContext { progress: vertex.clone(), cancelled: cancelled.clone() };
        let done = vertex.during(one(session, built, output, &names, &context, &mut delivered)).await;
        if let Err(error) = done {
            return Err(refused(session, built, &context, error).await);
        }
    }
    if delivered.ids.is_empty() {
        delivered.ids = built.images.iter().map(|image| image.id).collect();
    }
    Ok(delivered)
}

/// Finds out before the build what would otherwise be known at its end only: that something cannot be pushed.
///
/// # Errors
/// A registry that does not let us, or no name to push under.
pub async fn check(
    session: &Session,
    outputs: &[OutputSpec],
    tags: &[Reference],
    progress: &Progress,
    cancelled: &CancellationToken,
) -> Result<(), OutputError> {
    let mut repositories = BTreeMap::new();
    for output in outputs {
        let names = names_of(output, tags)?;
        if let OutputKind::Image { push: true, .. } = output.kind {
            if names.is_empty() {
                return Err(OutputError::NoName);
            }
            for name in names {
                repositories.entry(name.repository().to_string()).or_insert(name);
            }
        }
    }
    let checks = repositories.values().map(|name| async move {
        let repository = name.repository();
        let vertex = progress.vertex(&format!("[auth] permission to push to {repository}"));
        vertex
            .during(async {
                tokio::select! {
                    () = cancelled.cancelled() => Err(WorkError::Cancelled.into()),
                    permitted = session.remote.client.check_push(repository) => permitted.map_err(|source| {
                        OutputError::Push(PushError::Registry { name: name.to_string(), source: Box::new(source) })
                    }),
                }
            })
            .await
    });
    futures_util::future::try_join_all(checks).await.map(drop)
}

fn describe(kind: &OutputKind) -> String {
    match kind {
        OutputKind::Image { push: false, .. } | OutputKind::Docker(None) => "exporting to image".into(),
        OutputKind::Image { push: true, .. } => "exporting to registry".into(),
        OutputKind::Oci(_) => "exporting to oci image format".into(),
        OutputKind::Docker(Some(_)) => "exporting to docker image format".into(),
        OutputKind::Tar(_) => "exporting to client tarball".into(),
        OutputKind::Local(_) => "exporting to client directory".into(),
        OutputKind::CacheOnly => "keeping the build cache".into(),
    }
}

fn names_of(output: &OutputSpec, tags: &[Reference]) -> Result<Vec<Reference>, OutputError> {
    let own: Result<Vec<Reference>, _> = output.names.iter().map(|name| crate::images::parse_name(name)).collect();
    let own = own.map_err(WorkError::from)?;
    Ok(if own.is_empty() { tags.to_vec() } else { own })
}

async fn one(
    session: &Session,
    built: &Built,
    output: &OutputSpec,
    names: &[Reference],
    context: &RunContext,
    delivered: &mut Delivered,
) -> Result<(), OutputError> {
    if output.kind == OutputKind::CacheOnly {
        return Ok(());
    }
    let images = variants(session, built, output, context).await?;
    if delivered.ids.is_empty() {
        delivered.ids = images.iter().map(|image| image.id).collect();
    }
    let several = images.len() > 1;
    match &output.kind {
        OutputKind::CacheOnly => {}
        OutputKind::Image { push, by_digest } => {
            let Keeping { name, unpack, dangling_prefix, canonical } = &output.keeping;
            let needs_manifest = *push || several || *canonical || dangling_prefix.is_some();
            if *push && names.is_empty() {
                return Err(OutputError::NoName);
            }
            // A layer is on its way as soon as it is compressed.
            let early = if *push { names.first() } else { None };
            let package = match needs_manifest || !output.annotations.is_empty() || output.provenance.is_some() {
                true => {
                    let package = package_for(session, &images, output, context, false, early);
                    let mut package = unless_cancelled(context, package).await?;
                    attest(session, built, output, &images, names, &mut package)?;
                    Some(package)
                }
                false => None,
            };
            if *push {
                let package = package.as_ref().ok_or(WorkError::Internal("a push without a manifest"))?;
                for name in names {
                    let pushed = export::push(&session.remote, package, name, *by_digest, &context.progress);
                    unless_cancelled(context, async { pushed.await.map_err(OutputError::from) }).await?;
                }
            }
            let mut names = names.to_vec();
            if let Some(package) = &package {
                names.extend(names_by_digest(&names, output, package)?);
                delivered.made(package);
            }
            if *name {
                name_images(session, &images, &names, package.as_ref())?;
                delivered.names.extend_from_slice(&names);
            }
            delivered.all_names.extend(names);
            if *unpack {
                for image in &images {
                    session.layers.directories(context, image.chain.as_ref()).await?;
                }
            }
        }
        OutputKind::Oci(destination) => {
            let mut package = package(session, &images, output, context, true).await?;
            attest(session, built, output, &images, names, &mut package)?;
            write(&package, names, false, destination).await?;
            delivered.made(&package);
            delivered.all_names.extend_from_slice(names);
        }
        OutputKind::Docker(Some(_)) if several => return Err(OutputError::OnePlatform),
        OutputKind::Docker(Some(destination)) => {
            let mut package = package(session, &images, output, context, true).await?;
            attest(session, built, output, &images, names, &mut package)?;
            write(&package, names, true, destination).await?;
            delivered.made(&package);
            delivered.all_names.extend_from_slice(names);
        }
        OutputKind::Docker(None) => {
            let engine = export::find_engine(session.config.load).ok_or(OutputError::NoEngine)?;
            if several && engine != Engine::Containerd {
                return Err(OutputError::OnePlatform);
            }
            let ids: Vec<Digest> = images.iter().map(|image| image.id).collect();
            let mut index = None;
            if ids.iter().any(|id| !export::engine_has(engine, *id)) {
                // Uncompressed where the engine unpacks it at once; containerd keeps it as it comes.
                let compression = match engine {
                    Engine::Docker | Engine::Podman => LayerCompression { algorithm: Compression::None, force: false },
                    Engine::Containerd => output.compression,
                };
                let oci_media_types = output.oci_media_types || engine == Engine::Containerd;
                let mut output = OutputSpec { compression, oci_media_types, ..output.clone() };
                if engine != Engine::Containerd && output.provenance.take().is_some() {
                    let engine = engine.program();
                    context.progress.warn(format!("the provenance is left out: {engine} has no place for it"));
                }
                let mut package = package(session, &images, &output, context, true).await?;
                attest(session, built, &output, &images, names, &mut package)?;
                export::load_into(engine, &package, names).await?;
                index = Some(package).filter(|package| package.index.is_some());
            } else {
                export::name_in(engine, &ids, names)?;
            }
            name_images(session, &images, names, index.as_ref())?;
            delivered.names.extend_from_slice(names);
            delivered.all_names.extend_from_slice(names);
            delivered.loaded = Some(engine);
        }
        OutputKind::Tar(_) | OutputKind::Local(_) => files(session, built, &images, output, context).await?,
    }
    Ok(())
}

/// Adds what is to be told of how the images came about, and keeps it with them. As BuildKit writes it, one index names the images
/// and what is told of them: a layout with two entries would be two images to others.
fn attest(
    session: &Session,
    built: &Built,
    output: &OutputSpec,
    images: &[Variant],
    names: &[Reference],
    package: &mut Package,
) -> Result<(), OutputError> {
    let Some(spec) = &output.provenance else { return Ok(()) };
    let artifacts = std::mem::take(&mut package.images);
    for (image, artifact) in images.iter().zip(&artifacts) {
        let predicate = built.predicate(spec, &image.platform);
        let subject = &artifact.manifest_descriptor;
        let attestation = Attestation::provenance(subject, &image.platform, names, &predicate);
        session.store.put_blob(&artifact.manifest)?;
        crate::referrers::keep(&session.store, &subject.digest, &attestation, true)?;
        package.attestations.push(attestation);
    }
    let parts = images.iter().map(|image| image.platform.clone()).zip(artifacts);
    let annotations = &output.annotations;
    let attestations = std::mem::take(&mut package.attestations);
    *package = Package {
        annotations: annotations.at(AnnotationPlace::IndexDescriptor, None),
        ..Package::multi(
            with_annotations(output, parts),
            attestations,
            OCI,
            &annotations.at(AnnotationPlace::Index, None),
        )
    };
    Ok(())
}

impl Delivered {
    fn made(&mut self, package: &Package) {
        // Several outputs may make several; the last one counts, as with buildx.
        self.manifest = Some(package.descriptor().clone());
        self.is_index = package.index.is_some();
    }
}

/// Names that hold a digest, where they were asked for.
fn names_by_digest(names: &[Reference], output: &OutputSpec, package: &Package) -> Result<Vec<Reference>, OutputError> {
    let digest = package.descriptor().digest.to_string().parse::<registry::Digest>();
    let digest = digest.map_err(|_| WorkError::Internal("a digest of ours is none"))?;
    let mut by_digest = Vec::new();
    if output.keeping.canonical {
        by_digest.extend(names.iter().map(|name| name.repository().with_digest(digest.clone())));
    }
    if let Some(prefix) = &output.keeping.dangling_prefix
        && names.is_empty()
    {
        let prefix = crate::images::parse_name(prefix).map_err(WorkError::from)?;
        by_digest.push(prefix.repository().with_digest(digest));
    }
    Ok(by_digest)
}

/// The root file systems, as one tar or in a directory.
async fn files(
    session: &Session,
    built: &Built,
    images: &[Variant],
    output: &OutputSpec,
    context: &RunContext,
) -> Result<(), OutputError> {
    if !output.annotations.is_empty() {
        context.progress.warn("annotations are left out: files have none");
    }
    let split = output.platform_split.unwrap_or(images.len() > 1);
    let mut parts = Vec::with_capacity(images.len());
    for image in images {
        let prefix = if split { image.platform.to_string().replace('/', "_") } else { String::new() };
        let tree = session.layers.readable(context, image.chain.as_ref()).await?;
        if let Some(spec) = &output.provenance {
            // Where several share a directory each has a name of its own.
            let name = match images.len() > 1 && !split {
                true => format!("provenance.{}.json", image.platform.to_string().replace('/', "_")),
                false => "provenance.json".to_owned(),
            };
            let (own, predicate) = (tree.clone(), built.predicate(spec, &image.platform));
            let told = blocking(move || Ok(export::provenance_of_files(&own, &predicate)?)).await?;
            let told = ReadableTree::file(&name, &told).map_err(WorkError::from)?;
            parts.push(Part { tree: told, prefix: prefix.clone() });
        }
        parts.push(Part { tree, prefix });
    }
    // As in BuildKit, all files have the time then, and not only those that are later.
    let mtime = output.epoch.or_else(|| built.epoch.map(jiff::Timestamp::as_second));
    let mtime = mtime.filter(|_| output.rewrite_timestamp != Some(false));
    let tree = export::combined(parts, mtime).map_err(|error| match error {
        CombineError::Same(path) => OutputError::SameFile { path },
        CombineError::Layer(error) => WorkError::from(error).into(),
    })?;
    let kind = output.kind.clone();
    let written = blocking(move || match &kind {
        OutputKind::Tar(destination) => Ok(export::write_tar(&tree, destination).map(|()| Vec::new())?),
        OutputKind::Local(directory) => Ok(export::write_local(&tree, directory)?),
        _ => Ok(Vec::new()),
    });
    let skipped = match written.await {
        Err(WorkError::Layer(error @ (LayerError::Changed { .. } | LayerError::Io { .. }))) => {
            return Err(damaged(session, images, output, context, error).await?);
        }
        written => written?,
    };
    if !skipped.is_empty() {
        context.progress.warn(format!("{} device nodes were left out: only root can make them", skipped.len()));
    }
    Ok(())
}

/// A registry takes no blob whose bytes are not those of its digest. Where it refused one they are looked at, and what is
/// damaged is taken away.
async fn refused(session: &Session, built: &Built, context: &RunContext, error: OutputError) -> OutputError {
    let OutputError::Push(PushError::Registry { source, .. }) = &error else { return error };
    let is_theirs = matches!(**source, registry::Error::Unauthorized { .. } | registry::Error::Denied { .. });
    if is_theirs || source.is_transient() {
        return error;
    }
    for layer in built.images.iter().filter_map(|image| image.rootfs.chain) {
        if session.layers.check(context, Some(&layer)).await.unwrap_or(false) {
            return WorkError::LayerGone { layer, source: Box::new(WorkError::LayerLost(layer)) }.into();
        }
    }
    error
}

/// Layers never change by themselves. What is damaged is taken away.
async fn damaged(
    session: &Session,
    images: &[Variant],
    output: &OutputSpec,
    context: &RunContext,
    error: LayerError,
) -> Result<OutputError, OutputError> {
    let mut lost = None;
    for chain in images.iter().filter_map(|image| image.chain) {
        if session.layers.check(context, Some(&chain)).await? {
            lost = Some(chain);
        }
    }
    Ok(match lost {
        // What went down a pipe cannot be taken back.
        Some(layer) if !matches!(output.kind, OutputKind::Tar(Destination::Stdout)) => {
            WorkError::LayerGone { layer, source: Box::new(error.into()) }.into()
        }
        _ => WorkError::from(error).into(),
    })
}

/// The images with their blobs, and their index if there are several; with `bytes` all blobs are brought here.
///
/// # Errors
/// A layer that cannot be had or compressed, or annotations for an index that is not made.
pub async fn package(
    session: &Session,
    images: &[Variant],
    output: &OutputSpec,
    context: &RunContext,
    bytes: bool,
) -> Result<Package, OutputError> {
    package_for(session, images, output, context, bytes, None).await
}

/// As [`package`]; each layer is sent `early` to where all of it will go.
async fn package_for(
    session: &Session,
    images: &[Variant],
    output: &OutputSpec,
    context: &RunContext,
    bytes: bool,
    early: Option<&Reference>,
) -> Result<Package, OutputError> {
    // Docker's manifests have no annotations and know no zstd.
    let zstd = matches!(output.compression.algorithm, Compression::Zstd { .. });
    let oci_media_types = output.oci_media_types || !output.annotations.is_empty() || zstd;
    let output = &OutputSpec { oci_media_types, ..output.clone() };
    let types = if oci_media_types { OCI } else { DOCKER };
    if images.len() < 2 && output.provenance.is_none() && output.annotations.need_index() {
        return Err(OutputError::NoIndex);
    }
    let mut artifacts = Vec::with_capacity(images.len());
    for image in images {
        let annotations = output.annotations.at(AnnotationPlace::Manifest, Some(&image.platform));
        let chain = image.chain.as_ref();
        let packed = artifact(session, chain, &image.config, output, &annotations, context, bytes, early);
        artifacts.push(packed.await?);
    }
    match artifacts.len() {
        1 => {
            let annotations = output.annotations.at(AnnotationPlace::ManifestDescriptor, Some(&images[0].platform));
            let only = artifacts.into_iter().next().ok_or(WorkError::Internal("an image was lost"))?;
            Ok(Package { annotations, ..Package::single(only) })
        }
        _ => {
            let parts = images.iter().map(|image| image.platform.clone()).zip(artifacts);
            let of_index = output.annotations.at(AnnotationPlace::Index, None);
            let annotations = output.annotations.at(AnnotationPlace::IndexDescriptor, None);
            Ok(Package { annotations, ..Package::multi(with_annotations(output, parts), Vec::new(), types, &of_index) })
        }
    }
}

/// Images by platform, with what their index is to say of each.
fn with_annotations(
    output: &OutputSpec,
    images: impl Iterator<Item = (Platform, Artifact)>,
) -> Vec<(Platform, Artifact, BTreeMap<String, String>)> {
    let annotated = images.map(|(platform, artifact)| {
        let annotations = output.annotations.at(AnnotationPlace::ManifestDescriptor, Some(&platform));
        (platform, artifact, annotations)
    });
    annotated.collect()
}

/// One image with its blobs; with `bytes` all of them are brought here. Several layers are compressed at the same time, and
/// sent `early` while others still are.
///
/// # Errors
/// A layer that cannot be had, compressed or sent.
#[expect(clippy::too_many_arguments, reason = "each is used once, and no two belong together")]
pub async fn artifact(
    session: &Session,
    chain: Option<&Digest>,
    config: &[u8],
    output: &OutputSpec,
    annotations: &BTreeMap<String, String>,
    context: &RunContext,
    bytes: bool,
    early: Option<&Reference>,
) -> Result<Artifact, OutputError> {
    let (types, blob_types) = if output.oci_media_types { (OCI, BlobTypes::Oci) } else { (DOCKER, BlobTypes::Docker) };
    let layers = match chain {
        None => Vec::new(),
        Some(chain) => session.store.chain_layers(chain)?,
    };
    let before = early.map(|name| Arc::new(export::Predecessor::new(&session.remote, name, config)));
    let slots = tokio::sync::Semaphore::new(LAYERS_AT_ONCE);
    let sent = std::sync::Mutex::new(BTreeSet::new());
    let blobs = layers.iter().enumerate().map(|(number, layer)| {
        let (slots, sent, before) = (&slots, &sent, &before);
        async move {
            let begun = before.as_ref().map(|before| export::Early::new(before, &context.progress, layer));
            let blob = {
                let _slot = slots.acquire().await.map_err(|_| WorkError::Cancelled)?;
                let begins = begun.as_ref().and_then(export::Early::begins);
                let compression = output.compression;
                let form = BlobForm { number, compression, types: blob_types, bytes, begins };
                session.layers.blob(context, layer, &form).await?
            };
            let is_new = || sent.lock().is_ok_and(|mut sent| sent.insert(blob.descriptor.digest));
            if let Some(begun) = begun {
                begun.finish(&blob, is_new()).await?;
            }
            Ok::<_, OutputError>(blob)
        }
    });
    let layers = futures_util::future::try_join_all(blobs).await?;
    Ok(Artifact::new(config.to_vec(), layers, types, annotations))
}

/// Keeps manifests and index among the blobs.
///
/// # Errors
/// The disk.
pub fn keep_manifests(session: &Session, package: &Package) -> Result<(), OutputError> {
    for image in &package.images {
        session.store.put_blob(&image.manifest)?;
        session.store.put_blob(&image.config)?;
    }
    if let Some((index, _)) = &package.index {
        session.store.put_blob(index)?;
    }
    Ok(())
}

/// Names what was built in the store. Of several images the name stands for that of this machine's platform, or the first;
/// by the index the others are found.
fn name_images(
    session: &Session,
    images: &[Variant],
    names: &[Reference],
    package: Option<&Package>,
) -> Result<(), OutputError> {
    if let Some(package) = package {
        keep_manifests(session, package)?;
    }
    let host = Platform::host();
    let Some(image) = images.iter().find(|image| image.platform == host).or(images.first()) else { return Ok(()) };
    session.store.put_blob(&image.config)?;
    let manifest = package.map(Package::descriptor).map(|descriptor| ManifestRef {
        digest: descriptor.digest,
        media_type: descriptor.media_type.clone(),
        size: descriptor.size,
    });
    if names.is_empty() {
        session.store.put_image(&ImageRecord::unnamed(image.id, manifest.clone()))?;
    }
    for name in names {
        let record = ImageRecord {
            name: name.to_string(),
            config: image.id,
            manifest: manifest.clone(),
            kind: ImageKind::Tagged,
        };
        session.store.put_image(&record)?;
    }
    Ok(())
}

async fn unless_cancelled<T>(
    context: &RunContext,
    work: impl Future<Output = Result<T, OutputError>>,
) -> Result<T, OutputError> {
    tokio::select! {
        () = context.cancelled.cancelled() => Err(WorkError::Cancelled.into()),
        result = work => result,
    }
}

/// Writes one package as an archive.
///
/// # Errors
/// The destination, or a layer.
pub async fn write(
    package: &Package,
    names: &[Reference],
    docker: bool,
    destination: &Destination,
) -> Result<(), OutputError> {
    let (package, names, destination) = (package.clone(), names.to_vec(), destination.clone());
    let written = tokio::task::spawn_blocking(move || {
        let archive = Archive { images: vec![(&package, names)], docker, omitted: BTreeSet::new() };
        write_archive(&archive, &destination)
    });
    written.await.map_err(|_| WorkError::Internal("writing an archive panicked"))?
}

/// Writes an archive.
///
/// # Errors
/// The destination, or a layer.
pub fn write_archive(archive: &Archive<'_>, destination: &Destination) -> Result<(), OutputError> {
    match destination {
        Destination::Stdout => Ok(archive.write_tar(io::stdout().lock(), Path::new("standard output"))?),
        Destination::Directory(path) => Ok(archive.write_directory(path)?),
        Destination::File(path) => {
            let failed = |source| OutputError::Write { path: path.clone(), source };
            if path.is_dir() {
                return Err(failed(io::Error::new(io::ErrorKind::IsADirectory, "it is a directory")));
            }
            Ok(archive.write_tar(File::create(path).map_err(failed)?, path)?)
        }
    }
}
