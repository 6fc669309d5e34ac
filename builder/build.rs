//! The story of one build, top to bottom.

use std::collections::{BTreeMap, HashMap};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use frontend::{ContextSource, Diagnostics, Images, Lowered, NoCache, SourceFile};
use graph::{Digest, ImageConfig, NetworkMode, Op, Platform, SourceOp};
use registry::Reference;
use solver::{Options, Progress, RunContext, SolveError};
use tokio_util::sync::CancellationToken;

use crate::context::{self, ContextArg, ContextError, LocalContext, Place, Wanted};
use crate::export::OutputSpec;
use crate::image::{self, BuiltLayer};
use crate::images::{ImageError, parse_name};
use crate::session::{Session, SessionError};
use crate::worker::{BuildWorker, Rootfs, StepPolicy, WorkError};

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
    /// `--build-context NAME=DIRECTORY`
    pub directories: BTreeMap<String, PathBuf>,
    /// `--pull`
    pub pull: bool,
    /// Where the result goes.
    pub outputs: Vec<OutputSpec>,
    /// What steps may do.
    pub policy: StepPolicy,
    /// Steps at the same time.
    pub parallel: usize,
}

/// A finished build.
#[derive(Debug)]
pub struct Built {
    /// The stack.
    pub rootfs: Rootfs,
    /// The config's bytes, which name the image.
    pub config: Vec<u8>,
    /// Digest of the config: the image id.
    pub id: Digest,
    /// The Dockerfile, for messages.
    pub source: SourceFile,
    /// Steps found in the cache, and run.
    pub hits: usize,
    /// Steps that ran.
    pub misses: usize,
}

