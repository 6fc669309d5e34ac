//! Layers unpacked apart and mended equal layers applied one after the other, over generated stacks. The reference is
//! a naive applier on a plain directory, which knows nothing of indexes, trees or overlays.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use proptest::prelude::*;

use super::support::{
    Raw, Shot, archive, difference, need_root, options, root, shot_of_dir, shot_of_tar, shot_of_tree,
};
use crate::layer::*;

/// The naive applier: a directory, and what it must remember between layers.
struct Naive {
    root: PathBuf,
    /// Times of directories, which change whenever something is made in them.
    times: BTreeMap<PathBuf, i64>,
    /// What the current layer wrote, with all parents.
    written: BTreeSet<PathBuf>,
    /// Files of the layers below that it linked to.
    parted: BTreeSet<PathBuf>,
}

impl Naive {
    fn new(root: PathBuf) -> Self {
        fs::create_dir(&root).expect("mkdir");
        fs::set_permissions(&root, fs::Permissions::from_mode(0o755)).expect("chmod");
        Self { times: BTreeMap::from([(root.clone(), 0)]), root, written: BTreeSet::new(), parted: BTreeSet::new() }
    }

    fn layer(&mut self, members: &[Raw]) -> Result<(), String> {
        self.written.clear();
        self.parted.clear();
        members.iter().try_for_each(|member| self.member(member))
    }

    fn member(&mut self, member: &Raw) -> Result<(), String> {
        let name = String::from_utf8(member.name.clone()).expect("plain names");
        let mut parts: Vec<&str> = Vec::new();
        for part in name.split('/') {
            match part {
                "" | "." => {}
                ".." => drop(parts.pop()),
                part => parts.push(part),
            }
        }
        let Some(last) = parts.pop() else { panic!("the generator makes no root") };
        let dir = self.make_dirs(&parts)?;
        if last == ".wh..wh..opq" {
            self.write(&dir);
            for child in children(&dir) {
                self.remove_below(&child);
            }
            return Ok(());
        }
        if let Some(removed) = last.strip_prefix(".wh.") {
            self.write(&dir);
            self.remove_below(&dir.join(removed));
            return Ok(());
        }
        let path = dir.join(last);
        let target = String::from_utf8(member.link.clone()).expect("plain names");
        match member.kind {
            b'5' => {
                if !is_dir(&path) {
                    self.remove(&path);
                    fs::create_dir(&path).expect("mkdir");
                }
                self.times.insert(path.clone(), member.mtime);
            }
            b'0' => {
                self.remove(&path);
                fs::write(&path, &member.data).expect("write");
            }
            b'2' => {
                self.remove(&path);
                symlink(&target, &path).expect("symlink");
            }
            b'1' => {
                let mut parts: Vec<&str> = target.split('/').collect();
                let last = parts.pop().expect("a name");
                let dir = self.resolve(&parts)?;
                let from = dir.join(last);
                if from == path {
                    return Err("a link to itself".into());
                }
                self.remove(&path);
                let stat = from.symlink_metadata().map_err(|_| format!("no {target}"))?;
                if stat.is_dir() {
                    return Err("a link to a directory".into());
                }
                if stat.is_symlink() {
                    // As good as the same link.
                    let to = fs::read_link(&from).expect("readlink");
                    symlink(to, &path).expect("symlink");
                    let seconds = std::os::unix::fs::MetadataExt::mtime(&stat);
                    let (uid, gid) =
                        (std::os::unix::fs::MetadataExt::uid(&stat), std::os::unix::fs::MetadataExt::gid(&stat));
                    std::os::unix::fs::lchown(&path, Some(uid), Some(gid)).expect("chown");
                    touch(&path, seconds);
                    self.write(&path);
                    return Ok(());
                }
                if !self.written.contains(&from) && self.parted.insert(from.clone()) {
                    // An overlay copies a file up before it links it, and so parts it from its other names. It is not this
                    // layer's for that: a removal takes it away.
                    let data = fs::read(&from).expect("read");
                    fs::remove_file(&from).expect("remove");
                    fs::write(&from, data).expect("write");
                }
                fs::hard_link(&from, &path).expect("link");
            }
            other => panic!("the generator makes no {other}"),
        }
        std::os::unix::fs::lchown(&path, Some(member.uid), Some(member.uid)).expect("chown");
        if member.kind != b'2' {
            fs::set_permissions(&path, fs::Permissions::from_mode(member.mode)).expect("chmod");
        }
        touch(&path, member.mtime);
        self.write(&path);
        Ok(())
    }

