//! The scheduler's model over integers: outputs are numbers, operations add, and calls are counted.

use std::collections::{BTreeMap, HashMap};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use proptest::prelude::*;
use tokio::sync::OwnedMutexGuard;

use super::*;
use crate::channel;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Sum {
    /// Brings a number in; it can change between builds without the op changing.
    Source(&'static str),
    /// Adds all inputs and a number of its own.
    Add(u64),
    /// Sees of its input only the tens.
    AddTens(u64),
    Fail,
    Hang,
}

impl Operation for Sum {
    type Key = ContentDigest;
    fn key(&self) -> ContentDigest {
        ContentDigest::of(format!("{self:?}").as_bytes())
    }
}

#[derive(Debug, thiserror::Error)]
enum Failed {
    #[error("it failed")]
    Really,
    #[error("an input has no data")]
    NoData,
}

/// Set in a number of which it is known what it is, and no more.
const HOLLOW: u64 = 1 << 63;

#[derive(Default)]
struct Adder {
    sources: Mutex<BTreeMap<&'static str, u64>>,
    records: Mutex<HashMap<ContentDigest, u64>>,
    claims: Mutex<HashMap<ContentDigest, Arc<tokio::sync::Mutex<()>>>>,
    /// What another machine made.
    shared: Mutex<HashMap<ContentDigest, u64>>,
    /// Numbers that are lost when somebody works with them.
    losing: Mutex<Vec<u64>>,
    /// Sources have no identity, as a directory of the caller has none.
    anonymous: bool,
    runs: AtomicUsize,
    now: AtomicUsize,
    most: AtomicUsize,
}

impl Worker for Adder {
    type Op = Sum;
    type Output = u64;
    type Error = Failed;
    type Claim = OwnedMutexGuard<()>;

    fn recorded(&self, op: &Sum) -> bool {
        !matches!(op, Sum::Source(_))
    }

    fn takes_slot(&self, op: &Sum) -> bool {
        self.recorded(op)
    }

    fn identity(&self, output: &u64) -> Option<ContentDigest> {
        (!self.anonymous).then(|| ContentDigest::of(&(output & !HOLLOW).to_le_bytes()))
    }

    fn is_hollow(&self, output: &u64) -> bool {
        output & HOLLOW != 0
    }

    fn lacks_data(&self, error: &Failed) -> bool {
        matches!(error, Failed::NoData)
    }

    async fn content_key(&self, op: &Sum, _: usize, output: &u64) -> Result<Option<ContentDigest>, Failed> {
        let seen = match op {
            Sum::AddTens(_) if self.is_hollow(output) => return Err(Failed::NoData),
            Sum::AddTens(_) => Some(output / 10),
            _ if self.anonymous => Some(*output),
            _ => None,
        };
        Ok(seen.map(|seen| ContentDigest::of(&seen.to_le_bytes())))
    }

    async fn lookup(&self, _: &RunContext, key: &ContentDigest) -> Option<u64> {
        let own = self.records.lock().unwrap().get(key).copied();
        own.or_else(|| self.shared.lock().unwrap().get(key).copied())
    }

    async fn claim(&self, _: &RunContext, key: &ContentDigest) -> Result<Self::Claim, Failed> {
        let lock = Arc::clone(self.claims.lock().unwrap().entry(*key).or_default());
        Ok(lock.lock_owned().await)
    }

    async fn run(&self, context: RunContext, op: &Sum, inputs: &[u64]) -> Result<u64, Failed> {
        assert!(inputs.iter().all(|input| !self.is_hollow(input)), "nobody can work with a hollow input");
        let lost = {
            let mut losing = self.losing.lock().unwrap();
            let position = losing.iter().position(|number| inputs.contains(number));
            position.map(|position| losing.remove(position))
        };
        if let Some(lost) = lost {
            self.records.lock().unwrap().retain(|_, record| *record != lost);
            return Err(Failed::NoData);
        }
        self.most.fetch_max(self.now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        let result = match op {
            Sum::Source(name) => Ok(self.sources.lock().unwrap()[name]),
            Sum::Add(n) => {
                self.runs.fetch_add(1, Ordering::SeqCst);
                tokio::time::sleep(Duration::from_millis(1)).await;
                Ok(inputs.iter().fold(*n, |sum, input| sum.wrapping_add(*input)))
            }
            Sum::AddTens(n) => {
                self.runs.fetch_add(1, Ordering::SeqCst);
                Ok(inputs.iter().map(|input| input / 10 * 10).sum::<u64>() + n)
            }
            Sum::Fail => Err(Failed::Really),
            Sum::Hang => {
                context.cancelled.cancelled().await;
                Err(Failed::Really)
            }
        };
        self.now.fetch_sub(1, Ordering::SeqCst);
        result
    }

    async fn save(&self, _: &Sum, keys: &CacheKeys, output: &u64) -> Result<(), Failed> {
        let mut records = self.records.lock().unwrap();
        records.extend(keys.all().into_iter().map(|key| (key, *output)));
        Ok(())
    }
}

impl Adder {
    fn with(sources: &[(&'static str, u64)]) -> Arc<Self> {
        let adder = Self::default();
        adder.sources.lock().unwrap().extend(sources.iter().copied());
        Arc::new(adder)
    }

    fn set(&self, name: &'static str, value: u64) {
        self.sources.lock().unwrap().insert(name, value);
    }

    /// Solves and says how many operations ran for it.
    async fn build(self: &Arc<Self>, graph: &Graph<Sum>, target: NodeId) -> (u64, usize) {
        let before = self.runs.load(Ordering::SeqCst);
        let solved = self.solve(graph, target, 8, &CancellationToken::new()).await.unwrap();
        let ran = self.runs.load(Ordering::SeqCst) - before;
        (solved[0].output, ran)
    }

    async fn solve(
        self: &Arc<Self>,
        graph: &Graph<Sum>,
        target: NodeId,
        parallel: usize,
        cancelled: &CancellationToken,
    ) -> Result<Vec<Solved<u64>>, SolveError<Failed>> {
        let (progress, _events) = channel();
        let options = Options { parallel, must_hit: MustHit::Nothing };
        solve(graph, &[target], Arc::clone(self), &options, &progress, cancelled).await
    }
}

fn meta(name: &str) -> Meta {
    Meta { name: name.into(), ..Meta::default() }
}

#[tokio::test]
async fn a_second_build_runs_nothing_and_a_change_runs_what_depends_on_it() {
    let adder = Adder::with(&[("a", 1), ("b", 2)]);
    let mut graph = Graph::new();
    let a = graph.add(Sum::Source("a"), vec![], meta("a"));
    let b = graph.add(Sum::Source("b"), vec![], meta("b"));
    let on_a = graph.add(Sum::Add(10), vec![a], meta("on a"));
    let on_b = graph.add(Sum::Add(20), vec![b], meta("on b"));
    let both = graph.add(Sum::Add(0), vec![on_a, on_b, on_a], meta("both"));
    let top = graph.add(Sum::Add(100), vec![both], meta("top"));
    assert_eq!(adder.build(&graph, top).await, (144, 4));
    assert_eq!(adder.build(&graph, top).await, (144, 0));
    adder.set("b", 3);
    assert_eq!(adder.build(&graph, top).await, (145, 3));
    adder.set("b", 2);
    assert_eq!(adder.build(&graph, top).await, (144, 0));
    assert_eq!(adder.build(&graph, on_b).await, (22, 0));
}

#[tokio::test]
async fn what_an_operation_cannot_see_does_not_make_it_run() {
    let adder = Adder::with(&[("a", 15)]);
    let mut graph = Graph::new();
    let a = graph.add(Sum::Source("a"), vec![], meta("a"));
    let tens = graph.add(Sum::AddTens(1), vec![a], meta("tens"));
    let top = graph.add(Sum::Add(2), vec![tens], meta("top"));
    assert_eq!(adder.build(&graph, top).await, (13, 2));
    adder.set("a", 16);
    assert_eq!(adder.build(&graph, top).await, (13, 0));
    adder.set("a", 26);
    assert_eq!(adder.build(&graph, top).await, (23, 2));
}

#[tokio::test]
async fn an_input_rebuilt_to_the_same_content_is_a_hit() {
    let adder = Adder::with(&[("a", 1)]);
    let mut graph = Graph::new();
    let a = graph.add(Sum::Source("a"), vec![], meta("a"));
    let one = graph.add(Sum::AddTens(7), vec![a], meta("one"));
    let top = graph.add(Sum::Add(1), vec![one], meta("top"));
    adder.build(&graph, top).await;
    let mut again = Graph::new();
    let a = again.add(Sum::Source("a"), vec![], meta("a"));
    let one = again.add(Sum::AddTens(7), vec![a], Meta { ignore_cache: true, ..meta("one") });
    let top = again.add(Sum::Add(1), vec![one], meta("top"));
    assert_eq!(adder.build(&again, top).await, (8, 1));
}

/// source - first - second - top, where `first` is also read by tens.
fn diamond() -> (Graph<Sum>, [NodeId; 5]) {
    let mut graph = Graph::new();
    let source = graph.add(Sum::Source("a"), vec![], meta("a"));
    let first = graph.add(Sum::Add(10), vec![source], meta("first"));
    let second = graph.add(Sum::Add(200), vec![first], meta("second"));
    let tens = graph.add(Sum::AddTens(3), vec![first], meta("tens"));
    let top = graph.add(Sum::Add(1000), vec![second, tens], meta("top"));
    (graph, [source, first, second, tens, top])
}

/// A machine that knows what another one made, with the data of only those results that `whole` takes.
async fn other_machine(graph: &Graph<Sum>, top: NodeId, whole: impl Fn(u64) -> bool) -> Arc<Adder> {
    let one = Adder::with(&[("a", 1)]);
    one.build(graph, top).await;
    let other = Adder::with(&[("a", 1)]);
    for (key, value) in one.records.lock().unwrap().iter() {
        other.shared.lock().unwrap().insert(*key, if whole(*value) { *value } else { *value | HOLLOW });
    }
    other
}

#[tokio::test]
async fn what_results_are_is_enough_as_long_as_all_that_follows_is_found() {
    let (graph, [.., top]) = diamond();
    let other = other_machine(&graph, top, |value| value == 1224).await;
    assert_eq!(other.build(&graph, top).await, (1224, 0));
}

#[tokio::test]
async fn a_result_without_data_is_made_when_somebody_needs_it() {
    let (graph, [_, first, _, tens, top]) = diamond();
    // The target must have data: it runs, and so does what it needs, each once.
    let other = other_machine(&graph, top, |_| false).await;
    assert_eq!(other.build(&graph, top).await, (1224, 4));
    assert_eq!(other.build(&graph, top).await, (1224, 0));
    let other = other_machine(&graph, top, |value| value == 211 || value == 13).await;
    assert_eq!(other.build(&graph, top).await, (1224, 1));

    // Something new sees more of `first` than its identity.
    let other = other_machine(&graph, top, |value| value == 1224).await;
    let mut graph = graph;
    let more = graph.add(Sum::AddTens(5), vec![first], meta("more"));
    let all = graph.add(Sum::Add(1), vec![top, more, tens], meta("all"));
    let solved = other.solve(&graph, all, 8, &CancellationToken::new()).await.unwrap();
    assert_eq!(solved[0].output, 1 + 1224 + 15 + 13);
    assert_eq!((solved[0].hits, solved[0].misses), (2, 4), "first, tens, more and all ran");
}

#[tokio::test]
async fn data_that_are_lost_on_the_way_are_made_again() {
    let (graph, [.., top]) = diamond();
    let adder = Adder::with(&[("a", 1)]);
    adder.build(&graph, top).await;
    for lost in [vec![11], vec![211], vec![13, 211], vec![11, 13, 211]] {
        adder.records.lock().unwrap().retain(|_, record| *record != 1224);
        adder.losing.lock().unwrap().extend(&lost);
        let (value, ran) = adder.build(&graph, top).await;
        assert_eq!(value, 1224, "{lost:?}");
        adder.losing.lock().unwrap().clear();
        assert!((1..=4).contains(&ran), "{lost:?}: {ran}");
    }
    // A source cannot be made again.
    adder.records.lock().unwrap().clear();
    adder.losing.lock().unwrap().push(1);
    let error = adder.solve(&graph, top, 8, &CancellationToken::new()).await.unwrap_err();
    assert!(matches!(error, SolveError::Vertex { source: Failed::NoData, .. }), "{error}");
}

#[tokio::test]
async fn what_must_be_found_does_not_run() {
    let adder = Adder::with(&[("a", 1)]);
    let mut graph = Graph::new();
    let a = graph.add(Sum::Source("a"), vec![], meta("a"));
    let of = |stage: &str, name: &str| Meta { stage: Some(stage.into()), ..meta(name) };
    let one = graph.add(Sum::Add(1), vec![a], of("one", "one"));
    let two = graph.add(Sum::Add(2), vec![one], of("two", "two"));
    let build = async |must_hit: MustHit| {
        let (progress, _events) = channel();
        let options = Options { parallel: 1, must_hit };
        solve(&graph, &[two], Arc::clone(&adder), &options, &progress, &CancellationToken::new()).await
    };
    let missed = |result: Result<_, SolveError<Failed>>| match result {
        Err(SolveError::Missed { node, .. }) => Some(node),
        _ => None,
    };
    assert_eq!(missed(build(MustHit::Everything).await), Some(one));
    assert_eq!(missed(build(MustHit::Stage("TWO".into())).await), Some(two), "the first stage may run");
    assert_eq!(adder.runs.load(Ordering::SeqCst), 1);
    build(MustHit::Nothing).await.unwrap();
    build(MustHit::Everything).await.unwrap();
}

#[tokio::test]
async fn equal_work_of_two_builds_at_once_runs_once() {
    let adder = Adder::with(&[("a", 1)]);
    let mut graph = Graph::new();
    let mut top = graph.add(Sum::Source("a"), vec![], meta("a"));
    for n in 0..20 {
        top = graph.add(Sum::Add(n), vec![top], meta("n"));
    }
    let never = CancellationToken::new();
    let builds = (0..8).map(|_| adder.solve(&graph, top, 4, &never));
    let results = futures_util::future::join_all(builds).await;
    assert!(results.into_iter().all(|solved| solved.unwrap()[0].output == 191));
    assert_eq!(adder.runs.load(Ordering::SeqCst), 20);
}

#[tokio::test]
async fn at_most_so_many_steps_run_at_once_and_independent_ones_do() {
    let adder = Adder::with(&[("a", 1)]);
    let mut graph = Graph::new();
    let a = graph.add(Sum::Source("a"), vec![], meta("a"));
    let steps: Vec<_> = (0..30).map(|n| graph.add(Sum::Add(n), vec![a], meta("n"))).collect();
    let top = graph.add(Sum::Add(0), steps, meta("top"));
    adder.solve(&graph, top, 3, &CancellationToken::new()).await.unwrap();
    assert_eq!(adder.most.load(Ordering::SeqCst), 3);
}

#[tokio::test]
async fn the_first_failure_stops_the_rest_and_is_the_one_reported() {
    let adder = Adder::with(&[("a", 1)]);
    let mut graph = Graph::new();
    let a = graph.add(Sum::Source("a"), vec![], meta("a"));
    let hang = graph.add(Sum::Hang, vec![a], meta("hang"));
    let fail = graph.add(Sum::Fail, vec![a], meta("fail"));
    let top = graph.add(Sum::Add(0), vec![hang, fail], meta("top"));
    let error = adder.solve(&graph, top, 8, &CancellationToken::new()).await.unwrap_err();
    assert!(matches!(error, SolveError::Vertex { node, .. } if node == fail), "{error}");
    assert_eq!(adder.now.load(Ordering::SeqCst), 0, "nothing runs any more");
    assert!(adder.records.lock().unwrap().is_empty());
}

#[tokio::test]
async fn giving_up_ends_running_steps() {
    let adder = Adder::with(&[("a", 1)]);
    let mut graph = Graph::new();
    let a = graph.add(Sum::Source("a"), vec![], meta("a"));
    let hang = graph.add(Sum::Hang, vec![a], meta("hang"));
    let cancelled = CancellationToken::new();
    let soon = cancelled.clone();
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(20)).await;
        soon.cancel();
    });
    let result = adder.solve(&graph, hang, 8, &cancelled).await;
    assert!(matches!(result, Err(SolveError::Cancelled)));
    assert_eq!(adder.now.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_hundred_thousand_vertices_are_solved() {
    let adder = Adder::with(&[("a", 0)]);
    let mut graph = Graph::new();
    let a = graph.add(Sum::Source("a"), vec![], meta("a"));
    let tens: Vec<_> = (0..100_000).map(|n| graph.add(Sum::AddTens(n % 10), vec![a], meta("n"))).collect();
    assert_eq!(graph.len(), 11, "equal work is one vertex");
    let top = graph.add(Sum::Add(0), tens, meta("top"));
    adder.build(&graph, top).await;
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Any graph, of which another machine made everything and of which any part has lost its data: the result is the same,
    /// and nothing that has data runs but what is above something that had none.
    #[test]
    fn a_shared_cache_changes_no_result(
        edges in prop::collection::vec(prop::collection::vec(any::<prop::sample::Index>(), 1..4), 1..20),
        tens in prop::collection::vec(any::<bool>(), 20),
        hollow in prop::collection::vec(any::<bool>(), 20),
        change in any::<bool>(),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let mut graph = Graph::new();
        let mut nodes = vec![graph.add(Sum::Source("a"), vec![], meta("a")), graph.add(Sum::Source("b"), vec![], meta("b"))];
        for (n, inputs) in edges.iter().enumerate() {
            let inputs: Vec<NodeId> = inputs.iter().map(|index| *index.get(&nodes)).collect();
            let op = if tens[n] { Sum::AddTens(1000 + n as u64) } else { Sum::Add(1000 + n as u64) };
            nodes.push(graph.add(op, inputs, meta("n")));
        }
        let top = *nodes.last().unwrap();
        let sources = [("a", 15), ("b", 23)];
        runtime.block_on(async {
            let one = Adder::with(&sources);
            let (expected, _) = one.build(&graph, top).await;
            let other = Adder::with(&sources);
            for (key, value) in one.records.lock().unwrap().iter() {
                let is_hollow = hollow[(value % 20) as usize];
                other.shared.lock().unwrap().insert(*key, if is_hollow { value | HOLLOW } else { *value });
            }
            if change {
                other.set("a", 16);
                let cold = Adder::with(&[("a", 16), ("b", 23)]);
                let (expected, all) = cold.build(&graph, top).await;
                let (found, ran) = other.build(&graph, top).await;
                prop_assert_eq!(found, expected);
                prop_assert!(ran <= all);
            } else {
                let (found, ran) = other.build(&graph, top).await;
                prop_assert_eq!(found, expected);
                if !hollow[(expected % 20) as usize] {
                    prop_assert_eq!(ran, 0);
                }
            }
            Ok(())
        })?;
    }

    /// Any graph, any change of a source, either kind of source: the result is that of a build without a cache, and
    /// exactly the operations above the change run.
    #[test]
    fn the_cache_changes_no_result(
        edges in prop::collection::vec(prop::collection::vec(any::<prop::sample::Index>(), 1..4), 1..20),
        change in 1u64..5,
        anonymous in any::<bool>(),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let fresh = || Arc::new(Adder { anonymous, sources: Mutex::new([("a", 1), ("b", 2)].into()), ..Adder::default() });
        let mut graph = Graph::new();
        let mut nodes = vec![
            graph.add(Sum::Source("a"), vec![], meta("a")),
            graph.add(Sum::Source("b"), vec![], meta("b")),
        ];
        for (n, inputs) in edges.iter().enumerate() {
            let inputs = inputs.iter().map(|index| *index.get(&nodes)).collect();
            nodes.push(graph.add(Sum::Add(1000 + n as u64), inputs, meta("n")));
        }
        let top = *nodes.last().unwrap();
        runtime.block_on(async {
            let adder = fresh();
            adder.build(&graph, top).await;
            adder.set("a", 1 + change);
            let (warm, ran) = adder.build(&graph, top).await;
            let cold = fresh();
            cold.set("a", 1 + change);
            let (expected, all) = cold.build(&graph, top).await;
            prop_assert_eq!(warm, expected);
            prop_assert!(ran <= all);
            prop_assert_eq!(adder.build(&graph, top).await, (expected, 0));
            Ok(())
        })?;
    }
}
