//! Bundles at registries.

use std::io;
use std::sync::Arc;

use futures_util::future::{BoxFuture, try_join_all};
use graph::{Digest, Platform};
use registry::{BlobSource, Client, Reference, Repository};
use solver::{RunContext, Status};
use tokio::io::{AsyncRead, AsyncReadExt as _};

use super::beside::Referrers;
use super::{Blobs, Bundle, BundleError, Document, Documents, descriptor};
use crate::export::Descriptor;
use crate::images::registry_descriptor;
use crate::session::Session;

pub(super) struct Remote {
    client: Client,
    repository: Repository,
}

impl Remote {
    fn failed(&self) -> impl FnOnce(registry::Error) -> BundleError {
        let name = self.repository.to_string();
        |source| BundleError::Registry { name, source: Box::new(source) }
    }
}

fn malformed(what: &Descriptor, why: String) -> BundleError {
    BundleError::Malformed { what: what.digest.to_string(), why }
}

impl Documents for Remote {
    fn document(&self, wanted: Descriptor) -> BoxFuture<'_, Result<Document, BundleError>> {
        Box::pin(async move {
            let descriptor = registry_descriptor(&wanted).map_err(|why| malformed(&wanted, why))?;
            let resolved = self.client.manifest(&self.repository, &descriptor).await.map_err(self.failed())?;
            Ok(Document { descriptor: wanted, bytes: resolved.bytes.to_vec() })
        })
    }
}

impl Blobs for Remote {
    fn open(&self, blob: Descriptor, offset: u64) -> BoxFuture<'_, io::Result<Box<dyn AsyncRead + Send + Unpin>>> {
        Box::pin(async move {
            let descriptor = registry_descriptor(&blob).map_err(io::Error::other)?;
            let stream = self.client.blob(&self.repository, &descriptor).await.map_err(io::Error::other)?;
            reader(stream, offset).await
        })
    }

    fn repository(&self) -> Option<&Repository> {
        Some(&self.repository)
    }
}

/// A download as something to read, without its first bytes.
pub(super) async fn reader(stream: registry::BlobStream, offset: u64) -> io::Result<Box<dyn AsyncRead + Send + Unpin>> {
    let stream = Box::pin(futures_util::StreamExt::map(stream.into_stream(), |piece| piece.map_err(io::Error::other)));
    let mut reader = tokio_util::io::StreamReader::new(stream);
    tokio::io::copy(&mut (&mut reader).take(offset), &mut tokio::io::sink()).await?;
    Ok(Box::new(reader))
}

impl Referrers for Remote {
    fn referrers(&self, subject: Digest) -> BoxFuture<'_, Result<Vec<Descriptor>, BundleError>> {
        Box::pin(async move {
            let text = subject.to_string();
            let digest = text.parse().map_err(|_| BundleError::Malformed { what: text, why: "no digest".into() })?;
            let list = self.client.referrers(&self.repository, &digest).await.map_err(self.failed())?;
            list.iter().map(descriptor).collect()
        })
    }
}

/// The repository of a name.
pub(super) fn remote(session: &Session, name: &Reference) -> Arc<Remote> {
    Arc::new(Remote { client: session.remote.client.clone(), repository: name.repository().clone() })
}

/// Resolves a name and all it leads to; no blob is fetched yet.
pub(super) async fn read(
    session: &Session,
    name: &Reference,
    platform: Option<&Platform>,
) -> Result<Bundle, BundleError> {
    let remote = remote(session, name);
    let failed = |source| BundleError::Registry { name: name.to_string(), source: Box::new(source) };
    let resolved = remote.client.resolve(name).await.map_err(failed)?;
    let top = Document { descriptor: descriptor(&resolved.descriptor)?, bytes: resolved.bytes.to_vec() };
    Bundle::follow(remote.as_ref(), remote.clone(), &remote.client, top, platform).await
}

/// A blob of a bundle on its way to a registry.
struct Passing<'a> {
    blob: &'a Descriptor,
    blobs: &'a Arc<dyn Blobs>,
}

impl BlobSource for Passing<'_> {
    fn open(&self, offset: u64) -> BoxFuture<'_, io::Result<Box<dyn AsyncRead + Send + Unpin>>> {
        self.blobs.open(self.blob.clone(), offset)
    }
}

/// Sends all: blobs in parallel, those that are there or can be mounted or are not to be handed on not at all, then manifests,
/// the top last.
pub(super) async fn write(
    session: &Session,
    bundle: &Bundle,
    name: &Reference,
    context: &RunContext,
) -> Result<(), BundleError> {
    let client = &session.remote.client;
    client.check_push(name.repository()).await.map_err(failed(name))?;
    write_blobs(session, bundle, name, context).await?;
    for document in &bundle.below {
        put_by_digest(client, document, name).await?;
    }
    let bytes = bundle.top.bytes.clone().into();
    client.put_manifest(name, &bundle.top.descriptor.media_type, bytes).await.map_err(failed(name))?;
    for (_, document) in &bundle.beside {
        put_by_digest(client, document, name).await?;
    }
    Ok(())
}

/// Sends only what refers to something that is there.
pub(super) async fn write_beside(
    session: &Session,
    bundle: &Bundle,
    name: &Reference,
    context: &RunContext,
) -> Result<(), BundleError> {
    write_blobs(session, bundle, name, context).await?;
    for (_, document) in &bundle.beside {
        put_by_digest(&session.remote.client, document, name).await?;
    }
    Ok(())
}

fn failed(name: &Reference) -> impl Fn(registry::Error) -> BundleError {
    move |source| BundleError::Registry { name: name.to_string(), source: Box::new(source) }
}

async fn put_by_digest(client: &Client, document: &Document, name: &Reference) -> Result<(), BundleError> {
    let digest = document.descriptor.digest.to_string().parse();
    let digest = digest.map_err(|_| malformed(&document.descriptor, "its digest cannot be sent".into()))?;
    let target = name.repository().with_digest(digest);
    let bytes = document.bytes.clone().into();
    client.put_manifest(&target, &document.descriptor.media_type, bytes).await.map(drop).map_err(failed(name))
}

async fn write_blobs(
    session: &Session,
    bundle: &Bundle,
    name: &Reference,
    context: &RunContext,
) -> Result<(), BundleError> {
    let client = &session.remote.client;
    let handed_on = bundle.blobs.iter().filter(|(blob, _)| !blob.is_kept_elsewhere());
    let sent = handed_on.map(|(blob, blobs)| async move {
        let descriptor = registry_descriptor(blob).map_err(|why| malformed(blob, why))?;
        let vertex = context.progress.clone();
        let report: registry::Progress = Arc::new(move |event: registry::TransferEvent| {
            let done = event.done == event.total;
            vertex.status(Status { id: event.digest.to_string(), current: event.done, total: event.total, done });
        });
        let from: Vec<Repository> = blobs.repository().cloned().into_iter().collect();
        let passing = Passing { blob, blobs };
        client.push_blob(name.repository(), &descriptor, &passing, &from, Some(&report)).await.map_err(failed(name))
    });
    try_join_all(sent).await.map(drop)
}
