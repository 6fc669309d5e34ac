//! Archives that try to reach what is not theirs. Each is unpacked beside a canary, which must be as before.

use std::sync::Arc;

use proptest::prelude::*;

use super::support::{Raw, Shot, archive, need_root, options, same, shot_of_dir};
use crate::layer::*;

/// Unpacks `members` in a directory next to a canary and returns the result with what is there afterwards.
fn attack(what: &str, members: impl Fn(&str) -> Vec<Raw>) -> (Result<Applied, LayerError>, Shot) {
    let temp = tempfile::tempdir().expect("temporary directory");
    let outside = temp.path().join("outside");
    std::fs::create_dir_all(outside.join("dir")).expect("mkdir");
    std::fs::write(outside.join("canary"), "alive").expect("write");
    let dest = temp.path().join("dest");
    std::fs::create_dir(&dest).expect("mkdir");
    let before = shot_of_dir(&outside);
    let result = apply(&*archive(&members(&outside.display().to_string())), &dest, &options(), &|| false);
    same(&before, &shot_of_dir(&outside));
    let mut names: Vec<_> =
        std::fs::read_dir(temp.path()).expect("list").map(|item| item.expect("item").file_name()).collect();
    names.sort();
    assert_eq!(names, ["dest", "outside"], "{what}");
    (result, shot_of_dir(&dest))
}

