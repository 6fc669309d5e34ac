//! `CMD program` starts a shell that keeps signals from the program.

use super::{Edit, Linter, Rule};
use crate::instruction::{Instruction, Word};
use crate::{SourceFile, Span};

pub(crate) const RULE: Rule = Rule {
    name: "JSONArgsRecommended",
    description: "In shell form, CMD and ENTRYPOINT start a shell, which does not pass signals on",
    page: "json-args-recommended",
    experimental: false,
};

pub(crate) fn check(linter: &mut Linter, span: Span, instruction: &Instruction) {
    let message = format!(
        "JSON arguments recommended for {} to prevent unintended behavior related to OS signals",
        instruction.keyword.text
    );
    linter.report(&RULE, &instruction.comments, span, message);
}

/// The exec form of a command that a shell would only pass on. Whether CMD and ENTRYPOINT still fit together is for the
/// caller to know.
pub(crate) fn exec_form(source: &SourceFile, command: &Word) -> Option<Edit> {
    // What the shell does itself.
    const BUILTINS: [&str; 38] = [
        ".", ":", "[", "alias", "bg", "break", "case", "cd", "command", "continue", "do", "done", "eval", "exec",
        "exit", "export", "fg", "fi", "for", "function", "getopts", "hash", "if", "jobs", "local", "read", "readonly",
        "return", "set", "shift", "source", "time", "times", "trap", "type", "ulimit", "umask", "unset",
    ];
    let plain = |c: char| c.is_ascii_alphanumeric() || "_./:@%+,=-".contains(c);
    let words: Vec<&str> = command.text.split([' ', '\t']).filter(|word| !word.is_empty()).collect();
    let program = *words.first()?;
    let known = words.iter().all(|word| word.chars().all(plain));
    if !known || BUILTINS.contains(&program) || program.contains('=') || source.slice(command.span) != command.text {
        return None;
    }
    let list: Vec<String> = words.iter().map(|word| format!("\"{word}\"")).collect();
    Some(Edit::new(command.span, format!("[{}]", list.join(", "))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_needs_no_shell_becomes_json() {
        for (text, want) in [
            ("nginx -g daemon=off", Some(r#"["nginx", "-g", "daemon=off"]"#)),
            ("/a/b.sh  x", Some(r#"["/a/b.sh", "x"]"#)),
            ("echo $HOME", None),
            ("a && b", None),
            ("a 'b c'", None),
            ("A=b c", None),
            ("cd x", None),
            ("ls *", None),
            ("ls ~", None),
        ] {
            let source = SourceFile::new("Dockerfile", text);
            let edit = exec_form(&source, &Word::new(text, Span::new(0, text.len())));
            assert_eq!(edit.map(|edit| edit.text).as_deref(), want, "{text}");
        }
    }
}
