//! The first layer: physical lines become logical ones.
//!
//! Continuations are joined, comments and empty lines between them dropped, here-documents cut out. What remains of an
//! instruction is one text, every byte of which can be traced to the file. To know whether `<<` begins a here-document,
//! this layer has to look at the keyword and its flags ([`head`]) and at whether the arguments are JSON ([`json`]).
//!
//! All loops are over lines or bytes, none recurses, and each byte is looked at a constant number of times.

mod directive;
mod head;
mod heredoc;
mod joined;
mod json;

use crate::diagnostic::Diagnostic;
use crate::instruction::{Directive, EmptyContinuation, Heredoc, Word, is_keyword};
use crate::source::{SourceFile, Span};

pub(crate) use directive::check_comment;
pub use directive::{SyntaxDirective, detect_syntax};
pub(crate) use head::{Head, is_space};
pub use heredoc::{HeredocWord, parse_heredoc};
pub(crate) use joined::Joined;
pub(crate) use json::{JsonForm, string_array};

/// BuildKit reads lines into a buffer of 64 KiB, of which the newline takes one byte.
const MAX_LINE: usize = 65_535;

/// What one instruction consists of.
pub(crate) struct LogicalLine<'a> {
    pub(crate) text: Joined<'a>,
    pub(crate) head: Head,
    /// Here-documents included.
    pub(crate) span: Span,
    pub(crate) comments: Vec<Word>,
    pub(crate) heredocs: Vec<Heredoc>,
}

/// Splits a file, one logical line at a time. Never fails: what is wrong is in `problems`, and what can still be read is read.
pub(crate) struct Lines<'a> {
    pub(crate) directives: Vec<Directive>,
    pub(crate) escape: char,
    pub(crate) problems: Vec<Diagnostic>,
    pub(crate) empty_continuations: Vec<EmptyContinuation>,
    physical: Physical<'a>,
}

/// Reads the directives of a file; its lines follow.
pub(crate) fn read(source: &SourceFile) -> Lines<'_> {
    let mut lines = Lines {
        directives: Vec::new(),
        escape: '\\',
        problems: Vec::new(),
        empty_continuations: Vec::new(),
        physical: Physical::new(source.text()),
    };
    lines.read_directives();
    lines
}

impl<'a> Iterator for Lines<'a> {
    type Item = LogicalLine<'a>;

    fn next(&mut self) -> Option<LogicalLine<'a>> {
        let mut comments = Vec::new();
        while let Some(line) = self.next_line() {
            let trimmed = line.text.trim_start();
            if let Some(comment) = trimmed.strip_prefix('#') {
                let word = trimmed_word(comment, line.end_of_text() - comment.len());
                if word.text.is_empty() {
                    comments.clear();
                } else {
                    comments.push(word);
                }
                continue;
            }
            if trimmed.is_empty() {
                continue;
            }
            let line = Line { text: trimmed, start: line.end_of_text() - trimmed.len() };
            if let Some(line) = self.logical_line(line, &mut comments) {
                return Some(line);
            }
        }
        None
    }
}

fn trimmed_word(text: &str, start: usize) -> Word {
    let trimmed = text.trim();
    let start = start + (text.len() - text.trim_start().len());
    Word::new(trimmed, Span::new(start, start + trimmed.len()))
}

/// A physical line without its ending.
#[derive(Clone, Copy)]
struct Line<'a> {
    text: &'a str,
    start: usize,
}

impl Line<'_> {
    fn end_of_text(&self) -> usize {
        self.start + self.text.len()
    }

    fn span(&self) -> Span {
        Span::new(self.start, self.end_of_text())
    }
}

/// The lines of a text, from `at` on.
#[derive(Clone, Copy)]
struct Physical<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Physical<'a> {
    /// A byte-order mark at the beginning is no part of the first line.
    fn new(text: &'a str) -> Self {
        Self { text, at: if text.starts_with('\u{feff}') { '\u{feff}'.len_utf8() } else { 0 } }
    }

    /// The next line with its ending.
    fn next_raw(&mut self) -> Option<Line<'a>> {
        let rest = &self.text[self.at..];
        if rest.is_empty() {
            return None;
        }
        let length = memchr::memchr(b'\n', rest.as_bytes()).map_or(rest.len(), |newline| newline + 1);
        let line = Line { text: &rest[..length], start: self.at };
        self.at += length;
        Some(line)
    }
}

