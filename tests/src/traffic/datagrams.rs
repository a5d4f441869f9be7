//! The datagram stream: the client numbers each, the VM answers each with a count of its own, both filled with known
//! bytes. Layout, little endian: magic u32, zero u32, sequence u64, count u64 (zero on the way up), then pattern.

use std::collections::HashMap;
use std::io::{self, IoSlice, IoSliceMut};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use nix::cmsg_space;
use nix::libc;
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, sendmsg, setsockopt, sockopt,
};

use super::{clock, pattern};

/// Length of every datagram's payload in bytes: a voice call's.
pub(super) const LENGTH: usize = 210;
const MAGIC: u32 = 0x4c53_4d31;
const HEADER: usize = 24;
const UP: u64 = 0x7570;
const DOWN: u64 = 0x646f;

fn write(direction: u64, sequence: u64, count: u64) -> [u8; LENGTH] {
    let mut bytes = [0; LENGTH];
    bytes[..4].copy_from_slice(&MAGIC.to_le_bytes());
    bytes[8..16].copy_from_slice(&sequence.to_le_bytes());
    bytes[16..24].copy_from_slice(&count.to_le_bytes());
    let key = pattern::key(direction ^ pattern::key(sequence) ^ pattern::key(count).rotate_left(1));
    bytes[HEADER..].copy_from_slice(pattern::at(key, 0, LENGTH - HEADER));
    bytes
}

/// Sequence, count, and how many bytes are wrong.
fn read(direction: u64, bytes: &[u8]) -> (u64, u64, u64) {
    if bytes.len() != LENGTH {
        return (0, 0, LENGTH as u64);
    }
    let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|index| bytes[at + index]));
    let (sequence, count) = (word(8), word(16));
    let expected = write(direction, sequence, count);
    (sequence, count, expected.iter().zip(bytes).filter(|(a, b)| a != b).count() as u64)
}

/// The client's end.
#[derive(Debug)]
pub(super) struct Caller {
    socket: UdpSocket,
    sequence: u64,
    pub(super) sent: Vec<(u64, u64)>,
    pub(super) arrivals: Vec<(u64, u64, u64)>,
    pub(super) wrong: u64,
}

impl Caller {
    pub(super) fn new(to: SocketAddr) -> io::Result<Self> {
        let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = UdpSocket::bind(any)?;
        socket.connect(to)?;
        socket.set_nonblocking(true)?;
        Ok(Self { socket, sequence: 0, sent: Vec::new(), arrivals: Vec::new(), wrong: 0 })
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Sends the next one. What the network refuses counts as sent: it is lost.
    pub(super) fn send(&mut self, now: u64) {
        self.sequence += 1;
        self.sent.push((now, self.sequence));
        let _ = self.socket.send(&write(UP, self.sequence, 0));
    }

    pub(super) fn receive(&mut self) {
        let mut bytes = [0; LENGTH + 1];
        // An error here is the echo of an ICMP message; loss shows in the counts.
        while let Ok(length) = self.socket.recv(&mut bytes) {
            let (sequence, count, wrong) = read(DOWN, &bytes[..length]);
            self.wrong += wrong;
            if wrong == 0 {
                self.arrivals.push((clock::monotonic(), sequence, count));
            }
        }
    }
}

/// The address that a datagram was sent to.
#[derive(Clone, Copy)]
enum AskedAt {
    V4(libc::in_addr),
    V6(libc::in6_addr),
}

/// The VM's end, of one family.
#[derive(Debug)]
pub(super) struct Answerer {
    socket: UdpSocket,
    counts: HashMap<SocketAddr, u64>,
    /// Answer not to give, counted from 1, for tests of the counting.
    pub(super) drop: Option<u64>,
}

impl Answerer {
    /// One for each family that this machine has.
    pub(super) fn both(port: u16) -> io::Result<Vec<Self>> {
        let mut both = vec![Self::new((Ipv4Addr::UNSPECIFIED, port).into())?];
        match Self::new((Ipv6Addr::UNSPECIFIED, port).into()) {
            Ok(answerer) => both.push(answerer),
            Err(error) => eprintln!("lsm-traffic: no datagrams over IPv6: {error}"),
        }
        Ok(both)
    }

