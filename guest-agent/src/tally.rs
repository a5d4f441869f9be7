//! Who has joined, who has moved, who cannot: one dump turned into [`Counts`].

use std::collections::HashMap;

use lsm_protocol::{Counts, forecast::Outcome, guest::fallback::Progress};

use crate::{
    connections::{Connection, Snapshot, Subflow},
    record::{Paths, Plugged},
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
    /// At the first count at the new site: what came later came by the path that is there.
    before: HashMap<u32, Carried>,
    /// That count has been.
    proving: bool,
    /// At the last count: what was carried, and whether everything that had been sent was acknowledged.
    last: HashMap<u32, (Carried, bool)>,
    /// Each connection at the last count: its peer, and whether it had joined.
    outcomes: Vec<Outcome>,
    /// From the count before the last one to the last.
    progress: Progress,
}

impl Tally {
    /// Counts; `arrived` when the new path is preferred and the VM where it is direct. What the advance tunnel carried is
    /// no proof of it.
    pub(crate) fn count(&mut self, snapshot: &Snapshot, paths: &Paths, arrived: bool) -> Counts {
        let proving = arrived && self.proving;
        self.proving = arrived;
        let (old, new) = (&paths.old, &paths.new);
        let mut counts = Counts::default();
        self.outcomes.clear();
        self.progress = Progress::default();
        let mut seen = HashMap::with_capacity(snapshot.connections.len());
        for connection in &snapshot.connections {
            let on_new = on(connection, new).filter(|s| s.established).max_by_key(|s| carried(s));
            if on_new.is_none() && on(connection, old).next().is_none() {
                continue; // loopback, or an address that LSM does not manage
            }
            let now = Carried { old: sum(on(connection, old)), new: sum(on(connection, new)) };
            let quiet = connection.subflows.iter().all(|s| s.unacked == 0);
            seen.insert(connection.token, (now, quiet));
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
            self.follow(connection, new, now);
            let was_rtt = on(connection, old).map(|s| u64::from(s.rtt_us)).filter(|rtt| *rtt > 0).min();
            let rtt = u64::from(joined.rtt_us);
            if was_rtt.is_none_or(|was| rtt <= was * EARLY_FACTOR.0 / EARLY_FACTOR.1 + EARLY_SLACK_US) {
                counts.early += 1;
            }
            let before = self.before.get(&connection.token).copied().unwrap_or_default();
            let moved = now.new > before.new;
            // Nothing to say; or nothing that the peer has room for, which a dead path would have made unacknowledged.
            let nothing_unsent = connection.subflows.iter().all(|s| s.unsent == 0);
            let idle = quiet
                && self.last.get(&connection.token).is_some_and(|&(last, was_quiet)| {
                    last.old == now.old && (nothing_unsent || was_quiet && last.new == now.new)
                });
            if proving && (moved || idle) {
                counts.moved += 1;
            }
        }
        counts.legacy = snapshot.legacy.iter().filter(|l| old.carries(l.local.ip())).count() as u32;
        if !proving {
            self.before = seen.iter().map(|(&token, &(carried, _))| (token, carried)).collect();
        }
        self.last = seen;
        counts
    }

    /// What the two paths have carried for a connection that has joined, since the last count.
    fn follow(&mut self, connection: &Connection, new: &Plugged, now: Carried) {
        let Some((last, _)) = self.last.get(&connection.token) else { return };
        if now.new > last.new {
            self.progress.carrying += 1;
        } else if on(connection, new).any(|s| s.unacked > 0) {
            self.progress.stuck += 1;
            self.progress.saved += u32::from(now.old > last.old);
        }
    }

    /// What became of the paths from one count to the next.
    pub(crate) fn progress(&self) -> Progress {
        self.progress
    }

    /// What became of the announcement, as the last count saw it.
    pub(crate) fn outcomes(&self) -> impl Iterator<Item = Outcome> {
        self.outcomes.iter().copied()
    }
}

