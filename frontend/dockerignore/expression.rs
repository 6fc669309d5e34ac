//! The regular expressions that patterns become, and nothing more of Go's syntax than can occur in them.
//!
//! It is not enough to know what patterns mean: a `*` inside of `[ ]` is replaced like any other, and what comes out is
//! read as a regular expression. So we go the same way. Matching keeps the set of states that can be reached, which makes
//! its cost the product of the two lengths, whatever the pattern.

/// An expression that has to match a whole path.
#[derive(Clone, Debug)]
pub(super) struct Expression {
    steps: Vec<Step>,
    /// What every match begins with.
    prefix: String,
    /// What every match ends in.
    suffix: String,
}

/// Each step leads to the next one; those that can be skipped are left without a character, too.
#[derive(Clone, PartialEq, Debug)]
enum Step {
    One(Set),
    Many(Set),
    /// The beginning of `(.*/)?`: go on behind [`Step::InDirs`], or into it.
    Dirs,
    /// Within `.*/`: only a slash leads on.
    InDirs,
    Start,
    End,
    /// `\b`, or `\B` if false.
    Boundary(bool),
}

#[derive(Clone, PartialEq, Debug)]
enum Set {
    Char(char),
    /// `.`
    NotNewline,
    Class {
        negated: bool,
        ranges: Vec<(char, char)>,
    },
}

impl Set {
    fn has(&self, c: char) -> bool {
        match self {
            Self::Char(wanted) => *wanted == c,
            Self::NotNewline => c != '\n',
            Self::Class { negated, ranges } => ranges.iter().any(|(low, high)| (*low..=*high).contains(&c)) != *negated,
        }
    }
}

impl Expression {
    pub(super) fn parse(text: &str) -> Result<Self, &'static str> {
        let mut parser = Parser { rest: text };
        let mut steps = Vec::new();
        while let Some(c) = parser.next() {
            match c {
                // Those of the pattern are escaped, so this is the group.
                '(' => {
                    parser.rest = parser.rest.strip_prefix(".*/)?").unwrap_or(parser.rest);
                    steps.extend([Step::Dirs, Step::InDirs]);
                }
                '^' => steps.push(Step::Start),
                '.' => steps.push(parser.repeated(Set::NotNewline)),
                '[' => {
                    let class = parser.class()?;
                    steps.push(parser.repeated(class));
                }
                '\\' => {
                    let step = parser.escape()?;
                    steps.push(step);
                }
                _ => steps.push(Step::One(Set::Char(c))),
            }
        }
        let literal = |step: &Step| match step {
            Step::One(Set::Char(c)) => Some(*c),
            _ => None,
        };
        let prefix = steps.iter().map_while(literal).collect();
        let suffix: Vec<char> = steps.iter().rev().map_while(literal).collect();
        Ok(Self { prefix, suffix: suffix.into_iter().rev().collect(), steps })
    }

    pub(super) fn matches(&self, path: &str) -> bool {
        path.starts_with(&self.prefix)
            && path.ends_with(&self.suffix)
            && self.reachable(path, true).is_some_and(|states| states[self.steps.len()])
    }

    /// Whether there is any match that begins with `path` and is longer.
    pub(super) fn may_go_on_behind(&self, path: &str) -> bool {
        self.reachable(path, false).is_some_and(|states| states[..self.steps.len()].contains(&true))
    }

    /// The states after `path`; `None` if there are none.
    fn reachable(&self, path: &str, whole: bool) -> Option<Vec<bool>> {
        let mut states = vec![false; self.steps.len() + 1];
        let mut next = states.clone();
        states[0] = true;
        let mut before = None;
        for c in path.chars() {
            self.skip(&mut states, before, Some(c));
            next.fill(false);
            for (at, step) in self.steps.iter().enumerate().filter(|(at, _)| states[*at]) {
                match step {
                    Step::One(set) => next[at + 1] |= set.has(c),
                    Step::Many(set) => next[at] |= set.has(c),
                    Step::InDirs => {
                        next[at] |= c != '\n';
                        next[at + 1] |= c == '/';
                    }
                    Step::Dirs | Step::Start | Step::End | Step::Boundary(_) => {}
                }
            }
            std::mem::swap(&mut states, &mut next);
            if !states.contains(&true) {
                return None;
            }
            before = Some(c);
        }
        // If more may follow, what comes next is unknown, and an assertion is left as it is.
        if whole {
            self.skip(&mut states, before, None);
        }
        Some(states)
    }

    /// Adds the states that are reached without a character. All lead forward, so one pass is enough.
    fn skip(&self, states: &mut [bool], before: Option<char>, after: Option<char>) {
        let is_word = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric() || c == '_');
        for (at, step) in self.steps.iter().enumerate() {
            if !states[at] {
                continue;
            }
            match step {
                Step::Many(_) => states[at + 1] = true,
                Step::Dirs => {
                    states[at + 1] = true;
                    states[at + 2] = true;
                }
                Step::Start => states[at + 1] |= before.is_none(),
                Step::End => states[at + 1] |= after.is_none(),
                Step::Boundary(wanted) => states[at + 1] |= (is_word(before) != is_word(after)) == *wanted,
                Step::One(_) | Step::InDirs => {}
            }
        }
    }
}

/// What an escape outside of `[ ]` stands for, or inside of it if it is a set.
enum Escape {
    Set(Set),
    Assertion(Step),
}

struct Parser<'a> {
    rest: &'a str,
}

const RANGE: &str = "a range in [ ] must go from the lower to the higher character";
const UNCLOSED: &str = "a [ needs a ] with something in between";

