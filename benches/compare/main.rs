//! Whole builds, timed from outside, rbuild and its peers taking turns.
//!
//! `cargo bench --bench compare [-- [--runs N] [--scenes noop,steps,…] [--engines rbuild,buildah,…] [--picture FILE.svg]]`
//!
//! With `--growth all|stages|files|layers|MiB|builds` it is only rbuild, with more and more to do.
//!
//! Peers are found on PATH: buildah (with runc), docker's classic builder (dockerd is started for the time of the benchmark),
//! BuildKit (buildkitd likewise); where images are only moved, skopeo. Scenes that move images need docker-registry, one needs Debian's mirrors. Medians, ratios, the
//! work of all cores together and the peak memory of rbuild's process tree are printed; the raw runs are kept as JSON below the target directory. Nothing is
//! asserted: machines differ, and a noisy one differs from itself. Run as root.

mod engines;
mod growth;
mod report;
mod scenes;
mod servers;

use std::path::Path;

use engines::{Engine, Place};
use report::{Figures, Sample};
use scenes::{Scene, State};

/// What was asked for on the command line.
struct Options {
    runs: usize,
    scenes: Option<Vec<String>>,
    engines: Option<Vec<String>>,
    picture: Option<String>,
    growth: Option<String>,
}

#[expect(clippy::print_stdout, reason = "the figures are the result")]
fn main() {
    let options = options();
    let directory = tempfile::Builder::new().prefix("rbuild-compare-").tempdir().expect("a temporary directory");
    if let Some(of) = &options.growth {
        growth::run(directory.path(), options.runs, of).expect("measure");
        return;
    }
    let registry = servers::Registry::start(directory.path());
    let chosen =
        |list: &Option<Vec<String>>, name: &str| list.as_ref().is_none_or(|list| list.iter().any(|n| n == name));
    let engines: Vec<Engine> =
        engines::found(directory.path(), |name| name == "rbuild" || chosen(&options.engines, name));
    let mut figures = Figures::default();
    println!("{}", report::HEAD);
    for scene in scenes::all().into_iter().filter(|scene| chosen(&options.scenes, scene.name)) {
        match measure(&scene, &engines, registry.as_ref(), directory.path(), options.runs) {
            Ok(samples) => {
                print!("{}", report::table(scene.name, &samples));
                figures.add(&scene, samples);
            }
            Err(why) => println!("{:10} NOT RUN: {why}", scene.name),
        }
    }
    let raw = Path::new(env!("CARGO_TARGET_TMPDIR")).join("compare.json");
    std::fs::write(&raw, figures.json()).expect("write the raw runs");
    println!("raw runs: {}", raw.display());
    if let Some(picture) = options.picture {
        std::fs::write(&picture, figures.picture()).expect("write the picture");
        println!("picture: {picture}");
    }
}

fn options() -> Options {
    let mut options = Options { runs: 3, scenes: None, engines: None, picture: None, growth: None };
    // Cargo itself adds --bench.
    let mut words = std::env::args().skip(1).filter(|word| word != "--bench");
    while let Some(word) = words.next() {
        let value = words.next().unwrap_or_else(|| panic!("{word} needs a value"));
        let list = || Some(value.split(',').map(str::to_owned).collect());
        match word.as_str() {
            "--runs" => options.runs = value.parse().expect("--runs takes a number"),
            "--scenes" => options.scenes = list(),
            "--engines" => options.engines = list(),
            "--picture" => options.picture = Some(value),
            "--growth" => options.growth = Some(value),
            other => panic!("unknown option {other}: --runs, --scenes, --engines, --picture, --growth"),
        }
    }
    options
}

/// The engines take turns; the first turn warms up (and builds what warm scenes find built) and is not counted.
fn measure(
    scene: &Scene,
    engines: &[Engine],
    registry: Option<&servers::Registry>,
    directory: &Path,
    runs: usize,
) -> Result<Vec<(&'static str, Vec<Sample>)>, String> {
    let registry = match (scene.needs_registry, registry) {
        (true, None) => return Err("docker-registry is not on PATH".into()),
        (_, registry) => registry.map_or("", |registry| registry.address.as_str()),
    };
    let mut entered = Vec::new();
    for engine in engines.iter().filter(|engine| engine.can(scene.result)) {
        let own = directory.join(engine.name).join(scene.name);
        let place = Place { context: own.join("context"), store: own.join("store"), registry: registry.to_owned() };
        std::fs::create_dir_all(&place.context).map_err(|error| error.to_string())?;
        (scene.prepare)(&place)?;
        entered.push((engine, place, Vec::new()));
    }
    for turn in 0..=runs {
        for (engine, place, samples) in &mut entered {
            (scene.before)(place, turn)?;
            if matches!(scene.state, State::Empty) {
                engine.empty(place);
            }
            let sample = engine.build(place, scene, turn)?;
            if turn > 0 {
                samples.push(sample);
            }
        }
    }
    for (engine, place, _) in &entered {
        engine.empty(place);
        let _ = std::fs::remove_dir_all(&place.context);
    }
    Ok(entered.into_iter().map(|(engine, _, samples)| (engine.name, samples)).collect())
}
