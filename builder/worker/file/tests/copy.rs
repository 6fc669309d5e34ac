use super::support::{NOW, actions, check, run, tree};
use graph::FileAction;

#[test]
fn destinations() {
    check(&[
        // A destination behind a link goes where the link leads, and parents come as the base has them.
        (
            "usr/ 711\nusr/bin/ 750 1:2\nbin -> usr/bin",
            "x = 1",
            "COPY x /bin/x",
            "usr/ 711\nusr/bin/ 750 1:2\nusr/bin/x = 1",
        ),
        ("usr/\nusr/bin/\nbin -> /usr/bin", "x = 1", "COPY x /bin/", "usr/\nusr/bin/\nusr/bin/x = 1"),
        ("usr/\nusr/bin/\nbin -> usr/bin", "x = 1", "COPY x /bin", "usr/\nusr/bin/\nusr/bin/x = 1"),
        // A link as destination stays; what it leads to is replaced or made.
        ("real = old\nlink -> real", "x = 1", "COPY x /link", "real = 1"),
        ("link -> /opt/new", "x = 1", "COPY x /link", "opt/\nopt/new = 1"),
        ("link -> gone", "d/\nd/x = 1", "COPY d /link/", "gone/\ngone/x = 1"),
        ("a -> b\nb -> a", "x = 1", "COPY x /a", "error: /a: too many levels of symbolic links"),
        // Links lead no further than the root.
        ("up -> ../../..\netc/", "x = 1", "COPY x /up/etc/", "etc/\netc/x = 1"),
        // A slash at the end says directory; without it a file that is not there gets that name.
        ("", "x = 1", "COPY x /new", "new = 1"),
        ("", "x = 1", "COPY x /new/", "new/\nnew/x = 1"),
        ("d/ 700", "x = 1", "COPY x /d", "d/ 700\nd/x = 1"),
        ("", "x = 1\ny = 2", "COPY x y /d/", "d/\nd/x = 1\nd/y = 2"),
        ("", "x = 1", "COPY x /", "x = 1"),
        ("", "x = 1", "COPY x /a/b/c", "a/\na/b/\na/b/c = 1"),
        // Files, directories and links over one another.
        ("x = old", "x = 1", "COPY x /x", "x = 1"),
        ("d/\nd/x/", "s/\ns/x = 1", "COPY s /d", "error: cannot replace directory /d/x with file"),
        ("f = 1", "s/\ns/x = 1", "COPY s /f", "error: cannot copy to non-directory: /f"),
        ("f = 1", "x = 1", "COPY x /f/", "error: cannot copy to non-directory: /f"),
        ("f = 1", "x = 1", "COPY x /f/y", "error: cannot copy to non-directory: /f"),
        (
            "bin -> usr/bin\nusr/\nusr/bin/",
            "s/\ns/bin/\ns/bin/x = 1",
            "COPY s /",
            "error: cannot copy to non-directory: /bin",
        ),
        ("link -> real\nreal = 1", "s/\ns/link = new", "COPY s /", "link = new"),
        ("f = 1", "s/\ns/f -> x", "COPY s /", "f -> x"),
        // --link and merges replace.
        ("d/\nd/x/\nd/x/y = 1", "s/\ns/x = 1", "COPY --replace s /d", "d/\nd/x = 1"),
        ("f = 1", "s/\ns/f/\ns/f/x = 1", "COPY --replace s /", "f/\nf/x = 1"),
    ]);
}

