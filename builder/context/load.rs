//! From the command line's PATH and `-f` to a context and a Dockerfile.

use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use frontend::SourceFile;
use rustix::fs::{Mode, OFlags};
use snapshotter::layer::compress::{self, Detected};
use snapshotter::layer::{Bytes, EntryKind};

use super::{ContextError, Ignore, LocalContext, Place};
use crate::provenance::Origin;
use crate::worker::archive_tree;

/// What PATH names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ContextArg {
    /// `-`
    Stdin,
    /// A directory.
    Directory(PathBuf),
    /// A Git repository, `#ref:subdir` included.
    Git(String),
    /// A tar or a Dockerfile.
    Http(String),
}

impl ContextArg {
    /// Recognises what docker build recognises.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let before_fragment = text.split('#').next().unwrap_or(text);
        let is_http = text.starts_with("http://") || text.starts_with("https://");
        if text == "-" {
            Self::Stdin
        } else if text.starts_with("git://")
            || text.starts_with("ssh://")
            || text.starts_with("git@")
            || text.starts_with("github.com/")
            || (is_http && before_fragment.ends_with(".git"))
            || text.starts_with("file://")
        {
            Self::Git(text.to_owned())
        } else if is_http {
            Self::Http(text.to_owned())
        } else {
            Self::Directory(text.into())
        }
    }
}

/// A Dockerfile and its ignore rules' name.
#[derive(Debug)]
pub struct Dockerfile {
    /// The text.
    pub source: SourceFile,
}

/// What a build reads first.
#[derive(Debug)]
pub struct Loaded {
    /// The Dockerfile.
    pub dockerfile: Dockerfile,
    /// The context.
    pub context: LocalContext,
    /// Where that came from.
    pub origin: Origin,
}

/// Reads the Dockerfile and the ignore rules, and finds out where the context's files are.
///
/// # Errors
/// What is missing or cannot be read.
pub fn load(
    place: Place,
    file: Option<&str>,
    stdin: impl FnOnce() -> io::Result<Vec<u8>>,
) -> Result<Loaded, ContextError> {
    let name = file.unwrap_or("Dockerfile");
    let (display, text) = if name == "-" {
        let text = stdin().map_err(|source| ContextError::Source { what: "standard input".into(), source })?;
        ("Dockerfile".to_owned(), text)
    } else {
        (name.to_owned(), dockerfile(&place, file)?)
    };
    let ignore = ignore_rules(&place, (name != "-").then_some(name), file.is_some())?;
    let source = SourceFile::from_bytes(display, &text);
    let context = LocalContext { name: super::MAIN_CONTEXT.into(), place, ignore };
    Ok(Loaded { dockerfile: Dockerfile { source }, context, origin: Origin::default() })
}

fn dockerfile(place: &Place, file: Option<&str>) -> Result<Vec<u8>, ContextError> {
    let candidates = match file {
        Some(name) => vec![name],
        None => vec!["Dockerfile", "dockerfile"],
    };
    for name in &candidates {
        // A Dockerfile named on the command line is a path of the caller's, as with docker.
        if file.is_some() && is_callers(place) {
            let path = Path::new(name);
            // It may well be a pipe: `-f <(…)`.
            match std::fs::File::open(path).and_then(read_bounded) {
                Ok(text) => return Ok(text),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(source) => return Err(ContextError::Read { path: path.to_owned(), source }),
            }
        }
        if let Some(text) = read_from(place, name)? {
            return Ok(text);
        }
    }
    let name = candidates[0].to_owned();
    let similar = similar_file(place);
    let place = match place {
        Place::Directory(path, None) => path.display().to_string(),
        _ => "the build context".into(),
    };
    Err(ContextError::NoDockerfile { name, place, similar })
}

fn similar_file(place: &Place) -> Option<String> {
    let Place::Directory(root, _) = place else { return None };
    let names = std::fs::read_dir(root).ok()?.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    names
        .filter(|name| name.to_ascii_lowercase().contains("dockerfile") || name == "Containerfile")
        .filter(|name| !name.ends_with(".dockerignore"))
        .min()
}

/// Whether the context is the caller's own directory, next to which he names files: what came from elsewhere has to bring its
/// own.
fn is_callers(place: &Place) -> bool {
    matches!(place, Place::Nothing | Place::Directory(_, None))
}

/// The whole of a text, unless it has no end.
fn read_bounded(input: impl Read) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    input.take(MAX_DOCKERFILE + 1).read_to_end(&mut text)?;
    if text.len() as u64 > MAX_DOCKERFILE {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "it is larger than 64 MiB"));
    }
    Ok(text)
}

