//! rbuild inside containers that give it few rights or none, as continuous integration does.

use std::fs;
use std::path::Path;

use crate::support::{Entry, Image, Layout, Run, TestEnv, require, require_root};

/// A directory that a container gets: rbuild, a context, busybox.
fn baggage(env: &TestEnv, dockerfile: &str) -> std::path::PathBuf {
    let place = env.path("baggage");
    fs::create_dir_all(place.join("context")).expect("ours");
    fs::copy(env!("CARGO_BIN_EXE_rbuild"), place.join("rbuild")).expect("ours");
    fs::copy("/bin/busybox", place.join("context/busybox")).expect("Debian's busybox-static");
    fs::write(place.join("context/Dockerfile"), dockerfile).expect("ours");
    fs::write(place.join("context/hosts"), "old\n").expect("ours");
    fs::write(place.join("canary"), "untouched").expect("ours");
    place
}

const BASE: &str = "FROM scratch AS base\nCOPY busybox /bin/busybox\nRUN [\"/bin/busybox\", \"--install\", \"-s\", \"/bin\"]\n\
                    RUN mkdir -p /etc /tmp && echo 'joe:x:1234:1234::/home/joe:/bin/sh' > /etc/passwd\nCOPY hosts /etc/\n";

/// Runs a shell line in a container with Docker's default filter and capabilities: no namespaces, no mounts.
fn in_container(env: &TestEnv, place: &Path, line: &str) -> Run {
    let volume = format!("{}:/n", place.display());
    env.rbuild(["run", "--network", "host", "-v", &volume, "busybox", "sh", "-c", line]).timeout(150)
}

fn image(place: &Path) -> Image {
    Layout::from_archive(&place.join("out.tar")).image()
}

fn layer(image: &Image, index: usize) -> Vec<&str> {
    let paths = image.layers[index].iter().map(|entry: &Entry| entry.path.trim_end_matches('/'));
    paths.filter(|path| !path.is_empty() && *path != ".").collect()
}

const BUILD: &str = "cd /n && ./rbuild --root /n/store build --progress plain -t app -o type=oci,dest=out.tar";

#[test]
fn without_any_privilege_steps_run_in_a_chroot() {
    if !require_root() {
        return;
    }
    let env = TestEnv::busybox();
    let text = format!(
        "{BASE}FROM base AS other\nRUN mkdir /o && echo other > /o/f\n\
         FROM base\n\
         RUN cat /etc/hosts | grep -q localhost && echo new > /made && rm /tmp -r && [ \"$(id -u)\" = 0 ] && echo x > /dev/null\n\
         RUN --mount=type=cache,target=/cache --mount=type=bind,from=other,source=/o,target=/mnt/deep --mount=type=tmpfs,target=/t \\\n\
             echo 1 >> /cache/count && cp /mnt/deep/f /f && echo y > /t/y && wc -l < /cache/count > /count\n\
         RUN --mount=type=bind,source=busybox,target=/b --mount=type=cache,target=/cache [ -s /b ] && cat /cache/count > /again\n\
         USER joe\nWORKDIR /home/joe\nRUN id -u > who && (sleep 600 &)\n\
         RUN ! chroot / true 2>/dev/null && ! mknod /home/joe/n c 1 3 2>/dev/null && ! cat /n/canary 2>/dev/null && ! ls /proc/1 2>/dev/null\n"
    );
    let place = baggage(&env, &text);
    let out = in_container(
        &env,
        &place,
        &format!("{BUILD} context && {BUILD} context; ps | grep -q 'sleep 60[0]' && echo LEFT; true"),
    )
    .ok();
    assert!(!out.text().contains("LEFT"), "a process outlived its step");
    assert!(out.text().contains("chroot"), "the person is told: {}", out.text());
    let steps =
        text.lines().filter(|line| ["RUN", "COPY", "WORKDIR"].iter().any(|word| line.starts_with(word))).count();
    assert_eq!(out.cached(), steps, "the second build runs nothing:\n{}", out.text());
    let image = image(&place);
    let find = |path: &str| image.find(path).map(|entry| String::from_utf8_lossy(&entry.body).into_owned());
    assert_eq!(find("f").as_deref(), Some("other\n"));
    assert_eq!((find("count").as_deref(), find("again").as_deref()), (Some("1\n"), Some("1\n")));
    assert_eq!(find("home/joe/who").as_deref(), Some("1234\n"));
    assert_eq!(image.find("home/joe/who").expect("found").uid, 1234);
    // What was put into the root for a step is in no layer, and what was there came back.
    let all: Vec<&str> = (0..image.layers.len()).flat_map(|index| layer(&image, index)).collect();
    for unwanted in ["dev/null", "dev/shm", "cache", "mnt", "mnt/deep", "t", "b", "etc/resolv.conf", "etc/.wh.hosts"] {
        assert!(!all.contains(&unwanted), "{unwanted} is in a layer: {all:?}");
    }
    assert_eq!(layer(&image, 4), ["made", ".wh.tmp"]);
    assert_eq!(find("etc/hosts").as_deref(), Some("old\n"));
    assert_eq!(fs::read_to_string(place.join("canary")).expect("still there"), "untouched");
}

