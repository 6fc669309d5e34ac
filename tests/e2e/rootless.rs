//! An ordinary user's builds. Who starts these tests is root, and becomes that user, with and without subordinate ids, in a mount
//! namespace where the machine's own tables are covered.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};

use crate::support::{Layout, Run, TestEnv, busybox_base, foreign_base, require, require_root};

const UID: u32 = 4242;

/// An environment that belongs to the user, with a copy of the binary that the user can reach.
fn env_of_user() -> TestEnv {
    let env = TestEnv::new();
    fs::copy(env!("CARGO_BIN_EXE_rbuild"), env.path("rbuild")).expect("ours");
    fs::copy(busybox_base().tar, env.path("busybox.tar")).expect("ours");
    fs::write(env.path("passwd"), format!("root:x:0:0::/root:/bin/sh\nann:x:{UID}:{UID}::/nonexistent:/bin/sh\n"))
        .expect("ours");
    fs::write(env.path("subid"), "ann:500000:65536\n").expect("ours");
    fs::write(env.path("nobody"), "").expect("ours");
    for dir in ["store", "home", "home/.docker", "run", "tmp"] {
        chown(env.path(dir), Some(UID), Some(UID)).expect("root may");
    }
    fs::set_permissions(env.path("busybox.tar"), fs::Permissions::from_mode(0o644)).expect("ours");
    env
}

fn as_user(env: &TestEnv, subordinate_ids: bool, args: &[&str]) -> Run {
    let table = if subordinate_ids { "subid" } else { "nobody" };
    let d = env.dir().display();
    let script = format!(
        "mount --bind {d}/passwd /etc/passwd && mount --bind {d}/{table} /etc/subuid && mount --bind {d}/{table} /etc/subgid && \
         exec setpriv --reuid={UID} --regid={UID} --clear-groups {d}/rbuild \"$@\""
    );
    env.program("unshare").args(["-m", "sh", "-c", &script, "sh"]).args(args)
}

fn builds(subordinate_ids: bool) -> Option<(TestEnv, String)> {
    if !require(&["unshare", "setpriv", "newuidmap"]) || !require_root() {
        return None;
    }
    let env = env_of_user();
    let rbuild = |args: &[&str]| as_user(&env, subordinate_ids, args);
    let tar = env.path("busybox.tar").display().to_string();
    rbuild(&["import", &tar, "busybox"]).ok();
    let text = "FROM busybox\nRUN id -u > /who && touch /made && cat /proc/self/uid_map > /map\nCOPY f /f\nRUN cat /f && rm /etc/group && mkdir -m 700 /private\n\
                RUN --mount=type=cache,target=/cache,uid=5,gid=6,mode=0750 touch /cache/x\n";
    let context = env.dockerfile("c", text).file("f", "content\n");
    let path = context.dir().display().to_string();
    let first = rbuild(&["build", "--progress", "plain", "-t", "app", &path]).ok();
    rbuild(&["build", "--progress", "plain", "-t", "app", &path]).ok().contains("CACHED");
    assert_eq!(rbuild(&["run", "app", "cat", "/who", "/f"]).ok().stdout, "0\ncontent\n");
    rbuild(&["run", "app", "test", "!", "-e", "/etc/group"]).ok();
    let out = env.path("home/app.tar").display().to_string();
    rbuild(&["build", "-o", &format!("type=oci,dest={out}"), &path]).ok();
    let image = Layout::from_archive(&env.path("home/app.tar")).image();
    assert!(image.find("made").is_some_and(|e| (e.uid, e.gid) == (0, 0)), "files belong to root in the image");
    let ours = fs::read_link("/proc/self/ns/net").expect("we have one").display().to_string();
    let network =
        rbuild(&["run", "--network=private", "app", "sh", "-c", "readlink /proc/self/ns/net; ls /sys/class/net"]).ok();
    assert!(network.stdout.ends_with("eth0\nlo\n") && !network.stdout.contains(&ours), "{}", network.stdout);
    // The store belongs to the user, and what lies in it can be removed by rbuild for the user.
    rbuild(&["rmi", "app"]).ok();
    env.assert_clean();
    Some((env, first.stderr))
}

#[test]
fn a_user_with_subordinate_ids_builds_and_runs() {
    let Some((env, _)) = builds(true) else { return };
    let text = "FROM busybox\nRUN chown 33:44 /bin && adduser -D -H bob 2>/dev/null; touch /owned && chown 1000:1001 /owned\nUSER web\nRUN id -u > /tmp/id\n";
    let path = env.dockerfile("d", text).dir().display().to_string();
    as_user(&env, true, &["-t", "owners", &path]).ok();
    let out = as_user(&env, true, &["run", "-u", "0", "owners", "sh", "-c", "stat -c %u:%g /owned; cat /tmp/id"]).ok();
    assert_eq!(out.stdout, "1000:1001\n1000\n");
}

