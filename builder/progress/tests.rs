//! Scripted builds, drawn with a clock of our own.

use std::sync::{Arc, Mutex};

use graph::ContentDigest;
use solver::{LogStream, Status, channel};

use super::*;

/// Events at milliseconds since the build began, as the display receives them.
struct Script<'a> {
    screen: Screen,
    render: &'a mut dyn Render,
    out: Vec<u8>,
}

fn at(milliseconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000) + Duration::from_millis(milliseconds)
}

impl<'a> Script<'a> {
    fn new(render: &'a mut dyn Render) -> Self {
        Self { screen: Screen { trace: Trace::default(), buffer: Vec::new() }, render, out: Vec::new() }
    }

    fn event(&mut self, now: u64, event: Event) {
        self.screen.take(&event, at(now), self.render);
        self.pass(now);
    }

    fn pass(&mut self, now: u64) {
        self.screen.flush(at(now), self.render);
        self.screen.write(&mut self.out);
    }

    fn announce(&mut self, id: u64, name: &str, inputs: &[u64]) {
        self.event(
            0,
            Event::Announced {
                vertex: VertexId(id),
                name: name.to_owned(),
                span: Some(Span { first: id as u32, last: id as u32 }),
                digest: ContentDigest::of(name.as_bytes()),
                inputs: inputs.iter().copied().map(VertexId).collect(),
            },
        );
    }

    fn start(&mut self, now: u64, id: u64) {
        self.event(now, Event::Started { vertex: VertexId(id), at: at(now) });
    }

    fn log(&mut self, now: u64, id: u64, text: &str) {
        let (vertex, stream) = (VertexId(id), LogStream::Stdout);
        self.event(now, Event::Log { vertex, stream, data: text.into(), at: at(now) });
    }

    fn status(&mut self, now: u64, id: u64, part: &str, current: u64, total: u64, done: bool) {
        let status = Status { id: part.to_owned(), current, total, done };
        self.event(now, Event::Status { vertex: VertexId(id), status });
    }

    fn end(&mut self, now: u64, id: u64, error: Option<&str>) {
        let error = error.map(str::to_owned);
        self.event(now, Event::Completed { vertex: VertexId(id), at: at(now), error });
    }

    fn finish(mut self, now: u64) -> (String, Summary) {
        self.render.finish(&self.screen.trace, at(now), &mut self.screen.buffer);
        self.screen.write(&mut self.out);
        (String::from_utf8(self.out).unwrap(), self.screen.trace.summary(at(now)))
    }
}

/// A build with all there is: a transfer, a hit, two steps at once, a meter, colours, a failure and what it cancels.
fn failing(render: &mut dyn Render) -> (String, Summary) {
    let mut build = Script::new(render);
    build.announce(1, "[internal] load build definition from Dockerfile", &[]);
    build.start(0, 1);
    build.status(10, 1, "transferring dockerfile:", 0, 0, false);
    build.status(30, 1, "transferring dockerfile:", 32, 0, true);
    build.end(40, 1, None);
    build.announce(2, "[1/4] FROM docker.io/library/debian:bookworm-slim", &[]);
    build.announce(3, "[2/4] COPY . /src", &[2]);
    build.announce(4, "[3/4] RUN make", &[3]);
    build.announce(5, "[other 2/2] RUN fetch", &[2]);
    build.announce(6, "[4/4] RUN never", &[4, 5]);
    build.start(50, 2);
    let layer = "sha256:5eb5b503b37671af16371272f9c5313a3e82f1d0756e14506704489ad9900803";
    build.status(100, 2, layer, 0, 29_130_000, false);
    build.status(200, 2, layer, 1_000_000, 29_130_000, false);
    build.status(700, 2, layer, 16_000_000, 29_130_000, false);
    build.status(1300, 2, layer, 29_130_000, 29_130_000, true);
    build.end(1500, 2, None);
    build.start(1500, 3);
    build.event(1501, Event::Cached { vertex: VertexId(3) });
    build.end(1502, 3, None);
    build.start(1510, 4);
    build.start(1511, 5);
    build.log(1600, 4, "cc -c a.c\ncc -c b.c\n");
    build.log(1700, 5, "\x1b]0;owned\x07\r 10%");
    build.log(2700, 5, "\r 20%");
    build.event(2800, Event::Warning { vertex: Some(VertexId(4)), message: "clock skew".to_owned() });
    for second in 3..9 {
        build.log(second * 1000, 4, "linking\n");
        build.pass(second * 1000 + 500);
    }
    build.pass(13_000);
    build.log(14_000, 4, "make: *** [Makefile:2: all] \x1b[31mError 1\x1b[0m");
    build.end(14_100, 4, Some("process \"/bin/sh -c make\" did not complete successfully: exit code: 2"));
    build.end(14_200, 5, Some("cancelled"));
    build.event(14_300, Event::Warning { vertex: None, message: "no .dockerignore".to_owned() });
    build.finish(14_300)
}

