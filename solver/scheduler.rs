//! One loop owns the state of a build.
//!
//! A vertex becomes a task when its last input is solved. The task computes keys, asks the cache, claims, runs, saves and
//! reports back; the loop alone decides what comes next. The first failure cancels the rest; the loop returns when the
//! last task has.

use std::collections::HashMap;
use std::sync::Arc;

use graph::{ContentDigest, Graph, KeyHasher, Node, NodeId, Operation};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::key::{InputKey, content_key, definition_key};
use crate::{CacheKeys, Progress, RunContext, VertexProgress, Worker};

/// How to solve.
#[derive(Clone, Debug)]
pub struct Options {
    /// Steps that may run at the same time, at least 1.
    pub parallel: usize,
}

/// The output of one target.
#[derive(Clone, Debug)]
pub struct Solved<O> {
    /// The output.
    pub output: O,
    /// How many vertices were found in the cache.
    pub hits: usize,
    /// How many recorded vertices had to run.
    pub misses: usize,
}

/// Why a build ended without its targets.
#[derive(Debug, thiserror::Error)]
pub enum SolveError<E: std::error::Error + 'static> {
    /// A vertex failed.
    #[error("{name}: {source}")]
    Vertex {
        /// The vertex.
        node: NodeId,
        /// Its name.
        name: String,
        /// Why.
        source: E,
    },
    /// The caller gave up.
    #[error("the build was cancelled")]
    Cancelled,
    /// A task panicked: a bug of ours.
    #[error("internal error: a step's task ended unexpectedly: {0}")]
    Task(String),
}

/// Solves `targets` of `graph`.
///
/// # Errors
/// The first failure of a vertex, or that `cancelled` fired.
pub async fn solve<W: Worker>(
    graph: &Graph<W::Op>,
    targets: &[NodeId],
    worker: Arc<W>,
    options: &Options,
    progress: &Progress,
    cancelled: &CancellationToken,
) -> Result<Vec<Solved<W::Output>>, SolveError<W::Error>> {
    let order = graph.reachable(targets);
    let mut state = State::new(graph, &order, worker, options, progress, cancelled.child_token());
    for &id in &order {
        if graph.node(id).inputs.is_empty() {
            state.start(id);
        }
    }
    while let Some(joined) = state.tasks.join_next().await {
        match joined {
            Ok((id, Ok(done))) => state.finish(id, done),
            Ok((id, Err(failure))) => state.fail(id, failure),
            Err(error) => state.give_up(SolveError::Task(error.to_string())),
        }
    }
    if cancelled.is_cancelled() {
        return Err(SolveError::Cancelled);
    }
    if let Some(error) = state.error {
        return Err(error);
    }
    let (hits, misses) = (state.hits, state.misses);
    let output = |id: &NodeId| state.outputs.get(id).cloned().map(|output| Solved { output, hits, misses });
    let solved: Option<Vec<_>> = targets.iter().map(output).collect();
    solved.ok_or_else(|| SolveError::Task("a target was never reached".into()))
}

/// What became of a vertex.
struct Done<O> {
    output: O,
    how: How,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum How {
    Found,
    Ran,
    /// Sources, which are not recorded.
    Brought,
}

enum Failure<E> {
    Error(E),
    Cancelled,
}

impl<E> From<E> for Failure<E> {
    fn from(error: E) -> Self {
        Self::Error(error)
    }
}

type Outcome<W> = Result<Done<<W as Worker>::Output>, Failure<<W as Worker>::Error>>;

struct State<'g, W: Worker> {
    graph: &'g Graph<W::Op>,
    worker: Arc<W>,
    slots: Arc<Semaphore>,
    cancelled: CancellationToken,
    vertices: HashMap<NodeId, VertexProgress>,
    /// Inputs (counted once each) that are not solved yet.
    pending: HashMap<NodeId, usize>,
    outputs: HashMap<NodeId, W::Output>,
    tasks: JoinSet<(NodeId, Outcome<W>)>,
    error: Option<SolveError<W::Error>>,
    hits: usize,
    misses: usize,
}

