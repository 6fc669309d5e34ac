//! What other tools make of our outputs.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use crate::support::{Context, Layout, Run, Running, TestEnv, require, require_root};

fn app(env: &TestEnv) -> Context {
    env.dockerfile(
        "c",
        "FROM busybox\nRUN echo built > /made && rm /etc/group\nCOPY run.sh /run.sh\nENV WHO=world\nUSER web\nWORKDIR /tmp\nENTRYPOINT [\"/run.sh\"]\nCMD [\"now\"]\n",
    )
    .mode("run.sh", 0o755, "#!/bin/sh\necho hello $WHO $(cat /made) $(pwd) $(id -u) $*\n")
}

const SAYS: &str = "hello world built /tmp 1000 now";

#[track_caller]
fn output(env: &TestEnv, spec: &str, name: &str) -> PathBuf {
    let dest = env.path(name);
    env.build(&app(env), &["-t", "app:1", "-o", &format!("{spec},dest={}", dest.display())]).ok();
    dest
}

#[test]
fn oci_archive_is_read_by_skopeo() {
    if !require(&["skopeo"]) {
        return;
    }
    let env = TestEnv::busybox();
    let tar = output(&env, "type=oci", "app.tar");
    let source = format!("oci-archive:{}", tar.display());
    let inspect = env.program("skopeo").args(["inspect", &source]).ok().stdout;
    let inspect: serde_json::Value = serde_json::from_str(&inspect).expect("JSON");
    assert_eq!(inspect["Os"], "linux");
    // The base, RUN, COPY, and WORKDIR, which is a layer of its own even where the directory exists.
    assert_eq!(inspect["Layers"].as_array().map(Vec::len), Some(4));
    let config = env.program("skopeo").args(["inspect", "--config", &source]).ok().stdout;
    assert!(config.contains("WHO=world"), "{config}");
    // Every blob is read and verified on the way.
    let copy = env.path("copy");
    env.program("skopeo").args(["--insecure-policy", "copy", &source, &format!("dir:{}", copy.display())]).ok();
    Layout::from_archive(&tar).image();
}

#[test]
fn oci_layout_is_unpacked_by_umoci_and_run_by_two_runtimes() {
    if !require(&["umoci", "runc", "crun", "unshare"]) || !require_root() {
        return;
    }
    let env = TestEnv::busybox();
    let layout = output(&env, "type=oci,tar=false", "layout");
    assert!(layout.join("oci-layout").is_file());
    let bundle = env.path("bundle");
    let tag = reference(&layout);
    env.program("umoci").args(["unpack", "--image", &format!("{}:{tag}", layout.display())]).arg(&bundle).ok();
    assert_eq!(fs::read_to_string(bundle.join("rootfs/made")).expect("unpacked"), "built\n");
    assert!(!bundle.join("rootfs/etc/group").exists(), "a whiteout was not applied");
    // No terminal and no limits that this machine does not let us raise.
    let config = fs::read_to_string(bundle.join("config.json")).expect("umoci writes it");
    let mut config: serde_json::Value = serde_json::from_str(&config).expect("JSON");
    config["process"]["terminal"] = false.into();
    config["process"]["rlimits"] = serde_json::json!([]);
    fs::write(bundle.join("config.json"), config.to_string()).expect("ours");
    let id = format!("rbuild-test-{}", std::process::id());
    let runc = env.program("runc").arg("--root").arg(env.path("runc")).args(["run", "--bundle"]).arg(&bundle).arg(&id);
    assert_eq!(runc.ok().line(), SAYS);
    // crun refuses machines that mount the second cgroup hierarchy beside the first; here it does not see it.
    let script = format!(
        "umount /sys/fs/cgroup/unified 2>/dev/null; exec crun --root {0}/crun run --bundle {0}/bundle {id}-crun",
        env.dir().display()
    );
    assert_eq!(env.program("unshare").args(["-m", "sh", "-c", &script]).ok().line(), SAYS);
}

