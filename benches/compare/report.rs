//! Figures for people and for programs.

use std::fmt::Write as _;

use crate::scenes::Scene;

/// One run.
#[derive(Clone, Copy)]
pub(crate) struct Sample {
    pub(crate) seconds: f64,
    /// Seconds of work of all cores together, whoever worked: daemons, registries and steps are in it.
    pub(crate) busy: f64,
    /// Of the largest process; a daemon's is not in it.
    pub(crate) peak_bytes: u64,
}

pub(crate) const HEAD: &str =
    "scene      engine       min s  median s     max s    work s   peak MB  rbuild/engine (medians)";

type Samples = Vec<(&'static str, Vec<Sample>)>;

/// Seconds of the middle run.
pub(crate) fn median(samples: &[Sample]) -> f64 {
    middle(samples.iter().map(|sample| sample.seconds))
}

fn middle(numbers: impl Iterator<Item = f64>) -> f64 {
    let mut numbers: Vec<f64> = numbers.collect();
    numbers.sort_by(f64::total_cmp);
    match numbers.len() {
        0 => f64::NAN,
        count if count % 2 == 1 => numbers[count / 2],
        count => f64::midpoint(numbers[count / 2 - 1], numbers[count / 2]),
    }
}

/// What the cores did since the machine started, in seconds: user, nice, system, irq and softirq of `/proc/stat` (proc(5)), whose
/// unit, `USER_HZ`, is a hundredth of a second.
pub(crate) fn worked() -> f64 {
    let stat = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let ticks: Vec<u64> = stat.split_whitespace().skip(1).map_while(|word| word.parse().ok()).collect();
    [0, 1, 2, 5, 6].iter().filter_map(|at| ticks.get(*at)).sum::<u64>() as f64 / 100.0
}

/// The lines of one scene; rbuild's comes first.
pub(crate) fn table(scene: &str, samples: &Samples) -> String {
    let mut text = String::new();
    let own = samples.first().map_or(f64::NAN, |(_, samples)| median(samples));
    for (engine, samples) in samples {
        let seconds = || samples.iter().map(|sample| sample.seconds);
        let (least, most) = (seconds().fold(f64::INFINITY, f64::min), seconds().fold(0.0, f64::max));
        let middle = median(samples);
        let peak = samples.iter().map(|sample| sample.peak_bytes).max().unwrap_or_default() / 1_000_000;
        let work = self::middle(samples.iter().map(|sample| sample.busy));
        let ratio = if *engine == "rbuild" { String::new() } else { format!("  {:.3}", own / middle) };
        let _ = writeln!(text, "{scene:10} {engine:8} {least:9.3} {middle:9.3} {most:9.3} {work:9.2} {peak:9}{ratio}");
    }
    text
}

/// All scenes.
#[derive(Default)]
pub(crate) struct Figures(Vec<(&'static str, &'static str, Samples)>);

impl Figures {
    pub(crate) fn add(&mut self, scene: &Scene, samples: Samples) {
        self.0.push((scene.name, scene.about, samples));
    }

    /// Every run, in order.
    pub(crate) fn json(&self) -> String {
        let runs = self.0.iter().flat_map(|(scene, _, engines)| {
            engines.iter().flat_map(move |(engine, samples)| {
                samples.iter().map(move |sample| {
                    serde_json::json!({
                        "scene": scene, "engine": engine, "seconds": sample.seconds, "work_seconds": sample.busy,
                        "peak_bytes": sample.peak_bytes,
                    })
                })
            })
        });
        format!("{:#}\n", serde_json::Value::Array(runs.collect()))
    }

    /// Bars on a logarithmic scale, as SVG: every decade is as wide as the next.
    pub(crate) fn picture(&self) -> String {
        const LEFT: f64 = 385.0;
        const DECADE: f64 = 120.0;
        const BAR: usize = 15;
        let colour = |engine: &str| match engine {
            "rbuild" => "#c2410c",
            "buildkit" => "#2563eb",
            "buildah" => "#64748b",
            _ => "#a8a29e",
        };
        let bars: usize = self.0.iter().map(|(_, _, engines)| engines.len()).sum();
        let height = 40 + bars * BAR + self.0.len() * 12;
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"970\" height=\"{height}\" font-family=\"sans-serif\" font-size=\"11\">\n\
             <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
             <text x=\"10\" y=\"20\" font-size=\"13\">Seconds for a whole build, median; a decade per {DECADE} px</text>\n"
        );
        let mut y = 36;
        for (scene, about, engines) in &self.0 {
            let about = about.replace('&', "&amp;");
            let _ = writeln!(svg, "<text x=\"10\" y=\"{}\" font-weight=\"bold\">{scene}</text>", y + 11);
            let _ = writeln!(svg, "<text x=\"10\" y=\"{}\" font-size=\"9\" fill=\"#555\">{about}</text>", y + 24);
            for (engine, samples) in engines {
                let seconds = median(samples);
                // A millisecond is where bars begin.
                let width = (seconds.max(0.001).log10() + 3.0) * DECADE + 1.0;
                let _ = writeln!(
                    svg,
                    "<rect x=\"{LEFT}\" y=\"{y}\" width=\"{width:.1}\" height=\"12\" fill=\"{}\"/>\
                     <text x=\"{:.1}\" y=\"{}\">{engine} {seconds:.3}</text>",
                    colour(engine),
                    LEFT + width + 4.0,
                    y + 10
                );
                y += BAR;
            }
            y += 12;
        }
        svg + "</svg>\n"
    }
}
