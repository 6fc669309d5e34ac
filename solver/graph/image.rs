//! The image config (image-spec, config.md), with Docker's additions and whatever else a base image brings.
//!
//! `oci-spec` drops `Healthcheck`, `OnBuild`, `Shell` and unknown fields, so these are our own structs. Field order is the
//! one in which BuildKit writes them; unknown fields follow.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{Digest, Platform};

type Unknown = serde_json::Map<String, serde_json::Value>;

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// `null` in a config means absent.
fn nullable<'de, D: serde::Deserializer<'de>, T: Default + Deserialize<'de>>(deserializer: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// The config blob of an image.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct ImageConfig {
    /// GOARCH.
    #[serde(default, deserialize_with = "nullable")]
    pub architecture: String,
    /// CPU variant.
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "is_default")]
    pub variant: String,
    /// GOOS.
    #[serde(default, deserialize_with = "nullable")]
    pub os: String,
    /// Maintainer.
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "is_default")]
    pub author: String,
    /// What a container is started with.
    #[serde(default, deserialize_with = "nullable")]
    pub config: RunConfig,
    /// RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    /// One entry per instruction, oldest first.
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "is_default")]
    pub history: Vec<History>,
    /// The layers.
    #[serde(default, deserialize_with = "nullable")]
    pub rootfs: RootFs,
    /// What we do not know is kept.
    #[serde(flatten)]
    pub unknown: Unknown,
}

impl ImageConfig {
    /// An empty image for `platform`, as `FROM scratch` starts.
    #[must_use]
    pub fn scratch(platform: &Platform) -> Self {
        Self {
            architecture: platform.architecture.clone(),
            variant: platform.variant.clone(),
            os: platform.os.clone(),
            rootfs: RootFs { kind: "layers".into(), ..RootFs::default() },
            ..Self::default()
        }
    }

    /// The platform the config names.
    #[must_use]
    pub fn platform(&self) -> Platform {
        Platform { os: self.os.clone(), architecture: self.architecture.clone(), variant: self.variant.clone() }
    }
}

/// `config` of an image config.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct RunConfig {
    /// Docker's HEALTHCHECK.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub healthcheck: Option<Healthcheck>,
    /// As in `USER`.
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "is_default")]
    pub user: String,
    /// `port/protocol`.
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "is_default")]
    pub exposed_ports: BTreeMap<String, Empty>,
    /// `NAME=value`, in the order of definition.
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "is_default")]
    pub env: Vec<String>,
    /// `None` and empty differ: an empty one was reset.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entrypoint: Option<Vec<String>>,
    /// Arguments of the entry point, or the command.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cmd: Option<Vec<String>>,
    /// The command is one shell line (Docker, Windows only in practice).
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "is_default")]
    pub args_escaped: bool,
    /// Paths.
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "is_default")]
    pub volumes: BTreeMap<String, Empty>,
    /// Absolute path; empty is `/`.
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "is_default")]
    pub working_dir: String,
    /// Triggers for builds upon this image.
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "is_default")]
    pub on_build: Vec<String>,
    /// Metadata.
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "is_default")]
    pub labels: BTreeMap<String, String>,
    /// Signal name or number.
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "is_default")]
    pub stop_signal: String,
    /// Docker's SHELL.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shell: Option<Vec<String>>,
    /// What we do not know is kept.
    #[serde(flatten)]
    pub unknown: Unknown,
}

/// `{}`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Empty {}

/// Docker's HEALTHCHECK; durations are nanoseconds, 0 is the engine's default.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Healthcheck {
    /// `["NONE"]`, `["CMD", …]` or `["CMD-SHELL", line]`.
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "is_default")]
    pub test: Vec<String>,
    /// Time between checks.
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "is_default")]
    pub interval: i64,
    /// Time one check may take.
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "is_default")]
    pub timeout: i64,
    /// Grace at start.
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "is_default")]
    pub start_period: i64,
    /// Time between checks during the grace.
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "is_default")]
    pub start_interval: i64,
    /// Failures until unhealthy.
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "is_default")]
    pub retries: i64,
}

/// One line of an image's history.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct History {
    /// RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    /// The instruction.
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "is_default")]
    pub created_by: String,
    /// Maintainer.
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "is_default")]
    pub author: String,
    /// e.g. `buildkit.dockerfile.v0`.
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "is_default")]
    pub comment: String,
    /// The instruction made no layer.
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "is_default")]
    pub empty_layer: bool,
    /// What we do not know is kept.
    #[serde(flatten)]
    pub unknown: Unknown,
}

/// `rootfs` of an image config.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct RootFs {
    /// Always `layers`.
    #[serde(rename = "type", default, deserialize_with = "nullable")]
    pub kind: String,
    /// From the lowest up.
    #[serde(default, deserialize_with = "nullable")]
    pub diff_ids: Vec<Digest>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_fields_and_docker_additions_survive() {
        let text = r#"{"architecture":"amd64","os":"linux","config":{"Healthcheck":{"Test":["CMD","true"],"Interval":5},"Env":["A=b"],"Cmd":["sh"],"OnBuild":["RUN x"],"Shell":["/bin/bash","-c"],"X-Mine":1},"created":"2024-01-01T00:00:00Z","history":[{"created_by":"x","empty_layer":true}],"rootfs":{"type":"layers","diff_ids":[]},"moby.buildkit":{"a":[1]}}"#;
        let config: ImageConfig = serde_json::from_str(text).unwrap();
        assert_eq!(serde_json::to_string(&config).unwrap(), text);
    }

    #[test]
    fn nulls_are_absent() {
        let config: ImageConfig =
            serde_json::from_str(r#"{"config":{"Env":null,"Cmd":null,"Labels":null},"rootfs":null,"history":null}"#)
                .unwrap();
        assert_eq!(config, ImageConfig::default());
    }
}
