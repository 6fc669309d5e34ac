//! Git sources, through the git program: it knows submodules, LFS, credential helpers and every transport.

use std::path::{Component, Path, PathBuf};
use std::process::Stdio;

use graph::GitSource;
use tokio::process::Command;
use tokio_util::sync::CancellationToken;

/// A repository that cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum GitError {
    /// The program is missing.
    #[error("git is needed for {remote}, but it cannot be started")]
    NoGit {
        /// The repository.
        remote: String,
        /// Why.
        source: std::io::Error,
    },
    /// git failed.
    #[error("git {what} failed for {remote}: {message}")]
    Failed {
        /// The subcommand.
        what: String,
        /// The repository.
        remote: String,
        /// What git said.
        message: String,
    },
    /// The reference does not exist.
    #[error("{remote} has no branch, tag or commit {reference:?}")]
    NoReference {
        /// The repository.
        remote: String,
        /// What was asked for.
        reference: String,
    },
    /// The commit is another than the one demanded.
    #[error("{reference:?} of {remote} is commit {found}, not {wanted} as the checksum says")]
    Checksum {
        /// The repository.
        remote: String,
        /// What was asked for.
        reference: String,
        /// What it is.
        found: String,
        /// What it should be.
        wanted: String,
    },
    /// The subdirectory is none, or leads through a link.
    #[error("{subdir:?} is not a directory of {remote}")]
    NoSubdir {
        /// The repository.
        remote: String,
        /// What was asked for.
        subdir: String,
    },
    /// Something that would be taken for an option.
    #[error("{0:?} is not a valid Git remote or reference")]
    Invalid(String),
    /// The working directory.
    #[error("cannot make a temporary directory")]
    Temporary(#[source] std::io::Error),
    /// The build was given up.
    #[error("cancelled")]
    Cancelled,
}

/// A checked-out commit.
pub(crate) struct Checkout {
    /// Keeps the files.
    pub(crate) directory: tempfile::TempDir,
    /// Within `directory`.
    pub(crate) root: PathBuf,
    /// When it was committed, in seconds since 1970.
    pub(crate) time: Option<i64>,
}

/// Finds out which commit a source means.
pub(crate) async fn commit_of(source: &GitSource, cancelled: &CancellationToken) -> Result<String, GitError> {
    let reference = source.reference.as_deref().unwrap_or("HEAD");
    for word in [source.remote.as_str(), reference] {
        if word.starts_with('-') || word.chars().any(char::is_control) {
            return Err(GitError::Invalid(word.to_owned()));
        }
    }
    let commit =
        if is_commit(reference) { reference.to_owned() } else { look_up(source, reference, cancelled).await? };
    match &source.checksum {
        Some(wanted) if !commit.starts_with(wanted.as_str()) => Err(GitError::Checksum {
            remote: shown(&source.remote),
            reference: reference.to_owned(),
            found: commit,
            wanted: wanted.clone(),
        }),
        _ => Ok(commit),
    }
}

fn is_commit(reference: &str) -> bool {
    matches!(reference.len(), 40 | 64) && reference.bytes().all(|byte| byte.is_ascii_hexdigit())
}

async fn look_up(source: &GitSource, reference: &str, cancelled: &CancellationToken) -> Result<String, GitError> {
    let peeled = format!("{reference}^{{}}");
    let listing = git(source, None, &["ls-remote", "--", &source.remote, reference, &peeled], cancelled).await?;
    let refs: Vec<(&str, &str)> = listing.lines().filter_map(|line| line.split_once('\t')).collect();
    let find = |name: String| refs.iter().find(|(_, found)| *found == name).map(|(commit, _)| (*commit).to_owned());
    let candidates = ["", "refs/tags/", "refs/heads/", "refs/"];
    let found = candidates.iter().find_map(|prefix| {
        // An annotated tag stands for the commit it names.
        find(format!("{prefix}{reference}^{{}}")).or_else(|| find(format!("{prefix}{reference}")))
    });
    found.ok_or_else(|| GitError::NoReference { remote: shown(&source.remote), reference: reference.to_owned() })
}

/// Checks a commit out into a temporary directory.
pub(crate) async fn checkout(
    source: &GitSource,
    commit: &str,
    scratch: &Path,
    cancelled: &CancellationToken,
) -> Result<Checkout, GitError> {
    let directory = tempfile::Builder::new().prefix("git-").tempdir_in(scratch).map_err(GitError::Temporary)?;
    let tree = directory.path().join("tree");
    std::fs::create_dir(&tree).map_err(GitError::Temporary)?;
    let run = async |args: &[&str]| git(source, Some(&tree), args, cancelled).await;
    run(&["init", "--quiet", "--initial-branch=main"]).await?;
    run(&["remote", "add", "--", "origin", &source.remote]).await?;
    // Servers may refuse a bare commit; then what the reference names is fetched, and at last everything.
    let reference = source.reference.clone().unwrap_or_else(|| "HEAD".into());
    if run(&["fetch", "--quiet", "--depth=1", "origin", commit]).await.is_err()
        && (is_commit(&reference) || run(&["fetch", "--quiet", "--depth=1", "origin", &reference]).await.is_err())
    {
        run(&["fetch", "--quiet", "--tags", "origin", "+refs/heads/*:refs/remotes/origin/*"]).await?;
    }
    run(&["-c", "advice.detachedHead=false", "checkout", "--quiet", "--force", commit]).await?;
    if source.submodules {
        run(&["submodule", "update", "--quiet", "--init", "--recursive", "--depth=1"]).await?;
    }
    let time = run(&["show", "--no-patch", "--format=%ct", commit]).await.ok();
    let time = time.and_then(|text| text.trim().parse().ok());
    if source.keep_git_dir {
        tidy(source, commit, &tree, cancelled).await?;
    } else {
        std::fs::remove_dir_all(tree.join(".git")).map_err(GitError::Temporary)?;
    }
    let root = subdirectory(source, &tree)?;
    Ok(Checkout { directory, root, time })
}

