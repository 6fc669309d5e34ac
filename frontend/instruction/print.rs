//! A parsed file as text that parses to the same instructions.
//!
//! Everything is printed from what was parsed, and nothing copied from the file, so that parsing what was printed shows
//! whether the parts say all there is to say.

use std::fmt::{self, Write as _};

use super::ast::*;
use crate::lines::{self, JsonForm};

/// A line may have 65,535 bytes; instructions of several lines can be longer.
const LONGEST: usize = 60_000;

impl fmt::Display for Dockerfile {
    /// Comments that mean nothing and empty lines are gone, continuations are joined.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for directive in &self.directives {
            writeln!(f, "# {}={}", directive.name, directive.value.text)?;
        }
        // What follows is no directive, whatever it looks like.
        writeln!(f)?;
        for (number, instruction) in self.instructions.iter().enumerate() {
            for comment in &instruction.comments {
                writeln!(f, "# {}", comment.text)?;
            }
            let is_last = number + 1 == self.instructions.len();
            write_line(f, &line(instruction, self.escape)?, self.escape, is_last)?;
            for heredoc in &instruction.heredocs {
                writeln!(f, "{}{}", heredoc.content, heredoc.name.text)?;
            }
        }
        Ok(())
    }
}

/// Writes a line, broken into several where it is longer than lines may be.
fn write_line(f: &mut fmt::Formatter<'_>, mut line: &str, escape: char, is_last: bool) -> fmt::Result {
    while line.len() > LONGEST {
        // What a continuation begins with must not be taken for a comment, or an empty line; and two escape characters
        // are no continuation.
        let place = |&(at, c): &(usize, char)| {
            at > 0 && at <= LONGEST && c != '#' && !c.is_whitespace() && !line[..at].ends_with(escape)
        };
        let Some((at, _)) = line.char_indices().take_while(|(at, _)| *at <= LONGEST).filter(place).last() else {
            break;
        };
        writeln!(f, "{}{escape}", &line[..at])?;
        line = &line[at..];
    }
    f.write_str(line)?;
    // Only the last line of a file is continued by nothing; space in front of that is no argument. Behind the others stood
    // white space that makes it no continuation.
    match line.chars().last() {
        _ if !is_last && lines::is_continued(line, escape) => f.write_str("\x0c")?,
        Some('\r') => write!(f, "{escape}")?,
        Some(' ' | '\t') if lines::is_continued(line, escape) => write!(f, "{escape}")?,
        _ if lines::is_continued(line, escape) => write!(f, " {escape}")?,
        _ => {}
    }
    writeln!(f)
}

/// The instruction without the bodies of here-documents.
fn line(instruction: &Instruction, escape: char) -> Result<String, fmt::Error> {
    let mut line = instruction.keyword.text.to_string();
    for flag in &instruction.flags {
        write!(line, " --{}", quoted(&flag.name, escape))?;
        if let Some(value) = &flag.value {
            write!(line, "={}", quoted(&value.text, escape))?;
        }
    }
    let args = args(instruction)?;
    if args.starts_with("--") {
        line.push_str(" --");
    }
    if !args.is_empty() {
        line.push(' ');
        line.push_str(&args);
    }
    Ok(line)
}

/// A part of a flag, in quotes where it needs them.
fn quoted(text: &str, escape: char) -> String {
    let special = |c: char| c.is_whitespace() || matches!(c, '"' | '\'') || c == escape;
    if !text.contains(special) {
        return text.to_owned();
    }
    let mut quoted = String::from('"');
    for c in text.chars() {
        if c == '"' || c == escape {
            quoted.push(escape);
        }
        quoted.push(c);
    }
    quoted + "\""
}

