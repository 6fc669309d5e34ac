//! From rules to a program of the packet filter machine: for each ABI a binary search over ranges of numbers.
//!
//! The kernel runs the program at every call, and once over all numbers when it is installed, so it is kept short: neighbouring
//! numbers with the same fate are one range, and a search takes some seven comparisons.

use std::collections::BTreeMap;

use sys::seccomp::Instruction;

use super::profile::{Action, Condition, Profile, Test};
use super::{Abi, Machine};

// The operations used, by their names in linux/filter.h.
const LD_W_ABS: u16 = 0x20;
const ALU_AND_K: u16 = 0x54;
const JMP_JA: u16 = 0x05;
const JMP_JEQ_K: u16 = 0x15;
const JMP_JGT_K: u16 = 0x25;
const JMP_JGE_K: u16 = 0x35;
const RET_K: u16 = 0x06;

// Offsets in struct seccomp_data.
const NUMBER: u32 = 0;
const AUDIT: u32 = 4;
/// The lower half of the first argument; both machines are little-endian.
const ARGUMENTS: u32 = 16;

const RETURN_ALLOW: u32 = 0x7fff_0000;
const RETURN_ERRNO: u32 = 0x0005_0000;

const EPERM: u16 = 1;
const ENOSYS: u16 = 38;

/// What is done with one number: conditions in order, then what happens when none holds.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Fate {
    conditions: Vec<(Condition, Action)>,
    otherwise: Action,
}

/// Compiles a profile.
pub(super) fn filter(machine: Machine, profile: &Profile) -> Vec<Instruction> {
    let mut program = vec![load(AUDIT)];
    for abi in machine.abis() {
        let section = section(abi, profile);
        // Not this ABI: on to the next.
        program.push(jump(JMP_JEQ_K, abi.audit, 1, 0));
        program.push(always(section.len()));
        program.extend(section);
    }
    // An ABI that the machine does not have.
    program.push(give(Action::Errno(EPERM)));
    program
}

/// The part for one ABI; every way through it ends in a return.
fn section(abi: Abi, profile: &Profile) -> Vec<Instruction> {
    let mut code = vec![load(NUMBER)];
    if let Some(ceiling) = abi.ceiling {
        code.push(jump(JMP_JGE_K, ceiling, 0, 1));
        code.push(give(Action::Errno(ENOSYS)));
    }
    code.extend(search(&ranges(&fates(abi, profile))));
    code
}

/// The fate of every number that the ABI has.
fn fates(abi: Abi, profile: &Profile) -> BTreeMap<u32, Fate> {
    let mut fates = BTreeMap::new();
    for (name, number) in abi.calls() {
        let mut fate = Fate { conditions: Vec::new(), otherwise: Action::Errno(EPERM) };
        for rule in profile.rules.iter().filter(|rule| rule.calls.contains(&name)) {
            match rule.condition {
                Some(condition) => fate.conditions.push((condition, rule.action)),
                None => {
                    fate.otherwise = rule.action;
                    break;
                }
            }
        }
        fates.insert(number, fate);
    }
    fates
}

/// Ranges by their first number, without gaps from 0 on.
fn ranges(fates: &BTreeMap<u32, Fate>) -> Vec<(u32, Fate)> {
    let simple = |errno| Fate { conditions: Vec::new(), otherwise: Action::Errno(errno) };
    let mut ranges: Vec<(u32, Fate)> = Vec::new();
    let mut add = |number: u32, fate: Fate| {
        if ranges.last().is_none_or(|(_, last)| *last != fate) {
            ranges.push((number, fate));
        }
    };
    let mut next = 0;
    for (&number, fate) in fates {
        if number > next {
            add(next, simple(EPERM));
        }
        add(number, fate.clone());
        next = number + 1;
    }
    // Calls newer than our list: programs expect to be told that they do not exist, and then do without.
    add(next, simple(ENOSYS));
    ranges
}

