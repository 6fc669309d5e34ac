//! What is kept of a build when it is over: one compressed document, and a file per step that printed something.
//!
//! ```text
//! STORE/builds/ID.json.zst     the record
//! STORE/builds/ID.logs/N       what step N printed
//! STORE/builds/lists/DIGEST    the files that a COPY or bind mount saw, by the digest of all of them
//! ```
//!
//! All of it is for people: it may be removed at any time, and what cannot be read counts as not there.

use std::fs;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use graph::ContentDigest;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::network::StepNetwork;
use crate::resources::Resources;

/// Builds that are kept.
const MOST_BUILDS: usize = 200;
/// Builds after which old ones are forgotten.
const PRUNE_EVERY: usize = 16;
/// Bytes of logs, records and lists that are kept of all builds but the latest.
const MOST_BYTES: u64 = 1 << 30;
/// Largest record that is read.
const MAX_RECORD: u64 = 256 << 20;

/// How a build ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Well.
    #[default]
    Completed,
    /// A step failed, or an export.
    Failed,
    /// Somebody gave it up.
    Cancelled,
}

impl std::fmt::Display for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        })
    }
}

/// A build that is over.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct BuildRecord {
    /// Its name: when it began, and its process.
    pub id: String,
    /// When it began.
    pub started: jiff::Timestamp,
    /// When its result was out.
    pub finished: jiff::Timestamp,
    /// How it ended.
    pub state: State,
    /// Directory or URL of the context, made absolute.
    pub context: String,
    /// `-f`
    pub file: Option<String>,
    /// `--target`
    pub target: Option<String>,
    /// Names given.
    pub tags: Vec<String>,
    /// The image's id.
    pub image: Option<String>,
    /// What its steps were allowed to use.
    #[serde(default)]
    pub resources: Resources,
    /// The network of its steps that did not ask for a certain one.
    #[serde(default)]
    pub network: StepNetwork,
    /// In the order in which they were announced.
    pub steps: Vec<Step>,
}

/// A step of a build, or something that the builder did beside the steps.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// As people see it.
    pub name: String,
    /// Lines of the Dockerfile, first and last.
    pub lines: Option<(u32, u32)>,
    /// Name or number of its stage.
    pub stage: Option<String>,
    /// Positions of the steps that it waits for.
    pub inputs: Vec<usize>,
    /// When work on it began.
    pub started: Option<jiff::Timestamp>,
    /// When it ended.
    pub finished: Option<jiff::Timestamp>,
    /// Its result was found.
    pub cached: bool,
    /// Why it failed.
    pub error: Option<String>,
    /// Bytes that it printed.
    pub printed: u64,
    /// Of the layer that it made or found, uncompressed.
    pub bytes: Option<u64>,
    /// It was told not to look for a recorded result.
    #[serde(default)]
    pub ignore_cache: bool,
    /// What it does, as JSON; `None` for what is no step.
    pub op: Option<Value>,
    /// What it was looked up by.
    pub keys: Option<Keys>,
    /// Where what it left is kept, if it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kept: Option<ContentDigest>,
    /// What its process used, if it ran one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used: Option<Used>,
}

/// What a step's process used.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Used {
    /// Seconds of processor time, of all processors.
    pub cpu_seconds: f64,
    /// Most bytes of memory in use at once.
    pub peak_memory_bytes: u64,
    /// Bytes that came from disks.
    pub read_bytes: u64,
    /// Bytes that were given to disks.
    pub written_bytes: u64,
    /// Seconds from its start to its end.
    pub wall_seconds: f64,
}

impl From<solver::Usage> for Used {
    fn from(usage: solver::Usage) -> Self {
        Self {
            cpu_seconds: usage.cpu.as_secs_f64(),
            peak_memory_bytes: usage.peak_memory,
            read_bytes: usage.read,
            written_bytes: usage.written,
            wall_seconds: usage.wall.as_secs_f64(),
        }
    }
}

/// What a step was looked up by.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Keys {
    /// Of the operation alone.
    pub op: ContentDigest,
    /// With inputs as wholes.
    pub definition: Option<ContentDigest>,
    /// With what is seen of inputs.
    pub content: Option<ContentDigest>,
    /// By position: what it is as a whole, and what is seen of it.
    pub inputs: Vec<(Option<ContentDigest>, Option<ContentDigest>)>,
}

impl Step {
    /// How long it took.
    #[must_use]
    pub fn duration(&self) -> Option<std::time::Duration> {
        Some(self.finished?.duration_since(self.started?).unsigned_abs())
    }

