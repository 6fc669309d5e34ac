//! What can be said of a Dockerfile without building it: what its checks find, what its targets are, what they can be
//! given.

use std::fmt::Write as _;
use std::sync::Arc;

use frontend::lint::Finding;
use frontend::{Diagnostics, Images, Lowered, Outline, SourceFile, Target};
use serde_json::{Value, json};
use solver::{Found, Progress};
use tokio_util::sync::CancellationToken;

use crate::build::{self, BuildError, Named};
use crate::report::{Excerpt, Report};
use crate::request::Request;
use crate::session::Session;

/// A Dockerfile, looked at.
#[derive(Debug)]
pub struct Checked {
    /// The text.
    pub source: SourceFile,
    /// What the checks found.
    pub findings: Vec<Finding>,
    /// What is wrong with the file; then the findings may be incomplete.
    pub problems: Option<Diagnostics>,
    /// What the target can be given.
    pub outline: Outline,
    /// Base images that could not be had, and why. What depends on them was not checked.
    pub unknown: Vec<String>,
}

/// Reads a Dockerfile, and nothing else.
///
/// # Errors
/// The context or the Dockerfile cannot be read.
pub async fn source(
    session: &Session,
    request: Request,
    progress: &Progress,
    cancelled: &CancellationToken,
) -> Result<SourceFile, BuildError> {
    let loaded = build::load(session, request.context, request.file, progress, cancelled).await?;
    Ok(loaded.dockerfile.source)
}

/// Looks at a Dockerfile: with `all` at all its stages, unless the request names one. Base images that cannot be had do not matter.
///
/// # Errors
/// The context or the Dockerfile cannot be read.
pub async fn check(
    session: &Session,
    request: Request,
    all: bool,
    progress: &Progress,
    cancelled: &CancellationToken,
) -> Result<Checked, BuildError> {
    let Request { context, file, frontend: options, platforms, targets, places, pull, .. } = request;
    // Of several platforms the first is as good as any.
    let mut options = build::options_for(&options, &platforms).into_iter().next().unwrap_or(options);
    let named = Named { session, places: &places, targets: &targets, pull };
    let loaded = build::load(session, context, file, progress, cancelled).await?;
    options.ignored = Some(Arc::new(loaded.context.ignore.patterns().clone()));
    options.all_stages = all && options.target.is_none();
    let source = loaded.dockerfile.source;
    let mut unknown = Vec::new();
    // A target that cannot be had is a base image that is not known.
    if let Err(BuildError::Cancelled) = named.add(&mut options, &source, progress, cancelled).await {
        return Err(BuildError::Cancelled);
    }
    let lowered = match frontend::plan(&source, &options) {
        Ok(plan) => {
            let found = images(session, &plan, pull, progress, cancelled, &mut unknown).await;
            match found? {
                Ok(images) => frontend::lower(&plan, &images),
                Err(problems) => Err(problems),
            }
        }
        Err(problems) => Err(problems),
    };
    Ok(match lowered {
        Ok(Lowered { findings, violation, outline, .. }) => {
            Checked { source, findings, problems: violation.map(Diagnostics::from), outline, unknown }
        }
        Err(problems) => {
            Checked { source, findings: Vec::new(), problems: Some(problems), outline: Outline::default(), unknown }
        }
    })
}

/// The base images as far as they can be had; the inner error is the Dockerfile's.
async fn images(
    session: &Session,
    plan: &frontend::Plan,
    pull: bool,
    progress: &Progress,
    cancelled: &CancellationToken,
    unknown: &mut Vec<String>,
) -> Result<Result<Images, Diagnostics>, BuildError> {
    let mut images = Images::new();
    loop {
        let missing = match plan.missing_images(&images) {
            Ok(missing) if missing.is_empty() => return Ok(Ok(images)),
            Ok(missing) => missing,
            Err(problems) => return Ok(Err(problems)),
        };
        let found = missing.iter().map(|request| async move {
            let vertex = progress.vertex(&format!("[internal] load metadata for {}", request.reference));
            tokio::select! {
                () = cancelled.cancelled() => Err(BuildError::Cancelled),
                found = vertex.during(crate::engines::find(session, request, pull, &vertex)) => Ok(found),
            }
        });
        let found = futures_util::future::try_join_all(found).await?;
        for (request, found) in missing.into_iter().zip(found) {
            match found {
                Ok(found) => images.insert(request.reference, request.platform, found.resolved),
                Err(error) => {
                    unknown.push(format!("{}: {error}", request.written));
                    images.insert_unknown(request.reference, request.platform);
                }
            }
        }
    }
}

/// A finding for the progress display.
#[must_use]
pub fn event(source: &SourceFile, finding: &Finding) -> Found {
    let span = source.lines(finding.span);
    Found {
        message: format!("{}: {} (line {})", finding.rule.name, finding.message, span.first),
        detail: finding.rule.description.to_owned(),
        url: finding.rule.url(),
        file: source.name().to_owned(),
        text: source.text().to_owned(),
        span,
    }
}

