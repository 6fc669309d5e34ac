//! The examples of the README, with apt really installing over the network inside RUN. Slow: see .config/nextest.toml.

use std::path::Path;

use serde_json::json;

use crate::support::{Context, Layout, Login, Registry, TestEnv, debian_base, require, require_root};

const NEEDED: &[&str] = &["docker-registry", "skopeo", "setpriv", "openssl", "htpasswd", "mmdebstrap"];

fn example(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples").join(name)
}

fn debian(env: &TestEnv) -> Layout {
    let config =
        json!({ "Cmd": ["bash"], "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"] });
    Layout::write(&env.path("debian"), &[&debian_base().tar], &config)
}

fn primer(env: &TestEnv, registry: &Registry) -> Context {
    let name = registry.name("library/debian:bookworm-slim");
    env.dockerfile("c", &format!("FROM {name}\nRUN apt-get update && apt-get install -y vim\n"))
}

/// The example that every primer has, its base from a registry over plain HTTP, then from one with TLS and a password.
#[test]
fn apt_get_install_vim_upon_a_base_from_a_registry() {
    if !require(NEEDED) || !require_root() {
        return;
    }
    let env = TestEnv::new();
    let plain = Registry::plain();
    plain.put("library/debian:bookworm-slim", &debian(&env));
    env.build(&primer(&env, &plain), &["-t", "vim"]).timeout(400).ok().contains("Setting up vim");
    env.run("vim", &["vim", "--version"]).ok().contains("VIM - Vi IMproved");
    let again = env.build(&primer(&env, &plain), &["-t", "vim"]).ok();
    assert_eq!(again.cached(), 1, "{}", again.stderr);

    let tls = Registry::tls(Login { user: "ann", password: "s3cret" });
    tls.put("library/debian:bookworm-slim", &debian(&env));
    let other = TestEnv::new();
    other.configure(&format!("[registry.\"{}\"]\nca = [\"{}\"]\n", tls.host(), tls.ca().display()));
    other.rbuild(["login", "-u", "ann", "--password-stdin", &tls.host()]).stdin("s3cret").ok();
    let text = format!("FROM {}\nRUN dpkg -l | grep -c ^ii\n", tls.name("library/debian:bookworm-slim"));
    other.build(&other.dockerfile("c", &text), &["-t", "it"]).timeout(120).ok();
}

#[test]
fn example_debian_vim() {
    if !require(&["mmdebstrap"]) || !require_root() {
        return;
    }
    let env = TestEnv::debian();
    env.rbuild(["-t", "debian-vim"]).arg(example("debian-vim")).timeout(400).ok();
    env.run("debian-vim", &["vim", "--version"]).ok().contains("VIM - Vi IMproved");
}

#[test]
fn example_c_multistage() {
    if !require(&["mmdebstrap"]) || !require_root() {
        return;
    }
    let env = TestEnv::debian();
    env.rbuild(["-t", "words"]).arg(example("c-multistage")).timeout(400).ok();
    assert_eq!(env.rbuild(["run", "-i", "words"]).stdin("to be or not to be\n").ok().line(), "6 words");
    env.rbuild(["run", "--entrypoint", "sh", "words", "-c", "! command -v gcc"]).ok();
    // Small: the second stage is the base and one binary.
    env.rbuild(["history", "words"]).ok().lacks("apt-get");
}

#[test]
fn example_python_service() {
    if !require(&["mmdebstrap"]) || !require_root() {
        return;
    }
    let env = TestEnv::debian();
    env.rbuild(["-t", "greeter"]).arg(example("python-service")).timeout(400).ok();
    let said = env.rbuild(["run", "greeter", "--once"]).ok().stdout;
    let said: serde_json::Value = serde_json::from_str(&said).expect("JSON");
    assert_eq!(said, json!({ "greeting": "hello", "user": "greeter" }));
}

#[test]
fn example_parallel() {
    if !require(&["mmdebstrap"]) || !require_root() {
        return;
    }
    let env = TestEnv::debian();
    env.rbuild(["-t", "parallel"]).arg(example("parallel")).timeout(120).ok();
    let times = env.rbuild(["run", "parallel"]).ok().stdout;
    // "/north:12:34:56.789": all began before the first could have ended.
    let seconds = |line: &str| -> f64 {
        let parts: Vec<f64> = line.split(':').skip(1).map(|n| n.parse().expect("a number")).collect();
        parts[0] * 3600.0 + parts[1] * 60.0 + parts[2]
    };
    let times: Vec<f64> = times.lines().map(seconds).collect();
    assert_eq!(times.len(), 4);
    let (first, last) = (times.iter().copied().fold(f64::MAX, f64::min), times.iter().copied().fold(0.0, f64::max));
    // Midnight apart.
    assert!(last - first < 1.0 || last - first > 86_000.0, "{times:?}");
}

#[test]
fn example_hello_scratch() {
    if !require(&["make", "cc"]) {
        return;
    }
    let env = TestEnv::new();
    let dir = env.path("hello-scratch");
    env.program("cp").arg("-r").arg(example("hello-scratch")).arg(&dir).ok();
    env.program("make").arg("-C").arg(&dir).ok();
    env.rbuild(["-t", "hello-scratch"]).arg(&dir).ok();
    assert!(env.run("hello-scratch", &["you"]).ok().line().starts_with("hello, you"));
}
