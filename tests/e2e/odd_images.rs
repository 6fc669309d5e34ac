//! Images that are within the rules and unlike most: indexes of indexes, foreign layers, things that are no images.

use registry::fake::Fake;
use registry::{OCI_INDEX, OCI_MANIFEST, digest_of};
use serde_json::{Value, json};

use crate::support::{FileServer, Layout, Registry, Served, TestEnv, busybox_base, require};

const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// A registry in memory; rbuild runs while this thread waits.
struct Shelf {
    _runtime: tokio::runtime::Runtime,
    fake: Fake,
}

impl Shelf {
    fn new() -> Self {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        let runtime = builder.worker_threads(1).enable_all().build().expect("threads");
        let fake = runtime.block_on(Fake::start()).expect("a port");
        Self { _runtime: runtime, fake }
    }

    fn blob(&self, media_type: &str, bytes: &[u8]) -> Value {
        self.fake.add_blob("a/b", bytes.to_vec());
        described(media_type, bytes)
    }

    /// What names a manifest or index, which is there by its digest and by `tag`.
    fn manifest(&self, tag: &str, media_type: &str, document: &Value) -> Value {
        let text = document.to_string();
        self.fake.add_manifest("a/b", tag, media_type, text.clone());
        described(media_type, text.as_bytes())
    }

    /// An image for an architecture, with layers that are described elsewhere.
    fn image(&self, architecture: &str, layers: &[(&[u8], Value)]) -> Value {
        self.tagged(architecture, architecture, layers)
    }

    fn tagged(&self, tag: &str, architecture: &str, layers: &[(&[u8], Value)]) -> Value {
        let diff_ids: Vec<String> = layers.iter().map(|(tar, _)| digest_of(tar).to_string()).collect();
        let config = json!({ "architecture": architecture, "os": "linux", "config": {},
            "rootfs": { "type": "layers", "diff_ids": diff_ids } });
        let config = self.blob(CONFIG, config.to_string().as_bytes());
        let layers: Vec<&Value> = layers.iter().map(|(_, layer)| layer).collect();
        let image = json!({ "schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": layers });
        self.manifest(tag, OCI_MANIFEST, &image)
    }

    fn index(&self, tag: &str, children: &[&Value]) -> Value {
        let index = json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": children });
        self.manifest(tag, OCI_INDEX, &index)
    }

    fn name(&self, tag: &str) -> String {
        format!("{}/a/b:{tag}", self.fake.host())
    }
}

fn described(media_type: &str, bytes: &[u8]) -> Value {
    json!({ "mediaType": media_type, "digest": digest_of(bytes).to_string(), "size": bytes.len() })
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut gzip, bytes).expect("memory takes it");
    gzip.finish().expect("memory takes it")
}

fn tar_of(name: &str, content: &str) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(content.len() as u64);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    tar.append_data(&mut header, name, content.as_bytes()).expect("memory takes it");
    tar.into_inner().expect("memory takes it")
}

#[test]
fn an_image_is_found_in_indexes_that_do_not_say_what_they_have() {
    let shelf = Shelf::new();
    let image = |architecture: &str| {
        let tar = tar_of("which", architecture);
        shelf.image(architecture, &[(&tar, shelf.blob(LAYER, &tar))])
    };
    let (amd64, arm64) = (image("amd64"), image("arm64"));
    let of = |architecture: &str, image: &Value| {
        let mut image = image.clone();
        image["platform"] = json!({ "os": "linux", "architecture": architecture });
        image
    };
    shelf.index("flat", &[&arm64, &amd64]);
    let arm = shelf.index("arm", &[&of("arm64", &arm64)]);
    let amd = shelf.index("amd", &[&of("amd64", &amd64)]);
    shelf.index("deep", &[&arm, &amd]);
    let mixed = shelf.index("mixed", &[&amd, &arm64]);
    shelf.index("deeper", &[&mixed, &arm]);
    let env = TestEnv::new();
    for tag in ["flat", "deep", "deeper"] {
        for architecture in ["amd64", "arm64"] {
            let context = env.dockerfile("c", &format!("FROM {}\n", shelf.name(tag)));
            let (platform, out) = (format!("linux/{architecture}"), env.path("out"));
            let to = out.display().to_string();
            env.build(&context, &["--pull", "--platform", &platform, "-o", &to]).ok();
            assert_eq!(std::fs::read_to_string(out.join("which")).expect("there"), architecture, "{tag}");
        }
        let context = env.dockerfile("c", &format!("FROM {}\n", shelf.name(tag)));
        env.build(&context, &["--platform", "linux/s390x"])
            .run()
            .exits(4)
            .contains("no image for platform linux/s390x");
    }
    // One that leads on and on is given up.
    let mut index = shelf.index("0", &[&arm, &arm]);
    for n in 1..30 {
        index = shelf.index(&n.to_string(), &[&index, &index]);
    }
    let context = env.dockerfile("c", &format!("FROM {}\n", shelf.name("29")));
    env.build(&context, &[]).timeout(60).run().exits(1).contains("too many further ones");
}

