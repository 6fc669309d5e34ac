//! Reads the instructions of a file, of a large one with two threads.
//!
//! Where an instruction begins is known only once everything in front of it is read. But it can be guessed, and what was
//! read from there on holds if the first half then ends in exactly that place.

use std::thread;

use super::ast::{Dockerfile, Instruction};
use super::parse;
use crate::diagnostic::Diagnostic;
use crate::lines::{self, Lines};
use crate::source::SourceFile;

/// From this size in bytes on a second thread is worth its start.
const LARGE: usize = 256 << 10;

/// What a file says, and what is wrong with it.
pub(super) fn file(source: &SourceFile) -> (Dockerfile, Vec<Diagnostic>) {
    halved_from(LARGE, source)
}

/// As [`file`], for any idea of what is large.
fn halved_from(large: usize, source: &SourceFile) -> (Dockerfile, Vec<Diagnostic>) {
    let mut part = Part::new(lines::read(source));
    match part.lines.second_half().filter(|_| source.text().len() >= large) {
        None => part.read_up_to(usize::MAX),
        Some(half) => part.read_with(Part::new(half)),
    }
    let Part { lines, instructions, warnings, mut problems } = part;
    let Lines { directives, escape, problems: mut all, empty_continuations, .. } = lines;
    all.append(&mut problems);
    (Dockerfile { directives, escape, instructions, warnings, empty_continuations }, all)
}

/// What was read from a range of lines, and the lines behind them.
struct Part<'a> {
    lines: Lines<'a>,
    instructions: Vec<Instruction>,
    warnings: Vec<Diagnostic>,
    problems: Vec<Diagnostic>,
}

impl<'a> Part<'a> {
    fn new(lines: Lines<'a>) -> Self {
        Self { lines, instructions: Vec::new(), warnings: Vec::new(), problems: Vec::new() }
    }

    /// Reads the instructions that begin in front of `end`, a place in the text.
    fn read_up_to(&mut self, end: usize) {
        while self.lines.at() < end
            && let Some(line) = self.lines.next()
        {
            match parse::instruction(line, self.lines.escape, &mut self.warnings) {
                Ok(instruction) => self.instructions.push(instruction),
                Err(problem) => self.problems.push(problem),
            }
        }
    }

    /// Reads everything, what lies from `half` on at the same time.
    fn read_with(&mut self, mut half: Part<'a>) {
        let start = half.lines.at();
        let half = thread::scope(|scope| {
            let read = move || {
                half.read_up_to(usize::MAX);
                half
            };
            let thread = thread::Builder::new().spawn_scoped(scope, read).ok();
            self.read_up_to(start);
            thread.map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
        });
        match half.filter(|_| self.lines.at() == start) {
            Some(half) => self.append(half),
            // No thread could be had, or what looked like an instruction was a line of a here-document.
            None => self.read_up_to(usize::MAX),
        }
    }

    fn append(&mut self, mut behind: Part<'a>) {
        self.instructions.append(&mut behind.instructions);
        self.warnings.append(&mut behind.warnings);
        self.problems.append(&mut behind.problems);
        self.lines.append(behind.lines);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What makes it hard to say where an instruction begins.
    const LINES: [&str; 16] = [
        "FROM a\n",
        "RUN b\n",
        "  copy c d\n",
        "RUN e \\\n",
        "RUN e \\ \n",
        "RUN e `\r\n",
        "# RUN f\n",
        "\n",
        "RUN <<EOF\n",
        "ONBUILD RUN <<-\"EOF\" <<x\n",
        "EOF\n",
        "\tEOF\n",
        "x\n",
        "nothing known\n",
        "ENV g\n",
        "\\\n",
    ];

    proptest! {
        #[test]
        fn two_threads_read_what_one_reads(
            escape in any::<bool>(),
            lines in proptest::collection::vec(proptest::sample::select(&LINES[..]), 0..40),
        ) {
            let directive = if escape { "# escape=`\n" } else { "" };
            let source = SourceFile::new("Dockerfile", format!("{directive}{}", lines.concat()));
            prop_assert_eq!(halved_from(0, &source), halved_from(usize::MAX, &source));
        }
    }

    #[test]
    fn a_guess_in_a_here_document_is_mended() {
        let text = format!("FROM a\nRUN <<EOF\n{}EOF\nRUN b\n", "RUN a\n".repeat(LARGE / 6));
        let source = SourceFile::new("Dockerfile", text);
        let half = lines::read(&source).second_half().expect("what looks like instructions lies behind the middle");
        assert!(source.text()[half.at()..].starts_with("RUN a"));
        let (dockerfile, problems) = file(&source);
        assert_eq!((dockerfile.instructions.len(), problems.len()), (3, 0));
    }
}
