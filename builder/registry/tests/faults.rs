//! The client against a registry that misbehaves in every way the fake one knows.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use registry::fake::{Auth, Fake, Fault};
use registry::{
    Client, Credential, CredentialSource, CredentialsError, Descriptor, Error, Event, OCI_MANIFEST, Pushed, Reference,
    RegistryConfig, Repository, RetryPolicy, Settings, StaticCredentials, Unreachable, Verifier, digest_of,
};

const CANARY: &str = "canary-password";

fn settings() -> Settings {
    Settings {
        retry: RetryPolicy { base: Duration::from_millis(5), per_request: 3, ..RetryPolicy::default() },
        stall_timeout: Duration::from_millis(300),
        connect_timeout: Duration::from_secs(2),
        ..Settings::default()
    }
}

fn client_with(settings: Settings, credentials: Arc<dyn CredentialSource>) -> Client {
    Client::new(settings, credentials)
}

fn client() -> Client {
    client_with(settings(), StaticCredentials::anonymous())
}

fn repository(fake: &Fake, path: &str) -> Repository {
    format!("{}/{path}", fake.host()).parse().expect("a repository")
}

fn token_auth(public: bool) -> Auth {
    Auth::Token {
        user: "me".into(),
        password: CANARY.into(),
        identity: "canary-identity".into(),
        lifetime: Duration::from_secs(60),
        public,
        realm: String::new(),
    }
}

fn me(fake: &Fake) -> Arc<StaticCredentials> {
    StaticCredentials::one(fake.host(), Credential::password("me", CANARY))
}

fn data(len: usize) -> Bytes {
    (0..len).map(|n| (n * 31 % 251) as u8).collect()
}

fn image() -> String {
    let config = digest_of(b"{}");
    format!(
        r#"{{"schemaVersion":2,"config":{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"{config}","size":2}},"layers":[]}}"#
    )
}

async fn download(client: &Client, repository: &Repository, descriptor: &Descriptor) -> Result<Bytes, Error> {
    let mut stream = client.blob(repository, descriptor).await?;
    let mut all = Vec::new();
    while let Some(bytes) = stream.chunk().await? {
        all.extend_from_slice(&bytes);
    }
    Ok(all.into())
}

fn is_send<T: Send>(value: T) -> T {
    value
}

#[tokio::test]
async fn downloads_survive_what_networks_do() {
    let status = |code: u16| Fault::Status(code, vec![], String::new());
    let cases: Vec<(&str, Vec<(usize, Fault)>)> = vec![
        ("nothing wrong", vec![]),
        ("closed", vec![(3, Fault::Close)]),
        ("cut three times", vec![(1, Fault::CutBody(1000)), (1, Fault::CutBody(0)), (1, Fault::CutBody(70_000))]),
        ("cut often, with progress", vec![(20, Fault::CutBody(5000))]),
        ("stalled", vec![(1, Fault::StallBody(5000))]),
        ("busy", vec![(1, status(503)), (1, status(429)), (1, status(500))]),
        ("no ranges", vec![(1, Fault::CutBody(50_000)), (1, Fault::IgnoreRange)]),
    ];
    for (name, faults) in cases {
        let fake = Fake::start().await.unwrap();
        let bytes = data(200_000);
        let descriptor = fake.add_blob("a/b", bytes.clone());
        for (times, fault) in faults {
            fake.inject("GET /v2/a/b/blobs/", times, fault);
        }
        let got = is_send(download(&client(), &repository(&fake, "a/b"), &descriptor)).await.unwrap();
        assert!(got == bytes, "{name}");
        let ranges: Vec<_> = fake.seen().into_iter().filter(|s| !s.range.is_empty()).map(|s| s.range).collect();
        match name {
            "cut three times" => assert_eq!(ranges, ["bytes=1000-", "bytes=1000-", "bytes=71000-"]),
            "stalled" => assert_eq!(ranges, ["bytes=5000-"]),
            "no ranges" => assert_eq!(ranges, ["bytes=50000-"]),
            _ => {}
        }
    }
}

