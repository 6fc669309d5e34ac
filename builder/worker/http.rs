//! ADD of a URL: one file, asked for again only as far as the server's ETag or modification time say.

use std::io::Write;
use std::time::Duration;

use graph::{Digest, HttpSource};
use reqwest::StatusCode;
use reqwest::header::{ETAG, IF_MODIFIED_SINCE, IF_NONE_MATCH, LAST_MODIFIED};
use serde::{Deserialize, Serialize};
use sha2::Digest as _;
use snapshotter::Room;
use tokio_util::sync::CancellationToken;

/// What is remembered of an answer.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Validators {
    etag: Option<String>,
    last_modified: Option<String>,
}

/// A URL that cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// No answer, or a broken one.
    #[error("cannot fetch {url}")]
    Request {
        /// Without credentials.
        url: String,
        /// Why.
        source: reqwest::Error,
    },
    /// An answer that is no file.
    #[error("cannot fetch {url}: the server answered {status}")]
    Status {
        /// Without credentials.
        url: String,
        /// Its status.
        status: StatusCode,
    },
    /// Other bytes than demanded.
    #[error("{url} has digest {found}, not {wanted} as --checksum says")]
    Checksum {
        /// Without credentials.
        url: String,
        /// What came.
        found: Digest,
        /// What should have come.
        wanted: Digest,
    },
    /// The file could not be kept.
    #[error("cannot store {url}")]
    Store {
        /// Without credentials.
        url: String,
        /// Why.
        source: std::io::Error,
    },
    /// The build was given up.
    #[error("cancelled")]
    Cancelled,
}

/// What the server had.
pub(crate) enum Fetched {
    /// Nothing newer.
    NotModified,
    /// A file.
    File(Download),
}

/// A downloaded file.
pub(crate) struct Download {
    pub(crate) file: tempfile::NamedTempFile,
    pub(crate) digest: Digest,
    /// Seconds since 1970.
    pub(crate) modified: Option<i64>,
    pub(crate) validators: Validators,
}

/// Times that a broken transfer is tried again.
const ATTEMPTS: u32 = 4;

pub(crate) async fn fetch(
    http: &registry::PlainClient,
    source: &HttpSource,
    known: Option<&Validators>,
    scratch: &std::path::Path,
    cancelled: &CancellationToken,
) -> Result<Fetched, HttpError> {
    let unusable = |error: reqwest::Error| HttpError::Request { url: shown(&source.url), source: error.without_url() };
    let client = http.get().map_err(unusable)?;
    let mut attempt = 1;
    loop {
        let result = tokio::select! {
            () = cancelled.cancelled() => return Err(HttpError::Cancelled),
            result = fetch_once(client, source, known, scratch) => result,
        };
        let again = match &result {
            Err(HttpError::Request { source, .. }) => !source.is_builder() && !source.is_redirect(),
            Err(HttpError::Status { status, .. }) => status.is_server_error() || matches!(status.as_u16(), 408 | 429),
            _ => false,
        };
        if !again || attempt == ATTEMPTS {
            return result;
        }
        tokio::time::sleep(Duration::from_millis(200 << attempt)).await;
        attempt += 1;
    }
}

async fn fetch_once(
    client: &reqwest::Client,
    source: &HttpSource,
    known: Option<&Validators>,
    scratch: &std::path::Path,
) -> Result<Fetched, HttpError> {
    let url = shown(&source.url);
    let failed = |error: reqwest::Error| HttpError::Request { url: url.clone(), source: error.without_url() };
    let store = |source| HttpError::Store { url: url.clone(), source };
    let mut request = client.get(&source.url);
    if let Some(known) = known {
        if let Some(etag) = &known.etag {
            request = request.header(IF_NONE_MATCH, etag);
        } else if let Some(time) = &known.last_modified {
            request = request.header(IF_MODIFIED_SINCE, time);
        }
    }
    let mut response = request.send().await.map_err(failed)?;
    if response.status() == StatusCode::NOT_MODIFIED {
        return Ok(Fetched::NotModified);
    }
    if !response.status().is_success() {
        return Err(HttpError::Status { url, status: response.status() });
    }
    let header = |name| response.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let validators = Validators { etag: header(ETAG), last_modified: header(LAST_MODIFIED) };
    let mut file = tempfile::Builder::new().prefix("http-").tempfile_in(scratch).map_err(store)?;
    let mut hasher = sha2::Sha256::new();
    let mut room = Room::later(scratch);
    while let Some(chunk) = response.chunk().await.map_err(failed)? {
        hasher.update(&chunk);
        // A server may go on for ever.
        room.take(chunk.len() as u64).and_then(|()| file.write_all(&chunk)).map_err(store)?;
    }
    let digest = Digest::from_bytes(hasher.finalize().into());
    if let Some(wanted) = source.checksum
        && wanted != digest
    {
        return Err(HttpError::Checksum { url, found: digest, wanted });
    }
    let modified = validators.last_modified.as_deref().and_then(|time| httpdate::parse_http_date(time).ok());
    let modified =
        modified.and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok()).map(|time| time.as_secs() as i64);
    Ok(Fetched::File(Download { file, digest, modified, validators }))
}

/// The URL without credentials.
fn shown(url: &str) -> String {
    match url::Url::parse(url) {
        Ok(mut url) => {
            let _ = url.set_password(None);
            let _ = url.set_username("");
            url.set_query(None);
            url.to_string()
        }
        Err(_) => url.to_owned(),
    }
}
