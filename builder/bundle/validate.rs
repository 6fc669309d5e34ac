//! Whether an image is what the specifications want and all its parts agree: what others will trip over, before they do.

use std::io::{self, BufReader, Read};

use graph::{Digest, ImageConfig};
use registry::Manifest;
use sha2::Digest as _;
use snapshotter::layer::compress::{self, Detected};
use solver::RunContext;
use tokio_util::io::SyncIoBridge;

use super::{Bundle, BundleError, Document, descriptor};
use crate::export::Descriptor;

const CONFIGS: [&str; 2] =
    ["application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"];

/// Reads every byte of the images of a bundle; what is wrong with them, each finding a sentence.
///
/// # Errors
/// Something cannot be read; what can be read and is wrong is a finding.
pub async fn validate(bundle: &Bundle, context: &RunContext) -> Result<Vec<String>, BundleError> {
    let mut findings = Vec::new();
    for document in bundle.below.iter().chain([&bundle.top]) {
        let name = document.descriptor.digest.short();
        if Digest::of(&document.bytes) != document.descriptor.digest {
            findings.push(format!("manifest {name}: its bytes have another digest"));
        }
        if document.bytes.len() as u64 != document.descriptor.size {
            let (is, said) = (document.bytes.len(), document.descriptor.size);
            findings.push(format!("manifest {name}: it has {is} bytes, not {said}"));
        }
        match document.parse()? {
            Manifest::Index(index) => of_index(bundle, document, &index, &mut findings).await?,
            Manifest::Image(image) => of_image(bundle, document, &image, context, &mut findings).await?,
        }
    }
    Ok(findings)
}

fn schema(document: &Document, version: u32, said: Option<String>, findings: &mut Vec<String>) {
    let name = document.descriptor.digest.short();
    if version != 2 {
        findings.push(format!("manifest {name}: its schemaVersion is {version}, not 2"));
    }
    if let Some(said) = said.filter(|said| *said != document.descriptor.media_type) {
        let by_name = &document.descriptor.media_type;
        findings.push(format!("manifest {name}: it calls itself {said}, what names it says {by_name}"));
    }
}

async fn of_index(
    bundle: &Bundle,
    document: &Document,
    index: &registry::ImageIndex,
    findings: &mut Vec<String>,
) -> Result<(), BundleError> {
    let said = index.media_type().as_ref().map(ToString::to_string);
    schema(document, index.schema_version(), said, findings);
    let name = document.descriptor.digest.short();
    for child in index.manifests() {
        let child = descriptor(child)?;
        let known = bundle.below.iter().find(|below| below.descriptor.digest == child.digest);
        let Some(known) = known else {
            // Only one platform was asked for.
            continue;
        };
        if known.bytes.len() as u64 != child.size {
            findings.push(format!("index {name}: the size it gives of {} is wrong", child.digest.short()));
        }
        let (Some(platform), Ok(Manifest::Image(image))) = (&child.platform, known.parse()) else { continue };
        if platform.os == "unknown" {
            continue;
        }
        let config = bundle.small(&descriptor(image.config())?).await?;
        if let Ok(config) = serde_json::from_slice::<ImageConfig>(&config) {
            let own = config.platform();
            if (&own.os, &own.architecture) != (&platform.os, &platform.architecture) {
                findings.push(format!("index {name}: it says {platform} of an image whose config says {own}"));
            }
        }
    }
    Ok(())
}

async fn of_image(
    bundle: &Bundle,
    document: &Document,
    image: &registry::ImageManifest,
    context: &RunContext,
    findings: &mut Vec<String>,
) -> Result<(), BundleError> {
    schema(document, image.schema_version(), image.media_type().as_ref().map(ToString::to_string), findings);
    let name = document.descriptor.digest.short();
    let config_descriptor = descriptor(image.config())?;
    if !CONFIGS.contains(&config_descriptor.media_type.as_str()) {
        // Something else than an image: only its blobs can be checked.
        for layer in image.layers() {
            blob(bundle, &descriptor(layer)?, context, findings).await?;
        }
        return Ok(());
    }
    let bytes = bundle.small(&config_descriptor).await?;
    let config: ImageConfig = match serde_json::from_slice(&bytes) {
        Ok(config) => config,
        Err(error) => {
            findings.push(format!("config of {name}: {error}"));
            return Ok(());
        }
    };
    if config.rootfs.kind != "layers" {
        findings.push(format!("config of {name}: rootfs.type is {:?}, not \"layers\"", config.rootfs.kind));
    }
    if config.os.is_empty() || config.architecture.is_empty() {
        findings.push(format!("config of {name}: it names no platform"));
    }
    let (layers, diff_ids) = (image.layers().len(), config.rootfs.diff_ids.len());
    if layers != diff_ids {
        findings.push(format!("{name}: {layers} layers, but {diff_ids} diff ids"));
    }
    let with_layer = config.history.iter().filter(|entry| !entry.empty_layer).count();
    if !config.history.is_empty() && with_layer != diff_ids {
        findings.push(format!("config of {name}: its history has {with_layer} layers, the image {diff_ids}"));
    }
    for time in config.history.iter().filter_map(|entry| entry.created.as_ref()).chain(config.created.as_ref()) {
        if time.parse::<jiff::Timestamp>().is_err() {
            findings.push(format!("config of {name}: {time:?} is no time"));
        }
    }
    for (number, layer) in image.layers().iter().enumerate() {
        let found = blob(bundle, &descriptor(layer)?, context, findings).await?;
        if let (Some(found), Some(diff_id)) = (found, config.rootfs.diff_ids.get(number))
            && found != *diff_id
        {
            findings.push(format!("layer {} of {name}: its diff id is {found}, the config says {diff_id}", number + 1));
        }
    }
    Ok(())
}

