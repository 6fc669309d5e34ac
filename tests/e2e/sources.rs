//! ADD of URLs and repositories, and contexts that are no directory.

use std::fs;

use crate::support::{Entry, FileServer, GitServer, Image, Layout, Served, TestEnv, require};

fn exported(env: &TestEnv, context: &str, args: &[&str]) -> Image {
    let archive = env.path("image.tar");
    let run = env.rbuild(["build", "--progress", "plain"]).args(args);
    run.arg("-o").arg(format!("type=oci,dest={}", archive.display())).arg(context).ok();
    Layout::from_archive(&archive).image()
}

fn dir(env: &TestEnv, name: &str, text: &str) -> String {
    env.dockerfile(name, text).dir().to_str().expect("UTF-8").to_owned()
}

fn entry<'a>(image: &'a Image, path: &str) -> &'a Entry {
    image.find(path).unwrap_or_else(|| panic!("{path} is not in the image"))
}

#[test]
fn a_url_is_asked_for_again_only_as_far_as_its_server_says() {
    let env = TestEnv::new();
    let server = FileServer::start();
    let file = |body: &str, tag: &str| {
        let modified = "Tue, 15 Nov 1994 12:45:26 GMT";
        Served::ok(body).header("ETag", tag).header("Last-Modified", modified)
    };
    server.serve("/data/file.txt?x=/y", file("one", "\"1\""));
    let url = server.url("/data/file.txt?x=/y");
    let text = format!("FROM scratch\nADD {url} /into/\nADD --chmod=751 --chown=3:4 {url} /as\n");
    let context = dir(&env, "c", &text);
    let image = exported(&env, &context, &[]);
    let plain = entry(&image, "into/file.txt");
    assert_eq!((plain.body.as_slice(), plain.mode, plain.uid, plain.mtime), (&b"one"[..], 0o600, 0, 784_903_526));
    let changed = entry(&image, "as");
    assert_eq!((changed.mode, changed.uid, changed.gid), (0o751, 3, 4));
    server.requests();

    let again = env.rbuild(["build", "--progress", "plain", &context]).ok();
    assert_eq!(again.cached(), 2, "{}", again.stderr);
    let asked = server.requests();
    assert!(asked.iter().all(|head| head.to_lowercase().contains("if-none-match: \"1\"")), "{asked:?}");

    server.serve("/data/file.txt?x=/y", file("two", "\"2\""));
    assert_eq!(entry(&exported(&env, &context, &[]), "into/file.txt").body, b"two");
}

#[test]
fn a_file_that_is_asked_for_by_its_digest_and_is_here_is_not_asked_for() {
    let env = TestEnv::new();
    let server = FileServer::start();
    server.serve("/file", Served::ok("one"));
    let (url, digest) = (server.url("/file"), graph::Digest::of(b"one"));
    let context = dir(&env, "c", &format!("FROM scratch\nADD --checksum={digest} {url} /file\n"));
    exported(&env, &context, &[]);
    server.requests();
    // The server has something else by now, which concerns those only who have not the file.
    server.serve("/file", Served::ok("two"));
    assert_eq!(env.rbuild(["build", "--progress", "plain", &context]).ok().cached(), 1);
    let chmod = dir(&env, "d", &format!("FROM scratch\nADD --checksum={digest} --chmod=600 {url} /other\n"));
    assert_eq!(entry(&exported(&env, &chmod, &[]), "other").body, b"one");
    assert_eq!(server.requests(), [""; 0]);
    let other = TestEnv::new();
    other.rbuild(["build", &context]).run().exits(1).contains("--checksum");
}

