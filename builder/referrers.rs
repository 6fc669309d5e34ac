//! What is said of images of the store beside them: kept until they leave, and then sent along.

use registry::Manifest;
use snapshotter::{REFERRERS, Store, StoreError};

use crate::export::{Attestation, Descriptor};
use crate::images::digest;

/// Keeps an attestation of `subject`. With `replace` it takes the place of one of the same kind.
///
/// # Errors
/// The store.
pub fn keep(
    store: &Store,
    subject: &graph::Digest,
    attestation: &Attestation,
    replace: bool,
) -> Result<(), StoreError> {
    for (_, bytes) in &attestation.blobs {
        store.put_blob(bytes)?;
    }
    store.put_blob(&attestation.manifest)?;
    note(store, subject, &attestation.descriptor, replace)
}

/// Notes that a manifest, which is among the blobs as all that it names, refers to `subject`.
///
/// # Errors
/// The store.
pub(crate) fn note(store: &Store, subject: &graph::Digest, own: &Descriptor, replace: bool) -> Result<(), StoreError> {
    let _lock = store.lock(&format!("{REFERRERS}:{subject}"), &|| false)?;
    let mut list = listed(store, subject)?;
    let same_kind = |other: &serde_json::Value| {
        other["artifactType"].as_str() == own.artifact_type.as_deref()
            && other.get("annotations").cloned().unwrap_or_else(|| serde_json::json!({}))
                == serde_json::json!(own.annotations)
    };
    list.retain(|other| other["digest"].as_str() != Some(&own.digest.to_string()) && !(replace && same_kind(other)));
    list.push(serde_json::json!(own));
    store.put_note(REFERRERS, &subject.to_string(), &serde_json::Value::Array(list).to_string())
}

fn listed(store: &Store, subject: &graph::Digest) -> Result<Vec<serde_json::Value>, StoreError> {
    let text = store.note(REFERRERS, &subject.to_string())?;
    // What cannot be read is as good as nothing.
    Ok(text.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default())
}

/// The descriptors of what refers to `subject`.
///
/// # Errors
/// The store.
pub(crate) fn descriptors(store: &Store, subject: &graph::Digest) -> Result<Vec<Descriptor>, StoreError> {
    let list = listed(store, subject)?.into_iter();
    let read = |entry| serde_json::from_value::<registry::Descriptor>(entry).ok();
    Ok(list.filter_map(read).filter_map(|entry| crate::bundle::descriptor(&entry).ok()).collect())
}

/// What refers to `subject`, with all that it names; what is no longer whole is left out.
///
/// # Errors
/// The store.
pub fn of(store: &Store, subject: &graph::Digest) -> Result<Vec<Attestation>, StoreError> {
    let mut whole = Vec::new();
    for descriptor in descriptors(store, subject)? {
        whole.extend(read(store, descriptor, *subject)?);
    }
    Ok(whole)
}

fn read(store: &Store, descriptor: Descriptor, subject: graph::Digest) -> Result<Option<Attestation>, StoreError> {
    let Some(manifest) = store.read_blob(&descriptor.digest)? else { return Ok(None) };
    let Ok(Manifest::Image(parsed)) = Manifest::parse(&descriptor.media_type, &manifest) else { return Ok(None) };
    let mut blobs = Vec::new();
    for blob in std::iter::once(parsed.config()).chain(parsed.layers()) {
        let Ok(digest) = digest(blob.digest()) else { return Ok(None) };
        let Some(bytes) = store.read_blob(&digest)? else { return Ok(None) };
        blobs.push((Descriptor::new(blob.media_type().to_string(), digest, bytes.len() as u64), bytes));
    }
    Ok(Some(Attestation { manifest, descriptor, blobs, subject }))
}
