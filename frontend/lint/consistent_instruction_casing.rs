//! All keywords of a file should be written in the same case.

use super::{Edit, Linter, Rule};
use crate::instruction::{Dockerfile, Instruction, InstructionKind};

pub(crate) const RULE: Rule = Rule {
    name: "ConsistentInstructionCasing",
    description: "All keywords of a Dockerfile should be written in the same case",
    page: "consistent-instruction-casing",
    experimental: false,
};

pub(crate) fn check(linter: &mut Linter, dockerfile: &Dockerfile) {
    // The ARGs before the first FROM do not count, neither as voters nor as offenders.
    let first = dockerfile.instructions.iter().position(|one| matches!(one.kind, InstructionKind::From(_)));
    let instructions: &[Instruction] = first.map_or(&[], |first| &dockerfile.instructions[first..]);
    let (mut lower, mut upper) = (0_usize, 0_usize);
    for keyword in instructions.iter().map(|instruction| instruction.keyword.text.as_str()) {
        if keyword == keyword.to_lowercase() {
            lower += 1;
        } else if keyword == keyword.to_uppercase() {
            upper += 1;
        }
    }
    let (right, name): (fn(&str) -> String, _) =
        if lower > upper { (str::to_lowercase, "lowercase") } else { (str::to_uppercase, "uppercase") };
    for instruction in instructions {
        let keyword = &instruction.keyword;
        let wanted = right(&keyword.text);
        if keyword.text != wanted {
            let message = format!("Command '{}' should match the case of the command majority ({name})", keyword.text);
            linter.report_with(&RULE, &[], instruction.span, message, [Edit::new(keyword.span, wanted)]);
        }
    }
}
