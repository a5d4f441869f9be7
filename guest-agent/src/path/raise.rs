//! The new path made: vNIC, addresses, rules and tables; and the kernel asked where packets would go.
//!
//! In three parts, each of which can be repeated: the vNIC is plugged in ([`plug`]), gets the addresses that the host gives
//! ([`give`]), and both paths get their routes ([`route`]). Those that are got from the LAN are there before ([`got`]).

use std::net::IpAddr;

use lsm_protocol::{Given, Mac, Prepare, Refusal, V4, V6};

use super::{PARAMETERS, PRIORITY, TABLE, chain, find, proof, set_parameter, tunnelled};
use crate::{
    kernel::Kernel,
    obtain::Address,
    record::{Change, Paths, Plugged, Record, RuleKey},
    routing::Exit,
    vnic::Vnic,
};

/// New vNIC up, addresses, rules and tables for both; checked by asking the kernel where packets would go.
pub async fn raise(kernel: &mut Kernel, record: &mut Record, plan: &Prepare) -> Result<(), Refusal> {
    let endpoints = kernel.path_manager.endpoints().map_err(|e| Refusal::PathManager(chain(&e)))?;
    let new = plug(kernel, record, plan).await?;
    if record.guest.is_on_way_back() {
        let held = record.paths().map(|paths| paths.new);
        let held = endpoints.iter().filter(|e| held.is_some_and(|held| held.carries(e.address)));
        record.keep_before(plan.migration, held.map(|endpoint| endpoint.id));
    }
    if !holds(record) {
        give(kernel, record, plan, &new).await?;
    }
    if record.paths().is_some_and(|paths| paths.new.exits().next().is_none()) {
        return Err(Refusal::NotPrepared); // nothing was got
    }
    route(kernel, record, plan)
}

/// On a way back: the new vNIC has an address from before.
fn holds(record: &Record) -> bool {
    record.guest.is_on_way_back() && record.paths().is_some_and(|paths| paths.new.exits().next().is_some())
}

/// Looks at everything first, then sets the new vNIC's parameters and raises it.
pub async fn plug(kernel: &mut Kernel, record: &mut Record, plan: &Prepare) -> Result<Vnic, Refusal> {
    if (plan.addressing.v4, plan.addressing.v6) == (V4::None, V6::None) {
        return Err(Refusal::Addressing);
    }
    let old = find(kernel, plan.old).await?;
    let new = find(kernel, plan.new).await?;
    // Of another move, whose end failed, nothing is true any more.
    let known = record.paths().filter(|paths| (paths.old.mac, paths.new.mac) == (plan.old, plan.new));
    let back = record.guest.is_on_way_back();
    let paths = match known {
        // What is held, as far as it still is.
        Some(Paths { old, new: held, old_covered }) if back => {
            let mut still = Plugged::bare(held.mac);
            held.exits()
                .filter(|exit| new.addresses.iter().any(|(had, _)| *had == exit.source))
                .for_each(|exit| still.put(exit));
            Paths { old, new: still, old_covered }
        }
        Some(paths) => paths, // a repetition: the main table may have changed since
        None => Paths { old: exits_of(kernel, &old).await?, new: Plugged::bare(plan.new), old_covered: false },
    };
    for address in plan.addressing.addresses().all() {
        if !back && old.addresses.iter().any(|(used, _)| *used == address) {
            let detail = format!("address {address} is in use on vNIC {} already; correct the LAN's pool", plan.old);
            return Err(Refusal::Path { mac: plan.new, detail });
        }
    }
    record.set_paths(Some(paths));

    for vnic in [&old, &new] {
        for (parameter, value) in PARAMETERS {
            set_parameter(record, &format!("net/ipv4/conf/{}/{parameter}", vnic.name), value);
        }
    }
    let refuse = |error: crate::vnic::Error| refuse(plan.new, &error);
    if new.mtu != u32::from(plan.mtu) {
        record.note(Change::Mtu { vnic: plan.new, was: new.mtu });
        kernel.vnics.set_mtu(&new, plan.mtu.into()).await.map_err(refuse)?;
    }
    let left_up = record.left_up.take_if(|mac| *mac == plan.new).is_some();
    if !new.up || left_up {
        record.note(Change::VnicUp(plan.new));
    }
    kernel.vnics.set_up(&new, true).await.map_err(refuse)?;
    Ok(new)
}

/// The addresses that the plan names. Each is in the record's paths when it is there, and not before.
async fn give(kernel: &mut Kernel, record: &mut Record, plan: &Prepare, new: &Vnic) -> Result<(), Refusal> {
    for Given { address, prefix_len, gateway } in plan.addressing.given() {
        record.note(Change::Address { vnic: plan.new, address, prefix_len });
        kernel.vnics.add_address(new, address, prefix_len).await.map_err(|error| refuse(plan.new, &error))?;
        put(record, Exit { ifindex: new.index, source: address, prefix: prefix_len, gateway });
    }
    Ok(())
}

