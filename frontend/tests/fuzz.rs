//! The functions of the fuzz targets over mutations of their corpus: what needs neither nightly nor a minute.

use std::path::Path;

use proptest::prelude::*;

#[path = "../../fuzz/entry.rs"]
#[allow(dead_code)] // The target for references compares with the registry client, too.
mod entry;

/// The corpus of a target.
fn corpus(target: &str) -> Vec<Vec<u8>> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(target);
    let mut paths: Vec<_> = std::fs::read_dir(&dir)
        .expect("the corpus is part of the repository")
        .map(|entry| entry.expect("a name").path())
        .collect();
    paths.sort();
    assert!(!paths.is_empty(), "{} is empty", dir.display());
    paths.iter().map(|path| std::fs::read(path).expect("a file")).collect()
}

/// A change at a place that is given in thousandths of the length.
#[derive(Clone, Debug)]
enum Change {
    Remove(usize, usize),
    Insert(usize, &'static [u8]),
    Byte(usize, u8),
    Repeat(usize, usize),
    Move(usize, usize, usize),
}

fn change() -> impl Strategy<Value = Change> {
    const PIECES: [&[u8]; 24] = [
        b"\\",
        b"\\\n",
        b"\n",
        b"\r\n",
        b"\"",
        b"'",
        b"$",
        b"${",
        b"}",
        b"[",
        b"]",
        b"<<EOF",
        b"EOF\n",
        b"--",
        b"=",
        b",",
        b"#",
        b" ",
        b"\t",
        b"\0",
        b"\xff",
        b"`",
        b"*",
        b"FROM x\n",
    ];
    prop_oneof![
        (0..1000_usize, 1..40_usize).prop_map(|(at, length)| Change::Remove(at, length)),
        (0..1000_usize, prop::sample::select(PIECES.to_vec())).prop_map(|(at, piece)| Change::Insert(at, piece)),
        (0..1000_usize, any::<u8>()).prop_map(|(at, byte)| Change::Byte(at, byte)),
        (0..1000_usize, 1..60_usize).prop_map(|(at, length)| Change::Repeat(at, length)),
        (0..1000_usize, 0..1000_usize, 1..60_usize).prop_map(|(from, to, length)| Change::Move(from, to, length)),
    ]
}

fn changed(data: &[u8], changes: &[Change]) -> Vec<u8> {
    let mut data = data.to_vec();
    for change in changes {
        let place = |at: &usize| at * data.len() / 1000;
        let piece = |at: usize, length: &usize| data[at..(at + length).min(data.len())].to_vec();
        match change {
            Change::Remove(at, length) => {
                let at = place(at);
                let end = (at + length).min(data.len());
                data.drain(at..end);
            }
            Change::Insert(at, piece) => {
                let at = place(at);
                data.splice(at..at, piece.iter().copied());
            }
            Change::Byte(at, byte) => {
                let at = place(at);
                if let Some(place) = data.get_mut(at) {
                    *place = *byte;
                }
            }
            Change::Repeat(at, length) => {
                let at = place(at);
                let piece = piece(at, length);
                data.splice(at..at, piece);
            }
            Change::Move(from, to, length) => {
                let (from, to) = (place(from), place(to));
                let piece = piece(from, length);
                data.splice(to..to, piece);
            }
        }
    }
    data
}

fn mutated(target: &'static str) -> impl Strategy<Value = Vec<u8>> {
    (prop::sample::select(corpus(target)), prop::collection::vec(change(), 0..6))
        .prop_map(|(data, changes)| changed(&data, &changes))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]

    #[test]
    fn dockerfiles(data in mutated("dockerfile")) {
        entry::dockerfile(&data);
    }

    #[test]
    fn words(data in mutated("expand")) {
        entry::expand(&data);
    }

    #[test]
    fn ignore_rules(data in mutated("dockerignore")) {
        entry::dockerignore(&data);
    }

    #[test]
    fn references(data in mutated("reference")) {
        entry::reference(&data);
    }
}
