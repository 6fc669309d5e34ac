//! Whether arguments are a JSON array of strings, and which.
//!
//! The exec form is chosen by this alone: a text that is almost JSON is a text for the shell, so what is JSON has to be
//! decided as Go does. That means: lone surrogates are replaced, numbers out of range make the text not JSON, nesting may
//! be deep (10,000 levels, hence no recursion). The places of the strings are wanted, too.

use std::ops::Range;

use ecow::EcoString;

/// What a text is.
#[derive(Clone, PartialEq, Debug)]
pub(crate) enum JsonForm {
    /// No JSON array.
    Other,
    /// A JSON array with something in it that is not a string.
    NotStrings,
    /// The decoded strings, and where they stand in the text.
    Strings(Vec<(EcoString, Range<usize>)>),
}

/// Reads `text` as a JSON array of strings.
pub(crate) fn string_array(text: &str) -> JsonForm {
    let start = text.len() - text.trim_start().len();
    if !text[start..].starts_with('[') {
        return JsonForm::Other;
    }
    let mut scanner = Scanner { text, at: start, strings: Vec::new(), only_strings: true };
    match scanner.array() {
        None => JsonForm::Other,
        Some(()) if !scanner.only_strings => JsonForm::NotStrings,
        Some(()) => JsonForm::Strings(scanner.strings),
    }
}

const MAX_DEPTH: usize = 10_000;

/// `None` from any of its functions means that the text is not JSON.
struct Scanner<'a> {
    text: &'a str,
    at: usize,
    strings: Vec<(EcoString, Range<usize>)>,
    only_strings: bool,
}

