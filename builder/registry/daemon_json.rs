//! docker's `daemon.json`, as far as it is about registries: mirrors of Docker Hub, and registries that may be spoken to without
//! TLS. Of the latter only names are taken; a whole network is nothing that a name could be recognised by.

use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use url::Url;

use crate::reference::{DOCKER_HUB, is_docker_hub};
use crate::registries_conf::{Mirror, Pull, Rule};
use crate::transport::authority;

/// Of a file that is not there for us.
const ABSENT: [io::ErrorKind; 3] =
    [io::ErrorKind::NotFound, io::ErrorKind::NotADirectory, io::ErrorKind::PermissionDenied];

#[derive(Deserialize, Default)]
#[serde(rename_all = "kebab-case", default)]
struct File {
    registry_mirrors: Option<Vec<String>>,
    insecure_registries: Option<Vec<String>>,
}

/// The rules of the first of these files that there is; a daemon has one. What cannot be understood of it is told to `odd` and
/// passed over: it is another program's, which may not even be in use here.
pub(crate) fn read(files: &[PathBuf], odd: impl FnOnce(String)) -> Vec<Rule> {
    for file in files {
        let (rules, why) = match std::fs::read_to_string(file) {
            Ok(text) => parse(&text, file),
            Err(error) if ABSENT.contains(&error.kind()) => continue,
            Err(error) => (Vec::new(), Some(error.to_string())),
        };
        if let Some(why) = why {
            odd(format!("{}: {why}", file.display()));
        }
        return rules;
    }
    Vec::new()
}

/// The rules, and what is wrong with the rest of the file.
fn parse(text: &str, file: &Path) -> (Vec<Rule>, Option<String>) {
    if text.trim().is_empty() {
        return (Vec::new(), None);
    }
    let parsed = match serde_json::from_str::<Option<File>>(text) {
        Ok(parsed) => parsed.unwrap_or_default(),
        Err(error) => return (Vec::new(), Some(error.to_string())),
    };
    // docker.io has several names, of which images have one.
    let known = |name: String| if is_docker_hub(&name) { DOCKER_HUB.to_owned() } else { name };
    let insecure = parsed.insecure_registries.unwrap_or_default().into_iter().filter(|name| !name.contains('/'));
    let insecure: Vec<String> = insecure.map(known).collect();
    let mirror = |url: &String| {
        let parsed = Url::parse(url).ok().filter(|url| {
            matches!(url.scheme(), "http" | "https")
                && url.host_str().is_some()
                && url.path().trim_matches('/').is_empty()
        });
        let url = parsed.ok_or_else(|| format!("the mirror {url:?} is no URL of a host"))?;
        let location = authority(&url);
        let insecure = url.scheme() == "http" || insecure.contains(&location);
        Ok::<_, String>(Mirror { location, insecure, pull: Pull::All })
    };
    let (mut mirrors, mut odd) = (Vec::new(), None);
    for url in parsed.registry_mirrors.iter().flatten() {
        match mirror(url) {
            Ok(mirror) => mirrors.push(mirror),
            Err(why) => odd = odd.or(Some(why)),
        }
    }
    let rule = |name: &str, insecure: bool| Rule {
        prefix: name.to_owned(),
        location: name.to_owned(),
        insecure,
        blocked: false,
        mirrors: Vec::new(),
        file: file.to_owned(),
    };
    let mut rules: Vec<Rule> = insecure.iter().map(|name| rule(name, true)).collect();
    if !mirrors.is_empty() {
        rules.retain(|rule| rule.prefix != DOCKER_HUB);
        let is_insecure = insecure.iter().any(|name| name == DOCKER_HUB);
        rules.push(Rule { mirrors, ..rule(DOCKER_HUB, is_insecure) });
    }
    (rules, odd)
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
        let (rules, odd) = parse(text, Path::new("/etc/docker/daemon.json"));
        assert_eq!(odd, None);
        let insecure: Vec<&str> = rules.iter().filter(|rule| rule.insecure).map(|rule| rule.prefix.as_str()).collect();
        assert_eq!(insecure, ["plain.local:5000", "odd.example:5001"]);
        let hub = Rule::of(&rules, "docker.io", "library/debian").unwrap();
        let mirrors: Vec<_> = hub.mirrors.iter().map(|mirror| (mirror.location.as_str(), mirror.insecure)).collect();
        assert_eq!(mirrors, [("mirror.example", false), ("plain.example:5000", true), ("odd.example:5001", true)]);
        assert!(!hub.moves() && !hub.insecure);
        for nothing in ["", "{}", "null", r#"{"registry-mirrors": null, "insecure-registries": null}"#] {
            assert_eq!(parse(nothing, Path::new("x")), (Vec::new(), None), "{nothing}");
        }
    }

    #[test]
    fn what_is_odd_is_passed_over_and_told_once() {
        let dir = tempfile::tempdir().unwrap();
        let read = |text: &[u8]| {
            let file = dir.path().join("daemon.json");
            std::fs::write(&file, text).unwrap();
            let mut odd = None;
            (read(&[dir.path().join("missing"), file], |why| odd = Some(why)), odd)
        };
        for bad in [&b"{\"insecure-registries\": 1}"[..], b"{", b"[1]", b"\xff"] {
            let (rules, odd) = read(bad);
            assert!(rules.is_empty() && odd.is_some_and(|odd| odd.contains("daemon.json")), "{bad:?}");
        }
        let (rules, odd) = read(br#"{"registry-mirrors": ["mirror.example", "https://m.example", "x"]}"#);
        assert_eq!(rules[0].mirrors[0].location, "m.example");
        assert!(odd.unwrap().contains("\"mirror.example\""));
        // A directory in the file's place.
        let mut told = 0;
        assert!(super::read(&[dir.path().to_owned()], |_| told += 1).is_empty());
        assert_eq!(told, 1);
    }

    #[test]
    fn the_hub_may_be_insecure_and_have_mirrors() {
        let text = r#"{"registry-mirrors": ["https://m.example"], "insecure-registries": ["index.docker.io", "a"]}"#;
        let (rules, _) = parse(text, Path::new("x"));
        let hub = Rule::of(&rules, "docker.io", "library/debian").unwrap();
        assert!(hub.insecure && hub.mirrors.len() == 1 && rules.len() == 2);
    }
}
