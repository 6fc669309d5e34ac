use super::*;

fn file(text: &str) -> SourceFile {
    SourceFile::new("Dockerfile", text)
}

/// A file read to its end.
struct Whole<'a> {
    lines: Vec<LogicalLine<'a>>,
    directives: Vec<Directive>,
    escape: char,
    problems: Vec<Diagnostic>,
}

fn read(source: &SourceFile) -> Whole<'_> {
    let mut reader = super::read(source);
    let lines = reader.by_ref().collect();
    let Lines { directives, escape, problems, .. } = reader;
    Whole { lines, directives, escape, problems }
}

fn joined(text: &str) -> Vec<String> {
    let source = file(text);
    let lines = read(&source);
    assert_eq!(lines.problems, [], "{text:?}");
    lines.lines.into_iter().map(|line| line.text.as_str().to_owned()).collect()
}

#[test]
fn continuations() {
    for (text, expected) in [
        ("RUN a\\\nb", vec!["RUN ab"]),
        ("RUN a \\\n  b \\\t \n\tc\n", vec!["RUN a   b \tc"]),
        ("RUN a \\\r\n b\r\n", vec!["RUN a  b"]),
        ("RUN a \\\n# no\n\n   # no\nb", vec!["RUN a b"]),
        ("RUN a \\\\\nRUN b", vec!["RUN a \\\\", "RUN b"]),
        ("RUN a \\\\\\\nRUN b", vec!["RUN a \\\\\\", "RUN b"]),
        ("RUN a \\\n\\\n\\\nb", vec!["RUN a b"]),
        ("RUN a \\", vec!["RUN a "]),
        ("\\\nRUN a", vec!["RUN a"]),
        ("  RUN a", vec!["RUN a"]),
        ("RUN a # b", vec!["RUN a # b"]),
        ("RUN a `\nRUN b", vec!["RUN a `", "RUN b"]),
        ("# escape=`\nRUN a `\nb \\\nRUN c", vec!["RUN a b \\", "RUN c"]),
        ("\u{feff}RUN a\n\u{a0}\nRUN b", vec!["RUN a", "RUN b"]),
    ] {
        assert_eq!(joined(text), expected, "{text:?}");
    }
}

#[test]
fn directives() {
    for (text, escape, names) in [
        ("# escape=`", '`', vec!["escape"]),
        ("\u{feff}# syntax=a/b:c d\n#ESCAPE = ` \r\n  #check=skip=all\n", '`', vec!["syntax", "escape", "check"]),
        ("\n# escape=`", '\\', vec![]),
        ("# hello\n# escape=`", '\\', vec![]),
        ("#!/bin/sh\n# escape=`", '\\', vec![]),
        ("# foo=bar\n# escape=`", '\\', vec![]),
        ("FROM a\n# escape=`", '\\', vec![]),
        ("# escape=", '\\', vec![]),
        ("# 1escape=`", '\\', vec![]),
        ("#\u{a0}escape\t=\t`", '`', vec!["escape"]),
    ] {
        let source = file(text);
        let lines = read(&source);
        assert_eq!(lines.problems, [], "{text:?}");
        assert_eq!(lines.escape, escape, "{text:?}");
        assert_eq!(lines.directives.iter().map(|d| d.name.as_str()).collect::<Vec<_>>(), names, "{text:?}");
    }
    let text = file("# syntax = a/b:c d \n");
    let lines = read(&text);
    assert_eq!(lines.directives[0].value.text, "a/b:c d");
    assert_eq!(text.slice(lines.directives[0].value.span), "a/b:c d");
    for (text, expected) in [
        ("# escape=x", "'x' cannot be the escape character"),
        ("# escape= ", "' ' cannot be the escape character"),
        ("# escape=`\n# Escape=`", "given twice"),
    ] {
        let source = file(text);
        let lines = read(&source);
        assert!(lines.problems[0].message.contains(expected), "{text:?}: {:?}", lines.problems);
    }
}

#[test]
fn syntax_is_found_in_other_languages_too() {
    for (text, expected) in [
        ("# syntax=a b\nFROM x", Some("a")),
        ("\u{feff}#syntax=a", Some("a")),
        ("#!/bin/sh\n# check=x\r\n# syntax=a\r\n", Some("a")),
        ("//syntax=a", Some("a")),
        ("#!/x\n// syntax = a", Some("a")),
        ("{\"syntax\": \"a\", \"b\": 1}", Some("a")),
        ("{\"syntax\": 1}", None),
        ("{\"syntax\": \"a\"}\n#", None),
        ("FROM x\n# syntax=a", None),
        ("\n# syntax=a", None),
        (" # syntax=a", None),
        ("# check=a\n# check=a\n# syntax=a", None),
    ] {
        assert_eq!(detect_syntax(&file(text)).map(|found| found.image).as_deref(), expected, "{text:?}");
    }
}

