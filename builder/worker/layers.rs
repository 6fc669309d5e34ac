//! The bytes of layers, brought to where they are needed and no earlier: as directories for steps, as readable trees for
//! COPY, as blobs for exports.

use std::collections::{HashMap, HashSet};
use std::io::{self, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use executor::Launcher;
use graph::Digest;
use sha2::Digest as _;
use snapshotter::layer::compress::Compression;
use snapshotter::layer::{
    Applied, ApplyOptions, CommitOptions, LayerError, LayerIndex, Marks, Mended, Ownership, Tree, apply, apply_sharing,
    can_write, commit_upper, compress, mend,
};
use snapshotter::{Active, LayerBlobRecord, LayerRecord, Store};
use solver::RunContext;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::disk_guard::DiskGuard;
use super::file::ReadableTree;
use super::forms::{TarAt, Unpacked, open_in};
use super::growing::{Begins, growing};
use super::places::{Place, Places};
use super::served::Joined;
use super::transfer::{Incoming, incoming};
use super::{WorkError, blocking};
use crate::export::{Descriptor, GZIP, LayerBlob, LayerCompression};
use crate::images::{ImageError, Remote};

/// So often a layer that turns out to be damaged is had anew: one form of it after the other, and what comes from a registry.
const ROUNDS: usize = 4;

/// Layers that are fetched or unpacked at the same time.
const PARALLEL: usize = 4;

/// An overlay takes 500 lower directories; above this a stack is merged into one.
pub(super) const MOST_LOWERS: usize = 450;

/// The layers of the store, and those that registries still have.
pub struct Layers {
    pub(super) store: Arc<Store>,
    remote: Remote,
    options: ApplyOptions,
    slots: Arc<Semaphore>,
    indexes: Mutex<HashMap<Digest, Arc<LayerIndex>>>,
    /// Blobs that were not where they should be.
    pub(super) lost: Mutex<HashSet<Digest>>,
    /// Compressed forms that were hashed as this process wrote them.
    pub(super) made: Mutex<HashSet<Digest>>,
    /// Layers whose directories were looked at.
    pub(super) seen: Mutex<HashSet<Digest>>,
    /// Why there are no overlays, once it was asked.
    without_overlays: OnceLock<Option<String>>,
    /// What joins layers then.
    pub(super) joined: tokio::sync::OnceCell<Joined>,
    pub(super) launcher: Option<Launcher>,
    /// The person was told so.
    pub(super) noted: AtomicBool,
}

impl Layers {
    /// Layers of `store`; what is missing is fetched through `remote`.
    #[must_use]
    pub fn new(store: Arc<Store>, remote: Remote, options: ApplyOptions, launcher: Option<Launcher>) -> Self {
        Self {
            store,
            remote,
            options,
            slots: Arc::new(Semaphore::new(PARALLEL)),
            indexes: Mutex::default(),
            lost: Mutex::default(),
            made: Mutex::default(),
            seen: Mutex::default(),
            without_overlays: OnceLock::new(),
            joined: tokio::sync::OnceCell::new(),
            launcher,
            noted: AtomicBool::new(false),
        }
    }

    /// Why overlays cannot be used here, if they cannot. To be asked before layers are looked for as directories.
    pub(super) fn without_overlays(&self) -> Result<Option<&str>, WorkError> {
        if self.without_overlays.get().is_none() {
            let why = self.store.without_overlays(self.options.marks)?;
            // Whoever else asked at the same time was told the same.
            let _ = self.without_overlays.set(why);
        }
        Ok(self.without_overlays.get().and_then(Option::as_deref))
    }

    /// Whether files on the disk belong to whom they belong to in layers.
    pub(super) fn ownership(&self) -> Ownership {
        self.options.ownership
    }

    /// The same, if anybody asked.
    pub(super) fn known_without_overlays(&self) -> Option<bool> {
        self.without_overlays.get().map(Option::is_some)
    }

    /// How layers are unpacked here.
    pub(super) fn options(&self) -> Result<ApplyOptions, WorkError> {
        let marks = if self.without_overlays()?.is_some() { Marks::None } else { self.options.marks };
        Ok(ApplyOptions { marks, ..self.options })
    }

    /// The directories of a stack, the topmost first, as overlay wants them. Never empty.
    pub(crate) async fn directories(
        &self,
        context: &RunContext,
        chain: Option<&Digest>,
    ) -> Result<Vec<PathBuf>, WorkError> {
        let Some(chain) = chain else { return Ok(vec![self.store.empty_directory()?]) };
        let layers = self.store.chain_layers(chain)?;
        self.unpack(context, &layers).await?;
        if self.check_tops(context, &layers).await? {
            self.unpack(context, &layers).await?;
        }
        if layers.len() > MOST_LOWERS {
            let tree = self.readable(context, Some(chain)).await?;
            return Ok(vec![self.flat(context, chain, tree).await?]);
        }
        let directory = |layer: &LayerRecord| self.snapshot(&layer.chain);
        layers.iter().rev().map(directory).collect()
    }

    pub(super) fn snapshot(&self, chain: &Digest) -> Result<PathBuf, WorkError> {
        let snapshot = self.store.snapshot(chain)?.ok_or(WorkError::LayerLost(*chain))?;
        Ok(snapshot.fs().to_owned())
    }

    /// What a stack shows, and its bytes. Layers that are there as uncompressed tars are not unpacked for it.
    pub(crate) async fn readable(
        &self,
        context: &RunContext,
        chain: Option<&Digest>,
    ) -> Result<ReadableTree, WorkError> {
        let Some(chain) = chain else { return Ok(ReadableTree::empty()) };
        self.without_overlays()?;
        let layers = self.store.chain_layers(chain)?;
        let mut missing = Vec::new();
        for layer in &layers {
            let has_bytes =
                self.store.snapshot(&layer.chain)?.is_some() || self.store.blob_path(&layer.diff_id).is_some();
            if !has_bytes || self.index(&layer.chain)?.is_none() {
                missing.push(layer.clone());
            }
        }
        if !missing.is_empty() {
            self.unpack(context, &layers).await?;
        }
        self.here(&layers)?.ok_or(WorkError::LayerLost(*chain))
    }

    /// What some layers of a stack show, and their bytes, if all of these are on this machine already.
    pub(crate) fn here(&self, layers: &[LayerRecord]) -> Result<Option<ReadableTree>, WorkError> {
        let mut indexes = Vec::with_capacity(layers.len());
        let mut places = Vec::with_capacity(layers.len());
        for layer in layers {
            let Some(index) = self.index(&layer.chain)? else { return Ok(None) };
            let place = if let Some(snapshot) = self.store.snapshot(&layer.chain)? {
                Place::Directory(snapshot.fs().to_owned())
            } else if let Some(tar) = self.store.blob_path(&layer.diff_id) {
                Place::Tar(tar, Arc::clone(&index))
            } else {
                return Ok(None);
            };
            indexes.push(index);
            places.push(place);
        }
        let places = Places::new(places);
        let bytes = move |layer: usize, path: &[u8]| places.bytes(layer, path);
        Ok(Some(ReadableTree { tree: Arc::new(Tree::new(indexes)), bytes: Arc::new(bytes) }))
    }

    pub(super) fn index(&self, chain: &Digest) -> Result<Option<Arc<LayerIndex>>, WorkError> {
        if let Some(index) = self.indexes.lock().unwrap_or_else(PoisonError::into_inner).get(chain) {
            return Ok(Some(Arc::clone(index)));
        }
        let Some(bytes) = self.store.index(chain)? else { return Ok(None) };
        // An index of another version is as good as none: the layer is unpacked again.
        let Ok(index) = LayerIndex::decode(&bytes) else { return Ok(None) };
        Ok(Some(self.remember(chain, index)))
    }

    fn remember(&self, chain: &Digest, index: LayerIndex) -> Arc<LayerIndex> {
        let index = Arc::new(index);
        self.indexes.lock().unwrap_or_else(PoisonError::into_inner).insert(*chain, Arc::clone(&index));
        index
    }

    /// Unpacks what is missing of a stack: each layer apart and at the same time, then mended from the lowest up.
    pub(super) async fn unpack(&self, context: &RunContext, layers: &[LayerRecord]) -> Result<(), WorkError> {
        let is_missing = |layer: &LayerRecord| -> Result<bool, WorkError> {
            Ok(self.store.snapshot(&layer.chain)?.is_none() || self.index(&layer.chain)?.is_none())
        };
        let any = |layers: &[LayerRecord]| {
            layers.iter().try_fold(false, |any, layer| Ok::<_, WorkError>(any || is_missing(layer)?))
        };
        if !any(layers)? {
            return Ok(());
        }
        // One process unpacks a stack, the others wait for it. Stacks that share their lowest layer share the lock.
        let name = format!("unpack:{}", layers[0].diff_id);
        let (store, cancelled) = (Arc::clone(&self.store), context.cancelled.clone());
        let _lock = blocking(move || Ok(store.lock(&name, &|| cancelled.is_cancelled())?)).await?;
        let mut tasks = Vec::new();
        for (number, layer) in layers.iter().enumerate() {
            // A directory that has only lost its index needs no unpacking.
            let wanted = is_missing(layer)? && !self.lacks_only_index(layer)?;
            tasks.push(if wanted { Some(self.unpack_apart(context, layer, number)) } else { None });
        }
        let unpacked = futures_util::future::try_join_all(tasks.into_iter().map(|task| async {
            match task {
                Some(task) => task.await.map(Some),
                None => Ok(None),
            }
        }))
        .await?;
        let mut below = Tree::default();
        let mut directories: Vec<PathBuf> = Vec::new();
        for (number, (layer, mut unpacked)) in layers.iter().zip(unpacked).enumerate() {
            let lacks_index = unpacked.is_none() && self.index(&layer.chain)?.is_none();
            if lacks_index && !self.index_again(context, layer, below.clone()).await? {
                unpacked = Some(self.unpack_apart(context, layer, number).await?);
            }
            if let Some((active, mut applied)) = unpacked {
                let (tree, lower, options) = (below.clone(), directories.clone(), self.options()?);
                let token = context.cancelled.clone();
                let source = self.local_tar(layer)?;
                let (active, index) = blocking(move || {
                    let open_below = |layer: usize, path: &[u8]| open_in(lower.get(layer), path);
                    let open_tar = || source.open();
                    let (index, cancelled) = (&mut applied.index, || token.is_cancelled());
                    let mended = mend(active.fs(), index, &tree, &options, open_below, open_tar, &cancelled)?;
                    if let Mended::Reapplied { diff_id } = mended
                        && diff_id != applied.diff_id
                    {
                        return Err(WorkError::WrongLayer { expected: applied.diff_id, found: diff_id });
                    }
                    Ok((active, applied.index))
                })
                .await?;
                let bytes = index.encode();
                self.remember(&layer.chain, index);
                self.store.commit(active, layer, &bytes)?;
            }
            below.push(self.index(&layer.chain)?.ok_or(WorkError::LayerLost(layer.chain))?);
            directories.push(self.snapshot(&layer.chain)?);
        }
        Ok(())
    }

    /// Whether all that is missing of a step's layer is its index, which its directory tells.
    fn lacks_only_index(&self, layer: &LayerRecord) -> Result<bool, WorkError> {
        Ok(layer.writer.is_some_and(can_write)
            && self.index(&layer.chain)?.is_none()
            && self.store.snapshot(&layer.chain)?.is_some()
            && self.find_tar(layer)?.is_none())
    }

    /// Makes the index of a step's layer from its directory. That it is the directory of this layer shows by the diff id; one that
    /// is not is taken away.
    async fn index_again(&self, context: &RunContext, layer: &LayerRecord, below: Tree) -> Result<bool, WorkError> {
        let (directory, token) = (self.snapshot(&layer.chain)?, context.cancelled.clone());
        let path = directory.clone();
        let (ownership, version) = (self.ownership(), layer.writer);
        let made = blocking(move || {
            let cancelled = || token.is_cancelled();
            let options = CommitOptions { below: Some(&below), ownership, version, cancelled: Some(&cancelled) };
            Ok(commit_upper(&directory, &options)?)
        })
        .await?;
        if made.diff_id != layer.diff_id {
            context.progress.warn(format!("{} is damaged: it is removed, and made or fetched anew", path.display()));
            self.store.remove_snapshot(&layer.chain, &path)?;
            return Ok(false);
        }
        context.progress.warn(format!("the index of layer {} could not be read: it is made anew", layer.chain));
        self.store.replace_index(&layer.chain, &made.index.encode())?;
        self.remember(&layer.chain, made.index);
        Ok(true)
    }

    async fn unpack_apart(
        &self,
        context: &RunContext,
        layer: &LayerRecord,
        number: usize,
    ) -> Result<(Active, Applied), WorkError> {
        let _slot = self.slots.acquire().await.map_err(|_| WorkError::Cancelled)?;
        let expected = layer.diff_id;
        // A form of the layer that turns out to be damaged is taken away, and the next one tried.
        while let Some(tar) = self.find_tar(layer)? {
            let (active, options, token) = (self.store.prepare()?, self.options()?, context.cancelled.clone());
            let disk = self.store.root().to_owned();
            let unpacked = blocking(move || {
                let applied = tar.open().map_err(LayerError::Read).and_then(|from| {
                    let archive = tar.archive();
                    let from = DiskGuard::new(from, disk);
                    apply_sharing(from, archive.as_ref(), active.fs(), &options, &|| token.is_cancelled())
                });
                Ok((tar, applied.map(|applied| (active, applied))))
            });
            match unpacked.await? {
                (_, Ok((active, applied))) if applied.diff_id == expected => {
                    self.compare_content(context, layer, &applied)?;
                    return Ok((active, applied));
                }
                (tar, Ok(_)) => self.not_it(context, layer, tar).await?,
                (_, Err(LayerError::Read(error))) if error.kind() == io::ErrorKind::StorageFull => {
                    return Err(LayerError::Read(error).into());
                }
                (tar, Err(LayerError::Format { .. } | LayerError::Read(_))) => self.discard(context, layer, &tar)?,
                (_, Err(error)) => return Err(error.into()),
            }
        }
        loop {
            let blob = self.remote_blob(layer).map_err(|error| self.gone(context, layer, error))?;
            let downloaded = self.download(context, &blob, number, self.store.prepare()?).await;
            let (active, applied) = downloaded.map_err(|error| self.gone(context, layer, error))?;
            if applied.diff_id == expected {
                self.compare_content(context, layer, &applied)?;
                return Ok((active, applied));
            }
            // Others may know better.
            self.disbelieve(context, layer, &blob.digest)?;
            if self.remote_blob(layer).is_err() {
                let error = WorkError::WrongLayer { expected, found: applied.diff_id };
                return Err(self.gone(context, layer, error));
            }
        }
    }

    /// Fetches, verifies, keeps and unpacks a layer, all while its bytes arrive.
    async fn download(
        &self,
        context: &RunContext,
        blob: &Descriptor,
        number: usize,
        active: Active,
    ) -> Result<(Active, Applied), WorkError> {
        let (options, digest, token) = (self.options()?, blob.digest, context.cancelled.clone());
        let disk = self.store.root().to_owned();
        let unpack = move |incoming: Incoming<'_>| {
            let mut buffered = BufReader::with_capacity(1 << 18, incoming);
            let tar = DiskGuard::new(compress::decoder(&mut buffered)?, disk);
            let applied = apply(tar, active.fs(), &options, &|| token.is_cancelled())?;
            // The blob may go on after the end of its layer; its digest covers that too.
            io::copy(&mut buffered, &mut io::sink())?;
            buffered.into_inner().commit(&digest)?;
            Ok((active, applied))
        };
        incoming(&self.store, &self.remote, context, blob, number, unpack).await
    }

    fn remote_blob(&self, layer: &LayerRecord) -> Result<Descriptor, WorkError> {
        let mut blobs = self.store.layer_blobs(&layer.diff_id)?;
        // Of several forms one that somebody has.
        let there = blobs.iter().position(|blob| self.remote.has(&self.store, &blob.digest).unwrap_or(false));
        if blobs.is_empty() {
            return Err(WorkError::LayerLost(layer.chain));
        }
        let blob = blobs.swap_remove(there.unwrap_or(0));
        Ok(Descriptor::new(blob.media_type, blob.digest, blob.size))
    }

    /// Bytes of the layer's tar that are on this machine.
    fn find_tar(&self, layer: &LayerRecord) -> Result<Option<TarAt>, WorkError> {
        if let Some(path) = self.store.blob_path(&layer.diff_id) {
            return Ok(Some(TarAt::Plain(path)));
        }
        for blob in self.store.layer_blobs(&layer.diff_id)? {
            if let Some(path) = self.store.blob_path(&blob.digest) {
                return Ok(Some(TarAt::Compressed(blob.digest, path)));
            }
        }
        // The same layer on another stack.
        let is_exact = |record: &LayerRecord| record.writer.is_some_and(can_write);
        self.unpacked_tar(layer, is_exact)
    }

    /// A directory out of which the layer's bytes come.
    fn unpacked_tar(
        &self,
        layer: &LayerRecord,
        will_do: impl Fn(&LayerRecord) -> bool,
    ) -> Result<Option<TarAt>, WorkError> {
        let mut foreign = None;
        for chain in self.store.chains_with(&layer.diff_id)? {
            let Some(index) = self.index(&chain)? else { continue };
            let Some(record) = self.store.layer(&chain)?.filter(&will_do) else { continue };
            let unpacked = |directory: &Path| Unpacked::new(directory, Arc::clone(&index), &record);
            if let Some(snapshot) = self.store.snapshot(&chain)? {
                return Ok(Some(TarAt::Snapshot(chain, unpacked(snapshot.fs()))));
            }
            let other = self.store.foreign_snapshots(&chain)?.into_iter().next();
            foreign = foreign.or(other.map(|snapshot| TarAt::Foreign(unpacked(snapshot.fs()))));
        }
        Ok(foreign)
    }

    fn local_tar(&self, layer: &LayerRecord) -> Result<TarAt, WorkError> {
        self.find_tar(layer)?.ok_or(WorkError::LayerLost(layer.chain))
    }

    /// The directory of a layer that another rbuild made, when there is nothing else: its bytes come out of it if that one
    /// wrote as we do. Whoever uses it compares the diff id.
    fn last_resort(&self, layer: &LayerRecord) -> Result<Option<TarAt>, WorkError> {
        if layer.content == layer.diff_id.into() {
            return Ok(None);
        }
        self.unpacked_tar(layer, |_| true)
    }

    /// Bytes that are here in some form, certain or not.
    fn any_tar(&self, layer: &LayerRecord) -> Result<Option<TarAt>, WorkError> {
        match self.find_tar(layer)? {
            Some(tar) => Ok(Some(tar)),
            None => self.last_resort(layer),
        }
    }

    /// The blob of a layer in the form that is asked for.
    pub(crate) async fn blob(
        &self,
        context: &RunContext,
        layer: &LayerRecord,
        form: &BlobForm,
    ) -> Result<LayerBlob, WorkError> {
        for _ in 0..ROUNDS {
            // What is here was damaged, if nothing comes of it: then the layer is as one that was never here.
            if let Some(blob) = self.try_blob(context, layer, form).await? {
                return Ok(blob);
            }
        }
        Err(self.gone(context, layer, WorkError::LayerLost(layer.chain)))
    }

    async fn try_blob(
        &self,
        context: &RunContext,
        layer: &LayerRecord,
        form: &BlobForm,
    ) -> Result<Option<LayerBlob>, WorkError> {
        let BlobForm { number, compression, types, bytes, ref begins } = *form;
        let wanted = types.media_type(compression.algorithm);
        let mut known = self.store.layer_blobs(&layer.diff_id)?;
        let own = layer.writer.is_some();
        // A layer of somebody else's leaves as it came, ours as it is asked for: what was made of it for others before is not seen
        // in its digest.
        let level = compression.algorithm.level();
        let keep = own && self.any_tar(layer)?.is_some();
        known.retain(|blob| {
            let alike = same_compression(&blob.media_type, wanted);
            // Of ours that others have too, their form counts only where there is no other any more.
            (blob.level == Some(level) && alike) || (blob.came && !keep && (alike || !(own || compression.force)))
        });
        known.sort_by_key(|blob| !blob.came);
        for blob in &known {
            let mut path = match bytes {
                true => self.sound_blob(context, layer, &blob.digest).await?,
                // A registry verifies what it is given.
                false => self.store.blob_path(&blob.digest),
            };
            if path.is_none() && self.remote.has(&self.store, &blob.digest)? {
                if bytes {
                    let descriptor = Descriptor::new(blob.media_type.clone(), blob.digest, blob.size);
                    match self.fetch_blob(context, &descriptor, number).await {
                        // What is here in another form need not come from there.
                        Err(error) if self.any_tar(layer)?.is_none() => return Err(self.gone(context, layer, error)),
                        _ => path = self.store.blob_path(&blob.digest),
                    }
                } else {
                    let descriptor = Descriptor::new(types.adapt(&blob.media_type), blob.digest, blob.size);
                    return Ok(Some(LayerBlob { diff_id: layer.diff_id, descriptor, path: None }));
                }
            }
            if path.is_some() {
                let descriptor = Descriptor::new(types.adapt(&blob.media_type), blob.digest, blob.size);
                return Ok(Some(LayerBlob { diff_id: layer.diff_id, descriptor, path }));
            }
        }
        if compression.algorithm == Compression::None
            && let Some(path) = self.sound_blob(context, layer, &layer.diff_id).await?
        {
            let descriptor = Descriptor::new(wanted, layer.diff_id, layer.size);
            return Ok(Some(LayerBlob { diff_id: layer.diff_id, descriptor, path: Some(path) }));
        }
        if self.find_tar(layer)?.is_none()
            && let Ok(blob) = self.remote_blob(layer)
            && let Err(error) = self.fetch_blob(context, &blob, number).await
            && self.last_resort(layer)?.is_none()
        {
            return Err(self.gone(context, layer, error));
        }
        self.compress(context, layer, compression, wanted, begins.clone()).await
    }

    /// `None`: all that was here of it was damaged.
    async fn compress(
        &self,
        context: &RunContext,
        layer: &LayerRecord,
        compression: LayerCompression,
        media_type: &'static str,
        begins: Option<Begins>,
    ) -> Result<Option<LayerBlob>, WorkError> {
        let level = compression.algorithm.level();
        let name = format!("compress:{}:{media_type}:{level}", layer.diff_id);
        let diff_id = layer.diff_id;
        if self.any_tar(layer)?.is_none() {
            return Err(self.gone(context, layer, WorkError::LayerLost(layer.chain)));
        }
        // A form of the layer that turns out to be damaged is taken away, and the next one tried.
        while let Some(tar) = self.any_tar(layer)? {
            let (store, cancelled, name) = (Arc::clone(&self.store), context.cancelled.clone(), name.clone());
            let begins = begins.clone();
            let packed = blocking(move || {
                let _lock = store.lock(&name, &|| cancelled.is_cancelled())?;
                // Another process may have been at it while we waited.
                let done = store.layer_blobs(&diff_id)?.into_iter().find(|blob| {
                    blob.media_type == media_type
                        && blob.level == Some(level)
                        && store.blob_path(&blob.digest).is_some()
                });
                if let Some(done) = done {
                    return Ok(Ok((done.digest, done.size)));
                }
                let (writer, growing) = growing(store.blob_writer()?)?;
                if let Some(begins) = begins {
                    begins(growing);
                }
                let encoder = compress::Encoder::new(writer, compression.algorithm)?;
                let mut hashing = Hashing { to: encoder, hasher: sha2::Sha256::new(), cancelled };
                match tar.write_to(&mut hashing) {
                    Err(_) if !hashing.cancelled.is_cancelled() && !tar.is_sound(&diff_id) => return Ok(Err(tar)),
                    written => written?,
                }
                if Digest::from_bytes(hashing.hasher.finalize().into()) != diff_id {
                    return Ok(Err(tar));
                }
                let (digest, size) = hashing.to.finish()?.end().commit(None)?;
                let media_type = media_type.to_owned();
                store.add_layer_blob(&diff_id, &LayerBlobRecord::made(digest, media_type, size, level))?;
                Ok(Ok((digest, size)))
            });
            match packed.await? {
                Ok((digest, size)) => {
                    let path = self.store.blob_path(&digest);
                    let descriptor = Descriptor::new(media_type, digest, size);
                    return Ok(Some(LayerBlob { diff_id, descriptor, path }));
                }
                Err(wrong) => self.not_it(context, layer, wrong).await?,
            }
        }
        Ok(None)
    }

    pub(crate) async fn fetch_blob(
        &self,
        context: &RunContext,
        blob: &Descriptor,
        number: usize,
    ) -> Result<(), WorkError> {
        let digest = blob.digest;
        let keep = move |mut incoming: Incoming<'_>| {
            io::copy(&mut incoming, &mut io::sink())?;
            incoming.commit(&digest)
        };
        incoming(&self.store, &self.remote, context, blob, number, keep).await
    }
}

