//! One pattern.
//!
//! moby turns patterns into regular expressions unless they are simple, and the simple ones behave a little differently:
//! `**foo` ends in anything that ends in `foo`, `**/foo*` has whole names in front. So the kind is found just as there.

use super::expression::Expression;

#[derive(Clone, Debug)]
pub(super) enum Pattern {
    /// The path itself.
    Exact(String),
    /// `foo/**`: all paths that begin with `foo/`.
    Prefix(String),
    /// `**/foo`: all paths that end in `/foo`, and `foo`. `**foo`: all paths that end in `foo`.
    Suffix(String),
    /// Everything else.
    Expression(Expression),
}

#[derive(PartialEq)]
enum Kind {
    Exact,
    Prefix,
    Suffix,
    Expression,
}

impl Pattern {
    /// `path` is clean and not empty.
    pub(super) fn compile(path: &str) -> Result<Self, &'static str> {
        check(path)?;
        let mut kind = Kind::Exact;
        let mut expression = String::new();
        let mut first = true;
        let mut chars = path.chars().peekable();
        while let Some(c) = chars.next() {
            match c {
                '*' if chars.next_if_eq(&'*').is_some() => {
                    // `**/` is `**`: the slash is part of what it stands for.
                    chars.next_if_eq(&'/');
                    if chars.peek().is_some() {
                        expression.push_str("(.*/)?");
                        kind = Kind::Expression;
                    } else if kind == Kind::Exact {
                        kind = Kind::Prefix;
                    } else {
                        expression.push_str(".*");
                        kind = Kind::Expression;
                    }
                    if first {
                        kind = Kind::Suffix;
                    }
                }
                '*' => {
                    expression.push_str("[^/]*");
                    kind = Kind::Expression;
                }
                '?' => {
                    expression.push_str("[^/]");
                    kind = Kind::Expression;
                }
                '.' | '+' | '(' | ')' | '|' | '{' | '}' | '$' => {
                    expression.push('\\');
                    expression.push(c);
                }
                '\\' => {
                    expression.push('\\');
                    expression.extend(chars.next());
                    kind = Kind::Expression;
                }
                '[' | ']' => {
                    expression.push(c);
                    kind = Kind::Expression;
                }
                _ => expression.push(c),
            }
            first = false;
        }
        Ok(match kind {
            Kind::Exact => Self::Exact(path.to_owned()),
            Kind::Prefix => Self::Prefix(path[..path.len() - 2].to_owned()),
            Kind::Suffix => Self::Suffix(path[2..].to_owned()),
            Kind::Expression => Self::Expression(Expression::parse(&expression)?),
        })
    }

    pub(super) fn matches(&self, path: &str) -> bool {
        match self {
            Self::Exact(exact) => path == exact,
            Self::Prefix(prefix) => path.starts_with(prefix.as_str()),
            Self::Suffix(suffix) => path.ends_with(suffix.as_str()) || suffix.strip_prefix('/') == Some(path),
            Self::Expression(expression) => expression.matches(path),
        }
    }

    /// Whether it could match a path below `dir`. May err on the side of yes.
    pub(super) fn may_match_below(&self, dir: &str) -> bool {
        let below = format!("{dir}/");
        match self {
            Self::Exact(exact) => exact.starts_with(&below),
            Self::Prefix(prefix) => prefix.starts_with(&below) || below.starts_with(prefix.as_str()),
            Self::Suffix(_) => true,
            Self::Expression(expression) => expression.may_go_on_behind(&below),
        }
    }
}

/// What Go's `filepath.Match` asks of a pattern.
fn check(pattern: &str) -> Result<(), &'static str> {
    let mut rest = pattern.chars();
    while let Some(c) = rest.next() {
        match c {
            '\\' => {
                rest.next().ok_or("a backslash needs a character behind it")?;
            }
            '[' => check_class(&mut rest)?,
            _ => {}
        }
    }
    Ok(())
}

fn check_class(rest: &mut std::str::Chars<'_>) -> Result<(), &'static str> {
    const UNCLOSED: &str = "a [ needs a ] with something in between";
    let next_is = |rest: &std::str::Chars<'_>, c: char| rest.as_str().starts_with(c);
    if next_is(rest, '^') {
        rest.next();
    }
    let mut empty = true;
    while empty || !next_is(rest, ']') {
        check_class_char(rest)?;
        if next_is(rest, '-') {
            rest.next();
            check_class_char(rest)?;
        }
        if rest.as_str().is_empty() {
            return Err(UNCLOSED);
        }
        empty = false;
    }
    rest.next();
    Ok(())
}

fn check_class_char(rest: &mut std::str::Chars<'_>) -> Result<(), &'static str> {
    match rest.next() {
        Some('-' | ']') => Err("a - or ] inside of [ ] needs a backslash in front"),
        Some('\\') => rest.next().map(drop).ok_or("a backslash needs a character behind it"),
        Some(_) => Ok(()),
        None => Err("a [ needs a ] with something in between"),
    }
}
