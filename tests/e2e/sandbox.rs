//! What a RUN step sees of the machine, asked from within.

use crate::support::TestEnv;

/// Output of one RUN step, as the plain progress shows it, without its prefix.
#[track_caller]
fn step_prints(env: &TestEnv, dockerfile: &str) -> Vec<String> {
    let out = env.build(&env.dockerfile("c", dockerfile), &["--no-cache"]).ok();
    let own = |line: &str| line.split_once("out: ").map(|(_, rest)| rest.to_owned());
    out.stderr.lines().filter(|l| !l.contains("RUN ")).filter_map(own).collect()
}

#[track_caller]
fn run_prints(line: &str) -> String {
    let env = TestEnv::busybox();
    step_prints(&env, &format!("FROM busybox\nRUN {line}\n")).join("\n")
}

#[test]
pub(crate) fn every_namespace_is_its_own() {
    let inside =
        run_prints("for n in mnt pid ipc uts net cgroup; do echo \"out: $n $(readlink /proc/self/ns/$n)\"; done");
    assert_eq!(inside.lines().count(), 6, "{inside}");
    for line in inside.lines() {
        let (name, link) = line.split_once(' ').expect("two words");
        let ours = std::fs::read_link(format!("/proc/self/ns/{name}")).expect("we have one");
        assert_ne!(ours.to_string_lossy(), link, "{name} is the host's");
    }
}

#[test]
pub(crate) fn network_none_has_no_interface_but_loopback() {
    let env = TestEnv::busybox();
    let out = env
        .build(&env.dockerfile("c", "FROM busybox\nRUN echo \"out: $(ls /sys/class/net)\"\n"), &["--network", "none"])
        .ok();
    out.contains("out: lo\n");
    let host = std::fs::read_link("/proc/self/ns/net").expect("we have one").to_string_lossy().into_owned();
    let text = "FROM busybox\nRUN echo \"out: $(readlink /proc/self/ns/net)\"\n";
    env.build(&env.dockerfile("c", text), &["--network", "none"]).ok().lacks(&host);
}

#[test]
pub(crate) fn the_step_is_process_one_and_alone() {
    assert_eq!(run_prints("set -- /proc/[0-9]*; echo \"out: $$ $#\""), "1 1");
}

#[test]
pub(crate) fn no_descriptor_is_inherited() {
    // 0, 1, 2, and the one that ls reads the directory with.
    assert_eq!(run_prints("echo \"out: $(ls /proc/self/fd | tr '\\n' ' ')\""), "0 1 2 3 ");
    assert_eq!(run_prints("cat; echo \"out: stdin is empty\""), "stdin is empty");
}

#[test]
pub(crate) fn capabilities_are_the_default_set_and_none_inheritable() {
    let caps = run_prints("sed -n 's/^\\(Cap...\\):\\t/out: \\1 /p' /proc/self/status");
    let default = "00000000a80425fb";
    assert_eq!(
        caps,
        format!(
            "CapInh 0000000000000000\nCapPrm {default}\nCapEff {default}\nCapBnd {default}\nCapAmb 0000000000000000"
        )
    );
    assert_eq!(run_prints("sed -n 's/^Seccomp:\\t/out: /p' /proc/self/status"), "2");
}

#[test]
pub(crate) fn the_user_has_the_groups_of_the_image() {
    let env = TestEnv::busybox();
    let groups = |user: &str| {
        step_prints(&env, &format!("FROM busybox\nUSER {user}\nRUN echo \"out: $(id -u) $(id -g) $(id -G)\"\n"))
            .join("")
    };
    assert_eq!(groups("root"), "0 0 0 2000");
    assert_eq!(groups("web"), "1000 1001 1001 50 2000");
    assert_eq!(groups("web:staff"), "1000 50 50");
    assert_eq!(groups("1000"), "1000 1001 1001 50 2000");
    assert_eq!(groups("1234"), "1234 0 0");
    assert_eq!(groups("1234:5"), "1234 5 5");
    let unknown = env.dockerfile("c", "FROM busybox\nUSER ghost\nRUN true\n");
    env.build(&unknown, &[]).run().exits(1).contains("ghost");
}

#[test]
pub(crate) fn kernel_settings_cannot_be_written_and_secrets_of_the_kernel_not_read() {
    let script = "for f in /proc/sys/kernel/hostname /proc/sysrq-trigger /proc/sys/kernel/core_pattern /sys/kernel/uevent_helper; do \
                  (echo x > $f) 2>/dev/null && echo \"out: wrote $f\"; done; \
                  for f in /proc/kcore /proc/keys /proc/timer_list; do [ -s $f ] && cat $f | head -c 1 | grep -q . && echo \"out: read $f\"; done; \
                  mount -t tmpfs none /tmp 2>/dev/null && echo \"out: mounted\"; echo \"out: end\"";
    assert_eq!(run_prints(script), "end");
}

