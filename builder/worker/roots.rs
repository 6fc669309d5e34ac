//! File systems for steps: overlays, or copies where the machine has none.

use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use executor::spec::Changes;
use executor::{Overlay, Root, Source};
use graph::Digest;
use snapshotter::Active;
use snapshotter::layer::{
    CommitOptions, Ownership, Populated, Sharing, commit_native, commit_served, commit_upper, remove_marks,
};
use snapshotter::{LayerRecord, Store};
use solver::RunContext;

use super::file::ReadableTree;
use super::layers::Layers;
use super::served::Joined;
use super::{WorkError, blocking};

/// A stack of layers as something that can be mounted. What is written to it is kept as long as this.
pub(crate) struct StepRoot {
    kind: Kind,
    ownership: Ownership,
}

enum Kind {
    Overlay { overlay: Overlay, changes: Option<Active> },
    Served { overlay: Overlay, program: PathBuf, changes: Option<Active> },
    Directory { path: PathBuf, changes: Option<(Active, Populated)> },
}

impl StepRoot {
    /// As the root of a step.
    pub(crate) fn root(&self) -> Root {
        match &self.kind {
            Kind::Overlay { overlay, .. } => Root::Overlay(overlay.clone()),
            Kind::Served { overlay, program, .. } => {
                Root::Served { overlay: overlay.clone(), program: program.clone() }
            }
            Kind::Directory { path, .. } => Root::Bind(path.clone()),
        }
    }

    /// As something mounted into a step.
    pub(crate) fn source(&self, selector: String) -> Source {
        match &self.kind {
            Kind::Overlay { overlay, .. } => Source::Overlay { overlay: overlay.clone(), selector },
            Kind::Served { overlay, program, .. } => {
                Source::Served { overlay: overlay.clone(), program: program.clone(), selector }
            }
            Kind::Directory { path, .. } => Source::Bind { path: path.clone(), selector, recursive: false },
        }
    }

    /// Takes away what was made to be mounted on, and makes the changes a layer of the store.
    pub(crate) fn commit(
        self,
        store: &Store,
        parent: Option<Digest>,
        below: &ReadableTree,
        stubs: &[executor::Stub],
        cancelled: &(dyn Fn() -> bool + Sync),
    ) -> Result<LayerRecord, WorkError> {
        let options = CommitOptions {
            below: Some(&below.tree),
            ownership: self.ownership,
            version: None,
            cancelled: Some(cancelled),
        };
        let remove = |from: &Path| executor::stubs::remove(from, stubs).map_err(WorkError::Stubs);
        let none = WorkError::Internal("a step without a place for its changes");
        match self.kind {
            Kind::Overlay { changes, .. } => {
                let active = changes.ok_or(none)?;
                remove(active.fs())?;
                super::exec::forget_parents(active.fs(), stubs, &below.tree);
                let made = commit_upper(active.fs(), &options)?;
                let record = LayerRecord::own(parent, made.diff_id, made.content, made.size, jiff::Timestamp::now());
                store.commit(active, &record, &made.index.encode())?;
                Ok(record)
            }
            Kind::Served { changes, .. } => {
                let active = changes.ok_or(none)?;
                remove(active.fs())?;
                super::exec::forget_parents(active.fs(), stubs, &below.tree);
                let (made, blob) = commit_served(active.fs(), &options, store.known_blob_writer()?)?;
                blob.commit(&made.diff_id)?;
                let record = LayerRecord::own(parent, made.diff_id, made.content, made.size, jiff::Timestamp::now());
                remove_marks(active.fs())?;
                store.commit(active, &record, &made.index.encode())?;
                Ok(record)
            }
            Kind::Directory { changes, .. } => {
                let (active, populated) = changes.ok_or(none)?;
                remove(active.fs())?;
                let blob = store.known_blob_writer()?;
                let (made, blob) = commit_native(active.fs(), &below.tree, &populated, &options, blob)?;
                blob.commit(&made.diff_id)?;
                let record = LayerRecord::own(parent, made.diff_id, made.content, made.size, jiff::Timestamp::now());
                store.put_index(&record.chain, &made.index.encode())?;
                store.put_layer(&record)?;
                Ok(record)
            }
        }
    }
}

