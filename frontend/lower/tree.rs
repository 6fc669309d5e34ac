//! The nodes behind an origin: images, contexts, other stages.

use std::collections::HashMap;

use graph::{
    CopyAction, FileAction, FileOp, GitSource, HttpSource, ImageConfig, ImageSource, LocalSource, Meta, MkdirAction,
    NodeId, Op, Platform, SourceOp,
};

use crate::images::ResolvedImage;
use crate::options::ContextSource;
use crate::reach::origin_image;
use crate::stage::{ImageName, Origin};
use crate::{Diagnostic, Span};

use super::{Lowered, Lowering, git};

/// The name of the main build context among the local ones.
const MAIN: &str = "context";

impl<'a> Lowering<'a> {
    /// The node for `origin`, `None` for the empty tree. `meta` names the node that it may take, from the text it would
    /// have without a stage around it.
    pub(super) fn tree(
        &mut self,
        origin: &Origin,
        platform: &Platform,
        mut meta: impl FnMut(&str) -> Meta,
    ) -> Result<Option<NodeId>, Diagnostic> {
        match origin {
            Origin::Empty => Ok(None),
            Origin::Stage(number) => match self.roots.get(number) {
                Some(root) => Ok(*root),
                // A context that took a stage's place can be read before the FROM it replaces.
                None if self.plan.stages.list[*number].replaced => {
                    let origin = self.plan.stages.list[*number].origin.clone();
                    self.tree(&origin, platform, meta)
                }
                None => Err(Diagnostic::new(Span::default(), "the stage is not defined yet")),
            },
            Origin::Image(name) => {
                let image = self.image(name, platform)?;
                let shown = match &image.manifest_digest {
                    Some(digest) if !name.full.contains('@') => format!("FROM {}@{digest}", name.full),
                    _ => format!("FROM {}", name.full),
                };
                Ok(self.image_node(&name.full, image, platform, || meta(&shown)))
            }
            Origin::Main => {
                let context = self.plan.options.context.clone();
                self.context(MAIN, &context, platform)
            }
            Origin::Context(key) => match self.plan.options.named_contexts.get(key).cloned() {
                Some(context) => self.context(key, &context, platform),
                None => Ok(None),
            },
        }
    }

