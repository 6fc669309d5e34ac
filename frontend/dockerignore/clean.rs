//! The shortest form of a path, found without looking at any file, as Go's `path/filepath` defines it.

/// Removes `.`, doubled slashes, and `..` together with the name in front of it. An empty path becomes `.`.
pub(super) fn clean(path: &str) -> String {
    let rooted = path.starts_with('/');
    let mut names: Vec<&str> = Vec::new();
    for name in path.split('/') {
        match name {
            "" | "." => {}
            ".." => match names.last() {
                Some(last) if *last != ".." => {
                    names.pop();
                }
                // There is nothing above the root.
                _ if rooted => {}
                _ => names.push(".."),
            },
            _ => names.push(name),
        }
    }
    match (rooted, names.is_empty()) {
        (true, _) => format!("/{}", names.join("/")),
        (false, true) => ".".to_owned(),
        (false, false) => names.join("/"),
    }
}

#[cfg(test)]
mod tests {
    use super::clean;

    #[test]
    fn paths() {
        for (path, expected) in [
            ("", "."),
            (".", "."),
            ("a", "a"),
            ("a/", "a"),
            ("./a//b/./c", "a/b/c"),
            ("a/../b", "b"),
            ("a/..", "."),
            ("../a", "../a"),
            ("a/../../b", "../b"),
            ("../../a", "../../a"),
            ("/", "/"),
            ("//a/", "/a"),
            ("/../a", "/a"),
            ("/a/..", "/"),
            ("!/a", "!/a"),
            ("!../a", "!../a"),
            ("!./a", "!./a"),
        ] {
            assert_eq!(clean(path), expected, "{path}");
        }
    }
}
