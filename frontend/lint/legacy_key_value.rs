//! `ENV name value`.

use super::{Edit, Linter, Rule};
use crate::instruction::{Instruction, KeyValue};
use crate::{SourceFile, Span};

pub(crate) const RULE: Rule = Rule {
    name: "LegacyKeyValueFormat",
    description: "A name and its value should be joined by an equals sign",
    page: "legacy-key-value-format",
    experimental: false,
};

/// `span` is where it is to be reported, `source` the text if the instruction stands in it.
pub(crate) fn check(
    linter: &mut Linter,
    source: Option<&SourceFile>,
    span: Span,
    instruction: &Instruction,
    pairs: &[KeyValue],
) {
    for pair in pairs.iter().filter(|pair| pair.legacy) {
        let keyword = &instruction.keyword.text;
        let message =
            format!("\"{keyword} key=value\" should be used instead of legacy \"{keyword} key value\" format");
        let edit = source.and_then(|source| edit(source, pair));
        linter.report_with(&RULE, &instruction.comments, span, message, edit);
    }
}

/// The old form takes the rest of the line as it is, the new one ends at a space that is not quoted.
fn edit(source: &SourceFile, pair: &KeyValue) -> Option<Edit> {
    let span = pair.key.span.to(pair.value.span);
    let value = pair.value.text.as_str();
    let odd = |c: char| c.is_whitespace() || matches!(c, '"' | '\'' | '\\' | '`' | '=');
    if source.slice(span).contains(['\n', '\r']) || pair.key.text.contains(odd) {
        return None;
    }
    let spaces = value.contains(char::is_whitespace);
    let quoted = value.contains(['"', '\'', '\\', '`']);
    let value = match (spaces, quoted) {
        (false, _) => value.to_owned(),
        (true, false) => format!("\"{value}\""),
        (true, true) => return None,
    };
    Some(Edit::new(span, format!("{}={value}", pair.key.text)))
}
