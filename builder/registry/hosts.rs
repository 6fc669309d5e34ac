//! Which hosts are asked for a repository, in which order: from our own configuration, else from containerd's `hosts.toml`,
//! else from `registries.conf` and docker's `daemon.json`.

use std::sync::Arc;

use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use url::Url;

use crate::hosts_toml::{self, Host};
use crate::http::{Tls, is_loopback, is_near};
use crate::registries_conf::{Mirror, Pull, Rule};
use crate::transport::{Endpoint, Scheme, Shared};
use crate::{CredentialSource, DOCKER_HUB, Error};

/// What a host is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Need {
    /// A manifest by tag.
    Tag,
    /// Content by digest.
    Digest,
    /// To take something.
    Push,
}

/// One host, as it is to be spoken to.
#[derive(Clone, Default)]
pub(crate) struct HostSpec {
    /// `host[:port]`, as connected to and as shown.
    pub(crate) host: String,
    /// Under which credentials are kept.
    pub(crate) registry: String,
    /// `None`: found out.
    pub(crate) scheme: Option<Scheme>,
    /// The path of the API: `v2`.
    pub(crate) api: String,
    /// What of a repository's path is taken away at its beginning.
    pub(crate) strip: String,
    /// What stands there instead.
    pub(crate) prefix: String,
    /// The registry that it stands in for.
    pub(crate) mirror_of: Option<String>,
    /// Whether the user said that it speaks plain HTTP.
    pub(crate) http: bool,
    pub(crate) tls: Tls,
    pub(crate) headers: HeaderMap,
    pub(crate) refuses: Vec<Need>,
    /// An image chose it: nobody is shown anything of ours there, and it leads to nothing near.
    pub(crate) of_image: bool,
}

impl HostSpec {
    /// The repository's path on this host.
    pub(crate) fn path_of(&self, path: &str) -> String {
        let rest = match path.strip_prefix(self.strip.as_str()) {
            Some(rest) if !self.strip.is_empty() => rest.trim_start_matches('/'),
            _ => path,
        };
        match (self.prefix.as_str(), rest) {
            ("", rest) => rest.to_owned(),
            (prefix, "") => prefix.to_owned(),
            (prefix, rest) => format!("{prefix}/{rest}"),
        }
    }

    /// The registry itself, by our own configuration.
    pub(crate) fn origin(shared: &Shared, registry: &str) -> Result<Self, Error> {
        // Docker Hub's API has another host than its images' names.
        let host = if registry == DOCKER_HUB { "registry-1.docker.io" } else { registry };
        let checked = crate::reference::check_registry(host);
        checked.map_err(|why| Error::Settings { host: registry.to_owned(), why })?;
        Self::configured(shared, registry, host, "", None, None)
    }

    /// Whom an image has asked for a layer. `None`: nobody is, since an image cannot have this machine asked, or its segment with what a
    /// cloud tells its machines there, or anybody without TLS. The user can, who says of a host that it is insecure. A name that
    /// turns out to lead here is of no use to an image: what listens here has no certificate for it.
    pub(crate) fn of_image(shared: &Shared, url: &Url) -> Result<Option<Self>, Error> {
        let host = crate::transport::authority(url);
        let rules = shared.rules().map_err(|why| Error::Settings { host: host.clone(), why })?;
        let is_insecure = Rule::of(rules, &host, "").is_some_and(|rule| rule.insecure && !rule.moves());
        let mut spec = Self::origin(shared, &host)?;
        spec.tls.insecure |= is_insecure;
        let is_meant = spec.http || spec.tls.insecure;
        if !is_meant && (url.scheme() != "https" || is_near(url)) {
            return Ok(None);
        }
        spec.scheme = Some(if url.scheme() == "http" { Scheme::Http } else { Scheme::Https });
        spec.tls.keypair.clear();
        spec.of_image = true;
        Ok(Some(spec))
    }

    /// A mirror of our own configuration: `host[:port][/prefix]`, with an optional scheme.
    fn mirror(shared: &Shared, mirror: &str, of: &str) -> Result<Self, Error> {
        let (fixed, rest) = match mirror.split_once("://") {
            Some(("http", rest)) => (Some(Scheme::Http), rest),
            Some(("https", rest)) => (Some(Scheme::Https), rest),
            _ => (None, mirror),
        };
        let (host, prefix) = split_location(rest, of)?;
        Self::configured(shared, host, host, prefix, fixed, Some(of.to_owned()))
    }

