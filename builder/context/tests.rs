//! Directories and archives as contexts.

use std::fs;
use std::io::Read as _;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;

use snapshotter::StatCache;
use snapshotter::layer::EntryKind;

use super::{Ignore, LocalContext, Place, Stream, Wanted, stream};
use crate::worker::ReadableTree;

fn read(place: Place, rules: &str, wanted: &[&str]) -> ReadableTree {
    let ignore = Ignore::parse(".dockerignore", rules.as_bytes()).expect("rules");
    let mut paths = Wanted::default();
    for path in wanted {
        paths.add_literal(path.as_bytes());
    }
    let context = LocalContext { name: "context".into(), place, ignore };
    context.read(&paths, &StatCache::empty()).expect("context")
}

/// Paths and permission bits; the bytes of files are read and compared with their digests.
fn names(tree: &ReadableTree) -> Vec<String> {
    let mut names = Vec::new();
    let walked = tree.tree.walk(b"", |found| {
        let entry = found.entry;
        if let Some(file) = tree.tree.file_of(found)
            && let EntryKind::File { digest, .. } = file.entry.kind
        {
            let mut bytes = Vec::new();
            tree.open(file.layer, &file.entry.path)?.read_to_end(&mut bytes)?;
            assert_eq!(graph::ContentDigest::of(&bytes), digest, "{}", String::from_utf8_lossy(&entry.path));
        }
        assert_eq!((entry.uid, entry.gid), (0, 0));
        if !entry.path.is_empty() {
            let what = match &entry.kind {
                EntryKind::Hardlink { target } => format!(" == {}", String::from_utf8_lossy(target)),
                EntryKind::Symlink { target } => format!(" -> {}", String::from_utf8_lossy(target)),
                _ => format!(" {:o}", entry.mode),
            };
            names.push(format!("{}{what}", String::from_utf8_lossy(&entry.path)));
        }
        Ok::<_, std::io::Error>(())
    });
    walked.expect("walk");
    names
}

fn example() -> tempfile::TempDir {
    let directory = tempfile::tempdir().expect("directory");
    let at = |path: &str| directory.path().join(path);
    for path in ["logs/old", "src/deep", "other"] {
        fs::create_dir_all(at(path)).expect("directory");
    }
    for path in ["logs/a.log", "logs/old/keep", "logs/old/drop", "src/a", "src/deep/b", "other/c"] {
        fs::write(at(path), path).expect("file");
    }
    fs::hard_link(at("src/a"), at("src/z")).expect("link");
    symlink("../other/c", at("src/l")).expect("link");
    let mode = |path: &str, mode: u32| fs::set_permissions(at(path), fs::Permissions::from_mode(mode)).expect("mode");
    for path in ["src", "src/deep", "logs/old", "other"] {
        mode(path, 0o755);
    }
    for path in ["logs/a.log", "logs/old/keep", "logs/old/drop", "src/a", "src/deep/b", "other/c"] {
        mode(path, 0o644);
    }
    mode("logs", 0o700);
    let _socket = UnixListener::bind(at("socket")).expect("socket");
    directory
}

fn place(directory: &Path) -> Place {
    Place::Directory(directory.to_owned(), None)
}

/// The same as a tar.
fn archived(directory: &Path) -> Place {
    let mut builder = tar::Builder::new(Vec::new());
    builder.follow_symlinks(false);
    let _ = fs::remove_file(directory.join("socket"));
    builder.append_dir_all(".", directory).expect("archive");
    let bytes = builder.into_inner().expect("archive");
    match stream("a test", std::io::Cursor::new(bytes)).expect("stream") {
        Stream::Context(place) => place,
        Stream::Dockerfile(_) => panic!("taken for a Dockerfile"),
    }
}

#[test]
fn ignored_directories_come_with_what_is_kept_in_them() {
    let directory = example();
    let want = ["logs 700", "logs/old 755", "logs/old/keep 644"];
    let rules = "*\n!logs/old/keep";
    assert_eq!(names(&read(place(directory.path()), rules, &[""])), want);
    assert_eq!(names(&read(archived(directory.path()), rules, &[""])), want);
}

#[test]
fn sockets_are_left_out_and_links_are_kept() {
    let directory = example();
    let want = [
        "other 755",
        "other/c 644",
        "src 755",
        "src/a 644",
        "src/deep 755",
        "src/deep/b 644",
        "src/l -> ../other/c",
        "src/z == src/a",
    ];
    assert_eq!(names(&read(place(directory.path()), "logs", &[""])), want);
}

#[test]
fn data_go_to_the_first_name_that_is_not_ignored() {
    let directory = example();
    let rules = "logs\nother\nsrc/deep\nsrc/l\nsrc/a";
    assert_eq!(names(&read(place(directory.path()), rules, &[""])), ["src 755", "src/z 644"]);
    let tree = read(archived(directory.path()), rules, &[""]);
    assert_eq!(names(&tree), ["src 755", "src/z 644"]);
}

#[test]
fn only_what_is_wanted_is_looked_at() {
    let directory = example();
    fs::create_dir(directory.path().join("closed")).expect("directory");
    let tree = read(place(directory.path()), "", &["src/deep", "src/l"]);
    // What the link leads to is wanted, too.
    let want = ["other 755", "other/c 644", "src 755", "src/deep 755", "src/deep/b 644", "src/l -> ../other/c"];
    assert_eq!(names(&tree), want);
    // A directory that has nothing of what is wanted is not there, nor is a file in a directory's place.
    assert_eq!(names(&read(place(directory.path()), "", &["src/none", "src/a/b"])), [""; 0]);
}

#[test]
fn many_files_are_found_in_order() {
    let directory = tempfile::tempdir().expect("directory");
    let want: Vec<String> = (0..500).map(|number| format!("{number:03} 600")).collect();
    for name in &want {
        let path = directory.path().join(&name[..3]);
        fs::write(&path, name).expect("file");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("mode");
    }
    assert_eq!(names(&read(place(directory.path()), "", &[""])), want);
}

#[test]
fn a_stream_that_is_no_archive_is_a_dockerfile() {
    for text in ["", "FROM scratch\n", &"# long\n".repeat(200)] {
        match stream("a test", std::io::Cursor::new(text.to_owned())).expect("stream") {
            Stream::Dockerfile(bytes) => assert_eq!(bytes, text.as_bytes()),
            Stream::Context(_) => panic!("taken for an archive"),
        }
    }
}
