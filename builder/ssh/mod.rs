//! `--ssh`: agents that steps may ask for signatures, and nothing else.
//!
//! A step never reaches the caller's agent itself, and no key reaches a step: for each mount there is a socket of our own, on
//! which requests for identities and signatures are answered, from key files or by asking the caller's agent.

mod agent;
mod key;

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use agent::Backend;
use graph::SshMount;
use key::Key;
use rustix::io::Errno;
use tempfile::TempDir;
use tokio::task::JoinHandle;

/// Agents by id.
#[derive(Default)]
pub struct Agents(BTreeMap<String, Arc<Backend>>);

impl std::fmt::Debug for Agents {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// The id of an agent for which no other was given.
const DEFAULT: &str = "default";

impl Agents {
    /// Their names.
    pub(crate) fn ids(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// Parses the values of `--ssh`: `default`, `ID` or `ID=SOCKET|KEY[,KEY]`. Keys are read now, so that a mistake shows before
    /// anything is built.
    ///
    /// # Errors
    /// A malformed one, an agent that is not there, a key that cannot be used.
    pub fn parse(specs: &[String]) -> Result<Self, String> {
        let mut agents = BTreeMap::new();
        for spec in specs {
            let (id, places) = spec.split_once('=').unwrap_or((spec.as_str(), ""));
            let id = if id.is_empty() { DEFAULT } else { id };
            let backend = backend(places).map_err(|why| format!("--ssh {spec}: {why}"))?;
            if agents.insert(id.to_owned(), Arc::new(backend)).is_some() {
                return Err(format!("--ssh {spec}: there is an agent {id:?} already"));
            }
        }
        Ok(Self(agents))
    }

    /// Listens for a step's requests, as long as the answer lives; `None`: there is no such agent.
    ///
    /// # Errors
    /// The socket cannot be made.
    pub(crate) fn serve(&self, mount: &SshMount, scratch: &Path) -> io::Result<Option<Socket>> {
        match self.0.get(&mount.id) {
            Some(backend) => Socket::listen(Arc::clone(backend), mount, scratch).map(Some),
            None => Ok(None),
        }
    }
}

fn backend(places: &str) -> Result<Backend, String> {
    let paths: Vec<&str> = places.split(',').filter(|path| !path.is_empty()).collect();
    let Some(first) = paths.first() else {
        let socket = std::env::var_os("SSH_AUTH_SOCK").filter(|path| !path.is_empty()).map(PathBuf::from);
        return socket.map(Backend::Agent).ok_or_else(|| "there is no agent, SSH_AUTH_SOCK is not set".to_owned());
    };
    let is_socket = |path: &str| std::fs::metadata(path).map(|metadata| metadata.file_type().is_socket());
    if is_socket(first).map_err(|error| format!("{first}: {error}"))? {
        return match paths.len() {
            1 => Ok(Backend::Agent(first.into())),
            _ => Err("an agent's socket stands alone".to_owned()),
        };
    }
    let mut keys = Vec::with_capacity(paths.len());
    for path in paths {
        if is_socket(path).map_err(|error| format!("{path}: {error}"))? {
            return Err("keys and an agent's socket do not go together".to_owned());
        }
        keys.push(Key::read(Path::new(path)).map_err(|why| format!("{path}: {why}"))?);
    }
    Ok(Backend::Keys(keys))
}

/// A socket on which requests are answered until this is dropped.
pub(crate) struct Socket {
    directory: TempDir,
    answering: JoinHandle<()>,
}

/// Its name in its directory.
const NAME: &str = "agent";

impl Socket {
    fn listen(backend: Arc<Backend>, mount: &SshMount, scratch: &Path) -> io::Result<Self> {
        let directory = tempfile::Builder::new().prefix("ssh-").tempdir_in(scratch)?;
        // By descriptor: a socket's name is limited to 107 bytes, a store's path is not.
        let handle = sys::file::open_root(directory.path())?;
        let short = format!("/proc/self/fd/{}/{NAME}", std::os::fd::AsRawFd::as_raw_fd(&handle));
        let listener = std::os::unix::net::UnixListener::bind(short)?;
        listener.set_nonblocking(true)?;
        let path = directory.path().join(NAME);
        if (mount.uid, mount.gid) != (0, 0) {
            match std::os::unix::fs::chown(&path, Some(mount.uid), Some(mount.gid)) {
                // Where there is one id only, all is that id's.
                Err(error) if !matches!(Errno::from_io_error(&error), Some(Errno::INVAL | Errno::PERM)) => {
                    return Err(error);
                }
                _ => {}
            }
        }
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mount.mode))?;
        let listener = tokio::net::UnixListener::from_std(listener)?;
        Ok(Self { directory, answering: tokio::spawn(agent::answer_all(listener, backend)) })
    }

    /// Where it is.
    pub(crate) fn path(&self) -> PathBuf {
        self.directory.path().join(NAME)
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.answering.abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_is_said_before_anything_is_built() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = |name: &str| directory.path().join(name).display().to_string();
        let _socket = std::os::unix::net::UnixListener::bind(path("socket")).expect("a socket");
        std::fs::write(path("text"), "no key\n").expect("write");
        for (spec, why) in [
            (format!("a={}", path("missing")), "No such file"),
            (format!("a={},{}", path("socket"), path("text")), "stands alone"),
            (format!("a={}", path("text")), "no private key"),
        ] {
            let found = Agents::parse(std::slice::from_ref(&spec)).expect_err(&spec);
            assert!(found.contains(why), "{spec}: {found}");
        }
        let twice = [format!("a={}", path("socket")), format!("a={}", path("socket"))];
        assert!(Agents::parse(&twice).is_err_and(|why| why.contains("already")));
        assert!(Agents::parse(&twice[..1]).is_ok());
    }
}
