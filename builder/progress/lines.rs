//! From the bytes that a step prints to lines.

use std::collections::VecDeque;
use std::time::{Duration, SystemTime};

/// A line longer than this is shown in pieces.
const LONGEST_LINE: usize = 256 * 1024;

/// An unfinished line is shown after this time: a prompt, dots of progress, the meter of a download.
const PATIENCE: Duration = Duration::from_secs(5);

/// Puts the pieces of one stream together. A carriage return begins the line anew, as on a terminal, so that of a progress
/// meter only the last state is seen.
#[derive(Default)]
pub(super) struct Assembler {
    line: Vec<u8>,
    /// The next byte begins the line anew, unless it ends the line.
    returned: bool,
    /// When the unfinished line began, or was last shown.
    since: Option<SystemTime>,
}

impl Assembler {
    /// Takes `data` and hands out every line that it ends, without its line ending.
    pub(super) fn push(&mut self, data: &[u8], now: SystemTime, mut emit: impl FnMut(&[u8])) {
        let mut rest = data;
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let (piece, after) = (&rest[..end], &rest[end + 1..]);
            rest = after;
            if self.line.is_empty() && !self.returned && !piece.contains(&b'\r') && piece.len() <= LONGEST_LINE {
                emit(piece);
                continue;
            }
            self.append(piece, &mut emit);
            emit(&self.line);
            self.clear();
        }
        if !rest.is_empty() {
            self.append(rest, &mut emit);
            self.since.get_or_insert(now);
        }
    }

    /// What the unfinished line holds.
    pub(super) fn partial(&self) -> Option<&[u8]> {
        (!self.line.is_empty()).then_some(&self.line)
    }

    /// The unfinished line, if it has waited long enough to be shown. A meter stays, to be shown again; other text goes on in
    /// a new line.
    pub(super) fn overdue(&mut self, now: SystemTime, emit: impl FnOnce(&[u8])) {
        let waited = self.since.and_then(|since| now.duration_since(since).ok()).unwrap_or_default();
        if waited < PATIENCE || self.line.is_empty() {
            return;
        }
        emit(&self.line);
        self.clear();
    }

    /// Whether [`overdue`](Self::overdue) may become due.
    pub(super) fn waits(&self) -> bool {
        !self.line.is_empty()
    }

    /// The stream ended: hands out what is left.
    pub(super) fn finish(&mut self, emit: impl FnOnce(&[u8])) {
        if !self.line.is_empty() {
            emit(&self.line);
        }
        self.clear();
    }

    fn append(&mut self, piece: &[u8], emit: &mut impl FnMut(&[u8])) {
        for (at, part) in piece.split(|byte| *byte == b'\r').enumerate() {
            if at > 0 {
                self.returned = true;
            }
            if part.is_empty() {
                continue;
            }
            if std::mem::take(&mut self.returned) {
                self.line.clear();
            }
            let mut part = part;
            while self.line.len() + part.len() > LONGEST_LINE {
                let (head, tail) = part.split_at(LONGEST_LINE - self.line.len());
                self.line.extend_from_slice(head);
                emit(&self.line);
                self.line.clear();
                part = tail;
            }
            self.line.extend_from_slice(part);
        }
    }

    fn clear(&mut self) {
        self.line.clear();
        self.line.shrink_to(4096);
        self.returned = false;
        self.since = None;
    }
}

/// Lines kept of a step, for the error message should it fail.
const KEPT_LINES: usize = 100;
/// Bytes kept of a step.
const KEPT_BYTES: usize = 64 * 1024;
/// Bytes kept of one line.
const KEPT_OF_LINE: usize = 4096;

/// The last lines of a log.
#[derive(Default)]
pub(super) struct Tail {
    lines: VecDeque<(Duration, Vec<u8>)>,
    bytes: usize,
    /// How many lines there were in all.
    pub(super) total: u64,
}

