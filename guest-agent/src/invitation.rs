//! A new address announced with a port of its own, for which the kernel listens itself.
//!
//! It is for two kinds of connections. Programs that listen on the old address alone refuse joins to the new one
//! (RST): where nobody listens for a connection's port on the new address, only the kernel can. And whoever has not joined
//! after the flip is invited so: withdrawing the address and announcing it again would close the subflows of all who
//! have joined, while this adds one to each, in vain but without harm.

use std::{
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
};

use lsm_protocol::Refusal;
use nix::errno::Errno;

use crate::{
    connections::{Connection, Snapshot, Subflow},
    endpoints::{fresh_id, refuse},
    kernel::Kernel,
    mptcp::{Endpoint, Flags},
    record::{Paths, Plugged, Record},
    routing::Exit,
};

/// Known beforehand, so that a firewall can let them in: the ones after the agent's own port on vsock.
const PORTS: RangeInclusive<u16> = 19_540..=19_547;

/// Whether the connections that clients opened can join the new addresses at the port they know.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Doors {
    /// Of each new address: connections for which a program listens there, and those for which none does (it listens on
    /// the old address alone, or not any more).
    at: Vec<(IpAddr, usize, usize)>,
    /// The old addresses of connections for which none listens on any new address.
    shut_out: Vec<IpAddr>,
}

impl Doors {
    pub(crate) fn of(snapshot: &Snapshot, paths: &Paths) -> Doors {
        let at = paths.new.addresses().all().into_iter().map(|address| (address, 0, 0)).collect();
        let mut doors = Doors { at, shut_out: Vec::new() };
        for connection in &snapshot.connections {
            let Some(known) = known_at(connection, paths) else { continue };
            let mut any = false;
            for (address, open, shut) in &mut doors.at {
                let opens = snapshot.listeners.iter().any(|at| is_open(at, *address, known.port()));
                *(if opens { open } else { shut }) += 1;
                any |= opens;
            }
            if !any {
                doors.shut_out.push(known.ip());
            }
        }
        doors
    }

    /// Not every join to this address, without a port, would be refused.
    pub(crate) fn worth_trying(&self, address: IpAddr) -> bool {
        self.at.iter().any(|(at, open, shut)| *at == address && (*shut == 0 || *open > 0))
    }

    /// Where the kernel must listen for those who are shut out, if anybody is.
    pub(crate) fn to_open(&self, new: &Plugged) -> Option<Vec<Exit>> {
        (!self.shut_out.is_empty()).then(|| within_reach(new, &self.shut_out))
    }
}

/// The old address of a connection that its peer must join, and the port that it would join at: the one that the connection
/// began with, wherever it has moved since. (A peer's join is no initial subflow, and may have come by another port.)
fn known_at(connection: &Connection, paths: &Paths) -> Option<SocketAddr> {
    let by_peer = |s: &&Subflow| !s.opened_by_us && paths.old.carries(s.local.ip());
    let there: Vec<&Subflow> = connection.subflows.iter().filter(by_peer).collect();
    if let Some(initial) = there.iter().find(|s| s.initial) {
        return Some(initial.local);
    }
    if connection.opened_by_us == Some(true) {
        return None;
    }
    Some(SocketAddr::new(there.first()?.local.ip(), connection.port?))
}

/// A listener of one family takes no connection of the other, but for one on all IPv6 addresses.
fn is_open(listener: &SocketAddr, address: IpAddr, port: u16) -> bool {
    let all = match listener.ip() {
        IpAddr::V4(any) => any.is_unspecified() && address.is_ipv4(),
        IpAddr::V6(any) => any.is_unspecified(),
    };
    listener.port() == port && (all || listener.ip() == address)
}

/// The new addresses that connections from these old ones can join for certain: those of the same families; all, where a
/// family has none, or nobody is known.
pub(crate) fn within_reach(new: &Plugged, old: &[IpAddr]) -> Vec<Exit> {
    let same = |exit: &Exit| old.iter().any(|old| old.is_ipv4() == exit.source.is_ipv4());
    let covered =
        !old.is_empty() && old.iter().all(|old| new.exits().any(|exit| exit.source.is_ipv4() == old.is_ipv4()));
    new.exits().filter(|exit| !covered || same(exit)).collect()
}

/// The old address of a connection that has one, and none of the new ones.
pub(crate) fn left_behind(connection: &Connection, paths: &Paths) -> Option<IpAddr> {
    let on = |plugged: &Plugged| {
        connection.subflows.iter().find(|s| s.established && plugged.carries(s.local.ip())).map(|s| s.local.ip())
    };
    on(&paths.old).filter(|_| on(&paths.new).is_none())
}

