//! Leases: what a living process uses stays.
//!
//! Each open [`crate::Store`] has a file below `leases/`, flocked as long as the process lives, to which it appends the
//! digests (chain ids and blobs) it relies on. That costs one short write per digest and no transaction. A lease whose lock
//! is free belongs to a dead process: it and all that carries its name below `active/` and `ingest/` is removed.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use graph::Digest;
use rustix::fs::{FlockOperation, flock};

use crate::StoreError;
use crate::layout::Layout;

/// This process's lease.
#[derive(Debug)]
pub(crate) struct Lease {
    id: String,
    path: PathBuf,
    log: Mutex<Log>,
}

#[derive(Debug)]
struct Log {
    file: File,
    held: HashSet<[u8; 32]>,
    /// Digests that a full disk did not take; they are tried again with the next one.
    unwritten: Vec<u8>,
}

impl Drop for Lease {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

impl Lease {
    pub(crate) fn create(layout: &Layout) -> Result<Self, StoreError> {
        let directory = layout.join("leases");
        loop {
            let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
            let id = format!("{}-{:x}", std::process::id(), time);
            let path = directory.join(&id);
            let file = match OpenOptions::new().append(true).create_new(true).mode(0o600).open(&path) {
                Ok(file) => file,
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                Err(error) => return Err(StoreError::io("create the lease", path)(error)),
            };
            // Between these two calls another process may take it for a dead one's, and has then removed it.
            if flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok() && path.exists() {
                let log = Log { file, held: HashSet::new(), unwritten: Vec::new() };
                return Ok(Self { id, path, log: Mutex::new(log) });
            }
        }
    }

    /// Begins the names of all that this process is making.
    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    /// Keeps a blob, or a layer and all below it, while this process lives. To be called behind the gate.
    pub(crate) fn hold(&self, digest: &Digest) {
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        if log.held.insert(*digest.as_bytes()) {
            log.unwritten.extend_from_slice(digest.as_bytes());
            let unwritten = std::mem::take(&mut log.unwritten);
            if log.file.write_all(&unwritten).is_err() {
                log.unwritten = unwritten;
            }
        }
    }

    /// Relies on nothing any more. To be called behind no gate, by a process that has done its work.
    pub(crate) fn forget(&self) {
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        log.held.clear();
        log.unwritten.clear();
        // Should it fail, more stays than need be.
        let _ = log.file.set_len(0);
    }

    /// Whether a digest is held already, so that no gate is needed.
    pub(crate) fn holds(&self, digest: &Digest) -> bool {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).held.contains(digest.as_bytes())
    }
}

/// The leases of living processes.
#[derive(Debug, Default)]
pub(crate) struct Living {
    ids: HashSet<String>,
    /// What they hold together.
    pub(crate) held: HashSet<[u8; 32]>,
}

impl Living {
    /// Whether there is any.
    pub(crate) fn is_any(&self) -> bool {
        !self.ids.is_empty()
    }

    /// Whose name begins with the id of a living lease belongs to it.
    pub(crate) fn owns(&self, name: &str) -> bool {
        self.ids.contains(owner(name))
    }
}

/// The lease in a name made by [`crate::Store::unique_name`].
fn owner(name: &str) -> &str {
    name.split_once('.').map_or(name, |(id, _)| id)
}

/// Reads the leases of the living, and removes those of the dead.
pub(crate) fn living(layout: &Layout, contents: bool) -> Result<Living, StoreError> {
    let directory = layout.join("leases");
    let mut living = Living::default();
    for entry in fs::read_dir(&directory).map_err(StoreError::io("read", &directory))?.flatten() {
        let path = entry.path();
        let Some(id) = entry.file_name().to_str().map(str::to_owned) else { continue };
        let Ok(file) = File::open(&path) else { continue };
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok() {
            let _ = fs::remove_file(&path);
            continue;
        }
        if contents {
            read_digests(&path, &mut living.held)?;
        }
        living.ids.insert(id);
    }
    Ok(living)
}

/// What each living process holds.
pub(crate) fn living_by_process(layout: &Layout) -> Result<Vec<(u32, HashSet<[u8; 32]>)>, StoreError> {
    let living = living(layout, false)?;
    let mut processes = Vec::new();
    for id in living.ids {
        let mut held = HashSet::new();
        read_digests(&layout.join("leases").join(&id), &mut held)?;
        // An id begins with that of the process.
        let process = id.split('-').next().and_then(|process| process.parse().ok()).unwrap_or(0);
        processes.push((process, held));
    }
    processes.sort_by_key(|(process, _)| *process);
    Ok(processes)
}

fn read_digests(path: &Path, held: &mut HashSet<[u8; 32]>) -> Result<(), StoreError> {
    match fs::read(path) {
        Ok(bytes) => {
            held.extend(bytes.as_chunks::<32>().0);
            Ok(())
        }
        // Its owner ended meanwhile.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(StoreError::io("read", path)(error)),
    }
}
