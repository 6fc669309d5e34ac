//! The patterns of `${v#p}`, `${v%p}` and `${v/p/r}`: `*`, `?` and `\`.
//!
//! Neither `*` nor `?` matches a newline, as in BuildKit. Between two stars stands a run of fixed length, so taking each
//! run at its first possible place finds the shortest match, and the last run at its last place the longest: no
//! backtracking is needed.

use super::{ExpandReason, MAX_SIZE};

/// How many comparisons one expansion may still make.
pub(super) struct Budget(u64);

impl Default for Budget {
    fn default() -> Self {
        Self(30_000_000)
    }
}

impl Budget {
    fn spend(&mut self, steps: usize) -> Result<(), ExpandReason> {
        self.0 = self.0.checked_sub(steps as u64).ok_or(ExpandReason::TooCostly)?;
        Ok(())
    }
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum Item {
    Char(char),
    Any,
}

/// The runs between the stars: one more than there are stars.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Pattern {
    runs: Vec<Vec<Item>>,
}

impl Pattern {
    pub(super) fn parse(text: &str) -> Result<Self, ExpandReason> {
        let mut runs = vec![Vec::new()];
        let mut run = Vec::new();
        let mut chars = text.chars().peekable();
        while let Some(c) = chars.next() {
            match c {
                '*' => {
                    if let Some(last) = runs.last_mut() {
                        *last = std::mem::take(&mut run);
                    }
                    runs.push(Vec::new());
                }
                '?' => run.push(Item::Any),
                '\\' => match chars.next() {
                    Some(escaped @ ('*' | '?' | '\\' | '}' | '/')) => run.push(Item::Char(escaped)),
                    _ => return Err(ExpandReason::InvalidPattern { pattern: text.chars().take(80).collect() }),
                },
                _ => run.push(Item::Char(c)),
            }
        }
        if let Some(last) = runs.last_mut() {
            *last = run;
        }
        Ok(Self { runs })
    }

    /// As [`Self::parse`]. BuildKit turns the pattern of a suffix round, and an escape character that stands alone at its
    /// end, as a variable may bring one, then escapes what stood in front of it.
    pub(super) fn parse_suffix(text: &str) -> Result<Self, ExpandReason> {
        let Some(head) = text.strip_suffix('\\') else { return Self::parse(text) };
        let (mut at, mut last) = (0, 0);
        while let Some(c) = head[at..].chars().next() {
            last = at;
            let escaped = if c == '\\' { head[at + 1..].chars().next() } else { None };
            at += c.len_utf8() + escaped.map_or(0, char::len_utf8);
            if c == '\\' && escaped.is_none() {
                // The last two are an escaped escape character.
                return Self::parse(text);
            }
        }
        let (front, token) = head.split_at(last);
        match token.strip_prefix('\\') {
            Some(escaped) => Self::parse(&format!("{front}{escaped}\\\\")),
            None => Self::parse(&format!("{front}\\{token}")),
        }
    }

    pub(super) fn trim_prefix(&self, value: &str, longest: bool, budget: &mut Budget) -> Result<String, ExpandReason> {
        let value: Vec<char> = value.chars().collect();
        let end = self.match_at(&value, 0, longest, budget)?.unwrap_or(0);
        Ok(value[end..].iter().collect())
    }

    /// The mirror image: the reversed pattern at the beginning of the reversed value.
    pub(super) fn trim_suffix(&self, value: &str, longest: bool, budget: &mut Budget) -> Result<String, ExpandReason> {
        let runs = self.runs.iter().rev().map(|run| run.iter().rev().copied().collect()).collect();
        let value: Vec<char> = value.chars().rev().collect();
        let end = Self { runs }.match_at(&value, 0, longest, budget)?.unwrap_or(0);
        Ok(value[end..].iter().rev().collect())
    }

    pub(super) fn replace_first(
        &self,
        value: &str,
        replacement: &str,
        budget: &mut Budget,
    ) -> Result<String, ExpandReason> {
        let chars: Vec<char> = value.chars().collect();
        let Some((start, end)) = self.find(&chars, 0, budget)? else { return Ok(value.to_owned()) };
        let mut out: String = chars[..start].iter().collect();
        out.push_str(replacement);
        out.extend(&chars[end..]);
        Ok(out)
    }

