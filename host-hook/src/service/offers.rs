//! What peers offer: to take a VM that runs here.

use std::time::Duration;

use lsm_protocol::{Decline, MigrationId, Offer, Peer, WireguardEnd, source::Source};
use tokio::sync::{mpsc, oneshot};

use super::{Input, LEAVE, Service};
use crate::{
    arrival,
    clock::now,
    config,
    departure::{self, Departure},
    host::vni,
    inventory::Vm,
    peer_line::PeerHandle,
    report::Account,
    story,
};

/// The hosts take down the tunnels of a move that has settled within this, if both are well: one VM's in some 100 ms, but 20
/// VMs' at once in 3.4 s. The peer waits longer for its answer ([`lsm_protocol::destination::ACCEPT`]).
const CLOSING: Duration = Duration::from_secs(6);

/// A host that has its end of WireGuard offers a migration within this.
const OFFER: Duration = Duration::from_secs(30);

/// An offer that came while the VM's last move was coming to its end.
pub(super) struct Parked {
    name: String,
    handle: PeerHandle,
    offer: Offer,
}

impl Service {
    /// A host that will ask for a VM has its tunnels inside WireGuard.
    pub(super) fn encrypt(&self, name: String, handle: PeerHandle, migration: MigrationId, theirs: WireguardEnd) {
        let host = self.host.clone();
        if host.wireguard.peer(migration).is_some_and(|peer| peer != name) || host.claims.knows(migration) {
            tracing::warn!(%migration, peer = name, "a peer speaks of WireGuard out of turn; not heard");
            return;
        }
        tokio::task::spawn_local(async move {
            let why = if host.config.encrypts() {
                let told = host.wireguard.begin(migration, &name).await;
                match told.and_then(|ours| host.wireguard.hear(migration, theirs).map(|()| ours)) {
                    Ok(end) => {
                        handle.tell(Peer::Encrypted { migration, end });
                        tokio::time::sleep(OFFER).await;
                        None
                    }
                    Err(error) => Some(story(&error)),
                }
            } else {
                Some(format!("encrypt = \"none\" under [tunnel] in host.toml at {}", host.config.name))
            };
            if let Some(why) = why {
                tracing::warn!(%migration, peer = name, why, "no encrypted tunnels");
                handle.tell(Peer::Declined { migration, why: Decline::Tunnel(why) });
            }
            if !host.claims.knows(migration) {
                host.disconnect(migration).await;
            }
        });
    }

    /// `late`: it has waited here already.
    pub(super) fn offered(&mut self, name: String, handle: PeerHandle, offer: Offer, late: bool) {
        let migration = offer.migration;
        let decline = |why| {
            handle.tell(Peer::Declined { migration, why });
            let host = self.host.clone();
            tokio::task::spawn_local(async move { host.disconnect(migration).await });
        };
        let Some(vm) = self.host.inventory.borrow().get(offer.vm).cloned() else { return decline(Decline::NotRunning) };
        if let Err(why) = for_its_own_vnics(&offer, &vm) {
            tracing::warn!(vm = vm.name, %migration, peer = name, why, "an offer is declined");
            return decline(Decline::Tunnel(why));
        }
        let held = self.host.claims.way_back(&offer, &name);
        if let Some(other) = self.host.claims.any_of(offer.vm).filter(|_| held.is_none()) {
            let settled = vm.vnic(offer.advance.mac).is_some_and(|vnic| vnic.lan.is_none());
            if settled && !late && self.arrivals.contains_key(&other) {
                tracing::info!(vm = vm.name, %migration, peer = name, last = %other, "an offer waits for the end of the last move's tunnels");
                return self.park(other, Parked { name, handle, offer });
            }
            return decline(Decline::Busy(other));
        }
        let holder = vm.vnic(offer.advance.mac).filter(|_| held.is_none()).and_then(|vnic| vnic.lan.as_ref());
        if let Some(lan) = holder {
            return decline(Decline::Tunnel(format!(
                "by its metadata vNIC {} has an address of {lan}, and no move from there is under way; correct the metadata with \"virsh metadata\"",
                offer.advance.mac
            )));
        }
        let wireguard = self.host.wireguard.theirs(migration);
        if self.host.config.encrypts() && wireguard.is_none() {
            return decline(Decline::Tunnel(format!(
                "encrypt = \"wireguard\" under [tunnel] in host.toml at {}, and {name} offers tunnels that are not encrypted; set encrypt alike on both hosts (an older lsm-hook knows no such key)",
                self.host.config.name
            )));
        }
        tracing::info!(vm = vm.name, %migration, to = name, lan = offer.lan, encrypted = wireguard.is_some(), "a VM is asked for");
        let switch = match self.host.config.policy.switch {
            config::Switch::Auto => lsm_protocol::source::Switch::Auto,
            config::Switch::Early => lsm_protocol::source::Switch::Early,
            config::Switch::Arrival => lsm_protocol::source::Switch::Arrival,
        };
        let (machine, orders) = Source::new(now(), offer.clone(), switch);
        // One speaks to the guest at a time.
        let alone = held.map(|held| {
            let (told, alone) = oneshot::channel();
            if let Some((_, inbox)) = self.arrivals.get(&held) {
                let _ = inbox.send(arrival::News::Departs(told));
            }
            alone
        });
        let saved = departure::Saved { machine, vm, peer: name, account: Account::default(), wireguard };
        self.depart(&offer, saved, Some(handle), orders, alone);
    }

