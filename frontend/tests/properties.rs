//! Whatever the input, nothing panics; and what is printed parses to the same.

use std::collections::BTreeMap;
use std::path::Path;

use frontend::dockerignore::Patterns;
use frontend::expand::Expander;
use frontend::{SourceFile, Span, detect_syntax, parse, parse_heredoc, parse_trigger};
use proptest::prelude::*;

#[path = "../../fuzz/entry.rs"]
#[allow(dead_code)]
mod entry;

use entry::described;

/// Fragments from which both sense and nonsense arises much faster than from random characters.
fn fragment() -> impl Strategy<Value = String> {
    let words = [
        "FROM ",
        "ARG ",
        "RUN ",
        "CMD ",
        "LABEL ",
        "MAINTAINER ",
        "EXPOSE ",
        "ENV ",
        "ADD ",
        "COPY ",
        "ENTRYPOINT ",
        "VOLUME ",
        "USER ",
        "WORKDIR ",
        "ONBUILD ",
        "STOPSIGNAL ",
        "HEALTHCHECK ",
        "SHELL ",
        "FROM a AS b\n",
        "FROM x\n",
        "# escape=`\n",
        "# syntax=a\n",
        "# comment\n",
        "#\n",
        "NONE",
        "AS ",
        "a",
        "b=c ",
        "=",
        " ",
        "\t",
        "\n",
        "\r\n",
        "\\\n",
        "`\n",
        "\\",
        "`",
        "\\\\",
        "\"",
        "'",
        "$",
        "${",
        "}",
        ":-",
        "$A",
        "${A:+b}",
        "${A//a/b}",
        "${A#*}",
        "[",
        "]",
        "[\"a\", \"b\"]",
        "\"c\",",
        "1",
        "<<EOF",
        "<<-'EOF'",
        "<<",
        "EOF\n",
        "\tEOF\n",
        "--",
        "--mount=type=cache,target=/a ",
        "--from=a ",
        "--link ",
        "--interval=1s ",
        "--network=none ",
        "*",
        "**",
        "/",
        "!",
        "?",
        "é",
        "\u{feff}",
        "\u{a0}",
        "\0",
    ];
    prop_oneof![9 => prop::sample::select(words.to_vec()).prop_map(str::to_owned), 1 => "\\PC{1,3}"]
}

/// Half of it is nonsense from the start, the other half has a chance to be accepted.
fn text() -> impl Strategy<Value = String> {
    let nonsense = prop::collection::vec(fragment(), 0..40).prop_map(|fragments| fragments.concat());
    let starts = [
        "RUN ",
        "CMD ",
        "COPY a b ",
        "ENV a=b c=",
        "LABEL a ",
        "USER a",
        "ONBUILD RUN ",
        "ARG a=",
        "RUN a <<EOF ",
        "#",
    ];
    let line = (prop::sample::select(starts.to_vec()), prop::collection::vec(fragment(), 0..6));
    let lines = prop::collection::vec(line.prop_map(|(start, rest)| format!("{start}{}\n", rest.concat())), 0..6);
    prop_oneof![nonsense, lines.prop_map(|lines| lines.concat())]
}

/// Real files, and those that once made trouble. A line of them is longer than a line may be when it is joined.
#[test]
fn files_are_printed_and_parsed_again() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut files = vec![root.join("tests/fixtures"), root.join("examples"), root.join("frontend/testdata")];
    files.push(root.join("fuzz/corpus/dockerfile"));
    let mut texts = vec![format!("FROM x\nRUN {}\n", "true \\\n # & \\\n && ".repeat(9_000))];
    while let Some(path) = files.pop() {
        if path.is_dir() {
            files.extend(path.read_dir().expect("a directory").map(|entry| entry.expect("a name").path()));
        } else if path.to_string_lossy().contains("ockerfile") {
            texts.push(String::from_utf8_lossy(&std::fs::read(&path).expect("a file")).into_owned());
        }
    }
    let mut same = 0;
    for text in texts {
        let Ok(file) = parse(&SourceFile::new("Dockerfile", text)) else { continue };
        let printed = file.to_string();
        let again = parse(&SourceFile::new("printed", printed.as_str()));
        let again = again.unwrap_or_else(|problems| panic!("{problems}\n{printed}"));
        assert_eq!(described(&file), described(&again), "{printed}");
        same += 1;
    }
    assert!(same > 10, "only {same} files were found");
}

