//! SourceOp: what comes from outside. Sources know themselves what is fresh.

use std::collections::{BTreeSet, HashMap};
use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, PoisonError};

use graph::{
    ContentDigest, CopyAction, FileAction, FileOp, GitSource, HttpSource, ImageSource, KeyHasher, LocalSource, Op,
    Operation as _, SourceOp,
};
use snapshotter::layer::{Bytes, Entry, LayerError, LayerIndex, Tree};
use snapshotter::{CacheRecord, StatCache};
use solver::{RunContext, Worker as _};
use tokio_util::sync::CancellationToken;

use super::ahead::NewLayer;
use super::file::{self, ReadableTree};
use super::{BuildWorker, Local, Output, Rootfs, WorkError, blocking, git, http, stacked};
use crate::context::{Ignore, LocalContext, Place, Wanted};
use crate::images::chain_of;
use crate::provenance::{Material, Origin};
use crate::session::Session;

impl BuildWorker {
    /// Remembers what was fetched for the build.
    fn went_in(&self, material: Material) {
        self.materials.lock().unwrap_or_else(PoisonError::into_inner).insert(material);
    }

    /// All that was fetched.
    pub(crate) fn materials(&self) -> BTreeSet<Material> {
        self.materials.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) async fn source(&self, context: &RunContext, source: &SourceOp) -> Result<Output, WorkError> {
        match source {
            SourceOp::Image(image) => self.image(image).map(Output::Layers),
            SourceOp::Local(local) => self.local(local).await,
            SourceOp::Http(source) => self.http(context, source).await.map(Output::Layers),
            SourceOp::Git(source) => self.git(context, source).await.map(Output::Layers),
        }
    }

    /// The image was resolved before; its layers come when something needs them.
    fn image(&self, image: &ImageSource) -> Result<Rootfs, WorkError> {
        let Some(chain) = chain_of(&image.diff_ids) else { return Ok(Rootfs::empty()) };
        // By diff ids, even where this store knows more of a layer because it made it: another machine does not.
        let content = image.diff_ids.iter().fold(Rootfs::empty().content, |below, id| stacked(below, (*id).into()));
        Ok(Rootfs { chain: Some(chain), content })
    }

    async fn local(&self, source: &LocalSource) -> Result<Output, WorkError> {
        let local = self.contexts.get(&source.name).ok_or(WorkError::Internal("a context that nobody named"))?;
        let wanted = self.wanted.get(&source.name).cloned().unwrap_or_default();
        let (store, local) = (Arc::clone(&self.store), Arc::clone(local));
        blocking(move || {
            let cache = match &local.place {
                Place::Directory(root, _) => store.stat_cache(root)?,
                Place::Nothing | Place::Archive(..) => StatCache::empty(),
            };
            let tree = local.read(&wanted, &cache)?;
            store.save_stat_cache(&cache)?;
            Ok(Output::Local(Local { context: local, tree }))
        })
        .await
    }

    /// A local source as a layer of its own: for bind mounts and stages that are a directory.
    pub(super) async fn import(&self, context: &RunContext, local: &Local) -> Result<Rootfs, WorkError> {
        let key = local.tree.tree.digest(b"")?;
        self.whole_tree(context, KeyHasher::new("import/1").field(key.as_bytes()).finish(), &local.tree, true).await
    }

    /// What a mount shows of local files, as a layer: the file or directory at `path`, and of the rest only what a link on
    /// the way makes necessary.
    pub(super) async fn import_part(
        &self,
        context: &RunContext,
        local: &Local,
        path: &str,
    ) -> Result<Rootfs, WorkError> {
        let path = path.trim_matches('/');
        let resolved = local.tree.tree.resolve(path.as_bytes(), true)?;
        if path.is_empty() || resolved.found.is_none() || resolved.path != path.as_bytes() {
            return self.import(context, local).await;
        }
        let content = local.tree.tree.digest_exact(path.as_bytes())?;
        let key = KeyHasher::new("import-part/2").field(path.as_bytes()).field(content.as_bytes()).finish();
        self.copied(context, key, &local.tree, &format!("/{path}"), true).await
    }

