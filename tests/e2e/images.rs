//! The commands around images: enough to try what one has built without another engine.

use crate::support::{Layout, TestEnv, busybox_base};

#[test]
fn images_tag_rmi() {
    let env = TestEnv::busybox();
    env.build(&env.dockerfile("c", "FROM busybox\nENV A=1\n"), &["-t", "app:1"]).ok();
    env.rbuild(["images"]).ok().contains("app").contains("busybox");
    env.rbuild(["tag", "app:1", "app:2"]).ok();
    env.rbuild(["tag", "app:1", "registry.test:5000/team/app"]).ok();
    env.rbuild(["images"]).ok().contains("registry.test:5000/team/app").contains("latest");
    env.rbuild(["rmi", "app:1"]).ok();
    env.run("app:1", &["true"]).run().exits(125).contains("app:1");
    env.run("app:2", &["true"]).ok();
    env.rbuild(["rmi", "app:2", "registry.test:5000/team/app"]).ok();
    env.rbuild(["images"]).ok().lacks("app");
    env.rbuild(["rmi", "app:2"]).run().exits(1).contains("app:2");
    env.rbuild(["tag", "nothing", "x"]).run().exits(1).contains("nothing");
}

#[test]
fn inspect_and_history_tell_what_was_built() {
    let env = TestEnv::busybox();
    env.build(&env.dockerfile("c", "FROM busybox\nENV A=1\nRUN echo hi > /hi\nCMD [\"sh\"]\n"), &["-t", "app"]).ok();
    let inspect: serde_json::Value =
        serde_json::from_str(&env.rbuild(["inspect", "app"]).ok().stdout).expect("inspect prints JSON");
    assert!(inspect.to_string().contains("A=1"), "{inspect}");
    let history = env.rbuild(["history", "app"]).ok().stdout;
    for part in ["RUN", "echo hi > /hi", "ENV A=1", "CMD"] {
        assert!(history.contains(part), "{part:?} is not in\n{history}");
    }
    env.rbuild(["inspect", "nothing"]).run().exits(1);
}

#[test]
fn save_and_load_carry_images_between_stores() {
    let env = TestEnv::busybox();
    let id = env.build(&env.dockerfile("c", "FROM busybox\nRUN echo hi > /hi\n"), &["-q", "-t", "app:1"]).ok().stdout;
    let tar = env.path("app.tar");
    env.rbuild(["save", "-o"]).arg(&tar).arg("app:1").ok();
    let other = TestEnv::new();
    other.rbuild(["load", "-i"]).arg(&tar).ok().contains("app:1");
    assert_eq!(other.run("app:1", &["cat", "/hi"]).ok().line(), "hi");
    other.rbuild(["images"]).ok().contains(&id.trim()["sha256:".len()..][..12]);
    // Through a pipe, too.
    let bytes = env.rbuild(["save", "app:1"]).ok().stdout_bytes;
    let third = TestEnv::new();
    third.rbuild(["load"]).stdin(bytes).ok();
    assert_eq!(third.run("app:1", &["cat", "/hi"]).ok().line(), "hi");
}

#[test]
fn load_takes_an_oci_archive() {
    let env = TestEnv::busybox();
    let out = env.path("out.tar");
    env.build(
        &env.dockerfile("c", "FROM busybox\nRUN echo hi > /hi\n"),
        &["-t", "app:1", "-o", &format!("type=oci,dest={}", out.display())],
    )
    .ok();
    let other = TestEnv::new();
    other.rbuild(["load", "-i"]).arg(&out).ok();
    assert_eq!(other.run("app:1", &["cat", "/hi"]).ok().line(), "hi");
}

#[test]
fn import_makes_an_image_of_a_root_file_system() {
    let env = TestEnv::new();
    env.rbuild(["import"]).arg(&busybox_base().tar).arg("mine:7").ok();
    assert_eq!(env.run("mine:7", &["echo", "hi"]).ok().line(), "hi");
    let bytes = std::fs::read(busybox_base().tar).expect("ours");
    env.rbuild(["import", "-", "piped"]).stdin(bytes).ok();
    assert_eq!(env.run("piped", &["echo", "hi"]).ok().line(), "hi");
    // Where the file lies and what it is called is no part of the image.
    let elsewhere = env.path("elsewhere.tar");
    std::fs::copy(&busybox_base().tar, &elsewhere).expect("ours");
    let id = |file: &std::path::Path| env.rbuild(["import"]).arg(file).env("SOURCE_DATE_EPOCH", "1").ok().stdout;
    assert_eq!(id(&elsewhere), id(&busybox_base().tar));
    env.rbuild(["import", "/no/such.tar", "x"]).run().exits(1).contains("/no/such.tar");
    env.rbuild(["import", "-", "x"]).stdin("this is no tar").run().exits(1);
    env.rbuild(["images"]).ok().lacks("x ");
}

#[test]
fn run_honours_the_config_of_the_image() {
    let env = TestEnv::busybox();
    let text = "FROM busybox\nENV GREETING=hi\nWORKDIR /w\nUSER web\nENTRYPOINT [\"sh\", \"-c\"]\nCMD [\"echo $GREETING $(pwd) $(id -un)\"]\n";
    env.build(&env.dockerfile("c", text), &["-t", "app"]).ok();
    assert_eq!(env.rbuild(["run", "app"]).ok().line(), "hi /w web");
    assert_eq!(env.run("app", &["echo $0 $GREETING", "zero"]).ok().line(), "zero hi");
    assert_eq!(env.rbuild(["run", "-e", "GREETING=bye", "-e", "X=1", "app", "echo $GREETING$X"]).ok().line(), "bye1");
    assert_eq!(env.rbuild(["run", "--entrypoint", "id", "app", "-u"]).ok().line(), "1000");
    assert_eq!(env.rbuild(["run", "-u", "0", "-w", "/etc", "app", "id -u; pwd"]).ok().stdout, "0\n/etc\n");
}

