//! A registry in memory, on loopback, that misbehaves on request. For tests, of this crate and of whoever uses it.
//!
//! It speaks just enough HTTP/1.1 for clients that announce the length of what they send, by hand, because the faults are
//! below what an HTTP library lets one do: bodies cut or stalled after some bytes, lengths that lie, uploads half read.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use oci_spec::image::MediaType;
use serde_json::json;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use url::Url;

use crate::{Descriptor, Digest, digest_of};

/// A running registry; it ends when dropped.
pub struct Fake {
    host: String,
    state: Arc<Mutex<State>>,
    task: tokio::task::JoinHandle<()>,
}

/// How the registry lets one in.
#[derive(Debug, Clone, Default)]
pub enum Auth {
    /// Everyone.
    #[default]
    None,
    /// By user name and password on every request.
    Basic {
        /// The user.
        user: String,
        /// The password.
        password: String,
    },
    /// By tokens from `/token`.
    Token {
        /// The user.
        user: String,
        /// The password.
        password: String,
        /// An OAuth2 refresh token that is accepted too.
        identity: String,
        /// How long tokens are valid.
        lifetime: Duration,
        /// Whether everybody may pull.
        public: bool,
        /// Where tokens are to be had; empty for the registry itself.
        realm: String,
    },
}

/// A way to misbehave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// Answers with this status, these headers and this body, in which `{authorization}` and `{credentials}` stand for the
    /// header that was sent and what it decodes to.
    Status(u16, Vec<(String, String)>, String),
    /// Closes the connection without an answer.
    Close,
    /// Waits before it answers.
    Delay(Duration),
    /// Sends this many bytes of the body, then closes.
    CutBody(usize),
    /// Sends this many bytes of the body, then nothing more.
    StallBody(usize),
    /// Sends a body that never ends, without announcing a length.
    Endless,
    /// Sends other bytes of the same length.
    WrongBytes,
    /// Announces and sends this many bytes only.
    Shorten(usize),
    /// Redirects there.
    Redirect(String),
    /// Sends the whole body although a range was asked for.
    IgnoreRange,
    /// Reads this many bytes of the request's body, keeps them, and closes.
    CutUpload(usize),
    /// Does as asked, then closes without an answer.
    LoseAnswer,
}

/// What was asked, for tests to look at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// The method.
    pub method: String,
    /// Path and query.
    pub target: String,
    /// The `Authorization` header, or empty.
    pub authorization: String,
    /// The `Range` header, or empty.
    pub range: String,
    /// How many bytes of body came.
    pub received: u64,
    /// The status of the answer; 0 when there was none.
    pub status: u16,
}

#[derive(Default)]
struct State {
    auth: Auth,
    host: String,
    blobs: HashMap<String, Bytes>,
    /// Which repository has which blobs.
    links: BTreeSet<(String, String)>,
    manifests: BTreeMap<(String, String), (String, Bytes)>,
    uploads: HashMap<u64, Vec<u8>>,
    tokens: HashMap<String, (Instant, Vec<String>)>,
    counter: u64,
    rules: Vec<(String, usize, Fault)>,
    seen: Vec<Seen>,
    /// Whether it keeps lists of referrers.
    referrers: bool,
}

struct Call {
    method: String,
    target: String,
    headers: HashMap<String, String>,
    body: Vec<u8>,
}

struct Answer {
    status: u16,
    headers: Vec<(String, String)>,
    body: Bytes,
}

impl Fake {
    /// Starts a registry that lets everyone in.
    pub async fn start() -> io::Result<Self> {
        Self::with_auth(Auth::None).await
    }