    /// A tree as one layer, recorded under `key`.
    async fn whole_tree(
        &self,
        context: &RunContext,
        key: ContentDigest,
        tree: &ReadableTree,
        look: bool,
    ) -> Result<Rootfs, WorkError> {
        self.copied(context, key, tree, "/", look).await
    }

    /// What is at `path` of a tree, at the same place of a layer, recorded under `key`.
    async fn copied(
        &self,
        context: &RunContext,
        key: ContentDigest,
        tree: &ReadableTree,
        path: &str,
        look: bool,
    ) -> Result<Rootfs, WorkError> {
        if look && let Some(found) = self.recorded_source(context, &key).await {
            return Ok(found);
        }
        let op = FileOp { base: None, actions: vec![FileAction::Copy(Box::new(same_place(path)))] };
        let rootfs = self.lay(context, &op, &Rootfs::empty(), &ReadableTree::empty(), vec![tree.clone()]).await?;
        self.record_source(key, &rootfs)?;
        Ok(rootfs)
    }

    async fn recorded_source(&self, context: &RunContext, key: &ContentDigest) -> Option<Rootfs> {
        match self.lookup(context, key).await? {
            Output::Layers(rootfs) => Some(rootfs),
            Output::Local(_) | Output::Hollow(_) => None,
        }
    }

    fn record_source(&self, key: ContentDigest, rootfs: &Rootfs) -> Result<(), WorkError> {
        self.note(vec![key], key, rootfs.chain, rootfs.content, false);
        let record = CacheRecord { chain: rootfs.chain, content: rootfs.content, definition: key };
        Ok(self.store.save(&[key], &record)?)
    }

    async fn git(&self, context: &RunContext, source: &GitSource) -> Result<Rootfs, WorkError> {
        let commit = git::commit_of(source, &context.cancelled).await?;
        self.went_in(Material::git(&git_url(source), &commit));
        let mut hasher = KeyHasher::new("git/1");
        hasher
            .field(source.remote.as_bytes())
            .field(commit.as_bytes())
            .optional(source.subdir.as_deref().map(str::as_bytes));
        hasher.number(u64::from(source.keep_git_dir)).number(u64::from(source.submodules));
        let key = hasher.finish();
        if let Some(found) = self.recorded_source(context, &key).await {
            return Ok(found);
        }
        let checkout = git::checkout(source, &commit, &self.scratch, &context.cancelled).await?;
        let root = checkout.root.clone();
        let tree = blocking(move || {
            let mut everything = Wanted::default();
            everything.add_literal(b"");
            let place = Place::Directory(root, None);
            let context = LocalContext { name: "git".into(), place, ignore: Ignore::none() };
            Ok(context.read(&everything, &StatCache::empty())?)
        })
        .await?;
        let rootfs = self.whole_tree(context, key, &tree, false).await;
        drop(checkout);
        rootfs
    }

