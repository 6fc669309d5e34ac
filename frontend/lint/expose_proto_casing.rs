//! `EXPOSE 80/TCP`.

use super::{Edit, Linter, Rule};
use crate::Span;
use crate::instruction::Word;

pub(crate) const RULE: Rule = Rule {
    name: "ExposeProtoCasing",
    description: "The protocol of an exposed port is written in lower case",
    page: "expose-proto-casing",
    experimental: false,
};

/// `port` is a port of the instruction's `word`, after expansion.
pub(crate) fn check(linter: &mut Linter, comments: &[Word], span: Span, word: &Word, port: &str, mendable: bool) {
    let Some((_, protocol)) = port.rsplit_once(':').map_or(port, |(_, port)| port).split_once('/') else { return };
    if protocol != protocol.to_lowercase() {
        let message = format!("Defined protocol '{port}' in EXPOSE instruction should be lowercase");
        let edit = (mendable && word.text == port).then(|| Edit::new(word.span, port.to_lowercase()));
        linter.report_with(&RULE, comments, span, message, edit);
    }
}
