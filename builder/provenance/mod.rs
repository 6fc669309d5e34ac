//! How an image came about, in the form of SLSA (slsa.dev/spec/v1.0/provenance) and with the fields that BuildKit gives its own:
//! what it was built from, of which everything is known by digest, and what was asked for.
//!
//! What is written here leaves the machine. It has no credentials: URLs lose theirs, of secrets there is the id at most, and
//! arguments that look like secrets or contain one have no value.

mod redact;
mod spec;

use std::collections::{BTreeMap, BTreeSet};

use frontend::SourceFile;
use graph::{Digest, Graph, NetworkMode, Op, Platform, SourceOp};
use registry::Reference;
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::context::MAIN_CONTEXT;
use crate::images::{CONTEXT_REGISTRY, parse_name};
use crate::worker::StepPolicy;

pub(crate) use redact::{Redactor, without_credentials};
pub use spec::{Mode, ProvenanceSpec, attestations};

/// What the predicate is: says how it is to be read.
pub const PREDICATE_TYPE: &str = "https://slsa.dev/provenance/v1";
/// BuildKit's description of these fields.
const BUILD_TYPE: &str = "https://github.com/moby/buildkit/blob/master/docs/attestations/slsa-definitions.md";
/// Who built it, where nobody says so.
const BUILDER: &str = concat!("urn:rbuild:", env!("CARGO_PKG_VERSION"));

/// Something that went into an image.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Material {
    uri: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    digest: BTreeMap<String, String>,
}

impl Material {
    /// An image, by what its name led to. One without a manifest is known by its config.
    #[must_use]
    pub fn image(name: &str, platform: &Platform, digest: &Digest) -> Self {
        let uri = match parse_name(name) {
            // It came as a file.
            Ok(name) if name.registry() == CONTEXT_REGISTRY => {
                format!("pkg:oci/{}@sha256%3A{}", name.repository().path(), digest.hex())
            }
            Ok(name) => package_url(&name, Some(platform)),
            Err(_) => name.to_owned(),
        };
        Self { uri, digest: BTreeMap::from([("sha256".into(), digest.hex())]) }
    }

    /// A commit of a repository.
    pub(crate) fn git(remote: &str, commit: &str) -> Self {
        let algorithm = if commit.len() == 64 { "sha256" } else { "sha1" };
        Self { uri: without_credentials(remote), digest: BTreeMap::from([(algorithm.to_owned(), commit.to_owned())]) }
    }

    /// A file that was downloaded; `digest` as `sha256:HEX`.
    pub(crate) fn http(url: &str, digest: &str) -> Self {
        let digest = digest.split_once(':').map(|(algorithm, hex)| (algorithm.to_owned(), hex.to_owned()));
        Self { uri: without_credentials(url), digest: digest.into_iter().collect() }
    }
}

/// Where the context came from, if not from this machine, and of when it is.
#[derive(Debug, Clone, Default)]
pub struct Origin {
    /// Its URL, and which of its versions.
    pub material: Option<Material>,
    /// Seconds since 1970.
    pub time: Option<i64>,
}

/// What is known of a build.
#[derive(Debug, Clone)]
pub struct Facts {
    /// Of the build.
    pub(crate) id: String,
    /// Where the context came from.
    pub(crate) origin: Origin,
    /// Of the Dockerfile: its name and its text.
    pub(crate) dockerfile: (String, String),
    /// What the options set, by names as BuildKit's frontend has them.
    pub(crate) args: BTreeMap<String, String>,
    pub(crate) secrets: Vec<String>,
    pub(crate) ssh: Vec<String>,
    /// Whether files of this machine went into it.
    pub(crate) local: bool,
    /// No step could reach a network.
    pub(crate) hermetic: bool,
    /// What was fetched.
    pub(crate) materials: BTreeSet<Material>,
    pub(crate) redactor: Redactor,
    pub(crate) started: jiff::Timestamp,
    pub(crate) finished: jiff::Timestamp,
}

