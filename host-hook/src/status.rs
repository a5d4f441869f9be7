//! What `lsm-hook status` shows.

use lsm_protocol::{Offer, Peer, guest::Deadline};
use serde::{Deserialize, Serialize};

use crate::{clock, inventory::Vm};

/// This host.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    pub host: String,
    pub vms: Vec<Vm>,
    pub migrations: Vec<Migration>,
    /// Network identifiers of the tunnels that stand.
    pub tunnels: Vec<u32>,
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
            steps: steps.clone(),
        }
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
        Peer::GuestRefused { .. } => "the guest is not prepared",
        Peer::Flipped { .. } => "the guest has flipped early",
        Peer::Stopped { .. } => "the VM is paused at the source",
        Peer::Resumed { .. } => "the VM runs on at the source",
        Peer::Arrived { .. } => "the VM runs at the destination",
        Peer::TakeDown { .. } => "the destination has settled",
        Peer::TakenDown { .. } => "the source has taken its ends down",
        Peer::Abort { .. } => "the peer aborts",
        Peer::KeepAlive { .. } => "the peer is alive",
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
    }
    println!("  {} tunnels", status.tunnels.len());
}
