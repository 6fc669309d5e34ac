use std::collections::HashMap;
use std::io::Write as _;

use super::support::{normal, outcome, tree, tree_with};

/// An archive, of lines as in the language of trees.
fn archive(lines: &str) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for line in lines.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let mut header = tar::Header::new_gnu();
        let (head, content) = line.split_once(" = ").unwrap_or((line, ""));
        let (head, link) = head.split_once(" -> ").map_or((head, None), |(head, target)| (head, Some(target)));
        let (head, hard) = head.split_once(" == ").map_or((head, None), |(head, target)| (head, Some(target)));
        let mut words = head.split(' ');
        let name = words.next().unwrap_or_default();
        header.set_entry_type(match (name.ends_with('/'), link, hard) {
            (true, ..) => tar::EntryType::Directory,
            (_, Some(_), _) => tar::EntryType::Symlink,
            (_, _, Some(_)) => tar::EntryType::Link,
            _ if content == "|" => tar::EntryType::Fifo,
            _ => tar::EntryType::Regular,
        });
        let content = if content == "|" { "" } else { content };
        header.set_mode(if name.ends_with('/') { 0o755 } else { 0o644 });
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(7);
        header.set_size(content.len() as u64);
        for word in words {
            match word.split_once(':') {
                Some((uid, gid)) => {
                    header.set_uid(uid.parse().expect("uid"));
                    header.set_gid(gid.parse().expect("gid"));
                }
                None => header.set_mode(u32::from_str_radix(word, 8).expect("mode")),
            }
        }
        // Names as they are: the builder would refuse or clean some.
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        if let Some(target) = link.or(hard) {
            header.as_old_mut().linkname[..target.len()].copy_from_slice(target.as_bytes());
        }
        header.set_cksum();
        builder.append(&header, content.as_bytes()).expect("member");
    }
    builder.into_inner().expect("archive")
}

/// What `ADD` makes of an archive.
fn add(base: &str, archive: Vec<u8>, instruction: &str) -> String {
    let blobs = HashMap::from([("archive", archive)]);
    outcome(&tree(base, 3), &tree_with("a.tar = @archive\nplain = 1\nlink -> a.tar", 5, &blobs), instruction)
}

