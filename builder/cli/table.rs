//! What lists look like.

/// Columns as wide as their widest cell, three spaces between them, as docker prints them.
pub(super) fn table(head: &[&str], rows: Vec<Vec<String>>) -> String {
    let head: Vec<String> = head.iter().map(|&cell| cell.to_owned()).collect();
    let all: Vec<Vec<String>> = std::iter::once(head).chain(rows).collect();
    let columns = all[0].len();
    let width = |column: usize| all.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in &all {
        let cells = row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:width$}"));
        text.push_str(cells.collect::<Vec<_>>().join("   ").trim_end());
        text.push('\n');
    }
    text
}

/// How long ago, in words.
pub(super) fn ago(time: Option<jiff::Timestamp>) -> String {
    let Some(time) = time else { return "N/A".into() };
    let seconds = jiff::Timestamp::now().as_second().saturating_sub(time.as_second()).max(0);
    let (count, unit) = match seconds {
        0 => return "Less than a second ago".into(),
        1..60 => (seconds, "second"),
        60..3_600 => (seconds / 60, "minute"),
        3_600..172_800 => (seconds / 3_600, "hour"),
        172_800..1_209_600 => (seconds / 86_400, "day"),
        1_209_600..5_184_000 => (seconds / 604_800, "week"),
        5_184_000..63_072_000 => (seconds / 2_592_000, "month"),
        _ => (seconds / 31_536_000, "year"),
    };
    format!("{count} {unit}{} ago", if count == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let text = table(&["A", "LONG"], vec![vec!["abc".into(), "x".into()], vec!["d".into(), String::new()]]);
        assert_eq!(text, "A     LONG\nabc   x\nd\n");
    }

    #[test]
    fn times_are_told_in_words() {
        let before = |seconds: i64| {
            let now = jiff::Timestamp::now();
            ago(now.checked_sub(jiff::SignedDuration::from_secs(seconds)).ok())
        };
        assert_eq!(before(90), "1 minute ago");
        assert_eq!(before(7_300), "2 hours ago");
        assert_eq!(before(86_400 * 40), "5 weeks ago");
        assert_eq!(ago(None), "N/A");
    }
}
