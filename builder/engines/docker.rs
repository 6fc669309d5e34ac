//! docker's images, by way of the daemon's socket: which one has a name, and `docker save` of it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use graph::{Digest, Platform};
use registry::{Manifest, Reference};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use snapshotter::{ManifestRef, Store};

use super::EngineError;
use crate::images::runs_on;
use crate::import::{self, Input, Loaded, Wanted};

/// How long the daemon may take to say which image it means.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long nothing may come of an image; the daemon packs a layer before it sends it.
const STALL: Duration = Duration::from_secs(300);
const ANSWER_MAX: usize = 1 << 20;

/// A daemon of this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Daemon {
    socket: PathBuf,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Inspected {
    id: Digest,
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    variant: String,
}

impl Daemon {
    /// The one that docker's own program would speak to, if it is reached by a socket of this machine.
    pub(crate) fn of_user(var: impl Fn(&str) -> Option<String>) -> Option<Self> {
        let get = |name: &str| var(name).filter(|value| !value.is_empty());
        let host =
            get("DOCKER_HOST").or_else(|| host_of_context(&registry::docker_directory(&var)?, get("DOCKER_CONTEXT")));
        let host = host.unwrap_or_else(|| "unix:///var/run/docker.sock".into());
        let socket = PathBuf::from(host.strip_prefix("unix://")?);
        // Nobody is asked who is not there.
        socket.exists().then_some(Self { socket })
    }

    /// What the daemon calls the image of this name for a platform.
    pub(super) async fn find(&self, name: &Reference, platform: &Platform) -> Result<Option<Digest>, EngineError> {
        let asked = async {
            let mut answer = self.get(&format!("images/{name}/json")).await?;
            if !answer.status().is_success() {
                return Ok(None);
            }
            let mut bytes = Vec::new();
            while let Some(piece) = answer.chunk().await.map_err(http)? {
                bytes.extend_from_slice(&piece);
                if bytes.len() > ANSWER_MAX {
                    return Err(unclear("its answer is too long"));
                }
            }
            let inspected = serde_json::from_slice(&bytes).map_err(|_| unclear("its answer has no id"))?;
            let Inspected { id, os, architecture, variant } = inspected;
            Ok(runs_on(&Platform { os, architecture, variant }, platform).then_some(id))
        };
        match tokio::time::timeout(PATIENCE, asked).await {
            Ok(answer) => answer,
            Err(_) => Err(unclear("it does not answer")),
        }
    }

    /// Has the daemon send the image with this id, whatever name it has by now, and takes it into the store.
    pub(super) async fn take(&self, store: &Arc<Store>, id: Digest) -> Result<Loaded, EngineError> {
        let begun = tokio::time::timeout(STALL, self.get(&format!("images/{id}/get"))).await;
        let mut answer = begun.map_err(|_| unclear("it does not send the image"))??;
        if !answer.status().is_success() {
            return Err(unclear(&format!("it does not send the image ({})", answer.status())));
        }
        let (chunks, sender) = crate::worker::pipe();
        let store = Arc::clone(store);
        let taken = tokio::task::spawn_blocking(move || {
            let images = import::take(&store, Input::Archive(Box::new(chunks)), Wanted::All)?;
            let image = images.into_iter().find(|image| is_of(&store, image, &id));
            image.ok_or_else(|| unclear(&format!("what it sends is not the image {id}")))
        });
        loop {
            let piece = match tokio::time::timeout(STALL, answer.chunk()).await {
                Ok(Ok(None)) => break,
                Ok(Ok(Some(piece))) => Ok(piece),
                Ok(Err(error)) => Err(std::io::Error::other(error)),
                Err(_) => Err(std::io::ErrorKind::TimedOut.into()),
            };
            let failed = piece.is_err();
            // A reader that gave up knows why.
            if sender.send(piece).await.is_err() || failed {
                break;
            }
        }
        drop(sender);
        taken.await.map_err(|_| unclear("a thread panicked"))?
    }

    async fn get(&self, path: &str) -> Result<reqwest::Response, EngineError> {
        let client = registry::client_over_socket(&self.socket).map_err(http)?;
        client.get(format!("http://docker/{path}")).send().await.map_err(http)
    }

    /// What a person calls it.
    pub(super) fn shown(&self) -> String {
        format!("docker ({})", self.socket.display())
    }
}

/// Whether a daemon calls this image `id`: by its config, or, where it keeps its images in containerd, by the manifest or index that
/// it came with. Of an index with images that the daemon has only in part, one image is what came.
fn is_of(store: &Store, image: &Loaded, id: &Digest) -> bool {
    let of_manifest = |manifest: &ManifestRef| manifest.digest == *id || index_names(store, id, &manifest.digest);
    image.id == *id || image.manifest.as_ref().is_some_and(of_manifest)
}

fn index_names(store: &Store, index: &Digest, manifest: &Digest) -> bool {
    let bytes = store.read_blob(index).ok().flatten();
    let parsed = bytes.and_then(|bytes| Manifest::parse("", &bytes).ok());
    let Some(Manifest::Index(index)) = parsed else { return false };
    index.manifests().iter().any(|child| child.digest().to_string() == manifest.to_string())
}

