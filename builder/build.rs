//! The story of one build, top to bottom.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::{self, Read};
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

use frontend::{ContextSource, Diagnostics, Images, Lowered, SourceFile};
use graph::{ContentDigest, Digest, Graph, MountKind, NodeId, Op, Platform, SourceOp};
use solver::{Options, Progress, RunContext, SolveError};
use tokio_util::sync::CancellationToken;

use crate::builds::{Builds, Recorder};
use crate::bundle::{Bundle, BundleError, Place as ImagePlace};
use crate::cache::{self, Imports, Recorded, UsedMounts};
use crate::check;
use crate::context::{self, ContextArg, ContextError, LocalContext, Place, Wanted};
use crate::engines;
use crate::image::{self, BuiltLayer};
use crate::images::ImageError;
use crate::provenance::{self, Facts, Material, Origin, ProvenanceSpec};
use crate::request::Request;
use crate::session::{Session, SessionError};
use crate::worker::{Ahead, BuildWorker, Rootfs, StepPolicy, WorkError};

/// A finished build.
#[derive(Debug)]
pub struct Built {
    /// One image for each platform, in the order in which they were asked for. Never empty.
    pub images: Vec<BuiltImage>,
    /// SOURCE_DATE_EPOCH.
    pub epoch: Option<jiff::Timestamp>,
    /// The Dockerfile, for messages.
    pub source: SourceFile,
    /// Steps found in the cache, and run.
    pub hits: usize,
    /// Steps that ran.
    pub misses: usize,
    /// What was made and found, for `--cache-to`.
    pub results: Vec<Recorded>,
    /// Cache mounts of the steps that ran.
    pub mounts: UsedMounts,
    /// How it came about.
    pub facts: Facts,
}

impl Built {
    /// How the image for a platform came about.
    #[must_use]
    pub fn predicate(&self, spec: &ProvenanceSpec, platform: &Platform) -> serde_json::Value {
        let image = self.images.iter().find(|image| image.platform == *platform);
        let bases = image.map(|image| image.materials.clone()).unwrap_or_default();
        self.facts.predicate(spec, &bases)
    }
}

