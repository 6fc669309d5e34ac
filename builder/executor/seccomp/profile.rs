//! Reading a profile: which rules hold for a machine and a set of capabilities.

use std::borrow::Cow;
use std::collections::BTreeSet;

use rustix::thread::CapabilitySet;

use super::{ENOSYS, EPERM, Machine};

/// The rules that hold, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Profile {
    pub(super) rules: Vec<Rule>,
    /// What happens to a call for which there is no rule.
    pub(super) default: Action,
    /// What happens to calls that are newer than our list.
    pub(super) newer: Action,
    /// The kernel's constants of the architectures whose programs may run; none: all of the machine's.
    pub(super) audits: Option<BTreeSet<u32>>,
}

/// One rule for several calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rule {
    pub(super) calls: Vec<Cow<'static, str>>,
    pub(super) action: Action,
    /// All of them must hold.
    pub(super) conditions: Vec<Condition>,
}

/// What happens to a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    Allow,
    /// It fails with this number, without the kernel doing anything.
    Errno(u16),
    KillThread,
    KillProcess,
    /// The process gets a signal.
    Trap,
    /// As allowed, and the kernel's log has it.
    Log,
    /// Whoever traces the process is told; without a tracer the call does not exist.
    Trace(u16),
}

/// What an argument must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Condition {
    pub(super) argument: u32,
    pub(super) test: Test,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Test {
    Equal(u32),
    Less(u32),
    Greater(u32),
    MaskedEqual {
        mask: u32,
        value: u32,
    },
    /// All 64 bits count, the others compare the lower 32.
    Wide {
        compare: Compare,
        mask: u64,
        value: u64,
    },
}

/// How two numbers of 64 bits are compared. With a mask only [`Compare::Equal`] makes sense.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Compare {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    GreaterOrEqual,
    Greater,
}

/// Docker's default profile.
pub(super) fn default_profile(machine: Machine, capabilities: CapabilitySet) -> Profile {
    let lines = include_str!("default.profile").lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    let rules = lines.filter_map(|line| {
        let parsed = parse_line(line, machine, capabilities);
        parsed.unwrap_or_else(|| unreachable!("a line of the built-in profile, all of which a test parses: {line}"))
    });
    let (default, newer) = (Action::Errno(EPERM), Action::Errno(ENOSYS));
    // Calls newer than our list: programs expect to be told that they do not exist, and then do without.
    Profile { rules: rules.collect(), default, newer, audits: None }
}

/// The rule of a line, `Some(None)` when it does not hold here, `None` when the line makes no sense.
fn parse_line(line: &'static str, machine: Machine, capabilities: CapabilitySet) -> Option<Option<Rule>> {
    let (head, names) = line.split_once(':')?;
    let (head, conditions) = match head.split_once(" if ") {
        Some((head, condition)) => (head, vec![parse_condition(condition)?]),
        None => (head, Vec::new()),
    };
    let mut words = head.split_whitespace();
    let action = match words.next()? {
        "allow" => Action::Allow,
        "errno" => Action::Errno(words.next()?.parse().ok()?),
        _ => return None,
    };
    let mut holds = true;
    while let Some(word) = words.next() {
        let value = words.next()?;
        holds &= match word {
            "cap" => capabilities.contains(CapabilitySet::from_name(value)?),
            "no-cap" => !capabilities.contains(CapabilitySet::from_name(value)?),
            "arch" => value == machine.name(),
            _ => return None,
        };
    }
    let calls = names.split_whitespace().map(Cow::Borrowed).collect();
    Some(holds.then_some(Rule { calls, action, conditions }))
}

fn parse_condition(text: &str) -> Option<Condition> {
    let words: Vec<&str> = text.split_whitespace().collect();
    let argument = words.first()?.strip_prefix("arg")?.parse().ok().filter(|argument| *argument < 6)?;
    let test = match words[1..] {
        ["==", value] => Test::Equal(parse_number(value)?),
        ["<", value] => Test::Less(parse_number(value)?),
        [">", value] => Test::Greater(parse_number(value)?),
        ["&", mask, "==", value] => Test::MaskedEqual { mask: parse_number(mask)?, value: parse_number(value)? },
        _ => return None,
    };
    Some(Condition { argument, test })
}

fn parse_number(text: &str) -> Option<u32> {
    match text.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_of_the_default_profile_is_understood() {
        for machine in [Machine::X86_64, Machine::Aarch64] {
            for capabilities in [CapabilitySet::empty(), CapabilitySet::all()] {
                assert!(default_profile(machine, capabilities).rules.len() > 30);
            }
        }
    }

    #[test]
    fn every_call_of_the_default_profile_has_a_number_somewhere() {
        // Calls of machines that we do not run on, and second names of calls that the tables list by the first.
        let elsewhere = ["fstatat64", "getsid", "riscv_hwprobe", "futex_time64", "recv", "sync_file_range2"];
        let known: BTreeSet<&str> = [Machine::X86_64, Machine::Aarch64]
            .into_iter()
            .flat_map(Machine::abis)
            .flat_map(|abi| abi.calls().map(|(name, _)| name).collect::<Vec<_>>())
            .collect();
        let all = default_profile(Machine::X86_64, CapabilitySet::all())
            .rules
            .into_iter()
            .chain(default_profile(Machine::Aarch64, CapabilitySet::empty()).rules);
        let unknown: BTreeSet<Cow<'_, str>> = all
            .flat_map(|rule| rule.calls)
            .filter(|name| !known.contains(&**name) && !elsewhere.contains(&&**name))
            .collect();
        assert_eq!(unknown, BTreeSet::new());
    }

    #[test]
    fn nonsense_is_refused() {
        for line in [
            "allow",
            "deny: read",
            "allow cap NONE: read",
            "allow if arg9 == 1: read",
            "allow if arg0 ~ 1: read",
            "errno x: read",
        ] {
            assert_eq!(parse_line(line, Machine::X86_64, CapabilitySet::empty()), None, "{line}");
        }
    }
}
