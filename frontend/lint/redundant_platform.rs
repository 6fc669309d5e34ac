//! `FROM --platform=$TARGETPLATFORM` is what FROM does by itself.

use super::{Edit, Linter, Rule};
use crate::expand::Expansion;
use crate::instruction::{FromInstruction, Instruction};
use crate::{SourceFile, Span};

pub(crate) const RULE: Rule = Rule {
    name: "RedundantTargetPlatform",
    description: "FROM takes the target platform by itself",
    page: "redundant-target-platform",
    experimental: false,
};

/// `platform` is the flag's value as it was expanded, `target` the platform of the build.
pub(crate) fn check(
    linter: &mut Linter,
    source: &SourceFile,
    instruction: &Instruction,
    from: &FromInstruction,
    platform: &Expansion,
    target: Option<&str>,
) {
    const NAME: &str = "TARGETPLATFORM";
    let Some(written) = &from.platform else { return };
    let only = platform.used.len() == 1 && platform.used.contains(NAME) && platform.unset.is_empty();
    if !only || target != Some(platform.text.as_str()) {
        return;
    }
    let message =
        format!("Setting platform to predefined {} in FROM is redundant as this is the default behavior", written.text);
    let flag = instruction.flags.iter().find(|flag| flag.name == "platform");
    let edit = flag.map(|flag| {
        let rest = &source.text()[flag.span.end()..];
        let spaces = rest.len() - rest.trim_start_matches([' ', '\t']).len();
        Edit::new(Span::new(flag.span.start(), flag.span.end() + spaces), "")
    });
    linter.report_with(&RULE, &instruction.comments, instruction.span, message, edit);
}
