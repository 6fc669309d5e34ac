//! The instructions of a Dockerfile as data.
//!
//! Nothing is expanded yet: a [`Word`] holds what was written, variables, quotes and escapes included, because what they
//! mean depends on the stage they stand in. Two things are already undone: continuations, and the quotes around flags and
//! in exec forms.

use std::fmt;
use std::time::Duration;

use ecow::EcoString;
use graph::{NetworkMode, SecurityMode};

use super::mount::MountFlag;
use crate::diagnostic::Diagnostic;
use crate::source::Span;

/// A piece of text and where it was written.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Word {
    /// The text, unexpanded. Most words are short and need no memory of their own.
    pub text: EcoString,
    /// Where it stands. May cover continuations and quotes that the text does not have.
    pub span: Span,
}

impl Word {
    /// A text and its place.
    #[must_use]
    pub fn new(text: impl Into<EcoString>, span: Span) -> Self {
        Self { text: text.into(), span }
    }
}

impl fmt::Debug for Word {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}@{:?}", self.text, self.span)
    }
}

/// A parsed Dockerfile. It has at least one instruction, and only ARGs stand before the first FROM, if there is any FROM.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Dockerfile {
    /// `# syntax=`, `# escape=` and `# check=` at the top.
    pub directives: Vec<Directive>,
    /// What continues lines and escapes characters: `\` or a backtick.
    pub escape: char,
    /// In the order of the file.
    pub instructions: Vec<Instruction>,
    /// What was accepted but is probably not meant.
    pub warnings: Vec<Diagnostic>,
    /// Empty lines inside of instructions.
    pub empty_continuations: Vec<EmptyContinuation>,
}

/// Empty lines inside of one instruction.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EmptyContinuation {
    /// The lines, without their endings.
    pub lines: Vec<Span>,
    /// The instruction's last line.
    pub end: Span,
}

impl Dockerfile {
    /// The value of a directive: `syntax`, `escape` or `check`.
    #[must_use]
    pub fn directive(&self, name: &str) -> Option<&Directive> {
        self.directives.iter().find(|directive| directive.name == name)
    }
}

/// A comment that tells the parser something: `# name=value`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Directive {
    /// In lower case.
    pub name: String,
    /// All that stands behind the equals sign.
    pub value: Word,
    /// The line.
    pub span: Span,
}

/// One instruction.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Instruction {
    /// As it was written, in any case.
    pub keyword: Word,
    /// From the keyword to the end, here-documents included.
    pub span: Span,
    /// The whole line, continuations joined, without here-document bodies and leading space. See [`Instruction::code`].
    pub original: EcoString,
    /// All flags, in order, also those that have become fields of `kind`.
    pub flags: Box<[Flag]>,
    /// The here-documents that the line asked for, in order.
    pub heredocs: Box<[Heredoc]>,
    /// The comment lines above it, without `#`.
    pub comments: Box<[Word]>,
    /// What it says.
    pub kind: InstructionKind,
}

impl Instruction {
    /// The line as history entries and progress show it: continuations joined, no surrounding space.
    #[must_use]
    pub fn code(&self) -> &str {
        self.original.trim()
    }

    /// Whether the flag was given, with whatever value.
    #[must_use]
    pub fn has_flag(&self, name: &str) -> bool {
        self.flags.iter().any(|flag| flag.name == name)
    }
}

/// `--name` or `--name=value`, quotes and escapes resolved.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Flag {
    /// Without the dashes.
    pub name: EcoString,
    /// What stands behind the equals sign, if there is one.
    pub value: Option<Word>,
    /// All of it.
    pub span: Span,
}

