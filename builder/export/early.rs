//! A layer that leaves for its registry while it is still being compressed.

use std::sync::{Arc, Mutex, PoisonError};

use registry::{Begun, Reference};
use snapshotter::LayerRecord;
use solver::{Status, VertexProgress};
use tokio::task::JoinHandle;

use super::LayerBlob;
use super::push::{PushError, send_layer};
use crate::images::Remote;
use crate::worker::{Begins, Growing};

/// What is smaller is compressed before a registry has answered that it may come.
const WORTH_IT: u64 = 4 << 20;

type Sending = JoinHandle<Option<Begun>>;

/// The upload of one layer, which begins with the first compressed bytes if there are any to wait for.
pub(crate) struct Early {
    remote: Remote,
    name: Reference,
    progress: VertexProgress,
    id: String,
    is_large: bool,
    /// One for each time that compressing began: what turned out to be damaged is compressed again.
    begun: Arc<Mutex<Vec<Sending>>>,
}

impl Early {
    pub(crate) fn new(remote: &Remote, name: &Reference, progress: &VertexProgress, layer: &LayerRecord) -> Self {
        Self {
            remote: remote.clone(),
            name: name.clone(),
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
        let (remote, name, progress, id) =
            (self.remote.clone(), self.name.clone(), self.progress.clone(), self.id.clone());
        let begun = Arc::clone(&self.begun);
        Some(Arc::new(move |growing: Growing| {
            let (remote, name, progress, id) = (remote.clone(), name.clone(), progress.clone(), id.clone());
            let sending = tokio::spawn(async move {
                let on_sent = {
                    let (progress, id) = (progress.clone(), id.clone());
                    move |current| {
                        progress.status(Status { id: id.clone(), current, total: 0, done: false });
                    }
                };
                remote.client.begin_blob(name.repository(), &growing, Arc::new(on_sent)).await
            });
            begun.lock().unwrap_or_else(PoisonError::into_inner).push(sending);
        }))
    }

    /// Sees to it that the registry has the layer, unless it `is_new` no longer: then another one is sending the same.
    pub(crate) async fn finish(self, blob: &LayerBlob, is_new: bool) -> Result<(), PushError> {
        let mut all = std::mem::take(&mut *self.begun.lock().unwrap_or_else(PoisonError::into_inner));
        let last = if is_new { all.pop() } else { None };
        for sending in all {
            if let Ok(Some(begun)) = sending.await {
                self.remote.client.give_up(self.name.repository(), begun).await;
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
        send_layer(&self.remote, blob, &self.name, &self.progress, begun).await.map(drop)
    }
}
