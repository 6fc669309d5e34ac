//! The first version of control groups: a hierarchy per controller.

use std::fs;
use std::path::{Path, PathBuf};

use super::{Counted, Home, discover::Hierarchy, keyed, make_group, number, write};
use crate::error::{Doing, Error};
use crate::spec::Limits;

/// The controllers that limits need, in either version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Memory,
    Cpu,
    Cpuset,
    Pids,
}

impl Kind {
    pub(crate) const ALL: [Self; 4] = [Self::Memory, Self::Cpu, Self::Cpuset, Self::Pids];

    /// Its name in both versions.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Cpu => "cpu",
            Self::Cpuset => "cpuset",
            Self::Pids => "pids",
        }
    }

    /// What it limits, for people.
    pub(crate) fn what(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Cpu => "processor time",
            Self::Cpuset => "the processors and memory nodes used",
            Self::Pids => "the number of processes",
        }
    }

    /// Those that the limits need.
    pub(crate) fn needed(limits: &Limits) -> impl Iterator<Item = Self> {
        let needed = |kind: &Self| match kind {
            Self::Memory => limits.memory.is_some() || limits.memory_swap.is_some(),
            Self::Cpu => limits.cpu_shares.is_some() || limits.cpu_quota.is_some() || limits.cpu_period.is_some(),
            Self::Cpuset => limits.cpuset_cpus.is_some() || limits.cpuset_mems.is_some(),
            Self::Pids => limits.pids.is_some(),
        };
        Self::ALL.into_iter().filter(needed).collect::<Vec<_>>().into_iter()
    }
}

/// One hierarchy, in which a directory of ours is made when a limit first needs it.
#[derive(Debug)]
pub(crate) struct Controller {
    kind: Kind,
    hierarchy: Hierarchy,
    home: Option<Home>,
}

impl Controller {
    pub(super) fn new(kind: Kind, hierarchy: Hierarchy) -> Self {
        Self { kind, hierarchy, home: None }
    }

    pub(super) fn kind(&self) -> Kind {
        self.kind
    }

    pub(super) fn home(&self) -> Option<&Home> {
        self.home.as_ref()
    }

    /// Makes a step's group.
    pub(super) fn create(&mut self, name: &str) -> Result<PathBuf, Error> {
        if self.home.is_none() {
            self.home = Home::make(&self.hierarchy);
        }
        let Some(home) = &self.home else {
            let why = format!("{:?} cannot be written", self.hierarchy.top);
            return Err(Error::Limit { what: self.kind.what().to_owned(), why });
        };
        if self.kind == Kind::Cpuset {
            inherit_cpuset(&self.hierarchy.top, home.path()).doing("prepare the cpuset control group")?;
        }
        let path = home.path().join(name);
        make_group(&path).doing("make a control group")?;
        if self.kind == Kind::Cpuset {
            inherit_cpuset(&self.hierarchy.top, &path).doing("prepare the cpuset control group")?;
        }
        Ok(path)
    }
}

/// A new cpuset is empty and takes no process: each level gets what its parent has.
fn inherit_cpuset(top: &Path, group: &Path) -> sys::Result<()> {
    let mut path = top.to_owned();
    for part in group.strip_prefix(top).unwrap_or(Path::new("")).components() {
        let parent = path.clone();
        path.push(part);
        for file in ["cpuset.cpus", "cpuset.mems"] {
            let is_empty = fs::read_to_string(path.join(file)).is_ok_and(|text| text.trim().is_empty());
            if is_empty && let Ok(text) = fs::read_to_string(parent.join(file)) {
                write(&path.join(file), text.trim())?;
            }
        }
    }
    Ok(())
}

/// Sets the limits that belong to one controller.
pub(super) fn limit(step: &Path, kind: Kind, limits: &Limits) -> Result<(), Error> {
    let set = |file: &str, text: String| {
        write(&step.join(file), &text)
            .map_err(|error| Error::Limit { what: kind.what().to_owned(), why: error.to_string() })
    };
    match kind {
        Kind::Memory => {
            let Some(memory) = limits.memory else { return Ok(()) };
            set("memory.limit_in_bytes", memory.to_string())?;
            match limits.memory_swap {
                Some(both) => set("memory.memsw.limit_in_bytes", both.to_string()),
                // As Docker: as much swap again as memory. A kernel that does not count swap has nothing to limit.
                None => {
                    set("memory.memsw.limit_in_bytes", memory.saturating_mul(2).to_string()).ok();
                    Ok(())
                }
            }
        }
        Kind::Cpu => {
            if let Some(shares) = limits.cpu_shares {
                set("cpu.shares", shares.to_string())?;
            }
            if let Some(period) = limits.cpu_period {
                set("cpu.cfs_period_us", period.to_string())?;
            }
            limits.cpu_quota.map_or(Ok(()), |quota| set("cpu.cfs_quota_us", quota.max(-1).to_string()))
        }
        Kind::Cpuset => {
            if let Some(cpus) = &limits.cpuset_cpus {
                set("cpuset.cpus", cpus.clone())?;
            }
            limits.cpuset_mems.as_ref().map_or(Ok(()), |mems| set("cpuset.mems", mems.clone()))
        }
        Kind::Pids => limits.pids.map_or(Ok(()), |pids| set("pids.max", pids.to_string())),
    }
}

/// Adds what one controller counted.
pub(super) fn usage(step: &Path, kind: Kind, counted: &mut Counted) {
    if kind == Kind::Memory {
        counted.peak_memory = number(&step.join("memory.max_usage_in_bytes")).or(counted.peak_memory);
        counted.oom_killed |= keyed(&step.join("memory.oom_control"), "oom_kill").is_some_and(|count| count > 0);
    }
}
