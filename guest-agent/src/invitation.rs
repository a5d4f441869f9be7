//! The new address announced with a port of its own, for which the kernel listens itself.
//!
//! It is for two kinds of connections. Programs that listen on the old address alone refuse joins to the new one
//! (RST): where nobody listens for a connection's port on the new address, only the kernel can. And whoever has not joined
//! after the flip is invited so: withdrawing the address and announcing it again would close the subflows of all who
//! have joined, while this adds one to each, in vain but without harm.

use std::{net::IpAddr, ops::RangeInclusive};

use lsm_protocol::Refusal;
use nix::errno::Errno;

use crate::{
    connections::{Connection, Snapshot},
    endpoints::{fresh_id, refuse},
    kernel::Kernel,
    mptcp::{Endpoint, Flags},
    record::{Plugged, Record},
};

/// Known beforehand, so that a firewall can let them in: the ones after the agent's own port on vsock.
const PORTS: RangeInclusive<u16> = 19_540..=19_547;

/// Which of the connections that clients opened can join the new address at the port they know.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Doors {
    /// A program listens there.
    pub open: usize,
    /// None does: it listens on the old address alone, or not any more.
    pub shut: usize,
}

impl Doors {
    pub(crate) fn of(snapshot: &Snapshot, old: IpAddr, new: IpAddr) -> Doors {
        let mut doors = Doors::default();
        for connection in &snapshot.connections {
            let initial = connection.subflows.iter().find(|s| s.initial && !s.opened_by_us && s.local.ip() == old);
            let Some(port) = initial.map(|subflow| subflow.local.port()) else { continue };
            let opens = |at: &std::net::SocketAddr| at.port() == port && (at.ip().is_unspecified() || at.ip() == new);
            *(if snapshot.listeners.iter().any(opens) { &mut doors.open } else { &mut doors.shut }) += 1;
        }
        doors
    }
}

/// Announces the address with a port, unless it is.
pub(crate) fn open(kernel: &mut Kernel, record: &mut Record, new: &Plugged) -> Result<(), Refusal> {
    let endpoints = kernel.path_manager.endpoints().map_err(refuse)?;
    if with_port(&endpoints, new.exit.source).next().is_some() {
        return Ok(());
    }
    add(kernel, record, new, &endpoints, true, &[])
}

/// Announces the address with another port: to the peers, a new address. What was announced so before goes, but for what
/// somebody's only subflow on the new address came by.
pub fn invite(kernel: &mut Kernel, record: &mut Record) -> Result<(), Refusal> {
    let new = record.paths.ok_or(Refusal::NotPrepared)?.new;
    let address = new.exit.source;
    let snapshot = kernel.diag.snapshot().map_err(refuse)?;
    let endpoints = kernel.path_manager.endpoints().map_err(refuse)?;
    let mut used = Vec::new();
    for endpoint in with_port(&endpoints, address) {
        used.push(endpoint.port);
        if !snapshot.connections.iter().any(|connection| hangs_on(connection, address, endpoint.port)) {
            kernel.path_manager.delete(endpoint.id, address).map_err(refuse)?;
        }
    }
    add(kernel, record, &new, &endpoints, false, &used)
}

/// The endpoints of an address that have a port.
pub(crate) fn with_port(endpoints: &[Endpoint], address: IpAddr) -> impl Iterator<Item = &Endpoint> {
    endpoints.iter().filter(move |endpoint| endpoint.address == address && endpoint.port != 0)
}

/// All subflows that the connection has on the address came by this port.
fn hangs_on(connection: &Connection, address: IpAddr, port: u16) -> bool {
    let mut on_address = connection.subflows.iter().filter(|s| s.established && s.local.ip() == address).peekable();
    on_address.peek().is_some() && on_address.all(|subflow| subflow.local.port() == port)
}

fn add(
    kernel: &mut Kernel,
    record: &mut Record,
    new: &Plugged,
    endpoints: &[Endpoint],
    backup: bool,
    used: &[u16],
) -> Result<(), Refusal> {
    let listeners = kernel.diag.snapshot().map_err(refuse)?.listeners;
    // The kernel takes no port with an endpoint that joins by itself: what the VM opened needs none.
    let flags = Flags { signal: true, backup, ..Flags::default() };
    let id = fresh_id(record, endpoints)?;
    for port in PORTS.filter(|port| !used.contains(port) && listeners.iter().all(|at| at.port() != *port)) {
        let endpoint = Endpoint { id, address: new.exit.source, port, flags, ifindex: new.exit.ifindex };
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
    use super::*;
    use crate::connections::Subflow;

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
            inode: 0,
        }
    }

    fn connection(subflows: &[Subflow]) -> Connection {
        Connection { token: 1, opened_by_us: None, full: false, subflows: subflows.to_vec() }
    }

    #[test]
    fn a_door_is_open_where_somebody_listens_on_the_new_address_too() {
        let of = |subflow: Subflow, listeners: &[&str]| {
            let listeners = listeners.iter().map(|at| at.parse().unwrap()).collect();
            let snapshot = Snapshot { connections: vec![connection(&[subflow])], listeners, ..Snapshot::default() };
            let Doors { open, shut } =
                Doors::of(&snapshot, "192.0.2.1".parse().unwrap(), "198.51.100.1".parse().unwrap());
            (open, shut)
        };
        let theirs = subflow("192.0.2.1:80", true, false);
        assert_eq!(of(theirs, &["0.0.0.0:80"]), (1, 0));
        assert_eq!(of(theirs, &["[::]:80"]), (1, 0));
        assert_eq!(of(theirs, &["192.0.2.1:80", "198.51.100.1:80"]), (1, 0));
        assert_eq!(of(theirs, &["192.0.2.1:80", "0.0.0.0:81"]), (0, 1));
        assert_eq!(of(theirs, &[]), (0, 1), "who accepts one and closes its listener");
        assert_eq!(of(subflow("192.0.2.1:80", true, true), &[]), (0, 0), "it joins by itself");
        assert_eq!(of(subflow("127.0.0.1:80", true, false), &[]), (0, 0));
    }

    #[test]
    fn what_somebody_hangs_on_is_known() {
        let address = "198.51.100.1".parse().unwrap();
        let (old, bare, with_port) = (
            subflow("192.0.2.1:80", true, false),
            subflow("198.51.100.1:80", false, false),
            subflow("198.51.100.1:19540", false, false),
        );
        assert!(hangs_on(&connection(&[old, with_port]), address, 19_540));
        assert!(!hangs_on(&connection(&[old, bare, with_port]), address, 19_540));
        assert!(!hangs_on(&connection(&[old]), address, 19_540));
        assert!(!hangs_on(&connection(&[old, with_port]), address, 19_541));
    }
}
