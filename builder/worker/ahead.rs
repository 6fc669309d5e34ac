//! What is known of a layer's use before it is made: bytes that nobody reads soon need no place in the page cache, and what
//! leaves compressed is compressed from the bytes that are at hand.

use std::collections::HashMap;
use std::io::{self, Write};

use graph::{ContentDigest, Digest, Graph, NodeId, Op, Operation};
use snapshotter::layer::compress::{Compression, Encoder};
use snapshotter::{BlobWriter, KnownBlobWriter, LayerBlobRecord, Store};

use super::{BlobTypes, WorkError};
use crate::export::{OutputKind, OutputSpec};

/// What the outputs of a build do with its layers.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Leaving {
    /// They are read once more when they are all there.
    read: bool,
    /// They leave in this form.
    packed: Option<(Compression, BlobTypes)>,
}

impl Leaving {
    /// Of these outputs; `further` ones read layers, too.
    #[must_use]
    pub fn of(outputs: &[OutputSpec], further: bool) -> Self {
        let mut leaving = Self { read: further, packed: None };
        for output in outputs {
            let packed = match &output.kind {
                OutputKind::CacheOnly => continue,
                // It stays in the store as it is.
                OutputKind::Image { push: false, .. } if output.is_plain() => continue,
                OutputKind::Image { push: true, .. } | OutputKind::Oci(_) | OutputKind::Docker(Some(_))
                    if !output.rewrites() =>
                {
                    let types = if output.oci_media_types { BlobTypes::Oci } else { BlobTypes::Docker };
                    Some((output.compression.algorithm, types)).filter(|(algorithm, _)| *algorithm != Compression::None)
                }
                _ => None,
            };
            match (packed, leaving.packed) {
                (Some(one), Some(other)) if one == other => {}
                (Some(one), None) => leaving.packed = Some(one),
                _ => leaving.read = true,
            }
        }
        leaving
    }

    /// All layers are written anew at the end.
    #[must_use]
    pub fn rewritten() -> Self {
        Self { read: true, packed: None }
    }
}

/// How the layer of a step is used.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Use {
    read_soon: bool,
    packed: Option<(Compression, BlobTypes)>,
}

/// The layers that COPY and ADD add to the results of a build.
#[derive(Debug, Default)]
pub(crate) struct Ahead(HashMap<ContentDigest, Use>);

impl Ahead {
    pub(crate) fn of(graph: &Graph<Op>, roots: &[Option<NodeId>], leaving: Leaving) -> Self {
        let mut uses = HashMap::new();
        for root in roots.iter().flatten() {
            let (mut next, mut above) = (Some(*root), None);
            let mut read = leaving.read;
            while let Some(id) = next {
                let node = graph.node(id);
                let base = match &node.op {
                    Op::File(file) => {
                        let others = graph.users(id).into_iter().any(|user| Some(user) != above);
                        let is_used = Use { read_soon: read || others, packed: leaving.packed };
                        let known = uses.entry(node.op.key()).or_insert(is_used);
                        known.read_soon |= is_used.read_soon;
                        file.base
                    }
                    Op::Exec(exec) => {
                        read = true;
                        exec.root
                    }
                    _ => break,
                };
                above = Some(id);
                next = base.and_then(|position| node.inputs.get(position as usize)).copied();
            }
        }
        Self(uses)
    }

    /// Of what is not among them, nothing is known but that somebody wants it.
    pub(super) fn of_step(&self, key: &ContentDigest) -> Use {
        self.0.get(key).copied().unwrap_or(Use { read_soon: true, packed: None })
    }
}

/// Where the bytes of a new layer go: into its blob, and into that of its compressed form.
pub(super) struct NewLayer<'s> {
    store: &'s Store,
    raw: KnownBlobWriter<'s>,
    packed: Option<(Encoder<BlobWriter<'s>>, Compression, BlobTypes)>,
}

impl<'s> NewLayer<'s> {
    pub(super) fn new(store: &'s Store, is_used: Use) -> Result<Self, WorkError> {
        let raw = store.known_blob_writer(is_used.read_soon)?;
        let packed = match is_used.packed {
            Some((algorithm, types)) => Some((Encoder::new(store.blob_writer()?, algorithm)?, algorithm, types)),
            None => None,
        };
        Ok(Self { store, raw, packed })
    }

    /// Names the blobs. The compressed one, if there is one, was hashed as it was written.
    pub(super) fn commit(self, diff_id: &Digest) -> Result<Option<Digest>, WorkError> {
        self.raw.commit(diff_id)?;
        let Some((encoder, algorithm, types)) = self.packed else { return Ok(None) };
        let (digest, size) = encoder.finish()?.commit(None)?;
        let media_type = types.media_type(algorithm).to_owned();
        self.store.add_layer_blob(diff_id, &LayerBlobRecord::made(digest, media_type, size, algorithm.level()))?;
        Ok(Some(digest))
    }
}

impl Write for NewLayer<'_> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.raw.write_all(data)?;
        if let Some((encoder, ..)) = &mut self.packed {
            encoder.write_all(data)?;
        }
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.raw.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outputs(specs: &[&str]) -> Vec<OutputSpec> {
        specs.iter().map(|spec| OutputSpec::parse(spec).unwrap()).collect()
    }

    #[test]
    fn what_outputs_do_with_layers_is_known_before() {
        let gzip = |types| Some((Compression::Gzip { level: 6 }, types));
        for (specs, read, packed) in [
            (vec!["type=image"], false, None),
            (vec!["type=cacheonly"], false, None),
            (vec!["type=image,push=true,name=a/b"], false, gzip(BlobTypes::Oci)),
            (vec!["type=image,unpack=true"], true, None),
            (vec!["type=oci,dest=x"], false, gzip(BlobTypes::Oci)),
            (vec!["type=oci,dest=x", "type=image"], false, gzip(BlobTypes::Oci)),
            (vec!["type=oci,dest=x", "type=docker,dest=y"], true, gzip(BlobTypes::Oci)),
            (vec!["type=docker,dest=x"], false, gzip(BlobTypes::Docker)),
            (vec!["type=oci,dest=x,compression=uncompressed"], true, None),
            (vec!["type=oci,dest=x,rewrite-timestamp=true"], true, None),
            (vec!["type=local,dest=x"], true, None),
            (vec!["type=tar,dest=x"], true, None),
        ] {
            assert_eq!(Leaving::of(&outputs(&specs), false), Leaving { read, packed }, "{specs:?}");
            assert!(Leaving::of(&outputs(&specs), true).read);
        }
    }
}
