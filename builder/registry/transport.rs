//! One host of a registry: how it is spoken to, and how a request becomes an answer or an exact error.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use reqwest::header::{AUTHORIZATION, CONTENT_LENGTH, HeaderMap, HeaderValue, LOCATION, RETRY_AFTER};
use reqwest::{Method, Response, StatusCode};
use tokio::sync::OnceCell;
use url::Url;

use crate::auth::{Authorizer, Grant};
use crate::daemon_json;
use crate::error::Asked;
use crate::failure::{classify, detail_of, io_kind, rustls_error};
use crate::hosts::{HostSpec, Need};
use crate::http::{Clients, is_near};
use crate::push::{BlobSource, GrowingSource};
use crate::registries_conf::{self, Rule};
use crate::retry::{Attempts, Retrier, parse_retry_after};
use crate::upload_body::{Sending, growing_body, upload_body, watch};
use crate::{CredentialSource, Digest, Error, Event, Repository, Settings};

const PROBE: &str = "whether it speaks TLS";
const REDIRECTS_MAX: usize = 10;
/// How often a host is tried again that refuses the first connection.
const RETRIES_REFUSED: u32 = 2;
const AUTH_ROUNDS_MAX: usize = 4;
/// How many stall time-outs the end of an upload and a document in memory may take.
const COMMIT_FACTOR: u32 = 5;
const DOCUMENT_FACTOR: u32 = 10;
const ERROR_BODY_MAX: usize = 64 << 10;

/// What all hosts of a client share.
pub(crate) struct Shared {
    pub(crate) settings: Settings,
    pub(crate) credentials: Arc<dyn CredentialSource>,
    pub(crate) retrier: Retrier,
    /// Downloads under way. Apart from uploads, each of which may wait for a download of what it sends.
    pub(crate) downloads: Arc<tokio::sync::Semaphore>,
    /// Uploads under way.
    pub(crate) uploads: Arc<tokio::sync::Semaphore>,
    clients: Clients,
    rules: OnceLock<Result<Vec<Rule>, String>>,
}

impl Shared {
    pub(crate) fn new(settings: Settings, credentials: Arc<dyn CredentialSource>) -> Self {
        Self {
            retrier: Retrier::new(&settings.retry),
            downloads: Arc::new(tokio::sync::Semaphore::new(settings.parallel.max(1))),
            uploads: Arc::new(tokio::sync::Semaphore::new(settings.parallel.max(1))),
            clients: Clients::default(),
            rules: OnceLock::new(),
            settings,
            credentials,
        }
    }

    /// What `registries.conf` says, and of what it says nothing `daemon.json`; read when it is first of interest.
    pub(crate) fn rules(&self) -> Result<&[Rule], String> {
        let read = || {
            let mut rules = registries_conf::read(&self.settings.registries_conf)?;
            let odd = |why| self.settings.emit(&Event::SettingsIgnored { why });
            for rule in daemon_json::read(&self.settings.daemon_json, odd) {
                if rules.iter().all(|known| known.prefix != rule.prefix) {
                    rules.push(rule);
                }
            }
            Ok(rules)
        };
        self.rules.get_or_init(read).as_deref().map_err(Clone::clone)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scheme {
    Http,
    Https,
}

/// A registry or a mirror.
pub(crate) struct Endpoint {
    /// Host and port, as connected to and as shown.
    pub(crate) host: String,
    /// The registry this is a mirror of.
    pub(crate) mirror_of: Option<String>,
    /// Set when it served wrong bytes; a mirror is not asked again then.
    pub(crate) distrusted: AtomicBool,
    /// It has answered something.
    answered: AtomicBool,
    pub(crate) auth: Authorizer,
    pub(crate) shared: Arc<Shared>,
    /// Whether the user said that it speaks plain HTTP.
    pub(crate) http_configured: bool,
    scheme: OnceCell<Scheme>,
    spec: HostSpec,
}

/// A request, before authentication.
pub(crate) struct Request<'a> {
    pub(crate) method: Method,
    pub(crate) url: Url,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Body<'a>,
    /// The scopes that a token needs; none for the base endpoint.
    pub(crate) scopes: Vec<String>,
    /// The repository's path on the host, by which credentials are found.
    pub(crate) repository: String,
    /// In words.
    pub(crate) what: String,
}

impl Request<'_> {
    /// A plain one, about no repository.
    pub(crate) fn get(url: Url, what: String) -> Self {
        Self {
            method: Method::GET,
            url,
            headers: HeaderMap::new(),
            body: Body::Empty,
            scopes: Vec::new(),
            repository: String::new(),
            what,
        }
    }
}

