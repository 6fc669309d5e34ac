//! Instructions that only change the image config: no layer, one line of history each.

use graph::image::{Empty, Healthcheck as ImageHealthcheck};

use crate::image_state::{Layer, go_healthcheck, go_list, go_quoted_list, set_env};
use crate::instruction::{
    ArgInstruction, CmdInstruction, CommandLine, EntrypointInstruction, EnvInstruction, ExposeInstruction,
    HealthcheckInstruction, KeyValue, LabelInstruction, MaintainerInstruction, ShellInstruction, StopsignalInstruction,
    UserInstruction, VolumeInstruction, Word,
};
use crate::lint;
use crate::outline::{OutlineArg, description};
use crate::scope::is_build_setting;
use crate::stage::Step;
use crate::{Diagnostic, Span};

use super::stage_state::{ShellForm, StageState};
use super::{Lowering, comments, expose, signal};

/// What a port takes of a config and of its history.
const PORT: usize = 128;

impl Lowering<'_> {
    /// Makes the argument a variable: from the command line, from its default, or from the global scope.
    pub(super) fn arg(&mut self, state: &mut StageState, step: &Step, arg: &ArgInstruction) -> Result<(), Diagnostic> {
        let plan = self.plan;
        let mut texts = Vec::with_capacity(arg.args.len());
        for definition in &arg.args {
            let name = definition.name.text.as_str();
            lint::secrets::check(&mut self.linter, comments(step), state.place, "ARG", name);
            let value = match (plan.options.build_args.get(name), &definition.value) {
                (Some(given), _) => Some(given.clone()),
                (None, Some(default)) => Some(self.word(state, default)?),
                (None, None) => plan.global.value(name).map(str::to_owned),
            };
            let used = self.uses.entry(state.number).or_default();
            used.names.insert(name.to_owned());
            if plan.options.build_args.contains_key(name)
                || definition.value.is_some()
                || plan.global.value(name).is_none()
            {
                let arg = OutlineArg {
                    name: name.to_owned(),
                    description: description(comments(step), name),
                    value: value.clone().unwrap_or_default(),
                    span: state.place,
                };
                used.own.insert(name.to_owned(), arg);
            }
            if let Some(value) = &value
                && !is_build_setting(name)
            {
                state.scope.set(name, value);
            }
            texts.push(match &value {
                Some(value) => format!("{name}={value}"),
                None => name.to_owned(),
            });
            if state.onbuild {
                self.declared.insert(name.to_owned());
            }
            state.args.push((name.to_owned(), value));
        }
        state.record(format!("ARG {}", texts.join(" ")), Layer::None);
        Ok(())
    }

    pub(super) fn env(&mut self, state: &mut StageState, step: &Step, env: &EnvInstruction) -> Result<(), Diagnostic> {
        // All values of a line are expanded before the first of them is set.
        let pairs = self.pairs(state, &env.vars)?;
        let source = self.text_of(state);
        lint::legacy_key_value::check(&mut self.linter, source, state.place, &step.instruction, &env.vars);
        let mut text = "ENV".to_owned();
        for (name, value) in &pairs {
            lint::secrets::check(&mut self.linter, comments(step), state.place, "ENV", name);
            text.push_str(&format!(" {name}={value}"));
            state.scope.set(name, value);
            set_env(&mut state.image.config.env, name, value);
        }
        state.record(text, Layer::None);
        Ok(())
    }

    pub(super) fn label(
        &mut self,
        state: &mut StageState,
        step: &Step,
        label: &LabelInstruction,
    ) -> Result<(), Diagnostic> {
        let pairs = self.pairs(state, &label.labels)?;
        let source = self.text_of(state);
        lint::legacy_key_value::check(&mut self.linter, source, state.place, &step.instruction, &label.labels);
        let mut text = "LABEL".to_owned();
        for (name, value) in pairs {
            text.push_str(&format!(" {name}={value}"));
            state.image.config.labels.insert(name, value);
        }
        state.record(text, Layer::None);
        Ok(())
    }

    fn pairs(&self, state: &StageState, pairs: &[KeyValue]) -> Result<Vec<(String, String)>, Diagnostic> {
        pairs.iter().map(|pair| Ok((self.word(state, &pair.key)?, self.word(state, &pair.value)?))).collect()
    }

    pub(super) fn cmd(&mut self, state: &mut StageState, step: &Step, cmd: &CmdInstruction) -> Result<(), Diagnostic> {
        let before = state.last_cmd.replace(state.place);
        self.check_command(state, step, before, &cmd.command, true);
        let args = command_args(state, &cmd.command);
        state.record(format!("CMD {}", go_quoted_list(&args)), Layer::None);
        state.image.config.cmd = non_empty(args);
        state.image.config.args_escaped = true;
        state.cmd_set = true;
        Ok(())
    }

    /// Checks a CMD or ENTRYPOINT; `before` is the one that it makes void.
    fn check_command(
        &mut self,
        state: &mut StageState,
        step: &Step,
        before: Option<Span>,
        command: &CommandLine,
        is_cmd: bool,
    ) {
        let instruction = &step.instruction;
        if let Some(before) = before {
            lint::multiple_instructions::check(&mut self.linter, before, instruction);
        }
        let CommandLine::Shell(command) = command else { return };
        if state.image.config.shell.as_ref().is_none_or(Vec::is_empty) {
            lint::json_args::check(&mut self.linter, state.place, instruction);
            if !state.onbuild {
                let form = ShellForm { is_cmd, span: state.place, command: command.clone() };
                state.shell_forms.push(form);
            }
        }
    }

    /// A new entry point does not fit the inherited command, so that is dropped; one of the same stage was meant for it.
    pub(super) fn entrypoint(
        &mut self,
        state: &mut StageState,
        step: &Step,
        entrypoint: &EntrypointInstruction,
    ) -> Result<(), Diagnostic> {
        let before = state.last_entrypoint.replace(state.place);
        self.check_command(state, step, before, &entrypoint.command, false);
        let args = command_args(state, &entrypoint.command);
        state.record(format!("ENTRYPOINT {}", go_quoted_list(&args)), Layer::None);
        state.image.config.entrypoint = non_empty(args);
        if !state.cmd_set {
            state.image.config.cmd = None;
        }
        Ok(())
    }

    pub(super) fn healthcheck(
        &mut self,
        state: &mut StageState,
        step: &Step,
        check: &HealthcheckInstruction,
    ) -> Result<(), Diagnostic> {
        if let Some(before) = state.last_healthcheck.replace(state.place) {
            lint::multiple_instructions::check(&mut self.linter, before, &step.instruction);
        }
        let nanoseconds = |duration: std::time::Duration| i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX);
        let check = match check {
            HealthcheckInstruction::None => {
                ImageHealthcheck { test: vec!["NONE".to_owned()], ..ImageHealthcheck::default() }
            }
            HealthcheckInstruction::Check(check) => {
                let (kind, args) = match &check.command {
                    CommandLine::Shell(line) => ("CMD-SHELL", vec![line.text.to_string()]),
                    CommandLine::Exec(args) => ("CMD", texts(args)),
                };
                ImageHealthcheck {
                    test: std::iter::once(kind.to_owned()).chain(args).collect(),
                    interval: nanoseconds(check.interval),
                    timeout: nanoseconds(check.timeout),
                    start_period: nanoseconds(check.start_period),
                    start_interval: nanoseconds(check.start_interval),
                    retries: i64::from(check.retries),
                }
            }
        };
        state.record(format!("HEALTHCHECK {}", go_healthcheck(&check)), Layer::None);
        state.image.config.healthcheck = Some(check);
        Ok(())
    }

    pub(super) fn shell(&mut self, state: &mut StageState, shell: &ShellInstruction) -> Result<(), Diagnostic> {
        let shell = texts(&shell.shell);
        state.record(format!("SHELL {}", go_list(&shell)), Layer::None);
        state.image.config.shell = Some(shell);
        Ok(())
    }

    pub(super) fn user(&mut self, state: &mut StageState, user: &UserInstruction) -> Result<(), Diagnostic> {
        let user = self.word(state, &user.user)?;
        state.record(format!("USER {user}"), Layer::None);
        state.image.config.user = user;
        Ok(())
    }

    pub(super) fn volume(
        &mut self,
        state: &mut StageState,
        volume: &VolumeInstruction,
        span: Span,
    ) -> Result<(), Diagnostic> {
        let mut paths = Vec::with_capacity(volume.paths.len());
        for word in &volume.paths {
            let path = self.word(state, word)?;
            if path.is_empty() {
                return Err(Diagnostic::new(span, "VOLUME specified can not be an empty string")
                    .with_hint(format!("{} is empty here", word.text)));
            }
            paths.push(path);
        }
        state.record(format!("VOLUME {}", go_list(&paths)), Layer::None);
        state.image.config.volumes.extend(paths.into_iter().map(|path| (path, Empty {})));
        Ok(())
    }

    pub(super) fn expose(
        &mut self,
        state: &mut StageState,
        step: &Step,
        expose: &ExposeInstruction,
    ) -> Result<(), Diagnostic> {
        let mut ports = Vec::new();
        for word in &expose.ports {
            let problem = |message: String| Diagnostic::new(word.span, message);
            let list = self.plan.expander.process_words(&word.text, &state.scope);
            for text in list.map_err(|error| problem(error.to_string()))?.words {
                let found = expose::ports(&text).map_err(problem)?;
                self.volume.spend(found.len() * PORT).map_err(|reason| problem(reason.to_string()))?;
                let (linter, comments, own) = (&mut self.linter, comments(step), !state.onbuild);
                lint::expose_proto_casing::check(linter, comments, state.place, word, &text, own);
                lint::expose_invalid_format::check(linter, comments, state.place, word, &text, own);
                ports.extend(found);
            }
        }
        state.record(format!("EXPOSE {}", go_list(&ports)), Layer::None);
        state.image.config.exposed_ports.extend(ports.into_iter().map(|port| (port, Empty {})));
        Ok(())
    }

    pub(super) fn stop_signal(
        &mut self,
        state: &mut StageState,
        stop: &StopsignalInstruction,
    ) -> Result<(), Diagnostic> {
        let name = self.word(state, &stop.signal)?;
        if !signal::is_known(&name) {
            let upper = name.to_ascii_uppercase();
            let bare = upper.strip_prefix("SIG").unwrap_or(&upper);
            return Err(Diagnostic::new(stop.signal.span, format!("invalid signal: {name}"))
                .with_suggestion(bare, signal::NAMES)
                .with_default_hint("use a name such as SIGTERM, or a number"));
        }
        state.record(format!("STOPSIGNAL {name}"), Layer::None);
        state.image.config.stop_signal = name;
        Ok(())
    }

    pub(super) fn maintainer(
        &mut self,
        state: &mut StageState,
        maintainer: &MaintainerInstruction,
    ) -> Result<(), Diagnostic> {
        let name = maintainer.name.text.to_string();
        state.record(format!("MAINTAINER {name}"), Layer::None);
        state.image.author = name;
        Ok(())
    }
}

