//! COPY and ADD.

use super::{Request, Result};
use crate::diagnostic::Diagnostic;
use crate::instruction::ast::{AddInstruction, CopyInstruction, CopySource, Heredoc, InlineFile, Word, chomp_tabs};
use crate::instruction::flags::FlagKind;
use crate::lines::parse_heredoc;

impl Request<'_> {
    pub(super) fn copy(&mut self) -> Result<CopyInstruction> {
        let args = self.sources_and_dest()?;
        let flags = self.flags(&[
            ("chown", FlagKind::Text),
            ("from", FlagKind::Text),
            ("chmod", FlagKind::Text),
            ("link", FlagKind::Bool),
            ("exclude", FlagKind::List),
            ("parents", FlagKind::Bool),
        ])?;
        let (sources, dest) = self.sort_sources(args)?;
        Ok(CopyInstruction {
            sources,
            dest,
            from: flags.text("from"),
            chown: flags.text("chown"),
            chmod: flags.text("chmod"),
            link: flags.bool("link").unwrap_or(false),
            parents: flags.bool("parents").unwrap_or(false),
            excludes: flags.list("exclude").collect(),
        })
    }

    pub(super) fn add(&mut self) -> Result<AddInstruction> {
        let args = self.sources_and_dest()?;
        let flags = self.flags(&[
            ("chown", FlagKind::Text),
            ("chmod", FlagKind::Text),
            ("link", FlagKind::Bool),
            ("keep-git-dir", FlagKind::Bool),
            ("checksum", FlagKind::Text),
            ("unpack", FlagKind::Bool),
            ("exclude", FlagKind::List),
        ])?;
        let (sources, dest) = self.sort_sources(args)?;
        Ok(AddInstruction {
            sources,
            dest,
            chown: flags.text("chown"),
            chmod: flags.text("chmod"),
            checksum: flags.text("checksum"),
            link: flags.bool("link").unwrap_or(false),
            keep_git_dir: flags.bool("keep-git-dir"),
            unpack: flags.bool("unpack"),
            excludes: flags.list("exclude").collect(),
        })
    }

    /// At least two arguments, the last of which is the destination.
    fn sources_and_dest(&mut self) -> Result<(Vec<Word>, Word)> {
        let (mut args, json) = self.list()?;
        let dest = args.pop();
        match dest {
            Some(dest) if !args.is_empty() => {
                if !json {
                    self.check_heredocs_are_sources(&args);
                }
                Ok((args, dest))
            }
            _ => Err(self
                .problem(format!("{} needs at least a source and a destination", self.keyword))
                .with_hint(format!("write {} source destination", self.keyword))),
        }
    }

    /// The line's words are found with quotes in mind, the arguments without: a delimiter with a space in it begins a
    /// here-document that no argument names.
    fn check_heredocs_are_sources(&mut self, args: &[Word]) {
        let named = |heredoc: &Heredoc| {
            args.iter().any(|arg| matches!(parse_heredoc(&arg.text), Ok(Some(word)) if word.name == heredoc.name.text))
        };
        for heredoc in self.heredocs.iter().filter(|heredoc| !named(heredoc)) {
            let message = format!("the here-document '{}' is no source of this {}", heredoc.name.text, self.keyword);
            self.warnings.push(
                Diagnostic::new(heredoc.name.span, message)
                    .with_hint("write its delimiter directly behind <<, without spaces"),
            );
        }
    }

    fn sort_sources(&self, (args, dest): (Vec<Word>, Word)) -> Result<(Vec<CopySource>, Word)> {
        // A word with odd quotes is no here-document but a path.
        let heredoc = |word: &Word| parse_heredoc(&word.text).ok().flatten();
        if heredoc(&dest).is_some() {
            return Err(Diagnostic::new(
                dest.span,
                format!("the destination of {} cannot be a here-document", self.keyword),
            )
            .with_hint("the destination is the last argument"));
        }
        let sources = args.into_iter().map(|arg| match heredoc(&arg) {
            None => CopySource::Path(arg),
            Some(word) => {
                // Of several with one name all get the content of the last; in JSON form there is no content.
                let body = self.heredocs.iter().rev().find(|heredoc| heredoc.name.text == word.name);
                let content = body.map_or("", |heredoc| heredoc.content.as_str());
                CopySource::Inline(Box::new(InlineFile {
                    data: if word.chomp { chomp_tabs(content) } else { content.to_owned() },
                    name: word.name,
                    expand: word.expand,
                    word: arg,
                }))
            }
        });
        Ok((sources.collect(), dest))
    }
}
