//! Without build arguments a FROM should name an image, too.

use super::{Linter, Rule};
use crate::Span;
use crate::image_name;

pub(crate) const RULE: Rule = Rule {
    name: "InvalidDefaultArgInFrom",
    description: "Without build arguments, FROM has no valid image name",
    page: "invalid-default-arg-in-from",
    experimental: false,
};

/// `name` is what the FROM's `written` becomes with the defaults of the ARGs.
pub(crate) fn check(linter: &mut Linter, span: Span, written: &str, name: &str) {
    if image_name::normalise(name).is_err() {
        let message = format!("Default value for ARG {written} results in empty or invalid base image name");
        linter.report(&RULE, &[], span, message);
    }
}
