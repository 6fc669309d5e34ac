use std::collections::BTreeMap;

use super::*;

fn env() -> BTreeMap<String, String> {
    [
        ("FOO", "foo"),
        ("EMPTY", ""),
        ("SP", " a  b "),
        ("PATH", "/usr/lib/x.tar.gz"),
        ("ÄRGER", "ja"),
        ("NL", "one\ntwo"),
        ("PAT", "*l"),
        ("SLASHES", "/a//b/"),
        ("STARS", "a*b?c\\d"),
        ("BRACKETS", "()[]{}^$.|+"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .into()
}

fn word(text: &str) -> Result<String, ExpandReason> {
    Expander::new('\\').process_word(text, &env()).map(|done| done.text).map_err(|error| error.reason)
}

#[test]
fn words_expand() {
    for (text, expected) in [
        ("", ""),
        ("plain", "plain"),
        ("$FOO", "foo"),
        ("a${FOO}b", "afoob"),
        ("$FOObar", ""),
        ("$ÄRGER", "ja"),
        ("$", "$"),
        ("a$", "a$"),
        ("$.", "$."),
        ("$ x", "$ x"),
        ("$1x", "x"),
        ("$12x", "x"),
        ("$@x$*$#$?$-$!$$", "x"),
        ("${1:-d}", "d"),
        ("${@}", ""),
        ("${*:-d}", "d"),
        // quotes
        ("'$FOO'", "$FOO"),
        ("\"$FOO\"", "foo"),
        ("\"'$FOO'\"", "'foo'"),
        ("'\"'", "\""),
        ("a''b\"\"c", "abc"),
        ("'a\\'", "a\\"),
        // escapes
        ("\\$FOO", "$FOO"),
        ("\\\\$FOO", "\\foo"),
        ("a\\tb", "atb"),
        ("\"a\\tb\"", "a\\tb"),
        ("\"\\\"\\$\\\\\"", "\"$\\"),
        ("a\\", "a"),
        ("\\'", "'"),
        // defaults
        ("${FOO:-x}", "foo"),
        ("${EMPTY:-x}", "x"),
        ("${EMPTY-x}", ""),
        ("${NO:-x}", "x"),
        ("${NO-x}", "x"),
        ("${NO:-}", ""),
        ("${NO:-${EMPTY:-$FOO}}", "foo"),
        ("${NO:-a b}", "a b"),
        ("${NO:-'}'}", "}"),
        ("${NO:-\"}\"}", "}"),
        ("${NO:-\\}}", "}"),
        ("${NO:-\\$FOO}", "$FOO"),
        ("${NO}}", "}"),
        // alternatives
        ("${FOO:+x}", "x"),
        ("${EMPTY:+x}", ""),
        ("${EMPTY+x}", "x"),
        ("${NO:+x}", ""),
        ("${NO+x}", ""),
        // required
        ("${FOO:?no}", "foo"),
        ("${EMPTY?no}", ""),
        // prefixes
        ("${PATH#*/}", "usr/lib/x.tar.gz"),
        ("${PATH##*/}", "x.tar.gz"),
        ("${PATH#/usr}", "/lib/x.tar.gz"),
        ("${PATH#usr}", "/usr/lib/x.tar.gz"),
        ("${PATH#?usr?}", "lib/x.tar.gz"),
        ("${PATH#*}", "/usr/lib/x.tar.gz"),
        ("${PATH##*}", ""),
        ("${PATH#}", "/usr/lib/x.tar.gz"),
        ("${PATH##*/*/*i}", "b/x.tar.gz"),
        ("${PATH#$NO}", "/usr/lib/x.tar.gz"),
        ("${STARS#a\\*}", "b?c\\d"),
        ("${STARS##*\\\\}", "d"),
        ("${NO#x}", ""),
        ("${BRACKETS#()[]{\\}^$.}", "|+"),
        // The escape of a dollar stays in patterns, where it is no valid escape; in quotes it is not needed.
        ("${BRACKETS#'()[]{}^$'}", ".|+"),
        // suffixes
        ("${PATH%.*}", "/usr/lib/x.tar"),
        ("${PATH%%.*}", "/usr/lib/x"),
        ("${PATH%gz}", "/usr/lib/x.tar."),
        ("${PATH%/*/*}", "/usr"),
        ("${PATH%%\\/*}", ""),
        ("${STARS%\\?*}", "a*b"),
        ("${FOO%$PAT}", "foo"),
        // newlines are matched by neither * nor ?
        ("${NL#*}", "one\ntwo"),
        ("${NL##*}", "\ntwo"),
        ("${NL%%*}", "one\n"),
        ("${NL#one?}", "one\ntwo"),
        ("${NL##*\n*}", ""),
        // replacement
        ("${PATH/r/R}", "/usR/lib/x.tar.gz"),
        ("${PATH//r/R}", "/usR/lib/x.taR.gz"),
        ("${PATH//\\//-}", "-usr-lib-x.tar.gz"),
        ("${PATH/*./}", "gz"),
        ("${PATH//?/.}", "................."),
        ("${PATH/nope/x}", "/usr/lib/x.tar.gz"),
        ("${FOO//o/}", "f"),
        ("${FOO/o/$PATH}", "f/usr/lib/x.tar.gzo"),
        ("${FOO//x*/y}", "foo"),
        ("${FOO//*/y}", "y"),
        ("${FOO//${NO}/-}", "-f-o-o-"),
        ("${NL//*/x}", "x\nx"),
        ("${SLASHES//\\//}", "ab"),
        ("${SLASHES////}", "///a/////b///"),
        ("${NO/a/b}", ""),
        ("${FOO//o/<'$0'>}", "f<o><o>"),
        ("${FOO//o/<'$1${x}$$$'>}", "f<$$><$$>"),
        ("${FOO/o/<'$0'>}", "f<$0>o"),
        // here-document marks are text
        ("a<b<< c", "a<b<< c"),
    ] {
        assert_eq!(word(text).as_deref(), Ok(expected), "{text}");
    }
}

/// As BuildKit's own lexer answers.
#[test]
fn an_escape_character_that_a_variable_puts_last_in_a_suffix_escapes_what_stands_before_it() {
    let values = [("STARRED", "a*"), ("ESC", "x\\"), ("V", "a*\\")];
    let patterns = [("STAR", "*\\"), ("TWO", "\\\\"), ("ESTAR", "\\*\\"), ("LONE", "\\")];
    let env: BTreeMap<_, _> = values.iter().chain(&patterns).map(|(k, v)| (k.to_string(), v.to_string())).collect();
    for (text, expected) in [
        ("${STARRED%$STAR}", Some("a")),
        ("${STARRED%%*$STAR}", Some("")),
        ("${ESC%%$TWO}", Some("x")),
        ("${ESC%%$ESTAR}", Some("")),
        ("${V%%$ESTAR}", Some("")),
        ("${V%%?$ESTAR}", Some("")),
        ("${V%$LONE}", None),
        ("${STARRED%%x$LONE}", None),
    ] {
        let word = Expander::new('\\').process_word(text, &env).ok().map(|word| word.text);
        assert_eq!(word.as_deref(), expected, "{text}");
    }
}

#[test]
fn errors_say_what_is_wrong() {
    use ExpandReason::*;
    let required = |name: &str, message: &str| Required { name: name.into(), message: message.into() };
    for (text, expected) in [
        ("'a", UnclosedQuote('\'')),
        ("\"a", UnclosedQuote('"')),
        ("\"a\\\"", UnclosedQuote('"')),
        ("\"a\\", UnclosedQuote('"')),
        ("${", MissingEnd('}')),
        ("${FOO", MissingEnd('}')),
        ("${FOO:", MissingEnd('}')),
        ("${FOO:-a", MissingEnd('}')),
        ("${FOO/a", MissingEnd('/')),
        ("${FOO/a}", MissingEnd('/')),
        ("${FOO/a/b", MissingEnd('}')),
        ("${}", BadSubstitution),
        ("${:-a}", BadSubstitution),
        ("${{FOO}}", BadSubstitution),
        ("${FOO=a}", UnsupportedModifier("=".into())),
        ("${FOO:=a}", UnsupportedModifier(":=".into())),
        ("${FOO:#a}", UnsupportedModifier(":#".into())),
        ("${FOO:x}", UnsupportedModifier(":x".into())),
        ("${.}", UnsupportedModifier(".".into())),
        ("${#FOO}", UnsupportedModifier("F".into())),
        ("${NO?}", required("NO", "must be set")),
        ("${NO:?}", required("NO", "must be set and not be empty")),
        ("${EMPTY:?give $FOO}", required("EMPTY", "give foo")),
        ("${FOO%\\x}", InvalidPattern { pattern: "\\x".into() }),
        ("${FOO#\\x}", InvalidPattern { pattern: "\\x".into() }),
    ] {
        assert_eq!(word(text), Err(expected), "{text}");
    }
    let error = Expander::new('\\').process_word("a${NO?set it}", &env()).unwrap_err();
    assert_eq!(error.to_string(), "cannot expand 'a${NO?set it}': NO: set it");
}

#[test]
fn words_are_split_after_expansion() {
    for (text, expected) in [
        ("", vec![]),
        ("a b", vec!["a", "b"]),
        ("  a\t b  ", vec!["a", "b"]),
        ("a\\ b", vec!["a b"]),
        ("'a b' \"c d\"", vec!["a b", "c d"]),
        ("x${SP}y", vec!["x", "a", "b", "y"]),
        ("x\"${SP}\"y", vec!["x a  b y"]),
        ("$EMPTY", vec![]),
        ("'' a", vec!["a"]),
        ("<< EOF x", vec!["<< EOF", "x"]),
        ("a${NO:-b c}", vec!["ab", "c"]),
    ] {
        let done = Expander::new('\\').process_words(text, &env()).unwrap();
        assert_eq!(done.words, expected, "{text}");
    }
    let raw = Expander::new('\\').raw_quotes(true).raw_escapes(true).keep_unset(true);
    for (text, expected) in [
        ("RUN <<'A B' cat", vec!["RUN", "<<'A B'", "cat"]),
        ("<<-E\\ F $X ${Y:-z}", vec!["<<-E\\ F", "$X", "${Y:-z}"]),
        ("\"a\\\"b\"", vec!["\"a\\\"b\""]),
    ] {
        assert_eq!(raw.process_words(text, &NoEnv).unwrap().words, expected, "{text}");
    }
}

#[test]
fn modes() {
    let env = env();
    let text = |expander: Expander, word: &str| expander.process_word(word, &env).unwrap().text;
    assert_eq!(text(Expander::new('`'), "`$FOO \\$FOO"), "$FOO \\foo");
    assert_eq!(text(Expander::for_heredoc(), "it's \"$FOO\" \\$FOO\n"), "it's \"foo\" $FOO\n");
    let names = Expander::new('\\').raw_quotes(true).keep_unset(true);
    assert_eq!(
        text(names, "'$FOO' \"$FOO\" $NO ${NO} ${NO:-a} ${NO#x} ${NO/a/b}"),
        "'$FOO' \"foo\" $NO ${NO} ${NO:-a} ${NO#x} ${NO/a/b}"
    );
}

#[test]
fn variables_are_reported() {
    let done = Expander::new('\\').process_word("$FOO ${NO:-${EMPTY}} ${FOO#$PATH} '$SP'", &env()).unwrap();
    assert_eq!(done.used.into_iter().collect::<Vec<_>>(), ["EMPTY", "FOO", "PATH"]);
    assert_eq!(done.unset.into_iter().collect::<Vec<_>>(), ["NO"]);
}

#[test]
fn hostile_words_are_bounded() {
    let expander = Expander::new('\\');
    let deep = format!("{}x{}", "${a:-".repeat(20_000), "}".repeat(20_000));
    assert_eq!(expander.process_word(&deep, &NoEnv).unwrap_err().reason, ExpandReason::TooDeep);
    assert_eq!(expander.process_word(&"${a:-".repeat(50), &NoEnv).unwrap_err().reason, ExpandReason::MissingEnd('}'));

    let big = BTreeMap::from([("A".to_owned(), "x".repeat(1 << 20))]);
    assert_eq!(expander.process_word(&"$A".repeat(40), &big).unwrap_err().reason, ExpandReason::TooLarge);
    assert_eq!(expander.process_word("${A//x/$A}", &big).unwrap_err().reason, ExpandReason::TooLarge);
    assert_eq!(
        expander.process_word(&format!("${{A//{}y/}}", "x".repeat(1000)), &big).unwrap_err().reason,
        ExpandReason::TooCostly
    );
    // These are large but cheap.
    assert_eq!(expander.process_word("${A//*y/}", &big).unwrap().text.len(), 1 << 20);
    assert_eq!(expander.process_word("${A//*x/}", &big).unwrap().text, "");
    let many = "a\\ ".repeat(500_000);
    assert_eq!(expander.process_words(&many, &NoEnv).unwrap().words.len(), 1);
}
