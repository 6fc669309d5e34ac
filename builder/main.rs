//! Runs a command and maps its result to an exit code.

use std::process::ExitCode;

use clap::Parser as _;
use executor::rootless::{self, Tier};
use executor::{Fallbacks, Launcher};
use rbuild::cli::{self, Cli};
use rbuild::report::Report;
use rbuild::session::Start;

fn main() -> ExitCode {
    let start = match start() {
        Ok(start) => start,
        Err(report) => return ExitCode::from(report.emit()),
    };
    let args = cli::with_default_command(std::env::args_os().collect());
    let cli = match Cli::try_parse_from(&args) {
        Ok(cli) => cli,
        Err(error) => {
            // Where it cannot be printed there is nobody to tell.
            let _ = error.print();
            return ExitCode::from(cli::usage_exit_code(&args, error.exit_code()));
        }
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return ExitCode::from(Report::of(&error).emit()),
    };
    let result = runtime.block_on(cli::run(cli, start));
    // Threads that still block on something must not hold up the end.
    runtime.shutdown_background();
    match result {
        Ok(code) => code,
        Err(report) => ExitCode::from(report.emit()),
    }
}

/// What must happen while there is one thread: an ordinary user becomes root of a namespace, and the launcher of steps
/// starts. The launcher is this program under another name; there this never returns.
fn start() -> Result<Start, Report> {
    if !Launcher::is_launcher() && !cli::starts_steps(std::env::args_os()) {
        // Files of other ids can only be removed inside the namespace; everything else works without.
        return Ok(Start { tier: rootless::enter().unwrap_or(outside()), launcher: None });
    }
    let (tier, launcher) = match rootless::enter() {
        Ok(tier) => {
            let confined = matches!(tier, Tier::Confined { .. });
            let fallbacks = Fallbacks { confined, ..Fallbacks::default() };
            (tier, Launcher::start_with(fallbacks).unwrap_or_else(Launcher::none))
        }
        // Whatever needs no step can be built all the same.
        Err(error) => {
            let why = match error.hint() {
                Some(hint) => format!("{error}; {hint}"),
                None => error.to_string(),
            };
            (outside(), Launcher::none(executor::Error::NoSteps { why }))
        }
    };
    Ok(Start { tier, launcher: Some(launcher) })
}

fn outside() -> Tier {
    Tier::SingleId { reason: "there is no user namespace".into() }
}
