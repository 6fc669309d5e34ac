//! Packets of IP, as far as they are not left to the TCP stack: taken apart, and made.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

pub(super) const TCP: u8 = 6;
pub(super) const UDP: u8 = 17;
pub(super) const ICMP: u8 = 1;
pub(super) const ICMPV6: u8 = 58;

/// One packet that arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Packet<'bytes> {
    pub(super) source: IpAddr,
    pub(super) destination: IpAddr,
    pub(super) protocol: u8,
    pub(super) payload: &'bytes [u8],
}

impl<'bytes> Packet<'bytes> {
    /// `None` for what is damaged, a fragment, or has extension headers: the step's kernel sends none of these to an interface
    /// that takes packets as large as ours.
    pub(super) fn parse(bytes: &'bytes [u8]) -> Option<Self> {
        match bytes.first()? >> 4 {
            4 => {
                let header = usize::from(bytes[0] & 0xf) * 4;
                let total = usize::from(number(bytes, 2)?);
                let is_fragment = number(bytes, 6)? & 0x3fff != 0;
                if header < 20 || total < header || is_fragment {
                    return None;
                }
                Some(Self {
                    source: Ipv4Addr::from(<[u8; 4]>::try_from(bytes.get(12..16)?).ok()?).into(),
                    destination: Ipv4Addr::from(<[u8; 4]>::try_from(bytes.get(16..20)?).ok()?).into(),
                    protocol: bytes[9],
                    payload: bytes.get(header..total)?,
                })
            }
            6 => {
                let length = usize::from(number(bytes, 4)?);
                Some(Self {
                    source: Ipv6Addr::from(<[u8; 16]>::try_from(bytes.get(8..24)?).ok()?).into(),
                    destination: Ipv6Addr::from(<[u8; 16]>::try_from(bytes.get(24..40)?).ok()?).into(),
                    protocol: bytes[6],
                    payload: bytes.get(40..40 + length)?,
                })
            }
            _ => None,
        }
    }

    /// Both ends, for a protocol whose header begins with two ports.
    pub(super) fn ends(&self) -> Option<(SocketAddr, SocketAddr)> {
        let (from, to) = (number(self.payload, 0)?, number(self.payload, 2)?);
        Some((SocketAddr::new(self.source, from), SocketAddr::new(self.destination, to)))
    }

    /// Whether it asks for a new connection.
    pub(super) fn opens_connection(&self) -> bool {
        const FIN_SYN_RST_ACK: u8 = 0x17;
        const SYN: u8 = 0x02;
        self.protocol == TCP && self.payload.get(13).is_some_and(|flags| flags & FIN_SYN_RST_ACK == SYN)
    }

    /// What a UDP packet carries.
    pub(super) fn data(&self) -> Option<&'bytes [u8]> {
        let length = usize::from(number(self.payload, 4)?);
        self.payload.get(8..length)
    }

    /// Identifier of an echo request.
    pub(super) fn echo_request(&self) -> Option<u16> {
        let is_request = matches!((self.protocol, self.payload.first()?), (ICMP, 8) | (ICMPV6, 128));
        if is_request { number(self.payload, 4) } else { None }
    }
}

/// Why something cannot be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unreachable {
    Host,
    Port,
    Prohibited,
}

/// A UDP packet.
pub(super) fn datagram(from: SocketAddr, to: SocketAddr, data: &[u8]) -> Option<Vec<u8>> {
    let length = u16::try_from(8 + data.len()).ok()?;
    let mut udp = Vec::with_capacity(8 + data.len());
    for field in [from.port(), to.port(), length, 0] {
        udp.extend_from_slice(&field.to_be_bytes());
    }
    udp.extend_from_slice(data);
    let sum = match checksum(pseudo_header(from.ip(), to.ip(), UDP, udp.len()), &udp) {
        // Zero would mean that there is none.
        0 => 0xffff,
        sum => sum,
    };
    udp[6..8].copy_from_slice(&sum.to_be_bytes());
    packet(from.ip(), to.ip(), UDP, &udp)
}

