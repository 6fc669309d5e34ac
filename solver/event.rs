//! What happens during a build, as a stream that a progress display reads.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use graph::{ContentDigest, Span};
use tokio::sync::{Semaphore, mpsc};

use crate::VertexKeys;

/// Names a vertex within one build's events. Vertices of the graph and the builder's own (loading metadata, exporting)
/// share the numbering.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct VertexId(pub u64);

/// What a check of the Dockerfile found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Found {
    /// One line, with the check's name in front and the line behind.
    pub message: String,
    /// What the check is about.
    pub detail: String,
    /// Where it is explained.
    pub url: Option<String>,
    /// The Dockerfile's name.
    pub file: String,
    /// Its text.
    pub text: String,
    /// The instruction.
    pub span: Span,
}

/// One thing that happened. Events of one vertex arrive in order; `Announced` is its first.
#[derive(Clone, Debug)]
pub enum Event {
    /// A vertex exists.
    Announced {
        /// The vertex.
        vertex: VertexId,
        /// As people see it.
        name: String,
        /// Where it was written.
        span: Option<Span>,
        /// Of the op and its inputs' digests; names the vertex in rawjson.
        digest: ContentDigest,
        /// The vertices it waits for.
        inputs: Vec<VertexId>,
    },
    /// Work on it began: keys are computed, the cache is asked.
    Started {
        /// The vertex.
        vertex: VertexId,
        /// When.
        at: SystemTime,
    },
    /// What it was looked up by.
    Keyed {
        /// The vertex.
        vertex: VertexId,
        /// The keys.
        keys: Box<VertexKeys>,
    },
    /// Its result was found; `Completed` follows.
    Cached {
        /// The vertex.
        vertex: VertexId,
    },
    /// A part of its work moved on (a download, an upload, another builder's lock).
    Status {
        /// The vertex.
        vertex: VertexId,
        /// How far.
        status: Status,
    },
    /// It printed something.
    Log {
        /// The vertex.
        vertex: VertexId,
        /// Where to.
        stream: LogStream,
        /// Bytes as printed; whole lines where the program printed lines.
        data: Vec<u8>,
        /// When.
        at: SystemTime,
    },
    /// Something a person should know; the build goes on.
    Warning {
        /// The vertex, if it concerns one.
        vertex: Option<VertexId>,
        /// One line.
        message: String,
    },
    /// A check of the Dockerfile found something; the build goes on.
    Found(Arc<Found>),
    /// It ended.
    Completed {
        /// The vertex.
        vertex: VertexId,
        /// When.
        at: SystemTime,
        /// Why it failed; cancelled vertices say so here.
        error: Option<String>,
    },
    /// What a step's process used; before its `Completed`.
    Used {
        /// The vertex.
        vertex: VertexId,
        /// The use.
        usage: Usage,
    },
}

/// State of one part of a vertex's work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// Names the part within its vertex, e.g. a layer's digest.
    pub id: String,
    /// In units of `total`.
    pub current: u64,
    /// Bytes, or 0 when unknown.
    pub total: u64,
    /// The part ended.
    pub done: bool,
}

/// Where a line was printed to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LogStream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// Resources that a step used.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Usage {
    /// User and system CPU time.
    pub cpu: Duration,
    /// Peak memory in bytes.
    pub peak_memory: u64,
    /// Bytes read from disks.
    pub read: u64,
    /// Bytes written to disks.
    pub written: u64,
    /// From the start of its process to its end.
    pub wall: Duration,
}

/// Lines that may be on their way to the display before a printing step has to wait.
const LOG_BACKLOG: usize = 4096;

/// Makes the two ends of an event stream.
#[must_use]
pub fn channel() -> (Progress, Events) {
    let (sender, receiver) = mpsc::unbounded_channel();
    let backlog = Arc::new(Semaphore::new(LOG_BACKLOG));
    let progress = Progress { sender, backlog: Arc::clone(&backlog), next: Arc::new(AtomicU64::new(0)) };
    (progress, Events { receiver, backlog })
}

/// The reading end.
pub struct Events {
    receiver: mpsc::UnboundedReceiver<Event>,
    backlog: Arc<Semaphore>,
}

impl Events {
    /// The next event; `None` when every sender is gone.
    pub async fn next(&mut self) -> Option<Event> {
        let event = self.receiver.recv().await;
        self.free(event.as_ref());
        event
    }

    /// The next event if one is there.
    pub fn try_next(&mut self) -> Option<Event> {
        let event = self.receiver.try_recv().ok();
        self.free(event.as_ref());
        event
    }

    /// Waits on this thread, which must not be one of the async runtime's.
    pub fn blocking_next(&mut self) -> Option<Event> {
        let event = self.receiver.blocking_recv();
        self.free(event.as_ref());
        event
    }

