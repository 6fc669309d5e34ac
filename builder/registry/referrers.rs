//! What refers to an image: signatures, provenance and the like, by the `subject` of their manifests (distribution-spec 1.1,
//! "Listing Referrers"). A registry that does not keep the list itself gets it as an index under a tag of the subject's digest.

use std::time::{Duration, Instant};

use bytes::Bytes;
use reqwest::Method;
use reqwest::header::{CONTENT_TYPE, ETAG, HeaderMap, HeaderName, HeaderValue, IF_MATCH, IF_NONE_MATCH, LINK};
use serde_json::{Value, json};

use crate::client::next_link;
use crate::error::Asked;
use crate::manifest::ACCEPT;
use crate::transport::{Body, Endpoint, same_origin};
use crate::{Client, Descriptor, Digest, Error, MANIFEST_MAX, OCI_INDEX, Repository};

/// Of a list of referrers.
const LIST_MAX: u64 = 16 << 20;
const PAGES_MAX: usize = 100;
/// How often a list that others write too is written again.
const ROUNDS_MAX: u32 = 20;
/// After a list is written, whoever read it before gets so many times as long as we needed to write his own.
const PATIENCE: u32 = 4;
const PATIENCE_LEAST: Duration = Duration::from_millis(50);

/// A manifest that names a subject, as lists show it.
struct Referrer {
    subject: Digest,
    entry: Value,
}

impl Client {
    /// The manifests that refer to `subject`, each with its artifact type and annotations.
    ///
    /// # Errors
    /// The list cannot be had. One that is not there is an empty one.
    pub async fn referrers(&self, repository: &Repository, subject: &Digest) -> Result<Vec<Descriptor>, Error> {
        let endpoint = self.origin(repository.registry(), repository.path())?;
        match from_api(&endpoint, repository, subject).await {
            Ok(list) => Ok(list),
            Err(error) if is_unsupported(&error) => {
                let list = read_tag(&endpoint, repository, subject).await?;
                descriptors(&endpoint, subject, &list.index)
            }
            Err(error) => Err(error),
        }
    }
}

/// Sees to it that a manifest that was just stored is found by its subject. `answer` is what the registry said to it.
pub(crate) async fn list(
    endpoint: &Endpoint,
    repository: &Repository,
    media_type: &str,
    bytes: &[u8],
    answer: &HeaderMap,
) -> Result<(), Error> {
    // Registries that keep the list themselves say so by this header.
    if answer.contains_key(HeaderName::from_static("oci-subject")) {
        return Ok(());
    }
    let Some(referrer) = Referrer::read(media_type, bytes) else { return Ok(()) };
    add_to_tag(endpoint, repository, &referrer).await
}

impl Referrer {
    fn read(media_type: &str, bytes: &[u8]) -> Option<Self> {
        let manifest: Value = serde_json::from_slice(bytes).ok()?;
        let subject = manifest.get("subject")?.get("digest")?.as_str()?.parse().ok()?;
        let mut entry = json!({
            "mediaType": media_type, "digest": crate::digest_of(bytes).to_string(), "size": bytes.len(),
        });
        // Without a type of its own it has that of its config.
        let own = manifest.get("artifactType").and_then(Value::as_str).filter(|own| !own.is_empty());
        if let Some(kind) = own.or_else(|| manifest.get("config")?.get("mediaType")?.as_str()) {
            entry["artifactType"] = kind.into();
        }
        if let Some(annotations) = manifest.get("annotations").filter(|value| value.is_object()) {
            entry["annotations"] = annotations.clone();
        }
        Some(Self { subject, entry })
    }

    fn digest(&self) -> &Value {
        &self.entry["digest"]
    }
}

/// A list as it stands under its tag.
struct Listed {
    index: Value,
    /// `None`: there is none yet.
    etag: Option<HeaderValue>,
    exists: bool,
}

impl Listed {
    fn entries(&self) -> &[Value] {
        self.index["manifests"].as_array().map_or(&[], Vec::as_slice)
    }

    fn has(&self, referrer: &Referrer) -> bool {
        self.entries().iter().any(|entry| entry["digest"] == *referrer.digest())
    }
}

/// Where lists lie at registries that know nothing of them: `sha256-HEX`.
fn tag_of(subject: &Digest) -> String {
    let hex = subject.digest();
    format!("{}-{}", subject.algorithm(), &hex[..hex.len().min(64)])
}

/// Adds to the list under the tag. Such registries cannot replace on condition, so several may write what they read at the same
/// time: each looks again when the others must have written, and does it again if what it added is gone.
async fn add_to_tag(endpoint: &Endpoint, repository: &Repository, referrer: &Referrer) -> Result<(), Error> {
    for round in 0..ROUNDS_MAX {
        let began = Instant::now();
        let listed = read_tag(endpoint, repository, &referrer.subject).await?;
        if listed.has(referrer) {
            return Ok(());
        }
        let mut index = listed.index.clone();
        match index.get_mut("manifests").and_then(Value::as_array_mut) {
            Some(entries) => entries.push(referrer.entry.clone()),
            None => index["manifests"] = json!([referrer.entry]),
        }
        match write_tag(endpoint, repository, &referrer.subject, &index, &listed).await {
            Ok(()) => {}
            // It can replace on condition after all, and somebody was first.
            Err(Error::Status { status: 412, .. }) => continue,
            Err(error) => return Err(error),
        }
        // The later the round the more there are, and the longer each takes.
        let patience = (began.elapsed() * PATIENCE).max(PATIENCE_LEAST) * (round + 1);
        tokio::time::sleep(patience.mul_f64(crate::retry::jitter() * 2.0)).await;
    }
    if read_tag(endpoint, repository, &referrer.subject).await?.has(referrer) {
        return Ok(());
    }
    let asked = Asked::boxed(&endpoint.host, format!("list of what refers to {}", referrer.subject));
    Err(Error::InvalidResponse { asked, why: "it does not keep what is added to it".into() })
}

