//! `rbuild pull`

use std::process::ExitCode;

use graph::Platform;

use super::transfer::{mode, platform, shown};
use crate::images::parse_name;
use crate::report::Report;
use crate::session::Session;
use crate::stored;

/// Pull an image from a registry
///
/// The image comes into rbuild's store with all its layers.
#[derive(clap::Args, Debug, Clone)]
pub struct Args {
    /// Name of the image, with a tag or digest if need be
    #[arg(value_name = "NAME")]
    pub name: String,
    /// Platform of the image, where there are several [default: this machine's]
    #[arg(long, value_name = "PLATFORM", env = "DOCKER_DEFAULT_PLATFORM")]
    pub platform: Option<Platform>,
    /// Print nothing but the name
    #[arg(short, long)]
    pub quiet: bool,
}

/// Pulls the image and says what it is.
///
/// # Errors
/// There is none of this name for the platform, or the registry, or the disk.
#[expect(clippy::print_stdout, reason = "the digest is this command's result")]
pub async fn run(args: &Args, session: &Session) -> Result<ExitCode, Report> {
    let name = parse_name(&args.name)?;
    let platform = platform(args.platform.as_ref());
    let pull = async |context: &solver::RunContext| stored::pull(session, &name, &platform, context).await;
    let pulled = shown(session, mode(args.quiet)?, &format!("pulling {}", name.familiar()), pull).await?;
    if !args.quiet {
        if let Some(digest) = pulled.digest {
            println!("Digest: {digest}");
        }
        let what = if pulled.up_to_date { "Image is up to date for" } else { "Downloaded newer image for" };
        println!("Status: {what} {}", name.familiar());
    }
    println!("{name}");
    Ok(ExitCode::SUCCESS)
}