#[test]
fn directories() {
    check(&[
        // The content of a directory is copied; a destination made for it is root's and 755.
        ("", "d/ 700 7:8\nd/x 600 7:8 = 1", "COPY d /new", "new/\nnew/x 600 7:8 = 1"),
        // What is there keeps its owner and mode, but not so the directories in it.
        ("to/ 711 1:2\nto/sub/ 700 1:2", "d/ 700 7:8\nd/sub/ 750 9:9", "COPY d /to", "to/ 711 1:2\nto/sub/ 750 9:9"),
        (
            "to/ user.a=1\nto/sub/ user.a=1 user.b=1",
            "d/\nd/sub/ user.b=2",
            "COPY d /to",
            "to/ user.a=1\nto/sub/ user.a=1 user.b=2",
        ),
        // A directory of its own name, where not the content alone is asked for.
        ("to/", "d/ 700\nd/x = 1", "COPY --whole d /to", "to/\nto/d/ 700\nto/d/x = 1"),
        ("", "d/ 700\nd/x = 1", "COPY --whole d /to", "to/ 700\nto/x = 1"),
        ("", "a/\na/b/\na/b/x = 1\ny = 2", "COPY . .", "a/\na/b/\na/b/x = 1\ny = 2"),
        ("", "", "COPY . /app", "app/"),
        // In the order of a tar whatever the order of the sources.
        ("", "b = 1\na.b = 2\na/\na/z = 3", "COPY b a.b . /", "a/\na/z = 3\na.b = 2\nb = 1"),
        ("", "p |", "COPY . /", "p |"),
        // A source of several layers is seen as one.
        ("", "d/\nd/x = 1\nd/y = 1\n---\n!d/x\nd/z = 3", "COPY d /", "y = 1\nz = 3"),
        ("", "d/\nd/x = 1\n---\nd/ opaque\nd/z = 3", "COPY / /", "d/\nd/z = 3"),
    ]);
}

#[test]
fn a_directory_in_place_of_a_removed_one_is_opaque() {
    let base = tree("d/\nd/old = 1", 3);
    let source = tree("s/\ns/d = 1\nt/\nt/d/\nt/d/new = 2", 5);
    let run_all = |instructions: &[&str]| {
        let all = instructions.iter().flat_map(|text| actions(text));
        run(&base, &source, all.map(|action| FileAction::Copy(Box::new(action))).collect())
    };
    let (written, tar) = run_all(&["COPY --replace s /", "COPY --replace t /"]).expect("layer");
    assert_eq!(super::support::show(&written, &tar), "d/ opaque\nd/new = 2\n");
    // What the base has there is out of sight for what comes after.
    let (written, tar) = run_all(&["COPY --replace s /", "COPY --replace t /", "COPY s/d /d/old"]).expect("layer");
    assert_eq!(super::support::show(&written, &tar), "d/ opaque\nd/new = 2\nd/old = 1\n");
}

#[test]
fn sources() {
    let source = "a.go = 1\nb.go = 2\nc.txt = 3\nsub/\nsub/d1/\nsub/d1/f = 4\nsub/d2/\nsub/d2/f = 5\n[x] = 6\nst*r = 7\nlink -> c.txt\ndlink -> sub/d1\ngone -> nowhere\nout -> ../../c.txt\nin/\nin/l -> ../c.txt";
    let of = |instruction: &'static str, want: &'static str| ("", source, instruction, want);
    check(&[
        of("COPY *.go /d/", "d/\nd/a.go = 1\nd/b.go = 2"),
        of("COPY ?.go /d/", "d/\nd/a.go = 1\nd/b.go = 2"),
        of("COPY [^a].go /d/", "d/\nd/b.go = 2"),
        // Several files and no directory: the last one stays.
        of("COPY *.go /one", "one = 2"),
        of("COPY sub/* /d/", "d/\nd/f = 5"),
        of("COPY sub/*/f /d/f", "d/\nd/f = 5"),
        of("COPY s*b/d1/f /", "f = 4"),
        // Escapes, both ways to write them.
        of("COPY [[]x] /", "[x] = 6"),
        of("COPY \\[x] /", "[x] = 6"),
        of("COPY st\\*r /", "st*r = 7"),
        of("COPY [ /", "error: invalid pattern: \"/[\" is malformed"),
        // Nothing found: an error for a name, none for a pattern.
        of("COPY none /", "error: /none: not found"),
        of("COPY c.txt/x /", "error: /c.txt/x: not found"),
        of("COPY none* /d/", ""),
        of("COPY a.go none* /", "a.go = 1"),
        // A link that is named is followed, a link inside is copied.
        of("COPY link /", "link = 3"),
        of("COPY lin* /", "link = 3"),
        of("COPY dlink /d/", "d/\nd/f = 4"),
        of("COPY dlink/f /", "f = 4"),
        of("COPY out /", "out = 3"),
        of("COPY in /", "l -> ../c.txt"),
        of("COPY gone /", "error: /gone: not found"),
        of("COPY gon* /", "error: /gone: not found"),
        of("COPY ../../c.txt /", "c.txt = 3"),
    ]);
}

