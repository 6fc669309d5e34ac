//! Secrets in what a step prints: replaced before anybody sees them.
//!
//! Each line of a secret is a pattern of its own, since a log is passed on line by line. A step that encodes a secret before it
//! prints it cannot be helped.

use aho_corasick::{AhoCorasick, AhoCorasickBuilder, MatchKind};

/// Shorter lines of a secret are no secret, and would garble the log.
const SHORTEST: usize = 4;
/// What a secret reads as.
const SHOWN: &str = "***";

/// Knows the secrets of one step.
pub(super) struct Mask {
    patterns: AhoCorasick,
    longest: usize,
}

impl Mask {
    /// `None`: there is nothing to hide.
    pub(super) fn new(secrets: &[Vec<u8>]) -> Option<Self> {
        let lines = secrets.iter().flat_map(|secret| secret.split(|byte| matches!(byte, b'\n' | b'\r')));
        let mut lines: Vec<&[u8]> = lines.map(<[u8]>::trim_ascii).filter(|line| line.len() >= SHORTEST).collect();
        lines.sort_unstable();
        lines.dedup();
        let longest = lines.iter().map(|line| line.len()).max()?;
        let patterns = AhoCorasickBuilder::new().match_kind(MatchKind::LeftmostLongest).build(lines).ok()?;
        Some(Self { patterns, longest })
    }

    /// The text without the secrets.
    pub(super) fn apply(&self, text: &[u8]) -> Vec<u8> {
        let replacements = vec![SHOWN; self.patterns.patterns_len()];
        self.patterns.replace_all_bytes(text, &replacements)
    }

    /// How much of a line that has no end yet can be passed on: not what a secret may begin in.
    pub(super) fn cut(&self, text: &[u8]) -> usize {
        let end = text.len().saturating_sub(self.longest - 1);
        // A secret that is whole but lies across the cut goes with what comes before it.
        self.patterns
            .find_iter(text)
            .find(|found| found.start() < end && found.end() > end)
            .map_or(end, |found| found.end())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mask(secrets: &[&str]) -> Mask {
        Mask::new(&secrets.iter().map(|secret| secret.as_bytes().to_vec()).collect::<Vec<_>>()).expect("patterns")
    }

    #[test]
    fn lines_of_secrets_are_replaced() {
        let mask = mask(&["tok3n-value\n", "-----BEGIN-----\nabcdef\n}\n"]);
        let shown = mask.apply(b"x tok3n-value y\n-----BEGIN-----\nabcdef}\n");
        assert_eq!(String::from_utf8_lossy(&shown), "x *** y\n***\n***}\n");
    }

    #[test]
    fn the_longer_of_two_that_begin_alike_is_replaced() {
        assert_eq!(mask(&["secret", "secret-longer"]).apply(b"secret-longer secret"), b"*** ***");
    }

    #[test]
    fn short_and_empty_secrets_hide_nothing() {
        assert!(Mask::new(&[b"abc\n\n".to_vec(), Vec::new()]).is_none());
    }

    #[test]
    fn a_cut_never_divides_a_secret() {
        let mask = mask(&["abcdefgh"]);
        for before in 0..40 {
            let text = format!("{}abcdefgh{}", ".".repeat(before), ".".repeat(40 - before));
            for end in 8..=text.len() {
                let cut = mask.cut(&text.as_bytes()[..end]);
                let mut shown = mask.apply(&text.as_bytes()[..cut]);
                shown.extend(mask.apply(&text.as_bytes()[cut..]));
                assert_eq!(shown.len(), text.len() - 5, "{before} {end} {cut}");
            }
        }
    }
}
