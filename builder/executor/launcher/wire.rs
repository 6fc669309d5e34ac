//! What rbuild, the launcher and a step's process say to each other. Each is one message of a local socket.

use std::path::PathBuf;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::emulation::Emulation;
use crate::error::{Error, SystemError};
use crate::network::Subnet;
use crate::running::ExitStatus;
use crate::spec::{Gateway, Overlay, Process, WindowSize};
use crate::stubs::Stub;

/// Room for any message; what could be larger travels in a memory file.
pub(crate) const MAX_MESSAGE: usize = 64 << 10;

/// rbuild to launcher, in a sealed memory file because secrets and environments have no small bound.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Request {
    pub(crate) process: Process,
    /// A terminal of this size is made for the step and its other side comes with [`Report::Prepared`].
    pub(crate) terminal: Option<WindowSize>,
}

/// rbuild to the process that is to become the launcher, once a step is wanted.
pub(crate) const BEGIN: &[u8] = b"begin";
/// rbuild to launcher: start the step that is described in the first descriptor.
pub(crate) const RUN: &[u8] = b"run";
/// rbuild to launcher: make private networks ready. The answer is a [`PrivateNetwork`].
pub(crate) const NETWORK: &[u8] = b"network";

/// rbuild to launcher: find out how to run programs of the kind that is described in the second descriptor, a
/// [`crate::Foreign`], and
/// answer on the first with an [`Emulated`].
pub(crate) const EMULATE: &[u8] = b"emulate";

/// rbuild to launcher: try the [`TryServed`] in the second descriptor, and answer on the first with a [`Served`].
pub(crate) const SERVE: &[u8] = b"serve";

/// Layers to be joined by a program, which will be changed.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct TryServed {
    pub(crate) overlay: Overlay,
    pub(crate) program: PathBuf,
}

/// Launcher to rbuild: whether a program joins layers.
pub(crate) type Served = Result<(), Error>;

/// Launcher to rbuild: how programs of another architecture are run.
pub(crate) type Emulated = Result<Emulation, Error>;

/// Launcher to rbuild: whether there are private networks, and of which addresses.
pub(crate) type PrivateNetwork = Result<Subnet, SystemError>;

/// Launcher to a gateway, which finds the socket at its standard input; with it comes the far side of the step's interface.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Serve {
    pub(crate) gateway: Gateway,
    pub(crate) subnet: Subnet,
}

/// rbuild to launcher, about one step.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Order {
    /// Send a signal to the step's first process.
    Signal(i32),
}

/// Launcher to rbuild, about one step; the last message.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Outcome {
    /// It was started and has ended.
    Ended(ExitStatus),
    /// There was no process.
    Failed(Error),
}

/// The step's process to rbuild, before it executes the program. The socket's end without a further message means that it did.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Report {
    /// The sandbox is complete; the program is executed next.
    Prepared {
        stubs: Vec<Stub>,
        /// The number of the step's pid namespace, by which its processes are found.
        pid_namespace: u64,
    },
    /// It is not, or the program cannot be executed.
    Failed(Error),
}

/// A message as bytes.
pub(crate) fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, Error> {
    postcard::to_allocvec(message).map_err(|error| Error::Protocol(error.to_string()))
}

/// Bytes as a message.
pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Error> {
    postcard::from_bytes(bytes).map_err(|error| Error::Protocol(error.to_string()))
}