/// A build that came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The context or Dockerfile could not be read.
    #[error(transparent)]
    Context(#[from] ContextError),
    /// The Dockerfile is wrong.
    #[error("{problems}")]
    Dockerfile {
        /// The text.
        source_file: SourceFile,
        /// What is wrong with it.
        problems: Diagnostics,
    },
    /// A base image cannot be had.
    #[error("{source}")]
    Base {
        /// The Dockerfile.
        source_file: SourceFile,
        /// Where the image is named.
        span: Option<frontend::Span>,
        /// A name that may have been meant.
        did_you_mean: Option<String>,
        /// Why.
        source: ImageError,
    },
    /// A step failed.
    #[error("failed to solve: {source}")]
    Step {
        /// The Dockerfile.
        source_file: SourceFile,
        /// Lines of the step.
        span: Option<graph::Span>,
        /// Why.
        source: Box<WorkError>,
    },
    /// Outside any step.
    #[error(transparent)]
    Work(#[from] WorkError),
    /// The store.
    #[error(transparent)]
    Store(#[from] snapshotter::StoreError),
    /// Steps cannot be started.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// Ctrl-C.
    #[error("the build was cancelled")]
    Cancelled,
    /// A bug of ours.
    #[error("{0}")]
    Internal(String),
}

/// Builds.
///
/// # Errors
/// See [`BuildError`].
pub async fn build(
    session: &Session,
    request: Request,
    progress: &Progress,
    cancelled: &CancellationToken,
) -> Result<Built, BuildError> {
    let Request { context, file, frontend: options, directories, pull, policy, parallel, .. } = request;
    let loaded = load(session, context, file, progress, cancelled).await?;
    let source = loaded.dockerfile.source;
    let plan = frontend::plan(&source, &options).map_err(|problems| wrong(&source, problems))?;
    let images = resolve_images(session, &plan, &source, pull, progress, cancelled).await?;
    let lowered = frontend::lower(&plan, &images).map_err(|problems| wrong(&source, problems))?;
    for warning in &lowered.warnings {
        progress.warn(warning.to_string());
    }
    let contexts = contexts(loaded.context, directories)?;
    let epoch = plan.options().source_date_epoch.and_then(|seconds| jiff::Timestamp::from_second(seconds).ok());
    let worker = Arc::new(worker(session, &lowered, contexts, policy, epoch)?);
    let (rootfs, hits, misses) = solve(&lowered, Arc::clone(&worker), parallel, &source, progress, cancelled).await?;
    let config = finish(session, lowered.config, &rootfs, epoch)?;
    let id = session.store.put_blob(&config)?;
    Ok(Built { rootfs, config, id, source, hits, misses })
}

fn wrong(source: &SourceFile, problems: Diagnostics) -> BuildError {
    BuildError::Dockerfile { source_file: source.clone(), problems }
}

async fn load(
    session: &Session,
    argument: ContextArg,
    file: Option<String>,
    progress: &Progress,
    cancelled: &CancellationToken,
) -> Result<context::Loaded, BuildError> {
    let vertex = progress.vertex("[internal] load build definition");
    vertex
        .during(async {
            let (place, dockerfile) = place(session, argument, cancelled).await?;
            // What came in the context's stead is the Dockerfile.
            let file = if dockerfile.is_some() { Some("-".to_owned()) } else { file };
            let loaded = context::load(place, file.as_deref(), || match dockerfile {
                Some(text) => Ok(text),
                None => {
                    let mut text = Vec::new();
                    io::stdin().lock().read_to_end(&mut text)?;
                    Ok(text)
                }
            });
            Ok(loaded?)
        })
        .await
}

/// Where the context's files are; a Dockerfile that came in their stead.
async fn place(
    session: &Session,
    argument: ContextArg,
    cancelled: &CancellationToken,
) -> Result<(Place, Option<Vec<u8>>), BuildError> {
    let streamed = |stream: context::Stream| match stream {
        context::Stream::Context(place) => (place, None),
        context::Stream::Dockerfile(text) => (Place::Nothing, Some(text)),
    };
    match argument {
        ContextArg::Directory(path) => {
            if !path.is_dir() {
                return Err(ContextError::NoDirectory(path).into());
            }
            Ok((Place::Directory(path, None), None))
        }
        ContextArg::Stdin => Ok(streamed(context::stream("standard input", io::stdin())?)),
        ContextArg::Git(url) => Ok((crate::worker::clone_context(session, &url, cancelled).await?, None)),
        ContextArg::Http(url) => {
            let file = crate::worker::download_context(session, &url, cancelled).await?;
            Ok(streamed(context::stream(&url, file)?))
        }
    }
}

/// Asks for images until the frontend misses none: triggers of a base may name further ones.
async fn resolve_images(
    session: &Session,
    plan: &frontend::Plan,
    source: &SourceFile,
    pull: bool,
    progress: &Progress,
    cancelled: &CancellationToken,
) -> Result<Images, BuildError> {
    let mut images = Images::new();
    loop {
        let missing = plan.missing_images(&images).map_err(|problems| wrong(source, problems))?;
        if missing.is_empty() {
            return Ok(images);
        }
        let found = missing.iter().map(|request| async move {
            let vertex = progress.vertex(&format!("[internal] load metadata for {}", request.reference));
            let found = tokio::select! {
                () = cancelled.cancelled() => return Err(BuildError::Cancelled),
                found = vertex.during(session.remote.find(request, pull)) => found,
            };
            found.map_err(|error| BuildError::Base {
                source_file: source.clone(),
                span: request.span,
                did_you_mean: request.did_you_mean.clone(),
                source: error,
            })
        });
        let found = futures_util::future::try_join_all(found).await?;
        for (request, found) in missing.into_iter().zip(found) {
            images.insert(request.reference, request.platform, found.resolved);
        }
    }
}

fn contexts(
    main: LocalContext,
    directories: BTreeMap<String, PathBuf>,
) -> Result<HashMap<String, Arc<LocalContext>>, ContextError> {
    let mut contexts: HashMap<_, _> = HashMap::new();
    for (name, root) in directories {
        let ignore = context::ignore_of(&root)?;
        contexts.insert(name.clone(), Arc::new(LocalContext { name, place: Place::Directory(root, None), ignore }));
    }
    contexts.insert(main.name.clone(), Arc::new(main));
    Ok(contexts)
}

fn worker(
    session: &Session,
    lowered: &Lowered,
    contexts: HashMap<String, Arc<LocalContext>>,
    policy: StepPolicy,
    epoch: Option<jiff::Timestamp>,
) -> Result<BuildWorker, BuildError> {
    let mut wanted = HashMap::new();
    for (id, node) in lowered.graph.nodes() {
        if let Op::Source(SourceOp::Local(local)) = &node.op {
            wanted.insert(local.name.clone(), Wanted::of(&lowered.graph, id));
        }
    }
    Ok(BuildWorker {
        store: Arc::clone(&session.store),
        layers: Arc::clone(&session.layers),
        launcher: session.launcher()?,
        http: session.http.clone(),
        policy,
        contexts,
        wanted,
        now: epoch.unwrap_or_else(jiff::Timestamp::now),
        scratch: session.store.scratch_directory(),
        network_noted: AtomicBool::new(false),
    })
}

async fn solve(
    lowered: &Lowered,
    worker: Arc<BuildWorker>,
    parallel: usize,
    source: &SourceFile,
    progress: &Progress,
    cancelled: &CancellationToken,
) -> Result<(Rootfs, usize, usize), BuildError> {
    let Some(root) = lowered.root else { return Ok((Rootfs::empty(), 0, 0)) };
    let options = Options { parallel };
    let solved = solver::solve(&lowered.graph, &[root], Arc::clone(&worker), &options, progress, cancelled).await;
    let solved = solved.map_err(|error| match error {
        SolveError::Cancelled => BuildError::Cancelled,
        SolveError::Task(why) => BuildError::Internal(why),
        SolveError::Vertex { node, source: error, .. } => BuildError::Step {
            source_file: source.clone(),
            span: lowered.graph.node(node).meta.span,
            source: Box::new(error),
        },
    })?;
    let Some(solved) = solved.into_iter().next() else {
        return Err(BuildError::Internal("a build without a result".into()));
    };
    let context = RunContext { progress: progress.vertex("[internal] result"), cancelled: cancelled.clone() };
    let rootfs = worker.rootfs_of(&context, &solved.output).await?;
    Ok((rootfs, solved.hits, solved.misses))
}

/// The config's JSON.
fn finish(
    session: &Session,
    config: ImageConfig,
    rootfs: &Rootfs,
    epoch: Option<jiff::Timestamp>,
) -> Result<Vec<u8>, BuildError> {
    let layers = match &rootfs.chain {
        None => Vec::new(),
        Some(chain) => session.store.chain_layers(chain)?,
    };
    let layers: Vec<BuiltLayer> =
        layers.into_iter().map(|layer| BuiltLayer { diff_id: layer.diff_id, created: layer.created }).collect();
    let config = image::finish(config, &layers, epoch, jiff::Timestamp::now());
    serde_json::to_vec(&config).map_err(|error| BuildError::Internal(error.to_string()))
}

/// Parses what `--build-context` gives: what the frontend is told, and directories of the caller.
///
/// # Errors
/// What is wrong with one of them.
pub fn named_contexts(
    specs: &[String],
) -> Result<(BTreeMap<String, ContextSource>, BTreeMap<String, PathBuf>), String> {
    let (mut sources, mut directories) = (BTreeMap::new(), BTreeMap::new());
    for spec in specs {
        let (name, value) =
            spec.split_once('=').ok_or_else(|| format!("--build-context {spec:?} is not NAME=SOURCE"))?;
        let name = name.to_ascii_lowercase();
        let source = if let Some(image) = value.strip_prefix("docker-image://") {
            ContextSource::Image(image.to_owned())
        } else if value.starts_with("oci-layout://") || value.starts_with("target:") {
            return Err(format!("--build-context {spec:?}: sources of this kind are not supported yet"));
        } else {
            match ContextArg::parse(value) {
                ContextArg::Git(url) => ContextSource::Git(url),
                ContextArg::Http(url) => ContextSource::Http { url, unpack: true },
                ContextArg::Stdin => {
                    return Err(format!("--build-context {spec:?}: standard input cannot be used here"));
                }
                ContextArg::Directory(path) => {
                    if !Path::new(&path).is_dir() {
                        return Err(format!("--build-context {spec:?}: {} is not a directory", path.display()));
                    }
                    directories.insert(name.clone(), path);
                    ContextSource::Local
                }
            }
        };
        sources.insert(name, source);
    }
    Ok((sources, directories))
}

impl Request {
    /// From the command line.
    ///
    /// # Errors
    /// A value that cannot be, in words.
    pub fn from_args(args: &crate::cli::build::Args, config: &crate::config::Config) -> Result<Self, String> {
        let (named_contexts, directories) = named_contexts(&args.build_contexts)?;
        let tags = args.tags.iter().map(|tag| parse_name(tag).map_err(|error| error.to_string()));
        let tags: Vec<Reference> = tags.collect::<Result<_, _>>()?;
        let platform: Option<Platform> = match args.platform.as_deref() {
            None | Some("") => None,
            Some(text) if text.contains(',') => {
                return Err(format!(
                    "--platform {text:?}: building for several platforms at once is not supported yet"
                ));
            }
            Some(text) => Some(text.parse().map_err(|error| format!("--platform: {error}"))?),
        };
        let (network, allow_host) = match args.network.as_str() {
            "" | "default" | "bridge" => (NetworkMode::Default, false),
            "none" => (NetworkMode::None, false),
            "host" => (NetworkMode::Host, true),
            other => return Err(format!("--network {other:?} is none of default, none and host")),
        };
        let mut policy = StepPolicy { allow_host_network: allow_host, ..StepPolicy::default() };
        for entitlement in &args.allow {
            match entitlement.as_str() {
                "network.host" => policy.allow_host_network = true,
                "security.insecure" => policy.allow_insecure = true,
                other => return Err(format!("--allow {other:?} is neither network.host nor security.insecure")),
            }
        }
        policy.secrets = crate::worker::Secrets::parse(&args.secrets).map_err(|error| error.to_string())?;
        policy.ssh = ssh_agents(&args.ssh)?;
        let no_cache = if args.no_cache {
            NoCache::All
        } else if args.no_cache_filter.is_empty() {
            NoCache::None
        } else {
            NoCache::Stages(args.no_cache_filter.clone())
        };
        let frontend = frontend::Options {
            build_args: build_args(&args.build_args),
            target: args.target.clone(),
            implicit_platform: platform.is_none(),
            target_platform: platform.unwrap_or_else(Platform::host),
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
            directories,
            pull: args.pull,
            outputs: args.output_specs()?,
            policy,
            parallel: args.max_parallelism.or(config.max_parallelism).unwrap_or_else(default_parallelism),
        })
    }
}

/// Steps mostly wait for networks and disks; a build of many stages must not start hundreds at once.
fn default_parallelism() -> usize {
    std::thread::available_parallelism().map_or(8, |cores| (cores.get() * 4).max(8))
}

fn pair(text: &str) -> (String, String) {
    let (name, value) = text.split_once('=').unwrap_or((text, ""));
    (name.to_owned(), value.to_owned())
}

/// A name without a value takes the caller's; what the caller does not have is not set. Proxies of the caller are passed on,
/// as docker does by its configuration; SOURCE_DATE_EPOCH as buildx does.
fn build_args(given: &[String]) -> BTreeMap<String, String> {
    let mut args = BTreeMap::new();
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
        Err(_) if address == "host-gateway" => Ok((name.to_owned(), "127.0.0.1".to_owned())),
        Err(_) => Err(format!("--add-host {text:?}: {address:?} is not an IP address")),
    }
}

fn ssh_agents(specs: &[String]) -> Result<BTreeMap<String, PathBuf>, String> {
    let mut agents = BTreeMap::new();
    for spec in specs {
        let (id, place) = spec.split_once('=').map_or((spec.as_str(), None), |(id, place)| (id, Some(place)));
        let id = if id.is_empty() { "default" } else { id };
        let path = match place {
            Some(path) => PathBuf::from(path),
            None => std::env::var_os("SSH_AUTH_SOCK")
                .map(PathBuf::from)
                .ok_or_else(|| format!("--ssh {spec}: there is no agent, SSH_AUTH_SOCK is not set"))?,
        };
        let is_socket = std::fs::metadata(&path)
            .is_ok_and(|metadata| std::os::unix::fs::FileTypeExt::is_socket(&metadata.file_type()));
        if !is_socket {
            return Err(format!(
                "--ssh {spec}: {} is not an agent's socket (keys are not supported yet)",
                path.display()
            ));
        }
        agents.insert(id.to_owned(), path);
    }
    Ok(agents)
}
