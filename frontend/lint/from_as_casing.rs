//! `FROM a as b`.

use super::{Edit, Linter, Rule};
use crate::instruction::{Instruction, InstructionKind};

pub(crate) const RULE: Rule = Rule {
    name: "FromAsCasing",
    description: "FROM and its AS should be written in the same case",
    page: "from-as-casing",
    experimental: false,
};

pub(crate) fn check(linter: &mut Linter, instruction: &Instruction) {
    let InstructionKind::From(from) = &instruction.kind else { return };
    let Some(keyword) = &from.as_keyword else { return };
    let written = instruction.keyword.text.as_str();
    // A FROM of mixed case is the business of ConsistentInstructionCasing.
    let wanted = if written == written.to_lowercase() {
        keyword.text.to_lowercase()
    } else if written == written.to_uppercase() {
        keyword.text.to_uppercase()
    } else {
        return;
    };
    if keyword.text != wanted {
        let message = format!("'{}' and '{written}' keywords' casing do not match", keyword.text);
        let edit = Edit::new(keyword.span, wanted);
        linter.report_with(&RULE, &instruction.comments, instruction.span, message, [edit]);
    }
}
