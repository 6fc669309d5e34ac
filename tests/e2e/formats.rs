//! Keys of `--output`, several platforms, times, annotations: what lies in the files that come out.

use serde_json::{Value, json};

use crate::support::{Layout, Login, Registry, TestEnv, busybox_base, require};

#[track_caller]
fn parsed(text: impl AsRef<[u8]>) -> Value {
    serde_json::from_slice(text.as_ref()).expect("JSON")
}

/// The index of a layout's only entry, or its manifest.
#[track_caller]
fn top(layout: &Layout) -> (Value, Value) {
    let index = parsed(std::fs::read(layout.dir().join("index.json")).expect("a layout"));
    let descriptor = index["manifests"][0].clone();
    let bytes = layout.blob(descriptor["digest"].as_str().expect("a digest"));
    assert_eq!(descriptor["size"], bytes.len());
    (descriptor, parsed(bytes))
}

#[test]
fn several_platforms_make_an_index() {
    if !require(&["docker-registry", "skopeo", "setpriv"]) {
        return;
    }
    let env = TestEnv::new();
    let registry = Registry::plain();
    let context = env
        .dockerfile(
            "c",
            "FROM scratch\nARG TARGETARCH TARGETVARIANT\nCOPY only-$TARGETARCH$TARGETVARIANT /which\nCOPY shared /shared\n",
        )
        .file("only-amd64", "amd64")
        .file("only-armv7", "arm v7")
        .file("shared", "the same");
    let name = registry.name("multi:1");
    let metadata = env.path("metadata.json");
    let args = ["--platform", "linux/amd64,linux/arm/v7", "-t", &name];
    let oci = format!("type=oci,dest={}", env.path("multi.tar").display());
    let out = format!("type=local,dest={}", env.path("out").display());
    let tar = format!("type=tar,dest={}", env.path("files.tar").display());
    let more = ["-o", &oci, "-o", &out, "-o", &tar, "--push", "--iidfile"];
    let built = env.build(&context, &args).args(more).arg(env.path("iid")).arg("--metadata-file").arg(&metadata).ok();
    built.contains("linux/arm/v7").lacks("WARN");

    let layout = Layout::from_archive(&env.path("multi.tar"));
    let (descriptor, index) = top(&layout);
    let platforms: Vec<_> = index["manifests"].as_array().expect("an index").iter().map(|m| &m["platform"]).collect();
    assert_eq!(
        platforms,
        [
            &json!({ "os": "linux", "architecture": "amd64" }),
            &json!({ "os": "linux", "architecture": "arm", "variant": "v7" })
        ]
    );
    // One digest wherever it goes.
    let metadata = parsed(std::fs::read(metadata).expect("written"));
    assert_eq!(metadata["containerimage.digest"], descriptor["digest"]);
    assert_eq!(metadata["containerimage.config.digest"], Value::Null);
    assert_eq!(std::fs::read_to_string(env.path("iid")).expect("written"), descriptor["digest"].as_str().expect("one"));
    let raw = registry.skopeo("inspect").args(["--raw", "--tls-verify=false"]).arg(format!("docker://{name}")).ok();
    assert_eq!(parsed(raw.stdout), index);
    // Each platform's own files.
    assert_eq!(std::fs::read(env.path("out/linux_amd64/which")).expect("written"), b"amd64");
    assert_eq!(std::fs::read(env.path("out/linux_arm_v7/which")).expect("written"), b"arm v7");
    let list = env.program("tar").arg("tf").arg(env.path("files.tar")).ok().stdout;
    assert!(list.contains("linux_arm_v7/shared"), "{list}");

    // The other platform of a base comes from the registry, and of a name of the store from its index.
    let other = TestEnv::new();
    let upon = other.dockerfile("c", &format!("FROM {name}\nCOPY x /x\n")).file("x", "x");
    let one = format!("type=local,dest={}", other.path("out").display());
    other.build(&upon, &["--platform", "linux/arm/v7", "-o", &one]).ok();
    assert_eq!(std::fs::read(other.path("out/which")).expect("written"), b"arm v7");
    env.build(&context, &["--platform", "linux/amd64,linux/arm/v7", "-t", "kept:1"]).ok();
    let upon = env.dockerfile("d", "FROM kept:1\nCOPY x /x\n").file("x", "x");
    let one = format!("type=local,dest={}", env.path("one").display());
    env.build(&upon, &["--platform", "linux/arm/v7", "-o", &one]).ok();
    assert_eq!(std::fs::read(env.path("one/which")).expect("written"), b"arm v7");
    // Pushed later it is the index again.
    let later = registry.name("later:1");
    env.rbuild(["tag", "kept:1", &later]).ok();
    env.rbuild(["push", &later]).ok();
    let raw = registry.skopeo("inspect").args(["--raw", "--tls-verify=false"]).arg(format!("docker://{later}")).ok();
    assert_eq!(parsed(raw.stdout)["manifests"].as_array().map(Vec::len), Some(2));
    env.build(&context, &["--platform", "linux/amd64,linux/arm/v7", "-o", "type=docker,dest=x.tar"])
        .run()
        .exits(1)
        .contains("one platform");
}

