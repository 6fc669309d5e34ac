//! A picture of the build that is drawn again in place, for terminals.
//!
//! Between two frames the terminal is in its ordinary state (cursor shown, no colour, no mode changed), so whatever ends the
//! process leaves nothing to restore. A frame is one write.

use std::io::Write as _;
use std::time::{Duration, SystemTime};

use solver::{Event, VertexId};

use super::Render;
use super::text::{self, Colours};
use super::trace::{End, Part, Trace, Vertex, since};

/// Frames are at least this far apart.
const FRAME: Duration = Duration::from_millis(100);
/// Columns of a transfer bar.
const BAR: usize = 20;
/// Parts of one vertex that are shown at the same time.
const SHOWN_PARTS: usize = 8;

/// The size of the terminal now: columns and rows.
pub(super) type Size = Box<dyn Fn() -> (usize, usize) + Send>;

pub(super) struct Tty {
    size: Size,
    colours: bool,
    log_lines: usize,
    drawn_at: Option<SystemTime>,
    /// Columns that each line of the last frame takes.
    drawn: Vec<usize>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Style {
    Plain,
    Done,
    Error,
    Warning,
    Dim,
}

struct Line {
    text: String,
    style: Style,
}

impl Tty {
    pub(super) fn new(size: Size, colours: bool, log_lines: usize) -> Self {
        Self { size, colours, log_lines, drawn_at: None, drawn: Vec::new() }
    }

    fn draw(&mut self, trace: &Trace, now: SystemTime, last: bool, out: &mut Vec<u8>) {
        let (columns, rows) = (self.size)();
        let columns = columns.max(1);
        let lines = frame(trace, now, columns, if last { usize::MAX } else { rows.saturating_sub(1) }, self.log_lines);
        // A terminal that became narrower has broken the old lines into several rows.
        let up: usize = self.drawn.iter().map(|width| width.div_ceil(columns).max(1)).sum();
        out.extend_from_slice(b"\x1b[?25l\r");
        if up > 0 {
            let _ = write!(out, "\x1b[{}A", up.min(rows.saturating_sub(1).max(1)));
        }
        self.drawn.clear();
        for line in lines {
            self.drawn.push(text::width(&line.text));
            match line.style.sequence().filter(|_| self.colours) {
                Some(sequence) => {
                    let _ = write!(out, "{sequence}{}\x1b[0m", line.text);
                }
                None => out.extend_from_slice(line.text.as_bytes()),
            }
            // At the right edge the cursor still stands on the last cell, which must not be erased.
            out.extend_from_slice(if self.drawn.last().is_some_and(|width| *width < columns) {
                b"\x1b[K\n"
            } else {
                b"\n"
            });
        }
        out.extend_from_slice(b"\x1b[J\x1b[?25h");
        self.drawn_at = Some(now);
    }
}

impl Style {
    fn sequence(self) -> Option<&'static str> {
        match self {
            Self::Plain => None,
            Self::Done => Some("\x1b[34m"),
            Self::Error => Some("\x1b[31m"),
            Self::Warning => Some("\x1b[33m"),
            Self::Dim => Some("\x1b[2m"),
        }
    }
}

impl Render for Tty {
    fn event(&mut self, _trace: &Trace, _event: &Event, _now: SystemTime) {}

    fn line(&mut self, _vertex: VertexId, _at: Duration, _line: &[u8], _now: SystemTime) {}

    fn flush(&mut self, trace: &Trace, now: SystemTime, out: &mut Vec<u8>) {
        // An instant after the first event there is more to see.
        let due = self.drawn_at.or(trace.begun).is_some_and(|drawn| now < drawn || since(drawn, now) >= FRAME);
        if due {
            self.draw(trace, now, false, out);
        }
    }

    fn wakes(&self, trace: &Trace) -> Option<Duration> {
        trace.begun.map(|_| FRAME)
    }

    fn finish(&mut self, trace: &Trace, now: SystemTime, out: &mut Vec<u8>) {
        if trace.begun.is_some() || !trace.warnings.is_empty() || !trace.found.is_empty() {
            self.draw(trace, now, true, out);
        }
    }
}

/// All lines of a frame, none wider than `columns`, at most `rows`.
fn frame(trace: &Trace, now: SystemTime, columns: usize, rows: usize, log_lines: usize) -> Vec<Line> {
    let last = rows == usize::MAX;
    let mut lines = vec![header(trace, now, columns, last)];
    let room = rows.saturating_sub(1);
    let vertices: Vec<&Vertex> = trace.in_order().collect();
    let running = vertices.iter().filter(|vertex| vertex.running()).count();
    // What works is shown first of all, then what it works on, then its output, then what ended last.
    let mut left = room.saturating_sub(running);
    let mut hidden_running = running.saturating_sub(room);
    let mut details: Vec<Vec<Line>> = Vec::with_capacity(vertices.len());
    for vertex in &vertices {
        let lines = if vertex.running() { parts(vertex, now, columns) } else { Vec::new() };
        let taken = lines.len().min(left);
        left -= taken;
        details.push(lines.into_iter().take(taken).collect());
    }
    for (vertex, details) in vertices.iter().zip(&mut details).rev().filter(|(vertex, _)| vertex.running() && !last) {
        let lines = log_box(vertex, columns, log_lines.min(left));
        left -= lines.len();
        details.extend(lines);
    }
    let ended = vertices.len() - running;
    let mut hidden_ended = ended.saturating_sub(left);
    for (vertex, details) in vertices.iter().zip(details) {
        let hidden = if vertex.running() { &mut hidden_running } else { &mut hidden_ended };
        if *hidden > 0 {
            *hidden -= 1;
            continue;
        }
        lines.push(vertex_line(vertex, now, columns));
        if last {
            for warning in &vertex.warnings {
                lines.extend(wrapped(&format!(" => => WARN: {warning}"), columns));
            }
        }
        lines.extend(details);
    }
    if last {
        for warning in &trace.warnings {
            lines.extend(wrapped(&format!("WARN: {warning}"), columns));
        }
        for line in trace.found_lines() {
            lines.extend(wrapped(&line, columns));
        }
    }
    lines.truncate(rows);
    lines
}