impl<'g, W: Worker> State<'g, W> {
    fn new(
        graph: &'g Graph<W::Op>,
        order: &[NodeId],
        worker: Arc<W>,
        options: &Options,
        progress: &Progress,
        cancelled: CancellationToken,
    ) -> Self {
        let vertices = announce(graph, order, progress);
        let pending = order.iter().map(|&id| (id, distinct(&graph.node(id).inputs))).collect();
        Self {
            graph,
            worker,
            slots: Arc::new(Semaphore::new(options.parallel.max(1))),
            cancelled,
            vertices,
            pending,
            outputs: HashMap::new(),
            tasks: JoinSet::new(),
            error: None,
            hits: 0,
            misses: 0,
        }
    }

    fn start(&mut self, id: NodeId) {
        if self.cancelled.is_cancelled() {
            return;
        }
        let node: Node<W::Op> = self.graph.node(id).clone();
        let inputs = node.inputs.iter().map(|input| self.outputs[input].clone()).collect();
        let context = RunContext { progress: self.vertices[&id].clone(), cancelled: self.cancelled.clone() };
        let vertex = Vertex { worker: Arc::clone(&self.worker), slots: Arc::clone(&self.slots), node, inputs, context };
        self.tasks.spawn(async move { (id, vertex.solve().await) });
    }

    fn finish(&mut self, id: NodeId, done: Done<W::Output>) {
        match done.how {
            How::Found => self.hits += 1,
            How::Ran => self.misses += 1,
            How::Brought => {}
        }
        self.outputs.insert(id, done.output);
        for user in self.graph.users(id) {
            // Users outside the reachable part are not counted and never become ready.
            let Some(pending) = self.pending.get_mut(&user) else { continue };
            *pending -= 1;
            if *pending == 0 {
                self.start(user);
            }
        }
    }

    fn fail(&mut self, id: NodeId, failure: Failure<W::Error>) {
        if let Failure::Error(source) = failure {
            let name = self.graph.node(id).meta.name.clone();
            self.give_up(SolveError::Vertex { node: id, name, source });
        }
    }

    /// What fails after the first failure fails because of it.
    fn give_up(&mut self, error: SolveError<W::Error>) {
        self.cancelled.cancel();
        self.error.get_or_insert(error);
    }
}

fn distinct(inputs: &[NodeId]) -> usize {
    let mut ids = inputs.to_vec();
    ids.sort_unstable();
    ids.dedup();
    ids.len()
}

fn announce<O: Operation<Key = ContentDigest>>(
    graph: &Graph<O>,
    order: &[NodeId],
    progress: &Progress,
) -> HashMap<NodeId, VertexProgress> {
    let mut vertices: HashMap<NodeId, VertexProgress> = HashMap::with_capacity(order.len());
    let mut digests: HashMap<NodeId, ContentDigest> = HashMap::with_capacity(order.len());
    for &id in order {
        let node = graph.node(id);
        let mut hasher = KeyHasher::new("announced/1");
        hasher.field(node.op.key().as_bytes());
        for input in &node.inputs {
            hasher.field(digests[input].as_bytes());
        }
        let digest = hasher.finish();
        let inputs = node.inputs.iter().map(|input| vertices[input].id()).collect();
        vertices.insert(id, progress.announce(&node.meta.name, node.meta.span, digest, inputs));
        digests.insert(id, digest);
    }
    vertices
}

/// One vertex, all inputs solved, on its way to an output.
struct Vertex<W: Worker> {
    worker: Arc<W>,
    slots: Arc<Semaphore>,
    node: Node<W::Op>,
    inputs: Vec<W::Output>,
    context: RunContext,
}

impl<W: Worker> Vertex<W> {
    async fn solve(self) -> Outcome<W> {
        let progress = self.context.progress.clone();
        progress.started();
        let outcome = if self.worker.recorded(&self.node.op) { self.find_or_run().await } else { self.bring().await };
        match &outcome {
            Ok(done) => {
                if done.how == How::Found {
                    progress.cached();
                }
                progress.completed();
            }
            Err(Failure::Error(error)) => progress.failed(error.to_string()),
            Err(Failure::Cancelled) => progress.failed("cancelled".into()),
        }
        outcome
    }

