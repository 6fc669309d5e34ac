//! Authentication with one registry: which scheme it wants, and tokens by scope.
//!
//! Nothing is sent before the registry asked for it. Tokens are fetched once per set of scopes, whoever waits, and again when
//! they expire or are refused.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::Method;
use reqwest::header::{ACCEPT, CONTENT_TYPE, HeaderMap, HeaderValue, WWW_AUTHENTICATE};
use serde::Deserialize;
use url::Url;

use crate::challenge;
use crate::error::Asked;
use crate::http::is_loopback;
use crate::transport::{Body, Endpoint, Request, authority};
use crate::{Credential, CredentialSource, Error, Event};

const CLIENT_ID: &str = "rbuild";
const TOKEN_BODY_MAX: u64 = 1 << 20;

/// What one request is sent with.
#[derive(Default)]
pub(crate) struct Grant {
    pub(crate) header: Option<HeaderValue>,
    /// Whether a credential of the user's stands behind it.
    pub(crate) authenticated: bool,
    /// Whether a token server accepted that credential.
    pub(crate) by_token_server: bool,
    /// Whether it was made for this very request, so that making another is pointless.
    fresh: bool,
    /// Texts that must not be shown even if the server repeats them.
    pub(crate) secrets: Vec<String>,
    /// Why there is no credential although one is configured.
    pub(crate) note: String,
    /// The credential behind it.
    credential: Option<Credential>,
}

/// The scheme a registry wants.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Wanted {
    Basic,
    Bearer { realm: Url, service: Option<String> },
}

/// Knows how to be let in by one registry.
pub(crate) struct Authorizer {
    registry: String,
    source: Arc<dyn CredentialSource>,
    wanted: Mutex<Option<Wanted>>,
    found: tokio::sync::Mutex<HashMap<String, Found>>,
    tokens: Mutex<HashMap<String, Arc<tokio::sync::Mutex<Slot>>>>,
}

#[derive(Clone, Default)]
struct Found {
    credential: Option<Credential>,
    note: String,
}

/// The token for one set of scopes.
#[derive(Default)]
struct Slot {
    token: Option<Token>,
    /// Scopes the registry asked for beyond those we thought of.
    extra: Vec<String>,
}

struct Token {
    header: HeaderValue,
    text: String,
    expires: Instant,
    authenticated: bool,
}

#[derive(Deserialize)]
struct TokenAnswer {
    #[serde(default)]
    token: Option<String>,
    #[serde(default)]
    access_token: Option<String>,
    /// A number; some servers quote it.
    #[serde(default)]
    expires_in: serde_json::Value,
}

impl Authorizer {
    pub(crate) fn new(registry: &str, source: Arc<dyn CredentialSource>) -> Self {
        Self {
            registry: registry.to_owned(),
            source,
            wanted: Mutex::default(),
            found: tokio::sync::Mutex::default(),
            tokens: Mutex::default(),
        }
    }

    /// What to send with a request, as far as the registry has told what it wants.
    pub(crate) async fn grant(&self, endpoint: &Endpoint, request: &Request<'_>) -> Result<Grant, Error> {
        let Some(wanted) = lock(&self.wanted).clone() else { return Ok(Grant::default()) };
        let Found { credential, note } = self.credential(endpoint, &request.repository).await;
        match (wanted, credential) {
            (_, Some(Credential::RegistryToken(token))) => Ok(Grant {
                header: Some(header(endpoint, "Bearer", token.expose())?),
                authenticated: true,
                by_token_server: false,
                fresh: true,
                secrets: vec![token.expose().to_owned()],
                note,
                credential: Some(Credential::RegistryToken(token)),
            }),
            (Wanted::Basic, Some(Credential::Password { username, password })) => {
                let encoded = STANDARD.encode(format!("{username}:{}", password.expose()));
                Ok(Grant {
                    header: Some(header(endpoint, "Basic", &encoded)?),
                    authenticated: true,
                    by_token_server: false,
                    fresh: true,
                    secrets: vec![password.expose().to_owned(), encoded],
                    note,
                    credential: Some(Credential::Password { username, password }),
                })
            }
            (Wanted::Basic, Some(Credential::IdentityToken(_))) => Ok(Grant {
                fresh: true,
                note: "there is an identity token, but the registry wants a user name and a password".into(),
                ..Grant::default()
            }),
            (Wanted::Basic, None) => Ok(Grant { fresh: true, note, ..Grant::default() }),
            (Wanted::Bearer { realm, service }, credential) => {
                self.token_grant(endpoint, request, &realm, service.as_deref(), credential, note).await
            }
        }
    }

