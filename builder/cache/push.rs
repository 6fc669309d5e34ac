//! A shared cache at a registry, where others may write the same name at the same time.
//!
//! Registries cannot replace a manifest on condition. So each writer looks right before it writes whether the name still
//! shows what it has merged, and keeps watch afterwards: it looks again when whoever looked before that has had the time to
//! write. What others wrote in between is merged, and it writes once more. What this rests on is that between looking and
//! having written no writer takes longer than every other one keeps watch, which is never less than [`LEAST_WATCH`] and more
//! where the registry or this machine is slow. There is nothing to rest it on that would be firmer: a name under which
//! each writer has its own would stay at most registries for ever.
//!
//! A cache that says already what is to be written is left as it is, without a watch.

use std::time::{Duration, Instant};

use futures_util::future::try_join_all;
use graph::Digest;
use registry::{BlobSource, Client, Reference};
use solver::{RunContext, Status};

use super::export::{ExportError, Files, manifest};
use super::format;
use super::import::{ReadError, read_registry};
use super::mounts::PART;
use super::spec::CacheTo;
use super::table::Table;
use crate::export::{Descriptor, LayerBlob, Upstream};
use crate::images::registry_descriptor;
use crate::session::Session;
use crate::worker::{WorkError, blocking};

/// How often a name that somebody else changes meanwhile is written anew.
const ATTEMPTS: u32 = 40;
/// How long a writer keeps watch at least and at most.
const LEAST_WATCH: Duration = Duration::from_millis(250);
const LONGEST_WATCH: Duration = Duration::from_secs(5);
/// Others may be so many times slower than this writer.
const SLOWER: u32 = 4;
/// What is known of a name is too old to write upon when it took longer to learn.
const STALE: Duration = Duration::from_millis(100);
/// That a result was used again is noted once in this time.
const NOTED: Duration = Duration::from_secs(24 * 60 * 60);

/// What a name leads to.
struct Shown {
    table: Table,
    /// `None`: nothing.
    manifest: Option<registry::Digest>,
}

/// Sends what is missing, then the manifest, until the name leads to all that we have.
pub(super) async fn push(
    session: &Session,
    own: &Table,
    files: &Files,
    reference: &Reference,
    to: &CacheTo,
    context: &RunContext,
) -> Result<(), ExportError> {
    let failed = |source| ExportError::Registry { name: reference.familiar(), source: Box::new(source) };
    let client = session.remote.client.directly();
    // The builds of one store need not meet at the registry.
    let (store, cancelled, name) = (session.store.clone(), context.cancelled.clone(), format!("cache-to:{reference}"));
    let _turn = blocking(move || Ok(store.lock(&name, &|| cancelled.is_cancelled())?)).await?;
    let is_lost = |blob: &Digest| session.layers.is_lost(blob);
    let mut there = shown(&client, reference, is_lost).await.map_err(failed)?;
    let now = jiff::Timestamp::now();
    if there.table.says(own, now - NOTED) {
        return remember(session, files, reference);
    }
    // What the manifest names is there: registries keep what a manifest refers to.
    let present = there.table.blobs();
    let missing = files.values().filter(|blob| !present.contains(&blob.descriptor.digest));
    try_join_all(missing.map(|blob| send_layer(session, blob, reference, context))).await?;
    let mut is_merged = true;
    // What the name has led to until now. Others rely on it being taken over by whoever saw it, and may have left.
    let mut before = Table::default();
    for attempt in 0..ATTEMPTS {
        let mut table = own.clone();
        if is_merged {
            table.join(&there.table, now);
            table.join(&before, now);
            before.join(&there.table, now);
        } else {
            // Parts that only the registry had may be what it has lost.
            table.mounts.retain(|_, mount| mount.parts.iter().all(|part| files.contains_key(&part.raw)));
        }
        let (config, blobs) = format::encode(&table);
        let descriptor = Descriptor::new(format::CONFIG, Digest::of(&config), config.len() as u64);
        let (manifest, media_type) = manifest(&descriptor, &blobs, to);
        let wanted = registry::digest_of(&manifest);
        send(session, reference, &descriptor, &bytes::Bytes::from(config), &[]).await?;
        let began = fresh_look(&client, reference, there.manifest.as_ref()).await.map_err(failed)?;
        let Some(began) = began.or((!is_merged).then(Instant::now)) else {
            there = shown(&client, reference, is_lost).await.map_err(failed)?;
            continue;
        };
        match client.put_manifest(reference, media_type, manifest.into()).await {
            Ok(_) => {}
            // A blob of others that the registry has lost must not stand in the way of ours, which are sent again if need be.
            Err(error) if is_merged && !there.table.layers.is_empty() && !error.is_transient() => {
                is_merged = false;
                try_join_all(files.values().map(|blob| send_layer(session, blob, reference, context))).await?;
                continue;
            }
            Err(error) => return Err(failed(error)),
        }
        // The later the round the more others there are.
        let watch =
            (began.elapsed() * SLOWER).clamp(LEAST_WATCH, LONGEST_WATCH).mul_f64(1.0 + f64::from(attempt) / 8.0);
        tokio::select! {
            () = context.cancelled.cancelled() => return Err(WorkError::Cancelled.into()),
            () = tokio::time::sleep(watch.min(LONGEST_WATCH)) => {}
        }
        if current(&client, reference).await.map_err(failed)?.as_ref() == Some(&wanted) {
            return remember(session, files, reference);
        }
        is_merged = true;
        there = shown(&client, reference, is_lost).await.map_err(failed)?;
        if there.table.answers(own) {
            return remember(session, files, reference);
        }
    }
    context
        .progress
        .warn(format!("others write {} all the time; their results may stand in place of these", reference.familiar()));
    Ok(())
}

