//! Who builds.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::report::{Sample, worked};
use crate::scenes::{Output, Scene};
use crate::servers::{Server, on_path, wait_until};

/// Where one engine builds one scene.
pub(crate) struct Place {
    pub(crate) context: PathBuf,
    pub(crate) store: PathBuf,
    /// `host:port`, or empty.
    pub(crate) registry: String,
}

/// A builder, with its daemon if it needs one.
pub(crate) struct Engine {
    pub(crate) name: &'static str,
    kind: Kind,
    /// Where its daemon listens.
    socket: PathBuf,
    _daemon: Option<Server>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Rbuild,
    Buildah,
    Docker,
    BuildKit,
    Skopeo,
}

/// rbuild, and the peers of this machine that are wanted.
#[expect(clippy::print_stderr, reason = "a peer that is left out is said")]
pub(crate) fn found(directory: &Path, wanted: impl Fn(&str) -> bool) -> Vec<Engine> {
    let mut engines = vec![Engine { name: "rbuild", kind: Kind::Rbuild, socket: PathBuf::new(), _daemon: None }];
    let mut add = |name: &'static str, programs: &[&str], kind, start: &dyn Fn() -> Result<Option<Started>, String>| {
        if !wanted(name) {
            return;
        }
        if let Some(missing) = programs.iter().find(|program| !on_path(program)) {
            eprintln!("{name} is left out: {missing} is not on PATH");
            return;
        }
        match start() {
            Ok(started) => {
                let (socket, daemon) =
                    started.map_or((PathBuf::new(), None), |(socket, server)| (socket, Some(server)));
                engines.push(Engine { name, kind, socket, _daemon: daemon });
            }
            Err(why) => eprintln!("{name} is left out: {why}"),
        }
    };
    add("buildkit", &["buildkitd", "buildctl", "runc"], Kind::BuildKit, &|| buildkitd(directory).map(Some));
    add("buildah", &["buildah", "runc"], Kind::Buildah, &|| Ok(None));
    add("skopeo", &["skopeo"], Kind::Skopeo, &|| Ok(None));
    add("docker", &["dockerd", "docker"], Kind::Docker, &|| dockerd(directory).map(Some));
    engines
}

type Started = (PathBuf, Server);

fn buildkitd(directory: &Path) -> Result<Started, String> {
    let (root, socket) = (directory.join("buildkitd"), directory.join("buildkitd.sock"));
    let mut command = Command::new("buildkitd");
    command.arg("--root").arg(&root).arg("--addr").arg(format!("unix://{}", socket.display()));
    command.args(["--oci-worker-net", "host", "--containerd-worker=false"]);
    let server = Server::start(&mut command, &directory.join("buildkitd.log"))?;
    let up = || quietly(&mut buildctl(&socket, &["debug", "workers"])).is_ok();
    wait_until("buildkitd", up)?;
    Ok((socket, server))
}

fn buildctl(socket: &Path, words: &[&str]) -> Command {
    let mut command = Command::new("buildctl");
    command.arg("--addr").arg(format!("unix://{}", socket.display())).args(words);
    command
}

fn dockerd(directory: &Path) -> Result<Started, String> {
    let (root, socket) = (directory.join("dockerd"), directory.join("dockerd.sock"));
    // In a mount namespace of its own, so that what it leaves mounted goes with it; no firewall rule of the host is touched.
    let mut command = Command::new("unshare");
    command.args([
        "--mount",
        "--propagation",
        "private",
        "dockerd",
        "--iptables=false",
        "--ip6tables=false",
        "--bridge=none",
    ]);
    command.arg("--data-root").arg(root.join("data")).arg("--exec-root").arg(root.join("exec"));
    command.arg("--pidfile").arg(root.join("pid")).arg("--host").arg(format!("unix://{}", socket.display()));
    std::fs::create_dir_all(&root).map_err(|error| error.to_string())?;
    let server = Server::start(&mut command, &directory.join("dockerd.log"))?;
    wait_until("dockerd", || quietly(docker(&socket).arg("version")).is_ok())?;
    Ok((socket, server))
}

