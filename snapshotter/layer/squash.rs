//! Layers of a stack written anew: as one, or with later times cut off.

use std::collections::{BTreeMap, HashMap};
use std::io::{self, Read, Write};
use std::sync::Arc;

use super::entry::{Entry, EntryKind, cmp_paths, is_within};
use super::error::LayerError;
use super::index::LayerIndex;
use super::tree::Tree;
use super::write::{Expect, LayerWriter, Written};

/// Writes `layers`, the lowest first, as the one layer that does to `below` what they do one after the other. Times later
/// than `latest`, in seconds, become it. `open` gives the data of a file of one of `layers`, by its position there.
pub fn squash<R: Read, W: Write>(
    below: Option<&Tree>,
    layers: &[Arc<LayerIndex>],
    latest: Option<i64>,
    open: impl Fn(usize, &[u8]) -> io::Result<R>,
    out: W,
) -> Result<(Written, W), LayerError> {
    let mut sum = Sum::default();
    for (number, layer) in layers.iter().enumerate() {
        for entry in layer.entries() {
            sum.put(number, layer, entry);
        }
    }
    let mut writer = LayerWriter::new(out);
    // A file goes under the first of its names that is left.
    let mut first: HashMap<(usize, Vec<u8>), Vec<u8>> = HashMap::new();
    for (Key(path), Part { mut entry, data }) in sum.0 {
        if matches!(entry.kind, EntryKind::Whiteout) && below.is_some_and(|below| below.lookup(&path).is_none()) {
            // It came and went among these layers.
            continue;
        }
        if let Some(latest) = latest.filter(|latest| entry.mtime > (*latest, 0)) {
            entry.mtime = (latest, 0);
        }
        entry.path.clone_from(&path);
        let Some((layer, file)) = data else {
            writer.append(entry)?;
            continue;
        };
        if let Some(target) = first.get(&(layer, file.clone())) {
            writer.append(Entry { kind: EntryKind::Hardlink { target: target.clone() }, ..entry })?;
            continue;
        }
        let bytes = open(layer, &file).map_err(LayerError::io("open", &file))?;
        writer.append_file(entry, bytes, Expect::Trusted)?;
        first.insert((layer, file), path);
    }
    writer.finish()
}

/// What is at a path in the end.
struct Part {
    entry: Entry,
    /// Layer and path of a file's bytes.
    data: Option<(usize, Vec<u8>)>,
}

/// A path in the order of archives.
#[derive(PartialEq, Eq)]
struct Key(Vec<u8>);

impl Ord for Key {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        cmp_paths(&self.0, &other.0)
    }
}

impl PartialOrd for Key {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

/// The layers so far, as one.
#[derive(Default)]
struct Sum(BTreeMap<Key, Part>);

impl Sum {
    fn put(&mut self, number: usize, layer: &LayerIndex, entry: &Entry) {
        let mut entry = entry.clone();
        if let EntryKind::Dir { opaque, implicit } = entry.kind {
            if opaque {
                self.remove_below(&entry.path);
            }
            match self.0.get_mut(&Key(entry.path.clone())).map(|part| &mut part.entry.kind) {
                Some(EntryKind::Dir { opaque: was_opaque, .. }) => {
                    *was_opaque |= opaque;
                    if implicit {
                        // What is known of it was said already.
                        return;
                    }
                    entry.kind = EntryKind::Dir { opaque: *was_opaque, implicit };
                }
                // Whatever else was here hid a directory that may lie below.
                Some(_) => entry.kind = EntryKind::Dir { opaque: true, implicit },
                None => {}
            }
            self.0.insert(Key(entry.path.clone()), Part { entry, data: None });
            return;
        }
        self.remove_below(&entry.path);
        let mut data = None;
        if let Some(file) = layer.file_of(&entry) {
            data = Some((number, file.path.clone()));
            entry = Entry { path: entry.path.clone(), ..file.clone() };
        }
        self.0.insert(Key(entry.path.clone()), Part { entry, data });
    }

