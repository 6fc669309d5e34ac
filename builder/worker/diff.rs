//! DiffOp: the layers by which one stack extends another.

use graph::DiffOp;

use super::{BuildWorker, Output, Rootfs, WorkError};

impl BuildWorker {
    pub(super) fn diff(&self, op: &DiffOp, inputs: &[Output]) -> Result<Rootfs, WorkError> {
        let chain = |input: Option<u32>| match input.and_then(|input| inputs.get(input as usize)) {
            Some(Output::Layers(rootfs)) => Ok(rootfs.chain),
            Some(Output::Hollow(_)) => Err(WorkError::Hollow),
            Some(Output::Local(_)) => Err(WorkError::Unsupported("a diff with a local directory")),
            None => Ok(None),
        };
        let (lower, upper) = (chain(op.lower)?, chain(op.upper)?);
        let Some(upper) = upper else {
            return Err(WorkError::Unsupported("a diff to the empty tree"));
        };
        let layers = self.store.chain_layers(&upper)?;
        let below = match lower {
            None => 0,
            Some(lower) => {
                let found = layers.iter().position(|layer| layer.chain == lower);
                found.ok_or(WorkError::Unsupported("a diff of trees of which neither extends the other"))? + 1
            }
        };
        layers[below..].iter().try_fold(Rootfs::empty(), |result, layer| self.restack(&result, layer))
    }
}
