//! `rbuild build`

use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::process::ExitCode;

use executor::rootless::Tier;
use graph::Digest;
use registry::Reference;
use solver::Progress;
use tokio_util::sync::CancellationToken;

use super::interrupt;
use super::lint::{self, Call};
use super::metadata::Metadata;
use crate::build::{self, BuildError, Built, Prepared};
use crate::builds::{About, Builds, Recorder, State};
use crate::cache::{self, CacheTo};
use crate::config::Engine;
use crate::export::{self, Annotations, Destination, OutputKind, OutputSpec};
use crate::outputs::{self, Delivered};
use crate::progress::{self, Mode};
use crate::provenance;
use crate::report::{EXIT_CANCELLED, Report};
use crate::request::Request;
use crate::session::Session;
use crate::size::Size;
use crate::terminal;
use crate::worker::Leaving;

/// Build an image from a Dockerfile
///
/// PATH is a directory, `-` (a Dockerfile or a tar of the context on standard input), or the URL of a Git repository.
#[derive(clap::Args, Debug, Clone)]
#[command(args_override_self = true)]
pub struct Args {
    /// Build context: a directory, `-` for standard input, or a URL
    #[arg(value_name = "PATH")]
    pub context: String,
    /// Name of the Dockerfile [default: PATH/Dockerfile]; `-` reads it from standard input
    #[arg(short, long, value_name = "FILE")]
    pub file: Option<String>,
    /// Name and optionally a tag (`name:tag`); may be given several times
    #[arg(short, long = "tag", value_name = "NAME")]
    pub tags: Vec<String>,
    /// Set a build-time variable (`NAME=value`, or `NAME` to pass on the caller's)
    #[arg(long = "build-arg", value_name = "NAME[=VALUE]")]
    pub build_args: Vec<String>,
    /// Additional build contexts (`name=path`, `name=docker-image://ref`, `name=target:stage`)
    #[arg(long = "build-context", value_name = "NAME=SOURCE")]
    pub build_contexts: Vec<String>,
    /// Build this stage instead of the last
    #[arg(long, value_name = "STAGE")]
    pub target: Option<String>,
    /// Set a label of the image
    #[arg(long = "label", value_name = "NAME=VALUE")]
    pub labels: Vec<String>,
    /// Do not use recorded results
    #[arg(long)]
    pub no_cache: bool,
    /// Do not use recorded results of these stages
    #[arg(long, value_name = "STAGE", value_delimiter = ',')]
    pub no_cache_filter: Vec<String>,
    /// Say at the end why each step was found in the cache or not (also later: `rbuild explain`)
    #[arg(long)]
    pub explain: bool,
    /// End the build, with exit status 3, where a step would have to run: any step, or one of STAGE
    #[arg(long, value_name = "STAGE", num_args = 0..=1, require_equals = true, default_missing_value = "")]
    pub fail_on_miss: Option<String>,
    /// Look for results in these shared caches too: `type=registry,ref=NAME` (or just NAME; an image with an inline cache
    /// will do), `type=local,src=DIR[,tag=TAG|,digest=DIGEST]`; `mounts=false` leaves the contents of cache mounts that are
    /// there; may be given several times
    #[arg(long = "cache-from", value_name = "SPEC")]
    pub cache_from: Vec<String>,
    /// Write results to a shared cache: `type=registry,ref=NAME`, `type=local,dest=DIR` or `type=inline`, with
    /// `mode=min|max`, `compression=gzip|zstd|uncompressed`, `compression-level=N`, `force-compression=BOOL`,
    /// `image-manifest=BOOL`, `oci-mediatypes=BOOL`, `ignore-error=BOOL`, `mounts=true|SIZE` (contents of the cache mounts
    /// that steps used go along, each up to SIZE, 1GB if not said); may be given several times
    #[arg(long = "cache-to", value_name = "SPEC")]
    pub cache_to: Vec<String>,
    /// Ask the registry for newer base images, even where a local image has the name
    #[arg(long)]
    pub pull: bool,
    /// Print nothing but the image id
    #[arg(short, long)]
    pub quiet: bool,
    /// Write the image id to this file
    #[arg(long, value_name = "FILE")]
    pub iidfile: Option<PathBuf>,
    /// Write what was built to this file, as JSON
    #[arg(long, value_name = "FILE")]
    pub metadata_file: Option<PathBuf>,
    /// Fail unless steps get at least this; without it the best that works is taken, and said
    #[arg(long, value_name = "TIER")]
    pub require_tier: Option<crate::tier::Required>,
    /// Network of RUN steps: default (private where it can be had, otherwise the host's), private, none or host
    #[arg(long, value_name = "MODE")]
    pub network: Option<String>,
    /// What steps may use.
    #[command(flatten)]
    pub limits: crate::resources::ResourceArgs,
    /// Kill a step that takes longer, as `90s` or `1h30m`, and show its processes
    #[arg(long, value_name = "TIME", value_parser = crate::resources::duration)]
    pub step_timeout: Option<std::time::Duration>,
    /// Kill a step that prints nothing for so long, and show its processes
    #[arg(long, value_name = "TIME", value_parser = crate::resources::duration)]
    pub idle_timeout: Option<std::time::Duration>,
    /// What to do when a step fails: end the build, or first open a shell in the step as it was left, with its mounts, user
    /// and limits (later: `rbuild shell`)
    #[arg(long, value_name = "WHAT", default_value = "end")]
    pub on_error: OnError,
    /// Progress display: auto, tty, plain, quiet or rawjson
    #[arg(long, value_name = "MODE", env = "BUILDKIT_PROGRESS", default_value = "auto")]
    pub progress: Mode,
    /// Where the result goes: `type=image|registry|oci|docker|tar|local|cacheonly[,dest=…]`, or a directory; may be given
    /// several times
    #[arg(short, long = "output", value_name = "SPEC")]
    pub outputs: Vec<String>,
    /// Push the image to the registry its name names (`--output type=registry`)
    #[arg(long)]
    pub push: bool,
    /// Load the image into docker, podman or containerd (`--output type=docker`), as far as it is not there
    #[arg(long)]
    pub load: bool,
    /// Annotate the image: `NAME=VALUE`, with `index:`, `manifest:`, `manifest-descriptor:` or `index-descriptor:` before
    /// it to say where, `manifest[linux/amd64]:` for one platform; may be given several times
    #[arg(long = "annotation", value_name = "NAME=VALUE")]
    pub annotations: Vec<String>,
    /// Add what is known of the build to the image, in one index with it: `type=provenance` (SLSA), with
    /// `mode=min|max`, `builder-id=URI`, `reproducible=BOOL`, `disabled=BOOL`; may be given several times
    #[arg(long = "attest", value_name = "SPEC")]
    pub attests: Vec<String>,
    /// Short for --attest type=provenance: true, false, or its other fields
    #[arg(long, value_name = "SPEC")]
    pub provenance: Option<String>,
    /// Short for --attest type=sbom, of which there is none here: only false is taken
    #[arg(long, value_name = "SPEC")]
    pub sbom: Option<String>,
    /// Make the new layers one
    #[arg(long)]
    pub squash: bool,
    /// Options of the old docker build that have no effect here.
    #[command(flatten)]
    pub obsolete: Obsolete,
    /// Platforms to build for, such as linux/amd64,linux/arm64 [default: this machine's]
    #[arg(long = "platform", value_name = "PLATFORM", env = "DOCKER_DEFAULT_PLATFORM")]
    pub platforms: Vec<String>,
    /// Secret for `RUN --mount=type=secret`: `id=ID[,src=FILE|,env=NAME]`. With `,cache-key=true` another value is another
    /// step: a keyed hash of it counts, whose key never leaves the store
    #[arg(long = "secret", value_name = "SPEC")]
    pub secrets: Vec<String>,
    /// ssh agent for `RUN --mount=type=ssh`: `default` (that of SSH_AUTH_SOCK), or `ID=SOCKET|KEY[,KEY]`. Steps can ask which
    /// keys there are and for signatures, and nothing else; keys themselves never reach them
    #[arg(long = "ssh", value_name = "SPEC")]
    pub ssh: Vec<String>,
    /// Add a line to /etc/hosts of RUN steps: `host:ip`; for `host-gateway` as the ip, this machine
    #[arg(long = "add-host", value_name = "HOST:IP")]
    pub add_hosts: Vec<String>,
    /// Allow what a Dockerfile may ask for: network.host, security.insecure
    #[arg(long = "allow", value_name = "ENTITLEMENT", value_delimiter = ',')]
    pub allow: Vec<String>,
    /// Check the Dockerfile instead of building it (`--call=check`)
    #[arg(long)]
    pub check: bool,
    /// What to do: build, check, outline (what the target can be given) or targets; `,format=json` for programs
    #[arg(long, value_name = "METHOD", default_value = "build")]
    pub call: String,
    /// Steps that may run at the same time
    #[arg(long, value_name = "N")]
    pub max_parallelism: Option<usize>,
    /// The most that the state directory may take, as `20GB`; the least recently used goes first [default: max-used-space of
    /// the configuration's [gc], otherwise no limit]
    #[arg(long, value_name = "SIZE")]
    pub max_used_space: Option<Size>,
}

