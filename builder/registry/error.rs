//! Everything that can go wrong, exact enough that the caller can give a hint without reading texts.

use std::fmt;
use std::time::Duration;

use crate::{CredentialsError, Digest, ReferenceError};

/// What was asked of whom. Part of every error that involves a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// The host (and port) that was asked, e.g. `registry-1.docker.io`.
    pub host: String,
    /// What was asked, in words, e.g. `manifest of docker.io/library/debian:12`.
    pub what: String,
}

impl Asked {
    pub(crate) fn boxed(host: impl Into<String>, what: impl Into<String>) -> Box<Self> {
        Box::new(Self { host: host.into(), what: what.into() })
    }
}

impl fmt::Display for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.host, self.what)
    }
}

/// What the registry itself said about a failure: the `code` and `message` of its error JSON, when there was one.
///
/// Secrets that were part of the request and control characters have been removed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Detail {
    /// The registry's code, e.g. `MANIFEST_UNKNOWN`; empty when it gave none.
    pub code: String,
    /// The registry's message; empty when it gave none.
    pub message: String,
}

impl fmt::Display for Detail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.code.as_str(), self.message.as_str()) {
            ("", "") => Ok(()),
            (text, "") | ("", text) => write!(f, " ({text})"),
            (code, message) => write!(f, " ({code}: {message})"),
        }
    }
}

/// Why there is no connection, as far as it tells whether trying again helps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unreachable {
    /// No host has this name, say the name servers.
    NoSuchName,
    /// The host is there and nobody listens.
    Refused,
    /// Something that may pass: a name server that does not answer, no route, a time-out.
    Other,
}