    fn free(&self, event: Option<&Event>) {
        if matches!(event, Some(Event::Log { .. })) {
            self.backlog.add_permits(1);
        }
    }
}

impl Drop for Events {
    /// Nobody reads any more: whoever waits to log goes on.
    fn drop(&mut self) {
        self.backlog.close();
    }
}

/// The writing end. Events to a reader that is gone are dropped.
#[derive(Clone)]
pub struct Progress {
    sender: mpsc::UnboundedSender<Event>,
    backlog: Arc<Semaphore>,
    next: Arc<AtomicU64>,
}

impl Progress {
    /// Announces a vertex that is not in the graph.
    #[must_use]
    pub fn vertex(&self, name: &str) -> VertexProgress {
        self.announce(name, None, ContentDigest::of(name.as_bytes()), Vec::new())
    }

    /// Announces a vertex.
    #[must_use]
    pub fn announce(
        &self,
        name: &str,
        span: Option<Span>,
        digest: ContentDigest,
        inputs: Vec<VertexId>,
    ) -> VertexProgress {
        let vertex = VertexId(self.next.fetch_add(1, Ordering::Relaxed));
        self.emit(Event::Announced { vertex, name: name.to_owned(), span, digest, inputs });
        VertexProgress { vertex, progress: self.clone() }
    }

    /// A warning about the build as a whole.
    pub fn warn(&self, message: impl Into<String>) {
        self.emit(Event::Warning { vertex: None, message: message.into() });
    }

    /// What a check of the Dockerfile found.
    pub fn found(&self, found: Found) {
        self.emit(Event::Found(Arc::new(found)));
    }

    fn emit(&self, event: Event) {
        // Nobody reads any more: nobody misses it.
        let _ = self.sender.send(event);
    }
}

/// Reports on one vertex.
#[derive(Clone)]
pub struct VertexProgress {
    vertex: VertexId,
    progress: Progress,
}

impl VertexProgress {
    /// Its name in the events.
    #[must_use]
    pub fn id(&self) -> VertexId {
        self.vertex
    }

    /// The build that it belongs to.
    #[must_use]
    pub fn progress(&self) -> &Progress {
        &self.progress
    }

    /// Work begins.
    pub fn started(&self) {
        self.progress.emit(Event::Started { vertex: self.vertex, at: SystemTime::now() });
    }

    /// The result was looked up by these.
    pub fn keyed(&self, keys: VertexKeys) {
        self.progress.emit(Event::Keyed { vertex: self.vertex, keys: Box::new(keys) });
    }

    /// The result was found.
    pub fn cached(&self) {
        self.progress.emit(Event::Cached { vertex: self.vertex });
    }

    /// Part of the work moved on.
    pub fn status(&self, status: Status) {
        self.progress.emit(Event::Status { vertex: self.vertex, status });
    }

    /// Something was printed. Waits when the display cannot keep up.
    pub async fn log(&self, stream: LogStream, data: Vec<u8>) {
        if let Ok(permit) = self.progress.backlog.acquire().await {
            permit.forget();
        }
        self.progress.emit(Event::Log { vertex: self.vertex, stream, data, at: SystemTime::now() });
    }

    /// Says something in its log, as a line. Never waits: for what is rare, and comes from where nobody can wait.
    pub fn say(&self, line: &str) {
        if let Ok(permit) = self.progress.backlog.try_acquire() {
            permit.forget();
        }
        let (stream, data) = (LogStream::Stderr, format!("{line}\n").into_bytes());
        self.progress.emit(Event::Log { vertex: self.vertex, stream, data, at: SystemTime::now() });
    }

    /// What a step's process used.
    pub fn used(&self, usage: Usage) {
        self.progress.emit(Event::Used { vertex: self.vertex, usage });
    }

    /// Something a person should know about this vertex.
    pub fn warn(&self, message: impl Into<String>) {
        self.progress.emit(Event::Warning { vertex: Some(self.vertex), message: message.into() });
    }

    /// Work ended well.
    pub fn completed(&self) {
        self.progress.emit(Event::Completed { vertex: self.vertex, at: SystemTime::now(), error: None });
    }

    /// Work ended otherwise.
    pub fn failed(&self, error: String) {
        self.progress.emit(Event::Completed { vertex: self.vertex, at: SystemTime::now(), error: Some(error) });
    }

    /// Runs `work` between `started` and `completed` or `failed`.
    ///
    /// # Errors
    /// Those of `work`.
    pub async fn during<T, E: std::fmt::Display>(&self, work: impl Future<Output = Result<T, E>>) -> Result<T, E> {
        self.started();
        let result = work.await;
        match &result {
            Ok(_) => self.completed(),
            Err(error) => self.failed(error.to_string()),
        }
        result
    }
}