/// `--on-error`
#[derive(clap::ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnError {
    /// Ends the build.
    End,
    /// Opens a shell first.
    Shell,
}

/// What `docker build` takes for the sake of its past.
#[derive(clap::Args, Debug, Clone, Default)]
pub struct Obsolete {
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    rm: Option<bool>,
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    force_rm: Option<bool>,
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    compress: Option<bool>,
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    stream: Option<bool>,
    #[arg(long, hide = true)]
    isolation: Option<String>,
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    disable_content_trust: Option<bool>,
}

impl Obsolete {
    /// One line for each that was given.
    fn lines(&self) -> impl Iterator<Item = String> {
        let given = [
            ("rm", self.rm.is_some(), "containers of steps are always removed"),
            ("force-rm", self.force_rm.is_some(), "containers of steps are always removed"),
            ("compress", self.compress.is_some(), "the context is read where it is, not sent"),
            ("stream", self.stream.is_some(), "the context is read where it is, not sent"),
            ("isolation", self.isolation.is_some(), "it is for Windows containers"),
            ("disable-content-trust", self.disable_content_trust.is_some(), "there is no Docker Content Trust here"),
        ];
        given.into_iter().filter(|(_, given, _)| *given).map(|(name, _, why)| format!("--{name} has no effect: {why}"))
    }
}

