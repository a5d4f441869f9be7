//! Frames that entered a LAN for the VM and never reached it.

use std::collections::HashMap;
use std::net::SocketAddr;

use super::Window;
use crate::capture::{Frame, Mac, Packet, Segment};
use crate::traffic::Nanos;

/// As in the search for direct segments: clocks of two processors.
const SKEW: Nanos = 1_000_000;

/// One of the taps behind which the VM may be.
#[derive(Debug, Clone, Copy)]
pub struct Tap<'a> {
    pub frames: &'a [&'a Frame],
    /// Since when nobody reads it any more: on the source, QEMU's STOP. A frame given to it later did not arrive.
    pub until: Option<Nanos>,
}

/// What makes a frame the same frame elsewhere.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Identity {
    Tcp { ends: (SocketAddr, SocketAddr), id: Option<u16>, sequence: u32, ack: u32, flags: u8, payload: u32 },
    Udp { ends: (SocketAddr, SocketAddr), id: Option<u16>, head: Vec<u8> },
}

fn identity(frame: &Frame) -> Option<Identity> {
    match &frame.packet {
        Packet::Tcp(segment) => Some(Identity::Tcp {
            ends: (segment.source, segment.destination),
            id: segment.id,
            sequence: segment.sequence,
            ack: segment.acknowledgement,
            flags: segment.flags,
            payload: segment.payload,
        }),
        Packet::Udp(datagram) => Some(Identity::Udp {
            ends: (datagram.source, datagram.destination),
            id: datagram.id,
            head: datagram.head.clone(),
        }),
        Packet::Arp(_) | Packet::Icmpv6(_) | Packet::Other(_) => None,
    }
}

/// The TCP and UDP frames for `mac` among `entered`, captured where they leave the gateway for the LAN, that went to none
/// of the taps while someone read it. A tap that drops for want of room does it after the capture: look at its
/// `tx_dropped` as well. Leave some time between the window's end and that of the captures.
pub fn lost_frames<'a>(entered: &[&'a Frame], taps: &[Tap], mac: Mac, window: Window) -> Vec<&'a Frame> {
    let mut reached: HashMap<Identity, Vec<Nanos>> = HashMap::new();
    let mut segments: HashMap<(SocketAddr, SocketAddr), Vec<(Nanos, &Segment)>> = HashMap::new();
    for tap in taps {
        let read = |frame: &&&Frame| tap.until.is_none_or(|until| frame.at < until);
        for frame in tap.frames.iter().filter(read).filter(|frame| frame.outgoing && frame.destination == mac) {
            if let Some(identity) = identity(frame) {
                reached.entry(identity).or_default().push(frame.at);
            }
            if let Packet::Tcp(segment) = &frame.packet {
                let flow = (segment.source, segment.destination);
                segments.entry(flow).or_default().push((frame.at, segment));
            }
        }
    }
    let arrived = |frame: &Frame| {
        let whole = identity(frame)
            .and_then(|identity| reached.get(&identity))
            .is_some_and(|times| times.iter().any(|at| at + SKEW >= frame.at));
        whole || matches!(&frame.packet, Packet::Tcp(segment) if arrived_cut(segment, frame.at, &segments))
    };
    entered
        .iter()
        .filter(|frame| frame.outgoing && frame.destination == mac && window.holds(frame.at))
        .filter(|frame| identity(frame).is_some() && !arrived(frame))
        .copied()
        .collect()
}

/// Whether all bytes of a segment arrived in pieces, as a tunnel cuts what the card was to cut.
fn arrived_cut(
    segment: &Segment,
    at: Nanos,
    segments: &HashMap<(SocketAddr, SocketAddr), Vec<(Nanos, &Segment)>>,
) -> bool {
    let flow = segments.get(&(segment.source, segment.destination));
    let pieces = flow.into_iter().flatten().filter(|(seen, piece)| {
        let same = match (piece.id, segment.id) {
            (Some(piece), Some(whole)) => piece.wrapping_sub(whole) < 64,
            _ => true,
        };
        let offset = piece.sequence.wrapping_sub(segment.sequence);
        same && seen + SKEW >= at && offset < segment.payload && piece.payload < segment.payload
    });
    let mut ranges: Vec<(u32, u32)> = pieces
        .map(|(_, piece)| {
            let offset = piece.sequence.wrapping_sub(segment.sequence);
            (offset, offset + piece.payload)
        })
        .collect();
    ranges.sort_unstable();
    let covered = ranges.iter().fold(0, |end, (from, until)| if *from <= end { end.max(*until) } else { end });
    segment.payload > 0 && covered >= segment.payload
}

#[cfg(test)]
mod tests {
    use super::super::synthetic::{CLIENT, MAC, OLD, tcp, udp};
    use super::*;

    const WINDOW: Window = Window { from: 0, until: 10_000_000_000 };

    fn lost(entered: &[Frame], source: &[Frame], paused: Nanos, destination: &[Frame]) -> usize {
        let references = |frames: &'static [Frame]| frames.iter().collect::<Vec<&Frame>>();
        let leak = |frames: &[Frame]| references(Vec::leak(frames.to_vec()));
        let (entered, source, destination) = (leak(entered), leak(source), leak(destination));
        let taps = [Tap { frames: &source, until: Some(paused) }, Tap { frames: &destination, until: None }];
        lost_frames(&entered, &taps, MAC, WINDOW).len()
    }

    fn segment(at: Nanos, sequence: u32) -> Frame {
        tcp(at, true, CLIENT, OLD, (sequence, 200, 1))
    }

    #[test]
    fn a_frame_must_reach_a_tap_that_is_read() {
        let entered = [segment(100, 1), segment(200, 201), segment(300, 401)];
        let source = [segment(110, 1), segment(210, 201), segment(310, 401)];
        assert_eq!(lost(&entered, &source, 1_000, &[]), 0);
        assert_eq!(lost(&entered, &source, 205, &[]), 2, "stopped before it was given to the tap");
        assert_eq!(lost(&entered, &source, 205, &[segment(9_000, 201)]), 1, "one was sent again by the source");
        assert_eq!(lost(&entered, &[], 205, &[]), 3);
    }

    #[test]
    fn datagrams_are_told_apart_by_their_content() {
        let entered = [udp(100, true, 1), udp(200, true, 2)];
        assert_eq!(lost(&entered, &[], 0, &[udp(150, true, 1)]), 1);
        assert_eq!(lost(&entered, &[], 0, &[udp(150, true, 1), udp(250, true, 2)]), 0);
    }

    #[test]
    fn what_left_the_vm_or_came_earlier_does_not_count() {
        let mut back = segment(110, 1);
        back.outgoing = false;
        assert_eq!(lost(&[segment(100, 1)], &[], 0, &[back]), 1);
        assert_eq!(lost(&[segment(5_000_000, 1)], &[], 0, &[segment(100, 1)]), 1);
    }

    #[test]
    fn a_segment_cut_on_the_way_arrives_in_pieces() {
        let whole = tcp(100, true, CLIENT, OLD, (1, 2_800, 1));
        let first = tcp(150, true, CLIENT, OLD, (1, 1_400, 1));
        let mut second = tcp(151, true, CLIENT, OLD, (1_401, 1_400, 1));
        if let Packet::Tcp(segment) = &mut second.packet {
            segment.id = Some(2);
        }
        assert_eq!(lost(std::slice::from_ref(&whole), &[], 0, &[first.clone(), second]), 0);
        assert_eq!(lost(&[whole], &[], 0, &[first]), 1);
    }
}