    /// Whether it is a step that the cache could have had.
    #[must_use]
    pub fn is_recorded(&self) -> bool {
        self.keys.is_some()
    }
}

impl BuildRecord {
    /// Steps that were found.
    #[must_use]
    pub fn hits(&self) -> usize {
        self.steps.iter().filter(|step| step.is_recorded() && step.cached).count()
    }

    /// Steps that could have been found.
    #[must_use]
    pub fn recorded(&self) -> usize {
        self.steps.iter().filter(|step| step.is_recorded()).count()
    }

    /// Bytes of the layers of its steps.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.steps.iter().filter_map(|step| step.bytes).sum()
    }
}

/// The records below one directory.
#[derive(Debug, Clone)]
pub struct Builds {
    directory: PathBuf,
}

impl Builds {
    /// Those in `directory`, which need not be there.
    #[must_use]
    pub fn new(directory: PathBuf) -> Self {
        Self { directory }
    }

    /// A name for a build that begins now.
    #[must_use]
    pub fn new_id(&self, now: jiff::Timestamp) -> String {
        let now = now.to_zoned(jiff::tz::TimeZone::UTC);
        // Two builds of one process within a microsecond do not happen.
        format!("{}-{:x}", now.strftime("%Y%m%d-%H%M%S.%6f"), std::process::id())
    }

    /// Where what a step prints goes.
    pub(super) fn log_path(&self, id: &str, step: usize) -> PathBuf {
        self.directory.join(format!("{id}.logs")).join(step.to_string())
    }

