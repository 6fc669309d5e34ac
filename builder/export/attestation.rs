//! What is said of an image beside it: a manifest of its own whose subject the image is (image-spec, manifest.md, "Guidelines
//! for Artifact Usage"), so that the image itself stays as it is.

use std::collections::BTreeMap;

use graph::{Digest, Platform};
use registry::Reference;
use serde_json::{Value, json};

use super::artifact::{Descriptor, OCI};
use crate::provenance::{PREDICATE_TYPE, package_url};

/// The type by which docker's tools find attestations.
const ARTIFACT_TYPE: &str = "application/vnd.docker.attestation.manifest.v1+json";
const STATEMENT_TYPE: &str = "application/vnd.in-toto+json";
/// The config of what has none.
const EMPTY_TYPE: &str = "application/vnd.oci.empty.v1+json";
const EMPTY: &[u8] = b"{}";

/// A manifest with a subject, and its blobs.
#[derive(Debug, Clone)]
pub struct Attestation {
    /// The manifest's JSON.
    pub manifest: Vec<u8>,
    /// The manifest, with its artifact type and annotations as lists show them.
    pub descriptor: Descriptor,
    /// Config and contents.
    pub blobs: Vec<(Descriptor, Vec<u8>)>,
    /// The image that it is about.
    pub subject: Digest,
}

impl Attestation {
    /// Of contents, each with its media type and annotations.
    #[must_use]
    pub fn new(
        subject: &Descriptor,
        artifact_type: &str,
        contents: Vec<(String, BTreeMap<String, String>, Vec<u8>)>,
        annotations: BTreeMap<String, String>,
    ) -> Self {
        let mut blobs = vec![(Descriptor::new(EMPTY_TYPE, Digest::of(EMPTY), EMPTY.len() as u64), EMPTY.to_vec())];
        for (media_type, annotations, bytes) in contents {
            let descriptor = Descriptor::new(media_type, Digest::of(&bytes), bytes.len() as u64);
            blobs.push((Descriptor { annotations, ..descriptor }, bytes));
        }
        let descriptors: Vec<&Descriptor> = blobs.iter().map(|(descriptor, _)| descriptor).collect();
        let mut manifest = json!({
            "schemaVersion": 2,
            "mediaType": OCI.manifest,
            "artifactType": artifact_type,
            "config": descriptors[0],
            "layers": descriptors[1..],
            "subject": Descriptor::new(subject.media_type.clone(), subject.digest, subject.size),
        });
        if !annotations.is_empty() {
            manifest["annotations"] = json!(annotations);
        }
        let manifest = format!("{manifest:#}").into_bytes();
        let descriptor = Descriptor::new(OCI.manifest, Digest::of(&manifest), manifest.len() as u64);
        let descriptor = Descriptor { artifact_type: Some(artifact_type.to_owned()), annotations, ..descriptor };
        Self { manifest, descriptor, blobs, subject: subject.digest }
    }

    /// That `subject` came about as `predicate` says.
    #[must_use]
    pub fn provenance(subject: &Descriptor, platform: &Platform, names: &[Reference], predicate: &Value) -> Self {
        let digest = BTreeMap::from([("sha256", subject.digest.hex())]);
        let named = |name: String| json!({ "name": name, "digest": digest });
        let mut subjects: Vec<Value> = names.iter().map(|name| named(package_url(name, Some(platform)))).collect();
        if subjects.is_empty() {
            subjects.push(named("_".into()));
        }
        let kind = BTreeMap::from([("in-toto.io/predicate-type".to_owned(), PREDICATE_TYPE.to_owned())]);
        let contents = vec![(STATEMENT_TYPE.to_owned(), kind.clone(), statement(subjects, predicate))];
        Self::new(subject, ARTIFACT_TYPE, contents, kind)
    }
}

impl Attestation {
    /// As an index of images names it, so that nobody takes it for one of them (docs/attestations/attestation-storage.md of BuildKit).
    #[must_use]
    pub fn in_index(&self) -> Descriptor {
        let unknown = || "unknown".to_owned();
        let annotations = BTreeMap::from([
            ("vnd.docker.reference.type".to_owned(), "attestation-manifest".to_owned()),
            ("vnd.docker.reference.digest".to_owned(), self.subject.to_string()),
        ]);
        let platform = Platform { os: unknown(), architecture: unknown(), variant: String::new() };
        let own = &self.descriptor;
        Descriptor {
            annotations,
            platform: Some(platform),
            ..Descriptor::new(own.media_type.clone(), own.digest, own.size)
        }
    }
}

/// That `subjects` came about as `predicate` says (in-toto.io/Statement).
pub(super) fn statement(subjects: Vec<Value>, predicate: &Value) -> Vec<u8> {
    let statement = json!({
        "_type": "https://in-toto.io/Statement/v1",
        "subject": subjects,
        "predicateType": PREDICATE_TYPE,
        "predicate": predicate,
    });
    statement.to_string().into_bytes()
}
