//! Shows what happens during a build, on stderr.
//!
//! A thread of its own reads the solver's events, so that a slow terminal never holds up the async runtime; it holds up only
//! steps that print more than the terminal takes. Whatever the display, the last lines of every running step are kept, so
//! that the error report can show those of the step that failed.

mod feed;
mod lines;
mod plain;
pub(crate) mod rawjson;
mod text;
mod trace;
mod tty;

#[cfg(test)]
mod tests;

use std::fmt;
use std::io::{IsTerminal as _, Write};
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use graph::Span;
use solver::{Event, Events, VertexId};

pub use text::{Colours, bytes, neutralise, neutralise_lines, width};

use feed::{Feed, Next};
use trace::Trace;

/// How progress is shown.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Mode {
    /// [`Tty`](Self::Tty) if stderr is a terminal, [`Plain`](Self::Plain) otherwise.
    #[default]
    Auto,
    /// Drawn in place.
    Tty,
    /// One line after the other.
    Plain,
    /// Not at all. Errors are shown nevertheless.
    Quiet,
    /// JSON documents, one per line, as BuildKit prints them.
    RawJson,
}

/// No such way of showing progress.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ModeError {
    /// The name is not one of ours.
    #[error("unknown progress mode {0:?}: expected auto, none, plain, quiet, rawjson or tty")]
    Unknown(String),
    /// `tty` without a terminal.
    #[error("progress mode tty needs a terminal on stderr")]
    NoTerminal,
}

impl FromStr for Mode {
    type Err = ModeError;

    fn from_str(name: &str) -> Result<Self, ModeError> {
        match name {
            "" | "auto" => Ok(Self::Auto),
            "tty" => Ok(Self::Tty),
            "plain" => Ok(Self::Plain),
            "quiet" | "none" => Ok(Self::Quiet),
            "rawjson" => Ok(Self::RawJson),
            _ => Err(ModeError::Unknown(name.to_owned())),
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Tty => "tty",
            Self::Plain => "plain",
            Self::Quiet => "quiet",
            Self::RawJson => "rawjson",
        })
    }
}

impl Mode {
    /// The mode that was asked for on the command line, else by `BUILDKIT_PROGRESS`, else the one that fits stderr. Never
    /// [`Auto`](Self::Auto).
    ///
    /// # Errors
    /// `BUILDKIT_PROGRESS` names no mode, or `tty` was asked for where there is no terminal.
    pub fn choose(asked: Option<Self>) -> Result<Self, ModeError> {
        let environment = std::env::var("BUILDKIT_PROGRESS").unwrap_or_default();
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        Self::choose_from(asked, &environment, std::io::stderr().is_terminal(), dumb)
    }

    fn choose_from(asked: Option<Self>, environment: &str, terminal: bool, dumb: bool) -> Result<Self, ModeError> {
        let mode = match asked {
            Some(mode) => mode,
            None => environment.parse()?,
        };
        match mode {
            Self::Auto if terminal && !dumb => Ok(Self::Tty),
            Self::Auto => Ok(Self::Plain),
            Self::Tty if !terminal => Err(ModeError::NoTerminal),
            mode => Ok(mode),
        }
    }
}

/// How it looks.
#[derive(Clone, Debug)]
pub struct Options {
    /// Whether colours may be used.
    pub colour: bool,
    /// Lines of output shown of a running step, in [`Mode::Tty`].
    pub log_lines: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { colour: false, log_lines: 6 }
    }
}

impl Options {
    /// As the environment has it: `NO_COLOR`, and BuildKit's `BUILDKIT_TTY_LOG_LINES`.
    #[must_use]
    pub fn from_env() -> Self {
        let lines = std::env::var("BUILDKIT_TTY_LOG_LINES").ok().and_then(|lines| lines.parse().ok());
        Self { colour: colour_allowed(), log_lines: lines.filter(|lines| *lines > 0).unwrap_or(6) }
    }
}

/// Whether `NO_COLOR` is unset or empty (<https://no-color.org>).
#[must_use]
pub fn colour_allowed() -> bool {
    std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// What there is to say when a build is over.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    /// The vertex that failed first, if one did. Cancelled ones do not count.
    pub failed: Option<FailedVertex>,
    /// Vertices whose result was found.
    pub cached: usize,
    /// Vertices that ended.
    pub completed: usize,
    /// Vertices that were announced.
    pub total: usize,
    /// From the first start to the end of the display.
    pub duration: Duration,
    /// Warnings about the build as a whole. The displays have shown them, [`Mode::Quiet`] excepted.
    pub warnings: Vec<String>,
}

/// The vertex because of which a build failed. All texts are safe to print.
#[derive(Clone, Debug)]
pub struct FailedVertex {
    /// Its name in the events.
    pub vertex: VertexId,
    /// As people see it.
    pub name: String,
    /// Where it was written.
    pub span: Option<Span>,
    /// Why it failed.
    pub error: String,
    /// The last lines it printed, each with the seconds since it began in front.
    pub log_tail: Vec<String>,
    /// How many lines it printed in all.
    pub log_lines: u64,
}

/// A display at work.
pub struct Display {
    thread: JoinHandle<Summary>,
    stop: Arc<AtomicBool>,
}

/// Is told of every event, on the display's thread.
pub trait Observer: Send {
    /// It happened.
    fn event(&mut self, event: &Event);
}

/// Begins to show `events` on stderr, and tells `observer` of them. A mode of [`Mode::Auto`] is resolved as by [`Mode::choose`].
#[must_use]
pub fn start_observed(mode: Mode, events: Events, options: &Options, observer: Box<dyn Observer>) -> Display {
    start_on(Box::new(std::io::stderr()), renderer(mode, options), events, Some(observer))
}