/// Builds, hands the result over, and says where it is.
///
/// # Errors
/// What a person is to be told.
pub async fn run(args: &Args, session: &Session) -> Result<ExitCode, Report> {
    if let Some(size) = args.max_used_space {
        session.set_limit(size);
    }
    let mut request = Request::from_args(args, &session.config).map_err(|why| Report::new(why).with_exit_code(2))?;
    let call = if args.check { Ok((Call::Check, false)) } else { Call::parse(&args.call) };
    let (call, json) = call.map_err(|why| Report::new(why).with_exit_code(2))?;
    if call != Call::Build {
        return lint::call(call, json, request, session).await;
    }
    if args.on_error == OnError::Shell && !(terminal::on_stdin() && terminal::on_stdout()) {
        let report = Report::new("--on-error=shell needs a terminal on standard input and output").with_exit_code(2);
        return Err(report.with_hint("without it, rbuild shell opens the step that failed afterwards"));
    }
    if let Some(required) = args.require_tier {
        crate::tier::check(required, &session.tier)
            .map_err(|why| Report::new(why).with_hint("rbuild doctor says what is missing and how to get it"))?;
    }
    let caches = args.cache_specs().map_err(|why| Report::new(why).with_exit_code(2))?;
    let mut outputs = default_outputs(std::mem::take(&mut request.outputs), session.config.load);
    args.amend(&mut outputs).map_err(|why| Report::new(why).with_exit_code(2))?;
    request.leaving = Leaving::of(&outputs);
    let tags = request.tags.clone();
    let mode = if args.quiet { Mode::Quiet } else { args.progress };
    let mode = Mode::choose(Some(mode)).map_err(|error| Report::of(&error).with_exit_code(2))?;
    let (progress, events) = solver::channel();
    let builds = Builds::new(session.store.builds_directory());
    let recorder = Recorder::new(builds.clone());
    let about = About { resources: request.policy.resources.clone(), network: request.policy.network, ..args.about() };
    request.recorder = Some(recorder.clone());
    let display = progress::start_observed(mode, events, &progress::Options::from_env(), Box::new(recorder.clone()));
    match &session.tier {
        Tier::SingleId { reason } => progress
            .warn(format!("all files belong to one id, since there are no subordinate ids (/etc/subuid): {reason}")),
        Tier::Confined { reason } => progress.warn(format!(
            "neither namespaces nor mounts are permitted here ({reason}): steps run one at a time in a chroot, without /proc, \
             in the network of this container, which is what separates them from the host"
        )),
        Tier::Root | Tier::SubordinateIds { .. } => {}
    }
    if let Some((found, fix)) = crate::tier::without_nodes(&session.tier, &session.store.scratch_directory()) {
        progress.warn(format!("{found}; {fix}"));
    }
    args.obsolete.lines().for_each(|line| progress.warn(line));
    let cancelled = CancellationToken::new();
    let signals = interrupt::cancels(&cancelled, &progress);
    let notices = session.notices.attach(&progress);
    let result = async {
        let permitted = outputs::check(session, &outputs, &tags, &progress, &cancelled).await;
        permitted.map_err(Failed::Output)?;
        let prepared = build::prepare(session, request, &progress, &cancelled).await.map_err(Failed::Build)?;
        make(session, &prepared, &outputs, &tags, &progress, &cancelled).await
    }
    .await;
    drop(signals);
    drop(notices);
    let summary = display.finish();
    if let Ok((built, _)) = &result {
        let size = |recorded: &cache::Recorded| Some(session.store.layer(&recorded.chain?).ok()??.size);
        recorder.sizes(&built.results, size);
    }
    let failed = match &result {
        Err(Failed::Build(error)) => error.kept().and_then(|(name, key)| recorder.kept(name, key)),
        _ => None,
    };
    let image = result.as_ref().ok().and_then(|(_, delivered)| Some(delivered.id()?.to_string()));
    let record = recorder.record(&about, state(&result), image);
    // What is remembered is for people, and no reason to fail.
    let _ = builds.write(&record);
    if args.explain || matches!(result, Err(Failed::Build(BuildError::Missed { .. }))) {
        eprint!("{}", super::explain::text(&builds, &record, |_| true));
    }
    let (built, delivered) = match result {
        Ok(done) => done,
        Err(Failed::Build(BuildError::Cancelled)) => {
            return Err(Report::new("the build was cancelled").with_exit_code(EXIT_CANCELLED));
        }
        Err(Failed::Build(error)) => {
            let report = Report::from(error).with_summary(&summary, mode);
            let Some(position) = failed.filter(|_| args.on_error == OnError::Shell) else { return Err(report) };
            let code = report.emit();
            super::shell::after_failure(session, &record, position, args).await;
            return Ok(ExitCode::from(code));
        }
        Err(Failed::Output(_)) if cancelled.is_cancelled() => {
            return Err(Report::new("the build was cancelled").with_exit_code(EXIT_CANCELLED));
        }
        Err(Failed::Output(error)) => return Err(Report::from(error)),
    };
    let id = delivered.id().ok_or_else(|| Report::new("internal error: a build without a result"))?;
    let warnings = recorder.warnings();
    let metadata = Metadata { built: &built, delivered: &delivered, record: &record, warnings, session };
    write_files(args, &metadata, id)?;
    conclude(args, id, &delivered, &outputs);
    // The image is out; whoever waits for it need not wait for the cache.
    export_caches(session, &built, &caches, mode).await?;
    // Off the way of the person, who has the image already; a crash of the machine before it ends costs a rebuild.
    let store = std::sync::Arc::clone(&session.store);
    if let Ok(Err(error)) = tokio::task::spawn_blocking(move || store.make_durable()).await {
        return Err(Report::of(&error));
    }
    Ok(ExitCode::SUCCESS)
}