/// Announces addresses with a port, unless they are.
pub(crate) fn open(kernel: &mut Kernel, record: &mut Record, exits: &[Exit]) -> Result<(), Refusal> {
    for exit in exits {
        let endpoints = kernel.path_manager.endpoints().map_err(refuse)?;
        if with_port(&endpoints, exit.source).next().is_none() {
            add(kernel, record, exit, &endpoints, true, &[])?;
        }
    }
    Ok(())
}

/// Announces the addresses with another port: to the peers, new addresses. What was announced so before goes, but for what
/// somebody's only subflow on a new address came by.
pub fn invite(kernel: &mut Kernel, record: &mut Record) -> Result<(), Refusal> {
    let paths = record.paths().ok_or(Refusal::NotPrepared)?;
    let snapshot = kernel.diag.snapshot().map_err(refuse)?;
    let left: Vec<IpAddr> = snapshot.connections.iter().filter_map(|c| left_behind(c, &paths)).collect();
    for exit in within_reach(&paths.new, &left) {
        let endpoints = kernel.path_manager.endpoints().map_err(refuse)?;
        let mut used = Vec::new();
        for endpoint in with_port(&endpoints, exit.source) {
            used.push(endpoint.port);
            if !snapshot.connections.iter().any(|connection| hangs_on(connection, &paths.new, endpoint)) {
                kernel.path_manager.delete(endpoint.id, exit.source).map_err(refuse)?;
            }
        }
        add(kernel, record, &exit, &endpoints, false, &used)?;
    }
    Ok(())
}

/// The endpoints of an address that have a port.
pub(crate) fn with_port(endpoints: &[Endpoint], address: IpAddr) -> impl Iterator<Item = &Endpoint> {
    endpoints.iter().filter(move |endpoint| endpoint.address == address && endpoint.port != 0)
}

/// All subflows that the connection has on the new path came by this endpoint.
fn hangs_on(connection: &Connection, new: &Plugged, endpoint: &Endpoint) -> bool {
    let on_new = connection.subflows.iter().filter(|s| s.established && new.carries(s.local.ip()));
    let mut on_new = on_new.peekable();
    on_new.peek().is_some() && on_new.all(|s| s.local == SocketAddr::new(endpoint.address, endpoint.port))
}

fn add(
    kernel: &mut Kernel,
    record: &mut Record,
    exit: &Exit,
    endpoints: &[Endpoint],
    backup: bool,
    used: &[u16],
) -> Result<(), Refusal> {
    let listeners = kernel.diag.snapshot().map_err(refuse)?.listeners;
    // The kernel takes no port with an endpoint that joins by itself: what the VM opened needs none.
    let flags = Flags { signal: true, backup, ..Flags::default() };
    let id = fresh_id(record, endpoints)?;
    for port in PORTS.filter(|port| !used.contains(port) && listeners.iter().all(|at| at.port() != *port)) {
        let endpoint = Endpoint { id, address: exit.source, port, flags, ifindex: exit.ifindex };
        match kernel.path_manager.add(&endpoint) {
            // Subflows that came by it before are still closing.
            Err(error) if error.errno() == Some(Errno::EADDRINUSE) => {}
            done => return done.map_err(refuse),
        }
    }
    let (first, last) = (PORTS.start(), PORTS.end());
    Err(Refusal::PathManager(format!("ports {first} to {last}, to announce the address with, are all in use")))
}

#[cfg(test)]
mod tests {
    use lsm_protocol::Mac;

    use super::*;

    fn plugged(addresses: &[&str]) -> Plugged {
        let mut plugged = Plugged::bare(Mac([2; 6]));
        for address in addresses {
            let source = address.parse().unwrap();
            plugged.put(Exit { ifindex: 1, source, prefix: 24, gateway: source });
        }
        plugged
    }

    fn paths(old: &[&str], new: &[&str]) -> Paths {
        Paths { old: plugged(old), new: plugged(new), old_covered: false }
    }

    fn subflow(local: &str, initial: bool, opened_by_us: bool) -> Subflow {
        Subflow {
            local: local.parse().unwrap(),
            remote: "203.0.113.9:4000".parse().unwrap(),
            established: true,
            initial,
            opened_by_us,
            backup: false,
            backup_by_peer: false,
            local_id: 0,
            remote_id: 0,
            rtt_us: 0,
            unacked: 0,
            bytes_acked: 0,
            bytes_received: 0,
            unsent: 0,
            silent_ms: 0,
            inode: 0,
        }
    }

    fn connection(subflows: &[Subflow]) -> Connection {
        Connection { token: 1, opened_by_us: None, port: Some(80), full: false, subflows: subflows.to_vec() }
    }

