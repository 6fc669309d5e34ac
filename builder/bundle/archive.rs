//! Bundles in archives, and in the store: by way of a layout in a directory of ours, which goes when it is done with.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek as _, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::BytesMut;
use futures_util::future::BoxFuture;
use futures_util::{StreamExt as _, TryStreamExt as _};
use graph::{Digest, Platform};
use registry::Reference;
use serde_json::json;
use snapshotter::layer::compress::{Detected, detect};
use snapshotter::{ImageKind, ImageRecord, Store};
use solver::{RunContext, Status};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncSeekExt as _};

use super::beside::Referrers;
use super::layout::Layout;
use super::place::Select;
use super::{Blobs, Bundle, BundleError, Document, descriptor, layout};
use crate::export::{Descriptor, OutputKind, OutputSpec, Package, tar_header};
use crate::images::{parse_name, registry_descriptor};
use crate::import::{self, Input, Loaded, Wanted};
use crate::session::Session;
use crate::stored::{Stored, StoredError};
use crate::worker::DiskGuard;

/// Files of an archive; more are no image.
const MOST_MEMBERS: usize = 100_000;
/// Blobs on their way into the store at the same time.
const BLOBS_AT_ONCE: usize = 4;

fn file_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> BundleError {
    let path = path.to_owned();
    move |source| BundleError::File { action, path, source }
}

fn temporary(session: &Session) -> Result<tempfile::TempDir, BundleError> {
    let scratch = session.store.scratch_directory();
    tempfile::tempdir_in(&scratch).map_err(file_error("write", &scratch))
}

async fn on_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, BundleError> + Send + 'static,
) -> Result<T, BundleError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(_) => Err(BundleError::Malformed { what: "internal error".into(), why: "a thread panicked".into() }),
    }
}

/// The layout in an archive: read where it is, unless it is compressed; then it is unpacked first.
pub(super) async fn layout_in(session: &Session, path: &Path) -> Result<Layout, BundleError> {
    let (scratch, path) = (session.store.scratch_directory(), path.to_owned());
    on_thread(move || {
        let read = |source| BundleError::File { action: "read", path: path.clone(), source };
        let mut file = File::open(&path).map_err(read)?;
        let mut start = [0; 6];
        let length = file.read(&mut start).map_err(read)?;
        file.rewind().map_err(read)?;
        let plain = detect(&start[..length]) == Detected::None && file.metadata().map_err(read)?.is_file();
        if !plain {
            return unpacked(file, &path, scratch);
        }
        let mut members = HashMap::new();
        let mut archive = tar::Archive::new(file);
        for (number, entry) in archive.entries_with_seek().map_err(read)?.enumerate() {
            let entry = entry.map_err(read)?;
            if number == MOST_MEMBERS {
                return Err(read(io::Error::other("it has too many members for an image")));
            }
            if let Some(name) = wanted_member(&entry) {
                members.insert(name, (entry.raw_file_position(), entry.size()));
            }
        }
        Ok(Layout::Tar { path, members })
    })
    .await
}

/// The name of a member that is a part of a layout. Nothing else is ever read, and these names lead nowhere else.
fn wanted_member(entry: &tar::Entry<'_, impl Read>) -> Option<String> {
    let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
    let name = name.strip_prefix("./").unwrap_or(&name);
    let is_hex = |name: &str| name.len() == 64 && name.bytes().all(|byte| byte.is_ascii_hexdigit());
    let is_wanted = name == "index.json" || name.strip_prefix("blobs/sha256/").is_some_and(is_hex);
    (is_wanted && entry.header().entry_type().is_file()).then(|| name.to_owned())
}

fn unpacked(file: File, path: &Path, scratch: PathBuf) -> Result<Layout, BundleError> {
    let directory = tempfile::tempdir_in(&scratch).map_err(file_error("write", &scratch))?;
    let read = |source| BundleError::File { action: "read", path: path.to_owned(), source };
    let blobs = directory.path().join("blobs/sha256");
    std::fs::create_dir_all(&blobs).map_err(file_error("write", &blobs))?;
    let plain = DiskGuard::later(crate::worker::decompressed(file).map_err(read)?, scratch);
    let mut archive = tar::Archive::new(plain);
    for (number, entry) in archive.entries().map_err(read)?.enumerate() {
        let mut entry = entry.map_err(read)?;
        if number == MOST_MEMBERS {
            return Err(read(io::Error::other("it has too many members for an image")));
        }
        let Some(name) = wanted_member(&entry) else { continue };
        let to = directory.path().join(name);
        let mut out = File::create(&to).map_err(file_error("write", &to))?;
        io::copy(&mut entry, &mut out).map_err(read)?;
    }
    Ok(Layout::Directory { root: directory.path().to_owned(), _temporary: Some(directory) })
}

