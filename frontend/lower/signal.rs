//! The signals that STOPSIGNAL can name.

/// Linux's, without `SIG`.
pub(super) const NAMES: [&str; 35] = [
    "ABRT", "ALRM", "BUS", "CHLD", "CLD", "CONT", "FPE", "HUP", "ILL", "INT", "IO", "IOT", "KILL", "PIPE", "POLL",
    "PROF", "PWR", "QUIT", "SEGV", "STKFLT", "STOP", "SYS", "TERM", "TRAP", "TSTP", "TTIN", "TTOU", "URG", "USR1",
    "USR2", "VTALRM", "WINCH", "XCPU", "XFSZ", "RTMIN",
];

/// A number other than 0, or a name in any case, with or without `SIG`; real-time signals as `RTMIN+n` and `RTMAX-n`.
pub(super) fn is_known(text: &str) -> bool {
    if let Ok(number) = text.parse::<i64>() {
        return number != 0;
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let realtime = |prefix: &str, most: u8| {
        name.strip_prefix(prefix)
            .is_some_and(|n| !n.starts_with(['0', '+']) && n.parse::<u8>().is_ok_and(|n| n <= most))
    };
    NAMES.contains(&name) || name == "RTMAX" || realtime("RTMIN+", 15) || realtime("RTMAX-", 14)
}

#[cfg(test)]
mod tests {
    #[test]
    fn names_and_numbers() {
        for known in ["9", "SIGTERM", "term", "sigrtmin+3", "RTMAX-14", "SIGRTMAX", "64"] {
            assert!(super::is_known(known), "{known}");
        }
        for unknown in ["", "0", "SIGFOO", "RTMIN+16", "RTMAX-15", "RTMIN+0", "SIG"] {
            assert!(!super::is_known(unknown), "{unknown}");
        }
    }
}
