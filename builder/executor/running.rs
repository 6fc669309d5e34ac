//! A step that runs, as rbuild sees it.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use sys::{Named, socket};
use tokio::io::Interest;
use tokio::net::UnixStream;

use crate::error::Error;
use crate::launcher::wire::{self, MAX_MESSAGE, Order, Outcome, Report};
use crate::processes::StepProcess;
use crate::spec::WindowSize;
use crate::stubs::Stub;

/// What a step reads and writes.
#[derive(Debug)]
pub enum Stdio {
    /// Three descriptors, usually ends of pipes.
    Descriptors {
        /// Standard input.
        stdin: OwnedFd,
        /// Standard output.
        stdout: OwnedFd,
        /// Standard error.
        stderr: OwnedFd,
    },
    /// A terminal of the step's own; [`Running::terminal`] is its other side.
    Terminal(WindowSize),
}

impl Stdio {
    /// Nothing to read, and a pipe for both outputs, whose other end is returned.
    pub fn piped() -> std::io::Result<(Self, std::io::PipeReader, std::io::PipeReader)> {
        let (out_reader, out_writer) = std::io::pipe()?;
        let (err_reader, err_writer) = std::io::pipe()?;
        let io = Self::Descriptors {
            stdin: File::open("/dev/null")?.into(),
            stdout: out_writer.into(),
            stderr: err_writer.into(),
        };
        Ok((io, out_reader, err_reader))
    }

    /// Nothing to read, and output goes nowhere.
    pub fn null() -> std::io::Result<Self> {
        let null = File::options().read(true).write(true).open("/dev/null")?;
        Ok(Self::Descriptors { stdin: null.try_clone()?.into(), stdout: null.try_clone()?.into(), stderr: null.into() })
    }

    pub(crate) fn window_size(&self) -> Option<WindowSize> {
        match self {
            Self::Descriptors { .. } => None,
            Self::Terminal(size) => Some(*size),
        }
    }

    pub(crate) fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        match self {
            Self::Descriptors { stdin, stdout, stderr } => vec![stdin.as_fd(), stdout.as_fd(), stderr.as_fd()],
            Self::Terminal(_) => Vec::new(),
        }
    }
}

/// A started step. Dropping it kills the step.
#[derive(Debug)]
pub struct Running {
    control: UnixStream,
    report: UnixStream,
    terminal: Option<Terminal>,
    stubs: Vec<Stub>,
    pid_namespace: u64,
    ended: Option<ExitStatus>,
}

impl Running {
    /// Follows a step that was asked for until its program runs.
    pub(crate) async fn begin(control: OwnedFd, report: OwnedFd) -> Result<Self, Error> {
        // Tokio knows no sockets that keep message borders, but its streams leave the receiving to us.
        let register = |socket: OwnedFd| {
            let socket = std::os::unix::net::UnixStream::from(socket);
            let registered = socket.set_nonblocking(true).and_then(|()| UnixStream::from_std(socket));
            registered
                .call(|| "epoll_ctl(EPOLL_CTL_ADD)".to_owned())
                .map_err(|cause| Error::Sandbox { action: "watch a step".to_owned(), cause: cause.into() })
        };
        let mut running = Self {
            control: register(control)?,
            report: register(report)?,
            terminal: None,
            stubs: Vec::new(),
            pid_namespace: 0,
            ended: None,
        };
        running.wait_until_executed().await?;
        Ok(running)
    }

    async fn wait_until_executed(&mut self) -> Result<(), Error> {
        let mut prepared = false;
        while let Some((report, mut descriptors)) = receive::<Report>(&self.report).await? {
            match report {
                Report::Prepared { stubs, pid_namespace } => {
                    prepared = true;
                    self.pid_namespace = pid_namespace;
                    self.stubs = stubs;
                    self.terminal = descriptors.pop().map(Terminal);
                }
                Report::Failed(error) => {
                    // The process is ending; once it has, its mounts are gone and the caller can clean up.
                    let _ = receive::<Outcome>(&self.control).await;
                    return Err(error);
                }
            }
        }
        if prepared {
            return Ok(());
        }
        match receive::<Outcome>(&self.control).await? {
            Some((Outcome::Failed(error), _)) => Err(error),
            Some((Outcome::Ended(_), _)) => Err(Error::Killed),
            None => Err(Error::LauncherGone),
        }
    }

    /// Waits until the step's first process has ended, and with it all others and its mounts.
    pub async fn wait(&mut self) -> Result<ExitStatus, Error> {
        if let Some(status) = &self.ended {
            return Ok(status.clone());
        }
        let status = match receive::<Outcome>(&self.control).await? {
            Some((Outcome::Ended(status), _)) => status,
            Some((Outcome::Failed(error), _)) => return Err(error),
            None => return Err(Error::LauncherGone),
        };
        self.ended = Some(status.clone());
        Ok(status)
    }

