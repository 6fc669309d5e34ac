//! What was built, as an output wants it: with later times cut off (`rewrite-timestamp`), or with its layers as one
//! (`--squash`). The base's layers are never touched.

use std::sync::Arc;

use graph::image::History;
use graph::{Digest, Platform};
use snapshotter::LayerRecord;
use snapshotter::layer::{LayerIndex, Tree, squash};
use solver::RunContext;

use crate::build::{Built, BuiltImage};
use crate::export::OutputSpec;
use crate::image::{self, BuiltLayer};
use crate::outputs::OutputError;
use crate::session::Session;
use crate::worker::{ReadableTree, WorkError, blocking};

/// An image for one platform, ready to be packed.
#[derive(Debug, Clone)]
pub struct Variant {
    /// For which.
    pub platform: Platform,
    /// Chain id of its layers.
    pub chain: Option<Digest>,
    /// The config's bytes.
    pub config: Vec<u8>,
    /// The image id.
    pub id: Digest,
}

/// The images of a build as `output` wants them.
///
/// # Errors
/// A layer that cannot be read or written.
pub async fn variants(
    session: &Session,
    built: &Built,
    output: &OutputSpec,
    context: &RunContext,
) -> Result<Vec<Variant>, OutputError> {
    let own_epoch = output.epoch.and_then(|seconds| jiff::Timestamp::from_second(seconds).ok());
    let epoch = own_epoch.or(built.epoch);
    let latest = match (epoch, output.rewrite_timestamp) {
        (Some(epoch), None | Some(true)) => Some(epoch.as_second()),
        (None, Some(true)) => return Err(OutputError::NoEpoch),
        (_, Some(false)) | (None, None) => None,
    };
    let mut variants = Vec::with_capacity(built.images.len());
    for image in &built.images {
        let BuiltImage { platform, rootfs, config, id, .. } = image;
        let mut variant = Variant { platform: platform.clone(), chain: rootfs.chain, config: config.clone(), id: *id };
        let mut unfinished = image.unfinished.clone();
        if let Some(latest) = latest {
            variant.chain = clamped(session, image, latest, context).await?;
        }
        if output.squash {
            (variant.chain, unfinished) = squashed(session, variant.chain, image, unfinished, context).await?;
        }
        if variant.chain != rootfs.chain || own_epoch.is_some() {
            let layers = layers_of(session, variant.chain.as_ref())?;
            let layers: Vec<BuiltLayer> =
                layers.iter().map(|layer| BuiltLayer { diff_id: layer.diff_id, created: layer.created }).collect();
            let config = image::finish(unfinished, &layers, epoch, jiff::Timestamp::now());
            variant.config =
                serde_json::to_vec(&config).map_err(|_| WorkError::Internal("a config has no JSON form"))?;
            variant.id = Digest::of(&variant.config);
        }
        variants.push(variant);
    }
    Ok(variants)
}

fn layers_of(session: &Session, chain: Option<&Digest>) -> Result<Vec<LayerRecord>, OutputError> {
    match chain {
        None => Ok(Vec::new()),
        Some(chain) => Ok(session.store.chain_layers(chain)?),
    }
}

/// The stack without times later than `latest` in what was built.
async fn clamped(
    session: &Session,
    image: &BuiltImage,
    latest: i64,
    context: &RunContext,
) -> Result<Option<Digest>, OutputError> {
    let layers = layers_of(session, image.rootfs.chain.as_ref())?;
    let (base, new) = layers.split_at(image.base_layers.min(layers.len()));
    let mut parent = base.last().map(|layer| layer.chain);
    for layer in new {
        let key = format!("{} {latest}", layer.diff_id);
        let known = match session.store.note("clamped", &key)? {
            Some(diff_id) => known(session, &diff_id)?,
            None => None,
        };
        let record = match known {
            Some(known) => known.upon(parent),
            None => {
                let source = readable(session, layer, context).await?;
                if later_than(&source, latest) {
                    let written = written_anew(session, None, source, Some(latest), layer, parent).await?;
                    session.store.put_note("clamped", &key, &written.diff_id.to_string())?;
                    written
                } else {
                    layer.upon(parent)
                }
            }
        };
        session.store.put_layer(&record)?;
        parent = Some(record.chain);
    }
    Ok(parent)
}

