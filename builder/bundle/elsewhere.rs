//! Layers that only their owner hands out, where an image says he does: asked only when nobody nearer has them.

use std::io;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use registry::{Client, Repository, Verifier};
use tokio::io::AsyncRead;

use super::Blobs;
use crate::export::Descriptor;
use crate::images::{URLS_MAX, registry_descriptor};

/// `near`, and for a blob that has addresses, these.
pub(super) fn also(near: &Arc<dyn Blobs>, blob: &Descriptor, client: &Client) -> Arc<dyn Blobs> {
    match blob.urls.is_empty() {
        true => Arc::clone(near),
        false => Arc::new(Elsewhere { near: Arc::clone(near), client: client.clone() }),
    }
}

struct Elsewhere {
    near: Arc<dyn Blobs>,
    client: Client,
}

impl Blobs for Elsewhere {
    fn open(&self, blob: Descriptor, offset: u64) -> BoxFuture<'_, io::Result<Box<dyn AsyncRead + Send + Unpin>>> {
        Box::pin(async move {
            let mut last = match self.near.open(blob.clone(), offset).await {
                Ok(reader) => return Ok(reader),
                Err(error) => error,
            };
            let descriptor = registry_descriptor(&blob).map_err(io::Error::other)?;
            // Which addresses are followed is the client's to say: they are the image's choice.
            for url in blob.urls.iter().take(URLS_MAX) {
                let verifier = Verifier::new(&descriptor).map_err(io::Error::other)?;
                match self.client.foreign_blob(url, &descriptor, verifier).await {
                    Ok(stream) => return super::registry::reader(stream, offset).await,
                    Err(error) => last = io::Error::other(error),
                }
            }
            Err(last)
        })
    }

    fn repository(&self) -> Option<&Repository> {
        self.near.repository()
    }
}
