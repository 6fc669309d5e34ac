//! What is said of images beside them: provenance, what people attach, and that no secret is in any of it.

use registry::fake::Fake;
use serde_json::{Value, json};

use crate::support::{Layout, Registry, TestEnv, busybox_base, require, require_root};

const NEEDED: &[&str] = &["docker-registry", "skopeo", "setpriv"];
const PREDICATE: &str = "https://slsa.dev/provenance/v1";

#[track_caller]
fn parsed(text: impl AsRef<[u8]>) -> Value {
    serde_json::from_slice(text.as_ref()).expect("JSON")
}

#[track_caller]
fn inspected(env: &TestEnv, args: &[&str]) -> Value {
    parsed(env.rbuild(["inspect"]).args(args).ok().stdout)[0].clone()
}

/// The statement of an attestation that lies in a layout.
#[track_caller]
fn statement(layout: &Layout, manifest: &Value) -> Value {
    let manifest = parsed(layout.blob(manifest["digest"].as_str().expect("a digest")));
    assert_eq!(manifest["layers"][0]["mediaType"], "application/vnd.in-toto+json");
    assert_eq!(manifest["layers"][0]["annotations"]["in-toto.io/predicate-type"], PREDICATE);
    parsed(layout.blob(manifest["layers"][0]["digest"].as_str().expect("a digest")))
}

/// Of several images each has its own; the images are those of a build without.
#[test]
fn provenance_refers_to_the_image_and_leaves_it_as_it_is() {
    if !require(NEEDED) {
        return;
    }
    let env = TestEnv::busybox();
    let registry = Registry::plain();
    let context = env.dockerfile("c", "FROM busybox\nARG GREETING\nLABEL g=$GREETING\nCOPY Dockerfile /f\n");
    let (plain, told) = (env.path("plain.tar"), env.path("told.tar"));
    let oci = |path: &std::path::Path| format!("type=oci,dest={}", path.display());
    let args = ["--build-arg", "GREETING=hi", "-t", "app:1"];
    env.build(&context, &args).arg("-o").arg(oci(&plain)).ok();
    env.build(&context, &args).arg("-o").arg(oci(&told)).args(["--attest", "type=provenance,mode=max"]).ok();
    let before = parsed(std::fs::read(Layout::from_archive(&plain).dir().join("index.json")).expect("a layout"));
    let layout = Layout::from_archive(&told);
    let entries = parsed(std::fs::read(layout.dir().join("index.json")).expect("a layout"));
    assert_eq!(entries["manifests"].as_array().map(Vec::len), Some(1), "two would be two images");
    let index = parsed(layout.blob(entries["manifests"][0]["digest"].as_str().expect("a digest")));
    assert_eq!(index["manifests"][0]["digest"], before["manifests"][0]["digest"], "the same image");
    assert_eq!(before["manifests"].as_array().map(Vec::len), Some(1), "none unless it is asked for");
    let about = &index["manifests"][1];
    assert_eq!(about["platform"], json!({ "os": "unknown", "architecture": "unknown" }));
    let image = index["manifests"][0]["digest"].clone();
    let kind = json!({ "vnd.docker.reference.type": "attestation-manifest", "vnd.docker.reference.digest": image });
    assert_eq!(about["annotations"], kind, "as BuildKit names it");
    let manifest = parsed(layout.blob(about["digest"].as_str().expect("a digest")));
    assert_eq!(manifest["subject"]["digest"], index["manifests"][0]["digest"]);
    assert_eq!(manifest["artifactType"], "application/vnd.docker.attestation.manifest.v1+json");
    let statement = statement(&layout, about);
    assert_eq!(statement["predicateType"], PREDICATE);
    assert_eq!(statement["subject"][0]["name"], "pkg:docker/app@1?platform=linux%2Famd64");
    let digest = index["manifests"][0]["digest"].as_str().expect("a digest").trim_start_matches("sha256:").to_owned();
    assert_eq!(statement["subject"][0]["digest"]["sha256"], digest);
    let definition = &statement["predicate"]["buildDefinition"];
    assert_eq!(definition["externalParameters"]["request"]["args"]["build-arg:GREETING"], "hi");
    let base = &definition["resolvedDependencies"][0];
    assert_eq!(base["uri"], "pkg:docker/busybox@latest?platform=linux%2Famd64");

    // Others still see one image, and the registry lists what refers to it.
    let source = format!("oci-archive:{}:1", told.display());
    env.program("skopeo").args(["inspect", &source]).ok();
    let name = registry.name("app:1");
    let pushed = ["-t", &name, "--push", "--provenance=true", "--build-arg", "GREETING=hi"];
    env.build(&context, &pushed).ok();
    let there = inspected(&env, &["--remote", &name]);
    assert_eq!(there["Manifest"]["manifests"][0]["digest"], before["manifests"][0]["digest"]);
    assert_eq!(there["Referrers"].as_array().map(Vec::len), Some(1), "{there:#}");
    assert_eq!(there["Referrers"][0]["Annotations"]["in-toto.io/predicate-type"], PREDICATE);
    let tag = format!("{}:sha256-{digest}", registry.name("app"));
    let list = parsed(env.rbuild(["inspect", "--raw", "--remote", &tag]).ok().stdout);
    assert_eq!(list["manifests"][0]["digest"], there["Referrers"][0]["Digest"]);
    env.rbuild(["inspect", "--validate", "--remote", &name]).ok().contains("valid");
}

