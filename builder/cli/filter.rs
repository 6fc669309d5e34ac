//! `--filter` of `du` and `prune`, as buildx has it: keys of BuildKit's, and `=`, `!=` or `~=`.

use std::str::FromStr as _;

use regex_lite::Regex;
use snapshotter::{PrunePolicy, UsageItem, UsageKind};

use super::prune::usage;
use crate::report::Report;
use crate::session::Session;
use crate::size::moment;

const KINDS: [UsageKind; 5] =
    [UsageKind::Layer, UsageKind::Image, UsageKind::CacheMount, UsageKind::Download, UsageKind::Internal];
const KNOWN: &str = "until=AGE; type, id, parents and description with =, != or ~=; inuse, shared, private, mutable and \
                     immutable";

/// What `--filter` says. All of it must hold; of several values that one key may have, one.
#[derive(Debug, Default)]
pub(super) struct Filters {
    until: Option<jiff::Timestamp>,
    in_use: Option<bool>,
    flags: Vec<(Flag, bool)>,
    conditions: Vec<Condition>,
}

#[derive(Debug, Clone, Copy)]
enum Flag {
    Shared,
    Mutable,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Field {
    Type,
    Id,
    Parent,
    Description,
}

#[derive(Debug)]
struct Condition {
    field: Field,
    test: Test,
}

#[derive(Debug)]
enum Test {
    Is(String),
    IsNot(String),
    Matches(Regex),
}

impl Filters {
    pub(super) fn parse(filters: &[String]) -> Result<Self, Report> {
        let mut parsed = Self::default();
        for filter in filters {
            let (key, operator, value) = split(filter);
            let flag = || match (operator, value) {
                (Operator::None, _) => Ok(true),
                (Operator::Is, "true" | "1") | (Operator::IsNot, "false" | "0") => Ok(true),
                (Operator::Is, "false" | "0") | (Operator::IsNot, "true" | "1") => Ok(false),
                _ => Err(unknown(filter, &format!("{key}, {key}=true and {key}=false"))),
            };
            let field = match key {
                "until" | "unused-for" if operator == Operator::Is => {
                    parsed.until = Some(until(value)?);
                    continue;
                }
                "inuse" => {
                    parsed.in_use = Some(flag()?);
                    continue;
                }
                "shared" | "private" => {
                    parsed.flags.push((Flag::Shared, flag()? == (key == "shared")));
                    continue;
                }
                "mutable" | "immutable" => {
                    parsed.flags.push((Flag::Mutable, flag()? == (key == "mutable")));
                    continue;
                }
                "type" => Field::Type,
                "id" => Field::Id,
                "parents" => Field::Parent,
                "description" => Field::Description,
                _ => return Err(unknown(filter, KNOWN)),
            };
            let test = match operator {
                _ if value.is_empty() => return Err(unknown(filter, KNOWN)),
                Operator::None => return Err(unknown(filter, KNOWN)),
                Operator::Is => Test::Is(value.to_owned()),
                Operator::IsNot => Test::IsNot(value.to_owned()),
                Operator::Matches => Test::Matches(Regex::from_str(value).map_err(|error| {
                    let mut report = Report::new(format!("--filter {filter:?} is no regular expression"));
                    report.caused_by(error.to_string());
                    report.with_exit_code(2)
                })?),
            };
            if let (Field::Type, Test::Is(name) | Test::IsNot(name)) = (field, &test)
                && !KINDS.iter().any(|kind| kind.name() == name)
            {
                return Err(unknown(filter, &KINDS.map(|kind| format!("type={}", kind.name())).join(", ")));
            }
            parsed.conditions.push(Condition { field, test });
        }
        Ok(parsed)
    }

    /// Since when what goes was not used.
    pub(super) fn until(&self) -> Option<jiff::Timestamp> {
        self.until
    }

    /// Whether an item is to be listed.
    pub(super) fn fits(&self, item: &UsageItem) -> bool {
        let used = item.last_used_at.or(item.created_at);
        self.is_such(item)
            && self.in_use.is_none_or(|in_use| item.in_use == in_use)
            && self.until.is_none_or(|until| used.is_some_and(|used| used < until))
    }

