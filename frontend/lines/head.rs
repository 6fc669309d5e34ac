//! The beginning of an instruction: its keyword and flags.

use std::ops::Range;

use ecow::EcoString;

use super::joined::{Joined, trim};
use super::json::{JsonForm, string_array};
use crate::instruction::{Flag, Word};

/// What separates the keyword from the rest, and the words of most instructions from each other.
pub(crate) fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | 0xb | 0xc | b'\r')
}

/// What separates flags. BuildKit looks at bytes here, so that blanks beyond ASCII are none to it.
fn is_blank(c: char) -> bool {
    matches!(c, '\t'..='\r' | ' ')
}

/// Keyword, flags and arguments of an instruction, or of the trigger in an ONBUILD.
#[derive(Clone, Debug)]
pub(crate) struct Head {
    pub(crate) keyword: Word,
    pub(crate) flags: Vec<Flag>,
    /// The rest of the line, without the space around it.
    pub(crate) args: Range<usize>,
}

impl Head {
    /// Splits what stands at `from` and behind it.
    pub(crate) fn split(text: &Joined<'_>, from: usize, escape: char) -> Self {
        let all = text.as_str();
        let whole = trim(all, from..all.len());
        let line = &all[whole.clone()];
        let keyword_end = whole.start + line.bytes().position(is_space).unwrap_or(line.len());
        let keyword = text.word(whole.start..keyword_end);
        let rest = &all[keyword_end..whole.end];
        let start = keyword_end + rest.bytes().take_while(|&byte| is_space(byte)).count();
        let (flags, args) = flags(text, start..whole.end, escape);
        Self { keyword, flags, args: trim(all, args) }
    }

    pub(crate) fn is(&self, keyword: &str) -> bool {
        self.keyword.text.eq_ignore_ascii_case(keyword)
    }

    /// Whether `<<` in the line begins here-documents: RUN, COPY and ADD without JSON, also as triggers.
    pub(super) fn takes_heredocs(&self, text: &Joined<'_>, escape: char) -> bool {
        if self.is("ONBUILD") {
            let trigger = Self::split(text, self.args.start, escape);
            return trigger.takes_heredocs_itself(text);
        }
        self.takes_heredocs_itself(text)
    }

    fn takes_heredocs_itself(&self, text: &Joined<'_>) -> bool {
        ["RUN", "COPY", "ADD"].iter().any(|keyword| self.is(keyword))
            && !matches!(string_array(text.slice(self.args.clone())), JsonForm::Strings(_))
    }
}

/// Reads flags up to the first word that does not begin with `--`. A word that is only `--` ends them and is dropped.
fn flags(text: &Joined<'_>, range: Range<usize>, escape: char) -> (Vec<Flag>, Range<usize>) {
    let all = text.as_str();
    let end = range.end;
    let mut flags = Vec::new();
    let mut at = range.start;
    loop {
        at = end - all[at..end].trim_start_matches(is_blank).len();
        if !all[at..end].starts_with("--") {
            return (flags, at..end);
        }
        let word = FlagWord::read(&all[at..end], escape);
        let stop = at + word.length;
        if word.text == "--" {
            return (flags, stop..end);
        }
        let (name, value) = match word.text.split_once('=') {
            Some((name, value)) => {
                (name, Some(Word::new(value, text.span(at + word.value_at.unwrap_or(word.length)..stop))))
            }
            None => (word.text.as_str(), None),
        };
        flags.push(Flag { name: EcoString::from(&name[2..]), value, span: text.span(at..stop) });
        at = stop;
    }
}

/// One word, quotes and escapes resolved.
struct FlagWord {
    text: String,
    /// How many bytes it took.
    length: usize,
    /// Where the text behind the first equals sign begins, once there is one.
    value_at: Option<usize>,
}

impl FlagWord {
    fn read(text: &str, escape: char) -> Self {
        // Most have nothing to resolve.
        let end = text.find(|c: char| is_blank(c) || matches!(c, '\'' | '"') || c == escape).unwrap_or(text.len());
        if text[end..].chars().next().is_none_or(is_blank) {
            let value_at = text[..end].find('=').map(|at| at + 1);
            return Self { text: text[..end].to_owned(), length: end, value_at };
        }
        let mut word = Self { text: String::new(), length: text.len(), value_at: None };
        let mut quote = None;
        let mut chars = text.char_indices();
        while let Some((at, c)) = chars.next() {
            match quote {
                None if is_blank(c) => {
                    word.length = at;
                    break;
                }
                None if c == '\'' || c == '"' => quote = Some(c),
                Some(open) if c == open => quote = None,
                // At the very end an escape character is dropped.
                _ if c == escape => {
                    if let Some((at, escaped)) = chars.next() {
                        word.push(at, escaped);
                    }
                }
                _ => word.push(at, c),
            }
        }
        word
    }

    fn push(&mut self, at: usize, c: char) {
        if c == '=' && self.value_at.is_none() {
            self.value_at = Some(at + 1);
        }
        self.text.push(c);
    }
}
