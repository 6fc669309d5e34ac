//! One run of a program: started in a clean environment, with a time-out, its output kept in files (a pipe would be held
//! open by a process that wrongly outlives the program, and the test would hang instead of failing).

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::pty::Pty;
use rustix::process::{Pid, Signal, kill_process, kill_process_group};

/// A command being put together.
pub struct Run {
    command: Command,
    shown: String,
    stdin: Option<Vec<u8>>,
    timeout: Duration,
}

impl Run {
    /// `program` with nothing of the caller's environment but PATH.
    pub fn new(program: impl AsRef<OsStr>) -> Self {
        let mut command = Command::new(&program);
        let path = std::env::var("PATH").unwrap_or_default();
        command
            .env_clear()
            .env("PATH", format!("{path}:/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin"))
            .env("LC_ALL", "C.UTF-8");
        // Measured coverage is written where the person who measures says.
        if let Some(file) = std::env::var_os("LLVM_PROFILE_FILE") {
            command.env("LLVM_PROFILE_FILE", file);
        }
        // A clean start: own process group, so that Ctrl-C can be played without hitting the test.
        command.process_group(0);
        let shown = Path::new(program.as_ref()).file_name().unwrap_or_default().to_string_lossy().into_owned();
        Self { command, shown, stdin: None, timeout: Duration::from_secs(90) }
    }

    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.shown = format!("{} {}", self.shown, arg.as_ref().to_string_lossy());
        self.command.arg(arg);
        self
    }

    pub fn args<A: AsRef<OsStr>>(self, args: impl IntoIterator<Item = A>) -> Self {
        args.into_iter().fold(self, Self::arg)
    }

    pub fn env(mut self, key: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(key, value);
        self
    }

    pub fn cwd(mut self, dir: impl AsRef<Path>) -> Self {
        self.command.current_dir(dir);
        self
    }

    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = Some(bytes.into());
        self
    }

    pub fn timeout(mut self, seconds: u64) -> Self {
        self.timeout = Duration::from_secs(seconds);
        self
    }

    /// As a person types it at a terminal.
    pub fn on_terminal(self) -> Pty {
        Pty::start(self.command)
    }

    pub fn spawn(mut self) -> Running {
        let out = tempfile::tempfile().expect("a temporary file");
        let err = tempfile::tempfile().expect("a temporary file");
        let clone = |f: &File| Stdio::from(f.try_clone().expect("a descriptor is free"));
        self.command.stdout(clone(&out)).stderr(clone(&err));
        self.command.stdin(match &self.stdin {
            None => Stdio::null(),
            Some(bytes) => {
                let mut file = tempfile::tempfile().expect("a temporary file");
                file.write_all(bytes).expect("the temporary directory is writable");
                file.seek(SeekFrom::Start(0)).expect("a file can seek");
                Stdio::from(file)
            }
        });
        let child = self.command.spawn().unwrap_or_else(|e| panic!("cannot start {}: {e}", self.shown));
        Running { child: Some(child), shown: self.shown, out, err, started: Instant::now(), timeout: self.timeout }
    }

    /// Runs to the end.
    pub fn run(self) -> Outcome {
        self.spawn().finish()
    }

    /// Runs to the end, which must be success.
    #[track_caller]
    pub fn ok(self) -> Outcome {
        self.run().success()
    }
}

/// A program under way. Dropped, it is killed with its process group.
pub struct Running {
    child: Option<Child>,
    shown: String,
    out: File,
    err: File,
    started: Instant,
    timeout: Duration,
}

