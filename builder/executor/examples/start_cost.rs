//! What starting a step costs, beside crun and runc where they are installed.
//!
//! `cargo run --release -p rbuild-executor --example start_cost [ROUNDS]` as root, with a static busybox.

#![allow(clippy::print_stdout, reason = "this program prints a table")]

use std::error::Error;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use executor::spec::{Changes, EtcFiles};
use executor::{Gateway, Launcher, Network, Overlay, Process, Root, Stdio};

fn main() -> Result<(), Box<dyn Error>> {
    let began = Instant::now();
    let launcher = Launcher::start()?;
    let launcher_cost = began.elapsed();
    launcher.check()?;
    let ready_cost = began.elapsed();
    let rounds = std::env::args().nth(1).map_or(Ok(200), |text| text.parse())?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let directory = tempfile::tempdir()?;
    let base = directory.path().join("base");
    // The mount points that every image has, so that none has to be made.
    for path in ["bin", "dev", "etc", "proc", "sys"] {
        fs::create_dir_all(base.join(path))?;
    }
    for path in ["etc/hosts", "etc/resolv.conf"] {
        fs::write(base.join(path), "")?;
    }
    fs::copy("/bin/busybox", base.join("bin/busybox"))?;
    symlink("busybox", base.join("bin/true"))?;
    println!("{:<44} {:>8.3} ms", "launcher, until rbuild goes on", launcher_cost.as_secs_f64() * 1e3);
    println!("{:<44} {:>8.3} ms", "launcher, until it is ready", ready_cost.as_secs_f64() * 1e3);

    let plain = median(rounds, |_| {
        Command::new(base.join("bin/true")).output()?;
        Ok(())
    })?;
    println!("{:<44} {:>8.3} ms", "fork and exec of the same program", plain.as_secs_f64() * 1e3);
    for (name, network, full) in [
        ("step, host network", Network::Host, false),
        ("step, host network, files of /etc", Network::Host, true),
        ("step, no network, files of /etc", Network::None, true),
        ("step, private network, files of /etc", Network::Private(Gateway::default()), true),
    ] {
        let mut processor = Vec::new();
        let cost = median(rounds, |round| {
            let at = |name: &str| directory.path().join(format!("{name}-{network:?}-{full}-{round}"));
            for path in [at("upper"), at("work")] {
                fs::create_dir_all(path)?;
            }
            let changes = Some(Changes { upper: at("upper"), work: at("work") });
            let mut process =
                Process::new(Root::Overlay(Overlay { lowers: vec![base.clone()], changes }), ["/bin/true"]);
            process.network = network.clone();
            if full {
                process.files = EtcFiles {
                    resolv_conf: Some(b"nameserver 192.0.2.1\n".to_vec()),
                    hosts: Some(b"127.0.0.1 localhost\n".to_vec()),
                    hostname: None,
                };
            }
            let began = Instant::now();
            runtime
                .block_on(async {
                    let mut running = launcher.run(process, Stdio::null()?).await?;
                    let status = running.wait().await?;
                    processor.push(status.usage.user + status.usage.system);
                    if status.success() { Ok(()) } else { Err(format!("{status:?}").into()) }
                })
                .map(|()| began.elapsed())
        })?;
        processor.sort();
        let processor = processor[processor.len() / 2].as_secs_f64() * 1e3;
        println!("{name:<44} {:>8.3} ms, of which the step computes {processor:.3} ms", cost.as_secs_f64() * 1e3);
    }
    for runtime in ["crun", "runc"] {
        match bundle(runtime, directory.path(), &base) {
            Ok(cost) => println!("{:<44} {:>8.3} ms", format!("{runtime} run"), cost.as_secs_f64() * 1e3),
            Err(error) => println!("{:<44} {error}", format!("{runtime} run")),
        }
    }
    Ok(())
}

/// What one round took: its own measurement, or all of it.
trait Cost {
    fn or_elapsed(self, began: Instant) -> Duration;
}

impl Cost for () {
    fn or_elapsed(self, began: Instant) -> Duration {
        began.elapsed()
    }
}

impl Cost for Duration {
    fn or_elapsed(self, _: Instant) -> Duration {
        self
    }
}

fn median<C: Cost>(
    rounds: u32,
    mut one: impl FnMut(u32) -> Result<C, Box<dyn Error>>,
) -> Result<Duration, Box<dyn Error>> {
    let mut costs = Vec::new();
    for round in 0..rounds {
        let began = Instant::now();
        costs.push(one(round)?.or_elapsed(began));
    }
    costs.sort();
    Ok(costs[costs.len() / 2])
}

fn bundle(runtime: &str, directory: &Path, base: &Path) -> Result<Duration, Box<dyn Error>> {
    let bundle = directory.join(runtime);
    fs::create_dir_all(&bundle)?;
    let spec = Command::new(runtime).arg("spec").current_dir(&bundle).output()?;
    if !spec.status.success() {
        return Err(String::from_utf8_lossy(&spec.stderr).trim().to_owned().into());
    }
    let config = bundle.join("config.json");
    let mut spec: serde_json::Value = serde_json::from_slice(&fs::read(&config)?)?;
    spec["root"]["path"] = base.to_string_lossy().into_owned().into();
    spec["process"]["terminal"] = false.into();
    spec["process"]["args"] = serde_json::json!(["/bin/true"]);
    // This process may be unable to raise limits.
    spec["process"]["rlimits"] = serde_json::json!([]);
    fs::write(&config, serde_json::to_vec(&spec)?)?;
    median(20, |round| {
        let name = format!("start-cost-{}-{round}", std::process::id());
        let output = Command::new(runtime).arg("run").arg("--bundle").arg(&bundle).arg(name).output()?;
        if output.status.success() {
            Ok(())
        } else {
            Err(String::from_utf8_lossy(&output.stderr).trim().to_owned().into())
        }
    })
}
