//! `--secret`: values that reach a step and nothing else.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Read};
use std::path::PathBuf;

/// Largest secret (as with BuildKit).
const MAX_SIZE: u64 = 500 << 10;

/// The secrets of a build, by id. Values are read when a step asks.
#[derive(Default)]
pub struct Secrets(BTreeMap<String, Place>);

enum Place {
    File(PathBuf),
    Env(String),
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
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
    /// Parses the values of `--secret`: `id=ID[,src=FILE|,env=NAME][,type=file|env]`.
    ///
    /// # Errors
    /// A malformed one.
    pub fn parse(specs: &[String]) -> Result<Self, SecretError> {
        let mut secrets = BTreeMap::new();
        for spec in specs {
            let (id, place) = parse(spec).map_err(|why| SecretError::Spec { spec: spec.clone(), why })?;
            secrets.insert(id, place);
        }
        Ok(Self(secrets))
    }

    /// The value; `None`: there is no such secret.
    ///
    /// # Errors
    /// It cannot be read.
    pub(crate) fn get(&self, id: &str) -> Result<Option<Vec<u8>>, SecretError> {
        match self.0.get(id) {
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

fn parse(spec: &str) -> Result<(String, Place), String> {
    let (mut id, mut kind, mut src, mut env) = (None, None, None, None);
    for field in crate::export::csv(spec)? {
        let (key, value) = field.split_once('=').ok_or_else(|| format!("{field:?} is not key=value"))?;
        match key.to_ascii_lowercase().as_str() {
            "id" => id = Some(value.to_owned()),
            "type" if matches!(value, "file" | "env") => kind = Some(value.to_owned()),
            "type" => return Err(format!("type {value:?} is neither file nor env")),
            "source" | "src" => src = Some(value.to_owned()),
            "env" => env = Some(value.to_owned()),
            other => return Err(format!("{other:?} is not known here")),
        }
    }
    // With type=env, src names the variable.
    if kind.as_deref() == Some("env") && env.is_none() {
        env = src.take();
    }
    match (id.or_else(|| src.clone()), src, env) {
        (None, _, _) => Err("id= is missing".into()),
        (Some(id), Some(path), None) => Ok((id, Place::File(path.into()))),
        (Some(id), None, Some(name)) => Ok((id, Place::Env(name))),
        (Some(_), Some(_), Some(_)) => Err("both a file and a variable are named".into()),
        // As with buildx: a variable of the secret's name, else a file of that name.
        (Some(id), None, None) if kind.as_deref() != Some("file") && std::env::var_os(&id).is_some() => {
            Ok((id.clone(), Place::Env(id)))
        }
        (Some(id), None, None) => Ok((id.clone(), Place::File(id.into()))),
    }
}
