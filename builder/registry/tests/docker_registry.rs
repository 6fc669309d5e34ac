//! The client against Debian's `docker-registry`, the reference implementation, on loopback.
//!
//! Needs the packages docker-registry, apache2-utils and openssl; without them these tests fail and say so.

#![allow(clippy::unwrap_used, reason = "the helpers of a test may fail it")]

use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use registry::{
    Client, Credential, Descriptor, Error, Event, MediaType, OCI_INDEX, OCI_MANIFEST, Pushed, RegistryConfig,
    Repository, RetryPolicy, Settings, StaticCredentials, Verifier, digest_of,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// A running registry; it is killed when dropped.
struct Server {
    child: Child,
    host: String,
    dir: tempfile::TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    /// Starts one with `http` and `auth` sections, made from the directory they may refer to.
    fn start(prepare: impl Fn(&Path) -> (String, String)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (http, auth) = prepare(dir.path());
        for _ in 0..5 {
            let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            let host = format!("127.0.0.1:{port}");
            let config = format!(
                "version: 0.1\nlog: {{level: warn}}\nstorage:\n  filesystem: {{rootdirectory: {}/data}}\n  delete: {{enabled: true}}\n\
                 http:\n  addr: {host}\n{http}{auth}",
                dir.path().display()
            );
            let path = dir.path().join("config.yml");
            std::fs::write(&path, config).unwrap();
            let log = std::fs::File::create(dir.path().join("log")).unwrap();
            let mut child = Command::new("docker-registry")
                .arg("serve")
                .arg(&path)
                .stdout(Stdio::null())
                .stderr(log)
                .spawn()
                .expect("docker-registry is needed for this test: apt-get install docker-registry");
            let begin = Instant::now();
            while child.try_wait().unwrap().is_none() && begin.elapsed() < Duration::from_secs(20) {
                if TcpStream::connect(&host).is_ok() {
                    return Self { child, host, dir };
                }
                std::thread::sleep(Duration::from_millis(20));
            }
            let _ = child.kill();
            let _ = child.wait();
            eprintln!("docker-registry: {}", std::fs::read_to_string(dir.path().join("log")).unwrap());
        }
        panic!("docker-registry does not start");
    }

    fn plain() -> Self {
        Self::start(|_| (String::new(), String::new()))
    }

    /// TLS with a certificate of its own authority, and a password file.
    fn tls_with_password() -> Self {
        Self::start(|dir| {
            run(
                dir,
                "openssl",
                "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=test-ca -keyout ca.key -out ca.pem",
            );
            run(dir, "openssl", "req -newkey rsa:2048 -nodes -subj /CN=registry -keyout tls.key -out tls.csr");
            std::fs::write(dir.join("ext"), "subjectAltName=IP:127.0.0.1,DNS:localhost").unwrap();
            let sign =
                "x509 -req -in tls.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile ext -out tls.pem";
            run(dir, "openssl", sign);
            run(dir, "htpasswd", "-Bbc htpasswd me canary-password");
            let dir = dir.display();
            (
                format!("  tls: {{certificate: {dir}/tls.pem, key: {dir}/tls.key}}\n"),
                format!("auth:\n  htpasswd: {{realm: test, path: {dir}/htpasswd}}\n"),
            )
        })
    }

    /// TLS with a certificate that nobody but itself has signed, as Docker's documents have people make it.
    fn tls_by_itself() -> Self {
        Self::start(|dir| {
            let make = "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=registry -addext subjectAltName=IP:127.0.0.1 \
                        -keyout tls.key -out tls.pem";
            run(dir, "openssl", make);
            let dir = dir.display();
            (format!("  tls: {{certificate: {dir}/tls.pem, key: {dir}/tls.key}}\n"), String::new())
        })
    }

    fn repository(&self, path: &str) -> Repository {
        format!("{}/{path}", self.host).parse().unwrap()
    }
}

fn run(dir: &Path, program: &str, arguments: &str) {
    let output = Command::new(program).args(arguments.split(' ')).current_dir(dir).output();
    let output = output.unwrap_or_else(|e| panic!("{program} is needed for this test (openssl, apache2-utils): {e}"));
    assert!(output.status.success(), "{program} {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

fn settings() -> Settings {
    let retry = RetryPolicy { base: Duration::from_millis(20), ..RetryPolicy::default() };
    Settings { retry, stall_timeout: Duration::from_secs(20), ..Settings::default() }
}

fn client() -> Client {
    Client::new(settings(), StaticCredentials::anonymous())
}

/// Bytes that differ from test to test and do not compress.
fn data(len: usize, seed: u64) -> Bytes {
    let mut x = seed | 1;
    let mut next = || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        x as u8
    };
    (0..len).map(|_| next()).collect()
}

fn describe(bytes: &[u8]) -> Descriptor {
    Descriptor::new(MediaType::ImageLayer, bytes.len() as u64, digest_of(bytes))
}

async fn fetch(client: &Client, repository: &Repository, descriptor: &Descriptor) -> Result<Bytes, Error> {
    let mut stream = client.blob(repository, descriptor).await?;
    let mut all = Vec::new();
    while let Some(bytes) = stream.chunk().await? {
        all.extend_from_slice(&bytes);
    }
    Ok(all.into())
}

fn image(config: &Descriptor, layers: &[Descriptor]) -> Bytes {
    let layers: Vec<_> = layers.iter().map(|l| serde_json::to_value(l).unwrap()).collect();
    let config = serde_json::json!({"mediaType": "application/vnd.oci.image.config.v1+json",
        "digest": config.digest(), "size": config.size()});
    let json = serde_json::json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": layers});
    json.to_string().into()
}

#[tokio::test]
async fn an_image_goes_there_and_comes_back() {
    let server = Server::plain();
    let client = client();
    let (base, app) = (server.repository("base"), server.repository("team/app"));
    client.check_push(&app).await.unwrap();
    let layers = [data(3_000_000, 1), data(10, 2), Bytes::new()];
    let config =
        Bytes::from_static(br#"{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}"#);
    let path = server.dir.path().join("layer");
    std::fs::write(&path, &layers[0]).unwrap();
    let pushed = client.push_blob(&base, &describe(&layers[0]), &path, &[], None).await.unwrap();
    assert_eq!(pushed, Pushed::Uploaded { bytes: 3_000_000 });

    let mut results = Vec::new();
    for bytes in layers.iter().chain([&config]) {
        results.push(client.push_blob(&app, &describe(bytes), bytes, std::slice::from_ref(&base), None).await.unwrap());
    }
    assert_eq!(results[0], Pushed::Mounted { from: base });
    assert_eq!(results[1], Pushed::Uploaded { bytes: 10 });
    assert_eq!(results[2], Pushed::Uploaded { bytes: 0 });
    let descriptors = layers.each_ref().map(|layer| describe(layer));
    let manifest = image(&describe(&config), &descriptors);
    let tag = app.with_tag("1").unwrap();
    let digest = client.put_manifest(&tag, OCI_MANIFEST, manifest.clone()).await.unwrap();

    for bytes in layers.iter().chain([&config]) {
        let again = client.push_blob(&app, &describe(bytes), bytes, &[], None).await.unwrap();
        assert_eq!(again, Pushed::Exists, "a second push sends nothing");
    }
    let head = client.head(&tag).await.unwrap();
    let resolved = client.resolve(&tag).await.unwrap();
    assert_eq!((resolved.digest(), &resolved.bytes, &resolved.descriptor), (&digest, &manifest, &head));
    assert_eq!(client.resolve(&app.with_digest(digest.clone())).await.unwrap().bytes, manifest);
    let registry::Manifest::Image(parsed) = resolved.parse().unwrap() else { panic!("an image") };
    assert_eq!(parsed.layers().len(), 3);
    for (descriptor, bytes) in descriptors.iter().zip(&layers) {
        assert_eq!(fetch(&client, &app, descriptor).await.unwrap(), bytes);
    }
    assert_eq!(client.small_blob(&app, parsed.config(), 1 << 20).await.unwrap(), config);

    let index = serde_json::json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [{
        "mediaType": OCI_MANIFEST, "digest": digest, "size": manifest.len(),
        "platform": {"os": "linux", "architecture": "arm64"}}]});
    client.put_manifest(&app.with_tag("multi").unwrap(), OCI_INDEX, index.to_string().into()).await.unwrap();
    let resolved = client.resolve(&app.with_tag("multi").unwrap()).await.unwrap();
    let registry::Manifest::Index(index) = resolved.parse().unwrap() else { panic!("an index") };
    let want = registry::Want { os: "linux", architecture: "arm64", variant: "v8" };
    let chosen = registry::choose_platform(&index, &want).unwrap();
    assert_eq!(client.manifest(&app, chosen).await.unwrap().bytes, manifest);
    let mut tags = client.tags(&app).await.unwrap();
    tags.sort();
    assert_eq!(tags, ["1", "multi"]);

    let error = client.resolve(&app.with_tag("none").unwrap()).await.unwrap_err();
    assert!(error.is_not_found() && error.to_string().contains("MANIFEST_UNKNOWN"), "{error}");
    let error = fetch(&client, &app, &describe(b"never pushed")).await.unwrap_err();
    assert!(error.is_not_found(), "{error}");
    let lost = image(&describe(b"never pushed"), &[]);
    let error = client.put_manifest(&tag, OCI_MANIFEST, lost).await.unwrap_err();
    assert!(error.to_string().contains("MANIFEST_BLOB_UNKNOWN"), "{error}");
    client.delete(&app.with_digest(digest)).await.unwrap();
    assert!(client.resolve(&tag).await.unwrap_err().is_not_found());
}

/// Forwards to `target`, cutting the first connections after so many bytes in one direction.
async fn cutting_proxy(target: String, cuts: Vec<usize>, uploads: bool) -> (String, tokio::task::JoinHandle<()>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let host = listener.local_addr().unwrap().to_string();
    let next = Arc::new(AtomicUsize::new(0));
    let task = tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let (target, cuts, next) = (target.clone(), cuts.clone(), next.clone());
            tokio::spawn(async move {
                let server = tokio::net::TcpStream::connect(target).await.unwrap();
                let (mut from_client, mut to_client) = client.into_split();
                let (mut from_server, mut to_server) = server.into_split();
                // Small exchanges pass; the one that carries a blob is cut.
                let count = async |n: &mut usize, got: usize| {
                    *n += got;
                    let cut = cuts.get(next.load(Ordering::SeqCst));
                    if cut.is_some_and(|cut| *n > *cut) {
                        next.fetch_add(1, Ordering::SeqCst);
                        return false;
                    }
                    true
                };
                let mut sizes = (0, 0);
                let (mut a, mut b) = (vec![0; 16 << 10], vec![0; 16 << 10]);
                loop {
                    tokio::select! {
                        n = from_client.read(&mut a) => match n {
                            Ok(n) if n > 0 => {
                                if to_server.write_all(&a[..n]).await.is_err() { return }
                                if uploads && !count(&mut sizes.0, n).await { return }
                            }
                            _ => return,
                        },
                        n = from_server.read(&mut b) => match n {
                            Ok(n) if n > 0 => {
                                if to_client.write_all(&b[..n]).await.is_err() { return }
                                if !uploads && !count(&mut sizes.1, n).await { return }
                            }
                            _ => return,
                        },
                    }
                }
            });
        }
    });
    (host, task)
}

