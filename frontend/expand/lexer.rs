//! One pass over a word. Nested substitutions recurse, to a fixed depth.

use std::collections::BTreeSet;

use super::pattern::{Budget, Pattern};
use super::{Env, ExpandReason, Expander, MAX_DEPTH, MAX_SIZE, without_mark};

/// What a pass yields.
pub(super) struct Done<T> {
    pub(super) result: T,
    pub(super) used: BTreeSet<String>,
    pub(super) unset: BTreeSet<String>,
}

/// The word as one text.
pub(super) fn text(modes: Expander, word: &str, env: &dyn Env) -> Result<Done<String>, ExpandReason> {
    let mut lexer = Lexer::new(modes, word, env);
    let result = lexer.text_until(None, None)?;
    Ok(Done { result, used: lexer.used, unset: lexer.unset })
}

/// The word split at the spaces that are not quoted.
pub(super) fn words(modes: Expander, word: &str, env: &dyn Env) -> Result<Done<Vec<String>>, ExpandReason> {
    let mut lexer = Lexer::new(modes, word, env);
    let mut words = Words::default();
    lexer.text_until(None, Some(&mut words))?;
    Ok(Done { result: words.finish(), used: lexer.used, unset: lexer.unset })
}

impl<'a> Lexer<'a> {
    fn new(modes: Expander, word: &'a str, env: &'a dyn Env) -> Self {
        Self {
            rest: without_mark(word),
            modes,
            raw_escapes: modes.raw_escapes,
            env,
            used: BTreeSet::new(),
            unset: BTreeSet::new(),
            depth: 0,
            size: word.len(),
            budget: Budget::default(),
        }
    }
}

/// Collects characters into words.
#[derive(Default)]
struct Words {
    done: Vec<String>,
    current: String,
}

impl Words {
    /// Text from outside quotes: spaces separate.
    fn push_split(&mut self, text: &str) {
        let mut parts = text.split(char::is_whitespace);
        self.current.push_str(parts.next().unwrap_or_default());
        for part in parts {
            if !self.current.is_empty() {
                self.done.push(std::mem::take(&mut self.current));
            }
            self.current.push_str(part);
        }
    }

    /// Quoted or escaped text.
    fn push_whole(&mut self, text: &str) {
        self.current.push_str(text);
    }

    fn finish(mut self) -> Vec<String> {
        if !self.current.is_empty() {
            self.done.push(self.current);
        }
        self.done
    }
}

struct Lexer<'a> {
    rest: &'a str,
    modes: Expander,
    raw_escapes: bool,
    env: &'a dyn Env,
    used: BTreeSet<String>,
    unset: BTreeSet<String>,
    depth: usize,
    /// Bytes produced so far.
    size: usize,
    budget: Budget,
}