    /// Starts a registry.
    pub async fn with_auth(auth: Auth) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let host = listener.local_addr()?.to_string();
        let state = Arc::new(Mutex::new(State { auth, host: host.clone(), ..State::default() }));
        let shared = state.clone();
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let state = shared.clone();
                // A connection that breaks is what clients have to live with.
                connections.spawn(async move { serve(stream, &state).await.unwrap_or_default() });
                while connections.try_join_next().is_some() {}
            }
        });
        Ok(Self { host, state, task })
    }

    /// `127.0.0.1:port`.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Misbehaves on the next `times` requests whose `METHOD target` contains `matching`.
    pub fn inject(&self, matching: &str, times: usize, fault: Fault) {
        self.lock().rules.push((matching.to_owned(), times, fault));
    }

    /// Keeps lists of what refers to what from now on.
    pub fn keep_referrers(&self) {
        self.lock().referrers = true;
    }

    /// Behaves again.
    pub fn clear_faults(&self) {
        self.lock().rules.clear();
    }

    /// Puts a blob into a repository.
    pub fn add_blob(&self, repository: &str, bytes: impl Into<Bytes>) -> Descriptor {
        let bytes = bytes.into();
        let digest = digest_of(&bytes);
        let descriptor = Descriptor::new(MediaType::ImageLayer, bytes.len() as u64, digest.clone());
        let mut state = self.lock();
        state.links.insert((repository.to_owned(), digest.to_string()));
        state.blobs.insert(digest.to_string(), bytes);
        descriptor
    }

    /// Takes a blob out of a repository.
    pub fn remove_blob(&self, repository: &str, digest: &Digest) {
        self.lock().links.remove(&(repository.to_owned(), digest.to_string()));
    }

    /// Puts a manifest into a repository under a tag.
    pub fn add_manifest(&self, repository: &str, tag: &str, media_type: &str, bytes: impl Into<Bytes>) -> Digest {
        let bytes = bytes.into();
        let digest = digest_of(&bytes);
        let mut state = self.lock();
        for name in [tag, digest.as_ref()] {
            let key = (repository.to_owned(), name.to_owned());
            state.manifests.insert(key, (media_type.to_owned(), bytes.clone()));
        }
        digest
    }

    /// The bytes of a blob, if the repository has it.
    #[must_use]
    pub fn blob(&self, repository: &str, digest: &Digest) -> Option<Bytes> {
        let state = self.lock();
        let key = (repository.to_owned(), digest.to_string());
        state.links.contains(&key).then(|| state.blobs.get(&key.1).cloned()).flatten()
    }

    /// Media type and bytes of a manifest by tag or digest.
    #[must_use]
    pub fn manifest(&self, repository: &str, name: &str) -> Option<(String, Bytes)> {
        self.lock().manifests.get(&(repository.to_owned(), name.to_owned())).cloned()
    }

    /// What was asked so far.
    #[must_use]
    pub fn seen(&self) -> Vec<Seen> {
        self.lock().seen.clone()
    }

    /// How many requests with a `METHOD target` that contains `matching` were made.
    #[must_use]
    pub fn count(&self, matching: &str) -> usize {
        self.lock().seen.iter().filter(|seen| format!("{} {}", seen.method, seen.target).contains(matching)).count()
    }

    /// How many uploads are open.
    #[must_use]
    pub fn open_uploads(&self) -> usize {
        self.lock().uploads.len()
    }

    /// Makes all tokens given out so far invalid.
    pub fn revoke_tokens(&self) {
        self.lock().tokens.clear();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn serve(stream: TcpStream, state: &Mutex<State>) -> io::Result<()> {
    let mut stream = BufReader::new(stream);
    while let Some(mut call) = read_head(&mut stream).await? {
        let fault = lock(state).fault_for(&call);
        let length: usize = call.headers.get("content-length").and_then(|l| l.parse().ok()).unwrap_or(0);
        if let Some(Fault::CutUpload(limit)) = fault {
            if length == 0 {
                // Of a body in chunks; in one of them, or after a few.
                while call.body.len() < limit && read_chunk(&mut stream, &mut call.body).await? {}
                call.body.truncate(limit);
            } else {
                call.body.resize(limit.min(length), 0);
                stream.read_exact(&mut call.body).await?;
            }
            let mut state = lock(state);
            state.note(&call, 0);
            state.keep_partial(&call);
            return Ok(());
        }
        if call.headers.get("transfer-encoding").is_some_and(|coding| coding == "chunked") {
            read_chunks(&mut stream, &mut call.body).await?;
        } else {
            call.body.resize(length, 0);
            stream.read_exact(&mut call.body).await?;
        }
        if let Some(Fault::Delay(wait)) = fault {
            tokio::time::sleep(wait).await;
        }
        let answer = match &fault {
            Some(Fault::Close) => {
                lock(state).note(&call, 0);
                return Ok(());
            }
            Some(Fault::Status(status, headers, body)) => {
                Answer { status: *status, headers: headers.clone(), body: call.echo(body).into() }
            }
            Some(Fault::Redirect(to)) => Answer::new(307).with("location", to),
            Some(Fault::IgnoreRange) => {
                let mut headers = call.headers.clone();
                headers.remove("range");
                let (method, target) = (call.method.clone(), call.target.clone());
                lock(state).answer(&Call { method, target, headers, body: Vec::new() })
            }
            _ => lock(state).answer(&call),
        };
        lock(state).note(&call, answer.status);
        if fault == Some(Fault::LoseAnswer) || !send(&mut stream, &call, answer, fault.as_ref()).await? {
            return Ok(());
        }
    }
    Ok(())
}

/// Reads a body whose length was not announced.
async fn read_chunks(stream: &mut BufReader<TcpStream>, body: &mut Vec<u8>) -> io::Result<()> {
    while read_chunk(stream, body).await? {}
    Ok(())
}

/// Reads one chunk; whether there may be more.
async fn read_chunk(stream: &mut BufReader<TcpStream>, body: &mut Vec<u8>) -> io::Result<bool> {
    let mut line = String::new();
    stream.read_line(&mut line).await?;
    let length = usize::from_str_radix(line.trim(), 16).map_err(io::Error::other)?;
    let start = body.len();
    // Its line ends as well.
    body.resize(start + length + 2, 0);
    stream.read_exact(&mut body[start..]).await?;
    body.truncate(start + length);
    Ok(length > 0)
}

/// Reads a request's line and headers. `None`: the client has closed, or does not speak HTTP.
async fn read_head(stream: &mut BufReader<TcpStream>) -> io::Result<Option<Call>> {
    let mut lines = Vec::new();
    loop {
        let mut line = Vec::new();
        // A TLS client begins with 0x16; it is told at once by closing.
        if stream.fill_buf().await?.first() == Some(&0x16) || stream.read_until(b'\n', &mut line).await? == 0 {
            return Ok(None);
        }
        let line = String::from_utf8_lossy(&line).trim_end().to_owned();
        if line.is_empty() {
            break;
        }
        lines.push(line);
    }
    let Some((request, headers)) = lines.split_first() else { return Ok(None) };
    let mut words = request.split(' ').map(str::to_owned);
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let headers = headers.iter().filter_map(|line| line.split_once(':'));
    let headers = headers.map(|(key, value)| (key.to_ascii_lowercase(), value.trim().to_owned())).collect();
    Ok(Some(Call { method, target, headers, body: Vec::new() }))
}

/// Sends an answer, spoilt as the fault wants it. Says whether the connection can go on.
async fn send(
    stream: &mut BufReader<TcpStream>,
    call: &Call,
    answer: Answer,
    fault: Option<&Fault>,
) -> io::Result<bool> {
    let mut body = answer.body.to_vec();
    let mut length = Some(body.len());
    let mut sent = body.len();
    match fault {
        Some(Fault::CutBody(n) | Fault::StallBody(n)) => sent = sent.min(*n),
        Some(Fault::Shorten(n)) => {
            sent = sent.min(*n);
            length = Some(sent);
        }
        Some(Fault::WrongBytes) => body.iter_mut().for_each(|byte| *byte = byte.wrapping_add(1)),
        Some(Fault::Endless) => length = None,
        _ => {}
    }
    let mut head = format!("HTTP/1.1 {} x\r\n", answer.status);
    for (key, value) in &answer.headers {
        head += &format!("{key}: {value}\r\n");
    }
    match length {
        Some(length) => head += &format!("content-length: {length}\r\n\r\n"),
        None => head += "transfer-encoding: chunked\r\n\r\n",
    }
    stream.write_all(head.as_bytes()).await?;
    if call.method == "HEAD" {
        return Ok(true);
    }
    if length.is_none() {
        let mut piece = body.repeat(1 + 4097 / body.len().max(1));
        piece.truncate(4097);
        loop {
            stream.write_all(format!("{:x}\r\n", piece.len()).as_bytes()).await?;
            stream.write_all(&piece).await?;
            stream.write_all(b"\r\n").await?;
        }
    }
    stream.write_all(&body[..sent]).await?;
    stream.flush().await?;
    match fault {
        Some(Fault::StallBody(_)) => {
            // Until the client gives up.
            let mut rest = Vec::new();
            stream.read_to_end(&mut rest).await?;
            Ok(false)
        }
        Some(Fault::CutBody(_)) => Ok(false),
        _ => Ok(true),
    }
}

impl Call {
    fn echo(&self, text: &str) -> String {
        let sent = self.headers.get("authorization").map_or("", String::as_str);
        let decoded = sent.strip_prefix("Basic ").and_then(|encoded| STANDARD.decode(encoded).ok()).unwrap_or_default();
        text.replace("{authorization}", sent).replace("{credentials}", &String::from_utf8_lossy(&decoded))
    }
}

impl Answer {
    fn new(status: u16) -> Self {
        Self { status, headers: Vec::new(), body: Bytes::new() }
    }

    fn with(mut self, key: &str, value: impl ToString) -> Self {
        self.headers.push((key.to_owned(), value.to_string()));
        self
    }

    fn error(status: u16, code: &str) -> Self {
        let body = json!({"errors": [{"code": code, "message": code.to_ascii_lowercase().replace('_', " ")}]});
        Self { body: body.to_string().into(), ..Self::new(status).with("content-type", "application/json") }
    }

    fn json(body: &serde_json::Value) -> Self {
        Self { body: body.to_string().into(), ..Self::new(200).with("content-type", "application/json") }
    }
}

impl State {
    fn fault_for(&mut self, call: &Call) -> Option<Fault> {
        let request = format!("{} {}", call.method, call.target);
        let at =
            self.rules.iter().position(|(matching, times, _)| *times > 0 && request.contains(matching.as_str()))?;
        self.rules[at].1 -= 1;
        Some(self.rules[at].2.clone())
    }

    fn note(&mut self, call: &Call, status: u16) {
        let header = |name: &str| call.headers.get(name).cloned().unwrap_or_default();
        self.seen.push(Seen {
            method: call.method.clone(),
            target: call.target.clone(),
            authorization: header("authorization"),
            range: header("range"),
            received: call.body.len() as u64,
            status,
        });
    }

    /// Keeps what came of an upload that was cut.
    fn keep_partial(&mut self, call: &Call) {
        let id =
            call.target.split("/blobs/uploads/").nth(1).and_then(|rest| rest.split('?').next()?.parse::<u64>().ok());
        if let Some(upload) = id.and_then(|id| self.uploads.get_mut(&id)) {
            upload.extend_from_slice(&call.body);
        }
    }

    fn answer(&mut self, call: &Call) -> Answer {
        let Ok(url) = Url::parse(&format!("http://{}{}", self.host, call.target)) else {
            return Answer::error(400, "BAD_REQUEST");
        };
        if url.path() == "/token" {
            return self.token(call, &url);
        }
        let Some(path) = url.path().strip_prefix("/v2/") else { return Answer::error(404, "NOT_FOUND") };
        let parts = ["/manifests/", "/blobs/uploads/", "/blobs/", "/tags/", "/referrers/"]
            .iter()
            .find_map(|kind| path.split_once(kind).map(|(repository, rest)| (*kind, repository, rest)));
        if let Some(refusal) = self.refuse(call, parts.map(|(_, repository, _)| repository)) {
            return refusal;
        }
        let query: HashMap<String, String> = url.query_pairs().into_owned().collect();
        match parts {
            None if path.is_empty() => Answer::json(&json!({})),
            None => Answer::error(404, "NOT_FOUND"),
            Some(("/manifests/", repository, name)) => self.manifest(call, repository, name),
            Some(("/blobs/", repository, digest)) => self.blob(call, repository, digest),
            Some(("/tags/", repository, _)) => self.tags(repository, &query),
            Some(("/referrers/", repository, subject)) if self.referrers => self.referrers(repository, subject),
            Some(("/referrers/", ..)) => Answer::error(404, "NOT_FOUND"),
            Some((_, repository, id)) => self.upload(call, repository, id, &query),
        }
    }

    /// A 401 when the caller may not do this.
    fn refuse(&mut self, call: &Call, repository: Option<&str>) -> Option<Answer> {
        let sent = call.headers.get("authorization").map_or("", String::as_str);
        match &self.auth {
            Auth::None => None,
            Auth::Basic { user, password } => {
                let want = format!("Basic {}", STANDARD.encode(format!("{user}:{password}")));
                (sent != want)
                    .then(|| Answer::error(401, "UNAUTHORIZED").with("www-authenticate", "Basic realm=\"fake\""))
            }
            Auth::Token { realm, .. } => {
                let write = !matches!(call.method.as_str(), "GET" | "HEAD") || call.target.contains("/uploads/");
                let scope = repository.map(|r| format!("repository:{r}:{}", if write { "pull,push" } else { "pull" }));
                let granted = sent.strip_prefix("Bearer ").and_then(|token| self.tokens.get(token));
                let fits = granted.is_some_and(|(expires, scopes)| {
                    let covers = |s: &String| scope.as_ref().is_none_or(|w| s.starts_with(w.as_str()));
                    *expires > Instant::now() && (scope.is_none() || scopes.iter().any(covers))
                });
                let realm = if realm.is_empty() { format!("http://{}/token", self.host) } else { realm.clone() };
                let mut challenge = format!("Bearer realm=\"{realm}\",service=\"fake\"");
                if let Some(scope) = scope {
                    challenge += &format!(",scope=\"{scope}\"");
                }
                (!fits).then(|| Answer::error(401, "UNAUTHORIZED").with("www-authenticate", challenge))
            }
        }
    }

    fn token(&mut self, call: &Call, url: &Url) -> Answer {
        let Auth::Token { user, password, identity, lifetime, public, .. } = self.auth.clone() else {
            return Answer::error(404, "NOT_FOUND");
        };
        let form: Vec<(String, String)> = if call.method == "POST" {
            url::form_urlencoded::parse(&call.body).into_owned().collect()
        } else {
            url.query_pairs().into_owned().collect()
        };
        let sent = call.headers.get("authorization").map_or("", String::as_str);
        let has = |wanted: &str, text: &str| form.iter().any(|(key, value)| key == wanted && value == text);
        let by_identity =
            call.method == "POST" && has("grant_type", "refresh_token") && has("refresh_token", &identity);
        let known = by_identity || sent == format!("Basic {}", STANDARD.encode(format!("{user}:{password}")));
        if !known && (!sent.is_empty() || !public || call.method == "POST") {
            return Answer::json(&json!({"details": format!("incorrect user name or password: {sent}")})).status(401);
        }
        let scopes = form.iter().filter(|(key, _)| key == "scope").flat_map(|(_, value)| value.split(' '));
        let scopes = scopes.filter(|scope| known || scope.ends_with(":pull")).map(str::to_owned).collect();
        self.counter += 1;
        let token = format!("canary-token-{}", self.counter);
        self.tokens.insert(token.clone(), (Instant::now() + lifetime, scopes));
        Answer::json(&json!({"token": token, "expires_in": lifetime.as_secs_f64()}))
    }

    fn manifest(&mut self, call: &Call, repository: &str, name: &str) -> Answer {
        let key = (repository.to_owned(), name.to_owned());
        match call.method.as_str() {
            "PUT" => {
                let digest = digest_of(&call.body);
                let media_type = call.headers.get("content-type").cloned().unwrap_or_default();
                for name in [name, digest.as_ref()] {
                    let value = (media_type.clone(), call.body.clone().into());
                    self.manifests.insert((repository.to_owned(), name.to_owned()), value);
                }
                let answer = Answer::new(201).with("docker-content-digest", digest);
                match subject_of(&call.body) {
                    Some(subject) if self.referrers => answer.with("oci-subject", subject),
                    _ => answer,
                }
            }
            "DELETE" if self.manifests.remove(&key).is_some() => Answer::new(202),
            "GET" | "HEAD" if self.manifests.contains_key(&key) => {
                let (media_type, bytes) = &self.manifests[&key];
                let answer = Answer::new(200).with("content-type", media_type);
                Answer { body: bytes.clone(), ..answer.with("docker-content-digest", digest_of(bytes)) }
            }
            _ => Answer::error(404, "MANIFEST_UNKNOWN"),
        }
    }

    fn referrers(&self, repository: &str, subject: &str) -> Answer {
        let own = self.manifests.iter().filter(|((own, name), _)| own == repository && name.contains(':'));
        let referring = own.filter(|(_, (_, bytes))| subject_of(bytes).as_deref() == Some(subject));
        let entries = referring.map(|((_, digest), (media_type, bytes))| {
            let manifest: serde_json::Value = serde_json::from_slice(bytes).unwrap_or_default();
            json!({ "mediaType": media_type, "digest": digest, "size": bytes.len(), "artifactType": manifest["artifactType"] })
        });
        let index =
            json!({ "schemaVersion": 2, "mediaType": crate::OCI_INDEX, "manifests": entries.collect::<Vec<_>>() });
        Answer { body: index.to_string().into(), ..Answer::new(200).with("content-type", crate::OCI_INDEX) }
    }

    fn blob(&mut self, call: &Call, repository: &str, digest: &str) -> Answer {
        if !self.links.contains(&(repository.to_owned(), digest.to_owned())) {
            return Answer::error(404, "BLOB_UNKNOWN");
        }
        let bytes = self.blobs.get(digest).cloned().unwrap_or_default();
        let range: Option<usize> =
            call.headers.get("range").and_then(|r| r.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok());
        match range {
            Some(from) if from < bytes.len() => {
                let range = format!("bytes {from}-{}/{}", bytes.len() - 1, bytes.len());
                Answer { body: bytes.slice(from..), ..Answer::new(206).with("content-range", range) }
            }
            Some(_) => Answer::error(416, "RANGE_INVALID"),
            None => Answer { body: bytes, ..Answer::new(200) },
        }
    }

    fn tags(&self, repository: &str, query: &HashMap<String, String>) -> Answer {
        let limit = query.get("n").and_then(|n| n.parse().ok()).unwrap_or(100).min(2);
        let last = query.get("last").map_or("", String::as_str);
        let all =
            self.manifests.keys().filter(|(r, name)| r == repository && !name.contains(':') && name.as_str() > last);
        let mut tags: Vec<&String> = all.map(|(_, name)| name).collect();
        let more = tags.len() > limit;
        tags.truncate(limit);
        let answer = Answer::json(&json!({"name": repository, "tags": tags}));
        match tags.last() {
            Some(last) if more => {
                answer.with("link", format!("</v2/{repository}/tags/list?n={limit}&last={last}>; rel=\"next\""))
            }
            _ => answer,
        }
    }

    fn upload(&mut self, call: &Call, repository: &str, id: &str, query: &HashMap<String, String>) -> Answer {
        self.counter += 1;
        // The location changes with every answer, as real ones do.
        let next = |id: u64, counter: u64| format!("/v2/{repository}/blobs/uploads/{id}?_state={counter}");
        if call.method == "POST" {
            if let (Some(digest), Some(from)) = (query.get("mount"), query.get("from"))
                && self.links.contains(&(from.clone(), digest.clone()))
            {
                self.links.insert((repository.to_owned(), digest.clone()));
                return Answer::new(201).with("docker-content-digest", digest);
            }
            self.uploads.insert(self.counter, Vec::new());
            return Answer::new(202).with("location", next(self.counter, self.counter));
        }
        let id: u64 = id.parse().unwrap_or_default();
        let Some(upload) = self.uploads.get_mut(&id) else { return Answer::error(404, "BLOB_UPLOAD_UNKNOWN") };
        let start = call.headers.get("content-range").and_then(|range| range.split('-').next()?.parse::<usize>().ok());
        match call.method.as_str() {
            "GET" => {
                let range = format!("0-{}", upload.len().saturating_sub(1));
                Answer::new(204).with("location", next(id, self.counter)).with("range", range)
            }
            "DELETE" => {
                self.uploads.remove(&id);
                Answer::new(204)
            }
            "PATCH" if start.is_some_and(|start| start != upload.len()) => Answer::error(416, "RANGE_INVALID"),
            "PATCH" => {
                upload.extend_from_slice(&call.body);
                Answer::new(202).with("location", next(id, self.counter))
            }
            "PUT" => {
                upload.extend_from_slice(&call.body);
                let bytes = Bytes::from(std::mem::take(upload));
                self.uploads.remove(&id);
                let digest = digest_of(&bytes).to_string();
                if query.get("digest") != Some(&digest) {
                    return Answer::error(400, "DIGEST_INVALID");
                }
                self.links.insert((repository.to_owned(), digest.clone()));
                self.blobs.insert(digest.clone(), bytes);
                Answer::new(201).with("docker-content-digest", digest)
            }
            _ => Answer::error(405, "UNSUPPORTED"),
        }
    }
}

fn subject_of(manifest: &[u8]) -> Option<String> {
    let manifest: serde_json::Value = serde_json::from_slice(manifest).ok()?;
    manifest.get("subject")?.get("digest")?.as_str().map(str::to_owned)
}

impl Answer {
    fn status(mut self, status: u16) -> Self {
        self.status = status;
        self
    }
}
