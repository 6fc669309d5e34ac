//! A comment right above a stage or ARG is taken for its description, if it begins with the name.

use super::{Linter, Rule};
use crate::instruction::{Instruction, InstructionKind};

pub(crate) const RULE: Rule = Rule {
    name: "InvalidDefinitionDescription",
    description: "A comment right above a stage or ARG describes it and begins with its name; an empty line between them makes it an ordinary comment",
    page: "invalid-definition-description",
    experimental: true,
};

pub(crate) fn check(linter: &mut Linter, instruction: &Instruction) {
    let (keyword, names) = match &instruction.kind {
        InstructionKind::From(from) => ("FROM", from.name.iter().map(|name| name.text.as_str()).collect()),
        InstructionKind::Arg(arg) => ("ARG", arg.args.iter().map(|arg| arg.name.text.as_str()).collect()),
        _ => ("", Vec::new()),
    };
    let (Some(comment), Some(first)) = (instruction.comments.last(), names.first()) else { return };
    let word = comment.text.split(' ').next().unwrap_or_default();
    if names.contains(&word) {
        return;
    }
    let example = if names.len() > 1 { "<arg_key>" } else { first };
    let message = format!("Comment for {keyword} should follow the format: `# {example} <description>`");
    linter.report(&RULE, &instruction.comments, instruction.span, message);
}