    pub(super) fn depart(
        &mut self,
        offer: &Offer,
        saved: departure::Saved,
        peer: Option<PeerHandle>,
        orders: Vec<lsm_protocol::source::Order>,
        alone: Option<oneshot::Receiver<()>>,
    ) {
        let (inbox_in, inbox) = mpsc::unbounded_channel();
        let migration = offer.migration;
        self.departures.insert(migration, (offer.vm, inbox_in));
        self.host.claims.begin(offer, &saved.peer);
        let departure = Departure::new(self.host.clone(), saved, peer);
        let inputs = self.inputs.clone();
        tokio::task::spawn_local(async move {
            if let Some(alone) = alone {
                let _ = tokio::time::timeout(LEAVE, alone).await;
            }
            departure.run(orders, inbox).await;
            let _ = inputs.send(Input::Over(migration));
        });
    }

    /// Until that migration is over, or has had its time.
    fn park(&mut self, last: MigrationId, parked: Parked) {
        self.parked.entry(last).or_default().push(parked);
        let inputs = self.inputs.clone();
        tokio::task::spawn_local(async move {
            tokio::time::sleep(CLOSING).await;
            let _ = inputs.send(Input::NoLonger(last));
        });
    }

    /// What waited for the end of that migration, or will not wait any longer.
    pub(super) fn unpark(&mut self, last: MigrationId) {
        for Parked { name, handle, offer } in self.parked.remove(&last).unwrap_or_default() {
            self.offered(name, handle, offer, true);
        }
    }

    /// Who offered has given it up.
    pub(super) fn withdrawn(&mut self, migration: MigrationId) {
        self.parked.values_mut().for_each(|parked| parked.retain(|one| one.offer.migration != migration));
    }
}

/// A tunnel lets a MAC into this host's LAN: it must be the VM's own, and the tunnel what this host would call it.
fn for_its_own_vnics(offer: &Offer, vm: &Vm) -> Result<(), String> {
    if offer.home.mac != vm.active {
        return Err(format!("the home tunnel is for {}, and the VM's traffic is on {}", offer.home.mac, vm.active));
    }
    if offer.advance.mac == vm.active || vm.vnic(offer.advance.mac).is_none() {
        return Err(format!("the advance tunnel is for {}, which is no spare vNIC of the VM", offer.advance.mac));
    }
    for tunnel in [offer.home, offer.advance] {
        let vni = vni(offer.vm, tunnel.mac);
        if tunnel.vni != vni {
            return Err(format!("the tunnel of {} is {vni}, not {}", tunnel.mac, tunnel.vni));
        }
    }
    Ok(())
}
