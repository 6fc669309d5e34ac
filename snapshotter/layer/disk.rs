//! The directory that a layer is unpacked into. It was empty and is ours, and what stands in it is known from
//! [`State`], so every call names an open directory and one name in it.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::rc::Rc;

use sys::file::{self, Node as Device};
use sys::xattr;

use super::apply::{ApplyOptions, Marks, Ownership};
use super::entry::{EntryKind, show};
use super::error::LayerError;
use super::state::{Meta, NodeId, NodeKind, ROOT, State};
use super::tree::Tree;

/// So many directories are kept open.
const MAX_OPEN: usize = 200;

pub(crate) struct Disk {
    root: Rc<OwnedFd>,
    open: HashMap<NodeId, Rc<OwnedFd>>,
    options: ApplyOptions,
    umask: u32,
    /// Whose the files are that we make.
    owner: (u32, u32),
    pub(crate) not_held: Vec<Vec<u8>>,
}

impl Disk {
    /// Takes over an empty directory.
    pub(crate) fn new(dest: &Path, options: ApplyOptions) -> Result<Self, LayerError> {
        let disk = Self::reopen(dest, options)?;
        // What lies in a setgid directory, or in one with a default ACL, would inherit from it.
        file::chmod(&*disk.root, 0o700).map_err(LayerError::io("chmod", b""))?;
        match rustix::fs::fremovexattr(&*disk.root, "system.posix_acl_default") {
            Ok(()) | Err(rustix::io::Errno::NODATA | rustix::io::Errno::OPNOTSUPP) => Ok(disk),
            Err(error) => Err(LayerError::io("removexattr", b"")(error.into())),
        }
    }

    /// Opens a directory that a layer was unpacked into.
    pub(crate) fn reopen(dest: &Path, options: ApplyOptions) -> Result<Self, LayerError> {
        let describe = |op| {
            let path = dest.display().to_string();
            move |source: std::io::Error| LayerError::Io { op, path, source }
        };
        let root = file::open_root(dest).map_err(describe("open"))?;
        let umask = file::umask().map_err(describe("umask"))?;
        let owner = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        Ok(Self { root: Rc::new(root), open: HashMap::new(), options, umask, owner, not_held: Vec::new() })
    }

    /// The directory itself.
    pub(crate) fn root(&self) -> &OwnedFd {
        &self.root
    }

    /// An open directory.
    fn dir(&mut self, state: &State<'_>, id: NodeId) -> Result<Rc<OwnedFd>, LayerError> {
        if id == ROOT {
            return Ok(Rc::clone(&self.root));
        }
        if let Some(fd) = self.open.get(&id) {
            return Ok(Rc::clone(fd));
        }
        let mut missing = vec![id];
        let mut up = state.node(id).parent;
        while up != ROOT && !self.open.contains_key(&up) {
            missing.push(up);
            up = state.node(up).parent;
        }
        let mut fd = if up == ROOT { Rc::clone(&self.root) } else { Rc::clone(&self.open[&up]) };
        for id in missing.into_iter().rev() {
            let next =
                file::open_dir(&*fd, &state.node(id).name).map_err(|e| LayerError::io("open", &state.path(id))(e))?;
            fd = Rc::new(next);
            if self.open.len() >= MAX_OPEN {
                self.open.clear();
            }
            self.open.insert(id, Rc::clone(&fd));
        }
        Ok(fd)
    }

    fn parent(&mut self, state: &State<'_>, id: NodeId) -> Result<Rc<OwnedFd>, LayerError> {
        self.dir(state, state.node(id).parent)
    }

    /// Makes a directory that only we can enter until [`Disk::finish`].
    pub(crate) fn make_dir(&mut self, state: &State<'_>, id: NodeId) -> Result<(), LayerError> {
        let dir = self.parent(state, id)?;
        file::mkdir(&*dir, &state.node(id).name, 0o700).map_err(|e| LayerError::io("mkdir", &state.path(id))(e))
    }

    /// Removes what a node put on the disk.
    pub(crate) fn remove(&mut self, state: &State<'_>, id: NodeId) -> Result<(), LayerError> {
        let node = state.node(id);
        if matches!(node.kind, NodeKind::Other(EntryKind::Whiteout | EntryKind::Hardlink { .. })) {
            return Ok(());
        }
        let dir = self.parent(state, id)?;
        file::remove_all(&*dir, &node.name).map_err(|e| LayerError::io("remove", &state.path(id))(e))
    }