    fn remove_below(&mut self, dir: &[u8]) {
        let start = std::ops::Bound::Excluded(Key(dir.to_vec()));
        let below: Vec<Vec<u8>> = self
            .0
            .range((start, std::ops::Bound::Unbounded))
            .take_while(|(key, _)| is_within(&key.0, dir))
            .map(|(key, _)| key.0.clone())
            .collect();
        for path in below {
            self.0.remove(&Key(path));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::index_tar;

    fn file(path: &str, text: &str, mtime: i64) -> (Entry, String) {
        let mut entry = Entry::file(path, text.len() as u64, 0o644);
        entry.mtime = (mtime, 0);
        (entry, text.to_owned())
    }

    fn other(path: &str, kind: EntryKind) -> (Entry, String) {
        (Entry::new(path, kind, 0o755), String::new())
    }

    fn dir(path: &str) -> (Entry, String) {
        (Entry::dir(path, 0o755), String::new())
    }

    fn whiteout(path: &str) -> (Entry, String) {
        other(path, EntryKind::Whiteout)
    }

    type Layer = (Arc<LayerIndex>, Vec<u8>);

    fn layer(entries: Vec<(Entry, String)>) -> Layer {
        let mut writer = LayerWriter::new(Vec::new());
        for (entry, text) in entries {
            match entry.kind {
                EntryKind::File { .. } => writer.append_file(entry, text.as_bytes(), Expect::Nothing).map(|_| ()),
                _ => writer.append(entry),
            }
            .unwrap();
        }
        let (written, tar) = writer.finish().unwrap();
        (Arc::new(written.index), tar)
    }

    /// What the squashed layer has, each path with a sign of what it is.
    fn squashed(below: &[&Layer], layers: &[Layer], latest: Option<i64>) -> Vec<String> {
        let below = Tree::new(below.iter().map(|layer| Arc::clone(&layer.0)).collect());
        let indexes: Vec<_> = layers.iter().map(|layer| Arc::clone(&layer.0)).collect();
        let open = |number: usize, path: &[u8]| {
            let (index, tar) = &layers[number];
            let Some(EntryKind::File { size, offset: Some(offset), .. }) = index.get(path).map(|e| &e.kind) else {
                panic!("{path:?} is no file")
            };
            let start = usize::try_from(*offset).unwrap();
            Ok(&tar[start..start + usize::try_from(*size).unwrap()])
        };
        let (written, tar) = squash(Some(&below), &indexes, latest, open, Vec::new()).unwrap();
        // What was written is what others read.
        let read = index_tar(tar.as_slice(), &|| false).unwrap();
        assert_eq!((read.diff_id, read.content), (written.diff_id, written.content));
        let sign = |entry: &Entry| match &entry.kind {
            EntryKind::File { size, .. } => format!(":{size}@{}", entry.mtime.0),
            EntryKind::Dir { opaque: true, .. } => "/!".into(),
            EntryKind::Dir { implicit: true, .. } => "/?".into(),
            EntryKind::Dir { .. } => "/".into(),
            EntryKind::Hardlink { target } => format!("={}", String::from_utf8_lossy(target)),
            EntryKind::Whiteout => "-".into(),
            _ => "*".into(),
        };
        let entries = read.index.entries().iter().filter(|entry| !entry.path.is_empty());
        entries.map(|entry| String::from_utf8_lossy(&entry.path).into_owned() + &sign(entry)).collect()
    }

    #[test]
    fn layers_become_one() {
        let base =
            layer(vec![dir("etc"), file("etc/group", "g", 1), file("gone", "x", 1), dir("old"), file("old/f", "f", 1)]);
        let first = layer(vec![
            dir("a"),
            file("a/1", "one", 5),
            file("a/2", "two!", 5),
            other("a/link", EntryKind::Hardlink { target: b"a/1".to_vec() }),
            whiteout("gone"),
            file("temporary", "t", 5),
        ]);
        let second = layer(vec![whiteout("a/1"), dir("etc"), file("etc/group", "gg", 7), whiteout("temporary")]);
        assert_eq!(
            squashed(&[&base], &[first, second], None),
            ["a/", "a/2:4@5", "a/link:3@5", "etc/", "etc/group:2@7", "gone-"]
        );
    }

    #[test]
    fn what_was_hidden_stays_hidden() {
        let base = layer(vec![dir("d"), file("d/below", "b", 1), dir("e"), file("e/below", "b", 1)]);
        let replaced = layer(vec![whiteout("d"), file("e", "a file", 2)]);
        let again = layer(vec![dir("d"), file("d/new", "n", 3), dir("e"), file("e/new", "n", 3)]);
        assert_eq!(squashed(&[&base], &[replaced, again], None), ["d/!", "d/new:1@3", "e/!", "e/new:1@3"]);
        let emptied = layer(vec![other("d", EntryKind::Dir { opaque: true, implicit: false })]);
        let filled = layer(vec![dir("d"), file("d/x", "x", 4)]);
        let wiped = layer(vec![whiteout("d/x")]);
        assert_eq!(squashed(&[&base], &[filled, emptied, wiped], None), ["d/!"]);
    }

    #[test]
    fn hard_links_survive_the_name_they_were_made_with() {
        let one = layer(vec![
            file("a", "data", 1),
            other("b", EntryKind::Hardlink { target: b"a".to_vec() }),
            other("c", EntryKind::Hardlink { target: b"a".to_vec() }),
        ]);
        let two = layer(vec![file("a", "other", 2)]);
        assert_eq!(squashed(&[], &[one, two], None), ["a:5@2", "b:4@1", "c=b"]);
    }

    #[test]
    fn later_times_are_cut_off_and_earlier_ones_stay() {
        let one = layer(vec![file("new", "n", 100), file("old", "o", 10)]);
        assert_eq!(squashed(&[], &[one], Some(50)), ["new:1@50", "old:1@10"]);
    }
}
