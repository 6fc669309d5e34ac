//! Programs and rights that a test needs. What is missing makes the test fail with the package to install, because a test
//! that quietly passes proves nothing; only where installing is impossible (no root) may tests be left out, each by name.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::PathBuf;

/// Whether `program` can be started.
pub fn can(program: &str) -> bool {
    find(program).is_some()
}

/// Where `program` lies; the sbin folders are searched too, which an ordinary user's PATH lacks.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var("PATH").unwrap_or_default();
    path.split(':')
        .chain(["/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/bin", "/bin"])
        .map(|dir| PathBuf::from(dir).join(program))
        .find(|file| file.is_file())
}

/// `if !require(&["skopeo"]) { return; }`: false only where the person allowed tests to be left out.
pub fn require(programs: &[&str]) -> bool {
    let missing: Vec<_> =
        programs.iter().filter(|p| !can(p)).map(|p| format!("{p} (package {})", package(p))).collect();
    missing.is_empty() || leave_out(&format!("missing {}", missing.join(", ")))
}

/// As [`require`], for tests that need to be root on this machine.
pub fn require_root() -> bool {
    rustix::process::geteuid().is_root() || leave_out("needs root")
}

fn package(program: &str) -> &str {
    include_str!("peers.txt")
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split_once(char::is_whitespace))
        .find(|(name, _)| *name == program)
        .map_or(program, |(_, package)| package.trim())
}

fn leave_out(why: &str) -> bool {
    let test = std::thread::current().name().unwrap_or("?").to_owned();
    let line = format!("NOT RUN: {test}: {why}");
    assert!(
        std::env::var_os("RBUILD_TEST_ALLOW_MISSING").is_some_and(|v| v == "1"),
        "{line}\n`make test` installs what is missing; RBUILD_TEST_ALLOW_MISSING=1 leaves such tests out"
    );
    eprintln!("{line}");
    // The runner hides what a passing test prints; the test command shows this file at the end.
    let file = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("not-run.txt");
    let mut file = OpenOptions::new().create(true).append(true).open(file).expect("the target directory is writable");
    writeln!(file, "{line}").expect("the target directory is writable");
    false
}
