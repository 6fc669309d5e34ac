//! OCI layouts and docker archives, as a directory or as one tar.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use graph::Digest;

use super::Attestation;
use super::artifact::{Descriptor, OCI_INDEX, Package};

/// An archive that could not be written.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// At the destination.
    #[error("cannot write {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A layer of the image.
    #[error("cannot read the layer {digest}")]
    Layer {
        /// Of the blob.
        digest: Digest,
        /// Why.
        source: io::Error,
    },
}

/// What is written.
#[derive(Debug, Clone)]
pub struct Archive<'a> {
    /// The images, each with its names.
    pub images: Vec<(&'a Package, Vec<registry::Reference>)>,
    /// Add docker's `manifest.json`, so that `docker load` takes it.
    pub docker: bool,
    /// Layers that the reader has and need not be in it.
    pub omitted: BTreeSet<Digest>,
}

enum Piece<'a> {
    Bytes(Vec<u8>),
    Blob(&'a Path, &'a Descriptor),
}

impl Archive<'_> {
    /// Writes one tar (image-layout.md; docker's image format v1.2).
    ///
    /// # Errors
    /// A layer that cannot be read, or `out`. The path is for messages.
    pub fn write_tar(&self, out: impl Write, path: &Path) -> Result<(), ArchiveError> {
        let written = |source| ArchiveError::Write { path: path.to_owned(), source };
        let mut out = io::BufWriter::with_capacity(1 << 18, out);
        for directory in ["blobs/", "blobs/sha256/"] {
            write_header(&mut out, tar::EntryType::Directory, directory, 0, 0o755).map_err(written)?;
        }
        for (name, piece) in self.pieces()? {
            match piece {
                Piece::Bytes(bytes) => {
                    let size = bytes.len() as u64;
                    write_header(&mut out, tar::EntryType::Regular, &name, size, 0o644).map_err(written)?;
                    out.write_all(&bytes).and_then(|()| pad(&mut out, size)).map_err(written)?;
                }
                Piece::Blob(path, descriptor) => {
                    let layer = |source| ArchiveError::Layer { digest: descriptor.digest, source };
                    let (file, size) = (File::open(path).map_err(layer)?, descriptor.size);
                    write_header(&mut out, tar::EntryType::Regular, &name, size, 0o644).map_err(written)?;
                    // From file to file, where both are files, the kernel copies, or shares what it can.
                    let copied = io::copy(&mut file.take(size), &mut out).map_err(written)?;
                    if copied != size {
                        return Err(layer(io::ErrorKind::UnexpectedEof.into()));
                    }
                    pad(&mut out, size).map_err(written)?;
                }
            }
        }
        // Two empty blocks are the end.
        out.write_all(&[0; 2 * BLOCK]).and_then(|()| out.flush()).map_err(written)
    }

    /// Writes an OCI layout as a directory.
    ///
    /// # Errors
    /// As above.
    pub fn write_directory(&self, root: &Path) -> Result<(), ArchiveError> {
        let written = |path: &Path, source| ArchiveError::Write { path: path.to_owned(), source };
        let blobs = root.join("blobs/sha256");
        std::fs::create_dir_all(&blobs).map_err(|source| written(&blobs, source))?;
        for (name, piece) in self.pieces()? {
            let path = root.join(name);
            match piece {
                Piece::Bytes(bytes) => std::fs::write(&path, bytes).map_err(|source| written(&path, source))?,
                Piece::Blob(source, _) => {
                    std::fs::copy(source, &path).map_err(|source| written(&path, source))?;
                }
            }
        }
        Ok(())
    }

    /// Names and contents, blobs first, each blob once.
    fn pieces(&self) -> Result<Vec<(String, Piece<'_>)>, ArchiveError> {
        let mut seen = self.omitted.clone();
        let mut pieces = Vec::new();
        let blob_name = |digest: &Digest| format!("blobs/sha256/{}", digest.hex());
        for image in self.images.iter().flat_map(|(package, _)| &package.images) {
            for layer in &image.layers {
                if seen.insert(layer.descriptor.digest) {
                    let missing = || io::Error::new(io::ErrorKind::NotFound, "its bytes are not in the store");
                    let path = layer.path.as_deref();
                    let path =
                        path.ok_or_else(|| ArchiveError::Layer { digest: layer.descriptor.digest, source: missing() })?;
                    pieces.push((blob_name(&layer.descriptor.digest), Piece::Blob(path, &layer.descriptor)));
                }
            }
            for (descriptor, bytes) in
                [(&image.config_descriptor, &image.config), (&image.manifest_descriptor, &image.manifest)]
            {
                if seen.insert(descriptor.digest) {
                    pieces.push((blob_name(&descriptor.digest), Piece::Bytes(bytes.clone())));
                }
            }
        }
        for (bytes, descriptor) in self.images.iter().filter_map(|(package, _)| package.index.as_ref()) {
            if seen.insert(descriptor.digest) {
                pieces.push((blob_name(&descriptor.digest), Piece::Bytes(bytes.clone())));
            }
        }
        for attestation in self.attestations() {
            let manifest = (&attestation.descriptor, &attestation.manifest);
            let blobs = attestation.blobs.iter().map(|(descriptor, bytes)| (descriptor, bytes));
            for (descriptor, bytes) in blobs.chain([manifest]) {
                if seen.insert(descriptor.digest) {
                    pieces.push((blob_name(&descriptor.digest), Piece::Bytes(bytes.clone())));
                }
            }
        }
        pieces.push(("index.json".into(), Piece::Bytes(self.index())));
        if self.docker {
            pieces.push(("manifest.json".into(), Piece::Bytes(self.docker_manifest())));
        }
        pieces.push(("oci-layout".into(), Piece::Bytes(br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec())));
        Ok(pieces)
    }

    /// Those that an index names. Where index.json named them itself others would take them for images.
    fn attestations(&self) -> impl Iterator<Item = &Attestation> {
        let packages = self.images.iter().map(|(package, _)| package);
        packages
            .flat_map(|package| package.attestations.iter().filter(|told| package.index_names(&told.descriptor.digest)))
    }

    fn index(&self) -> Vec<u8> {
        let mut manifests = Vec::new();
        for (package, names) in &self.images {
            let mut descriptor = package.descriptor().clone();
            descriptor.annotations.extend(package.annotations.clone());
            if names.is_empty() {
                manifests.push(descriptor.clone());
            }
            for name in names {
                let mut descriptor = descriptor.clone();
                descriptor.annotations.insert("io.containerd.image.name".into(), name.to_string());
                if let Some(tag) = name.tag() {
                    descriptor.annotations.insert("org.opencontainers.image.ref.name".into(), tag.to_owned());
                }
                manifests.push(descriptor);
            }
        }
        let index = serde_json::json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests });
        index.to_string().into_bytes()
    }

    fn docker_manifest(&self) -> Vec<u8> {
        let blob_name = |digest: &Digest| format!("blobs/sha256/{}", digest.hex());
        let images: Vec<_> = self
            .images
            .iter()
            .filter_map(|(package, names)| Some((package.images.first()?, names)))
            .map(|(image, names)| {
                let tags: Vec<String> = names.iter().map(registry::Reference::familiar).collect();
                serde_json::json!({
                    "Config": blob_name(&image.config_descriptor.digest),
                    "RepoTags": tags,
                    "Layers": image.layers.iter().map(|layer| blob_name(&layer.descriptor.digest)).collect::<Vec<_>>(),
                })
            })
            .collect();
        serde_json::Value::Array(images).to_string().into_bytes()
    }
}

/// Of a tar.
const BLOCK: usize = 512;

fn write_header(out: &mut impl Write, kind: tar::EntryType, name: &str, size: u64, mode: u32) -> io::Result<()> {
    let mut header = tar_header(kind, size, mode);
    header.set_path(name)?;
    header.set_cksum();
    out.write_all(header.as_bytes())
}

/// Fills the last block of a member.
fn pad(out: &mut impl Write, size: u64) -> io::Result<()> {
    let over = usize::try_from(size % BLOCK as u64).unwrap_or_default();
    out.write_all(&[0; BLOCK][..(BLOCK - over) % BLOCK])
}

/// A header that tells nothing of the machine or the moment.
pub(crate) fn tar_header(kind: tar::EntryType, size: u64, mode: u32) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_mode(mode);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header
}