/// What a request carries; it can be sent again.
pub(crate) enum Body<'a> {
    Empty,
    Bytes(Bytes),
    Blob {
        source: &'a dyn BlobSource,
        digest: &'a Digest,
        offset: u64,
        len: u64,
        on_sent: Arc<dyn Fn(u64) + Send + Sync>,
    },
    /// A blob that is still being made.
    Growing {
        source: &'a dyn GrowingSource,
        on_sent: Arc<dyn Fn(u64) + Send + Sync>,
    },
}

impl Endpoint {
    /// A host, with the credentials that it is shown when it asks for some.
    pub(crate) fn new(shared: Arc<Shared>, credentials: Arc<dyn CredentialSource>, spec: HostSpec) -> Self {
        Self {
            distrusted: AtomicBool::new(false),
            answered: AtomicBool::new(false),
            auth: Authorizer::new(&spec.registry, credentials),
            shared,
            scheme: OnceCell::new(),
            host: spec.host.clone(),
            mirror_of: spec.mirror_of.clone(),
            http_configured: spec.http,
            spec,
        }
    }

    /// Whether it is to be asked for this.
    pub(crate) fn serves(&self, need: Need) -> bool {
        !self.spec.refuses.contains(&need)
    }

    /// The URL of an API path below `/v2/`.
    pub(crate) async fn url(&self, path: &str) -> Result<Url, Error> {
        let scheme = if self.scheme().await? == Scheme::Http { "http" } else { "https" };
        let text = match self.spec.api.as_str() {
            "" => format!("{scheme}://{}/{path}", self.host),
            api => format!("{scheme}://{}/{api}/{path}", self.host),
        };
        let mut url = Url::parse(&text)
            .map_err(|e| Error::Settings { host: self.host.clone(), why: format!("not the name of a host: {e}") })?;
        if let Some(of) = &self.mirror_of {
            // containerd's convention, by which one mirror can serve several registries.
            url.query_pairs_mut().append_pair("ns", of);
        }
        Ok(url)
    }

