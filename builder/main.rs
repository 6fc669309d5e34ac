//! Runs a command and maps its result to an exit code.

use std::process::ExitCode;

use clap::Parser as _;
use rbuild::cli::{self, Cli};
use rbuild::report::Report;

fn main() -> ExitCode {
    // The launcher is this program under another name; there it never returns. Here it must come before any thread.
    let launcher = match cli::starts_steps(std::env::args_os()) {
        true => match executor::Launcher::start() {
            Ok(launcher) => Some(launcher),
            Err(error) => return ExitCode::from(Report::of(&error).emit()),
        },
        false => None,
    };
    let cli = Cli::parse_from(cli::with_default_command(std::env::args_os().collect()));
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return ExitCode::from(Report::of(&error).emit()),
    };
    let result = runtime.block_on(cli::run(cli, launcher));
    // Threads that still block on something must not hold up the end.
    runtime.shutdown_background();
    match result {
        Ok(code) => code,
        Err(report) => ExitCode::from(report.emit()),
    }
}
