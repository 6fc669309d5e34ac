//! `rbuild run`

use std::io;
use std::process::ExitCode;

use executor::{ExitStatus, Network, Process, Root};
use graph::Platform;
use solver::RunContext;

use super::foreground::{Connect, EXIT_OWN, Failed, failed, follow_to_end};
use super::transfer::{mode, platform, shown};
use super::volumes::{self, Volumes};
use crate::emulation;
use crate::images::parse_name;
use crate::network::{self, Connected, StepNetwork};
use crate::report::Report;
use crate::request::add_host;
use crate::session::Session;
use crate::stored::{self, Stored, StoredError};
use crate::terminal;
use crate::worker::WorkError;

/// Run a program in an image
///
/// In the foreground, in the sandbox of RUN steps; what it writes outside of volumes is gone when it ends, and so is the
/// container. An image that is not in the store is pulled. The exit status is that of the program; 125 if rbuild failed, 126
/// if the program cannot be executed, 127 if there is none, 128 and the number of the signal that ended it.
#[derive(clap::Args, Debug, Clone)]
#[command(override_usage = "rbuild run [OPTIONS] IMAGE [CMD]...")]
pub struct Args {
    /// Name or id of an image; then what replaces its CMD
    #[arg(value_name = "IMAGE [CMD]", required = true, num_args = 1.., trailing_var_arg = true)]
    pub image_and_command: Vec<String>,
    /// Pass standard input on
    #[arg(short, long)]
    pub interactive: bool,
    /// Give the program a terminal
    #[arg(short, long)]
    pub tty: bool,
    /// Mount a directory or file of this machine: `/HOST:/CONTAINER`, with `:ro` if it may not be written
    #[arg(short, long = "volume", value_name = "HOST:CONTAINER[:ro]")]
    pub volumes: Vec<String>,
    /// Set a variable (`NAME=value`, or `NAME` to pass on the caller's)
    #[arg(short, long = "env", value_name = "NAME[=VALUE]")]
    pub env: Vec<String>,
    /// Working directory [default: the image's]
    #[arg(short, long, value_name = "DIR")]
    pub workdir: Option<String>,
    /// User, as USER of a Dockerfile has it [default: the image's]
    #[arg(short, long, value_name = "USER[:GROUP]")]
    pub user: Option<String>,
    /// Replace the image's ENTRYPOINT, and drop its CMD; an empty one removes it
    #[arg(long, value_name = "PROGRAM")]
    pub entrypoint: Option<String>,
    /// Remove the container when it has ended; this is always so
    #[arg(long)]
    pub rm: bool,
    /// Network: default (private where it can be had, otherwise the host's), private, none or host
    #[arg(long, value_name = "MODE")]
    pub network: Option<String>,
    /// What the program may use.
    #[command(flatten)]
    pub limits: crate::resources::ResourceArgs,
    /// Host name inside [default: a random one, with `--network=host` the machine's]
    #[arg(long, value_name = "NAME")]
    pub hostname: Option<String>,
    /// Make the root file system read-only; volumes of the image can be written
    #[arg(long)]
    pub read_only: bool,
    /// Add a line to /etc/hosts: `host:ip`; for `host-gateway` as the ip, this machine
    #[arg(long = "add-host", value_name = "HOST:IP")]
    pub add_hosts: Vec<String>,
    /// When to pull the image
    #[arg(long, value_name = "WHEN", default_value = "missing")]
    pub pull: PullWhen,
    /// Platform of the image, where there are several [default: this machine's]
    #[arg(long, value_name = "PLATFORM", env = "DOCKER_DEFAULT_PLATFORM")]
    pub platform: Option<Platform>,
}

/// `--pull`
#[derive(clap::ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum PullWhen {
    /// Ask the registry each time.
    Always,
    /// When the store does not have it.
    Missing,
    /// Not at all.
    Never,
}

/// Runs the program to its end.
///
/// # Errors
/// It could not be started.
pub async fn run(args: &Args, session: &Session) -> Result<ExitCode, Report> {
    match contained(args, session).await {
        Ok(status) => Ok(ExitCode::from(u8::try_from(status.shell_code()).unwrap_or(EXIT_OWN))),
        Err(failed) => Err(failed.report()),
    }
}

