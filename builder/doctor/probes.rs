//! Trials: a store, a step, a network, limits.

use std::path::PathBuf;

use executor::rootless::Tier;
use executor::spec::Limits;
use executor::{Error, LandlockLevel, Launcher, Network, Process, Root, Source, Stdio};
use rustix::io::Errno;
use snapshotter::Store;

use super::{Check, Machine, State};
use crate::network::{self, StepNetwork};
use crate::worker::served::{self, Joined};

/// The store, if it can be opened.
pub(super) fn store(root: Option<PathBuf>, tier: &Tier) -> (Check, Option<Store>) {
    let root = root.or_else(|| {
        snapshotter::default_root(matches!(tier, Tier::Root | Tier::Confined { .. }), |name| std::env::var_os(name))
    });
    let Some(root) = root else {
        let fix = Some("set HOME, or name a directory with --root".to_owned());
        return (Check::missing("store", "neither XDG_DATA_HOME nor HOME is set", fix), None);
    };
    let opened = Store::open(&root).inspect(|store| store.unpack_as(crate::session::apply_options(tier)));
    match opened {
        Ok(store) => (Check::good("store", root.display().to_string()), Some(store)),
        Err(error) => {
            let fix = Some("name another directory with --root".to_owned());
            (Check::missing("store", chain(&error), fix), None)
        }
    }
}

/// How stacks of layers become file systems in the store, and a word for it.
pub(super) async fn snapshots(store: &Store, launcher: &Launcher, tier: &Tier) -> (Check, &'static str) {
    let why = match store.without_overlays(crate::session::apply_options(tier).marks) {
        Ok(None) => return (Check::good("snapshots", "overlayfs works there"), "overlay"),
        Ok(Some(why)) => why,
        Err(error) => return (Check::missing("snapshots", chain(&error), None), "none"),
    };
    let elsewhere = "put the store on a local disk or a volume: --root DIR";
    let not = match served::examine(store, Some(launcher)).await {
        Ok(Joined::By(program)) => {
            let found = format!("overlayfs cannot be used there: {why}; {} joins layers instead", program.display());
            return (Check::limited("snapshots", found, elsewhere), "fuse-overlayfs");
        }
        Ok(Joined::Not(not)) => not,
        Err(error) => return (Check::missing("snapshots", chain(&error), None), "none"),
    };
    let (word, way) = match clones(store) {
        true => ("clones", "every step works on a clone, whose files share their data"),
        false => ("copies", "every step works on a copy"),
    };
    let found = format!("overlayfs cannot be used there: {why}; nor fuse-overlayfs: {not}; {way}");
    (Check::limited("snapshots", found, format!("{elsewhere}\n{}", fix_for_fuse(&not))), word)
}

fn fix_for_fuse(not: &str) -> &'static str {
    if not.contains("installed") {
        "or install fuse-overlayfs (Debian: apt-get install fuse-overlayfs)"
    } else if not.contains("/dev/fuse") {
        "or let rbuild open /dev/fuse (docker run --device /dev/fuse; as root, chmod 666 /dev/fuse)"
    } else {
        "or a file system that clones files: xfs, btrfs"
    }
}

/// Whether files of the store can be cloned.
fn clones(store: &Store) -> bool {
    let Ok(active) = store.prepare() else { return false };
    let make = |name: &str| std::fs::File::create_new(active.fs().join(name));
    let (Ok(mut from), Ok(to)) = (make("from"), make("to")) else { return false };
    std::io::Write::write_all(&mut from, &[1; 4096]).is_ok() && rustix::fs::ioctl_ficlone(&to, &from).is_ok()
}

