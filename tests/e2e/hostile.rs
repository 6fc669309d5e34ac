//! Registries that lie, end to end: what a build or pull makes of them, and that nothing of it stays.

use std::io::Write as _;

use registry::fake::{Fake, Fault};
use registry::{OCI_INDEX, OCI_MANIFEST, digest_of};
use serde_json::{Value, json};

use crate::support::{Outcome, TestEnv, busybox_base, require};

const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(bytes).and_then(|()| gzip.flush()).expect("memory takes it");
    gzip.finish().expect("memory takes it")
}

/// A registry in memory; rbuild runs while this thread waits.
struct Liar {
    runtime: tokio::runtime::Runtime,
    fake: Fake,
}

impl Liar {
    fn new() -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("threads");
        let fake = runtime.block_on(Fake::start()).expect("a port");
        Self { runtime, fake }
    }

    fn blob(&self, media_type: &str, bytes: &[u8]) -> Value {
        self.fake.add_blob("a/b", bytes.to_vec());
        json!({ "mediaType": media_type, "digest": digest_of(bytes).to_string(), "size": bytes.len() })
    }

    /// An image of one layer, its config and manifest changed.
    fn image(&self, layer: &[u8], change: impl FnOnce(&mut Value, &mut Value)) {
        let mut config = json!({
            "architecture": "amd64", "os": "linux", "config": { "Cmd": ["sh"] },
            "rootfs": { "type": "layers", "diff_ids": [digest_of(layer).to_string()] },
        });
        let mut manifest = json!({
            "schemaVersion": 2, "mediaType": OCI_MANIFEST, "layers": [self.blob(LAYER, &gzip(layer))], "config": null,
        });
        change(&mut config, &mut manifest);
        if manifest["config"].is_null() {
            manifest["config"] = self.blob(CONFIG, config.to_string().as_bytes());
        }
        self.fake.add_manifest("a/b", "1", OCI_MANIFEST, manifest.to_string());
    }

    fn name(&self) -> String {
        format!("{}/a/b:1", self.fake.host())
    }

    /// A build upon the image, which must fail without panic and in time, and leave no image behind.
    #[track_caller]
    fn refused(&self, why: &str) -> Outcome {
        let env = TestEnv::new();
        let context = env.dockerfile("c", &format!("FROM {}\nRUN echo ran\n", self.name()));
        let out = env.build(&context, &["-t", "it"]).timeout(60).run();
        assert!(matches!(out.code, Some(1 | 4)), "{why}: {}", out.text());
        let out = out.lacks("panicked").lacks("internal error").lacks("RUST_BACKTRACE");
        env.rbuild(["pull", &self.name()]).timeout(60).run().lacks("panicked");
        // What only shows when a layer is unpacked is noticed then.
        if !env.rbuild(["images", "-q"]).ok().stdout.is_empty() {
            env.rbuild(["run", &self.name(), "true"]).timeout(60).run().exits(125).lacks("panicked");
        }
        out
    }
}

#[test]
fn images_that_do_not_fit_together_are_refused() {
    let busybox = std::fs::read(busybox_base().tar).expect("made by the harness");
    let zeros = format!("sha256:{}", "0".repeat(64));
    type Change = fn(&mut Value, &mut Value);
    let changes: Vec<(&str, Change, &str)> = vec![
        ("no layers", |_, manifest| manifest["layers"] = json!([]), "diff ids"),
        ("null layers", |_, manifest| manifest["layers"] = json!(null), "diff ids"),
        ("one layer too many", |_, m| m["layers"] = json!([m["layers"][0], m["layers"][0]]), "diff ids"),
        ("another diff id", |c, _| c["rootfs"]["diff_ids"] = json!([format!("sha256:{}", "0".repeat(64))]), "diff id"),
        ("a size that lies", |_, m| m["layers"][0]["size"] = json!(17), "size"),
        ("a huge size", |_, m| m["layers"][0]["size"] = json!(1u64 << 60), "size"),
        ("a negative size", |_, m| m["layers"][0]["size"] = json!(-1), "malformed"),
        (
            "a digest that is a path",
            |_, m| m["layers"][0]["digest"] = json!("sha256:../../../../etc/passwd"),
            "malformed",
        ),
        ("config of another kind", |c, _| *c = json!([1, 2]), "config"),
        ("a diff id that is none", |c, _| c["rootfs"]["diff_ids"] = json!(["x"]), "config"),
        ("env that is a number", |c, _| c["config"]["Env"] = json!(7), "config"),
        (
            "sha512 that nobody has",
            |_, m| m["layers"][0]["digest"] = json!(format!("sha512:{}", "0".repeat(128))),
            "sha256",
        ),
    ];
    for (name, change, why) in changes {
        let liar = Liar::new();
        liar.image(&busybox, change);
        liar.refused(name).contains(why);
    }
    let liar = Liar::new();
    liar.image(&busybox, |_, manifest| {
        manifest["config"] = json!({ "mediaType": CONFIG, "digest": null, "size": 100 });
    });
    liar.refused("no config").contains("malformed");
    let liar = Liar::new();
    liar.image(&busybox, |_, manifest| {
        manifest["config"] = json!({ "mediaType": CONFIG, "digest": zeros, "size": 1u64 << 40 });
    });
    liar.refused("a config of a terabyte").contains("limit");
}

