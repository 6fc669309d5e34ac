//! USER: names become numbers by the files of the image, never of the host.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{FileType, OFlags};
use rustix::io::Errno;
use sys::Named;
use sys::path::Links;

use crate::error::UserError;

/// More than this of an image's file is not read.
const MAX_FILE: u64 = 10 << 20;

/// Who a step runs as.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// All groups, the own one first.
    pub(crate) groups: Vec<u32>,
    /// The home directory that the image records.
    pub(crate) home: Option<String>,
}

/// Resolves a user inside a root.
pub(crate) fn resolve(root: BorrowedFd<'_>, user: &str, additional: &[u32]) -> Result<Identity, UserError> {
    // An image from scratch has no such files: numbers, and root, need none.
    let text = |file| read(root, file).map(Option::unwrap_or_default);
    let both_numbers =
        user.split_once(':').is_some_and(|(user, group)| number(user).is_some() && number(group).is_some());
    let (passwd, group) = if both_numbers {
        // Docker looks no further, so a spoilt file does no harm. The home directory is a courtesy.
        (text("/etc/passwd").unwrap_or_default(), String::new())
    } else {
        (text("/etc/passwd")?, text("/etc/group")?)
    };
    let mut identity = look_up(user, &passwd, &group)?;
    let mut seen = BTreeSet::new();
    let all = std::iter::once(identity.gid).chain(identity.groups).chain(additional.iter().copied());
    identity.groups = all.filter(|gid| seen.insert(*gid)).collect();
    Ok(identity)
}

fn look_up(user: &str, passwd: &str, group: &str) -> Result<Identity, UserError> {
    let (user, group_name) = match user.split_once(':') {
        Some((user, group)) => (user, group),
        None => (user, ""),
    };
    let uid = if user.is_empty() { Some(0) } else { id(user)? };
    let entry = passwd.lines().filter_map(Passwd::parse).find(|entry| match uid {
        // A number is always an id, whatever names there are.
        Some(uid) => entry.uid == uid,
        None => entry.name == user,
    });
    let mut identity = match (&entry, uid) {
        (Some(entry), _) => {
            Identity { uid: entry.uid, gid: entry.gid, home: Some(entry.home.to_owned()), ..Identity::default() }
        }
        (None, Some(uid)) => Identity { uid, ..Identity::default() },
        // Root is root in an image without any names.
        (None, None) if user == "root" => Identity::default(),
        (None, None) => return Err(UserError::UnknownUser { name: user.to_owned() }),
    };
    let groups = || group.lines().filter_map(Group::parse);
    if !group_name.is_empty() {
        let gid = id(group_name)?;
        identity.gid = match (groups().find(|entry| gid.map_or(entry.name == group_name, |gid| entry.gid == gid)), gid)
        {
            (Some(entry), _) => entry.gid,
            (None, Some(gid)) => gid,
            (None, None) if group_name == "root" => 0,
            (None, None) => return Err(UserError::UnknownGroup { name: group_name.to_owned() }),
        };
    } else if let Some(entry) = entry {
        identity.groups =
            groups().filter(|group| group.members().any(|name| name == entry.name)).map(|group| group.gid).collect();
    }
    Ok(identity)
}

/// A text as an id: `None` for a name, an error for a number that no id can be.
fn id(text: &str) -> Result<Option<u32>, UserError> {
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Ok(None);
    }
    match number(text) {
        Some(id) => Ok(Some(id)),
        None => Err(UserError::BadId { text: text.to_owned() }),
    }
}

/// The kernel takes -1 for "leave as it is", and Docker's limit is that of a signed number.
fn number(text: &str) -> Option<u32> {
    text.parse().ok().filter(|id| *id <= i32::MAX as u32)
}

/// A line of /etc/passwd; lines that are none are skipped, as getpwnam does.
struct Passwd<'text> {
    name: &'text str,
    uid: u32,
    gid: u32,
    home: &'text str,
}

impl<'text> Passwd<'text> {
    fn parse(line: &'text str) -> Option<Self> {
        let mut fields = line.trim().split(':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        let uid = fields.nth(1)?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        Some(Self { name, uid, gid, home: fields.nth(1).unwrap_or_default() })
    }
}

/// A line of /etc/group.
struct Group<'text> {
    name: &'text str,
    gid: u32,
    members: &'text str,
}

impl<'text> Group<'text> {
    fn parse(line: &'text str) -> Option<Self> {
        let mut fields = line.trim().split(':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        let gid = fields.nth(1)?.parse().ok()?;
        Some(Self { name, gid, members: fields.next().unwrap_or_default() })
    }

    fn members(&self) -> impl Iterator<Item = &'text str> {
        self.members.split(',').map(str::trim)
    }
}

