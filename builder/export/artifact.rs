//! An image ready to leave: config, manifest, and layers as files of the store.

use std::collections::BTreeMap;
use std::path::PathBuf;

use graph::{Digest, Platform};
use serde::Serialize;

use super::Attestation;

/// Media types of what is exported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MediaTypes {
    /// Of the manifest.
    pub manifest: &'static str,
    /// Of the config.
    pub config: &'static str,
    /// Of the index.
    pub index: &'static str,
}

/// `application/vnd.oci.…` (image-spec, media-types.md).
pub const OCI: MediaTypes = MediaTypes {
    manifest: "application/vnd.oci.image.manifest.v1+json",
    config: "application/vnd.oci.image.config.v1+json",
    index: OCI_INDEX,
};

/// `application/vnd.docker.…` (distribution, manifest-v2-2.md).
pub const DOCKER: MediaTypes = MediaTypes {
    manifest: "application/vnd.docker.distribution.manifest.v2+json",
    config: "application/vnd.docker.container.image.v1+json",
    index: "application/vnd.docker.distribution.manifest.list.v2+json",
};

/// The media type of an index.
pub(super) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// What a manifest says of a blob.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// Of the blob.
    pub media_type: String,
    /// Of the blob's bytes.
    pub digest: Digest,
    /// Bytes.
    pub size: u64,
    /// Where else the bytes are to be had: those of layers that may not be handed on.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub urls: Vec<String>,
    /// Of an image, where an index names it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    /// Of what is no image, where a list names it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    /// Free-form.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

impl Descriptor {
    /// Without annotations.
    #[must_use]
    pub fn new(media_type: impl Into<String>, digest: Digest, size: u64) -> Self {
        Self {
            media_type: media_type.into(),
            digest,
            size,
            urls: Vec::new(),
            platform: None,
            artifact_type: None,
            annotations: Default::default(),
        }
    }

    /// Whether it is a layer that its owner alone hands out ("foreign", image-spec: "non-distributable"), and where is known.
    #[must_use]
    pub fn is_kept_elsewhere(&self) -> bool {
        let kinds =
            ["application/vnd.docker.image.rootfs.foreign.", "application/vnd.oci.image.layer.nondistributable."];
        !self.urls.is_empty() && kinds.iter().any(|kind| self.media_type.starts_with(kind))
    }
}

/// A layer's blob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerBlob {
    /// Digest of the uncompressed tar.
    pub diff_id: Digest,
    /// The blob.
    pub descriptor: Descriptor,
    /// Its file; `None` where only a registry has it.
    pub path: Option<PathBuf>,
}

/// An image with its bytes.
#[derive(Debug, Clone)]
pub struct Artifact {
    /// The config's JSON.
    pub config: Vec<u8>,
    /// The config's descriptor.
    pub config_descriptor: Descriptor,
    /// From the lowest up.
    pub layers: Vec<LayerBlob>,
    /// The manifest's JSON.
    pub manifest: Vec<u8>,
    /// The manifest's descriptor.
    pub manifest_descriptor: Descriptor,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Manifest<'a> {
    schema_version: u32,
    media_type: &'a str,
    config: &'a Descriptor,
    layers: Vec<&'a Descriptor>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    annotations: &'a BTreeMap<String, String>,
}

impl Artifact {
    /// Makes the manifest.
    #[must_use]
    pub fn new(
        config: Vec<u8>,
        layers: Vec<LayerBlob>,
        types: MediaTypes,
        annotations: &BTreeMap<String, String>,
    ) -> Self {
        let config_descriptor = Descriptor::new(types.config, Digest::of(&config), config.len() as u64);
        let manifest = Manifest {
            schema_version: 2,
            media_type: types.manifest,
            config: &config_descriptor,
            layers: layers.iter().map(|layer| &layer.descriptor).collect(),
            annotations,
        };
        let manifest = serde_json::to_vec_pretty(&manifest).expect("a manifest has string keys only");
        let manifest_descriptor = Descriptor::new(types.manifest, Digest::of(&manifest), manifest.len() as u64);
        Self { config, config_descriptor, layers, manifest, manifest_descriptor }
    }
}

/// What leaves under one name: an image, or images for several platforms with their index.
#[derive(Debug, Clone)]
pub struct Package {
    /// The images; one where there is no index.
    pub images: Vec<Artifact>,
    /// The index's JSON and descriptor.
    pub index: Option<(Vec<u8>, Descriptor)>,
    /// What an OCI layout's own index says of it beside its name.
    pub annotations: BTreeMap<String, String>,
    /// What is said of it beside it.
    pub attestations: Vec<Attestation>,
}

impl Package {
    /// One image.
    #[must_use]
    pub fn single(image: Artifact) -> Self {
        Self { images: vec![image], index: None, annotations: BTreeMap::new(), attestations: Vec::new() }
    }

    /// Images by platform, what the index says of each and of itself, and what is told of them.
    #[must_use]
    pub fn multi(
        images: Vec<(Platform, Artifact, BTreeMap<String, String>)>,
        attestations: Vec<Attestation>,
        types: MediaTypes,
        annotations: &BTreeMap<String, String>,
    ) -> Self {
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct Index<'a> {
            schema_version: u32,
            media_type: &'a str,
            manifests: Vec<Descriptor>,
            #[serde(skip_serializing_if = "BTreeMap::is_empty")]
            annotations: &'a BTreeMap<String, String>,
        }
        let manifests = images.iter().map(|(platform, image, annotations)| Descriptor {
            platform: Some(platform.clone()),
            annotations: annotations.clone(),
            ..image.manifest_descriptor.clone()
        });
        let manifests = manifests.chain(attestations.iter().map(Attestation::in_index)).collect();
        let index = Index { schema_version: 2, media_type: types.index, manifests, annotations };
        let bytes = serde_json::to_vec_pretty(&index).expect("an index has string keys only");
        let descriptor = Descriptor::new(types.index, Digest::of(&bytes), bytes.len() as u64);
        let images = images.into_iter().map(|(_, image, _)| image).collect();
        Self { images, index: Some((bytes, descriptor)), annotations: BTreeMap::new(), attestations }
    }

    /// All layers of all images.
    pub fn layers(&self) -> impl Iterator<Item = &LayerBlob> {
        self.images.iter().flat_map(|image| &image.layers)
    }

    /// Whether its index names a manifest.
    pub(super) fn index_names(&self, manifest: &Digest) -> bool {
        let index = self.index.as_ref().map(|(bytes, _)| String::from_utf8_lossy(bytes));
        index.is_some_and(|index| index.contains(&manifest.to_string()))
    }

    /// What its name leads to.
    #[must_use]
    pub fn descriptor(&self) -> &Descriptor {
        match (&self.index, self.images.as_slice()) {
            (Some((_, descriptor)), _) => descriptor,
            (None, [image, ..]) => &image.manifest_descriptor,
            (None, []) => unreachable!("a package without an index is one image"),
        }
    }
}
