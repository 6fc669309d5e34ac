//! Exit, environment, user, working directory, program look-up.

use executor::{Error, Process, UserError};

use crate::lab::Lab;

pub(crate) fn exit_codes_and_signals_are_told(lab: &Lab) {
    for (script, code, signal, shell) in [
        ("exit 0", Some(0), None, 0),
        ("exit 7", Some(7), None, 7),
        ("sleep 60 & kill $!; wait $!; exit $?", Some(143), None, 143),
        // Process 1 of a namespace is safe from its own signals; one that ends by a signal was sent it from outside.
        ("kill -TERM 1; exit 3", Some(3), None, 3),
    ] {
        let status = lab.run(lab.script(script)).expect(script).status;
        assert_eq!((status.code, status.signal, status.shell_code()), (code, signal, shell), "{script}");
    }
}

pub(crate) fn a_step_is_killed_on_demand_and_by_letting_go(lab: &Lab) {
    lab.runtime.block_on(async {
        let io = executor::Stdio::null().expect("null");
        let mut running = lab.launcher.run(lab.process(["/bin/sleep", "600"]), io).await.expect("start");
        running.kill().expect("kill");
        let status = running.wait().await.expect("wait");
        assert_eq!((status.signal, status.shell_code()), (Some(9), 137));
        running.kill().expect("killing what is dead is no error");

        let marker = "86399";
        let io = executor::Stdio::null().expect("null");
        let running = lab.launcher.run(lab.process(["/bin/sleep", marker]), io).await.expect("start");
        assert!(crate::lab::host_process(marker));
        drop(running);
        for _ in 0..200 {
            if !crate::lab::host_process(marker) {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        panic!("the step outlived its handle");
    });
}

pub(crate) fn background_processes_die_with_the_step(lab: &Lab) {
    let marker = "86398";
    lab.output(lab.script(&format!("sleep {marker} & exec true")));
    assert!(!crate::lab::host_process(marker), "when the end is told, all are gone");
}

pub(crate) fn the_environment_is_the_steps_own(lab: &Lab) {
    let mut process = lab.process(["env"]);
    process.env = ["A=1", "PATH=/bin", "A=2"].map(str::to_owned).to_vec();
    assert_eq!(lab.output(process), "A=2\nPATH=/bin\nHOME=/root\n");
    let mut process = lab.process(["/bin/env"]);
    process.env = vec!["HOME=/elsewhere".to_owned()];
    assert_eq!(lab.output(process), "HOME=/elsewhere\n");
}

pub(crate) fn users_and_groups_are_those_of_the_image(lab: &Lab) {
    for (user, additional, want) in [
        ("", &[][..], "0 0 0 29"),
        ("root", &[], "0 0 0 29"),
        ("anna", &[], "1000 1001 1001 10 29"),
        ("1000", &[], "1000 1001 1001 10 29"),
        ("anna:wheel", &[], "1000 10 10"),
        ("4711", &[], "4711 0 0"),
        ("4711:4712", &[7, 4712], "4711 4712 4712 7"),
    ] {
        let mut process = lab.script("echo $(id -u) $(id -g) $(sed -n 's/^Groups:\\t//p' /proc/self/status)");
        process.user = user.to_owned();
        process.additional_gids = additional.to_vec();
        let sorted = |text: &str| {
            let mut words: Vec<&str> = text.split_whitespace().collect();
            words[2..].sort_unstable();
            words.join(" ")
        };
        assert_eq!(sorted(&lab.output(process)), sorted(want), "{user:?}");
    }
    let mut process = lab.process(["id"]);
    process.user = "berta".to_owned();
    assert_eq!(
        lab.run(process).expect_err("unknown"),
        Error::User(UserError::UnknownUser { name: "berta".to_owned() })
    );
}

pub(crate) fn the_working_directory_is_made_and_entered(lab: &Lab) {
    let mut process = lab.script("pwd; stat -c '%u:%g %a' . ..");
    process.cwd = "/srv/inner".to_owned();
    process.user = "anna".to_owned();
    assert_eq!(lab.output(process), "/srv/inner\n1000:1001 755\n1000:1001 755\n");

    // A user who may not search the way there is put there all the same.
    let mut process = lab.script("pwd");
    let upper = lab.changes(&process);
    std::fs::create_dir_all(upper.join("closed/inner")).expect("mkdir");
    std::os::unix::fs::chown(upper.join("closed/inner"), Some(1000), None).expect("chown");
    std::fs::set_permissions(upper.join("closed"), std::os::unix::fs::PermissionsExt::from_mode(0o700)).expect("chmod");
    process.cwd = "/closed/inner".to_owned();
    process.user = "anna".to_owned();
    assert!(lab.run(process).expect("start").status.success());

    let mut process = lab.script("pwd");
    process.cwd = "/etc/passwd".to_owned();
    assert!(matches!(lab.run(process), Err(Error::WorkingDirectory { .. })));
}

/// CVE-2024-21626: a descriptor of the runtime as working directory leads out of the root.
pub(crate) fn no_descriptor_serves_as_working_directory(lab: &Lab) {
    for number in 0..64 {
        for path in [
            format!("/proc/self/fd/{number}"),
            format!("/proc/self/fd/{number}/../../.."),
            format!("/proc/1/fd/{number}"),
        ] {
            let mut process = lab.script("pwd; ls /");
            process.cwd.clone_from(&path);
            match lab.run(process) {
                Err(Error::WorkingDirectory { .. }) => {}
                Ok(done) => panic!("{path}: {done:?}"),
                Err(error) => panic!("{path}: {error}"),
            }
        }
    }
    // Through a link of the image.
    for number in 3..16 {
        let mut process = lab.script("pwd");
        let upper = lab.changes(&process);
        std::os::unix::fs::symlink(format!("/proc/self/fd/{number}"), upper.join("way")).expect("symlink");
        process.cwd = "/way".to_owned();
        assert!(matches!(lab.run(process), Err(Error::WorkingDirectory { .. })), "{number}");
    }
}

pub(crate) fn a_program_that_cannot_be_executed_says_why(lab: &Lab) {
    let prepare = |name: &str, content: &str, mode: u32| -> Process {
        let process = lab.process([format!("/{name}").as_str()]);
        let path = lab.changes(&process).join(name);
        std::fs::write(&path, content).expect("write");
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(mode)).expect("chmod");
        process
    };
    for (process, code, text) in [
        (lab.process(["nonesuch"]), 127, "\"nonesuch\": not found in PATH"),
        (lab.process(["/nonesuch"]), 127, "\"/nonesuch\": no such file"),
        (lab.process(["/etc/passwd/x"]), 127, "no such file"),
        (lab.process(["/etc/passwd"]), 126, "permission denied"),
        (lab.process(["/etc"]), 126, "is a directory"),
        (prepare("plain", "echo no interpreter named\n", 0o755), 126, "exec format error"),
        (prepare("lost", "#!/no/such/interpreter\n", 0o755), 127, "interpreter"),
    ] {
        let name = process.args[0].clone();
        let error = lab.run(process).expect_err(&name);
        assert_eq!(error.exit_code(), Some(code), "{error}");
        assert!(error.to_string().contains(text), "{error}");
        assert!(error.hint().is_some(), "{error}");
    }
    assert_eq!(lab.run(lab.process([])).expect_err("nothing"), Error::NoCommand);
    assert!(matches!(lab.run(lab.process(["/bin/echo", "a\0b"])), Err(Error::NullByte { .. })));
}

pub(crate) fn fifty_steps_at_once(lab: &Lab) {
    lab.runtime.block_on(async {
        let mut steps = tokio::task::JoinSet::new();
        for number in 0..50 {
            let (launcher, process) = (lab.launcher.clone(), lab.script(&format!("sleep 0.1; exit {number}")));
            steps.spawn(async move {
                let mut running = launcher.run(process, executor::Stdio::null().expect("null")).await.expect("start");
                (number, running.wait().await.expect("wait").code)
            });
        }
        let mut ended = 0;
        while let Some(step) = steps.join_next().await {
            let (number, code) = step.expect("join");
            assert_eq!(code, Some(number));
            ended += 1;
        }
        assert_eq!(ended, 50);
    });
}

pub(crate) fn use_is_measured(lab: &Lab) {
    let status = lab
        .run(lab.script("dd if=/dev/zero of=/dev/null bs=1M count=2000 2>/dev/null; sleep 0.1"))
        .expect("run")
        .status;
    assert!(status.usage.wall.as_millis() >= 100, "{status:?}");
    assert!((status.usage.user + status.usage.system).as_micros() > 1000, "{status:?}");
    assert!(status.usage.peak_memory > 100 << 10, "{status:?}");
    assert!(!status.oom_killed);
}

pub(crate) fn a_user_can_open_the_outputs_again(lab: &Lab) {
    let mut process = lab.script("echo out >/dev/stdout; echo err >/dev/stderr");
    process.user = "anna".to_owned();
    let done = lab.run(process).expect("run");
    assert_eq!((done.stdout.as_str(), done.stderr.as_str()), ("out\n", "err\n"));
}
