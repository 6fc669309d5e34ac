//! Proxies that the Docker client's configuration names for builds: `proxies` in its `config.json`
//! (<https://docs.docker.com/engine/cli/proxy/>).

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;

use serde::Deserialize;

/// A file that is larger is none that a person wrote.
const MOST: u64 = 16 << 20;

#[derive(Deserialize)]
struct Config {
    #[serde(default)]
    proxies: HashMap<String, Proxies>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Proxies {
    http_proxy: Option<String>,
    https_proxy: Option<String>,
    ftp_proxy: Option<String>,
    no_proxy: Option<String>,
    all_proxy: Option<String>,
}

/// Build arguments, each in upper and lower case: those for the engine that `DOCKER_HOST` names, or the default ones. Who has no
/// such file, or one that cannot be read, has none.
pub(crate) fn of_docker_client(var: impl Fn(&str) -> Option<String>) -> Vec<(String, String)> {
    read(&var).unwrap_or_default()
}

fn read(var: impl Fn(&str) -> Option<String>) -> Option<Vec<(String, String)>> {
    let file = File::open(registry::docker_directory(&var)?.join("config.json")).ok()?;
    let mut text = String::new();
    file.take(MOST).read_to_string(&mut text).ok()?;
    let mut config: Config = serde_json::from_str(&text).ok()?;
    let host = var("DOCKER_HOST").filter(|host| !host.is_empty());
    let own = host.and_then(|host| config.proxies.remove(&host));
    let chosen = own.or_else(|| config.proxies.remove("default"))?;
    let named = [
        ("HTTP_PROXY", chosen.http_proxy),
        ("HTTPS_PROXY", chosen.https_proxy),
        ("FTP_PROXY", chosen.ftp_proxy),
        ("NO_PROXY", chosen.no_proxy),
        ("ALL_PROXY", chosen.all_proxy),
    ];
    let set = named.into_iter().filter_map(|(name, value)| Some((name, value.filter(|value| !value.is_empty())?)));
    Some(set.flat_map(|(name, value)| [(name.to_owned(), value.clone()), (name.to_lowercase(), value)]).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_engines_own_or_the_default_ones() {
        let directory = tempfile::tempdir().unwrap();
        let of = |text: &str, host: Option<&str>| {
            std::fs::write(directory.path().join("config.json"), text).unwrap();
            of_docker_client(|name| match name {
                "DOCKER_CONFIG" => Some(directory.path().display().to_string()),
                "DOCKER_HOST" => host.map(str::to_owned),
                _ => None,
            })
        };
        let both = |name: &str, value: &str| {
            [(name.to_owned(), value.to_owned()), (name.to_lowercase(), value.to_owned())].to_vec()
        };
        let text = r#"{ "auths": {}, "proxies": {
            "default": { "httpProxy": "http://one:1", "noProxy": "", "unknown": 1 },
            "tcp://engine:2375": { "allProxy": "socks5://two:2" } } }"#;
        assert_eq!(of(text, None), both("HTTP_PROXY", "http://one:1"));
        assert_eq!(of(text, Some("tcp://other:1")), both("HTTP_PROXY", "http://one:1"));
        assert_eq!(of(text, Some("tcp://engine:2375")), both("ALL_PROXY", "socks5://two:2"));
        for nothing in ["{}", "", "[]", r#"{ "proxies": { "default": 1 } }"#] {
            assert_eq!(of(nothing, None), []);
        }
    }
}
