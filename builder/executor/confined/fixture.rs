//! What is put into a root for the time of a step, and taken out again.
//!
//! All is done by handle: what the step does meanwhile to the names on the way can lead neither the putting nor the taking
//! astray. What was there before is moved aside and comes back.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RenameFlags, Timestamps};
use rustix::io::Errno;
use sys::path::Links;
use sys::{Named, file};

use crate::init::{Missing, Places, write_file};
use crate::spec::EtcFiles;
use crate::stubs::{Purpose, times_of};

/// Everything that was put in, in order.
pub(crate) struct Fixture {
    /// A directory on the root's file system that the step cannot reach.
    aside: PathBuf,
    moved: u32,
    put: Vec<Put>,
}

/// One thing that was put in.
struct Put {
    parent: OwnedFd,
    name: String,
    /// Where it is to go afterwards; otherwise it is removed.
    home: Option<(OwnedFd, String)>,
    /// What was in its place.
    before: Option<(OwnedFd, String)>,
    /// Of the directory, which is not to show that something was put into it.
    times: Timestamps,
}

impl Fixture {
    pub(super) fn new(aside: PathBuf) -> Self {
        Self { aside, moved: 0, put: Vec::new() }
    }

    /// The nodes that every program may use. Where none can be made, or opened since the file system refuses devices, an empty
    /// file has to do for /dev/null, and the rest is missing.
    pub(super) fn devices(&mut self, places: &mut Places<'_>) -> sys::Result<()> {
        let dev = places.standard_directory("dev")?;
        let dev = reopen(&dev)?;
        for (name, major, minor) in crate::init::NODES {
            let put = self.clear(clone(&dev)?, name)?;
            let mode = Mode::from_raw_mode(0o666);
            let usable = node(&put.parent, name, *major, *minor)?.is_none();
            if !usable {
                file::remove_all(&put.parent, name.as_bytes()).call(|| format!("unlink(/dev/{name})"))?;
                if *name == "null" {
                    drop(write_file(put.parent.as_fd(), name, b"", 0o666)?);
                }
            }
            if usable || *name == "null" {
                // The caller's umask was in the way.
                rustix::fs::chmodat(&put.parent, *name, mode, AtFlags::empty())
                    .call(|| format!("chmod(/dev/{name})"))?;
            }
            self.keep(put)?;
        }
        let shm = self.clear(dev, "shm")?;
        make_directory(&shm, 0o1777)?;
        self.keep(shm)
    }

    /// /etc/hosts and its like.
    pub(super) fn etc_files(&mut self, places: &mut Places<'_>, files: &EtcFiles) -> sys::Result<()> {
        let all = [("hosts", &files.hosts), ("resolv.conf", &files.resolv_conf), ("hostname", &files.hostname)];
        for (name, content) in all {
            let Some(content) = content else { continue };
            let put = self.place(places, &format!("/etc/{name}"))?;
            drop(write_file(put.parent.as_fd(), &put.name, content, 0o644)?);
            self.keep(put)?;
        }
        Ok(())
    }

    /// An empty directory.
    pub(super) fn directory(&mut self, places: &mut Places<'_>, path: &str, mode: u32) -> sys::Result<()> {
        let put = self.place(places, path)?;
        make_directory(&put, mode)?;
        self.keep(put)
    }

    /// Moves something in that is moved back afterwards: a file or directory of rbuild's own store, beneath `source`.
    pub(super) fn lend(
        &mut self,
        places: &mut Places<'_>,
        path: &str,
        source: &Path,
        selector: &str,
    ) -> sys::Result<()> {
        let (home, name) = locate(source, selector)?;
        let stat = rustix::fs::statat(&home, &*name, AtFlags::SYMLINK_NOFOLLOW)
            .call(|| format!("stat({source:?}, {selector:?})"))?;
        if !matches!(FileType::from_raw_mode(stat.st_mode), FileType::Directory | FileType::RegularFile) {
            return Err(sys::Error::new(format!("move {source:?} into the root"), Errno::OPNOTSUPP));
        }
        let mut put = self.place(places, path)?;
        rustix::fs::renameat_with(&home, &*name, &put.parent, &*put.name, RenameFlags::NOREPLACE)
            .call(|| format!("renameat({source:?}, {path:?})"))?;
        put.home = Some((home, name));
        self.keep(put)
    }

    /// A free place at a path in the root: the way to it is made, and what is there moves aside.
    fn place(&mut self, places: &mut Places<'_>, path: &str) -> sys::Result<Put> {
        let (parent, name) = path.trim_end_matches('/').rsplit_once('/').unwrap_or(("", path));
        if matches!(name, "" | "." | "..") {
            return Err(sys::Error::new(format!("mount on {path:?}"), Errno::INVAL));
        }
        let parent = if parent.is_empty() { "/" } else { parent };
        let parent = places.open_or_make(parent, Missing::StubDirectory(Purpose::Mount))?;
        self.clear(reopen(&parent)?, name)
    }

