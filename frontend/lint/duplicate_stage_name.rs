//! Of two stages with the same name only one can be meant.

use std::collections::BTreeSet;

use super::{Linter, Rule};
use crate::instruction::{Dockerfile, InstructionKind};

pub(crate) const RULE: Rule = Rule {
    name: "DuplicateStageName",
    description: "Two stages of one name cannot be told apart",
    page: "duplicate-stage-name",
    experimental: false,
};

pub(crate) fn check(linter: &mut Linter, dockerfile: &Dockerfile) {
    let mut seen = BTreeSet::new();
    for instruction in &dockerfile.instructions {
        let InstructionKind::From(from) = &instruction.kind else { continue };
        let Some(name) = &from.name else { continue };
        if !seen.insert(name.text.as_str()) {
            let message = format!("Duplicate stage name {:?}, stage names should be unique", name.text);
            linter.report(&RULE, &[], instruction.span, message);
        }
    }
}
