//! One line of comma-separated values, as RFC 4180 quotes them: the notation of `--mount` and `--device`.

use ecow::EcoString;

/// The fields of the line.
pub(super) fn fields(line: &str) -> Result<Vec<EcoString>, &'static str> {
    let line = line.strip_suffix('\n').map_or(line, |line| line.strip_suffix('\r').unwrap_or(line));
    if line.is_empty() {
        return Err("it is empty");
    }
    let mut fields = Vec::new();
    let mut rest = line;
    loop {
        let (field, next) = match rest.strip_prefix('"') {
            Some(quoted) => quoted_field(quoted)?,
            None => plain_field(rest)?,
        };
        fields.push(field);
        match next {
            Some(next) => rest = next,
            None => return Ok(fields),
        }
    }
}

type Field<'a> = (EcoString, Option<&'a str>);

fn plain_field(text: &str) -> Result<Field<'_>, &'static str> {
    let (field, next) = match text.split_once(',') {
        Some((field, next)) => (field, Some(next)),
        None => (text, None),
    };
    if field.contains('"') {
        return Err("a quote may only stand at the beginning of a field");
    }
    Ok((EcoString::from(field), next))
}

/// `text` begins behind the opening quote.
fn quoted_field(mut text: &str) -> Result<Field<'_>, &'static str> {
    let mut field = String::new();
    loop {
        let (part, next) = text.split_once('"').ok_or("a quoted field does not end")?;
        field.push_str(part);
        if next.is_empty() {
            return Ok((field.into(), None));
        }
        if let Some(next) = next.strip_prefix(',') {
            return Ok((field.into(), Some(next)));
        }
        text = next.strip_prefix('"').ok_or("a quote inside a quoted field must be doubled")?;
        field.push('"');
    }
}

#[cfg(test)]
mod tests {
    use ecow::EcoString;

    use super::fields;

    #[test]
    fn quoting() {
        for (line, expected) in [
            ("a,b", Some(vec!["a", "b"])),
            ("a,,", Some(vec!["a", "", ""])),
            (r#""a,b",c"#, Some(vec!["a,b", "c"])),
            (r#""a""b""#, Some(vec!["a\"b"])),
            (r#""""#, Some(vec![""])),
            ("a\n", Some(vec!["a"])),
            ("a\r\n", Some(vec!["a"])),
            ("", None),
            ("\n", None),
            (r#"a"b"#, None),
            (r#""a"#, None),
            (r#""a"b"#, None),
        ] {
            let expected = expected.map(|fields| fields.into_iter().map(EcoString::from).collect::<Vec<_>>());
            assert_eq!(fields(line).ok(), expected, "{line:?}");
        }
    }
}
