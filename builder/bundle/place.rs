//! Where images are, as a person writes it.

use std::path::PathBuf;

use registry::Reference;

use crate::config::BaseStore;

/// What places begin with.
const KINDS: [&str; 8] =
    ["oci", "oci-layout", "oci-archive", "docker-archive", "docker-daemon", "containers-storage", "docker", "store"];

/// A text that is no place.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no place for an image: {why}")]
pub struct PlaceError {
    text: String,
    why: String,
}

/// Which image of a layout or archive.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Select {
    /// The only one, or `latest`.
    #[default]
    Only,
    /// By name or tag.
    Name(String),
    /// By digest.
    Digest(String),
}

/// A place that images are copied from or to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// `docker://NAME`, or just `NAME`
    Registry(Reference),
    /// `oci:PATH[:TAG]`, `oci-layout://PATH[:TAG|@DIGEST]`
    Layout {
        /// The directory.
        path: PathBuf,
        /// Which image.
        select: Select,
    },
    /// `oci-archive:PATH[:TAG]`
    OciArchive {
        /// The file.
        path: PathBuf,
        /// Which image.
        select: Select,
    },
    /// `docker-archive:PATH[:NAME]`
    DockerArchive {
        /// The file.
        path: PathBuf,
        /// Which image.
        select: Select,
    },
    /// `store:NAME`: rbuild's own.
    Store(String),
    /// `docker-daemon:NAME`, `containers-storage:NAME`
    Engine {
        /// Whose images.
        store: BaseStore,
        /// The image.
        name: Reference,
        /// As it was written.
        written: String,
    },
}

impl Place {
    /// Whether a value of `--build-context` is a place with images.
    #[must_use]
    pub fn is_on_this_machine(text: &str) -> bool {
        let kinds = ["oci-layout", "oci-archive", "docker-archive", "docker-daemon", "containers-storage"];
        text.split_once(':').is_some_and(|(kind, _)| kinds.contains(&kind))
    }

    /// Parses a place; what has none of the prefixes is the name of an image at its registry.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, PlaceError> {
        let error = |why: String| PlaceError { text: text.to_owned(), why };
        let name = |text: &str| crate::images::parse_name(text).map_err(|failure| error(failure.to_string()));
        let (kind, rest) = match text.split_once(':') {
            Some((kind, rest)) if KINDS.contains(&kind) => (kind, rest),
            _ => ("docker", text),
        };
        let rest = rest.strip_prefix("//").unwrap_or(rest);
        if rest.is_empty() {
            return Err(error("it names nothing".into()));
        }
        Ok(match kind {
            "store" => Self::Store(rest.to_owned()),
            "docker" => Self::Registry(name(rest)?),
            "docker-daemon" => Self::Engine { store: BaseStore::Docker, name: name(rest)?, written: rest.to_owned() },
            "containers-storage" => {
                Self::Engine { store: BaseStore::Podman, name: name(rest)?, written: rest.to_owned() }
            }
            kind => {
                let (path, select) = selected(rest);
                let path = PathBuf::from(path);
                match kind {
                    "oci-archive" => Self::OciArchive { path, select },
                    "docker-archive" => Self::DockerArchive { path, select },
                    _ => Self::Layout { path, select },
                }
            }
        })
    }
}

/// Takes `:TAG` or `@DIGEST` off a path.
fn selected(text: &str) -> (&str, Select) {
    if let Some((path, digest)) = text.rsplit_once('@')
        && digest.starts_with("sha256:")
    {
        return (path, Select::Digest(digest.to_owned()));
    }
    // A name in full has slashes and colons of its own: the path ends at the first colon.
    match text.split_once(':') {
        Some((path, name)) if !path.is_empty() && !name.is_empty() => (path, Select::Name(name.to_owned())),
        Some((path, "")) => (path, Select::Only),
        _ => (text, Select::Only),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_read_as_skopeo_and_buildx_write_them() {
        let name = |text: &str| Select::Name(text.into());
        let digest = format!("sha256:{}", "a".repeat(64));
        for (text, want) in [
            ("oci:dir", Place::Layout { path: "dir".into(), select: Select::Only }),
            ("oci:/a/b:v1", Place::Layout { path: "/a/b".into(), select: name("v1") }),
            ("oci-layout://./x:v1", Place::Layout { path: "./x".into(), select: name("v1") }),
            (
                &format!("oci-layout:///x@{digest}"),
                Place::Layout { path: "/x".into(), select: Select::Digest(digest.clone()) },
            ),
            ("oci-archive:a.tar", Place::OciArchive { path: "a.tar".into(), select: Select::Only }),
            (
                "docker-archive:a.tar:docker.io/b/c:1",
                Place::DockerArchive { path: "a.tar".into(), select: name("docker.io/b/c:1") },
            ),
            ("store:app", Place::Store("app".into())),
            ("localhost:5000/a:1", Place::Registry("localhost:5000/a:1".parse().unwrap())),
            (
                "docker-daemon:app:1",
                Place::Engine {
                    store: BaseStore::Docker,
                    name: "docker.io/library/app:1".parse().unwrap(),
                    written: "app:1".into(),
                },
            ),
            ("docker://a", Place::Registry("docker.io/library/a:latest".parse().unwrap())),
        ] {
            assert_eq!(Place::parse(text).as_ref(), Ok(&want), "{text}");
        }
        for text in ["oci:", "docker://", "Not A Name", "store:"] {
            assert!(Place::parse(text).is_err(), "{text}");
        }
    }
}
