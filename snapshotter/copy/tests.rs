use super::*;

/// A layer as a list of paths: `d/` a directory, `d/!` an opaque one, `-p` a whiteout, `p=text` a file, `p>q` a link.
fn layer(root: &Path, entries: &[&str]) -> Option<PathBuf> {
    fs::create_dir(root).unwrap();
    for entry in entries {
        if let Some(path) = entry.strip_suffix("/!") {
            fs::create_dir_all(root.join(path)).unwrap();
            rustix::fs::lsetxattr(root.join(path), "trusted.overlay.opaque", b"y", XattrFlags::empty()).ok()?;
        } else if let Some(path) = entry.strip_suffix('/') {
            fs::create_dir_all(root.join(path)).unwrap();
        } else if let Some(path) = entry.strip_prefix('-') {
            mknodat(CWD, root.join(path), rustix::fs::FileType::CharacterDevice, 0.into(), 0).ok()?;
        } else if let Some((path, text)) = entry.split_once('=') {
            fs::write(root.join(path), text).unwrap();
        } else if let Some((path, link)) = entry.split_once('>') {
            symlink(link, root.join(path)).unwrap();
        }
    }
    Some(root.to_owned())
}

fn listing(root: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    let mut pending = vec![root.to_owned()];
    while let Some(directory) = pending.pop() {
        for entry in fs::read_dir(directory).unwrap().flatten() {
            let path = entry.path();
            let name = path.strip_prefix(root).unwrap().display().to_string();
            let kind = entry.file_type().unwrap();
            if kind.is_dir() {
                lines.push(format!("{name}/"));
                pending.push(path);
            } else if kind.is_symlink() {
                lines.push(format!("{name}>{}", fs::read_link(path).unwrap().display()));
            } else {
                lines.push(format!("{name}={}", fs::read_to_string(path).unwrap()));
            }
        }
    }
    lines.sort();
    lines
}

#[test]
fn layers_hide_what_is_below_them() {
    let cases: &[(&[&[&str]], &[&str])] = &[
        (&[&["a=1", "d/", "d/x=1"], &["a=2", "d/", "d/y=2"]], &["a=2", "d/", "d/x=1", "d/y=2"]),
        (&[&["a=1", "d/", "d/x=1"], &["-a", "d/", "-d/x"]], &["d/"]),
        (&[&["d/", "d/x=1"], &["-d"], &["d/", "d/y=3"]], &["d/", "d/y=3"]),
        (&[&["d/", "d/x=1", "d/e/", "d/e/f=1"], &["d/!", "d/y=2"]], &["d/", "d/y=2"]),
        (&[&["d/", "d/x=1"], &["d/!", "d/y=2"], &["d/", "d/z=3"]], &["d/", "d/y=2", "d/z=3"]),
        (&[&["d/", "d/x=1"], &["d>e"], &["e/"]], &["d>e", "e/"]),
        (&[&["d=1"], &["d/", "d/x=2"]], &["d/", "d/x=2"]),
        (&[&["d/", "d/old=1"], &["d=2"], &["d/", "d/x=3"]], &["d/", "d/x=3"]),
    ];
    for (number, (layers, expected)) in cases.iter().enumerate() {
        for mode in [CopyMode::Private, CopyMode::ReadOnly] {
            let directory = tempfile::tempdir().unwrap();
            let made =
                layers.iter().enumerate().map(|(n, entries)| layer(&directory.path().join(n.to_string()), entries));
            let Some(mut lowers) = made.collect::<Option<Vec<_>>>() else {
                eprintln!("NOT RUN: whiteouts and trusted attributes need root");
                return;
            };
            lowers.reverse();
            let target = directory.path().join("target");
            fs::create_dir(&target).unwrap();
            let copied = merge_directories(&lowers, &target, mode).unwrap();
            assert_eq!(listing(&target), *expected, "case {number} {mode:?}");
            assert_eq!(copied, Copied { entries: expected.len() as u64, not_held: Vec::new() }, "case {number}");
        }
    }
}

#[test]
fn a_private_copy_keeps_everything_and_shares_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let lower = directory.path().join("lower");
    fs::create_dir_all(lower.join("closed")).unwrap();
    fs::write(lower.join("closed/a"), "data").unwrap();
    fs::hard_link(lower.join("closed/a"), lower.join("b")).unwrap();
    let mut sparse = File::create(lower.join("sparse")).unwrap();
    sparse.set_len(64 << 20).unwrap();
    sparse.seek(SeekFrom::Start(32 << 20)).unwrap();
    io::Write::write_all(&mut sparse, b"middle").unwrap();
    drop(sparse);
    fs::set_permissions(lower.join("b"), fs::Permissions::from_mode(0o4755)).unwrap();
    let has_xattrs = rustix::fs::lsetxattr(lower.join("b"), "user.mine", b"kept", XattrFlags::empty()).is_ok();
    let time = Timespec { tv_sec: 1_000_000_000, tv_nsec: 123_456_789 };
    let times = Timestamps { last_access: time, last_modification: time };
    utimensat(CWD, lower.join("b"), &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
    fs::set_permissions(lower.join("closed"), fs::Permissions::from_mode(0o555)).unwrap();
    utimensat(CWD, lower.join("closed"), &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();

    let target = directory.path().join("target");
    fs::create_dir(&target).unwrap();
    merge_directories(std::slice::from_ref(&lower), &target, CopyMode::Private).unwrap();
    let metadata = |path: &str| fs::symlink_metadata(target.join(path)).unwrap();
    assert_eq!(metadata("b").mode() & 0o7777, 0o4755);
    assert_eq!((metadata("b").mtime(), metadata("b").mtime_nsec()), (1_000_000_000, 123_456_789));
    assert_eq!((metadata("closed").mtime(), metadata("closed").mode() & 0o7777), (1_000_000_000, 0o555));
    assert_eq!(metadata("b").ino(), metadata("closed/a").ino());
    assert_ne!(metadata("b").ino(), fs::metadata(lower.join("b")).unwrap().ino());
    if has_xattrs {
        let mut value = [0; 8];
        assert_eq!(rustix::fs::lgetxattr(target.join("b"), "user.mine", &mut value[..]).unwrap(), 4);
    }
    assert_eq!(metadata("sparse").len(), 64 << 20);
    assert!(metadata("sparse").blocks() * 512 < 1 << 20, "the hole was filled");
    let bytes = fs::read(target.join("sparse")).unwrap();
    assert_eq!(&bytes[32 << 20..(32 << 20) + 6], b"middle");
}

#[test]
fn overlays_can_be_tried() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(&directory.path().join("store")).unwrap();
    match store.try_overlay(false) {
        Ok(()) => {}
        Err(OverlayUnusable::Refused(error)) => eprintln!("NOT RUN: {error}"),
        Err(error) => panic!("{error}"),
    }
    assert_eq!(fs::read_dir(store.root().join("active")).unwrap().count(), 0);
}
