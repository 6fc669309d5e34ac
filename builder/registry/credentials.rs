//! Who we are: credentials and where they come from.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use futures_util::future::BoxFuture;

/// A text that must not be seen: it prints as `***`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps a secret.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The secret itself, for the one place that needs it.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(text)
    }
}

/// How one proves who one is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Credential {
    /// A user name and a password or access token.
    Password {
        /// The user name.
        username: String,
        /// The password.
        password: Secret,
    },
    /// An OAuth2 refresh token, traded for access tokens at the registry's token server.
    IdentityToken(Secret),
    /// A bearer token sent as it is.
    RegistryToken(Secret),
}

impl Credential {
    /// A user name and a password.
    pub fn password(username: impl Into<String>, password: impl Into<String>) -> Self {
        Self::Password { username: username.into(), password: Secret::new(password) }
    }

    pub(crate) fn secret(&self) -> &str {
        match self {
            Self::Password { password, .. } => password.expose(),
            Self::IdentityToken(token) | Self::RegistryToken(token) => token.expose(),
        }
    }
}

/// Finds credentials. Asked only after a registry demanded them: once per registry and repository, and again when they were refused.
pub trait CredentialSource: Send + Sync {
    /// The credential for `repository` (a path; empty for the registry itself) on `registry`, or `None`.
    fn get<'a>(
        &'a self,
        registry: &'a str,
        repository: &'a str,
    ) -> BoxFuture<'a, Result<Option<Credential>, CredentialsError>>;

    /// As [`Self::get`], once what it gave before was refused: whatever is remembered does not count.
    fn renew<'a>(
        &'a self,
        registry: &'a str,
        repository: &'a str,
    ) -> BoxFuture<'a, Result<Option<Credential>, CredentialsError>> {
        self.get(registry, repository)
    }
}

/// Credentials held in memory, by registry. Empty: everything is done anonymously.
#[derive(Debug, Clone, Default)]
pub struct StaticCredentials(pub BTreeMap<String, Credential>);

impl StaticCredentials {
    /// No credentials at all.
    #[must_use]
    pub fn anonymous() -> Arc<Self> {
        Arc::new(Self::default())
    }

    /// One credential for one registry.
    pub fn one(registry: impl Into<String>, credential: Credential) -> Arc<Self> {
        Arc::new(Self(BTreeMap::from([(registry.into(), credential)])))
    }
}

impl CredentialSource for StaticCredentials {
    fn get<'a>(
        &'a self,
        registry: &'a str,
        _repository: &'a str,
    ) -> BoxFuture<'a, Result<Option<Credential>, CredentialsError>> {
        Box::pin(async move { Ok(self.0.get(registry).cloned()) })
    }
}

/// Credentials could not be read, stored or erased. Never contains a secret.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CredentialsError {
    /// A file could not be read or written.
    #[error("cannot {action} {path}")]
    File {
        /// `read` or `write`.
        action: &'static str,
        /// The file.
        path: String,
        /// The failure.
        source: std::io::Error,
    },
    /// A file is not what it should be.
    #[error("{path} is not a credentials file: {why}")]
    Invalid {
        /// The file, or the environment variable.
        path: String,
        /// What is wrong, without quoting it.
        why: String,
    },
    /// A credential helper failed.
    #[error("credential helper {helper}: {why}")]
    Helper {
        /// The helper's program, e.g. `docker-credential-pass`.
        helper: String,
        /// What went wrong.
        why: String,
    },
    /// There is no place to store credentials.
    #[error("no place for credentials: set DOCKER_CONFIG or HOME")]
    NoPlace,
}
