//! Attacks of a hostile Dockerfile, archive or context, carried out with a canary on the host.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use crate::support::TestEnv;

const CANARY: &str = "tweet";

/// A store with a base, and a canary beside it.
fn with_canary() -> (TestEnv, String) {
    let env = TestEnv::busybox();
    std::fs::write(env.path("canary"), CANARY).expect("ours");
    let canary = env.path("canary").display().to_string();
    (env, canary)
}

#[track_caller]
fn untouched(env: &TestEnv) {
    assert_eq!(std::fs::read_to_string(env.path("canary")).expect("still there"), CANARY);
    assert!(!env.path("pwned").exists(), "written outside");
}

#[test]
pub(crate) fn nothing_of_the_host_is_mounted_above_or_beside_the_root() {
    let (env, canary) = with_canary();
    let script = format!(
        "for up in / /.. /../../.. ; do ls $up | tr '\\n' ' ' | sed 's/^/out: /'; echo; done; cd /../../..; cat .{canary}; \
         sed 's/^[^ ]* [^ ]* [^ ]* [^ ]* \\([^ ]*\\) .* - \\([^ ]*\\) .*/mounted: \\1 \\2/' /proc/self/mountinfo; true"
    );
    let out = env.build(&env.dockerfile("c", &format!("FROM busybox\nRUN {script}\n")), &[]).ok().lacks(CANARY);
    let seen = |mark: &str| -> Vec<String> {
        let lines = out.stderr.lines().filter(|line| !line.contains("RUN "));
        lines.filter_map(|line| Some(line.split_once(mark)?.1.trim().to_owned())).collect()
    };
    let roots = seen("out: ");
    assert_eq!(roots.len(), 3, "{roots:?}");
    assert!(roots.iter().all(|root| *root == roots[0]), "{roots:?}");
    let mounts = seen("mounted: ");
    assert_eq!(mounts.iter().filter(|mount| mount.starts_with("/ ")).count(), 1, "{mounts:?}");
    for mount in &mounts {
        let place = mount.split(' ').next().unwrap_or_default();
        let expected = ["/proc", "/dev", "/sys", "/etc/resolv.conf", "/etc/hosts"];
        let known = place == "/" || expected.iter().any(|at| place == *at || place.starts_with(&format!("{at}/")));
        assert!(known, "{mount} is none of a step's: {mounts:?}");
    }
}

#[test]
pub(crate) fn nodes_made_by_a_step_or_brought_by_a_base_are_no_devices() {
    let env = TestEnv::busybox();
    let text = "FROM busybox AS base\nRUN mknod /brought c 1 3 || true\nFROM base\n\
                RUN --mount=type=cache,target=/cache for dir in / /dev /dev/shm /tmp /cache; do \
                mknod $dir/made c 1 3 2>/dev/null; done; \
                for node in /brought /made /dev/made /dev/shm/made /tmp/made /cache/made; do \
                [ -c $node ] && (echo x > $node) 2>/dev/null && echo \"opened: $node\"; done; echo x > /dev/null\n";
    let out = env.build(&env.dockerfile("c", text), &[]).ok();
    assert!(!out.stderr.lines().any(|line| line.contains("opened: /")), "{}", out.stderr);
}

#[test]
pub(crate) fn mounts_lead_nowhere_but_inside() {
    let (env, _) = with_canary();
    let outside = env.dir().display();
    for text in [
        format!("RUN --mount=type=cache,id=../../../..{outside}/pwned,target=/c touch /c/x"),
        "RUN --mount=type=bind,from=s,source=/evil,target=/b cat /b/canary".to_owned(),
        "RUN --mount=type=cache,id=k,from=s,source=/evil,target=/c cat /c/canary".to_owned(),
        "RUN ln -s /proc/1 /x\nRUN --mount=type=tmpfs,target=/x echo mounted-there".to_owned(),
        "RUN ln -s /proc/1/root /x\nRUN --mount=type=tmpfs,target=/x/y echo mounted-there".to_owned(),
        "RUN --mount=type=tmpfs,target=/proc/sys echo mounted-there".to_owned(),
    ] {
        let text = format!("FROM busybox AS s\nRUN ln -s {outside} /evil\nFROM busybox\n{text}\n");
        let out = env.build(&env.dockerfile("c", &text), &["--no-cache"]).run().lacks(CANARY);
        let printed = |line: &str| line.ends_with(" mounted-there") && !line.contains("RUN ");
        assert!(!out.stderr.lines().any(printed), "{}", out.stderr);
        untouched(&env);
    }
}