/// Layers that get lost again and again are a broken disk.
const MOST_REPAIRS: usize = 3;

/// Builds and hands over. A layer that turns out to be lost when it is about to leave is no longer found: the steps that
/// made it are carried out again.
async fn make(
    session: &Session,
    prepared: &Prepared,
    outputs: &[OutputSpec],
    tags: &[Reference],
    progress: &Progress,
    cancelled: &CancellationToken,
) -> Result<(Built, Delivered), Failed> {
    let mut repairs = 0;
    loop {
        let built = prepared.solve(session, progress, cancelled).await.map_err(Failed::Build)?;
        match outputs::deliver(session, &built, outputs, tags, progress, cancelled).await {
            Ok(delivered) => return Ok((built, delivered)),
            Err(error) if error.lacks_data() && repairs < MOST_REPAIRS && !cancelled.is_cancelled() => {
                repairs += 1;
                progress.warn(format!("{error}: what made it is done again"));
            }
            Err(error) => return Err(Failed::Output(error)),
        }
    }
}

/// Writes what `--cache-to` names, all at the same time.
async fn export_caches(session: &Session, built: &Built, caches: &[CacheTo], mode: Mode) -> Result<(), Report> {
    if caches.iter().all(|to| to.place == cache::Place::Inline) {
        return Ok(());
    }
    let (progress, events) = solver::channel();
    let display = progress::start(mode, events, &progress::Options::from_env());
    let cancelled = CancellationToken::new();
    let signals = interrupt::cancels(&cancelled, &progress);
    let notices = session.notices.attach(&progress);
    let stacks: Vec<Digest> = built.images.iter().filter_map(|image| image.rootfs.chain).collect();
    let leaves = &cache::Leaves { results: &built.results, stacks: &stacks, mounts: &built.mounts };
    let exports = caches.iter().map(|to| {
        let (progress, cancelled) = (&progress, &cancelled);
        async move {
            let done = cache::export(session, leaves, to, progress, cancelled).await;
            match done {
                Err(error) if to.ignore_error && !cancelled.is_cancelled() => {
                    progress.warn(format!("the cache was not exported to {}: {error}", to.place));
                    Ok(())
                }
                done => done,
            }
        }
    });
    let done = futures_util::future::join_all(exports).await;
    drop(signals);
    drop(notices);
    let _ = display.finish();
    match done.into_iter().find_map(Result::err) {
        Some(_) if cancelled.is_cancelled() => {
            Err(Report::new("the image is built, the export of its cache was cancelled").with_exit_code(EXIT_CANCELLED))
        }
        Some(error) => Err(Report::of(&error)),
        None => Ok(()),
    }
}

