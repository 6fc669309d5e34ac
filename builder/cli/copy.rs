//! `rbuild copy` and `rbuild merge`

use std::process::ExitCode;

use graph::Platform;
use solver::RunContext;

use super::transfer::{mode, shown};
use crate::bundle::{Bundle, BundleError, Place};
use crate::report::Report;
use crate::session::Session;

/// Copy an image, byte for byte: its digest stays
///
/// A place is `NAME` (at its registry), `oci:DIRECTORY[:TAG]`, `oci-archive:FILE[:TAG]`, `docker-archive:FILE[:NAME]` or
/// `store:NAME`; a source also `docker-daemon:NAME` or `containers-storage:NAME` (podman's). Images for all platforms are copied, unless --platform says which.
#[derive(clap::Args, Debug, Clone)]
pub struct CopyArgs {
    /// Where it is
    #[arg(value_name = "SOURCE")]
    pub source: String,
    /// Where it goes
    #[arg(value_name = "DESTINATION")]
    pub destination: String,
    /// Copy only the image for this platform
    #[arg(long, value_name = "PLATFORM")]
    pub platform: Option<Platform>,
    /// Copy what refers to the image too: provenance, signatures, SBOMs, and what refers to those
    #[arg(long)]
    pub referrers: bool,
    /// Show no progress
    #[arg(short, long)]
    pub quiet: bool,
}

/// Join images for single platforms into one index
///
/// Places are written as for copy; of sources that are indexes all images are taken.
#[derive(clap::Args, Debug, Clone)]
pub struct MergeArgs {
    /// Where the index goes, with all images
    #[arg(value_name = "DESTINATION")]
    pub destination: String,
    /// The images
    #[arg(value_name = "SOURCE", required = true)]
    pub sources: Vec<String>,
    /// Show no progress
    #[arg(short, long)]
    pub quiet: bool,
}

/// Copies and prints the digest.
///
/// # Errors
/// A place, or what is there.
pub async fn copy(args: &CopyArgs, session: &Session) -> Result<ExitCode, Report> {
    let (source, destination) = (place(&args.source)?, place(&args.destination)?);
    let work = async |context: &RunContext| -> Result<_, BundleError> {
        let mut bundle = Bundle::read(session, &source, args.platform.as_ref(), context).await?;
        if args.referrers {
            bundle = bundle.with_referrers(session, &source).await?;
        }
        bundle.write(session, &destination, context).await?;
        Ok(bundle)
    };
    let name = format!("copying {}", args.source);
    let copied = shown(session, mode(args.quiet)?, &name, work).await?;
    told(&copied, &destination);
    Ok(ExitCode::SUCCESS)
}

/// Joins and prints the digest.
///
/// # Errors
/// A place, or what is there.
pub async fn merge(args: &MergeArgs, session: &Session) -> Result<ExitCode, Report> {
    let destination = place(&args.destination)?;
    let sources = args.sources.iter().map(|source| place(source)).collect::<Result<Vec<_>, _>>()?;
    let work = async |context: &RunContext| -> Result<_, BundleError> {
        let read = sources.iter().map(|source| Bundle::read(session, source, None, context));
        let merged = Bundle::merge(futures_util::future::try_join_all(read).await?).await?;
        merged.write(session, &destination, context).await?;
        Ok(merged)
    };
    let name = format!("merging into {}", args.destination);
    let merged = shown(session, mode(args.quiet)?, &name, work).await?;
    told(&merged, &destination);
    Ok(ExitCode::SUCCESS)
}

#[expect(clippy::print_stdout, reason = "the digest is this command's result")]
fn told(bundle: &Bundle, destination: &Place) {
    let archive_to_stdout = |path: &std::path::Path| path.as_os_str() == "-";
    match destination {
        // What goes there is the archive.
        Place::OciArchive { path, .. } | Place::DockerArchive { path, .. } if archive_to_stdout(path) => {}
        _ => println!("{}", bundle.top.descriptor.digest),
    }
}

pub(super) fn place(text: &str) -> Result<Place, Report> {
    Place::parse(text).map_err(|error| Report::of(&error).with_exit_code(2))
}