    /// A request about a repository: `tail` follows its name in the path, `actions` are what a token must allow.
    pub(crate) async fn request<'a>(
        &self,
        method: Method,
        repository: &Repository,
        tail: &str,
        actions: &str,
        what: String,
    ) -> Result<Request<'a>, Error> {
        let path = self.spec.path_of(repository.path());
        Ok(Request {
            method,
            url: self.url(&format!("{path}/{tail}")).await?,
            headers: HeaderMap::new(),
            body: Body::Empty,
            scopes: vec![format!("repository:{path}:{actions}")],
            repository: path,
            what,
        })
    }

    /// Whether to speak HTTPS. Where both are possible, the server is tried with HTTPS once.
    pub(crate) async fn scheme(&self) -> Result<Scheme, Error> {
        if let Some(fixed) = self.spec.scheme {
            return Ok(fixed);
        }
        self.scheme.get_or_try_init(|| self.probe()).await.copied()
    }

    async fn probe(&self) -> Result<Scheme, Error> {
        let mut attempts = self.attempts();
        loop {
            match self.probe_once().await {
                Err(error) => self.backoff(&mut attempts, PROBE, error).await?,
                scheme => return scheme,
            }
        }
    }

    async fn probe_once(&self) -> Result<Scheme, Error> {
        let asked = Asked::boxed(&self.host, PROBE);
        let client = self.shared.clients.get(&self.shared.settings, &self.spec.tls, true, &self.host)?;
        let patience = self.shared.settings.connect_timeout.min(Duration::from_secs(5));
        let request = client.get(format!("https://{}/v2/", self.host)).timeout(patience).send();
        let Err(error) = request.await else { return Ok(Scheme::Https) };
        if rustls_error(&error).is_some_and(|e| !matches!(e, rustls::Error::InvalidMessage(_))) {
            return Ok(Scheme::Https);
        }
        // Who shook hands speaks it, also if he hangs up after a look at our certificate.
        if !error.is_connect() && !error.is_timeout() {
            return Ok(Scheme::Https);
        }
        let refused = io_kind(&error) == Some(io::ErrorKind::ConnectionRefused);
        let has_port = self.host.rsplit(']').next().is_some_and(|rest| rest.contains(':'));
        if refused && has_port || error.is_dns() {
            return Err(classify(&error, asked, patience));
        }
        Ok(Scheme::Http)
    }

    /// Emits that this host served something.
    pub(crate) fn served(&self, what: &str) {
        let event = Event::Served { host: self.host.clone(), what: what.to_owned(), mirror: self.mirror_of.is_some() };
        self.shared.settings.emit(&event);
    }

    /// Emits that this mirror failed.
    pub(crate) fn failed(&self, what: &str, error: &Error) {
        let event = Event::MirrorFailed { host: self.host.clone(), what: what.to_owned(), error: error.to_string() };
        self.shared.settings.emit(&event);
    }

    /// The retries of one request: few for a mirror, since others can be asked.
    pub(crate) fn attempts(&self) -> Attempts {
        Attempts::new(if self.mirror_of.is_some() { 1 } else { u32::MAX })
    }

    /// Waits before another attempt, or gives the error back when there should be none.
    pub(crate) async fn backoff(&self, attempts: &mut Attempts, what: &str, error: Error) -> Result<(), Error> {
        // One that has answered before is being restarted, perhaps.
        if error.is_refused() && !self.answered.load(Ordering::Relaxed) {
            attempts.lower(RETRIES_REFUSED);
        }
        let Some(wait) = attempts.next(&self.shared.retrier, &error) else { return Err(error) };
        let event = Event::Retrying { host: self.host.clone(), what: what.to_owned(), error: error.to_string(), wait };
        self.shared.settings.emit(&event);
        tokio::time::sleep(wait).await;
        Ok(())
    }

    /// Makes a request, again while that may help. An answer below 400 is returned, all others are errors.
    pub(crate) async fn call(&self, request: &Request<'_>) -> Result<Response, Error> {
        let mut attempts = self.attempts();
        loop {
            match self.once(request).await {
                Err(error) => self.backoff(&mut attempts, &request.what, error).await?,
                answer => return answer,
            }
        }
    }

    /// Like [`Self::call`], with the body, which counts as part of the attempt.
    pub(crate) async fn call_for_bytes(
        &self,
        request: &Request<'_>,
        limit: u64,
    ) -> Result<(StatusCode, HeaderMap, Bytes), Error> {
        let mut attempts = self.attempts();
        loop {
            let answer = async {
                let mut response = self.once(request).await?;
                let headers = std::mem::take(response.headers_mut());
                let status = response.status();
                Ok((status, headers, self.read(response, limit, &request.what).await?))
            };
            match answer.await {
                Err(error) => self.backoff(&mut attempts, &request.what, error).await?,
                answer => return answer,
            }
        }
    }

    /// Makes a request once, with authentication.
    pub(crate) async fn once(&self, request: &Request<'_>) -> Result<Response, Error> {
        // A registry may send uploads to another host; our credentials do not go there.
        let ours = !self.spec.of_image && same_origin(&request.url, &self.url("").await?);
        let mut rounds = 0;
        loop {
            let grant = if ours { self.auth.grant(self, request).await? } else { Grant::default() };
            let response = self.execute(request, grant.header.as_ref()).await?;
            self.answered.store(true, Ordering::Relaxed);
            let asked = Asked::boxed(authority(response.url()), &request.what);
            let from_us = ours && same_origin(response.url(), &request.url);
            rounds += 1;
            if from_us && rounds < AUTH_ROUNDS_MAX {
                let again = match response.status() {
                    StatusCode::UNAUTHORIZED => self.auth.rejected(self, request, &grant, response.headers()).await?,
                    StatusCode::FORBIDDEN => self.auth.forbidden(request, &grant).await,
                    _ => false,
                };
                if again {
                    continue;
                }
            }
            if response.status().is_success() {
                return Ok(response);
            }
            let error = self.status_error(response, asked, &grant.secrets, grant.authenticated, &grant.note).await;
            return Err(match error {
                // The token server took the credentials, so they are right; they do not suffice.
                Error::Unauthorized { asked, detail, .. } if grant.by_token_server => Error::Denied { asked, detail },
                error => error,
            });
        }
    }

    /// Sends, follows redirects, and returns whatever status comes. Authorization stays with the origin.
    pub(crate) async fn execute(
        &self,
        request: &Request<'_>,
        authorization: Option<&HeaderValue>,
    ) -> Result<Response, Error> {
        let mut url = request.url.clone();
        let mut authorization = authorization;
        for _ in 0..=REDIRECTS_MAX {
            let response = self.send(request, &url, authorization).await?;
            let reads = matches!(request.method, Method::GET | Method::HEAD);
            match response.status().as_u16() {
                307 | 308 => {}
                301..=303 if reads => {}
                _ => return Ok(response),
            }
            let next = self.redirect_target(&response, &url, &request.what)?;
            if !same_origin(&next, &url) && matches!(request.body, Body::Bytes(_)) {
                // The body may be a refresh token.
                let asked = Asked::boxed(authority(&url), &request.what);
                return Err(Error::InvalidResponse { asked, why: "a redirect to another host is not followed".into() });
            }
            if !same_origin(&next, &url) {
                authorization = None;
            }
            url = next;
        }
        let asked = Asked::boxed(authority(&url), &request.what);
        Err(Error::InvalidResponse { asked, why: format!("more than {REDIRECTS_MAX} redirects") })
    }

    fn redirect_target(&self, response: &Response, from: &Url, what: &str) -> Result<Url, Error> {
        let invalid =
            |why: &str| Error::InvalidResponse { asked: Asked::boxed(authority(from), what), why: why.into() };
        let location = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
        let mut next = location
            .and_then(|text| from.join(text).ok())
            .ok_or_else(|| invalid("a redirect without a usable Location"))?;
        if !matches!(next.scheme(), "http" | "https") || next.host_str().is_none() {
            return Err(invalid("a redirect to something that is not HTTP"));
        }
        if from.scheme() == "https" && next.scheme() == "http" {
            return Err(invalid("a redirect from HTTPS to plain HTTP, which is not followed"));
        }
        if self.spec.of_image && !same_origin(&next, from) && (next.scheme() != "https" || is_near(&next)) {
            return Err(invalid("a redirect to where an image may not lead"));
        }
        // User information in a redirect would become credentials of the server's choice.
        let _ = next.set_username("");
        let _ = next.set_password(None);
        Ok(next)
    }

    async fn send(
        &self,
        request: &Request<'_>,
        url: &Url,
        authorization: Option<&HeaderValue>,
    ) -> Result<Response, Error> {
        let asked = || Asked::boxed(authority(url), &request.what);
        let settings = &self.shared.settings;
        let client = self.shared.clients.get(settings, &self.spec.tls, url.scheme() == "https", &self.host)?;
        let mut builder = client.request(request.method.clone(), url.clone()).headers(request.headers.clone());
        if !self.spec.headers.is_empty() && same_origin(url, &self.url("").await?) {
            builder = builder.headers(self.spec.headers.clone());
        }
        if let Some(authorization) = authorization {
            builder = builder.header(AUTHORIZATION, authorization.clone());
        }
        let mut upload = None;
        match &request.body {
            Body::Empty if matches!(request.method, Method::POST | Method::PUT | Method::PATCH) => {
                builder = builder.header(CONTENT_LENGTH, 0);
            }
            Body::Empty => {}
            Body::Bytes(bytes) => builder = builder.body(bytes.clone()),
            Body::Blob { source, digest, offset, len, on_sent } => {
                let failed = |source| Error::Source { digest: (*digest).clone(), source };
                let reader = source.open(*offset).await.map_err(failed)?;
                let sending = Arc::new(Sending::default());
                let body = upload_body(reader, *len, sending.clone(), on_sent.clone());
                builder = builder.header(CONTENT_LENGTH, *len).body(body);
                upload = Some((sending, Some(*len), Some(*digest)));
            }
            Body::Growing { source, on_sent } => {
                let failed = |error: io::Error| Error::Interrupted { asked: asked(), cause: error.to_string() };
                let reader = source.open().await.map_err(failed)?;
                let sending = Arc::new(Sending::default());
                builder = builder.body(growing_body(reader, sending.clone(), on_sent.clone()));
                upload = Some((sending, None, None));
            }
        }
        let stall = settings.stall_timeout;
        let Some((sending, len, digest)) = upload else {
            // A registry may copy a blob before it answers the PUT that ends its upload.
            let patience = if request.method == Method::PUT { stall * COMMIT_FACTOR } else { stall };
            return match tokio::time::timeout(patience + settings.connect_timeout, builder.send()).await {
                Ok(answer) => answer.map_err(|error| classify(&error, asked(), patience)),
                Err(_) => Err(Error::Timeout { asked: asked(), after: patience }),
            };
        };
        let answer = watch(builder.send(), &sending, len, stall).await;
        // A source that cannot be read fails the request in the HTTP library's words; ours are better.
        match (sending.take_failure(), digest) {
            (Some(source), Some(digest)) => return Err(Error::Source { digest: digest.clone(), source }),
            (Some(source), None) => return Err(Error::Interrupted { asked: asked(), cause: source.to_string() }),
            (None, _) => {}
        }
        match answer {
            Some(answer) => answer.map_err(|error| classify(&error, asked(), stall)),
            None => Err(Error::Timeout { asked: asked(), after: stall }),
        }
    }

    /// Reads a body that must fit into memory.
    pub(crate) async fn read(&self, mut response: Response, limit: u64, what: &str) -> Result<Bytes, Error> {
        let asked = Asked::boxed(authority(response.url()), what);
        if response.content_length().is_some_and(|length| length > limit) {
            return Err(Error::TooLarge { asked, limit });
        }
        let whole = async {
            let mut all = Vec::new();
            while let Some(bytes) = self.next_bytes(&mut response, what).await? {
                if (all.len() + bytes.len()) as u64 > limit {
                    return Err(Error::TooLarge { asked: asked.clone(), limit });
                }
                all.extend_from_slice(&bytes);
            }
            Ok(all.into())
        };
        // Such documents are small; one that trickles in is not waited for.
        let after = self.shared.settings.stall_timeout * DOCUMENT_FACTOR;
        tokio::time::timeout(after, whole).await.unwrap_or(Err(Error::Timeout { asked: asked.clone(), after }))
    }

    /// The next bytes of a body, within the stall time-out.
    pub(crate) async fn next_bytes(&self, response: &mut Response, what: &str) -> Result<Option<Bytes>, Error> {
        let stall = self.shared.settings.stall_timeout;
        let asked = Asked::boxed(authority(response.url()), what);
        match tokio::time::timeout(stall, response.chunk()).await {
            Ok(Ok(bytes)) => Ok(bytes),
            Ok(Err(error)) => Err(classify(&error, asked, stall)),
            Err(_) => Err(Error::Timeout { asked, after: stall }),
        }
    }

    /// Turns a failure status into an error, with what the server said in its body.
    pub(crate) async fn status_error(
        &self,
        mut response: Response,
        asked: Box<Asked>,
        secrets: &[String],
        authenticated: bool,
        note: &str,
    ) -> Error {
        let status = response.status().as_u16();
        let retry_after = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok());
        let retry_after = retry_after.and_then(|value| parse_retry_after(value, SystemTime::now()));
        let mut body = Vec::new();
        let words = async {
            while body.len() < ERROR_BODY_MAX
                && let Ok(Some(bytes)) = self.next_bytes(&mut response, "").await
            {
                body.extend_from_slice(&bytes[..bytes.len().min(ERROR_BODY_MAX - body.len())]);
            }
        };
        // What came in time is shown; the status is known anyway.
        let _ = tokio::time::timeout(self.shared.settings.stall_timeout, words).await;
        let detail = detail_of(&body, secrets);
        match status {
            404 => Error::NotFound { asked, detail },
            401 => Error::Unauthorized { asked, authenticated, detail, note: note.to_owned() },
            403 => Error::Denied { asked, detail },
            429 => Error::TooManyRequests { asked, retry_after, detail },
            _ => Error::Status { asked, status, retry_after, detail },
        }
    }
}

/// `host[:port]` of a URL, for people.
pub(crate) fn authority(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

pub(crate) fn same_origin(a: &Url, b: &Url) -> bool {
    a.scheme() == b.scheme() && a.host_str() == b.host_str() && a.port_or_known_default() == b.port_or_known_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_are_scheme_host_and_port() {
        let url = |text: &str| Url::parse(text).unwrap();
        for (a, b, want) in [
            ("https://a/x", "https://a:443/y", true),
            ("https://a/", "http://a/", false),
            ("https://a/", "https://b/", false),
            ("https://a/", "https://a:444/", false),
            ("https://a/", "https://a.b/", false),
        ] {
            assert_eq!(same_origin(&url(a), &url(b)), want, "{a} {b}");
        }
    }
}
