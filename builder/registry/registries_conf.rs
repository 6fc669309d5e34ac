//! `registries.conf`, as podman, skopeo and buildah read it (containers-registries.conf(5)): mirrors, other locations and
//! blocked registries by prefix of the image's name. Short names and search lists are not taken: an image's name means
//! here what it means to docker.

use std::path::{Path, PathBuf};

use serde::Deserialize;

/// What is said of names that begin with `prefix`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rule {
    /// `host[/path]`, or `*.domain`.
    pub(crate) prefix: String,
    /// What stands in the prefix's place.
    pub(crate) location: String,
    pub(crate) insecure: bool,
    pub(crate) blocked: bool,
    pub(crate) mirrors: Vec<Mirror>,
    /// The file that says it.
    pub(crate) file: PathBuf,
}

/// Asked before the location.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mirror {
    pub(crate) location: String,
    pub(crate) insecure: bool,
    pub(crate) pull: Pull,
}

/// For which references a mirror is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Pull {
    /// For all.
    #[default]
    #[serde(alias = "")]
    All,
    /// For those with a digest.
    DigestOnly,
    /// For those with a tag.
    TagOnly,
}

#[derive(Deserialize)]
struct File {
    #[serde(default)]
    registry: Vec<RegistryEntry>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct RegistryEntry {
    #[serde(default)]
    prefix: String,
    #[serde(default)]
    location: String,
    #[serde(default)]
    insecure: bool,
    #[serde(default)]
    blocked: bool,
    #[serde(default)]
    mirror_by_digest_only: bool,
    #[serde(default)]
    mirror: Vec<MirrorEntry>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct MirrorEntry {
    location: String,
    #[serde(default)]
    insecure: bool,
    pull_from_mirror: Option<Pull>,
}

/// Reads files and directories of drop-ins in this order; what a later one says of a prefix counts. Missing ones say nothing.
pub(crate) fn read(places: &[PathBuf]) -> Result<Vec<Rule>, String> {
    let mut rules: Vec<Rule> = Vec::new();
    for place in places {
        for file in files(place)? {
            let text = match std::fs::read_to_string(&file) {
                Ok(text) => text,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                Err(error) => return Err(format!("cannot read {}: {error}", file.display())),
            };
            for rule in parse(&text, &file).map_err(|why| format!("{}: {why}", file.display()))? {
                rules.retain(|other| other.prefix != rule.prefix);
                rules.push(rule);
            }
        }
    }
    Ok(rules)
}

fn files(place: &Path) -> Result<Vec<PathBuf>, String> {
    if !place.is_dir() {
        return Ok(vec![place.to_owned()]);
    }
    let entries = std::fs::read_dir(place).map_err(|error| format!("cannot read {}: {error}", place.display()))?;
    let mut files: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    files.retain(|file| file.extension().is_some_and(|extension| extension == "conf"));
    files.sort();
    Ok(files)
}

fn parse(text: &str, file: &Path) -> Result<Vec<Rule>, String> {
    let parsed: File = toml::from_str(text).map_err(|error| error.message().to_owned())?;
    let rule = |entry: RegistryEntry| {
        let prefix = if entry.prefix.is_empty() { entry.location.clone() } else { entry.prefix };
        if prefix.is_empty() {
            return Err("a [[registry]] has neither prefix nor location".to_owned());
        }
        let location = if entry.location.is_empty() { prefix.clone() } else { entry.location };
        let by_digest_only = entry.mirror_by_digest_only;
        let mirror = |mirror: MirrorEntry| {
            let default = if by_digest_only { Pull::DigestOnly } else { Pull::All };
            let pull = mirror.pull_from_mirror.unwrap_or(default);
            Mirror { location: trimmed(&mirror.location), insecure: mirror.insecure, pull }
        };
        Ok(Rule {
            prefix: trimmed(&prefix),
            location: trimmed(&location),
            insecure: entry.insecure,
            blocked: entry.blocked,
            mirrors: entry.mirror.into_iter().map(mirror).collect(),
            file: file.to_owned(),
        })
    };
    parsed.registry.into_iter().map(rule).collect()
}

/// As the format's own library: a scheme is no part of a location, and no slash ends one.
fn trimmed(location: &str) -> String {
    let location = location.strip_prefix("https://").or_else(|| location.strip_prefix("http://")).unwrap_or(location);
    location.trim_end_matches('/').to_owned()
}

impl Rule {
    /// The rule for a repository: the one with the longest prefix.
    pub(crate) fn of<'a>(rules: &'a [Self], registry: &str, path: &str) -> Option<&'a Self> {
        let rules = rules.iter().filter(|rule| rule.matched(registry, path).is_some());
        rules.max_by_key(|rule| rule.prefix.len())
    }

