//! The client: what all its exchanges share, and the small ones. Pulling is in `pull.rs`, pushing in `push.rs`.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

use reqwest::Method;
use reqwest::header::LINK;
use serde::Deserialize;

use crate::error::Asked;
use crate::hosts::{HostSpec, Need};
use crate::registries_conf::Rule;
use crate::transport::{Endpoint, Request, Shared, same_origin};
use crate::{Credential, CredentialSource, Digest, Error, Reference, Repository, Settings, StaticCredentials};

const TAGS_BODY_MAX: u64 = 16 << 20;
const TAGS_PAGES_MAX: usize = 1000;

/// Talks to registries. Cheap to clone; clones share connections, tokens and limits.
#[derive(Clone)]
pub struct Client {
    pub(crate) shared: Arc<Shared>,
    endpoints: Arc<Mutex<HashMap<String, Hosts>>>,
    /// Mirrors are not asked.
    directly: bool,
}

/// The hosts of a repository, in the order in which they are asked: mirrors, then the registry itself.
type Hosts = Arc<Vec<Arc<Endpoint>>>;

/// How far a transfer is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TransferEvent {
    /// The blob.
    pub digest: Digest,
    /// Bytes transferred so far; goes back when an upload starts over.
    pub done: u64,
    /// Bytes there are.
    pub total: u64,
}

/// Told about progress, often; should be cheap.
pub type Progress = Arc<dyn Fn(TransferEvent) + Send + Sync>;

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("settings", &self.shared.settings).finish_non_exhaustive()
    }
}

impl Client {
    /// A client with these settings. Nothing is read or connected to before it is needed.
    pub fn new(settings: Settings, credentials: Arc<dyn CredentialSource>) -> Self {
        Self { shared: Arc::new(Shared::new(settings, credentials)), endpoints: Arc::default(), directly: false }
    }

    /// The same client, which asks nobody but the host that it pushes to. Who is going to replace what a name leads to must
    /// see it as it is, and a mirror may show what it was.
    #[must_use]
    pub fn directly(&self) -> Self {
        Self { directly: true, ..self.clone() }
    }

    /// Whether the registry answers and lets us in, with the configured credentials if it wants any.
    ///
    /// # Errors
    /// Says why not.
    pub async fn ping(&self, registry: &str) -> Result<(), Error> {
        base(self.origin(registry, "")?.as_ref(), "the registry API").await
    }

    /// Checks a credential with the registry, without using or storing it otherwise.
    ///
    /// # Errors
    /// [`Error::Unauthorized`] when it is refused, or why it could not be checked.
    pub async fn login(&self, registry: &str, credential: Credential) -> Result<(), Error> {
        let credentials = StaticCredentials::one(registry, credential);
        let spec = HostSpec::origin(&self.shared, registry)?;
        let endpoint = Endpoint::new(self.shared.clone(), credentials, spec);
        base(&endpoint, "login").await
    }

    /// The tags of a repository.
    ///
    /// # Errors
    /// When they cannot be listed.
    pub async fn tags(&self, repository: &Repository) -> Result<Vec<String>, Error> {
        #[derive(Deserialize)]
        struct Page {
            #[serde(default)]
            tags: Option<Vec<String>>,
        }
        let endpoint = self.origin(repository.registry(), repository.path())?;
        let what = format!("tags of {repository}");
        let mut request = endpoint.request(Method::GET, repository, "tags/list", "pull", what).await?;
        request.url.query_pairs_mut().append_pair("n", "1000");
        let mut tags = Vec::new();
        for _ in 0..TAGS_PAGES_MAX {
            let (_, headers, body) = endpoint.call_for_bytes(&request, TAGS_BODY_MAX).await?;
            let invalid =
                |why: String| Error::InvalidResponse { asked: Asked::boxed(&endpoint.host, &request.what), why };
            let page: Page = serde_json::from_slice(&body).map_err(|e| invalid(format!("not a list of tags: {e}")))?;
            tags.extend(page.tags.unwrap_or_default());
            let next = headers.get(LINK).and_then(|link| link.to_str().ok()).and_then(next_link);
            let Some(next) = next else { return Ok(tags) };
            let next = request.url.join(next).map_err(|_| invalid("a Link that is no URL".into()))?;
            if !same_origin(&next, &request.url) {
                return Err(invalid("the next page of tags is on another host".into()));
            }
            request.url = next;
        }
        Ok(tags)
    }

