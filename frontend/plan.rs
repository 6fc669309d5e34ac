//! From a Dockerfile to a plan: parsed, its global scope evaluated, its stages named. What remains open is what only the
//! base images can say.

use std::collections::{BTreeMap, BTreeSet};

use graph::{ContentDigest, Platform};

use crate::expand::Expander;
use crate::images::{ImageRequest, Images};
use crate::instruction::{ArgInstruction, Dockerfile, FromInstruction, Instruction, InstructionKind};
use crate::lint::{self, Linter};
use crate::options::{NoCache, Options};
use crate::outline::{GlobalArg, OutlineArg, description};
use crate::reach::Reach;
use crate::scope::{Scope, Volume, automatic_args};
use crate::stage::{NewStage, Stages};
use crate::{Diagnostic, Diagnostics, SourceFile, Span};

/// A Dockerfile that is ready to be lowered, once the images it needs are known.
#[derive(Debug)]
pub struct Plan {
    pub(crate) source: SourceFile,
    pub(crate) options: Options,
    pub(crate) expander: Expander,
    pub(crate) stages: Stages,
    pub(crate) target: usize,
    /// What the FROMs see, and what an ARG without a value takes its value from.
    pub(crate) global: Scope,
    /// Time of the new history entries.
    pub(crate) created: Option<String>,
    /// The ARGs before the first FROM.
    pub(crate) global_args: BTreeMap<String, GlobalArg>,
    /// Names of all ARGs of the file.
    pub(crate) declared_args: BTreeSet<String>,
    pub(crate) warnings: Vec<Diagnostic>,
    /// With what the checks of the text found.
    pub(crate) linter: Linter,
}

impl Plan {
    /// The images that must be known, but are not among `known`. The triggers of a base image can name further images, so
    /// the answer is complete only when it is empty: resolve, add, ask again.
    pub fn missing_images(&self, known: &Images) -> Result<Vec<ImageRequest>, Diagnostics> {
        Reach::compute(self, known).map(|reach| reach.missing)
    }

    /// The names of the stages, `stage-N` for those without; the one to build is [`Self::target_stage`].
    pub fn stage_names(&self) -> impl Iterator<Item = &str> {
        self.stages.names()
    }

    /// The name of the stage to build.
    #[must_use]
    pub fn target_stage(&self) -> &str {
        self.stages.list.get(self.target).map_or("", |stage| stage.label.as_str())
    }

    /// The options in effect: those given, with what build arguments such as `SOURCE_DATE_EPOCH` and
    /// `BUILDKIT_SANDBOX_HOSTNAME` say.
    #[must_use]
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// Identifies the Dockerfile's text, for records of a build.
    #[must_use]
    pub fn source_digest(&self) -> ContentDigest {
        ContentDigest::of(self.source.text().as_bytes())
    }
}