impl Lexer<'_> {
    fn peek(&self) -> Option<char> {
        self.rest.chars().next()
    }

    fn next(&mut self) -> Option<char> {
        let c = self.peek()?;
        self.rest = &self.rest[c.len_utf8()..];
        Some(c)
    }

    fn eat(&mut self, c: char) -> bool {
        let found = self.peek() == Some(c);
        if found {
            self.next();
        }
        found
    }

    /// Reads on to `stop`, which is consumed, or to the end if there is none. The text goes to `words` if there are any,
    /// and is returned otherwise.
    fn text_until(&mut self, stop: Option<char>, mut words: Option<&mut Words>) -> Result<String, ExpandReason> {
        let mut text = String::new();
        let mut add = |part: &str, split: bool| match words.as_deref_mut() {
            None => text.push_str(part),
            Some(words) if split => words.push_split(part),
            Some(words) => words.push_whole(part),
        };
        let mut buffer = [0; 4];
        while let Some(c) = self.peek() {
            if Some(c) == stop {
                self.next();
                return Ok(text);
            }
            match c {
                '$' => add(&self.dollar()?, true),
                '<' => add(self.less_than(), false),
                '\'' if !self.modes.ignore_quotes => add(&self.single_quoted()?, false),
                '"' if !self.modes.ignore_quotes => add(&self.double_quoted()?, false),
                _ if c == self.modes.escape => {
                    self.next();
                    if self.raw_escapes {
                        add(c.encode_utf8(&mut buffer), false);
                    }
                    if let Some(escaped) = self.next() {
                        add(escaped.encode_utf8(&mut buffer), false);
                    }
                }
                _ => {
                    let special = |other: char| {
                        matches!(other, '$' | '<' | '\'' | '"') || other == self.modes.escape || Some(other) == stop
                    };
                    // What `c` is has been seen: quotes that are ignored begin here, too.
                    let first = c.len_utf8();
                    let end = self.rest[first..].find(special).map_or(self.rest.len(), |at| first + at);
                    let (plain, rest) = self.rest.split_at(end);
                    self.rest = rest;
                    add(plain, true);
                }
            }
        }
        match stop {
            Some(stop) => Err(ExpandReason::MissingEnd(stop)),
            None => Ok(text),
        }
    }

    fn single_quoted(&mut self) -> Result<String, ExpandReason> {
        let end = self.rest[1..].find('\'').ok_or(ExpandReason::UnclosedQuote('\''))? + 1;
        let text = if self.modes.raw_quotes { &self.rest[..=end] } else { &self.rest[1..end] };
        self.rest = &self.rest[end + 1..];
        Ok(text.to_owned())
    }

    fn double_quoted(&mut self) -> Result<String, ExpandReason> {
        self.next();
        let mut text = String::new();
        if self.modes.raw_quotes {
            text.push('"');
        }
        loop {
            let Some(c) = self.peek() else { return Err(ExpandReason::UnclosedQuote('"')) };
            if c == '$' {
                text.push_str(&self.dollar()?);
                continue;
            }
            self.next();
            if c == '"' {
                if self.modes.raw_quotes {
                    text.push('"');
                }
                return Ok(text);
            }
            if c != self.modes.escape {
                text.push(c);
                continue;
            }
            if self.raw_escapes {
                text.push(c);
            }
            match self.peek() {
                // The missing end is found in the next round.
                None => {}
                Some(escaped) if escaped == '"' || escaped == '$' || escaped == self.modes.escape => {
                    self.next();
                    text.push(escaped);
                }
                // Before any other character the escape character is text.
                Some(_) => text.push(c),
            }
        }
    }

    /// `$…`. What it yields is counted, because variables can multiply each other's size.
    fn dollar(&mut self) -> Result<String, ExpandReason> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(ExpandReason::TooDeep);
        }
        let text = self.substitution()?;
        self.depth -= 1;
        self.size += text.len();
        if self.size > MAX_SIZE {
            return Err(ExpandReason::TooLarge);
        }
        Ok(text)
    }

    fn substitution(&mut self) -> Result<String, ExpandReason> {
        self.next();
        if !self.eat('{') {
            let name = self.name();
            if name.is_empty() {
                return Ok("$".to_owned());
            }
            return Ok(match self.lookup(name) {
                None if self.modes.keep_unset => format!("${name}"),
                value => value.unwrap_or("").to_owned(),
            });
        }
        match self.peek() {
            None => return Err(ExpandReason::MissingEnd('}')),
            Some('{' | '}' | ':') => return Err(ExpandReason::BadSubstitution),
            Some(_) => {}
        }
        let name = self.name();
        match self.next() {
            None => Err(ExpandReason::MissingEnd('}')),
            Some('}') => Ok(match self.lookup(name) {
                None if self.modes.keep_unset => format!("${{{name}}}"),
                value => value.unwrap_or("").to_owned(),
            }),
            Some(':') => match self.next() {
                None => Err(ExpandReason::MissingEnd('}')),
                Some(modifier @ ('-' | '+' | '?')) => self.conditional(name, modifier, true),
                Some(other) => self.unknown_modifier(name, other),
            },
            Some(modifier @ ('-' | '+' | '?')) => self.conditional(name, modifier, false),
            Some(end @ ('#' | '%')) => self.trimmed(name, end),
            Some('/') => self.replaced(name),
            Some(other) => Err(ExpandReason::UnsupportedModifier(other.to_string())),
        }
    }

    /// `${v-x}`, `${v+x}`, `${v?x}`; with a colon an empty value counts as unset.
    fn conditional(&mut self, name: &str, modifier: char, colon: bool) -> Result<String, ExpandReason> {
        let word = self.operand('}', false)?;
        let value = self.lookup(name);
        let present = value.is_some_and(|value| !(colon && value.is_empty()));
        let value = match value {
            None if self.modes.keep_unset => {
                let colon = if colon { ":" } else { "" };
                return Ok(format!("${{{name}{colon}{modifier}{word}}}"));
            }
            value => value.unwrap_or(""),
        };
        match (modifier, present) {
            ('-' | '?', true) => Ok(value.to_owned()),
            ('-', false) | ('+', true) => Ok(word),
            ('+', false) => Ok(String::new()),
            _ => {
                let message = match (word.is_empty(), colon) {
                    (false, _) => word,
                    (true, false) => "must be set".to_owned(),
                    (true, true) => "must be set and not be empty".to_owned(),
                };
                Err(ExpandReason::Required { name: name.to_owned(), message })
            }
        }
    }

    /// `${v:x}`, which means nothing. Where unset variables are kept, it is kept as well.
    fn unknown_modifier(&mut self, name: &str, modifier: char) -> Result<String, ExpandReason> {
        let unsupported = ExpandReason::UnsupportedModifier(format!(":{modifier}"));
        if !self.modes.keep_unset || matches!(modifier, '#' | '%') {
            return Err(unsupported);
        }
        let word = self.operand('}', false)?;
        match self.lookup(name) {
            None => Ok(format!("${{{name}:{modifier}{word}}}")),
            Some(_) => Err(unsupported),
        }
    }

    /// `${v#x}`, `${v%x}`; doubled, the longest match is removed instead of the shortest.
    fn trimmed(&mut self, name: &str, end: char) -> Result<String, ExpandReason> {
        let word = self.operand('}', true)?;
        let Some(value) = self.value_or_kept(name) else { return Ok(format!("${{{name}{end}{word}}}")) };
        let (pattern, longest) = match word.strip_prefix(end) {
            Some(pattern) => (pattern, true),
            None => (word.as_str(), false),
        };
        if end == '#' {
            Pattern::parse(pattern)?.trim_prefix(value, longest, &mut self.budget)
        } else {
            Pattern::parse_suffix(pattern)?.trim_suffix(value, longest, &mut self.budget)
        }
    }

    /// `${v/x/y}`, `${v//x/y}`.
    fn replaced(&mut self, name: &str) -> Result<String, ExpandReason> {
        let all = self.eat('/');
        let pattern = self.operand('/', true)?;
        let replacement = self.operand('}', true)?;
        let Some(value) = self.value_or_kept(name) else {
            return Ok(format!("${{{name}/{pattern}/{replacement}}}"));
        };
        let parsed = Pattern::parse(&pattern)?;
        if all {
            parsed.replace_all(value, &replacement, &mut self.budget)
        } else {
            parsed.replace_first(value, &replacement, &mut self.budget)
        }
    }

    fn operand(&mut self, stop: char, raw_escapes: bool) -> Result<String, ExpandReason> {
        let outer = std::mem::replace(&mut self.raw_escapes, raw_escapes);
        let text = self.text_until(Some(stop), None);
        self.raw_escapes = outer;
        text
    }
}

