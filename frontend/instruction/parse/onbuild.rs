//! ONBUILD: the trigger is kept as text, and only partly checked here.

use super::{Request, Result, keyword};
use crate::diagnostic::Diagnostic;
use crate::instruction::ast::OnbuildInstruction;
use crate::lines::Head;

impl Request<'_> {
    pub(super) fn onbuild(&mut self) -> Result<OnbuildInstruction> {
        self.needs_arguments()?;
        self.flags(&[])?;
        let head = Head::split(self.text, self.head.args.start, self.escape);
        let keyword = keyword(&head.keyword.text);
        match keyword {
            "ONBUILD" => {
                return Err(Diagnostic::new(head.keyword.span, "ONBUILD cannot be an ONBUILD trigger")
                    .with_hint("write each trigger with one ONBUILD"));
            }
            "FROM" | "MAINTAINER" => {
                return Err(Diagnostic::new(head.keyword.span, format!("{keyword} cannot be an ONBUILD trigger")));
            }
            _ => {}
        }
        let mut inner = Vec::new();
        let mut request = Request {
            text: self.text,
            head: &head,
            keyword,
            heredocs: self.heredocs,
            escape: self.escape,
            warnings: &mut inner,
        };
        request.check_as_trigger()?;
        // The rest is checked when the trigger is used, which may be never. But the author should know now.
        if let Err(problem) = request.kind() {
            let Diagnostic { message, span, hint, related } = problem;
            let message = format!("this trigger will fail when it is used: {message}");
            inner.push(Diagnostic { message, span, hint, related });
        }
        self.warnings.append(&mut inner);

        let mut trigger = self.text.as_str()[self.head.args.start..].to_owned();
        for heredoc in self.heredocs {
            trigger.push('\n');
            trigger.push_str(&heredoc.content);
            trigger.push_str(&heredoc.name.text);
        }
        Ok(OnbuildInstruction { trigger, keyword: head.keyword })
    }

    /// What is already checked where the ONBUILD stands.
    fn check_as_trigger(&self) -> Result<()> {
        match self.keyword {
            "ENV" | "LABEL" => self.unchecked_key_values().map(drop),
            "RUN" | "CMD" | "ENTRYPOINT" | "SHELL" | "COPY" | "ADD" | "VOLUME" => {
                self.json(self.head.args.clone()).map(drop)
            }
            "HEALTHCHECK" => {
                let args = self.head.args.clone();
                let end = self.args().find(char::is_whitespace).map_or(args.end, |at| args.start + at);
                self.json(end..args.end).map(drop)
            }
            _ => Ok(()),
        }
    }
}
