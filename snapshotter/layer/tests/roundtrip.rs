//! Every kind of thing goes from a directory to a tar and back without a change.

use std::io::{self, Write};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use graph::Digest;
use sys::file::{self, Node};

use super::support::{Raw, TIME, archive, need_root, options, root, same, shot_of_dir, shot_of_index};
use crate::layer::header::push_header;
use crate::layer::read::{MemberKind, TarReader};
use crate::layer::*;

/// An upper directory with all that an overlay can leave there.
fn upper(dir: &Path) {
    let at = |name: &str| dir.join(name);
    std::fs::create_dir_all(at("etc/empty")).expect("mkdir");
    std::fs::create_dir_all(at("opaque")).expect("mkdir");
    std::fs::write(at("etc/file"), "contents\n").expect("write");
    std::fs::hard_link(at("etc/file"), at("etc/file.again")).expect("link");
    std::fs::hard_link(at("etc/file"), at("a-link")).expect("link");
    std::fs::write(at("zero"), "").expect("write");
    std::fs::write(at("suid"), vec![b'x'; 5000]).expect("write");
    std::fs::write(at("exactly-a-block"), vec![b'y'; 512]).expect("write");
    std::fs::write(at("gr\u{fc}\u{df}e \u{1f433}"), "not ASCII").expect("write");
    let long = format!("{}/{}", "d".repeat(90), "e".repeat(200));
    std::fs::create_dir_all(at(&long)).expect("mkdir");
    std::fs::write(at(&long).join("f".repeat(255)), "far down").expect("write");
    symlink("../../outside", at("etc/up")).expect("symlink");
    symlink("t".repeat(150), at("long-target")).expect("symlink");
    symlink("dash", at("dash")).expect("symlink");
    let mut sparse = std::fs::File::create(at("sparse")).expect("create");
    sparse.set_len(3_000_000).expect("truncate");
    sparse.write_all(b"start").expect("write");
    std::fs::write(at("big"), (0..3_000_000_u32).flat_map(u32::to_le_bytes).collect::<Vec<u8>>()).expect("write");
    drop(std::os::unix::net::UnixListener::bind(at("socket")).expect("socket"));

    let handle = file::open_root(dir).expect("open");
    file::mknod(&handle, b"null", Node::Char { major: 1, minor: 3 }, 0o600).expect("mknod");
    file::mknod(&handle, b"loop", Node::Block { major: 7, minor: 300 }, 0o600).expect("mknod");
    file::mknod(&handle, b"pipe", Node::Fifo, 0o600).expect("mknod");
    file::mknod(&handle, b"gone", Node::WHITEOUT, 0).expect("mknod");
    let etc = file::open_dir(&handle, b"etc").expect("open");
    file::link(&handle, b"gone", &etc, b"gone-too").expect("whiteouts share an inode");
    sys::xattr::set_at(&handle, b"opaque", b"trusted.overlay.opaque", b"y").expect("setxattr");
    sys::xattr::set_at(&handle, b"etc", b"trusted.overlay.impure", b"y").expect("setxattr");
    sys::xattr::set_at(&handle, b"etc", b"trusted.overlay.origin", b"whatever").expect("setxattr");
    sys::xattr::set_at(&handle, b"etc", b"trusted.other", b"1").expect("setxattr");
    sys::xattr::set_at(&handle, b"etc", b"user.note", b"line\nline=\0").expect("setxattr");
    file::chown_at(&handle, b"suid", 1000, 3_000_000).expect("chown");
    // cap_net_raw, permitted and effective, as setcap(8) writes it.
    let capability = b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    sys::xattr::set_at(&handle, b"suid", b"security.capability", capability).expect("setxattr");
    file::chmod_at(&handle, b"suid", 0o6755).expect("chmod");
    file::chmod_at(&handle, b"opaque", 0o1777).expect("chmod");
    file::chmod_at(&handle, b"zero", 0).expect("chmod");
    for name in ["suid", "null", "loop", "pipe", "dash", "big", "zero", "sparse", "opaque", "etc"] {
        file::set_mtime_at(&handle, name.as_bytes(), (TIME, 123)).expect("utimens");
    }
    file::set_mtime_at(&handle, b"long-target", (-5, 0)).expect("utimens");
}

