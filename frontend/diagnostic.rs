//! What is wrong with a source text, where, and what to do about it.

use std::fmt;

use crate::source::{SourceFile, Span};

/// One problem, as data. How it is printed is decided by the binary.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Diagnostic {
    /// What is wrong, in one sentence without a full stop.
    pub message: String,
    /// The text that is to blame.
    pub span: Span,
    /// What to do about it.
    pub hint: Option<String>,
    /// Other places that help to understand it.
    pub related: Vec<Related>,
}

/// A second place that a [`Diagnostic`] points at.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Related {
    /// Where.
    pub span: Span,
    /// What is there.
    pub message: String,
}

impl Diagnostic {
    /// A problem without advice.
    #[must_use]
    pub fn new(span: Span, message: impl Into<String>) -> Self {
        Self { message: message.into(), span, hint: None, related: Vec::new() }
    }

    /// Adds what to do about it.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Adds "did you mean" if one of `names` is close to `given`; otherwise nothing changes.
    #[must_use]
    pub fn with_suggestion<'a>(self, given: &str, names: impl IntoIterator<Item = &'a str>) -> Self {
        match closest(given, names) {
            Some(name) => self.with_hint(format!("did you mean {name}?")),
            None => self,
        }
    }

    /// Adds another place to look at.
    #[must_use]
    pub fn with_related(mut self, span: Span, message: impl Into<String>) -> Self {
        self.related.push(Related { span, message: message.into() });
        self
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        if let Some(hint) = &self.hint {
            write!(f, " ({hint})")?;
        }
        Ok(())
    }
}

impl std::error::Error for Diagnostic {}

/// All that is wrong with one text, in the order of the text. Never empty when it is an error.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Diagnostics(pub Vec<Diagnostic>);

impl Diagnostics {
    /// One line per problem, with the position in front: for logs and tests. The binary prints excerpts instead.
    #[must_use]
    pub fn render(&self, source: &SourceFile) -> String {
        let mut out = String::new();
        for diagnostic in &self.0 {
            let at = source.line_column(diagnostic.span.start());
            out.push_str(&format!("{}:{}:{}: {diagnostic}\n", source.name(), at.line, at.column));
        }
        out
    }
}

impl From<Diagnostic> for Diagnostics {
    fn from(diagnostic: Diagnostic) -> Self {
        Self(vec![diagnostic])
    }
}

impl fmt::Display for Diagnostics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, diagnostic) in self.0.iter().enumerate() {
            if at > 0 {
                f.write_str("\n")?;
            }
            diagnostic.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for Diagnostics {}

/// As BuildKit's checks look for it: the nearest of `names`, the first of several. None if one is `given` itself.
pub(crate) fn near_miss<'a>(given: &str, names: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    if given.len() > 64 {
        return None;
    }
    let mut nearest: Option<(usize, &str)> = None;
    for name in names {
        if name == given {
            return None;
        }
        let distance = strsim::levenshtein(given, name);
        if distance < nearest.map_or(3, |(distance, _)| distance) {
            nearest = Some((distance, name));
        }
    }
    nearest.map(|(_, name)| name)
}

/// The name nearest to what was typed, if it is at most two edits away. Case is not counted as an edit.
fn closest<'a>(given: &str, names: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // A name this long is no slip of the finger, and the distance costs its square.
    if given.is_empty() || given.len() > 64 {
        return None;
    }
    let lower = given.to_lowercase();
    names
        .into_iter()
        .filter(|name| *name != given)
        .map(|name| (strsim::damerau_levenshtein(&lower, &name.to_lowercase()), name))
        .filter(|(distance, name)| *distance <= 2 && *distance < name.len())
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suggestions_are_near_misses_only() {
        let names = ["RUN", "COPY", "ENTRYPOINT", "ENV"];
        for (given, expected) in [
            ("RNU", Some("RUN")),
            ("copi", Some("COPY")),
            ("ENTRYPIONT", Some("ENTRYPOINT")),
            ("RUN", None),
            ("Run", Some("RUN")),
            ("frobnicate", None),
            ("", None),
        ] {
            assert_eq!(closest(given, names), expected, "{given}");
        }
        assert_eq!(closest(&"R".repeat(100_000), names), None);
    }

    #[test]
    fn rendering_names_the_place() {
        let source = SourceFile::new("Dockerfile", "FROM a\nRNU b\n");
        let problems = Diagnostics::from(
            Diagnostic::new(Span::new(7, 10), "unknown instruction RNU").with_suggestion("RNU", ["RUN"]),
        );
        assert_eq!(problems.render(&source), "Dockerfile:2:1: unknown instruction RNU (did you mean RUN?)\n");
    }
}
