//! The MPTCP endpoints of both vNICs' addresses: announced, preferred, withdrawn.

use std::net::IpAddr;

use lsm_protocol::{Refusal, Side};

use crate::{
    connections::{Connection, Snapshot},
    invitation::{self, Doors},
    kernel::Kernel,
    mptcp::{Endpoint, Flags, Which},
    path::chain,
    record::{Paths, Record},
    routing::Exit,
};

/// A new address, to every peer: `signal` moves connections that clients opened, `subflow` those that the VM opened.
const ANNOUNCED: Flags = Flags { signal: true, subflow: true, backup: true, fullmesh: false, implicit: false };
/// An old address, so that its priority can be set: it announces nothing and joins nothing.
const COVERING: Flags = Flags { signal: false, subflow: false, backup: false, fullmesh: false, implicit: false };

/// Announces the new addresses, as backup; with a port too where programs do not listen on them.
pub fn announce(kernel: &mut Kernel, record: &mut Record) -> Result<(), Refusal> {
    let paths = paths(record)?;
    let endpoints = kernel.path_manager.endpoints().map_err(refuse)?;
    let snapshot = kernel.diag.snapshot().map_err(refuse)?;
    let doors = Doors::of(&snapshot, &paths);
    let is_announced = |exit: &Exit| endpoints.iter().any(|e| e.address == exit.source && e.flags.subflow);
    if !paths.new.exits().any(|exit| is_announced(&exit)) {
        let old_covered = paths.old.exits().all(|exit| covers(&endpoints, exit.source));
        record.set_paths(Some(Paths { old_covered, ..paths }));
    }
    // Who has only a held address hangs on the endpoint that covers it: to announce it, a port is needed.
    let (covered, bare): (Vec<Exit>, Vec<Exit>) =
        paths.new.exits().filter(|exit| !is_announced(exit)).partition(|exit| covers(&endpoints, exit.source));
    for exit in bare {
        // Where all doors are shut, joins without a port would be refused, and each costs the peer one of the addresses
        // that it accepts.
        let flags = Flags { signal: doors.worth_trying(exit.source), ..ANNOUNCED };
        add(kernel, record, &exit, flags, &endpoints)?;
    }
    if let Some(exits) = doors.to_open(&paths.new) {
        tracing::info!("for some connections no program listens for joins; announcing with a port");
        invitation::open(kernel, record, &exits)?;
    }
    if snapshot.connections.iter().any(|connection| invitation::left_behind(connection, &paths).is_some()) {
        invitation::open(kernel, record, &covered)?;
    }
    Ok(())
}

fn add(
    kernel: &mut Kernel,
    record: &mut Record,
    exit: &Exit,
    flags: Flags,
    endpoints: &[Endpoint],
) -> Result<(), Refusal> {
    let id = fresh_id(record, endpoints)?;
    let endpoint = Endpoint { id, address: exit.source, port: 0, flags, ifindex: exit.ifindex };
    kernel.path_manager.add(&endpoint).map_err(refuse)
}

/// Announces it again to those who did not join: under a fresh id, since a peer takes no address twice.
///
/// What the VM opened joins by itself, but not for ever: a withdrawn endpoint with both flags goes on counting against the
/// connections that joined from it (6.18: mptcp_pm_remove_anno_addr marks the id as free, __mark_subflow_endp_available
/// then finds nothing to give back), and from the fourth move on there was no count left. Their peers can still join us,
/// where the kernel listens for them: it takes a port.
pub(crate) fn announce_again(kernel: &mut Kernel, record: &mut Record) -> Result<(), Refusal> {
    let paths = paths(record)?;
    let left = able_and_left(&kernel.diag.snapshot().map_err(refuse)?, &paths);
    withdraw(kernel, record, Side::New)?;
    announce(kernel, record)?;
    if !left.is_empty() {
        tracing::info!(
            connections = left.len(),
            "moved before or opened here, and not joined; announcing with a port for their peers"
        );
        invitation::open(kernel, record, &invitation::within_reach(&paths.new, &left))?;
    }
    Ok(())
}

/// Those who have not joined, by their old addresses, but for those who clients opened and who never moved: their clients
/// may take no address.
fn able_and_left(snapshot: &Snapshot, paths: &Paths) -> Vec<IpAddr> {
    let able = snapshot.connections.iter().filter(|c| c.opened_by_us != Some(false));
    able.filter_map(|connection| invitation::left_behind(connection, paths)).collect()
}