/// What the store has of a bundle.
pub(super) struct Stock(Arc<Store>);

/// The blobs of the store.
pub(super) fn stock(session: &Session) -> Arc<Stock> {
    Arc::new(Stock(Arc::clone(&session.store)))
}

impl super::Documents for Stock {
    fn document(&self, wanted: Descriptor) -> BoxFuture<'_, Result<Document, BundleError>> {
        Box::pin(async move {
            let bytes = self.0.read_blob(&wanted.digest)?.ok_or_else(|| BundleError::Malformed {
                what: format!("manifest {}", wanted.digest),
                why: "it is not in the store".into(),
            })?;
            Ok(Document { descriptor: wanted, bytes })
        })
    }
}

impl Referrers for Stock {
    fn referrers(&self, subject: Digest) -> BoxFuture<'_, Result<Vec<Descriptor>, BundleError>> {
        Box::pin(async move { Ok(crate::referrers::descriptors(&self.0, &subject)?) })
    }
}

impl Blobs for Stock {
    fn open(&self, blob: Descriptor, offset: u64) -> BoxFuture<'_, io::Result<Box<dyn AsyncRead + Send + Unpin>>> {
        Box::pin(async move {
            let path = self.0.blob_path(&blob.digest).ok_or(io::ErrorKind::NotFound)?;
            let mut file = tokio::fs::File::open(path).await?;
            file.seek(io::SeekFrom::Start(offset)).await?;
            Ok(Box::new(file) as Box<dyn AsyncRead + Send + Unpin>)
        })
    }
}

/// An image of a docker archive, by way of the store, which verifies it.
pub(super) async fn docker(
    session: &Session,
    path: &Path,
    select: &Select,
    platform: Option<&Platform>,
    context: &RunContext,
) -> Result<Bundle, BundleError> {
    let file = File::open(path).map_err(file_error("read", path))?;
    let (store, platform) = (Arc::clone(&session.store), platform.cloned());
    let loaded = on_thread(move || {
        let wanted = platform.as_ref().map_or(Wanted::All, Wanted::Only);
        Ok(import::take(&store, Input::Archive(Box::new(file)), wanted)?)
    })
    .await?;
    let missing = |name: &str| BundleError::Missing {
        name: name.to_owned(),
        place: path.display().to_string(),
        available: loaded.iter().flat_map(|image| &image.names).map(Reference::familiar).collect(),
    };
    let chosen: &Loaded = match select {
        Select::Only => match loaded.as_slice() {
            [only] => only,
            _ => return Err(missing("latest")),
        },
        Select::Name(name) => {
            let full = parse_name(name)?;
            loaded.iter().find(|image| image.names.contains(&full)).ok_or_else(|| missing(name))?
        }
        Select::Digest(digest) => {
            loaded.iter().find(|image| image.id.to_string() == *digest).ok_or_else(|| missing(digest))?
        }
    };
    let image = Stored::find(&session.store, &chosen.id.to_string())?;
    packed(session, &Stored { manifest: chosen.manifest.clone(), ..image }, context).await
}

/// An image of the store.
pub(super) async fn stored(
    session: &Session,
    name: &str,
    platform: Option<&Platform>,
    context: &RunContext,
) -> Result<Bundle, BundleError> {
    let image = Stored::find(&session.store, name)?;
    let bundle = packed(session, &image, context).await?;
    let Some(platform) = platform else { return Ok(bundle) };
    let stock = Arc::new(Stock(Arc::clone(&session.store)));
    let top = bundle.top.clone();
    Bundle::follow(&bundle, stock, &session.remote.client, top, Some(platform)).await
}

