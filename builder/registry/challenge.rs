//! `WWW-Authenticate` headers (RFC 9110, section 11.6.1): several challenges, quoted strings, anything a server may send.

/// One challenge: a scheme in lower case and its parameters, names in lower case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Challenge {
    pub(crate) scheme: String,
    pub(crate) params: Vec<(String, String)>,
}

impl Challenge {
    /// The value of a parameter; the first where there are several.
    pub(crate) fn param(&self, name: &str) -> Option<&str> {
        self.params.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

/// Reads one header value. What cannot be read is skipped, never an error: another challenge may be of use.
pub(crate) fn parse(header: &str) -> Vec<Challenge> {
    let mut rest = header;
    let mut challenges: Vec<Challenge> = Vec::new();
    loop {
        rest = rest.trim_start_matches([' ', '\t', ',']);
        if rest.is_empty() {
            return challenges;
        }
        let word = take_while(&mut rest, is_token);
        if word.is_empty() {
            // Not a token: a token68 after a scheme, or garbage. Skip to the next comma.
            rest = rest.find(',').map_or("", |comma| &rest[comma..]);
            continue;
        }
        let after = rest.trim_start_matches([' ', '\t']);
        let value = after.strip_prefix('=').map(|value| value.trim_start_matches([' ', '\t']));
        match (value, challenges.last_mut()) {
            (Some(value), Some(challenge)) if !value.is_empty() && !value.starts_with([',', '=']) => {
                rest = value;
                let value =
                    if rest.starts_with('"') { take_quoted(&mut rest) } else { take_while(&mut rest, is_token) };
                challenge.params.push((word.to_ascii_lowercase(), value));
            }
            (Some(_), _) => rest = rest.find(',').map_or("", |comma| &rest[comma..]),
            (None, _) => challenges.push(Challenge { scheme: word.to_ascii_lowercase(), params: Vec::new() }),
        }
    }
}

fn is_token(c: char) -> bool {
    c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~/:".contains(c)
}

fn take_while(rest: &mut &str, accept: impl Fn(char) -> bool) -> String {
    let end = rest.find(|c| !accept(c)).unwrap_or(rest.len());
    let (word, after) = rest.split_at(end);
    *rest = after;
    word.to_owned()
}

fn take_quoted(rest: &mut &str) -> String {
    let mut value = String::new();
    let mut chars = rest.char_indices().skip(1);
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => {
                *rest = &rest[at + 1..];
                return value;
            }
            '\\' => value.extend(chars.next().map(|(_, c)| c)),
            c => value.push(c),
        }
    }
    *rest = "";
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_are_read() {
        for (header, want) in [
            (
                r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull,push""#,
                "bearer realm=https://auth.docker.io/token service=registry.docker.io scope=repository:a/b:pull,push",
            ),
            (r#"Basic realm="Registry Realm""#, "basic realm=Registry Realm"),
            (r#"basic"#, "basic"),
            (
                r#"Basic realm="a, b=\"c\"", BEARER Realm = x , service=y"#,
                "basic realm=a, b=\"c\"; bearer realm=x service=y",
            ),
            (r#"Negotiate, Basic realm="x""#, "negotiate; basic realm=x"),
            (r#"Negotiate abc==, Basic realm="x""#, "negotiate; basic realm=x"),
            (
                r#"Bearer realm=https://a/b?c,error="insufficient_scope""#,
                "bearer realm=https://a/b error=insufficient_scope",
            ),
            (r#"Bearer realm="unterminated"#, "bearer realm=unterminated"),
            (r#",, ,"#, ""),
            (r#"realm="no scheme""#, ""),
            (r#"Bearer realm="""#, "bearer realm="),
        ] {
            let got: Vec<String> = parse(header)
                .iter()
                .map(|c| {
                    let params = c.params.iter().map(|(k, v)| format!(" {k}={v}"));
                    std::iter::once(c.scheme.clone()).chain(params).collect()
                })
                .collect();
            assert_eq!(got.join("; "), want, "{header}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_header_makes_it_panic_or_hang(header in "[a-z=\", \\\\]{0,40}|\\PC{0,40}") {
            parse(&header);
        }
    }
}
