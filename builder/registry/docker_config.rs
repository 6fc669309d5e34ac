//! Credentials where `docker login` and `podman login` keep them: JSON files and credential helpers.
//!
//! A file is read when a registry demands credentials, not before. Writing keeps every field that we do not know.

use std::collections::HashMap;
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig, general_purpose::STANDARD};
use futures_util::future::BoxFuture;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio::io::AsyncWriteExt as _;

use crate::reference::{DOCKER_HUB, is_docker_hub};
use crate::{Credential, CredentialSource, CredentialsError, Secret};

/// The name under which Docker keeps Docker Hub's credentials, for historical reasons.
const HUB_KEY: &str = "https://index.docker.io/v1/";
const HELPER_TIMEOUT: Duration = Duration::from_secs(60);
const FILE_MAX: u64 = 16 << 20;
/// What helpers say when they have nothing, in the words of Docker's helper protocol.
const HELPER_NOT_FOUND: &str = "credentials not found in native keychain";

/// Credentials from Docker's and Podman's files, in the order of [`Self::from_env`]; the first that has some decides.
#[derive(Debug, Default)]
pub struct DockerCredentials {
    /// The contents of `DOCKER_AUTH_CONFIG`.
    inline: Option<Secret>,
    files: Vec<PathBuf>,
    /// Where `store` writes.
    target: Option<PathBuf>,
    helper_path: Option<String>,
    helped: tokio::sync::Mutex<HashMap<(String, String), Option<Credential>>>,
}

/// Where credentials were stored, so that the caller can warn about plain text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stored {
    /// In a credential helper.
    Helper(String),
    /// In a file, merely encoded.
    PlainFile(PathBuf),
}

