//! Layers that are damaged, lost, or not what somebody said: noticed, named, and no longer found, so that what made them is
//! done again.

use std::collections::HashSet;
use std::io;
use std::path::PathBuf;
use std::sync::{MutexGuard, PoisonError};

use graph::Digest;
use snapshotter::layer::{Applied, LayerError};
use snapshotter::{LayerRecord, StoreError};
use solver::RunContext;

use super::forms::{TarAt, Unpacked};
use super::layers::Layers;
use super::{WorkError, blocking};

impl Layers {
    /// Takes away what holds other bytes than it should.
    pub(super) fn discard(&self, context: &RunContext, layer: &LayerRecord, form: &TarAt) -> Result<(), WorkError> {
        let path = match form {
            TarAt::Plain(path) => {
                self.store.remove_blob(&layer.diff_id)?;
                path
            }
            TarAt::Compressed(digest, path) => {
                self.store.remove_blob(digest)?;
                path
            }
            TarAt::Snapshot(chain, Unpacked { directory: path, .. }) => {
                self.store.remove_snapshot(chain, path)?;
                path
            }
            // Whether it is damaged or closed to us is not for us to say.
            TarAt::Foreign(Unpacked { directory: path, .. }) => {
                self.store.disregard(path);
                context.progress.warn(format!(
                    "{} cannot be read, as files in it belong to ids that there are not here (rbuild doctor says more)",
                    path.display()
                ));
                return Ok(());
            }
        };
        context.progress.warn(format!("{} is damaged: it is removed, and made or fetched anew", path.display()));
        Ok(())
    }

    /// Something that should hold a layer holds another. Where its bytes are what they were, whoever named it was wrong.
    pub(super) async fn not_it(&self, context: &RunContext, layer: &LayerRecord, form: TarAt) -> Result<(), WorkError> {
        let diff_id = layer.diff_id;
        let (form, sound) = blocking(move || {
            let sound = form.is_sound(&diff_id);
            Ok((form, sound))
        })
        .await?;
        match form {
            TarAt::Compressed(digest, _) if sound => self.disbelieve(context, layer, &digest),
            form => self.discard(context, layer, &form),
        }
    }

    /// A blob is not the layer that somebody said.
    pub(super) fn disbelieve(&self, context: &RunContext, layer: &LayerRecord, blob: &Digest) -> Result<(), WorkError> {
        context.progress.warn(format!("{blob} is not the layer {} that it was said to be", layer.diff_id));
        self.lost().insert(*blob);
        Ok(self.store.forget_layer_blob(&layer.diff_id, blob)?)
    }

    /// Compares all bytes of a stack that are here with their digests, and takes away what differs; whether anything did.
    pub(crate) async fn check(&self, context: &RunContext, chain: Option<&Digest>) -> Result<bool, WorkError> {
        let Some(chain) = chain else { return Ok(false) };
        let mut damaged = false;
        for layer in self.store.chain_layers(chain)? {
            let mut forms = Vec::new();
            forms.extend(self.store.blob_path(&layer.diff_id).map(TarAt::Plain));
            for blob in self.store.layer_blobs(&layer.diff_id)? {
                forms.extend(self.store.blob_path(&blob.digest).map(|path| TarAt::Compressed(blob.digest, path)));
            }
            if let (Some(snapshot), Some(index)) = (self.store.snapshot(&layer.chain)?, self.index(&layer.chain)?) {
                forms.push(TarAt::Snapshot(layer.chain, Unpacked::new(snapshot.fs(), index, &layer)));
            }
            for form in forms {
                let diff_id = layer.diff_id;
                let (form, sound) = blocking(move || {
                    let sound = form.is_sound(&diff_id);
                    Ok((form, sound))
                })
                .await?;
                if !sound {
                    damaged = true;
                    self.discard(context, &layer, &form)?;
                }
            }
        }
        Ok(damaged)
    }

    /// A step's layer that cannot be had is made again; one of somebody else's image cannot.
    pub(super) fn gone(&self, context: &RunContext, layer: &LayerRecord, error: WorkError) -> WorkError {
        // A directory without an index is of no use; it must not be found again.
        if matches!(self.index(&layer.chain), Ok(None))
            && let Ok(Some(snapshot)) = self.store.snapshot(&layer.chain)
        {
            context.progress.warn(format!("the index of layer {} is damaged: it is made anew", layer.chain));
            if let Err(error) = self.store.remove_snapshot(&layer.chain, snapshot.fs()) {
                return error.into();
            }
        }
        if layer.content == layer.diff_id.into() || is_ours(&error) {
            return error;
        }
        for blob in self.store.layer_blobs(&layer.diff_id).unwrap_or_default() {
            let is_first = self.lost().insert(blob.digest);
            match self.store.forget_locations(&blob.digest) {
                Ok(()) if is_first => {
                    context.progress.warn(format!("the cached layer {} cannot be had: {error}", blob.digest));
                }
                Ok(()) => {}
                Err(error) => return error.into(),
            }
        }
        WorkError::LayerGone { layer: layer.diff_id, source: Box::new(error) }
    }

