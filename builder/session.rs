//! What a command works with: the store, the configuration, registries, and the launcher of steps.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use executor::Launcher;
use executor::rootless::Tier;
use registry::{Client, PlainClient, Settings};
use snapshotter::layer::{ApplyOptions, Marks, Ownership};
use snapshotter::{Store, StoreError};

use crate::cli::Global;
use crate::config::{BaseStore, Config, ConfigError};
use crate::engines::Engine;
use crate::images::Remote;
use crate::notices::Notices;
use crate::size::Size;
use crate::worker::Layers;

/// What was done before there was a thread.
#[derive(Clone)]
pub struct Start {
    /// What ids there are.
    pub tier: Tier,
    /// For commands that start steps.
    pub launcher: Option<Launcher>,
}

/// Everything that outlives one step of a command.
pub struct Session {
    /// The configuration file.
    pub config: Config,
    /// Images, layers, cache.
    pub store: Arc<Store>,
    /// Registries.
    pub remote: Remote,
    /// What registries do beside their results.
    pub notices: Arc<Notices>,
    /// Bytes of layers.
    pub layers: Arc<Layers>,
    /// HTTP for ADD of URLs.
    pub http: Arc<PlainClient>,
    /// What ids there are.
    pub tier: Tier,
    launcher: Option<Launcher>,
    limit: OnceLock<u64>,
    engines: OnceLock<Vec<Engine>>,
}

/// A session that cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The configuration file.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// There is no home directory to put the store into.
    #[error("neither XDG_DATA_HOME nor HOME is set: say with --root where images and cache go")]
    NoRoot,
    /// The launcher of steps.
    #[error(transparent)]
    Launcher(#[from] executor::Error),
}

impl Session {
    /// Opens the store and reads the configuration.
    ///
    /// # Errors
    /// What cannot be opened or read.
    pub fn open(global: &Global, start: Start) -> Result<Self, SessionError> {
        let Start { tier, launcher } = start;
        let is_root = matches!(tier, Tier::Root | Tier::Confined { .. });
        let config = Config::load(global.config.as_deref(), is_root)?;
        let root = global.root.clone().or_else(|| snapshotter::default_root(is_root, |name| std::env::var_os(name)));
        let root = root.ok_or(SessionError::NoRoot)?;
        let store = Arc::new(Store::open(&root)?);
        store.unpack_as(apply_options(&tier));
        let registries: BTreeMap<_, _> = config.registry.clone().into_iter().collect();
        let notices = Arc::new(Notices::default());
        let mut settings = Settings { registries, on_event: Some(notices.sink()), ..Settings::from_env() };
        settings.certs_dirs.splice(0..0, config.certs_dirs.iter().cloned());
        let client = Client::new(settings, Arc::new(registry::DockerCredentials::from_env()));
        let remote = Remote::new(client, Arc::clone(&store));
        let layers = Arc::new(Layers::new(Arc::clone(&store), remote.clone(), apply_options(&tier), launcher.clone()));
        Ok(Self {
            config,
            store,
            remote,
            notices,
            layers,
            http: Arc::new(PlainClient::new(concat!("rbuild/", env!("CARGO_PKG_VERSION")))),
            tier,
            launcher,
            limit: OnceLock::new(),
            engines: OnceLock::new(),
        })
    }

    /// Whether the machine's own places are meant, and not a user's.
    pub(crate) fn is_root(&self) -> bool {
        matches!(self.tier, Tier::Root | Tier::Confined { .. })
    }

    /// Where bases are beside the store, in the order in which they are looked for there.
    #[must_use]
    pub(crate) fn engines(&self) -> &[Engine] {
        self.engines.get_or_init(|| {
            let wanted = self.config.base_stores.as_deref().unwrap_or(&[BaseStore::Docker, BaseStore::Podman]);
            Engine::all(wanted, self.is_root(), |name| std::env::var(name).ok())
        })
    }

    /// The most that the store may take, in bytes.
    #[must_use]
    pub fn limit(&self) -> Option<u64> {
        self.limit.get().copied().or_else(|| Some(self.config.gc.max_used_space?.0))
    }

    /// Another limit than that of the configuration.
    pub fn set_limit(&self, Size(bytes): Size) {
        // Said once, by the command line.
        let _ = self.limit.set(bytes);
    }

    /// The launcher of steps.
    ///
    /// # Errors
    /// It was not started, for a command that needs none.
    pub fn launcher(&self) -> Result<Launcher, SessionError> {
        self.launcher.clone().ok_or(SessionError::Launcher(executor::Error::LauncherGone))
    }
}

/// In a user namespace overlay keeps its notes in `user.` attributes; with one id all files are that id's.
pub(crate) fn apply_options(tier: &Tier) -> ApplyOptions {
    let ownership = match tier {
        Tier::SingleId { .. } => Ownership::Skip,
        Tier::Root | Tier::SubordinateIds { .. } | Tier::Confined { .. } => Ownership::Keep,
    };
    let marks = if sys::namespace::in_user_namespace() { Marks::User } else { Marks::Trusted };
    ApplyOptions { marks, ownership }
}
