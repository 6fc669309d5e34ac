//! `rbuild inspect`

use std::io::{self, Write as _};
use std::process::ExitCode;

use graph::Platform;
use registry::Reference;
use serde_json::{Value, json};
use solver::RunContext;

use super::transfer::{mode, shown};
use crate::bundle::{self, Bundle, BundleError, Place};
use crate::progress::{Colours, neutralise};
use crate::report::Report;
use crate::session::Session;
use crate::stored::Stored;

/// Show what images are, as JSON
#[derive(clap::Args, Debug, Clone)]
pub struct Args {
    /// Names or ids of images
    #[arg(value_name = "IMAGE", required = true)]
    pub images: Vec<String>,
    /// `json`, or a path such as `{{.Config.Env}}` or `{{json .Config}}`
    #[arg(short, long, value_name = "FORMAT", conflicts_with_all = ["raw", "validate"])]
    pub format: Option<String>,
    /// Print the manifest or index itself, byte for byte
    #[arg(long, conflicts_with = "validate")]
    pub raw: bool,
    /// Ask the registry instead of the store; nothing is pulled
    #[arg(long)]
    pub remote: bool,
    /// Read every byte and say what is wrong: digests, sizes, media types, diff ids, history, names in layers. Exits with 1
    /// if anything is
    #[arg(long)]
    pub validate: bool,
}

