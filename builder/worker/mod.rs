//! Carries out the operations of a graph: the one place where solver, store, sandbox and registries meet.

mod ahead;
mod decompress;
mod diff;
mod disk_guard;
mod exec;
mod file;
mod forms;
mod git;
mod growing;
mod http;
mod keep;
mod layers;
mod mask;
mod merge;
mod places;
mod roots;
mod secrets;
pub(crate) mod served;
mod soundness;
mod source;
mod step;
mod transfer;

use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use executor::Launcher;
use graph::{ContentDigest, Digest, FileAction, MountKind, Op, Operation};
use snapshotter::layer::LayerError;
use snapshotter::{CacheRecord, KeepBounds, KeyLock, LayerRecord, Store, StoreError};
use solver::{CacheKeys, RunContext, Worker};

use crate::builds::Builds;
use crate::cache::{Imports, Recorded, UsedMounts};
use crate::context::{ContextError, LocalContext, Wanted};
use crate::images::ImageError;
use crate::provenance::Material;

pub(crate) use ahead::Ahead;
pub use ahead::Leaving;
pub(crate) use decompress::decompressed;
pub(crate) use disk_guard::DiskGuard;
pub use exec::StepPolicy;
pub use file::FileError;
pub(crate) use file::{ReadableTree, archive_tree, wildcard};
pub use git::GitError;
pub(crate) use growing::{Begins, Growing};
pub use http::HttpError;
pub(crate) use keep::Opened;
pub(crate) use layers::BlobForm;
pub(crate) use layers::pipe;
pub use layers::{BlobTypes, Layers};
pub(crate) use roots::StepRoot;
pub use secrets::{SecretError, Secrets};
pub(crate) use source::{clone_context, download_context};
pub use step::{Ending, StepFailure};

