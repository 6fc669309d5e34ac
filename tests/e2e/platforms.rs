//! Steps of other platforms: programs that QEMU runs, on a machine that does not notice.

use std::fs;
use std::path::Path;

use sha2::{Digest as _, Sha256};

use crate::support::{Layout, TestEnv, busybox_base, foreign_base, require, require_root};

const QEMU: &str = "/usr/bin/qemu-aarch64-static";

/// A store with `arm64` and `native`, busybox of both kinds.
fn env() -> Option<TestEnv> {
    if !require(&["qemu-aarch64-static"]) {
        return None;
    }
    let env = TestEnv::new();
    env.rbuild(["import", "--platform", "linux/arm64"]).arg(foreign_base("arm64").tar).arg("busybox-arm64").ok();
    env.rbuild(["import"]).arg(busybox_base().tar).arg("busybox-amd64").ok();
    Some(env)
}

/// What is registered for the whole machine; nothing where that is not even mounted.
fn registered() -> Vec<String> {
    let entries = fs::read_dir("/proc/sys/fs/binfmt_misc").into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

fn digest(path: impl AsRef<Path>) -> String {
    hex::encode(Sha256::digest(fs::read(path).expect("it is there")))
}

#[test]
fn programs_of_another_machine_run_and_leave_no_trace() {
    let Some(env) = env() else { return };
    let before = (registered(), digest(QEMU));
    let text = "FROM busybox-arm64\n\
                RUN uname -m > /machine && id -u >> /machine && echo $0 >> /machine\n\
                RUN chown 33:44 /etc/group && chmod 4755 /bin/busybox && [ -e /dev/null ] && echo x > /dev/null\n\
                USER web\n\
                RUN id -u > /tmp/who && su -c 'id -u' > /tmp/root; true\n\
                RUN ! mount -t tmpfs x /tmp 2>/dev/null && ! touch /proc/sys/kernel/panic 2>/dev/null\n";
    let out = env.path("out.tar");
    let destination = format!("type=oci,dest={}", out.display());
    let build = || env.build(&env.dockerfile("c", text), &["--platform", "linux/arm64", "-o", &destination]);
    build().ok();
    let image = Layout::from_archive(&out).image();
    assert_eq!(image.config["architecture"], "arm64");
    let body = |path: &str| String::from_utf8_lossy(&image.find(path).expect("made").body).into_owned();
    assert_eq!(body("machine"), "aarch64\n0\n/bin/sh\n");
    assert_eq!(body("tmp/who"), "1000\n");
    let group = image.find("etc/group").expect("changed");
    assert_eq!((group.uid, group.gid), (33, 44));
    assert_eq!(image.find("bin/busybox").expect("changed").mode & 0o7777, 0o4755);
    let paths: Vec<&str> = image.layers.iter().flatten().map(|entry| entry.path.as_str()).collect();
    assert!(!paths.iter().any(|path| path.contains("qemu") || path.contains("binfmt")), "{paths:?}");
    assert_eq!(build().ok().cached(), 4);
    assert_eq!((registered(), digest(QEMU)), before, "the machine is as it was");
    // And a program by itself, whose first argument is what it was given.
    let out = env.rbuild(["run", "--platform", "linux/arm64", "busybox-arm64", "sh", "-c", "echo $0; uname -m"]).ok();
    assert_eq!(out.stdout, "sh\naarch64\n");
}

#[test]
fn the_interpreter_cannot_be_written_by_who_runs_under_it() {
    let Some(env) = env() else { return };
    if !require_root() {
        return;
    }
    let before = digest(QEMU);
    // A program of this machine's own kind waits until nobody runs under the interpreter any more.
    let text = "FROM --platform=$BUILDPLATFORM busybox-amd64 AS native\n\
                FROM busybox-arm64\n\
                COPY --from=native /bin/busybox /busybox\n\
                RUN [\"/busybox\", \"sh\", \"-c\", \"/bin/sleep 60 & exec 3</proc/$!/exe && /busybox kill -9 $! && wait; \
                /busybox sleep 0.2; (/busybox echo x > /proc/self/fd/3) 2>&1; /busybox dd if=/proc/self/fd/3 bs=4 count=1 \
                2>/dev/null | /busybox od -c | /busybox head -n 1\"]\n";
    let out = env.build(&env.dockerfile("c", text), &["--platform", "linux/arm64"]).ok();
    // The kernel keeps writers off what is registered, and the view through which it was opened keeps them off as well.
    assert!(["Text file busy", "Read-only file system"].iter().any(|why| out.text().contains(why)), "{}", out.text());
    assert!(out.text().contains("E   L   F"), "it can be read: {}", out.text());
    assert_eq!(digest(QEMU), before);
}

#[test]
fn several_platforms_make_an_index_and_build_stages_run_natively() {
    let Some(env) = env() else { return };
    let text = "FROM --platform=$BUILDPLATFORM busybox-amd64 AS build\nARG TARGETARCH\n\
                RUN uname -m > /by && echo $TARGETARCH > /for\n\
                FROM busybox-$TARGETARCH\nCOPY --from=build /by /for /\nRUN uname -m > /on\n";
    let out = env.path("out.tar");
    let destination = format!("type=oci,dest={}", out.display());
    let args = ["--platform", "linux/amd64,linux/arm64", "-o", &destination];
    env.build(&env.dockerfile("c", text), &args).ok();
    let images = Layout::from_archive(&out).images();
    let body = |architecture: &str, path: &str| {
        let image = images.iter().find(|image| image.config["architecture"] == architecture).expect("built");
        String::from_utf8_lossy(&image.find(path).expect("made").body).into_owned()
    };
    assert_eq!(images.len(), 2);
    for (architecture, on) in [("amd64", "x86_64\n"), ("arm64", "aarch64\n")] {
        assert_eq!(body(architecture, "by"), "x86_64\n");
        assert_eq!(body(architecture, "for"), format!("{architecture}\n"));
        assert_eq!(body(architecture, "on"), on);
    }
}

#[test]
fn narrow_and_big_endian_machines_run_too() {
    let Some(env) = env() else { return };
    for (debian, platform, machine) in [
        ("i386", "linux/386", "ELF-1-1-3"),
        ("armhf", "linux/arm/v7", "ELF-1-1-40"),
        ("s390x", "linux/s390x", "ELF-2-2-22"),
    ] {
        env.rbuild(["import", "--platform", platform]).arg(foreign_base(debian).tar).arg(debian).ok();
        // What the kernel says of its machine differs; the program's own header does not.
        let text = format!("FROM {debian}\nRUN uname -m > /machine && ls -l / > /list\n");
        env.build(&env.dockerfile(debian, &text), &["--platform", platform, "-t", "made"]).ok();
        let out = env
            .rbuild(["run", "--platform", platform, "made", "od", "-An", "-tu1", "-j4", "-N16", "/bin/busybox"])
            .ok();
        let header: Vec<u32> = out.stdout.split_whitespace().map(|byte| byte.parse().expect("a byte")).collect();
        let number = if header[1] == 2 { header[14] * 256 + header[15] } else { header[15] * 256 + header[14] };
        assert_eq!(format!("ELF-{}-{}-{number}", header[0], header[1]), machine);
    }
}

/// A machine where somebody registered QEMU for everybody; a user namespace stands in for it.
#[test]
fn what_the_machine_has_registered_is_used() {
    let Some(env) = env() else { return };
    if !require(&["unshare", "mount"]) {
        return;
    }
    let line = "':theirs:M::\\x7fELF\\x02\\x01\\x01\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x02\\x00\\xb7\\x00:\
                \\xff\\xff\\xff\\xff\\xff\\xff\\xff\\x00\\xff\\xff\\xff\\xff\\xff\\xff\\xff\\xff\\xfe\\xff\\xff\\xff:\
                /usr/bin/qemu-aarch64-static:OPF'";
    let context = env.dockerfile("c", "FROM busybox-arm64\nRUN uname -m > /machine && cat /proc/self/uid_map > /map\n");
    let script = format!(
        "mount -t binfmt_misc none /proc/sys/fs/binfmt_misc && printf '%s' {line} > /proc/sys/fs/binfmt_misc/register && \
         PATH=/nowhere exec {} --root {} build --progress plain --platform linux/arm64 -o type=oci,dest={} {}",
        env!("CARGO_BIN_EXE_rbuild"),
        env.store().display(),
        env.path("out.tar").display(),
        context.dir().display()
    );
    env.program("unshare").args(["-r", "-m", "sh", "-c", &script]).ok();
    let image = Layout::from_archive(&env.path("out.tar")).image();
    assert_eq!(image.find("machine").expect("made").body, b"aarch64\n");
    // No namespace within that namespace was needed.
    let map = String::from_utf8_lossy(&image.find("map").expect("made").body).into_owned();
    assert_eq!(map.split_whitespace().collect::<Vec<_>>(), ["0", "0", "1"]);
}

#[test]
fn without_an_interpreter_the_person_is_told_what_to_install() {
    let env = TestEnv::new();
    // The programs are no programs, but nothing gets that far.
    let context = env.dockerfile("c", "FROM scratch\nCOPY --chmod=755 p /p\nRUN [\"/p\"]\n");
    let mut program = b"\x7fELF\x02\x01\x01".to_vec();
    program.resize(16, 0);
    // An executable of LoongArch; its interpreter is hidden by a PATH without it and an empty /usr/bin.
    program.extend([2, 0, 2, 1, 1, 0, 0, 0]);
    program.resize(200, 0);
    context.write("p", &program);
    if !require(&["unshare"]) || !require_root() {
        return;
    }
    let script = "for dir in /usr/bin /usr/local/bin; do for file in $dir/qemu-loongarch64*; do \
                  [ ! -e $file ] || mount --bind /dev/null $file; done; done; exec \"$@\"";
    let out = env
        .program("unshare")
        .args(["-m", "sh", "-c", script, "sh", env!("CARGO_BIN_EXE_rbuild"), "build", "--platform", "linux/loong64"])
        .arg(context.dir())
        .run()
        .exits(1);
    assert!(out.stderr.contains("programs for loong64 cannot be run here"), "{}", out.stderr);
    assert!(out.stderr.contains("qemu-user-static"), "{}", out.stderr);
}
