//! Profiles from files, in Docker's form.
//!
//! What is written there is taken as Docker takes it, with two differences. What is not understood is an error and is not
//! passed over, but for names of calls and capabilities, which may be newer than this program. And of the rules for one call
//! those with conditions on arguments are looked at first, whatever their order and action.

use std::borrow::Cow;
use std::collections::BTreeSet;

use rustix::thread::CapabilitySet;
use serde::{Deserialize, Serialize};

use super::profile::{Action, Compare, Condition, Profile, Rule, Test};
use super::{ENOSYS, EPERM, Machine};

/// A profile as a file has it. It is understood if it comes from [`SeccompProfile::parse`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SeccompProfile {
    default_action: String,
    #[serde(default)]
    default_errno_ret: Option<u16>,
    #[serde(default)]
    arch_map: Vec<ArchMap>,
    #[serde(default)]
    architectures: Vec<String>,
    #[serde(default)]
    flags: Vec<String>,
    #[serde(default)]
    syscalls: Vec<Syscalls>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ArchMap {
    architecture: String,
    #[serde(default)]
    sub_architectures: Option<Vec<String>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Syscalls {
    #[serde(default)]
    name: String,
    #[serde(default)]
    names: Vec<String>,
    action: String,
    #[serde(default)]
    errno_ret: Option<u16>,
    #[serde(default)]
    args: Option<Vec<Argument>>,
    #[serde(default)]
    comment: String,
    #[serde(default)]
    includes: Option<Filter>,
    #[serde(default)]
    excludes: Option<Filter>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Argument {
    index: u32,
    value: u64,
    #[serde(default)]
    value_two: u64,
    op: String,
}

/// Where a rule holds, or does not.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Filter {
    #[serde(default)]
    caps: Option<Vec<String>>,
    #[serde(default)]
    arches: Option<Vec<String>>,
    #[serde(default)]
    min_kernel: Option<String>,
}

/// Architectures by the names of libseccomp, as far as they have the kernel's constant.
const ARCHITECTURES: &[(&str, u32)] = &[
    ("SCMP_ARCH_X86_64", 0xc000_003e),
    // It shares the constant; its calls do not exist in either case.
    ("SCMP_ARCH_X32", 0xc000_003e),
    ("SCMP_ARCH_X86", 0x4000_0003),
    ("SCMP_ARCH_AARCH64", 0xc000_00b7),
    ("SCMP_ARCH_ARM", 0x4000_0028),
];

/// Others that may be named, and are not this program's.
const OTHERS: &[&str] = &[
    "SCMP_ARCH_LOONGARCH64",
    "SCMP_ARCH_M68K",
    "SCMP_ARCH_MIPS",
    "SCMP_ARCH_MIPS64",
    "SCMP_ARCH_MIPS64N32",
    "SCMP_ARCH_MIPSEL",
    "SCMP_ARCH_MIPSEL64",
    "SCMP_ARCH_MIPSEL64N32",
    "SCMP_ARCH_PARISC",
    "SCMP_ARCH_PARISC64",
    "SCMP_ARCH_PPC",
    "SCMP_ARCH_PPC64",
    "SCMP_ARCH_PPC64LE",
    "SCMP_ARCH_RISCV64",
    "SCMP_ARCH_S390",
    "SCMP_ARCH_S390X",
    "SCMP_ARCH_SH",
    "SCMP_ARCH_SHEB",
];

impl SeccompProfile {
    /// Reads a profile, and sees to it that all of it is understood.
    ///
    /// # Errors
    /// What is not, in words.
    pub fn parse(text: &[u8]) -> Result<Self, String> {
        let profile: Self = serde_json::from_slice(text).map_err(|error| error.to_string())?;
        // Whatever rules hold here, the others have to make sense too.
        profile.resolve_all()?;
        profile.compile(Machine::OWN, CapabilitySet::empty(), (0, 0))?;
        Ok(profile)
    }

    /// The rules that hold for a machine, a step and a kernel.
    pub(super) fn compile(
        &self,
        machine: Machine,
        capabilities: CapabilitySet,
        kernel: (u32, u32),
    ) -> Result<Profile, String> {
        let default = action(&self.default_action, self.default_errno_ret)?;
        let mut rules = Vec::new();
        for group in &self.syscalls {
            if !group.holds(machine, capabilities, kernel)? {
                continue;
            }
            let action = action(&group.action, group.errno_ret)?;
            let calls: Vec<Cow<'static, str>> = group.all_names()?.into_iter().map(Cow::Owned).collect();
            rules.extend(group.conditions()?.into_iter().map(|conditions| Rule {
                calls: calls.clone(),
                action,
                conditions,
            }));
        }
        // The sort keeps their order otherwise.
        rules.sort_by_key(|rule| rule.conditions.is_empty());
        let newer = if matches!(default, Action::Errno(_)) { Action::Errno(ENOSYS) } else { default };
        Ok(Profile { rules, default, newer, audits: Some(self.audits(machine)?) })
    }

    fn resolve_all(&self) -> Result<(), String> {
        action(&self.default_action, self.default_errno_ret)?;
        for flag in &self.flags {
            // What they ask for is always so: there is one thread, and the mitigation that the second switches off is.
            if !["SECCOMP_FILTER_FLAG_TSYNC", "SECCOMP_FILTER_FLAG_SPEC_ALLOW"].contains(&flag.as_str()) {
                return Err(format!("the flag {flag:?} is not supported"));
            }
        }
        for group in &self.syscalls {
            action(&group.action, group.errno_ret)?;
            group.all_names()?;
            group.conditions()?;
            for filter in [&group.includes, &group.excludes].into_iter().flatten() {
                filter.min_kernel.as_deref().map(version).transpose()?;
            }
        }
        Ok(())
    }

    /// The constants of the architectures whose programs may run.
    fn audits(&self, machine: Machine) -> Result<BTreeSet<u32>, String> {
        if !self.arch_map.is_empty() && !self.architectures.is_empty() {
            return Err("both architectures and archMap are given".to_owned());
        }
        let own = machine.abis()[0].audit;
        let number = |name: &String| match ARCHITECTURES.iter().find(|(known, _)| known == name) {
            Some((_, audit)) => Ok(Some(*audit)),
            None if OTHERS.contains(&name.as_str()) => Ok(None),
            None => Err(format!("there is no architecture {name:?}")),
        };
        let mut audits = BTreeSet::from([own]);
        for name in &self.architectures {
            audits.extend(number(name)?);
        }
        for map in &self.arch_map {
            let is_own = number(&map.architecture)? == Some(own);
            for name in map.sub_architectures.iter().flatten() {
                audits.extend(number(name)?.filter(|_| is_own));
            }
        }
        Ok(audits)
    }
}

impl Syscalls {
    fn all_names(&self) -> Result<Vec<String>, String> {
        match (self.name.is_empty(), self.names.is_empty()) {
            (false, false) => Err(format!("both name and names are given, with {:?}", self.name)),
            (false, true) => Ok(vec![self.name.clone()]),
            (true, _) => Ok(self.names.clone()),
        }
    }

    fn holds(&self, machine: Machine, capabilities: CapabilitySet, kernel: (u32, u32)) -> Result<bool, String> {
        let has = |name: &String| {
            let known = name.strip_prefix("CAP_").and_then(CapabilitySet::from_name);
            known.is_some_and(|capability| capabilities.contains(capability))
        };
        let is_here = |name: &String| machine.go_names().contains(&name.as_str());
        let is_new = |text: &Option<String>| {
            text.as_deref().map(version).transpose().map(|least| least.map(|least| kernel >= least))
        };
        if let Some(includes) = &self.includes {
            let arches = includes.arches.as_deref().unwrap_or_default();
            if !arches.is_empty() && !arches.iter().any(is_here)
                || !includes.caps.iter().flatten().all(has)
                || is_new(&includes.min_kernel)? == Some(false)
            {
                return Ok(false);
            }
        }
        if let Some(excludes) = &self.excludes
            && (excludes.arches.iter().flatten().any(is_here)
                || excludes.caps.iter().flatten().any(has)
                || is_new(&excludes.min_kernel)? == Some(true))
        {
            return Ok(false);
        }
        Ok(true)
    }

    /// Conditions that hold together, in alternatives: where one argument is named twice, each of its conditions is one.
    fn conditions(&self) -> Result<Vec<Vec<Condition>>, String> {
        let arguments = self.args.as_deref().unwrap_or_default();
        let all = arguments.iter().map(Argument::condition).collect::<Result<Vec<_>, _>>()?;
        let distinct: BTreeSet<u32> = all.iter().map(|condition| condition.argument).collect();
        if distinct.len() == all.len() {
            return Ok(vec![all]);
        }
        Ok(all.into_iter().map(|condition| vec![condition]).collect())
    }
}

impl Argument {
    fn condition(&self) -> Result<Condition, String> {
        if self.index > 5 {
            return Err(format!("a call has no argument {}", self.index));
        }
        let (compare, mask, value) = match self.op.as_str() {
            "SCMP_CMP_EQ" => (Compare::Equal, u64::MAX, self.value),
            "SCMP_CMP_NE" => (Compare::NotEqual, u64::MAX, self.value),
            "SCMP_CMP_LT" => (Compare::Less, u64::MAX, self.value),
            "SCMP_CMP_LE" => (Compare::LessOrEqual, u64::MAX, self.value),
            "SCMP_CMP_GE" => (Compare::GreaterOrEqual, u64::MAX, self.value),
            "SCMP_CMP_GT" => (Compare::Greater, u64::MAX, self.value),
            "SCMP_CMP_MASKED_EQ" => (Compare::Equal, self.value, self.value_two),
            other => return Err(format!("there is no comparison {other:?}")),
        };
        Ok(Condition { argument: self.index, test: Test::Wide { compare, mask, value } })
    }
}

fn action(name: &str, errno: Option<u16>) -> Result<Action, String> {
    Ok(match name {
        "SCMP_ACT_ALLOW" => Action::Allow,
        "SCMP_ACT_ERRNO" => match errno {
            // More is no error number to the kernel.
            Some(errno) if errno > 4095 => return Err(format!("errnoRet {errno} is no error number")),
            errno => Action::Errno(errno.unwrap_or(EPERM)),
        },
        "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => Action::KillThread,
        "SCMP_ACT_KILL_PROCESS" => Action::KillProcess,
        "SCMP_ACT_TRAP" => Action::Trap,
        "SCMP_ACT_LOG" => Action::Log,
        "SCMP_ACT_TRACE" => Action::Trace(errno.unwrap_or(EPERM)),
        "SCMP_ACT_NOTIFY" => return Err("SCMP_ACT_NOTIFY is not supported: there is nobody to notify".to_owned()),
        other => return Err(format!("there is no action {other:?}")),
    })
}

fn version(text: &str) -> Result<(u32, u32), String> {
    let parsed = text.split_once('.').and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)));
    parsed.ok_or_else(|| format!("minKernel {text:?} is no version, as 4.8 is"))
}

