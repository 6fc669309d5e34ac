//! What is known of a layer's use before it is made: what leaves compressed is compressed from the bytes that are at hand.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Write};

use graph::{ContentDigest, Digest, Graph, NodeId, Op, Operation};
use snapshotter::layer::compress::{Compression, Encoder};
use snapshotter::layer::{Bytes, Shares};
use snapshotter::{BlobWriter, KnownBlobWriter, LayerBlobRecord, Store};

use super::{BlobTypes, WorkError};
use crate::export::{OutputKind, OutputSpec};

/// The form in which the layers of a build leave.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Leaving {
    algorithm: Compression,
    types: BlobTypes,
}

impl Leaving {
    /// What these outputs want first, if that is known before the layers are.
    #[must_use]
    pub fn of(outputs: &[OutputSpec]) -> Option<Self> {
        outputs.iter().find_map(|output| match output.kind {
            // What is pushed is on its way while it is compressed, which begins when the steps are done.
            OutputKind::Oci(_) | OutputKind::Docker(Some(_)) => {
                let types = if output.oci_media_types { BlobTypes::Oci } else { BlobTypes::Docker };
                let algorithm = output.compression.algorithm;
                // Layers that are written anew at the end do not leave as they are made.
                (algorithm != Compression::None && !output.rewrites()).then_some(Self { algorithm, types })
            }
            _ => None,
        })
    }
}

/// The steps whose layers leave compressed: every COPY and ADD of the results.
#[derive(Debug, Default)]
pub(crate) struct Ahead {
    leaving: Option<Leaving>,
    steps: HashSet<ContentDigest>,
}

impl Ahead {
    pub(crate) fn of(graph: &Graph<Op>, roots: &[Option<NodeId>], leaving: Option<Leaving>) -> Self {
        let mut steps = HashSet::new();
        for root in roots.iter().flatten().filter(|_| leaving.is_some()) {
            let mut next = Some(*root);
            while let Some(id) = next {
                let node = graph.node(id);
                let base = match &node.op {
                    Op::File(file) => {
                        steps.insert(node.op.key());
                        file.base
                    }
                    Op::Exec(exec) => exec.root,
                    _ => break,
                };
                next = base.and_then(|position| node.inputs.get(position as usize)).copied();
            }
        }
        Self { leaving, steps }
    }

    /// How the layer of a step leaves.
    pub(super) fn of_step(&self, key: &ContentDigest) -> Option<Leaving> {
        self.leaving.filter(|_| self.steps.contains(key))
    }
}

/// Where the bytes of a new layer go: into its blob, and into that of its compressed form.
pub(super) struct NewLayer<'s> {
    store: &'s Store,
    raw: KnownBlobWriter<'s>,
    packed: Option<(Encoder<BlobWriter<'s>>, Leaving)>,
}

impl<'s> NewLayer<'s> {
    pub(super) fn new(store: &'s Store, leaving: Option<Leaving>) -> Result<Self, WorkError> {
        let packed = match leaving {
            Some(leaving) => Some((Encoder::new(store.blob_writer()?, leaving.algorithm)?, leaving)),
            None => None,
        };
        Ok(Self { store, raw: store.known_blob_writer()?, packed })
    }

    /// Names the blobs. The answer is the compressed one, if its file is the one that was hashed as it was written here.
    pub(super) fn commit(self, diff_id: &Digest) -> Result<Option<Digest>, WorkError> {
        self.raw.commit(diff_id)?;
        let Some((encoder, Leaving { algorithm, types })) = self.packed else { return Ok(None) };
        let (digest, size, is_ours) = encoder.finish()?.named(None)?;
        let media_type = types.media_type(algorithm).to_owned();
        self.store.add_layer_blob(diff_id, &LayerBlobRecord::made(digest, media_type, size, algorithm.level()))?;
        Ok(is_ours.then_some(digest))
    }
}

impl Write for NewLayer<'_> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.raw.write_all(data)?;
        if let Some((encoder, _)) = &mut self.packed {
            encoder.write_all(data)?;
        }
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.raw.flush()
    }
}

impl Shares for NewLayer<'_> {
    fn share(&mut self, file: &File, offset: u64, length: u64) -> io::Result<Option<Bytes>> {
        self.raw.share(file, offset, length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outputs(specs: &[&str]) -> Vec<OutputSpec> {
        specs.iter().map(|spec| OutputSpec::parse(spec).unwrap()).collect()
    }

    #[test]
    fn what_outputs_want_of_layers_is_known_before() {
        let gzip = |types| Some(Leaving { algorithm: Compression::Gzip { level: 6 }, types });
        for (specs, leaving) in [
            (vec!["type=image"], None),
            (vec!["type=cacheonly"], None),
            (vec!["type=image,push=true,name=a/b"], None),
            (vec!["type=oci,dest=x"], gzip(BlobTypes::Oci)),
            (vec!["type=image", "type=docker,dest=x"], gzip(BlobTypes::Docker)),
            (vec!["type=oci,dest=x,compression=uncompressed"], None),
            (vec!["type=oci,dest=x,rewrite-timestamp=true"], None),
            (vec!["type=local,dest=x"], None),
            (vec!["type=tar,dest=x"], None),
        ] {
            assert_eq!(Leaving::of(&outputs(&specs)), leaving, "{specs:?}");
        }
    }
}
