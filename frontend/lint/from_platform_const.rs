//! `FROM --platform=linux/amd64` makes a build for any other platform wrong.

use graph::Platform;

use super::{Linter, Rule};
use crate::expand::Expansion;
use crate::instruction::{FromInstruction, Instruction};

pub(crate) const RULE: Rule = Rule {
    name: "FromPlatformFlagConstDisallowed",
    description: "A constant platform in FROM defeats building for several platforms",
    page: "from-platform-flag-const-disallowed",
    experimental: false,
};

pub(crate) fn check(linter: &mut Linter, instruction: &Instruction, from: &FromInstruction, expanded: &Expansion) {
    if !expanded.used.is_empty() || !expanded.unset.is_empty() {
        return;
    }
    let Ok(platform) = expanded.text.parse::<Platform>() else { return };
    // A stage that says so in its name is meant for that platform.
    let name = from.name.as_ref().map_or("", |name| name.text.as_str());
    if name.contains(&platform.os) || name.contains(&platform.architecture) {
        return;
    }
    let message = format!("FROM --platform flag should not use constant value {:?}", expanded.text);
    linter.report(&RULE, &instruction.comments, instruction.span, message);
}
