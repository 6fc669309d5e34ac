//! Pulling: manifests into memory, blobs as verified streams that resume where they were cut.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use futures_util::Stream;
use oci_spec::image::{DigestAlgorithm, MediaType};
use reqwest::header::{ACCEPT, ACCEPT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, HeaderMap, HeaderValue, RANGE};
use reqwest::{Method, Response, StatusCode};
use tokio::sync::OwnedSemaphorePermit;
use url::Url;

use crate::error::Asked;
use crate::hosts::{HostSpec, Need};
use crate::manifest::{ACCEPT as ACCEPT_MANIFESTS, effective_media_type};
use crate::retry::Attempts;
use crate::transport::{Endpoint, Request};
use crate::{
    Client, Descriptor, Digest, Error, MANIFEST_MAX, Progress, Reference, Repository, Resolved, StaticCredentials,
    TransferEvent, Verifier, digest_of,
};

impl Client {
    /// Fetches the manifest or index that a reference names: its digest if it has one, else its tag, else `latest`.
    ///
    /// # Errors
    /// When no mirror and not the registry can serve it, or the bytes are not those of the digest.
    pub async fn resolve(&self, reference: &Reference) -> Result<Resolved, Error> {
        let what = format!("manifest of {reference}");
        let mut last = None;
        for host in self.hosts_of(reference)? {
            match get_manifest(&host, reference, &what).await {
                Ok(resolved) => {
                    host.served(&what);
                    return Ok(resolved);
                }
                Err(error) if host.mirror_of.is_some() => {
                    host.failed(&what, &error);
                    last = Some(error);
                }
                Err(error) => return Err(error),
            }
        }
        Err(last.unwrap_or_else(|| nobody(reference.registry(), what)))
    }

    fn hosts_of(&self, reference: &Reference) -> Result<Vec<Arc<Endpoint>>, Error> {
        let need = if reference.digest().is_some() { Need::Digest } else { Need::Tag };
        self.hosts_to_ask(reference.registry(), reference.repository().path(), need)
    }

    /// Media type, digest and size of what a reference names, fetching it only where the registry does not tell by `HEAD`.
    ///
    /// # Errors
    /// As [`Self::resolve`].
    pub async fn head(&self, reference: &Reference) -> Result<Descriptor, Error> {
        let what = format!("digest of {reference}");
        let mut last = None;
        for host in self.hosts_of(reference)? {
            match head_manifest(&host, reference, &what).await {
                Ok(Some(descriptor)) => {
                    host.served(&what);
                    return Ok(descriptor);
                }
                Ok(None) => break,
                Err(error) if host.mirror_of.is_some() => {
                    host.failed(&what, &error);
                    last = Some(error);
                }
                Err(error) => return Err(error),
            }
        }
        match last {
            // Every host there is was a mirror, and has failed.
            Some(error)
                if self.hosts_of(reference).is_ok_and(|hosts| hosts.iter().all(|host| host.mirror_of.is_some())) =>
            {
                Err(error)
            }
            _ => self.resolve(reference).await.map(|resolved| resolved.descriptor),
        }
    }

    /// Fetches the manifest of a descriptor, e.g. one chosen from an index, and checks its size too.
    ///
    /// # Errors
    /// As [`Self::resolve`].
    pub async fn manifest(&self, repository: &Repository, descriptor: &Descriptor) -> Result<Resolved, Error> {
        let resolved = self.resolve(&repository.with_digest(descriptor.digest().clone())).await?;
        if resolved.descriptor.size() == descriptor.size() {
            return Ok(resolved);
        }
        Err(Error::SizeMismatch {
            asked: Asked::boxed(resolved.host, format!("manifest {}", descriptor.digest())),
            expected: descriptor.size(),
            actual: resolved.descriptor.size(),
        })
    }

    /// Downloads a blob. Waits until one of the parallel transfers is free; the stream occupies it until it ends or is dropped.
    ///
    /// # Errors
    /// When no host can serve it. Failures on the way come from the stream.
    pub async fn blob(&self, repository: &Repository, descriptor: &Descriptor) -> Result<BlobStream, Error> {
        self.resume_blob(repository, descriptor, Verifier::new(descriptor)?).await
    }

    /// Downloads the rest of a blob whose first bytes went through `verifier`.
    ///
    /// # Errors
    /// As [`Self::blob`].
    pub async fn resume_blob(
        &self,
        repository: &Repository,
        descriptor: &Descriptor,
        verifier: Verifier,
    ) -> Result<BlobStream, Error> {
        let hosts = self.hosts_to_ask(repository.registry(), repository.path(), Need::Digest)?;
        let what = format!("blob {} of {repository}", descriptor.digest());
        self.stream(hosts, Place::Repository(repository.clone()), what, verifier).await
    }