/// The flip: all priorities in one write.
pub fn prefer(kernel: &mut Kernel, record: &mut Record, side: Side) -> Result<(), Refusal> {
    let paths = match side {
        Side::New => paths(record)?,
        // On the way back from a preparation that did not get far there may be nothing to prefer.
        Side::Old => match record.paths() {
            Some(paths) => paths,
            None => return Ok(()),
        },
    };
    let to_new = side == Side::New;
    if to_new && !paths.old_covered {
        cover(kernel, record, paths)?;
    }
    let endpoints = kernel.path_manager.endpoints().map_err(refuse)?;
    let mut priorities = Vec::new();
    // The path that is to carry the traffic first.
    for (plugged, backup) in [(paths.side(side), false), (paths.side(side.other()), true)] {
        for address in plugged.addresses().all() {
            if to_new || covers(&endpoints, address) {
                priorities.push((Which::Address(address), backup));
            }
            // An endpoint with a port is not meant when its address is named.
            priorities.extend(invitation::with_port(&endpoints, address).map(|e| (Which::Id(e.id), backup)));
        }
    }
    if priorities.is_empty() { Ok(()) } else { kernel.path_manager.set_backup(&priorities).map_err(refuse) }
}

/// Deletes the endpoints of this side's addresses, if there are any: RM_ADDR to every peer, their subflows close.
pub fn withdraw(kernel: &mut Kernel, record: &mut Record, side: Side) -> Result<(), Refusal> {
    let Some(paths) = record.paths() else { return Ok(()) };
    // On a way back that is called off: connections may hang on what the held addresses had before.
    let before = record.before().filter(|_| side == Side::New).map_or(&[][..], |before| &before.endpoints);
    let endpoints = kernel.path_manager.endpoints().map_err(refuse)?;
    let ours = |e: &&Endpoint| paths.side(side).carries(e.address) && !e.flags.implicit && !before.contains(&e.id);
    for endpoint in endpoints.iter().filter(ours) {
        kernel.path_manager.delete(endpoint.id, endpoint.address).map_err(refuse)?;
    }
    Ok(())
}

/// Whether connections have a subflow of either side: once the old address is withdrawn, those are who was opened to it since
/// then, and has joined the new one.
pub fn has_late_comers(kernel: &mut Kernel, record: &Record) -> Result<bool, Refusal> {
    let Some(paths) = record.paths() else { return Ok(false) };
    let snapshot = kernel.diag.snapshot().map_err(refuse)?;
    Ok(snapshot.connections.iter().any(|connection| is_on_both(connection, &paths)))
}

fn is_on_both(connection: &Connection, paths: &Paths) -> bool {
    let on = |side| {
        let side = paths.side(side);
        connection.subflows.iter().any(|subflow| subflow.established && side.carries(subflow.local.ip()))
    };
    on(Side::Old) && on(Side::New)
}

/// Withdraws the old addresses from them too: the kernel closes a first subflow by an endpoint that covers its address only.
/// Left where nothing answers, it would be found when the VM comes back there, counted as joined, and stalled.
pub fn withdraw_from_late_comers(kernel: &mut Kernel, record: &mut Record) -> Result<(), Refusal> {
    let Some(paths) = record.paths() else { return Ok(()) };
    cover(kernel, record, paths)?;
    withdraw(kernel, record, Side::Old)
}

/// Adds the endpoints that cover the old addresses. They stay when a migration is aborted after a flip: deleting them would
/// close the initial subflow of every connection.
fn cover(kernel: &mut Kernel, record: &mut Record, paths: Paths) -> Result<(), Refusal> {
    let endpoints = kernel.path_manager.endpoints().map_err(refuse)?;
    for exit in paths.old.exits().filter(|exit| !covers(&endpoints, exit.source)) {
        add(kernel, record, &exit, COVERING, &endpoints)?;
    }
    record.set_paths(Some(Paths { old_covered: true, ..paths }));
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
    record.paths().ok_or(Refusal::NotPrepared)
}

pub(crate) fn refuse(error: crate::netlink::Error) -> Refusal {
    Refusal::PathManager(chain(&error))
}