impl Checked {
    /// Whether there is anything to complain about.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.findings.is_empty() && self.problems.is_none()
    }

    /// In docker's words: every finding with the lines it is about.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        for finding in &self.findings {
            let url = finding.rule.url().map(|url| format!(" - {url}")).unwrap_or_default();
            let _ = write!(text, "\nWARNING: {}{url}\n{}\n", finding.rule.name, finding.message);
            Excerpt::of_lines(&self.source, self.source.lines(finding.span)).render(&mut text, false);
        }
        text
    }

    /// The line at the end.
    #[must_use]
    pub fn conclusion(&self) -> String {
        match (self.findings.len(), &self.problems) {
            (0, None) => "Check complete, no warnings found.".to_owned(),
            (0, Some(_)) => "Check complete, the Dockerfile cannot be built.".to_owned(),
            (1, _) => "Check complete, 1 warning has been found!".to_owned(),
            (many, _) => format!("Check complete, {many} warnings have been found!"),
        }
    }

    /// In the shape of BuildKit's lint results.
    #[must_use]
    pub fn json(&self) -> Value {
        let warnings: Vec<Value> = self
            .findings
            .iter()
            .map(|finding| {
                let mut warning = json!({
                    "ruleName": finding.rule.name,
                    "description": finding.rule.description,
                    "detail": finding.message,
                    "location": self.location(finding.span),
                });
                if let (Some(url), Some(object)) = (finding.rule.url(), warning.as_object_mut()) {
                    object.insert("url".to_owned(), url.into());
                }
                warning
            })
            .collect();
        let mut all = json!({
            "warnings": warnings,
            "sources": [{ "filename": self.source.name(), "language": "Dockerfile", "data": self.encoded() }],
        });
        let first = self.problems.as_ref().and_then(|problems| problems.0.first());
        if let (Some(problem), Some(object)) = (first, all.as_object_mut()) {
            let error = json!({ "message": problem.message, "location": self.location(problem.span) });
            object.insert("buildError".to_owned(), error);
        }
        all
    }

    /// In SARIF, for services that show findings beside the code.
    #[must_use]
    pub fn sarif(&self) -> Value {
        let uri = self.source.name();
        let place = |span: frontend::Span| {
            let (start, end) = (self.source.line_column(span.start()), self.source.line_column(span.end()));
            json!({
                "physicalLocation": {
                    "artifactLocation": { "uri": uri },
                    "region": {
                        "startLine": start.line,
                        "startColumn": start.column,
                        "endLine": end.line,
                        "endColumn": end.column,
                    },
                },
            })
        };
        let mut results: Vec<Value> = self
            .findings
            .iter()
            .map(|finding| {
                json!({
                    "ruleId": finding.rule.name,
                    "level": "warning",
                    "message": { "text": finding.message },
                    "locations": [place(finding.span)],
                })
            })
            .collect();
        for problem in self.problems.iter().flat_map(|problems| &problems.0) {
            results.push(json!({
                "ruleId": "BuildError",
                "level": "error",
                "message": { "text": problem.to_string() },
                "locations": [place(problem.span)],
            }));
        }
        let rules: Vec<Value> = frontend::lint::RULES
            .iter()
            .map(|rule| {
                json!({
                    "id": rule.name,
                    "shortDescription": { "text": rule.description },
                    "helpUri": rule.url(),
                })
            })
            .collect();
        json!({
            "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
            "version": "2.1.0",
            "runs": [{
                "tool": { "driver": { "name": "rbuild", "version": env!("CARGO_PKG_VERSION"), "rules": rules } },
                "results": results,
            }],
        })
    }

    /// What is wrong, for standard error.
    #[must_use]
    pub fn report(&self) -> Option<Report> {
        self.problems.as_ref().map(|problems| Report::of_dockerfile(&self.source, problems))
    }

    fn location(&self, span: frontend::Span) -> Value {
        location(&self.source, span)
    }

    fn encoded(&self) -> String {
        encoded(&self.source)
    }
}

fn encoded(source: &SourceFile) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(source.text())
}

/// Lines in the shape of BuildKit's locations: a range for each.
fn location(source: &SourceFile, span: frontend::Span) -> Value {
    let lines = source.lines(span);
    let line = |line: u32| json!({ "start": { "line": line }, "end": { "line": line } });
    json!({ "ranges": (lines.first..=lines.last).map(line).collect::<Vec<_>>() })
}

