//! From rules to a program of the packet filter machine: for each ABI a binary search over ranges of numbers.
//!
//! The kernel runs the program at every call, and once over all numbers when it is installed, so it is kept short: neighbouring
//! numbers with the same fate are one range, and a search takes some seven comparisons.

use std::collections::BTreeMap;

use sys::seccomp::Instruction;

use super::profile::{Action, Compare, Condition, Profile, Test};
use super::{Abi, ENOSYS, EPERM, Machine};

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

// What a program can return, by the names of linux/seccomp.h.
const RETURN_KILL_PROCESS: u32 = 0x8000_0000;
const RETURN_KILL_THREAD: u32 = 0x0000_0000;
const RETURN_TRAP: u32 = 0x0003_0000;
const RETURN_ERRNO: u32 = 0x0005_0000;
const RETURN_TRACE: u32 = 0x7ff0_0000;
const RETURN_LOG: u32 = 0x7ffc_0000;
const RETURN_ALLOW: u32 = 0x7fff_0000;

/// What is done with one number: clauses in order, of which all conditions must hold, then what happens when none does.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Fate {
    clauses: Vec<(Vec<Condition>, Action)>,
    otherwise: Action,
}

/// Compiles a profile.
pub(super) fn filter(machine: Machine, profile: &Profile) -> Vec<Instruction> {
    let mut program = vec![load(AUDIT)];
    for abi in machine.abis() {
        let section = match &profile.audits {
            Some(audits) if !audits.contains(&abi.audit) => vec![give(Action::KillProcess)],
            _ => section(abi, profile),
        };
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
    code.extend(search(&ranges(&fates(abi, profile), profile)));
    code
}

/// The fate of every number that the ABI has.
fn fates(abi: Abi, profile: &Profile) -> BTreeMap<u32, Fate> {
    let mut fates = BTreeMap::new();
    for (name, number) in abi.calls() {
        let mut fate = Fate { clauses: Vec::new(), otherwise: profile.default };
        for rule in profile.rules.iter().filter(|rule| rule.calls.iter().any(|call| *call == name)) {
            if rule.conditions.is_empty() {
                fate.otherwise = rule.action;
                break;
            }
            fate.clauses.push((rule.conditions.clone(), rule.action));
        }
        fates.insert(number, fate);
    }
    fates
}

/// Ranges by their first number, without gaps from 0 on.
fn ranges(fates: &BTreeMap<u32, Fate>, profile: &Profile) -> Vec<(u32, Fate)> {
    let simple = |action| Fate { clauses: Vec::new(), otherwise: action };
    let mut ranges: Vec<(u32, Fate)> = Vec::new();
    let mut add = |number: u32, fate: Fate| {
        if ranges.last().is_none_or(|(_, last)| *last != fate) {
            ranges.push((number, fate));
        }
    };
    let mut next = 0;
    for (&number, fate) in fates {
        if number > next {
            add(next, simple(profile.default));
        }
        add(number, fate.clone());
        next = number + 1;
    }
    add(next, simple(profile.newer));
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
    for (conditions, action) in &fate.clauses {
        // From the last: each has to know how far it is to the next clause.
        let mut clause = vec![give(*action)];
        for condition in conditions.iter().rev() {
            let rest = u8::try_from(clause.len()).expect("six conditions of at most six instructions, and one more");
            let mut tested = test(condition, rest);
            tested.append(&mut clause);
            clause = tested;
        }
        code.append(&mut clause);
    }
    code.push(give(fate.otherwise));
    code
}

/// Falls through when the condition holds, and leaps over `rest` more instructions when it does not.
fn test(condition: &Condition, rest: u8) -> Vec<Instruction> {
    let low = ARGUMENTS + 8 * condition.argument;
    let narrow = |code, value, (yes, no)| vec![load(low), jump(code, value, yes, no)];
    match condition.test {
        Test::Equal(value) => narrow(JMP_JEQ_K, value, (0, rest)),
        Test::Less(value) => narrow(JMP_JGE_K, value, (rest, 0)),
        Test::Greater(value) => narrow(JMP_JGT_K, value, (0, rest)),
        Test::MaskedEqual { mask, value } => vec![load(low), and(mask), jump(JMP_JEQ_K, value, 0, rest)],
        Test::Wide { compare, mask, value } => wide(low, compare, mask, value, rest),
    }
}

/// The upper halves decide unless they are equal, then the lower ones do.
fn wide(low: u32, compare: Compare, mask: u64, value: u64, rest: u8) -> Vec<Instruction> {
    let halves = |number: u64| ((number >> 32) as u32, number as u32);
    let ((mask_high, mask_low), (high, lower)) = (halves(mask), halves(value));
    let ordered = |code, (above, below): (u8, u8), (yes, no)| {
        vec![
            load(low + 4),
            jump(JMP_JGT_K, high, above, 0),
            jump(JMP_JEQ_K, high, 0, below),
            load(low),
            jump(code, lower, yes, no),
        ]
    };
    // From the second instruction there are three more of this test, from the third two.
    let (from_second, from_third) = (3, 2);
    match compare {
        Compare::Equal if mask == u64::MAX => {
            vec![load(low + 4), jump(JMP_JEQ_K, high, 0, rest + 2), load(low), jump(JMP_JEQ_K, lower, 0, rest)]
        }
        Compare::Equal => vec![
            load(low + 4),
            and(mask_high),
            jump(JMP_JEQ_K, high, 0, rest + 3),
            load(low),
            and(mask_low),
            jump(JMP_JEQ_K, lower, 0, rest),
        ],
        Compare::NotEqual => {
            vec![load(low + 4), jump(JMP_JEQ_K, high, 0, 2), load(low), jump(JMP_JEQ_K, lower, rest, 0)]
        }
        Compare::Greater => ordered(JMP_JGT_K, (from_second, rest + from_third), (0, rest)),
        Compare::GreaterOrEqual => ordered(JMP_JGE_K, (from_second, rest + from_third), (0, rest)),
        Compare::Less => ordered(JMP_JGE_K, (rest + from_second, from_third), (rest, 0)),
        Compare::LessOrEqual => ordered(JMP_JGT_K, (rest + from_second, from_third), (rest, 0)),
    }
}

fn and(mask: u32) -> Instruction {
    Instruction { code: ALU_AND_K, jump_true: 0, jump_false: 0, operand: mask }
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
        Action::KillThread => RETURN_KILL_THREAD,
        Action::KillProcess => RETURN_KILL_PROCESS,
        Action::Trap => RETURN_TRAP,
        Action::Log => RETURN_LOG,
        Action::Trace(data) => RETURN_TRACE | u32::from(data),
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
                LD_W_ABS if operand % 8 == 4 => accumulator = (arguments[(operand as usize - 16) / 8] >> 32) as u32,
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
            rule.calls.iter().any(|call| *call == name)
                && rule.conditions.iter().all(|condition| {
                    let whole = arguments[condition.argument as usize];
                    let argument = whole as u32;
                    match condition.test {
                        Test::Equal(value) => argument == value,
                        Test::Less(value) => argument < value,
                        Test::Greater(value) => argument > value,
                        Test::MaskedEqual { mask, value } => argument & mask == value,
                        Test::Wide { compare, mask, value } => match compare {
                            Compare::Equal => whole & mask == value,
                            Compare::NotEqual => whole != value,
                            Compare::Less => whole < value,
                            Compare::LessOrEqual => whole <= value,
                            Compare::Greater => whole > value,
                            Compare::GreaterOrEqual => whole >= value,
                        },
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

    fn condition() -> impl Strategy<Value = Condition> {
        let number = || prop_oneof![0..4_u64, Just(1 << 32), Just((1 << 32) + 1), Just(u64::MAX), any::<u64>()];
        let compare = prop_oneof![
            Just(Compare::Equal),
            Just(Compare::NotEqual),
            Just(Compare::Less),
            Just(Compare::LessOrEqual),
            Just(Compare::Greater),
            Just(Compare::GreaterOrEqual),
        ];
        (0..6_u32, compare, number(), prop::option::of(number())).prop_map(|(argument, compare, value, mask)| {
            let test = match mask {
                Some(mask) => Test::Wide { compare: Compare::Equal, mask, value },
                None => Test::Wide { compare, mask: u64::MAX, value },
            };
            Condition { argument, test }
        })
    }

    proptest! {
        #[test]
        fn wide_conditions_together_and_one_after_the_other(
            clauses in prop::collection::vec(prop::collection::vec(condition(), 1..6), 1..5),
            arguments in proptest::array::uniform6(prop_oneof![0..4_u64, Just(1 << 32), Just((1 << 32) + 1), Just(u64::MAX)]),
        ) {
            let actions = [Action::Allow, Action::Trap, Action::KillThread, Action::Trace(7), Action::Log].into_iter();
            let calls = vec!["read".into()];
            let rules = clauses.into_iter().zip(actions.cycle());
            let rules = rules.map(|(conditions, action)| Rule { calls: calls.clone(), action, conditions }).collect();
            let (default, newer) = (Action::Errno(EPERM), Action::KillProcess);
            let profile = Profile { rules, default, newer, audits: Some([0xc000_003e].into()) };
            let program = filter(Machine::X86_64, &profile);
            prop_assert_eq!(execute(&program, 0xc000_003e, 0, arguments), judge(&profile.rules, "read", arguments));
            prop_assert_eq!(execute(&program, 0xc000_003e, 1, arguments), RETURN_ERRNO | 1);
            prop_assert_eq!(execute(&program, 0xc000_003e, 9999, arguments), RETURN_KILL_PROCESS);
            prop_assert_eq!(execute(&program, 0x4000_0003, 3, arguments), RETURN_KILL_PROCESS, "no program of 32 bits");
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
