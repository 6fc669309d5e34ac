//! A layer that leaves for its registry while it is still being compressed.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use graph::{Digest, Platform};
use registry::{Begun, Manifest, Reference, Want};
use snapshotter::LayerRecord;
use solver::{Status, VertexProgress};
use tokio::sync::OnceCell;
use tokio::task::JoinHandle;

use super::LayerBlob;
use super::push::{PushError, send_layer};
use crate::images::{Remote, parse_config};
use crate::worker::{Begins, Growing};

/// What is smaller is compressed before a registry has answered that it may come.
const WORTH_IT: u64 = 4 << 20;
/// Largest config that is read.
const CONFIG_MAX: u64 = 16 << 20;

type Sending = JoinHandle<Option<Begun>>;

/// What a name stands for before it is pushed to. Of layers that it has the blob is most likely there already, and the bytes would
/// be sent for nothing: their digest is waited for, by which a registry tells.
pub(crate) struct Predecessor {
    remote: Remote,
    name: Reference,
    platform: Platform,
    diff_ids: OnceCell<BTreeSet<Digest>>,
}

impl Predecessor {
    pub(crate) fn new(remote: &Remote, name: &Reference, config: &[u8]) -> Self {
        let platform = parse_config("", config).map_or_else(|_| Platform::host(), |config| config.platform());
        Self { remote: remote.clone(), name: name.clone(), platform, diff_ids: OnceCell::new() }
    }

    async fn has(&self, diff_id: &Digest) -> bool {
        self.diff_ids.get_or_init(|| async { self.ask().await.unwrap_or_default() }).await.contains(diff_id)
    }

    /// `None`: there is nothing, or nothing that helps.
    async fn ask(&self) -> Option<BTreeSet<Digest>> {
        let (client, repository) = (&self.remote.client, self.name.repository());
        let mut resolved = client.resolve(&self.name).await.ok()?;
        if let Manifest::Index(index) = resolved.parse().ok()? {
            let Platform { os, architecture, variant } = &self.platform;
            let chosen = registry::choose_platform(&index, &Want { os, architecture, variant }).ok()?;
            resolved = client.manifest(repository, chosen).await.ok()?;
        }
        let Manifest::Image(image) = resolved.parse().ok()? else { return None };
        let config = client.small_blob(repository, image.config(), CONFIG_MAX).await.ok()?;
        Some(parse_config("", &config).ok()?.rootfs.diff_ids.into_iter().collect())
    }
}

/// The upload of one layer, which begins with the first compressed bytes if there are any to wait for.
pub(crate) struct Early {
    before: Arc<Predecessor>,
    diff_id: Digest,
    progress: VertexProgress,
    id: String,
    is_large: bool,
    /// One for each time that compressing began: what turned out to be damaged is compressed again.
    begun: Arc<Mutex<Vec<Sending>>>,
}

impl Early {
    pub(crate) fn new(before: &Arc<Predecessor>, progress: &VertexProgress, layer: &LayerRecord) -> Self {
        Self {
            before: Arc::clone(before),
            diff_id: layer.diff_id,
            progress: progress.clone(),
            id: format!("layer {}", layer.diff_id.short()),
            is_large: layer.size >= WORTH_IT,
            begun: Arc::default(),
        }
    }

    /// To be told when the layer begins to be compressed.
    pub(crate) fn begins(&self) -> Option<Begins> {
        if !self.is_large {
            return None;
        }
        let (before, diff_id) = (Arc::clone(&self.before), self.diff_id);
        let (progress, id) = (self.progress.clone(), self.id.clone());
        let begun = Arc::clone(&self.begun);
        Some(Arc::new(move |growing: Growing| {
            let (before, progress, id) = (Arc::clone(&before), progress.clone(), id.clone());
            let sending = tokio::spawn(async move {
                if before.has(&diff_id).await {
                    return None;
                }
                let on_sent = {
                    let (progress, id) = (progress.clone(), id.clone());
                    move |current| {
                        progress.status(Status { id: id.clone(), current, total: 0, done: false });
                    }
                };
                let (client, repository) = (&before.remote.client, before.name.repository());
                client.begin_blob(repository, &growing, Arc::new(on_sent)).await
            });
            begun.lock().unwrap_or_else(PoisonError::into_inner).push(sending);
        }))
    }

    /// Sees to it that the registry has the layer, unless it `is_new` no longer: then another one is sending the same.
    pub(crate) async fn finish(self, blob: &LayerBlob, is_new: bool) -> Result<(), PushError> {
        let Predecessor { remote, name, .. } = &*self.before;
        let mut all = std::mem::take(&mut *self.begun.lock().unwrap_or_else(PoisonError::into_inner));
        let last = if is_new { all.pop() } else { None };
        for sending in all {
            if let Ok(Some(begun)) = sending.await {
                remote.client.give_up(name.repository(), begun).await;
            }
        }
        if !is_new {
            return Ok(());
        }
        let begun = match last {
            Some(sending) => sending.await.ok().flatten(),
            None => None,
        };
        if begun.is_some() {
            let current = blob.descriptor.size;
            self.progress.status(Status { id: self.id.clone(), current, total: current, done: true });
        }
        send_layer(remote, blob, name, &self.progress, begun).await.map(drop)
    }
}