impl<'a> Lines<'a> {
    /// Where in the text the next line begins.
    pub(crate) fn at(&self) -> usize {
        self.physical.at
    }

    /// The lines from behind the middle on, beginning with one that seems to begin an instruction. It does not if it
    /// belongs to a here-document. `None` if there is no such line.
    pub(crate) fn second_half(&self) -> Option<Self> {
        let Physical { text, at } = self.physical;
        let middle = memchr::memchr(b'\n', &text.as_bytes()[at + (text.len() - at) / 2..])?;
        let mut physical = Physical { text, at: at + (text.len() - at) / 2 + middle + 1 };
        let mut may_begin = false;
        loop {
            let before = physical;
            let line = physical.next_raw()?;
            if may_begin && line.text.split_once(' ').is_some_and(|(word, _)| is_keyword(word)) {
                let (problems, empty_continuations) = (Vec::new(), Vec::new());
                return Some(Self {
                    directives: Vec::new(),
                    escape: self.escape,
                    problems,
                    empty_continuations,
                    physical: before,
                });
            }
            // Comments belong to the instruction below, and those and empty lines may stand inside of one.
            let text = line.text.trim();
            may_begin = !text.is_empty()
                && !text.starts_with('#')
                && !is_continued(line.text.trim_end_matches(['\r', '\n']), self.escape);
        }
    }

    /// Takes over what was found in the lines that follow.
    pub(crate) fn append(&mut self, mut behind: Self) {
        self.problems.append(&mut behind.problems);
        self.empty_continuations.append(&mut behind.empty_continuations);
        self.physical = behind.physical;
    }

