//! Images between registries, layouts, archives and the store; images of several machines joined; what inspect says of them.

use serde_json::{Value, json};

use crate::support::{Layout, Registry, TestEnv, busybox_base, require};

const NEEDED: &[&str] = &["docker-registry", "skopeo", "setpriv"];

#[track_caller]
fn digest(env: &TestEnv, registry: &Registry, name: &str) -> String {
    let raw = registry.skopeo("inspect").args(["--tls-verify=false", "--format", "{{.Digest}}"]);
    raw.arg(format!("docker://{}", registry.name(name))).env("HOME", env.path("home")).ok().line().to_owned()
}

#[test]
fn an_image_goes_round_and_keeps_its_digest() {
    if !require(NEEDED) {
        return;
    }
    let env = TestEnv::new();
    let (one, two) = (Registry::plain(), Registry::plain());
    one.put("team/app:1", &Layout::write(&env.path("app"), &[&busybox_base().tar], &json!({ "Cmd": ["sh"] })));
    let want = digest(&env, &one, "team/app:1");
    let at = |kind: &str, name: &str| format!("{kind}:{}", env.path(name).display());
    let steps = [
        (one.name("team/app:1"), two.name("other/app:2")),
        (two.name("other/app:2"), at("oci", "layout:v1")),
        (at("oci", "layout:v1"), at("oci-archive", "image.tar:v2")),
        (at("oci-archive", "image.tar"), at("docker-archive", "docker.tar:app:3")),
        (at("docker-archive", "docker.tar"), "store:kept:1".to_owned()),
        ("store:kept:1".to_owned(), one.name("back/again:1")),
    ];
    for (from, to) in &steps {
        let out = env.rbuild(["copy", from, to]).ok();
        assert_eq!(out.line(), want, "{from} to {to}");
    }
    assert_eq!(digest(&env, &one, "back/again:1"), want);
    assert_eq!(env.run("kept:1", &["echo", "it runs"]).ok().line(), "it runs");
    // Others read what was written.
    let layout = format!("oci:{}:v1", env.path("layout").display());
    env.program("skopeo")
        .args(["--insecure-policy", "copy", &layout, &format!("dir:{}", env.path("dir").display())])
        .ok();
    // What is there is not sent again, and what lies beside it is mounted.
    let before = two.uploads();
    env.rbuild(["copy", &one.name("team/app:1"), &two.name("other/app:2")]).ok();
    assert_eq!(two.uploads(), before);
    env.rbuild(["copy", &two.name("other/app:2"), &two.name("third/app:1")]).ok();
    let log = two.requests();
    assert!(log.iter().any(|line| line.contains("mount=") && line.ends_with(" 201")), "{log:#?}");
    // Many in one layout, by name and by digest.
    env.rbuild(["copy", &one.name("team/app:1"), &at("oci", "layout:v9")]).ok();
    env.rbuild(["copy", &at("oci", "layout:none"), "store:x"]).run().exits(1).contains("v1, v9");
    env.rbuild(["copy", &format!("oci-layout://{}@{want}", env.path("layout").display()), "store:by-digest"]).ok();
    env.rbuild(["copy", &one.name("no/such:1"), "store:x"]).timeout(60).run().exits(4);
    env.rbuild(["copy", "oci:", "store:x"]).run().exits(2);
}

#[test]
fn bytes_that_are_not_those_of_their_digest_are_never_passed_on() {
    let env = TestEnv::new();
    let layout = Layout::write(&env.path("app"), &[&busybox_base().tar], &json!({}));
    let source = format!("oci:{}", layout.dir().display());
    let blobs = layout.dir().join("blobs/sha256");
    let largest =
        std::fs::read_dir(&blobs).expect("ours").flatten().max_by_key(|blob| blob.metadata().map_or(0, |m| m.len()));
    let layer = largest.expect("there are blobs").path();
    let mut bytes = std::fs::read(&layer).expect("ours");
    bytes[5000] ^= 1;
    std::fs::write(&layer, bytes).expect("ours");
    let to = env.path("copy");
    env.rbuild(["copy", &source, &format!("oci:{}", to.display())]).run().exits(1).contains("digest");
    assert!(!to.join("index.json").exists());
    let name = layer.file_name().expect("a name").to_owned();
    assert!(!to.join("blobs/sha256").join(name).exists());
    env.rbuild(["inspect", "--validate", &source]).run().exits(1).contains("its bytes have the digest");
}

