//! Archives made by hand, and pictures of trees that can be compared.

use std::collections::BTreeMap;
use std::io::Read;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::Path;

use crate::layer::{ApplyOptions, Entry, EntryKind, LayerIndex, Tree, index_tar};

/// Modification time of members that do not say.
pub(crate) const TIME: i64 = 1_600_000_000;

/// A member as raw fields, so that it may be as wrong as a test wants.
#[derive(Clone, Debug)]
pub(crate) struct Raw {
    pub(crate) name: Vec<u8>,
    pub(crate) kind: u8,
    pub(crate) link: Vec<u8>,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) mtime: i64,
    pub(crate) device: (u32, u32),
    pub(crate) data: Vec<u8>,
    /// The size in the header, if not that of the data.
    pub(crate) size: Option<u64>,
}

impl Raw {
    pub(crate) fn new(kind: u8, name: &str) -> Self {
        Self {
            name: name.into(),
            kind,
            link: Vec::new(),
            mode: if kind == b'5' { 0o755 } else { 0o644 },
            uid: 0,
            mtime: TIME,
            device: (0, 0),
            data: Vec::new(),
            size: None,
        }
    }

    pub(crate) fn file(name: &str, data: &str) -> Self {
        Self { data: data.into(), ..Self::new(b'0', name) }
    }

    pub(crate) fn dir(name: &str) -> Self {
        Self::new(b'5', name)
    }

    pub(crate) fn symlink(name: &str, target: &str) -> Self {
        Self { link: target.into(), ..Self::new(b'2', name) }
    }

    pub(crate) fn hardlink(name: &str, target: &str) -> Self {
        Self { link: target.into(), ..Self::new(b'1', name) }
    }

    pub(crate) fn mode(self, mode: u32) -> Self {
        Self { mode, ..self }
    }

    /// A PAX header for the next member.
    pub(crate) fn pax(records: &[(&str, &[u8])]) -> Self {
        let mut data = Vec::new();
        for (key, value) in records {
            crate::layer::header::push_record(&mut data, key.as_bytes(), value);
        }
        Self { data, ..Self::new(b'x', "PaxHeaders/x") }
    }
}

/// An archive, made with the `tar` crate's header and not with ours.
pub(crate) fn archive(members: &[Raw]) -> Vec<u8> {
    let mut out = Vec::new();
    for member in members {
        let mut header = tar::Header::new_ustar();
        let old = header.as_old_mut();
        old.name[..member.name.len()].copy_from_slice(&member.name);
        old.linkname[..member.link.len()].copy_from_slice(&member.link);
        header.set_entry_type(tar::EntryType::new(member.kind));
        header.set_mode(member.mode);
        header.set_uid(member.uid.into());
        header.set_gid(member.uid.into());
        header.set_mtime(u64::try_from(member.mtime).expect("a time after 1970"));
        header.set_size(member.size.unwrap_or(member.data.len() as u64));
        header.set_device_major(member.device.0).expect("ustar");
        header.set_device_minor(member.device.1).expect("ustar");
        header.set_cksum();
        out.extend_from_slice(header.as_bytes());
        out.extend_from_slice(&member.data);
        out.resize(out.len().next_multiple_of(512), 0);
    }
    out.resize(out.len() + 1024, 0);
    out
}

/// Whether owners, devices and overlay's own marks can be tested too.
pub(crate) fn root() -> bool {
    rustix::process::geteuid().is_root()
}

/// For tests that are nothing without it. Their names begin with `as_root_`, by which those who are not can leave them out.
#[track_caller]
pub(crate) fn need_root() {
    assert!(root(), "needs root; cargo nextest run -E 'not test(/as_root_/)' leaves such tests out");
}

pub(crate) fn options() -> ApplyOptions {
    ApplyOptions::default()
}

/// One line for each path.
pub(crate) type Shot = BTreeMap<String, String>;

fn line(kind: &str, entry: &Entry, more: &str) -> String {
    let xattrs: Vec<String> =
        entry.xattrs.iter().map(|(name, value)| format!(" {}={}", name.escape_ascii(), value.escape_ascii())).collect();
    let (mode, uid, gid, (sec, nsec)) = (entry.mode, entry.uid, entry.gid, entry.mtime);
    // A symlink's own mode means nothing.
    let mode = if kind == "link" { 0o777 } else { mode };
    format!("{kind} {mode:o} {uid}:{gid} {sec}.{nsec:09}{}{more}", xattrs.concat())
}

fn shown(path: &[u8]) -> String {
    format!("/{}", path.escape_ascii())
}

