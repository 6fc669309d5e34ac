use super::*;

fn patterns(text: &str) -> Patterns {
    Patterns::parse(text).unwrap_or_else(|error| panic!("{text:?}: {error}"))
}

/// One pattern, and paths with whether they are ignored.
const SINGLE: &[(&str, &str, bool)] = &[
    ("a", "a", true),
    ("a", "b", false),
    ("a", "a/b", true),
    ("a", "a/b/c", true),
    ("a", "b/a", false),
    ("a", "ab", false),
    ("/a", "a", true),
    ("a/", "a", true),
    ("./a//b/../c/", "a/c", true),
    ("  a  ", "a", true),
    ("\ta\r", "a", true),
    ("..", "a", false),
    ("../a", "a", false),
    (".", "a", false),
    ("/", "a", false),
    ("a b", "a b", true),
    // one star: within a name
    ("*", "a", true),
    ("*", ".a", true),
    ("*", "a/b", true),
    ("*.txt", "a.txt", true),
    ("*.txt", "a/b.txt", false),
    ("*.txt", "atxt", false),
    ("a*", "abc/d", true),
    ("*/b", "a/b", true),
    ("*/b", "b", false),
    ("*/b", "a/a/b", false),
    ("*/b", "a/b/c", true),
    ("a*b", "a/b", false),
    ("a/*", "a", false),
    ("a/*", "a/b", true),
    // question mark
    ("a?c", "abc", true),
    ("a?c", "aéc", true),
    ("a?c", "a/c", false),
    ("a?c", "ac", false),
    // two stars
    ("**", "a", true),
    ("**", "a/b/c", true),
    ("**/a", "a", true),
    ("**/a", "b/a", true),
    ("**/a", "b/c/a", true),
    ("**/a", "ba", false),
    ("**/a", "b/a/c", true),
    ("**a", "ba", true),
    ("**a", "b/ca", true),
    ("**a", "a", true),
    ("**/*.go", "a.go", true),
    ("**/*.go", "b/a.go", true),
    ("**/*.go", "b/ago", false),
    ("a/**", "a", false),
    ("a/**", "a/b", true),
    ("a/**", "a/b/c", true),
    ("a**", "abc/d", true),
    ("a/**/b", "a/b", true),
    ("a/**/b", "a/x/b", true),
    ("a/**/b", "a/x/y/b", true),
    ("a/**/b", "a/xb", false),
    ("a/**/b/**", "a/x/b/y", true),
    ("a/**/b/**", "a/x/b", false),
    ("**/**", "a/b", true),
    ("**/a/**", "a/b", true),
    ("**/a/**", "x/a/b", true),
    ("**/a/**", "a", false),
    ("a/**b", "a/b", true),
    ("a/**b", "a/x/b", true),
    ("a/**b", "a/xb", false),
    // classes
    ("[a-c]", "b", true),
    ("[a-c]", "d", false),
    ("[^a-c]", "d", true),
    ("[^a-c]", "b", false),
    ("[!a]", "!", true),
    ("[a\\]]", "]", true),
    ("[\\-x]", "-", true),
    ("x[0-9].log", "x5.log", true),
    ("[[:digit:]]", "5", true),
    ("[[:^digit:]]", "a", true),
    ("[\\d]*", "5a", true),
    ("[^\\d]*", "5a", false),
    // a star inside of [ ] is replaced all the same
    ("[a*]", "a]", true),
    ("[a*]", "a^/[]", true),
    ("[a*]", "*", false),
    // escapes
    ("a\\*", "a*", true),
    ("a\\*", "ab", false),
    ("\\!a", "!a", true),
    ("\\#a", "#a", true),
    (" #a", "#a", true),
    ("a\\?b", "a?b", true),
    ("\\d", "5", true),
    ("a\\bc", "abc", false),
    // what is special in expressions only
    ("a.b", "axb", false),
    ("a.b*", "axb", false),
    ("a+b*", "aab", false),
    ("(a|b)*", "a", false),
    ("(a|b)*", "(a|b)c", true),
    ("{a}$*", "{a}$", true),
    ("a^b", "a^b", true),
    // a caret is not escaped, so it asks for the beginning
    ("a^*", "a^", false),
    ("^*a", "ba", true),
    ("é*", "éa", true),
];

#[test]
fn single_patterns() {
    for (pattern, path, ignored) in SINGLE {
        let patterns = patterns(pattern);
        let verdict = patterns.test(path);
        assert_eq!(verdict.ignored, *ignored, "{pattern:?} {path:?}");
        assert_eq!(verdict.rule.map(Rule::line), ignored.then_some(1), "{pattern:?} {path:?}");
    }
}

/// What is ignored, and by which line.
fn ignored_by(text: &str, path: &str) -> Option<usize> {
    let patterns = patterns(text);
    let verdict = patterns.test(path);
    verdict.rule.filter(|_| verdict.ignored).map(Rule::line)
}