/// A layer of this diff id whose bytes are here.
fn known(session: &Session, diff_id: &str) -> Result<Option<LayerRecord>, OutputError> {
    let Ok(diff_id) = diff_id.parse::<Digest>() else { return Ok(None) };
    if session.store.blob_path(&diff_id).is_none() {
        return Ok(None);
    }
    match session.store.chains_with(&diff_id)?.first() {
        Some(chain) => Ok(session.store.layer(chain)?),
        None => Ok(None),
    }
}

/// One layer alone.
async fn readable(session: &Session, layer: &LayerRecord, context: &RunContext) -> Result<ReadableTree, OutputError> {
    let alone = std::slice::from_ref(layer);
    if let Some(here) = session.layers.here(alone)? {
        return Ok(here);
    }
    // A layer of another image that was put on this one, and was never needed as files.
    session.layers.readable(context, Some(&layer.chain)).await?;
    Ok(session.layers.here(alone)?.ok_or(WorkError::LayerLost(layer.chain))?)
}

fn later_than(tree: &ReadableTree, latest: i64) -> bool {
    let entries = tree.tree.layers().iter().flat_map(|layer| layer.entries());
    entries.into_iter().any(|entry| !entry.is_implicit() && entry.mtime > (latest, 0))
}

/// The layers of the build as one, and the history that goes with it.
async fn squashed(
    session: &Session,
    chain: Option<Digest>,
    image: &BuiltImage,
    mut config: graph::ImageConfig,
    context: &RunContext,
) -> Result<(Option<Digest>, graph::ImageConfig), OutputError> {
    let layers = layers_of(session, chain.as_ref())?;
    let (base, new) = layers.split_at(image.base_layers.min(layers.len()));
    if new.len() < 2 {
        return Ok((chain, config));
    }
    let whole = session.layers.readable(context, chain.as_ref()).await?;
    let below = Tree::new(whole.tree.layers()[..base.len()].to_vec());
    let skipped = base.len();
    let tree = Tree::new(whole.tree.layers()[skipped..].to_vec());
    let bytes = Arc::clone(&whole.bytes);
    let bytes = move |layer: usize, path: &[u8]| bytes(layer + skipped, path);
    let source = ReadableTree { tree: Arc::new(tree), bytes: Arc::new(bytes) };
    let last = &new[new.len() - 1];
    let written = written_anew(session, Some(below), source, None, last, base.last().map(|layer| layer.chain)).await?;
    session.store.put_layer(&written)?;
    let mut with_layer = 0;
    for entry in config.history.iter_mut().filter(|entry| !entry.empty_layer) {
        with_layer += 1;
        entry.empty_layer = with_layer > base.len();
    }
    let comment = format!("{} layers squashed into one", new.len());
    config.history.push(History { comment, ..History::default() });
    Ok((Some(written.chain), config))
}

/// Writes layers as one into the store.
async fn written_anew(
    session: &Session,
    below: Option<Tree>,
    source: ReadableTree,
    latest: Option<i64>,
    like: &LayerRecord,
    parent: Option<Digest>,
) -> Result<LayerRecord, OutputError> {
    let (store, created) = (Arc::clone(&session.store), like.created.unwrap_or_else(jiff::Timestamp::now));
    let record = blocking(move || {
        let open = |layer: usize, path: &[u8]| source.open(layer, path);
        let layers: &[Arc<LayerIndex>] = source.tree.layers();
        let (written, blob) = squash(below.as_ref(), layers, latest, open, store.known_blob_writer()?)?;
        blob.commit(&written.diff_id)?;
        let record = LayerRecord::own(parent, written.diff_id, written.content, written.size, created);
        store.put_index(&record.chain, &written.index.encode())?;
        store.put_layer(&record)?;
        Ok(record)
    });
    Ok(record.await?)
}
