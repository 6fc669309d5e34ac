//! EXPOSE: `80`, `8000-8002/udp`, and the forms with a host's address and port that Docker tolerates.

use std::net::IpAddr;

/// A port specification as `port/protocol` entries.
pub(crate) fn ports(text: &str) -> Result<Vec<String>, String> {
    let (address, host, container) = split(text);
    let (range, protocol) = container.split_once('/').unwrap_or((container, ""));
    if range.is_empty() {
        return Err(format!("invalid port: {text:?}: no port specified"));
    }
    let protocol = match protocol.to_ascii_lowercase() {
        empty if empty.is_empty() => "tcp".to_owned(),
        known if matches!(known.as_str(), "tcp" | "udp" | "sctp") => known,
        _ => return Err(format!("invalid port: {text:?}: invalid proto: {protocol}")),
    };
    if !address.is_empty() {
        let bare = address.strip_prefix('[').and_then(|address| address.strip_suffix(']')).unwrap_or(address);
        if bare.parse::<IpAddr>().is_err() {
            return Err(format!("invalid IP address: {bare}"));
        }
    }
    let (first, last) = port_range(range).ok_or_else(|| format!("invalid containerPort: {range}"))?;
    if !host.is_empty() {
        let (host_first, host_last) = port_range(host).ok_or_else(|| format!("invalid hostPort: {host}"))?;
        if last - first != host_last - host_first && last != first {
            return Err(format!("invalid ranges specified for container and host Ports: {range} and {host}"));
        }
    }
    Ok((first..=last).map(|port| format!("{port}/{protocol}")).collect())
}

/// `[address:]host:container`
fn split(text: &str) -> (&str, &str, &str) {
    match text.rsplit_once(':') {
        None => ("", "", text),
        Some((rest, container)) => match rest.rsplit_once(':') {
            None => ("", rest, container),
            Some((address, host)) => (address, host, container),
        },
    }
}

fn port_range(text: &str) -> Option<(u16, u16)> {
    // Go's numbers may have a sign.
    let number = |text: &str| text.parse::<i64>().ok().and_then(|port| u16::try_from(port).ok());
    match text.split_once('-') {
        None => number(text).map(|port| (port, port)),
        Some((first, last)) if first == last => number(first).map(|port| (port, port)),
        Some((first, last)) => {
            let (first, last) = (number(first)?, number(last)?);
            (first <= last).then_some((first, last))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::ports;

    #[test]
    fn ports_and_ranges() {
        for (text, want) in [
            ("80", "80/tcp"),
            ("53/UDP", "53/udp"),
            ("8000-8002/sctp", "8000/sctp 8001/sctp 8002/sctp"),
            ("8080:80", "80/tcp"),
            ("127.0.0.1:8080-8090:80", "80/tcp"),
            ("[::1]:1:2", "2/tcp"),
            ("0", "0/tcp"),
            ("+1", "1/tcp"),
            ("5-5", "5/tcp"),
        ] {
            assert_eq!(ports(text).unwrap().join(" "), want, "{text}");
        }
        for text in ["", "/tcp", "80/x", "x", "65536", "2-1", "a:80", "x:1:2", "1-3:1-2", "-1", "5-", "-"] {
            assert!(ports(text).is_err(), "{text}");
        }
    }
}
