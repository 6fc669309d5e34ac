//! Control groups: a step is killed, counted and limited as a whole.
//!
//! Every step gets a group of the v2 hierarchy where there is one, entered by clone3 at no cost. Joining a group in any other
//! way makes the kernel wait for a grace period, some 8 ms: the controllers of v1 are joined only for limits that need them.
//!
//! Groups live in `<hierarchy>/rbuild/launcher-<random>/<step>`, or beneath the group we are in where the top is not ours to
//! write. The launcher holds a lock on its directory, so that a later one can tell the groups of a dead launcher, whatever
//! pid namespace it was in, and remove them.

mod discover;
mod v1;
mod v2;

use std::collections::HashMap;
use std::fs::{self, File};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::FlockOperation;
use rustix::io::Errno;
use sys::Named;

use crate::error::{Doing, Error};
use crate::spec::Limits;

/// The hierarchies of this machine, and our place in them.
#[derive(Debug, Default)]
pub(crate) struct Cgroups {
    v2: Option<Home>,
    v1: Vec<v1::Controller>,
    count: u64,
    /// Places beneath groups that steps asked for.
    beneath: HashMap<PathBuf, Cgroups>,
}

/// A directory of ours in one hierarchy.
#[derive(Debug)]
pub(crate) struct Home {
    path: PathBuf,
    /// Above which nothing of the hierarchy is visible.
    top: PathBuf,
    /// Groups above it that were made for it, outermost first.
    made: Vec<PathBuf>,
    /// Holds the lock that says that we live.
    _lock: File,
}

/// The groups of one step. They exist until [`Group::remove`] succeeds.
#[derive(Debug, Default)]
pub(crate) struct Group {
    v2: Option<(PathBuf, File)>,
    v1: Vec<(v1::Kind, PathBuf)>,
    v2_is_whole: bool,
    limited: bool,
    /// Attempts to remove it.
    attempts: u32,
}

/// What a step's groups counted.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Counted {
    pub(crate) user: Option<Duration>,
    pub(crate) system: Option<Duration>,
    pub(crate) peak_memory: Option<u64>,
    pub(crate) oom_killed: bool,
}

impl Cgroups {
    /// Finds what there is and can be written; nothing at all is fine as long as no limits are asked for.
    pub(crate) fn discover() -> Self {
        Self::of(discover::mounts())
    }

    fn of(mounts: discover::Mounts) -> Self {
        let v2 = mounts.v2.and_then(|hierarchy| {
            let home = Home::make(&hierarchy)?;
            // Without this memory is not counted. It fails where processes live in the group above, which is fine.
            v2::delegate(&home.top, &home.path, &["memory", "pids", "cpu"]).ok();
            Some(home)
        });
        let v1 = mounts.v1.into_iter().map(|(kind, hierarchy)| v1::Controller::new(kind, hierarchy)).collect();
        Self { v2, v1, count: 0, beneath: HashMap::new() }
    }

    /// Makes the groups of a step with its limits.
    pub(crate) fn create(&mut self, limits: &Limits) -> Result<Group, Error> {
        let Some(parent) = &limits.parent else { return self.create_here(limits) };
        let make = || Self::of(discover::mounts().beneath(parent));
        let there = self.beneath.entry(parent.clone()).or_insert_with(make);
        if there.v2.is_none() && there.v1.is_empty() {
            let why = "this machine has no control groups that rbuild may use".to_owned();
            return Err(Error::Limit { what: format!("the step by the control group {parent:?}"), why });
        }
        there.create_here(limits)
    }

    fn create_here(&mut self, limits: &Limits) -> Result<Group, Error> {
        self.count += 1;
        let name = format!("step-{}", self.count);
        let mut group = Group { limited: !limits.is_unlimited(), ..Group::default() };
        if let Some(home) = &self.v2 {
            let path = home.path.join(&name);
            group.v2_is_whole = home.top == Path::new("/sys/fs/cgroup");
            // Without limits a step can do without.
            match make_group(&path) {
                Ok(directory) => group.v2 = Some((path, directory)),
                Err(error) if limits.is_unlimited() => drop(error),
                Err(error) => return Err(error).doing("make a control group"),
            }
        }
        if let Err(error) = self.limit(&mut group, &name, limits) {
            group.remove();
            return Err(error);
        }
        Ok(group)
    }

