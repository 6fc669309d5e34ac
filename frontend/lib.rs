//! rbuild-frontend
//!
//! Dockerfile text becomes a build graph here, without any I/O.
//!
//! Parsing has two layers: `lines` undoes continuations, comments and here-documents, `instruction` reads what is left.
//! Both keep the place of every token, so that whoever finds a mistake later can still show the line.

pub mod diagnostic;
pub mod expand;
mod image_name;
mod image_state;
pub mod images;
pub mod instruction;
mod lines;
pub mod lower;
pub mod options;
pub mod plan;
mod reach;
mod scope;
pub mod source;
mod stage;

pub use diagnostic::{Diagnostic, Diagnostics, Related};
pub use images::{ImageRequest, Images, ResolvedImage};
pub use instruction::{parse, parse_trigger};
pub use lines::{HeredocWord, SyntaxDirective, detect_syntax, parse_heredoc};
pub use lower::{LocalContext, Lowered, ScanTargets, lower};
pub use options::{ContextSource, NamedContext, NoCache, Options};
pub use plan::{Plan, plan};
pub use source::{LineColumn, SourceFile, Span};
