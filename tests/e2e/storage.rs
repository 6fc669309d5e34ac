//! The store on file systems of every kind: where overlays work, where they do not, and where they half work.
//!
//! The mounts are made in a namespace of each command, so that nothing of them is left.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};

use crate::support::{Entry, Layout, Run, TestEnv, busybox_base, require, require_root};

/// Words of the warning that steps work on copies.
const COPIES: &str = "every RUN step works on a copy";
/// Words of the warning that a program joins layers.
const SERVED: &str = "layers are joined by fuse-overlayfs";
/// Where the kernel does it, nothing is said.
const NOTHING: &str = "";

/// What a step can do to files, each in a way that leaves a mark in its layer.
const DOCKERFILE: &str = "FROM busybox
RUN mkdir -p /d/sub /gone/deep && echo a > /d/a && ln /d/a /d/b && ln -s a /d/l && echo x > /gone/deep/x && \
    mkfifo /d/p && chmod 4711 /d/b && chmod 1777 /d/sub && rm /bin/vi && rm -r /home
COPY f /f
RUN rm -r /gone && mkdir /gone && echo y > /gone/y && mv /d/sub /d/moved && touch -d @1000000000 /f && \
    rm /usr/bin/env && mkdir /usr/bin/env
RUN --mount=type=bind,from=busybox,target=/mnt,rw test -e /mnt/bin/vi && echo lost > /mnt/lost && echo bound > /bound
RUN --mount=type=cache,target=/cache echo once >> /cache/n && cat /f /gone/y /d/b > /all && ! test -e /bin/vi && \
    ! test -e /gone/deep && ! test -e /lost
FROM busybox AS last
COPY --from=0 /d /d
RUN test \"$(stat -c %i /d/b)\" = \"$(stat -c %i /d/a)\" && test -u /d/a
";

/// A command in a mount namespace of its own, after `setup` (shell; `$S` is the store, `$D` the test's directory).
fn mounted(env: &TestEnv, setup: &str, args: &[&str]) -> Run {
    let script = format!("S={}; D={}; {setup}\n exec \"$@\"", env.store().display(), env.dir().display());
    env.program("unshare").args(["-m", "sh", "-ec", &script, "sh"]).args(args)
}

fn rbuild(env: &TestEnv, setup: &str, args: &[&str]) -> Run {
    mounted(env, setup, &[&[env!("CARGO_BIN_EXE_rbuild")], args].concat())
}

/// The store is on an overlay, and there is nothing to open in place of /dev/fuse.
const OVERLAY: &str = "mount --bind /dev/null /dev/fuse; mkdir -p $D/low $D/up $D/work; \
                       mount -t overlay -o lowerdir=$D/low,upperdir=$D/up,workdir=$D/work overlay $S";

/// The store is on an overlay, and everybody may open /dev/fuse.
const OVERLAY_AND_FUSE: &str = "mknod $D/fuse-$$ c 10 229; chmod 666 $D/fuse-$$; mount --bind $D/fuse-$$ /dev/fuse; mkdir -p $D/low $D/up $D/work; mount -t overlay -o lowerdir=$D/low,upperdir=$D/up,workdir=$D/work overlay $S";

/// Imports, builds, builds again, runs; the layers that came out, without times.
fn usual(env: &TestEnv, run: impl Fn(&[&str]) -> Run, said: &str) -> Vec<Vec<Entry>> {
    let tar = env.path("busybox.tar").display().to_string();
    run(&["import", &tar, "busybox"]).ok();
    let context = env.dockerfile("c", DOCKERFILE).file("f", "content\n");
    let path = context.dir().display().to_string();
    let first = run(&["build", "--progress", "plain", "--target", "0", "-t", "app", &path]).ok();
    for words in [COPIES, SERVED] {
        assert_eq!(first.stderr.matches(words).count(), usize::from(words == said), "said once: {}", first.stderr);
    }
    let second = run(&["build", "--progress", "plain", "--target", "0", "-t", "app", &path]).ok();
    assert_eq!(second.cached(), 5, "{}", second.stderr);
    assert!(!second.stderr.contains("overlayfs"), "nothing was needed: {}", second.stderr);
    context.write("f", "changed\n");
    let third = run(&["build", "--progress", "plain", "-t", "last", "--target", "0", &path]).ok();
    assert_eq!(third.cached(), 1, "{}", third.stderr);
    run(&["build", "--progress", "plain", &path]).ok();
    let out = run(&["run", "last", "sh", "-c", "cat /all /bound; stat -c %Y /f; echo written > /f"]).ok();
    assert_eq!(out.stdout, "changed\ny\na\nbound\n1000000000\n");
    let archive = env.path("home/app.tar").display().to_string();
    run(&["build", "--target", "0", "-o", &format!("type=oci,dest={archive}"), &path]).ok();
    let mut layers = Layout::from_archive(&env.path("home/app.tar")).image().layers;
    layers.remove(0);
    for entry in layers.iter_mut().flatten() {
        (entry.mtime, entry.pax) = (0, Default::default());
    }
    layers
}