#[test]
fn a_user_with_one_id_builds_and_runs_and_is_told_what_is_missing() {
    let Some((_, stderr)) = builds(false) else { return };
    assert!(
        stderr.contains("subuid") || stderr.contains("subordinate"),
        "one line says what this tier lacks:\n{stderr}"
    );
}

/// Who has one id cannot give files away; what others own stays theirs all the same.
#[test]
fn files_of_others_stay_theirs_when_a_step_changes_them() {
    if !require(&["unshare", "setpriv", "newuidmap"]) || !require_root() {
        return;
    }
    let env = env_of_user();
    let tar = env.path("busybox.tar").display().to_string();
    let text = "FROM busybox\nCOPY --chown=33:44 --chmod=755 f /d/f\n\
                RUN echo more >> /d/f && touch /d/new && chmod 6711 /d/new && mkdir -m 1777 /d/sub && ln /d/f /d/also\n";
    let path = env.dockerfile("c", text).file("f", "content\n").dir().display().to_string();
    let out = env.path("home/app.tar").display().to_string();
    for subordinate_ids in [true, false] {
        as_user(&env, subordinate_ids, &["import", &tar, "busybox"]).ok();
        as_user(&env, subordinate_ids, &["build", "--no-cache", "-o", &format!("type=oci,dest={out}"), &path]).ok();
        let image = Layout::from_archive(&env.path("home/app.tar")).image();
        let seen = |path: &str| image.find(path).map(|e| (e.uid, e.gid, e.mode & 0o7777)).expect("there");
        assert_eq!(seen("d"), (33, 44, 0o755));
        assert_eq!(seen("d/f"), (33, 44, 0o755));
        assert_eq!(seen("d/new"), (0, 0, 0o6711));
        assert_eq!(seen("d/sub"), (0, 0, 0o1777));
    }
}

/// Subordinate ids are granted, or taken away, while there is a store: what was unpacked before lies differently on the disk.
#[test]
fn a_store_serves_its_user_with_more_and_with_fewer_ids() {
    if !require(&["unshare", "setpriv", "newuidmap"]) || !require_root() {
        return;
    }
    for order in [[true, false, true], [false, true, false]] {
        let env = env_of_user();
        let tar = env.path("busybox.tar").display().to_string();
        as_user(&env, order[0], &["import", &tar, "busybox"]).ok();
        let text = "FROM busybox\nCOPY --chown=33:44 --chmod=755 f /d/f\nRUN mkdir -m 711 /ours && echo 1 > /ours/f && rm /etc/group\n";
        let path = env.dockerfile("b", text).file("f", "content\n").dir().display().to_string();
        as_user(&env, order[0], &["build", "-t", "base", &path]).ok();
        let out = env.path("home/app.tar").display().to_string();
        for (number, subordinate_ids) in order.into_iter().enumerate() {
            let text = format!(
                "FROM base\nRUN --mount=type=cache,target=/c echo {number} >> /d/f && touch /d/new /c/{number} && chmod 700 /c && \
                 cat /ours/f && [ ! -e /etc/group ]\n"
            );
            let path = env.dockerfile("c", &text).dir().display().to_string();
            as_user(&env, subordinate_ids, &["build", "-o", &format!("type=oci,dest={out}"), &path]).ok();
            let image = Layout::from_archive(&env.path("home/app.tar")).image();
            let seen = |path: &str| image.find(path).map(|e| (e.uid, e.gid, e.mode & 0o7777)).expect("there");
            assert_eq!(seen("d"), (33, 44, 0o755), "{order:?} {number}");
            assert_eq!(seen("d/f"), (33, 44, 0o755), "{order:?} {number}");
            assert_eq!(seen("d/new"), (0, 0, 0o644), "{order:?} {number}");
            assert_eq!(seen("ours"), (0, 0, 0o711), "{order:?} {number}");
        }
        as_user(&env, order[0], &["system", "prune", "-a", "-f"]).ok();
    }
}