    /// As [`Self::resume_blob`], for a blob that its descriptor says is to be had at a URL: that of a foreign layer. The URL is the
    /// image's choice, so neither credentials nor certificates of ours go there, and only what has TLS and is not near is asked; other
    /// hosts if they are configured as insecure.
    ///
    /// # Errors
    /// As [`Self::blob`]; not a URL that is followed.
    pub async fn foreign_blob(
        &self,
        url: &str,
        descriptor: &Descriptor,
        verifier: Verifier,
    ) -> Result<BlobStream, Error> {
        let what = format!("blob {} at {url}", descriptor.digest());
        let unusable = |host: &str| Error::InvalidResponse {
            asked: Asked::boxed(host, &what),
            why: "an image may only name URLs of HTTPS for its layers, and none that lead to this machine".into(),
        };
        let url = Url::parse(url).map_err(|_| unusable(""))?;
        let host = crate::transport::authority(&url);
        let named = url.host_str().is_some() && url.username().is_empty() && url.password().is_none();
        if !named || !matches!(url.scheme(), "http" | "https") {
            return Err(unusable(&host));
        }
        let spec = HostSpec::of_image(&self.shared, &url)?.ok_or_else(|| unusable(&host))?;
        let endpoint = Endpoint::new(self.shared.clone(), StaticCredentials::anonymous(), spec);
        self.stream(vec![Arc::new(endpoint)], Place::Url(url), what, verifier).await
    }

    async fn stream(
        &self,
        hosts: Vec<Arc<Endpoint>>,
        place: Place,
        what: String,
        verifier: Verifier,
    ) -> Result<BlobStream, Error> {
        let permit = self.shared.downloads.clone().acquire_owned().await.ok();
        let attempts = hosts[0].attempts();
        let mut stream = BlobStream {
            what,
            place,
            verifier,
            hosts,
            host: 0,
            attempts,
            response: None,
            skip: 0,
            progress: None,
            state: State::Flowing,
            permit,
        };
        if stream.verifier.seen() < stream.verifier.size() {
            stream.open().await?;
        }
        Ok(stream)
    }

    /// Downloads a small blob such as a config into memory.
    ///
    /// # Errors
    /// [`Error::TooLarge`] when the descriptor says it has more than `limit` bytes, else as [`Self::blob`].
    pub async fn small_blob(
        &self,
        repository: &Repository,
        descriptor: &Descriptor,
        limit: u64,
    ) -> Result<Bytes, Error> {
        if descriptor.size() > limit {
            let asked = Asked::boxed(repository.registry(), format!("blob {}", descriptor.digest()));
            return Err(Error::TooLarge { asked, limit });
        }
        loop {
            let mut stream = self.blob(repository, descriptor).await?;
            let mut all = Vec::new();
            let result = loop {
                match stream.chunk().await {
                    Ok(Some(bytes)) => all.extend_from_slice(&bytes),
                    Ok(None) => break Ok(()),
                    Err(error) => break Err(error),
                }
            };
            match result {
                Ok(()) => return Ok(all.into()),
                // Such a mirror is not asked again, so this ends.
                Err(_) if stream.host().distrusted.load(Ordering::Relaxed) && stream.host().mirror_of.is_some() => {}
                Err(error) => return Err(error),
            }
        }
    }
}

fn nobody(registry: &str, what: String) -> Error {
    Error::InvalidResponse { asked: Asked::boxed(registry, what), why: "there is no host to ask".into() }
}

async fn get_manifest(host: &Endpoint, reference: &Reference, what: &str) -> Result<Resolved, Error> {
    let tail = format!("manifests/{}", reference.locator());
    let mut request = host.request(Method::GET, reference.repository(), &tail, "pull", what.to_owned()).await?;
    request.headers.insert(ACCEPT, HeaderValue::from_static(ACCEPT_MANIFESTS));
    let (_, headers, bytes) = host.call_for_bytes(&request, MANIFEST_MAX).await?;
    let asked = Asked::boxed(&host.host, what);
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let said = header("docker-content-digest").parse::<Digest>().ok();
    if let Some(expected) = reference.digest().or(said.as_ref()).filter(|digest| Verifier::supports(digest)) {
        let actual = digest_like(expected, &bytes)?;
        if actual != *expected {
            host.distrusted.store(true, Ordering::Relaxed);
            return Err(Error::DigestMismatch { asked, expected: expected.clone(), actual });
        }
    }
    // A registry may have another kind of digest for what has a tag; it is the same document.
    let digest = reference.digest().filter(|digest| Verifier::supports(digest)).cloned();
    let digest = digest.unwrap_or_else(|| digest_of(&bytes));
    match effective_media_type(header("content-type"), &bytes) {
        Ok(media_type) => {
            let descriptor = Descriptor::new(MediaType::from(media_type), bytes.len() as u64, digest);
            Ok(Resolved { descriptor, bytes, host: host.host.clone() })
        }
        Err(why) => Err(Error::UnsupportedManifest { asked, why }),
    }
}