    /// Deletes a manifest by digest, or a tag where the registry can delete tags.
    ///
    /// # Errors
    /// When the registry refuses; many do, or must be configured to allow it.
    pub async fn delete(&self, reference: &Reference) -> Result<(), Error> {
        let endpoint = self.origin(reference.registry(), reference.repository().path())?;
        let tail = format!("manifests/{}", reference.locator());
        let what = format!("deletion of {reference}");
        let request = endpoint.request(Method::DELETE, reference.repository(), &tail, "pull,push,delete", what).await?;
        endpoint.call(&request).await.map(drop)
    }

    /// The host that takes what is pushed: the registry itself, unless the configuration names another.
    pub(crate) fn origin(&self, registry: &str, path: &str) -> Result<Arc<Endpoint>, Error> {
        let hosts = self.hosts(registry, path)?;
        // Of containerd's hosts a mirror may be one that is pushed to.
        let named = hosts.iter().find(|host| host.mirror_of.is_none() && host.serves(Need::Push));
        named.or(hosts.iter().rfind(|host| host.serves(Need::Push))).cloned().ok_or_else(|| Error::Settings {
            host: registry.to_owned(),
            why: "no host of it may be pushed to, by hosts.toml".into(),
        })
    }

    /// Hosts that can be trusted, mirrors first where they may be asked.
    pub(crate) fn hosts_to_ask(&self, registry: &str, path: &str, need: Need) -> Result<Vec<Arc<Endpoint>>, Error> {
        if self.directly {
            return Ok(vec![self.origin(registry, path)?]);
        }
        let trusted = |host: &&Arc<Endpoint>| host.mirror_of.is_none() || !host.distrusted.load(Ordering::Relaxed);
        let hosts = self.hosts(registry, path)?;
        let hosts: Vec<_> = hosts.iter().filter(|host| host.serves(need)).filter(trusted).cloned().collect();
        if hosts.is_empty() {
            let why = "no host of it is left to ask, by the configuration".into();
            return Err(Error::Settings { host: registry.to_owned(), why });
        }
        Ok(hosts)
    }

    fn hosts(&self, registry: &str, path: &str) -> Result<Hosts, Error> {
        // Rules may be for one repository, but all of a registry share connections and tokens where none is.
        let rule = self.shared.rules().ok().and_then(|rules| Rule::of(rules, registry, path));
        let key = format!("{registry} {}", rule.map_or("", |rule| rule.prefix.as_str()));
        let mut endpoints = self.endpoints.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(hosts) = endpoints.get(&key) {
            return Ok(hosts.clone());
        }
        let hosts = Arc::new(crate::hosts::of(&self.shared, registry, path)?);
        Ok(endpoints.entry(key).or_insert(hosts).clone())
    }
}

/// Asks the API's base, which every registry answers to those it lets in.
async fn base(endpoint: &Endpoint, what: &str) -> Result<(), Error> {
    let request = Request::get(endpoint.url("").await?, what.to_owned());
    endpoint.call(&request).await.map(drop)
}

/// The target of `<target>; rel="next"`.
pub(crate) fn next_link(header: &str) -> Option<&str> {
    header.split(',').find_map(|link| {
        let (target, params) = link.split_once('>')?;
        let next = params.split(';').any(|p| matches!(p.trim(), "rel=\"next\"" | "rel=next"));
        next.then(|| target.trim().strip_prefix('<')).flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_page_is_found() {
        for (header, want) in [
            (r#"</v2/a/tags/list?last=x&n=1>; rel="next""#, Some("/v2/a/tags/list?last=x&n=1")),
            (r#"</p>; rel=prev, </n>; rel=next"#, Some("/n")),
            (r#"</p>; rel="prev""#, None),
            ("nonsense", None),
        ] {
            assert_eq!(next_link(header), want, "{header}");
        }
    }
}