#[test]
fn what_an_image_may_leave_out_it_may_leave_out() {
    let env = TestEnv::new();
    let busybox = std::fs::read(busybox_base().tar).expect("made by the harness");
    let liar = Liar::new();
    liar.image(&busybox, |config, manifest| {
        let diff_ids = config["rootfs"].clone();
        *config = json!({
            "architecture": "amd64", "os": "linux", "rootfs": diff_ids, "history": null, "created": null,
            "config": { "Env": null, "Cmd": null, "Labels": null, "ExposedPorts": null, "Entrypoint": null, "OnBuild": null },
        });
        manifest["annotations"] = json!(null);
        // Not to be passed on, says the type; it is there, though.
        manifest["layers"][0]["mediaType"] = json!("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip");
        manifest["layers"][0]["urls"] = json!(["http://127.0.0.1:1/elsewhere"]);
    });
    let context = env.dockerfile("c", &format!("FROM {}\nRUN echo ran > /ran\n", liar.name()));
    env.build(&context, &["-t", "it"]).ok();
    env.run("it", &["cat", "/ran"]).ok().contains("ran");
}

#[test]
fn indexes_end_and_name_something() {
    let busybox = std::fs::read(busybox_base().tar).expect("made by the harness");
    let platform = json!({ "os": "linux", "architecture": "amd64" });
    // Deeper and deeper; the first names what does not exist, so none can name itself.
    let liar = Liar::new();
    let mut child = json!({ "mediaType": OCI_INDEX, "digest": format!("sha256:{}", "a".repeat(64)), "size": 2 });
    for _ in 0..20 {
        child["platform"] = platform.clone();
        let index = json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [child] }).to_string();
        let digest = liar.fake.add_manifest("a/b", "1", OCI_INDEX, index.clone());
        child = json!({ "mediaType": OCI_INDEX, "digest": digest.to_string(), "size": index.len() });
    }
    liar.refused("nested").contains("index");
    for manifests in [json!([]), json!(null), json!([null]), json!([{}]), json!({})] {
        let liar = Liar::new();
        let index = json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests });
        liar.fake.add_manifest("a/b", "1", OCI_INDEX, index.to_string());
        liar.refused("an empty index");
    }
    // Two deep is in order.
    let env = TestEnv::new();
    let liar = Liar::new();
    liar.image(&busybox, |_, _| {});
    let (_, image) = liar.fake.manifest("a/b", "1").expect("just put there");
    let mut child = json!({ "mediaType": OCI_MANIFEST, "digest": digest_of(&image).to_string(), "size": image.len() });
    for _ in 0..2 {
        child["platform"] = platform.clone();
        let index = json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [child] }).to_string();
        let digest = liar.fake.add_manifest("a/b", "1", OCI_INDEX, index.clone());
        child = json!({ "mediaType": OCI_INDEX, "digest": digest.to_string(), "size": index.len() });
    }
    env.rbuild(["pull", &liar.name()]).ok();
}

#[test]
fn layers_that_are_not_what_they_seem_are_refused() {
    let busybox = std::fs::read(busybox_base().tar).expect("made by the harness");
    for (name, fault) in [
        ("wrong bytes", Fault::WrongBytes),
        ("endless", Fault::Endless),
        ("short", Fault::Shorten(1000)),
        ("a page of words", Fault::Status(200, vec![], "<html>please log in</html>".into())),
    ] {
        let liar = Liar::new();
        liar.image(&busybox, |_, _| {});
        liar.fake.inject(&format!("blobs/{}", digest_of(&gzip(&busybox))), 100, fault);
        liar.refused(name);
    }
    let liar = Liar::new();
    // Not gzip, whatever it is called; and gzip that is no tar.
    for bytes in [b"no tar at all".to_vec(), vec![0x1f, 0x8b, 8, 0, 0, 0], vec![7; 10_000_000]] {
        liar.image(&bytes, |_, _| {});
        liar.refused("no tar");
    }
}

#[test]
fn a_registry_that_comes_back_is_forgiven() {
    let busybox = std::fs::read(busybox_base().tar).expect("made by the harness");
    let env = TestEnv::new();
    let liar = Liar::new();
    liar.image(&busybox, |_, _| {});
    let after = |seconds: &str| vec![("retry-after".to_owned(), seconds.to_owned())];
    liar.fake.inject("manifests/1", 1, Fault::Status(429, after("1"), String::new()));
    liar.fake.inject("manifests/1", 1, Fault::Close);
    liar.fake.inject("blobs/", 1, Fault::Status(503, vec![], String::new()));
    liar.fake.inject("blobs/", 2, Fault::CutBody(100));
    let context = env.dockerfile("c", &format!("FROM {}\nRUN echo ran\n", liar.name()));
    env.build(&context, &["-t", "it"]).ok().contains("too many requests").contains("again in");
    // Pushed through trouble of the same kind.
    let name = format!("{}/my/app:1", liar.fake.host());
    liar.fake.inject("POST", 1, Fault::Status(500, vec![], String::new()));
    liar.fake.inject("PUT /v2/my/app/blobs", 1, Fault::CutUpload(10));
    liar.fake.inject("PUT /v2/my/app/manifests", 1, Fault::Close);
    env.rbuild(["tag", "it", &name]).ok();
    env.rbuild(["push", &name]).ok();
    assert!(liar.fake.manifest("my/app", "1").is_some());
    drop(liar.runtime);
}

