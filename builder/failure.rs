//! From the errors of a build to what a person is told: message, place, causes, advice, exit code.

use crate::build::BuildError;
use crate::bundle::BundleError;
use crate::context::ContextError;
use crate::images::ImageError;
use crate::import::ImportError;
use crate::outputs::OutputError;
use crate::report::{EXIT_CANCELLED, EXIT_MISS, Excerpt, Report};
use crate::stored::StoredError;
use crate::worker::WorkError;

impl From<BuildError> for Report {
    fn from(error: BuildError) -> Self {
        match error {
            BuildError::Dockerfile { source_file, problems } => Self::of_dockerfile(&source_file, &problems),
            BuildError::Base { source_file, span, hint, source } => {
                let mut report = Self::of(&source);
                report.message = format!("failed to solve: {}", report.message);
                if let Some(span) = span {
                    report = report.with_excerpt(Excerpt::of_place(&source_file, span));
                }
                match hint {
                    Some(hint) => report.with_hint(hint),
                    None => report,
                }
            }
            BuildError::Step { source_file, span, platform, source, .. } => {
                let foreign = platform.filter(|_| is_format_error(&source));
                let mut report = Self::from(*source);
                if let Some(platform) = foreign {
                    report.hint = Some(format!(
                        "this step runs programs for {platform}, and this machine has no interpreter registered for \
                         them: install qemu-user-static (with binfmt-support), or copy into the image what a stage \
                         FROM --platform=$BUILDPLATFORM cross-compiles"
                    ));
                }
                report.message = format!("failed to solve: {}", report.message);
                match span {
                    Some(span) => report.with_excerpt(Excerpt::of_lines(&source_file, span)),
                    None => report,
                }
            }
            BuildError::Missed { ref source_file, span, .. } => {
                let report = Self::of(&error).with_exit_code(EXIT_MISS);
                match span {
                    Some(span) => report.with_excerpt(Excerpt::of_lines(source_file, span)),
                    None => report,
                }
            }
            BuildError::Cancelled => Self::of(&error).with_exit_code(EXIT_CANCELLED),
            BuildError::Work(error) => Self::from(error),
            BuildError::Context(error) => Self::from(error),
            other => Self::of(&other),
        }
    }
}

/// The kernel does not know how to start the program.
fn is_format_error(error: &WorkError) -> bool {
    matches!(error, WorkError::Start(failure) if failure.error.to_string().to_ascii_lowercase().contains("format"))
}

/// What a person can do with a step that failed.
const OPEN_IT: &str = "rbuild shell opens the step as it was when it failed";

impl From<WorkError> for Report {
    fn from(error: WorkError) -> Self {
        let report = Self::of(&error);
        match &error {
            WorkError::NoSource { hint: Some(hint), .. } => report.with_hint(hint),
            WorkError::Step(failure) if failure.kept.is_some() => report.with_hint(OPEN_IT),
            WorkError::Start(failure) => match (failure.error.hint(), failure.kept) {
                (Some(hint), Some(_)) => report.with_hint(format!("{hint} ({OPEN_IT})")),
                (Some(hint), None) => report.with_hint(hint),
                (None, Some(_)) => report.with_hint(OPEN_IT),
                (None, None) => report,
            },
            WorkError::NotAllowed(what) => {
                report.with_hint(format!("if you trust this Dockerfile, pass --allow {what}"))
            }
            WorkError::NoSecret { id } => {
                report.with_hint(format!("pass it with --secret id={id},src=FILE or --secret id={id},env=NAME"))
            }
            WorkError::NoSsh { id } => report.with_hint(format!("pass it with --ssh {id}")),
            WorkError::LayerLost(_) => {
                report.with_hint("pass --pull to fetch base images again, --no-cache to build anew")
            }
            _ => report,
        }
    }
}

impl From<ContextError> for Report {
    fn from(error: ContextError) -> Self {
        let report = Self::of(&error);
        match &error {
            ContextError::NoDockerfile { similar: Some(similar), .. } => {
                report.with_hint(format!("did you mean {similar}? Name it with -f"))
            }
            ContextError::NoDockerfile { .. } => report.with_hint("name the Dockerfile with -f"),
            _ => report,
        }
    }
}

impl From<OutputError> for Report {
    fn from(error: OutputError) -> Self {
        match error {
            OutputError::Work(error) => Self::from(error),
            other => Self::of(&other),
        }
    }
}

impl From<ImageError> for Report {
    fn from(error: ImageError) -> Self {
        Self::of(&error)
    }
}

impl From<StoredError> for Report {
    fn from(error: StoredError) -> Self {
        let report = Self::of(&error);
        match &error {
            StoredError::Missing(_) => report.with_hint("rbuild images lists what there is; rbuild pull fetches more"),
            StoredError::Ambiguous(_) => report.with_hint("give more of its digits"),
            StoredError::Image(_) | StoredError::Store(_) => report,
        }
    }
}

impl From<BundleError> for Report {
    fn from(error: BundleError) -> Self {
        match error {
            BundleError::Stored(error) => Self::from(error),
            BundleError::Output(error) => Self::from(error),
            BundleError::Import(error) => Self::from(error),
            other => Self::of(&other),
        }
    }
}

impl From<ImportError> for Report {
    fn from(error: ImportError) -> Self {
        let report = Self::of(&error);
        match &error {
            ImportError::NoImage => {
                report.with_hint("a tar of a root file system becomes an image with: rbuild import FILE NAME")
            }
            _ => report,
        }
    }
}
