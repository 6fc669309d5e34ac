//! The finished config of an image: the frontend's, with the layers that came out and times.

use graph::Digest;
use graph::image::{History, ImageConfig};

/// One layer of the result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuiltLayer {
    /// Digest of the uncompressed tar.
    pub diff_id: Digest,
    /// When it was made; cached layers keep their time, so that a build in which nothing changed gives the same image.
    pub created: Option<jiff::Timestamp>,
}

/// Fills in diff ids and times. `epoch` (SOURCE_DATE_EPOCH) replaces every time that this build would set.
///
/// History entries that the frontend made have no time yet. One that made a layer gets the layer's; one that made none gets
/// that of the entry before it. Entries are added or demoted until there are as many with a layer as there are layers, as
/// BuildKit's exporter does, for bases whose history is missing or wrong.
#[must_use]
pub fn finish(
    mut config: ImageConfig,
    layers: &[BuiltLayer],
    epoch: Option<jiff::Timestamp>,
    now: jiff::Timestamp,
) -> ImageConfig {
    config.rootfs.kind = "layers".into();
    config.rootfs.diff_ids = layers.iter().map(|layer| layer.diff_id).collect();
    align_history(&mut config.history, layers.len());
    let mut layer_times = layers.iter().map(|layer| layer.created);
    let mut before: Option<String> = None;
    for entry in &mut config.history {
        let layer_time = if entry.empty_layer { None } else { layer_times.next().flatten() };
        if entry.created.is_none() {
            let own = match (epoch, layer_time) {
                (Some(epoch), _) => Some(text(epoch)),
                (None, Some(time)) => Some(text(time)),
                (None, None) => before.clone(),
            };
            // The layer of a base that tells no time has none, or the image would be another one each time.
            entry.created = own.or_else(|| entry.empty_layer.then(|| text(now)));
        }
        before.clone_from(&entry.created);
    }
    config.created = epoch.map(text).or(before).or_else(|| Some(text(now)));
    config
}

fn align_history(history: &mut Vec<History>, layers: usize) {
    let with_layer = history.iter().filter(|entry| !entry.empty_layer).count();
    if with_layer > layers {
        // Too many claim a layer: the oldest beyond the number of layers claim wrongly.
        let mut surplus = with_layer - layers;
        for entry in history.iter_mut().rev().filter(|entry| !entry.empty_layer) {
            if surplus == 0 {
                break;
            }
            entry.empty_layer = true;
            surplus -= 1;
        }
    }
    for _ in with_layer..layers {
        history.push(History { comment: "layer without a history entry".into(), ..History::default() });
    }
}

/// RFC 3339, in UTC.
fn text(time: jiff::Timestamp) -> String {
    time.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> jiff::Timestamp {
        jiff::Timestamp::from_second(second).unwrap()
    }

    fn entry(name: &str, empty: bool) -> History {
        History { created_by: name.into(), empty_layer: empty, ..History::default() }
    }

    #[test]
    fn times_are_those_of_the_layers() {
        let layer = |n: u8, second| BuiltLayer { diff_id: Digest::from_bytes([n; 32]), created: Some(at(second)) };
        let config = ImageConfig {
            history: vec![
                History { created: Some("2020-01-01T00:00:00Z".into()), ..entry("base", false) },
                entry("ENV", true),
                entry("RUN", false),
                entry("CMD", true),
            ],
            ..ImageConfig::default()
        };
        let layers = [layer(1, 5), layer(2, 60)];
        let finished = finish(config.clone(), &layers, None, at(99));
        let times: Vec<_> = finished.history.iter().map(|entry| entry.created.clone().unwrap()).collect();
        assert_eq!(
            times,
            ["2020-01-01T00:00:00Z", "2020-01-01T00:00:00Z", "1970-01-01T00:01:00Z", "1970-01-01T00:01:00Z"]
        );
        assert_eq!(finished.created.as_deref(), Some("1970-01-01T00:01:00Z"));
        assert_eq!(finished.rootfs.diff_ids.len(), 2);
        let pinned = finish(config, &layers, Some(at(0)), at(99));
        assert_eq!(pinned.history[2].created.as_deref(), Some("1970-01-01T00:00:00Z"));
        assert_eq!(pinned.history[0].created.as_deref(), Some("2020-01-01T00:00:00Z"));
    }

    #[test]
    fn history_and_layers_agree() {
        let layers: Vec<_> =
            (0..2).map(|n| BuiltLayer { diff_id: Digest::from_bytes([n; 32]), created: None }).collect();
        for history in [vec![], vec![entry("a", false), entry("b", false), entry("c", false)]] {
            let config = ImageConfig { history, ..ImageConfig::default() };
            let finished = finish(config, &layers, None, at(1));
            assert_eq!(finished.history.iter().filter(|entry| !entry.empty_layer).count(), 2);
        }
    }
}