#[test]
fn foreign_layers_come_from_where_the_image_says() {
    let (shelf, files, env) = (Shelf::new(), FileServer::start(), TestEnv::new());
    // Nobody but the user may say that an image's own addresses lead to this machine.
    let plain = format!("[registry.{:?}]\nhttp = true\n", files.url("").trim_start_matches("http://"));
    env.configure(&plain);
    let tar = tar_of("from-afar", "foreign");
    let mut layer = described("application/vnd.oci.image.layer.nondistributable.v1.tar", &tar);
    layer["urls"] = json!(["https://nowhere.invalid/layer", files.url("/layer")]);
    shelf.image("amd64", &[(&tar, layer)]);
    files.serve("/layer", Served::ok(tar));
    let name = shelf.name("amd64");
    let context = env.dockerfile("c", &format!("FROM {name}\nCOPY Dockerfile /\n"));
    let archive = env.path("out.tar");
    let output = format!("type=oci,dest={}", archive.display());
    env.build(&context, &["--platform", "linux/amd64", "-o", &output]).timeout(120).ok();
    let image = Layout::from_archive(&archive).image();
    assert!(image.find("from-afar").is_some() && image.find("Dockerfile").is_some());
    env.rbuild(["inspect", "--validate", &format!("oci-archive:{}", archive.display())]).ok();
    // Bytes that are not the layer's are not taken.
    files.serve("/layer", Served::ok(tar_of("from-afar", "forged!")));
    let other = TestEnv::new();
    other.configure(&plain);
    let out = other.path("out").display().to_string();
    let context = other.dockerfile("c", &format!("FROM {name}\n"));
    other.build(&context, &["--platform", "linux/amd64", "-o", &out]).timeout(120).run().exits(4);
    assert!(!other.path("out/from-afar").exists());
}

