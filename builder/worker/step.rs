//! One process of a step from its start to its end: what it prints, how long it may take, how it ended.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use executor::{ExitStatus, Launcher, Process, Running, Stdio, StepProcess};
use graph::ContentDigest;
use solver::{LogStream, RunContext, Usage};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::net::unix::pipe;

use super::mask::Mask;
use super::{StartFailure, WorkError};
use crate::resources::{self, Patience};

/// A step that did not end well.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StepFailure {
    /// The command line, as people read it.
    pub command: String,
    /// How it ended.
    pub ending: Ending,
    /// Where what it left is kept, for `rbuild shell`.
    pub kept: Option<ContentDigest>,
}

/// A step whose process has ended.
pub(super) struct Ran {
    /// What was made in its root only to be mounted on.
    pub(super) stubs: Vec<executor::Stub>,
    /// How it ended, if not well.
    pub(super) ending: Option<Ending>,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// With this status.
    Code(i32),
    /// By this signal.
    Signal(i32),
    /// By the kernel, for want of memory.
    OutOfMemory {
        /// Most that it used at once.
        peak: u64,
        /// What it was allowed.
        limit: Option<u64>,
    },
    /// By us, after so long.
    TooLong(Duration),
    /// By us, since it printed nothing for so long.
    Idle(Duration),
}

impl std::fmt::Display for StepFailure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "process {:?} did not complete successfully: ", self.command)?;
        match self.ending {
            Ending::Code(code) => write!(f, "exit code: {code}"),
            Ending::Signal(signal) => write!(f, "killed by signal {signal}"),
            Ending::OutOfMemory { peak, limit: Some(limit) } => {
                write!(f, "killed: out of memory, peak {} of {}", resources::shown(peak), resources::shown(limit))
            }
            Ending::OutOfMemory { peak, limit: None } => {
                write!(f, "killed: the machine is out of memory, peak {}", resources::shown(peak))
            }
            Ending::TooLong(after) => write!(f, "killed: it did not end within {after:?} (--step-timeout)"),
            Ending::Idle(after) => write!(f, "killed: it printed nothing for {after:?} (--idle-timeout)"),
        }
    }
}

/// Starts the process, passes on what it prints, and ends it when the build is given up or it takes too long.
pub(super) async fn run(
    launcher: &Launcher,
    context: &RunContext,
    process: Process,
    mask: Option<Arc<Mask>>,
    patience: Patience,
) -> Result<Ran, WorkError> {
    let command = process.args.join(" ");
    let memory = process.limits.memory;
    let started = |error| WorkError::Start(StartFailure { command: command.clone(), error, kept: None });
    let (stdio, stdout, stderr) = Stdio::piped().map_err(WorkError::Pipe)?;
    let mut running = launcher.run(process, stdio).await.map_err(started)?;
    let receiver =
        |pipe: std::io::PipeReader| pipe::Receiver::from_owned_fd(OwnedFd::from(pipe)).map_err(WorkError::Pipe);
    let heard = Arc::new(Heard::begin());
    let pumps = tokio::spawn(futures_util::future::join(
        pump(receiver(stdout)?, LogStream::Stdout, context.clone(), mask.clone(), Arc::clone(&heard)),
        pump(receiver(stderr)?, LogStream::Stderr, context.clone(), mask.clone(), Arc::clone(&heard)),
    ));
    let status = tokio::select! {
        status = running.wait() => status,
        () = context.cancelled.cancelled() => {
            end(&mut running).await;
            return Err(WorkError::Cancelled);
        }
        ending = heard.run_out(patience) => {
            let text = shown(&running.processes());
            let text = mask.map_or_else(|| text.clone().into_bytes(), |mask| mask.apply(text.as_bytes()));
            context.progress.log(LogStream::Stderr, text).await;
            end(&mut running).await;
            let _ = pumps.await;
            return Ok(Ran { stubs: running.stubs().to_vec(), ending: Some(ending) });
        }
    };
    let status = status.map_err(started)?;
    // Process 1 has ended, and with it everything that could still write.
    let _ = pumps.await;
    context.progress.used(usage(&status));
    Ok(Ran { stubs: running.stubs().to_vec(), ending: ending(&status, memory) })
}

/// Whatever it says, the step is gone when the launcher has seen it end.
async fn end(running: &mut Running) {
    let _ = running.kill();
    let _ = running.wait().await;
}

fn ending(status: &ExitStatus, limit: Option<u64>) -> Option<Ending> {
    if status.oom_killed && !status.success() {
        return Some(Ending::OutOfMemory { peak: status.usage.peak_memory, limit });
    }
    match (status.code, status.signal) {
        (_, Some(signal)) => Some(Ending::Signal(signal)),
        (Some(0), None) => None,
        (code, None) => Some(Ending::Code(code.unwrap_or(-1))),
    }
}