#[test]
fn as_root_a_directory_survives_byte_for_byte() {
    need_root();
    let temp = tempfile::tempdir().expect("temporary directory");
    let (source, copy) = (temp.path().join("upper"), temp.path().join("copy"));
    std::fs::create_dir(&source).expect("mkdir");
    std::fs::create_dir(&copy).expect("mkdir");
    upper(&source);

    let committed = commit_upper(&source, &CommitOptions::default()).expect("commit");
    let mut tar = Vec::new();
    write_upper(&source, &committed.index, WRITER_VERSION, &mut tar).expect("write");
    assert_eq!((Digest::of(&tar), tar.len() as u64), (committed.diff_id, committed.size));

    let applied = apply(&*tar, &copy, &options(), &|| false).expect("apply");
    assert_eq!(applied.not_held, Vec::<Vec<u8>>::new());
    assert_eq!(
        (applied.diff_id, applied.size, applied.content),
        (committed.diff_id, committed.size, committed.content)
    );
    assert_eq!(applied.index.entries()[1..], committed.index.entries()[1..]);
    let indexed = index_tar(&*tar, &|| false).expect("index");
    assert_eq!(indexed.index, applied.index);
    assert_eq!(LayerIndex::decode(&applied.index.encode()).expect("decode"), applied.index);

    let mut again = Vec::new();
    write_upper(&copy, &applied.index, WRITER_VERSION, &mut again).expect("write");
    assert!(again == tar, "the copy gives other bytes");
    assert_eq!(commit_upper(&copy, &CommitOptions::default()).expect("commit").diff_id, committed.diff_id);

    // The disk holds what the index says; the bytes are where it says.
    for entry in applied.index.entries() {
        if let EntryKind::File { size, digest, offset: Some(offset) } = entry.kind {
            let data = &tar[usize::try_from(offset).expect("small")..][..usize::try_from(size).expect("small")];
            assert_eq!(graph::ContentDigest::of(data), digest);
        }
    }
    let mut on_disk = shot_of_dir(&copy);
    on_disk.retain(|_, line| !line.starts_with("char 0"));
    let mut shown = shot_of_index(applied.index.clone());
    // The root is described by nobody, whiteouts and opaque marks are not shown.
    on_disk.remove("/");
    shown.remove("/");
    on_disk.retain(|path, _| path != "/gone" && path != "/etc/gone-too");
    same(&shown, &on_disk);
}

#[test]
fn as_root_the_same_bytes_on_any_number_of_threads() {
    need_root();
    let temp = tempfile::tempdir().expect("temporary directory");
    upper(temp.path());
    let digests: Vec<_> = [1, 2, 7]
        .into_iter()
        .map(|threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("pool");
            pool.install(|| commit_upper(temp.path(), &CommitOptions::default()).expect("commit").diff_id)
        })
        .collect();
    assert!(digests.iter().all(|digest| *digest == digests[0]));
}

/// Raise [`WRITER_VERSION`] when this changes: diff ids that were recorded cannot be made again any more.
#[test]
fn the_bytes_of_a_layer_are_fixed() {
    let expected = [
        (1, "49e8402e009d2bfa4ae24c5459606e1c0c209815accd84f4b0decb6b85013fd4"),
        (2, "03eef19b2ecfa51a382dcb2ba51d8f9fe2f6e5d6d93e424ce8f9a0041e58b28c"),
    ];
    assert_eq!(WRITER_VERSION, 2);
    for (version, diff_id) in expected {
        assert!(can_write(version));
        let written = some_of_everything(LayerWriter::of_version(version, Vec::new()));
        assert_eq!(written.diff_id.hex(), diff_id, "version {version}");
        assert_eq!(written.content.hex(), "ad7a152f51911f977efcb722068eb292cd5daa384296d0301cfc67e95f9a67ae");
    }
}

