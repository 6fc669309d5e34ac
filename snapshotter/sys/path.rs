//! Paths inside a root that others may have filled: resolved by handle, so that no symbolic link, `..` or magic link leads
//! out of it.
//!
//! The kernel does it in one call where openat2(2) exists (Linux 5.6) and is not filtered away; otherwise the path is walked
//! part by part. Both are tested against the same cases.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{self, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// As Linux: so many symbolic links may be followed in one look-up.
const MAX_LINKS: u32 = 40;

/// Set once openat2 turned out to be missing or forbidden.
static WALK: AtomicBool = AtomicBool::new(false);

/// What symbolic links may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Links {
    /// They lead where they would for a process whose root is the given directory.
    InRoot,
    /// There must be none, not even as the last part; nor may `..` leave the directory.
    Refuse,
}

/// Opens `path` beneath `root`. With [`OFlags::NOFOLLOW`] a symlink as last part is not followed ([`Links::InRoot`]), and
/// with [`OFlags::PATH`] as well it is opened itself. Descriptors are close-on-exec.
pub fn open(root: impl AsFd, path: &[u8], links: Links, flags: OFlags, mode: u32) -> io::Result<OwnedFd> {
    let root = root.as_fd();
    let flags = flags | OFlags::CLOEXEC;
    let path = if path.is_empty() { b"." } else { path };
    if !WALK.load(Ordering::Relaxed) {
        let resolve = match links {
            Links::InRoot => ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
            Links::Refuse => ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS,
        };
        // openat2, unlike openat, refuses a mode that would not be used.
        let made = if flags.intersects(OFlags::CREATE | OFlags::TMPFILE) { mode } else { 0 };
        loop {
            match fs::openat2(root, path, flags, Mode::from_raw_mode(made), resolve) {
                Ok(fd) => return Ok(fd),
                // Somebody renames directories meanwhile: the kernel asks for another try.
                Err(Errno::AGAIN | Errno::INTR) => {}
                // Old seccomp filters answer PERM for calls that they do not know. PERM may also be meant; walking says so.
                Err(Errno::NOSYS) => {
                    WALK.store(true, Ordering::Relaxed);
                    break;
                }
                Err(Errno::PERM) => break,
                Err(error) => return Err(error.into()),
            }
        }
    }
    walk(root, path, links, flags, mode)
}

