//! One logical line becomes one instruction.

mod copy;
mod healthcheck;
mod onbuild;

use std::ops::Range;

use ecow::EcoString;
use graph::{NetworkMode, SecurityMode};

use super::ast::*;
use super::flags::{FlagKind, Flags};
use super::mount::{self, MountFlag};
use super::{csv, words};
use crate::diagnostic::Diagnostic;
use crate::lines::{Head, Joined, JsonForm, LogicalLine, is_space, string_array};
use crate::source::Span;

type Result<T> = std::result::Result<T, Diagnostic>;

pub(super) const KEYWORDS: [&str; 18] = [
    "ADD",
    "ARG",
    "CMD",
    "COPY",
    "ENTRYPOINT",
    "ENV",
    "EXPOSE",
    "FROM",
    "HEALTHCHECK",
    "LABEL",
    "MAINTAINER",
    "ONBUILD",
    "RUN",
    "SHELL",
    "STOPSIGNAL",
    "USER",
    "VOLUME",
    "WORKDIR",
];

/// The instruction that a word names, in any case; empty if there is none.
pub(super) fn keyword(word: &str) -> &'static str {
    let mut upper = [0; 16];
    let Some(upper) = upper.get_mut(..word.len()) else { return "" };
    upper.copy_from_slice(word.as_bytes());
    upper.make_ascii_uppercase();
    if let Some(known) = KEYWORDS.iter().find(|known| known.as_bytes() == upper) {
        return known;
    }
    // Two letters that are not ASCII become so in lower case, and BuildKit looks at that.
    match word.contains(['\u{130}', '\u{212a}']) {
        true => keyword(&word.replace('\u{130}', "i").replace('\u{212a}', "k")),
        false => "",
    }
}

/// Whether an instruction can begin with this word.
pub(crate) fn is_keyword(word: &str) -> bool {
    !keyword(word).is_empty()
}

/// Parses a line.
pub(super) fn instruction(line: LogicalLine<'_>, escape: char, warnings: &mut Vec<Diagnostic>) -> Result<Instruction> {
    let mut request = Request {
        text: &line.text,
        head: &line.head,
        keyword: keyword(&line.head.keyword.text),
        heredocs: &line.heredocs,
        escape,
        warnings,
    };
    let kind = request.kind()?;
    let original = EcoString::from(line.text.as_str().trim_start());
    let LogicalLine { head: Head { keyword, flags, .. }, span, comments, heredocs, .. } = line;
    let (flags, heredocs, comments) = (flags.into(), heredocs.into(), comments.into());
    Ok(Instruction { keyword, span, original, flags, heredocs, comments, kind })
}

struct Request<'a> {
    text: &'a Joined<'a>,
    head: &'a Head,
    /// In upper case; empty if there is no such instruction.
    keyword: &'static str,
    heredocs: &'a [Heredoc],
    escape: char,
    warnings: &'a mut Vec<Diagnostic>,
}

impl<'a> Request<'a> {
    fn kind(&mut self) -> Result<InstructionKind> {
        use InstructionKind::*;
        Ok(match self.keyword {
            "FROM" => From(Box::new(self.from()?)),
            "ARG" => Arg(self.arg()?),
            "RUN" => Run(self.run()?),
            "CMD" => {
                self.flags(&[])?;
                Cmd(CmdInstruction { command: self.command_line(self.head.args.clone())? })
            }
            "ENTRYPOINT" => {
                self.flags(&[])?;
                Entrypoint(EntrypointInstruction { command: self.command_line(self.head.args.clone())? })
            }
            "LABEL" => {
                self.flags(&[])?;
                Label(LabelInstruction { labels: self.key_values()? })
            }
            "ENV" => {
                self.flags(&[])?;
                Env(EnvInstruction { vars: self.key_values()? })
            }
            "MAINTAINER" => Maintainer(MaintainerInstruction { name: self.one_argument()? }),
            "USER" => User(UserInstruction { user: self.one_argument()? }),
            "WORKDIR" => Workdir(WorkdirInstruction { path: self.one_argument()? }),
            "STOPSIGNAL" => {
                self.flags_are_ignored();
                Stopsignal(StopsignalInstruction { signal: self.rest_of_line()? })
            }
            "EXPOSE" => Expose(self.expose()?),
            "ADD" => Add(Box::new(self.add()?)),
            "COPY" => Copy(Box::new(self.copy()?)),
            "VOLUME" => Volume(self.volume()?),
            "ONBUILD" => Onbuild(self.onbuild()?),
            "HEALTHCHECK" => Healthcheck(Box::new(self.healthcheck()?)),
            "SHELL" => Shell(self.shell()?),
            _ => return Err(self.unknown()),
        })
    }

