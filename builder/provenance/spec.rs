//! `--attest`, `--provenance` and `--sbom`, as buildx has them.

use crate::export::{Fields, csv};

/// How much is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// What it was built from.
    #[default]
    Min,
    /// Also what was asked for, and the Dockerfile.
    Max,
}

/// What is to be told of a build.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ProvenanceSpec {
    /// How much.
    pub mode: Mode,
    /// Who built it, as a URI.
    pub builder: Option<String>,
    /// The person says that building again gives the same.
    pub reproducible: bool,
}

const NO_SBOM: &str = "there is no scanner here that could make an SBOM: have one (syft, trivy) look at the image, and attach \
                       what it writes: rbuild attach IMAGE FILE --artifact-type application/spdx+json";

/// The provenance that options ask for. The shorthands `provenance` and `sbom` win over `attests`, as with buildx.
///
/// # Errors
/// What is wrong with them, or cannot be had.
pub fn attestations(
    attests: &[String],
    provenance: Option<&str>,
    sbom: Option<&str>,
) -> Result<Option<ProvenanceSpec>, String> {
    let mut wanted = None;
    for text in attests {
        let failed = |why: String| format!("--attest {text:?}: {why}");
        let mut fields = Fields::pairs(&csv(text).map_err(failed)?).map_err(failed)?;
        let kind = fields.take("type").ok_or_else(|| failed("type= is missing".into()))?;
        let disabled = fields.flag("disabled", false).map_err(failed)?;
        match kind.as_str() {
            "provenance" if disabled => wanted = None,
            "provenance" => wanted = Some(parse(fields).map_err(failed)?),
            "sbom" if disabled => {}
            "sbom" => return Err(failed(NO_SBOM.into())),
            other => return Err(failed(format!("unknown type {other:?}; there is provenance"))),
        }
    }
    if let Some(text) = provenance {
        let failed = |why: String| format!("--provenance {text:?}: {why}");
        wanted = match truth(text) {
            Some(true) => Some(ProvenanceSpec::default()),
            Some(false) => None,
            None => {
                let mut fields = Fields::pairs(&csv(text).map_err(failed)?).map_err(failed)?;
                match fields.flag("disabled", false).map_err(failed)? {
                    true => None,
                    false => Some(parse(fields).map_err(failed)?),
                }
            }
        };
    }
    if let Some(text) = sbom
        && truth(text) != Some(false)
    {
        return Err(format!("--sbom: {NO_SBOM}"));
    }
    Ok(wanted)
}

fn truth(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "1" | "t" | "true" => Some(true),
        "0" | "f" | "false" => Some(false),
        _ => None,
    }
}

fn parse(mut fields: Fields) -> Result<ProvenanceSpec, String> {
    let mode = match fields.take("mode").as_deref() {
        None | Some("" | "min") => Mode::Min,
        Some("max") => Mode::Max,
        Some(other) => return Err(format!("mode={other:?} is neither min nor max")),
    };
    match fields.take("version").as_deref() {
        None | Some("v1") => {}
        Some(other) => return Err(format!("version={other:?} is not supported; there is v1")),
    }
    if fields.flag("inline-only", false)? || fields.flag("filesystem", false)? {
        return Err("inline-only and filesystem are not supported".into());
    }
    let (builder, reproducible) = (fields.take("builder-id"), fields.flag("reproducible", false)?);
    fields.end()?;
    Ok(ProvenanceSpec { mode, builder, reproducible })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_read_as_buildx_reads_them() {
        let of = |attests: &[&str], provenance, sbom| {
            let attests: Vec<String> = attests.iter().map(|&text| text.to_owned()).collect();
            attestations(&attests, provenance, sbom)
        };
        let max = Some(ProvenanceSpec { mode: Mode::Max, ..ProvenanceSpec::default() });
        assert_eq!(of(&[], None, None), Ok(None));
        assert_eq!(of(&[], Some("true"), Some("false")), Ok(Some(ProvenanceSpec::default())));
        assert_eq!(of(&["type=provenance,mode=max"], None, None), Ok(max.clone()));
        assert_eq!(of(&["type=provenance,mode=max"], Some("false"), None), Ok(None));
        assert_eq!(of(&["type=sbom,disabled=true"], Some("mode=max"), None), Ok(max));
        let built = of(&[], Some("builder-id=https://x,reproducible=true"), None).unwrap().unwrap();
        assert_eq!((built.builder.as_deref(), built.reproducible), (Some("https://x"), true));
        for (attests, provenance, sbom, why) in [
            (&["type=sbom"][..], None, None, "syft"),
            (&[], None, Some("true"), "rbuild attach"),
            (&["mode=max"], None, None, "type= is missing"),
            (&["type=x"], None, None, "unknown type"),
            (&[], Some("mode=most"), None, "neither min nor max"),
            (&[], Some("version=v0.2"), None, "there is v1"),
            (&[], Some("colour=red"), None, "not known"),
        ] {
            let error = of(attests, provenance, sbom).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
    }
}
