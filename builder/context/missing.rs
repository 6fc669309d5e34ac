//! Why a file that a Dockerfile names is not there: a slip in one part of its path, or a symbolic link.

use std::path::{Path, PathBuf};

use snapshotter::layer::{EntryKind, Tree};

use super::Ignore;
use crate::worker::wildcard;

/// Files, as far as an explanation needs them. Paths are relative.
pub(crate) trait View {
    /// What is at `path`.
    fn kind(&self, path: &str) -> Option<Kind>;
    /// What is in the directory at `path`.
    fn names(&self, path: &str) -> Vec<String>;
}

/// What is somewhere.
pub(crate) enum Kind {
    /// A symbolic link, and where it leads.
    Link(String),
    /// Anything else.
    Other,
}

/// How many slips make another name of it.
const NEAR: usize = 2;

/// So many links are followed before it is a circle.
const MAX_LINKS: usize = 40;

/// What to do about `path`, which is missing.
pub(crate) fn explain(view: &dyn View, path: &str) -> Option<String> {
    let mut above = String::new();
    let mut rest = path.trim_matches('/').to_owned();
    let mut links = Vec::new();
    while !rest.is_empty() {
        let (name, below) = rest.split_once('/').unwrap_or((&rest, ""));
        let here = under(&above, name);
        match view.kind(&here) {
            Some(Kind::Link(target)) => {
                let led = lead(&above, &target);
                if !led.is_empty() && view.kind(&led).is_none() {
                    return Some(format!("{here} is a symbolic link to {target}, which is not there"));
                }
                links.push(here);
                if links.len() > MAX_LINKS {
                    return None;
                }
                (above, rest) = (String::new(), under(&led, below));
            }
            Some(Kind::Other) => (above, rest) = (here, below.to_owned()),
            None if wildcard::is_pattern(name) => return None,
            None => return similar(view, &above, name, below).map(|found| format!("did you mean {found}?")),
        }
    }
    // All of it is there, for somebody who follows links.
    links.first().map(|link| format!("{link} is a symbolic link, and is not followed here: name {above} instead"))
}

/// The path with another name in place of `name`: one that is spelled much the same and has the rest below it.
fn similar(view: &dyn View, above: &str, name: &str, below: &str) -> Option<String> {
    let wanted = name.to_lowercase();
    let near = view.names(above).into_iter().filter_map(|found| {
        let distance = strsim::damerau_levenshtein(&found.to_lowercase(), &wanted);
        // A name that is replaced as a whole is another one.
        let near = distance <= NEAR && distance < wanted.chars().count();
        let path = under(&under(above, &found), below);
        (near && (below.is_empty() || view.kind(&path).is_some())).then_some((distance, path))
    });
    near.min().map(|(_, path)| path)
}

/// Where a link in the directory `above` leads, inside the root.
fn lead(above: &str, target: &str) -> String {
    let mut path: Vec<&str> = if target.starts_with('/') { Vec::new() } else { parts(above).collect() };
    for part in parts(target) {
        if part == ".." {
            path.pop();
        } else {
            path.push(part);
        }
    }
    path.join("/")
}

fn parts(path: &str) -> impl Iterator<Item = &str> {
    path.split('/').filter(|part| !matches!(*part, "" | "."))
}

fn under(directory: &str, name: &str) -> String {
    [directory, name].into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("/")
}

/// A directory of the caller's, without what the rules leave out.
pub(super) struct Directory<'a> {
    pub(super) root: &'a Path,
    pub(super) ignore: &'a Ignore,
}

impl Directory<'_> {
    fn place(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }
}

impl View for Directory<'_> {
    fn kind(&self, path: &str) -> Option<Kind> {
        let place = self.place(path);
        let is_link = place.symlink_metadata().ok()?.is_symlink();
        Some(match is_link.then(|| place.read_link()) {
            Some(Ok(target)) => Kind::Link(target.to_string_lossy().into_owned()),
            _ => Kind::Other,
        })
    }

    fn names(&self, path: &str) -> Vec<String> {
        let entries = std::fs::read_dir(self.place(path)).into_iter().flatten();
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        names.filter(|name| self.ignore.why_ignored(&under(path, name)).is_none()).collect()
    }
}

impl View for Tree {
    fn kind(&self, path: &str) -> Option<Kind> {
        Some(match &self.resolve(path.as_bytes(), false).ok()?.found?.entry.kind {
            EntryKind::Symlink { target } => Kind::Link(String::from_utf8_lossy(target).into_owned()),
            _ => Kind::Other,
        })
    }

    fn names(&self, path: &str) -> Vec<String> {
        let name = |path: &[u8]| String::from_utf8_lossy(snapshotter::layer::split(path).1).into_owned();
        self.children(path.as_bytes()).into_iter().map(|found| name(&found.entry.path)).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn slips_and_links() {
        let directory = tempfile::tempdir().expect("directory");
        let at = |path: &str| directory.path().join(path);
        fs::create_dir_all(at("src/deep")).expect("directory");
        for path in ["src/main.go", "src/deep/x", "Makefile", "ab", "gone.txt"] {
            fs::write(at(path), "").expect("file");
        }
        for (link, target) in [
            ("dangling", "nowhere"),
            ("out", "../../etc"),
            ("code", "src"),
            ("src/up", "../Makefile"),
            ("abs", "/src"),
            ("round", "round"),
        ] {
            symlink(target, at(link)).expect("link");
        }
        let ignore = Ignore::parse(".dockerignore", b"gone.txt").expect("rules");
        let view = Directory { root: directory.path(), ignore: &ignore };
        let link = |link: &str, path: &str| {
            Some(format!("{link} is a symbolic link, and is not followed here: name {path} instead"))
        };
        for (path, want) in [
            ("/makefile", Some("did you mean Makefile?".to_owned())),
            ("/src/mian.go", Some("did you mean src/main.go?".to_owned())),
            // The slip is in a directory's name; what has nothing of that name in it is not meant.
            ("/scr/main.go", Some("did you mean src/main.go?".to_owned())),
            ("/scr/main.c", None),
            ("/src/deeep/x", Some("did you mean src/deep/x?".to_owned())),
            ("/xy", None),
            // What is left out is no help.
            ("/gone.text", None),
            ("/dangling", Some("dangling is a symbolic link to nowhere, which is not there".to_owned())),
            ("/out/passwd", Some("out is a symbolic link to ../../etc, which is not there".to_owned())),
            ("/code/main.go", link("code", "src/main.go")),
            ("/code/mian.go", Some("did you mean src/main.go?".to_owned())),
            ("/code/*.c", None),
            ("/src/up", link("src/up", "Makefile")),
            ("/abs/deep/x", link("abs", "src/deep/x")),
            ("/round/x", None),
            ("/", None),
        ] {
            assert_eq!(explain(&view, path), want, "{path}");
        }
    }
}