#[test]
fn what_refers_to_an_image_goes_with_it_where_asked() {
    if !require(NEEDED) {
        return;
    }
    let env = TestEnv::busybox();
    let (one, two) = (Registry::plain(), Registry::plain());
    let context = env.dockerfile("c", "FROM scratch\nARG TARGETARCH\nCOPY Dockerfile /f-$TARGETARCH\n");
    let name = one.name("app:1");
    let platforms = ["--platform", "linux/amd64,linux/arm64", "-t", &name];
    env.build(&context, &platforms).args(["--provenance", "true"]).ok();
    // It stays with the image in the store, also when that is tidied, and leaves with it.
    env.rbuild(["system", "prune", "-f"]).ok();
    env.rbuild(["push", &name]).ok();
    // People attach what they have: to the index here.
    let sbom = env.path("sbom.json");
    std::fs::write(&sbom, r#"{"spdxVersion":"SPDX-2.3"}"#).expect("ours");
    let attach = |image: &str| {
        env.rbuild(["attach", image]).arg(&sbom).args([
            "--artifact-type",
            "application/spdx+json",
            "--annotation",
            "by=me",
        ])
    };
    attach(&name).ok();
    let there = inspected(&env, &["--remote", &name]);
    assert_eq!(there["Referrers"].as_array().map(Vec::len), Some(3), "{there:#}");
    let layout = env.path("layout");
    let steps = [
        (name.clone(), two.name("copy:1")),
        (two.name("copy:1"), format!("oci:{}:v1", layout.display())),
        (format!("oci:{}:v1", layout.display()), "store:kept:1".to_owned()),
        ("store:kept:1".to_owned(), one.name("back:1")),
    ];
    for (from, to) in &steps {
        env.rbuild(["copy", "--referrers", from, to]).ok();
    }
    let list = |value: Value| {
        let mut list = value["Referrers"].as_array().cloned().expect("a list");
        list.sort_by_key(|entry| entry["Digest"].as_str().map(str::to_owned));
        list
    };
    let want = list(there);
    assert_eq!(list(inspected(&env, &["--remote", &two.name("copy:1")])), want);
    assert_eq!(list(inspected(&env, &["--remote", &one.name("back:1")])), want);
    assert_eq!(list(inspected(&env, &[&format!("oci:{}", layout.display())])), want, "one image is meant");
    // Not unless asked for; what the index itself names is a part of it.
    env.rbuild(["copy", &name, &two.name("bare:1")]).ok();
    let named: Vec<Value> =
        want.iter().filter(|entry| entry["ArtifactType"] != "application/spdx+json").cloned().collect();
    assert_eq!(named.len(), 2);
    assert_eq!(list(inspected(&env, &["--remote", &two.name("bare:1")])), named);
    // To a layout and to the store, too; an archive is what it is.
    attach(&format!("oci:{}:v1", layout.display())).ok();
    attach("store:kept:1").ok();
    attach(&format!("oci-archive:{}", env.path("none.tar").display())).run().exits(1);
    env.rbuild(["attach", &name, "/no/such/file", "--artifact-type", "a/b"]).run().exits(1).contains("/no/such/file");
    attach(&name).args(["--media-type", "nonsense"]).run().exits(2);
}

/// Who knows nothing of attestations finds one image, whichever way it came.
#[test]
fn images_with_provenance_are_read_by_others() {
    if !require(&["docker-registry", "skopeo", "setpriv", "podman"]) || !require_root() {
        return;
    }
    let env = TestEnv::busybox();
    let registry = Registry::plain();
    let context = env.dockerfile("c", "FROM busybox\nCOPY Dockerfile /f\nENTRYPOINT [\"cat\", \"/f\"]\n");
    let at = |name: &str| env.path(name).display().to_string();
    let name = registry.name("app:1");
    let build = |args: &[&str]| env.build(&context, args).args(["--provenance=true"]).ok();
    let annotated =
        ["-t", "app:1", "--annotation", "index:of=index", "-o", &format!("type=oci,dest={}", at("oci.tar"))];
    build(&annotated);
    let raw = env.rbuild(["inspect", "--raw", &format!("oci-archive:{}", at("oci.tar"))]).ok().stdout;
    assert_eq!(parsed(raw)["annotations"]["of"], "index");
    build(&["-t", "app:1", "-o", &format!("type=docker,dest={}", at("docker.tar"))]).lacks("left out");
    build(&["-t", &name, "--push"]);
    build(&["-t", "app:1"]);
    env.rbuild(["save", "app:1", "-o", &at("saved.tar")]).ok();
    let id = env.rbuild(["inspect", "-f", "{{.Id}}", "app:1"]).ok().line().trim_start_matches("sha256:").to_owned();
    let podman = || {
        let run = env.program("podman").arg("--root").arg(at("podman")).arg("--runroot").arg(at("podman-run"));
        run.args(["--storage-driver", "vfs", "--events-backend", "none"])
    };
    let (oci, saved) = (format!("oci-archive:{}", at("oci.tar")), format!("oci-archive:{}", at("saved.tar")));
    let sources = [
        oci.clone(),
        saved.clone(),
        format!("docker-archive:{}", at("docker.tar")),
        format!("docker-archive:{}", at("saved.tar")),
        format!("docker://{name}"),
    ];
    for (number, source) in sources.iter().enumerate() {
        let copied = env.path(format!("copied-{number}"));
        let copy = env.program("skopeo").args(["--insecure-policy", "copy", "--src-tls-verify=false", source]);
        copy.arg(format!("oci:{}:1", copied.display())).ok();
        let image = Layout::open(&copied).image();
        assert!(image.find("f").is_some(), "{source}");
        // Of docker archives it writes configs of its own.
        let same = image.manifest["config"]["digest"].as_str() == Some(&*format!("sha256:{id}"));
        assert_eq!(same, !source.starts_with("docker-archive:"), "{source}");
    }
    for (load, file) in [("load", "oci.tar"), ("load", "docker.tar"), ("load", "saved.tar")] {
        podman().args([load, "-i", &at(file)]).ok();
        podman().args(["images", "--no-trunc", "--quiet"]).ok().contains(&id);
        podman().args(["rmi", "-f", &id]).ok();
    }
    for (flag, source) in [("--quiet", &sources[0]), ("--tls-verify=false", &sources[4])] {
        podman().args(["pull", flag, source]).ok();
        podman().args(["images", "--no-trunc", "--quiet"]).ok().contains(&id);
        podman().args(["rmi", "-f", &id]).ok();
    }
    // With all that the index names, and as a base.
    for (number, source) in [oci, saved, format!("docker://{name}")].iter().enumerate() {
        let all = format!("oci:{}:1", env.path(format!("all-{number}")).display());
        let copy = env.program("skopeo").args(["--insecure-policy", "copy", "--all", "--src-tls-verify=false"]);
        copy.args([source, &all]).ok();
        env.rbuild(["inspect", "--validate", &all]).ok().contains("valid");
        let other = TestEnv::new();
        other.rbuild(["copy", &all, "store:kept:1"]).ok();
        assert!(other.run("kept:1", &[]).ok().stdout.contains("FROM busybox"));
        other.build(&other.dockerfile("c", "FROM kept:1\nRUN test -f /f\n"), &["-t", "more"]).ok();
    }
}

/// A registry that keeps the lists itself is not given any tag.
#[test]
fn a_registry_with_a_list_of_its_own_gets_no_tag() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("threads");
    let fake = runtime.block_on(Fake::start()).expect("a port");
    fake.keep_referrers();
    let env = TestEnv::busybox();
    let name = format!("{}/a/b:1", fake.host());
    env.build(&env.dockerfile("c", "FROM busybox\nLABEL a=b\n"), &["-t", &name, "--push", "--provenance=true"]).ok();
    assert_eq!(fake.count("sha256-"), 0);
    assert_eq!(inspected(&env, &["--remote", &name])["Referrers"].as_array().map(Vec::len), Some(1));
}