#[tokio::test]
async fn wrong_downloads_are_refused() {
    let status = |code: u16, body: &str| Fault::Status(code, vec![], body.to_owned());
    let retry_after = |seconds: &str| Fault::Status(429, vec![("retry-after".into(), seconds.into())], String::new());
    let denied = r#"{"errors":[{"code":"DENIED","message":"not yours"}]}"#;
    let cases = vec![
        (Fault::WrongBytes, "digest mismatch: expected sha256:", 1),
        (Fault::Endless, "size mismatch: expected 10000 bytes", 1),
        (Fault::Shorten(100), "size mismatch: expected 10000 bytes, the server sends 100", 1),
        (Fault::CutBody(0), "connection lost", 4),
        (Fault::Close, "connection lost", 4),
        (Fault::StallBody(0), "timed out", 4),
        (status(404, ""), "not found", 1),
        (status(403, denied), "access denied (DENIED: not yours)", 1),
        (status(401, ""), "authentication required", 1),
        (status(400, "plain words"), "unexpected status 400 (plain words)", 1),
        (status(502, "<html>"), "unexpected status 502", 4),
        (status(206, ""), "status 206", 1),
        (retry_after("86400"), "too many requests", 1),
        (Fault::Redirect("ftp://somewhere/".into()), "not HTTP", 1),
        (Fault::Redirect("/v2/a/b/blobs/loop".into()), "more than 10 redirects", 11),
    ];
    for (fault, want, requests) in cases {
        let fake = Fake::start().await.unwrap();
        let descriptor = fake.add_blob("a/b", data(10_000));
        fake.inject("/blobs/", 100, fault.clone());
        let error = download(&client(), &repository(&fake, "a/b"), &descriptor).await.map(|b| b.len()).unwrap_err();
        let text = error.to_string();
        assert!(text.contains(want) && text.starts_with(fake.host()), "{fault:?}: {text}");
        assert_eq!(fake.count("/blobs/"), requests, "{fault:?}");
    }
}

#[tokio::test]
async fn no_byte_beyond_the_announced_size_is_given_out() {
    let fake = Fake::start().await.unwrap();
    let descriptor = fake.add_blob("a/b", data(10_000));
    fake.inject("/blobs/", 1, Fault::Endless);
    let mut stream = client().blob(&repository(&fake, "a/b"), &descriptor).await.unwrap();
    let mut seen = 0;
    while let Ok(Some(bytes)) = stream.chunk().await {
        seen += bytes.len();
    }
    assert!(seen < 10_000, "the last bytes are withheld until all are verified: {seen}");
    assert!(stream.chunk().await.is_err(), "a failed stream never looks complete");
}

#[tokio::test]
async fn retry_after_is_obeyed() {
    let fake = Fake::start().await.unwrap();
    fake.add_manifest("a/b", "1", OCI_MANIFEST, image());
    fake.inject("/manifests/", 1, Fault::Status(429, vec![("Retry-After".into(), "1".into())], String::new()));
    let begin = Instant::now();
    client().resolve(&repository(&fake, "a/b").with_tag("1").unwrap()).await.unwrap();
    assert!(begin.elapsed() >= Duration::from_secs(1));
}

#[tokio::test]
async fn downloads_resume_from_what_the_caller_has() {
    let fake = Fake::start().await.unwrap();
    let bytes = data(100_000);
    let descriptor = fake.add_blob("a/b", bytes.clone());
    for have in [1, 60_000, 100_000] {
        let mut verifier = Verifier::new(&descriptor).unwrap();
        verifier.update(&bytes[..have]);
        let mut stream = client().resume_blob(&repository(&fake, "a/b"), &descriptor, verifier).await.unwrap();
        let mut all = bytes[..have].to_vec();
        while let Some(bytes) = stream.chunk().await.unwrap() {
            all.extend_from_slice(&bytes);
        }
        assert_eq!(all, bytes);
    }
    let mut verifier = Verifier::new(&descriptor).unwrap();
    verifier.update(b"not the right beginning");
    let mut stream = client().resume_blob(&repository(&fake, "a/b"), &descriptor, verifier).await.unwrap();
    let error = loop {
        match stream.chunk().await {
            Ok(bytes) => assert!(bytes.is_some()),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, Error::DigestMismatch { .. }), "{error}");
    let empty = fake.add_blob("a/b", Bytes::new());
    assert_eq!(download(&client(), &repository(&fake, "a/b"), &empty).await.unwrap(), Bytes::new());
}