/// Makes of a checkout's `.git` what another machine would make of it: the name that was asked for points at the commit, and
/// neither who fetched it, nor when, nor with which password is in it.
async fn tidy(source: &GitSource, commit: &str, tree: &Path, cancelled: &CancellationToken) -> Result<(), GitError> {
    let run = async |args: &[&str]| git(source, Some(tree), args, cancelled).await;
    if let Some(name) = source.reference.as_deref().filter(|name| !is_commit(name)) {
        let name = name.trim_start_matches("refs/").trim_start_matches("tags/").trim_start_matches("heads/");
        let (tag, branch) = (format!("refs/tags/{name}"), format!("refs/heads/{name}"));
        // An annotated tag is an object of its own; one that has moved meanwhile is not what was asked for.
        let tagged = run(&["fetch", "--quiet", "--depth=1", "origin", &format!("+{tag}:{tag}")]).await.is_ok();
        let points_here = async || {
            let found = run(&["rev-parse", "--verify", "--quiet", &format!("{tag}^{{commit}}")]).await;
            found.is_ok_and(|found| found.trim() == commit)
        };
        if tagged && !points_here().await {
            run(&["update-ref", "-d", &tag]).await?;
        } else if !tagged {
            run(&["update-ref", &branch, commit]).await?;
        }
    }
    run(&["remote", "set-url", "--", "origin", &shown(&source.remote)]).await?;
    forget(&tree.join(".git")).map_err(GitError::Temporary)?;
    // An index read anew knows contents, and no times or inodes of this machine.
    run(&["read-tree", "HEAD"]).await?;
    run(&["submodule", "--quiet", "foreach", "--recursive", "git read-tree HEAD"]).await.map(drop)
}

/// Removes what only tells how the repository came here, from it and from those of its submodules.
fn forget(git_dir: &Path) -> std::io::Result<()> {
    for left in ["FETCH_HEAD", "ORIG_HEAD", "index"] {
        match std::fs::remove_file(git_dir.join(left)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    let modules = match std::fs::read_dir(git_dir.join("modules")) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    for module in modules {
        let module = module?;
        // A submodule's name may have slashes: then this is a directory on the way to it.
        if module.file_type()?.is_dir() {
            forget_below(&module.path())?;
        }
    }
    Ok(())
}

fn forget_below(directory: &Path) -> std::io::Result<()> {
    if directory.join("HEAD").is_file() {
        return forget(directory);
    }
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            forget_below(&entry.path())?;
        }
    }
    Ok(())
}

/// Every part must be a real directory: a link in the repository leads nowhere (CVE-2026-33748).
fn subdirectory(source: &GitSource, tree: &Path) -> Result<PathBuf, GitError> {
    let Some(subdir) = &source.subdir else { return Ok(tree.to_owned()) };
    let wrong = || GitError::NoSubdir { remote: shown(&source.remote), subdir: subdir.clone() };
    let mut path = tree.to_owned();
    for part in Path::new(subdir).components() {
        match part {
            Component::Normal(name) => path.push(name),
            Component::CurDir | Component::RootDir => continue,
            Component::ParentDir | Component::Prefix(_) => return Err(wrong()),
        }
        if !std::fs::symlink_metadata(&path).is_ok_and(|metadata| metadata.is_dir()) {
            return Err(wrong());
        }
    }
    Ok(path)
}

async fn git(
    source: &GitSource,
    directory: Option<&Path>,
    args: &[&str],
    cancelled: &CancellationToken,
) -> Result<String, GitError> {
    let mut command = Command::new("git");
    // The repository's own configuration and hooks must not run anything here.
    command
        .args(["-c", "protocol.ext.allow=never", "-c", "core.hooksPath=/dev/null", "-c", "core.fsmonitor=false"])
        .args(["-c", "submodule.recurse=false", "-c", "gc.auto=0", "-c", "maintenance.auto=false"])
        .args(["-c", "core.logAllRefUpdates=false"])
        .args(args)
        .env("GIT_TERMINAL_PROMPT", "0")
        // What this machine's git puts into new repositories is none of the result's business.
        .env("GIT_TEMPLATE_DIR", "")
        .env_remove("GIT_DIR")
        .env_remove("GIT_WORK_TREE")
        .env_remove("GIT_INDEX_FILE")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    if let Some(directory) = directory {
        command.current_dir(directory);
    }
    let child =
        command.spawn().map_err(|source_| GitError::NoGit { remote: shown(&source.remote), source: source_ })?;
    let output = tokio::select! {
        () = cancelled.cancelled() => return Err(GitError::Cancelled),
        output = child.wait_with_output() => output,
    };
    let output = output.map_err(|error| GitError::NoGit { remote: shown(&source.remote), source: error })?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let message = String::from_utf8_lossy(&output.stderr).trim().replace(&source.remote, &shown(&source.remote));
    let what = args.iter().find(|arg| !arg.starts_with('-') && !arg.contains('=')).copied().unwrap_or_default();
    Err(GitError::Failed { what: what.to_owned(), remote: shown(&source.remote), message })
}

/// The remote without the password that may stand in it.
fn shown(remote: &str) -> String {
    match url::Url::parse(remote) {
        Ok(mut url) if url.password().is_some() || !url.username().is_empty() => {
            let _ = url.set_password(None);
            if url.scheme().starts_with("http") {
                let _ = url.set_username("");
            }
            url.to_string()
        }
        _ => remote.to_owned(),
    }
}
