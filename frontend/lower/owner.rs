//! `--chown`, `--chmod`, and USER where it decides who owns a directory.

use graph::{ChmodSpec, ChownSpec, UserSpec};

use crate::{Diagnostic, Span};

/// `user[:group]`, each by name or number.
pub(crate) fn chown(text: &str) -> ChownSpec {
    let (user, group) = match text.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (text, None),
    };
    ChownSpec { user: user_spec(user), group: group.map(user_spec) }
}

/// An empty name is root, as in BuildKit.
fn user_spec(text: &str) -> UserSpec {
    match text {
        "" | "root" => UserSpec::Id(0),
        text => match text.parse::<u32>() {
            Ok(id) if id <= i32::MAX as u32 => UserSpec::Id(id),
            _ => UserSpec::Name(text.to_owned()),
        },
    }
}

/// The user or group that must be looked up.
pub(crate) fn name(owner: &ChownSpec) -> Option<&str> {
    [Some(&owner.user), owner.group.as_ref()].into_iter().flatten().find_map(|spec| match spec {
        UserSpec::Name(name) => Some(name.as_str()),
        UserSpec::Id(_) => None,
    })
}

/// A name where there are no files yet that say whose it is. Root would be a silent guess.
pub(crate) fn unknown(name: &str, place: Span, link: bool) -> Diagnostic {
    let (why, hint) = match link {
        true => (
            "with --link the files below are not looked at",
            "give numbers, as in --chown=1000:1000, or leave out --link",
        ),
        false => ("the image is still empty", "give numbers, as in 1000:1000"),
    };
    Diagnostic::new(place, format!("{name:?} cannot be looked up: {why}")).with_hint(hint)
}

/// Octal digits, or the symbolic form of chmod(1).
pub(crate) fn chmod(text: &str) -> Result<ChmodSpec, String> {
    if text.starts_with(|c: char| c.is_ascii_digit()) {
        return match u32::from_str_radix(text, 8) {
            Ok(mode) if mode <= 0o7777 => Ok(ChmodSpec::Octal(mode)),
            _ => Err(format!("invalid chmod parameter: '{text}'. It is an octal number between 0 and 07777")),
        };
    }
    if text.split(',').all(is_symbolic_clause) {
        Ok(ChmodSpec::Symbolic(text.to_owned()))
    } else {
        Err(format!("invalid chmod parameter: '{text}'. It is an octal number, or symbolic as in u=rwX,go=rX"))
    }
}

/// `[ugoa]*([-+=][rwxXstugo]*)+`
fn is_symbolic_clause(clause: &str) -> bool {
    let rest = clause.trim_start_matches(['u', 'g', 'o', 'a']);
    rest.starts_with(['-', '+', '=']) && rest.bytes().all(|b| b"-+=rwxXstugo".contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners_are_names_or_numbers() {
        let spec = |user, group| ChownSpec { user, group };
        let name = |name: &str| UserSpec::Name(name.to_owned());
        for (text, want) in [
            ("app", spec(name("app"), None)),
            ("1000:10", spec(UserSpec::Id(1000), Some(UserSpec::Id(10)))),
            (":www", spec(UserSpec::Id(0), Some(name("www")))),
            ("root:", spec(UserSpec::Id(0), Some(UserSpec::Id(0)))),
            ("4294967295", spec(name("4294967295"), None)),
        ] {
            assert_eq!(chown(text), want, "{text}");
        }
    }

    #[test]
    fn modes_are_octal_or_symbolic() {
        assert_eq!(chmod("0755"), Ok(ChmodSpec::Octal(0o755)));
        for text in ["u=rwX,go=rX", "+x", "a-w", "g=u", "u+x-w"] {
            assert_eq!(chmod(text), Ok(ChmodSpec::Symbolic(text.to_owned())), "{text}");
        }
        for text in ["", "888", "10000", "u", "u=q", "u=rwx,", "x+u", "0x1"] {
            assert!(chmod(text).is_err(), "{text}");
        }
    }
}
