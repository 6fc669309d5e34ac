//! Bundles in OCI layouts (image-spec, image-layout.md).

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read as _, Seek as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures_util::future::BoxFuture;
use graph::{Digest, Platform};
use registry::{MANIFEST_MAX, Manifest, Verifier};
use serde_json::{Value, json};
use solver::{RunContext, Status};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt as _};

use super::beside::Referrers;
use super::place::Select;
use super::{Blobs, Bundle, BundleError, Document, Documents, descriptor};
use crate::export::Descriptor;
use crate::images::registry_descriptor;
use crate::session::Session;

const NAME: &str = "org.opencontainers.image.ref.name";
const FULL_NAME: &str = "io.containerd.image.name";

/// Where the files of a layout are.
pub(super) enum Layout {
    /// In a directory.
    Directory {
        /// Which.
        root: PathBuf,
        /// Removed when nothing reads from it any more.
        _temporary: Option<tempfile::TempDir>,
    },
    /// In a tar: where in it, and how long, by name.
    Tar {
        /// Its file.
        path: PathBuf,
        /// The members.
        members: HashMap<String, (u64, u64)>,
    },
}

impl Layout {
    /// A file of the layout from `offset` on, and how much of it there is.
    fn open(&self, name: &str, offset: u64) -> io::Result<(File, u64)> {
        let (mut file, start, size) = match self {
            Self::Directory { root, .. } => {
                let file = File::open(root.join(name))?;
                let metadata = file.metadata()?;
                // A pipe would never end.
                if !metadata.is_file() {
                    return Err(io::Error::other("it is no file"));
                }
                (file, 0, metadata.len())
            }
            Self::Tar { path, members } => {
                let (start, size) = *members.get(name).ok_or(io::ErrorKind::NotFound)?;
                (File::open(path)?, start, size)
            }
        };
        let offset = offset.min(size);
        file.seek(io::SeekFrom::Start(start + offset))?;
        Ok((file, size - offset))
    }

    /// A document of it.
    fn small(&self, name: &str) -> Result<Vec<u8>, BundleError> {
        let failed = |source| BundleError::File { action: "read", path: self.shown().join(name), source };
        let (file, size) = self.open(name, 0).map_err(failed)?;
        if size > MANIFEST_MAX {
            return Err(failed(io::Error::other("it is too large for what it should be")));
        }
        let mut bytes = Vec::new();
        file.take(size).read_to_end(&mut bytes).map_err(failed)?;
        Ok(bytes)
    }

    /// What its index names.
    fn entries(&self) -> Result<Vec<Descriptor>, BundleError> {
        let what = || format!("index.json of {}", self.shown().display());
        let malformed = |why: String| BundleError::Malformed { what: what(), why };
        let parsed = Manifest::parse(registry::OCI_INDEX, &self.small("index.json")?).map_err(malformed)?;
        let Manifest::Index(parsed) = parsed else { return Err(malformed("it is no index".into())) };
        parsed.manifests().iter().map(descriptor).collect()
    }

    /// What a person calls it.
    fn shown(&self) -> &Path {
        match self {
            Self::Directory { root, .. } => root,
            Self::Tar { path, .. } => path,
        }
    }
}

fn blob_name(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

impl Documents for Layout {
    fn document(&self, wanted: Descriptor) -> BoxFuture<'_, Result<Document, BundleError>> {
        Box::pin(async move {
            let bytes = self.small(&blob_name(&wanted.digest))?;
            if Digest::of(&bytes) != wanted.digest || bytes.len() as u64 != wanted.size {
                let what = format!("blob {}", wanted.digest);
                return Err(BundleError::Malformed {
                    what,
                    why: "its bytes are not those of its digest and size".into(),
                });
            }
            Ok(Document { descriptor: wanted, bytes })
        })
    }
}

impl Blobs for Layout {
    fn open(&self, blob: Descriptor, offset: u64) -> BoxFuture<'_, io::Result<Box<dyn AsyncRead + Send + Unpin>>> {
        Box::pin(async move {
            let (file, size) = Layout::open(self, &blob_name(&blob.digest), offset)?;
            Ok(Box::new(tokio::fs::File::from_std(file).take(size)) as Box<dyn AsyncRead + Send + Unpin>)
        })
    }
}

