//! `--build-context NAME=SOURCE`: sources beside the main context, by name.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use frontend::{ContextSource, ImageRequest};
use graph::{Digest, Platform};

use crate::context::ContextArg;
use crate::images::{Found, ImageError, chain_of, parse_config};
use crate::import::{self, ImportError, Wanted};
use crate::session::Session;

/// The host under which images of OCI layouts are known during a build. Reserved, so no registry can have it.
const LAYOUT_HOST: &str = "oci-layout.invalid";

/// What was given, by what it takes to have it.
#[derive(Debug, Default, Clone)]
pub struct NamedContexts {
    /// What the frontend is told, targets excepted.
    pub sources: BTreeMap<String, ContextSource>,
    /// Directories of the caller.
    pub directories: BTreeMap<String, PathBuf>,
    /// Targets of the same Dockerfile.
    pub targets: BTreeMap<String, String>,
    /// Images of OCI layouts, by the reference under which the frontend asks for them.
    pub layouts: Layouts,
}

/// Images of OCI layouts, by reference.
pub type Layouts = BTreeMap<String, Layout>;

/// An image of an OCI layout.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// The directory.
    pub directory: PathBuf,
    /// Which of its images.
    pub wanted: Wanted,
}

/// An image that a layout does not have.
#[derive(Debug, thiserror::Error)]
#[error("cannot use the OCI layout {}", directory.display())]
pub struct LayoutError {
    directory: PathBuf,
    source: ImportError,
}

impl NamedContexts {
    /// Reads what was given.
    ///
    /// # Errors
    /// What is wrong with one of them.
    pub fn parse(specs: &[String]) -> Result<Self, String> {
        let mut all = Self::default();
        for spec in specs {
            let (name, value) =
                spec.split_once('=').ok_or_else(|| format!("--build-context {spec:?} is not NAME=SOURCE"))?;
            all.add(name.to_ascii_lowercase(), value).map_err(|why| format!("--build-context {spec:?}: {why}"))?;
        }
        Ok(all)
    }

    fn add(&mut self, name: String, value: &str) -> Result<(), String> {
        let source = if let Some(image) = value.strip_prefix("docker-image://") {
            ContextSource::Image(image.to_owned())
        } else if let Some(layout) = value.strip_prefix("oci-layout://") {
            let layout = Layout::parse(layout)?;
            let reference = layout.reference();
            self.layouts.insert(reference.clone(), layout);
            ContextSource::Image(reference)
        } else if let Some(target) = value.strip_prefix("target:") {
            if target.is_empty() {
                return Err("target: needs the name of a stage".to_owned());
            }
            self.targets.insert(name, target.to_owned());
            return Ok(());
        } else {
            match ContextArg::parse(value) {
                ContextArg::Git(url) => ContextSource::Git(url),
                ContextArg::Http(url) => ContextSource::Http { url, unpack: true },
                ContextArg::Stdin => return Err("standard input cannot be used here".to_owned()),
                ContextArg::Directory(path) if !path.is_dir() => {
                    return Err(format!("{} is not a directory", path.display()));
                }
                ContextArg::Directory(path) => {
                    self.directories.insert(name.clone(), path);
                    ContextSource::Local
                }
            }
        };
        self.sources.insert(name, source);
        Ok(())
    }
}

impl Layout {
    /// `DIRECTORY[:TAG][@DIGEST]`
    fn parse(text: &str) -> Result<Self, String> {
        let (place, digest) = match text.rsplit_once('@') {
            None => (text, None),
            Some((place, digest)) => (place, Some(digest.parse::<Digest>().map_err(|error| error.to_string())?)),
        };
        // A directory may well have a colon in its name.
        let (place, tag) = match place.rsplit_once(':') {
            Some((directory, tag)) if !tag.contains('/') && !Path::new(place).is_dir() => (directory, Some(tag)),
            _ => (place, None),
        };
        let directory = PathBuf::from(place);
        if !directory.join("index.json").is_file() {
            return Err(format!("{} is no OCI layout: it has no index.json", directory.display()));
        }
        Ok(Self { directory, wanted: Wanted { tag: tag.map(str::to_owned), digest } })
    }