/// As with skopeo: what only its owner hands out is neither sent nor put into layouts, and is there for whoever needs it.
#[test]
fn foreign_layers_are_pulled_and_copied_by_their_addresses() {
    if !require(&["docker-registry", "skopeo", "setpriv"]) {
        return;
    }
    let (shelf, files, env, other) = (Shelf::new(), FileServer::start(), TestEnv::new(), TestEnv::new());
    let plain = format!("[registry.{:?}]\nhttp = true\n", files.url("").trim_start_matches("http://"));
    [&env, &other].iter().for_each(|env| env.configure(&plain));
    let (own, tar) = (tar_of("own", "ours"), tar_of("from-afar", "foreign"));
    let (own_packed, packed) = (gzip(&own), gzip(&tar));
    let hex = digest_of(&packed).to_string().trim_start_matches("sha256:").to_owned();
    for (kind, tag) in [
        ("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", "docker"),
        ("application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", "oci"),
    ] {
        let mut layer = described(kind, &packed);
        layer["urls"] = json!(["https://nowhere.invalid/layer", files.url("/layer")]);
        let own_layer = shelf.blob(&format!("{LAYER}+gzip"), &own_packed);
        let layers = [(own.as_slice(), own_layer), (tar.as_slice(), layer)];
        let want = shelf.tagged(tag, "amd64", &layers)["digest"].as_str().expect("a digest").to_owned();
        let name = shelf.name(tag);
        let context = |env: &TestEnv, name: &str| env.dockerfile("c", &format!("FROM {name}\nCOPY Dockerfile /\n"));
        let builds = |env: &TestEnv, name: &str| {
            let out = env.path(format!("out-{tag}-{}", name.replace(['/', ':'], "-")));
            env.build(&context(env, name), &["--platform", "linux/amd64", "-o", &out.display().to_string()]).ok();
            assert_eq!(std::fs::read_to_string(out.join("from-afar")).expect("there"), "foreign");
        };

        // Bytes that are not the layer's are not taken.
        files.serve("/layer", Served::ok(tar_of("from-afar", "forged!")));
        let forged = TestEnv::new();
        forged.configure(&plain);
        forged.rbuild(["pull", "--platform", "linux/amd64", &name]).timeout(120).run().exits(4);
        files.serve("/layer", Served::ok(packed.clone()));
        env.rbuild(["pull", "--platform", "linux/amd64", &name]).timeout(120).ok();
        builds(&env, &name);

        let (one, two, peer) =
            (Registry::of_foreign_layers(), Registry::of_foreign_layers(), Registry::of_foreign_layers());
        let layout = env.path(format!("layout-{tag}"));
        let at = format!("oci:{}:1", layout.display());
        for (from, to) in [(&name, &one.name("a:1")), (&one.name("a:1"), &at), (&at, &two.name("b:1"))] {
            assert_eq!(env.rbuild(["copy", from, to]).ok().line(), want, "{from} to {to}");
        }
        assert!(!layout.join("blobs/sha256").join(&hex).exists());
        let copied = one.skopeo("copy").args(["--src-tls-verify=false", "--dest-tls-verify=false"]);
        copied.arg(format!("docker://{name}")).arg(format!("docker://{}", peer.name("a:1"))).ok();
        let has = |registry: &Registry| {
            registry.data().join(format!("docker/registry/v2/blobs/sha256/{}/{hex}", &hex[..2])).exists()
        };
        for registry in [&one, &two, &peer] {
            assert!(!has(registry), "nobody was sent it");
            // The layer and the config.
            assert_eq!(registry.uploads(), 2);
        }
        // Others read what we wrote.
        let read = one.skopeo("copy").args(["--dest-tls-verify=false", &at]);
        read.arg(format!("docker://{}", peer.name("again:1"))).ok();
        let digest = |name: &str| {
            let digest = one.skopeo("inspect").args(["--tls-verify=false", "--raw"]).arg(format!("docker://{name}"));
            digest_of(digest.ok().stdout.as_bytes()).to_string()
        };
        assert_eq!([digest(&peer.name("a:1")), digest(&peer.name("again:1"))], [want.clone(), want.clone()]);

        // What was pulled is pushed in the same way.
        let pushed = two.name("pushed:1");
        env.rbuild(["tag", &name, &pushed]).ok();
        env.rbuild(["push", &pushed]).ok().contains(&want);
        assert!(!has(&two));

        // Where all of it is needed it is fetched, if the user's configuration lets the image name that host.
        let other = if tag == "oci" { &other } else { &env };
        other.rbuild(["copy", &at, &format!("store:kept-{tag}")]).ok();
        builds(other, &format!("kept-{tag}"));
        other.rbuild(["inspect", "--validate", &at]).ok().contains("valid");
        let archive = env.path(format!("{tag}.tar"));
        other.rbuild(["copy", &at, &format!("docker-archive:{}:x:1", archive.display())]).ok();
        assert!(std::fs::read(&archive).expect("written").windows(packed.len()).any(|part| part == packed));
        let strict = TestEnv::new();
        strict.rbuild(["copy", &at, "store:kept"]).timeout(120).run().exits(1).contains("may only name URLs of HTTPS");

        // A registry that has it is asked first.
        files.requests();
        shelf.fake.add_blob("a/b", packed.clone());
        let fresh = TestEnv::new();
        fresh.rbuild(["pull", "--platform", "linux/amd64", &name]).ok();
        builds(&fresh, &name);
        assert!(files.requests().is_empty());
        shelf.fake.remove_blob("a/b", &digest_of(&packed));
    }
}

