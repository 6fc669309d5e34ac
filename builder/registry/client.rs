//! The client.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::io::AsyncRead;

use crate::{
    Credential, CredentialSource, Descriptor, Digest, Error, Reference, Repository, Resolved, Settings, Verifier,
};

/// Talks to registries. Cheap to clone; clones share connections, tokens and limits.
#[derive(Clone)]
pub struct Client {}

/// How far a transfer is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TransferEvent {
    /// The blob.
    pub digest: Digest,
    /// Bytes transferred so far; goes back when an upload starts over.
    pub done: u64,
    /// Bytes there are.
    pub total: u64,
}

/// Told about progress, often; should be cheap.
pub type Progress = Arc<dyn Fn(TransferEvent) + Send + Sync>;

/// Something to upload that can be read again from any offset.
pub trait BlobSource: Send + Sync {
    /// Opens it for reading from `offset` on.
    fn open(&self, offset: u64) -> BoxFuture<'_, std::io::Result<Box<dyn AsyncRead + Send + Unpin>>>;
}

/// How a blob came to be on the registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pushed {
    /// It was there.
    Exists,
    /// It was mounted from another repository of the registry.
    Mounted {
        /// The repository.
        from: Repository,
    },
    /// It was uploaded.
    Uploaded {
        /// How many bytes were sent, repeated parts included.
        bytes: u64,
    },
}

/// A verified download; see [`Client::blob`].
pub struct BlobStream {}

impl BlobStream {
    /// The next bytes, or `None` at the end.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, Error> {
        todo!()
    }
}

impl Client {
    /// A client with these settings.
    pub fn new(_settings: Settings, _credentials: Arc<dyn CredentialSource>) -> Result<Self, Error> {
        todo!()
    }
    /// Fetches the manifest or index a reference names.
    pub async fn resolve(&self, _reference: &Reference) -> Result<Resolved, Error> {
        todo!()
    }
    /// Media type, digest and size of what a reference names, without fetching it.
    pub async fn head(&self, _reference: &Reference) -> Result<Descriptor, Error> {
        todo!()
    }
    /// Fetches the manifest of a descriptor, e.g. one chosen from an index.
    pub async fn manifest(&self, _repository: &Repository, _descriptor: &Descriptor) -> Result<Resolved, Error> {
        todo!()
    }
    /// Downloads a blob; the bytes are verified as they pass, and the last ones are withheld until all are verified.
    pub async fn blob(&self, _repository: &Repository, _descriptor: &Descriptor) -> Result<BlobStream, Error> {
        todo!()
    }
    /// Downloads the rest of a blob whose first bytes went through `verifier`.
    pub async fn resume_blob(
        &self,
        _repository: &Repository,
        _descriptor: &Descriptor,
        _verifier: Verifier,
    ) -> Result<BlobStream, Error> {
        todo!()
    }
    /// Downloads a small blob such as a config into memory.
    pub async fn small_blob(
        &self,
        _repository: &Repository,
        _descriptor: &Descriptor,
        _limit: u64,
    ) -> Result<Bytes, Error> {
        todo!()
    }
    /// Uploads a blob unless it is there or can be mounted from one of `mount_from`.
    pub async fn push_blob(
        &self,
        _repository: &Repository,
        _descriptor: &Descriptor,
        _source: &dyn BlobSource,
        _mount_from: &[Repository],
        _progress: Option<&Progress>,
    ) -> Result<Pushed, Error> {
        todo!()
    }
    /// Stores a manifest under the reference's tag, or under its digest.
    pub async fn put_manifest(
        &self,
        _reference: &Reference,
        _media_type: &str,
        _bytes: Bytes,
    ) -> Result<Digest, Error> {
        todo!()
    }
    /// Checks that we may push there, before any work is done for it.
    pub async fn check_push(&self, _repository: &Repository) -> Result<(), Error> {
        todo!()
    }
    /// Whether the registry answers, without or with the configured credentials.
    pub async fn ping(&self, _registry: &str) -> Result<(), Error> {
        todo!()
    }
    /// Checks a credential with the registry.
    pub async fn login(&self, _registry: &str, _credential: Credential) -> Result<(), Error> {
        todo!()
    }
    /// The tags of a repository.
    pub async fn tags(&self, _repository: &Repository) -> Result<Vec<String>, Error> {
        todo!()
    }
    /// Deletes a manifest, or a tag.
    pub async fn delete(&self, _reference: &Reference) -> Result<(), Error> {
        todo!()
    }
}
