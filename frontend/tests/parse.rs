//! Each `testdata/parse/NAME.Dockerfile` stands beside `NAME.expected`: the instructions as parsed, or the errors.
//! `UPDATE_EXPECTED=1` writes the latter anew.

#![allow(clippy::unwrap_used)] // A test helper that fails is a test that fails.

use std::fmt::Write as _;
use std::path::Path;

use frontend::{SourceFile, parse};

fn describe(source: &SourceFile) -> String {
    let mut out = String::new();
    match parse(source) {
        Err(problems) => {
            for problem in &problems.0 {
                let at = source.line_column(problem.span.start);
                writeln!(out, "error {}:{} {:?}: {problem}", at.line, at.column, source.slice(problem.span)).unwrap();
                for related in &problem.related {
                    let at = source.line_column(related.span.start);
                    writeln!(out, "    {}:{} {}", at.line, at.column, related.message).unwrap();
                }
            }
        }
        Ok(file) => {
            for directive in &file.directives {
                writeln!(out, "# {} = {:?}", directive.name, directive.value).unwrap();
            }
            for instruction in &file.instructions {
                let lines = source.lines(instruction.span);
                writeln!(out, "{}-{} {:?}", lines.first, lines.last, instruction.kind).unwrap();
                for comment in &instruction.comments {
                    writeln!(out, "    # {}", comment.text).unwrap();
                }
                for doc in &instruction.heredocs {
                    writeln!(out, "    {doc:?}").unwrap();
                }
            }
            for warning in &file.warnings {
                let at = source.line_column(warning.span.start);
                writeln!(out, "warning {}:{}: {warning}", at.line, at.column).unwrap();
            }
        }
    }
    out
}

#[test]
fn files_parse_as_expected() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/parse");
    let mut wrong = Vec::new();
    let mut seen = 0;
    for entry in std::fs::read_dir(&dir).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "Dockerfile") {
            continue;
        }
        seen += 1;
        let source = SourceFile::from_bytes("Dockerfile", &std::fs::read(&path).unwrap());
        let described = describe(&source);
        let expected = path.with_extension("expected");
        if std::env::var_os("UPDATE_EXPECTED").is_some() {
            std::fs::write(&expected, &described).unwrap();
        } else if std::fs::read_to_string(&expected).unwrap_or_default() != described {
            wrong.push(format!("{}: got\n{described}", path.display()));
        }
    }
    assert!(seen > 10, "the test data is missing");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Without places, two parses of the same instructions are the same text.
fn without_places(text: &str) -> String {
    let mut out = String::new();
    for instruction in parse(&SourceFile::new("", text)).expect("it is valid").instructions {
        writeln!(out, "{:?} {:?} {:?}", instruction.kind, instruction.comments, instruction.heredocs).unwrap();
    }
    let is_place = |c: char| c.is_ascii_digit() || c == '.';
    out.split('@')
        .map(|part| part.trim_start_matches(is_place))
        .collect::<Vec<_>>()
        .join("@")
        .split("span: ")
        .map(|part| part.trim_start_matches(is_place))
        .collect()
}

#[test]
fn printing_and_parsing_again_changes_nothing() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/parse");
    for entry in std::fs::read_dir(&dir).unwrap() {
        let path = entry.unwrap().path();
        let source = SourceFile::from_bytes("", &std::fs::read(&path).unwrap());
        if path.extension().is_none_or(|extension| extension != "Dockerfile") {
            continue;
        }
        let Ok(file) = parse(&source) else { continue };
        let printed = file.to_string();
        assert_eq!(without_places(source.text()), without_places(&printed), "{}\n{printed}", path.display());
    }
}
