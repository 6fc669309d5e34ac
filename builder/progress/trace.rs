//! What is known of a build so far, put together from its events. The renderers read it, and so does the error report.

use std::collections::{BTreeMap, HashSet};
use std::time::{Duration, SystemTime};

use graph::{ContentDigest, Span};
use solver::{Event, LogStream, Usage, VertexId};

use super::lines::{Assembler, Tail};
use super::text::{self, Colours};
use super::{FailedVertex, Summary};

/// Parts kept of one vertex; of more, those that ended are forgotten first.
const KEPT_STATUSES: usize = 512;
/// Warnings kept of one vertex, and of the build.
const KEPT_WARNINGS: usize = 1000;

/// A build.
#[derive(Default)]
pub(super) struct Trace {
    vertices: BTreeMap<VertexId, Vertex>,
    digests: HashSet<ContentDigest>,
    /// In the order in which they started.
    started: Vec<VertexId>,
    pub(super) begun: Option<SystemTime>,
    pub(super) completed: usize,
    cached: usize,
    failed: Option<VertexId>,
    /// About the build as a whole.
    pub(super) warnings: Vec<String>,
    /// What checks of the Dockerfile found.
    pub(super) found: Vec<String>,
}

/// A vertex.
pub(super) struct Vertex {
    pub(super) name: String,
    pub(super) digest: ContentDigest,
    pub(super) inputs: Vec<VertexId>,
    pub(super) span: Option<Span>,
    pub(super) started: Option<SystemTime>,
    pub(super) completed: Option<SystemTime>,
    pub(super) cached: bool,
    pub(super) end: Option<End>,
    /// What its process used.
    pub(super) used: Option<Usage>,
    pub(super) statuses: Vec<Part>,
    pub(super) warnings: Vec<String>,
    pub(super) log: Tail,
    streams: [Assembler; 2],
}

/// How a vertex ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum End {
    Done,
    Cancelled,
    Failed(String),
}

/// A part of a vertex's work.
#[derive(Clone, Debug)]
pub(super) struct Part {
    pub(super) id: String,
    pub(super) current: u64,
    pub(super) total: u64,
    pub(super) started: SystemTime,
    pub(super) ended: Option<SystemTime>,
}

impl Part {
    pub(super) fn seconds(&self, now: SystemTime) -> f64 {
        since(self.started, self.ended.unwrap_or(now)).as_secs_f64()
    }

    /// How far it is, in words.
    pub(super) fn amount(&self) -> String {
        match (self.current, self.total) {
            (0, 0) => String::new(),
            (current, 0) => text::bytes(current),
            (current, total) => format!("{} / {}", text::bytes(current), text::bytes(total)),
        }
    }
}

impl Vertex {
    pub(super) fn running(&self) -> bool {
        self.started.is_some() && self.completed.is_none()
    }

    /// How long it has been, or was, at work.
    pub(super) fn elapsed(&self, now: SystemTime) -> Duration {
        self.started.map_or(Duration::ZERO, |started| since(started, self.completed.unwrap_or(now)))
    }

    /// Unfinished lines of its output.
    pub(super) fn partial(&self) -> impl Iterator<Item = &[u8]> {
        self.streams.iter().filter_map(Assembler::partial)
    }

    pub(super) fn waits(&self) -> bool {
        self.streams.iter().any(Assembler::waits)
    }
}

/// The time from `earlier` to `later`, none if the clock was set back.
pub(super) fn since(earlier: SystemTime, later: SystemTime) -> Duration {
    later.duration_since(earlier).unwrap_or_default()
}

/// The time since a step began, with as many digits as are of use.
pub(super) fn stamp(at: Duration) -> String {
    let seconds = at.as_secs_f64();
    let digits = if seconds < 10.0 {
        3
    } else if seconds < 100.0 {
        2
    } else {
        1
    };
    format!("{seconds:.digits$}")
}

/// Receives each line of output: the vertex, the time since it began, the line.
pub(super) type LineSink<'a> = &'a mut dyn FnMut(VertexId, Duration, &[u8]);

