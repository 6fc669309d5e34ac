//! Reads cases, builds images for them, prints graphs and configs.

use std::sync::Arc;

use frontend::dockerignore::Patterns;
use frontend::{
    ContextSource, Diagnostics, Finding, Images, Lowered, NoCache, Options, ResolvedImage, SourceFile, lower, plan,
};
use graph::{Digest, ImageConfig, NetworkMode, Op, Platform};
use serde_json::Value;

/// One file of `lower/`.
pub(crate) struct Case<'a> {
    pub(crate) dockerfile: &'a str,
    pub(crate) expected: &'a str,
    options: &'a str,
}

impl<'a> Case<'a> {
    pub(crate) fn read(text: &'a str) -> Self {
        let section = |name: &str| {
            let start = text.find(&format!("=== {name}\n")).map(|at| at + name.len() + 5)?;
            // From the newline in front, as the section may be empty.
            let end = text[start - 1..].find("\n=== ").map_or(text.len(), |end| start + end);
            Some(&text[start..end])
        };
        Self {
            options: section("options").unwrap_or(""),
            dockerfile: section("Dockerfile").expect("a case has a Dockerfile"),
            expected: section("lowered").unwrap_or(""),
        }
    }

    /// One flag per line, as on the command line; `image NAME CONFIG` says what a base image is.
    fn options(&self) -> (Options, Vec<(&'a str, &'a str)>) {
        let amd64: Platform = "linux/amd64".parse().unwrap();
        let mut options = Options { target_platform: amd64.clone(), build_platform: amd64, ..Options::default() };
        let mut images = Vec::new();
        for line in self.options.lines() {
            let (flag, rest) = line.split_once(' ').unwrap_or((line, ""));
            let pair = || {
                let (name, value) = rest.split_once('=').unwrap_or_else(|| panic!("{line}"));
                (name.to_owned(), value.to_owned())
            };
            match flag {
                "--build-arg" => drop(options.build_args.insert(pair().0, pair().1)),
                "--target" => options.target = Some(rest.to_owned()),
                "--label" => options.labels.push(pair()),
                "--add-host" => options.extra_hosts.push(pair()),
                "--platform" => {
                    options.target_platform = rest.parse().unwrap();
                    options.implicit_platform = false;
                }
                "--multi-platform" => options.multi_platform = true,
                "--network" if rest == "none" => options.network = NetworkMode::None,
                "--no-cache" => options.no_cache = NoCache::All,
                "--no-cache-filter" => options.no_cache = NoCache::Stages(rest.split(',').map(Into::into).collect()),
                "--context" => options.context = context(rest),
                "--build-context" => {
                    let (name, value) = pair();
                    options.named_contexts.insert(name, context(&value));
                }
                "ignored" => {
                    let text = rest.replace("\\n", "\n");
                    options.ignored = Some(Arc::new(Patterns::parse(&text).unwrap()));
                }
                "image" => images.push(rest.split_once(' ').unwrap_or((rest, "{}"))),
                _ => panic!("unknown option in a case: {line}"),
            }
        }
        (options, images)
    }
}

fn context(text: &str) -> ContextSource {
    match text.split_once("://") {
        Some(("docker-image", name)) => ContextSource::Image(name.to_owned()),
        Some(_) if text.contains(".git") => ContextSource::Git(text.to_owned()),
        Some(_) => ContextSource::Http { url: text.to_owned(), unpack: text.ends_with(".tar") },
        None => ContextSource::Local,
    }
}

/// An image with one layer, unless the config has its own.
pub(crate) fn image(config: &str, platform: &Platform) -> ResolvedImage {
    let mut config: ImageConfig = serde_json::from_str(config).unwrap();
    if config.architecture.is_empty() {
        config.os.clone_from(&platform.os);
        config.architecture.clone_from(&platform.architecture);
        config.variant.clone_from(&platform.variant);
    }
    if config.rootfs.kind.is_empty() {
        config.rootfs.kind = "layers".to_owned();
        config.rootfs.diff_ids.push(Digest::of(b"layer"));
    }
    let digest = Digest::of(&serde_json::to_vec(&config).unwrap());
    ResolvedImage { config, config_digest: digest, manifest_digest: None }
}