impl<'a> Lexer<'a> {
    /// `<`, or `<<` with the space behind it, which does not separate a here-document's delimiter from it.
    fn less_than(&mut self) -> &'a str {
        let rest = self.rest;
        let end = match rest.strip_prefix("<<") {
            Some(after) => rest.len() - after.trim_start_matches(['\t', '\r', ' ']).len(),
            None => 1,
        };
        self.rest = &rest[end..];
        &rest[..end]
    }

    fn lookup(&mut self, name: &str) -> Option<&'a str> {
        let value = self.env.get(name);
        let seen = if value.is_some() { &mut self.used } else { &mut self.unset };
        if !seen.contains(name) {
            seen.insert(name.to_owned());
        }
        value
    }

    /// The value, empty if unset; `None` if unset variables are to be kept.
    fn value_or_kept(&mut self, name: &str) -> Option<&'a str> {
        match self.lookup(name) {
            None if self.modes.keep_unset => None,
            value => Some(value.unwrap_or("")),
        }
    }

    /// A name, a number, or one of the shell's special parameters, none of which is ever set here.
    fn name(&mut self) -> &'a str {
        let rest = self.rest;
        let is_name = |c: char| c.is_alphabetic() || c.is_ascii_digit() || c == '_';
        let end = match rest.chars().next() {
            Some(c) if c.is_ascii_digit() => rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len()),
            Some('@' | '*' | '#' | '?' | '-' | '$' | '!') => 1,
            _ => rest.find(|c| !is_name(c)).unwrap_or(rest.len()),
        };
        self.rest = &rest[end..];
        &rest[..end]
    }
}
