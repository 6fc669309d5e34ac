//! Pushing: blobs that are there or can be mounted are not sent; those that are sent resume where they were cut.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use reqwest::header::{CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HeaderMap, HeaderValue, LOCATION, RANGE};
use reqwest::{Method, Response, StatusCode};
use tokio::io::{AsyncRead, AsyncSeekExt};
use url::Url;

use crate::error::Asked;
use crate::referrers;
use crate::transport::{Body, Endpoint, Request, authority};
use crate::{Client, Descriptor, Digest, Error, MANIFEST_MAX, Progress, Reference, Repository, TransferEvent};

const ACTIONS: &str = "pull,push";
const MOUNTS_MAX: usize = 3;
/// How much is sent in one piece to registries that refuse a blob in one request.
const CHUNK: u64 = 16 << 20;
const OCTETS: HeaderValue = HeaderValue::from_static("application/octet-stream");

/// Something to upload that can be read again from any offset.
pub trait BlobSource: Send + Sync {
    /// Opens it for reading from `offset` on.
    fn open(&self, offset: u64) -> BoxFuture<'_, std::io::Result<Box<dyn AsyncRead + Send + Unpin>>>;
}

impl BlobSource for Bytes {
    fn open(&self, offset: u64) -> BoxFuture<'_, std::io::Result<Box<dyn AsyncRead + Send + Unpin>>> {
        let rest = self.slice(usize::try_from(offset).unwrap_or(usize::MAX).min(self.len())..);
        Box::pin(async move { Ok(Box::new(std::io::Cursor::new(rest)) as _) })
    }
}

impl BlobSource for Path {
    fn open(&self, offset: u64) -> BoxFuture<'_, std::io::Result<Box<dyn AsyncRead + Send + Unpin>>> {
        Box::pin(async move {
            let mut file = tokio::fs::File::open(self).await?;
            file.seek(std::io::SeekFrom::Start(offset)).await?;
            Ok(Box::new(file) as _)
        })
    }
}

impl BlobSource for PathBuf {
    fn open(&self, offset: u64) -> BoxFuture<'_, std::io::Result<Box<dyn AsyncRead + Send + Unpin>>> {
        self.as_path().open(offset)
    }
}

/// Something to upload that is still being made.
pub trait GrowingSource: Send + Sync {
    /// Opens it for reading from the first byte on; reading waits for what is not there yet. An error is the end of a blob that
    /// came to nothing.
    fn open(&self) -> BoxFuture<'_, std::io::Result<Box<dyn AsyncRead + Send + Unpin>>>;
}

/// An upload that was begun before digest and length were known.
#[derive(Debug)]
pub struct Begun {
    session: Url,
    /// Bytes that left.
    sent: u64,
    /// The registry has taken them all.
    whole: bool,
}

/// How a blob came to be on the registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pushed {
    /// It was there.
    Exists,
    /// It was mounted from another repository of the registry.
    Mounted {
        /// The repository.
        from: Repository,
    },
    /// It was uploaded.
    Uploaded {
        /// How many bytes were sent, repeated parts included.
        bytes: u64,
    },
}

impl Client {
    /// Uploads a blob unless it is there or can be mounted from one of `mount_from`, of which those on the same registry count.
    ///
    /// # Errors
    /// When the registry refuses it, retries did not help, or `source` cannot be read.
    pub async fn push_blob(
        &self,
        repository: &Repository,
        descriptor: &Descriptor,
        source: &dyn BlobSource,
        mount_from: &[Repository],
        progress: Option<&Progress>,
    ) -> Result<Pushed, Error> {
        self.push(repository, descriptor, source, mount_from, progress, None).await
    }