    async fn bring(&self) -> Outcome<W> {
        let output = self.run().await?;
        Ok(Done { output, how: How::Brought })
    }

    async fn find_or_run(&self) -> Outcome<W> {
        let op = self.node.op.key();
        let identities: Vec<_> = self.inputs.iter().map(|input| self.worker.identity(input)).collect();
        let definition = definition_key(op, &identities);
        let look = !self.node.meta.ignore_cache;
        if look && let Some(found) = self.find(definition).await {
            return Ok(found);
        }
        let keys = self.keys(op, definition, &identities).await?;
        if look
            && Some(keys.content) != definition
            && let Some(found) = self.find(Some(keys.content)).await
        {
            self.worker.save(&self.node.op, &keys, &found.output).await?;
            return Ok(found);
        }
        let _slot = self.slot().await?;
        let _claim = self.unless_cancelled(self.worker.claim(&self.context, &keys.content)).await?;
        // Another builder may have done it while this one waited.
        if look && let Some(found) = self.find(Some(keys.content)).await {
            return Ok(found);
        }
        let output = self.run().await?;
        self.worker.save(&self.node.op, &keys, &output).await?;
        Ok(Done { output, how: How::Ran })
    }

    async fn find(&self, key: Option<ContentDigest>) -> Option<Done<W::Output>> {
        let output = self.worker.lookup(&key?).await?;
        Some(Done { output, how: How::Found })
    }

    async fn keys(
        &self,
        op: ContentDigest,
        definition: Option<ContentDigest>,
        identities: &[Option<ContentDigest>],
    ) -> Result<CacheKeys, Failure<W::Error>> {
        let mut inputs = Vec::with_capacity(self.inputs.len());
        for (position, (output, &identity)) in self.inputs.iter().zip(identities).enumerate() {
            let selected = self.unless_cancelled(self.worker.content_key(&self.node.op, position, output)).await?;
            inputs.push(InputKey { identity, selected });
        }
        // An input without any content stands for something new each time.
        let content = content_key(op, &inputs).unwrap_or_else(|| unique(op));
        Ok(CacheKeys { definition, content })
    }

    async fn slot(&self) -> Result<Option<tokio::sync::OwnedSemaphorePermit>, Failure<W::Error>> {
        if !self.worker.takes_slot(&self.node.op) {
            return Ok(None);
        }
        tokio::select! {
            () = self.context.cancelled.cancelled() => Err(Failure::Cancelled),
            permit = Arc::clone(&self.slots).acquire_owned() => permit.map(Some).map_err(|_| Failure::Cancelled),
        }
    }

    /// Not dropped when cancelled: a worker stops its children itself, and cleans up.
    async fn run(&self) -> Result<W::Output, Failure<W::Error>> {
        if self.context.cancelled.is_cancelled() {
            return Err(Failure::Cancelled);
        }
        let result = self.worker.run(self.context.clone(), &self.node.op, &self.inputs).await;
        match result {
            Ok(output) => Ok(output),
            Err(_) if self.context.cancelled.is_cancelled() => Err(Failure::Cancelled),
            Err(error) => Err(Failure::Error(error)),
        }
    }

    async fn unless_cancelled<T>(
        &self,
        work: impl Future<Output = Result<T, W::Error>>,
    ) -> Result<T, Failure<W::Error>> {
        tokio::select! {
            () = self.context.cancelled.cancelled() => Err(Failure::Cancelled),
            result = work => result.map_err(Failure::Error),
        }
    }
}

fn unique(op: ContentDigest) -> ContentDigest {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    KeyHasher::new("unique/1")
        .field(op.as_bytes())
        .number(now.as_nanos() as u64)
        .number(u64::from(std::process::id()))
        .finish()
}

#[cfg(test)]
mod tests;