#[test]
fn plain_output() {
    let (out, _) = failing(&mut plain::Plain::new(Colours::Strip));
    insta::assert_snapshot!(out);
}

#[test]
fn rawjson_output() {
    let (out, _) = failing(&mut rawjson::RawJson::default());
    for line in out.lines() {
        serde_json::from_str::<serde_json::Value>(line).unwrap();
    }
    insta::assert_snapshot!(out);
}

#[test]
fn a_silent_display_still_knows_what_failed() {
    let (out, summary) = failing(&mut Silent);
    assert_eq!(out, "");
    let failed = summary.failed.unwrap();
    assert_eq!(failed.vertex, VertexId(4));
    assert_eq!(failed.span, Some(Span { first: 4, last: 4 }));
    assert_eq!(failed.log_lines, 9);
    assert_eq!(failed.log_tail.first().unwrap(), "0.090 cc -c a.c");
    assert_eq!(failed.log_tail.last().unwrap(), "12.59 make: *** [Makefile:2: all] Error 1");
    assert_eq!((summary.cached, summary.completed, summary.total), (1, 5, 6));
    assert_eq!(summary.duration, Duration::from_millis(14_300));
    assert_eq!(summary.warnings, ["no .dockerignore"]);
}

/// The screen of a terminal that understands as much as our frames use.
fn screen_of(out: &str, columns: usize) -> String {
    let mut rows: Vec<String> = vec![String::new()];
    let mut row = 0;
    let mut rest = out;
    while let Some(next) = rest.chars().next() {
        rest = &rest[next.len_utf8()..];
        match next {
            '\r' => {}
            '\n' => {
                row += 1;
                if row == rows.len() {
                    rows.push(String::new());
                }
                // A frame rewrites every row from its beginning.
                rows[row].clear();
            }
            '\x1b' => {
                let end = rest.find(|c: char| c.is_ascii_alphabetic()).unwrap();
                let (parameter, kind) = (&rest[1..end], &rest[end..=end]);
                match kind {
                    "A" => {
                        row -= parameter.parse::<usize>().unwrap();
                        rows[row].clear();
                    }
                    "J" => rows.truncate(row + 1),
                    "K" | "h" | "l" | "m" => {}
                    other => panic!("unexpected sequence {other}"),
                }
                rest = &rest[end + 1..];
            }
            _ => rows[row].push(next),
        }
    }
    for row in &rows {
        assert!(width(row) <= columns, "too wide: {row}");
    }
    rows.join("\n")
}

fn tty(columns: usize, rows: usize, colours: bool) -> tty::Tty {
    tty::Tty::new(Box::new(move || (columns, rows)), colours, 6)
}

#[test]
fn the_last_frame_shows_everything() {
    let (out, _) = failing(&mut tty(100, 24, true));
    assert!(out.ends_with("\x1b[?25h"), "the cursor is shown");
    insta::assert_snapshot!(screen_of(&out, 100));
}

/// Many vertices of all kinds, at work.
fn busy(columns: usize, rows: usize) -> String {
    let mut render = tty(columns, rows, false);
    let mut build = Script::new(&mut render);
    for id in 0..12 {
        build.announce(id, &format!("[stage {id}] RUN something with a long name, 漢字 and all, that goes on"), &[]);
        build.start(id * 100, id);
        if id < 8 {
            build.end(id * 100 + 50, id, None);
        }
    }
    build.status(1200, 9, "sha256:aaaa", 3_000_000, 12_000_000, false);
    build.status(1200, 9, "sha256:bbbb", 12_000_000, 12_000_000, true);
    for line in 0..20 {
        build.log(1300, 10, &format!("\x1b[1mline\x1b[0m {line}\n"));
    }
    build.log(1300, 11, "wide 漢字漢字漢字漢字漢字漢字漢字漢字漢字漢字漢字漢字漢字漢字漢字漢字漢字漢字漢字漢字漢字\n");
    build.log(1400, 11, "\r  5%\r  6%");
    build.pass(3000);
    screen_of(std::str::from_utf8(&build.out).unwrap(), columns)
}

#[test]
fn frames_fit_the_terminal() {
    insta::assert_snapshot!("tty_wide", busy(100, 40));
    insta::assert_snapshot!("tty_low", busy(60, 12));
    for (columns, rows) in [(1, 1), (5, 3), (20, 5), (79, 2), (200, 24), (80, 7)] {
        let screen = busy(columns, rows);
        assert!(screen.lines().count() <= rows, "{columns}x{rows}:\n{screen}");
    }
}

