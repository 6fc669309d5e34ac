//! `rbuild rmi`

use std::process::ExitCode;

use registry::Reference;
use snapshotter::CollectPolicy;

use crate::report::Report;
use crate::session::Session;
use crate::stored::{Stored, StoredError};

/// Remove images
///
/// A name is taken from its image; an id removes the image with its only name, or with all of them where -f is given. Layers
/// that nothing needs any more, neither an image nor the build cache, are removed as well.
#[derive(clap::Args, Debug, Clone)]
pub struct Args {
    /// Names or ids of images
    #[arg(value_name = "IMAGE", required = true)]
    pub images: Vec<String>,
    /// Remove an image by its id although it has several names, and do not mind if there is none
    #[arg(short, long)]
    pub force: bool,
}

/// Removes the images.
///
/// # Errors
/// There is no such image, or it has several names.
#[expect(clippy::print_stdout, reason = "what was removed is this command's result")]
pub async fn run(args: &Args, session: &Session) -> Result<ExitCode, Report> {
    let failed = |error: snapshotter::StoreError| Report::of(&error);
    let mut first_failure = None;
    for text in &args.images {
        let image = match Stored::find(&session.store, text) {
            Ok(image) => image,
            // Only that there is none may be passed over; a store that cannot be read may not.
            Err(StoredError::Missing(_)) if args.force => continue,
            Err(error) => {
                first_failure.get_or_insert(Report::from(error));
                continue;
            }
        };
        let named = |record: &snapshotter::ImageRecord| record.config == image.id;
        let names: Vec<String> =
            session.store.images().map_err(failed)?.into_iter().filter(named).map(|record| record.name).collect();
        let gone: Vec<String> = match &image.name {
            Some(name) => vec![name.to_string()],
            None if names.len() > 1 && !args.force => {
                let report = Report::new(format!("{text} has several names: {}", names.join(", ")));
                first_failure.get_or_insert(report.with_hint("remove the names one by one, or use -f"));
                continue;
            }
            None => names.clone(),
        };
        for name in &gone {
            session.store.remove_image(name).map_err(failed)?;
            if name.starts_with("<none>") {
                continue;
            }
            let familiar = name.parse().map_or_else(|_| name.clone(), |name: Reference| name.familiar());
            println!("Untagged: {familiar}");
        }
        if gone.len() == names.len() {
            println!("Deleted: {}", image.id);
        }
    }
    session.store.collect(&CollectPolicy::default()).map_err(failed)?;
    first_failure.map_or(Ok(ExitCode::SUCCESS), Err)
}