#[test]
fn nothing_is_written_outside() {
    type Case = (&'static str, fn(&str) -> Vec<Raw>, &'static [&'static str]);
    // What is tried, and paths that must exist inside instead; none: it may also be an error.
    let cases: &[Case] = &[
        ("a name with ..", |_| vec![Raw::file("../outside/canary", "dead")], &["/outside/canary"]),
        ("a name deep in ..", |_| vec![Raw::file("a/../../../outside/canary", "dead")], &["/outside/canary"]),
        ("an absolute name", |out| vec![Raw::file(&format!("{out}/canary"), "dead")], &["/tmp"]),
        ("a directory called ..", |_| vec![Raw::dir("..").mode(0)], &[]),
        (
            "through an absolute symlink",
            |out| vec![Raw::symlink("x", out), Raw::file("x/canary", "dead")],
            &["/x", "/tmp"],
        ),
        (
            "through a relative symlink",
            |_| vec![Raw::symlink("x", "../outside"), Raw::file("x/canary", "dead")],
            &["/outside/canary"],
        ),
        (
            "through a chain of symlinks",
            |_| vec![Raw::symlink("a", ".."), Raw::symlink("b", "a/.."), Raw::file("b/outside/canary", "dead")],
            &["/outside/canary"],
        ),
        (
            "through a symlink to a symlink that comes later",
            |out| vec![Raw::symlink("a", "b"), Raw::symlink("b", out), Raw::file("a/canary", "dead")],
            &["/tmp"],
        ),
        (
            "a file in place of a symlink",
            |out| vec![Raw::symlink("x", &format!("{out}/canary")), Raw::file("x", "dead")],
            &["/x"],
        ),
        (
            "a directory in place of a symlink changes its mode",
            |out| vec![Raw::symlink("foo", &format!("{out}/dir")), Raw::dir("foo").mode(0o777)],
            &["/foo"],
        ),
        (
            "a hard link by absolute name",
            |out| vec![Raw::hardlink("x", &format!("{out}/canary")), Raw::file("x", "dead")],
            &[],
        ),
        ("a hard link by ..", |_| vec![Raw::hardlink("x", "../outside/canary").mode(0o777)], &[]),
        (
            "a hard link through a symlink",
            |out| vec![Raw::symlink("l", out), Raw::hardlink("x", "l/canary").mode(0o777)],
            &[],
        ),
        (
            "a hard link to a symlink is not followed",
            |out| {
                let link = Raw::symlink("l", &format!("{out}/canary"));
                vec![link, Raw::hardlink("x", "l").mode(0o777), Raw::file("x", "dead")]
            },
            &["/x"],
        ),
        ("a whiteout through a symlink", |out| vec![Raw::symlink("l", out), Raw::file("l/.wh.canary", "")], &[]),
        ("a whiteout of the parent", |_| vec![Raw::file("a/.wh...", "")], &[]),
        ("a whiteout of the directory", |_| vec![Raw::file("a/.wh..", "")], &[]),
        ("a whiteout of nothing", |_| vec![Raw::file("a/.wh.", "")], &[]),
        ("an opaque mark through a symlink", |out| vec![Raw::symlink("l", out), Raw::file("l/.wh..wh..opq", "")], &[]),
    ];
    for (what, members, inside) in cases {
        let (result, shot) = attack(what, members);
        for path in *inside {
            assert!(result.is_ok(), "{what}: {result:?}");
            assert!(shot.contains_key(*path), "{what}: {path} is missing in {shot:#?}");
        }
    }
}

#[test]
fn links_that_lead_out_are_kept_as_they_are() {
    let links = [("a/up", "../../../../etc/passwd"), ("dash", "dash"), ("abs", "/etc/passwd"), ("dots", "..")];
    let (result, shot) = attack("links", |_| links.iter().map(|(name, target)| Raw::symlink(name, target)).collect());
    result.expect("legal");
    for (name, target) in links {
        assert!(shot[&format!("/{name}")].ends_with(&format!(" -> {target}")), "{name}");
    }
}

#[test]
fn a_loop_of_symlinks_ends() {
    let (result, _) = attack("loop", |_| vec![Raw::symlink("a", "b"), Raw::symlink("b", "a"), Raw::file("a/x", "")]);
    assert!(matches!(result, Err(LayerError::Loop { .. })), "{result:?}");
}

#[test]
fn headers_that_disagree_on_the_size() {
    // The PAX size wins: what looks like a member is data of the first.
    let smuggled = archive(&[Raw::file("smuggled", "")]);
    let size = smuggled.len().to_string();
    let members = [
        Raw::pax(&[("size", size.as_bytes())]),
        Raw { data: smuggled.clone(), size: Some(0), ..Raw::new(b'0', "carrier") },
        Raw::file("after", ""),
    ];
    let index = index_tar(&*archive(&members), &|| false).expect("index").index;
    assert!(index.get(b"smuggled").is_none());
    assert!(index.get(b"after").is_some());

    // But it is the member's, not that of another header between the two.
    let long = [&b"long-name"[..], b"\0"].concat();
    let members = [
        Raw::pax(&[("size", b"1024")]),
        Raw { data: long, ..Raw::new(b'L', "././@LongLink") },
        Raw { data: vec![b'x'; 1024], ..Raw::new(b'0', "short-name") },
        Raw::file("after", ""),
    ];
    let index = index_tar(&*archive(&members), &|| false).expect("index").index;
    assert!(matches!(index.get(b"long-name").expect("found").kind, EntryKind::File { size: 1024, .. }));
    assert!(index.get(b"after").is_some());

    // A size of what has no data is nothing.
    let members = [Raw { size: Some(512), ..Raw::dir("d") }, Raw::file("in-the-data", "")];
    assert!(index_tar(&*archive(&members), &|| false).expect("index").index.get(b"in-the-data").is_some());
}

#[test]
fn what_overlay_and_the_hosts_security_modules_use_is_dropped() {
    let keys = [
        "SCHILY.xattr.trusted.overlay.redirect",
        "SCHILY.xattr.trusted.overlay.opaque",
        "SCHILY.xattr.user.overlay.opaque",
        "SCHILY.xattr.security.selinux",
        "SCHILY.xattr.security.ima",
        "SCHILY.xattr.user.kept",
    ];
    let records: Vec<(&str, &[u8])> = keys.iter().map(|key| (*key, &b"y"[..])).collect();
    let tar = archive(&[Raw::pax(&records), Raw::dir("d")]);
    let index = index_tar(&*tar, &|| false).expect("index").index;
    assert_eq!(index.get(b"d").expect("found").xattrs, [(b"user.kept".to_vec(), b"y".to_vec())]);
    let temp = tempfile::tempdir().expect("temporary directory");
    apply(&*tar, temp.path(), &options(), &|| false).expect("apply");
    let names = sys::xattr::list_at(sys::file::open_root(temp.path()).expect("open"), b"d").expect("list");
    assert!(names.iter().all(|name| name == b"user.kept" || name.starts_with(b"security.")), "{names:?}");
}

#[test]
fn as_root_a_device_that_would_be_a_whiteout_is_refused() {
    need_root();
    let (result, _) = attack("0:0", |_| vec![Raw::new(b'3', "x")]);
    assert!(matches!(result, Err(LayerError::Unrepresentable { .. })), "{result:?}");
}

#[test]
fn what_would_fill_the_memory_is_refused() {
    for kind in [b'x', b'L', b'K', b'g'] {
        let mut tar = archive(&[Raw { size: Some(1 << 40), ..Raw::new(kind, "x") }]);
        tar.truncate(512);
        let error = index_tar(std::io::Read::chain(&*tar, std::io::repeat(b'1')), &|| false).expect_err("too large");
        assert!(error.to_string().contains("a header of"), "{error}");
    }
}

#[test]
fn damage_is_an_error() {
    let good = archive(&[Raw::file("a", "data"), Raw::dir("b")]);
    for (what, tar) in [("cut in the data", &good[..600]), ("cut in a header", &good[..1100])] {
        assert!(matches!(index_tar(tar, &|| false), Err(LayerError::Format { .. })), "{what}");
    }
    let mut flipped = good.clone();
    flipped[5] ^= 1;
    assert!(index_tar(&*flipped, &|| false).expect_err("checksum").to_string().contains("checksum"));
    assert!(
        index_tar(&*archive(&[Raw::new(b'Q', "x")]), &|| false)
            .expect_err("type")
            .to_string()
            .contains("unknown member type")
    );
    assert!(index_tar(&good[..1024 + 512], &|| false).is_ok(), "an archive without its end is read as tar reads it");
    assert!(index_tar(&b""[..], &|| false).expect("nothing at all").index.entries().len() <= 1);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(300) })]

    /// Whatever the bytes, reading ends, without a panic, and what it makes can be stored.
    #[test]
    fn any_bytes_are_survived(
        changes in proptest::collection::vec((0_usize..6000, any::<u8>()), 0..6),
        fix in any::<bool>(),
    ) {
        let mut tar = archive(&[
            Raw::pax(&[("path", b"long"), ("GNU.sparse.major", b"1"), ("GNU.sparse.minor", b"0"), ("GNU.sparse.realsize", b"2000")]),
            Raw { data: { let mut map = b"1\n100\n5\n".to_vec(); map.resize(517, 0); map }, ..Raw::new(b'0', "s") },
            Raw::hardlink("h", "long"),
            Raw::file("a/.wh.b", ""),
            Raw::symlink("l", "a"),
            Raw::file("l/f", "x"),
        ]);
        for (at, byte) in changes {
            let length = tar.len();
            tar[at % length] = byte;
        }
        if fix {
            for block in tar.chunks_exact_mut(512) {
                if block[257..262] == *b"ustar" {
                    let mut header = tar::Header::new_old();
                    header.as_mut_bytes().copy_from_slice(block);
                    header.set_cksum();
                    block.copy_from_slice(header.as_bytes());
                }
            }
        }
        if let Ok(read) = index_tar(&*tar, &|| false) {
            let encoded = read.index.encode();
            prop_assert_eq!(LayerIndex::decode(&encoded).expect("our own"), read.index);
        }
        let _ = LayerIndex::decode(&tar);
    }

    /// The same for indexes.
    #[test]
    fn any_index_is_survived(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = LayerIndex::decode(&[&[1], &*bytes].concat());
    }
}

