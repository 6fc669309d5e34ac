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
    /// Only images whose name fits a pattern with `*` and `?`: `reference=PATTERN`; one of several suffices. Or
    /// `dangling=true|false`: without a name, or with one
    #[arg(short, long = "filter", value_name = "FILTER")]
    pub filters: Vec<String>,
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
    let (dangling, filters) = dangling(&args.filters);
    let patterns = patterns(&filters)?;
    let mut rows = Vec::new();
    for record in session.store.images().map_err(|error| Report::of(&error))? {
        if record.is_unnamed() {
            if wanted.is_none() && patterns.is_empty() && dangling != Some(false) {
                rows.push(row(&session.store, &record, None)?);
            }
            continue;
        }
        let Ok(name) = record.name.parse::<Reference>() else { continue };
        let fits = dangling != Some(true)
            && wanted.as_ref().is_none_or(|wanted| {
                wanted.repository() == name.repository() && wanted.tag().is_none_or(|tag| name.tag() == Some(tag))
            });
        let fits = fits && (patterns.is_empty() || patterns.iter().any(|pattern| pattern.fits(&name)));
        if fits && (args.all || record.kind == ImageKind::Tagged) {
            rows.push(row(&session.store, &record, Some(&name))?);
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

/// What `dangling=` says, and the other filters.
fn dangling(filters: &[String]) -> (Option<bool>, Vec<String>) {
    let (mut dangling, mut rest) = (None, Vec::new());
    for filter in filters {
        match filter.as_str() {
            "dangling=true" | "dangling=1" => dangling = Some(true),
            "dangling=false" | "dangling=0" => dangling = Some(false),
            _ => rest.push(filter.clone()),
        }
    }
    (dangling, rest)
}

/// What `--filter reference=` names: a repository, and a tag if one is given.
#[derive(Debug, PartialEq, Eq)]
struct Pattern {
    repository: String,
    tag: Option<String>,
}

fn patterns(filters: &[String]) -> Result<Vec<Pattern>, Report> {
    let pattern = |filter: &String| match filter.split_once('=') {
        Some(("reference", text)) if !text.is_empty() => Ok(Pattern::parse(text)),
        _ => {
            let report = Report::new(format!("--filter {filter:?} is not supported"));
            Err(report.with_hint("use --filter reference=PATTERN or dangling=true|false").with_exit_code(2))
        }
    };
    filters.iter().map(pattern).collect()
}

impl Pattern {
    fn parse(text: &str) -> Self {
        // A colon before a slash belongs to a registry's port.
        match text.rsplit_once(':') {
            Some((repository, tag)) if !tag.contains('/') => {
                Self { repository: repository.to_owned(), tag: Some(tag.to_owned()) }
            }
            _ => Self { repository: text.to_owned(), tag: None },
        }
    }

    /// Whether it fits the name, short or in full.
    fn fits(&self, name: &Reference) -> bool {
        let repository = name.repository();
        let named = [repository.familiar(), repository.to_string()];
        let tagged = self.tag.as_ref().is_none_or(|tag| matches(tag, name.tag().unwrap_or("<none>")));
        tagged && named.iter().any(|named| matches(&self.repository, named))
    }
}

/// `*` stands for any text without a slash, `?` for one character other than it.
fn matches(pattern: &str, text: &str) -> bool {
    let (pattern, text): (Vec<char>, Vec<char>) = (pattern.chars().collect(), text.chars().collect());
    let (mut p, mut t) = (0, 0);
    // Where to go on when what follows the last star does not fit: the star takes one more.
    let mut retry: Option<(usize, usize)> = None;
    while t < text.len() {
        match pattern.get(p) {
            Some('*') => {
                retry = Some((p + 1, t));
                p += 1;
            }
            Some(&c) if c == text[t] || (c == '?' && text[t] != '/') => {
                p += 1;
                t += 1;
            }
            _ => match retry {
                Some((after, taken)) if text[taken] != '/' => {
                    retry = Some((after, taken + 1));
                    p = after;
                    t = taken + 1;
                }
                _ => return false,
            },
        }
    }
    pattern[p..].iter().all(|c| *c == '*')
}

fn row(store: &Store, record: &ImageRecord, name: Option<&Reference>) -> Result<Row, Report> {
    const NONE: &str = "<none>";
    let failed = |error: snapshotter::StoreError| Report::of(&error);
    let bytes = store.read_blob(&record.config).map_err(failed)?;
    let config = bytes.and_then(|bytes| parse_config(&record.name, &bytes).ok()).unwrap_or_default();
    let layers = match chain_of(&config.rootfs.diff_ids) {
        // A layer that is not recorded has no size.
        Some(chain) => store.chain_layers(&chain).unwrap_or_default(),
        None => Vec::new(),
    };
    Ok(Row {
        repository: name.map_or_else(|| NONE.to_owned(), |name| name.repository().familiar()),
        tag: name.and_then(Reference::tag).unwrap_or(NONE).to_owned(),
        id: record.config,
        created: config.created.as_deref().and_then(|time| time.parse().ok()),
        size: layers.iter().map(|layer| layer.size).sum(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_fit_names_as_docker_has_it() {
        for (pattern, name, fits) in [
            ("app", "app:1", true),
            ("app", "app2:1", false),
            ("app*", "app2:1", true),
            ("app:*", "app:1", true),
            ("app:2", "app:1", false),
            ("*", "team/app:1", false),
            ("*/*", "team/app:1", true),
            ("docker.io/library/app", "app:1", true),
            ("r.test:5000/a?p", "r.test:5000/app:1", true),
            ("r.test:5000/app:?", "r.test:5000/app:1", true),
            ("*a*a*b", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaac:1", false),
        ] {
            let name: Reference = name.parse().unwrap();
            assert_eq!(Pattern::parse(pattern).fits(&name), fits, "{pattern} {name}");
        }
        assert_eq!(patterns(&["since=x".to_owned()]).map_err(|report| report.exit_code), Err(2));
    }
}