fn some_of_everything(mut writer: LayerWriter<Vec<u8>>) -> Written {
    let mut suid = Entry::file("bin/su", 3, 0o4755);
    (suid.uid, suid.gid, suid.mtime) = (0, 5_000_000, (TIME, 999));
    suid.xattrs.push((b"user.x".to_vec(), b"\n=\0".to_vec()));
    writer.append(Entry::dir("bin", 0o755)).expect("append");
    writer.append_file(suid, &b"abc"[..], Expect::Nothing).expect("append");
    writer.append(Entry::new("bin/sx", EntryKind::Hardlink { target: b"bin/su".to_vec() }, 0o755)).expect("append");
    writer.append(Entry::new("dev", EntryKind::CharDev { major: 5, minor: 1 }, 0o600)).expect("append");
    let large = vec![b'l'; 1 << 20];
    for name in ["large", "larger"] {
        writer.append_file(Entry::file(name, 1 << 20, 0o644), &*large, Expect::Nothing).expect("append");
    }
    writer.append(Entry::new("n".repeat(101), EntryKind::Symlink { target: vec![b't'; 101] }, 0o777)).expect("append");
    writer.append(Entry::new("x/gone", EntryKind::Whiteout, 0)).expect("append");
    let opaque = EntryKind::Dir { opaque: true, implicit: false };
    writer.append(Entry::new("y", opaque, 0o700)).expect("append");
    let (written, tar) = writer.finish().expect("finish");
    assert_eq!(written.diff_id, Digest::of(&tar));
    written
}

#[test]
fn the_content_digest_knows_no_times() {
    let layer = |mtime: i64, mode: u32| {
        let members = [Raw { mtime, ..Raw::file("a/b", "x") }, Raw { mtime, ..Raw::dir("c").mode(mode) }];
        index_tar(&*archive(&members), &|| false).expect("index")
    };
    assert_eq!(layer(1, 0o755).content, layer(2, 0o755).content);
    assert_ne!(layer(1, 0o755).diff_id, layer(2, 0o755).diff_id);
    assert_ne!(layer(1, 0o755).content, layer(1, 0o700).content);
}

#[test]
fn sizes_beyond_the_octal_field() {
    let mut bytes = Vec::new();
    let mut entry = Entry::file("huge", 9 << 30, 0o644);
    (entry.uid, entry.mtime) = (4_000_000_000, (-1, 0));
    push_header(&mut bytes, &entry, None).expect("header");
    let member = TarReader::new(&*bytes).next_member().expect("read").expect("a member");
    assert_eq!(member.kind, MemberKind::File { size: 9 << 30, offset: Some(bytes.len() as u64) });
    assert_eq!((member.uid, member.mtime), (4_000_000_000, (-1, 0)));
}

#[test]
fn a_source_must_give_what_was_announced() {
    let append = |size, data: &[u8], digest: &[u8], expect| {
        let mut entry = Entry::file("f", size, 0o644);
        entry.kind = EntryKind::File { size, digest: graph::ContentDigest::of(digest), offset: None };
        LayerWriter::new(io::sink()).append_file(entry, data, expect)
    };
    assert!(append(3, b"abc", b"abc", Expect::Digest).is_ok());
    for (what, result) in [
        ("shorter", append(4, b"abc", b"abc", Expect::Trusted)),
        ("longer", append(2, b"abc", b"abc", Expect::Trusted)),
        ("other", append(3, b"abd", b"abc", Expect::Digest)),
    ] {
        let error = result.expect_err(what).to_string();
        assert_eq!(error, "/f changed during the build", "{what}");
    }
}

