//! Trees as text, and a small language for the instructions.
//!
//! A line of a tree is `dir/`, `file = content`, `link -> target`, `name == file` (another name of a file), `pipe |` or
//! `!removed`; mode and owner come after the name where they are not 755 or 644 and 0:0. `opaque` and `user.x=value` may
//! follow them. A line `---` begins the next layer.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Seek, Write};
use std::sync::Arc;

use graph::{ChmodSpec, ChownSpec, CopyAction, FileAction, FileOp, ParentsSpec, UserSpec};
use snapshotter::layer::{Entry, EntryKind, LayerIndex, Shares, Tree, Written};

use super::super::{FileError, ReadableTree, Work, copied_digest};

/// The time of what is made; sources are of time 5, bases of time 3.
pub(super) const NOW: i64 = 1000;

type Bytes = HashMap<(usize, Vec<u8>), Vec<u8>>;

/// Reads a tree; `times` is the mtime of all that is in it.
pub(super) fn tree(text: &str, time: i64) -> ReadableTree {
    tree_with(text, time, &HashMap::new())
}

/// As [`tree`]; a file whose content is `@name` has the bytes of that name.
pub(super) fn tree_with(text: &str, time: i64, blobs: &HashMap<&str, Vec<u8>>) -> ReadableTree {
    let mut layers = vec![Vec::new()];
    let mut bytes = Bytes::new();
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
        if line == "---" {
            layers.push(Vec::new());
            continue;
        }
        let (mut entry, content) = entry(line);
        entry.mtime = (time, 0);
        if let (EntryKind::File { size, digest, .. }, Some(text)) = (&mut entry.kind, content) {
            let blob = text.strip_prefix('@').and_then(|name| blobs.get(name).cloned());
            let content = blob.unwrap_or_else(|| text.into_bytes());
            (*size, *digest) = (content.len() as u64, graph::ContentDigest::of(&content));
            bytes.insert((layers.len() - 1, entry.path.clone()), content);
        }
        layers.last_mut().expect("there is always one").push(entry);
    }
    let layers: Vec<_> = layers.into_iter().map(|entries| Arc::new(LayerIndex::new(entries))).collect();
    let open = move |layer: usize, path: &[u8]| match bytes.get(&(layer, path.to_vec())) {
        Some(content) => {
            let mut file = tempfile::tempfile()?;
            file.write_all(content)?;
            file.rewind()?;
            Ok(snapshotter::layer::Bytes::Whole(file))
        }
        None => Err(io::ErrorKind::NotFound.into()),
    };
    ReadableTree { tree: Arc::new(Tree::new(layers)), bytes: Arc::new(open) }
}

fn entry(line: &str) -> (Entry, Option<String>) {
    if let Some(path) = line.strip_prefix('!') {
        return (Entry::new(path, EntryKind::Whiteout, 0), None);
    }
    let (head, content) = match line.split_once(" = ") {
        Some((head, content)) => (head, Some(content.to_owned())),
        None => (line, None),
    };
    let (head, symlink) = head.split_once(" -> ").map_or((head, None), |(head, target)| (head, Some(target)));
    let (head, hardlink) = head.split_once(" == ").map_or((head, None), |(head, target)| (head, Some(target)));
    let mut words = head.split(' ');
    let name = words.next().unwrap_or_default();
    let mut entry = match (name.strip_suffix('/'), symlink, hardlink) {
        (Some(path), ..) => Entry::dir(path, 0o755),
        (_, Some(target), _) => Entry::new(name, EntryKind::Symlink { target: target.into() }, 0o777),
        (_, _, Some(target)) => Entry::new(name, EntryKind::Hardlink { target: target.into() }, 0o644),
        _ => Entry::file(name, 0, 0o644),
    };
    for word in words {
        if let Some((name, value)) = word.split_once('=') {
            entry.xattrs.push((name.into(), value.into()));
        } else if let Some((uid, gid)) = word.split_once(':') {
            (entry.uid, entry.gid) = (uid.parse().expect("uid"), gid.parse().expect("gid"));
        } else if word == "|" {
            entry.kind = EntryKind::Fifo;
        } else if word == "opaque" {
            entry.kind = EntryKind::Dir { opaque: true, implicit: false };
        } else {
            entry.mode = u32::from_str_radix(word, 8).expect("mode");
        }
    }
    (entry, content)
}

/// The layer in the language of trees.
pub(super) fn show(written: &Written, tar: &[u8]) -> String {
    let mut text = String::new();
    for entry in written.index.entries().iter().filter(|entry| !entry.path.is_empty()) {
        let path = String::from_utf8_lossy(&entry.path);
        let (name, usual, end) = match &entry.kind {
            EntryKind::Dir { opaque, .. } => {
                (format!("{path}/"), 0o755, if *opaque { " opaque" } else { "" }.to_owned())
            }
            EntryKind::File { size, offset, .. } => {
                let start = offset.expect("the data of a written file are in one piece") as usize;
                let content = String::from_utf8_lossy(&tar[start..start + *size as usize]).into_owned();
                (path.into_owned(), 0o644, format!(" = {content}"))
            }
            EntryKind::Symlink { target } => {
                (path.into_owned(), 0o777, format!(" -> {}", String::from_utf8_lossy(target)))
            }
            EntryKind::Hardlink { target } => {
                (path.into_owned(), entry.mode, format!(" == {}", String::from_utf8_lossy(target)))
            }
            EntryKind::Fifo => (path.into_owned(), 0o644, " |".to_owned()),
            EntryKind::Whiteout => {
                text.push_str(&format!("!{path}\n"));
                continue;
            }
            other => (path.into_owned(), 0, format!(" {other:?}")),
        };
        text.push_str(&name);
        if entry.mode != usual {
            text.push_str(&format!(" {:o}", entry.mode));
        }
        if (entry.uid, entry.gid) != (0, 0) && !matches!(entry.kind, EntryKind::Hardlink { .. }) {
            text.push_str(&format!(" {}:{}", entry.uid, entry.gid));
        }
        for (name, value) in &entry.xattrs {
            text.push_str(&format!(" {}={}", String::from_utf8_lossy(name), String::from_utf8_lossy(value)));
        }
        text.push_str(&format!("{end}\n"));
    }
    text
}

