//! One line after the other, for logs and pipes.
//!
//! Vertices print at the same time but are read one after the other: one has the floor, and what the others print waits. It
//! loses the floor when it ends, when it has been silent while others waited, or when others have waited for long; then
//! `#N ...` marks that it will go on. Ended vertices are printed at once.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::io::Write as _;
use std::time::{Duration, SystemTime};

use solver::{Event, Usage, VertexId};

use super::Render;
use super::text::{self, Colours};
use super::trace::{End, Trace, since, stamp};

/// Others wait at most this long.
const LONGEST_WAIT: Duration = Duration::from_secs(10);
/// Others wait this long for a vertex that is silent.
const SILENCE: Duration = Duration::from_secs(5);
/// Others do not wait once they hold so many bytes.
const HELD_BACK: usize = 256 * 1024;
/// A transfer is printed again after this part of it, but not sooner than [`STATUS_PAUSE`], or after [`SILENCE`].
const STATUS_STEP: f64 = 0.05;
/// A fast transfer is a line or two, not twenty.
const STATUS_PAUSE: Duration = Duration::from_secs(1);

pub(super) struct Plain {
    colours: Colours,
    lanes: BTreeMap<VertexId, Lane>,
    current: Option<VertexId>,
    /// When the current vertex last printed.
    spoke: SystemTime,
    numbered: u32,
    first: bool,
    /// In the order in which they ended.
    ended: Vec<VertexId>,
}

/// What one vertex has to print.
struct Lane {
    number: Option<u32>,
    pending: Vec<u8>,
    waiting: Option<SystemTime>,
    statuses: HashMap<String, (u64, SystemTime)>,
}

impl Plain {
    pub(super) fn new(colours: Colours) -> Self {
        Self {
            colours,
            lanes: BTreeMap::new(),
            current: None,
            spoke: SystemTime::UNIX_EPOCH,
            numbered: 0,
            first: true,
            ended: Vec::new(),
        }
    }

    fn lane(&mut self, id: VertexId, now: SystemTime) -> &mut Lane {
        let lane = self.lanes.entry(id).or_insert_with(|| Lane {
            number: None,
            pending: Vec::new(),
            waiting: None,
            statuses: HashMap::new(),
        });
        lane.waiting.get_or_insert(now);
        lane
    }

    fn status(&mut self, trace: &Trace, id: VertexId, status: &str, now: SystemTime) {
        let parts = trace.vertex(id).map(|vertex| vertex.statuses.as_slice()).unwrap_or_default();
        let name = text::neutralise(status.as_bytes(), Colours::Strip);
        let Some(part) = parts.iter().find(|part| part.id == name) else { return };
        if let Some(&(current, at)) = self.lanes.get(&id).and_then(|lane| lane.statuses.get(&part.id))
            && part.ended.is_none()
        {
            let moved = part.current.saturating_sub(current) as f64;
            let pause = if moved < STATUS_STEP * part.total.max(1) as f64 { SILENCE } else { STATUS_PAUSE };
            if since(at, now) < pause {
                return;
            }
        }
        let mut line = part.id.clone();
        let amount = part.amount();
        if !amount.is_empty() {
            line = line + " " + &amount;
        }
        let seconds = part.seconds(now);
        if seconds > 0.01 {
            let _ = write!(line, " {seconds:.1}s");
        }
        let done = part.ended.is_some();
        if done {
            line.push_str(" done");
        }
        let (id_of_part, current) = (part.id.clone(), part.current);
        let lane = self.lane(id, now);
        lane.pending.extend_from_slice(line.as_bytes());
        lane.pending.push(b'\n');
        if done {
            lane.statuses.remove(&id_of_part);
        } else {
            lane.statuses.insert(id_of_part, (current, now));
        }
    }

    /// Prints what `id` has to say; it has the floor now.
    fn print(&mut self, trace: &Trace, id: VertexId, now: SystemTime, out: &mut Vec<u8>) {
        let Some(vertex) = trace.vertex(id) else { return };
        if self.current != Some(id) {
            if let Some(number) = self.current.and_then(|current| self.lanes.get(&current)).and_then(|lane| lane.number)
            {
                line(out, number, "...");
            }
            if !std::mem::take(&mut self.first) {
                out.push(b'\n');
            }
        }
        let number = match self.lane(id, now).number {
            Some(number) => number,
            None => {
                self.numbered += 1;
                self.numbered
            }
        };
        if self.current != Some(id) {
            line(out, number, &vertex.name);
        }
        self.current = Some(id);
        self.spoke = now;
        let lane = self.lane(id, now);
        lane.number = Some(number);
        lane.waiting = None;
        let prefix = format!("#{number} ");
        for pending in lane.pending.split_inclusive(|byte| *byte == b'\n') {
            out.extend_from_slice(prefix.as_bytes());
            out.extend_from_slice(pending);
        }
        lane.pending.clear();
        lane.pending.shrink_to(HELD_BACK);
    }

