//! The checks: what a Dockerfile may say, but better would not. Names and messages are those of BuildKit, so that
//! directives, documentation and tools mean the same ones.
//!
//! One file per rule: its name, what it is about, when it applies, and the change that mends it where that is safe. Some
//! rules only read the text; they are asked while a file is planned. Others depend on the variables, the base image or the
//! ignore rules, and are asked while a stage is lowered. Which findings count is decided in one place, the [`Linter`].

mod config;
mod fix;
mod linter;

pub(crate) mod consistent_instruction_casing;
pub(crate) mod copy_ignored_file;
pub(crate) mod duplicate_stage_name;
pub(crate) mod expose_invalid_format;
pub(crate) mod expose_proto_casing;
pub(crate) mod from_as_casing;
pub(crate) mod from_platform_const;
pub(crate) mod invalid_base_platform;
pub(crate) mod invalid_default_arg;
pub(crate) mod invalid_description;
pub(crate) mod json_args;
pub(crate) mod legacy_key_value;
pub(crate) mod maintainer;
pub(crate) mod multiple_instructions;
pub(crate) mod no_empty_continuation;
pub(crate) mod redundant_platform;
pub(crate) mod reserved_stage_name;
pub(crate) mod secrets;
pub(crate) mod stage_name_casing;
pub(crate) mod undefined_arg_in_from;
pub(crate) mod undefined_var;
pub(crate) mod workdir_relative;

pub use config::{CheckOptionError, Config};
pub use fix::{Edit, apply};
pub(crate) use linter::Linter;
pub use secrets::looks_secret;

use crate::instruction::Dockerfile;
use crate::{SourceFile, Span};

/// A check.
#[derive(PartialEq, Eq, Debug)]
pub struct Rule {
    /// The name that `skip=` and `experimental=` take.
    pub name: &'static str,
    /// What it is about.
    pub description: &'static str,
    /// The last part of the address of its documentation.
    page: &'static str,
    /// It only runs when `experimental=` asks for it.
    pub experimental: bool,
}

impl Rule {
    /// Where it is explained.
    #[must_use]
    pub fn url(&self) -> Option<String> {
        (!self.page.is_empty()).then(|| format!("https://docs.docker.com/go/dockerfile/rule/{}/", self.page))
    }
}

/// What a check found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Finding {
    /// The check.
    pub rule: &'static Rule,
    /// What is wrong here.
    pub message: String,
    /// The instruction.
    pub span: Span,
    /// Changes to the text that mend it without changing what is built; none if there is no such change.
    pub edits: Vec<Edit>,
}

/// All checks, by name.
pub const RULES: [&Rule; 22] = [
    &consistent_instruction_casing::RULE,
    &copy_ignored_file::RULE,
    &duplicate_stage_name::RULE,
    &expose_invalid_format::RULE,
    &expose_proto_casing::RULE,
    &from_as_casing::RULE,
    &from_platform_const::RULE,
    &invalid_base_platform::RULE,
    &invalid_default_arg::RULE,
    &invalid_description::RULE,
    &json_args::RULE,
    &legacy_key_value::RULE,
    &maintainer::RULE,
    &multiple_instructions::RULE,
    &no_empty_continuation::RULE,
    &redundant_platform::RULE,
    &reserved_stage_name::RULE,
    &secrets::RULE,
    &stage_name_casing::RULE,
    &undefined_arg_in_from::RULE,
    &undefined_var::RULE,
    &workdir_relative::RULE,
];

/// Runs the checks that only need the text.
pub(crate) fn text(linter: &mut Linter, source: &SourceFile, dockerfile: &Dockerfile) {
    no_empty_continuation::check(linter, source, dockerfile);
    for instruction in &dockerfile.instructions {
        maintainer::check(linter, source, instruction);
        stage_name_casing::check(linter, source, instruction);
        from_as_casing::check(linter, instruction);
        invalid_description::check(linter, instruction);
    }
    reserved_stage_name::check(linter, dockerfile);
    duplicate_stage_name::check(linter, dockerfile);
    consistent_instruction_casing::check(linter, dockerfile);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_sorted_and_pages_follow_from_them() {
        assert!(RULES.is_sorted_by_key(|rule| rule.name));
        for rule in RULES {
            let mut page = String::new();
            let letters: Vec<char> = rule.name.chars().collect();
            for (at, c) in letters.iter().enumerate() {
                let begins = c.is_uppercase()
                    && at > 0
                    && (letters[at - 1].is_lowercase() || letters.get(at + 1).is_some_and(|next| next.is_lowercase()));
                if begins {
                    page.push('-');
                }
                page.extend(c.to_lowercase());
            }
            if rule != &invalid_base_platform::RULE {
                assert_eq!(rule.page, page, "{}", rule.name);
            }
        }
    }
}