    async fn http(&self, context: &RunContext, source: &HttpSource) -> Result<Rootfs, WorkError> {
        let name = file_name(source);
        let known: HashMap<String, http::Validators> = match self.store.note("http", &source.url)? {
            Some(text) => serde_json::from_str(&text).unwrap_or_default(),
            None => HashMap::new(),
        };
        // One record per file that the URL has shown, by its digest; the validators belong to the latest.
        let latest = known.iter().next();
        let key = |digest: &str| {
            let mut hasher = KeyHasher::new("http/1");
            hasher.field(digest.as_bytes()).field(name.as_bytes()).finish()
        };
        // What is asked for by its digest and is here need not be asked for at all.
        if let Some(wanted) = source.checksum.map(|checksum| checksum.to_string())
            && let Some(found) = self.recorded_source(context, &key(&wanted)).await
        {
            self.went_in(Material::http(&source.url, &wanted));
            return Ok(found);
        }
        let usable = match latest {
            Some((digest, validators)) if source.checksum.is_none() => {
                self.recorded_source(context, &key(digest)).await.map(|found| (found, validators))
            }
            _ => None,
        };
        let validators = usable.as_ref().map(|(_, validators)| *validators);
        match http::fetch(&self.http, source, validators, &self.scratch, &context.cancelled).await? {
            http::Fetched::NotModified => match usable {
                Some((found, _)) => {
                    latest.iter().for_each(|(digest, _)| self.went_in(Material::http(&source.url, digest)));
                    Ok(found)
                }
                None => Err(WorkError::Internal("a server says that what it never sent has not changed")),
            },
            http::Fetched::File(download) => {
                let metadata = download.file.as_file().metadata()?;
                let mut entry = Entry::file(name.as_bytes().to_vec(), metadata.size(), 0o600);
                // Not the time of the download: the layer would be another one each time.
                entry.mtime = (download.modified.unwrap_or(0), 0);
                let digest = download.digest.to_string();
                self.went_in(Material::http(&source.url, &digest));
                let tree = single_file(entry, &download)?;
                let rootfs = self.whole_tree(context, key(&digest), &tree, false).await?;
                let note = HashMap::from([(digest, download.validators)]);
                self.store.put_note("http", &source.url, &serde_json::to_string(&note).unwrap_or_default())?;
                Ok(rootfs)
            }
        }
    }
}

/// The repository, and which of its versions.
fn git_url(source: &GitSource) -> String {
    match &source.reference {
        Some(reference) => format!("{}#{reference}", source.remote),
        None => source.remote.clone(),
    }
}

fn single_file(mut entry: Entry, download: &http::Download) -> Result<ReadableTree, WorkError> {
    let path = download.file.path().to_owned();
    if let snapshotter::layer::EntryKind::File { digest, .. } = &mut entry.kind {
        let mut hasher = blake3::Hasher::new();
        hasher.update_reader(std::fs::File::open(&path)?)?;
        *digest = ContentDigest::from_bytes(*hasher.finalize().as_bytes());
    }
    let tree = Arc::new(Tree::new(vec![Arc::new(LayerIndex::new(vec![entry]))]));
    let bytes = move |_: usize, _: &[u8]| Ok(Bytes::Whole(std::fs::File::open(&path)?));
    Ok(ReadableTree { tree, bytes: Arc::new(bytes) })
}

/// A plain name, whatever the URL says (CVE-2026-33747).
fn file_name(source: &HttpSource) -> String {
    let wanted = source.filename.clone().unwrap_or_default();
    let name = wanted.rsplit('/').next().unwrap_or_default();
    if name.is_empty() || name == "." || name == ".." || name.contains('\0') {
        "__unnamed__".into()
    } else {
        name.to_owned()
    }
}

fn same_place(path: &str) -> CopyAction {
    let parent = path.rsplit_once('/').map_or("", |(parent, _)| parent);
    CopyAction {
        from: 0,
        src: path.into(),
        dest: format!("{parent}/"),
        chown: None,
        chmod: None,
        follow_symlink: false,
        dir_contents_only: path == "/",
        allow_wildcard: false,
        allow_empty_wildcard: false,
        attempt_unpack: false,
        create_dest_path: true,
        parents: None,
        exclude: Vec::new(),
        always_replace_existing: false,
    }
}