impl super::Documents for Bundle {
    fn document(&self, wanted: Descriptor) -> BoxFuture<'_, Result<Document, BundleError>> {
        Box::pin(async move {
            let known = self.below.iter().find(|document| document.descriptor.digest == wanted.digest);
            known.cloned().ok_or_else(|| BundleError::Malformed {
                what: format!("manifest {}", wanted.digest),
                why: "it is not there".into(),
            })
        })
    }
}

async fn packed(session: &Session, image: &Stored, context: &RunContext) -> Result<Bundle, BundleError> {
    let output = OutputSpec::of(OutputKind::Image { push: false, by_digest: false });
    let package = image.package(session, &output, context, true, None).await?;
    crate::outputs::keep_manifests(session, &package)?;
    let stock: Arc<dyn Blobs> = Arc::new(Stock(Arc::clone(&session.store)));
    let Package { images, index, .. } = package;
    let mut bundle = Bundle {
        top: Document { descriptor: Descriptor::new("", image.id, 0), bytes: Vec::new() },
        below: Vec::new(),
        blobs: Vec::new(),
        beside: Vec::new(),
    };
    for image in images {
        let layers = image.layers.into_iter().map(|layer| layer.descriptor);
        for blob in std::iter::once(image.config_descriptor).chain(layers) {
            bundle.add_blob(blob, &stock);
        }
        bundle.below.push(Document { descriptor: image.manifest_descriptor, bytes: image.manifest });
    }
    match (index, bundle.below.pop()) {
        (Some((bytes, descriptor)), last) => {
            bundle.below.extend(last);
            bundle.top = Document { descriptor, bytes };
        }
        (None, Some(only)) => bundle.top = only,
        (None, None) => {
            return Err(BundleError::Stored(StoredError::Missing(image.label())));
        }
    }
    Ok(bundle)
}

/// Writes an archive: an OCI layout, for docker with its `manifest.json`.
pub(super) async fn write(
    session: &Session,
    bundle: &Bundle,
    path: &Path,
    select: &Select,
    docker: bool,
    context: &RunContext,
) -> Result<(), BundleError> {
    let directory = temporary(session)?;
    // What docker loads has no addresses.
    layout::write(bundle, directory.path(), select, docker, context).await?;
    if docker {
        let manifest = docker_manifest(bundle, select)?;
        let file = directory.path().join("manifest.json");
        std::fs::write(&file, manifest).map_err(file_error("write", &file))?;
    }
    let path = path.to_owned();
    on_thread(move || {
        let failed = file_error("write", &path);
        let written = if path.as_os_str() == "-" {
            pack(directory.path(), io::stdout().lock())
        } else {
            File::create(&path).and_then(|file| pack(directory.path(), file))
        };
        written.map_err(failed)
    })
    .await
}

/// Docker's description of the one image.
fn docker_manifest(bundle: &Bundle, select: &Select) -> Result<Vec<u8>, BundleError> {
    let images = bundle.images()?;
    let [(_, image)] = images.as_slice() else {
        let what = "a docker archive holds one image".into();
        return Err(BundleError::Malformed {
            what,
            why: format!("there are {}; say which with --platform", images.len()),
        });
    };
    let blob =
        |blob: &registry::Descriptor| Ok::<_, BundleError>(format!("blobs/sha256/{}", descriptor(blob)?.digest.hex()));
    let layers = image.layers().iter().map(blob).collect::<Result<Vec<_>, _>>()?;
    let names: Vec<String> = match select {
        Select::Name(name) => vec![parse_name(name)?.familiar()],
        Select::Only | Select::Digest(_) => Vec::new(),
    };
    let manifest = json!([{ "Config": blob(image.config())?, "RepoTags": names, "Layers": layers }]);
    Ok(manifest.to_string().into_bytes())
}

/// A directory as a tar that depends on its files only.
fn pack(directory: &Path, out: impl Write) -> io::Result<()> {
    let mut tar = tar::Builder::new(io::BufWriter::with_capacity(1 << 18, out));
    for name in ["blobs/", "blobs/sha256/"] {
        tar.append_data(&mut tar_header(tar::EntryType::Directory, 0, 0o755), name, io::empty())?;
    }
    let mut names: Vec<PathBuf> = Vec::new();
    for entry in std::fs::read_dir(directory.join("blobs/sha256"))? {
        names.push(Path::new("blobs/sha256").join(entry?.file_name()));
    }
    names.sort();
    names.extend(["index.json", "manifest.json", "oci-layout"].map(PathBuf::from));
    for name in names {
        let file = match File::open(directory.join(&name)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            file => file?,
        };
        let size = file.metadata()?.len();
        tar.append_data(&mut tar_header(tar::EntryType::Regular, size, 0o644), &name, file.take(size))?;
    }
    tar.into_inner()?.flush()
}