#[tokio::test]
async fn manifests_are_verified() {
    let fake = Fake::start().await.unwrap();
    let digest = fake.add_manifest("a/b", "1", OCI_MANIFEST, image());
    let (client, repository) = (client(), repository(&fake, "a/b"));
    let tagged = repository.with_tag("1").unwrap();
    let resolved = client.resolve(&tagged).await.unwrap();
    assert_eq!(resolved.digest(), &digest);
    assert_eq!(resolved.bytes, image());
    resolved.parse().unwrap();
    assert_eq!(client.head(&tagged).await.unwrap(), resolved.descriptor);
    assert_eq!(client.manifest(&repository, &resolved.descriptor).await.unwrap(), resolved);
    let wrong = Descriptor::new(resolved.descriptor.media_type().clone(), 1, digest.clone());
    assert!(matches!(client.manifest(&repository, &wrong).await, Err(Error::SizeMismatch { .. })));
    for by in [repository.with_digest(digest), tagged.clone()] {
        fake.inject("GET", 1, Fault::WrongBytes);
        assert!(matches!(client.resolve(&by).await, Err(Error::DigestMismatch { .. })), "{by}");
    }
    fake.inject("GET", 1, Fault::CutBody(10));
    assert_eq!(client.resolve(&tagged).await.unwrap(), resolved, "a cut manifest is fetched again");
    fake.inject("GET", 1, Fault::Endless);
    assert!(matches!(client.resolve(&tagged).await, Err(Error::TooLarge { .. })));
    fake.inject("HEAD", 1, Fault::Status(405, vec![], String::new()));
    assert_eq!(client.head(&tagged).await.unwrap(), resolved.descriptor);
    fake.add_manifest(
        "a/b",
        "old",
        "application/vnd.docker.distribution.manifest.v1+prettyjws",
        r#"{"schemaVersion":1}"#,
    );
    let error = client.resolve(&repository.with_tag("old").unwrap()).await.unwrap_err();
    assert!(error.to_string().contains("schema 1"), "{error}");
    for odd in ["null", "[]", "{", "{\"manifests\":[{}]}", "{\"config\":null,\"layers\":[null]}"] {
        fake.add_manifest("a/b", "odd", "application/json", odd);
        let result = client.resolve(&repository.with_tag("odd").unwrap()).await;
        assert!(result.and_then(|resolved| resolved.parse()).is_err(), "{odd}");
    }
}

#[tokio::test]
async fn small_blobs_have_a_cap() {
    let fake = Fake::start().await.unwrap();
    let descriptor = fake.add_blob("a/b", data(1000));
    let repository = repository(&fake, "a/b");
    assert_eq!(client().small_blob(&repository, &descriptor, 1000).await.unwrap(), data(1000));
    let error = client().small_blob(&repository, &descriptor, 999).await.unwrap_err();
    assert!(matches!(error, Error::TooLarge { limit: 999, .. }), "{error}");
}