#[test]
fn archives_are_unpacked() {
    for (base, lines, instruction, want) in [
        (
            "",
            "d/ 700 1:2\nd/x 600 3:4 = 1\nl -> d/x\np = |",
            "ADD a.tar /",
            "d/ 700 1:2\nd/x 600 3:4 = 1\nl -> d/x\np |",
        ),
        ("", "x = 1", "ADD a.tar /to", "to/\nto/x = 1"),
        ("", "x = 1", "ADD *.tar /to", "to/\nto/x = 1"),
        ("", "x = 1", "ADD link /to/", "to/\nto/x = 1"),
        // Parents that the archive does not mention are root's; the destination is the owner's who was asked for.
        ("", "d/x 3:4 = 1", "ADD --chown=8:9 a.tar /to", "to/ 8:9\nto/d/\nto/d/x 8:9 = 1"),
        // The archive's root leaves the destination alone.
        ("to/ 700 1:1", "./ 755 5:5\n./x = 1", "ADD a.tar /to", "to/ 700 1:1\nto/x = 1"),
        // Directories are merged, everything else is replaced.
        ("d/ 700 1:1\nd/old = 1", "d/ 750 2:2\nd/new = 2", "ADD a.tar /", "d/ 750 2:2\nd/new = 2"),
        ("d/\nd/old = 1", "d = 2", "ADD a.tar /", "d = 2"),
        ("x = 1", "x/\nx/y = 2", "ADD a.tar /", "x/\nx/y = 2"),
        ("l -> real\nreal/", "l/\nl/x = 1", "ADD a.tar /", "l/\nl/x = 1"),
        ("l -> real\nreal = 1", "l = 2", "ADD a.tar /", "l = 2"),
        ("d/\nd/old = 1", "d = 1\nd/\nd/new = 2", "ADD a.tar /", "d/ opaque\nd/new = 2"),
        ("", "x = 1\nx = 2", "ADD a.tar /", "x = 2"),
        // Links on the way are followed, with the destination as their root.
        (
            "var/\nvar/run -> /run\nrun/",
            "var/run/act/\nvar/run/act/x = 1",
            "ADD a.tar /",
            "run/\nrun/act/\nrun/act/x = 1",
        ),
        ("to/\nto/l -> /in", "l/x = 1", "ADD a.tar /to", "to/\nto/in/\nto/in/x = 1"),
        ("to/\nto/l -> ../../up", "l/x = 1", "ADD a.tar /to", "to/\nto/up/\nto/up/x = 1"),
        ("to -> /real\nreal/", "x = 1", "ADD a.tar /to", "real/\nreal/x = 1"),
        ("", "l -> /etc\nl/x = 1", "ADD a.tar /to", "to/\nto/etc/\nto/etc/x = 1\nto/l -> /etc"),
        // Hard links, also to what was there before, and through links.
        ("", "a = 1\nb == a", "ADD a.tar /to", "to/\nto/a = 1\nto/b == to/a"),
        ("", "b = 1\na == b", "ADD a.tar /", "a = 1\nb == a"),
        ("old 600 = 1", "new == old", "ADD a.tar /", "new 600 = 1\nold == new"),
        ("", "s -> x\nt == s", "ADD a.tar /", "s -> x\nt -> x"),
        ("", "a = 1\na == a", "ADD a.tar /", "a = 1"),
        (
            "",
            "b == none",
            "ADD a.tar /",
            "error: cannot unpack /a.tar: /none: a hard link names it, but it is no file that is there",
        ),
        (
            "d/",
            "b == d",
            "ADD a.tar /",
            "error: cannot unpack /a.tar: /d: a hard link names it, but it is no file that is there",
        ),
        // Nothing leaves the destination.
        ("", "../x = 1", "ADD a.tar /to", "error: cannot unpack /a.tar: /../x: it leads out of the archive"),
        ("", "a/../../x = 1", "ADD a.tar /to", "error: cannot unpack /a.tar: /a/../../x: it leads out of the archive"),
        (
            "etc/\netc/passwd = 1",
            "x == ../etc/passwd",
            "ADD a.tar /to",
            "error: cannot unpack /a.tar: /../etc/passwd: it leads out of the archive",
        ),
        ("", "a/../x = 1", "ADD a.tar /to", "to/\nto/x = 1"),
        ("", "/abs = 1", "ADD a.tar /to", "to/\nto/abs = 1"),
        // A name that would remove something in a layer cannot be kept in one.
        (
            "",
            ".wh.x = 1",
            "ADD a.tar /",
            "error: /.wh.x cannot be stored in a layer: names that begin with \".wh.\" stand for removed files there",
        ),
        // --exclude and --chmod do not concern what is unpacked; COPY does not unpack.
        ("", "x = 1", "ADD --chmod=777 --exclude=x a.tar /", "x = 1"),
        ("", "x = 1", "ADD plain /", "plain = 1"),
    ] {
        assert_eq!(add(base, archive(lines), instruction), normal(want), "{instruction}\n{lines}\nonto\n{base}");
    }
    assert!(add("", archive("x = 1"), "COPY a.tar /").starts_with("a.tar = x"));
}

#[test]
fn compressed_archives_are_unpacked() {
    let plain = archive("d/\nd/x = content");
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&plain).expect("gzip");
    let mut bzip2 = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
    bzip2.write_all(&plain).expect("bzip2");
    let mut xz = lzma_rust2::XzWriter::new(Vec::new(), lzma_rust2::XzOptions::with_preset(1)).expect("xz");
    xz.write_all(&plain).expect("xz");
    for (name, bytes) in [
        ("gzip", gzip.finish().expect("gzip")),
        ("bzip2", bzip2.finish().expect("bzip2")),
        ("zstd", zstd::encode_all(plain.as_slice(), 1).expect("zstd")),
        ("xz", xz.finish().expect("xz")),
        ("tar", plain),
    ] {
        assert_eq!(add("", bytes, "ADD a.tar /"), "d/\nd/x = content\n", "{name}");
    }
}