/// Finds the range of the number in the accumulator.
fn search(ranges: &[(u32, Fate)]) -> Vec<Instruction> {
    if let [(_, fate)] = ranges {
        return decide(fate);
    }
    let (left, right) = ranges.split_at(ranges.len() / 2);
    let (below, above) = (search(left), search(right));
    let mut code = Vec::with_capacity(below.len() + above.len() + 2);
    match u8::try_from(below.len()) {
        Ok(skip) => code.push(jump(JMP_JGE_K, right[0].0, skip, 0)),
        // Conditional jumps reach 255 instructions.
        Err(_) => {
            code.push(jump(JMP_JGE_K, right[0].0, 0, 1));
            code.push(always(below.len()));
        }
    }
    code.extend(below);
    code.extend(above);
    code
}

fn decide(fate: &Fate) -> Vec<Instruction> {
    let mut code = Vec::new();
    for (condition, action) in &fate.conditions {
        code.push(load(ARGUMENTS + 8 * condition.argument));
        match condition.test {
            Test::Equal(value) => code.push(jump(JMP_JEQ_K, value, 0, 1)),
            Test::Less(value) => code.push(jump(JMP_JGE_K, value, 1, 0)),
            Test::Greater(value) => code.push(jump(JMP_JGT_K, value, 0, 1)),
            Test::MaskedEqual { mask, value } => {
                code.push(Instruction { code: ALU_AND_K, jump_true: 0, jump_false: 0, operand: mask });
                code.push(jump(JMP_JEQ_K, value, 0, 1));
            }
        }
        code.push(give(*action));
    }
    code.push(give(fate.otherwise));
    code
}

fn load(offset: u32) -> Instruction {
    Instruction { code: LD_W_ABS, jump_true: 0, jump_false: 0, operand: offset }
}

fn jump(code: u16, operand: u32, jump_true: u8, jump_false: u8) -> Instruction {
    Instruction { code, jump_true, jump_false, operand }
}

fn always(skip: usize) -> Instruction {
    let operand = u32::try_from(skip).unwrap_or(u32::MAX);
    Instruction { code: JMP_JA, jump_true: 0, jump_false: 0, operand }
}

fn give(action: Action) -> Instruction {
    let operand = match action {
        Action::Allow => RETURN_ALLOW,
        Action::Errno(errno) => RETURN_ERRNO | u32::from(errno),
    };
    Instruction { code: RET_K, jump_true: 0, jump_false: 0, operand }
}

#[cfg(test)]
mod tests {
    use super::super::profile::{Rule, default_profile};
    use super::*;
    use crate::capabilities;
    use std::sync::LazyLock;

    use proptest::prelude::*;
    use rustix::thread::CapabilitySet;

    /// The machine of the kernel, as far as the compiler uses it.
    fn execute(program: &[Instruction], audit: u32, number: u32, arguments: [u64; 6]) -> u32 {
        let (mut at, mut accumulator) = (0, 0_u32);
        loop {
            let Instruction { code, jump_true, jump_false, operand } = program[at];
            at += 1;
            let choose = |holds: bool| usize::from(if holds { jump_true } else { jump_false });
            match code {
                LD_W_ABS if operand == NUMBER => accumulator = number,
                LD_W_ABS if operand == AUDIT => accumulator = audit,
                LD_W_ABS => accumulator = arguments[(operand as usize - 16) / 8] as u32,
                ALU_AND_K => accumulator &= operand,
                JMP_JA => at += operand as usize,
                JMP_JEQ_K => at += choose(accumulator == operand),
                JMP_JGT_K => at += choose(accumulator > operand),
                JMP_JGE_K => at += choose(accumulator >= operand),
                RET_K => return operand,
                other => panic!("operation {other:#x}"),
            }
        }
    }

    /// What the rules say, read in the plainest way.
    fn judge(rules: &[Rule], name: &str, arguments: [u64; 6]) -> u32 {
        let holds = |rule: &&Rule| {
            rule.calls.contains(&name)
                && rule.condition.is_none_or(|condition| {
                    let argument = arguments[condition.argument as usize] as u32;
                    match condition.test {
                        Test::Equal(value) => argument == value,
                        Test::Less(value) => argument < value,
                        Test::Greater(value) => argument > value,
                        Test::MaskedEqual { mask, value } => argument & mask == value,
                    }
                })
        };
        give(rules.iter().find(holds).map_or(Action::Errno(EPERM), |rule| rule.action)).operand
    }

