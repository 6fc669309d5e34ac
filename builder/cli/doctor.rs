//! `rbuild doctor`

use std::process::ExitCode;

use super::Global;
use crate::doctor;
use crate::report::Report;
use crate::session::Start;

/// Say what this machine offers for building, what is missing, and how to mend it
///
/// Everything is tried: a step is run, a private network made, each kind of limit set. Exit status 1 if steps cannot run here.
#[derive(clap::Args, Debug, Clone)]
pub struct Args {
    /// How to print it
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub format: Format,
}

/// `--format`
#[derive(clap::ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// For people.
    Text,
    /// For programs.
    Json,
}

/// Examines the machine.
///
/// # Errors
/// What was found cannot be printed.
#[expect(clippy::print_stdout, reason = "the diagnosis is this command's result")]
pub async fn run(args: &Args, global: &Global, start: &Start) -> Result<ExitCode, Report> {
    let diagnosis = doctor::examine(start, global.root.clone()).await;
    match args.format {
        Format::Text => print!("{}", diagnosis.text()),
        Format::Json => println!("{}", serde_json::to_string_pretty(&diagnosis).map_err(|error| Report::of(&error))?),
    }
    Ok(if diagnosis.usable { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