/// An operation that could not be carried out.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum WorkError {
    #[error("{0}")]
    Step(StepFailure),
    #[error("{}", .0.command_line())]
    Start(StartFailure),
    #[error("{0}")]
    File(#[from] FileError),
    /// A COPY or ADD source, with what is known about why it is missing.
    #[error("{path}: not found in {place}")]
    NoSource { path: String, place: String, hint: Option<String> },
    #[error(transparent)]
    Context(#[from] ContextError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Image(#[from] ImageError),
    #[error(transparent)]
    Git(#[from] GitError),
    #[error(transparent)]
    Http(#[from] HttpError),
    #[error(transparent)]
    Layer(#[from] snapshotter::layer::LayerError),
    #[error(transparent)]
    Secret(SecretError),
    #[error("there is no secret {id:?}")]
    NoSecret { id: String },
    #[error("cannot listen for requests to an ssh agent")]
    Agent(#[source] std::io::Error),
    #[error("there is no ssh agent {id:?}")]
    NoSsh { id: String },
    #[error("there is no CDI device {0:?} on this machine")]
    NoDevice(String),
    #[error("this step needs {0}, which is not allowed")]
    NotAllowed(&'static str),
    #[error("layer {0} is in the store's records, but its data are gone")]
    LayerLost(Digest),
    /// A layer of a step is no longer where it was; the step can be run again.
    #[error("the layer {layer} of a cached step cannot be had")]
    LayerGone {
        layer: Digest,
        #[source]
        source: Box<WorkError>,
    },
    /// The input is known by what it is only.
    #[error("a cached step's layers are in no cache")]
    Hollow,
    #[error("a layer has diff id {found}, not {expected} as its image says")]
    WrongLayer { expected: Digest, found: Digest },
    #[error("layer {layer} does not hold what was said of it")]
    WrongContent { layer: Digest },
    #[error("cannot read or write while handling a layer")]
    Io(#[from] std::io::Error),
    #[error("{0} is not supported")]
    Unsupported(&'static str),
    #[error("what a cache mount begins with changed during the build")]
    CacheChanged,
    #[error("cannot remove the mount points of a step")]
    Stubs(#[source] executor::Error),
    #[error("cannot make a pipe")]
    Pipe(#[source] std::io::Error),
    #[error("internal error: {0}")]
    Internal(&'static str),
    #[error("cancelled")]
    Cancelled,
}

/// A step that could not be started.
#[derive(Debug)]
pub struct StartFailure {
    /// The command line.
    pub command: String,
    /// Why.
    pub error: executor::Error,
    /// Where what it was to start upon is kept, for `rbuild shell`.
    pub kept: Option<ContentDigest>,
}

impl StartFailure {
    fn command_line(&self) -> String {
        let Self { command, error, .. } = self;
        match error.exit_code() {
            Some(code) => format!("process {command:?} could not be started (exit code: {code}): {error}"),
            None => format!("process {command:?} could not be started: {error}"),
        }
    }
}

/// A stack of layers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rootfs {
    /// Chain id; `None` is the empty tree.
    pub chain: Option<Digest>,
    /// What it is, without times, made of its layers' content digests.
    pub content: ContentDigest,
}

impl Rootfs {
    pub(crate) fn empty() -> Self {
        Self { chain: None, content: ContentDigest::of(b"empty") }
    }

    /// This stack with one more layer.
    fn with(&self, layer: &LayerRecord) -> Self {
        Self { chain: Some(layer.chain), content: stacked(self.content, layer.content) }
    }
}

/// The content of a stack with a layer on it.
pub(crate) fn stacked(below: ContentDigest, layer: ContentDigest) -> ContentDigest {
    graph::KeyHasher::new("stack/1").field(below.as_bytes()).field(layer.as_bytes()).finish()
}

/// The result of an operation.
#[derive(Clone)]
pub enum Output {
    /// A stack of layers, possibly still at a registry.
    Layers(Rootfs),
    /// Files of the caller, as the scan found them.
    Local(Local),
    /// What a shared cache knows of a stack without having its layers.
    Hollow(ContentDigest),
}

/// A scanned context.
#[derive(Clone)]
pub struct Local {
    context: Arc<LocalContext>,
    tree: ReadableTree,
}

/// Does the work of one build.
pub struct BuildWorker {
    pub(crate) store: Arc<Store>,
    pub(crate) layers: Arc<Layers>,
    pub(crate) launcher: Launcher,
    pub(crate) http: Arc<registry::PlainClient>,
    pub(crate) policy: StepPolicy,
    pub(crate) contexts: HashMap<String, Arc<LocalContext>>,
    pub(crate) wanted: HashMap<String, Wanted>,
    /// Times of what has none of its own: SOURCE_DATE_EPOCH, or now.
    pub(crate) now: jiff::Timestamp,
    /// For temporary files.
    pub(crate) scratch: PathBuf,
    /// The person was told which network steps use.
    pub(crate) network_noted: AtomicBool,
    /// Held by a step where steps come one at a time.
    pub(crate) turn: tokio::sync::Semaphore,
    /// `--cache-from`
    pub(crate) imports: Imports,
    /// What was made and found, for `--cache-to`.
    pub(crate) results: Mutex<Vec<Recorded>>,
    /// Cache mounts that steps had.
    pub(crate) mounts: Mutex<UsedMounts>,
    /// What was fetched.
    pub(crate) materials: Mutex<BTreeSet<Material>>,
    /// What is remembered of builds.
    pub(crate) builds: Builds,
    /// What becomes of the layers.
    pub(crate) ahead: Ahead,
    /// The most that the store may take.
    pub(crate) limit: Option<u64>,
    /// The store is being brought below its limit.
    pub(crate) tidying: Arc<AtomicBool>,
    /// How much is kept of steps that fail; none: nothing.
    pub(crate) keep_failed: Option<KeepBounds>,
}

impl Worker for BuildWorker {
    type Op = Op;
    type Output = Output;
    type Error = WorkError;
    type Claim = KeyLock;

    fn recorded(&self, op: &Op) -> bool {
        !matches!(op, Op::Source(_))
    }

    fn takes_slot(&self, op: &Op) -> bool {
        matches!(op, Op::Exec(_))
    }

    fn identity(&self, output: &Output) -> Option<ContentDigest> {
        match output {
            Output::Layers(rootfs) => Some(rootfs.content),
            Output::Hollow(content) => Some(*content),
            Output::Local(_) => None,
        }
    }

    fn is_hollow(&self, output: &Output) -> bool {
        matches!(output, Output::Hollow(_))
    }

    fn lacks_data(&self, error: &WorkError) -> bool {
        matches!(error, WorkError::LayerGone { .. } | WorkError::Hollow)
    }

    async fn content_key(&self, op: &Op, position: usize, output: &Output) -> Result<Option<ContentDigest>, WorkError> {
        match (self.looks_at(op, position), output) {
            (Looks::All, Output::Layers(_) | Output::Hollow(_)) => Ok(None),
            (Looks::Sources, Output::Hollow(_)) if copies_all(op, position) => Ok(None),
            (Looks::Paths(paths), Output::Hollow(_)) if paths.iter().any(|path| path == "/") => Ok(None),
            (Looks::Sources | Looks::Paths(_), Output::Hollow(_)) => Err(WorkError::Hollow),
            (Looks::All, Output::Local(local)) => Ok(Some(local.tree.tree.digest(b"")?)),
            (Looks::Sources, output) => self.copied_content(op, position, output).await,
            (Looks::Paths(paths), Output::Local(local)) => self.paths_digest(output, &local.tree, &paths).map(Some),
            (Looks::Paths(paths), Output::Layers(rootfs)) => {
                if paths.iter().any(|path| path == "/") {
                    return Ok(None);
                }
                let context = self.quiet();
                let tree = self.layers.readable(&context, rootfs.chain.as_ref()).await?;
                self.paths_digest(output, &tree, &paths).map(Some)
            }
        }
    }

    async fn lookup(&self, context: &RunContext, key: &ContentDigest) -> Option<Output> {
        if let Ok(Some(record)) = self.store.lookup(key) {
            self.note(vec![*key], record.definition, record.chain, record.content, false);
            return Some(Output::Layers(Rootfs { chain: record.chain, content: record.content }));
        }
        let found = self.imports.lookup(context, key, |blob| self.layers.is_lost(blob)).await?;
        let chain = found.rootfs.as_ref().and_then(|rootfs| rootfs.chain);
        self.note(found.keys, found.op, chain, found.content, found.rootfs.is_none());
        Some(found.rootfs.map_or(Output::Hollow(found.content), Output::Layers))
    }

    /// Keeps which files a step sees, so that the next miss can be explained. Without that it is explained less well.
    async fn missed(&self, op: &Op, inputs: &[Output]) {
        for (position, output) in inputs.iter().enumerate() {
            let is_looked_at = matches!(self.looks_at(op, position), Looks::Sources | Looks::Paths(_));
            if !is_looked_at {
                continue;
            }
            let Ok(Some(selected)) = self.content_key(op, position, output).await else { continue };
            if self.builds.has_list(&selected) {
                continue;
            }
            let Ok(tree) = self.tree_of(&self.quiet(), output).await else { continue };
            let mut entries = Vec::new();
            for action in copies(op, position) {
                entries.extend(file::copied_entries(&tree.tree, action).unwrap_or_default());
            }
            if let Looks::Paths(paths) = self.looks_at(op, position) {
                for path in paths {
                    let path = snapshotter::layer::clean(path.as_bytes());
                    let _ = tree.tree.walk(&path, |found| {
                        let mut entry = tree.tree.file_of(found).map_or(found.entry, |file| file.entry).clone();
                        (entry.path, entry.mtime) = (found.entry.path.clone(), (0, 0));
                        entries.push(entry);
                        Ok::<_, std::convert::Infallible>(())
                    });
                }
            }
            let _ = self.builds.write_list(&selected, &snapshotter::layer::LayerIndex::new(entries));
        }
    }

    async fn claim(&self, context: &RunContext, key: &ContentDigest) -> Result<KeyLock, WorkError> {
        let name = format!("key:{key}");
        if let Some(lock) = self.store.try_lock(&name)? {
            return Ok(lock);
        }
        context.progress.status(solver::Status {
            id: "waiting for another build that runs the same step".into(),
            current: 0,
            total: 0,
            done: false,
        });
        let (store, cancelled) = (Arc::clone(&self.store), context.cancelled.clone());
        blocking(move || Ok(store.lock(&name, &|| cancelled.is_cancelled())?)).await
    }

    async fn run(&self, context: RunContext, op: &Op, inputs: &[Output]) -> Result<Output, WorkError> {
        match op {
            Op::Source(source) => self.source(&context, source).await,
            Op::Exec(exec) => self.exec(&context, exec, inputs).await.map(Output::Layers),
            Op::File(file) => self.file(&context, file, inputs).await.map(Output::Layers),
            Op::Merge(merge) => self.merge(&context, merge, inputs).await.map(Output::Layers),
            Op::Diff(diff) => self.diff(diff, inputs).map(Output::Layers),
        }
    }

    async fn save(&self, op: &Op, keys: &CacheKeys, output: &Output) -> Result<(), WorkError> {
        let rootfs = match output {
            Output::Layers(rootfs) => rootfs,
            Output::Hollow(content) => {
                self.note(keys.all(), op.key(), None, *content, true);
                return Ok(());
            }
            Output::Local(_) => return Ok(()),
        };
        self.note(keys.all(), op.key(), rootfs.chain, rootfs.content, false);
        let record = CacheRecord { chain: rootfs.chain, content: rootfs.content, definition: op.key() };
        self.store.save_made_by(&keys.all(), &record, made_by(op).as_deref())?;
        self.tidy();
        Ok(())
    }
}

/// What made a layer, for the list of what takes space.
fn made_by(op: &Op) -> Option<String> {
    match op {
        Op::Exec(exec) => Some(format!("RUN {}", exec.args.join(" "))),
        Op::File(file) => Some(match file.actions.first()? {
            FileAction::Copy(copy) if copy.attempt_unpack => format!("ADD {} {}", copy.src, copy.dest),
            FileAction::Copy(copy) => format!("COPY {} {}", copy.src, copy.dest),
            FileAction::Mkdir(mkdir) => format!("WORKDIR {}", mkdir.path),
            FileAction::Mkfile(mkfile) => format!("COPY {}", mkfile.path),
        }),
        Op::Source(_) | Op::Merge(_) | Op::Diff(_) => None,
    }
}

/// How much of an input an operation sees.
enum Looks {
    All,
    /// What COPY names.
    Sources,
    /// Only these paths.
    Paths(Vec<String>),
}

impl BuildWorker {
    fn note(
        &self,
        keys: Vec<ContentDigest>,
        op: ContentDigest,
        chain: Option<Digest>,
        content: ContentDigest,
        hollow: bool,
    ) {
        let recorded = Recorded { keys, op, chain, content, hollow };
        self.results.lock().unwrap_or_else(PoisonError::into_inner).push(recorded);
    }

    /// What was made and found until now.
    pub(crate) fn take_results(&self) -> Vec<Recorded> {
        std::mem::take(&mut *self.results.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Cache mounts that steps had until now.
    pub(crate) fn used_mounts(&self) -> UsedMounts {
        self.mounts.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Keeps the store below its limit while steps add to it, on a thread of its own and never twice at a time.
    fn tidy(&self) {
        let Some(limit) = self.limit else { return };
        if self.tidying.swap(true, Ordering::Relaxed) {
            return;
        }
        let (store, tidying) = (Arc::clone(&self.store), Arc::clone(&self.tidying));
        tokio::task::spawn_blocking(move || {
            // What fails now is tried again after the next step, and told at the end.
            let _ = store.keep_below(limit, false);
            tidying.store(false, Ordering::Relaxed);
        });
    }

    fn looks_at(&self, op: &Op, position: usize) -> Looks {
        let here = |input: Option<u32>| input.is_some_and(|input| input as usize == position);
        match op {
            Op::File(file) if here(file.base) => Looks::All,
            Op::File(_) => Looks::Sources,
            Op::Exec(exec) if here(exec.root) => Looks::All,
            Op::Exec(exec) => {
                let selector = |mount: &graph::Mount| match &mount.kind {
                    MountKind::Bind(bind) if here(bind.input) => Some(bind.selector.clone()),
                    MountKind::Cache(cache) if here(cache.from.input) => Some(cache.from.selector.clone()),
                    _ => None,
                };
                Looks::Paths(exec.mounts.iter().filter_map(selector).collect())
            }
            Op::Source(_) | Op::Merge(_) | Op::Diff(_) => Looks::All,
        }
    }

    /// The content of what a COPY names in the input at `position`.
    async fn copied_content(
        &self,
        op: &Op,
        position: usize,
        output: &Output,
    ) -> Result<Option<ContentDigest>, WorkError> {
        if matches!(output, Output::Layers(_)) && copies_all(op, position) {
            return Ok(None);
        }
        let tree = self.tree_of(&self.quiet(), output).await?;
        let mut hasher = graph::KeyHasher::new("copied/1");
        for action in copies(op, position) {
            let digest = file::copied_digest(&tree.tree, action);
            let digest = digest.map_err(|error| self.explain_missing(output, &tree, error))?;
            hasher.field(digest.as_bytes());
        }
        Ok(Some(hasher.finish()))
    }

    /// The files of an output.
    async fn tree_of(&self, context: &RunContext, output: &Output) -> Result<ReadableTree, WorkError> {
        match output {
            Output::Layers(rootfs) => self.layers.readable(context, rootfs.chain.as_ref()).await,
            Output::Local(local) => Ok(local.tree.clone()),
            Output::Hollow(_) => Err(WorkError::Hollow),
        }
    }

    /// An input as a stack of layers; `None` is the empty one.
    async fn input_rootfs(
        &self,
        context: &RunContext,
        input: Option<u32>,
        inputs: &[Output],
    ) -> Result<Rootfs, WorkError> {
        match input.map(|input| inputs.get(input as usize)) {
            None => Ok(Rootfs::empty()),
            Some(None) => Err(WorkError::Internal("an op names an input that it does not have")),
            Some(Some(Output::Layers(rootfs))) => Ok(rootfs.clone()),
            Some(Some(Output::Local(local))) => self.import(context, local).await,
            Some(Some(Output::Hollow(_))) => Err(WorkError::Hollow),
        }
    }

    /// An output as a stack of layers, as the result of a build must be.
    pub(crate) async fn rootfs_of(&self, context: &RunContext, output: &Output) -> Result<Rootfs, WorkError> {
        match output {
            Output::Layers(rootfs) => Ok(rootfs.clone()),
            Output::Local(local) => self.import(context, local).await,
            Output::Hollow(_) => Err(WorkError::Hollow),
        }
    }

    /// Says why a source is missing, if that can be known.
    fn explain_missing(&self, output: &Output, tree: &ReadableTree, error: FileError) -> WorkError {
        let FileError::NotFound { path } = error else { return WorkError::File(error) };
        match output {
            Output::Local(local) => {
                let hint = local.context.why_missing(&path);
                WorkError::NoSource { path, place: local.context.describe(), hint }
            }
            Output::Layers(_) | Output::Hollow(_) => {
                let hint = crate::context::missing::explain(tree.tree.as_ref(), &path);
                WorkError::NoSource { path, place: "the source image or stage".into(), hint }
            }
        }
    }

    /// The content of what a step's mounts show of an input.
    fn paths_digest(&self, output: &Output, tree: &ReadableTree, paths: &[String]) -> Result<ContentDigest, WorkError> {
        let mut hasher = graph::KeyHasher::new("paths/1");
        for path in paths {
            let digest = match tree.tree.digest(path.as_bytes()) {
                Err(LayerError::Missing { .. }) => {
                    return Err(self.explain_missing(output, tree, FileError::NotFound { path: path.clone() }));
                }
                other => other?,
            };
            hasher.field(path.as_bytes()).optional(Some(&digest.as_bytes()[..]));
        }
        Ok(hasher.finish())
    }

    /// A context for look-ups that report nothing and are not cancelled on their own.
    fn quiet(&self) -> RunContext {
        let (progress, _) = solver::channel();
        RunContext { progress: progress.vertex("look-up"), cancelled: Default::default() }
    }
}

/// What a COPY takes out of the input at `position`.
fn copies(op: &Op, position: usize) -> impl Iterator<Item = &graph::CopyAction> {
    let file = if let Op::File(file) = op { Some(file) } else { None };
    file.into_iter().flat_map(|file| &file.actions).filter_map(move |action| match action {
        FileAction::Copy(copy) if copy.from as usize == position => Some(copy.as_ref()),
        _ => None,
    })
}

fn copies_all(op: &Op, position: usize) -> bool {
    copies(op, position).any(|action| action.src == "/" && action.exclude.is_empty())
}

/// Runs what blocks on a thread for it.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, WorkError> + Send + 'static,
) -> Result<T, WorkError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(_) => Err(WorkError::Internal("a thread panicked")),
    }
}
