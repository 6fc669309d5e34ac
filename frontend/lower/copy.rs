//! COPY and ADD.

use graph::{
    ChmodSpec, ChownSpec, CopyAction, Digest, FileAction, FileOp, HttpSource, InputIndex, MergeOp, Meta, MkfileAction,
    NodeId, Op, ParentsSpec, SourceOp,
};

use crate::expand::Expander;
use crate::image_state::Layer;
use crate::instruction::{AddInstruction, CopyInstruction, CopySource, InlineFile, Word};
use crate::lint;
use crate::stage::{Origin, Step};
use crate::{Diagnostic, Span};

use super::stage_state::StageState;
use super::tree::plain_copy;
use super::{Lowering, comments, git, owner, path};

/// What COPY and ADD ask for, in one form.
pub(super) struct Request<'a> {
    keyword: &'static str,
    sources: &'a [CopySource],
    dest: &'a Word,
    from: Option<&'a Word>,
    chown: Option<&'a Word>,
    chmod: Option<&'a Word>,
    checksum: Option<&'a Word>,
    link: bool,
    parents: bool,
    excludes: &'a [Word],
    keep_git_dir: Option<bool>,
    /// Whether local archives are unpacked, and whether downloaded ones are.
    unpack: (bool, bool),
}

impl<'a> Request<'a> {
    pub(super) fn of_copy(copy: &'a CopyInstruction) -> Self {
        Self {
            keyword: "COPY",
            sources: &copy.sources,
            dest: &copy.dest,
            from: copy.from.as_ref(),
            chown: copy.chown.as_ref(),
            chmod: copy.chmod.as_ref(),
            checksum: None,
            link: copy.link,
            parents: copy.parents,
            excludes: &copy.excludes,
            keep_git_dir: None,
            unpack: (false, false),
        }
    }

    pub(super) fn of_add(add: &'a AddInstruction) -> Self {
        Self {
            keyword: "ADD",
            sources: &add.sources,
            dest: &add.dest,
            from: None,
            chown: add.chown.as_ref(),
            chmod: add.chmod.as_ref(),
            checksum: add.checksum.as_ref(),
            link: add.link,
            parents: false,
            excludes: &add.excludes,
            keep_git_dir: add.keep_git_dir,
            unpack: (add.unpack.unwrap_or(true), add.unpack.unwrap_or(false)),
        }
    }

    fn is_add(&self) -> bool {
        self.keyword == "ADD"
    }
}

/// The words of a request after expansion.
struct Words {
    dest: String,
    /// The destination as history shows it.
    dest_written: String,
    chown: Option<ChownSpec>,
    chmod: Option<ChmodSpec>,
    checksum: Option<String>,
    excludes: Vec<String>,
}

/// The op under construction: actions, and the nodes they read.
#[derive(Default)]
struct Builder {
    inputs: Vec<NodeId>,
    actions: Vec<FileAction>,
}

impl Builder {
    fn input(&mut self, node: NodeId) -> InputIndex {
        let position = self.inputs.iter().position(|input| *input == node).unwrap_or_else(|| {
            self.inputs.push(node);
            self.inputs.len() - 1
        });
        InputIndex::try_from(position).unwrap_or(InputIndex::MAX)
    }

    fn copy(&mut self, from: NodeId, words: &Words, action: CopyAction) {
        let action = CopyAction {
            from: self.input(from),
            chown: words.chown.clone(),
            chmod: words.chmod.clone(),
            exclude: words.excludes.clone(),
            ..action
        };
        self.actions.push(FileAction::Copy(Box::new(action)));
    }
}

