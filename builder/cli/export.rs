//! `rbuild export`

use std::path::PathBuf;
use std::process::ExitCode;

use solver::RunContext;

use super::transfer::{archive_destination, mode, on_thread, shown};
use crate::export;
use crate::report::Report;
use crate::session::Session;
use crate::stored::Stored;
use crate::worker::WorkError;

/// Write the root file system of an image as a tar
///
/// Owners, modes, times and extended attributes are kept; `rbuild import` makes an image of it again.
#[derive(clap::Args, Debug, Clone)]
pub struct Args {
    /// Name or id of an image
    #[arg(value_name = "IMAGE")]
    pub image: String,
    /// Write to this file instead of standard output
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
}

/// Writes the tar.
///
/// # Errors
/// There is no such image, or the file cannot be written.
pub async fn run(args: &Args, session: &Session) -> Result<ExitCode, Report> {
    let destination = archive_destination(args.output.as_deref())?;
    let image = Stored::find(&session.store, &args.image)?;
    let chain = image.chain();
    let collect =
        async |context: &RunContext| -> Result<_, WorkError> { session.layers.readable(context, chain.as_ref()).await };
    let tree = shown(session, mode(image.is_here(session))?, "collecting layers", collect).await?;
    on_thread(move || export::write_tar(&tree, &destination).map_err(WorkError::from)).await?;
    Ok(ExitCode::SUCCESS)
}
