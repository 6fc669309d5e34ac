//! HEALTHCHECK.

use std::time::Duration;

use super::{Request, Result, shortened};
use crate::diagnostic::Diagnostic;
use crate::instruction::ast::{CommandLine, Healthcheck, HealthcheckInstruction, Word};
use crate::instruction::duration;
use crate::instruction::flags::FlagKind;

impl Request<'_> {
    pub(super) fn healthcheck(&mut self) -> Result<HealthcheckInstruction> {
        self.needs_arguments()?;
        let args = self.head.args.clone();
        let end = self.args().find(char::is_whitespace).map_or(args.end, |at| args.start + at);
        let kind = self.word(args.start..end);
        let command = args.end - self.text.slice(end..args.end).trim_start().len()..args.end;
        match kind.text.to_uppercase().as_str() {
            "NONE" => {
                // Also here an array must be one of strings.
                let rest = self.command_line(command)?;
                if !matches!(&rest, CommandLine::Exec(words) if words.is_empty())
                    && !matches!(&rest, CommandLine::Shell(word) if word.text.is_empty())
                {
                    return Err(self.problem("HEALTHCHECK NONE takes no arguments"));
                }
                self.flags_are_ignored();
                return Ok(HealthcheckInstruction::None);
            }
            "CMD" => {}
            other => {
                return Err(Diagnostic::new(kind.span, format!("HEALTHCHECK has no form {}", shortened(other)))
                    .with_hint("write HEALTHCHECK CMD command, or HEALTHCHECK NONE"));
            }
        }
        let flags = self.flags(&[
            ("interval", FlagKind::Text),
            ("timeout", FlagKind::Text),
            ("start-period", FlagKind::Text),
            ("start-interval", FlagKind::Text),
            ("retries", FlagKind::Text),
        ])?;
        let command = self.command_line(command)?;
        let is_empty = match &command {
            CommandLine::Shell(word) => word.text.is_empty(),
            CommandLine::Exec(words) => words.is_empty(),
        };
        if is_empty {
            return Err(self.problem("HEALTHCHECK CMD needs a command"));
        }
        Ok(HealthcheckInstruction::Check(Healthcheck {
            command,
            interval: interval("interval", flags.text("interval"))?,
            timeout: interval("timeout", flags.text("timeout"))?,
            start_period: interval("start-period", flags.text("start-period"))?,
            start_interval: interval("start-interval", flags.text("start-interval"))?,
            retries: flags.text("retries").map_or(Ok(0), retries)?,
        }))
    }
}

fn interval(name: &str, word: Option<Word>) -> Result<Duration> {
    let Some(word) = word else { return Ok(Duration::ZERO) };
    let nanos = duration::parse(&word.text).ok_or_else(|| {
        Diagnostic::new(word.span, format!("--{name} is no duration: '{}'", shortened(&word.text)))
            .with_hint("write a number with a unit, for instance 30s, 1m30s or 500ms")
    })?;
    match u64::try_from(nanos) {
        Ok(0) => Ok(Duration::ZERO),
        Ok(nanos) if nanos >= 1_000_000 => Ok(Duration::from_nanos(nanos)),
        _ => Err(Diagnostic::new(word.span, format!("--{name} must be at least 1ms"))),
    }
}

fn retries(word: Word) -> Result<u32> {
    let number: i32 = word
        .text
        .parse()
        .map_err(|_| Diagnostic::new(word.span, format!("--retries is no number: '{}'", shortened(&word.text))))?;
    u32::try_from(number).map_err(|_| Diagnostic::new(word.span, "--retries cannot be negative"))
}
