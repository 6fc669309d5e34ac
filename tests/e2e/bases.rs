//! Bases that docker and podman have: they are found, read right, looked for anew each time, and left alone.

use std::fs;
use std::path::Path;

use crate::support::{Context, Outcome, Run, Running, TestEnv, Tier, USER, require, require_root};

const LIST: &str = "cd /odd && for f in *; do stat -c '%n %F %a %u:%g %h %s %Y' \"$f\"; done && cat b $(ls | grep not)";

/// An archive of an image with links, owners, modes and names that are no UTF-8, and what it looks like.
fn made(env: &TestEnv) -> (std::path::PathBuf, String) {
    let script = "mkdir -m 1777 /odd && cd /odd && echo a > a && ln a b && ln -s a link && mkfifo pipe && chown 7:8 a && \
                  echo s > set && chmod 4711 set && echo name > \"$(printf 'not\\377utf8')\"";
    let context = env.dockerfile("made", &format!("FROM busybox\nRUN {script}\nRUN rm /odd/link\n"));
    let tar = env.path("made.tar");
    env.build(&context, &["-t", "made", "-t", "app:1", "-o", &format!("type=docker,dest={}", tar.display())]).ok();
    let look = env.dockerfile("look", &format!("FROM made\nRUN {LIST}\n"));
    env.build(&context, &["-t", "made"]).ok();
    (tar, printed(&env.build(&look, &[]).ok()))
}

/// What the last step printed.
fn printed(outcome: &Outcome) -> String {
    let lines = outcome.stderr.lines().filter_map(|line| {
        let (number, rest) = line.strip_prefix('#')?.split_once(' ')?;
        let (seconds, text) = rest.split_once(' ')?;
        (number.parse::<u32>().is_ok() && seconds.parse::<f64>().is_ok()).then(|| format!("{text}\n"))
    });
    lines.filter(|line| !line.contains("sha256:")).collect()
}

fn looking(env: &TestEnv, name: &str) -> Context {
    env.dockerfile("looking", &format!("FROM {name}\nRUN {LIST}\n"))
}

fn podman(env: &TestEnv, driver: &str) -> Run {
    let d = env.dir().display();
    let root = format!("{d}/{driver}");
    env.program("podman").args(["--root", &root, "--runroot", &format!("{d}/podman-run"), "--storage-driver", driver])
}

/// An environment with a store that knows nothing, for which podman's storage is the one of `driver`.
fn other(podmans: &TestEnv, driver: &str) -> (TestEnv, String) {
    let env = TestEnv::new();
    let conf = env.path("storage.conf");
    fs::write(&conf, format!("[storage]\ndriver = {driver:?}\ngraphroot = {:?}\n", podmans.path(driver)))
        .expect("ours");
    (env, conf.display().to_string())
}

/// Everything below a directory, with its times: reading leaves it as it was.
fn snapshot(dir: &Path) -> String {
    let script = "find \"$0\" -printf '%p %i %m %s %T@ %C@\\n' | sort";
    Run::new("sh").args(["-c", script]).arg(dir).ok().stdout
}