impl Running {
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("taken only by finish").id()
    }

    /// To the program alone, as `kill` does.
    pub fn signal(&self, signal: Signal) {
        kill_process(self.raw(), signal).expect("the program runs");
    }

    /// To its process group, as a terminal does on Ctrl-C.
    pub fn signal_group(&self, signal: Signal) {
        kill_process_group(self.raw(), signal).expect("the program runs");
    }

    fn raw(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.pid()).expect("a pid fits")).expect("a pid is not 0")
    }

    /// Waits until the output so far contains `text`; panics at the time-out or when the program ends without it.
    #[track_caller]
    pub fn wait_for(&mut self, text: &str) {
        assert!(self.prints(text), "{} ended without printing {text:?}:\n{}", self.shown, self.output());
    }

    /// Whether it prints `text` before it ends; panics at the time-out.
    pub fn prints(&mut self, text: &str) -> bool {
        loop {
            let ended = self.child.as_mut().expect("taken only by finish").try_wait().expect("our child").is_some();
            if self.output().contains(text) {
                return true;
            }
            if ended {
                return false;
            }
            assert!(self.started.elapsed() < self.timeout, "{}: no {text:?} in time:\n{}", self.shown, self.output());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Both streams, so far.
    pub fn output(&self) -> String {
        format!("{}{}", read_all(&self.err), read_all(&self.out))
    }

    /// Waits for the end; a program that takes longer than its time-out is killed and the test fails.
    #[track_caller]
    pub fn finish(mut self) -> Outcome {
        let mut child = self.child.take().expect("taken only here");
        let mut pause = Duration::from_micros(200);
        let status = loop {
            if let Some(status) = child.try_wait().expect("our child") {
                break status;
            }
            if self.started.elapsed() > self.timeout {
                self.child = Some(child);
                let text = self.output();
                panic!("{} did not end within {:?}; so far:\n{text}", self.shown, self.timeout);
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(10));
        };
        Outcome {
            shown: std::mem::take(&mut self.shown),
            code: status.code(),
            signal: status.signal(),
            stdout: read_all(&self.out),
            stdout_bytes: read_bytes(&self.out),
            stderr: read_all(&self.err),
            elapsed: self.started.elapsed(),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            if let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
                let _ = kill_process_group(pid, Signal::KILL);
            }
            let _ = child.wait();
        }
    }
}

/// How a run ended.
#[derive(Debug)]
pub struct Outcome {
    pub shown: String,
    pub code: Option<i32>,
    pub signal: Option<i32>,
    pub stdout: String,
    pub stdout_bytes: Vec<u8>,
    pub stderr: String,
    pub elapsed: Duration,
}

impl Outcome {
    #[track_caller]
    pub fn success(self) -> Self {
        self.exits(0)
    }

    #[track_caller]
    pub fn exits(self, code: i32) -> Self {
        assert_eq!(
            self.code,
            Some(code),
            "`{}` should have exited with {code} (signal {:?})\n--- stdout\n{}--- stderr\n{}",
            self.shown,
            self.signal,
            self.stdout,
            self.stderr
        );
        self
    }

    /// Both streams: progress goes to one, results to the other, and many tests do not care which.
    pub fn text(&self) -> String {
        format!("{}{}", self.stderr, self.stdout)
    }

    #[track_caller]
    pub fn contains(self, wanted: &str) -> Self {
        assert!(self.text().contains(wanted), "`{}`: {wanted:?} is not in\n{}", self.shown, self.text());
        self
    }

    #[track_caller]
    pub fn lacks(self, unwanted: &str) -> Self {
        assert!(!self.text().contains(unwanted), "`{}`: {unwanted:?} is in\n{}", self.shown, self.text());
        self
    }

    /// stdout without the last newline.
    pub fn line(&self) -> &str {
        self.stdout.trim_end_matches('\n')
    }

    /// Steps that the plain progress called CACHED.
    pub fn cached(&self) -> usize {
        self.stderr.lines().filter(|line| line.contains("CACHED")).count()
    }
}

fn read_bytes(file: &File) -> Vec<u8> {
    // The offset is shared with the writer, so the file is read through a descriptor of its own.
    use std::os::fd::AsRawFd;
    let mut bytes = Vec::new();
    let own = File::open(format!("/proc/self/fd/{}", file.as_raw_fd()));
    own.and_then(|mut f| f.read_to_end(&mut bytes)).expect("a temporary file can be read");
    bytes
}

fn read_all(file: &File) -> String {
    String::from_utf8_lossy(&read_bytes(file)).into_owned()
}

/// Removes what a test may leave in odd modes; a test's own directory is no reason to fail.
pub fn remove_tree(dir: &Path) {
    let _ = fs::remove_dir_all(dir);
}