/// A failed exchange with a registry. Never contains a credential.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The text is not an image reference.
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    /// The registry does not have it (404). Docker Hub and others answer 401 instead for repositories that do not exist.
    #[error("{asked}: not found{detail}")]
    NotFound {
        /// What was asked of whom.
        asked: Box<Asked>,
        /// The registry's own words.
        detail: Detail,
    },
    /// The registry wants to know who we are (401), or the credentials are wrong.
    #[error("{asked}: {}{detail}{}", if *.authenticated { "the credentials were refused" } else { "authentication required" }, appended(.note))]
    Unauthorized {
        /// What was asked of whom.
        asked: Box<Asked>,
        /// Whether credentials were found and sent.
        authenticated: bool,
        /// The registry's own words.
        detail: Detail,
        /// Why no credentials were sent although some are configured, e.g. a credential helper that failed; else empty.
        note: String,
    },
    /// We are known, or anonymous, and may not do this (403).
    #[error("{asked}: access denied{detail}")]
    Denied {
        /// What was asked of whom.
        asked: Box<Asked>,
        /// The registry's own words.
        detail: Detail,
    },
    /// The registry's rate limit is reached (429) and waiting did not help, or would take too long.
    #[error("{asked}: too many requests{detail}")]
    TooManyRequests {
        /// What was asked of whom.
        asked: Box<Asked>,
        /// How long the registry wants us to wait.
        retry_after: Option<Duration>,
        /// The registry's own words.
        detail: Detail,
    },
    /// Any other HTTP status that means failure.
    #[error("{asked}: unexpected status {status}{detail}")]
    Status {
        /// What was asked of whom.
        asked: Box<Asked>,
        /// The HTTP status.
        status: u16,
        /// How long the registry wants us to wait, if it said.
        retry_after: Option<Duration>,
        /// The registry's own words.
        detail: Detail,
    },
    /// No connection: name resolution, refused, unreachable.
    #[error("{asked}: cannot connect: {cause}")]
    Connect {
        /// What was asked of whom.
        asked: Box<Asked>,
        /// What kind of failure.
        kind: Unreachable,
        /// The cause, in the system's words.
        cause: String,
    },
    /// The TLS handshake failed: unknown issuer, wrong name, expired, or the server speaks plain HTTP.
    #[error("{asked}: TLS failed: {cause}")]
    Tls {
        /// What was asked of whom.
        asked: Box<Asked>,
        /// The cause, in the TLS library's words.
        cause: String,
    },
    /// Nothing arrived for the stall time-out.
    #[error("{asked}: timed out after {} s without progress", .after.as_secs())]
    Timeout {
        /// What was asked of whom.
        asked: Box<Asked>,
        /// How long we waited.
        after: Duration,
    },
    /// The connection was cut, or the body ended early.
    #[error("{asked}: connection lost: {cause}")]
    Interrupted {
        /// What was asked of whom.
        asked: Box<Asked>,
        /// The cause, in the system's words.
        cause: String,
    },
    /// The bytes are not those of the digest.
    #[error("{asked}: digest mismatch: expected {expected}, the bytes received have {actual}")]
    DigestMismatch {
        /// What was asked of whom.
        asked: Box<Asked>,
        /// The digest that was asked for.
        expected: Digest,
        /// The digest of what came.
        actual: Digest,
    },
    /// The server offers another number of bytes than the descriptor says.
    #[error("{asked}: size mismatch: expected {expected} bytes, the server sends {actual}")]
    SizeMismatch {
        /// What was asked of whom.
        asked: Box<Asked>,
        /// The descriptor's size.
        expected: u64,
        /// What the server sends; a lower bound when it did not announce a length.
        actual: u64,
    },
    /// A document is larger than we are willing to hold in memory.
    #[error("{asked}: larger than the limit of {limit} bytes")]
    TooLarge {
        /// What was asked of whom.
        asked: Box<Asked>,
        /// The limit in bytes.
        limit: u64,
    },
    /// The manifest has a media type we do not handle, such as Docker's schema 1.
    #[error("{asked}: {why}")]
    UnsupportedManifest {
        /// What was asked of whom.
        asked: Box<Asked>,
        /// What it is, and what can be done.
        why: String,
    },
    /// The index has no manifest for the platform.
    #[error("no image for platform {wanted}; available: {}", if .available.is_empty() { "none".to_owned() } else { .available.join(", ") })]
    NoPlatform {
        /// The platform asked for.
        wanted: String,
        /// The platforms the index has.
        available: Vec<String>,
    },
    /// The answer makes no sense, or is not safe to follow.
    #[error("{asked}: {why}")]
    InvalidResponse {
        /// What was asked of whom.
        asked: Box<Asked>,
        /// What is wrong with it.
        why: String,
    },
    /// A digest algorithm we cannot verify.
    #[error("cannot verify {0}: only sha256, sha384 and sha512 digests are supported")]
    UnsupportedDigest(Digest),
    /// Reading what should be pushed failed, or it has another size than announced.
    #[error("cannot read {digest} for the push")]
    Source {
        /// The blob that was being pushed.
        digest: Digest,
        /// The failure.
        source: std::io::Error,
    },
    /// Credentials could not be read, stored or erased.
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    /// The per-registry settings cannot be used: a certificate that does not parse, a mirror that is no host.
    #[error("registry settings for {host}: {why}")]
    Settings {
        /// The registry whose settings are wrong.
        host: String,
        /// What is wrong.
        why: String,
    },
}

fn appended(text: &str) -> String {
    if text.is_empty() { String::new() } else { format!("; {text}") }
}

impl Error {
    /// Whether asking again may help: connections, time-outs, cut bodies, 408, 429 and 5xx.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Connect { kind, .. } => *kind != Unreachable::NoSuchName,
            Self::Timeout { .. } | Self::Interrupted { .. } | Self::TooManyRequests { .. } => true,
            Self::Status { status, .. } => *status == 408 || (*status >= 500 && !matches!(*status, 501 | 505)),
            _ => false,
        }
    }

    /// Whether nobody listens at the other end.
    #[must_use]
    pub fn is_refused(&self) -> bool {
        matches!(self, Self::Connect { kind: Unreachable::Refused, .. })
    }

    /// How long the server asked us to wait.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::TooManyRequests { retry_after, .. } | Self::Status { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    /// Whether the registry does not have what was asked.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound { .. })
    }
}
