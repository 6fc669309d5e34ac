//! Mounts, what may be written, and what stays in the layer.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;

use executor::spec::EtcFiles;
use executor::stubs::{self, Purpose};
use executor::{Error, Mount, Overlay, Process, Root, Source, Stub};

use crate::lab::{Lab, etc_files};

fn bind(source: PathBuf, destination: &str, readonly: bool) -> Mount {
    let source = Source::Bind { path: source, selector: String::new(), recursive: false };
    Mount { destination: destination.to_owned(), source, readonly }
}

pub(crate) fn changes_go_to_the_upper_directory(lab: &Lab) {
    let done =
        lab.run(lab.script("echo new >/tmp/new; rm /etc/group; mkdir /made; echo more >>/etc/passwd")).expect("run");
    assert!(done.status.success(), "{done:?}");
    let upper = &done.upper;
    assert_eq!(fs::read_to_string(upper.join("tmp/new")).expect("new"), "new\n");
    let whiteout =
        std::os::unix::fs::MetadataExt::rdev(&fs::symlink_metadata(upper.join("etc/group")).expect("whiteout"));
    assert_eq!(whiteout, 0);
    assert!(fs::read_to_string(upper.join("etc/passwd")).expect("whole file").ends_with("more\n"));
    assert!(upper.join("made").is_dir());
    assert!(lab.base().join("etc/group").exists(), "the layer below is untouched");
}

pub(crate) fn many_layers_join_in_order(lab: &Lab) {
    let mut lowers = Vec::new();
    for number in 0..60 {
        let layer =
            lab.path(&format!("layer-with-a-name-as-long-as-a-digest-would-make-it-{}-{number}", "x".repeat(60)));
        fs::create_dir_all(layer.join("all")).expect("mkdir");
        fs::write(layer.join(format!("all/{number}")), "").expect("write");
        fs::write(layer.join("top"), number.to_string()).expect("write");
        lowers.push(layer);
    }
    lowers.push(lab.base().to_owned());
    let root = Root::Overlay(lab.overlay_on(lowers));
    assert_eq!(lab.output(Process::new(root, ["/bin/sh", "-c", "cat /top; echo; ls /all | wc -l"])), "0\n60\n");
}

pub(crate) fn a_directory_serves_as_root(lab: &Lab) {
    let root = lab.path("native");
    assert!(std::process::Command::new("cp").arg("-a").arg(lab.base()).arg(&root).status().expect("cp").success());
    let done = lab.run(Process::new(Root::Bind(root.clone()), ["/bin/sh", "-c", "echo here >/made"])).expect("run");
    assert!(done.status.success(), "{done:?}");
    assert_eq!(fs::read_to_string(root.join("made")).expect("made"), "here\n");
}

pub(crate) fn a_readonly_root_is_readonly_and_its_mounts_are_not(lab: &Lab) {
    let mut process = lab
        .script("touch /x 2>/dev/null || echo refused; touch /tmp/x && echo written; echo >/dev/null && echo device");
    process.readonly_root = true;
    process.mounts = vec![Mount {
        destination: "/tmp".to_owned(),
        source: Source::Tmpfs { size: None, mode: 0o1777 },
        readonly: false,
    }];
    assert_eq!(lab.output(process), "refused\nwritten\ndevice\n");
}

pub(crate) fn files_of_etc_are_mounted_and_leave_no_trace(lab: &Lab) {
    let before = fs::metadata(lab.base().join("etc")).expect("etc").modified().expect("time");
    let mut process = lab.script("cat /etc/resolv.conf /etc/hosts; echo x 2>/dev/null >/etc/hosts || echo refused");
    process.files = etc_files();
    let done = lab.run(process).expect("run");
    assert_eq!(done.stdout, "nameserver 192.0.2.1\n127.0.0.1 localhost\nrefused\n");
    let stub = |path: &str, directory, purpose| Stub { path: path.to_owned(), directory, purpose };
    assert_eq!(
        done.stubs,
        [
            stub("/proc", true, Purpose::Standard),
            stub("/dev", true, Purpose::Standard),
            stub("/sys", true, Purpose::Standard),
            stub("/etc/resolv.conf", false, Purpose::Mount),
            stub("/etc/hosts", false, Purpose::Mount),
        ]
    );
    stubs::remove(&done.upper, &done.stubs).expect("remove");
    let left: Vec<_> = walk(&done.upper);
    assert_eq!(left, ["etc"], "the directory was copied up, with nothing in it");
    assert_eq!(fs::metadata(done.upper.join("etc")).expect("etc").modified().expect("time"), before);

    // A link of the image is followed inside it, and its missing target is made.
    let mut process = lab.script("cat /etc/resolv.conf");
    let upper = lab.changes(&process);
    fs::create_dir_all(upper.join("etc")).expect("mkdir");
    symlink("../run/resolve/stub.conf", upper.join("etc/resolv.conf")).expect("symlink");
    process.files = EtcFiles { resolv_conf: Some(b"linked\n".to_vec()), ..EtcFiles::default() };
    let done = lab.run(process).expect("run");
    assert_eq!(done.stdout, "linked\n");
    let made: Vec<&str> =
        done.stubs.iter().filter(|stub| stub.purpose == Purpose::Mount).map(|stub| stub.path.as_str()).collect();
    assert_eq!(made, ["/run", "/run/resolve", "/run/resolve/stub.conf"]);
    stubs::remove(&done.upper, &done.stubs).expect("remove");
    assert_eq!(walk(&done.upper), ["etc", "etc/resolv.conf"]);
}

