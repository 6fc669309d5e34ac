//! The configuration file: TOML, `[registry."HOST"]` in the shape of buildkitd.toml.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use snapshotter::KeepBounds;

use crate::size::Size;

/// What the file says.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Settings by registry host.
    #[serde(default)]
    pub registry: BTreeMap<String, registry::RegistryConfig>,
    /// The engine into which images are loaded when no output is named.
    #[serde(default)]
    pub load: Option<Engine>,
    /// Where `FROM` looks for images beside the store, before it asks a registry.
    #[serde(default, rename = "base-stores")]
    pub base_stores: Option<Vec<BaseStore>>,
    /// The network of RUN steps: default, private, none or host.
    #[serde(default)]
    pub network: crate::network::StepNetwork,
    /// Further directories like docker's and containerd's `certs.d`, looked into first.
    #[serde(default, rename = "certs-dirs")]
    pub certs_dirs: Vec<PathBuf>,
    /// Steps that may run at the same time.
    #[serde(default, rename = "max-parallelism")]
    pub max_parallelism: Option<usize>,
    /// What the store may take.
    #[serde(default)]
    pub gc: Collection,
}

/// `[gc]`
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Collection {
    /// The most that the store may take, kept during builds: the least recently used goes first.
    #[serde(default, rename = "max-used-space")]
    pub max_used_space: Option<Size>,
    /// How many failed steps are kept for `rbuild shell`; 0 keeps none.
    #[serde(default, rename = "failed-steps")]
    pub failed_steps: Option<usize>,
}

impl Collection {
    /// How much is kept of failed steps.
    #[must_use]
    pub fn kept_steps(&self) -> Option<KeepBounds> {
        let bounds = KeepBounds::default();
        let steps = self.failed_steps.unwrap_or(bounds.steps);
        (steps > 0).then_some(KeepBounds { steps, ..bounds })
    }
}

/// An engine whose images are bases.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BaseStore {
    /// The daemon on this machine.
    Docker,
    /// The storage that podman and buildah share.
    Podman,
}

impl BaseStore {
    /// What a person calls it.
    #[must_use]
    pub fn program(self) -> &'static str {
        match self {
            Self::Docker => "docker",
            Self::Podman => "podman",
        }
    }
}

/// An engine that `--load` hands images to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Engine {
    /// `docker load`
    Docker,
    /// `podman load`
    Podman,
    /// `ctr images import`; CONTAINERD_ADDRESS and CONTAINERD_NAMESPACE say which.
    Containerd,
}

impl Engine {
    /// The engine's program.
    #[must_use]
    pub fn program(self) -> &'static str {
        match self {
            Self::Docker => "docker",
            Self::Podman => "podman",
            Self::Containerd => "ctr",
        }
    }
}

/// The configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Named by the caller, or there but unreadable.
    #[error("cannot read the configuration file {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Not TOML, or not ours.
    #[error("in the configuration file {}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: Box<toml::de::Error>,
    },
}

impl Config {
    /// Reads `named`, or the default file if there is one: the system's for root, the user's own for others.
    ///
    /// # Errors
    /// The file was named and is missing, or cannot be read or understood.
    pub fn load(named: Option<&Path>, is_root: bool) -> Result<Self, ConfigError> {
        let path = match named {
            Some(path) => path.to_owned(),
            None => match default_path(is_root) {
                Some(path) if path.exists() => path,
                _ => return Ok(Self::default()),
            },
        };
        let text = std::fs::read_to_string(&path).map_err(|source| ConfigError::Read { path: path.clone(), source })?;
        toml::from_str(&text).map_err(|source| ConfigError::Parse { path, source: Box::new(source) })
    }
}

fn default_path(is_root: bool) -> Option<PathBuf> {
    if is_root {
        return Some("/etc/rbuild/config.toml".into());
    }
    let base = match std::env::var_os("XDG_CONFIG_HOME").filter(|dir| !dir.is_empty()) {
        Some(dir) => PathBuf::from(dir),
        None => PathBuf::from(std::env::var_os("HOME")?).join(".config"),
    };
    Some(base.join("rbuild/config.toml"))
}
