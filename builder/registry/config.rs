//! What the user can set: per registry in the config file, proxies by environment, limits by the builder.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::retry::RetryPolicy;

/// The settings of one registry, `[registry."docker.io"]` in a TOML file, in the shape of buildkitd.toml.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RegistryConfig {
    /// Hosts, with an optional path prefix, that are asked before the registry itself when pulling.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub mirrors: Vec<String>,
    /// Speak plain HTTP. Not set: HTTPS, but registries on loopback may fall back to HTTP.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http: Option<bool>,
    /// Accept any certificate; together with `http`, fall back to plain HTTP when there is no TLS.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub insecure: Option<bool>,
    /// PEM files with further certificate authorities.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ca: Vec<PathBuf>,
    /// Client certificates.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub keypair: Vec<KeyPair>,
    /// Directories with `*.crt` (authorities) and `*.cert` + `*.key` (client certificates).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tlsconfigdir: Vec<PathBuf>,
}

/// A client certificate and its private key, as paths of PEM files.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyPair {
    /// The private key.
    pub key: PathBuf,
    /// The certificate, with its chain.
    pub cert: PathBuf,
}

/// Takes events, on any thread; should be quick.
pub type EventSink = Arc<dyn Fn(&Event) + Send + Sync>;

/// How the client behaves. `Settings::default()` reads nothing from the machine; [`Settings::from_env`] does.
#[derive(Clone)]
pub struct Settings {
    /// Settings by registry (`docker.io`, `localhost:5000`); mirrors have their own entries.
    pub registries: BTreeMap<String, RegistryConfig>,
    /// Directories in which `HOST[:PORT]/*.crt`, `*.cert` and `*.key` are looked for, as Docker does, and `hosts.toml`, as
    /// containerd does.
    pub certs_dirs: Vec<PathBuf>,
    /// `registries.conf` files and directories of drop-ins, as podman reads them.
    pub registries_conf: Vec<PathBuf>,
    /// docker's `daemon.json`, the first that there is.
    pub daemon_json: Vec<PathBuf>,
    /// Proxies.
    pub proxies: Proxies,
    /// The `User-Agent` header.
    pub user_agent: String,
    /// How many blobs are downloaded, and how many uploaded, at the same time.
    pub parallel: usize,
    /// When and how often to try again.
    pub retry: RetryPolicy,
    /// How long a connection may take.
    pub connect_timeout: Duration,
    /// How long a transfer may make no progress.
    pub stall_timeout: Duration,
    /// Told what happens beside the results: which host served what, retries, failed mirrors.
    pub on_event: Option<EventSink>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            registries: BTreeMap::new(),
            certs_dirs: Vec::new(),
            registries_conf: Vec::new(),
            daemon_json: Vec::new(),
            proxies: Proxies::default(),
            user_agent: concat!("rbuild/", env!("CARGO_PKG_VERSION")).to_owned(),
            parallel: 6,
            retry: RetryPolicy::default(),
            connect_timeout: Duration::from_secs(15),
            stall_timeout: Duration::from_secs(60),
            on_event: None,
        }
    }
}

impl Settings {
    /// The defaults of this machine: the configuration of docker, containerd and podman, proxies from the environment.
    #[must_use]
    pub fn from_env() -> Self {
        Self::from_vars(|name| std::env::var(name).ok())
    }

    /// As [`Self::from_env`], with variables from elsewhere.
    pub fn from_vars(var: impl Fn(&str) -> Option<String>) -> Self {
        let get = |name: &str| var(name).filter(|value| !value.is_empty());
        let home =
            get("XDG_CONFIG_HOME").map(PathBuf::from).or_else(|| Some(PathBuf::from(get("HOME")?).join(".config")));
        let mut certs_dirs: Vec<PathBuf> = home.iter().map(|home| home.join("containers/certs.d")).collect();
        certs_dirs.extend(home.iter().map(|home| home.join("docker/certs.d")));
        certs_dirs.extend(["docker", "containers", "containerd"].map(|name| format!("/etc/{name}/certs.d").into()));
        // The user's file stands in the system's place; drop-ins add to either.
        let own = home.as_ref().map(|home| home.join("containers/registries.conf")).filter(|file| file.exists());
        let main = get("CONTAINERS_REGISTRIES_CONF").map(PathBuf::from).or(own);
        let mut registries_conf = vec![main.unwrap_or_else(|| "/etc/containers/registries.conf".into())];
        registries_conf.push("/etc/containers/registries.conf.d".into());
        registries_conf.extend(home.iter().map(|home| home.join("containers/registries.conf.d")));
        let mut daemon_json: Vec<PathBuf> = home.iter().map(|home| home.join("docker/daemon.json")).collect();
        daemon_json.push("/etc/docker/daemon.json".into());
        Self { certs_dirs, registries_conf, daemon_json, proxies: Proxies::from_env(var), ..Self::default() }
    }

