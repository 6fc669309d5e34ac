//! Layers joined by fuse-overlayfs, where the kernel joins none: a process that answers for the file system of one step.
//!
//! The file system is mounted here and nowhere attached; the program gets the connection to it, which it takes by the name of a
//! descriptor. It ends when the last view of the file system is gone, and has then written all that there is to write. Like
//! the steps it is a child of the launcher, and ends with it at the latest.

use std::collections::VecDeque;
use std::ffi::CString;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{Mode, OFlags};
use rustix::io::{Errno, FdFlags};
use rustix::process::Signal;
use sys::mount::{Attributes, FileSystem};
use sys::namespace::Namespaces;
use sys::process::Cloned;
use sys::{Named, fd, file, process};

use crate::error::{Doing, Error};
use crate::spec::{Overlay, Process, Root, Source};

/// How long a program may take to write what is left when its file system is gone, and to answer in a trial.
const PATIENCE: Timespec = Timespec { tv_sec: 20, tv_nsec: 0 };

/// The process of one file system.
#[derive(Debug)]
pub(crate) struct Server {
    pid: i32,
    pidfd: OwnedFd,
}

/// All file systems of a step that want one, mounted: in the order in which the step needs them.
pub(crate) fn serve(process: &Process) -> Result<(VecDeque<OwnedFd>, Vec<Server>), Error> {
    let root = match &process.root {
        Root::Served { overlay, program } => Some((overlay, program)),
        _ => None,
    };
    let sources = process.mounts.iter().filter_map(|mount| match &mount.source {
        Source::Served { overlay, program, .. } => Some((overlay, program)),
        _ => None,
    });
    let (mut mounts, mut servers) = (VecDeque::new(), Vec::new());
    for (overlay, program) in root.into_iter().chain(sources) {
        let (mount, server) = start(overlay, program).doing("join layers by fuse-overlayfs")?;
        mounts.push_back(mount);
        servers.push(server);
    }
    Ok((mounts, servers))
}

fn start(overlay: &Overlay, program: &Path) -> sys::Result<(OwnedFd, Server)> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    let connection =
        rustix::fs::open(c"/dev/fuse", flags, Mode::empty()).call(|| "open(\"/dev/fuse\", O_RDWR)".to_owned())?;
    let fuse = FileSystem::open_named("fuse", "fuse-overlayfs")?;
    fuse.string("fd", &connection.as_raw_fd().to_string())?;
    fuse.string("rootmode", "40000")?;
    fuse.string("user_id", "0")?;
    fuse.string("group_id", "0")?;
    fuse.flag("allow_other")?;
    fuse.flag("default_permissions")?;
    let mount = fuse.mount(Attributes::empty())?;
    match process::clone(Namespaces::NONE, None)? {
        Cloned::Child => {
            drop(mount);
            let Err(_) = execute(overlay, program, &connection);
            process::exit(1)
        }
        Cloned::Parent { pid, pidfd } => Ok((mount, Server { pid, pidfd })),
    }
}

/// Directories are named by descriptor, as their own names may hold what separates options.
fn execute(overlay: &Overlay, program: &Path, connection: &OwnedFd) -> sys::Result<std::convert::Infallible> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .call(|| "prctl(PR_SET_PDEATHSIG, SIGKILL)".to_owned())?;
    process::reset_signals()?;
    fd::close_on_exec_from(3)?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    let open =
        |path: &Path| rustix::fs::open(path, flags, Mode::empty()).call(|| format!("open({path:?}, O_DIRECTORY)"));
    let name = |fd: &OwnedFd| format!("/proc/self/fd/{}", fd.as_raw_fd());
    let lowers = overlay.lowers.iter().map(|path| open(path)).collect::<sys::Result<Vec<_>>>()?;
    let mut options = format!("lowerdir={}", lowers.iter().map(name).collect::<Vec<_>>().join(":"));
    let changes = match &overlay.changes {
        Some(changes) => Some((open(&changes.upper)?, open(&changes.work)?)),
        None => None,
    };
    if let Some((upper, work)) = &changes {
        options += &format!(",upperdir={},workdir={},volatile", name(upper), name(work));
    }
    rustix::io::fcntl_setfd(connection, FdFlags::empty()).call(|| "fcntl(/dev/fuse, F_SETFD, 0)".to_owned())?;
    let null_byte = |_| sys::Error::new("fuse-overlayfs with a null byte in its arguments", Errno::INVAL);
    let place = format!("/dev/fd/{}", connection.as_raw_fd());
    let arguments = ["fuse-overlayfs", "-f", "-o", &options, &place].map(CString::new);
    let arguments = arguments.into_iter().collect::<Result<Vec<_>, _>>().map_err(null_byte)?;
    let program = CString::new(program.as_os_str().as_bytes()).map_err(null_byte)?;
    process::execute(&program, &arguments, &[])
}

impl Server {
    /// Waits until it has written everything and ended, which it does when nobody sees its file system any more.
    pub(crate) fn finish(self) {
        if !self.ended_within(&PATIENCE) {
            process::signal(&self.pidfd, libc::SIGKILL).ok();
            rustix::event::poll(&mut [PollFd::new(&self.pidfd, PollFlags::IN)], None).ok();
        }
        process::reap(self.pid).ok();
    }

    fn ended_within(&self, patience: &Timespec) -> bool {
        matches!(rustix::event::poll(&mut [PollFd::new(&self.pidfd, PollFlags::IN)], Some(patience)), Ok(1..))
    }
}

/// Does what steps do, on layers made for it: removes a file and a directory, and makes another in its place. In a process of its
/// own, for who waits for a file system whose program hangs, hangs too.
pub(crate) fn try_out(overlay: &Overlay, program: &Path) -> sys::Result<()> {
    let (mount, server) = start(overlay, program)?;
    let tried = match process::clone(Namespaces::NONE, None)? {
        Cloned::Child => {
            let code = use_it(&mount).err().and_then(|error| error.raw_os_error()).unwrap_or(0);
            process::exit(code)
        }
        Cloned::Parent { pid, pidfd } => {
            drop(mount);
            let user = Server { pid, pidfd };
            if !user.ended_within(&PATIENCE) {
                // It waits for an answer that comes when there is nobody left to give it.
                process::signal(&server.pidfd, libc::SIGKILL).ok();
                process::signal(&user.pidfd, libc::SIGKILL).ok();
            }
            rustix::event::poll(&mut [PollFd::new(&user.pidfd, PollFlags::IN)], None).ok();
            process::reap(user.pid)?.and_then(|ended| ended.code)
        }
    };
    server.finish();
    match tried {
        Some(0) => Ok(()),
        Some(code) => Err(sys::Error::new("remove and replace files in a trial", Errno::from_raw_os_error(code))),
        None => Err(sys::Error::new("wait for an answer in a trial", Errno::TIMEDOUT)),
    }
}

fn use_it(mount: &OwnedFd) -> std::io::Result<()> {
    file::unlink(mount, b"file")?;
    file::remove_all(mount, b"directory")?;
    file::mkdir(mount, b"directory", 0o755)?;
    let inner = file::open_dir(mount, b"directory")?;
    if rustix::fs::Dir::read_from(&inner)?.flatten().any(|entry| entry.file_name() == c"inner") {
        return Err(Errno::EXIST.into());
    }
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    let changed = rustix::fs::openat(mount, c"changed", flags, Mode::empty())?;
    std::io::Write::write_all(&mut std::fs::File::from(changed), b"upper")
}
