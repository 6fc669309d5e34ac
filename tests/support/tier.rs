//! What rights rbuild has in a test. A test is written for one that has all; `e2e/tiers.rs` runs many of them again with less,
//! without a change: [`super::TestEnv`] asks here how its rbuild is started.

use std::cell::Cell;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};

use super::base::busybox_base;
use super::run::Run;

/// The ordinary user that tests make.
pub const USER: u32 = 4242;

/// Who rbuild is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tier {
    /// Whoever runs the tests.
    Caller,
    /// An ordinary user with subordinate ids.
    SubordinateIds,
    /// An ordinary user without.
    SingleId,
    /// Root of a container that has lost the rights of root, where namespaces can be made.
    Container,
    /// Root of a container with Docker's filter and capabilities, where none can.
    Bare,
}

thread_local! {
    static CURRENT: Cell<Tier> = const { Cell::new(Tier::Caller) };
}

impl Tier {
    /// Of the test that this thread runs.
    pub(super) fn current() -> Self {
        CURRENT.get()
    }

    /// Runs a test with these rights.
    pub fn run(self, test: fn()) {
        let programs: &[&str] = match self {
            Self::Caller => &[],
            Self::SubordinateIds => &["unshare", "setpriv", "newuidmap"],
            Self::SingleId | Self::Container => &["unshare", "setpriv"],
            Self::Bare => &["busybox"],
        };
        if super::require(programs) && super::require_root() {
            CURRENT.set(self);
            test();
            CURRENT.set(Self::Caller);
        }
    }

    /// Makes ready what this rbuild needs in a test's directory.
    pub(super) fn prepare(self, dir: &Path) {
        if self == Self::Caller {
            return;
        }
        bring(Path::new(env!("CARGO_BIN_EXE_rbuild")), &dir.join("rbuild"));
        match self {
            Self::SubordinateIds | Self::SingleId => {
                let ids = if self == Self::SubordinateIds { "ann:500000:65536\n" } else { "" };
                let users = format!("root:x:0:0::/root:/bin/sh\nann:x:{USER}:{USER}::/nonexistent:/bin/sh\n");
                fs::write(dir.join("passwd"), users).expect("ours");
                fs::write(dir.join("subid"), ids).expect("ours");
                for own in ["", "store", "home", "home/.docker", "run", "tmp"] {
                    chown(dir.join(own), Some(USER), Some(USER)).expect("root may");
                }
            }
            Self::Bare => {
                let outer = Run::new(env!("CARGO_BIN_EXE_rbuild")).arg("--root").arg(dir.join("outer"));
                outer.env("HOME", dir.join("home")).arg("import").arg(&busybox_base().tar).arg("container").ok();
            }
            Self::Caller | Self::Container => {}
        }
    }

    /// Gives a file of a context to who builds.
    pub(super) fn own(self, path: &Path) {
        if matches!(self, Self::SubordinateIds | Self::SingleId) {
            chown(path, Some(USER), Some(USER)).expect("root may");
        }
    }

    /// A file of the test's, where this rbuild can read it.
    pub(super) fn reachable(self, file: &Path, dir: &Path) -> PathBuf {
        if self == Self::Caller {
            return file.to_owned();
        }
        let near = dir.join(file.file_name().expect("a file"));
        bring(file, &near);
        near
    }

    /// The program that starts rbuild, and its first arguments.
    pub(super) fn command(self, dir: &Path) -> (OsString, Vec<OsString>) {
        let d = dir.display();
        let shell = |program: &str, before: &[&str], script: String| {
            let before = before.iter().map(OsString::from);
            let script = [OsString::from("sh"), "-c".into(), script.into(), "rbuild".into()];
            (OsString::from(program), before.chain(script).collect())
        };
        match self {
            Self::Caller => (env!("CARGO_BIN_EXE_rbuild").into(), Vec::new()),
            Self::SubordinateIds | Self::SingleId => shell(
                "unshare",
                &["-m"],
                format!(
                    "mount --bind {d}/passwd /etc/passwd && mount --bind {d}/subid /etc/subuid && mount --bind {d}/subid /etc/subgid && \
                     exec setpriv --reuid={USER} --regid={USER} --clear-groups {d}/rbuild \"$@\""
                ),
            ),
            // A container's /proc is covered in parts.
            Self::Container => shell(
                "unshare",
                &["-m"],
                format!(
                    "mount -t tmpfs none /proc/fs && exec setpriv --bounding-set \
                     -sys_admin,-sys_ptrace,-net_admin,-sys_resource,-dac_read_search --inh-caps -all --no-new-privs {d}/rbuild \"$@\""
                ),
            ),
            Self::Bare => shell(
                "env",
                &[],
                format!(
                    "for name in $(env | sed -n 's/^\\([A-Za-z_][A-Za-z_0-9]*\\)=.*/\\1/p'); do pass=\"$pass -e $name\"; done; \
                     exec {d}/rbuild --root {d}/outer --config /dev/null run -i --network host -v {d}:{d} -w \"$PWD\" $pass container \
                     {d}/rbuild \"$@\""
                ),
            ),
        }
    }
}

/// By a link where that is possible: the binary is large.
fn bring(from: &Path, to: &Path) {
    if !to.exists() && fs::hard_link(from, to).is_err() {
        fs::copy(from, to).expect("our directory");
    }
    let mode = fs::metadata(to).expect("just made").permissions().mode();
    if mode & 0o044 != 0o044 {
        // A link shares its mode with the original, which is not ours to change.
        fs::remove_file(to).and_then(|()| fs::copy(from, to).map(drop)).expect("our directory");
        fs::set_permissions(to, fs::Permissions::from_mode(mode | 0o044)).expect("our file");
    }
}
