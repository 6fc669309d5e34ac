//! `rbuild lint`, and the views of `rbuild build --check` and `--call`.

use std::path::Path;
use std::process::ExitCode;

use tokio_util::sync::CancellationToken;

use super::{build, interrupt};
use crate::build::BuildError;
use crate::check::{self, Checked};
use crate::progress::{self, Mode};
use crate::report::{EXIT_FAILURE, Report};
use crate::request::Request;
use crate::session::Session;

/// Check a Dockerfile without building it
///
/// Runs all checks that a build runs, on all stages. Exit status: 0 if there is nothing to complain about, 1 otherwise.
#[derive(clap::Args, Debug, Clone)]
pub struct Args {
    /// Build context: a directory, `-` for standard input, or a URL
    #[arg(value_name = "PATH", default_value = ".")]
    pub context: String,
    /// Name of the Dockerfile [default: PATH/Dockerfile]; `-` reads it from standard input
    #[arg(short, long, value_name = "FILE")]
    pub file: Option<String>,
    /// Check this stage and those it needs instead of all
    #[arg(long, value_name = "STAGE")]
    pub target: Option<String>,
    /// Set a build-time variable (`NAME=value`, or `NAME` to pass on the caller's)
    #[arg(long = "build-arg", value_name = "NAME[=VALUE]")]
    pub build_args: Vec<String>,
    /// Platform to check for
    #[arg(long, value_name = "PLATFORM", env = "DOCKER_DEFAULT_PLATFORM")]
    pub platform: Option<String>,
    /// How findings are printed
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub format: Format,
    /// Change the Dockerfile where a change mends a finding and the image stays what it is
    #[arg(long)]
    pub fix: bool,
}

/// How findings are printed.
#[derive(clap::ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// For people.
    Text,
    /// As BuildKit's lint results.
    Json,
    /// SARIF 2.1.0.
    Sarif,
}

/// Rounds of mending at most.
const ROUNDS: usize = 5;

/// What `--call` asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// To build.
    Build,
    /// What the checks find.
    Check,
    /// What the target can be given.
    Outline,
    /// The stages.
    Targets,
}

impl Call {
    /// Reads `METHOD[,format=json]`; whether JSON is wanted comes second.
    ///
    /// # Errors
    /// An unknown method or format, in words.
    pub fn parse(text: &str) -> Result<(Self, bool), String> {
        let mut parts = text.split(',');
        let call = match parts.next().unwrap_or_default() {
            "" | "build" => Self::Build,
            "check" | "lint" => Self::Check,
            "outline" => Self::Outline,
            "targets" => Self::Targets,
            other => return Err(format!("--call={other} is none of build, check, lint, outline and targets")),
        };
        let mut json = false;
        for part in parts {
            match part.trim() {
                "format=json" => json = true,
                "format=text" => json = false,
                other => return Err(format!("--call: {other:?} is neither format=json nor format=text")),
            }
        }
        Ok((call, json))
    }
}

/// Checks, and mends if that is asked for.
///
/// # Errors
/// What a person is to be told.
pub async fn run(args: &Args, session: &Session) -> Result<ExitCode, Report> {
    let request = request(args, session)?;
    let checked = look(request, session, true).await?;
    let checked = if args.fix { mend(args, session, checked).await? } else { checked };
    finish(&checked, args.format)
}

/// Carries out what `--call` asks for.
///
/// # Errors
/// What a person is to be told.
pub async fn call(call: Call, json: bool, request: Request, session: &Session) -> Result<ExitCode, Report> {
    let text = match call {
        Call::Build | Call::Check => {
            let checked = look(request, session, true).await?;
            return finish(&checked, if json { Format::Json } else { Format::Text });
        }
        Call::Targets => {
            let source =
                quietly(async |progress, cancelled| check::source(session, request, &progress, &cancelled).await);
            let source = &source.await?;
            let targets = frontend::targets(source).map_err(|problems| Report::of_dockerfile(source, &problems))?;
            if json { pretty(&check::targets_json(source, &targets)) } else { check::targets_text(&targets) }
        }
        Call::Outline => {
            // Of one target: the last if none is named.
            let checked = look(request, session, false).await?;
            if let Some(report) = checked.report() {
                return Err(report);
            }
            let outline = &checked.outline;
            if json { pretty(&check::outline_json(&checked.source, outline)) } else { check::outline_text(outline) }
        }
    };
    print(&text);
    Ok(ExitCode::SUCCESS)
}

