//! `rbuild verify`

use std::io::{self, Read};
use std::process::ExitCode;

use graph::ImageConfig;
use serde_json::Value;
use snapshotter::layer::{Entry, EntryKind};
use solver::RunContext;
use tokio_util::sync::CancellationToken;

use super::build;
use super::interrupt;
use crate::build::{self as builder, BuildError};
use crate::export::{OutputKind, OutputSpec};
use crate::images::parse_name;
use crate::progress::{self, Colours, Mode, neutralise};
use crate::report::{EXIT_CANCELLED, Report};
use crate::request::Request;
use crate::session::Session;
use crate::stored::{self, Stored, StoredError};
use crate::variant::{Variant, variants};
use crate::worker::ReadableTree;

/// Build an image anew and say where the result differs
///
/// Nothing recorded is used. Times count only where SOURCE_DATE_EPOCH is given; otherwise that of the image is tried. Exits
/// with 0 if both are the same, with 1 after saying the first difference.
#[derive(clap::Args, Debug, Clone)]
pub struct VerifyArgs {
    /// The image: of the store, or else of its registry
    #[arg(value_name = "IMAGE")]
    pub image: String,
    /// How it was built.
    #[command(flatten)]
    pub build: build::Args,
}

/// Builds and compares.
///
/// # Errors
/// The image cannot be had, or the build fails.
#[expect(clippy::print_stdout, reason = "the verdict is this command's result")]
pub async fn run(args: &VerifyArgs, session: &Session) -> Result<ExitCode, Report> {
    let usage = |why: String| Report::new(why).with_exit_code(2);
    let mut request = Request::from_args(&args.build, &session.config).map_err(usage)?;
    request.frontend.no_cache = frontend::NoCache::All;
    let ([] | [_]) = request.platforms.as_slice() else {
        return Err(usage("verify compares one platform at a time".into()));
    };
    let mode = Mode::choose(Some(if args.build.quiet { Mode::Quiet } else { args.build.progress }));
    let mode = mode.map_err(|error| Report::of(&error).with_exit_code(2))?;
    let (progress, events) = solver::channel();
    let display = progress::start(mode, events, &progress::Options::from_env());
    let cancelled = CancellationToken::new();
    let signals = interrupt::cancels(&cancelled, &progress);
    let notices = session.notices.attach(&progress);
    let with_times = request.frontend.build_args.contains_key("SOURCE_DATE_EPOCH");
    let context =
        RunContext { progress: progress.vertex("[internal] compare the images"), cancelled: cancelled.clone() };
    let result = async {
        let image = find(args, session, &request, &context).await?;
        if let Some(epoch) = epoch_of(&image.config) {
            let args = &mut request.frontend.build_args;
            args.entry("SOURCE_DATE_EPOCH".to_owned()).or_insert_with(|| epoch.to_string());
        }
        let built = builder::build(session, request, &progress, &cancelled).await.map_err(|error| match error {
            BuildError::Cancelled => Report::new("cancelled").with_exit_code(EXIT_CANCELLED),
            error => Report::from(error),
        })?;
        let output = OutputSpec {
            squash: args.build.squash,
            ..OutputSpec::of(OutputKind::Image { push: false, by_digest: false })
        };
        let rebuilt = variants(session, &built, &output, &context).await?;
        let rebuilt = rebuilt.into_iter().next().ok_or_else(|| Report::new("internal error: no result"))?;
        let difference = compare(session, &image, &rebuilt, with_times, &context).await?;
        Ok::<_, Report>((image, rebuilt, difference))
    }
    .await;
    drop(signals);
    drop(notices);
    let summary = display.finish();
    let (image, rebuilt, difference) = result.map_err(|report| report.with_summary(&summary, mode))?;
    match difference {
        None if image.id == rebuilt.id => println!("{}: identical ({})", image.label(), image.id),
        None => println!("{}: the same but for times ({})", image.label(), image.id),
        Some(difference) => {
            println!("{}: {}", image.label(), neutralise(difference.as_bytes(), Colours::Strip));
            return Ok(ExitCode::FAILURE);
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn find(args: &VerifyArgs, session: &Session, request: &Request, context: &RunContext) -> Result<Stored, Report> {
    match Stored::find(&session.store, &args.image) {
        Err(StoredError::Missing(_)) => {}
        found => return Ok(found?),
    }
    let platform = request.platforms.first().cloned().unwrap_or_else(graph::Platform::host);
    Ok(stored::pull(session, &parse_name(&args.image)?, &platform, context).await?.image)
}

/// The time of all that was built, if it is one: such an image was built with SOURCE_DATE_EPOCH.
fn epoch_of(config: &ImageConfig) -> Option<i64> {
    let created = config.created.as_ref()?;
    let time = created.parse::<jiff::Timestamp>().ok()?;
    let last = config.history.last()?.created.as_ref()?;
    (time.subsec_nanosecond() == 0 && last == created).then(|| time.as_second())
}

/// The first difference.
async fn compare(
    session: &Session,
    image: &Stored,
    rebuilt: &Variant,
    with_times: bool,
    context: &RunContext,
) -> Result<Option<String>, Report> {
    if image.id == rebuilt.id {
        return Ok(None);
    }
    let ours: ImageConfig = serde_json::from_slice(&rebuilt.config).map_err(|error| Report::of(&error))?;
    let (one, two) = (&image.config.rootfs.diff_ids, &ours.rootfs.diff_ids);
    if one != two {
        let theirs = session.layers.readable(context, image.chain().as_ref()).await.map_err(Report::from)?;
        let anew = session.layers.readable(context, rebuilt.chain.as_ref()).await.map_err(Report::from)?;
        for number in (0..one.len().max(two.len())).filter(|number| one.get(*number) != two.get(*number)) {
            if number >= one.len() || number >= two.len() {
                return Ok(Some(format!("it has {} layers, the result of this build {}", one.len(), two.len())));
            }
            let (theirs, anew) = (theirs.clone(), anew.clone());
            let found = super::transfer::on_thread(move || of_layer(&theirs, &anew, number, with_times)).await?;
            if let Some(found) = found {
                let step = step_of(&image.config, number);
                return Ok(Some(format!("layer {} ({step}): {found}", number + 1)));
            }
        }
    }
    let (one, two) = (settings(&image.config, with_times)?, settings(&ours, with_times)?);
    Ok(of_values("", &one, &two))
}

/// The instruction that made a layer.
fn step_of(config: &ImageConfig, number: usize) -> String {
    let with_layer = config.history.iter().filter(|entry| !entry.empty_layer).nth(number);
    with_layer.map_or_else(String::new, |entry| entry.created_by.chars().take(80).collect())
}

/// A config without its layers, and without times if these do not count.
fn settings(config: &ImageConfig, with_times: bool) -> Result<Value, Report> {
    let mut config = config.clone();
    config.rootfs.diff_ids.clear();
    if !with_times {
        config.created = None;
        config.history.iter_mut().for_each(|entry| entry.created = None);
    }
    serde_json::to_value(config).map_err(|error| Report::of(&error))
}

/// Where two documents part.
fn of_values(path: &str, one: &Value, two: &Value) -> Option<String> {
    match (one, two) {
        (Value::Object(a), Value::Object(b)) => {
            let keys: std::collections::BTreeSet<_> = a.keys().chain(b.keys()).collect();
            let null = Value::Null;
            keys.into_iter().find_map(|key| {
                of_values(&format!("{path}.{key}"), a.get(key).unwrap_or(&null), b.get(key).unwrap_or(&null))
            })
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            a.iter().zip(b).enumerate().find_map(|(at, (a, b))| of_values(&format!("{path}[{at}]"), a, b))
        }
        (one, two) => (one != two).then(|| format!("its config has {path} {one}, the result of this build {two}")),
    }
}

/// The first file of a layer that differs.
fn of_layer(
    theirs: &ReadableTree,
    anew: &ReadableTree,
    number: usize,
    with_times: bool,
) -> Result<Option<String>, io::Error> {
    let entries = |tree: &ReadableTree| match tree.tree.layers().get(number) {
        Some(layer) => layer.entries().iter().filter(|entry| !entry.is_implicit()).cloned().collect::<Vec<_>>(),
        None => Vec::new(),
    };
    let (one, two) = (entries(theirs), entries(anew));
    let shown = |path: &[u8]| format!("/{}", String::from_utf8_lossy(path));
    let (mut left, mut right) = (one.iter().peekable(), two.iter().peekable());
    loop {
        let (a, b) = match (left.peek(), right.peek()) {
            (None, None) => return Ok(None),
            (Some(a), None) => return Ok(Some(format!("{} is only in the image", shown(&a.path)))),
            (None, Some(b)) => return Ok(Some(format!("{} is only in the result of this build", shown(&b.path)))),
            (Some(a), Some(b)) => (*a, *b),
        };
        match snapshotter::layer::cmp_paths(&a.path, &b.path) {
            std::cmp::Ordering::Less => return Ok(Some(format!("{} is only in the image", shown(&a.path)))),
            std::cmp::Ordering::Greater => {
                return Ok(Some(format!("{} is only in the result of this build", shown(&b.path))));
            }
            std::cmp::Ordering::Equal => {}
        }
        if let Some(how) = of_entries(a, b, with_times) {
            let how = match (&a.kind, &b.kind) {
                (EntryKind::File { digest: x, .. }, EntryKind::File { digest: y, .. }) if x != y => {
                    let at = first_byte(theirs.open(number, &a.path)?, anew.open(number, &b.path)?)?;
                    format!("its bytes differ from byte {at} on")
                }
                _ => how,
            };
            return Ok(Some(format!("{}: {how}", shown(&a.path))));
        }
        left.next();
        right.next();
    }
}

/// How two entries at one path differ.
fn of_entries(a: &Entry, b: &Entry, with_times: bool) -> Option<String> {
    let differs = |what: &str, a: String, b: String| (a != b).then(|| format!("{what} is {a} in the image, {b} now"));
    let kind = |kind: &EntryKind| match kind {
        EntryKind::File { size, digest, .. } => format!("a file of {size} bytes ({digest})"),
        EntryKind::Dir { opaque, .. } => format!("a directory{}", if *opaque { " that replaces another" } else { "" }),
        EntryKind::Symlink { target } => format!("a link to {}", String::from_utf8_lossy(target)),
        EntryKind::Hardlink { target } => format!("another name of {}", String::from_utf8_lossy(target)),
        EntryKind::CharDev { major, minor } => format!("a character device {major}:{minor}"),
        EntryKind::BlockDev { major, minor } => format!("a block device {major}:{minor}"),
        EntryKind::Fifo => "a pipe".to_owned(),
        EntryKind::Whiteout => "removed".to_owned(),
    };
    differs("it", kind(&a.kind), kind(&b.kind))
        .or_else(|| differs("its mode", format!("{:o}", a.mode), format!("{:o}", b.mode)))
        .or_else(|| differs("its owner", format!("{}:{}", a.uid, a.gid), format!("{}:{}", b.uid, b.gid)))
        .or_else(|| (a.xattrs != b.xattrs).then(|| "its extended attributes differ".to_owned()))
        .or_else(|| if with_times { differs("its time", a.mtime.0.to_string(), b.mtime.0.to_string()) } else { None })
}

fn first_byte(mut one: impl Read, mut two: impl Read) -> io::Result<u64> {
    let (mut a, mut b) = (Vec::new(), Vec::new());
    let mut at = 0;
    loop {
        a.clear();
        b.clear();
        let (length, other) =
            (one.by_ref().take(1 << 16).read_to_end(&mut a)?, two.by_ref().take(1 << 16).read_to_end(&mut b)?);
        if let Some(offset) = a.iter().zip(&b).position(|(a, b)| a != b) {
            return Ok(at + offset as u64);
        }
        if length != other || length == 0 {
            return Ok(at + length.min(other) as u64);
        }
        at += length as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_part_at_a_path() {
        let one = serde_json::json!({ "config": { "Env": ["A=1", "B=2"] }, "os": "linux" });
        let mut two = one.clone();
        assert_eq!(of_values("", &one, &two), None);
        two["config"]["Env"][1] = "B=3".into();
        let said = of_values("", &one, &two).unwrap();
        assert!(said.contains(".config.Env[1] \"B=2\"") && said.contains("\"B=3\""), "{said}");
    }

    #[test]
    fn files_part_at_a_byte() {
        let long = vec![7; 200_000];
        let mut other = long.clone();
        other[150_000] = 8;
        assert_eq!(first_byte(long.as_slice(), other.as_slice()).unwrap(), 150_000);
        assert_eq!(first_byte(&long[..], &long[..100_000]).unwrap(), 100_000);
        assert_eq!(first_byte(&b""[..], &b"x"[..]).unwrap(), 0);
    }
}
