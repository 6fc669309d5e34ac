//! Steps of builds that are over, opened once more: what `rbuild shell` stands on.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use graph::{ContentDigest, ExecOp, MountKind, NetworkMode, Op, SecurityMode, SourceOp};
use solver::RunContext;

use crate::build;
use crate::builds::{BuildRecord, Step};
use crate::cache::Imports;
use crate::context::{self, LocalContext, Place, Wanted};
use crate::images::chain_of;
use crate::session::{Session, SessionError};
use crate::worker::{BuildWorker, Opened, Output, Rootfs, StepPolicy, WorkError};

/// Which state of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Moment {
    /// When it had ended, or had failed.
    After,
    /// When it was about to begin.
    Before,
}

/// A step that cannot be opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    /// It failed, and what it left was not kept, or not for so long.
    #[error("what step {0} left is not kept any more")]
    Gone(usize),
    /// Its result was collected.
    #[error("the result of step {0} is not in the store any more")]
    NoResult(usize),
    /// It gives no file system.
    #[error("step {0} leaves no file system behind")]
    NoFiles(usize),
    /// Carrying it out.
    #[error(transparent)]
    Work(#[from] WorkError),
    /// The launcher.
    #[error(transparent)]
    Session(#[from] SessionError),
}

/// A step's world, and what of it could not be had.
pub(crate) struct World {
    pub(crate) opened: Opened,
    pub(crate) missing: Vec<String>,
}

/// Opens the step at `position` of a build.
pub(crate) async fn open(
    session: &Session,
    record: &BuildRecord,
    position: usize,
    moment: Moment,
    policy: StepPolicy,
    quiet: &RunContext,
) -> Result<World, OpenError> {
    let past = Past { record, session };
    let (op, of) = past.settings(position);
    let (contexts, wanted) = past.contexts(of);
    let imports = Imports::new(Vec::new(), session.remote.clone(), Arc::clone(&session.store));
    let worker = build::worker(session, wanted, contexts, policy, imports, None)?;
    let step = &record.steps[position];
    let mut op = op.unwrap_or_else(plain);
    let kept = match step.kept.filter(|_| moment == Moment::After) {
        Some(key) => Some(worker.kept(&op, &key)?.ok_or(OpenError::Gone(position + 1))?),
        None => None,
    };
    let mut missing = Vec::new();
    let (rootfs, sources) = match kept {
        Some(kept) => kept,
        None => {
            let rootfs = past.rootfs(&worker, position, moment).await?;
            let mut sources = Vec::with_capacity(op.mounts.len());
            for mount in &op.mounts {
                let source = past.source(&worker, of, &mount.kind).await;
                if matches!(source, Source::Lost) {
                    missing.push(mount.dest.clone());
                }
                sources.push(source);
            }
            let mut keep = sources.iter().map(|source| !matches!(source, Source::Lost));
            op.mounts.retain(|_| keep.next().unwrap_or(true));
            let had = |source| match source {
                Source::Output(output) => Some(Some(output)),
                Source::None => Some(None),
                Source::Lost => None,
            };
            (rootfs, sources.into_iter().filter_map(had).collect())
        }
    };
    let opened = worker.open(quiet, op, &rootfs, sources).await?;
    Ok(World { opened, missing })
}

/// What a mount shows something of.
enum Source {
    Output(Output),
    /// Nothing of others.
    None,
    /// It was not kept.
    Lost,
}

struct Past<'b> {
    record: &'b BuildRecord,
    session: &'b Session,
}