impl Scanner<'_> {
    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn eat(&mut self, byte: u8) -> bool {
        let found = self.peek() == Some(byte);
        self.at += usize::from(found);
        found
    }

    fn spaces(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\r' | b'\n')) {
            self.at += 1;
        }
    }

    /// The array, and nothing but space behind it.
    fn array(&mut self) -> Option<()> {
        let mut open: Vec<u8> = Vec::new();
        loop {
            self.spaces();
            let opened = self.peek().filter(|b| matches!(b, b'[' | b'{'));
            match opened {
                Some(bracket) => {
                    self.only_strings &= open.is_empty();
                    self.at += 1;
                    open.push(bracket);
                    if open.len() > MAX_DEPTH {
                        return None;
                    }
                    self.spaces();
                    if !self.closes(bracket) {
                        if bracket == b'{' {
                            self.key()?;
                        }
                        continue;
                    }
                    open.pop();
                }
                None => self.scalar(open.len() == 1)?,
            }
            // Behind a value: close what ends here, or go on to the next value.
            loop {
                self.spaces();
                let Some(bracket) = open.last().copied() else {
                    return (self.at == self.text.len()).then_some(());
                };
                if self.closes(bracket) {
                    open.pop();
                    continue;
                }
                if !self.eat(b',') {
                    return None;
                }
                if bracket == b'{' {
                    self.spaces();
                    self.key()?;
                }
                break;
            }
        }
    }

    fn closes(&mut self, bracket: u8) -> bool {
        self.eat(if bracket == b'[' { b']' } else { b'}' })
    }

    fn key(&mut self) -> Option<()> {
        self.string()?;
        self.spaces();
        self.eat(b':').then_some(())
    }

    fn scalar(&mut self, top: bool) -> Option<()> {
        let start = self.at;
        if self.peek() == Some(b'"') {
            let string = self.string()?;
            if top {
                self.strings.push((string, start..self.at));
            }
            return Some(());
        }
        self.only_strings = false;
        for literal in ["null", "true", "false"] {
            if self.text[self.at..].starts_with(literal) {
                self.at += literal.len();
                return Some(());
            }
        }
        self.number()
    }

    fn digits(&mut self) -> Option<()> {
        let start = self.at;
        while self.peek().is_some_and(|b| b.is_ascii_digit()) {
            self.at += 1;
        }
        (self.at > start).then_some(())
    }

    fn number(&mut self) -> Option<()> {
        let start = self.at;
        self.eat(b'-');
        if !self.eat(b'0') {
            self.digits()?;
        }
        if self.eat(b'.') {
            self.digits()?;
        }
        if self.eat(b'e') || self.eat(b'E') {
            let _ = self.eat(b'+') || self.eat(b'-');
            self.digits()?;
        }
        let value: f64 = self.text[start..self.at].parse().ok()?;
        value.is_finite().then_some(())
    }

    fn string(&mut self) -> Option<EcoString> {
        if !self.eat(b'"') {
            return None;
        }
        let bytes = self.text.as_bytes();
        let plain = bytes[self.at..].iter().position(|&byte| matches!(byte, b'"' | b'\\' | 0..b' '))?;
        if bytes[self.at + plain] == b'"' {
            let text = EcoString::from(&self.text[self.at..self.at + plain]);
            self.at += plain + 1;
            return Some(text);
        }
        let mut out = String::new();
        loop {
            let rest = &self.text[self.at..];
            let plain = rest.find(|c: char| c == '"' || c == '\\' || c < ' ')?;
            out.push_str(&rest[..plain]);
            self.at += plain;
            if self.eat(b'"') {
                return Some(out.into());
            }
            if !self.eat(b'\\') {
                return None;
            }
            let escape = self.peek()?;
            self.at += 1;
            out.push(match escape {
                b'"' | b'\\' | b'/' => char::from(escape),
                b'b' => '\u{8}',
                b'f' => '\u{c}',
                b'n' => '\n',
                b'r' => '\r',
                b't' => '\t',
                b'u' => self.code_point()?,
                _ => return None,
            });
        }
    }

    fn hex4(&mut self) -> Option<u32> {
        let digits = self.text.get(self.at..self.at + 4)?;
        if !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
            return None;
        }
        self.at += 4;
        u32::from_str_radix(digits, 16).ok()
    }

    /// Behind `\u`.
    fn code_point(&mut self) -> Option<char> {
        let first = self.hex4()?;
        if (0xd800..0xdc00).contains(&first) && self.text[self.at..].starts_with("\\u") {
            let back = self.at;
            self.at += 2;
            let second = self.hex4()?;
            if (0xdc00..0xe000).contains(&second) {
                return char::from_u32(0x10000 + ((first - 0xd800) << 10) + (second - 0xdc00));
            }
            self.at = back;
        }
        Some(char::from_u32(first).unwrap_or(char::REPLACEMENT_CHARACTER))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(text: &str) -> Option<Vec<String>> {
        match string_array(text) {
            JsonForm::Strings(strings) => Some(strings.into_iter().map(|(string, _)| string.into()).collect()),
            _ => None,
        }
    }

    #[test]
    fn arrays_of_strings() {
        for (text, expected) in [
            (r#"[]"#, vec![]),
            (r#"[ ]"#, vec![]),
            (r#" [ "a" , "b" ] "#, vec!["a", "b"]),
            (r#"["\"\\\/\b\f\n\r\t"]"#, vec!["\"\\/\u{8}\u{c}\n\r\t"]),
            (r#"["\u00e9\ud83d\ude00"]"#, vec!["é😀"]),
            (r#"["\ud83d","\ude00","\ud83d\u0041"]"#, vec!["\u{fffd}", "\u{fffd}", "\u{fffd}A"]),
        ] {
            assert_eq!(strings(text).unwrap(), expected, "{text}");
        }
        let text = r#" ["a", "b\n"]"#;
        let JsonForm::Strings(found) = string_array(text) else { panic!() };
        assert_eq!(found.iter().map(|(_, place)| &text[place.clone()]).collect::<Vec<_>>(), [r#""a""#, r#""b\n""#]);
    }

    #[test]
    fn everything_else() {
        for text in [
            "",
            "a",
            "{}",
            "[",
            "]",
            "[,]",
            "[\"a\",]",
            "['a']",
            "[\"a\" \"b\"]",
            "[\"a\"]]",
            "[\"a\"] x",
            "[\"a\"",
            "[\"a]",
            "[\"\\x\"]",
            "[\"\\u12\"]",
            "[\"\\u+123\"]",
            "[\"\t\"]",
            "[nul]",
            "[01]",
            "[1.]",
            "[-]",
            "[1e]",
            "[1e999]",
            "[+1]",
            "[{\"a\"}]",
            "[{\"a\":}]",
            "[{a:1}]",
            "[[1}]",
            "[ -f x ]",
            "[\"\\ud83d\\u12\"]",
        ] {
            assert_eq!(string_array(text), JsonForm::Other, "{text}");
        }
        for text in
            ["[1]", "[null]", "[\"a\",1]", "[[]]", "[{}]", "[{\"a\":[1,{\"b\":null}]},\"c\"]", "[true,false,-0.5e-3]"]
        {
            assert_eq!(string_array(text), JsonForm::NotStrings, "{text}");
        }
        let deep = |levels: usize| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
        assert_eq!(string_array(&deep(10_000)), JsonForm::NotStrings);
        assert_eq!(string_array(&deep(10_001)), JsonForm::Other);
        assert_eq!(string_array(&"[".repeat(1_000_000)), JsonForm::Other);
    }
}