    /// Names of all builds, the latest first.
    #[must_use]
    pub fn ids(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.directory).into_iter().flatten().flatten();
        let name = |entry: fs::DirEntry| Some(entry.file_name().to_str()?.strip_suffix(".json.zst")?.to_owned());
        let mut ids: Vec<String> = entries.filter_map(name).collect();
        ids.sort_unstable_by(|a, b| b.cmp(a));
        ids
    }

    /// The one whose name begins so; `latest` is the latest.
    #[must_use]
    pub fn find(&self, text: &str) -> Vec<String> {
        let mut ids = self.ids();
        if text == "latest" {
            ids.truncate(1);
            return ids;
        }
        if ids.iter().any(|id| id == text) {
            return vec![text.to_owned()];
        }
        ids.retain(|id| !text.is_empty() && (id.starts_with(text) || id.ends_with(text)));
        ids
    }

    /// A record, if it can be read.
    #[must_use]
    pub fn read(&self, id: &str) -> Option<BuildRecord> {
        let file = fs::File::open(self.directory.join(format!("{id}.json.zst"))).ok()?;
        let mut bytes = Vec::new();
        zstd::Decoder::new(file).ok()?.take(MAX_RECORD).read_to_end(&mut bytes).ok()?;
        serde_json::from_slice(&bytes).ok()
    }

    /// What a step printed.
    ///
    /// # Errors
    /// The disk. What printed nothing has nothing to open.
    pub fn log(&self, id: &str, step: usize) -> io::Result<Option<fs::File>> {
        match fs::File::open(self.log_path(id, step)) {
            Ok(file) => Ok(Some(file)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Keeps a record, and forgets old ones.
    ///
    /// # Errors
    /// The disk.
    pub fn write(&self, record: &BuildRecord) -> io::Result<()> {
        fs::create_dir_all(&self.directory)?;
        let mut file = tempfile::Builder::new().prefix(".new-").tempfile_in(&self.directory)?;
        // In one piece: the encoder takes longer over many small ones.
        file.write_all(&zstd::encode_all(serde_json::to_vec(record)?.as_slice(), 1)?)?;
        file.persist(self.directory.join(format!("{}.json.zst", record.id))).map_err(|error| error.error)?;
        // A build in which nothing changed should not look at all that is kept.
        if self.ids().len().is_multiple_of(PRUNE_EVERY) {
            self.prune(MOST_BUILDS, MOST_BYTES, &record.id);
        }
        Ok(())
    }

    /// Forgets all builds but the latest ones that fit. What is in the way of that is left for the next time.
    fn prune(&self, builds: usize, bytes: u64, own: &str) {
        let ids = self.ids();
        // A directory of logs without a record is that of a build that goes on, or that was killed.
        let is_stale = |path: &Path| {
            let age = fs::metadata(path).and_then(|metadata| metadata.modified()).map(|time| time.elapsed());
            matches!(age, Ok(Ok(age)) if age > std::time::Duration::from_secs(7 * 24 * 60 * 60))
        };
        for entry in fs::read_dir(&self.directory).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let id = name.to_str().and_then(|name| name.strip_suffix(".logs"));
            if id.is_some_and(|id| !ids.iter().any(|known| known == id)) && is_stale(&entry.path()) {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
        for entry in fs::read_dir(self.directory.join("lists")).into_iter().flatten().flatten() {
            if is_stale(&entry.path()) {
                let _ = fs::remove_file(entry.path());
            }
        }
        let mut total = 0;
        for (number, id) in ids.iter().enumerate() {
            let record = self.directory.join(format!("{id}.json.zst"));
            let logs = self.directory.join(format!("{id}.logs"));
            let size = |path: &Path| fs::metadata(path).map_or(0, |metadata| metadata.len());
            total += size(&record);
            for log in fs::read_dir(&logs).into_iter().flatten().flatten() {
                total += size(&log.path());
            }
            if id != own && (number >= builds || total > bytes) {
                let _ = fs::remove_file(&record);
                let _ = fs::remove_dir_all(&logs);
            }
        }
    }

    fn list_path(&self, digest: &ContentDigest) -> PathBuf {
        self.directory.join("lists").join(digest.hex())
    }

    /// Whether the files behind a digest are known.
    #[must_use]
    pub fn has_list(&self, digest: &ContentDigest) -> bool {
        let path = self.list_path(digest);
        // What is in use stays.
        fs::File::open(&path).and_then(|file| file.set_modified(std::time::SystemTime::now())).is_ok()
    }

    /// Keeps what a digest stands for.
    ///
    /// # Errors
    /// The disk.
    pub fn write_list(&self, digest: &ContentDigest, files: &snapshotter::layer::LayerIndex) -> io::Result<()> {
        let directory = self.directory.join("lists");
        fs::create_dir_all(&directory)?;
        let mut file = tempfile::Builder::new().prefix(".new-").tempfile_in(&directory)?;
        file.write_all(&zstd::encode_all(files.encode().as_slice(), 1)?)?;
        file.persist(self.list_path(digest)).map_err(|error| error.error)?;
        Ok(())
    }

    /// The files behind a digest, if they are known.
    #[must_use]
    pub fn list(&self, digest: &ContentDigest) -> Option<snapshotter::layer::LayerIndex> {
        let file = fs::File::open(self.list_path(digest)).ok()?;
        let mut bytes = Vec::new();
        zstd::Decoder::new(file).ok()?.take(MAX_RECORD).read_to_end(&mut bytes).ok()?;
        snapshotter::layer::LayerIndex::decode(&bytes).ok()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(crate) fn record(id: &str) -> BuildRecord {
        let time = jiff::Timestamp::from_second(1_700_000_000).unwrap();
        BuildRecord {
            id: id.into(),
            started: time,
            finished: time,
            state: State::Completed,
            context: "/c".into(),
            ..BuildRecord::default()
        }
    }

    #[test]
    fn the_latest_are_kept() {
        let directory = tempfile::tempdir().unwrap();
        let builds = Builds::new(directory.path().join("builds"));
        assert!(builds.ids().is_empty());
        for n in 10..30 {
            let id = format!("2025-{n}");
            let log = builds.log_path(&id, 0);
            fs::create_dir_all(log.parent().unwrap()).unwrap();
            fs::write(log, vec![b'x'; 1000]).unwrap();
            builds.write(&record(&id)).unwrap();
        }
        assert_eq!(builds.ids().len(), 20);
        builds.prune(5, 1 << 30, "2025-29");
        assert_eq!(builds.ids(), ["2025-29", "2025-28", "2025-27", "2025-26", "2025-25"]);
        assert_eq!(builds.log("2025-24", 0).unwrap().map(drop), None);
        builds.prune(5, 2000, "2025-29");
        assert_eq!(builds.ids().len(), 1, "the rest is too large");
        builds.prune(5, 1, "2025-29");
        assert_eq!(builds.read("2025-29"), Some(record("2025-29")));
        assert_eq!(builds.find("latest"), ["2025-29"]);
        assert_eq!(builds.find("29"), ["2025-29"]);
        assert!(builds.find("").is_empty());
        fs::write(directory.path().join("builds/2025-29.json.zst"), "nonsense").unwrap();
        assert_eq!(builds.read("2025-29"), None);
    }
}