/// A URL as it may be remembered.
fn without_password(context: &str) -> String {
    match url::Url::parse(context) {
        Ok(mut url) if url.password().is_some() || !url.username().is_empty() => {
            // Such a URL has a host, so both can be taken away.
            let _ = url.set_password(None);
            let _ = url.set_username("");
            url.into()
        }
        _ => context.to_owned(),
    }
}

fn state<T>(result: &Result<T, Failed>) -> State {
    match result {
        Ok(_) => State::Completed,
        Err(Failed::Build(BuildError::Cancelled)) => State::Cancelled,
        Err(_) => State::Failed,
    }
}

enum Failed {
    Build(BuildError),
    Output(outputs::OutputError),
}

fn default_outputs(outputs: Vec<OutputSpec>, load: Option<Engine>) -> Vec<OutputSpec> {
    match (outputs.is_empty(), load) {
        (false, _) => outputs,
        (true, None) => vec![OutputSpec::of(OutputKind::Image { push: false, by_digest: false })],
        (true, Some(_)) => vec![OutputSpec::of(OutputKind::Docker(None))],
    }
}

fn write_files(args: &Args, metadata: &Metadata<'_>, id: Digest) -> Result<(), Report> {
    let write = |path: &PathBuf, text: String| {
        let written = std::fs::write(path, text);
        written.map_err(|error| {
            let mut report = Report::new(format!("cannot write {}", path.display()));
            report.caused_by(error.to_string());
            report
        })
    };
    if let Some(path) = &args.iidfile {
        write(path, id.to_string())?;
    }
    if let Some(path) = &args.metadata_file {
        write(path, metadata.text(|name| std::env::var(name).ok()))?;
    }
    Ok(())
}

/// Where the image is, and what to do with it next.
#[expect(clippy::print_stdout, reason = "the image id is this command's result")]
fn conclude(args: &Args, id: Digest, delivered: &Delivered, outputs: &[OutputSpec]) {
    if args.quiet {
        let to_stdout = |output: &OutputSpec| {
            matches!(
                output.kind,
                OutputKind::Oci(Destination::Stdout)
                    | OutputKind::Docker(Some(Destination::Stdout))
                    | OutputKind::Tar(Destination::Stdout)
            )
        };
        if !outputs.iter().any(to_stdout) {
            println!("{id}");
        }
        return;
    }
    let in_store = outputs.iter().any(|output| matches!(output.kind, OutputKind::Image { push: false, .. }));
    let name = delivered.names.first().map(registry::Reference::familiar);
    if let Some(engine) = delivered.loaded {
        let name = name.unwrap_or_else(|| id.to_string());
        match (engine, delivered.names.first()) {
            // It knows no short names, and a container has to be called something.
            (Engine::Containerd, Some(full)) => {
                eprintln!("{name} is in containerd; run it with: ctr run --rm {full} ID");
            }
            (Engine::Containerd, None) => eprintln!("{name} is in containerd"),
            _ => eprintln!("{name} is in {0}; run it with: {0} run --rm {name}", engine.program()),
        }
    } else if in_store {
        let name = name.unwrap_or_else(|| id.short());
        let hand_over = match export::find_engine(None) {
            Some(engine) => format!("; hand it to {} by building with --load", engine.program()),
            None => String::new(),
        };
        eprintln!("{name} is in rbuild's store ({}); run it with: rbuild run {name}{hand_over}", id.short());
    }
}

