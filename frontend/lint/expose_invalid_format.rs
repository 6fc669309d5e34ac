//! `EXPOSE 8080:80`: the host's port is not the image's business.

use super::{Edit, Linter, Rule};
use crate::Span;
use crate::instruction::Word;

pub(crate) const RULE: Rule = Rule {
    name: "ExposeInvalidFormat",
    description: "EXPOSE names ports of the container; addresses and ports of a host will be refused one day",
    page: "expose-invalid-format",
    experimental: false,
};

/// `port` is a port of the instruction's `word`, after expansion.
pub(crate) fn check(linter: &mut Linter, comments: &[Word], span: Span, word: &Word, port: &str, mendable: bool) {
    let Some((host, container)) = port.rsplit_once(':') else { return };
    if host.is_empty() || host == ":" {
        return;
    }
    let message = format!("EXPOSE instruction should not define an IP address or host-port mapping, found '{port}'");
    let edit = (mendable && word.text == port).then(|| Edit::new(word.span, container));
    linter.report_with(&RULE, comments, span, message, edit);
}
