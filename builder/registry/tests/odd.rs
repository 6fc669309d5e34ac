//! Registries that are within their rights, or nearly so: what public ones are known to do differently.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use registry::fake::{Auth, Fake, Fault};
use registry::{
    Client, Credential, Descriptor, Error, Manifest, OCI_INDEX, OCI_MANIFEST, Pushed, Reference, Repository,
    RetryPolicy, Settings, StaticCredentials, digest_of,
};

fn client(credentials: Arc<StaticCredentials>) -> Client {
    let retry = RetryPolicy { per_request: 2, base: Duration::from_millis(1), ..RetryPolicy::default() };
    Client::new(Settings { retry, stall_timeout: Duration::from_secs(2), ..Settings::default() }, credentials)
}

fn anonymous() -> Client {
    client(StaticCredentials::anonymous())
}

fn repository(fake: &Fake, path: &str) -> Repository {
    format!("{}/{path}", fake.host()).parse::<Reference>().expect("a name").repository().clone()
}

fn blob(bytes: &'static [u8]) -> (Descriptor, Bytes) {
    (Descriptor::new("x/y".into(), bytes.len() as u64, digest_of(bytes)), Bytes::from_static(bytes))
}

fn status(status: u16, headers: &[(&str, &str)], body: &str) -> Fault {
    let headers = headers.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
    Fault::Status(status, headers.collect(), body.to_owned())
}

#[tokio::test]
async fn blobs_are_pushed_where_head_is_not_known() {
    for code in [405, 501] {
        let fake = Fake::start().await.unwrap();
        fake.inject("HEAD", 10, status(code, &[], ""));
        let (descriptor, bytes) = blob(b"bytes");
        let repository = repository(&fake, "a/b");
        anonymous().push_blob(&repository, &descriptor, &bytes, &[], None).await.unwrap();
        assert_eq!(fake.blob("a/b", descriptor.digest()), Some(bytes));
    }
}

#[tokio::test]
async fn a_registry_that_does_not_mount_begins_an_upload_instead() {
    let fake = Fake::start().await.unwrap();
    let (descriptor, bytes) = blob(b"bytes");
    let from = repository(&fake, "base/image");
    // It begins an upload, and says where by a path with a query of its own.
    fake.inject("mount=", 1, status(202, &[("location", "/v2/a/b/blobs/uploads/77?_state=x%2By%3D&p=1")], ""));
    fake.inject("uploads/77?_state=x%2By%3D&p=1&digest=sha256%3A", 1, status(201, &[], ""));
    let pushed = anonymous().push_blob(&repository(&fake, "a/b"), &descriptor, &bytes, &[from], None).await.unwrap();
    assert!(matches!(pushed, Pushed::Uploaded { .. }), "{pushed:?}");
}

#[tokio::test]
async fn locations_may_be_relative_and_may_not_be_nonsense() {
    let (descriptor, bytes) = blob(b"bytes");
    for (location, works) in [
        ("/v2/a/b/blobs/uploads/9?x=y", true),
        ("uploads/9", true),
        ("?session=9", true),
        ("ftp://elsewhere/9", false),
        ("http://[", false),
    ] {
        let fake = Fake::start().await.unwrap();
        fake.inject("POST", 1, status(202, &[("location", location)], ""));
        fake.inject("PUT", 1, status(201, &[], ""));
        let result = anonymous().push_blob(&repository(&fake, "a/b"), &descriptor, &bytes, &[], None).await;
        assert_eq!(result.is_ok(), works, "{location}: {result:?}");
    }
    let fake = Fake::start().await.unwrap();
    fake.inject("POST", 1, status(202, &[], ""));
    let error = anonymous().push_blob(&repository(&fake, "a/b"), &descriptor, &bytes, &[], None).await.unwrap_err();
    assert!(matches!(error, Error::InvalidResponse { .. }), "{error}");
}