impl Lowering<'_> {
    pub(super) fn copy(
        &mut self,
        state: &mut StageState,
        step: &Step,
        request: &Request<'_>,
    ) -> Result<(), Diagnostic> {
        let instruction = &step.instruction;
        let (words, mut history) = self.copy_words(state, request)?;
        let link = request.link && words.chmod.is_none();
        let title = self.display(state, instruction.code());
        let name = state.numbered(&title);
        let meta = self.meta(state, name.clone(), instruction);
        if let Some(name) = words.chown.as_ref().and_then(owner::name)
            && (link || state.root.is_none())
        {
            let place = request.chown.map_or(instruction.span, |word| word.span);
            return Err(owner::unknown(name, place, link));
        }

        let mut builder = Builder::default();
        if let (Some(root), false) = (state.root, link) {
            builder.input(root);
        }
        let origin = step.origins.first().unwrap_or(&Origin::Main);
        // Paths come first, whatever the order they were written in.
        for source in request.sources {
            let CopySource::Path(word) = source else { continue };
            let path = self.word(state, word)?;
            history.push_str(&format!(" {path}"));
            self.copy_source(state, step, origin, request, &words, (&path, word.span), &meta, &mut builder)?;
        }
        for source in request.sources {
            let CopySource::Inline(file) = source else { continue };
            history.push_str(&format!(" <<{}", file.name));
            self.copy_inline(state, &words, file, &meta, &mut builder)?;
        }
        history.push_str(&format!(" {}", words.dest_written));

        if link {
            let op = FileOp { base: None, actions: builder.actions };
            let layer = self.graph.add(Op::File(op), builder.inputs, meta.clone());
            state.root = Some(match state.root {
                None => layer,
                Some(root) => {
                    let name = state.name(&format!("LINK {title}"));
                    self.graph.add(Op::Merge(MergeOp { inputs: vec![0, 1] }), vec![root, layer], Meta { name, ..meta })
                }
            });
        } else {
            let op = FileOp { base: state.root.map(|_| 0), actions: builder.actions };
            state.root = Some(self.graph.add(Op::File(op), builder.inputs, meta));
        }
        state.record(history, Layer::Marked);
        Ok(())
    }

    /// Expands everything but the sources, and begins the line of history.
    fn copy_words(&self, state: &StageState, request: &Request<'_>) -> Result<(Words, String), Diagnostic> {
        let dest_written = self.word(state, request.dest)?;
        let chown = self.optional_word(state, request.chown)?.filter(|text| !text.is_empty());
        let chmod = self.optional_word(state, request.chmod)?.filter(|text| !text.is_empty());
        let checksum = self.optional_word(state, request.checksum)?.filter(|text| !text.is_empty());
        let mut history = request.keyword.to_owned();
        if request.parents {
            history.push_str(" --parents");
        }
        for (flag, value) in [("chown", &chown), ("chmod", &chmod)] {
            if let Some(value) = value {
                history.push_str(&format!(" --{flag}={value}"));
            }
        }
        let place = |word: Option<&Word>| word.map_or(request.dest.span, |word| word.span);
        let paths = request.sources.iter().filter(|source| matches!(source, CopySource::Path(_))).count();
        if checksum.is_some() && paths != 1 {
            let message = "checksum can't be specified for multiple sources";
            return Err(Diagnostic::new(place(request.checksum), message).with_hint("use one ADD for each source"));
        }
        let chmod = chmod.map(|text| owner::chmod(&text)).transpose();
        let words = Words {
            dest: path::destination(&state.cwd(), &dest_written),
            dest_written,
            chown: chown.map(|text| owner::chown(&text)),
            chmod: chmod.map_err(|message| Diagnostic::new(place(request.chmod), message))?,
            checksum,
            excludes: request.excludes.iter().map(|word| word.text.to_string()).collect(),
        };
        Ok((words, history))
    }

    /// One path, pattern or URL.
    #[allow(clippy::too_many_arguments)] // All of them are different views of one instruction.
    fn copy_source(
        &mut self,
        state: &StageState,
        step: &Step,
        origin: &Origin,
        request: &Request<'_>,
        words: &Words,
        (source, span): (&str, Span),
        meta: &Meta,
        builder: &mut Builder,
    ) -> Result<(), Diagnostic> {
        let problem = |message: String| Diagnostic::new(span, message);
        let add_instead = |what: &str| problem(format!("source can't be {what} for COPY")).with_hint("use ADD");
        if let Some(url) = git::parse(source).map_err(|reason| problem(format!("{reason}: {source}")))? {
            if !request.is_add() {
                return Err(add_instead("a git ref"));
            }
            let checksum = words.checksum.as_deref();
            let flags = git::GitFlags { keep_git_dir: request.keep_git_dir, checksum, flag_wins: false };
            let git = url.into_source(flags).map_err(problem)?;
            let node = self.remote(SourceOp::Git(git), meta);
            builder.copy(node, words, CopyAction { dir_contents_only: true, ..plain_copy("/", &words.dest) });
            return Ok(());
        }
        if source.starts_with("http://") || source.starts_with("https://") {
            if !request.is_add() {
                return Err(add_instead("a URL"));
            }
            let checksum = words.checksum.as_deref().map(|text| {
                text.parse::<Digest>()
                    .map_err(|error| problem(error.to_string()).with_hint("checksums of URLs are sha256"))
            });
            let filename = url_file_name(source);
            let http = HttpSource {
                url: source.to_owned(),
                checksum: checksum.transpose()?,
                filename: Some(filename.clone()),
            };
            let node = self.remote(SourceOp::Http(http), meta);
            let copy = plain_copy(&format!("/{filename}"), &words.dest);
            builder.copy(node, words, CopyAction { attempt_unpack: request.unpack.1, ..copy });
            return Ok(());
        }
        if words.checksum.is_some() {
            let place = request.checksum.map_or(span, |word| word.span);
            return Err(Diagnostic::new(place, "checksum requires HTTP(S) or Git sources")
                .with_hint(format!("{source} is a path of the build context")));
        }
        if let (Origin::Main, Some(patterns)) = (origin, self.plan.options.ignored.clone()) {
            lint::copy_ignored_file::check(
                &mut self.linter,
                comments(step),
                state.place,
                &patterns,
                request.keyword,
                source,
            );
        }
        let tree = self.copy_tree(state, step, origin, request)?;
        let from = match tree {
            Some(node) => node,
            None => self.empty_tree(),
        };
        let (src, parents) = if request.parents {
            let (base, rest) = source.split_once("/./").unwrap_or(("/", source));
            let base = path::clean(base);
            // What is below the pivot stays below it.
            (path::clean(&format!("{base}{}", path::clean(rest))), Some(ParentsSpec { base }))
        } else {
            (path::clean(source), None)
        };
        self.use_path(origin, &src);
        let copy = CopyAction {
            follow_symlink: true,
            dir_contents_only: true,
            allow_wildcard: true,
            // Without a wildcard a source that is not there is an error all the same.
            allow_empty_wildcard: true,
            attempt_unpack: request.unpack.0,
            parents,
            ..plain_copy(&src, &words.dest)
        };
        builder.copy(from, words, copy);
        Ok(())
    }

    /// A download. Whether it is still what it was is asked each time, so `--no-cache` does not concern it.
    fn remote(&mut self, source: SourceOp, meta: &Meta) -> NodeId {
        self.graph.add(Op::Source(source), Vec::new(), Meta { ignore_cache: false, ..meta.clone() })
    }

    /// The tree that paths are looked up in.
    fn copy_tree(
        &mut self,
        state: &StageState,
        step: &Step,
        origin: &Origin,
        request: &Request<'_>,
    ) -> Result<Option<NodeId>, Diagnostic> {
        let place = request.from.map_or(step.instruction.span, |from| from.span);
        if let Origin::Stage(number) = origin
            && !self.plan.stages.list[*number].replaced
            && !self.roots.contains_key(number)
        {
            let message = format!(
                "cannot copy from stage {:?}, it needs to be defined before current stage {:?}",
                request.from.map_or("", |from| from.text.as_str()),
                state.label
            );
            let there = self.plan.stages.list[*number].span;
            return Err(Diagnostic::new(place, message).with_related(there, "it is defined here"));
        }
        let platform = self.plan.options.target_platform.clone();
        let span = Some(self.plan.source.lines(step.instruction.span));
        let meta = |text: &str| Meta { name: text.to_owned(), span, ..Meta::default() };
        self.tree(origin, &platform, meta).map_err(|problem| Diagnostic { span: place, ..problem })
    }

    /// A here-document becomes a file of its own tree first: whether the destination is a directory is only known when
    /// the copy is made.
    fn copy_inline(
        &mut self,
        state: &StageState,
        words: &Words,
        file: &InlineFile,
        meta: &Meta,
        builder: &mut Builder,
    ) -> Result<(), Diagnostic> {
        let data = if file.expand {
            let expanded = self.expand(state, Expander::for_heredoc(), &file.data);
            expanded.map_err(|error| Diagnostic::new(file.word.span, error.to_string()))?
        } else {
            file.data.clone()
        };
        let src = path::clean(&file.name);
        let node = self.inline_document(&src, data, 0o644, meta);
        builder.copy(node, words, plain_copy(&src, &words.dest));
        Ok(())
    }

    /// A tree with one file.
    pub(super) fn inline_document(&mut self, path: &str, data: String, mode: u32, meta: &Meta) -> NodeId {
        let file = MkfileAction { path: path.to_owned(), data: data.into_bytes(), mode, chmod: None, chown: None };
        let op = FileOp { base: None, actions: vec![FileAction::Mkfile(file)] };
        let meta =
            Meta { name: "[internal] preparing inline document".to_owned(), ignore_cache: false, ..meta.clone() };
        self.graph.add(Op::File(op), Vec::new(), meta)
    }
}