    fn write(&mut self, path: &Path) {
        self.written.extend(path.ancestors().map(Path::to_owned));
    }

    /// Removes whatever is there.
    fn remove(&mut self, path: &Path) {
        if is_dir(path) {
            fs::remove_dir_all(path).expect("remove");
        } else if path.symlink_metadata().is_ok() {
            fs::remove_file(path).expect("remove");
        }
        self.written.retain(|written| !written.starts_with(path));
        self.parted.retain(|parted| !parted.starts_with(path));
        self.times.retain(|dir, _| !dir.starts_with(path));
    }

    /// Removes what this layer did not write.
    fn remove_below(&mut self, path: &Path) {
        if path.symlink_metadata().is_err() {
            return;
        }
        if !self.written.contains(path) {
            self.remove(path);
        } else if is_dir(path) {
            for child in children(path) {
                self.remove_below(&child);
            }
        }
    }

    /// Follows links in the root by hand; what does not exist is taken literally.
    fn resolve(&self, parts: &[&str]) -> Result<PathBuf, String> {
        let mut todo: Vec<String> = parts.iter().rev().map(ToString::to_string).collect();
        let mut done = self.root.clone();
        let mut links = 0;
        while let Some(part) = todo.pop() {
            match &*part {
                "" | "." => {}
                ".." => {
                    if done != self.root {
                        done.pop();
                    }
                }
                part => {
                    done.push(part);
                    if let Ok(target) = fs::read_link(&done) {
                        links += 1;
                        if links > 40 {
                            return Err("a loop".into());
                        }
                        done.pop();
                        if target.has_root() {
                            done = self.root.clone();
                        }
                        todo.extend(target.to_str().expect("plain").split('/').rev().map(ToString::to_string));
                    }
                }
            }
        }
        Ok(done)
    }

    fn make_dirs(&mut self, parts: &[&str]) -> Result<PathBuf, String> {
        let path = self.resolve(parts)?;
        let mut at = self.root.clone();
        for part in path.strip_prefix(&self.root).expect("in the root") {
            at.push(part);
            if !is_dir(&at) {
                self.remove(&at);
                fs::create_dir(&at).expect("mkdir");
                fs::set_permissions(&at, fs::Permissions::from_mode(0o755)).expect("chmod");
                self.times.insert(at.clone(), 0);
            }
            self.write(&at);
        }
        Ok(at)
    }

    fn shot(&self) -> Shot {
        for (dir, time) in &self.times {
            touch(dir, *time);
        }
        shot_of_dir(&self.root)
    }
}

fn touch(path: &Path, mtime: i64) {
    let dir = sys::file::open_root(path.parent().expect("a parent")).expect("open");
    let name = path.file_name().expect("a name");
    sys::file::set_mtime_at(dir, name.as_encoded_bytes(), (mtime, 0)).expect("utimens");
}

fn is_dir(path: &Path) -> bool {
    path.symlink_metadata().is_ok_and(|stat| stat.is_dir())
}

fn children(dir: &Path) -> Vec<PathBuf> {
    fs::read_dir(dir).expect("list").map(|item| item.expect("item").path()).collect()
}

/// A stack unpacked as a pull does it: all layers apart, then mended from the lowest up.
struct Stack {
    dirs: Vec<PathBuf>,
    tree: Tree,
    tars: Vec<Vec<u8>>,
    reapplied: usize,
}

