//! The stages of a Dockerfile and what each takes from the others.
//!
//! Names are settled here, once: a FROM, a `--from` or a mount's `from` is a stage, an image, a build context or nothing.
//! A FROM only sees the stages above it; a `--from` is looked up among all, so that a reference in the wrong direction is
//! reported as such instead of becoming an image of that name.

use std::collections::{BTreeSet, HashMap};

use graph::Platform;

use crate::image_name;
use crate::instruction::{Instruction, InstructionKind};
use crate::options::{ContextSource, Options};
use crate::{Diagnostic, Span};

/// Where a tree comes from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Origin {
    /// The main build context.
    Main,
    /// `scratch`: the empty tree.
    Empty,
    /// Another stage, by position.
    Stage(usize),
    /// An image.
    Image(ImageName),
    /// A context of the command line, by its key in the options.
    Context(String),
}

/// The name of an image.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct ImageName {
    /// With host and tag.
    pub(crate) full: String,
    /// As written.
    pub(crate) written: String,
}

/// An instruction of a stage, with the trees it reads.
#[derive(Clone, Debug)]
pub(crate) struct Step {
    pub(crate) instruction: Instruction,
    /// Of COPY: the one it reads. Of RUN: one per mount.
    pub(crate) origins: Vec<Origin>,
    /// A trigger that the base image or stage left.
    pub(crate) onbuild: bool,
}

/// One FROM and what follows it.
#[derive(Clone, Debug)]
pub(crate) struct Stage {
    pub(crate) name: Option<String>,
    /// `stage-0` if it has no name.
    pub(crate) label: String,
    /// The FROM.
    pub(crate) span: Span,
    pub(crate) origin: Origin,
    /// `--platform`.
    pub(crate) platform: Option<Platform>,
    /// The comment above it.
    pub(crate) description: String,
    /// The ARGs in its FROM.
    pub(crate) from_args: BTreeSet<String>,
    /// A named context took the stage's place: its instructions do not count.
    pub(crate) replaced: bool,
    pub(crate) steps: Vec<Step>,
}

/// All stages of one Dockerfile.
#[derive(Debug, Default)]
pub(crate) struct Stages {
    pub(crate) list: Vec<Stage>,
    by_name: HashMap<String, usize>,
    /// The only stage, whose steps need no name in front. BuildKit counts the images of `--from` and all mounts as stages
    /// here, and so do we: people compare the output.
    pub(crate) lone: bool,
}

impl Stages {
    /// A stage by its name, in any case. Of several the last one counts.
    pub(crate) fn find(&self, name: &str) -> Option<usize> {
        self.by_name.get(&name.to_lowercase()).copied()
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.list.iter().map(|stage| stage.label.as_str())
    }

    /// To be called once all steps are known.
    pub(crate) fn settle_lone(&mut self) {
        self.lone = self.list.len() == 1 && self.list[0].steps.iter().all(|step| step.origins.is_empty());
    }

    /// The stage to build.
    pub(crate) fn target(&self, wanted: Option<&str>) -> Result<usize, Diagnostic> {
        let Some(wanted) = wanted else { return Ok(self.list.len().saturating_sub(1)) };
        let by_number = || wanted.parse().ok().filter(|&number: &usize| number < self.list.len());
        let by_label = || self.list.iter().position(|stage| stage.label == wanted);
        self.find(wanted).or_else(by_number).or_else(by_label).ok_or_else(|| {
            let message = format!("target stage {wanted:?} could not be found");
            Diagnostic::new(Span::default(), message).with_suggestion(wanted, self.names())
        })
    }

    /// Adds a stage whose FROM was expanded to `image`.
    pub(crate) fn add(&mut self, from: NewStage, options: &Options) -> Result<(), Diagnostic> {
        let NewStage { image, image_span, name, platform, span, description, from_args } = from;
        let wanted = platform.as_ref().unwrap_or(&options.target_platform);
        let context = name.as_deref().and_then(|name| find_context(options, name, wanted));
        let replaced = context.is_some();
        let origin = match context {
            Some(key) => Origin::Context(key),
            // Stages are called by lower-case names, and here the name must be written so.
            None if image.chars().any(char::is_uppercase) => self.foreign(&image, wanted, options, image_span)?,
            None => self.origin(&image, wanted, options, image_span)?,
        };
        let label = name.clone().unwrap_or_else(|| format!("stage-{}", self.list.len()));
        if let Some(name) = &name {
            self.by_name.insert(name.to_lowercase(), self.list.len());
        }
        self.list.push(Stage {
            name,
            label,
            span,
            origin,
            platform,
            description,
            from_args,
            replaced,
            steps: Vec::new(),
        });
        Ok(())
    }

    /// What a name means: a stage, `scratch`, a named context or an image.
    fn origin(&self, name: &str, platform: &Platform, options: &Options, span: Span) -> Result<Origin, Diagnostic> {
        if let Some(stage) = self.find(name) {
            return Ok(Origin::Stage(stage));
        }
        self.foreign(name, platform, options, span)
    }

    /// What a name means that is no stage.
    fn foreign(&self, name: &str, platform: &Platform, options: &Options, span: Span) -> Result<Origin, Diagnostic> {
        if name == "scratch" {
            return Ok(Origin::Empty);
        }
        let full = image_name::normalise(name).map_err(|reason| {
            let message = format!("failed to parse stage name {name:?}: {reason}");
            Diagnostic::new(span, message).with_suggestion(name, self.names())
        })?;
        if let Some(key) = find_context(options, &full, platform) {
            return Ok(Origin::Context(key));
        }
        Ok(Origin::Image(ImageName { full, written: name.to_owned() }))
    }

