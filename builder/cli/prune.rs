//! `rbuild prune`, `builder prune`, `image prune`, `system prune`

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;
use std::sync::Arc;

use clap::Subcommand;
use executor::rootless::Tier;
use snapshotter::{ImageKind, PrunePolicy, Pruned, StoreError};

use super::du;
use super::filter::{Filters, unknown, until};
use crate::progress::bytes;
use crate::report::Report;
use crate::session::Session;
use crate::size::Size;
use crate::worker::{WorkError, blocking};

/// Remove the build cache
///
/// Recorded results, cache mounts and broken-off downloads go, and the layers that no image needs. Images stay, and so does
/// what a running build relies on.
#[derive(clap::Args, Debug, Clone)]
pub struct Args {
    /// Also the base images that builds pulled
    #[arg(short, long)]
    pub all: bool,
    /// Only some: `until=24h` (not used since), `type=regular|exec.cachemount|download`, `id=ID`, `parents=ID`,
    /// `description~=PATTERN`, `shared`, `private`, `mutable`, `immutable`; `=`, `!=` or `~=` (a regular expression)
    #[arg(long = "filter", value_name = "FILTER")]
    pub filters: Vec<String>,
    /// Only as much as brings the store down to this size, the least recently used first
    #[arg(long, value_name = "SIZE")]
    pub max_used_space: Option<Size>,
    /// Only as much as leaves this much of the disk free, the least recently used first
    #[arg(long, value_name = "SIZE")]
    pub min_free_space: Option<Size>,
    /// This much stays, the most recently used
    #[arg(long, alias = "keep-storage", value_name = "SIZE")]
    pub reserved_space: Option<Size>,
    /// Do not ask
    #[arg(short, long)]
    pub force: bool,
    /// List what was removed with all that was known of it
    #[arg(long)]
    pub verbose: bool,
}

/// `rbuild builder`
#[derive(Subcommand, Debug, Clone)]
pub enum Builder {
    /// Remove the build cache
    Prune(Args),
    /// Show what takes the space of the state directory
    Du(du::Args),
}

/// `rbuild image`
#[derive(Subcommand, Debug, Clone)]
pub enum Image {
    /// Remove images that have no name
    Prune(ImageArgs),
}

/// `rbuild system`
#[derive(Subcommand, Debug, Clone)]
pub enum System {
    /// Remove images that have no name, and the build cache
    Prune(SystemArgs),
    /// Show what takes the space of the state directory
    Df(du::Args),
}

/// Remove images that have no name
#[derive(clap::Args, Debug, Clone)]
pub struct ImageArgs {
    /// All images, with a name or without
    #[arg(short, long)]
    pub all: bool,
    /// Only some: `until=24h` (made before), `dangling=true|false`
    #[arg(long = "filter", value_name = "FILTER")]
    pub filters: Vec<String>,
    /// Do not ask
    #[arg(short, long)]
    pub force: bool,
}

/// Remove images that have no name, and the build cache
#[derive(clap::Args, Debug, Clone)]
pub struct SystemArgs {
    /// All images, with a name or without
    #[arg(short, long)]
    pub all: bool,
    /// Only some: `until=24h` (not used since)
    #[arg(long = "filter", value_name = "FILTER")]
    pub filters: Vec<String>,
    /// Do not ask
    #[arg(short, long)]
    pub force: bool,
}

/// Removes the build cache.
///
/// # Errors
/// A filter that is none, or the store.
pub async fn run(args: &Args, session: &Session) -> Result<ExitCode, Report> {
    let filters = Filters::parse(&args.filters)?;
    let what = if args.all { "all build cache, and the base images that builds pulled" } else { "all build cache" };
    if !args.force && !agreed(&[what])? {
        return Ok(ExitCode::FAILURE);
    }
    let bytes = |size: Option<Size>| size.map(|Size(bytes)| bytes);
    let policy = PrunePolicy {
        keep: bytes(args.max_used_space),
        free: bytes(args.min_free_space),
        reserved: bytes(args.reserved_space),
        ..filters.policy(session, args.all).await?
    };
    let pruned = prune(session, policy).await?;
    report(&pruned, args.verbose, &[]);
    warn_of_stuck(session).await?;
    Ok(ExitCode::SUCCESS)
}

/// Carries `rbuild builder …` out.
///
/// # Errors
/// As [`run`].
pub async fn builder(command: &Builder, session: &Session) -> Result<ExitCode, Report> {
    match command {
        Builder::Prune(args) => run(args, session).await,
        Builder::Du(args) => du::run(args, session).await,
    }
}

/// Carries `rbuild image …` out.
///
/// # Errors
/// As [`run`].
pub async fn image(command: &Image, session: &Session) -> Result<ExitCode, Report> {
    let Image::Prune(args) = command;
    let mut all = args.all;
    let mut before = None;
    for filter in &args.filters {
        match filter.split_once('=') {
            Some(("until", text)) => before = Some(until(text)?),
            Some(("dangling", "true" | "1")) => all = false,
            Some(("dangling", "false" | "0")) => all = true,
            _ => return Err(unknown(filter, "until=AGE and dangling=true|false")),
        }
    }
    let what = if all { "all images, with a name or without" } else { "all images without a name" };
    if !args.force && !agreed(&[what])? {
        return Ok(ExitCode::FAILURE);
    }
    let start = usage(session).await?.total;
    let deleted = forget_images(session, all, before)?;
    collect(session).await?;
    let left = usage(session).await?.total;
    report(&Pruned { freed: start.saturating_sub(left), left, items: Vec::new() }, false, &deleted);
    warn_of_stuck(session).await?;
    Ok(ExitCode::SUCCESS)
}