/// What was built for one platform.
#[derive(Debug, Clone)]
pub struct BuiltImage {
    /// For which.
    pub platform: Platform,
    /// The stack.
    pub rootfs: Rootfs,
    /// How many of the lowest layers are the base image's.
    pub base_layers: usize,
    /// The config without layers and times, for outputs that change these.
    pub unfinished: graph::ImageConfig,
    /// The config's bytes, which name the image.
    pub config: Vec<u8>,
    /// Digest of the config: the image id.
    pub id: Digest,
    /// The images that it was built from.
    pub materials: BTreeSet<Material>,
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
    /// A `--build-context` that is an image in a file.
    #[error("cannot use the build context {name}")]
    NamedContext {
        /// Of the context.
        name: String,
        /// Why.
        source: Box<BundleError>,
    },
    /// A base image cannot be had.
    #[error("{source}")]
    Base {
        /// The Dockerfile.
        source_file: SourceFile,
        /// Where the image is named.
        span: Option<frontend::Span>,
        /// What may help: a name that may have been meant, or what is damaged here.
        hint: Option<String>,
        /// Why.
        source: ImageError,
    },
    /// A step failed.
    #[error("failed to solve: {source}")]
    Step {
        /// The step.
        name: String,
        /// The Dockerfile.
        source_file: SourceFile,
        /// Lines of the step.
        span: Option<graph::Span>,
        /// For which its programs are, where that is not this machine's.
        platform: Option<Platform>,
        /// Why.
        source: Box<WorkError>,
    },
    /// A step would have to run that `--fail-on-miss` covers.
    #[error("{name} is not in the cache, and --fail-on-miss forbids to run it")]
    Missed {
        /// The Dockerfile.
        source_file: SourceFile,
        /// Lines of the step.
        span: Option<graph::Span>,
        /// The step.
        name: String,
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

impl BuildError {
    /// The step that failed, and where what it left is kept.
    pub(crate) fn kept(&self) -> Option<(&str, ContentDigest)> {
        let Self::Step { name, source, .. } = self else { return None };
        let kept = match &**source {
            WorkError::Step(failure) => failure.kept,
            WorkError::Start(failure) => failure.kept,
            _ => None,
        };
        Some((name, kept?))
    }
}

/// A build whose graph is known. It can be solved again, should layers turn out to be gone when they are to be handed over.
pub struct Prepared {
    lowered: Vec<LoweredFor>,
    graph: Graph<Op>,
    /// One for each platform.
    roots: Vec<Option<NodeId>>,
    worker: Arc<BuildWorker>,
    options: Options,
    source: SourceFile,
    epoch: Option<jiff::Timestamp>,
    /// The records go into the image.
    inline: bool,
    facts: Facts,
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
    prepare(session, request, progress, cancelled).await?.solve(session, progress, cancelled).await
}

/// Reads the Dockerfile and finds its images: all that comes before the first step.
///
/// # Errors
/// See [`BuildError`].
pub async fn prepare(
    session: &Session,
    request: Request,
    progress: &Progress,
    cancelled: &CancellationToken,
) -> Result<Prepared, BuildError> {
    let Request { context, file, frontend: mut options, platforms, directories, pull, policy, parallel, .. } = request;
    let named = Named { session, places: &request.places, targets: &request.targets, pull };
    let imports = Imports::new(request.cache_from, session.remote.clone(), Arc::clone(&session.store));
    let loaded = load(session, context, file, progress, cancelled).await?;
    options.ignored = Some(Arc::new(loaded.context.ignore.patterns().clone()));
    options.context_time = loaded.origin.time;
    let source = loaded.dockerfile.source;
    let id = request.recorder.as_ref().map(Recorder::id).unwrap_or_default();
    let mut facts = Facts::new(id, loaded.origin, &source, &options, &policy);
    let mut each = options_for(&options, &platforms);
    for options in &mut each {
        named.add(options, &source, progress, cancelled).await?;
    }
    let plans = each.iter().map(|options| plan(&source, options)).collect::<Result<Vec<_>, _>>()?;
    let lowered = plans.iter().map(|plan| lower(session, plan, &source, pull, progress, cancelled));
    let lowered = futures_util::future::try_join_all(lowered).await?;
    warn(&lowered, &source, progress)?;
    let contexts = contexts(loaded.context, directories)?;
    let epoch = plans.first().and_then(|plan| plan.options().source_date_epoch);
    let epoch = epoch.and_then(|seconds| jiff::Timestamp::from_second(seconds).ok());
    let (graph, roots) = joined(&lowered, |op| with_secrets(session, &policy, op))?;
    if let Some(recorder) = &request.recorder {
        recorder.graph(&graph);
    }
    (facts.hermetic, facts.local) = provenance::reach(&graph, facts.origin.material.is_some());
    let options = Options { parallel, must_hit: request.must_hit };
    let mut worker = worker(session, wanted(&graph), contexts, policy, imports, epoch)?;
    // With SOURCE_DATE_EPOCH layers are written anew at the end.
    worker.ahead = Ahead::of(&graph, &roots, request.leaving.filter(|_| epoch.is_none()));
    let worker = Arc::new(worker);
    Ok(Prepared { lowered, graph, roots, worker, options, source, epoch, inline: request.cache_inline, facts })
}

impl Prepared {
    /// Carries out what is not in the cache.
    ///
    /// # Errors
    /// See [`BuildError`].
    pub async fn solve(
        &self,
        session: &Session,
        progress: &Progress,
        cancelled: &CancellationToken,
    ) -> Result<Built, BuildError> {
        let Self { graph, roots, worker, options, source, epoch, .. } = self;
        let solved = solve(graph, roots, Arc::clone(worker), options, source, progress, cancelled).await?;
        let results = worker.take_results();
        let inline = self.inline.then_some(results.as_slice());
        let mut images = Vec::with_capacity(self.lowered.len());
        for (one, rootfs) in self.lowered.iter().zip(solved.rootfs) {
            images.push(finish(session, one, rootfs, *epoch, inline)?);
        }
        let (hits, misses, epoch) = (solved.hits, solved.misses, *epoch);
        let (mounts, facts) = (worker.used_mounts(), self.facts.ended(worker.materials()));
        Ok(Built { images, epoch, source: source.clone(), hits, misses, results, mounts, facts })
    }
}

/// Options for each platform: what a Dockerfile means may depend on it from the first line on.
pub(crate) fn options_for(options: &frontend::Options, platforms: &[Platform]) -> Vec<frontend::Options> {
    if platforms.is_empty() {
        return vec![options.clone()];
    }
    let options = platforms.iter().map(|platform| frontend::Options {
        target_platform: platform.clone(),
        implicit_platform: false,
        multi_platform: platforms.len() > 1,
        ..options.clone()
    });
    options.collect()
}

fn plan(source: &SourceFile, options: &frontend::Options) -> Result<frontend::Plan, BuildError> {
    frontend::plan(source, options).map_err(|problems| wrong(source, problems))
}

/// Named contexts that have to be made or found first: images in layouts and archives, and targets.
pub(crate) struct Named<'a> {
    pub(crate) session: &'a Session,
    pub(crate) places: &'a BTreeMap<String, ImagePlace>,
    pub(crate) targets: &'a BTreeMap<String, String>,
    pub(crate) pull: bool,
}

impl Named<'_> {
    /// Adds them to the options. Targets, which are stages of the same Dockerfile, do not see each other.
    pub(crate) async fn add(
        &self,
        options: &mut frontend::Options,
        source: &SourceFile,
        progress: &Progress,
        cancelled: &CancellationToken,
    ) -> Result<(), BuildError> {
        for (name, place) in self.places {
            let vertex = progress.vertex(&format!("[context {name}] load the image"));
            let context = RunContext { progress: vertex.clone(), cancelled: cancelled.clone() };
            let image = Bundle::as_base(self.session, place, &options.target_platform, &context);
            let image = vertex.during(image).await.map_err(|source| match source {
                BundleError::Cancelled => BuildError::Cancelled,
                source => BuildError::NamedContext { name: name.clone(), source: Box::new(source) },
            })?;
            options.named_contexts.insert(name.clone(), ContextSource::Image(image));
        }
        let alone = options.clone();
        for (name, target) in self.targets {
            let plan = plan(source, &frontend::Options { target: Some(target.clone()), ..alone.clone() })?;
            let lowered = lower(self.session, &plan, source, self.pull, progress, cancelled).await?.lowered;
            options.named_contexts.insert(name.clone(), ContextSource::Target(Arc::new(lowered)));
        }
        Ok(())
    }
}