fn docker(socket: &Path) -> Command {
    let mut command = Command::new("docker");
    command.arg("--host").arg(format!("unix://{}", socket.display())).env("DOCKER_BUILDKIT", "0");
    command
}

fn buildah(place: &Place) -> Command {
    let mut command = Command::new("buildah");
    command.arg("--root").arg(&place.store).arg("--runroot").arg(place.store.with_extension("run"));
    command
}

impl Engine {
    /// Docker's classic builder writes no OCI archive, skopeo does not build, and only some move images without building.
    pub(crate) fn can(&self, result: Output) -> bool {
        match (self.kind, result) {
            (Kind::Rbuild, _) | (Kind::Skopeo | Kind::Buildah, Output::Fetched) | (Kind::Skopeo, Output::Sent) => true,
            (Kind::Skopeo, _) | (_, Output::Fetched | Output::Sent) | (Kind::Docker, Output::Archive) => false,
            (Kind::Buildah | Kind::Docker | Kind::BuildKit, _) => true,
        }
    }

    /// One build from outside: all the commands that a person would have to wait for.
    pub(crate) fn build(&self, place: &Place, scene: &Scene, turn: usize) -> Result<Sample, String> {
        let archive = place.store.with_extension("tar");
        let _ = std::fs::remove_file(&archive);
        let image = match scene.result {
            Output::Fetched => format!("{}/ten-layers", place.registry),
            Output::Pushed | Output::Sent => format!("{}/{}-{}:{turn}", place.registry, scene.name, self.name),
            _ => "bench".to_owned(),
        };
        let commands = self.commands(place, scene.result, &image, &archive);
        let (started, before, mut peak) = (Instant::now(), worked(), 0);
        for mut command in commands {
            peak = timed(&mut command).map(|bytes| peak.max(bytes)).map_err(|why| format!("{}: {why}", self.name))?;
        }
        let seconds = started.elapsed().as_secs_f64();
        let sample = Sample { seconds, busy: worked() - before, peak_bytes: peak };
        let _ = std::fs::remove_file(&archive);
        Ok(sample)
    }