/// Carries `rbuild system …` out.
///
/// # Errors
/// As [`run`].
pub async fn system(command: &System, session: &Session) -> Result<ExitCode, Report> {
    let args = match command {
        System::Df(args) => return du::run(args, session).await,
        System::Prune(args) => args,
    };
    let filters = Filters::parse(&args.filters)?;
    let images = if args.all { "all images, with a name or without" } else { "all images without a name" };
    if !args.force && !agreed(&[images, "all build cache, and the base images that builds pulled"])? {
        return Ok(ExitCode::FAILURE);
    }
    let start = usage(session).await?.total;
    let deleted = forget_images(session, args.all, filters.until())?;
    let mut pruned = prune(session, filters.policy(session, true).await?).await?;
    pruned.freed = start.saturating_sub(pruned.left);
    report(&pruned, false, &deleted);
    warn_of_stuck(session).await?;
    Ok(ExitCode::SUCCESS)
}

/// Asks the person.
fn agreed(what: &[&str]) -> Result<bool, Report> {
    let mut err = io::stderr();
    let list: String = what.iter().map(|what| format!("  - {what}\n")).collect();
    write!(err, "WARNING! This will remove:\n{list}\nAre you sure you want to continue? [y/N] ")?;
    err.flush()?;
    let mut answer = String::new();
    let read = io::stdin().read_line(&mut answer)?;
    if read == 0 && !io::stdin().is_terminal() {
        writeln!(err)?;
        return Err(Report::new("nothing was removed, since nobody answered").with_hint("use -f"));
    }
    Ok(matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
}

async fn prune(session: &Session, policy: PrunePolicy) -> Result<Pruned, WorkError> {
    let store = Arc::clone(&session.store);
    blocking(move || Ok(store.prune(&policy)?)).await
}

pub(super) async fn usage(session: &Session) -> Result<snapshotter::Usage, WorkError> {
    let store = Arc::clone(&session.store);
    blocking(move || Ok(store.usage()?)).await
}

async fn collect(session: &Session) -> Result<(), WorkError> {
    let store = Arc::clone(&session.store);
    blocking(move || Ok(store.collect(&snapshotter::CollectPolicy::default()).map(drop)?)).await
}

/// Takes the names of images away; what was taken, for people.
fn forget_images(session: &Session, all: bool, before: Option<jiff::Timestamp>) -> Result<Vec<String>, Report> {
    let failed = |error: StoreError| Report::of(&error);
    let mut deleted = Vec::new();
    for record in session.store.images().map_err(failed)? {
        if record.kind != ImageKind::Tagged || !(all || record.is_unnamed()) {
            continue;
        }
        let bytes = session.store.read_blob(&record.config).map_err(failed)?;
        let config = bytes.and_then(|bytes| crate::images::parse_config(&record.name, &bytes).ok());
        let created = config.and_then(|config| config.created?.parse::<jiff::Timestamp>().ok());
        if before.is_some_and(|before| created.is_none_or(|created| created >= before)) {
            continue;
        }
        session.store.remove_image(&record.name).map_err(failed)?;
        if !record.is_unnamed() {
            let name = record.name.parse().map_or(record.name, |name: registry::Reference| name.familiar());
            deleted.push(format!("untagged: {name}"));
        }
        let line = format!("deleted: {}", record.config);
        if !deleted.contains(&line) {
            deleted.push(line);
        }
    }
    Ok(deleted)
}

#[expect(clippy::print_stdout, reason = "what was removed is this command's result")]
fn report(pruned: &Pruned, verbose: bool, images: &[String]) {
    if !images.is_empty() {
        println!("Deleted Images:\n{}\n", images.join("\n"));
    }
    if !pruned.items.is_empty() {
        println!("Deleted build cache objects:");
        for item in &pruned.items {
            match verbose {
                true => println!("{}\t{}\t{}\t{}", item.id, item.kind.name(), bytes(item.size), item.description),
                false => println!("{}", short(&item.id)),
            }
        }
        println!();
    }
    println!("Total reclaimed space: {}", bytes(pruned.freed));
}

/// Trees that were unpacked with other ids may hold files that are not ours to remove.
async fn warn_of_stuck(session: &Session) -> Result<(), WorkError> {
    let store = Arc::clone(&session.store);
    let Some((trash, size)) = blocking(move || Ok(store.stuck())).await? else { return Ok(()) };
    let how = match &session.tier {
        Tier::SingleId { .. } => {
            "files there belong to subordinate ids that this user no longer has: grant them again (/etc/subuid, /etc/subgid) \
             and prune once more"
        }
        Tier::Root | Tier::SubordinateIds { .. } | Tier::Confined { .. } => {
            "files there belong to ids that are not this user's, or must not be changed"
        }
    };
    eprintln!(
        "WARNING: {} could not be removed: {how}, or remove them as root: rm -rf '{}'/*",
        bytes(size),
        trash.display().to_string().replace('\'', r"'\''")
    );
    Ok(())
}

/// The beginning of an id.
pub(super) fn short(id: &str) -> String {
    id.trim_start_matches("sha256:").chars().take(12).collect()
}
