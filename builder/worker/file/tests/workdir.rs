use graph::{FileAction, MkdirAction, MkfileAction};

use super::super::FileError;
use super::support::{chown, run, show, tree};

fn workdir(base: &str, path: &str, owner: Option<&str>) -> Result<String, FileError> {
    let action = MkdirAction { path: path.into(), mode: 0o755, make_parents: true, chown: owner.map(chown) };
    let (written, tar) = run(&tree(base, 3), &tree("", 5), vec![FileAction::Mkdir(action)])?;
    Ok(show(&written, &tar))
}

#[test]
fn working_directories() {
    for (base, path, owner, want) in [
        ("", "/a/b", None, "a/\na/b/\n"),
        ("", "/a/b", Some("3:4"), "a/ 3:4\na/b/ 3:4\n"),
        // What exists stays as it is, also behind a link.
        ("a/ 700 1:1", "/a", Some("3:4"), ""),
        ("a/ 700 1:1\nl -> a", "/l", None, ""),
        ("a/ 700 1:1\nl -> /a", "/l/b", None, "a/ 700 1:1\na/b/\n"),
        ("l -> /gone", "/l", None, "gone/\n"),
        ("", "/", None, ""),
        // A directory with setgid hands down its group, also below what was just made.
        ("a/ 2775 1:50", "/a/b/c", None, "a/ 2775 1:50\na/b/ 2755 0:50\na/b/c/ 2755 0:50\n"),
        ("a/ 2775 1:50", "/a/b", Some("3:4"), "a/ 2775 1:50\na/b/ 2755 3:4\n"),
    ] {
        assert_eq!(workdir(base, path, owner).expect(path), want, "{path} on {base}");
    }
    let error = workdir("f = 1", "/f/x", None).expect_err("a file is no parent");
    assert_eq!(error.to_string(), "cannot copy to non-directory: /f");
}

#[test]
fn a_parent_must_exist_where_it_is_not_to_be_made() {
    let action = MkdirAction { path: "/a/b".into(), mode: 0o700, make_parents: false, chown: None };
    let error = run(&tree("", 3), &tree("", 5), vec![FileAction::Mkdir(action)]).expect_err("no parent");
    assert_eq!(error.to_string(), "/a: not found");
}

#[test]
fn inline_files() {
    let file = |path: &str| MkfileAction {
        path: path.into(),
        data: b"text\n".to_vec(),
        mode: 0o644,
        chmod: None,
        chown: Some(chown("3:4")),
    };
    let (written, tar) = run(&tree("", 3), &tree("", 5), vec![FileAction::Mkfile(file("/d/f"))]).expect("layer");
    assert_eq!(show(&written, &tar), "d/ 3:4\nd/f 3:4 = text\n\n");
    let error = run(&tree("d/", 3), &tree("", 5), vec![FileAction::Mkfile(file("/d"))]).expect_err("a directory");
    assert_eq!(error.to_string(), "cannot replace directory /d with file");
}