    /// Makes an empty file to be filled and then given to [`Disk::describe_file`].
    pub(crate) fn create(
        &mut self,
        state: &State<'_>,
        dir: NodeId,
        name: &[u8],
        meta: &Meta,
    ) -> Result<File, LayerError> {
        let fd = self.dir(state, dir)?;
        file::create(&*fd, name, meta.mode & 0o777)
            .map_err(|e| LayerError::io("create", &super::join(&state.path(dir), name))(e))
    }

    /// Owner, mode, attributes and time of a file that is complete. `path` is for messages.
    pub(crate) fn describe_file(
        &mut self,
        file: &File,
        meta: &Meta,
        path: impl Fn() -> Vec<u8>,
    ) -> Result<(), LayerError> {
        let owned = self.options.ownership == Ownership::Keep && (meta.uid, meta.gid) != self.owner;
        if owned {
            file::chown(file, meta.uid, meta.gid).map_err(|e| LayerError::held("chown", &path())(e))?;
        }
        // Changing the owner takes setuid away, and the umask took its bits.
        if meta.mode & (0o7000 | self.umask) != 0 {
            file::chmod(file, meta.mode).map_err(|e| LayerError::held("chmod", &path())(e))?;
        }
        for (name, value) in &meta.xattrs {
            if let Err(error) = xattr::set(file, name, value) {
                self.not_held(error, &path())?;
            }
        }
        file::set_mtime(file, meta.mtime).map_err(|e| LayerError::io("utimens", &path())(e))
    }

    /// Describes a file anew by one of its names.
    pub(crate) fn describe_again(&mut self, state: &State<'_>, id: NodeId, meta: &Meta) -> Result<(), LayerError> {
        let dir = self.parent(state, id)?;
        if self.options.ownership == Ownership::Keep {
            // Its owner need not be us any more.
            file::chown_at(&*dir, &state.node(id).name, meta.uid, meta.gid)
                .map_err(|e| LayerError::held("chown", &state.path(id))(e))?;
        }
        self.describe_at(&dir, &state.node(id).name, meta, true, || state.path(id))
    }

    pub(crate) fn describe_at(
        &mut self,
        dir: &OwnedFd,
        name: &[u8],
        meta: &Meta,
        has_mode: bool,
        path: impl Fn() -> Vec<u8>,
    ) -> Result<(), LayerError> {
        if self.options.ownership == Ownership::Keep && (meta.uid, meta.gid) != self.owner {
            file::chown_at(dir, name, meta.uid, meta.gid).map_err(|e| LayerError::held("chown", &path())(e))?;
        }
        if has_mode {
            file::chmod_at(dir, name, meta.mode).map_err(|e| LayerError::held("chmod", &path())(e))?;
        }
        for (key, value) in &meta.xattrs {
            if let Err(error) = xattr::set_at(dir, name, key, value) {
                self.not_held(error, &path())?;
            }
        }
        file::set_mtime_at(dir, name, meta.mtime).map_err(|e| LayerError::io("utimens", &path())(e))
    }

    /// Gives the file at node `old` the name `name` in `dir`.
    pub(crate) fn link(&mut self, state: &State<'_>, old: NodeId, dir: NodeId, name: &[u8]) -> Result<(), LayerError> {
        let old_dir = self.parent(state, old)?;
        let new_dir = self.dir(state, dir)?;
        file::link(&*old_dir, &state.node(old).name, &*new_dir, name)
            .map_err(|e| LayerError::io("link", &super::join(&state.path(dir), name))(e))
    }