#[test]
fn annotations_stand_where_they_were_asked_for() {
    let env = TestEnv::new();
    let context = env.dockerfile("c", "FROM scratch\nCOPY f /f\n").file("f", "f");
    let dest = env.path("a.tar");
    let spec = format!("type=oci,dest={},annotation.In.Spec=1", dest.display());
    env.build(&context, &["-o", &spec, "--annotation", "by.flag=2", "--annotation", "manifest-descriptor:of=3"]).ok();
    let (descriptor, manifest) = top(&Layout::from_archive(&dest));
    assert_eq!(manifest["annotations"], json!({ "In.Spec": "1", "by.flag": "2" }));
    assert_eq!(descriptor["annotations"]["of"], "3");
    env.build(&context, &["-o", &spec, "--annotation", "index:a=b"]).run().exits(1).contains("index");
    env.build(&context, &["-o", &spec, "--annotation", "layer:a=b"]).run().exits(2).contains("no place");
}

#[test]
fn a_given_time_cuts_off_later_ones_and_leaves_the_base_alone() {
    let env = TestEnv::busybox();
    let context = env
        .dockerfile("c", "FROM busybox\nRUN echo made > /made\nCOPY old new /d/\nWORKDIR /w\n")
        .file("old", "old")
        .file("new", "new");
    context.touch("old", 1_000_000);
    context.touch("new", 1_800_000_000);
    let build = |name: &str, extra: &str, epoch: &str| {
        let dest = env.path(name);
        let spec = format!("type=oci,dest={}{extra}", dest.display());
        env.build(&context, &["-o", &spec, "--no-cache"]).env("SOURCE_DATE_EPOCH", epoch).ok();
        (std::fs::read(&dest).expect("written"), Layout::from_archive(&dest).image())
    };
    let (bytes, image) = build("a.tar", "", "1600000000");
    let times = |path: &str| image.find(path).map(|entry| entry.mtime);
    assert_eq!(times("made"), Some(1_600_000_000));
    assert_eq!(times("d/old"), Some(1_000_000));
    assert_eq!(times("d/new"), Some(1_600_000_000));
    assert_eq!(times("w"), Some(1_600_000_000));
    // Later than that, and the base's.
    assert_eq!(times("bin/busybox"), Some(1_700_000_000));
    assert_eq!(image.config["created"], "2020-09-13T12:26:40Z");
    let history = image.config["history"].as_array().expect("a history");
    assert!(history.iter().skip(1).all(|entry| entry["created"] == "2020-09-13T12:26:40Z"), "{history:#?}");
    // Built anew it is the same, on another store too.
    assert!(build("b.tar", "", "1600000000").0 == bytes, "the second build differs");
    let base = env.path("base.tar");
    env.rbuild(["save", "busybox", "-o"]).arg(&base).ok();
    let other = TestEnv::new();
    other.rbuild(["load", "-i"]).arg(&base).ok();
    let dest = other.path("c.tar");
    let again = other.build(&context, &["-o", &format!("type=oci,dest={}", dest.display())]);
    again.env("SOURCE_DATE_EPOCH", "1600000000").ok();
    assert!(std::fs::read(&dest).expect("written") == bytes, "another store's build differs");
    // Not asked to, it leaves times as they came about.
    let (_, kept) = build("d.tar", ",rewrite-timestamp=false", "1600000000");
    assert_eq!(kept.find("d/new").map(|entry| entry.mtime), Some(1_800_000_000));
    let nothing = format!("type=oci,dest={},rewrite-timestamp=true", dest.display());
    env.build(&context, &["-o", &nothing]).run().exits(1).contains("SOURCE_DATE_EPOCH");
}

