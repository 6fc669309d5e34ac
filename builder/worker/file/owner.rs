//! `--chown`: names are looked up in the destination's own files.

use std::io::Read;

use graph::{ChownSpec, UserSpec};

use super::{FileError, ReadableTree, select};

/// Most that is read of `/etc/passwd` or `/etc/group` (GHSA-72x6-4j93-7w86).
const MAX_SIZE: u64 = 10 << 20;

const PASSWD: &str = "/etc/passwd";
const GROUP: &str = "/etc/group";

/// Numbers of user and group; `None` where nothing was asked. As with BuildKit a number without a group is its own group,
/// and a name that is not found is root's.
pub(super) fn resolve(base: &ReadableTree, spec: Option<&ChownSpec>) -> Result<Option<(u32, u32)>, FileError> {
    let Some(spec) = spec else { return Ok(None) };
    let (uid, mut gid) = match &spec.user {
        UserSpec::Id(id) => (*id, *id),
        UserSpec::Name(name) => {
            let fields = find(base, PASSWD, name)?.unwrap_or_default();
            (number(&fields, 2), number(&fields, 3))
        }
    };
    match &spec.group {
        None => {}
        Some(UserSpec::Id(id)) => gid = *id,
        Some(UserSpec::Name(name)) => {
            if let Some(fields) = find(base, GROUP, name)? {
                gid = number(&fields, 2);
            }
        }
    }
    Ok(Some((uid, gid)))
}

fn number(fields: &[String], position: usize) -> u32 {
    fields.get(position).and_then(|field| field.parse().ok()).unwrap_or(0)
}

/// The fields of the line that begins with `name`.
fn find(base: &ReadableTree, file: &'static str, name: &str) -> Result<Option<Vec<String>>, FileError> {
    let error = |why: String| FileError::Owner { name: name.to_owned(), file, why };
    let path = select::resolve(&base.tree, file.as_bytes(), true)?;
    let Some(found) = base.tree.lookup(&path) else { return Ok(None) };
    let found = base.tree.file_of(found).ok_or_else(|| error("it is no regular file".into()))?;
    let reader = base.open(found.layer, &found.entry.path).map_err(|why| error(why.to_string()))?;
    let mut text = Vec::new();
    reader.take(MAX_SIZE + 1).read_to_end(&mut text).map_err(|why| error(why.to_string()))?;
    if text.len() as u64 > MAX_SIZE {
        return Err(error("it is larger than 10 MiB".into()));
    }
    let text = String::from_utf8_lossy(&text);
    let lines = text.lines().map(|line| line.trim().split(':').map(str::to_owned).collect::<Vec<_>>());
    Ok(lines.into_iter().find(|fields| fields.first().is_some_and(|first| first == name)))
}
