//! `.dockerignore`, and the patterns of `COPY --exclude`.
//!
//! The rules are those of moby's patternmatcher, which differ from `.gitignore`: patterns are anchored at the root of the
//! context, and `!` can bring back a file below an ignored directory. The last pattern that matches decides, where a
//! pattern that matches a directory also matches everything below it.
//!
//! A walk carries a [`DirState`] from each directory to what is in it, so that parents are not matched again, and asks
//! for each ignored directory whether a `!` pattern could match below; if not, it is not read at all.

mod clean;
mod expression;
mod pattern;

use crate::diagnostic::Diagnostic;
use crate::source::{SourceFile, Span};
use pattern::Pattern;

/// A list of patterns.
#[derive(Clone, Debug, Default)]
pub struct Patterns {
    rules: Vec<Rule>,
}

/// One pattern and where it comes from.
#[derive(Clone, Debug)]
pub struct Rule {
    pattern: Pattern,
    /// As written, without surrounding space.
    text: String,
    line: usize,
    exception: bool,
}

impl Rule {
    /// The pattern as written.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Its line in the file, or its place in the list of flags; both begin at 1.
    #[must_use]
    pub fn line(&self) -> usize {
        self.line
    }

    /// Whether it begins with `!`: what matches it is not ignored.
    #[must_use]
    pub fn is_exception(&self) -> bool {
        self.exception
    }
}

/// A pattern that cannot be used.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the pattern '{text}' in line {line} is invalid: {reason}")]
pub struct PatternError {
    /// The pattern as written.
    pub text: String,
    /// Its line in the file, or its place in the list of flags; both begin at 1.
    pub line: usize,
    /// What is wrong with it.
    pub reason: &'static str,
}

impl PatternError {
    /// The error at its place in the file.
    #[must_use]
    pub fn diagnostic(&self, source: &SourceFile) -> Diagnostic {
        let span = source.line_span(self.line).unwrap_or_default();
        let text = source.slice(span);
        let start = span.start() + (text.len() - text.trim_start().len());
        let message = format!("the pattern is invalid: {}", self.reason);
        Diagnostic::new(Span::new(start, start + text.trim().len()), message)
    }
}

/// What is to be done with a path.
#[derive(Clone, Copy, Debug)]
pub struct Verdict<'a> {
    /// Whether it is ignored.
    pub ignored: bool,
    /// The pattern that decided; `None` if none matched.
    pub rule: Option<&'a Rule>,
}

/// What a walk knows of a directory: which patterns match it, and thereby all that is in it.
#[derive(Clone, Debug, Default)]
pub struct DirState {
    /// A bit per rule; empty at the root.
    matched: Vec<u64>,
}

impl DirState {
    fn has(&self, rule: usize) -> bool {
        self.matched.get(rule / 64).is_some_and(|bits| bits >> (rule % 64) & 1 == 1)
    }

    fn set(&mut self, rule: usize) {
        let word = rule / 64;
        if self.matched.len() <= word {
            self.matched.resize(word + 1, 0);
        }
        self.matched[word] |= 1 << (rule % 64);
    }
}

/// What a walk is to do with a directory.
#[derive(Clone, Debug)]
pub struct DirVerdict<'a> {
    /// Whether the directory itself is ignored. What is in it may still be wanted.
    pub verdict: Verdict<'a>,
    /// Whether it has to be read: it is not ignored, or an exception may match below.
    pub descend: bool,
    /// For what is in it.
    pub state: DirState,
}

impl Patterns {
    /// Reads a `.dockerignore`.
    pub fn parse(text: &str) -> Result<Self, PatternError> {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let mut patterns = Self::default();
        for (at, line) in text.lines().enumerate() {
            let written = line.trim();
            // Only a # in the first column begins a comment.
            if line.starts_with('#') || written.is_empty() {
                continue;
            }
            let (exception, path) = written.strip_prefix('!').map_or((false, written), |path| (true, path.trim()));
            let path = if path.is_empty() { String::new() } else { clean::clean(path) };
            let path = if path.len() > 1 { path.strip_prefix('/').unwrap_or(&path) } else { &path };
            let path = if exception { format!("!{path}") } else { path.to_owned() };
            patterns.add(&path, written, at + 1)?;
        }
        Ok(patterns)
    }

