//! Steps to be looked at: one that failed is kept, and any is opened once more as it was left.

use executor::Process;
use graph::{ContentDigest, ExecOp, KeyHasher, MountKind, SourceOp};
use snapshotter::CacheRecord;
use snapshotter::layer::Tree;
use solver::RunContext;

use super::exec::Held;
use super::{BuildWorker, Output, Rootfs, StepRoot, WorkError};

/// A process in the world of a step. What it writes, except to cache mounts, is gone when this is dropped.
pub(crate) struct Opened {
    /// With the step's own command.
    pub(crate) process: Process,
    /// The files that it sees, without what is mounted.
    pub(crate) tree: std::sync::Arc<Tree>,
    /// Why its programs may not be executable here.
    pub(crate) unsupported: Option<executor::Error>,
    held: (StepRoot, Held),
}

impl Opened {
    /// The process has ended.
    pub(crate) fn end(self) {
        drop(self.held);
    }
}

impl BuildWorker {
    /// Keeps what a failed step left, or was to start upon, for `rbuild shell`, and answers under which key. What cannot be
    /// kept is no reason for anything: that the step failed is.
    pub(super) fn keep(
        &self,
        op: &ExecOp,
        left: &Rootfs,
        bytes: u64,
        sources: &[Option<Rootfs>],
    ) -> Option<ContentDigest> {
        let bounds = self.keep_failed?;
        let mut random = [0; 32];
        rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty()).ok()?;
        let key = ContentDigest::from_bytes(random);
        let record = |rootfs: &Rootfs| CacheRecord { chain: rootfs.chain, content: rootfs.content, definition: key };
        let of_mounts = sources.iter().enumerate().filter_map(|(position, source)| {
            let source = source.as_ref()?;
            Some((key_of_mount(&key, position), record(source)))
        });
        let stacks: Vec<_> = std::iter::once((key, record(left))).chain(of_mounts).collect();
        self.store.keep_failed(&stacks, bytes, bounds).ok()?;
        if let Some(chain) = left.chain.filter(|_| bytes > 0) {
            let _ = self.store.describe_layer(&chain, &format!("failed: RUN {}", op.args.join(" ")));
        }
        Some(key)
    }

    /// What a failed step left, and by mount what was shown; `None` if it was collected since.
    pub(crate) fn kept(
        &self,
        op: &ExecOp,
        key: &ContentDigest,
    ) -> Result<Option<(Rootfs, Vec<Option<Output>>)>, WorkError> {
        let Some(left) = self.recorded_stack(key)? else { return Ok(None) };
        let mounts = 0..op.mounts.len();
        let of_mount = |position| Ok(self.recorded_stack(&key_of_mount(key, position))?.map(Output::Layers));
        Ok(Some((left, mounts.map(of_mount).collect::<Result<_, WorkError>>()?)))
    }

    /// What comes from outside, as it is now.
    pub(crate) async fn output_of(&self, source: &SourceOp) -> Result<Output, WorkError> {
        self.source(&self.quiet(), source).await
    }

    /// What is recorded under a key.
    pub(crate) fn recorded_stack(&self, key: &ContentDigest) -> Result<Option<Rootfs>, WorkError> {
        let found = self.store.lookup(key)?;
        Ok(found.map(|record| Rootfs { chain: record.chain, content: record.content }))
    }

    /// Makes ready what a step sees, on `rootfs`. Of `sources`, by mount, something is shown.
    pub(crate) async fn open(
        &self,
        context: &RunContext,
        mut op: ExecOp,
        rootfs: &Rootfs,
        sources: Vec<Option<Output>>,
    ) -> Result<Opened, WorkError> {
        self.check_entitlements(&op)?;
        let mut inputs = Vec::new();
        for (mount, source) in op.mounts.iter_mut().zip(sources) {
            if let MountKind::Bind(from) | MountKind::Cache(graph::CacheMount { from, .. }) = &mut mount.kind {
                from.input = source.map(|source| {
                    inputs.push(source);
                    graph::InputIndex::try_from(inputs.len() - 1).unwrap_or(graph::InputIndex::MAX)
                });
            }
        }
        let root = self.layers.root(context, rootfs.chain.as_ref(), true).await?;
        let (process, held) = self.prepare(context, &op, &inputs, root.root()).await?;
        let tree = self.layers.readable(context, rootfs.chain.as_ref()).await?.tree;
        Ok(Opened { process, tree, unsupported: held.unsupported.clone(), held: (root, held) })
    }
}

fn key_of_mount(key: &ContentDigest, position: usize) -> ContentDigest {
    KeyHasher::new("kept-mount/1").field(key.as_bytes()).number(position as u64).finish()
}
