//! The forecast's view of this machine: which connections use a managed vNIC, and what each is. The judgement is
//! lsm-protocol's.

use std::{collections::HashSet, net::IpAddr};

use lsm_protocol::{
    Mac, Millis,
    forecast::{Forecast, Kind, Look},
};

use crate::{
    connections::{Connection, Snapshot, Subflow},
    kernel::Kernel,
    path::chain,
    record::{Plugged, Record},
};

/// Looks at every connection. The error is in words.
pub async fn look(kernel: &mut Kernel, record: &Record, now: Millis) -> Result<Forecast, String> {
    let managed = managed(kernel, record).await?;
    let snapshot = kernel.diag.snapshot().map_err(|e| chain(&e))?;
    let datagrams = kernel.diag.datagrams().map_err(|e| chain(&e))?;
    let datagrams = datagrams.map(|all| all.into_iter().filter(|socket| managed.contains(&socket.ip())).collect());
    let announced = record.guest.has_announced();
    let new = record.paths().filter(|_| announced).map(|paths| paths.new);
    Ok(Forecast::of(now, &record.evidence, looks(&snapshot, &managed, new.as_ref()), announced, datagrams))
}

/// The addresses that a move would leave. Between migrations the guest knows the managed vNICs from the host; where no
/// host has asked yet, those with a default route are taken for them.
async fn managed(kernel: &mut Kernel, record: &Record) -> Result<HashSet<IpAddr>, String> {
    let vnics = kernel.vnics.list().await.map_err(|e| chain(&e))?;
    let mut macs: Vec<Mac> = record.guest.vnics().map(|(old, new)| vec![old, new]).unwrap_or_default();
    macs.extend(&record.managed);
    let used: Vec<u32> = if macs.is_empty() {
        let defaults = kernel.routing.default_routes().map_err(|e| chain(&e))?;
        defaults.iter().filter_map(|route| route.ifindex).collect()
    } else {
        Vec::new()
    };
    let is_managed = |vnic: &&crate::vnic::Vnic| macs.contains(&vnic.mac) || used.contains(&vnic.index);
    Ok(vnics.iter().filter(is_managed).flat_map(|vnic| vnic.addresses.iter().map(|(address, _)| *address)).collect())
}

fn looks(snapshot: &Snapshot, managed: &HashSet<IpAddr>, new: Option<&Plugged>) -> Vec<Look> {
    let legacy = snapshot.legacy.iter().map(|legacy| Look {
        local: legacy.local,
        remote: legacy.remote,
        managed: managed.contains(&legacy.local.ip()),
        kind: Kind::Legacy(legacy.obstacle),
    });
    legacy.chain(snapshot.connections.iter().filter_map(|connection| look_at(connection, managed, new))).collect()
}

fn look_at(connection: &Connection, managed: &HashSet<IpAddr>, new: Option<&Plugged>) -> Option<Look> {
    let is_managed = |subflow: &&Subflow| managed.contains(&subflow.local.ip());
    let established = || connection.subflows.iter().filter(|subflow| subflow.established);
    // It is known by the subflow that carries its data.
    let of_managed = established().filter(is_managed).min_by_key(|subflow| (subflow.backup, !subflow.initial));
    let shown = of_managed.or_else(|| established().next())?;
    let opened_here = connection.opened_here(shown);
    Some(Look {
        local: shown.local,
        remote: shown.remote,
        managed: of_managed.is_some(),
        kind: Kind::Mptcp {
            joined: established().any(|subflow| new.is_some_and(|new| new.carries(subflow.local.ip()))),
            opened_here,
            accepted: !opened_here && established().any(|subflow| !subflow.initial && !subflow.opened_by_us),
            full: connection.full,
        },
    })
}
