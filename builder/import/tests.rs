//! Archives as they come, and as an attacker would make them.

use std::io::Read;

use graph::{Digest, Platform};
use serde_json::{Value, json};
use snapshotter::Store;

use super::{Changes, ImportError, Input, Loaded, RootFileSystem, Wanted, load, root_file_system};

/// A tar in the making.
struct Archive(tar::Builder<Vec<u8>>);

impl Archive {
    fn new() -> Self {
        Self(tar::Builder::new(Vec::new()))
    }

    fn file(mut self, name: &str, bytes: impl AsRef<[u8]>) -> Self {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.as_ref().len() as u64);
        header.set_mode(0o644);
        self.0.append_data(&mut header, name, bytes.as_ref()).unwrap();
        self
    }

    fn link(mut self, name: &str, target: &str) -> Self {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        self.0.append_link(&mut header, name, target).unwrap();
        self
    }

    /// Under its digest, as in a layout; the descriptor.
    fn blob(self, media_type: &str, bytes: &[u8]) -> (Self, Value) {
        let digest = Digest::of(bytes);
        let descriptor = json!({ "mediaType": media_type, "digest": digest, "size": bytes.len() });
        (self.file(&format!("blobs/sha256/{}", digest.hex()), bytes), descriptor)
    }

    fn done(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

fn layer(content: &str) -> Vec<u8> {
    Archive::new().file("f", content).done()
}

fn config(layers: &[&[u8]]) -> Vec<u8> {
    let diff_ids: Vec<Digest> = layers.iter().map(|layer| Digest::of(layer)).collect();
    json!({ "architecture": "amd64", "os": "linux", "config": {}, "rootfs": { "type": "layers", "diff_ids": diff_ids } })
        .to_string()
        .into_bytes()
}

fn docker(names: &[&str], config: &str, layers: &[&str]) -> String {
    json!([{ "Config": config, "RepoTags": names, "Layers": layers }]).to_string()
}

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// An image's blobs in a layout; its manifest's descriptor.
fn image(archive: Archive, content: &str) -> (Archive, Value) {
    let layer = layer(content);
    let (archive, layer_descriptor) = archive.blob(LAYER, &layer);
    let (archive, config) = archive.blob("application/vnd.oci.image.config.v1+json", &config(&[&layer]));
    let manifest = json!({ "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [layer_descriptor] });
    archive.blob(MANIFEST, manifest.to_string().as_bytes())
}

fn index(manifests: &[Value]) -> String {
    json!({ "schemaVersion": 2, "manifests": manifests }).to_string()
}

fn with(mut descriptor: Value, field: &str, value: Value) -> Value {
    descriptor[field] = value;
    descriptor
}

/// Loads into a store of its own.
fn taken(archive: Vec<u8>) -> (Result<Vec<Loaded>, ImportError>, Store, tempfile::TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(&directory.path().join("store")).unwrap();
    let input: Box<dyn Read + Send> = Box::new(std::io::Cursor::new(archive));
    let platform = "linux/amd64".parse::<Platform>().unwrap();
    (load(&store, Input::Archive(input), Wanted::Only(&platform)), store, directory)
}

/// An error, and no image that has a name.
fn refused(archive: Vec<u8>) -> String {
    let (result, store, _directory) = taken(archive);
    assert!(store.images().unwrap().is_empty());
    result.expect_err("it should be refused").to_string()
}

#[test]
fn a_docker_archive_with_shared_layers_by_link() {
    let (low, high) = (layer("low"), layer("high"));
    let config = config(&[&low, &high, &low]);
    let archive = Archive::new()
        .file("a/layer.tar", &low)
        .file("./b/layer.tar", &high)
        .link("c/layer.tar", "../a/layer.tar")
        .file("a/VERSION", "1.0")
        .file("x.json", &config)
        .file(
            "manifest.json",
            docker(&["app:1", "host/app:2"], "x.json", &["a/layer.tar", "b/layer.tar", "c/layer.tar"]),
        );
    let (loaded, store, _directory) = taken(archive.done());
    let loaded = loaded.unwrap();
    let names: Vec<String> = loaded[0].names.iter().map(ToString::to_string).collect();
    assert_eq!(names, ["docker.io/library/app:1", "docker.io/host/app:2"]);
    assert_eq!(loaded[0].id, Digest::of(&config));
    let chain = crate::images::chain_of(&[Digest::of(&low), Digest::of(&high), Digest::of(&low)]).unwrap();
    assert_eq!(store.chain_layers(&chain).unwrap().len(), 3);
    assert_eq!(store.image("docker.io/library/app:1").unwrap().unwrap().config, Digest::of(&config));
}

#[test]
fn a_layout_keeps_its_manifest() {
    let (archive, manifest) = image(Archive::new(), "x");
    let names = json!({ "io.containerd.image.name": "docker.io/library/app:1" });
    let (attestations, attestation) = archive.blob(MANIFEST, b"{\"provenance\": 1}");
    let attestation = with(attestation, "annotations", json!({ "vnd.docker.reference.type": "attestation-manifest" }));
    let archive = attestations.file("index.json", index(&[with(manifest.clone(), "annotations", names), attestation]));
    let (loaded, store, _directory) = taken(archive.done());
    assert_eq!(loaded.unwrap().len(), 1);
    let record = store.image("docker.io/library/app:1").unwrap().unwrap();
    assert_eq!(json!(record.manifest.unwrap().digest), manifest["digest"]);
}

#[test]
fn of_several_platforms_one_is_taken() {
    let (archive, ours) = image(Archive::new(), "ours");
    let (archive, theirs) = image(archive, "theirs");
    let platform = |architecture: &str| json!({ "os": "linux", "architecture": architecture });
    let inner =
        index(&[with(theirs, "platform", platform("s390x")), with(ours.clone(), "platform", platform("amd64"))]);
    let (archive, outer) = archive.blob("application/vnd.oci.image.index.v1+json", inner.as_bytes());
    let (loaded, _store, _directory) = taken(archive.file("index.json", index(&[outer])).done());
    let loaded = loaded.unwrap();
    assert_eq!(json!(loaded[0].manifest.as_ref().unwrap().digest), ours["digest"]);
    assert!(loaded[0].names.is_empty());
}

#[test]
fn a_layer_must_be_what_the_config_says() {
    let (good, evil) = (layer("good"), layer("evil"));
    let archive = Archive::new()
        .file("l.tar", &evil)
        .file("c.json", config(&[&good]))
        .file("manifest.json", docker(&["app"], "c.json", &["l.tar"]));
    assert!(refused(archive.done()).contains(&Digest::of(&good).to_string()));
    let archive = Archive::new()
        .file("l.tar", "no tar at all")
        .file("c.json", config(&[b"no tar at all"]))
        .file("manifest.json", docker(&["app"], "c.json", &["l.tar"]));
    refused(archive.done());
}

#[test]
fn a_blob_must_have_the_digest_of_its_name() {
    let (archive, manifest) = image(Archive::new(), "x");
    let archive = archive.file(&format!("blobs/sha256/{}", "0".repeat(64)), "other bytes");
    assert!(refused(archive.file("index.json", index(&[manifest])).done()).contains("digest"));
}

#[test]
fn what_does_not_fit_is_refused_whole() {
    let layer = layer("x");
    let config = config(&[&layer]);
    let base = || Archive::new().file("l.tar", &layer).file("c.json", &config);
    for (manifest, want) in [
        (docker(&["app"], "c.json", &[]), "1 diff ids, but there are 0 layers"),
        (docker(&["app"], "c.json", &["l.tar", "l.tar"]), "there are 2 layers"),
        (docker(&["app"], "d.json", &["l.tar"]), "has no d.json"),
        (docker(&["app"], "c.json", &["../../../l.tarr"]), "has no l.tarr"),
        (docker(&["app"], "l.tar", &["l.tar"]), "config"),
        (docker(&["App:::"], "c.json", &["l.tar"]), "invalid image name"),
        ("[{}]".to_owned(), "manifest.json"),
        ("null".to_owned(), "manifest.json"),
        ("[".repeat(100_000), "manifest.json"),
    ] {
        let said = refused(base().file("manifest.json", manifest).done());
        assert!(said.contains(want), "{said}");
    }
    assert!(matches!(taken(base().done()).0, Err(ImportError::NoImage)));
    let (archive, manifest) = image(Archive::new(), "x");
    let short = with(manifest, "size", json!(1));
    assert!(refused(archive.file("index.json", index(&[short])).done()).contains("bytes, not 1"));
    // The second of two images is bad: the first gets no name either.
    let (archive, manifest) = image(Archive::new(), "x");
    let named = with(manifest, "annotations", json!({ "io.containerd.image.name": "app:1" }));
    let missing = json!({ "mediaType": MANIFEST, "digest": Digest::of(b"nowhere"), "size": 7 });
    refused(archive.file("index.json", index(&[named, missing])).done());
}

#[test]
fn links_that_lead_nowhere_or_in_circles_end() {
    let config = config(&[b"x"]);
    for (name, target) in [("l", "l"), ("l", "m"), ("l", "/etc/passwd")] {
        let archive = Archive::new()
            .link(name, target)
            .link("m", "l")
            .file("c.json", &config)
            .file("manifest.json", docker(&["app"], "c.json", &["l"]));
        refused(archive.done());
    }
}

#[test]
fn a_directory_is_a_layout_too() {
    let (archive, manifest) = image(Archive::new(), "x");
    let named = with(manifest, "annotations", json!({ "org.opencontainers.image.ref.name": "app:1" }));
    let bytes = archive.file("index.json", index(&[named])).done();
    let directory = tempfile::tempdir().unwrap();
    tar::Archive::new(bytes.as_slice()).unpack(directory.path().join("layout")).unwrap();
    let store = Store::open(&directory.path().join("store")).unwrap();
    let loaded = load(&store, Input::Directory(directory.path().join("layout")), Wanted::All).unwrap();
    assert_eq!(loaded[0].names[0].familiar(), "app:1");
    let empty = Input::Directory(directory.path().to_owned());
    assert!(matches!(load(&store, empty, Wanted::All), Err(ImportError::NoImage)));
}

#[test]
fn a_root_file_system_becomes_an_image_whatever_it_is_compressed_with() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(&directory.path().join("store")).unwrap();
    let platform = Platform::host();
    let image = RootFileSystem {
        changes: Changes::parse(&["CMD [\"x\"]".to_owned()], &platform).unwrap(),
        platform,
        message: "imported".into(),
        name: Some("app:1".parse().unwrap()),
    };
    let tar = layer("x");
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut gzip, &tar).unwrap();
    let zstd = zstd::encode_all(tar.as_slice(), 1).unwrap();
    let now = jiff::Timestamp::UNIX_EPOCH;
    for bytes in [tar.clone(), gzip.finish().unwrap(), zstd] {
        let id = root_file_system(&store, Box::new(std::io::Cursor::new(bytes)), &image, now).unwrap();
        let config = store.read_blob(&id).unwrap().unwrap();
        let config: graph::ImageConfig = serde_json::from_slice(&config).unwrap();
        assert_eq!(config.rootfs.diff_ids, [Digest::of(&tar)]);
        assert_eq!(config.config.cmd, Some(vec!["x".to_owned()]));
        assert_eq!(store.image("docker.io/library/app:1").unwrap().unwrap().config, id);
    }
    for bad in [&b""[..], b"no tar", &tar[..700]] {
        assert!(root_file_system(&store, Box::new(std::io::Cursor::new(bad.to_vec())), &image, now).is_err());
    }
}
