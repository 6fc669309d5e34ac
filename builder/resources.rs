//! Limits for RUN steps as the command line has them, in docker's words.

use std::io::Read;
use std::path::PathBuf;
use std::time::Duration;

use executor::Process;
use executor::spec::{Limits, Resource, Rlimit, Seccomp, SeccompProfile};
use serde::{Deserialize, Serialize};

/// Options of `rbuild build` and `rbuild run` about what a step may use.
#[derive(clap::Args, Debug, Clone, Default)]
#[command(next_help_heading = "Limits")]
pub struct ResourceArgs {
    /// Most memory of a step, as `512m` or `2g`
    #[arg(short, long, value_name = "BYTES")]
    pub memory: Option<String>,
    /// Most memory and swap together; -1 for unlimited swap
    #[arg(long, value_name = "BYTES", allow_hyphen_values = true)]
    pub memory_swap: Option<String>,
    /// Relative weight of processor time, 1024 being the usual one
    #[arg(short, long, value_name = "N")]
    pub cpu_shares: Option<u64>,
    /// Length of a scheduling period in microseconds
    #[arg(long, value_name = "MICROSECONDS")]
    pub cpu_period: Option<u64>,
    /// Processor time in each period, in microseconds
    #[arg(long, value_name = "MICROSECONDS", allow_hyphen_values = true)]
    pub cpu_quota: Option<i64>,
    /// Processors a step may use: `0-3`, `0,1`
    #[arg(long, value_name = "LIST")]
    pub cpuset_cpus: Option<String>,
    /// Memory nodes a step may use: `0-3`, `0,1`
    #[arg(long, value_name = "LIST")]
    pub cpuset_mems: Option<String>,
    /// Control group beneath which steps get theirs
    #[arg(long, value_name = "PATH")]
    pub cgroup_parent: Option<String>,
    /// Size of /dev/shm [default: 64m]
    #[arg(long, value_name = "BYTES")]
    pub shm_size: Option<String>,
    /// A limit of the kind set by ulimit: `nofile=1024:2048`
    #[arg(long = "ulimit", value_name = "NAME=SOFT[:HARD]")]
    pub ulimits: Vec<String>,
    /// One of the limits in buildx's form: `memory=2g`, `memory-swap=4g`, `cpu-shares=N`, `cpu-period=N`, `cpu-quota=N`,
    /// `cpuset-cpus=LIST`, `cpuset-mems=LIST`; may be given several times
    #[arg(long = "resource", value_name = "NAME=VALUE")]
    pub resources: Vec<String>,
    /// `seccomp=FILE` (a profile in docker's form), `seccomp=unconfined`, `seccomp=builtin`, `no-new-privileges`
    #[arg(long = "security-opt", value_name = "OPTION")]
    pub security_opts: Vec<String>,
}

/// What steps may use.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    /// By cgroup.
    pub limits: Limits,
    /// Of /dev/shm.
    pub shm_size: Option<u64>,
    /// By setrlimit.
    pub rlimits: Vec<Rlimit>,
    /// System calls.
    pub filter: Filter,
    /// Setuid programs have no effect.
    pub no_new_privileges: bool,
}

/// `--security-opt seccomp=`
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Filter {
    /// Docker's default profile.
    #[default]
    Builtin,
    /// All system calls.
    Unconfined,
    /// The profile of a file.
    File(Box<SeccompProfile>),
}

/// How long a step may take.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Patience {
    /// In all.
    pub step: Option<Duration>,
    /// Without printing anything.
    pub idle: Option<Duration>,
}

/// The least that docker lets a limit be: less cannot hold a process.
const LEAST_MEMORY: u64 = 6 << 20;

