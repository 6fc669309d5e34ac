//! RUN --mount: what is mounted where, with BuildKit's defaults.

use graph::{
    BindSource, CacheMount, CacheSharing, InputIndex, Meta, Mount, MountKind, NodeId, SecretEnv, SecretMount, SshMount,
};

use crate::Diagnostic;
use crate::instruction::{Mount as Options, MountFlag, MountType};
use crate::outline::OutlineMount;
use crate::stage::Origin;

use super::stage_state::StageState;
use super::{Lowering, path};

/// The mounts of one RUN, and the inputs they need beside its root.
pub(super) struct Mounts {
    pub(super) inputs: Vec<NodeId>,
    /// Binds, caches and tmpfs first, by destination, so that what lies inside another comes after it; then secrets and
    /// sockets.
    pub(super) mounts: Vec<Mount>,
    secrets: Vec<Mount>,
    sockets: Vec<Mount>,
    pub(super) secret_env: Vec<SecretEnv>,
    /// Where the first agent's socket is.
    pub(super) ssh_socket: Option<String>,
}

impl Mounts {
    pub(super) fn new(state: &StageState) -> Self {
        Self {
            inputs: state.root.into_iter().collect(),
            mounts: Vec::new(),
            secrets: Vec::new(),
            sockets: Vec::new(),
            secret_env: Vec::new(),
            ssh_socket: None,
        }
    }

    /// The position of a node among the inputs.
    pub(super) fn input(&mut self, node: NodeId) -> InputIndex {
        let position = self.inputs.iter().position(|input| *input == node).unwrap_or_else(|| {
            self.inputs.push(node);
            self.inputs.len() - 1
        });
        InputIndex::try_from(position).unwrap_or(InputIndex::MAX)
    }

    pub(super) fn add(&mut self, mount: Mount) {
        self.mounts.push(mount);
    }

    pub(super) fn finish(mut self) -> Self {
        self.mounts.sort_by(|a, b| a.dest.cmp(&b.dest));
        let Self { secrets, sockets, .. } = &mut self;
        let rest: Vec<Mount> = secrets.drain(..).chain(sockets.drain(..)).collect();
        self.mounts.extend(rest);
        self
    }

    /// Gives its id back.
    fn secret(&mut self, mount: &Options) -> String {
        let id = if mount.source.is_empty() { &mount.id } else { &mount.source };
        let id = match id.as_str() {
            "" => path::base_name(&mount.target).unwrap_or_default(),
            id => id,
        };
        if let Some(name) = &mount.env {
            let name = if name.is_empty() { id.to_owned() } else { name.clone() };
            self.secret_env.push(SecretEnv { id: id.to_owned(), name, required: mount.required });
            if mount.target.is_empty() {
                return id.to_owned();
            }
        }
        let dest = match mount.target.as_str() {
            "" => format!("/run/secrets/{}", path::base_name(id).unwrap_or(id)),
            target => path::clean(target),
        };
        let kind = MountKind::Secret(SecretMount {
            id: id.to_owned(),
            mode: mount.mode.unwrap_or(0o400),
            uid: mount.uid.unwrap_or(0),
            gid: mount.gid.unwrap_or(0),
            required: mount.required,
        });
        self.secrets.push(Mount { dest, kind, readonly: mount.read_only });
        id.to_owned()
    }

    fn ssh(&mut self, mount: &Options) -> Result<(), String> {
        if !mount.source.is_empty() {
            return Err("ssh does not support source".to_owned());
        }
        let dest = match mount.target.as_str() {
            "" => format!("/run/buildkit/ssh_agent.{}", self.sockets.len()),
            target => path::clean(target),
        };
        self.ssh_socket.get_or_insert_with(|| dest.clone());
        let kind = MountKind::Ssh(SshMount {
            id: if mount.id.is_empty() { "default".to_owned() } else { mount.id.clone() },
            mode: mount.mode.unwrap_or(0o600),
            uid: mount.uid.unwrap_or(0),
            gid: mount.gid.unwrap_or(0),
            required: mount.required,
        });
        self.sockets.push(Mount { dest, kind, readonly: mount.read_only });
        Ok(())
    }
}