/// Programs of which other platforms run here, each tried.
pub(super) async fn platforms(launcher: &Launcher) -> Check {
    let own = graph::Platform::host().architecture;
    let (mut kernel, mut interpreted, mut missing) = (Vec::new(), Vec::new(), Vec::new());
    let mut reason = None;
    for architecture in executor::Foreign::architectures().filter(|architecture| *architecture != own) {
        let Some(foreign) = crate::emulation::foreign(architecture) else { continue };
        match launcher.emulation(&foreign).await {
            Ok(executor::Emulation::Kernel) => kernel.push(architecture),
            Ok(executor::Emulation::Own { .. }) => interpreted.push(architecture),
            Err(error) => {
                missing.push(architecture);
                reason.get_or_insert(error);
            }
        }
    }
    let part = |names: &[&str], how: &str| (!names.is_empty()).then(|| format!("{} {how}", names.join(", ")));
    let parts = [
        Some(format!("{own} is this machine's")),
        part(&kernel, "by the kernel or what is registered for the machine"),
        part(&interpreted, "by QEMU, registered for steps alone"),
        part(&missing, "not at all"),
    ];
    let found = parts.into_iter().flatten().collect::<Vec<_>>().join("; ");
    match reason {
        None => Check::good("platforms", found),
        Some(error) => {
            let why = match &error {
                Error::Emulation { why, .. } => why.clone(),
                other => other.to_string(),
            };
            Check::limited("platforms", format!("{found}: {why}"), error.hint().unwrap_or_default())
        }
    }
}

/// Runs this program itself as a step, in all its namespaces, under the filter, on an empty root.
pub(super) async fn step(launcher: &Launcher) -> Check {
    let filtered = match launcher.is_confined() {
        false => "namespaces, pivot_root, /proc, capabilities and the system call filter work",
        true => "another root directory, capabilities and the system call filter work",
    };
    match run(launcher, Limits::default()).await {
        Ok(0) => Check::good("steps", filtered),
        Ok(code) => Check::missing("steps", format!("a step ended with {code} instead of 0"), None),
        Err(error) => Check::missing("steps", error, Machine::look().fix_for_launcher()),
    }
}

async fn run(launcher: &Launcher, limits: Limits) -> Result<i32, String> {
    let root = tempfile::tempdir().map_err(|error| format!("cannot make a directory to try in: {error}"))?;
    let program = std::env::current_exe().map_err(|error| format!("cannot find this program: {error}"))?;
    let mut process = Process::new(Root::Bind(root.path().to_owned()), ["/rbuild", "--version"]);
    if launcher.is_confined() {
        // There are no mounts; what is to be run is copied.
        std::fs::copy(&program, root.path().join("rbuild"))
            .map_err(|error| format!("cannot copy this program: {error}"))?;
    }
    let source = Source::Bind { path: program, selector: String::new(), recursive: false };
    if !launcher.is_confined() {
        process.mounts.push(executor::Mount { destination: "/rbuild".to_owned(), source, readonly: true });
    }
    process.limits = limits;
    // Whether there are others is another question.
    process.network = Network::Host;
    let stdio = Stdio::null().map_err(|error| error.to_string())?;
    let explained = |error: Error| match error {
        Error::Limit { why, .. } => why,
        other => other.to_string(),
    };
    let mut running = launcher.run(process, stdio).await.map_err(explained)?;
    Ok(running.wait().await.map_err(explained)?.shell_code())
}

/// The second fence around steps, which in a chroot is the first.
pub(super) fn fence(landlock: Option<LandlockLevel>, tier: &Tier) -> Check {
    let what = match tier {
        Tier::Confined { .. } => "nothing outside of a step's root can be reached by it",
        _ => "nothing outside of a step's root can be changed or listed by it, whatever leads there",
    };
    match landlock {
        Some(LandlockLevel::Whole) => Check::good("fence", format!("Landlock: {what}")),
        Some(LandlockLevel::Part) => {
            let found = format!("an early Landlock: {what}, but for what its version does not see");
            Check::limited("fence", found, "Linux 6.12 or later has all of it")
        }
        None => {
            let fix = "Linux 5.19 or later with landlock in its list of security modules (lsm= on its command line), and a system \
                       call filter around rbuild that permits landlock_create_ruleset";
            Check::limited("fence", "no Landlock: steps have no second fence", fix)
        }
    }
}

/// Makes a private network, through which a packet has to pass.
pub(super) async fn network(launcher: &Launcher) -> Check {
    match network::connect(launcher, StepNetwork::Private).await {
        Ok(_) => Check::good("network", "a private one for each step; packets pass"),
        Err(Error::Network(cause)) => {
            let fix = if cause.is(Errno::NOSPC) {
                "sysctl -w user.max_net_namespaces=15000"
            } else if cause.is(Errno::OPNOTSUPP) || cause.is(Errno::NODEV) {
                "the kernel has no veth interfaces: modprobe veth"
            } else {
                "network namespaces and packet sockets have to be permitted here"
            };
            let found = format!("steps share the host's: {cause}");
            let meanwhile = match launcher.is_confined() {
                false => "; until then --network=none isolates steps",
                true => "",
            };
            Check::limited("network", found, format!("{fix}{meanwhile}"))
        }
        Err(error) => Check::missing("network", error.to_string(), None),
    }
}