    fn print_end(&mut self, trace: &Trace, id: VertexId, now: SystemTime, out: &mut Vec<u8>) {
        self.print(trace, id, now, out);
        let number = self.lanes.get(&id).and_then(|lane| lane.number);
        if let (Some(vertex), Some(number)) = (trace.vertex(id), number) {
            match &vertex.end {
                Some(End::Cancelled) => line(out, number, "CANCELED"),
                Some(End::Failed(error)) => {
                    for (at, text) in error.lines().enumerate() {
                        let prefix = if at == 0 { "ERROR: " } else { "" };
                        line(out, number, &format!("{prefix}{text}"));
                    }
                }
                _ if vertex.cached => line(out, number, "CACHED"),
                _ => {
                    let used = vertex.used.and_then(|usage| used(&usage)).unwrap_or_default();
                    line(out, number, &format!("DONE {:.1}s{used}", vertex.elapsed(now).as_secs_f64()));
                }
            }
        }
        self.current = None;
        // What comes after the end (a late line) is printed under the same number.
        if let Some(lane) = self.lanes.get_mut(&id) {
            *lane = Lane { number: lane.number, pending: Vec::new(), waiting: None, statuses: HashMap::new() };
        }
    }

    /// The vertex that should have the floor instead of the current one.
    fn next_speaker(&self, trace: &Trace, now: SystemTime) -> Option<VertexId> {
        let waiting = |(id, lane): (&VertexId, &Lane)| Some((lane.waiting?, *id));
        let others = self.lanes.iter().filter(|(id, _)| Some(**id) != self.current);
        let full = others.clone().find(|(_, lane)| lane.pending.len() > HELD_BACK);
        let (since_when, longest) = others.filter_map(waiting).min()?;
        let holds = self.current.and_then(|id| trace.vertex(id)).is_some_and(super::trace::Vertex::running);
        if !holds || since(since_when, now) >= LONGEST_WAIT || since(self.spoke.max(since_when), now) >= SILENCE {
            return Some(longest);
        }
        full.map(|(id, _)| *id)
    }
}

fn line(out: &mut Vec<u8>, number: u32, text: &str) {
    // Writing to a Vec cannot fail.
    let _ = writeln!(out, "#{number} {text}");
}

impl Render for Plain {
    fn event(&mut self, trace: &Trace, event: &Event, now: SystemTime) {
        match event {
            Event::Started { vertex, .. } => {
                self.lane(*vertex, now);
            }
            Event::Status { vertex, status } => self.status(trace, *vertex, &status.id, now),
            Event::Warning { vertex: Some(vertex), message } => {
                let text = text::neutralise_lines(message);
                let lane = self.lane(*vertex, now);
                let _ = writeln!(lane.pending, "WARN: {text}");
            }
            Event::Completed { vertex, .. } => {
                self.lane(*vertex, now);
                self.ended.push(*vertex);
            }
            _ => {}
        }
    }

    fn line(&mut self, vertex: VertexId, at: Duration, line: &[u8], now: SystemTime) {
        let text = text::neutralise(line, self.colours);
        let lane = self.lane(vertex, now);
        let pending = &mut lane.pending;
        pending.extend_from_slice(stamp(at).as_bytes());
        pending.push(b' ');
        pending.extend_from_slice(text.as_bytes());
        pending.push(b'\n');
    }

    fn flush(&mut self, trace: &Trace, now: SystemTime, out: &mut Vec<u8>) {
        let ended = std::mem::take(&mut self.ended);
        // The one that has the floor first, to save it from being interrupted.
        let (first, rest): (Vec<_>, Vec<_>) = ended.into_iter().partition(|id| Some(*id) == self.current);
        for id in first.into_iter().chain(rest) {
            self.print_end(trace, id, now, out);
        }
        if let Some(current) = self.current
            && self.lanes.get(&current).is_some_and(|lane| lane.waiting.is_some())
        {
            self.print(trace, current, now, out);
        }
        if let Some(next) = self.next_speaker(trace, now) {
            self.print(trace, next, now, out);
        }
    }

    fn wakes(&self, trace: &Trace) -> Option<Duration> {
        let waiting = self.lanes.values().any(|lane| lane.waiting.is_some());
        let partial = trace.running().any(super::trace::Vertex::waits);
        (waiting || partial).then_some(Duration::from_millis(500))
    }

    fn finish(&mut self, trace: &Trace, now: SystemTime, out: &mut Vec<u8>) {
        self.flush(trace, now, out);
        let waiting: Vec<_> = self.lanes.iter().filter(|(_, lane)| lane.waiting.is_some()).map(|(id, _)| *id).collect();
        for id in waiting {
            self.print(trace, id, now, out);
        }
        let found = trace.found_lines();
        let silent = trace.warnings.is_empty() && found.is_empty();
        if !silent && !self.first {
            out.push(b'\n');
        }
        for line in found {
            let _ = writeln!(out, "{line}");
        }
        for warning in &trace.warnings {
            let _ = writeln!(out, "WARN: {warning}");
        }
    }
}
/// What a step used, where it was enough to be of interest.
fn used(usage: &Usage) -> Option<String> {
    const SHORT: Duration = Duration::from_secs(1);
    if usage.wall < SHORT && usage.cpu < SHORT {
        return None;
    }
    let mut shown = format!(" (cpu {:.1}s, memory {}", usage.cpu.as_secs_f64(), text::bytes(usage.peak_memory));
    for (what, amount) in [("read", usage.read), ("written", usage.written)] {
        if amount > 0 {
            shown.push_str(&format!(", {what} {}", text::bytes(amount)));
        }
    }
    Some(shown + ")")
}
