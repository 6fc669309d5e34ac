//! A shell for images that have none: a static program of this machine's, mounted into the step.

use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use executor::{Mount, Process, Source};

/// Where it is in the step.
const PLACE: &str = "/.rbuild-shell";
/// Its file there, by whose name busybox knows that it is itself.
const FILE: &str = "busybox";
/// Largest program that is taken for a shell.
const LARGEST: u64 = 64 << 20;
/// Programs that one may find, the most able first.
const USUAL: [&str; 8] = [
    "/bin/busybox",
    "/usr/bin/busybox",
    "/sbin/busybox",
    "/usr/local/bin/busybox",
    "/usr/lib/initramfs-tools/bin/busybox",
    "/usr/lib/busybox/bin/busybox",
    "/bin/bash-static",
    "/bin/sash",
];

/// What to do where there is none.
pub(crate) const HINT: &str = "install busybox-static, name a static shell with --shell-binary FILE, or run one program of the \
                        image's: rbuild shell STEP -- PROGRAM";

/// There is no shell to be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NoShell {
    /// None was found.
    #[error("the image has no shell, and this machine no static one")]
    Nothing,
    /// The one that was named.
    #[error("{} cannot be used in the image: {why}", path.display())]
    Unfit {
        /// The file.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// The disk.
    #[error("cannot copy the shell")]
    Copy(#[from] io::Error),
}

/// A copy of a static shell, as long as this lives.
pub(crate) struct BroughtShell {
    directory: tempfile::TempDir,
    is_busybox: bool,
}

/// Finds a shell that runs without any file of the image's, and copies it: nothing in the step may reach the machine's own.
///
/// # Errors
/// There is none.
pub(crate) fn find(named: Option<&Path>, scratch: &Path) -> Result<BroughtShell, NoShell> {
    let path = match named {
        Some(path) => {
            let unfit = |why| NoShell::Unfit { path: path.to_owned(), why };
            fitness(path).map_err(unfit)?;
            path.to_owned()
        }
        None => USUAL.iter().map(PathBuf::from).find(|path| fitness(path).is_ok()).ok_or(NoShell::Nothing)?,
    };
    let directory = tempfile::Builder::new().prefix("shell-").tempdir_in(scratch)?;
    // Whoever the step's user is, links to its commands are made beside it.
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o1777))?;
    let copy = directory.path().join(FILE);
    fs::copy(&path, &copy)?;
    fs::set_permissions(&copy, fs::Permissions::from_mode(0o755))?;
    let is_busybox = fs::read(&copy)?.windows(9).any(|window| window == b"BusyBox v");
    Ok(BroughtShell { directory, is_busybox })
}

impl BroughtShell {
    /// Mounts it, and answers the command that starts it.
    pub(crate) fn mount(&self, process: &mut Process) -> Vec<String> {
        let path = self.directory.path().to_owned();
        process.mounts.push(Mount {
            destination: PLACE.to_owned(),
            source: Source::Bind { path, selector: String::new(), recursive: false },
            readonly: false,
        });
        let shell = format!("{PLACE}/{FILE}");
        if !self.is_busybox {
            return vec![shell];
        }
        // What the image has comes first.
        match process.env.iter_mut().rev().find(|variable| variable.starts_with("PATH=")) {
            Some(path) => path.push_str(&format!(":{PLACE}")),
            None => process.env.push(format!("{}:{PLACE}", executor::spec::DEFAULT_PATH)),
        }
        let script = format!("{shell} --install -s {PLACE}; exec {shell} sh");
        vec![shell, "sh".to_owned(), "-c".to_owned(), script]
    }
}

/// Why a file is no static program for this machine.
fn fitness(path: &Path) -> Result<(), String> {
    let metadata = fs::metadata(path).map_err(|error| error.to_string())?;
    if !metadata.is_file() || metadata.len() > LARGEST {
        return Err("it is no program".to_owned());
    }
    let mut bytes = Vec::new();
    fs::File::open(path).and_then(|mut file| file.read_to_end(&mut bytes)).map_err(|error| error.to_string())?;
    match interpreter(&bytes) {
        None => Err("it is no program for this machine".to_owned()),
        Some(true) => Err("it is not linked statically".to_owned()),
        Some(false) => Ok(()),
    }
}

/// Whether a program of this machine's needs an interpreter; `None` for what is no such program.
fn interpreter(bytes: &[u8]) -> Option<bool> {
    const PT_INTERP: u32 = 3;
    let machine: u16 = if cfg!(target_arch = "x86_64") { 62 } else { 183 };
    let short = |at: usize| Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?));
    let word = |at: usize| Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    // 64 bits, little-endian.
    if bytes.get(..6)? != b"\x7fELF\x02\x01" || short(18)? != machine {
        return None;
    }
    let table = usize::try_from(u64::from_le_bytes(bytes.get(32..40)?.try_into().ok()?)).ok()?;
    let (size, count) = (usize::from(short(54)?), usize::from(short(56)?));
    for number in 0..count {
        let at = table.checked_add(number.checked_mul(size)?)?;
        if word(at)? == PT_INTERP {
            return Some(true);
        }
    }
    Some(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_static_programs_fit() {
        let directory = tempfile::tempdir().expect("a directory");
        let script = directory.path().join("script");
        fs::write(&script, "#!/bin/sh\n").expect("write");
        assert!(fitness(&script).is_err_and(|why| why.contains("no program for this machine")));
        assert!(fitness(directory.path()).is_err());
        assert!(fitness(Path::new("/bin/sh")).is_err_and(|why| why.contains("statically")));
        assert_eq!(interpreter(b"\x7fELF\x02\x01"), None, "cut off");
    }
}