    fn configured(
        shared: &Shared,
        registry: &str,
        host: &str,
        prefix: &str,
        fixed: Option<Scheme>,
        mirror_of: Option<String>,
    ) -> Result<Self, Error> {
        let names: &[&str] = if registry == host { &[registry] } else { &[registry, host] };
        let http = names.iter().find_map(|name| shared.settings.registries.get(*name)?.http);
        let tls = Tls::of(&shared.settings, names)?;
        let scheme = fixed.or(match http {
            Some(true) if !tls.insecure => Some(Scheme::Http),
            Some(true) => None,
            Some(false) => Some(Scheme::Https),
            None if is_loopback(host) => None,
            None => Some(Scheme::Https),
        });
        Ok(Self {
            host: host.to_owned(),
            registry: registry.to_owned(),
            scheme,
            api: "v2".into(),
            prefix: prefix.to_owned(),
            mirror_of,
            http: http == Some(true) || scheme == Some(Scheme::Http),
            tls,
            ..Self::default()
        })
    }

    /// A location of `registries.conf` in the place of `strip`.
    fn location(shared: &Shared, location: &str, strip: &str, insecure: bool, of: &str) -> Result<Self, Error> {
        let (host, prefix) = split_location(location, of)?;
        let host = if crate::reference::is_docker_hub(host) { DOCKER_HUB } else { host };
        let mut spec = Self { strip: strip.to_owned(), prefix: prefix.to_owned(), ..Self::origin(shared, host)? };
        if insecure {
            // Any certificate, and plain HTTP where there is no TLS.
            spec.tls.insecure = true;
            spec.http = true;
            spec.scheme = None;
        }
        Ok(spec)
    }

    /// A host of containerd's.
    fn containerd(shared: &Shared, host: &Host, of: &str, is_server: bool) -> Result<Self, Error> {
        let invalid = |why: String| Error::Settings { host: of.to_owned(), why };
        let authority = crate::transport::authority(&host.url);
        let names: Vec<&str> = if is_server { vec![of, &authority] } else { vec![&authority] };
        let mut tls = Tls::of(&shared.settings, &names)?;
        tls.insecure |= host.skip_verify;
        tls.ca.extend(host.ca.iter().cloned());
        tls.keypair.extend(host.client.iter().cloned());
        let mut headers = HeaderMap::new();
        for (name, value) in &host.headers {
            let header = name.parse::<HeaderName>().ok().zip(HeaderValue::from_str(value).ok());
            let (name, mut value) = header.ok_or_else(|| invalid(format!("{name:?} is no header")))?;
            value.set_sensitive(true);
            headers.append(name, value);
        }
        let path = host.url.path().trim_matches('/');
        let api = match (host.override_path, path) {
            (true, path) => path.to_owned(),
            (false, "") => "v2".to_owned(),
            (false, path) => format!("{path}/v2"),
        };
        let able = [(Need::Tag, host.resolve), (Need::Digest, host.pull), (Need::Push, host.push)];
        let is_http = host.url.scheme() == "http";
        Ok(Self {
            registry: if is_server { of.to_owned() } else { authority.clone() },
            host: authority,
            scheme: Some(if is_http { Scheme::Http } else { Scheme::Https }),
            api,
            mirror_of: (!is_server).then(|| of.to_owned()),
            http: is_http,
            tls,
            headers,
            refuses: able.into_iter().filter(|(_, able)| !able).map(|(need, _)| need).collect(),
            ..Self::default()
        })
    }
}

/// `host[:port][/path]`
fn split_location<'a>(location: &'a str, of: &str) -> Result<(&'a str, &'a str), Error> {
    let location = location.trim_end_matches('/');
    let (host, prefix) = location.split_once('/').unwrap_or((location, ""));
    let checked = crate::reference::check_registry(host)
        .and_then(|()| if prefix.is_empty() { Ok(()) } else { crate::reference::check_path(prefix) });
    checked.map_err(|why| Error::Settings { host: of.to_owned(), why: format!("mirror {location:?}: {why}") })?;
    Ok((host, prefix))
}

/// The hosts for a repository, mirrors first; the last one is the registry, or what stands in its place.
pub(crate) fn of(shared: &Arc<Shared>, registry: &str, path: &str) -> Result<Vec<Arc<Endpoint>>, Error> {
    let specs = specs(shared, registry, path)?;
    let credentials: &Arc<dyn CredentialSource> = &shared.credentials;
    Ok(specs.into_iter().map(|spec| Arc::new(Endpoint::new(shared.clone(), credentials.clone(), spec))).collect())
}

