//! Ctrl-C: once gives up what is under way and clears up, twice ends the process at once.
//!
//! The kernel's own answer to these signals is gone from the first time that one is listened to until the process ends, so what
//! listens stays as well: at no moment is a signal lost. Of what a process leaves that ends at once nothing needs it: the
//! launcher, whose end of the socket closes, kills the steps, and their mounts go with them.

use std::sync::{Mutex, Once, PoisonError};
use std::time::Duration;

use solver::Progress;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::report::EXIT_CANCELLED;

/// What takes longer to be cleared up is said to.
const PATIENCE: Duration = Duration::from_secs(1);

/// What a signal means now.
enum Meaning {
    /// The end: nothing is under way that would have to be cleared up.
    End,
    /// Giving up what is under way; the end the second time.
    Cancel(CancellationToken, Progress),
    /// What the program in the foreground makes of it.
    Program,
}

static MEANING: Mutex<Meaning> = Mutex::new(Meaning::End);

/// While it lives, signals mean something else.
#[must_use]
pub(super) struct Listening {
    /// What comes afterwards ends the process.
    ends: bool,
}

/// Has the first signal cancel, and a second one end the process.
pub(super) fn cancels(cancelled: &CancellationToken, progress: &Progress) -> Listening {
    begin(Meaning::Cancel(cancelled.clone(), progress.clone()));
    Listening { ends: true }
}

/// Leaves signals to the program in the foreground. One that was meant for it may be noticed when it has ended, and must not
/// take the place of its status.
pub(super) fn program() -> Listening {
    begin(Meaning::Program);
    Listening { ends: false }
}

impl Drop for Listening {
    fn drop(&mut self) {
        if self.ends {
            set(Meaning::End);
        }
    }
}

fn begin(meaning: Meaning) {
    static START: Once = Once::new();
    set(meaning);
    START.call_once(|| drop(tokio::spawn(listen())));
}

fn set(meaning: Meaning) {
    *MEANING.lock().unwrap_or_else(PoisonError::into_inner) = meaning;
}

async fn listen() {
    let kinds = [SignalKind::interrupt(), SignalKind::terminate()];
    // Where the kernel refuses, its own answer stays, which is the end.
    let Ok([mut interrupt, mut terminate]) = each(kinds) else { return };
    // With nohup the end of the terminal is none of ours.
    let mut hangup = if ignores_hangup() { None } else { signal(SignalKind::hangup()).ok() };
    loop {
        let hung_up = async {
            match &mut hangup {
                Some(hangup) => hangup.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hung_up => {}
        }
        match &*MEANING.lock().unwrap_or_else(PoisonError::into_inner) {
            Meaning::Cancel(cancelled, progress) if !cancelled.is_cancelled() => {
                cancelled.cancel();
                tokio::spawn(say_if_slow(progress.clone()));
            }
            Meaning::Cancel(..) | Meaning::End => std::process::exit(EXIT_CANCELLED.into()),
            Meaning::Program => {}
        }
    }
}

fn each(kinds: [SignalKind; 2]) -> std::io::Result<[Signal; 2]> {
    let [first, second] = kinds.map(signal);
    Ok([first?, second?])
}

/// As it was when the process began, so this is asked before anything listens.
fn ignores_hangup() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| u64::from_str_radix(line.strip_prefix("SigIgn:")?.trim(), 16).ok());
    let bit = SignalKind::hangup().as_raw_value() - 1;
    ignored.is_some_and(|ignored| ignored >> bit & 1 == 1)
}

async fn say_if_slow(progress: Progress) {
    tokio::time::sleep(PATIENCE).await;
    // Never completed: it is shown for as long as there is something to wait for.
    progress.vertex("[internal] cancelled, waits for what is under way: another Ctrl-C ends it at once").started();
}
