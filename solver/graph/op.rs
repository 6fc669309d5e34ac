//! The operations, with the fields of BuildKit's LLB (`solver/pb/ops.proto`).

use serde::{Deserialize, Serialize};

use crate::{ContentDigest, Digest, KeyHasher, Operation, Platform};

/// Position of an input in [`crate::Node::inputs`].
pub type InputIndex = u32;

/// What a vertex does. Serialised, it is the op's whole definition; fields outside the cache key say so.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Op {
    /// Brings something in from outside. No inputs.
    Source(SourceOp),
    /// Runs a process on a root file system.
    Exec(Box<ExecOp>),
    /// Changes files without running anything.
    File(FileOp),
    /// Stacks the layers of all inputs, the first lowest (LLB `MergeOp`).
    Merge(MergeOp),
    /// The layers that lead from one input to another (LLB `DiffOp`).
    Diff(DiffOp),
}

impl Operation for Op {
    type Key = ContentDigest;

    /// Covers everything that can influence the result; see the golden test before changing what is serialised.
    fn key(&self) -> ContentDigest {
        let definition = serde_json::to_vec(&self.without_policy()).expect("an op has string keys only");
        KeyHasher::new("op/1").field(&definition).finish()
    }
}

impl Op {
    /// The op without what must not influence the cache key.
    fn without_policy(&self) -> Self {
        let mut op = self.clone();
        if let Self::Exec(exec) = &mut op {
            exec.proxy = ProxyEnv::default();
        }
        op
    }
}

/// A source, by kind.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum SourceOp {
    /// The root file system of an image.
    Image(ImageSource),
    /// A directory of the caller: the build context or a named context.
    Local(LocalSource),
    /// One file over HTTP(S).
    Http(HttpSource),
    /// A tree of a Git repository.
    Git(GitSource),
}

/// LLB `docker-image://`. The image was resolved before the graph was made.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ImageSource {
    /// The reference as the person wrote it, for messages.
    pub reference: String,
    /// Digest of the image config: names the root file system whatever the manifest's form.
    pub config: Digest,
    /// Diff ids from the lowest layer up.
    pub diff_ids: Vec<Digest>,
    /// The platform that was chosen.
    pub platform: Platform,
}

/// LLB `local://`. What of it is used is said by the operations that read it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct LocalSource {
    /// `context`, or the name given with `--build-context NAME=DIR`.
    pub name: String,
}

/// LLB `https://`, for ADD of a URL. The output is one file at the root of an otherwise empty tree.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct HttpSource {
    /// Absolute URL.
    pub url: String,
    /// The digest the body must have.
    pub checksum: Option<Digest>,
    /// File name in the output; `None`: from `Content-Disposition` or the URL's last segment, confined to a plain name.
    pub filename: Option<String>,
}

/// LLB `git://`. The output is the tree of one commit.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct GitSource {
    /// Remote URL as given to git.
    pub remote: String,
    /// Branch, tag, full ref or commit; `None` is the remote's HEAD.
    pub reference: Option<String>,
    /// Directory within the repository that becomes the root of the output.
    pub subdir: Option<String>,
    /// Keep `.git`.
    pub keep_git_dir: bool,
    /// The commit (or its prefix) that the reference must name.
    pub checksum: Option<String>,
    /// Check out submodules too.
    pub submodules: bool,
}

/// LLB `ExecOp`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ExecOp {
    /// Input that is the root file system; `None` is an empty one.
    pub root: Option<InputIndex>,
    /// argv, never empty.
    pub args: Vec<String>,
    /// Environment in the image's order; later entries win.
    pub env: Vec<(String, String)>,
    /// Working directory, absolute.
    pub cwd: String,
    /// As in `USER`: `name|uid[:group|gid]`; empty is root.
    pub user: String,
    /// Beside the root, in the order written.
    pub mounts: Vec<Mount>,
    /// Secrets as environment variables; their values are outside the key.
    pub secret_env: Vec<SecretEnv>,
    /// Keyed hashes of secrets' values, by id, of those that the caller wants in the key: the only way in which a secret can
    /// influence it. Absent from the definition where there are none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub secret_macs: Vec<(String, ContentDigest)>,
    /// Network of the step.
    pub network: NetworkMode,
    /// `RUN --security`.
    pub security: SecurityMode,
    /// CDI devices asked for with `RUN --device`.
    pub devices: Vec<DeviceRequest>,
    /// Extra `/etc/hosts` lines, name and address.
    pub extra_hosts: Vec<(String, String)>,
    /// Host name of the step, `buildkitsandbox` when `None`.
    pub hostname: Option<String>,
    /// Platform that the process is made for.
    pub platform: Platform,
    /// Proxy settings for the process. Outside the key.
    pub proxy: ProxyEnv,
}