#[tokio::test]
async fn uploads_survive_what_networks_do() {
    let status = |code: u16| Fault::Status(code, vec![], String::new());
    type Faults = Vec<(&'static str, usize, Fault)>;
    let cases: Vec<(&str, Faults)> = vec![
        ("nothing wrong", vec![]),
        ("cut", vec![("PUT", 1, Fault::CutUpload(40_000))]),
        ("cut at once", vec![("PUT", 2, Fault::CutUpload(0))]),
        ("cut twice", vec![("PUT", 1, Fault::CutUpload(40_000)), ("PATCH", 1, Fault::CutUpload(20_000))]),
        ("busy", vec![("POST", 1, status(503)), ("PUT", 1, status(500))]),
        ("closed", vec![("HEAD", 1, Fault::Close), ("POST", 1, Fault::Close), ("PUT", 1, Fault::Close)]),
        ("session lost", vec![("PUT", 1, status(404))]),
        ("session cannot be asked", vec![("PUT", 1, Fault::CutUpload(40_000)), ("GET", 1, status(404))]),
        ("too large for one request", vec![("PUT", 1, status(413))]),
        ("answer lost", vec![("PUT", 1, Fault::LoseAnswer)]),
        ("slow to commit", vec![("PUT", 1, Fault::Delay(Duration::from_millis(700)))]),
    ];
    for (name, faults) in cases {
        let fake = Fake::start().await.unwrap();
        for (matching, times, fault) in faults {
            fake.inject(matching, times, fault);
        }
        let bytes = data(100_000);
        let descriptor = Descriptor::new("x/y".into(), 100_000, digest_of(&bytes));
        let done = Arc::new(Mutex::new(0));
        let seen = done.clone();
        let progress: registry::Progress = Arc::new(move |event| *seen.lock().unwrap() = event.done);
        let repository = repository(&fake, "a/b");
        let push = client();
        let push = push.push_blob(&repository, &descriptor, &bytes, &[], Some(&progress));
        let pushed = is_send(push).await.unwrap_or_else(|e| panic!("{name}: {e}"));
        assert!(matches!(pushed, Pushed::Uploaded { bytes } if bytes >= 100_000), "{name}: {pushed:?}");
        assert_eq!(fake.blob("a/b", descriptor.digest()), Some(bytes), "{name}");
        assert_eq!(*done.lock().unwrap(), 100_000, "{name}");
        let sent: Vec<_> =
            fake.seen().iter().filter(|s| s.received > 0).map(|s| (s.method.clone(), s.received)).collect();
        match name {
            "cut" => assert_eq!(sent, [("PUT".into(), 40_000), ("PATCH".into(), 60_000)]),
            "cut twice" => {
                assert_eq!(sent, [("PUT".into(), 40_000), ("PATCH".into(), 20_000), ("PATCH".into(), 40_000)]);
            }
            "answer lost" => assert_eq!(sent, [("PUT".into(), 100_000)]),
            _ => {}
        }
    }
}

#[tokio::test]
async fn failed_uploads_say_why() {
    let fake = Fake::start().await.unwrap();
    let bytes = data(1000);
    let repository = repository(&fake, "a/b");
    let wrong = Descriptor::new("x/y".into(), 1000, digest_of(b"other"));
    let error = client().push_blob(&repository, &wrong, &bytes, &[], None).await.unwrap_err();
    assert!(error.to_string().contains("DIGEST_INVALID"), "{error}");
    let longer = Descriptor::new("x/y".into(), 1001, digest_of(&bytes));
    let error = client().push_blob(&repository, &longer, &bytes, &[], None).await.unwrap_err();
    assert!(
        matches!(&error, Error::Source { source, .. } if source.to_string().contains("1 bytes early")),
        "{error:?}"
    );
    let missing = std::path::PathBuf::from("/nonexistent/blob");
    let error = client().push_blob(&repository, &longer, &missing, &[], None).await.unwrap_err();
    assert!(matches!(error, Error::Source { .. }), "{error:?}");
    fake.inject("PUT", 100, Fault::CutUpload(0));
    let right = Descriptor::new("x/y".into(), 1000, digest_of(&bytes));
    let error = client().push_blob(&repository, &right, &bytes, &[], None).await.unwrap_err();
    assert!(error.is_transient(), "{error}");
}

#[tokio::test]
async fn nothing_is_uploaded_that_is_there_or_can_be_mounted() {
    let fake = Fake::with_auth(token_auth(false)).await.unwrap();
    let bytes = data(5000);
    let descriptor = fake.add_blob("base/image", bytes.clone());
    let client = client_with(settings(), me(&fake));
    let (app, base) = (repository(&fake, "me/app"), repository(&fake, "base/image"));
    let other: Repository = "elsewhere.io/x".parse().unwrap();
    let absent = repository(&fake, "absent/one");
    let from = [other, app.clone(), absent, base.clone()];
    let pushed = client.push_blob(&app, &descriptor, &bytes, &from, None).await.unwrap();
    assert_eq!(pushed, Pushed::Mounted { from: base });
    let pushed = client.push_blob(&app, &descriptor, &bytes, &from, None).await.unwrap();
    assert_eq!(pushed, Pushed::Exists);
    assert!(fake.seen().iter().all(|seen| seen.received == 0));
    client.check_push(&app).await.unwrap();
    let digest = client.put_manifest(&app.with_tag("1").unwrap(), OCI_MANIFEST, image().into()).await.unwrap();
    assert_eq!(fake.manifest("me/app", digest.as_ref()).unwrap().1, image());
    assert_eq!(fake.manifest("me/app", "1").unwrap().0, OCI_MANIFEST);
    for tag in ["2", "3", "4"] {
        client.put_manifest(&app.with_tag(tag).unwrap(), OCI_MANIFEST, image().into()).await.unwrap();
    }
    assert_eq!(client.tags(&app).await.unwrap(), ["1", "2", "3", "4"], "over two pages");
    client.delete(&app.with_tag("4").unwrap()).await.unwrap();
    assert_eq!(client.tags(&app).await.unwrap().len(), 3);
}

#[tokio::test]
async fn tokens_are_fetched_once_and_again_when_refused() {
    let fake = Fake::with_auth(token_auth(false)).await.unwrap();
    let bytes = data(300_000);
    let descriptor = fake.add_blob("a/b", bytes.clone());
    let client = client_with(settings(), me(&fake));
    let repository = repository(&fake, "a/b");
    let downloads = (0..8).map(|_| {
        let (client, repository, descriptor) = (client.clone(), repository.clone(), descriptor.clone());
        tokio::spawn(async move { download(&client, &repository, &descriptor).await.unwrap() })
    });
    for download in downloads.collect::<Vec<_>>() {
        assert_eq!(download.await.unwrap(), bytes);
    }
    assert_eq!(fake.count("GET /token"), 1, "one for all");
    // The token dies in the middle of a transfer, which is then cut.
    fake.inject("/blobs/", 1, Fault::CutBody(100_000));
    let mut stream = client.blob(&repository, &descriptor).await.unwrap();
    let mut all = stream.chunk().await.unwrap().unwrap().to_vec();
    fake.revoke_tokens();
    while let Some(bytes) = stream.chunk().await.unwrap() {
        all.extend_from_slice(&bytes);
    }
    assert_eq!(all, bytes);
    assert_eq!(fake.count("GET /token"), 2);
    fake.revoke_tokens();
    let other = Descriptor::new("x/y".into(), 9, digest_of(b"123456789"));
    client.push_blob(&repository, &other, &Bytes::from_static(b"123456789"), &[], None).await.unwrap();
    assert_eq!(fake.count("GET /token"), 3);
}

/// A helper whose answers are good for a while only.
struct Expiring {
    asked: AtomicUsize,
    renewed: AtomicUsize,
}

impl CredentialSource for Expiring {
    fn get<'a>(&'a self, _: &'a str, _: &'a str) -> BoxFuture<'a, Result<Option<Credential>, CredentialsError>> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        Box::pin(async { Ok(Some(Credential::password("me", "canary-of-yesterday"))) })
    }

    fn renew<'a>(&'a self, _: &'a str, _: &'a str) -> BoxFuture<'a, Result<Option<Credential>, CredentialsError>> {
        self.renewed.fetch_add(1, Ordering::Relaxed);
        Box::pin(async { Ok(Some(Credential::password("me", CANARY))) })
    }
}

