//! docker's `daemon.json`, as far as it is about registries: mirrors of Docker Hub, and registries that may be spoken to without
//! TLS. Of the latter only names are taken; a whole network is nothing that a name could be recognised by.

use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use url::Url;

use crate::DOCKER_HUB;
use crate::registries_conf::{Mirror, Pull, Rule};
use crate::transport::authority;

#[derive(Deserialize, Default)]
#[serde(rename_all = "kebab-case", default)]
struct File {
    registry_mirrors: Vec<String>,
    insecure_registries: Vec<String>,
}

/// The rules of the first of these files that there is; a daemon has one.
pub(crate) fn read(files: &[PathBuf]) -> Result<Vec<Rule>, String> {
    for file in files {
        match std::fs::read_to_string(file) {
            Ok(text) => return parse(&text, file).map_err(|why| format!("{}: {why}", file.display())),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied) => {}
            Err(error) => return Err(format!("cannot read {}: {error}", file.display())),
        }
    }
    Ok(Vec::new())
}

fn parse(text: &str, file: &Path) -> Result<Vec<Rule>, String> {
    if text.trim().is_empty() {
        return Ok(Vec::new());
    }
    let parsed: File = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let is_name = |name: &&String| !name.contains('/');
    let insecure: Vec<&String> = parsed.insecure_registries.iter().filter(is_name).collect();
    let mirror = |url: &String| {
        let parsed = Url::parse(url).ok().filter(|url| {
            matches!(url.scheme(), "http" | "https")
                && url.host_str().is_some()
                && url.path().trim_matches('/').is_empty()
        });
        let url = parsed.ok_or_else(|| format!("the mirror {url:?} is no URL of a host"))?;
        let location = authority(&url);
        let insecure = url.scheme() == "http" || insecure.contains(&&location);
        Ok::<_, String>(Mirror { location, insecure, pull: Pull::All })
    };
    let mirrors = parsed.registry_mirrors.iter().map(mirror).collect::<Result<Vec<_>, _>>()?;
    let rule = |name: &str, insecure: bool, mirrors: Vec<Mirror>| Rule {
        prefix: name.to_owned(),
        location: name.to_owned(),
        insecure,
        blocked: false,
        mirrors,
        file: file.to_owned(),
    };
    let mut rules: Vec<Rule> = insecure.iter().map(|name| rule(name, true, Vec::new())).collect();
    if !mirrors.is_empty() {
        rules.push(rule(DOCKER_HUB, false, mirrors));
    }
    Ok(rules)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mirrors_and_insecure_registries_become_rules() {
        let text = r#"{
            "registry-mirrors": ["https://mirror.example/", "http://plain.example:5000", "https://odd.example:5001"],
            "insecure-registries": ["plain.local:5000", "odd.example:5001", "10.0.0.0/8"],
            "log-driver": "json-file"
        }"#;
        let rules = parse(text, Path::new("/etc/docker/daemon.json")).unwrap();
        let insecure: Vec<&str> = rules.iter().filter(|rule| rule.insecure).map(|rule| rule.prefix.as_str()).collect();
        assert_eq!(insecure, ["plain.local:5000", "odd.example:5001"]);
        let hub = Rule::of(&rules, "docker.io", "library/debian").unwrap();
        let mirrors: Vec<_> = hub.mirrors.iter().map(|mirror| (mirror.location.as_str(), mirror.insecure)).collect();
        assert_eq!(mirrors, [("mirror.example", false), ("plain.example:5000", true), ("odd.example:5001", true)]);
        assert!(!hub.moves() && !hub.insecure);
        assert!(parse("", Path::new("x")).unwrap().is_empty() && parse("{}", Path::new("x")).unwrap().is_empty());
        for bad in ["{\"registry-mirrors\": [\"mirror.example\"]}", "{\"insecure-registries\": 1}", "{"] {
            assert!(parse(bad, Path::new("x")).is_err(), "{bad}");
        }
    }
}