/// Parses a Dockerfile and settles what its stages are. Everything that can be wrong without knowing an image is reported
/// here.
pub fn plan(source: &SourceFile, options: &Options) -> Result<Plan, Diagnostics> {
    crate::syntax::check(source, options)?;
    let dockerfile = crate::parse(source)?;
    let mut linter = Linter::new(check_options(&dockerfile, options)?);
    lint::text(&mut linter, source, &dockerfile);
    let mut options = options.clone();
    let expander = Expander::new(dockerfile.escape);
    let warnings = dockerfile.warnings;
    let (global_args, blocks) = split(dockerfile.instructions);
    let Some(last) = blocks.last() else {
        let message = "the Dockerfile contains no stages to build";
        return Err(Diagnostic::new(Span::default(), message).with_hint("begin with FROM").into());
    };

    let target_name = options.target.clone().or_else(|| last.from.name.as_ref().map(|name| name.text.to_string()));
    // A build argument by itself, or the same thing said by a flag: an ARG of that name sees either.
    if let Some(epoch) = options.source_date_epoch {
        options.build_args.insert("SOURCE_DATE_EPOCH".to_owned(), epoch.to_string());
    }
    apply_settings(&mut options);
    let mut global = automatic_args(&options, target_name.as_deref());
    let volume = Volume::default();
    check_defaults(&mut linter, &global_args, &blocks, &global, expander);
    let mut declared_args = BTreeSet::new();
    let mut outline = BTreeMap::new();
    for (head, arg) in &global_args {
        declare(&arg.args, &mut declared_args);
        evaluate_global(head, arg, &mut global, (expander, &volume), &options, &mut outline)?;
    }
    let created = creation_time(&mut options, &global)?;

    let mut stages = Stages::default();
    let mut problems = Vec::new();
    for block in &blocks {
        let facts = Facts { source, global: &global, declared: &declared_args, expander, volume: &volume };
        match new_stage(block, &facts, &mut linter) {
            Ok(stage) => problems.extend(stages.add(stage, &options).err()),
            Err(problem) => problems.push(problem),
        }
    }
    if !problems.is_empty() {
        return Err(Diagnostics(problems));
    }
    // Only now are all names known that a `--from` can mean.
    for (number, block) in blocks.into_iter().enumerate() {
        if stages.list[number].replaced {
            continue;
        }
        let mut steps = Vec::with_capacity(block.instructions.len());
        for instruction in block.instructions {
            if let InstructionKind::Arg(arg) = &instruction.kind {
                declare(&arg.args, &mut declared_args);
            }
            match stages.step(instruction, false, &options) {
                Ok(step) => steps.push(step),
                Err(problem) => problems.push(problem),
            }
        }
        stages.list[number].steps = steps;
    }
    problems.extend(stages.check_cycles().err());
    if !problems.is_empty() {
        return Err(Diagnostics(problems));
    }
    stages.settle_lone();
    let target = stages.target(options.target.as_deref())?;
    let mut warnings = warnings;
    warnings.extend(unknown_filters(&options, &stages));
    let source = source.clone();
    Ok(Plan {
        source,
        options,
        expander,
        stages,
        target,
        global,
        created,
        global_args: outline,
        declared_args,
        warnings,
        linter,
    })
}

/// A FROM and the instructions that belong to it.
struct Block {
    from: FromInstruction,
    /// The FROM as a whole.
    head: Instruction,
    instructions: Vec<Instruction>,
}

fn split(instructions: Vec<Instruction>) -> (Vec<(Instruction, ArgInstruction)>, Vec<Block>) {
    let (mut global, mut blocks) = (Vec::new(), Vec::<Block>::new());
    for instruction in instructions {
        match (&instruction.kind, blocks.last_mut()) {
            (InstructionKind::From(from), _) => {
                blocks.push(Block { from: from.as_ref().clone(), head: instruction, instructions: Vec::new() });
            }
            (InstructionKind::Arg(arg), None) => {
                let arg = arg.clone();
                global.push((instruction, arg));
            }
            // The parser lets nothing else stand before the first FROM.
            (_, None) => {}
            (_, Some(block)) => block.instructions.push(instruction),
        }
    }
    (global, blocks)
}

/// Which checks run: the build argument goes before the directive.
fn check_options(dockerfile: &Dockerfile, options: &Options) -> Result<lint::Config, Diagnostic> {
    const NAME: &str = "BUILDKIT_DOCKERFILE_CHECK";
    if let Some(text) = options.build_args.get(NAME) {
        return lint::Config::parse(text)
            .map_err(|error| Diagnostic::new(Span::default(), format!("failed to parse {NAME}: {error}")));
    }
    let Some(directive) = dockerfile.directive("check") else { return Ok(lint::Config::default()) };
    let value = directive.value.text.split(' ').next().unwrap_or_default();
    lint::Config::parse(value).map_err(|error| {
        Diagnostic::new(directive.value.span, format!("failed to parse check options: {error}"))
            .with_hint("for instance # check=skip=JSONArgsRecommended;error=true")
    })
}

