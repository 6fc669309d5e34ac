//! Image references, normalised as Docker does it: `debian` is `docker.io/library/debian`.
//!
//! The grammar is that of the distribution project's `reference` package.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::Digest;

/// The registry that a name without a host means.
pub const DOCKER_HUB: &str = "docker.io";
const OFFICIAL: &str = "library/";
const DEFAULT_TAG: &str = "latest";
const NAME_MAX: usize = 255;
const TAG_MAX: usize = 128;

/// A repository on a registry, e.g. `docker.io` and `library/debian`. Displays in full.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Repository {
    registry: String,
    path: String,
}

impl Repository {
    /// The registry, a host with an optional port; `docker.io` for Docker Hub, whatever its API's host.
    #[must_use]
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// The path on the registry, e.g. `library/debian`.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The short form that people use: `debian`, `someone/app`, `localhost:5000/app`.
    #[must_use]
    pub fn familiar(&self) -> String {
        if self.registry == DOCKER_HUB {
            self.path.strip_prefix(OFFICIAL).filter(|rest| !rest.contains('/')).unwrap_or(&self.path).to_owned()
        } else {
            self.to_string()
        }
    }

    /// A reference to `tag` in this repository.
    ///
    /// # Errors
    /// When `tag` is not a tag.
    pub fn with_tag(&self, tag: &str) -> Result<Reference, ReferenceError> {
        check_tag(tag).map_err(|why| ReferenceError::new(tag, why))?;
        Ok(Reference { repository: self.clone(), tag: Some(tag.to_owned()), digest: None })
    }

    /// A reference to `digest` in this repository.
    #[must_use]
    pub fn with_digest(&self, digest: Digest) -> Reference {
        Reference { repository: self.clone(), tag: None, digest: Some(digest) }
    }
}

impl fmt::Display for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.path)
    }
}

impl FromStr for Repository {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        let reference: Reference = text.parse()?;
        if reference.tag.is_some() || reference.digest.is_some() {
            return Err(ReferenceError::new(text, "expected a repository, without tag or digest"));
        }
        Ok(reference.repository)
    }
}

/// A repository with a tag, a digest, both or neither. Displays in the canonical form, with registry and full path.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Reference {
    repository: Repository,
    tag: Option<String>,
    digest: Option<Digest>,
}

impl Reference {
    /// The repository.
    #[must_use]
    pub fn repository(&self) -> &Repository {
        &self.repository
    }

    /// The registry; see [`Repository::registry`].
    #[must_use]
    pub fn registry(&self) -> &str {
        &self.repository.registry
    }

    /// The tag that was written, if any.
    #[must_use]
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest that was written, if any. It decides what is fetched, a tag beside it is a remark.
    #[must_use]
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// The same with the tag `latest` when there is neither tag nor digest.
    #[must_use]
    pub fn or_latest(mut self) -> Self {
        if self.tag.is_none() && self.digest.is_none() {
            self.tag = Some(DEFAULT_TAG.to_owned());
        }
        self
    }

    /// The short form that people use: `debian:12` for `docker.io/library/debian:12`.
    #[must_use]
    pub fn familiar(&self) -> String {
        format!("{}{}", self.repository.familiar(), self.suffix())
    }

    /// What follows `/manifests/` in the API: the digest, else the tag, else `latest`.
    pub(crate) fn locator(&self) -> &str {
        self.digest.as_ref().map_or_else(|| self.tag.as_deref().unwrap_or(DEFAULT_TAG), AsRef::as_ref)
    }

    fn suffix(&self) -> String {
        let mut text = String::new();
        if let Some(tag) = &self.tag {
            text.push(':');
            text.push_str(tag);
        }
        if let Some(digest) = &self.digest {
            text.push('@');
            text.push_str(digest.as_ref());
        }
        text
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.repository, self.suffix())
    }
}

impl From<Reference> for String {
    fn from(reference: Reference) -> Self {
        reference.to_string()
    }
}

impl TryFrom<String> for Reference {
    type Error = ReferenceError;