/// What a stack of indexes shows.
pub(crate) fn shot_of_tree(tree: &Tree) -> Shot {
    let mut shot = Shot::new();
    let mut first: BTreeMap<(usize, Vec<u8>), String> = BTreeMap::new();
    let done: Result<(), ()> = tree.walk(b"", |found| {
        let entry = found.entry;
        let text = match (&entry.kind, tree.file_of(found)) {
            (EntryKind::File { .. } | EntryKind::Hardlink { .. }, Some(file)) => {
                let EntryKind::File { size, digest, .. } = file.entry.kind else { unreachable!("a file") };
                let key = (file.layer, file.entry.path.clone());
                let name = first.entry(key).or_insert_with(|| shown(&entry.path));
                line("file", file.entry, &format!(" {size} {} ={name}", digest.hex()))
            }
            (EntryKind::Dir { .. }, _) => line("dir", entry, ""),
            (EntryKind::Symlink { target }, _) => line("link", entry, &format!(" -> {}", target.escape_ascii())),
            (EntryKind::CharDev { major, minor }, _) => line("char", entry, &format!(" {major}:{minor}")),
            (EntryKind::BlockDev { major, minor }, _) => line("block", entry, &format!(" {major}:{minor}")),
            (EntryKind::Fifo, _) => line("fifo", entry, ""),
            (kind, _) => panic!("{kind:?} at {} in a merged tree", shown(&entry.path)),
        };
        shot.insert(shown(&entry.path), text);
        Ok(())
    });
    done.expect("infallible");
    shot
}

/// What one index shows by itself.
pub(crate) fn shot_of_index(index: LayerIndex) -> Shot {
    shot_of_tree(&Tree::new(vec![std::sync::Arc::new(index)]))
}

/// What stands in a directory; read with the standard library.
pub(crate) fn shot_of_dir(dir: &Path) -> Shot {
    let mut shot = Shot::new();
    let mut first: BTreeMap<u64, String> = BTreeMap::new();
    look(dir, b"", &mut first, &mut shot);
    shot
}

fn look(real: &Path, path: &[u8], first: &mut BTreeMap<u64, String>, shot: &mut Shot) {
    use std::os::unix::ffi::{OsStrExt, OsStringExt};
    let stat = std::fs::symlink_metadata(real).expect("stat");
    let kind = stat.file_type();
    if kind.is_socket() {
        // A layer has none.
        return;
    }
    let handle = sys::file::open_root(real.parent().expect("a parent")).expect("open");
    let name = real.file_name().expect("a name").as_bytes();
    let mut entry = Entry::dir(path, stat.permissions().mode() & 0o7777);
    (entry.uid, entry.gid) = (stat.uid(), stat.gid());
    entry.mtime = (stat.mtime(), u32::try_from(stat.mtime_nsec()).expect("nanoseconds"));
    for key in sys::xattr::list_at(&handle, name).expect("list") {
        if crate::layer::keeps_xattr(&key) {
            let value = sys::xattr::get_at(&handle, name, &key).expect("get").expect("just listed");
            entry.xattrs.push((key, value));
        }
    }
    entry.xattrs.sort();
    let device = (rustix::fs::major(stat.rdev()), rustix::fs::minor(stat.rdev()));
    let text = if kind.is_dir() {
        line("dir", &entry, "")
    } else if kind.is_symlink() {
        let target = std::fs::read_link(real).expect("readlink").into_os_string().into_vec();
        line("link", &entry, &format!(" -> {}", target.escape_ascii()))
    } else if kind.is_file() {
        let data = std::fs::read(real).expect("read");
        let name = first.entry(stat.ino()).or_insert_with(|| shown(path));
        let digest = graph::ContentDigest::of(&data).hex();
        line("file", &entry, &format!(" {} {digest} ={name}", data.len()))
    } else if kind.is_char_device() {
        line("char", &entry, &format!(" {}:{}", device.0, device.1))
    } else if kind.is_block_device() {
        line("block", &entry, &format!(" {}:{}", device.0, device.1))
    } else {
        line("fifo", &entry, "")
    };
    shot.insert(shown(path), text);
    if kind.is_dir() {
        let mut names: Vec<_> =
            std::fs::read_dir(real).expect("list").map(|item| item.expect("item").file_name()).collect();
        names.sort();
        for name in names {
            look(&real.join(&name), &crate::layer::join(path, name.as_bytes()), first, shot);
        }
    }
}

/// What a tar shows when it is taken for a root file system.
pub(crate) fn shot_of_tar(tar: impl Read) -> Shot {
    shot_of_index(index_tar(tar, &|| false).expect("a valid archive").index)
}

/// What differs, one line for each path.
pub(crate) fn difference(want: &Shot, got: &Shot) -> String {
    let mut out = String::new();
    for path in want.keys().chain(got.keys()).collect::<std::collections::BTreeSet<_>>() {
        if want.get(path) != got.get(path) {
            out += &format!("{path}\n  want {:?}\n  got  {:?}\n", want.get(path), got.get(path));
        }
    }
    out
}

/// Compares pictures, showing only what differs.
#[track_caller]
pub(crate) fn same(want: &Shot, got: &Shot) {
    assert!(want == got, "\n{}", difference(want, got));
}