async fn read_tag(endpoint: &Endpoint, repository: &Repository, subject: &Digest) -> Result<Listed, Error> {
    let what = format!("list of what refers to {subject}");
    let tail = format!("manifests/{}", tag_of(subject));
    let mut request = endpoint.request(Method::GET, repository, &tail, "pull", what.clone()).await?;
    request.headers.insert(reqwest::header::ACCEPT, HeaderValue::from_static(ACCEPT));
    let (headers, bytes) = match endpoint.call_for_bytes(&request, LIST_MAX).await {
        Ok((_, headers, bytes)) => (headers, bytes),
        Err(error) if error.is_not_found() => {
            let index = json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [] });
            return Ok(Listed { index, etag: None, exists: false });
        }
        Err(error) => return Err(error),
    };
    let index: Option<Value> = serde_json::from_slice(&bytes).ok();
    match index.filter(|index| index.get("manifests").is_some_and(|list| list.is_array() || list.is_null())) {
        Some(index) => Ok(Listed { index, etag: headers.get(ETAG).cloned(), exists: true }),
        None => {
            let why = format!("the tag {} is no index", tag_of(subject));
            Err(Error::InvalidResponse { asked: Asked::boxed(&endpoint.host, what), why })
        }
    }
}

async fn write_tag(
    endpoint: &Endpoint,
    repository: &Repository,
    subject: &Digest,
    index: &Value,
    read: &Listed,
) -> Result<(), Error> {
    let what = format!("list of what refers to {subject}");
    let bytes = Bytes::from(index.to_string());
    if bytes.len() as u64 > MANIFEST_MAX {
        return Err(Error::TooLarge { asked: Asked::boxed(&endpoint.host, what), limit: MANIFEST_MAX });
    }
    let tail = format!("manifests/{}", tag_of(subject));
    let mut request = endpoint.request(Method::PUT, repository, &tail, "pull,push", what).await?;
    request.headers.insert(CONTENT_TYPE, HeaderValue::from_static(OCI_INDEX));
    match &read.etag {
        Some(etag) => drop(request.headers.insert(IF_MATCH, etag.clone())),
        None if !read.exists => drop(request.headers.insert(IF_NONE_MATCH, HeaderValue::from_static("*"))),
        None => {}
    }
    request.body = Body::Bytes(bytes);
    endpoint.call(&request).await.map(drop)
}

async fn from_api(endpoint: &Endpoint, repository: &Repository, subject: &Digest) -> Result<Vec<Descriptor>, Error> {
    let what = format!("list of what refers to {subject}");
    let mut request = endpoint.request(Method::GET, repository, &format!("referrers/{subject}"), "pull", what).await?;
    request.headers.insert(reqwest::header::ACCEPT, HeaderValue::from_static(OCI_INDEX));
    let mut all = Vec::new();
    for _ in 0..PAGES_MAX {
        let (_, headers, body) = endpoint.call_for_bytes(&request, LIST_MAX).await?;
        let invalid = |why: &str| Error::InvalidResponse {
            asked: Asked::boxed(&endpoint.host, &request.what),
            why: why.to_owned(),
        };
        let index: Value = serde_json::from_slice(&body).map_err(|_| invalid("the list is not JSON"))?;
        all.extend(descriptors(endpoint, subject, &index)?);
        let next = headers.get(LINK).and_then(|link| link.to_str().ok()).and_then(next_link);
        let Some(next) = next else { return Ok(all) };
        let next = request.url.join(next).map_err(|_| invalid("a Link that is no URL"))?;
        if !same_origin(&next, &request.url) {
            return Err(invalid("the next page of the list is on another host"));
        }
        request.url = next;
    }
    Ok(all)
}

fn descriptors(endpoint: &Endpoint, subject: &Digest, index: &Value) -> Result<Vec<Descriptor>, Error> {
    let list = index.get("manifests").filter(|list| !list.is_null()).cloned().unwrap_or_else(|| json!([]));
    serde_json::from_value(list).map_err(|error| Error::InvalidResponse {
        asked: Asked::boxed(&endpoint.host, format!("list of what refers to {subject}")),
        why: format!("it is malformed: {error}"),
    })
}

/// Registries that do not know the question answer it in different ways.
fn is_unsupported(error: &Error) -> bool {
    match error {
        Error::NotFound { .. } | Error::Denied { .. } | Error::InvalidResponse { .. } => true,
        Error::Status { status, .. } => matches!(status, 400 | 405 | 406 | 501),
        _ => false,
    }
}
