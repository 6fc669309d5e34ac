//! Attacks that a step carries out while it runs, each with something on the host, in another step or in a layer that must
//! stay as it is.

use crate::support::{Layout, TestEnv, require};

const CANARY: &str = "tweet";

fn with_canary() -> (TestEnv, String) {
    let env = TestEnv::busybox();
    std::fs::write(env.path("canary"), CANARY).expect("ours");
    let dir = env.dir().display().to_string();
    (env, dir)
}

#[track_caller]
fn untouched(env: &TestEnv) {
    assert_eq!(std::fs::read_to_string(env.path("canary")).expect("still there"), CANARY);
    assert!(!env.path("pwned").exists(), "written outside");
}

/// Lines that a step printed after a mark.
fn printed(stderr: &str, mark: &str) -> Vec<String> {
    let lines = stderr.lines().filter(|line| !line.contains("RUN "));
    lines.filter_map(|line| Some(line.split_once(mark)?.1.to_owned())).collect()
}

/// CVE-2024-23651: one step swaps what another one mounts.
#[test]
pub(crate) fn a_source_that_is_swapped_meanwhile_leads_nowhere() {
    let (env, dir) = with_canary();
    let swap = "end=$(($(date +%s) + 3)); while [ $(date +%s) -lt $end ]; do rm -rf /c/sel; ln -s $T /c/sel; rm -f /c/sel; mkdir /c/sel; done";
    let mut text = format!(
        "FROM busybox AS s\nRUN mkdir /sel && ln -s {dir} /evil\nFROM busybox AS swap\nENV T={dir}\n\
         RUN --mount=type=cache,id=k,from=s,source=/,target=/c {swap}\n"
    );
    for number in 0..6 {
        text.push_str(&format!(
            "FROM busybox AS look{number}\nRUN sleep 0.{number}\n\
             RUN --mount=type=cache,id=k,from=s,source=/sel,target=/look cat /look/canary; touch /look/pwned; true\n"
        ));
    }
    text.push_str("FROM busybox\n");
    for stage in ["swap", "look0", "look1", "look2", "look3", "look4", "look5"] {
        text.push_str(&format!("COPY --from={stage} /bin/busybox /{stage}\n"));
    }
    // A mount may find nothing there at its moment, which is an error and no harm.
    for _ in 0..2 {
        env.build(&env.dockerfile("c", &text), &["--no-cache"]).run().lacks(CANARY);
        untouched(&env);
    }
}

/// CVE-2024-23652: what was made to be mounted on is taken away after the step, which has put something else into its way.
#[test]
pub(crate) fn what_is_taken_away_after_a_step_is_the_steps_own() {
    let (env, dir) = with_canary();
    for name in ["empty", "beside"] {
        std::fs::create_dir(env.path(name)).expect("ours");
    }
    for change in [
        format!("mv /deep /moved && ln -s {dir} /deep"),
        format!("mv /deep /moved && ln -s ../../../../../../../..{dir} /deep && ls /deep/"),
        "mv /deep /moved && ln -s /proc/self/root/tmp /deep && mkdir -p /tmp/empty".to_owned(),
        "mv /deep /moved && mkdir -p /deep/empty && echo kept > /deep/empty/f".to_owned(),
    ] {
        let text = format!(
            "FROM busybox\nRUN --mount=type=tmpfs,target=/deep/empty --mount=type=tmpfs,target=/deep/beside {change}; true\n\
             RUN --mount=type=bind,from=busybox,source=/bin/busybox,target=/deep/canary true\n"
        );
        let out = env.build(&env.dockerfile("c", &text), &["--no-cache"]).run();
        assert!(!out.stderr.contains("panicked"), "{}", out.stderr);
        assert!(env.path("empty").is_dir() && env.path("beside").is_dir(), "{change}: removed outside");
        untouched(&env);
    }
}

