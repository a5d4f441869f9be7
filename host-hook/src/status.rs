//! What `lsm-hook status` shows.

use lsm_protocol::{Counts, Drain, Offer, Peer, guest::Deadline};
use serde::{Deserialize, Serialize};

use crate::{clock, filters, inventory::Vm, moved::Move, report::Report};

/// This host.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    pub host: String,
    pub vms: Vec<Vm>,
    pub migrations: Vec<Migration>,
    /// Network identifiers of the tunnels that stand.
    pub tunnels: Vec<u32>,
    /// What has crossed each of them, or not, at this end.
    #[serde(default)]
    pub crossed: Vec<Crossed>,
    /// The last moves to this host, and what became of the scripts in moved.d.
    #[serde(default)]
    pub moved: Vec<Move>,
    /// The report of the migration that was over last; `lsm-hook history` has those before.
    #[serde(default)]
    pub last: Option<Report>,
}

/// Frames of a tunnel, as its filters have counted them.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Crossed {
    pub tunnel: u32,
    #[serde(flatten)]
    pub counts: filters::Counts,
}

/// A migration under way.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Migration {
    pub migration: String,
    /// This host's part in it: `source` or `destination`.
    pub role: String,
    pub vm: String,
    pub peer: String,
    pub lan: String,
    pub state: String,
    pub awaiting: Option<String>,
    /// What is left of that wait, in milliseconds.
    pub for_ms: Option<u64>,
    /// How long the old path stays for those who need it: `until-idle`, `forever` or seconds.
    pub drain: String,
    /// The VM's connections since it arrived here, as the guest said last.
    pub connections: Option<Counts>,
    pub steps: clock::Steps,
}

impl Migration {
    pub fn new(
        role: &str,
        vm: &str,
        peer: &str,
        offer: &Offer,
        state: &str,
        deadline: Option<Deadline>,
        steps: &clock::Steps,
    ) -> Migration {
        Migration {
            migration: offer.migration.to_string(),
            role: role.to_owned(),
            vm: vm.to_owned(),
            peer: peer.to_owned(),
            lan: offer.lan.clone(),
            state: state.to_owned(),
            awaiting: deadline.map(|d| d.awaited.to_owned()),
            for_ms: deadline.map(|d| d.at.saturating_sub(clock::now())),
            drain: match offer.drain {
                Drain::UntilIdle => "until-idle".to_owned(),
                Drain::Forever => "forever".to_owned(),
                Drain::For(time) => format!("{} s", time / 1_000),
            },
            connections: None,
            steps: steps.clone(),
        }
    }

    /// With the connections that the guest has counted.
    pub fn counted(self, connections: Option<Counts>) -> Migration {
        Migration { connections, ..self }
    }
}

/// A message in a few words, for the log.
pub fn peer_word(message: &Peer) -> &'static str {
    match message {
        Peer::Locate { .. } => "the peer asks for a VM",
        Peer::Located { .. } => "the peer says where the VM is",
        Peer::Offer(_) => "the destination offers",
        Peer::Accepted { .. } => "the source has built its ends",
        Peer::Declined { .. } => "the source declines",
        Peer::GuestPrepared { .. } => "the guest is prepared",
        Peer::GuestAddressed { .. } => "the guest has addresses",
        Peer::GuestRefused { .. } => "the guest is not prepared",
        Peer::Flipped { .. } => "the guest has flipped early",
        Peer::Stopped { .. } => "the VM is paused at the source",
        Peer::Resumed { .. } => "the VM runs on at the source",
        Peer::Arrived { .. } => "the VM runs at the destination",
        Peer::TakeDown { .. } => "the destination has settled",
        Peer::TakenDown { .. } => "the source has taken its ends down",
        Peer::Abort { .. } => "the peer aborts",
        Peer::KeepAlive { .. } => "the peer is alive",
        Peer::Foresee { .. } => "the peer asks what would become of a VM's connections",
        Peer::Foreseen { .. } => "the peer says what would become of the VM's connections",
        Peer::Encrypt { .. } => "the destination has an end of WireGuard",
        Peer::Encrypted { .. } => "the source has an end of WireGuard",
    }
}

/// For people.
pub fn print(status: &Status) {
    println!("host {}", status.host);
    if status.vms.is_empty() {
        println!("  no managed VM runs here");
    }
    for vm in &status.vms {
        println!("  VM {}", vm.name);
        for vnic in &vm.vnics {
            let place = vnic.lan.as_deref().unwrap_or("spare");
            let active = if vnic.mac == vm.active { ", carries the traffic" } else { "" };
            println!("    vNIC {}  {place}{active}", vnic.mac);
        }
    }
    for m in &status.migrations {
        println!("  migration {} of {}: {} ({} with {}, LAN {})", m.migration, m.vm, m.state, m.role, m.peer, m.lan);
        if let (Some(awaiting), Some(ms)) = (&m.awaiting, m.for_ms) {
            println!("    waiting for {awaiting}, {:.1} s more", ms as f64 / 1_000.0);
        }
        if let Some(Counts { joined, waiting, legacy, .. }) = m.connections {
            println!(
                "    {joined} connections on the new path; {waiting} stragglers and {legacy} legacy ones hold the old ({})",
                m.drain
            );
        }
    }
    println!("  {} tunnels", status.tunnels.len());
    for Move { vm, peer, from, to, scripts, .. } in &status.moved {
        println!("  VM {vm} came from {peer}: {from} became {to}");
        match scripts {
            None => println!("    scripts are running"),
            Some(ran) => ran.iter().for_each(|one| println!("    {one}")),
        }
    }
    if let Some(Report { vm, outcome, role, guest, .. }) = &status.last {
        let connections = guest.as_ref().map(|guest| format!(": {}", guest.sums)).unwrap_or_default();
        println!("  last migration: VM {vm} ({role}), {outcome}{connections}; see \"lsm-hook history\"");
    }
}
