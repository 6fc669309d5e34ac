//! What a step can see and do of what is outside.

use std::fs;

use executor::spec::{Resource, Rlimit};
use executor::{Network, Process, WindowSize};

use crate::lab::{Lab, compile};

pub(crate) fn the_first_process_is_the_steps_own(lab: &Lab) {
    let process = lab.script("echo $$; readlink /proc/1/exe; cat /proc/1/cmdline | tr '\\0' ' '; echo; ls /proc/1/fd; ls -d /proc/[0-9]*; cat /proc/1/environ | tr '\\0' '\\n'");
    let text = lab.output(process);
    // The shell is 1; what it lists by is the only other process.
    assert!(text.starts_with("1\n/bin/busybox\n/bin/sh -c "), "{text}");
    assert!(text.contains("\n0\n1\n2\n/proc/1\n"), "no descriptors but the standard ones: {text}");
    assert!(!text.contains("launcher") && !text.contains("CARGO"), "{text}");
}

pub(crate) fn capabilities_are_dockers(lab: &Lab) {
    let status = |process: Process| {
        let text = lab.output(process);
        let field = |name: &str| {
            text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(":\t")).expect(name).to_owned()
        };
        ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp"].map(field)
    };
    let (none, docker) = ("0000000000000000", "00000000a80425fb");
    assert_eq!(status(lab.process(["cat", "/proc/self/status"])), [none, docker, docker, docker, none, "0", "2"]);
    let mut process = lab.process(["cat", "/proc/self/status"]);
    process.user = "anna".to_owned();
    process.no_new_privileges = true;
    assert_eq!(status(process), [none, none, none, docker, none, "1", "2"]);
    let ours = fs::read_to_string("/proc/self/status").expect("status");
    let ours = ours.lines().find_map(|line| line.strip_prefix("CapPrm:\t")).expect("CapPrm");
    let insecure = status(lab.process(["cat", "/proc/self/status"]).insecure());
    assert_eq!(insecure[1..4], [ours, ours, ours]);
    assert_eq!(insecure[6], "0");
}

pub(crate) fn what_tells_about_the_machine_is_hidden(lab: &Lab) {
    let script = "for path in /proc/keys /proc/timer_list /proc/interrupts /proc/kcore; do
            test -e $path && { cat $path >/dev/null || echo 'a cover cannot be read'; }
            test -e $path && test -n \"$(head -c 10 $path)\" && echo \"$path can be read\"
        done
        for path in /proc/acpi /proc/scsi /sys/firmware; do
            test -d $path && test -n \"$(ls $path)\" && echo \"$path is not empty\"
        done
        for path in /proc/sys/kernel/hostname /proc/sys/kernel/core_pattern /sys/kernel/uevent_seqnum /proc/irq/default_smp_affinity; do
            test -e $path && echo x 2>/dev/null >$path && echo \"$path can be written\"
        done
        mkdir /sys/fs/cgroup/mine 2>/dev/null && echo 'groups can be made'
        echo x 2>/dev/null >/proc/acpi/x && echo 'the cover can be written'
        true";
    assert_eq!(lab.output(lab.script(script)), "");
}

pub(crate) fn devices_are_the_few_harmless_ones(lab: &Lab) {
    let text = lab.output(lab.script(
        "cd /dev; echo $(ls); stat -c '%n %t:%T %a' null zero full random urandom tty; readlink ptmx; readlink fd
         echo gone >null; head -c 4 zero | wc -c; echo shared >shm/x && cat shm/x; stat -c %a shm
         df -k shm | tail -1 | tr -s ' ' | cut -d' ' -f1-2; sed -n 's/.* \\(.dev[^ ]*\\) .* - \\([a-z]*\\) .*/\\1 \\2/p' /proc/self/mountinfo",
    ));
    let want = "core fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero\n\
                null 1:3 666\nzero 1:5 666\nfull 1:7 666\nrandom 1:8 666\nurandom 1:9 666\ntty 5:0 666\n\
                pts/ptmx\n/proc/self/fd\n4\nshared\n1777\nshm 65536\n\
                /dev tmpfs\n/dev/pts devpts\n/dev/shm tmpfs\n/dev/mqueue mqueue\n";
    // The nodes are mounted one by one; in a user namespace they are the host's.
    let nodes = ["null", "zero", "full", "random", "urandom", "tty"].map(|name| format!("/dev/{name} "));
    let is_node = |line: &str| nodes.iter().any(|node| line.starts_with(node.as_str()));
    let text: String = text.lines().filter(|line| !is_node(line)).map(|line| format!("{line}\n")).collect();
    assert_eq!(text, want);
}

