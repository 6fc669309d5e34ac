//! What commands that move images share: progress on stderr, and Ctrl-C that gives up.

use std::fmt::Display;
use std::fs::File;
use std::io::{self, IsTerminal as _};
use std::path::Path;

use graph::Platform;
use solver::RunContext;
use tokio_util::sync::CancellationToken;

use super::interrupt;
use crate::export::Destination;
use crate::progress::{self, Mode};
use crate::report::{EXIT_CANCELLED, Report};
use crate::session::Session;

/// Where `-o` says that an archive goes: standard output if it says nothing, but not onto a terminal.
pub(super) fn archive_destination(output: Option<&Path>) -> Result<Destination, Report> {
    match output {
        Some(path) if path.as_os_str() != "-" => Ok(Destination::File(path.to_owned())),
        _ if io::stdout().is_terminal() => {
            Err(Report::new("an archive is not for a terminal").with_hint("name a file with -o, or redirect"))
        }
        _ => Ok(Destination::Stdout),
    }
}

/// Does `work` as one vertex of a progress display.
pub(super) async fn shown<T, E>(
    session: &Session,
    mode: Mode,
    name: &str,
    work: impl AsyncFnOnce(&RunContext) -> Result<T, E>,
) -> Result<T, Report>
where
    E: Display,
    Report: From<E>,
{
    let (progress, events) = solver::channel();
    let display = progress::start(mode, events, &progress::Options::from_env());
    let cancelled = CancellationToken::new();
    let signals = interrupt::cancels(&cancelled, &progress);
    let vertex = progress.vertex(name);
    let context = RunContext { progress: vertex.clone(), cancelled: cancelled.clone() };
    let notices = session.notices.attach(&progress);
    let result = vertex.during(work(&context)).await;
    drop(notices);
    drop(signals);
    drop(display.finish());
    result.map_err(|error| match cancelled.is_cancelled() {
        true => Report::new("cancelled").with_exit_code(EXIT_CANCELLED),
        false => Report::from(error),
    })
}

/// How a command that may be told to be quiet shows its progress.
pub(super) fn mode(quiet: bool) -> Result<Mode, Report> {
    let asked = if quiet { Some(Mode::Quiet) } else { None };
    Mode::choose(asked).map_err(|error| Report::of(&error).with_exit_code(2))
}

/// The platform that was asked for, else this machine's.
pub(super) fn platform(asked: Option<&Platform>) -> Platform {
    asked.cloned().unwrap_or_else(Platform::host)
}

/// Does what blocks on a thread for it.
pub(super) async fn on_thread<T, E>(work: impl FnOnce() -> Result<T, E> + Send + 'static) -> Result<T, Report>
where
    T: Send + 'static,
    E: Send + 'static,
    Report: From<E>,
{
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => Ok(result?),
        Err(_) => Err(Report::new("internal error: a thread panicked")),
    }
}

/// A file that the person named.
pub(super) fn open_file(path: &Path) -> Result<File, Report> {
    File::open(path).map_err(|error| {
        let mut report = Report::new(format!("cannot read {}", path.display()));
        report.caused_by(error.to_string());
        report
    })
}