/// A Dockerfile lowered for one platform, and the images that it stands upon.
struct LoweredFor {
    lowered: Lowered,
    /// The layers of each image that was resolved, and which it is.
    bases: Vec<(Vec<Digest>, Material)>,
}

async fn lower(
    session: &Session,
    plan: &frontend::Plan,
    source: &SourceFile,
    pull: bool,
    progress: &Progress,
    cancelled: &CancellationToken,
) -> Result<LoweredFor, BuildError> {
    let (images, bases) = resolve_images(session, plan, source, pull, progress, cancelled).await?;
    let lowered = frontend::lower(plan, &images).map_err(|problems| wrong(source, problems))?;
    Ok(LoweredFor { lowered, bases })
}

/// What is said of one platform need not be said of the next.
fn warn(lowered: &[LoweredFor], source: &SourceFile, progress: &Progress) -> Result<(), BuildError> {
    let mut said = BTreeSet::new();
    for warning in lowered.iter().flat_map(|one| &one.lowered.warnings) {
        let text = warning.to_string();
        if said.insert(text.clone()) {
            progress.warn(text);
        }
    }
    for finding in lowered.iter().flat_map(|one| &one.lowered.findings) {
        let found = check::event(source, finding);
        if said.insert(found.message.clone()) {
            progress.found(found);
        }
    }
    match lowered.iter().find_map(|one| one.lowered.violation.clone()) {
        Some(violation) => Err(wrong(source, violation.into())),
        None => Ok(()),
    }
}

