//! Taking credentials out of what is published.

use frontend::lint::looks_secret;

const HIDDEN: &str = "***";

/// Knows the secrets of a build, to find them wherever they stand.
#[derive(Clone, Default)]
pub(crate) struct Redactor {
    secrets: Vec<String>,
}

impl std::fmt::Debug for Redactor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Redactor({} secrets)", self.secrets.len())
    }
}

impl Redactor {
    /// For these secrets; what is shorter than a secret would be found everywhere.
    pub(crate) fn new(secrets: Vec<Vec<u8>>) -> Self {
        const SHORTEST: usize = 4;
        let text = secrets.into_iter().filter_map(|secret| String::from_utf8(secret).ok());
        let text = text.map(|secret| secret.trim_end_matches(['\r', '\n']).to_owned());
        Self { secrets: text.filter(|secret| secret.len() >= SHORTEST).collect() }
    }

    /// The value of an argument, as it may be known. `name` may have BuildKit's prefix.
    pub(crate) fn argument(&self, name: &str, value: &str) -> String {
        let name = name.rsplit(':').next().unwrap_or(name);
        if looks_secret(name) {
            return HIDDEN.to_owned();
        }
        // A proxy may stand there without a scheme, and with a password that no URL could have.
        let is_proxy = name.to_ascii_lowercase().ends_with("_proxy");
        self.text(value.rsplit_once('@').filter(|_| is_proxy).map_or(value, |(_, host)| host))
    }

    /// A text without what is secret of it.
    pub(crate) fn text(&self, text: &str) -> String {
        let mut text = without_credentials(text);
        for secret in &self.secrets {
            text = text.replace(secret.as_str(), HIDDEN);
        }
        text
    }
}

/// Takes user, password and signatures out of all URLs of a text.
pub(crate) fn without_credentials(text: &str) -> String {
    let mut rest = text;
    let mut clean = String::with_capacity(text.len());
    while let Some(start) = rest.find("://") {
        let (before, after) = rest.split_at(start + 3);
        clean.push_str(before);
        let end = after.find(|c: char| c.is_whitespace() || "\"'<>`".contains(c)).unwrap_or(after.len());
        let (url, others) = after.split_at(end);
        let authority = url.find(['/', '?', '#']).unwrap_or(url.len());
        let (authority, path) = url.split_at(authority);
        clean.push_str(authority.rsplit_once('@').map_or(authority, |(_, host)| host));
        clean.push_str(&without_signature(path));
        rest = others;
    }
    clean + rest
}

/// A path with its query, of which nothing that opens doors is left.
fn without_signature(path: &str) -> String {
    let (before, fragment) = path.split_once('#').map_or((path, None), |(before, fragment)| (before, Some(fragment)));
    let Some((before, query)) = before.split_once('?') else { return path.to_owned() };
    let pairs = query.split('&').map(|pair| match pair.split_once('=') {
        Some((name, _)) if opens_doors(name) => format!("{name}={HIDDEN}"),
        _ => pair.to_owned(),
    });
    let query = pairs.collect::<Vec<_>>().join("&");
    match fragment {
        Some(fragment) => format!("{before}?{query}#{fragment}"),
        None => format!("{before}?{query}"),
    }
}

fn opens_doors(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    let whole = ["sig", "key", "code", "jwt"].contains(&name.as_str());
    whole
        || ["token", "secret", "passw", "signature", "credential", "apikey", "api_key", "auth"]
            .iter()
            .any(|part| name.contains(part))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_lose_what_opens_doors() {
        for (text, want) in [
            ("https://user:pass@host/a.git#main:dir", "https://host/a.git#main:dir"),
            ("https://token@host", "https://host"),
            ("https://a@b@host/x", "https://host/x"),
            ("https://host/x?a=1&access_token=t&b=2#f", "https://host/x?a=1&access_token=***&b=2#f"),
            (
                "https://host/x?X-Amz-Signature=s&X-Amz-Credential=c",
                "https://host/x?X-Amz-Signature=***&X-Amz-Credential=***",
            ),
            ("http://u:p@one https://v:q@two/", "http://one https://two/"),
            ("git@host:a/b.git", "git@host:a/b.git"),
            ("no url @ all", "no url @ all"),
            ("://", "://"),
        ] {
            assert_eq!(without_credentials(text), want);
        }
    }

    #[test]
    fn proxies_lose_user_and_password_however_they_are_written() {
        let redactor = Redactor::default();
        for (name, value, want) in [
            ("build-arg:HTTP_PROXY", "user:pass@proxy:3128", "proxy:3128"),
            ("build-arg:https_proxy", "http://user:pa/ss@proxy:3128/", "proxy:3128/"),
            ("All_Proxy", "socks5://u:a@b://c@[::1]:1", "[::1]:1"),
            ("http_proxy", "http://proxy:3128", "http://proxy:3128"),
            ("NO_PROXY", "localhost,.example", "localhost,.example"),
            ("build-arg:MAIL", "me@example.com", "me@example.com"),
        ] {
            assert_eq!(redactor.argument(name, value), want, "{name}");
        }
    }
}
