//! Which checks run: `# check=skip=A,B;error=true`.

use std::collections::BTreeSet;

use crate::scope::parse_bool;

/// The value of a `check` directive or of the build argument `BUILDKIT_DOCKERFILE_CHECK`.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Config {
    /// `skip=all`
    pub skip_all: bool,
    /// `skip=NAME,…`
    pub skip: BTreeSet<String>,
    /// `experimental=all`
    pub experimental_all: bool,
    /// `experimental=NAME,…`
    pub experimental: BTreeSet<String>,
    /// `error=true`: findings fail the build.
    pub error: bool,
}

/// A value that says nothing known.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum CheckOptionError {
    /// Neither `skip`, `experimental` nor `error`.
    #[error("invalid check option {0:?}: it is one of skip=, experimental= and error=")]
    Unknown(String),
    /// `error=` wants a truth value.
    #[error("invalid check option {0:?}: error= is true or false")]
    NotBool(String),
}

impl Config {
    /// Reads options, which are separated by semicolons.
    ///
    /// # Errors
    /// An option that does not exist.
    pub fn parse(text: &str) -> Result<Self, CheckOptionError> {
        let mut config = Self::default();
        let text = text.trim();
        if text.is_empty() {
            return Ok(config);
        }
        for option in text.splitn(3, ';') {
            let Some((key, value)) = option.split_once('=') else {
                return Err(CheckOptionError::Unknown(option.to_owned()));
            };
            let value = value.trim();
            let names = || value.split(',').map(|name| name.trim().to_owned()).collect();
            match key.trim() {
                "skip" if value == "all" => config.skip_all = true,
                "skip" => config.skip = names(),
                "experimental" if value == "all" => config.experimental_all = true,
                "experimental" => config.experimental = names(),
                "error" => {
                    config.error = parse_bool(value).ok_or_else(|| CheckOptionError::NotBool(option.to_owned()))?;
                }
                other => return Err(CheckOptionError::Unknown(other.to_owned())),
            }
        }
        Ok(config)
    }

    /// Whether the check runs.
    pub(super) fn allows(&self, rule: &super::Rule) -> bool {
        if rule.experimental {
            self.experimental_all || self.experimental.contains(rule.name)
        } else {
            !self.skip_all && !self.skip.contains(rule.name)
        }
    }

    /// With what a comment above an instruction adds. It can switch checks on or off, but not turn findings into errors.
    pub(super) fn merged(&self, own: Self) -> Self {
        let mut all = self.clone();
        all.skip_all |= own.skip_all;
        all.experimental_all |= own.experimental_all;
        all.skip.extend(own.skip);
        all.experimental.extend(own.experimental);
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options() {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
        for (text, want) in [
            ("", Config::default()),
            ("skip=all", Config { skip_all: true, ..Config::default() }),
            (" skip = A, B ;error=1", Config { skip: names(&["A", "B"]), error: true, ..Config::default() }),
            (
                "error=false;experimental=all;skip=A",
                Config { skip: names(&["A"]), experimental_all: true, ..Config::default() },
            ),
            ("experimental=X", Config { experimental: names(&["X"]), ..Config::default() }),
        ] {
            assert_eq!(Config::parse(text).as_ref(), Ok(&want), "{text}");
        }
        for text in ["skip", "foo=1", "error=maybe", "skip=A;", "error=true;x"] {
            assert!(Config::parse(text).is_err(), "{text}");
        }
    }
}