trait DefaultHint {
    fn with_default_hint(self, hint: &str) -> Self;
}

impl DefaultHint for Diagnostic {
    /// For where no suggestion was found.
    fn with_default_hint(self, hint: &str) -> Self {
        if self.hint.is_some() { self } else { self.with_hint(hint) }
    }
}

/// What runs: as it is in exec form, behind the stage's shell otherwise.
fn command_args(state: &StageState, command: &CommandLine) -> Vec<String> {
    match command {
        CommandLine::Exec(args) => texts(args),
        CommandLine::Shell(line) => with_shell(state, line.text.to_string()),
    }
}

/// `line` behind the stage's shell.
pub(super) fn with_shell(state: &StageState, line: String) -> Vec<String> {
    let mut args = match &state.image.config.shell {
        Some(shell) if !shell.is_empty() => shell.clone(),
        _ if state.image.os == "windows" => ["cmd", "/S", "/C"].map(str::to_owned).to_vec(),
        _ => vec!["/bin/sh".to_owned(), "-c".to_owned()],
    };
    args.push(line);
    args
}

pub(super) fn texts(words: &[Word]) -> Vec<String> {
    words.iter().map(|word| word.text.to_string()).collect()
}

/// An empty list resets; in the config it is absent, as BuildKit writes it.
fn non_empty(args: Vec<String>) -> Option<Vec<String>> {
    Some(args).filter(|args| !args.is_empty())
}
