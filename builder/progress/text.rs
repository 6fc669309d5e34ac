//! Text from elsewhere on a terminal of ours: what a step prints may hold anything, and must never steer the terminal.

use std::borrow::Cow;

use unicode_width::UnicodeWidthChar;

/// What happens to colour sequences (SGR); every other escape sequence and control character is always removed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Colours {
    /// Kept, and ended where the line ends.
    Keep,
    /// Removed.
    Strip,
}

/// One line of text that is safe to print: no control characters, no escape sequences, no changes of direction; bytes that are
/// not UTF-8 become the replacement character, tabs become spaces.
#[must_use]
pub fn neutralise(line: &[u8], colours: Colours) -> Cow<'_, str> {
    if let Ok(text) = std::str::from_utf8(line)
        && line.iter().all(|byte| (b' '..=b'~').contains(byte))
    {
        return Cow::Borrowed(text);
    }
    Cow::Owned(rewrite(&String::from_utf8_lossy(line), colours))
}

/// As [`neutralise`] for text of several lines; colours are removed.
#[must_use]
pub fn neutralise_lines(text: &str) -> String {
    let lines: Vec<_> = text.lines().map(|line| neutralise(line.as_bytes(), Colours::Strip)).collect();
    lines.join("\n")
}

fn rewrite(text: &str, colours: Colours) -> String {
    let mut out = String::with_capacity(text.len());
    let mut column = 0;
    let mut coloured = false;
    let mut rest = text;
    while let Some(next) = rest.chars().next() {
        match next {
            '\x1b' | '\u{9b}' | '\u{9d}' | '\u{90}' | '\u{98}' | '\u{9e}' | '\u{9f}' => {
                let length = sequence_length(rest);
                let sequence = &rest[..length];
                if colours == Colours::Keep && is_colour(sequence) {
                    out.push_str(sequence);
                    coloured = true;
                }
                rest = &rest[length..];
                continue;
            }
            '\t' => {
                let spaces = 8 - column % 8;
                out.extend(std::iter::repeat_n(' ', spaces));
                column += spaces;
            }
            // With colours about, the last character may be the end of a sequence.
            '\x08' if !coloured => {
                let last = out.pop().and_then(UnicodeWidthChar::width).unwrap_or(0);
                column -= last.min(column);
            }
            _ if next.is_control() || steers_direction(next) => {}
            _ => {
                out.push(next);
                column += next.width().unwrap_or(0);
            }
        }
        rest = &rest[next.len_utf8()..];
    }
    if coloured {
        out.push_str("\x1b[0m");
    }
    out
}

/// How many bytes the escape sequence at the beginning of `text` takes.
fn sequence_length(text: &str) -> usize {
    let mut chars = text.char_indices();
    let Some((_, first)) = chars.next() else { return 0 };
    let kind = match first {
        '\x1b' => match chars.next() {
            Some((_, kind)) => kind,
            None => return text.len(),
        },
        '\u{9b}' => '[',
        _ => ']',
    };
    match kind {
        '[' => end_of(&mut chars, text, |c| ('\x40'..='\x7e').contains(&c)),
        // Strings that the terminal reads up to BEL or ST.
        ']' | 'P' | 'X' | '^' | '_' => {
            let mut escaped = false;
            end_of(&mut chars, text, |c| {
                let ends = c == '\x07' || c == '\u{9c}' || (escaped && c == '\\');
                escaped = c == '\x1b';
                ends
            })
        }
        // Intermediate bytes, then one final.
        ' '..='/' => end_of(&mut chars, text, |c| !(' '..='/').contains(&c)),
        _ if first == '\x1b' && kind == '\x1b' => 1,
        _ => first.len_utf8() + kind.len_utf8(),
    }
}

fn end_of(chars: &mut std::str::CharIndices<'_>, text: &str, mut ends: impl FnMut(char) -> bool) -> usize {
    chars.find(|(_, c)| ends(*c)).map_or(text.len(), |(at, c)| at + c.len_utf8())
}