impl ResourceArgs {
    /// What it says.
    ///
    /// # Errors
    /// A value that cannot be, in words.
    pub fn resources(&self) -> Result<Resources, String> {
        if !self.resources.is_empty() {
            return self.with_buildx_resources()?.resources();
        }
        let size = |option: &str, text: &Option<String>| {
            text.as_ref()
                .map(|text| bytes(text).ok_or_else(|| format!("--{option} {text:?} is no size, as 512m is")))
                .transpose()
        };
        let memory = size("memory", &self.memory)?.filter(|memory| *memory != 0);
        if memory.is_some_and(|memory| memory < LEAST_MEMORY) {
            return Err("--memory: the least that can be asked for is 6m".to_owned());
        }
        let memory_swap = match self.memory_swap.as_deref() {
            None | Some("0") => None,
            Some("-1") => Some(-1),
            Some(text) => {
                let both = bytes(text).and_then(|both| i64::try_from(both).ok());
                Some(both.ok_or_else(|| format!("--memory-swap {text:?} is neither a size nor -1"))?)
            }
        };
        match (memory, memory_swap) {
            (None, Some(_)) => return Err("--memory-swap needs --memory as well".to_owned()),
            (Some(memory), Some(both @ 0..)) if both.unsigned_abs() < memory => {
                return Err("--memory-swap is memory and swap together, and cannot be less than --memory".to_owned());
            }
            _ => {}
        }
        let mut resources = Resources {
            limits: Limits {
                memory,
                memory_swap,
                cpu_shares: self.cpu_shares.filter(|shares| *shares != 0),
                cpu_quota: self.cpu_quota.filter(|quota| *quota != 0),
                cpu_period: self.cpu_period.filter(|period| *period != 0),
                cpuset_cpus: list("cpuset-cpus", &self.cpuset_cpus)?,
                cpuset_mems: list("cpuset-mems", &self.cpuset_mems)?,
                pids: None,
                parent: self.cgroup_parent.as_deref().map(parent).transpose()?.flatten(),
            },
            shm_size: size("shm-size", &self.shm_size)?.filter(|size| *size != 0),
            rlimits: self.ulimits.iter().map(|text| ulimit(text)).collect::<Result<_, _>>()?,
            ..Resources::default()
        };
        for option in &self.security_opts {
            resources.security_option(option)?;
        }
        Ok(resources)
    }
}

impl ResourceArgs {
    /// What `--resource` says counts more than the option of the same name, and later more than earlier.
    fn with_buildx_resources(&self) -> Result<Self, String> {
        let mut args = self.clone();
        for text in std::mem::take(&mut args.resources) {
            let (name, value) = text.split_once('=').ok_or_else(|| format!("--resource {text:?} is not NAME=VALUE"))?;
            let (name, value) = (name.trim(), value.trim().to_owned());
            let wrong = |_| format!("--resource {text:?}: {value:?} is no number");
            match name {
                "memory" => args.memory = Some(value),
                "memory-swap" => args.memory_swap = Some(value),
                "cpu-shares" => args.cpu_shares = Some(value.parse().map_err(wrong)?),
                "cpu-period" => args.cpu_period = Some(value.parse().map_err(wrong)?),
                "cpu-quota" => args.cpu_quota = Some(value.parse().map_err(wrong)?),
                "cpuset-cpus" => args.cpuset_cpus = Some(value),
                "cpuset-mems" => args.cpuset_mems = Some(value),
                _ => {
                    return Err(format!(
                        "--resource {text:?}: there is memory, memory-swap, cpu-shares, cpu-period, cpu-quota, cpuset-cpus \
                         and cpuset-mems"
                    ));
                }
            }
        }
        Ok(args)
    }
}

/// Largest profile of system calls that is read.
const MOST_PROFILE: u64 = 4 << 20;

fn profile(path: &str) -> Result<SeccompProfile, String> {
    let mut text = Vec::new();
    let read = std::fs::File::open(path).and_then(|file| file.take(MOST_PROFILE).read_to_end(&mut text));
    read.map_err(|error| format!("--security-opt seccomp={path}: cannot read it: {error}"))?;
    SeccompProfile::parse(&text).map_err(|why| format!("--security-opt seccomp={path}: {why}"))
}

