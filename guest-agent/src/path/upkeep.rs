//! Rules and tables of ours that another agent has taken away are put back. An address that is gone is not: whoever got it
//! from the LAN may have lost it to somebody else.

use super::{TABLE, tunnelled};
use crate::{
    kernel::Kernel,
    netlink::Error,
    obtain::Owner,
    record::{Change, Record},
    routing::{Rule, Watch},
    vnic,
};
use lsm_protocol::Refusal;

/// Told whenever it is worth looking.
///
/// # Errors
/// When the kernel cannot be asked to tell.
pub fn watch() -> Result<Watch, Error> {
    Watch::open(TABLE)
}

/// What was missing, in the words of `ip`. Nothing is looked for but what the record says is ours.
///
/// # Errors
/// When the kernel cannot be asked, or refuses; what was put back until then is so.
pub fn repair(kernel: &mut Kernel, record: &Record) -> Result<Vec<String>, Error> {
    let mut missing = Vec::new();
    let Some(paths) = record.paths() else { return Ok(missing) };
    let there = kernel.routing.rules()?;
    for change in &record.changes {
        let Change::Rule(key) = change else { continue };
        let rule = Rule::from(*key);
        if !there.contains(&rule) {
            kernel.routing.add_rule(&rule)?;
            missing.push(format!("rule from {} lookup {} priority {}", rule.source, rule.table, rule.priority));
        }
    }
    for exit in paths.old.exits().chain(paths.new.exits()) {
        let table = TABLE + exit.ifindex;
        if record.changes.contains(&Change::Table(table)) && !kernel.routing.is_filled(table, &exit)? {
            kernel.routing.fill_table(table, &exit, tunnelled::mtu(record, &exit))?;
            missing.push(format!("default via {} src {} in table {table}", exit.gateway, exit.source));
        }
    }
    Ok(missing)
}

/// An address of the new vNIC that it has no more, in words for who asked for it.
///
/// # Errors
/// When the kernel cannot be asked.
pub async fn gone(kernel: &Kernel, record: &Record) -> Result<Option<Refusal>, vnic::Error> {
    let Some(paths) = record.paths() else { return Ok(None) };
    let mac = paths.new.mac;
    let Some(vnic) = kernel.vnics.find(mac).await? else { return Ok(None) };
    let lost = paths.new.exits().map(|exit| exit.source).find(|one| !vnic.addresses.iter().any(|(had, _)| had == one));
    let owner = record.obtained.iter().find(|kept| kept.card.mac == mac).map_or(Owner::Nobody, |kept| kept.owner);
    Ok(lost.map(|address| {
        let detail = match owner {
            Owner::Nobody => {
                format!("somebody has taken {address} away from it; see who else configures {}", vnic.name)
            }
            owner => format!("{owner} has lost {address}, or has taken it away; see \"{}\"", owner.log()),
        };
        Refusal::NoAddress { mac, detail }
    }))
}