impl Args {
    /// What this build is told apart by.
    fn about(&self) -> About {
        let path = std::path::Path::new(&self.context);
        let absolute = path.canonicalize().ok().filter(|path| path.is_dir());
        About {
            context: absolute.map_or_else(|| without_password(&self.context), |path| path.display().to_string()),
            file: self.file.clone(),
            target: self.target.clone(),
            tags: self.tags.clone(),
            ..About::default()
        }
    }

    /// What comes that way comes once.
    pub(crate) fn reads_stdin(&self) -> bool {
        self.context == "-" || self.file.as_deref() == Some("-")
    }

    /// What `--cache-to` asks for, and BuildKit's build argument for an inline cache.
    ///
    /// # Errors
    /// A malformed one.
    pub fn cache_specs(&self) -> Result<Vec<CacheTo>, String> {
        let caches: Result<Vec<_>, _> = self.cache_to.iter().map(|spec| CacheTo::parse(spec)).collect();
        let mut caches = caches.map_err(|error| error.to_string())?;
        let is_on = |arg: &String| matches!(arg.as_str(), "BUILDKIT_INLINE_CACHE=1" | "BUILDKIT_INLINE_CACHE=true");
        if self.build_args.iter().any(is_on) && !caches.iter().any(|to| to.place == cache::Place::Inline) {
            caches.push(CacheTo::inline());
        }
        Ok(caches)
    }

    /// The options that a command line gives, for commands that take some of them.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn from_line(words: impl IntoIterator<Item = String>) -> Result<Self, String> {
        #[derive(clap::Parser)]
        struct Line {
            #[command(flatten)]
            args: Args,
        }
        let line = <Line as clap::Parser>::try_parse_from(words);
        line.map(|line| line.args).map_err(|error| error.to_string())
    }

    /// What `--output`, `--push` and `--load` ask for.
    ///
    /// # Errors
    /// A malformed output.
    pub fn output_specs(&self) -> Result<Vec<OutputSpec>, String> {
        let outputs: Result<Vec<_>, _> = self.outputs.iter().map(|spec| OutputSpec::parse(spec)).collect();
        let mut outputs = outputs.map_err(|error| error.to_string())?;
        if self.push {
            let image = outputs.iter_mut().find_map(|output| match &mut output.kind {
                OutputKind::Image { push, .. } => Some(push),
                _ => None,
            });
            match image {
                Some(push) => *push = true,
                None => outputs.push(OutputSpec::of(OutputKind::Image { push: true, by_digest: false })),
            }
        }
        if self.load && !outputs.iter().any(|output| output.kind == OutputKind::Docker(None)) {
            outputs.push(OutputSpec::of(OutputKind::Docker(None)));
        }
        match outputs.iter().filter(|output| output.kind.is_stdout()).count() {
            0 => Ok(outputs),
            1 if std::io::stdout().is_terminal() => {
                Err("an archive is not for a terminal: name a file as dest of the output, or redirect".into())
            }
            1 => Ok(outputs),
            _ => Err("only one output can go to standard output".into()),
        }
    }

    /// What `--annotation`, `--squash` and `--provenance` say of all outputs.
    fn amend(&self, outputs: &mut [OutputSpec]) -> Result<(), String> {
        let told = provenance::attestations(&self.attests, self.provenance.as_deref(), self.sbom.as_deref())?;
        let mut annotations = Annotations::default();
        for text in &self.annotations {
            annotations.extend(&Annotations::parse(text)?);
        }
        for output in outputs {
            output.annotations.extend(&annotations);
            output.squash = self.squash;
            output.provenance.clone_from(&told);
        }
        Ok(())
    }
}