    fn is_such(&self, item: &UsageItem) -> bool {
        let flag = |(flag, wanted): &(Flag, bool)| {
            let is = match flag {
                Flag::Shared => item.shared,
                Flag::Mutable => is_mutable(item.kind),
            };
            is == *wanted
        };
        let one_of = |field: Field| {
            let mut values = self.conditions.iter().filter(|of| of.field == field && matches!(of.test, Test::Is(_)));
            let first = values.next();
            first.is_none_or(|first| first.holds(item) || values.any(|other| other.holds(item)))
        };
        self.flags.iter().all(flag)
            && [Field::Type, Field::Id, Field::Parent, Field::Description].into_iter().all(one_of)
            && self.conditions.iter().all(|of| matches!(of.test, Test::Is(_)) || of.holds(item))
    }

    /// What pruning is to take.
    pub(super) async fn policy(self, session: &Session, bases: bool) -> Result<PrunePolicy, Report> {
        if self.in_use == Some(true) {
            return Err(Report::new("--filter inuse=true: what is in use is never removed").with_exit_code(2));
        }
        for kind in [UsageKind::Image, UsageKind::Internal] {
            let asks =
                |of: &Condition| of.field == Field::Type && matches!(&of.test, Test::Is(name) if name == kind.name());
            if self.conditions.iter().any(asks) {
                let report =
                    Report::new(format!("--filter type={}: this is not removed by pruning the cache", kind.name()));
                return Err(report
                    .with_hint("images are removed by rbuild rmi and rbuild image prune")
                    .with_exit_code(2));
            }
        }
        let mut policy = PrunePolicy { unused_since: self.until, bases, ..PrunePolicy::default() };
        if !(self.conditions.is_empty() && self.flags.is_empty()) {
            let items = usage(session).await?.items;
            policy.items = Some(items.into_iter().filter(|item| self.is_such(item)).map(|item| item.id).collect());
            // Who names a layer wants it to go; who says what shall stay does not want that to go with what lies below it.
            let names = |of: &Condition| of.field != Field::Type && !matches!(of.test, Test::IsNot(_));
            let excepts = |of: &Condition| of.field != Field::Type && matches!(of.test, Test::IsNot(_));
            policy.and_above = self.conditions.iter().any(names) && !self.conditions.iter().any(excepts);
        }
        Ok(policy)
    }
}

impl Condition {
    fn holds(&self, item: &UsageItem) -> bool {
        let text = match self.field {
            Field::Type => item.kind.name(),
            Field::Id => &item.id,
            Field::Parent => item.parent.as_deref().unwrap_or_default(),
            Field::Description => &item.description,
        };
        let is = |value: &String| match self.field {
            Field::Type | Field::Description => text == value,
            Field::Id | Field::Parent => {
                text.starts_with(&**value) || text.trim_start_matches("sha256:").starts_with(&**value)
            }
        };
        match &self.test {
            Test::Is(value) => is(value),
            Test::IsNot(value) => !is(value),
            Test::Matches(pattern) => pattern.is_match(text),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operator {
    None,
    Is,
    IsNot,
    Matches,
}

/// Key, operator and value.
fn split(filter: &str) -> (&str, Operator, &str) {
    let Some((key, value)) = filter.split_once('=') else { return (filter, Operator::None, "") };
    match (key.strip_suffix('!'), key.strip_suffix('~')) {
        (Some(key), _) => (key, Operator::IsNot, value),
        (_, Some(key)) => (key, Operator::Matches, value),
        _ => (key, Operator::Is, value.strip_prefix('=').unwrap_or(value)),
    }
}

/// Layers never change; what steps and downloads write to does.
fn is_mutable(kind: UsageKind) -> bool {
    !matches!(kind, UsageKind::Layer | UsageKind::Image)
}

/// How long ago something was used last, as a time.
pub(super) fn until(text: &str) -> Result<jiff::Timestamp, Report> {
    moment(text, jiff::Timestamp::now()).map_err(|why| Report::new(format!("--filter until: {why}")).with_exit_code(2))
}

/// A filter that there is not.
pub(super) fn unknown(filter: &str, known: &str) -> Report {
    Report::new(format!("--filter {filter:?} is not supported"))
        .with_hint(format!("there is {known}"))
        .with_exit_code(2)
}
