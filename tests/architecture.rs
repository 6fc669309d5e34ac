//! The architecture as a test: who may import whom, where `unsafe` may stand, how long a file may get. The rules are those
//! of ARCHITECTURE.md; to change one is to argue for it there.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Each of our crates: its library name, its folder, and which of ours it may depend upon.
const CRATES: &[(&str, &str, &[&str])] = &[
    ("graph", "solver/graph", &[]),
    ("sys", "snapshotter/sys", &[]),
    ("registry", "builder/registry", &[]),
    ("frontend", "frontend", &["graph"]),
    ("solver", "solver", &["graph"]),
    ("snapshotter", "snapshotter", &["graph", "sys"]),
    ("executor", "builder/executor", &["sys"]),
    ("rbuild", ".", &["executor", "frontend", "graph", "registry", "snapshotter", "solver", "sys"]),
];

const LONGEST_FILE: usize = 800;

fn top() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// All our Rust files, relative to the top.
fn sources() -> Vec<PathBuf> {
    fn walk(dir: &Path, found: &mut Vec<PathBuf>) {
        let Ok(entries) = fs::read_dir(dir) else { return };
        for entry in entries.flatten() {
            let (path, name) = (entry.path(), entry.file_name());
            if path.is_dir() && !path.is_symlink() {
                if name != "target" && !name.to_string_lossy().starts_with('.') {
                    walk(&path, found);
                }
            } else if path.extension().is_some_and(|e| e == "rs") {
                found.push(path.strip_prefix(top()).expect("walked from the top").to_owned());
            }
        }
    }
    let mut found = Vec::new();
    for room in ["benches", "builder", "examples", "frontend", "snapshotter", "solver", "tests"] {
        walk(&top().join(room), &mut found);
    }
    assert!(found.len() > 20, "the sources were not found");
    found
}

/// The crate that a file belongs to: the one with the longest folder that holds it.
fn crate_of(file: &Path) -> &'static str {
    let in_folder = |folder: &str| folder == "." || file.starts_with(folder);
    let best = CRATES.iter().filter(|(_, folder, _)| in_folder(folder)).max_by_key(|(_, folder, _)| folder.len());
    best.expect("the root package holds everything").0
}

fn is_test(file: &Path) -> bool {
    file.components().any(|c| ["tests", "benches", "examples", "fuzz"].contains(&&*c.as_os_str().to_string_lossy()))
        || file.file_stem().is_some_and(|s| s == "tests")
}

#[test]
fn manifests_follow_the_direction_of_imports() {
    let members: BTreeSet<String> = {
        let root: toml::Table = read(&top().join("Cargo.toml")).parse().expect("Cargo.toml is TOML");
        let members = root["workspace"]["members"].as_array().expect("members are a list");
        members.iter().map(|m| m.as_str().expect("a folder").to_owned()).collect()
    };
    let ours: BTreeMap<_, _> = CRATES.iter().map(|(name, folder, allowed)| (*name, (*folder, *allowed))).collect();
    let known: BTreeSet<String> = ours.values().map(|(f, _)| (*f).to_owned()).filter(|f| f != ".").collect();
    assert_eq!(members, known, "a new crate needs its place in ARCHITECTURE.md and in this test");

    for (name, (folder, allowed)) in &ours {
        let manifest: toml::Table = read(&top().join(folder).join("Cargo.toml")).parse().expect("Cargo.toml is TOML");
        let sections = ["dependencies", "build-dependencies"];
        for section in sections.iter().filter_map(|s| manifest.get(*s)?.as_table()) {
            for dependency in section.keys().filter(|d| ours.contains_key(d.as_str())) {
                assert!(allowed.contains(&dependency.as_str()), "{name} must not depend on {dependency}");
            }
        }
    }
}

#[test]
fn sources_follow_the_direction_of_imports() {
    let names: BTreeSet<_> = CRATES.iter().map(|(name, ..)| *name).collect();
    let mut wrong = Vec::new();
    for file in sources().iter().filter(|f| !is_test(f)) {
        let me = crate_of(file);
        let allowed = CRATES.iter().find(|(name, ..)| *name == me).expect("from the table").2;
        for (number, line) in read(&top().join(file)).lines().enumerate() {
            let line = line.trim_start();
            let Some(path) = line.strip_prefix("pub use ").or_else(|| line.strip_prefix("use ")) else { continue };
            let first = path.trim_start_matches("::").split([':', ';', ' ', '{']).next().unwrap_or_default();
            if names.contains(first) && first != me && !allowed.contains(&first) && !declared_here(file, first) {
                wrong.push(format!("{}:{}: {me} imports {first}", file.display(), number + 1));
            }
        }
    }
    assert!(wrong.is_empty(), "against the direction of imports:\n{}", wrong.join("\n"));
}