#[tokio::test]
async fn credentials_that_expired_are_asked_for_again() {
    let basic = Auth::Basic { user: "me".into(), password: CANARY.into() };
    for auth in [basic, token_auth(false)] {
        let fake = Fake::with_auth(auth.clone()).await.unwrap();
        let bytes = data(1000);
        let descriptor = fake.add_blob("a/b", bytes.clone());
        let source = Arc::new(Expiring { asked: AtomicUsize::new(0), renewed: AtomicUsize::new(0) });
        let client = Client::new(settings(), source.clone());
        let repository = repository(&fake, "a/b");
        let downloads = (0..4).map(|_| download(&client, &repository, &descriptor));
        for done in futures_util::future::join_all(downloads).await {
            assert_eq!(done.unwrap(), bytes);
        }
        let count = |counter: &AtomicUsize| counter.load(Ordering::Relaxed);
        assert_eq!((count(&source.asked), count(&source.renewed)), (1, 1), "{auth:?}: once for all");
    }
    // Some registries answer 403 to what has expired. Where nothing else is to be had, the refusal stays.
    let fake = Fake::with_auth(Auth::Basic { user: "me".into(), password: CANARY.into() }).await.unwrap();
    let bytes = data(1000);
    let descriptor = fake.add_blob("a/b", bytes.clone());
    fake.inject("/blobs/", 2, Fault::Status(403, Vec::new(), "expired".into()));
    let source = Arc::new(Expiring { asked: AtomicUsize::new(0), renewed: AtomicUsize::new(0) });
    let client = Client::new(settings(), source.clone());
    // The first 403 comes before anybody was asked for a credential.
    let error = download(&client, &repository(&fake, "a/b"), &descriptor).await.unwrap_err();
    assert!(matches!(error, Error::Denied { .. }), "{error:?}");
    client.ping(fake.host()).await.unwrap();
    assert_eq!(download(&client, &repository(&fake, "a/b"), &descriptor).await.unwrap(), bytes);
    let wrong = StaticCredentials::one(fake.host(), Credential::password("me", "canary-wrong"));
    let error = download(&client_with(settings(), wrong), &repository(&fake, "a/b"), &descriptor).await.unwrap_err();
    assert!(matches!(error, Error::Unauthorized { authenticated: true, .. }), "{error:?}");
}

#[tokio::test]
async fn foreign_layers_come_from_where_images_say_without_credentials() {
    let fake = Fake::start().await.unwrap();
    let bytes = data(400_000);
    let descriptor = fake.add_blob("elsewhere", bytes.clone());
    let source = || StaticCredentials::one(fake.host(), Credential::password("me", CANARY));
    let plain = RegistryConfig { http: Some(true), ..RegistryConfig::default() };
    let registries = BTreeMap::from([(fake.host().to_owned(), plain)]);
    let client = client_with(Settings { registries, ..settings() }, source());
    let url = format!("http://{}/v2/elsewhere/blobs/{}", fake.host(), descriptor.digest());
    fake.inject("/blobs/", 1, Fault::CutBody(100_000));
    let fetch_with = async |client: &Client, url: &str| {
        let mut stream = client.foreign_blob(url, &descriptor, Verifier::new(&descriptor)?).await?;
        let mut all = Vec::new();
        while let Some(piece) = stream.chunk().await? {
            all.extend_from_slice(&piece);
        }
        Ok::<_, Error>(all)
    };
    let fetch = async |url: &str| fetch_with(&client, url).await;
    assert_eq!(fetch(&url).await.unwrap(), bytes, "it resumes");
    fake.inject("/blobs/", 1, Fault::WrongBytes);
    assert!(matches!(fetch(&url).await, Err(Error::DigestMismatch { .. })));
    let challenge = ("WWW-Authenticate".to_owned(), "Basic realm=\"x\"".to_owned());
    fake.inject("/blobs/", 1, Fault::Status(401, vec![challenge], String::new()));
    let before = fake.seen().len();
    assert!(matches!(fetch(&url).await, Err(Error::Unauthorized { authenticated: false, .. })));
    assert_eq!(fake.seen().len(), before + 1, "there is nothing to show");
    assert!(fake.seen().iter().all(|seen| seen.authorization.is_empty()), "an image cannot have credentials sent");
    for url in ["http://169.254.169.254/latest", "file:///etc/passwd", "https://u:p@example.com/x", "nonsense", ""] {
        let error = fetch(url).await.unwrap_err();
        assert!(error.to_string().contains("HTTPS"), "{url}: {error}");
    }
    // Services of this machine are not asked for an image's sake, neither at once nor by way of somebody else.
    let inner = Fake::start().await.unwrap();
    fake.inject("/blobs/", 1, Fault::Redirect(format!("http://{}/v2/", inner.host())));
    assert!(fetch(&url).await.unwrap_err().to_string().contains("a redirect to where an image may not lead"));
    for near in [url.clone(), format!("https://{}/", inner.host()), "https://169.254.169.254/latest".into()] {
        let error = fetch_with(&client_with(settings(), source()), &near).await.unwrap_err();
        assert!(error.to_string().contains("HTTPS"), "{near}: {error}");
    }
    assert!(inner.seen().is_empty());
}

