//! Whom the client asks: containerd's hosts.toml and podman's registries.conf against registries in memory.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use registry::fake::{Auth, Fake, Fault};
use registry::{Client, Credential, Error, Event, OCI_MANIFEST, Reference, RetryPolicy, Settings, StaticCredentials};

const IMAGE: &str = r#"{"schemaVersion":2,"config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855","size":0},"layers":[]}"#;

fn settings(dir: &Path) -> Settings {
    Settings {
        certs_dirs: vec![dir.join("certs.d")],
        registries_conf: vec![dir.join("registries.conf")],
        daemon_json: vec![dir.join("daemon.json")],
        retry: RetryPolicy { per_request: 1, base: Duration::from_millis(1), ..RetryPolicy::default() },
        ..Settings::default()
    }
}

fn hosts_toml(dir: &Path, registry: &str, text: &str) {
    let dir = dir.join("certs.d").join(registry);
    std::fs::create_dir_all(&dir).expect("our directory");
    std::fs::write(dir.join("hosts.toml"), text).expect("our directory");
}

fn name(text: &str) -> Reference {
    text.parse().expect("a name")
}

#[tokio::test]
async fn containerds_hosts_are_asked_for_what_they_can() {
    let (registry, mirror, other) =
        (Fake::start().await.unwrap(), Fake::start().await.unwrap(), Fake::start().await.unwrap());
    let dir = tempfile::tempdir().unwrap();
    hosts_toml(
        dir.path(),
        "example.com",
        &format!(
            "server = \"http://{}\"\n[host.\"http://{}\"]\ncapabilities = [\"pull\"]\n\
             [host.\"http://{}/v2/proxy\"]\ncapabilities = [\"pull\", \"resolve\"]\noverride_path = true\n\
             [host.\"http://{2}/v2/proxy\".header]\nx-token = \"canary\"\n",
            registry.host(),
            other.host(),
            mirror.host()
        ),
    );
    let digest = mirror.add_manifest("proxy/a/b", "1", OCI_MANIFEST, IMAGE);
    let client = Client::new(settings(dir.path()), StaticCredentials::anonymous());
    let resolved = client.resolve(&name("example.com/a/b:1")).await.unwrap();
    assert_eq!((resolved.digest(), resolved.host.as_str()), (&digest, mirror.host()));
    // The first host is only asked by digest, and does not have it.
    assert!(other.seen().is_empty());
    client.resolve(&name(&format!("example.com/a/b@{digest}"))).await.unwrap();
    assert_eq!(other.count("GET /v2/a/b/manifests/sha256"), 1);
    assert!(registry.seen().is_empty());
    // What goes there goes to the registry itself.
    let pushed = client.put_manifest(&name("example.com/a/b:2"), OCI_MANIFEST, IMAGE.into()).await.unwrap();
    assert_eq!(pushed, digest);
    assert!(registry.manifest("a/b", "2").is_some() && mirror.manifest("proxy/a/b", "2").is_none());
    // A file that cannot be read is no reason to ask somebody else.
    hosts_toml(dir.path(), "broken.example", "server = 1");
    assert!(matches!(client.resolve(&name("broken.example/a:1")).await, Err(Error::Settings { .. })));
}

#[tokio::test]
async fn registries_conf_moves_mirrors_and_blocks() {
    let (mirror, moved) = (Fake::start().await.unwrap(), Fake::start().await.unwrap());
    let dir = tempfile::tempdir().unwrap();
    let conf = format!(
        "[[registry]]\nprefix = \"docker.io/team\"\nlocation = \"{0}/internal\"\ninsecure = true\n\
         [[registry.mirror]]\nlocation = \"{1}/hub\"\ninsecure = true\npull-from-mirror = \"digest-only\"\n\
         [[registry]]\nlocation = \"bad.example\"\nblocked = true\n",
        moved.host(),
        mirror.host()
    );
    std::fs::write(dir.path().join("registries.conf"), conf).unwrap();
    let served = Arc::new(Mutex::new(Vec::new()));
    let seen = served.clone();
    let on_event = move |event: &Event| {
        if let Event::Served { host, mirror, .. } = event {
            seen.lock().unwrap().push((host.clone(), *mirror));
        }
    };
    let settings = Settings { on_event: Some(Arc::new(on_event)), ..settings(dir.path()) };
    let client = Client::new(settings, StaticCredentials::anonymous());
    let digest = moved.add_manifest("internal/app", "1", OCI_MANIFEST, IMAGE);
    mirror.add_manifest("hub/app", "1", OCI_MANIFEST, IMAGE);
    client.resolve(&name("docker.io/team/app:1")).await.unwrap();
    client.resolve(&name(&format!("docker.io/team/app@{digest}"))).await.unwrap();
    let hosts = [(moved.host().to_owned(), false), (mirror.host().to_owned(), true)];
    assert_eq!(*served.lock().unwrap(), hosts);
    client.put_manifest(&name("docker.io/team/app:2"), OCI_MANIFEST, IMAGE.into()).await.unwrap();
    assert!(moved.manifest("internal/app", "2").is_some());
    let error = client.resolve(&name("bad.example/x:1")).await.unwrap_err().to_string();
    assert!(error.contains("blocked by") && error.contains("registries.conf"), "{error}");
}