#[test]
fn images_for_single_platforms_are_joined() {
    if !require(NEEDED) {
        return;
    }
    let env = TestEnv::new();
    let registry = Registry::plain();
    for platform in ["linux/amd64", "linux/arm64"] {
        let context = env.dockerfile("c", "FROM scratch\nARG TARGETARCH\nLABEL for=$TARGETARCH\nCOPY Dockerfile /f\n");
        let name = registry.name(&format!("one:{}", platform.rsplit('/').next().expect("an architecture")));
        env.build(&context, &["--platform", platform, "-t", &name, "--push"]).ok();
    }
    let (amd, arm) = (registry.name("one:amd64"), registry.name("one:arm64"));
    let merged = env.rbuild(["merge", &registry.name("all/app:1"), &amd, &arm]).ok();
    assert_eq!(merged.line(), digest(&env, &registry, "all/app:1"));
    let raw = env.rbuild(["inspect", "--raw", "--remote", &registry.name("all/app:1")]).ok().stdout;
    let index: Value = serde_json::from_str(&raw).expect("JSON");
    let architectures: Vec<_> = index["manifests"]
        .as_array()
        .expect("an index")
        .iter()
        .map(|manifest| manifest["platform"]["architecture"].as_str().unwrap_or_default())
        .collect();
    assert_eq!(architectures, ["amd64", "arm64"]);
    env.rbuild(["inspect", "--validate", "--remote", &registry.name("all/app:1")]).ok().contains("valid");
    // A part of it again, and as it was.
    let only = format!("oci:{}:arm", env.path("arm").display());
    let copied = env.rbuild(["copy", "--platform", "linux/arm64", &registry.name("all/app:1"), &only]).ok();
    assert_eq!(copied.line(), digest(&env, &registry, "one:arm64"));
    env.rbuild(["merge", &registry.name("twice:1"), &amd, &amd]).ok();
    let other = env.dockerfile("d", "FROM scratch\nCOPY Dockerfile /other\n");
    env.build(&other, &["--platform", "linux/amd64", "-t", &registry.name("other:1"), "--push"]).ok();
    env.rbuild(["merge", &registry.name("no:1"), &amd, &registry.name("other:1")])
        .run()
        .exits(1)
        .contains("linux/amd64");
    // As a whole into a layout, and back.
    let layout = format!("oci:{}:1", env.path("all").display());
    env.rbuild(["copy", &registry.name("all/app:1"), &layout]).ok();
    env.rbuild(["copy", &layout, &registry.name("again:1")]).ok();
    let whole = digest(&env, &registry, "all/app:1");
    assert_eq!(digest(&env, &registry, "again:1"), whole);
    // Into the store: all of it, and each of them is a base; then out again, when nothing else has it.
    for (number, from) in [layout, registry.name("all/app:1")].iter().enumerate() {
        let env = TestEnv::new();
        env.rbuild(["copy", from, "store:kept"]).ok();
        let context = env.dockerfile("c", "FROM kept\nLABEL more=1\n");
        for architecture in ["amd64", "arm64"] {
            env.build(&context, &["--platform", &format!("linux/{architecture}"), "-t", "more"]).ok();
            let label = env.rbuild(["inspect", "-f", "{{.Config.Labels.for}}", "more"]).ok();
            assert_eq!(label.line(), architecture);
        }
        env.rbuild(["system", "prune", "-f"]).ok();
        let copied = env.rbuild(["copy", "store:kept", &registry.name(&format!("kept:{number}"))]).ok();
        assert_eq!(copied.line(), whole);
        // An archive keeps all of it as well.
        let archive = env.path("kept.tar");
        env.rbuild(["copy", "store:kept", &format!("oci-archive:{}:kept:1", archive.display())]).ok();
        let other = TestEnv::new();
        other.rbuild(["load", "-i"]).arg(&archive).ok();
        let gzip = env.program("gzip").arg(&archive).ok();
        drop(gzip);
        let packed = format!("oci-archive:{}.gz", archive.display());
        assert_eq!(other.rbuild(["copy", &packed, "store:packed"]).ok().line(), whole);
        assert_eq!(
            other.rbuild(["copy", "store:packed", &format!("oci:{}", env.path("last").display())]).ok().line(),
            whole
        );
        other.rbuild(["load", "--platform", "linux/arm64", "-i"]).arg(format!("{}.gz", archive.display())).ok();
    }
}

