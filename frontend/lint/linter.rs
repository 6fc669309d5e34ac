//! Decides which findings count, and collects them.

use super::{Config, Edit, Finding, Rule};
use crate::instruction::Word;
use crate::{Diagnostic, Span};

/// The findings of one build.
#[derive(Clone, Debug, Default)]
pub(crate) struct Linter {
    config: Config,
    findings: Vec<Finding>,
}

impl Linter {
    pub(crate) fn new(config: Config) -> Self {
        Self { config, findings: Vec::new() }
    }

    /// Notes a finding, unless the file or a comment above the instruction does not want to hear of it. Gives it back, so
    /// that a change can be attached.
    pub(crate) fn report(
        &mut self,
        rule: &'static Rule,
        comments: &[Word],
        span: Span,
        message: impl Into<String>,
    ) -> Option<&mut Finding> {
        let own = comments.iter().find_map(|comment| crate::lines::check_comment(&comment.text));
        let own = own.and_then(|value| Config::parse(value.split(' ').next().unwrap_or_default()).ok());
        let allowed = match own {
            None => self.config.allows(rule),
            Some(own) => self.config.merged(own).allows(rule),
        };
        if !allowed {
            return None;
        }
        self.findings.push(Finding { rule, message: message.into(), span, edits: Vec::new() });
        self.findings.last_mut()
    }

    /// As [`report`](Self::report), with the change that mends it.
    pub(crate) fn report_with(
        &mut self,
        rule: &'static Rule,
        comments: &[Word],
        span: Span,
        message: impl Into<String>,
        edits: impl IntoIterator<Item = Edit>,
    ) {
        if let Some(finding) = self.report(rule, comments, span, message) {
            finding.edits = edits.into_iter().collect();
        }
    }

    /// Attaches a change to what was found at a place, which only turned out to be safe later.
    pub(crate) fn mend(&mut self, rule: &'static Rule, span: Span, edit: Edit) {
        let mut found = self.findings.iter_mut().filter(|finding| finding.rule == rule && finding.span == span);
        if let Some(finding) = found.next() {
            finding.edits = vec![edit];
        }
    }

    /// All findings in the order of the text, and the problem that they are if `error=true` was said.
    pub(crate) fn finish(mut self) -> (Vec<Finding>, Option<Diagnostic>) {
        self.findings.sort_by_key(|finding| finding.span.start());
        let mut names: Vec<&str> = self.findings.iter().map(|finding| finding.rule.name).collect();
        names.sort_unstable();
        names.dedup();
        let violation = (self.config.error && !names.is_empty()).then(|| {
            let message = format!("lint violation found for rules: {}", names.join(", "));
            let first = self.findings.first().map_or(Span::default(), |finding| finding.span);
            Diagnostic::new(first, message).with_hint("checks are errors here because of check=error=true")
        });
        (self.findings, violation)
    }
}