impl Referrers for Layout {
    /// All of them stand in its index.
    fn referrers(&self, subject: Digest) -> BoxFuture<'_, Result<Vec<Descriptor>, BundleError>> {
        Box::pin(async move {
            let mut found = Vec::new();
            for entry in self.entries()? {
                let manifest: Value =
                    serde_json::from_slice(&self.small(&blob_name(&entry.digest))?).unwrap_or_default();
                if manifest["subject"]["digest"].as_str() == Some(&subject.to_string()) {
                    found.push(entry);
                }
            }
            Ok(found)
        })
    }
}

pub(super) async fn read(
    session: &Session,
    layout: Layout,
    select: &Select,
    platform: Option<&Platform>,
) -> Result<Bundle, BundleError> {
    let layout = Arc::new(layout);
    let mut manifests = layout.entries()?;
    // What is said of an image is meant only where it is named.
    if *select == Select::Only && manifests.iter().any(|entry| entry.artifact_type.is_none()) {
        manifests.retain(|entry| entry.artifact_type.is_none());
    }
    let chosen = chosen(&manifests, select).ok_or_else(|| BundleError::Missing {
        name: match select {
            Select::Only => "latest".into(),
            Select::Name(name) | Select::Digest(name) => name.clone(),
        },
        place: layout.shown().display().to_string(),
        available: manifests.iter().flat_map(names).collect(),
    })?;
    let mut wanted = chosen.clone();
    // The layout's names of it are no property of it.
    wanted.annotations.remove(NAME);
    wanted.annotations.remove(FULL_NAME);
    let top = layout.document(wanted).await?;
    Bundle::follow(layout.as_ref(), layout.clone(), &session.remote.client, top, platform).await
}

fn names(descriptor: &Descriptor) -> Vec<String> {
    let names = [FULL_NAME, NAME].into_iter().filter_map(|key| descriptor.annotations.get(key).cloned());
    names.collect()
}

/// The manifest that is meant.
fn chosen<'a>(manifests: &'a [Descriptor], select: &Select) -> Option<&'a Descriptor> {
    let named = |wanted: &str| {
        manifests.iter().find(|descriptor| {
            let full = crate::images::parse_name(wanted).map(|name| name.to_string()).ok();
            names(descriptor).iter().any(|name| {
                let tag = name.parse::<registry::Reference>().ok().and_then(|name| name.tag().map(str::to_owned));
                name == wanted || Some(name) == full.as_ref() || (name.contains('/') && tag.as_deref() == Some(wanted))
            })
        })
    };
    match select {
        Select::Name(name) => named(name),
        Select::Digest(digest) => manifests.iter().find(|descriptor| descriptor.digest.to_string() == *digest),
        Select::Only => match manifests {
            [only] => Some(only),
            // One image under several names is one image.
            [first, rest @ ..] if rest.iter().all(|other| other.digest == first.digest) => Some(first),
            _ => named("latest"),
        },
    }
}

/// Adds the bundle to a layout, which may have other images; what has the name loses it. Layers that are not to be handed on are
/// left out, unless it is to be `complete`.
pub(super) async fn write(
    bundle: &Bundle,
    root: &Path,
    select: &Select,
    complete: bool,
    context: &RunContext,
) -> Result<(), BundleError> {
    write_blobs(bundle, root, complete, context).await?;
    for document in bundle.documents() {
        write_document(document, root)?;
    }
    let mut own = entry(&bundle.top.descriptor);
    let name = match select {
        Select::Name(name) => Some(name.clone()),
        Select::Only | Select::Digest(_) => None,
    };
    if let Some(name) = &name {
        own["annotations"] = json!({ NAME: name });
    }
    change_index(root, |manifests| {
        manifests.retain(|other| {
            let same_name = name.is_some() && other["annotations"][NAME].as_str() == name.as_deref();
            let same_image = other["digest"] == own["digest"] && other["annotations"] == own["annotations"];
            !same_name && !same_image
        });
        manifests.push(own);
    })?;
    list_beside(bundle, root)
}

/// Adds only what refers to something that is there.
pub(super) async fn write_beside(bundle: &Bundle, root: &Path, context: &RunContext) -> Result<(), BundleError> {
    write_blobs(bundle, root, false, context).await?;
    list_beside(bundle, root)
}

