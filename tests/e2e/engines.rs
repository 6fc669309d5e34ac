//! Round trips: what other engines and tools read is what we wrote, digest for digest and file for file, and back.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use serde_json::{Value, json};

use crate::support::{Context, Layout, Registry, Run, Running, TestEnv, busybox_base, require, require_root};

#[track_caller]
fn parsed(text: impl AsRef<[u8]>) -> Value {
    serde_json::from_slice(text.as_ref()).expect("JSON")
}

/// A containerd with everything in the test's own directory.
struct Containerd {
    _daemon: Running,
    address: String,
}

impl Containerd {
    fn start(env: &TestEnv) -> Self {
        let dir = env.path("containerd");
        fs::create_dir_all(&dir).expect("ours");
        let address = env.path("containerd.sock").display().to_string();
        let config = format!(
            "version = 2\nroot = \"{0}/root\"\nstate = \"{0}/state\"\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\", \"io.containerd.internal.v1.opt\", \"io.containerd.snapshotter.v1.aufs\", \"io.containerd.snapshotter.v1.btrfs\", \"io.containerd.snapshotter.v1.devmapper\", \"io.containerd.snapshotter.v1.zfs\"]\n[grpc]\naddress = \"{address}\"\n",
            dir.display()
        );
        let file = dir.join("config.toml");
        fs::write(&file, config).expect("ours");
        // Its mounts are its own and go with it.
        let mut daemon = env
            .program("unshare")
            .args(["-m", "--kill-child", "sh", "-c", "exec containerd --config \"$0\" 2>&1"])
            .arg(&file)
            .timeout(40)
            .spawn();
        daemon.wait_for("containerd successfully booted");
        Self { _daemon: daemon, address }
    }

    fn ctr(&self, env: &TestEnv) -> Run {
        env.program("ctr").arg("--address").arg(&self.address).args(["--namespace", "test"])
    }

    /// The digest that a name leads to.
    #[track_caller]
    fn digest(&self, env: &TestEnv, name: &str) -> String {
        let list = self.ctr(env).args(["images", "ls"]).ok().stdout;
        let line = list.lines().find(|line| line.starts_with(&format!("{name} "))).unwrap_or_else(|| panic!("{list}"));
        line.split_whitespace().find(|word| word.starts_with("sha256:")).expect("a digest").to_owned()
    }
}

/// A layer of everything that a tar has trouble with.
fn odd(env: &TestEnv) -> Context {
    let long = "l".repeat(200);
    let script = format!(
        "mkdir -p /odd/deep/er && cd /odd && echo a > a && ln a b && ln -s a link && ln -s /no/where dangling && mkfifo pipe && mknod null c 1 3 && chmod 1777 deep && chown 1000:2000 a && echo s > set && chmod 4755 set && echo x > {long} && echo x > \"$(printf 'not\\377utf8')\" && echo gone > gone && mkdir full && touch full/old"
    );
    env.dockerfile(
        "odd",
        &format!("FROM busybox\nRUN {script}\nRUN rm /odd/gone && rm -rf /odd/full && mkdir /odd/full && touch /odd/full/new\nRUN dd if=/dev/zero of=/odd/sparse bs=1 count=1 seek=20000000 2>/dev/null\nCMD [\"sh\"]\n"),
    )
}

const LIST: &str = "cd /odd && find . | LC_ALL=C sort | while read -r f; do stat -c '%n %F %a %u:%g %h %s %t:%T' \"$f\"; readlink \"$f\"; done; ls full; cat a b; sha256sum sparse; for f in *; do echo \"$f\"; done | od -c";