/// What each FROM names if no build argument is given.
fn check_defaults(
    linter: &mut Linter,
    global_args: &[(Instruction, ArgInstruction)],
    blocks: &[Block],
    automatic: &Scope,
    expander: Expander,
) {
    let (mut defaults, volume) = (automatic.clone(), Volume::default());
    for definition in global_args.iter().flat_map(|(_, arg)| &arg.args) {
        let Some(default) = &definition.value else { continue };
        // What cannot be expanded is reported where it counts.
        let Ok(value) = defaults.expand(expander, &default.text) else { return };
        if volume.spend(value.len()).is_err() {
            return;
        }
        defaults.set(definition.name.text.as_str(), value);
    }
    for block in blocks {
        let Ok(name) = defaults.expand(expander, &block.from.image.text) else { return };
        if volume.spend(name.len()).is_err() {
            return;
        }
        lint::invalid_default_arg::check(linter, block.head.span, &block.from.image.text, &name);
    }
}

fn declare(args: &[crate::instruction::ArgDefinition], declared: &mut BTreeSet<String>) {
    declared.extend(args.iter().map(|arg| arg.name.text.to_string()));
}

/// The build arguments that stand for a flag.
fn apply_settings(options: &mut Options) {
    if let Some(hostname) = options.build_args.get("BUILDKIT_SANDBOX_HOSTNAME").filter(|name| !name.is_empty()) {
        options.hostname = Some(hostname.clone());
    }
    if let Some(multi) = options.build_args.get("BUILDKIT_MULTI_PLATFORM").and_then(|v| crate::scope::parse_bool(v)) {
        options.multi_platform = multi;
    }
}

fn evaluate_global(
    head: &Instruction,
    arg: &ArgInstruction,
    global: &mut Scope,
    (expander, volume): (Expander, &Volume),
    options: &Options,
    outline: &mut BTreeMap<String, GlobalArg>,
) -> Result<(), Diagnostic> {
    let span = head.span;
    for definition in &arg.args {
        let name = definition.name.text.as_str();
        let mut needs = BTreeSet::new();
        if let Some(value) = options.build_args.get(name) {
            global.set(name, value);
        } else if let Some(default) = &definition.value {
            let done = expander.process_word(&default.text, global);
            let done = done.map_err(|error| Diagnostic::new(span, error.to_string()))?;
            volume.spend(done.text.len()).map_err(|reason| Diagnostic::new(span, reason.to_string()))?;
            global.set(name, done.text);
            needs = done.used;
            // A default that is made of the one before is made of what that was made of.
            if needs.remove(name)
                && let Some(before) = outline.get(name)
            {
                needs.extend(before.needs.iter().cloned());
            }
        }
        // Declared without a value, it may still have that of an automatic argument, which is not its own.
        let given = options.build_args.contains_key(name) || definition.value.is_some();
        let value = global.value(name).filter(|_| given).unwrap_or_default().to_owned();
        let description = description(&head.comments, name);
        let arg = OutlineArg { name: name.to_owned(), description, value, span };
        outline.insert(name.to_owned(), GlobalArg { arg, needs });
    }
    Ok(())
}

/// The time of `SOURCE_DATE_EPOCH`, which must be a number of seconds.
fn creation_time(options: &mut Options, global: &Scope) -> Result<Option<String>, Diagnostic> {
    const NAME: &str = "SOURCE_DATE_EPOCH";
    let value = options.build_args.get(NAME).map(String::as_str).or_else(|| global.value(NAME));
    let Some(value) = value.filter(|value| !value.is_empty()) else {
        options.build_args.remove(NAME);
        return Ok(None);
    };
    if value == "context" {
        // That of what the context was fetched as; files of the caller's have none.
        options.source_date_epoch = options.context_time;
        let value = options.context_time.map(|time| time.to_string()).unwrap_or_default();
        options.build_args.insert(NAME.to_owned(), value);
        let time = options.context_time.and_then(|seconds| jiff::Timestamp::from_second(seconds).ok());
        return Ok(time.map(|time| time.to_string()));
    }
    let time = value.parse::<i64>().ok().and_then(|seconds| jiff::Timestamp::from_second(seconds).ok());
    let Some(time) = time else {
        let message = format!("invalid {NAME}: {value}");
        return Err(
            Diagnostic::new(Span::default(), message).with_hint("give the seconds since 1970-01-01, as in 1767225600")
        );
    };
    options.source_date_epoch = Some(time.as_second());
    Ok(Some(time.to_string()))
}

