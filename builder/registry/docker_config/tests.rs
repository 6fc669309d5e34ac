use super::*;

fn at(dir: &Path) -> DockerCredentials {
    let dir = dir.to_owned();
    DockerCredentials::from_vars(move |name| match name {
        "DOCKER_CONFIG" => Some(dir.display().to_string()),
        "PATH" => Some(format!("{}:/usr/bin:/bin", dir.display())),
        _ => None,
    })
}

fn with_config(json: &Value) -> (tempfile::TempDir, DockerCredentials) {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("config.json"), json.to_string()).unwrap();
    let credentials = at(dir.path());
    (dir, credentials)
}

fn user(credential: Option<&Credential>) -> String {
    match credential {
        None => "-".into(),
        Some(Credential::Password { username, password }) => format!("{username}:{}", password.expose()),
        Some(Credential::IdentityToken(token)) => format!("identity {}", token.expose()),
        Some(Credential::RegistryToken(token)) => format!("registry {}", token.expose()),
    }
}

/// A helper that keeps its one secret in a file beside it, and notes how it was called.
const HELPER: &str = r#"#!/bin/sh
dir=$(dirname "$0")
echo "$1" >> "$dir/calls"
case "$1" in
get) [ -f "$dir/secret" ] && cat "$dir/secret" || { echo "credentials not found in native keychain"; exit 1; } ;;
store) cat > "$dir/secret" ;;
erase) rm -f "$dir/secret" ;;
esac
"#;

fn install_helper(dir: &Path, name: &str, script: &str) {
    let path = dir.join(format!("docker-credential-{name}"));
    std::fs::write(&path, script).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
}

#[tokio::test]
async fn entries_are_found_as_docker_and_podman_write_them() {
    let (_dir, credentials) = with_config(&json!({"auths": {
        "https://index.docker.io/v1/": {"auth": STANDARD.encode("hub:pw:with:colons")},
        "plain.io": {"username": "u", "password": "p"},
        "https://url.io/v2/": {"auth": STANDARD.encode("url:pw").trim_end_matches('=')},
        "id.io": {"auth": STANDARD.encode("<token>:"), "identitytoken": "idt"},
        "tok.io": {"registrytoken": "rt"},
        "multi.io": {"auth": STANDARD.encode("host:1")},
        "multi.io/team": {"auth": STANDARD.encode("team:2")},
        "multi.io/team/app": {"auth": STANDARD.encode("app:3")},
        "empty.io": {},
        "port.io:5000": {"auth": STANDARD.encode("port:4")},
    }}));
    for (registry, repository, want) in [
        ("docker.io", "library/debian", "hub:pw:with:colons"),
        ("plain.io", "", "u:p"),
        ("url.io", "x", "url:pw"),
        ("id.io", "x", "identity idt"),
        ("tok.io", "x", "registry rt"),
        ("multi.io", "", "host:1"),
        ("multi.io", "other", "host:1"),
        ("multi.io", "teamwork", "host:1"),
        ("multi.io", "team/x", "team:2"),
        ("multi.io", "team/app", "app:3"),
        ("multi.io", "team/app/sub", "app:3"),
        ("empty.io", "x", "-"),
        ("port.io:5000", "x", "port:4"),
        ("port.io", "x", "-"),
        ("evil.docker.io", "x", "-"),
    ] {
        let found = credentials.find(registry, repository).await.unwrap();
        assert_eq!(user(found.as_ref()), want, "{registry} {repository}");
    }
}

#[tokio::test]
async fn places_have_an_order() {
    let dir = tempfile::tempdir().unwrap();
    let write = |path: &str, user: &str| {
        let path = dir.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, json!({"auths": {"r.io": {"username": user, "password": "p"}}}).to_string()).unwrap();
    };
    let base = dir.path().display().to_string();
    let credentials = |set: &[&str]| {
        let set: Vec<String> = set.iter().map(|&s| s.to_owned()).collect();
        let base = base.clone();
        DockerCredentials::from_vars(move |name| {
            if !set.iter().any(|s| s == name) {
                return None;
            }
            Some(match name {
                "DOCKER_AUTH_CONFIG" => json!({"auths": {"r.io": {"username": "inline", "password": "p"}}}).to_string(),
                "REGISTRY_AUTH_FILE" => format!("{base}/auth-file.json"),
                "DOCKER_CONFIG" => format!("{base}/docker"),
                "XDG_RUNTIME_DIR" => format!("{base}/run"),
                _ => base.clone(),
            })
        })
    };
    write("auth-file.json", "file");
    write("docker/config.json", "docker");
    write("run/containers/auth.json", "run");
    write(".config/containers/auth.json", "home");
    for (set, want) in [
        (&["HOME"][..], "home:p"),
        (&["HOME", "XDG_RUNTIME_DIR"], "run:p"),
        (&["HOME", "XDG_RUNTIME_DIR", "DOCKER_CONFIG"], "docker:p"),
        (&["HOME", "DOCKER_CONFIG", "REGISTRY_AUTH_FILE"], "file:p"),
        (&["HOME", "DOCKER_CONFIG", "REGISTRY_AUTH_FILE", "DOCKER_AUTH_CONFIG"], "inline:p"),
        (&[], "-"),
    ] {
        assert_eq!(user(credentials(set).find("r.io", "x").await.unwrap().as_ref()), want, "{set:?}");
    }
}