#[test]
fn what_only_looks_like_an_archive_is_copied() {
    for bytes in
        [b"\x1f\x8b\x08 not gzip".to_vec(), b"BZh9 no".to_vec(), b"plain text".to_vec(), Vec::new(), vec![0; 1024]]
    {
        let got = add("", bytes.clone(), "ADD a.tar /");
        assert_eq!(got, format!("a.tar = {}\n", String::from_utf8_lossy(&bytes)));
    }
    let mut cut = archive("x = 1\ny = 2");
    cut.truncate(1600);
    assert!(add("", cut, "ADD a.tar /").starts_with("error: cannot unpack /a.tar: "));
    // One whose compressed form ends early began like an archive, however short it is.
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::none());
    gzip.write_all(&archive("x = 1\ny = 2")).expect("gzip");
    let mut cut = gzip.finish().expect("gzip");
    cut.truncate(1600);
    assert!(add("", cut, "ADD a.tar /").starts_with("error: cannot unpack /a.tar: "));
}

#[test]
fn sparse_members_are_filled() {
    // PAX sparse format 1.0: five bytes at the start and two at the end of sixteen.
    let mut builder = tar::Builder::new(Vec::new());
    let records: [(&str, &[u8]); 4] = [
        ("GNU.sparse.major", b"1"),
        ("GNU.sparse.minor", b"0"),
        ("GNU.sparse.name", b"holes"),
        ("GNU.sparse.realsize", b"16"),
    ];
    builder.append_pax_extensions(records).expect("records");
    let mut data = b"2\n0\n5\n14\n2\n".to_vec();
    data.resize(512, 0);
    data.extend_from_slice(b"startnd");
    let mut header = tar::Header::new_ustar();
    header.set_path("GNUSparseFile.0/holes").expect("path");
    header.set_mode(0o644);
    header.set_size(data.len() as u64);
    header.set_cksum();
    builder.append(&header, data.as_slice()).expect("member");
    let bytes = builder.into_inner().expect("archive");
    assert_eq!(add("", bytes, "ADD a.tar /"), "holes = start\0\0\0\0\0\0\0\0\0nd\n");
}

#[test]
fn an_archive_as_a_build_context() {
    let bytes = archive("x = 1\nd/\nd/y 600 == x\n.wh.z = 2\nd/l -> ../x");
    let (index, data) = super::super::archive_tree(std::io::Cursor::new(bytes)).expect("tree");
    let names: Vec<_> = index.entries().iter().map(|entry| String::from_utf8_lossy(&entry.path).into_owned()).collect();
    assert_eq!(names, ["", ".wh.z", "d", "d/l", "d/y", "x"]);
    assert!(data.is_some());
}

/// Member headers with names as long as a PAX record can say.
fn deep_archive(names: impl Iterator<Item = String>) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for name in names {
        builder.append_pax_extensions([("path", name.as_bytes())]).expect("records");
        let mut header = tar::Header::new_ustar();
        header.set_path("short").expect("path");
        header.set_mode(0o644);
        header.set_size(0);
        header.set_cksum();
        builder.append(&header, &b""[..]).expect("member");
    }
    builder.into_inner().expect("archive")
}

/// Look-ups that started at the root, or compared whole paths for every directory on the way, would not end.
#[test]
fn an_archive_as_deep_as_paths_go() {
    let (one, other) = ("a/".repeat(2000), "b/".repeat(2000));
    let names = (0..100).flat_map(|number| [format!("{one}{number}"), format!("{other}{number}")]);
    let got = add("", deep_archive(names), "ADD a.tar /");
    assert_eq!(got.lines().count(), 2 * 2000 + 200, "every directory and file");
}

#[test]
fn paths_longer_than_any_machine_can_open_are_refused() {
    for (name, instruction, why) in [
        ("n".repeat(256), "ADD a.tar /", "a name may have 255 bytes"),
        ("d/".repeat(2100), "ADD a.tar /", "4095 bytes"),
        ("d/".repeat(2045) + "x", "ADD a.tar /a/longer/way", "a path may have 4095 bytes"),
    ] {
        let got = add("", deep_archive(["first".to_owned(), name].into_iter()), instruction);
        assert!(got.starts_with("error: cannot unpack /a.tar: ") && got.contains(why), "{got}");
        assert!(got.len() < 300, "the whole name is not shown: {got}");
    }
    let names = (0..200).map(|number| format!("{number}/{}x", "d/".repeat(2000)));
    let got = add("", deep_archive(names), "ADD a.tar /");
    assert!(got.contains("paths are more than 512 MiB"), "{got}");
}