    fn arguments() -> impl Strategy<Value = [u64; 6]> {
        let interesting = prop_oneof![0..50_u64, any::<u64>(), Just(0xffff_ffff), Just(0x2_0008), Just(0x1_0000_0026)];
        proptest::array::uniform6(interesting)
    }

    /// Both machines, with few and many capabilities.
    static PROGRAMS: LazyLock<Vec<(Machine, Profile, Vec<Instruction>)>> = LazyLock::new(|| {
        let held = [CapabilitySet::empty(), capabilities::DEFAULT, CapabilitySet::all()];
        let each = held.into_iter().flat_map(|held| [(Machine::X86_64, held), (Machine::Aarch64, held)]);
        each.map(|(machine, held)| {
            let profile = default_profile(machine, held);
            let program = filter(machine, &profile);
            (machine, profile, program)
        })
        .collect()
    });

    proptest! {
        #[test]
        fn the_program_does_what_the_rules_say(arguments in arguments(), pick in any::<proptest::sample::Index>()) {
            for (machine, profile, program) in &*PROGRAMS {
                for abi in machine.abis() {
                    let calls: Vec<_> = abi.calls().collect();
                    let (name, number) = *pick.get(&calls);
                    prop_assert_eq!(
                        execute(program, abi.audit, number, arguments),
                        judge(&profile.rules, name, arguments),
                        "{} {} {:?}", machine.name(), name, arguments
                    );
                }
            }
        }
    }

    #[test]
    fn every_number_is_decided_as_the_rules_say() {
        for machine in [Machine::X86_64, Machine::Aarch64] {
            let profile = default_profile(machine, capabilities::DEFAULT);
            let program = filter(machine, &profile);
            assert!(program.len() < 4096, "the kernel's limit");
            for abi in machine.abis() {
                for (name, number) in abi.calls() {
                    assert_eq!(
                        execute(&program, abi.audit, number, [0; 6]),
                        judge(&profile.rules, name, [0; 6]),
                        "{name}"
                    );
                }
            }
        }
    }

    #[test]
    fn what_matters_most_is_decided_right() {
        let program = filter(Machine::X86_64, &default_profile(Machine::X86_64, capabilities::DEFAULT));
        let (own, old) = (0xc000_003e, 0x4000_0003);
        let first = |argument| [argument, 0, 0, 0, 0, 0];
        let (permitted, denied, missing) = (RETURN_ALLOW, RETURN_ERRNO | 1, RETURN_ERRNO | 38);
        for (audit, number, arguments, want) in [
            (own, 0, first(0), permitted),              // read
            (own, 59, first(0), permitted),             // execve
            (own, 165, first(0), denied),               // mount
            (own, 250, first(0), denied),               // keyctl
            (own, 425, first(0), denied),               // io_uring_setup
            (own, 323, first(0), denied),               // userfaultfd
            (own, 321, first(0), denied),               // bpf
            (own, 272, first(0x1000_0000), denied),     // unshare
            (own, 56, first(17), permitted),            // clone, as fork does
            (own, 56, first(0x1000_0000 | 17), denied), // clone with a user namespace
            (own, 435, first(0), missing),              // clone3
            (own, 41, first(2), permitted),             // socket of AF_INET
            (own, 41, first(38), denied),               // socket of AF_ALG
            (own, 41, first(0x1_0000_0026), denied),    // the same with bits that the kernel ignores
            (own, 41, first(40), denied),               // socket of AF_VSOCK
            (own, 135, first(0xffff_ffff), permitted),  // personality, asking
            (own, 135, first(0x4_0000), denied),        // personality, something else
            (own, 9999, first(0), missing),             // newer than we know
            (own, 0x4000_0000, first(0), missing),      // read of x32
            (old, 3, first(0), permitted),              // read of i386
            (old, 21, first(0), denied),                // mount of i386
            (old, 165, first(0), permitted),            // getresuid of i386, mount's number elsewhere
            (0xc000_00b7, 63, first(0), denied),        // another machine
        ] {
            assert_eq!(execute(&program, audit, number, arguments), want, "{number} of {audit:#x}");
        }
    }
}