impl Layers {
    /// A stack ready to be mounted. Where overlays cannot be used it is a copy, of its own if it is to be written.
    pub(crate) async fn root(
        &self,
        context: &RunContext,
        chain: Option<&Digest>,
        writable: bool,
    ) -> Result<StepRoot, WorkError> {
        let ownership = self.ownership();
        let Some(why) = self.without_overlays()? else { return self.overlay(context, chain, writable).await };
        let not = match self.served().await? {
            Joined::By(program) => {
                if !self.noted.swap(true, Ordering::Relaxed) {
                    context
                        .progress
                        .warn(format!("layers are joined by fuse-overlayfs, as overlayfs cannot be used: {why}"));
                }
                return self.joined_by(context, chain, program, writable).await;
            }
            Joined::Not(why) => why,
        };
        if !self.noted.swap(true, Ordering::Relaxed) {
            let root = self.store.root().display();
            context.progress.warn(format!(
                "overlayfs cannot be used in {root} ({why}), nor fuse-overlayfs ({not}): every RUN step works on a copy of \
                 its root file system, which takes time and space. A state directory on a local disk or volume (--root) \
                 avoids that"
            ));
        }
        let tree = self.readable(context, chain).await?;
        let (store, options, cancelled) = (self.store.clone(), self.options()?, context.cancelled.clone());
        if writable {
            return blocking(move || {
                let active = store.prepare()?;
                let stop = || cancelled.is_cancelled();
                let populated = tree.populate(active.fs(), &options, Sharing::Private, &stop)?;
                let path = active.fs().to_owned();
                Ok(StepRoot { kind: Kind::Directory { path, changes: Some((active, populated)) }, ownership })
            })
            .await;
        }
        let path = match chain {
            None => store.empty_directory()?,
            Some(chain) => self.flat(context, chain, tree).await?,
        };
        Ok(StepRoot { kind: Kind::Directory { path, changes: None }, ownership })
    }

    async fn overlay(
        &self,
        context: &RunContext,
        chain: Option<&Digest>,
        writable: bool,
    ) -> Result<StepRoot, WorkError> {
        let (lowers, ownership) = (self.directories(context, chain).await?, self.ownership());
        if !writable {
            return Ok(StepRoot {
                kind: Kind::Overlay { overlay: Overlay { lowers, changes: None }, changes: None },
                ownership,
            });
        }
        let active = self.store.prepare()?;
        let changes = Some(Changes { upper: active.fs().to_owned(), work: active.work().to_owned() });
        Ok(StepRoot { kind: Kind::Overlay { overlay: Overlay { lowers, changes }, changes: Some(active) }, ownership })
    }

    async fn joined_by(
        &self,
        context: &RunContext,
        chain: Option<&Digest>,
        program: &Path,
        writable: bool,
    ) -> Result<StepRoot, WorkError> {
        let (lowers, program) = (self.unmarked(context, chain).await?, program.to_owned());
        let ownership = self.ownership();
        let active = if writable { Some(self.store.prepare()?) } else { None };
        let changes = active.as_ref();
        let changes = changes.map(|active| Changes { upper: active.fs().to_owned(), work: active.work().to_owned() });
        Ok(StepRoot {
            kind: Kind::Served { overlay: Overlay { lowers, changes }, program, changes: active },
            ownership,
        })
    }

    /// A stack as one directory that is only read.
    pub(super) async fn flat(
        &self,
        context: &RunContext,
        chain: &Digest,
        tree: ReadableTree,
    ) -> Result<PathBuf, WorkError> {
        let (store, chain, options) = (self.store.clone(), *chain, self.options()?);
        let cancelled = context.cancelled.clone();
        blocking(move || {
            let stop = || cancelled.is_cancelled();
            let fill = |directory: &Path| -> Result<(), WorkError> {
                tree.populate(directory, &options, Sharing::ReadOnly, &stop)?;
                Ok(())
            };
            Ok(store.flattened(&chain, &stop, fill)?.fs().to_owned())
        })
        .await
    }
}
