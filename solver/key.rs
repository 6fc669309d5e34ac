//! The keys under which a vertex's result is recorded.
//!
//! Both are made of the operation and of what its inputs are, by content. They differ in how closely they look:
//! - the **definition key** takes each input as a whole, by an identity that is known without reading a file. It exists
//!   when every input has such an identity (a directory of the caller has none).
//! - the **content key** takes of each input only what the operation can see of it: of a COPY's source the selected
//!   files. It holds when something else in the input changed, and may cost a walk.

use graph::{ContentDigest, KeyHasher};

/// What is known of one input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InputKey {
    /// What it is as a whole.
    pub identity: Option<ContentDigest>,
    /// What the operation sees of it.
    pub selected: Option<ContentDigest>,
}

/// What a vertex was looked up by, for those who explain hits and misses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VertexKeys {
    /// Key of the operation alone.
    pub op: ContentDigest,
    /// See [`CacheKeys::definition`].
    pub definition: Option<ContentDigest>,
    /// See [`CacheKeys::content`]; `None` where it was not needed.
    pub content: Option<ContentDigest>,
    /// By position.
    pub inputs: Vec<InputKey>,
}

/// The keys of one vertex.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheKeys {
    /// See the module's words. Equal to `content` when no input is looked at more closely.
    pub definition: Option<ContentDigest>,
    /// See the module's words.
    pub content: ContentDigest,
}

impl CacheKeys {
    /// All keys, without repetition.
    #[must_use]
    pub fn all(&self) -> Vec<ContentDigest> {
        match self.definition {
            Some(definition) if definition != self.content => vec![definition, self.content],
            _ => vec![self.content],
        }
    }
}

pub(crate) fn definition_key(op: ContentDigest, identities: &[Option<ContentDigest>]) -> Option<ContentDigest> {
    let inputs: Option<Vec<ContentDigest>> = identities.iter().copied().collect();
    Some(combine(op, inputs?.into_iter().map(|digest| (WHOLE, digest))))
}

/// `None` when an input has neither an identity nor selected content.
pub(crate) fn content_key(op: ContentDigest, inputs: &[InputKey]) -> Option<ContentDigest> {
    let inputs: Option<Vec<_>> = inputs
        .iter()
        .map(|input| match (input.selected, input.identity) {
            (Some(selected), _) => Some((SELECTED, selected)),
            (None, Some(identity)) => Some((WHOLE, identity)),
            (None, None) => None,
        })
        .collect();
    Some(combine(op, inputs?.into_iter()))
}

const WHOLE: u64 = 1;
const SELECTED: u64 = 2;

fn combine(op: ContentDigest, inputs: impl Iterator<Item = (u64, ContentDigest)>) -> ContentDigest {
    let mut hasher = KeyHasher::new("vertex/1");
    hasher.field(op.as_bytes());
    for (how, digest) in inputs {
        hasher.number(how).field(digest.as_bytes());
    }
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_stable() {
        let op = ContentDigest::of(b"op");
        let input = ContentDigest::of(b"input");
        let definition = definition_key(op, &[Some(input)]).unwrap();
        assert_eq!(content_key(op, &[InputKey { identity: Some(input), selected: None }]), Some(definition));
        assert_ne!(content_key(op, &[InputKey { identity: Some(input), selected: Some(input) }]), Some(definition));
        assert_eq!(definition_key(op, &[None]), None);
        // A change here throws away every cache in the world: bump the tag, and know why.
        assert_eq!(definition.hex(), "a6706ea18de9c7035305932204fe7e7d2f465dcac7417e4a06b120f1ee505ccb");
    }
}
