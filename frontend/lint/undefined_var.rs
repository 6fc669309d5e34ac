//! A variable that nothing sets is empty, which is rarely meant.

use super::{Linter, Rule};
use crate::Span;
use crate::diagnostic::near_miss;
use crate::instruction::Word;
use crate::scope::Scope;

pub(crate) const RULE: Rule = Rule {
    name: "UndefinedVar",
    description: "A variable is used that neither the base image nor an ARG or ENV sets",
    page: "undefined-var",
    experimental: false,
};

/// Among more variables than this something is always near, and looking takes long.
const CROWD: usize = 1000;

/// What is wrong with using `name` where `set` are set.
pub(crate) fn message(name: &str, set: &Scope) -> String {
    let meant = if set.len() > CROWD { None } else { near_miss(name, set.names()) };
    let meant = meant.map(|meant| format!(" (did you mean ${meant}?)")).unwrap_or_default();
    format!("Usage of undefined variable '${name}'{meant}")
}

pub(crate) fn check(linter: &mut Linter, comments: &[Word], span: Span, message: String) {
    linter.report(&RULE, comments, span, message);
}
