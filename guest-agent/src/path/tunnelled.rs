//! The old addresses' packets after the arrival: a tunnel carries them home, and needs room of its own in the network between
//! the hosts. Where that network takes no more than the LAN does, full packets cross it in two pieces, at half the speed.
//! So the VM makes them shorter from now on. What is sent to it the other end decides; that comes in pieces as before.

use lsm_protocol::Mac;

use super::TABLE;
use crate::{
    kernel::Kernel,
    netlink::Error,
    record::{Change, Paths, Record},
    routing::Exit,
};

/// What a tunnel adds to a packet at most: Ethernet 14, VXLAN 8, UDP 8 (RFC 7348, section 5), IPv6 40. The hosts do not say
/// which IP their tunnels use; over IPv4 it is 20 less.
const TUNNEL: u32 = 70;
/// IPv6's least MTU (RFC 8200, section 5), below which no card speaks it; a LAN that is as small is left alone.
const LEAST: u32 = 1_280;

/// The old vNIC is behind a tunnel, the new one is not, or not any more. Families that are refused are named, the others
/// done.
pub(super) async fn turn(kernel: &mut Kernel, record: &mut Record, paths: &Paths) -> Vec<Error> {
    let mtu = lowered(kernel, paths.old.mac).await;
    let old = paths.old.exits().map(|exit| (exit, mtu));
    let all: Vec<_> = old.chain(paths.new.exits().map(|exit| (exit, None))).collect();
    all.into_iter().filter_map(|(exit, now)| set(kernel, record, exit, now).err()).collect()
}

/// The longest packet by this exit, where it is not the card's.
pub(super) fn mtu(record: &Record, exit: &Exit) -> Option<u32> {
    record.changes.iter().rev().find_map(|change| match change {
        Change::PathMtu { exit: of, now, .. } if of == exit => Some(*now),
        _ => None,
    })?
}

async fn lowered(kernel: &Kernel, mac: Mac) -> Option<u32> {
    // Not there, or not to be asked: there is nothing to lower then.
    let vnic = kernel.vnics.find(mac).await.ok()??;
    Some(vnic.mtu.saturating_sub(TUNNEL)).filter(|mtu| *mtu >= LEAST)
}

fn set(kernel: &mut Kernel, record: &mut Record, exit: Exit, now: Option<u32>) -> Result<(), Error> {
    let (table, was) = (TABLE + exit.ifindex, mtu(record, &exit));
    if was == now || !record.changes.contains(&Change::Table(table)) {
        return Ok(());
    }
    record.append(Change::PathMtu { exit, was, now });
    kernel.routing.fill_table(table, &exit, now)
}
