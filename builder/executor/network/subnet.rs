//! The addresses of a step's private network. Every step has the same: each is alone in its own.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

/// Sixteen addresses that the machine has no route to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subnet {
    base: [u8; 4],
    v6: bool,
}

/// The same for IPv6.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct V6 {
    pub(crate) own: Ipv6Addr,
    pub(crate) gateway: Ipv6Addr,
    pub(crate) prefix: u8,
}

const PREFIX: u8 = 28;

impl Subnet {
    /// Where to look, best first: out of the ends of ranges for private use that others seldom take.
    pub(crate) const CANDIDATES: [Self; 5] = [
        Self { base: [10, 255, 255, 224], v6: false },
        Self { base: [172, 31, 255, 224], v6: false },
        Self { base: [192, 168, 255, 224], v6: false },
        Self { base: [100, 127, 255, 224], v6: false },
        Self { base: [198, 19, 255, 224], v6: false },
    ];

    /// One that nothing of the machine's network lies in; should all be taken, the last, for some of its addresses may be
    /// unused all the same.
    pub(crate) fn choose(routes: &str, v6: bool) -> Self {
        let taken = routes_of(routes);
        let free = |subnet: &&Self| {
            let own = u32::from(Ipv4Addr::from(subnet.base));
            // Who has more of the range than we is told apart by his own prefix, who has the whole of it (10.0.0.0/8) too.
            taken.iter().all(|(network, mask)| {
                let both = mask & mask_of(PREFIX);
                *mask == 0 || own & both != network & both
            })
        };
        let chosen = Self::CANDIDATES.iter().find(free).or(Self::CANDIDATES.last());
        Self { v6, ..*chosen.unwrap_or(&Self::CANDIDATES[0]) }
    }

    /// The step's own address.
    pub fn own(&self) -> Ipv4Addr {
        self.address(2)
    }

    /// Where everything goes that has no other way.
    pub fn gateway(&self) -> Ipv4Addr {
        self.address(1)
    }

    /// Stands for the machine's `n`th name server, as far as there is room.
    pub fn resolver(&self, n: u8) -> Ipv4Addr {
        self.address(3 + n.min(11))
    }

    pub(crate) fn prefix(&self) -> u8 {
        PREFIX
    }

    pub(crate) fn v6(&self) -> Option<V6> {
        let address = |last| Ipv6Addr::new(0xfd72, 0x6275, 0x696c, 0x6400, 0, 0, 0, last);
        self.v6.then(|| V6 { own: address(2), gateway: address(1), prefix: 64 })
    }

    /// Whether an address is one of these.
    pub(crate) fn contains(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => u32::from(address) & mask_of(PREFIX) == u32::from(Ipv4Addr::from(self.base)),
            IpAddr::V6(address) => self.v6().is_some_and(|v6| address.segments()[..4] == v6.gateway.segments()[..4]),
        }
    }

    fn address(&self, last: u8) -> Ipv4Addr {
        let [a, b, c, d] = self.base;
        Ipv4Addr::new(a, b, c, d + last)
    }

    #[cfg(test)]
    pub(crate) fn with_v6(self) -> Self {
        Self { v6: true, ..self }
    }
}

fn mask_of(prefix: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0)
}

/// Network and mask of each line of /proc/net/route.
fn routes_of(text: &str) -> Vec<(u32, u32)> {
    let line = |line: &str| {
        let mut fields = line.split_whitespace();
        // The numbers are in the order of the network, printed as the processor reads them.
        let number = |text: &str| u32::from_str_radix(text, 16).ok().map(u32::to_be);
        Some((number(fields.nth(1)?)?, number(fields.nth(5)?)?))
    };
    text.lines().skip(1).filter_map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROUTES: &str = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n\
        eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
        eth0\t000200C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n";

    #[test]
    #[cfg(target_endian = "little")]
    fn routes_are_read_and_avoided() {
        assert_eq!(routes_of(ROUTES), [(0, 0), (0xc000_0200, 0xffff_ff00)]);
        let chosen = |more: &str| Subnet::choose(&format!("{ROUTES}{more}"), false).gateway().to_string();
        assert_eq!(chosen(""), "10.255.255.225");
        // 10.0.0.0/8
        assert_eq!(chosen("a\t0000000A\t0\t1\t0\t0\t0\t000000FF\t0\t0\t0\n"), "172.31.255.225");
        // One of our own addresses, 10.255.255.226/32.
        assert_eq!(chosen("a\tE2FFFF0A\t0\t1\t0\t0\t0\tFFFFFFFF\t0\t0\t0\n"), "172.31.255.225");
        assert_eq!(chosen("garbage\n"), "10.255.255.225");
    }

    #[test]
    fn addresses_are_in_their_subnet() {
        for subnet in Subnet::CANDIDATES.map(Subnet::with_v6) {
            for address in [subnet.own(), subnet.gateway(), subnet.resolver(0), subnet.resolver(200)] {
                assert!(subnet.contains(address.into()), "{address}");
            }
            let v6 = subnet.v6().expect("asked for");
            assert!(subnet.contains(v6.own.into()) && subnet.contains(v6.gateway.into()));
            assert!(!subnet.contains("10.255.255.1".parse().expect("address")));
            assert!(!subnet.contains("fd00::1".parse().expect("address")));
        }
    }
}
