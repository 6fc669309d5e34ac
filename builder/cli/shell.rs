//! `rbuild shell`, and `rbuild build --on-error=shell`

use std::path::PathBuf;
use std::process::ExitCode;

use executor::{ExitStatus, Process};
use snapshotter::layer::Tree;

use super::foreground::{Connect, EXIT_OWN, Failed, follow_to_end};
use super::run::{environment, quiet};
use crate::brought_shell;
use crate::builds::{BuildRecord, Builds};
use crate::network::StepNetwork;
use crate::report::Report;
use crate::resources::Resources;
use crate::session::Session;
use crate::shell::{self, Moment, OpenError, World};
use crate::ssh::Agents;
use crate::terminal;
use crate::worker::{Secrets, StepPolicy};

/// Open a shell in a step of a build as it was left
///
/// Without a step, in the one that failed last. The shell has the step's mounts, user, directory, environment, network and
/// limits; secrets and ssh agents are given again. What it changes is gone when it ends, except in cache mounts. An image
/// without a shell gets a static one of this machine's. Exit status as with `rbuild run`.
#[derive(clap::Args, Debug, Clone, Default)]
#[command(override_usage = "rbuild shell [OPTIONS] [STEP] [-- CMD [ARG]...]")]
pub struct Args {
    /// Its number, its stage, or a part of its name (see `rbuild builds inspect`) [default: the last that failed]
    #[arg(value_name = "STEP")]
    pub step: Option<String>,
    /// Run this instead of a shell
    #[arg(last = true, value_name = "CMD")]
    pub command: Vec<String>,
    /// Of this build instead of the latest (see `rbuild builds`)
    #[arg(long, value_name = "ID", default_value = "latest")]
    pub build: String,
    /// As it was before the step instead of after
    #[arg(long)]
    pub before: bool,
    /// Secret for the step's mounts: `id=ID[,src=FILE|,env=NAME]`
    #[arg(long = "secret", value_name = "SPEC")]
    pub secrets: Vec<String>,
    /// ssh agent or keys for the step's mounts: `default` or `ID=SOCKET|KEY[,KEY]`
    #[arg(long = "ssh", value_name = "SPEC")]
    pub ssh: Vec<String>,
    /// Allow what the step asks for: network.host, security.insecure
    #[arg(long = "allow", value_name = "ENTITLEMENT", value_delimiter = ',')]
    pub allow: Vec<String>,
    /// Another user than the step's
    #[arg(short, long, value_name = "USER[:GROUP]")]
    pub user: Option<String>,
    /// Another directory than the step's
    #[arg(short, long, value_name = "DIR")]
    pub workdir: Option<String>,
    /// Set a variable (`NAME=value`, or `NAME` to pass on the caller's)
    #[arg(short, long = "env", value_name = "NAME[=VALUE]")]
    pub env: Vec<String>,
    /// Another network than the build's: default, private, none or host
    #[arg(long, value_name = "MODE")]
    pub network: Option<String>,
    /// The static shell for images without one: busybox, or a program that is a shell itself [default: this machine's busybox]
    #[arg(long, value_name = "FILE")]
    pub shell_binary: Option<PathBuf>,
    /// Other limits than the build's: what is given here replaces all of them.
    #[command(flatten)]
    pub limits: crate::resources::ResourceArgs,
}

/// Runs the shell to its end.
///
/// # Errors
/// There is no such step, or it cannot be opened.
pub async fn run(args: &Args, session: &Session) -> Result<ExitCode, Report> {
    let status = found(args, session).await.map_err(Failed::report)?;
    Ok(ExitCode::from(u8::try_from(status.shell_code()).unwrap_or(EXIT_OWN)))
}

async fn found(args: &Args, session: &Session) -> Result<ExitStatus, Failed> {
    let builds = Builds::new(session.store.builds_directory());
    let record = super::builds::find(&builds, &args.build)?;
    let position = choose(&record, args.step.as_deref())?;
    open(args, session, &record, position).await
}