    #[test]
    fn a_door_is_open_where_somebody_listens_on_the_new_address_too() {
        let paths = paths(&["192.0.2.1"], &["198.51.100.1"]);
        let of = |subflow: Subflow, listeners: &[&str]| {
            let listeners = listeners.iter().map(|at| at.parse().unwrap()).collect();
            let snapshot = Snapshot { connections: vec![connection(&[subflow])], listeners, ..Snapshot::default() };
            let doors = Doors::of(&snapshot, &paths);
            assert_eq!(doors.at[0].2, doors.shut_out.len());
            (doors.at[0].1, doors.at[0].2)
        };
        let theirs = subflow("192.0.2.1:80", true, false);
        assert_eq!(of(theirs, &["0.0.0.0:80"]), (1, 0));
        assert_eq!(of(theirs, &["[::]:80"]), (1, 0));
        assert_eq!(of(theirs, &["192.0.2.1:80", "198.51.100.1:80"]), (1, 0));
        assert_eq!(of(theirs, &["192.0.2.1:80", "0.0.0.0:81"]), (0, 1));
        assert_eq!(of(theirs, &[]), (0, 1), "who accepts one and closes its listener");
        assert_eq!(of(subflow("192.0.2.1:80", true, true), &[]), (0, 0), "it joins by itself");
        assert_eq!(of(subflow("127.0.0.1:80", true, false), &[]), (0, 0));
        // Of one that moved before, by a port of the kernel's or not, the peer still knows the port it began with.
        let moved = subflow("192.0.2.1:19540", false, false);
        assert_eq!(of(moved, &["203.0.113.1:80", "192.0.2.1:19540"]), (0, 1));
        assert_eq!(of(moved, &["0.0.0.0:80"]), (1, 0));
        assert_eq!(
            of(moved, &[]),
            (0, 1),
            "or opened here, and moved by its peer, who finds nobody at that port either"
        );
        assert_eq!(of(subflow("192.0.2.1:4001", false, true), &[]), (0, 0), "it joins by itself");
    }

    #[test]
    fn of_two_families_one_open_door_is_enough() {
        let paths = paths(&["192.0.2.1", "2001:db8:1::1"], &["198.51.100.1", "2001:db8:2::1"]);
        let [four, six] = [paths.new.v4, paths.new.v6].map(Option::unwrap);
        let theirs = [subflow("192.0.2.1:80", true, false), subflow("[2001:db8:1::1]:81", true, false)];
        let connections: Vec<_> = theirs.iter().map(|theirs| connection(&[*theirs])).collect();
        let of = |listeners: &[&str]| {
            let listeners = listeners.iter().map(|at| at.parse().unwrap()).collect();
            let snapshot = Snapshot { connections: connections.clone(), listeners, ..Snapshot::default() };
            let doors = Doors::of(&snapshot, &paths);
            (doors.worth_trying(four.source), doors.worth_trying(six.source), doors.to_open(&paths.new))
        };
        assert_eq!(of(&["0.0.0.0:80", "[::]:81"]), (true, true, None));
        assert_eq!(of(&["0.0.0.0:80", "[2001:db8:1::1]:81"]), (true, false, Some(vec![six])));
        assert_eq!(of(&["192.0.2.1:80", "[2001:db8:2::1]:81"]), (false, true, Some(vec![four])));
        assert_eq!(of(&[]), (false, false, Some(vec![four, six])));
        // Where there is no address of the family, the other's is all there is.
        let only_six = plugged(&["2001:db8:2::1"]);
        assert_eq!(within_reach(&only_six, &[theirs[0].local.ip()]), [six]);
        assert_eq!(left_behind(&connections[0], &paths), Some(theirs[0].local.ip()));
        let joined = connection(&[theirs[0], subflow("[2001:db8:2::1]:80", false, false)]);
        assert_eq!(left_behind(&joined, &paths), None, "by whichever family");
    }

    #[test]
    fn what_somebody_hangs_on_is_known() {
        let new = plugged(&["198.51.100.1", "2001:db8:2::1"]);
        let at = |port| Endpoint {
            id: 1,
            address: "198.51.100.1".parse().unwrap(),
            port,
            flags: Flags::default(),
            ifindex: 1,
        };
        let (old, bare, with_port, other_family) = (
            subflow("192.0.2.1:80", true, false),
            subflow("198.51.100.1:80", false, false),
            subflow("198.51.100.1:19540", false, false),
            subflow("[2001:db8:2::1]:80", false, false),
        );
        assert!(hangs_on(&connection(&[old, with_port]), &new, &at(19_540)));
        assert!(!hangs_on(&connection(&[old, bare, with_port]), &new, &at(19_540)));
        assert!(!hangs_on(&connection(&[old, other_family, with_port]), &new, &at(19_540)));
        assert!(!hangs_on(&connection(&[old]), &new, &at(19_540)));
        assert!(!hangs_on(&connection(&[old, with_port]), &new, &at(19_541)));
    }
}
