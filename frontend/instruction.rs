//! The second layer: logical lines become typed instructions.

mod ast;
mod csv;
mod mount;

pub use ast::*;
pub use mount::{Mount, MountField, MountFlag, MountType};

use crate::diagnostic::{Diagnostic, Diagnostics};
use crate::source::{SourceFile, Span};

/// Parses a Dockerfile. All independent problems are reported at once.
pub fn parse(source: &SourceFile) -> Result<Dockerfile, Diagnostics> {
    let whole = Span::new(0, source.text().len());
    Err(Diagnostic::new(whole, "the parser follows").into())
}

/// Parses one trigger of a base image's `OnBuild` list: [`OnbuildInstruction::trigger`]. Spans are those of `source`.
/// Triggers always use `\` as escape character.
pub fn parse_trigger(source: &SourceFile) -> Result<Instruction, Diagnostics> {
    let whole = Span::new(0, source.text().len());
    Err(Diagnostic::new(whole, "the parser follows").into())
}