    fn try_from(text: String) -> Result<Self, ReferenceError> {
        text.parse()
    }
}

/// The text is not an image reference, and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid image reference {text:?}: {why}")]
pub struct ReferenceError {
    /// The text, shortened when it is very long.
    pub text: String,
    /// What is wrong, with a suggestion where there is one.
    pub why: String,
}

impl ReferenceError {
    fn new(text: &str, why: impl Into<String>) -> Self {
        let shown = if text.chars().count() > 120 {
            text.chars().take(117).chain("...".chars()).collect()
        } else {
            text.to_owned()
        };
        Self { text: shown, why: why.into() }
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        parse(text).map_err(|why| ReferenceError::new(text, why))
    }
}

fn parse(text: &str) -> Result<Reference, String> {
    if text.is_empty() {
        return Err("it is empty".into());
    }
    if let Some(rest) = ["https://", "http://", "docker://"].iter().find_map(|scheme| text.strip_prefix(scheme)) {
        return Err(format!("a reference has no scheme; did you mean {rest:?}?"));
    }
    if text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
        return Err("64 hex digits are an image id, not a name".into());
    }
    let (name, digest) = match text.split_once('@') {
        Some((name, digest)) => (name, Some(parse_digest(digest)?)),
        None => (text, None),
    };
    let (registry, rest) = split_registry(name);
    check_registry(registry)?;
    let (path, tag) = match rest.rfind(':') {
        Some(colon) if !rest[colon..].contains('/') => (&rest[..colon], Some(&rest[colon + 1..])),
        _ => (rest, None),
    };
    if let Some(tag) = tag {
        check_tag(tag)?;
    }
    check_path(path)?;
    let registry = if registry == "index.docker.io" { DOCKER_HUB } else { registry };
    let path =
        if registry == DOCKER_HUB && !path.contains('/') { format!("{OFFICIAL}{path}") } else { path.to_owned() };
    if registry.len() + 1 + path.len() > NAME_MAX {
        return Err(format!("the name is longer than {NAME_MAX} characters"));
    }
    Ok(Reference {
        repository: Repository { registry: registry.to_owned(), path },
        tag: tag.map(str::to_owned),
        digest,
    })
}

/// The first component is a host when it has a dot or a colon, is `localhost`, or has upper-case letters (no path may).
fn split_registry(name: &str) -> (&str, &str) {
    match name.split_once('/') {
        Some((first, rest))
            if first.contains(['.', ':']) || first == "localhost" || first.bytes().any(|b| b.is_ascii_uppercase()) =>
        {
            (first, rest)
        }
        _ => (DOCKER_HUB, name),
    }
}

/// The name of a registry as people write it for `login`: a host, also as a URL or as one of Docker Hub's several names.
///
/// # Errors
/// When it is not the name of a host.
pub fn registry_name(text: &str) -> Result<String, ReferenceError> {
    let name = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://")).unwrap_or(text);
    let name = name.trim_end_matches('/');
    let name = name.strip_suffix("/v1").or_else(|| name.strip_suffix("/v2")).unwrap_or(name);
    check_registry(name).map_err(|why| ReferenceError { text: text.to_owned(), why })?;
    Ok(if is_docker_hub(name) { DOCKER_HUB.to_owned() } else { name.to_owned() })
}

/// Whether this is one of Docker Hub's names.
pub(crate) fn is_docker_hub(host: &str) -> bool {
    [DOCKER_HUB, "index.docker.io", "registry-1.docker.io"].contains(&host)
}

