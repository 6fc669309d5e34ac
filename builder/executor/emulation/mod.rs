//! Programs of other machines' kinds, run by an interpreter such as QEMU.
//!
//! How they can be run is tried, not read somewhere: the smallest program of a machine is executed where a step would be, with
//! nothing else in its root directory. Where the kernel knows what to do with it, by itself or because somebody registered an
//! interpreter for the whole machine, nothing has to be done. Otherwise an interpreter is registered in a user namespace of its
//! own (Linux 6.7), which steps enter when all that needs rights over the machine has been done; the machine notices nothing.
//!
//! Interpreters that the machine has registered are reachable by whoever runs under them, and root of the machine could write
//! them. As root, ours are therefore preferred: they are opened from a view that nobody can write.

mod programs;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use sys::mount::{Attributes, FileSystem};
use sys::namespace::{self, Namespaces};
use sys::process::Cloned;
use sys::{Named, fd, mount, process, socket};

use crate::error::Error;
use crate::machine::Machine as Abilities;
use crate::rootless;
use programs::Machine;

/// Whose programs a step runs, and what might interpret them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Foreign {
    /// As platforms have it: `arm64`.
    pub architecture: String,
    /// Programs to try, the best first.
    #[serde(with = "crate::spec::host_paths")]
    pub interpreters: Vec<PathBuf>,
}

impl Foreign {
    /// Programs of an architecture; interpreters are looked for in `directories`. `None` if nothing is known of it.
    #[must_use]
    pub fn find(architecture: &str, directories: &[PathBuf]) -> Option<Self> {
        let names = Machine::find(architecture)?.interpreters();
        let all = names.iter().flat_map(|name| directories.iter().map(move |directory| directory.join(name)));
        Some(Self { architecture: architecture.to_owned(), interpreters: all.filter(|path| path.is_file()).collect() })
    }

    /// Names of programs that interpret it, as distributions have them. They register them under these names, too.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        Machine::find(&self.architecture).map_or_else(Vec::new, |machine| machine.interpreters().to_vec())
    }

    /// All architectures that something is known of.
    pub fn architectures() -> impl Iterator<Item = &'static str> {
        Machine::all().map(Machine::name)
    }

    /// Whether this processor can run the architecture's programs by itself.
    #[must_use]
    pub fn is_ours(architecture: &str) -> bool {
        Machine::find(architecture).is_some_and(Machine::is_ours)
    }
}

/// How programs of another kind are run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Emulation {
    /// The kernel runs them, by itself or by what the machine has registered.
    Kernel,
    /// By this interpreter, registered for steps only: [`crate::Process::emulated`].
    Own {
        /// The host's path.
        interpreter: String,
    },
}

/// Where an interpreter is registered. It stays so while this lives.
#[derive(Debug)]
struct Registered {
    namespace: OwnedFd,
    /// With the last descriptor of the mount its registrations go.
    _mount: OwnedFd,
    interpreter: String,
}

/// Interpreters by architecture, found out once.
#[derive(Debug, Default)]
pub(crate) struct Emulators {
    known: BTreeMap<String, Result<Emulation, Error>>,
    registered: BTreeMap<String, Registered>,
}

impl Emulators {
    /// Finds out how programs of a kind can be run.
    pub(crate) fn find(&mut self, abilities: &Abilities, foreign: &Foreign) -> Result<Emulation, Error> {
        let name = &foreign.architecture;
        if let Some(known) = self.known.get(name) {
            return known.clone();
        }
        let found = self.look(abilities, foreign);
        self.known.insert(name.clone(), found.clone());
        found
    }

    /// The user namespace in which programs of this kind can be executed.
    pub(crate) fn namespace(&self, architecture: &str) -> Option<&OwnedFd> {
        self.registered.get(architecture).map(|registered| &registered.namespace)
    }

    fn look(&mut self, abilities: &Abilities, foreign: &Foreign) -> Result<Emulation, Error> {
        let name = &foreign.architecture;
        let failed = |why: String| Error::Emulation { architecture: name.clone(), why };
        let machine =
            Machine::find(name).ok_or_else(|| failed("there is nothing known of this architecture".to_owned()))?;
        let as_it_is = trial(machine, None, abilities);
        let harmless = machine.is_ours() || abilities.in_user_namespace || abilities.confined;
        if as_it_is.is_ok() && harmless {
            return Ok(Emulation::Kernel);
        }
        let why = match self.register(abilities, machine, &foreign.interpreters) {
            Ok(emulation) => return Ok(emulation),
            Err(why) => why,
        };
        as_it_is.map(|_| Emulation::Kernel).map_err(|_| failed(why))
    }