fn digest_like(expected: &Digest, bytes: &[u8]) -> Result<Digest, Error> {
    let mut verifier = Verifier::new(&Descriptor::new(MediaType::Other(String::new()), 0, expected.clone()))?;
    verifier.update(bytes);
    Ok(verifier.actual())
}

/// `None`: the registry does not tell enough by HEAD.
async fn head_manifest(host: &Endpoint, reference: &Reference, what: &str) -> Result<Option<Descriptor>, Error> {
    let tail = format!("manifests/{}", reference.locator());
    let mut request = host.request(Method::HEAD, reference.repository(), &tail, "pull", what.to_owned()).await?;
    request.headers.insert(ACCEPT, HeaderValue::from_static(ACCEPT_MANIFESTS));
    let response = match host.call(&request).await {
        Ok(response) => response,
        Err(Error::Status { status: 405 | 501, .. }) => return Ok(None),
        Err(error) => return Err(error),
    };
    let headers = response.headers();
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let digest = header("docker-content-digest").parse::<Digest>().ok().filter(Verifier::supports);
    let digest = digest.filter(|digest| reference.digest().is_some() || *digest.algorithm() == DigestAlgorithm::Sha256);
    let size = header("content-length").parse::<u64>().ok();
    let media_type = header("content-type").split(';').next().unwrap_or_default().trim();
    let known =
        [crate::OCI_INDEX, crate::OCI_MANIFEST, crate::DOCKER_LIST, crate::DOCKER_MANIFEST].contains(&media_type);
    Ok(match (digest, size) {
        (Some(digest), Some(size)) if known && reference.digest().is_none_or(|asked| *asked == digest) => {
            Some(Descriptor::new(MediaType::from(media_type), size, digest))
        }
        _ => None,
    })
}

/// A verified download; see [`Client::blob`].
///
/// The bytes are hashed as they pass. The last ones are given out only when all are verified, so whoever has `size` bytes has
/// the right ones. After an error nothing more comes, and what was given out must not be used as the blob; it may be fed to a
/// [`Verifier`] to resume, unless the error is a mismatch.
pub struct BlobStream {
    place: Place,
    what: String,
    verifier: Verifier,
    hosts: Vec<Arc<Endpoint>>,
    host: usize,
    attempts: Attempts,
    response: Option<Response>,
    /// Bytes of the response that we have already, from a server that ignores ranges.
    skip: u64,
    progress: Option<Progress>,
    state: State,
    permit: Option<OwnedSemaphorePermit>,
}

/// Where on its hosts a blob is.
enum Place {
    Repository(Repository),
    Url(Url),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Flowing,
    Done,
    Failed,
}

impl BlobStream {
    /// Has `progress` told after each piece.
    #[must_use]
    pub fn with_progress(mut self, progress: Progress) -> Self {
        self.progress = Some(progress);
        self
    }

