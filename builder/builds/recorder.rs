//! Listens to a build and keeps what it sees.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::Write;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use graph::{ContentDigest, Graph, Op, Operation};
use serde_json::Value;
use solver::{Event, VertexId};

use super::record::{BuildRecord, Builds, Keys, State, Step};
use crate::cache::Recorded;
use crate::network::StepNetwork;
use crate::progress::{Observer, rawjson};
use crate::resources::Resources;

/// Bytes that are kept of what one step prints. More than anybody reads, less than a disk.
const MOST_PRINTED: u64 = 256 << 20;

/// Listens to one build. Clones listen to the same.
#[derive(Clone)]
pub struct Recorder(Arc<Mutex<Inner>>);

struct Inner {
    builds: Builds,
    id: String,
    started: jiff::Timestamp,
    steps: Vec<Step>,
    warnings: Vec<Value>,
    positions: HashMap<VertexId, usize>,
    logs: HashMap<usize, File>,
    /// What the steps of the graph do, by key of the operation.
    ops: HashMap<ContentDigest, Value>,
    /// By the name of the step: what it does, its stage, whether it must not look.
    nodes: HashMap<String, (ContentDigest, Option<String>, bool)>,
}

impl std::fmt::Debug for Recorder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Recorder").field(&self.lock().id).finish()
    }
}

/// What a build is told apart by.
#[derive(Debug, Clone, Default)]
pub struct About {
    /// Directory or URL of the context.
    pub context: String,
    /// `-f`
    pub file: Option<String>,
    /// `--target`
    pub target: Option<String>,
    /// `-t`
    pub tags: Vec<String>,
    /// What steps may use.
    pub resources: Resources,
    /// Their network.
    pub network: StepNetwork,
}

impl Recorder {
    /// For a build that begins now.
    #[must_use]
    pub fn new(builds: Builds) -> Self {
        let started = jiff::Timestamp::now();
        let id = builds.new_id(started);
        Self(Arc::new(Mutex::new(Inner {
            builds,
            id,
            started,
            steps: Vec::new(),
            warnings: Vec::new(),
            positions: HashMap::new(),
            logs: HashMap::new(),
            ops: HashMap::new(),
            nodes: HashMap::new(),
        })))
    }

    /// Names the build.
    #[must_use]
    pub fn id(&self) -> String {
        self.lock().id.clone()
    }

    /// What was warned of, in the form of rawjson progress.
    #[must_use]
    pub fn warnings(&self) -> Vec<Value> {
        self.lock().warnings.clone()
    }

    /// The graph that is solved.
    pub fn graph(&self, graph: &Graph<Op>) {
        let mut inner = self.lock();
        for (_, node) in graph.nodes() {
            let key = node.op.key();
            inner.ops.entry(key).or_insert_with(|| serde_json::to_value(&node.op).unwrap_or_default());
            let meta = &node.meta;
            inner.nodes.insert(meta.name.clone(), (key, meta.stage.clone(), meta.ignore_cache));
        }
    }

    /// What is known so far.
    #[must_use]
    pub fn record(&self, about: &About, state: State, image: Option<String>) -> BuildRecord {
        let inner = self.lock();
        BuildRecord {
            id: inner.id.clone(),
            started: inner.started,
            finished: jiff::Timestamp::now(),
            state,
            context: about.context.clone(),
            file: about.file.clone(),
            target: about.target.clone(),
            tags: about.tags.clone(),
            image,
            resources: about.resources.clone(),
            network: about.network,
            steps: inner.steps.clone(),
        }
    }

    /// Notes how large the layers of the steps are.
    pub fn sizes(&self, results: &[Recorded], size: impl Fn(&Recorded) -> Option<u64>) {
        let by_key: HashMap<&ContentDigest, &Recorded> =
            results.iter().flat_map(|recorded| recorded.keys.iter().map(move |key| (key, recorded))).collect();
        for step in &mut self.lock().steps {
            let Some(keys) = &step.keys else { continue };
            let found = [keys.content, keys.definition].into_iter().flatten().find_map(|key| by_key.get(&key));
            step.bytes = found.and_then(|recorded| size(recorded));
        }
    }

