//! Paths of the store, and whether a directory may be one.

use std::fs::{self, DirBuilder};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use graph::Digest;

use crate::StoreError;

/// Format of the directory; a store of a higher one is refused, one of a lower brought to this (`migrate.rs`).
pub(crate) const VERSION: u32 = 2;

/// Where a user's store is unless said otherwise: `/var/lib/rbuild` for root, `$XDG_DATA_HOME/rbuild` for others.
#[must_use]
pub fn default_root(is_root: bool, var: impl Fn(&str) -> Option<std::ffi::OsString>) -> Option<PathBuf> {
    if is_root {
        return Some("/var/lib/rbuild".into());
    }
    let set = |name: &str| var(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let base = set("XDG_DATA_HOME").or_else(|| Some(set("HOME")?.join(".local/share")))?;
    Some(base.join("rbuild"))
}

/// The paths below one root.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    pub(crate) root: PathBuf,
    /// What is there is of an earlier format.
    is_older: bool,
}

const VERSION_BEING_WRITTEN: &str = ".version-";

const DIRECTORIES: [&str; 13] = [
    "blobs/sha256",
    "snapshots",
    "plain",
    "indexes",
    "merged",
    "active",
    "ingest",
    "locks",
    "cache-mounts",
    "leases",
    "stat",
    "trash",
    "empty",
];

/// What lies in these has nothing to do with its neighbours.
const OF_STRANGERS: [&str; 2] = ["active", "cache-mounts"];

impl Layout {
    /// Makes the directories, and refuses a root that is not ours alone.
    pub(crate) fn open(root: &Path) -> Result<Self, StoreError> {
        // Not searchable by others: setuid programs lie in layers (CVE-2021-41091). Who builds owns the root, also as root of a
        // user namespace, and steps get their layers as mounts.
        let made = DirBuilder::new().recursive(true).mode(0o700).create(root);
        made.map_err(StoreError::io("create the store", root))?;
        let root = root.canonicalize().map_err(StoreError::io("open the store", root))?;
        check(&root)?;
        let mut layout = Self { root, is_older: false };
        let version = layout.version()?;
        let is_known = version.is_some();
        match version {
            None => layout.refuse_foreign()?,
            Some(version) => layout.is_older = version < VERSION,
        }
        // Versions before made it searchable by others. Where the mode cannot be changed, it was somebody's wish.
        if fs::metadata(&layout.root).is_ok_and(|metadata| metadata.mode() & 0o077 != 0) {
            let _ = fs::set_permissions(&layout.root, fs::Permissions::from_mode(0o700));
        }
        for directory in DIRECTORIES {
            let path = layout.root.join(directory);
            match DirBuilder::new().recursive(directory.contains('/')).mode(0o711).create(&path) {
                Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
                    return Err(StoreError::io("create", path)(error));
                }
                Ok(()) if OF_STRANGERS.contains(&directory) => spread(&path),
                _ => {}
            }
        }
        if !is_known {
            layout.write_version()?;
        }
        Ok(layout)
    }

    /// A directory that holds anything else is somebody's mistake on the command line: what is not ours would be swept away.
    fn refuse_foreign(&self) -> Result<(), StoreError> {
        for entry in fs::read_dir(&self.root).map_err(StoreError::io("read", &self.root))?.flatten() {
            let name = entry.file_name();
            // A process that died while it made the store may have left some of ours.
            let is_ours = name.to_str().is_some_and(|name| {
                name == "gate"
                    || name.starts_with(VERSION_BEING_WRITTEN)
                    || DIRECTORIES.iter().any(|ours| ours.split('/').next() == Some(name))
            });
            // What a faster process puts there comes after the version.
            if !is_ours && self.version()?.is_none() {
                return Err(StoreError::NotAStore {
                    path: self.root.clone(),
                    found: name.to_string_lossy().into_owned(),
                });
            }
        }
        Ok(())
    }

    /// The format that the directory says it has.
    fn version(&self) -> Result<Option<u32>, StoreError> {
        let path = self.root.join("version");
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(StoreError::io("read", path)(error)),
        };
        match text.trim().parse() {
            Ok(version @ 1..=VERSION) => Ok(Some(version)),
            // A file of ours that was damaged: the database has a version of its own, and this one is written anew.
            Err(_) | Ok(0) if self.database().is_file() && self.join("gate").is_file() => Ok(Some(0)),
            _ => {
                let found = text.trim().chars().take(20).collect();
                Err(StoreError::Version { path: self.root.clone(), found, known: VERSION })
            }
        }
    }

    /// All is as this version has it, from now on also for others.
    pub(crate) fn is_up_to_date(&self) -> Result<(), StoreError> {
        if self.is_older { self.write_version() } else { Ok(()) }
    }

    fn write_version(&self) -> Result<(), StoreError> {
        let path = self.root.join("version");
        let write = || -> std::io::Result<()> {
            // Not in ingest/, where others take what no lease owns for left over.
            let mut file = tempfile::Builder::new().prefix(VERSION_BEING_WRITTEN).tempfile_in(&self.root)?;
            writeln!(file, "{VERSION}")?;
            file.as_file().sync_all()?;
            file.persist(&path).map_err(|error| error.error)?;
            Ok(())
        };
        write().map_err(StoreError::io("write", &path))
    }

    pub(crate) fn blob(&self, digest: &Digest) -> PathBuf {
        self.root.join("blobs/sha256").join(digest.hex())
    }

    pub(crate) fn snapshot(&self, chain: &Digest) -> PathBuf {
        self.root.join("snapshots").join(chain.hex())
    }

    /// An unpacked layer without marks for overlays.
    pub(crate) fn plain(&self, chain: &Digest) -> PathBuf {
        self.root.join("plain").join(chain.hex())
    }

    pub(crate) fn index(&self, chain: &Digest) -> PathBuf {
        self.root.join("indexes").join(chain.hex())
    }

    pub(crate) fn merged(&self, chain: &Digest) -> PathBuf {
        self.root.join("merged").join(chain.hex())
    }

    pub(crate) fn database(&self) -> PathBuf {
        self.root.join("db.sqlite")
    }

    /// A copy of the database, made after a sync.
    pub(crate) fn backup(&self) -> PathBuf {
        self.root.join("db.backup")
    }

    /// Exists while the database is known to be damaged.
    pub(crate) fn damage_marker(&self) -> PathBuf {
        self.root.join("db.damaged")
    }

    pub(crate) fn join(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }
}