#[tokio::test]
async fn expired_tokens_are_not_sent() {
    let Auth::Token { user, password, identity, public, realm, .. } = token_auth(false) else { unreachable!() };
    let lifetime = Duration::from_millis(200);
    let fake = Fake::with_auth(Auth::Token { user, password, identity, lifetime, public, realm }).await.unwrap();
    let client = client_with(settings(), me(&fake));
    for _ in 0..2 {
        client.ping(fake.host()).await.unwrap();
        tokio::time::sleep(lifetime).await;
    }
    let refused = fake.seen().iter().filter(|s| s.status == 401).count();
    assert_eq!(refused, 1, "only the first request, which learns what is wanted, is refused");
}

#[tokio::test]
async fn everyone_is_let_in_as_they_should() {
    let fake = Fake::with_auth(token_auth(true)).await.unwrap();
    fake.add_manifest("a/b", "1", OCI_MANIFEST, image());
    let reference = repository(&fake, "a/b").with_tag("1").unwrap();
    client().resolve(&reference).await.unwrap();
    let error = client().check_push(reference.repository()).await.unwrap_err();
    assert!(matches!(error, Error::Unauthorized { authenticated: false, .. }), "{error:?}");
    for (credential, good) in [
        (Credential::password("me", CANARY), true),
        (Credential::password("me", "canary-wrong"), false),
        (Credential::IdentityToken("canary-identity".to_owned().into()), true),
        (Credential::IdentityToken("canary-bad".to_owned().into()), false),
        (Credential::RegistryToken("canary-bad".to_owned().into()), false),
    ] {
        let result = client().login(fake.host(), credential.clone()).await;
        assert_eq!(result.is_ok(), good, "{credential:?}: {result:?}");
        if let Err(error) = result {
            assert!(matches!(error, Error::Unauthorized { authenticated: true, .. }), "{error:?}");
            assert!(!format!("{error} {error:?}").contains("canary"), "{error:?}");
        }
    }
    let fake = Fake::with_auth(Auth::Basic { user: "me".into(), password: CANARY.into() }).await.unwrap();
    client().login(fake.host(), Credential::password("me", CANARY)).await.unwrap();
    assert!(client().login(fake.host(), Credential::password("me", "no")).await.is_err());
    client_with(settings(), me(&fake)).ping(fake.host()).await.unwrap();
    let error = client().login(fake.host(), Credential::IdentityToken("x".to_owned().into())).await.unwrap_err();
    assert!(error.to_string().contains("wants a user name and a password"), "{error}");
}

#[tokio::test]
async fn credentials_never_go_to_another_host() {
    let cdn = Fake::start().await.unwrap();
    let fake = Fake::with_auth(token_auth(false)).await.unwrap();
    let bytes = data(10_000);
    let descriptor = fake.add_blob("a/b", bytes.clone());
    cdn.add_blob("cdn", bytes.clone());
    let client = client_with(settings(), me(&fake));
    let target = format!("http://canary:user@{}/v2/cdn/blobs/{}?sig=canary-sig", cdn.host(), descriptor.digest());
    fake.inject(
        "/blobs/",
        1,
        Fault::Status(
            401,
            vec![("www-authenticate".into(), format!("Bearer realm=\"http://{}/token\"", fake.host()))],
            String::new(),
        ),
    );
    fake.inject("/blobs/", 100, Fault::Redirect(target));
    let repository = repository(&fake, "a/b");
    assert_eq!(download(&client, &repository, &descriptor).await.unwrap(), bytes);
    assert!(fake.seen().iter().any(|seen| seen.authorization.starts_with("Bearer ")));
    assert!(cdn.seen().iter().all(|seen| seen.authorization.is_empty()), "{:?}", cdn.seen());
    // Nor does its 401 make us log in, and its signed URL is not shown.
    for fault in [
        Fault::Status(401, vec![("www-authenticate".into(), "Basic realm=x".into())], String::new()),
        Fault::Status(403, vec![], String::new()),
        Fault::WrongBytes,
        Fault::Close,
    ] {
        cdn.inject("/v2/cdn", 4, fault);
        let error = download(&client, &repository, &descriptor).await.unwrap_err();
        assert!(!format!("{error} {error:?}").contains("canary"), "{error:?}");
    }
    assert!(cdn.seen().iter().all(|seen| seen.authorization.is_empty()));
    // An upload that is sent elsewhere goes without them too.
    fake.clear_faults();
    cdn.clear_faults();
    let elsewhere = format!("http://{}/v2/cdn/blobs/uploads/1", cdn.host());
    fake.inject("POST", 1, Fault::Status(202, vec![("location".into(), elsewhere)], String::new()));
    let other = Descriptor::new("x/y".into(), 9, digest_of(b"123456789"));
    let _ = client.push_blob(&repository, &other, &Bytes::from_static(b"123456789"), &[], None).await;
    assert!(cdn.count("PUT") > 0 && cdn.seen().iter().all(|seen| seen.authorization.is_empty()));
}

