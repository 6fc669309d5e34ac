//! What a stage is at one point between two instructions.

use graph::{ImageConfig, Meta, NodeId, Platform};

use crate::image_state::{self, DEFAULT_PATH, Layer, env_name};
use crate::instruction::{Instruction, InstructionKind, Word};
use crate::lint;
use crate::scope::{Scope, cross_target};
use crate::stage::{Origin, Stage};
use crate::{Diagnostic, Span};

use super::{Lowering, path};

/// The state of a stage. A stage that is based on it starts from a copy.
#[derive(Clone)]
pub(super) struct StageState {
    /// `None` is the empty tree.
    pub(super) root: Option<NodeId>,
    /// Variables as RUN sees them.
    pub(super) scope: Scope,
    /// ARGs that were declared, in order: history shows them.
    pub(super) args: Vec<(String, Option<String>)>,
    pub(super) image: ImageConfig,
    pub(super) platform: Platform,
    /// Position of the stage.
    pub(super) number: usize,
    pub(super) label: String,
    pub(super) ignore_cache: bool,
    /// A CMD of this stage, which a later ENTRYPOINT does not clear.
    pub(super) cmd_set: bool,
    /// The instruction at hand is a trigger.
    pub(super) onbuild: bool,
    /// Where findings about the instruction at hand are shown: a trigger's at the FROM that brought it.
    pub(super) place: Span,
    /// Nothing is known of the base image.
    pub(super) base_unknown: bool,
    /// The last instruction of each of these kinds, if this stage has one.
    pub(super) last_cmd: Option<Span>,
    pub(super) last_entrypoint: Option<Span>,
    pub(super) last_healthcheck: Option<Span>,
    /// CMD and ENTRYPOINT in shell form, of which a change to the exec form may turn out to be safe.
    pub(super) shell_forms: Vec<ShellForm>,
    /// There was a WORKDIR in this file.
    pub(super) workdir_set: bool,
    /// Time of new history entries.
    pub(super) created: Option<String>,
    progress: Progress,
}

/// A CMD or ENTRYPOINT that a shell runs.
#[derive(Clone)]
pub(super) struct ShellForm {
    pub(super) is_cmd: bool,
    /// The instruction.
    pub(super) span: Span,
    pub(super) command: Word,
}

/// The `[build 2/5]` in front of names.
#[derive(Clone, Default)]
struct Progress {
    platform: bool,
    stage: Option<String>,
    index: usize,
    total: usize,
}

impl StageState {
    /// Completes what an image config may leave open, and takes over what it says.
    pub(super) fn settle_image(&mut self) {
        self.image.config.on_build.clear();
        let config = &mut self.image.config;
        if !config.env.iter().any(|entry| env_name(entry) == "PATH") && self.platform.os != "windows" {
            config.env.push(format!("PATH={DEFAULT_PATH}"));
        }
        for entry in &config.env {
            let (name, value) = entry.split_once('=').unwrap_or((entry, ""));
            self.scope.set(name, value);
        }
        if !config.working_dir.is_empty() && !config.working_dir.starts_with('/') {
            config.working_dir = path::join("/", &config.working_dir);
        }
    }

    /// The working directory, cleaned.
    pub(super) fn cwd(&self) -> String {
        path::clean(&self.image.config.working_dir)
    }

    pub(super) fn record(&mut self, created_by: String, layer: Layer) {
        image_state::record(&mut self.image, created_by, layer, self.created.as_deref());
    }

    /// Numbers the next vertex of the stage and gives it its name.
    pub(super) fn numbered(&mut self, text: &str) -> String {
        self.progress.index += 1;
        self.name(text)
    }

    /// A name under the number that was given last.
    pub(super) fn name(&self, text: &str) -> String {
        self.name_with(text, Some(&self.scope))
    }

    fn name_with(&self, text: &str, scope: Option<&Scope>) -> String {
        let Progress { platform, stage, index, total } = &self.progress;
        if *total == 0 {
            return text.to_owned();
        }
        let mut name = "[".to_owned();
        if *platform {
            let cross = scope.map(|scope| cross_target(&self.platform, scope)).unwrap_or_default();
            name.push_str(&format!("{}{cross} ", self.platform));
        }
        if let Some(stage) = stage {
            name.push_str(&format!("{stage} "));
        }
        let width = total.to_string().len();
        name.push_str(&format!("{index:width$}/{total}] "));
        if self.onbuild {
            name.push_str("ONBUILD ");
        }
        name.push_str(text);
        name
    }
}