/// Asks an ext4 to put each directory made in this one elsewhere on the disk (`FS_TOPDIR_FL`, ioctl_iflags(2)): layers unpacked at
/// the same time do not wait for one block group, nor search the one where others were just removed. Other file systems know
/// of no such thing.
fn spread(directory: &Path) {
    let spread = fs::File::open(directory).and_then(|directory| {
        let flags = rustix::fs::ioctl_getflags(&directory)?;
        Ok(rustix::fs::ioctl_setflags(&directory, flags | rustix::fs::IFlags::TOPDIR)?)
    });
    // A hint, for speed alone.
    drop(spread);
}

fn check(root: &Path) -> Result<(), StoreError> {
    let metadata = fs::metadata(root).map_err(StoreError::io("open the store", root))?;
    let own = rustix::process::geteuid().as_raw();
    if metadata.uid() != own {
        return Err(StoreError::Owner { path: root.to_owned(), owner: metadata.uid(), own });
    }
    if metadata.mode() & 0o022 != 0 {
        return Err(StoreError::Writable { path: root.to_owned(), mode: metadata.mode() & 0o7777 });
    }
    let statfs = rustix::fs::statfs(root).map_err(|error| StoreError::io("examine", root)(error.into()))?;
    let magic = statfs.f_type as u64 & 0xffff_ffff;
    let kind = network_name(magic).map(str::to_owned).or_else(|| match magic {
        FUSE => served_from_afar(&fs::read_to_string("/proc/self/mountinfo").unwrap_or_default(), metadata.dev()),
        _ => None,
    });
    match kind {
        Some(kind) => Err(StoreError::Network { path: root.to_owned(), kind }),
        None => Ok(()),
    }
}

const FUSE: u64 = 0x6573_5546;

