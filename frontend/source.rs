//! A source text and positions in it.
//!
//! Every token the parser makes carries a [`Span`] of byte offsets, so that an error can be shown on the line that caused
//! it. Lines and columns are computed only when somebody is going to read them.

use std::fmt;

/// A range of bytes of a [`SourceFile`], half open.
///
/// A large file has a million of them, so they are as small as they can be: what lies beyond 4 GiB, which no Dockerfile
/// reaches, is cut off.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Span {
    start: u32,
    end: u32,
}

impl Span {
    /// The bytes from `start` up to `end`.
    #[must_use]
    pub fn new(start: usize, end: usize) -> Self {
        let offset = |at| u32::try_from(at).unwrap_or(u32::MAX);
        Self { start: offset(start), end: offset(end.max(start)) }
    }

    /// Offset of the first byte.
    #[must_use]
    pub fn start(self) -> usize {
        self.start as usize
    }

    /// Offset behind the last byte.
    #[must_use]
    pub fn end(self) -> usize {
        self.end as usize
    }

    /// The same beginning, and another end.
    #[must_use]
    pub fn up_to(self, end: usize) -> Self {
        Self::new(self.start(), end)
    }

    /// The smallest span that covers both.
    #[must_use]
    pub fn to(self, other: Self) -> Self {
        Self { start: self.start.min(other.start), end: self.end.max(other.end) }
    }

    /// How many bytes it covers.
    #[must_use]
    pub fn len(self) -> usize {
        self.end() - self.start()
    }

    /// Whether it covers nothing: a position between two bytes.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.start == self.end
    }
}

impl fmt::Debug for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..{}", self.start, self.end)
    }
}

/// A position as people count it: both numbers begin at 1, columns are characters.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LineColumn {
    /// The line.
    pub line: usize,
    /// The character in the line.
    pub column: usize,
}

/// A named text: a Dockerfile, or the trigger of a base image.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SourceFile {
    name: String,
    text: String,
    /// Offsets of the first byte of every line.
    line_starts: Vec<usize>,
}

impl SourceFile {
    /// A text under the name that errors will show.
    #[must_use]
    pub fn new(name: impl Into<String>, text: impl Into<String>) -> Self {
        let text = text.into();
        let mut line_starts = vec![0];
        line_starts.extend(text.match_indices('\n').map(|(at, _)| at + 1));
        Self { name: name.into(), text, line_starts }
    }

    /// As [`new`](Self::new), for bytes as they were read. Dockerfiles have no declared encoding; what is not UTF-8 becomes
    /// the replacement character, which can only ever matter in comments and values.
    #[must_use]
    pub fn from_bytes(name: impl Into<String>, bytes: &[u8]) -> Self {
        Self::new(name, String::from_utf8_lossy(bytes))
    }

    /// The name that errors show.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The whole text.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// What `span` covers; empty if it does not lie in this text.
    #[must_use]
    pub fn slice(&self, span: Span) -> &str {
        self.text.get(span.start()..span.end()).unwrap_or("")
    }

    /// How many lines there are. A final newline does not begin another one.
    #[must_use]
    pub fn line_count(&self) -> usize {
        self.line_starts.len() - usize::from(self.text.is_empty() || self.text.ends_with('\n'))
    }

    /// The line, counted from 1, that holds the byte at `offset`.
    #[must_use]
    pub fn line_of(&self, offset: usize) -> usize {
        self.line_starts.partition_point(|start| *start <= offset)
    }

    /// Line and column of the byte at `offset`.
    #[must_use]
    pub fn line_column(&self, offset: usize) -> LineColumn {
        let line = self.line_of(offset);
        let start = self.line_starts[line - 1];
        let column = 1 + self.text[start..].char_indices().take_while(|(at, _)| start + at < offset).count();
        LineColumn { line, column }
    }

    /// Where `line`, counted from 1, lies, without its line ending. `None` past the end.
    #[must_use]
    pub fn line_span(&self, line: usize) -> Option<Span> {
        let start = *self.line_starts.get(line.checked_sub(1)?)?;
        let end = self.line_starts.get(line).map_or(self.text.len(), |next| next - 1);
        Some(Span::new(start, start + self.text[start..end].trim_end_matches('\r').len()))
    }

    /// The text of `line`, counted from 1, without its line ending. `None` past the end.
    #[must_use]
    pub fn line_text(&self, line: usize) -> Option<&str> {
        self.line_span(line).map(|span| self.slice(span))
    }

    /// The first and last line that `span` touches, in the form in which graph nodes carry them.
    #[must_use]
    pub fn lines(&self, span: Span) -> graph::Span {
        let last = if span.is_empty() { span.start() } else { span.end() - 1 };
        let number = |offset| u32::try_from(self.line_of(offset)).unwrap_or(u32::MAX);
        graph::Span { first: number(span.start()), last: number(last) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_count_characters_and_survive_the_end() {
        let file = SourceFile::new("Dockerfile", "FROM é\r\n\nRUN x");
        assert_eq!(file.line_count(), 3);
        assert_eq!(file.line_text(1), Some("FROM é"));
        assert_eq!(file.line_text(2), Some(""));
        assert_eq!(file.line_text(3), Some("RUN x"));
        assert_eq!(file.line_text(4), None);
        assert_eq!(file.line_text(0), None);
        assert_eq!(file.line_column(7), LineColumn { line: 1, column: 7 });
        let end = file.text().len();
        assert_eq!(file.line_column(end), LineColumn { line: 3, column: 6 });
        assert_eq!(file.line_column(end + 10), LineColumn { line: 3, column: 6 });
        assert_eq!(file.lines(Span::new(0, end)), graph::Span { first: 1, last: 3 });
    }

    #[test]
    fn empty_and_terminated_texts() {
        assert_eq!(SourceFile::new("", "").line_count(), 0);
        assert_eq!(SourceFile::new("", "a\n").line_count(), 1);
        assert_eq!(SourceFile::new("", "\n").line_count(), 1);
    }
}
