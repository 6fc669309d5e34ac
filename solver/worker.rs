//! What the solver needs of those who do the work.

use graph::{ContentDigest, Operation};
use tokio_util::sync::CancellationToken;

use crate::{CacheKeys, VertexProgress};

/// What a running operation may use of the solver.
#[derive(Clone)]
pub struct RunContext {
    /// Reports on the vertex.
    pub progress: VertexProgress,
    /// Fires when the build is given up: stop children, clean up, return.
    pub cancelled: CancellationToken,
}

/// Carries operations out and remembers results.
pub trait Worker: Send + Sync + 'static {
    /// The operations of the graph.
    type Op: Operation<Key = ContentDigest> + Clone + Send + Sync + 'static;
    /// A result: cheap to clone, possibly lazy (its bytes may still be elsewhere).
    type Output: Clone + Send + Sync + 'static;
    /// Why an operation failed.
    type Error: std::error::Error + Send + Sync + 'static;
    /// Held while an operation runs, so that other builders with the same key wait; dropped, it lets them go on.
    type Claim: Send + 'static;

    /// Whether results are recorded under keys. Sources answer no: they know themselves what is fresh.
    fn recorded(&self, op: &Self::Op) -> bool;

    /// Whether the operation counts against the limit of parallel steps.
    fn takes_slot(&self, op: &Self::Op) -> bool;

    /// What `output` is as a whole, if that is known without reading files.
    fn identity(&self, output: &Self::Output) -> Option<ContentDigest>;

    /// What `op` can see of its input at `position`; `None` where that is all of it.
    fn content_key(
        &self,
        op: &Self::Op,
        position: usize,
        output: &Self::Output,
    ) -> impl Future<Output = Result<Option<ContentDigest>, Self::Error>> + Send;

    /// A recorded result, best one whose data can be had. What cannot be read is `None`.
    fn lookup(&self, context: &RunContext, key: &ContentDigest) -> impl Future<Output = Option<Self::Output>> + Send;

    /// Whether the data of a result cannot be had, though it is known what the result is.
    fn is_hollow(&self, output: &Self::Output) -> bool {
        let _ = output;
        false
    }

    /// Whether an operation or look failed since data of an input are gone, and would succeed with the input made anew. What
    /// is gone must not be found by [`Worker::lookup`] again.
    fn lacks_data(&self, error: &Self::Error) -> bool {
        let _ = error;
        false
    }

    /// No result was found for the operation, which is going to run or must not. For those who explain it later.
    fn missed(&self, op: &Self::Op, inputs: &[Self::Output]) -> impl Future<Output = ()> + Send {
        let _ = (op, inputs);
        async {}
    }

    /// Waits for the right to run the operation with this key.
    fn claim(
        &self,
        context: &RunContext,
        key: &ContentDigest,
    ) -> impl Future<Output = Result<Self::Claim, Self::Error>> + Send;

    /// Carries the operation out. The output's bytes must be safe in the store before this returns.
    fn run(
        &self,
        context: RunContext,
        op: &Self::Op,
        inputs: &[Self::Output],
    ) -> impl Future<Output = Result<Self::Output, Self::Error>> + Send;

    /// Records a result, replacing earlier ones.
    fn save(
        &self,
        op: &Self::Op,
        keys: &CacheKeys,
        output: &Self::Output,
    ) -> impl Future<Output = Result<(), Self::Error>> + Send;
}