fn env_with_base() -> TestEnv {
    let env = TestEnv::new();
    fs::copy(busybox_base().tar, env.path("busybox.tar")).expect("ours");
    env
}

fn ready() -> bool {
    require(&["unshare", "mount"]) && require_root()
}

#[track_caller]
fn same_layers(copies: &[Vec<Entry>], overlays: &[Vec<Entry>]) {
    // The second step removes a directory and makes it again: marked as opaque by one, emptied name by name by the other.
    let plain = |layer: &[Entry]| -> Vec<Entry> {
        layer.iter().filter(|entry| !entry.path.starts_with("gone/.wh.")).cloned().collect()
    };
    assert_eq!(copies.len(), overlays.len());
    for (number, (one, other)) in copies.iter().zip(overlays).enumerate() {
        assert_eq!(plain(one), plain(other), "layer {number}");
    }
}

#[test]
fn on_an_overlay_steps_work_on_copies_and_make_the_same_layers() {
    if !ready() {
        return;
    }
    let env = env_with_base();
    let copies = usual(&env, |args| rbuild(&env, OVERLAY, args), COPIES);
    let plain = env_with_base();
    let overlays = usual(&plain, |args| plain.rbuild(args), NOTHING);
    same_layers(&copies, &overlays);
}

#[test]
fn on_an_overlay_a_program_joins_layers_and_makes_the_same() {
    if !ready() || !require(&["fuse-overlayfs", "setpriv", "newuidmap"]) {
        return;
    }
    let env = env_with_base();
    let served = usual(&env, |args| rbuild(&env, OVERLAY_AND_FUSE, args), SERVED);
    let plain = env_with_base();
    let overlays = usual(&plain, |args| plain.rbuild(args), NOTHING);
    same_layers(&served, &overlays);
    for subordinate_ids in [true, false] {
        let env = env_of_user();
        let layers = usual(&env, |args| as_user(&env, OVERLAY_AND_FUSE, subordinate_ids, args), SERVED);
        same_layers(&layers, &overlays);
    }
}

#[test]
fn doctor_says_how_layers_are_joined() {
    if !ready() || !require(&["fuse-overlayfs"]) {
        return;
    }
    let env = env_with_base();
    for (setup, way, fix) in [
        (OVERLAY, "snapshots: copies", "clones files"),
        (OVERLAY_AND_FUSE, "snapshots: fuse-overlayfs", "--root DIR"),
        ("true", "snapshots: overlay", ""),
    ] {
        let out = rbuild(&env, setup, &["doctor"]).ok();
        assert!(out.stdout.contains(way) && out.stdout.contains(fix), "{}", out.stdout);
    }
}

#[test]
fn where_removals_cannot_be_marked_steps_work_on_copies() {
    if !ready() {
        return;
    }
    // ramfs has neither extended attributes nor anything else that an upper directory needs.
    let env = env_with_base();
    let tar = env.path("busybox.tar").display().to_string();
    let context =
        env.dockerfile("c", "FROM busybox\nRUN rm -r /home && mkdir /home && echo x > /home/x\nRUN cat /home/x\n");
    let bin = env!("CARGO_BIN_EXE_rbuild");
    let script = format!(
        "{bin} import {tar} busybox && {bin} build --progress plain -t app {} && {bin} run app ls /home",
        context.dir().display()
    );
    let setup = "mount --bind /dev/null /dev/fuse; mount -t ramfs -o mode=0700 ramfs $S; chmod 0700 $S";
    let out = mounted(&env, setup, &["sh", "-ec", &script]).ok().contains(COPIES);
    assert!(out.stdout.ends_with("x\n"), "{}", out.stdout);
}

#[test]
fn in_memory_it_works_as_on_a_disk() {
    if !ready() {
        return;
    }
    let env = env_with_base();
    let tar = env.path("busybox.tar").display().to_string();
    let context = env.dockerfile("c", DOCKERFILE).file("f", "content\n");
    let bin = env!("CARGO_BIN_EXE_rbuild");
    let path = context.dir().display();
    let script = format!(
        "{bin} import {tar} busybox && {bin} build --progress plain --target 0 -t app {path} && \
         {bin} build --progress plain --target 0 -t app {path} && {bin} run app cat /all"
    );
    let out = mounted(&env, "mount -t tmpfs tmpfs $S; chmod 0700 $S", &["sh", "-ec", &script]).ok().lacks(COPIES);
    assert!(out.stdout.ends_with("content\ny\na\n"), "{}", out.text());
    assert_eq!(out.cached(), 5, "{}", out.stderr);
}

