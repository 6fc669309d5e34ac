//! A cache as BuildKit writes it: `application/vnd.buildkit.cacheconfig.v0` beside blobs of layers, or in an image's config.
//!
//! Our keys stand where BuildKit has its own, as digests of records without inputs: they match none of BuildKit's, and
//! BuildKit reads the rest without harm. What only we need is in members named `rbuild`, which it ignores.
//!
//! All of it may come from anybody: sizes are bounded by the readers of blobs, digests are parsed, indexes are checked, and
//! what makes no sense is left out. Chain ids are computed, never read.

use std::collections::{BTreeMap, HashMap};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use graph::{ContentDigest, Digest, ImageConfig};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::mounts::{CachedMount, Part};
use super::table::{CachedLayer, Entry, Stack, Table};
use crate::export::Descriptor;

/// Media type of the config of a cache.
pub(crate) const CONFIG: &str = "application/vnd.buildkit.cacheconfig.v0";

/// Where BuildKit keeps the records of an inline cache in an image's config: base64 of JSON.
const INLINE: &str = "moby.buildkit.cache.v0";
/// What an inline cache says of the image's layers, which BuildKit has no use for.
const INLINE_LAYERS: &str = "dev.rbuild.cache.v0";

const DIFF_ID: &str = "containerd.io/uncompressed";
const CREATED: &str = "buildkit/createdat";

#[derive(Debug, Default, Serialize, Deserialize)]
struct Config {
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "lenient")]
    layers: Vec<Layer>,
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "lenient")]
    records: Vec<Record>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    rbuild: Option<Own>,
}

/// What BuildKit has no place for.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Own {
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "lenient")]
    mounts: Vec<OwnMount>,
}

/// The content of a cache mount: a tar, cut into parts.
#[derive(Debug, Serialize, Deserialize)]
struct OwnMount {
    id: String,
    tar: Digest,
    used: jiff::Timestamp,
    parts: Vec<OwnPart>,
}

#[derive(Debug, Serialize, Deserialize)]
struct OwnPart {
    blob: Digest,
    raw: Digest,
    size: u64,
}

