//! RUN.

use std::borrow::Cow;
use std::collections::HashMap;

use graph::{BindSource, DeviceRequest, ExecOp, Mount, MountKind, NetworkMode, Op};

use crate::Diagnostic;
use crate::expand::Env;
use crate::image_state::Layer;
use crate::instruction::Mount as MountOptions;
use crate::instruction::{CommandLine, Heredoc, Instruction, MountType, RunInstruction};
use crate::stage::Step;

use super::config::{texts, with_shell};
use super::mount::Mounts;
use super::stage_state::StageState;
use super::{Lowering, upper_keyword};

/// Where a script of a here-document is mounted.
const SCRIPT_DIR: &str = "/dev/pipes/";

/// What a RUN starts.
struct Command {
    args: Vec<String>,
    /// A script to be mounted: name and content.
    script: Option<(String, String)>,
    /// What progress shows behind the instruction.
    summary: Option<String>,
}

impl Lowering<'_> {
    pub(super) fn run(&mut self, state: &mut StageState, step: &Step, run: &RunInstruction) -> Result<(), Diagnostic> {
        let instruction = &step.instruction;
        let options = &self.plan.options;
        let mut mount_options = Vec::with_capacity(run.mounts.len());
        for flag in &run.mounts {
            mount_options.push(flag.resolve(|text| self.expand(state, self.plan.expander, text))?);
        }
        let Command { args, script, summary } = command(state, run, instruction)?;

        let mut mounts = Mounts::new(state);
        let title = self.run_title(state, instruction.code(), summary, &mount_options);
        let name = state.numbered(&title);
        let meta = self.meta(state, name, instruction);
        if let Some((name, data)) = script {
            let node = self.inline_document(&format!("/{name}"), data, 0o755, &meta);
            let source = BindSource { input: Some(mounts.input(node)), selector: "/".to_owned() };
            mounts.add(Mount {
                dest: SCRIPT_DIR.trim_end_matches('/').to_owned(),
                kind: MountKind::Bind(source),
                readonly: true,
            });
        }
        for ((mount, flag), origin) in mount_options.iter().zip(&run.mounts).zip(&step.origins) {
            self.mount(state, mount, flag, origin, &mut mounts)?;
        }
        let Mounts { inputs, mounts, secret_env, ssh_socket, .. } = mounts.finish();

        let mut env = state.scope.to_vec();
        let size = |(name, value): &(String, String)| size_of::<(String, String)>() + name.len() + value.len();
        // All of this the step has for itself, and the arguments stand in the history, too.
        let words: usize = args.iter().map(|word| 2 * word.len()).sum();
        let own = words + state.image.config.user.len() + state.image.config.working_dir.len();
        let spent = self.volume.spend(own + env.iter().map(size).sum::<usize>());
        spent.map_err(|reason| Diagnostic::new(instruction.span, reason.to_string()))?;
        if let Some(socket) = ssh_socket
            && state.scope.value("SSH_AUTH_SOCK").is_none()
        {
            env.push(("SSH_AUTH_SOCK".to_owned(), socket));
        }
        let exec = ExecOp {
            root: state.root.map(|_| 0),
            args: args.clone(),
            env,
            cwd: state.cwd(),
            user: state.image.config.user.clone(),
            mounts,
            secret_env,
            secret_macs: Vec::new(),
            network: match run.network {
                None | Some(NetworkMode::Default) => options.network,
                Some(own) => own,
            },
            security: run.security.unwrap_or_default(),
            devices: run
                .devices
                .iter()
                .map(|device| DeviceRequest { name: device.name.clone(), required: device.required })
                .collect(),
            extra_hosts: options.extra_hosts.clone(),
            hostname: options.hostname.clone(),
            platform: state.platform.clone(),
            proxy: self.proxy.clone(),
        };
        let history = format!("RUN {}", history_text(state, &args));
        state.root = Some(self.graph.add(Op::Exec(Box::new(exec)), inputs, meta));
        state.record(history, Layer::Marked);
        Ok(())
    }

    /// The instruction as progress shows it. Quotes stay, and so do variables that only the shell can know; a variable
    /// that will hold a secret is masked, to show that it does.
    fn run_title(&self, state: &StageState, code: &str, summary: Option<String>, mounts: &[MountOptions]) -> String {
        let text = match summary {
            Some(summary) => Cow::Owned(format!("{code} ({summary})")),
            None => Cow::Borrowed(code),
        };
        let secrets = mounts.iter().filter(|mount| mount.kind == MountType::Secret);
        let masked = MaskedEnv { scope: &state.scope, secrets: secrets.filter_map(|m| m.env.as_deref()).collect() };
        let expander = self.plan.expander.raw_quotes(true).keep_unset(true);
        let expanded = expander.process_word(&text, &masked).map(|expansion| expansion.text).ok();
        let expanded = expanded.filter(|expanded| self.volume.spend(expanded.len()).is_ok());
        upper_keyword(&expanded.unwrap_or_else(|| text.into_owned()))
    }
}