impl Resources {
    fn security_option(&mut self, option: &str) -> Result<(), String> {
        match option.split_once(['=', ':']).unwrap_or((option, "")) {
            ("no-new-privileges", "" | "true") => self.no_new_privileges = true,
            ("no-new-privileges", "false") => self.no_new_privileges = false,
            ("seccomp", "unconfined") => self.filter = Filter::Unconfined,
            ("seccomp", "builtin") => self.filter = Filter::Builtin,
            ("seccomp", path) if !path.is_empty() => self.filter = Filter::File(Box::new(profile(path)?)),
            _ => {
                return Err(format!(
                    "--security-opt {option:?} is neither seccomp=FILE|unconfined|builtin nor no-new-privileges"
                ));
            }
        }
        Ok(())
    }

    /// Makes them a process's.
    pub fn apply(&self, process: &mut Process) {
        process.limits = self.limits.clone();
        process.rlimits.clone_from(&self.rlimits);
        process.shm_size = self.shm_size.unwrap_or(process.shm_size);
        process.no_new_privileges |= self.no_new_privileges;
        process.seccomp = match &self.filter {
            Filter::Builtin => Seccomp::Default,
            Filter::Unconfined => Seccomp::Unconfined,
            Filter::File(profile) => Seccomp::Profile(profile.clone()),
        };
    }
}

/// Docker's sizes: a number, which may have a fraction, and a unit of 1024.
fn bytes(text: &str) -> Option<u64> {
    let text = text.trim().to_ascii_lowercase();
    let (number, unit) = match text.find(|c: char| !c.is_ascii_digit() && c != '.') {
        Some(at) => text.split_at(at),
        None => (&*text, ""),
    };
    let power = match unit.trim().trim_end_matches("ib").trim_end_matches('b') {
        "" => 0,
        "k" => 1,
        "m" => 2,
        "g" => 3,
        "t" => 4,
        "p" => 5,
        _ => return None,
    };
    let factor = 1024_u64.pow(power);
    match number.parse::<u64>() {
        Ok(whole) => whole.checked_mul(factor),
        Err(_) => {
            let size = number.parse::<f64>().ok()? * factor as f64;
            (size < 1e18).then_some(size as u64)
        }
    }
}

/// A size in the units that limits are given in: `64MiB`, `1.5GiB`.
#[must_use]
pub fn shown(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut size = bytes as f64;
    let mut unit = 0;
    while size >= 1024.0 && unit + 1 < UNITS.len() {
        size /= 1024.0;
        unit += 1;
    }
    let text = format!("{size:.1}");
    format!("{}{}", text.trim_end_matches(".0"), UNITS[unit])
}

/// Numbers and ranges of numbers; anything else would reach a file of the kernel's.
fn list(option: &str, text: &Option<String>) -> Result<Option<String>, String> {
    let Some(text) = text.as_deref().filter(|text| !text.is_empty()) else { return Ok(None) };
    let number = |text: &str| text.parse::<u32>().ok();
    let range = |part: &str| match part.split_once('-') {
        Some((from, to)) => matches!((number(from), number(to)), (Some(from), Some(to)) if from <= to),
        None => number(part).is_some(),
    };
    if text.split(',').all(range) {
        return Ok(Some(text.to_owned()));
    }
    Err(format!("--{option} {text:?} is no list of numbers and ranges, as 0-2,4 is"))
}

/// A path beneath the hierarchy's top.
fn parent(text: &str) -> Result<Option<PathBuf>, String> {
    let parts: Vec<&str> = text.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    if parts.contains(&"..") {
        return Err(format!("--cgroup-parent {text:?} leads out of the hierarchy of control groups"));
    }
    Ok((!parts.is_empty()).then(|| parts.iter().collect()))
}

fn ulimit(text: &str) -> Result<Rlimit, String> {
    let wrong = || format!("--ulimit {text:?} is not NAME=SOFT[:HARD]");
    let (name, values) = text.split_once('=').ok_or_else(wrong)?;
    let (soft, hard) = values.split_once(':').unwrap_or((values, values));
    let value = |text: &str| match text {
        "-1" | "unlimited" => Some(None),
        number => number.parse::<u64>().ok().map(Some),
    };
    let (Some(soft), Some(hard)) = (value(soft), value(hard)) else { return Err(wrong()) };
    let resource: Resource = serde_json::from_value(name.into())
        .map_err(|_| format!("--ulimit {text:?}: there is no limit called {name:?}"))?;
    if hard.is_some_and(|hard| soft.is_none_or(|soft| soft > hard)) {
        return Err(format!("--ulimit {text:?}: the soft limit is above the hard one"));
    }
    Ok(Rlimit { resource, soft, hard })
}