#[test]
fn heredoc_words() {
    let heredoc = |name: &str, fd, expand, chomp| Some(HeredocWord { name: name.into(), fd, expand, chomp });
    for (word, expected) in [
        ("<<EOF", heredoc("EOF", 0, true, false)),
        ("<<-EOF", heredoc("EOF", 0, true, true)),
        ("<< EOF", heredoc("EOF", 0, true, false)),
        ("<<- EOF", heredoc("EOF", 0, true, true)),
        ("<< -EOF", heredoc("-EOF", 0, true, false)),
        ("3<<EOF", heredoc("EOF", 3, true, false)),
        ("99999999999999999999<<EOF", heredoc("EOF", u64::MAX, true, false)),
        ("<<'EOF'", heredoc("EOF", 0, false, false)),
        ("<<\"E\"OF", heredoc("EOF", 0, false, false)),
        ("<<'one two'", heredoc("one two", 0, false, false)),
        ("<<e\\'f", heredoc("e'f", 0, true, false)),
        ("<<'e'\\'f", heredoc("e'f", 0, false, false)),
        ("<<$EOF", heredoc("$EOF", 0, true, false)),
        ("<<${EOF}", heredoc("${EOF}", 0, true, false)),
        ("", None),
        ("EOF", None),
        ("<<", None),
        ("<<-", None),
        ("<<\"\"", None),
        ("<EOF", None),
        ("<<<EOF", None),
        ("x<<EOF", None),
        ("<<EOF sh", None),
        ("<<A<<B", None),
    ] {
        assert_eq!(parse_heredoc(word).unwrap(), expected, "{word}");
    }
    for word in ["<<'EOF", "<<\"EOF", "<<EOF'", "<<${"] {
        assert!(parse_heredoc(word).is_err(), "{word}");
    }
}

#[test]
fn heredocs_are_cut_out() {
    let bodies = |text: &str| -> Vec<(String, Vec<(String, String)>)> {
        let source = file(text);
        let lines = read(&source);
        assert_eq!(lines.problems, [], "{text:?}");
        let body = |doc: Heredoc| (doc.name.text.to_string(), doc.content);
        lines
            .lines
            .into_iter()
            .map(|line| (line.text.as_str().to_owned(), line.heredocs.into_iter().map(body).collect()))
            .collect()
    };
    let pair = |name: &str, body: &str| (name.to_owned(), body.to_owned());
    for (text, expected) in [
        ("RUN <<A\nx\nA", vec![("RUN <<A", vec![pair("A", "x\n")])]),
        (
            "run <<A cat <<-B\nB\n\tA\nA\n\tb\n\tB\n",
            vec![("run <<A cat <<-B", vec![pair("A", "B\n\tA\n"), pair("B", "\tb\n")])],
        ),
        (
            "RUN a \\\n <<A\nx \\\n# y\nA\nRUN b",
            vec![("RUN a  <<A", vec![pair("A", "x \\\n# y\n")]), ("RUN b", vec![])],
        ),
        // What will be refused later does not hide a here-document.
        ("COPY ${b:x} <<A /\nx\nA", vec![("COPY ${b:x} <<A /", vec![pair("A", "x\n")])]),
        ("RUN <<A\r\nx\r\nA\r\n", vec![("RUN <<A", vec![pair("A", "x\r\n")])]),
        ("ONBUILD --x copy <<A /x\nA\n", vec![("ONBUILD --x copy <<A /x", vec![pair("A", "")])]),
        // These are none.
        ("RUN [\"<<A\"]", vec![("RUN [\"<<A\"]", vec![])]),
        ("RUN \"<<A\"", vec![("RUN \"<<A\"", vec![])]),
        ("RUN it's <<A", vec![("RUN it's <<A", vec![])]),
        ("RUN echo $((1<<2))", vec![("RUN echo $((1<<2))", vec![])]),
        ("USER <<A", vec![("USER <<A", vec![])]),
        ("ONBUILD ONBUILD RUN <<A", vec![("ONBUILD ONBUILD RUN <<A", vec![])]),
        ("RUN cat <<<A", vec![("RUN cat <<<A", vec![])]),
    ] {
        let expected: Vec<_> = expected.into_iter().map(|(line, docs)| (line.to_owned(), docs)).collect();
        assert_eq!(bodies(text), expected, "{text:?}");
    }
    let text = file("FROM a\nRUN cat <<A <<'B C'\n1\nA\n2\nB C\nUSER x");
    let line = &read(&text).lines[1];
    assert_eq!(text.slice(line.span), "RUN cat <<A <<'B C'\n1\nA\n2\nB C");
    assert_eq!(text.slice(line.heredocs[1].name.span), "<<'B C'");
    assert_eq!(text.slice(line.heredocs[1].content_span), "2\n");
}