/// Starts a step under each kind of limit.
pub(super) async fn limits(launcher: &Launcher, tier: &Tier) -> Check {
    let none = Limits::default;
    let kinds = [
        ("memory", Limits { memory: Some(512 << 20), ..none() }),
        ("cpu", Limits { cpu_shares: Some(1024), ..none() }),
        ("cpuset", Limits { cpuset_cpus: Some("0".to_owned()), ..none() }),
        ("pids", Limits { pids: Some(1000), ..none() }),
    ];
    let (mut good, mut bad, mut reason) = (Vec::new(), Vec::new(), None);
    for (name, limits) in kinds {
        match run(launcher, limits).await {
            Ok(0) => good.push(name),
            Ok(code) => {
                bad.push(name);
                reason.get_or_insert(format!("a limited step ended with {code}"));
            }
            Err(why) => {
                bad.push(name);
                reason.get_or_insert(why);
            }
        }
    }
    let Some(reason) = reason else { return Check::good("limits", format!("{} can be limited", good.join(", "))) };
    let works = if good.is_empty() { "nothing".to_owned() } else { good.join(", ") };
    let fix = match tier {
        Tier::Root | Tier::Confined { .. } => {
            "the kernel, or who made this container, has to give these controllers (docker run --cgroupns=private -v /sys/fs/cgroup:rw)"
        }
        _ => {
            "have the controllers delegated: systemd-run --user --scope -p Delegate=yes rbuild …, or as root, systemctl edit user@.service with Delegate=cpu cpuset memory pids"
        }
    };
    let found = format!("{works} can be limited, {} cannot: {reason}", bad.join(", "));
    Check { name: "limits", state: State::Limited, found, fix: Some(fix.to_owned()) }
}

/// Where names are asked for.
pub(super) fn names(resolv_conf: &str) -> Check {
    let servers: Vec<&str> =
        resolv_conf.lines().filter_map(|line| line.trim().strip_prefix("nameserver")).map(str::trim).collect();
    if servers.is_empty() {
        let fix = "name one in /etc/resolv.conf";
        return Check::limited("names", "/etc/resolv.conf names no server: 127.0.0.1 is asked", fix);
    }
    let own = |server: &&&str| server.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback());
    let own: Vec<&str> = servers.iter().filter(own).copied().collect();
    let found = format!("asked of {}", servers.join(", "));
    match own.is_empty() {
        true => Check::good("names", found),
        false => {
            let own = own.join(", ");
            Check::good(
                "names",
                format!("{found}; steps with a private network reach {own} by an address that stands for it"),
            )
        }
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_on_loopback_is_said_to_be_reached() {
        let stub = names("# systemd-resolved\nnameserver 127.0.0.53\noptions edns0\nsearch example.test\n");
        assert_eq!(stub.state, State::Good);
        assert!(stub.found.contains("127.0.0.53") && stub.found.contains("stands for it"), "{}", stub.found);
        assert_eq!(names("nameserver 192.0.2.1\nnameserver 2001:db8::1\n").found, "asked of 192.0.2.1, 2001:db8::1");
        assert_eq!(names("search example.test\n").state, State::Limited);
    }

    #[test]
    fn without_landlock_the_fence_is_said_to_be_missing() {
        let (bare, root) = (Tier::Confined { reason: String::new() }, Tier::Root);
        assert_eq!(fence(Some(LandlockLevel::Whole), &root).state, State::Good);
        assert!(fence(Some(LandlockLevel::Whole), &bare).found.contains("can be reached"));
        assert_eq!(fence(Some(LandlockLevel::Part), &root).state, State::Limited);
        assert!(fence(None, &bare).fix.is_some_and(|fix| fix.contains("lsm=")));
    }

    #[test]
    fn what_keeps_fuse_away_decides_the_fix() {
        assert!(fix_for_fuse("fuse-overlayfs is not installed").contains("apt-get install fuse-overlayfs"));
        assert!(fix_for_fuse("cannot try: open(\"/dev/fuse\", O_RDWR): no").contains("--device /dev/fuse"));
    }
}