    /// Notes where what a failed step left is kept; answers which step it is.
    pub fn kept(&self, name: &str, key: ContentDigest) -> Option<usize> {
        let steps = &mut self.lock().steps;
        let position = steps.iter().rposition(|step| step.name == name && step.error.is_some())?;
        steps[position].kept = Some(key);
        Some(position)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Observer for Recorder {
    fn event(&mut self, event: &Event) {
        self.lock().event(event);
    }
}

impl Inner {
    fn event(&mut self, event: &Event) {
        match event {
            Event::Announced { vertex, name, span, inputs, .. } => {
                let node = self.nodes.get(name);
                let step = Step {
                    name: name.clone(),
                    lines: span.map(|span| (span.first, span.last)),
                    stage: node.and_then(|(_, stage, _)| stage.clone()),
                    inputs: inputs.iter().filter_map(|input| self.positions.get(input).copied()).collect(),
                    ignore_cache: node.is_some_and(|(.., ignore)| *ignore),
                    op: node.and_then(|(op, ..)| self.ops.get(op).cloned()),
                    ..Step::default()
                };
                self.positions.insert(*vertex, self.steps.len());
                self.steps.push(step);
            }
            Event::Started { vertex, at } => {
                if let Some(step) = self.step(vertex) {
                    step.started.get_or_insert(time(*at));
                }
            }
            Event::Keyed { vertex, keys } => {
                let op = self.ops.get(&keys.op).cloned();
                if let Some(step) = self.step(vertex) {
                    step.op = op.or(step.op.take());
                    step.keys = Some(Keys {
                        op: keys.op,
                        definition: keys.definition,
                        content: keys.content,
                        inputs: keys.inputs.iter().map(|input| (input.identity, input.selected)).collect(),
                    });
                }
            }
            Event::Cached { vertex } => {
                if let Some(step) = self.step(vertex) {
                    step.cached = true;
                }
            }
            Event::Completed { vertex, at, error } => {
                if let Some(&position) = self.positions.get(vertex) {
                    self.logs.remove(&position);
                    let step = &mut self.steps[position];
                    step.finished.get_or_insert(time(*at));
                    step.error.clone_from(error);
                }
            }
            Event::Log { vertex, data, .. } => self.log(vertex, data),
            Event::Used { vertex, usage } => {
                if let Some(step) = self.step(vertex) {
                    step.used = Some((*usage).into());
                }
            }
            Event::Warning { message, .. } => self.warnings.push(rawjson::warning(message)),
            Event::Found(found) => self.warnings.push(rawjson::found(found)),
            Event::Status { .. } => {}
        }
    }

    fn step(&mut self, vertex: &VertexId) -> Option<&mut Step> {
        self.positions.get(vertex).map(|&position| &mut self.steps[position])
    }

    /// A log that cannot be kept is no reason for anything.
    fn log(&mut self, vertex: &VertexId, data: &[u8]) {
        let Some(&position) = self.positions.get(vertex) else { return };
        let printed = &mut self.steps[position].printed;
        let before = *printed;
        *printed += data.len() as u64;
        if before >= MOST_PRINTED {
            return;
        }
        if let std::collections::hash_map::Entry::Vacant(slot) = self.logs.entry(position) {
            let path = self.builds.log_path(&self.id, position);
            let opened = path
                .parent()
                .map_or(Ok(()), fs::create_dir_all)
                .and_then(|()| File::options().append(true).create(true).open(&path));
            let Ok(file) = opened else { return };
            slot.insert(file);
        }
        if let Some(file) = self.logs.get_mut(&position) {
            let _ = file.write_all(data);
        }
    }
}

fn time(at: SystemTime) -> jiff::Timestamp {
    jiff::Timestamp::try_from(at).unwrap_or_default()
}
