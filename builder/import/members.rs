//! What lies in an archive, by name: everything is stored under its own digest as it streams by, since what the names mean
//! may stand at the archive's end.

use std::collections::HashMap;
use std::io::Read;
use std::path::PathBuf;

use graph::Digest;
use snapshotter::Store;
use tar::EntryType;

use super::{ImportError, copy, shown};
use crate::worker::DiskGuard;

/// Files of an archive; more are no image.
const MOST_MEMBERS: usize = 100_000;
/// Largest document that is read into memory.
const LARGEST_DOCUMENT: u64 = 16 << 20;
/// Links that lead to links.
const MOST_LINKS: usize = 8;

/// A stored file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Member {
    pub(super) digest: Digest,
    pub(super) size: u64,
}

/// Where images are read from.
#[derive(Debug)]
pub(super) enum Members {
    /// A tar that was read to its end.
    Archive {
        /// Documents by which the rest is found.
        documents: HashMap<String, Vec<u8>>,
        /// Everything else.
        files: HashMap<String, Member>,
        /// docker's archives name a layer that two images share once.
        links: HashMap<String, String>,
    },
    /// An OCI layout.
    Directory(PathBuf),
    /// The blobs of the store.
    Store,
}

impl Members {
    /// Reads a tar, compressed or not.
    pub(super) fn read(store: &Store, input: Box<dyn Read + Send>) -> Result<Self, ImportError> {
        let read = |source| ImportError::Read { what: "the archive".into(), source };
        // Few bytes may stand for many, in one member or in a hundred thousand.
        let plain = DiskGuard::later(crate::worker::decompressed(input).map_err(read)?, store.root().to_owned());
        let mut archive = tar::Archive::new(plain);
        let (mut documents, mut files, mut links) = (HashMap::new(), HashMap::new(), HashMap::new());
        for (number, entry) in archive.entries().map_err(read)?.enumerate() {
            if number == MOST_MEMBERS {
                let why = format!("it has more than {MOST_MEMBERS} members");
                return Err(ImportError::Malformed { what: "the archive".into(), why });
            }
            let mut entry = entry.map_err(read)?;
            let name = clean("", &String::from_utf8_lossy(&entry.path_bytes()));
            match entry.header().entry_type() {
                EntryType::Regular | EntryType::Continuous => {
                    if is_document(&name) {
                        documents.insert(name.clone(), document(&name, &mut entry)?);
                    } else if !is_idle(&name) {
                        let member = keep(store, &name, &mut entry)?;
                        files.insert(name, member);
                    }
                }
                EntryType::Symlink | EntryType::Link => {
                    let target = entry.link_name_bytes().unwrap_or_default();
                    let target = String::from_utf8_lossy(&target).into_owned();
                    let directory = if entry.header().entry_type() == EntryType::Symlink { parent(&name) } else { "" };
                    let target = clean(directory, &target);
                    links.insert(name, target);
                }
                // A few bytes that stand for as many as one likes.
                EntryType::GNUSparse => {
                    return Err(ImportError::Malformed { what: name, why: "a sparse file".into() });
                }
                _ => {}
            }
        }
        Ok(Self::Archive { documents, files, links })
    }

    /// One of the documents at the top.
    pub(super) fn document(&self, name: &str) -> Result<Option<Vec<u8>>, ImportError> {
        match self {
            Self::Archive { documents, .. } => Ok(documents.get(name).cloned()),
            Self::Store => Ok(None),
            Self::Directory(directory) => match std::fs::File::open(directory.join(name)) {
                Ok(file) => document(name, file).map(Some),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
                Err(source) => Err(ImportError::Read { what: shown(&directory.join(name)), source }),
            },
        }
    }

