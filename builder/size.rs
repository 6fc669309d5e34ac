//! Sizes and ages as people write them.

use std::str::FromStr;

use serde::Deserialize;

/// A number of bytes: `500MB`, `20 GB`, `1.5GiB`, `4096`. `MB` counts in thousands, `MiB` and a bare `M` in 1024s.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Written")]
pub struct Size(pub u64);

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("{text:?} is no size: write 500MB, 20GB or 1.5GiB");
        let digits = text.trim().trim_end_matches(|c: char| c.is_ascii_alphabetic() || c == ' ');
        let unit = text.trim()[digits.len()..].trim().to_ascii_lowercase();
        let letters = unit.trim_end_matches('b');
        let (letter, binary) = match letters.strip_suffix('i') {
            Some(letter) => (letter, true),
            None => (letters, unit == letters),
        };
        let power = match letter {
            "" => 0,
            "k" => 1,
            "m" => 2,
            "g" => 3,
            "t" => 4,
            "p" => 5,
            _ => return Err(bad()),
        };
        let number: f64 = digits.parse().map_err(|_| bad())?;
        let bytes = number * (if binary { 1024_f64 } else { 1000_f64 }).powi(power);
        if !(0.0..9e18).contains(&bytes) {
            return Err(bad());
        }
        Ok(Self(bytes as u64))
    }
}

/// In a configuration file it may be a number.
#[derive(Deserialize)]
#[serde(untagged)]
enum Written {
    Number(u64),
    Text(String),
}

impl TryFrom<Written> for Size {
    type Error = String;

    fn try_from(written: Written) -> Result<Self, String> {
        match written {
            Written::Number(bytes) => Ok(Self(bytes)),
            Written::Text(text) => text.parse(),
        }
    }
}

/// The time that a duration (`24h`, `90m`, `7d`) before `now`, a date or a time means.
///
/// # Errors
/// It is none of these.
pub fn moment(text: &str, now: jiff::Timestamp) -> Result<jiff::Timestamp, String> {
    let bad = || format!("{text:?} is neither an age as 24h or 7d nor a time as 2026-01-31T12:00:00Z");
    if let Ok(time) = text.parse::<jiff::Timestamp>() {
        return Ok(time);
    }
    if let Ok(date) = text.parse::<jiff::civil::Date>() {
        return date.to_zoned(jiff::tz::TimeZone::UTC).map(|time| time.timestamp()).map_err(|_| bad());
    }
    let span: jiff::Span = text.parse().map_err(|_| bad())?;
    let age = span.to_duration(jiff::SpanRelativeTo::days_are_24_hours()).map_err(|_| bad())?;
    if age.is_negative() {
        return Err(bad());
    }
    now.checked_sub(age).map_err(|_| bad())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("4096", 4096),
            ("500MB", 500_000_000),
            ("20 GB", 20_000_000_000),
            ("1.5GiB", 1_610_612_736),
            ("2g", 2 << 30),
            ("10kb", 10_000),
            ("0", 0),
        ] {
            assert_eq!(text.parse(), Ok(Size(bytes)), "{text}");
        }
        for text in ["", "GB", "-1GB", "1XB", "1GBB x", "one", "1e40", "NaN"] {
            assert!(text.parse::<Size>().is_err(), "{text}");
        }
    }

    #[test]
    fn ages() {
        let now: jiff::Timestamp = "2026-11-21T12:00:00Z".parse().unwrap();
        for (text, want) in [
            ("24h", "2026-11-20T12:00:00Z"),
            ("1h30m", "2026-11-21T10:30:00Z"),
            ("7d", "2026-11-14T12:00:00Z"),
            ("2026-01-31", "2026-01-31T00:00:00Z"),
            ("2026-01-31T12:00:00Z", "2026-01-31T12:00:00Z"),
        ] {
            assert_eq!(moment(text, now).unwrap().to_string(), want, "{text}");
        }
        for text in ["", "tomorrow", "-3h", "24"] {
            assert!(moment(text, now).is_err(), "{text}");
        }
    }
}