/// Whether the steps of a graph can reach nothing, and whether it reads files of this machine, of which the context is none if
/// it was `fetched`.
pub(crate) fn reach(graph: &Graph<Op>, fetched: bool) -> (bool, bool) {
    let is_networked = |op: &Op| matches!(op, Op::Exec(exec) if exec.network != NetworkMode::None);
    let is_local =
        |op: &Op| matches!(op, Op::Source(SourceOp::Local(local)) if !(fetched && local.name == MAIN_CONTEXT));
    (!graph.nodes().any(|(_, node)| is_networked(&node.op)), graph.nodes().any(|(_, node)| is_local(&node.op)))
}

impl Facts {
    /// What is known before the build.
    pub(crate) fn new(
        id: String,
        origin: Origin,
        source: &SourceFile,
        options: &frontend::Options,
        policy: &StepPolicy,
    ) -> Self {
        let mut args: BTreeMap<String, String> =
            options.build_args.iter().map(|(name, value)| (format!("build-arg:{name}"), value.clone())).collect();
        args.extend(options.labels.iter().map(|(name, value)| (format!("label:{name}"), value.clone())));
        args.extend(options.target.iter().map(|target| ("target".to_owned(), target.clone())));
        Self {
            id,
            origin,
            dockerfile: (source.name().to_owned(), source.text().to_owned()),
            args,
            secrets: policy.secrets.ids(),
            ssh: policy.ssh.ids().map(str::to_owned).collect(),
            local: true,
            hermetic: false,
            materials: BTreeSet::new(),
            redactor: Redactor::new(policy.secrets.values()),
            started: jiff::Timestamp::now(),
            finished: jiff::Timestamp::now(),
        }
    }

    /// The same when the steps are done, with what they fetched.
    pub(crate) fn ended(&self, materials: BTreeSet<Material>) -> Self {
        Self { materials, finished: jiff::Timestamp::now(), ..self.clone() }
    }

    /// The predicate for the image of one platform, which was built upon `bases`.
    #[must_use]
    pub fn predicate(&self, spec: &ProvenanceSpec, bases: &BTreeSet<Material>) -> Value {
        let all = spec.mode == Mode::Max;
        let mut request = Map::new();
        request.insert("frontend".into(), json!("dockerfile.v0"));
        if all {
            let args = self.args.iter().map(|(name, value)| (name.clone(), self.redactor.argument(name, value)));
            let ids = |ids: &[String]| ids.iter().map(|id| json!({ "id": id })).collect::<Vec<_>>();
            request.insert("args".into(), json!(args.collect::<BTreeMap<_, _>>()));
            request.insert("secrets".into(), json!(ids(&self.secrets)));
            request.insert("ssh".into(), json!(ids(&self.ssh)));
        }
        if self.local {
            request.insert("locals".into(), json!([{ "name": "context" }]));
        }
        let mut source = Map::new();
        if let Some(material) = &self.origin.material {
            source.insert("uri".into(), json!(material.uri));
            source.insert("digest".into(), json!(material.digest));
        }
        source.insert("path".into(), json!(self.redactor.text(&self.dockerfile.0)));
        let mut metadata = json!({
            "invocationID": self.id,
            "startedOn": self.started.to_string(),
            "finishedOn": self.finished.to_string(),
            "buildkit_completeness": { "request": all, "resolvedDependencies": self.hermetic && !self.local },
        });
        if self.hermetic {
            metadata["buildkit_hermetic"] = json!(true);
        }
        if spec.reproducible {
            metadata["buildkit_reproducible"] = json!(true);
        }
        if all {
            use base64::Engine as _;
            let text = self.redactor.text(&self.dockerfile.1);
            let data = base64::engine::general_purpose::STANDARD.encode(text);
            let info = json!({ "filename": self.dockerfile.0, "language": "Dockerfile", "data": data });
            metadata["buildkit_metadata"] = json!({ "source": { "infos": [info] } });
        }
        let materials: BTreeSet<&Material> = bases.iter().chain(&self.materials).chain(&self.origin.material).collect();
        json!({
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": { "configSource": source, "request": request },
                "internalParameters": { "builderPlatform": Platform::host().to_string() },
                "resolvedDependencies": materials,
            },
            "runDetails": {
                "builder": {
                    "id": spec.builder.as_deref().unwrap_or(BUILDER),
                    "version": { "rbuild": env!("CARGO_PKG_VERSION") },
                },
                "metadata": metadata,
            },
        })
    }
}

