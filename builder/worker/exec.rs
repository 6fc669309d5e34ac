//! ExecOp: one process on an overlay of the input's snapshots; what it changed becomes a layer.

use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use executor::stubs::Purpose;
use executor::{Process, Root, Source};
use graph::{BindSource, CacheSharing, ExecOp, MountKind, NetworkMode, ProxyEnv, SecurityMode};
use snapshotter::NewDirectory;
use snapshotter::layer::{ApplyOptions, Ownership, Sharing, Tree};
use solver::RunContext;

use super::mask::Mask;
use super::secrets::Secrets;
use super::{BuildWorker, Output, Rootfs, StartFailure, StepFailure, StepRoot, WorkError, blocking, step};
use crate::cache::{self, Restored};
use crate::emulation;
use crate::network::{self, Connected, StepNetwork};
use crate::resources::{Patience, Resources};
use crate::ssh::Agents;

/// What steps may do beyond the default, and what they are given.
#[derive(Debug, Default)]
pub struct StepPolicy {
    /// The network of steps that do not ask for a certain one.
    pub network: StepNetwork,
    /// What steps may use.
    pub resources: Resources,
    /// How long they may take.
    pub patience: Patience,
    /// `--allow network.host`, or `--network=host` on the command line.
    pub allow_host_network: bool,
    /// `--allow security.insecure`
    pub allow_insecure: bool,
    /// `--secret`
    pub secrets: Secrets,
    /// `--ssh`
    pub ssh: Agents,
}

impl StepPolicy {
    /// Allows what `--allow` names.
    ///
    /// # Errors
    /// It is something else.
    pub fn allow(&mut self, entitlements: &[String]) -> Result<(), String> {
        for entitlement in entitlements {
            match entitlement.as_str() {
                "network.host" => self.allow_host_network = true,
                "security.insecure" => self.allow_insecure = true,
                other => return Err(format!("--allow {other:?} is neither network.host nor security.insecure")),
            }
        }
        Ok(())
    }
}

impl BuildWorker {
    pub(super) async fn exec(&self, context: &RunContext, op: &ExecOp, inputs: &[Output]) -> Result<Rootfs, WorkError> {
        self.check_entitlements(op)?;
        let failed = match self.exec_once(context, op, inputs).await {
            Err(error @ (WorkError::Step(_) | WorkError::Start(_))) => error,
            done => return done,
        };
        // A step that does not find what it should find fails for it. What it found is mended, and it may try again.
        let mut is_damaged = false;
        for input in inputs {
            if let Output::Layers(rootfs) = input {
                is_damaged |= self.layers.check_files(context, rootfs.chain.as_ref()).await?;
            }
        }
        if is_damaged { self.exec_once(context, op, inputs).await } else { Err(failed) }
    }

    async fn exec_once(&self, context: &RunContext, op: &ExecOp, inputs: &[Output]) -> Result<Rootfs, WorkError> {
        // It makes itself ready while the root is.
        self.launcher.wake();
        let confined = self.launcher.is_confined();
        let _turn = if confined { self.turn.acquire().await.ok() } else { None };
        let base = self.input_rootfs(context, op.root, inputs).await?;
        let root = self.layers.root(context, base.chain.as_ref(), true).await?;
        let (process, held) = self.prepare(context, op, inputs, root.root()).await?;
        let ran = match step::run(&self.launcher, context, process, held.mask(), self.policy.patience).await {
            Err(WorkError::Start(mut failure)) => {
                failure.error = emulation::explain(failure.error, held.unsupported.clone());
                failure.kept = self.keep(op, &base, 0, &held.sources);
                return Err(WorkError::Start(failure));
            }
            ran => ran?,
        };
        let sources = held.end();
        let Some(ending) = ran.ending else { return Ok(self.commit_step(context, &base, root, ran.stubs).await?.0) };
        // What was left when the disk was full or the person had enough is not kept; the step's failure is what counts.
        let left = self.commit_step(context, &base, root, ran.stubs).await.ok();
        let kept = left.and_then(|(left, size)| self.keep(op, &left, size, &sources));
        Err(WorkError::Step(StepFailure { command: op.args.join(" "), ending, kept }))
    }