fn unpack(temp: &Path, layers: &[Vec<Raw>]) -> Result<Stack, LayerError> {
    let tars: Vec<_> = layers.iter().map(|members| archive(members)).collect();
    let mut dirs = Vec::new();
    let mut indexes = Vec::new();
    for (number, tar) in tars.iter().enumerate() {
        let dir = temp.join(format!("layer-{number}"));
        fs::create_dir(&dir).expect("mkdir");
        let applied = apply(&**tar, &dir, &options(), &|| false)?;
        assert_eq!(index_tar(&**tar, &|| false)?.index, applied.index);
        dirs.push(dir);
        indexes.push(applied.index);
    }
    let mut tree = Tree::default();
    let mut reapplied = 0;
    for (number, mut index) in indexes.into_iter().enumerate() {
        let mut mend = || {
            let open_tar = || Ok(&*tars[number]);
            mend(&dirs[number], &mut index, &tree, &options(), open_in(&dirs), open_tar, &|| false)
        };
        if mend()? != Mended::InPlace {
            reapplied += 1;
        }
        assert_eq!(mend()?, Mended::InPlace, "mending again does nothing");
        let decoded = LayerIndex::decode(&index.encode())?;
        assert_eq!(decoded, index);
        tree.push(Arc::new(index));
    }
    Ok(Stack { dirs, tree, tars, reapplied })
}

/// What an overlay mount of the layers shows, by way of GNU tar. The mount dies with its private namespace.
fn shot_of_overlay(temp: &Path, dirs: &[PathBuf]) -> Shot {
    let mount = temp.join("mount");
    fs::create_dir(&mount).expect("mkdir");
    fs::create_dir(temp.join("nothing")).expect("mkdir");
    let lower: Vec<_> = dirs.iter().rev().map(|dir| dir.to_str().expect("plain")).collect();
    let script = format!(
        "mount -t overlay -o ro,lowerdir={}:{} overlay {mount} && tar --format=pax --xattrs --numeric-owner -C {mount} -cf - .",
        lower.join(":"),
        temp.join("nothing").display(),
        mount = mount.display(),
    );
    let result = Command::new("unshare").args(["-m", "--propagation", "private", "sh", "-c", &script]).output();
    let result = result.expect("unshare");
    assert!(result.status.success(), "{}", String::from_utf8_lossy(&result.stderr));
    shot_of_tar(&*result.stdout)
}

fn check(layers: &[Vec<Raw>], overlay: bool) -> Result<usize, TestCaseError> {
    let temp = tempfile::tempdir().expect("temporary directory");
    let mut naive = Naive::new(temp.path().join("naive"));
    let want = layers.iter().try_for_each(|layer| naive.layer(layer)).map(|()| naive.shot());
    let got = unpack(temp.path(), layers);
    let (want, stack) = match (want, got) {
        (Err(_), Err(_)) => return Ok(0),
        (Ok(_), Err(error)) => return Err(TestCaseError::fail(format!("naive succeeds, we fail: {error}"))),
        (Err(error), Ok(_)) => return Err(TestCaseError::fail(format!("naive fails, we succeed: {error}"))),
        (Ok(want), Ok(stack)) => (want, stack),
    };
    let got = shot_of_tree(&stack.tree);
    prop_assert!(want == got, "tree\n{}", difference(&want, &got));

    let mut tar = Vec::new();
    write_tree(&stack.tree, open_in(&stack.dirs), &mut tar).expect("flatten");
    let mut flat = shot_of_tar(&*tar);
    let mut want_flat = want.clone();
    flat.remove("/");
    want_flat.remove("/");
    prop_assert!(want_flat == flat, "flattened\n{}", difference(&want_flat, &flat));

    if overlay {
        let got = shot_of_overlay(temp.path(), &stack.dirs);
        prop_assert!(want == got, "overlay\n{}", difference(&want, &got));
    }
    // A layer that was not touched still gives its content digest, and reading alone gives the same.
    for (layer, tar) in stack.tree.layers().iter().zip(&stack.tars) {
        let read = index_tar(&**tar, &|| false).expect("read before");
        if stack.reapplied == 0 {
            prop_assert_eq!(read.content, layer.content_digest());
        }
    }
    Ok(stack.reapplied)
}

fn path() -> impl Strategy<Value = String> {
    proptest::collection::vec(proptest::sample::select(vec!["a", "b", "c"]), 1..4).prop_map(|parts| parts.join("/"))
}

