//! Images for docker, podman and containerd, by way of their programs: nothing where the engine has the image, and otherwise only
//! the layers that it lacks.

use std::collections::BTreeSet;
use std::io::{self, Read as _};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use graph::Digest;
use registry::Reference;

use super::{Archive, ArchiveError, Package};
use crate::config::Engine;

/// Ids that one question is about, so that a command line does not become too long.
const IDS_AT_ONCE: usize = 100;
/// What is shown of an engine that complains.
const WORDS_MAX: u64 = 4 << 10;

/// An engine that did not take an image.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// It refused, or could not be started.
    #[error("{engine} did not take the image ({status}){}", if .words.is_empty() { String::new() } else { format!(": {words}") })]
    Failed {
        /// The program.
        engine: &'static str,
        /// How it ended.
        status: String,
        /// What it said.
        words: String,
    },
    /// What it should have got.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
}

/// The engine that `--load` means: the configured one, else docker, podman or containerd, whichever is there.
#[must_use]
pub fn find_engine(configured: Option<Engine>) -> Option<Engine> {
    let found = |engine: &Engine| on_path(engine.program());
    match configured {
        Some(engine) => Some(engine).filter(found),
        None => [Engine::Docker, Engine::Podman, Engine::Containerd].into_iter().find(found),
    }
}

fn on_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| directory.join(program).is_file())
}

/// What the engine prints, if it likes the question.
fn asked<'a>(engine: Engine, args: impl IntoIterator<Item = &'a str>) -> Option<String> {
    let mut command = Command::new(engine.program());
    let output = command.args(args).stdin(Stdio::null()).stderr(Stdio::null()).output();
    let Ok(Output { status, stdout, .. }) = output else { return None };
    status.success().then(|| String::from_utf8_lossy(&stdout).into_owned())
}

/// Whether the engine has the image, so that nothing need be sent.
pub(crate) fn engine_has(engine: Engine, id: Digest) -> bool {
    match engine {
        // podman leaves the algorithm out; an engine with another kind of id does not know ours.
        Engine::Docker | Engine::Podman => asked(engine, ["image", "inspect", "--format", "{{.Id}}", &id.to_string()])
            .is_some_and(|text| text.contains(&id.hex())),
        // Its images are known by their manifests, of which there is none yet.
        Engine::Containerd => false,
    }
}

/// Names an image that the engine has.
pub(crate) fn name_in(engine: Engine, ids: &[Digest], names: &[Reference]) -> Result<(), EngineError> {
    for id in ids {
        for name in names {
            let failed =
                |status: String| EngineError::Failed { engine: engine.program(), status, words: String::new() };
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

/// The blobs of a package that need not be sent.
fn known_to(engine: Engine, package: &Package) -> BTreeSet<Digest> {
    match engine {
        Engine::Docker | Engine::Podman => {
            let known = stacks_of(engine);
            let mut omitted = BTreeSet::new();
            for image in &package.images {
                let mut chain = None;
                for layer in &image.layers {
                    let own = layer.diff_id.chain_upon(chain.as_ref());
                    chain = Some(own);
                    if known.contains(&own) {
                        omitted.insert(layer.descriptor.digest);
                    }
                }
            }
            omitted
        }
        Engine::Containerd => {
            let listed = asked(engine, ["content", "ls", "--quiet"]).unwrap_or_default();
            listed.lines().filter_map(|line| line.trim().parse().ok()).collect()
        }
    }
}

/// All stacks of layers that the engine has, by chain id.
fn stacks_of(engine: Engine) -> BTreeSet<Digest> {
    let mut stacks = BTreeSet::new();
    let ids = asked(engine, ["image", "ls", "--quiet", "--no-trunc"]).unwrap_or_default();
    let ids: BTreeSet<&str> = ids.split_whitespace().collect();
    for ids in ids.into_iter().collect::<Vec<_>>().chunks(IDS_AT_ONCE) {
        let question = ["image", "inspect", "--format", "{{json .RootFS.Layers}}"];
        let answer = asked(engine, question.into_iter().chain(ids.iter().copied())).unwrap_or_default();
        for line in answer.lines() {
            let mut chain: Option<Digest> = None;
            for diff_id in serde_json::from_str::<Vec<Digest>>(line).unwrap_or_default() {
                let own = diff_id.chain_upon(chain.as_ref());
                stacks.insert(own);
                chain = Some(own);
            }
        }
    }
    stacks
}

/// Hands an image to the engine.
pub(crate) async fn load_into(engine: Engine, package: &Package, names: &[Reference]) -> Result<(), EngineError> {
    let (package, names) = (package.clone(), names.to_vec());
    let load = move || {
        let omitted = known_to(engine, &package);
        if !omitted.is_empty() && send(engine, &package, &names, omitted).is_ok() {
            return Ok(());
        }
        // One that wants to see what it has gets it.
        send(engine, &package, &names, BTreeSet::new())
    };
    match tokio::task::spawn_blocking(load).await {
        Ok(loaded) => loaded,
        Err(_) => Err(EngineError::Failed {
            engine: engine.program(),
            status: "a thread of ours panicked".into(),
            words: String::new(),
        }),
    }
}

fn send(engine: Engine, package: &Package, names: &[Reference], omitted: BTreeSet<Digest>) -> Result<(), EngineError> {
    let failed = |status: String| EngineError::Failed { engine: engine.program(), status, words: String::new() };
    let args: &[&str] = match engine {
        Engine::Docker | Engine::Podman => &["load"],
        // Unpacking is for who runs it; images for other platforms are kept.
        Engine::Containerd => &["images", "import", "--all-platforms", "--no-unpack", "-"],
    };
    let mut child = Command::new(engine.program())
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| failed(error.to_string()))?;
    let stderr = child.stderr.take();
    // Read while it is written to, or each may wait for the other.
    let words = std::thread::spawn(move || {
        let mut words = Vec::new();
        if let Some(mut stderr) = stderr {
            let _ = stderr.by_ref().take(WORDS_MAX).read_to_end(&mut words);
            let _ = io::copy(&mut stderr, &mut io::sink());
        }
        words
    });
    let docker = engine != Engine::Containerd;
    let archive = Archive { images: vec![(package, names.to_vec())], docker, omitted };
    let written = match child.stdin.take() {
        Some(stdin) => archive.write_tar(stdin, Path::new("the engine's standard input")),
        None => Ok(()),
    };
    let status = child.wait().map_err(|error| failed(error.to_string()))?;
    let words = words.join().unwrap_or_default();
    if !status.success() {
        let words = crate::progress::neutralise_lines(String::from_utf8_lossy(&words).trim());
        return Err(EngineError::Failed { engine: engine.program(), status: status.to_string(), words });
    }
    Ok(written?)
}
