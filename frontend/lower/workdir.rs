//! WORKDIR: a config change, and the directory itself.

use graph::{FileAction, FileOp, MkdirAction, Op};

use crate::Diagnostic;
use crate::image_state::Layer;
use crate::instruction::WorkdirInstruction;
use crate::lint;
use crate::stage::Step;

use super::stage_state::StageState;
use super::{Lowering, comments, owner, path};

/// PATH_MAX of linux/limits.h without its end. Every step remembers the directory it is in.
const LONGEST: usize = 4095;

impl Lowering<'_> {
    pub(super) fn workdir(
        &mut self,
        state: &mut StageState,
        step: &Step,
        workdir: &WorkdirInstruction,
    ) -> Result<(), Diagnostic> {
        let wanted = self.word(state, &workdir.path)?;
        let instruction = &step.instruction;
        // Only the first one matters: it is the base of all others.
        if !std::mem::replace(&mut state.workdir_set, true) {
            lint::workdir_relative::check(&mut self.linter, comments(step), state.place, &wanted);
        }
        let current = &state.image.config.working_dir;
        // An absolute path goes into the config as it was written; only a relative one has to be worked out.
        let dir = match wanted.as_str() {
            "" if current.is_empty() => "/".to_owned(),
            "" => current.clone(),
            wanted if wanted.starts_with('/') => wanted.to_owned(),
            wanted => path::join(current, wanted),
        };
        if dir.len() > LONGEST {
            let problem =
                format!("the working directory is longer than a path can be ({} bytes of {LONGEST})", dir.len());
            return Err(Diagnostic::new(workdir.path.span, problem).with_hint("an absolute path begins anew"));
        }
        state.image.config.working_dir.clone_from(&dir);
        if dir == "/" {
            state.record(format!("WORKDIR {dir}"), Layer::None);
            return Ok(());
        }
        let user = &state.image.config.user;
        let chown = (!user.is_empty()).then(|| owner::chown(user));
        if let (Some(name), None) = (chown.as_ref().and_then(owner::name), state.root) {
            return Err(owner::unknown(name, workdir.path.span, false));
        }
        let mkdir = MkdirAction { path: path::clean(&dir), mode: 0o755, make_parents: true, chown };
        let op = FileOp { base: state.root.map(|_| 0), actions: vec![FileAction::Mkdir(mkdir)] };
        let name = self.display(state, instruction.code());
        let name = state.numbered(&name);
        // The directory is the same each time, so `--no-cache` has nothing to make anew.
        let meta = graph::Meta { ignore_cache: false, ..self.meta(state, name, instruction) };
        state.root = Some(self.graph.add(Op::File(op), state.root.into_iter().collect(), meta));
        state.record(format!("WORKDIR {dir}"), Layer::Made);
        Ok(())
    }
}
