use super::support::key;

const SOURCE: &str =
    "d/\nd/a.txt = 1\nd/b.go 755 = 2\nd/sub/ 700\nd/sub/c user.x=1 = 3\nd/sub/l -> c\nother = 9\nother2 == other";

/// `SOURCE` with one line for another.
fn with(old: &str, new: &str) -> String {
    assert!(SOURCE.contains(old), "{old}");
    SOURCE.replacen(old, new, 1)
}

#[test]
fn a_key_changes_with_what_is_taken_and_with_nothing_else() {
    let changes = [
        ("name", "d/a.txt = 1", "d/z.txt = 1"),
        ("content", "d/a.txt = 1", "d/a.txt = 2"),
        ("mode", "d/a.txt = 1", "d/a.txt 600 = 1"),
        ("owner", "d/a.txt = 1", "d/a.txt 5:0 = 1"),
        ("attribute", "d/a.txt = 1", "d/a.txt user.x=1 = 1"),
        ("gone", "d/a.txt = 1\n", ""),
        ("go", "d/b.go 755 = 2", "d/b.go = 2"),
        ("deep", "c user.x=1 = 3", "c user.x=2 = 3"),
        ("link", "l -> c", "l -> d"),
        ("dirmode", "sub/ 700", "sub/ 755"),
        ("root", "d/\n", "d/ 700\n"),
        ("other", "other = 9", "other = 8"),
    ];
    for (instruction, changing) in [
        ("COPY . /", "name content mode owner attribute gone go deep link dirmode root other"),
        ("COPY d /", "name content mode owner attribute gone go deep link dirmode"),
        ("COPY --whole d /", "name content mode owner attribute gone go deep link dirmode root"),
        ("COPY d/sub /", "deep link"),
        ("COPY d/*.txt /", "name content mode owner attribute gone"),
        ("COPY d/b.* /", "go"),
        ("COPY --exclude=*.txt d /", "go deep link dirmode"),
        ("COPY --exclude=* --exclude=!sub/c d /", "deep dirmode"),
        ("COPY --exclude=**/*.txt . /", "go deep link dirmode root other"),
        ("COPY --parents d/./*.txt /", "name content mode owner attribute gone"),
        ("COPY --parents d/**/c /", "deep dirmode root"),
        ("COPY --parents d/b.go /", "go root"),
        ("COPY other /", "other"),
    ] {
        let before = key(SOURCE, 5, instruction).expect(instruction);
        assert_eq!(key(SOURCE, 6, instruction).expect("key"), before, "{instruction}: times do not count");
        for (what, old, new) in changes {
            let changed = key(&with(old, new), 5, instruction).ok().as_ref() != Some(&before);
            assert_eq!(changed, changing.split(' ').any(|name| name == what), "{instruction}: {what}");
        }
    }
}

#[test]
fn names_of_one_file_are_another_thing_than_equal_files() {
    let (linked, equal) = ("a = 1\nb == a", "a = 1\nb = 1");
    assert_ne!(key(linked, 5, "COPY . /"), key(equal, 5, "COPY . /"));
    assert_eq!(key(linked, 5, "COPY [ab] /d/"), key(equal, 5, "COPY [ab] /d/"));
}

#[test]
fn what_a_link_leads_to_counts() {
    let (one, other) = ("real = 1\nlink -> real", "real = 2\nlink -> real");
    assert_ne!(key(one, 5, "COPY link /"), key(other, 5, "COPY link /"));
    let (one, other) = ("d/\nd/x = 1\nl -> d", "d/\nd/x = 2\nl -> d");
    assert_ne!(key(one, 5, "COPY l/x /"), key(other, 5, "COPY l/x /"));
    assert_ne!(key(one, 5, "COPY l /"), key(other, 5, "COPY l /"));
}

#[test]
fn missing_sources_are_errors_and_empty_patterns_are_not() {
    assert_eq!(key(SOURCE, 5, "COPY none /"), Err("/none: not found".into()));
    assert_eq!(key(SOURCE, 5, "COPY --parents d/none /"), Err("/d/none: not found".into()));
    assert!(key(SOURCE, 5, "COPY none* /").is_ok());
    // The directory that a pattern begins with is spelled out, and must be there.
    assert!(key(SOURCE, 5, "COPY d/none* /").is_ok());
    assert_eq!(key(SOURCE, 5, "COPY none/*.jar /"), Err("/none/*.jar: not found".into()));
    // A file that a pattern did not match before.
    assert_ne!(key(SOURCE, 5, "COPY new* /"), key(&format!("{SOURCE}\nnew = 1"), 5, "COPY new* /"));
}

#[test]
fn layers_do_not_show_in_keys() {
    let flat = "d/\nd/x = 1\nd/y = 2";
    let stacked = "d/\nd/x = 0\nd/z = 1\n---\nd/\nd/x = 1\n!d/z\n---\nd/\nd/y = 2";
    let opaque = "d/\nd/old = 1\n---\nd/ opaque\nd/x = 1\nd/y = 2";
    for instruction in ["COPY . /", "COPY d /", "COPY d/* /", "COPY --exclude=none d /"] {
        assert_eq!(key(flat, 5, instruction), key(stacked, 5, instruction), "{instruction}");
        assert_eq!(key(flat, 5, instruction), key(opaque, 5, instruction), "{instruction}");
    }
}
