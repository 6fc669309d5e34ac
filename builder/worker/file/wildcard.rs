//! Wildcards of COPY and ADD sources: Go's `path/filepath.Match`, over bytes.
//!
//! `*` and `?` do not match `/`; `[a-z]` and `[^a-z]` are classes; `\` takes the next character as it is.

/// Whether any part of the path would be taken as a pattern.
pub(crate) fn is_pattern(path: &str) -> bool {
    let mut escaped = false;
    for c in path.chars() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '*' | '?' | '[' => return true,
            _ => {}
        }
    }
    false
}

/// Whether `name` matches `pattern`; `None`: the pattern is malformed.
pub(crate) fn matches(pattern: &str, name: &[u8]) -> Option<bool> {
    Pattern::parse(pattern).map(|pattern| pattern.matches(name))
}

/// A pattern that is used often.
#[derive(Debug, Clone)]
pub(crate) struct Pattern(Vec<Token>);

impl Pattern {
    /// `None`: it is malformed.
    pub(crate) fn parse(pattern: &str) -> Option<Self> {
        parse(pattern).map(Self)
    }

    /// Whether all of `name` matches.
    pub(crate) fn matches(&self, name: &[u8]) -> bool {
        let plain = |token: &Token| match token {
            Token::One(Class::Literal(c)) if c.is_ascii() => Some(*c as u8),
            _ => None,
        };
        // Most parts of most paths are plain names.
        if self.0.len() == name.len() && self.0.iter().zip(name).all(|(token, byte)| plain(token) == Some(*byte)) {
            return true;
        }
        reach(&self.0, name)
    }
}

fn reach(tokens: &[Token], name: &[u8]) -> bool {
    // One pattern element after the other, over the set of reachable positions: no backtracking.
    let mut reached = vec![false; name.len() + 1];
    reached[0] = true;
    for token in tokens {
        let mut next = vec![false; name.len() + 1];
        match token {
            Token::Star => {
                let mut on = false;
                for position in 0..=name.len() {
                    on |= reached[position];
                    next[position] = on;
                    if name.get(position) == Some(&b'/') {
                        on = false;
                    }
                }
            }
            Token::One(class) => {
                for position in 0..name.len() {
                    if !reached[position] {
                        continue;
                    }
                    let (c, length) = decode(&name[position..]);
                    next[position + length] |= class.contains(c);
                }
            }
        }
        if next.iter().all(|on| !on) {
            return false;
        }
        reached = next;
    }
    reached[name.len()]
}

#[derive(Debug, Clone)]
enum Token {
    Star,
    One(Class),
}

#[derive(Debug, Clone)]
enum Class {
    Literal(char),
    /// Anything but `/`.
    Any,
    Ranges {
        negated: bool,
        ranges: Vec<(char, char)>,
    },
}

impl Class {
    fn contains(&self, c: char) -> bool {
        match self {
            Self::Literal(literal) => *literal == c,
            Self::Any => c != '/',
            Self::Ranges { negated, ranges } => {
                ranges.iter().any(|(low, high)| (*low..=*high).contains(&c)) != *negated
            }
        }
    }
}

fn parse(pattern: &str) -> Option<Vec<Token>> {
    let mut tokens = Vec::new();
    let mut chars = pattern.chars().peekable();
    while let Some(c) = chars.next() {
        tokens.push(match c {
            '*' => Token::Star,
            '?' => Token::One(Class::Any),
            '\\' => Token::One(Class::Literal(chars.next()?)),
            '[' => {
                let negated = chars.next_if_eq(&'^').is_some();
                let mut ranges = Vec::new();
                loop {
                    if !ranges.is_empty() && chars.next_if_eq(&']').is_some() {
                        break;
                    }
                    let low = class_char(&mut chars)?;
                    let high = if chars.next_if_eq(&'-').is_some() { class_char(&mut chars)? } else { low };
                    ranges.push((low, high));
                }
                Token::One(Class::Ranges { negated, ranges })
            }
            c => Token::One(Class::Literal(c)),
        });
    }
    Some(tokens)
}

fn class_char(chars: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Option<char> {
    match chars.next()? {
        '-' | ']' => None,
        '\\' => chars.next(),
        c => Some(c),
    }
}

/// The first character and its length; a byte that is no UTF-8 stands for itself.
fn decode(bytes: &[u8]) -> (char, usize) {
    let length = match bytes[0] {
        0xc0..=0xdf => 2,
        0xe0..=0xef => 3,
        0xf0..=0xf7 => 4,
        _ => 1,
    };
    let decoded =
        bytes.get(..length).and_then(|part| std::str::from_utf8(part).ok()).and_then(|part| part.chars().next());
    decoded.map_or((char::from(bytes[0]), 1), |c| (c, c.len_utf8()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_in_go() {
        for (pattern, name, want) in [
            ("abc", "abc", Some(true)),
            ("*", "abc", Some(true)),
            ("*c", "abc", Some(true)),
            ("a*", "ab/c", Some(false)),
            ("a*/b", "abc/b", Some(true)),
            ("a*/b", "a/c/b", Some(false)),
            ("a*b*c*d*e*/f", "axbxcxdxexxx/f", Some(true)),
            ("a*b?c*x", "abxbbxdbxebxczzx", Some(true)),
            ("ab[b-d]", "abc", Some(true)),
            ("ab[^e-g]", "abc", Some(true)),
            ("a\\*b", "a*b", Some(true)),
            ("a?b", "aäb", Some(true)),
            ("a[^a][^a]b", "aäb", Some(false)),
            ("[]a]", "]", None),
            ("[-]", "-", None),
            ("[a-b-c]", "a", None),
            ("[", "a", None),
            ("a[", "ab", None),
            ("*x", "xxx", Some(true)),
        ] {
            assert_eq!(matches(pattern, name.as_bytes()), want, "{pattern} {name}");
        }
    }

    #[test]
    fn hostile_patterns_take_no_time() {
        assert_eq!(matches(&"*a".repeat(2000), &b"a".repeat(4000)), Some(true));
        assert_eq!(matches(&format!("{}b", "*a".repeat(2000)), &b"a".repeat(4000)), Some(false));
    }
}