#[test]
fn the_writer_refuses_what_would_be_misread() {
    let one = |entry: Entry| LayerWriter::new(io::sink()).append(entry).map_err(|error| error.to_string());
    assert!(one(Entry::dir("a/../b", 0o755)).is_err());
    assert!(one(Entry::dir("/a", 0o755)).is_err());
    assert!(one(Entry::file("a/.wh.b", 0, 0o644)).expect_err("a whiteout").contains(".wh."));
    assert!(one(Entry::new("l", EntryKind::Hardlink { target: b"nowhere".to_vec() }, 0)).is_err());
    let mut named = Entry::dir("d", 0o755);
    named.xattrs.push((b"user.a=b".to_vec(), Vec::new()));
    assert!(one(named).is_err());
    let mut writer = LayerWriter::new(io::sink());
    writer.append(Entry::dir("b", 0o755)).expect("append");
    assert!(matches!(writer.append(Entry::dir("a", 0o755)), Err(LayerError::OutOfOrder { .. })));
    assert!(matches!(writer.append(Entry::dir("b", 0o755)), Err(LayerError::OutOfOrder { .. })));
}

#[test]
fn as_root_gnu_tar_and_busybox_read_our_bytes() {
    need_root();
    let temp = tempfile::tempdir().expect("temporary directory");
    let source = temp.path().join("upper");
    std::fs::create_dir(&source).expect("mkdir");
    upper(&source);
    let committed = commit_upper(&source, &CommitOptions::default()).expect("commit");
    let mut tar = Vec::new();
    write_upper(&source, &committed.index, WRITER_VERSION, &mut tar).expect("write");
    std::fs::write(temp.path().join("layer.tar"), &tar).expect("write");
    let dest = temp.path().join("gnu");
    std::fs::create_dir(&dest).expect("mkdir");
    let result = Command::new("tar")
        .args(["--xattrs", "--xattrs-include=*", "--numeric-owner", "-xpf"])
        .arg(temp.path().join("layer.tar"))
        .arg("-C")
        .arg(&dest)
        .output()
        .expect("tar");
    assert!(result.status.success(), "{}", String::from_utf8_lossy(&result.stderr));
    let mut got = shot_of_dir(&dest);
    let mut want = shot_of_index(committed.index.clone());
    got.retain(|path, _| !path.contains("/.wh."));
    got.remove("/");
    want.remove("/");
    same(&want, &got);
    let listed = Command::new("busybox").args(["tar", "-tf"]).arg(temp.path().join("layer.tar")).output();
    let listed = listed.expect("busybox (package busybox-static)");
    assert!(listed.status.success(), "{}", String::from_utf8_lossy(&listed.stderr));
}

#[test]
fn gnu_tars_own_formats_are_read() {
    let temp = tempfile::tempdir().expect("temporary directory");
    let source = temp.path().join("source");
    std::fs::create_dir(&source).expect("mkdir");
    let name = format!("{}/{}", "d".repeat(120), "f".repeat(120));
    std::fs::create_dir(source.join("d".repeat(120))).expect("mkdir");
    std::fs::write(source.join(&name), "x").expect("write");
    symlink("t".repeat(200), source.join("link")).expect("symlink");
    let mut sparse = std::fs::File::create(source.join("sparse")).expect("create");
    for piece in 0..40_u64 {
        io::Seek::seek(&mut sparse, io::SeekFrom::Start(piece * 100_000)).expect("seek");
        sparse.write_all(&[b'a'; 5000]).expect("write");
    }
    sparse.set_len(5_000_000).expect("truncate");
    let mut want = shot_of_dir(&source);
    want.remove("/");
    for format in
        ["gnu", "pax", "pax --sparse-version=0.0", "pax --sparse-version=0.1", "pax --sparse-version=1.0", "oldgnu"]
    {
        let command = format!("tar --sparse --numeric-owner --format={format} -C {} -cf - .", source.display());
        let result = Command::new("sh").args(["-c", &command]).output().expect("tar");
        assert!(result.status.success(), "{}", String::from_utf8_lossy(&result.stderr));
        let mut got = shot_of_index(
            index_tar(&*result.stdout, &|| false).unwrap_or_else(|error| panic!("{format}: {error}")).index,
        );
        got.remove("/");
        // Only PAX has fractions of seconds.
        let cut = |shot: &super::support::Shot| -> super::support::Shot {
            let cut = |line: &String| {
                let (start, rest) = line.split_once('.').expect("a time");
                format!("{start}{}", &rest[9..])
            };
            shot.iter().map(|(path, line)| (path.clone(), cut(line))).collect()
        };
        same(&cut(&want), &cut(&got));
        if root() && format.starts_with("pax") {
            let dest = temp.path().join(format.replace([' ', '='], "-"));
            std::fs::create_dir(&dest).expect("mkdir");
            apply(&*result.stdout, &dest, &options(), &|| false).expect("apply");
            let mut got = shot_of_dir(&dest);
            got.remove("/");
            same(&want, &got);
        }
    }
}

