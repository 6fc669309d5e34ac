//! `rbuild load`

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use graph::Platform;

use super::transfer::{on_thread, open_file};
use crate::import::{self, Input, Wanted};
use crate::report::Report;
use crate::session::Session;
use crate::terminal;

/// Load images from an archive
///
/// Takes what `docker save`, `podman save`, `skopeo copy` to `docker-archive:` or `oci-archive:` and `rbuild save` write,
/// compressed or not, and directories that are OCI layouts. All digests are verified.
#[derive(clap::Args, Debug, Clone)]
pub struct Args {
    /// Read this archive, or OCI layout directory, instead of standard input
    #[arg(short, long, value_name = "FILE")]
    pub input: Option<PathBuf>,
    /// Take only this one of images for several platforms
    #[arg(long, value_name = "PLATFORM", env = "DOCKER_DEFAULT_PLATFORM")]
    pub platform: Option<Platform>,
    /// Print nothing
    #[arg(short, long)]
    pub quiet: bool,
}

/// Loads the images and says which they are.
///
/// # Errors
/// It is no archive of images, or one that is damaged.
#[expect(clippy::print_stdout, reason = "the names are this command's result")]
pub async fn run(args: &Args, session: &Session) -> Result<ExitCode, Report> {
    let input = match args.input.as_deref().filter(|path| path.as_os_str() != "-") {
        None if terminal::on_stdin() => {
            return Err(Report::new("an archive is not typed by hand").with_hint("name a file with -i, or redirect"));
        }
        None => Input::Archive(Box::new(io::stdin())),
        Some(path) if path.is_dir() => Input::Directory(path.to_owned()),
        Some(path) => Input::Archive(Box::new(open_file(path)?)),
    };
    let (store, platform) = (Arc::clone(&session.store), args.platform.clone());
    let loaded = on_thread(move || {
        let loaded = import::load(&store, input, platform.as_ref().map_or(Wanted::All, Wanted::Only))?;
        store.make_durable()?;
        Ok::<_, import::ImportError>(loaded)
    })
    .await?;
    if args.quiet {
        return Ok(ExitCode::SUCCESS);
    }
    for image in loaded {
        for name in &image.names {
            println!("Loaded image: {}", name.familiar());
        }
        if image.names.is_empty() {
            println!("Loaded image ID: {}", image.id);
        }
    }
    Ok(ExitCode::SUCCESS)
}
