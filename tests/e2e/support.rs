//! The tests' own footing: if this fails, no other result here means anything.

use serde_json::json;

use crate::support::{Layout, Login, Registry, Run, TestEnv, busybox_base, leftovers, require};

#[test]
fn a_registry_serves_what_was_put_into_it() {
    if !require(&["docker-registry", "skopeo", "setpriv", "busybox"]) {
        return;
    }
    let env = TestEnv::new();
    let registry = Registry::plain();
    let image = Layout::write(&env.path("base"), &[&busybox_base().tar], &json!({ "Cmd": ["sh"] }));
    registry.put("test/busybox:1", &image);
    let uploads = registry.uploads();
    assert_eq!(uploads, 2, "a layer and a config: {:#?}", registry.requests());
    let back = registry.get("test/busybox:1", &env.path("back")).image();
    assert_eq!(back.setting("Cmd"), &json!(["sh"]));
    assert!(back.find("bin/busybox").is_some_and(|e| e.mode == 0o755));
    assert_eq!(registry.uploads(), uploads, "reading uploads nothing");
}

#[test]
fn a_registry_with_tls_and_a_password_lets_nobody_else_in() {
    if !require(&["docker-registry", "skopeo", "setpriv", "busybox", "openssl", "htpasswd"]) {
        return;
    }
    let env = TestEnv::new();
    let registry = Registry::tls(Login { user: "ann", password: "s3cret" });
    let image = Layout::write(&env.path("base"), &[&busybox_base().tar], &json!({}));
    registry.put("busybox:1", &image);
    let name = format!("docker://{}", registry.name("busybox:1"));
    registry.skopeo("inspect").arg("--tls-verify=false").arg(&name).run().exits(1);
    registry.skopeo("inspect").arg("--creds=ann:s3cret").arg(&name).run().exits(1).contains("x509");
    registry.skopeo("inspect").args(["--creds=ann:s3cret", "--tls-verify=false"]).arg(&name).ok();
}

#[test]
fn what_is_left_behind_is_noticed() {
    let env = TestEnv::new();
    let process = Run::new("sleep").arg("60").env("MARK", env.dir()).spawn();
    assert_eq!(leftovers(env.dir()).len(), 1, "{:?}", leftovers(env.dir()));
    drop(process);
    env.assert_clean();
}