/// Keeps what refers to images of the store.
pub(super) async fn keep_beside(session: &Session, bundle: &Bundle, context: &RunContext) -> Result<(), BundleError> {
    let kept = bundle.blobs.iter().map(|(blob, from)| keep(session, blob, from, context));
    futures_util::stream::iter(kept).buffer_unordered(BLOBS_AT_ONCE).try_collect::<Vec<()>>().await?;
    for (subject, document) in &bundle.beside {
        session.store.put_blob(&document.bytes)?;
        crate::referrers::note(&session.store, subject, &document.descriptor, false)?;
    }
    crate::stored::make_durable(session).await.map_err(|error| BundleError::Output(error.into()))
}

/// Takes the image, or all of an index, into the store, all bytes verified, and names it.
pub(super) async fn into_store(
    session: &Session,
    bundle: &Bundle,
    name: &Reference,
    kind: ImageKind,
    context: &RunContext,
) -> Result<(), BundleError> {
    let kept = bundle.blobs.iter().map(|(blob, from)| keep(session, blob, from, context));
    futures_util::stream::iter(kept).buffer_unordered(BLOBS_AT_ONCE).try_collect::<Vec<()>>().await?;
    for document in bundle.below.iter().chain([&bundle.top]) {
        session.store.put_blob(&document.bytes)?;
    }
    let top = registry_descriptor(&bundle.top.descriptor)
        .map_err(|why| BundleError::Malformed { what: bundle.top.descriptor.digest.to_string(), why })?;
    for (subject, document) in &bundle.beside {
        session.store.put_blob(&document.bytes)?;
        crate::referrers::note(&session.store, subject, &document.descriptor, false)?;
    }
    let (store, name) = (Arc::clone(&session.store), name.to_string());
    on_thread(move || {
        let Loaded { id: config, manifest, .. } = import::take_stored(&store, &top, Wanted::All)?;
        Ok(store.put_image(&ImageRecord { name, config, manifest, kind })?)
    })
    .await?;
    crate::stored::make_durable(session).await.map_err(|error| BundleError::Output(error.into()))
}

/// Brings one blob into the store, verified, unless it is there.
async fn keep(
    session: &Session,
    blob: &Descriptor,
    from: &Arc<dyn Blobs>,
    context: &RunContext,
) -> Result<(), BundleError> {
    if session.store.blob_path(&blob.digest).is_some() {
        return Ok(());
    }
    let read = |source| BundleError::Read { what: format!("blob {}", blob.digest), source };
    let mut reader = from.open(blob.clone(), 0).await.map_err(read)?.take(blob.size + 1);
    let (store, digest, size) = (Arc::clone(&session.store), blob.digest, blob.size);
    let (chunks, sender) = crate::worker::pipe();
    let written = on_thread(move || {
        let mut chunks = chunks;
        let mut writer = store.blob_writer()?;
        let what = || format!("blob {digest}");
        let length = io::copy(&mut chunks, &mut writer).map_err(|source| BundleError::Read { what: what(), source })?;
        if length != size {
            let why = format!("it has {length} bytes or more, not {size}");
            return Err(BundleError::Malformed { what: what(), why });
        }
        writer.commit(Some(&digest))?;
        Ok(())
    });
    let sent = async {
        let mut current = 0;
        loop {
            let mut piece = BytesMut::with_capacity(1 << 18);
            let length = match reader.read_buf(&mut piece).await {
                Ok(length) => length,
                Err(error) => {
                    let told = io::Error::new(error.kind(), error.to_string());
                    // Whoever writes must not take it for the end.
                    let _ = sender.send(Err(error)).await;
                    return Err(read(told));
                }
            };
            current += length as u64;
            let status = Status { id: digest.to_string(), current, total: size, done: length == 0 };
            context.progress.status(status);
            if length == 0 || sender.send(Ok(piece.freeze())).await.is_err() {
                drop(sender);
                return Ok(());
            }
        }
    };
    let (sent, written) = tokio::join!(sent, written);
    sent.and(written)
}