#[test]
fn a_narrower_terminal_is_cleaned_up() {
    let size = Arc::new(Mutex::new((80, 24)));
    let shared = Arc::clone(&size);
    let mut render = tty::Tty::new(Box::new(move || *shared.lock().unwrap()), false, 6);
    let mut build = Script::new(&mut render);
    build.announce(0, "a", &[]);
    build.start(0, 0);
    build.pass(200);
    build.out.clear();
    *size.lock().unwrap() = (30, 24);
    build.pass(400);
    // The header took one row; the line of 80 columns has become three.
    assert!(String::from_utf8_lossy(&build.out).contains("\x1b[4A"));
}

#[test]
fn modes() {
    for name in ["auto", "tty", "plain", "quiet", "rawjson"] {
        assert_eq!(name.parse::<Mode>().unwrap().to_string(), name);
    }
    assert_eq!("none".parse(), Ok(Mode::Quiet));
    assert_eq!("fancy".parse::<Mode>(), Err(ModeError::Unknown("fancy".to_owned())));
    let choose = |asked, environment, terminal| Mode::choose_from(asked, environment, terminal, false);
    assert_eq!(choose(None, "", true), Ok(Mode::Tty));
    assert_eq!(choose(None, "", false), Ok(Mode::Plain));
    assert_eq!(choose(None, "rawjson", true), Ok(Mode::RawJson));
    assert_eq!(choose(Some(Mode::Plain), "tty", true), Ok(Mode::Plain));
    assert_eq!(choose(Some(Mode::Auto), "plain", true), Ok(Mode::Tty));
    assert_eq!(choose(Some(Mode::Tty), "", false), Err(ModeError::NoTerminal));
    assert_eq!(Mode::choose_from(None, "", true, true), Ok(Mode::Plain));
}

/// Keeps what is written.
#[derive(Clone, Default)]
struct Sink(Arc<Mutex<Vec<u8>>>);

impl Write for Sink {
    fn write(&mut self, data: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(data);
        Ok(data.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_step_may_print_much_and_finish_does_not_wait_for_senders() {
    let (progress, events) = channel();
    let sink = Sink::default();
    let render = Box::new(plain::Plain::new(Colours::Strip));
    let display = start_on(Box::new(sink.clone()), Some(render), events, None);
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let vertex = progress.vertex("RUN yes");
    runtime.block_on(async {
        vertex.started();
        for _ in 0..1000 {
            vertex.log(LogStream::Stdout, "y\n".repeat(100).into_bytes()).await;
        }
        vertex.completed();
    });
    let summary = display.finish();
    assert_eq!((summary.completed, summary.total), (1, 1));
    let out = String::from_utf8(sink.0.lock().unwrap().clone()).unwrap();
    assert_eq!(out.lines().filter(|line| line.ends_with(" y")).count(), 100_000);
    assert!(out.lines().last().unwrap().starts_with("#1 DONE"));
    // The other end is still there, and may go on.
    vertex.started();
}

#[test]
fn what_was_printed_before_the_end_is_shown_however_slow_the_terminal() {
    struct Slow(Sink);
    impl Write for Slow {
        fn write(&mut self, data: &[u8]) -> std::io::Result<usize> {
            std::thread::sleep(Duration::from_millis(8));
            self.0.write(&data[..data.len().min(4096)])
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let (progress, events) = channel();
    let sink = Sink::default();
    let render = Box::new(plain::Plain::new(Colours::Strip));
    let display = start_on(Box::new(Slow(sink.clone())), Some(render), events, None);
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let vertex = progress.vertex("RUN yes");
    vertex.started();
    runtime.block_on(async {
        for _ in 0..1000 {
            vertex.log(LogStream::Stdout, "a line of output\n".repeat(20).into_bytes()).await;
        }
    });
    vertex.completed();
    assert_eq!(display.finish().completed, 1);
    let out = String::from_utf8(sink.0.lock().unwrap().clone()).unwrap();
    assert_eq!(out.lines().filter(|line| line.ends_with(" a line of output")).count(), 20_000);
}

#[test]
fn nobody_reads() {
    struct Closed;
    impl Write for Closed {
        fn write(&mut self, _data: &[u8]) -> std::io::Result<usize> {
            Err(std::io::ErrorKind::BrokenPipe.into())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let (progress, events) = channel();
    let display = start_on(Box::new(Closed), Some(Box::new(plain::Plain::new(Colours::Strip))), events, None);
    let vertex = progress.vertex("a");
    vertex.started();
    vertex.failed("no".to_owned());
    assert_eq!(display.finish().failed.unwrap().error, "no");
}
