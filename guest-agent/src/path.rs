//! The new path itself: vNIC, address, rules, routes; and the way back.
//!
//! All addresses of both vNICs get a rule, and each vNIC a table of its own, while a migration lasts (`from ADDRESS lookup
//! TABLE`), so that each subflow leaves by the vNIC whose address it has, whatever the main table says.

pub(crate) mod proof;
mod raise;
mod tunnelled;
pub mod upkeep;

use lsm_protocol::{Mac, Refusal};

pub use self::raise::{got, plug, raise};

use crate::{
    kernel::Kernel,
    neighbours,
    obtain::Owner,
    record::{Change, Paths, Record},
    routing::Exit,
    sysctl,
    vnic::Vnic,
};

/// Tables and rule priorities of ours begin here; the vNIC's interface index is added to the table. Far from main (254),
/// cloud agents' tables (1 to 1000) and NetworkManager's (by VRF).
pub const TABLE: u32 = 19_500;
const PRIORITY: u32 = 19_500;

/// Parameters of each of the two vNICs: replies may come back by either (rp_filter loose), and a vNIC neither answers
/// nor asks ARP with the other's address.
const PARAMETERS: [(&str, &str); 3] = [("rp_filter", "2"), ("arp_ignore", "1"), ("arp_announce", "2")];

/// The destination's LAN hears of us, and new connections leave by it; the old addresses' packets are short enough for their
/// tunnel. Each family goes on when the other cannot.
pub async fn take_over(kernel: &mut Kernel, record: &mut Record) -> Result<(), Refusal> {
    let Some(paths) = record.paths() else { return Ok(()) };
    let mac = paths.new.mac;
    let mut failures: Vec<String> = paths
        .new
        .exits()
        .filter_map(|exit| take_over_family(kernel, record, &paths, &exit).err())
        .map(|error| chain(&error))
        .collect();
    failures.extend(tunnelled::turn(kernel, record, &paths).await.iter().map(|error| chain(error)));
    if failures.is_empty() { Ok(()) } else { Err(Refusal::Path { mac, detail: failures.join("; ") }) }
}

fn take_over_family(
    kernel: &mut Kernel,
    record: &mut Record,
    paths: &Paths,
    exit: &Exit,
) -> Result<(), crate::netlink::Error> {
    neighbours::announce(exit.ifindex, paths.new.mac, exit.source)?;
    kernel.neighbours.refresh(exit.ifindex, exit.gateway)?;
    let old = paths.old.exits().next().map(|old| old.ifindex);
    // Its routes are in the vNIC's own table, and its address may be exchanged by and by.
    let owned = record.obtained.iter().any(|kept| kept.card.mac == paths.new.mac && kept.owner != Owner::Nobody);
    if owned && !kernel.routing.is_connected(exit)? {
        record.note(Change::Connected(*exit));
        kernel.routing.connect(exit)?;
    }
    let defaults = kernel.routing.default_routes()?;
    for was in defaults.into_iter().filter(|r| r.ifindex == old && r.v6 == exit.source.is_ipv6()) {
        let metric = was.metric;
        record.note(Change::DefaultRoute { was });
        if owned {
            kernel.routing.replace_unbound_default(exit, metric)?;
        } else {
            kernel.routing.replace_default(exit, metric)?;
        }
    }
    Ok(())
}

/// Takes back every change, the last first, but for those that a way back has found. Goes on when one cannot be taken back,
/// and names those.
pub async fn lower(kernel: &mut Kernel, record: &mut Record) -> Result<(), Refusal> {
    let changes = record.take_changes();
    let failures = take_back(kernel, changes).await;
    let mac = record.paths().map(|paths| paths.new.mac);
    if !record.guest.is_on_way_back() {
        record.set_paths(None);
    }
    match mac {
        Some(mac) if !failures.is_empty() => Err(Refusal::Path { mac, detail: failures.join("; ") }),
        _ => Ok(()),
    }
}

/// The old addresses go and their vNIC is the spare, to be set down; what was needed to tell two paths apart goes too.
pub async fn release_old(kernel: &mut Kernel, record: &mut Record) -> Result<(), Refusal> {
    let Some(paths) = record.paths() else { return Ok(()) };
    let old = match find(kernel, paths.old.mac).await {
        Ok(old) => Some(old),
        Err(Refusal::NoSuchVnic(_)) => None, // unplugged: its address went with it
        Err(why) => return Err(why),
    };
    let mut failures = Vec::new();
    if let Some(old) = &old {
        for Exit { source, prefix, .. } in paths.old.exits() {
            failures.extend(kernel.vnics.remove_address(old, source, prefix).await.err().map(|error| chain(&error)));
        }
    }
    let (temporary, lasting): (Vec<_>, Vec<_>) = std::mem::take(&mut record.changes)
        .into_iter()
        .partition(|c| matches!(c, Change::Rule(_) | Change::Table(_) | Change::Sysctl { .. }));
    drop(lasting); // the new addresses and the default routes are the VM's own now
    failures.extend(take_back(kernel, temporary).await);
    record.left_up = old.map(|old| old.mac);
    record.set_paths(None);
    if failures.is_empty() { Ok(()) } else { Err(Refusal::Path { mac: paths.old.mac, detail: failures.join("; ") }) }
}

/// The old vNIC of the last move, which [`release_old`] left up.
pub async fn set_spare_down(kernel: &mut Kernel, record: &mut Record) -> Result<(), Refusal> {
    let Some(mac) = record.left_up else { return Ok(()) };
    let lowered = on_vnic(kernel, mac, async |k, v| k.vnics.set_up(v, false).await.map(drop)).await;
    lowered.map_err(|detail| Refusal::Path { mac, detail })?;
    record.left_up = None;
    Ok(())
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
            Change::Connected(exit) => kernel.routing.disconnect(&exit).map(drop).map_err(|e| chain(&e)),
            Change::PathMtu { exit, was, .. } => {
                kernel.routing.fill_table(TABLE + exit.ifindex, &exit, was).map_err(|e| chain(&e))
            }
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