/// The answer to an echo request, made of the ICMP message that came back for ours.
pub(super) fn echo_reply(from: IpAddr, to: IpAddr, identifier: u16, message: &[u8]) -> Option<Vec<u8>> {
    let mut message = message.to_vec();
    let is_reply = matches!((from, message.first()?), (IpAddr::V4(_), 0) | (IpAddr::V6(_), 129));
    if !is_reply {
        return None;
    }
    message.get_mut(4..6)?.copy_from_slice(&identifier.to_be_bytes());
    control(from, to, message)
}

/// Says to the sender of a packet (its first bytes) that it cannot be delivered.
pub(super) fn unreachable(original: &[u8], why: Unreachable) -> Option<Vec<u8>> {
    let refused = Packet::parse(original)?;
    // What is sent back is told by its own header and the first bytes after it.
    let header = original.len() - refused.payload.len();
    let quoted = &original[..original.len().min(header + 64)];
    let (kind, code) = match (refused.source, why) {
        (IpAddr::V4(_), Unreachable::Host) => (3, 1),
        (IpAddr::V4(_), Unreachable::Port) => (3, 3),
        (IpAddr::V4(_), Unreachable::Prohibited) => (3, 13),
        (IpAddr::V6(_), Unreachable::Host) => (1, 3),
        (IpAddr::V6(_), Unreachable::Port) => (1, 4),
        (IpAddr::V6(_), Unreachable::Prohibited) => (1, 1),
    };
    let message = [&[kind, code, 0, 0, 0, 0, 0, 0][..], quoted].concat();
    control(refused.destination, refused.source, message)
}

/// A packet of ICMP, its checksum filled in.
fn control(from: IpAddr, to: IpAddr, mut message: Vec<u8>) -> Option<Vec<u8>> {
    message.get_mut(2..4)?.fill(0);
    let (protocol, start) = match from {
        IpAddr::V4(_) => (ICMP, 0),
        IpAddr::V6(_) => (ICMPV6, pseudo_header(from, to, ICMPV6, message.len())),
    };
    let sum = checksum(start, &message);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    packet(from, to, protocol, &message)
}

fn packet(from: IpAddr, to: IpAddr, protocol: u8, payload: &[u8]) -> Option<Vec<u8>> {
    const HOPS: u8 = 64;
    let mut packet = Vec::with_capacity(40 + payload.len());
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let length = u16::try_from(20 + payload.len()).ok()?;
            packet.extend_from_slice(&[0x45, 0]);
            packet.extend_from_slice(&length.to_be_bytes());
            // No identification, not to be fragmented, no checksum yet.
            packet.extend_from_slice(&[0, 0, 0x40, 0, HOPS, protocol, 0, 0]);
            packet.extend_from_slice(&from.octets());
            packet.extend_from_slice(&to.octets());
            let sum = checksum(0, &packet);
            packet[10..12].copy_from_slice(&sum.to_be_bytes());
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let length = u16::try_from(payload.len()).ok()?;
            packet.extend_from_slice(&[0x60, 0, 0, 0]);
            packet.extend_from_slice(&length.to_be_bytes());
            packet.extend_from_slice(&[protocol, HOPS]);
            packet.extend_from_slice(&from.octets());
            packet.extend_from_slice(&to.octets());
        }
        _ => return None,
    }
    packet.extend_from_slice(payload);
    Some(packet)
}

/// The sum over what the checksums of UDP and ICMPv6 take in besides the message.
fn pseudo_header(from: IpAddr, to: IpAddr, protocol: u8, length: usize) -> u64 {
    let address = |address: IpAddr| match address {
        IpAddr::V4(address) => sum(&address.octets()),
        IpAddr::V6(address) => sum(&address.octets()),
    };
    address(from) + address(to) + u64::from(protocol) + length as u64
}

fn checksum(start: u64, bytes: &[u8]) -> u16 {
    let mut total = start + sum(bytes);
    while total > 0xffff {
        total = (total & 0xffff) + (total >> 16);
    }
    !(total as u16)
}

