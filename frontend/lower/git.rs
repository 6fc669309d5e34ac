//! Git URLs as ADD and build contexts take them: `https://host/repo.git#ref:dir`, `?ref=…&subdir=…`, `git@host:repo`.

use graph::GitSource;

use crate::scope::parse_bool;

/// A Git URL, taken apart.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct GitUrl {
    remote: String,
    reference: Option<String>,
    subdir: Option<String>,
    checksum: Option<String>,
    keep_git_dir: Option<bool>,
    submodules: Option<bool>,
    /// The commit is fetched by its checksum, whatever the reference says.
    by_commit: bool,
}

/// What the flags of ADD say about a Git source, beside its URL.
#[derive(Clone, Copy, Default)]
pub(crate) struct GitFlags<'a> {
    pub(crate) keep_git_dir: Option<bool>,
    pub(crate) checksum: Option<&'a str>,
    /// For contexts, where a switch of the build stands above the URL: no contradiction is possible.
    pub(crate) flag_wins: bool,
}

impl GitUrl {
    /// The source, if URL and flags do not contradict each other.
    pub(crate) fn into_source(self, flags: GitFlags<'_>) -> Result<GitSource, String> {
        if let (Some(flag), Some(url)) = (flags.keep_git_dir, self.keep_git_dir)
            && flag != url
            && !flags.flag_wins
        {
            return Err("--keep-git-dir and the URL's keep-git-dir contradict each other".to_owned());
        }
        if let (Some(flag), Some(url)) = (flags.checksum, &self.checksum)
            && flag != url
        {
            return Err(format!("checksum mismatch: --checksum={flag}, but the URL says {url}"));
        }
        let checksum = self.checksum.or_else(|| flags.checksum.map(str::to_owned));
        if let Some(checksum) = &checksum
            && (checksum.len() < 7 || checksum.len() > 64 || !checksum.bytes().all(|b| b.is_ascii_hexdigit()))
        {
            return Err(format!(
                "invalid checksum {checksum:?} for a Git source: expected the hexadecimal digits of a commit"
            ));
        }
        let reference = if self.by_commit && checksum.is_some() { checksum.clone() } else { self.reference };
        if reference.as_deref().is_some_and(|reference| reference.starts_with('-')) || self.remote.starts_with('-') {
            return Err("a Git URL or reference cannot begin with \"-\"".to_owned());
        }
        Ok(GitSource {
            remote: self.remote,
            reference,
            subdir: self.subdir,
            keep_git_dir: flags.keep_git_dir.or(self.keep_git_dir).unwrap_or(false),
            checksum,
            submodules: self.submodules.unwrap_or(true),
        })
    }

    fn read_query(&mut self, query: &str) -> Result<(), String> {
        let pairs: Vec<(String, String)> =
            url::form_urlencoded::parse(query.as_bytes()).map(|(k, v)| (k.into_owned(), v.into_owned())).collect();
        let (mut tag, mut branch) = (None, None);
        for (position, (key, value)) in pairs.iter().enumerate() {
            if pairs[..position].iter().any(|(earlier, _)| earlier == key) {
                return Err(format!("query {key:?} has several values"));
            }
            let truth = || match value.as_str() {
                "" => Ok(true),
                text => parse_bool(text).ok_or_else(|| format!("invalid {key} value: {text:?}")),
            };
            if value.is_empty() && !matches!(key.as_str(), "submodules" | "keep-git-dir" | "fetch-by-commit") {
                return Err(format!("query {key:?} has no value"));
            }
            match key.as_str() {
                "ref" => self.set_reference(value.clone())?,
                "tag" if value.starts_with("refs/tags/") => tag = Some(value.clone()),
                "tag" => tag = Some(format!("refs/tags/{value}")),
                "branch" if value.starts_with("refs/heads/") => branch = Some(value.clone()),
                "branch" => branch = Some(format!("refs/heads/{value}")),
                "subdir" => {
                    let subdir = clean_subdir(value);
                    if self.subdir.is_some() && self.subdir != subdir {
                        return Err(format!("two subdirectories are named: {:?} and {value:?}", self.subdir.take()));
                    }
                    self.subdir = subdir;
                }
                "checksum" | "commit" => self.checksum = Some(value.clone()),
                "keep-git-dir" => self.keep_git_dir = Some(truth()?),
                "submodules" => self.submodules = Some(truth()?),
                "fetch-by-commit" => self.by_commit = truth()?,
                // Files get the time of the check-out or of the commit; neither is part of a layer's content key.
                "mtime" if matches!(value.as_str(), "checkout" | "commit") => {}
                "mtime" => return Err(format!("invalid mtime value: {value:?} (it is \"checkout\" or \"commit\")")),
                _ => return Err(format!("unexpected query {key:?} in a Git URL")),
            }
        }
        if tag.is_some() && branch.is_some() {
            return Err("a Git URL names a tag or a branch, not both".to_owned());
        }
        if let Some(reference) = tag.or(branch) {
            self.set_reference(reference)?;
        }
        Ok(())
    }

