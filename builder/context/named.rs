//! `--build-context`: further contexts by name.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use frontend::ContextSource;

use super::{ContextArg, MAIN_CONTEXT};
use crate::bundle::Place;

/// What `--build-context` gives.
#[derive(Debug, Default)]
pub struct NamedContexts {
    /// For the frontend.
    pub sources: BTreeMap<String, ContextSource>,
    /// Directories of the caller.
    pub directories: BTreeMap<String, PathBuf>,
    /// Images in layouts and archives.
    pub places: BTreeMap<String, Place>,
    /// Stages of the same Dockerfile.
    pub targets: BTreeMap<String, String>,
}

/// Parses what `--build-context` gives: what the frontend is told, and directories of the caller.
///
/// # Errors
/// What is wrong with one of them.
pub fn named_contexts(specs: &[String]) -> Result<NamedContexts, String> {
    let NamedContexts { mut sources, mut directories, mut places, mut targets } = NamedContexts::default();
    for spec in specs {
        let (name, value) =
            spec.split_once('=').ok_or_else(|| format!("--build-context {spec:?} is not NAME=SOURCE"))?;
        let name = name.to_ascii_lowercase();
        if name == MAIN_CONTEXT {
            return Err(format!("--build-context {spec:?}: {name} is the name of the main context"));
        }
        let source = if let Some(image) = value.strip_prefix("docker-image://") {
            ContextSource::Image(image.to_owned())
        } else if Place::is_on_this_machine(value) {
            let place = Place::parse(value).map_err(|error| format!("--build-context {spec:?}: {error}"))?;
            places.insert(name, place);
            continue;
        } else if let Some(target) = value.strip_prefix("target:") {
            if target.is_empty() {
                return Err(format!("--build-context {spec:?}: target: needs the name of a stage"));
            }
            targets.insert(name, target.to_owned());
            continue;
        } else {
            match ContextArg::parse(value) {
                ContextArg::Git(url) => ContextSource::Git(url),
                ContextArg::Http(url) => ContextSource::Http { url, unpack: true },
                ContextArg::Stdin => {
                    return Err(format!("--build-context {spec:?}: standard input cannot be used here"));
                }
                ContextArg::Directory(path) => {
                    if !Path::new(&path).is_dir() {
                        return Err(format!("--build-context {spec:?}: {} is not a directory", path.display()));
                    }
                    directories.insert(name.clone(), path);
                    ContextSource::Local
                }
            }
        };
        sources.insert(name, source);
    }
    Ok(NamedContexts { sources, directories, places, targets })
}
