//! Against Debian's docker-registry on loopback.

use registry::fake::{Auth, Fake};
use serde_json::json;

use crate::support::{Context, Layout, Login, Registry, TestEnv, busybox_base, require};

const NEEDED: &[&str] = &["docker-registry", "skopeo", "setpriv", "openssl", "htpasswd"];

fn base(env: &TestEnv) -> Layout {
    Layout::write(&env.path("base"), &[&busybox_base().tar], &json!({ "Cmd": ["sh"], "Env": ["FROM_BASE=1"] }))
}

fn upon(env: &TestEnv, registry: &Registry) -> Context {
    env.dockerfile("c", &format!("FROM {}\nRUN echo $FROM_BASE > /made\n", registry.name("team/base:1")))
}

#[test]
fn a_build_upon_a_pulled_base_is_pushed_without_the_bases_layers() {
    if !require(NEEDED) {
        return;
    }
    let env = TestEnv::new();
    let registry = Registry::plain();
    registry.put("team/base:1", &base(&env));
    let name = registry.name("other/app:1");
    // Plain HTTP on loopback needs no word of configuration.
    env.build(&upon(&env, &registry), &["-t", &name]).ok();
    assert_eq!(env.run(&name, &["cat", "/made"]).ok().line(), "1");

    let before = registry.uploads();
    env.rbuild(["push", &name]).ok();
    let log = registry.requests();
    let uploads = registry.uploads() - before;
    let mounted = log.iter().filter(|r| r.contains("mount=") && r.ends_with(" 201")).count();
    assert!(uploads - mounted <= 2, "own layer and config only: {log:#?}");
    let image = registry.get("other/app:1", &env.path("got")).image();
    assert_eq!(image.layers.len(), 2);
    assert_eq!(image.find("made").map(|e| e.body.clone()), Some(b"1\n".to_vec()));

    // Again: everything is there.
    let before = registry.uploads();
    env.rbuild(["push", &name]).ok();
    assert_eq!(registry.uploads(), before);
    // The base is not listed, unless asked for.
    env.rbuild(["images"]).ok().lacks("team/base");
    env.rbuild(["images", "-a"]).ok().contains("team/base");
}

#[test]
fn push_as_part_of_the_build_and_pull_into_another_store() {
    if !require(NEEDED) {
        return;
    }
    let env = TestEnv::busybox();
    let registry = Registry::plain();
    let (name, second) = (registry.name("app:1"), registry.name("deep/er/app:2"));
    env.build(&env.dockerfile("c", "FROM busybox\nRUN echo hi > /hi\n"), &["-t", &name, "-t", &second, "--push"]).ok();
    let other = TestEnv::new();
    other.rbuild(["pull", &name]).ok();
    assert_eq!(other.run(&name, &["cat", "/hi"]).ok().line(), "hi");
    other.rbuild(["images"]).ok().contains("app");
    other.rbuild(["pull", &second]).ok();
    other.rbuild(["pull", &registry.name("app:none")]).run().exits(4).contains("app:none");
    // By digest: the bytes are the ones asked for.
    let digest = registry
        .skopeo("inspect")
        .args(["--tls-verify=false", "--format", "{{.Digest}}"])
        .arg(format!("docker://{name}"))
        .ok();
    let by_digest = format!("{}@{}", registry.name("app"), digest.line());
    let third = TestEnv::new();
    let context = third.dockerfile("c", &format!("FROM {by_digest}\nRUN cat /hi\n"));
    third.build(&context, &["-t", "it"]).ok();
}