/// One graph for all platforms, so that what they share is done once; and the root of each, if it has one.
fn joined(
    lowered: &[LoweredFor],
    keyed: impl Fn(Op) -> Result<Op, BuildError>,
) -> Result<(Graph<Op>, Vec<Option<NodeId>>), BuildError> {
    let mut graph = Graph::new();
    let mut roots = Vec::with_capacity(lowered.len());
    for LoweredFor { lowered, .. } in lowered {
        let mut ids: Vec<NodeId> = Vec::with_capacity(lowered.graph.len());
        for (_, node) in lowered.graph.nodes() {
            let inputs = node.inputs.iter().map(|input| ids[input.index()]).collect();
            ids.push(graph.add(keyed(node.op.clone())?, inputs, node.meta.clone()));
        }
        roots.push(lowered.root.map(|root| ids[root.index()]));
    }
    Ok((graph, roots))
}

/// What a step does, with the secrets that are to count (`--secret …,cache-key=true`).
fn with_secrets(session: &Session, policy: &StepPolicy, mut op: Op) -> Result<Op, BuildError> {
    if let Op::Exec(exec) = &mut op
        && policy.secrets.any_keyed()
    {
        let mounted = exec.mounts.iter().filter_map(|mount| match &mount.kind {
            MountKind::Secret(secret) => Some(secret.id.as_str()),
            _ => None,
        });
        let ids = mounted.chain(exec.secret_env.iter().map(|secret| secret.id.as_str()));
        let key = session.store.secret_key()?;
        exec.secret_macs = policy.secrets.macs(ids, &key).map_err(WorkError::Secret)?;
    }
    Ok(op)
}

fn wrong(source: &SourceFile, problems: Diagnostics) -> BuildError {
    BuildError::Dockerfile { source_file: source.clone(), problems }
}

pub(crate) async fn load(
    session: &Session,
    argument: ContextArg,
    file: Option<String>,
    progress: &Progress,
    cancelled: &CancellationToken,
) -> Result<context::Loaded, BuildError> {
    let vertex = progress.vertex("[internal] load build definition");
    vertex
        .during(async {
            let (place, dockerfile, origin) = place(session, argument, cancelled).await?;
            // What came in the context's stead is the Dockerfile.
            let file = if dockerfile.is_some() { Some("-".to_owned()) } else { file };
            let load = move || {
                context::load(place, file.as_deref(), || match dockerfile {
                    Some(text) => Ok(text),
                    None => {
                        let mut text = Vec::new();
                        io::stdin().lock().read_to_end(&mut text)?;
                        Ok(text)
                    }
                })
            };
            let loaded = reading(load, cancelled).await;
            Ok(context::Loaded { origin, ..loaded? })
        })
        .await
}

/// Reads what may not come to an end, such as a pipe. The thread that waits for it does not hold up the end of the process.
async fn reading<T: Send + 'static>(
    read: impl FnOnce() -> Result<T, ContextError> + Send + 'static,
    cancelled: &CancellationToken,
) -> Result<T, BuildError> {
    tokio::select! {
        () = cancelled.cancelled() => Err(BuildError::Cancelled),
        read = tokio::task::spawn_blocking(read) => match read {
            Ok(read) => Ok(read?),
            Err(_) => Err(BuildError::Internal("a thread panicked".into())),
        },
    }
}