    pub(super) fn replace_all(
        &self,
        value: &str,
        replacement: &str,
        budget: &mut Budget,
    ) -> Result<String, ExpandReason> {
        let chars: Vec<char> = value.chars().collect();
        let template = Template::parse(replacement);
        let mut out = String::new();
        let (mut copied, mut search) = (0, 0);
        while search <= chars.len() {
            let Some((start, end)) = self.find(&chars, search, budget)? else { break };
            out.extend(&chars[copied..start]);
            // An empty match right behind a match does not count.
            if end > copied || start == 0 {
                template.write(&chars[start..end], &mut out);
                if out.len() > MAX_SIZE {
                    return Err(ExpandReason::TooLarge);
                }
            }
            copied = end;
            search = end.max(search + 1);
        }
        out.extend(&chars[copied..]);
        Ok(out)
    }

    /// The first match at or behind `from`, at its longest.
    fn find(&self, value: &[char], from: usize, budget: &mut Budget) -> Result<Option<(usize, usize)>, ExpandReason> {
        let starts_with_star = self.runs.len() > 1 && self.runs[0].is_empty();
        let mut start = from;
        while start <= value.len() {
            if let Some(end) = self.match_at(value, start, true, budget)? {
                return Ok(Some((start, end)));
            }
            // A star that led nowhere leads nowhere from the rest of its line either.
            start = if starts_with_star { line_end(value, start) + 1 } else { start + 1 };
        }
        Ok(None)
    }

    /// Where a match that begins at `start` ends.
    fn match_at(
        &self,
        value: &[char],
        start: usize,
        longest: bool,
        budget: &mut Budget,
    ) -> Result<Option<usize>, ExpandReason> {
        budget.spend(1)?;
        if !run_matches(&self.runs[0], value, start, budget)? {
            return Ok(None);
        }
        let mut at = start + self.runs[0].len();
        for (number, run) in self.runs.iter().enumerate().skip(1) {
            let stop = line_end(value, at);
            budget.spend(stop - at)?;
            let last = number + 1 == self.runs.len();
            let found = if last && longest {
                position(run, value, (at..=stop).rev(), budget)?
            } else {
                position(run, value, at..=stop, budget)?
            };
            let Some(found) = found else { return Ok(None) };
            at = found + run.len();
        }
        Ok(Some(at))
    }
}

fn line_end(value: &[char], from: usize) -> usize {
    value[from..].iter().position(|c| *c == '\n').map_or(value.len(), |at| from + at)
}

fn position(
    run: &[Item],
    value: &[char],
    places: impl Iterator<Item = usize>,
    budget: &mut Budget,
) -> Result<Option<usize>, ExpandReason> {
    for place in places {
        if run_matches(run, value, place, budget)? {
            return Ok(Some(place));
        }
    }
    Ok(None)
}

fn run_matches(run: &[Item], value: &[char], at: usize, budget: &mut Budget) -> Result<bool, ExpandReason> {
    let Some(part) = value.get(at..at + run.len()) else { return Ok(false) };
    let fits = run.iter().zip(part).take_while(|(item, c)| match item {
        Item::Char(wanted) => wanted == *c,
        Item::Any => **c != '\n',
    });
    let fitting = fits.count();
    budget.spend(fitting + 1)?;
    Ok(fitting == run.len())
}

/// The replacement of `//`. BuildKit hands it to Go's regular expressions, which give `$` a meaning: `$0` is the match,
/// any other group is empty, `$$` is a dollar.
struct Template(Vec<Part>);

enum Part {
    Text(String),
    Match,
}

impl Template {
    fn parse(mut text: &str) -> Self {
        let mut parts = Vec::new();
        while let Some((before, after)) = text.split_once('$') {
            parts.push(Part::Text(before.to_owned()));
            text = after;
            if let Some(rest) = after.strip_prefix('$') {
                parts.push(Part::Text("$".to_owned()));
                text = rest;
            } else if let Some((name, rest)) = group(after) {
                if name == "0" {
                    parts.push(Part::Match);
                }
                text = rest;
            } else {
                parts.push(Part::Text("$".to_owned()));
            }
        }
        parts.push(Part::Text(text.to_owned()));
        Self(parts)
    }

    fn write(&self, matched: &[char], out: &mut String) {
        for part in &self.0 {
            match part {
                Part::Text(text) => out.push_str(text),
                Part::Match => out.extend(matched),
            }
        }
    }
}

/// `name` or `{name}`, and what follows.
fn group(text: &str) -> Option<(&str, &str)> {
    let (braced, text) = text.strip_prefix('{').map_or((false, text), |text| (true, text));
    let end = text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
    let (name, rest) = text.split_at(end);
    if name.is_empty() {
        return None;
    }
    if braced { Some((name, rest.strip_prefix('}')?)) } else { Some((name, rest)) }
}
