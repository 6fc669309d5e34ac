//! Stacks of layers joined by fuse-overlayfs, where the kernel joins none and the machine has that program.
//!
//! Layers are unpacked there without marks of what they remove, as for copies. So all below a layer that removes something is
//! merged into one directory, of links and clones; what lies above is joined.

use std::path::PathBuf;

use executor::Launcher;
use executor::spec::{Changes, Overlay};
use graph::Digest;
use snapshotter::layer::{EntryKind, LayerIndex};
use snapshotter::{LayerRecord, Store};
use solver::RunContext;

use super::WorkError;
use super::layers::{Layers, MOST_LOWERS};

/// The name of the program.
const PROGRAM: &str = "fuse-overlayfs";

/// How stacks become file systems where the kernel joins no layers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Joined {
    /// By this program.
    By(PathBuf),
    /// Not at all, for this reason.
    Not(String),
}

impl Layers {
    /// Whether fuse-overlayfs can be used here, tried once.
    pub(crate) async fn served(&self) -> Result<&Joined, WorkError> {
        self.joined.get_or_try_init(|| examine(&self.store, self.launcher.as_ref())).await
    }

    /// How stacks become file systems here: `overlay`, `fuse-overlayfs` or `copies`. None before anybody needed one.
    #[must_use]
    pub fn way(&self) -> Option<&'static str> {
        match (self.known_without_overlays()?, self.joined.get()) {
            (false, _) => Some("overlay"),
            (true, Some(Joined::By(_))) => Some(PROGRAM),
            (true, Some(Joined::Not(_))) => Some("copies"),
            (true, None) => None,
        }
    }

    /// The directories of a stack, the topmost first, of which no one hides anything of those below by a mark.
    pub(super) async fn unmarked(
        &self,
        context: &RunContext,
        chain: Option<&Digest>,
    ) -> Result<Vec<PathBuf>, WorkError> {
        let Some(chain) = chain else { return Ok(vec![self.store.empty_directory()?]) };
        let layers = self.store.chain_layers(chain)?;
        self.unpack(context, &layers).await?;
        let mut merged = 0;
        for (number, layer) in layers.iter().enumerate().skip(1) {
            let index = self.index(&layer.chain)?.ok_or(WorkError::LayerLost(layer.chain))?;
            if removes(&index) {
                merged = number + 1;
            }
        }
        merged = merged.max(layers.len().saturating_sub(MOST_LOWERS));
        let above = layers[merged..].iter().rev().map(|layer: &LayerRecord| self.snapshot(&layer.chain));
        let mut directories = above.collect::<Result<Vec<_>, _>>()?;
        if let Some(layer) = merged.checked_sub(1).and_then(|top| layers.get(top)) {
            let tree = self.readable(context, Some(&layer.chain)).await?;
            directories.push(self.flat(context, &layer.chain, tree).await?);
        }
        Ok(directories)
    }
}

/// Tries whether fuse-overlayfs joins layers of this store.
///
/// # Errors
/// The store, not the trial.
pub(crate) async fn examine(store: &Store, launcher: Option<&Launcher>) -> Result<Joined, WorkError> {
    let Some(launcher) = launcher.filter(|launcher| !launcher.is_confined()) else {
        return Ok(Joined::Not("no file system can be mounted".to_owned()));
    };
    let Some(program) = crate::emulation::find_program(PROGRAM) else {
        return Ok(Joined::Not(format!("{PROGRAM} is not installed")));
    };
    let active = store.prepare()?;
    let (lower, upper) = (active.fs().join("lower"), active.fs().join("upper"));
    let make = || -> std::io::Result<()> {
        std::fs::create_dir_all(lower.join("directory/inner"))?;
        std::fs::write(lower.join("file"), "lower")?;
        std::fs::write(lower.join("changed"), "lower")?;
        std::fs::create_dir(&upper)
    };
    if let Err(error) = make() {
        return Ok(Joined::Not(error.to_string()));
    }
    let changes = Some(Changes { upper: upper.clone(), work: active.work().to_owned() });
    let overlay = Overlay { lowers: vec![lower], changes };
    match launcher.try_served(overlay, program.clone()).await {
        Ok(()) if upper.join("changed").exists() => Ok(Joined::By(program)),
        Ok(()) => Ok(Joined::Not(format!("what is changed through {PROGRAM} does not arrive"))),
        Err(error) => Ok(Joined::Not(error.to_string())),
    }
}

fn removes(index: &LayerIndex) -> bool {
    let is_mark = |kind: &EntryKind| matches!(kind, EntryKind::Whiteout | EntryKind::Dir { opaque: true, .. });
    index.entries().iter().any(|entry| is_mark(&entry.kind))
}
