//! The system call filter of a step: Docker's default profile, compiled for this machine's architecture and the 32-bit one
//! that it also executes.

mod compile;
mod file;
mod profile;

use std::collections::HashMap;
use std::rc::Rc;

use rustix::thread::CapabilitySet;
use sys::seccomp::Instruction;

pub use file::SeccompProfile;

use crate::error::Error;

const EPERM: u16 = 1;
const ENOSYS: u16 = 38;
/// Instructions that the kernel takes.
const MOST_INSTRUCTIONS: usize = 4096;

/// A filter, ready to be installed.
pub(crate) type Filter = Rc<[Instruction]>;

/// Compiled filters. Steps differ in their capabilities at most, so there is one, rarely two.
#[derive(Debug, Default)]
pub(crate) struct Cache {
    filters: HashMap<u64, Filter>,
    /// That of a file, which all steps of a build have.
    latest: Option<(SeccompProfile, u64, Filter)>,
}

impl Cache {
    /// Docker's default profile for a step with these capabilities.
    pub(crate) fn default_profile(&mut self, capabilities: CapabilitySet) -> Filter {
        let compiled = self.filters.entry(capabilities.bits()).or_insert_with(|| {
            compile::filter(Machine::OWN, &profile::default_profile(Machine::OWN, capabilities)).into()
        });
        Rc::clone(compiled)
    }

    /// A profile of a file for a step with these capabilities.
    pub(crate) fn of_file(&mut self, file: &SeccompProfile, capabilities: CapabilitySet) -> Result<Filter, Error> {
        if let Some((profile, bits, filter)) = &self.latest
            && (profile, *bits) == (file, capabilities.bits())
        {
            return Ok(Rc::clone(filter));
        }
        let kernel = file::release(&rustix::system::uname().release().to_string_lossy());
        let profile = file.compile(Machine::OWN, capabilities, kernel).map_err(|why| Error::Filter { why })?;
        let program = compile::filter(Machine::OWN, &profile);
        if program.len() > MOST_INSTRUCTIONS {
            let why = format!("it takes {} instructions, and the kernel takes {MOST_INSTRUCTIONS}", program.len());
            return Err(Error::Filter { why });
        }
        let filter: Filter = program.into();
        self.latest = Some((file.clone(), capabilities.bits(), Rc::clone(&filter)));
        Ok(filter)
    }
}

/// An instruction set whose numbers for system calls we know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(not(test), expect(dead_code, reason = "a build knows only its own; the tests compile for all"))]
pub(crate) enum Machine {
    X86_64,
    Aarch64,
}

/// How a program enters the kernel: each has its own numbers.
#[derive(Debug, Clone, Copy)]
struct Abi {
    /// The kernel's AUDIT_ARCH constant.
    audit: u32,
    /// From here on numbers belong to another ABI that shares the constant.
    ceiling: Option<u32>,
    /// `number name` lines.
    calls: &'static str,
}

impl Machine {
    #[cfg(target_arch = "x86_64")]
    const OWN: Self = Self::X86_64;
    #[cfg(target_arch = "aarch64")]
    const OWN: Self = Self::Aarch64;
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    compile_error!("no system call numbers are known for this architecture");

    fn name(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64",
            Self::Aarch64 => "aarch64",
        }
    }

    /// What Go calls the programs that it runs, by whose names Docker's profiles know them.
    fn go_names(self) -> &'static [&'static str] {
        match self {
            Self::X86_64 => &["amd64"],
            Self::Aarch64 => &["arm64"],
        }
    }

    /// Its own ABI and that of 32-bit programs.
    fn abis(self) -> [Abi; 2] {
        match self {
            // x32 uses the constant of x86_64 with bit 30 set. Distributions switch it off; its calls are answered as there.
            Self::X86_64 => [
                Abi { audit: 0xc000_003e, ceiling: Some(0x4000_0000), calls: include_str!("x86_64.calls") },
                Abi { audit: 0x4000_0003, ceiling: None, calls: include_str!("i386.calls") },
            ],
            Self::Aarch64 => [
                Abi { audit: 0xc000_00b7, ceiling: None, calls: include_str!("aarch64.calls") },
                Abi { audit: 0x4000_0028, ceiling: None, calls: include_str!("arm.calls") },
            ],
        }
    }
}

impl Abi {
    /// Name and number of every call.
    fn calls(self) -> impl Iterator<Item = (&'static str, u32)> {
        self.calls.lines().filter_map(|line| {
            let (number, name) = line.split_once(' ')?;
            Some((name, number.parse().ok()?))
        })
    }
}
