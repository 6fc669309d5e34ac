//! A text put together from pieces of the file.

use std::borrow::Cow;
use std::ops::Range;

use ecow::EcoString;

use crate::instruction::Word;
use crate::source::Span;

/// Knows of each of its bytes where in the file it stands. Most lines are not continued: those are borrowed.
#[derive(Clone, Debug)]
pub(crate) struct Joined<'a> {
    text: Cow<'a, str>,
    /// Where the first piece begins in the file.
    start: usize,
    /// Where the other pieces begin, here and in the file; in ascending order.
    pieces: Vec<(usize, usize)>,
}

impl<'a> Joined<'a> {
    /// A text that stands at `start` in the file.
    pub(crate) fn new(piece: &'a str, start: usize) -> Self {
        Self { text: Cow::Borrowed(piece), start, pieces: Vec::new() }
    }

    /// Appends what stands at `start` in the file.
    pub(crate) fn push(&mut self, piece: &str, start: usize) {
        self.pieces.push((self.text.len(), start));
        let text = self.text.to_mut();
        // Of a continued line a second and third piece follow soon.
        text.reserve(piece.len().max(text.len()));
        text.push_str(piece);
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.text
    }

    /// Where the byte at `at` stands in the file.
    fn source_of(&self, at: usize) -> usize {
        match self.pieces.partition_point(|(here, _)| *here <= at).checked_sub(1) {
            Some(piece) => self.pieces[piece].1 + (at - self.pieces[piece].0),
            None => self.start + at,
        }
    }

    /// Where a part of the text stands in the file, continuations inside it included.
    pub(crate) fn span(&self, range: Range<usize>) -> Span {
        let start = self.source_of(range.start);
        if range.is_empty() {
            return Span::new(start, start);
        }
        // The end belongs to the piece of the last byte, not to the piece that may begin behind it.
        Span::new(start, self.source_of(range.end - 1) + 1)
    }

    /// Where the text stands, without the space around it.
    pub(crate) fn trimmed_span(&self) -> Span {
        self.span(trim(&self.text, 0..self.text.len()))
    }

    /// A part of the text.
    pub(crate) fn slice(&self, range: Range<usize>) -> &str {
        &self.text[range]
    }

    /// A part of the text with its place.
    pub(crate) fn word(&self, range: Range<usize>) -> Word {
        Word { text: EcoString::from(&self.text[range.clone()]), span: self.span(range) }
    }
}

/// The range without the space around what it covers.
pub(crate) fn trim(text: &str, range: Range<usize>) -> Range<usize> {
    let part = &text[range.clone()];
    // The common case needs no look at what characters are.
    if let (Some(b'!'..=b'~'), Some(b'!'..=b'~')) = (part.as_bytes().first(), part.as_bytes().last()) {
        return range;
    }
    let start = range.start + (part.len() - part.trim_start().len());
    start..start + part.trim().len()
}
