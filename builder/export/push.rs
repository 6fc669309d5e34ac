//! To a registry: blobs in parallel, those that are there or can be mounted not at all, the manifest last.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;

use futures_util::future::{BoxFuture, try_join_all};
use registry::{BlobSource, Reference, Repository};
use solver::{Status, VertexProgress};
use tokio::io::AsyncRead;

use super::{Artifact, Descriptor, LayerBlob, Package};
use crate::images::{Remote, registry_descriptor};

/// An image that could not be pushed.
#[derive(Debug, thiserror::Error)]
pub enum PushError {
    /// The registry.
    #[error("cannot push {name}")]
    Registry {
        /// The image.
        name: String,
        /// Why.
        source: Box<registry::Error>,
    },
    /// The store.
    #[error("cannot push {name}: {why}")]
    Local {
        /// The image.
        name: String,
        /// Why.
        why: String,
    },
}

/// What a push did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Pushed {
    /// Bytes that were sent.
    pub uploaded: u64,
    /// Blobs that were there or were mounted.
    pub reused: u64,
}

/// Sends an image, or several and their index.
///
/// # Errors
/// The registry refused, or a layer is missing here.
pub async fn push(
    remote: &Remote,
    package: &Package,
    name: &Reference,
    by_digest: bool,
    progress: &VertexProgress,
) -> Result<Pushed, PushError> {
    let mut blobs = BTreeSet::new();
    let images = package.images.iter().map(|image| {
        // A layer that two images share goes once.
        let handed_on = image.layers.iter().filter(|layer| !layer.descriptor.is_kept_elsewhere());
        let layers = handed_on.filter(|layer| blobs.insert(layer.descriptor.digest)).collect();
        send_blobs(remote, image, layers, name, progress)
    });
    let sent = try_join_all(images.collect::<Vec<_>>()).await?;
    for image in &package.images {
        let by_digest = by_digest || package.index.is_some();
        put_manifest(remote, name, by_digest, &image.manifest_descriptor, &image.manifest).await?;
    }
    for attestation in &package.attestations {
        for (descriptor, bytes) in &attestation.blobs {
            let bytes = bytes::Bytes::from(bytes.clone());
            send(remote, name, descriptor, &bytes, &[], progress, None).await?;
        }
        put_manifest(remote, name, true, &attestation.descriptor, &attestation.manifest).await?;
    }
    // What it names is there by now.
    if let Some((index, descriptor)) = &package.index {
        put_manifest(remote, name, by_digest, descriptor, index).await?;
    }
    Ok(sent.iter().fold(Pushed::default(), |total, sent| Pushed {
        uploaded: total.uploaded + sent.uploaded,
        reused: total.reused + sent.reused,
    }))
}

async fn put_manifest(
    remote: &Remote,
    name: &Reference,
    by_digest: bool,
    descriptor: &Descriptor,
    bytes: &[u8],
) -> Result<(), PushError> {
    let failed = |source| PushError::Registry { name: name.to_string(), source: Box::new(source) };
    let local = |why: String| PushError::Local { name: name.to_string(), why };
    let digest = descriptor.digest.to_string().parse().map_err(|error| local(format!("{error}")))?;
    let target = if by_digest { name.repository().with_digest(digest) } else { name.clone() };
    let bytes = bytes::Bytes::copy_from_slice(bytes);
    remote.client.put_manifest(&target, &descriptor.media_type, bytes).await.map(drop).map_err(failed)
}

async fn send_blobs(
    remote: &Remote,
    image: &Artifact,
    layers: Vec<&LayerBlob>,
    name: &Reference,
    progress: &VertexProgress,
) -> Result<Pushed, PushError> {
    let config = bytes::Bytes::from(image.config.clone());
    let layers = layers.into_iter().map(|layer| send_layer(remote, layer, name, progress, None));
    let (config, layers) = tokio::try_join!(
        send(remote, name, &image.config_descriptor, &config, &[], progress, None),
        try_join_all(layers)
    )?;
    Ok(layers.iter().fold(config, |total, layer| Pushed {
        uploaded: total.uploaded + layer.uploaded,
        reused: total.reused + layer.reused,
    }))
}