    fn unknown(&self) -> Diagnostic {
        let keyword = &self.head.keyword;
        let problem = Diagnostic::new(keyword.span, format!("unknown instruction {}", shortened(&keyword.text)))
            .with_suggestion(&keyword.text, KEYWORDS);
        match problem.hint {
            Some(_) => problem,
            None if keyword.text.starts_with("//") => problem.with_hint("comments begin with #"),
            None => problem.with_hint("if it belongs to the line above, end that line with a line continuation"),
        }
    }

    fn problem(&self, message: impl Into<String>) -> Diagnostic {
        let keyword = self.head.keyword.span;
        Diagnostic::new(if self.args().is_empty() { keyword } else { self.args_span() }, message)
    }

    fn args(&self) -> &'a str {
        self.text.slice(self.head.args.clone())
    }

    fn args_span(&self) -> Span {
        self.text.span(self.head.args.clone())
    }

    fn word(&self, range: Range<usize>) -> Word {
        self.text.word(range)
    }

    fn flags(&self, known: &[(&'static str, FlagKind)]) -> Result<Flags<'a>> {
        Flags::check(self.keyword, &self.head.flags, known)
    }

    /// Some instructions drop their flags unread.
    fn flags_are_ignored(&mut self) {
        if let Some(flag) = self.head.flags.first() {
            let none = if self.keyword == "HEALTHCHECK" { " NONE" } else { "" };
            let message = format!("{}{none} takes no flags, --{} has no effect", self.keyword, flag.name);
            self.warnings.push(Diagnostic::new(flag.span, message).with_hint("remove it"));
        }
    }

    /// The whole rest of the line, spaces included.
    fn rest_of_line(&self) -> Result<Word> {
        if self.args().is_empty() {
            return Err(self.problem(format!("{} needs an argument", self.keyword)));
        }
        Ok(self.word(self.head.args.clone()))
    }

    fn one_argument(&self) -> Result<Word> {
        let word = self.rest_of_line()?;
        self.flags(&[])?;
        Ok(word)
    }

    fn needs_arguments(&self) -> Result<()> {
        if self.args().is_empty() {
            return Err(self.problem(format!("{} needs at least one argument", self.keyword)));
        }
        Ok(())
    }

    fn words_at_spaces(&self) -> Vec<Word> {
        gathered(words::at_spaces(self.text.as_str(), self.head.args.clone()).map(|range| Ok(self.word(range))))
            .unwrap_or_default()
    }

    /// The strings of a JSON array, or `None` if the text is no JSON array.
    fn json(&self, range: Range<usize>) -> Result<Option<Vec<Word>>> {
        match string_array(self.text.slice(range.clone())) {
            JsonForm::Other => Ok(None),
            JsonForm::NotStrings => {
                Err(Diagnostic::new(self.text.span(range), "the JSON array has elements that are not strings")
                    .with_hint("put each element in double quotes"))
            }
            JsonForm::Strings(strings) => Ok(Some(
                strings
                    .into_iter()
                    .map(|(string, place)| {
                        Word::new(string, self.text.span(range.start + place.start..range.start + place.end))
                    })
                    .collect(),
            )),
        }
    }

    fn command_line(&self, range: Range<usize>) -> Result<CommandLine> {
        Ok(match self.json(range.clone())? {
            Some(words) => CommandLine::Exec(words),
            None => CommandLine::Shell(self.word(range)),
        })
    }

    fn from(&self) -> Result<FromInstruction> {
        let args = self.words_at_spaces();
        let (image, stage) = match args.as_slice() {
            [image] => (image, None),
            [image, keyword, name] if keyword.text.eq_ignore_ascii_case("as") => (image, Some((keyword, name))),
            _ => {
                return Err(self
                    .problem("FROM needs an image, or an image, AS and a name")
                    .with_hint("write FROM image, or FROM image AS name"));
            }
        };
        let name = stage.map(|(_, name)| stage_name(name)).transpose()?;
        let flags = self.flags(&[("platform", FlagKind::Text)])?;
        Ok(FromInstruction {
            image: image.clone(),
            platform: flags.text("platform"),
            name,
            as_keyword: stage.map(|(keyword, _)| keyword.clone()),
        })
    }

    fn arg(&mut self) -> Result<ArgInstruction> {
        self.needs_arguments()?;
        self.flags_are_ignored();
        let mut args = Vec::with_capacity(1);
        for range in words::unquoted(self.text.as_str(), self.head.args.clone(), self.escape) {
            let (name, value) = self.name_and_value(range.clone());
            if value.is_some() && name.text.is_empty() {
                return Err(Diagnostic::new(self.text.span(range), "the name of an ARG is empty")
                    .with_hint("write ARG name=value, without space around the equals sign"));
            }
            args.push(ArgDefinition { name, value });
        }
        // A lone escape character is an argument that vanishes.
        if args.is_empty() {
            return Err(self.problem("ARG needs at least one argument"));
        }
        Ok(ArgInstruction { args })
    }

    fn name_and_value(&self, range: Range<usize>) -> (Word, Option<Word>) {
        match self.text.slice(range.clone()).find('=') {
            None => (self.word(range), None),
            Some(at) => {
                let equals = range.start + at;
                (self.word(range.start..equals), Some(self.word(equals + 1..range.end)))
            }
        }
    }

    fn key_values(&self) -> Result<Vec<KeyValue>> {
        let pairs = self.unchecked_key_values()?;
        if pairs.is_empty() {
            return Err(self.problem(format!("{} needs at least one argument", self.keyword)));
        }
        match pairs.iter().find(|pair| pair.key.text.is_empty()) {
            Some(pair) => Err(Diagnostic::new(pair.key.span.to(pair.value.span), "the name in front of = is empty")
                .with_hint("write name=value, without space around the equals sign")),
            None => Ok(pairs),
        }
    }

    /// Whether it is the old form, `name value`, depends on whether there is an equals sign in the first word.
    fn unchecked_key_values(&self) -> Result<Vec<KeyValue>> {
        let args = self.head.args.clone();
        let mut ranges = words::unquoted(self.text.as_str(), args.clone(), self.escape).peekable();
        let Some(first) = ranges.peek() else { return Ok(Vec::new()) };
        if !self.text.slice(first.clone()).contains('=') {
            let Some(end) = self.args().bytes().position(is_space) else {
                return Err(self
                    .problem(format!("{} needs a name and a value", self.keyword))
                    .with_hint(format!("write {} name=value", self.keyword)));
            };
            let rest = &self.args()[end..];
            let value = args.start + end + rest.bytes().take_while(|&byte| is_space(byte)).count();
            let key = self.word(args.start..args.start + end);
            return Ok(vec![KeyValue { key, value: self.word(value..args.end), legacy: true }]);
        }
        gathered(ranges.map(|range| match self.name_and_value(range.clone()) {
            (key, Some(value)) => Ok(KeyValue { key, value, legacy: false }),
            (key, None) => {
                let message = format!("'{}' has no equals sign", shortened(&key.text));
                Err(Diagnostic::new(key.span, message)
                    .with_hint("write name=value; a value with spaces needs quotes: name=\"a b\""))
            }
        }))
    }

    fn run(&self) -> Result<RunInstruction> {
        let flags = self.flags(&[
            ("mount", FlagKind::List),
            ("network", FlagKind::Text),
            ("security", FlagKind::Text),
            ("device", FlagKind::List),
        ])?;
        let command = self.command_line(self.head.args.clone())?;
        let network = [("default", NetworkMode::Default), ("none", NetworkMode::None), ("host", NetworkMode::Host)];
        let security = [("sandbox", SecurityMode::Sandbox), ("insecure", SecurityMode::Insecure)];
        Ok(RunInstruction {
            command,
            mounts: flags.list("mount").map(MountFlag::parse).collect::<Result<_>>()?,
            network: flags.any_text("network").map(|word| choice("network mode", &word, &network)).transpose()?,
            security: flags.any_text("security").map(|word| choice("security mode", &word, &security)).transpose()?,
            devices: flags.list("device").map(device).collect::<Result<_>>()?,
        })
    }

    fn expose(&self) -> Result<ExposeInstruction> {
        self.needs_arguments()?;
        self.flags(&[])?;
        let mut ports = self.words_at_spaces();
        ports.sort_by(|a, b| a.text.cmp(&b.text));
        Ok(ExposeInstruction { ports })
    }

    /// JSON, or words between spaces.
    fn list(&self) -> Result<(Vec<Word>, bool)> {
        Ok(match self.json(self.head.args.clone())? {
            Some(words) => (words, true),
            None => (self.words_at_spaces(), false),
        })
    }

    fn volume(&self) -> Result<VolumeInstruction> {
        let (mut paths, _) = self.list()?;
        if paths.is_empty() {
            return Err(self.problem("VOLUME needs at least one argument"));
        }
        self.flags(&[])?;
        for path in &mut paths {
            path.text = path.text.trim().into();
            if path.text.is_empty() {
                return Err(Diagnostic::new(path.span, "the path of a VOLUME is empty"));
            }
        }
        Ok(VolumeInstruction { paths })
    }

    fn shell(&self) -> Result<ShellInstruction> {
        self.flags(&[])?;
        match self.json(self.head.args.clone())? {
            Some(shell) if !shell.is_empty() => Ok(ShellInstruction { shell }),
            Some(_) => Err(self.problem("SHELL needs at least one argument")),
            None if self.args().is_empty() => Err(self.problem("SHELL needs at least one argument")),
            None => {
                Err(self.problem("SHELL must be a JSON array").with_hint("write it like SHELL [\"/bin/bash\", \"-c\"]"))
            }
        }
    }
}

/// Most lists have one element, for which a vector that is collected would take the room of four.
fn gathered<T>(mut items: impl Iterator<Item = Result<T>>) -> Result<Vec<T>> {
    let Some(first) = items.next() else { return Ok(Vec::new()) };
    let mut all = Vec::with_capacity(1);
    all.push(first?);
    for item in items {
        all.push(item?);
    }
    Ok(all)
}

fn stage_name(word: &Word) -> Result<Word> {
    let name = word.text.to_lowercase();
    let valid = name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_.".contains(&b));
    if valid {
        return Ok(Word::new(name, word.span));
    }
    Err(Diagnostic::new(word.span, format!("'{}' cannot be the name of a stage", shortened(&word.text)))
        .with_hint("a name begins with a letter and goes on with letters, digits, '-', '_' and '.'"))
}

fn choice<T: Copy>(what: &str, word: &Word, known: &[(&'static str, T)]) -> Result<T> {
    known.iter().find(|(name, _)| *name == word.text).map(|(_, found)| *found).ok_or_else(|| {
        let names: Vec<_> = known.iter().map(|(name, _)| *name).collect();
        let message = format!("unknown {what} '{}', expected one of {}", shortened(&word.text), names.join(", "));
        Diagnostic::new(word.span, message).with_suggestion(&word.text, names)
    })
}

/// `name`, `name=value` of CDI, `required`: the first field that is no known key is the device.
fn device(word: Word) -> Result<Device> {
    let problem = |message: String| Diagnostic::new(word.span, message);
    let fields = csv::fields(&word.text).map_err(|error| problem(format!("--device cannot be read: {error}")))?;
    let mut device = Device { name: String::new(), required: false, span: word.span };
    for field in fields {
        let (key, value) = match field.split_once('=') {
            Some((key, value)) => (EcoString::from(key).to_lowercase(), Some(value)),
            None => (field.to_lowercase(), None),
        };
        match (key.as_str(), value) {
            ("required", None) => device.required = true,
            ("required", Some(value)) => {
                device.required = mount::parse_bool(value)
                    .ok_or_else(|| problem(format!("invalid value for required in --device: '{value}'")))?;
            }
            ("name", Some(value)) if device.name.is_empty() => device.name = value.to_owned(),
            ("name", Some(_)) => {
                return Err(problem(format!("the name of the device is already '{}'", device.name)));
            }
            _ if device.name.is_empty() => device.name = field.into(),
            (key, _) => {
                return Err(problem(format!("unknown key '{key}' in --device field '{field}'"))
                    .with_suggestion(key, ["name", "required"]));
            }
        }
    }
    Ok(device)
}

/// Messages stay readable whatever is in the file.
fn shortened(text: &str) -> String {
    let mut short: String = text.chars().take(60).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    short
}
