//! The `<<NAME` of here-documents.

use super::joined::Joined;
use crate::diagnostic::Diagnostic;
use crate::expand::{ExpandError, Expander, NoEnv};
use crate::source::Span;

/// A word that begins a here-document: `<<EOF`, `<<-"EOF"`, `3<<EOF`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HeredocWord {
    /// The delimiter, quotes removed.
    pub name: String,
    /// The number in front; 0 if there is none.
    pub fd: u64,
    /// No part of the delimiter is quoted.
    pub expand: bool,
    /// `<<-`.
    pub chomp: bool,
}

/// Reads a word as the beginning of a here-document; `None` if it is none. An error means that its quotes make no sense.
pub fn parse_heredoc(word: &str) -> Result<Option<HeredocWord>, ExpandError> {
    let digits = word.bytes().take_while(u8::is_ascii_digit).count();
    let Some(rest) = word[digits..].strip_prefix("<<") else { return Ok(None) };
    let (chomp, rest) = rest.strip_prefix('-').map_or((false, rest), |rest| (true, rest));
    let rest = rest.trim_start_matches([' ', '\t', '\r', '\n', '\x0c']);
    if rest.is_empty() || rest.contains('<') {
        return Ok(None);
    }
    let fd = if digits == 0 { 0 } else { word[..digits].parse().unwrap_or(u64::MAX) };
    // What nearly everybody writes: a plain name, or one in quotes.
    let quoted = ['"', '\''].iter().find_map(|quote| rest.strip_prefix(*quote)?.strip_suffix(*quote));
    let name = quoted.unwrap_or(rest);
    if !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.')) {
        return Ok(Some(HeredocWord { name: name.to_owned(), fd, expand: quoted.is_none(), chomp }));
    }
    // These words are read with `\` whatever the file's escape character is.
    let expander = Expander::new('\\').keep_unset(true);
    let mut words = expander.process_words(rest, &NoEnv)?.words;
    let (Some(name), true) = (words.pop(), words.is_empty()) else { return Ok(None) };
    let raw = expander.raw_quotes(true).process_words(rest, &NoEnv)?.words.concat();
    let quotes = |text: &str| text.bytes().filter(|b| matches!(b, b'\'' | b'"')).count();
    Ok(Some(HeredocWord { expand: quotes(&name) == quotes(&raw), name, fd, chomp }))
}

/// All here-documents of a line. A line that is no sequence of words, because a quote is not closed, has none.
pub(super) fn in_line(text: &Joined<'_>) -> Result<Vec<(HeredocWord, Span)>, Diagnostic> {
    let line = text.as_str();
    let expander = Expander::new('\\').raw_quotes(true).raw_escapes(true).keep_unset(true);
    let Ok(list) = expander.process_words(line, &NoEnv) else { return Ok(Vec::new()) };
    let mut found = Vec::new();
    // Nothing was replaced, so the words can be found again in their order. Where one cannot, nested substitutions were
    // normalised, and the line as a whole has to do as place.
    let mut from = Some(0);
    for word in list.words {
        // A word without it cannot contain one that has it, so those can be left out.
        if !word.contains("<<") {
            continue;
        }
        let place = from.and_then(|from| line[from..].find(&word).map(|at| from + at..from + at + word.len()));
        from = place.as_ref().map(|place| place.end);
        let span = place.map_or_else(|| text.trimmed_span(), |place| text.span(place));
        match parse_heredoc(&word) {
            Ok(Some(heredoc)) => found.push((heredoc, span)),
            Ok(None) => {}
            Err(error) => {
                return Err(Diagnostic::new(span, format!("'{word}' is no valid here-document: {}", error.reason)));
            }
        }
    }
    Ok(found)
}