/// CVE-2024-9407: nothing that is not understood gets to mount(2).
#[test]
fn mounts_take_known_options_only() {
    let env = TestEnv::busybox();
    for options in [
        "type=bind,target=/x,bind-propagation=suid",
        "type=bind,target=/x,bind-propagation=shared",
        "type=bind,target=/x,dev",
        "type=bind,target=/x,nosuid=false",
        "type=bind,target=/x,relabel=shared",
        "type=cache,target=/x,options=suid",
        "type=cache,target=/x,upperdir=/",
        "type=tmpfs,target=/x,size=1m:exec",
        "type=tmpfs,target=/x,mode=4755",
        "type=overlay,target=/x",
        "type=volume,target=/x,source=/",
        "type=secret,target=/x,id=a,options=rw",
    ] {
        let text = format!("FROM busybox\nRUN --mount={options} echo $((6*7))-mounted\n");
        env.build(&env.dockerfile("c", &text), &[]).run().exits(1).lacks("42-mounted");
    }
}

#[test]
pub(crate) fn a_writable_bind_leaves_the_context_as_it_is() {
    let env = TestEnv::busybox();
    let text = "FROM busybox\nRUN --mount=type=bind,target=/b,rw echo pwned > /b/f && touch /b/new && rm -r /b/d\n";
    let context = env.dockerfile("c", text).file("f", "mine").file("d/f", "mine");
    env.build(&context, &[]).ok();
    assert_eq!(std::fs::read(context.path("f")).expect("there"), b"mine");
    assert!(context.path("d/f").exists() && !context.path("new").exists());
}

#[test]
pub(crate) fn links_of_the_context_lead_to_no_file_of_the_host() {
    let (env, canary) = with_canary();
    for source in ["link", "up", "dir", "dir/canary", "../canary", "."] {
        let text = format!("FROM busybox\nCOPY {source} /o/\nRUN find /o -type f -exec cat {{}} +\n");
        let context = env.dockerfile(&format!("c-{}", source.replace('/', "-")), &text);
        let context =
            context.link("link", &canary).link("up", "../canary").link("dir", &env.dir().display().to_string());
        env.build(&context, &[]).run().lacks(CANARY);
    }
}

#[test]
fn pipes_and_endless_files_do_not_stop_a_build() {
    let env = TestEnv::busybox();
    let pipe = |path: &Path| assert!(Command::new("mkfifo").arg(path).status().is_ok_and(|status| status.success()));
    let context = env.context("dockerfile-pipe");
    pipe(&context.path("Dockerfile"));
    env.build(&context, &[]).timeout(20).run().exits(1).contains("no ordinary file");
    let context = env.context("dockerfile-endless").link("Dockerfile", "/dev/zero");
    env.build(&context, &[]).timeout(20).run().exits(1).contains("no ordinary file");
    let context = env.dockerfile("rules-pipe", "FROM busybox\nCOPY . /o/\n");
    pipe(&context.path(".dockerignore"));
    env.build(&context, &[]).timeout(20).run().exits(1).contains("no ordinary file");
    let context = env.dockerfile("copied", "FROM busybox\nCOPY . /o/\nRUN [ -p /o/pipe ]\n");
    pipe(&context.path("pipe"));
    env.build(&context, &[]).timeout(20).ok();
}

