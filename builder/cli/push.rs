//! `rbuild push`

use std::process::ExitCode;

use snapshotter::{ImageKind, ImageRecord, ManifestRef};
use solver::RunContext;

use super::transfer::{mode, shown};
use crate::export::{self, OutputKind, OutputSpec, PushError};
use crate::outputs::{self, OutputError};
use crate::report::Report;
use crate::session::Session;
use crate::stored::{Stored, make_durable};

/// Push an image to the registry that its name names
///
/// What the registry has already is not sent again. An image that was pulled or loaded keeps its manifest, and so its digest.
#[derive(clap::Args, Debug, Clone)]
pub struct Args {
    /// Name of an image of the store
    #[arg(value_name = "NAME")]
    pub name: String,
    /// Show no progress
    #[arg(short, long)]
    pub quiet: bool,
}

/// Pushes the image and prints its digest.
///
/// # Errors
/// There is no such image, or the registry refuses it.
#[expect(clippy::print_stdout, reason = "the digest is this command's result")]
pub async fn run(args: &Args, session: &Session) -> Result<ExitCode, Report> {
    let image = Stored::find(&session.store, &args.name)?;
    let Some(name) = image.name.clone() else {
        let report = Report::new(format!("{} is an id: pushing needs a name", args.name));
        return Err(report.with_hint(format!("name the image first: rbuild tag {} REGISTRY/NAME:TAG", args.name)));
    };
    if name.digest().is_some() {
        return Err(Report::new("an image cannot be pushed to a digest")
            .with_hint(format!("give it a tag first: rbuild tag {} REGISTRY/NAME:TAG", args.name)));
    }
    let push = async |context: &RunContext| -> Result<_, OutputError> {
        // Before anything is compressed for it.
        let permitted = session.remote.client.check_push(name.repository()).await;
        permitted.map_err(|source| PushError::Registry { name: name.to_string(), source: Box::new(source) })?;
        let output = OutputSpec::of(OutputKind::Image { push: true, by_digest: false });
        let sent = async {
            let package = image.package(session, &output, context, false, Some(&name)).await?;
            export::push(&session.remote, &package, &name, false, &context.progress).await?;
            Ok::<_, OutputError>(package)
        };
        let package = tokio::select! {
            () = context.cancelled.cancelled() => return Err(crate::worker::WorkError::Cancelled.into()),
            sent = sent => sent?,
        };
        outputs::keep_manifests(session, &package)?;
        let manifest = package.descriptor().clone();
        session.store.put_image(&ImageRecord {
            name: name.to_string(),
            config: image.id,
            manifest: Some(ManifestRef {
                digest: manifest.digest,
                media_type: manifest.media_type.clone(),
                size: manifest.size,
            }),
            kind: ImageKind::Tagged,
        })?;
        make_durable(session).await?;
        Ok(manifest)
    };
    let manifest = shown(session, mode(args.quiet)?, &format!("pushing {}", name.familiar()), push).await?;
    println!("{}: digest: {} size: {}", name.familiar(), manifest.digest, manifest.size);
    Ok(ExitCode::SUCCESS)
}
