//! Changes to a text.

use crate::{SourceFile, Span};

/// Replaces a part of the text.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Edit {
    /// What goes.
    pub span: Span,
    /// What comes in its place.
    pub text: String,
}

impl Edit {
    /// `text` instead of `span`.
    pub(super) fn new(span: Span, text: impl Into<String>) -> Self {
        Self { span, text: text.into() }
    }
}

/// Makes changes, and says how many findings were mended. A finding of which one change overlaps with what was changed
/// before is left for the next run, as is one whose places are not in the text.
#[must_use]
pub fn apply<'a>(source: &SourceFile, findings: impl IntoIterator<Item = &'a super::Finding>) -> (String, usize) {
    let mut edits: Vec<&Edit> = Vec::new();
    let mut mended = 0;
    for finding in findings {
        let fits = |edit: &Edit| {
            let inside = source.text().get(edit.span.start()..edit.span.end()).is_some();
            inside
                && edits
                    .iter()
                    .all(|other| other.span.end() <= edit.span.start() || edit.span.end() <= other.span.start())
        };
        if !finding.edits.is_empty() && finding.edits.iter().all(fits) {
            edits.extend(&finding.edits);
            mended += 1;
        }
    }
    edits.sort_by_key(|edit| edit.span);
    let mut text = String::with_capacity(source.text().len());
    let mut at = 0;
    for edit in edits {
        text.push_str(&source.text()[at..edit.span.start()]);
        text.push_str(&edit.text);
        at = edit.span.end();
    }
    text.push_str(&source.text()[at..]);
    (text, mended)
}