    fn commands(&self, place: &Place, result: Output, image: &str, archive: &Path) -> Vec<Command> {
        let destination = archive.display();
        let layout = place.context.join("image");
        match (self.kind, result) {
            (Kind::Rbuild, Output::Fetched | Output::Sent) => {
                let mut command = Command::new(env!("CARGO_BIN_EXE_rbuild"));
                command.arg("--root").arg(&place.store).args(["copy", "-q"]);
                match result {
                    Output::Sent => command.arg(format!("oci:{}", layout.display())).arg(image),
                    _ => command.arg(image).arg(format!("oci:{}", place.store.with_extension("image").display())),
                };
                return vec![command];
            }
            (Kind::Buildah, Output::Fetched) => {
                let mut pull = buildah(place);
                pull.args(["pull", "-q", "--tls-verify=false", image]);
                return vec![pull];
            }
            _ => {}
        }
        match self.kind {
            Kind::Skopeo => {
                let mut command = Command::new("skopeo");
                command.args(["--insecure-policy", "copy", "-q", "--src-tls-verify=false", "--dest-tls-verify=false"]);
                let remote = format!("docker://{image}");
                match result {
                    Output::Sent => command.arg(format!("oci:{}", layout.display())).arg(remote),
                    _ => command.arg(remote).arg(format!("oci:{}:x", place.store.with_extension("image").display())),
                };
                vec![command]
            }
            Kind::Rbuild => {
                let mut command = Command::new(env!("CARGO_BIN_EXE_rbuild"));
                command.arg("--root").arg(&place.store).args(["build", "-q"]);
                match result {
                    Output::Kept => command.args(["-t", image]),
                    Output::Archive => command.arg("-o").arg(format!("type=oci,dest={destination}")),
                    _ => command.args(["--push", "-t", image]),
                };
                command.arg(&place.context);
                vec![command]
            }
            Kind::Buildah => {
                let mut build = buildah(place);
                build.args(["bud", "--layers", "--isolation", "oci", "--runtime", "runc", "--network", "host"]);
                build.args(["--tls-verify=false", "-q", "-t", image]).arg(&place.context);
                let mut commands = vec![build];
                if result != Output::Kept {
                    let mut push = buildah(place);
                    push.args(["push", "-q", "--tls-verify=false", image]);
                    if result == Output::Archive {
                        push.arg(format!("oci-archive:{destination}"));
                    }
                    commands.push(push);
                }
                commands
            }
            Kind::Docker => {
                let mut build = docker(&self.socket);
                build.args(["build", "-q", "--network", "host", "-t", image]).arg(&place.context);
                let mut commands = vec![build];
                if result == Output::Pushed {
                    let mut push = docker(&self.socket);
                    push.args(["push", "-q", image]);
                    commands.push(push);
                }
                commands
            }
            Kind::BuildKit => {
                let mut command =
                    buildctl(&self.socket, &["build", "--frontend", "dockerfile.v0", "--progress", "plain"]);
                for name in ["context", "dockerfile"] {
                    command.arg("--local").arg(format!("{name}={}", place.context.display()));
                }
                match result {
                    // An image under a name, as the others keep one: without it BuildKit would not make layers at all.
                    Output::Kept => command.arg("--output").arg(format!("type=image,name={image}")),
                    Output::Archive => command.arg("--output").arg(format!("type=oci,dest={destination}")),
                    _ => command.arg("--output").arg(format!("type=image,name={image},push=true")),
                };
                vec![command]
            }
        }
    }

    /// Forgets all that was built.
    pub(crate) fn empty(&self, place: &Place) {
        let done = match self.kind {
            Kind::Rbuild => Ok(()),
            Kind::Skopeo => Ok(()),
            // Its overlays are only let go by itself.
            Kind::Buildah => quietly(buildah(place).args(["rmi", "--all", "--force"])),
            Kind::Docker => quietly(docker(&self.socket).args(["system", "prune", "--all", "--force"])),
            Kind::BuildKit => quietly(&mut buildctl(&self.socket, &["prune", "--all"])),
        };
        // What is not there yet cannot be emptied; what could not be is seen in the figures.
        drop(done);
        let _ = std::fs::remove_dir_all(&place.store);
        let _ = std::fs::remove_dir_all(place.store.with_extension("image"));
    }
}

/// Runs a command that has to succeed; what it said comes back otherwise.
pub(crate) fn quietly(command: &mut Command) -> Result<(), String> {
    let output = command.stdin(Stdio::null()).output().map_err(|error| format!("{command:?}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{command:?} failed:\n{}", String::from_utf8_lossy(&output.stderr)))
}

/// Runs a command to its end; the largest resident size of it and of its children in bytes.
pub(crate) fn timed(command: &mut Command) -> Result<u64, String> {
    let log = tempfile::NamedTempFile::new().map_err(|error| error.to_string())?;
    let file = || log.reopen().map(Stdio::from).map_err(|error| error.to_string());
    command.stdin(Stdio::null()).stdout(file()?).stderr(file()?);
    let child = command.spawn().map_err(|error| format!("{command:?}: {error}"))?;
    let pid = i32::try_from(child.id()).map_err(|error| error.to_string())?;
    loop {
        match sys::process::reap(pid).map_err(|error| error.to_string())? {
            None => std::thread::sleep(Duration::from_micros(200)),
            Some(ended) if ended.code == Some(0) => return Ok(ended.max_rss),
            Some(ended) => {
                let said = std::fs::read_to_string(log.path()).unwrap_or_default();
                return Err(format!("{command:?} ended with {ended:?}:\n{said}"));
            }
        }
    }
}