#[test]
fn tls_and_basic_authentication() {
    if !require(NEEDED) {
        return;
    }
    let env = TestEnv::new();
    let registry = Registry::tls(Login { user: "ann", password: "s3cret-canary" });
    registry.put("team/base:1", &base(&env));
    let context = upon(&env, &registry);
    let name = registry.name("app:1");

    // The authority is unknown.
    env.build(&context, &["-t", &name]).timeout(60).run().exits(4).contains("certificate");
    env.configure(&format!("[registry.\"{}\"]\nca = [\"{}\"]\n", registry.host(), registry.ca().display()));
    // Nobody is logged in.
    env.build(&context, &["-t", &name]).timeout(60).run().exits(4).contains("login");
    env.rbuild(["login", "-u", "ann", "--password-stdin", &registry.host()])
        .stdin("wrong")
        .timeout(60)
        .run()
        .exits(4)
        .lacks("wrong");
    env.rbuild(["login", "-u", "ann", "--password-stdin", &registry.host()])
        .stdin("s3cret-canary\n")
        .ok()
        .lacks("s3cret-canary");
    env.build(&context, &["-t", &name, "--push"]).ok().lacks("s3cret-canary");
    assert_eq!(registry.get("app:1", &env.path("got")).image().layers.len(), 2);

    let other = TestEnv::new();
    other.configure(&std::fs::read_to_string(env.path("rbuild.toml")).expect("ours"));
    other.rbuild(["pull", &name]).timeout(60).run().exits(4);
    let pull = |run: &TestEnv| run.rbuild(["pull", &name]).env("DOCKER_CONFIG", env.path("home/.docker")).run();
    assert_eq!(pull(&other).code, Some(0));
    env.rbuild(["logout", &registry.host()]).ok();
    env.rbuild(["push", &name]).timeout(60).run().exits(4);
    // Nothing of the password lies in the store.
    let grep = env.program("grep").args(["-rlaF", "s3cret-canary"]).arg(env.store()).run();
    assert_eq!(grep.stdout, "");
}

/// As docker and podman keep certificates, as containerd does, and in the file of our own.
#[test]
fn a_registry_lets_in_who_shows_a_certificate() {
    if !require(NEEDED) {
        return;
    }
    let registry = Registry::of_known_clients();
    let name = registry.name("app:1");
    let read = |file: &std::path::Path| std::fs::read_to_string(file).expect("made before");
    let (ca, (certificate, key)) = (registry.ca(), registry.client());
    let write = |env: &TestEnv, dir: &str, files: &[(&str, String)]| {
        let dir = env.path(format!("home/.config/{dir}/certs.d/{}", registry.host()));
        std::fs::create_dir_all(&dir).expect("ours");
        files.iter().for_each(|(file, text)| std::fs::write(dir.join(file), text).expect("ours"));
    };
    let pair = || [("client.cert", read(&certificate)), ("client.key", read(&key))];
    let server = |client: &str| {
        let host = registry.host();
        ("hosts.toml", format!("server = \"https://{host}\"\nca = \"{}\"\nclient = {client}\n", ca.display()))
    };
    let [cert_file, key_file] = pair();
    let both = ("both.pem", read(&key) + &read(&certificate));
    let cases: [(&str, Vec<(&str, String)>); 5] = [
        ("docker", vec![("ca.crt", read(&ca)), cert_file.clone(), key_file.clone()]),
        ("containers", vec![("ca.crt", read(&ca)), cert_file, key_file]),
        ("containers", vec![server(&format!("[[\"{}\", \"{}\"]]", certificate.display(), key.display()))]),
        ("containers", vec![server("\"both.pem\""), both.clone()]),
        ("containers", vec![server("[\"both.pem\"]"), both]),
    ];
    let busybox = TestEnv::busybox();
    let context = busybox.dockerfile("c", "FROM busybox\nCOPY Dockerfile /f\n");
    busybox.build(&context, &["-t", &name]).ok();
    // The authority alone does not let one in.
    busybox.configure(&format!("[registry.\"{}\"]\nca = [\"{}\"]\n", registry.host(), ca.display()));
    busybox.rbuild(["push", &name]).timeout(60).run().exits(4).contains("wants to see a certificate");
    let keypair = format!(
        "[registry.\"{0}\"]\nca = [\"{1}\"]\n[[registry.\"{0}\".keypair]]\nkey = \"{2}\"\ncert = \"{3}\"\n",
        registry.host(),
        ca.display(),
        key.display(),
        certificate.display()
    );
    busybox.configure(&keypair);
    busybox.rbuild(["push", &name]).ok();
    for (dir, files) in &cases {
        let env = TestEnv::new();
        write(&env, dir, files);
        env.rbuild(["pull", &name]).ok();
        assert!(env.run(&name, &["cat", "/f"]).ok().stdout.contains("FROM busybox"), "{files:?}");
        env.build(&env.dockerfile("c", &format!("FROM {name}\nRUN echo more > /more\n")), &["-t", &name, "--push"])
            .ok();
    }
    // A key that is not there, or not a key, is called by its name.
    let env = TestEnv::new();
    write(&env, "docker", &[("ca.crt", read(&ca)), ("client.cert", read(&certificate))]);
    env.rbuild(["pull", &name]).run().exits(1).contains("client.key");
    write(&env, "docker", &[("client.key", "nonsense".into())]);
    env.rbuild(["pull", &name]).run().exits(1).contains("client.key").lacks("nonsense");
}