/// A here-document.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Heredoc {
    /// The delimiter, unquoted. For COPY and ADD also the file's name.
    pub name: Word,
    /// The number in front of `<<`; 0 if there is none.
    pub fd: u64,
    /// Whether variables in the content are expanded: the delimiter was not quoted.
    pub expand: bool,
    /// `<<-`: leading tabs are to be removed.
    pub chomp: bool,
    /// The lines up to the delimiter, tabs not yet removed, line endings kept.
    pub content: String,
    /// Where the content stands.
    pub content_span: Span,
}

impl Heredoc {
    /// The content as the file or script gets it: without leading tabs for `<<-`.
    #[must_use]
    pub fn chomped(&self) -> String {
        if self.chomp { chomp_tabs(&self.content) } else { self.content.clone() }
    }
}

/// Removes the tabs at the beginning of every line, as `<<-` does.
#[must_use]
pub fn chomp_tabs(text: &str) -> String {
    text.split_inclusive('\n').map(|line| line.trim_start_matches('\t')).collect()
}

/// What an instruction says.
#[derive(Clone, PartialEq, Eq, Debug)]
#[allow(missing_docs)] // The variants are the keywords.
pub enum InstructionKind {
    From(Box<FromInstruction>),
    Arg(ArgInstruction),
    Run(RunInstruction),
    Cmd(CmdInstruction),
    Label(LabelInstruction),
    Maintainer(MaintainerInstruction),
    Expose(ExposeInstruction),
    Env(EnvInstruction),
    Add(Box<AddInstruction>),
    Copy(Box<CopyInstruction>),
    Entrypoint(EntrypointInstruction),
    Volume(VolumeInstruction),
    User(UserInstruction),
    Workdir(WorkdirInstruction),
    Onbuild(OnbuildInstruction),
    Stopsignal(StopsignalInstruction),
    Healthcheck(Box<HealthcheckInstruction>),
    Shell(ShellInstruction),
}

/// `FROM [--platform=…] image [AS name]`
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FromInstruction {
    /// An image reference or the name of an earlier stage.
    pub image: Word,
    /// `--platform`.
    pub platform: Option<Word>,
    /// The stage's name, in lower case.
    pub name: Option<Word>,
    /// The `AS`, as written.
    pub as_keyword: Option<Word>,
}

/// `ARG name[=default] …`
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ArgInstruction {
    /// At least one.
    pub args: Vec<ArgDefinition>,
}

/// One build argument.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ArgDefinition {
    /// The name, unexpanded.
    pub name: Word,
    /// `None` without an equals sign: the value is that of the command line or of a global ARG.
    pub value: Option<Word>,
}

/// `RUN [flags] command`
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RunInstruction {
    /// The command. If it has here-documents they are in [`Instruction::heredocs`].
    pub command: CommandLine,
    /// `--mount`, in order.
    pub mounts: Box<[MountFlag]>,
    /// `--network`; `None` if not given.
    pub network: Option<NetworkMode>,
    /// `--security`; `None` if not given.
    pub security: Option<SecurityMode>,
    /// `--device`, in order.
    pub devices: Box<[Device]>,
}

/// `RUN --device=name[,required]`
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Device {
    /// A CDI device or class.
    pub name: String,
    /// Whether the step fails without it.
    pub required: bool,
    /// The flag.
    pub span: Span,
}

/// Shell form or exec form.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum CommandLine {
    /// A text for the stage's shell. Empty if there was none.
    Shell(Word),
    /// A JSON array of strings, decoded. May be empty.
    Exec(Vec<Word>),
}

/// `CMD command`
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CmdInstruction {
    /// The command.
    pub command: CommandLine,
}

/// `ENTRYPOINT command`
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EntrypointInstruction {
    /// The command.
    pub command: CommandLine,
}

/// `key=value`, or the old `key value`
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KeyValue {
    /// Never empty.
    pub key: Word,
    /// Quotes and escapes are still in it.
    pub value: Word,
    /// The old form, in which the rest of the line is the value.
    pub legacy: bool,
}

/// `LABEL key=value …`
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LabelInstruction {
    /// At least one.
    pub labels: Vec<KeyValue>,
}