fn list_beside(bundle: &Bundle, root: &Path) -> Result<(), BundleError> {
    if bundle.beside.is_empty() {
        return Ok(());
    }
    for (_, document) in &bundle.beside {
        write_document(document, root)?;
    }
    change_index(root, |manifests| {
        for (_, document) in &bundle.beside {
            let digest = json!(document.descriptor.digest);
            if manifests.iter().all(|other| other["digest"] != digest) {
                manifests.push(json!(document.descriptor));
            }
        }
    })
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> BundleError {
    let path = path.to_owned();
    move |source| BundleError::File { action: "write", path, source }
}

fn entry(descriptor: &Descriptor) -> Value {
    json!({ "mediaType": descriptor.media_type, "digest": descriptor.digest, "size": descriptor.size })
}

async fn write_blobs(bundle: &Bundle, root: &Path, complete: bool, context: &RunContext) -> Result<(), BundleError> {
    let blobs = root.join("blobs/sha256");
    std::fs::create_dir_all(&blobs).map_err(failed(&blobs))?;
    for (blob, from) in bundle.blobs.iter().filter(|(blob, _)| complete || !blob.is_kept_elsewhere()) {
        keep(&blobs, blob, from, context).await?;
    }
    let marker = root.join("oci-layout");
    std::fs::write(&marker, r#"{"imageLayoutVersion":"1.0.0"}"#).map_err(failed(&marker))
}

fn write_document(document: &Document, root: &Path) -> Result<(), BundleError> {
    let path = root.join(blob_name(&document.descriptor.digest));
    std::fs::write(&path, &document.bytes).map_err(failed(&path))
}

/// Writes the index anew with what `change` does to its list.
fn change_index(root: &Path, change: impl FnOnce(&mut Vec<Value>)) -> Result<(), BundleError> {
    let path = root.join("index.json");
    let mut index: Value = match std::fs::read(&path) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .map_err(|error| BundleError::Malformed { what: path.display().to_string(), why: error.to_string() })?,
        Err(_) => json!({ "schemaVersion": 2, "mediaType": registry::OCI_INDEX, "manifests": [] }),
    };
    let Some(manifests) = index.get_mut("manifests").and_then(Value::as_array_mut) else {
        return Err(BundleError::Malformed { what: path.display().to_string(), why: "it has no manifests".into() });
    };
    change(manifests);
    // Replaced whole: whoever reads meanwhile sees one or the other.
    let part = root.join(format!(".index.json.{}", std::process::id()));
    std::fs::write(&part, index.to_string()).map_err(failed(&part))?;
    std::fs::rename(&part, &path).map_err(failed(&path))
}

/// Brings one blob, verified, unless it is there.
async fn keep(blobs: &Path, blob: &Descriptor, from: &Arc<dyn Blobs>, context: &RunContext) -> Result<(), BundleError> {
    let path = blobs.join(blob.digest.hex());
    if std::fs::metadata(&path).is_ok_and(|there| there.is_file() && there.len() == blob.size) {
        return Ok(());
    }
    let malformed = |why: String| BundleError::Malformed { what: format!("blob {}", blob.digest), why };
    let read = |source| BundleError::Read { what: format!("blob {}", blob.digest), source };
    let written = |source| BundleError::File { action: "write", path: path.clone(), source };
    let mut verifier =
        Verifier::new(&registry_descriptor(blob).map_err(malformed)?).map_err(|error| malformed(error.to_string()))?;
    // Gone again unless all of it came.
    let temporary = tempfile::NamedTempFile::new_in(blobs).map_err(written)?;
    let mut file = tokio::fs::File::from_std(temporary.reopen().map_err(written)?);
    let mut reader = from.open(blob.clone(), 0).await.map_err(read)?.take(blob.size + 1);
    let mut room = snapshotter::Room::at(blobs);
    let mut buffer = vec![0; 1 << 18];
    loop {
        let length = reader.read(&mut buffer).await.map_err(read)?;
        if length == 0 {
            break;
        }
        room.take(length as u64).map_err(written)?;
        verifier.update(&buffer[..length]);
        file.write_all(&buffer[..length]).await.map_err(written)?;
        let current = verifier.seen();
        let status = Status { id: blob.digest.to_string(), current, total: blob.size, done: current == blob.size };
        context.progress.status(status);
    }
    file.flush().await.map_err(written)?;
    if !verifier.is_complete() {
        return Err(malformed("its bytes are not those of its digest and size".into()));
    }
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    std::fs::set_permissions(temporary.path(), mode).map_err(written)?;
    temporary.persist(&path).map_err(|error| written(error.error))?;
    Ok(())
}