fn request(args: &Args, session: &Session) -> Result<Request, Report> {
    let mut line = vec!["build".to_owned()];
    let mut flag = |name: &str, value: &str| line.push(format!("--{name}={value}"));
    args.file.iter().for_each(|file| flag("file", file));
    args.target.iter().for_each(|target| flag("target", target));
    args.build_args.iter().for_each(|arg| flag("build-arg", arg));
    args.platform.iter().for_each(|platform| flag("platform", platform));
    line.push("--".to_owned());
    line.push(args.context.clone());
    let wrong = |why: String| Report::new(why).with_exit_code(2);
    let build = build::Args::from_line(line).map_err(wrong)?;
    Request::from_args(&build, &session.config).map_err(wrong)
}

async fn look(request: Request, session: &Session, all: bool) -> Result<Checked, Report> {
    let checked =
        quietly(async |progress, cancelled| check::check(session, request, all, &progress, &cancelled).await).await?;
    for unknown in &checked.unknown {
        eprintln!("WARN: base image {unknown}; what depends on it was not checked");
    }
    Ok(checked)
}

/// Does something without a progress display, but not past Ctrl-C.
async fn quietly<T>(
    work: impl AsyncFnOnce(solver::Progress, CancellationToken) -> Result<T, BuildError>,
) -> Result<T, Report> {
    let (progress, events) = solver::channel();
    let display = progress::start(Mode::Quiet, events, &progress::Options::from_env());
    let cancelled = CancellationToken::new();
    let signals = interrupt::cancels(&cancelled, &progress);
    let done = work(progress, cancelled).await;
    drop(signals);
    let _ = display.finish();
    done.map_err(Report::from)
}

/// Writes the mended file, until nothing is left that can be mended: of changes that touch each other only one is made at a
/// time.
async fn mend(args: &Args, session: &Session, mut checked: Checked) -> Result<Checked, Report> {
    let path = match (args.file.as_deref(), Path::new(&args.context)) {
        (Some("-"), _) => return Err(Report::new("--fix needs a file that can be written").with_exit_code(2)),
        (Some(file), _) => Path::new(file).to_owned(),
        (None, context) => context.join("Dockerfile"),
    };
    let mut all = 0;
    for _ in 0..ROUNDS {
        let (text, mended) = frontend::lint::apply(&checked.source, &checked.findings);
        if mended == 0 {
            break;
        }
        let current = std::fs::read(&path).ok();
        if current.as_deref() != Some(checked.source.text().as_bytes()) {
            return Err(Report::new(format!("{} is not what was checked, so nothing was changed", path.display()))
                .with_hint("--fix changes UTF-8 files of a local context; name the Dockerfile with -f"));
        }
        std::fs::write(&path, text).map_err(|error| {
            let mut report = Report::new(format!("cannot write {}", path.display()));
            report.caused_by(error.to_string());
            report
        })?;
        all += mended;
        checked = look(request(args, session)?, session, true).await?;
    }
    if all > 0 {
        let plural = if all == 1 { "" } else { "s" };
        eprintln!("{}: {all} finding{plural} mended", path.display());
    }
    Ok(checked)
}

fn finish(checked: &Checked, format: Format) -> Result<ExitCode, Report> {
    let clean = checked.is_clean();
    match format {
        Format::Json => print(&pretty(&checked.json())),
        Format::Sarif => print(&pretty(&checked.sarif())),
        Format::Text => {
            print(&checked.text());
            eprintln!("{}", checked.conclusion());
        }
    }
    match checked.report() {
        Some(report) => Err(report),
        None if clean => Ok(ExitCode::SUCCESS),
        None => Ok(ExitCode::from(EXIT_FAILURE)),
    }
}

fn pretty(value: &serde_json::Value) -> String {
    format!("{value:#}\n")
}

#[expect(clippy::print_stdout, reason = "the view is this command's result")]
fn print(text: &str) {
    print!("{text}");
}

#[cfg(test)]
mod tests {
    use super::Call;

    #[test]
    fn calls() {
        assert_eq!(Call::parse("check"), Ok((Call::Check, false)));
        assert_eq!(Call::parse("lint,format=json"), Ok((Call::Check, true)));
        assert_eq!(Call::parse("outline"), Ok((Call::Outline, false)));
        assert_eq!(Call::parse("targets,format=text"), Ok((Call::Targets, false)));
        assert_eq!(Call::parse("build"), Ok((Call::Build, false)));
        assert!(Call::parse("subrequests.describe").is_err());
        assert!(Call::parse("check,format=xml").is_err());
    }
}