/// The actions of `COPY [--flags] SOURCE... DEST` or ADD, all of them reading input 0.
pub(super) fn actions(instruction: &str) -> Vec<CopyAction> {
    let mut words = instruction.split(' ').peekable();
    let is_add = words.next() == Some("ADD");
    let mut model = CopyAction {
        from: 0,
        src: String::new(),
        dest: String::new(),
        chown: None,
        chmod: None,
        follow_symlink: true,
        dir_contents_only: true,
        allow_wildcard: true,
        allow_empty_wildcard: true,
        attempt_unpack: is_add,
        create_dest_path: true,
        parents: None,
        exclude: Vec::new(),
        always_replace_existing: false,
    };
    let mut parents = false;
    while let Some(flag) = words.next_if(|word| word.starts_with("--")) {
        match flag.split_once('=').unwrap_or((flag, "")) {
            ("--chown", value) => model.chown = Some(chown(value)),
            ("--chmod", value) => {
                model.chmod = Some(match u32::from_str_radix(value, 8) {
                    Ok(mode) => ChmodSpec::Octal(mode),
                    Err(_) => ChmodSpec::Symbolic(value.to_owned()),
                });
            }
            ("--exclude", value) => model.exclude.push(value.to_owned()),
            ("--parents", _) => parents = true,
            ("--replace", _) => model.always_replace_existing = true,
            ("--whole", _) => model.dir_contents_only = false,
            (other, _) => panic!("{other}"),
        }
    }
    let mut paths: Vec<String> = words.map(str::to_owned).collect();
    model.dest = paths.pop().expect("a destination");
    let clean =
        |path: &str| format!("/{}", String::from_utf8(snapshotter::layer::clean(path.as_bytes())).expect("text"));
    let action = |source: &String| {
        if !parents {
            return CopyAction { src: clean(source), ..model.clone() };
        }
        let (base, rest) = source.split_once("/./").unwrap_or(("/", source));
        let base = clean(base);
        CopyAction {
            src: clean(&format!("{base}{}", clean(rest))),
            parents: Some(ParentsSpec { base }),
            ..model.clone()
        }
    };
    paths.iter().map(action).collect()
}

pub(super) fn chown(text: &str) -> ChownSpec {
    let part = |text: &str| text.parse().map_or_else(|_| UserSpec::Name(text.to_owned()), UserSpec::Id);
    let (user, group) = text.split_once(':').map_or((text, None), |(user, group)| (user, Some(group)));
    ChownSpec { user: part(user), group: group.map(part) }
}

/// A layer that is no file.
struct Memory(Vec<u8>);

impl Write for Memory {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.0.write(data)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Shares for Memory {
    fn share(&mut self, _: &File, _: u64, _: u64) -> io::Result<Option<snapshotter::layer::Bytes>> {
        Ok(None)
    }
}

/// Carries out actions and gives back the layer.
pub(super) fn run(
    base: &ReadableTree,
    source: &ReadableTree,
    actions: Vec<FileAction>,
) -> Result<(Written, Vec<u8>), FileError> {
    let op = FileOp { base: None, actions };
    let inputs = [source.clone()];
    let scratch = std::env::temp_dir();
    let cancelled = &|| false;
    let work = Work { op: &op, base, inputs: &inputs, now: (NOW, 0), scratch: &scratch, cancelled };
    let (written, Memory(tar)) = work.plan()?.write(&work, Memory(Vec::new()))?;
    Ok((written, tar))
}

/// The layer that an instruction makes, as text; or the error, after `error: `.
pub(super) fn outcome(base: &ReadableTree, source: &ReadableTree, instruction: &str) -> String {
    let actions = actions(instruction).into_iter().map(|action| FileAction::Copy(Box::new(action))).collect();
    match run(base, source, actions) {
        Ok((written, tar)) => show(&written, &tar),
        Err(error) => format!("error: {error}\n"),
    }
}

/// Base, source, instruction, layer.
pub(super) type Case<'a> = (&'a str, &'a str, &'a str, &'a str);

pub(super) fn check(cases: &[Case<'_>]) {
    for (base, source, instruction, want) in cases {
        let got = outcome(&tree(base, 3), &tree(source, 5), instruction);
        assert_eq!(got, normal(want), "{instruction}\nonto\n{base}");
    }
}

/// Text without the indentation it has in a table.
pub(super) fn normal(text: &str) -> String {
    text.lines().map(str::trim).filter(|line| !line.is_empty()).map(|line| format!("{line}\n")).collect()
}

/// The key of what an instruction takes out of a source; an error as its text.
pub(super) fn key(source: &str, time: i64, instruction: &str) -> Result<Vec<graph::ContentDigest>, String> {
    let tree = tree(source, time);
    actions(instruction)
        .iter()
        .map(|action| copied_digest(&tree.tree, action).map_err(|error| error.to_string()))
        .collect()
}
