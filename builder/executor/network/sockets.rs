//! What sockets there are in a network namespace.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;

use sys::Named;

/// The counters of a namespace, which need no list of sockets to be read: /proc/net/sockstat as it was opened in there.
#[derive(Debug)]
pub(crate) struct Sockets(File);

impl Sockets {
    /// Those of the namespace that this process is in.
    pub(super) fn of_this_namespace() -> sys::Result<Self> {
        const PATH: &str = "/proc/self/net/sockstat";
        File::open(PATH).map(Self).call(|| format!("open({PATH:?})"))
    }

    /// Whether there is none, of whatever family, and no connection that is closed and waits for what is still under way.
    pub(crate) fn are_none(&self) -> bool {
        let mut text = [0; 512];
        self.0.read_at(&mut text, 0).is_ok_and(|length| says_none(&String::from_utf8_lossy(&text[..length])))
    }
}

impl From<OwnedFd> for Sockets {
    fn from(descriptor: OwnedFd) -> Self {
        Self(descriptor.into())
    }
}

impl AsFd for Sockets {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn says_none(sockstat: &str) -> bool {
    let counter = |line: &str, name: &str| {
        let line = sockstat.lines().find_map(|text| text.strip_prefix(line)?.strip_prefix(':'))?;
        let mut words = line.split_ascii_whitespace();
        words.find(|word| *word == name)?;
        words.next()?.parse::<u64>().ok()
    };
    counter("sockets", "used") == Some(0) && counter("TCP", "tw") == Some(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_understood() {
        let text = |used, waiting| {
            format!("sockets: used {used}\nTCP: inuse 0 orphan 0 tw {waiting} alloc 5 mem 1\nUDP: inuse 0 mem 0\n")
        };
        assert!(says_none(&text(0, 0)));
        assert!(!says_none(&text(1, 0)));
        assert!(!says_none(&text(0, 2)));
        assert!(!says_none("sockets: used 0\n"));
        assert!(!says_none(""));
    }

    #[test]
    fn ours_are_counted() {
        let _socket = std::net::UdpSocket::bind("127.0.0.1:0").expect("bind");
        assert!(!Sockets::of_this_namespace().expect("open").are_none());
    }
}
