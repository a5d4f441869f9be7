//! The headline: from the arrival of the VM to the first data on the direct path.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};

use crate::capture::{ACK, Frame, Packet, Segment};
use crate::traffic::Nanos;

/// A frame may carry an earlier time on a later interface by this much: processors stamp on their own.
const SKEW: Nanos = 200_000;

/// One move, as it was seen from outside.
#[derive(Debug, Clone, Copy)]
pub struct Move<'a> {
    pub client: &'a [IpAddr],
    /// The VM's addresses of the destination's LAN.
    pub new: &'a [IpAddr],
    /// QEMU's RESUME on the destination: the arrival.
    pub resumed: Nanos,
    /// Frames of the client's interface.
    pub at_client: &'a [&'a Frame],
    /// Frames of the taps that the new vNIC has on the source and on the destination.
    pub source_tap: &'a [&'a Frame],
    pub destination_tap: &'a [&'a Frame],
}

fn segments<'a>(frames: &'a [&'a Frame]) -> impl Iterator<Item = (&'a Frame, &'a Segment)> {
    frames.iter().filter_map(|frame| match &frame.packet {
        Packet::Tcp(segment) => Some((*frame, segment)),
        _ => None,
    })
}

/// Whether `left` is not after `right` in TCP's circle of sequence numbers.
fn not_after(left: u32, right: u32) -> bool {
    (right.wrapping_sub(left) as i32) >= 0
}

/// From RESUME to the first TCP payload from the VM's new address at the client, of those segments only that the VM sent
/// after RESUME by the destination's tap: what was in flight or queued from before the stop does not count.
pub fn to_client(of: &Move) -> Option<Nanos> {
    let from_vm = |segment: &Segment| {
        segment.payload > 0 && of.new.contains(&segment.source.ip()) && of.client.contains(&segment.destination.ip())
    };
    let mut sent: HashMap<(SocketAddr, SocketAddr), Vec<(Nanos, &Segment)>> = HashMap::new();
    for (frame, segment) in segments(of.destination_tap) {
        if !frame.outgoing && frame.at >= of.resumed && from_vm(segment) {
            sent.entry((segment.source, segment.destination)).or_default().push((frame.at, segment));
        }
    }
    segments(of.at_client)
        .filter(|(frame, segment)| !frame.outgoing && frame.at >= of.resumed && from_vm(segment))
        .filter(|(frame, segment)| {
            let flow = sent.get(&(segment.source, segment.destination));
            flow.is_some_and(|flow| flow.iter().any(|(at, left)| *at <= frame.at + SKEW && is_part(segment, left)))
        })
        .map(|(frame, _)| frame.at - of.resumed)
        .min()
}

/// Whether `part` is `whole`, or was cut from it on the way.
fn is_part(part: &Segment, whole: &Segment) -> bool {
    let cut = match (part.id, whole.id) {
        // Cutting counts the identification up; a retransmission has one of its own.
        (Some(part), Some(whole)) => part.wrapping_sub(whole) < 64,
        _ => true,
    };
    let offset = part.sequence.wrapping_sub(whole.sequence);
    cut && offset < whole.payload.max(1)
}

/// From RESUME to the first acknowledgement, leaving the VM by the destination's tap, of client payload on the new
/// address that the VM had not acknowledged before.
pub fn to_vm(of: &Move) -> Option<Nanos> {
    let is_ack = |segment: &Segment| {
        segment.has(ACK) && of.new.contains(&segment.source.ip()) && of.client.contains(&segment.destination.ip())
    };
    // Keyed by the client's end and the VM's.
    let mut ends: HashMap<(SocketAddr, SocketAddr), Vec<u32>> = HashMap::new();
    for (frame, segment) in segments(of.at_client) {
        if frame.outgoing && segment.payload > 0 && of.new.contains(&segment.destination.ip()) {
            ends.entry((segment.source, segment.destination)).or_default().push(segment.end());
        }
    }
    let mut before: HashMap<(SocketAddr, SocketAddr), u32> = HashMap::new();
    let earlier = [of.source_tap, of.destination_tap, of.at_client];
    for (frame, segment) in earlier.into_iter().flat_map(segments) {
        if !frame.outgoing && frame.at < of.resumed && is_ack(segment) {
            let known = before.entry((segment.destination, segment.source)).or_insert(segment.acknowledgement);
            if not_after(*known, segment.acknowledgement) {
                *known = segment.acknowledgement;
            }
        }
    }
    segments(of.destination_tap)
        .filter(|(frame, segment)| !frame.outgoing && frame.at >= of.resumed && is_ack(segment))
        .filter(|(_, segment)| {
            let flow = (segment.destination, segment.source);
            let new = |end: u32| before.get(&flow).is_none_or(|before| !not_after(end, *before));
            let covered = |end: u32| not_after(end, segment.acknowledgement) && new(end);
            ends.get(&flow).is_some_and(|ends| ends.iter().any(|end| covered(*end)))
        })
        .map(|(frame, _)| frame.at - of.resumed)
        .min()
}

