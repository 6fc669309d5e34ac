//! What to build, as it is said on the command line.

use std::collections::BTreeMap;
use std::path::PathBuf;

use frontend::NoCache;
use graph::{NetworkMode, Platform};
use registry::Reference;
use solver::MustHit;

use crate::builds::Recorder;
use crate::bundle::Place as ImagePlace;
use crate::cache::{self, CacheFrom};
use crate::context::{ContextArg, NamedContexts, named_contexts};
use crate::export::OutputSpec;
use crate::images::parse_name;
use crate::network::{HOST_GATEWAY, StepNetwork};
use crate::proxies;
use crate::resources::Patience;
use crate::ssh::Agents;
use crate::worker::{Leaving, StepPolicy};

/// What to build, parsed from the command line.
#[derive(Debug)]
pub struct Request {
    /// PATH.
    pub context: ContextArg,
    /// `-f`
    pub file: Option<String>,
    /// `-t`, normalised.
    pub tags: Vec<Reference>,
    /// For the frontend.
    pub frontend: frontend::Options,
    /// `--platform`; none: this machine's, or what the base image decides.
    pub platforms: Vec<Platform>,
    /// `--build-context NAME=DIRECTORY`
    pub directories: BTreeMap<String, PathBuf>,
    /// `--build-context NAME=target:STAGE`
    pub targets: BTreeMap<String, String>,
    /// `--build-context NAME=oci-layout://…` and the like
    pub places: BTreeMap<String, ImagePlace>,
    /// `--pull`
    pub pull: bool,
    /// Where the result goes.
    pub outputs: Vec<OutputSpec>,
    /// What steps may do.
    pub policy: StepPolicy,
    /// Steps at the same time.
    pub parallel: usize,
    /// `--cache-from`
    pub cache_from: Vec<CacheFrom>,
    /// `--cache-to type=inline`: the records go into the image.
    pub cache_inline: bool,
    /// How the layers leave.
    pub leaving: Option<Leaving>,
    /// `--fail-on-miss`
    pub must_hit: MustHit,
    /// Who remembers the build.
    pub recorder: Option<Recorder>,
}

impl Request {
    /// From the command line.
    ///
    /// # Errors
    /// A value that cannot be, in words.
    pub fn from_args(args: &crate::cli::build::Args, config: &crate::config::Config) -> Result<Self, String> {
        let NamedContexts { sources: named_contexts, directories, places, targets } =
            named_contexts(&args.build_contexts)?;
        let tags = args.tags.iter().map(|tag| parse_name(tag).map_err(|error| error.to_string()));
        let tags: Vec<Reference> = tags.collect::<Result<_, _>>()?;
        let platforms = platforms(&args.platforms)?;
        let wanted = match &args.network {
            Some(text) => StepNetwork::parse(text)?,
            None => config.network,
        };
        let network = match wanted {
            StepNetwork::Default | StepNetwork::Private => NetworkMode::Default,
            StepNetwork::None => NetworkMode::None,
            StepNetwork::Host => NetworkMode::Host,
        };
        let allow_host_network = wanted == StepNetwork::Host;
        let mut policy = StepPolicy { network: wanted, allow_host_network, ..StepPolicy::default() };
        policy.allow(&args.allow)?;
        policy.resources = args.limits.resources()?;
        policy.patience = Patience { step: args.step_timeout, idle: args.idle_timeout };
        policy.secrets = crate::worker::Secrets::parse(&args.secrets).map_err(|error| error.to_string())?;
        policy.ssh = Agents::parse(&args.ssh)?;
        let no_cache = if args.no_cache {
            NoCache::All
        } else if args.no_cache_filter.is_empty() {
            NoCache::None
        } else {
            NoCache::Stages(args.no_cache_filter.clone())
        };
        let cache_from = args.cache_from.iter().map(|spec| CacheFrom::parse(spec).map_err(|error| error.to_string()));
        let cache_from = cache_from.collect::<Result<Vec<_>, _>>()?;
        let frontend = frontend::Options {
            build_args: build_args(&args.build_args),
            target: args.target.clone(),
            labels: args.labels.iter().map(|label| pair(label)).collect(),
            no_cache,
            network,
            extra_hosts: args.add_hosts.iter().map(|host| add_host(host)).collect::<Result<_, _>>()?,
            named_contexts,
            ..frontend::Options::default()
        };
        Ok(Self {
            context: ContextArg::parse(&args.context),
            file: args.file.clone(),
            tags,
            frontend,
            platforms,
            directories,
            places,
            targets,
            pull: args.pull,
            outputs: args.output_specs()?,
            policy,
            parallel: args.max_parallelism.or(config.max_parallelism).unwrap_or_else(default_parallelism),
            cache_from,
            must_hit: match args.fail_on_miss.as_deref() {
                None => MustHit::Nothing,
                Some("") => MustHit::Everything,
                Some(stage) => MustHit::Stage(stage.to_owned()),
            },
            recorder: None,
            leaving: None,
            cache_inline: args.cache_specs()?.iter().any(|to| to.place == cache::Place::Inline),
        })
    }
}

