//! Where a step's packets may go.

use std::net::{IpAddr, SocketAddr};

use crate::network::Subnet;
use crate::spec::Gateway;

/// Decides for every destination that a step names, where rbuild connects to.
#[derive(Debug)]
pub(super) struct Policy {
    gateway: Gateway,
    subnet: Subnet,
}

impl Policy {
    pub(super) fn new(gateway: Gateway, subnet: Subnet) -> Self {
        Self { gateway, subnet }
    }

    /// What a step's destination is outside; nothing for what a step has no business with.
    ///
    /// The machine's own loopback is out of reach by any spelling. Its other addresses are reached, as from any other machine of
    /// its network.
    pub(super) fn target(&self, destination: SocketAddr) -> Option<SocketAddr> {
        let forward = self.gateway.forwards.iter().find(|forward| {
            forward.inside == destination.ip() && forward.port.is_none_or(|port| port == destination.port())
        });
        if let Some(forward) = forward {
            return Some(SocketAddr::new(forward.outside, destination.port()));
        }
        let is_public = destination.port() != 0 && may_be_reached(destination.ip());
        (is_public && !self.subnet.contains(destination.ip())).then_some(destination)
    }
}

/// Whether an address is that of one machine outside. The kernel takes the unspecified address for loopback.
fn may_be_reached(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => {
            let this_network = address.octets()[0] == 0;
            !(this_network || address.is_loopback() || address.is_multicast() || address.is_broadcast())
        }
        IpAddr::V6(address) => {
            // Both ways to write an address of IPv4; link-local ones need an interface to mean anything.
            let holds_ipv4 = address.segments()[..5] == [0; 5] && matches!(address.segments()[5], 0 | 0xffff);
            !(holds_ipv4 || address.is_loopback() || address.is_multicast() || address.is_unicast_link_local())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::Forward;

    #[test]
    fn loopback_is_out_of_reach_by_any_spelling() {
        let policy = Policy::new(Gateway::default(), Subnet::CANDIDATES[0].with_v6());
        for refused in [
            "127.0.0.1:80",
            "127.255.1.2:80",
            "0.0.0.0:80",
            "0.1.2.3:80",
            "255.255.255.255:80",
            "224.0.0.251:5353",
            "192.0.2.1:0",
            "[::1]:80",
            "[::]:80",
            "[::ffff:127.0.0.1]:80",
            "[::ffff:192.0.2.1]:80",
            "[::127.0.0.1]:80",
            "[fe80::1]:80",
            "[ff02::fb]:5353",
        ] {
            assert_eq!(policy.target(refused.parse().expect("address")), None, "{refused}");
        }
        for reached in ["192.0.2.1:80", "10.1.2.3:22", "169.254.169.254:80", "[2001:db8::1]:443", "[fd12::2]:5000"] {
            let reached = reached.parse().expect("address");
            assert_eq!(policy.target(reached), Some(reached));
        }
    }

    #[test]
    fn addresses_of_the_steps_own_network_lead_only_where_they_are_said_to_lead() {
        let subnet = Subnet::CANDIDATES[0].with_v6();
        let (gateway, resolver) = (IpAddr::V4(subnet.gateway()), IpAddr::V4(subnet.resolver(0)));
        let forwards = vec![
            Forward { inside: gateway, port: None, outside: "192.0.2.2".parse().expect("address") },
            Forward { inside: resolver, port: Some(53), outside: "127.0.0.53".parse().expect("address") },
        ];
        let policy = Policy::new(Gateway { forwards }, subnet);
        let target = |ip: IpAddr, port| policy.target(SocketAddr::new(ip, port)).map(|target| target.to_string());
        assert_eq!(target(gateway, 8080).as_deref(), Some("192.0.2.2:8080"));
        assert_eq!(target(resolver, 53).as_deref(), Some("127.0.0.53:53"));
        assert_eq!(target(resolver, 54), None);
        assert_eq!(target(subnet.own().into(), 80), None);
    }
}