/// Opens the step that just failed, for the person who sits in front of it.
pub(super) async fn after_failure(
    session: &Session,
    record: &BuildRecord,
    position: usize,
    build: &super::build::Args,
) {
    let args = Args {
        secrets: build.secrets.clone(),
        ssh: build.ssh.clone(),
        allow: build.allow.clone(),
        network: build.network.clone(),
        ..Args::default()
    };
    if let Err(failed) = open(&args, session, record, position).await {
        // The build has failed anyway, which is its exit code.
        let _ = failed.report().emit();
    }
}

/// The step that a person means.
fn choose(record: &BuildRecord, step: Option<&str>) -> Result<usize, Report> {
    let Some(text) = step else {
        let failed = record.steps.iter().rposition(|step| step.kept.is_some());
        return failed.ok_or_else(|| {
            let report = Report::new(format!("no step of build {} failed that could be opened", record.id));
            report.with_hint("name a step: rbuild builds inspect lists them, rbuild shell STEP opens one")
        });
    };
    let mut found = super::builds::steps(record, text)?;
    if found.len() > 1 {
        found.retain(|position| record.steps[*position].op.is_some());
    }
    if let Some(failed) = found.iter().find(|position| record.steps[**position].kept.is_some()) {
        return Ok(*failed);
    }
    let is_stage = |position: &usize| {
        record.steps[*position].stage.as_deref().is_some_and(|stage| stage.eq_ignore_ascii_case(text))
    };
    match found.as_slice() {
        [only] => Ok(*only),
        [.., last] if found.iter().all(is_stage) => Ok(*last),
        [] => Err(Report::new(format!("{text:?} names no step that leaves files"))),
        several => {
            let numbers: Vec<String> = several.iter().map(|position| format!("#{}", position + 1)).collect();
            Err(Report::new(format!("{text:?} is a part of several steps: {}", numbers.join(", "))))
        }
    }
}

async fn open(args: &Args, session: &Session, record: &BuildRecord, position: usize) -> Result<ExitStatus, Failed> {
    let wrong = |why: String| Report::new(why).with_exit_code(2);
    let given = args.limits.resources().map_err(wrong)?;
    let network = match &args.network {
        Some(text) => StepNetwork::parse(text).map_err(wrong)?,
        None => record.network,
    };
    let mut policy = StepPolicy {
        network,
        allow_host_network: network == StepNetwork::Host,
        resources: if given == Resources::default() { record.resources.clone() } else { given },
        secrets: Secrets::parse(&args.secrets).map_err(|error| wrong(error.to_string()))?,
        ssh: Agents::parse(&args.ssh).map_err(wrong)?,
        ..StepPolicy::default()
    };
    policy.allow(&args.allow).map_err(wrong)?;
    let moment = if args.before { Moment::Before } else { Moment::After };
    let mut world = shell::open(session, record, position, moment, policy, &quiet()).await.map_err(told)?;
    let connect = Connect { tty: terminal::on_stdin() && terminal::on_stdout(), interactive: true };
    let mut brought = None;
    let process = &mut world.opened.process;
    if args.command.is_empty() {
        process.args = match inside(process, &world.opened.tree) {
            Some(shell) => vec![shell],
            None => {
                let found = brought_shell::find(args.shell_binary.as_deref(), &session.store.scratch_directory());
                let shell = brought.insert(found.map_err(|why| Report::of(&why).with_hint(brought_shell::HINT))?);
                shell.mount(process)
            }
        };
    } else {
        process.args.clone_from(&args.command);
    }
    if let Some(user) = &args.user {
        process.user.clone_from(user);
    }
    if let Some(directory) = &args.workdir {
        process.cwd.clone_from(directory);
    }
    process.env.extend(environment(&args.env)?);
    if connect.tty && !process.env.iter().any(|variable| variable.starts_with("TERM=")) {
        let terminal = std::env::var("TERM").unwrap_or_else(|_| "xterm".to_owned());
        process.env.push(format!("TERM={terminal}"));
    }
    announce(record, position, args, &world);
    let launcher = session.launcher().map_err(|error| Report::of(&error))?;
    let status =
        follow_to_end(&launcher, world.opened.process.clone(), connect, world.opened.unsupported.clone()).await;
    world.opened.end();
    drop(brought);
    status
}