/// The version in a release as uname tells it.
pub(super) fn release(text: &str) -> (u32, u32) {
    let mut numbers = text.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capabilities;

    fn compiled(json: &str, capabilities: CapabilitySet, kernel: (u32, u32)) -> Result<Profile, String> {
        SeccompProfile::parse(json.as_bytes())?.compile(Machine::X86_64, capabilities, kernel)
    }

    #[test]
    fn rules_hold_by_capability_architecture_and_kernel() {
        let json = r#"{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":38,
            "archMap":[{"architecture":"SCMP_ARCH_X86_64","subArchitectures":["SCMP_ARCH_X86","SCMP_ARCH_X32"]},
                       {"architecture":"SCMP_ARCH_AARCH64","subArchitectures":["SCMP_ARCH_ARM"]}],
            "syscalls":[
              {"names":["read"],"action":"SCMP_ACT_ALLOW","args":null,"comment":"","includes":{},"excludes":{}},
              {"names":["mount"],"action":"SCMP_ACT_ALLOW","includes":{"caps":["CAP_SYS_ADMIN"]}},
              {"names":["clone3"],"action":"SCMP_ACT_ERRNO","errnoRet":38,"excludes":{"caps":["CAP_SYS_ADMIN","CAP_OF_TOMORROW"]}},
              {"names":["ptrace"],"action":"SCMP_ACT_ALLOW","includes":{"minKernel":"4.8"}},
              {"names":["bpf"],"action":"SCMP_ACT_ALLOW","includes":{"arches":["arm64"]}},
              {"names":["modify_ldt"],"action":"SCMP_ACT_ALLOW","includes":{"arches":["amd64","x32","x86"]}}]}"#;
        let names = |capabilities, kernel| -> Vec<String> {
            let profile = compiled(json, capabilities, kernel).expect("valid");
            assert_eq!((profile.default, profile.audits.map(|audits| audits.len())), (Action::Errno(38), Some(2)));
            profile.rules.iter().map(|rule| rule.calls.join(",")).collect()
        };
        assert_eq!(names(capabilities::DEFAULT, (4, 7)), ["read", "clone3", "modify_ldt"]);
        assert_eq!(names(CapabilitySet::all(), (6, 1)), ["read", "mount", "ptrace", "modify_ldt"]);
    }

    #[test]
    fn conditions_are_looked_at_first_and_a_repeated_argument_is_an_alternative() {
        let json = r#"{"defaultAction":"SCMP_ACT_KILL_PROCESS","syscalls":[
            {"name":"socket","action":"SCMP_ACT_ALLOW"},
            {"name":"socket","action":"SCMP_ACT_ERRNO","args":[{"index":0,"value":1,"op":"SCMP_CMP_EQ"},{"index":1,"value":2,"op":"SCMP_CMP_GE"}]},
            {"name":"clone","action":"SCMP_ACT_TRAP","args":[{"index":0,"value":1,"op":"SCMP_CMP_EQ"},{"index":0,"value":2,"op":"SCMP_CMP_EQ"}]}]}"#;
        let rules = compiled(json, CapabilitySet::empty(), (6, 1)).expect("valid").rules;
        let shape: Vec<(&str, usize)> = rules.iter().map(|rule| (&*rule.calls[0], rule.conditions.len())).collect();
        assert_eq!(shape, [("socket", 2), ("clone", 1), ("clone", 1), ("socket", 0)]);
    }

    #[test]
    fn what_is_not_understood_is_an_error() {
        for (json, why) in [
            ("{}", "defaultAction"),
            (r#"{"defaultAction":"SCMP_ACT_MAYBE"}"#, "no action"),
            (r#"{"defaultAction":"SCMP_ACT_NOTIFY"}"#, "SCMP_ACT_NOTIFY"),
            (r#"{"defaultAction":"SCMP_ACT_ALLOW","extra":1}"#, "extra"),
            (r#"{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":5000}"#, "5000"),
            (r#"{"defaultAction":"SCMP_ACT_ALLOW","flags":["SECCOMP_FILTER_FLAG_LOG"]}"#, "FLAG_LOG"),
            (r#"{"defaultAction":"SCMP_ACT_ALLOW","architectures":["SCMP_ARCH_VAX"]}"#, "VAX"),
            (
                r#"{"defaultAction":"SCMP_ACT_ALLOW","architectures":["SCMP_ARCH_X86"],"archMap":[{"architecture":"SCMP_ARCH_X86"}]}"#,
                "both",
            ),
            (
                r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"name":"a","names":["b"],"action":"SCMP_ACT_ALLOW"}]}"#,
                "both",
            ),
            (
                r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"name":"a","action":"SCMP_ACT_ALLOW","args":[{"index":6,"value":0,"op":"SCMP_CMP_EQ"}]}]}"#,
                "argument 6",
            ),
            (
                r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"name":"a","action":"SCMP_ACT_ALLOW","args":[{"index":0,"value":0,"op":"=="}]}]}"#,
                "comparison",
            ),
            (
                r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"name":"a","action":"SCMP_ACT_ALLOW","includes":{"minKernel":"new"}}]}"#,
                "minKernel",
            ),
            (
                r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"name":"a","action":"SCMP_ACT_X","includes":{"arches":["s390x"]}}]}"#,
                "SCMP_ACT_X",
            ),
            ("not json", "expected"),
        ] {
            let found = SeccompProfile::parse(json.as_bytes()).expect_err(json);
            assert!(found.contains(why), "{json}: {found}");
        }
        assert_eq!((release("6.18.3-rc1"), release("5.4"), release("x")), ((6, 18), (5, 4), (0, 0)));
    }
}