    /// Makes a symlink, device or pipe. Whiteouts are made at the end, as they may be replaced until then.
    pub(crate) fn make_other(&mut self, state: &State<'_>, id: NodeId) -> Result<(), LayerError> {
        let node = state.node(id);
        let NodeKind::Other(kind) = &node.kind else { return Ok(()) };
        let device = match *kind {
            EntryKind::CharDev { major: 0, minor: 0 } => {
                // On the disk it would be taken for a whiteout.
                let path = show(&state.path(id));
                return Err(LayerError::Unrepresentable { path, reason: "the device 0:0 stands for removed files" });
            }
            EntryKind::CharDev { major, minor } => Some(Device::Char { major, minor }),
            EntryKind::BlockDev { major, minor } => Some(Device::Block { major, minor }),
            EntryKind::Fifo => Some(Device::Fifo),
            EntryKind::Symlink { .. } => None,
            _ => return Ok(()),
        };
        let dir = self.parent(state, id)?;
        match (kind, device) {
            (EntryKind::Symlink { target }, _) => {
                file::symlink(target, &*dir, &node.name).map_err(|e| LayerError::io("symlink", &state.path(id))(e))?;
            }
            (_, Some(device)) => match file::mknod(&*dir, &node.name, device, 0o600) {
                // In a user namespace nobody can make devices: the index alone has them, and exports take them from there.
                Err(error) if error.raw_os_error() == Some(rustix::io::Errno::PERM.raw_os_error()) => {
                    self.not_held.push(state.path(id));
                    return Ok(());
                }
                made => made.map_err(|e| LayerError::held("mknod", &state.path(id))(e))?,
            },
            _ => {}
        }
        self.describe_at(&dir, &node.name, &node.meta, device.is_some(), || state.path(id))
    }

    /// Makes the whiteouts, then describes all directories, the deepest first: until now they were ours alone, and what
    /// was made in them changed their times.
    pub(crate) fn finish(&mut self, state: &State<'_>, cancelled: &dyn Fn() -> bool) -> Result<(), LayerError> {
        let mut dirs = vec![ROOT];
        let mut finger = state.tree().map(Tree::finger);
        state.walk(|id, path| {
            match &state.node(id).kind {
                NodeKind::Dir { .. } => dirs.push(id),
                // Overlayfs lists a whiteout that has nothing to hide, as a name without a file.
                NodeKind::Other(EntryKind::Whiteout)
                    if self.options.marks != Marks::None
                        && finger.as_mut().is_none_or(|finger| finger.lookup(path).is_some()) =>
                {
                    let dir = self.parent(state, id)?;
                    file::mknod(&*dir, &state.node(id).name, Device::WHITEOUT, 0o600)
                        .map_err(LayerError::held("mknod", path))?;
                }
                _ => {}
            }
            Ok(())
        })?;
        for id in dirs.into_iter().rev() {
            if cancelled() {
                return Err(LayerError::Cancelled);
            }
            let node = state.node(id);
            let fd = self.dir(state, id)?;
            if let NodeKind::Dir { opaque: true, .. } = node.kind
                && let Some(key) = opaque_key(self.options.marks)
            {
                xattr::set(&*fd, key, b"y").map_err(|e| LayerError::held("setxattr", &state.path(id))(e))?;
            }
            self.describe_dir(&fd, &node.meta, || state.path(id))?;
            self.open.remove(&id);
        }
        Ok(())
    }

    /// Owner, mode, attributes and time of a directory.
    pub(crate) fn describe_dir(
        &mut self,
        fd: &OwnedFd,
        meta: &Meta,
        path: impl Fn() -> Vec<u8>,
    ) -> Result<(), LayerError> {
        if self.options.ownership == Ownership::Keep {
            file::chown(fd, meta.uid, meta.gid).map_err(|e| LayerError::held("chown", &path())(e))?;
        }
        file::chmod(fd, meta.mode).map_err(|e| LayerError::held("chmod", &path())(e))?;
        for (name, value) in &meta.xattrs {
            if let Err(error) = xattr::set(fd, name, value) {
                self.not_held(error, &path())?;
            }
        }
        file::set_mtime(fd, meta.mtime).map_err(|e| LayerError::io("utimens", &path())(e))
    }

    /// An attribute could not be set. Where the file system or the user cannot have it, the index alone has it.
    fn not_held(&mut self, error: std::io::Error, path: &[u8]) -> Result<(), LayerError> {
        use rustix::io::Errno;
        match error.raw_os_error().map(Errno::from_raw_os_error) {
            Some(Errno::OPNOTSUPP | Errno::PERM | Errno::INVAL | Errno::ACCESS) => {
                if self.not_held.last().is_none_or(|last| last != path) {
                    self.not_held.push(path.to_vec());
                }
                Ok(())
            }
            _ => Err(LayerError::io("setxattr", path)(error)),
        }
    }
}

/// The attribute by which overlayfs knows opaque directories.
pub(crate) fn opaque_key(marks: Marks) -> Option<&'static [u8]> {
    match marks {
        Marks::Trusted => Some(b"trusted.overlay.opaque"),
        Marks::User => Some(b"user.overlay.opaque"),
        Marks::None => None,
    }
}
