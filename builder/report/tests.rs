//! Reports as people see them.

use frontend::{Diagnostic, Span};
use solver::VertexId;

use super::*;

const DOCKERFILE: &str = "FROM debian\n\nRUN apt-get update && \\\n    make\nCOPY\t--form=x a b\nCMD [\"sh\"]\n";

fn source() -> SourceFile {
    SourceFile::new("Dockerfile", DOCKERFILE)
}

fn printed(report: &Report) -> String {
    let mut out = Vec::new();
    report.print(&mut out, false).unwrap();
    String::from_utf8(out).unwrap()
}

fn find(text: &str) -> Span {
    let start = DOCKERFILE.find(text).unwrap();
    Span::new(start, start + text.len())
}

#[test]
fn a_failing_step() {
    let failed = FailedVertex {
        vertex: VertexId(4),
        name: "[2/3] RUN make".to_owned(),
        span: None,
        error: String::new(),
        log_tail: (0..30).map(|line| format!("0.1 line {line}")).collect(),
        log_lines: 130,
    };
    let summary = Summary { failed: Some(failed), ..Summary::default() };
    let report =
        Report::new("failed to solve: process \"/bin/sh -c make\" did not complete successfully: exit code: 2")
            .with_excerpt(Excerpt::of_lines(&source(), graph::Span { first: 3, last: 4 }))
            .with_summary(&summary, Mode::Plain);
    insta::assert_snapshot!(printed(&report));
    let all = Report::new("x").with_summary(&summary, Mode::Tty);
    assert_eq!(all.log.unwrap().lines.len(), 30);
}

#[test]
fn one_problem() {
    let problem = Diagnostic::new(find("--form"), "unknown flag --form").with_hint("did you mean --from?");
    insta::assert_snapshot!(printed(&Report::of_dockerfile(&source(), &problem.into())));
}

#[test]
fn several_problems() {
    let problems = Diagnostics(vec![
        Diagnostic::new(find("debian"), "no such image").with_related(find("CMD"), "used here"),
        Diagnostic::new(find("RUN apt-get update && \\\n    make"), "too long").with_hint("split it"),
        Diagnostic::new(Span::new(DOCKERFILE.len(), DOCKERFILE.len()), "something is missing at the end"),
    ]);
    insta::assert_snapshot!(printed(&Report::of_dockerfile(&source(), &problems)));
}

#[test]
fn long_heredocs_and_lines_are_cut() {
    let text = format!("FROM a\nRUN <<EOF\n{}EOF\n{}\n", "echo\n".repeat(100), "x".repeat(1000));
    let source = SourceFile::new("Dockerfile", text);
    let mut report = Report::new("no").with_excerpt(Excerpt::of_lines(&source, graph::Span { first: 2, last: 103 }));
    let shown = printed(&report);
    // 24 lines, of which two are the first and the last.
    assert_eq!(shown.matches("echo").count(), 22);
    assert!(shown.contains(" 103 | >>> EOF\n") && shown.contains("     | ... \n"), "{shown}");
    assert!(shown.lines().all(|line| line.len() < 220), "{shown}");
    report.excerpts[0].lines = (5000, 6000);
    assert_eq!(printed(&report), "Dockerfile:5000\nERROR: no\n");
}

#[test]
fn carets_never_panic() {
    let source = SourceFile::new("Dockerfile", "RUN é漢\t x\r\n\nRUN y");
    let length = source.text().len();
    for start in 0..=length + 2 {
        for end in start..=length + 2 {
            let excerpt =
                Excerpt { range: Some(start..end), ..Excerpt::of_lines(&source, graph::Span { first: 1, last: 3 }) };
            printed(&Report::new("x").with_excerpt(excerpt));
        }
    }
}

#[test]
fn causes_are_said_once() {
    #[derive(Debug, thiserror::Error)]
    #[error("cannot read {0}: {1}")]
    struct Outer(&'static str, #[source] io::Error);
    let error = Outer("x", io::Error::other("disk on fire"));
    assert_eq!(printed(&Report::of(&error)), "ERROR: cannot read x: disk on fire\n");
    #[derive(Debug, thiserror::Error)]
    #[error("cannot read {0}")]
    struct Terse(&'static str, #[source] io::Error);
    let error = Terse("x", io::Error::other("disk\x1b[2J on fire"));
    assert_eq!(printed(&Report::of(&error)), "ERROR: cannot read x: disk on fire\n");
}

#[test]
fn registries_have_an_exit_code_of_their_own() {
    let asked = Box::new(registry::Asked { host: "registry-1.docker.io".into(), what: "manifest of x".into() });
    let refused = registry::Error::Unauthorized {
        asked,
        authenticated: true,
        detail: registry::Detail::default(),
        note: String::new(),
    };
    #[derive(Debug, thiserror::Error)]
    #[error("cannot get x")]
    struct Outer(#[source] Box<registry::Error>);
    let report = Report::of(&Outer(Box::new(refused)));
    assert_eq!(report.exit_code, EXIT_REGISTRY);
    assert_eq!(report.hint.as_deref(), Some("log in again: rbuild login docker.io"));
    let name = registry::Error::from("A".parse::<registry::Reference>().unwrap_err());
    assert_eq!(Report::from(name).exit_code, EXIT_FAILURE);
}

#[test]
fn colours_where_asked() {
    let mut out = Vec::new();
    Report::new("x").with_hint("y").print(&mut out, true).unwrap();
    assert_eq!(String::from_utf8(out).unwrap(), "\x1b[1;31mERROR:\x1b[0m x\n\x1b[1;36mhint:\x1b[0m y\n");
}