impl Past<'_> {
    /// User, directory, environment and mounts: of the step itself if it runs something, else of the nearest RUN before it in
    /// its stage, or of one that builds upon it.
    fn settings(&self, position: usize) -> (Option<ExecOp>, usize) {
        let mut next = Some(position);
        while let Some(at) = next {
            match self.op(at) {
                Some(Op::Exec(exec)) => return (Some(*exec), at),
                Some(op) => next = self.base(at, &op),
                None => break,
            }
        }
        let above = (position + 1..self.record.steps.len()).find_map(|at| match self.op(at) {
            Some(Op::Exec(exec)) if self.base(at, &Op::Exec(exec.clone())) == Some(position) => Some((Some(*exec), at)),
            _ => None,
        });
        above.unwrap_or((None, position))
    }

    fn step(&self, position: usize) -> Option<&Step> {
        self.record.steps.get(position)
    }

    fn op(&self, position: usize) -> Option<Op> {
        serde_json::from_value(self.step(position)?.op.clone()?).ok()
    }

    /// The step whose file system this one builds upon.
    fn base(&self, position: usize, op: &Op) -> Option<usize> {
        let input = match op {
            Op::Exec(exec) => exec.root,
            Op::File(file) => file.base,
            Op::Merge(_) | Op::Diff(_) => Some(0),
            Op::Source(_) => None,
        };
        self.step(position)?.inputs.get(input? as usize).copied()
    }

    async fn rootfs(&self, worker: &BuildWorker, position: usize, moment: Moment) -> Result<Rootfs, OpenError> {
        let failed = self.step(position).is_some_and(|step| step.error.is_some());
        let at = match (moment, self.op(position)) {
            (Moment::After, Some(_)) if failed => return Err(OpenError::Gone(position + 1)),
            (Moment::After, _) => position,
            (Moment::Before, Some(op)) => match self.base(position, &op) {
                Some(base) => base,
                None => return Ok(Rootfs::empty()),
            },
            (Moment::Before, None) => return Err(OpenError::NoFiles(position + 1)),
        };
        match self.output(worker, at).await? {
            Some(Output::Layers(rootfs)) => Ok(rootfs),
            Some(_) => Err(OpenError::NoFiles(at + 1)),
            None => Err(OpenError::NoResult(at + 1)),
        }
    }

    /// The result of a step; `None` if it is there no more.
    async fn output(&self, worker: &BuildWorker, position: usize) -> Result<Option<Output>, OpenError> {
        let step = self.step(position).ok_or(OpenError::NoFiles(position + 1))?;
        match self.op(position) {
            Some(Op::Source(SourceOp::Image(image))) => {
                let Some(chain) = chain_of(&image.diff_ids) else { return Ok(Some(Output::Layers(Rootfs::empty()))) };
                if self.session.store.layer(&chain).map_err(WorkError::from)?.is_none() {
                    return Ok(None);
                }
                Ok(Some(worker.output_of(&SourceOp::Image(image)).await?))
            }
            Some(Op::Source(source)) => Ok(Some(worker.output_of(&source).await?)),
            Some(_) => {
                let keys = step.keys.as_ref().map(|keys| [keys.content, keys.definition]);
                for key in keys.into_iter().flatten().flatten() {
                    if let Some(rootfs) = worker.recorded_stack(&key)? {
                        return Ok(Some(Output::Layers(rootfs)));
                    }
                }
                Ok(None)
            }
            None => Err(OpenError::NoFiles(position + 1)),
        }
    }

    /// What a mount of the step at `of` shows. The build context is shown as it is now.
    async fn source(&self, worker: &BuildWorker, of: usize, kind: &MountKind) -> Source {
        let input = match kind {
            MountKind::Bind(bind) => bind.input,
            MountKind::Cache(cache) => cache.from.input,
            MountKind::Tmpfs { .. } | MountKind::Secret(_) | MountKind::Ssh(_) => None,
        };
        let Some(input) = input else { return Source::None };
        let Some(&position) = self.step(of).and_then(|step| step.inputs.get(input as usize)) else {
            return Source::Lost;
        };
        match self.output(worker, position).await {
            Ok(Some(output)) => Source::Output(output),
            Ok(None) | Err(_) => Source::Lost,
        }
    }

    /// The directory that was the context, as far as mounts of the step at `of` show it.
    fn contexts(&self, of: usize) -> (HashMap<String, Arc<LocalContext>>, HashMap<String, Wanted>) {
        let (mut contexts, mut wanted) = (HashMap::new(), HashMap::new());
        let root = Path::new(&self.record.context);
        let (Some(Op::Exec(exec)), true) = (self.op(of), root.is_absolute() && root.is_dir()) else {
            return (contexts, wanted);
        };
        for mount in &exec.mounts {
            let (MountKind::Bind(bind) | MountKind::Cache(graph::CacheMount { from: bind, .. })) = &mount.kind else {
                continue;
            };
            let position = bind.input.and_then(|input| self.step(of)?.inputs.get(input as usize).copied());
            let Some(Op::Source(SourceOp::Local(local))) = position.and_then(|position| self.op(position)) else {
                continue;
            };
            // Where other contexts were is not remembered.
            if local.name != context::MAIN_CONTEXT {
                continue;
            }
            let Ok(ignore) = context::ignore_of(root) else { continue };
            let place = Place::Directory(root.to_owned(), None);
            contexts.insert(local.name.clone(), Arc::new(LocalContext { name: local.name.clone(), place, ignore }));
            wanted.entry(local.name).or_insert_with(Wanted::default).add_literal(bind.selector.as_bytes());
        }
        (contexts, wanted)
    }
}

/// For steps without any RUN nearby.
fn plain() -> ExecOp {
    ExecOp {
        root: None,
        args: vec!["/bin/sh".to_owned()],
        env: vec![split(executor::spec::DEFAULT_PATH)],
        cwd: "/".to_owned(),
        user: String::new(),
        mounts: Vec::new(),
        secret_env: Vec::new(),
        secret_macs: Vec::<(String, ContentDigest)>::new(),
        network: NetworkMode::Default,
        security: SecurityMode::Sandbox,
        devices: Vec::new(),
        extra_hosts: Vec::new(),
        hostname: None,
        platform: graph::Platform::host(),
        proxy: graph::ProxyEnv::default(),
    }
}

fn split(variable: &str) -> (String, String) {
    let (name, value) = variable.split_once('=').unwrap_or((variable, ""));
    (name.to_owned(), value.to_owned())
}
