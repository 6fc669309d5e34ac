//! From a plan and the images it needs to a graph and an image config.
//!
//! Each reachable stage is worked through from its first instruction to its last. An instruction either adds a node to the
//! graph and moves the stage's root to it, or changes the image config, and always leaves a line of history. One file per
//! family of instructions; this one has what they share.

mod config;
mod copy;
mod expose;
pub(crate) mod git;
mod mount;
mod owner;
mod path;
mod run;
mod signal;
mod stage_state;
mod tree;
mod workdir;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;

use graph::{Graph, ImageConfig, NodeId, Op, Platform, ProxyEnv};

use crate::expand::{ExpandError, Expander, failed};
use crate::images::Images;
use crate::instruction::{InstructionKind, Word};
use crate::lint::{self, Finding, Linter};
use crate::outline::{self, Outline, StageUse};
use crate::plan::Plan;
use crate::reach::Reach;
use crate::scope::{Volume, is_build_setting, is_predefined, proxy_env};
use crate::stage::{Origin, Step};
use crate::{Diagnostic, Diagnostics, Span};

use stage_state::StageState;

/// A Dockerfile as a graph.
pub struct Lowered {
    /// All that must be done; nodes in topological order.
    pub graph: Graph<Op>,
    /// The root file system of the result; `None` is the empty tree.
    pub root: Option<NodeId>,
    /// The config of the result. `rootfs.diff_ids` is empty and new history entries have no `created` (unless
    /// `SOURCE_DATE_EPOCH` says which): both are known once the layers exist. Each history entry without `empty_layer` is
    /// one layer.
    pub config: ImageConfig,
    /// Platform of the result.
    pub platform: Platform,
    /// What was accepted but is probably not meant. One that is about the command line has an empty span at 0.
    pub warnings: Vec<Diagnostic>,
    /// What the checks found, in the order of the file.
    pub findings: Vec<Finding>,
    /// The findings as the error that `check=error=true` makes of them.
    pub violation: Option<Diagnostic>,
    /// What the target can be given.
    pub outline: Outline,
    /// The directories of the caller that the graph reads.
    pub local_contexts: Vec<LocalContext>,
    /// What an SBOM scanner should look at beside the result.
    pub scan: ScanTargets,
}

impl fmt::Debug for Lowered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nodes = self.graph.len();
        f.debug_struct("Lowered").field("nodes", &nodes).field("platform", &self.platform).finish_non_exhaustive()
    }
}

/// A directory of the caller, and what of it is read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LocalContext {
    /// `context`, or the name given with `--build-context`.
    pub name: String,
    /// Paths and patterns from the directory's root; `/` is all of it.
    pub paths: Vec<String>,
}

/// `BUILDKIT_SBOM_SCAN_CONTEXT` and `BUILDKIT_SBOM_SCAN_STAGE`.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ScanTargets {
    /// The main build context.
    pub context: bool,
    /// Stages beside the target, by name, with their root.
    pub stages: Vec<(String, Option<NodeId>)>,
}

/// Lowers a plan. All images that [`Plan::missing_images`] names must be known.
pub fn lower(plan: &Plan, images: &Images) -> Result<Lowered, Diagnostics> {
    let reach = Reach::compute(plan, images)?;
    if !reach.missing.is_empty() {
        let problems = reach.missing.into_iter().map(|request| {
            let message = format!("image {} ({}) was not resolved", request.written, request.platform);
            Diagnostic::new(request.span.unwrap_or_default(), message)
        });
        return Err(Diagnostics(problems.collect()));
    }
    let mut lowering = Lowering::new(plan, images, &reach);
    for &stage in &reach.stages {
        lowering.stage(stage)?;
    }
    match lowering.problems.is_empty() {
        true => Ok(lowering.finish()),
        false => Err(Diagnostics(lowering.problems)),
    }
}

/// What is under way.
struct Lowering<'a> {
    plan: &'a Plan,
    images: &'a Images,
    reach: &'a Reach,
    graph: Graph<Op>,
    proxy: ProxyEnv,
    /// Stages that are done, by position.
    roots: HashMap<usize, Option<NodeId>>,
    /// By how many FROMs, or as the result, a stage's state is needed.
    users: HashMap<usize, usize>,
    /// States of stages that are still needed, and how often.
    states: HashMap<usize, (StageState, usize)>,
    /// Results of other builds that were copied into this graph, by context name.
    imported: HashMap<String, Option<NodeId>>,
    locals: BTreeMap<String, BTreeSet<String>>,
    warnings: Vec<Diagnostic>,
    /// What is wrong with instructions whose failure does not lead to that of others.
    problems: Vec<Diagnostic>,
    linter: Linter,
    /// What was used and is not set, by the instruction at hand.
    undefined: RefCell<Vec<String>>,
    volume: Volume,
    /// What each stage uses of what it can be given.
    uses: BTreeMap<usize, StageUse>,
    declared: BTreeSet<String>,
    scan: ScanTargets,
}

