//! HTTP clients: one per set of TLS settings, with redirects, retries and time-outs left to our own transport.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock};

use reqwest::{Certificate, Identity, NoProxy, Proxy};
use url::{Host, Url};

use crate::{Error, KeyPair, Settings};

/// What decides whether a server's certificate is accepted, and which we show.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(crate) struct Tls {
    pub(crate) insecure: bool,
    pub(crate) ca: Vec<PathBuf>,
    pub(crate) keypair: Vec<(PathBuf, PathBuf)>,
}

impl Tls {
    /// The settings of a registry under any of its names, from the config file and the certificate directories.
    pub(crate) fn of(settings: &Settings, names: &[&str]) -> Result<Self, Error> {
        let mut tls = Self::default();
        let mut dirs = Vec::new();
        for name in names {
            if let Some(config) = settings.registries.get(*name) {
                tls.insecure |= config.insecure == Some(true);
                tls.ca.extend(config.ca.iter().cloned());
                tls.keypair.extend(config.keypair.iter().map(|KeyPair { key, cert }| (cert.clone(), key.clone())));
                dirs.extend(config.tlsconfigdir.iter().cloned());
            }
            dirs.extend(settings.certs_dirs.iter().map(|dir| dir.join(name)));
        }
        for dir in dirs {
            tls.add_dir(&dir).map_err(|why| Error::Settings { host: names.join(", "), why })?;
        }
        Ok(tls)
    }