#[test]
fn in_a_chroot_what_needs_a_mount_is_refused_and_a_failure_is_shown() {
    if !require_root() {
        return;
    }
    let env = TestEnv::busybox();
    let cases = [
        ("RUN --mount=type=secret,id=s cat /run/secrets/s\n", "neither mounts nor namespaces", 1),
        ("RUN --network=none true\n", "neither mounts nor namespaces", 1),
        ("RUN echo words && exit 7\n", "exit code: 7", 1),
        ("RUN --mount=type=secret,id=s,env=S [ \"$S\" = value ]\n", "DONE", 0),
    ];
    let place = baggage(&env, "");
    fs::write(place.join("secret"), "value").expect("ours");
    for (step, expected, code) in cases {
        fs::write(place.join("context/Dockerfile"), format!("{BASE}{step}")).expect("ours");
        let line = format!("{BUILD} --secret id=s,src=/n/secret context");
        let out = in_container(&env, &place, &line).run().exits(code);
        assert!(out.text().contains(expected), "{step}: {}", out.text());
    }
}

#[test]
fn without_root_and_namespaces_images_without_steps_are_built() {
    if !require_root() {
        return;
    }
    let env = TestEnv::busybox();
    let place = baggage(&env, "FROM scratch\nCOPY busybox /bin/busybox\nWORKDIR /w\n");
    std::os::unix::fs::chown(&place, Some(4321), Some(4321)).expect("root may");
    let volume = format!("{}:/n", place.display());
    let run = |line: &str| {
        env.rbuild(["run", "-u", "4321:4321", "-e", "HOME=/n", "-v", &volume, "busybox", "sh", "-c", line])
    };
    run(&format!("{BUILD} context")).ok();
    let image = image(&place);
    assert_eq!(image.find("bin/busybox").expect("copied").uid, 0);
    fs::write(place.join("context/Dockerfile"), format!("{BASE}RUN true\n")).expect("ours");
    run(&format!("{BUILD} context")).run().exits(1).contains("no step can be started here");
}

/// Root without CAP_SYS_ADMIN, and a /proc of which a part is covered: a container whose filter permits user namespaces.
#[test]
fn root_of_a_container_makes_a_namespace_with_the_ids_it_has() {
    if !require_root() || !require(&["setpriv", "unshare"]) {
        return;
    }
    let env = TestEnv::busybox();
    let text = format!(
        "{BASE}RUN echo $$ > /pid && [ -e /proc/self/exe ] && chown 1234:65000 /made-by-nobody 2>/dev/null || touch /owned && chown 1234:65000 /owned\n"
    );
    let place = baggage(&env, &text);
    let script = "mount --make-rprivate / && mount -t tmpfs none /proc/acpi 2>/dev/null || mount -t tmpfs none /proc/fs; \
                  exec setpriv --bounding-set -sys_admin,-sys_ptrace,-net_admin,-sys_resource,-dac_read_search \
                  --inh-caps -all --no-new-privs sh -c \"$1\"";
    let line = format!(
        "cd {} && ./rbuild --root store build --progress plain -o type=oci,dest=out.tar context",
        place.display()
    );
    Run::new("unshare").args(["-m", "sh", "-c", script, "-", &line]).env("HOME", env.dir()).ok();
    let image = image(&place);
    let owned = image.find("owned").expect("made");
    assert_eq!((owned.uid, owned.gid), (1234, 65000));
    let pid = image.find("pid").expect("made");
    assert_eq!(String::from_utf8_lossy(&pid.body), "1\n", "processes have a namespace of their own");
}

/// What is around rbuild differs from machine to machine; each of these has stopped some builder.
#[test]
fn odd_surroundings_do_not_matter() {
    if !require_root() || !require(&["setpriv", "unshare"]) {
        return;
    }
    let env = TestEnv::busybox();
    let place =
        baggage(&env, &format!("{BASE}RUN id -u > /who\nRUN --mount=type=tmpfs,target=/t touch /t/x && cat /who\n"));
    std::os::unix::fs::chown(&place, Some(12345), Some(12345)).expect("root may");
    let devices = "mount -t tmpfs none /mnt && for n in null zero full random urandom tty; do touch /mnt/$n && \
                   mount --bind /dev/$n /mnt/$n || exit 1; done; mount --move /mnt /dev";
    let user = "setpriv --reuid=12345 --regid=12345 --clear-groups";
    for (number, (setup, prefix)) in [
        // Nobody has this id.
        ("true", format!("env -u HOME {user}")),
        ("mount --bind /proc /proc && mount -o remount,ro,bind /proc", String::new()),
        ("mount -t tmpfs none /sys", user.to_owned()),
        ("mount -t tmpfs none /sys", String::new()),
        ("mount -t tmpfs -o ro none /var/tmp", format!("{user} prlimit --nproc=60")),
        (devices, user.to_owned()),
        ("true", format!("{user} unshare -r -m")),
    ]
    .into_iter()
    .enumerate()
    {
        let line = format!(
            "{setup} && cd {} && exec {prefix} ./rbuild --root s{number} build --progress plain context",
            place.display()
        );
        env.program("unshare").args(["-m", "--propagation", "private", "sh", "-c", &line]).ok().contains("RUN id -u");
    }
}

/// Without a /proc that can be written, ids cannot be mapped: root gets what a container without namespaces gives.
#[test]
fn root_with_a_read_only_proc_and_no_rights_is_confined() {
    if !require_root() || !require(&["setpriv", "unshare"]) {
        return;
    }
    let env = TestEnv::busybox();
    let place = baggage(&env, &format!("{BASE}RUN echo made > /made\n"));
    let script = "mount --bind /proc /proc && mount -o remount,ro,bind /proc && \
                  exec setpriv --bounding-set -sys_admin --inh-caps -all --no-new-privs sh -c \"$1\"";
    let line = format!(
        "cd {} && ./rbuild --root store build --progress plain -o type=oci,dest=out.tar context",
        place.display()
    );
    Run::new("unshare").args(["-m", "sh", "-c", script, "-", &line]).env("HOME", env.dir()).ok().contains("chroot");
    assert_eq!(image(&place).find("made").expect("made").body, b"made\n");
}
