//! A small file system in memory that exists only while a step is set up: mounts are attached to it before they go to their
//! places, and files in memory are made in it. It is left behind with the host's root.

use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{FileType, Mode, OFlags};
use sys::mount::{Attributes, FileSystem};
use sys::{Named, mount};

use super::write_file;
use crate::error::{Doing, Error};

pub(super) struct Scratch {
    directory: OwnedFd,
    names: u32,
    served: VecDeque<OwnedFd>,
}

impl Scratch {
    /// `served` are layers that a program joins, in the order in which they will be asked for.
    pub(super) fn new(served: &VecDeque<OwnedFd>) -> Result<Self, Error> {
        let make = || {
            let tmpfs = FileSystem::open("tmpfs")?;
            tmpfs.string("mode", "0700")?;
            let directory = tmpfs.mount(Attributes::empty())?;
            // Attached on top of the host's root, where nobody looks: some things cannot be done to a detached mount.
            let root = super::open_host(std::path::Path::new("/"))?;
            mount::attach(&directory, &root)?;
            Ok(directory)
        };
        let served = served.iter().map(|fd| fd.try_clone().call(|| "fcntl(F_DUPFD_CLOEXEC)".to_owned()));
        let action = "make a file system in memory";
        let served = served.collect::<sys::Result<_>>().doing(action)?;
        Ok(Self { directory: make().doing(action)?, names: 0, served })
    }

    /// The next of the layers that a program joins.
    pub(super) fn next_served(&mut self) -> sys::Result<OwnedFd> {
        self.served.pop_front().ok_or_else(|| sys::Error::new("take the next joined layers", rustix::io::Errno::NOENT))
    }

    fn name(&mut self) -> String {
        self.names += 1;
        self.names.to_string()
    }

    /// A new directory to mount on. To see what was mounted there, it is opened again by [`Scratch::reopen`].
    pub(super) fn mount_point(&mut self) -> sys::Result<(String, OwnedFd)> {
        let name = self.name();
        rustix::fs::mkdirat(&self.directory, &*name, Mode::from_raw_mode(0o755))
            .call(|| format!("mkdirat(scratch, {name:?}, 0755)"))?;
        let place = self.reopen(&name)?;
        Ok((name, place))
    }

    /// What is at a name now.
    pub(super) fn reopen(&self, name: &str) -> sys::Result<OwnedFd> {
        rustix::fs::openat(&self.directory, name, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
            .call(|| format!("openat(scratch, {name:?}, O_PATH)"))
    }

    /// Attaches a detached mount somewhere, so that parts of it can be copied.
    pub(super) fn attach(&mut self, tree: impl AsFd) -> sys::Result<()> {
        let (_, place) = self.mount_point()?;
        mount::attach(tree, place)
    }

    /// A detached mount of a new file in memory.
    pub(super) fn file(&mut self, content: &[u8], mode: u32, owner: (u32, u32)) -> sys::Result<OwnedFd> {
        let name = self.name();
        let file = write_file(self.directory.as_fd(), &name, content, 0o600)?;
        let (uid, gid) = (rustix::fs::Uid::from_raw(owner.0), rustix::fs::Gid::from_raw(owner.1));
        if owner != (0, 0) {
            rustix::fs::fchown(&file, Some(uid), Some(gid)).call(|| format!("fchown({name:?}, {owner:?})"))?;
        }
        // After the change of owner, which takes setuid bits away.
        rustix::fs::fchmod(&file, Mode::from_raw_mode(mode)).call(|| format!("fchmod({name:?}, {mode:#o})"))?;
        drop(file);
        mount::copy_tree(&self.directory, &*name, false)
    }

    /// A detached mount of a new device node, which can be opened although what it will be mounted on refuses devices.
    pub(super) fn node(&mut self, kind: FileType, mode: u32, device: u64) -> sys::Result<OwnedFd> {
        let name = self.name();
        rustix::fs::mknodat(&self.directory, &*name, kind, Mode::from_raw_mode(mode), device)
            .call(|| format!("mknodat(scratch, {name:?}, {mode:#o}, {device:#x})"))?;
        mount::copy_tree(&self.directory, &*name, false)
    }

    /// A detached mount of a new, empty directory.
    pub(super) fn empty_directory(&mut self) -> sys::Result<OwnedFd> {
        let (_, place) = self.mount_point()?;
        mount::copy_tree(&place, c"", false)
    }
}
