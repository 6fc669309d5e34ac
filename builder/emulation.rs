//! Steps for other platforms: what runs their programs.

use std::path::{Path, PathBuf};

use executor::{Emulation, Error, Foreign, Launcher, Process, Source};
use graph::Platform;

/// Where distributions put interpreters, besides the directories of PATH.
const DIRECTORIES: &[&str] = &["/usr/bin", "/usr/local/bin", "/bin", "/usr/libexec/qemu-binfmt"];

/// Where the kernel tells what is registered for the whole machine.
const REGISTERED: &str = "/proc/sys/fs/binfmt_misc";

/// A program of the machine's by its name.
#[must_use]
pub fn find_program(name: &str) -> Option<PathBuf> {
    directories().into_iter().map(|directory| directory.join(name)).find(|path| path.is_file())
}

/// Where the machine's programs are.
fn directories() -> Vec<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut directories: Vec<PathBuf> = std::env::split_paths(&path).filter(|path| path.is_absolute()).collect();
    for usual in DIRECTORIES {
        if !directories.iter().any(|directory| directory == Path::new(usual)) {
            directories.push(PathBuf::from(usual));
        }
    }
    directories
}

/// An architecture with the interpreters that are installed for it. `None` if nothing is known of it.
#[must_use]
pub fn foreign(architecture: &str) -> Option<Foreign> {
    Foreign::find(architecture, &directories())
}

/// Has a process's programs run, if they are another platform's. What is answered is why they cannot be: the image may bring
/// an interpreter, or be for another platform than it says, so that this becomes an error only when a program does not start.
///
/// # Errors
/// The launcher's, and that a privileged process would have no privileges.
pub async fn prepare(launcher: &Launcher, platform: &Platform, process: &mut Process) -> Result<Option<Error>, Error> {
    let architecture = &platform.architecture;
    if architecture.is_empty() || *architecture == Platform::host().architecture {
        return Ok(None);
    }
    let Some(foreign) = foreign(architecture) else { return Ok(None) };
    match launcher.emulation(&foreign).await {
        Ok(Emulation::Kernel) => Ok(None),
        Ok(Emulation::Own { .. }) if process.capabilities == executor::spec::Capabilities::All => {
            let why = "an interpreter that is registered for steps alone gives no privileges to a privileged step; \
                       it has to be registered for the machine";
            Err(Error::Emulation { architecture: architecture.clone(), why: why.to_owned() })
        }
        Ok(Emulation::Own { .. }) => {
            process.emulated = Some(architecture.clone());
            Ok(None)
        }
        Err(why @ Error::Emulation { .. }) => {
            // Registered in the old way, by a path that has to lead to it where the program runs.
            let interpreter = named_interpreter(Path::new(REGISTERED), architecture);
            if let Some(path) = interpreter.filter(|_| !launcher.is_confined()) {
                let destination = path.display().to_string();
                let source = Source::Bind { path, selector: String::new(), recursive: false };
                process.mounts.push(executor::Mount { destination, source, readonly: true });
            }
            Ok(Some(why))
        }
        Err(error) => Err(error),
    }
}

/// What is said when a program did not start: that its kind cannot be run here, if that is so.
#[must_use]
pub fn explain(error: Error, unsupported: Option<Error>) -> Error {
    match (&error, unsupported) {
        (Error::NotExecutable { reason, .. }, Some(why)) if reason.contains("format") => why,
        (Error::NotFound { reason, .. }, Some(why)) if reason.contains("interpreter") => why,
        _ => error,
    }
}

/// The interpreter that is registered by name for an architecture, if it is there and switched on.
fn named_interpreter(directory: &Path, architecture: &str) -> Option<PathBuf> {
    let names = Foreign::find(architecture, &[])?.names();
    names.iter().find_map(|name| {
        let entry = std::fs::read_to_string(directory.join(name)).ok()?;
        let path = parse_entry(&entry)?;
        path.is_file().then_some(path)
    })
}

/// The interpreter of an entry that is switched on and was not opened when it was registered.
fn parse_entry(entry: &str) -> Option<PathBuf> {
    let mut lines = entry.lines();
    let value = |key: &str| entry.lines().find_map(|line| line.strip_prefix(key)).map(str::trim);
    if lines.next()? != "enabled" || value("flags:").unwrap_or_default().contains('F') {
        return None;
    }
    value("interpreter ").map(PathBuf::from).filter(|path| path.is_absolute())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_of_the_machine_are_understood() {
        let old = "enabled\ninterpreter /usr/bin/qemu-aarch64-static\nflags: OC\noffset 0\nmagic 7f45\nmask ffff\n";
        assert_eq!(parse_entry(old), Some("/usr/bin/qemu-aarch64-static".into()));
        assert_eq!(parse_entry(&old.replace("OC", "OCF")), None);
        assert_eq!(parse_entry(&old.replace("enabled", "disabled")), None);
        assert_eq!(parse_entry(""), None);
    }

    #[test]
    fn only_what_cannot_be_executed_is_the_interpreters_lack() {
        let why = || Some(Error::Emulation { architecture: "arm64".into(), why: "no".into() });
        let error = |reason: &str| Error::NotExecutable { program: "/p".into(), reason: reason.into() };
        assert_eq!(explain(error("exec format error"), why()), why().expect("it is one"));
        assert_eq!(explain(error("is a directory"), why()), error("is a directory"));
        assert_eq!(explain(error("exec format error"), None), error("exec format error"));
    }
}