    /// The process of a step on its root, and what it uses meanwhile.
    pub(super) async fn prepare(
        &self,
        context: &RunContext,
        op: &ExecOp,
        inputs: &[Output],
        root: Root,
    ) -> Result<(Process, Held), WorkError> {
        let mut held = Held::default();
        let mut process = Process::new(root, &op.args);
        self.policy.resources.apply(&mut process);
        if op.security == SecurityMode::Insecure {
            process = process.insecure();
        }
        process.env = environment(op);
        process.cwd.clone_from(&op.cwd);
        process.user.clone_from(&op.user);
        process.hostname = op.hostname.clone().unwrap_or_else(|| "buildkitsandbox".into());
        let connected = self.connect(context, op).await?;
        process.files = network::etc_files(&connected, &op.extra_hosts, &process.hostname);
        process.network = connected.network;
        self.take_caches(context, op, inputs, &mut held).await?;
        for mount in &op.mounts {
            let source = self.mount(context, mount, inputs, &mut process, &mut held).await?;
            held.sources.push(source);
        }
        for secret in &op.secret_env {
            match self.policy.secrets.get(&secret.id).map_err(WorkError::Secret)? {
                Some(value) => {
                    process.env.push(format!("{}={}", secret.name, String::from_utf8_lossy(&value)));
                    held.secrets.push(value);
                }
                None if secret.required => return Err(WorkError::NoSecret { id: secret.id.clone() }),
                None => {}
            }
        }
        let failed = |error| WorkError::Start(StartFailure { command: op.args.join(" "), error, kept: None });
        held.unsupported = emulation::prepare(&self.launcher, &op.platform, &mut process).await.map_err(failed)?;
        Ok((process, held))
    }

    /// What the step changed becomes a layer, of so many bytes; mount points that were made for it go first.
    async fn commit_step(
        &self,
        context: &RunContext,
        base: &Rootfs,
        root: StepRoot,
        stubs: Vec<executor::Stub>,
    ) -> Result<(Rootfs, u64), WorkError> {
        let below = self.layers.readable(context, base.chain.as_ref()).await?;
        let (store, parent, token) = (Arc::clone(&self.store), base.chain, context.cancelled.clone());
        let record = blocking(move || {
            // As BuildKit does it, /proc, /sys and /dev stay: engines that run the image read-only need them.
            let stubs: Vec<_> = stubs.into_iter().filter(|stub| stub.purpose != Purpose::Standard).collect();
            root.commit(&store, parent, &below, &stubs, &|| token.is_cancelled())
        })
        .await?;
        Ok((base.with(&record), record.size))
    }

    pub(super) fn check_entitlements(&self, op: &ExecOp) -> Result<(), WorkError> {
        if op.network == NetworkMode::Host && !self.policy.allow_host_network {
            return Err(WorkError::NotAllowed("network.host"));
        }
        if op.security == SecurityMode::Insecure && !self.policy.allow_insecure {
            return Err(WorkError::NotAllowed("security.insecure"));
        }
        match op.devices.iter().find(|device| device.required) {
            Some(device) => Err(WorkError::NoDevice(device.name.clone())),
            None => Ok(()),
        }
    }

    /// Where there is no private network to be had, that is said once per build.
    async fn connect(&self, context: &RunContext, op: &ExecOp) -> Result<Connected, WorkError> {
        let wanted = match op.network {
            NetworkMode::None => StepNetwork::None,
            NetworkMode::Host => StepNetwork::Host,
            NetworkMode::Default => self.policy.network,
        };
        let connected = network::connect(&self.launcher, wanted).await;
        let connected = connected
            .map_err(|error| WorkError::Start(StartFailure { command: op.args.join(" "), error, kept: None }))?;
        if let Some(why) = &connected.instead_of_private
            && !self.launcher.is_confined()
            && !self.network_noted.swap(true, Ordering::Relaxed)
        {
            context.progress.warn(format!("RUN steps use the host's network: {why}; --network=none isolates them"));
        }
        Ok(connected)
    }

