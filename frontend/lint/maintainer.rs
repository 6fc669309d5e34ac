//! MAINTAINER is a label today.

use super::{Edit, Linter, Rule};
use crate::SourceFile;
use crate::instruction::{Instruction, InstructionKind};

pub(crate) const RULE: Rule = Rule {
    name: "MaintainerDeprecated",
    description: "MAINTAINER is deprecated: authors are named by a label",
    page: "maintainer-deprecated",
    experimental: false,
};

pub(crate) fn check(linter: &mut Linter, source: &SourceFile, instruction: &Instruction) {
    let InstructionKind::Maintainer(maintainer) = &instruction.kind else { return };
    let message = "Maintainer instruction is deprecated in favor of using label";
    let name = &maintainer.name.text;
    // Unlike MAINTAINER, a label's value is expanded, and quotes mean something in it.
    let plain = !name.contains(['"', '\'', '\\', '`', '$', '\n']) && !source.slice(instruction.span).contains('\n');
    let upper = instruction.keyword.text != instruction.keyword.text.to_lowercase();
    let keyword = if upper { "LABEL" } else { "label" };
    let text = format!("{keyword} org.opencontainers.image.authors=\"{name}\"");
    let edit = plain.then(|| Edit::new(instruction.span, text));
    linter.report_with(&RULE, &instruction.comments, instruction.span, message, edit);
}
