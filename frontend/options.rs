//! What a person asked for beside the Dockerfile: flags of the build, already parsed.

use std::collections::BTreeMap;
use std::sync::Arc;

use graph::{NetworkMode, Platform};

use crate::Lowered;
use crate::dockerignore::Patterns;

/// Everything that influences how a Dockerfile is lowered.
#[derive(Clone, Debug)]
pub struct Options {
    /// `--build-arg`. Also carries the proxy settings and the `BUILDKIT_*` arguments that the frontend honours.
    pub build_args: BTreeMap<String, String>,
    /// `--target`; the last stage when `None`.
    pub target: Option<String>,
    /// Platform of the result.
    pub target_platform: Platform,
    /// Nobody asked for [`Self::target_platform`]: a base image of another platform decides.
    pub implicit_platform: bool,
    /// Several platforms are built at once: names of vertices begin with the platform.
    pub multi_platform: bool,
    /// Platform of the machine that builds.
    pub build_platform: Platform,
    /// `--label`, set on the result after all instructions.
    pub labels: Vec<(String, String)>,
    /// `--no-cache`, `--no-cache-filter`.
    pub no_cache: NoCache,
    /// `--network`: the network of every RUN that does not say otherwise.
    pub network: NetworkMode,
    /// `--add-host`: name and address.
    pub extra_hosts: Vec<(String, String)>,
    /// Host name of the steps; `BUILDKIT_SANDBOX_HOSTNAME` wins over it.
    pub hostname: Option<String>,
    /// The main build context: what COPY and ADD read when they name no other source.
    pub context: ContextSource,
    /// `--build-context NAME=…`, in the form given: `NAME` replaces a stage or an image of that name.
    pub named_contexts: BTreeMap<String, ContextSource>,
    /// All stages are lowered, not only those that the target needs: for checks.
    pub all_stages: bool,
    /// The rules of the main context's ignore file, for the check that warns of sources that are ignored.
    pub ignored: Option<Arc<Patterns>>,
    /// Seconds since 1970 for the new history entries; a numeric `SOURCE_DATE_EPOCH` build argument is used when `None`.
    pub source_date_epoch: Option<i64>,
    /// When the context was committed or last changed, for a `SOURCE_DATE_EPOCH` that is `context`; `None` for a local one.
    pub context_time: Option<i64>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            build_args: BTreeMap::new(),
            target: None,
            target_platform: Platform::host(),
            implicit_platform: true,
            multi_platform: false,
            build_platform: Platform::host(),
            labels: Vec::new(),
            no_cache: NoCache::None,
            network: NetworkMode::Default,
            extra_hosts: Vec::new(),
            hostname: None,
            context: ContextSource::Local,
            named_contexts: BTreeMap::new(),
            all_stages: false,
            ignored: None,
            source_date_epoch: None,
            context_time: None,
        }
    }
}

/// Which stages must run again.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum NoCache {
    /// Recorded results are used everywhere.
    #[default]
    None,
    /// `--no-cache`
    All,
    /// `--no-cache-filter`: names of stages, in any case.
    Stages(Vec<String>),
}

impl NoCache {
    pub(crate) fn covers(&self, stage: Option<&str>) -> bool {
        match self {
            Self::None => false,
            Self::All => true,
            Self::Stages(names) => stage.is_some_and(|stage| names.iter().any(|name| name.eq_ignore_ascii_case(stage))),
        }
    }
}

/// Where a build context comes from.
#[derive(Clone, Debug)]
pub enum ContextSource {
    /// A directory of the caller, known to the worker by the context's name (`context` for the main one).
    Local,
    /// `docker-image://`: the root file system of an image; `scratch` is the empty tree.
    Image(String),
    /// A Git repository: a URL as in `ADD`, with `#ref:subdir`.
    Git(String),
    /// `http://` or `https://`: one file, or an archive whose content becomes the context.
    Http {
        /// Absolute URL.
        url: String,
        /// Unpack the file.
        unpack: bool,
    },
    /// `target:`: the result of another build.
    Target(Arc<Lowered>),
}

/// The older name for the contexts given with `--build-context`.
pub type NamedContext = ContextSource;
