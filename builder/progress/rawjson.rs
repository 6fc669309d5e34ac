//! One JSON document per line, in the shape of BuildKit's `SolveStatus`, for programs that know how to read that.

use std::time::SystemTime;

use jiff::Timestamp;
use serde::Serialize;
use solver::{Event, Found, LogStream, VertexId};

use super::Render;
use super::trace::{End, Part, Trace, Vertex};

/// Log bytes after which a document is ended, so that readers need no large buffers.
const LOG_PER_DOCUMENT: usize = 64 * 1024;

#[derive(Default)]
pub(super) struct RawJson {
    current: SolveStatus,
    log_bytes: usize,
    finished: Vec<u8>,
}

#[derive(Serialize, Default)]
struct SolveStatus {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    vertexes: Vec<JsonVertex>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    statuses: Vec<JsonStatus>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    logs: Vec<JsonLog>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<JsonWarning>,
}

#[derive(Serialize)]
struct JsonVertex {
    digest: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    inputs: Vec<String>,
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    started: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    completed: Option<String>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    cached: bool,
    #[serde(skip_serializing_if = "String::is_empty")]
    error: String,
    /// What the step's process used; BuildKit's readers pass over it.
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<crate::builds::Used>,
}

#[derive(Serialize)]
struct JsonStatus {
    id: String,
    vertex: String,
    #[serde(skip_serializing_if = "is_zero")]
    total: u64,
    current: u64,
    timestamp: String,
    started: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    completed: Option<String>,
}

#[derive(Serialize)]
struct JsonLog {
    vertex: String,
    stream: u8,
    data: String,
    timestamp: String,
}

#[derive(Serialize, Default)]
struct JsonWarning {
    #[serde(skip_serializing_if = "Option::is_none")]
    vertex: Option<String>,
    level: u8,
    short: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    detail: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    url: Option<String>,
    #[serde(rename = "sourceInfo", skip_serializing_if = "Option::is_none")]
    source_info: Option<JsonSource>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    range: Vec<JsonRange>,
}

#[derive(Serialize)]
struct JsonSource {
    filename: String,
    data: String,
    language: &'static str,
}

#[derive(Serialize)]
struct JsonRange {
    start: JsonPosition,
    end: JsonPosition,
}

#[derive(Serialize)]
struct JsonPosition {
    line: u32,
}

fn json_found(found: &Found) -> JsonWarning {
    JsonWarning {
        vertex: None,
        level: 1,
        short: base64(found.message.as_bytes()),
        detail: vec![base64(found.detail.as_bytes())],
        url: found.url.clone(),
        source_info: Some(JsonSource {
            filename: found.file.clone(),
            data: base64(found.text.as_bytes()),
            language: "Dockerfile",
        }),
        range: vec![JsonRange {
            start: JsonPosition { line: found.span.first },
            end: JsonPosition { line: found.span.last },
        }],
    }
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl Render for RawJson {
    fn event(&mut self, trace: &Trace, event: &Event, now: SystemTime) {
        match event {
            Event::Announced { vertex, .. }
            | Event::Started { vertex, .. }
            | Event::Cached { vertex }
            | Event::Completed { vertex, .. } => {
                self.current.vertexes.extend(trace.vertex(*vertex).map(|vertex| json_vertex(trace, vertex)));
            }
            Event::Status { vertex, status } => {
                let Some(vertex) = trace.vertex(*vertex) else { return };
                let Some(part) = vertex.statuses.iter().find(|part| part.id == status.id) else { return };
                self.current.statuses.push(json_status(vertex, part, now));
            }
            Event::Log { vertex, stream, data, at } => {
                let Some(vertex) = digest(trace, *vertex) else { return };
                let stream = match stream {
                    LogStream::Stdout => 1,
                    LogStream::Stderr => 2,
                };
                self.log_bytes += data.len();
                self.current.logs.push(JsonLog { vertex, stream, data: base64(data), timestamp: timestamp(*at) });
            }
            Event::Warning { vertex, message } => {
                let vertex = vertex.and_then(|vertex| digest(trace, vertex));
                let short = base64(message.as_bytes());
                self.current.warnings.push(JsonWarning { vertex, level: 1, short, ..JsonWarning::default() });
            }
            Event::Found(found) => self.current.warnings.push(json_found(found)),
            Event::Keyed { .. } | Event::Used { .. } => {}
        }
        if self.log_bytes >= LOG_PER_DOCUMENT {
            self.end_document();
        }
    }

    fn flush(&mut self, _trace: &Trace, _now: SystemTime, out: &mut Vec<u8>) {
        self.end_document();
        out.append(&mut self.finished);
    }
}

/// A warning as clients of BuildKit know it.
pub(crate) fn warning(message: &str) -> serde_json::Value {
    let warning = JsonWarning { level: 1, short: base64(message.as_bytes()), ..JsonWarning::default() };
    serde_json::to_value(warning).unwrap_or_default()
}

/// The finding of a check, in the same form.
pub(crate) fn found(found: &solver::Found) -> serde_json::Value {
    serde_json::to_value(json_found(found)).unwrap_or_default()
}

impl RawJson {
    fn end_document(&mut self) {
        let status = std::mem::take(&mut self.current);
        self.log_bytes = 0;
        if status.vertexes.is_empty()
            && status.statuses.is_empty()
            && status.logs.is_empty()
            && status.warnings.is_empty()
        {
            return;
        }
        // Strings and numbers in a Vec: nothing can fail.
        if serde_json::to_writer(&mut self.finished, &status).is_ok() {
            self.finished.push(b'\n');
        }
    }
}

fn json_vertex(trace: &Trace, vertex: &Vertex) -> JsonVertex {
    JsonVertex {
        digest: digest_of(vertex),
        inputs: vertex.inputs.iter().filter_map(|input| digest(trace, *input)).collect(),
        name: vertex.name.clone(),
        started: vertex.started.map(timestamp),
        completed: vertex.completed.map(timestamp),
        cached: vertex.cached,
        error: match &vertex.end {
            Some(End::Failed(error)) => error.clone(),
            // What its readers look for.
            Some(End::Cancelled) => "context canceled".to_owned(),
            Some(End::Done) | None => String::new(),
        },
        usage: vertex.used.map(Into::into),
    }
}

fn json_status(vertex: &Vertex, part: &Part, now: SystemTime) -> JsonStatus {
    JsonStatus {
        id: part.id.clone(),
        vertex: digest_of(vertex),
        total: part.total,
        current: part.current,
        timestamp: timestamp(now),
        started: timestamp(part.started),
        completed: part.ended.map(timestamp),
    }
}

fn digest(trace: &Trace, vertex: VertexId) -> Option<String> {
    trace.vertex(vertex).map(digest_of)
}

/// Readers accept only algorithms that they know, so a vertex goes by its 32 bytes under the usual one's name.
fn digest_of(vertex: &Vertex) -> String {
    format!("sha256:{}", vertex.digest.hex())
}

/// RFC 3339 with as many digits as are needed.
fn timestamp(at: SystemTime) -> String {
    Timestamp::try_from(at).unwrap_or_default().to_string()
}

fn base64(data: &[u8]) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(data)
}