#[test]
fn hard_links() {
    let source = "d/\nd/a 600 = 1\nd/b 600 == d/a\nd/c = 1\ne/\ne/x 600 == d/a";
    check(&[
        ("", source, "COPY d /", "a 600 = 1\nb == a\nc = 1"),
        ("", source, "COPY . /", "d/\nd/a 600 = 1\nd/b == d/a\nd/c = 1\ne/\ne/x == d/a"),
        // Paths that are named apart are copied apart.
        ("", source, "COPY d/[ab] /", "a 600 = 1\nb 600 = 1"),
        // The first name is left out: the data come with the next.
        ("", source, "COPY --exclude=a d /", "b 600 = 1\nc = 1"),
        ("", source, "COPY e/x /", "x 600 = 1"),
        ("a = old", source, "COPY --chown=5:6 d /", "a 600 5:6 = 1\nb == a\nc 5:6 = 1"),
    ]);
}

#[test]
fn owners_and_modes() {
    let base = "etc/\netc/passwd = root:x:0:0::/:\netc/group = root:x:0:\ndir/ 700 1:1\n---\netc/\netc/passwd = @passwd\netc/group = wheel:x:10:";
    let passwd = std::collections::HashMap::from([("passwd", b"root:x:0:0::/:\nann:x:7:8::/:\n bob:x:9:x\n".to_vec())]);
    let source = "f 640 = 1\nd/ 750\nd/x 4755 = 2\nd/l -> x";
    for (instruction, want) in [
        ("COPY --chown=ann f /new/f", "new/ 7:8\nnew/f 640 7:8 = 1"),
        ("COPY --chown=ann:wheel f /", "f 640 7:10 = 1"),
        ("COPY --chown=3:wheel f /", "f 640 3:10 = 1"),
        ("COPY --chown=ann:3 f /", "f 640 7:3 = 1"),
        // A number alone is both; a name that nobody has is root.
        ("COPY --chown=3 f /", "f 640 3:3 = 1"),
        ("COPY --chown=nobody f /", "f 640 = 1"),
        ("COPY --chown=ann:nobody f /", "f 640 7:8 = 1"),
        ("COPY --chown=bob f /", "f 640 9:0 = 1"),
        // Parents are made for the owner; what exists is not given away.
        ("COPY --chown=1:2 d /dir/new", "dir/ 700 1:1\ndir/new/ 1:2\ndir/new/l 1:2 -> x\ndir/new/x 4755 1:2 = 2"),
        // Octal modes also concern the parents; symbolic ones do not.
        ("COPY --chmod=777 f /p/q/f", "p/ 777\np/q/ 777\np/q/f 777 = 1"),
        ("COPY --chmod=0 f /", "f 0 = 1"),
        ("COPY --chmod=4711 f /p/", "p/ 711\np/f 4711 = 1"),
        ("COPY --chmod=700 d /new", "new/ 700\nnew/l -> x\nnew/x 700 = 2"),
        ("COPY --chmod=u=rwX,go=rX . /p/", "p/\np/d/\np/d/l -> x\np/d/x 755 = 2\np/f = 1"),
        ("COPY --chmod=go-w,a+X f /p/", "p/\np/f 640 = 1"),
    ] {
        let got = super::support::outcome(&super::support::tree_with(base, 3, &passwd), &tree(source, 5), instruction);
        assert_eq!(got, super::support::normal(want), "{instruction}");
    }
    check(&[
        (
            "etc/\netc/passwd/",
            "f = 1",
            "COPY --chown=x f /",
            "error: cannot look up \"x\" in /etc/passwd: it is no regular file",
        ),
        ("etc/\netc/passwd -> /conf/pw\nconf/\nconf/pw = x:x:4:5", "f = 1", "COPY --chown=x f /", "f 4:5 = 1"),
        ("", "f = 1", "COPY --chown=x:y f /", "f = 1"),
    ]);
}

