//! Copies of trees for steps without overlays, and the layers that their changes make.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::sync::Arc;

use proptest::prelude::*;

use super::support::{Raw, Shot, archive, difference, options, root, same, shot_of_dir, shot_of_tree};
use crate::layer::*;

/// Layers as directories without marks, and their tree.
struct Stack {
    dirs: Vec<std::path::PathBuf>,
    tree: Tree,
    _temp: tempfile::TempDir,
}

fn plain() -> ApplyOptions {
    ApplyOptions { marks: Marks::None, ..options() }
}

fn stack(layers: &[Vec<Raw>]) -> Stack {
    let temp = tempfile::tempdir().expect("temporary directory");
    let (mut dirs, mut tree) = (Vec::new(), Tree::default());
    for (number, members) in layers.iter().enumerate() {
        let dir = temp.path().join(number.to_string());
        fs::create_dir(&dir).expect("mkdir");
        let tar = archive(members);
        let mut applied = apply(&*tar, &dir, &plain(), &|| false).expect("legal");
        let below = dirs.clone();
        mend(&dir, &mut applied.index, &tree, &plain(), open_in(&below), || Ok(&*tar), &|| false).expect("mends");
        dirs.push(dir);
        tree.push(Arc::new(applied.index));
    }
    Stack { dirs, tree, _temp: temp }
}

impl Stack {
    fn populate(&self, sharing: Sharing) -> (tempfile::TempDir, Populated) {
        let dest = tempfile::tempdir().expect("temporary directory");
        fs::create_dir(dest.path().join("fs")).expect("mkdir");
        let open = open_in(&self.dirs);
        let open = |layer: usize, path: &[u8]| open(layer, path).map(Bytes::Whole);
        let done = populate(&self.tree, open, &dest.path().join("fs"), &plain(), sharing, &|| false).expect("populate");
        (dest, done)
    }

    /// What `change` does to a copy, as a layer; the copy must look as the stack with that layer.
    fn layer_of(&self, change: impl FnOnce(&Path)) -> Vec<String> {
        let (dest, populated) = self.populate(Sharing::Private);
        let dir = dest.path().join("fs");
        change(&dir);
        let (committed, _) =
            commit_native(&dir, &self.tree, &populated, &CommitOptions::default(), std::io::sink()).expect("commit");
        let mut tree = self.tree.clone();
        let index = Arc::new(committed.index);
        tree.push(Arc::clone(&index));
        same(&seconds(shot_of_dir(&dir)), &seconds(shot_of_tree(&tree)));
        index.entries().iter().map(|entry| format!("{} {}", name(&entry.kind), entry.path.escape_ascii())).collect()
    }
}

fn name(kind: &EntryKind) -> &'static str {
    match kind {
        EntryKind::File { .. } => "file",
        EntryKind::Dir { .. } => "dir",
        EntryKind::Symlink { .. } => "link",
        EntryKind::Hardlink { .. } => "hardlink",
        EntryKind::Whiteout => "gone",
        _ => "other",
    }
}

/// Layers have whole seconds; of the root they say nothing.
fn seconds(mut shot: Shot) -> Shot {
    shot.remove("/");
    for line in shot.values_mut() {
        if let Some(at) = line.find('.') {
            line.replace_range(at..at + 10, "");
        }
    }
    shot
}

fn base() -> Stack {
    let mut members = vec![
        Raw::dir("d"),
        Raw::file("d/a", "aaaa"),
        Raw::file("d/b", "bbbb").mode(0o4755),
        Raw::hardlink("d/c", "d/b"),
        Raw::dir("d/deep"),
        Raw::file("d/deep/x", "x"),
        Raw::symlink("l", "d/a"),
        Raw::dir("closed").mode(0o500),
        Raw::file("closed/f", "f"),
        Raw::file("removed-later", "1"),
    ];
    if root() {
        members.push(Raw { uid: 33, ..Raw::file("owned", "o") });
        members.push(Raw { device: (1, 3), ..Raw::new(b'3', "null") });
    }
    stack(&[members, vec![Raw::file(".wh.removed-later", ""), Raw::file("d/a", "AAAA"), Raw::dir("new")]])
}

#[test]
fn a_copy_looks_as_the_tree() {
    let stack = base();
    for sharing in [Sharing::Private, Sharing::ReadOnly] {
        let (dest, _) = stack.populate(sharing);
        same(&shot_of_tree(&stack.tree), &shot_of_dir(&dest.path().join("fs")));
        let inode = |path: std::path::PathBuf| fs::metadata(path).expect("there").ino();
        let shared = inode(dest.path().join("fs/d/a")) == inode(stack.dirs[1].join("d/a"));
        assert_eq!(shared, sharing == Sharing::ReadOnly, "a step writes where it is");
    }
}

