//! Variables, quotes and escapes in the words of an instruction.
//!
//! The language is that of BuildKit's shell lexer, a small part of the POSIX shell's: `$v`, `${v}`, `:-` `-` `:+` `+` `:?`
//! `?`, prefix and suffix removal with `#` `##` `%` `%%`, replacement with `/` and `//`; single quotes, double quotes and
//! the file's escape character. Expansion comes first and splitting afterwards, so an unquoted variable with spaces in it
//! becomes several words.
//!
//! Dockerfiles and image configs are hostile: nesting, the size of results and the cost of patterns are bounded.

mod env;
mod lexer;
mod pattern;

use std::collections::BTreeSet;

pub use env::{Env, NoEnv};

/// How words are expanded. The default modes are those of most instructions; the others are for names of steps and
/// for here-documents.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Expander {
    escape: char,
    raw_quotes: bool,
    raw_escapes: bool,
    ignore_quotes: bool,
    keep_unset: bool,
}

/// A word after expansion.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Expansion {
    /// The text.
    pub text: String,
    /// The variables that were used and set.
    pub used: BTreeSet<String>,
    /// The variables that were used but not set.
    pub unset: BTreeSet<String>,
}

/// A list of words after expansion.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct WordList {
    /// The words.
    pub words: Vec<String>,
    /// The variables that were used and set.
    pub used: BTreeSet<String>,
    /// The variables that were used but not set.
    pub unset: BTreeSet<String>,
}

/// A word that cannot be expanded.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("cannot expand '{word}': {reason}")]
pub struct ExpandError {
    /// The word, shortened if it is long.
    pub word: String,
    /// Why.
    pub reason: ExpandReason,
}

/// Why a word cannot be expanded.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ExpandReason {
    /// A quote is opened and not closed.
    #[error("the quote {0} is not closed")]
    UnclosedQuote(char),
    /// `${` without its end.
    #[error("'{0}' is missing in ${{…}}")]
    MissingEnd(char),
    /// `${}`, `${:…}`, `${{…}`.
    #[error("${{ must be followed by the name of a variable")]
    BadSubstitution,
    /// `${v=x}` and the like.
    #[error("unsupported modifier '{0}' in ${{…}}")]
    UnsupportedModifier(String),
    /// `${v?message}` of a variable that is not set or empty.
    #[error("{name}: {message}")]
    Required {
        /// The variable.
        name: String,
        /// The given message, or what is wrong.
        message: String,
    },
    /// A pattern after `#`, `%` or `/` that makes no sense.
    #[error("invalid pattern '{pattern}': '\\' can only escape *, ?, \\, }} and /")]
    InvalidPattern {
        /// The pattern.
        pattern: String,
    },
    /// More levels of `${…${…}}` than anybody writes.
    #[error("${{…}} is nested more than {MAX_DEPTH} levels deep")]
    TooDeep,
    /// The variables multiply each other's size.
    #[error("the result is larger than {} MiB", MAX_SIZE >> 20)]
    TooLarge,
    /// The variables make more of the whole Dockerfile than can be held.
    #[error("the variables of this Dockerfile come to more than 128 MiB of text")]
    TooMuch,
    /// A pattern that needs too many comparisons.
    #[error("matching the pattern takes too long")]
    TooCostly,
}

const MAX_DEPTH: usize = 100;
const MAX_SIZE: usize = 16 << 20;

impl Expander {
    /// For the words of an instruction in a file with this escape character.
    #[must_use]
    pub fn new(escape: char) -> Self {
        Self { escape, raw_quotes: false, raw_escapes: false, ignore_quotes: false, keep_unset: false }
    }

    /// For the content of a here-document: quotes are text, and `\` escapes whatever the file says.
    #[must_use]
    pub fn for_heredoc() -> Self {
        Self { ignore_quotes: true, ..Self::new('\\') }
    }

    /// Keeps quote characters in the result. What they quote is still quoted.
    #[must_use]
    pub fn raw_quotes(self, raw_quotes: bool) -> Self {
        Self { raw_quotes, ..self }
    }

    /// Keeps escape characters in the result. What they escape is still escaped.
    #[must_use]
    pub fn raw_escapes(self, raw_escapes: bool) -> Self {
        Self { raw_escapes, ..self }
    }

    /// Leaves variables that are not set as they are written, instead of replacing them with nothing.
    #[must_use]
    pub fn keep_unset(self, keep_unset: bool) -> Self {
        Self { keep_unset, ..self }
    }

    /// Expands `word` to one text; spaces stay.
    pub fn process_word(&self, word: &str, env: &dyn Env) -> Result<Expansion, ExpandError> {
        if !word.contains([self.escape, '$', '"', '\'']) {
            return Ok(Expansion { text: without_mark(word).to_owned(), ..Expansion::default() });
        }
        let done = lexer::text(*self, word, env).map_err(|reason| failed(word, reason))?;
        Ok(Expansion { text: done.result, used: done.used, unset: done.unset })
    }

    /// Expands `word`, then splits it at spaces that are not quoted.
    pub fn process_words(&self, word: &str, env: &dyn Env) -> Result<WordList, ExpandError> {
        let done = lexer::words(*self, word, env).map_err(|reason| failed(word, reason))?;
        Ok(WordList { words: done.result, used: done.used, unset: done.unset })
    }
}

/// A byte-order mark in front of a word is dropped, as BuildKit's scanner does.
fn without_mark(word: &str) -> &str {
    word.strip_prefix('\u{feff}').unwrap_or(word)
}

pub(crate) fn failed(word: &str, reason: ExpandReason) -> ExpandError {
    let mut shown: String = word.chars().take(80).collect();
    if shown.len() < word.len() {
        shown.push('…');
    }
    ExpandError { word: shown, reason }
}

#[cfg(test)]
mod tests;
