//! Two other parsers read the instructions of `testdata/oracle/instructions.txt`, and have to agree with ours.
//!
//! Where one cannot, a line in front of the instruction says why: `# dockerfile-parser: reason`. Such an exception has to
//! be needed: if the other parser comes to agree, the test asks for the line to be removed.

use dockerfile_parser as first;
use frontend::expand::Expander;
use frontend::instruction::*;
use frontend::{SourceFile, parse};
use parse_dockerfile as second;

/// Keyword, flags, and arguments in a form that all three can be brought to.
#[derive(PartialEq, Debug, Default)]
struct Reading {
    keyword: String,
    flags: Vec<(String, Option<String>)>,
    args: Vec<String>,
    heredocs: Vec<String>,
}

impl Reading {
    fn new(keyword: &str) -> Self {
        Self { keyword: keyword.to_owned(), ..Self::default() }
    }
}

/// Continuations leave any number of spaces.
fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Without quotes and escapes, but with variables.
fn unquoted(text: &str) -> String {
    Expander::new('\\').keep_unset(true).process_word(text, &frontend::expand::NoEnv).expect("it is valid").text
}

struct Case<'a> {
    text: &'a str,
    source: SourceFile,
    instruction: Instruction,
}

impl<'a> Case<'a> {
    fn new(text: &'a str) -> Self {
        let is_from = text.get(..5).is_some_and(|start| start.eq_ignore_ascii_case("from "));
        let prelude = if is_from { "" } else { "FROM x\n" };
        let source = SourceFile::new("Dockerfile", format!("{prelude}{text}"));
        let mut file = parse(&source).unwrap_or_else(|problems| panic!("{text}\n{problems}"));
        let instruction = file.instructions.pop().expect("there is one");
        Self { text, source, instruction }
    }

    fn keyword(&self) -> String {
        self.instruction.keyword.text.to_uppercase().into()
    }

    /// All behind the keyword.
    fn rest(&self) -> &str {
        self.instruction.code()[self.instruction.keyword.text.len()..].trim()
    }

    fn ours(&self) -> Reading {
        let mut reading = Reading::new(&self.keyword());
        let flags = self.instruction.flags.iter();
        reading.flags =
            flags.map(|flag| (flag.name.to_string(), flag.value.as_ref().map(|word| word.text.to_string()))).collect();
        reading
    }

    fn command(&self, command: &CommandLine) -> Vec<String> {
        match command {
            CommandLine::Shell(word) => vec![one_line(&word.text)],
            CommandLine::Exec(words) => words.iter().map(|word| word.text.to_string()).collect(),
        }
    }
}

fn texts<'a>(words: impl IntoIterator<Item = &'a Word>) -> Vec<String> {
    words.into_iter().map(|word| word.text.to_string()).collect()
}

/// Ours and that of `dockerfile-parser`.
fn with_first(case: &Case<'_>) -> Result<(Reading, Reading), String> {
    let theirs = first::Dockerfile::parse(case.source.text()).map_err(|error| error.to_string())?;
    let theirs = theirs.instructions.last().ok_or("nothing")?;
    let mut a = case.ours();
    let mut b = Reading::new(&a.keyword);
    let shell_or_exec = |a: &mut Reading, b: &mut Reading, expr: &first::ShellOrExecExpr| {
        // It has flags in the command.
        a.flags.clear();
        match expr {
            first::ShellOrExecExpr::Shell(text) => {
                a.args = vec![one_line(case.rest())];
                b.args = vec![one_line(&text.to_string())];
            }
            first::ShellOrExecExpr::Exec(words) => b.args = words.as_str_vec().into_iter().map(str::to_owned).collect(),
        }
    };
    match (&case.instruction.kind, theirs) {
        (InstructionKind::From(ours), first::Instruction::From(theirs)) => {
            a.args = texts([Some(&ours.image), ours.name.as_ref()].into_iter().flatten());
            b.args.push(theirs.image.content.clone());
            b.args.extend(theirs.alias.iter().map(|name| name.content.to_lowercase()));
            b.flags = theirs.flags.iter().map(|f| (f.name.content.clone(), Some(f.value.content.clone()))).collect();
        }
        (InstructionKind::Arg(ours), first::Instruction::Arg(theirs)) => {
            for arg in &ours.args {
                a.args.push(arg.name.text.to_string());
                a.args.extend(arg.value.iter().map(|value| unquoted(&value.text)));
            }
            b.args.push(theirs.name.content.clone());
            b.args.extend(theirs.value.iter().map(|value| value.content.clone()));
        }
        (InstructionKind::Label(ours), first::Instruction::Label(theirs)) => {
            a.args = ours.labels.iter().flat_map(|l| [unquoted(&l.key.text), unquoted(&l.value.text)]).collect();
            b.args = theirs.labels.iter().flat_map(|l| [l.name.content.clone(), l.value.content.clone()]).collect();
        }
        (InstructionKind::Env(ours), first::Instruction::Env(theirs)) => {
            a.args = ours.vars.iter().flat_map(|v| [v.key.text.to_string(), unquoted(&v.value.text)]).collect();
            b.args = theirs.vars.iter().flat_map(|v| [v.key.content.clone(), v.value.to_string()]).collect();
        }
        (InstructionKind::Run(ours), first::Instruction::Run(theirs)) => {
            a.args = case.command(&ours.command);
            shell_or_exec(&mut a, &mut b, &theirs.expr);
        }
        (InstructionKind::Cmd(ours), first::Instruction::Cmd(theirs)) => {
            a.args = case.command(&ours.command);
            shell_or_exec(&mut a, &mut b, &theirs.expr);
        }
        (InstructionKind::Entrypoint(ours), first::Instruction::Entrypoint(theirs)) => {
            a.args = case.command(&ours.command);
            shell_or_exec(&mut a, &mut b, &theirs.expr);
        }
        (InstructionKind::Copy(ours), first::Instruction::Copy(theirs)) => {
            a.args = copied(&ours.sources, &ours.dest);
            b.args = theirs.sources.iter().chain([&theirs.destination]).map(|s| s.content.clone()).collect();
            b.flags = theirs.flags.iter().map(|f| (f.name.content.clone(), Some(f.value.content.clone()))).collect();
        }
        // All other instructions are a keyword and a text for it.
        (_, first::Instruction::Misc(theirs)) => {
            a = Reading { args: vec![one_line(case.rest())], ..Reading::new(&a.keyword) };
            b.keyword = theirs.instruction.content.to_uppercase();
            b.args = vec![one_line(&theirs.arguments.to_string())];
        }
        (_, theirs) => return Err(format!("another kind: {theirs:?}")),
    }
    Ok((a, b))
}

