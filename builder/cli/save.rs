//! `rbuild save`

use std::path::PathBuf;
use std::process::ExitCode;

use registry::Reference;
use solver::RunContext;

use super::transfer::{archive_destination, mode, on_thread, shown};
use crate::export::{Archive, OutputKind, OutputSpec, Package};
use crate::outputs::{self, OutputError};
use crate::report::Report;
use crate::session::Session;
use crate::stored::Stored;

/// Save images as one tar
///
/// The tar is a docker archive and an OCI layout at once: `rbuild load`, `docker load`, `podman load` and
/// `skopeo copy oci-archive:` take it.
#[derive(clap::Args, Debug, Clone)]
pub struct Args {
    /// Names or ids of images
    #[arg(value_name = "IMAGE", required = true)]
    pub images: Vec<String>,
    /// Write to this file instead of standard output
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
}

/// Writes the archive.
///
/// # Errors
/// An image or layer is missing, or the file cannot be written.
pub async fn run(args: &Args, session: &Session) -> Result<ExitCode, Report> {
    let destination = archive_destination(args.output.as_deref())?;
    let mut images: Vec<(Stored, Vec<Reference>)> = Vec::new();
    for text in &args.images {
        let image = Stored::find(&session.store, text)?;
        let name = image.name.clone().filter(|name| name.tag().is_some());
        match images.iter_mut().find(|(known, _)| known.id == image.id) {
            Some((_, names)) => names.extend(name),
            None => images.push((image, name.into_iter().collect())),
        }
    }
    // As a push would pack them, so that an image has one digest wherever it goes.
    let output = OutputSpec::of(OutputKind::Docker(None));
    let collect = async |context: &RunContext| -> Result<_, OutputError> {
        let mut packages: Vec<(Package, Vec<Reference>)> = Vec::with_capacity(images.len());
        for (image, names) in &images {
            packages.push((image.package(session, &output, context, true, None).await?, names.clone()));
        }
        Ok(packages)
    };
    // Only downloads are worth a display.
    let all_here = images.iter().all(|(image, _)| image.is_here(session));
    let packages = shown(session, mode(all_here)?, "collecting layers", collect).await?;
    on_thread(move || {
        let images = packages.iter().map(|(package, names)| (package, names.clone())).collect();
        outputs::write_archive(&Archive { images, docker: true, omitted: Default::default() }, &destination)
    })
    .await?;
    Ok(ExitCode::SUCCESS)
}
