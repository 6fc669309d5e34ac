//! Which paths of a local source a build can look at, so that nothing else is walked.

use graph::{FileAction, Graph, MountKind, NodeId, Op};

use crate::worker::wildcard;

/// Patterns of paths, by component.
#[derive(Debug, Default, Clone)]
pub struct Wanted(Vec<Vec<String>>);

/// Patterns that following links may lead to.
const MAX_PATTERNS: usize = 10_000;

/// How a directory walk goes on at a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// The path and all below it.
    All,
    /// Something below may be wanted.
    Below,
    /// Nothing.
    None,
}

impl Wanted {
    /// What the users of `source` read of it.
    #[must_use]
    pub fn of(graph: &Graph<Op>, source: NodeId) -> Self {
        let mut wanted = Self::default();
        // What no step reads is there as the result, or as a stage that is looked at: all of it.
        if graph.users(source).is_empty() {
            wanted.add("/");
        }
        for user in graph.users(source) {
            let node = graph.node(user);
            let reads = |input: u32| node.inputs.get(input as usize) == Some(&source);
            match &node.op {
                Op::File(file) => {
                    for action in &file.actions {
                        if let FileAction::Copy(copy) = action
                            && reads(copy.from)
                        {
                            wanted.add(&copy.src);
                        }
                    }
                    if file.base.is_some_and(reads) {
                        wanted.add("/");
                    }
                }
                Op::Exec(exec) => {
                    for mount in &exec.mounts {
                        let (MountKind::Bind(bind) | MountKind::Cache(graph::CacheMount { from: bind, .. })) =
                            &mount.kind
                        else {
                            continue;
                        };
                        if bind.input.is_some_and(reads) {
                            wanted.add_literal(bind.selector.as_bytes());
                        }
                    }
                    if exec.root.is_some_and(reads) {
                        wanted.add("/");
                    }
                }
                Op::Source(_) | Op::Merge(_) | Op::Diff(_) => wanted.add("/"),
            }
        }
        wanted
    }

    fn add(&mut self, pattern: &str) {
        // The pivot of --parents and dots are no components.
        self.0.push(pattern.split('/').filter(|part| !part.is_empty() && *part != ".").map(str::to_owned).collect());
        // A backslash before what is no wildcard may be part of the name.
        if pattern.contains('\\') {
            self.add_literal(pattern.as_bytes());
        }
    }

    /// Adds one path as it is.
    pub fn add_literal(&mut self, path: &[u8]) {
        let escape = |part: &str| part.chars().flat_map(|c| ['\\', c]).collect::<String>();
        let text = String::from_utf8_lossy(path);
        self.0.push(text.split('/').filter(|part| !part.is_empty()).map(escape).collect());
    }

    /// At `link` stands a symbolic link to `target`: whatever is wanted at or below the one is wanted of the other.
    /// Whether that is anything new. Links that lead in circles end at a bound.
    pub fn follow(&mut self, link: &[u8], target: &[u8]) -> bool {
        let names: Vec<&[u8]> = link.split(|byte| *byte == b'/').collect();
        let mut led = Self::default();
        led.add_literal(target);
        let target = led.0.pop().unwrap_or_default();
        let through = self.0.iter().filter(|pattern| {
            pattern.len() >= names.len()
                && pattern.iter().zip(&names).all(|(part, name)| wildcard::matches(part, name) == Some(true))
        });
        let mut new: Vec<Vec<String>> =
            through.map(|pattern| target.iter().chain(&pattern[names.len()..]).cloned().collect()).collect();
        new.retain(|pattern| !self.0.contains(pattern));
        new.truncate(MAX_PATTERNS.saturating_sub(self.0.len()));
        let any = !new.is_empty();
        self.0.append(&mut new);
        any
    }

    /// Whether nothing is read.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How the walk goes on at `path`, relative to the root, which is the empty path.
    #[must_use]
    pub fn reach(&self, path: &[u8]) -> Reach {
        let names: Vec<&[u8]> = path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()).collect();
        let reaches = self.0.iter().map(|pattern| reach_of(pattern, &names));
        reaches.min_by_key(|reach| *reach as u8).unwrap_or(Reach::None)
    }
}

fn reach_of(pattern: &[String], names: &[&[u8]]) -> Reach {
    for (position, name) in names.iter().enumerate() {
        let Some(part) = pattern.get(position) else { return Reach::All };
        if part == "**" {
            return Reach::All;
        }
        if part == ".." {
            return Reach::Below;
        }
        if wildcard::matches(part, name) != Some(true) {
            return Reach::None;
        }
    }
    if names.len() >= pattern.len() { Reach::All } else { Reach::Below }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_wanted_is_walked() {
        let mut wanted = Wanted::default();
        wanted.add("/src/*.c");
        wanted.add("/docs/./guide");
        wanted.add_literal(b"a*b");
        for (path, reach) in [
            ("src", Reach::Below),
            ("src/main.c", Reach::All),
            ("src/main.c/below", Reach::All),
            ("src/main.h", Reach::None),
            ("docs", Reach::Below),
            ("docs/guide/a/b", Reach::All),
            ("other", Reach::None),
            ("a*b", Reach::All),
            ("axb", Reach::None),
        ] {
            assert_eq!(wanted.reach(path.as_bytes()), reach, "{path}");
        }
        assert_eq!(wanted.reach(b""), Reach::Below);
        wanted.add("/");
        assert_eq!(wanted.reach(b"other"), Reach::All);
        assert_eq!(wanted.reach(b""), Reach::All);
    }
}