impl Tail {
    pub(super) fn push(&mut self, at: Duration, line: &[u8]) {
        self.total += 1;
        let line = &line[..line.len().min(KEPT_OF_LINE)];
        let mut reused = Vec::new();
        while self.lines.len() >= KEPT_LINES || self.bytes + line.len() > KEPT_BYTES {
            let Some((_, old)) = self.lines.pop_front() else { break };
            self.bytes -= old.len();
            reused = old;
        }
        reused.clear();
        reused.extend_from_slice(line);
        self.bytes += line.len();
        self.lines.push_back((at, reused));
    }

    /// The lines, oldest first, with the time since the step began.
    pub(super) fn lines(&self) -> impl DoubleEndedIterator<Item = (Duration, &[u8])> + ExactSizeIterator {
        self.lines.iter().map(|(at, line)| (*at, line.as_slice()))
    }

    /// Gives the memory back.
    pub(super) fn forget(&mut self) {
        self.lines = VecDeque::new();
        self.bytes = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(pieces: &[&str]) -> Vec<String> {
        let mut assembler = Assembler::default();
        let mut out = Vec::new();
        for piece in pieces {
            assembler.push(piece.as_bytes(), SystemTime::UNIX_EPOCH, |line| {
                out.push(String::from_utf8_lossy(line).into_owned());
            });
        }
        assembler.finish(|line| out.push(format!("{} (unfinished)", String::from_utf8_lossy(line))));
        out
    }

    #[test]
    fn pieces_become_lines() {
        assert_eq!(lines(&["a\nb\n"]), ["a", "b"]);
        assert_eq!(lines(&["a", "b\nc"]), ["ab", "c (unfinished)"]);
        assert_eq!(lines(&["\n\n"]), ["", ""]);
        assert_eq!(lines(&["dos\r\nlines\r\n"]), ["dos", "lines"]);
        assert_eq!(lines(&["dos\r", "\nx\n"]), ["dos", "x"]);
        assert_eq!(lines(&[" 5%\r 10%\r", " 100%\r\n"]), [" 100%"]);
        assert_eq!(lines(&["\r 5%\r 10%"]), [" 10% (unfinished)"]);
    }

    #[test]
    fn endless_lines_are_cut_and_nothing_is_lost() {
        let piece = "x".repeat(100_000);
        let all = lines(&[&piece, &piece, &piece, "\n"]);
        assert_eq!(all.iter().map(String::len).collect::<Vec<_>>(), [LONGEST_LINE, 300_000 - LONGEST_LINE]);
        let whole = format!("{}\n", "y".repeat(600_000));
        assert_eq!(lines(&[&whole]).iter().map(String::len).sum::<usize>(), 600_000);
    }

    #[test]
    fn unfinished_lines_are_shown_in_time() {
        let mut assembler = Assembler::default();
        let start = SystemTime::UNIX_EPOCH;
        assembler.push(b"Password: ", start, |_| panic!("not a line"));
        assembler.overdue(start + Duration::from_secs(1), |_| panic!("too early"));
        let mut shown = Vec::new();
        assembler.overdue(start + Duration::from_secs(6), |line| shown.push(line.to_vec()));
        assert_eq!(shown, [b"Password: "]);
        assert!(!assembler.waits());
    }

    #[test]
    fn the_tail_is_bounded() {
        let mut tail = Tail::default();
        for number in 0..1000 {
            tail.push(Duration::ZERO, format!("{number}").as_bytes());
        }
        assert_eq!(tail.lines().len(), KEPT_LINES);
        assert_eq!(tail.lines().next_back().map(|(_, line)| line.to_vec()), Some(b"999".to_vec()));
        for _ in 0..100 {
            tail.push(Duration::ZERO, &[b'x'; 100_000]);
        }
        assert!(tail.bytes <= KEPT_BYTES);
        assert_eq!(tail.lines().map(|(_, line)| line.len()).sum::<usize>(), tail.bytes);
        assert_eq!(tail.total, 1100);
    }
}
