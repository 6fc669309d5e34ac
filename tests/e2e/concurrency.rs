//! Several processes on one store.

use crate::support::TestEnv;

#[test]
fn two_builds_at_once_do_the_same_step_once() {
    let env = TestEnv::busybox();
    let context = env.dockerfile("c", "FROM busybox\nRUN sleep 1; cat /proc/sys/kernel/random/uuid > /id\n");
    let one = env.build(&context, &["-t", "one"]).spawn();
    let two = env.build(&context, &["-t", "two"]).spawn();
    one.finish().success();
    two.finish().success();
    let id = |image: &str| env.run(image, &["cat", "/id"]).ok().stdout;
    assert_eq!(id("one"), id("two"));
}

#[test]
fn many_builds_at_once_neither_fail_nor_mix() {
    let env = TestEnv::busybox();
    let builds: Vec<_> = (0..12)
        .map(|n| {
            let context = env
                .dockerfile(
                    &format!("c{n}"),
                    "FROM busybox\nRUN cat /proc/sys/kernel/random/uuid > /shared\nCOPY own /own\nRUN cp /own /copy\n",
                )
                .file("own", format!("{n}"));
            env.build(&context, &["-t", &format!("many:{n}")]).timeout(120).spawn()
        })
        .collect();
    for build in builds {
        build.finish().success();
    }
    let read = |n: usize| env.run(&format!("many:{n}"), &["cat", "/shared", "/copy"]).ok().stdout;
    let first = read(0);
    let shared = first.lines().next().expect("a line");
    for n in 0..12 {
        assert_eq!(read(n), format!("{shared}\n{n}"));
    }
}

#[test]
fn a_build_goes_on_when_the_one_that_does_its_step_is_killed() {
    let env = TestEnv::busybox();
    let context =
        env.dockerfile("c", "FROM busybox\nRUN echo under way; sleep 2; cat /proc/sys/kernel/random/uuid > /id\n");
    let mut one = env.build(&context, &["-t", "one"]).spawn();
    one.wait_for("under way");
    let two = env.build(&context, &["-t", "two"]).spawn();
    std::thread::sleep(std::time::Duration::from_millis(300));
    one.signal(rustix::process::Signal::KILL);
    one.finish();
    two.finish().success();
    env.run("two", &["test", "-s", "/id"]).ok();
}

#[test]
fn removing_an_image_during_a_build_upon_it_does_no_harm() {
    let env = TestEnv::busybox();
    env.build(&env.dockerfile("p", "FROM busybox\nRUN echo parent > /p\n"), &["-t", "parent"]).ok();
    let mut build = env
        .build(&env.dockerfile("c", "FROM parent\nRUN echo under way; sleep 1; cat /p > /c\n"), &["-t", "child"])
        .spawn();
    build.wait_for("under way");
    env.rbuild(["rmi", "parent"]).ok();
    build.finish().success();
    assert_eq!(env.run("child", &["cat", "/c"]).ok().line(), "parent");
}
