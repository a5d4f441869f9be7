//! Who has joined, who has moved, who cannot: one dump turned into [`Counts`].

use std::{collections::HashMap, net::IpAddr};

use lsm_protocol::{Counts, forecast::Outcome};

use crate::{
    connections::{Connection, Snapshot, Subflow},
    record::Paths,
};

/// The advance path costs a connection little if its round-trip time is at most half as much again, and 10 ms.
const EARLY_FACTOR: (u64, u64) = (3, 2);
const EARLY_SLACK_US: u64 = 10_000;

/// Payload carried so far by the two sides of a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Carried {
    old: u64,
    new: u64,
}

/// What earlier counts saw, by the connection's token.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    /// At the last count before the flip.
    before: HashMap<u32, Carried>,
    /// At the last count.
    last: HashMap<u32, Carried>,
    /// Each connection at the last count: its peer, and whether it had joined.
    outcomes: Vec<Outcome>,
}

impl Tally {
    /// Counts; `flipped` when the new path is preferred.
    pub(crate) fn count(&mut self, snapshot: &Snapshot, paths: &Paths, flipped: bool) -> Counts {
        let (old, new) = (paths.old.exit.source, paths.new.exit.source);
        let mut counts = Counts::default();
        self.outcomes.clear();
        let mut seen = HashMap::with_capacity(snapshot.connections.len());
        for connection in &snapshot.connections {
            let on_new = on(connection, new).filter(|s| s.established).max_by_key(|s| carried(s));
            if on_new.is_none() && on(connection, old).next().is_none() {
                continue; // loopback, or an address that LSM does not manage
            }
            let now =
                Carried { old: on(connection, old).map(carried).sum(), new: on(connection, new).map(carried).sum() };
            seen.insert(connection.token, now);
            let shown = on_new.or_else(|| on(connection, old).next());
            self.outcomes.extend(shown.map(|subflow| Outcome {
                peer: subflow.remote,
                opened_here: connection.opened_here(subflow),
                joined: on_new.is_some(),
            }));
            let Some(joined) = on_new else {
                counts.waiting += 1;
                continue;
            };
            counts.joined += 1;
            let was_rtt = on(connection, old).map(|s| u64::from(s.rtt_us)).filter(|rtt| *rtt > 0).min();
            let rtt = u64::from(joined.rtt_us);
            if was_rtt.is_none_or(|was| rtt <= was * EARLY_FACTOR.0 / EARLY_FACTOR.1 + EARLY_SLACK_US) {
                counts.early += 1;
            }
            let before = self.before.get(&connection.token).copied().unwrap_or_default();
            let moved = now.new > before.new;
            let idle = connection.subflows.iter().all(|s| s.unacked == 0 && s.unsent == 0)
                && self.last.get(&connection.token).is_some_and(|last| last.old == now.old);
            if flipped && (moved || idle) {
                counts.moved += 1;
            }
        }
        counts.legacy = snapshot.legacy.iter().filter(|l| l.local.ip() == old).count() as u32;
        if !flipped {
            self.before.clone_from(&seen);
        }
        self.last = seen;
        counts
    }

    /// What became of the announcement, as the last count saw it.
    pub(crate) fn outcomes(&self) -> impl Iterator<Item = Outcome> {
        self.outcomes.iter().copied()
    }
}

fn on(connection: &Connection, address: IpAddr) -> impl Iterator<Item = &Subflow> {
    connection.subflows.iter().filter(move |s| s.local.ip() == address)
}

fn carried(subflow: &Subflow) -> u64 {
    subflow.bytes_acked + subflow.bytes_received
}
