//! `rbuild builds`

use std::io::{self, Write as _};
use std::process::ExitCode;
use std::time::Duration;

use serde_json::json;

use super::table::{ago, table};
use crate::builds::{BuildRecord, Builds, Step};
use crate::progress::{Colours, bytes, neutralise};
use crate::report::Report;
use crate::session::Session;

/// List builds that are over, show their steps and what these printed
#[derive(clap::Args, Debug, Clone)]
pub struct Args {
    /// What to do instead of listing.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Only ids
    #[arg(short, long)]
    pub quiet: bool,
    /// `table`, or `json` for one object per line
    #[arg(long, value_parser = ["table", "json"], default_value = "table")]
    pub format: String,
}

/// The subcommands.
#[derive(clap::Subcommand, Debug, Clone)]
pub enum Command {
    /// Show the steps of a build: times, hits, bytes, and what they used
    Inspect {
        /// Its id, the beginning or the end of it, or `latest`
        #[arg(value_name = "ID", default_value = "latest")]
        build: String,
        /// `table`, or `json` for all that is known
        #[arg(long, value_parser = ["table", "json"], default_value = "table")]
        format: String,
    },
    /// Print what the steps of a build printed, in full
    Logs {
        /// Its id, the beginning or the end of it, or `latest`
        #[arg(value_name = "ID", default_value = "latest")]
        build: String,
        /// Only this step: its number, its stage, or a part of its name
        #[arg(value_name = "STEP")]
        step: Option<String>,
    },
}

/// Widest name of a step in the table.
const WIDTH: usize = 60;

/// Lists or shows.
///
/// # Errors
/// There is no such build or step, or the disk.
#[expect(clippy::print_stdout, reason = "the list is this command's result")]
pub fn run(args: &Args, session: &Session) -> Result<ExitCode, Report> {
    let builds = Builds::new(session.store.builds_directory());
    match &args.command {
        Some(Command::Inspect { build, format }) => {
            let record = find(&builds, build)?;
            if format == "json" {
                println!("{:#}", json!(record));
            } else {
                print!("{}", steps_table(&record));
            }
        }
        Some(Command::Logs { build, step }) => logs(&builds, build, step.as_deref())?,
        None if args.quiet => builds.ids().iter().for_each(|id| println!("{id}")),
        None => print!("{}", list(&builds, args.format == "json")),
    }
    Ok(ExitCode::SUCCESS)
}

fn list(builds: &Builds, as_json: bool) -> String {
    let records = builds.ids().into_iter().filter_map(|id| builds.read(&id));
    if as_json {
        let line = |record: BuildRecord| {
            let (hits, steps, bytes) = (record.hits(), record.recorded(), record.bytes());
            let object = json!({
                "id": record.id, "started": record.started, "finished": record.finished, "state": record.state,
                "context": record.context, "file": record.file, "target": record.target, "tags": record.tags,
                "image": record.image, "steps": steps, "hits": hits, "bytes": bytes,
            });
            format!("{object}\n")
        };
        return records.map(line).collect();
    }
    let row = |record: BuildRecord| {
        let steps = format!("{}/{}", record.hits(), record.recorded());
        let what = record.tags.first().cloned().unwrap_or_else(|| record.context.clone());
        let took = record.finished.duration_since(record.started).unsigned_abs();
        let started = ago(Some(record.started));
        vec![
            record.id.clone(),
            started,
            seconds(took),
            steps,
            bytes(record.bytes()),
            record.state.to_string(),
            plain(&what),
        ]
    };
    table(&["BUILD", "STARTED", "TOOK", "HITS", "SIZE", "STATE", "WHAT"], records.map(row).collect())
}

fn steps_table(record: &BuildRecord) -> String {
    let row = |(position, step): (usize, &Step)| {
        let found = match (&step.error, step.cached, step.is_recorded()) {
            (Some(_), ..) => "failed",
            (None, true, _) => "hit",
            (None, false, true) => "miss",
            (None, false, false) => "",
        };
        let name: String = plain(&step.name).chars().take(WIDTH).collect();
        vec![
            (position + 1).to_string(),
            name,
            step.duration().map(seconds).unwrap_or_default(),
            found.to_owned(),
            step.bytes.map(bytes).unwrap_or_default(),
            step.used.map(|used| format!("{:.1}s", used.cpu_seconds)).unwrap_or_default(),
            step.used.map(|used| bytes(used.peak_memory_bytes)).unwrap_or_default(),
            step.used.map(|used| bytes(used.read_bytes + used.written_bytes)).unwrap_or_default(),
            if step.printed > 0 { bytes(step.printed) } else { String::new() },
        ]
    };
    let rows = record.steps.iter().enumerate().map(row).collect();
    table(&["#", "STEP", "TOOK", "CACHE", "SIZE", "CPU", "MEMORY", "DISK", "PRINTED"], rows)
}

fn plain(text: &str) -> String {
    neutralise(text.as_bytes(), Colours::Strip).replace('\n', " ")
}

fn seconds(took: Duration) -> String {
    format!("{:.1}s", took.as_secs_f64())
}

fn logs(builds: &Builds, build: &str, step: Option<&str>) -> Result<(), Report> {
    let record = find(builds, build)?;
    let chosen = match step {
        Some(step) => steps(&record, step)?,
        None => (0..record.steps.len()).collect(),
    };
    let mut out = io::stdout().lock();
    for position in chosen {
        let Some(mut log) = builds.log(&record.id, position).map_err(Report::from)? else { continue };
        if step.is_none() {
            writeln!(out, "#{} {}", position + 1, plain(&record.steps[position].name)).map_err(Report::from)?;
        }
        match io::copy(&mut log, &mut out) {
            // Nobody reads any more.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            copied => copied.map_err(Report::from)?,
        };
    }
    out.flush().map_err(Report::from)
}

/// The build that a person means.
pub(super) fn find(builds: &Builds, text: &str) -> Result<BuildRecord, Report> {
    let missing = || Report::new(format!("there is no build {text:?}")).with_hint("rbuild builds lists what there is");
    match builds.find(text).as_slice() {
        [] => Err(missing()),
        [id] => builds.read(id).ok_or_else(missing),
        _ => Err(Report::new(format!("{text:?} is the beginning of several builds")).with_hint("give more of its id")),
    }
}

/// The positions of the steps that a person means: a number, a stage, or a part of a name.
pub(super) fn steps(record: &BuildRecord, text: &str) -> Result<Vec<usize>, Report> {
    let number = text.trim_start_matches('#').parse::<usize>().ok().and_then(|number| number.checked_sub(1));
    if let Some(number) = number.filter(|number| *number < record.steps.len()) {
        return Ok(vec![number]);
    }
    let of = |matches: &dyn Fn(&Step) -> bool| -> Vec<usize> {
        record.steps.iter().enumerate().filter(|(_, step)| matches(step)).map(|(position, _)| position).collect()
    };
    let mut found = of(&|step| step.stage.as_deref().is_some_and(|stage| stage.eq_ignore_ascii_case(text)));
    if found.is_empty() {
        found = of(&|step| step.name.contains(text));
    }
    if found.is_empty() {
        let report = Report::new(format!("build {} has no step {text:?}", record.id));
        return Err(report.with_hint(format!("rbuild builds inspect {} lists its steps", record.id)));
    }
    Ok(found)
}