impl Lowering<'_> {
    /// Adds one mount; `origin` is what its `from` names, the build context if it has none.
    pub(super) fn mount(
        &mut self,
        state: &StageState,
        mount: &Options,
        flag: &MountFlag,
        origin: &Origin,
        mounts: &mut Mounts,
    ) -> Result<(), Diagnostic> {
        let problem = |message: String| Diagnostic::new(flag.value.span, message);
        match mount.kind {
            MountType::Secret => {
                if path::clean(&mount.target) == "/" && !mount.target.is_empty() {
                    return Err(problem(format!("invalid mount target {:?}", mount.target)));
                }
                let (name, span) = (mounts.secret(mount), state.place);
                let secrets = &mut self.uses.entry(state.number).or_default().secrets;
                secrets.push(OutlineMount { name, required: mount.required, span });
                return Ok(());
            }
            MountType::Ssh => {
                if path::clean(&mount.target) == "/" && !mount.target.is_empty() {
                    return Err(problem(format!("invalid mount target {:?}", mount.target)));
                }
                let name = if mount.id.is_empty() { "default".to_owned() } else { mount.id.clone() };
                let agents = &mut self.uses.entry(state.number).or_default().ssh;
                agents.push(OutlineMount { name, required: mount.required, span: state.place });
                return mounts.ssh(mount).map_err(problem);
            }
            MountType::Bind | MountType::Cache | MountType::Tmpfs => {}
        }
        let dest = path::join(&state.cwd(), &mount.target);
        if dest == "/" {
            return Err(problem(format!("invalid mount target {:?}", mount.target))
                .with_hint("give target=, a path below the root directory"));
        }
        let kind = match mount.kind {
            MountType::Tmpfs => {
                MountKind::Tmpfs { size: u64::try_from(mount.size_limit).ok().filter(|size| *size > 0) }
            }
            MountType::Cache => {
                // Without `from` a cache begins empty, not as a copy of the context.
                let origin = if mount.from.is_some() { origin } else { &Origin::Empty };
                let from = self.mount_source(mount, flag, origin, mounts)?;
                MountKind::Cache(self.cache(mount, from))
            }
            _ => MountKind::Bind(self.mount_source(mount, flag, origin, mounts)?),
        };
        mounts.add(Mount { dest, kind, readonly: mount.read_only });
        Ok(())
    }

    fn cache(&self, mount: &Options, from: BindSource) -> CacheMount {
        let namespace = self.plan.options.build_args.get("BUILDKIT_CACHE_MOUNT_NS").map_or("", String::as_str);
        let id = match mount.id.as_str() {
            "" => clean_relative(&mount.target),
            id => id.to_owned(),
        };
        CacheMount {
            id: format!("{namespace}/{id}"),
            sharing: mount.sharing.unwrap_or(CacheSharing::Shared),
            from,
            mode: mount.mode.unwrap_or(0o755),
            uid: mount.uid.unwrap_or(0),
            gid: mount.gid.unwrap_or(0),
        }
    }

    fn mount_source(
        &mut self,
        mount: &Options,
        flag: &MountFlag,
        origin: &Origin,
        mounts: &mut Mounts,
    ) -> Result<BindSource, Diagnostic> {
        if let Origin::Stage(number) = origin
            && !self.plan.stages.list[*number].replaced
            && !self.roots.contains_key(number)
        {
            let message = format!(
                "cannot mount from stage {:?} to {:?}, stage needs to be defined before current command",
                mount.from.as_deref().unwrap_or_default(),
                mount.target
            );
            let there = self.plan.stages.list[*number].span;
            return Err(Diagnostic::new(flag.value.span, message).with_related(there, "it is defined here"));
        }
        let platform = self.plan.options.target_platform.clone();
        let span = Some(self.plan.source.lines(flag.value.span));
        let meta = |text: &str| Meta { name: text.to_owned(), span, ..Meta::default() };
        let tree = self.tree(origin, &platform, meta);
        let tree = tree.map_err(|problem| Diagnostic { span: flag.value.span, ..problem })?;
        let selector = path::clean(&mount.source);
        self.use_path(origin, &selector);
        Ok(BindSource { input: tree.map(|node| mounts.input(node)), selector })
    }
}

/// Cleans a path without making it absolute: a cache's id is its target as written.
fn clean_relative(target: &str) -> String {
    if target.starts_with('/') {
        return path::clean(target);
    }
    let mut parts: Vec<&str> = Vec::new();
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." if parts.last().is_some_and(|last| *last != "..") => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    if parts.is_empty() { ".".to_owned() } else { parts.join("/") }
}
