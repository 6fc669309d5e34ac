//! Changes to an image config, and the text that history keeps of an instruction.
//!
//! History is part of the image, and people compare images: it is written as BuildKit writes it, which means as Go prints
//! lists, structs and durations.

use graph::ImageConfig;
use graph::image::{Healthcheck, History};

/// Search path of a step whose image sets none.
pub(crate) const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Marks the entries we wrote.
pub(crate) const HISTORY_COMMENT: &str = "buildkit.dockerfile.v0";

/// The config of a stage that starts from nothing.
pub(crate) fn empty_image(platform: &graph::Platform) -> ImageConfig {
    let mut image = ImageConfig::scratch(platform);
    image.config.working_dir = "/".to_owned();
    image.config.env = vec![format!("PATH={DEFAULT_PATH}")];
    image
}

/// Sets a variable; one that exists keeps its place.
pub(crate) fn set_env(env: &mut Vec<String>, name: &str, value: &str) {
    let assignment = format!("{name}={value}");
    let same = |entry: &str| entry.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('='));
    match env.iter_mut().find(|entry| same(entry)) {
        Some(entry) => *entry = assignment,
        None => env.push(assignment),
    }
}

/// `NAME` of `NAME=value`.
pub(crate) fn env_name(entry: &str) -> &str {
    entry.split_once('=').map_or(entry, |(name, _)| name)
}

/// Whether an instruction made a layer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Layer {
    /// Only the config changed.
    None,
    /// WORKDIR: a layer without BuildKit's mark.
    Made,
    /// RUN, COPY, ADD: a layer, marked.
    Marked,
}

/// Appends a line of history.
pub(crate) fn record(image: &mut ImageConfig, mut created_by: String, layer: Layer, created: Option<&str>) {
    if layer == Layer::Marked {
        created_by.push_str(" # buildkit");
    }
    image.history.push(History {
        created: created.map(str::to_owned),
        created_by,
        comment: HISTORY_COMMENT.to_owned(),
        empty_layer: layer == Layer::None,
        ..History::default()
    });
}

/// Go's `%v` of a list: `[a b]`.
pub(crate) fn go_list<S: AsRef<str>>(items: &[S]) -> String {
    let items: Vec<&str> = items.iter().map(AsRef::as_ref).collect();
    format!("[{}]", items.join(" "))
}

/// Go's `%q` of a list: `["a" "b"]`.
pub(crate) fn go_quoted_list<S: AsRef<str>>(items: &[S]) -> String {
    let items: Vec<String> = items.iter().map(|item| go_quote(item.as_ref())).collect();
    format!("[{}]", items.join(" "))
}

/// Go's `%q` of a string.
pub(crate) fn go_quote(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => {
                out.push('\\');
                out.push(c);
            }
            '\x07' => out.push_str("\\a"),
            '\x08' => out.push_str("\\b"),
            '\x0c' => out.push_str("\\f"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\x0b' => out.push_str("\\v"),
            ' '..='~' => out.push(c),
            c if c.is_ascii() => out.push_str(&format!("\\x{:02x}", u32::from(c))),
            // A grapheme extender is only escaped by Rust when it stands alone; Go prints it.
            c if c.escape_debug().count() == 1 || format!("a{c}").escape_debug().count() == 2 => out.push(c),
            c if u32::from(c) < 0x10000 => out.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => out.push_str(&format!("\\U{:08x}", u32::from(c))),
        }
    }
    out.push('"');
    out
}

/// Go's `%+v` of Docker's health check.
pub(crate) fn go_healthcheck(check: &Healthcheck) -> String {
    format!(
        "{{Test:{} Interval:{} Timeout:{} StartPeriod:{} StartInterval:{} Retries:{}}}",
        go_list(&check.test),
        go_duration(check.interval),
        go_duration(check.timeout),
        go_duration(check.start_period),
        go_duration(check.start_interval),
        check.retries,
    )
}

/// Go's text of a duration in nanoseconds: `1m30s`, `1.5s`, `500ms`.
pub(crate) fn go_duration(nanoseconds: i64) -> String {
    let sign = if nanoseconds < 0 { "-" } else { "" };
    let total = nanoseconds.unsigned_abs();
    let decimal = |value: u64, unit: u64| {
        let (whole, rest) = (value / unit, value % unit);
        if rest == 0 {
            return whole.to_string();
        }
        let digits = unit.ilog10() as usize;
        format!("{whole}.{}", format!("{rest:0digits$}").trim_end_matches('0'))
    };
    let text = match total {
        0 => "0s".to_owned(),
        1..1_000 => format!("{total}ns"),
        1_000..1_000_000 => format!("{}µs", decimal(total, 1_000)),
        1_000_000..1_000_000_000 => format!("{}ms", decimal(total, 1_000_000)),
        _ => {
            let seconds = decimal(total % 60_000_000_000, 1_000_000_000);
            let minutes = total / 60_000_000_000;
            match (minutes / 60, minutes % 60) {
                (0, 0) => format!("{seconds}s"),
                (0, minutes) => format!("{minutes}m{seconds}s"),
                (hours, minutes) => format!("{hours}h{minutes}m{seconds}s"),
            }
        }
    };
    format!("{sign}{text}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_quoted_as_go_does() {
        for (text, want) in [
            ("a b", r#""a b""#),
            ("\"\\\n\t\u{1}\u{7f}", r#""\"\\\n\t\x01\x7f""#),
            ("é…\u{a0}", "\"é…\\u00a0\""),
            ("e\u{301}", "\"e\u{301}\""),
            ("\u{10ffff}", r#""\U0010ffff""#),
        ] {
            assert_eq!(go_quote(text), want);
        }
    }

    #[test]
    fn durations_are_written_as_go_does() {
        for (ns, want) in [
            (0, "0s"),
            (1, "1ns"),
            (1_500, "1.5µs"),
            (500_000_000, "500ms"),
            (1_500_000_000, "1.5s"),
            (30_000_000_000, "30s"),
            (60_000_000_000, "1m0s"),
            (90_000_000_000, "1m30s"),
            (3_600_000_000_000, "1h0m0s"),
            (i64::MIN, "-2562047h47m16.854775808s"),
        ] {
            assert_eq!(go_duration(ns), want);
        }
    }
}