/// Lowers a case and prints the result, or what is wrong with it.
pub(crate) fn lower_case(case: &Case<'_>) -> String {
    let source = SourceFile::new("Dockerfile", case.dockerfile);
    let (options, configs) = case.options();
    let result = || -> Result<String, Diagnostics> {
        let plan = plan(&source, &options)?;
        let mut images = Images::new();
        let mut asked = String::new();
        loop {
            let missing = plan.missing_images(&images)?;
            if missing.is_empty() {
                break;
            }
            for request in missing {
                let lines = request.span.map(|span| source.lines(span).first).unwrap_or_default();
                asked.push_str(&format!("needs {} {} (line {lines})", request.reference, request.platform));
                asked.push_str(&request.did_you_mean.map(|hint| format!(", {hint}")).unwrap_or_default());
                asked.push('\n');
                let config =
                    configs.iter().find(|(name, _)| *name == request.written).map_or("{}", |(_, config)| config);
                images.insert(request.reference, request.platform.clone(), image(config, &request.platform));
            }
        }
        let lowered = lower(&plan, &images)?;
        let warnings = Diagnostics(lowered.warnings.clone()).render(&source);
        let warnings: String = warnings.lines().map(|line| format!("warning: {line}\n")).collect();
        let findings: String = lowered.findings.iter().map(|finding| lint_line(&source, finding)).collect();
        Ok(format!("{asked}{warnings}{findings}{}", print(&lowered)))
    };
    result().unwrap_or_else(|problems| problems.render(&source))
}

/// Lowers all stages of a text with the options of a case.
#[allow(dead_code)] // Not every test that includes this module checks.
pub(crate) fn checked(case: &Case<'_>, text: &str) -> Result<Lowered, Diagnostics> {
    let (options, configs) = case.options();
    let plan = plan(&SourceFile::new("Dockerfile", text), &Options { all_stages: true, ..options })?;
    let mut images = Images::new();
    loop {
        let missing = plan.missing_images(&images)?;
        if missing.is_empty() {
            return lower(&plan, &images);
        }
        for request in missing {
            let config = configs.iter().find(|(name, _)| *name == request.written).map_or("{}", |(_, config)| config);
            images.insert(request.reference, request.platform.clone(), image(config, &request.platform));
        }
    }
}

/// What a check found.
pub(crate) fn lint_line(source: &SourceFile, finding: &Finding) -> String {
    let lines = source.lines(finding.span);
    let mends = if finding.edits.is_empty() { "" } else { " [can be mended]" };
    format!("check {}-{} {}: {}{mends}\n", lines.first, lines.last, finding.rule.name, finding.message)
}

/// The graph, a node per paragraph, then the config and its history.
pub(crate) fn print(lowered: &Lowered) -> String {
    let mut out = String::new();
    for (id, node) in lowered.graph.nodes() {
        let inputs: Vec<String> = node.inputs.iter().map(|input| format!("#{}", input.index())).collect();
        out.push_str(&format!("\n#{} {}\n", id.index(), node.meta.name));
        let lines = node.meta.span.map(|span| match span.first == span.last {
            true => format!("line {}", span.first),
            false => format!("lines {}-{}", span.first, span.last),
        });
        let no_cache = node.meta.ignore_cache.then(|| "no cache".to_owned());
        let inputs = (!inputs.is_empty()).then(|| format!("of {}", inputs.join(" ")));
        let stage = node.meta.stage.as_ref().map(|stage| format!("stage {stage}"));
        let facts: Vec<String> = [lines, stage, inputs, no_cache].into_iter().flatten().collect();
        out.push_str(&format!("   {}\n", facts.join(", ")));
        out.push_str(&op(&node.op));
    }
    let root = lowered.root.map_or("empty".to_owned(), |root| format!("#{}", root.index()));
    out.push_str(&format!("\nroot {root} {}\n", lowered.platform));
    for local in &lowered.local_contexts {
        out.push_str(&format!("reads {}: {}\n", local.name, local.paths.join(" ")));
    }
    if lowered.scan.context || !lowered.scan.stages.is_empty() {
        let stages: Vec<&str> = lowered.scan.stages.iter().map(|(name, _)| name.as_str()).collect();
        out.push_str(&format!("scans context={} stages={}\n", lowered.scan.context, stages.join(" ")));
    }
    let mut config = lowered.config.clone();
    let history = std::mem::take(&mut config.history);
    config.rootfs.kind.clear();
    let config = serde_json::to_value(&config).unwrap();
    for (key, value) in config["config"].as_object().unwrap() {
        out.push_str(&format!("config {key} = {value}\n"));
    }
    if !lowered.config.author.is_empty() {
        out.push_str(&format!("author {}\n", lowered.config.author));
    }
    for entry in history {
        let layer = if entry.empty_layer { "     " } else { "layer" };
        let created = entry.created.map(|time| format!(" {time}")).unwrap_or_default();
        let comment = if entry.comment == "buildkit.dockerfile.v0" { "" } else { " (of the base)" };
        out.push_str(&format!("{layer} {}{comment}{created}\n", entry.created_by.replace('\n', "\\n")));
    }
    out
}

