//! Build contexts: what the person's directories, archives and URLs hold, and which of it a build can see.

mod ignore;
mod load;
pub(crate) mod missing;
mod named;
mod scan;
#[cfg(test)]
mod tests;
mod wanted;

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

/// What the context that PATH names is called; others have the names of `--build-context`.
pub const MAIN_CONTEXT: &str = "context";

pub use ignore::Ignore;
pub use load::{ContextArg, Dockerfile, Loaded, load};
pub(crate) use load::{Stream, ignore_of, stream};
pub use named::{NamedContexts, named_contexts};
use snapshotter::StatCache;
use snapshotter::layer::{Bytes, Entry, EntryKind, LayerIndex, Tree, is_within};
pub use wanted::Wanted;

use crate::worker::ReadableTree;
use scan::Scan;

/// A source of files that the caller named.
#[derive(Debug)]
pub struct LocalContext {
    /// Its name in the graph.
    pub name: String,
    /// Where its files are.
    pub place: Place,
    /// What is left out of it.
    pub ignore: Ignore,
}

/// Where the files of a context are.
#[derive(Debug, Clone)]
pub enum Place {
    /// Nowhere: only a Dockerfile was given.
    Nothing,
    /// In a directory; the second part keeps a temporary one alive.
    Directory(PathBuf, Option<Arc<tempfile::TempDir>>),
    /// In a tar, uncompressed.
    Archive(Arc<File>, Arc<LayerIndex>),
}

/// A context that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ContextError {
    /// A file or directory.
    #[error("cannot read {} of the build context", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// There is no such directory.
    #[error("the build context {} is not a directory", .0.display())]
    NoDirectory(PathBuf),
    /// There is no Dockerfile.
    #[error("there is no {name} in {place}")]
    NoDockerfile {
        /// The name looked for.
        name: String,
        /// Where.
        place: String,
        /// A file that may have been meant.
        similar: Option<String>,
    },
    /// Standard input, a URL or an archive.
    #[error("cannot use {what} as build context")]
    Source {
        /// What.
        what: String,
        /// Why.
        source: io::Error,
    },
    /// A rule of `.dockerignore`.
    #[error("in {file}: {why}")]
    Ignore {
        /// The file.
        file: String,
        /// What is wrong.
        why: String,
    },
}

impl LocalContext {
    /// What of the context a build can see, as far as it wants to.
    ///
    /// # Errors
    /// Something that cannot be read.
    pub(crate) fn read(&self, wanted: &Wanted, cache: &StatCache) -> Result<ReadableTree, ContextError> {
        match &self.place {
            Place::Nothing => Ok(ReadableTree::empty()),
            Place::Directory(root, _) => {
                let scan = Scan::new(root, wanted, &self.ignore, cache)?;
                let tree = Arc::clone(&scan.tree);
                let bytes = move |_: usize, path: &[u8]| Ok(Bytes::Whole(scan.open(path)?));
                Ok(ReadableTree { tree, bytes: Arc::new(bytes) })
            }
            Place::Archive(file, index) => {
                let tree = Arc::new(Tree::new(vec![Arc::new(LayerIndex::new(self.kept(index)))]));
                let (file, of) = (Arc::clone(file), Arc::clone(&tree));
                let bytes = move |_: usize, path: &[u8]| match of.lookup(path).map(|found| &found.entry.kind) {
                    Some(&EntryKind::File { size, offset: Some(offset), .. }) => {
                        Ok(Bytes::Part { file: Arc::clone(&file), offset, size })
                    }
                    _ => Err(io::ErrorKind::NotFound.into()),
                };
                Ok(ReadableTree { tree, bytes: Arc::new(bytes) })
            }
        }
    }

    /// What the rules leave of an archive. Ignored directories stay if something in them does.
    fn kept(&self, index: &LayerIndex) -> Vec<Entry> {
        let mut kept: Vec<Entry> = Vec::new();
        let mut passed: Vec<&Entry> = Vec::new();
        // Data of files whose own name is ignored go to the next name.
        let mut names: HashMap<&[u8], Vec<u8>> = HashMap::new();
        for entry in index.entries() {
            passed.retain(|directory| is_within(&entry.path, &directory.path));
            let path = String::from_utf8_lossy(&entry.path);
            if !entry.path.is_empty() && self.ignore.patterns().test(&path).ignored {
                passed.extend(entry.is_dir().then_some(entry));
                continue;
            }
            let mut new = entry.clone();
            if let Some(file) = index.file_of(entry) {
                let name = names.entry(&file.path).or_insert_with(|| entry.path.clone());
                new.kind =
                    if *name == entry.path { file.kind.clone() } else { EntryKind::Hardlink { target: name.clone() } };
            }
            for entry in passed.drain(..).cloned().chain([new]) {
                kept.push(Entry { uid: 0, gid: 0, ..entry });
            }
        }
        kept
    }

    /// Why a path that a COPY names is not part of the context, if that can be known.
    #[must_use]
    pub fn why_missing(&self, path: &str) -> Option<String> {
        let relative = path.trim_matches('/');
        if let Some(why) = self.ignore.why_ignored(relative) {
            return Some(why);
        }
        match &self.place {
            Place::Nothing => None,
            Place::Directory(root, _) => missing::explain(&missing::Directory { root, ignore: &self.ignore }, relative),
            Place::Archive(_, index) => missing::explain(&Tree::new(vec![Arc::clone(index)]), relative),
        }
    }

    /// For messages.
    #[must_use]
    pub fn describe(&self) -> String {
        match &self.place {
            Place::Nothing => "an empty build context".into(),
            Place::Directory(path, None) => format!("the build context {}", path.display()),
            Place::Directory(_, Some(_)) | Place::Archive(..) => "the build context".into(),
        }
    }
}