/// Where docker's client has its configuration: `$DOCKER_CONFIG`, or `~/.docker`.
pub fn docker_directory(var: impl Fn(&str) -> Option<String>) -> Option<PathBuf> {
    let get = |name: &str| var(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    get("DOCKER_CONFIG").or_else(|| Some(get("HOME")?.join(".docker")))
}

impl DockerCredentials {
    /// The places of this environment: `DOCKER_AUTH_CONFIG` (JSON), the file `REGISTRY_AUTH_FILE`, `$DOCKER_CONFIG/config.json`
    /// or `~/.docker/config.json`, `$XDG_RUNTIME_DIR/containers/auth.json`, `~/.config/containers/auth.json`.
    #[must_use]
    pub fn from_env() -> Self {
        Self::from_vars(|name| std::env::var(name).ok())
    }

    /// As [`Self::from_env`], with variables from elsewhere. `PATH` is where helpers are found.
    pub fn from_vars(var: impl Fn(&str) -> Option<String>) -> Self {
        let get = |name: &str| var(name).filter(|value| !value.is_empty());
        let home = get("HOME").map(PathBuf::from);
        let registry_auth = get("REGISTRY_AUTH_FILE").map(PathBuf::from);
        let docker = docker_directory(&var).map(|dir| dir.join("config.json"));
        let config = get("XDG_CONFIG_HOME").map(PathBuf::from).or_else(|| Some(home?.join(".config")));
        let containers = |dir: PathBuf| dir.join("containers/auth.json");
        let files = [
            registry_auth.clone(),
            docker.clone(),
            get("XDG_RUNTIME_DIR").map(PathBuf::from).map(containers),
            config.map(containers),
        ];
        Self {
            inline: get("DOCKER_AUTH_CONFIG").map(Secret::new),
            files: files.into_iter().flatten().collect(),
            target: registry_auth.or(docker),
            helper_path: get("PATH"),
            helped: tokio::sync::Mutex::default(),
        }
    }

    /// The credential for a repository (a path, or empty) on a registry, from the first place that has one.
    ///
    /// # Errors
    /// When a file cannot be read or is no JSON, or a helper fails.
    pub async fn find(&self, registry: &str, repository: &str) -> Result<Option<Credential>, CredentialsError> {
        if let Some(inline) = &self.inline {
            let file = parse("DOCKER_AUTH_CONFIG", inline.expose().as_bytes())?;
            if let Some(found) = self.find_in("DOCKER_AUTH_CONFIG", &file, registry, repository).await? {
                return Ok(Some(found));
            }
        }
        for path in &self.files {
            if let Some(file) = read(path)?
                && let Some(found) = self.find_in(&path.display().to_string(), &file, registry, repository).await?
            {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    async fn find_in(
        &self,
        place: &str,
        file: &Map<String, Value>,
        registry: &str,
        repository: &str,
    ) -> Result<Option<Credential>, CredentialsError> {
        if let Some(helper) = helper_for(file, registry)
            && let Some(found) = self.ask_helper(&helper, registry).await?
        {
            return Ok(Some(found));
        }
        let Some(auths) = file.get("auths").and_then(Value::as_object) else { return Ok(None) };
        for wanted in candidates(registry, repository) {
            for (key, entry) in auths {
                if normalise_key(key) == wanted
                    && let Some(found) = decode(place, key, entry)?
                {
                    return Ok(Some(found));
                }
            }
        }
        Ok(None)
    }

    async fn ask_helper(&self, helper: &str, registry: &str) -> Result<Option<Credential>, CredentialsError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Answer {
            username: String,
            secret: String,
        }
        let server = server_name(registry);
        let mut helped = self.helped.lock().await;
        let key = (helper.to_owned(), server.to_owned());
        if let Some(known) = helped.get(&key) {
            return Ok(known.clone());
        }
        let found = match self.run_helper(helper, "get", server.as_bytes()).await? {
            None => None,
            Some(output) => {
                let answer: Answer = serde_json::from_slice(&output).map_err(|_| CredentialsError::Helper {
                    helper: program(helper),
                    why: "its answer is not the JSON of the helper protocol".into(),
                })?;
                match answer.username.as_str() {
                    _ if answer.secret.is_empty() => None,
                    "<token>" => Some(Credential::IdentityToken(answer.secret.into())),
                    _ => Some(Credential::Password { username: answer.username, password: answer.secret.into() }),
                }
            }
        };
        helped.insert(key, found.clone());
        Ok(found)
    }

    /// Runs a helper. `None`: it has nothing for this server.
    async fn run_helper(&self, helper: &str, action: &str, input: &[u8]) -> Result<Option<Vec<u8>>, CredentialsError> {
        let program = program(helper);
        let failed = |why: String| CredentialsError::Helper { helper: program.clone(), why };
        if helper.is_empty() || !helper.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b)) {
            return Err(failed("this is not the name of a helper".into()));
        }
        let mut command = tokio::process::Command::new(&program);
        command.arg(action).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        if let Some(path) = &self.helper_path {
            command.env("PATH", path);
        }
        let mut child = command.spawn().map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => failed("it is configured, but not found in PATH".into()),
            _ => failed(format!("cannot be run: {error}")),
        })?;
        let mut stdin = child.stdin.take();
        let talk = async {
            if let Some(stdin) = &mut stdin {
                // A helper that does not read its input is judged by its answer.
                let _ = stdin.write_all(input).await;
            }
            drop(stdin);
            child.wait_with_output().await
        };
        let output = match tokio::time::timeout(HELPER_TIMEOUT, talk).await {
            Ok(output) => output.map_err(|error| failed(error.to_string()))?,
            Err(_) => return Err(failed(format!("no answer within {} s", HELPER_TIMEOUT.as_secs()))),
        };
        if output.status.success() {
            return Ok(Some(output.stdout));
        }
        let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        if said.contains(HELPER_NOT_FOUND) {
            return Ok(None);
        }
        // Its standard output might hold a secret when it failed half-way; errors of the protocol are short lines.
        let first = said.lines().next().unwrap_or_default();
        let why = if first.is_empty() || first.starts_with('{') { output.status.to_string() } else { first.to_owned() };
        Err(failed(crate::failure::clean(&why, &[String::from_utf8_lossy(input).into_owned()])))
    }

    /// Stores a credential, as `docker login` does: with the configured helper, else in the file, readable by its owner only.
    ///
    /// # Errors
    /// When that fails; the file is then as it was.
    pub async fn store(&self, registry: &str, credential: &Credential) -> Result<Stored, CredentialsError> {
        let path = self.target.as_ref().ok_or(CredentialsError::NoPlace)?;
        let mut file = read(path)?.unwrap_or_default();
        let key = server_name(registry);
        if let Some(helper) = helper_for(&file, registry) {
            let (username, secret) = match credential {
                Credential::Password { username, password } => (username.as_str(), password),
                Credential::IdentityToken(token) => ("<token>", token),
                Credential::RegistryToken(_) => {
                    let why = "it cannot store registry tokens".into();
                    return Err(CredentialsError::Helper { helper: program(&helper), why });
                }
            };
            let input = json!({"ServerURL": key, "Username": username, "Secret": secret.expose()}).to_string();
            self.run_helper(&helper, "store", input.as_bytes()).await?;
            self.helped.lock().await.clear();
            // Docker notes in the file which servers the helper knows.
            set_entry(path, &mut file, registry, Some(json!({})))?;
            write(path, &file)?;
            return Ok(Stored::Helper(program(&helper)));
        }
        let entry = match credential {
            Credential::Password { username, password } => {
                json!({"auth": STANDARD.encode(format!("{username}:{}", password.expose()))})
            }
            Credential::IdentityToken(token) => {
                json!({"auth": STANDARD.encode("<token>:"), "identitytoken": token.expose()})
            }
            Credential::RegistryToken(token) => json!({"registrytoken": token.expose()}),
        };
        set_entry(path, &mut file, registry, Some(entry))?;
        write(path, &file)?;
        Ok(Stored::PlainFile(path.clone()))
    }

    /// Forgets the credential of a registry, as `docker logout` does. Says whether there was one.
    ///
    /// # Errors
    /// When that fails.
    pub async fn erase(&self, registry: &str) -> Result<bool, CredentialsError> {
        let path = self.target.as_ref().ok_or(CredentialsError::NoPlace)?;
        let Some(mut file) = read(path)? else { return Ok(false) };
        let mut erased = false;
        if let Some(helper) = helper_for(&file, registry) {
            erased = self.ask_helper(&helper, registry).await?.is_some();
            self.run_helper(&helper, "erase", server_name(registry).as_bytes()).await?;
            self.helped.lock().await.clear();
        }
        if set_entry(path, &mut file, registry, None)? {
            erased = true;
            write(path, &file)?;
        }
        Ok(erased)
    }
}

