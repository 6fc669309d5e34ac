//! Programs that run for the time of the benchmark, on loopback and sockets of ours.

use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A server, ended with the benchmark.
pub(crate) struct Server(Child);

impl Server {
    pub(crate) fn start(command: &mut Command, log: &Path) -> Result<Self, String> {
        let file = File::create(log).map_err(|error| error.to_string())?;
        let errors = file.try_clone().map_err(|error| error.to_string())?;
        let child = command.stdin(Stdio::null()).stdout(file).stderr(errors).spawn();
        child.map(Self).map_err(|error| format!("{command:?}: {error}"))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Politely, since it may have mounts to let go; and then not.
        let _ = Command::new("kill").arg(self.0.id().to_string()).status();
        let asked = Instant::now();
        while asked.elapsed() < Duration::from_secs(20) {
            if matches!(self.0.try_wait(), Ok(Some(_)) | Err(_)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Debian's docker-registry.
pub(crate) struct Registry {
    /// `127.0.0.1:port`.
    pub(crate) address: String,
    _server: Server,
}

impl Registry {
    /// `None`: there is none on this machine.
    pub(crate) fn start(directory: &Path) -> Option<Self> {
        if !on_path("docker-registry") {
            return None;
        }
        // A port that was free a moment ago.
        let port = std::net::TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).ok()?.port();
        let address = format!("127.0.0.1:{port}");
        let (config, data) = (directory.join("registry.yml"), directory.join("registry"));
        let text = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: {address}, secret: bench}}\n",
            data.display()
        );
        std::fs::write(&config, text).ok()?;
        let mut command = Command::new("docker-registry");
        command.arg("serve").arg(&config);
        let server = Server::start(&mut command, &directory.join("registry.log")).ok()?;
        wait_until("docker-registry", || std::net::TcpStream::connect(&address).is_ok()).ok()?;
        Some(Self { address, _server: server })
    }
}

pub(crate) fn on_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| directory.join(program).is_file())
}

pub(crate) fn wait_until(name: &str, ready: impl Fn() -> bool) -> Result<(), String> {
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(30) {
        if ready() {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Err(format!("{name} did not start within 30 s"))
}
