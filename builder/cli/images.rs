//! `rbuild images`

use std::process::ExitCode;

use graph::Digest;
use registry::Reference;
use serde_json::json;
use snapshotter::{ImageKind, ImageRecord, Store};

use super::table::{ago, table};
use crate::images::{chain_of, parse_config};
use crate::progress::bytes;
use crate::report::Report;
use crate::session::Session;

/// List images
#[derive(clap::Args, Debug, Clone)]
pub struct Args {
    /// Only images of this repository, or with this tag
    #[arg(value_name = "REPOSITORY[:TAG]")]
    pub name: Option<String>,
    /// Also images that were pulled as bases of builds
    #[arg(short, long)]
    pub all: bool,
    /// Only ids
    #[arg(short, long)]
    pub quiet: bool,
    /// Whole ids
    #[arg(long)]
    pub no_trunc: bool,
    /// `table`, or `json` for one object per line
    #[arg(long, value_parser = ["table", "json"], default_value = "table")]
    pub format: String,
}

struct Row {
    repository: String,
    tag: String,
    id: Digest,
    created: Option<jiff::Timestamp>,
    size: u64,
}

/// Prints the images, the latest first.
///
/// # Errors
/// The store.
#[expect(clippy::print_stdout, reason = "the list is this command's result")]
pub async fn run(args: &Args, session: &Session) -> Result<ExitCode, Report> {
    let wanted = args.name.as_deref().map(str::parse::<Reference>).transpose().map_err(|error| Report::of(&error))?;
    let mut rows = Vec::new();
    for record in session.store.images().map_err(|error| Report::of(&error))? {
        let Ok(name) = record.name.parse::<Reference>() else { continue };
        let fits = wanted.as_ref().is_none_or(|wanted| {
            wanted.repository() == name.repository() && wanted.tag().is_none_or(|tag| name.tag() == Some(tag))
        });
        if fits && (args.all || record.kind == ImageKind::Tagged) {
            rows.push(row(&session.store, &record, &name)?);
        }
    }
    rows.sort_by(|a, b| b.created.cmp(&a.created).then_with(|| (&a.repository, &a.tag).cmp(&(&b.repository, &b.tag))));
    let id = |row: &Row| if args.no_trunc { row.id.to_string() } else { row.id.short() };
    if args.quiet {
        let mut ids: Vec<String> = rows.iter().map(id).collect();
        ids.dedup();
        ids.iter().for_each(|id| println!("{id}"));
    } else if args.format == "json" {
        for row in &rows {
            let created = row.created.map(|time| time.to_string());
            println!(
                "{}",
                json!({ "Repository": row.repository, "Tag": row.tag, "ID": id(row), "CreatedAt": created,
                        "CreatedSince": ago(row.created), "Size": bytes(row.size) })
            );
        }
    } else {
        let cells = rows
            .iter()
            .map(|row| vec![row.repository.clone(), row.tag.clone(), id(row), ago(row.created), bytes(row.size)]);
        print!("{}", table(&["REPOSITORY", "TAG", "IMAGE ID", "CREATED", "SIZE"], cells.collect()));
    }
    Ok(ExitCode::SUCCESS)
}

fn row(store: &Store, record: &ImageRecord, name: &Reference) -> Result<Row, Report> {
    let failed = |error: snapshotter::StoreError| Report::of(&error);
    let bytes = store.read_blob(&record.config).map_err(failed)?;
    let config = bytes.and_then(|bytes| parse_config(&record.name, &bytes).ok()).unwrap_or_default();
    let layers = match chain_of(&config.rootfs.diff_ids) {
        // A layer that is not recorded has no size.
        Some(chain) => store.chain_layers(&chain).unwrap_or_default(),
        None => Vec::new(),
    };
    Ok(Row {
        repository: name.repository().familiar(),
        tag: name.tag().unwrap_or("<none>").to_owned(),
        id: record.config,
        created: config.created.as_deref().and_then(|time| time.parse().ok()),
        size: layers.iter().map(|layer| layer.size).sum(),
    })
}
