//! podman's, buildah's and CRI-O's images (github.com/containers/storage), read where they lie: JSON lists of images and
//! layers, and the layers' files. Nothing is locked, written or mounted; what changes meanwhile does not have the right digest.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use graph::{Digest, Platform};
use registry::Reference;
use rustix::fs::OFlags;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use snapshotter::Store;
use snapshotter::layer::compress;

use super::EngineError;
use super::tar_split::TarSplit;
use crate::images::{parse_config, runs_on};
use crate::import::{self, Loaded};

/// Drivers whose directories have a layer's files as they are.
const DRIVERS: [&str; 2] = ["overlay", "vfs"];
/// The largest list and the largest config that are read.
const LIST_MAX: u64 = 64 << 20;
const CONFIG_MAX: u64 = 16 << 20;
/// Layers that lead to layers.
const LAYERS_MAX: usize = 500;

/// A storage of images.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Storage {
    /// Its graph root.
    pub(crate) root: PathBuf,
    /// The one driver that is meant; all that are known, otherwise.
    pub(crate) driver: Option<String>,
}

/// An image of a storage.
#[derive(Debug, Clone)]
pub(super) struct Found {
    /// Digest of its config.
    pub(super) id: Digest,
    storage: PathBuf,
    driver: String,
    layer: Option<String>,
}

/// One of `images.json`.
#[derive(Deserialize)]
struct Image {
    id: String,
    #[serde(default)]
    names: Option<Vec<String>>,
    #[serde(default)]
    layer: Option<String>,
}

/// One of `layers.json`.
#[derive(Deserialize)]
struct Layer {
    id: String,
    #[serde(default)]
    parent: Option<String>,
}

impl Storage {
    /// The image with one of these names, the first that there is.
    pub(super) fn find(&self, names: &[String]) -> Result<Option<Found>, EngineError> {
        for driver in DRIVERS.iter().filter(|driver| self.driver.as_ref().is_none_or(|meant| meant == **driver)) {
            let Some(images) = self.list::<Image>(driver, "images")? else { continue };
            let named = |name: &String| {
                images.iter().find(|image| image.names.as_ref().is_some_and(|names| names.contains(name)))
            };
            let Some(image) = names.iter().find_map(named) else { continue };
            let id = format!("sha256:{}", image.id).parse().map_err(|_| EngineError::Malformed {
                what: format!("image {:?} of {}", image.id, self.root.display()),
                why: "its id is no digest, so it is no OCI or docker image".into(),
            })?;
            let layer = image.layer.clone().filter(|layer| !layer.is_empty());
            return Ok(Some(Found { id, storage: self.root.clone(), driver: (*driver).to_owned(), layer }));
        }
        Ok(None)
    }

    /// A list of the storage; `None`: it has none.
    fn list<T: DeserializeOwned>(&self, driver: &str, what: &str) -> Result<Option<Vec<T>>, EngineError> {
        let path = self.root.join(format!("{driver}-{what}/{what}.json"));
        let bytes = match small(&path, LIST_MAX) {
            Ok(bytes) => bytes,
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied) => {
                return Ok(None);
            }
            Err(source) => return Err(EngineError::Read { what: path.display().to_string(), source }),
        };
        let parsed = serde_json::from_slice(&bytes);
        parsed
            .map(Some)
            .map_err(|error| EngineError::Malformed { what: path.display().to_string(), why: error.to_string() })
    }
}

impl Found {
    /// Takes the image into the store, as far as it is not there; `None`: it is one for another platform.
    pub(super) fn take(&self, store: &Store, platform: &Platform) -> Result<Option<Loaded>, EngineError> {
        let config = self.image_file(&self.id.to_string());
        let read = |source| EngineError::Read { what: config.display().to_string(), source };
        let bytes = small(&config, CONFIG_MAX).map_err(read)?;
        if Digest::of(&bytes) != self.id {
            let why = "the config's bytes are not those of the image's id".into();
            return Err(EngineError::Malformed { what: format!("image {}", self.id), why });
        }
        if !runs_on(&parse_config(&config.display().to_string(), &bytes)?.platform(), platform) {
            return Ok(None);
        }
        let layers = self.layers()?;
        Ok(Some(import::take_parts(store, &bytes, layers.len(), |number| self.tar(&layers[number]))?))
    }

    /// The ids of its layers, the lowest first.
    fn layers(&self) -> Result<Vec<String>, EngineError> {
        let storage = Storage { root: self.storage.clone(), driver: None };
        let known: Vec<Layer> = storage.list(&self.driver, "layers")?.unwrap_or_default();
        // Of containers that are running, and the like.
        let parents: BTreeMap<&str, Option<&str>> =
            known.iter().map(|layer| (layer.id.as_str(), layer.parent.as_deref())).collect();
        let mut layers = Vec::new();
        let mut next = self.layer.as_deref();
        while let Some(id) = next.filter(|id| !id.is_empty()) {
            let parent = parents.get(id).copied().filter(|_| layers.len() < LAYERS_MAX);
            let parent = parent.ok_or_else(|| EngineError::Malformed {
                what: format!("image {}", self.id),
                why: format!("there is no layer {id:?} for it"),
            })?;
            layers.push(id.to_owned());
            next = parent;
        }
        layers.reverse();
        Ok(layers)
    }