#[tokio::test]
async fn cut_transfers_come_through() {
    let server = Server::plain();
    let bytes = data(4_000_000, 3);
    let descriptor = describe(&bytes);
    let (host, task) = cutting_proxy(server.host.clone(), vec![1_500_000, 1_000_000], true).await;
    let through: Repository = format!("{host}/cut").parse().unwrap();
    let pushed = client().push_blob(&through, &descriptor, &bytes, &[], None).await.unwrap();
    let Pushed::Uploaded { bytes: sent } = pushed else { panic!("{pushed:?}") };
    // This registry ties an upload to the offset it has signed, so a cut one starts over; the fake one lets it go on.
    assert!((4_000_000..=12_000_000).contains(&sent), "{sent}");
    task.abort();
    assert_eq!(fetch(&client(), &server.repository("cut"), &descriptor).await.unwrap(), bytes);

    let (host, task) = cutting_proxy(server.host.clone(), vec![1_500_000, 1_000_000], false).await;
    let through: Repository = format!("{host}/cut").parse().unwrap();
    let events = Arc::new(Mutex::new(0));
    let seen = events.clone();
    let count = move |event: &Event| *seen.lock().unwrap() += usize::from(matches!(event, Event::Retrying { .. }));
    let client =
        Client::new(Settings { on_event: Some(Arc::new(count)), ..settings() }, StaticCredentials::anonymous());
    assert_eq!(fetch(&client, &through, &descriptor).await.unwrap(), bytes);
    assert_eq!(*events.lock().unwrap(), 2);
    let mut verifier = Verifier::new(&descriptor).unwrap();
    verifier.update(&bytes[..3_999_990]);
    let mut stream = client.resume_blob(&through, &descriptor, verifier).await.unwrap();
    assert_eq!(stream.chunk().await.unwrap().unwrap(), bytes[3_999_990..]);
    assert_eq!(stream.chunk().await.unwrap(), None);
    task.abort();
}