#[test]
fn excluded() {
    let source =
        "d/\nd/a.txt = 1\nd/b.go = 2\nd/sub/ 700 4:4\nd/sub/c.txt = 3\nd/sub/d.go = 4\nd/sub/e/\nd/sub/e/f.txt = 5";
    let of = |instruction: &'static str, want: &'static str| ("", source, instruction, want);
    check(&[
        of("COPY --exclude=*.txt d /", "b.go = 2\nsub/ 700 4:4\nsub/c.txt = 3\nsub/d.go = 4\nsub/e/\nsub/e/f.txt = 5"),
        of("COPY --exclude=**/*.txt d /", "b.go = 2\nsub/ 700 4:4\nsub/d.go = 4\nsub/e/"),
        of("COPY --exclude=sub d /", "a.txt = 1\nb.go = 2"),
        of("COPY --exclude=* d /to", "to/"),
        // An exception inside: the directories on the way come with it, as they are.
        of("COPY --exclude=sub --exclude=!sub/e d /", "a.txt = 1\nb.go = 2\nsub/ 700 4:4\nsub/e/\nsub/e/f.txt = 5"),
        of("COPY --exclude=* --exclude=!**/*.go d /", "b.go = 2\nsub/ 700 4:4\nsub/d.go = 4"),
        // The named path itself is never left out.
        of("COPY --exclude=*.txt d/a.txt /", "a.txt = 1"),
        of("COPY --exclude=*.txt d/*.txt /x/", "x/\nx/a.txt = 1"),
        (
            "sub/ 711 1:1",
            source,
            "COPY --exclude=sub --exclude=!sub/e d /",
            "a.txt = 1\nb.go = 2\nsub/ 700 1:1\nsub/e/\nsub/e/f.txt = 5",
        ),
    ]);
}

#[test]
fn with_parents() {
    let source = "t/\nt/a/ 700 7:7\nt/a/b/ 750\nt/a/b/c/\nt/a/b/c/d/\nt/a/b/c/d/foo = 1\nt/a/b/c/d/e/\nt/a/b/c/d/e/bay = 2\nt/a/b/c2/\nt/a/b/c2/d/\nt/a/b/c2/d/e/\nt/a/b/c2/d/e/baz = 3\nt/a/b2/\nt/a/b2/c/\nt/a/b2/c/d/\nt/a/b2/c/d/e/\nt/a/b2/c/d/e/bar = 4\nt/file = 5";
    let of = |instruction: &'static str, want: &'static str| ("", source, instruction, want);
    check(&[
        of("COPY --parents t/a/b/c/d/foo /", "t/\nt/a/ 700 7:7\nt/a/b/ 750\nt/a/b/c/\nt/a/b/c/d/\nt/a/b/c/d/foo = 1"),
        of(
            "COPY --parents ./t/a/b/c/d/. /out/",
            "out/\nout/t/\nout/t/a/ 700 7:7\nout/t/a/b/ 750\nout/t/a/b/c/\nout/t/a/b/c/d/\nout/t/a/b/c/d/e/\nout/t/a/b/c/d/e/bay = 2\nout/t/a/b/c/d/foo = 1",
        ),
        // Nothing before the pivot is repeated.
        of("COPY --parents /t/a/b/./c/d/e /out/", "out/\nout/c/\nout/c/d/\nout/c/d/e/\nout/c/d/e/bay = 2"),
        of(
            "COPY --parents /t/a/./b/./c/d/e /out/",
            "out/\nout/b/ 750\nout/b/c/\nout/b/c/d/\nout/b/c/d/e/\nout/b/c/d/e/bay = 2",
        ),
        of(
            "COPY --parents /t/a/./*/c/d/e /out/",
            "out/\nout/b/ 750\nout/b/c/\nout/b/c/d/\nout/b/c/d/e/\nout/b/c/d/e/bay = 2\nout/b2/\nout/b2/c/\nout/b2/c/d/\nout/b2/c/d/e/\nout/b2/c/d/e/bar = 4",
        ),
        // Wildcards before the pivot, and any depth behind it.
        of(
            "COPY --parents /t/a/b*/./c/**/e /out/",
            "out/\nout/c/\nout/c/d/\nout/c/d/e/\nout/c/d/e/bar = 4\nout/c/d/e/bay = 2",
        ),
        of(
            "COPY --parents **/ba[rz] /out/",
            "out/\nout/t/\nout/t/a/ 700 7:7\nout/t/a/b/ 750\nout/t/a/b/c2/\nout/t/a/b/c2/d/\nout/t/a/b/c2/d/e/\nout/t/a/b/c2/d/e/baz = 3\nout/t/a/b2/\nout/t/a/b2/c/\nout/t/a/b2/c/d/\nout/t/a/b2/c/d/e/\nout/t/a/b2/c/d/e/bar = 4",
        ),
        of(
            "COPY --parents --chmod=755 --chown=1:2 t/a/b/c/d/foo /out/",
            "out/ 1:2\nout/t/ 1:2\nout/t/a/ 1:2\nout/t/a/b/ 1:2\nout/t/a/b/c/ 1:2\nout/t/a/b/c/d/ 1:2\nout/t/a/b/c/d/foo 755 1:2 = 1",
        ),
        // What is left out needs no parents.
        of("COPY --parents --exclude=**/foo t/a/b/c/d/foo /out/", "out/"),
        of("COPY --parents --exclude=t/a/b t/a/b/c/d/foo t/file /out/", "out/\nout/t/\nout/t/file = 5"),
        of("COPY --parents t/none /out/", "error: /t/none: not found"),
        of("COPY --parents t/a/./none /out/", "error: /t/a/none: not found"),
        of("COPY --parents t/none* /out/", "out/"),
        of(
            "COPY --parents t/a/./. /out/",
            "out/\nout/b/ 750\nout/b/c/\nout/b/c/d/\nout/b/c/d/e/\nout/b/c/d/e/bay = 2\nout/b/c/d/foo = 1\nout/b/c2/\nout/b/c2/d/\nout/b/c2/d/e/\nout/b/c2/d/e/baz = 3\nout/b2/\nout/b2/c/\nout/b2/c/d/\nout/b2/c/d/e/\nout/b2/c/d/e/bar = 4",
        ),
        // Parents that exist keep their owner; links in their place are not replaced.
        (
            "t/ 711 1:1\nt/a/ 711 1:1",
            source,
            "COPY --parents t/a/b/c/d/foo /",
            "t/ 1:1\nt/a/ 700 1:1\nt/a/b/ 750\nt/a/b/c/\nt/a/b/c/d/\nt/a/b/c/d/foo = 1",
        ),
        ("t -> u\nu/", source, "COPY --parents t/file /", "error: cannot copy to non-directory: /t"),
    ]);
}