/// The name of an image as a package URL (github.com/package-url/purl-spec).
pub(crate) fn package_url(name: &Reference, platform: Option<&Platform>) -> String {
    let mut url = format!("pkg:docker/{}", escaped(&name.repository().familiar(), "/:"));
    let digest = name.digest().map(ToString::to_string);
    let mut qualifiers = Vec::new();
    match (name.tag(), digest) {
        (Some(tag), digest) => {
            url += &format!("@{}", escaped(tag, ""));
            qualifiers.extend(digest.map(|digest| format!("digest={}", escaped(&digest, ":"))));
        }
        (None, Some(digest)) => url += &format!("@{}", escaped(&digest, "")),
        (None, None) => {}
    }
    qualifiers.extend(platform.map(|platform| format!("platform={}", escaped(&platform.to_string(), ""))));
    if qualifiers.is_empty() { url } else { format!("{url}?{}", qualifiers.join("&")) }
}

fn escaped(text: &str, but: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-._~".contains(c) || but.contains(c);
    text.chars().map(|c| if plain(c) { c.to_string() } else { format!("%{:02X}", u32::from(c)) }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_have_urls_as_packages() {
        let arm: Platform = "linux/arm/v7".parse().unwrap();
        let digest = format!("sha256:{}", "a".repeat(64));
        for (name, platform, want) in [
            ("debian:12", None, "pkg:docker/debian@12".to_owned()),
            ("debian:12", Some(&arm), "pkg:docker/debian@12?platform=linux%2Farm%2Fv7".to_owned()),
            ("localhost:5000/a/b:c", None, "pkg:docker/localhost:5000/a/b@c".to_owned()),
            (&format!("x@{digest}"), None, format!("pkg:docker/x@{}", digest.replace(':', "%3A"))),
            (&format!("x:1@{digest}"), None, format!("pkg:docker/x@1?digest={digest}")),
        ] {
            assert_eq!(package_url(&name.parse().unwrap(), platform), want);
        }
    }

    fn facts() -> Facts {
        let args = [("build-arg:API_TOKEN", "canary-1"), ("build-arg:V", "has canary-2"), ("target", "t")];
        Facts {
            id: "id".into(),
            origin: Origin {
                material: Some(Material::git("https://u:canary-3@host/r.git#main", &"c".repeat(40))),
                time: None,
            },
            dockerfile: ("Dockerfile".into(), "FROM x\nENV A=canary-2\n".into()),
            args: args.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
            secrets: vec!["npm".into()],
            ssh: Vec::new(),
            local: false,
            hermetic: true,
            materials: BTreeSet::from([Material::http(
                "https://u:canary-4@host/f?X-Amz-Signature=canary-5",
                "sha256:12",
            )]),
            redactor: Redactor::new(vec![b"canary-2".to_vec()]),
            started: jiff::Timestamp::UNIX_EPOCH,
            finished: jiff::Timestamp::UNIX_EPOCH,
        }
    }

    #[test]
    fn little_is_told_unless_asked_for_and_never_a_secret() {
        let spec = |mode| ProvenanceSpec { mode, ..ProvenanceSpec::default() };
        let min = facts().predicate(&spec(Mode::Min), &BTreeSet::new());
        let max = facts().predicate(&spec(Mode::Max), &BTreeSet::new());
        for predicate in [&min, &max] {
            assert!(!predicate.to_string().contains("canary"), "{predicate:#}");
            let source = &predicate["buildDefinition"]["externalParameters"]["configSource"];
            assert_eq!(source["uri"], "https://host/r.git#main");
            assert_eq!(source["digest"]["sha1"], "c".repeat(40));
            assert_eq!(predicate["buildDefinition"]["resolvedDependencies"].as_array().unwrap().len(), 2);
        }
        let request = |predicate: &Value| predicate["buildDefinition"]["externalParameters"]["request"].clone();
        assert_eq!(request(&min), json!({ "frontend": "dockerfile.v0" }));
        assert_eq!(request(&max)["args"]["target"], "t");
        assert_eq!(request(&max)["args"]["build-arg:V"], "has ***");
        assert_eq!(request(&max)["secrets"], json!([{ "id": "npm" }]));
    }
}
