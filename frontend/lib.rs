//! rbuild-frontend
//!
//! Dockerfile text becomes a build graph here, without any I/O.
//!
//! Parsing has two layers: `lines` undoes continuations, comments and here-documents, `instruction` reads what is left.
//! Both keep the place of every token, so that whoever finds a mistake later can still show the line.

pub mod diagnostic;
pub mod expand;
pub mod instruction;
pub mod source;

pub use diagnostic::{Diagnostic, Diagnostics, Related};
pub use instruction::{parse, parse_trigger};
pub use source::{LineColumn, SourceFile, Span};