    /// The next line with its ending, its length checked.
    fn next_raw(&mut self) -> Option<Line<'a>> {
        let line = self.physical.next_raw()?;
        let length = line.text.strip_suffix('\n').unwrap_or(line.text).len();
        if length > MAX_LINE {
            let span = Span::new(line.start, line.start + length);
            self.problems.push(
                Diagnostic::new(
                    span,
                    format!("this line has {length} bytes, more than the {MAX_LINE} that are allowed"),
                )
                .with_hint("break it with a line continuation, or COPY a file instead"),
            );
        }
        Some(line)
    }

    /// The next line without its ending.
    fn next_line(&mut self) -> Option<Line<'a>> {
        self.next_raw().map(|line| Line { text: line.text.trim_end_matches(['\r', '\n']), ..line })
    }

    /// Directives are only looked for up to the first line that is none.
    fn read_directives(&mut self) {
        loop {
            let before = self.physical;
            let Some(line) = self.physical.next_raw() else { return };
            let text = line.text.trim_end_matches(['\r', '\n']);
            let directive = directive::parse(Line { text, ..line }.trimmed_start(), "#");
            let Some(directive) = directive.filter(|_| line.text.len() <= MAX_LINE) else {
                self.physical = before;
                return;
            };
            if let Some(first) = self.directives.iter().find(|known| known.name == directive.name) {
                self.problems.push(
                    Diagnostic::new(directive.span, format!("the directive '{}' is given twice", directive.name))
                        .with_hint("remove one of them")
                        .with_related(first.span, "it was first given here"),
                );
                continue;
            }
            if directive.name == "escape" {
                match directive.value.text.as_str() {
                    "\\" => self.escape = '\\',
                    "`" => self.escape = '`',
                    other => self.problems.push(
                        Diagnostic::new(directive.value.span, format!("'{other}' cannot be the escape character"))
                            .with_hint("only \\ and ` can"),
                    ),
                }
            }
            self.directives.push(directive);
        }
    }

    /// Reads the rest of the instruction that begins with `line`; `None` if there is nothing but continuations.
    fn logical_line(&mut self, mut line: Line<'a>, comments: &mut Vec<Word>) -> Option<LogicalLine<'a>> {
        let mut part = continued(line.text, self.escape);
        let mut text = Joined::new(part.unwrap_or(line.text), line.start);
        let mut empty: Vec<Span> = Vec::new();
        while part.is_some() {
            // Only a line that is neither a comment nor empty decides whether there is yet another one.
            let next = loop {
                let Some(next) = self.next_line() else { break None };
                match next.text.trim_start().chars().next() {
                    Some('#') => {}
                    Some(_) => break Some(next),
                    None => empty.push(next.span()),
                }
            };
            let Some(next) = next else { break };
            line = next;
            part = continued(line.text, self.escape);
            text.push(part.unwrap_or(line.text), line.start);
        }
        if !empty.is_empty() {
            // At the end of the file the last line read, empty or a comment, is the last of the instruction.
            let read = &self.physical.text[..self.physical.at];
            let at = read.strip_suffix('\n').unwrap_or(read).len();
            let end = if part.is_some() { Span::new(at, at) } else { line.span() };
            self.empty_continuations.push(EmptyContinuation { lines: empty, end });
        }
        if text.as_str().trim().is_empty() {
            self.problems.push(
                Diagnostic::new(line.span(), "a line continuation without an instruction")
                    .with_hint("remove this line"),
            );
            return None;
        }
        let head = Head::split(&text, 0, self.escape);
        let heredocs = self.heredocs(&text, &head);
        let mut span = text.trimmed_span();
        let read = &self.physical.text[..self.physical.at];
        if !heredocs.is_empty() {
            span = span.up_to(read.trim_end_matches(['\r', '\n']).len());
        } else if part.is_some() {
            // Continued up to the end of the file: what was read to see that belongs to it, as in BuildKit.
            // With its newline, as an empty last line has nothing else.
            span = span.up_to(read.len());
        }
        Some(LogicalLine { text, head, span, comments: std::mem::take(comments), heredocs })
    }

    /// Reads the here-documents that a line asks for.
    fn heredocs(&mut self, text: &Joined<'_>, head: &Head) -> Vec<Heredoc> {
        // Looking for one byte is cheaper, and most lines do not even have that.
        let may = memchr::memchr(b'<', text.as_str().as_bytes()).is_some_and(|at| text.as_str()[at..].contains("<<"));
        if !may || !head.takes_heredocs(text, self.escape) {
            return Vec::new();
        }
        let words = match heredoc::in_line(text) {
            Ok(words) => words,
            Err(problem) => {
                self.problems.push(problem);
                return Vec::new();
            }
        };
        let mut heredocs = Vec::with_capacity(words.len());
        for (word, span) in words {
            let start = self.physical.at;
            let Some(end) = self.find_delimiter(&word) else {
                self.problems.push(self.unterminated(&word, span, start));
                return heredocs;
            };
            heredocs.push(Heredoc {
                name: Word::new(word.name, span),
                fd: word.fd,
                expand: word.expand,
                chomp: word.chomp,
                content: self.physical.text[start..end].to_owned(),
                content_span: Span::new(start, end),
            });
        }
        heredocs
    }

    /// Reads up to the delimiter and returns where it begins.
    fn find_delimiter(&mut self, word: &HeredocWord) -> Option<usize> {
        while let Some(line) = self.next_line() {
            let text = if word.chomp { line.text.trim_start_matches('\t') } else { line.text };
            if text == word.name {
                return Some(line.start);
            }
        }
        None
    }

    fn unterminated(&self, word: &HeredocWord, span: Span, start: usize) -> Diagnostic {
        let name = &word.name;
        let problem = Diagnostic::new(span, format!("the here-document '{name}' does not end"))
            .with_hint(format!("end it with a line that consists of {name} only"));
        let mut rest = Physical { text: self.physical.text, at: start };
        while let Some(line) = rest.next_raw() {
            if line.text.trim() == name.trim() {
                let at = trimmed_word(line.text, line.start).span;
                return problem.with_related(at, "this line does not end it because of the space around the delimiter");
            }
        }
        problem
    }
}

impl<'a> Line<'a> {
    fn trimmed_start(self) -> Self {
        let text = self.text.trim_start();
        Line { text, start: self.end_of_text() - text.len() }
    }
}

/// The line without its continuation character; `None` if it is not continued. A doubled escape character is text, and
/// spaces and tabs may stand behind it.
fn continued(line: &str, escape: char) -> Option<&str> {
    let part = line.trim_end_matches([' ', '\t']).strip_suffix(escape)?;
    (!part.ends_with(escape)).then_some(part)
}

/// Whether a line of this text would be continued by the next one.
pub(crate) fn is_continued(line: &str, escape: char) -> bool {
    continued(line, escape).is_some()
}
#[cfg(test)]
mod tests;