/// What runs in a step, as a table.
fn shown(processes: &[StepProcess]) -> String {
    let mut text = "the step's processes:\n    PID  PARENT STATE    MEMORY WAITS IN              COMMAND\n".to_owned();
    for process in processes {
        let StepProcess { pid, parent, state, memory, waits_in, command } = process;
        let waits_in = waits_in.as_deref().unwrap_or("-");
        let command: String = command.chars().map(|c| if c.is_control() { ' ' } else { c }).take(300).collect();
        text.push_str(&format!(
            "{pid:>7} {parent:>7} {state:<5} {:>9} {waits_in:<21} {command}\n",
            resources::shown(*memory)
        ));
    }
    text
}

/// When a step was last heard of.
struct Heard {
    began: Instant,
    /// Milliseconds after the beginning.
    last: AtomicU64,
}

impl Heard {
    fn begin() -> Self {
        Self { began: Instant::now(), last: AtomicU64::new(0) }
    }

    fn now(&self) {
        self.last.store(u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Waits until the step has used up the patience there is with it, for ever if there is no end to it.
    async fn run_out(&self, patience: Patience) -> Ending {
        loop {
            let total = patience.step.map(|limit| (limit.saturating_sub(self.began.elapsed()), Ending::TooLong(limit)));
            let silent = self.began.elapsed().saturating_sub(Duration::from_millis(self.last.load(Ordering::Relaxed)));
            let idle = patience.idle.map(|limit| (limit.saturating_sub(silent), Ending::Idle(limit)));
            let Some((left, ending)) = total.into_iter().chain(idle).min_by_key(|(left, _)| *left) else {
                return std::future::pending().await;
            };
            if left.is_zero() {
                return ending;
            }
            tokio::time::sleep(left).await;
        }
    }
}

/// Longest part of a line that is passed on at once.
const LINE_MAX: usize = 64 << 10;

/// Passes on whole lines as they come, and a last one without an end; secrets are masked.
async fn pump(
    mut from: impl AsyncRead + Unpin,
    stream: LogStream,
    context: RunContext,
    mask: Option<Arc<Mask>>,
    heard: Arc<Heard>,
) {
    let shown = |lines: Vec<u8>| match &mask {
        Some(mask) => mask.apply(&lines),
        None => lines,
    };
    let mut buffer = Vec::with_capacity(LINE_MAX);
    loop {
        match from.read_buf(&mut buffer).await {
            Ok(0) | Err(_) => break,
            Ok(_) => heard.now(),
        }
        let end = buffer.iter().rposition(|byte| matches!(byte, b'\n' | b'\r')).map(|at| at + 1);
        // A line that is cut keeps back what may be the beginning of a secret.
        let cut = || (buffer.len() >= LINE_MAX).then(|| mask.as_ref().map_or(buffer.len(), |mask| mask.cut(&buffer)));
        if let Some(end) = end.or_else(cut).filter(|end| *end > 0) {
            // What waits for the display takes no more room than its bytes.
            let lines = buffer[..end].to_vec();
            buffer.drain(..end);
            context.progress.log(stream, shown(lines)).await;
        }
    }
    if !buffer.is_empty() {
        context.progress.log(stream, shown(buffer)).await;
    }
}

fn usage(status: &ExitStatus) -> Usage {
    let executor::Usage { user, system, peak_memory, read, written, wall } = status.usage;
    Usage { cpu: user + system, peak_memory, read, written, wall }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_says_what_killed_the_step() {
        let failure = |ending| StepFailure { command: "make".into(), ending, kept: None }.to_string();
        let out_of_memory = failure(Ending::OutOfMemory { peak: 64 << 20, limit: Some(64 << 20) });
        assert!(out_of_memory.ends_with("killed: out of memory, peak 64MiB of 64MiB"), "{out_of_memory}");
        assert!(failure(Ending::Idle(Duration::from_secs(90))).ends_with("printed nothing for 90s (--idle-timeout)"));
    }

    #[tokio::test]
    async fn patience_runs_out_for_the_sooner_reason() {
        let (short, long) = (Duration::from_millis(5), Duration::from_secs(600));
        let heard = Heard::begin();
        let ending = heard.run_out(Patience { step: Some(short), idle: Some(long) }).await;
        assert_eq!(ending, Ending::TooLong(short));
        let ending = heard.run_out(Patience { step: Some(long), idle: Some(short) }).await;
        assert_eq!(ending, Ending::Idle(short));
    }
}
