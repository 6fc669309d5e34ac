//! The same sandbox as an ordinary user, who is root in a user namespace.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output};

use crate::lab::Lab;

/// Environment variable that makes this program enter a user namespace first and print the tier.
pub(crate) const ROOTLESS: &str = "RBUILD_TEST_ROOTLESS";

/// An id that no machine gives to anybody.
const UID: &str = "47110815";

/// What holds in every tier.
const COMMON: &[&str] = &[
    "exit_codes",
    "environment",
    "first_process",
    "hidden",
    "devices_are",
    "without_network",
    "names_and_limits",
    "dangerous_system_calls",
    "changes_go",
    "many_layers",
    "readonly_root",
    "files_of_etc",
    "binds_are",
    "links_lead",
    "no_descriptor_serves",
    "our_own_program",
    "views_of",
    "memory_file_system",
    "fifty_steps",
    "background_processes",
    "a_directory_serves_as_root",
    "killed_on_demand",
];

/// What needs more than one id.
const MANY_IDS: &[&str] =
    &["users_and_groups", "secrets_are", "working_directory_is", "capabilities_are", "a_terminal"];

/// Runs tests of this program as an ordinary user, after `prepare` in a mount namespace of their own.
fn run_as_user(lab: &Lab, prepare: &str, tests: &[&str]) -> Output {
    let program = lab.path("rootless-tests");
    fs::copy(std::env::current_exe().expect("own path"), &program).expect("copy");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("chmod");
    let script = format!("{prepare}\nexec setpriv --reuid {UID} --regid {UID} --clear-groups \"$@\"");
    Command::new("unshare")
        .args(["--mount", "--propagation", "private", "sh", "-ec", &script, "sh"])
        .arg(program)
        .args(tests)
        .env(ROOTLESS, "1")
        .current_dir("/")
        .output()
        .expect("start")
}

fn expect(output: &Output, tier: &str, tests: usize) {
    let (text, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(text.contains(tier), "{text}{errors}");
    assert!(output.status.success() && text.contains(&format!(" {tests} passed; 0 failed")), "{text}{errors}");
}

pub(crate) fn a_user_with_one_id_has_the_same_sandbox(lab: &Lab) {
    if skipped() {
        return;
    }
    expect(&run_as_user(lab, "", COMMON), "tier: SingleId", COMMON.len());
}

pub(crate) fn a_user_with_subordinate_ids_has_all_users_of_an_image(lab: &Lab) {
    if skipped() {
        return;
    }
    if Command::new("newuidmap").output().is_err() {
        eprintln!("SKIPPED: newuidmap is missing (Debian: uidmap)");
        return;
    }
    let file = lab.path("subordinate");
    fs::write(&file, format!("{UID}:500000:65536\n")).expect("write");
    let passwd = lab.path("passwd");
    let users = fs::read_to_string("/etc/passwd").expect("passwd");
    fs::write(&passwd, format!("{users}rbuild-test:x:{UID}:{UID}::/:/bin/sh\n")).expect("write");
    let prepare = format!(
        "mount --bind {0} /etc/subuid; mount --bind {0} /etc/subgid; mount --bind {1} /etc/passwd",
        file.display(),
        passwd.display()
    );
    let tests: Vec<&str> = COMMON.iter().chain(MANY_IDS).copied().collect();
    expect(&run_as_user(lab, &prepare, &tests), "tier: SubordinateIds { count: 65536 }", tests.len());
}

fn skipped() -> bool {
    if std::env::var_os(ROOTLESS).is_some() || !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: only root can become an ordinary user");
        return true;
    }
    false
}
