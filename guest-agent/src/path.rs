//! The new path itself: vNIC, address, rules, routes; and the way back.
//!
//! Both addresses get a rule and a table of their own while a migration lasts (`from ADDRESS lookup TABLE`), so that
//! each subflow leaves by the vNIC whose address it has, whatever the main table says.

use std::net::IpAddr;

use lsm_protocol::{Addressing, Mac, Prepare, Refusal};

use crate::{
    kernel::Kernel,
    neighbours,
    record::{Change, Paths, Plugged, Record, RuleKey},
    routing::Exit,
    sysctl,
    vnic::Vnic,
};

/// Tables and rule priorities of ours begin here; the vNIC's interface index is added to the table. Far from main (254),
/// cloud agents' tables (1 to 1000) and NetworkManager's (by VRF).
const TABLE: u32 = 19_500;
const PRIORITY: u32 = 19_500;

/// Parameters of each of the two vNICs: replies may come back by either (rp_filter loose), and a vNIC neither answers
/// nor asks ARP with the other's address.
const PARAMETERS: [(&str, &str); 3] = [("rp_filter", "2"), ("arp_ignore", "1"), ("arp_announce", "2")];

/// New vNIC up, address, rules and tables for both; checked by asking the kernel where packets would go.
pub async fn raise(kernel: &mut Kernel, record: &mut Record, plan: &Prepare) -> Result<(), Refusal> {
    let Addressing::Static { address, prefix_len, gateway } = plan.addressing else { return Err(Refusal::Addressing) };
    let old = find(kernel, plan.old).await?;
    let new = find(kernel, plan.new).await?;
    let refuse = |mac: Mac| move |error: &dyn std::error::Error| Refusal::Path { mac, detail: chain(error) };
    let refuse_new = refuse(plan.new);
    // Of another move, whose end failed, nothing is true any more.
    record.paths = record.paths.filter(|paths| (paths.old.mac, paths.new.mac) == (plan.old, plan.new));
    let old_exit = match record.paths {
        Some(paths) => paths.old.exit, // a repetition: the main table may have changed since
        None => exit_of(kernel, &old, address.is_ipv4())?,
    };
    let new_exit = Exit { ifindex: new.index, source: address, prefix: prefix_len, gateway };
    let taken = old.addresses.iter().any(|(a, _)| *a == address);
    if taken {
        let detail = format!("address {address} is in use on vNIC {} already; correct the LAN's pool", plan.old);
        return Err(Refusal::Path { mac: plan.new, detail });
    }
    let covered = record.paths.is_some_and(|paths| paths.old_covered);
    record.paths = Some(Paths {
        old: Plugged { mac: plan.old, exit: old_exit },
        new: Plugged { mac: plan.new, exit: new_exit },
        old_covered: covered,
    });

    if address.is_ipv4() {
        for vnic in [&old, &new] {
            for (parameter, value) in PARAMETERS {
                set_parameter(record, &format!("net/ipv4/conf/{}/{parameter}", vnic.name), value);
            }
        }
    }
    if new.mtu != u32::from(plan.mtu) {
        record.note(Change::Mtu { vnic: plan.new, was: new.mtu });
        kernel.vnics.set_mtu(&new, plan.mtu.into()).await.map_err(|e| refuse_new(&e))?;
    }
    if !new.up {
        record.note(Change::VnicUp(plan.new));
    }
    kernel.vnics.set_up(&new, true).await.map_err(|e| refuse_new(&e))?;
    record.note(Change::Address { vnic: plan.new, address, prefix_len });
    kernel.vnics.add_address(&new, address, prefix_len).await.map_err(|e| refuse_new(&e))?;
    for exit in [old_exit, new_exit] {
        let table = TABLE + exit.ifindex;
        record.note(Change::Table(table));
        kernel.routing.fill_table(table, &exit).map_err(|e| refuse_new(&e))?;
        let rule = RuleKey { source: exit.source, table, priority: PRIORITY };
        record.note(Change::Rule(rule));
        kernel.routing.add_rule(&rule.into()).map_err(|e| refuse_new(&e))?;
    }
    prove(kernel, plan, &[old_exit, new_exit])
}

