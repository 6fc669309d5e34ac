//! What an ARG or ENV holds can be read in the image.

use super::{Linter, Rule};
use crate::Span;
use crate::instruction::Word;

pub(crate) const RULE: Rule = Rule {
    name: "SecretsUsedInArgOrEnv",
    description: "Secrets in ARG or ENV can be read by everybody who has the image",
    page: "secrets-used-in-arg-or-env",
    experimental: false,
};

const SECRET: [&str; 10] =
    ["apikey", "auth", "credential", "credentials", "key", "password", "pword", "passwd", "secret", "token"];
const HARMLESS: [&str; 3] = ["public", "file", "version"];

pub(crate) fn check(linter: &mut Linter, comments: &[Word], span: Span, keyword: &str, name: &str) {
    if looks_secret(name) {
        let message = format!("Do not use ARG or ENV instructions for sensitive data ({keyword} {name:?})");
        linter.report(&RULE, comments, span, message);
    }
}

/// Whether a variable of this name holds a secret, to all appearances.
#[must_use]
pub fn looks_secret(name: &str) -> bool {
    let has = |words: &[&str]| name.split('_').any(|part| words.iter().any(|word| part.eq_ignore_ascii_case(word)));
    has(&SECRET) && !has(&HARMLESS)
}

#[cfg(test)]
mod tests {
    use super::looks_secret;

    #[test]
    fn names() {
        for name in ["API_KEY", "token", "GITHUB_TOKEN", "auth", "DATABASE_PASSWORD", "secret_MESSAGE", "a_apikey_b"] {
            assert!(looks_secret(name), "{name}");
        }
        for name in ["KEYBOARD", "PUBLIC_KEY", "TOKEN_FILE", "MONKEY", "git_key_version", "", "tokens"] {
            assert!(!looks_secret(name), "{name}");
        }
    }
}
