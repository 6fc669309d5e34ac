//! `--cache-to` and `--cache-from`, in the syntax of docker buildx.

use std::path::{Path, PathBuf};

use registry::Reference;

use crate::export::{Fields, LayerCompression, csv};
use crate::images::parse_name;
use crate::size::Size;

/// The most that a cache mount holds which is exported where nothing else is said.
const USUAL_MOUNT: u64 = 1_000_000_000;

/// Where a cache is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// Under a name at a registry: a cache manifest, or (for reading) an image with an inline cache.
    Registry(Reference),
    /// An OCI layout.
    Local {
        /// The directory.
        path: PathBuf,
        /// The name within the layout's index.
        tag: String,
        /// The manifest, where it is asked for by digest.
        digest: Option<graph::Digest>,
    },
    /// In the config of the image that is built.
    Inline,
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Registry(reference) => f.write_str(&reference.familiar()),
            Self::Local { path, .. } => write!(f, "{}", path.display()),
            Self::Inline => f.write_str("the image"),
        }
    }
}

/// What is exported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Layers of the result; of other steps only what their results are, so that what follows them is found.
    Min,
    /// Layers of all steps.
    Max,
}

/// One `--cache-to`.
#[derive(Debug, Clone, PartialEq)]
pub struct CacheTo {
    /// Where to.
    pub place: Place,
    /// How much.
    pub mode: Mode,
    /// A cache that cannot be written is a warning.
    pub ignore_error: bool,
    /// Of layers.
    pub compression: LayerCompression,
    /// OCI media types, otherwise Docker's.
    pub oci: bool,
    /// An image manifest, otherwise an index of blobs.
    pub image_manifest: bool,
    /// The contents of cache mounts that the build used go along, each up to so many bytes.
    pub mounts: Option<u64>,
}

/// One `--cache-from`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheFrom {
    /// Where from.
    pub place: Place,
    /// Cache mounts that this store has not begin as they are there.
    pub mounts: bool,
}

/// The text is no cache.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid --{option} {spec:?}: {why}")]
pub struct SpecError {
    option: &'static str,
    spec: String,
    why: String,
}

impl CacheTo {
    /// Parses the value of one `--cache-to`.
    ///
    /// # Errors
    /// An unknown type or key, a value that cannot be, a missing place.
    pub fn parse(spec: &str) -> Result<Self, SpecError> {
        parse_to(spec).map_err(|why| SpecError { option: "cache-to", spec: spec.to_owned(), why })
    }

    /// What `BUILDKIT_INLINE_CACHE=1` asks for.
    #[must_use]
    pub fn inline() -> Self {
        let compression = LayerCompression { algorithm: crate::export::GZIP, force: false };
        Self {
            place: Place::Inline,
            mode: Mode::Min,
            ignore_error: false,
            compression,
            oci: true,
            image_manifest: true,
            mounts: None,
        }
    }
}

impl CacheFrom {
    /// Parses the value of one `--cache-from`.
    ///
    /// # Errors
    /// An unknown type or key, a missing place.
    pub fn parse(spec: &str) -> Result<Self, SpecError> {
        parse_from(spec).map_err(|why| SpecError { option: "cache-from", spec: spec.to_owned(), why })
    }
}

fn parse_to(spec: &str) -> Result<CacheTo, String> {
    let mut fields = split(spec)?;
    let place = match fields.take("type").as_deref() {
        Some("inline") => Place::Inline,
        Some("local") => local(&mut fields, "dest")?,
        other => elsewhere(other, &mut fields)?,
    };
    let mode = match fields.take("mode").as_deref() {
        None | Some("min") => Mode::Min,
        Some("max") if place == Place::Inline => {
            return Err("an image holds the layers of its own steps only: mode=max needs type=registry or local".into());
        }
        Some("max") => Mode::Max,
        Some(other) => return Err(format!("mode={other:?} is neither min nor max")),
    };
    let oci = fields.flag("oci-mediatypes", true)?;
    let image_manifest = fields.flag("image-manifest", oci)?;
    if image_manifest && !oci {
        return Err("image-manifest=true needs oci-mediatypes=true".into());
    }
    let mounts = mounts(&mut fields)?;
    if mounts.is_some() && place == Place::Inline {
        return Err("an image holds no cache mounts: mounts= needs type=registry or local".into());
    }
    let to = CacheTo {
        place,
        mode,
        ignore_error: fields.flag("ignore-error", false)?,
        compression: fields.compression()?,
        oci,
        image_manifest,
        mounts,
    };
    fields.end()?;
    Ok(to)
}

fn parse_from(spec: &str) -> Result<CacheFrom, String> {
    let mut fields = split(spec)?;
    let place = match fields.take("type").as_deref() {
        Some("inline") => {
            return Err("an inline cache is read from the image that holds it: type=registry,ref=IMAGE".into());
        }
        Some("local") => local(&mut fields, "src")?,
        other => elsewhere(other, &mut fields)?,
    };
    let mounts = fields.flag("mounts", true)?;
    fields.end()?;
    Ok(CacheFrom { place, mounts })
}