#[test]
fn holes_stay_holes_and_parts_of_a_tar_will_do() {
    let temp = tempfile::tempdir().expect("temporary directory");
    let size = 64 << 20;
    let mut sparse = fs::File::create(temp.path().join("sparse")).expect("create");
    std::io::Seek::seek(&mut sparse, std::io::SeekFrom::Start(32 << 20)).expect("seek");
    sparse.write_all(b"middle").expect("write");
    sparse.set_len(size).expect("truncate");
    let tree = Tree::new(vec![Arc::new(LayerIndex::new(vec![
        Entry::file("part", 6, 0o644),
        Entry::file("sparse", size, 0o600),
    ]))]);
    let file = Arc::new(fs::File::open(temp.path().join("sparse")).expect("open"));
    let open = |_: usize, path: &[u8]| match path {
        b"part" => Ok(Bytes::Part { file: Arc::clone(&file), offset: 32 << 20, size: 6 }),
        _ => Ok(Bytes::Whole(file.try_clone()?)),
    };
    let dest = temp.path().join("dest");
    fs::create_dir(&dest).expect("mkdir");
    populate(&tree, open, &dest, &plain(), Sharing::Private, &|| false).expect("populate");
    let copied = fs::metadata(dest.join("sparse")).expect("there");
    assert!(copied.len() == size && copied.blocks() * 512 < 1 << 20, "the hole was filled: {copied:?}");
    assert_eq!(&fs::read(dest.join("sparse")).expect("read")[32 << 20..(32 << 20) + 6], b"middle");
    assert_eq!(fs::read(dest.join("part")).expect("read"), b"middle");
}

#[test]
fn what_is_written_as_it_was_is_no_change() {
    let stack = base();
    assert_eq!(stack.layer_of(|_| {}), ["dir "]);
    let untouched = stack.layer_of(|dir| {
        let times = |path: &Path| {
            let stat = fs::metadata(path).expect("there");
            let time = rustix::fs::Timespec { tv_sec: stat.mtime(), tv_nsec: stat.mtime_nsec() };
            rustix::fs::Timestamps { last_access: time, last_modification: time }
        };
        let set = |path: &Path, times: &rustix::fs::Timestamps| {
            rustix::fs::utimensat(rustix::fs::CWD, path, times, rustix::fs::AtFlags::empty()).expect("ours");
        };
        // The same bytes, and the times set back; a directory in which something came and went.
        let before = times(&dir.join("d/a"));
        fs::write(dir.join("d/a"), "AAAA").expect("write");
        set(&dir.join("d/a"), &before);
        let before = times(&dir.join("new"));
        fs::write(dir.join("new/tmp"), "").expect("write");
        fs::remove_file(dir.join("new/tmp")).expect("remove");
        set(&dir.join("new"), &before);
    });
    assert_eq!(untouched, ["dir "]);
}

#[test]
fn a_change_that_hides_itself_is_found() {
    let stack = base();
    let changed = stack.layer_of(|dir| {
        // The same size and times, other bytes.
        let path = dir.join("d/a");
        let stat = fs::metadata(&path).expect("there");
        fs::write(&path, "BBBB").expect("write");
        let time = rustix::fs::Timespec { tv_sec: stat.mtime(), tv_nsec: stat.mtime_nsec() };
        let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
        rustix::fs::utimensat(rustix::fs::CWD, &path, &times, rustix::fs::AtFlags::empty()).expect("ours");
    });
    assert_eq!(changed, ["dir ", "dir d", "file d/a"]);
}