    /// A name that only this image of this layout has.
    fn reference(&self) -> String {
        let what = format!("{}\n{:?}", self.directory.display(), self.wanted);
        let name = Digest::of(what.as_bytes());
        format!("{LAYOUT_HOST}/{}:latest", name.hex())
    }

    /// Takes the image into the store, without a name.
    ///
    /// # Errors
    /// The layout has no such image, or one that is damaged.
    pub async fn find(&self, session: &Session, platform: &Platform) -> Result<Found, ImageError> {
        let (store, layout, platform) = (Arc::clone(&session.store), self.clone(), platform.clone());
        let found = tokio::task::spawn_blocking(move || -> Result<Found, ImportError> {
            let image = import::layout_image(&store, layout.directory, &layout.wanted, &platform)?;
            let bytes = store.read_blob(&image.id)?.ok_or_else(|| ImportError::Missing(image.id.to_string()))?;
            let config = parse_config("oci-layout", &bytes)?;
            let chain = chain_of(&config.rootfs.diff_ids);
            let manifest_digest = image.manifest.map(|manifest| manifest.digest);
            let resolved = frontend::ResolvedImage { config, config_digest: image.id, manifest_digest };
            Ok(Found { resolved, config: image.id, chain, local: true })
        });
        let found = found.await.map_err(|error| ImageError::Layout(Box::new(std::io::Error::other(error))))?;
        found.map_err(|source| ImageError::Layout(Box::new(LayoutError { directory: self.directory.clone(), source })))
    }
}

/// Finds an image that the frontend asks for, in a layout or wherever images are.
///
/// # Errors
/// See [`crate::images::Remote::find`].
pub async fn find(
    session: &Session,
    layouts: &Layouts,
    request: &ImageRequest,
    pull: bool,
) -> Result<Found, ImageError> {
    match layouts.get(&request.reference) {
        Some(layout) => layout.find(session, &request.platform).await,
        None => session.remote.find(request, pull).await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_by_kind() {
        let dir = tempfile::tempdir().unwrap();
        let layout = dir.path().join("a:b");
        std::fs::create_dir(&layout).unwrap();
        std::fs::write(layout.join("index.json"), "{}").unwrap();
        let spec = |rest: &str| format!("oci-layout://{}{rest}", layout.display());
        let digest = format!("sha256:{}", "0".repeat(64));
        let specs = [
            format!("L={}", spec("")),
            format!("m={}", spec(":v1")),
            format!("n={}", spec(&format!(":v1@{digest}"))),
            "t=target:base".to_owned(),
            "i=docker-image://alpine".to_owned(),
            format!("d={}", dir.path().display()),
        ];
        let all = NamedContexts::parse(&specs).unwrap();
        assert_eq!(all.targets["t"], "base");
        assert_eq!(all.directories["d"], dir.path());
        assert_eq!(all.sources.keys().collect::<Vec<_>>(), ["d", "i", "l", "m", "n"]);
        let wanted: Vec<_> = ["l", "m", "n"]
            .iter()
            .map(|name| {
                let ContextSource::Image(reference) = &all.sources[*name] else { panic!("{name}") };
                let layout = &all.layouts[reference];
                (layout.wanted.tag.clone(), layout.wanted.digest.is_some())
            })
            .collect();
        assert_eq!(wanted, [(None, false), (Some("v1".to_owned()), false), (Some("v1".to_owned()), true)]);
        for wrong in ["x", "x=target:", "x=oci-layout:///nowhere", "x=/nowhere", "x=-", &format!("x={}@y", spec(""))] {
            assert!(NamedContexts::parse(&[wrong.to_owned()]).is_err(), "{wrong}");
        }
    }
}