#[tokio::test]
async fn tls_and_passwords() {
    let server = Server::tls_with_password();
    let good = Credential::password("me", "canary-password");
    let ca = server.dir.path().join("ca.pem");
    let with = |config: RegistryConfig, credential: Option<Credential>| {
        let mut settings = settings();
        settings.registries.insert(server.host.clone(), config);
        match credential {
            Some(credential) => Client::new(settings, StaticCredentials::one(&server.host, credential)),
            None => Client::new(settings, StaticCredentials::anonymous()),
        }
    };
    let trusted = RegistryConfig { ca: vec![ca.clone()], ..RegistryConfig::default() };
    let repository = server.repository("secret/app");
    let bytes = data(500_000, 4);

    let error = with(RegistryConfig::default(), Some(good.clone())).ping(&server.host).await.unwrap_err();
    assert!(matches!(error, Error::Tls { .. }), "a certificate that is not trusted is no reason for HTTP: {error:?}");
    let http = RegistryConfig { http: Some(true), ..RegistryConfig::default() };
    let error = with(http, Some(good.clone())).ping(&server.host).await.unwrap_err();
    assert!(matches!(error, Error::Status { status: 400, .. }), "{error:?}");
    let error = with(trusted.clone(), None).check_push(&repository).await.unwrap_err();
    assert!(matches!(error, Error::Unauthorized { authenticated: false, .. }), "{error:?}");
    let error =
        with(trusted.clone(), Some(Credential::password("me", "canary-wrong"))).ping(&server.host).await.unwrap_err();
    assert!(matches!(error, Error::Unauthorized { authenticated: true, .. }), "{error:?}");
    assert!(!format!("{error} {error:?}").contains("canary"));
    let error = with(trusted.clone(), None).login(&server.host, Credential::password("me", "no")).await.unwrap_err();
    assert!(error.to_string().contains("the credentials were refused"), "{error}");
    with(trusted.clone(), None).login(&server.host, good.clone()).await.unwrap();

    let client = with(trusted, Some(good.clone()));
    client.check_push(&repository).await.unwrap();
    let pushed = client.push_blob(&repository, &describe(&bytes), &bytes, &[], None).await.unwrap();
    assert_eq!(pushed, Pushed::Uploaded { bytes: 500_000 });
    assert_eq!(fetch(&client, &repository, &describe(&bytes)).await.unwrap(), bytes);
    let insecure = RegistryConfig { insecure: Some(true), ..RegistryConfig::default() };
    assert_eq!(fetch(&with(insecure, Some(good.clone())), &repository, &describe(&bytes)).await.unwrap(), bytes);

    let certs = server.dir.path().join("certs.d");
    std::fs::create_dir_all(certs.join(&server.host)).unwrap();
    std::fs::copy(&ca, certs.join(&server.host).join("ca.crt")).unwrap();
    let settings = Settings { certs_dirs: vec![certs], ..settings() };
    let client = Client::new(settings, StaticCredentials::one(&server.host, good));
    assert_eq!(fetch(&client, &repository, &describe(&bytes)).await.unwrap(), bytes);
    let named = format!("localhost:{}", server.host.rsplit(':').next().unwrap());
    let error = client.ping(&named).await.unwrap_err();
    assert!(matches!(error, Error::Tls { .. }), "settings are per name: {error:?}");
}

#[tokio::test]
async fn a_certificate_signed_by_itself_is_trusted_where_it_was_configured() {
    let server = Server::tls_by_itself();
    let with = |config: RegistryConfig| {
        let mut settings = settings();
        settings.registries.insert(server.host.clone(), config.clone());
        settings.registries.insert(format!("localhost:{}", server.host.rsplit(':').next().unwrap()), config);
        Client::new(settings, StaticCredentials::anonymous())
    };
    let error = with(RegistryConfig::default()).ping(&server.host).await.unwrap_err();
    assert!(matches!(error, Error::Tls { .. }), "{error:?}");
    let ca = vec![server.dir.path().join("tls.pem")];
    let client = with(RegistryConfig { ca, ..RegistryConfig::default() });
    client.ping(&server.host).await.unwrap();
    // It is not for another name.
    let named = format!("localhost:{}", server.host.rsplit(':').next().unwrap());
    assert!(matches!(client.ping(&named).await.unwrap_err(), Error::Tls { .. }));
}