/// CVE-2019-5736: a script whose interpreter is /proc/self/exe would have rbuild's own program run, and writes to it.
#[test]
pub(crate) fn the_program_itself_stays_as_it_is() {
    let env = TestEnv::busybox();
    let digest = || {
        let bytes = std::fs::read(env!("CARGO_BIN_EXE_rbuild")).expect("built");
        registry::digest_of(&bytes).to_string()
    };
    let before = digest();
    let write =
        "(for i in $(seq 300); do for p in /proc/[0-9]*/exe; do (echo pwned > $p) 2>/dev/null; done; done &) ; ";
    let text = format!(
        "FROM busybox\nRUN printf '#!/proc/self/exe\\n' > /evil && chmod 755 /evil && ln -sf /proc/self/exe /link\n\
         RUN {write} /evil --version; /link --version; true\nENTRYPOINT [\"/evil\"]\nRUN [\"/evil\"]\n"
    );
    let context = env.dockerfile("c", &text);
    for _ in 0..2 {
        let out = env.build(&context, &["--no-cache"]).timeout(60).run();
        assert!(!out.stderr.contains("panicked"), "{}", out.stderr);
    }
    assert_eq!(digest(), before);
}

#[test]
pub(crate) fn nothing_leads_from_a_mount_into_a_layer_or_back() {
    let (env, _) = with_canary();
    let context = env.dockerfile(
        "c",
        "FROM busybox\nRUN --mount=type=cache,id=k,target=/c echo cached > /c/f; ln /c/f /linked 2>/dev/null; cp -l /c/f /linked2 2>/dev/null; true\n\
         RUN --mount=type=bind,target=/b ln /b/mine /linked3 2>/dev/null; mount --bind / /b 2>/dev/null; mount -o remount,rw /b 2>/dev/null; \
             echo pwned > /b/mine 2>/dev/null; true\n\
         RUN --mount=type=secret,id=s ln /run/secrets/s /linked4 2>/dev/null; umount /run/secrets/s 2>/dev/null; cat /run/secrets/s > /dev/null\n\
         RUN --mount=type=tmpfs,target=/deep/er/still touch /deep/er/still/x\n",
    );
    let context = context.file("mine", "mine");
    let archive = env.path("image.tar");
    std::fs::write(env.path("secret"), "canary-of-the-secret").expect("ours");
    let secret = format!("id=s,src={}", env.path("secret").display());
    env.build(&context, &["--secret", &secret, "-o", &format!("type=oci,dest={}", archive.display())]).ok();
    assert_eq!(std::fs::read(context.path("mine")).expect("there"), b"mine");
    let image = Layout::from_archive(&archive).image();
    for entry in image.layers.iter().skip(1).flatten() {
        let path = entry.path.trim_end_matches('/');
        assert!(
            !path.contains("linked") && !path.starts_with("run") && path != "c" && path != "b",
            "{path} is in a layer"
        );
        assert!(!entry.body.windows(6).any(|window| window == b"canary"), "{path}");
    }
}

#[test]
pub(crate) fn a_step_sees_nothing_of_one_that_runs_beside_it() {
    let env = TestEnv::busybox();
    std::fs::write(env.path("secret"), "canary-of-the-secret").expect("ours");
    let text = "FROM busybox AS victim\nRUN --mount=type=secret,id=s,env=S --mount=type=secret,id=s sleep 4.25\n\
                FROM busybox AS thief\nRUN sleep 1; ps | grep -c 'sleep 4.2[5]' | sed 's/^/seen: /'; cat /proc/*/environ | tr '\\0' '\\n'; \
                cat /proc/*/root/run/secrets/s /proc/*/cwd/run/secrets/s 2>/dev/null; ls /dev/shm /dev/mqueue; ipcs 2>/dev/null; \
                killall sleep 2>/dev/null; kill -9 -1 2>/dev/null; true\n\
                FROM busybox\nCOPY --from=victim /bin/busybox /1\nCOPY --from=thief /bin/busybox /2\n";
    let secret = format!("id=s,src={}", env.path("secret").display());
    // Masked or not: the victim's process is not to be seen at all.
    let out = env.build(&env.dockerfile("c", text), &["--secret", &secret]).run().lacks("canary-of-the-secret");
    assert_eq!(printed(&out.stderr, "seen: "), ["0"], "{}", out.stderr);
    assert!(!out.stderr.contains("***"), "{}", out.stderr);
}