    /// An instruction with its sources named.
    pub(crate) fn step(&self, instruction: Instruction, onbuild: bool, options: &Options) -> Result<Step, Diagnostic> {
        let mut origins = Vec::new();
        match &instruction.kind {
            InstructionKind::Copy(copy) => {
                if let Some(from) = &copy.from {
                    origins.push(self.copy_origin(&from.text, from.span, options)?);
                }
            }
            InstructionKind::Run(run) => {
                for mount in &run.mounts {
                    origins.push(match &mount.from {
                        // What a mount without `from` shows depends on its type: see the lowering.
                        None => Origin::Main,
                        Some(from) => self.origin(from, &options.target_platform, options, mount.value.span)?,
                    });
                }
            }
            _ => {}
        }
        Ok(Step { instruction, origins, onbuild })
    }

    fn copy_origin(&self, from: &str, span: Span, options: &Options) -> Result<Origin, Diagnostic> {
        if from.contains('$') {
            let message = "variable expansion is not supported for --from";
            return Err(Diagnostic::new(span, message).with_hint(
                "define a new stage with FROM, using an ARG of the global scope, and copy from that stage",
            ));
        }
        if let Ok(number) = from.parse::<i64>() {
            return match usize::try_from(number).ok().filter(|number| *number < self.list.len()) {
                Some(stage) => Ok(Origin::Stage(stage)),
                None => Err(Diagnostic::new(span, format!("invalid stage index {number}"))
                    .with_hint(format!("stages are numbered from 0 to {}", self.list.len().saturating_sub(1)))),
            };
        }
        self.origin(from, &options.target_platform, options, span)
    }

    /// Stages that need each other through `--from` can never be built.
    pub(crate) fn check_cycles(&self) -> Result<(), Diagnostic> {
        #[derive(Clone, Copy, PartialEq)]
        enum Mark {
            New,
            Open,
            Done,
        }
        let mut marks = vec![Mark::New; self.list.len()];
        for start in 0..self.list.len() {
            let mut path = vec![(start, self.needs(start))];
            while let Some((stage, needs)) = path.last_mut() {
                let stage = *stage;
                if marks[stage] == Mark::New {
                    marks[stage] = Mark::Open;
                }
                match needs.pop() {
                    _ if marks[stage] == Mark::Done => {
                        path.pop();
                    }
                    None => {
                        marks[stage] = Mark::Done;
                        path.pop();
                    }
                    Some((next, span)) if marks[next] == Mark::Open => {
                        let label = &self.list[next].label;
                        let message = format!("circular dependency detected on stage: {label}");
                        return Err(
                            Diagnostic::new(span, message).with_related(self.list[next].span, "the stage begins here")
                        );
                    }
                    Some((next, _)) if marks[next] == Mark::New => {
                        let needs = self.needs(next);
                        path.push((next, needs));
                    }
                    Some(_) => {}
                }
            }
        }
        Ok(())
    }

    /// The stages that a stage's instructions read, and where; the last first.
    fn needs(&self, stage: usize) -> Vec<(usize, Span)> {
        let steps = self.list[stage].steps.iter().rev();
        steps
            .flat_map(|step| {
                step.origins.iter().filter_map(|origin| match origin {
                    Origin::Stage(other) => Some((*other, step.instruction.span)),
                    _ => None,
                })
            })
            .collect()
    }
}

/// A FROM whose variables are expanded.
pub(crate) struct NewStage {
    pub(crate) image: String,
    pub(crate) image_span: Span,
    pub(crate) name: Option<String>,
    pub(crate) platform: Option<Platform>,
    pub(crate) span: Span,
    pub(crate) description: String,
    pub(crate) from_args: BTreeSet<String>,
}

/// The key of the named context that replaces `name`, the one for `platform` first. Names are compared in Docker's short
/// form, so `debian:latest` and `docker.io/library/debian` mean the same.
fn find_context(options: &Options, name: &str, platform: &Platform) -> Option<String> {
    if options.named_contexts.is_empty() || name.eq_ignore_ascii_case("scratch") || name.eq_ignore_ascii_case("context")
    {
        return None;
    }
    let short = |name: &str| match image_name::normalise(name) {
        Ok(full) => image_name::familiar(&full).to_owned(),
        Err(_) => name.to_owned(),
    };
    let wanted = short(name);
    let matching = |for_platform: bool| {
        options.named_contexts.keys().find(|key| {
            let (key_name, key_platform) = key.split_once("::").map_or((key.as_str(), None), |(n, p)| (n, Some(p)));
            let right_platform = match key_platform {
                Some(text) => for_platform && text.parse::<Platform>().is_ok_and(|key| key == *platform),
                None => !for_platform,
            };
            right_platform && short(key_name) == wanted
        })
    };
    matching(true).or_else(|| matching(false)).cloned()
}

/// The image behind a context, where it is one.
pub(crate) fn context_image(context: &ContextSource) -> Option<&str> {
    match context {
        ContextSource::Image(reference) if reference != "scratch" => Some(reference),
        _ => None,
    }
}

/// What a person may have meant when an image is not found: a stage, or an image that everybody uses.
pub(crate) fn near_names(stages: &Stages) -> impl Iterator<Item = &str> {
    const COMMON: [&str; 7] = ["alpine", "busybox", "centos", "debian", "golang", "ubuntu", "fedora"];
    // Each name costs a comparison per image; among thousands of stages nobody would see the one that is meant.
    stages.list.iter().take(200).filter_map(|stage| stage.name.as_deref()).chain(COMMON)
}