    /// Begins to send a blob while it is still being made; its digest and its length are known when `source` ends. `None`: too
    /// much else is under way. What comes of it goes to [`Self::finish_blob`], or is to be given up by [`Self::give_up`].
    pub async fn begin_blob(
        &self,
        repository: &Repository,
        source: &dyn GrowingSource,
        on_sent: Arc<dyn Fn(u64) + Send + Sync>,
    ) -> Option<Begun> {
        let endpoint = self.origin(repository.registry(), repository.path()).ok()?;
        let _permit = self.shared.uploads.clone().try_acquire_owned().ok()?;
        let what = format!("upload to {repository}");
        let request = endpoint.request(Method::POST, repository, "blobs/uploads/", ACTIONS, what.clone()).await.ok()?;
        let response = endpoint.once(&request).await.ok()?;
        let session = location(&endpoint, &response, &what).await.ok()?;
        let sent = Arc::new(AtomicU64::new(0));
        let counter = sent.clone();
        let on_sent = move |n: u64| {
            counter.store(n, Ordering::Relaxed);
            on_sent(n);
        };
        // As docker does it, with no length announced; every registry that docker can push to takes it.
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, OCTETS);
        let body = Body::Growing { source, on_sent: Arc::new(on_sent) };
        let request = Request { method: Method::PATCH, url: session.clone(), headers, body, ..request };
        let answer = match endpoint.once(&request).await {
            Ok(response) => location(&endpoint, &response, &what).await.ok(),
            Err(_) => None,
        };
        let sent = sent.load(Ordering::Relaxed);
        Some(match answer {
            Some(session) => Begun { session, sent, whole: true },
            // How much of it came is the registry's to say.
            None => Begun { session, sent, whole: false },
        })
    }

    /// As [`Self::push_blob`], for a blob that was begun with [`Self::begin_blob`].
    ///
    /// # Errors
    /// As there.
    pub async fn finish_blob(
        &self,
        repository: &Repository,
        descriptor: &Descriptor,
        source: &dyn BlobSource,
        begun: Begun,
        progress: Option<&Progress>,
    ) -> Result<Pushed, Error> {
        self.push(repository, descriptor, source, &[], progress, Some(begun)).await
    }

    /// Gives up what was begun. What remains of it is the registry's to clean up.
    pub async fn give_up(&self, repository: &Repository, begun: Begun) {
        let Ok(endpoint) = self.origin(repository.registry(), repository.path()) else { return };
        let what = format!("upload to {repository}");
        if let Ok(request) = endpoint.request(Method::DELETE, repository, "", ACTIONS, what).await {
            let _ = endpoint.once(&Request { url: begun.session, ..request }).await;
        }
    }

    async fn push(
        &self,
        repository: &Repository,
        descriptor: &Descriptor,
        source: &dyn BlobSource,
        mount_from: &[Repository],
        progress: Option<&Progress>,
        begun: Option<Begun>,
    ) -> Result<Pushed, Error> {
        let endpoint = self.origin(repository.registry(), repository.path())?;
        let _permit = self.shared.uploads.clone().acquire_owned().await.ok();
        let upload = Upload {
            what: format!("upload of {} to {repository}", descriptor.digest()),
            endpoint: &endpoint,
            repository,
            descriptor,
            source,
            progress: progress.cloned(),
            sent: Arc::default(),
        };
        if upload.exists().await? {
            if let Some(begun) = begun {
                upload.cancel(begun.session).await;
            }
            upload.report(descriptor.size());
            return Ok(Pushed::Exists);
        }
        if let Some(begun) = begun {
            upload.sent.store(begun.sent, Ordering::Relaxed);
            let resumed = match begun.whole && begun.sent == descriptor.size() {
                true => Some((begun.session, begun.sent)),
                false => upload.resume_point(begun.session).await,
            };
            let (session, offset) = resumed.map_or((None, 0), |(session, offset)| (Some(session), offset));
            upload.run(session, offset).await?;
            return Ok(Pushed::Uploaded { bytes: upload.sent.load(Ordering::Relaxed) });
        }
        let mut session = None;
        let candidates =
            mount_from.iter().filter(|from| from.registry() == repository.registry() && *from != repository);
        for from in candidates.take(MOUNTS_MAX) {
            // A registry that will not mount opens an upload instead, or refuses since we may not read `from`.
            match upload.start(Some(from)).await {
                Ok(None) => {
                    upload.report(descriptor.size());
                    return Ok(Pushed::Mounted { from: from.clone() });
                }
                Ok(Some(url)) => {
                    if let Some(unused) = session.replace(url) {
                        upload.cancel(unused).await;
                    }
                }
                Err(error) if error.is_transient() => return Err(error),
                Err(_) => {}
            }
        }
        upload.run(session, 0).await?;
        Ok(Pushed::Uploaded { bytes: upload.sent.load(Ordering::Relaxed) })
    }

    /// Stores a manifest or index under the reference's tag, or under its digest when the reference has none. All that it
    /// refers to must be there, but for its subject, which is told of it. Returns its digest.
    ///
    /// # Errors
    /// When the registry refuses it, or when the reference has a digest that is not the one of `bytes`.
    pub async fn put_manifest(&self, reference: &Reference, media_type: &str, bytes: Bytes) -> Result<Digest, Error> {
        let endpoint = self.origin(reference.registry(), reference.repository().path())?;
        let what = format!("manifest of {reference}");
        let asked = || Asked::boxed(&endpoint.host, &what);
        if bytes.len() as u64 > MANIFEST_MAX {
            return Err(Error::TooLarge { asked: asked(), limit: MANIFEST_MAX });
        }
        let actual = crate::digest_of(&bytes);
        if let Some(expected) = reference.digest().filter(|digest| **digest != actual) {
            return Err(Error::DigestMismatch { asked: asked(), expected: expected.clone(), actual });
        }
        let name = reference.tag().map_or_else(|| actual.to_string(), str::to_owned);
        let tail = format!("manifests/{name}");
        let mut request = endpoint.request(Method::PUT, reference.repository(), &tail, ACTIONS, what.clone()).await?;
        let content_type = HeaderValue::from_str(media_type).map_err(|_| Error::UnsupportedManifest {
            asked: asked(),
            why: format!("{media_type:?} is not a media type"),
        })?;
        request.headers.insert(CONTENT_TYPE, content_type);
        request.body = Body::Bytes(bytes.clone());
        let response = endpoint.call(&request).await?;
        check_stored(&response, &actual, &what)?;
        referrers::list(&endpoint, reference.repository(), media_type, &bytes, response.headers()).await?;
        Ok(actual)
    }

    /// Checks that we may push there, before any work is done for it: an upload is begun and cancelled.
    ///
    /// # Errors
    /// [`Error::Unauthorized`] or [`Error::Denied`] when we may not, or why it could not be checked.
    pub async fn check_push(&self, repository: &Repository) -> Result<(), Error> {
        let endpoint = self.origin(repository.registry(), repository.path())?;
        let what = format!("permission to push to {repository}");
        let request = endpoint.request(Method::POST, repository, "blobs/uploads/", ACTIONS, what.clone()).await?;
        let response = endpoint.call(&request).await?;
        if let Ok(url) = location(&endpoint, &response, &what).await {
            let request = Request { method: Method::DELETE, url, ..request };
            // What remains of it is the registry's to clean up.
            let _ = endpoint.once(&request).await;
        }
        Ok(())
    }
}

