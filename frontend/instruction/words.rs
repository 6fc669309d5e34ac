//! The ways in which instructions split their arguments. All keep quotes and escapes: they are undone by expansion.

use std::ops::Range;

use crate::lines::is_space;

/// Words between spaces, quotes notwithstanding.
pub(super) fn at_spaces(text: &str, range: Range<usize>) -> impl Iterator<Item = Range<usize>> + '_ {
    let bytes = &text.as_bytes()[..range.end];
    let mut at = range.start;
    std::iter::from_fn(move || {
        at += bytes[at..].iter().take_while(|&&byte| is_space(byte)).count();
        let start = at;
        at += bytes[at..].iter().take_while(|&&byte| !is_space(byte)).count();
        (at > start).then_some(start..at)
    })
}

/// Words between spaces that are neither quoted nor escaped, as in ENV, LABEL and ARG. An escape character at the very
/// end is dropped.
pub(super) fn unquoted(text: &str, range: Range<usize>, escape: char) -> impl Iterator<Item = Range<usize>> + '_ {
    let mut chars = text[range.clone()].char_indices().map(move |(at, c)| (range.start + at, c));
    std::iter::from_fn(move || {
        let mut start = None;
        let mut quote = None;
        let mut end = range.end;
        while let Some((at, c)) = chars.next() {
            if quote.is_none() && c.is_whitespace() {
                match start {
                    None => continue,
                    Some(start) => return Some(start..at),
                }
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
        start.map(|start| start..end).filter(|word| !word.is_empty())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splitting() {
        let words = |text: &str| -> Vec<String> {
            unquoted(text, 0..text.len(), '\\').map(|word| text[word].to_owned()).collect()
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
        let plain: Vec<_> = at_spaces(text, 0..text.len()).map(|word| &text[word]).collect();
        assert_eq!(plain, ["a", "'b", "c'\u{a0}d"]);
    }
}
