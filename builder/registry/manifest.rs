//! Manifests and indexes, Docker's and OCI's, and the choice of a platform.

use std::fmt;

use bytes::Bytes;
use oci_spec::image::{Descriptor, ImageIndex, ImageManifest};
use serde_json::Value;

use crate::error::Asked;
use crate::{Digest, Error};

/// OCI image index.
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// OCI image manifest.
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// Docker manifest list.
pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
/// Docker image manifest, schema 2.
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_SCHEMA1: &str = "application/vnd.docker.distribution.manifest.v1";

/// What we tell registries that we understand, the index first.
pub(crate) const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, \
     application/vnd.oci.image.manifest.v1+json, \
     application/vnd.docker.distribution.manifest.v2+json, */*;q=0.1";

/// The largest manifest we accept.
pub const MANIFEST_MAX: u64 = 8 << 20;

/// A manifest as a registry gave it: verified bytes, and what they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved {
    /// Media type, digest and size of `bytes`.
    pub descriptor: Descriptor,
    /// The manifest's bytes, exactly as served.
    pub bytes: Bytes,
    /// The host that served it.
    pub host: String,
}

impl Resolved {
    /// Reads the bytes.
    ///
    /// # Errors
    /// When they are neither an image manifest nor an index, or of a kind that we do not handle.
    pub fn parse(&self) -> Result<Manifest, Error> {
        Manifest::parse(self.descriptor.media_type().as_ref(), &self.bytes).map_err(|why| Error::UnsupportedManifest {
            asked: Asked::boxed(&self.host, format!("manifest {}", self.descriptor.digest())),
            why,
        })
    }

    /// The digest.
    #[must_use]
    pub fn digest(&self) -> &Digest {
        self.descriptor.digest()
    }
}

/// The two kinds of manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Manifest {
    /// One image: a config and layers.
    Image(Box<ImageManifest>),
    /// Images for several platforms.
    Index(Box<ImageIndex>),
}

impl Manifest {
    /// Reads a manifest. `media_type` is what the registry or the descriptor calls it; when that says nothing, the bytes decide.
    ///
    /// # Errors
    /// Says in words why it cannot be used.
    pub fn parse(media_type: &str, bytes: &[u8]) -> Result<Self, String> {
        let mut json: Value = serde_json::from_slice(bytes).map_err(|e| format!("the manifest is not JSON: {e}"))?;
        let Some(object) = json.as_object_mut() else {
            return Err("the manifest is not a JSON object".into());
        };
        let kind = media_type_of(media_type, object)?;
        // Go writes empty lists as null.
        for list in ["layers", "manifests"] {
            if object.get(list).is_some_and(Value::is_null) {
                object.insert(list.to_owned(), Value::Array(Vec::new()));
            }
        }
        match kind {
            OCI_INDEX | DOCKER_LIST => {
                let index = serde_json::from_value(json).map_err(|e| format!("the index is malformed: {e}"))?;
                Ok(Self::Index(Box::new(index)))
            }
            _ => {
                let image = serde_json::from_value(json).map_err(|e| format!("the manifest is malformed: {e}"))?;
                Ok(Self::Image(Box::new(image)))
            }
        }
    }
}

/// Decides what a manifest is. Where both the header and the document speak they must agree in kind, or a server could have
/// one document read in two ways.
fn media_type_of(header: &str, object: &serde_json::Map<String, Value>) -> Result<&'static str, String> {
    let known = |text: &str| [OCI_INDEX, DOCKER_LIST, OCI_MANIFEST, DOCKER_MANIFEST].into_iter().find(|k| *k == text);
    let header = header.split(';').next().unwrap_or_default().trim();
    let inner = object.get("mediaType").and_then(Value::as_str).unwrap_or_default();
    let schema1 = |text: &str| text.starts_with(DOCKER_SCHEMA1);
    if schema1(header) || schema1(inner) || object.get("schemaVersion").and_then(Value::as_u64) == Some(1) {
        return Err(
            "the image has Docker's old schema 1 manifest, which is not supported; pull and push it again with a \
                    current docker or skopeo to convert it"
                .into(),
        );
    }
    let shape = match (object.get("manifests"), object.get("config").or(object.get("layers"))) {
        (Some(_), None) => Some(OCI_INDEX),
        (None, Some(_)) => Some(OCI_MANIFEST),
        (Some(_), Some(_)) => return Err("the manifest is an image and an index at the same time".into()),
        (None, None) => None,
    };
    let said = if inner.is_empty() { known(header) } else { known(inner) };
    match (said, shape) {
        (Some(said), None) => Err(format!("the manifest says it is {said} but has none of its fields")),
        (Some(said), Some(shape)) if is_index(said) != is_index(shape) => {
            Err(format!("the manifest says it is {said} but has the fields of {shape}"))
        }
        (Some(said), Some(_)) => Ok(said),
        (None, Some(shape)) if inner.is_empty() => Ok(shape),
        (None, _) if !inner.is_empty() => Err(format!("manifests of type {inner:?} are not supported")),
        _ => Err(format!("manifests of type {header:?} are not supported")),
    }
}

fn is_index(media_type: &str) -> bool {
    matches!(media_type, OCI_INDEX | DOCKER_LIST)
}

/// The media type to record for a served manifest: the header's when it is one of the four, else the document's or its shape's.
pub(crate) fn effective_media_type(header: &str, bytes: &[u8]) -> Result<&'static str, String> {
    let json: Value = serde_json::from_slice(bytes).map_err(|e| format!("the manifest is not JSON: {e}"))?;
    let object = json.as_object().ok_or("the manifest is not a JSON object")?;
    media_type_of(header, object)
}

/// A platform to choose by, in containerd's normal form (`linux`, `arm`, `v7`); the variant may be empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Want<'a> {
    /// GOOS.
    pub os: &'a str,
    /// GOARCH.
    pub architecture: &'a str,
    /// CPU variant, or empty.
    pub variant: &'a str,
}

impl fmt::Display for Want<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        if !self.variant.is_empty() {
            write!(f, "/{}", self.variant)?;
        }
        Ok(())
    }
}

/// Chooses the manifest for a platform: the exact one, else the best that such a machine can run (an arm v7 machine runs v6 and
/// v5, an amd64 v3 machine runs v2 and v1). Attestations, whose platform is `unknown/unknown`, are never chosen.
///
/// # Errors
/// [`Error::NoPlatform`], which lists what there is.
pub fn choose_platform<'a>(index: &'a ImageIndex, want: &Want<'_>) -> Result<&'a Descriptor, Error> {
    let (architecture, variant) = normalise(want.architecture, want.variant);
    let order = candidates(&architecture, &variant);
    let mut best: Option<(usize, &Descriptor)> = None;
    let mut available = Vec::new();
    for descriptor in index.manifests() {
        let Some(platform) = descriptor.platform() else { continue };
        let (os, arch) = (platform.os().to_string(), platform.architecture().to_string());
        if os == "unknown" || arch == "unknown" || is_attestation(descriptor) {
            continue;
        }
        let (arch, variant) = normalise(&arch, platform.variant().as_deref().unwrap_or_default());
        let shown = Want { os: &os, architecture: &arch, variant: &variant }.to_string();
        if !available.contains(&shown) {
            available.push(shown);
        }
        if os != want.os {
            continue;
        }
        if let Some(rank) = order.iter().position(|(a, v)| *a == arch && *v == variant)
            && best.is_none_or(|(so_far, _)| rank < so_far)
        {
            best = Some((rank, descriptor));
        }
    }
    if let Some((_, descriptor)) = best {
        return Ok(descriptor);
    }
    // An index of one image without any platform is a plain wrapper around it.
    if let [only] = index.manifests().as_slice()
        && only.platform().is_none()
        && !is_attestation(only)
    {
        return Ok(only);
    }
    Err(Error::NoPlatform { wanted: want.to_string(), available })
}

/// What an index names without saying for which platform it is.
pub fn without_platform(index: &ImageIndex) -> impl Iterator<Item = &Descriptor> {
    index
        .manifests()
        .iter()
        .filter(|child| child.platform().is_none() && child.artifact_type().is_none() && !is_attestation(child))
}

fn is_attestation(descriptor: &Descriptor) -> bool {
    let kind = descriptor.annotations().as_ref().and_then(|a| a.get("vnd.docker.reference.type"));
    kind.is_some_and(|kind| kind == "attestation-manifest")
}

/// The platforms that a machine can run, best first.
fn candidates(architecture: &str, variant: &str) -> Vec<(String, String)> {
    let level = variant.strip_prefix('v').and_then(|v| v.parse::<u32>().ok()).filter(|level| *level <= 16);
    let mut list = vec![(architecture.to_owned(), variant.to_owned())];
    let mut add = |arch: &str, level: u32| {
        let (arch, variant) = normalise(arch, &format!("v{level}"));
        if !list.contains(&(arch.clone(), variant.clone())) {
            list.push((arch, variant));
        }
    };
    match (architecture, level) {
        ("arm", Some(level)) => (5..level).rev().for_each(|l| add("arm", l)),
        ("amd64", Some(level)) => (1..level).rev().for_each(|l| add("amd64", l)),
        ("arm64", level) => {
            (8..level.unwrap_or(8)).rev().for_each(|l| add("arm64", l));
            (5..=8).rev().for_each(|l| add("arm", l));
        }
        _ => {}
    }
    list
}

fn normalise(architecture: &str, variant: &str) -> (String, String) {
    let (architecture, variant) = match (architecture, variant) {
        ("amd64" | "x86_64" | "x86-64", "v1") => ("amd64", ""),
        ("x86_64" | "x86-64", v) => ("amd64", v),
        ("i386" | "x86", _) => ("386", ""),
        ("arm64" | "aarch64", "8" | "v8") => ("arm64", ""),
        ("aarch64", v) => ("arm64", v),
        ("armhf", _) | ("arm", "" | "7") => ("arm", "v7"),
        ("armel", _) | ("arm", "6") => ("arm", "v6"),
        ("arm", "5") => ("arm", "v5"),
        ("arm", "8") => ("arm", "v8"),
        other => other,
    };
    (architecture.to_owned(), variant.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(n: usize) -> String {
        format!("sha256:{n:064x}")
    }

    fn index(platforms: &[&str]) -> ImageIndex {
        let manifests: Vec<Value> = platforms
            .iter()
            .enumerate()
            .map(|(n, text)| {
                let mut parts = text.split('/');
                let mut next = || parts.next().unwrap_or_default();
                serde_json::json!({"mediaType": OCI_MANIFEST, "digest": hex(n), "size": 1,
                    "platform": {"os": next(), "architecture": next(), "variant": next()}})
            })
            .collect();
        let json = serde_json::json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests}).to_string();
        match Manifest::parse(OCI_INDEX, json.as_bytes()).unwrap() {
            Manifest::Index(index) => *index,
            Manifest::Image(_) => panic!("an index"),
        }
    }

    #[test]
    fn the_best_platform_is_chosen() {
        let all = ["unknown/unknown", "linux/amd64", "linux/arm/v5", "linux/arm/v6", "linux/arm64/v8", "windows/amd64"];
        for (have, want, chosen) in [
            (&all[..], "linux/amd64", Some(1)),
            (&all, "linux/amd64/v3", Some(1)),
            (&all, "linux/arm/v7", Some(3)),
            (&all, "linux/arm", Some(3)),
            (&all, "linux/arm/v6", Some(3)),
            (&all, "linux/arm/v5", Some(2)),
            (&all, "linux/arm64", Some(4)),
            (&all, "linux/arm64/v8", Some(4)),
            (&all, "linux/arm64/v9", Some(4)),
            (&all, "windows/amd64", Some(5)),
            (&all, "linux/s390x", None),
            (&all, "unknown/unknown", None),
            (&["linux/amd64/v2", "linux/amd64", "linux/amd64/v3"], "linux/amd64/v3", Some(2)),
            (&["linux/amd64/v2"], "linux/amd64", None),
            (&["linux/arm/v7"], "linux/arm/v6", None),
            (&["linux/arm"], "linux/arm/v7", Some(0)),
            (&["linux/arm/v7"], "linux/arm64", Some(0)),
        ] {
            let index = index(have);
            let mut parts = want.split('/');
            let mut next = || parts.next().unwrap_or_default();
            let wanted = Want { os: next(), architecture: next(), variant: next() };
            let got = choose_platform(&index, &wanted).ok().map(|d| d.digest().to_string());
            assert_eq!(got, chosen.map(hex), "{want} of {have:?}");
        }
        let error =
            choose_platform(&index(&all), &Want { os: "linux", architecture: "s390x", variant: "" }).unwrap_err();
        assert_eq!(
            error.to_string(),
            "no image for platform linux/s390x; available: linux/amd64, linux/arm/v5, linux/arm/v6, linux/arm64, windows/amd64"
        );
    }

    #[test]
    fn manifests_are_what_they_say() {
        let image = format!(
            r#"{{"schemaVersion":2,"config":{{"mediaType":"x/y","digest":"{}","size":2}},"layers":null}}"#,
            hex(1)
        );
        let parse = |media: &str, text: &str| Manifest::parse(media, text.as_bytes());
        assert!(matches!(parse(DOCKER_MANIFEST, &image), Ok(Manifest::Image(_))));
        assert!(matches!(parse("application/json", &image), Ok(Manifest::Image(_))));
        assert!(matches!(parse("", r#"{"schemaVersion":2,"manifests":null}"#), Ok(Manifest::Index(_))));
        for (media, text, want) in [
            ("", "", "not JSON"),
            ("", "[]", "not a JSON object"),
            ("", "{}", "not supported"),
            ("", "null", "not a JSON object"),
            (OCI_INDEX, &image, "has the fields of"),
            (OCI_MANIFEST, r#"{"schemaVersion":2}"#, "none of its fields"),
            ("", r#"{"schemaVersion":1,"fsLayers":[]}"#, "schema 1"),
            ("application/vnd.docker.distribution.manifest.v1+prettyjws", "{}", "schema 1"),
            ("", r#"{"config":{},"manifests":[]}"#, "at the same time"),
            (OCI_MANIFEST, r#"{"schemaVersion":2,"config":{"digest":"sha256:zz"},"layers":[]}"#, "malformed"),
            ("", r#"{"mediaType":"a/b","config":{}}"#, "\"a/b\" are not supported"),
        ] {
            let error = parse(media, text).unwrap_err();
            assert!(error.contains(want), "{text}: {error}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_it_panic(text in "[\\[\\]{}:,\"a-z0-9]{0,60}|\\PC{0,60}") {
            let _ = Manifest::parse("", text.as_bytes());
        }
    }
}