const UID: u32 = 4343;

fn as_user(env: &TestEnv, setup: &str, subordinate_ids: bool, args: &[&str]) -> Run {
    let table = if subordinate_ids { "subid" } else { "nobody" };
    let setup = format!(
        "{setup}\n chown {UID}:{UID} $S; mount --bind $D/passwd /etc/passwd; mount --bind $D/{table} /etc/subuid; mount --bind $D/{table} /etc/subgid"
    );
    let user = format!("--reuid={UID}");
    let group = format!("--regid={UID}");
    let bin = env.path("rbuild").display().to_string();
    mounted(env, &setup, &[&["setpriv", &user, &group, "--clear-groups", &bin], args].concat())
}

fn env_of_user() -> TestEnv {
    let env = env_with_base();
    fs::copy(env!("CARGO_BIN_EXE_rbuild"), env.path("rbuild")).expect("ours");
    fs::write(env.path("passwd"), format!("root:x:0:0::/root:/bin/sh\nann:x:{UID}:{UID}::/nonexistent:/bin/sh\n"))
        .expect("ours");
    fs::write(env.path("subid"), "ann:600000:65536\n").expect("ours");
    fs::write(env.path("nobody"), "").expect("ours");
    for dir in ["store", "home", "home/.docker", "run", "tmp"] {
        chown(env.path(dir), Some(UID), Some(UID)).expect("root may");
    }
    fs::set_permissions(env.path("busybox.tar"), fs::Permissions::from_mode(0o644)).expect("ours");
    env
}

#[test]
fn an_ordinary_user_on_an_overlay() {
    if !ready() || !require(&["setpriv", "newuidmap"]) {
        return;
    }
    for subordinate_ids in [true, false] {
        let env = env_of_user();
        let layers = usual(&env, |args| as_user(&env, OVERLAY, subordinate_ids, args), COPIES);
        assert!(layers.iter().flatten().all(|entry| (entry.uid, entry.gid) == (0, 0)), "files are root's in the image");
        assert!(layers[0].iter().any(|entry| entry.path == "bin/.wh.vi"), "{:?}", layers[0]);
    }
}

#[test]
fn a_file_system_that_clones_files() {
    let made = ["mkfs.xfs", "mkfs.btrfs"].into_iter().find(|program| crate::support::can(program));
    if !ready() || !require(&[made.unwrap_or("mkfs.xfs")]) {
        return;
    }
    let program = made.expect("required");
    let env = env_with_base();
    let image = env.path("disk");
    fs::File::create(&image).and_then(|file| file.set_len(1 << 30)).expect("ours");
    Run::new(program).arg("-q").arg(&image).ok();
    let setup = "mount -o loop $D/disk $S; chmod 0700 $S";
    let overlays = usual(&env, |args| rbuild(&env, setup, args), NOTHING);
    // An overlay whose upper directory is there clones as well.
    let upon = "mount --bind /dev/null /dev/fuse; mkdir -p $D/disk.dir $D/low; mount -o loop $D/disk $D/disk.dir; mkdir -p $D/disk.dir/up $D/disk.dir/work; \
                mount -t overlay -o lowerdir=$D/low,upperdir=$D/disk.dir/up,workdir=$D/disk.dir/work overlay $S; chmod 0700 $S";
    let copies = usual(&env, |args| rbuild(&env, upon, args), COPIES);
    same_layers(&copies, &overlays);
}

