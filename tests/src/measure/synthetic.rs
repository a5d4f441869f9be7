//! Frames for the tests of this module.

use std::net::SocketAddr;

use crate::capture::{ACK, Datagram, Frame, Mac, Multipath, Packet, Segment};

pub(super) const CLIENT: &str = "10.9.0.2:40000";
pub(super) const OLD: &str = "10.1.0.10:5001";
pub(super) const NEW: &str = "10.2.0.10:5001";
pub(super) const MAC: Mac = [2, 0, 0, 0, 0, 1];

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// A segment with payload `sequence..sequence + payload` that acknowledges `ack`; its IPv4 id is its sequence number.
pub(super) fn tcp(at: u64, outgoing: bool, from: &str, to: &str, (sequence, payload, ack): (u32, u32, u32)) -> Frame {
    let segment = Segment {
        source: address(from),
        destination: address(to),
        id: Some(sequence as u16),
        sequence,
        acknowledgement: ack,
        flags: ACK,
        payload,
        header: 20,
        mptcp: Multipath::default(),
    };
    Frame { at, interface: 1, outgoing, source: [0; 6], destination: MAC, packet: Packet::Tcp(segment) }
}

pub(super) fn udp(at: u64, outgoing: bool, number: u8) -> Frame {
    let datagram = Datagram {
        source: address(CLIENT),
        destination: address(OLD),
        id: Some(0),
        payload: 210,
        head: vec![number; 24],
    };
    Frame { at, interface: 1, outgoing, source: [0; 6], destination: MAC, packet: Packet::Udp(datagram) }
}