fn on<'a>(connection: &'a Connection, plugged: &'a Plugged) -> impl Iterator<Item = &'a Subflow> {
    connection.subflows.iter().filter(|s| plugged.carries(s.local.ip()))
}

fn carried(subflow: &Subflow) -> u64 {
    subflow.bytes_acked.saturating_add(subflow.bytes_received)
}

fn sum<'a>(subflows: impl Iterator<Item = &'a Subflow>) -> u64 {
    subflows.map(carried).fold(0, u64::saturating_add)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::routing::Exit;

    fn paths() -> Paths {
        let plugged = |address: &str| {
            let source = address.parse().unwrap();
            let mut plugged = Plugged::bare(lsm_protocol::Mac([2; 6]));
            plugged.put(Exit { ifindex: 1, source, prefix: 24, gateway: source });
            plugged
        };
        Paths { old: plugged("10.1.0.7"), new: plugged("10.2.0.7"), old_covered: true }
    }

    fn subflow(local: &str, carried: u64) -> Subflow {
        Subflow {
            local: local.parse().unwrap(),
            remote: "10.9.0.1:4000".parse().unwrap(),
            established: true,
            initial: local.starts_with("10.1."),
            opened_by_us: false,
            backup: false,
            backup_by_peer: false,
            local_id: 0,
            remote_id: 0,
            rtt_us: u32::MAX,
            unacked: u32::MAX,
            bytes_acked: carried,
            bytes_received: carried,
            unsent: u32::MAX,
            silent_ms: 0,
            inode: 1,
        }
    }

    fn snapshot(carried: &[(u32, u64, Option<u64>)]) -> Snapshot {
        let connections = carried.iter().map(|&(token, old, new)| {
            let new = new.map(|bytes| subflow("10.2.0.7:80", bytes));
            let subflows = [subflow("10.1.0.7:80", old)].into_iter().chain(new).collect();
            Connection { token, opened_by_us: Some(false), port: None, full: false, subflows }
        });
        Snapshot { connections: connections.collect(), ..Snapshot::default() }
    }

    #[test]
    fn connections_vanish_between_two_counts_and_their_tokens_come_again() {
        let (mut tally, paths) = (Tally::default(), paths());
        let before = tally.count(&snapshot(&[(1, 10, Some(0)), (2, 10, Some(0)), (3, 10, None)]), &paths, false);
        assert_eq!((before.joined, before.waiting, before.moved), (2, 1, 0));
        tally.count(&snapshot(&[(1, 10, Some(0)), (2, 10, Some(0)), (3, 10, None)]), &paths, true);
        // The second and the third are gone.
        let after = tally.count(&snapshot(&[(1, 10, Some(5))]), &paths, true);
        assert_eq!((after.joined, after.waiting, after.moved), (1, 0, 1));
        assert_eq!(tally.outcomes().count(), 1);
        // The second's token names another connection, which has carried nothing on the new path.
        let later = tally.count(&snapshot(&[(1, 10, Some(9)), (2, 0, Some(0))]), &paths, true);
        assert_eq!((later.joined, later.moved), (2, 1));
        let none = tally.count(&Snapshot::default(), &paths, true);
        assert_eq!(none, Counts::default());
        assert_eq!(tally.outcomes().count(), 0);
    }

    #[test]
    fn what_the_advance_tunnel_carried_is_no_proof_of_the_path_at_the_new_site() {
        let (mut tally, paths) = (Tally::default(), paths());
        let carried = |bytes| snapshot(&[(1, 10, Some(bytes))]);
        tally.count(&carried(0), &paths, false);
        assert_eq!(tally.count(&carried(500), &paths, false).moved, 0, "flipped early");
        assert_eq!(tally.count(&carried(900), &paths, true).moved, 0, "it has just arrived");
        assert_eq!(tally.count(&carried(900), &paths, true).moved, 0, "the new path is dead");
        assert_eq!(tally.count(&carried(901), &paths, true).moved, 1);
        // It was no arrival: the source's service had been restarted.
        assert_eq!(tally.count(&carried(950), &paths, false).moved, 0);
        assert_eq!(tally.count(&carried(960), &paths, true).moved, 0);
    }

    #[test]
    fn a_peer_that_reads_nothing_has_moved_and_a_dead_path_has_not() {
        let (mut tally, paths) = (Tally::default(), paths());
        let stuck = |unacked| {
            let mut snapshot = snapshot(&[(1, 10, Some(0))]);
            for subflow in &mut snapshot.connections[0].subflows {
                subflow.unacked = unacked;
            }
            snapshot
        };
        for _ in 0..2 {
            tally.count(&stuck(0), &paths, true);
            assert_eq!(tally.count(&stuck(1), &paths, true).moved, 0, "sent, and nobody takes it");
            assert_eq!(tally.count(&stuck(0), &paths, true).moved, 0, "taken a moment ago");
            assert_eq!(tally.count(&stuck(0), &paths, true).moved, 1, "no room at the peer");
        }
    }

    #[test]
    fn a_path_that_acknowledges_nothing_is_told_from_one_that_is_slow_and_from_one_that_is_idle() {
        let (mut tally, paths) = (Tally::default(), paths());
        let at = |old, new, unacked| {
            let mut snapshot = snapshot(&[(1, old, Some(new))]);
            snapshot.connections[0].subflows[1].unacked = unacked;
            snapshot
        };
        let mut after = |old, new, unacked| {
            tally.count(&at(old, new, unacked), &paths, true);
            let Progress { carrying, stuck, saved } = tally.progress();
            (carrying, stuck, saved)
        };
        assert_eq!(after(10, 5, 3), (0, 0, 0), "there was no count before");
        assert_eq!(after(10, 6, 3), (1, 0, 0), "something is always on its way");
        assert_eq!(after(10, 6, 0), (0, 0, 0), "all of it has come");
        assert_eq!(after(10, 6, 3), (0, 1, 0));
        assert_eq!(after(11, 6, 3), (0, 1, 1), "the old path helps");
        assert_eq!(after(12, 7, 3), (1, 0, 0));
    }

    #[test]
    fn who_has_joined_in_either_family_is_no_straggler() {
        let mut paths = paths();
        for (plugged, address) in [(&mut paths.old, "2001:db8:1::7"), (&mut paths.new, "2001:db8:2::7")] {
            let source = address.parse().unwrap();
            plugged.put(Exit { ifindex: 1, source, prefix: 64, gateway: source });
        }
        let connections = [
            &["10.1.0.7:80", "10.2.0.7:80"][..],
            &["[2001:db8:1::7]:80", "[2001:db8:2::7]:80"],
            &["[2001:db8:1::7]:80", "10.2.0.7:80"],
            &["[2001:db8:1::7]:80"],
        ];
        let connections = connections.iter().zip(1..).map(|(locals, token)| {
            let subflows = locals.iter().map(|local| subflow(local, 1)).collect();
            Connection { token, opened_by_us: Some(false), port: None, full: false, subflows }
        });
        let snapshot = Snapshot { connections: connections.collect(), ..Snapshot::default() };
        let counts = Tally::default().count(&snapshot, &paths, true);
        assert_eq!((counts.joined, counts.waiting), (3, 1));
    }

    #[test]
    fn tokens_and_counters_at_the_edge_of_their_fields_are_counted() {
        let (mut tally, paths) = (Tally::default(), paths());
        let most = snapshot(&[(0, u64::MAX, Some(u64::MAX)), (u32::MAX, u64::MAX, Some(0))]);
        assert_eq!(tally.count(&most, &paths, true).joined, 2);
        let counts = tally.count(&snapshot(&[(0, 0, Some(0)), (u32::MAX, u64::MAX, Some(u64::MAX))]), &paths, true);
        // What the first carried is less than it was: no proof that it moved.
        assert_eq!((counts.joined, counts.moved), (2, 1));
    }
}
