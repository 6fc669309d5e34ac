//! What `--metadata-file` says of a build, in buildx's keys.

use serde_json::{Map, Value, json};

use crate::build::Built;
use crate::builds::BuildRecord;
use crate::outputs::Delivered;
use crate::provenance::{Mode, ProvenanceSpec};
use crate::session::Session;

/// What there is to say.
pub(super) struct Metadata<'a> {
    pub(super) built: &'a Built,
    pub(super) delivered: &'a Delivered,
    /// What is remembered of the build.
    pub(super) record: &'a BuildRecord,
    pub(super) warnings: Vec<Value>,
    /// What steps got here.
    pub(super) session: &'a Session,
}

impl Metadata<'_> {
    /// As JSON. As with buildx, BUILDX_METADATA_PROVENANCE and BUILDX_METADATA_WARNINGS say how much.
    pub(super) fn text(&self, var: impl Fn(&str) -> Option<String>) -> String {
        let Self { built, delivered, record, warnings, session } = self;
        let mut metadata = Map::new();
        if let Some(spec) = provenance(var("BUILDX_METADATA_PROVENANCE").as_deref()) {
            let several = built.images.len() > 1;
            for image in &built.images {
                let key = "buildx.build.provenance".to_owned();
                let key = if several { format!("{key}/{}", image.platform) } else { key };
                metadata.insert(key, built.predicate(&spec, &image.platform));
            }
        }
        // Builder, node and build: `rbuild builds` knows the last of them.
        metadata.insert("buildx.build.ref".into(), json!(format!("rbuild/local/{}", record.id)));
        if is_on(var("BUILDX_METADATA_WARNINGS").as_deref()) {
            metadata.insert("buildx.build.warnings".into(), json!(warnings));
        }
        let (tier, snapshots) = (crate::tier::name(&session.tier), session.layers.way());
        metadata.insert("rbuild.sandbox".into(), json!({ "tier": tier, "snapshots": snapshots }));
        // An index that is there for the provenance is about one image.
        if !delivered.is_index || delivered.ids.len() == 1 {
            metadata.insert("containerimage.config.digest".into(), json!(delivered.ids.first()));
        }
        metadata.insert("containerimage.digest".into(), json!(delivered.id()));
        if let Some(manifest) = &delivered.manifest {
            metadata.insert("containerimage.digest".into(), json!(manifest.digest));
            metadata.insert("containerimage.descriptor".into(), json!(manifest));
        }
        let mut names: Vec<String> = delivered.all_names.iter().map(ToString::to_string).collect();
        names.dedup();
        if !names.is_empty() {
            metadata.insert("image.name".into(), json!(names.join(",")));
        }
        // What each step took is told by nobody else.
        let steps = record.steps.iter().filter(|step| step.op.is_some()).map(|step| {
            let seconds = step.duration().map(|took| took.as_secs_f64());
            json!({ "name": step.name, "cached": step.cached, "seconds": seconds, "used": step.used })
        });
        metadata.insert("rbuild.steps".into(), steps.collect());
        format!("{:#}\n", Value::Object(metadata))
    }
}

/// `min` unless another word is given; what is no word that buildx knows is taken as it takes it, for `min`.
fn provenance(value: Option<&str>) -> Option<ProvenanceSpec> {
    let mode = match value.unwrap_or_default() {
        "max" => Mode::Max,
        "0" | "f" | "F" | "false" | "False" | "FALSE" | "disabled" => return None,
        _ => Mode::Min,
    };
    Some(ProvenanceSpec { mode, ..ProvenanceSpec::default() })
}

fn is_on(value: Option<&str>) -> bool {
    matches!(value, Some("1" | "t" | "T" | "true" | "True" | "TRUE"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_says_how_much() {
        assert_eq!(provenance(None).map(|spec| spec.mode), Some(Mode::Min));
        assert_eq!(provenance(Some("max")).map(|spec| spec.mode), Some(Mode::Max));
        assert_eq!(provenance(Some("true")).map(|spec| spec.mode), Some(Mode::Min));
        assert_eq!(provenance(Some("false")), None);
        assert!(is_on(Some("true")) && !is_on(None) && !is_on(Some("0")));
    }
}