/// A token server that takes no password: the identity token that it gave once stands for the user, wherever it is kept.
#[test]
fn identity_tokens_are_exchanged_for_access() {
    const TOKEN: &str = "canary-identity";
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("threads");
    let auth = Auth::Token {
        user: "nobody".into(),
        password: "canary-unknown".into(),
        identity: TOKEN.into(),
        lifetime: std::time::Duration::from_secs(60),
        public: false,
        realm: String::new(),
    };
    let fake = runtime.block_on(Fake::with_auth(auth)).expect("a port");
    let (host, name) = (fake.host().to_owned(), format!("{}/team/app:1", fake.host()));
    let bin = |env: &TestEnv, secret: &str| {
        let answer = format!("{{\"ServerURL\":\"{host}\",\"Username\":\"<token>\",\"Secret\":\"{secret}\"}}");
        let helper = format!("#!/bin/sh\ncat > /dev/null\ncase $1 in get) echo '{answer}';; esac\n");
        let bin = env.context("bin").mode("docker-credential-mine", 0o755, helper);
        format!("{}:/usr/bin:/bin", bin.dir().display())
    };
    let entry = |secret: &str| json!({ "auths": { &host: { "auth": "PHRva2VuPjo=", "identitytoken": secret } } });
    let config = |env: &TestEnv, value: &serde_json::Value| {
        std::fs::write(env.path("home/.docker/config.json"), value.to_string()).expect("ours");
    };
    let places = [
        entry(TOKEN),
        json!({ "credsStore": "mine" }),
        json!({ "credHelpers": { &host: "mine" } }),
        // Nothing of it is kept in the file.
        json!({ "auths": { &host: {} }, "credsStore": "mine" }),
    ];
    for place in &places {
        let env = TestEnv::busybox();
        config(&env, place);
        let path = bin(&env, TOKEN);
        let context = env.dockerfile("c", "FROM busybox\nCOPY Dockerfile /f\n");
        env.build(&context, &["-t", &name, "--push"]).env("PATH", &path).ok().lacks("canary");
        let other = TestEnv::new();
        config(&other, place);
        other.rbuild(["pull", &name]).env("PATH", &path).ok().lacks("canary");
        let upon = other.dockerfile("c", &format!("FROM {name}\nRUN echo x > /x\n"));
        other.build(&upon, &["--pull", "-t", &name]).env("PATH", &path).ok();
        other.rbuild(["push", &name]).env("PATH", &path).ok().lacks("canary");
        for env in [&env, &other] {
            let grep = env.program("grep").args(["-rlaF", "canary"]).arg(env.store()).run();
            assert_eq!(grep.stdout, "", "no token lies in the store");
        }
    }
    let seen = fake.seen();
    let asked: Vec<_> = seen.iter().filter(|seen| seen.target.starts_with("/token")).collect();
    assert!(!asked.is_empty() && asked.iter().all(|seen| seen.method == "POST" && seen.status == 200), "{asked:?}");
    assert!(seen.iter().all(|seen| !seen.authorization.contains(TOKEN)), "it goes to the token server alone");
    // One that is no longer taken is an error that says what to do, and does not say it.
    for place in [entry("canary-old"), json!({ "credsStore": "mine" })] {
        let env = TestEnv::new();
        config(&env, &place);
        let path = bin(&env, "canary-old");
        env.rbuild(["pull", &name]).env("PATH", &path).timeout(60).run().exits(4).contains("login").lacks("canary");
    }
}