/// File systems by their magic numbers (statfs(2)) that several machines can see: flock and SQLite's WAL do not work between them,
/// or they do and one machine takes what another is about to make durable for what a crash has left.
fn network_name(magic: u64) -> Option<&'static str> {
    Some(match magic {
        0x6969 => "NFS",
        0xff53_4d42 => "CIFS",
        0xfe53_4d42 => "SMB2",
        0x517b => "SMB",
        0x564c => "NCP",
        0x7375_7245 => "Coda",
        0x5346_414f | 0x6b41_4653 => "AFS",
        0x00c3_6400 => "Ceph",
        0x0bd0_0bd0 => "Lustre",
        0x4750_4653 => "GPFS",
        0x1983_0326 => "BeeGFS",
        0x2003_0528 => "OrangeFS",
        0xaad7_aaea => "PanFS",
        0xbeef_dead => "StorNext",
        0x7461_636f => "OCFS2",
        0x0116_1970 => "GFS2",
        0x6163_6673 => "ACFS",
        // Folders of a host shared with its virtual machine: locks and shared memory do not reach the other side.
        0x0102_1997 => "9p",
        0xbacb_acbc => "vmhgfs",
        0x786f_4256 => "vboxsf",
        0x7c7c_6673 => "prl_fs",
        _ => return None,
    })
}

/// Programs that serve through FUSE what lies elsewhere, by the name that they mount it under.
const FROM_AFAR: [&str; 29] = [
    "afp",
    "beegfs",
    "blobfuse",
    "blobfuse2",
    "ceph",
    "ceph-fuse",
    "curlftpfs",
    "cvmfs2",
    "davfs",
    "ftpfs",
    "gcsfuse",
    "geesefs",
    "glusterfs",
    "goofys",
    "JuiceFS",
    "juicefs",
    "lizardfs",
    "mfs",
    "mfsmount",
    "moosefs",
    "mountpoint-s3",
    "rclone",
    "s3fs",
    "s3ql",
    "saunafs",
    "seaweedfs",
    "smbnetfs",
    "sshfs",
    "vmhgfs-fuse",
];