fn check_places(source: &SourceFile, span: Span) {
    assert!(span.start() <= span.end() && span.end() <= source.text().len());
    assert!(source.text().is_char_boundary(span.start()) && source.text().is_char_boundary(span.end()), "{span:?}");
    assert!(source.line_column(span.start()).line >= 1);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn parsing_is_total_and_places_are_real(text in text()) {
        let source = SourceFile::new("Dockerfile", format!("FROM x\n{text}"));
        match parse(&source) {
            Ok(file) => {
                for instruction in &file.instructions {
                    check_places(&source, instruction.span);
                    check_places(&source, instruction.keyword.span);
                    prop_assert_eq!(source.slice(instruction.keyword.span), instruction.keyword.text.as_str());
                    for flag in &instruction.flags {
                        check_places(&source, flag.span);
                    }
                    for doc in &instruction.heredocs {
                        check_places(&source, doc.name.span);
                        prop_assert_eq!(source.slice(doc.content_span), doc.content.as_str());
                    }
                }
                for warning in &file.warnings {
                    check_places(&source, warning.span);
                }
            }
            Err(problems) => {
                prop_assert!(!problems.0.is_empty());
                for problem in &problems.0 {
                    check_places(&source, problem.span);
                    prop_assert!(!problem.message.is_empty());
                    for related in &problem.related {
                        check_places(&source, related.span);
                    }
                }
            }
        }
    }

    #[test]
    fn printing_and_parsing_again_is_the_identity(text in text()) {
        let source = SourceFile::new("Dockerfile", format!("FROM x\n{text}"));
        if let Ok(file) = parse(&source) {
            let printed = file.to_string();
            let again = parse(&SourceFile::new("printed", printed.clone()));
            let again = again.map_err(|problems| TestCaseError::fail(format!("{problems}\n{printed:?}")))?;
            prop_assert_eq!(described(&file), described(&again), "{:?}", printed);
        }
    }

    #[test]
    fn other_entry_points_are_total(text in text()) {
        let source = SourceFile::new("x", text.clone());
        let _ = parse(&source);
        let _ = parse_trigger(&source);
        let _ = detect_syntax(&source);
        let _ = parse_heredoc(&text);
    }

    #[test]
    fn expansion_is_total(text in text(), value in "\\PC{0,20}", quotes: bool, escapes: bool, unset: bool) {
        let env = BTreeMap::from([("A".to_owned(), value)]);
        for expander in [Expander::new('\\'), Expander::new('`'), Expander::for_heredoc()] {
            let expander = expander.raw_quotes(quotes).raw_escapes(escapes).keep_unset(unset);
            let word = expander.process_word(&text, &env);
            let words = expander.process_words(&text, &env);
            prop_assert_eq!(word.is_ok(), words.is_ok());
        }
    }

    #[test]
    fn patterns_are_total_and_walks_agree_with_tests(lines in prop::collection::vec("[!/*ab.\\[\\]^?\\\\-]{0,8}", 0..6), path in "[ab.]{1,2}(/[ab.]{1,2}){0,3}") {
        if let Ok(patterns) = Patterns::parse(&lines.join("\n")) {
            let names: Vec<&str> = path.split('/').filter(|name| !matches!(*name, "." | "..")).collect();
            let (Some((file, dirs)), mut state) = (names.split_last(), patterns.root()) else { return Ok(()) };
            let mut at = String::new();
            let mut unread = false;
            for dir in dirs {
                at.push_str(dir);
                let verdict = patterns.directory(&state, &at);
                unread |= !verdict.descend;
                state = verdict.state;
                at.push('/');
            }
            at.push_str(file);
            let verdict = patterns.file(&state, &at);
            prop_assert_eq!(verdict.ignored, patterns.test(&at).ignored);
            prop_assert!(!unread || verdict.ignored, "a directory that holds {:?} was not read", at);
        }
    }
}