    fn set_reference(&mut self, reference: String) -> Result<(), String> {
        match &self.reference {
            Some(other) if *other != reference => Err(format!("two references are named: {other:?} and {reference:?}")),
            _ => {
                self.reference = Some(reference);
                Ok(())
            }
        }
    }

    fn read_fragment(&mut self, fragment: &str) {
        let (reference, subdir) = fragment.split_once(':').unwrap_or((fragment, ""));
        self.reference = Some(reference.to_owned()).filter(|reference| !reference.is_empty());
        self.subdir = clean_subdir(subdir);
    }
}

fn clean_subdir(subdir: &str) -> Option<String> {
    let clean = super::path::clean(subdir);
    Some(clean.trim_start_matches('/').to_owned()).filter(|subdir| !subdir.is_empty())
}

/// `None` is not a Git URL: a path, or an HTTP URL that does not end in `.git`.
pub(crate) fn parse(text: &str) -> Result<Option<GitUrl>, String> {
    if text.starts_with("./") || text.starts_with("../") {
        return Ok(None);
    }
    let scheme = text.split_once("://").map(|(scheme, _)| scheme.to_ascii_lowercase());
    match scheme.as_deref() {
        Some("http" | "https" | "git" | "ssh") => {}
        Some(scheme) if scheme.bytes().all(|b| b.is_ascii_alphanumeric()) => return Ok(None),
        _ => return parse_scp(text),
    }
    match url::Url::parse(text) {
        Ok(url) if url.scheme().starts_with("http") && !url.path().ends_with(".git") => Ok(None),
        Ok(url) => read_url(url).map(Some),
        Err(_) => Ok(None),
    }
}

/// As [`parse`], for a URL that need not end in `.git`.
pub(crate) fn parse_bare(text: &str) -> Result<Option<GitUrl>, String> {
    url::Url::parse(text).ok().map(read_url).transpose()
}

fn read_url(mut url: url::Url) -> Result<GitUrl, String> {
    let (query, fragment) = (url.query().map(str::to_owned), url.fragment().map(str::to_owned));
    url.set_query(None);
    url.set_fragment(None);
    let mut git = GitUrl { remote: url.into(), ..GitUrl::default() };
    if let Some(fragment) = fragment.filter(|fragment| !fragment.is_empty()) {
        git.read_fragment(&fragment);
    }
    git.read_query(query.as_deref().unwrap_or_default())?;
    Ok(git)
}

/// `user@host:path`, as scp(1) writes it.
fn parse_scp(text: &str) -> Result<Option<GitUrl>, String> {
    let word = |text: &str, more: &[u8]| {
        !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || more.contains(&b))
    };
    let (rest, fragment) = text.split_once('#').unwrap_or((text, ""));
    let (remote, query) = rest.split_once('?').unwrap_or((rest, ""));
    let Some((user, host)) = remote.split_once('@') else { return Ok(None) };
    let Some((host, _path)) = host.split_once(':') else { return Ok(None) };
    if !word(user, b"_") || !word(host, b".") {
        return Ok(None);
    }
    let mut git = GitUrl { remote: remote.to_owned(), ..GitUrl::default() };
    if !fragment.is_empty() {
        git.read_fragment(fragment);
    }
    git.read_query(query)?;
    Ok(Some(git))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(text: &str) -> Option<GitSource> {
        parse(text).unwrap().map(|url| url.into_source(GitFlags::default()).unwrap())
    }

    #[test]
    fn urls_are_taken_apart() {
        for (text, remote, reference, subdir) in [
            ("https://h/a.git", "https://h/a.git", None, None),
            ("https://h/a.git#main:x/../y", "https://h/a.git", Some("main"), Some("y")),
            ("https://h/a.git#:../../y", "https://h/a.git", None, Some("y")),
            ("git@h:a/b.git#v1", "git@h:a/b.git", Some("v1"), None),
            ("git@h:a?branch=x&subdir=d", "git@h:a", Some("refs/heads/x"), Some("d")),
            ("ssh://git@h:22/a#r", "ssh://git@h:22/a", Some("r"), None),
            ("https://h/a.git?tag=v1", "https://h/a.git", Some("refs/tags/v1"), None),
        ] {
            let got = source(text).unwrap_or_else(|| panic!("{text}"));
            assert_eq!(
                (got.remote.as_str(), got.reference.as_deref(), got.subdir.as_deref()),
                (remote, reference, subdir),
                "{text}"
            );
        }
        for text in ["./a.git", "https://h/a.tar", "github.com/a/b", "a/b", "ftp://h/a.git", "user@host"] {
            assert_eq!(parse(text), Ok(None), "{text}");
        }
    }

    #[test]
    fn contradictions_are_errors() {
        for text in [
            "https://h/a.git?ref=x#y",
            "https://h/a.git?tag=x&branch=y",
            "https://h/a.git?what=1",
            "https://h/a.git?ref",
            "https://h/a.git?submodules=maybe",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
        let git = parse("https://h/a.git#--upload-pack=x").unwrap().unwrap();
        assert!(git.into_source(GitFlags::default()).is_err());
        let git = parse("https://h/a.git?checksum=0123456789").unwrap().unwrap();
        assert!(git.into_source(GitFlags { checksum: Some("9876543210"), ..GitFlags::default() }).is_err());
    }
}