fn member() -> impl Strategy<Value = Raw> {
    let target = prop_oneof![
        4 => path(),
        2 => path().prop_map(|path| format!("/{path}")),
        2 => path().prop_map(|path| format!("../{path}")),
        1 => Just("..".to_owned()),
        1 => Just("/".to_owned()),
    ];
    let plain = (
        prop_oneof![
            4 => path().prop_map(|path| Raw::dir(&path)),
            5 => (path(), "[xyz]{0,3}").prop_map(|(path, data)| Raw::file(&path, &data)),
            3 => (path(), target).prop_map(|(path, target)| Raw::symlink(&path, &target)),
            2 => (path(), path()).prop_map(|(path, target)| Raw::hardlink(&path, &target)),
        ],
        proptest::sample::select(vec![0o755, 0o700, 0o4711]),
        proptest::sample::select(vec![0, 0, 1000]),
        1..4_i64,
    )
        .prop_map(|(raw, mode, uid, mtime)| Raw { mode, uid, mtime: mtime * 1_000_000, ..raw });
    let removal = (path(), any::<bool>()).prop_map(|(path, opaque)| {
        let (dir, name) = path.rsplit_once('/').unwrap_or(("", &path));
        let name = if opaque { ".wh..wh..opq".to_owned() } else { format!(".wh.{name}") };
        Raw::file(&if dir.is_empty() { name } else { format!("{dir}/{name}") }, "")
    });
    prop_oneof![5 => plain, 1 => removal]
}

fn stacks() -> impl Strategy<Value = Vec<Vec<Raw>>> {
    proptest::collection::vec(proptest::collection::vec(member(), 1..7), 1..5)
}

fn cases(default: u32) -> ProptestConfig {
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(default);
    ProptestConfig { failure_persistence: None, cases, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(cases(200))]

    #[test]
    fn mended_layers_equal_sequential_application(layers in stacks()) {
        if root() {
            check(&layers, false)?;
        }
    }
}

proptest! {
    #![proptest_config(cases(25))]

    #[test]
    fn an_overlay_of_mended_layers_shows_the_same(layers in stacks()) {
        if root() {
            check(&layers, true)?;
        }
    }
}

#[test]
fn as_root_layers_on_a_merged_usr() {
    need_root();
    let base = vec![
        Raw::dir("usr").mode(0o711),
        Raw::dir("usr/bin").mode(0o700),
        Raw::file("usr/bin/sh", "dash"),
        Raw::symlink("bin", "usr/bin"),
        Raw { uid: 5, ..Raw::dir("srv").mode(0o770) },
    ];
    // Invented directories take after those below.
    assert_eq!(
        check(&[base.clone(), vec![Raw::file("usr/bin/x", "x"), Raw::file("srv/new/y", "y")]], true).expect("equal"),
        0
    );
    // A parent is a symlink below; a link target lies below; both; a whiteout through the link.
    for top in [
        vec![Raw::file("bin/x", "x")],
        vec![Raw::hardlink("usr/bin/bash", "usr/bin/sh")],
        vec![Raw::hardlink("bin/bash", "bin/sh"), Raw::hardlink("third", "usr/bin/bash")],
        vec![Raw::file("bin/.wh.sh", "")],
        vec![Raw::file("bin/late", "x"), Raw::dir("bin")],
        // What is linked to is removed: by itself, with its directory, by what stands for all of that.
        vec![Raw::hardlink("kept", "usr/bin/sh"), Raw::file("usr/bin/.wh.sh", "")],
        vec![Raw::hardlink("kept", "usr/bin/sh"), Raw::file(".wh.usr", "")],
        vec![Raw::hardlink("kept", "usr/bin/sh"), Raw::file("usr/.wh..wh..opq", ""), Raw::hardlink("more", "kept")],
        vec![Raw::hardlink("kept", "usr/bin/sh"), Raw::dir("usr/bin"), Raw::file("usr/.wh..wh..opq", "")],
    ] {
        assert_eq!(check(&[base.clone(), top.clone()], true).expect("equal"), 1, "{top:?}");
    }
    // The layer itself settles it: no need to look below.
    for top in [
        vec![Raw::dir("bin"), Raw::file("bin/x", "x")],
        vec![Raw::file(".wh.bin", ""), Raw::file("bin/x", "x")],
        vec![Raw::symlink("bin", "sbin"), Raw::dir("sbin"), Raw::file("bin/x", "x")],
    ] {
        assert_eq!(check(&[base.clone(), top.clone()], true).expect("equal"), 0, "{top:?}");
    }
    let error =
        unpack(tempfile::tempdir().expect("temporary directory").path(), &[base, vec![Raw::hardlink("x", "nowhere")]]);
    assert!(matches!(error.err(), Some(LayerError::LinkTarget { .. })));
}