impl Parser<'_> {
    fn next(&mut self) -> Option<char> {
        let c = self.rest.chars().next()?;
        self.rest = &self.rest[c.len_utf8()..];
        Some(c)
    }

    fn repeated(&mut self, set: Set) -> Step {
        match self.rest.strip_prefix('*') {
            Some(rest) => {
                self.rest = rest;
                Step::Many(set)
            }
            None => Step::One(set),
        }
    }

    fn escape(&mut self) -> Result<Step, &'static str> {
        Ok(match self.any_escape()? {
            Escape::Set(set) => Step::One(set),
            Escape::Assertion(step) => step,
        })
    }

    /// An escaped letter means what it means in Go's expressions, though hardly anybody who writes one knows that.
    fn any_escape(&mut self) -> Result<Escape, &'static str> {
        let c = self.next().ok_or("a backslash needs a character behind it")?;
        let class = |negated, ranges: &[(char, char)]| Set::Class { negated, ranges: ranges.to_vec() };
        Ok(Escape::Set(match c {
            'd' | 'D' => class(c == 'D', &[('0', '9')]),
            's' | 'S' => class(c == 'S', &[('\t', '\n'), ('\x0c', '\r'), (' ', ' ')]),
            'w' | 'W' => class(c == 'W', &[('0', '9'), ('A', 'Z'), ('_', '_'), ('a', 'z')]),
            'a' => Set::Char('\x07'),
            'f' => Set::Char('\x0c'),
            'n' => Set::Char('\n'),
            'r' => Set::Char('\r'),
            't' => Set::Char('\t'),
            'v' => Set::Char('\x0b'),
            'A' => return Ok(Escape::Assertion(Step::Start)),
            'z' => return Ok(Escape::Assertion(Step::End)),
            'b' | 'B' => return Ok(Escape::Assertion(Step::Boundary(c == 'b'))),
            _ if c.is_ascii() && !c.is_ascii_alphanumeric() => Set::Char(c),
            _ => return Err("a backslash in front of this letter, digit or sign has no meaning"),
        }))
    }

    /// Behind `[`.
    fn class(&mut self) -> Result<Set, &'static str> {
        let negated = self.rest.starts_with('^');
        if negated {
            self.next();
        }
        let mut ranges = Vec::new();
        let mut first = true;
        while first || !self.rest.starts_with(']') {
            first = false;
            if let Some(named) = self.named_class()? {
                ranges.extend(named);
                continue;
            }
            let low = match self.class_item()? {
                Set::Char(low) => low,
                set => {
                    ranges.extend(ranges_of(set));
                    continue;
                }
            };
            let mut high = low;
            let behind = self.rest.strip_prefix('-').filter(|behind| !behind.is_empty() && !behind.starts_with(']'));
            if let Some(behind) = behind {
                self.rest = behind;
                let Set::Char(end) = self.class_item()? else { return Err(RANGE) };
                high = end;
            }
            if high < low {
                return Err(RANGE);
            }
            ranges.push((low, high));
        }
        self.next();
        Ok(Set::Class { negated, ranges })
    }

    fn class_item(&mut self) -> Result<Set, &'static str> {
        match self.next().ok_or(UNCLOSED)? {
            '\\' => match self.any_escape()? {
                Escape::Set(set) => Ok(set),
                Escape::Assertion(_) => Err("a backslash in front of this letter has no meaning inside of [ ]"),
            },
            c => Ok(Set::Char(c)),
        }
    }

    /// `[:alpha:]` and its like.
    fn named_class(&mut self) -> Result<Option<Vec<(char, char)>>, &'static str> {
        let Some(inside) = self.rest.strip_prefix("[:") else { return Ok(None) };
        let Some((name, rest)) = inside.split_once(":]") else { return Ok(None) };
        let (negated, name) = name.strip_prefix('^').map_or((false, name), |name| (true, name));
        let ranges: &[(char, char)] = match name {
            "alnum" => &[('0', '9'), ('A', 'Z'), ('a', 'z')],
            "alpha" => &[('A', 'Z'), ('a', 'z')],
            "ascii" => &[('\0', '\x7f')],
            "blank" => &[('\t', '\t'), (' ', ' ')],
            "cntrl" => &[('\0', '\x1f'), ('\x7f', '\x7f')],
            "digit" => &[('0', '9')],
            "graph" => &[('!', '~')],
            "lower" => &[('a', 'z')],
            "print" => &[(' ', '~')],
            "punct" => &[('!', '/'), (':', '@'), ('[', '`'), ('{', '~')],
            "space" => &[('\t', '\r'), (' ', ' ')],
            "upper" => &[('A', 'Z')],
            "word" => &[('0', '9'), ('A', 'Z'), ('_', '_'), ('a', 'z')],
            "xdigit" => &[('0', '9'), ('A', 'F'), ('a', 'f')],
            _ => return Err("there is no character class of this name"),
        };
        self.rest = rest;
        Ok(Some(ranges_of(Set::Class { negated, ranges: ranges.to_vec() })))
    }
}

/// A set as ranges without negation. Its own ranges are in ascending order.
fn ranges_of(set: Set) -> Vec<(char, char)> {
    match set {
        Set::Char(c) => vec![(c, c)],
        Set::NotNewline => vec![('\0', '\t'), ('\x0b', char::MAX)],
        Set::Class { negated: false, ranges } => ranges,
        Set::Class { negated: true, ranges } => {
            let mut out = Vec::new();
            let mut low = '\0';
            for (from, to) in ranges {
                if low < from {
                    // All bounds are ASCII.
                    out.push((low, char::from((from as u8).saturating_sub(1))));
                }
                low = char::from((to as u8).saturating_add(1));
            }
            out.push((low, char::MAX));
            out
        }
    }
}