/// Secrets of every kind go into a build whose provenance tells all that it can.
#[test]
fn no_secret_is_told() {
    if !require(&["git"]) {
        return;
    }
    let env = TestEnv::busybox();
    let secret = env.path("secret");
    std::fs::write(&secret, "canary-secret-file\n").expect("ours");
    std::fs::write(
        env.path("home/.docker/config.json"),
        r#"{"auths":{"registry.test":{"auth":"dTpjYW5hcnktbG9naW4="}}}"#,
    )
    .expect("ours");
    let context = env.dockerfile(
        "c",
        "FROM busybox\nARG API_TOKEN V U\nENV A=canary-secret-file\nRUN --mount=type=secret,id=file --mount=type=secret,id=var cat /run/secrets/* > /dev/null\n",
    );
    let (metadata, out, layout) = (env.path("metadata.json"), env.path("out"), env.path("told.tar"));
    let built = env
        .build(&context, &["--provenance", "mode=max", "-t", "app"])
        .args(["--build-arg", "API_TOKEN=canary-argument", "--build-arg", "V=x-canary-variable-x"])
        .args(["--build-arg", "U=https://user:canary-password@host/?sig=canary-signature"])
        .args(["--build-arg", "HTTP_PROXY=http://user:canary-proxy@proxy.test:1"])
        .args(["--secret", "id=var,env=CANARY", "--secret"])
        .arg(format!("id=file,src={}", secret.display()))
        .args(["--label", "token=canary-label"])
        .env("CANARY", "canary-variable")
        .env("BUILDX_METADATA_PROVENANCE", "max")
        .env("BUILDX_METADATA_WARNINGS", "1")
        .arg("--metadata-file")
        .arg(&metadata)
        .args(["-o", &format!("type=oci,dest={}", layout.display())])
        .args(["-o", &format!("type=local,dest={}", out.display())]);
    built.ok();
    let layout = Layout::from_archive(&layout);
    let index = parsed(std::fs::read(layout.dir().join("index.json")).expect("a layout"));
    let told = [
        statement(
            &layout,
            &parsed(layout.blob(index["manifests"][0]["digest"].as_str().expect("a digest")))["manifests"][1],
        ),
        parsed(std::fs::read(out.join("provenance.json")).expect("among the files")),
        parsed(std::fs::read(&metadata).expect("written")),
    ];
    for text in told.iter().map(Value::to_string) {
        assert!(!text.contains("canary"), "{text}");
    }
    let files = told[1]["subject"].as_array().expect("a list");
    assert!(files.iter().any(|file| file["name"] == "etc/passwd"), "{files:?}");
    let predicate = &told[2]["buildx.build.provenance"];
    let request = &predicate["buildDefinition"]["externalParameters"]["request"];
    assert_eq!(request["args"]["build-arg:V"], "x-***-x");
    assert_eq!(request["args"]["build-arg:U"], "https://host/?sig=***");
    assert_eq!(request["secrets"], json!([{ "id": "file" }, { "id": "var" }]));
    // The Dockerfile without what is secret of it.
    let source = &predicate["runDetails"]["metadata"]["buildkit_metadata"]["source"]["infos"][0]["data"];
    assert!(source.as_str().is_some_and(|data| data.len() > 100), "{source}");
    let reference = told[2]["buildx.build.ref"].as_str().expect("a name");
    let id = reference.rsplit('/').next().expect("its last part");
    env.rbuild(["builds", "logs", id]).ok();
    let warnings = told[2]["buildx.build.warnings"].as_array().expect("a list");
    assert!(
        warnings.iter().any(|warning| warning["short"].is_string()),
        "the variable's name is warned of: {warnings:?}"
    );
}

