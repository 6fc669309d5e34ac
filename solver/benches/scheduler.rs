//! The scheduler alone, over operations that cost nothing: `cargo bench -p rbuild-solver --bench scheduler`.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use graph::{ContentDigest, Graph, Meta, NodeId, Operation};
use solver::{CacheKeys, MustHit, Options, RunContext, Worker};
use tokio_util::sync::CancellationToken;

/// Adds its number to what comes in.
#[derive(Clone)]
struct Add(u64);

impl Operation for Add {
    type Key = ContentDigest;

    fn key(&self) -> ContentDigest {
        ContentDigest::of(&self.0.to_le_bytes())
    }
}

#[derive(Default)]
struct Adder(Mutex<HashMap<ContentDigest, u64>>);

impl Adder {
    fn records(&self) -> std::sync::MutexGuard<'_, HashMap<ContentDigest, u64>> {
        self.0.lock().expect("nobody panics")
    }
}

impl Worker for Adder {
    type Op = Add;
    type Output = u64;
    type Error = Infallible;
    type Claim = ();

    fn recorded(&self, _: &Add) -> bool {
        true
    }

    fn takes_slot(&self, _: &Add) -> bool {
        true
    }

    fn identity(&self, output: &u64) -> Option<ContentDigest> {
        Some(ContentDigest::of(&output.to_le_bytes()))
    }

    async fn content_key(&self, _: &Add, _: usize, _: &u64) -> Result<Option<ContentDigest>, Infallible> {
        Ok(None)
    }

    async fn lookup(&self, _: &RunContext, key: &ContentDigest) -> Option<u64> {
        self.records().get(key).copied()
    }

    async fn claim(&self, _: &RunContext, _: &ContentDigest) -> Result<(), Infallible> {
        Ok(())
    }

    async fn run(&self, _: RunContext, op: &Add, inputs: &[u64]) -> Result<u64, Infallible> {
        Ok(inputs.iter().fold(op.0, |sum, input| sum.wrapping_mul(31).wrapping_add(*input)))
    }

    async fn save(&self, _: &Add, keys: &CacheKeys, output: &u64) -> Result<(), Infallible> {
        self.records().extend(keys.all().into_iter().map(|key| (key, *output)));
        Ok(())
    }
}

/// Layers of a hundred vertices, each upon two of the layer below, and one that joins the last.
fn graph(count: usize) -> (Graph<Add>, NodeId) {
    const WIDTH: usize = 100;
    let mut graph = Graph::new();
    let mut below: Vec<NodeId> = Vec::new();
    for layer in 0..count / WIDTH {
        let vertex = |n: usize| {
            let inputs = if below.is_empty() { Vec::new() } else { vec![below[n], below[(n + 1) % WIDTH]] };
            (Add((layer * WIDTH + n) as u64), inputs)
        };
        let vertices: Vec<_> = (0..WIDTH).map(vertex).collect();
        below = vertices.into_iter().map(|(op, inputs)| graph.add(op, inputs, Meta::default())).collect();
    }
    let root = graph.add(Add(u64::MAX), below, Meta::default());
    (graph, root)
}

fn solving(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_multi_thread().build().expect("a runtime");
    let mut group = criterion.benchmark_group("scheduler");
    group.sample_size(10);
    for count in [1_000, 10_000, 100_000] {
        let (graph, root) = graph(count);
        let solve = |worker: &Arc<Adder>| {
            let (progress, events) = solver::channel();
            drop(events);
            let options = Options { parallel: 8, must_hit: MustHit::Nothing };
            let token = CancellationToken::new();
            let targets = [root];
            let solved = solver::solve(&graph, &targets, Arc::clone(worker), &options, &progress, &token);
            runtime.block_on(solved).expect("nothing fails")
        };
        group.throughput(Throughput::Elements(count as u64));
        group.bench_function(BenchmarkId::new("nothing cached", count), |bencher| {
            bencher.iter(|| solve(&Arc::default()));
        });
        let worker = Arc::default();
        solve(&worker);
        group.bench_function(BenchmarkId::new("all cached", count), |bencher| {
            bencher.iter(|| solve(&worker));
        });
    }
    group.finish();
}

criterion_group!(benches, solving);
criterion_main!(benches);