    /// The next bytes, or `None` at the end, when all are verified.
    ///
    /// # Errors
    /// When retries and other hosts did not help, or the bytes are not those of the digest.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, Error> {
        let result = match self.state {
            State::Flowing => self.flow().await,
            State::Done => return Ok(None),
            State::Failed => {
                Err(Error::Interrupted { asked: self.asked(), cause: "the download failed before".into() })
            }
        };
        match &result {
            Ok(Some(bytes)) => {
                if self.verifier.seen() == self.verifier.size() {
                    self.end(State::Done);
                }
                if let (Some(progress), false) = (&self.progress, bytes.is_empty()) {
                    let digest = self.verifier.expected().clone();
                    progress(TransferEvent { digest, done: self.verifier.seen(), total: self.verifier.size() });
                }
            }
            Ok(None) => self.end(State::Done),
            Err(_) => self.end(State::Failed),
        }
        result
    }

    /// The same as a [`Stream`]. It ends after the first error.
    pub fn into_stream(self) -> impl Stream<Item = Result<Bytes, Error>> + Send {
        futures_util::stream::unfold(Some(self), |state| async {
            let mut this = state?;
            match this.chunk().await {
                Ok(Some(bytes)) => Some((Ok(bytes), Some(this))),
                Ok(None) => None,
                Err(error) => Some((Err(error), None)),
            }
        })
    }

    fn end(&mut self, state: State) {
        self.state = state;
        self.response = None;
        self.permit = None;
    }

    fn host(&self) -> &Arc<Endpoint> {
        &self.hosts[self.host]
    }

    fn asked(&self) -> Box<Asked> {
        Asked::boxed(&self.host().host, &self.what)
    }

    async fn flow(&mut self) -> Result<Option<Bytes>, Error> {
        if self.verifier.seen() >= self.verifier.size() {
            // Nothing was left to fetch: an empty blob, or all of it was there.
            return self.verify().map(|()| None);
        }
        loop {
            let host = self.host().clone();
            let next = match &mut self.response {
                None => {
                    self.open().await?;
                    continue;
                }
                Some(response) => host.next_bytes(response, &self.what).await,
            };
            let error = match next {
                Ok(Some(bytes)) => match self.accept(bytes)? {
                    Some(bytes) => return Ok(Some(bytes)),
                    None => continue,
                },
                Ok(None) => {
                    let cause = format!("it ended after {} of {} bytes", self.verifier.seen(), self.verifier.size());
                    Error::Interrupted { asked: self.asked(), cause }
                }
                Err(error) => error,
            };
            self.response = None;
            if let Err(error) = host.backoff(&mut self.attempts, &self.what, error).await {
                self.next_host(error)?;
            }
        }
    }

    /// Takes bytes from the wire; gives back those that are new.
    fn accept(&mut self, mut bytes: Bytes) -> Result<Option<Bytes>, Error> {
        let known = usize::try_from(self.skip).unwrap_or(usize::MAX).min(bytes.len());
        let _ = bytes.split_to(known);
        self.skip -= known as u64;
        if bytes.is_empty() {
            return Ok(None);
        }
        let after = self.verifier.seen() + bytes.len() as u64;
        if after > self.verifier.size() {
            return Err(self.wrong_size(after));
        }
        self.verifier.update(&bytes);
        self.attempts.reset();
        if after == self.verifier.size() {
            self.verify()?;
        }
        Ok(Some(bytes))
    }

    fn verify(&self) -> Result<(), Error> {
        if self.verifier.is_complete() {
            return Ok(());
        }
        self.host().distrusted.store(true, Ordering::Relaxed);
        let (expected, actual) = (self.verifier.expected().clone(), self.verifier.actual());
        Err(Error::DigestMismatch { asked: self.asked(), expected, actual })
    }

    fn wrong_size(&self, actual: u64) -> Error {
        self.host().distrusted.store(true, Ordering::Relaxed);
        Error::SizeMismatch { asked: self.asked(), expected: self.verifier.size(), actual }
    }

    /// Goes on to the next host, or gives the error back when there is none.
    fn next_host(&mut self, error: Error) -> Result<(), Error> {
        if self.host + 1 >= self.hosts.len() {
            return Err(error);
        }
        self.host().failed(&self.what, &error);
        self.host += 1;
        self.attempts = self.host().attempts();
        Ok(())
    }

    /// Asks for the bytes that are missing.
    async fn open(&mut self) -> Result<(), Error> {
        loop {
            let host = self.host().clone();
            match self.open_at(&host).await {
                Ok(()) => {
                    host.served(&self.what);
                    return Ok(());
                }
                Err(error) => self.next_host(error)?,
            }
        }
    }

    async fn open_at(&mut self, host: &Endpoint) -> Result<(), Error> {
        let mut request = match &self.place {
            Place::Repository(repository) => {
                let tail = format!("blobs/{}", self.verifier.expected());
                host.request(Method::GET, repository, &tail, "pull", self.what.clone()).await?
            }
            Place::Url(url) => Request::get(url.clone(), self.what.clone()),
        };
        request.headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        let seen = self.verifier.seen();
        if seen > 0 {
            let range = HeaderValue::from_str(&format!("bytes={seen}-")).expect("digits are a header value");
            request.headers.insert(RANGE, range);
        }
        let response = host.call(&request).await?;
        let length = content_length(response.headers());
        self.skip = match response.status() {
            StatusCode::PARTIAL_CONTENT if range_start(response.headers()) == Some(seen) => {
                if let Some(length) = length.filter(|length| seen.saturating_add(*length) > self.verifier.size()) {
                    return Err(self.wrong_size(seen.saturating_add(length)));
                }
                0
            }
            StatusCode::OK => {
                if let Some(length) = length.filter(|length| *length != self.verifier.size()) {
                    return Err(self.wrong_size(length));
                }
                seen
            }
            status => {
                let why = format!("status {status} in answer to a request for bytes from {seen} on");
                return Err(Error::InvalidResponse { asked: self.asked(), why });
            }
        };
        self.response = Some(response);
        Ok(())
    }
}

fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// The first position of `Content-Range: bytes first-last/length`.
fn range_start(headers: &HeaderMap) -> Option<u64> {
    let value = headers.get(CONTENT_RANGE)?.to_str().ok()?;
    value.strip_prefix("bytes ")?.split_once('-')?.0.trim().parse().ok()
}