    /// Answers of which layers it shows something, if it does.
    async fn mount(
        &self,
        context: &RunContext,
        mount: &graph::Mount,
        inputs: &[Output],
        process: &mut Process,
        held: &mut Held,
    ) -> Result<Option<Rootfs>, WorkError> {
        let mut add = |source: Source, readonly: bool| {
            process.mounts.push(executor::Mount { destination: mount.dest.clone(), source, readonly });
        };
        match &mount.kind {
            MountKind::Tmpfs { size } => add(Source::Tmpfs { size: *size, mode: 0o1777 }, mount.readonly),
            MountKind::Bind(bind) => {
                let rootfs = self.bind_source(context, bind, inputs).await?;
                // Without mounts it is moved into the step's root, which wants a copy that nobody else has.
                let own = !mount.readonly || self.launcher.is_confined();
                let root = self.layers.root(context, rootfs.chain.as_ref(), own).await?;
                add(root.source(bind.selector.clone()), mount.readonly);
                held.roots.push(root);
                return Ok(Some(rootfs));
            }
            MountKind::Cache(cache) => {
                let initial = self.bind_source(context, &cache.from, inputs).await?;
                let directory = held.caches.get(&cache_id(cache, &initial)).ok_or(WorkError::CacheChanged)?;
                let selector = if cache.from.input.is_some() { cache.from.selector.clone() } else { "/".into() };
                let path = directory.path().to_owned();
                add(Source::Bind { path, selector, recursive: false }, mount.readonly);
                return Ok(cache.from.input.map(|_| initial));
            }
            MountKind::Secret(secret) => match self.policy.secrets.get(&secret.id).map_err(WorkError::Secret)? {
                Some(content) => {
                    held.secrets.push(content.clone());
                    add(Source::File { content, mode: secret.mode, uid: secret.uid, gid: secret.gid }, true);
                }
                None if secret.required => return Err(WorkError::NoSecret { id: secret.id.clone() }),
                None => {}
            },
            MountKind::Ssh(ssh) => match self.policy.ssh.serve(ssh, &self.scratch).map_err(WorkError::Agent)? {
                Some(socket) => {
                    add(Source::Bind { path: socket.path(), selector: "/".into(), recursive: false }, false);
                    process.env.push(format!("SSH_AUTH_SOCK={}", mount.dest));
                    held.agents.push(socket);
                }
                None if ssh.required => return Err(WorkError::NoSsh { id: ssh.id.clone() }),
                None => {}
            },
        }
        Ok(None)
    }

    /// What a mount shows is read from layers. Of the context only what is shown becomes one.
    async fn bind_source(
        &self,
        context: &RunContext,
        bind: &BindSource,
        inputs: &[Output],
    ) -> Result<Rootfs, WorkError> {
        match bind.input.and_then(|input| inputs.get(input as usize)) {
            Some(Output::Local(local)) => self.import_part(context, local, &bind.selector).await,
            _ => self.input_rootfs(context, bind.input, inputs).await,
        }
    }

    /// Directories of the step's cache mounts: each once, however often it is mounted, and in the order of their ids, so that no
    /// two steps wait for what the other has locked.
    async fn take_caches(
        &self,
        context: &RunContext,
        op: &ExecOp,
        inputs: &[Output],
        held: &mut Held,
    ) -> Result<(), WorkError> {
        let mut wanted = BTreeMap::new();
        for mount in &op.mounts {
            let MountKind::Cache(cache) = &mount.kind else { continue };
            if cache.from.input.is_none() && !matches!(cache.from.selector.as_str(), "" | "/" | ".") {
                return Err(WorkError::Unsupported("--mount=type=cache with source= but without from="));
            }
            let initial = self.bind_source(context, &cache.from, inputs).await?;
            wanted.entry(cache_id(cache, &initial)).or_insert((cache, initial));
        }
        for (id, (cache, initial)) in wanted {
            let directory = self.cache_mount(context, id.clone(), cache, initial).await?;
            held.caches.insert(id, directory);
        }
        Ok(())
    }

    async fn cache_mount(
        &self,
        context: &RunContext,
        id: String,
        cache: &graph::CacheMount,
        initial: Rootfs,
    ) -> Result<snapshotter::CacheMountDir, WorkError> {
        let sharing = match cache.sharing {
            _ if self.launcher.is_confined() => snapshotter::CacheMountSharing::Locked,
            CacheSharing::Shared => snapshotter::CacheMountSharing::Shared,
            CacheSharing::Private => snapshotter::CacheMountSharing::Private,
            CacheSharing::Locked => snapshotter::CacheMountSharing::Locked,
        };
        let tree = match cache.from.input {
            Some(_) => Some(self.layers.readable(context, initial.chain.as_ref()).await?),
            None => None,
        };
        let (store, options) = (Arc::clone(&self.store), self.layers.options()?);
        self.mounts.lock().unwrap_or_else(PoisonError::into_inner).insert(id.clone(), sharing);
        // Held until it is there: steps that begin with the same one fetch it once.
        let mut restoring = None;
        if self.imports.may_have_mounts() && !store.has_cache_mount(&id) {
            let (store, token, name) = (Arc::clone(&store), context.cancelled.clone(), format!("restoring {id}"));
            restoring = Some(blocking(move || Ok(store.lock(&name, &|| token.is_cancelled())?)).await?);
        }
        let restored = match restoring.is_none() || store.has_cache_mount(&id) {
            true => None,
            false => self.imports.mount(context, &id, &self.scratch, |blob| self.layers.note_lost(blob)).await,
        };
        // Where there is one id, all files are that id's.
        let owner = if options.ownership == Ownership::Skip { (0, 0) } else { (cache.uid, cache.gid) };
        let new = NewDirectory { mode: cache.mode, owner };
        let context = context.clone();
        blocking(move || {
            let _restoring = restoring;
            let stop = || context.cancelled.is_cancelled();
            store.cache_mount(&id, sharing, new, &stop, |directory| {
                if let Some(restored) = restored
                    && restore(restored, directory, &options, &id, &context)?
                {
                    return Ok(());
                }
                match &tree {
                    Some(tree) => Ok(tree.populate(directory, &options, Sharing::Private, &stop).map(drop)?),
                    None => Ok(()),
                }
            })
        })
        .await
    }
}