#[test]
fn squash_makes_the_new_layers_one() {
    let env = TestEnv::busybox();
    let context = env.dockerfile(
        "c",
        "FROM busybox\nRUN mkdir /d && echo 1 > /d/one && echo 2 > /d/two && rm /etc/group\nRUN rm /d/one && ln /d/two /d/three && touch /gone\nRUN rm /gone\nENV A=1\n",
    );
    let dest = env.path("a.tar");
    env.build(
        &context,
        &["-t", "flat", "--squash", "-o", "type=image", "-o", &format!("type=oci,dest={}", dest.display())],
    )
    .ok();
    let image = Layout::from_archive(&dest).image();
    assert_eq!(image.layers.len(), 2);
    let mut names: Vec<_> = image.layers[1].iter().map(|entry| entry.path.trim_end_matches('/')).collect();
    names.sort_unstable();
    assert_eq!(names, ["d", "d/three", "d/two", "etc", "etc/.wh.group"]);
    let history = image.config["history"].as_array().expect("a history");
    assert_eq!(history.iter().filter(|entry| entry["empty_layer"] != true).count(), 2);
    let list = "ls /d; cat /d/three; stat -c %h /d/two; ls /etc/group /gone; echo $A";
    env.run("flat", &["sh", "-c", list]).ok().contains("three\ntwo\n2\n2\n").contains("1\n");
}

#[test]
fn what_the_old_docker_build_took_is_taken_with_a_word() {
    let env = TestEnv::new();
    let context = env.dockerfile("c", "FROM scratch\nCOPY Dockerfile /f\n");
    let old = ["--rm=true", "--force-rm", "--compress", "--isolation", "default", "--disable-content-trust=false"];
    let out = env.build(&context, &old).ok();
    for flag in ["--rm", "--force-rm", "--compress", "--isolation", "--disable-content-trust"] {
        let lines = out.stderr.lines().filter(|line| line.contains(&format!("{flag} has no effect"))).count();
        assert_eq!(lines, 1, "{flag}: {}", out.stderr);
    }
    // The last one of several counts.
    env.build(&context, &["--target", "nosuch", "--target", "0", "--progress", "plain"]).ok();
    env.rbuild(["run", "--no-such-flag", "x"]).run().exits(125);
    env.rbuild(["build", "--no-such-flag", "x"]).run().exits(2);
}

#[test]
fn what_cannot_be_pushed_is_known_before_the_first_step() {
    if !require(&["docker-registry", "skopeo", "setpriv", "openssl", "htpasswd"]) {
        return;
    }
    let env = TestEnv::busybox();
    let registry = Registry::tls(Login { user: "ann", password: "secret" });
    env.configure(&format!("[registry.\"{}\"]\ninsecure = true\n", registry.host()));
    let context = env.dockerfile("c", "FROM busybox\nRUN echo the step ran\n");
    let refused = env.build(&context, &["-t", &registry.name("app:1"), "--push"]).timeout(60).run();
    refused.exits(4).contains("login").lacks("the step ran");
    env.build(&context, &["--push"]).run().exits(1).contains("-t").lacks("the step ran");
}

#[test]
fn a_line_says_which_mirror_served_what() {
    if !require(&["docker-registry", "skopeo", "setpriv"]) {
        return;
    }
    let env = TestEnv::new();
    let registry = Registry::plain();
    let base = Layout::write(&env.path("base"), &[&busybox_base().tar], &json!({ "Cmd": ["sh"] }));
    registry.put("library/thing:1", &base);
    let host = registry.host();
    // The first mirror is not there.
    env.configure(&format!("[registry.\"docker.io\"]\nmirrors = [\"127.0.0.1:1\", \"{host}\"]\n"));
    let built = env.build(&env.dockerfile("c", "FROM thing:1\nRUN true\n"), &["-t", "it"]).ok();
    built
        .contains(&format!("manifest of docker.io/library/thing:1: served by the mirror {host}"))
        .contains("the mirror 127.0.0.1:1 failed")
        .contains("blob sha256:");
}