#[test]
fn times() {
    let (base, source) = (tree("there/\nother/", 3), tree("d/\nd/sub/\nd/sub/x = 1\nx = 1", 5));
    let times = |instruction: &str| {
        let all = actions(instruction).into_iter().map(|action| FileAction::Copy(Box::new(action)));
        let (written, _) = run(&base, &source, all.collect()).expect("layer");
        let of = |entry: &snapshotter::layer::Entry| (String::from_utf8_lossy(&entry.path).into_owned(), entry.mtime.0);
        written.index.entries().iter().skip(1).map(of).collect::<Vec<_>>()
    };
    let pairs =
        |pairs: &[(&str, i64)]| pairs.iter().map(|(path, time)| ((*path).to_owned(), *time)).collect::<Vec<_>>();
    // A destination takes the time of the directory copied there; parents made on the way are of now.
    assert_eq!(times("COPY d /a/b"), pairs(&[("a", NOW), ("a/b", 5), ("a/b/sub", 5), ("a/b/sub/x", 5)]));
    assert_eq!(times("COPY d /there"), pairs(&[("there", 5), ("there/sub", 5), ("there/sub/x", 5)]));
    assert_eq!(times("COPY --exclude=** . /there/"), pairs(&[("there", NOW)]));
    assert_eq!(times("COPY x /other/"), pairs(&[("other", 3), ("other/x", 5)]));
}

#[test]
fn a_file_that_changed_is_noticed() {
    let source = tree("small = 1\nother = 2", 5);
    let changed =
        super::super::ReadableTree { tree: source.tree.clone(), bytes: tree("small = 3\nother = 3", 5).bytes };
    let got = super::support::outcome(&tree("", 3), &changed, "COPY . /to/");
    assert_eq!(got, "error: /to/other changed during the build\n");
}

#[test]
fn many_files_come_in_order() {
    let text: String = (0..1000).map(|number| format!("d/{number:04} = {number}\n")).collect();
    let got = super::support::outcome(&tree("", 3), &tree(&text, 5), "COPY d /");
    assert_eq!(got, text.replace("d/", ""));
}
