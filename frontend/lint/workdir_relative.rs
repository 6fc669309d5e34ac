//! `WORKDIR app` depends on the base image.

use super::{Linter, Rule};
use crate::Span;
use crate::instruction::Word;

pub(crate) const RULE: Rule = Rule {
    name: "WorkdirRelativePath",
    description: "A relative WORKDIR without an absolute one before it moves with the base image",
    page: "workdir-relative-path",
    experimental: false,
};

pub(crate) fn check(linter: &mut Linter, comments: &[Word], span: Span, path: &str) {
    if !path.starts_with('/') {
        let message = format!("Relative workdir {path:?} can have unexpected results if the base image changes");
        linter.report(&RULE, comments, span, message);
    }
}