/// What a target can be given, as a table.
#[must_use]
pub fn outline_text(outline: &Outline) -> String {
    let mut text = String::new();
    if !outline.name.is_empty() || !outline.description.is_empty() {
        let name = if outline.name.is_empty() { "(default)" } else { &outline.name };
        let mut rows = vec![["TARGET:".to_owned(), name.to_owned()]];
        if !outline.description.is_empty() {
            rows.push(["DESCRIPTION:".to_owned(), outline.description.clone()]);
        }
        text.push_str(&columns(&rows, 1));
    }
    if !outline.args.is_empty() {
        let head = ["BUILD ARG", "VALUE", "DESCRIPTION"].map(str::to_owned);
        let rows = outline.args.iter().map(|arg| [arg.name.clone(), arg.value.clone(), arg.description.clone()]);
        text.push_str(&columns(&std::iter::once(head).chain(rows).collect::<Vec<_>>(), 3));
    }
    for (title, mounts) in [("SECRET", &outline.secrets), ("SSH", &outline.ssh)] {
        if mounts.is_empty() {
            continue;
        }
        let required = |required: bool| if required { "true".to_owned() } else { String::new() };
        let rows = mounts.iter().map(|mount| [mount.name.clone(), required(mount.required)]);
        let head = [title.to_owned(), "REQUIRED".to_owned()];
        text.push_str(&columns(&std::iter::once(head).chain(rows).collect::<Vec<_>>(), 3));
    }
    text
}

/// As BuildKit's outline.
#[must_use]
pub fn outline_json(source: &SourceFile, outline: &Outline) -> Value {
    let mut all = serde_json::Map::new();
    let mut text = |key: &str, value: &str| {
        if !value.is_empty() {
            all.insert(key.to_owned(), value.into());
        }
    };
    text("name", &outline.name);
    text("description", &outline.description);
    let args: Vec<Value> = outline
        .args
        .iter()
        .map(|arg| {
            without_empty(json!({
                "name": arg.name,
                "description": arg.description,
                "value": arg.value,
                "location": location(source, arg.span),
            }))
        })
        .collect();
    let mounts = |mounts: &[frontend::OutlineMount]| -> Vec<Value> {
        let one = |mount: &frontend::OutlineMount| {
            let required = mount.required.then_some(true);
            without_empty(json!({
                "name": mount.name,
                "required": required,
                "location": location(source, mount.span),
            }))
        };
        mounts.iter().map(one).collect()
    };
    for (key, list) in [("args", args), ("secrets", mounts(&outline.secrets)), ("ssh", mounts(&outline.ssh))] {
        if !list.is_empty() {
            all.insert(key.to_owned(), list.into());
        }
    }
    all.insert("sources".to_owned(), json!([encoded(source)]));
    Value::Object(all)
}

/// The stages, as a table.
#[must_use]
pub fn targets_text(targets: &[Target]) -> String {
    let head = ["TARGET", "DESCRIPTION"].map(str::to_owned);
    let rows = targets.iter().map(|target| {
        let name = match (target.name.is_empty(), target.default) {
            (true, true) => "(default)".to_owned(),
            (false, true) => format!("{} (default)", target.name),
            (_, false) => target.name.clone(),
        };
        [name, target.description.clone()]
    });
    columns(&std::iter::once(head).chain(rows).collect::<Vec<_>>(), 1).trim_end_matches('\n').to_owned() + "\n"
}

/// As BuildKit's list of targets.
#[must_use]
pub fn targets_json(source: &SourceFile, targets: &[Target]) -> Value {
    let targets: Vec<Value> = targets
        .iter()
        .map(|target| {
            without_empty(json!({
                "name": target.name,
                "default": target.default.then_some(true),
                "description": target.description,
                "base": target.base,
                "platform": target.platform,
                "location": location(source, target.span),
            }))
        })
        .collect();
    json!({ "targets": targets, "sources": [encoded(source)] })
}

/// Without members that say nothing.
fn without_empty(value: Value) -> Value {
    let Value::Object(members) = value else { return value };
    let says = |value: &Value| !value.is_null() && value.as_str() != Some("");
    Value::Object(members.into_iter().filter(|(_, value)| says(value)).collect())
}

/// Cells under each other, `space` between them, and an empty line at the end.
fn columns<const N: usize>(rows: &[[String; N]], space: usize) -> String {
    let mut text = String::new();
    let widths: Vec<usize> =
        (0..N).map(|at| rows.iter().map(|row| row[at].chars().count()).max().unwrap_or(0)).collect();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            let _ = write!(line, "{cell:width$}{}", " ".repeat(space));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_and_outlines_are_tables() {
        let text = "# app runs\nFROM a AS app\nFROM b\n";
        let targets = frontend::targets(&SourceFile::new("Dockerfile", text)).unwrap_or_default();
        assert_eq!(targets_text(&targets), "TARGET    DESCRIPTION\napp       runs\n(default)\n");
        let arg = frontend::OutlineArg {
            name: "V".into(),
            description: "the version".into(),
            value: "1".into(),
            span: frontend::Span::default(),
        };
        let secret = frontend::OutlineMount { name: "key".into(), required: true, span: frontend::Span::default() };
        let outline = Outline { args: vec![arg], secrets: vec![secret], ..Outline::default() };
        assert_eq!(
            outline_text(&outline),
            "BUILD ARG   VALUE   DESCRIPTION\nV           1       the version\n\nSECRET   REQUIRED\nkey      true\n\n"
        );
    }
}
