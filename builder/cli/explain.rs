//! `rbuild explain`, and `rbuild build --explain`

use std::fmt::Write as _;
use std::process::ExitCode;

use serde_json::json;

use crate::builds::{BuildRecord, Builds, Step, explain};
use crate::report::Report;
use crate::session::Session;

/// Say why steps of a build were found in the cache or not
///
/// Each step that ran is compared with its nearest earlier run: the first files that differ, a variable, the base, the definition.
#[derive(clap::Args, Debug, Clone)]
pub struct Args {
    /// Only this step: its number, its stage, or a part of its name
    #[arg(value_name = "STEP")]
    pub step: Option<String>,
    /// Of this build instead of the latest (see `rbuild builds`)
    #[arg(long, value_name = "ID", default_value = "latest")]
    pub build: String,
    /// `text`, or `json` for one object per line
    #[arg(long, value_parser = ["text", "json"], default_value = "text")]
    pub format: String,
}

/// Earlier builds that are looked at.
const MOST_EARLIER: usize = 100;

/// Prints the explanation.
///
/// # Errors
/// There is no such build or step.
#[expect(clippy::print_stdout, reason = "the explanation is this command's result")]
pub fn run(args: &Args, session: &Session) -> Result<ExitCode, Report> {
    let builds = Builds::new(session.store.builds_directory());
    let record = super::builds::find(&builds, &args.build)?;
    let chosen = match &args.step {
        None => None,
        Some(step) => Some(super::builds::steps(&record, step)?),
    };
    let is_chosen = |position: usize| chosen.as_ref().is_none_or(|chosen| chosen.contains(&position));
    if args.format == "json" {
        let earlier = earlier(&builds, &record);
        for (position, step) in record.steps.iter().enumerate().filter(|(position, _)| is_chosen(*position)) {
            let Some(why) = explain(&record, position, &earlier, |digest| builds.list(digest)) else { continue };
            let against = why.against.map(|(id, _)| id);
            let object = json!({
                "step": position + 1, "name": step.name, "stage": step.stage, "hit": why.hit, "reasons": why.reasons,
                "against": against,
            });
            println!("{object}");
        }
    } else {
        print!("{}", text(&builds, &record, is_chosen));
    }
    Ok(ExitCode::SUCCESS)
}

/// The builds before one, the latest first; of the same project before all others.
fn earlier(builds: &Builds, record: &BuildRecord) -> Vec<BuildRecord> {
    let ids = builds.ids().into_iter().filter(|id| *id < record.id).take(MOST_EARLIER);
    ids.filter_map(|id| builds.read(&id)).collect()
}

/// The explanation of the steps of a build, as people read it.
pub(super) fn text(builds: &Builds, record: &BuildRecord, is_chosen: impl Fn(usize) -> bool) -> String {
    let mut text = String::new();
    let mut known: Option<Vec<BuildRecord>> = None;
    for (position, step) in record.steps.iter().enumerate().filter(|(position, _)| is_chosen(*position)) {
        // A build in which all was found needs no comparison.
        let earlier: &[BuildRecord] = match (step.cached, &mut known) {
            (true, _) => &[],
            (false, known) => known.get_or_insert_with(|| self::earlier(builds, record)),
        };
        let Some(why) = explain(record, position, earlier, |digest| builds.list(digest)) else { continue };
        let _ = writeln!(text, "{} {}", if why.hit { "HIT " } else { "MISS" }, named(position, step));
        for reason in &why.reasons {
            let _ = writeln!(text, "     {}", crate::progress::neutralise_lines(reason));
        }
        if let Some((id, started)) = &why.against {
            let _ = writeln!(text, "     compared with build {id}, {}", super::table::ago(Some(*started)));
        }
    }
    text
}

fn named(position: usize, step: &Step) -> String {
    let name = crate::progress::neutralise_lines(&step.name).replace('\n', " ");
    match step.lines {
        Some((first, _)) => format!("#{} {name} (line {first})", position + 1),
        None => format!("#{} {name}", position + 1),
    }
}