#[test]
fn an_insecure_registry_is_named_in_the_config() {
    if !require(NEEDED) {
        return;
    }
    let env = TestEnv::new();
    let registry = Registry::tls(Login { user: "u", password: "p" });
    registry.put("team/base:1", &base(&env));
    env.configure(&format!("[registry.\"{}\"]\ninsecure = true\n", registry.host()));
    env.rbuild(["login", "-u", "u", "--password-stdin", &registry.host()]).stdin("p").ok();
    env.build(&upon(&env, &registry), &["-t", "it"]).ok();
}

#[test]
fn a_mirror_answers_for_the_registry_it_mirrors() {
    if !require(NEEDED) {
        return;
    }
    let env = TestEnv::new();
    let registry = Registry::plain();
    registry.put("library/thing:1", &base(&env));
    env.configure(&format!("[registry.\"docker.io\"]\nmirrors = [\"{}\"]\n", registry.host()));
    env.build(&env.dockerfile("c", "FROM thing:1\nRUN echo mirrored\n"), &["-t", "it"]).ok().contains("mirrored");
    assert!(registry.requests().iter().any(|r| r.contains("/v2/library/thing/")), "{:#?}", registry.requests());
}

#[test]
fn a_cached_build_asks_for_nothing_but_the_tag() {
    if !require(NEEDED) {
        return;
    }
    let env = TestEnv::new();
    let registry = Registry::plain();
    registry.put("team/base:1", &base(&env));
    let context = upon(&env, &registry);
    env.build(&context, &["-t", "it"]).ok();
    let before = registry.requests().len();
    env.build(&context, &["-t", "it"]).ok();
    let more: Vec<_> = registry.requests().split_off(before);
    assert!(more.iter().all(|r| !r.contains("/blobs/")), "{more:#?}");
    // A moved tag is seen when asked for.
    let moved = Layout::write(&env.path("moved"), &[&busybox_base().tar], &json!({ "Env": ["FROM_BASE=2"] }));
    registry.put("team/base:1", &moved);
    env.build(&context, &["-t", "it", "--pull"]).ok();
    assert_eq!(env.run("it", &["cat", "/made"]).ok().line(), "2");
}

#[test]
fn many_layers_come_down_together_and_are_right() {
    if !require(NEEDED) {
        return;
    }
    let env = TestEnv::busybox();
    let registry = Registry::plain();
    let mut text = String::from("FROM busybox\n");
    for n in 0..12 {
        // Each layer replaces, removes and relinks something of the one before.
        text += &format!(
            "RUN mkdir -p /d/{n} && echo {n} > /d/{n}/f && echo {n} > /d/last && ln -sfn {n} /d/link && rm -rf /d/$(({n} - 2)) && chmod 7{}5 /d && ln /d/last /d/{n}/hard\n",
            n % 8
        );
    }
    let name = registry.name("deep:1");
    env.build(&env.dockerfile("c", &text), &["-t", &name, "--push"]).ok();
    let list = "cd /d && find . | sort | xargs stat -c '%n %a %h %s'; cat last link/f */hard; readlink link";
    let here = env.run(&name, &["sh", "-c", list]).ok().stdout;
    let other = TestEnv::new();
    other.rbuild(["pull", &name]).ok();
    assert_eq!(other.run(&name, &["sh", "-c", list]).ok().stdout, here);
}