#[tokio::test]
async fn token_servers_without_tls_are_refused() {
    for realm in ["http://tokens.example/token", "ftp://127.0.0.1/token", "http://user:pw@127.0.0.1:1/token"] {
        let Auth::Token { user, password, identity, lifetime, public, .. } = token_auth(false) else { unreachable!() };
        let auth = Auth::Token { user, password, identity, lifetime, public, realm: realm.into() };
        let fake = Fake::with_auth(auth).await.unwrap();
        let error = client_with(settings(), me(&fake)).ping(fake.host()).await.unwrap_err();
        assert!(error.to_string().contains("not reached by HTTPS"), "{error}");
    }
}

#[tokio::test]
async fn no_secret_is_ever_shown() {
    let events = Arc::new(Mutex::new(Vec::new()));
    let sink = events.clone();
    let mut settings = settings();
    settings.on_event = Some(Arc::new(move |event| sink.lock().unwrap().push(format!("{event:?}"))));
    settings.proxies.http = Some("http://u:canary-proxy@127.0.0.1:1".into());
    let fake = Fake::with_auth(token_auth(false)).await.unwrap();
    let credentials = me(&fake);
    let client = client_with(settings.clone(), credentials.clone());
    let mut shown = format!("{settings:?} {client:?} {credentials:?}");
    let descriptor = fake.add_blob("a/b", data(1000));
    let repository = repository(&fake, "a/b");
    download(&client, &repository, &descriptor).await.unwrap();
    let echo = r#"{"errors":[{"code":"{authorization}","message":"{credentials}"}]}"#;
    for status in [400, 401, 403, 404, 429, 503] {
        for matching in ["/blobs/", "/token"] {
            let client = client_with(settings.clone(), credentials.clone());
            client.ping(fake.host()).await.unwrap();
            fake.inject(matching, 6, Fault::Status(status, vec![], echo.to_owned()));
            let result = download(&client, &repository, &descriptor).await.map(|bytes| bytes.len());
            let error = result.expect_err(&format!("{status} {matching}"));
            shown += &format!("{error} {error:?}");
            fake.clear_faults();
        }
    }
    shown += &events.lock().unwrap().join(" ");
    assert!(shown.contains("***"), "secrets were echoed and replaced");
    assert!(!shown.contains("canary"), "{shown}");
}

