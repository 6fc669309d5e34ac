//! The flags of an instruction, checked against those it knows.

use super::ast::{Flag, Word};
use crate::diagnostic::Diagnostic;

/// What a flag takes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum FlagKind {
    /// Nothing, `=true` or `=false`.
    Bool,
    /// A value.
    Text,
    /// A value; may be repeated.
    List,
}

/// The flags of one instruction. All are known, and none is given twice that may not be.
pub(super) struct Flags<'a> {
    given: &'a [Flag],
}

impl<'a> Flags<'a> {
    /// Checks `given` against the flags of `keyword`.
    pub(super) fn check(
        keyword: &str,
        given: &'a [Flag],
        known: &[(&'static str, FlagKind)],
    ) -> Result<Self, Diagnostic> {
        for (at, flag) in given.iter().enumerate() {
            let Some((_, kind)) = known.iter().find(|(name, _)| *name == flag.name) else {
                return Err(unknown(keyword, flag, known));
            };
            let first = given[..at].iter().find(|other| other.name == flag.name);
            if let (Some(first), FlagKind::Bool | FlagKind::Text) = (first, kind) {
                return Err(Diagnostic::new(flag.span, format!("the flag --{} is given twice", flag.name))
                    .with_hint("remove one of them")
                    .with_related(first.span, "it was first given here"));
            }
            check_value(flag, *kind)?;
        }
        Ok(Self { given })
    }

    fn find(&self, name: &str) -> Option<&'a Flag> {
        self.given.iter().find(|flag| flag.name == name)
    }

    /// A [`FlagKind::Bool`]; `None` if it is not given.
    pub(super) fn bool(&self, name: &str) -> Option<bool> {
        let flag = self.find(name)?;
        Some(flag.value.as_ref().is_none_or(|value| !value.text.eq_ignore_ascii_case("false")))
    }

    /// A [`FlagKind::Text`]. An empty value counts as not given.
    pub(super) fn text(&self, name: &str) -> Option<Word> {
        self.find(name)?.value.clone().filter(|value| !value.text.is_empty())
    }

    /// A [`FlagKind::Text`], also if it is empty.
    pub(super) fn any_text(&self, name: &str) -> Option<Word> {
        self.find(name)?.value.clone()
    }

    /// A [`FlagKind::List`].
    pub(super) fn list(&self, name: &str) -> impl Iterator<Item = Word> + 'a {
        let name = name.to_owned();
        self.given.iter().filter(move |flag| flag.name == name).filter_map(|flag| flag.value.clone())
    }
}

fn check_value(flag: &Flag, kind: FlagKind) -> Result<(), Diagnostic> {
    let name = &flag.name;
    let text = flag.value.as_ref().map(|value| value.text.as_str());
    match (kind, text) {
        (FlagKind::Text | FlagKind::List, None) | (FlagKind::Bool, Some("")) => {
            Err(Diagnostic::new(flag.span, format!("the flag --{name} needs a value"))
                .with_hint(format!("write --{name}=VALUE, without space around the equals sign")))
        }
        (FlagKind::Bool, Some(value)) if !["true", "false"].iter().any(|word| value.eq_ignore_ascii_case(word)) => {
            Err(Diagnostic::new(flag.span, format!("the flag --{name} is true or false, not '{value}'"))
                .with_hint(format!("write --{name} alone, or --{name}=false")))
        }
        _ => Ok(()),
    }
}

fn unknown(keyword: &str, flag: &Flag, known: &[(&'static str, FlagKind)]) -> Diagnostic {
    let names: Vec<String> = known.iter().map(|(name, _)| format!("--{name}")).collect();
    let given = format!("--{}", flag.name);
    let problem = Diagnostic::new(flag.span, format!("{keyword} has no flag {given}"))
        .with_suggestion(&given, names.iter().map(String::as_str));
    match (&problem.hint, names.is_empty()) {
        (Some(_), _) => problem,
        (None, true) => problem.with_hint("it takes no flags; write -- in front of arguments that begin with dashes"),
        (None, false) => problem.with_hint(format!("its flags are {}", names.join(", "))),
    }
}