/// A warning, which must not be cut.
fn wrapped(text: &str, columns: usize) -> Vec<Line> {
    let mut lines = Vec::new();
    for mut rest in text.lines() {
        while !rest.is_empty() {
            // A character that is wider than the terminal goes out alone.
            let fitting = text::fit(rest, columns).len().max(rest.chars().next().map_or(0, char::len_utf8));
            lines.push(Line { text: rest[..fitting].to_owned(), style: Style::Warning });
            rest = &rest[fitting..];
        }
    }
    lines
}

fn header(trace: &Trace, now: SystemTime, columns: usize, last: bool) -> Line {
    let seconds = trace.begun.map_or(Duration::ZERO, |begun| since(begun, now)).as_secs_f64();
    let (completed, total) = (trace.completed, trace.total());
    let finished = if last && completed == total && trace.went_well() { " FINISHED" } else { "" };
    aligned(&format!("[+] Building {seconds:.1}s ({completed}/{total}){finished}"), "", columns, Style::Plain)
}

fn vertex_line(vertex: &Vertex, now: SystemTime, columns: usize) -> Line {
    let (mark, style) = match &vertex.end {
        None => ("", Style::Plain),
        Some(End::Failed(_)) => ("ERROR ", Style::Error),
        Some(End::Cancelled) => ("CANCELED ", Style::Warning),
        Some(End::Done) if vertex.cached => ("CACHED ", Style::Done),
        Some(End::Done) => ("", Style::Done),
    };
    let left = format!(" => {mark}{}", vertex.name);
    aligned(&left, &timer(vertex.elapsed(now).as_secs_f64()), columns, style)
}

fn timer(seconds: f64) -> String {
    format!("{:.1}s", if seconds < 0.05 { 0.0 } else { seconds })
}

/// The parts that a vertex works on: all if they are few, otherwise those that are under way.
fn parts(vertex: &Vertex, now: SystemTime, columns: usize) -> Vec<Line> {
    let all = vertex.statuses.len();
    if all <= SHOWN_PARTS {
        return vertex.statuses.iter().map(|part| part_line(part, now, columns)).collect();
    }
    let under_way = vertex.statuses.iter().filter(|part| part.ended.is_none());
    let mut lines: Vec<_> = under_way.take(SHOWN_PARTS - 1).map(|part| part_line(part, now, columns)).collect();
    let ended = vertex.statuses.iter().filter(|part| part.ended.is_some()).count();
    lines.push(aligned(&format!(" => => {ended} of {all} done"), "", columns, Style::Plain));
    lines
}

fn part_line(part: &Part, now: SystemTime, columns: usize) -> Line {
    let seconds = timer(part.seconds(now));
    let style = if part.ended.is_some() { Style::Done } else { Style::Plain };
    let amount = part.amount();
    let full = match bar(part) {
        Some(bar) if columns >= 80 => format!("{bar} {amount} {seconds:>6}"),
        _ if amount.is_empty() => seconds.clone(),
        _ => format!("{amount} {seconds:>6}"),
    };
    let right = if columns > full.len() + 20 { full } else { seconds };
    aligned(&format!(" => => {}", part.id), &right, columns, style)
}

fn bar(part: &Part) -> Option<String> {
    if part.total == 0 || part.ended.is_some() {
        return None;
    }
    let filled = (part.current.min(part.total) as f64 / part.total as f64 * BAR as f64) as usize;
    let head = if filled < BAR { ">" } else { "" };
    Some(format!("[{:<BAR$}]", "=".repeat(filled) + head))
}

/// The last lines that a vertex printed.
fn log_box(vertex: &Vertex, columns: usize, rows: usize) -> Vec<Line> {
    let complete = vertex.log.lines().rev().map(|(_, line)| line);
    let mut lines: Vec<Line> = vertex
        .partial()
        .chain(complete)
        .take(rows)
        .map(|line| {
            // Wide lines are cut; what is cut need not be made safe first. Four bytes to a character, some for colours.
            let line = &line[..line.len().min(columns.saturating_mul(8))];
            let text = format!(" => => # {}", text::neutralise(line, Colours::Strip));
            aligned(&text, "", columns, Style::Dim)
        })
        .collect();
    lines.reverse();
    lines
}

/// `left`, cut where it does not fit, and `right` at the right edge.
fn aligned(left: &str, right: &str, columns: usize, style: Style) -> Line {
    let right = if right.len() + 12 > columns { "" } else { right };
    if right.is_empty() {
        return Line { text: text::fit(left, columns).to_owned(), style };
    }
    let room = columns - right.len() - 1;
    let left = text::fit(left, room);
    let gap = room - text::width(left) + 1;
    Line { text: format!("{left}{}{right}", " ".repeat(gap)), style }
}