    async fn token_grant(
        &self,
        endpoint: &Endpoint,
        request: &Request<'_>,
        realm: &Url,
        service: Option<&str>,
        credential: Option<Credential>,
        note: String,
    ) -> Result<Grant, Error> {
        let slot = self.slot(request);
        let mut slot = slot.lock().await;
        let (mut credential, mut note) = (credential, note);
        let mut fresh = false;
        if slot.token.as_ref().is_none_or(|token| token.expires <= Instant::now()) {
            let mut scopes = request.scopes.clone();
            scopes.extend(slot.extra.iter().filter(|extra| !request.scopes.contains(extra)).cloned());
            let mut token = fetch(endpoint, realm, service, &scopes, credential.as_ref(), &note).await;
            if matches!(token, Err(Error::Unauthorized { .. } | Error::Denied { .. }))
                && self.renewed(&request.repository, credential.as_ref()).await
            {
                Found { credential, note } = self.credential(endpoint, &request.repository).await;
                token = fetch(endpoint, realm, service, &scopes, credential.as_ref(), &note).await;
            }
            slot.token = Some(token?);
            fresh = true;
        }
        let mut secrets: Vec<String> = credential.iter().map(|c| c.secret().to_owned()).collect();
        let Some(token) = &slot.token else { return Ok(Grant::default()) };
        secrets.push(token.text.clone());
        let header = Some(token.header.clone());
        let authenticated = token.authenticated;
        Ok(Grant { header, authenticated, by_token_server: authenticated, fresh, secrets, note, credential })
    }

    /// Learns from a 401. Says whether it makes sense to ask again.
    pub(crate) async fn rejected(
        &self,
        endpoint: &Endpoint,
        request: &Request<'_>,
        grant: &Grant,
        headers: &HeaderMap,
    ) -> Result<bool, Error> {
        let (wanted, scope) = choose(endpoint, request, headers)?;
        let Some(wanted) = wanted else { return Ok(false) };
        let changed = lock(&self.wanted).replace(wanted.clone()) != Some(wanted.clone());
        let mut news = changed || !grant.fresh;
        // What a token server took is not what is wrong.
        if !grant.by_token_server {
            news |= self.renewed(&request.repository, grant.credential.as_ref()).await;
        }
        if let Wanted::Bearer { .. } = wanted {
            let slot = self.slot(request);
            let mut slot = slot.lock().await;
            // Another task may have got a new token meanwhile; that one is not dropped.
            if slot.token.as_ref().is_some_and(|token| Some(&token.header) == grant.header.as_ref()) {
                slot.token = None;
            }
            for extra in scope.split_whitespace() {
                if !slot.extra.iter().any(|known| known == extra) && !covered(extra, &request.scopes) {
                    slot.extra.push(extra.to_owned());
                    news = true;
                }
            }
        }
        Ok(news)
    }

    /// Learns from a 403, with which some registries answer a credential that has expired. Says whether it makes sense to ask again.
    pub(crate) async fn forbidden(&self, request: &Request<'_>, grant: &Grant) -> bool {
        !grant.by_token_server && self.renewed(&request.repository, grant.credential.as_ref()).await
    }

