//! The ways in which instructions split their arguments. All keep quotes and escapes: they are undone by expansion.

use std::ops::Range;

use crate::lines::SPACES;

/// Words between spaces, quotes notwithstanding.
pub(super) fn at_spaces(text: &str, range: Range<usize>) -> Vec<Range<usize>> {
    let mut words = Vec::new();
    let mut start = None;
    for (at, c) in text[range.clone()].char_indices() {
        let at = range.start + at;
        if !SPACES.contains(&c) {
            start.get_or_insert(at);
        } else if let Some(start) = start.take() {
            words.push(start..at);
        }
    }
    words.extend(start.map(|start| start..range.end));
    words
}

/// Words between spaces that are neither quoted nor escaped, as in ENV, LABEL and ARG. An escape character at the very
/// end is dropped.
pub(super) fn unquoted(text: &str, range: Range<usize>, escape: char) -> Vec<Range<usize>> {
    let mut words = Vec::new();
    let mut start = None;
    let mut quote = None;
    let mut end = range.end;
    let mut chars = text[range.clone()].char_indices().map(|(at, c)| (range.start + at, c));
    while let Some((at, c)) = chars.next() {
        if quote.is_none() && c.is_whitespace() {
            words.extend(start.take().map(|start| start..at));
            continue;
        }
        start.get_or_insert(at);
        if c == escape && quote != Some('\'') {
            if chars.next().is_none() {
                end = at;
            }
        } else if quote == Some(c) {
            quote = None;
        } else if quote.is_none() && (c == '\'' || c == '"') {
            quote = Some(c);
        }
    }
    words.extend(start.map(|start| start..end).filter(|word| !word.is_empty()));
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splitting() {
        let words = |text: &str| -> Vec<String> {
            unquoted(text, 0..text.len(), '\\').into_iter().map(|word| text[word].to_owned()).collect()
        };
        for (text, expected) in [
            ("a=b  c=d", vec!["a=b", "c=d"]),
            ("a='b c' d", vec!["a='b c'", "d"]),
            ("a=\"b \\\" c\" d", vec!["a=\"b \\\" c\"", "d"]),
            ("a='b\\' c", vec!["a='b\\'", "c"]),
            ("a=b\\ c d", vec!["a=b\\ c", "d"]),
            ("a=\\\"b c", vec!["a=\\\"b", "c"]),
            ("a=b\\", vec!["a=b"]),
            ("a \\", vec!["a"]),
            ("a=\"b\\", vec!["a=\"b"]),
            ("a='b c", vec!["a='b c"]),
            ("a=\u{a0}b", vec!["a=", "b"]),
            ("", vec![]),
        ] {
            assert_eq!(words(text), expected, "{text}");
        }
        let text = " a\t'b c'\u{a0}d ";
        let plain: Vec<_> = at_spaces(text, 0..text.len()).into_iter().map(|word| &text[word]).collect();
        assert_eq!(plain, ["a", "'b", "c'\u{a0}d"]);
    }
}
