//! Which stages a target needs, given what is known of the images so far.
//!
//! The triggers of a base image are instructions of the stage that names it. They can read further stages and images, so
//! what is reachable depends on the configs, and the walk is made again whenever more of them are known.

use std::collections::{BTreeMap, BTreeSet};

use graph::Platform;

use crate::images::{ImageRequest, Images, ResolvedImage};
use crate::instruction::InstructionKind;
use crate::plan::Plan;
use crate::stage::{ImageName, Origin, Stage, Step, context_image, near_names};
use crate::{Diagnostic, Diagnostics, SourceFile, Span};

/// The answer.
#[derive(Debug, Default)]
pub(crate) struct Reach {
    /// Positions of the needed stages, in the order of the file, which is a topological one.
    pub(crate) stages: BTreeSet<usize>,
    /// The triggers that run at the beginning of a stage.
    pub(crate) triggers: BTreeMap<usize, Vec<Step>>,
    /// What must be known for the rest, in the order of the file.
    pub(crate) missing: Vec<ImageRequest>,
    asked: BTreeMap<(String, Platform), ImageRequest>,
}

impl Reach {
    pub(crate) fn compute(plan: &Plan, images: &Images) -> Result<Self, Diagnostics> {
        let mut reach = Self::default();
        let mut open = if plan.options.all_stages { (0..plan.stages.list.len()).collect() } else { vec![plan.target] };
        reach.want(plan, images, &Origin::Main, &plan.options.target_platform, None);
        while let Some(number) = open.pop() {
            if !reach.stages.insert(number) {
                continue;
            }
            let stage = &plan.stages.list[number];
            let platform = stage.platform.as_ref().unwrap_or(&plan.options.target_platform);
            let base = reach.want(plan, images, &stage.origin, platform, Some(stage.span));
            if stage.replaced {
                continue;
            }
            let triggers = match &stage.origin {
                Origin::Stage(base) => {
                    open.push(*base);
                    own_triggers(&plan.stages.list[*base])
                }
                _ => base.map(|image| image.config.config.on_build.clone()).unwrap_or_default(),
            };
            let triggers = trigger_steps(plan, stage, &triggers)?;
            for step in triggers.iter().chain(&stage.steps) {
                for origin in &step.origins {
                    if let Origin::Stage(other) = origin {
                        open.push(*other);
                    }
                    let platform = &plan.options.target_platform;
                    reach.want(plan, images, origin, platform, Some(step.instruction.span));
                }
            }
            if !triggers.is_empty() {
                reach.triggers.insert(number, triggers);
            }
        }
        reach.missing = std::mem::take(&mut reach.asked).into_values().collect();
        reach.missing.sort_by_key(|request| request.span);
        Ok(reach)
    }

    /// Looks an origin's image up; one that is not known is asked for, once.
    fn want<'a>(
        &mut self,
        plan: &Plan,
        images: &'a Images,
        origin: &Origin,
        platform: &Platform,
        span: Option<Span>,
    ) -> Option<&'a ResolvedImage> {
        let name = origin_image(plan, origin)?;
        if let Some(found) = images.get(&name.full, platform) {
            return Some(found);
        }
        let request = self.asked.entry((name.full.clone(), platform.clone())).or_insert_with(|| {
            let short = name.written.split([':', '@']).next().unwrap_or_default();
            let suggestion = Diagnostic::new(Span::default(), "").with_suggestion(short, near_names(&plan.stages));
            ImageRequest {
                reference: name.full,
                written: name.written,
                platform: platform.clone(),
                span,
                did_you_mean: suggestion.hint,
            }
        });
        // The first place of the file that names it is the one to show.
        request.span = request.span.min(span);
        None
    }
}

/// The image that an origin stands for, if it stands for one.
pub(crate) fn origin_image(plan: &Plan, origin: &Origin) -> Option<ImageName> {
    let context = match origin {
        Origin::Image(name) => return Some(name.clone()),
        Origin::Main => &plan.options.context,
        Origin::Context(key) => plan.options.named_contexts.get(key)?,
        Origin::Empty | Origin::Stage(_) => return None,
    };
    let written = context_image(context)?;
    let full = crate::image_name::normalise(written).unwrap_or_else(|_| written.to_owned());
    Some(ImageName { full, written: written.to_owned() })
}

fn own_triggers(base: &Stage) -> Vec<String> {
    let triggers = base.steps.iter().filter_map(|step| match &step.instruction.kind {
        InstructionKind::Onbuild(onbuild) => Some(onbuild.trigger.clone()),
        _ => None,
    });
    triggers.collect()
}

/// Triggers as instructions of `stage`. Whatever is wrong with one is shown at the FROM that brought it in.
fn trigger_steps(plan: &Plan, stage: &Stage, triggers: &[String]) -> Result<Vec<Step>, Diagnostics> {
    let mut steps = Vec::with_capacity(triggers.len());
    for trigger in triggers {
        let at_from = |problem: Diagnostic| {
            let message = format!("ONBUILD trigger {trigger:?} of the base: {}", problem.message);
            let here = Diagnostic::new(stage.span, message);
            match problem.hint {
                Some(hint) => here.with_hint(hint),
                None => here,
            }
        };
        let source = SourceFile::new("ONBUILD", trigger.as_str());
        let mut instruction = crate::parse_trigger(&source)
            .map_err(|problems| Diagnostics(problems.0.into_iter().map(at_from).collect()))?;
        if matches!(instruction.kind, InstructionKind::From(_)) {
            return Err(at_from(Diagnostic::new(stage.span, "FROM is not allowed as a trigger")).into());
        }
        instruction.span = stage.span;
        steps.push(plan.stages.step(instruction, true, &plan.options).map_err(at_from)?);
    }
    Ok(steps)
}