fn copied(sources: &[CopySource], dest: &Word) -> Vec<String> {
    let sources = sources.iter().map(|source| match source {
        CopySource::Path(word) => word.text.to_string(),
        CopySource::Inline(file) => file.data.clone(),
    });
    sources.chain([dest.text.to_string()]).collect()
}

/// Ours and that of `parse-dockerfile`.
fn with_second(case: &Case<'_>) -> Result<(Reading, Reading), String> {
    let theirs = second::parse(case.source.text()).map_err(|error| error.to_string())?;
    let theirs = theirs.instructions.last().ok_or("nothing")?;
    let mut a = case.ours();
    let mut b = Reading::new(&a.keyword);
    let flags = |flags: &[second::Flag<'_>]| -> Vec<(String, Option<String>)> {
        flags.iter().map(|f| (f.name.value.to_string(), f.value.as_ref().map(|v| v.value.to_string()))).collect()
    };
    // The shell form is given as it is written: the places have to be the same.
    let command = |a: &mut Reading, b: &mut Reading, ours: &CommandLine, theirs: &second::Command<'_>| {
        a.args = case.command(ours);
        match (ours, theirs) {
            (CommandLine::Shell(word), second::Command::Shell(text)) => {
                a.args = vec![case.source.slice(word.span).to_owned()];
                b.args = vec![text.value.trim().to_owned()];
            }
            (_, second::Command::Exec(words)) => b.args = words.value.iter().map(|w| w.value.to_string()).collect(),
            _ => b.args = vec!["another form".to_owned()],
        }
    };
    let sources = |sources: &[second::Source<'_>], dest: &second::UnescapedString<'_>| -> Vec<String> {
        let sources = sources.iter().map(|source| match source {
            second::Source::Path(path) => path.value.to_string(),
            second::Source::HereDoc(doc) => doc.value.to_string(),
            other => format!("{other:?}"),
        });
        sources.chain([dest.value.to_string()]).collect()
    };
    let text = |a: &mut Reading, b: &mut Reading, theirs: &second::UnescapedString<'_>| {
        a.args = vec![one_line(case.rest())];
        b.args = vec![one_line(&theirs.value)];
    };
    match (&case.instruction.kind, theirs) {
        (InstructionKind::From(ours), second::Instruction::From(theirs)) => {
            a.args = texts([Some(&ours.image), ours.name.as_ref()].into_iter().flatten());
            b.args.push(theirs.image.value.to_string());
            b.args.extend(theirs.as_.iter().map(|(_, name)| name.value.to_lowercase()));
            b.flags = flags(&theirs.options);
        }
        (InstructionKind::Run(ours), second::Instruction::Run(theirs)) => {
            command(&mut a, &mut b, &ours.command, &theirs.arguments);
            b.flags = flags(&theirs.options);
            a.heredocs = case.instruction.heredocs.iter().map(Heredoc::chomped).collect();
            b.heredocs = theirs.here_docs.iter().map(|doc| doc.value.to_string()).collect();
        }
        (InstructionKind::Cmd(ours), second::Instruction::Cmd(theirs)) => {
            command(&mut a, &mut b, &ours.command, &theirs.arguments);
        }
        (InstructionKind::Entrypoint(ours), second::Instruction::Entrypoint(theirs)) => {
            command(&mut a, &mut b, &ours.command, &theirs.arguments);
        }
        (InstructionKind::Copy(ours), second::Instruction::Copy(theirs)) => {
            a.args = copied(&ours.sources, &ours.dest);
            b.args = sources(&theirs.src, &theirs.dest);
            b.flags = flags(&theirs.options);
        }
        (InstructionKind::Add(ours), second::Instruction::Add(theirs)) => {
            a.args = copied(&ours.sources, &ours.dest);
            b.args = sources(&theirs.src, &theirs.dest);
            b.flags = flags(&theirs.options);
        }
        (InstructionKind::Arg(_), second::Instruction::Arg(theirs)) => text(&mut a, &mut b, &theirs.arguments),
        (InstructionKind::Env(_), second::Instruction::Env(theirs)) => text(&mut a, &mut b, &theirs.arguments),
        (InstructionKind::Label(_), second::Instruction::Label(theirs)) => text(&mut a, &mut b, &theirs.arguments),
        (InstructionKind::Maintainer(_), second::Instruction::Maintainer(theirs)) => text(&mut a, &mut b, &theirs.name),
        (InstructionKind::User(_), second::Instruction::User(theirs)) => text(&mut a, &mut b, &theirs.arguments),
        (InstructionKind::Workdir(_), second::Instruction::Workdir(theirs)) => text(&mut a, &mut b, &theirs.arguments),
        (InstructionKind::Stopsignal(_), second::Instruction::Stopsignal(theirs)) => {
            text(&mut a, &mut b, &theirs.arguments);
        }
        (InstructionKind::Expose(ours), second::Instruction::Expose(theirs)) => {
            a.args = texts(&ours.ports);
            b.args = theirs.arguments.iter().map(|port| port.value.to_string()).collect();
            b.args.sort();
        }
        (InstructionKind::Volume(ours), second::Instruction::Volume(theirs)) => {
            a.args = texts(&ours.paths);
            b.args = match &theirs.arguments {
                second::JsonOrStringArray::Json(words) => words.value.iter().map(|w| w.value.to_string()).collect(),
                second::JsonOrStringArray::String(words) => words.iter().map(|w| w.value.to_string()).collect(),
            };
        }
        (InstructionKind::Shell(ours), second::Instruction::Shell(theirs)) => {
            a.args = texts(&ours.shell);
            b.args = theirs.arguments.iter().map(|word| word.value.to_string()).collect();
        }
        (InstructionKind::Healthcheck(ours), second::Instruction::Healthcheck(theirs)) => {
            b.flags = flags(&theirs.options);
            match (ours.as_ref(), &theirs.arguments) {
                (HealthcheckInstruction::None, second::HealthcheckArguments::None { .. }) => {}
                (HealthcheckInstruction::Check(ours), second::HealthcheckArguments::Cmd { arguments, .. }) => {
                    command(&mut a, &mut b, &ours.command, arguments);
                }
                _ => b.args.push("another form".to_owned()),
            }
        }
        (InstructionKind::Onbuild(ours), second::Instruction::Onbuild(theirs)) => {
            a.args = vec![ours.keyword.text.to_uppercase().into()];
            let kind = format!("{:?}", theirs.instruction);
            b.args = vec![kind[..kind.find('(').unwrap_or(0)].to_uppercase()];
        }
        (_, theirs) => return Err(format!("another kind: {theirs:?}")),
    }
    Ok((a, b))
}