#[derive(Debug, Serialize, Deserialize)]
struct Layer {
    blob: Digest,
    #[serde(default)]
    parent: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    annotations: Option<Annotations>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    rbuild: Option<OwnLayer>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Annotations {
    #[serde(default)]
    media_type: String,
    #[serde(rename = "diffID")]
    diff_id: Digest,
    #[serde(default)]
    size: u64,
    created_at: Option<jiff::Timestamp>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct OwnLayer {
    content: ContentDigest,
    #[serde(default)]
    size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    created: Option<jiff::Timestamp>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Record {
    #[serde(default, rename = "layers", skip_serializing_if = "Vec::is_empty", deserialize_with = "lenient")]
    results: Vec<CacheResult>,
    digest: Digest,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    rbuild: Option<OwnRecord>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct CacheResult {
    layer: usize,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    created_at: Option<jiff::Timestamp>,
}

#[derive(Debug, Serialize, Deserialize)]
struct OwnRecord {
    content: ContentDigest,
    op: ContentDigest,
    /// Absent in images, whose configs must not change when nothing did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    used: Option<jiff::Timestamp>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    empty: bool,
}

/// Leaves out elements that are not what they should be: others wrote them, or a later version of ours.
fn lenient<'de, D, T>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: serde::Deserializer<'de>,
    T: serde::de::DeserializeOwned + Place,
{
    let values = Option::<Vec<Value>>::deserialize(deserializer)?.unwrap_or_default();
    Ok(values.into_iter().filter_map(|value| serde_json::from_value(value).ok().or_else(T::blank)).collect())
}

/// What stands for an element that cannot be read, where positions matter.
trait Place {
    fn blank() -> Option<Self>
    where
        Self: Sized;
}

impl Place for Layer {
    fn blank() -> Option<Self> {
        Some(Self { blob: Digest::from_bytes([0; 32]), parent: -1, annotations: None, rbuild: None })
    }
}

impl Place for Record {
    fn blank() -> Option<Self> {
        None
    }
}

impl Place for CacheResult {
    fn blank() -> Option<Self> {
        None
    }
}

impl Place for OwnMount {
    fn blank() -> Option<Self> {
        None
    }
}

/// The config, and the blobs that belong into the manifest beside it.
pub(crate) fn encode(table: &Table) -> (Vec<u8>, Vec<Descriptor>) {
    let positions: HashMap<Digest, usize> = table.layers.keys().enumerate().map(|(n, chain)| (*chain, n)).collect();
    let mut blobs: BTreeMap<Digest, Descriptor> = BTreeMap::new();
    let mut config = Config::default();
    for layer in table.layers.values() {
        let position = layer.parent.and_then(|parent| positions.get(&parent));
        if let Some(blob) = &layer.blob {
            blobs.entry(blob.digest).or_insert_with(|| annotated(blob, layer));
        }
        let blob = layer.blob.as_ref();
        config.layers.push(Layer {
            blob: blob.map_or(layer.diff_id, |blob| blob.digest),
            parent: position.and_then(|position| i64::try_from(*position).ok()).unwrap_or(-1),
            annotations: Some(Annotations {
                media_type: blob.map(|blob| blob.media_type.clone()).unwrap_or_default(),
                diff_id: layer.diff_id,
                size: blob.map_or(0, |blob| blob.size),
                // BuildKit cannot do without a time.
                created_at: Some(layer.created.unwrap_or_default()),
            }),
            rbuild: Some(OwnLayer { content: layer.content, size: layer.size, created: layer.created }),
        });
    }
    for (key, entry) in &table.entries {
        config.records.push(record(key, entry, Some(entry.used), |chain| positions.get(chain).copied()));
    }
    for part in table.mounts.values().flat_map(|mount| &mount.parts) {
        blobs.entry(part.blob.digest).or_insert_with(|| part.blob.clone());
    }
    let mounts: Vec<OwnMount> = table.mounts.iter().map(|(id, mount)| own_mount(id, mount)).collect();
    config.rbuild = (!mounts.is_empty()).then_some(Own { mounts });
    let json = serde_json::to_vec(&config).expect("a cache config has string keys only");
    (json, blobs.into_values().collect())
}

fn own_mount(id: &str, mount: &CachedMount) -> OwnMount {
    let part = |part: &Part| OwnPart { blob: part.blob.digest, raw: part.raw, size: part.size };
    OwnMount { id: id.to_owned(), tar: mount.tar, used: mount.used, parts: mount.parts.iter().map(part).collect() }
}

fn annotated(blob: &Descriptor, layer: &CachedLayer) -> Descriptor {
    let mut blob = Descriptor::new(blob.media_type.clone(), blob.digest, blob.size);
    blob.annotations.insert(DIFF_ID.into(), layer.diff_id.to_string());
    blob.annotations.insert(CREATED.into(), layer.created.unwrap_or_default().to_string());
    blob
}

fn record(
    key: &ContentDigest,
    entry: &Entry,
    used: Option<jiff::Timestamp>,
    position: impl Fn(&Digest) -> Option<usize>,
) -> Record {
    let layer = match &entry.stack {
        Stack::Layers(chain) => position(chain),
        Stack::Empty | Stack::Elsewhere => None,
    };
    Record {
        results: layer.map(|layer| CacheResult { layer, created_at: used }).into_iter().collect(),
        digest: Digest::from_bytes(*key.as_bytes()),
        rbuild: Some(OwnRecord { content: entry.content, op: entry.op, used, empty: entry.stack == Stack::Empty }),
    }
}

/// Reads a config; `blobs` are those of the manifest.
///
/// # Errors
/// It is not JSON of this shape, in words.
pub(crate) fn decode(bytes: &[u8], blobs: &[Descriptor]) -> Result<Table, String> {
    let config: Config = serde_json::from_slice(bytes).map_err(|error| format!("its config: {error}"))?;
    let blobs: HashMap<Digest, &Descriptor> = blobs.iter().map(|blob| (blob.digest, blob)).collect();
    Ok(table(&config, |digest| blobs.get(digest).map(|blob| (*blob).clone())))
}

fn table(config: &Config, blob: impl Fn(&Digest) -> Option<Descriptor>) -> Table {
    let mut table = Table::default();
    let chains = chains(&config.layers);
    for (layer, chain) in config.layers.iter().zip(&chains) {
        let (Some(chain), Some(annotations), Some(own)) = (chain, &layer.annotations, &layer.rbuild) else { continue };
        let cached = CachedLayer {
            parent: parent_of(layer).and_then(|parent| chains.get(parent).copied().flatten()),
            diff_id: annotations.diff_id,
            content: own.content,
            size: own.size,
            created: own.created,
            blob: blob(&layer.blob),
        };
        table.layers.insert(*chain, cached);
    }
    for record in &config.records {
        let Some(own) = &record.rbuild else {
            table.others += 1;
            continue;
        };
        let stack = match record.results.first() {
            Some(result) => match chains.get(result.layer).copied().flatten() {
                Some(chain) if table.stack(&chain).is_some() => Stack::Layers(chain),
                _ => Stack::Elsewhere,
            },
            None if own.empty => Stack::Empty,
            None => Stack::Elsewhere,
        };
        let used = own.used.unwrap_or_default();
        let entry = Entry { stack, content: own.content, op: own.op, used };
        table.entries.insert(ContentDigest::from_bytes(*record.digest.as_bytes()), entry);
    }
    for mount in config.rbuild.iter().flat_map(|own| &own.mounts) {
        let part = |part: &OwnPart| Some(Part { raw: part.raw, size: part.size, blob: blob(&part.blob)? });
        // Without one of its parts it is nothing.
        let Some(parts) = mount.parts.iter().map(part).collect() else { continue };
        table.mounts.insert(mount.id.clone(), CachedMount { tar: mount.tar, used: mount.used, parts });
    }
    table
}

fn parent_of(layer: &Layer) -> Option<usize> {
    usize::try_from(layer.parent).ok()
}

/// The chain id of each layer; `None` where what lies below is not known, or is the layer itself.
fn chains(layers: &[Layer]) -> Vec<Option<Digest>> {
    #[derive(Clone, Copy, PartialEq)]
    enum State {
        New,
        Entered,
        Done(Option<Digest>),
    }
    let mut states = vec![State::New; layers.len()];
    for start in 0..layers.len() {
        let mut path = Vec::new();
        let mut next = Some(start);
        // Up to a layer whose chain is known, or to the lowest one.
        let mut below = loop {
            let Some(at) = next else { break Some(None) };
            match states.get(at) {
                Some(State::New) => {}
                Some(State::Done(Some(chain))) => break Some(Some(*chain)),
                // Nowhere, in a circle, or on something unusable.
                None | Some(State::Entered | State::Done(None)) => break None,
            }
            states[at] = State::Entered;
            path.push(at);
            next = parent_of(&layers[at]);
        };
        while let Some(at) = path.pop() {
            let usable = layers[at].annotations.as_ref().filter(|_| layers[at].rbuild.is_some());
            let chain = match (&below, usable) {
                (Some(parent), Some(annotations)) => Some(annotations.diff_id.chain_upon(parent.as_ref())),
                _ => None,
            };
            states[at] = State::Done(chain);
            below = chain.map(Some);
        }
    }
    let chain = |state| match state {
        State::Done(chain) => chain,
        State::New | State::Entered => None,
    };
    states.into_iter().map(chain).collect()
}

/// Puts a cache into the config of an image. Of the table's layers those of the image count, from the lowest up in `chains`.
pub(crate) fn inline(config: &mut ImageConfig, table: &Table, chains: &[Digest]) {
    let records: Vec<Record> = table
        .entries
        .iter()
        .map(|(key, entry)| record(key, entry, None, |chain| chains.iter().position(|own| own == chain)))
        .collect();
    let layers: Vec<Option<OwnLayer>> = chains
        .iter()
        .map(|chain| table.layers.get(chain))
        .map(|layer| layer.map(|layer| OwnLayer { content: layer.content, size: layer.size, created: layer.created }))
        .collect();
    let records = serde_json::to_vec(&records).expect("records have string keys only");
    config.unknown.insert(INLINE.into(), Value::String(STANDARD.encode(records)));
    config.unknown.insert(INLINE_LAYERS.into(), serde_json::json!({ "layers": layers }));
}

/// An image that is built upon another has not its cache.
pub(crate) fn strip_inline(config: &mut ImageConfig) {
    config.unknown.remove(INLINE);
    config.unknown.remove(INLINE_LAYERS);
}

/// Whether an image has an inline cache of BuildKit's.
pub(crate) fn has_inline_of_others(image: &ImageConfig) -> bool {
    image.unknown.contains_key(INLINE) && !image.unknown.contains_key(INLINE_LAYERS)
}

/// The cache in the config of an image, if there is one.
pub(crate) fn decode_inline(image: &ImageConfig, blobs: &[Descriptor]) -> Option<Table> {
    let diff_ids = &image.rootfs.diff_ids;
    if blobs.len() != diff_ids.len() {
        return None;
    }
    let own: Vec<Option<OwnLayer>> =
        serde_json::from_value(image.unknown.get(INLINE_LAYERS)?.get("layers")?.clone()).ok()?;
    let records = STANDARD.decode(image.unknown.get(INLINE)?.as_str()?).ok()?;
    let values: Vec<Value> = serde_json::from_slice(&records).ok()?;
    let records = values.into_iter().filter_map(|value| serde_json::from_value(value).ok()).collect();
    let layer = |(number, (diff_id, blob)): (usize, (&Digest, &Descriptor))| Layer {
        blob: blob.digest,
        parent: i64::try_from(number).unwrap_or(i64::MAX) - 1,
        annotations: Some(Annotations {
            media_type: blob.media_type.clone(),
            diff_id: *diff_id,
            size: blob.size,
            created_at: None,
        }),
        rbuild: own.get(number).cloned().flatten(),
    };
    let layers = diff_ids.iter().zip(blobs).enumerate().map(layer).collect();
    let by_digest: HashMap<Digest, &Descriptor> = blobs.iter().map(|blob| (blob.digest, blob)).collect();
    Some(table(&Config { layers, records, rbuild: None }, |digest| by_digest.get(digest).map(|blob| (*blob).clone())))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn key(n: u8) -> ContentDigest {
        ContentDigest::of(&[n])
    }

    fn sample() -> (Table, Vec<Digest>) {
        let mut table = Table::default();
        let mut chains = Vec::new();
        let mut parent = None;
        for n in 0..3 {
            let diff_id = Digest::of(&[n]);
            let chain = diff_id.chain_upon(parent.as_ref());
            let blob = Descriptor::new("application/vnd.oci.image.layer.v1.tar+gzip", Digest::of(&[n, n]), 7);
            let created = Some(jiff::Timestamp::from_second(5).unwrap());
            let layer = CachedLayer { parent, diff_id, content: key(n), size: 9, created, blob: Some(blob) };
            table.layers.insert(chain, layer);
            chains.push(chain);
            parent = Some(chain);
        }
        let used = jiff::Timestamp::from_second(100).unwrap();
        let entry = |stack| Entry { stack, content: key(50), op: key(51), used };
        table.entries.insert(key(10), entry(Stack::Layers(chains[2])));
        table.entries.insert(key(11), entry(Stack::Layers(chains[0])));
        table.entries.insert(key(12), entry(Stack::Empty));
        table.entries.insert(key(13), entry(Stack::Elsewhere));
        (table, chains)
    }

    #[test]
    fn a_table_comes_back_as_it_was() {
        let (table, _) = sample();
        let (json, blobs) = encode(&table);
        let mut back = decode(&json, &blobs).unwrap();
        for layer in back.layers.values_mut() {
            layer.blob.as_mut().unwrap().annotations.clear();
        }
        assert_eq!(back, table);
        assert_eq!(blobs[0].annotations.len(), 2);
        // Blobs that the manifest does not name cannot be had.
        assert!(decode(&json, &[]).unwrap().layers.values().all(|layer| layer.blob.is_none()));
    }

    #[test]
    fn an_inline_cache_comes_back_without_times_of_use() {
        let (table, chains) = sample();
        let mut config = ImageConfig::default();
        config.rootfs.diff_ids = (0..3).map(|n| Digest::of(&[n])).collect();
        inline(&mut config, &table, &chains);
        let bytes = serde_json::to_vec(&config).unwrap();
        let config: ImageConfig = serde_json::from_slice(&bytes).unwrap();
        let blobs: Vec<_> = chains.iter().map(|chain| table.layers[chain].blob.clone().unwrap()).collect();
        let back = decode_inline(&config, &blobs).unwrap();
        assert_eq!(back.layers, table.layers);
        assert_eq!(back.entries.len(), 4);
        assert!(back.entries.iter().all(|(key, entry)| entry.stack == table.entries[key].stack));
        assert_eq!(decode_inline(&config, &blobs[1..]), None);
        let mut stripped = config;
        strip_inline(&mut stripped);
        assert!(stripped.unknown.is_empty());
    }

    #[test]
    fn what_others_wrote_is_left_out() {
        let digest = Digest::of(b"x");
        // As BuildKit writes it, and with nonsense of every kind.
        let config = json!({
            "layers": [
                { "blob": digest, "parent": -1 },
                { "blob": digest, "parent": 2, "annotations": { "diffID": digest }, "rbuild": { "content": key(1) } },
                { "blob": digest, "parent": 1, "annotations": { "diffID": digest }, "rbuild": { "content": key(1) } },
                { "blob": digest, "parent": 3, "annotations": { "diffID": digest }, "rbuild": { "content": key(1) } },
                { "blob": digest, "parent": 9, "annotations": { "diffID": digest }, "rbuild": { "content": key(1) } },
                "nonsense",
                { "blob": digest, "parent": -1, "annotations": { "diffID": digest }, "rbuild": { "content": key(1) } },
                { "blob": digest, "parent": 6, "annotations": { "diffID": digest }, "rbuild": { "content": "zz" } },
                { "blob": digest, "parent": 7, "annotations": { "diffID": digest }, "rbuild": { "content": key(1) } },
            ],
            "records": [
                { "digest": digest, "inputs": [[{ "link": 1 }]], "layers": [{ "layer": 0 }] },
                { "digest": "sha256:../../etc", "rbuild": { "content": key(1), "op": key(1) } },
                { "digest": Digest::of(b"1"), "layers": [{ "layer": 2 }], "rbuild": { "content": key(1), "op": key(1) } },
                { "digest": Digest::of(b"2"), "layers": [{ "layer": 99 }], "rbuild": { "content": key(1), "op": key(1) } },
                { "digest": Digest::of(b"3"), "layers": [{ "layer": -1 }], "rbuild": { "content": key(1), "op": key(1) } },
                { "digest": Digest::of(b"4"), "layers": [{ "layer": 6 }], "rbuild": { "content": key(1), "op": key(1) } },
                { "digest": Digest::of(b"5"), "layers": null, "rbuild": { "content": key(1), "op": key(1) } },
                7, null,
            ],
        });
        let table = decode(config.to_string().as_bytes(), &[]).unwrap();
        assert_eq!(table.layers.keys().collect::<Vec<_>>(), [&digest]);
        let stacks: Vec<_> = table.entries.values().map(|entry| entry.stack).collect();
        assert_eq!(stacks.iter().filter(|stack| **stack == Stack::Layers(digest)).count(), 1, "{stacks:?}");
        assert_eq!(stacks.iter().filter(|stack| **stack == Stack::Elsewhere).count(), 4, "{stacks:?}");
        for bad in ["", "null", "{\"layers\": 5}", "{\"records\": {}}"] {
            assert!(decode(bad.as_bytes(), &[]).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn no_config_makes_it_panic(
            parents in prop::collection::vec(-2i64..12, 0..12),
            results in prop::collection::vec(-1i64..14, 0..6),
            cut in 0usize..4000,
        ) {
            let own = json!({ "content": key(1) });
            let layers: Vec<_> = parents.iter().enumerate().map(|(n, parent)| {
                let digest = Digest::of(&[n as u8]);
                json!({ "blob": digest, "parent": parent, "annotations": { "diffID": digest }, "rbuild": own })
            }).collect();
            let records: Vec<_> = results.iter().enumerate().map(|(n, layer)| {
                let own = json!({ "content": key(1), "op": key(2) });
                json!({ "digest": Digest::of(&[n as u8]), "layers": [{ "layer": layer }], "rbuild": own })
            }).collect();
            let text = json!({ "layers": layers, "records": records }).to_string();
            let table = decode(text.as_bytes(), &[]).unwrap();
            for entry in table.entries.values() {
                if let Stack::Layers(chain) = &entry.stack {
                    prop_assert!(table.stack(chain).is_some());
                }
            }
            let cut = cut.min(text.len());
            let _ = decode(&text.as_bytes()[..cut], &[]);
        }
    }
}