pub(crate) fn nodes_that_a_step_makes_cannot_be_opened(lab: &Lab) {
    // Even the harmless: what holds for the null device holds for the machine's disks.
    let text = lab.output(lab.script(
        "for dir in / /dev /dev/shm /tmp; do mknod $dir/made c 1 3 2>/dev/null; chmod 666 $dir/made 2>/dev/null
         [ -c $dir/made ] && (echo x >$dir/made) 2>/dev/null && echo opened $dir/made; done; echo x >/dev/null; echo end",
    ));
    assert_eq!(text, "end\n");
    let privileged = lab.script("if mknod /made c 1 3 2>/dev/null; then echo x >/made; fi; echo end").insecure();
    assert_eq!(lab.output(privileged), "end\n");
}

pub(crate) fn without_network_there_is_loopback_only(lab: &Lab) {
    // Three times: made on the spot, and out of the pool.
    for _ in 0..3 {
        let text = lab.output(lab.script("cd /sys/class/net; ls; cat lo/flags; ip addr show lo | grep -c 127.0.0.1"));
        assert_eq!(text, "lo\n0x9\n1\n");
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    let mut process = lab.process(["ls", "/sys/class/net"]);
    process.network = Network::Host;
    let mut ours: Vec<String> = fs::read_dir("/sys/class/net")
        .expect("list")
        .map(|entry| entry.expect("entry").file_name().to_string_lossy().into_owned())
        .collect();
    ours.sort();
    assert_eq!(lab.output(process).lines().collect::<Vec<_>>(), ours);
}

/// Making a network costs more than a step. One is used again only where the next step cannot tell.
pub(crate) fn a_network_is_used_again_when_nothing_is_left_in_it(lab: &Lab) {
    let number = "readlink /proc/self/ns/net";
    let used_by = |process: Process| lab.output(process).lines().last().map(str::to_owned).expect("a namespace");
    // The first ones are made on the spot, while another is made ahead.
    let again = (0..200).find_map(|_| {
        let first = used_by(lab.script(number));
        (used_by(lab.script(number)) == first).then_some(first)
    });
    let ours = again.expect("a network that is used again");
    let connection = format!(
        "nc -l -p 80 >/dev/null & i=0; until echo x | nc 127.0.0.1 80 || [ $((i += 1)) = 100 ]; do sleep 0.1; done
        i=0; until grep -q ' 06 ' /proc/net/tcp /proc/net/tcp6; do [ $((i += 1)) = 100 ] && echo 'no connection waits' && break; sleep 0.1; done
        {number}"
    );
    let text = lab.output(lab.script(&connection));
    assert_eq!(text.trim(), ours, "the connection's step has it, too");
    let next = used_by(lab.script(number));
    assert_ne!(next, ours, "an address that is not free again would be in the next step's way");
    let changed = used_by(lab.script(number).insecure());
    assert_ne!(used_by(lab.script(number)), changed, "one who may change a network has it alone");
}

pub(crate) fn names_and_limits_are_the_steps_own(lab: &Lab) {
    let mut process = lab.script(
        "hostname; umask; ulimit -n; ulimit -c; cat /proc/sys/kernel/random/boot_id >/dev/null && echo readable",
    );
    process.hostname = "builder".to_owned();
    process.rlimits = vec![
        Rlimit { resource: Resource::Nofile, soft: Some(512), hard: Some(1 << 40) },
        Rlimit { resource: Resource::Core, soft: Some(0), hard: Some(0) },
    ];
    assert_eq!(lab.output(process), "builder\n0022\n512\n0\nreadable\n");
    assert_ne!(fs::read_to_string("/proc/sys/kernel/hostname").expect("hostname"), "builder\n");
}

const PROBE: &str = r#"
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sched.h>
#include <unistd.h>
#include <sys/syscall.h>
int main(int count, char **arguments) {
    long a[6] = {0};
    for (int i = 2; i < count && i < 8; i++) a[i - 2] = strtol(arguments[i], 0, 0);
    errno = 0;
    long r = syscall(strtol(arguments[1], 0, 0), a[0], a[1], a[2], a[3], a[4], a[5]);
    printf("%s\n", r >= 0 ? "ok" : errno == EPERM ? "EPERM" : errno == ENOSYS ? "ENOSYS" : "other");
    return 0;
}
"#;

pub(crate) fn dangerous_system_calls_are_refused(lab: &Lab) {
    let Some(program) = compile(lab, "probe", PROBE, &[]) else { return };
    let call = |number: i64, arguments: &str| format!("/probe {number} {arguments}");
    #[cfg(target_arch = "x86_64")]
    let calls = [
        (call(libc::SYS_mount, "0 0 0 0 0"), "EPERM"),
        (call(libc::SYS_umount2, "0 0"), "EPERM"),
        (call(libc::SYS_keyctl, "0 0 0"), "EPERM"),
        (call(libc::SYS_add_key, "0 0 0 0 0"), "EPERM"),
        (call(libc::SYS_io_uring_setup, "1 0"), "EPERM"),
        (call(libc::SYS_userfaultfd, "0"), "EPERM"),
        (call(libc::SYS_bpf, "0 0 0"), "EPERM"),
        (call(libc::SYS_perf_event_open, "0 0 0 0 0"), "EPERM"),
        (call(libc::SYS_unshare, "0x10000000"), "EPERM"),
        (call(libc::SYS_clone, "0x10000011 0 0 0 0"), "EPERM"),
        (call(libc::SYS_clone3, "0 0"), "ENOSYS"),
        (call(libc::SYS_setns, "0 0"), "EPERM"),
        (call(libc::SYS_reboot, "0 0 0 0"), "EPERM"),
        (call(libc::SYS_init_module, "0 0 0"), "EPERM"),
        (call(libc::SYS_open_by_handle_at, "0 0 0"), "EPERM"),
        (call(libc::SYS_personality, "0x40000"), "EPERM"),
        (call(libc::SYS_socket, "38 5 0"), "EPERM"),
        (call(libc::SYS_socket, "0x100000026 5 0"), "EPERM"),
        (call(9999, ""), "ENOSYS"),
        (call(0x4000_0000 + 39, ""), "ENOSYS"),
        (call(libc::SYS_getpid, ""), "ok"),
        (call(libc::SYS_personality, "0xffffffff"), "ok"),
        (call(libc::SYS_socket, "1 1 0"), "ok"),
        (call(libc::SYS_chroot, "0"), "other"),
        (call(libc::SYS_mknod, "0 0 0"), "other"),
    ];
    #[cfg(not(target_arch = "x86_64"))]
    let calls = [
        (call(libc::SYS_mount, "0 0 0 0 0"), "EPERM"),
        (call(libc::SYS_unshare, "0x10000000"), "EPERM"),
        (call(libc::SYS_clone3, "0 0"), "ENOSYS"),
        (call(libc::SYS_getpid, ""), "ok"),
    ];
    let process = lab.script(&calls.each_ref().map(|(call, _)| call.clone()).join("\n"));
    fs::copy(program, lab.changes(&process).join("probe")).expect("copy");
    let text = lab.output(process);
    let got: Vec<_> = calls.iter().map(|(call, _)| call).zip(text.lines()).collect();
    let want: Vec<_> = calls.iter().map(|(call, want)| (call, *want)).collect();
    assert_eq!(got, want);
}

pub(crate) fn programs_of_32_bits_run_under_the_filter(lab: &Lab) {
    if !cfg!(target_arch = "x86_64") {
        eprintln!("SKIPPED: programs of 32 bits are tried on x86_64 only");
        return;
    }
    // write(1, "32\n", 3); mount(0, ...): exit with what mount answered, negated.
    let source = r#"void _start(void) {
        int result;
        __asm__ volatile("int $0x80" : "=a"(result) : "a"(4), "b"(1), "c"("32\n"), "d"(3) : "memory");
        __asm__ volatile("int $0x80" : "=a"(result) : "a"(21), "b"(0), "c"(0), "d"(0), "S"(0), "D"(0) : "memory");
        __asm__ volatile("int $0x80" : : "a"(1), "b"(-result) : "memory");
        for (;;) {}
    }"#;
    let flags = ["-m32", "-nostdlib", "-fno-pic", "-no-pie", "-fno-stack-protector"];
    let Some(program) = compile(lab, "small", source, &flags) else { return };
    let process = lab.process(["/small"]);
    fs::copy(program, lab.changes(&process).join("small")).expect("copy");
    let done = lab.run(process).expect("start");
    assert_eq!((done.stdout.as_str(), done.status.code), ("32\n", Some(libc::EPERM)), "{done:?}");
}