/// Reads a layer's blob; its diff id, if it is a layer.
async fn blob(
    bundle: &Bundle,
    wanted: &Descriptor,
    context: &RunContext,
    findings: &mut Vec<String>,
) -> Result<Option<Digest>, BundleError> {
    let name = wanted.digest.short();
    let malformed = |why: &str| BundleError::Malformed { what: format!("blob {name}"), why: why.to_owned() };
    let read = |source| BundleError::Read { what: format!("blob {}", wanted.digest), source };
    let blobs = bundle.blobs.iter().find(|(blob, _)| blob.digest == wanted.digest);
    let (_, blobs) = blobs.ok_or_else(|| malformed("nothing here has it"))?;
    let reader = blobs.open(wanted.clone(), 0).await.map_err(read)?;
    let bridge = SyncIoBridge::new(reader);
    let (limit, media_type, cancelled) = (wanted.size, wanted.media_type.clone(), context.cancelled.clone());
    let looked = tokio::task::spawn_blocking(move || {
        let stop = move || cancelled.is_cancelled();
        look(bridge, limit, &media_type, &stop)
    });
    let looked = looked.await.map_err(|_| malformed("reading it panicked"))?.map_err(read)?;
    if context.cancelled.is_cancelled() {
        return Err(BundleError::Cancelled);
    }
    if looked.digest != wanted.digest {
        findings.push(format!("blob {name}: its bytes have the digest {}", looked.digest));
    }
    if looked.size != wanted.size {
        findings.push(format!("blob {name}: it has {} bytes, not {}", looked.size, wanted.size));
    }
    findings.extend(looked.findings.into_iter().map(|finding| format!("layer {name}: {finding}")));
    Ok(looked.diff_id)
}

struct Looked {
    digest: Digest,
    size: u64,
    diff_id: Option<Digest>,
    findings: Vec<String>,
}

/// Hashes what passes.
struct Hashing<'a, R> {
    from: R,
    hasher: sha2::Sha256,
    size: u64,
    stop: &'a (dyn Fn() -> bool + Send + Sync),
}

impl<R: Read> Read for Hashing<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if (self.stop)() {
            return Err(io::Error::other("cancelled"));
        }
        let length = self.from.read(buffer)?;
        self.hasher.update(&buffer[..length]);
        self.size += length as u64;
        Ok(length)
    }
}

fn look(
    from: impl Read + Send,
    size: u64,
    media_type: &str,
    stop: &(dyn Fn() -> bool + Send + Sync),
) -> io::Result<Looked> {
    let mut findings = Vec::new();
    // A byte more than said tells that it is longer.
    let mut whole = Hashing { from: from.take(size + 1), hasher: sha2::Sha256::new(), size: 0, stop };
    let mut diff_id = None;
    {
        let mut buffered = BufReader::with_capacity(1 << 18, &mut whole);
        let start = io::BufRead::fill_buf(&mut buffered)?;
        let compression = compress::detect(start);
        let is_layer = media_type.contains("image.layer") || media_type.contains("image.rootfs.");
        if is_layer {
            let said = match media_type.rsplit(['+', '.']).next() {
                Some("gzip") => Detected::Gzip,
                Some("zstd") => Detected::Zstd,
                _ => Detected::None,
            };
            if said != compression {
                findings.push(format!("it is called {media_type}, and is not compressed like that"));
            }
            let plain = compress::decoder(&mut buffered)?;
            let mut plain = Hashing { from: plain, hasher: sha2::Sha256::new(), size: 0, stop };
            if let Err(error) = names(&mut plain, &mut findings) {
                findings.push(format!("it is no tar that can be read to its end: {error}"));
            }
            if io::copy(&mut plain, &mut io::sink()).is_ok() {
                diff_id = Some(Digest::from_bytes(plain.hasher.finalize().into()));
            }
        }
        io::copy(&mut buffered, &mut io::sink())?;
    }
    Ok(Looked { digest: Digest::from_bytes(whole.hasher.finalize().into()), size: whole.size, diff_id, findings })
}

/// Names that lead out of the root, or stand twice.
fn names(tar: impl Read, findings: &mut Vec<String>) -> io::Result<()> {
    /// What is wrong with more is enough.
    const MOST: usize = 20;
    let mut archive = tar::Archive::new(tar);
    let mut seen = std::collections::HashSet::new();
    for entry in archive.entries()? {
        let entry = entry?;
        let name = entry.path_bytes().into_owned();
        let shown = String::from_utf8_lossy(&name).into_owned();
        let parts = || name.split(|byte| *byte == b'/');
        let mut found = |what: &str| {
            if findings.len() < MOST {
                findings.push(format!("{shown:?} {what}"));
            }
        };
        if name.first() == Some(&b'/') {
            found("begins with a slash");
        }
        if parts().any(|part| part == b"..") {
            found("leads upwards");
        }
        if name.contains(&0) {
            found("has a zero byte");
        }
        if entry.header().entry_type() == tar::EntryType::Link
            && entry
                .link_name_bytes()
                .is_some_and(|target| target.split(|byte| *byte == b'/').any(|part| part == b".."))
        {
            found("is a hard link that leads upwards");
        }
        let plain: Vec<&[u8]> = parts().filter(|part| !part.is_empty() && *part != b".").collect();
        if !seen.insert(plain.join(&b'/')) {
            found("stands there twice");
        }
    }
    Ok(())
}
