//! Names of images as Docker reads them: `debian` is `docker.io/library/debian:latest`.
//!
//! The frontend only needs to tell a name from a mistake and to print it in full; looking it up is the builder's part.

const HUB: &str = "docker.io";

/// The full form of a reference: host, repository, tag and digest; `latest` when there is neither tag nor digest.
pub(crate) fn normalise(reference: &str) -> Result<String, String> {
    if reference.len() == 64 && reference.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
        return Err("a repository name cannot be 64 hexadecimal digits".to_owned());
    }
    let (host, rest) = split_host(reference);
    let (rest, digest) = match rest.split_once('@') {
        Some((rest, digest)) => (rest, Some(digest)),
        None => (rest.as_str(), None),
    };
    let (path, tag) = match rest.split_once(':') {
        Some((path, tag)) => (path, Some(tag)),
        None => (rest, None),
    };
    if path.chars().any(char::is_uppercase) {
        return Err(format!("repository name ({path}) must be lowercase"));
    }
    let invalid = || "invalid reference format".to_owned();
    if !is_host(&host) || path.split('/').any(|part| !is_path_component(part)) || host.len() + path.len() > 254 {
        return Err(invalid());
    }
    if !tag.is_none_or(is_tag) || !digest.is_none_or(is_digest) {
        return Err(invalid());
    }
    let mut full = format!("{host}/{path}");
    if let Some(tag) = tag {
        full.push(':');
        full.push_str(tag);
    } else if digest.is_none() {
        full.push_str(":latest");
    }
    if let Some(digest) = digest {
        full.push('@');
        full.push_str(digest);
    }
    Ok(full)
}

/// The short form in which named contexts are looked up: without Docker Hub's prefix and without `:latest`.
pub(crate) fn familiar(full: &str) -> &str {
    let name = full
        .strip_prefix("docker.io/library/")
        .filter(|name| !name.contains('/'))
        .unwrap_or_else(|| full.strip_prefix("docker.io/").unwrap_or(full));
    name.strip_suffix(":latest").unwrap_or(name)
}

fn split_host(reference: &str) -> (String, String) {
    let hub = |rest: &str| {
        let library = if rest.contains('/') { "" } else { "library/" };
        (HUB.to_owned(), format!("{library}{rest}"))
    };
    let Some((first, rest)) = reference.split_once('/') else { return hub(reference) };
    match first {
        "index.docker.io" | HUB => hub(rest),
        _ if first == "localhost" || first.contains(['.', ':']) || first.chars().any(char::is_uppercase) => {
            (first.to_owned(), rest.to_owned())
        }
        _ => hub(reference),
    }
}

fn is_host(host: &str) -> bool {
    let (name, port) = match host.rsplit_once(':') {
        Some((name, port)) if !port.ends_with(']') => (name, Some(port)),
        _ => (host, None),
    };
    let label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    let name_ok = match name.strip_prefix('[').and_then(|name| name.strip_suffix(']')) {
        // Docker's grammar takes any digits and colons, and any number for a port; nothing could be asked there.
        Some(v6) => v6.parse::<std::net::Ipv6Addr>().is_ok(),
        None => name.split('.').all(label),
    };
    let is_port = |port: &str| port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok();
    name_ok && port.is_none_or(is_port)
}

/// Lower-case words and numbers, joined by one `.`, one or two `_`, or any number of `-`.
fn is_path_component(part: &str) -> bool {
    let bytes = part.as_bytes();
    let word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    if !bytes.first().copied().is_some_and(word) || !bytes.last().copied().is_some_and(word) {
        return false;
    }
    part.split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
        .all(|joint| matches!(joint, "" | "." | "_" | "__") || joint.bytes().all(|b| b == b'-'))
}

fn is_tag(tag: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let bytes = tag.as_bytes();
    bytes.len() <= 128
        && bytes.first().copied().is_some_and(word)
        && bytes.iter().all(|&b| word(b) || matches!(b, b'.' | b'-'))
}

fn is_digest(digest: &str) -> bool {
    digest.split_once(':').is_some_and(|(algorithm, hex)| {
        algorithm.bytes().next().is_some_and(|b| b.is_ascii_alphabetic())
            && algorithm.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'+' | b'.'))
            && match algorithm {
                "sha256" => hex.len() == 64,
                "sha384" => hex.len() == 96,
                "sha512" => hex.len() == 128,
                _ => false,
            }
            && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_get_their_full_form() {
        let digest = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
        for (short, full) in [
            ("debian", "docker.io/library/debian:latest"),
            ("debian:bookworm-slim", "docker.io/library/debian:bookworm-slim"),
            ("user/app", "docker.io/user/app:latest"),
            ("index.docker.io/library/debian", "docker.io/library/debian:latest"),
            ("docker.io/debian", "docker.io/library/debian:latest"),
            ("localhost/app:1", "localhost/app:1"),
            ("localhost:5000/a/b__c", "localhost:5000/a/b__c:latest"),
            ("[::1]:5000/a", "[::1]:5000/a:latest"),
            ("[:1]:8/a", ""),
            ("localhost:65536/a", ""),
            ("ghcr.io/Org/x", ""),
            ("Debian", ""),
            ("a//b", ""),
            ("a:", ""),
            ("a:-x", ""),
            ("a___b", ""),
            ("-a", ""),
            ("", ""),
            ("a b", ""),
            ("a@sha256:12", ""),
            ("a@sha256:0123456789abcdef0123456789abcdef", ""),
            ("a@sha256:0123456789ABCDEF0123456789abcdef0123456789abcdef0123456789abcdef", ""),
        ] {
            assert_eq!(normalise(short).unwrap_or_default(), full, "{short}");
        }
        assert_eq!(normalise(&format!("a:1@{digest}")).unwrap(), format!("docker.io/library/a:1@{digest}"));
        assert_eq!(familiar("docker.io/library/debian:latest"), "debian");
        assert_eq!(familiar("docker.io/user/app:1"), "user/app:1");
        assert_eq!(familiar("ghcr.io/a/b:latest"), "ghcr.io/a/b");
    }
}