    /// The part of the repository's path that its prefix stands for; `None`: the rule is about others.
    pub(crate) fn matched(&self, registry: &str, path: &str) -> Option<String> {
        if let Some(domain) = self.prefix.strip_prefix('*') {
            // `*.domain` is for hosts below the domain, whatever the path.
            return (domain.starts_with('.') && registry.ends_with(domain)).then(String::new);
        }
        let (host, prefix) = self.prefix.split_once('/').unwrap_or((&self.prefix, ""));
        let host_fits = host == registry || (registry == crate::DOCKER_HUB && crate::reference::is_docker_hub(host));
        let path_fits =
            prefix.is_empty() || path == prefix || path.strip_prefix(prefix).is_some_and(|rest| rest.starts_with('/'));
        (host_fits && path_fits).then(|| prefix.to_owned())
    }

    /// Whether the location is the very same place, for a rule that only adds mirrors.
    pub(crate) fn moves(&self) -> bool {
        self.location != self.prefix && !self.prefix.starts_with('*')
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_prefix_counts() {
        let text = r#"
            unqualified-search-registries = ["a.example"]
            short-name-mode = "permissive"
            [aliases]
            "x" = "y/z"
            [[registry]]
            location = "docker.io"
            [[registry.mirror]]
            location = "mirror.local:5000/hub/"
            insecure = true
            [[registry]]
            prefix = "docker.io/team"
            location = "https://internal.example/team-images"
            mirror-by-digest-only = true
            [[registry.mirror]]
            location = "m1"
            [[registry.mirror]]
            location = "m2"
            pull-from-mirror = "tag-only"
            [[registry]]
            prefix = "*.evil.example"
            blocked = true
        "#;
        let rules = parse(text, Path::new("/etc/r.conf")).unwrap();
        let of = |registry, path| Rule::of(&rules, registry, path);
        let hub = of("docker.io", "library/debian").unwrap();
        assert_eq!((hub.moves(), hub.mirrors[0].location.as_str()), (false, "mirror.local:5000/hub"));
        let team = of("docker.io", "team/app").unwrap();
        assert_eq!(team.location, "internal.example/team-images");
        assert!(team.moves() && team.matched("docker.io", "team/app").as_deref() == Some("team"));
        assert_eq!((team.mirrors[0].pull, team.mirrors[1].pull), (Pull::DigestOnly, Pull::TagOnly));
        assert_eq!(of("docker.io", "teammate/app").unwrap().location, "docker.io");
        assert!(of("a.b.evil.example", "x").unwrap().blocked);
        assert!(of("evil.example", "x").is_none() && of("quay.io", "x").is_none());
        for bad in ["[[registry]]\n", "[[registry]]\nlocation = 1", "[[registry]]\nprefix='a'\n[[registry.mirror]]"] {
            assert!(parse(bad, Path::new("x")).is_err(), "{bad}");
        }
    }

    #[test]
    fn later_files_replace_what_earlier_ones_say_of_a_prefix() {
        let dir = tempfile::tempdir().unwrap();
        let main = dir.path().join("registries.conf");
        let drop_ins = dir.path().join("registries.conf.d");
        std::fs::create_dir(&drop_ins).unwrap();
        std::fs::write(&main, "[[registry]]\nlocation='a'\ninsecure=true\n[[registry]]\nlocation='b'\n").unwrap();
        std::fs::write(drop_ins.join("2.conf"), "[[registry]]\nlocation='a'\n").unwrap();
        std::fs::write(drop_ins.join("1.conf"), "[[registry]]\nlocation='a'\nblocked=true\n").unwrap();
        std::fs::write(drop_ins.join("ignored"), "nonsense").unwrap();
        let rules = read(&[main, drop_ins, dir.path().join("missing.conf")]).unwrap();
        let a = Rule::of(&rules, "a", "x").unwrap();
        assert_eq!((rules.len(), a.insecure, a.blocked), (2, false, false));
    }
}
