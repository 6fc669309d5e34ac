//! After the build: the result goes where the person wants it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use graph::Digest;
use registry::Reference;
use snapshotter::{ImageKind, ImageRecord, ManifestRef};
use solver::{Progress, RunContext};
use tokio_util::sync::CancellationToken;

use crate::build::Built;
use crate::config::Engine;
use crate::export::{
    self, Archive, ArchiveError, Artifact, DOCKER, Destination, LayerCompression, OCI, OutputKind, OutputSpec,
    PushError,
};
use crate::session::Session;
use crate::worker::{BlobTypes, Rootfs, WorkError, blocking};

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
    /// Nothing to push under.
    #[error("pushing needs a name: use -t, or name= in --output")]
    NoName,
    /// No engine to load into.
    #[error("there is neither docker nor podman to load the image into")]
    NoEngine,
    /// The engine refused.
    #[error("{engine} load failed ({status})")]
    Engine {
        /// The program.
        engine: &'static str,
        /// How it ended.
        status: String,
    },
    /// A file.
    #[error("cannot write {}", path.display())]
    Write {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// What became of a result.
#[derive(Debug, Default, Clone)]
pub struct Delivered {
    /// The manifest, if one was made.
    pub manifest: Option<crate::export::Descriptor>,
    /// Names in the store.
    pub names: Vec<Reference>,
    /// The engine that has it now.
    pub loaded: Option<Engine>,
}

/// An image of the store that leaves it.
pub struct Image<'a> {
    /// Its layers.
    pub rootfs: &'a Rootfs,
    /// Its config.
    pub config: &'a [u8],
    /// Digest of the config.
    pub id: Digest,
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
    let image = Image { rootfs: &built.rootfs, config: &built.config, id: built.id };
    let mut delivered = Delivered::default();
    for output in outputs {
        let names = names_of(output, tags)?;
        let vertex = progress.vertex(&describe(&output.kind));
        let context = RunContext { progress: vertex.clone(), cancelled: cancelled.clone() };
        vertex.during(one(session, &image, output, &names, &context, &mut delivered)).await?;
    }
    Ok(delivered)
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
    image: &Image<'_>,
    output: &OutputSpec,
    names: &[Reference],
    context: &RunContext,
    delivered: &mut Delivered,
) -> Result<(), OutputError> {
    match &output.kind {
        OutputKind::CacheOnly => {}
        OutputKind::Image { push: false, .. } => {
            name_image(session, image.id, names, None)?;
            delivered.names.extend_from_slice(names);
        }
        OutputKind::Image { push: true, by_digest } => {
            if names.is_empty() {
                return Err(OutputError::NoName);
            }
            let artifact = artifact(session, image, output, context, false).await?;
            for name in names {
                export::push(&session.remote, &artifact, name, *by_digest, &context.progress).await?;
            }
            keep_manifest(session, &artifact)?;
            name_image(session, image.id, names, Some(&artifact))?;
            delivered.names.extend_from_slice(names);
            delivered.manifest = Some(artifact.manifest_descriptor.clone());
        }
        OutputKind::Oci(destination) => {
            let artifact = artifact(session, image, output, context, true).await?;
            write(&artifact, names, false, destination).await?;
            delivered.manifest = Some(artifact.manifest_descriptor.clone());
        }
        OutputKind::Docker(Some(destination)) => {
            let artifact = artifact(session, image, output, context, true).await?;
            write(&artifact, names, true, destination).await?;
            delivered.manifest = Some(artifact.manifest_descriptor.clone());
        }
        OutputKind::Docker(None) => {
            let engine = find_engine(session.config.load).ok_or(OutputError::NoEngine)?;
            // Uncompressed: the engine unpacks it at once.
            let plain = LayerCompression { algorithm: snapshotter::layer::compress::Compression::None, force: false };
            let output = OutputSpec { compression: plain, ..output.clone() };
            let artifact = artifact(session, image, &output, context, true).await?;
            load_into(engine, &artifact, names).await?;
            name_image(session, image.id, names, None)?;
            delivered.names.extend_from_slice(names);
            delivered.loaded = Some(engine);
        }
        OutputKind::Tar(destination) => {
            let tree = session.layers.readable(context, image.rootfs.chain.as_ref()).await?;
            let destination = destination.clone();
            blocking(move || Ok(export::write_tar(&tree, &destination)?)).await?;
        }
        OutputKind::Local(directory) => {
            let tree = session.layers.readable(context, image.rootfs.chain.as_ref()).await?;
            let directory = directory.clone();
            let skipped = blocking(move || Ok(export::write_local(&tree, &directory)?)).await?;
            if !skipped.is_empty() {
                context.progress.warn(format!("{} device nodes were left out: only root can make them", skipped.len()));
            }
        }
    }
    Ok(())
}