/// The same where steps see processes of others, as they do in a container that covers parts of its /proc.
#[test]
pub(crate) fn a_step_gets_nothing_out_of_one_that_runs_beside_it() {
    let env = TestEnv::busybox();
    std::fs::write(env.path("secret"), "canary-of-the-secret").expect("ours");
    let text = "FROM busybox AS victim\nRUN --mount=type=secret,id=s,env=S --mount=type=secret,id=s,mode=0444 sleep 4.75\n\
                FROM busybox AS thief\nRUN sleep 1; cat /proc/[0-9]*/environ 2>/dev/null | tr '\\0' '\\n'; \
                cat /proc/[0-9]*/root/run/secrets/s /proc/[0-9]*/cwd/run/secrets/s 2>/dev/null; \
                for pid in /proc/[0-9]*; do [ \"$(readlink $pid/root)\" = / ] && [ -e $pid/root/run/secrets/s ] && echo reached: $pid; done; \
                killall -9 sleep 2>/dev/null; echo done\n\
                FROM busybox\nCOPY --from=victim /bin/busybox /1\nCOPY --from=thief /bin/busybox /2\n";
    let secret = format!("id=s,src={}", env.path("secret").display());
    let out = env.build(&env.dockerfile("c", text), &["--secret", &secret]).ok().lacks("canary-of-the-secret");
    assert_eq!(printed(&out.stderr, "reached: "), Vec::<String>::new(), "{}", out.stderr);
    assert!(!out.stderr.contains("***"), "{}", out.stderr);
}

#[test]
pub(crate) fn the_kernels_ways_out_are_shut() {
    let (env, dir) = with_canary();
    let script = format!(
        "for file in /proc/sys/kernel/core_pattern /proc/sys/kernel/modprobe /proc/sys/kernel/hotplug /proc/sys/vm/panic_on_oom \
             /proc/sysrq-trigger /sys/kernel/uevent_helper /sys/fs/cgroup/release_agent /sys/fs/cgroup/*/release_agent \
             /sys/fs/cgroup/cgroup.procs /sys/fs/cgroup/*/cgroup.procs /proc/1/oom_score_adj; do \
             [ -e $file ] && [ $file != /proc/1/oom_score_adj ] && (echo '|{dir}/pwned' > $file) 2>/dev/null && echo written: $file; done; \
         mkdir /tmp/m; for kind in proc sysfs cgroup cgroup2 tmpfs devtmpfs debugfs tracefs securityfs bpf binfmt_misc; do \
             mount -t $kind none /tmp/m 2>/dev/null && echo mounted: $kind; done; \
         for disk in /dev/vda /dev/sda /dev/mem /dev/kmem /dev/kmsg /dev/fuse /dev/kvm /dev/net/tun /dev/loop-control; do \
             [ -e $disk ] && echo there: $disk; done; \
         for fd in $(seq 3 64); do [ -e /proc/self/fd/$fd/etc/passwd ] && echo open: $fd; done; \
         unshare -U true 2>/dev/null && echo unshared; unshare -m true 2>/dev/null && echo unshared; \
         nsenter -t 1 -m true 2>/dev/null && echo entered; chroot /proc/1/root ls {dir} 2>/dev/null; \
         swapon /x 2>/dev/null && echo swapped; hostname x 2>/dev/null && echo renamed; date -s 2020-01-01 > /dev/null 2>&1; [ $(date +%Y) = 2020 ] && echo clocked; \
         echo 0 > /proc/self/loginuid 2>/dev/null; reboot -f 2>/dev/null; kill -9 1; echo end: here"
    );
    let out = env.build(&env.dockerfile("c", &format!("FROM busybox\nRUN {script}\n")), &[]).ok();
    for mark in ["written: ", "mounted: ", "there: ", "open: "] {
        assert_eq!(printed(&out.stderr, mark), Vec::<String>::new(), "{}", out.stderr);
    }
    for word in [" unshared", " entered", " swapped", " renamed", " clocked", " canary"] {
        let said = out.stderr.lines().filter(|line| !line.contains("RUN ")).any(|line| line.ends_with(word));
        assert!(!said, "{word}: {}", out.stderr);
    }
    assert_eq!(printed(&out.stderr, "end: "), ["here"]);
    untouched(&env);
}

