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
                let at = source.line_column(problem.span.start());
                writeln!(out, "error {}:{} {:?}: {problem}", at.line, at.column, source.slice(problem.span)).unwrap();
                for related in &problem.related {
                    let at = source.line_column(related.span.start());
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
                let at = source.line_column(warning.span.start());
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
