//! Variables, quotes and escapes in the words of an instruction.

mod env;

pub use env::{Env, NoEnv};

use std::collections::BTreeSet;

/// How words are expanded. The default modes are those of most instructions; see the constructors for the others.
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

/// Why a word cannot be expanded.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ExpandError {
    /// A placeholder until the other reasons follow.
    #[error("{0}")]
    Syntax(String),
}

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
        let _ = (self, env);
        Ok(Expansion { text: word.to_owned(), ..Expansion::default() })
    }

    /// Expands `word`, then splits it at spaces that are not quoted.
    pub fn process_words(&self, word: &str, env: &dyn Env) -> Result<WordList, ExpandError> {
        let _ = (self, env);
        Ok(WordList { words: word.split_whitespace().map(str::to_owned).collect(), ..WordList::default() })
    }
}
