//! What `rbuild run` mounts: directories of the machine that `-v` names, and volumes that the image declares.

use std::path::Path;

use executor::{Mount, Source};
use snapshotter::Active;

use crate::report::Report;
use crate::session::Session;
use crate::stored::Stored;
use crate::worker::{StepRoot, WorkError};

/// The volumes of an image, which as with docker exist and can be written even where the root cannot.
pub(super) struct Volumes {
    pub(super) mounts: Vec<Mount>,
    /// Hold what is written to them, until the container ends.
    _held: Vec<Held>,
}

#[expect(dead_code, reason = "each keeps a directory as long as it lives")]
enum Held {
    Root(StepRoot),
    Directory(Active),
}

impl Volumes {
    /// VOLUME of the image. One that the image has as a directory, in a root that can be written, needs nothing.
    pub(super) async fn of_image(session: &Session, image: &Stored, read_only: bool) -> Result<Self, Report> {
        let mut volumes = Self { mounts: Vec::new(), _held: Vec::new() };
        if image.config.config.volumes.is_empty() {
            return Ok(volumes);
        }
        let tree = session.layers.readable(&super::run::quiet(), image.chain().as_ref()).await?.tree;
        for path in image.config.config.volumes.keys().filter(|path| !path.trim_matches('/').is_empty()) {
            let there = tree.resolve(path.as_bytes(), true).map_err(WorkError::from)?;
            let is_directory = there.found.is_some_and(|found| found.entry.is_dir());
            if is_directory && !read_only {
                continue;
            }
            let (source, held) = if is_directory {
                let root = session.layers.root(&super::run::quiet(), image.chain().as_ref(), true).await?;
                (root.source(path.clone()), Held::Root(root))
            } else {
                let fresh = session.store.prepare()?;
                let path = fresh.fs().to_owned();
                (Source::Bind { path, selector: String::new(), recursive: false }, Held::Directory(fresh))
            };
            volumes.mounts.push(Mount { destination: path.clone(), source, readonly: false });
            volumes._held.push(held);
        }
        Ok(volumes)
    }
}

/// All mounts, outer ones first. One that is named twice on the command line is an error; one of the image gives way.
pub(super) fn in_order(of_image: Vec<Mount>, specs: &[String]) -> Result<Vec<Mount>, Report> {
    let clean = |mount: &Mount| {
        let parts = mount.destination.split('/').filter(|part| !part.is_empty() && *part != ".");
        parts.map(str::to_owned).collect::<Vec<_>>()
    };
    let mut mounts: Vec<Mount> = Vec::new();
    for spec in specs {
        let mount = parse(spec).map_err(|why| Report::new(format!("-v {spec:?}: {why}")))?;
        if mounts.iter().any(|other| clean(other) == clean(&mount)) {
            return Err(Report::new(format!("-v {spec:?}: something is mounted there already")));
        }
        mounts.push(mount);
    }
    let free = |volume: &Mount| !mounts.iter().any(|mount| clean(mount) == clean(volume));
    let mut all: Vec<Mount> = of_image.into_iter().filter(free).collect();
    all.extend(mounts);
    all.sort_by_key(|mount| clean(mount).len());
    Ok(all)
}

/// `HOST:CONTAINER[:ro|:rw]`
fn parse(spec: &str) -> Result<Mount, String> {
    let mut parts = spec.split(':');
    let (host, container) = match (parts.next(), parts.next()) {
        (Some(host), Some(container)) => (host, container),
        _ => return Err("say which directory of this machine: /HOST:/CONTAINER".to_owned()),
    };
    let readonly = match (parts.next(), parts.next()) {
        (None | Some("rw"), None) => false,
        (Some("ro"), None) => true,
        (Some(option), None) => return Err(format!("{option:?} is neither ro nor rw")),
        (_, Some(_)) => return Err("there are too many colons".to_owned()),
    };
    if !host.starts_with('/') && !host.starts_with("./") && !host.starts_with("../") && !matches!(host, "." | "..") {
        return Err(format!("{host:?} is no path, and there are no named volumes: begin with / or ./"));
    }
    if !container.starts_with('/') {
        return Err(format!("{container:?} is not an absolute path"));
    }
    if container.split('/').any(|part| part == "..") {
        return Err(format!("{container:?} leads upwards"));
    }
    if container.split('/').all(|part| part.is_empty() || part == ".") {
        return Err("the root itself cannot be mounted over".to_owned());
    }
    // Docker would make a missing one, as root; nothing is made on this machine unasked.
    let path = std::fs::canonicalize(Path::new(host)).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => format!("{host} does not exist: create it first"),
        _ => format!("{host}: {error}"),
    })?;
    let source = Source::Bind { path, selector: String::new(), recursive: true };
    Ok(Mount { destination: container.to_owned(), source, readonly })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volumes_are_what_they_say_or_refused() {
        let mount = parse("/usr:/data:ro").unwrap();
        assert_eq!((mount.destination.as_str(), mount.readonly), ("/data", true));
        assert!(!parse("/usr:/data").unwrap().readonly);
        assert!(!parse("./:/data:rw").unwrap().readonly);
        for spec in [
            "/usr",
            "name:/data",
            "/usr:data",
            "/usr:/",
            "/usr:/.",
            "/usr:/a/../../b",
            "/usr:/a:z",
            "/usr:/a:ro:x",
            "/nowhere/at/all:/a",
            "",
            ":",
            ":/a",
            "-x:/a",
        ] {
            assert!(parse(spec).is_err(), "{spec}");
        }
    }

    #[test]
    fn outer_mounts_come_first_and_the_command_line_wins() {
        let of_image = parse("/usr:/a/b").unwrap();
        let specs = ["/bin:/a/b/".to_owned(), "/usr:/a".to_owned()];
        let mounts = in_order(vec![of_image], &specs).unwrap();
        let destinations: Vec<_> = mounts.iter().map(|mount| mount.destination.as_str()).collect();
        assert_eq!(destinations, ["/a", "/a/b/"]);
        assert!(in_order(Vec::new(), &["/usr:/a".to_owned(), "/bin:/a".to_owned()]).is_err());
    }
}
