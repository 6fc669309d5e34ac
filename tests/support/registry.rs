//! Debian's docker-registry on a loopback port that the kernel picks, plain or with TLS and basic authentication.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use super::layout::Layout;
use super::run::{Run, Running};

/// Who may enter a registry.
pub struct Login {
    pub user: &'static str,
    pub password: &'static str,
}

/// A registry that is stopped when the test ends.
pub struct Registry {
    dir: TempDir,
    server: Running,
    port: u16,
    login: Option<Login>,
}

impl Registry {
    /// Plain HTTP, open to everybody.
    #[track_caller]
    pub fn plain() -> Self {
        Self::start(tempfile::tempdir().expect("a temporary directory"), "", None)
    }

    /// As [`Self::plain`], which takes images whose layers are at addresses of their own.
    #[track_caller]
    pub fn of_foreign_layers() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        Self::start(dir, "validation:\n  manifests:\n    urls:\n      allow:\n        - ^https?://\n", None)
    }

    /// TLS with a certificate of a private authority ([`Self::ca`]), and basic authentication.
    #[track_caller]
    pub fn tls(login: Login) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        certificates(dir.path());
        let htpasswd = Run::new("htpasswd").args(["-Bbn", login.user, login.password]).ok().stdout;
        fs::write(dir.path().join("htpasswd"), htpasswd).expect("our directory");
        let d = dir.path().display();
        let more = format!(
            "  tls:\n    certificate: {d}/server.crt\n    key: {d}/server.key\nauth:\n  htpasswd:\n    realm: test\n    path: {d}/htpasswd\n"
        );
        Self::start(dir, &more, Some(login))
    }

    /// TLS, for those alone who show a certificate that [`Self::ca`] signed: [`Self::client`].
    #[track_caller]
    pub fn of_known_clients() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        certificates(dir.path());
        sign(dir.path(), "client", "extendedKeyUsage=clientAuth\n");
        let d = dir.path().display();
        let more = format!(
            "  tls:\n    certificate: {d}/server.crt\n    key: {d}/server.key\n    clientcas:\n      - {d}/ca.crt\n"
        );
        Self::start(dir, &more, None)
    }

    /// A client's certificate and its key.
    pub fn client(&self) -> (PathBuf, PathBuf) {
        (self.dir.path().join("client.crt"), self.dir.path().join("client.key"))
    }

    #[track_caller]
    fn start(dir: TempDir, more: &str, login: Option<Login>) -> Self {
        super::peers::end_of_probe();
        let config = dir.path().join("config.yml");
        // The secret binds uploads to this process; without one the server warns.
        let text = format!(
            "version: 0.1\nlog:\n  level: info\n  accesslog:\n    disabled: false\nstorage:\n  filesystem:\n    rootdirectory: {}/data\n  delete:\n    enabled: true\nhttp:\n  addr: 127.0.0.1:0\n  secret: test\n{more}",
            dir.path().display()
        );
        fs::write(&config, text).expect("our directory");
        // Dies with the test, however the test dies.
        let mut server = Run::new("setpriv")
            .args(["--pdeathsig", "KILL", "docker-registry", "serve"])
            .arg(&config)
            .timeout(20)
            .spawn();
        server.wait_for("listening on 127.0.0.1:");
        let output = server.output();
        let rest = output.split("listening on 127.0.0.1:").nth(1).unwrap_or_default();
        let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
        let port = digits.parse().unwrap_or_else(|_| panic!("no port in the registry's log:\n{output}"));
        Self { dir, server, port, login }
    }

    /// `127.0.0.1:PORT`.
    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// The certificate of the authority that signed the server's.
    pub fn ca(&self) -> PathBuf {
        self.dir.path().join("ca.crt")
    }

    /// `127.0.0.1:PORT/NAME`.
    pub fn name(&self, name: &str) -> String {
        format!("{}/{name}", self.host())
    }

    /// Where the server keeps its files.
    pub fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// skopeo against this registry, with its certificate and its login.
    pub fn skopeo(&self, command: &str) -> Run {
        Run::new("skopeo")
            .arg("--insecure-policy")
            .arg(command)
            .env("HOME", self.dir.path())
            .env("TMPDIR", self.dir.path())
    }

    /// Puts an image there, as another tool would.
    #[track_caller]
    pub fn put(&self, name: &str, image: &Layout) {
        let mut run = self.skopeo("copy").arg("--dest-tls-verify=false").timeout(180);
        if let Some(login) = &self.login {
            run = run.arg(format!("--dest-creds={}:{}", login.user, login.password));
        }
        run.arg(format!("oci:{}", image.dir().display())).arg(format!("docker://{}", self.name(name))).ok();
    }

    /// Fetches an image as another tool would, into `dir`.
    #[track_caller]
    pub fn get(&self, name: &str, dir: &Path) -> Layout {
        let mut run = self.skopeo("copy").arg("--src-tls-verify=false").timeout(180);
        if let Some(login) = &self.login {
            run = run.arg(format!("--src-creds={}:{}", login.user, login.password));
        }
        run.arg(format!("docker://{}", self.name(name))).arg(format!("oci:{}:latest", dir.display())).ok();
        Layout::open(dir)
    }

    /// The requests served so far, as `METHOD /path STATUS`.
    pub fn requests(&self) -> Vec<String> {
        self.server.output().lines().filter_map(access_line).collect()
    }

    /// Blobs that somebody uploaded: finished uploads, not mounts.
    pub fn uploads(&self) -> usize {
        self.requests()
            .iter()
            .filter(|r| r.starts_with("PUT ") && r.contains("/blobs/uploads/") && r.ends_with(" 201"))
            .count()
    }
}

/// `127.0.0.1 - - [date] "PUT /v2/x HTTP/1.1" 201 …` of the combined log format.
fn access_line(line: &str) -> Option<String> {
    let (_, rest) = line.split_once("] \"")?;
    let (request, rest) = rest.split_once("\" ")?;
    let mut words = request.split(' ');
    let (method, path) = (words.next()?, words.next()?);
    let status = rest.split(' ').next()?;
    Some(format!("{method} {path} {status}"))
}

fn openssl(dir: &Path, args: &[&str]) {
    let output = Command::new("openssl").args(args).current_dir(dir).output().expect("openssl runs");
    assert!(output.status.success(), "openssl {args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

const EC: [&str; 5] = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"];

fn certificates(dir: &Path) {
    let subject = ["-subj", "/CN=rbuild test authority", "-keyout", "ca.key", "-out", "ca.crt"];
    openssl(dir, &[&["req", "-x509", "-days", "2"][..], &subject, &EC].concat());
    sign(dir, "server", "subjectAltName=DNS:localhost,IP:127.0.0.1\n");
}

/// Makes `NAME.crt` and `NAME.key`, signed by the authority.
fn sign(dir: &Path, name: &str, extensions: &str) {
    let (key, request, certificate) = (format!("{name}.key"), format!("{name}.csr"), format!("{name}.crt"));
    openssl(dir, &[&["req", "-subj", "/CN=localhost", "-keyout", &key, "-out", &request][..], &EC].concat());
    fs::write(dir.join("extensions"), format!("{extensions}basicConstraints=CA:FALSE\n")).expect("our directory");
    let by = ["-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-extfile", "extensions"];
    openssl(dir, &[&["x509", "-req", "-days", "2", "-in", &request, "-out", &certificate][..], &by].concat());
}
