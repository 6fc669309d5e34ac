//! What stacks of layers look like, case by case.

use std::sync::Arc;

use super::support::{Raw, archive, need_root, options, root, same, shot_of_dir, shot_of_tar};
use crate::layer::*;

fn tree(layers: &[&[Raw]]) -> Tree {
    Tree::new(
        layers.iter().map(|layer| Arc::new(index_tar(&*archive(layer), &|| false).expect("index").index)).collect(),
    )
}

fn debian() -> Tree {
    tree(&[
        &[
            Raw::dir("usr"),
            Raw::dir("usr/bin"),
            Raw::file("usr/bin/sh", "dash"),
            Raw::symlink("bin", "usr/bin"),
            Raw::symlink("usr/bin/awk", "/etc/alternatives/awk"),
            Raw::symlink("etc/alternatives/awk", "/usr/bin/mawk"),
            Raw::file("usr/bin/mawk", "m"),
            Raw::symlink("self", "self"),
            Raw::hardlink("usr/bin/nawk", "usr/bin/mawk"),
        ],
        &[Raw::file("usr/bin/new", "n"), Raw::file("usr/bin/.wh.sh", ""), Raw::file("opt/x", "x")],
        &[Raw::file("opt/.wh..wh..opq", ""), Raw::file("opt/y", "y")],
    ])
}

#[test]
fn paths_are_resolved_inside_the_root() {
    let tree = debian();
    for (path, follow, want, exists) in [
        ("bin/new", true, "usr/bin/new", true),
        ("bin", false, "bin", true),
        ("bin", true, "usr/bin", true),
        ("bin/awk", true, "usr/bin/mawk", true),
        ("bin/awk", false, "usr/bin/awk", true),
        ("../../bin/../x", true, "usr/x", false),
        ("bin/sh", true, "usr/bin/sh", false),
        ("opt/x", true, "opt/x", false),
        ("opt/y", true, "opt/y", true),
        ("new/dir", true, "new/dir", false),
        ("", true, "", true),
    ] {
        let got = tree.resolve(path.as_bytes(), follow).expect(path);
        assert_eq!(String::from_utf8_lossy(&got.path), want, "{path}");
        assert_eq!(got.found.is_some(), exists, "{path}");
    }
    assert!(matches!(tree.resolve(b"self/x", true), Err(LayerError::Loop { .. })));
    assert!(tree.lookup(b"bin/new").is_none(), "a look-up is literal");
    assert_eq!(tree.lookup(b"usr/bin/new").expect("found").layer, 1);
    let nawk = tree.lookup(b"usr/bin/nawk").expect("found");
    let mawk = tree.file_of(nawk).expect("a file");
    assert!(matches!(mawk.entry.kind, EntryKind::File { size: 1, .. }));
}

#[test]
fn children_are_merged() {
    let tree = debian();
    let names = |path: &[u8]| -> Vec<String> {
        let prefix = if path.is_empty() { 0 } else { path.len() + 1 };
        let name = |found: &Found<'_>| String::from_utf8_lossy(&found.entry.path[prefix..]).into_owned();
        tree.children(path).iter().map(name).collect()
    };
    assert_eq!(names(b""), ["bin", "etc", "opt", "self", "usr"]);
    assert_eq!(names(b"usr/bin"), ["awk", "mawk", "nawk", "new"]);
    assert_eq!(names(b"opt"), ["y"]);
    assert!(names(b"usr/bin/mawk").is_empty() && names(b"nowhere").is_empty());
    assert!(Tree::default().lookup(b"").is_none() && Tree::default().children(b"").is_empty());
}

#[test]
fn a_digest_depends_on_what_shows_and_nothing_else() {
    let base: &[Raw] = &[Raw::dir("d"), Raw::file("d/a", "1"), Raw::file("other", "x")];
    let digest = |layers: &[&[Raw]]| tree(layers).digest(b"d").expect("exists");
    let plain = digest(&[base]);
    let same_content: &[&[&[Raw]]] = &[
        &[base, &[Raw { mtime: 5, ..Raw::file("d/a", "1") }]],
        &[base, &[Raw::file("other", "changed")]],
        &[base, &[Raw::file("d/b", "2")], &[Raw::file("d/.wh.b", "")]],
        &[&[Raw::file("d/z", "")], &[Raw::dir("d"), Raw::file("d/.wh..wh..opq", ""), Raw::file("d/a", "1")]],
    ];
    for layers in same_content {
        assert_eq!(digest(layers), plain, "{layers:?}");
    }
    let other_content: &[&[Raw]] = &[
        &[Raw::file("d/a", "2")],
        &[Raw::file("d/a", "1").mode(0o600)],
        &[Raw { uid: 7, ..Raw::file("d/a", "1") }],
        &[Raw::pax(&[("SCHILY.xattr.user.x", b"1")]), Raw::file("d/a", "1")],
        &[Raw::file("d/b", "")],
        &[Raw::symlink("d/b", "a")],
        &[Raw::dir("d").mode(0o700)],
        &[Raw::file("d/.wh.a", "")],
    ];
    let digests: std::collections::BTreeSet<_> = other_content.iter().map(|layer| digest(&[base, layer])).collect();
    assert_eq!(digests.len(), other_content.len(), "two changes have one digest");
    assert!(!digests.contains(&plain));
    let moved = tree(&[base, &[Raw::symlink("s", "d")], &[Raw::file("e", "1")]]);
    assert_eq!(moved.digest(b"s").expect("exists"), plain, "links are followed");
    assert_eq!(
        moved.digest(b"e").expect("exists"),
        moved.digest(b"d/a").expect("exists"),
        "a file's own name is not in it"
    );
    assert_ne!(moved.digest_exact(b"s").expect("exists"), plain);
    assert!(matches!(moved.digest(b"nowhere"), Err(LayerError::Missing { .. })));
}

