//! Paths inside a root file system: always absolute, cleaned by their letters alone.

/// The path beginning with `/`, without `.`, `..` and repeated slashes.
pub(crate) fn clean(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

/// `path` as seen from the directory `dir`.
pub(crate) fn join(dir: &str, path: &str) -> String {
    if path.starts_with('/') { clean(path) } else { clean(&format!("{dir}/{path}")) }
}

/// A destination: joined to `dir`; a trailing slash stays where one (or `/.`, or `.`) was written, as it says "a directory".
pub(crate) fn destination(dir: &str, path: &str) -> String {
    let mut joined = join(dir, path);
    let directory = matches!(path, "" | ".") || path.ends_with('/') || path.ends_with("/.");
    if directory && !joined.ends_with('/') {
        joined.push('/');
    }
    joined
}

/// The last element; `None` for the root.
pub(crate) fn base_name(path: &str) -> Option<&str> {
    path.trim_end_matches('/').rsplit('/').next().filter(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_stay_below_the_root() {
        for (dir, path, want) in [
            ("/", "a", "/a"),
            ("/w", "a/../b", "/w/b"),
            ("/w", "../../..", "/"),
            ("/w", "/abs//x/.", "/abs/x"),
            ("", "x", "/x"),
        ] {
            assert_eq!(join(dir, path), want);
        }
        for (path, want) in
            [(".", "/w/"), ("./", "/w/"), ("a", "/w/a"), ("a/", "/w/a/"), ("a/.", "/w/a/"), ("/", "/"), ("..", "/")]
        {
            assert_eq!(destination("/w", path), want, "{path}");
        }
    }
}