#[test]
fn unterminated_heredocs_show_what_was_meant() {
    let text = file("FROM a\nRUN <<EOF\nx\n  EOF\n");
    let lines = read(&text);
    assert_eq!(text.slice(lines.problems[0].span), "<<EOF");
    assert_eq!(text.slice(lines.problems[0].related[0].span), "EOF");
}

#[test]
fn long_lines() {
    let fits = format!("RUN {}\n", "x".repeat(65_535 - 4));
    assert_eq!(read(&file(&fits)).problems, []);
    assert_eq!(read(&file(fits.trim_end())).problems, []);
    let long = format!("RUN {}\nRUN y", "x".repeat(65_536 - 4));
    let text = file(&long);
    let lines = read(&text);
    assert_eq!((lines.problems.len(), lines.lines.len()), (1, 2));
    let inside = format!("RUN <<A\n{}\nA\n", "x".repeat(65_536));
    assert_eq!(read(&file(&inside)).problems.len(), 1);
}

#[test]
fn large_files_take_linear_time_and_no_stack() {
    const LINES: usize = 100_000;
    let continued = format!("RUN a{}", " \\\n&& b".repeat(LINES));
    let text = file(&continued);
    let lines = read(&text);
    assert_eq!(lines.lines.len(), 1);
    assert_eq!(lines.lines[0].span.end(), continued.len());
    assert_eq!(read(&file(&"RUN a\n".repeat(LINES))).lines.len(), LINES);
    assert_eq!(read(&file(&"RUN <<A\nA\n".repeat(LINES / 2))).lines.len(), LINES / 2);
    assert_eq!(read(&file(&format!("RUN <<A\n{}A", "x\n".repeat(LINES)))).lines.len(), 1);
    assert_eq!(read(&file(&"\\\n".repeat(LINES))).problems.len(), 1);
    assert_eq!(read(&file(&format!("RUN a \\\n{}", "#\n\n".repeat(LINES)))).lines.len(), 1);
    let many = format!("RUN{}\n{}", " <<A".repeat(10_000), "A\n".repeat(10_000));
    assert_eq!(read(&file(&many)).lines[0].heredocs.len(), 10_000);
    let odd = format!("RUN{}\n", " \\\n<<\\}${x:-\\}}".repeat(20_000));
    assert!(read(&file(&odd)).lines.len() + read(&file(&odd)).problems.len() > 0);
}

/// The last lines as BuildKit counts them: what was read to see whether the instruction goes on belongs to it.
#[test]
fn an_instruction_that_is_continued_up_to_the_end_of_the_file_ends_there() {
    for (text, last, empty) in [
        ("FROM x\nRUN a \\", 2, None),
        ("FROM x\nRUN a \\\n", 2, None),
        ("FROM x\nRUN a \\\n# c\n# d\n", 4, None),
        ("FROM x\nRUN a \\\n# c\n\n", 4, Some(4)),
        ("FROM x\nRUN a \\\n\n# c", 4, Some(4)),
        ("FROM x\nRUN a \\\n\n# c\n\n\n", 6, Some(6)),
        ("FROM x\nRUN a \\\n\n  b \\\n # x\n", 5, Some(5)),
    ] {
        let source = SourceFile::new("Dockerfile", text);
        let mut lines = super::read(&source);
        let span = lines.by_ref().last().expect("two instructions").span;
        assert_eq!(source.line_column(span.end() - 1).line, last, "{text:?}");
        let found = lines.empty_continuations.last().map(|empty| source.line_column(empty.end.end()).line);
        assert_eq!(found, empty, "{text:?}");
    }
}