/// A packet to any peer leaves by the vNIC whose address it carries.
fn prove(kernel: &mut Kernel, plan: &Prepare, exits: &[Exit]) -> Result<(), Refusal> {
    let snapshot = kernel.diag.snapshot().map_err(|e| Refusal::PathManager(chain(&e)))?;
    let old = exits[0].source;
    let peer =
        snapshot.connections.iter().flat_map(|c| &c.subflows).find(|s| s.local.ip() == old).map(|s| s.remote.ip());
    for exit in exits {
        let to = peer.unwrap_or(exit.gateway);
        let route = kernel
            .routing
            .route_get(to, Some(exit.source))
            .map_err(|e| Refusal::Path { mac: plan.new, detail: chain(&e) })?;
        if peer.is_some() && route.ifindex != exit.ifindex {
            let detail = format!(
                "packets from {} to {to} would leave by interface {} instead of {}: another rule comes before ours; see \"ip rule\"",
                exit.source, route.ifindex, exit.ifindex
            );
            return Err(Refusal::Path { mac: plan.new, detail });
        }
    }
    Ok(())
}

/// The destination's LAN hears of us, and new connections leave by it.
pub fn take_over(kernel: &mut Kernel, record: &mut Record) -> Result<(), Refusal> {
    let Some(paths) = record.paths else { return Ok(()) };
    let Plugged { mac, exit } = paths.new;
    let refuse = |error: &dyn std::error::Error| Refusal::Path { mac, detail: chain(error) };
    neighbours::announce(exit.ifindex, mac, exit.source).map_err(|e| refuse(&e))?;
    kernel.neighbours.refresh(exit.ifindex, exit.gateway).map_err(|e| refuse(&e))?;
    let defaults = kernel.routing.default_routes().map_err(|e| refuse(&e))?;
    for was in
        defaults.into_iter().filter(|r| r.ifindex == Some(paths.old.exit.ifindex) && r.v6 == exit.source.is_ipv6())
    {
        let metric = was.metric;
        record.note(Change::DefaultRoute { was });
        kernel.routing.replace_default(&exit, metric).map_err(|e| refuse(&e))?;
    }
    Ok(())
}

/// Takes back every change, the last first. Goes on when one cannot be taken back, and names those.
pub async fn lower(kernel: &mut Kernel, record: &mut Record) -> Result<(), Refusal> {
    let failures = take_back(kernel, std::mem::take(&mut record.changes)).await;
    let mac = record.paths.take().map(|paths| paths.new.mac);
    match mac {
        Some(mac) if !failures.is_empty() => Err(Refusal::Path { mac, detail: failures.join("; ") }),
        _ => Ok(()),
    }
}

/// The old address goes and its vNIC is the spare; what was needed to tell two paths apart goes too.
pub async fn release_old(kernel: &mut Kernel, record: &mut Record) -> Result<(), Refusal> {
    let Some(paths) = record.paths else { return Ok(()) };
    let old = match find(kernel, paths.old.mac).await {
        Ok(old) => Some(old),
        Err(Refusal::NoSuchVnic(_)) => None, // unplugged: its address went with it
        Err(why) => return Err(why),
    };
    let mut failures = Vec::new();
    let source = paths.old.exit.source;
    if let Some(old) = &old
        && let Err(error) = kernel.vnics.remove_address(old, source, paths.old.exit.prefix).await
    {
        failures.push(chain(&error));
    }
    let (temporary, lasting): (Vec<_>, Vec<_>) = std::mem::take(&mut record.changes)
        .into_iter()
        .partition(|c| matches!(c, Change::Rule(_) | Change::Table(_) | Change::Sysctl { .. }));
    drop(lasting); // the new address and the default route are the VM's own now
    failures.extend(take_back(kernel, temporary).await);
    if let Some(old) = &old
        && let Err(error) = kernel.vnics.set_up(old, false).await
    {
        failures.push(chain(&error));
    }
    record.paths = None;
    if failures.is_empty() { Ok(()) } else { Err(Refusal::Path { mac: paths.old.mac, detail: failures.join("; ") }) }
}

