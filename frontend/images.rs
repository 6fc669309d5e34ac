//! What the builder found out about images, and what it is asked to find out.

use std::collections::{BTreeMap, BTreeSet};

use graph::{Digest, ImageConfig, Platform};

use crate::Span;

/// An image that must be known before the Dockerfile can be lowered.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ImageRequest {
    /// In full: `docker.io/library/debian:bookworm-slim`.
    pub reference: String,
    /// As the Dockerfile has it, after expansion, for messages.
    pub written: String,
    /// The platform that is wanted.
    pub platform: Platform,
    /// Where the image is named; `None` for one that only the command line names.
    pub span: Option<Span>,
    /// A hint that names something that exists and is spelled much the same: a stage, or a common image.
    pub did_you_mean: Option<String>,
}

/// An image as the builder resolved it.
#[derive(Clone, PartialEq, Debug)]
pub struct ResolvedImage {
    /// The config, diff ids included.
    pub config: ImageConfig,
    /// Digest of the config blob.
    pub config_digest: Digest,
    /// Digest of the manifest or index that the reference led to, where there is one: names of vertices show it.
    pub manifest_digest: Option<Digest>,
}

/// The resolved images, by full reference and platform.
#[derive(Clone, Debug, Default)]
pub struct Images {
    known: BTreeMap<(String, Platform), ResolvedImage>,
    unknown: BTreeSet<(String, Platform)>,
}

impl Images {
    /// No image is known.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds what was found for [`ImageRequest::reference`] and [`ImageRequest::platform`].
    pub fn insert(&mut self, reference: String, platform: Platform, image: ResolvedImage) {
        self.known.insert((reference, platform), image);
    }

    /// For checks: the image cannot be had, and what depends on it is not to be checked.
    pub fn insert_unknown(&mut self, reference: String, platform: Platform) {
        let config = ImageConfig::scratch(&platform);
        let image = ResolvedImage { config, config_digest: Digest::of(b""), manifest_digest: None };
        self.unknown.insert((reference.clone(), platform.clone()));
        self.known.insert((reference, platform), image);
    }

    /// Whether it was put here by [`insert_unknown`](Self::insert_unknown).
    #[must_use]
    pub fn is_unknown(&self, reference: &str, platform: &Platform) -> bool {
        self.unknown.contains(&(reference.to_owned(), platform.clone()))
    }

    /// What is known of an image.
    #[must_use]
    pub fn get(&self, reference: &str, platform: &Platform) -> Option<&ResolvedImage> {
        self.known.get(&(reference.to_owned(), platform.clone()))
    }
}
