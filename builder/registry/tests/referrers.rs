//! Manifests with a subject, at registries that keep lists of them and at those that do not; uploads of what is still being made.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use registry::fake::{Fake, Fault};
use registry::{
    Client, GrowingSource, OCI_INDEX, OCI_MANIFEST, Pushed, Repository, RetryPolicy, Settings, StaticCredentials,
    digest_of,
};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWriteExt as _};

fn client() -> Client {
    let settings = Settings {
        retry: RetryPolicy { base: Duration::from_millis(5), ..RetryPolicy::default() },
        stall_timeout: Duration::from_millis(500),
        ..Settings::default()
    };
    Client::new(settings, StaticCredentials::anonymous())
}

fn repository(fake: &Fake) -> Repository {
    format!("{}/a/b", fake.host()).parse().expect("a repository")
}

const SUBJECT: &[u8] = b"the image's manifest";

fn referrer(number: usize) -> Bytes {
    let empty = digest_of(b"{}").to_string();
    json!({
        "schemaVersion": 2, "mediaType": OCI_MANIFEST, "artifactType": "application/vnd.test",
        "config": { "mediaType": "application/vnd.oci.empty.v1+json", "digest": empty, "size": 2 }, "layers": [],
        "subject": { "mediaType": OCI_MANIFEST, "digest": digest_of(SUBJECT).to_string(), "size": SUBJECT.len() },
        "annotations": { "number": number.to_string() },
    })
    .to_string()
    .into()
}

async fn put(fake: &Fake, number: usize) {
    let bytes = referrer(number);
    let target = repository(fake).with_digest(digest_of(&bytes));
    client().put_manifest(&target, OCI_MANIFEST, bytes).await.expect("the registry takes it");
}

#[tokio::test]
async fn a_registry_that_keeps_lists_is_asked() {
    let fake = Fake::start().await.unwrap();
    fake.keep_referrers();
    put(&fake, 1).await;
    put(&fake, 2).await;
    let list = client().referrers(&repository(&fake), &digest_of(SUBJECT)).await.unwrap();
    assert_eq!(list.len(), 2);
    assert_eq!(fake.count("sha256-"), 0, "no tag is needed");
    assert!(client().referrers(&repository(&fake), &digest_of(b"other")).await.unwrap().is_empty());
}

#[tokio::test]
async fn others_get_the_list_under_a_tag() {
    let fake = Fake::start().await.unwrap();
    let subject = digest_of(SUBJECT);
    assert!(client().referrers(&repository(&fake), &subject).await.unwrap().is_empty());
    put(&fake, 1).await;
    put(&fake, 2).await;
    put(&fake, 2).await;
    let (media_type, bytes) = fake.manifest("a/b", &format!("sha256-{}", subject.digest())).unwrap();
    assert_eq!(media_type, OCI_INDEX);
    let index: Value = serde_json::from_slice(&bytes).unwrap();
    let entries = index["manifests"].as_array().unwrap();
    assert_eq!(entries.len(), 2);
    assert_eq!(entries[1]["artifactType"], "application/vnd.test");
    assert_eq!(entries[1]["annotations"]["number"], "2");
    assert_eq!(entries[1]["size"], referrer(2).len());
    let list = client().referrers(&repository(&fake), &subject).await.unwrap();
    assert_eq!(list[0].digest(), &digest_of(&referrer(1)));
    // A tag that is something else is nobody's to replace.
    fake.add_manifest("a/b", &format!("sha256-{}", subject.digest()), OCI_MANIFEST, r#"{"config":{}}"#);
    let bytes = referrer(3);
    let target = repository(&fake).with_digest(digest_of(&bytes));
    let error = client().put_manifest(&target, OCI_MANIFEST, bytes).await.unwrap_err();
    assert!(error.to_string().contains("is no index"), "{error}");
}

/// All read, then all write: the registry keeps what came last, and yet nobody's is lost in the end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writers_of_one_list_do_not_lose_each_others() {
    const WRITERS: usize = 8;
    let fake = Arc::new(Fake::start().await.unwrap());
    fake.inject("PUT /v2/a/b/manifests/sha256-", WRITERS, Fault::Delay(Duration::from_millis(30)));
    let writers = (0..WRITERS).map(|number| {
        let fake = Arc::clone(&fake);
        tokio::spawn(async move { put(&fake, number).await })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await.unwrap();
    }
    let list = client().referrers(&repository(&fake), &digest_of(SUBJECT)).await.unwrap();
    assert_eq!(list.len(), WRITERS);
}

/// Bytes that come piece by piece.
struct Slowly(Bytes);

impl GrowingSource for Slowly {
    fn open(&self) -> BoxFuture<'_, io::Result<Box<dyn AsyncRead + Send + Unpin>>> {
        let bytes = self.0.clone();
        Box::pin(async move {
            let (mut writer, reader) = tokio::io::duplex(64 << 10);
            tokio::spawn(async move {
                for piece in bytes.chunks(100_000) {
                    tokio::time::sleep(Duration::from_millis(2)).await;
                    if writer.write_all(piece).await.is_err() {
                        return;
                    }
                }
            });
            Ok(Box::new(reader) as _)
        })
    }
}

