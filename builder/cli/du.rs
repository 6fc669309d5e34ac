//! `rbuild du`

use std::process::ExitCode;

use snapshotter::{Usage, UsageItem};

use super::filter::Filters;
use super::prune::short;
use super::table::{ago, table};
use crate::progress::bytes;
use crate::report::Report;
use crate::session::Session;
use crate::worker::blocking;

/// Show what takes the space of the state directory, and what keeps it there
///
/// The sizes are those on the disk and add up to what it says of the directory.
#[derive(clap::Args, Debug, Clone)]
pub struct Args {
    /// All that is known of each item: what it was made by, and which images, processes and results keep it
    #[arg(short, long)]
    pub verbose: bool,
    /// Only some: `type=regular|image|exec.cachemount|download|internal`, `id=ID`, `parents=ID`, `description~=PATTERN`, `inuse`,
    /// `shared`, `private`, `mutable`, `immutable`, `until=24h` (not used since); `=`, `!=` or `~=` (a regular expression)
    #[arg(short, long = "filter", value_name = "FILTER")]
    pub filters: Vec<String>,
    /// `table`, or `json` for one object with all items
    #[arg(long, value_parser = ["table", "json"], default_value = "table")]
    pub format: String,
    /// Whole ids
    #[arg(long)]
    pub no_trunc: bool,
}

/// Measures and prints.
///
/// # Errors
/// The store.
#[expect(clippy::print_stdout, reason = "the list is this command's result")]
pub async fn run(args: &Args, session: &Session) -> Result<ExitCode, Report> {
    let filters = Filters::parse(&args.filters)?;
    let store = std::sync::Arc::clone(&session.store);
    let mut usage = blocking(move || Ok(store.usage()?)).await?;
    let total = usage.total;
    if !args.filters.is_empty() {
        usage.items.retain(|item| filters.fits(item));
        usage.total = usage.items.iter().map(|item| item.size).sum();
    }
    usage.items.sort_by(|a, b| b.size.cmp(&a.size).then_with(|| a.id.cmp(&b.id)));
    if args.format == "json" {
        let mut object = serde_json::to_value(&usage).map_err(|error| Report::of(&error))?;
        object["reclaimable"] = usage.reclaimable().into();
        object["storeTotal"] = total.into();
        println!("{object}");
    } else if args.verbose {
        for item in &usage.items {
            println!("{}", described(item));
        }
        print!("{}", sums(&usage));
    } else {
        let id = |item: &UsageItem| if args.no_trunc { item.id.clone() } else { short(&item.id) };
        let cells = usage.items.iter().map(|item| {
            vec![
                id(item),
                item.kind.name().to_owned(),
                if item.in_use { "in use".to_owned() } else { item.reclaimable.to_string() },
                bytes(item.size),
                ago(item.last_used_at.or(item.created_at)),
                item.description.chars().take(60).collect(),
            ]
        });
        let head = ["ID", "TYPE", "RECLAIMABLE", "SIZE", "LAST USED", "DESCRIPTION"];
        print!("{}{}", table(&head, cells.collect()), sums(&usage));
    }
    Ok(ExitCode::SUCCESS)
}

fn described(item: &UsageItem) -> String {
    let mut lines = vec![("ID", item.id.clone()), ("Type", item.kind.name().to_owned())];
    lines.extend(item.parent.clone().map(|parent| ("Parent", parent)));
    lines.push(("Size", bytes(item.size)));
    lines.push(("Reclaimable", item.reclaimable.to_string()));
    lines.push(("In use", item.in_use.to_string()));
    lines.push(("Shared", item.shared.to_string()));
    lines.extend(item.created_at.map(|time| ("Created at", time.to_string())));
    lines.extend(item.last_used_at.map(|time| ("Last used", time.to_string())));
    if !item.description.is_empty() {
        lines.push(("Description", item.description.clone()));
    }
    lines.extend(item.kept_by.iter().map(|by| ("Kept by", by.clone())));
    lines.iter().map(|(name, value)| format!("{:13}{value}\n", format!("{name}:"))).collect()
}

fn sums(usage: &Usage) -> String {
    let shared: u64 = usage.items.iter().filter(|item| item.shared).map(|item| item.size).sum();
    let rows = [
        ("Shared", shared),
        ("Private", usage.total - shared),
        ("Reclaimable", usage.reclaimable()),
        ("Total", usage.total),
    ];
    rows.iter().map(|(name, size)| format!("{:13}{}\n", format!("{name}:"), bytes(*size))).collect()
}