impl BuildWorker {
    /// A FileOp: decided and written on a thread, stored as an uncompressed tar.
    pub(super) async fn file(&self, context: &RunContext, op: &FileOp, inputs: &[Output]) -> Result<Rootfs, WorkError> {
        let base = self.input_rootfs(context, op.base, inputs).await?;
        let base_tree = self.layers.readable(context, base.chain.as_ref()).await?;
        let mut trees = Vec::with_capacity(inputs.len());
        for (position, input) in inputs.iter().enumerate() {
            let read = op
                .actions
                .iter()
                .any(|action| matches!(action, FileAction::Copy(copy) if copy.from as usize == position));
            trees.push(if read { self.tree_of(context, input).await? } else { ReadableTree::empty() });
        }
        match self.lay(context, op, &base, &base_tree, trees).await {
            // The bytes of a layer never change by themselves.
            Err(WorkError::File(
                error @ (file::FileError::Layer(LayerError::Changed { .. } | LayerError::Format { .. })
                | file::FileError::Read { .. }
                | file::FileError::Archive { .. }),
            )) => {
                let mut damaged = None;
                let stacks = inputs.iter().filter_map(|input| match input {
                    Output::Layers(rootfs) => rootfs.chain,
                    _ => None,
                });
                for chain in stacks.chain(base.chain) {
                    if self.layers.check(context, Some(&chain)).await? {
                        damaged = Some(chain);
                    }
                }
                Err(match damaged {
                    Some(layer) => WorkError::LayerGone { layer, source: Box::new(WorkError::File(error)) },
                    None => WorkError::File(error),
                })
            }
            other => other,
        }
    }

    async fn lay(
        &self,
        context: &RunContext,
        op: &FileOp,
        base: &Rootfs,
        base_tree: &ReadableTree,
        trees: Vec<ReadableTree>,
    ) -> Result<Rootfs, WorkError> {
        let (store, op, parent, base_tree, created) =
            (Arc::clone(&self.store), op.clone(), base.chain, base_tree.clone(), self.now);
        let (scratch, token) = (self.scratch.clone(), context.cancelled.clone());
        let leaving = self.ahead.of_step(&Op::File(op.clone()).key());
        let (record, packed) = blocking(move || {
            let (now, cancelled) = ((created.as_second(), 0), &|| token.is_cancelled());
            let work = file::Work { op: &op, base: &base_tree, inputs: &trees, now, scratch: &scratch, cancelled };
            let plan = work.plan()?;
            let (written, new) = plan.write(&work, NewLayer::new(&store, leaving)?)?;
            let packed = new.commit(&written.diff_id)?;
            let record = snapshotter::LayerRecord::own(parent, written.diff_id, written.content, written.size, created);
            store.put_index(&record.chain, &written.index.encode())?;
            store.put_layer(&record)?;
            Ok((record, packed))
        })
        .await?;
        self.layers.made.lock().unwrap_or_else(PoisonError::into_inner).extend(packed);
        Ok(base.with(&record))
    }
}

/// The repository that PATH names, checked out; its files are the context.
pub(crate) async fn clone_context(
    session: &Session,
    url: &str,
    cancelled: &CancellationToken,
) -> Result<(Place, Origin), WorkError> {
    let (remote, fragment) = url.split_once('#').unwrap_or((url, ""));
    let (reference, subdir) = fragment.split_once(':').unwrap_or((fragment, ""));
    let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    let remote = match remote.strip_prefix("github.com/") {
        Some(path) => format!("https://github.com/{path}"),
        None => remote.to_owned(),
    };
    let source = GitSource {
        remote,
        reference: some(reference),
        subdir: some(subdir),
        keep_git_dir: false,
        checksum: None,
        submodules: true,
    };
    let commit = git::commit_of(&source, cancelled).await?;
    let checkout = git::checkout(&source, &commit, &session.store.scratch_directory(), cancelled).await?;
    let origin = Origin { material: Some(Material::git(url, &commit)), time: checkout.time };
    Ok((Place::Directory(checkout.root, Some(Arc::new(checkout.directory))), origin))
}

/// The file that PATH names.
pub(crate) async fn download_context(
    session: &Session,
    url: &str,
    cancelled: &CancellationToken,
) -> Result<(std::fs::File, Origin), WorkError> {
    let source = HttpSource { url: url.to_owned(), checksum: None, filename: None };
    let scratch = session.store.scratch_directory();
    match http::fetch(&session.http, &source, None, &scratch, cancelled).await? {
        http::Fetched::File(download) => {
            let material = Some(Material::http(url, &download.digest.to_string()));
            Ok((download.file.reopen()?, Origin { material, time: download.modified }))
        }
        http::Fetched::NotModified => Err(WorkError::Internal("a server says that what it never sent has not changed")),
    }
}
