//! What is said of images beside them: manifests whose subject they are, wherever these lie, and theirs in turn.

use std::collections::BTreeSet;
use std::sync::Arc;

use ::registry::Manifest;
use futures_util::future::BoxFuture;
use graph::Digest;

use super::{Blobs, Bundle, BundleError, DEEPEST, Document, Documents, descriptor};
use crate::export::{Attestation, Descriptor};

/// A place that knows what refers to what.
pub(super) trait Referrers: Documents + Blobs {
    /// The manifests whose subject this is.
    fn referrers(&self, subject: Digest) -> BoxFuture<'_, Result<Vec<Descriptor>, BundleError>>;
}

/// Adds to a bundle all that refers to its images, to its index, and to what is added.
pub(super) async fn add(
    bundle: &mut Bundle,
    from: &Arc<dyn Referrers>,
    blobs: &Arc<dyn Blobs>,
) -> Result<(), BundleError> {
    let mut seen: BTreeSet<Digest> = bundle.documents().map(|document| document.descriptor.digest).collect();
    let mut pending: Vec<(Digest, usize)> = seen.iter().map(|digest| (*digest, 0)).collect();
    while let Some((subject, depth)) = pending.pop() {
        for entry in from.referrers(subject).await? {
            if depth == DEEPEST || !seen.insert(entry.digest) {
                continue;
            }
            let document = from.document(entry).await?;
            // An index may refer to something too; what it leads to is not followed.
            if let Manifest::Image(manifest) = document.parse()? {
                for blob in std::iter::once(manifest.config()).chain(manifest.layers()) {
                    bundle.add_blob(descriptor(blob)?, blobs);
                }
            }
            pending.push((document.descriptor.digest, depth + 1));
            bundle.beside.push((subject, document));
        }
    }
    Ok(())
}

impl Bundle {
    /// Its manifests and indexes, the top last.
    pub(super) fn documents(&self) -> impl Iterator<Item = &Document> {
        self.below.iter().chain([&self.top])
    }

    /// What refers to one of its manifests, each with what it refers to: those that an index names, and those beside it.
    #[must_use]
    pub fn referring(&self) -> Vec<(Digest, Descriptor)> {
        let named = self.below.iter().filter_map(|document| {
            let Ok(Manifest::Image(manifest)) = document.parse() else { return None };
            let subject = descriptor(manifest.subject().as_ref()?).ok()?;
            let annotations = manifest.annotations().iter().flatten().map(|(k, v)| (k.clone(), v.clone())).collect();
            let artifact_type = manifest.artifact_type().as_ref().map(ToString::to_string);
            Some((subject.digest, Descriptor { artifact_type, annotations, ..document.descriptor.clone() }))
        });
        named.chain(self.beside.iter().map(|(subject, document)| (*subject, document.descriptor.clone()))).collect()
    }

    pub(super) fn add_blob(&mut self, blob: Descriptor, from: &Arc<dyn Blobs>) {
        if self.blobs.iter().all(|(known, _)| known.digest != blob.digest) {
            self.blobs.push((blob, Arc::clone(from)));
        }
    }

    /// A bundle of nothing but something that is said of an image.
    #[must_use]
    pub fn attached(subject: &Descriptor, attestation: Attestation) -> Self {
        let Attestation { manifest, descriptor, blobs, .. } = attestation;
        let top = Document { descriptor, bytes: manifest };
        let bytes: Arc<dyn Blobs> = Arc::new(InMemory(blobs.clone()));
        let blobs = blobs.into_iter().map(|(blob, _)| (blob, Arc::clone(&bytes))).collect();
        Self { beside: vec![(subject.digest, top.clone())], top, below: Vec::new(), blobs }
    }
}

/// Blobs that are nowhere yet.
struct InMemory(Vec<(Descriptor, Vec<u8>)>);

impl Blobs for InMemory {
    fn open(
        &self,
        blob: Descriptor,
        offset: u64,
    ) -> BoxFuture<'_, std::io::Result<Box<dyn tokio::io::AsyncRead + Send + Unpin>>> {
        let found = self.0.iter().find(|(known, _)| known.digest == blob.digest).map(|(_, bytes)| bytes.clone());
        Box::pin(async move {
            let bytes = found.ok_or(std::io::ErrorKind::NotFound)?;
            let start = usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
            Ok(Box::new(std::io::Cursor::new(bytes[start..].to_vec())) as _)
        })
    }
}