/// The file's name below the source's root: the last segment of the URL's path.
fn url_file_name(url: &str) -> String {
    let path = url::Url::parse(url).ok().map(|url| url.path().to_owned()).unwrap_or_default();
    let decoded: String = percent_decode(&path);
    match path::base_name(&decoded) {
        Some(name) if !matches!(name, "." | "..") && !name.contains('\0') => name.to_owned(),
        _ => "__unnamed__".to_owned(),
    }
}

fn percent_decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let decoded = (first == b'%')
            .then(|| tail.get(..2))
            .flatten()
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 16).ok());
        match decoded {
            Some(byte) => {
                bytes.push(byte);
                rest = &tail[2..];
            }
            None => {
                bytes.push(first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::url_file_name;

    #[test]
    fn downloads_get_a_plain_name() {
        for (url, name) in [
            ("https://h/a/b.tar.gz?x=y", "b.tar.gz"),
            ("https://h/a%20b", "a b"),
            ("https://h/a/", "a"),
            ("https://h", "__unnamed__"),
            ("https://h/x%2f..", "__unnamed__"),
            ("https://h/%2e%2e", "__unnamed__"),
            ("https://h/a%00b", "__unnamed__"),
        ] {
            assert_eq!(url_file_name(url), name, "{url}");
        }
    }
}
