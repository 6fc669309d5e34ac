//! `--secret`: values that reach a step and nothing else.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io::{self, Read};
use std::path::PathBuf;

use graph::ContentDigest;

/// Largest secret (as with BuildKit).
const MAX_SIZE: u64 = 500 << 10;

/// The secrets of a build, by id. Values are read when a step asks.
#[derive(Default)]
pub struct Secrets {
    places: BTreeMap<String, Place>,
    /// Those whose values are to be in the cache key.
    keyed: BTreeSet<String>,
}

enum Place {
    File(PathBuf),
    Env(String),
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.places.keys()).finish()
    }
}

/// A secret that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The text on the command line.
    #[error("invalid secret {spec:?}: {why}")]
    Spec {
        /// As given; names a place, not a value.
        spec: String,
        /// What is wrong.
        why: String,
    },
    /// The file.
    #[error("cannot read secret {id:?} from {}", path.display())]
    Read {
        /// Of the secret.
        id: String,
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Too much.
    #[error("secret {0:?} is larger than 500 KiB")]
    TooLarge(String),
}

impl Secrets {
    /// Parses the values of `--secret`: `id=ID[,src=FILE|,env=NAME][,type=file|env][,cache-key=true]`.
    ///
    /// # Errors
    /// A malformed one.
    pub fn parse(specs: &[String]) -> Result<Self, SecretError> {
        let mut secrets = Self::default();
        for spec in specs {
            let (id, place, keyed) = parse(spec).map_err(|why| SecretError::Spec { spec: spec.clone(), why })?;
            if keyed {
                secrets.keyed.insert(id.clone());
            }
            secrets.places.insert(id, place);
        }
        Ok(secrets)
    }

    /// Keyed hashes of those of `ids` that are to be in the cache key. `key` is made and kept by the store: without it nobody
    /// can try values, and with another one the hashes are others.
    ///
    /// # Errors
    /// One of them cannot be read.
    pub(crate) fn macs<'i>(
        &self,
        ids: impl Iterator<Item = &'i str>,
        key: &[u8; 32],
    ) -> Result<Vec<(String, ContentDigest)>, SecretError> {
        let ids: BTreeSet<&str> = ids.filter(|id| self.keyed.contains(*id)).collect();
        let mut macs = Vec::with_capacity(ids.len());
        for id in ids {
            if let Some(value) = self.get(id)? {
                macs.push((id.to_owned(), ContentDigest::from_bytes(*blake3::keyed_hash(key, &value).as_bytes())));
            }
        }
        Ok(macs)
    }

    /// Their names.
    pub(crate) fn ids(&self) -> Vec<String> {
        self.places.keys().cloned().collect()
    }

    /// What they are, as far as it can be read now.
    pub(crate) fn values(&self) -> Vec<Vec<u8>> {
        self.places.keys().filter_map(|id| self.get(id).ok().flatten()).collect()
    }

    /// Whether any is to be in the cache key.
    pub(crate) fn any_keyed(&self) -> bool {
        !self.keyed.is_empty()
    }

    /// The value; `None`: there is no such secret.
    ///
    /// # Errors
    /// It cannot be read.
    pub(crate) fn get(&self, id: &str) -> Result<Option<Vec<u8>>, SecretError> {
        match self.places.get(id) {
            None => Ok(None),
            Some(Place::Env(name)) => Ok(std::env::var_os(name).map(std::os::unix::ffi::OsStringExt::into_vec)),
            Some(Place::File(path)) => {
                let read = |source| SecretError::Read { id: id.to_owned(), path: path.clone(), source };
                let mut value = Vec::new();
                std::fs::File::open(path)
                    .and_then(|file| file.take(MAX_SIZE + 1).read_to_end(&mut value))
                    .map_err(read)?;
                if value.len() as u64 > MAX_SIZE {
                    return Err(SecretError::TooLarge(id.to_owned()));
                }
                Ok(Some(value))
            }
        }
    }
}

/// The id, where the value is, and whether it is to be in the cache key.
fn parse(spec: &str) -> Result<(String, Place, bool), String> {
    let (mut id, mut kind, mut src, mut env, mut keyed) = (None, None, None, None, false);
    for field in crate::export::csv(spec)? {
        let (key, value) = field.split_once('=').ok_or_else(|| format!("{field:?} is not key=value"))?;
        match key.to_ascii_lowercase().as_str() {
            "id" => id = Some(value.to_owned()),
            "type" if matches!(value, "file" | "env") => kind = Some(value.to_owned()),
            "type" => return Err(format!("type {value:?} is neither file nor env")),
            "source" | "src" => src = Some(value.to_owned()),
            "env" => env = Some(value.to_owned()),
            "cache-key" => {
                keyed = match value {
                    "true" | "1" => true,
                    "false" | "0" => false,
                    _ => return Err(format!("cache-key={value:?} is neither true nor false")),
                }
            }
            other => return Err(format!("{other:?} is not known here")),
        }
    }
    // With type=env, src names the variable.
    if kind.as_deref() == Some("env") && env.is_none() {
        env = src.take();
    }
    let (id, place) = match (id.or_else(|| src.clone()), src, env) {
        (None, _, _) => return Err("id= is missing".into()),
        (Some(id), Some(path), None) => (id, Place::File(path.into())),
        (Some(id), None, Some(name)) => (id, Place::Env(name)),
        (Some(_), Some(_), Some(_)) => return Err("both a file and a variable are named".into()),
        // As with buildx: a variable of the secret's name, else a file of that name.
        (Some(id), None, None) if kind.as_deref() != Some("file") && std::env::var_os(&id).is_some() => {
            (id.clone(), Place::Env(id))
        }
        (Some(id), None, None) => (id.clone(), Place::File(id.into())),
    };
    Ok((id, place, keyed))
}