fn is_colour(sequence: &str) -> bool {
    sequence
        .strip_prefix("\x1b[")
        .and_then(|rest| rest.strip_suffix('m'))
        .is_some_and(|parameters| parameters.bytes().all(|byte| byte.is_ascii_digit() || byte == b';' || byte == b':'))
}

/// Marks that make a terminal show text in another order than it was printed, or not at all.
fn steers_direction(c: char) -> bool {
    matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{61c}')
}

/// How many columns neutralised text takes.
#[must_use]
pub fn width(text: &str) -> usize {
    text.chars().map(|c| c.width().unwrap_or(0)).sum()
}

/// The beginning of neutralised text that fits into `columns`.
#[must_use]
pub(super) fn fit(text: &str, columns: usize) -> &str {
    let mut used = 0;
    for (marks, (at, c)) in text.char_indices().enumerate() {
        used += c.width().unwrap_or(0);
        // Marks without width must not pile up on one cell.
        if used > columns || marks > columns.saturating_mul(4) {
            return &text[..at];
        }
    }
    text
}

/// Bytes as people read them, as docker prints them: `32B`, `2.30kB`, `10.49MB`.
#[must_use]
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 6] = ["kB", "MB", "GB", "TB", "PB", "EB"];
    if count < 1000 {
        return format!("{count}B");
    }
    let mut value = count as f64 / 1000.0;
    let mut unit = 0;
    while value >= 999.995 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    format!("{value:.2}{}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_steers_the_terminal() {
        for (given, stripped) in [
            (&b"plain"[..], "plain"),
            (b"\x1b[31mred\x1b[0m", "red"),
            (b"\x1b]52;c;aGVsbG8=\x07after", "after"),
            (b"\x1b]0;title\x1b\\after", "after"),
            (b"\x1bP1$r0m\x1b\\x", "x"),
            (b"\x1b[2J\x1b[1;1Hhome", "home"),
            (b"\x1b(Bx\x1b7y\x1bcz", "xyz"),
            (b"a\tb", "a       b"),
            (b"12345678\tb", "12345678        b"),
            (b"ab\x08c", "ac"),
            (b"bell\x07 null\x00 del\x7f", "bell null del"),
            (b"\xff\xfe", "\u{fffd}\u{fffd}"),
            ("\u{9b}31mcsi".as_bytes(), "csi"),
            ("\u{202e}evil".as_bytes(), "evil"),
            (b"cut\x1b[31", "cut"),
            (b"cut\x1b", "cut"),
            (b"\x1b\x1b[31mx", "x"),
            ("wide 漢字".as_bytes(), "wide 漢字"),
        ] {
            assert_eq!(neutralise(given, Colours::Strip), stripped, "{given:?}");
        }
    }

    #[test]
    fn colours_are_kept_where_asked_and_end_with_the_line() {
        assert_eq!(neutralise(b"\x1b[1;31mred", Colours::Keep), "\x1b[1;31mred\x1b[0m");
        assert_eq!(neutralise(b"\x1b[2Kred", Colours::Keep), "red");
        assert_eq!(neutralise(b"\x1b[>4;1mx", Colours::Keep), "x");
    }

    #[test]
    fn widths() {
        assert_eq!(width("漢字a"), 5);
        assert_eq!(fit("漢字a", 3), "漢");
        assert_eq!(fit("abc", 3), "abc");
        assert_eq!(fit("abc", 0), "");
        assert!(fit(&format!("a{}", "\u{301}".repeat(1000)), 10).len() < 100);
    }

    #[test]
    fn sizes() {
        for (count, text) in
            [(0, "0B"), (999, "999B"), (2300, "2.30kB"), (10_485_760, "10.49MB"), (999_999_999, "1.00GB")]
        {
            assert_eq!(bytes(count), text);
        }
    }
}