#[test]
fn a_flattened_tree_links_what_still_shows() {
    let layers: &[&[Raw]] = &[
        &[Raw::dir("d"), Raw::file("d/a", "data"), Raw::hardlink("d/b", "d/a"), Raw::hardlink("z", "d/a")],
        &[Raw::file("d/.wh.a", ""), Raw::file("d/c", "c"), Raw::file(".wh..wh.ignored", "")],
    ];
    let tree = tree(layers);
    let tars: Vec<_> = layers.iter().map(|layer| archive(layer)).collect();
    let open = |layer: usize, path: &[u8]| -> std::io::Result<Vec<u8>> {
        let entry = tree.layers()[layer].get(path).expect("from the tree");
        let EntryKind::File { size, offset: Some(offset), .. } = entry.kind else { panic!("a file") };
        let start = usize::try_from(offset).expect("small");
        Ok(tars[layer][start..start + usize::try_from(size).expect("small")].to_vec())
    };
    let reader = |layer: usize, path: &[u8]| open(layer, path).map(std::io::Cursor::new);
    let mut tar = Vec::new();
    write_tree(&tree, reader, &mut tar).expect("write");
    let shot = shot_of_tar(&*tar);
    assert!(shot["/d/b"].ends_with("=/d/b") && shot["/z"].ends_with("=/d/b"), "{shot:#?}");
    assert!(!shot.contains_key("/d/a"));

    // A directory that has content, with a trap where the tree has a directory.
    let temp = tempfile::tempdir().expect("temporary directory");
    let (dest, outside) = (temp.path().join("dest"), temp.path().join("outside"));
    std::fs::create_dir_all(&dest).expect("mkdir");
    std::fs::create_dir_all(&outside).expect("mkdir");
    std::fs::write(outside.join("c"), "canary").expect("write");
    std::os::unix::fs::symlink(&outside, dest.join("d")).expect("symlink");
    std::os::unix::fs::symlink(outside.join("c"), dest.join("z")).expect("symlink");
    std::fs::write(dest.join("mine"), "kept").expect("write");
    let before = shot_of_dir(&outside);
    for _ in 0..2 {
        let done = extract_tree(&tree, reader, &dest).expect("extract");
        assert!(done.skipped.is_empty() && done.not_held.is_empty());
    }
    same(&before, &shot_of_dir(&outside));
    let mut got = shot_of_dir(&dest);
    assert!(got.remove("/mine").is_some());
    let mut want = shot;
    got.remove("/");
    want.remove("/");
    if root() {
        same(&want, &got);
    } else {
        assert_eq!(want.keys().collect::<Vec<_>>(), got.keys().collect::<Vec<_>>());
    }
}

#[test]
fn as_root_overlay_marks_that_hide_nothing_are_dropped() {
    need_root();
    let temp = tempfile::tempdir().expect("temporary directory");
    let handle = sys::file::open_root(temp.path()).expect("open");
    for name in [&b"fresh"[..], b"was-dir", b"was-file"] {
        sys::file::mkdir(&handle, name, 0o755).expect("mkdir");
        sys::xattr::set_at(&handle, name, b"trusted.overlay.opaque", b"y").expect("setxattr");
    }
    for name in [&b"removed"[..], b"never-was"] {
        sys::file::mknod(&handle, name, sys::file::Node::WHITEOUT, 0).expect("mknod");
    }
    let below = tree(&[&[Raw::dir("was-dir"), Raw::file("was-file", ""), Raw::file("removed", "")]]);
    let kinds = |options| {
        let index = commit_upper(temp.path(), &options).expect("commit").index;
        let text = |entry: &Entry| format!("{} {:?}", String::from_utf8_lossy(&entry.path), entry.kind);
        index.entries()[1..].iter().map(text).collect::<Vec<_>>()
    };
    let dir = |opaque| format!("Dir {{ opaque: {opaque}, implicit: false }}");
    assert_eq!(
        kinds(CommitOptions { below: Some(&below), cancelled: None, ..CommitOptions::default() }),
        [
            format!("fresh {}", dir(false)),
            "removed Whiteout".to_owned(),
            format!("was-dir {}", dir(true)),
            format!("was-file {}", dir(false)),
        ]
    );
    assert_eq!(kinds(CommitOptions::default()).len(), 5);
    sys::xattr::set_at(&handle, b"fresh", b"trusted.overlay.redirect", b"/x").expect("setxattr");
    assert!(commit_upper(temp.path(), &CommitOptions::default()).is_err(), "part of the data is elsewhere");
}

#[test]
fn as_root_a_user_without_privileges_is_told() {
    need_root();
    // In a fresh user namespace we own nothing but ourselves; the same error comes from the kernel for ordinary users.
    let error = LayerError::held("chown", b"etc/shadow")(rustix::io::Errno::PERM.into());
    assert!(matches!(error, LayerError::Unheld { .. }));
    assert_eq!(
        error.to_string(),
        "chown /etc/shadow: not possible for this user on this machine: Operation not permitted (os error 1)"
    );
    let temp = tempfile::tempdir().expect("temporary directory");
    let skip = ApplyOptions { ownership: Ownership::Skip, ..options() };
    let tar = archive(&[Raw { uid: 4242, ..Raw::file("f", "x") }]);
    let applied = apply(&*tar, temp.path(), &skip, &|| false).expect("apply");
    assert_eq!(applied.index.get(b"f").expect("found").uid, 4242);
    assert!(shot_of_dir(temp.path())["/f"].contains(" 0:0 "));
}
