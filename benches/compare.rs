//! Whole builds, timed from outside, rbuild and its peers taking turns: `cargo bench --bench compare [-- RUNS]`.
//!
//! Peers are found on PATH (buildah, with runc). Medians and ratios are printed; the raw runs are kept as JSON below the
//! target directory. Nothing is asserted: machines differ, and a noisy one differs from itself.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// A build and what is done before each run.
struct Scene {
    name: &'static str,
    dockerfile: String,
    /// Files beside the Dockerfile.
    files: usize,
    /// Every run begins with an empty store; otherwise with everything built.
    cold: bool,
}

struct Engine {
    name: &'static str,
    build: fn(&Place, cold: bool) -> Command,
}

/// Where one engine builds one scene.
struct Place {
    context: PathBuf,
    store: PathBuf,
}

const BUSYBOX: &str = "/bin/busybox";

#[expect(clippy::print_stdout, reason = "the figures are the result")]
fn main() {
    let runs = std::env::args().skip(1).find_map(|arg| arg.parse().ok()).unwrap_or(5);
    if !Path::new(BUSYBOX).exists() {
        println!("NOT RUN: {BUSYBOX} is missing (Debian's busybox-static)");
        return;
    }
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("compare");
    let engines = engines();
    let mut raw = String::from("[\n");
    println!(
        "{:10} {:8} {:>9} {:>9} {:>9}  ratio of medians, rbuild/peer",
        "scene", "engine", "min s", "median s", "max s"
    );
    for scene in scenes() {
        let _ = fs::remove_dir_all(&directory);
        let places: Vec<Place> = engines.iter().map(|engine| prepare(&directory, engine, &scene)).collect();
        let mut times: Vec<Vec<f64>> = vec![Vec::new(); engines.len()];
        for turn in 0..=runs {
            for ((engine, place), times) in engines.iter().zip(&places).zip(&mut times) {
                if scene.cold {
                    empty(engine, place);
                }
                let time = run((engine.build)(place, scene.cold));
                // The first turn warms up, and builds what warm scenes find built.
                if turn > 0 {
                    times.push(time.as_secs_f64());
                    let _ = writeln!(
                        raw,
                        r#"{{"scene":"{}","engine":"{}","seconds":{time:?}}},"#,
                        scene.name,
                        engine.name,
                        time = time.as_secs_f64()
                    );
                }
            }
        }
        let own = median(&mut times[0].clone());
        for (engine, times) in engines.iter().zip(&mut times) {
            let middle = median(times);
            let ratio = if engine.name == "rbuild" { String::new() } else { format!("  {:.3}", own / middle) };
            let (least, most) = (times[0], times[times.len() - 1]);
            println!("{:10} {:8} {least:9.3} {middle:9.3} {most:9.3}{ratio}", scene.name, engine.name);
        }
        for (engine, place) in engines.iter().zip(&places) {
            empty(engine, place);
        }
    }
    let _ = fs::remove_dir_all(&directory);
    raw.push_str("null]\n");
    let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join("compare.json");
    if fs::write(&kept, raw).is_ok() {
        println!("raw runs: {}", kept.display());
    }
}

fn scenes() -> Vec<Scene> {
    let base = "FROM scratch\nCOPY busybox /bin/busybox\nRUN [\"/bin/busybox\", \"--install\", \"-s\", \"/bin\"]\n";
    let steps = |count: usize| (0..count).fold(base.to_owned(), |text, n| text + &format!("RUN echo {n} > /r{n}\n"));
    vec![
        Scene { name: "noop", dockerfile: steps(9) + "COPY files /files\n", files: 100, cold: false },
        Scene { name: "steps", dockerfile: steps(19), files: 0, cold: true },
    ]
}

fn engines() -> Vec<Engine> {
    let mut engines = vec![Engine {
        name: "rbuild",
        build: |place, _| {
            let mut command = Command::new(env!("CARGO_BIN_EXE_rbuild"));
            command.arg("--root").arg(&place.store).args(["build", "-q", "-t", "bench"]).arg(&place.context);
            command
        },
    }];
    let buildah = Command::new("buildah").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    if buildah.is_ok_and(|status| status.success()) {
        engines.push(Engine {
            name: "buildah",
            build: |place, _| {
                let mut command = buildah_on(place);
                command.args(["bud", "--layers", "--isolation", "oci", "--runtime", "runc", "--network", "host", "-q"]);
                command.args(["-t", "bench"]).arg(&place.context);
                command
            },
        });
    } else {
        eprintln!("buildah is not on PATH: nothing to compare with");
    }
    engines
}

fn buildah_on(place: &Place) -> Command {
    let mut command = Command::new("buildah");
    command.arg("--root").arg(&place.store).arg("--runroot").arg(place.store.with_extension("run"));
    command
}

fn prepare(directory: &Path, engine: &Engine, scene: &Scene) -> Place {
    let own = directory.join(engine.name).join(scene.name);
    let place = Place { context: own.join("context"), store: own.join("store") };
    fs::create_dir_all(place.context.join("files")).expect("make the context");
    fs::create_dir_all(&own).expect("make a place for the store");
    fs::copy(BUSYBOX, place.context.join("busybox")).expect("copy busybox");
    fs::write(place.context.join("Dockerfile"), &scene.dockerfile).expect("write the Dockerfile");
    for number in 0..scene.files {
        fs::write(place.context.join(format!("files/{number}")), format!("file {number}\n")).expect("write a file");
    }
    place
}

fn empty(engine: &Engine, place: &Place) {
    if engine.name == "buildah" {
        // Its overlays are only let go by itself.
        let _ =
            buildah_on(place).args(["rmi", "--all", "--force"]).stdout(Stdio::null()).stderr(Stdio::null()).status();
    }
    let _ = fs::remove_dir_all(&place.store);
}

fn run(mut command: Command) -> Duration {
    let begin = Instant::now();
    let output = command.stdin(Stdio::null()).output().expect("start the engine");
    let time = begin.elapsed();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    time
}

fn median(times: &mut [f64]) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}