#[cfg(test)]
mod tests {
    use super::super::synthetic::{CLIENT, NEW, OLD, tcp};
    use super::*;

    fn seen(at_client: &[Frame], source_tap: &[Frame], destination_tap: &[Frame]) -> (Option<Nanos>, Option<Nanos>) {
        let (at_client, source_tap, destination_tap): (Vec<&Frame>, Vec<&Frame>, Vec<&Frame>) =
            (at_client.iter().collect(), source_tap.iter().collect(), destination_tap.iter().collect());
        let of = Move {
            client: &[[10, 9, 0, 2].into()],
            new: &[[10, 2, 0, 10].into()],
            resumed: 1_000_000_000,
            at_client: &at_client,
            source_tap: &source_tap,
            destination_tap: &destination_tap,
        };
        (to_client(&of), to_vm(&of))
    }

    #[test]
    fn a_segment_from_before_the_stop_does_not_count() {
        let before = tcp(900_000_000, false, NEW, CLIENT, (1, 200, 1));
        let late = tcp(1_005_000_000, false, NEW, CLIENT, (1, 200, 1));
        let left = tcp(1_030_000_000, false, NEW, CLIENT, (201, 200, 1));
        let came = tcp(1_031_000_000, false, NEW, CLIENT, (201, 200, 1));
        let (to_client, _) = seen(&[late.clone(), came.clone()], &[before], &[left]);
        assert_eq!(to_client, Some(31_000_000));
        assert_eq!(seen(&[late, came], &[], &[]).0, None, "it did not leave by the destination's tap");
    }

    #[test]
    fn the_old_address_does_not_count() {
        let left = tcp(1_030_000_000, false, OLD, CLIENT, (201, 200, 1));
        assert_eq!(seen(std::slice::from_ref(&left), &[], std::slice::from_ref(&left)), (None, None));
    }

    #[test]
    fn bare_acknowledgements_and_answers_are_no_payload() {
        let bare = tcp(1_030_000_000, false, NEW, CLIENT, (201, 0, 1));
        assert_eq!(seen(std::slice::from_ref(&bare), &[], std::slice::from_ref(&bare)).0, None);
    }

    #[test]
    fn a_cut_super_frame_counts_and_a_retransmission_of_the_lost_does_not() {
        let mut left = tcp(1_030_000_000, false, NEW, CLIENT, (201, 2_896, 1));
        let mut half = tcp(1_032_000_000, false, NEW, CLIENT, (1_649, 1_448, 1));
        let id = |frame: &mut Frame, id| {
            if let Packet::Tcp(segment) = &mut frame.packet {
                segment.id = Some(id);
            }
        };
        id(&mut left, 5_000);
        id(&mut half, 5_001);
        assert_eq!(seen(std::slice::from_ref(&half), &[], std::slice::from_ref(&left)).0, Some(32_000_000));
        id(&mut half, 4_000);
        assert_eq!(seen(&[half], &[], &[left]).0, None);
    }

    #[test]
    fn only_an_acknowledgement_of_something_new_counts() {
        let payload = |at, sequence| tcp(at, true, CLIENT, NEW, (sequence, 200, 1));
        let sent = [payload(800_000_000, 1), payload(850_000_000, 201)];
        let acked_before = tcp(810_000_000, false, NEW, CLIENT, (1, 0, 201));
        let again = tcp(1_010_000_000, false, NEW, CLIENT, (1, 0, 201));
        let fresh = tcp(1_020_000_000, false, NEW, CLIENT, (1, 0, 401));
        let tap = [again, fresh];
        assert_eq!(seen(&sent, std::slice::from_ref(&acked_before), &tap).1, Some(20_000_000));
        assert_eq!(seen(&sent, &[], &tap).1, Some(10_000_000), "without the history the first one is fresh");
        assert_eq!(seen(&[], &[acked_before], &tap).1, None, "no payload was sent");
    }

    #[test]
    fn sequence_numbers_wrap() {
        let sent = [tcp(900_000_000, true, CLIENT, NEW, (u32::MAX - 99, 200, 1))];
        let before = tcp(810_000_000, false, NEW, CLIENT, (1, 0, u32::MAX - 99));
        let fresh = tcp(1_020_000_000, false, NEW, CLIENT, (1, 0, 100));
        assert_eq!(seen(&sent, &[before], &[fresh]).1, Some(20_000_000));
    }
}