/// What a FROM may refer to.
struct Facts<'a> {
    source: &'a SourceFile,
    global: &'a Scope,
    /// ARGs before the first FROM, also those without a value.
    declared: &'a BTreeSet<String>,
    expander: Expander,
    volume: &'a Volume,
}

fn new_stage(block: &Block, facts: &Facts<'_>, linter: &mut Linter) -> Result<NewStage, Diagnostic> {
    let Facts { source, global, declared, expander, volume } = *facts;
    let (from, span) = (&block.from, block.head.span);
    let comments = &block.head.comments;
    let mut from_args = BTreeSet::new();
    let expand = |word: &crate::instruction::Word| {
        let done = expander.process_word(&word.text, global);
        let done = done.map_err(|error| Diagnostic::new(word.span, error.to_string()))?;
        volume.spend(done.text.len()).map_err(|reason| Diagnostic::new(word.span, reason.to_string()))?;
        Ok(done)
    };
    let suggest = |problem: Diagnostic, unset: &BTreeSet<String>| match unset.first() {
        None => problem,
        Some(name) => {
            let hinted = problem.clone().with_suggestion(name, global.names());
            if hinted.hint.is_some() {
                hinted
            } else {
                problem.with_hint(format!("{name} is not set here: declare it with ARG {name}=… before the first FROM"))
            }
        }
    };
    let set: Vec<&str> = global.names().collect();
    let image = expand(&from.image)?;
    from_args.extend(image.used.iter().cloned());
    lint::undefined_arg_in_from::check(linter, comments, span, &image.unset, declared, &set);
    if image.text.is_empty() {
        let message = format!("base name ({}) should not be blank", from.image.text);
        return Err(suggest(Diagnostic::new(from.image.span, message), &image.unset));
    }
    let platform = match &from.platform {
        None => None,
        Some(word) => {
            let text = expand(word)?;
            from_args.extend(text.used.iter().cloned());
            lint::undefined_arg_in_from::check(linter, comments, span, &text.unset, declared, &set);
            let target = global.value("TARGETPLATFORM");
            lint::redundant_platform::check(linter, source, &block.head, from, &text, target);
            lint::from_platform_const::check(linter, &block.head, from, &text);
            if text.text.is_empty() {
                let message = format!("empty platform value from expression {}", word.text);
                return Err(suggest(Diagnostic::new(word.span, message), &text.unset));
            }
            let parsed = text.text.parse::<Platform>().map_err(|error| {
                let problem = Diagnostic::new(word.span, format!("failed to parse platform {}: {error}", word.text));
                match text.text.contains('(') {
                    true => problem.with_hint(
                        "leave out what is in parentheses: versions and features of systems choose nothing here",
                    ),
                    false => suggest(problem, &text.unset),
                }
            })?;
            Some(parsed)
        }
    };
    Ok(NewStage {
        image: image.text,
        image_span: from.image.span,
        name: from.name.as_ref().map(|name| name.text.to_string()),
        platform,
        span,
        description: from.name.as_ref().map_or(String::new(), |name| description(comments, &name.text)),
        from_args,
    })
}

/// A filter that names no stage would silently do nothing.
fn unknown_filters(options: &Options, stages: &Stages) -> Vec<Diagnostic> {
    let NoCache::Stages(names) = &options.no_cache else { return Vec::new() };
    let unknown = names.iter().filter(|name| stages.find(name).is_none());
    unknown
        .map(|name| {
            let message = format!("--no-cache-filter names no stage of this Dockerfile: {name:?}");
            Diagnostic::new(Span::default(), message).with_suggestion(name, stages.names())
        })
        .collect()
}
