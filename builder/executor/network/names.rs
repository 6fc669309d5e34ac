//! Name servers as a step sees them.

use std::net::IpAddr;

use super::Subnet;
use crate::spec::Forward;

/// So many the C library takes notice of.
const MAX_SERVERS: usize = 3;
const DNS: u16 = 53;

/// The machine's resolv.conf for a step with a private network, and what its addresses stand for.
///
/// Servers that are reached as they are stay. One on the machine's own loopback (systemd-resolved, dnsmasq), on IPv6 where the
/// step has none, or of an address that means something else inside, gets an address of the step's network that stands for it.
/// Without any the machine's own programs would ask 127.0.0.1.
#[must_use]
pub fn resolv_conf(text: &str, subnet: &Subnet) -> (String, Vec<Forward>) {
    let mut forwards: Vec<Forward> = Vec::new();
    let mut servers = 0;
    let mut inside = |address: IpAddr| {
        servers += 1;
        if reached_directly(address, subnet) {
            return address;
        }
        let stand_in = IpAddr::from(subnet.resolver(forwards.len().try_into().unwrap_or(u8::MAX)));
        forwards.push(Forward { inside: stand_in, port: Some(DNS), outside: address });
        stand_in
    };
    let mut lines = Vec::new();
    let mut seen = 0;
    for line in text.lines() {
        match nameserver(line) {
            Some(_) if seen == MAX_SERVERS => {}
            Some(address) => {
                seen += 1;
                lines.push(format!("nameserver {}", inside(address)));
            }
            // A server that is named in a way that only means something on the machine, with an interface for one.
            None if line.trim_start().starts_with("nameserver") => {}
            None => lines.push(line.to_owned()),
        }
    }
    if seen == 0 {
        lines.push(format!("nameserver {}", inside(IpAddr::from([127, 0, 0, 1]))));
    }
    (lines.join("\n") + "\n", forwards)
}

fn nameserver(line: &str) -> Option<IpAddr> {
    let mut words = line.split_whitespace();
    if words.next() != Some("nameserver") {
        return None;
    }
    words.next()?.parse().ok()
}

fn reached_directly(address: IpAddr, subnet: &Subnet) -> bool {
    let is_plain = match address {
        IpAddr::V4(address) => !address.is_loopback() && !address.is_unspecified(),
        IpAddr::V6(address) => subnet.v6().is_some() && !address.is_loopback() && !address.is_unicast_link_local(),
    };
    is_plain && !subnet.contains(address)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn converted(text: &str) -> (String, Vec<String>) {
        let (text, forwards) = resolv_conf(text, &Subnet::CANDIDATES[0]);
        let forwards = forwards.iter().map(|forward| format!("{} is {}", forward.inside, forward.outside));
        (text, forwards.collect())
    }

    #[test]
    fn servers_of_the_network_stay() {
        let text = "# made by hand\nsearch example.org\nnameserver 192.0.2.53\noptions edns0\n";
        assert_eq!(converted(text), (text.to_owned(), vec![]));
    }

    #[test]
    fn servers_on_loopback_are_stood_in_for() {
        let (text, forwards) = converted("nameserver 127.0.0.53\noptions edns0 trust-ad\nsearch lan\n");
        assert_eq!(text, "nameserver 10.255.255.227\noptions edns0 trust-ad\nsearch lan\n");
        assert_eq!(forwards, ["10.255.255.227 is 127.0.0.53"]);
        let (text, forwards) = converted("nameserver ::1\nnameserver 192.0.2.1\nnameserver 2001:db8::1\n");
        assert_eq!(text, "nameserver 10.255.255.227\nnameserver 192.0.2.1\nnameserver 10.255.255.228\n");
        assert_eq!(forwards, ["10.255.255.227 is ::1", "10.255.255.228 is 2001:db8::1"]);
    }

    #[test]
    fn without_a_server_the_machine_would_ask_itself() {
        let want = ("nameserver 10.255.255.227\n".to_owned(), vec!["10.255.255.227 is 127.0.0.1".to_owned()]);
        assert_eq!(converted(""), want);
        assert_eq!(converted("nameserver fe80::1%eth0\n"), want);
    }

    #[test]
    fn no_more_servers_than_are_asked() {
        let (text, _) = converted("nameserver 1.1.1.1\nnameserver 2.2.2.2\nnameserver 3.3.3.3\nnameserver 4.4.4.4\n");
        assert!(text.ends_with("nameserver 3.3.3.3\n"), "{text}");
    }
}
