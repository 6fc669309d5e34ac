//! The rules of a `.dockerignore`, and which file they came from.

use frontend::dockerignore::{DirState, Patterns};

use super::ContextError;

/// What is left out of a context.
#[derive(Debug, Default, Clone)]
pub struct Ignore {
    file: String,
    patterns: Patterns,
}

impl Ignore {
    /// No rules.
    #[must_use]
    pub fn none() -> Self {
        Self::default()
    }

    /// Reads the rules in `file`, whose name is for messages.
    ///
    /// # Errors
    /// A pattern that cannot be used.
    pub fn parse(file: &str, text: &[u8]) -> Result<Self, ContextError> {
        let text = String::from_utf8_lossy(text);
        let patterns = Patterns::parse(&text);
        let patterns =
            patterns.map_err(|error| ContextError::Ignore { file: file.to_owned(), why: error.to_string() })?;
        Ok(Self { file: file.to_owned(), patterns })
    }

    /// Where a walk begins.
    pub(crate) fn root(&self) -> DirState {
        self.patterns.root()
    }

    pub(crate) fn patterns(&self) -> &Patterns {
        &self.patterns
    }

    /// The rule that leaves `path` out, in words.
    #[must_use]
    pub fn why_ignored(&self, path: &str) -> Option<String> {
        let verdict = self.patterns.test(path);
        let rule = verdict.rule.filter(|_| verdict.ignored)?;
        Some(format!("excluded by {} line {}: {}", self.file, rule.line(), rule.text()))
    }
}