#[test]
fn bases_come_from_podman() {
    if !require(&["podman"]) || !require_root() {
        return;
    }
    let env = TestEnv::busybox();
    let (tar, want) = made(&env);
    for driver in ["overlay", "vfs"] {
        podman(&env, driver).args(["load", "-q", "-i"]).arg(&tar).ok();
        let before = snapshot(&env.path(driver));
        let (other, conf) = other(&env, driver);
        // By the name that podman gave it, and as one writes it.
        for name in ["localhost/made", "made:latest", "app:1"] {
            let run = other.build(&looking(&other, name), &[]).env("CONTAINERS_STORAGE_CONF", &conf);
            let outcome = run.ok().contains("of podman (");
            assert!(outcome.cached() > 0 || printed(&outcome) == want, "{driver} {name}:\n{}", outcome.stderr);
        }
        let copied = other.path("copied");
        let place = format!("oci:{}:x", copied.display());
        let run = other.rbuild(["copy", "containers-storage:app:1", &place]).env("CONTAINERS_STORAGE_CONF", &conf);
        run.ok();
        other.rbuild(["inspect", "--validate", &place]).ok();
        assert_eq!(snapshot(&env.path(driver)), before, "{driver}: nothing was touched");
        // Another file in the place of the image's is noticed; then there is nobody left to ask.
        let (damaged, conf) = self::other(&env, driver);
        // vfs has it in each layer above as well.
        let find = "find \"$0\" -name set -path '*odd*' | while read -r f; do echo t > \"$f\"; done";
        Run::new("sh").args(["-c", find]).arg(env.path(driver)).ok();
        let run = damaged.build(&looking(&damaged, "localhost/made"), &[]).env("CONTAINERS_STORAGE_CONF", &conf);
        run.timeout(120).run().exits(4).contains("cannot be had from podman");
    }
}

#[test]
fn a_base_of_podmans_is_looked_for_anew_and_only_where_it_should_be() {
    if !require(&["podman"]) || !require_root() {
        return;
    }
    let env = TestEnv::busybox();
    let (other, conf) = other(&env, "vfs");
    let load = |content: &str| {
        let tar = env.path("base.tar");
        let context = env.dockerfile("base", &format!("FROM busybox\nRUN echo {content} > /content\n"));
        env.build(&context, &["-t", "base:1", "-o", &format!("type=docker,dest={}", tar.display())]).ok();
        podman(&env, "vfs").args(["load", "-q", "-i"]).arg(&tar).ok();
    };
    let context = other.dockerfile("c", "FROM base:1\nRUN cat /content\n");
    let build = |args: &[&str]| other.build(&context, args).env("CONTAINERS_STORAGE_CONF", &conf);
    load("first");
    build(&[]).ok().contains("first");
    assert_eq!(build(&[]).ok().cached(), 1);
    load("second");
    build(&[]).ok().contains("second");
    // The store's own comes before it, a registry is meant with --pull, and one may do without.
    other.build(&other.dockerfile("own", "FROM scratch\nCOPY Dockerfile /own\n"), &["-t", "base:1"]).ok();
    build(&[]).run().exits(1).lacks("of podman (");
    other.rbuild(["rmi", "base:1"]).ok();
    build(&["--pull"]).timeout(120).run().exits(4).lacks("of podman (");
    build(&["--platform", "linux/s390x"]).timeout(120).run().exits(4).lacks("of podman (");
    other.configure("base-stores = []\n");
    build(&[]).timeout(120).run().exits(4).lacks("of podman (");
}

#[test]
fn a_users_podman_is_where_the_machines_file_and_his_own_say() {
    if require(&["podman"]) {
        Tier::SubordinateIds.run(of_a_user);
    }
}

