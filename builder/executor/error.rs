//! Why a step could not be started, exact enough for the binary to choose words and exit code.

use serde::{Deserialize, Serialize};

/// A failure before or instead of the step's own program. It crosses from the step's process to rbuild as data.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum Error {
    /// The launcher could not be started.
    #[error("cannot start the step launcher: {0}")]
    Launcher(SystemError),
    /// There is no launcher, since nothing it could do is permitted.
    #[error("no step can be started here: {why}")]
    NoSteps {
        /// What was refused, and what can be done about it where that is known.
        why: String,
    },
    /// The launcher is gone, and all steps with it.
    #[error("the step launcher ended unexpectedly, and with it all running steps")]
    LauncherGone,
    /// The launcher was asked something it does not understand.
    #[error("the step launcher does not understand a request: {0}")]
    Protocol(String),
    /// The step's process was killed while it was being set up.
    #[error("the step was killed before its program started")]
    Killed,
    /// A part of the sandbox could not be made.
    #[error("cannot {action}: {cause}")]
    Sandbox {
        /// What was being done, as "mount the root file system".
        action: String,
        /// What the system answered.
        cause: SystemError,
    },
    /// A mount's source or destination is unusable.
    #[error("cannot mount on {destination:?}: {cause}")]
    Mount {
        /// The destination as it was asked for.
        destination: String,
        /// What the system answered.
        cause: SystemError,
    },
    /// The working directory is unusable.
    #[error("cannot use {path:?} as working directory: {cause}")]
    WorkingDirectory {
        /// The directory as it was asked for.
        path: String,
        /// What the system answered.
        cause: SystemError,
    },
    /// The user is unknown inside the root, or its files are unusable.
    #[error("{0}")]
    User(#[from] UserError),
    /// A step's private network cannot be made, or cannot pass packets.
    #[error("there is no private network to be had here: {0}")]
    Network(SystemError),
    /// A limit was asked for that this machine cannot give.
    #[error("cannot limit {what}: {why}")]
    Limit {
        /// The limit.
        what: String,
        /// Why it cannot be had.
        why: String,
    },
    /// A profile of system calls cannot be used.
    #[error("the seccomp profile cannot be used: {why}")]
    Filter {
        /// Why.
        why: String,
    },
    /// This machine gives a step no more than another root directory.
    #[error("{what} cannot be had here: this machine permits neither mounts nor namespaces")]
    Confined {
        /// What would need them.
        what: String,
    },
    /// Programs of another architecture cannot be run here.
    #[error("programs for {architecture} cannot be run here: {why}")]
    Emulation {
        /// As platforms have it.
        architecture: String,
        /// What was tried.
        why: String,
    },
    /// There is nothing to execute.
    #[error("no command given")]
    NoCommand,
    /// The program is not there.
    #[error("{program:?}: {reason}")]
    NotFound {
        /// The program as it was asked for.
        program: String,
        /// Where it was looked for.
        reason: String,
    },
    /// The program is there and cannot be executed.
    #[error("{program:?}: {reason}")]
    NotExecutable {
        /// The program as it was asked for.
        program: String,
        /// Why not.
        reason: String,
    },
    /// A string that goes to the kernel holds a null byte.
    #[error("{what} contains a null byte")]
    NullByte {
        /// Which.
        what: String,
    },
}

impl Error {
    /// The exit code that a shell would give: 127 for a program that is missing, 126 for one that cannot be executed.
    pub fn exit_code(&self) -> Option<i32> {
        match self {
            Self::NotFound { .. } => Some(127),
            Self::NotExecutable { .. } | Self::Emulation { .. } => Some(126),
            _ => None,
        }
    }

    /// What the reader can do about it, where that is known.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::NotFound { program, .. } if program == "/bin/sh" => {
                Some("the image has no shell; use the exec form, RUN [\"program\", \"argument\"]")
            }
            Self::NotFound { reason, .. } if reason.contains("interpreter") => Some(
                "its interpreter or dynamic loader is not in the image: copy a static program, or the libraries too",
            ),
            Self::NotFound { .. } => Some("is it installed in this image, and its directory in PATH?"),
            Self::Emulation { why, .. } if why.contains("installed") => Some(
                "install QEMU for programs of other machines (Debian, Ubuntu: apt-get install qemu-user-static; Fedora: \
                 dnf install qemu-user-static), or copy into the image what a stage FROM --platform=$BUILDPLATFORM \
                 cross-compiles",
            ),
            Self::Emulation { .. } => Some(
                "have an administrator register QEMU for the whole machine (Debian, Ubuntu: apt-get install \
                 qemu-user-static binfmt-support), or copy into the image what a stage FROM --platform=$BUILDPLATFORM \
                 cross-compiles",
            ),
            Self::NotExecutable { reason, .. } if reason.contains("format") => Some(
                "a script needs a first line like #!/bin/sh, and a program must be built for the platform of the image",
            ),
            Self::NotExecutable { .. } => Some("its mode must allow execution: COPY --chmod=755, or RUN chmod +x"),
            Self::User(UserError::UnknownUser { .. } | UserError::UnknownGroup { .. }) => {
                Some("create it in an earlier step, or use a numeric id")
            }
            _ => None,
        }
    }
}

/// A user or group that does not resolve.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum UserError {
    /// No such name in the root's /etc/passwd.
    #[error("unable to find user {name}: no matching entry in the image's /etc/passwd")]
    UnknownUser {
        /// The name.
        name: String,
    },
    /// No such name in the root's /etc/group.
    #[error("unable to find group {name}: no matching entry in the image's /etc/group")]
    UnknownGroup {
        /// The name.
        name: String,
    },
    /// A number that is no id.
    #[error("{text:?} is not a valid user or group id")]
    BadId {
        /// The text.
        text: String,
    },
    /// The file cannot be trusted with being read.
    #[error("the image's {file} is not a regular file of at most 10 MiB")]
    BadFile {
        /// The path in the image.
        file: String,
    },
    /// The file could not be read.
    #[error("cannot read the image's {file}: {cause}")]
    Unreadable {
        /// The path in the image.
        file: String,
        /// What the system answered.
        cause: SystemError,
    },
}

/// A failed system call as data: what was called with which arguments, and what the kernel answered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[error("{call}: {answer}")]
pub struct SystemError {
    /// The call as one would write it.
    pub call: String,
    /// The kernel's answer in words.
    pub answer: String,
    /// The kernel's answer as a number.
    pub errno: i32,
}

impl SystemError {
    /// True when the answer was this error number.
    pub fn is(&self, errno: rustix::io::Errno) -> bool {
        self.errno == errno.raw_os_error()
    }
}

impl From<sys::Error> for SystemError {
    fn from(error: sys::Error) -> Self {
        Self {
            call: error.call().to_owned(),
            answer: sys::error::describe(error.errno()),
            errno: error.errno().raw_os_error(),
        }
    }
}

/// Says what a failed call was for.
pub(crate) trait Doing<T> {
    /// "cannot {action}: ..."
    fn doing(self, action: &str) -> Result<T, Error>;
}

impl<T> Doing<T> for sys::Result<T> {
    fn doing(self, action: &str) -> Result<T, Error> {
        self.map_err(|cause| Error::Sandbox { action: action.to_owned(), cause: cause.into() })
    }
}