/// The values of `--platform`: lists, and it may be given several times. Each platform once.
fn platforms(texts: &[String]) -> Result<Vec<Platform>, String> {
    let mut platforms: Vec<Platform> = Vec::new();
    for text in texts.iter().flat_map(|text| text.split(',')).map(str::trim).filter(|text| !text.is_empty()) {
        let platform = match text {
            "local" => Platform::host(),
            text => text.parse().map_err(|error| format!("--platform: {error}"))?,
        };
        if !platforms.contains(&platform) {
            platforms.push(platform);
        }
    }
    Ok(platforms)
}

/// Steps mostly wait for networks and disks; a build of many stages must not start hundreds at once.
fn default_parallelism() -> usize {
    std::thread::available_parallelism().map_or(8, |cores| (cores.get() * 4).max(8))
}

fn pair(text: &str) -> (String, String) {
    let (name, value) = text.split_once('=').unwrap_or((text, ""));
    (name.to_owned(), value.to_owned())
}

/// A name without a value takes the caller's; what the caller does not have is not set. Proxies that the Docker client is
/// configured with are passed on, as it does itself; SOURCE_DATE_EPOCH as buildx does.
fn build_args(given: &[String]) -> BTreeMap<String, String> {
    let is_given = |name: &str| {
        given.iter().any(|text| text.split_once('=').map_or(&**text, |(given, _)| given).eq_ignore_ascii_case(name))
    };
    let proxies = proxies::of_docker_client(|name| std::env::var(name).ok());
    let mut args: BTreeMap<_, _> = proxies.into_iter().filter(|(name, _)| !is_given(name)).collect();
    if let Ok(epoch) = std::env::var("SOURCE_DATE_EPOCH") {
        args.insert("SOURCE_DATE_EPOCH".to_owned(), epoch);
    }
    for text in given {
        match text.split_once('=') {
            Some((name, value)) => {
                args.insert(name.to_owned(), value.to_owned());
            }
            None => {
                if let Ok(value) = std::env::var(text) {
                    args.insert(text.clone(), value);
                }
            }
        }
    }
    args
}

/// `HOST:IP` or `HOST=IP` of `--add-host`.
pub(crate) fn add_host(text: &str) -> Result<(String, String), String> {
    let split = text.split_once('=').or_else(|| text.split_once(':'));
    let (name, address) = split.ok_or_else(|| format!("--add-host {text:?} is not HOST:IP"))?;
    let plain = address.trim_start_matches('[').trim_end_matches(']');
    match plain.parse::<std::net::IpAddr>() {
        Ok(address) => Ok((name.to_owned(), address.to_string())),
        Err(_) if address == HOST_GATEWAY => Ok((name.to_owned(), address.to_owned())),
        Err(_) => Err(format!("--add-host {text:?}: {address:?} is not an IP address")),
    }
}