/// Context, layers and the directories that steps see have the blocks of a large file in common.
#[test]
fn large_files_take_their_room_once() {
    let made = ["mkfs.xfs", "mkfs.btrfs"].into_iter().find(|program| crate::support::can(program));
    if !ready() || !require(&[made.unwrap_or("mkfs.xfs"), "busybox"]) {
        return;
    }
    let env = TestEnv::new();
    let image = env.path("disk");
    fs::File::create(&image).and_then(|file| file.set_len(1 << 30)).expect("ours");
    Run::new(made.expect("required")).arg("-q").arg(&image).ok();
    fs::create_dir(env.path("disk.dir")).expect("ours");
    // 65 MiB and three bytes.
    let mut script = format!("RBUILD={}\n", env!("CARGO_BIN_EXE_rbuild"));
    script.push_str(
        r#"cd "$1"; mount -o loop disk disk.dir; mkdir -m 700 disk.dir/store; mkdir disk.dir/c; c=disk.dir/c
        cp $(command -v busybox) $c/busybox; head -c 68157443 /dev/urandom > $c/big
        cat > $c/Dockerfile <<'EOF'
        FROM scratch AS one
        COPY busybox /bin/busybox
        COPY big /big
        RUN ["/bin/busybox", "sha256sum", "/big"]
        FROM one
        COPY --from=one /big /another
        RUN ["/bin/busybox", "sha256sum", "/another"]
EOF
        used() { sync; df --output=used -B1M disk.dir | tail -n 1; }
        before=$(used)
        $RBUILD --root disk.dir/store build -t a --progress plain $c 2>&1 | grep -o '[0-9a-f]\{64\} .*$'
        sha256sum < $c/big
        echo took $(($(used) - before)) MiB
        # Elsewhere nothing can be shared, and the same comes of it.
        export SOURCE_DATE_EPOCH=1
        $RBUILD --root disk.dir/store build -q --iidfile shared $c >/dev/null
        mkdir -m 700 copies; $RBUILD --root copies build -q --iidfile copied $c >/dev/null; cmp shared copied
        # What the author writes over his file is none of the layer.
        printf changed | dd of=$c/big conv=notrunc status=none
        printf 'FROM a\nRUN ["/bin/busybox", "sha256sum", "/big"]\n' | $RBUILD --root disk.dir/store build --progress plain - 2>&1 | grep -o '[0-9a-f]\{64\} .*$'
        "#,
    );
    let out = env.program("unshare").args(["-m", "sh", "-ec", &script, "sh"]).arg(env.dir()).timeout(120).ok();
    let lines: Vec<_> = out.stdout.lines().map(|line| line.split_whitespace().next().unwrap_or_default()).collect();
    let [first, second, written, took, after] = lines[..] else { panic!("{}", out.stdout) };
    assert_eq!((first, second, after, took), (written, written, written, "took"), "{}", out.stdout);
    let took = out.stdout.lines().nth(3).and_then(|line| line.split(' ').nth(1)).and_then(|mib| mib.parse().ok());
    assert!(took.is_some_and(|mib: u64| mib < 30), "four copies would take 260 MiB: {}", out.stdout);
}

/// An overlay takes 500 lower directories.
#[test]
fn a_step_upon_more_layers_than_an_overlay_takes() {
    let env = TestEnv::busybox();
    let mut text =
        String::from("FROM busybox\nRUN mkdir /d && echo old > /d/removed && echo kept > /d/kept && chmod 700 /d\n");
    for number in 0..520 {
        text.push_str(&format!("COPY f /d/{number}\n"));
    }
    text.push_str("RUN rm /d/removed /d/7 && chown 5:6 /d/8 && echo changed >> /d/9\nRUN ls /d | wc -l > /count && cat /d/9 /d/kept\n");
    let context = env.dockerfile("c", &text).file("f", "content\n");
    env.build(&context, &["-t", "many"]).timeout(120).ok();
    let out =
        env.run("many", &["sh", "-c", "cat /count; cat /d/9; stat -c %u:%g /d/8; stat -c %a /d; ! test -e /d/removed"]);
    assert_eq!(out.ok().stdout, "520\ncontent\nchanged\n5:6\n700\n");
    let out = env.path("many.tar");
    env.build(&context, &["-o", &format!("type=oci,dest={}", out.display())]).timeout(120).ok();
    let image = Layout::from_archive(&out).image();
    assert_eq!(image.layers.len(), 1 + 1 + 520 + 2);
    let last = &image.layers[522];
    let names: Vec<_> = last.iter().map(|entry| entry.path.trim_end_matches('/')).collect();
    assert_eq!(names, ["d", "d/.wh.7", "d/8", "d/9", "d/.wh.removed"]);
}

#[test]
fn a_store_that_lies_on_another_machine_is_refused() {
    if !require(&["python3", "unshare", "mount"]) || !require_root() {
        return;
    }
    let env = TestEnv::new();
    let server = env.path("far.py");
    fs::write(&server, include_str!("../support/far.py")).expect("our directory");
    let served = |kind: &str| format!("python3 $D/far.py {kind} $S");
    for args in [&["images"][..], &["build", "."], &["du"], &["prune", "-f"]] {
        let out = rbuild(&env, &served("fuse.sshfs"), args).timeout(20).run().exits(1);
        let out = out.contains("is on a network file system (sshfs through FUSE)").contains("--root");
        assert_eq!(out.stderr.lines().count(), 1, "{}", out.stderr);
    }
    // What is served on this machine is a disk like others: this one holds nothing, which is another error.
    rbuild(&env, &served("fuse.local"), &["images"]).timeout(20).run().exits(1).lacks("network");
    assert_eq!(fs::read_dir(env.store()).expect("ours").count(), 0, "nothing was written beneath");
}