#[test]
fn a_server_cannot_choose_where_its_file_goes_or_what_it_is() {
    let env = TestEnv::new();
    let server = FileServer::start();
    let evil =
        |name: &str| Served::ok("evil").header("Content-Disposition", &format!("attachment; filename=\"{name}\""));
    server.serve("/download", evil("../../../../canary"));
    server.serve("/other", evil("/etc/canary"));
    let (one, two) = (server.url("/download"), server.url("/other"));
    let context = dir(&env, "c", &format!("FROM scratch\nADD {one} {two} /into/\n"));
    let image = exported(&env, &context, &[]);
    let paths: Vec<&str> = image.layers.iter().flatten().map(|entry| entry.path.trim_end_matches('/')).collect();
    assert!(paths.iter().all(|path| matches!(*path, "" | "." | "into") || path.starts_with("into/")), "{paths:?}");
    assert!(!paths.iter().any(|path| path.contains("..")), "{paths:?}");
    // Without a time of its own it is as old as files can be, so that the layer is the same tomorrow.
    assert_eq!(entry(&image, "into/download").mtime, 0);

    let digest = "sha256:4a2d1da6e34d2a0f4d8ba8d5c1bd1ec20fcb1a0ac4a1a3b8d1ae9c8f35b7dd21";
    let context = dir(&env, "d", &format!("FROM scratch\nADD --checksum={digest} {one} /x\n"));
    env.rbuild(["build", &context]).run().exits(1).contains("Dockerfile:2").contains("--checksum");
    let context = dir(&env, "e", &format!("FROM scratch\nADD {} /x\n", server.url("/none")));
    env.rbuild(["build", &context]).run().exits(1).contains("404").contains("Dockerfile:2");
}

fn with_repository() -> (TestEnv, GitServer) {
    let env = TestEnv::new();
    let server = GitServer::start(&env.path("git"));
    repository(&server);
    (env, server)
}

/// A repository with a tag, a branch, a link and a submodule.
fn repository(server: &GitServer) {
    let git = |args: &[&str]| server.git("lib", args);
    git(&["init", "-q", "-b", "main"]);
    fs::write(server.path("lib/lib.txt"), "lib").expect("ours");
    git(&["add", "-A"]);
    git(&["commit", "-q", "-m", "lib"]);
    let git = |args: &[&str]| server.git("app", args);
    git(&["init", "-q", "-b", "main"]);
    fs::create_dir_all(server.path("app/sub/deep")).expect("ours");
    for (name, content) in [
        ("one", "1"),
        ("sub/two", "2"),
        ("sub/deep/x.sh", "#!/bin/sh"),
        ("sub/Dockerfile", "FROM scratch\nCOPY two /in-sub\n"),
    ] {
        fs::write(server.path(&format!("app/{name}")), content).expect("ours");
    }
    let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(server.path("app/sub/deep/x.sh"), executable).expect("ours");
    std::os::unix::fs::symlink("/etc", server.path("app/out")).expect("ours");
    fs::write(server.path("app/Dockerfile"), "FROM scratch\nCOPY . /all/\n").expect("ours");
    git(&["submodule", "--quiet", "add", &server.url("lib"), "vendor"]);
    git(&["add", "-A"]);
    git(&["commit", "-q", "-m", "first"]);
    git(&["tag", "-a", "-m", "annotated", "v1"]);
    fs::write(server.path("app/one"), "later").expect("ours");
    git(&["commit", "-q", "-a", "-m", "second"]);
}

#[test]
fn repositories_are_added_by_reference_and_directory() {
    if !require(&["git"]) {
        return;
    }
    let (env, server) = with_repository();
    let url = server.url("app");
    let text = format!(
        "FROM scratch\nADD {url} /head\nADD {url}#v1 /tag/\nADD {url}#main:sub /sub\nADD {url}#v1:sub/deep /deep\n"
    );
    let image = exported(&env, &dir(&env, "c", &text), &[]);
    let body = |path: &str| String::from_utf8_lossy(&entry(&image, path).body).into_owned();
    assert_eq!((body("head/one"), body("tag/one"), body("sub/two")), ("later".into(), "1".into(), "2".into()));
    assert_eq!(entry(&image, "deep/x.sh").mode & 0o777, 0o755);
    assert_eq!(entry(&image, "head/out").link.as_deref(), Some("/etc"), "links are kept, not followed");
    assert_eq!(body("head/vendor/lib.txt"), "lib", "submodules come along");
    assert!(image.find("head/.git").is_none());

    for (reference, why) in
        [("#nope", "nope"), ("#main:nope", "nope"), ("#main:out", "out"), ("#--upload-pack=x", "cannot begin with")]
    {
        let context = dir(&env, "bad", &format!("FROM scratch\nADD {url}{reference} /x\n"));
        env.rbuild(["build", &context]).run().exits(1).contains("Dockerfile:2").contains(why);
    }
}