    fn register(
        &mut self,
        abilities: &Abilities,
        machine: &'static Machine,
        interpreters: &[PathBuf],
    ) -> Result<Emulation, String> {
        if interpreters.is_empty() {
            let [name, other] = machine.interpreters();
            return Err(format!("neither {name} nor {other} is installed"));
        }
        if abilities.confined {
            return Err("no interpreter can be registered without a user namespace".to_owned());
        }
        let mut reasons = Vec::new();
        for path in interpreters {
            for keeps_argument in [true, false] {
                let registered = match register(machine, path, keeps_argument) {
                    Ok(registered) => registered,
                    // The next interpreter would fare no better.
                    Err(error) => return Err(cannot_register(&error)),
                };
                match trial(machine, Some(&registered.namespace), abilities) {
                    Ok(Counted::Right) => {
                        let interpreter = registered.interpreter.clone();
                        self.registered.insert(machine.name().to_owned(), registered);
                        return Ok(Emulation::Own { interpreter });
                    }
                    // It does not know of the first argument's being kept, and takes it for the program.
                    Ok(Counted::Wrong) => {}
                    Err(error) if error.errno() == Errno::NOENT => {
                        reasons.push(format!("{} is not a static program", path.display()));
                        break;
                    }
                    Err(error) => reasons.push(format!("{} does not work: {error}", path.display())),
                }
            }
        }
        reasons.dedup();
        Err(reasons.join("; "))
    }
}

fn cannot_register(error: &sys::Error) -> String {
    let old = matches!(error.errno(), Errno::PERM | Errno::NODEV | Errno::INVAL);
    let hint = if old { " (Linux 6.7 is the first that permits it)" } else { "" };
    format!("no interpreter can be registered for steps alone{hint}: {error}")
}

/// What a program of a trial said.
#[derive(Debug, PartialEq, Eq)]
enum Counted {
    /// It was given the arguments that it should be.
    Right,
    /// It was given others.
    Wrong,
}

/// Executes the smallest program of a machine's kind where nothing else is to be found.
fn trial(machine: &Machine, namespace: Option<&OwnedFd>, abilities: &Abilities) -> sys::Result<Counted> {
    let (ours, theirs) = socket::pair()?;
    let namespaces = if abilities.confined { Namespaces::NONE } else { Namespaces::MOUNT };
    let pid = match process::clone(namespaces, None)? {
        Cloned::Child => {
            let error = match execute(machine, namespace, abilities) {
                Err(error) => error,
                Ok(never) => match never {},
            };
            socket::send(&theirs, &told(&error), &[], true).ok();
            process::exit(1)
        }
        Cloned::Parent { pid, pidfd } => {
            drop(theirs);
            rustix::event::poll(&mut [rustix::event::PollFd::new(&pidfd, rustix::event::PollFlags::IN)], None).ok();
            pid
        }
    };
    let ended = process::reap(pid)?;
    if abilities.confined {
        std::fs::remove_dir_all(trial_directory(pid.unsigned_abs())).ok();
    }
    let mut buffer = [0; 1024];
    let said = socket::receive(&ours, &mut buffer, true)?.length;
    if said > 0 {
        return Err(heard(&buffer[..said]));
    }
    match ended.and_then(|ended| ended.code) {
        Some(2) => Ok(Counted::Right),
        // A shell that takes it for a script, for one, says something else entirely.
        Some(3 | 4) => Ok(Counted::Wrong),
        _ => Err(sys::Error::new(format!("execute a program for {}", machine.name()), Errno::NOEXEC)),
    }
}

fn execute(
    machine: &Machine,
    namespace: Option<&OwnedFd>,
    abilities: &Abilities,
) -> sys::Result<std::convert::Infallible> {
    let directory = match abilities.confined {
        false => FileSystem::open("tmpfs")?.mount(Attributes::empty())?,
        true => {
            let path = trial_directory(std::process::id());
            std::fs::create_dir(&path).call(|| format!("mkdir({path:?})"))?;
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            rustix::fs::open(&path, flags, Mode::empty()).call(|| format!("open({path:?}, O_DIRECTORY)"))?
        }
    };
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let program = rustix::fs::openat(&directory, c"program", flags, Mode::from_raw_mode(0o755))
        .call(|| "openat(\"program\", O_CREAT | O_EXCL)".to_owned())?;
    File::from(program).write_all(&machine.program()).call(|| "write(\"program\")".to_owned())?;
    rustix::process::fchdir(&directory).call(|| "fchdir(trial)".to_owned())?;
    rustix::process::chroot(c".").call(|| "chroot(\".\")".to_owned())?;
    if let Some(namespace) = namespace {
        namespace::join_user(namespace)?;
    }
    fd::close_on_exec_from(3)?;
    let arguments = [c"a".to_owned(), c"b".to_owned()];
    process::execute(c"/program", &arguments, &[])
}

/// The root directory of a trial's process where nothing can be mounted.
fn trial_directory(pid: u32) -> PathBuf {
    std::env::temp_dir().join(format!("rbuild-trial-{pid}"))
}