/// `ENV key=value …`
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EnvInstruction {
    /// At least one.
    pub vars: Vec<KeyValue>,
}

/// `MAINTAINER name`
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MaintainerInstruction {
    /// The rest of the line.
    pub name: Word,
}

/// `EXPOSE port[/protocol] …`
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ExposeInstruction {
    /// At least one, in byte order, as BuildKit sorts them. Each may expand to several.
    pub ports: Vec<Word>,
}

/// `COPY [flags] source… destination`
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CopyInstruction {
    /// At least one.
    pub sources: Vec<CopySource>,
    /// The last argument.
    pub dest: Word,
    /// `--from`: a stage, an image or a named context.
    pub from: Option<Word>,
    /// `--chown`.
    pub chown: Option<Word>,
    /// `--chmod`.
    pub chmod: Option<Word>,
    /// `--link`.
    pub link: bool,
    /// `--parents`.
    pub parents: bool,
    /// `--exclude`, in order.
    pub excludes: Box<[Word]>,
}

/// `ADD [flags] source… destination`
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AddInstruction {
    /// At least one.
    pub sources: Vec<CopySource>,
    /// The last argument.
    pub dest: Word,
    /// `--chown`.
    pub chown: Option<Word>,
    /// `--chmod`.
    pub chmod: Option<Word>,
    /// `--checksum`.
    pub checksum: Option<Word>,
    /// `--link`.
    pub link: bool,
    /// `--keep-git-dir`, if given.
    pub keep_git_dir: Option<bool>,
    /// `--unpack`, if given.
    pub unpack: Option<bool>,
    /// `--exclude`, in order.
    pub excludes: Box<[Word]>,
}

/// What COPY and ADD read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum CopySource {
    /// A path, pattern or URL.
    Path(Word),
    /// A here-document.
    Inline(Box<InlineFile>),
}

/// A file whose content stands in the Dockerfile.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct InlineFile {
    /// The file's name: the delimiter.
    pub name: String,
    /// The content, leading tabs already removed for `<<-`.
    pub data: String,
    /// Whether variables in it are expanded (with [`Expander::for_heredoc`](crate::expand::Expander::for_heredoc)).
    pub expand: bool,
    /// The `<<name`, as written.
    pub word: Word,
}

/// `VOLUME path …`
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VolumeInstruction {
    /// None of them is empty; there is none at all only for `VOLUME []`, which is refused.
    pub paths: Vec<Word>,
}

/// `USER user[:group]`
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UserInstruction {
    /// The rest of the line.
    pub user: Word,
}

/// `WORKDIR path`
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WorkdirInstruction {
    /// The rest of the line.
    pub path: Word,
}

/// `ONBUILD instruction`
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct OnbuildInstruction {
    /// What goes into the image config, here-documents included. See [`parse_trigger`](crate::parse_trigger).
    pub trigger: String,
    /// The keyword of the trigger, as written.
    pub keyword: Word,
}

/// `STOPSIGNAL signal`
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StopsignalInstruction {
    /// The rest of the line.
    pub signal: Word,
}

/// `HEALTHCHECK [flags] CMD command`, or `HEALTHCHECK NONE`
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum HealthcheckInstruction {
    /// `NONE`: the one of the base image is switched off.
    None,
    /// `CMD`
    Check(Healthcheck),
}

/// A health check. Zero means that the engine's default holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Healthcheck {
    /// What is run.
    pub command: CommandLine,
    /// `--interval`.
    pub interval: Duration,
    /// `--timeout`.
    pub timeout: Duration,
    /// `--start-period`.
    pub start_period: Duration,
    /// `--start-interval`.
    pub start_interval: Duration,
    /// `--retries`.
    pub retries: u32,
}

/// `SHELL ["program", "argument"]`
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ShellInstruction {
    /// At least one.
    pub shell: Vec<Word>,
}
