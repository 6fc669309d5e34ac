//! `rbuild attach`

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

use solver::RunContext;

use super::copy::place;
use super::transfer::{mode, shown};
use crate::bundle::{Bundle, BundleError};
use crate::export::Attestation;
use crate::report::Report;
use crate::session::Session;

/// Largest file that is attached.
const LARGEST: u64 = 256 << 20;

/// Attach files to an image, such as an SBOM or a signature, without changing it
///
/// They become a manifest that refers to the image (OCI 1.1). IMAGE is a place as for copy: `NAME` (at its registry),
/// `oci:DIRECTORY[:TAG]` or `store:NAME`; what is attached in the store leaves with the image when that is pushed.
#[derive(clap::Args, Debug, Clone)]
pub struct Args {
    /// The image
    #[arg(value_name = "IMAGE")]
    pub image: String,
    /// The files
    #[arg(value_name = "FILE", required = true)]
    pub files: Vec<PathBuf>,
    /// What it is, as a media type: `application/spdx+json`, `application/vnd.cyclonedx+json`
    #[arg(long, value_name = "TYPE")]
    pub artifact_type: String,
    /// Media type of the files [default: the artifact type]
    #[arg(long, value_name = "TYPE")]
    pub media_type: Option<String>,
    /// Annotate the manifest; may be given several times
    #[arg(long = "annotation", value_name = "NAME=VALUE")]
    pub annotations: Vec<String>,
    /// Show no progress
    #[arg(short, long)]
    pub quiet: bool,
}

/// Attaches them, and prints the digest of what refers to the image now.
///
/// # Errors
/// There is no such image, or a file cannot be read, or the place does not take it.
#[expect(clippy::print_stdout, reason = "the digest is this command's result")]
pub async fn run(args: &Args, session: &Session) -> Result<ExitCode, Report> {
    let destination = place(&args.image)?;
    let is_type = |text: &str| {
        let plain = |part: &str| {
            !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$&-^_.+".contains(&b))
        };
        text.split_once('/').is_some_and(|(kind, rest)| plain(kind) && plain(rest))
    };
    let media_type = args.media_type.as_ref().unwrap_or(&args.artifact_type);
    for text in [&args.artifact_type, media_type] {
        if !is_type(text) {
            return Err(Report::new(format!("{text:?} is no media type")).with_exit_code(2));
        }
    }
    let mut annotations = BTreeMap::new();
    for text in &args.annotations {
        let (name, value) = text
            .split_once('=')
            .filter(|(name, _)| !name.is_empty())
            .ok_or_else(|| Report::new(format!("--annotation {text:?} is not NAME=VALUE")).with_exit_code(2))?;
        annotations.insert(name.to_owned(), value.to_owned());
    }
    let mut contents = Vec::with_capacity(args.files.len());
    for path in &args.files {
        let failed = |why: String| {
            let mut report = Report::new(format!("cannot read {}", path.display()));
            report.caused_by(why);
            report
        };
        let size = std::fs::metadata(path).map_err(|error| failed(error.to_string()))?.len();
        if size > LARGEST {
            return Err(failed(format!("it is larger than {} MiB", LARGEST >> 20)));
        }
        let bytes = std::fs::read(path).map_err(|error| failed(error.to_string()))?;
        let title = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
        let title = BTreeMap::from([("org.opencontainers.image.title".to_owned(), title)]);
        contents.push((media_type.clone(), title, bytes));
    }
    let work = async |context: &RunContext| -> Result<_, BundleError> {
        let subject = Bundle::read(session, &destination, None, context).await?.top.descriptor;
        let attestation = Attestation::new(&subject, &args.artifact_type, contents, annotations);
        let attached = Bundle::attached(&subject, attestation);
        attached.attach(session, &destination, context).await?;
        Ok(attached)
    };
    let attached = shown(session, mode(args.quiet)?, &format!("attaching to {}", args.image), work).await?;
    println!("{}", attached.top.descriptor.digest);
    Ok(ExitCode::SUCCESS)
}