async fn contained(args: &Args, session: &Session) -> Result<ExitStatus, Failed> {
    if args.tty && args.interactive && !terminal::on_stdin() {
        let report = Report::new("the input device is not a terminal");
        return Err(report.with_hint("leave out -t to pass on what is piped in").into());
    }
    let image = find(args, session).await?;
    let quiet = quiet();
    let prepare = async |context: &RunContext| -> Result<_, WorkError> {
        session.layers.root(context, image.chain().as_ref(), true).await
    };
    let root = match image.is_here(session) {
        true => prepare(&quiet).await.map_err(Report::from)?,
        false => shown(session, mode(false)?, &format!("fetching layers of {}", image.label()), prepare).await?,
    };
    let mut process = process(args, &image, root.root(), connect(args, session).await?)?;
    let volumes = Volumes::of_image(session, &image, args.read_only).await?;
    process.mounts = volumes::in_order(volumes.mounts.clone(), &args.volumes)?;
    let launcher = session.launcher().map_err(|error| Report::of(&error))?;
    let platform = image.config.platform();
    let unsupported = emulation::prepare(&launcher, &platform, &mut process).await.map_err(|error| failed(&error))?;
    let connect = Connect { tty: args.tty, interactive: args.interactive };
    let status = follow_to_end(&launcher, process, connect, unsupported).await;
    // They were there for the program only.
    drop((root, volumes));
    status
}

/// The image, pulled if need be.
async fn find(args: &Args, session: &Session) -> Result<Stored, Report> {
    let text = args.image_and_command.first().map_or("", String::as_str);
    let wanted = platform(args.platform.as_ref());
    if args.pull != PullWhen::Always {
        match Stored::find(&session.store, text) {
            // Only who asks for a platform minds another one.
            Ok(image) if args.platform.is_none() || image.config.platform() == wanted => {
                return Ok(image);
            }
            Ok(_) if args.pull == PullWhen::Never => {
                return Err(Report::new(format!("{text} is not in the store for {wanted}")));
            }
            Ok(_) => {}
            Err(StoredError::Missing(_)) if args.pull == PullWhen::Missing && !text.starts_with("sha256:") => {}
            Err(error) => return Err(error.into()),
        }
    }
    let name = parse_name(text)?;
    let pull = async |context: &RunContext| stored::pull(session, &name, &wanted, context).await;
    let pulled = shown(session, mode(false)?, &format!("pulling {}", name.familiar()), pull).await?;
    Ok(pulled.image)
}

/// The network that was asked for, on the command line or in the configuration file.
async fn connect(args: &Args, session: &Session) -> Result<Connected, Report> {
    let wanted = match &args.network {
        Some(text) => StepNetwork::parse(text).map_err(Report::new)?,
        None => session.config.network,
    };
    let launcher = session.launcher().map_err(|error| Report::of(&error))?;
    let connected = network::connect(&launcher, wanted).await.map_err(|error| Report::of(&error))?;
    if let Some(why) = &connected.instead_of_private {
        eprintln!("WARNING: the program uses the host's network: {why}; --network=none isolates it");
    }
    Ok(connected)
}

/// The image's settings, and what the command line says instead.
fn process(args: &Args, image: &Stored, root: Root, connected: Connected) -> Result<Process, Report> {
    let config = &image.config.config;
    let mut process = Process::new(root, command(args, image)?);
    process.hostname = match &args.hostname {
        Some(name) => name.clone(),
        None if matches!(connected.network, Network::Host) => {
            rustix::system::uname().nodename().to_string_lossy().into_owned()
        }
        None => random_name()?,
    };
    process.env.push(format!("HOSTNAME={}", process.hostname));
    if args.tty {
        process.env.push("TERM=xterm".to_owned());
    }
    process.env.extend(config.env.iter().cloned());
    process.env.extend(environment(&args.env)?);
    let directory = args.workdir.as_deref().unwrap_or(&config.working_dir);
    if !directory.is_empty() {
        if !directory.starts_with('/') {
            return Err(Report::new(format!("the working directory {directory:?} is not an absolute path")));
        }
        process.cwd = directory.to_owned();
    }
    process.user = args.user.clone().unwrap_or_else(|| config.user.clone());
    process.readonly_root = args.read_only;
    let hosts = args.add_hosts.iter().map(|host| add_host(host)).collect::<Result<Vec<_>, _>>();
    process.files = network::etc_files(&connected, &hosts.map_err(Report::new)?, &process.hostname);
    process.files.hostname = Some(format!("{}\n", process.hostname).into_bytes());
    process.network = connected.network;
    args.limits.resources().map_err(Report::new)?.apply(&mut process);
    Ok(process)
}