fn args(instruction: &Instruction) -> Result<String, fmt::Error> {
    use InstructionKind::*;
    Ok(match &instruction.kind {
        From(from) => {
            let mut args = from.image.text.to_string();
            if let Some(name) = &from.name {
                let keyword = from.as_keyword.as_ref().map_or("AS", |keyword| &keyword.text);
                write!(args, " {keyword} {}", name.text)?;
            }
            args
        }
        Arg(arg) => joined(arg.args.iter().map(|arg| match &arg.value {
            Some(value) => format!("{}={}", arg.name.text, value.text),
            None => arg.name.text.to_string(),
        })),
        Env(env) => key_values(&env.vars),
        Label(label) => key_values(&label.labels),
        Run(run) => command(&run.command)?,
        Cmd(cmd) => command(&cmd.command)?,
        Entrypoint(entrypoint) => command(&entrypoint.command)?,
        Shell(shell) => json(shell.shell.iter().map(|word| word.text.as_str()))?,
        Healthcheck(check) => match check.as_ref() {
            HealthcheckInstruction::None => "NONE".to_owned(),
            HealthcheckInstruction::Check(check) => format!("CMD {}", command(&check.command)?),
        },
        Maintainer(maintainer) => maintainer.name.text.to_string(),
        User(user) => user.user.text.to_string(),
        Workdir(workdir) => workdir.path.text.to_string(),
        Stopsignal(signal) => signal.signal.text.to_string(),
        Expose(expose) => joined(expose.ports.iter().map(|port| &port.text)),
        Volume(volume) => list(volume.paths.iter().map(|path| path.text.as_str()).collect())?,
        Copy(copy) => sources(instruction, &copy.sources, &copy.dest)?,
        Add(add) => sources(instruction, &add.sources, &add.dest)?,
        // The bodies follow as those of the instruction.
        Onbuild(onbuild) => onbuild.trigger.lines().next().unwrap_or_default().to_owned(),
    })
}

fn joined(words: impl IntoIterator<Item = impl AsRef<str>>) -> String {
    let mut all = String::new();
    for word in words {
        if !all.is_empty() {
            all.push(' ');
        }
        all.push_str(word.as_ref());
    }
    all
}

fn key_values(pairs: &[KeyValue]) -> String {
    joined(pairs.iter().map(|KeyValue { key, value, legacy }| {
        format!("{}{}{}", key.text, if *legacy { ' ' } else { '=' }, value.text)
    }))
}

fn command(command: &CommandLine) -> Result<String, fmt::Error> {
    match command {
        CommandLine::Shell(text) => Ok(text.text.to_string()),
        CommandLine::Exec(words) => json(words.iter().map(|word| word.text.as_str())),
    }
}

fn json<'a>(words: impl Iterator<Item = &'a str>) -> Result<String, fmt::Error> {
    serde_json::to_string(&words.collect::<Vec<_>>()).map_err(|_| fmt::Error)
}

fn sources(instruction: &Instruction, sources: &[CopySource], dest: &Word) -> Result<String, fmt::Error> {
    let words = sources.iter().map(|source| match source {
        CopySource::Path(path) => path,
        CopySource::Inline(file) => &file.word,
    });
    let words: Vec<&str> = words.chain([dest]).map(|word| word.text.as_str()).collect();
    if !instruction.heredocs.is_empty() {
        return Ok(as_spaced(&words, &instruction.original).unwrap_or_else(|| joined(words)));
    }
    let inline = sources.iter().any(|source| matches!(source, CopySource::Inline(_)));
    // What looks like a here-document and has no body stood in a JSON array, or behind an open quote. And `<<` would
    // begin one with the word behind it as its name.
    if inline || words.iter().any(|word| word.ends_with("<<")) { json(words.into_iter()) } else { list(words) }
}

/// The words that a line ends with and the white space between them as it was: behind `<<` and in quotes some of it
/// belongs to a here-document, and which depends on its kind.
fn as_spaced(words: &[&str], line: &str) -> Option<String> {
    let is_space = |c: char| u8::try_from(c).is_ok_and(lines::is_space);
    let end = line.trim_end_matches(is_space).len();
    let mut start = end;
    for word in words.iter().rev() {
        start = line[..start].trim_end_matches(is_space).strip_suffix(word)?.len();
    }
    Some(line[start..end].to_owned())
}

/// Words between spaces if they can be read as such, JSON otherwise.
fn list(words: Vec<&str>) -> Result<String, fmt::Error> {
    let plain = joined(&words);
    let splits = |word: &&str| word.is_empty() || word.bytes().any(lines::is_space);
    if words.iter().any(splits) || lines::string_array(&plain) != JsonForm::Other {
        return json(words.into_iter());
    }
    Ok(plain)
}