    /// A file that a document names, in the store now.
    pub(super) fn file(&self, store: &Store, name: &str) -> Result<Member, ImportError> {
        match self {
            Self::Archive { files, links, .. } => {
                let mut name = clean("", name);
                for _ in 0..MOST_LINKS {
                    match (files.get(&name), links.get(&name)) {
                        (Some(member), _) => return Ok(*member),
                        (None, Some(target)) => name.clone_from(target),
                        (None, None) => break,
                    }
                }
                Err(ImportError::Missing(name))
            }
            Self::Store => {
                let missing = || ImportError::Missing(name.to_owned());
                let digest = blob_digest(name).ok_or_else(missing)?;
                let path = store.blob_path(&digest).ok_or_else(missing)?;
                let read = |source| ImportError::Read { what: shown(&path), source };
                Ok(Member { digest, size: path.metadata().map_err(read)?.len() })
            }
            Self::Directory(directory) => {
                // Only blobs are ever named, and their names are made of digests.
                let Some(digest) = blob_digest(name) else { return Err(ImportError::Missing(name.to_owned())) };
                let path = directory.join(blob_name(&digest));
                let read = |source| ImportError::Read { what: shown(&path), source };
                let file = match std::fs::File::open(&path) {
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                        return Err(ImportError::Missing(blob_name(&digest)));
                    }
                    file => file.map_err(read)?,
                };
                if let Some(there) = store.blob_path(&digest) {
                    return Ok(Member { digest, size: there.metadata().map_err(read)?.len() });
                }
                keep(store, name, file)
            }
        }
    }

    /// A blob of an OCI layout.
    pub(super) fn blob(&self, store: &Store, digest: &Digest) -> Result<Member, ImportError> {
        self.file(store, &blob_name(digest))
    }
}

/// Stores a file. One that lies under the name of a digest must have it.
fn keep(store: &Store, name: &str, from: impl Read) -> Result<Member, ImportError> {
    let mut blob = store.blob_writer()?;
    copy(from, &mut blob).map_err(|source| ImportError::Read { what: name.to_owned(), source })?;
    let (digest, size) = blob.commit(blob_digest(name).as_ref())?;
    Ok(Member { digest, size })
}

fn document(name: &str, from: impl Read) -> Result<Vec<u8>, ImportError> {
    let mut bytes = Vec::new();
    let read = from.take(LARGEST_DOCUMENT + 1).read_to_end(&mut bytes);
    read.map_err(|source| ImportError::Read { what: name.to_owned(), source })?;
    if bytes.len() as u64 > LARGEST_DOCUMENT {
        let why = format!("it is larger than {} MiB", LARGEST_DOCUMENT >> 20);
        return Err(ImportError::Malformed { what: name.to_owned(), why });
    }
    Ok(bytes)
}

fn is_document(name: &str) -> bool {
    matches!(name, "index.json" | "manifest.json")
}

/// What old versions of docker wanted, and nobody reads any more.
fn is_idle(name: &str) -> bool {
    matches!(name, "oci-layout" | "repositories") || name.ends_with("/VERSION") || name.ends_with("/json")
}

fn blob_name(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

fn blob_digest(name: &str) -> Option<Digest> {
    format!("sha256:{}", name.strip_prefix("blobs/sha256/")?).parse().ok()
}

fn parent(name: &str) -> &str {
    name.rsplit_once('/').map_or("", |(directory, _)| directory)
}

/// A name in one spelling. These are keys, never paths of this machine.
fn clean(directory: &str, name: &str) -> String {
    let start = if name.starts_with('/') { "" } else { directory };
    let mut parts: Vec<&str> = Vec::new();
    for part in start.split('/').chain(name.split('/')) {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    parts.join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_one_spelling() {
        for (directory, name, want) in [
            ("", "./a/b", "a/b"),
            ("abc", "../def/layer.tar", "def/layer.tar"),
            ("abc", "../../../etc/passwd", "etc/passwd"),
            ("abc", "/x", "x"),
            ("", "a//b/", "a/b"),
        ] {
            assert_eq!(clean(directory, name), want);
        }
        assert_eq!(blob_digest("blobs/sha256/../../x"), None);
    }
}