/// GHSA-72x6-4j93-7w86 and its like: files of the image that are read before anything runs.
#[test]
pub(crate) fn files_of_the_image_that_are_read_for_a_step_cannot_stop_or_mislead_it() {
    let (env, dir) = with_canary();
    for make in [
        "head -c 20000000 /dev/zero | tr '\\0' 'x' > /etc/passwd",
        "rm -f /etc/passwd; mkfifo /etc/passwd",
        "rm -f /etc/passwd; mkdir /etc/passwd",
        "rm -f /etc/passwd; mknod /etc/passwd c 1 5",
        &format!("rm -f /etc/passwd; ln -s {dir}/canary /etc/passwd"),
        "rm -f /etc/passwd; ln -s /proc/self/environ /etc/passwd",
        "rm -f /etc/passwd; ln -s passwd /etc/passwd",
    ] {
        let text = format!("FROM busybox\nRUN mkdir -p /etc; {make}\nUSER somebody\nRUN echo ran\n");
        let out = env.build(&env.dockerfile("c", &text), &[]).timeout(60).run().exits(1);
        assert!(
            !out.stderr.contains("panicked") && !printed(&out.stderr, " ran").iter().any(String::is_empty),
            "{}",
            out.stderr
        );
        // What needs no name goes on.
        let text = format!(
            "FROM busybox\nRUN mkdir -p /etc; {make}\nUSER 12:34\nRUN grep ^Uid: /proc/self/status | tr -s '\\t' ' '\n"
        );
        let out = env.build(&env.dockerfile("d", &text), &[]).timeout(60).run();
        let told = printed(&out.stderr, "Uid: ");
        assert!(told.first().is_none_or(|uid| uid == "12 12 12 12"), "{}", out.stderr);
    }
    for link in ["/etc/resolv.conf", "/etc/hosts", "/etc/hostname"] {
        let text = format!(
            "FROM busybox\nRUN mkdir -p /etc; ln -s {dir}/canary {link} 2>/dev/null; true\nRUN cat {link}; echo pwned > {link}; true\n"
        );
        env.build(&env.dockerfile("e", &text), &[]).run().lacks(CANARY);
        untouched(&env);
    }
}

#[test]
pub(crate) fn a_hostile_image_gets_nothing_out_of_a_shell() {
    if !require(&["busybox"]) {
        return;
    }
    let (env, dir) = with_canary();
    // The place of the shell that is brought in, and names that a terminal would obey.
    let text = format!(
        "FROM busybox AS tools\nFROM scratch\nCOPY --from=tools /bin/busybox /tool\n\
         RUN [\"/tool\", \"ln\", \"-s\", \"{dir}\", \"/.rbuild-shell\"]\nRUN [\"/tool\", \"false\", \"\\u001b]0;pwned\\u0007\"]\n"
    );
    env.build(&env.dockerfile("c", &text), &[]).run().exits(1);
    let line =
        format!("echo pwned > /.rbuild-shell/canary; echo x > {dir}/pwned; cat {dir}/canary; ls /proc/1/fd; exit 3\n");
    let out = env.rbuild(["shell"]).stdin(line).run().exits(3).lacks(CANARY);
    assert!(!out.text().contains('\u{1b}'), "{:?}", out.text());
    untouched(&env);
    // A step needs its permissions again.
    let text = "FROM busybox\nRUN --security=insecure false\n";
    env.build(&env.dockerfile("d", text), &["--allow", "security.insecure"]).run().exits(1);
    env.rbuild(["shell", "--", "true"]).run().exits(125).contains("--allow security.insecure");
}