    fn limit(&mut self, group: &mut Group, name: &str, limits: &Limits) -> Result<(), Error> {
        if limits.is_unlimited() {
            return Ok(());
        }
        if limits.memory.is_none() && limits.memory_swap.is_some() {
            let why = "a limit for memory has to be given as well".to_owned();
            return Err(Error::Limit { what: "memory and swap".to_owned(), why });
        }
        for kind in v1::Kind::needed(limits) {
            if let (Some(home), Some((path, _))) = (&self.v2, &group.v2)
                && v2::has_controller(&home.top, &home.path, path, kind)
            {
                v2::limit(path, kind, limits)?;
                continue;
            }
            let Some(controller) = self.v1.iter_mut().find(|controller| controller.kind() == kind) else {
                let why = format!("this machine offers no {} controller that rbuild may use", kind.name());
                return Err(Error::Limit { what: kind.what().to_owned(), why });
            };
            let path = controller.create(name)?;
            group.v1.push((kind, path.clone()));
            v1::limit(&path, kind, limits)?;
        }
        if limits.parent.is_some() {
            // What limits the group above is to limit the step as well.
            for controller in &mut self.v1 {
                let kind = controller.kind();
                if group.v1.iter().all(|(known, _)| *known != kind) {
                    group.v1.push((kind, controller.create(name)?));
                }
            }
        }
        Ok(())
    }