/// Fills a cache mount with what a shared cache has of it. What cannot be used is a warning, and the directory empty.
fn restore(
    restored: Restored,
    directory: &Path,
    options: &ApplyOptions,
    id: &str,
    context: &RunContext,
) -> Result<bool, WorkError> {
    let stop = || context.cancelled.is_cancelled();
    let why = restored.unpack(directory, options, &stop)?;
    if stop() {
        return Err(WorkError::Cancelled);
    }
    if let Some(why) = &why {
        context.progress.warn(format!("the cache mount {} of a shared cache is not used: {why}", cache::name_of(id)));
    }
    Ok(why.is_none())
}

/// Making a stub copied its parents up; those in which nothing else changed are no part of the layer. What cannot be removed
/// stays: a directory too many in a layer is no loss.
pub(super) fn forget_parents(changes: &Path, stubs: &[executor::Stub], below: &Tree) {
    for stub in stubs {
        for parent in Path::new(stub.path.trim_start_matches('/')).ancestors().skip(1) {
            let path = changes.join(parent);
            let unchanged = || {
                let metadata = std::fs::symlink_metadata(&path).ok()?;
                let found = below.lookup(parent.as_os_str().as_bytes()).filter(|found| found.entry.is_dir())?;
                let entry = found.entry;
                let attributes = sys::xattr::list(std::fs::File::open(&path).ok()?).ok()?;
                let same =
                    (metadata.mode() & 0o7777, metadata.uid(), metadata.gid()) == (entry.mode, entry.uid, entry.gid);
                let opaque = attributes.iter().any(|name| name.ends_with(b"overlay.opaque"));
                (metadata.is_dir() && same && !opaque).then_some(())
            };
            if parent.as_os_str().is_empty() || unchanged().is_none() || std::fs::remove_dir(&path).is_err() {
                break;
            }
        }
    }
}

/// What a step uses until it has ended.
#[derive(Default)]
pub(super) struct Held {
    /// Binds; what was written to them nobody will see.
    roots: Vec<StepRoot>,
    /// By id.
    caches: BTreeMap<String, snapshotter::CacheMountDir>,
    agents: Vec<crate::ssh::Socket>,
    /// Values that the step was given and that its log must not show.
    secrets: Vec<Vec<u8>>,
    /// By mount, the layers that it shows something of.
    sources: Vec<Option<Rootfs>>,
    /// Why its programs may not be executable here.
    pub(super) unsupported: Option<executor::Error>,
}

impl Held {
    /// The step has ended: all is let go but the knowledge of what it was.
    fn end(self) -> Vec<Option<Rootfs>> {
        self.sources
    }

    fn mask(&self) -> Option<Arc<Mask>> {
        Mask::new(&self.secrets).map(Arc::new)
    }
}

/// Caches that begin as something else are others, whatever their name: what is wanted of one may not be in the other, or not be
/// open to the step's user.
fn cache_id(cache: &graph::CacheMount, initial: &Rootfs) -> String {
    let mut id = cache.id.clone();
    if let (Some(_), Some(chain)) = (cache.from.input, &initial.chain) {
        id = format!("{id}:{chain}");
    }
    if (cache.mode, cache.uid, cache.gid) != (0o755, 0, 0) {
        id = format!("{id}:{:o}:{}:{}", cache.mode, cache.uid, cache.gid);
    }
    id
}

fn environment(op: &ExecOp) -> Vec<String> {
    let mut env: Vec<String> = proxies(&op.proxy).collect();
    env.extend(op.env.iter().map(|(name, value)| format!("{name}={value}")));
    env
}

/// In both spellings; what the Dockerfile sets wins, since it comes later.
fn proxies(proxy: &ProxyEnv) -> impl Iterator<Item = String> {
    let named = [
        ("HTTP_PROXY", &proxy.http),
        ("HTTPS_PROXY", &proxy.https),
        ("FTP_PROXY", &proxy.ftp),
        ("NO_PROXY", &proxy.no),
        ("ALL_PROXY", &proxy.all),
    ];
    let set = named.into_iter().filter(|(_, value)| !value.is_empty());
    set.flat_map(|(name, value)| [format!("{name}={value}"), format!("{}={value}", name.to_ascii_lowercase())])
        .collect::<Vec<_>>()
        .into_iter()
}