fn deep(directory: &str, name: u32) -> [Raw; 2] {
    [Raw::pax(&[("path", format!("{}{name}", format!("{directory}/").repeat(2000)).as_bytes())]), Raw::file("x", "")]
}

/// Work per directory on the way that grows with the depth would not end.
#[test]
fn a_layer_as_deep_as_paths_go() {
    let members: Vec<Raw> = (0..100).flat_map(|name| [deep("a", name), deep("b", name)]).flatten().collect();
    let tar = archive(&members);
    let applied = index_tar(&*tar, &|| false).expect("legal");
    assert_eq!(applied.index.entries().len(), 1 + 2 * 2000 + 200);
    assert!(applied.index.encode().len() < 200_000, "paths share their beginnings");
    let tree = Tree::new(vec![Arc::new(applied.index)]);
    let mut visited = 0;
    tree.walk(b"", |_| {
        visited += 1;
        Ok::<_, LayerError>(())
    })
    .expect("visit has no error");
    assert_eq!(visited, 4201);
    let last = format!("{}99", "b/".repeat(2000));
    assert!(tree.lookup(last.as_bytes()).is_some());

    // On the disk, upon itself, and back.
    let temp = tempfile::tempdir().expect("temporary directory");
    let mut applied = apply(&*tar, temp.path(), &options(), &|| false).expect("legal");
    let open_below = |_: usize, _: &[u8]| Err(std::io::ErrorKind::NotFound.into());
    mend(temp.path(), &mut applied.index, &tree, &options(), open_below, || Ok(&*tar), &|| false).expect("legal");
    let committed =
        commit_upper(temp.path(), &CommitOptions { below: Some(&tree), cancelled: None, ..CommitOptions::default() })
            .expect("legal");
    assert_eq!(committed.index.entries().len(), 4201);
    sys::file::remove_all(sys::file::open_root(temp.path()).expect("open"), b"a").expect("removed");
    sys::file::remove_all(sys::file::open_root(temp.path()).expect("open"), b"b").expect("removed");
}