/// What serves the file system of this device through FUSE, if it brings it from another machine. Many do not: disks of other
/// systems and overlays are local.
fn served_from_afar(mountinfo: &str, device: u64) -> Option<String> {
    let number = format!("{}:{}", rustix::fs::major(device), rustix::fs::minor(device));
    mountinfo.lines().find_map(|line| {
        let (mount, filesystem) = line.split_once(" - ")?;
        let mut fields = filesystem.split(' ');
        let (kind, source) = (fields.next()?, fields.next()?);
        // Without a name of its own, a program is known by what it says to mount: `NAME`, `NAME#…`, `NAME:…`.
        let named = if kind == "fuse" { source.split(['#', ':']).next() } else { kind.strip_prefix("fuse.") };
        let program = named.filter(|program| FROM_AFAR.contains(program))?;
        (mount.split(' ').nth(2)? == number).then(|| format!("{program} through FUSE"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_that_others_write_is_refused() {
        let root = tempfile::tempdir().unwrap();
        fs::set_permissions(root.path(), fs::Permissions::from_mode(0o777)).unwrap();
        assert!(matches!(Layout::open(root.path()), Err(StoreError::Writable { .. })));
    }

    #[test]
    fn as_root_another_users_directory_is_refused() {
        let root = tempfile::tempdir().unwrap();
        std::os::unix::fs::chown(root.path(), Some(12345), None).expect("needs root");
        assert!(matches!(Layout::open(root.path()), Err(StoreError::Owner { owner: 12345, .. })));
    }

    #[test]
    fn a_store_that_others_could_search_is_closed() {
        let root = tempfile::tempdir().unwrap();
        Layout::open(root.path()).unwrap();
        fs::set_permissions(root.path(), fs::Permissions::from_mode(0o711)).unwrap();
        Layout::open(root.path()).unwrap();
        assert_eq!(fs::metadata(root.path()).unwrap().mode() & 0o7777, 0o700);
    }

    #[test]
    fn another_format_is_refused() {
        let root = tempfile::tempdir().unwrap();
        Layout::open(root.path()).unwrap();
        Layout::open(root.path()).unwrap();
        for other in ["999", "0", "", "two"] {
            fs::write(root.path().join("version"), format!("{other}\n")).unwrap();
            let error = Layout::open(root.path()).unwrap_err().to_string();
            assert!(error.contains(&format!("format {other}")), "{error}");
        }
        // It is damaged where the rest of a store is there.
        for name in ["db.sqlite", "gate"] {
            fs::write(root.path().join(name), "").unwrap();
        }
        Layout::open(root.path()).unwrap().is_up_to_date().unwrap();
        assert_eq!(fs::read_to_string(root.path().join("version")).unwrap(), format!("{VERSION}\n"));
        fs::write(root.path().join("version"), "999\n").unwrap();
        assert!(Layout::open(root.path()).is_err());
    }

    #[test]
    fn a_directory_with_other_things_is_refused() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("thesis.tex"), "").unwrap();
        let error = Layout::open(root.path()).unwrap_err().to_string();
        assert!(error.contains("thesis.tex"), "{error}");
    }

    #[test]
    fn network_file_systems_are_known() {
        // As linux/magic.h and the programs' own headers have them; statfs gives them as signed words on some machines.
        let far = [
            (0x6969, "NFS"),
            (0xff53_4d42_u32, "CIFS"),
            (0xfe53_4d42, "SMB2"),
            (0x517b, "SMB"),
            (0x564c, "NCP"),
            (0x7375_7245, "Coda"),
            (0x5346_414f, "AFS"),
            (0x6b41_4653, "AFS"),
            (0x00c3_6400, "Ceph"),
            (0x0bd0_0bd0, "Lustre"),
            (0x4750_4653, "GPFS"),
            (0x1983_0326, "BeeGFS"),
            (0x2003_0528, "OrangeFS"),
            (0xaad7_aaea, "PanFS"),
            (0xbeef_dead, "StorNext"),
            (0x7461_636f, "OCFS2"),
            (0x0116_1970, "GFS2"),
            (0x6163_6673, "ACFS"),
            (0x0102_1997, "9p"),
            (0xbacb_acbc, "vmhgfs"),
            (0x786f_4256, "vboxsf"),
            (0x7c7c_6673, "prl_fs"),
        ];
        for (magic, name) in far {
            let extended = i64::from(magic.cast_signed()) as u64 & 0xffff_ffff;
            assert_eq!((network_name(magic.into()), network_name(extended)), (Some(name), Some(name)));
        }
        // ext4, XFS, btrfs, tmpfs, overlay, F2FS, ZFS, bcachefs, FUSE, ramfs.
        for magic in [
            0xef53,
            0x5846_5342,
            0x9123_683e,
            0x0102_1994,
            0x794c_7630,
            0xf2f5_2010,
            0x2fc1_2fc1,
            0xca45_1a4e,
            FUSE,
            0x8584_58f6,
        ] {
            assert_eq!(network_name(magic), None, "{magic:x}");
        }
    }

    #[test]
    fn of_what_fuse_serves_only_the_far_is_refused() {
        let mountinfo = "22 1 253:0 / / rw,relatime - ext4 /dev/vda rw\n\
                         63 22 0:39 / /home/me/far rw,nosuid - fuse.sshfs ann@far:/srv rw,user_id=1000\n\
                         64 22 0:40 / /data rw shared:3 - fuse.fuse-overlayfs fuse-overlayfs rw\n\
                         65 22 8:17 / /disk rw - fuseblk /dev/sdb1 rw\n\
                         66 22 0:41 / /mnt/a\\040b rw - fuse.s3fs s3fs rw\n\
                         67 22 0:42 / /any rw - fuse any rw\n\
                         68 22 0:43 / /s3 rw - fuse mountpoint-s3 rw\n\
                         69 22 0:44 / /old rw - fuse sshfs#ann@far:/srv rw\n\
                         broken\n";
        let found = |major, minor| served_from_afar(mountinfo, rustix::fs::makedev(major, minor));
        assert_eq!(found(0, 39).as_deref(), Some("sshfs through FUSE"));
        assert_eq!(found(0, 41).as_deref(), Some("s3fs through FUSE"));
        assert_eq!(found(0, 43).as_deref(), Some("mountpoint-s3 through FUSE"));
        assert_eq!(found(0, 44).as_deref(), Some("sshfs through FUSE"));
        for (major, minor) in [(0, 40), (8, 17), (0, 42), (253, 0), (0, 3), (0, 390)] {
            assert_eq!(found(major, minor), None, "{major}:{minor}");
        }
        assert!(FROM_AFAR.iter().all(|name| !name.contains([' ', '.'])));
    }

    #[test]
    fn the_default_depends_on_the_user() {
        let var = |name: &str| (name == "HOME").then(|| "/home/me".into());
        assert_eq!(default_root(true, var), Some("/var/lib/rbuild".into()));
        assert_eq!(default_root(false, var), Some("/home/me/.local/share/rbuild".into()));
        assert_eq!(default_root(false, |_| None), None);
    }
}