#[test]
fn a_kept_git_directory_tells_nothing_of_this_machine() {
    if !require(&["git"]) {
        return;
    }
    let (env, server) = with_repository();
    let context = dir(&env, "c", &format!("FROM scratch\nADD --keep-git-dir=true {}#v1 /r\n", server.url("app")));
    // Another store, another moment and another identity.
    let build = |store: &str, name: &str| {
        let archive = env.path("image.tar");
        let run = env.rbuild(["build", "--root"]).arg(env.path(store));
        let run = run.env("GIT_COMMITTER_NAME", name).env("GIT_COMMITTER_EMAIL", "who@example.com");
        run.arg("-o").arg(format!("type=oci,dest={}", archive.display())).arg(&context).ok();
        Layout::from_archive(&archive).image()
    };
    let one = build("one", "canary-one");
    std::thread::sleep(std::time::Duration::from_millis(1100));
    let two = build("two", "canary-two");
    let contents = |image: &Image| -> Vec<(String, Vec<u8>)> {
        image.layers.iter().flatten().map(|entry| (entry.path.clone(), entry.body.clone())).collect()
    };
    let (first, second) = (contents(&one), contents(&two));
    let different: Vec<_> = first.iter().filter(|entry| !second.contains(entry)).map(|(path, _)| path).collect();
    assert!(first == second, "these differ: {different:?}");
    let canary = |(_, body): &(String, Vec<u8>)| body.windows(6).any(|window| window == b"canary");
    assert!(!first.iter().any(canary));

    // And git can use it.
    let root = env.path("root");
    for entry in one.layers.iter().flatten().filter(|entry| entry.kind == tar::EntryType::Directory) {
        fs::create_dir_all(root.join(&entry.path)).expect("ours");
    }
    for entry in one.layers.iter().flatten() {
        let path = root.join(&entry.path);
        match entry.kind {
            tar::EntryType::Regular => fs::write(path, &entry.body).expect("ours"),
            tar::EntryType::Symlink => {
                std::os::unix::fs::symlink(entry.link.as_deref().expect("a link has a target"), path).expect("ours");
            }
            _ => {}
        }
    }
    let repository = root.join("r");
    let git = |args: &[&str]| {
        let run = crate::support::Run::new("git").env("HOME", env.dir()).cwd(&repository);
        run.args(["-c", "safe.directory=*", "-c", "core.fileMode=false"]).args(args).ok().line().to_owned()
    };
    assert_eq!(git(&["describe"]), "v1");
    assert_eq!(git(&["status", "--porcelain", "--ignore-submodules"]), "");
}

#[test]
fn contexts_come_from_repositories_archives_and_urls() {
    if !require(&["git"]) {
        return;
    }
    let (env, server) = with_repository();
    let image = exported(&env, &server.url("app#v1"), &[]);
    assert_eq!(entry(&image, "all/one").body, b"1");
    let image = exported(&env, &server.url("app#main:sub"), &[]);
    assert_eq!(entry(&image, "in-sub").body, b"2");

    let mut archive = tar::Builder::new(Vec::new());
    for (name, content) in [("Dockerfile", "FROM scratch\nCOPY f /g\n"), ("f", "from the archive")] {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        archive.append_data(&mut header, name, content.as_bytes()).expect("into memory");
    }
    let archive = archive.into_inner().expect("into memory");
    let files = FileServer::start();
    files.serve("/context.tar", Served::ok(archive.clone()));
    files.serve("/Dockerfile", Served::ok("FROM scratch\nLABEL from=url\n"));
    let image = exported(&env, &files.url("/context.tar"), &[]);
    assert_eq!(entry(&image, "g").body, b"from the archive");
    let image = exported(&env, &files.url("/Dockerfile"), &[]);
    assert_eq!(image.config["config"]["Labels"]["from"], "url");
    env.rbuild(["build", "-t", "piped", "-"]).stdin(archive).ok();
    env.rbuild(["inspect", "piped"]).ok();
}
