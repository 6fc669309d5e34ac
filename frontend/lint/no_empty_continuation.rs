//! An empty line inside an instruction.

use super::{Edit, Linter, Rule};
use crate::instruction::Dockerfile;
use crate::{SourceFile, Span};

pub(crate) const RULE: Rule = Rule {
    name: "NoEmptyContinuation",
    description: "Empty lines inside a continued instruction will be refused one day",
    page: "no-empty-continuation",
    experimental: false,
};

pub(crate) fn check(linter: &mut Linter, source: &SourceFile, dockerfile: &Dockerfile) {
    for empty in &dockerfile.empty_continuations {
        let lines = empty.lines.iter().map(|line| {
            // With its ending, so that nothing of the line remains.
            let rest = &source.text()[line.end()..];
            let ending = rest.find('\n').map_or(rest.len(), |at| at + 1);
            Edit::new(Span::new(line.start(), line.end() + ending), "")
        });
        linter.report_with(&RULE, &[], empty.end, "Empty continuation line", lines);
    }
}
