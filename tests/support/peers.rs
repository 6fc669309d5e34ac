//! Programs and rights that a test needs. What is missing makes the test fail with the package to install, because a test
//! that quietly passes proves nothing. Where installing is impossible (no root) the test command finds out which cannot run,
//! names them, and leaves them out, so that nobody counts them as passed.

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

/// `if !require(&["skopeo"]) { return; }`: a test that lacks something fails, and names the package.
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

/// Asked by the test command before the tests are run where nothing can be installed: which cannot run, without running any.
/// A test that needs nothing, or has all it needs, ends here.
const PROBE: &str = "RBUILD_TEST_PROBE";

/// For what a test begins with once it knows that it can run.
pub fn end_of_probe() {
    if std::env::var_os(PROBE).is_some() {
        std::process::exit(0);
    }
}

fn leave_out(why: &str) -> bool {
    let test = std::thread::current().name().unwrap_or("?").to_owned();
    let Some(list) = std::env::var_os(PROBE) else {
        panic!(
            "{test} cannot run: {why}\n`make test` installs what is missing; where it cannot, it leaves such tests out by name"
        );
    };
    let mut file = OpenOptions::new().create(true).append(true).open(list).expect("the list is writable");
    writeln!(file, "{test}\t{why}").expect("the list is writable");
    std::process::exit(0);
}
