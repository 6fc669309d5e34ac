//! Of several CMDs of a stage only the last one counts.

use super::{Linter, Rule};
use crate::Span;
use crate::instruction::Instruction;

pub(crate) const RULE: Rule = Rule {
    name: "MultipleInstructionsDisallowed",
    description: "Of several CMD, ENTRYPOINT or HEALTHCHECK of a stage only the last one has an effect",
    page: "multiple-instructions-disallowed",
    experimental: false,
};

/// `before` is the one that has no effect any more.
pub(crate) fn check(linter: &mut Linter, before: Span, instruction: &Instruction) {
    let message = format!(
        "Multiple {} instructions should not be used in the same stage because only the last one will be used",
        instruction.keyword.text
    );
    linter.report(&RULE, &instruction.comments, before, message);
}
