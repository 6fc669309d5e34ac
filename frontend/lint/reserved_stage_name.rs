//! `context` and `scratch` mean something already.

use super::{Linter, Rule};
use crate::instruction::{Dockerfile, InstructionKind};

pub(crate) const RULE: Rule = Rule {
    name: "ReservedStageName",
    description: "A stage should not be called like something that exists by itself",
    page: "reserved-stage-name",
    experimental: false,
};

pub(crate) fn check(linter: &mut Linter, dockerfile: &Dockerfile) {
    for instruction in &dockerfile.instructions {
        let InstructionKind::From(from) = &instruction.kind else { continue };
        let Some(name) = from.name.as_ref().filter(|name| matches!(name.text.as_str(), "context" | "scratch")) else {
            continue;
        };
        let message = format!("Stage name should not use the same name as reserved stage {:?}", name.text);
        linter.report(&RULE, &[], instruction.span, message);
    }
}