impl Trace {
    pub(super) fn vertex(&self, id: VertexId) -> Option<&Vertex> {
        self.vertices.get(&id)
    }

    /// Vertices that have started, in that order.
    pub(super) fn in_order(&self) -> impl DoubleEndedIterator<Item = &Vertex> {
        self.started.iter().filter_map(|id| self.vertices.get(id))
    }

    /// Whether everything that ended ended well.
    pub(super) fn went_well(&self) -> bool {
        self.vertices.values().all(|vertex| vertex.end.as_ref().is_none_or(|end| *end == End::Done))
    }

    pub(super) fn total(&self) -> usize {
        self.vertices.len()
    }

    /// Takes note of `event`. Lines of output that it ends go to `lines`.
    pub(super) fn apply(&mut self, event: &Event, now: SystemTime, lines: LineSink<'_>) {
        match event {
            Event::Announced { vertex, name, span, digest, inputs } => {
                let fresh = Vertex {
                    name: text::neutralise(name.as_bytes(), Colours::Strip).into_owned(),
                    digest: self.unique(*vertex, *digest),
                    inputs: inputs.clone(),
                    span: *span,
                    started: None,
                    completed: None,
                    cached: false,
                    end: None,
                    used: None,
                    statuses: Vec::new(),
                    warnings: Vec::new(),
                    log: Tail::default(),
                    streams: Default::default(),
                };
                self.vertices.entry(*vertex).or_insert(fresh);
            }
            Event::Started { vertex, at } => self.start(*vertex, *at),
            Event::Cached { vertex } => {
                if let Some(vertex) = self.vertices.get_mut(vertex) {
                    self.cached += usize::from(!std::mem::replace(&mut vertex.cached, true));
                }
            }
            Event::Status { vertex, status } => self.status(*vertex, status, now),
            Event::Log { vertex: id, stream, data, at } => {
                let Some(vertex) = self.vertices.get_mut(id) else { return };
                let elapsed = since(vertex.started.unwrap_or(*at), *at);
                let Vertex { streams, log, .. } = vertex;
                streams[usize::from(*stream == LogStream::Stderr)].push(data, now, |line| {
                    log.push(elapsed, line);
                    lines(*id, elapsed, line);
                });
            }
            Event::Warning { vertex, message } => {
                let warnings = match vertex.and_then(|id| self.vertices.get_mut(&id)) {
                    Some(vertex) => &mut vertex.warnings,
                    None => &mut self.warnings,
                };
                if warnings.len() < KEPT_WARNINGS {
                    warnings.push(text::neutralise_lines(message));
                }
            }
            Event::Found(found) => {
                if self.found.len() < KEPT_WARNINGS {
                    self.found.push(text::neutralise_lines(&found.message));
                }
            }
            Event::Completed { vertex, at, error } => self.complete(*vertex, *at, error.as_deref(), lines),
            Event::Used { vertex, usage } => {
                if let Some(vertex) = self.vertices.get_mut(vertex) {
                    vertex.used = Some(*usage);
                }
            }
            Event::Keyed { .. } => {}
        }
    }

    /// Hands out unfinished lines that have waited for long.
    pub(super) fn overdue(&mut self, now: SystemTime, lines: LineSink<'_>) {
        for (id, vertex) in self.vertices.iter_mut().filter(|(_, vertex)| vertex.running()) {
            let elapsed = vertex.elapsed(now);
            let Vertex { streams, log, .. } = vertex;
            for stream in streams {
                stream.overdue(now, |line| {
                    log.push(elapsed, line);
                    lines(*id, elapsed, line);
                });
            }
        }
    }

    /// The lines about what checks found, as docker has them.
    pub(super) fn found_lines(&self) -> Vec<String> {
        let count = self.found.len();
        if count == 0 {
            return Vec::new();
        }
        let plural = if count == 1 { "" } else { "s" };
        let head = format!("{count} warning{plural} found (rbuild build --check shows more):");
        std::iter::once(head).chain(self.found.iter().map(|found| format!(" - {found}"))).collect()
    }

