//! What is recorded of layers and results.

use graph::{ContentDigest, Digest};

use crate::layer::WRITER_VERSION;

/// A layer at its place in a stack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerRecord {
    /// Chain id.
    pub chain: Digest,
    /// Chain id of what lies below; `None`: it is the lowest.
    pub parent: Option<Digest>,
    /// Digest of the uncompressed tar.
    pub diff_id: Digest,
    /// What it holds, without times; for layers of others the diff id, which is known before they are read.
    pub content: ContentDigest,
    /// Bytes of the uncompressed tar; 0 while unknown.
    pub size: u64,
    /// The version of our tar writer, which can make the layer's bytes again from its snapshot; `None` for layers of
    /// others.
    pub writer: Option<u32>,
    /// When it was made; `None` for layers of others.
    pub created: Option<jiff::Timestamp>,
}

impl LayerRecord {
    /// A layer of somebody else's image, of which no more is known.
    #[must_use]
    pub fn foreign(parent: Option<Digest>, diff_id: Digest) -> Self {
        let chain = diff_id.chain_upon(parent.as_ref());
        Self { chain, parent, diff_id, content: diff_id.into(), size: 0, writer: None, created: None }
    }

    /// A layer that this builder made.
    #[must_use]
    pub fn own(
        parent: Option<Digest>,
        diff_id: Digest,
        content: ContentDigest,
        size: u64,
        created: jiff::Timestamp,
    ) -> Self {
        let chain = diff_id.chain_upon(parent.as_ref());
        Self { chain, parent, diff_id, content, size, writer: Some(WRITER_VERSION), created: Some(created) }
    }

    /// The same layer on another stack.
    #[must_use]
    pub fn upon(&self, parent: Option<Digest>) -> Self {
        Self { chain: self.diff_id.chain_upon(parent.as_ref()), parent, ..self.clone() }
    }
}

/// A blob that holds a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerBlobRecord {
    /// Of the blob.
    pub digest: Digest,
    /// Says how it is compressed.
    pub media_type: String,
    /// Bytes.
    pub size: u64,
    /// It is known from elsewhere.
    pub came: bool,
    /// The level at which it was compressed here.
    pub level: Option<u32>,
}

impl LayerBlobRecord {
    /// One that somebody else made.
    #[must_use]
    pub fn from_elsewhere(digest: Digest, media_type: String, size: u64) -> Self {
        Self { digest, media_type, size, came: true, level: None }
    }

    /// One that was compressed here.
    #[must_use]
    pub fn made(digest: Digest, media_type: String, size: u64, level: u32) -> Self {
        Self { digest, media_type, size, came: false, level: Some(level) }
    }
}

/// A layer of which somebody else tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForeignLayer {
    /// What it is.
    pub layer: LayerRecord,
    /// The blob that holds it, at the place that the others name.
    pub blob: Option<LayerBlobRecord>,
}

/// One of the keys under which a result is recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordedKey {
    /// The key.
    pub key: ContentDigest,
    /// The result's stack.
    pub chain: Digest,
    /// Key of the operation alone.
    pub definition: ContentDigest,
}

/// A recorded result of an operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheRecord {
    /// The stack; `None` is the empty tree.
    pub chain: Option<Digest>,
    /// What the stack holds, without times.
    pub content: ContentDigest,
    /// Key of the operation alone.
    pub definition: ContentDigest,
}
