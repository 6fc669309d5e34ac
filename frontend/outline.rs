//! What a build can be given: the arguments, secrets and agents that a target and the stages behind it use.

use std::collections::{BTreeMap, BTreeSet};

use crate::Span;
use crate::instruction::Word;
use crate::plan::Plan;
use crate::stage::Origin;

/// What a target can be given.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Outline {
    /// The target's name, if it has one.
    pub name: String,
    /// The comment above it.
    pub description: String,
    /// Build arguments, in the order of the file.
    pub args: Vec<OutlineArg>,
    /// Secrets, in the order of the file.
    pub secrets: Vec<OutlineMount>,
    /// Agents, in the order of the file.
    pub ssh: Vec<OutlineMount>,
}

/// A build argument.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct OutlineArg {
    /// Its name.
    pub name: String,
    /// The comment above it.
    pub description: String,
    /// Its value in this build.
    pub value: String,
    /// The ARG.
    pub span: Span,
}

/// A secret or an agent.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct OutlineMount {
    /// Its id.
    pub name: String,
    /// The build fails without it.
    pub required: bool,
    /// The RUN.
    pub span: Span,
}

/// An ARG before the first FROM.
#[derive(Clone, Debug)]
pub(crate) struct GlobalArg {
    pub(crate) arg: OutlineArg,
    /// The variables in its default.
    pub(crate) needs: BTreeSet<String>,
}

/// What the instructions of one stage use.
#[derive(Clone, Debug, Default)]
pub(crate) struct StageUse {
    /// Names of its ARGs.
    pub(crate) names: BTreeSet<String>,
    /// Those that do not take their value from the global scope.
    pub(crate) own: BTreeMap<String, OutlineArg>,
    pub(crate) secrets: Vec<OutlineMount>,
    pub(crate) ssh: Vec<OutlineMount>,
}

/// The comment that describes `name`: the first that begins with it.
pub(crate) fn description(comments: &[Word], name: &str) -> String {
    let described = comments.iter().filter(|_| !name.is_empty());
    described.filter_map(|comment| comment.text.strip_prefix(name)?.strip_prefix(' ')).next().unwrap_or("").to_owned()
}

/// Puts together what was noted while the stages were lowered.
pub(crate) fn collect(plan: &Plan, uses: &BTreeMap<usize, StageUse>) -> Outline {
    let target = &plan.stages.list[plan.target];
    let mut outline = Outline {
        name: target.name.clone().unwrap_or_default(),
        description: target.description.clone(),
        ..Outline::default()
    };
    let nothing = StageUse::default();
    let mut seen = BTreeSet::new();
    let mut open = vec![plan.target];
    let mut visited = BTreeSet::new();
    while let Some(number) = open.pop() {
        if !visited.insert(number) {
            continue;
        }
        let stage = &plan.stages.list[number];
        let used = uses.get(&number).unwrap_or(&nothing);
        for name in needed(plan, used, stage.from_args.iter().chain(&used.names)) {
            let global = || plan.global_args.get(&name).map(|global| &global.arg);
            if let Some(arg) = used.own.get(&name).or_else(global).filter(|_| !seen.contains(&name)) {
                outline.args.push(arg.clone());
                seen.insert(name);
            }
        }
        add_new(&mut outline.secrets, &used.secrets);
        add_new(&mut outline.ssh, &used.ssh);
        // What the stage is made from comes before what it copies from: the first one to use a name explains it.
        let steps = stage.steps.iter().flat_map(|step| &step.origins);
        let mut next: Vec<usize> = steps.filter_map(stage_of).collect();
        next.extend(stage_of(&stage.origin));
        open.extend(next);
    }
    outline.args.sort_by_key(|arg| arg.span);
    outline.secrets.sort_by_key(|mount| mount.span);
    outline.ssh.sort_by_key(|mount| mount.span);
    outline
}

fn stage_of(origin: &Origin) -> Option<usize> {
    match origin {
        Origin::Stage(number) => Some(*number),
        _ => None,
    }
}

/// The names, and those that their defaults are made of.
fn needed<'a>(plan: &Plan, used: &StageUse, names: impl Iterator<Item = &'a String>) -> BTreeSet<String> {
    let mut open: Vec<&String> = names.collect();
    let mut all = BTreeSet::new();
    while let Some(name) = open.pop() {
        if !all.insert(name.clone()) || used.own.contains_key(name) {
            continue;
        }
        open.extend(plan.global_args.get(name).into_iter().flat_map(|global| &global.needs));
    }
    all
}

fn add_new(all: &mut Vec<OutlineMount>, some: &[OutlineMount]) {
    for mount in some {
        if all.iter().all(|known| known.name != mount.name) {
            all.push(mount.clone());
        }
    }
}
