//! The second layer: logical lines become typed instructions.
//!
//! What is accepted is what BuildKit accepts, also where its rules are odd; such places are commented. What is accepted
//! but does not do what it seems to is a warning.

mod ast;
mod csv;
mod duration;
mod flags;
mod mount;
mod parse;
mod print;
mod read;
mod words;

pub use ast::*;
pub use mount::{Mount, MountField, MountFlag, MountType};
pub(crate) use parse::is_keyword;

use crate::diagnostic::{Diagnostic, Diagnostics};
use crate::source::{SourceFile, Span};

/// Parses a Dockerfile. All independent problems are reported at once.
pub fn parse(source: &SourceFile) -> Result<Dockerfile, Diagnostics> {
    let (dockerfile, mut problems) = read::file(source);
    if dockerfile.instructions.is_empty() && problems.is_empty() {
        problems.push(
            Diagnostic::new(Span::default(), "the file has no instructions")
                .with_hint("it needs at least FROM, for instance FROM debian:bookworm-slim"),
        );
    }
    // Behind a line that could not be read, the missing FROM may be that line.
    let early = before_first_from(&dockerfile.instructions)
        .filter(|early| problems.iter().all(|problem| problem.span.start() > early.span.start()));
    if let Some(early) = early {
        let keyword = early.keyword.text.to_uppercase();
        problems.push(
            Diagnostic::new(early.keyword.span, format!("{keyword} stands before the first FROM"))
                .with_hint("a stage begins with FROM; only ARG may stand before the first one"),
        );
    }
    finish(dockerfile, problems)
}

/// Parses one trigger of a base image's `OnBuild` list: [`OnbuildInstruction::trigger`]. Spans are those of `source`.
/// Triggers always use `\` as escape character.
pub fn parse_trigger(source: &SourceFile) -> Result<Instruction, Diagnostics> {
    let (dockerfile, problems) = read::file(source);
    let whole = Span::new(0, source.text().len());
    let mut instructions = finish(dockerfile, problems)?.instructions;
    match (instructions.pop(), instructions.is_empty()) {
        (Some(instruction), true) if matches!(instruction.kind, InstructionKind::From(_)) => {
            Err(Diagnostic::new(instruction.keyword.span, "FROM cannot be an ONBUILD trigger").into())
        }
        (Some(instruction), true) => Ok(instruction),
        _ => Err(Diagnostic::new(whole, "an ONBUILD trigger must be one instruction").into()),
    }
}

fn finish(mut dockerfile: Dockerfile, mut problems: Vec<Diagnostic>) -> Result<Dockerfile, Diagnostics> {
    problems.sort_by_key(|problem| problem.span);
    dockerfile.warnings.sort_by_key(|warning| warning.span);
    if problems.is_empty() { Ok(dockerfile) } else { Err(Diagnostics(problems)) }
}

/// The first instruction that would need a stage before there is one.
fn before_first_from(instructions: &[Instruction]) -> Option<&Instruction> {
    let first = instructions.iter().find(|instruction| !matches!(instruction.kind, InstructionKind::Arg(_)))?;
    (!matches!(first.kind, InstructionKind::From(_))).then_some(first)
}