    /// Keys of what follows are made of what a layer holds, which may be known by hearsay until here. Results that rest on
    /// something wrong are forgotten, and the step is carried out.
    pub(super) fn compare_content(
        &self,
        context: &RunContext,
        layer: &LayerRecord,
        applied: &Applied,
    ) -> Result<(), WorkError> {
        if layer.content == layer.diff_id.into() || layer.content == applied.content {
            return Ok(());
        }
        let layer = layer.diff_id;
        context.progress.warn(format!("layer {layer} is not what the cache says that it comes from: it is not used"));
        self.lost().extend(self.store.layer_blobs(&layer)?.iter().map(|blob| blob.digest));
        self.store.correct_content(&layer, &applied.content)?;
        Err(WorkError::LayerGone { layer, source: Box::new(WorkError::WrongContent { layer }) })
    }

    /// Takes directories away that cannot be what they were made as: names in them are missing. Whether there were any.
    pub(super) async fn check_tops(&self, context: &RunContext, layers: &[LayerRecord]) -> Result<bool, WorkError> {
        let mut unseen = Vec::new();
        for layer in layers {
            let is_new = self.seen.lock().unwrap_or_else(PoisonError::into_inner).insert(layer.chain);
            if is_new {
                unseen.push(layer.clone());
            }
        }
        self.discard_unless(context, unseen, TarAt::has_its_top).await
    }

    /// As [`Self::check`], by what stat says of files in directories: for when a step failed, which may have a reason in what
    /// it found.
    pub(super) async fn check_files(&self, context: &RunContext, chain: Option<&Digest>) -> Result<bool, WorkError> {
        let Some(chain) = chain else { return Ok(false) };
        self.discard_unless(context, self.store.chain_layers(chain)?, TarAt::has_its_files).await
    }

    async fn discard_unless(
        &self,
        context: &RunContext,
        layers: Vec<LayerRecord>,
        is_sound: impl Fn(&TarAt) -> bool + Copy + Send + 'static,
    ) -> Result<bool, WorkError> {
        let mut damaged = false;
        for layer in layers {
            let (Some(snapshot), Some(index)) = (self.store.snapshot(&layer.chain)?, self.index(&layer.chain)?) else {
                continue;
            };
            let form = TarAt::Snapshot(layer.chain, Unpacked::new(snapshot.fs(), index, &layer));
            let (form, sound) = blocking(move || {
                let sound = is_sound(&form);
                Ok((form, sound))
            })
            .await?;
            if !sound {
                damaged = true;
                self.seen.lock().unwrap_or_else(PoisonError::into_inner).remove(&layer.chain);
                self.discard(context, &layer, &form)?;
            }
        }
        Ok(damaged)
    }

    /// A blob of a shared cache turned out to be gone or damaged: whoever writes that cache does not rely on it.
    pub(crate) fn note_lost(&self, blob: &Digest) {
        self.lost().insert(*blob);
    }

    fn lost(&self) -> MutexGuard<'_, HashSet<Digest>> {
        self.lost.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a blob turned out to be gone.
    pub(crate) fn is_lost(&self, blob: &Digest) -> bool {
        self.lost().contains(blob)
    }

    /// A blob that is about to leave, if its bytes are right. A damaged one is taken away.
    pub(super) async fn sound_blob(
        &self,
        context: &RunContext,
        layer: &LayerRecord,
        digest: &Digest,
    ) -> Result<Option<PathBuf>, WorkError> {
        let Some(path) = self.store.blob_path(digest) else { return Ok(None) };
        if self.made.lock().unwrap_or_else(PoisonError::into_inner).contains(digest) {
            return Ok(Some(path));
        }
        let (form, digest) = (TarAt::Compressed(*digest, path.clone()), *digest);
        let (form, sound) = blocking(move || {
            let sound = form.is_sound(&digest);
            Ok((form, sound))
        })
        .await?;
        if sound {
            return Ok(Some(path));
        }
        self.discard(context, layer, &form)?;
        Ok(None)
    }
}

/// Whether it is this build or machine that fails, and not the layer.
fn is_ours(error: &WorkError) -> bool {
    match error {
        WorkError::Cancelled => true,
        WorkError::Store(error) => !matches!(error, StoreError::WrongDigest { .. }),
        WorkError::Io(error) | WorkError::Layer(LayerError::Read(error) | LayerError::Io { source: error, .. }) => {
            matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
        }
        _ => false,
    }
}