/// `mod graph;` in the same file makes `use graph::…` a matter of the file itself.
fn declared_here(file: &Path, module: &str) -> bool {
    read(&top().join(file)).lines().any(|l| l.trim_start_matches("pub ").starts_with(&format!("mod {module}")))
}

#[test]
fn the_frontend_and_the_solver_do_no_io() {
    let forbidden = [
        "std::fs",
        "std::net::Tcp",
        "std::net::Udp",
        "std::process::Command",
        "tokio::fs",
        "tokio::net",
        "tokio::process",
        "rustix::",
        "libc::",
    ];
    let mut wrong = Vec::new();
    for file in sources().iter().filter(|f| !is_test(f) && ["frontend", "solver", "graph"].contains(&crate_of(f))) {
        let text = read(&top().join(file));
        // Unit tests at a file's end may read their cases from files.
        let product = text.split("#[cfg(test)]").next().unwrap_or_default();
        wrong.extend(forbidden.iter().filter(|f| product.contains(**f)).map(|f| format!("{}: {f}", file.display())));
    }
    assert!(wrong.is_empty(), "I/O in a crate without I/O:\n{}", wrong.join("\n"));
}

#[test]
fn unsafe_stands_in_sys_only_and_says_why() {
    let mut wrong = Vec::new();
    for file in sources() {
        let text = read(&top().join(&file));
        let lines: Vec<_> = text.lines().map(str::trim).collect();
        for (number, line) in lines.iter().enumerate().filter(|(_, line)| has_unsafe(line)) {
            let place = format!("{}:{}", file.display(), number + 1);
            if crate_of(&file) != "sys" {
                wrong.push(format!("{place}: unsafe outside snapshotter/sys"));
            } else if !(line.contains("unsafe fn") || explained(&lines[..=number])) {
                wrong.push(format!("{place}: no SAFETY comment"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn has_unsafe(line: &str) -> bool {
    let code = line.split("//").next().unwrap_or_default();
    ["unsafe {", "unsafe fn", "unsafe impl", "unsafe extern"].iter().any(|form| {
        code.find(form).is_some_and(|at| !code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == '"'))
    })
}

/// A SAFETY comment stands in the few lines above.
fn explained(lines: &[&str]) -> bool {
    lines.iter().rev().take(8).any(|line| line.contains("SAFETY"))
}

#[test]
fn each_known_attack_has_its_tests() {
    let code: String = sources().iter().map(|file| read(&top().join(file))).collect();
    let list = read(&top().join("docs/attacks.md"));
    let rows: Vec<&str> = list.lines().filter(|line| line.starts_with("| ")).skip(1).collect();
    assert!(rows.len() > 25, "the list is read: {rows:?}");
    for row in rows {
        let tests = row.trim_end_matches(" |").rsplit(" | ").next().unwrap_or_default();
        let names: Vec<&str> = tests.split('`').skip(1).step_by(2).collect();
        assert!(!names.is_empty(), "no test carries this out: {row}");
        for name in names {
            assert!(code.contains(&format!("fn {name}(")), "there is no test {name}");
        }
    }
}

#[test]
fn no_file_is_longer_than_a_reader_can_hold() {
    let long: Vec<_> = sources()
        .iter()
        .map(|file| (file.display().to_string(), read(&top().join(file)).lines().count()))
        .filter(|(_, lines)| *lines > LONGEST_FILE)
        .collect();
    assert!(long.is_empty(), "which second idea lives here? {long:?}");
}

#[test]
fn only_the_report_and_the_commands_print() {
    let may_print = |file: &Path| {
        is_test(file)
            || file.starts_with("builder/cli")
            || file.starts_with("builder/report")
            || file == Path::new("builder/main.rs")
    };
    let mut wrong = Vec::new();
    for file in sources().iter().filter(|f| !may_print(f) && *f != Path::new("builder/report.rs")) {
        let text = read(&top().join(file));
        let product = text.split("#[cfg(test)]").next().unwrap_or_default();
        let prints = product.lines().enumerate().filter(|(_, l)| {
            let code = l.split("//").next().unwrap_or_default();
            ["println!(", "eprintln!(", "eprint!(", "print!("].iter().any(|p| code.contains(p))
        });
        wrong.extend(prints.map(|(number, line)| format!("{}:{}: {}", file.display(), number + 1, line.trim())));
    }
    assert!(wrong.is_empty(), "a library prints:\n{}", wrong.join("\n"));
}