    fn clear(&mut self, parent: OwnedFd, name: &str) -> sys::Result<Put> {
        let times = times_of(&parent).call(|| format!("fstat(parent of {name:?})"))?;
        let before = match rustix::fs::statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => None,
            Err(errno) => return Err(errno).call(|| format!("stat({name:?})")),
            Ok(_) => {
                let aside = self.aside()?;
                self.moved += 1;
                let kept = self.moved.to_string();
                rustix::fs::renameat(&parent, name, &aside, &*kept)
                    .call(|| format!("renameat({name:?}, aside {kept})"))?;
                Some((aside, kept))
            }
        };
        Ok(Put { parent, name: name.to_owned(), home: None, before, times })
    }

    fn keep(&mut self, put: Put) -> sys::Result<()> {
        let set = rustix::fs::futimens(&put.parent, &put.times);
        let set = set.call(|| format!("futimens(parent of {:?})", put.name));
        self.put.push(put);
        set
    }

    fn aside(&self) -> sys::Result<OwnedFd> {
        match std::fs::create_dir(&self.aside) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
                return Err(error).call(|| format!("mkdir({:?})", self.aside));
            }
            _ => {}
        }
        open_directory(&self.aside)
    }
}

impl Drop for Fixture {
    /// Takes everything out again, last first. What cannot be put back was taken away by the step itself.
    fn drop(&mut self) {
        while let Some(put) = self.put.pop() {
            let times = times_of(&put.parent);
            if let Some((home, name)) = &put.home {
                rustix::fs::renameat(&put.parent, &*put.name, home, &**name).ok();
            }
            file::remove_all(&put.parent, put.name.as_bytes()).ok();
            if let Some((aside, name)) = &put.before {
                rustix::fs::renameat(aside, &**name, &put.parent, &*put.name).ok();
            }
            if let Ok(times) = times {
                rustix::fs::futimens(&put.parent, &times).ok();
            }
        }
        std::fs::remove_dir(&self.aside).ok();
    }
}

/// Why steps in a chroot have no device nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoNodes {
    /// They must not be made: there is no CAP_MKNOD, or only that of a user namespace.
    Made,
    /// They must not be opened: the file system is mounted with nodev.
    Opened,
}

/// Tries in this directory whether steps whose roots lie there can have device nodes. `None`: they can.
pub fn nodes_in(directory: &Path) -> sys::Result<Option<NoNodes>> {
    let directory = open_directory(directory)?;
    let name = format!("node-{}", std::process::id());
    let (_, major, minor) = crate::init::NODES[0];
    let tried = node(&directory, &name, major, minor);
    file::remove_all(&directory, name.as_bytes()).call(|| format!("unlink({name:?})"))?;
    tried
}

/// Makes a node and opens it.
fn node(directory: &OwnedFd, name: &str, major: u32, minor: u32) -> sys::Result<Option<NoNodes>> {
    let device = rustix::fs::makedev(major, minor);
    match rustix::fs::mknodat(directory, name, FileType::CharacterDevice, Mode::from_raw_mode(0o666), device) {
        Err(Errno::PERM | Errno::ACCESS) => return Ok(Some(NoNodes::Made)),
        other => other.call(|| format!("mknodat({name:?}, {major}:{minor})"))?,
    }
    let flags = OFlags::RDONLY | OFlags::NOCTTY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let opened = rustix::fs::openat(directory, name, flags, Mode::empty());
    Ok(matches!(opened, Err(Errno::PERM | Errno::ACCESS)).then_some(NoNodes::Opened))
}

fn make_directory(put: &Put, mode: u32) -> sys::Result<()> {
    let mode = Mode::from_raw_mode(mode);
    rustix::fs::mkdirat(&put.parent, &*put.name, mode).call(|| format!("mkdirat({:?})", put.name))?;
    rustix::fs::chmodat(&put.parent, &*put.name, mode, AtFlags::empty()).call(|| format!("chmod({:?})", put.name))
}

/// The directory that holds what `selector` names beneath `source`, and its name there.
fn locate(source: &Path, selector: &str) -> sys::Result<(OwnedFd, String)> {
    let selector = selector.trim_matches('/');
    if matches!(selector, "" | ".") {
        let name = source.file_name().and_then(|name| name.to_str());
        let (Some(parent), Some(name)) = (source.parent(), name) else {
            return Err(sys::Error::new(format!("move {source:?}"), Errno::INVAL));
        };
        return Ok((open_directory(parent)?, name.to_owned()));
    }
    let root = open_directory(source)?;
    let (parent, name) = selector.rsplit_once('/').unwrap_or((".", selector));
    if matches!(name, "." | "..") {
        return Err(sys::Error::new(format!("move {selector:?}"), Errno::INVAL));
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    let parent = sys::path::open(root.as_fd(), parent.as_bytes(), Links::InRoot, flags, 0)
        .call(|| format!("openat2({source:?}, {parent:?}, RESOLVE_IN_ROOT)"))?;
    Ok((parent, name.to_owned()))
}

fn open_directory(path: &Path) -> sys::Result<OwnedFd> {
    rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .call(|| format!("open({path:?}, O_DIRECTORY)"))
}

fn reopen(directory: &OwnedFd) -> sys::Result<OwnedFd> {
    rustix::fs::openat(directory, c".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .call(|| "openat(\".\", O_RDONLY | O_DIRECTORY)".to_owned())
}

fn clone(fd: &OwnedFd) -> sys::Result<OwnedFd> {
    fd.try_clone().call(|| "fcntl(F_DUPFD_CLOEXEC)".to_owned())
}