/// The first process is killed in the middle; the next asks for the rest only, and what it has is right.
#[test]
fn a_download_goes_on_in_the_next_process() {
    if !require(&["docker-registry", "skopeo", "setpriv", "busybox"]) {
        return;
    }
    let env = TestEnv::new();
    let registry = Registry::plain();
    // Large enough to be caught in the middle, and not to be compressed away.
    let (mut noise, mut state) = (Vec::with_capacity(96 << 20), 1_u64);
    while noise.len() < 96 << 20 {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        noise.extend_from_slice(&state.to_le_bytes());
    }
    let mut tar = tar::Builder::new(std::fs::File::create(env.path("large.tar")).expect("ours"));
    let mut header = tar::Header::new_gnu();
    header.set_size(noise.len() as u64);
    header.set_mode(0o644);
    tar.append_data(&mut header, "noise", &*noise).and_then(|()| tar.finish()).expect("ours");
    drop(tar);
    let image = Layout::write(&env.path("image"), &[&busybox_base().tar, &env.path("large.tar")], &json!({}));
    registry.put("large:1", &image);
    let name = registry.name("large:1");
    // Of the large layer: the base's is smaller.
    let partial = || {
        let entries = std::fs::read_dir(env.store().join("ingest")).into_iter().flatten().flatten();
        let mut partials = entries.filter(|entry| entry.file_name().to_string_lossy().ends_with(".partial"));
        partials
            .find_map(|entry| entry.metadata().ok().map(|metadata| metadata.len()).filter(|length| *length > 4 << 20))
    };
    let first = env.rbuild(["pull", &name]).spawn();
    let caught = loop {
        if let Some(length) = partial() {
            first.signal(rustix::process::Signal::KILL);
            break length;
        }
        std::thread::sleep(std::time::Duration::from_micros(200));
    };
    drop(first);
    let left = partial().unwrap_or(0);
    assert!(left >= caught, "what has come stays: {left}");
    let before = registry.requests().len();
    env.rbuild(["pull", &name]).ok();
    let asked = registry.requests().split_off(before);
    assert!(asked.iter().any(|request| request.contains("/blobs/") && request.ends_with(" 206")), "{asked:#?}");
    assert!(partial().is_none());
    let out = env.run(&name, &["sh", "-c", "wc -c < /noise; sha256sum < /noise"]).ok();
    assert!(out.stdout.starts_with(&format!("{}\n", noise.len())), "{}", out.stdout);
    let digest = hex::encode(<sha2::Sha256 as sha2::Digest>::digest(&noise));
    assert!(out.stdout.contains(&digest), "{}", out.stdout);
}

/// A large layer leaves while it is compressed, in one piece that ends with its digest. Whoever builds the same on a machine that
/// knows nothing sends none of it.
#[test]
fn a_large_layer_leaves_while_it_is_compressed_and_once() {
    if !require(NEEDED) {
        return;
    }
    let registry = Registry::plain();
    let name = registry.name("large:1");
    let push = |env: &TestEnv| {
        let mut noise = vec![0_u8; 6 << 20];
        noise.iter_mut().zip(1_u32..).for_each(|(byte, n)| *byte = (n.wrapping_mul(2_654_435_761) >> 24) as u8);
        let context = env.dockerfile("c", "FROM scratch\nCOPY noise /noise\n").file("noise", noise);
        env.program("touch").args(["-d", "@1"]).arg(context.path("noise")).ok();
        let before = registry.requests().len();
        env.build(&context, &["-t", &name, "--push"]).env("SOURCE_DATE_EPOCH", "1").ok();
        registry.requests().split_off(before)
    };
    let patched =
        |log: &[String]| log.iter().filter(|line| line.starts_with("PATCH ") && line.ends_with(" 202")).count();
    let first = push(&TestEnv::new());
    assert_eq!(patched(&first), 1, "{first:#?}");
    let second = push(&TestEnv::new());
    assert_eq!(patched(&second), 0, "{second:#?}");
    let bodies = second.iter().filter(|line| line.starts_with("PUT ") && line.contains("/uploads/")).count();
    assert_eq!(bodies, 0, "nothing of it: {second:#?}");
}
