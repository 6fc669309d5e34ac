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

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use futures_util::future::try_join_all;
use graph::Digest;
use registry::{BlobSource, Client, Reference};
use solver::{RunContext, Status};

use super::export::{Documents, ExportError, Files, warn_of_others};
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
    // Blobs that the name refers to and the registry does not have.
    let mut gone = BTreeSet::new();
    let mut there = shown(session, &client, reference, &gone).await.map_err(failed)?;
    let now = jiff::Timestamp::now();
    if there.table.says(own, now - NOTED) {
        return remember(session, files, reference);
    }
    if there.table.is_of_others() {
        warn_of_others(&reference.familiar(), &context.progress);
    }
    // What the manifest names is there: registries keep what a manifest refers to.
    let present = there.table.blobs();
    let missing = files.values().filter(|blob| !present.contains(&blob.descriptor.digest));
    try_join_all(missing.map(|blob| send_layer(session, blob, reference, context))).await?;
    let (mut own, mut is_mended) = (own.clone(), false);
    // What the name has led to until now. Others rely on it being taken over by whoever saw it, and may have left.
    let mut before = Table::default();
    for attempt in 0..ATTEMPTS {
        let mut table = own.clone();
        table.join(&there.table, now);
        table.join(&before, now);
        before.join(&there.table, now);
        let Documents { config, descriptor, manifest, media_type } = Documents::of(&table, to)?;
        let wanted = registry::digest_of(&manifest);
        send(session, reference, &descriptor, &bytes::Bytes::from(config), &[]).await?;
        let began = fresh_look(&client, reference, there.manifest.as_ref()).await.map_err(failed)?;
        let Some(began) = began else {
            there = shown(session, &client, reference, &gone).await.map_err(failed)?;
            continue;
        };
        match client.put_manifest(reference, media_type, manifest.into()).await {
            Ok(_) => {}
            // A blob of others that the registry has lost must not stand in the way of the rest, and ours are sent again.
            Err(error) if !is_mended && is_about_content(&error) => {
                is_mended = true;
                gone = absent(&client, reference, &table).await.map_err(failed)?;
                if gone.is_empty() {
                    return Err(failed(error));
                }
                let ours = files.values().filter(|blob| gone.contains(&blob.descriptor.digest));
                try_join_all(ours.map(|blob| send_layer(session, blob, reference, context))).await?;
                gone.retain(|blob| !files.contains_key(blob));
                for table in [&mut own, &mut there.table, &mut before] {
                    table.forget_blobs(|blob| gone.contains(blob));
                }
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
        there = shown(session, &client, reference, &gone).await.map_err(failed)?;
        if there.table.answers(&own) {
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

/// Whether a registry may have refused a manifest for a blob that it does not have. No two say so with the same words.
fn is_about_content(error: &registry::Error) -> bool {
    error.is_not_found() || matches!(error, registry::Error::Status { status: 400 | 422, .. })
}

/// Blobs of a table that the registry does not have. They are asked for and not read.
async fn absent(client: &Client, reference: &Reference, table: &Table) -> Result<BTreeSet<Digest>, registry::Error> {
    let layers = table.layers.values().filter_map(|layer| layer.blob.as_ref());
    let parts = table.mounts.values().flat_map(|mount| mount.parts.iter().map(|part| &part.blob));
    let blobs: BTreeMap<Digest, &Descriptor> = layers.chain(parts).map(|blob| (blob.digest, blob)).collect();
    let asked = blobs.into_values().map(|blob| async move {
        // What cannot be asked for is not there either.
        let Ok(descriptor) = registry_descriptor(blob) else { return Ok(Some(blob.digest)) };
        match client.blob(reference.repository(), &descriptor).await {
            Ok(_) => Ok(None),
            Err(error) if error.is_not_found() => Ok(Some(blob.digest)),
            Err(error) if error.is_transient() => Err(error),
            // Then the refusal says more than this does.
            Err(_) => Ok(None),
        }
    });
    Ok(try_join_all(asked).await?.into_iter().flatten().collect())
}

/// What the name leads to now. What is no cache is replaced; what cannot be read at the moment is not. Blobs that turned out to
/// be gone are not promised again.
async fn shown(
    session: &Session,
    client: &Client,
    reference: &Reference,
    gone: &BTreeSet<Digest>,
) -> Result<Shown, registry::Error> {
    match read_registry(client, reference).await {
        Ok((mut table, digest)) => {
            table.forget_blobs(|blob| gone.contains(blob) || session.layers.is_lost(blob));
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