    fn new(at: SocketAddr) -> io::Result<Self> {
        let socket = socket2::Socket::new(socket2::Domain::for_address(at), socket2::Type::DGRAM, None)?;
        if at.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        socket.bind(&at.into())?;
        socket.set_nonblocking(true)?;
        // The VM's default route moves; an answer must still come from the address that was asked.
        if at.is_ipv4() {
            setsockopt(&socket, sockopt::Ipv4PacketInfo, &true)?;
        } else {
            setsockopt(&socket, sockopt::Ipv6RecvPacketInfo, &true)?;
        }
        Ok(Self { socket: socket.into(), counts: HashMap::new(), drop: None })
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    pub(super) fn answer(&mut self) {
        while let Ok((peer, asked_at, bytes)) = self.receive() {
            let (sequence, _, wrong) = read(UP, &bytes);
            if wrong != 0 {
                eprintln!("lsm-traffic: a datagram of {} bytes from {peer} has {wrong} wrong ones", bytes.len());
                continue;
            }
            let count = self.counts.entry(peer).or_default();
            *count += 1;
            if self.drop == Some(*count) {
                continue;
            }
            let answer = write(DOWN, sequence, *count);
            let send = |from: ControlMessage<'_>| {
                let to = SockaddrStorage::from(peer);
                sendmsg(self.socket.as_raw_fd(), &[IoSlice::new(&answer)], &[from], MsgFlags::empty(), Some(&to))
            };
            let sent = match asked_at {
                AskedAt::V4(ipi_spec_dst) => {
                    let ipi_addr = libc::in_addr { s_addr: 0 };
                    send(ControlMessage::Ipv4PacketInfo(&libc::in_pktinfo { ipi_ifindex: 0, ipi_spec_dst, ipi_addr }))
                }
                AskedAt::V6(ipi6_addr) => {
                    send(ControlMessage::Ipv6PacketInfo(&libc::in6_pktinfo { ipi6_addr, ipi6_ifindex: 0 }))
                }
            };
            if let Err(error) = sent {
                eprintln!("lsm-traffic: cannot answer {peer}: {error}");
            }
        }
    }

    fn receive(&self) -> nix::Result<(SocketAddr, AskedAt, Vec<u8>)> {
        let mut bytes = [0; LENGTH + 1];
        let mut control = cmsg_space!(libc::in6_pktinfo);
        let mut pieces = [IoSliceMut::new(&mut bytes)];
        let message =
            recvmsg::<SockaddrStorage>(self.socket.as_raw_fd(), &mut pieces, Some(&mut control), MsgFlags::empty())?;
        let asked_at = message.cmsgs()?.find_map(|part| match part {
            ControlMessageOwned::Ipv4PacketInfo(info) => Some(AskedAt::V4(info.ipi_spec_dst)),
            ControlMessageOwned::Ipv6PacketInfo(info) => Some(AskedAt::V6(info.ipi6_addr)),
            _ => None,
        });
        let length = message.bytes;
        let peer = message.address.and_then(|address| {
            let v4 = address.as_sockaddr_in().map(|v4| SocketAddr::V4((*v4).into()));
            v4.or_else(|| address.as_sockaddr_in6().map(|v6| SocketAddr::V6((*v6).into())))
        });
        match (peer, asked_at) {
            (Some(peer), Some(asked_at)) => Ok((peer, asked_at, bytes[..length].to_vec())),
            _ => Err(nix::errno::Errno::EBADMSG),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flipped_byte_is_noticed_wherever_it_is() {
        let good = write(DOWN, 4, 9);
        assert_eq!(read(DOWN, &good), (4, 9, 0));
        for place in 0..LENGTH {
            let mut bad = good;
            bad[place] ^= 0x20;
            assert_ne!(read(DOWN, &bad).2, 0, "byte {place}");
        }
        assert_ne!(read(UP, &good).2, 0);
        assert_ne!(read(DOWN, &good[..100]).2, 0);
    }
}