#[test]
fn containerd_has_what_we_wrote_and_gives_it_back() {
    if !require(&["containerd", "ctr", "unshare", "skopeo"]) || !require_root() {
        return;
    }
    let env = TestEnv::busybox();
    let engine = Containerd::start(&env);
    let (oci, docker) = (env.path("oci.tar"), env.path("docker.tar"));
    let context = odd(&env);
    let dest = |kind: &str, path: &std::path::Path| format!("type={kind},dest={}", path.display());
    let name = "docker.io/library/odd:1";
    env.build(&context, &["-t", "odd:1", "-o", &dest("oci", &oci), "-o", &dest("docker", &docker), "-o", "type=image"])
        .ok();
    let want = |archive: &std::path::Path| {
        let index = parsed(fs::read(Layout::from_archive(archive).dir().join("index.json")).expect("a layout"));
        index["manifests"][0]["digest"].as_str().expect("a digest").to_owned()
    };
    for archive in [&oci, &docker] {
        engine.ctr(&env).args(["images", "import", "--no-unpack"]).arg(archive).ok();
        assert_eq!(engine.digest(&env, name), want(archive));
        let back = archive.with_extension("back");
        engine.ctr(&env).args(["images", "export"]).arg(&back).arg(name).ok();
        let copied = env.rbuild(["copy", &format!("oci-archive:{}", back.display()), "store:back"]).ok();
        assert_eq!(copied.line(), want(archive));
        env.rbuild(["inspect", "--validate", "back"]).ok();
        engine.ctr(&env).args(["images", "rm", name]).ok();
    }
    assert_eq!(env.run("back", &["sh", "-c", LIST]).ok().stdout, env.run("odd:1", &["sh", "-c", LIST]).ok().stdout);
}

/// rbuild starts `ctr`, which is told by its environment where; a script counts what passes.
#[test]
fn containerd_is_sent_what_it_lacks() {
    if !require(&["containerd", "ctr", "unshare"]) || !require_root() {
        return;
    }
    let env = TestEnv::busybox();
    let engine = Containerd::start(&env);
    env.configure("load = \"containerd\"\n");
    let bin = counting(&env, "ctr", "images");
    let text = "FROM busybox\nRUN head -c 3000000 /dev/urandom > /noise\n";
    let build = |text: &str, tag: &str| {
        let run = env.build(&env.dockerfile("c", text), &["-t", tag, "--load"]).env("PATH", &bin);
        run.env("CONTAINERD_ADDRESS", &engine.address).env("CONTAINERD_NAMESPACE", "test").ok()
    };
    build(text, "app:1").contains("ctr");
    let first = sent(&env);
    assert!(first > 3_000_000, "{first}");
    build(&format!("{text}RUN echo more > /more\n"), "app:2");
    let second = sent(&env);
    assert!(second < 200_000, "the new layer alone: {second}");
    build(text, "app:3");
    assert!(sent(&env) < 50_000, "no layer at all");
    // All of it is there all the same.
    let back = env.path("back.tar");
    engine.ctr(&env).args(["images", "export"]).arg(&back).arg("docker.io/library/app:2").ok();
    env.rbuild(["copy", &format!("oci-archive:{}", back.display()), "store:back"]).ok();
    assert_eq!(env.run("back", &["sh", "-c", "cat /more; wc -c < /noise"]).ok().stdout, "more\n3000000\n");
    // Several platforms are no trouble for it.
    let several = env.dockerfile("m", "FROM scratch\nARG TARGETARCH\nCOPY Dockerfile /$TARGETARCH\n");
    let args = ["--platform", "linux/amd64,linux/arm64", "-t", "multi:1", "--load"];
    let run = env.build(&several, &args).env("PATH", &bin).env("CONTAINERD_ADDRESS", &engine.address);
    run.env("CONTAINERD_NAMESPACE", "test").ok();
    engine.digest(&env, "docker.io/library/multi:1");
    // Nor is an index that names what is told of the image.
    let args = ["-t", "told:1", "--load", "--provenance=true"];
    let run = env.build(&several, &args).env("PATH", &bin).env("CONTAINERD_ADDRESS", &engine.address);
    run.env("CONTAINERD_NAMESPACE", "test").ok().lacks("left out");
    let told = env.path("told.tar");
    engine.ctr(&env).args(["images", "export", "--all-platforms"]).arg(&told).arg("docker.io/library/told:1").ok();
    let told = format!("oci-archive:{}", told.display());
    let raw = env.rbuild(["inspect", "--raw", &told]).ok().stdout;
    assert!(raw.contains("attestation-manifest"), "{raw}");
    env.rbuild(["inspect", "--validate", &told]).ok();
}