/// Makes a user namespace with the ids that we have, and registers an interpreter in it.
fn register(machine: &Machine, interpreter: &Path, keeps_argument: bool) -> sys::Result<Registered> {
    // Whoever reaches the interpreter through a process that it runs shall not be able to write it.
    let view = mount::copy_tree_at(interpreter, false)?;
    mount::set_attributes(&view, Attributes::MOUNT_ATTR_RDONLY, Attributes::empty(), false)?;
    let (ours, theirs) = socket::pair()?;
    let pid = match process::clone(Namespaces::USER.with(Namespaces::MOUNT), None)? {
        Cloned::Child => {
            drop(ours);
            let sent = match register_inside(machine, &view, keeps_argument, &theirs) {
                Ok((mount, namespace)) => socket::send(&theirs, b"done", &[mount.as_fd(), namespace.as_fd()], true),
                Err(error) => socket::send(&theirs, &told(&error), &[], true),
            };
            process::exit(i32::from(sent.is_err()))
        }
        Cloned::Parent { pid, .. } => pid,
    };
    drop(theirs);
    let made = (|| {
        let mut buffer = [0; 1024];
        let message = socket::receive(&ours, &mut buffer, true)?;
        let Some(its_proc) = message.descriptors.first() else { return Err(heard(&buffer[..message.length])) };
        map_ids(its_proc)?;
        socket::send(&ours, b"mapped", &[], true)?;
        let message = socket::receive(&ours, &mut buffer, true)?;
        let mut descriptors = message.descriptors.into_iter();
        match (descriptors.next(), descriptors.next()) {
            (Some(mount), Some(namespace)) => {
                let interpreter = interpreter.display().to_string();
                Ok(Registered { namespace, _mount: mount, interpreter })
            }
            _ => Err(heard(&buffer[..message.length])),
        }
    })();
    drop(ours);
    while matches!(process::reap(pid), Ok(None)) {
        std::thread::yield_now();
    }
    made
}

/// In the new namespace.
fn register_inside(
    machine: &Machine,
    interpreter: &OwnedFd,
    keeps_argument: bool,
    launcher: &OwnedFd,
) -> sys::Result<(OwnedFd, OwnedFd)> {
    // Its number in the launcher's /proc is one of another namespace; its own entry there is always right.
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let own =
        rustix::fs::open(c"/proc/self", flags, Mode::empty()).call(|| "open(\"/proc/self\", O_PATH)".to_owned())?;
    socket::send(launcher, b"here", &[own.as_fd()], true)?;
    let mut buffer = [0; 16];
    if socket::receive(launcher, &mut buffer, true)?.length == 0 {
        return Err(sys::Error::new("wait for the maps of ids", Errno::PIPE));
    }
    let mount = FileSystem::open("binfmt_misc")?
        .mount(Attributes::MOUNT_ATTR_NOSUID | Attributes::MOUNT_ATTR_NODEV | Attributes::MOUNT_ATTR_NOEXEC)?;
    let path = format!("/proc/self/fd/{}", interpreter.as_raw_fd());
    let line = machine.registration("rbuild", &path, keeps_argument);
    let register = rustix::fs::openat(&mount, c"register", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())
        .call(|| "openat(binfmt_misc, \"register\", O_WRONLY)".to_owned())?;
    rustix::io::write(&register, line.as_bytes()).call(|| format!("write(binfmt_misc/register, {line:?})"))?;
    let namespace = File::open("/proc/self/ns/user").call(|| "open(\"/proc/self/ns/user\")".to_owned())?;
    Ok((mount, namespace.into()))
}

/// Every id that we have, as itself.
fn map_ids(its_proc: &OwnedFd) -> sys::Result<()> {
    for (own, map) in [("/proc/self/gid_map", "gid_map"), ("/proc/self/uid_map", "uid_map")] {
        let mut text = String::new();
        File::open(own).and_then(|mut file| file.read_to_string(&mut text)).call(|| format!("read({own:?})"))?;
        let lines = rootless::same_ids(&text);
        let file = rustix::fs::openat(its_proc, map, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())
            .call(|| format!("openat(/proc/PID, {map:?}, O_WRONLY)"))?;
        rustix::io::write(&file, lines.as_bytes()).call(|| format!("write({map:?}, {lines:?})"))?;
    }
    Ok(())
}

fn told(error: &sys::Error) -> Vec<u8> {
    let text = format!("{}\0{}", error.errno().raw_os_error(), error.call());
    text.into_bytes().into_iter().take(1000).collect()
}

fn heard(message: &[u8]) -> sys::Error {
    let text = String::from_utf8_lossy(message);
    let (errno, call) = text.split_once('\0').unwrap_or(("", "register an interpreter"));
    sys::Error::new(call, errno.parse().map_or(Errno::IO, Errno::from_raw_os_error))
}
