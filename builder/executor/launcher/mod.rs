//! The launcher as rbuild sees it: started once, then asked for steps.

mod gateway;
mod networks;
mod serve;
pub(crate) mod wire;

use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{Mode, OFlags};
use sys::fd::Standard;
use sys::mount::Attributes;
use sys::namespace::Namespaces;
use sys::process::Cloned;
use sys::{Named, fd, mount, process, socket};

use crate::emulation::{Emulation, Foreign};
use crate::error::Error;
use crate::machine::Fallbacks;
use crate::network::Subnet;
use crate::running::{Running, Stdio};
use crate::spec::{Overlay, Process};
use wire::{MAX_MESSAGE, PrivateNetwork, Request};

/// The name the launcher is executed under, by which [`Launcher::start`] knows that it is the launcher.
const NAME: &str = "rbuild-launcher";

/// A handle to the launcher. Clones share it; when the last is dropped, the launcher ends and every step with it.
#[derive(Debug, Clone)]
pub struct Launcher {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// `None` while it is being dropped, or if there is no launcher.
    socket: Option<OwnedFd>,
    /// The launcher's process.
    process: Option<(i32, OwnedFd)>,
    /// Whether steps get neither namespaces nor mounts.
    confined: bool,
    /// Whether it was told to begin.
    woken: AtomicBool,
    /// What the launcher said first, once somebody wanted to know.
    greeting: OnceLock<Result<(), Error>>,
    /// What it said about private networks.
    network: tokio::sync::OnceCell<PrivateNetwork>,
}

impl Launcher {
    /// Whether this process is to become the launcher: [`Launcher::start`] must then be called, and will not return.
    #[must_use]
    pub fn is_launcher() -> bool {
        std::env::args_os().next().is_some_and(|name| name == NAME || name == gateway::NAME)
    }

    /// Starts the launcher, and in the launcher itself, does its work and never returns.
    ///
    /// To be called first thing in `main`: the process must still have one thread and hold nothing a step may not have.
    pub fn start() -> Result<Self, Error> {
        Self::start_with(Fallbacks::default())
    }

    /// The same with old ways forced.
    pub fn start_with(fallbacks: Fallbacks) -> Result<Self, Error> {
        let mut arguments = std::env::args_os().map(|argument| argument.to_string_lossy().into_owned());
        match arguments.next().as_deref() {
            Some(NAME) => process::exit(serve::main(Fallbacks::parse(arguments))),
            Some(gateway::NAME) => process::exit(gateway::main()),
            _ => {}
        }
        Self::spawn(fallbacks).map_err(|error| Error::Launcher(error.into()))
    }

    /// In place of a launcher where there can be none: whoever wants a step is told why.
    #[must_use]
    pub fn none(why: Error) -> Self {
        Self {
            shared: Arc::new(Shared {
                socket: None,
                process: None,
                confined: false,
                woken: AtomicBool::new(true),
                greeting: OnceLock::from(Err(why)),
                network: Default::default(),
            }),
        }
    }

    fn spawn(fallbacks: Fallbacks) -> sys::Result<Self> {
        let (ours, theirs) = socket::pair()?;
        // A pid namespace of its own makes the kernel end every step when the launcher ends, however it ends.
        let namespaces = if fallbacks.confined { Namespaces::NONE } else { Namespaces::PID };
        match process::clone(namespaces, None)? {
            Cloned::Parent { pid, pidfd } => {
                drop(theirs);
                let shared = Shared {
                    socket: Some(ours),
                    process: Some((pid, pidfd)),
                    confined: fallbacks.confined,
                    woken: AtomicBool::new(false),
                    greeting: OnceLock::new(),
                    network: Default::default(),
                };
                Ok(Self { shared: Arc::new(shared) })
            }
            Cloned::Child => {
                drop(ours);
                if !wait_for_work(&theirs, fallbacks.confined) {
                    process::exit(0);
                }
                let error = become_launcher(&theirs, fallbacks);
                // rbuild reads it as the reason why there is no launcher.
                let text = format!("{}\0{}", error.errno().raw_os_error(), error.call());
                let text = &text.as_bytes()[..text.len().min(4096)];
                socket::send(&theirs, text, &[], true).ok();
                process::exit(1)
            }
        }
    }

    /// Has the launcher make itself ready, and does not wait for it: for who will soon want a step and has something else to do
    /// until then.
    pub fn wake(&self) {
        let Some(socket) = &self.shared.socket else { return };
        if !self.shared.woken.swap(true, Ordering::Relaxed) {
            // If it is gone, whoever waits for it will be told.
            socket::send(socket, wire::BEGIN, &[], true).ok();
        }
    }

    /// Waits until the launcher is ready for steps, or says why there is none.
    ///
    /// [`Launcher::start`] does not wait, because rbuild has other things to do meanwhile and may need no step at all; the first
    /// step asks by itself.
    pub fn check(&self) -> Result<(), Error> {
        self.wake();
        let greet = || self.shared.greet().map_err(|error| Error::Launcher(error.into()));
        self.shared.greeting.get_or_init(greet).clone()
    }

