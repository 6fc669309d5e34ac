//! Directives: `# syntax=…`, `# escape=…`, `# check=…` at the top of the file.

use super::{Line, Physical};
use crate::instruction::{Directive, Word};
use crate::source::{SourceFile, Span};

const NAMES: [&str; 3] = ["syntax", "escape", "check"];

/// What a file names as the frontend that is to read it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SyntaxDirective {
    /// The image: the value up to its first space.
    pub image: String,
    /// The whole value.
    pub value: String,
    /// The line, or the whole file if it is JSON.
    pub span: Span,
}

/// Reads one line as a directive: the comment mark, a known name, an equals sign and a value.
pub(super) fn parse(line: Line<'_>, comment: &str) -> Option<Directive> {
    let is_space = |c: char| matches!(c, ' ' | '\t' | '\r' | '\n' | '\x0c');
    let text = line.text.strip_prefix(comment)?.trim_start();
    let (name, value) = text.split_once('=')?;
    let name = name.trim_end_matches(is_space);
    if !name.starts_with(|c: char| c.is_ascii_alphabetic()) || !name.bytes().all(|b| b.is_ascii_alphanumeric()) {
        return None;
    }
    let name = name.to_ascii_lowercase();
    if value.is_empty() || !NAMES.contains(&name.as_str()) {
        return None;
    }
    // If there is only space, one of it is the value: the directive is there, and wrong.
    let spaces = value.len() - value.trim_start_matches(is_space).len();
    let skipped = spaces.min(value.len() - 1);
    let start = line.end_of_text() - (value.len() - skipped);
    let value = &value[skipped..];
    let value = if spaces > skipped { value } else { value.trim_end_matches(is_space) };
    Some(Directive { name, value: Word::new(value, Span::new(start, start + value.len())), span: line.span() })
}

/// The value of a `check` directive that stands in a comment above an instruction.
pub(crate) fn check_comment(comment: &str) -> Option<String> {
    let directive = parse(Line { text: comment, start: 0 }, "")?;
    (directive.name == "check").then(|| directive.value.text.into())
}

/// The frontend that a file asks for. Unlike the parser, this also accepts the notations of other languages: a shebang
/// in front, `//` as comment mark, or a JSON object with a `syntax` member.
#[must_use]
pub fn detect_syntax(source: &SourceFile) -> Option<SyntaxDirective> {
    let mut lines = Physical::new(source.text());
    let body = lines.at;
    if source.text()[body..].starts_with("#!") {
        lines.next_raw();
    }
    ["#", "//"].into_iter().find_map(|comment| in_comments(lines, comment)).or_else(|| {
        let object: serde_json::Value = serde_json::from_str(&source.text()[lines.at..]).ok()?;
        let value = object.as_object()?.get("syntax")?.as_str()?.to_owned();
        Some(SyntaxDirective { image: value.clone(), value, span: Span::new(body, source.text().len()) })
    })
}

fn in_comments(mut lines: Physical<'_>, comment: &str) -> Option<SyntaxDirective> {
    let mut seen = Vec::new();
    while let Some(line) = lines.next_raw() {
        let line = Line { text: line.text.trim_end_matches(['\r', '\n']), ..line };
        let directive = parse(line, comment)?;
        if directive.name == "syntax" {
            let value = String::from(directive.value.text);
            let image = value.split(' ').next().unwrap_or_default().to_owned();
            return Some(SyntaxDirective { image, value, span: directive.span });
        }
        if seen.contains(&directive.name) {
            return None;
        }
        seen.push(directive.name);
    }
    None
}
