//! What networks do, and middleboxes in them.

use std::time::Duration;

use super::pause;
use crate::{
    connections::Connections,
    faults::Scene,
    middlebox::Subtype,
    shell::{LabError, Result},
    wire::Wire,
};

const LIMIT: Duration = Duration::from_secs(60);
const CLIENTS: [&str; 2] = ["client-montreal", "client-dallas"];
const ALL: [&str; 3] = ["client-montreal", "client-dallas", "wan-montreal"];

fn each(scene: &Scene, wires: &[&str], order: impl Fn(&Wire) -> Result<()>) -> Result<()> {
    wires.iter().try_for_each(|name| order(scene.stage.topology.wire(name)?))
}

/// Both hosts live and do not hear of each other, right after the arrival.
pub(crate) fn wan_cut(scene: &mut Scene) -> Result<()> {
    each(scene, &["wan-montreal"], Wire::cut)?;
    scene.undo.push(|scene| each(scene, &["wan-montreal"], Wire::mend));
    pause(6_000);
    scene.heal()
}

/// From the client to the new LAN nothing goes any more: the old path, through the home tunnel, must carry on.
pub(crate) fn new_path_dead(scene: &mut Scene) -> Result<()> {
    let way = if scene.to == "dallas" { [CLIENTS[1]] } else { [CLIENTS[0]] };
    each(scene, &way, Wire::cut)?;
    scene.undo.push(|scene| each(scene, &CLIENTS, Wire::mend));
    if let Err(error) = scene.connections.alive() {
        scene.note(&scene.subflows());
        let why = crate::shell::chain(&error);
        return Err(LabError::Other(format!("the new path was dead and the old one was not used: {why}")));
    }
    scene.heal()
}

pub(crate) fn lose_rm_addr(scene: &mut Scene) -> Result<()> {
    each(scene, &CLIENTS, |wire| wire.set_loss_of(Subtype::RemoveAddress, 1.0))?;
    scene.undo.push(|scene| each(scene, &CLIENTS, |wire| wire.set_loss_of(Subtype::RemoveAddress, 0.0)));
    Ok(())
}

pub(crate) fn until_settled(scene: &mut Scene) -> Result<()> {
    scene.stage.agent_is(&["idle"], LIMIT).map(drop)
}

pub(crate) fn lose_add_addr(scene: &mut Scene) -> Result<()> {
    each(scene, &CLIENTS, |wire| wire.set_loss_of(Subtype::AddAddress, 0.3))?;
    scene.undo.push(|scene| each(scene, &CLIENTS, |wire| wire.set_loss_of(Subtype::AddAddress, 0.0)));
    Ok(())
}

pub(crate) fn block_joins(scene: &mut Scene) -> Result<()> {
    each(scene, &CLIENTS, |wire| wire.set_loss_of(Subtype::Join, 1.0))?;
    scene.undo.push(|scene| each(scene, &CLIENTS, |wire| wire.set_loss_of(Subtype::Join, 0.0)));
    Ok(())
}

/// Alive on the old address, and the agent says who waits; let through, they join after all.
pub(crate) fn joins_are_missed(scene: &mut Scene) -> Result<()> {
    let status = scene.stage.agent_is(&["switched"], LIMIT)?;
    if status["waiting"] != 4 {
        return Err(LabError::Other(format!("the agent does not name the four that cannot join: {status}")));
    }
    scene.connections.alive()
}

/// Connections that are opened through such a box are plain TCP. Those there are would break: they end first.
pub(crate) fn strip_option(scene: &mut Scene) -> Result<()> {
    let nobody = Connections::open_more(&scene.stage, 1, 0)?;
    std::mem::replace(&mut scene.connections, nobody).end()?;
    each(scene, &CLIENTS, |wire| wire.set_blanking(true))?;
    scene.undo.push(|scene| each(scene, &CLIENTS, |wire| wire.set_blanking(false)));
    scene.connections = Connections::open(&scene.stage, 0)?;
    Ok(())
}

pub(crate) fn stripped_is_legacy(scene: &mut Scene) -> Result<()> {
    scene.connections.alive()?;
    let status = scene.stage.agent_is(&["settling", "switched"], LIMIT)?;
    if status["legacy"] != 4 {
        return Err(LabError::Other(format!("the agent does not name the four legacy connections: {status}")));
    }
    let nobody = Connections::open_more(&scene.stage, 0, 1)?;
    std::mem::replace(&mut scene.connections, nobody).end()?;
    each(scene, &CLIENTS, |wire| wire.set_blanking(false))?;
    let fresh = Connections::open(&scene.stage, 0)?;
    std::mem::replace(&mut scene.connections, fresh).end()
}

/// It answers no ARP for the first second and a half of the preparation.
pub(crate) fn gateway_silent(scene: &mut Scene) -> Result<()> {
    let gateway = format!("gw-{}", scene.to);
    let ignore = |value: &str| scene.stage.topology.ns(&gateway).sysctl(&[("net/ipv4/conf/lan/arp_ignore", value)]);
    ignore("8")?;
    pause(1_500);
    ignore("0")
}

/// Its router says that nobody is there, as long as the clients' first joins take: whoever has heard that tries no more
/// until the address is announced to it again.
pub(crate) fn unreachable_at_first(scene: &mut Scene) -> Result<()> {
    // What has joined by an endpoint with a port of its own has no other.
    let number = scene.stage.topology.site(&scene.to).number;
    scene.meant.push(format!("endpoints and limits of the VM: + 10.{number}.0.100 port 19540 id"));
    let gateway = format!("gw-{}", scene.to);
    let order =
        |what: &str| scene.stage.topology.ns(&gateway).ip(&format!("route {what} unreachable 10.{number}.0.100/32\n"));
    order("add")?;
    pause(2_500);
    order("del").map(drop)
}

/// The gateway has learnt another machine for the VM's new address.
pub(crate) fn stale_arp(scene: &mut Scene) -> Result<()> {
    let number = scene.stage.topology.site(&scene.to).number;
    let wrong = format!("neigh replace 10.{number}.0.100 lladdr 02:00:00:00:00:99 dev lan nud reachable\n");
    scene.stage.topology.ns(&format!("gw-{}", scene.to)).ip(&wrong).map(drop)
}

/// A router between the hosts passes less than it did.
pub(crate) fn shrink_mtu(scene: &mut Scene) -> Result<()> {
    fn set(scene: &Scene, mtu: u32) -> Result<()> {
        scene
            .stage
            .topology
            .ns("wan")
            .ip(&format!("link set montreal mtu {mtu}\nlink set dallas mtu {mtu}\n"))
            .map(drop)
    }
    set(scene, 1_300)?;
    scene.undo.push(|scene| set(scene, 1_500));
    Ok(())
}

pub(crate) fn lose_some(scene: &mut Scene) -> Result<()> {
    each(scene, &ALL, |wire| wire.set_loss(0.02))?;
    scene.undo.push(|scene| each(scene, &ALL, |wire| wire.set_loss(0.0)));
    Ok(())
}

pub(crate) fn reorder(scene: &mut Scene) -> Result<()> {
    each(scene, &ALL, |wire| wire.set_reordering(0.05))?;
    scene.undo.push(|scene| each(scene, &ALL, |wire| wire.set_reordering(0.0)));
    Ok(())
}

pub(crate) fn repeat(scene: &mut Scene) -> Result<()> {
    each(scene, &ALL, |wire| wire.set_repetition(0.05))?;
    scene.undo.push(|scene| each(scene, &ALL, |wire| wire.set_repetition(0.0)));
    Ok(())
}