#[tokio::test]
async fn challenges_come_in_many_forms() {
    let auth = Auth::Token {
        user: "u".into(),
        password: "p".into(),
        identity: String::new(),
        lifetime: Duration::from_secs(60),
        public: false,
        realm: String::new(),
    };
    let fake = Fake::with_auth(auth).await.unwrap();
    let digest = fake.add_manifest("a/b", "1", OCI_MANIFEST, r#"{"config":{},"layers":[]}"#);
    let realm = format!("http://{}/token", fake.host());
    let challenges = [
        format!("bearer realm=\"{realm}\",service=\"s\""),
        format!("Negotiate, BEARER realm=\"{realm}\", scope=\"repository:a/b:pull\""),
        format!(
            "Basic realm=\"x, y\", Bearer realm=\"{realm}\",error=\"insufficient_scope\",scope=\"repository:a/b:pull\""
        ),
        format!("Bearer error=\"invalid_token\", Bearer realm=\"{realm}\""),
    ];
    for challenge in challenges {
        let client = client(StaticCredentials::one(fake.host(), Credential::password("u", "p")));
        fake.inject("GET /v2/a/b/manifests", 1, status(401, &[("www-authenticate", &challenge)], ""));
        let resolved = client.resolve(&repository(&fake, "a/b").with_tag("1").unwrap()).await;
        assert_eq!(resolved.unwrap_or_else(|error| panic!("{challenge}: {error}")).digest(), &digest);
    }
}

#[tokio::test]
async fn another_kind_of_digest_names_the_same_document() {
    let fake = Fake::start().await.unwrap();
    let manifest = r#"{"schemaVersion":2,"manifests":[]}"#;
    let sha512 = |text: &str| format!("sha512:{}", hex::encode(<sha2::Sha512 as sha2::Digest>::digest(text)));
    for (said, good) in [(sha512(manifest), true), (sha512("other"), false), ("nonsense".to_owned(), true)] {
        fake.inject("/manifests/", 1, status(200, &[("docker-content-digest", &said)], manifest));
        let resolved = anonymous().resolve(&repository(&fake, "a/b").with_tag("1").unwrap()).await;
        let digest = resolved.ok().map(|resolved| resolved.digest().clone());
        assert_eq!(digest, good.then(|| digest_of(manifest.as_bytes())), "{said}");
    }
}

#[tokio::test]
async fn a_token_that_ends_in_the_middle_of_a_push_is_renewed() {
    let auth = Auth::Token {
        user: "u".into(),
        password: "p".into(),
        identity: String::new(),
        lifetime: Duration::from_secs(600),
        public: false,
        realm: String::new(),
    };
    let fake = Fake::with_auth(auth).await.unwrap();
    let client = client(StaticCredentials::one(fake.host(), Credential::password("u", "p")));
    let repository = repository(&fake, "a/b");
    for bytes in [&b"one"[..], b"two", b"three"] {
        let (descriptor, bytes) =
            (Descriptor::new("x/y".into(), bytes.len() as u64, digest_of(bytes)), Bytes::from_static(bytes));
        client.push_blob(&repository, &descriptor, &bytes, &[], None).await.unwrap();
        fake.revoke_tokens();
    }
    client.put_manifest(&repository.with_tag("1").unwrap(), OCI_MANIFEST, "{}".into()).await.unwrap();
    assert!(fake.manifest("a/b", "1").is_some());
}

#[tokio::test]
async fn documents_without_a_length_or_a_digest_are_taken() {
    let fake = Fake::start().await.unwrap();
    let body = r#"{"schemaVersion":2,"config":{"mediaType":"x/y","digest":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855","size":0},"layers":[]}"#;
    fake.inject("GET", 1, status(200, &[("content-type", "application/octet-stream")], body));
    let resolved = anonymous().resolve(&repository(&fake, "a/b").with_tag("1").unwrap()).await.unwrap();
    assert_eq!(resolved.digest(), &digest_of(body.as_bytes()));
    assert!(matches!(resolved.parse().unwrap(), Manifest::Image(_)));
}

#[tokio::test]
async fn hostile_documents_are_refused_and_crash_nothing() {
    let digest = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    let deep = "[".repeat(200_000);
    let nested = format!("{{\"a\":{}{}}}", "[".repeat(5000), "]".repeat(5000));
    let many = format!("{{\"manifests\":[{}]}}", vec!["null"; 100_000].join(","));
    let size = |size: &str| {
        format!(
            "{{\"schemaVersion\":2,\"config\":{{\"mediaType\":\"x/y\",\"digest\":\"{digest}\",\"size\":{size}}},\"layers\":[]}}"
        )
    };
    let both = format!("{{\"manifests\":[],\"layers\":[],\"config\":{{\"digest\":\"{digest}\"}}}}");
    let bad_digest = size("0").replace(digest, "sha256:../../../etc/passwd");
    let wrong_length = size("0").replace(digest, "sha256:abc");
    for body in [
        "",
        "null",
        "[]",
        "\"x\"",
        "0",
        "{",
        "{}",
        &deep,
        &nested,
        &many,
        &both,
        &bad_digest,
        &wrong_length,
        &size("-1"),
        &size("1e400"),
        &size("18446744073709551616"),
        &size("null"),
        &size("\"1\""),
        r#"{"config":null,"layers":null}"#,
        r#"{"manifests":{}}"#,
        r#"{"mediaType":7,"layers":[{}]}"#,
        "\u{feff}{}",
        "{\"layers\":[\u{0}]}",
    ] {
        for media_type in [OCI_MANIFEST, OCI_INDEX, "application/json", ""] {
            let parsed = Manifest::parse(media_type, body.as_bytes());
            assert!(parsed.is_err(), "{media_type}: {}: {parsed:?}", &body[..body.len().min(80)]);
        }
    }
    // A document that names a field twice has one meaning, wherever it is read.
    let twice = size("0").replace("\"layers\":[]", "\"layers\":[{}],\"layers\":[]");
    let Ok(Manifest::Image(image)) = Manifest::parse(OCI_MANIFEST, twice.as_bytes()) else { panic!("{twice}") };
    assert!(image.layers().is_empty());
}

#[tokio::test]
async fn hosts_may_be_ipv6_addresses() {
    for (text, registry) in
        [("[::1]:5000/a/b:1", "[::1]:5000"), ("[fe80::1]/a", "[fe80::1]"), ("localhost:5000/a", "localhost:5000")]
    {
        let reference: Reference = text.parse().unwrap_or_else(|error| panic!("{text}: {error}"));
        assert_eq!(reference.registry(), registry);
    }
    let error = anonymous().ping("[::1]:1").await.unwrap_err();
    assert!(matches!(error, Error::Connect { .. }), "{error}");
}