fn sum(bytes: &[u8]) -> u64 {
    let pairs = bytes.chunks(2).map(|pair| u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or_default()]));
    pairs.map(u64::from).sum()
}

fn number(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use smoltcp::phy::ChecksumCapabilities;
    use smoltcp::wire::{Icmpv4Packet, Icmpv4Repr, Ipv4Packet, Ipv6Packet, UdpPacket};

    fn ends(text: [&str; 2]) -> (SocketAddr, SocketAddr) {
        (text[0].parse().expect("address"), text[1].parse().expect("address"))
    }

    #[test]
    fn datagrams_are_as_another_implementation_wants_them() {
        let (from, to) = ends(["10.0.0.1:53", "10.0.0.2:4000"]);
        let bytes = datagram(from, to, b"odd").expect("packet");
        let ip = Ipv4Packet::new_checked(&bytes[..]).expect("IPv4");
        assert!(ip.verify_checksum());
        let udp = UdpPacket::new_checked(ip.payload()).expect("UDP");
        assert!(udp.verify_checksum(&from.ip().into(), &to.ip().into()));
        assert_eq!((udp.src_port(), udp.dst_port(), udp.payload()), (53, 4000, &b"odd"[..]));

        let (from, to) = ends(["[fd00::1]:53", "[fd00::2]:4000"]);
        let bytes = datagram(from, to, b"even").expect("packet");
        let ip = Ipv6Packet::new_checked(&bytes[..]).expect("IPv6");
        assert!(UdpPacket::new_checked(ip.payload()).expect("UDP").verify_checksum(&from.ip().into(), &to.ip().into()));
        let parsed = Packet::parse(&bytes).expect("our own");
        assert_eq!((parsed.ends(), parsed.data()), (Some((from, to)), Some(&b"even"[..])));
    }

    #[test]
    fn what_cannot_be_delivered_is_told_with_its_header() {
        let (from, to) = ends(["10.0.0.2:4000", "192.0.2.1:9"]);
        let original = datagram(from, to, &[7; 20]).expect("packet");
        let answer = unreachable(&original, Unreachable::Port).expect("packet");
        let ip = Ipv4Packet::new_checked(&answer[..]).expect("IPv4");
        let icmp = Icmpv4Packet::new_checked(ip.payload()).expect("ICMP");
        assert!(icmp.verify_checksum());
        let repr = Icmpv4Repr::parse(&icmp, &ChecksumCapabilities::default()).expect("a known message");
        let Icmpv4Repr::DstUnreachable { header, data, .. } = repr else { panic!("{repr:?}") };
        assert_eq!((IpAddr::from(header.src_addr), IpAddr::from(header.dst_addr)), (from.ip(), to.ip()));
        assert_eq!(data[..2], 4000_u16.to_be_bytes());
    }

    #[test]
    fn fragments_and_pieces_are_refused() {
        let (from, to) = ends(["10.0.0.2:4000", "192.0.2.1:9"]);
        let whole = datagram(from, to, b"data").expect("packet");
        for length in 0..whole.len() {
            assert_eq!(Packet::parse(&whole[..length]), None, "{length}");
        }
        let mut fragment = whole.clone();
        fragment[6] = 0x20;
        assert_eq!(Packet::parse(&fragment), None);
    }

    proptest! {
        #[test]
        fn whatever_arrives_is_taken_apart_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200), four in any::<bool>()) {
            let mut bytes = bytes;
            if let Some(first) = bytes.first_mut() {
                *first = *first & 0xf | if four { 0x40 } else { 0x60 };
            }
            if let Some(packet) = Packet::parse(&bytes) {
                let _ = (packet.ends(), packet.opens_connection(), packet.data(), packet.echo_request());
                let _ = unreachable(&bytes, Unreachable::Host);
                let _ = echo_reply(packet.source, packet.destination, 1, packet.payload);
            }
        }
    }
}