impl Lowering<'_> {
    /// The state before the first instruction.
    pub(super) fn begin(&mut self, number: usize, triggers: usize) -> Result<StageState, Diagnostic> {
        let plan = self.plan;
        let options = &plan.options;
        let stage = &plan.stages.list[number];
        let progress = Progress {
            platform: options.multi_platform,
            stage: (!plan.stages.lone).then(|| stage.label.clone()),
            index: 0,
            total: if stage.replaced { 0 } else { count_vertices(stage, triggers) },
        };
        let ignore_cache = options.no_cache.covers(stage.name.as_deref());
        if let Origin::Stage(base) = stage.origin {
            let mut state = self.take_state(base);
            state.image.config.on_build.clear();
            state.label.clone_from(&stage.label);
            return Ok(StageState {
                number,
                ignore_cache,
                cmd_set: false,
                onbuild: false,
                last_cmd: None,
                last_entrypoint: None,
                last_healthcheck: None,
                shell_forms: Vec::new(),
                progress,
                ..state
            });
        }
        let platform = match &stage.platform {
            Some(platform) if stage.origin != Origin::Empty => platform.clone(),
            _ => options.target_platform.clone(),
        };
        let mut state = StageState {
            root: None,
            scope: Scope::default(),
            args: Vec::new(),
            image: image_state::empty_image(&platform),
            platform,
            number,
            label: stage.label.clone(),
            ignore_cache,
            cmd_set: false,
            onbuild: false,
            place: stage.span,
            base_unknown: false,
            last_cmd: None,
            last_entrypoint: None,
            last_healthcheck: None,
            shell_forms: Vec::new(),
            workdir_set: false,
            created: plan.created.clone(),
            progress,
        };
        if let Some(image) = self.base_config(&stage.origin, &state.platform)? {
            state.base_unknown = self.is_unknown(&stage.origin, &state.platform);
            // An image without layers is nothing that could be of a wrong platform.
            if !state.base_unknown && !image.rootfs.diff_ids.is_empty() {
                self.check_platform(stage, &state.platform, &image);
            }
            state.image = image;
        }
        state.image.created = None;
        // Only images are shown as a FROM step; what an image or a context is shown as without a stage stays the same.
        let name = |state: &mut StageState, text: &str| match &stage.origin {
            Origin::Image(_) => {
                state.progress.index += 1;
                state.name_with(text, None)
            }
            _ => text.to_owned(),
        };
        let place = Some(plan.source.lines(stage.span));
        let wanted = state.platform.clone();
        state.root = self.tree(&stage.origin, &wanted, |text| Meta {
            name: name(&mut state, text),
            span: place,
            stage: Some(stage.label.clone()),
            ignore_cache: false,
        })?;
        if matches!(stage.origin, Origin::Context(_)) {
            self.use_path(&stage.origin, "/");
        }
        Ok(state)
    }

    /// The state of a finished stage; the last one that asks gets it without a copy.
    fn take_state(&mut self, number: usize) -> StageState {
        let (state, users) =
            self.states.remove(&number).expect("a base is lowered before the stages upon it, and kept");
        if users > 1 {
            self.states.insert(number, (state.clone(), users - 1));
        }
        state
    }

    fn check_platform(&mut self, stage: &Stage, wanted: &Platform, image: &ImageConfig) {
        let name = match &stage.origin {
            Origin::Image(name) => &name.written,
            _ => return,
        };
        lint::invalid_base_platform::check(&mut self.linter, stage.span, name, wanted, &image.platform());
    }

    /// Attaches the exec form to what was found of commands in shell form, where it means the same: a CMD that no
    /// ENTRYPOINT takes as arguments, an ENTRYPOINT that no CMD is appended to.
    pub(super) fn mend_commands(&mut self, state: &StageState) {
        for form in &state.shell_forms {
            let config = &state.image.config;
            let alone = if form.is_cmd { config.entrypoint.is_none() } else { config.cmd.is_none() };
            if !alone || state.base_unknown {
                continue;
            }
            if let Some(edit) = lint::json_args::exec_form(&self.plan.source, &form.command) {
                self.linter.mend(&lint::json_args::RULE, form.span, edit);
            }
        }
    }

    /// What a node of a stage says of itself.
    pub(super) fn meta(&self, state: &StageState, name: String, instruction: &Instruction) -> Meta {
        Meta {
            name,
            span: Some(self.plan.source.lines(instruction.span)),
            stage: Some(state.label.clone()),
            ignore_cache: state.ignore_cache,
        }
    }
}

/// How many numbered vertices a stage has. BuildKit counts every trigger, whatever it is.
fn count_vertices(stage: &Stage, triggers: usize) -> usize {
    let base = usize::from(!matches!(stage.origin, Origin::Empty | Origin::Stage(_)));
    let steps = stage.steps.iter().filter(|step| {
        matches!(
            step.instruction.kind,
            InstructionKind::Add(_) | InstructionKind::Copy(_) | InstructionKind::Run(_) | InstructionKind::Workdir(_)
        )
    });
    base + steps.count() + triggers
}
