//! Images for docker and podman, by way of their programs.

use std::path::Path;
use std::process::{Command, Stdio};

use graph::Digest;
use registry::Reference;

use super::{Archive, ArchiveError, Package};
use crate::config::Engine;

/// An engine that did not take an image.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// It refused, or could not be started.
    #[error("{engine} load failed ({status})")]
    Failed {
        /// The program.
        engine: &'static str,
        /// How it ended.
        status: String,
    },
    /// What it should have got.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
}

/// The engine that `--load` means: the configured one, else docker, else podman.
#[must_use]
pub fn find_engine(configured: Option<Engine>) -> Option<Engine> {
    let found = |engine: &Engine| on_path(engine.program());
    match configured {
        Some(engine) => Some(engine).filter(found),
        None => [Engine::Docker, Engine::Podman].into_iter().find(found),
    }
}

fn on_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| directory.join(program).is_file())
}

/// Whether the engine has an image of this id, so that nothing need be sent.
pub(crate) fn engine_has(engine: Engine, id: Digest) -> bool {
    let inspect = Command::new(engine.program())
        .args(["image", "inspect", "--format", "{{.Id}}", &id.to_string()])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output();
    // podman leaves the algorithm out; an engine with another kind of id does not know ours.
    inspect.is_ok_and(|output| output.status.success() && String::from_utf8_lossy(&output.stdout).contains(&id.hex()))
}

/// Names an image that the engine has.
pub(crate) fn name_in(engine: Engine, ids: &[Digest], names: &[Reference]) -> Result<(), EngineError> {
    for id in ids {
        for name in names {
            let failed = |status: String| EngineError::Failed { engine: engine.program(), status };
            let tag = Command::new(engine.program())
                .args(["tag", &id.to_string(), &name.to_string()])
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .status()
                .map_err(|error| failed(error.to_string()))?;
            if !tag.success() {
                return Err(failed(tag.to_string()));
            }
        }
    }
    Ok(())
}

pub(crate) async fn load_into(engine: Engine, package: &Package, names: &[Reference]) -> Result<(), EngineError> {
    let (package, names) = (package.clone(), names.to_vec());
    let load = move || {
        let failed = |status: String| EngineError::Failed { engine: engine.program(), status };
        let mut child = Command::new(engine.program())
            .arg("load")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .map_err(|error| failed(error.to_string()))?;
        let archive = Archive { images: vec![(&package, names)], docker: true };
        let stdin = child.stdin.take();
        let written = match stdin {
            Some(stdin) => archive.write_tar(stdin, Path::new("the engine's standard input")),
            None => Ok(()),
        };
        let status = child.wait().map_err(|error| failed(error.to_string()))?;
        if !status.success() {
            return Err(failed(status.to_string()));
        }
        Ok(written?)
    };
    match tokio::task::spawn_blocking(load).await {
        Ok(loaded) => loaded,
        Err(_) => Err(EngineError::Failed { engine: engine.program(), status: "a thread of ours panicked".into() }),
    }
}