#[tokio::test]
async fn mirrors_are_asked_first_and_forgiven() {
    let (mirror, second, origin) =
        (Fake::start().await.unwrap(), Fake::start().await.unwrap(), Fake::start().await.unwrap());
    let events = Arc::new(Mutex::new(Vec::new()));
    let sink = events.clone();
    let mut settings = settings();
    settings.on_event = Some(Arc::new(move |event: &Event| sink.lock().unwrap().push(event.clone())));
    let mirrors = vec![format!("{}/proxy/hub", mirror.host()), format!("http://{}", second.host())];
    let config = RegistryConfig { mirrors, ..RegistryConfig::default() };
    settings.registries = BTreeMap::from([(origin.host().to_owned(), config)]);
    let client = client_with(settings, StaticCredentials::anonymous());
    let bytes = data(100_000);
    let descriptor = origin.add_blob("a/b", bytes.clone());
    let repository = repository(&origin, "a/b");
    let served = || -> Vec<String> {
        let served = |event: Event| if let Event::Served { host, .. } = event { Some(host) } else { None };
        std::mem::take(&mut *events.lock().unwrap()).into_iter().filter_map(served).collect()
    };

    assert_eq!(download(&client, &repository, &descriptor).await.unwrap(), bytes);
    assert_eq!(served(), [origin.host()], "neither mirror has it");
    mirror.add_blob("proxy/hub/a/b", bytes.clone());
    assert_eq!(download(&client, &repository, &descriptor).await.unwrap(), bytes);
    assert_eq!(served(), [mirror.host()]);
    assert!(mirror.seen().iter().all(|seen| seen.target.contains("ns=127.0.0.1") || seen.target == "/v2/"));
    mirror.inject("/blobs/", 2, Fault::CutBody(30_000));
    mirror.inject("/blobs/", 9, Fault::Close);
    assert_eq!(download(&client, &repository, &descriptor).await.unwrap(), bytes);
    assert_eq!(served(), [mirror.host(), mirror.host(), origin.host()], "a mirror that dies is replaced in the middle");
    second.add_blob("a/b", bytes.clone());
    mirror.clear_faults();
    mirror.inject("/blobs/", 1, Fault::WrongBytes);
    assert_eq!(client.small_blob(&repository, &descriptor, 1 << 20).await.unwrap(), bytes);
    assert_eq!(served(), [mirror.host(), second.host()], "a mirror that lies is not believed");
    download(&client, &repository, &descriptor).await.unwrap();
    assert_eq!(served(), [second.host()], "nor asked again");
    let digest = second.add_manifest("a/b", "1", OCI_MANIFEST, image());
    let resolved = client.resolve(&repository.with_tag("1").unwrap()).await.unwrap();
    assert_eq!((resolved.digest(), resolved.host.as_str()), (&digest, second.host()));
    client.put_manifest(&repository.with_tag("2").unwrap(), OCI_MANIFEST, image().into()).await.unwrap();
    assert!(origin.manifest("a/b", "2").is_some() && second.count("PUT") == 0, "pushes go to the registry itself");
}

#[tokio::test]
async fn nobody_there_is_told_at_once_as_such() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let host = listener.local_addr().unwrap().to_string();
    drop(listener);
    let reference: Reference = format!("{host}/a:1").parse().unwrap();
    let error = client().resolve(&reference).await.unwrap_err();
    assert!(matches!(error, Error::Connect { kind: Unreachable::Refused, .. }), "{error:?}");
    assert!(error.to_string().contains("Connection refused"), "{error}");
    let mut settings = settings();
    let http = RegistryConfig { mirrors: vec!["not a host".into()], ..RegistryConfig::default() };
    settings.registries.insert(host.clone(), http);
    let error = client_with(settings, StaticCredentials::anonymous()).resolve(&reference).await.unwrap_err();
    assert!(error.to_string().contains("mirror \"not a host\""), "{error}");
}

#[tokio::test]
async fn transfers_are_limited() {
    let fake = Fake::start().await.unwrap();
    let descriptor = fake.add_blob("a/b", data(100_000));
    let client = client_with(Settings { parallel: 2, ..settings() }, StaticCredentials::anonymous());
    let repository = repository(&fake, "a/b");
    let first = client.blob(&repository, &descriptor).await.unwrap();
    let _second = client.blob(&repository, &descriptor).await.unwrap();
    let wait = Duration::from_millis(100);
    assert!(tokio::time::timeout(wait, client.blob(&repository, &descriptor)).await.is_err());
    drop(first);
    assert!(tokio::time::timeout(wait * 20, client.blob(&repository, &descriptor)).await.is_ok());
}

/// What the caller is told of retries while `name` is looked for.
async fn retries_for(name: &str) -> (usize, Error) {
    let retries = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counter = retries.clone();
    let on_event: registry::EventSink = Arc::new(move |event| {
        if matches!(event, registry::Event::Retrying { .. }) {
            counter.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        }
    });
    let settings = Settings { on_event: Some(on_event), ..settings() };
    let reference: Reference = name.parse().expect("a reference");
    let error =
        client_with(settings, StaticCredentials::anonymous()).resolve(&reference).await.expect_err("nobody is there");
    (retries.load(std::sync::atomic::Ordering::Relaxed), error)
}

/// Names below `.invalid` exist nowhere (RFC 6761), which the resolver knows by itself.
#[tokio::test]
async fn a_name_that_does_not_exist_is_not_tried_again() {
    let (retries, error) = retries_for("registry.invalid/a:1").await;
    assert!(matches!(error, Error::Connect { kind: Unreachable::NoSuchName, .. }), "{error:?}");
    assert!(error.to_string().ends_with("there is no host of this name"), "{error}");
    assert_eq!(retries, 0);
}

/// One that nobody has heard of is soon given up; one that has answered may be on its way back.
#[tokio::test]
async fn a_refused_connection_is_tried_a_few_times() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let name = format!("{}/a:1", listener.local_addr().unwrap());
    drop(listener);
    let (retries, error) = retries_for(&name).await;
    assert!(error.is_refused(), "{error:?}");
    assert_eq!(retries, 2);
}