/// LLB `ProxyEnv`; set as upper- and lower-case variables of the process, in no config and in no key.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct ProxyEnv {
    /// `HTTP_PROXY`
    pub http: String,
    /// `HTTPS_PROXY`
    pub https: String,
    /// `FTP_PROXY`
    pub ftp: String,
    /// `NO_PROXY`
    pub no: String,
    /// `ALL_PROXY`
    pub all: String,
}

/// One `RUN --mount`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Mount {
    /// Absolute path in the step.
    pub dest: String,
    /// What is mounted.
    pub kind: MountKind,
    /// Mounted read-only.
    pub readonly: bool,
}

/// What a mount shows.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum MountKind {
    /// A view of an input; writes are discarded after the step.
    Bind(BindSource),
    /// A directory that outlives the build.
    Cache(CacheMount),
    /// An empty tmpfs; `None`: no size limit of its own.
    Tmpfs {
        /// Bytes.
        size: Option<u64>,
    },
    /// A secret as a file.
    Secret(SecretMount),
    /// An ssh agent's socket.
    Ssh(SshMount),
}

/// Where a bind comes from.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct BindSource {
    /// The input; `None` is an empty directory.
    pub input: Option<InputIndex>,
    /// Path inside the input, `/` for all.
    pub selector: String,
}

/// `--mount=type=cache`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct CacheMount {
    /// Names the directory; equal ids share it.
    pub id: String,
    /// How concurrent steps share it.
    pub sharing: CacheSharing,
    /// Initial content.
    pub from: BindSource,
    /// Permission bits of a directory made anew.
    pub mode: u32,
    /// Owner of a directory made anew.
    pub uid: u32,
    /// Group of a directory made anew.
    pub gid: u32,
}

/// How concurrent steps share a cache mount.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum CacheSharing {
    /// At the same time.
    Shared,
    /// Each its own.
    Private,
    /// One after the other.
    Locked,
}

/// `--mount=type=secret`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SecretMount {
    /// Secret id.
    pub id: String,
    /// Permission bits of the file.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Missing secret is an error.
    pub required: bool,
}

/// `--mount=type=secret,env=NAME`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SecretEnv {
    /// Secret id.
    pub id: String,
    /// Variable that holds the value.
    pub name: String,
    /// Missing secret is an error.
    pub required: bool,
}

/// `--mount=type=ssh`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SshMount {
    /// Agent id, `default` unless named.
    pub id: String,
    /// Permission bits of the socket.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Missing agent is an error.
    pub required: bool,
}

/// `RUN --device` (LLB `CDIDevice`).
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DeviceRequest {
    /// CDI name: `vendor.com/class=device`.
    pub name: String,
    /// A missing device is an error.
    pub required: bool,
}

/// Network of a step (LLB `NetMode`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub enum NetworkMode {
    /// The builder's default: a network that reaches out.
    #[default]
    Default,
    /// Loopback only.
    None,
    /// The host's. Needs `--allow network.host`.
    Host,
}

/// `RUN --security` (LLB `SecurityMode`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub enum SecurityMode {
    /// Confined.
    #[default]
    Sandbox,
    /// All capabilities and no filter. Needs `--allow security.insecure`.
    Insecure,
}

/// LLB `FileOp`: actions applied one after the other to one tree, giving one layer.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct FileOp {
    /// Input that is changed; `None` starts from an empty tree.
    pub base: Option<InputIndex>,
    /// In order.
    pub actions: Vec<FileAction>,
}

