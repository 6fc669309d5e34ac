//! `--ssh`: agents that steps may ask for signatures.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Agents by id.
#[derive(Debug, Default)]
pub struct Agents(BTreeMap<String, PathBuf>);

impl Agents {
    /// Their names.
    pub(crate) fn ids(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// Parses the values of `--ssh`.
    ///
    /// # Errors
    /// A malformed one, or one that is not there.
    pub fn parse(specs: &[String]) -> Result<Self, String> {
        let mut agents = BTreeMap::new();
        for spec in specs {
            let (id, place) = spec.split_once('=').map_or((spec.as_str(), None), |(id, place)| (id, Some(place)));
            let id = if id.is_empty() { "default" } else { id };
            let path = match place {
                Some(path) => PathBuf::from(path),
                None => std::env::var_os("SSH_AUTH_SOCK")
                    .map(PathBuf::from)
                    .ok_or_else(|| format!("--ssh {spec}: there is no agent, SSH_AUTH_SOCK is not set"))?,
            };
            let is_socket = std::fs::metadata(&path)
                .is_ok_and(|metadata| std::os::unix::fs::FileTypeExt::is_socket(&metadata.file_type()));
            if !is_socket {
                return Err(format!(
                    "--ssh {spec}: {} is not an agent's socket (keys are not supported yet)",
                    path.display()
                ));
            }
            agents.insert(id.to_owned(), path);
        }
        Ok(Self(agents))
    }

    /// The socket of an agent.
    #[must_use]
    pub fn get(&self, id: &str) -> Option<&Path> {
        self.0.get(id).map(PathBuf::as_path)
    }
}
