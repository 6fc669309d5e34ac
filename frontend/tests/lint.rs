//! What the checks find and what `--fix` makes of a file, as data: cases of `lint.txt`, separated by `======`. With
//! `UPDATE_GOLDEN=1` the answers are written anew.

#![allow(clippy::unwrap_used)] // A broken case is a failed test.

mod lower_support;

use std::collections::BTreeSet;
use std::path::PathBuf;

use frontend::{SourceFile, lint};
use lower_support::{Case, checked, lint_line, lower_case};

fn data() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/lint.txt")
}

/// The file as it is when nothing is left that can be mended.
fn mended(case: &Case<'_>) -> String {
    let mut text = case.dockerfile.to_owned();
    for _ in 0..5 {
        let Ok(lowered) = checked(case, &text) else { break };
        text = lint::apply(&SourceFile::new("Dockerfile", text.as_str()), &lowered.findings).0;
    }
    text
}

/// The findings, then the file as it is mended if that is another one.
fn answer(case: &Case<'_>) -> String {
    let source = SourceFile::new("Dockerfile", case.dockerfile);
    let lowered = match checked(case, case.dockerfile) {
        Ok(lowered) => lowered,
        Err(problems) => return problems.render(&source),
    };
    let mut out: String = lowered.findings.iter().map(|finding| lint_line(&source, finding)).collect();
    if let Some(violation) = &lowered.violation {
        out.push_str(&format!("error: {}\n", violation.message));
    }
    let mended = mended(case);
    if mended != case.dockerfile {
        out.push_str(&format!("--- mended\n{mended}"));
    }
    out
}

#[test]
fn golden() {
    let text = std::fs::read_to_string(data()).unwrap();
    let (mut new, mut wrong) = (String::new(), Vec::new());
    for block in text.split("======\n").filter(|block| !block.trim().is_empty()) {
        let case = Case::read(block);
        let got = answer(&case);
        let head = block.split("=== lowered\n").next().unwrap();
        new.push_str(&format!("======\n{head}=== lowered\n{got}"));
        if got != case.expected {
            wrong.push(format!("{}\n- {}\n+ {got}", case.dockerfile, case.expected));
        }
    }
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(data(), new).unwrap();
    } else {
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }
}

/// Every rule has a case, so that none can disappear unnoticed.
#[test]
fn every_rule_is_tried() {
    let text = std::fs::read_to_string(data()).unwrap();
    let found: BTreeSet<&str> =
        lint::RULES.iter().map(|rule| rule.name).filter(|name| text.contains(&format!(" {name}: "))).collect();
    let all: BTreeSet<&str> = lint::RULES.iter().map(|rule| rule.name).collect();
    assert_eq!(found, all);
}

/// A mended file has fewer findings, nothing left that could be mended, and the same steps.
#[test]
fn mending_changes_no_step() {
    let text = std::fs::read_to_string(data()).unwrap();
    let mut mended_files = 0;
    for block in text.split("======\n").filter(|block| !block.trim().is_empty()) {
        let case = Case::read(block);
        let Ok(before) = checked(&case, case.dockerfile) else { continue };
        let mended = mended(&case);
        if mended == case.dockerfile {
            continue;
        }
        mended_files += 1;
        let after = checked(&case, &mended).unwrap();
        assert!(after.findings.len() < before.findings.len(), "{mended}");
        let source = SourceFile::new("Dockerfile", mended.as_str());
        assert_eq!(lint::apply(&source, &after.findings).1, 0, "{mended}");
        let ops = |lowered: &frontend::Lowered| -> Vec<String> {
            lowered.graph.nodes().map(|(_, node)| format!("{:?} {:?}", node.op, node.inputs)).collect()
        };
        assert_eq!(ops(&before), ops(&after), "{mended}");
    }
    assert!(mended_files > 5);
}

/// The cases of the lowering, too, may be checked at any time.
#[test]
fn checks_are_deterministic() {
    let text = std::fs::read_to_string(data()).unwrap();
    for block in text.split("======\n").filter(|block| !block.trim().is_empty()) {
        let case = Case::read(block);
        assert_eq!(lower_case(&case), lower_case(&case));
    }
}
