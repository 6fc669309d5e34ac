//! One loop owns the state of a build.
//!
//! A vertex begins when its last input is solved. It computes keys, asks the cache, claims, runs, saves and reports back; the
//! loop alone decides what comes next. It begins on the loop's own thread, and becomes a task where it has to wait: a cached
//! vertex, whose answer is at hand, costs no change of threads. The first failure cancels the rest; the loop returns when the
//! last task has.
//!
//! A hit may be **hollow**: what the result is is known (a shared cache says so), but its data cannot be had. That is enough
//! as long as all that follows hits too. A vertex that needs the data of such an input says so, the loop has the input
//! solved again, this time for its data, and then the vertex. The same happens when data turn out to be lost.

use std::collections::{HashMap, HashSet, VecDeque};
use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;

use graph::{ContentDigest, Graph, KeyHasher, Meta, Node, NodeId, Operation};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::key::{content_key, definition_key};
use crate::{CacheKeys, InputKey, Progress, RunContext, VertexKeys, VertexProgress, Worker};

/// How to solve.
#[derive(Clone, Debug)]
pub struct Options {
    /// Steps that may run at the same time, at least 1.
    pub parallel: usize,
    /// Steps that must be found.
    pub must_hit: MustHit,
}

/// Steps that must be found: one that would have to run ends the build.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub enum MustHit {
    /// None.
    #[default]
    Nothing,
    /// All.
    Everything,
    /// Those of a stage, by its name or number.
    Stage(String),
}

impl MustHit {
    fn covers(&self, meta: &Meta) -> bool {
        match self {
            Self::Nothing => false,
            Self::Everything => true,
            Self::Stage(stage) => meta.stage.as_deref().is_some_and(|own| own.eq_ignore_ascii_case(stage)),
        }
    }
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
    /// A vertex was not found that must be.
    #[error("{name} is not in the cache")]
    Missed {
        /// The vertex.
        node: NodeId,
        /// Its name.
        name: String,
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
    let mut state = State::new(graph, &order, targets, worker, options, progress, cancelled.child_token());
    state.ready.extend(order.iter().filter(|&&id| graph.node(id).inputs.is_empty()));
    loop {
        while let Some(id) = state.ready.pop_front() {
            state.begin(id).await;
        }
        match state.tasks.join_next().await {
            Some(Ok((id, outcome))) => state.ended(id, outcome),
            Some(Err(error)) => state.give_up(SolveError::Task(error.to_string())),
            None => break,
        }
    }
    if cancelled.is_cancelled() {
        return Err(SolveError::Cancelled);
    }
    if let Some(error) = state.error {
        return Err(error);
    }
    let count = |how: How| state.how.values().filter(|is| **is == how).count();
    let (hits, misses) = (count(How::Found), count(How::Ran));
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
    /// It must be found and was not.
    Missed,
    /// The data of these inputs are needed; `cause` is what failed for want of them.
    Inputs {
        positions: Vec<usize>,
        cause: Option<E>,
    },
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
    must_hit: MustHit,
    cancelled: CancellationToken,
    vertices: HashMap<NodeId, VertexProgress>,
    /// Inputs (counted once each) that are not solved yet.
    pending: HashMap<NodeId, usize>,
    outputs: HashMap<NodeId, W::Output>,
    /// Vertices that can begin.
    ready: VecDeque<NodeId>,
    tasks: JoinSet<(NodeId, Outcome<W>)>,
    error: Option<SolveError<W::Error>>,
    how: HashMap<NodeId, How>,
    progress: Progress,
    /// Vertices whose data are needed, whatever they hit.
    needed: HashSet<NodeId>,
    /// Vertices that are being solved for a second time, and who waits for them.
    again: HashMap<NodeId, Vec<NodeId>>,
    /// How often a vertex had to wait for its inputs' data.
    waits: HashMap<NodeId, usize>,
}

/// Data that get lost again and again are a broken disk, not a cache that was pruned meanwhile.
const MOST_WAITS: usize = 4;

impl<'g, W: Worker> State<'g, W> {
    fn new(
        graph: &'g Graph<W::Op>,
        order: &[NodeId],
        targets: &[NodeId],
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
            must_hit: options.must_hit.clone(),
            cancelled,
            vertices,
            pending,
            outputs: HashMap::new(),
            ready: VecDeque::new(),
            tasks: JoinSet::new(),
            error: None,
            how: HashMap::new(),
            progress: progress.clone(),
            needed: targets.iter().copied().collect(),
            again: HashMap::new(),
            waits: HashMap::new(),
        }
    }

    async fn begin(&mut self, id: NodeId) {
        if self.cancelled.is_cancelled() {
            return;
        }
        let node: Node<W::Op> = self.graph.node(id).clone();
        let inputs = node.inputs.iter().map(|input| self.outputs[input].clone()).collect();
        let context = RunContext { progress: self.vertices[&id].clone(), cancelled: self.cancelled.clone() };
        let vertex = Vertex {
            worker: Arc::clone(&self.worker),
            slots: Arc::clone(&self.slots),
            needed: self.needed.contains(&id),
            must_hit: self.must_hit.covers(&node.meta),
            node,
            inputs,
            context,
        };
        let mut solving = Box::pin(vertex.solve());
        match poll_fn(|context| Poll::Ready(solving.as_mut().poll(context))).await {
            Poll::Ready(outcome) => self.ended(id, outcome),
            Poll::Pending => drop(self.tasks.spawn(async move { (id, solving.await) })),
        }
    }