/// How the blob of a layer is wanted.
#[derive(Clone)]
pub(crate) struct BlobForm {
    /// Of the layer in its image, for progress.
    pub(crate) number: usize,
    pub(crate) compression: LayerCompression,
    pub(crate) types: BlobTypes,
    /// Needed here: otherwise a layer that only a registry has is left there.
    pub(crate) bytes: bool,
    /// Told when the layer begins to be compressed, if it has to be.
    pub(crate) begins: Option<Begins>,
}

/// Names of layer media types.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlobTypes {
    /// `application/vnd.oci.image.layer.v1.…`
    Oci,
    /// `application/vnd.docker.image.rootfs.diff.…`
    Docker,
}

impl BlobTypes {
    pub(super) fn media_type(self, compression: Compression) -> &'static str {
        match (self, compression) {
            (Self::Oci, Compression::None) => "application/vnd.oci.image.layer.v1.tar",
            (Self::Oci, Compression::Gzip { .. }) => "application/vnd.oci.image.layer.v1.tar+gzip",
            (_, Compression::Zstd { .. }) => "application/vnd.oci.image.layer.v1.tar+zstd",
            (Self::Docker, Compression::None) => "application/vnd.docker.image.rootfs.diff.tar",
            (Self::Docker, Compression::Gzip { .. }) => "application/vnd.docker.image.rootfs.diff.tar.gzip",
        }
    }

    /// The same compression in this family's words.
    fn adapt(self, media_type: &str) -> String {
        if media_type.ends_with("zstd") {
            self.media_type(Compression::Zstd { level: 3 }).into()
        } else if media_type.ends_with("gzip") {
            self.media_type(GZIP).into()
        } else {
            self.media_type(Compression::None).into()
        }
    }
}