/// The image with its blobs; with `bytes` all of them are brought here.
///
/// # Errors
/// A layer that cannot be had or compressed.
pub async fn artifact(
    session: &Session,
    image: &Image<'_>,
    output: &OutputSpec,
    context: &RunContext,
    bytes: bool,
) -> Result<Artifact, OutputError> {
    let (types, blob_types) = if output.oci_media_types { (OCI, BlobTypes::Oci) } else { (DOCKER, BlobTypes::Docker) };
    let chain = image.rootfs.chain.as_ref();
    let layers = session.layers.blobs(context, chain, output.compression, blob_types, bytes).await?;
    Ok(Artifact::new(image.config.to_vec(), layers, types, &BTreeMap::new()))
}

/// Keeps the manifest among the blobs.
///
/// # Errors
/// The disk.
pub fn keep_manifest(session: &Session, artifact: &Artifact) -> Result<(), OutputError> {
    session.store.put_blob(&artifact.manifest)?;
    Ok(())
}

/// Names an image of the store.
///
/// # Errors
/// The database.
pub fn name_image(
    session: &Session,
    id: Digest,
    names: &[Reference],
    artifact: Option<&Artifact>,
) -> Result<(), OutputError> {
    let manifest = artifact.map(|artifact| ManifestRef {
        digest: artifact.manifest_descriptor.digest,
        media_type: artifact.manifest_descriptor.media_type.clone(),
        size: artifact.manifest_descriptor.size,
    });
    for name in names {
        let record =
            ImageRecord { name: name.to_string(), config: id, manifest: manifest.clone(), kind: ImageKind::Tagged };
        session.store.put_image(&record)?;
    }
    Ok(())
}

/// Writes one image as an archive.
///
/// # Errors
/// The destination, or a layer.
pub async fn write(
    artifact: &Artifact,
    names: &[Reference],
    docker: bool,
    destination: &Destination,
) -> Result<(), OutputError> {
    let (artifact, names, destination) = (artifact.clone(), names.to_vec(), destination.clone());
    let written = tokio::task::spawn_blocking(move || {
        let archive = Archive { images: vec![(&artifact, names)], docker };
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

/// The engine that `--load` means: the configured one, else docker, else podman.
#[must_use]
pub fn find_engine(configured: Option<Engine>) -> Option<Engine> {
    let found = |engine: &Engine| on_path(engine.program());
    match configured {
        Some(engine) => Some(engine).filter(found),
        None => [Engine::Docker, Engine::Podman].into_iter().find(found),
    }
}

fn on_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| directory.join(program).is_file())
}

async fn load_into(engine: Engine, artifact: &Artifact, names: &[Reference]) -> Result<(), OutputError> {
    let (artifact, names) = (artifact.clone(), names.to_vec());
    let load = move || {
        let failed = |status: String| OutputError::Engine { engine: engine.program(), status };
        let mut child = Command::new(engine.program())
            .arg("load")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .map_err(|error| failed(error.to_string()))?;
        let archive = Archive { images: vec![(&artifact, names)], docker: true };
        let stdin = child.stdin.take();
        let written = match stdin {
            Some(stdin) => archive.write_tar(stdin, Path::new("the engine's standard input")),
            None => Ok(()),
        };
        let status = child.wait().map_err(|error| failed(error.to_string()))?;
        if !status.success() {
            return Err(failed(status.to_string()));
        }
        Ok(written?)
    };
    tokio::task::spawn_blocking(load).await.map_err(|_| WorkError::Internal("loading panicked"))?
}
