//! The MPTCP endpoints of the two addresses: announced, preferred, withdrawn.

use std::net::IpAddr;

use lsm_protocol::{Refusal, Side};

use crate::{
    connections::{Connection, Snapshot},
    invitation::{self, Doors},
    kernel::Kernel,
    mptcp::{Endpoint, Flags, Which},
    path::chain,
    record::{Paths, Record},
};

/// The new address, to every peer: `signal` moves connections that clients opened, `subflow` those that the VM opened.
const ANNOUNCED: Flags = Flags { signal: true, subflow: true, backup: true, fullmesh: false, implicit: false };
/// The old address, so that its priority can be set: it announces nothing and joins nothing.
const COVERING: Flags = Flags { signal: false, subflow: false, backup: false, fullmesh: false, implicit: false };

/// Announces the new address, as backup; with a port too where programs do not listen on it.
pub fn announce(kernel: &mut Kernel, record: &mut Record) -> Result<(), Refusal> {
    let paths = paths(record)?;
    let endpoints = kernel.path_manager.endpoints().map_err(refuse)?;
    let (old, address) = (paths.old.exit.source, paths.new.exit.source);
    let doors = Doors::of(&kernel.diag.snapshot().map_err(refuse)?, old, address);
    let announced = endpoints.iter().any(|e| e.address == address && e.flags.subflow);
    if !announced {
        record.paths = Some(Paths { old_covered: covers(&endpoints, old), ..paths });
        // Where all doors are shut, joins without a port would be refused, and each costs the peer one of the addresses
        // that it accepts.
        let flags = Flags { signal: doors.shut == 0 || doors.open > 0, ..ANNOUNCED };
        let id = fresh_id(record, &endpoints)?;
        let endpoint = Endpoint { id, address, port: 0, flags, ifindex: paths.new.exit.ifindex };
        kernel.path_manager.add(&endpoint).map_err(refuse)?;
    }
    if doors.shut > 0 {
        tracing::info!(connections = doors.shut, "no program listens for their joins; announcing with a port");
        invitation::open(kernel, record, &paths.new)?;
    }
    Ok(())
}

/// Announces it again to those who did not join: under a fresh id, since a peer takes no address twice.
///
/// What the VM opened joins by itself, but not for ever: a withdrawn endpoint with both flags goes on counting against the
/// connections that joined from it (6.18: mptcp_pm_remove_anno_addr marks the id as free, __mark_subflow_endp_available
/// then finds nothing to give back), and from the fourth move on there was no count left. Their peers can still join us,
/// where the kernel listens for them: it takes a port.
pub(crate) fn announce_again(kernel: &mut Kernel, record: &mut Record) -> Result<(), Refusal> {
    let paths = paths(record)?;
    let (old, new) = (paths.old.exit.source, paths.new.exit.source);
    let left = able_and_left(&kernel.diag.snapshot().map_err(refuse)?, old, new);
    withdraw(kernel, record, Side::New)?;
    announce(kernel, record)?;
    if left > 0 {
        tracing::info!(
            connections = left,
            "moved before or opened here, and not joined; announcing with a port for their peers"
        );
        invitation::open(kernel, record, &paths.new)?;
    }
    Ok(())
}

/// Those who have not joined, but for those who clients opened and who never moved: their clients may take no address.
fn able_and_left(snapshot: &Snapshot, old: IpAddr, new: IpAddr) -> usize {
    let on = |c: &Connection, address| c.subflows.iter().any(|s| s.established && s.local.ip() == address);
    let left = |c: &&Connection| c.opened_by_us != Some(false) && on(c, old) && !on(c, new);
    snapshot.connections.iter().filter(left).count()
}

/// The flip: both priorities in one write.
pub fn prefer(kernel: &mut Kernel, record: &mut Record, side: Side) -> Result<(), Refusal> {
    let paths = match side {
        Side::New => paths(record)?,
        // On the way back from a preparation that did not get far there may be nothing to prefer.
        Side::Old => match record.paths {
            Some(paths) => paths,
            None => return Ok(()),
        },
    };
    let (old, new) = (paths.old.exit.source, paths.new.exit.source);
    let to_new = side == Side::New;
    if to_new && !paths.old_covered {
        cover(kernel, record, paths)?;
    }
    let mut priorities = vec![(Which::Address(new), !to_new), (Which::Address(old), to_new)];
    let endpoints = kernel.path_manager.endpoints().map_err(refuse)?;
    for (address, backup) in [(new, !to_new), (old, to_new)] {
        // An endpoint with a port is not meant when its address is named.
        priorities.extend(invitation::with_port(&endpoints, address).map(|e| (Which::Id(e.id), backup)));
    }
    if !to_new {
        priorities.retain(|(which, _)| match which {
            Which::Address(address) => covers(&endpoints, *address),
            Which::Id(_) => true,
        });
        priorities.reverse(); // the path that is to carry the traffic first
    }
    if priorities.is_empty() { Ok(()) } else { kernel.path_manager.set_backup(&priorities).map_err(refuse) }
}

/// Deletes the endpoint of this side's address, if there is one: RM_ADDR to every peer, its subflows close.
pub fn withdraw(kernel: &mut Kernel, record: &mut Record, side: Side) -> Result<(), Refusal> {
    let Some(paths) = record.paths else { return Ok(()) };
    let address = match side {
        Side::Old => paths.old.exit.source,
        Side::New => paths.new.exit.source,
    };
    let endpoints = kernel.path_manager.endpoints().map_err(refuse)?;
    for endpoint in endpoints.iter().filter(|e| e.address == address && !e.flags.implicit) {
        kernel.path_manager.delete(endpoint.id, address).map_err(refuse)?;
    }
    Ok(())
}

/// Adds the endpoint that covers the old address. It stays when a migration is aborted after a flip: deleting it would
/// close the initial subflow of every connection.
fn cover(kernel: &mut Kernel, record: &mut Record, paths: Paths) -> Result<(), Refusal> {
    let endpoints = kernel.path_manager.endpoints().map_err(refuse)?;
    let address: IpAddr = paths.old.exit.source;
    if !covers(&endpoints, address) {
        let id = fresh_id(record, &endpoints)?;
        let endpoint = Endpoint { id, address, port: 0, flags: COVERING, ifindex: paths.old.exit.ifindex };
        kernel.path_manager.add(&endpoint).map_err(refuse)?;
    }
    record.paths = Some(Paths { old_covered: true, ..paths });
    Ok(())
}

/// Whether an endpoint is the one that is meant when the address is named.
fn covers(endpoints: &[Endpoint], address: IpAddr) -> bool {
    endpoints.iter().any(|e| e.address == address && e.port == 0 && !e.flags.implicit)
}

pub(crate) fn fresh_id(record: &mut Record, endpoints: &[Endpoint]) -> Result<u8, Refusal> {
    let free = |id: &u8| *id != 0 && endpoints.iter().all(|e| e.id != *id);
    let id = (1..=u8::MAX).map(|step| record.endpoint_id.wrapping_add(step)).find(free);
    let id = id.ok_or_else(|| Refusal::PathManager("all 255 endpoint ids are in use".to_owned()))?;
    record.endpoint_id = id;
    Ok(id)
}

fn paths(record: &Record) -> Result<Paths, Refusal> {
    record.paths.ok_or(Refusal::NotPrepared)
}

pub(crate) fn refuse(error: crate::netlink::Error) -> Refusal {
    Refusal::PathManager(chain(&error))
}
