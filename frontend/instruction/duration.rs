//! Durations as Go writes them: `1m30s`, `1.5h`, `-3us`.

const UNITS: [(&str, u64); 8] = [
    ("ns", 1),
    ("us", 1_000),
    ("µs", 1_000),
    ("μs", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
];

/// Nanoseconds; `None` if the text is no duration or does not fit.
pub(super) fn parse(text: &str) -> Option<i64> {
    let (negative, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Some(0);
    }
    if rest.is_empty() {
        return None;
    }
    let mut total: u64 = 0;
    while !rest.is_empty() {
        let (whole, after) = digits(rest);
        let (fraction, after) = after.strip_prefix('.').map_or(("", after), digits);
        if whole.is_empty() && fraction.is_empty() {
            return None;
        }
        let end = after.find(|c: char| c == '.' || c.is_ascii_digit()).unwrap_or(after.len());
        let (unit, after) = after.split_at(end);
        let (_, unit) = UNITS.iter().find(|(name, _)| *name == unit)?;
        let whole: u64 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
        // More digits than these do not change a nanosecond.
        let kept = &fraction[..fraction.len().min(18)];
        let fraction: f64 = if kept.is_empty() { 0.0 } else { format!("0.{kept}").parse().ok()? };
        let part = whole.checked_mul(*unit)?.checked_add((fraction * *unit as f64) as u64)?;
        total = total.checked_add(part).filter(|total| *total <= 1 << 63)?;
        rest = after;
    }
    if negative { 0i64.checked_sub_unsigned(total) } else { i64::try_from(total).ok() }
}

fn digits(text: &str) -> (&str, &str) {
    text.split_at(text.bytes().take_while(u8::is_ascii_digit).count())
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn go_durations() {
        const S: i64 = 1_000_000_000;
        for (text, expected) in [
            ("0", Some(0)),
            ("0s", Some(0)),
            ("5s", Some(5 * S)),
            ("1m30s", Some(90 * S)),
            ("1.5h", Some(5400 * S)),
            (".5s", Some(S / 2)),
            ("1.s", Some(S)),
            ("-2ms", Some(-2_000_000)),
            ("+1us", Some(1000)),
            ("1µs", Some(1000)),
            ("1μs", Some(1000)),
            ("0.3000000000000000000000001s", Some(300_000_000)),
            ("9223372036854775807ns", Some(i64::MAX)),
            ("-9223372036854775808ns", Some(i64::MIN)),
            ("9223372036854775808ns", None),
            ("99999999999999999999h", None),
            ("5", None),
            ("", None),
            ("s", None),
            (".s", None),
            ("1d", None),
            ("1 s", None),
            ("1s ", None),
            ("-", None),
        ] {
            assert_eq!(parse(text), expected, "{text}");
        }
    }
}
