//! `rbuild history`

use std::process::ExitCode;

use serde_json::json;

use super::table::{ago, table};
use crate::progress::{Colours, bytes, neutralise};
use crate::report::Report;
use crate::session::Session;
use crate::stored::Stored;

/// Show the steps an image was made by
#[derive(clap::Args, Debug, Clone)]
pub struct Args {
    /// Name or id of an image
    #[arg(value_name = "IMAGE")]
    pub image: String,
    /// Only ids
    #[arg(short, long)]
    pub quiet: bool,
    /// Whole instructions and ids
    #[arg(long)]
    pub no_trunc: bool,
    /// `table`, or `json` for one object per line
    #[arg(long, value_parser = ["table", "json"], default_value = "table")]
    pub format: String,
}

/// Longest instruction in the table.
const WIDTH: usize = 45;

/// Prints the history, the latest step first.
///
/// # Errors
/// There is no such image.
#[expect(clippy::print_stdout, reason = "the list is this command's result")]
pub async fn run(args: &Args, session: &Session) -> Result<ExitCode, Report> {
    let image = Stored::find(&session.store, &args.image)?;
    let layers = match image.chain() {
        Some(chain) => session.store.chain_layers(&chain).map_err(|error| Report::of(&error))?,
        None => Vec::new(),
    };
    let mut sizes = layers.iter().map(|layer| layer.size);
    let mut rows = Vec::new();
    for (number, entry) in image.config.history.iter().enumerate() {
        let size = if entry.empty_layer { 0 } else { sizes.next().unwrap_or(0) };
        let last = number + 1 == image.config.history.len();
        let id = match (last, args.no_trunc) {
            (true, true) => image.id.to_string(),
            (true, false) => image.id.short(),
            (false, _) => "<missing>".into(),
        };
        let created = entry.created.as_deref().and_then(|time| time.parse::<jiff::Timestamp>().ok());
        rows.push((
            id,
            created,
            neutralise(entry.created_by.as_bytes(), Colours::Strip).into_owned(),
            size,
            entry.comment.clone(),
        ));
    }
    rows.reverse();
    if args.quiet {
        rows.iter().for_each(|(id, ..)| println!("{id}"));
        return Ok(ExitCode::SUCCESS);
    }
    if args.format == "json" {
        for (id, created, by, size, comment) in rows {
            let created = created.map(|time| time.to_string());
            println!(
                "{}",
                json!({ "ID": id, "CreatedAt": created, "CreatedBy": by, "Size": bytes(size), "Comment": comment })
            );
        }
        return Ok(ExitCode::SUCCESS);
    }
    let shown = |by: String| match by.char_indices().nth(WIDTH) {
        Some((end, _)) if !args.no_trunc => format!("{}…", &by[..end]),
        _ => by,
    };
    let cells = rows
        .into_iter()
        .map(|(id, created, by, size, comment)| vec![id, ago(created), shown(by), bytes(size), comment]);
    print!("{}", table(&["IMAGE", "CREATED", "CREATED BY", "SIZE", "COMMENT"], cells.collect()));
    Ok(ExitCode::SUCCESS)
}