#[test]
fn a_login_with_a_helper_leaves_nothing_in_the_clear() {
    if !require(&["docker-registry", "setpriv", "openssl", "htpasswd", "skopeo"]) {
        return;
    }
    let env = TestEnv::busybox();
    let registry = crate::support::Registry::tls(crate::support::Login { user: "ann", password: "s3cret-canary" });
    env.configure(&format!("[registry.\"{}\"]\nca = [\"{}\"]\n", registry.host(), registry.ca().display()));
    // A helper that keeps what it is given apart, as they do.
    let kept = env.path("kept.json");
    let bin = env.context("bin").mode(
        "docker-credential-test",
        0o755,
        format!(
            "#!/bin/sh\ncase $1 in\nstore) cat > {0};;\nget) test -s {0} && cat {0} || {{ echo credentials not found in native keychain; exit 1; }};;\nerase) rm -f {0};;\nesac\n",
            kept.display()
        ),
    );
    let path = format!("{}:{}", bin.dir().display(), std::env::var("PATH").expect("there is one"));
    let config = env.path("home/.docker/config.json");
    let with_helper = json!({ "credHelpers": { registry.host(): "test" }, "HttpHeaders": { "X": "kept" } });
    std::fs::write(&config, with_helper.to_string()).expect("our directory");
    env.rbuild(["login", "-u", "ann", "--password-stdin", &registry.host()])
        .env("PATH", &path)
        .stdin("s3cret-canary")
        .ok()
        .lacks("WARNING");
    let text = std::fs::read_to_string(&config).expect("it is there");
    let encoded = "YW5uOnMzY3JldC1jYW5hcnk";
    assert!(!text.contains("canary") && !text.contains(encoded) && text.contains("HttpHeaders"), "{text}");
    let context = env.dockerfile("c", "FROM busybox\nRUN true\n");
    env.build(&context, &["-t", &registry.name("app:1"), "--push"]).env("PATH", &path).ok().lacks("canary");
    env.rbuild(["logout", &registry.host()]).env("PATH", &path).ok();
    assert!(!kept.exists());
    env.rbuild(["push", &registry.name("app:1")]).env("PATH", &path).timeout(60).run().exits(4).contains("login");
    // By the environment alone, as CI systems do it.
    let auth = json!({ "auths": { registry.host(): { "auth": format!("{encoded}=") } } }).to_string();
    env.rbuild(["push", &registry.name("app:1")]).env("DOCKER_AUTH_CONFIG", &auth).ok();
    let file = env.path("auth.json");
    std::fs::write(&file, auth).expect("our directory");
    env.rbuild(["push", &registry.name("app:1")]).env("REGISTRY_AUTH_FILE", &file).ok();
}

#[test]
fn verify_says_what_differs() {
    let env = TestEnv::busybox();
    let context =
        env.dockerfile("c", "FROM busybox\nCOPY f /f\nRUN mkdir /d && cp /f /d/copy\nENV A=1\n").file("f", "one\n");
    let verify = |env: &TestEnv| env.rbuild(["verify", "--progress", "plain", "app"]).arg(context.dir()).run();
    env.build(&context, &["-t", "app"]).ok();
    let same = verify(&env);
    assert_eq!(same.code, Some(0), "{}", same.text());
    assert!(same.stdout.contains("the same") || same.stdout.contains("identical"), "{}", same.text());
    env.build(&context, &["-t", "app", "--no-cache"]).env("SOURCE_DATE_EPOCH", "1600000000").ok();
    let same = verify(&env);
    assert!(same.stdout.contains("identical"), "{}", same.text());
    context.write("f", "ohe\n");
    verify(&env).exits(1).contains("/f: its bytes differ from byte 1 on");
    context.write("f", "one\n");
    context.write("Dockerfile", "FROM busybox\nCOPY f /f\nRUN mkdir /d && cp /f /d/copy && touch /more\nENV A=1\n");
    verify(&env).exits(1).contains("/more is only in the result of this build");
    context.write("Dockerfile", "FROM busybox\nCOPY f /f\nRUN mkdir /d && cp /f /d/copy\nENV A=2\n");
    verify(&env).exits(1).contains(".config.Env");
    env.rbuild(["verify", "nosuch:1"]).arg(context.dir()).timeout(60).run();
}
