//! A client for OCI distribution registries: pull, push, log in.
//!
//! It keeps no state on disk but credentials, and knows nothing of how images are stored or built. What holds:
//!
//! - Bytes of blobs and manifests are verified against digest and size while they stream; never more than the announced size
//!   is passed on.
//! - Credentials go to the registry they belong to and to the token server it names over TLS, to nobody else; they are in no
//!   error, event or `Debug` output.
//! - Every request follows the one retry policy of `retry.rs`.

mod auth;
mod challenge;
mod client;
mod config;
mod credentials;
mod daemon_json;
mod docker_config;
mod error;
mod failure;
#[cfg(feature = "fake")]
pub mod fake;
mod hosts;
mod hosts_toml;
mod http;
mod manifest;
mod pinned;
mod pull;
mod push;
mod reference;
mod referrers;
mod registries_conf;
mod retry;
mod transport;
mod upload_body;
mod verify;

pub use client::{Client, Progress, TransferEvent};
pub use config::{Event, EventSink, KeyPair, Proxies, RegistryConfig, Settings};
pub use credentials::{Credential, CredentialSource, CredentialsError, Secret, StaticCredentials};
pub use docker_config::{DockerCredentials, Stored, docker_directory};
pub use error::{Asked, Detail, Error, Unreachable};
pub use http::{PlainClient, client_over_socket};
pub use manifest::{
    DOCKER_LIST, DOCKER_MANIFEST, MANIFEST_MAX, Manifest, OCI_INDEX, OCI_MANIFEST, Resolved, Want, choose_platform,
    without_platform,
};
pub use oci_spec::image::{Descriptor, Digest, ImageIndex, ImageManifest, MediaType};
pub use pull::BlobStream;
pub use push::{Begun, BlobSource, GrowingSource, Pushed};
pub use reference::{DOCKER_HUB, Reference, ReferenceError, Repository, registry_name};
pub use retry::RetryPolicy;
pub use verify::{Verifier, digest_of};