fn walk(directory: &std::path::Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut todo = vec![directory.to_owned()];
    while let Some(path) = todo.pop() {
        for entry in fs::read_dir(&path).expect("list") {
            let entry = entry.expect("entry");
            found.push(entry.path().strip_prefix(directory).expect("below").to_string_lossy().into_owned());
            if entry.file_type().expect("kind").is_dir() {
                todo.push(entry.path());
            }
        }
    }
    found.sort();
    found
}

pub(crate) fn binds_are_mounted_with_their_attributes(lab: &Lab) {
    let source = lab.path("source");
    fs::create_dir_all(source.join("sub")).expect("mkdir");
    fs::write(source.join("sub/file"), "content\n").expect("write");
    let mut process = lab.script(
        "cat /a/b/sub/file; touch /a/b/x 2>/dev/null || echo refused; echo changed >/rw/made; cat /one; cat /sel",
    );
    process.mounts = vec![
        bind(source.clone(), "/a/b", true),
        bind(source.clone(), "rw", false),
        bind(source.join("sub/file"), "/one", true),
        Mount {
            destination: "/sel".to_owned(),
            source: Source::Bind { path: source.clone(), selector: "/sub/file".to_owned(), recursive: false },
            readonly: true,
        },
    ];
    let done = lab.run(process).expect("run");
    assert_eq!(done.stdout, "content\nrefused\ncontent\ncontent\n", "{done:?}");
    assert_eq!(fs::read_to_string(source.join("made")).expect("made"), "changed\n");
    stubs::remove(&done.upper, &done.stubs).expect("remove");
    assert_eq!(walk(&done.upper), Vec::<String>::new());
}

/// CVE-2024-23651, CVE-2024-11218, CVE-2024-1753: a link in the source, or in the way to the destination, leads to the host.
pub(crate) fn links_lead_nowhere_but_inside(lab: &Lab) {
    let (source, canary) = (lab.path("hostile"), lab.path("canary"));
    fs::create_dir_all(&source).expect("mkdir");
    fs::create_dir_all(&canary).expect("mkdir");
    fs::write(canary.join("secret"), "secret").expect("write");
    symlink(&canary, source.join("out")).expect("symlink");
    symlink("../canary", source.join("up")).expect("symlink");
    symlink("/proc/self/root", source.join("magic")).expect("symlink");
    for selector in ["out", "up", "magic", "out/secret", "../canary"] {
        let mut process = lab.script("ls -R /mnt");
        let source = Source::Bind { path: source.clone(), selector: selector.to_owned(), recursive: false };
        process.mounts = vec![Mount { destination: "/mnt".to_owned(), source, readonly: true }];
        assert!(matches!(lab.run(process), Err(Error::Mount { .. })), "{selector}");
    }
    // The destination is a link to the outside: it resolves inside the image.
    let mut process = lab.script(&format!("cat {}/sub", canary.display()));
    symlink(&canary, lab.changes(&process).join("trap")).expect("symlink");
    fs::write(source.join("sub"), "inside").expect("write");
    process.mounts = vec![bind(source.clone(), "/trap", false)];
    assert_eq!(lab.output(process), "inside");
    assert_eq!(fs::read_to_string(canary.join("secret")).expect("canary"), "secret");
    assert_eq!(fs::read_dir(&canary).expect("list").count(), 1);
    // /proc as a link: nothing is mounted anywhere.
    let process = lab.script("true");
    symlink(&canary, lab.changes(&process).join("proc")).expect("symlink");
    assert!(matches!(lab.run(process), Err(Error::Sandbox { .. })));
}

pub(crate) fn secrets_are_in_memory_with_mode_and_owner(lab: &Lab) {
    let mut process = lab.script(
        "cat /run/secrets/key; stat -c '%a %u:%g' /run/secrets/key; echo x 2>/dev/null >/run/secrets/key || echo refused
         grep -c ' /run/secrets/key .*tmpfs' /proc/self/mountinfo",
    );
    process.user = "anna".to_owned();
    let source = Source::File { content: b"hidden\n".to_vec(), mode: 0o400, uid: 1000, gid: 1001 };
    process.mounts = vec![Mount { destination: "/run/secrets/key".to_owned(), source, readonly: true }];
    let done = lab.run(process).expect("run");
    assert_eq!(done.stdout, "hidden\n400 1000:1001\nrefused\n1\n", "{done:?}");
    stubs::remove(&done.upper, &done.stubs).expect("remove");
    assert_eq!(walk(&done.upper), Vec::<String>::new());
}

