//! Stage names are looked up in lower case.

use super::{Edit, Linter, Rule};
use crate::SourceFile;
use crate::instruction::{Instruction, InstructionKind};

pub(crate) const RULE: Rule = Rule {
    name: "StageNameCasing",
    description: "Stage names are read in lower case, and should be written so",
    page: "stage-name-casing",
    experimental: false,
};

pub(crate) fn check(linter: &mut Linter, source: &SourceFile, instruction: &Instruction) {
    let InstructionKind::From(from) = &instruction.kind else { return };
    let Some(name) = &from.name else { return };
    let written = source.slice(name.span);
    if written != name.text {
        let message = format!("Stage name '{written}' should be lowercase");
        let edit = Edit::new(name.span, name.text.clone());
        linter.report_with(&RULE, &instruction.comments, instruction.span, message, [edit]);
    }
}