#[test]
fn metadata_tells_where_it_came_from() {
    if !require(&["git"]) {
        return;
    }
    let env = TestEnv::busybox();
    let git = |args: &[&str]| {
        let date = "2020-02-02T02:02:02Z";
        let run = env.program("git").arg("-C").arg(env.path("repo")).args(args);
        run.env("GIT_AUTHOR_DATE", date).env("GIT_COMMITTER_DATE", date).ok().line().to_owned()
    };
    env.context("repo")
        .file("Dockerfile", "FROM busybox\nARG SOURCE_DATE_EPOCH\nRUN echo $SOURCE_DATE_EPOCH > /when\n");
    git(&["init", "-q", "-b", "main"]);
    git(&["add", "."]);
    git(&["-c", "user.name=a", "-c", "user.email=b@c", "commit", "-qm", "first"]);
    let commit = git(&["rev-parse", "HEAD"]);
    let metadata = env.path("metadata.json");
    let url = format!("file://{}#main", env.path("repo").display());
    let build = |more: &[&str]| {
        env.rbuild(["build", &url, "-t", "app", "--metadata-file"]).arg(&metadata).args(more).ok();
        parsed(std::fs::read(&metadata).expect("written"))
    };
    let told = build(&["--build-arg", "SOURCE_DATE_EPOCH=context"]);
    let predicate = &told["buildx.build.provenance"]["buildDefinition"];
    assert_eq!(predicate["externalParameters"]["configSource"]["uri"], url.as_str());
    assert_eq!(predicate["externalParameters"]["configSource"]["digest"]["sha1"], commit.as_str());
    assert_eq!(predicate["externalParameters"]["request"], json!({ "frontend": "dockerfile.v0" }));
    assert_eq!(told["buildx.build.warnings"], Value::Null);
    // The time of the commit is that of the image.
    assert_eq!(env.run("app", &["cat", "/when"]).ok().line(), "1580608922");
    let created = env.rbuild(["inspect", "-f", "{{.Created}}", "app"]).ok();
    assert_eq!(created.line(), "2020-02-02T02:02:02Z");
    // A directory of the caller's has no time: nothing is set.
    let here = env.build(&env.context("repo"), &["-t", "here", "--build-arg", "SOURCE_DATE_EPOCH=context"]);
    here.env("BUILDX_METADATA_PROVENANCE", "false").arg("--metadata-file").arg(&metadata).ok();
    assert_eq!(env.run("here", &["cat", "/when"]).ok().line(), "");
    assert_eq!(parsed(std::fs::read(&metadata).expect("written"))["buildx.build.provenance"], Value::Null);
}

#[test]
fn what_cannot_be_told_is_refused() {
    let env = TestEnv::busybox();
    let context = env.dockerfile("c", "FROM busybox\n");
    env.build(&context, &["--sbom=true"]).run().exits(2).contains("rbuild attach");
    env.build(&context, &["--attest", "type=provenance,version=v0.2"]).run().exits(2).contains("v1");
    env.build(&context, &["--sbom=false", "--provenance=false", "--attest", "type=sbom,disabled=true"]).ok();
    let base = Layout::write(&env.path("base"), &[&busybox_base().tar], &json!({}));
    env.rbuild(["attach", &format!("oci:{}:none", base.dir().display()), "/etc/hostname", "--artifact-type", "a/b"])
        .run()
        .exits(1)
        .contains("none");
}