#[test]
fn from_takes_images_of_layouts_and_archives() {
    let env = TestEnv::new();
    let base = Layout::write(&env.path("base"), &[&busybox_base().tar], &json!({ "Env": ["BASE=layout"] }));
    let other = Layout::write(&env.path("other"), &[&busybox_base().tar], &json!({ "Env": ["BASE=other"] }));
    let archive = env.path("other.tar");
    env.rbuild([
        "copy",
        &format!("oci:{}", other.dir().display()),
        &format!("docker-archive:{}:o:1", archive.display()),
    ])
    .ok();
    let context = env.dockerfile(
        "c",
        "FROM base AS first\nRUN echo $BASE > /first\nFROM busybox:1.36\nCOPY --from=first /first /first\nRUN echo $BASE > /second\n",
    );
    let layout = format!("base=oci-layout://{}", base.dir().display());
    let docker = format!("busybox:1.36=docker-archive:{}", archive.display());
    let args = ["--build-context", &layout, "--build-context", &docker, "-t", "it", "--pull"];
    env.build(&context, &args).ok();
    env.run("it", &["cat", "/first", "/second"]).ok().contains("layout\nother\n");
    env.build(&context, &args).ok().contains("CACHED");
    // By tag and by digest; another one is another base.
    let tagged = format!("base=oci-layout://{}:latest", base.dir().display());
    env.build(&context, &["--build-context", &tagged, "--build-context", &docker]).ok();
    let none = format!("base=oci-layout://{}:none", base.dir().display());
    env.build(&context, &["--build-context", &none, "--build-context", &docker]).run().exits(1).contains("latest");
    // None of it shows among the images.
    env.rbuild(["images"]).ok().lacks("invalid");
}