/// A PATH on which `program` is a script that counts what its standard input has, whenever its first word is `word`.
fn counting(env: &TestEnv, program: &str, word: &str) -> String {
    let real = crate::support::find(program).expect("required before");
    let script = format!(
        "#!/bin/sh\nif [ \"$1\" != {word} ]; then exec {0} \"$@\"; fi\nmkfifo {1}/fifo.$$\nwc -c < {1}/fifo.$$ > {1}/sent &\ntee {1}/fifo.$$ | {0} \"$@\"\nstatus=$?\nwait\nrm {1}/fifo.$$\nexit $status\n",
        real.display(),
        env.dir().display()
    );
    let bin = env.context(&format!("bin-{program}")).mode(program, 0o755, script);
    format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", bin.dir().display())
}

fn sent(env: &TestEnv) -> u64 {
    let text = fs::read_to_string(env.path("sent")).expect("something was sent");
    text.trim().parse().unwrap_or_else(|_| panic!("{text:?}"))
}

/// A docker daemon that touches nothing of the machine's network, in a mount namespace of its own.
#[test]
fn docker_is_sent_what_it_lacks() {
    if !require(&["dockerd", "docker", "unshare"]) || !require_root() {
        return;
    }
    let env = TestEnv::busybox();
    let host = format!("unix://{}", env.path("docker.sock").display());
    let script = format!(
        "mount -t tmpfs tmpfs /run && exec dockerd --iptables=false --ip6tables=false --bridge=none --data-root {0}/data --exec-root {0}/exec --pidfile {0}/pid -H {host} 2>&1",
        env.path("docker").display()
    );
    let mut daemon = env.program("unshare").args(["-m", "--kill-child", "sh", "-c", &script]).timeout(40).spawn();
    daemon.wait_for("API listen on");
    env.configure("load = \"docker\"\n");
    let bin = counting(&env, "docker", "load");
    let text = "FROM busybox\nRUN head -c 3000000 /dev/urandom > /noise\n";
    let build = |text: &str, tag: &str| {
        let run = env.build(&env.dockerfile("c", text), &["-t", tag, "--load"]).env("PATH", &bin);
        run.env("DOCKER_HOST", &host).ok()
    };
    build(text, "app:1");
    assert!(sent(&env) > 5_000_000, "base and layer");
    build(&format!("{text}RUN echo more > /more\n"), "app:2");
    assert!(sent(&env) < 200_000, "the new layer alone: {}", sent(&env));
    fs::remove_file(env.path("sent")).expect("there");
    build(text, "app:3");
    assert!(!env.path("sent").exists(), "an id that is there is named, not sent");
    let docker = || env.program("docker").arg("-H").arg(&host);
    let run = ["run", "--rm", "--network", "none", "--ulimit", "nofile=1024:1024", "app:2"];
    let out = docker().args(run).args(["sh", "-c", "cat /more; wc -c < /noise"]).ok();
    assert_eq!(out.stdout, "more\n3000000\n");
    // And out of it again: ids are the same, and so is every file.
    let saved = env.path("saved.tar");
    docker().args(["save", "-o"]).arg(&saved).args(["app:2", "app:1", "app:3"]).ok();
    let other = TestEnv::new();
    other.rbuild(["load", "-i"]).arg(&saved).ok().contains("app:2").contains("app:3");
    let id = |env: &TestEnv, name: &str| env.rbuild(["inspect", "-f", "{{.Id}}", name]).ok().line().to_owned();
    for name in ["app:1", "app:2", "app:3"] {
        assert_eq!(id(&other, name), id(&env, name), "{name}");
    }
    assert_eq!(other.run("app:2", &["cat", "/more"]).ok().line(), "more");
}