/// Reads a file of the image: a regular one of bounded size, found beneath the root.
fn read(root: BorrowedFd<'_>, file: &str) -> Result<Option<String>, UserError> {
    let unreadable = |cause: sys::Error| UserError::Unreadable { file: file.to_owned(), cause: cause.into() };
    let open = |flags| sys::path::open(root, file.as_bytes(), Links::InRoot, flags, 0);
    // Opening a device or a pipe could do something: what it is comes first.
    let handle = match open(OFlags::PATH) {
        Err(error) if matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        other => other.call(|| format!("openat2({file:?}, O_PATH, RESOLVE_IN_ROOT)")).map_err(unreadable)?,
    };
    let stat = rustix::fs::fstat(handle.as_fd()).call(|| format!("fstat({file:?})")).map_err(unreadable)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile || stat.st_size as u64 > MAX_FILE {
        return Err(UserError::BadFile { file: file.to_owned() });
    }
    let opened =
        open(OFlags::RDONLY | OFlags::NONBLOCK).call(|| format!("openat2({file:?}, O_RDONLY, RESOLVE_IN_ROOT)"));
    let mut text = Vec::new();
    File::from(opened.map_err(unreadable)?)
        .take(MAX_FILE)
        .read_to_end(&mut text)
        .call(|| format!("read({file:?})"))
        .map_err(unreadable)?;
    if text.is_empty() && stat.st_size > 0 {
        return Err(unreadable(sys::Error::new(format!("read({file:?})"), Errno::IO)));
    }
    Ok(Some(String::from_utf8_lossy(&text).into_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n# a remark\nbroken\nanna:x:1000:1001:Anna:/home/anna:/bin/sh\n\
                          1005:x:2000:2000::/odd:\nnobody:x:65534:65534:nobody:/:/sbin/nologin\n";
    const GROUP: &str = "root:x:0:root\nwheel:x:10:root,anna\nanna:x:1001:\naudio:x:29: anna ,other\n";

    #[test]
    fn users_resolve_as_docker_resolves_them() {
        type Ids = (u32, u32, &'static [u32]);
        let cases: &[(&str, Result<Ids, &str>)] = &[
            ("", Ok((0, 0, &[0, 10]))),
            ("root", Ok((0, 0, &[0, 10]))),
            ("0", Ok((0, 0, &[0, 10]))),
            ("anna", Ok((1000, 1001, &[10, 29]))),
            ("1000", Ok((1000, 1001, &[10, 29]))),
            // Of a group that is given, the user's others do not follow.
            ("anna:wheel", Ok((1000, 10, &[]))),
            ("1000:10", Ok((1000, 10, &[]))),
            ("anna:77", Ok((1000, 77, &[]))),
            (":wheel", Ok((0, 10, &[]))),
            ("4711", Ok((4711, 0, &[]))),
            ("4711:4712", Ok((4711, 4712, &[]))),
            // A number is an id even where it is a name too.
            ("1005", Ok((1005, 0, &[]))),
            ("berta", Err("unable to find user berta")),
            ("anna:club", Err("unable to find group club")),
            ("-1", Err("\"-1\" is not a valid")),
            ("4294967295", Err("not a valid")),
            ("99999999999999999999", Err("not a valid")),
        ];
        for (user, want) in cases {
            match (look_up(user, PASSWD, GROUP), want) {
                (Ok(got), Ok((uid, gid, groups))) => {
                    assert_eq!((got.uid, got.gid, got.groups.as_slice()), (*uid, *gid, *groups), "{user:?}");
                }
                (Err(error), Err(text)) => assert!(error.to_string().contains(text), "{user:?}: {error}"),
                (got, want) => panic!("{user:?}: {got:?}, not {want:?}"),
            }
        }
    }

    #[test]
    fn an_image_without_names_has_root_and_numbers() {
        assert_eq!(look_up("root", "", "").map(|got| (got.uid, got.gid)), Ok((0, 0)));
        assert_eq!(look_up("", "", "").map(|got| (got.uid, got.gid)), Ok((0, 0)));
        assert_eq!(look_up("7", "", "").map(|got| (got.uid, got.gid)), Ok((7, 0)));
        assert!(look_up("anna", "", "").is_err());
    }

    #[test]
    fn only_bounded_regular_files_are_read() {
        let root = tempfile::tempdir().expect("temporary directory");
        std::fs::create_dir(root.path().join("etc")).expect("mkdir");
        let handle = File::open(root.path()).expect("open");
        let path = root.path().join("etc/passwd");
        assert_eq!(read(handle.as_fd(), "/etc/passwd"), Ok(None));
        std::os::unix::fs::symlink("/dev/zero", &path).expect("symlink");
        assert_eq!(read(handle.as_fd(), "/etc/passwd"), Ok(None), "the link leads nowhere inside");
        std::fs::remove_file(&path).expect("remove");
        rustix::fs::mknodat(rustix::fs::CWD, &path, FileType::Fifo, rustix::fs::Mode::from_raw_mode(0o644), 0)
            .expect("mknod");
        assert_eq!(read(handle.as_fd(), "/etc/passwd"), Err(UserError::BadFile { file: "/etc/passwd".to_owned() }));
        std::fs::remove_file(&path).expect("remove");
        File::create(&path).and_then(|file| file.set_len(MAX_FILE + 1)).expect("a huge file");
        assert_eq!(read(handle.as_fd(), "/etc/passwd"), Err(UserError::BadFile { file: "/etc/passwd".to_owned() }));
        // Numbers do not need it.
        assert_eq!(resolve(handle.as_fd(), "5:6", &[7]).map(|got| (got.uid, got.groups)), Ok((5, vec![6, 7])));
    }
}
