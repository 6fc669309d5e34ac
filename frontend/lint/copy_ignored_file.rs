//! COPY of a file that `.dockerignore` leaves out.

use super::{Linter, Rule};
use crate::Span;
use crate::dockerignore::Patterns;
use crate::instruction::Word;

pub(crate) const RULE: Rule = Rule {
    name: "CopyIgnoredFile",
    description: "A source is left out of the build context by .dockerignore",
    page: "copy-ignored-file",
    experimental: false,
};

pub(crate) fn check(
    linter: &mut Linter,
    comments: &[Word],
    span: Span,
    patterns: &Patterns,
    keyword: &str,
    source: &str,
) {
    // With exceptions it depends on the files.
    if patterns.rules().iter().any(crate::dockerignore::Rule::is_exception) {
        return;
    }
    let path = clean(source);
    let root = path == "." || path == "/";
    let ignored = if root {
        patterns.rules().iter().any(|rule| matches!(rule.text(), "*" | "**" | "**/*"))
    } else {
        patterns.test(path.trim_start_matches('/')).ignored
    };
    if ignored {
        let verb = if keyword.eq_ignore_ascii_case("ADD") { "Add" } else { "Copy" };
        let message = format!("Attempting to {verb} file {path:?} that is excluded by .dockerignore");
        linter.report(&RULE, comments, span, message);
    }
}

/// Without `.`, `..` and doubled slashes.
fn clean(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." if parts.last().is_some_and(|last| *last != "..") => {
                parts.pop();
            }
            ".." if path.starts_with('/') => {}
            part => parts.push(part),
        }
    }
    match (path.starts_with('/'), parts.is_empty()) {
        (true, _) => format!("/{}", parts.join("/")),
        (false, true) => ".".to_owned(),
        (false, false) => parts.join("/"),
    }
}