/// `90s`, `10m`, `1h30m`.
///
/// # Errors
/// No time span, or none that is longer than nothing.
pub fn duration(text: &str) -> Result<Duration, String> {
    let span = text.parse::<jiff::SignedDuration>().map_err(|_| "not a time span, as 90s or 1h30m are".to_owned())?;
    Duration::try_from(span).ok().filter(|span| !span.is_zero()).ok_or_else(|| "not longer than nothing".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: ResourceArgs,
    }

    fn parse(line: &str) -> Result<Resources, String> {
        let words = ["x"].into_iter().chain(line.split(' ').filter(|word| !word.is_empty()));
        Line::try_parse_from(words).map_err(|error| error.to_string())?.args.resources()
    }

    #[test]
    fn sizes_are_dockers() {
        for (text, want) in
            [("64m", 64 << 20), ("1G", 1 << 30), ("1.5k", 1536), ("10", 10), ("2gib", 2 << 30), ("5kb", 5120)]
        {
            assert_eq!(bytes(text), Some(want), "{text}");
        }
        for (size, text) in [(0, "0B"), (64 << 20, "64MiB"), (1536 << 20, "1.5GiB"), (1023, "1023B")] {
            assert_eq!(shown(size), text);
        }
        for text in ["", "m", "-1", "1x", "1e9g", "99999999999999p"] {
            assert_eq!(bytes(text), None, "{text}");
        }
    }

    #[test]
    fn limits_are_taken_from_the_line() {
        let got = parse("-m 64m --memory-swap -1 -c 512 --cpu-quota 50000 --cpuset-cpus 0-1 --cgroup-parent /a/b --shm-size 1m --ulimit nofile=10:20 --ulimit core=-1 --security-opt no-new-privileges").expect("valid");
        let limits = Limits {
            memory: Some(64 << 20),
            memory_swap: Some(-1),
            cpu_shares: Some(512),
            cpu_quota: Some(50_000),
            cpuset_cpus: Some("0-1".into()),
            parent: Some("a/b".into()),
            ..Limits::default()
        };
        let rlimits = vec![
            Rlimit { resource: Resource::Nofile, soft: Some(10), hard: Some(20) },
            Rlimit { resource: Resource::Core, soft: None, hard: None },
        ];
        let want =
            Resources { limits, shm_size: Some(1 << 20), rlimits, filter: Filter::Builtin, no_new_privileges: true };
        assert_eq!(got, want);
        assert_eq!(parse(""), Ok(Resources::default()));
        let buildx =
            parse("-m 1g --resource memory=64m --resource cpu-quota=5 --resource memory=32m --resource cpuset-cpus=0");
        let limits = buildx.expect("valid").limits;
        assert_eq!((limits.memory, limits.cpu_quota, limits.cpuset_cpus), (Some(32 << 20), Some(5), Some("0".into())));
    }

    #[test]
    fn what_cannot_be_is_said() {
        for line in [
            "-m 1m",
            "-m lots",
            "--memory-swap 1g",
            "-m 1g --memory-swap 512m",
            "--cpuset-cpus 1-0",
            "--cpuset-mems x",
            "--cgroup-parent a/../../b",
            "--ulimit nofile",
            "--ulimit nofile=5:4",
            "--ulimit nofile=-1:4",
            "--ulimit files=5",
            "--security-opt apparmor=x",
            "--security-opt seccomp=",
            "--security-opt seccomp=/no/such/profile.json",
            "--resource memory",
            "--resource memory=x",
            "--resource cpu-shares=-1",
            "--resource pids=5",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
        assert_eq!(duration("1h30m"), Ok(Duration::from_secs(5400)));
        assert!(duration("soon").is_err() && duration("0s").is_err() && duration("-5s").is_err());
    }
}