#[test]
fn the_last_match_decides() {
    for (text, path, expected) in [
        ("*\n!a", "a", None),
        ("*\n!a", "b", Some(1)),
        ("*\n!a", "a/b", None),
        ("*\n!a/b", "a", Some(1)),
        ("*\n!a/b", "a/b", None),
        ("*\n!a/b", "a/b/c", None),
        ("*\n!a/b", "a/c", Some(1)),
        ("!a\na", "a", Some(2)),
        ("a\n!a\na", "a", Some(3)),
        ("a\n!a/*.md\na/x.md", "a/y.md", None),
        ("a\n!a/*.md\na/x.md", "a/x.md", Some(3)),
        ("a\n!a/b\na/b/c", "a/b/c/d", Some(3)),
        ("**\n!**/*.go\n**/*_test.go", "x/y.go", None),
        ("**\n!**/*.go\n**/*_test.go", "x/y_test.go", Some(3)),
        ("\u{feff}a\n# b\n\n  b  \n!  b/c", "b/d", Some(4)),
        ("a\n# b\n\n  b  \n!  b/c", "b/c", None),
        ("*\n!/a/", "a", None),
        ("*\n! ./a/../b", "b", None),
        // A path brought back by a pattern that only matches its parent stays back in a walk.
        ("a/b\n!a", "a/b", Some(1)),
        ("a*\n!ab\nab/c", "ab/d", None),
        ("*\n!!x", "!x", None),
    ] {
        assert_eq!(ignored_by(text, path), expected, "{text:?} {path:?}");
    }
}

#[test]
fn lists_of_flags_are_not_files() {
    let list = Patterns::from_list(["#a", " b ", "", "/c", "!b/x"]).unwrap();
    for (path, ignored) in [("#a", true), ("b", true), ("b/x", false), ("b/y", true), ("c", false)] {
        assert_eq!(list.test(path).ignored, ignored, "{path}");
    }
    assert_eq!(list.test("b/y").rule.map(Rule::line), Some(2));
}

#[test]
fn invalid_patterns_name_their_line() {
    for text in [
        "!", "a\n! ", "[", "[]", "[a", "[]a]", "[a-]", "[-a]", "[^]", "a\\", "[a\\", "[a-\\", "[b-a]", "[[:no:]]",
        "\\q*",
    ] {
        let error = Patterns::parse(text).expect_err(text);
        assert_eq!(error.line, text.lines().count(), "{text:?}");
    }
    let source = SourceFile::new(".dockerignore", "a\n  b[ \n");
    let error = Patterns::parse(source.text()).unwrap_err();
    assert_eq!(source.slice(error.diagnostic(&source).span), "b[");
    // A range from high to low passes the syntax check and fails as expression; without one it is not looked at.
    assert!(Patterns::parse("b-a").is_ok());
}

#[test]
fn ignored_directories_are_read_only_for_exceptions() {
    for (text, dir, descend) in [
        ("a", "a", false),
        ("a", "b", true),
        ("a\n!b", "a", false),
        ("a\n!a/b", "a", true),
        ("a\n!a/b/c/d", "a/b", true),
        ("a\n!a/b/c", "a/x", false),
        ("a\n!ab", "a", false),
        ("a\n!a/*/c", "a/x", true),
        ("a\n!a/*/c", "a/x/y", false),
        ("a\n!*.md", "a", false),
        ("a\n!**/*.md", "a", true),
        ("a\n!**/b", "a/c", true),
        ("a\n!a/**", "a/c", true),
        ("*\n!b/**/c", "a", false),
        ("*\n!b/**/c", "b", true),
        ("*\n!b/**/c", "b/x/y", true),
        // What stands in front of the pattern that decides cannot bring anything back.
        ("!a/b\na", "a", false),
        ("!**\na", "a", false),
    ] {
        let patterns = patterns(text);
        let mut state = patterns.root();
        for (at, _) in dir.match_indices('/') {
            state = patterns.directory(&state, &dir[..at]).state;
        }
        assert_eq!(patterns.directory(&state, dir).descend, descend, "{text:?} {dir:?}");
    }
}

/// Not reading a directory must not change the outcome: everything below is ignored.
#[test]
fn directories_that_are_not_read_hold_nothing() {
    let names = ["a", "b", "a.md"];
    let parts = ["a", "b", "*", "**", "a.md", "*.md", "?", "[ab]", "**a"];
    let mut lists = Vec::new();
    for first in parts {
        for second in parts {
            for third in parts {
                lists.push(format!("{first}\n!{second}/{third}"));
                lists.push(format!("{first}\n!{second}\n{third}/{second}\n!{third}"));
            }
        }
    }
    for list in lists {
        let patterns = patterns(&list);
        for a in names {
            let top = patterns.directory(&patterns.root(), a);
            for b in names {
                let path = format!("{a}/{b}");
                let below = patterns.directory(&top.state, &path);
                assert!(top.descend || below.verdict.ignored, "{list:?} {path}");
                for c in names {
                    let path = format!("{path}/{c}");
                    let file = patterns.file(&below.state, &path);
                    assert!((top.descend && below.descend) || file.ignored, "{list:?} {path}");
                    assert_eq!(file.ignored, patterns.test(&path).ignored);
                }
            }
        }
    }
}

#[test]
fn hostile_patterns_are_cheap() {
    let many_stars = "*a".repeat(500);
    let path = "a".repeat(4000);
    assert!(patterns(&many_stars).test(&path).ignored);
    assert!(!patterns(&format!("{many_stars}b")).test(&path).ignored);
    assert!(!patterns(&"**/a/".repeat(200)).test(&"a/".repeat(150)).ignored);
}