struct MaskedEnv<'a> {
    scope: &'a crate::scope::Scope,
    secrets: Vec<&'a str>,
}

impl Env for MaskedEnv<'_> {
    fn get(&self, name: &str) -> Option<&str> {
        if self.secrets.contains(&name) { Some("****") } else { self.scope.value(name) }
    }
}

/// What is started. A here-document that is the whole command is a script: for its own interpreter if it begins with
/// `#!`, for the stage's shell otherwise. Any other here-document is the shell's business.
fn command(state: &StageState, run: &RunInstruction, instruction: &Instruction) -> Result<Command, Diagnostic> {
    let line = match &run.command {
        CommandLine::Exec(args) if args.is_empty() => {
            return Err(Diagnostic::new(instruction.span, "RUN needs a command").with_hint("RUN [] starts nothing"));
        }
        CommandLine::Exec(args) => return Ok(Command { args: texts(args), script: None, summary: None }),
        CommandLine::Shell(line) => &line.text,
    };
    let plain = |line: String| Command { args: with_shell(state, line), script: None, summary: None };
    let Some(first) = instruction.heredocs.first() else { return Ok(plain(line.to_string())) };
    if !matches!(crate::parse_heredoc(line), Ok(Some(_))) {
        return Ok(plain(with_bodies(line, &instruction.heredocs)));
    }
    let data = first.chomped();
    let summary = Some(summarise(&first.content));
    if data.starts_with("#!") {
        let name = first.name.text.to_string();
        if name.contains('/') || matches!(name.as_str(), "." | ".." | "") {
            let message = format!("the script of a here-document is a file called {name:?}, which is no file name");
            return Err(Diagnostic::new(first.name.span, message).with_hint("use a delimiter such as EOF"));
        }
        // BuildKit puts even the script's path through the shell.
        let args = with_shell(state, format!("{SCRIPT_DIR}{name}"));
        return Ok(Command { args, script: Some((name, data)), summary });
    }
    Ok(Command { summary, ..plain(data) })
}

/// The command with its here-documents behind it, as a shell reads them.
fn with_bodies(line: &str, heredocs: &[Heredoc]) -> String {
    let mut text = line.to_owned();
    for heredoc in heredocs {
        text.push('\n');
        text.push_str(&heredoc.content);
        text.push_str(&heredoc.name.text);
    }
    text
}

/// The first line of a script.
fn summarise(script: &str) -> String {
    let script = script.trim();
    match script.split_once('\n') {
        Some((first, _)) => format!("{}...", first.trim_end_matches('\r')),
        None => script.to_owned(),
    }
}

/// What history keeps of a RUN: the declared ARGs with their number, then what was started.
fn history_text(state: &StageState, args: &[String]) -> String {
    let mut shown: Vec<String> = Vec::new();
    let mut places: HashMap<&str, usize> = HashMap::new();
    for (name, value) in &state.args {
        let value = state.scope.value(name).or(value.as_deref()).unwrap_or_default();
        let text = format!("{name}={value}");
        match places.get(name.as_str()) {
            Some(place) => shown[*place] = text,
            None => {
                places.insert(name, shown.len());
                shown.push(text);
            }
        }
    }
    let mut parts = Vec::with_capacity(shown.len() + args.len() + 1);
    if !shown.is_empty() {
        parts.push(format!("|{}", shown.len()));
        parts.extend(shown);
    }
    parts.extend(args.iter().cloned());
    parts.join(" ")
}