type Compare = fn(&Case<'_>) -> Result<(Reading, Reading), String>;

#[test]
fn other_parsers_agree() {
    let oracles: [(&str, Compare); 2] = [("dockerfile-parser", with_first), ("parse-dockerfile", with_second)];
    let mut wrong = Vec::new();
    let mut agreed = 0;
    for chunk in include_str!("../testdata/oracle/instructions.txt").split("----\n") {
        let exceptions: Vec<&str> = chunk.lines().take_while(|line| line.starts_with("# ")).collect();
        let start = exceptions.iter().map(|line| line.len() + 1).sum::<usize>();
        let case = Case::new(&chunk[start..]);
        for (name, compare) in &oracles {
            let expected_to_differ = exceptions.iter().any(|line| line.starts_with(&format!("# {name}: ")));
            let difference = match compare(&case) {
                Ok((ours, theirs)) if ours == theirs => None,
                Ok((ours, theirs)) => Some(format!("ours   {ours:?}\ntheirs {theirs:?}")),
                Err(error) => Some(error),
            };
            match (difference, expected_to_differ) {
                (None, false) => agreed += 1,
                (Some(_), true) => {}
                (None, true) => wrong.push(format!("{name} agrees by now:\n{}", case.text)),
                (Some(difference), false) => wrong.push(format!("{name} differs:\n{}{difference}", case.text)),
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
    assert!(agreed > 120, "only {agreed} agreements");
}