fn same_compression(a: &str, b: &str) -> bool {
    let kind = |media_type: &str| ["gzip", "zstd"].into_iter().find(|end| media_type.ends_with(end));
    kind(a) == kind(b)
}

/// A transfer that ends when the build is given up; its reader then sees the end of the stream, too early.
pub(super) async fn unless_cancelled(
    context: &RunContext,
    transfer: impl Future<Output = Result<(), ImageError>>,
) -> Result<(), WorkError> {
    tokio::select! {
        () = context.cancelled.cancelled() => Err(WorkError::Cancelled),
        result = transfer => Ok(result?),
    }
}

/// Hashes what passes, on another core where it is worth that, and stops when the build is given up.
struct Hashing<W> {
    to: W,
    hasher: sha2::Sha256,
    cancelled: CancellationToken,
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        const WORTH_IT: usize = 64 << 10;
        if self.cancelled.is_cancelled() {
            return Err(io::Error::other("cancelled"));
        }
        let Self { to, hasher, .. } = self;
        if data.len() < WORTH_IT {
            hasher.update(data);
            to.write_all(data)?;
        } else {
            rayon::in_place_scope(|scope| {
                scope.spawn(|_| hasher.update(data));
                to.write_all(data)
            })?;
        }
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

/// Chunks from the async side to a reader on a thread; a few of them may be under way.
pub(crate) fn pipe() -> (ChunkReader, tokio::sync::mpsc::Sender<io::Result<bytes::Bytes>>) {
    let (sender, receiver) = tokio::sync::mpsc::channel(16);
    (ChunkReader { receiver, current: bytes::Bytes::new() }, sender)
}

/// The thread's end of [`pipe`]. A sender that goes away without an error is the end of the stream.
pub(crate) struct ChunkReader {
    receiver: tokio::sync::mpsc::Receiver<io::Result<bytes::Bytes>>,
    current: bytes::Bytes,
}

impl Read for ChunkReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() {
            match self.receiver.blocking_recv() {
                None => return Ok(0),
                Some(chunk) => self.current = chunk?,
            }
        }
        let length = buffer.len().min(self.current.len());
        buffer[..length].copy_from_slice(&self.current.split_to(length));
        Ok(length)
    }
}