/// A registry that stored something says under which digest.
fn check_stored(response: &Response, expected: &Digest, what: &str) -> Result<(), Error> {
    let said = response.headers().get("docker-content-digest").and_then(|value| value.to_str().ok());
    match said.and_then(|said| said.parse::<Digest>().ok()) {
        Some(actual) if actual != *expected && actual.algorithm() == expected.algorithm() => {
            let asked = Asked::boxed(authority(response.url()), what);
            Err(Error::DigestMismatch { asked, expected: expected.clone(), actual })
        }
        _ => Ok(()),
    }
}

/// One blob on its way.
struct Upload<'a> {
    endpoint: &'a Endpoint,
    repository: &'a Repository,
    descriptor: &'a Descriptor,
    source: &'a dyn BlobSource,
    progress: Option<Progress>,
    what: String,
    /// Bytes that left, repeated parts included.
    sent: Arc<AtomicU64>,
}

/// Where an upload stands.
struct Position {
    session: Option<Url>,
    /// How many bytes the registry has.
    offset: u64,
    /// How much to send at once; `None` for all.
    chunk: Option<u64>,
}

impl Upload<'_> {
    fn report(&self, done: u64) {
        if let Some(progress) = &self.progress {
            let total = self.descriptor.size();
            progress(TransferEvent { digest: self.descriptor.digest().clone(), done, total });
        }
    }

    async fn request(&self, method: Method, tail: &str) -> Result<Request<'_>, Error> {
        self.endpoint.request(method, self.repository, tail, ACTIONS, self.what.clone()).await
    }

    /// A request to an upload session.
    async fn session_request(&self, method: Method, url: Url) -> Result<Request<'_>, Error> {
        Ok(Request { url, ..self.request(method, "").await? })
    }

    async fn exists(&self) -> Result<bool, Error> {
        let request = self.request(Method::HEAD, &format!("blobs/{}", self.descriptor.digest())).await?;
        match self.endpoint.call(&request).await {
            Ok(response) => {
                let length = response.headers().get(CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
                Ok(length.is_none_or(|length| length == self.descriptor.size()))
            }
            // Some cannot be asked by HEAD: then the upload tells.
            Err(Error::Status { status: 405 | 501, .. }) => Ok(false),
            Err(error) if error.is_not_found() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Begins an upload, or mounts: `None` when that worked.
    async fn start(&self, mount: Option<&Repository>) -> Result<Option<Url>, Error> {
        let mut request = self.request(Method::POST, "blobs/uploads/").await?;
        if let Some(from) = mount {
            let digest = self.descriptor.digest().as_ref();
            request.url.query_pairs_mut().append_pair("mount", digest).append_pair("from", from.path());
            request.scopes.push(format!("repository:{}:pull", from.path()));
        }
        let response = self.endpoint.call(&request).await?;
        if mount.is_some() && response.status() == StatusCode::CREATED {
            check_stored(&response, self.descriptor.digest(), &self.what)?;
            return Ok(None);
        }
        location(self.endpoint, &response, &self.what).await.map(Some)
    }

    /// Gives up a session. What remains of it is the registry's to clean up.
    async fn cancel(&self, session: Url) {
        if let Ok(request) = self.session_request(Method::DELETE, session).await {
            let _ = self.endpoint.once(&request).await;
        }
    }

    async fn run(&self, session: Option<Url>, offset: u64) -> Result<(), Error> {
        let mut at = Position { session, offset, chunk: None };
        let mut attempts = self.endpoint.attempts();
        let mut best = 0;
        loop {
            let error = match self.proceed(&mut at).await {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            if matches!(error, Error::Status { status: 413, .. }) && at.chunk.is_none() {
                // Something on the way limits the size of requests.
                at.chunk = Some(CHUNK);
            } else {
                if at.offset > best {
                    best = at.offset;
                    attempts.reset();
                }
                self.endpoint.backoff(&mut attempts, &self.what, again_if_session(error)).await?;
            }
            let resumed = match at.session.take() {
                Some(session) => self.resume_point(session).await,
                None => None,
            };
            match resumed {
                Some((session, offset)) => (at.session, at.offset) = (Some(session), offset),
                None => {
                    at.offset = 0;
                    // The answer may be what got lost, not the bytes.
                    if self.sent.load(Ordering::Relaxed) >= self.descriptor.size() && self.exists().await? {
                        return Ok(());
                    }
                }
            }
        }
    }

    /// Does what is left to do, keeping `at` up to date.
    async fn proceed(&self, at: &mut Position) -> Result<(), Error> {
        let size = self.descriptor.size();
        let mut session = match &at.session {
            Some(session) => session.clone(),
            None => {
                let started = self.start(None).await?;
                let started = started.expect("only a mount ends without a session");
                at.offset = 0;
                at.session = Some(started.clone());
                started
            }
        };
        let whole = at.offset == 0 && at.chunk.is_none();
        while !whole && at.offset < size {
            let len = at.chunk.unwrap_or(size).min(size - at.offset);
            let mut request = self.session_request(Method::PATCH, session).await?;
            self.attach(&mut request, at.offset, len);
            let range = format!("{}-{}", at.offset, at.offset + len - 1);
            let range = HeaderValue::from_str(&range).expect("digits are a header value");
            request.headers.insert(CONTENT_RANGE, range);
            let response = self.endpoint.once(&request).await?;
            session = location(self.endpoint, &response, &self.what).await?;
            at.offset += len;
            at.session = Some(session.clone());
        }
        let mut request = self.session_request(Method::PUT, session).await?;
        request.url.query_pairs_mut().append_pair("digest", self.descriptor.digest().as_ref());
        if whole && size > 0 {
            self.attach(&mut request, 0, size);
        }
        let response = self.endpoint.once(&request).await?;
        check_stored(&response, self.descriptor.digest(), &self.what)
    }

    /// Gives a request `len` bytes of the blob to carry.
    fn attach<'a>(&'a self, request: &mut Request<'a>, offset: u64, len: u64) {
        let (digest, total) = (self.descriptor.digest().clone(), self.descriptor.size());
        let (sent, progress) = (self.sent.clone(), self.progress.clone());
        let before = AtomicU64::new(0);
        let on_sent = move |n: u64| {
            sent.fetch_add(n.saturating_sub(before.swap(n, Ordering::Relaxed)), Ordering::Relaxed);
            if let Some(progress) = &progress {
                progress(TransferEvent { digest: digest.clone(), done: offset + n, total });
            }
        };
        request.headers.insert(CONTENT_TYPE, OCTETS);
        let digest = self.descriptor.digest();
        request.body = Body::Blob { source: self.source, digest, offset, len, on_sent: Arc::new(on_sent) };
    }

    /// Asks how many bytes a session has. `None`: it cannot go on.
    async fn resume_point(&self, session: Url) -> Option<(Url, u64)> {
        let request = self.session_request(Method::GET, session).await.ok()?;
        let response = self.endpoint.once(&request).await.ok()?;
        let have = received(response.headers())?;
        // A registry says `0-0` for nothing and for one byte.
        if have <= 1 || have > self.descriptor.size() {
            self.cancel(request.url).await;
            return None;
        }
        let next = location(self.endpoint, &response, &self.what).await.unwrap_or(request.url);
        Some((next, have))
    }
}

/// Failures that concern the session, not the blob, are worth a new one.
fn again_if_session(error: Error) -> Error {
    let cause = match &error {
        Error::NotFound { .. } => "the registry has lost the upload",
        Error::Status { status: 416, .. } => "the registry has another part of the upload",
        _ => return error,
    };
    match error {
        Error::NotFound { asked, .. } | Error::Status { asked, .. } => {
            Error::Interrupted { asked, cause: cause.into() }
        }
        error => error,
    }
}

/// How many bytes `Range: 0-last` stands for.
fn received(headers: &HeaderMap) -> Option<u64> {
    let value = headers.get(RANGE)?.to_str().ok()?;
    let (first, last) = value.strip_prefix("bytes=").unwrap_or(value).split_once('-')?;
    (first.trim() == "0").then(|| last.trim().parse::<u64>().ok()?.checked_add(1)).flatten()
}

/// Where an upload goes on. Registries behind a proxy often call themselves `http` there; that is never followed from HTTPS.
async fn location(endpoint: &Endpoint, response: &Response, what: &str) -> Result<Url, Error> {
    let invalid = |why: &str| Error::InvalidResponse { asked: Asked::boxed(&endpoint.host, what), why: why.into() };
    let text = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
    let text = text.ok_or_else(|| invalid("it began an upload without saying where"))?;
    let mut url = response.url().join(text).map_err(|_| invalid("the upload's Location is no URL"))?;
    let base = endpoint.url("").await?;
    if base.scheme() == "https" && url.scheme() == "http" {
        if url.host_str() != base.host_str() {
            return Err(invalid("it sends the upload to another host by plain HTTP, which is not followed"));
        }
        let moved = url.set_scheme("https").and_then(|()| url.set_port(base.port()));
        moved.map_err(|()| invalid("the upload's Location is no URL"))?;
    }
    if !matches!(url.scheme(), "http" | "https") {
        return Err(invalid("the upload's Location is no URL"));
    }
    let _ = url.set_username("");
    let _ = url.set_password(None);
    Ok(url)
}