/// Where the context's files are; a Dockerfile that came in their stead.
async fn place(
    session: &Session,
    argument: ContextArg,
    cancelled: &CancellationToken,
) -> Result<(Place, Option<Vec<u8>>, Origin), BuildError> {
    let streamed = |stream: context::Stream, origin| match stream {
        context::Stream::Context(place) => (place, None, origin),
        context::Stream::Dockerfile(text) => (Place::Nothing, Some(text), origin),
    };
    match argument {
        ContextArg::Directory(path) => {
            if !path.is_dir() {
                return Err(ContextError::NoDirectory(path).into());
            }
            Ok((Place::Directory(path, None), None, Origin::default()))
        }
        ContextArg::Stdin => {
            let stream = reading(|| context::stream("standard input", io::stdin()), cancelled).await?;
            Ok(streamed(stream, Origin::default()))
        }
        ContextArg::Git(url) => {
            let (place, origin) = crate::worker::clone_context(session, &url, cancelled).await?;
            Ok((place, None, origin))
        }
        ContextArg::Http(url) => {
            let (file, origin) = crate::worker::download_context(session, &url, cancelled).await?;
            Ok(streamed(reading(move || context::stream(&url, file), cancelled).await?, origin))
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
) -> Result<(Images, Vec<(Vec<Digest>, Material)>), BuildError> {
    let mut images = Images::new();
    let mut bases = Vec::new();
    loop {
        let missing = plan.missing_images(&images).map_err(|problems| wrong(source, problems))?;
        if missing.is_empty() {
            return Ok((images, bases));
        }
        let found = missing.iter().map(|request| async move {
            let vertex = progress.vertex(&format!("[internal] load metadata for {}", request.reference));
            let found = tokio::select! {
                () = cancelled.cancelled() => return Err(BuildError::Cancelled),
                found = vertex.during(engines::find(session, request, pull, &vertex)) => found,
            };
            found.map_err(|error| BuildError::Base {
                source_file: source.clone(),
                span: request.span,
                hint: session.remote.damage(&request.reference).or_else(|| request.did_you_mean.clone()),
                source: error,
            })
        });
        let found = futures_util::future::try_join_all(found).await;
        if matches!(found, Err(BuildError::Base { .. })) {
            // It may be here and not found.
            session.store.examine_database()?;
        }
        for (request, found) in missing.into_iter().zip(found?) {
            bases.push((found.resolved.config.rootfs.diff_ids.clone(), found.material(&request)));
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

/// Which files of each local source a graph's steps see.
fn wanted(graph: &Graph<Op>) -> HashMap<String, Wanted> {
    let local = |(id, node): (NodeId, &graph::Node<Op>)| match &node.op {
        Op::Source(SourceOp::Local(local)) => Some((local.name.clone(), Wanted::of(graph, id))),
        _ => None,
    };
    graph.nodes().filter_map(local).collect()
}

/// Who carries out operations.
pub(crate) fn worker(
    session: &Session,
    wanted: HashMap<String, Wanted>,
    contexts: HashMap<String, Arc<LocalContext>>,
    policy: StepPolicy,
    imports: Imports,
    epoch: Option<jiff::Timestamp>,
) -> Result<BuildWorker, SessionError> {
    Ok(BuildWorker {
        store: Arc::clone(&session.store),
        layers: Arc::clone(&session.layers),
        launcher: session.launcher()?,
        http: Arc::clone(&session.http),
        policy,
        contexts,
        wanted,
        now: epoch.unwrap_or_else(jiff::Timestamp::now),
        scratch: session.store.scratch_directory(),
        network_noted: AtomicBool::new(false),
        turn: tokio::sync::Semaphore::new(1),
        imports,
        results: Mutex::default(),
        mounts: Mutex::default(),
        materials: Mutex::default(),
        builds: Builds::new(session.store.builds_directory()),
        ahead: Ahead::default(),
        limit: session.limit(),
        tidying: Arc::default(),
        keep_failed: session.config.gc.kept_steps(),
    })
}

struct Stacks {
    /// One for each root.
    rootfs: Vec<Rootfs>,
    hits: usize,
    misses: usize,
}

async fn solve(
    graph: &Graph<Op>,
    roots: &[Option<NodeId>],
    worker: Arc<BuildWorker>,
    options: &Options,
    source: &SourceFile,
    progress: &Progress,
    cancelled: &CancellationToken,
) -> Result<Stacks, BuildError> {
    let targets: Vec<NodeId> = roots.iter().flatten().copied().collect();
    let mut stacks = Stacks { rootfs: Vec::with_capacity(roots.len()), hits: 0, misses: 0 };
    if targets.is_empty() {
        stacks.rootfs = roots.iter().map(|_| Rootfs::empty()).collect();
        return Ok(stacks);
    }
    let solved = solver::solve(graph, &targets, Arc::clone(&worker), options, progress, cancelled).await;
    let solved = solved.map_err(|error| match error {
        SolveError::Cancelled => BuildError::Cancelled,
        SolveError::Task(why) => BuildError::Internal(why),
        SolveError::Missed { node, name } => {
            BuildError::Missed { source_file: source.clone(), span: graph.node(node).meta.span, name }
        }
        SolveError::Vertex { node, source: error, .. } => BuildError::Step {
            name: graph.node(node).meta.name.clone(),
            source_file: source.clone(),
            span: graph.node(node).meta.span,
            platform: foreign_platform(&graph.node(node).op),
            source: Box::new(error),
        },
    })?;
    let context = RunContext { progress: progress.vertex("[internal] result"), cancelled: cancelled.clone() };
    let mut solved = solved.into_iter();
    for root in roots {
        if root.is_none() {
            stacks.rootfs.push(Rootfs::empty());
            continue;
        }
        let solved = solved.next().ok_or_else(|| BuildError::Internal("a build without a result".into()))?;
        (stacks.hits, stacks.misses) = (solved.hits, solved.misses);
        stacks.rootfs.push(worker.rootfs_of(&context, &solved.output).await?);
    }
    Ok(stacks)
}

/// The platform of a step that runs programs of another machine's kind.
fn foreign_platform(op: &Op) -> Option<Platform> {
    let Op::Exec(exec) = op else { return None };
    (exec.platform.architecture != Platform::host().architecture).then(|| exec.platform.clone())
}

/// The image of one platform.
fn finish(
    session: &Session,
    one: &LoweredFor,
    rootfs: Rootfs,
    epoch: Option<jiff::Timestamp>,
    inline: Option<&[Recorded]>,
) -> Result<BuiltImage, BuildError> {
    let LoweredFor { lowered, bases } = one;
    let layers = match &rootfs.chain {
        None => Vec::new(),
        Some(chain) => session.store.chain_layers(chain)?,
    };
    let layers: Vec<BuiltLayer> =
        layers.into_iter().map(|layer| BuiltLayer { diff_id: layer.diff_id, created: layer.created }).collect();
    // Whatever image was resolved and is the beginning of the stack is what it was built upon.
    let begins_with = |base: &&Vec<Digest>| {
        base.len() <= layers.len() && base.iter().zip(&layers).all(|(diff_id, layer)| *diff_id == layer.diff_id)
    };
    let base_layers = bases.iter().map(|(base, _)| base).filter(begins_with).map(Vec::len).max().unwrap_or(0);
    let materials = bases.iter().map(|(_, material)| material.clone()).collect();
    let mut unfinished = lowered.config.clone();
    cache::strip_inline(&mut unfinished);
    if let Some(results) = inline {
        cache::inline_into(&mut unfinished, &session.store, results, rootfs.chain)?;
    }
    let config = image::finish(unfinished.clone(), &layers, epoch, jiff::Timestamp::now());
    let config = serde_json::to_vec(&config).map_err(|error| BuildError::Internal(error.to_string()))?;
    let id = Digest::of(&config);
    Ok(BuiltImage { platform: lowered.platform.clone(), rootfs, base_layers, unfinished, config, id, materials })
}