/// A text in a directory. Opened without waiting, so that a pipe of that name does not stop the build. In a directory that came
/// from elsewhere a symbolic link leads to what it means there; in the caller's own it leads where he made it lead.
fn read_file(root: &Path, name: &str, confined: bool) -> io::Result<Vec<u8>> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = if confined {
        sys::path::open(sys::file::open_root(root)?, name.as_bytes(), sys::path::Links::InRoot, flags, 0)?
    } else {
        rustix::fs::open(root.join(name), flags, Mode::empty())?
    };
    let file = std::fs::File::from(file);
    match file.metadata()?.file_type() {
        kind if kind.is_file() => read_bounded(file),
        kind if kind.is_dir() => Err(io::ErrorKind::IsADirectory.into()),
        _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no ordinary file")),
    }
}

/// A file of the context; `None` if there is none.
fn read_from(place: &Place, name: &str) -> Result<Option<Vec<u8>>, ContextError> {
    match place {
        Place::Nothing => Ok(None),
        Place::Directory(root, _) => {
            let path = root.join(name);
            match read_file(root, name, !is_callers(place)) {
                Ok(text) => Ok(Some(text)),
                Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                    Ok(None)
                }
                Err(source) => Err(ContextError::Read { path, source }),
            }
        }
        Place::Archive(file, index) => {
            let path = snapshotter::layer::clean(name.as_bytes());
            let Some(EntryKind::File { size, offset: Some(offset), .. }) =
                index.get(&path).map(|entry| entry.kind.clone())
            else {
                return Ok(None);
            };
            let mut text = Vec::new();
            let mut slice = Bytes::Part { file: Arc::clone(file), offset, size }.reader();
            slice.read_to_end(&mut text).map_err(|source| ContextError::Read { path: name.into(), source })?;
            Ok(Some(text))
        }
    }
}

/// `NAME.dockerignore` beside the Dockerfile goes before `.dockerignore` of the context.
fn ignore_rules(place: &Place, dockerfile: Option<&str>, named: bool) -> Result<Ignore, ContextError> {
    if let Some(name) = dockerfile {
        let own = format!("{name}.dockerignore");
        let text = match named && is_callers(place) {
            true => read_file(Path::new(""), &own, false).ok(),
            false => None,
        };
        let text = match text {
            Some(text) => Some(text),
            None => read_from(place, &own)?,
        };
        if let Some(text) = text {
            return Ignore::parse(&own, &text);
        }
    }
    match read_from(place, ".dockerignore")? {
        Some(text) => Ignore::parse(".dockerignore", &text),
        None => Ok(Ignore::none()),
    }
}

/// The rules of a named context's own `.dockerignore`.
///
/// # Errors
/// A pattern that cannot be used.
pub(crate) fn ignore_of(root: &Path) -> Result<Ignore, ContextError> {
    ignore_rules(&Place::Directory(root.to_owned(), None), None, false)
}

/// What came over standard input or HTTP: a tar is a context; anything else is a Dockerfile.
pub(crate) enum Stream {
    Context(Place),
    Dockerfile(Vec<u8>),
}

/// Most of a Dockerfile that is read.
const MAX_DOCKERFILE: u64 = 64 << 20;

pub(crate) fn stream(what: &str, input: impl Read + Send + 'static) -> Result<Stream, ContextError> {
    let failed = |source: io::Error| ContextError::Source { what: what.to_owned(), source };
    let mut input = input;
    let mut start = Vec::new();
    input.by_ref().take(512).read_to_end(&mut start).map_err(failed)?;
    let is_tar = start.get(257..262) == Some(b"ustar");
    let is_compressed = compress::detect(&start) != Detected::None;
    let input = BufReader::with_capacity(1 << 16, io::Cursor::new(start).chain(input));
    if !is_compressed && !is_tar {
        let mut text = Vec::new();
        input.take(MAX_DOCKERFILE).read_to_end(&mut text).map_err(failed)?;
        return Ok(Stream::Dockerfile(text));
    }
    let (index, data) = archive_tree(input).map_err(|error| failed(io::Error::other(error)))?;
    let data = data.map_or_else(tempfile::tempfile, Ok).map_err(failed)?;
    Ok(Stream::Context(Place::Archive(Arc::new(data), Arc::new(index))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contexts_are_recognised_as_docker_does() {
        for (text, want) in [
            ("-", ContextArg::Stdin),
            (".", ContextArg::Directory(".".into())),
            ("git@host:a/b.git", ContextArg::Git("git@host:a/b.git".into())),
            ("https://host/a.git#main:dir", ContextArg::Git("https://host/a.git#main:dir".into())),
            ("https://host/a.tar.gz", ContextArg::Http("https://host/a.tar.gz".into())),
            ("github.com/a/b", ContextArg::Git("github.com/a/b".into())),
            ("dir.git", ContextArg::Directory("dir.git".into())),
        ] {
            assert_eq!(ContextArg::parse(text), want, "{text}");
        }
    }
}