/// The op's fields, a line each, without those that say nothing.
fn op(op: &Op) -> String {
    let value = prune(serde_json::to_value(op).unwrap());
    let mut out = String::new();
    let (mut kind, mut value) = only_entry(value);
    if kind == "Source" {
        let (source, inner) = only_entry(value);
        kind = format!("Source {source}");
        value = inner;
    }
    out.push_str(&format!("   {kind}\n"));
    let Value::Object(fields) = value else { return out };
    for (name, value) in fields {
        match value {
            Value::Array(items) if matches!(name.as_str(), "actions" | "mounts") => {
                for item in items {
                    out.push_str(&format!("     {item}\n"));
                }
            }
            Value::Array(items) if name == "env" => {
                let pairs: Vec<String> =
                    items.iter().map(|pair| format!("{}={}", text(&pair[0]), text(&pair[1]))).collect();
                out.push_str(&format!("     env {}\n", pairs.join(" ").replace('\n', "\\n")));
            }
            value => out.push_str(&format!("     {name} {value}\n")),
        }
    }
    out
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn only_entry(value: Value) -> (String, Value) {
    match value {
        Value::Object(map) => map.into_iter().next().unwrap(),
        Value::String(name) => (name, Value::Null),
        other => panic!("{other}"),
    }
}

/// Without nulls, `false`, and empty things; content and platforms in a readable form.
fn prune(value: Value) -> Value {
    match value {
        Value::Array(items) => Value::Array(items.into_iter().map(prune).collect()),
        Value::Object(map) if map.contains_key("architecture") => {
            Value::String(format!("{}/{}", text(&map["os"]), text(&map["architecture"])))
        }
        Value::Object(map) => {
            let kept = map.into_iter().map(|(key, value)| match (key.as_str(), &value) {
                ("data", Value::String(hex)) => (key, Value::String(unhex(hex))),
                ("mode", Value::Number(mode)) => (key, Value::String(format!("{:04o}", mode.as_u64().unwrap()))),
                ("Octal", Value::Number(mode)) => (key, Value::String(format!("{:04o}", mode.as_u64().unwrap()))),
                _ => (key, prune(value)),
            });
            // A variant's name says something even if nothing is in it.
            let variant = |key: &str| key.starts_with(|c: char| c.is_ascii_uppercase());
            Value::Object(kept.filter(|(key, value)| variant(key) || !says_nothing(value)).collect())
        }
        other => other,
    }
}

fn says_nothing(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(text) => text.is_empty() || text == "Default" || text == "Sandbox",
        Value::Array(items) => items.is_empty(),
        Value::Object(map) => map.is_empty(),
        _ => false,
    }
}

fn unhex(hex: &str) -> String {
    let bytes =
        hex.as_bytes().chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap());
    String::from_utf8_lossy(&bytes.collect::<Vec<u8>>()).into_owned()
}

/// The first lines that differ.
#[allow(dead_code)] // Only where cases are files.
pub(crate) fn difference(expected: &str, got: &str) -> String {
    let (expected, got): (Vec<&str>, Vec<&str>) = (expected.lines().collect(), got.lines().collect());
    let first = expected.iter().zip(&got).take_while(|(a, b)| a == b).count();
    let show = |lines: &[&str], mark: &str| {
        lines.iter().skip(first).take(8).map(|line| format!("{mark} {line}\n")).collect::<String>()
    };
    format!("from line {} on:\n{}{}", first + 1, show(&expected, "-"), show(&got, "+"))
}
