//! How rbuild's time and memory grow with what it is given: no peers, only the shape of the curve.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use crate::engines::timed;
use crate::report::{Sample, median, worked};
use crate::scenes::{busybox, files, noise, write};

/// One table.
struct Series {
    title: &'static str,
    /// What is counted.
    unit: &'static str,
    sizes: &'static [usize],
    /// Makes the context.
    prepare: fn(&Path, usize) -> Result<(), String>,
    /// Before each run but the first, with its number.
    change: fn(&Path, usize) -> Result<(), String>,
    /// The store is emptied before each run.
    from_nothing: bool,
}

const NOTHING: fn(&Path, usize) -> Result<(), String> = |_, _| Ok(());

fn all() -> Vec<Series> {
    let stages = Series {
        title: "Nothing changed, many stages",
        unit: "stages",
        sizes: &[10, 100, 1_000],
        prepare: stages,
        change: NOTHING,
        from_nothing: false,
    };
    vec![
        Series {
            title: "Nothing changed, many files",
            unit: "files",
            sizes: &[1_000, 10_000, 50_000, 200_000],
            prepare: |context, count| {
                files(&context.join("files"), count, 64)?;
                write(&context.join("Dockerfile"), b"FROM scratch\nCOPY files /files\n")
            },
            ..stages
        },
        Series {
            title: "Nothing changed, an image of many layers",
            unit: "layers",
            sizes: &[1, 10, 100, 400],
            prepare: |context, count| layers(context, count, ""),
            ..stages
        },
        Series {
            title: "One RUN upon an image of many layers",
            unit: "layers",
            sizes: &[1, 10, 100, 400],
            prepare: |context, count| layers(context, count, "COPY turn /turn\nRUN cat /turn > /copy\n"),
            change: |context, turn| write(&context.join("turn"), turn.to_string().as_bytes()),
            ..stages
        },
        Series {
            title: "COPY of a large file into an empty store",
            unit: "MiB",
            sizes: &[100, 1_000, 10_000],
            prepare: large,
            from_nothing: true,
            ..stages
        },
        stages,
    ]
}

/// Independent stages, joined by a last one.
fn stages(context: &Path, count: usize) -> Result<(), String> {
    let mut text = String::new();
    for stage in 0..count {
        let _ = writeln!(text, "FROM scratch AS s{stage}\nENV N={stage}\nCOPY file /f{stage}");
    }
    // No more layers than an image can have.
    for stages in (0..count).collect::<Vec<_>>().chunks(count.div_ceil(100)) {
        let _ = writeln!(text, "FROM scratch AS j{}", stages[0]);
        for stage in stages {
            let _ = writeln!(text, "COPY --from=s{stage} /f{stage} /");
        }
    }
    text += "FROM scratch\n";
    for first in (0..count).step_by(count.div_ceil(100)) {
        let _ = writeln!(text, "COPY --from=j{first} / /");
    }
    write(&context.join("file"), b"content\n")?;
    write(&context.join("Dockerfile"), text.as_bytes())
}

fn layers(context: &Path, count: usize, end: &str) -> Result<(), String> {
    busybox(context)?;
    let mut text = "FROM scratch\nCOPY busybox /bin/busybox\n".to_owned();
    for layer in 1..count {
        write(&context.join(format!("l/{layer}")), layer.to_string().as_bytes())?;
        let _ = writeln!(text, "COPY l/{layer} /l/{layer}");
    }
    text += "SHELL [\"/bin/busybox\", \"sh\", \"-c\"]\n";
    write(&context.join("turn"), b"0")?;
    write(&context.join("Dockerfile"), (text + &end.replace("cat", "/bin/busybox cat")).as_bytes())
}

fn large(context: &Path, mebibytes: usize) -> Result<(), String> {
    use std::io::Write;
    let part = noise(7, 1 << 20);
    let path = context.join("large");
    let written = fs::create_dir_all(context).and_then(|()| fs::File::create(&path)).and_then(|mut file| {
        (0..mebibytes).try_for_each(|number| {
            file.write_all(&number.to_le_bytes())?;
            file.write_all(&part[size_of::<usize>()..])
        })
    });
    written.map_err(|error| format!("{}: {error}", path.display()))?;
    write(&context.join("Dockerfile"), b"FROM scratch\nCOPY large /large\n")
}

/// Measures all of it and prints tables of Markdown.
#[expect(clippy::print_stdout, reason = "the figures are the result")]
pub(crate) fn run(directory: &Path, runs: usize, of: &str) -> Result<(), String> {
    for series in all().iter().filter(|series| of == "all" || of == series.unit) {
        println!("\n### {}\n\n| {} | seconds | ms for each | peak MB |\n|---|---|---|---|", series.title, series.unit);
        for &size in series.sizes {
            let (context, store) = (directory.join("growth/context"), directory.join("growth/store"));
            (series.prepare)(&context, size)?;
            let mut samples = Vec::new();
            for turn in 0..=runs {
                (series.change)(&context, turn)?;
                if series.from_nothing {
                    let _ = fs::remove_dir_all(&store);
                }
                let (started, before) = (Instant::now(), worked());
                let peak_bytes = timed(&mut build(&context, &store))?;
                if turn > 0 {
                    let seconds = started.elapsed().as_secs_f64();
                    samples.push(Sample { seconds, busy: worked() - before, peak_bytes });
                }
            }
            let peak = samples.iter().map(|sample| sample.peak_bytes).max().unwrap_or_default() / 1_000_000;
            let seconds = median(&samples);
            println!("| {size} | {seconds:.3} | {:.3} | {peak} |", seconds * 1e3 / size as f64);
            let _ = fs::remove_dir_all(directory.join("growth"));
        }
    }
    if of == "all" || of == "builds" { at_once(directory) } else { Ok(()) }
}

fn build(context: &Path, store: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rbuild"));
    command.arg("--root").arg(store).args(["build", "-q", "-t", "growth"]).arg(context);
    command
}

/// The same build by many processes on one empty store: each step is run by one of them.
#[expect(clippy::print_stdout, reason = "the figures are the result")]
fn at_once(directory: &Path) -> Result<(), String> {
    println!("\n### The same 5 steps of 0.2 s by many builds at once, on an empty store\n");
    println!("| builds | seconds |\n|---|---|");
    for count in [1, 10, 50] {
        let (context, store) = (directory.join("growth/context"), directory.join("growth/store"));
        busybox(&context)?;
        let mut text = "FROM scratch\nCOPY busybox /bin/busybox\nSHELL [\"/bin/busybox\", \"sh\", \"-c\"]\n".to_owned();
        for step in 0..5 {
            let _ = writeln!(text, "RUN /bin/busybox sleep 0.2; echo {step} > /{step}");
        }
        write(&context.join("Dockerfile"), text.as_bytes())?;
        let started = Instant::now();
        let builds: Result<Vec<_>, _> = (0..count)
            .map(|_| build(&context, &store).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn())
            .collect();
        for mut build in builds.map_err(|error| error.to_string())? {
            let status = build.wait().map_err(|error| error.to_string())?;
            if !status.success() {
                return Err(format!("one of {count} builds at once ended with {status}"));
            }
        }
        println!("| {count} | {:.2} |", started.elapsed().as_secs_f64());
        let _ = fs::remove_dir_all(directory.join("growth"));
    }
    Ok(())
}