/// CVE-2019-5736: a script names /proc/self/exe as its interpreter and would get the runtime's program to write to.
pub(crate) fn our_own_program_cannot_be_reached_for_writing(lab: &Lab) {
    let own = std::env::current_exe().expect("own path");
    let before = fs::read(&own).expect("own program");
    let process = lab.process(["/evil"]);
    let upper = lab.changes(&process);
    fs::write(upper.join("evil"), "#!/proc/self/exe --list\n").expect("write");
    fs::set_permissions(upper.join("evil"), std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("chmod");
    let done = lab.run(process).expect("our program itself runs, as this test runner with nothing but a list to print");
    assert!(done.stdout.contains("our_own_program_cannot_be_reached_for_writing: test"), "{done:?}");
    // While it runs inside, its file is in a mount that cannot be written, whatever the file's mode.
    let pid = lab.launcher.pid().expect("there is one");
    let error = fs::OpenOptions::new().write(true).open(format!("/proc/{pid}/exe")).expect_err("read-only");
    assert!(matches!(error.raw_os_error(), Some(libc::EROFS | libc::ETXTBSY | libc::EACCES)), "{error}");
    if let Ok(inside) = fs::read_link(format!("/proc/{pid}/exe")) {
        assert_ne!(inside, own, "a view of its own");
    }
    assert_eq!(fs::read(&own).expect("own program"), before);
}

const OUTSIDE: &str = r#"
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>
int main(void) {
    struct sockaddr_un to = { .sun_family = AF_UNIX, .sun_path = "/socket" };
    char byte, space[CMSG_SPACE(sizeof(int))];
    struct iovec data = { &byte, 1 };
    struct msghdr message = { .msg_iov = &data, .msg_iovlen = 1, .msg_control = space, .msg_controllen = sizeof space };
    int s = socket(AF_UNIX, SOCK_STREAM, 0), outside;
    if (connect(s, (void *)&to, sizeof to) || recvmsg(s, &message, 0) != 1 || !CMSG_FIRSTHDR(&message)) return 1;
    memcpy(&outside, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof outside);
    struct stat stat;
    if (fstatat(outside, "canary", &stat, 0)) return 2;
    if (syscall(444, 0, 0, 1) < 1) { puts("no Landlock"); return 0; }
    if (openat(outside, ".", O_RDONLY | O_DIRECTORY) >= 0) puts("listed");
    if (openat(outside, "canary", O_WRONLY) >= 0) puts("written");
    if (openat(outside, "new", O_WRONLY | O_CREAT, 0600) >= 0) puts("made");
    if (!mkdirat(outside, "directory", 0700)) puts("made a directory");
    if (!symlinkat("/", outside, "link")) puts("linked");
    if (!linkat(outside, "canary", AT_FDCWD, "/canary", 0)) puts("taken along");
    if (!renameat(outside, "canary", outside, "other")) puts("renamed");
    if (!unlinkat(outside, "canary", 0)) puts("removed");
    puts("end");
    return 0;
}
"#;

/// CVE-2024-21626 and its like: a descriptor of a directory outside comes into a step, here by a socket.
pub(crate) fn a_directory_that_leads_out_cannot_be_listed_or_changed(lab: &Lab) {
    let Some(program) = compile(lab, "outside", OUTSIDE, &[]) else { return };
    let (outside, path) = (lab.path("outside-of-all"), lab.path("socket"));
    fs::create_dir(&outside).expect("mkdir");
    fs::write(outside.join("canary"), "tweet").expect("write");
    let listener = std::os::unix::net::UnixListener::bind(&path).expect("bind");
    let directory = fs::File::open(&outside).expect("open");
    let giver = std::thread::spawn(move || {
        let (stream, _) = listener.accept().expect("the step connects");
        sys::socket::send(&stream, b"x", &[std::os::fd::AsFd::as_fd(&directory)], true).expect("send");
    });
    let mut process = lab.process(["/outside"]);
    fs::copy(program, lab.changes(&process).join("outside")).expect("copy");
    let source = executor::Source::Bind { path, selector: String::new(), recursive: false };
    process.mounts.push(executor::Mount { destination: "/socket".to_owned(), source, readonly: false });
    let text = lab.output(process);
    giver.join().expect("the descriptor was passed");
    if text == "no Landlock\n" {
        eprintln!("SKIPPED: this kernel has no Landlock");
        return;
    }
    assert_eq!(text, "end\n");
    assert_eq!(fs::read_to_string(outside.join("canary")).expect("still there"), "tweet");
    assert_eq!(fs::read_dir(&outside).expect("list").count(), 1);
}

pub(crate) fn an_insecure_step_has_what_was_lifted(lab: &Lab) {
    let process = lab
        .script("mount -t tmpfs none /tmp && echo mounted; unshare -m true && echo unshared; test -w /proc/sys/kernel/hostname && echo writable; test -e /dev/kmsg && echo devices")
        .insecure();
    assert_eq!(lab.output(process), "mounted\nunshared\nwritable\ndevices\n");
}

pub(crate) fn a_terminal_is_the_steps_own(lab: &Lab) {
    let mut process = lab.script("tty; stty size; test -c /dev/console && echo console; read line; echo \"got $line\"; sleep 0.2; stty size; stat -c %u $(tty)");
    process.user = "anna".to_owned();
    let printed = lab.runtime.block_on(async {
        let io = executor::Stdio::Terminal(WindowSize { rows: 24, columns: 80 });
        let mut running = lab.launcher.run(process, io).await.expect("start");
        let terminal = running.terminal().expect("a terminal");
        terminal.resize(WindowSize { rows: 50, columns: 132 }).expect("resize");
        let mut writer = fs::File::from(terminal.try_clone().expect("clone"));
        std::io::Write::write_all(&mut writer, b"hello\n").expect("write");
        let reader = fs::File::from(terminal.try_clone().expect("clone"));
        let read = tokio::task::spawn_blocking(move || {
            let mut text = Vec::new();
            // A terminal ends with an error.
            let _ = std::io::Read::read_to_end(&mut &reader, &mut text);
            String::from_utf8_lossy(&text).replace("\r\n", "\n")
        });
        assert!(running.wait().await.expect("wait").success());
        drop((running, writer));
        read.await.expect("reader")
    });
    assert!(printed.contains("/dev/pts/0\n") && printed.contains("console\n"), "{printed}");
    assert!(printed.contains("got hello\n50 132\n1000\n"), "{printed}");
}