/// Opens the directory that the last part of `path` is in, following links inside the root, and returns that part. `None`
/// for the root itself and for paths that end in `..`.
pub fn open_parent(root: impl AsFd, path: &[u8]) -> io::Result<(OwnedFd, Option<&[u8]>)> {
    let trimmed = &path[..path.iter().rposition(|&b| b != b'/').map_or(0, |last| last + 1)];
    let (dir, name) = match trimmed.iter().rposition(|&b| b == b'/') {
        Some(slash) => (&trimmed[..slash], &trimmed[slash + 1..]),
        None => (&trimmed[..0], trimmed),
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    match name {
        b"" | b"." | b".." => Ok((open(root, trimmed, Links::InRoot, flags, 0)?, None)),
        name => Ok((open(root, dir, Links::InRoot, flags, 0)?, Some(name))),
    }
}

/// The same by hand. Every directory on the way stays open, so `..` goes back to where we came from whatever is renamed.
fn walk(root: std::os::fd::BorrowedFd<'_>, path: &[u8], links: Links, flags: OFlags, mode: u32) -> io::Result<OwnedFd> {
    if links == Links::Refuse && path.first() == Some(&b'/') {
        return Err(Errno::XDEV.into());
    }
    let mut todo: Vec<Vec<u8>> = Vec::new();
    push_parts(&mut todo, path);
    let must_be_dir = matches!(path.last(), Some(b'/'));
    let mut done: Vec<OwnedFd> = vec![root.try_clone_to_owned()?];
    let mut followed = 0;
    while let Some(part) = todo.pop() {
        let current = done.last().expect("the root is never popped");
        if part == b".." {
            if done.len() > 1 {
                done.pop();
            } else if links == Links::Refuse {
                return Err(Errno::XDEV.into());
            }
            continue;
        }
        let last = todo.is_empty();
        let handle = match fs::openat(current, &*part, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
        {
            Err(Errno::NOENT) if last && flags.contains(OFlags::CREATE) => {
                return Ok(fs::openat(current, &*part, flags | OFlags::NOFOLLOW, Mode::from_raw_mode(mode))?);
            }
            other => other?,
        };
        match FileType::from_raw_mode(fs::fstat(&handle)?.st_mode) {
            FileType::Symlink if links == Links::Refuse => return Err(Errno::LOOP.into()),
            FileType::Symlink if !last || must_be_dir || !flags.contains(OFlags::NOFOLLOW) => {
                if flags.contains(OFlags::EXCL | OFlags::CREATE) && last {
                    return Err(Errno::EXIST.into());
                }
                followed += 1;
                if followed > MAX_LINKS {
                    return Err(Errno::LOOP.into());
                }
                // The target is read from the handle, not from the name, which may be another one by now.
                let target = fs::readlinkat(&handle, "", Vec::new())?.into_bytes();
                if target.is_empty() {
                    return Err(Errno::NOENT.into());
                }
                if target.first() == Some(&b'/') {
                    done.truncate(1);
                }
                push_parts(&mut todo, &target);
            }
            FileType::Directory if !last => done.push(handle),
            _ if !last => return Err(Errno::NOTDIR.into()),
            kind => {
                if must_be_dir && kind != FileType::Directory {
                    return Err(Errno::NOTDIR.into());
                }
                return Ok(fs::openat(current, &*part, flags | OFlags::NOFOLLOW, Mode::from_raw_mode(mode))?);
            }
        }
    }
    let current = done.last().expect("the root is never popped");
    Ok(fs::openat(current, ".", flags, Mode::from_raw_mode(mode))?)
}

fn push_parts(todo: &mut Vec<Vec<u8>>, path: &[u8]) {
    todo.extend(path.split(|&b| b == b'/').rev().filter(|part| !part.is_empty() && *part != b".").map(<[u8]>::to_vec));
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::fs::symlink;

    use super::*;

    /// Path, what it holds with links followed in the root (`None`: an error), whether it opens with links refused.
    const CASES: &[(&str, Option<&str>, bool)] = &[
        ("plain", Some("plain"), true),
        ("dir/inner", Some("inner"), true),
        ("./dir//inner", Some("inner"), true),
        ("dir/../plain", Some("plain"), true),
        ("missing", None, false),
        ("plain/x", None, false),
        ("plain/", None, false),
        ("absolute", Some("plain"), false),
        ("up", Some("plain"), false),
        ("dirlink/inner", Some("inner"), false),
        ("dirlink/../plain", Some("plain"), false),
        ("dir/chain", Some("inner"), false),
        ("loop", None, false),
        ("dangling", None, false),
        ("out", None, false),
        ("outdir/secret", None, false),
        ("../canary", None, false),
        ("../../plain", Some("plain"), false),
        ("/plain", Some("plain"), false),
    ];

    fn root() -> (tempfile::TempDir, OwnedFd) {
        let outer = tempfile::tempdir().expect("temporary directory");
        std::fs::write(outer.path().join("canary"), "canary").expect("canary");
        std::fs::create_dir(outer.path().join("secrets")).expect("outside");
        std::fs::write(outer.path().join("secrets/secret"), "canary").expect("canary");
        let root = outer.path().join("root");
        std::fs::create_dir_all(root.join("dir")).expect("root");
        std::fs::write(root.join("plain"), "plain").expect("file");
        std::fs::write(root.join("dir/inner"), "inner").expect("file");
        symlink("/plain", root.join("absolute")).expect("link");
        symlink("../../../plain", root.join("up")).expect("link");
        symlink("dir", root.join("dirlink")).expect("link");
        symlink("../dirlink/inner", root.join("dir/chain")).expect("link");
        symlink("loop", root.join("loop")).expect("link");
        symlink("nowhere", root.join("dangling")).expect("link");
        symlink(outer.path().join("canary"), root.join("out")).expect("link");
        symlink("../secrets", root.join("outdir")).expect("link");
        let fd = crate::file::open_root(&root).expect("root");
        (outer, fd)
    }

    type Open = fn(&OwnedFd, &str, Links) -> io::Result<OwnedFd>;

    fn by_kernel(root: &OwnedFd, path: &str, links: Links) -> io::Result<OwnedFd> {
        open(root, path.as_bytes(), links, OFlags::RDONLY, 0)
    }

    fn by_hand(root: &OwnedFd, path: &str, links: Links) -> io::Result<OwnedFd> {
        walk(root.as_fd(), path.as_bytes(), links, OFlags::RDONLY | OFlags::CLOEXEC, 0)
    }

    #[test]
    fn the_kernel_and_the_walk_agree() {
        let (_outer, root) = root();
        for (how, open) in [("openat2", by_kernel as Open), ("walk", by_hand as Open)] {
            for (path, want, refused) in CASES {
                let got = open(&root, path, Links::InRoot).ok().map(|fd| {
                    let mut text = String::new();
                    std::fs::File::from(fd).read_to_string(&mut text).expect("read");
                    text
                });
                assert_eq!(got.as_deref(), *want, "{how} in root: {path}");
                assert_eq!(open(&root, path, Links::Refuse).is_ok(), *refused, "{how} without links: {path}");
            }
        }
    }

    #[test]
    fn a_last_symlink_is_opened_itself_on_demand() {
        let (_outer, root) = root();
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        for fd in [
            open(&root, b"dirlink", Links::InRoot, flags, 0).expect("openat2"),
            walk(root.as_fd(), b"dirlink", Links::InRoot, flags, 0).expect("walk"),
        ] {
            assert_eq!(FileType::from_raw_mode(fs::fstat(&fd).expect("stat").st_mode), FileType::Symlink);
        }
    }

    #[test]
    fn creating_never_writes_outside() {
        let (outer, root) = root();
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::CLOEXEC;
        symlink(outer.path().join("made"), outer.path().join("root/trap")).expect("link");
        assert!(open(&root, b"trap", Links::InRoot, flags, 0o600).is_err(), "its directory does not exist in the root");
        assert!(walk(root.as_fd(), b"trap", Links::InRoot, flags, 0o600).is_err());
        walk(root.as_fd(), b"../../new", Links::InRoot, flags, 0o600).expect("create");
        assert!(outer.path().join("root/new").exists());
        assert!(!outer.path().join("made").exists() && !outer.path().join("new").exists());
    }

    #[test]
    fn a_parent_is_resolved_and_the_name_is_not() {
        let (_outer, root) = root();
        let (dir, name) = open_parent(&root, b"dirlink/chain").expect("parent");
        assert_eq!(name, Some(&b"chain"[..]));
        assert!(fs::statat(&dir, "inner", fs::AtFlags::empty()).is_ok());
        assert_eq!(open_parent(&root, b"/").expect("root").1, None);
        assert_eq!(open_parent(&root, b"dir/..").expect("root").1, None);
    }
}
