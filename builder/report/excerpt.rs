//! Lines of a Dockerfile with their numbers, the ones to blame marked.

use std::ops::Range;

use frontend::{Diagnostic, SourceFile};

use super::{painted, render_hint};
use crate::progress::{Colours, neutralise, neutralise_lines, width};

/// Lines to blame that are shown at most; of a longer heredoc the middle is left out.
const SHOWN_LINES: usize = 24;
/// Columns of a line that are shown.
const SHOWN_COLUMNS: usize = 200;
const RULE: &str = "--------------------\n";

/// Part of a source text.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Excerpt {
    /// The file's name.
    pub file: String,
    /// The whole text.
    pub text: String,
    /// First and last line to blame, from 1, inclusive.
    pub lines: (usize, usize),
    /// Within them, the bytes of the text to blame.
    pub range: Option<Range<usize>>,
    /// What is wrong there, if the report's own message does not say.
    pub message: Option<String>,
    /// What to do about it, likewise.
    pub hint: Option<String>,
}

impl Excerpt {
    /// The lines of a step.
    #[must_use]
    pub fn of_lines(source: &SourceFile, lines: graph::Span) -> Self {
        Self {
            file: source.name().to_owned(),
            text: source.text().to_owned(),
            lines: (lines.first as usize, lines.last as usize),
            range: None,
            message: None,
            hint: None,
        }
    }

    /// A place in the text.
    #[must_use]
    pub fn of_place(source: &SourceFile, span: frontend::Span) -> Self {
        Self { range: Some(span.start()..span.end()), ..Self::of_lines(source, source.lines(span)) }
    }

    pub(super) fn of_problem(source: &SourceFile, problem: &Diagnostic) -> Self {
        let mut message = problem.message.clone();
        for related in &problem.related {
            let at = source.line_column(related.span.start());
            message.push_str(&format!("\n  {}:{}:{}: {}", source.name(), at.line, at.column, related.message));
        }
        Self { message: Some(message), hint: problem.hint.clone(), ..Self::of_place(source, problem.span) }
    }

    pub(crate) fn render(&self, text: &mut String, colour: bool) {
        let source = SourceFile::new(self.file.as_str(), self.text.as_str());
        let count = source.line_count();
        let (first, last) = (self.lines.0, self.lines.1.max(self.lines.0).min(count));
        let column = self.range.as_ref().map(|range| format!(":{}", source.line_column(range.start).column));
        let place = format!("{}:{first}{}", neutralise_lines(&self.file), column.unwrap_or_default());
        match &self.message {
            Some(message) => text.push_str(&format!("{place}: {}\n", neutralise_lines(message))),
            None => text.push_str(&format!("{place}\n")),
        }
        // What is missing at the end is shown with the last line.
        if count >= 1 && first >= 1 && first <= count + 1 {
            text.push_str(RULE);
            self.render_lines(&source, first.min(count), last, text, colour);
            text.push_str(RULE);
        }
        if let Some(hint) = &self.hint {
            render_hint(text, hint, colour);
        }
    }

    fn render_lines(&self, source: &SourceFile, first: usize, last: usize, text: &mut String, colour: bool) {
        let around = if first == last { 2 } else { 1 };
        let from = first.saturating_sub(around).max(1);
        let to = (last + around).min(source.line_count());
        let left_out = (last - first + 1 > SHOWN_LINES).then(|| first + SHOWN_LINES - 4..last - 3);
        for number in from..=to {
            if let Some(left_out) = &left_out
                && left_out.contains(&number)
            {
                if number == left_out.start {
                    text.push_str("     | ... \n");
                }
                continue;
            }
            let blamed = (first..=last).contains(&number);
            let mark = if blamed { painted(">>>", "\x1b[31m", colour) } else { "   ".to_owned() };
            let line = neutralise(source.line_text(number).unwrap_or_default().as_bytes(), Colours::Strip).into_owned();
            let shown = cut(&line);
            text.push_str(&format!(" {number:>3} | {mark} {shown}\n"));
            if let Some(under) = self.underline(source, number).filter(|_| blamed) {
                text.push_str(&format!("     |     {}\n", painted(&under, "\x1b[1;31m", colour)));
            }
        }
    }

    /// Carets under what is to blame of a line.
    fn underline(&self, source: &SourceFile, number: usize) -> Option<String> {
        let range = self.range.as_ref()?;
        let line = source.line_span(number)?;
        let written = source.slice(line);
        // Carets under all of several lines say no more than their marks.
        if range.start < line.start() || range.start > line.end() || range.end > line.end() + 1 {
            return None;
        }
        let before = written.get(..range.start - line.start())?;
        let blamed =
            written.get(range.start - line.start()..range.end.min(line.end()).max(range.start) - line.start())?;
        let columns = |text: &str| width(&neutralise(text.as_bytes(), Colours::Strip));
        let indent = columns(before);
        // Together, because what a tab takes depends on what stands before it.
        let carets = columns(&format!("{before}{blamed}")).saturating_sub(indent).max(1);
        (indent < SHOWN_COLUMNS)
            .then(|| format!("{}{}", " ".repeat(indent), "^".repeat(carets.min(SHOWN_COLUMNS - indent))))
    }
}

fn cut(line: &str) -> String {
    if width(line) <= SHOWN_COLUMNS {
        return line.to_owned();
    }
    let mut shown: String = line.chars().take(SHOWN_COLUMNS - 3).collect();
    shown.push_str("...");
    shown
}