#[test]
fn few_bytes_that_stand_for_many_paths_are_refused() {
    let members = (0..200).flat_map(|number| {
        let path = format!("{number}/{}x", "d/".repeat(2000));
        [Raw::pax(&[("path", path.as_bytes())]), Raw::file("x", "")]
    });
    let tar = archive(&members.collect::<Vec<_>>());
    assert!(tar.len() < 2 << 20);
    let error = index_tar(&*tar, &|| false).expect_err("half a gigabyte of paths");
    assert!(matches!(error, LayerError::TooManyPaths), "{error}");
    // What is only looked up counts too: targets of links that are not there.
    let members = (0..200).flat_map(|number| {
        let target = format!("{number}/{}x", "d/".repeat(2000));
        [Raw::pax(&[("linkpath", target.as_bytes())]), Raw::hardlink(&format!("link{number}"), "")]
    });
    let tar = archive(&members.collect::<Vec<_>>());
    assert!(matches!(index_tar(&*tar, &|| false), Err(LayerError::TooManyPaths)));
}

#[test]
fn names_that_no_file_system_holds_are_refused() {
    for (path, why) in [("n".repeat(256), "255 bytes"), ("d/".repeat(2100), "4095 bytes")] {
        let tar = archive(&[Raw::pax(&[("path", path.as_bytes())]), Raw::file("x", "")]);
        let error = index_tar(&*tar, &|| false).expect_err("too long").to_string();
        assert!(error.contains(why) && error.len() < 200, "{error}");
    }
    // A short name that grows on the way: a link leads to a long path, again and again.
    let long = "d/".repeat(1000);
    let members = [
        Raw::pax(&[("linkpath", long.as_bytes())]),
        Raw::symlink("l", ""),
        Raw::pax(&[("path", b"l/l/x"), ("linkpath", long.as_bytes())]),
        Raw::symlink("", ""),
        Raw::pax(&[("path", format!("l/l/x/{}", "e/".repeat(1100)).as_bytes())]),
        Raw::dir(""),
    ];
    let error = index_tar(&*archive(&members), &|| false).expect_err("too long").to_string();
    assert!(error.contains("4095 bytes"), "{error}");
}

/// A link has the attributes of its file: each copying them would turn a small archive into gigabytes.
#[test]
fn many_names_of_a_file_with_large_attributes() {
    let value = vec![b'v'; 900_000];
    let mut members = vec![Raw::pax(&[("SCHILY.xattr.user.large", &value)]), Raw::file("file", "")];
    members.extend((0..50_000).map(|number| Raw::hardlink(&format!("link{number}"), "file")));
    let index = index_tar(&*archive(&members), &|| false).expect("legal").index;
    assert_eq!(index.entries().len(), 50_002);
    let bytes: usize = index.entries().iter().flat_map(|entry| &entry.xattrs).map(|(_, value)| value.len()).sum();
    assert_eq!(bytes, value.len());
}

#[test]
fn unpacking_ends_when_asked_to() {
    let members: Vec<Raw> = (0..1000).map(|number| Raw::file(&number.to_string(), "data")).collect();
    let tar = archive(&members);
    let asked = std::cell::Cell::new(0);
    let cancelled = || {
        asked.set(asked.get() + 1);
        asked.get() > 10
    };
    let temp = tempfile::tempdir().expect("temporary directory");
    assert!(matches!(apply(&*tar, temp.path(), &options(), &cancelled), Err(LayerError::Cancelled)));
    assert_eq!(asked.get(), 11);
    assert!(std::fs::read_dir(temp.path()).expect("ours").count() <= 11);
    // In the middle of a file: holes cost nothing to send.
    let records = [
        ("GNU.sparse.major", &b"0"[..]),
        ("GNU.sparse.minor", b"1"),
        ("GNU.sparse.size", b"200000000000"),
        ("GNU.sparse.map", b"0,0"),
    ];
    asked.set(0);
    let tar = archive(&[Raw::pax(&records), Raw::file("hole", "")]);
    assert!(matches!(index_tar(&*tar, &cancelled), Err(LayerError::Cancelled)));
    let committed = commit_upper(
        temp.path(),
        &CommitOptions { below: None, cancelled: Some(&|| true), ..CommitOptions::default() },
    );
    assert!(matches!(committed, Err(LayerError::Cancelled)));
}