/// Where layers are is worth knowing.
fn remember(session: &Session, files: &Files, reference: &Reference) -> Result<(), ExportError> {
    for blob in files.values().filter(|blob| blob.descriptor.media_type != PART) {
        session.remote.remember(&blob.descriptor.digest, reference.repository())?;
    }
    Ok(())
}

/// Since when the name is known to show `expected` still; `None` where it does not. What took long to learn is asked again,
/// twice: what others may have written meanwhile is not known by it.
async fn fresh_look(
    client: &Client,
    reference: &Reference,
    expected: Option<&registry::Digest>,
) -> Result<Option<Instant>, registry::Error> {
    let mut began = Instant::now();
    for _ in 0..3 {
        began = Instant::now();
        if current(client, reference).await?.as_ref() != expected {
            return Ok(None);
        }
        if began.elapsed() <= STALE {
            break;
        }
    }
    Ok(Some(began))
}

/// The digest that the name shows.
async fn current(client: &Client, reference: &Reference) -> Result<Option<registry::Digest>, registry::Error> {
    match client.head(reference).await {
        Ok(descriptor) => Ok(Some(descriptor.digest().clone())),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error),
    }
}

/// What the name leads to now. What is no cache is replaced; what cannot be read at the moment is not. Blobs that turned out to
/// be gone are not promised again.
async fn shown(
    client: &Client,
    reference: &Reference,
    is_lost: impl Fn(&Digest) -> bool,
) -> Result<Shown, registry::Error> {
    match read_registry(client, reference).await {
        Ok((mut table, digest)) => {
            for layer in table.layers.values_mut() {
                layer.blob = layer.blob.take().filter(|blob| !is_lost(&blob.digest));
            }
            table.mounts.retain(|_, mount| !mount.blobs().any(|blob| is_lost(&blob)));
            Ok(Shown { table, manifest: Some(digest) })
        }
        Err(ReadError::Registry(error)) if error.is_transient() => Err(error),
        Err(_) => Ok(Shown { table: Table::default(), manifest: current(client, reference).await.unwrap_or(None) }),
    }
}

async fn send_layer(
    session: &Session,
    blob: &LayerBlob,
    reference: &Reference,
    context: &RunContext,
) -> Result<(), ExportError> {
    let known = session.remote.locations(&blob.descriptor.digest)?;
    let source: Box<dyn BlobSource> = match &blob.path {
        Some(path) => Box::new(path.clone()),
        None => Box::new(Upstream::new(session.remote.clone(), blob.descriptor.clone())),
    };
    let id = format!("writing layer {}", blob.descriptor.digest);
    let total = blob.descriptor.size;
    context.progress.status(Status { id: id.clone(), current: 0, total, done: false });
    send(session, reference, &blob.descriptor, source.as_ref(), &known).await?;
    context.progress.status(Status { id, current: total, total, done: true });
    Ok(())
}

async fn send(
    session: &Session,
    reference: &Reference,
    blob: &Descriptor,
    source: &dyn BlobSource,
    known: &[registry::Repository],
) -> Result<(), ExportError> {
    let descriptor = registry_descriptor(blob).map_err(|_| WorkError::Internal("a digest of ours is none"))?;
    let sent = session.remote.client.push_blob(reference.repository(), &descriptor, source, known, None).await;
    sent.map_err(|source| ExportError::Registry { name: reference.familiar(), source: Box::new(source) })?;
    Ok(())
}