    /// Looks for another credential than one that was refused: it may have been good for some hours only, and the build is long.
    async fn renewed(&self, repository: &str, refused: Option<&Credential>) -> bool {
        let Some(refused) = refused else { return false };
        let mut found = self.found.lock().await;
        let Some(known) = found.get_mut(repository) else { return false };
        if known.credential.as_ref() == Some(refused) {
            // A look-up that fails leaves the refusal to be told.
            let Ok(Some(now)) = self.source.renew(&self.registry, repository).await else { return false };
            known.credential = Some(now);
        }
        // Another task may have been here before.
        known.credential.as_ref() != Some(refused)
    }

    fn slot(&self, request: &Request<'_>) -> Arc<tokio::sync::Mutex<Slot>> {
        lock(&self.tokens).entry(request.scopes.join(" ")).or_default().clone()
    }

    /// Looks a credential up, once per repository. A failing look-up becomes a note: much can be had anonymously.
    async fn credential(&self, endpoint: &Endpoint, repository: &str) -> Found {
        let mut found = self.found.lock().await;
        if let Some(found) = found.get(repository) {
            return found.clone();
        }
        let result = match self.source.get(&self.registry, repository).await {
            Ok(credential) => Found { credential, note: String::new() },
            Err(error) => {
                let event = Event::CredentialsUnavailable { host: self.registry.clone(), error: error.to_string() };
                endpoint.shared.settings.emit(&event);
                Found { credential: None, note: error.to_string() }
            }
        };
        found.insert(repository.to_owned(), result.clone());
        result
    }
}

/// Whether a scope like `repository:a/b:pull` is contained in one of `scopes`.
fn covered(scope: &str, scopes: &[String]) -> bool {
    let split = |scope: &str| {
        let (resource, actions) = scope.rsplit_once(':')?;
        Some((resource.to_owned(), actions.split(',').map(str::to_owned).collect::<Vec<_>>()))
    };
    let Some((resource, actions)) = split(scope) else { return false };
    scopes.iter().filter_map(|known| split(known)).any(|(r, a)| r == resource && actions.iter().all(|x| a.contains(x)))
}

/// Chooses among the challenges of a 401: Bearer if it can be used, else Basic. Also returns the scope it names.
fn choose(endpoint: &Endpoint, request: &Request<'_>, headers: &HeaderMap) -> Result<(Option<Wanted>, String), Error> {
    let values = headers.get_all(WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok());
    let challenges: Vec<_> = values.flat_map(challenge::parse).collect();
    let bearers = challenges.iter().filter(|c| c.scheme == "bearer");
    let mut usable = bearers.filter_map(|bearer| Some((bearer, Url::parse(bearer.param("realm")?).ok()?)));
    if let Some((bearer, realm)) = usable.next() {
        check_realm(endpoint, request, &realm)?;
        let service = bearer.param("service").map(str::to_owned);
        return Ok((Some(Wanted::Bearer { realm, service }), bearer.param("scope").unwrap_or_default().to_owned()));
    }
    let basic = challenges.iter().any(|c| c.scheme == "basic");
    Ok((basic.then_some(Wanted::Basic), String::new()))
}

/// A token server is spoken to over TLS, unless the user said that the registry is not, or both are on this machine.
fn check_realm(endpoint: &Endpoint, request: &Request<'_>, realm: &Url) -> Result<(), Error> {
    let host = authority(realm);
    let allowed = match realm.scheme() {
        "https" => true,
        "http" => endpoint.http_configured || (is_loopback(&endpoint.host) && is_loopback(&host)),
        _ => false,
    };
    if allowed && realm.username().is_empty() && realm.password().is_none() && realm.host_str().is_some() {
        return Ok(());
    }
    Err(Error::InvalidResponse {
        asked: Asked::boxed(&endpoint.host, &request.what),
        why: format!("it names a token server at {host} that is not reached by HTTPS; no credentials are sent there"),
    })
}

