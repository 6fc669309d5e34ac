//! A text put together from pieces of the file.

use std::ops::Range;

use crate::instruction::Word;
use crate::source::Span;

/// Knows of each of its bytes where in the file it stands.
#[derive(Clone, Debug, Default)]
pub(crate) struct Joined {
    text: String,
    /// Where a piece begins, here and in the file; in ascending order.
    pieces: Vec<(usize, usize)>,
}

impl Joined {
    /// Appends what stands at `start` in the file.
    pub(crate) fn push(&mut self, piece: &str, start: usize) {
        self.pieces.push((self.text.len(), start));
        self.text.push_str(piece);
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.text
    }

    /// Where the byte at `at` stands in the file.
    fn source_of(&self, at: usize) -> usize {
        let piece = self.pieces.partition_point(|(here, _)| *here <= at);
        match self.pieces.get(piece.saturating_sub(1)) {
            Some((here, there)) => there + (at - here),
            None => 0,
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
        Word::new(&self.text[range.clone()], self.span(range))
    }
}

/// The range without the space around what it covers.
pub(crate) fn trim(text: &str, range: Range<usize>) -> Range<usize> {
    let part = &text[range.clone()];
    let start = range.start + (part.len() - part.trim_start().len());
    start..start + part.trim().len()
}
