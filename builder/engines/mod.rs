//! Images that docker and podman have on this machine, as bases: read, and never changed.
//!
//! An engine is asked anew in each build, since what a name means there may be another image by now; what it means is taken into
//! the store once, under the id that the engine has for it.

mod containers;
mod docker;
mod storage_conf;
mod tar_split;

use std::io;
use std::path::Path;
use std::sync::Arc;

use frontend::ImageRequest;
use graph::Platform;
use registry::Reference;
use snapshotter::{ImageKind, ImageRecord, StoreError};
use solver::VertexProgress;

pub(crate) use self::containers::Storage;
pub(crate) use self::docker::Daemon;
use crate::config::BaseStore;
use crate::images::{CONTEXT_REGISTRY, Found, ImageError, parse_name};
use crate::import::{ImportError, Loaded};
use crate::session::Session;

/// An image that an engine has and that cannot be had from there.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// A file of its storage.
    #[error("cannot read {what}")]
    Read {
        /// Which.
        what: String,
        /// Why.
        source: io::Error,
    },
    /// It makes no sense.
    #[error("{what}: {why}")]
    Malformed {
        /// Which part.
        what: String,
        /// What is wrong.
        why: String,
    },
    /// The engine is not there, or the image is not.
    #[error("{engine} has no image {name:?} for this platform here")]
    Missing {
        /// The engine.
        engine: &'static str,
        /// As asked for.
        name: String,
    },
    /// The daemon.
    #[error("docker's daemon cannot be asked")]
    Http(#[source] reqwest::Error),
    /// What it gave is not what it should be.
    #[error(transparent)]
    Import(#[from] ImportError),
    /// A name.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Where an engine has its images.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Engine {
    /// docker, asked through its socket.
    Docker(Daemon),
    /// podman, whose files are read.
    Containers(Storage),
}

impl Engine {
    /// Those of this machine and this user.
    pub(crate) fn all(wanted: &[BaseStore], is_root: bool, var: impl Fn(&str) -> Option<String>) -> Vec<Self> {
        let mut engines = Vec::new();
        for store in wanted {
            match store {
                BaseStore::Docker => engines.extend(Daemon::of_user(&var).map(Self::Docker)),
                BaseStore::Podman => {
                    let storages = Storage::of_user(Path::new("/"), is_root, &var);
                    engines.extend(storages.into_iter().map(Self::Containers));
                }
            }
        }
        engines
    }

    /// The image for a platform that has the name, in the store, and the name that it has there; `None`: the engine has none.
    async fn take(
        &self,
        session: &Session,
        name: &Reference,
        written: &str,
        platform: &Platform,
    ) -> Result<Option<(Reference, Found)>, EngineError> {
        let (kept, image) = match self {
            Self::Docker(daemon) => {
                let Some(id) = daemon.find(name, platform).await? else { return Ok(None) };
                let kept = kept_as("docker", &id.to_string())?;
                if let Some(found) = session.remote.find_local(&kept, platform)? {
                    return Ok(Some((kept, found)));
                }
                (kept, daemon.take(&session.store, id).await?)
            }
            Self::Containers(storage) => {
                let Some(image) = storage.find(&containers::names_of(name, written))? else { return Ok(None) };
                let kept = kept_as("containers", &image.id.to_string())?;
                if let Some(found) = session.remote.find_local(&kept, platform)? {
                    return Ok(Some((kept, found)));
                }
                let (store, platform) = (Arc::clone(&session.store), platform.clone());
                let taken = tokio::task::spawn_blocking(move || image.take(&store, &platform)).await;
                let panicked =
                    |_| EngineError::Malformed { what: "internal error".into(), why: "a thread panicked".into() };
                let Some(taken) = taken.map_err(panicked)?? else { return Ok(None) };
                (kept, taken)
            }
        };
        let Loaded { id: config, manifest, .. } = image;
        session.store.put_image(&ImageRecord { name: kept.to_string(), config, manifest, kind: ImageKind::Base })?;
        Ok(session.remote.find_local(&kept, platform)?.map(|found| (kept, found)))
    }

    fn shown(&self) -> String {
        match self {
            Self::Docker(daemon) => daemon.shown(),
            Self::Containers(storage) => format!("podman ({})", storage.root.display()),
        }
    }
}

/// Takes an image of a certain engine into the store; its name there.
pub(crate) async fn take(
    session: &Session,
    store: BaseStore,
    name: &Reference,
    written: &str,
    platform: &Platform,
) -> Result<Reference, EngineError> {
    let is_root = session.is_root();
    for engine in Engine::all(&[store], is_root, |name| std::env::var(name).ok()) {
        if let Some((kept, _)) = engine.take(session, name, written, platform).await? {
            return Ok(kept);
        }
    }
    Err(EngineError::Missing { engine: store.program(), name: written.to_owned() })
}

/// The name under which the store has what an engine calls `id`. Nobody can ask a registry for it.
fn kept_as(engine: &str, id: &str) -> Result<Reference, ImageError> {
    parse_name(&format!("{CONTEXT_REGISTRY}/{engine}@{id}"))
}

/// Finds what the frontend asks for: in the store, where engines have their images, at a registry. With `pull` only there.
///
/// # Errors
/// No such image, or none for the platform.
pub(crate) async fn find(
    session: &Session,
    request: &ImageRequest,
    pull: bool,
    vertex: &VertexProgress,
) -> Result<Found, ImageError> {
    let reference = parse_name(&request.reference)?;
    // A digest is a manifest's, which an engine may have given up; registries and the store are sure of it.
    if pull || reference.registry() == CONTEXT_REGISTRY || reference.digest().is_some() {
        return session.remote.find(request, pull).await;
    }
    if let Some(found) = session.remote.find_local(&reference, &request.platform)? {
        return Ok(found);
    }
    for engine in session.engines() {
        match engine.take(session, &reference, &request.written, &request.platform).await {
            Ok(Some((_, found))) => {
                vertex.say(&format!("{reference}: {} of {}", found.config, engine.shown()));
                return Ok(found);
            }
            Ok(None) => {}
            // Somebody else's daemon, or a socket that one has left behind.
            Err(EngineError::Http(error)) if error.is_connect() => {}
            Err(error) => {
                vertex.say(&format!("{reference} cannot be had from {}: {}", engine.shown(), in_full(&error)));
            }
        }
    }
    session.remote.find(request, pull).await
}

/// An error with its causes.
fn in_full(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source()).map(ToString::to_string);
    causes.collect::<Vec<_>>().join(": ")
}
