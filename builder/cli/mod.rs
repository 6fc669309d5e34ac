//! The command line: one file per subcommand, each an `Args` (whose doc comments are the help text) and one function.

pub mod attach;
pub mod build;
pub mod builds;
pub mod copy;
pub mod doctor;
pub mod du;
pub mod explain;
pub mod export;
mod filter;
mod foreground;
pub mod history;
pub mod images;
pub mod import;
pub mod inspect;
mod interrupt;
pub mod lint;
pub mod load;
pub mod login;
mod metadata;
pub mod prune;
pub mod pull;
pub mod push;
pub mod rmi;
pub mod run;
pub mod save;
pub mod shell;
mod table;
pub mod tag;
mod transfer;
pub mod verify;
mod volumes;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::report::Report;
use crate::session::{Session, Start};

/// Builds Dockerfiles into OCI images: one static binary, no daemon.
///
/// `rbuild [OPTIONS] PATH` is short for `rbuild build [OPTIONS] PATH`.
///
/// Exit status: 0 success, 1 the build or command failed, 2 wrong usage, 3 a step would have to run and `--fail-on-miss` forbids
/// it, 4 a registry failed or refused, 130 it was given up with Ctrl-C (once clears up, twice ends rbuild and its steps at once).
/// `rbuild run` and `rbuild shell` pass on the status of the program they ran (125, 126 and 127 as with docker).
#[derive(Parser, Debug)]
#[command(name = "rbuild", version, max_term_width = 100, disable_help_subcommand = true)]
pub struct Cli {
    /// Options of every command.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Options of every command.
#[derive(Args, Debug, Clone)]
pub struct Global {
    /// Directory that holds images, layers and the build cache
    /// [default: /var/lib/rbuild as root, $XDG_DATA_HOME/rbuild otherwise]
    #[arg(long, value_name = "DIR", env = "RBUILD_ROOT", global = true)]
    pub root: Option<PathBuf>,
    /// Configuration file (TOML) [default: /etc/rbuild/config.toml or $XDG_CONFIG_HOME/rbuild/config.toml]
    #[arg(long, value_name = "FILE", env = "RBUILD_CONFIG", global = true)]
    pub config: Option<PathBuf>,
}

/// The subcommands.
#[derive(Subcommand, Debug)]
#[expect(missing_docs, reason = "what each does is said by its arguments' help text")]
pub enum Command {
    Attach(attach::Args),
    Build(Box<build::Args>),
    Builds(builds::Args),
    Copy(copy::CopyArgs),
    Doctor(doctor::Args),
    Explain(explain::Args),
    Export(export::Args),
    /// Manage the build cache
    #[command(subcommand)]
    Builder(prune::Builder),
    Du(du::Args),
    History(history::Args),
    /// Manage images
    #[command(subcommand)]
    Image(prune::Image),
    Images(images::Args),
    Import(import::Args),
    Inspect(inspect::Args),
    Lint(lint::Args),
    Load(load::Args),
    Login(login::LoginArgs),
    Logout(login::LogoutArgs),
    Merge(copy::MergeArgs),
    Prune(prune::Args),
    Pull(pull::Args),
    Push(push::Args),
    Rmi(rmi::Args),
    Run(Box<run::Args>),
    Save(save::Args),
    Shell(Box<shell::Args>),
    /// Manage the state directory
    #[command(subcommand)]
    System(prune::System),
    Tag(tag::Args),
    Verify(Box<verify::VerifyArgs>),
}

/// Carries the command out.
///
/// # Errors
/// What a person is to be told.
pub async fn run(cli: Cli, start: Start) -> Result<ExitCode, Report> {
    if let Command::Doctor(args) = &cli.command {
        // It is to say what is wrong, with the store for one.
        return doctor::run(args, &cli.global, &start).await;
    }
    let open = |start| Session::open(&cli.global, start).map_err(|error| Report::of(&error));
    let mut session = open(start.clone())?;
    let result = match cli.command {
        Command::Build(args) => {
            let mut result = build::run(&args, &session).await;
            if result.is_err() && session.store.is_given_up() && !args.reads_stdin() {
                eprintln!(
                    "WARNING: the store's database was damaged: what can be relied on is kept, and the build begins anew"
                );
                session = open(start)?;
                result = build::run(&args, &session).await;
            }
            result
        }
        command => carry_out(command, &session).await,
    };
    // Whatever it was, what it added may be too much.
    keep_limit(&session).await;
    result
}

async fn carry_out(command: Command, session: &Session) -> Result<ExitCode, Report> {
    match command {
        Command::Attach(args) => attach::run(&args, session).await,
        // Dealt with above, since it may need another session.
        Command::Build(args) => build::run(&args, session).await,
        Command::Builder(command) => prune::builder(&command, session).await,
        Command::Builds(args) => builds::run(&args, session),
        Command::Copy(args) => copy::copy(&args, session).await,
        // Dealt with above, without a session.
        Command::Doctor(_) => Ok(ExitCode::SUCCESS),
        Command::Du(args) => du::run(&args, session).await,
        Command::Explain(args) => explain::run(&args, session),
        Command::Export(args) => export::run(&args, session).await,
        Command::History(args) => history::run(&args, session).await,
        Command::Image(command) => prune::image(&command, session).await,
        Command::Images(args) => images::run(&args, session).await,
        Command::Import(args) => import::run(&args, session).await,
        Command::Inspect(args) => inspect::run(&args, session).await,
        Command::Lint(args) => lint::run(&args, session).await,
        Command::Load(args) => load::run(&args, session).await,
        Command::Login(args) => login::login(&args, session).await,
        Command::Logout(args) => login::logout(&args).await,
        Command::Merge(args) => copy::merge(&args, session).await,
        Command::Prune(args) => prune::run(&args, session).await,
        Command::Pull(args) => pull::run(&args, session).await,
        Command::Push(args) => push::run(&args, session).await,
        Command::Rmi(args) => rmi::run(&args, session).await,
        Command::Run(args) => run::run(&args, session).await,
        Command::Save(args) => save::run(&args, session).await,
        Command::Shell(args) => shell::run(&args, session).await,
        Command::System(command) => prune::system(&command, session).await,
        Command::Tag(args) => tag::run(&args, session).await,
        Command::Verify(args) => verify::run(&args, session).await,
    }
}

/// Brings the store below its limit, if it has one.
async fn keep_limit(session: &Session) {
    let Some(limit) = session.limit() else { return };
    let store = std::sync::Arc::clone(&session.store);
    let kept = tokio::task::spawn_blocking(move || store.keep_below(limit, true)).await;
    match kept {
        Ok(Ok(size)) if size > limit => eprintln!(
            "WARNING: the store takes {}, more than max-used-space ({}): images keep the rest (rbuild du --verbose)",
            crate::progress::bytes(size),
            crate::progress::bytes(limit)
        ),
        Ok(Ok(_)) | Err(_) => {}
        Ok(Err(error)) => eprintln!("WARNING: the store could not be kept below max-used-space: {error}"),
    }
}

/// Whether the command starts steps, which must be known before there is a thread and so before arguments are parsed.
#[must_use]
pub fn starts_steps(args: impl Iterator<Item = OsString>) -> bool {
    let args = with_default_command(args.collect());
    let (position, _) = first_word(&args);
    args.get(position)
        .is_some_and(|word| ["build", "doctor", "run", "shell", "verify"].iter().any(|command| word == *command))
}

/// The exit code of a command line that cannot be parsed, where clap's would be `code`: `run` keeps low codes for the program.
#[must_use]
pub fn usage_exit_code(args: &[OsString], code: i32) -> u8 {
    let (position, _) = first_word(args);
    match code {
        0 => 0,
        _ if args.get(position).is_some_and(|word| word == "run" || word == "shell") => foreground::EXIT_OWN,
        code => u8::try_from(code).unwrap_or(2),
    }
}

/// Global options that take a value, so that the word after them is not taken for a command.
const GLOBAL_WITH_VALUE: [&str; 2] = ["--root", "--config"];

/// Inserts `build` where no subcommand was named: `rbuild -t app .` is `rbuild build -t app .`.
#[must_use]
pub fn with_default_command(args: Vec<OsString>) -> Vec<OsString> {
    let (position, known) = first_word(&args);
    let mut args = args;
    if !known && position < args.len() {
        args.insert(position, "build".into());
    }
    args
}

/// Position of the first word that is no global option, and whether it names a command or asks for help.
fn first_word(args: &[OsString]) -> (usize, bool) {
    let mut position = 1;
    while let Some(word) = args.get(position).map(|word| word.to_string_lossy()) {
        if GLOBAL_WITH_VALUE.iter().any(|flag| *flag == word) {
            position += 2;
        } else if GLOBAL_WITH_VALUE.iter().any(|flag| word.strip_prefix(flag).is_some_and(|rest| rest.starts_with('=')))
        {
            position += 1;
        } else {
            return (position, is_known(&word));
        }
    }
    (position, false)
}

/// Without clap's command tree, which takes a while to build: it is built once, where the arguments are parsed.
fn is_known(word: &str) -> bool {
    ["-h", "--help", "-V", "--version"].contains(&word) || <Command as Subcommand>::has_subcommand(word)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rewritten(line: &str) -> String {
        let args = line.split(' ').map(OsString::from).collect();
        let words: Vec<_> = with_default_command(args).into_iter().map(|word| word.into_string().unwrap()).collect();
        words.join(" ")
    }

    #[test]
    fn build_is_the_default_command() {
        assert_eq!(rewritten("rbuild -t a ."), "rbuild build -t a .");
        assert_eq!(rewritten("rbuild ."), "rbuild build .");
        assert_eq!(rewritten("rbuild --root /x -t a ."), "rbuild --root /x build -t a .");
        assert_eq!(rewritten("rbuild --root=/x ."), "rbuild --root=/x build .");
        assert_eq!(rewritten("rbuild build ."), "rbuild build .");
        assert_eq!(rewritten("rbuild --help"), "rbuild --help");
        assert_eq!(rewritten("rbuild"), "rbuild");
        assert_eq!(rewritten("rbuild --rootless"), "rbuild build --rootless");
    }

    #[test]
    fn only_builds_and_runs_need_a_launcher() {
        let starts = |line: &str| starts_steps(line.split(' ').map(OsString::from));
        for line in ["rbuild .", "rbuild -t images .", "rbuild --root x build .", "rbuild run images"] {
            assert!(starts(line), "{line}");
        }
        for line in ["rbuild --help", "rbuild --version"] {
            assert!(!starts(line), "{line}");
        }
    }

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
        for command in Cli::command().get_subcommands() {
            assert!(is_known(command.get_name()), "{}", command.get_name());
            assert!(command.get_all_aliases().all(is_known), "other names of {}", command.get_name());
        }
    }
}