/// The host of the context that is chosen, or of the one that is in use.
fn host_of_context(config: &Path, chosen: Option<String>) -> Option<String> {
    let document =
        |path: PathBuf| -> Option<serde_json::Value> { serde_json::from_slice(&std::fs::read(path).ok()?).ok() };
    let name = match chosen {
        Some(name) => name,
        None => document(config.join("config.json"))?.get("currentContext")?.as_str()?.to_owned(),
    };
    let directory = hex::encode(Sha256::digest(&name));
    let meta = document(config.join("contexts/meta").join(directory).join("meta.json"))?;
    Some(meta.pointer("/Endpoints/docker/Host")?.as_str()?.to_owned())
}

fn http(error: reqwest::Error) -> EngineError {
    EngineError::Http(error)
}

fn unclear(why: &str) -> EngineError {
    EngineError::Malformed { what: "docker's daemon".into(), why: why.to_owned() }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::io::{BufRead as _, BufReader, Write as _};
    use std::os::unix::net::UnixListener;

    use serde_json::json;

    use super::*;

    /// A daemon that has these answers.
    fn daemon(dir: &Path, answers: Vec<(String, Vec<u8>)>) -> Daemon {
        let socket = dir.join("docker.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        std::thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let head: Vec<String> =
                    BufReader::new(&stream).lines().map_while(Result::ok).take_while(|line| !line.is_empty()).collect();
                let asked = |path: &str| head[0] == format!("GET /{path} HTTP/1.1");
                let found = answers.iter().find(|(path, _)| asked(path));
                let (status, body) = found.map_or(("404 Not Found", &[][..]), |(_, body)| ("200 OK", body));
                let length = body.len();
                write!(stream, "HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n").unwrap();
                // Who has refused it does not read it to the end.
                let _ = stream.write_all(body);
            }
        });
        Daemon { socket }
    }

    fn config(author: &str) -> Vec<u8> {
        let config = json!({
            "architecture": "arm", "variant": "v7", "os": "linux", "author": author, "rootfs": { "type": "layers", "diff_ids": [] }
        });
        config.to_string().into_bytes()
    }

    /// What `docker save` makes of images without layers.
    fn saved(configs: &[&[u8]]) -> Vec<u8> {
        let mut archive = tar::Builder::new(Vec::new());
        let mut file = |name: &str, bytes: &[u8]| {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            archive.append_data(&mut header, name, bytes).unwrap();
        };
        let mut images = Vec::new();
        for (number, config) in configs.iter().enumerate() {
            let name = format!("{number}.json");
            file(&name, config);
            images.push(json!({ "Config": name, "RepoTags": ["app:1"], "Layers": [] }));
        }
        file("manifest.json", json!(images).to_string().as_bytes());
        archive.into_inner().unwrap()
    }

    #[tokio::test]
    async fn the_image_that_is_taken_is_the_one_that_was_found() {
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(Store::open(&dir.path().join("store")).unwrap());
        let (first, second) = (config("first"), config("second"));
        let (ours, moved) = (Digest::of(&first), Digest::of(b"gone"));
        let inspected = json!({ "Id": ours, "Os": "linux", "Architecture": "arm", "Variant": "v7" });
        let answers = vec![
            ("images/docker.io/library/app:1/json".to_owned(), inspected.to_string().into_bytes()),
            (format!("images/{ours}/get"), saved(&[&second, &first])),
            (format!("images/{moved}/get"), saved(&[&second])),
        ];
        let daemon = daemon(dir.path(), answers);
        let name = crate::images::parse_name("app:1").unwrap();
        for (platform, want) in [("linux/arm/v7", Some(ours)), ("linux/arm/v6", None), ("linux/amd64", None)] {
            assert_eq!(daemon.find(&name, &platform.parse().unwrap()).await.unwrap(), want, "{platform}");
        }
        assert_eq!(daemon.take(&store, ours).await.unwrap().id, ours);
        let error = daemon.take(&store, moved).await.unwrap_err().to_string();
        assert!(error.contains("not the image"), "{error}");
        let error = daemon.take(&store, Digest::of(b"unknown")).await.unwrap_err().to_string();
        assert!(error.contains("does not send"), "{error}");
    }

    #[test]
    fn the_daemon_is_that_of_dockers_program() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        for socket in ["a.sock", "b.sock"] {
            std::fs::write(path(socket), "").unwrap();
        }
        let meta = path("contexts/meta").join(hex::encode(Sha256::digest("rootless")));
        std::fs::create_dir_all(&meta).unwrap();
        let host = format!("unix://{}", path("b.sock").display());
        std::fs::write(
            meta.join("meta.json"),
            serde_json::json!({"Endpoints": {"docker": {"Host": host}}}).to_string(),
        )
        .unwrap();
        std::fs::write(path("config.json"), r#"{"currentContext": "rootless"}"#).unwrap();
        let socket = |vars: &[(&str, String)]| {
            let vars: BTreeMap<_, _> = vars.iter().cloned().collect();
            Daemon::of_user(|name| vars.get(name).cloned()).map(|daemon| daemon.socket)
        };
        let config = ("DOCKER_CONFIG", dir.path().display().to_string());
        let host = |host: &str| ("DOCKER_HOST", host.to_owned());
        assert_eq!(socket(std::slice::from_ref(&config)), Some(path("b.sock")));
        let a = format!("unix://{}", path("a.sock").display());
        assert_eq!(socket(&[config.clone(), host(&a)]), Some(path("a.sock")));
        assert_eq!(socket(&[config.clone(), host("tcp://10.0.0.1:2375")]), None);
        assert_eq!(socket(&[config, host("unix:///no/where.sock")]), None);
    }
}