impl CredentialSource for DockerCredentials {
    fn get<'a>(
        &'a self,
        registry: &'a str,
        repository: &'a str,
    ) -> BoxFuture<'a, Result<Option<Credential>, CredentialsError>> {
        Box::pin(self.find(registry, repository))
    }

    fn renew<'a>(
        &'a self,
        registry: &'a str,
        repository: &'a str,
    ) -> BoxFuture<'a, Result<Option<Credential>, CredentialsError>> {
        Box::pin(async move {
            self.helped.lock().await.retain(|(_, server), _| server != server_name(registry));
            self.find(registry, repository).await
        })
    }
}

fn program(helper: &str) -> String {
    format!("docker-credential-{helper}")
}

/// The name by which helpers and files know a registry.
fn server_name(registry: &str) -> &str {
    if is_docker_hub(registry) { HUB_KEY } else { registry }
}

/// The helper of a registry: its own, else the one for all.
fn helper_for(file: &Map<String, Value>, registry: &str) -> Option<String> {
    let own = file.get("credHelpers").and_then(Value::as_object).and_then(|helpers| {
        let names: &[&str] =
            if is_docker_hub(registry) { &[HUB_KEY, "docker.io", "index.docker.io"] } else { &[registry] };
        names.iter().find_map(|name| helpers.get(*name)).or_else(|| {
            helpers.iter().find(|(key, _)| normalise_key(key) == normalise_key(registry)).map(|(_, helper)| helper)
        })
    });
    let helper = own.or_else(|| file.get("credsStore")).and_then(Value::as_str)?;
    (!helper.is_empty()).then(|| helper.to_owned())
}

/// The keys under which a credential may stand, the most specific first: `host/a/b`, `host/a`, `host`.
fn candidates(registry: &str, repository: &str) -> Vec<String> {
    let host = normalise_key(registry);
    let mut keys = Vec::new();
    let mut path = repository;
    while !path.is_empty() {
        keys.push(format!("{host}/{path}"));
        path = path.rsplit_once('/').map_or("", |(parent, _)| parent);
    }
    keys.push(host);
    keys
}

/// Keys have been written as URLs too: without scheme, trailing slash and API version they compare. Docker Hub has one name.
fn normalise_key(key: &str) -> String {
    let key = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    let key = key.trim_end_matches('/');
    let key = key.strip_suffix("/v1").or_else(|| key.strip_suffix("/v2")).unwrap_or(key);
    let (host, path) = key.split_once('/').map_or((key, None), |(host, path)| (host, Some(path)));
    let host = if is_docker_hub(host) { DOCKER_HUB } else { host };
    path.map_or_else(|| host.to_owned(), |path| format!("{host}/{path}"))
}

