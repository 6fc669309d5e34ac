//! Messages with descriptors over a local socket pair.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketFlags, SocketType,
};

use crate::error::{Named, Result};

/// How many descriptors one message may carry.
pub const MAX_DESCRIPTORS: usize = 16;

/// Two connected sockets that keep message borders, both close-on-exec.
pub fn pair() -> Result<(OwnedFd, OwnedFd)> {
    rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
        .call(|| "socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0)".to_owned())
}

/// Sends one message with its descriptors. With `wait` false a full socket is an error (`EAGAIN`).
pub fn send(socket: impl AsFd, message: &[u8], descriptors: &[BorrowedFd<'_>], wait: bool) -> Result<()> {
    let socket = socket.as_fd();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let call = || {
        let numbers: Vec<_> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
        format!("sendmsg({}, {} bytes, descriptors {numbers:?})", socket.as_raw_fd(), message.len())
    };
    if !descriptors.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(rustix::io::Errno::TOOBIG).call(call);
    }
    let flags = SendFlags::NOSIGNAL | if wait { SendFlags::empty() } else { SendFlags::DONTWAIT };
    loop {
        match rustix::net::sendmsg(socket, &[IoSlice::new(message)], &mut ancillary, flags) {
            Err(rustix::io::Errno::INTR) => {}
            other => return other.map(drop).call(call),
        }
    }
}

/// A message as it arrived.
#[derive(Debug, Default)]
pub struct Message {
    /// How many bytes of the buffer it filled; none means that the other side is gone.
    pub length: usize,
    /// The descriptors that came with it, close-on-exec.
    pub descriptors: Vec<OwnedFd>,
}

/// Receives one message. With `wait` false an empty socket is an error (`EAGAIN`).
pub fn receive(socket: impl AsFd, buffer: &mut [u8], wait: bool) -> Result<Message> {
    let socket = socket.as_fd();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC | if wait { RecvFlags::empty() } else { RecvFlags::DONTWAIT };
    let received = loop {
        match rustix::net::recvmsg(socket, &mut [IoSliceMut::new(buffer)], &mut ancillary, flags) {
            Err(rustix::io::Errno::INTR) => {}
            other => break other.call(|| format!("recvmsg({}, {flags:?})", socket.as_raw_fd()))?,
        }
    };
    let mut message = Message { length: received.bytes, descriptors: Vec::new() };
    for part in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(descriptors) = part {
            message.descriptors.extend(descriptors);
        }
    }
    Ok(message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_brings_its_descriptors_and_its_border() {
        let (left, right) = pair().expect("pair");
        let null = std::fs::File::open("/dev/null").expect("open");
        send(&left, b"one", &[null.as_fd()], true).expect("send");
        send(&left, b"two", &[], true).expect("send");
        let mut buffer = [0; 64];
        let first = receive(&right, &mut buffer, true).expect("receive");
        assert_eq!((&buffer[..first.length], first.descriptors.len()), (&b"one"[..], 1));
        let second = receive(&right, &mut buffer, true).expect("receive");
        assert_eq!((&buffer[..second.length], second.descriptors.len()), (&b"two"[..], 0));
        let error = receive(&right, &mut buffer, false).expect_err("nothing is there");
        assert_eq!(error.errno(), rustix::io::Errno::AGAIN);
        drop(left);
        assert_eq!(receive(&right, &mut buffer, true).expect("receive").length, 0);
    }
}
