//! Files served to ADD: a small HTTP server, and Git's own daemon.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use super::run::{Run, Running};

/// An answer.
#[derive(Clone)]
pub struct Served {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Served {
    pub fn ok(body: impl Into<Vec<u8>>) -> Self {
        Self { status: 200, headers: Vec::new(), body: body.into() }
    }

    pub fn status(status: u16) -> Self {
        Self { status, headers: Vec::new(), body: Vec::new() }
    }

    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }
}

/// What is served, and the heads of the requests so far.
#[derive(Default)]
struct State {
    files: BTreeMap<String, Served>,
    requests: Vec<String>,
}

/// A server of files that knows ETags. Its threads end with the test's process.
pub struct FileServer {
    address: String,
    state: Arc<Mutex<State>>,
}

impl FileServer {
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port on loopback");
        let address = listener.local_addr().expect("it is bound").to_string();
        let state = Arc::new(Mutex::new(State::default()));
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let state = Arc::clone(&shared);
                // A client that goes away is its own affair.
                std::thread::spawn(move || drop(answer(stream, &state)));
            }
        });
        Self { address, state }
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub fn serve(&self, path: &str, served: Served) {
        self.state.lock().expect("no thread panicked").files.insert(path.to_owned(), served);
    }

    /// The heads of the requests since the last call.
    pub fn requests(&self) -> Vec<String> {
        std::mem::take(&mut self.state.lock().expect("no thread panicked").requests)
    }
}

fn answer(stream: TcpStream, state: &Mutex<State>) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut stream = stream;
    loop {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if reader.read_line(&mut head)? == 0 {
                return Ok(());
            }
        }
        let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
        let mut served = {
            let mut state = state.lock().expect("no thread panicked");
            let served = state.files.get(&path).cloned().unwrap_or_else(|| Served::status(404));
            state.requests.push(head.clone());
            served
        };
        let tag = served.headers.iter().find(|(name, _)| name == "ETag").map(|(_, value)| value.clone());
        if tag.is_some_and(|tag| head.contains(&tag)) {
            served = Served { status: 304, body: Vec::new(), ..served };
        }
        let mut reply = format!("HTTP/1.1 {} X\r\nContent-Length: {}\r\n", served.status, served.body.len());
        for (name, value) in &served.headers {
            reply += &format!("{name}: {value}\r\n");
        }
        stream.write_all((reply + "\r\n").as_bytes())?;
        if !head.starts_with("HEAD") {
            stream.write_all(&served.body)?;
        }
    }
}

/// Repositories below a directory, served by git's daemon.
pub struct GitServer {
    dir: PathBuf,
    port: u16,
    _server: Running,
}

impl GitServer {
    /// Serves what is and will be below `dir`.
    #[track_caller]
    pub fn start(dir: &Path) -> Self {
        std::fs::create_dir_all(dir).expect("ours");
        let libexec = Run::new("git").arg("--exec-path").ok();
        // A port that was free a moment ago: the daemon cannot say which one it took.
        let port = TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a port").port();
        let server = Run::new("setpriv")
            .args(["--pdeathsig", "KILL"])
            .arg(Path::new(libexec.line()).join("git-daemon"))
            .args(["--export-all", "--listen=127.0.0.1"])
            .arg(format!("--port={port}"))
            .arg(format!("--base-path={}", dir.display()))
            .spawn();
        let started = std::time::Instant::now();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(started.elapsed().as_secs() < 20, "git-daemon does not answer:\n{}", server.output());
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        Self { dir: dir.to_owned(), port, _server: server }
    }

    pub fn url(&self, repository: &str) -> String {
        format!("git://127.0.0.1:{}/{repository}", self.port)
    }

    /// A file below the served directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// git in one of the repositories, as nobody in particular and at a fixed time.
    #[track_caller]
    pub fn git(&self, repository: &str, args: &[&str]) -> String {
        let place = self.dir.join(repository);
        std::fs::create_dir_all(&place).expect("ours");
        let mut run = Run::new("git").cwd(&place).env("HOME", &self.dir);
        for (key, value) in [
            ("GIT_AUTHOR_NAME", "n"),
            ("GIT_AUTHOR_EMAIL", "n@example.com"),
            ("GIT_COMMITTER_NAME", "n"),
            ("GIT_COMMITTER_EMAIL", "n@example.com"),
            ("GIT_AUTHOR_DATE", "1700000000 +0000"),
            ("GIT_COMMITTER_DATE", "1700000000 +0000"),
        ] {
            run = run.env(key, value);
        }
        run.args(["-c", "protocol.file.allow=always"]).args(args).ok().line().to_owned()
    }
}
