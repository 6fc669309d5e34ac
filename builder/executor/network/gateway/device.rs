//! The far side of a step's interface: packets out of frames, and frames around packets.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};
use smoltcp::phy::{self, Checksum, DeviceCapabilities, Medium};
use smoltcp::time::Instant;

use crate::network::{FAR_ADDRESS, MTU, NEAR_ADDRESS};

/// Two addresses and a type.
const HEADER: usize = 14;

/// What the TCP stack takes for its network card: it is handed one packet at a time.
pub(super) struct Device {
    frames: OwnedFd,
    arrived: Vec<u8>,
    /// The packet in `arrived` that the stack has not seen yet.
    pending: Option<usize>,
    leaving: Vec<u8>,
}

impl Device {
    pub(super) fn new(frames: OwnedFd) -> Self {
        Self { frames, arrived: vec![0; HEADER + usize::from(u16::MAX) + 1], pending: None, leaving: Vec::new() }
    }

    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.frames.as_fd()
    }

    /// Receives the next packet; `Ok(None)` when nothing is left to be read.
    pub(super) fn read(&mut self) -> Result<Option<&[u8]>, Errno> {
        loop {
            let length = match rustix::net::recv(&self.frames, &mut self.arrived[..], RecvFlags::DONTWAIT) {
                Ok((length, _)) => length,
                Err(Errno::AGAIN) => return Ok(None),
                Err(Errno::INTR) => continue,
                Err(error) => return Err(error),
            };
            // Kernels before 4.20 show us what we sent ourselves.
            if length > HEADER && self.arrived[6..12] == NEAR_ADDRESS {
                self.pending = Some(length);
                return Ok(Some(&self.arrived[HEADER..length]));
            }
        }
    }

    /// Makes a packet that was kept the one that the stack sees next.
    pub(super) fn replay(&mut self, packet: &[u8]) {
        let end = HEADER + packet.len();
        if let Some(room) = self.arrived.get_mut(HEADER..end) {
            room.copy_from_slice(packet);
            self.pending = Some(end);
        }
    }

    /// The packet that was read last is none for the stack.
    pub(super) fn discard(&mut self) {
        self.pending = None;
    }

    /// Sends a packet. One that is lost is lost as in any network.
    pub(super) fn send(&mut self, packet: &[u8]) {
        begin(&mut self.leaving, packet.len(), packet.first().copied());
        self.leaving[HEADER..].copy_from_slice(packet);
        rustix::net::send(&self.frames, &self.leaving, SendFlags::empty()).ok();
    }
}

/// Makes room for a packet behind a header for it.
fn begin(frame: &mut Vec<u8>, length: usize, first: Option<u8>) {
    frame.resize(HEADER + length, 0);
    frame[..6].copy_from_slice(&NEAR_ADDRESS);
    frame[6..12].copy_from_slice(&FAR_ADDRESS);
    set_type(frame, first);
}

fn set_type(frame: &mut [u8], first: Option<u8>) {
    let kind = if first.is_some_and(|byte| byte >> 4 == 6) { libc::ETH_P_IPV6 } else { libc::ETH_P_IP };
    frame[12..14].copy_from_slice(&(kind as u16).to_be_bytes());
}

impl phy::Device for Device {
    type RxToken<'a> = Received<'a>;
    type TxToken<'a> = Sending<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Received<'_>, Sending<'_>)> {
        let end = self.pending.take()?;
        let sending = Sending { frames: &self.frames, frame: &mut self.leaving };
        Some((Received(&self.arrived[HEADER..end]), sending))
    }

    fn transmit(&mut self, _: Instant) -> Option<Sending<'_>> {
        Some(Sending { frames: &self.frames, frame: &mut self.leaving })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = MTU as usize;
        // The step's kernel leaves them to a network card that does not exist; nothing gets damaged on the way.
        capabilities.checksum.ipv4 = Checksum::Tx;
        capabilities.checksum.tcp = Checksum::Tx;
        capabilities
    }
}

/// A packet for the stack.
pub(super) struct Received<'device>(&'device [u8]);

impl phy::RxToken for Received<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.0)
    }
}

/// The right to send one packet.
pub(super) struct Sending<'device> {
    frames: &'device OwnedFd,
    frame: &'device mut Vec<u8>,
}

impl phy::TxToken for Sending<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, f: F) -> R {
        begin(self.frame, length, None);
        let result = f(&mut self.frame[HEADER..]);
        let first = self.frame.get(HEADER).copied();
        set_type(self.frame, first);
        rustix::net::send(self.frames, self.frame, SendFlags::empty()).ok();
        result
    }
}