    pub(crate) fn emit(&self, event: &Event) {
        if let Some(sink) = &self.on_event {
            sink(event);
        }
    }
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings")
            .field("registries", &self.registries)
            .field("certs_dirs", &self.certs_dirs)
            .field("registries_conf", &self.registries_conf)
            .field("daemon_json", &self.daemon_json)
            .field("proxies", &self.proxies)
            .field("user_agent", &self.user_agent)
            .field("parallel", &self.parallel)
            .field("retry", &self.retry)
            .field("connect_timeout", &self.connect_timeout)
            .field("stall_timeout", &self.stall_timeout)
            .finish_non_exhaustive()
    }
}

/// Proxies in the form of the usual environment variables. May hold passwords, so `Debug` shows only what is set.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Proxies {
    /// For `http` URLs.
    pub http: Option<String>,
    /// For `https` URLs.
    pub https: Option<String>,
    /// For what has none of its own.
    pub all: Option<String>,
    /// Hosts that are spoken to directly, comma-separated. Loopback always is.
    pub no_proxy: Option<String>,
}

impl Proxies {
    /// Takes the variables `http_proxy`, `https_proxy`, `all_proxy`, `no_proxy`, in lower or upper case, lower case first.
    pub fn from_env(var: impl Fn(&str) -> Option<String>) -> Self {
        let get = |name: &str| {
            let set = |name: &str| var(name).filter(|value| !value.is_empty());
            set(name).or_else(|| set(&name.to_ascii_uppercase()))
        };
        Self { http: get("http_proxy"), https: get("https_proxy"), all: get("all_proxy"), no_proxy: get("no_proxy") }
    }
}

impl fmt::Debug for Proxies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Proxies")
            .field("http", &self.http.is_some())
            .field("https", &self.https.is_some())
            .field("all", &self.all.is_some())
            .field("no_proxy", &self.no_proxy)
            .finish()
    }
}

/// What happens beside the results.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// A manifest or blob came from this host.
    Served {
        /// The mirror's or the registry's host.
        host: String,
        /// What was served.
        what: String,
        /// Whether the host is a mirror.
        mirror: bool,
    },
    /// A mirror could not serve; the next host is asked.
    MirrorFailed {
        /// The mirror's host.
        host: String,
        /// What was asked for.
        what: String,
        /// The failure.
        error: String,
    },
    /// A request failed and is made again.
    Retrying {
        /// The host.
        host: String,
        /// What was asked for.
        what: String,
        /// The failure.
        error: String,
        /// How long we wait first.
        wait: Duration,
    },
    /// Configured credentials could not be read; the request goes on without.
    CredentialsUnavailable {
        /// The host they are for.
        host: String,
        /// The failure.
        error: String,
    },
    /// Settings of another program, or some of them, could not be understood; it goes on without.
    SettingsIgnored {
        /// The file, and what is wrong with it.
        why: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shape_is_buildkitds() {
        #[derive(Deserialize)]
        struct File {
            registry: BTreeMap<String, RegistryConfig>,
        }
        let file: File = toml::from_str(
            r#"
            [registry."docker.io"]
              mirrors = ["mirror.local:5000", "core.harbor.domain/proxy.docker.io"]
              http = true
              insecure = true
              ca = ["/etc/config/myca.pem"]
              tlsconfigdir = ["/etc/certs"]
              [[registry."docker.io".keypair]]
                key = "/etc/config/key.pem"
                cert = "/etc/config/cert.pem"
            [registry."mirror.local:5000"]
              http = true
            "#,
        )
        .unwrap();
        let hub = &file.registry["docker.io"];
        assert_eq!(hub.mirrors.len(), 2);
        assert_eq!(hub.keypair[0].key, PathBuf::from("/etc/config/key.pem"));
        assert_eq!((hub.http, hub.insecure), (Some(true), Some(true)));
        assert_eq!(file.registry["mirror.local:5000"].http, Some(true));
        let error = toml::from_str::<RegistryConfig>("mirors = []").unwrap_err().to_string();
        assert!(error.contains("mirors"), "{error}");
    }

    #[test]
    fn proxies_come_from_the_environment_in_either_case() {
        let vars =
            BTreeMap::from([("HTTP_PROXY", "http://u:canary@p:1"), ("https_proxy", "http://q:2"), ("NO_PROXY", "a")]);
        let proxies = Proxies::from_env(|name| vars.get(name).map(|&v| v.to_owned()));
        assert_eq!(proxies.http.as_deref(), Some("http://u:canary@p:1"));
        assert_eq!(proxies.https.as_deref(), Some("http://q:2"));
        assert_eq!(proxies.no_proxy.as_deref(), Some("a"));
        assert!(!format!("{proxies:?}").contains("canary"));
    }
}
