//! Finding and executing the program.

use std::ffi::{CStr, CString};

use rustix::fs::FileType;
use rustix::io::Errno;
use sys::process;

use crate::error::Error;
use crate::spec::{DEFAULT_PATH, Process};
use crate::user::Identity;

/// A program that is ready to be executed.
pub(crate) struct Program {
    name: String,
    candidates: Vec<CString>,
    searched: String,
    arguments: Vec<CString>,
    environment: Vec<CString>,
}

impl Program {
    pub(crate) fn new(process: &Process, identity: &Identity) -> Result<Self, Error> {
        let name = process.args.first().cloned().ok_or(Error::NoCommand)?;
        let environment = environment(process, identity);
        let (candidates, searched) = candidates(&name, &environment);
        Ok(Self {
            candidates: c_strings("the program's name", candidates)?,
            arguments: c_strings("the arguments", process.args.clone())?,
            environment: c_strings("the environment", environment)?,
            searched,
            name,
        })
    }

    /// Executes it; what comes back is why not.
    pub(crate) fn execute(&self) -> Error {
        let mut forbidden = None;
        for path in &self.candidates {
            let Err(error) = process::execute(path, &self.arguments, &self.environment);
            match error.errno() {
                Errno::NOENT | Errno::NOTDIR if !exists(path) => {}
                // The search goes on, as a shell's would, but if nothing else is found this is the reason.
                Errno::ACCESS => forbidden = forbidden.or(Some(path)),
                errno => return self.explain(path, errno),
            }
        }
        match forbidden {
            Some(path) => self.explain(path, Errno::ACCESS),
            None => Error::NotFound { program: self.name.clone(), reason: self.searched.clone() },
        }
    }

    fn explain(&self, path: &CStr, errno: Errno) -> Error {
        let program = self.name.clone();
        let answer = sys::error::describe(errno);
        let found = if path.to_bytes() == program.as_bytes() {
            String::new()
        } else {
            format!(" ({})", path.to_string_lossy())
        };
        match errno {
            Errno::NOENT | Errno::NOTDIR => {
                Error::NotFound { program, reason: format!("its interpreter is not in the image{found}") }
            }
            Errno::ACCESS if is_directory(path) => {
                Error::NotExecutable { program, reason: format!("is a directory{found}") }
            }
            Errno::NOEXEC => Error::NotExecutable { program, reason: format!("exec format error{found}") },
            Errno::TOOBIG => {
                Error::NotExecutable { program, reason: format!("arguments or environment are too long{found}") }
            }
            _ => Error::NotExecutable { program, reason: format!("{}{found}", answer.to_lowercase()) },
        }
    }
}

/// Where a program may be: one place if it has a slash, all of PATH otherwise.
fn candidates(name: &str, environment: &[String]) -> (Vec<String>, String) {
    if name.contains('/') {
        return (vec![name.to_owned()], "no such file or directory".to_owned());
    }
    if name.is_empty() {
        return (Vec::new(), "no such file or directory".to_owned());
    }
    let default = DEFAULT_PATH.trim_start_matches("PATH=");
    let path = environment.iter().find_map(|variable| variable.strip_prefix("PATH=")).unwrap_or(default);
    let places = path.split(':').map(|place| if place.is_empty() { "." } else { place });
    (
        places.map(|place| format!("{}/{name}", place.trim_end_matches('/'))).collect(),
        format!("not found in PATH ({path})"),
    )
}

/// The environment: of equal names the last, and HOME, which programs expect and images do not set.
fn environment(process: &Process, identity: &Identity) -> Vec<String> {
    let mut variables: Vec<String> = Vec::with_capacity(process.env.len() + 1);
    let name = |variable: &str| variable.split_once('=').map_or(variable.len(), |(name, _)| name.len() + 1);
    for variable in &process.env {
        let key = &variable[..name(variable)];
        match variables.iter_mut().find(|known| known.starts_with(key) && name(known) == key.len()) {
            Some(known) => known.clone_from(variable),
            None => variables.push(variable.clone()),
        }
    }
    if !variables.iter().any(|variable| variable.starts_with("HOME=") && variable.len() > 5) {
        variables.retain(|variable| !variable.starts_with("HOME="));
        let home = identity.home.as_deref().unwrap_or("/");
        variables.push(format!("HOME={home}"));
    }
    variables
}

fn c_strings(what: &str, strings: Vec<String>) -> Result<Vec<CString>, Error> {
    let null_byte = |_| Error::NullByte { what: what.to_owned() };
    strings.into_iter().map(|string| CString::new(string).map_err(null_byte)).collect()
}

fn exists(path: &CStr) -> bool {
    rustix::fs::lstat(path).is_ok()
}

fn is_directory(path: &CStr) -> bool {
    rustix::fs::stat(path).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::Root;

    #[test]
    fn a_program_is_searched_in_the_steps_own_path() {
        let environment = ["A=1".to_owned(), "PATH=/one::/two/".to_owned()];
        assert_eq!(candidates("sh", &environment).0, ["/one/sh", "./sh", "/two/sh"]);
        assert_eq!(candidates("./sh", &environment).0, ["./sh"]);
        assert_eq!(candidates("sh", &[]).0.len(), 6);
        assert!(candidates("", &environment).0.is_empty());
    }

    #[test]
    fn the_last_of_equal_variables_counts_and_home_is_added() {
        let mut process = Process::new(Root::Bind("/".into()), ["true"]);
        process.env = ["A=1", "B=2", "A=3", "AB=4", "HOME="].map(str::to_owned).to_vec();
        let identity = Identity { home: Some("/home/anna".to_owned()), ..Identity::default() };
        assert_eq!(environment(&process, &identity), ["A=3", "B=2", "AB=4", "HOME=/home/anna"]);
        process.env = vec!["HOME=/x".to_owned()];
        assert_eq!(environment(&process, &identity), ["HOME=/x"]);
        process.env = Vec::new();
        assert_eq!(environment(&process, &Identity::default()), ["HOME=/"]);
    }
}