/// Windows are accepted as containerd accepts them; more is not held.
#[test]
fn layers_with_a_large_zstd_window_are_unpacked() {
    if !require(&["zstd"]) {
        return;
    }
    let (shelf, env) = (Shelf::new(), TestEnv::new());
    let file = env.path("layer.tar");
    for (log, taken) in [("27", true), ("28", true), ("29", true), ("30", false)] {
        let tar = tar_of("which", log);
        std::fs::write(&file, &tar).expect("ours");
        // From a pipe zstd knows no length, and takes the window that it is told.
        let script =
            format!("cat {} | zstd -q --ultra --long={log} -c > {}", file.display(), env.path("packed").display());
        env.program("sh").args(["-c", &script]).ok();
        let packed = std::fs::read(env.path("packed")).expect("just made");
        shelf.tagged(log, "amd64", &[(&tar, shelf.blob(&format!("{LAYER}+zstd"), &packed))]);
        let context = env.dockerfile("c", &format!("FROM {}\n", shelf.name(log)));
        let out = env.path(format!("out-{log}"));
        let build = env.build(&context, &["--platform", "linux/amd64", "-o", &out.display().to_string()]);
        if taken {
            build.ok();
            assert_eq!(std::fs::read_to_string(out.join("which")).expect("there"), log);
        } else {
            build.run().exits(1).contains("a window of more than 512 MiB");
        }
    }
}

#[test]
fn what_is_no_image_is_called_by_its_type() {
    let (shelf, env) = (Shelf::new(), TestEnv::new());
    let kind = "application/vnd.cncf.helm.config.v1+json";
    let config = shelf.blob(kind, br#"{"name":"chart","version":"1"}"#);
    let layer = shelf.blob("application/vnd.cncf.helm.chart.content.v1.tar+gzip", b"chart");
    let chart = json!({ "schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": [layer] });
    shelf.manifest("chart", OCI_MANIFEST, &chart);
    let context = env.dockerfile("c", &format!("FROM {}\nRUN x\n", shelf.name("chart")));
    env.build(&context, &[]).run().exits(1).contains(kind);
}

/// What was made of a base for one output is not what another gets.
#[test]
fn a_base_leaves_as_it_came_whatever_was_made_of_it_before() {
    let (shelf, env) = (Shelf::new(), TestEnv::busybox());
    let tar = std::fs::read(busybox_base().tar).expect("made before");
    shelf.image("amd64", &[(&tar, shelf.blob(LAYER, &tar))]);
    let context = env.dockerfile("c", &format!("FROM {}\nCOPY Dockerfile /\n", shelf.name("amd64")));
    let local = env.dockerfile("l", "FROM busybox\nCOPY Dockerfile /\n");
    let layers = |context: &crate::support::Context, keys: &str| {
        let dest = env.path("out.tar");
        let output = format!("type=oci,dest={}{keys}", dest.display());
        env.build(context, &["--platform", "linux/amd64", "-o", &output]).ok();
        Layout::from_archive(&dest).image().layer_digests()
    };
    let (first, own) = (layers(&context, ""), layers(&local, ""));
    for keys in [
        ",compression=zstd,force-compression=true",
        ",compression=uncompressed,force-compression=true",
        ",compression=gzip,force-compression=true",
        ",compression=gzip,compression-level=9,force-compression=true",
        ",compression=gzip,compression-level=1",
    ] {
        layers(&context, keys);
        layers(&local, keys);
        assert_eq!(layers(&context, ""), first, "after {keys}");
        // Imported without any compression, it has what is asked for.
        assert_eq!(layers(&local, ""), own, "after {keys}");
    }
}
