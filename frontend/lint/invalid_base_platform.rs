//! The base image is made for another platform than the build.

use graph::Platform;

use super::{Linter, Rule};
use crate::Span;

pub(crate) const RULE: Rule = Rule {
    name: "InvalidBaseImagePlatform",
    description: "The base image is made for another platform than the one that is built for",
    page: "",
    experimental: false,
};

pub(crate) fn check(linter: &mut Linter, span: Span, image: &str, wanted: &Platform, is: &Platform) {
    if (&is.os, &is.architecture) != (&wanted.os, &wanted.architecture) {
        let (is, wanted) = (is.to_string(), wanted.to_string());
        let message =
            format!("Base image {image} was pulled with platform {is:?}, expected {wanted:?} for current build");
        linter.report(&RULE, &[], span, message);
    }
}