/// Checks `host[:port]`, where the host is a name, an IPv4 address or an IPv6 address in brackets.
pub(crate) fn check_registry(text: &str) -> Result<(), String> {
    let bad = |why: &str| Err(format!("the registry {text:?} {why}"));
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((address, after)) => {
                if address.parse::<std::net::Ipv6Addr>().is_err() {
                    return bad("has brackets around what is no IPv6 address");
                }
                match after.strip_prefix(':') {
                    Some(port) => ("", Some(port)),
                    None if after.is_empty() => ("", None),
                    None => return bad("has something other than a port behind the address"),
                }
            }
            None => return bad("lacks a closing bracket"),
        },
        None => {
            let (host, port) = text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port)));
            let label = |l: &str| {
                !l.is_empty()
                    && !l.starts_with('-')
                    && !l.ends_with('-')
                    && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            };
            if !host.split('.').all(label) {
                return bad("is not a host name");
            }
            (host, port)
        }
    };
    if host.len() > 253 {
        return bad("is too long for a host name");
    }
    match port {
        Some(port) if port.is_empty() || !port.bytes().all(|b| b.is_ascii_digit()) || port.parse::<u16>().is_err() => {
            bad("has a port that is not a number up to 65535")
        }
        _ => Ok(()),
    }
}

/// Checks a repository path: lower-case letters and digits, joined by `.`, `_`, `__` or dashes, in parts between slashes.
pub(crate) fn check_path(path: &str) -> Result<(), String> {
    if path.is_empty() {
        return Err("the repository's name is missing".into());
    }
    if path.bytes().any(|b| b.is_ascii_uppercase()) {
        return Err(format!("repository names are lower case; did you mean {:?}?", path.to_ascii_lowercase()));
    }
    for part in path.split('/') {
        if part.is_empty() {
            return Err("a part of the name between slashes is empty".into());
        }
        check_part(part)?;
    }
    Ok(())
}

fn check_part(part: &str) -> Result<(), String> {
    let word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    if let Some(bad) = part.chars().find(|c| !c.is_ascii_lowercase() && !c.is_ascii_digit() && !"._-".contains(*c)) {
        return Err(format!("{bad:?} is not allowed in {part:?}: only a-z, 0-9, and '.', '_', '-' between them"));
    }
    let separators = |text: &str| matches!(text, "" | "." | "_" | "__") || text.bytes().all(|b| b == b'-');
    let ends = part.bytes().next().is_some_and(word) && part.bytes().last().is_some_and(word);
    let between = part.split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit()).all(separators);
    if ends && between {
        Ok(())
    } else {
        Err(format!(
            "{part:?} must begin and end with a letter or digit, and have one '.', '_', '__' or dashes between"
        ))
    }
}

fn check_tag(tag: &str) -> Result<(), String> {
    if tag.is_empty() {
        return Err("the tag after ':' is missing".into());
    }
    if tag.len() > TAG_MAX {
        return Err(format!("the tag is longer than {TAG_MAX} characters"));
    }
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    if tag.bytes().next().is_some_and(word) && tag.bytes().all(|b| word(b) || b == b'.' || b == b'-') {
        Ok(())
    } else {
        Err(format!("{tag:?} is not a tag: letters, digits, '_', '.' and '-', not beginning with '.' or '-'"))
    }
}

