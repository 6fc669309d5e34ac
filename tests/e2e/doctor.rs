//! `rbuild doctor` on machines that differ: what it says must be so.

use serde_json::Value;

use crate::support::{TestEnv, Tier, require, require_root};

fn check<'a>(diagnosis: &'a Value, name: &str) -> &'a Value {
    let checks = diagnosis["checks"].as_array().expect("a list");
    checks.iter().find(|check| check["name"] == name).unwrap_or_else(|| panic!("no {name} in {diagnosis:#}"))
}

#[test]
fn a_good_machine_is_said_to_be_good() {
    if !require_root() {
        return;
    }
    let env = TestEnv::new();
    let out = env.rbuild(["doctor", "--format", "json"]).ok();
    let diagnosis: Value = serde_json::from_str(&out.stdout).expect("JSON");
    assert_eq!(diagnosis["usable"], true);
    for name in ["user", "store", "snapshots", "steps", "network", "limits", "names"] {
        assert_eq!(check(&diagnosis, name)["state"], "good", "{diagnosis:#}");
    }
    assert_eq!(diagnosis["tier"], "root; snapshots: overlay; network: private");
    let platforms = check(&diagnosis, "platforms")["found"].as_str().expect("a list").to_owned();
    assert!(platforms.contains("arm64") && platforms.contains("s390x"), "{platforms}");
    let text = env.rbuild(["doctor"]).ok();
    assert!(text.stdout.ends_with("\ntier: root; snapshots: overlay; network: private\n"), "{}", text.stdout);
}

/// What doctor says in a user namespace of one id, after a command there.
fn inside(env: &TestEnv, command: &str, code: i32) -> Value {
    let script = format!("{command} {} doctor --format json", env!("CARGO_BIN_EXE_rbuild"));
    let out = env.program("unshare").args(["-Ur", "-m", "sh", "-c", &script]).run().exits(code);
    serde_json::from_str(&out.stdout).expect("JSON")
}

#[test]
fn what_is_missing_is_named_with_its_fix() {
    if !require(&["unshare", "setpriv"]) || !require_root() {
        return;
    }
    let env = TestEnv::new();
    let diagnosis = inside(&env, "echo 0 > /proc/sys/user/max_net_namespaces; exec", 0);
    let network = check(&diagnosis, "network");
    assert_eq!(network["state"], "limited", "{diagnosis:#}");
    assert!(network["fix"].as_str().is_some_and(|fix| fix.contains("user.max_net_namespaces")), "{network}");
    assert_eq!(check(&diagnosis, "ids")["state"], "limited", "there is one id only: {diagnosis:#}");
    assert!(diagnosis["tier"].as_str().is_some_and(|tier| tier.ends_with("network: the host's")), "{diagnosis:#}");

    let nothing = "echo 0 > /proc/sys/user/max_user_namespaces; exec setpriv --bounding-set=-all --inh-caps=-all";
    let diagnosis = inside(&env, nothing, 1);
    assert_eq!((&diagnosis["usable"], &check(&diagnosis, "steps")["state"]), (&false.into(), &"missing".into()));
    let fix = check(&diagnosis, "steps")["fix"].as_str().expect("a fix").to_owned();
    assert_eq!(fix, "sysctl -w user.max_user_namespaces=15000");
}

#[test]
fn a_store_that_cannot_be_opened_is_no_reason_to_be_silent() {
    let env = TestEnv::new();
    std::fs::write(env.path("file"), "").expect("ours");
    let out = env.rbuild(["doctor"]).arg("--root").arg(env.path("file")).run().exits(1);
    assert!(out.stdout.contains("NO    store") && out.stdout.contains("tier: none"), "{}", out.stdout);
    assert!(out.stdout.contains("ok    steps"), "{}", out.stdout);
}

#[test]
fn steps_without_device_nodes_are_told_of_with_the_way_out() {
    // The container around it refuses devices on all of its mounts.
    Tier::Bare.run(|| {
        let env = TestEnv::busybox();
        let out = env.rbuild(["doctor", "--format", "json"]).ok();
        let diagnosis: Value = serde_json::from_str(&out.stdout).expect("JSON");
        let devices = check(&diagnosis, "devices");
        assert_eq!(devices["state"], "limited", "{diagnosis:#}");
        assert!(devices["found"].as_str().is_some_and(|found| found.contains("urandom")), "{devices}");
        let fix = devices["fix"].as_str().expect("a way out").to_owned();
        assert!(fix.contains("--root") || fix.contains("CAP_MKNOD"), "{fix}");
        // What is said is so, and the build says it once.
        let text = "FROM busybox\nRUN for name in zero full random urandom tty; do test ! -e /dev/$name || exit 1; done\n\
                    RUN echo x > /dev/null && test -f /dev/null\n";
        let out = env.build(&env.dockerfile("c", text), &["-t", "it"]).ok();
        assert_eq!(out.stderr.matches("steps have no /dev/zero").count(), 1, "{}", out.stderr);
        assert!(out.stderr.contains(&fix), "{}", out.stderr);
    });
    let env = TestEnv::new();
    env.rbuild(["doctor"]).ok().lacks("steps have no /dev/zero");
}
