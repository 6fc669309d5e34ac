//! docker's images, by way of the daemon's socket: which one has a name, and `docker save` of it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use graph::{Digest, Platform};
use registry::Reference;
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use snapshotter::Store;

use super::EngineError;
use crate::import::{self, ImportError, Input, Loaded, Wanted};

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
}

impl Daemon {
    /// The one that docker's own program would speak to, if it is reached by a socket of this machine.
    pub(crate) fn of_user(var: impl Fn(&str) -> Option<String>) -> Option<Self> {
        let get = |name: &str| var(name).filter(|value| !value.is_empty());
        let host = get("DOCKER_HOST").or_else(|| {
            let config = get("DOCKER_CONFIG").map(PathBuf::from);
            let config = config.or_else(|| Some(PathBuf::from(get("HOME")?).join(".docker")))?;
            host_of_context(&config, get("DOCKER_CONTEXT"))
        });
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
            let inspected: Inspected = serde_json::from_slice(&bytes).map_err(|_| unclear("its answer has no id"))?;
            let fits = |has: &str, wanted: &str| has.is_empty() || has == wanted;
            let fits = fits(&inspected.os, &platform.os) && fits(&inspected.architecture, &platform.architecture);
            Ok(fits.then_some(inspected.id))
        };
        match tokio::time::timeout(PATIENCE, asked).await {
            Ok(answer) => answer,
            Err(_) => Err(unclear("it does not answer")),
        }
    }

    /// Has the daemon send the image, and takes it into the store.
    pub(super) async fn take(&self, store: &Arc<Store>, name: &Reference) -> Result<Loaded, EngineError> {
        let mut answer = self.get(&format!("images/{name}/get")).await?;
        if !answer.status().is_success() {
            return Err(unclear(&format!("it does not send the image ({})", answer.status())));
        }
        let (chunks, sender) = crate::worker::pipe();
        let store = Arc::clone(store);
        let taken =
            tokio::task::spawn_blocking(move || import::take(&store, Input::Archive(Box::new(chunks)), Wanted::All));
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
        let images = taken.await.map_err(|_| unclear("a thread panicked"))??;
        match <[Loaded; 1]>::try_from(images) {
            Ok([image]) => Ok(image),
            Err(_) => Err(EngineError::Import(ImportError::NoImage)),
        }
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

    use super::*;

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