fn parse_digest(text: &str) -> Result<Digest, String> {
    let shape = "a digest is \"sha256:\" and 64 lower-case hex digits";
    let digest: Digest = text.parse().map_err(|_| format!("{text:?} is not a digest; {shape}"))?;
    if crate::Verifier::supports(&digest) {
        Ok(digest)
    } else {
        Err(format!("{text:?} is not a digest we know; {shape}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "6c3c624b58dbbcd3c0dd82b4c53f04194d1247c6eebdaab7c610cf7d66709b3b";

    #[test]
    fn references_are_normalised() {
        for (text, canonical, familiar) in [
            ("debian", "docker.io/library/debian", "debian"),
            ("debian:12", "docker.io/library/debian:12", "debian:12"),
            ("library/debian", "docker.io/library/debian", "debian"),
            ("docker.io/debian", "docker.io/library/debian", "debian"),
            ("index.docker.io/debian", "docker.io/library/debian", "debian"),
            ("someone/app:1", "docker.io/someone/app:1", "someone/app:1"),
            ("docker.io/library/a/b", "docker.io/library/a/b", "library/a/b"),
            ("localhost/x", "localhost/x", "localhost/x"),
            ("localhost:5000/x", "localhost:5000/x", "localhost:5000/x"),
            ("localhost:5000", "docker.io/library/localhost:5000", "localhost:5000"),
            ("127.0.0.1:5000/a/b:t", "127.0.0.1:5000/a/b:t", "127.0.0.1:5000/a/b:t"),
            ("[::1]:5000/x", "[::1]:5000/x", "[::1]:5000/x"),
            ("ghcr.io/a/b.c_d__e---f", "ghcr.io/a/b.c_d__e---f", "ghcr.io/a/b.c_d__e---f"),
            ("HOST/x", "HOST/x", "HOST/x"),
            ("a_b/c", "docker.io/a_b/c", "a_b/c"),
            ("x:_T.a-g", "docker.io/library/x:_T.a-g", "x:_T.a-g"),
        ] {
            let reference: Reference = text.parse().unwrap();
            assert_eq!(reference.to_string(), canonical, "{text}");
            assert_eq!(reference.familiar(), familiar, "{text}");
            assert_eq!(canonical.parse::<Reference>().unwrap(), reference, "{text}");
        }
        let both: Reference = format!("a/b:tag@sha256:{HEX}").parse().unwrap();
        assert_eq!(both.tag(), Some("tag"));
        assert_eq!(both.to_string(), format!("docker.io/a/b:tag@sha256:{HEX}"));
        assert_eq!(both.locator(), format!("sha256:{HEX}"));
        assert_eq!("x".parse::<Reference>().unwrap().or_latest().familiar(), "x:latest");
    }

    #[test]
    fn errors_teach() {
        let long = "a".repeat(256);
        let long_tag = format!("x:{}", "t".repeat(129));
        for (text, want) in [
            ("", "it is empty"),
            ("Debian", "did you mean \"debian\"?"),
            ("ghcr.io/Foo/bar", "did you mean \"foo/bar\"?"),
            ("https://ghcr.io/a", "did you mean \"ghcr.io/a\"?"),
            (HEX, "image id"),
            ("x:", "tag after ':' is missing"),
            ("x:-a", "is not a tag"),
            ("a//b", "is empty"),
            ("-a", "must begin and end"),
            ("a..b", "must begin and end"),
            ("a___b", "must begin and end"),
            ("a b", "' ' is not allowed"),
            ("../x", "is not a host name"),
            ("x@sha256:abc", "64 lower-case hex digits"),
            ("x@md5:6c3c624b58dbbcd3c0dd82b4c53f0419", "not a digest we know"),
            ("localhost:99999/x", "port"),
            ("localhost:5000/", "name is missing"),
            ("[::1/x", "closing bracket"),
            (&long, "longer than 255"),
            (&long_tag, "longer than 128"),
        ] {
            let error = text.parse::<Reference>().unwrap_err().to_string();
            assert!(error.contains(want), "{text}: {error}");
        }
        assert!("a/b:1".parse::<Repository>().is_err());
    }

    #[test]
    fn registries_have_one_name() {
        for (text, want) in [
            ("docker.io", Some("docker.io")),
            ("https://index.docker.io/v1/", Some("docker.io")),
            ("registry-1.docker.io", Some("docker.io")),
            ("ghcr.io", Some("ghcr.io")),
            ("http://localhost:5000/", Some("localhost:5000")),
            ("ghcr.io/someone", None),
            ("", None),
            ("a b", None),
        ] {
            assert_eq!(registry_name(text).ok().as_deref(), want, "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_refused_or_round_trips(text in "[a-zA-Z0-9:/@._\\[\\]-]{0,40}|\\PC{0,40}") {
            if let Ok(reference) = text.parse::<Reference>() {
                proptest::prop_assert_eq!(&reference.to_string().parse::<Reference>().unwrap(), &reference);
                proptest::prop_assert_eq!(&reference.familiar().parse::<Reference>().unwrap(), &reference);
            }
        }
    }
}