#[test]
pub(crate) fn devices_are_the_standard_ones() {
    let script = "for d in null zero full random urandom tty; do [ -c /dev/$d ] || echo \"out: no $d\"; done; \
                  for d in fd stdin stdout stderr ptmx; do [ -L /dev/$d ] || [ -c /dev/$d ] || echo \"out: no $d\"; done; \
                  [ -d /dev/shm ] && [ -d /dev/pts ] || echo 'out: no shm or pts'; \
                  echo x > /dev/null; ls /dev | grep -E 'sd|vd|kmsg|mem|kvm|fuse' | sed 's/^/out: /'; \
                  (mknod /dev/evil b 8 0 && head -c 1 /dev/evil) > /dev/null 2>&1 && echo 'out: read a disk'; \
                  head -c 3 /dev/zero | wc -c | sed 's/^/out: /'";
    assert_eq!(run_prints(script), "3");
}

#[test]
pub(crate) fn the_environment_is_the_images_and_nothing_of_the_callers() {
    let env = TestEnv::busybox();
    let context = env.dockerfile("c", "FROM busybox\nENV A=1\nRUN env | sort | sed 's/^/out: /'\n");
    let out = env.build(&context, &[]).env("CANARY", "tweet").env("AWS_SECRET_ACCESS_KEY", "tweet").ok().lacks("tweet");
    let names: Vec<_> =
        out.stderr.lines().filter_map(|l| l.split_once("out: ")?.1.split_once('=')).map(|(n, _)| n).collect();
    assert!(names.contains(&"PATH") && names.contains(&"A") && names.contains(&"HOME"), "{names:?}");
    let allowed = ["A", "HOME", "HOSTNAME", "PATH", "PWD", "SHLVL", "OLDPWD"];
    assert!(names.iter().all(|n| allowed.contains(n)), "{names:?}");
}

#[test]
pub(crate) fn the_host_is_out_of_reach() {
    let env = TestEnv::busybox();
    std::fs::write(env.path("canary"), "tweet").expect("ours");
    let canary = env.path("canary").display().to_string();
    let script = format!(
        "cat {canary} ../../../../../../..{canary} /proc/1/root{canary} /proc/1/cwd/../../../..{canary} 2>/dev/null && echo 'out: read'; \
         for n in 3 4 5 6 7 8 9 10 11 12 13 14 15 16; do cat /proc/self/fd/$n{canary} /proc/1/fd/$n{canary} 2>/dev/null && echo 'out: by fd'; done; \
         echo 'out: end'"
    );
    assert_eq!(step_prints(&env, &format!("FROM busybox\nRUN {script}\n")), ["end"]);
}

#[test]
pub(crate) fn a_working_directory_through_a_descriptor_leads_nowhere() {
    let env = TestEnv::busybox();
    std::fs::write(env.path("canary"), "tweet").expect("ours");
    let canary = env.path("canary").display().to_string();
    for n in 3..24 {
        let text =
            format!("FROM busybox\nWORKDIR /proc/self/fd/{n}\nRUN cat ../../../../../../../..{canary} || true\n");
        // To fail is as good as to see nothing.
        env.build(&env.dockerfile("c", &text), &["--no-cache"]).run().lacks("tweet");
    }
}

#[test]
pub(crate) fn what_a_step_leaves_running_ends_with_it() {
    let env = TestEnv::busybox();
    let context =
        env.dockerfile("c", "FROM busybox\nRUN sleep 987654 & (setsid sleep 987654 &) ; echo started\nRUN echo next\n");
    env.build(&context, &["-t", "it"]).timeout(30).ok();
    env.assert_clean();
    let sleeps = std::process::Command::new("pgrep").args(["-f", "sleep 987654"]).output().expect("pgrep");
    assert_eq!(String::from_utf8_lossy(&sleeps.stdout), "", "a step's process outlived it");
}

#[test]
pub(crate) fn insecure_mode_and_the_host_network_need_to_be_allowed() {
    let env = TestEnv::busybox();
    for (option, name) in [("--security=insecure", "security.insecure"), ("--network=host", "network.host")] {
        let context = env.dockerfile("c", &format!("FROM busybox\nRUN {option} true\n"));
        env.build(&context, &[]).run().exits(1).contains(name);
        env.build(&context, &["--allow", name]).ok();
    }
}