#[test]
fn run_passes_the_exit_status_on() {
    let env = TestEnv::busybox();
    env.run("busybox", &["sh", "-c", "exit 42"]).run().exits(42);
    env.run("busybox", &["sh", "-c", "kill -9 $$; kill -15 1; sh -c 'kill -9 $$'; exit $?"]).run().exits(137);
    env.run("busybox", &["nosuchcommand"]).run().exits(127);
    env.run("busybox", &["/etc/passwd"]).run().exits(126);
    env.run("nosuchimage:1", &["true"]).timeout(60).run().exits(125);
}

#[test]
fn run_connects_the_standard_streams() {
    let env = TestEnv::busybox();
    let out = env.rbuild(["run", "-i", "busybox", "sh", "-c", "cat; echo err >&2"]).stdin("from outside\n").ok();
    assert_eq!((out.stdout.as_str(), out.stderr.as_str()), ("from outside\n", "err\n"));
    let bytes: Vec<u8> = (0..=255).cycle().take(100_000).collect();
    assert_eq!(env.rbuild(["run", "-i", "busybox", "cat"]).stdin(bytes.clone()).ok().stdout_bytes, bytes);
    // Without -i the caller's input stays the caller's.
    assert_eq!(env.rbuild(["run", "busybox", "cat"]).stdin("kept").ok().stdout, "");
}

#[test]
fn run_gives_a_terminal_where_one_is_asked_for() {
    let env = TestEnv::busybox();
    let line = format!(
        "{} run -it busybox sh -c 'test -t 0 && test -t 1 && echo a terminal; stty size'",
        env!("CARGO_BIN_EXE_rbuild")
    );
    let out = env.program("script").args(["-qec", &line, "/dev/null"]).run();
    assert!(out.stdout.contains("a terminal"), "{}", out.text());
    env.rbuild(["run", "-t", "busybox", "true"]).run();
}

#[test]
fn run_mounts_what_v_names() {
    let env = TestEnv::busybox();
    let data = env.context("data").file("f", "shared");
    let v = |suffix: &str| format!("{}:/mnt/deep{suffix}", data.dir().display());
    assert_eq!(
        env.rbuild(["run", "-v", &v(""), "busybox", "sh", "-c", "cat /mnt/deep/f; echo new > /mnt/deep/g"]).ok().line(),
        "shared"
    );
    assert_eq!(std::fs::read_to_string(data.path("g")).expect("written").trim(), "new");
    let out = env.rbuild(["run", "-v", &v(":ro"), "busybox", "sh", "-c", "touch /mnt/deep/h"]).run();
    assert_eq!(out.code, Some(1), "{}", out.text());
    assert!(!data.path("h").exists());
}

#[test]
fn run_changes_neither_the_image_nor_the_next_run() {
    let env = TestEnv::busybox();
    env.run("busybox", &["sh", "-c", "echo x > /x; rm -r /home"]).ok();
    env.run("busybox", &["sh", "-c", "test ! -e /x && test -d /home"]).ok();
    let before = env.program("du").arg("-s").arg(env.store()).ok().stdout;
    env.rbuild(["run", "--rm", "busybox", "dd", "if=/dev/zero", "of=/big", "bs=1M", "count=8"]).ok();
    let after = env.program("du").arg("-s").arg(env.store()).ok().stdout;
    let size = |s: &str| s.split('\t').next().and_then(|n| n.parse::<i64>().ok()).expect("a number");
    assert!(size(&after) - size(&before) < 4096, "the container's files are still there: {before} {after}");
}

#[test]
fn a_local_tag_is_preferred_and_bases_are_listed_only_on_request() {
    let env = TestEnv::busybox();
    env.build(&env.dockerfile("p", "FROM busybox\nRUN echo local > /which\n"), &["-t", "127.0.0.1:9/team/base:1"]).ok();
    env.build(&env.dockerfile("c", "FROM 127.0.0.1:9/team/base:1\nRUN cat /which > /got\n"), &["-t", "app"]).ok();
    assert_eq!(env.run("app", &["cat", "/got"]).ok().line(), "local");
    // --pull insists on the registry, which is not there.
    env.build(&env.dockerfile("c", "FROM 127.0.0.1:9/team/base:1\n"), &["--pull"]).timeout(60).run().exits(4);
}

#[test]
fn an_image_saved_is_a_layout_that_holds_together() {
    let env = TestEnv::busybox();
    env.build(&env.dockerfile("c", "FROM busybox\nRUN echo hi > /hi\nENV A=1\n"), &["-t", "app"]).ok();
    let out = env.path("out.tar");
    env.build(&env.context("c"), &["-o", &format!("type=oci,dest={}", out.display())]).ok();
    let image = Layout::from_archive(&out).image();
    assert_eq!(image.layers.len(), 2);
    assert_eq!(image.find("hi").map(|e| e.body.clone()), Some(b"hi\n".to_vec()));
}