fn reference(layout: &std::path::Path) -> String {
    let index = fs::read_to_string(layout.join("index.json")).expect("a layout");
    let index: serde_json::Value = serde_json::from_str(&index).expect("JSON");
    let name = &index["manifests"][0]["annotations"]["org.opencontainers.image.ref.name"];
    name.as_str().unwrap_or_else(|| panic!("no reference name in {index}")).to_owned()
}

/// podman on a store of its own, asking for nothing that this machine may refuse.
fn podman(env: &TestEnv) -> Run {
    let run = env.program("podman").arg("--root").arg(env.path("podman")).arg("--runroot").arg(env.path("podman-run"));
    run.args([
        "--storage-driver",
        "vfs",
        "--runtime",
        "runc",
        "--cgroup-manager",
        "cgroupfs",
        "--events-backend",
        "none",
    ])
}

fn podman_runs(env: &TestEnv, image: &str) -> String {
    let limits = ["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024"];
    podman(env).args(["run", "--rm", "--network", "none"]).args(limits).arg(image).ok().line().to_owned()
}

#[test]
fn oci_and_docker_archives_are_run_by_podman() {
    if !require(&["podman", "runc"]) || !require_root() {
        return;
    }
    let env = TestEnv::busybox();
    for kind in ["oci", "docker"] {
        let tar = output(&env, &format!("type={kind}"), &format!("{kind}.tar"));
        podman(&env).args(["load", "-i"]).arg(&tar).ok().contains("app:1");
        let images = podman(&env).args(["images", "--format", "{{.Repository}}:{{.Tag}}"]).ok().stdout;
        let name = images.lines().find(|name| name.contains("app:1")).unwrap_or_else(|| panic!("no app:1 in {images}"));
        assert_eq!(podman_runs(&env, name), SAYS, "type={kind}");
        podman(&env).args(["rmi", "-f", name]).ok();
    }
}

#[test]
fn load_hands_the_image_to_podman() {
    if !require(&["podman"]) || !require_root() {
        return;
    }
    let env = TestEnv::busybox();
    // rbuild starts `podman`, whose own settings these are.
    let bin = env.context("bin").mode(
        "podman",
        0o755,
        format!(
            "#!/bin/sh\necho $1 >> {0}/asked\nexec /usr/bin/podman --root {0}/podman --runroot {0}/podman-run --storage-driver vfs --events-backend none \"$@\"\n",
            env.dir().display()
        ),
    );
    let path = format!("{}:/usr/bin:/bin", bin.dir().display());
    env.configure("load = \"podman\"\n");
    env.build(&app(&env), &["-t", "app:1"]).env("PATH", &path).ok().contains("podman run");
    podman(&env).args(["images"]).ok().contains("app");
    // What it has it is not sent again, under another name either.
    env.build(&app(&env), &["-t", "app:2"]).env("PATH", &path).ok().contains("podman run");
    let asked = fs::read_to_string(env.path("asked")).expect("the engine was asked");
    assert_eq!(asked.lines().filter(|line| *line == "load").count(), 1, "{asked}");
    podman(&env).args(["images", "--format", "{{.Tag}}"]).ok().contains("2");
}

/// A docker daemon that touches nothing of the machine's network, in a mount namespace of its own.
struct Dockerd {
    _daemon: Running,
    host: String,
}

fn dockerd(env: &TestEnv) -> Dockerd {
    let host = format!("unix://{}", env.path("docker.sock").display());
    let data = env.path("docker");
    let script = format!(
        "mount -t tmpfs tmpfs /run && exec dockerd --iptables=false --ip6tables=false --bridge=none --data-root {0}/data --exec-root {0}/exec --pidfile {0}/pid -H {host} 2>&1",
        data.display()
    );
    let mut daemon = env.program("unshare").args(["-m", "--kill-child", "sh", "-c", &script]).timeout(40).spawn();
    daemon.wait_for("API listen on");
    Dockerd { _daemon: daemon, host }
}