/// As [`start_observed`] without anybody else.
#[must_use]
pub fn start(mode: Mode, events: Events, options: &Options) -> Display {
    start_on(Box::new(std::io::stderr()), renderer(mode, options), events, None)
}

impl Display {
    /// Shows what was emitted until now, ends the display and gives the terminal back. Events that others still emit are
    /// dropped.
    #[must_use]
    pub fn finish(self) -> Summary {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.thread().unpark();
        // A display that panicked has lost its summary; the build's own result stands.
        self.thread.join().unwrap_or_default()
    }
}

fn renderer(mode: Mode, options: &Options) -> Option<Box<dyn Render>> {
    let mode = match mode {
        Mode::Auto => Mode::choose_from(Some(Mode::Auto), "", std::io::stderr().is_terminal(), false),
        mode => Ok(mode),
    };
    match mode.unwrap_or(Mode::Plain) {
        Mode::Quiet => None,
        Mode::RawJson => Some(Box::new(rawjson::RawJson::default())),
        Mode::Tty => Some(Box::new(tty::Tty::new(Box::new(terminal_size), options.colour, options.log_lines))),
        Mode::Plain | Mode::Auto => {
            Some(Box::new(plain::Plain::new(if options.colour { Colours::Keep } else { Colours::Strip })))
        }
    }
}

fn terminal_size() -> (usize, usize) {
    match rustix::termios::tcgetwinsize(std::io::stderr()) {
        Ok(size) if size.ws_col > 0 && size.ws_row > 0 => (size.ws_col.into(), size.ws_row.into()),
        _ => (80, 24),
    }
}

fn start_on(
    out: Box<dyn Write + Send>,
    render: Option<Box<dyn Render>>,
    events: Events,
    observer: Option<Box<dyn Observer>>,
) -> Display {
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let thread = std::thread::spawn(move || show(out, render.unwrap_or(Box::new(Silent)), events, stopped, observer));
    Display { thread, stop }
}

/// Turns what happens into bytes. `event` and `line` take note, `flush` prints.
trait Render: Send {
    /// `trace` knows of `event` already.
    fn event(&mut self, trace: &Trace, event: &Event, now: SystemTime);

    /// A step printed a line, so long after it began.
    fn line(&mut self, vertex: VertexId, at: Duration, line: &[u8], now: SystemTime) {
        let _ = (vertex, at, line, now);
    }

    /// Prints what is due.
    fn flush(&mut self, trace: &Trace, now: SystemTime, out: &mut Vec<u8>);

    /// After how long something may be due although nothing happened.
    fn wakes(&self, trace: &Trace) -> Option<Duration> {
        let _ = trace;
        None
    }

    /// Prints what is left.
    fn finish(&mut self, trace: &Trace, now: SystemTime, out: &mut Vec<u8>) {
        self.flush(trace, now, out);
    }
}

/// Shows nothing.
struct Silent;

impl Render for Silent {
    fn event(&mut self, _trace: &Trace, _event: &Event, _now: SystemTime) {}

    fn flush(&mut self, _trace: &Trace, _now: SystemTime, _out: &mut Vec<u8>) {}
}

/// Events that are taken before anything is printed, if they are there: a step that prints much costs few writes.
const BATCH: usize = 2048;
/// A frame is not late by more than this because there is much to read.
const BATCH_TIME: Duration = Duration::from_millis(50);

fn show(
    mut out: Box<dyn Write + Send>,
    mut render: Box<dyn Render>,
    events: Events,
    stop: Arc<AtomicBool>,
    mut observer: Option<Box<dyn Observer>>,
) -> Summary {
    let mut feed = Feed::new(events, stop);
    let mut screen = Screen { trace: Trace::default(), buffer: Vec::new() };
    let mut readers = true;
    loop {
        let next = feed.next(render.wakes(&screen.trace));
        let began = Instant::now();
        let mut next = match next {
            Next::Event(event) => Some(event),
            Next::Nothing => None,
            Next::End => break,
        };
        let mut taken = 0;
        while let Some(event) = next {
            if let Some(observer) = &mut observer {
                observer.event(&event);
            }
            screen.take(&event, SystemTime::now(), render.as_mut());
            taken += 1;
            next = if taken < BATCH && began.elapsed() < BATCH_TIME { feed.try_next() } else { None };
        }
        screen.flush(SystemTime::now(), render.as_mut());
        readers = readers && screen.write(out.as_mut());
    }
    let now = SystemTime::now();
    render.finish(&screen.trace, now, &mut screen.buffer);
    if readers {
        screen.write(out.as_mut());
    }
    screen.trace.summary(now)
}

struct Screen {
    trace: Trace,
    buffer: Vec<u8>,
}

impl Screen {
    fn take(&mut self, event: &Event, now: SystemTime, render: &mut dyn Render) {
        self.trace.apply(event, now, &mut |vertex, at, line| render.line(vertex, at, line, now));
        render.event(&self.trace, event, now);
    }

    fn flush(&mut self, now: SystemTime, render: &mut dyn Render) {
        self.trace.overdue(now, &mut |vertex, at, line| render.line(vertex, at, line, now));
        render.flush(&self.trace, now, &mut self.buffer);
    }

    /// False when nobody reads any more, which is no reason for the build to stop.
    fn write(&mut self, out: &mut dyn Write) -> bool {
        let written = self.buffer.is_empty() || out.write_all(&self.buffer).and_then(|()| out.flush()).is_ok();
        self.buffer.clear();
        written
    }
}
