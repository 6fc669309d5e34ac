//! A root file system of busybox, and steps on it.

use std::fs;
use std::io::Read;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use executor::spec::{Changes, EtcFiles};
use executor::{Error, ExitStatus, Launcher, Overlay, Process, Root, Stdio, Stub};

/// What every test works with.
pub(crate) struct Lab {
    pub(crate) launcher: Launcher,
    pub(crate) runtime: tokio::runtime::Runtime,
    directory: tempfile::TempDir,
    base: PathBuf,
    count: AtomicUsize,
}

/// What a step left behind.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) stubs: Vec<Stub>,
    pub(crate) upper: PathBuf,
}

const APPLETS: &[&str] = &[
    "sh",
    "cat",
    "chmod",
    "chown",
    "cp",
    "dd",
    "df",
    "echo",
    "env",
    "false",
    "find",
    "grep",
    "head",
    "hostname",
    "id",
    "ip",
    "ifconfig",
    "kill",
    "ln",
    "ls",
    "mkdir",
    "mknod",
    "mount",
    "mountpoint",
    "mv",
    "nc",
    "nproc",
    "ps",
    "pwd",
    "readlink",
    "rm",
    "rmdir",
    "sed",
    "sleep",
    "sort",
    "stat",
    "stty",
    "su",
    "tail",
    "test",
    "touch",
    "tr",
    "true",
    "tty",
    "umount",
    "uname",
    "unshare",
    "wc",
    "yes",
];

impl Lab {
    /// Prepares the root, or says why no step can run here.
    pub(crate) fn new(launcher: Launcher) -> Result<Self, String> {
        let busybox = Path::new("/bin/busybox");
        if !busybox.exists() {
            return Err("/bin/busybox is missing (Debian: busybox-static)".to_owned());
        }
        let directory = tempfile::tempdir().map_err(|error| error.to_string())?;
        // Steps of ordinary users have to get through.
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).map_err(|error| error.to_string())?;
        let base = directory.path().join("base");
        for path in ["bin", "etc", "tmp", "home/anna"] {
            fs::create_dir_all(base.join(path)).map_err(|error| error.to_string())?;
        }
        fs::copy(busybox, base.join("bin/busybox")).map_err(|error| error.to_string())?;
        for applet in APPLETS {
            symlink("busybox", base.join("bin").join(applet)).map_err(|error| error.to_string())?;
        }
        let passwd = "root:x:0:0:root:/root:/bin/sh\nanna:x:1000:1001:Anna:/home/anna:/bin/sh\n";
        let group = "root:x:0:\nwheel:x:10:anna\naudio:x:29:root,anna\nanna:x:1001:\n";
        fs::write(base.join("etc/passwd"), passwd).map_err(|error| error.to_string())?;
        fs::write(base.join("etc/group"), group).map_err(|error| error.to_string())?;
        fs::set_permissions(base.join("tmp"), fs::Permissions::from_mode(0o1777)).map_err(|error| error.to_string())?;
        let runtime =
            tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(|error| error.to_string())?;
        Ok(Self { launcher, runtime, directory, base, count: AtomicUsize::new(0) })
    }

    /// A directory for the test's own files.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The layer that all roots begin with.
    pub(crate) fn base(&self) -> &Path {
        &self.base
    }

    /// A fresh overlay on the base.
    pub(crate) fn overlay(&self) -> Overlay {
        self.overlay_on(vec![self.base.clone()])
    }

    pub(crate) fn overlay_on(&self, lowers: Vec<PathBuf>) -> Overlay {
        let number = self.count.fetch_add(1, Ordering::Relaxed);
        let (upper, work) = (self.path(&format!("upper-{number}")), self.path(&format!("work-{number}")));
        for path in [&upper, &work] {
            fs::create_dir_all(path).expect("mkdir");
        }
        Overlay { lowers, changes: Some(Changes { upper, work }) }
    }

    /// Where a process's changes go, to put something there beforehand.
    pub(crate) fn changes(&self, process: &Process) -> PathBuf {
        match &process.root {
            Root::Overlay(Overlay { changes: Some(changes), .. }) => changes.upper.clone(),
            other => panic!("{other:?} is written in place"),
        }
    }

    /// A process on a fresh overlay.
    pub(crate) fn process<'text>(&self, args: impl IntoIterator<Item = &'text str>) -> Process {
        Process::new(Root::Overlay(self.overlay()), args)
    }

    /// A shell script on a fresh overlay.
    pub(crate) fn script(&self, script: &str) -> Process {
        self.process(["/bin/sh", "-c", script])
    }

    /// Runs a process to its end.
    pub(crate) fn run(&self, process: Process) -> Result<Done, Error> {
        let upper = match &process.root {
            Root::Overlay(Overlay { changes: Some(changes), .. }) => changes.upper.clone(),
            Root::Overlay(_) | Root::Served { .. } => PathBuf::new(),
            Root::Bind(path) => path.clone(),
        };
        let (io, stdout, stderr) = Stdio::piped().expect("pipes");
        self.runtime.block_on(async {
            let mut running = self.launcher.run(process, io).await?;
            let read = |mut pipe: std::io::PipeReader| {
                tokio::task::spawn_blocking(move || {
                    let mut text = Vec::new();
                    pipe.read_to_end(&mut text).expect("read");
                    String::from_utf8_lossy(&text).into_owned()
                })
            };
            let (out, err) = (read(stdout), read(stderr));
            let status = running.wait().await?;
            Ok(Done {
                status,
                stdout: out.await.expect("reader"),
                stderr: err.await.expect("reader"),
                stubs: running.stubs().to_vec(),
                upper,
            })
        })
    }

    /// Runs a script and expects success; what it printed.
    pub(crate) fn output(&self, process: Process) -> String {
        let done = self.run(process).expect("the step starts");
        assert!(done.status.success(), "{done:?}");
        done.stdout
    }
}

