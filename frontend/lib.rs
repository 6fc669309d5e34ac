//! Dockerfile text becomes a build graph here, without any I/O.
//!
//! ```text
//! SourceFile --parse--> Dockerfile --plan--> Plan --lower--> Lowered { graph, root, config, ... }
//!                                              |     ^
//!                              missing_images  v     |  Images: configs, as the builder resolved them
//! ```
//!
//! Parsing has two layers: `lines` undoes continuations, comments and here-documents, `instruction` reads what is left.
//! Both keep the place of every token, so that whoever finds a mistake later can still show the line.
//!
//! [`plan`](fn@plan) evaluates the global scope and settles what every FROM, `--from` and mount refers to. What a build needs beyond
//! the text are the configs of its base images, and only of those that the target reaches: [`Plan::missing_images`] names
//! them. As a base can bring ONBUILD triggers that name further images, the caller asks until nothing is missing. [`lower`](fn@lower)
//! then turns the reachable stages into nodes of the graph, and into the image config with its history.
//!
//! Invariants:
//! - nothing here reads a file, a clock, an environment variable or a network;
//! - equal text, options and configs give an equal graph, node by node;
//! - nothing panics on any input, and no recursion follows the length of a file or of a chain of stages;
//! - an argument of the command line reaches the graph only where the Dockerfile declares it; proxy settings reach every
//!   RUN, but no key, config or history.

pub mod diagnostic;
pub mod dockerignore;
pub mod expand;
mod image_name;
mod image_state;
pub mod images;
pub mod instruction;
mod lines;
pub mod lint;
pub mod lower;
pub mod options;
mod outline;
pub mod plan;
mod reach;
mod scope;
pub mod source;
mod stage;
mod syntax;
mod targets;

pub use diagnostic::{Diagnostic, Diagnostics, Related};
pub use images::{ImageRequest, Images, ResolvedImage};
pub use instruction::{parse, parse_trigger};
pub use lines::{HeredocWord, SyntaxDirective, detect_syntax, parse_heredoc};
pub use lint::Finding;
pub use lower::{LocalContext, Lowered, ScanTargets, lower};
pub use options::{ContextSource, NamedContext, NoCache, Options};
pub use outline::{Outline, OutlineArg, OutlineMount};
pub use plan::{Plan, plan};
pub use source::{LineColumn, SourceFile, Span};
pub use targets::{Target, targets};