/// Gets a token: by POST for an identity token (OAuth2), else by GET, with the password if there is one.
async fn fetch(
    endpoint: &Endpoint,
    realm: &Url,
    service: Option<&str>,
    scopes: &[String],
    credential: Option<&Credential>,
    note: &str,
) -> Result<Token, Error> {
    let what = match scopes {
        [] => "access token".to_owned(),
        scopes => format!("access token for {}", scopes.join(" ")),
    };
    let mut request = Request::get(realm.clone(), what);
    request.headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
    let mut authorization = None;
    let mut secrets = Vec::new();
    if let Some(Credential::IdentityToken(token)) = credential {
        let mut form = url::form_urlencoded::Serializer::new(String::new());
        form.append_pair("grant_type", "refresh_token").append_pair("client_id", CLIENT_ID);
        form.append_pair("refresh_token", token.expose());
        form.extend_pairs(service.map(|service| ("service", service)));
        if !scopes.is_empty() {
            form.append_pair("scope", &scopes.join(" "));
        }
        request.method = Method::POST;
        request.headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"));
        request.body = Body::Bytes(form.finish().into());
        secrets.push(token.expose().to_owned());
    } else {
        let mut query = request.url.query_pairs_mut();
        query.extend_pairs(service.map(|service| ("service", service)));
        query.extend_pairs(scopes.iter().map(|scope| ("scope", scope)));
        query.append_pair("client_id", CLIENT_ID);
        if let Some(Credential::Password { username, password }) = credential {
            query.append_pair("account", username);
            let encoded = STANDARD.encode(format!("{username}:{}", password.expose()));
            authorization = Some(header(endpoint, "Basic", &encoded)?);
            secrets.extend([password.expose().to_owned(), encoded]);
        }
        drop(query);
    }
    let authenticated = credential.is_some();
    // Failures are retried with the request that the token is for.
    let response = endpoint.execute(&request, authorization.as_ref()).await?;
    if !response.status().is_success() {
        let asked = Asked::boxed(authority(response.url()), &request.what);
        return Err(endpoint.status_error(response, asked, &secrets, authenticated, note).await);
    }
    let body = endpoint.read(response, TOKEN_BODY_MAX, &request.what).await?;
    let invalid =
        |why: &str| Error::InvalidResponse { asked: Asked::boxed(authority(realm), &request.what), why: why.into() };
    // The parser's own words could quote the token.
    let answer: TokenAnswer = serde_json::from_slice(&body).map_err(|_| invalid("the answer is not a token"))?;
    let text = [answer.token, answer.access_token].into_iter().flatten().find(|token| !token.is_empty());
    let text = text.ok_or_else(|| invalid("the answer has no token"))?;
    let expires_in = match &answer.expires_in {
        serde_json::Value::String(text) => text.trim().parse().ok(),
        number => number.as_f64(),
    };
    let lifetime = Duration::from_secs_f64(expires_in.filter(|s| (0.0..1e6).contains(s)).unwrap_or(60.0));
    Ok(Token {
        header: header(endpoint, "Bearer", &text)?,
        text,
        expires: Instant::now() + lifetime - (lifetime / 4).min(Duration::from_secs(10)),
        authenticated,
    })
}

/// An `Authorization` header that the HTTP library will not show either.
fn header(endpoint: &Endpoint, scheme: &str, value: &str) -> Result<HeaderValue, Error> {
    let mut header = HeaderValue::from_str(&format!("{scheme} {value}")).map_err(|_| Error::InvalidResponse {
        asked: Asked::boxed(&endpoint.host, "authentication"),
        why: "the token has characters that cannot be sent".into(),
    })?;
    header.set_sensitive(true);
    Ok(header)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes_cover_each_other() {
        let have = ["repository:a/b:pull,push".to_owned()];
        for (scope, want) in [
            ("repository:a/b:pull", true),
            ("repository:a/b:push,pull", true),
            ("repository:a/b:delete", false),
            ("repository:a/c:pull", false),
            ("nonsense", false),
        ] {
            assert_eq!(covered(scope, &have), want, "{scope}");
        }
    }
}
