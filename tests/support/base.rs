//! Root file systems to build upon, made by the project itself from Debian packages, once per target directory.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use sha2::{Digest as _, Sha256};

use super::peers::find;

/// A base as a tar of a root file system.
#[derive(Clone)]
pub struct Base {
    pub tar: PathBuf,
}

/// busybox and its links, 2 MB: what nearly all tests build upon.
#[track_caller]
pub fn busybox_base() -> Base {
    let binary = find("busybox").expect("busybox is missing: apt-get install busybox-static");
    let bytes = fs::read(&binary).expect("busybox can be read");
    let dir = bases();
    let tar = dir.join(format!("busybox-{}.tar", recipe(&bytes)));
    locked(&dir, || {
        if tar.exists() {
            return;
        }
        let part = tar.with_extension("part");
        write_busybox(&part, &bytes, applets().iter().map(String::as_str)).expect("the target directory is writable");
        fs::rename(&part, &tar).expect("the target directory is writable");
    });
    Base { tar }
}

/// A slim Debian bookworm; `make-base.sh` takes a minute the first time and its own lock.
#[track_caller]
pub fn debian_base() -> Base {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/make-base.sh");
    let output = Command::new(script).arg(bases()).output().expect("the script can be run");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "no Debian base could be made:\n{stderr}");
    Base { tar: PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()) }
}

/// busybox and its links for another architecture, as Debian names it, of Debian's package.
#[track_caller]
pub fn foreign_base(architecture: &str) -> Base {
    let dir = bases();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/foreign-busybox.sh");
    let output = Command::new(script).arg(&dir).arg(architecture).output().expect("the script can be run");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "no busybox for {architecture}:\n{stderr}");
    let bytes = fs::read(String::from_utf8_lossy(&output.stdout).trim()).expect("just made");
    let tar = dir.join(format!("busybox-{architecture}-{}.tar", recipe(&bytes)));
    locked(&dir, || {
        if !tar.exists() {
            let part = tar.with_extension("part");
            write_busybox(&part, &bytes, applets().iter().map(String::as_str))
                .expect("the target directory is writable");
            fs::rename(&part, &tar).expect("the target directory is writable");
        }
    });
    Base { tar }
}

/// What this machine's busybox can do; another architecture's of the same release does no less.
fn applets() -> Vec<String> {
    let binary = find("busybox").expect("busybox is missing: apt-get install busybox-static");
    let list = Command::new(&binary).arg("--list").output().expect("busybox runs").stdout;
    String::from_utf8(list).expect("applets are ASCII").lines().map(str::to_owned).collect()
}

/// Made again when the binary or this recipe is another one.
fn recipe(binary: &[u8]) -> String {
    let mut recipe = binary.to_owned();
    recipe.extend_from_slice(include_bytes!("base.rs"));
    hex::encode(Sha256::digest(&recipe))[..12].to_owned()
}

/// Beside the target directory's other things, as the scripts have it.
fn bases() -> PathBuf {
    let mut target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("tmp lies in the target directory");
    // With `build.target` set, cargo puts the triple in between.
    if target.file_name().is_some_and(|name| name.to_string_lossy().contains("-linux-")) {
        target = target.parent().expect("so does the triple's directory");
    }
    let dir = target.join("bases");
    fs::create_dir_all(&dir).expect("the target directory is writable");
    dir
}

fn locked(dir: &Path, make: impl FnOnce()) {
    let file = File::create(dir.join(".busybox.lock")).expect("the target directory is writable");
    file.lock().expect("the file system has locks");
    make();
}

fn write_busybox<'a>(path: &Path, busybox: &[u8], applets: impl Iterator<Item = &'a str>) -> std::io::Result<()> {
    let mut tar = tar::Builder::new(File::create(path)?);
    let mut entry = |name: &str, kind: tar::EntryType, mode: u32, body: &[u8], link: Option<&str>| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_700_000_000);
        header.set_size(body.len() as u64);
        match link {
            Some(target) => tar.append_link(&mut header, name, target),
            None => tar.append_data(&mut header, name, body),
        }
    };
    for dir in ["bin/", "dev/", "etc/", "home/", "proc/", "root/", "sys/", "usr/", "usr/bin/", "usr/sbin/", "var/"] {
        entry(dir, tar::EntryType::Directory, 0o755, b"", None)?;
    }
    entry("tmp/", tar::EntryType::Directory, 0o1777, b"", None)?;
    entry("bin/busybox", tar::EntryType::Regular, 0o755, busybox, None)?;
    for applet in applets.filter(|a| *a != "busybox") {
        entry(&format!("bin/{applet}"), tar::EntryType::Symlink, 0o777, b"", Some("busybox"))?;
    }
    entry("usr/bin/env", tar::EntryType::Symlink, 0o777, b"", Some("/bin/env"))?;
    let passwd = b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\nweb:x:1000:1001:web:/home/web:/bin/sh\n";
    entry("etc/passwd", tar::EntryType::Regular, 0o644, passwd, None)?;
    let group = b"root:x:0:\nnogroup:x:65534:\nweb:x:1001:\nstaff:x:50:web\nextra:x:2000:web,root\n";
    entry("etc/group", tar::EntryType::Regular, 0o644, group, None)?;
    tar.into_inner()?.sync_all()
}