#[tokio::test]
async fn dockers_daemon_is_heard_where_podman_says_nothing() {
    let (mirror, other) = (Fake::start().await.unwrap(), Fake::start().await.unwrap());
    let dir = tempfile::tempdir().unwrap();
    let text = format!("{{\"registry-mirrors\": [\"http://{}\"]}}", mirror.host());
    std::fs::write(dir.path().join("daemon.json"), text).unwrap();
    let digest = mirror.add_manifest("library/thing", "1", OCI_MANIFEST, IMAGE);
    let client = || Client::new(settings(dir.path()), StaticCredentials::anonymous());
    let resolved = client().resolve(&name("thing:1")).await.unwrap();
    assert_eq!((resolved.digest(), resolved.host.as_str()), (&digest, mirror.host()));
    let text = format!("[[registry]]\nlocation = 'docker.io'\n[[registry.mirror]]\nlocation = '{}'\n", other.host());
    std::fs::write(dir.path().join("registries.conf"), text).unwrap();
    other.add_manifest("library/thing", "1", OCI_MANIFEST, IMAGE);
    assert_eq!(client().resolve(&name("thing:1")).await.unwrap().host, other.host());
    // One that makes no sense is told of once, and keeps nobody from anything.
    std::fs::write(dir.path().join("daemon.json"), "{").unwrap();
    let told = Arc::new(Mutex::new(Vec::new()));
    let seen = told.clone();
    let on_event = move |event: &Event| {
        if let Event::SettingsIgnored { why } = event {
            seen.lock().unwrap().push(why.clone());
        }
    };
    let settings = Settings { on_event: Some(Arc::new(on_event)), ..settings(dir.path()) };
    let client = Client::new(settings, StaticCredentials::anonymous());
    for host in [&other, &mirror] {
        client.resolve(&name(&format!("{}/library/thing:1", host.host()))).await.unwrap();
    }
    let told = told.lock().unwrap();
    assert!(told.len() == 1 && told[0].contains("daemon.json"), "{told:?}");
}

#[tokio::test]
async fn credentials_are_those_of_the_host_that_is_asked() {
    let auth = || Auth::Basic { user: "u".into(), password: "canary".into() };
    let (registry, moved) = (Fake::with_auth(auth()).await.unwrap(), Fake::with_auth(auth()).await.unwrap());
    let dir = tempfile::tempdir().unwrap();
    let conf = format!("[[registry]]\nprefix = \"{}\"\nlocation = \"{}\"\n", registry.host(), moved.host());
    std::fs::write(dir.path().join("registries.conf"), conf).unwrap();
    moved.add_manifest("a/b", "1", OCI_MANIFEST, IMAGE);
    let reference = name(&format!("{}/a/b:1", registry.host()));
    // Those of the name's registry are not shown to whom it was moved.
    let credentials = StaticCredentials::one(registry.host(), Credential::password("u", "canary"));
    let client = Client::new(settings(dir.path()), credentials);
    assert!(matches!(client.resolve(&reference).await, Err(Error::Unauthorized { authenticated: false, .. })));
    assert!(moved.seen().iter().all(|seen| seen.authorization.is_empty()));
    let credentials = StaticCredentials::one(moved.host(), Credential::password("u", "canary"));
    Client::new(settings(dir.path()), credentials).resolve(&reference).await.unwrap();
}

#[tokio::test]
async fn headers_of_a_host_do_not_follow_a_redirect_elsewhere() {
    let (registry, elsewhere) = (Fake::start().await.unwrap(), Fake::start().await.unwrap());
    let dir = tempfile::tempdir().unwrap();
    let url = format!("http://{}", registry.host());
    hosts_toml(dir.path(), "example.com", &format!("server = \"{url}\"\n[header]\nauthorization = \"canary\"\n"));
    elsewhere.add_manifest("a/b", "1", OCI_MANIFEST, IMAGE);
    registry.inject("GET", 1, Fault::Redirect(format!("http://{}/v2/a/b/manifests/1", elsewhere.host())));
    let client = Client::new(settings(dir.path()), StaticCredentials::anonymous());
    client.resolve(&name("example.com/a/b:1")).await.unwrap();
    assert_eq!(registry.seen()[0].authorization, "canary");
    assert!(elsewhere.seen().iter().all(|seen| seen.authorization.is_empty()));
}