/// A source that comes to nothing.
struct Broken;

impl GrowingSource for Broken {
    fn open(&self) -> BoxFuture<'_, io::Result<Box<dyn AsyncRead + Send + Unpin>>> {
        Box::pin(async { Err(io::Error::other("given up")) })
    }
}

fn blob() -> Bytes {
    (0..1_000_000).map(|n| (n * 31 % 251) as u8).collect()
}

/// Sends a blob while it is made; bytes that left, and how it came to be there.
async fn streamed(fake: &Fake, bytes: &Bytes) -> Pushed {
    let (client, repository) = (client(), repository(fake));
    let told = Arc::new(AtomicU64::new(0));
    let counter = told.clone();
    let on_sent = Arc::new(move |n| counter.store(n, Ordering::Relaxed));
    let begun = client.begin_blob(&repository, &Slowly(bytes.clone()), on_sent).await.expect("the registry takes it");
    assert!(told.load(Ordering::Relaxed) > 0);
    let kind = registry::MediaType::ImageLayerGzip;
    let descriptor = registry::Descriptor::new(kind, bytes.len() as u64, digest_of(bytes));
    let pushed = client.finish_blob(&repository, &descriptor, bytes, begun, None).await.expect("the registry takes it");
    assert_eq!(fake.blob("a/b", descriptor.digest()).as_ref(), Some(bytes));
    assert_eq!(fake.open_uploads(), 0);
    pushed
}

#[tokio::test]
async fn a_blob_leaves_while_it_is_made() {
    let fake = Fake::start().await.unwrap();
    let bytes = blob();
    assert_eq!(streamed(&fake, &bytes).await, Pushed::Uploaded { bytes: bytes.len() as u64 });
    assert_eq!(fake.count("PATCH"), 1);
    let ends: Vec<_> = fake.seen().into_iter().filter(|seen| seen.method == "PUT").collect();
    assert_eq!(ends.iter().map(|seen| seen.received).collect::<Vec<_>>(), [0], "all bytes had left before");
    // It is there now: what is begun for it is given up.
    assert_eq!(streamed(&fake, &bytes).await, Pushed::Exists);
}

#[tokio::test]
async fn a_blob_that_is_cut_while_it_is_made_goes_on_from_there() {
    for fault in [
        Fault::CutUpload(300_000),
        Fault::Status(411, Vec::new(), "length required".into()),
        Fault::Status(500, Vec::new(), String::new()),
        Fault::Close,
        Fault::LoseAnswer,
    ] {
        let fake = Fake::start().await.unwrap();
        let bytes = blob();
        fake.inject("PATCH", 1, fault.clone());
        assert!(matches!(streamed(&fake, &bytes).await, Pushed::Uploaded { .. }), "{fault:?}");
    }
}

#[tokio::test]
async fn what_comes_to_nothing_is_given_up() {
    let fake = Fake::start().await.unwrap();
    let (client, repository) = (client(), repository(&fake));
    let begun = client.begin_blob(&repository, &Broken, Arc::new(|_| {})).await.unwrap();
    assert_eq!(fake.open_uploads(), 1);
    client.give_up(&repository, begun).await;
    assert_eq!(fake.open_uploads(), 0);
    // Nobody there to begin with.
    fake.inject("POST", 1, Fault::Status(403, Vec::new(), String::new()));
    assert!(client.begin_blob(&repository, &Broken, Arc::new(|_| {})).await.is_none());
}