impl<'a> Lowering<'a> {
    fn new(plan: &'a Plan, images: &'a Images, reach: &'a Reach) -> Self {
        let mut users = HashMap::from([(plan.target, 1)]);
        for stage in &reach.stages {
            if let Origin::Stage(base) = plan.stages.list[*stage].origin {
                *users.entry(base).or_default() += 1;
            }
        }
        Self {
            plan,
            images,
            reach,
            graph: Graph::new(),
            proxy: proxy_env(&plan.options),
            roots: HashMap::new(),
            users,
            states: HashMap::new(),
            imported: HashMap::new(),
            locals: BTreeMap::new(),
            warnings: plan.warnings.clone(),
            problems: Vec::new(),
            linter: plan.linter.clone(),
            undefined: RefCell::new(Vec::new()),
            volume: Volume::default(),
            uses: BTreeMap::new(),
            declared: plan.declared_args.clone(),
            scan: ScanTargets::default(),
        }
    }

    /// Works through one stage; those it is based on are done.
    fn stage(&mut self, number: usize) -> Result<(), Diagnostics> {
        let plan = self.plan;
        let stage = &plan.stages.list[number];
        let triggers = self.reach.triggers.get(&number).map_or(&[][..], Vec::as_slice);
        let mut state = self.begin(number, triggers.len())?;
        if !stage.replaced {
            state.settle_image();
            for step in triggers.iter().chain(&stage.steps) {
                state.onbuild = step.onbuild;
                state.place = if step.onbuild { stage.span } else { step.instruction.span };
                let done = self.step(&mut state, step);
                self.report_undefined(&state, step);
                let done = done.map_err(|problem| match step.onbuild {
                    // The places inside a trigger are not places of the Dockerfile.
                    true => {
                        let message = format!("ONBUILD {} of the base: {}", step.instruction.code(), problem.message);
                        Diagnostic { message, span: stage.span, related: Vec::new(), ..problem }
                    }
                    false => problem,
                });
                match (done, &step.instruction.kind) {
                    (Ok(()), _) => {}
                    (Err(problem), kind) => {
                        self.problems.push(problem);
                        // Without the variable whatever uses it would be wrong as well.
                        let is_variable = matches!(kind, InstructionKind::Arg(_) | InstructionKind::Env(_));
                        if is_variable || self.volume.is_spent() {
                            return Err(Diagnostics(std::mem::take(&mut self.problems)));
                        }
                    }
                }
            }
            self.mend_commands(&state);
            self.note_scan(number, &state);
        }
        self.roots.insert(number, state.root);
        if let Some(&users) = self.users.get(&number) {
            self.states.insert(number, (state, users));
        }
        Ok(())
    }

    fn step(&mut self, state: &mut StageState, step: &Step) -> Result<(), Diagnostic> {
        let instruction = &step.instruction;
        match &instruction.kind {
            InstructionKind::Run(run) => self.run(state, step, run),
            InstructionKind::Copy(copy) => self.copy(state, step, &copy::Request::of_copy(copy)),
            InstructionKind::Add(add) => self.copy(state, step, &copy::Request::of_add(add)),
            InstructionKind::Workdir(workdir) => self.workdir(state, step, workdir),
            InstructionKind::Arg(arg) => self.arg(state, step, arg),
            InstructionKind::Env(env) => self.env(state, step, env),
            InstructionKind::Label(label) => self.label(state, step, label),
            InstructionKind::Cmd(cmd) => self.cmd(state, step, cmd),
            InstructionKind::Entrypoint(entrypoint) => self.entrypoint(state, step, entrypoint),
            InstructionKind::Healthcheck(check) => self.healthcheck(state, step, check),
            InstructionKind::Shell(shell) => self.shell(state, shell),
            InstructionKind::User(user) => self.user(state, user),
            InstructionKind::Volume(volume) => self.volume(state, volume, instruction.span),
            InstructionKind::Expose(expose) => self.expose(state, step, expose),
            InstructionKind::Stopsignal(signal) => self.stop_signal(state, signal),
            InstructionKind::Maintainer(maintainer) => self.maintainer(state, maintainer),
            InstructionKind::Onbuild(onbuild) => {
                state.image.config.on_build.push(onbuild.trigger.clone());
                Ok(())
            }
            // The parser makes a new stage of it, and triggers with it are refused.
            InstructionKind::From(_) => Ok(()),
        }
    }

    /// A word with the stage's variables in it.
    fn word(&self, state: &StageState, word: &Word) -> Result<String, Diagnostic> {
        self.expand(state, self.plan.expander, &word.text)
            .map_err(|error| Diagnostic::new(word.span, error.to_string()))
    }