    /// Starts a step. Returns when its program is being executed, or with the reason why it is not.
    pub async fn run(&self, process: Process, io: Stdio) -> Result<Running, Error> {
        // The answer has long arrived, or arrives within milliseconds.
        self.check()?;
        let terminal = io.window_size();
        let request = wire::encode(&Request { process, terminal })?;
        let doing = |cause: sys::Error| Error::Sandbox { action: "ask for a step".to_owned(), cause: cause.into() };
        let request = fd::sealed_memory_file("step", &request).map_err(doing)?;
        let (control, their_control) = socket::pair().map_err(doing)?;
        let (report, their_report) = socket::pair().map_err(doing)?;
        {
            let mut descriptors = vec![request.as_fd(), their_control.as_fd(), their_report.as_fd()];
            descriptors.extend(io.descriptors());
            self.send(wire::RUN, &descriptors).await?;
        }
        // Only theirs may remain: the end of a socket is how either side learns that the other is gone.
        drop((request, their_control, their_report, io));
        Running::begin(control, report).await
    }

    /// Whether steps can have private networks here, and of which addresses. The first that asks waits until one was made and
    /// packets have passed through it; the others share the answer.
    pub async fn private_network(&self) -> Result<Subnet, Error> {
        let ask = || async {
            self.check()?;
            let answer = self.ask(wire::NETWORK, &[]).await?;
            wire::decode::<PrivateNetwork>(&answer)
        };
        let answer = self.shared.network.get_or_try_init(ask).await?;
        answer.clone().map_err(Error::Network)
    }

    /// How programs of another architecture can be run here. What is found out is kept.
    pub async fn emulation(&self, foreign: &Foreign) -> Result<Emulation, Error> {
        self.check()?;
        let doing =
            |cause: sys::Error| Error::Sandbox { action: "ask for an interpreter".to_owned(), cause: cause.into() };
        let question = fd::sealed_memory_file("foreign", &wire::encode(foreign)?).map_err(doing)?;
        let answer = self.ask(wire::EMULATE, &[question.as_fd()]).await?;
        wire::decode::<wire::Emulated>(&answer)?
    }

    /// Whether a program as fuse-overlayfs joins layers here. They must have a file `file`, a file `changed` and a directory
    /// `directory` with something in it called `inner`, which are changed.
    pub async fn try_served(&self, overlay: Overlay, program: PathBuf) -> Result<(), Error> {
        self.check()?;
        let doing = |cause: sys::Error| Error::Sandbox { action: "ask the launcher".to_owned(), cause: cause.into() };
        let question = wire::encode(&wire::TryServed { overlay, program })?;
        let question = fd::sealed_memory_file("served", &question).map_err(doing)?;
        let answer = self.ask(wire::SERVE, &[question.as_fd()]).await?;
        wire::decode::<wire::Served>(&answer)?
    }

