//! Checks bytes against a digest and a size while they pass.

use oci_spec::image::{Descriptor, DigestAlgorithm};
use sha2::{Digest as _, Sha256, Sha384, Sha512};

use crate::{Digest, Error};

/// Takes the bytes of a blob in order and tells at the end whether they are the right ones.
///
/// To resume a download, feed it the bytes already there and hand it to [`crate::Client::resume_blob`].
#[derive(Clone, Debug)]
pub struct Verifier {
    hasher: Hasher,
    expected: Digest,
    size: u64,
    seen: u64,
}

#[derive(Clone, Debug)]
enum Hasher {
    Sha256(Sha256),
    Sha384(Sha384),
    Sha512(Sha512),
}

impl Verifier {
    /// Begins with no bytes seen.
    ///
    /// # Errors
    /// When the digest's algorithm is not one of the SHA-2 family.
    pub fn new(descriptor: &Descriptor) -> Result<Self, Error> {
        let expected = descriptor.digest().clone();
        let hasher = match expected.algorithm() {
            DigestAlgorithm::Sha256 => Hasher::Sha256(Sha256::new()),
            DigestAlgorithm::Sha384 => Hasher::Sha384(Sha384::new()),
            DigestAlgorithm::Sha512 => Hasher::Sha512(Sha512::new()),
            _ => return Err(Error::UnsupportedDigest(expected)),
        };
        Ok(Self { hasher, expected, size: descriptor.size(), seen: 0 })
    }

    /// Whether digests of this algorithm can be verified.
    pub(crate) fn supports(digest: &Digest) -> bool {
        matches!(digest.algorithm(), DigestAlgorithm::Sha256 | DigestAlgorithm::Sha384 | DigestAlgorithm::Sha512)
    }

    /// Takes the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        match &mut self.hasher {
            Hasher::Sha256(h) => h.update(bytes),
            Hasher::Sha384(h) => h.update(bytes),
            Hasher::Sha512(h) => h.update(bytes),
        }
        self.seen += bytes.len() as u64;
    }

    /// How many bytes were taken.
    #[must_use]
    pub fn seen(&self) -> u64 {
        self.seen
    }

    /// How many bytes there should be in the end.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The digest there should be in the end.
    #[must_use]
    pub fn expected(&self) -> &Digest {
        &self.expected
    }

    /// The digest of the bytes taken so far.
    #[must_use]
    pub fn actual(&self) -> Digest {
        let hex = match &self.hasher {
            Hasher::Sha256(h) => hex::encode(h.clone().finalize()),
            Hasher::Sha384(h) => hex::encode(h.clone().finalize()),
            Hasher::Sha512(h) => hex::encode(h.clone().finalize()),
        };
        format!("{}:{hex}", self.expected.algorithm()).parse().expect("hex of a SHA-2 hash is a digest")
    }

    /// Whether all bytes came and are the right ones.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.seen == self.size && self.actual() == self.expected
    }
}

/// The sha256 digest of `bytes`.
#[must_use]
pub fn digest_of(bytes: &[u8]) -> Digest {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes))).parse().expect("hex of a SHA-256 hash is a digest")
}
