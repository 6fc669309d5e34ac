//! A parsed file as text that parses to the same instructions.

use std::fmt;

use super::ast::{Dockerfile, Instruction};

impl fmt::Display for Dockerfile {
    /// Comments that mean nothing and empty lines are gone, continuations are joined.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for directive in &self.directives {
            writeln!(f, "# {}={}", directive.name, directive.value.text)?;
        }
        // What follows is no directive, whatever it looks like.
        writeln!(f)?;
        for instruction in &self.instructions {
            instruction.write(f, self.escape)?;
        }
        Ok(())
    }
}

impl Instruction {
    fn write(&self, f: &mut fmt::Formatter<'_>, escape: char) -> fmt::Result {
        for comment in &self.comments {
            writeln!(f, "# {}", comment.text)?;
        }
        f.write_str(&self.original)?;
        // The last line of a file may end in an escaped space that would now be taken for a continuation.
        if crate::lines::is_continued(&self.original, escape) {
            write!(f, "{escape}")?;
        }
        writeln!(f)?;
        for heredoc in &self.heredocs {
            writeln!(f, "{}{}", heredoc.content, heredoc.name.text)?;
        }
        Ok(())
    }
}
