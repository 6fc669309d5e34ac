//! Reading a profile: which rules hold for a machine and a set of capabilities.

use rustix::thread::CapabilitySet;

use super::Machine;

/// The rules that hold, in order; what none allows is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Profile {
    pub(super) rules: Vec<Rule>,
}

/// One rule for several calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rule {
    pub(super) calls: Vec<&'static str>,
    pub(super) action: Action,
    pub(super) condition: Option<Condition>,
}

/// What happens to a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    Allow,
    /// It fails with this number, without the kernel doing anything.
    Errno(u16),
}

/// What an argument must be. Only its lower 32 bits count.
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
    MaskedEqual { mask: u32, value: u32 },
}

/// Docker's default profile.
pub(super) fn default_profile(machine: Machine, capabilities: CapabilitySet) -> Profile {
    let lines = include_str!("default.profile").lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    let rules = lines.filter_map(|line| {
        let parsed = parse_line(line, machine, capabilities);
        parsed.unwrap_or_else(|| unreachable!("a line of the built-in profile, all of which a test parses: {line}"))
    });
    Profile { rules: rules.collect() }
}

/// The rule of a line, `Some(None)` when it does not hold here, `None` when the line makes no sense.
fn parse_line(line: &'static str, machine: Machine, capabilities: CapabilitySet) -> Option<Option<Rule>> {
    let (head, names) = line.split_once(':')?;
    let (head, condition) = match head.split_once(" if ") {
        Some((head, condition)) => (head, Some(parse_condition(condition)?)),
        None => (head, None),
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
    let calls = names.split_whitespace().collect();
    Some(holds.then_some(Rule { calls, action, condition }))
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
    use std::collections::BTreeSet;

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
        let unknown: BTreeSet<&str> =
            all.flat_map(|rule| rule.calls).filter(|name| !known.contains(name) && !elsewhere.contains(name)).collect();
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
