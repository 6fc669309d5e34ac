//! Removal in the background: what is not needed is renamed into `trash/` at once and removed by a thread. What a process
//! leaves there is removed by the next.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Renames at once, removes later.
#[derive(Debug)]
pub(crate) struct Reaper {
    trash: PathBuf,
    owner: String,
    number: AtomicU64,
    queue: Mutex<Option<mpsc::Sender<PathBuf>>>,
    pending: Arc<Pending>,
}

#[derive(Debug, Default)]
struct Pending {
    count: Mutex<usize>,
    changed: Condvar,
    /// What could not be removed.
    stuck: Mutex<BTreeSet<PathBuf>>,
}

impl Reaper {
    pub(crate) fn new(trash: PathBuf, owner: String) -> Self {
        Self { trash, owner, number: AtomicU64::new(0), queue: Mutex::default(), pending: Arc::default() }
    }

    /// Takes a file or tree out of sight. What is not there is no error.
    pub(crate) fn discard(&self, path: &Path) -> io::Result<()> {
        let number = self.number.fetch_add(1, Ordering::Relaxed);
        let target = self.trash.join(format!("{}.{number}", self.owner));
        match fs::rename(path, &target) {
            Ok(()) => self.remove_later(target),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Goes on with what earlier processes left.
    pub(crate) fn resume(&self) {
        for entry in fs::read_dir(&self.trash).into_iter().flatten().flatten() {
            self.remove_later(entry.path());
        }
    }

    fn remove_later(&self, path: PathBuf) {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        if queue.is_none() {
            let (sender, receiver) = mpsc::channel::<PathBuf>();
            let pending = Arc::clone(&self.pending);
            let work = move || {
                for path in receiver {
                    if remove_tree(&path).is_err() {
                        pending.stuck.lock().unwrap_or_else(PoisonError::into_inner).insert(path);
                    }
                    *pending.count.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
                    pending.changed.notify_all();
                }
            };
            // Without a thread the trash stays for the next process.
            if std::thread::Builder::new().name("reaper".into()).spawn(work).is_err() {
                return;
            }
            *queue = Some(sender);
        }
        if let Some(sender) = &*queue {
            *self.pending.count.lock().unwrap_or_else(PoisonError::into_inner) += 1;
            if sender.send(path).is_err() {
                *self.pending.count.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
            }
        }
    }

    /// What could not be removed, and is there still. Files of other ids, for one.
    pub(crate) fn stuck(&self) -> Vec<PathBuf> {
        let stuck = self.pending.stuck.lock().unwrap_or_else(PoisonError::into_inner);
        stuck.iter().filter(|path| path.symlink_metadata().is_ok()).cloned().collect()
    }

    /// Waits until all is removed, or for as long as given.
    pub(crate) fn settle(&self, patience: Duration) {
        let deadline = Instant::now() + patience;
        let mut count = self.pending.count.lock().unwrap_or_else(PoisonError::into_inner);
        while *count > 0 {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            count = self.pending.changed.wait_timeout(count, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// A path longer than this is shortened by moving what it leads to up to the root of the tree: a hostile step can nest
/// directories deeper than a path can say.
const LONG: usize = 2000;

/// Removes a file or a tree whatever the modes of its directories and however deep, on constant stack and one descriptor.
/// Goes on after an error, and returns the first.
pub(crate) fn remove_tree(root: &Path) -> io::Result<()> {
    match fs::symlink_metadata(root) {
        Ok(metadata) if !metadata.is_dir() => return unless_gone(fs::remove_file(root)),
        Ok(_) => {}
        Err(error) => return unless_gone(Err(error)),
    }
    let mut first = Ok(());
    let mut note = |result: io::Result<()>| {
        if let (Ok(()), Err(error)) = (&first, unless_gone(result)) {
            first = Err(error);
        }
    };
    let mut hoisted = 0_u64;
    let unknown = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
    // Each directory is met twice: to empty it, and to remove it.
    let mut pending = vec![(root.to_owned(), false)];
    while let Some((directory, emptied)) = pending.pop() {
        if emptied {
            note(fs::remove_dir(&directory));
            continue;
        }
        let entries = match open_directory(&directory) {
            Ok(entries) => entries,
            Err(error) => {
                note(Err(error));
                continue;
            }
        };
        pending.push((directory.clone(), true));
        for entry in entries.flatten() {
            let path = entry.path();
            if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                note(remove_file(&path, &directory));
            } else if path.as_os_str().as_bytes().len() > LONG {
                // A directory that its owner may not write cannot be moved. The name is none that the tree can know.
                let _ = fs::set_permissions(&path, fs::Permissions::from_mode(0o700));
                hoisted += 1;
                let short = root.join(format!(".{unknown:x}-{hoisted}"));
                let moved = fs::rename(&path, &short).is_ok();
                pending.push((if moved { short } else { path }, false));
            } else {
                pending.push((path, false));
            }
        }
    }
    first
}

/// Lists a directory, which a step may have closed to its own owner.
fn open_directory(directory: &Path) -> io::Result<fs::ReadDir> {
    match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            fs::set_permissions(directory, fs::Permissions::from_mode(0o700))?;
            fs::read_dir(directory)
        }
        other => other,
    }
}

fn remove_file(path: &Path, directory: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            fs::set_permissions(directory, fs::Permissions::from_mode(0o700))?;
            fs::remove_file(path)
        }
        other => other,
    }
}

fn unless_gone(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closed_directories_and_links_out_of_the_tree() {
        let directory = tempfile::tempdir().unwrap();
        let canary = directory.path().join("canary");
        fs::create_dir(&canary).unwrap();
        fs::write(canary.join("file"), "x").unwrap();
        let root = directory.path().join("tree");
        fs::create_dir_all(root.join("closed/inside")).unwrap();
        std::os::unix::fs::symlink(&canary, root.join("link")).unwrap();
        fs::set_permissions(root.join("closed/inside"), fs::Permissions::from_mode(0o0)).unwrap();
        fs::set_permissions(root.join("closed"), fs::Permissions::from_mode(0o500)).unwrap();
        remove_tree(&root).unwrap();
        assert!(!root.exists());
        assert!(canary.join("file").exists());
        remove_tree(&root).unwrap();
    }

    #[test]
    fn a_tree_deeper_than_any_path() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("tree");
        fs::create_dir(&root).unwrap();
        let name = "d".repeat(200);
        let mut at = rustix::fs::open(&root, rustix::fs::OFlags::DIRECTORY, rustix::fs::Mode::empty()).unwrap();
        for _ in 0..200 {
            rustix::fs::mkdirat(&at, &*name, 0o755.into()).unwrap();
            at = rustix::fs::openat(&at, &*name, rustix::fs::OFlags::DIRECTORY, rustix::fs::Mode::empty()).unwrap();
        }
        remove_tree(&root).unwrap();
        assert!(!root.exists());
    }
}