/// By way of skopeo, umoci and a registry; then as files, which umoci unpacks and we do.
#[test]
fn odd_files_come_through_every_tool() {
    if !require(&["docker-registry", "skopeo", "setpriv", "umoci"]) || !require_root() {
        return;
    }
    let env = TestEnv::busybox();
    let registry = Registry::plain();
    let layout = env.path("layout");
    let name = registry.name("odd:1");
    let context = odd(&env);
    env.build(&context, &["-t", &name, "--push", "-o", &format!("type=oci,tar=false,dest={}", layout.display())]).ok();
    let listed = env.run(&name, &["sh", "-c", LIST]).ok().stdout;
    assert!(listed.contains("character special file") && listed.contains("fifo") && listed.contains("377"), "{listed}");
    // A store that knows nothing, and copies by others.
    let copies = [
        ("docker", format!("docker://{name}")),
        ("dir", format!("dir:{}", env.path("dir").display())),
        ("oci", format!("oci:{}:x", env.path("copied").display())),
        ("docker-archive", format!("docker-archive:{}:odd:2", env.path("copied.tar").display())),
    ];
    for pair in copies.windows(2) {
        let run = env.program("skopeo").args(["--insecure-policy", "copy", "--src-tls-verify=false"]);
        run.args([&pair[0].1, &pair[1].1]).ok();
    }
    let digest = |place: &str| {
        let raw = env.rbuild(["inspect", "--raw", place]).ok().stdout_bytes;
        hex::encode(<sha2::Sha256 as sha2::Digest>::digest(raw))
    };
    assert_eq!(digest(&format!("docker://{name}")), digest(&format!("oci:{}:x", env.path("copied").display())));
    for (number, place) in [format!("docker://{name}"), copies[2].1.clone(), copies[3].1.clone()].iter().enumerate() {
        let other = TestEnv::new();
        other.rbuild(["copy", place, "store:odd"]).ok();
        assert_eq!(other.run("odd", &["sh", "-c", LIST]).ok().stdout, listed, "{number}: {place}");
    }
    let bundle = env.path("bundle");
    let run = env.program("umoci").args(["unpack", "--image", &format!("{}:x", env.path("copied").display())]);
    run.arg(&bundle).ok();
    let theirs = env.program("sh").args(["-c", &LIST.replace("/odd", "\"$0\"")]).arg(bundle.join("rootfs/odd")).ok();
    // The machine's tools and busybox's print the same of the same files; an overlay counts no links of its directories.
    let first = |text: &str| {
        text.lines().skip(1).take_while(|line| !line.starts_with("0000000")).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(first(&theirs.stdout), first(&listed));
    assert!(fs::metadata(bundle.join("rootfs/odd/set")).expect("there").permissions().mode() & 0o4000 != 0);
}

/// Members of more than 8 GiB do not fit into a number of octal digits; nothing of that size has to be on the disk for it.
#[test]
fn sizes_beyond_octal_are_read_and_written() {
    if !require(&["tar"]) {
        return;
    }
    let env = TestEnv::new();
    let mut header = tar::Header::new_gnu();
    header.set_path("huge").expect("a short name");
    header.set_size(9 << 30);
    header.set_mode(0o644);
    header.set_cksum();
    // It promises what does not come: that is said, and not that the number makes no sense.
    fs::write(env.path("cut.tar"), [header.as_bytes().as_slice(), &[0; 4096]].concat()).expect("ours");
    env.rbuild(["import"]).arg(env.path("cut.tar")).arg("cut").run().exits(1).lacks("number");
    let base = Layout::write(&env.path("base"), &[&busybox_base().tar, &env.path("cut.tar")], &json!({}));
    let source = format!("oci:{}", base.dir().display());
    env.rbuild(["inspect", "--validate", &source]).run().exits(1).contains("no tar that can be read to its end");
}
