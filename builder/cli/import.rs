//! `rbuild import`

use std::io::{self, Read};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use graph::Platform;

use super::transfer::{on_thread, open_file, platform};
use crate::images::parse_name;
use crate::import::{self, Changes, RootFileSystem};
use crate::report::Report;
use crate::session::Session;
use crate::terminal;

/// Make an image of a root file system
///
/// FILE is a tar of it, compressed or not. The image has one layer, and the settings that `--change` gives it.
#[derive(clap::Args, Debug, Clone)]
pub struct Args {
    /// The tar, or `-` for standard input
    #[arg(value_name = "FILE")]
    pub file: String,
    /// Name of the image
    #[arg(value_name = "NAME")]
    pub name: Option<String>,
    /// A setting, as an instruction of a Dockerfile: CMD, ENTRYPOINT, ENV, EXPOSE, HEALTHCHECK, LABEL, ONBUILD, STOPSIGNAL,
    /// USER, VOLUME or WORKDIR; may be given several times
    #[arg(short, long = "change", value_name = "INSTRUCTION")]
    pub changes: Vec<String>,
    /// What the image's history says of it
    #[arg(short, long, value_name = "TEXT")]
    pub message: Option<String>,
    /// Platform that the programs in it are for [default: this machine's]
    #[arg(long, value_name = "PLATFORM", env = "DOCKER_DEFAULT_PLATFORM")]
    pub platform: Option<Platform>,
}

/// Imports the root file system and prints the image's id.
///
/// # Errors
/// It is no tar, or a change cannot be made.
#[expect(clippy::print_stdout, reason = "the image id is this command's result")]
pub async fn run(args: &Args, session: &Session) -> Result<ExitCode, Report> {
    let platform = platform(args.platform.as_ref());
    let name = args.name.as_deref().map(parse_name).transpose()?;
    if name.as_ref().is_some_and(|name| name.digest().is_some()) {
        return Err(Report::new("an image cannot be named by a digest that it does not have yet"));
    }
    let changes = Changes::parse(&args.changes, &platform).map_err(|error| Report::of(&error).with_exit_code(2))?;
    let input: Box<dyn Read + Send> = match args.file.as_str() {
        "-" if terminal::on_stdin() => {
            return Err(Report::new("a tar is not typed by hand").with_hint("redirect it to standard input"));
        }
        "-" => Box::new(io::stdin()),
        path => Box::new(open_file(Path::new(path))?),
    };
    // Where the file lies on this machine must not show in the image's digest; docker says the same of files.
    let message = args.message.clone().unwrap_or_else(|| "Imported from -".to_owned());
    let image = RootFileSystem { changes, platform, message, name };
    let (store, now) = (Arc::clone(&session.store), now()?);
    let id = on_thread(move || {
        let id = import::root_file_system(&store, input, &image, now)?;
        store.make_durable()?;
        Ok::<_, import::ImportError>(id)
    })
    .await?;
    println!("{id}");
    Ok(ExitCode::SUCCESS)
}

/// When it is made: SOURCE_DATE_EPOCH says that for builds, so it does here.
fn now() -> Result<jiff::Timestamp, Report> {
    let Some(text) = std::env::var("SOURCE_DATE_EPOCH").ok().filter(|text| !text.is_empty()) else {
        return Ok(jiff::Timestamp::now());
    };
    let seconds = text.parse().ok().and_then(|seconds| jiff::Timestamp::from_second(seconds).ok());
    seconds.ok_or_else(|| Report::new(format!("SOURCE_DATE_EPOCH={text:?} is not a number of seconds")))
}
