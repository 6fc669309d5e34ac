//! The stages of a Dockerfile, for people who look for one to build.

use crate::instruction::InstructionKind;
use crate::outline::description;
use crate::{Diagnostics, SourceFile, Span};

/// A stage that can be built.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Target {
    /// Its name; empty if it has none.
    pub name: String,
    /// It is built when none is asked for: the last one.
    pub default: bool,
    /// The comment above it.
    pub description: String,
    /// What it is made from, as written.
    pub base: String,
    /// `--platform`, as written.
    pub platform: String,
    /// The FROM.
    pub span: Span,
}

/// The stages, in the order of the file.
///
/// # Errors
/// What is wrong with the file.
pub fn targets(source: &SourceFile) -> Result<Vec<Target>, Diagnostics> {
    let dockerfile = crate::parse(source)?;
    let mut targets: Vec<Target> = Vec::new();
    for instruction in &dockerfile.instructions {
        let InstructionKind::From(from) = &instruction.kind else { continue };
        let name = from.name.as_ref().map_or("", |name| name.text.as_str());
        targets.push(Target {
            name: name.to_owned(),
            default: false,
            description: description(&instruction.comments, name),
            base: from.image.text.to_string(),
            platform: from.platform.as_ref().map_or(String::new(), |platform| platform.text.to_string()),
            span: instruction.span,
        });
    }
    if let Some(last) = targets.last_mut() {
        last.default = true;
    }
    Ok(targets)
}