/// Reads an entry of `auths`. `None`: it is empty, as Docker leaves it when a helper has the credential.
fn decode(place: &str, key: &str, entry: &Value) -> Result<Option<Credential>, CredentialsError> {
    let text = |name: &str| entry.get(name).and_then(Value::as_str).filter(|text| !text.is_empty());
    if let Some(token) = text("identitytoken") {
        return Ok(Some(Credential::IdentityToken(Secret::new(token))));
    }
    if let Some(token) = text("registrytoken") {
        return Ok(Some(Credential::RegistryToken(Secret::new(token))));
    }
    if let Some(auth) = text("auth") {
        let invalid = || CredentialsError::Invalid {
            path: place.to_owned(),
            why: format!("\"auth\" of {key:?} is not base64 of \"user:password\""),
        };
        let config = GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
        let engine = GeneralPurpose::new(&base64::alphabet::STANDARD, config);
        let decoded =
            engine.decode(auth.trim()).ok().and_then(|bytes| String::from_utf8(bytes).ok()).ok_or_else(invalid)?;
        let (username, password) = decoded.split_once(':').ok_or_else(invalid)?;
        // Docker has written passwords padded with zero bytes.
        return Ok(Some(Credential::password(username, password.trim_matches('\0'))));
    }
    match (text("username"), text("password")) {
        (Some(username), Some(password)) => Ok(Some(Credential::password(username, password))),
        _ => Ok(None),
    }
}

fn parse(place: &str, bytes: &[u8]) -> Result<Map<String, Value>, CredentialsError> {
    let invalid = |why: String| CredentialsError::Invalid { path: place.to_owned(), why };
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Ok(Map::new());
    }
    // Only the position is told: the parser's message may quote what stands there.
    match serde_json::from_slice(bytes) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(_) => Err(invalid("it is not a JSON object".into())),
        Err(error) => Err(invalid(format!("no JSON at line {}, column {}", error.line(), error.column()))),
    }
}

fn read(path: &Path) -> Result<Option<Map<String, Value>>, CredentialsError> {
    let failed = |source| CredentialsError::File { action: "read", path: path.display().to_string(), source };
    let size = match std::fs::metadata(path) {
        Ok(metadata) => metadata.len(),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(error) => return Err(failed(error)),
    };
    if size > FILE_MAX {
        let why = format!("it is larger than {FILE_MAX} bytes");
        return Err(CredentialsError::Invalid { path: path.display().to_string(), why });
    }
    parse(&path.display().to_string(), &std::fs::read(path).map_err(failed)?).map(Some)
}

/// Sets or removes the entry of a registry, whatever form its key has. Says whether there was one.
fn set_entry(
    path: &Path,
    file: &mut Map<String, Value>,
    registry: &str,
    entry: Option<Value>,
) -> Result<bool, CredentialsError> {
    if entry.is_none() && !file.contains_key("auths") {
        return Ok(false);
    }
    let auths = file.entry("auths").or_insert_with(|| json!({}));
    if auths.is_null() {
        *auths = json!({});
    }
    let auths = auths.as_object_mut().ok_or_else(|| CredentialsError::Invalid {
        path: path.display().to_string(),
        why: "\"auths\" is not an object".into(),
    })?;
    let wanted = normalise_key(registry);
    let old: Vec<String> = auths.keys().filter(|key| normalise_key(key) == wanted).cloned().collect();
    for key in &old {
        auths.shift_remove(key);
    }
    if let Some(entry) = entry {
        auths.insert(server_name(registry).to_owned(), entry);
    }
    Ok(!old.is_empty())
}

/// Replaces the file as a whole: never half-written, never readable by others. A symlink's target is replaced, not the link.
fn write(path: &Path, file: &Map<String, Value>) -> Result<(), CredentialsError> {
    let path = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let failed = |source| CredentialsError::File { action: "write", path: path.display().to_string(), source };
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if !dir.exists() {
        std::fs::create_dir_all(dir).map_err(failed)?;
        std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o700)).map_err(failed)?;
    }
    let mut text = serde_json::to_string_pretty(file).map_err(|error| failed(error.into()))?;
    text.push('\n');
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = dir.join(format!(".{name}.{}", std::process::id()));
    let _ = std::fs::remove_file(&temporary);
    let replace = || {
        let mut out = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        out.write_all(text.as_bytes())?;
        out.sync_all()?;
        std::fs::rename(&temporary, &path)
    };
    replace().map_err(|error| {
        let _ = std::fs::remove_file(&temporary);
        failed(error)
    })
}

#[cfg(test)]
mod tests;