    /// Expands a text, and notes which of its variables nothing sets.
    fn expand(&self, state: &StageState, expander: Expander, text: &str) -> Result<String, ExpandError> {
        let done = expander.process_word(text, &state.scope)?;
        self.volume.spend(done.text.len()).map_err(|reason| failed(text, reason))?;
        // What an ARG declares may be without a value; of a base that is not known anything may be set.
        let args = |name: &String| state.args.iter().any(|(arg, _)| arg == name);
        if !state.base_unknown {
            let undefined = done.unset.iter().filter(|name| !is_build_setting(name) && !args(name));
            let messages = undefined.map(|name| lint::undefined_var::message(name, &state.scope));
            self.undefined.borrow_mut().extend(messages);
        }
        Ok(done.text)
    }

    fn report_undefined(&mut self, state: &StageState, step: &Step) {
        for message in self.undefined.take() {
            lint::undefined_var::check(&mut self.linter, comments(step), state.place, message);
        }
    }

    /// The text in which an instruction stands; a trigger does not stand in the Dockerfile.
    fn text_of(&self, state: &StageState) -> Option<&'a crate::SourceFile> {
        (!state.onbuild).then_some(&self.plan.source)
    }

    fn optional_word(&self, state: &StageState, word: Option<&Word>) -> Result<Option<String>, Diagnostic> {
        word.map(|word| self.word(state, word)).transpose()
    }

    /// The instruction's text as progress shows it: keyword in upper case, variables replaced where that works.
    fn display(&self, state: &StageState, code: &str) -> String {
        let text = state.scope.expand(self.plan.expander, code).ok();
        let text = text.filter(|text| self.volume.spend(text.len()).is_ok());
        upper_keyword(text.as_deref().unwrap_or(code))
    }

    fn note_scan(&mut self, number: usize, state: &StageState) {
        let enabled = |name: &str| {
            let local = state.args.iter().rev().find(|(arg, value)| arg == name && value.is_some());
            let value = local.and_then(|(_, value)| value.as_deref()).or_else(|| self.plan.global.value(name));
            value.is_some_and(|value| {
                crate::scope::parse_bool(value).unwrap_or_else(|| value.split(',').any(|stage| stage == state.label))
            })
        };
        if number == self.plan.target {
            self.scan.context |= enabled("BUILDKIT_SBOM_SCAN_CONTEXT");
        } else if enabled("BUILDKIT_SBOM_SCAN_STAGE") {
            self.scan.stages.push((state.label.clone(), state.root));
        }
    }

    fn finish(mut self) -> Lowered {
        let plan = self.plan;
        let options = &plan.options;
        let (state, _) = self.states.remove(&plan.target).expect("the target is reachable and is kept for the result");
        let mut config = state.image;
        config.config.labels.extend(options.labels.iter().cloned());
        config.rootfs.kind = "layers".to_owned();
        config.rootfs.diff_ids.clear();
        let wanted = &options.target_platform;
        if !options.implicit_platform {
            let same = config.os == wanted.os && config.architecture == wanted.architecture;
            config.os.clone_from(&wanted.os);
            config.architecture.clone_from(&wanted.architecture);
            if !wanted.variant.is_empty() || !same {
                config.variant.clone_from(&wanted.variant);
            }
        }
        if let Ok(platform) = config.platform().to_string().parse::<Platform>() {
            config.os = platform.os;
            config.architecture = platform.architecture;
            config.variant = platform.variant;
        }
        self.warn_unused_args();
        let platform = config.platform();
        let local_contexts = self.locals.into_iter().map(|(name, paths)| LocalContext {
            name,
            paths: if paths.contains("/") { vec!["/".to_owned()] } else { paths.into_iter().collect() },
        });
        let local_contexts = local_contexts.collect();
        let (findings, violation) = self.linter.finish();
        Lowered {
            graph: self.graph,
            root: state.root,
            config,
            platform,
            warnings: self.warnings,
            findings,
            violation,
            outline: outline::collect(plan, &self.uses),
            local_contexts,
            scan: self.scan,
        }
    }

    fn warn_unused_args(&mut self) {
        let unused = |name: &&str| !self.declared.contains(*name) && !is_predefined(name);
        let given = self.plan.options.build_args.keys().map(String::as_str);
        let names: Vec<&str> = given.filter(unused).collect();
        if names.is_empty() {
            return;
        }
        let message = format!("one or more build-args [{}] were not consumed", names.join(" "));
        let warning = Diagnostic::new(Span::default(), message);
        let hints = names.iter().map(|name| {
            let known = self.declared.iter().take(200).map(String::as_str);
            warning.clone().with_suggestion(name, known)
        });
        let hinted = hints.take(20).find(|warning| warning.hint.is_some());
        self.warnings.push(hinted.unwrap_or(warning));
    }
}

/// The comments that may switch checks off; those above a trigger stand in another file.
fn comments(step: &Step) -> &[Word] {
    if step.onbuild { &[] } else { &step.instruction.comments }
}

fn upper_keyword(text: &str) -> String {
    match text.split_once(' ') {
        Some((keyword, rest)) => format!("{} {rest}", keyword.to_uppercase()),
        None => text.to_uppercase(),
    }
}