#[tokio::test]
async fn login_and_logout_keep_what_they_do_not_know() {
    let (dir, credentials) = with_config(&json!({
        "HttpHeaders": {"X": "y"}, "auths": {"other.io": {"auth": "b3RoZXI6cHc="}, "https://r.io": {"auth": "eDp5"}}, "zeta": [1],
    }));
    let path = dir.path().join("config.json");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    let stored = credentials.store("r.io", &Credential::password("me", "canary")).await.unwrap();
    assert_eq!(stored, Stored::PlainFile(path.clone()));
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(!text.contains("canary"));
    let json: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(json["HttpHeaders"]["X"], "y");
    assert_eq!(json["zeta"][0], 1);
    assert_eq!(json["auths"].as_object().unwrap().keys().collect::<Vec<_>>(), ["other.io", "r.io"]);
    assert_eq!(user(credentials.find("r.io", "").await.unwrap().as_ref()), "me:canary");
    credentials.store("docker.io", &Credential::IdentityToken("idt".to_owned().into())).await.unwrap();
    assert_eq!(user(credentials.find("docker.io", "a/b").await.unwrap().as_ref()), "identity idt");
    assert!(credentials.erase("r.io").await.unwrap());
    assert!(!credentials.erase("r.io").await.unwrap());
    assert!(credentials.erase("docker.io").await.unwrap());
    let json: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    assert_eq!(json["auths"].as_object().unwrap().keys().collect::<Vec<_>>(), ["other.io"]);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file is left");
}

#[tokio::test]
async fn a_first_login_makes_the_directory_and_follows_links() {
    let dir = tempfile::tempdir().unwrap();
    let new = dir.path().join("a/b");
    at(&new).store("r.io", &Credential::password("u", "p")).await.unwrap();
    assert_eq!(std::fs::metadata(&new).unwrap().permissions().mode() & 0o777, 0o700);
    let linked = dir.path().join("linked");
    std::fs::create_dir(&linked).unwrap();
    std::os::unix::fs::symlink(new.join("config.json"), linked.join("config.json")).unwrap();
    at(&linked).store("s.io", &Credential::password("u2", "p2")).await.unwrap();
    assert!(linked.join("config.json").is_symlink());
    assert_eq!(user(at(&new).find("s.io", "").await.unwrap().as_ref()), "u2:p2");
}

#[tokio::test]
async fn helpers_get_store_and_erase() {
    for config in [json!({"credsStore": "mine"}), json!({"credHelpers": {"r.io": "mine"}, "credsStore": "absent"})] {
        let (dir, credentials) = with_config(&config);
        install_helper(dir.path(), "mine", HELPER);
        assert_eq!(user(credentials.find("r.io", "x").await.unwrap().as_ref()), "-");
        let stored = credentials.store("r.io", &Credential::password("me", "canary")).await.unwrap();
        assert_eq!(stored, Stored::Helper("docker-credential-mine".into()));
        assert!(!std::fs::read_to_string(dir.path().join("config.json")).unwrap().contains("canary"));
        assert_eq!(user(credentials.find("r.io", "x").await.unwrap().as_ref()), "me:canary");
        assert_eq!(user(credentials.find("r.io", "y").await.unwrap().as_ref()), "me:canary");
        let calls = std::fs::read_to_string(dir.path().join("calls")).unwrap();
        assert_eq!(calls.lines().collect::<Vec<_>>(), ["get", "store", "get"], "answers are remembered");
        assert!(credentials.erase("r.io").await.unwrap());
        assert!(!dir.path().join("secret").exists());
        assert_eq!(user(credentials.find("r.io", "x").await.unwrap().as_ref()), "-");
    }
}

#[tokio::test]
async fn failures_say_which_helper_and_no_secret() {
    let (dir, credentials) = with_config(&json!({"credHelpers": {
        "absent.io": "absent", "bad.io": "bad", "odd.io": "odd", "path.io": "../evil"}}));
    install_helper(dir.path(), "bad", "#!/bin/sh\necho 'the keyring is locked'\nexit 3\n");
    install_helper(dir.path(), "odd", "#!/bin/sh\necho 'canary'\n");
    for (registry, want) in [
        ("absent.io", "credential helper docker-credential-absent: it is configured, but not found in PATH"),
        ("bad.io", "credential helper docker-credential-bad: the keyring is locked"),
        ("odd.io", "credential helper docker-credential-odd: its answer is not the JSON of the helper protocol"),
        ("path.io", "credential helper docker-credential-../evil: this is not the name of a helper"),
    ] {
        assert_eq!(credentials.find(registry, "x").await.unwrap_err().to_string(), want);
    }
}

#[tokio::test]
async fn broken_files_are_told_without_quoting_them() {
    for (text, want) in [
        (r#"{"auths": {"r.io": {"auth": "canary"#, "no JSON at line 1"),
        (r#"["canary"]"#, "it is not a JSON object"),
        (r#"{"auths": {"r.io": {"auth": "canary!"}}}"#, "is not base64"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("config.json"), text).unwrap();
        let error = at(dir.path()).find("r.io", "x").await.unwrap_err().to_string();
        assert!(error.contains(want) && !error.contains("canary"), "{error}");
        if want.contains("JSON") {
            at(dir.path()).store("r.io", &Credential::password("u", "p")).await.unwrap_err();
            assert_eq!(std::fs::read_to_string(dir.path().join("config.json")).unwrap(), text, "left as it was");
        }
    }
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("config.json"), "\n").unwrap();
    assert_eq!(at(dir.path()).find("r.io", "x").await.unwrap(), None);
}