    /// Takes the values of `--exclude`. Unlike in a file, a leading slash and `#` are part of the pattern.
    pub fn from_list<'a>(list: impl IntoIterator<Item = &'a str>) -> Result<Self, PatternError> {
        let mut patterns = Self::default();
        for (at, text) in list.into_iter().enumerate() {
            patterns.add(text, text.trim(), at + 1)?;
        }
        Ok(patterns)
    }

    fn add(&mut self, path: &str, text: &str, line: usize) -> Result<(), PatternError> {
        let path = path.trim();
        if path.is_empty() {
            return Ok(());
        }
        let invalid = |reason| PatternError { text: text.to_owned(), line, reason };
        // Cleaned once more, now with the exclamation mark as part of the first name.
        let path = clean::clean(path);
        let (exception, path) = path.strip_prefix('!').map_or((false, path.as_str()), |path| (true, path));
        if exception && path.is_empty() {
            return Err(invalid("an exclamation mark needs a pattern behind it"));
        }
        let pattern = Pattern::compile(path).map_err(invalid)?;
        self.rules.push(Rule { pattern, text: text.to_owned(), line, exception });
        Ok(())
    }

    /// Whether there are no patterns.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// The patterns in order.
    #[must_use]
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// The state of the root, where a walk begins.
    #[must_use]
    pub fn root(&self) -> DirState {
        DirState::default()
    }

    /// Decides on a file. `path` is relative to the root, separated by slashes; `parent` is the state of its directory.
    #[must_use]
    pub fn file(&self, parent: &DirState, path: &str) -> Verdict<'_> {
        self.decide(parent, path, |_| {})
    }

    /// Decides on a directory, as [`file`](Self::file) does, and on what is to be done with its content.
    #[must_use]
    pub fn directory(&self, parent: &DirState, path: &str) -> DirVerdict<'_> {
        let mut state = DirState::default();
        let verdict = self.decide(parent, path, |rule| state.set(rule));
        let descend = !verdict.ignored || self.exception_below(verdict.rule, path);
        DirVerdict { verdict, descend, state }
    }

    /// Decides on a path out of context, as a walk from the root would.
    #[must_use]
    pub fn test(&self, path: &str) -> Verdict<'_> {
        let path = clean::clean(path);
        let path = path.trim_start_matches('/');
        let mut state = self.root();
        for (at, _) in path.match_indices('/') {
            state = self.directory(&state, &path[..at]).state;
        }
        if path.is_empty() || path == "." {
            return Verdict { ignored: false, rule: None };
        }
        self.file(&state, path)
    }

    /// A pattern is only tried if it could change the outcome so far; a match of the parent counts in any case.
    fn decide(&self, parent: &DirState, path: &str, mut matched: impl FnMut(usize)) -> Verdict<'_> {
        let mut verdict = Verdict { ignored: false, rule: None };
        for (number, rule) in self.rules.iter().enumerate() {
            if parent.has(number) || (rule.exception == verdict.ignored && rule.pattern.matches(path)) {
                matched(number);
                verdict = Verdict { ignored: !rule.exception, rule: Some(rule) };
            }
        }
        verdict
    }

    /// Only exceptions behind the pattern that decided count: that pattern matches everything below, too, and comes after
    /// all others.
    fn exception_below(&self, decided: Option<&Rule>, dir: &str) -> bool {
        let behind = decided.map_or(0, |decided| self.rules.partition_point(|rule| rule.line <= decided.line));
        self.rules[behind..].iter().any(|rule| rule.exception && rule.pattern.may_match_below(dir))
    }
}

#[cfg(test)]
mod tests;
