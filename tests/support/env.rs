//! A place of its own for each test: store, home, configuration, contexts.

use std::cell::Cell;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::base::{busybox_base, debian_base};
use super::leftovers::assert_nothing_left_behind;
use super::run::Run;
use super::tier::Tier;

/// The environment of one test. Dropped at the end of a test that passed, it checks that nothing is left on the machine.
pub struct TestEnv {
    dir: TempDir,
    checked: Cell<bool>,
    tier: Tier,
}

impl TestEnv {
    /// An empty store.
    pub fn new() -> Self {
        super::peers::end_of_probe();
        let dir = tempfile::Builder::new().prefix("rbuild-e2e-").tempdir().expect("a temporary directory");
        for sub in ["store", "home", "home/.docker", "run", "tmp"] {
            fs::create_dir(dir.path().join(sub)).expect("a fresh directory");
        }
        // Some tools want the file as soon as its directory is named.
        fs::write(dir.path().join("home/.docker/config.json"), "{}\n").expect("a fresh directory");
        // An ordinary user's mapped ids must be able to pass through.
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o711)).expect("our directory");
        let tier = Tier::current();
        tier.prepare(dir.path());
        Self { dir, checked: Cell::new(false), tier }
    }

    /// A store with `busybox:latest`: a shell and its tools, 2 MB.
    pub fn busybox() -> Self {
        let env = Self::new();
        env.rbuild(["import"]).arg(env.reachable(&busybox_base().tar)).arg("busybox:latest").ok();
        env
    }

    /// A store with `debian:bookworm-slim`, made from Debian packages.
    pub fn debian() -> Self {
        let env = Self::new();
        env.rbuild(["import"]).arg(env.reachable(&debian_base().tar)).arg("debian:bookworm-slim").timeout(180).ok();
        env
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.dir.path().join(name)
    }

    /// What RBUILD_ROOT says.
    pub fn store(&self) -> PathBuf {
        self.path("store")
    }

    /// A build context, filled by the methods of [`Context`].
    pub fn context(&self, name: &str) -> Context {
        let dir = self.path(name);
        fs::create_dir_all(&dir).expect("our directory");
        self.tier.own(&dir);
        Context { dir, tier: self.tier }
    }

    /// A context that is a Dockerfile.
    pub fn dockerfile(&self, name: &str, text: &str) -> Context {
        self.context(name).file("Dockerfile", text)
    }

    /// The real binary with `args`.
    pub fn rbuild<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Run {
        let (program, before) = self.command();
        self.program(program).args(before).args(args)
    }

    /// What starts rbuild: a program, and its first arguments.
    pub fn command(&self) -> (OsString, Vec<OsString>) {
        self.tier.command(self.dir())
    }

    /// A file outside of this environment, where its rbuild can read it.
    pub fn reachable(&self, file: &Path) -> PathBuf {
        self.tier.reachable(file, self.dir())
    }

    /// What rights rbuild has here.
    pub fn tier(&self) -> Tier {
        self.tier
    }

    /// `rbuild build --progress plain ARGS CONTEXT`.
    pub fn build(&self, context: &Context, args: &[&str]) -> Run {
        self.rbuild(["build", "--progress", "plain"]).args(args).arg(context.dir())
    }

    /// `rbuild run IMAGE COMMAND…`.
    pub fn run(&self, image: &str, command: &[&str]) -> Run {
        self.rbuild(["run", image]).args(command)
    }

    /// Another program in the same clean environment.
    pub fn program(&self, program: impl AsRef<OsStr>) -> Run {
        Run::new(program)
            .cwd(self.dir())
            .env("HOME", self.path("home"))
            .env("TMPDIR", self.path("tmp"))
            .env("XDG_RUNTIME_DIR", self.path("run"))
            .env("DOCKER_CONFIG", self.path("home/.docker"))
            .env("RBUILD_ROOT", self.store())
            .env("RBUILD_CONFIG", self.config())
    }

    /// The configuration file of this test, empty unless [`Self::configure`] wrote it.
    fn config(&self) -> PathBuf {
        let file = self.path("rbuild.toml");
        if !file.exists() {
            fs::write(&file, "").expect("our directory");
        }
        file
    }

    /// Writes the configuration file.
    pub fn configure(&self, toml: &str) {
        fs::write(self.path("rbuild.toml"), toml).expect("our directory");
    }

    /// Fails when a process, mount or namespace of this test is still there.
    #[track_caller]
    pub fn assert_clean(&self) {
        self.checked.set(true);
        assert_nothing_left_behind(self.dir());
    }
}

impl Drop for TestEnv {
    fn drop(&mut self) {
        if !std::thread::panicking() && !self.checked.get() {
            assert_nothing_left_behind(self.dir.path());
        }
    }
}

/// A build context on disk.
#[derive(Clone)]
pub struct Context {
    dir: PathBuf,
    tier: Tier,
}

impl Context {
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// A file; its directories come into being.
    pub fn file(self, name: &str, content: impl AsRef<[u8]>) -> Self {
        self.write(name, content);
        self
    }

    /// A file with a mode.
    pub fn mode(self, name: &str, mode: u32, content: impl AsRef<[u8]>) -> Self {
        self.write(name, content);
        fs::set_permissions(self.dir.join(name), fs::Permissions::from_mode(mode)).expect("our file");
        self
    }

    pub fn link(self, name: &str, target: &str) -> Self {
        symlink(target, self.dir.join(name)).expect("our directory");
        self
    }

    /// As [`Self::file`], later.
    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        let file = self.dir.join(name);
        fs::create_dir_all(file.parent().expect("a file has a parent")).expect("our directory");
        fs::write(&file, content).expect("our directory");
        file.ancestors().take_while(|above| **above != *self.dir).for_each(|above| self.tier.own(above));
    }

    pub fn remove(&self, name: &str) {
        fs::remove_file(self.dir.join(name)).expect("our file");
    }

    /// Sets the time of last modification, and nothing else.
    pub fn touch(&self, name: &str, seconds: u64) {
        let time = rustix::fs::Timespec { tv_sec: i64::try_from(seconds).expect("a year we live in"), tv_nsec: 0 };
        let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
        let flags = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
        rustix::fs::utimensat(rustix::fs::CWD, self.dir.join(name), &times, flags).expect("our file");
    }
}