    fn add_dir(&mut self, dir: &Path) -> Result<(), String> {
        let entries = match std::fs::read_dir(dir) {
            Ok(entries) => entries,
            Err(error)
                if matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::PermissionDenied) =>
            {
                return Ok(());
            }
            Err(error) => return Err(format!("cannot read {}: {error}", dir.display())),
        };
        let mut paths: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
        paths.sort();
        for path in paths {
            match path.extension().and_then(|e| e.to_str()) {
                Some("crt") => self.ca.push(path),
                Some("cert") => {
                    let key = path.with_extension("key");
                    if !key.exists() {
                        return Err(format!("{} has no key {} beside it", path.display(), key.display()));
                    }
                    self.keypair.push((path, key));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// The authorities, and the same as they stand in their files.
    fn certificates(&self) -> Result<(Vec<Certificate>, Vec<Vec<u8>>), String> {
        let (mut all, mut files) = (Vec::new(), Vec::new());
        for path in &self.ca {
            let file = read(path)?;
            let parsed = Certificate::from_pem_bundle(&file).unwrap_or_default();
            if parsed.is_empty() {
                return Err(format!("{} has no PEM certificate", path.display()));
            }
            all.extend(parsed);
            files.push(file);
        }
        Ok((all, files))
    }

    /// The first client certificate; a TLS client of ours shows one. Also as text.
    fn identity(&self) -> Result<Option<(Identity, Vec<u8>)>, String> {
        let Some((cert, key)) = self.keypair.first() else { return Ok(None) };
        let mut pem = read(cert)?;
        if key != cert {
            pem.push(b'\n');
            pem.extend(read(key)?);
        }
        let identity = Identity::from_pem(&pem);
        identity
            .map(|identity| Some((identity, pem)))
            .map_err(|_| format!("{} and {} are no PEM key pair", cert.display(), key.display()))
    }
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    std::fs::read(path).map_err(|error| format!("cannot read {}: {error}", path.display()))
}

/// The clients made so far.
#[derive(Default)]
pub(crate) struct Clients(Mutex<HashMap<(Tls, bool), reqwest::Client>>);

impl Clients {
    /// The client for a host with these settings. For plain HTTP the machine's certificates are not loaded.
    pub(crate) fn get(
        &self,
        settings: &Settings,
        tls: &Tls,
        https: bool,
        host: &str,
    ) -> Result<reqwest::Client, Error> {
        let key = (tls.clone(), https);
        let mut clients = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(client) = clients.get(&key) {
            return Ok(client.clone());
        }
        let client = build(settings, tls, https).map_err(|why| Error::Settings { host: host.to_owned(), why })?;
        clients.insert(key, client.clone());
        Ok(client)
    }
}

fn build(settings: &Settings, tls: &Tls, https: bool) -> Result<reqwest::Client, String> {
    // Another part of the program may have installed a provider; any will do.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let loopback = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)].map(|ip| SocketAddr::new(ip, 0));
    let base = || -> Result<reqwest::ClientBuilder, String> {
        let mut builder = reqwest::Client::builder()
            .user_agent(&settings.user_agent)
            .redirect(reqwest::redirect::Policy::none())
            .referer(false)
            .retry(reqwest::retry::never())
            .connect_timeout(settings.connect_timeout)
            .resolve_to_addrs("localhost", &loopback)
            // One connection per transfer: a cut or slow one concerns one blob only.
            .http1_only()
            .no_proxy();
        for proxy in proxies(settings)? {
            builder = builder.proxy(proxy);
        }
        Ok(builder)
    };
    let describe = |error: reqwest::Error| crate::failure::innermost(&error);
    if !https {
        return base()?.tls_certs_only([]).build().map_err(describe);
    }
    let (certificates, files) = tls.certificates()?;
    let identity = tls.identity()?;
    if !files.is_empty() && !tls.insecure {
        // On a machine without certificates of its own there is another way, below.
        if let Ok(config) = crate::pinned::config(&files, identity.as_ref().map(|(_, pem)| pem.as_slice())) {
            return base()?.tls_backend_preconfigured(config).build().map_err(describe);
        }
    }
    let with_tls = || -> Result<reqwest::ClientBuilder, String> {
        let mut builder = base()?;
        if let Some((identity, _)) = identity.clone() {
            builder = builder.identity(identity);
        }
        Ok(builder)
    };
    if tls.insecure {
        return with_tls()?.tls_danger_accept_invalid_certs(true).build().map_err(describe);
    }
    // A machine without any certificates of its own still has those that were configured, and Mozilla's.
    match with_tls()?.tls_certs_merge(certificates.clone()).build() {
        Ok(client) => Ok(client),
        Err(_) => with_tls()?.tls_certs_only(certificates.into_iter().chain(mozilla())).build().map_err(describe),
    }
}

/// An HTTP client for what is no registry. It is made when it is first needed, for that reads all the machine's certificates.
#[derive(Debug)]
pub struct PlainClient {
    name: &'static str,
    client: OnceLock<reqwest::Client>,
}

impl PlainClient {
    /// `name` goes into the User-Agent.
    #[must_use]
    pub fn new(name: &'static str) -> Self {
        Self { name, client: OnceLock::new() }
    }

    /// The client. Mozilla's authorities stand in on a machine without any certificates, such as a container with nothing but a
    /// static binary in it.
    ///
    /// # Errors
    /// A proxy from the environment that is no URL, for one.
    pub fn get(&self) -> reqwest::Result<&reqwest::Client> {
        if let Some(client) = self.client.get() {
            return Ok(client);
        }
        let _ = rustls::crypto::ring::default_provider().install_default();
        let builder = || reqwest::Client::builder().user_agent(self.name);
        let client = builder().build().or_else(|_| builder().tls_certs_only(mozilla()).build())?;
        Ok(self.client.get_or_init(|| client))
    }
}

/// An HTTP client for whom a socket of this machine leads to every host.
///
/// # Errors
/// The library cannot be set up.
pub fn client_over_socket(path: &Path) -> reqwest::Result<reqwest::Client> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let builder = reqwest::Client::builder().unix_socket(path.to_owned()).no_proxy();
    builder.redirect(reqwest::redirect::Policy::none()).tls_certs_only([]).build()
}

/// The authorities that Mozilla's browsers trust, as of when rbuild was built.
fn mozilla() -> impl Iterator<Item = reqwest::Certificate> {
    let all = webpki_root_certs::TLS_SERVER_ROOT_CERTS.iter();
    all.filter_map(|certificate| reqwest::Certificate::from_der(certificate).ok())
}

fn proxies(settings: &Settings) -> Result<Vec<Proxy>, String> {
    let proxies = &settings.proxies;
    let none =
        NoProxy::from_string(&format!("{},localhost,127.0.0.0/8,::1", proxies.no_proxy.as_deref().unwrap_or_default()));
    let mut list = Vec::new();
    type Make = fn(String) -> reqwest::Result<Proxy>;
    let kinds: [(&str, &Option<String>, Make); 3] = [
        ("http_proxy", &proxies.http, |url| Proxy::http(url)),
        ("https_proxy", &proxies.https, |url| Proxy::https(url)),
        ("all_proxy", &proxies.all, |url| Proxy::all(url)),
    ];
    for (name, url, make) in kinds {
        if let Some(url) = url {
            let url = if url.contains("://") { url.clone() } else { format!("http://{url}") };
            let proxy = make(url).map_err(|_| format!("{name} is not the URL of a proxy"))?;
            list.push(proxy.no_proxy(none.clone()));
        }
    }
    Ok(list)
}

/// Whether a `host[:port]` is this machine.
pub(crate) fn is_loopback(authority: &str) -> bool {
    let host = match authority.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => authority.split(':').next().unwrap_or_default(),
    };
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// Whether a URL leads to this machine, or no further than its own network segment.
pub(crate) fn is_near(url: &Url) -> bool {
    let v4 = |ip: Ipv4Addr| ip.is_loopback() || ip.is_link_local() || ip.octets()[0] == 0;
    match url.host() {
        Some(Host::Domain(name)) => {
            let name = name.trim_end_matches('.');
            name == "localhost" || name.ends_with(".localhost")
        }
        Some(Host::Ipv4(ip)) => v4(ip),
        Some(Host::Ipv6(ip)) => {
            let mapped = ip.to_ipv4_mapped().is_some_and(v4);
            mapped || ip.is_loopback() || ip.is_unspecified() || ip.is_unicast_link_local()
        }
        None => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_this_machine_only() {
        for (authority, want) in [
            ("localhost", true),
            ("localhost:5000", true),
            ("127.0.0.1:5000", true),
            ("127.8.8.8", true),
            ("[::1]:5000", true),
            ("[::1]", true),
            ("128.0.0.1", false),
            ("localhost.evil.com", false),
            ("127.0.0.1.evil.com:80", false),
            ("[::2]", false),
            ("10.0.0.1:5000", false),
        ] {
            assert_eq!(is_loopback(authority), want, "{authority}");
        }
    }

    #[test]
    fn near_is_however_it_is_written() {
        for (host, want) in [
            ("localhost", true),
            ("LOCALHOST.:5000", true),
            ("a.localhost", true),
            ("127.1", true),
            ("2130706433", true),
            ("0x7f.0.0.1", true),
            ("0.0.0.0", true),
            ("169.254.169.254", true),
            ("[::1]:443", true),
            ("[::]", true),
            ("[fe80::1]", true),
            ("[::ffff:169.254.169.254]", true),
            ("localhost.example", false),
            ("10.0.0.1", false),
            ("[2001:db8::1]", false),
        ] {
            assert_eq!(is_near(&Url::parse(&format!("https://{host}/x")).unwrap()), want, "{host}");
        }
    }

    #[test]
    fn certificate_directories_are_read_as_docker_does() {
        let dir = tempfile::tempdir().unwrap();
        let host = dir.path().join("reg.local:5000");
        std::fs::create_dir(&host).unwrap();
        for name in ["a.crt", "client.cert", "client.key", "readme.txt"] {
            std::fs::write(host.join(name), "x").unwrap();
        }
        let settings = Settings { certs_dirs: vec![dir.path().to_owned()], ..Settings::default() };
        let tls = Tls::of(&settings, &["reg.local:5000"]).unwrap();
        assert_eq!(tls.ca, [host.join("a.crt")]);
        assert_eq!(tls.keypair, [(host.join("client.cert"), host.join("client.key"))]);
        assert!(tls.certificates().map(drop).unwrap_err().contains("has no PEM certificate"));
        assert_eq!(Tls::of(&settings, &["other"]).unwrap(), Tls::default());
        std::fs::remove_file(host.join("client.key")).unwrap();
        let error = Tls::of(&settings, &["reg.local:5000"]).unwrap_err().to_string();
        assert!(error.contains("has no key"), "{error}");
    }
}