fn of_a_user() {
    let (env, other) = (TestEnv::busybox(), TestEnv::new());
    let tar = env.path("base.tar");
    let context = env.dockerfile("base", "FROM busybox\nRUN echo users > /content\n");
    env.build(&context, &["-t", "base:1", "-o", &format!("type=docker,dest={}", tar.display())]).ok();
    podman(&env, "vfs").args(["load", "-q", "-i"]).arg(&tar).ok();
    let storage = other.path("storage");
    fs::rename(env.path("vfs"), &storage).expect("ours");
    Run::new("chown").args(["-R", &format!("{USER}:{USER}")]).arg(&storage).ok();
    // What is the machine's is so in a mount namespace of the test's.
    let etc = other.path("etc");
    Run::new("cp").args(["-r", "/etc/containers"]).arg(&etc).ok();
    let script = format!("mount --bind {} /etc/containers && exec \"$@\"", etc.display());
    let build = || {
        let context = other.dockerfile("c", "FROM base:1\nRUN cat /content\n");
        let (program, before) = other.command();
        let run = other.program("unshare").args(["-m", "sh", "-c", &script, "sh"]).arg(program).args(before);
        run.args(["build", "--progress", "plain", "--no-cache"]).arg(context.dir()).timeout(120).run()
    };
    let machine = |text: String| fs::write(etc.join("storage.conf"), text).expect("ours");
    let own = |text: &str| drop(other.context("home/.config/containers").file("storage.conf", text));
    machine(format!("[storage]\ndriver = \"vfs\"\ngraphroot = {storage:?}\n"));
    build().exits(4).lacks("of podman (");
    machine(format!("[storage]\ndriver = \"vfs\"\nrootless_storage_path = {storage:?}\n"));
    build().exits(0).contains("of podman (").contains("users");
    own("[storage]\ndriver = \"vfs\"\n");
    build().exits(0).contains("of podman (").contains("users");
    own("[storage]\ndriver = \"vfs\"\ngraphroot = \"$HOME/nothing\"\n");
    build().exits(4).lacks("of podman (");
    fs::rename(&storage, other.path("home/nothing")).expect("ours");
    build().exits(0).contains("of podman (").contains("users");
}

/// A docker daemon that touches nothing of the machine's network, in a mount namespace of its own.
fn dockerd(env: &TestEnv) -> (Running, String) {
    let host = format!("unix://{}", env.path("docker.sock").display());
    let script = format!(
        "mount -t tmpfs tmpfs /run && exec dockerd --iptables=false --ip6tables=false --bridge=none --data-root {0}/data --exec-root {0}/exec --pidfile {0}/pid -H {host} 2>&1",
        env.path("docker").display()
    );
    let mut daemon = env.program("unshare").args(["-m", "--kill-child", "sh", "-c", &script]).timeout(60).spawn();
    daemon.wait_for("API listen on");
    (daemon, host)
}

#[test]
fn bases_come_from_docker() {
    if !require(&["dockerd", "docker", "unshare"]) || !require_root() {
        return;
    }
    let env = TestEnv::busybox();
    let (tar, want) = made(&env);
    let (_daemon, host) = dockerd(&env);
    env.program("docker").args(["-H", &host, "load", "-q", "-i"]).arg(&tar).ok();
    let other = TestEnv::new();
    let build = |name: &str| other.build(&looking(&other, name), &[]).env("DOCKER_HOST", &host);
    let first = build("app:1").ok().contains("of docker (");
    assert_eq!(printed(&first), want);
    assert_eq!(build("docker.io/library/made").ok().cached(), 1, "the same image by another name");
    build("made:2").timeout(120).run().exits(4).lacks("of docker (");
    // A stage and a named context.
    let context = other.dockerfile("n", "FROM scratch\nCOPY --from=ctx /odd/b /b\nCOPY --from=app:1 /odd/set /set\n");
    let run = other.build(&context, &["--build-context", "ctx=docker-daemon:made", "-t", "n"]);
    run.env("DOCKER_HOST", &host).ok();
    other.rbuild(["inspect", "--validate", "docker-daemon:made"]).env("DOCKER_HOST", &host).ok();
    // A daemon that does not answer is not worth a word to who did not ask for it.
    let gone = other.path("gone.sock");
    drop(std::os::unix::net::UnixListener::bind(&gone).expect("ours"));
    let gone = format!("unix://{}", gone.display());
    let missing = other.dockerfile("missing", "FROM missing:1\n");
    other.build(&missing, &[]).env("DOCKER_HOST", &gone).timeout(120).run().exits(4).lacks("docker (");
    other
        .rbuild(["inspect", "--raw", "docker-daemon:made"])
        .env("DOCKER_HOST", &gone)
        .run()
        .exits(1)
        .contains("daemon");
    // What is written is an image of ours, not of docker's.
    other.rbuild(["copy", "store:n", "docker-daemon:n"]).env("DOCKER_HOST", &host).run().exits(1).contains("only read");
}