    /// The tar of a layer.
    fn tar(&self, layer: &str) -> io::Result<Box<dyn Read + Send>> {
        // An id is a name of a file: it comes from a list that is not ours.
        if !layer.bytes().all(|b| b.is_ascii_alphanumeric()) {
            return Err(io::Error::other(format!("{layer:?} is no id of a layer")));
        }
        let files = match self.driver.as_str() {
            "vfs" => self.storage.join("vfs/dir").join(layer),
            driver => self.storage.join(driver).join(layer).join("diff"),
        };
        let lines = self.storage.join(format!("{}-layers/{layer}.tar-split.gz", self.driver));
        let lines = compress::decoder(BufReader::new(open_regular(&lines)?))?;
        Ok(Box::new(TarSplit::new(BufReader::with_capacity(1 << 16, lines), sys::file::open_root(&files)?)))
    }

    /// Where the storage keeps what it notes of the image under `key`.
    fn image_file(&self, key: &str) -> PathBuf {
        let plain = key.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'.' || b == b'-');
        let name = if plain { key.to_owned() } else { format!("={}", STANDARD.encode(key)) };
        self.storage.join(format!("{}-images", self.driver)).join(self.id.hex()).join(name)
    }
}

/// The names under which a storage may have what a Dockerfile calls `reference`. What podman builds it calls `localhost/NAME`, and
/// finds it there by a name without a host.
pub(super) fn names_of(reference: &Reference, written: &str) -> Vec<String> {
    let mut names = vec![reference.to_string()];
    let first = written.split('/').next().unwrap_or_default();
    let has_host = written.contains('/') && (first.contains(['.', ':']) || first == "localhost");
    if !has_host {
        names.insert(0, format!("localhost/{}", reference.familiar()));
    }
    names
}

/// Does not wait for a pipe's writer.
fn open_regular(path: &Path) -> io::Result<File> {
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    let file = File::options().read(true).custom_flags(flags).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    Ok(file)
}

fn small(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open_regular(path)?.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(io::Error::other("it is too large for what it should be"));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_waited_for_that_is_no_file() {
        let dir = tempfile::tempdir().unwrap();
        let root = sys::file::open_root(dir.path()).unwrap();
        sys::file::mknod(&root, b"pipe", sys::file::Node::Fifo, 0o644).unwrap();
        for name in ["pipe", "."] {
            let error = small(&dir.path().join(name), 10).unwrap_err();
            assert!(error.to_string().contains("not a regular file"), "{error}");
        }
        std::fs::write(dir.path().join("file"), "12345678901").unwrap();
        assert!(small(&dir.path().join("file"), 10).is_err());
        assert_eq!(small(&dir.path().join("file"), 11).unwrap().len(), 11);
    }

    #[test]
    fn an_image_for_another_platform_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("store")).unwrap();
        let config = br#"{"architecture":"arm","variant":"v7","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}"#;
        let id = Digest::of(config);
        let images = dir.path().join("vfs-images");
        std::fs::create_dir_all(images.join(id.hex())).unwrap();
        let list = serde_json::json!([{ "id": id.hex(), "names": ["localhost/app:1"] }]);
        std::fs::write(images.join("images.json"), list.to_string()).unwrap();
        let storage = Storage { root: dir.path().to_owned(), driver: None };
        let found = storage.find(&["localhost/app:1".to_owned()]).unwrap().unwrap();
        std::fs::write(found.image_file(&id.to_string()), config).unwrap();
        for other in ["linux/amd64", "linux/arm/v6"] {
            assert_eq!(found.take(&store, &other.parse().unwrap()).unwrap(), None, "{other}");
        }
        assert_eq!(store.blob_path(&id), None);
        assert_eq!(found.take(&store, &"linux/arm/v7".parse().unwrap()).unwrap().unwrap().id, id);
    }

    #[test]
    fn what_podman_built_is_found_by_its_short_name() {
        for (written, want) in [
            ("app", &["localhost/app:latest", "docker.io/library/app:latest"][..]),
            ("team/app:1", &["localhost/team/app:1", "docker.io/team/app:1"]),
            ("docker.io/library/app", &["docker.io/library/app:latest"]),
            ("localhost/app", &["localhost/app:latest"]),
            ("quay.io/a/b:2", &["quay.io/a/b:2"]),
        ] {
            let reference = crate::images::parse_name(written).unwrap();
            assert_eq!(names_of(&reference, written), want, "{written}");
        }
    }
}