    /// Vertices that work.
    pub(super) fn running(&self) -> impl Iterator<Item = &Vertex> {
        self.vertices.values().filter(|vertex| vertex.running())
    }

    pub(super) fn summary(&self, now: SystemTime) -> Summary {
        let failed = self.failed.and_then(|id| Some((id, self.vertices.get(&id)?)));
        Summary {
            failed: failed.map(|(id, vertex)| FailedVertex {
                vertex: id,
                name: vertex.name.clone(),
                span: vertex.span,
                error: match &vertex.end {
                    Some(End::Failed(error)) => error.clone(),
                    _ => String::new(),
                },
                log_tail: vertex
                    .log
                    .lines()
                    .map(|(at, line)| format!("{} {}", stamp(at), text::neutralise(line, Colours::Strip)))
                    .collect(),
                log_lines: vertex.log.total,
            }),
            cached: self.cached,
            completed: self.completed,
            total: self.vertices.len(),
            duration: self.begun.map_or(Duration::ZERO, |begun| since(begun, now)),
            warnings: self.warnings.clone(),
        }
    }

    /// Two vertices of the builder's own may have one name and so one digest; whoever reads rawjson must tell them apart.
    fn unique(&mut self, id: VertexId, digest: ContentDigest) -> ContentDigest {
        if self.digests.insert(digest) {
            return digest;
        }
        let mut bytes = digest.as_bytes().to_vec();
        bytes.extend_from_slice(&id.0.to_be_bytes());
        ContentDigest::of(&bytes)
    }

    fn start(&mut self, id: VertexId, at: SystemTime) {
        self.begun.get_or_insert(at);
        if let Some(vertex) = self.vertices.get_mut(&id)
            && vertex.started.is_none()
        {
            vertex.started = Some(at);
            self.started.push(id);
        }
    }

    fn status(&mut self, id: VertexId, status: &solver::Status, now: SystemTime) {
        let Some(vertex) = self.vertices.get_mut(&id) else { return };
        let ended = status.done.then_some(now);
        let name = text::neutralise(status.id.as_bytes(), Colours::Strip);
        if let Some(part) = vertex.statuses.iter_mut().find(|part| part.id == name) {
            part.current = status.current;
            part.total = status.total;
            part.ended = part.ended.or(ended);
            return;
        }
        if vertex.statuses.len() >= KEPT_STATUSES {
            let forgotten = vertex.statuses.iter().position(|part| part.ended.is_some()).unwrap_or(0);
            vertex.statuses.remove(forgotten);
        }
        let (current, total) = (status.current, status.total);
        vertex.statuses.push(Part { id: name.into_owned(), current, total, started: now, ended });
    }

    fn complete(&mut self, id: VertexId, at: SystemTime, error: Option<&str>, lines: LineSink<'_>) {
        // What never started (cancelled while it waited) is shown all the same.
        self.start(id, at);
        let Some(vertex) = self.vertices.get_mut(&id) else { return };
        if vertex.completed.is_some() {
            return;
        }
        vertex.completed = Some(at);
        self.completed += 1;
        let elapsed = vertex.elapsed(at);
        let Vertex { streams, log, statuses, .. } = vertex;
        for stream in streams {
            stream.finish(|line| {
                log.push(elapsed, line);
                lines(id, elapsed, line);
            });
        }
        for part in statuses {
            part.ended.get_or_insert(at);
        }
        let end = match error {
            None => End::Done,
            Some(error) if is_cancelled(error) => End::Cancelled,
            Some(error) => End::Failed(text::neutralise_lines(error)),
        };
        match end {
            End::Failed(_) => {
                self.failed.get_or_insert(id);
            }
            End::Done | End::Cancelled => vertex.log.forget(),
        }
        vertex.end = Some(end);
    }
}

/// Whether a vertex failed only because another one did, or because the user gave up.
fn is_cancelled(error: &str) -> bool {
    error.ends_with("cancelled") || error.ends_with("context canceled")
}