#[test]
fn changes_of_every_kind() {
    let stack = base();
    type Change = fn(&Path);
    let cases: &[(Change, &[&str])] = &[
        (|dir| fs::remove_dir_all(dir.join("d/deep")).expect("remove"), &["dir ", "dir d", "gone d/deep"]),
        (
            |dir| fs::rename(dir.join("d/deep"), dir.join("moved")).expect("rename"),
            &["dir ", "dir d", "gone d/deep", "dir moved", "file moved/x"],
        ),
        (
            |dir| fs::set_permissions(dir.join("d"), fs::Permissions::from_mode(0o711)).expect("chmod"),
            &["dir ", "dir d"],
        ),
        // All names of a file of which one changed.
        (|dir| fs::write(dir.join("d/c"), "cccc").expect("write"), &["dir ", "dir d", "file d/b", "hardlink d/c"]),
        (
            |dir| fs::hard_link(dir.join("d/a"), dir.join("e")).expect("link"),
            &["dir ", "dir d", "file d/a", "hardlink e"],
        ),
        (|dir| fs::remove_file(dir.join("d/c")).expect("remove"), &["dir ", "dir d", "gone d/c"]),
        (
            |dir| {
                fs::remove_file(dir.join("l")).expect("remove");
                fs::create_dir(dir.join("l")).expect("mkdir");
                fs::remove_dir_all(dir.join("d")).expect("remove");
                symlink("l", dir.join("d")).expect("symlink");
            },
            &["dir ", "link d", "dir l"],
        ),
        (
            |dir| {
                fs::remove_dir_all(dir.join("d")).expect("remove");
                fs::create_dir(dir.join("d")).expect("mkdir");
            },
            &["dir ", "dir d", "gone d/a", "gone d/b", "gone d/c", "gone d/deep"],
        ),
        (
            |dir| drop(std::os::unix::net::UnixListener::bind(dir.join("new/socket")).expect("bind")),
            &["dir ", "dir new"],
        ),
    ];
    for (number, (change, want)) in cases.iter().enumerate() {
        // A file that is written in place changes no directory; one that comes or goes does.
        let mut got = stack.layer_of(change);
        got.retain(|entry| entry != "dir d" || want.contains(&"dir d"));
        assert_eq!(got, *want, "case {number}");
    }
}

#[derive(Debug, Clone)]
enum Op {
    Write(usize, u8),
    Remove(usize),
    Mkdir(usize),
    Symlink(usize, usize),
    Link(usize, usize),
    Rename(usize, usize),
    Chmod(usize, u32),
}

const PATHS: [&str; 9] = ["d", "d/a", "d/b", "d/c", "d/deep", "d/deep/x", "l", "new", "new/y"];

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let path = || 0..PATHS.len();
    let op = prop_oneof![
        (path(), 0_u8..3).prop_map(|(path, byte)| Op::Write(path, byte)),
        path().prop_map(Op::Remove),
        path().prop_map(Op::Mkdir),
        (path(), path()).prop_map(|(path, target)| Op::Symlink(path, target)),
        (path(), path()).prop_map(|(path, target)| Op::Link(path, target)),
        (path(), path()).prop_map(|(path, target)| Op::Rename(path, target)),
        (path(), prop_oneof![Just(0o755_u32), Just(0o700), Just(0o1777)])
            .prop_map(|(path, mode)| Op::Chmod(path, mode)),
    ];
    prop::collection::vec(op, 0..12)
}

/// Does what can be done.
fn run(dir: &Path, op: &Op) {
    let at = |path: &usize| dir.join(PATHS[*path]);
    let _ = match op {
        Op::Write(path, byte) if fs::symlink_metadata(at(path)).is_ok_and(|stat| stat.is_symlink()) => {
            fs::write(dir.join("new"), [*byte])
        }
        Op::Write(path, byte) => fs::write(at(path), [*byte; 4]),
        Op::Remove(path) => fs::remove_file(at(path)).or_else(|_| fs::remove_dir_all(at(path))),
        Op::Mkdir(path) => fs::create_dir(at(path)),
        Op::Symlink(path, target) => symlink(PATHS[*target], at(path)),
        Op::Link(path, target) => fs::hard_link(at(target), at(path)),
        Op::Rename(path, target) => fs::rename(at(path), at(target)),
        Op::Chmod(path, mode) => match fs::symlink_metadata(at(path)) {
            Ok(stat) if !stat.is_symlink() => fs::set_permissions(at(path), fs::Permissions::from_mode(*mode)),
            _ => Ok(()),
        },
    };
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn whatever_a_step_does_is_in_its_layer(ops in ops()) {
        let stack = base();
        let (dest, populated) = stack.populate(Sharing::Private);
        let dir = dest.path().join("fs");
        ops.iter().for_each(|op| run(&dir, op));
        let (committed, _) =
            commit_native(&dir, &stack.tree, &populated, &CommitOptions::default(), std::io::sink()).expect("commit");
        let mut tree = stack.tree.clone();
        tree.push(Arc::new(committed.index));
        let (want, got) = (seconds(shot_of_dir(&dir)), seconds(shot_of_tree(&tree)));
        prop_assert!(want == got, "{:?}\n{}", ops, difference(&want, &got));
    }
}
