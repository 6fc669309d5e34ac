//! `rbuild tag`

use std::process::ExitCode;

use snapshotter::{ImageKind, ImageRecord};

use crate::images::parse_name;
use crate::report::Report;
use crate::session::Session;
use crate::stored::{Stored, make_durable};

/// Give an image another name
#[derive(clap::Args, Debug, Clone)]
pub struct Args {
    /// Name or id of an image
    #[arg(value_name = "IMAGE")]
    pub source: String,
    /// The further name
    #[arg(value_name = "NAME[:TAG]")]
    pub target: String,
}

/// Names the image.
///
/// # Errors
/// There is no such image, or the name is none.
pub async fn run(args: &Args, session: &Session) -> Result<ExitCode, Report> {
    let image = Stored::find(&session.store, &args.source)?;
    let name = parse_name(&args.target).map_err(|error| Report::of(&error))?;
    if name.digest().is_some() {
        return Err(Report::new(format!("{} has a digest: a name that is given cannot have one", args.target)));
    }
    let record =
        ImageRecord { name: name.to_string(), config: image.id, manifest: image.manifest, kind: ImageKind::Tagged };
    session.store.put_image(&record).map_err(|error| Report::of(&error))?;
    make_durable(session).await?;
    Ok(ExitCode::SUCCESS)
}
