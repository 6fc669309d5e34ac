//! MergeOp: the layers of one stack put on another. No file is touched; layers only get new chain ids.

use graph::MergeOp;
use snapshotter::LayerRecord;
use solver::RunContext;

use super::{BuildWorker, Output, Rootfs, WorkError};

impl BuildWorker {
    pub(super) async fn merge(
        &self,
        context: &RunContext,
        op: &MergeOp,
        inputs: &[Output],
    ) -> Result<Rootfs, WorkError> {
        let mut merged: Option<Rootfs> = None;
        for &input in &op.inputs {
            let upper = self.input_rootfs(context, Some(input), inputs).await?;
            merged = Some(match merged {
                None => upper,
                Some(lower) => self.stack(&lower, &upper)?,
            });
        }
        Ok(merged.unwrap_or_else(Rootfs::empty))
    }

    /// All layers of `upper` on `lower`.
    pub(super) fn stack(&self, lower: &Rootfs, upper: &Rootfs) -> Result<Rootfs, WorkError> {
        let Some(chain) = &upper.chain else { return Ok(lower.clone()) };
        let mut result = lower.clone();
        for layer in self.store.chain_layers(chain)? {
            result = self.restack(&result, &layer)?;
        }
        Ok(result)
    }

    /// One layer on another stack. Its directory, if a step needs it, is made from its bytes: what lies below decides about
    /// parents that the layer does not mention.
    pub(super) fn restack(&self, lower: &Rootfs, layer: &LayerRecord) -> Result<Rootfs, WorkError> {
        let record = layer.upon(lower.chain);
        self.store.put_layer(&record)?;
        Ok(lower.with(&record))
    }
}