/// Takes changes back, the last first.
pub async fn take_back(kernel: &mut Kernel, changes: Vec<Change>) -> Vec<String> {
    let mut failures = Vec::new();
    for change in changes.into_iter().rev() {
        let result = match change {
            Change::VnicUp(mac) => on_vnic(kernel, mac, async |k, v| k.vnics.set_up(v, false).await.map(drop)).await,
            Change::Mtu { vnic, was } => {
                on_vnic(kernel, vnic, async |k, v| k.vnics.set_mtu(v, was).await.map(drop)).await
            }
            Change::Address { vnic, address, prefix_len } => {
                on_vnic(kernel, vnic, async |k, v| k.vnics.remove_address(v, address, prefix_len).await.map(drop)).await
            }
            Change::Rule(rule) => kernel.routing.remove_rule(&rule.into()).map(drop).map_err(|e| chain(&e)),
            Change::Table(table) => kernel.routing.clear_table(table).map(drop).map_err(|e| chain(&e)),
            Change::Sysctl { name, was } => match sysctl::set(&name, &was) {
                Ok(()) | Err(sysctl::Error::Absent { .. }) => Ok(()),
                Err(error) => Err(chain(&error)),
            },
            Change::DefaultRoute { was } => kernel.routing.restore_default(&was).map_err(|e| chain(&e)),
        };
        failures.extend(result.err());
    }
    failures
}

/// Writes a parameter, and down what it was. A kernel without it needs none.
pub fn set_parameter(record: &mut Record, name: &str, value: &str) {
    let Ok(was) = sysctl::get(name) else { return };
    if was == value {
        return;
    }
    record.note(Change::Sysctl { name: name.to_owned(), was });
    if let Err(error) = sysctl::set(name, value) {
        tracing::warn!(error = %chain(&error), "a kernel parameter stays as it is");
    }
}

async fn find(kernel: &Kernel, mac: Mac) -> Result<Vnic, Refusal> {
    let found = kernel.vnics.find(mac).await.map_err(|e| Refusal::Path { mac, detail: chain(&e) })?;
    found.ok_or(Refusal::NoSuchVnic(mac))
}

/// The address that a vNIC carries and the gateway it uses.
fn exit_of(kernel: &mut Kernel, vnic: &Vnic, v4: bool) -> Result<Exit, Refusal> {
    let refuse = |detail: String| Refusal::Path { mac: vnic.mac, detail };
    let (source, prefix) = vnic
        .addresses
        .iter()
        .copied()
        .find(|(address, _)| match address {
            IpAddr::V4(_) => v4,
            IpAddr::V6(a) => !v4 && !a.is_unicast_link_local(),
        })
        .ok_or_else(|| refuse(format!("it carries no address on {}", vnic.name)))?;
    let defaults = kernel.routing.default_routes().map_err(|e| refuse(chain(&e)))?;
    let gateway = defaults
        .iter()
        .filter(|r| r.v6 != v4 && r.ifindex == Some(vnic.index))
        .min_by_key(|r| r.metric)
        .and_then(|r| r.gateway)
        .ok_or_else(|| refuse(format!("no default route leaves by {}: is it the vNIC in use?", vnic.name)))?;
    Ok(Exit { ifindex: vnic.index, source, prefix, gateway })
}

async fn on_vnic(
    kernel: &mut Kernel,
    mac: Mac,
    act: impl AsyncFnOnce(&mut Kernel, &Vnic) -> Result<(), crate::vnic::Error>,
) -> Result<(), String> {
    match kernel.vnics.find(mac).await {
        Ok(Some(vnic)) => act(kernel, &vnic).await.map_err(|e| chain(&e)),
        Ok(None) => Ok(()),
        Err(error) => Err(chain(&error)),
    }
}

/// An error with its causes, in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