/// What was unpacked with subordinate ids cannot be removed without them: that is said, and done when they are back.
#[test]
fn what_other_ids_left_is_named_and_removed_with_them() {
    if !require(&["unshare", "setpriv", "newuidmap"]) || !require_root() {
        return;
    }
    let env = env_of_user();
    let tar = env.path("busybox.tar").display().to_string();
    as_user(&env, true, &["import", &tar, "busybox"]).ok();
    let text = "FROM busybox\nCOPY --chown=33:44 f /d/deep/f\nRUN --mount=type=cache,target=/c,uid=5,gid=6 touch /c/x && ls /d\n\
                RUN mkdir /e && touch /e/f && chown -R 33:44 /e\n";
    let path = env.dockerfile("c", text).file("f", "content\n").dir().display().to_string();
    as_user(&env, true, &["build", "-o", "type=cacheonly", &path]).ok();
    as_user(&env, true, &["prune", "-f", "--filter", "type=download"]).ok().lacks("WARNING");
    let trash = env.store().join("trash");
    let left = || fs::read_dir(&trash).expect("ours").count();
    let out = as_user(&env, false, &["system", "prune", "-a", "-f"]).ok();
    let told = format!("rm -rf '{}'/*", trash.display());
    assert_eq!(out.stderr.matches("could not be removed").count(), 1, "{}", out.text());
    assert!(out.stderr.contains("/etc/subuid") && out.stderr.contains(&told), "{}", out.stderr);
    assert!(left() > 0);
    // What can be built without is built.
    as_user(&env, false, &["import", &tar, "busybox"]).ok();
    let text = "FROM busybox\nRUN --mount=type=cache,target=/c,uid=5,gid=6 touch /c/y\n";
    let path = env.dockerfile("d", text).dir().display().to_string();
    as_user(&env, false, &["build", "-o", "type=cacheonly", &path]).ok();
    as_user(&env, true, &["system", "prune", "-a", "-f"]).ok().lacks("could not be removed");
    assert_eq!(left(), 0);
    assert_eq!(fs::read_dir(env.store().join("cache-mounts")).expect("ours").count(), 0);
}

#[test]
fn users_run_programs_of_another_machine() {
    if !require(&["unshare", "setpriv", "newuidmap", "qemu-aarch64-static"]) || !require_root() {
        return;
    }
    let env = env_of_user();
    let tar = env.path("arm64.tar");
    fs::copy(foreign_base("arm64").tar, &tar).expect("ours");
    fs::set_permissions(&tar, fs::Permissions::from_mode(0o644)).expect("ours");
    let tar = tar.display().to_string();
    let text = "FROM arm64\nRUN uname -m > /machine && id -u >> /machine && touch /owned\n";
    let path = env.dockerfile("c", text).dir().display().to_string();
    for subordinate_ids in [true, false] {
        as_user(&env, subordinate_ids, &["import", "--platform", "linux/arm64", &tar, "arm64"]).ok();
        as_user(&env, subordinate_ids, &["build", "--no-cache", "--platform", "linux/arm64", "-t", "made", &path]).ok();
        let out = as_user(&env, subordinate_ids, &["run", "--platform", "linux/arm64", "made", "cat", "/machine"]).ok();
        assert_eq!(out.stdout, "aarch64\n0\n", "{}", out.stderr);
    }
}

#[test]
fn less_than_a_build_requires_is_an_error_and_what_there_was_is_recorded() {
    if !require(&["unshare", "setpriv", "newuidmap"]) || !require_root() {
        return;
    }
    let env = env_of_user();
    let path = env.dockerfile("c", "FROM scratch\nCOPY Dockerfile /\n").dir().display().to_string();
    let metadata = env.path("home/metadata.json").display().to_string();
    let build = |subordinate_ids: bool, tier: &str| {
        let args = ["build", "--require-tier", tier, "--metadata-file", &metadata, &path];
        as_user(&env, subordinate_ids, &args).run()
    };
    assert_eq!(build(true, "rootless").code, Some(0));
    let written = fs::read_to_string(&metadata).expect("written");
    assert!(written.contains("\"tier\": \"rootless\""), "{written}");
    build(true, "root").exits(1).contains("tier rootless, which is less than was required");
    build(false, "single-id").exits(0);
    build(false, "rootless").exits(1).contains("rbuild doctor");
}

#[test]
fn a_store_of_somebody_else_is_refused() {
    if !require(&["unshare", "setpriv"]) || !require_root() {
        return;
    }
    let env = env_of_user();
    chown(env.store(), Some(0), Some(0)).expect("root may");
    fs::set_permissions(env.store(), fs::Permissions::from_mode(0o755)).expect("root may");
    let out = as_user(&env, true, &["images"]).run();
    assert_ne!(out.code, Some(0), "{}", out.text());
    assert!(out.stderr.contains("store"), "{}", out.stderr);
}