    /// Removes what is left, as far as it can be had within a moment.
    pub(crate) fn close(mut self, mut leaving: Vec<Group>) {
        for _ in 0..50 {
            leaving.retain_mut(|group| !group.remove());
            if leaving.is_empty() {
                break;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        for (_, beneath) in self.beneath.drain() {
            beneath.close(Vec::new());
        }
        let homes = self.v2.iter().chain(self.v1.iter().filter_map(v1::Controller::home));
        for home in homes {
            for path in std::iter::once(&home.path).chain(home.made.iter().rev()) {
                fs::remove_dir(path).ok();
            }
        }
    }
}

impl Home {
    /// Makes our directory in a hierarchy, or finds that we may not.
    fn make(hierarchy: &discover::Hierarchy) -> Option<Self> {
        for base in hierarchy.bases() {
            let mut made: Vec<PathBuf> =
                base.ancestors().take_while(|path| !path.exists()).map(Path::to_owned).collect();
            made.reverse();
            if hierarchy.parent.is_none() {
                // Ours stays for the next.
                made.clear();
            }
            if fs::create_dir_all(&base).is_err() {
                continue;
            }
            sweep(&base);
            // Someone else's sweep may take the directory for abandoned in the moment before it is locked.
            for _ in 0..3 {
                let path = base.join(format!("launcher-{}", random_name()));
                let Ok(lock) = make_group(&path) else { break };
                if rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok() && path.exists() {
                    return Some(Self { path, top: hierarchy.top.clone(), made, _lock: lock });
                }
            }
        }
        None
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Group {
    /// The group that a new process can be cloned into.
    pub(crate) fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.v2.as_ref().map(|(_, directory)| directory.as_fd())
    }

    /// Called by the step's own process: joins the groups that it was not cloned into, if limits are set there.
    pub(crate) fn join(&self, cloned_into: bool) -> sys::Result<()> {
        let old = self.v1.iter().map(|(_, path)| path);
        let new = self.v2.iter().map(|(path, _)| path).filter(|_| !cloned_into && self.limited);
        for path in old.chain(new) {
            write(&path.join("cgroup.procs"), "0")?;
        }
        Ok(())
    }

    /// The controllers joined by way of v1, for the step's own view of them.
    pub(crate) fn v1_controllers(&self) -> impl Iterator<Item = &'static str> {
        self.v1.iter().map(|(kind, _)| kind.name())
    }

    /// Whether v2 is all there is, so that its files are where programs look for them.
    pub(crate) fn v2_is_whole(&self) -> bool {
        self.v2_is_whole
    }

    /// Kills every process of the step, where the kernel can do that at once (5.14).
    pub(crate) fn kill(&self) {
        if let Some((path, _)) = &self.v2 {
            write(&path.join("cgroup.kill"), "1").ok();
        }
    }

    /// What was counted so far.
    pub(crate) fn usage(&self) -> Counted {
        let mut counted = self.v2.as_ref().map(|(path, _)| v2::usage(path)).unwrap_or_default();
        for (kind, path) in &self.v1 {
            v1::usage(path, *kind, &mut counted);
        }
        counted
    }

    /// Removes the groups; false while the kernel still counts a process in one of them.
    pub(crate) fn remove(&mut self) -> bool {
        self.attempts += 1;
        if let Some((path, _)) = &self.v2
            && is_gone(path)
        {
            self.v2 = None;
        }
        self.v1.retain(|(_, path)| !is_gone(path));
        // Something holds it for good: the next launcher's sweep removes it.
        self.attempts > 2000 || (self.v2.is_none() && self.v1.is_empty())
    }
}

/// Removes the groups of launchers that are dead.
fn sweep(base: &Path) {
    let Ok(entries) = fs::read_dir(base) else { return };
    for entry in entries.flatten() {
        if !entry.file_name().to_string_lossy().starts_with("launcher-") {
            continue;
        }
        let path = entry.path();
        let Ok(directory) = File::open(&path) else { continue };
        if rustix::fs::flock(&directory, FlockOperation::NonBlockingLockExclusive).is_err() {
            continue;
        }
        write(&path.join("cgroup.kill"), "1").ok();
        for step in fs::read_dir(&path).into_iter().flatten().flatten() {
            if step.file_type().is_ok_and(|kind| kind.is_dir()) {
                fs::remove_dir(step.path()).ok();
            }
        }
        fs::remove_dir(&path).ok();
    }
}

fn make_group(path: &Path) -> sys::Result<File> {
    rustix::fs::mkdir(path, rustix::fs::Mode::from_raw_mode(0o755)).call(|| format!("mkdir({path:?}, 0755)"))?;
    File::open(path).call(|| format!("open({path:?})"))
}

fn is_gone(path: &Path) -> bool {
    matches!(rustix::fs::rmdir(path), Ok(()) | Err(Errno::NOENT))
}

fn random_name() -> String {
    let mut bytes = [0; 8];
    // Without randomness the pid has to do; a name in use makes the next attempt fail, not the build.
    if rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()).is_err() {
        bytes[..4].copy_from_slice(&std::process::id().to_le_bytes());
    }
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Writes one of a group's files; they want exactly one write.
fn write(path: &Path, text: &str) -> sys::Result<()> {
    fs::write(path, text).call(|| format!("write({path:?}, {text:?})"))
}

/// The value of a key in a file of `key value` lines.
fn keyed(path: &Path, key: &str) -> Option<u64> {
    let text = fs::read_to_string(path).ok()?;
    let value = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '))?;
    value.trim().parse().ok()
}

/// The number that a file consists of.
fn number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_found_by_their_whole_key() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join("memory.events");
        fs::write(&path, "oom 3\noom_kill 1\noom_group_kill 0\n").expect("write");
        assert_eq!(keyed(&path, "oom_kill"), Some(1));
        assert_eq!(keyed(&path, "oom"), Some(3));
        assert_eq!(keyed(&path, "oom_"), None);
    }

    #[test]
    fn groups_of_dead_launchers_are_swept_and_those_of_living_ones_are_not() {
        let base = tempfile::tempdir().expect("temporary directory");
        let (dead, living, other) =
            (base.path().join("launcher-dead"), base.path().join("launcher-living"), base.path().join("other"));
        for path in [&dead.join("step-1"), &living.join("step-1"), &other] {
            fs::create_dir_all(path).expect("mkdir");
        }
        let lock = File::open(&living).expect("open");
        rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).expect("lock");
        sweep(base.path());
        // An ordinary directory keeps the file that a cgroup would have refused to have made.
        fs::remove_file(dead.join("cgroup.kill")).expect("the dead launcher's processes were killed");
        assert!(!dead.join("step-1").exists() && living.join("step-1").exists() && other.exists());
    }
}