/// Says where the person is, before the terminal is no longer ours.
fn announce(record: &BuildRecord, position: usize, args: &Args, world: &World) {
    for mount in &world.missing {
        eprintln!("WARNING: what was mounted at {mount} is not kept, the mount is left out");
    }
    if !args.command.is_empty() {
        return;
    }
    let step = &record.steps[position];
    let name = crate::progress::neutralise_lines(&step.name).replace('\n', " ");
    let state = match (args.before, &step.error) {
        (true, _) => "before it ran",
        (false, Some(_)) => "as it failed",
        (false, None) => "as it ended",
    };
    let shell = world.opened.process.args.first().map_or("", String::as_str);
    eprintln!("#{} {name}, {state}: {shell}; what you change is gone when it ends", position + 1);
}

/// The shell of the image: the step's own, but bash where that is plain sh and there is one.
fn inside(process: &Process, tree: &Tree) -> Option<String> {
    let is_there = |path: &str| {
        let found = tree.resolve(path.as_bytes(), true).ok().and_then(|resolved| resolved.found);
        found.is_some_and(|found| {
            let file = tree.file_of(found).map_or(found.entry, |file| file.entry);
            !file.is_dir() && file.mode & 0o111 != 0
        })
    };
    let own = process.args.first().filter(|program| {
        let name = program.rsplit('/').next().unwrap_or_default();
        program.starts_with('/') && ["bash", "sh", "ash", "dash", "zsh", "ksh", "mksh", "fish"].contains(&name)
    });
    let preferred = own.filter(|own| *own != "/bin/sh").map(String::as_str);
    let usual = ["/bin/bash", "/usr/bin/bash", "/bin/sh", "/usr/bin/sh", "/bin/ash", "/busybox/sh"];
    preferred.into_iter().chain(usual).find(|path| is_there(path)).map(str::to_owned)
}

fn told(error: OpenError) -> Report {
    let hint = match &error {
        OpenError::Gone(_) => "so many failed steps are kept for so long; build again, then rbuild shell opens it",
        OpenError::NoResult(_) => "build again, then it can be opened",
        OpenError::NoFiles(_) => "rbuild builds inspect lists the steps; RUN, COPY, ADD and WORKDIR leave files",
        OpenError::Work(_) | OpenError::Session(_) => "",
    };
    match error {
        OpenError::Work(error) => Report::from(error),
        other if hint.is_empty() => Report::of(&other),
        other => Report::of(&other).with_hint(hint),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::builds::Step;

    fn step(name: &str, stage: &str, kept: bool) -> Step {
        Step {
            name: name.into(),
            stage: Some(stage.into()),
            op: Some(serde_json::Value::Null),
            kept: kept.then(|| graph::ContentDigest::of(name.as_bytes())),
            ..Step::default()
        }
    }

    #[test]
    fn a_step_is_named_by_number_stage_or_a_part_of_its_name() {
        let steps = vec![
            step("[base 1/2] FROM x", "base", false),
            step("[base 2/2] RUN make", "base", false),
            step("[1/2] RUN make test", "main", true),
            step("[2/2] RUN make install", "main", false),
        ];
        let mut record = BuildRecord { steps, ..BuildRecord::default() };
        let chosen = |record: &BuildRecord, text: Option<&str>| choose(record, text).map_err(|report| report.message);
        for (text, want) in [(None, 2), (Some("4"), 3), (Some("base"), 1), (Some("main"), 2), (Some("install"), 3)] {
            assert_eq!(chosen(&record, text), Ok(want), "{text:?}");
        }
        assert_eq!(chosen(&record, Some("make")), Ok(2), "the one that failed");
        record.steps[2].kept = None;
        assert!(chosen(&record, None).is_err());
        assert!(chosen(&record, Some("make")).is_err_and(|why| why.contains("#2, #3, #4")));
        assert!(chosen(&record, Some("nothing")).is_err());
    }
}