fn specs(shared: &Shared, registry: &str, path: &str) -> Result<Vec<HostSpec>, Error> {
    let invalid = |why: String| Error::Settings { host: registry.to_owned(), why };
    let settings = &shared.settings;
    let mut specs = Vec::new();
    if let Some(own) = settings.registries.get(registry)
        && !own.mirrors.is_empty()
    {
        for mirror in &own.mirrors {
            specs.push(HostSpec::mirror(shared, mirror, registry)?);
        }
        specs.push(HostSpec::origin(shared, registry)?);
        return Ok(specs);
    }
    for dir in &settings.certs_dirs {
        let Some(file) = hosts_toml::read(dir, registry).map_err(invalid)? else { continue };
        for host in &file.hosts {
            specs.push(HostSpec::containerd(shared, host, registry, false)?);
        }
        specs.push(match &file.server {
            Some(server) => HostSpec::containerd(shared, server, registry, true)?,
            None => HostSpec::origin(shared, registry)?,
        });
        return Ok(specs);
    }
    let rules = shared.rules().map_err(invalid)?;
    let Some(rule) = Rule::of(rules, registry, path) else { return Ok(vec![HostSpec::origin(shared, registry)?]) };
    if rule.blocked {
        return Err(invalid(format!("it is blocked by {}", rule.file.display())));
    }
    let strip = rule.matched(registry, path).unwrap_or_default();
    for Mirror { location, insecure, pull } in &rule.mirrors {
        let mut spec = HostSpec::location(shared, location, &strip, *insecure, registry)?;
        spec.mirror_of = Some(registry.to_owned());
        spec.refuses = match pull {
            Pull::All => vec![Need::Push],
            Pull::DigestOnly => vec![Need::Push, Need::Tag],
            Pull::TagOnly => vec![Need::Push, Need::Digest],
        };
        specs.push(spec);
    }
    let location = if rule.moves() { rule.location.clone() } else { registry.to_owned() };
    let strip = if rule.moves() { strip } else { String::new() };
    specs.push(HostSpec::location(shared, &location, &strip, rule.insecure, registry)?);
    Ok(specs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Settings;

    #[test]
    fn an_image_leads_only_where_the_user_lets_it_and_shows_nothing() {
        let dir = tempfile::tempdir().unwrap();
        for host in ["inner.example", "127.0.0.1:5000"] {
            std::fs::create_dir(dir.path().join(host)).unwrap();
            for name in ["a.cert", "a.key", "a.crt"] {
                std::fs::write(dir.path().join(host).join(name), "x").unwrap();
            }
        }
        let daemon_json = dir.path().join("daemon.json");
        std::fs::write(&daemon_json, r#"{"insecure-registries": ["127.0.0.1:5000", "plain.example"]}"#).unwrap();
        let settings =
            Settings { certs_dirs: vec![dir.path().to_owned()], daemon_json: vec![daemon_json], ..Settings::default() };
        let shared = Shared::new(settings, crate::StaticCredentials::anonymous());
        let of = |url: &str| HostSpec::of_image(&shared, &Url::parse(url).unwrap()).unwrap();
        let spec = of("https://inner.example/x").unwrap();
        assert!(spec.of_image && spec.tls.keypair.is_empty() && spec.tls.ca.len() == 1);
        for (url, want) in [
            ("http://inner.example/x", false),
            ("http://plain.example/x", true),
            ("http://127.0.0.1:5000/x", true),
            ("http://127.0.0.1:5001/x", false),
            ("https://127.0.0.1:5001/x", false),
            ("https://169.254.169.254/x", false),
        ] {
            assert_eq!(of(url).is_some(), want, "{url}");
        }
    }

    #[test]
    fn prefixes_of_paths_are_replaced() {
        for (strip, prefix, path, want) in [
            ("", "", "a/b", "a/b"),
            ("", "hub", "a/b", "hub/a/b"),
            ("a", "", "a/b", "b"),
            ("a", "x/y", "a/b", "x/y/b"),
            ("a/b", "x", "a/b", "x"),
        ] {
            let spec = HostSpec { strip: strip.into(), prefix: prefix.into(), ..HostSpec::default() };
            assert_eq!(spec.path_of(path), want);
        }
    }
}