#[test]
fn docker_archive_and_load_reach_docker() {
    if !require(&["dockerd", "docker", "unshare"]) || !require_root() {
        return;
    }
    let env = TestEnv::busybox();
    let engine = dockerd(&env);
    let docker = || env.program("docker").arg("-H").arg(&engine.host);
    let tar = output(&env, "type=docker", "docker.tar");
    let told = env.path("told.tar");
    let spec = format!("type=docker,dest={}", told.display());
    env.build(&app(&env), &["-t", "app:1", "--provenance=true", "-o", &spec]).ok().lacks("left out");
    for tar in [tar, told] {
        docker().args(["load", "-i"]).arg(&tar).ok().contains("app:1");
        let run = ["run", "--rm", "--network", "none", "--ulimit", "nofile=1024:1024", "app:1"];
        assert_eq!(docker().args(run).ok().line(), SAYS);
        docker().args(["rmi", "app:1"]).ok();
    }
    let load = ["-t", "app:2", "--load", "--provenance=true"];
    let out = env.build(&app(&env), &load).env("DOCKER_HOST", &engine.host).ok().contains("docker has no place for it");
    assert!(out.stderr.contains("docker run"), "{}", out.stderr);
    docker().args(["image", "inspect", "app:2"]).ok();
}

#[test]
pub(crate) fn tar_and_local_give_the_root_file_system() {
    let env = TestEnv::busybox();
    let tar = output(&env, "type=tar", "root.tar");
    let list = env.program("tar").arg("-tvf").arg(&tar).ok().stdout;
    assert!(list.contains("made") && list.contains("bin/busybox") && !list.contains("etc/group"), "{list}");
    let dir = output(&env, "type=local", "rootfs");
    assert_eq!(fs::read_to_string(dir.join("made")).expect("there"), "built\n");
    assert_eq!(fs::metadata(dir.join("run.sh")).expect("there").permissions().mode() & 0o7777, 0o755);
    assert_eq!(fs::read_link(dir.join("bin/sh")).expect("a link").to_str(), Some("busybox"));
    // The short forms: a directory, and `-` for a tar on standard output.
    let short = env.path("short");
    env.build(&app(&env), &["-o", short.to_str().expect("UTF-8")]).ok();
    assert!(short.join("made").exists());
    let bytes = env.build(&app(&env), &["-o", "-"]).ok().stdout_bytes;
    fs::write(env.path("stdout.tar"), bytes).expect("ours");
    env.program("tar").arg("-tf").arg(env.path("stdout.tar")).ok().contains("made");
}

#[test]
fn a_local_output_stays_in_its_directory() {
    let env = TestEnv::busybox();
    let dest = env.path("dest");
    fs::create_dir(&dest).expect("ours");
    // A link that lies where the output writes must not lead it away.
    std::os::unix::fs::symlink(env.path("home"), dest.join("trap")).expect("ours");
    let context = env.dockerfile("c", "FROM scratch\nCOPY f /trap/canary\nCOPY f /ok\n").file("f", "x");
    env.build(&context, &["-o", dest.to_str().expect("UTF-8")]).run();
    assert!(!env.path("home/canary").exists(), "written through a link");
}

#[test]
pub(crate) fn several_outputs_of_one_build() {
    let env = TestEnv::busybox();
    let (one, two) = (env.path("one.tar"), env.path("two"));
    let specs = [format!("type=oci,dest={}", one.display()), format!("type=local,dest={}", two.display())];
    env.build(&app(&env), &["-o", &specs[0], "-o", &specs[1]]).ok();
    assert_eq!(Layout::from_archive(&one).image().layers.len(), 4);
    assert!(two.join("made").exists());
}

