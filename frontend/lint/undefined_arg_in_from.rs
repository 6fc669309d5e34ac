//! FROM sees the ARGs above the first FROM, and no others.

use std::collections::BTreeSet;

use super::{Linter, Rule};
use crate::Span;
use crate::diagnostic::near_miss;
use crate::instruction::Word;

pub(crate) const RULE: Rule = Rule {
    name: "UndefinedArgInFrom",
    description: "FROM only sees ARGs that were declared before the first FROM",
    page: "undefined-arg-in-from",
    experimental: false,
};

/// `unset` are the variables without a value, `declared` those that an ARG names all the same.
pub(crate) fn check(
    linter: &mut Linter,
    comments: &[Word],
    span: Span,
    unset: &BTreeSet<String>,
    declared: &BTreeSet<String>,
    set: &[&str],
) {
    for name in unset.iter().filter(|name| !declared.contains(*name)) {
        let known = declared.iter().map(String::as_str).chain(set.iter().copied());
        let meant = near_miss(name, known).map(|meant| format!(" (did you mean {meant}?)")).unwrap_or_default();
        linter.report(&RULE, comments, span, format!("FROM argument '{name}' is not declared{meant}"));
    }
}