pub(crate) fn views_of_layers_take_writes_that_are_thrown_away(lab: &Lab) {
    let layer = lab.path("view");
    fs::create_dir_all(layer.join("part")).expect("mkdir");
    fs::write(layer.join("part/file"), "old\n").expect("write");
    let writable = lab.overlay_on(vec![layer.clone()]);
    let changes = writable.changes.clone().expect("changes");
    let view = |overlay: Overlay, selector: &str| Source::Overlay { overlay, selector: selector.to_owned() };
    let mut process =
        lab.script("echo new >/rw/file; cat /rw/file /ro/part/file; touch /ro/x 2>/dev/null || echo refused; ls /both");
    let mount = |destination: &str, source| Mount { destination: destination.to_owned(), source, readonly: false };
    process.mounts = vec![
        mount("/rw", view(writable, "part")),
        mount("/ro", view(Overlay { lowers: vec![layer.clone()], changes: None }, "")),
        mount("/both", view(Overlay { lowers: vec![layer.clone(), lab.base().to_owned()], changes: None }, "/")),
    ];
    assert_eq!(lab.output(process), "new\nold\nrefused\nbin\netc\nhome\npart\ntmp\n");
    assert_eq!(fs::read_to_string(layer.join("part/file")).expect("layer"), "old\n");
    assert_eq!(fs::read_to_string(changes.upper.join("part/file")).expect("upper"), "new\n");
}

pub(crate) fn a_memory_file_system_has_its_size_and_mode(lab: &Lab) {
    let mut process = lab.script(
        "stat -c %a /cache; dd if=/dev/zero of=/cache/x bs=64k count=99 2>/dev/null || echo full; stat -c %s /cache/x",
    );
    process.mounts = vec![Mount {
        destination: "/cache".to_owned(),
        source: Source::Tmpfs { size: Some(128 << 10), mode: 0o750 },
        readonly: false,
    }];
    assert_eq!(lab.output(process), "750\nfull\n131072\n");
}

pub(crate) fn a_mount_that_cannot_be_is_told(lab: &Lab) {
    for (source, text) in [(lab.path("missing"), "No such file"), (lab.base().join("etc/passwd"), "directory")] {
        let mut process = lab.script("true");
        process.mounts = vec![bind(source, "/tmp", false)];
        let error = lab.run(process).expect_err("refused");
        assert!(error.to_string().starts_with("cannot mount on \"/tmp\": "), "{error}");
        assert!(error.to_string().contains(text), "{error}");
    }
    let overlay = Overlay { lowers: vec![lab.path("missing")], changes: None };
    let error = lab.run(Process::new(Root::Overlay(overlay), ["true"])).expect_err("no root");
    assert!(error.to_string().contains("mount the root file system"), "{error}");
}

pub(crate) fn ownership_and_modes_survive(lab: &Lab) {
    let done = lab.run(lab.script("touch /f; chown 5:6 /f; chmod 4755 /f; mknod /node c 1 3; ln /f /g")).expect("run");
    assert!(done.status.success(), "{done:?}");
    let file = fs::metadata(done.upper.join("f")).expect("f");
    use std::os::unix::fs::MetadataExt;
    assert_eq!((file.uid(), file.gid(), file.permissions().mode() & 0o7777, file.nlink()), (5, 6, 0o4755, 2));
    assert_eq!(fs::metadata(done.upper.join("node")).expect("node").rdev(), 0x103);
}

/// CVE-2019-16884 and its kin.
pub(crate) fn nothing_is_mounted_inside_proc(lab: &Lab) {
    for destination in ["/proc", "/proc/self/attr", "/proc/sys"] {
        let mut process = lab.script("true");
        process.mounts = vec![bind(lab.base().to_owned(), destination, false)];
        assert!(matches!(lab.run(process), Err(Error::Mount { .. })), "{destination}");
    }
}

/// Environment variable that makes this program use older calls.
pub(crate) const FALLBACKS: &str = "RBUILD_TEST_FALLBACKS";

pub(crate) fn older_ways_work_too(_: &Lab) {
    for calls in ["strings", "classic"] {
        let output = std::process::Command::new(std::env::current_exe().expect("own path"))
            .env(FALLBACKS, calls)
            .args([
                "changes_go_to_the_upper",
                "many_layers",
                "views_of_layers",
                "files_of_etc",
                "readonly_root",
                "memory_is_limited",
                "exit_codes",
                "our_own",
            ])
            .output()
            .expect("start");
        let text = String::from_utf8_lossy(&output.stdout);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && text.contains("8 passed"), "{calls}: {text}{errors}");
    }
}
