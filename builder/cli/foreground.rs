//! A program in the foreground: its input and output are ours, signals are its, its status becomes ours.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};

use executor::{ExitStatus, Launcher, Process, Running, Stdio};
use rustix::termios::{Winsize, tcsetwinsize};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use super::interrupt;
use crate::emulation;
use crate::report::Report;
use crate::resources;
use crate::terminal::{self, Raw};

/// rbuild itself failed, and the program was not started.
pub(super) const EXIT_OWN: u8 = 125;
/// How long a terminal may still print after the program has ended.
const LAST_WORDS: std::time::Duration = std::time::Duration::from_secs(2);

/// Why a program could not be run to its end.
pub(super) enum Failed {
    /// With the exit code that a shell would give.
    Program(Report),
    /// With whatever exit code.
    Own(Report),
}

impl<E: Into<Report>> From<E> for Failed {
    fn from(error: E) -> Self {
        Self::Own(error.into())
    }
}

impl Failed {
    /// With the exit code for it.
    pub(super) fn report(self) -> Report {
        match self {
            Self::Program(report) => report,
            Self::Own(report) => report.with_exit_code(EXIT_OWN),
        }
    }
}

/// What a program is connected to.
#[derive(Debug, Clone, Copy)]
pub(super) struct Connect {
    /// It gets a terminal.
    pub(super) tty: bool,
    /// What is typed, or piped in, is its.
    pub(super) interactive: bool,
}

/// Starts the program and follows it to its end. `unsupported` is why its kind may not be executable here.
pub(super) async fn follow_to_end(
    launcher: &Launcher,
    process: Process,
    connect: Connect,
    unsupported: Option<executor::Error>,
) -> Result<ExitStatus, Failed> {
    let stdio = match connect.tty {
        true => Stdio::Terminal(terminal::window_size()),
        false => descriptors(connect.interactive)?,
    };
    // From here on signals are the program's.
    let _theirs = interrupt::program();
    let mut signals = signals()?;
    let limit = process.limits.memory;
    let running = launcher.run(process, stdio).await;
    let mut running = running.map_err(|error| failed(&emulation::explain(error, unsupported)))?;
    let typing = match connect.tty {
        true => Some(Typing::begin(connect.interactive, &running)?),
        false => None,
    };
    let status = follow(&mut running, &mut signals).await.map_err(|error| Report::of(&error))?;
    if let Some(typing) = typing {
        typing.end().await;
    }
    if status.oom_killed && !status.success() {
        let limit = limit.map_or_else(String::new, |limit| format!(" of {}", resources::shown(limit)));
        eprintln!("the program was killed: out of memory, peak {}{limit}", resources::shown(status.usage.peak_memory));
    }
    Ok(status)
}

/// A program that could not be started.
pub(super) fn failed(error: &executor::Error) -> Failed {
    let report = Report::of(error);
    let report = match error.hint() {
        Some(hint) => report.with_hint(hint),
        None => report,
    };
    match error.exit_code().and_then(|code| u8::try_from(code).ok()) {
        Some(code) => Failed::Program(report.with_exit_code(code)),
        None => Failed::Own(report),
    }
}

/// The program gets our own, so that no byte goes through us.
fn descriptors(interactive: bool) -> io::Result<Stdio> {
    let stdin: OwnedFd = match interactive {
        true => io::stdin().as_fd().try_clone_to_owned()?,
        false => File::open("/dev/null")?.into(),
    };
    let (stdout, stderr) = (io::stdout().as_fd().try_clone_to_owned()?, io::stderr().as_fd().try_clone_to_owned()?);
    Ok(Stdio::Descriptors { stdin, stdout, stderr })
}

/// Our terminal stands in for the program's while this lives.
struct Typing {
    raw: Option<Raw>,
    printed: tokio::sync::oneshot::Receiver<()>,
    resizing: tokio::task::JoinHandle<()>,
}

impl Typing {
    fn begin(interactive: bool, running: &Running) -> io::Result<Self> {
        let terminal = running.terminal().ok_or_else(|| io::Error::other("the program was given no terminal"))?;
        let resizing = tokio::spawn(resize(terminal.try_clone()?));
        let printed = terminal::pass_output(terminal.try_clone()?)?;
        let raw = match interactive {
            true => {
                let raw = Raw::enter()?;
                terminal::pass_input(terminal.try_clone()?)?;
                Some(raw)
            }
            false => None,
        };
        Ok(Self { raw, printed, resizing })
    }

    /// Waits for the last that was printed, and gives our terminal back.
    async fn end(self) {
        self.resizing.abort();
        let _ = tokio::time::timeout(LAST_WORDS, self.printed).await;
        drop(self.raw);
    }
}

async fn resize(terminal: OwnedFd) {
    let Ok(mut changed) = signal(SignalKind::window_change()) else { return };
    while changed.recv().await.is_some() {
        let size = terminal::window_size();
        let size = Winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 };
        // A program that ended has no use for it.
        let _ = tcsetwinsize(&terminal, size);
    }
}

/// The signals that are the program's.
fn signals() -> io::Result<mpsc::Receiver<SignalKind>> {
    let kinds = [
        SignalKind::interrupt(),
        SignalKind::terminate(),
        SignalKind::hangup(),
        SignalKind::quit(),
        SignalKind::user_defined1(),
        SignalKind::user_defined2(),
    ];
    let (sender, receiver) = mpsc::channel(16);
    for kind in kinds {
        let mut arrived = signal(kind)?;
        let sender = sender.clone();
        tokio::spawn(async move { while arrived.recv().await.is_some() && sender.send(kind).await.is_ok() {} });
    }
    Ok(receiver)
}

/// Waits for the end and passes signals on. As process 1 the program sees only those that it handles; the second Ctrl-C
/// therefore kills it.
async fn follow(
    running: &mut Running,
    signals: &mut mpsc::Receiver<SignalKind>,
) -> Result<ExitStatus, executor::Error> {
    let mut interrupted = false;
    loop {
        let signal = tokio::select! {
            status = running.wait() => return status,
            Some(signal) = signals.recv() => signal,
        };
        if signal == SignalKind::interrupt() && std::mem::replace(&mut interrupted, true) {
            running.kill()?;
        } else {
            running.signal(signal.as_raw_value())?;
        }
    }
}