#[test]
fn as_root_umoci_unpacks_our_layers() {
    need_root();
    Command::new("umoci").arg("--version").output().expect("umoci (package umoci)");
    let temp = tempfile::tempdir().expect("temporary directory");
    let lower = [Raw::dir("etc"), Raw::file("etc/gone-too", "1"), Raw::file("gone", "2"), Raw::file("opaque/old", "3")];
    let source = temp.path().join("upper");
    std::fs::create_dir(&source).expect("mkdir");
    upper(&source);
    let below = index_tar(&*archive(&lower), &|| false).expect("index");
    let tree = Tree::new(vec![below.index.clone().into()]);
    let committed =
        commit_upper(&source, &CommitOptions { below: Some(&tree), cancelled: None, ..CommitOptions::default() })
            .expect("commit");
    let mut tar = Vec::new();
    write_upper(&source, &committed.index, WRITER_VERSION, &mut tar).expect("write");

    let image = temp.path().join("image");
    let blobs = image.join("blobs/sha256");
    std::fs::create_dir_all(&blobs).expect("mkdir");
    let put = |bytes: &[u8], kind: &str| {
        let digest = Digest::of(bytes);
        std::fs::write(blobs.join(digest.hex()), bytes).expect("write");
        serde_json::json!({"mediaType": kind, "digest": digest.to_string(), "size": bytes.len()})
    };
    let layer = "application/vnd.oci.image.layer.v1.tar";
    let layers = [put(&archive(&lower), layer), put(&tar, layer)];
    let config = serde_json::json!({"architecture": "amd64", "os": "linux", "config": {},
        "rootfs": {"type": "layers", "diff_ids": [below.diff_id.to_string(), committed.diff_id.to_string()]}});
    let config = put(config.to_string().as_bytes(), "application/vnd.oci.image.config.v1+json");
    let manifest = serde_json::json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": config, "layers": layers});
    let mut manifest = put(manifest.to_string().as_bytes(), "application/vnd.oci.image.manifest.v1+json");
    manifest["annotations"] = serde_json::json!({"org.opencontainers.image.ref.name": "t"});
    let index = serde_json::json!({"schemaVersion": 2, "manifests": [manifest]});
    std::fs::write(image.join("index.json"), index.to_string()).expect("write");
    std::fs::write(image.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).expect("write");
    let result = Command::new("umoci")
        .args(["unpack", "--image", &format!("{}:t", image.display())])
        .arg(temp.path().join("bundle"))
        .output()
        .expect("umoci");
    assert!(result.status.success(), "{}", String::from_utf8_lossy(&result.stderr));

    let mut got = shot_of_dir(&temp.path().join("bundle/rootfs"));
    let mut want = super::support::shot_of_tree(&Tree::new(vec![below.index.into(), committed.index.into()]));
    got.remove("/");
    want.remove("/");
    same(&want, &got);
}
