//! What the network alone takes of a round trip: from the client's card to the VM's, and back.

use std::{collections::HashMap, net::SocketAddr};

use super::{median, milliseconds};
use crate::{
    capture::{Frame, Packet, Segment},
    traffic::Nanos,
};

/// Segments with payload, by what makes them the same elsewhere.
type Passed = HashMap<(SocketAddr, SocketAddr, u32, u32), Nanos>;

/// The median way of the client's segments with payload, and that of the VM's, in milliseconds, together. `client`: captured
/// on the client's card; `host`: on all interfaces of the host where the VM is, whose last to see a segment for the VM, and
/// first to see one of the VM's, is its tap. What was cut or joined on the way is not looked at.
pub fn network_rtt_ms(client: &[Frame], host: &[Frame]) -> Option<f64> {
    let left = passed(client, |frame| frame.outgoing, Nanos::min);
    let reached = passed(host, |frame| frame.outgoing, Nanos::max);
    let answered = passed(host, |frame| !frame.outgoing, Nanos::min);
    let returned = passed(client, |frame| !frame.outgoing, Nanos::min);
    Some(way(&left, &reached)? + way(&answered, &returned)?)
}

fn passed(frames: &[Frame], counts: impl Fn(&Frame) -> bool, keep: fn(Nanos, Nanos) -> Nanos) -> Passed {
    let mut passed = Passed::new();
    for frame in frames.iter().filter(|frame| counts(frame)) {
        let Packet::Tcp(Segment { source, destination, sequence, payload, .. }) = frame.packet else { continue };
        if payload > 0 {
            let at = passed.entry((source, destination, sequence, payload)).or_insert(frame.at);
            *at = keep(*at, frame.at);
        }
    }
    passed
}

fn way(from: &Passed, to: &Passed) -> Option<f64> {
    let took = |(segment, left): (_, &Nanos)| to.get(segment)?.checked_sub(*left);
    median(&from.iter().filter_map(took).map(milliseconds).collect::<Vec<f64>>())
}

#[cfg(test)]
mod tests {
    use super::{
        super::synthetic::{CLIENT, OLD, tcp},
        *,
    };

    #[test]
    fn both_ways_and_nothing_of_the_vm_s() {
        const MS: Nanos = 1_000_000;
        let there = |at, outgoing, sequence| tcp(at, outgoing, CLIENT, OLD, (sequence, 24, 0));
        let back = |at, outgoing, sequence| tcp(at, outgoing, OLD, CLIENT, (sequence, 24, 0));
        let client = [there(10 * MS, true, 1), back(20 * MS, false, 9), there(30 * MS, true, 2)];
        // The uplink, the bridge and the tap; the VM takes its time. The second segment is lost.
        let host = [
            there(12 * MS, false, 1),
            there(12 * MS, true, 1),
            there(13 * MS, true, 1),
            back(18 * MS, false, 9),
            back(19 * MS, true, 9),
        ];
        assert_eq!(network_rtt_ms(&client, &host), Some(5.0));
        assert_eq!(network_rtt_ms(&client, &[]), None);
    }
}