    fn image(&self, name: &ImageName, platform: &Platform) -> Result<&'a ResolvedImage, Diagnostic> {
        self.images.get(&name.full, platform).ok_or_else(|| {
            Diagnostic::new(Span::default(), format!("image {} ({platform}) was not resolved", name.written))
        })
    }

    /// An image without layers is the empty tree.
    fn image_node(
        &mut self,
        full: &str,
        image: &ResolvedImage,
        platform: &Platform,
        meta: impl FnOnce() -> Meta,
    ) -> Option<NodeId> {
        if image.config.rootfs.diff_ids.is_empty() {
            return None;
        }
        let source = ImageSource {
            reference: full.to_owned(),
            config: image.config_digest,
            diff_ids: image.config.rootfs.diff_ids.clone(),
            platform: platform.clone(),
        };
        Some(self.graph.add(Op::Source(SourceOp::Image(source)), Vec::new(), meta()))
    }

    fn context(
        &mut self,
        name: &str,
        context: &ContextSource,
        platform: &Platform,
    ) -> Result<Option<NodeId>, Diagnostic> {
        let main = name == MAIN;
        let titled = |main_title: &str, title: &str| Meta {
            name: if main { format!("[internal] {main_title}") } else { format!("[context {name}] {title}") },
            ..Meta::default()
        };
        match context {
            ContextSource::Local => {
                self.locals.entry(name.to_owned()).or_default();
                let source = SourceOp::Local(LocalSource { name: name.to_owned() });
                Ok(Some(self.graph.add(
                    Op::Source(source),
                    Vec::new(),
                    titled("load build context", "load from client"),
                )))
            }
            ContextSource::Image(_) => {
                let origin = if main { Origin::Main } else { Origin::Context(name.to_owned()) };
                let Some(image_name) = origin_image(self.plan, &origin) else { return Ok(None) };
                let image = self.image(&image_name, platform)?;
                let meta = || titled("load build context", &image_name.full);
                Ok(self.image_node(&image_name.full, image, platform, meta))
            }
            ContextSource::Git(url) => {
                let source = self.git_context(url).map_err(|reason| {
                    Diagnostic::new(Span::default(), format!("build context {name}: {reason}: {url}"))
                })?;
                let meta = titled(&format!("load git source {url}"), url);
                Ok(Some(self.graph.add(Op::Source(SourceOp::Git(source)), Vec::new(), meta)))
            }
            ContextSource::Http { url, unpack } => {
                let filename = Some(MAIN.to_owned());
                let source = HttpSource { url: url.clone(), checksum: None, filename };
                let meta = titled("load remote build context", url);
                let file = self.graph.add(Op::Source(SourceOp::Http(source)), Vec::new(), meta);
                if !unpack {
                    return Ok(Some(file));
                }
                let copy = CopyAction { attempt_unpack: true, ..plain_copy("/context", "/") };
                let op = FileOp { base: None, actions: vec![FileAction::Copy(Box::new(copy))] };
                let meta = titled("unpack remote build context", "unpack");
                Ok(Some(self.graph.add(Op::File(op), vec![file], meta)))
            }
            ContextSource::Target(result) => Ok(self.import(name, result)),
        }
    }

    fn git_context(&self, url: &str) -> Result<GitSource, String> {
        let keep = self.plan.options.build_args.get("BUILDKIT_CONTEXT_KEEP_GIT_DIR");
        let keep_git_dir = keep.and_then(|value| crate::scope::parse_bool(value)).filter(|keep| *keep);
        let parsed = match git::parse(url)? {
            Some(parsed) => Some(parsed),
            // The form without a scheme is only taken for a repository here; in ADD it is a path.
            None if url.starts_with("github.com/") => git::parse_bare(&format!("https://{url}"))?,
            None => None,
        };
        let parsed = parsed.ok_or_else(|| "not a Git URL".to_owned())?;
        parsed.into_source(git::GitFlags { keep_git_dir, checksum: None, flag_wins: true })
    }

    /// Takes another build's result into this graph.
    fn import(&mut self, name: &str, result: &Lowered) -> Option<NodeId> {
        if let Some(root) = self.imported.get(name) {
            return *root;
        }
        let mut ids = HashMap::new();
        for id in result.graph.reachable(result.root.as_slice()) {
            let node = result.graph.node(id);
            let inputs = node.inputs.iter().filter_map(|input| ids.get(input).copied()).collect();
            ids.insert(id, self.graph.add(node.op.clone(), inputs, node.meta.clone()));
        }
        for local in &result.local_contexts {
            self.locals.entry(local.name.clone()).or_default().extend(local.paths.iter().cloned());
        }
        let root = result.root.and_then(|root| ids.get(&root).copied());
        self.imported.insert(name.to_owned(), root);
        root
    }

    /// The image config that a base brings; `None` if it is only a tree.
    pub(super) fn base_config(&self, origin: &Origin, platform: &Platform) -> Result<Option<ImageConfig>, Diagnostic> {
        if let Some(name) = origin_image(self.plan, origin) {
            return Ok(Some(self.image(&name, platform)?.config.clone()));
        }
        let Origin::Context(key) = origin else { return Ok(None) };
        Ok(match self.plan.options.named_contexts.get(key) {
            Some(ContextSource::Target(result)) => Some(result.config.clone()),
            _ => None,
        })
    }

    /// Whether nothing is known of a base image but its name.
    pub(super) fn is_unknown(&self, origin: &Origin, platform: &Platform) -> bool {
        origin_image(self.plan, origin).is_some_and(|name| self.images.is_unknown(&name.full, platform))
    }

    /// Notes that `path` of a local directory is read.
    pub(super) fn use_path(&mut self, origin: &Origin, path: &str) {
        let name = match origin {
            Origin::Main => MAIN,
            Origin::Context(key) => key,
            Origin::Stage(number) => match &self.plan.stages.list[*number] {
                stage if stage.replaced => return self.use_path(&stage.origin.clone(), path),
                _ => return,
            },
            Origin::Empty | Origin::Image(_) => return,
        };
        if let Some(paths) = self.locals.get_mut(name) {
            paths.insert(path.to_owned());
        }
    }

    /// An empty tree as a node, for where an input cannot be absent.
    pub(super) fn empty_tree(&mut self) -> NodeId {
        let root = MkdirAction { path: "/".to_owned(), mode: 0o755, make_parents: true, chown: None };
        let op = FileOp { base: None, actions: vec![FileAction::Mkdir(root)] };
        self.graph.add(Op::File(op), Vec::new(), Meta { name: "[internal] empty tree".to_owned(), ..Meta::default() })
    }
}

/// A copy of one path of input 0.
pub(super) fn plain_copy(src: &str, dest: &str) -> CopyAction {
    CopyAction {
        from: 0,
        src: src.to_owned(),
        dest: dest.to_owned(),
        chown: None,
        chmod: None,
        follow_symlink: false,
        dir_contents_only: false,
        allow_wildcard: false,
        allow_empty_wildcard: false,
        attempt_unpack: false,
        create_dest_path: true,
        parents: None,
        exclude: Vec::new(),
        always_replace_existing: false,
    }
}