/// Variables of `-e`: with a value, or the caller's.
pub(super) fn environment(given: &[String]) -> Result<Vec<String>, Report> {
    let mut variables = Vec::with_capacity(given.len());
    for variable in given {
        match variable.split_once('=') {
            Some(("", _)) => return Err(Report::new(format!("-e {variable:?}: a variable needs a name"))),
            Some(_) => variables.push(variable.clone()),
            None => match std::env::var(variable) {
                Ok(value) => variables.push(format!("{variable}={value}")),
                // As docker does: what the caller does not have is not set.
                Err(std::env::VarError::NotPresent) => {}
                Err(error) => return Err(Report::new(format!("-e {variable}: {error}"))),
            },
        }
    }
    Ok(variables)
}

fn command(args: &Args, image: &Stored) -> Result<Vec<String>, Report> {
    let config = &image.config.config;
    let own = args.image_and_command.get(1..).unwrap_or_default();
    let (entrypoint, cmd) = match &args.entrypoint {
        Some(program) if program.is_empty() => (Vec::new(), None),
        Some(program) => (vec![program.clone()], None),
        None => (config.entrypoint.clone().unwrap_or_default(), config.cmd.clone()),
    };
    let arguments = if own.is_empty() { cmd.unwrap_or_default() } else { own.to_vec() };
    let command: Vec<String> = entrypoint.into_iter().chain(arguments).collect();
    if command.is_empty() {
        let report = Report::new(format!("{} has neither ENTRYPOINT nor CMD", image.label()));
        return Err(report.with_hint("say what to run after its name"));
    }
    Ok(command)
}

fn random_name() -> Result<String, Report> {
    let mut bytes = [0; 6];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()).map_err(io::Error::from)?;
    Ok(hex::encode(bytes))
}

/// Progress that nobody sees.
pub(super) fn quiet() -> RunContext {
    let (progress, _) = solver::channel();
    RunContext { progress: progress.vertex("run"), cancelled: Default::default() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use graph::ImageConfig;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn image(entrypoint: &[&str], cmd: &[&str]) -> Stored {
        let list = |words: &[&str]| Some(words.iter().map(|&word| word.to_owned()).collect());
        let mut config = ImageConfig::scratch(&Platform::host());
        (config.config.entrypoint, config.config.cmd) = (list(entrypoint), list(cmd));
        Stored { id: graph::Digest::of(b"x"), bytes: Vec::new(), config, name: None, manifest: None }
    }

    #[test]
    fn the_command_is_put_together_as_docker_does() {
        let image = image(&["/entry", "-a"], &["default"]);
        for (line, want) in [
            ("i", "/entry -a default"),
            ("i x y", "/entry -a x y"),
            ("-it i -e -it --rm x", "/entry -a -e -it --rm x"),
            ("--entrypoint sh i", "sh"),
            ("--entrypoint sh i -c true", "sh -c true"),
            ("--entrypoint= i ls", "ls"),
        ] {
            let args = Line::parse_from(["run"].into_iter().chain(line.split(' '))).args;
            assert_eq!(command(&args, &image).unwrap().join(" "), want, "{line}");
        }
        let args = Line::parse_from(["run", "--entrypoint=", "i"]).args;
        assert!(command(&args, &image).is_err());
        assert!(Line::try_parse_from(["run", "--nonsense", "i"]).is_err());
    }
}
