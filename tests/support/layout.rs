//! OCI layouts as an outsider sees them: written to give a registry something to serve, read to look into what rbuild made.
//! Nothing of rbuild's own reading or writing is used here.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

/// A layout directory with one image.
pub struct Layout {
    dir: PathBuf,
}

/// What is in an image.
pub struct Image {
    pub manifest: Value,
    pub config: Value,
    pub layers: Vec<Vec<Entry>>,
}

/// One tar entry of a layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub path: String,
    pub kind: tar::EntryType,
    pub mode: u32,
    pub uid: u64,
    pub gid: u64,
    pub mtime: u64,
    pub link: Option<String>,
    /// Of a device.
    pub numbers: Option<(u32, u32)>,
    pub pax: BTreeMap<String, Vec<u8>>,
    pub body: Vec<u8>,
}

impl Layout {
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub fn open(dir: &Path) -> Self {
        Self { dir: dir.to_owned() }
    }

    /// Unpacks an OCI archive beside itself.
    pub fn from_archive(archive: &Path) -> Self {
        let dir = archive.with_extension("unpacked");
        let file = File::open(archive).unwrap_or_else(|e| panic!("{}: {e}", archive.display()));
        tar::Archive::new(file).unpack(&dir).expect("an OCI archive is a tar");
        Self { dir }
    }

    /// Writes an image with these layers (uncompressed tars) into `dir`; `config` is the `config` of the image config.
    pub fn write(dir: &Path, layers: &[&Path], config: &Value) -> Self {
        let blobs = dir.join("blobs/sha256");
        fs::create_dir_all(&blobs).expect("our directory");
        let put = |bytes: &[u8]| {
            let digest = hex::encode(Sha256::digest(bytes));
            fs::write(blobs.join(&digest), bytes).expect("our directory");
            digest
        };
        let (mut descriptors, mut diff_ids) = (Vec::new(), Vec::new());
        for layer in layers {
            let bytes = fs::read(layer).unwrap_or_else(|e| panic!("{}: {e}", layer.display()));
            let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            gzip.write_all(&bytes).and_then(|()| gzip.flush()).expect("memory takes it");
            let packed = gzip.finish().expect("memory takes it");
            diff_ids.push(format!("sha256:{}", hex::encode(Sha256::digest(&bytes))));
            descriptors.push(json!({
                "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
                "digest": format!("sha256:{}", put(&packed)),
                "size": packed.len(),
            }));
        }
        let history: Vec<_> = layers.iter().map(|_| json!({ "created_by": "test base" })).collect();
        let config = json!({
            "architecture": architecture(), "os": "linux", "config": config,
            "rootfs": { "type": "layers", "diff_ids": diff_ids }, "history": history,
        });
        let config = config.to_string();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": format!("sha256:{}", put(config.as_bytes())), "size": config.len(),
            },
            "layers": descriptors,
        });
        let manifest = manifest.to_string();
        let index = json!({
            "schemaVersion": 2,
            "manifests": [{
                "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "digest": format!("sha256:{}", put(manifest.as_bytes())), "size": manifest.len(),
                "annotations": { "org.opencontainers.image.ref.name": "latest" },
            }],
        });
        fs::write(dir.join("index.json"), index.to_string()).expect("our directory");
        fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).expect("our directory");
        Self { dir: dir.to_owned() }
    }

    /// The bytes of a blob, which must have the digest that names them.
    #[track_caller]
    pub fn blob(&self, digest: &str) -> Vec<u8> {
        let (algorithm, hash) = digest.split_once(':').unwrap_or_else(|| panic!("no digest: {digest:?}"));
        let path = self.dir.join("blobs").join(algorithm).join(hash);
        let bytes = fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        assert_eq!(hex::encode(Sha256::digest(&bytes)), hash, "the bytes of {digest} have another digest");
        bytes
    }

    /// The one image of the layout, every size, digest and diff id checked.
    #[track_caller]
    pub fn image(&self) -> Image {
        let mut images = self.images();
        assert_eq!(images.len(), 1, "one image expected");
        images.remove(0)
    }

    /// The images of the layout, those of an index one by one.
    #[track_caller]
    pub fn images(&self) -> Vec<Image> {
        let index: Value = parse(&fs::read(self.dir.join("index.json")).expect("a layout has an index.json"));
        let mut todo = index["manifests"].as_array().cloned().unwrap_or_default();
        let mut images = Vec::new();
        while let Some(descriptor) = (!todo.is_empty()).then(|| todo.remove(0)) {
            let manifest = parse(&self.described(&descriptor));
            match manifest["manifests"].as_array() {
                Some(inner) => todo.extend(inner.iter().cloned()),
                None => images.push(self.image_of(manifest)),
            }
        }
        images
    }

    #[track_caller]
    fn image_of(&self, manifest: Value) -> Image {
        let config = parse(&self.described(&manifest["config"]));
        let diff_ids = config["rootfs"]["diff_ids"].as_array().cloned().unwrap_or_default();
        let descriptors = manifest["layers"].as_array().cloned().unwrap_or_default();
        assert_eq!(diff_ids.len(), descriptors.len(), "as many diff ids as layers");
        let layers = descriptors.iter().zip(&diff_ids).map(|(descriptor, diff_id)| {
            let tar = unpacked(&self.described(descriptor));
            assert_eq!(
                diff_id.as_str(),
                Some(&*format!("sha256:{}", hex::encode(Sha256::digest(&tar)))),
                "diff id of a layer"
            );
            entries(&tar)
        });
        let layers = layers.collect();
        let steps = config["history"].as_array().cloned().unwrap_or_default();
        if !steps.is_empty() {
            let with_layer = steps.iter().filter(|h| h["empty_layer"] != true).count();
            assert_eq!(with_layer, diff_ids.len(), "history and layers agree: {config}");
        }
        Image { manifest, config, layers }
    }

    #[track_caller]
    fn described(&self, descriptor: &Value) -> Vec<u8> {
        let bytes = self.blob(descriptor["digest"].as_str().unwrap_or_default());
        assert_eq!(descriptor["size"].as_u64(), Some(bytes.len() as u64), "size of {descriptor}");
        bytes
    }
}