/// The new vNIC has got an address from the LAN. It is the vNIC's already, unless the lease is ours.
pub async fn got(kernel: &mut Kernel, record: &mut Record, mac: Mac, found: Address) -> Result<(), Refusal> {
    let Address { address, prefix_len, gateway } = found;
    let new = find(kernel, mac).await?;
    record.note(Change::Address { vnic: mac, address, prefix_len });
    if !new.addresses.iter().any(|(had, _)| *had == address) {
        kernel.vnics.add_address(&new, address, prefix_len).await.map_err(|error| refuse(mac, &error))?;
    }
    put(record, Exit { ifindex: new.index, source: address, prefix: prefix_len, gateway });
    Ok(())
}

/// The new vNIC has an address of this family.
fn put(record: &mut Record, exit: Exit) {
    if let Some(mut paths) = record.paths() {
        paths.new.put(exit);
        record.set_paths(Some(paths));
    }
}

/// A table and a rule for each address of both vNICs, and the proof that they are heeded.
fn route(kernel: &mut Kernel, record: &mut Record, plan: &Prepare) -> Result<(), Refusal> {
    let Some(paths) = record.paths() else { return Err(Refusal::NotPrepared) };
    let exits: Vec<Exit> = paths.old.exits().chain(paths.new.exits()).collect();
    for exit in &exits {
        let table = TABLE + exit.ifindex;
        record.note(Change::Table(table));
        kernel
            .routing
            .fill_table(table, exit, tunnelled::mtu(record, exit))
            .map_err(|error| refuse(plan.new, &error))?;
        let rule = RuleKey { source: exit.source, table, priority: PRIORITY };
        record.note(Change::Rule(rule));
        kernel.routing.add_rule(&rule.into()).map_err(|error| refuse(plan.new, &error))?;
    }
    match proof::misled(kernel, &paths).map_err(|error| refuse(plan.new, &error))? {
        Some(detail) => Err(Refusal::Path { mac: plan.new, detail }),
        None => Ok(()),
    }
}

/// Of these addresses the one that most subflows and plain connections have; of as many the first.
fn busiest(kernel: &mut Kernel, addresses: &[(IpAddr, u8)]) -> Result<Option<(IpAddr, u8)>, Refusal> {
    if addresses.len() < 2 {
        return Ok(addresses.first().copied());
    }
    let snapshot = kernel.diag.snapshot().map_err(|e| Refusal::PathManager(chain(&e)))?;
    let subflows = snapshot.connections.iter().flat_map(|connection| &connection.subflows);
    let legacy = snapshot.legacy.iter().map(|connection| connection.local.ip());
    let local: Vec<IpAddr> = subflows.map(|subflow| subflow.local.ip()).chain(legacy).collect();
    let count = |address: IpAddr| local.iter().filter(|one| **one == address).count();
    Ok(addresses.iter().copied().min_by_key(|(address, _)| std::cmp::Reverse(count(*address))))
}

/// The addresses that a vNIC carries with the gateways it uses: of each family for which it has both. Of several addresses
/// of a family the one that most connections have.
async fn exits_of(kernel: &mut Kernel, vnic: &Vnic) -> Result<Plugged, Refusal> {
    let refuse = |detail: String| Refusal::Path { mac: vnic.mac, detail };
    let defaults = kernel.routing.default_routes().map_err(|e| refuse(chain(&e)))?;
    let mut plugged = Plugged::bare(vnic.mac);
    let unusable = kernel.vnics.unusable(vnic.index).await.map_err(|error| refuse(chain(&error)))?;
    let mut carries = false;
    for v6 in [false, true] {
        let usable: Vec<_> = vnic.of_family(v6).filter(|(address, _)| !unusable.contains(address)).collect();
        let Some((source, prefix)) = busiest(kernel, &usable)? else { continue };
        carries = true;
        let used = defaults.iter().filter(|r| r.v6 == v6 && r.ifindex == Some(vnic.index));
        let gateway = used.min_by_key(|r| r.metric).and_then(|r| r.gateway);
        if let Some(gateway) = gateway {
            plugged.put(Exit { ifindex: vnic.index, source, prefix, gateway });
        }
    }
    match plugged.exits().next() {
        Some(_) => Ok(plugged),
        None if carries => Err(refuse(format!("no default route leaves by {}: is it the vNIC in use?", vnic.name))),
        None => Err(refuse(format!("it carries no address on {}", vnic.name))),
    }
}

fn refuse(mac: Mac, error: &dyn std::error::Error) -> Refusal {
    Refusal::Path { mac, detail: chain(error) }
}