#[test]
fn an_archive_without_a_place_goes_to_standard_output_but_not_to_a_terminal() {
    let env = TestEnv::busybox();
    let context = env.dockerfile("c", "FROM scratch\nCOPY Dockerfile /\n");
    for (spec, member) in [("type=tar", "Dockerfile"), ("type=oci", "oci-layout"), ("-", "Dockerfile")] {
        let out = env.build(&context, &["-o", spec]).ok();
        let mut archive = tar::Archive::new(out.stdout_bytes.as_slice());
        let names: Vec<_> = archive
            .entries()
            .expect("a tar")
            .map(|e| e.expect("whole").path().expect("a name").display().to_string())
            .collect();
        assert!(names.iter().any(|name| name == member), "{spec}: {names:?}");
        let mut terminal = env.build(&context, &["-o", spec]).env("TERM", "vt100").on_terminal();
        terminal.sees("not for a terminal");
        assert_eq!(terminal.ends(), Some(2), "{spec}");
    }
    env.build(&context, &["-o", "-", "-o", "type=oci"]).run().exits(2).contains("only one output");
}

#[test]
fn unknown_outputs_and_options_are_refused() {
    let env = TestEnv::busybox();
    for spec in ["type=nonsense", "type=oci,dest=x,nonsense=1", "type=oci,tar=maybe,dest=x", "dest=x"] {
        env.build(&app(&env), &["-o", spec]).run().exits(2);
    }
}

#[test]
fn an_output_that_cannot_be_written_is_an_error() {
    let env = TestEnv::busybox();
    let out = env.build(&app(&env), &["-o", "type=oci,dest=/proc/no/such/file.tar"]).run();
    assert_eq!(out.code, Some(1), "{}", out.text());
    assert!(out.stderr.contains("/proc/no/such/file.tar"), "{}", out.stderr);
}

#[test]
fn attributes_links_and_removals_survive_other_tools() {
    if !require(&["umoci", "skopeo", "setfattr", "getfattr"]) || !require_root() {
        return;
    }
    let env = TestEnv::busybox();
    // A file with a capability and an attribute of the user's; names of one file; something removed.
    let context = env.dockerfile(
        "c",
        "FROM busybox\nCOPY capable /capable\nRUN ln /capable /again && mkdir -p /d/sub && touch /d/sub/f && rm /etc/group\nRUN rm -rf /d && mkdir /d && touch /d/new\n",
    );
    let context = context.mode("capable", 0o755, "#!/bin/sh\n");
    let capability = "0x0100000200040000000000000000000000000000";
    let file = context.path("capable");
    env.program("setfattr").args(["-n", "security.capability", "-v", capability]).arg(&file).ok();
    env.program("setfattr").args(["-n", "user.colour", "-v", "red"]).arg(&file).ok();
    let layout = env.path("layout");
    env.build(&context, &["-t", "x:1", "-o", &format!("type=oci,tar=false,dest={}", layout.display())]).ok();
    // By way of another tool's copy, which reads and writes every blob.
    let copied = env.path("copied");
    let (from, to) = (format!("oci:{}:1", layout.display()), format!("oci:{}:1", copied.display()));
    env.program("skopeo").args(["--insecure-policy", "copy", &from, &to]).ok();
    let bundle = env.path("bundle");
    env.program("umoci").args(["unpack", "--image", &format!("{}:1", copied.display())]).arg(&bundle).ok();
    let root = bundle.join("rootfs");
    let attributes = env.program("getfattr").args(["-d", "-m", "-", "-e", "hex"]).arg(root.join("again")).ok().stdout;
    assert!(attributes.contains(capability) && attributes.contains("user.colour=0x726564"), "{attributes}");
    let inode = |name: &str| std::os::unix::fs::MetadataExt::ino(&fs::metadata(root.join(name)).expect("unpacked"));
    assert_eq!(inode("capable"), inode("again"));
    assert!(!root.join("etc/group").exists() && !root.join("d/sub").exists() && root.join("d/new").exists());
    // And back: what the other tool wrote is the same to us.
    env.rbuild(["copy", &to, "store:back:1"]).ok();
    let list = "stat -c '%h %a' /capable; ls /d; test ! -e /etc/group && echo gone";
    assert_eq!(env.run("back:1", &["sh", "-c", list]).ok().stdout, "2 755\nnew\ngone\n");
}
