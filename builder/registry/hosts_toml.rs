//! `certs.d/HOST/hosts.toml`, as containerd reads it (docs/hosts.md there): where a registry's content may also be had.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use url::Url;

/// One host of such a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Host {
    pub(crate) url: Url,
    pub(crate) pull: bool,
    pub(crate) resolve: bool,
    pub(crate) push: bool,
    pub(crate) ca: Vec<PathBuf>,
    /// Certificate and key; the key may be in the certificate's file.
    pub(crate) client: Vec<(PathBuf, PathBuf)>,
    pub(crate) skip_verify: bool,
    /// The URL's path is the API's root, without `/v2`.
    pub(crate) override_path: bool,
    pub(crate) headers: Vec<(String, String)>,
}

/// The hosts in the order in which they are asked, and the registry's own settings if the file has any.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct HostsFile {
    pub(crate) hosts: Vec<Host>,
    pub(crate) server: Option<Host>,
}

#[derive(Deserialize)]
struct File {
    server: Option<String>,
    /// In the order of the file, which is that in which they are asked.
    #[serde(default)]
    host: toml::Table,
    #[serde(flatten)]
    own: Entry,
}

#[derive(Deserialize, Default)]
struct Entry {
    capabilities: Option<Vec<String>>,
    ca: Option<OneOrMany>,
    client: Option<Clients>,
    skip_verify: Option<bool>,
    override_path: Option<bool>,
    #[serde(default)]
    header: BTreeMap<String, OneOrMany>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Clients {
    One(String),
    Many(Vec<OneOrMany>),
}

/// Reads the file of a registry in `dir` (a `certs.d`), if there is one.
pub(crate) fn read(dir: &Path, registry: &str) -> Result<Option<HostsFile>, String> {
    let with_port = registry.rsplit_once(':').map(|(host, port)| format!("{host}_{port}_"));
    for name in [Some(registry.to_owned()), with_port, Some("_default".to_owned())].into_iter().flatten() {
        let path = dir.join(name).join("hosts.toml");
        match std::fs::read_to_string(&path) {
            Ok(text) => {
                let base = path.parent().unwrap_or(dir);
                return parse(&text, base).map(Some).map_err(|why| format!("{}: {why}", path.display()));
            }
            Err(error) if matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) => {}
            Err(error) => return Err(format!("cannot read {}: {error}", path.display())),
        }
    }
    Ok(None)
}

fn parse(text: &str, dir: &Path) -> Result<HostsFile, String> {
    let file: File = toml::from_str(text).map_err(|error| error.message().to_owned())?;
    let mut hosts = Vec::with_capacity(file.host.len());
    for (url, entry) in file.host {
        let entry: Entry =
            entry.try_into().map_err(|error: toml::de::Error| format!("host {url:?}: {}", error.message()))?;
        hosts.push(host(&url, entry, dir)?);
    }
    let server = file.server.map(|url| host(&url, file.own, dir)).transpose()?;
    Ok(HostsFile { hosts, server })
}

fn host(url: &str, entry: Entry, dir: &Path) -> Result<Host, String> {
    let text = if url.contains("://") { url.to_owned() } else { format!("https://{url}") };
    let parsed = Url::parse(&text).ok().filter(|url| {
        matches!(url.scheme(), "http" | "https") && url.host_str().is_some() && url.username().is_empty()
    });
    let url = parsed.ok_or_else(|| format!("host {url:?} is no URL of a host"))?;
    let able = |what: &str| entry.capabilities.as_ref().is_none_or(|list| list.iter().any(|one| one == what));
    let many = |value: Option<OneOrMany>| match value {
        None => Vec::new(),
        Some(OneOrMany::One(one)) => vec![one],
        Some(OneOrMany::Many(many)) => many,
    };
    let pair = |certificate: &str, key: Option<&String>| {
        let key = key.filter(|key| !key.is_empty()).map_or(certificate, String::as_str);
        (dir.join(certificate), dir.join(key))
    };
    let client = match &entry.client {
        None => Vec::new(),
        Some(Clients::One(one)) => vec![pair(one, None)],
        Some(Clients::Many(list)) => list
            .iter()
            .filter_map(|item| match item {
                OneOrMany::One(one) => Some(pair(one, None)),
                OneOrMany::Many(parts) => parts.first().map(|certificate| pair(certificate, parts.get(1))),
            })
            .collect(),
    };
    let (pull, resolve, push) = (able("pull"), able("resolve"), able("push"));
    let headers = entry.header.into_iter();
    let headers =
        headers.flat_map(|(name, values)| many(Some(values)).into_iter().map(move |value| (name.clone(), value)));
    Ok(Host {
        url,
        pull,
        resolve,
        push,
        ca: many(entry.ca).into_iter().map(|path| dir.join(path)).collect(),
        client,
        skip_verify: entry.skip_verify.unwrap_or(false),
        override_path: entry.override_path.unwrap_or(false),
        headers: headers.collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn containerds_examples_are_read() {
        let text = r#"
            server = "https://registry-1.docker.io"
            ca = "own.crt"
            [host."https://zz.mirror:5000"]
              capabilities = ["pull", "resolve"]
              ca = ["a.crt", "/abs/b.crt"]
              client = [["client.cert", "client.key"], ["both.pem", ""]]
              [host."https://zz.mirror:5000".header]
                x-one = "1"
                x-many = ["2", "3"]
            [host.'http://aa.local/v2/proxy']
              capabilities = ["pull", "push"]
              override_path = true
              skip_verify = true
        "#;
        let file = parse(text, Path::new("/d")).unwrap();
        let urls: Vec<_> = file.hosts.iter().map(|host| host.url.as_str()).collect();
        assert_eq!(urls, ["https://zz.mirror:5000/", "http://aa.local/v2/proxy"], "in the order of the file");
        let [first, second] = file.hosts.as_slice() else { panic!("two hosts") };
        assert_eq!((first.pull, first.resolve, first.push), (true, true, false));
        assert_eq!(first.ca, [PathBuf::from("/d/a.crt"), "/abs/b.crt".into()]);
        assert_eq!(first.client[1], ("/d/both.pem".into(), "/d/both.pem".into()));
        assert_eq!(first.headers.len(), 3);
        assert!(second.override_path && second.skip_verify && !second.resolve);
        let server = file.server.unwrap();
        assert!(server.push && server.ca == [PathBuf::from("/d/own.crt")]);
        for bad in ["server = 1", "[host.\"ftp://x\"]", "[host.\"https://u@x\"]", "[host.x]\nca = 1", "["] {
            assert!(parse(bad, Path::new("/d")).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_directory_of_a_port_has_two_spellings_and_there_is_a_default() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, server: &str| {
            std::fs::create_dir(dir.path().join(name)).unwrap();
            std::fs::write(dir.path().join(name).join("hosts.toml"), format!("server = {server:?}")).unwrap();
        };
        let server =
            |registry: &str| read(dir.path(), registry).unwrap().and_then(|file| Some(file.server?.url.to_string()));
        assert_eq!(server("r:5000"), None);
        write("_default", "https://default");
        assert_eq!(server("r:5000").as_deref(), Some("https://default/"));
        write("r_5000_", "https://underscored");
        assert_eq!(server("r:5000").as_deref(), Some("https://underscored/"));
        write("r:5000", "https://exact");
        assert_eq!(server("r:5000").as_deref(), Some("https://exact/"));
    }
}