/// `mounts=true` or a size, which is the most that one mount may hold.
fn mounts(fields: &mut Fields) -> Result<Option<u64>, String> {
    match fields.take("mounts").as_deref() {
        None | Some("false" | "0") => Ok(None),
        Some("true" | "1") => Ok(Some(USUAL_MOUNT)),
        Some(size) => match size.parse() {
            Ok(Size(bytes)) => Ok(Some(bytes)),
            Err(_) => Err(format!("mounts={size:?} is neither true, false nor a size such as 500MB")),
        },
    }
}

/// A bare word is the name of an image.
fn split(spec: &str) -> Result<Fields, String> {
    let fields = csv(spec)?;
    match fields.as_slice() {
        [only] if !only.contains('=') => Ok(Fields::of(&[("type", "registry"), ("ref", only)])),
        fields => Fields::pairs(fields),
    }
}

fn elsewhere(kind: Option<&str>, fields: &mut Fields) -> Result<Place, String> {
    match kind {
        Some("registry") => {
            let reference = fields.take("ref").ok_or("ref= is missing")?;
            if fields.flag("registry.insecure", false)? {
                return Err(
                    "registry.insecure is said in the configuration file: [registry.\"HOST\"] insecure = true".into()
                );
            }
            Ok(Place::Registry(parse_name(&reference).map_err(|error| error.to_string())?))
        }
        Some(kind @ ("gha" | "s3" | "azblob")) => {
            Err(format!("type={kind} is not supported; there are registry, local and inline"))
        }
        Some(other) => Err(format!("unknown type {other:?}; there are registry, local and inline")),
        None => Err("type= is missing".into()),
    }
}

fn local(fields: &mut Fields, key: &str) -> Result<Place, String> {
    let path = fields.take(key).filter(|path| !path.is_empty()).ok_or_else(|| format!("{key}= is missing"))?;
    let digest = match fields.take("digest") {
        Some(digest) if key == "src" => Some(digest.parse().map_err(|error| format!("{error}"))?),
        Some(_) => return Err("digest= is for reading a cache".into()),
        None => None,
    };
    let tag = fields.take("tag").unwrap_or_else(|| "latest".into());
    Ok(Place::Local { path: Path::new(&path).to_owned(), tag, digest })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn caches_are_parsed_as_buildx_does() {
        let name = |name| Place::Registry(parse_name(name).unwrap());
        for (spec, place) in [
            ("user/app", name("user/app:latest")),
            ("type=registry,ref=host:5000/a:c", name("host:5000/a:c")),
            ("type=local,src=/c", Place::Local { path: "/c".into(), tag: "latest".into(), digest: None }),
            ("type=local,src=c,tag=x", Place::Local { path: "c".into(), tag: "x".into(), digest: None }),
        ] {
            assert_eq!(CacheFrom::parse(spec).unwrap().place, place, "{spec}");
        }
        let to = CacheTo::parse("type=registry,ref=a,mode=max,ignore-error=true,compression=zstd").unwrap();
        assert_eq!((to.place, to.mode, to.ignore_error, to.image_manifest), (name("a"), Mode::Max, true, true));
        for (mounts, bytes) in [("true", Some(USUAL_MOUNT)), ("20MB", Some(20_000_000)), ("false", None)] {
            assert_eq!(CacheTo::parse(&format!("type=local,dest=c,mounts={mounts}")).unwrap().mounts, bytes);
        }
        assert!(!CacheFrom::parse("type=local,src=c,mounts=false").unwrap().mounts);
        let to = CacheTo::parse("type=local,dest=c,oci-mediatypes=false").unwrap();
        assert_eq!((to.mode, to.oci, to.image_manifest), (Mode::Min, false, false));
        assert_eq!(CacheTo::parse("type=inline").unwrap(), CacheTo::inline());
        assert_eq!(CacheTo::parse("user/app:c").unwrap().place, name("user/app:c"));
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (spec, why) in [
            ("type=gha", "type=gha is not supported"),
            ("type=s3,bucket=b", "type=s3 is not supported"),
            ("type=azblob", "type=azblob is not supported"),
            ("type=registry", "ref= is missing"),
            ("type=registry,ref=A B", "A B"),
            ("type=local", "dest= is missing"),
            ("type=local,dest=c,mode=all", "neither min nor max"),
            ("type=inline,mode=max", "needs type=registry or local"),
            ("type=inline,mounts=true", "needs type=registry or local"),
            ("type=local,dest=c,mounts=many", "nor a size"),
            ("type=registry,ref=a,colour=red", "\"colour\" is not known"),
            ("type=registry,ref=a,registry.insecure=true", "configuration file"),
            ("type=local,dest=c,oci-mediatypes=false,image-manifest=true", "needs oci-mediatypes"),
        ] {
            let error = CacheTo::parse(spec).unwrap_err().to_string();
            assert!(error.contains(why), "{spec}: {error}");
        }
        assert!(CacheFrom::parse("type=inline").unwrap_err().to_string().contains("type=registry"));
        assert!(CacheFrom::parse("type=local,src=c,digest=sha256:1").is_err());
    }
}