#[test]
fn what_we_write_is_valid_and_what_is_wrong_is_found() {
    let env = TestEnv::busybox();
    let context =
        env.dockerfile("c", "FROM busybox\nRUN echo 1 > /one\nENV A=1\nRUN rm /one && mkdir /d\nWORKDIR /w\n");
    for (number, spec) in [
        "type=oci",
        "type=docker",
        "type=oci,compression=zstd",
        "type=oci,compression=uncompressed,force-compression=true",
        "type=oci,oci-mediatypes=false",
        "type=oci,compression=gzip,compression-level=9",
    ]
    .iter()
    .enumerate()
    {
        let file = env.path(format!("{number}.tar"));
        env.build(&context, &["-t", "app:1", "-o", &format!("{spec},dest={}", file.display())]).ok();
        env.rbuild(["inspect", "--validate", &format!("oci-archive:{}", file.display())]).ok().contains("valid");
        let again = format!("store:again:{number}");
        env.rbuild(["copy", &format!("oci-archive:{}", file.display()), &again]).ok();
        env.rbuild(["inspect", "--validate", &format!("again:{number}")]).ok();
        env.run(&format!("again:{number}"), &["sh", "-c", "test -d /d && test ! -e /one"]).ok();
    }
    env.build(&context, &["-t", "app:1"]).ok();
    env.rbuild(["inspect", "--validate", "app:1"]).ok();
    let raw = env.rbuild(["inspect", "--raw", "again:0"]).ok().stdout;
    let manifest: Value = serde_json::from_str(&raw).expect("JSON");
    assert_eq!(manifest["layers"].as_array().map(Vec::len), Some(4));
    // Something wrong in each part.
    type Change = fn(&mut Value, &mut Value);
    let changes: [(&str, Change); 5] = [
        ("history has", |_, config| config["history"] = json!([{ "created_by": "a" }, { "created_by": "b" }])),
        ("diff ids", |_, config| config["rootfs"]["diff_ids"] = json!([])),
        ("diff id is", |_, config| config["rootfs"]["diff_ids"][0] = json!(format!("sha256:{}", "0".repeat(64)))),
        ("not compressed like that", |manifest, _| {
            manifest["layers"][0]["mediaType"] = json!("application/vnd.oci.image.layer.v1.tar+zstd");
        }),
        ("names no platform", |_, config| config["os"] = json!("")),
    ];
    for (number, (finding, change)) in changes.into_iter().enumerate() {
        let dir = env.path(format!("bad{number}"));
        Layout::write(&dir, &[&busybox_base().tar], &json!({}));
        rewrite(&dir, change);
        let out = env.rbuild(["inspect", "--validate", &format!("oci:{}", dir.display())]).run();
        out.exits(1).contains(finding);
    }
}

/// Changes manifest and config of a layout, digests and sizes included.
fn rewrite(dir: &std::path::Path, change: impl Fn(&mut Value, &mut Value)) {
    use sha2::{Digest as _, Sha256};
    let blob = |descriptor: &Value| {
        let digest = descriptor["digest"].as_str().and_then(|d| d.strip_prefix("sha256:")).expect("a digest");
        dir.join("blobs/sha256").join(digest)
    };
    let read = |path: &std::path::Path| -> Value {
        serde_json::from_slice(&std::fs::read(path).expect("ours")).expect("JSON")
    };
    let put = |value: &Value| {
        let bytes = value.to_string();
        let digest = hex::encode(Sha256::digest(&bytes));
        std::fs::write(dir.join("blobs/sha256").join(&digest), &bytes).expect("ours");
        (format!("sha256:{digest}"), bytes.len())
    };
    let mut index = read(&dir.join("index.json"));
    let mut manifest = read(&blob(&index["manifests"][0]));
    let mut config = read(&blob(&manifest["config"]));
    change(&mut manifest, &mut config);
    let (digest, size) = put(&config);
    manifest["config"]["digest"] = json!(digest);
    manifest["config"]["size"] = json!(size);
    let (digest, size) = put(&manifest);
    index["manifests"][0]["digest"] = json!(digest);
    index["manifests"][0]["size"] = json!(size);
    std::fs::write(dir.join("index.json"), index.to_string()).expect("ours");
}

#[test]
fn a_root_file_system_comes_out_as_it_went_in() {
    let env = TestEnv::busybox();
    let context =
        env.dockerfile("c", "FROM busybox\nRUN rm /etc/group && echo hi > /hi && chmod 4755 /hi && ln /hi /again\n");
    env.build(&context, &["-t", "app"]).ok();
    let tar = env.path("fs.tar");
    env.rbuild(["export", "app", "-o"]).arg(&tar).ok();
    let list = env.program("tar").arg("tvf").arg(&tar).ok().stdout;
    assert!(list.contains("-rwsr-xr-x") && list.contains("link to") && !list.contains("etc/group"), "{list}");
    env.rbuild(["import"]).arg(&tar).arg("back:1").ok();
    assert_eq!(env.run("back:1", &["sh", "-c", "cat /again; stat -c %h /hi"]).ok().stdout, "hi\n2\n");
}