/// Files of /etc as a build gives them.
pub(crate) fn etc_files() -> EtcFiles {
    EtcFiles {
        resolv_conf: Some(b"nameserver 192.0.2.1\n".to_vec()),
        hosts: Some(b"127.0.0.1 localhost\n".to_vec()),
        hostname: None,
    }
}

/// A static program made of C, or `None`, said loudly, where no compiler is at hand.
pub(crate) fn compile(lab: &Lab, name: &str, source: &str, flags: &[&str]) -> Option<PathBuf> {
    let (text, program) = (lab.path(&format!("{name}.c")), lab.path(name));
    fs::write(&text, source).expect("write");
    let status = Command::new("gcc").args(flags).args(["-static", "-o"]).arg(&program).arg(&text).output();
    match status {
        Ok(output) if output.status.success() => Some(program),
        Ok(output) => {
            eprintln!("SKIPPED: {name} does not compile here: {}", String::from_utf8_lossy(&output.stderr));
            None
        }
        Err(error) => {
            eprintln!("SKIPPED: no gcc for {name}: {error}");
            None
        }
    }
}

/// Whether a process with this argument runs anywhere on the host.
pub(crate) fn host_process(argument: &str) -> bool {
    fs::read_dir("/proc").expect("proc").flatten().any(|entry| {
        let arguments = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let mut arguments = arguments.split(|byte| *byte == 0);
        arguments.next().is_some_and(|program| program.ends_with(b"sleep"))
            && arguments.next() == Some(argument.as_bytes())
    })
}

/// The directories of launchers in the v2 hierarchy.
pub(crate) fn groups() -> Vec<PathBuf> {
    ["/sys/fs/cgroup/unified/rbuild", "/sys/fs/cgroup/rbuild"]
        .iter()
        .flat_map(|base| fs::read_dir(base).into_iter().flatten().flatten())
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("launcher-"))
        .map(|entry| entry.path())
        .collect()
}