    /// Kills the step and all its processes. [`Running::wait`] says when they are gone.
    pub fn kill(&self) -> Result<(), Error> {
        self.signal(libc::SIGKILL)
    }

    /// Sends a signal to the step's first process, which as process 1 only gets those it handles, and the fatal ones.
    pub fn signal(&self, signal: i32) -> Result<(), Error> {
        let order = wire::encode(&Order::Signal(signal))?;
        match socket::send(&self.control, &order, &[], true) {
            Ok(()) => Ok(()),
            // It has ended already.
            Err(error) if matches!(error.errno(), Errno::PIPE | Errno::CONNRESET) => Ok(()),
            Err(cause) => Err(Error::Sandbox { action: "signal a step".to_owned(), cause: cause.into() }),
        }
    }

    /// Its processes as they are now; none where the machine does not show them.
    pub fn processes(&self) -> Vec<StepProcess> {
        if self.pid_namespace == 0 { Vec::new() } else { crate::processes::of_namespace(self.pid_namespace) }
    }

    /// rbuild's side of the step's terminal, if it was given one.
    pub fn terminal(&self) -> Option<&Terminal> {
        self.terminal.as_ref()
    }

    /// Files and directories that were made in the root only to mount on them. They are not the step's doing and should not
    /// reach a layer: [`crate::stubs::remove`].
    pub fn stubs(&self) -> &[Stub] {
        &self.stubs
    }
}

/// Receives one message, or `None` at the socket's end.
async fn receive<T: serde::de::DeserializeOwned>(socket: &UnixStream) -> Result<Option<(T, Vec<OwnedFd>)>, Error> {
    let mut buffer = vec![0; MAX_MESSAGE];
    let received = socket
        .async_io(Interest::READABLE, || socket::receive(socket, &mut buffer, false).map_err(std::io::Error::from))
        .await;
    match received {
        Ok(message) if message.length == 0 => Ok(None),
        Ok(message) => Ok(Some((wire::decode(&buffer[..message.length])?, message.descriptors))),
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => Ok(None),
        Err(error) => Err(error)
            .call(|| "recvmsg()".to_owned())
            .map_err(|cause| Error::Sandbox { action: "hear from a step".to_owned(), cause: cause.into() }),
    }
}

/// rbuild's side of a step's terminal: what is written to it is typed, what is read was printed.
#[derive(Debug)]
pub struct Terminal(OwnedFd);

impl Terminal {
    /// Tells the step that its window has another size now.
    pub fn resize(&self, size: WindowSize) -> std::io::Result<()> {
        let size = rustix::termios::Winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 };
        Ok(rustix::termios::tcsetwinsize(&self.0, size)?)
    }

    /// A second descriptor for the same terminal, for whoever copies in the other direction.
    pub fn try_clone(&self) -> std::io::Result<OwnedFd> {
        self.0.try_clone()
    }

    /// Reads all that is printed until the step has ended, for which a terminal answers with an error.
    pub fn read_to_end(&self) -> std::io::Result<Vec<u8>> {
        let mut printed = Vec::new();
        match File::from(self.0.try_clone()?).read_to_end(&mut printed) {
            Err(error) if error.raw_os_error() != Some(libc::EIO) => Err(error),
            _ => Ok(printed),
        }
    }
}

impl AsFd for Terminal {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// How a step ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitStatus {
    /// The exit code of its first process, if it exited by itself.
    pub code: Option<i32>,
    /// The signal that ended it otherwise.
    pub signal: Option<i32>,
    /// Whether the kernel killed a process of it for want of memory.
    pub oom_killed: bool,
    /// What it used.
    pub usage: Usage,
}

impl ExitStatus {
    /// True for exit code 0.
    pub fn success(&self) -> bool {
        self.code == Some(0)
    }

    /// One number as a shell has it: the exit code, or 128 and the signal.
    pub fn shell_code(&self) -> i32 {
        self.code.or(self.signal.map(|signal| 128 + signal)).unwrap_or(-1)
    }
}

/// What a step used.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Processor time in user mode.
    pub user: Duration,
    /// Processor time in the kernel.
    pub system: Duration,
    /// Most memory in use at once, in bytes: of the whole step where a memory cgroup counted it, of its largest process otherwise.
    pub peak_memory: u64,
    /// Bytes that it made come from disks.
    pub read: u64,
    /// Bytes that it gave to disks; files in memory do not count.
    pub written: u64,
    /// From the start of its process to its end.
    pub wall: Duration,
}