    fn ended(&mut self, id: NodeId, outcome: Outcome<W>) {
        match outcome {
            Ok(done) => self.finish(id, done),
            Err(Failure::Inputs { positions, cause }) => self.bring_inputs(id, &positions, cause),
            Err(Failure::Error(error)) => self.fail(id, error),
            Err(Failure::Missed) => self.missed(id),
            Err(Failure::Cancelled) => {}
        }
    }

    fn finish(&mut self, id: NodeId, done: Done<W::Output>) {
        self.how.insert(id, done.how);
        let is_first = self.outputs.insert(id, done.output).is_none();
        for user in self.again.remove(&id).unwrap_or_default() {
            self.one_less_pending(user);
        }
        if !is_first {
            return;
        }
        for user in self.graph.users(id) {
            // Users outside the reachable part are not counted and never become ready.
            self.one_less_pending(user);
        }
    }

    fn one_less_pending(&mut self, id: NodeId) {
        let Some(pending) = self.pending.get_mut(&id) else { return };
        *pending -= 1;
        if *pending == 0 {
            self.ready.push_back(id);
        }
    }

    /// Has inputs of a vertex solved for their data, and the vertex after them.
    fn bring_inputs(&mut self, id: NodeId, positions: &[usize], cause: Option<W::Error>) {
        let waits = self.waits.entry(id).or_default();
        *waits += 1;
        let is_stuck = *waits > MOST_WAITS;
        let node = self.graph.node(id);
        let mut inputs: Vec<NodeId> = positions.iter().map(|&position| node.inputs[position]).collect();
        inputs.sort_unstable();
        inputs.dedup();
        // Sources have brought what there is.
        inputs.retain(|&input| self.worker.recorded(&self.graph.node(input).op));
        if is_stuck || inputs.is_empty() {
            match cause {
                Some(error) => self.fail(id, error),
                None => self.give_up(SolveError::Task("an input's data cannot be had".into())),
            }
            return;
        }
        // Somebody else may have had them brought meanwhile.
        if cause.is_none() {
            inputs.retain(|input| self.again.contains_key(input) || self.worker.is_hollow(&self.outputs[input]));
        }
        if inputs.is_empty() {
            return self.ready.push_back(id);
        }
        self.pending.insert(id, inputs.len());
        for input in inputs {
            match self.again.get_mut(&input) {
                Some(waiting) => waiting.push(id),
                None => self.solve_again(input, id),
            }
        }
    }

    fn solve_again(&mut self, id: NodeId, user: NodeId) {
        self.again.insert(id, vec![user]);
        self.needed.insert(id);
        let meta = &self.graph.node(id).meta;
        let inputs = self.graph.node(id).inputs.iter().map(|input| self.vertices[input].id()).collect();
        let digest = self.graph.node(id).op.key();
        let vertex = self.progress.announce(&meta.name, meta.span, digest, inputs);
        self.vertices.insert(id, vertex);
        self.ready.push_back(id);
    }

    fn missed(&mut self, id: NodeId) {
        self.vertices[&id].failed("it is not in the cache".into());
        let name = self.graph.node(id).meta.name.clone();
        self.give_up(SolveError::Missed { node: id, name });
    }

    fn fail(&mut self, id: NodeId, source: W::Error) {
        self.vertices[&id].failed(source.to_string());
        let name = self.graph.node(id).meta.name.clone();
        self.give_up(SolveError::Vertex { node: id, name, source });
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
    /// A hollow result is of no use.
    needed: bool,
    /// It may not run.
    must_hit: bool,
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
            // The loop says so, or goes on.
            Err(Failure::Error(_) | Failure::Missed | Failure::Inputs { .. }) => {}
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
            let inputs = identities.iter().map(|&identity| InputKey { identity, selected: None }).collect();
            self.context.progress.keyed(VertexKeys { op, definition, content: None, inputs });
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
        self.worker.missed(&self.node.op, &self.inputs).await;
        if self.must_hit {
            return Err(Failure::Missed);
        }
        self.need_inputs()?;
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
        let output = self.worker.lookup(&self.context, &key?).await?;
        if self.needed && self.worker.is_hollow(&output) {
            return None;
        }
        Some(Done { output, how: How::Found })
    }

    /// What cannot be seen of hollow inputs is asked for.
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
        self.context.progress.keyed(VertexKeys { op, definition, content: Some(content), inputs });
        Ok(CacheKeys { definition, content })
    }

    /// Only real inputs can be worked with.
    fn need_inputs(&self) -> Result<(), Failure<W::Error>> {
        let is_hollow = |&position: &usize| self.worker.is_hollow(&self.inputs[position]);
        let positions: Vec<usize> = (0..self.inputs.len()).filter(is_hollow).collect();
        if positions.is_empty() { Ok(()) } else { Err(Failure::Inputs { positions, cause: None }) }
    }

    fn failure(&self, error: W::Error) -> Failure<W::Error> {
        if self.worker.lacks_data(&error) {
            return Failure::Inputs { positions: (0..self.inputs.len()).collect(), cause: Some(error) };
        }
        Failure::Error(error)
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
            Err(error) => Err(self.failure(error)),
        }
    }

    async fn unless_cancelled<T>(
        &self,
        work: impl Future<Output = Result<T, W::Error>>,
    ) -> Result<T, Failure<W::Error>> {
        tokio::select! {
            () = self.context.cancelled.cancelled() => Err(Failure::Cancelled),
            result = work => result.map_err(|error| self.failure(error)),
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