/// Sends one layer, unless it is there or can be mounted; what has `begun` to leave goes on.
///
/// # Errors
/// The registry refused, or its bytes are missing here.
pub(super) async fn send_layer(
    remote: &Remote,
    layer: &LayerBlob,
    name: &Reference,
    progress: &VertexProgress,
    begun: Option<registry::Begun>,
) -> Result<Pushed, PushError> {
    let local = |why: String| PushError::Local { name: name.to_string(), why };
    let known = remote.locations(&layer.descriptor.digest).map_err(|error| local(error.to_string()))?;
    let source: Box<dyn BlobSource> = match &layer.path {
        Some(path) => Box::new(path.clone()),
        None => Box::new(Upstream::new(remote.clone(), layer.descriptor.clone())),
    };
    send(remote, name, &layer.descriptor, source.as_ref(), &known, progress, begun).await
}

async fn send(
    remote: &Remote,
    name: &Reference,
    blob: &Descriptor,
    source: &dyn BlobSource,
    known: &[Repository],
    progress: &VertexProgress,
    begun: Option<registry::Begun>,
) -> Result<Pushed, PushError> {
    let local = |why: String| PushError::Local { name: name.to_string(), why };
    let descriptor = registry_descriptor(blob).map_err(local)?;
    let registry = name.registry();
    let mount_from: Vec<Repository> =
        known.iter().filter(|known| known.registry() == registry && *known != name.repository()).cloned().collect();
    let vertex = progress.clone();
    let report: registry::Progress = Arc::new(move |event: registry::TransferEvent| {
        let done = event.done == event.total;
        vertex.status(Status { id: event.digest.to_string(), current: event.done, total: event.total, done });
    });
    let (client, repository) = (&remote.client, name.repository());
    let sent = match begun {
        Some(begun) => client.finish_blob(repository, &descriptor, source, begun, Some(&report)).await,
        None => client.push_blob(repository, &descriptor, source, &mount_from, Some(&report)).await,
    };
    let sent = sent.map_err(|source| PushError::Registry { name: name.to_string(), source: Box::new(source) })?;
    remote.remember(&blob.digest, name.repository()).map_err(|error| local(error.to_string()))?;
    Ok(match sent {
        registry::Pushed::Uploaded { bytes } => Pushed { uploaded: bytes, reused: 0 },
        registry::Pushed::Exists | registry::Pushed::Mounted { .. } => Pushed { uploaded: 0, reused: 1 },
    })
}

type Opened<'a> = BoxFuture<'a, io::Result<Box<dyn AsyncRead + Send + Unpin>>>;

/// A layer that only another registry has: it streams through, and never touches the disk.
pub(crate) struct Upstream {
    remote: Remote,
    blob: Descriptor,
}

impl Upstream {
    /// Of a blob that is not here.
    pub(crate) fn new(remote: Remote, blob: Descriptor) -> Self {
        Self { remote, blob }
    }
}

impl BlobSource for Upstream {
    fn open(&self, offset: u64) -> Opened<'_> {
        Box::pin(async move {
            let (sender, receiver) = tokio::sync::mpsc::channel(16);
            let (remote, blob) = (self.remote.clone(), self.blob.clone());
            tokio::spawn(async move { remote.fetch(&blob, sender, |_, _, _| {}).await });
            let stream = futures_util::stream::unfold(receiver, |mut receiver| async move {
                receiver.recv().await.map(|chunk| (chunk, receiver))
            });
            let mut reader = tokio_util::io::StreamReader::new(Box::pin(stream));
            let skip = &mut tokio::io::AsyncReadExt::take(&mut reader, offset);
            tokio::io::copy(skip, &mut tokio::io::sink()).await?;
            Ok(Box::new(reader) as Box<dyn AsyncRead + Send + Unpin>)
        })
    }
}