/// One change.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum FileAction {
    /// COPY and ADD.
    Copy(Box<CopyAction>),
    /// A file with given content: heredoc sources of COPY and ADD.
    Mkfile(MkfileAction),
    /// WORKDIR.
    Mkdir(MkdirAction),
}

/// LLB `FileActionCopy`: one source pattern of a COPY or ADD.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct CopyAction {
    /// Input that is read.
    pub from: InputIndex,
    /// Cleaned path within `from`, beginning with `/`; a pattern when `allow_wildcard`.
    pub src: String,
    /// Cleaned destination, beginning with `/`; a trailing `/` (or `/.`) that was written is kept as a trailing `/`: it
    /// says that the destination is a directory.
    pub dest: String,
    /// Owner of what is copied; `None`: root for local, HTTP and Git sources; as in the source for other inputs.
    pub chown: Option<ChownSpec>,
    /// Mode of what is copied; `None`: kept.
    pub chmod: Option<ChmodSpec>,
    /// A symlink named by `src` itself is followed (its target, within the source's root, is copied).
    pub follow_symlink: bool,
    /// A directory's content is copied, not the directory itself.
    pub dir_contents_only: bool,
    /// `src` may contain wildcards.
    pub allow_wildcard: bool,
    /// A wildcard that matches nothing is no error.
    pub allow_empty_wildcard: bool,
    /// A local archive is unpacked (ADD); what is no archive is copied.
    pub attempt_unpack: bool,
    /// Missing parents of `dest` are made.
    pub create_dest_path: bool,
    /// With `--parents`: number of leading path elements of `src` that are not repeated below `dest` (the pivot `/./`).
    /// `None`: not `--parents`.
    pub parents: Option<ParentsSpec>,
    /// `--exclude` patterns, moby's .dockerignore rules, relative to what is copied.
    pub exclude: Vec<String>,
    /// `--link`: an existing destination of another type is replaced.
    pub always_replace_existing: bool,
}

/// `COPY --parents`: the part of the source path before the pivot is not repeated.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ParentsSpec {
    /// Path before `/./`, cleaned, beginning with `/`; `/` when no pivot was written.
    pub base: String,
}

/// `--chown`: user and group, by name or number.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ChownSpec {
    /// The user.
    pub user: UserSpec,
    /// The group; `None`: the user's primary group when by name as Docker has it (the uid's number otherwise).
    pub group: Option<UserSpec>,
}

/// A user or group.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum UserSpec {
    /// Looked up in the destination's `/etc/passwd` or `/etc/group`.
    Name(String),
    /// As is.
    Id(u32),
}

/// `--chmod`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum ChmodSpec {
    /// Permission bits, with setuid, setgid and sticky.
    Octal(u32),
    /// chmod(1)'s symbolic form, validated by the frontend.
    Symbolic(String),
}

/// LLB `FileActionMkFile`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct MkfileAction {
    /// Cleaned destination, as in [`CopyAction::dest`], with the file's name.
    pub path: String,
    /// Content.
    #[serde(with = "hex_bytes")]
    pub data: Vec<u8>,
    /// Permission bits.
    pub mode: u32,
    /// Symbolic or octal `--chmod` on top of `mode`.
    pub chmod: Option<ChmodSpec>,
    /// Owner, root when `None`.
    pub chown: Option<ChownSpec>,
}

/// LLB `FileActionMkDir`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct MkdirAction {
    /// Cleaned absolute path.
    pub path: String,
    /// Permission bits.
    pub mode: u32,
    /// Make parents, and do not mind if the directory exists.
    pub make_parents: bool,
    /// Owner, root when `None`.
    pub chown: Option<ChownSpec>,
}

/// LLB `MergeOp`: `None` is the empty tree, which adds nothing.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct MergeOp {
    /// From the lowest up.
    pub inputs: Vec<InputIndex>,
}

/// LLB `DiffOp`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DiffOp {
    /// `None` is the empty tree.
    pub lower: Option<InputIndex>,
    /// `None` is the empty tree.
    pub upper: Option<InputIndex>,
}

mod hex_bytes {
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&hex::encode(bytes))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        hex::decode(String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}