impl Image {
    /// The last layer's entry at `path`, as written there.
    pub fn find(&self, path: &str) -> Option<&Entry> {
        self.layers.iter().rev().find_map(|layer| layer.iter().find(|e| e.path.trim_end_matches('/') == path))
    }

    /// `config.FIELD` of the config.
    pub fn setting(&self, field: &str) -> &Value {
        &self.config["config"][field]
    }

    /// The digests of the layers.
    pub fn layer_digests(&self) -> Vec<String> {
        let layers = self.manifest["layers"].as_array().cloned().unwrap_or_default();
        layers.iter().map(|l| l["digest"].as_str().unwrap_or_default().to_owned()).collect()
    }
}

/// The entries of an uncompressed tar.
pub fn entries(tar: &[u8]) -> Vec<Entry> {
    let mut archive = tar::Archive::new(tar);
    let mut list = Vec::new();
    for entry in archive.entries().expect("a tar") {
        let mut entry = entry.expect("a tar entry");
        let mut pax = BTreeMap::new();
        if let Some(extensions) = entry.pax_extensions().expect("PAX records") {
            for record in extensions {
                let record = record.expect("a PAX record");
                pax.insert(String::from_utf8_lossy(record.key_bytes()).into_owned(), record.value_bytes().to_vec());
            }
        }
        let mut body = Vec::new();
        entry.read_to_end(&mut body).expect("the entry's bytes");
        let header = entry.header();
        list.push(Entry {
            path: String::from_utf8_lossy(&entry.path_bytes()).into_owned(),
            kind: header.entry_type(),
            mode: header.mode().expect("a mode"),
            uid: header.uid().expect("a uid"),
            gid: header.gid().expect("a gid"),
            mtime: header.mtime().expect("an mtime"),
            numbers: header
                .entry_type()
                .is_block_special()
                .then_some(())
                .or(header.entry_type().is_character_special().then_some(()))
                .and_then(|()| Some((header.device_major().ok()??, header.device_minor().ok()??))),
            link: entry.link_name_bytes().map(|l| String::from_utf8_lossy(&l).into_owned()),
            pax,
            body,
        });
    }
    list
}

/// By magic number, as no media type can be trusted in a test.
fn unpacked(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    match bytes {
        [0x1f, 0x8b, ..] => drop(flate2::read::MultiGzDecoder::new(bytes).read_to_end(&mut out).expect("gzip")),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => out = zstd::decode_all(bytes).expect("zstd"),
        _ => out = bytes.to_vec(),
    }
    out
}

#[track_caller]
fn parse(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).unwrap_or_else(|e| panic!("JSON: {e}: {}", String::from_utf8_lossy(bytes)))
}

/// GOARCH of this machine.
pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}