    /// Sends a question with a socket for the answer before its other descriptors.
    async fn ask(&self, question: &[u8], descriptors: &[BorrowedFd<'_>]) -> Result<Vec<u8>, Error> {
        let doing = |cause: sys::Error| Error::Sandbox { action: "ask the launcher".to_owned(), cause: cause.into() };
        let (ours, theirs) = socket::pair().map_err(doing)?;
        let all: Vec<BorrowedFd<'_>> = std::iter::once(theirs.as_fd()).chain(descriptors.iter().copied()).collect();
        self.send(question, &all).await?;
        drop(all);
        drop(theirs);
        let answered = tokio::task::spawn_blocking(move || {
            let mut buffer = vec![0; MAX_MESSAGE];
            let length = socket::receive(&ours, &mut buffer, true)?.length;
            buffer.truncate(length);
            Ok(buffer)
        });
        let answer = answered.await.map_err(|_| Error::LauncherGone)?.map_err(doing)?;
        if answer.is_empty() { Err(Error::LauncherGone) } else { Ok(answer) }
    }

    async fn send(&self, message: &[u8], descriptors: &[BorrowedFd<'_>]) -> Result<(), Error> {
        let Some(socket) = &self.shared.socket else { return Err(Error::LauncherGone) };
        let mut pause = Duration::from_micros(200);
        loop {
            match socket::send(socket, message, descriptors, false) {
                Ok(()) => return Ok(()),
                // Dozens of requests are waiting to be read: the launcher is busy for a moment.
                Err(error) if error.errno() == rustix::io::Errno::AGAIN => {
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(Duration::from_millis(10));
                }
                Err(error) if matches!(error.errno(), rustix::io::Errno::PIPE | rustix::io::Errno::CONNRESET) => {
                    return Err(Error::LauncherGone);
                }
                Err(cause) => {
                    return Err(Error::Sandbox { action: "ask for a step".to_owned(), cause: cause.into() });
                }
            }
        }
    }

    /// Whether steps get neither namespaces nor mounts: they must then come one at a time, each with a root directory of its
    /// own, and what is mounted into it must be theirs alone.
    pub fn is_confined(&self) -> bool {
        self.shared.confined
    }

    /// The launcher's process id, for diagnostics.
    pub fn pid(&self) -> Option<i32> {
        self.shared.process.as_ref().map(|(pid, _)| *pid)
    }
}

impl Shared {
    /// Waits until the launcher's program runs, or reports why it does not.
    fn greet(&self) -> sys::Result<()> {
        let Some(socket) = &self.socket else { return Ok(()) };
        let mut buffer = [0; 4096];
        let length = socket::receive(socket, &mut buffer, true)?.length;
        match &buffer[..length] {
            b"ready" => Ok(()),
            failure => {
                let text = String::from_utf8_lossy(failure);
                let (errno, call) = text.split_once('\0').unwrap_or(("", "the launcher ended at once"));
                let errno = errno.parse().map_or(rustix::io::Errno::CHILD, rustix::io::Errno::from_raw_os_error);
                Err(sys::Error::new(call, errno))
            }
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let (Some(socket), Some((pid, pidfd))) = (self.socket.take(), &self.process) else { return };
        if !*self.woken.get_mut() {
            // It has begun nothing, and ends with the socket.
            return;
        }
        // It ends as soon as it sees the socket's end, and closes its own when there is nothing left of any step. Should it hang,
        // it is made to end.
        rustix::net::shutdown(&socket, rustix::net::Shutdown::Write).ok();
        let patience = Timespec { tv_sec: 5, tv_nsec: 0 };
        if !matches!(rustix::event::poll(&mut [PollFd::new(&socket, PollFlags::RDHUP)], Some(&patience)), Ok(1)) {
            process::signal(pidfd, libc::SIGKILL).ok();
            rustix::event::poll(&mut [PollFd::new(pidfd, PollFlags::IN)], Some(&patience)).ok();
        }
        process::reap(*pid).ok();
    }
}

/// In the fresh copy of rbuild: waits until a step is wanted, which in a build where nothing changed is never. False when rbuild
/// ended without.
fn wait_for_work(socket: &OwnedFd, confined: bool) -> bool {
    // A terminal's Ctrl-C is for rbuild, which decides what it means.
    rustix::process::setsid().ok();
    // Where there is no namespace, steps and what they leave have to be ended one by one: the end of rbuild is noticed by its socket.
    if !confined {
        rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL)).ok();
    }
    matches!(socket::receive(socket, &mut [0; 16], true), Ok(message) if message.length > 0)
}

/// In the fresh copy of rbuild: becomes the launcher, or returns why not.
fn become_launcher(socket: &OwnedFd, fallbacks: Fallbacks) -> sys::Error {
    match try_become_launcher(socket, fallbacks) {
        Err(error) => error,
    }
}

fn try_become_launcher(socket: &OwnedFd, fallbacks: Fallbacks) -> sys::Result<std::convert::Infallible> {
    let program = if fallbacks.confined {
        copied_program()?
    } else {
        let program = if fallbacks.copied_program { copied_program() } else { unwritable_program() }?;
        sys::namespace::unshare(Namespaces::MOUNT)?;
        mount::make_all_private()?;
        program
    };
    let null = rustix::fs::open(c"/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .call(|| "open(\"/dev/null\", O_RDWR)".to_owned())?;
    fd::set_standard(socket.as_fd(), Standard::Input)?;
    fd::set_standard(null.as_fd(), Standard::Output)?;
    fd::set_standard(null.as_fd(), Standard::Error)?;
    fd::close_on_exec_from(3)?;
    let arguments = std::iter::once(NAME).chain(fallbacks.arguments());
    let arguments: Vec<CString> = arguments.filter_map(|argument| CString::new(argument).ok()).collect();
    process::execute_descriptor(&program, &arguments, &[])
}

/// This program, opened so that whoever reaches it through /proc/self/exe cannot write it: a script in an image may name that
/// path as its interpreter, and would then run our program inside a step.
fn unwritable_program() -> sys::Result<OwnedFd> {
    let from_mount = |path: &Path| -> sys::Result<OwnedFd> {
        let tree = mount::copy_tree_at(path, false)?;
        mount::set_attributes(&tree, Attributes::MOUNT_ATTR_RDONLY, Attributes::empty(), false)?;
        Ok(tree)
    };
    let own = Path::new("/proc/self/exe");
    if let Ok(tree) = from_mount(own) {
        return Ok(tree);
    }
    // After a change of mount namespace the running program lies in a mount of the old one; its path may lead to the same file.
    if let Ok(path) = std::env::current_exe()
        && let (Ok(running), Ok(found)) = (rustix::fs::stat(own), rustix::fs::stat(&path))
        && (running.st_dev, running.st_ino) == (found.st_dev, found.st_ino)
        && let Ok(tree) = from_mount(&path)
    {
        return Ok(tree);
    }
    // Kernels before 5.12 cannot make the view read-only.
    copied_program()
}

/// A sealed copy of this program in memory, which costs some milliseconds.
fn copied_program() -> sys::Result<OwnedFd> {
    let content = std::fs::read("/proc/self/exe").call(|| "read(\"/proc/self/exe\")".to_owned())?;
    fd::sealed_memory_file(NAME, &content)
}
