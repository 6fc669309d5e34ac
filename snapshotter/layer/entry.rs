//! One path of a layer, and the order in which paths stand.

use std::cmp::Ordering;

use graph::ContentDigest;
use serde::{Deserialize, Serialize};

/// What stands at a path of a layer. Paths are bytes, relative to the root, without leading or trailing slash; the root is
/// the empty path.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Entry {
    /// Where.
    pub path: Vec<u8>,
    /// What.
    pub kind: EntryKind,
    /// Permission bits with setuid, setgid and sticky, `0o7777` at most.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Seconds and nanoseconds since 1970; seconds may be negative.
    pub mtime: (i64, u32),
    /// Extended attributes that [`keeps_xattr`] keeps, sorted by name.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// The kinds of things a layer can say about a path.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum EntryKind {
    /// A regular file.
    File {
        /// Length in bytes, holes included.
        size: u64,
        /// blake3 of the data.
        digest: ContentDigest,
        /// Where the data begin in the uncompressed tar; `None` where they are not contiguous (sparse members).
        offset: Option<u64>,
    },
    /// A directory.
    Dir {
        /// Hides whatever the layers below have in it.
        opaque: bool,
        /// Invented as the parent of something: the tar does not mention it, so owner, mode, times and attributes are
        /// those of the layers below.
        implicit: bool,
    },
    /// A symbolic link, its target verbatim.
    Symlink {
        /// As readlink gives it.
        target: Vec<u8>,
    },
    /// Another name of a file.
    Hardlink {
        /// Path of the file in the same layer; of a layer below only while the layer awaits its mending.
        target: Vec<u8>,
    },
    /// A character device other than the whiteout.
    CharDev {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A block device.
    BlockDev {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A named pipe.
    Fifo,
    /// The path does not exist, whatever the layers below have there.
    Whiteout,
}

impl Entry {
    /// An entry of root's with mtime 0 and no attributes.
    #[must_use]
    pub fn new(path: impl Into<Vec<u8>>, kind: EntryKind, mode: u32) -> Self {
        Self { path: path.into(), kind, mode, uid: 0, gid: 0, mtime: (0, 0), xattrs: Vec::new() }
    }

    /// A file of `size` bytes whose digest is not known yet: what [`super::LayerWriter::append_file`] wants when it is to
    /// compute it.
    #[must_use]
    pub fn file(path: impl Into<Vec<u8>>, size: u64, mode: u32) -> Self {
        Self::new(path, EntryKind::File { size, digest: ContentDigest::from_bytes([0; 32]), offset: None }, mode)
    }

    /// A directory as a tar mentions it.
    #[must_use]
    pub fn dir(path: impl Into<Vec<u8>>, mode: u32) -> Self {
        Self::new(path, EntryKind::Dir { opaque: false, implicit: false }, mode)
    }

    /// Whether it is a directory.
    #[must_use]
    pub const fn is_dir(&self) -> bool {
        matches!(self.kind, EntryKind::Dir { .. })
    }

    /// Whether it is a directory that the tar does not mention.
    #[must_use]
    pub const fn is_implicit(&self) -> bool {
        matches!(self.kind, EntryKind::Dir { implicit: true, .. })
    }

    /// Takes over owner, mode, mtime and attributes.
    pub fn copy_metadata(&mut self, from: &Self) {
        self.mode = from.mode;
        self.uid = from.uid;
        self.gid = from.gid;
        self.mtime = from.mtime;
        self.xattrs.clone_from(&from.xattrs);
    }
}

/// The order of a depth-first walk with sorted names: as bytes, but with the slash before everything else, so that a
/// directory's whole subtree follows it directly.
#[must_use]
pub fn cmp_paths(a: &[u8], b: &[u8]) -> Ordering {
    let common = common(a, b);
    match (a.get(common), b.get(common)) {
        (None, None) => Ordering::Equal,
        (None, Some(_)) => Ordering::Less,
        (Some(_), None) => Ordering::Greater,
        (Some(b'/'), Some(_)) => Ordering::Less,
        (Some(_), Some(b'/')) => Ordering::Greater,
        (Some(a), Some(b)) => a.cmp(b),
    }
}

/// Length of the beginning that both have. Paths of one layer share most of their bytes, hence the strides.
pub(crate) fn common(a: &[u8], b: &[u8]) -> usize {
    const STRIDE: usize = 32;
    let strides = a.chunks_exact(STRIDE).zip(b.chunks_exact(STRIDE)).take_while(|(a, b)| a == b).count();
    let start = strides * STRIDE;
    start + a[start..].iter().zip(&b[start..]).take_while(|(a, b)| a == b).count()
}

/// Longest path that a layer may have: as Linux, whose PATH_MAX counts the byte that ends it.
pub const MAX_PATH: usize = 4095;
/// Longest name of a file: as Linux.
pub const MAX_NAME: usize = 255;
/// The paths of all entries of a layer together. A few bytes of an archive can stand for thousands of directories, each of
/// which has a path of its own here.
pub const MAX_PATHS: u64 = 512 << 20;

/// What is wrong with the length of a path, if anything is. Depth needs no bound of its own: the path's is one.
#[must_use]
pub fn too_long(path: &[u8]) -> Option<&'static str> {
    if path.len() > MAX_PATH {
        return Some("a path may have 4095 bytes");
    }
    // Most paths are short as a whole.
    (path.len() > MAX_NAME && path.split(|&b| b == b'/').any(|name| name.len() > MAX_NAME))
        .then_some("a name may have 255 bytes")
}