#[test]
pub(crate) fn archives_stay_where_they_are_unpacked() {
    use tar::EntryType::{Link, Regular, Symlink};
    let (env, canary) = with_canary();
    let dir = env.dir().display().to_string();
    let up = format!("../../../../../../..{dir}");
    let cases: &[&[(&str, tar::EntryType, &str)]] = &[
        &[(&format!("{up}/pwned"), Regular, "")],
        &[(&format!("{dir}/pwned"), Regular, "")],
        &[("l", Symlink, &dir), ("l/pwned", Regular, "")],
        &[("l", Symlink, &up), ("l/pwned", Regular, "")],
        &[("l", Symlink, &dir), ("l/.wh.canary", Regular, "")],
        &[("f", Symlink, &canary), ("f", Regular, "")],
        &[("h", Link, &canary), ("h", Regular, "")],
        &[("h", Link, &format!("{up}/canary"))],
        &[("l", Symlink, &dir), ("h", Link, "l/canary")],
        &[(&format!("{up}/.wh.canary"), Regular, "")],
    ];
    for (number, case) in cases.iter().enumerate() {
        let archive = hostile(case);
        let text = "FROM busybox\nADD x.tar /o/\nRUN find /o -type f -exec cat {} +\n";
        let context = env.dockerfile(&format!("c{number}"), text).file("x.tar", archive);
        env.build(&context, &[]).timeout(30).run().lacks(CANARY);
        untouched(&env);
    }
}

/// A tar whose names no library would write.
fn hostile(entries: &[(&str, tar::EntryType, &str)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, kind, target) in entries {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(*kind);
        header.set_mode(0o777);
        let body: &[u8] = if *kind == tar::EntryType::Regular { b"pwned" } else { b"" };
        header.set_size(body.len() as u64);
        let fields = header.as_old_mut();
        fields.name[..name.len()].copy_from_slice(name.as_bytes());
        fields.linkname[..target.len()].copy_from_slice(target.as_bytes());
        header.set_cksum();
        builder.append(&header, body).expect("memory takes it");
    }
    builder.into_inner().expect("memory takes it")
}

#[test]
pub(crate) fn an_output_directory_with_links_is_not_left() {
    let (env, _) = with_canary();
    let context = env.dockerfile("c", "FROM scratch\nCOPY d /l\n").file("d/pwned", "").file("d/canary", "pwned");
    let out = env.path("out");
    std::fs::create_dir(&out).expect("ours");
    symlink(env.dir(), out.join("l")).expect("ours");
    env.build(&context, &["-o", &format!("type=local,dest={}", out.display())]).run();
    untouched(&env);
}

#[test]
pub(crate) fn secrets_are_in_no_log_layer_config_metadata_or_store() {
    let env = TestEnv::busybox();
    std::fs::write(env.path("secret"), "canary-of-the-secret").expect("ours");
    let text = "FROM busybox\nRUN --mount=type=secret,id=s --mount=type=secret,id=s,env=S \
                [ \"$(cat /run/secrets/s)\" = \"$S\" ] && [ -n \"$S\" ] && echo \"printed: $S\" && cat /run/secrets/s >&2\n\
                RUN [ ! -e /run/secrets/s ]\n";
    let context = env.dockerfile("c", text);
    let (secret, image, metadata) = (env.path("secret"), env.path("image.tar"), env.path("metadata.json"));
    for progress in ["plain", "rawjson"] {
        let run = env.rbuild(["build", "--no-cache", "--progress", progress]);
        let run = run.args(["--secret", &format!("id=s,src={}", secret.display())]);
        let run = run.args(["-o", &format!("type=oci,dest={}", image.display()), "--metadata-file"]).arg(&metadata);
        let run = run.arg(context.dir()).ok().lacks("canary-of-the-secret");
        if progress == "plain" {
            run.contains("printed: ***");
        }
    }
    // The end of a failed step's log is shown again.
    let failing = env.dockerfile("f", "FROM busybox\nRUN --mount=type=secret,id=s cat /run/secrets/s && false\n");
    let run = env.build(&failing, &["--secret", &format!("id=s,src={}", secret.display())]).run();
    run.exits(1).lacks("canary-of-the-secret");
    let image = crate::support::Layout::from_archive(&image).image();
    let layers = image.layers.iter().flatten().any(|entry| contains(&entry.body));
    assert!(
        !layers && !contains(image.config.to_string().as_bytes()) && !contains(image.manifest.to_string().as_bytes())
    );
    assert!(!contains(&std::fs::read(&metadata).expect("written")));
    let found = Command::new("grep").args(["-rl", "canary-of-the-secret"]).arg(env.store()).output().expect("grep");
    assert_eq!(String::from_utf8_lossy(&found.stdout), "", "in the store");
}

fn contains(bytes: &[u8]) -> bool {
    bytes.windows(20).any(|window| window == b"canary-of-the-secret")
}