/// Prints the images in docker's form.
///
/// # Errors
/// There is no such image, or the format is none that is known.
#[expect(clippy::print_stdout, reason = "the description is this command's result")]
pub async fn run(args: &Args, session: &Session) -> Result<ExitCode, Report> {
    if args.raw || args.validate {
        return whole(args, session).await;
    }
    let mut images = Vec::new();
    for text in &args.images {
        images.push(match place(args, text)? {
            None => describe(session, &Stored::find(&session.store, text)?)?,
            Some(place) => describe_there(session, &place).await?,
        });
    }
    match args.format.as_deref() {
        None => println!("{:#}", Value::Array(images)),
        Some("json") => println!("{}", Value::Array(images)),
        Some(template) => {
            for image in &images {
                println!("{}", filled(template, image)?);
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Another place than the store, if one is meant.
fn place(args: &Args, text: &str) -> Result<Option<Place>, Report> {
    let prefixed =
        ["docker:", "oci:", "oci-layout:", "oci-archive:", "docker-archive:", "docker-daemon:", "containers-storage:"];
    if args.remote || prefixed.iter().any(|prefix| text.starts_with(prefix)) {
        return super::copy::place(text).map(Some);
    }
    Ok(None)
}

/// What is there, byte for byte.
#[expect(clippy::print_stdout, reason = "the findings are this command's result")]
async fn whole(args: &Args, session: &Session) -> Result<ExitCode, Report> {
    let mut wrong = false;
    for text in &args.images {
        let place = place(args, text)?.unwrap_or_else(|| Place::Store(text.clone()));
        let work = async |context: &RunContext| -> Result<_, BundleError> {
            let bundle = Bundle::read(session, &place, None, context).await?;
            let findings = if args.validate { bundle::validate(&bundle, context).await? } else { Vec::new() };
            Ok((bundle, findings))
        };
        let (bundle, findings) = shown(session, mode(true)?, "reading", work).await?;
        if args.raw {
            io::stdout().write_all(&bundle.top.bytes).map_err(|error| Report::of(&error))?;
            continue;
        }
        wrong |= !findings.is_empty();
        if findings.is_empty() {
            println!("{text}: valid ({})", bundle.top.descriptor.digest);
        }
        for finding in &findings {
            println!("{text}: {}", neutralise(finding.as_bytes(), Colours::Strip));
        }
    }
    Ok(if wrong { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// An image elsewhere: what its manifest or index says, and the config for this machine.
async fn describe_there(session: &Session, place: &Place) -> Result<Value, Report> {
    let work = async |context: &RunContext| -> Result<_, BundleError> {
        let whole = Bundle::read(session, place, None, context).await?;
        // An index without an image for this machine is still one.
        let ours = Bundle::read(session, place, Some(&Platform::host()), context).await.ok();
        let config = match ours.and_then(|ours| ours.config_descriptor().map(|config| (ours, config))) {
            Some((ours, config)) => serde_json::from_slice::<Value>(&ours.small(&config).await?).ok(),
            None => None,
        };
        // Where they cannot be listed there are none, as far as anybody knows.
        let whole = whole.clone().with_referrers(session, place).await.unwrap_or(whole);
        Ok((whole, config))
    };
    let (bundle, config) = shown(session, mode(true)?, "reading", work).await?;
    let manifest: Value = serde_json::from_slice(&bundle.top.bytes).map_err(|error| Report::of(&error))?;
    Ok(json!({
        "Digest": bundle.top.descriptor.digest,
        "MediaType": bundle.top.descriptor.media_type,
        "Manifest": manifest,
        "Image": config,
        "Referrers": referrers(&bundle),
    }))
}

/// What is said of an image in its index and beside it: to which manifest each refers, and what it is.
fn referrers(bundle: &Bundle) -> Vec<Value> {
    let entry = |(subject, referrer): (graph::Digest, crate::export::Descriptor)| {
        json!({
            "Subject": subject,
            "Digest": referrer.digest,
            "ArtifactType": referrer.artifact_type,
            "Annotations": referrer.annotations,
        })
    };
    bundle.referring().into_iter().map(entry).collect()
}

fn describe(session: &Session, image: &Stored) -> Result<Value, Report> {
    let failed = |error: snapshotter::StoreError| Report::of(&error);
    let (mut tags, mut digests) = (Vec::new(), Vec::new());
    for record in session.store.images().map_err(failed)?.into_iter().filter(|record| record.config == image.id) {
        let Ok(name) = record.name.parse::<Reference>() else { continue };
        tags.push(name.familiar());
        if let Some(manifest) = record.manifest {
            digests.push(format!("{}@{}", name.repository().familiar(), manifest.digest));
        }
    }
    digests.dedup();
    let layers = match image.chain() {
        Some(chain) => session.store.chain_layers(&chain).map_err(failed)?,
        None => Vec::new(),
    };
    let config = &image.config;
    Ok(json!({
        "Id": image.id,
        "RepoTags": tags,
        "RepoDigests": digests,
        "Created": config.created,
        "Author": config.author,
        "Config": config.config,
        "Architecture": config.architecture,
        "Variant": config.variant,
        "Os": config.os,
        "Size": layers.iter().map(|layer| layer.size).sum::<u64>(),
        "RootFS": { "Type": config.rootfs.kind, "Layers": config.rootfs.diff_ids },
    }))
}

/// One `{{.Path}}` or `{{json .Path}}` and text around it: what scripts use. Everything else of Go's templates is refused.
fn filled(template: &str, image: &Value) -> Result<String, Report> {
    let unknown = || {
        let report = Report::new(format!("the format {template:?} is not supported"));
        report.with_hint("use json, {{.Field.Field}} or {{json .Field}}")
    };
    let mut text = String::new();
    let mut rest = template;
    while let Some((before, after)) = rest.split_once("{{") {
        let (action, after) = after.split_once("}}").ok_or_else(unknown)?;
        let action = action.trim();
        let (as_json, path) = match action.strip_prefix("json ") {
            Some(path) => (true, path.trim()),
            None => (false, action),
        };
        let path = path.strip_prefix('.').ok_or_else(unknown)?;
        if !path.chars().all(|c| c.is_alphanumeric() || c == '.' || c == '_') {
            return Err(unknown());
        }
        let value = path.split('.').filter(|part| !part.is_empty()).try_fold(image, |value, part| value.get(part));
        let value = value.ok_or_else(|| Report::new(format!("the image has no field .{path}")))?;
        text.push_str(before);
        match value {
            Value::String(string) if !as_json => text.push_str(string),
            Value::Array(list) if !as_json => {
                let items: Vec<String> =
                    list.iter().map(|item| item.as_str().map_or_else(|| item.to_string(), str::to_owned)).collect();
                text.push_str(&format!("[{}]", items.join(" ")));
            }
            value => text.push_str(&value.to_string()),
        }
        rest = after;
    }
    text.push_str(rest);
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn simple_templates_are_filled_and_others_refused() {
        let image = json!({ "Id": "sha256:1", "Config": { "Env": ["A=b", "C=d"], "Labels": { "x": "y" } } });
        let fill = |template: &str| filled(template, &image).map_err(|report| report.message);
        assert_eq!(fill("{{.Id}}").as_deref(), Ok("sha256:1"));
        assert_eq!(fill("id={{ .Id }}!").as_deref(), Ok("id=sha256:1!"));
        assert_eq!(fill("{{.Config.Env}}").as_deref(), Ok("[A=b C=d]"));
        assert_eq!(fill("{{json .Config.Labels}}").as_deref(), Ok(r#"{"x":"y"}"#));
        for template in ["{{range .Config.Env}}x{{end}}", "{{.Nope}}", "{{.Id"] {
            assert!(fill(template).is_err(), "{template}");
        }
    }
}