/// Whether `path` is `dir` or lies in it.
#[must_use]
pub fn is_within(path: &[u8], dir: &[u8]) -> bool {
    dir.is_empty() || (path.starts_with(dir) && matches!(path.get(dir.len()), None | Some(b'/')))
}

/// Directory and last name: `a/b/c` is `a/b` and `c`. The root has neither.
#[must_use]
pub fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|&b| b == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (&[], path),
    }
}

/// `dir/name`, or `name` in the root.
#[must_use]
pub fn join(dir: &[u8], name: &[u8]) -> Vec<u8> {
    let mut path = Vec::with_capacity(dir.len() + name.len() + 1);
    path.extend_from_slice(dir);
    if !dir.is_empty() && !name.is_empty() {
        path.push(b'/');
    }
    path.extend_from_slice(name);
    path
}

/// The directories above `path`, outermost first: the root, `a`, `a/b` for `a/b/c`; none for the root.
pub fn ancestors(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    let root = (!path.is_empty()).then_some(&path[..0]);
    root.into_iter().chain(path.iter().enumerate().filter(|&(_, &b)| b == b'/').map(move |(slash, _)| &path[..slash]))
}

/// Makes a name relative to the root as every engine does: slashes at the ends and `.` vanish, `..` takes back the
/// name before it and stays in the root.
#[must_use]
pub fn clean(name: &[u8]) -> Vec<u8> {
    let mut path: Vec<u8> = Vec::with_capacity(name.len());
    for part in name.split(|&b| b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => path.truncate(path.iter().rposition(|&b| b == b'/').unwrap_or(0)),
            part => {
                if !path.is_empty() {
                    path.push(b'/');
                }
                path.extend_from_slice(part);
            }
        }
    }
    path
}

/// Whether an extended attribute belongs to an image: capabilities, POSIX ACLs and the user's own. Labels and
/// signatures of the host's security modules do not, nor does what overlayfs notes for itself.
#[must_use]
pub fn keeps_xattr(name: &[u8]) -> bool {
    matches!(name, b"security.capability" | b"system.posix_acl_access" | b"system.posix_acl_default")
        || (name.starts_with(b"user.") && !name.starts_with(b"user.overlay."))
}

/// A path for messages.
#[must_use]
pub(crate) fn show(path: &[u8]) -> String {
    format!("/{}", path.escape_ascii())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subtree_follows_its_directory() {
        let mut paths: Vec<&[u8]> = vec![b"a.b", b"a/z", b"a", b"a-b", b"a/b/c", b"", b"b", b"a/b", b"a/b.c"];
        paths.sort_by(|a, b| cmp_paths(a, b));
        let want: [&[u8]; 9] = [b"", b"a", b"a/b", b"a/b/c", b"a/b.c", b"a/z", b"a-b", b"a.b", b"b"];
        assert_eq!(paths, want);
    }

    #[test]
    fn names_are_cleaned_within_the_root() {
        for (name, want) in [
            ("", ""),
            ("./", ""),
            ("/", ""),
            ("../../etc/passwd", "etc/passwd"),
            ("/abs//x/", "abs/x"),
            ("a/./b/../c", "a/c"),
            ("a/../..", ""),
            ("...", "..."),
        ] {
            assert_eq!(clean(name.as_bytes()), want.as_bytes(), "{name}");
        }
    }

    #[test]
    fn ancestors_go_from_the_root_down() {
        let of = |path: &'static [u8]| ancestors(path).collect::<Vec<_>>();
        assert_eq!(of(b"a/b/c"), [&b""[..], b"a", b"a/b"]);
        assert_eq!(of(b"a"), [b""]);
        assert!(of(b"").is_empty());
    }

    #[test]
    fn which_attributes_are_kept() {
        for name in ["security.capability", "user.x", "user.overlayx", "system.posix_acl_default"] {
            assert!(keeps_xattr(name.as_bytes()), "{name}");
        }
        for name in ["security.selinux", "security.ima", "trusted.x", "trusted.overlay.opaque", "user.overlay.opaque"] {
            assert!(!keeps_xattr(name.as_bytes()), "{name}");
        }
    }
}
