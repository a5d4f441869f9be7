//! Which path each connection takes, by the packets at the client's interface.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};

use super::Window;
use crate::capture::{ACK, Frame, Packet, SYN, Segment, Subtype};
use crate::traffic::{Nanos, Subflow};

/// A TCP flow by its ends: the client's, the VM's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Flow {
    pub client: SocketAddr,
    pub vm: SocketAddr,
}

/// Payload that a flow carried, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    pub to_client: u64,
    pub to_vm: u64,
    /// The last of either.
    pub last: Nanos,
}

fn flow(frame: &Frame, segment: &Segment) -> Flow {
    if frame.outgoing {
        Flow { client: segment.source, vm: segment.destination }
    } else {
        Flow { client: segment.destination, vm: segment.source }
    }
}

fn segments<'a>(frames: &'a [&'a Frame]) -> impl Iterator<Item = (&'a Frame, &'a Segment)> {
    frames.iter().filter_map(|frame| match &frame.packet {
        Packet::Tcp(segment) => Some((*frame, segment)),
        _ => None,
    })
}

/// Which flows carried payload in the window, in frames of the client's interface.
pub fn usage(at_client: &[&Frame], window: Window) -> HashMap<Flow, Usage> {
    let mut flows: HashMap<Flow, Usage> = HashMap::new();
    for (frame, segment) in segments(at_client) {
        if segment.payload > 0 && window.holds(frame.at) {
            let usage = flows.entry(flow(frame, segment)).or_default();
            let bytes = if frame.outgoing { &mut usage.to_vm } else { &mut usage.to_client };
            *bytes += u64::from(segment.payload);
            usage.last = frame.at;
        }
    }
    flows
}

/// The subflows that were joined to one of the VM's addresses `new`, and when: at the acknowledgement that ends the handshake,
/// as the client's interface saw it. Either end may have begun it.
pub fn joins(at_client: &[&Frame], new: &[IpAddr]) -> HashMap<Flow, Nanos> {
    let mut begun: HashSet<(Flow, bool)> = HashSet::new();
    let mut done = HashMap::new();
    for (frame, segment) in segments(at_client) {
        let flow = flow(frame, segment);
        if !new.contains(&flow.vm.ip()) {
            continue;
        }
        if segment.has(SYN) && !segment.has(ACK) && segment.mptcp.has(Subtype::Join) {
            begun.insert((flow, frame.outgoing));
        } else if !segment.has(SYN)
            && segment.has(ACK)
            && segment.mptcp.has(Subtype::Join)
            && begun.contains(&(flow, frame.outgoing))
        {
            done.entry(flow).or_insert(frame.at);
        }
    }
    done
}

/// Whether the connection of this `token` took the direct path, and nothing else, both ways: its subflows as the
/// client's kernel lists them, their use by the capture. `None`: it moved no data, or not both ways.
pub fn on_direct(token: u32, subflows: &[Subflow], usage: &HashMap<Flow, Usage>, new: &[IpAddr]) -> Option<bool> {
    let used: Vec<(&Subflow, Usage)> = subflows
        .iter()
        .filter(|subflow| subflow.token == Some(token))
        .filter_map(|subflow| {
            let flow = Flow { client: subflow.local, vm: subflow.remote };
            usage.get(&flow).map(|usage| (subflow, *usage))
        })
        .collect();
    let both_ways = used.iter().any(|(_, usage)| usage.to_client > 0) && used.iter().any(|(_, usage)| usage.to_vm > 0);
    both_ways.then(|| used.iter().all(|(subflow, _)| new.contains(&subflow.remote.ip())))
}

#[cfg(test)]
mod tests {
    use super::super::synthetic::{CLIENT, NEW, OLD, tcp};
    use super::*;

    fn subflow(vm: &str, token: u32) -> Subflow {
        Subflow {
            local: CLIENT.parse().unwrap(),
            remote: vm.parse().unwrap(),
            token: Some(token),
            backup: false,
            rtt_ms: None,
        }
    }

    fn direct(frames: &[Frame], window: Window) -> Option<bool> {
        let frames: Vec<&Frame> = frames.iter().collect();
        let subflows = [subflow(OLD, 7), subflow(NEW, 7)];
        on_direct(7, &subflows, &usage(&frames, window), &[[10, 2, 0, 10].into()])
    }

    #[test]
    fn a_connection_is_direct_when_all_its_payload_is() {
        let frames = [
            tcp(10, false, OLD, CLIENT, (1, 200, 1)),
            tcp(20, true, CLIENT, NEW, (1, 200, 1)),
            tcp(21, false, NEW, CLIENT, (1, 200, 1)),
            tcp(22, false, OLD, CLIENT, (201, 0, 1)),
        ];
        assert_eq!(direct(&frames, Window { from: 15, until: 30 }), Some(true));
        assert_eq!(direct(&frames, Window { from: 5, until: 30 }), Some(false), "payload on the old path");
        assert_eq!(direct(&frames, Window { from: 21, until: 30 }), None, "one way only");
    }

    #[test]
    fn other_connections_do_not_count() {
        let frames = [tcp(20, true, CLIENT, NEW, (1, 200, 1)), tcp(21, false, NEW, CLIENT, (1, 200, 1))];
        let frames: Vec<&Frame> = frames.iter().collect();
        let used = usage(&frames, Window { from: 0, until: 30 });
        assert_eq!(on_direct(8, &[subflow(NEW, 7)], &used, &[[10, 2, 0, 10].into()]), None);
    }
}
